//! The arguments of queues and consumers: which headers of a frame become one, and what each may be.
//!
//! Every argument is read by its own grammar. RabbitMQ checks most of them and refuses the channel; some it fails to read, and
//! then it ends the whole AMQP connection, at once or when the queue is used. What the grammar takes is what RabbitMQ 3.10 and
//! 4.0 can both live with; what only depends on the queue's type is theirs to judge.

use std::ops::RangeInclusive;

use super::amqp::{FieldValue, SHORT_TEXT_BYTES_MAX, ShortText};
use super::boolean::boolean;
use super::config::Compatibility;
use super::destination::refuse_direct_reply_to;
use super::properties::{FIELD_TABLE_BYTES_MAX, encoded_bytes, number};
use super::queue::{FlagEra, QueueRules};
use super::refusal::Refusal;
use crate::stomp::Headers;

/// RabbitMQ's longest time in milliseconds: 100 years.
const MILLISECONDS_MAX: i64 = 100 * 365 * 24 * 3600 * 1000;

/// What a value looks like.
enum Grammar {
    /// `x-max-age`: a whole number above 0 and a unit.
    Age,
    Bool,
    Integer(RangeInclusive<i64>),
    /// Of an exchange, or a routing key.
    Name,
    Word(&'static [&'static str]),
}

const ANY_SIZE: Grammar = Grammar::Integer(0..=i64::MAX);
const NODES: Grammar = Grammar::Integer(1..=i64::MAX);
/// With segments of a few bytes RabbitMQ 3.10 ends the connections of those who publish to the stream or read it.
const SEGMENT_BYTES: Grammar = Grammar::Integer(1000..=3_000_000_000);

/// Which headers become queue arguments. The plugin knows some; the others it ignores, so in compatibility
/// mode they are ignored too, lest an existing queue no longer match its declaration.
const OF_QUEUES: &[(&str, Grammar, Known)] = &[
    ("x-dead-letter-exchange", Grammar::Name, Known::Plugin),
    ("x-dead-letter-routing-key", Grammar::Name, Known::Plugin),
    ("x-queue-type", Grammar::Word(&["classic", "quorum", "stream"]), Known::Plugin),
    ("x-max-age", Grammar::Age, Known::Plugin),
    ("x-expires", Grammar::Integer(1..=MILLISECONDS_MAX), Known::Plugin),
    ("x-message-ttl", Grammar::Integer(0..=MILLISECONDS_MAX), Known::Plugin),
    ("x-max-length", ANY_SIZE, Known::Plugin),
    ("x-max-length-bytes", ANY_SIZE, Known::Plugin),
    ("x-max-priority", Grammar::Integer(0..=255), Known::Plugin),
    ("x-stream-max-segment-size-bytes", SEGMENT_BYTES, Known::Plugin),
    ("x-stream-filter-size-bytes", Grammar::Integer(16..=255), Known::Plugin),
    ("x-consumer-timeout", Grammar::Integer(1..=MILLISECONDS_MAX), Known::RelayOnly),
    ("x-dead-letter-strategy", Grammar::Word(&["at-most-once", "at-least-once"]), Known::RelayOnly),
    // RabbitMQ 4 takes -1 for no limit.
    ("x-delivery-limit", Grammar::Integer(-1..=i64::MAX), Known::RelayOnly),
    ("x-initial-cluster-size", NODES, Known::RelayOnly),
    ("x-max-in-memory-bytes", ANY_SIZE, Known::RelayOnly),
    ("x-max-in-memory-length", ANY_SIZE, Known::RelayOnly),
    ("x-overflow", Grammar::Word(&["drop-head", "reject-publish", "reject-publish-dlx"]), Known::RelayOnly),
    (
        "x-queue-leader-locator",
        Grammar::Word(&["client-local", "balanced", "least-leaders", "random"]),
        Known::RelayOnly,
    ),
    ("x-queue-master-locator", Grammar::Word(&["client-local", "min-masters", "random"]), Known::RelayOnly),
    ("x-queue-mode", Grammar::Word(&["default", "lazy"]), Known::RelayOnly),
    ("x-queue-version", Grammar::Integer(1..=2), Known::RelayOnly),
    ("x-quorum-initial-group-size", NODES, Known::RelayOnly),
    ("x-quorum-target-group-size", NODES, Known::RelayOnly),
    ("x-single-active-consumer", Grammar::Bool, Known::RelayOnly),
    ("x-stream-max-segment-size", SEGMENT_BYTES, Known::RelayOnly),
    ("x-unclean-leader-promotion", Grammar::Bool, Known::RelayOnly),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    Plugin,
    RelayOnly,
}

