//! STOMP destinations: from text to what AMQP calls exchange, routing key and queue, and back for MESSAGE.
//! The forms, the decoding and the error texts are those of RabbitMQ's plugin.

use super::amqp::ShortText;
use super::config::DestinationDecoding;
use super::refusal::{CloseCode, Refusal};

/// Keys of this shape address RabbitMQ's direct reply-to; a made-up one is an error that closes the AMQP connection.
const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";
/// Internal exchanges such as the firehose `amq.rabbitmq.trace`, which shows a whole virtual host.
const INTERNAL_EXCHANGES: &str = "amq.rabbitmq.";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// `/amq/queue/N`: an existing queue.
    AmqQueue(ShortText),
    /// `/exchange/N[/K]`
    Exchange { name: ShortText, key: ShortText },
    /// `/queue/N` or a bare name: a queue that is declared when needed.
    Queue(ShortText),
    /// `/reply-queue/R`: an existing queue, the rest taken as it is.
    ReplyQueue(ShortText),
    /// `/temp-queue/N`: in `reply-to` only.
    TempQueue(String),
    /// `/topic/K`
    Topic(ShortText),
}

impl Destination {
    /// # Errors
    /// `Invalid destination` or `Unknown destination`, in the plugin's words.
    pub fn parse(text: &str, decoding: DestinationDecoding) -> Result<Destination, Refusal> {
        if text.is_empty() {
            return Err(invalid("Destination cannot be blank".to_owned()));
        }
        if text.chars().any(char::is_control) {
            return Err(invalid(format!("{text:?} has a control character, which no destination may have\n")));
        }
        let short = |part: &str| short(&decode(part, decoding)?);
        if !text.contains('/') {
            return Ok(Destination::Queue(queue_name(short(text)?)?));
        }
        let Some(rest) = text.strip_prefix('/') else { return Err(unknown(text)) };
        let parts: Vec<&str> = rest.split('/').collect();
        let refuse = |kind: &str, from: usize| {
            let rest: String = parts[from..].iter().flat_map(|part| ["/", part]).collect();
            Err(invalid(format!("'{rest}' is not a valid {kind} destination\n")))
        };
        let one = |from: usize| matches!(parts[from..], [name] if !name.is_empty());
        match parts[0] {
            "amq" if parts.get(1) == Some(&"queue") => match one(2) {
                true => Ok(Destination::AmqQueue(queue_name(short(parts[2])?)?)),
                false => refuse("amqqueue", 2),
            },
            "exchange" => match parts[1..] {
                [name] if !name.is_empty() => exchange(short(name)?, ShortText::default()),
                [name, key] if !name.is_empty() => exchange(short(name)?, short(key)?),
                _ => refuse("exchange", 1),
            },
            "queue" if one(1) => Ok(Destination::Queue(queue_name(short(parts[1])?)?)),
            "queue" => refuse("queue", 1),
            "reply-queue" => match rest.strip_prefix("reply-queue/") {
                Some(name) if !name.is_empty() => Ok(Destination::ReplyQueue(queue_name(short(name)?)?)),
                _ => refuse("reply-queue", 1),
            },
            "temp-queue" if one(1) => Ok(Destination::TempQueue(decode(parts[1], decoding)?)),
            "temp-queue" => refuse("temp_queue", 1),
            "topic" if one(1) => Ok(Destination::Topic(short(parts[1])?)),
            "topic" => refuse("topic", 1),
            _ => Err(unknown(text)),
        }
    }

    /// Where a SEND publishes to: exchange and routing key. None for `/temp-queue`.
    pub fn publish_address(&self, topic_exchange: &ShortText) -> Option<(ShortText, ShortText)> {
        match self {
            Destination::AmqQueue(name) | Destination::Queue(name) | Destination::ReplyQueue(name) => {
                Some((ShortText::default(), name.clone()))
            }
            Destination::Exchange { name, key } => Some((name.clone(), key.clone())),
            Destination::TempQueue(_) => None,
            Destination::Topic(key) => Some((topic_exchange.clone(), key.clone())),
        }
    }

    /// Whether a SEND reaches one queue, so that an unroutable message is surely a mistake.
    pub fn is_one_queue(&self) -> bool {
        matches!(self, Destination::AmqQueue(_) | Destination::Queue(_) | Destination::ReplyQueue(_))
    }
}

