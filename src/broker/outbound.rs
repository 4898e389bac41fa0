//! The guard behind lapin: drops what lapin would still write on a channel that it has closed.
//!
//! lapin queues publishes behind methods. A publish that waits while the broker closes its channel goes out after
//! `channel.close-ok`, and RabbitMQ closes the whole connection for it (504, `expected 'channel.open'`). Such frames are
//! taken for written here and go nowhere; lapin has failed their confirms already.
//!
//! Frames pass uncopied, many per write. Only the head of a frame that lapin hands over in two pieces is held, 10 bytes at
//! most, until the rest comes: lapin always has the whole frame ready.

use super::frame::{self, Head, HeadScan, Kind};
use std::collections::HashSet;
use std::io;
use std::task::{Poll, ready};

mod methods {
    pub(super) const CHANNEL_OPEN: (u16, u16) = (20, 10);
    pub(super) const CHANNEL_CLOSE: (u16, u16) = (20, 40);
    pub(super) const CHANNEL_CLOSE_OK: (u16, u16) = (20, 41);
}

/// Length of the protocol header that opens the stream; it is no frame.
const PROTOCOL_HEADER_BYTES: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Pass,
    Drop,
}

#[derive(Default)]
pub(super) struct OutboundGuard {
    /// Channels whose close or close-ok was written.
    closed: HashSet<u16>,
    /// Bytes taken from lapin that must go out before anything else.
    due: Vec<u8>,
    /// An incomplete frame head.
    head: Vec<u8>,
    /// What is left of the current frame.
    left: usize,
    fate: Option<Fate>,
}

