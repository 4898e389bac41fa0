//! STOMP headers of a SEND to AMQP properties. The table is that of RabbitMQ's plugin; docs/mapping.md shows it to users.
//! The other direction is `message`.

use super::amqp::{FieldValue, Properties, ShortText};
use super::boolean::boolean;
use super::config::{Compatibility, SessionConfig};
use super::destination::refuse_direct_reply_to;
use super::refusal::Refusal;
use crate::stomp::Headers;

/// Encoded bytes of a field table: of all application headers of a SEND, of all arguments of a declaration, binding or
/// consumer. Each has to fit into one AMQP frame; a larger one closes the AMQP connection.
pub(super) const FIELD_TABLE_BYTES_MAX: usize = 64 * 1024;

/// Overhead of a field table entry: name length, type, value length (AMQP 0-9-1, 4.2.5.5).
const FIELD_OVERHEAD_BYTES: usize = 6;

/// Overhead of an entry of a list: type and length. A list of many short texts grows on its way into AMQP.
const ENTRY_OVERHEAD_BYTES: usize = 5;

/// What a field takes in an AMQP field table.
pub(super) fn encoded_bytes(name: &ShortText, value: &FieldValue) -> usize {
    let value = match value {
        FieldValue::Bool(_) | FieldValue::Integer(_) | FieldValue::Timestamp(_) => size_of::<u64>(),
        FieldValue::List(entries) => entries.iter().map(|entry| entry.len() + ENTRY_OVERHEAD_BYTES).sum(),
        FieldValue::Text(text) => text.len(),
    };
    name.as_str().len() + value + FIELD_OVERHEAD_BYTES
}

/// Properties and application headers of a SEND, without `reply-to`, which may need a queue first.
pub(super) fn from_send(headers: &Headers, config: &SessionConfig) -> Result<Properties, Refusal> {
    if headers.contains("message-id") {
        return Err(Refusal::soft(
            "frame.header",
            "Invalid header",
            "'message-id' is not allowed on 'SEND'.\n",
            "Use amqp-message-id for an id of your own.",
        ));
    }
    let mut properties = Properties::default();
    let mut bytes = 0;
    let mut copies_left = config.copies_max;
    for (name, value) in headers.iter() {
        match name {
            "amqp-message-id" => properties.message_id = Some(short(name, value)?),
            "app-id" => properties.app_id = Some(short(name, value)?),
            "content-encoding" => properties.content_encoding = Some(short(name, value)?),
            "content-type" => properties.content_type = Some(short(name, value)?),
            "correlation-id" => properties.correlation_id = Some(short(name, value)?),
            "destination" | "reply-to" => {}
            "expiration" => properties.expiration = Some(expiration(value)?),
            "persistent" => properties.delivery_mode = boolean(name, value)?.then_some(2),
            "priority" => properties.priority = Some(number(name, value, "a number from 0 to 255")?),
            "timestamp" => properties.timestamp = Some(number(name, value, "seconds since 1970")?),
            "type" => properties.kind = Some(short(name, value)?),
            "user-id" => properties.user_id = Some(short(name, value)?),
            _ if is_for_the_relay(name, config.compatibility) || is_proof(name) => {}
            "BCC" | "CC" => {
                let keys = routing_keys(value, &mut copies_left, config.copies_max)?;
                let (name, value) = (short_name(name)?, FieldValue::List(keys));
                bytes += encoded_bytes(&name, &value);
                properties.headers.push((name, value));
            }
            _ => {
                let (name, value) = (short_name(name)?, FieldValue::Text(value.to_owned()));
                bytes += encoded_bytes(&name, &value);
                properties.headers.push((name, value));
            }
        }
    }
    if bytes > FIELD_TABLE_BYTES_MAX {
        return Err(Refusal::soft(
            "limit.message_headers",
            "Invalid header",
            format!("the headers of this message take {bytes} bytes, the limit is {FIELD_TABLE_BYTES_MAX} bytes\n"),
            "Move large values into the body.",
        ));
    }
    Ok(properties)
}

/// Headers that speak to the relay. The plugin passes them on to consumers all the same.
fn is_for_the_relay(name: &str, compatibility: Compatibility) -> bool {
    compatibility == Compatibility::Strict && matches!(name, "content-length" | "mandatory" | "receipt" | "transaction")
}

/// Headers in which clients show who they are. The relay has checked that; consumers, and the logs of everybody on the way,
/// are not to have it. Client libraries put such headers on every frame, in upper or lower case.
fn is_proof(name: &str) -> bool {
    const NAMES: [&str; 6] = ["access_token", "authorization", "cookie", "login", "passcode", "proxy-authorization"];
    // The lengths first: this is asked about every application header.
    NAMES.iter().any(|proof| proof.len() == name.len() && proof.eq_ignore_ascii_case(name))
}

/// `CC` and `BCC` must be arrays in AMQP (RabbitMQ's sender-selected distribution); as a string they would close the channel.
/// Their keys are routed like the message's own. A key of one byte takes fifty here and more in the AMQP library, so how many
/// they are is bounded before the first is kept.
fn routing_keys(value: &str, left: &mut usize, limit: usize) -> Result<Vec<String>, Refusal> {
    let count = value.split(',').count();
    *left = left.checked_sub(count).ok_or_else(|| {
        Refusal::soft(
            "limit.copies",
            "Invalid header",
            format!("CC and BCC name more than {limit} routing keys\n"),
            "Send to an exchange that is bound to many queues, or send several messages.",
        )
    })?;
    let keys = value.split(',').map(|key| key.trim().to_owned()).collect::<Vec<_>>();
    keys.iter().try_for_each(|key| refuse_direct_reply_to(key))?;
    Ok(keys)
}

fn expiration(value: &str) -> Result<ShortText, Refusal> {
    let milliseconds: u32 = number("expiration", value, "milliseconds from 0 to 4294967295")?;
    short("expiration", &milliseconds.to_string())
}

/// Decimal digits with blanks around them, as the plugin reads numbers; a sign may stand before them.
pub(super) fn number<N: std::str::FromStr>(name: &str, value: &str, expected: &str) -> Result<N, Refusal> {
    let digits = value.trim_matches(' ');
    digits.parse().map_err(|_| Refusal::bad_header(name, format_args!("expected {expected}")))
}

pub(super) fn short(name: &str, value: &str) -> Result<ShortText, Refusal> {
    ShortText::new(value).map_err(|long| {
        Refusal::bad_header(name, format_args!("{} bytes are longer than AMQP allows here (255 bytes)", long.bytes))
    })
}

fn short_name(name: &str) -> Result<ShortText, Refusal> {
    ShortText::new(name).map_err(|long| {
        Refusal::soft(
            "frame.header",
            "Invalid header",
            format!("a header name of {} bytes is longer than AMQP allows (255 bytes)\n", long.bytes),
            "",
        )
    })
}