/// Appends the `destination` header of a MESSAGE, rendered from the address it was published to.
pub fn render(exchange: &str, routing_key: &str, topic_exchange: &str, text: &mut String) {
    if exchange.is_empty() {
        text.push_str("/queue/");
    } else if exchange == "amq.topic" || exchange == topic_exchange {
        text.push_str("/topic/");
    } else {
        text.push_str("/exchange/");
        encode(exchange, text);
        if routing_key.is_empty() {
            return;
        }
        text.push('/');
    }
    encode(routing_key, text);
}

/// Appends the `reply-to` header of a MESSAGE: a destination as it is, a queue name as `/reply-queue/<name>`.
pub fn render_reply_to(property: &str, text: &mut String) {
    const SHOWN_AS_IS: [&str; 5] = ["/exchange", "/topic", "/queue", "/amq/queue", "/reply-queue/"];
    if !SHOWN_AS_IS.iter().any(|prefix| property.starts_with(prefix)) {
        text.push_str("/reply-queue/");
    }
    text.push_str(property);
}

fn encode(part: &str, output: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let is_encoded = |byte: u8| matches!(byte, b'/' | b'%' | 0..=31 | 128..);
    // Hardly any name has such a byte.
    if !part.bytes().any(is_encoded) {
        return output.push_str(part);
    }
    for byte in part.bytes() {
        match byte {
            _ if is_encoded(byte) => {
                output.push('%');
                output.push(char::from(HEX[usize::from(byte >> 4)]));
                output.push(char::from(HEX[usize::from(byte & 15)]));
            }
            _ => output.push(char::from(byte)),
        }
    }
}

fn decode(part: &str, decoding: DestinationDecoding) -> Result<String, Refusal> {
    match decoding {
        DestinationDecoding::Rabbitmq => Ok(part.replace("%2F", "/")),
        DestinationDecoding::Full => {
            let text = percent_encoding::percent_decode_str(part)
                .decode_utf8()
                .map_err(|_| invalid(format!("'{part}' does not decode to UTF-8\n")))?;
            if text.chars().any(char::is_control) {
                return Err(invalid(format!("'{part}' decodes to a control character\n")));
            }
            Ok(text.into_owned())
        }
    }
}

fn short(text: &str) -> Result<ShortText, Refusal> {
    ShortText::new(text)
        .map_err(|long| invalid(format!("a name of {} bytes is longer than AMQP allows (255 bytes)\n", long.bytes)))
}

fn queue_name(name: ShortText) -> Result<ShortText, Refusal> {
    refuse_direct_reply_to(name.as_str())?;
    Ok(name)
}

/// To be asked about everything that RabbitMQ may take for the name of a queue.
pub(super) fn refuse_direct_reply_to(name: &str) -> Result<(), Refusal> {
    if name.starts_with(DIRECT_REPLY_TO) {
        return Err(Refusal::fatal(
            "broker.access_refused",
            "access_refused",
            format!("'{name}' addresses RabbitMQ's direct reply-to, which the relay does not serve\n"),
            "Let the requester use a queue of its own in reply-to.",
        )
        .closing(CloseCode::PolicyViolation));
    }
    Ok(())
}

fn exchange(name: ShortText, key: ShortText) -> Result<Destination, Refusal> {
    if name.as_str().starts_with(INTERNAL_EXCHANGES) {
        return Err(Refusal::fatal(
            "broker.access_refused",
            "access_refused",
            format!("exchange '{name}' is RabbitMQ's own, which the relay does not serve\n"),
            "",
        )
        .closing(CloseCode::PolicyViolation));
    }
    Ok(Destination::Exchange { name, key })
}

fn invalid(body: String) -> Refusal {
    Refusal::soft(
        "destination.invalid",
        "Invalid destination",
        body,
        "A part with a slash is written with %2F; see docs/mapping.md for the forms.",
    )
}

fn unknown(text: &str) -> Refusal {
    Refusal::soft(
        "destination.unknown",
        "Unknown destination",
        format!(
            "'{text}' is not a valid destination.\nValid destination types are: \
             /temp-queue, /exchange, /topic, /queue, /amq/queue, /reply-queue/.\n"
        ),
        "Use one of these, for example /topic/orders.created or /queue/jobs.",
    )
}