impl Grammar {
    fn read(&self, name: &str, value: &str) -> Result<FieldValue, Refusal> {
        match self {
            Grammar::Age if is_age(value) => Ok(FieldValue::Text(value.to_owned())),
            Grammar::Age => {
                Err(Refusal::bad_header(name, "expected a whole number above 0 and a unit: Y, M, D, h, m or s"))
            }
            Grammar::Bool => boolean(name, value).map(FieldValue::Bool),
            Grammar::Integer(range) => {
                let number = number(name, value, "a whole number")?;
                match range.contains(&number) {
                    true => Ok(FieldValue::Integer(number)),
                    false => {
                        let (least, most) = (range.start(), range.end());
                        Err(Refusal::bad_header(name, format_args!("expected {least} to {most}")))
                    }
                }
            }
            // Dead letters with a longer one could be delivered to nobody.
            Grammar::Name if value.len() <= SHORT_TEXT_BYTES_MAX => Ok(FieldValue::Text(value.to_owned())),
            Grammar::Name => Err(Refusal::bad_header(
                name,
                format_args!("{} bytes are longer than AMQP allows here ({SHORT_TEXT_BYTES_MAX} bytes)", value.len()),
            )),
            Grammar::Word(words) if words.contains(&value) => Ok(FieldValue::Text(value.to_owned())),
            Grammar::Word(words) => Err(Refusal::bad_header(name, format_args!("expected {}", words.join(" or ")))),
        }
    }
}

/// RabbitMQ reads digits and a unit; without digits it fails (541).
fn is_age(value: &str) -> bool {
    let digits = value.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = &value[digits.len()..];
    let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u32>());
    matches!(number, Some(Ok(1..))) && matches!(unit, "Y" | "M" | "D" | "h" | "m" | "s")
}

/// The arguments of `queue.declare`.
pub(super) fn of_queue(headers: &Headers, rules: QueueRules) -> Result<Vec<(ShortText, FieldValue)>, Refusal> {
    let mut arguments = Vec::new();
    // Every SEND to a queue comes by here, and hardly any says something of it.
    if !headers.iter().any(|(name, _)| is_of_queue(name)) {
        return Ok(arguments);
    }
    for (name, grammar, known) in OF_QUEUES {
        let Some(value) = headers.get(name) else { continue };
        if *known == Known::RelayOnly && rules.compatibility == Compatibility::Rabbitmq {
            continue;
        }
        // RabbitMQ 4.3 answers this one with an error that closes the AMQP connection.
        if *name == "x-queue-master-locator" && rules.era >= FlagEra::V4_3 {
            return Err(Refusal::bad_header(name, "no longer known to this broker; use x-queue-leader-locator"));
        }
        let value = value.trim();
        if *name == "x-dead-letter-routing-key" {
            refuse_direct_reply_to(value)?;
        }
        arguments.push((ShortText::lit(name), grammar.read(name, value)?));
    }
    fitting(arguments)
}

fn is_of_queue(name: &str) -> bool {
    name.starts_with("x-") && OF_QUEUES.iter().any(|(argument, ..)| *argument == name)
}

/// All of them, if they fit into an AMQP frame.
pub(super) fn fitting(arguments: Vec<(ShortText, FieldValue)>) -> Result<Vec<(ShortText, FieldValue)>, Refusal> {
    let bytes: usize = arguments.iter().map(|(name, value)| encoded_bytes(name, value)).sum();
    if bytes > FIELD_TABLE_BYTES_MAX {
        return Err(Refusal::soft(
            "limit.arguments",
            "Invalid header",
            format!(
                "the x- headers of this frame take {bytes} bytes in AMQP, the limit is {FIELD_TABLE_BYTES_MAX} bytes\n"
            ),
            "Use fewer or shorter ones.",
        ));
    }
    Ok(arguments)
}

/// The arguments of `basic.consume`. Only known ones with a checked value: some wrong ones close the AMQP connection.
pub(super) fn of_consumer(
    headers: &Headers,
    compatibility: Compatibility,
) -> Result<Vec<(ShortText, FieldValue)>, Refusal> {
    let mut arguments = Vec::new();
    if let Some(value) = headers.get("x-stream-offset")
        && let Some(offset) = stream_offset(value.trim(), compatibility)?
    {
        arguments.push((ShortText::lit("x-stream-offset"), offset));
    }
    if let Some(value) = headers.get("x-stream-filter") {
        let filters = value.split(',').map(str::to_owned).collect();
        arguments.push((ShortText::lit("x-stream-filter"), FieldValue::List(filters)));
    }
    if let Some(value) = headers.get("x-stream-match-unfiltered") {
        let value = boolean("x-stream-match-unfiltered", value)?;
        arguments.push((ShortText::lit("x-stream-match-unfiltered"), FieldValue::Bool(value)));
    }
    if let Some(value) = headers.get("x-priority") {
        let priority: i32 = number("x-priority", value, "a whole number")?;
        arguments.push((ShortText::lit("x-priority"), FieldValue::Integer(priority.into())));
    }
    fitting(arguments)
}

