//! Between the session's vocabulary and lapin's types, and the encoded size of message properties.

use crate::session::amqp::{FieldValue, Properties, QueueDeclaration, ShortText};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, LongString, ShortString};
use std::borrow::Cow;

const QUEUE_TYPE: &str = "x-queue-type";

/// The only place where lapin's short strings are made: its own conversions panic on long texts.
pub(super) fn short(text: &ShortText) -> ShortString {
    // Cannot fail, a ShortText has at most 255 bytes like a ShortString.
    ShortString::try_new(text.as_str()).unwrap_or_default()
}

fn text(short: &ShortString) -> ShortText {
    // Cannot fail for the same reason.
    ShortText::new(short.as_str()).unwrap_or_default()
}

pub(super) fn short_text(short: &ShortString) -> ShortText {
    text(short)
}

fn long(text: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(text.as_bytes()))
}

pub(super) fn table(fields: &[(ShortText, FieldValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in fields {
        let value = match value {
            FieldValue::Bool(value) => AMQPValue::Boolean(*value),
            FieldValue::Integer(value) => AMQPValue::LongLongInt(*value),
            FieldValue::List(texts) => {
                AMQPValue::FieldArray(FieldArray::from(texts.iter().map(|text| long(text)).collect::<Vec<_>>()))
            }
            FieldValue::Text(text) => long(text),
            FieldValue::Timestamp(seconds) => AMQPValue::Timestamp(*seconds),
        };
        table.insert(short(name), value);
    }
    table
}

/// The arguments that a queue is declared with: those of the client, and the type where it must be classic.
///
/// RabbitMQ takes a declaration without a type for one of the virtual host's default type, which may be quorum. A queue that is
/// transient, exclusive or auto-delete can only be classic. A durable one that is nothing of the kind is what the virtual host
/// says, as if the client had declared it over AMQP itself. To RabbitMQ 3.10 and 4.0 a classic queue is the same queue whether
/// or not it was declared with its type.
pub(super) fn declared_arguments(queue: &QueueDeclaration) -> Cow<'_, [(ShortText, FieldValue)]> {
    let typed = queue.arguments.iter().any(|(name, _)| name.as_str() == QUEUE_TYPE);
    if typed || (queue.durable && !queue.exclusive && !queue.auto_delete) {
        return Cow::Borrowed(&queue.arguments);
    }
    let classic = (ShortText::lit(QUEUE_TYPE), FieldValue::Text("classic".to_owned()));
    Cow::Owned(queue.arguments.iter().cloned().chain([classic]).collect())
}

pub(super) fn to_lapin(from: &Properties) -> BasicProperties {
    let mut to = BasicProperties::default();
    macro_rules! set {
        ($($field:ident => $with:ident),*) => {
            $(if let Some(value) = &from.$field { to = to.$with(short(value)); })*
        };
    }
    set!(
        app_id => with_app_id, content_encoding => with_content_encoding, content_type => with_content_type,
        correlation_id => with_correlation_id, expiration => with_expiration, kind => with_type,
        message_id => with_message_id, reply_to => with_reply_to, user_id => with_user_id
    );
    if let Some(mode) = from.delivery_mode {
        to = to.with_delivery_mode(mode);
    }
    if let Some(priority) = from.priority {
        to = to.with_priority(priority);
    }
    if let Some(seconds) = from.timestamp {
        to = to.with_timestamp(seconds);
    }
    if !from.headers.is_empty() {
        to = to.with_headers(table(&from.headers));
    }
    to
}

pub(super) fn from_lapin(from: &BasicProperties) -> Properties {
    let short = |value: &Option<ShortString>| value.as_ref().map(text);
    Properties {
        app_id: short(from.app_id()),
        content_encoding: short(from.content_encoding()),
        content_type: short(from.content_type()),
        correlation_id: short(from.correlation_id()),
        delivery_mode: *from.delivery_mode(),
        expiration: short(from.expiration()),
        headers: from.headers().as_ref().map(headers).unwrap_or_default(),
        message_id: short(from.message_id()),
        priority: *from.priority(),
        reply_to: short(from.reply_to()),
        timestamp: *from.timestamp(),
        kind: short(from.kind()),
        user_id: short(from.user_id()),
    }
}

fn headers(table: &FieldTable) -> Vec<(ShortText, FieldValue)> {
    table.into_iter().filter_map(|(name, value)| Some((text(name), field(value)?))).collect()
}

/// `None` for what STOMP cannot show: nested tables, floats, decimals, bytes, void, arrays of other than strings.
fn field(value: &AMQPValue) -> Option<FieldValue> {
    Some(match value {
        AMQPValue::Boolean(value) => FieldValue::Bool(*value),
        AMQPValue::ShortShortInt(value) => FieldValue::Integer((*value).into()),
        AMQPValue::ShortShortUInt(value) => FieldValue::Integer((*value).into()),
        AMQPValue::ShortInt(value) => FieldValue::Integer((*value).into()),
        AMQPValue::ShortUInt(value) => FieldValue::Integer((*value).into()),
        AMQPValue::LongInt(value) => FieldValue::Integer((*value).into()),
        AMQPValue::LongUInt(value) => FieldValue::Integer((*value).into()),
        AMQPValue::LongLongInt(value) => FieldValue::Integer(*value),
        AMQPValue::LongString(value) => FieldValue::Text(lossy(value)),
        AMQPValue::ShortString(value) => FieldValue::Text(value.as_str().to_owned()),
        AMQPValue::Timestamp(seconds) => FieldValue::Timestamp(*seconds),
        AMQPValue::FieldArray(values) => FieldValue::List(
            values
                .as_slice()
                .iter()
                .map(|value| match value {
                    AMQPValue::LongString(value) => Some(lossy(value)),
                    _ => None,
                })
                .collect::<Option<_>>()?,
        ),
        _ => return None,
    })
}

fn lossy(value: &LongString) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// What a method frame with a table has at most beside the table's content: frame, class and method, three short strings
/// (`queue.bind`), the table's length, a few octets.
pub(super) const METHOD_BYTES_BESIDE_TABLE_MAX: usize = 8 + 4 + 3 * 256 + 4 + 8;

/// Bytes of a table's content, without its length.
pub(super) fn table_bytes(fields: &[(ShortText, FieldValue)]) -> usize {
    let value_bytes = |value: &FieldValue| match value {
        FieldValue::Bool(_) => 1,
        FieldValue::Integer(_) | FieldValue::Timestamp(_) => 8,
        FieldValue::Text(text) => 4 + text.len(),
        FieldValue::List(texts) => 4 + texts.iter().map(|text| 1 + 4 + text.len()).sum::<usize>(),
    };
    fields.iter().map(|(name, value)| 1 + name.as_str().len() + 1 + value_bytes(value)).sum()
}

/// Bytes of the content header frame's payload (AMQP 0-9-1, 4.2.6.1). It must fit one frame: lapin does not check, and
/// RabbitMQ closes the whole connection.
pub(super) fn header_bytes(properties: &Properties) -> usize {
    // class, weight, body size, flags
    let mut bytes = 2 + 2 + 8 + 2;
    let texts = [
        &properties.app_id,
        &properties.content_encoding,
        &properties.content_type,
        &properties.correlation_id,
        &properties.expiration,
        &properties.kind,
        &properties.message_id,
        &properties.reply_to,
        &properties.user_id,
    ];
    bytes += texts.into_iter().flatten().map(|text| 1 + text.as_str().len()).sum::<usize>();
    bytes += properties.delivery_mode.map_or(0, |_| 1);
    bytes += properties.priority.map_or(0, |_| 1);
    bytes += properties.timestamp.map_or(0, |_| 8);
    if !properties.headers.is_empty() {
        bytes += 4;
    }
    bytes += table_bytes(&properties.headers);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, WriteContext, gen_frame, parse_frame};
    use proptest::prelude::*;

    fn name(text: &str) -> ShortText {
        ShortText::new(text).expect("short")
    }

    fn sample() -> Properties {
        Properties {
            app_id: Some(name("app")),
            content_encoding: Some(name("gzip")),
            content_type: Some(name("text/plain")),
            correlation_id: Some(name("c")),
            delivery_mode: Some(2),
            expiration: Some(name("1000")),
            headers: vec![
                (name("a"), FieldValue::Bool(true)),
                (name("b"), FieldValue::Integer(-7)),
                (name("c"), FieldValue::List(vec!["x".into(), "yy".into()])),
                (name("d"), FieldValue::Text("ünï".into())),
                (name("e"), FieldValue::Timestamp(12)),
            ],
            message_id: Some(name("m-1")),
            priority: Some(3),
            reply_to: Some(name("r")),
            timestamp: Some(99),
            kind: Some(name("k")),
            user_id: Some(name("u")),
        }
    }

    #[test]
    fn properties_survive_both_ways() {
        assert_eq!(from_lapin(&to_lapin(&sample())), sample());
        assert_eq!(from_lapin(&to_lapin(&Properties::default())), Properties::default());
    }

    fn short_text() -> impl Strategy<Value = ShortText> {
        prop_oneof!["[ -~]{0,12}", "\\PC{0,60}"].prop_map(|text| name(&text))
    }

    fn fields() -> impl Strategy<Value = Vec<(ShortText, FieldValue)>> {
        let text = || prop_oneof!["[ -~]{0,30}", "\\PC{0,300}"];
        let value = prop_oneof![
            any::<bool>().prop_map(FieldValue::Bool),
            any::<i64>().prop_map(FieldValue::Integer),
            any::<u64>().prop_map(FieldValue::Timestamp),
            text().prop_map(FieldValue::Text),
            prop::collection::vec(text(), 0..5).prop_map(FieldValue::List),
        ];
        // Names that differ: a table has each once.
        prop::collection::btree_map(short_text(), value, 0..6).prop_map(|fields| fields.into_iter().collect())
    }

    fn properties() -> impl Strategy<Value = Properties> {
        let texts = prop::collection::vec(prop::option::of(short_text()), 9);
        (texts, fields(), any::<(Option<u8>, Option<u8>, Option<u64>)>()).prop_map(
            |(texts, headers, (delivery_mode, priority, timestamp))| {
                let mut texts = texts.into_iter();
                let mut text = || texts.next().flatten();
                Properties {
                    app_id: text(),
                    content_encoding: text(),
                    content_type: text(),
                    correlation_id: text(),
                    delivery_mode,
                    expiration: text(),
                    headers,
                    message_id: text(),
                    priority,
                    reply_to: text(),
                    timestamp,
                    kind: text(),
                    user_id: text(),
                }
            },
        )
    }

    /// As lapin writes it, and parsed again.
    fn through_the_wire(frame: &AMQPFrame) -> (AMQPFrame, usize) {
        let mut buffer = vec![0; 1 << 16];
        let context = WriteContext::from(std::io::Cursor::new(&mut buffer[..]));
        let (_, bytes) = gen_frame(frame)(context).expect("encodes").into_inner();
        let (rest, parsed) = parse_frame(&buffer[..bytes as usize]).expect("is well-formed");
        assert!(rest.is_empty());
        (parsed, bytes as usize)
    }

    proptest! {
        #[test]
        fn properties_are_well_formed_on_the_wire_and_as_large_as_computed(properties in properties()) {
            let header = AMQPContentHeader { class_id: 60, body_size: 5, properties: to_lapin(&properties) };
            let frame = AMQPFrame::Header(1, header);
            let (parsed, bytes) = through_the_wire(&frame);
            prop_assert_eq!(&parsed, &frame);
            prop_assert_eq!(bytes, header_bytes(&properties) + 8);
            let AMQPFrame::Header(_, header) = parsed else { panic!("{parsed:?}") };
            prop_assert_eq!(from_lapin(&header.properties), properties);
        }

        #[test]
        fn arguments_are_well_formed_on_the_wire(queue in short_text(), arguments in fields()) {
            use amq_protocol::protocol::{AMQPClass, basic, queue as amqp};
            let (queue, table) = (short(&queue), table(&arguments));
            let declare = amqp::Declare {
                queue: queue.clone(), passive: false, durable: true, exclusive: false, auto_delete: true, nowait: false,
                arguments: table.clone(),
            };
            let bind = amqp::Bind {
                queue: queue.clone(), exchange: queue.clone(), routing_key: queue.clone(), nowait: false,
                arguments: table.clone(),
            };
            let consume = basic::Consume {
                queue: queue.clone(), consumer_tag: queue, no_local: false, no_ack: false, exclusive: false, nowait: false,
                arguments: table,
            };
            for method in [
                AMQPClass::Queue(amqp::AMQPMethod::Declare(declare)),
                AMQPClass::Queue(amqp::AMQPMethod::Bind(bind)),
                AMQPClass::Basic(basic::AMQPMethod::Consume(consume)),
            ] {
                let frame = AMQPFrame::Method(1, method);
                let (parsed, bytes) = through_the_wire(&frame);
                prop_assert_eq!(parsed, frame);
                prop_assert!(bytes <= table_bytes(&arguments) + METHOD_BYTES_BESIDE_TABLE_MAX);
            }
        }
    }

    #[test]
    fn other_types_are_dropped() {
        let mut table = FieldTable::default();
        table.insert("f".into(), AMQPValue::Double(1.0));
        table.insert("t".into(), AMQPValue::FieldTable(FieldTable::default()));
        table.insert("i".into(), AMQPValue::LongInt(5));
        assert_eq!(headers(&table), vec![(name("i"), FieldValue::Integer(5))]);
    }
}
