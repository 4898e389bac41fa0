//! What waits to be written to one WebSocket: whole messages not yet encoded, and the bytes that go out next.
//!
//! Knows no socket. Messages are encoded only shortly before they are written, so that a backlog shares its bytes with
//! whoever else holds them, and pongs and pings overtake it at the next frame boundary.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// Encoded bytes above which no further message is encoded: one write to the socket takes about this much.
const WRITE_BATCH: usize = 16 * 1024;

/// Capacity that an empty buffer keeps: most sessions are idle most of the time.
const KEPT_CAPACITY: usize = 4 * 1024;

/// Unsent replies to pings above which only the newest is kept (RFC 6455 section 5.5.3 allows it): a peer that pings
/// and never reads costs no more than this.
const PONGS_MAX: usize = 4 * 1024;

/// What a message takes beside its payload and its place in the queue: the room that its encoder left, the allocations behind
/// it and what the allocator adds.
const MESSAGE_BYTES: usize = 128;

/// Bytes waiting for one socket.
#[derive(Default)]
pub(super) struct Outgoing {
    messages: VecDeque<(Data, Bytes)>,
    message_bytes: usize,
    /// Whole control frames, encoded: pongs, then at most one close.
    control: Vec<u8>,
    ping: bool,
    /// Encoded; the frame in front may be partly written.
    encoded: BytesMut,
    written: u64,
}

impl Outgoing {
    /// Adds a data message at the end.
    pub(super) fn push(&mut self, opcode: Data, payload: Bytes) {
        self.message_bytes += payload.len();
        self.messages.push_back((opcode, payload));
    }

    /// Asks for a ping ahead of the waiting messages; several unsent ones are one.
    pub(super) fn push_ping(&mut self) {
        self.ping = true;
    }

    /// Adds one whole control frame ahead of the waiting messages.
    pub(super) fn push_control(&mut self, frame: Frame) {
        let is_pong = frame.header().opcode == OpCode::Control(Control::Pong);
        if is_pong && self.control.len() + frame.len() > PONGS_MAX {
            self.control.clear();
        }
        // Writing to memory cannot fail.
        let _ = frame.format(&mut self.control);
    }

    /// Forgets the messages that were not yet encoded: after the peer's close frame it would not look at them.
    pub(super) fn drop_messages(&mut self) {
        self.messages.clear();
        self.message_bytes = 0;
    }

    /// Payload bytes not yet encoded plus encoded bytes not yet written.
    pub(super) fn bytes(&self) -> usize {
        self.message_bytes + self.control.len() + self.encoded.len()
    }

    /// What it holds on the heap: a short message takes several times its payload.
    pub(super) fn retained_bytes(&self) -> usize {
        let places = self.messages.capacity() * size_of::<(Data, Bytes)>();
        self.message_bytes
            + self.messages.len() * MESSAGE_BYTES
            + places
            + self.control.capacity()
            + self.encoded.capacity()
    }

    /// Bytes that the operating system has taken since the beginning.
    pub(super) fn written_bytes(&self) -> u64 {
        self.written
    }

    pub(super) fn is_empty(&self) -> bool {
        self.encoded.is_empty() && self.messages.is_empty() && self.control.is_empty() && !self.ping
    }

    /// What to write next; with `messages`, waiting messages are encoded as well, else control frames only.
    pub(super) fn next_bytes(&mut self, messages: Messages) -> &[u8] {
        if self.encoded.len() < WRITE_BATCH {
            self.encode(messages);
        }
        &self.encoded
    }

    /// Forgets the first `count` bytes of [`Self::next_bytes`]: they are written.
    pub(super) fn written(&mut self, count: usize) {
        self.written += count as u64;
        self.encoded.advance(count);
        if self.encoded.is_empty() && self.encoded.capacity() > KEPT_CAPACITY {
            self.encoded = BytesMut::new();
        }
        if self.messages.is_empty() && self.messages.capacity() > KEPT_CAPACITY / size_of::<(Data, Bytes)>() {
            self.messages = VecDeque::new();
        }
    }

    fn encode(&mut self, messages: Messages) {
        if !self.control.is_empty() {
            self.encoded.extend_from_slice(&self.control);
            self.control = Vec::new();
        }
        if std::mem::take(&mut self.ping) {
            encode_frame(&mut self.encoded, Frame::ping(Bytes::new()));
        }
        if messages == Messages::Held {
            return;
        }
        while self.encoded.len() < WRITE_BATCH
            && let Some((opcode, payload)) = self.messages.pop_front()
        {
            self.message_bytes -= payload.len();
            encode_frame(&mut self.encoded, Frame::message(payload, OpCode::Data(opcode), true));
        }
    }
}

/// Whether waiting messages may be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Messages {
    Encoded,
    Held,
}

fn encode_frame(out: &mut BytesMut, frame: Frame) {
    out.reserve(frame.len());
    // Writing to memory cannot fail.
    let _ = frame.format(&mut out.writer());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_frames_overtake_messages_but_not_an_encoded_frame() {
        let mut out = Outgoing::default();
        out.push(Data::Text, Bytes::from_static(b"one"));
        assert_eq!(out.next_bytes(Messages::Held), b"");
        assert_eq!(out.next_bytes(Messages::Encoded), b"\x81\x03one");
        out.written(2);
        out.push(Data::Binary, Bytes::from_static(b"two"));
        out.push_ping();
        out.push_control(Frame::pong(Bytes::new()));
        assert_eq!(out.next_bytes(Messages::Held), b"one\x8a\x00\x89\x00");
        assert_eq!(out.next_bytes(Messages::Encoded), b"one\x8a\x00\x89\x00\x82\x03two");
        let all = out.bytes();
        assert_eq!(all, 12);
        out.written(all);
        assert!(out.is_empty());
    }

    #[test]
    fn counts_payload_and_encoded_bytes_and_encodes_in_batches() {
        let mut out = Outgoing::default();
        let payload = Bytes::from(vec![b'x'; 1000]);
        (0..100).for_each(|_| out.push(Data::Text, payload.clone()));
        assert_eq!(out.bytes(), 100_000);
        let first = out.next_bytes(Messages::Encoded).len();
        assert!((WRITE_BATCH..WRITE_BATCH + 1004).contains(&first), "{first}");
        let mut written = 0;
        while !out.is_empty() {
            let count = out.next_bytes(Messages::Encoded).len();
            written += count;
            out.written(count);
        }
        assert_eq!(written, 100 * 1004);
        assert_eq!(out.bytes(), 0);
        assert!(out.retained_bytes() <= 2 * KEPT_CAPACITY);
        assert!(out.encoded.capacity() <= KEPT_CAPACITY && out.messages.capacity() <= KEPT_CAPACITY);
    }

    #[test]
    fn unsent_pongs_are_bounded_and_the_newest_stays() {
        let mut out = Outgoing::default();
        for count in 0..10_000u32 {
            out.push_control(Frame::pong(count.to_be_bytes().to_vec()));
            assert!(out.bytes() <= PONGS_MAX);
        }
        assert!(out.next_bytes(Messages::Held).ends_with(&9_999u32.to_be_bytes()));
    }
}