/// The plugin ignores what it does not know and starts at the end of the stream; strict mode says so instead.
fn stream_offset(value: &str, compatibility: Compatibility) -> Result<Option<FieldValue>, Refusal> {
    if let Some(offset) = value.strip_prefix("offset=") {
        let offset: u64 = number("x-stream-offset", offset, "a whole number")?;
        let offset = i64::try_from(offset).map_err(|_| Refusal::bad_header("x-stream-offset", "number too large"))?;
        return Ok(Some(FieldValue::Integer(offset)));
    }
    if let Some(seconds) = value.strip_prefix("timestamp=") {
        let seconds: u32 = number("x-stream-offset", seconds, "seconds since 1970")?;
        return Ok(Some(FieldValue::Timestamp(seconds.into())));
    }
    match (value, compatibility) {
        ("first" | "last" | "next", _) => Ok(Some(FieldValue::Text(value.to_owned()))),
        // RabbitMQ's own, which the plugin does not pass on.
        _ if is_age(value) => Ok(Some(FieldValue::Text(value.to_owned()))),
        (_, Compatibility::Rabbitmq) => Ok(None),
        (_, Compatibility::Strict) => Err(Refusal::bad_header(
            "x-stream-offset",
            "expected first, last, next, offset=N, timestamp=SECONDS or an interval such as 5m",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, value: &str) -> Option<FieldValue> {
        let mut headers = Headers::default();
        headers.push(name, value);
        let rules = QueueRules { compatibility: Compatibility::Strict, era: FlagEra::V3_10 };
        of_queue(&headers, rules).ok()?.pop().map(|(_, value)| value)
    }

    #[test]
    fn ages_have_a_number_and_a_unit() {
        for value in ["1s", "05s", "10h", "7D", "1Y", "6M", "30m", "4294967295Y", " 5s "] {
            assert_eq!(of("x-max-age", value), Some(FieldValue::Text(value.trim().into())), "{value}");
        }
        for value in
            ["", "s", "1", "0s", "00s", "-5s", "+5s", "5x", "5S", "5ms", "5 s", "1.5h", "h5", "5ss", "é", "5é", "٣s"]
        {
            assert_eq!(of("x-max-age", value), None, "{value}");
        }
        assert_eq!(of("x-max-age", "4294967296Y"), None);
    }

    #[test]
    fn numbers_words_and_names_have_bounds() {
        for (name, value, fits) in [
            ("x-stream-max-segment-size-bytes", "0", false),
            ("x-stream-max-segment-size-bytes", "1", false),
            ("x-stream-max-segment-size-bytes", "1048576", true),
            ("x-stream-max-segment-size-bytes", "3000000001", false),
            ("x-stream-filter-size-bytes", "15", false),
            ("x-stream-filter-size-bytes", "16", true),
            ("x-max-priority", "256", false),
            ("x-max-length", "-1", false),
            ("x-max-length", "9223372036854775807", true),
            ("x-max-length", "9223372036854775808", false),
            ("x-expires", "0", false),
            ("x-message-ttl", "3153600000000", true),
            ("x-message-ttl", "3153600000001", false),
            ("x-queue-version", "3", false),
            ("x-delivery-limit", "-1", true),
            ("x-delivery-limit", "-2", false),
            ("x-initial-cluster-size", "0", false),
            ("x-queue-master-locator", "bogus", false),
            ("x-queue-master-locator", "", false),
            ("x-queue-master-locator", "min-masters", true),
            ("x-queue-leader-locator", "balanced", true),
            ("x-queue-type", "Classic", false),
            ("x-overflow", "reject-publish-dlx", true),
            ("x-single-active-consumer", "yes", false),
            ("x-dead-letter-exchange", "", true),
        ] {
            assert_eq!(of(name, value).is_some(), fits, "{name}:{value}");
        }
        assert!(of("x-dead-letter-routing-key", &"k".repeat(255)).is_some());
        assert!(of("x-dead-letter-routing-key", &"k".repeat(256)).is_none());
    }
}
