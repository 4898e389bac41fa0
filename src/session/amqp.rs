//! The AMQP 0-9-1 vocabulary of the session: texts, field values, properties, queue declarations.
//!
//! These are plain values without a library behind them. They are built so that what would raise a connection-level
//! exception (a short string over 255 bytes, a priority over 255, a prefetch over 65,535) has no spelling: whoever holds
//! one of them may hand it to the broker side without a further check.

use bytes::Bytes;
use smol_str::SmolStr;
use std::fmt;

/// Longest AMQP short string in bytes (AMQP 0-9-1, 4.2.5.3).
pub const SHORT_TEXT_BYTES_MAX: usize = 255;

/// An AMQP short string: UTF-8 of at most 255 bytes. Up to 23 bytes take no allocation, and no clone takes one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShortText(SmolStr);

/// The text was longer than [`SHORT_TEXT_BYTES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong {
    pub bytes: usize,
}

impl ShortText {
    /// Checks the length in bytes, not in characters.
    pub fn new(text: impl Into<SmolStr>) -> Result<ShortText, TooLong> {
        let text = text.into();
        if text.len() > SHORT_TEXT_BYTES_MAX {
            return Err(TooLong { bytes: text.len() });
        }
        Ok(ShortText(text))
    }

    /// For texts that stand in the source.
    ///
    /// # Panics
    /// If the text is longer than 255 bytes, which a first run shows.
    pub fn lit(text: &'static str) -> ShortText {
        assert!(text.len() <= SHORT_TEXT_BYTES_MAX);
        ShortText(SmolStr::new_static(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes that it has on the heap; none where the text fits into the value.
    pub fn heap_bytes(&self) -> Option<usize> {
        self.0.is_heap_allocated().then(|| self.0.len())
    }
}

impl fmt::Display for ShortText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A value in an AMQP field table, as far as STOMP can say or show it.
#[derive(Clone, Debug, PartialEq)]
pub enum FieldValue {
    /// `t`
    Bool(bool),
    /// `l`; deliveries also map `I` and the other integer types here.
    Integer(i64),
    /// An array of long strings (`CC`, `BCC`, `x-stream-filter`).
    List(Vec<String>),
    /// `S`, a long string.
    Text(String),
    /// `T`, seconds since 1970.
    Timestamp(u64),
}

/// The content properties of a message (AMQP 0-9-1, class basic).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Properties {
    pub app_id: Option<ShortText>,
    pub content_encoding: Option<ShortText>,
    pub content_type: Option<ShortText>,
    pub correlation_id: Option<ShortText>,
    /// 1 transient, 2 persistent.
    pub delivery_mode: Option<u8>,
    /// Milliseconds in decimal, as AMQP has it: a short string.
    pub expiration: Option<ShortText>,
    /// Application headers in the order in which they were given.
    pub headers: Vec<(ShortText, FieldValue)>,
    pub message_id: Option<ShortText>,
    pub priority: Option<u8>,
    pub reply_to: Option<ShortText>,
    /// Seconds since 1970.
    pub timestamp: Option<u64>,
    /// The property `type`.
    pub kind: Option<ShortText>,
    pub user_id: Option<ShortText>,
}

/// A queue as `queue.declare` names it.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueDeclaration {
    pub arguments: Vec<(ShortText, FieldValue)>,
    pub auto_delete: bool,
    pub durable: bool,
    pub exclusive: bool,
    /// Empty: the broker chooses a name (`amq.gen-…`).
    pub name: ShortText,
}

/// What binds a subscription's queue to its exchange.
#[derive(Clone, Debug, PartialEq)]
pub struct Binding {
    pub arguments: Vec<(ShortText, FieldValue)>,
    pub exchange: ShortText,
    pub routing_key: ShortText,
}

/// A message body, shared and never copied by the session.
pub type Body = Bytes;
