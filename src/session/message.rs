//! An AMQP delivery to the headers of a MESSAGE frame. The order is that of RabbitMQ's released plugin.

use super::amqp::{FieldValue, Properties, ShortText};
use super::config::{Compatibility, HeaderTypes, SessionConfig};
use super::destination;
use super::event::Delivery;
use super::ledger::MessageId;
use crate::stomp::{Command, Frame, Headers};

/// Names that the server gives to a MESSAGE; a publisher's header of the same name must not stand in for them. Those of other
/// frames, such as `session`, are a publisher's like any other.
const SERVER_HEADERS: [&str; 6] = ["ack", "content-length", "destination", "message-id", "redelivered", "subscription"];

/// What the session adds to a delivery.
pub(super) struct Envelope<'a> {
    /// Whether it has an `ack`: not where the client must not acknowledge, nor in STOMP 1.0 and 1.1 (STOMP 1.2, MESSAGE).
    pub ack: bool,
    pub message_id: MessageId<'a>,
    /// None for a subscription without id.
    pub subscription: Option<&'a str>,
}

pub(super) fn frame(delivery: &Delivery, envelope: &Envelope<'_>, config: &SessionConfig) -> Frame {
    let mut frame = Frame::new(Command::Message);
    let headers = &mut frame.headers;
    if let Some(id) = envelope.subscription {
        headers.push("subscription", id);
    }
    let message = &*delivery.message;
    let (exchange, key) = (message.exchange.as_str(), message.routing_key.as_str());
    headers.push_with("destination", |text| {
        destination::render(exchange, key, config.default_topic_exchange.as_str(), text);
    });
    headers.push_with("message-id", |text| envelope.message_id.append_to(text));
    headers.push("redelivered", if delivery.redelivered { "true" } else { "false" });
    if envelope.ack {
        headers.push_with("ack", |text| envelope.message_id.append_to(text));
    }
    push_application_headers(headers, &message.properties, config.header_types);
    push_properties(headers, &message.properties, config.compatibility);
    frame.body = message.body.clone();
    frame
}

fn push_application_headers(headers: &mut Headers, properties: &Properties, types: HeaderTypes) {
    for (name, value) in &properties.headers {
        let name = name.as_str();
        if SERVER_HEADERS.contains(&name) || is_property(name, properties) {
            continue;
        }
        match (value, types) {
            (FieldValue::Integer(number), _) => push_number(headers, name, *number),
            (FieldValue::Text(text), _) => headers.push(name, text),
            (_, HeaderTypes::Rabbitmq) => {}
            (FieldValue::Bool(value), HeaderTypes::All) => headers.push(name, if *value { "true" } else { "false" }),
            (FieldValue::List(items), HeaderTypes::All) => headers.push(name, &items.join(",")),
            (FieldValue::Timestamp(seconds), HeaderTypes::All) => push_number(headers, name, *seconds),
        }
    }
}

/// Whether the MESSAGE has a property by this name. RabbitMQ vouches for `user-id`, and the first of two headers counts.
fn is_property(name: &str, properties: &Properties) -> bool {
    match name {
        "amqp-message-id" => properties.message_id.is_some(),
        "app-id" => properties.app_id.is_some(),
        "content-encoding" => properties.content_encoding.is_some(),
        "content-type" => properties.content_type.is_some(),
        "correlation-id" => properties.correlation_id.is_some(),
        "expiration" => properties.expiration.is_some(),
        "persistent" => properties.delivery_mode.is_some(),
        "priority" => properties.priority.is_some(),
        "reply-to" => properties.reply_to.is_some(),
        "timestamp" => properties.timestamp.is_some(),
        "type" => properties.kind.is_some(),
        "user-id" => properties.user_id.is_some(),
        _ => false,
    }
}

fn push_properties(headers: &mut Headers, properties: &Properties, compatibility: Compatibility) {
    push_text(headers, "app-id", properties.app_id.as_ref());
    push_text(headers, "user-id", properties.user_id.as_ref());
    push_text(headers, "type", properties.kind.as_ref());
    if let Some(seconds) = properties.timestamp {
        push_number(headers, "timestamp", seconds);
    }
    push_text(headers, "amqp-message-id", properties.message_id.as_ref());
    push_text(headers, "expiration", properties.expiration.as_ref());
    if let Some(property) = &properties.reply_to {
        headers.push_with("reply-to", |text| destination::render_reply_to(property.as_str(), text));
    }
    push_text(headers, "correlation-id", properties.correlation_id.as_ref());
    if let Some(priority) = properties.priority {
        push_number(headers, "priority", priority);
    }
    if let Some(persistent) = persistent(properties.delivery_mode, compatibility) {
        headers.push("persistent", persistent);
    }
    push_text(headers, "content-encoding", properties.content_encoding.as_ref());
    push_text(headers, "content-type", properties.content_type.as_ref());
}

fn push_text(headers: &mut Headers, name: &str, value: Option<&ShortText>) {
    if let Some(value) = value {
        headers.push(name, value.as_str());
    }
}

fn push_number(headers: &mut Headers, name: &str, number: impl itoa::Integer) {
    headers.push(name, itoa::Buffer::new().format(number));
}

/// The plugin shows delivery mode 1 as `persistent:1`, which reads as its opposite.
fn persistent(delivery_mode: Option<u8>, compatibility: Compatibility) -> Option<&'static str> {
    match (delivery_mode, compatibility) {
        (Some(2), _) => Some("true"),
        (Some(1), Compatibility::Rabbitmq) => Some("1"),
        _ => None,
    }
}
