//! What a frame reaches in AMQP, whatever way it is written: the same queue is one target under all its names.

use crate::session::amqp::ShortText;
use crate::session::destination::Destination;

/// What a client wants to do with a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Send,
    Subscribe,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Any queue whatever: dead letters in the default exchange under their own routing keys.
    AnyQueue,
    /// The default exchange is never one: what it reaches is a queue.
    Exchange { name: String, key: Key },
    /// A queue that exists or is declared.
    Queue(String),
    /// A reply queue of this session, `/temp-queue/NAME`.
    ReplyQueue(String),
}

/// What may be between an exchange and its queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// Every routing key that this binding key of a topic exchange lets through.
    Binding(String),
    /// This routing key.
    Exactly(String),
}

impl Target {
    pub fn of(destination: &Destination, operation: Operation, topic_exchange: &ShortText) -> Target {
        match destination {
            Destination::AmqQueue(name) | Destination::Queue(name) | Destination::ReplyQueue(name) => {
                Target::Queue(name.as_str().to_owned())
            }
            Destination::Exchange { name, key } => Target::exchange(name.as_str(), key.as_str(), operation),
            Destination::TempQueue(name) => Target::ReplyQueue(name.clone()),
            Destination::Topic(key) => Target::exchange(topic_exchange.as_str(), key.as_str(), operation),
        }
    }

    /// What a key of this exchange reaches.
    pub fn exchange(name: &str, key: &str, operation: Operation) -> Target {
        let text = key.to_owned();
        match (name, operation) {
            ("", _) => Target::Queue(text),
            (_, Operation::Send) => Target::Exchange { name: name.to_owned(), key: Key::Exactly(text) },
            (_, Operation::Subscribe) => Target::Exchange { name: name.to_owned(), key: Key::Binding(text) },
        }
    }

    /// Where a queue's dead letters go: under one key, or under the keys that they had.
    pub fn dead_letters(exchange: &str, key: Option<&str>) -> Target {
        match (exchange, key) {
            (_, Some(key)) => Target::exchange(exchange, key, Operation::Send),
            ("", None) => Target::AnyQueue,
            (_, None) => Target::Exchange { name: exchange.to_owned(), key: Key::Binding("#".to_owned()) },
        }
    }

    /// Exchange or queue, and key: what a placeholder's value has to occur in.
    pub(in crate::session) fn texts(&self) -> [&str; 2] {
        match self {
            Target::AnyQueue => ["", ""],
            Target::Exchange { name, key: Key::Binding(key) | Key::Exactly(key) } => [name, key],
            Target::Queue(name) | Target::ReplyQueue(name) => [name, ""],
        }
    }
}
