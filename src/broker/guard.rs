//! The guard in front of lapin: follows the frames that the broker sends and takes out what lapin handles wrongly.
//!
//! Today that is `basic.return` (lapin attaches returned messages to the wrong confirm and logs their payload): the frames
//! of a returned message are swallowed and recorded in [`Wire`]. `connection.start`, `connection.tune` and
//! `channel.close` are only looked at. Everything else passes in place, untouched and uncopied, frame by frame; a frame
//! that is collected whole could also be replaced here. What is not AMQP passes as it is: lapin judges it.
//!
//! Bounded: at most one frame is held, and only of the kinds above, each with its limit.

use super::frame::{self, Head, HeadScan, Kind};
use super::wire::{Refusal, Returned, Wire};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::task::{Poll, ready};

/// Largest method frame that is collected. The longest needed is connection.start, below 2 KiB from RabbitMQ.
const METHOD_BYTES_MAX: usize = 64 * 1024;
/// Largest content header that is collected; a legal one fits the negotiated frame size, 128 KiB by default.
const HEADER_BYTES_MAX: usize = 1024 * 1024;
/// A destination smaller than this is served through the spare buffer, because held-back bytes must fit before it.
const DIRECT_BYTES_MIN: usize = 64;
/// Size of the spare buffer.
const SPARE_BYTES: usize = 4096;

mod methods {
    pub(super) const CONNECTION_START: (u16, u16) = (10, 10);
    pub(super) const CONNECTION_TUNE: (u16, u16) = (10, 30);
    pub(super) const CHANNEL_CLOSE: (u16, u16) = (20, 40);
    pub(super) const BASIC_RETURN: (u16, u16) = (60, 50);
}

/// What happens to the bytes of the current frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Treatment {
    Pass,
    /// Passes and is collected to be read at its end.
    Observe,
    /// Taken out, collected to be read at its end.
    Collect,
    /// Taken out unread.
    Drop,
}

#[derive(Debug)]
enum State {
    /// At the start of a frame.
    Between,
    Inside {
        head: Head,
        left: usize,
        treatment: Treatment,
    },
    /// Not AMQP any more: everything passes.
    Foreign,
}

/// A returned message whose frames are still coming.
enum Returning {
    Method(Option<frame::Return>),
    Body { returned: Option<Returned>, left: u64 },
}

pub(super) struct Guard {
    collected: Vec<u8>,
    /// The start of a frame head that was cut off by the end of the last read; never longer than a method frame's head.
    held: Vec<u8>,
    /// Bytes for destinations that were too small, from `spare_at` on.
    spare: Vec<u8>,
    spare_at: usize,
    returning: HashMap<u16, Returning>,
    state: State,
    wire: Arc<Wire>,
}

impl Guard {
    pub(super) fn new(wire: Arc<Wire>) -> Guard {
        Guard {
            collected: Vec::new(),
            held: Vec::new(),
            spare: Vec::new(),
            spare_at: 0,
            returning: HashMap::new(),
            state: State::Between,
            wire,
        }
    }

