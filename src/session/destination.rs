//! STOMP destinations: from text to what AMQP calls exchange, routing key and queue, and back for MESSAGE.
//! The forms, the decoding and the error texts are those of RabbitMQ's plugin.

use std::borrow::Cow;

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
        if has_control(text) {
            return Err(invalid(format!("{text:?} has a control character, which no destination may have\n")));
        }
        let short = |part: &str| short(decode(part, decoding)?);
        if !text.contains('/') {
            return Ok(Destination::Queue(queue_name(short(text)?)?));
        }
        let (kind, rest) = split(text.strip_prefix('/').ok_or_else(|| unknown(text))?);
        let refuse = |kind: &str, rest: Option<&str>| {
            let rest = rest.map(|rest| format!("/{rest}")).unwrap_or_default();
            Err(invalid(format!("'{rest}' is not a valid {kind} destination\n")))
        };
        match kind {
            "amq" => match rest.map(split) {
                Some(("queue", rest)) => match one(rest) {
                    Some(name) => Ok(Destination::AmqQueue(queue_name(short(name)?)?)),
                    None => refuse("amqqueue", rest),
                },
                _ => Err(unknown(text)),
            },
            "exchange" => match rest.map(split) {
                Some((name, None)) if !name.is_empty() => exchange(short(name)?, ShortText::default()),
                Some((name, Some(key))) if !name.is_empty() && !key.contains('/') => {
                    exchange(short(name)?, short(key)?)
                }
                _ => refuse("exchange", rest),
            },
            "queue" => match one(rest) {
                Some(name) => Ok(Destination::Queue(queue_name(short(name)?)?)),
                None => refuse("queue", rest),
            },
            "reply-queue" => match rest {
                Some(name) if !name.is_empty() => Ok(Destination::ReplyQueue(queue_name(short(name)?)?)),
                _ => refuse("reply-queue", rest),
            },
            "temp-queue" => match one(rest) {
                Some(name) => Ok(Destination::TempQueue(decode(name, decoding)?.into_owned())),
                None => refuse("temp_queue", rest),
            },
            "topic" => match one(rest) {
                Some(key) => Ok(Destination::Topic(short(key)?)),
                None => refuse("topic", rest),
            },
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

/// The part before the first slash, and what is behind that, if there is one.
fn split(text: &str) -> (&str, Option<&str>) {
    match text.split_once('/') {
        Some((part, rest)) => (part, Some(rest)),
        None => (text, None),
    }
}

/// The rest if it is a single part that is not empty.
fn one(rest: Option<&str>) -> Option<&str> {
    rest.filter(|part| !part.is_empty() && !part.contains('/'))
}

fn has_control(text: &str) -> bool {
    // No control character has other bytes than these; most destinations have none of them and need no second look.
    text.bytes().any(|byte| matches!(byte, 0..=31 | 127..)) && text.chars().any(char::is_control)
}

fn decode(part: &str, decoding: DestinationDecoding) -> Result<Cow<'_, str>, Refusal> {
    if !part.contains('%') {
        return Ok(Cow::Borrowed(part));
    }
    match decoding {
        DestinationDecoding::Rabbitmq => Ok(Cow::Owned(part.replace("%2F", "/"))),
        DestinationDecoding::Full => {
            let text = percent_encoding::percent_decode_str(part)
                .decode_utf8()
                .map_err(|_| invalid(format!("'{part}' does not decode to UTF-8\n")))?;
            if has_control(&text) {
                return Err(invalid(format!("'{part}' decodes to a control character\n")));
            }
            Ok(text)
        }
    }
}

fn short(text: Cow<'_, str>) -> Result<ShortText, Refusal> {
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