impl OutboundGuard {
    /// Takes bytes from lapin; `write` is the socket. Returns how many were taken.
    pub(super) fn poll_write(
        &mut self,
        bytes: &[u8],
        mut write: impl FnMut(&[u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_due(&mut write))?;
        if !self.head.is_empty() {
            return Poll::Ready(Ok(self.complete_head(bytes)));
        }
        if self.left == 0 {
            match frame_start(bytes) {
                None => {
                    self.head.extend_from_slice(bytes);
                    return Poll::Ready(Ok(bytes.len()));
                }
                Some(start) => self.enter(&start),
            }
        }
        if self.fate == Some(Fate::Drop) {
            let run = self.left.min(bytes.len());
            self.left -= run;
            return Poll::Ready(Ok(run));
        }
        let written = ready!(write(&bytes[..self.passing(bytes)]))?;
        self.advance(bytes, written);
        Poll::Ready(Ok(written))
    }

    /// Writes what is held and decided. To be called before a flush.
    pub(super) fn poll_due(&mut self, mut write: impl FnMut(&[u8]) -> Poll<io::Result<usize>>) -> Poll<io::Result<()>> {
        while !self.due.is_empty() {
            match ready!(write(&self.due))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => drop(self.due.drain(..written)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn complete_head(&mut self, bytes: &[u8]) -> usize {
        for (at, byte) in bytes.iter().enumerate() {
            self.head.push(*byte);
            let Some(start) = frame_start(&self.head) else { continue };
            self.enter(&start);
            self.left = start.bytes().saturating_sub(self.head.len());
            match self.fate {
                Some(Fate::Drop) => self.head.clear(),
                _ => self.due.append(&mut self.head),
            }
            return at + 1;
        }
        bytes.len()
    }

    /// How many of the bytes pass in one run, from within or the start of a passing frame. Ends behind a frame that opens or
    /// closes a channel: what follows is judged after it was written.
    fn passing(&self, bytes: &[u8]) -> usize {
        let mut end = self.left.min(bytes.len());
        while end < bytes.len() {
            match frame_start(&bytes[end..]) {
                Some(start) if self.fate_of(&start) == Fate::Pass && !start.changes_channel() => {
                    end = (end + start.bytes()).min(bytes.len());
                }
                _ => break,
            }
        }
        end
    }

    /// Follows the frames in the bytes that were written; `bytes` shows their heads whole.
    fn advance(&mut self, bytes: &[u8], written: usize) {
        let mut at = 0;
        loop {
            let run = self.left.min(written - at);
            self.left -= run;
            at += run;
            if at == written {
                return;
            }
            match frame_start(&bytes[at..]) {
                Some(start) => self.enter(&start),
                // Cannot be: `passing` saw this head.
                None => return,
            }
        }
    }

    fn enter(&mut self, start: &Start) {
        self.left = start.bytes();
        self.fate = Some(self.fate_of(start));
        let Start::Frame(Head { kind: Kind::Method { class, method }, channel, .. }) = start else { return };
        match (*class, *method) {
            methods::CHANNEL_OPEN => drop(self.closed.remove(channel)),
            methods::CHANNEL_CLOSE | methods::CHANNEL_CLOSE_OK => drop(self.closed.insert(*channel)),
            _ => {}
        }
    }

    fn fate_of(&self, start: &Start) -> Fate {
        let Start::Frame(head) = start else { return Fate::Pass };
        let opens_or_answers = matches!(
            head.kind,
            Kind::Method { class, method }
                if matches!((class, method), methods::CHANNEL_OPEN | methods::CHANNEL_CLOSE_OK)
        );
        if self.closed.contains(&head.channel) && !opens_or_answers { Fate::Drop } else { Fate::Pass }
    }
}

/// What begins at a frame boundary.
enum Start {
    Frame(Head),
    ProtocolHeader,
}

impl Start {
    fn bytes(&self) -> usize {
        match self {
            Start::Frame(head) => head.frame_bytes(),
            Start::ProtocolHeader => PROTOCOL_HEADER_BYTES,
        }
    }

    fn changes_channel(&self) -> bool {
        matches!(self, Start::Frame(Head { kind: Kind::Method { class: 20, .. }, .. }))
    }
}

fn frame_start(bytes: &[u8]) -> Option<Start> {
    match frame::scan_head(bytes) {
        HeadScan::Incomplete => None,
        HeadScan::Found(head) => Some(Start::Frame(head)),
        HeadScan::Foreign => Some(Start::ProtocolHeader),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::frame::raw_frame;
    use proptest::prelude::*;

    /// Offers `stream` in pieces, to a socket that takes pieces and sometimes nothing.
    fn run(stream: &[u8], offers: &[usize], takes: &[usize]) -> Vec<u8> {
        let mut guard = OutboundGuard::default();
        let mut out = Vec::new();
        let (mut at, mut turn, mut take) = (0, 0, 0);
        while at < stream.len() || !guard.due.is_empty() {
            let end = (at + offers[turn % offers.len()]).min(stream.len());
            turn += 1;
            let mut write = |bytes: &[u8]| {
                let taken = takes[take % takes.len()].min(bytes.len());
                take += 1;
                if taken == 0 {
                    return Poll::Pending;
                }
                out.extend_from_slice(&bytes[..taken]);
                Poll::Ready(Ok(taken))
            };
            if at == stream.len() {
                let _ = guard.poll_due(&mut write);
            } else if let Poll::Ready(Ok(taken)) = guard.poll_write(&stream[at..end], &mut write) {
                at += taken;
            }
        }
        out
    }

    proptest! {
        #[test]
        fn frames_behind_a_close_are_dropped_and_all_others_pass(
            frames in prop::collection::vec((0usize..7, 1u16..4, prop::collection::vec(any::<u8>(), 0..60)), 0..30),
            offers in prop::collection::vec(1usize..90, 1..8),
            takes in prop::collection::vec(0usize..90, 1..8).prop_filter("takes something", |takes| takes.iter().any(|take| *take > 0)),
        ) {
            let mut stream = b"AMQP\x00\x00\x09\x01".to_vec();
            let mut expected = stream.clone();
            let mut closed = HashSet::new();
            for (what, channel, payload) in frames {
                let (frame, passes) = match what {
                    0 => { closed.remove(&channel); (raw_frame(1, channel, &[0, 20, 0, 10, 0]), true) }
                    1 => { let passes = !closed.contains(&channel); closed.insert(channel); (raw_frame(1, channel, &[0, 20, 0, 40]), passes) }
                    2 => { closed.insert(channel); (raw_frame(1, channel, &[0, 20, 0, 41]), true) }
                    3 => (raw_frame(8, 0, &[]), true),
                    4 => (raw_frame(1, channel, &[&[0, 60, 0, 40][..], &payload].concat()), !closed.contains(&channel)),
                    5 => (raw_frame(2, channel, &payload), !closed.contains(&channel)),
                    _ => (raw_frame(3, channel, &payload), !closed.contains(&channel)),
                };
                if passes {
                    expected.extend(&frame);
                }
                stream.extend(frame);
            }
            prop_assert_eq!(run(&stream, &offers, &takes), expected);
        }
    }
}
