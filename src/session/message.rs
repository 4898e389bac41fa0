//! An AMQP delivery to the headers of a MESSAGE frame. The order is that of RabbitMQ's released plugin.

use super::amqp::{FieldValue, Properties, ShortText};
use super::config::{Compatibility, HeaderTypes, SessionConfig};
use super::destination;
use super::event::Delivery;
use crate::stomp::{Command, Frame, Headers};

/// Names that the server gives to a MESSAGE; a publisher's header of the same name must not stand in for them.
const SERVER_HEADERS: [&str; 11] = [
    "ack",
    "content-length",
    "destination",
    "heart-beat",
    "message-id",
    "receipt-id",
    "redelivered",
    "server",
    "session",
    "subscription",
    "version",
];

/// What the session adds to a delivery.
pub(super) struct Envelope<'a> {
    /// None where the client must not acknowledge, or in STOMP 1.0 and 1.1 (STOMP 1.2, MESSAGE).
    pub ack: Option<&'a str>,
    pub message_id: &'a str,
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
    headers.push("destination", &destination::render(exchange, key, config.default_topic_exchange.as_str()));
    headers.push("message-id", envelope.message_id);
    headers.push("redelivered", if delivery.redelivered { "true" } else { "false" });
    if let Some(ack) = envelope.ack {
        headers.push("ack", ack);
    }
    push_application_headers(headers, &message.properties, config.header_types);
    push_properties(headers, &message.properties, config.compatibility);
    frame.body = message.body.clone();
    frame
}

fn push_application_headers(headers: &mut Headers, properties: &Properties, types: HeaderTypes) {
    for (name, value) in &properties.headers {
        let name = name.as_str();
        if SERVER_HEADERS.contains(&name) {
            continue;
        }
        match (value, types) {
            (FieldValue::Integer(number), _) => headers.push(name, &number.to_string()),
            (FieldValue::Text(text), _) => headers.push(name, text),
            (_, HeaderTypes::Rabbitmq) => {}
            (FieldValue::Bool(value), HeaderTypes::All) => headers.push(name, if *value { "true" } else { "false" }),
            (FieldValue::List(items), HeaderTypes::All) => headers.push(name, &items.join(",")),
            (FieldValue::Timestamp(seconds), HeaderTypes::All) => headers.push(name, &seconds.to_string()),
        }
    }
}

fn push_properties(headers: &mut Headers, properties: &Properties, compatibility: Compatibility) {
    let text = |value: &Option<ShortText>| value.as_ref().map(|value| value.as_str().to_owned());
    let shown = [
        ("app-id", text(&properties.app_id)),
        ("user-id", text(&properties.user_id)),
        ("type", text(&properties.kind)),
        ("timestamp", properties.timestamp.map(|seconds| seconds.to_string())),
        ("amqp-message-id", text(&properties.message_id)),
        ("expiration", text(&properties.expiration)),
        ("reply-to", properties.reply_to.as_ref().map(|value| destination::render_reply_to(value.as_str()))),
        ("correlation-id", text(&properties.correlation_id)),
        ("priority", properties.priority.map(|value| value.to_string())),
        ("persistent", persistent(properties.delivery_mode, compatibility).map(str::to_owned)),
        ("content-encoding", text(&properties.content_encoding)),
        ("content-type", text(&properties.content_type)),
    ];
    for (name, value) in shown {
        if let Some(value) = value {
            headers.push(name, &value);
        }
    }
}

/// The plugin shows delivery mode 1 as `persistent:1`, which reads as its opposite.
fn persistent(delivery_mode: Option<u8>, compatibility: Compatibility) -> Option<&'static str> {
    match (delivery_mode, compatibility) {
        (Some(2), _) => Some("true"),
        (Some(1), Compatibility::Rabbitmq) => Some("1"),
        _ => None,
    }
}
