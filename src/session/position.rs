//! Where a subscription to a stream goes on after an outage: behind what was settled, not where it began. A stream takes nothing
//! back and flags nothing, so the session has to know what its client has had. Asks no broker.

use std::time::{Duration, Instant};

use super::amqp::{FieldValue, ShortText};
use super::command::{Subscribe, SubscribedQueue};
use super::event::Message;
use super::refusal::Refusal;

const OFFSET: &str = "x-stream-offset";

/// Of a message of a stream. Its deliveries carry it as a number; what clients of the relay publish under this name is a text, but
/// a shovel that empties a stream into a queue leaves the number in its messages.
pub(super) fn offset(message: &Message) -> Option<i64> {
    message.properties.headers.iter().find_map(|(name, value)| match value {
        FieldValue::Integer(offset) if name.as_str() == OFFSET => Some(*offset),
        _ => None,
    })
}

/// Where a SUBSCRIBE wants a stream to begin, if it says so by a number.
pub(super) fn asked(consumer_arguments: &[(ShortText, FieldValue)]) -> Option<i64> {
    consumer_arguments.iter().find_map(|(name, value)| match value {
        FieldValue::Integer(offset) if name.as_str() == OFFSET => Some(*offset),
        _ => None,
    })
}

/// RabbitMQ would give nothing until the stream has grown so far, and a stream that was made anew may never do.
pub(super) fn behind_end(offset: i64, next: i64) -> Refusal {
    Refusal::fatal(
        "subscription.offset",
        "Offset behind the end",
        format!(
            "header 'x-stream-offset': {offset} is behind the end of the stream, whose next message has the offset {next}\n"
        ),
        "The stream may have been deleted and made again. Begin with offset=N up to that number, first, last or next.",
    )
}

#[derive(Debug)]
pub(super) struct Position {
    asked_at: Instant,
    /// Where to go on. None before anything was delivered.
    from: Option<i64>,
    /// The last one that was delivered since it was made, or made anew.
    last: Option<i64>,
    /// Whatever came up to here has come before.
    highest: Option<i64>,
}

impl Position {
    /// None for what can be no stream.
    pub(super) fn of(making: &Subscribe, now: Instant) -> Option<Box<Position>> {
        let may_be = match &making.queue {
            SubscribedQueue::Existing(_) => true,
            SubscribedQueue::Declared(_) => is_stream(making),
        };
        may_be.then(|| Box::new(Position { asked_at: now, from: None, last: None, highest: None }))
    }

    /// Notes a delivery; whether it has come before.
    pub(super) fn note(&mut self, offset: i64) -> bool {
        let again = self.highest.is_some_and(|highest| offset <= highest);
        (self.last, self.highest) = (Some(offset), self.highest.max(Some(offset)));
        again
    }

    /// The consumer is gone. `unsettled` is the oldest delivery that was not settled.
    pub(super) fn lose(&mut self, unsettled: Option<i64>) {
        let next = self.last.take().map(|last| last.saturating_add(1));
        self.from = unsettled.or(next).or(self.from);
    }

    /// The queue is no stream after all: somebody published messages that look as if it were.
    pub(super) fn is_refused_by(&self, reply_text: &str) -> bool {
        self.from.is_some() && reply_text.contains(OFFSET)
    }

    /// Puts what the consumer has to begin with in the place of what the client asked for.
    pub(super) fn apply(&self, making: &mut Subscribe, now: Instant) {
        let is_stream = is_stream(making);
        let arguments = &mut making.consumer_arguments;
        let asked = arguments.iter().position(|(name, _)| name.as_str() == OFFSET);
        let since = now.saturating_duration_since(self.asked_at);
        let value = match (self.from, asked.map(|at| &arguments[at].1)) {
            (Some(offset), _) => Some(FieldValue::Integer(offset)),
            (None, Some(FieldValue::Text(text))) => later(text, since),
            (None, Some(_)) => None,
            (None, None) => is_stream.then(|| ago(since)),
        };
        match (value, asked) {
            (Some(value), Some(at)) => arguments[at].1 = value,
            (Some(value), None) => arguments.push((ShortText::lit(OFFSET), value)),
            (None, _) => {}
        }
    }
}

fn is_stream(making: &Subscribe) -> bool {
    let declared = match &making.queue {
        SubscribedQueue::Declared(queue) => queue.arguments.iter().any(|(name, value)| {
            name.as_str() == "x-queue-type" && matches!(value, FieldValue::Text(kind) if kind == "stream")
        }),
        SubscribedQueue::Existing(_) => false,
    };
    declared || making.consumer_arguments.iter().any(|(name, _)| name.as_str() == OFFSET)
}

/// What a word means so much later, if it means something else. Nothing was delivered yet: `next`, and `last` of an empty
/// stream, mean everything that came since.
fn later(asked: &str, since: Duration) -> Option<FieldValue> {
    match asked {
        "first" => None,
        "next" | "last" => Some(ago(since)),
        interval => {
            let (number, unit) = interval.split_at_checked(interval.len().checked_sub(1)?)?;
            let seconds = match unit {
                "Y" => 365 * 24 * 60 * 60,
                "M" => 30 * 24 * 60 * 60,
                "D" => 24 * 60 * 60,
                "h" => 60 * 60,
                "m" => 60,
                "s" => 1,
                _ => return None,
            };
            let interval = number.parse::<u64>().ok()?.saturating_mul(seconds);
            Some(ago(since.saturating_add(Duration::from_secs(interval))))
        }
    }
}

/// RabbitMQ counts back from its own clock, in whole seconds. Rather too much than too little.
fn ago(time: Duration) -> FieldValue {
    FieldValue::Text(format!("{}s", time.as_secs().saturating_add(2)))
}