    /// Reads into `destination` through the guard. `read` is the socket: bytes read, 0 at its end.
    pub(super) fn poll_fill(
        &mut self,
        destination: &mut [u8],
        mut read: impl FnMut(&mut [u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        loop {
            if destination.is_empty() {
                return Poll::Ready(Ok(0));
            }
            if self.spare_at < self.spare.len() {
                return Poll::Ready(Ok(self.serve_spare(destination)));
            }
            let passed = if destination.len() >= DIRECT_BYTES_MIN {
                ready!(self.poll_fill_direct(destination, &mut read))?
            } else {
                let mut spare = std::mem::take(&mut self.spare);
                spare.resize(SPARE_BYTES, 0);
                let filled = self.poll_fill_direct(&mut spare, &mut read);
                spare.truncate(if let Poll::Ready(Ok(Progress::Passed(bytes))) = filled { bytes } else { 0 });
                self.spare = spare;
                self.spare_at = 0;
                match ready!(filled)? {
                    Progress::Passed(_) => continue,
                    Progress::Ended => Progress::Ended,
                }
            };
            match passed {
                Progress::Ended => return Poll::Ready(Ok(0)),
                Progress::Passed(0) => {}
                Progress::Passed(bytes) => return Poll::Ready(Ok(bytes)),
            }
        }
    }

    fn serve_spare(&mut self, destination: &mut [u8]) -> usize {
        let bytes = destination.len().min(self.spare.len() - self.spare_at);
        destination[..bytes].copy_from_slice(&self.spare[self.spare_at..self.spare_at + bytes]);
        self.spare_at += bytes;
        bytes
    }

    fn poll_fill_direct(
        &mut self,
        destination: &mut [u8],
        read: &mut impl FnMut(&mut [u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<Progress>> {
        let held = self.held.len();
        let bytes = ready!(read(&mut destination[held..]))?;
        destination[..held].copy_from_slice(&self.held);
        self.held.clear();
        if bytes == 0 {
            // The stream ended within a frame head: what was held back is all there will be.
            return Poll::Ready(Ok(if held == 0 { Progress::Ended } else { Progress::Passed(held) }));
        }
        Poll::Ready(Ok(Progress::Passed(self.filter(&mut destination[..held + bytes]))))
    }

    /// Moves what passes to the front of `bytes` and returns how much that is.
    fn filter(&mut self, bytes: &mut [u8]) -> usize {
        let (mut from, mut kept) = (0, 0);
        while from < bytes.len() {
            let (run, treatment) = match &self.state {
                State::Foreign => (bytes.len() - from, Treatment::Pass),
                State::Inside { left, treatment, .. } => ((*left).min(bytes.len() - from), *treatment),
                State::Between => match frame::scan_head(&bytes[from..]) {
                    HeadScan::Incomplete => {
                        self.held.extend_from_slice(&bytes[from..]);
                        break;
                    }
                    HeadScan::Foreign => {
                        self.state = State::Foreign;
                        continue;
                    }
                    HeadScan::Found(head) => {
                        self.collected.clear();
                        self.state = State::Inside { head, left: head.frame_bytes(), treatment: self.treatment(&head) };
                        continue;
                    }
                },
            };
            if matches!(treatment, Treatment::Observe | Treatment::Collect) {
                self.collected.extend_from_slice(&bytes[from..from + run]);
            }
            if matches!(treatment, Treatment::Pass | Treatment::Observe) {
                if from != kept {
                    bytes.copy_within(from..from + run, kept);
                }
                kept += run;
            }
            from += run;
            self.advance(run);
        }
        kept
    }

    fn advance(&mut self, run: usize) {
        let State::Inside { head, left, treatment } = &mut self.state else { return };
        *left -= run;
        if *left > 0 {
            return;
        }
        let (head, treatment) = (*head, *treatment);
        self.state = State::Between;
        match treatment {
            Treatment::Pass => {}
            Treatment::Observe => self.observe(&head),
            Treatment::Collect => self.collect(&head),
            Treatment::Drop => self.count_body(&head),
        }
    }

    fn treatment(&mut self, head: &Head) -> Treatment {
        match head.kind {
            Kind::Method { class, method } => {
                self.returning.remove(&head.channel);
                if head.payload > METHOD_BYTES_MAX {
                    return Treatment::Pass;
                }
                match (class, method) {
                    methods::CONNECTION_START | methods::CONNECTION_TUNE | methods::CHANNEL_CLOSE => Treatment::Observe,
                    methods::BASIC_RETURN => Treatment::Collect,
                    _ => Treatment::Pass,
                }
            }
            Kind::Header => match self.returning.get(&head.channel) {
                Some(Returning::Method(_)) if head.payload <= HEADER_BYTES_MAX => Treatment::Collect,
                _ => Treatment::Pass,
            },
            Kind::Body => match self.returning.get(&head.channel) {
                Some(Returning::Body { .. }) => Treatment::Drop,
                _ => Treatment::Pass,
            },
            Kind::Heartbeat => Treatment::Pass,
        }
    }

    fn observe(&mut self, head: &Head) {
        let Kind::Method { class, method } = head.kind else { return };
        let Some(payload) = frame::payload(&self.collected) else { return };
        match (class, method) {
            methods::CONNECTION_START => {
                if let Some(version) = frame::server_version(payload) {
                    self.wire.record_version(version);
                }
            }
            methods::CONNECTION_TUNE => self.wire.record_authenticated(),
            methods::CHANNEL_CLOSE => {
                if let Some((reply_code, reply_text)) = frame::channel_close(payload) {
                    self.wire.record_refusal(head.channel, Refusal { reply_code, reply_text });
                }
            }
            _ => {}
        }
    }

    fn collect(&mut self, head: &Head) {
        let payload = frame::payload(&self.collected);
        match head.kind {
            Kind::Method { .. } => {
                self.returning.insert(head.channel, Returning::Method(payload.and_then(frame::basic_return)));
            }
            Kind::Header => {
                let Some(Returning::Method(cause)) = self.returning.remove(&head.channel) else { return };
                let message_id = payload.and_then(frame::message_id);
                let left = payload.and_then(frame::body_bytes).unwrap_or(0);
                let returned = cause.map(|cause| Returned { message_id, cause });
                self.continue_return(head.channel, returned, left);
            }
            Kind::Body | Kind::Heartbeat => {}
        }
    }

    fn count_body(&mut self, head: &Head) {
        if let Some(Returning::Body { returned, left }) = self.returning.remove(&head.channel) {
            self.continue_return(head.channel, returned, left.saturating_sub(head.payload as u64));
        }
    }

    fn continue_return(&mut self, channel: u16, returned: Option<Returned>, left: u64) {
        if left > 0 {
            self.returning.insert(channel, Returning::Body { returned, left });
        } else if let Some(returned) = returned {
            self.wire.record_return(channel, returned);
        }
    }
}

enum Progress {
    /// So many bytes passed; none when all were held back or taken out.
    Passed(usize),
    Ended,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn raw_frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend(channel.to_be_bytes());
        bytes.extend((payload.len() as u32).to_be_bytes());
        bytes.extend(payload);
        bytes.push(0xCE);
        bytes
    }

    fn short(text: &str) -> Vec<u8> {
        let mut bytes = vec![text.len() as u8];
        bytes.extend(text.as_bytes());
        bytes
    }

    fn method(class: u16, method: u16, arguments: &[u8]) -> Vec<u8> {
        [&class.to_be_bytes()[..], &method.to_be_bytes()[..], arguments].concat()
    }

    fn returned_message(channel: u16, message_id: &str, body_frames: &[&[u8]]) -> Vec<u8> {
        let mut arguments = 312u16.to_be_bytes().to_vec();
        arguments.extend(short("NO_ROUTE"));
        arguments.extend(short("ex"));
        arguments.extend(short("key"));
        let mut bytes = raw_frame(1, channel, &method(60, 50, &arguments));
        let mut header = vec![0, 60, 0, 0];
        header.extend((body_frames.iter().map(|body| body.len() as u64).sum::<u64>()).to_be_bytes());
        // content-type, headers, delivery-mode, message-id
        header.extend((1u16 << 15 | 1 << 13 | 1 << 12 | 1 << 7).to_be_bytes());
        header.extend(short("text/plain"));
        header.extend([0, 0, 0, 5]);
        header.extend([1, b'a', b't', 1, 0xCE]);
        header.push(2);
        header.extend(short(message_id));
        bytes.extend(raw_frame(2, channel, &header));
        for body in body_frames {
            bytes.extend(raw_frame(3, channel, body));
        }
        bytes
    }

    /// Runs `stream`, cut into pieces of `cuts` bytes, through a guard whose reader offers buffers of `sizes` bytes.
    fn run(stream: &[u8], cuts: &[usize], sizes: &[usize], wire: &Arc<Wire>) -> Vec<u8> {
        let mut guard = Guard::new(wire.clone());
        let mut out = Vec::new();
        let (mut at, mut turn) = (0, 0);
        loop {
            let mut buffer = vec![0; sizes[turn % sizes.len()].max(1)];
            turn += 1;
            let result = guard.poll_fill(&mut buffer, |space| {
                let bytes = cuts[at % cuts.len()].max(1).min(space.len()).min(stream.len() - at);
                space[..bytes].copy_from_slice(&stream[at..at + bytes]);
                at += bytes;
                Poll::Ready(Ok(bytes))
            });
            match result {
                Poll::Ready(Ok(0)) => return out,
                Poll::Ready(Ok(bytes)) => out.extend(&buffer[..bytes]),
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// Frames of any kind but basic.return, and sometimes bytes that are no frame at all.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let frame = (
            prop_oneof![Just(1u8), Just(2), Just(3), Just(8)],
            0u16..4,
            prop::collection::vec(any::<u8>(), 0..200),
            prop_oneof![Just(None), Just(Some((10u8, 10u8))), Just(Some((20, 40))), Just(Some((10, 30)))],
        )
            .prop_map(|(kind, channel, mut payload, name)| {
                if let (Some((class, method)), true) = (name, payload.len() >= 4) {
                    payload[..4].copy_from_slice(&[0, class, 0, method]);
                }
                if payload.starts_with(&[0, 60, 0, 50]) {
                    payload[0] = 1;
                }
                raw_frame(kind, channel, &payload)
            });
        (prop::collection::vec(frame, 0..12), prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(frames, tail)| {
            let mut bytes = frames.concat();
            // A tail that would read as a basic.return is as good as impossible, but must not make the test flaky.
            if !tail.windows(4).any(|window| window == [0, 60, 0, 50]) {
                bytes.extend(tail);
            }
            bytes
        })
    }

    proptest! {
        #[test]
        fn anything_without_a_return_passes_unchanged(
            bytes in stream(),
            cuts in prop::collection::vec(1usize..50, 1..10),
            sizes in prop::collection::vec(prop_oneof![1usize..20, 60usize..300], 1..10),
        ) {
            prop_assert_eq!(run(&bytes, &cuts, &sizes, &Arc::new(Wire::default())), bytes);
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            run(&bytes, &[17], &[256], &Arc::new(Wire::default()));
            for parse in [frame::message_id, frame::server_version] {
                parse(&bytes);
            }
            frame::basic_return(&bytes);
            frame::channel_close(&bytes);
        }

        #[test]
        fn returns_are_taken_out_and_recorded(
            before in stream().prop_filter("whole frames only", |bytes| bytes.is_empty() || bytes.last() == Some(&0xCE)),
            cuts in prop::collection::vec(1usize..50, 1..10),
            sizes in prop::collection::vec(prop_oneof![1usize..20, 60usize..300], 1..10),
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..60), 0..4),
        ) {
            let wire = Arc::new(Wire::default());
            wire.watch_channel(7);
            let heartbeat = raw_frame(8, 0, &[]);
            let bodies: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
            let aligned = frames_only(&before);
            let input = [&aligned[..], &returned_message(7, "m-1", &bodies), &heartbeat].concat();
            prop_assert_eq!(run(&input, &cuts, &sizes, &wire), [&aligned[..], &heartbeat].concat());
            let returned = wire.take_return(7, Some("m-1"), "ex", "key");
            prop_assert_eq!(returned.map(|returned| returned.cause.reply_code), Some(312));
            prop_assert!(wire.take_return(7, Some("m-1"), "ex", "key").is_none());
        }
    }

    /// The whole frames at the start of `bytes`.
    fn frames_only(bytes: &[u8]) -> Vec<u8> {
        let mut at = 0;
        while let HeadScan::Found(head) = frame::scan_head(&bytes[at..]) {
            if at + head.frame_bytes() > bytes.len() {
                break;
            }
            at += head.frame_bytes();
        }
        bytes[..at].to_vec()
    }

    #[test]
    fn start_and_close_are_read_while_they_pass() {
        let wire = Arc::new(Wire::default());
        wire.watch_channel(3);
        let mut properties = Vec::new();
        properties.extend([&short("capabilities")[..], b"F", &[0, 0, 0, 4], &[1, b'x', b't', 1]].concat());
        properties.extend([&short("version")[..], b"S", &[0, 0, 0, 6], b"3.10.8"].concat());
        let mut start = vec![0, 9];
        start.extend((properties.len() as u32).to_be_bytes());
        start.extend(properties);
        let mut close = 404u16.to_be_bytes().to_vec();
        close.extend(short("NOT_FOUND - no exchange 'x'"));
        close.extend([0, 60, 0, 40]);
        let stream = [raw_frame(1, 0, &method(10, 10, &start)), raw_frame(1, 3, &method(20, 40, &close))].concat();
        assert_eq!(run(&stream, &[5], &[100], &wire), stream);
        assert_eq!(wire.version(), "3.10.8");
        assert_eq!(wire.refusal(3).map(|refusal| refusal.reply_code), Some(404));
        assert_eq!(wire.broker_closed_channels(), 1);
    }

    #[test]
    fn a_version_refusal_passes() {
        let wire = Arc::new(Wire::default());
        assert_eq!(run(b"AMQP\x00\x00\x09\x01", &[3], &[64], &wire), b"AMQP\x00\x00\x09\x01");
    }
}
