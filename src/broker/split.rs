//! What lapin writes to a broker with small frames (`frame_max` of RabbitMQ below 8192): lapin agrees to no less than 8192 bytes, and
//! RabbitMQ closes the connection for that. So the agreement is lowered on its way, and bodies are cut to frames of that size.
//!
//! Methods and content headers can't be cut: who writes them checks their size. Holds what is not written yet, at most one frame
//! of lapin's and what one write brought.

use super::frame::{END_BYTES, FRAME_END, HEAD_BYTES};
use std::io;
use std::task::{Poll, ready};

/// The least that lapin agrees to.
pub(super) const FRAME_BYTES_MIN: u32 = 8192;

const BODY: u8 = 3;
const METHOD: u8 = 1;
const CONNECTION_TUNE_OK: [u8; 4] = [0, 10, 0, 31];
/// Behind class, method and `channel_max`.
const FRAME_MAX_AT: usize = 6;

pub(super) struct Splitter {
    frame_max: u32,
    /// The beginning of a frame.
    input: Vec<u8>,
    /// To be written.
    output: Vec<u8>,
    /// Bytes of it that were.
    written: usize,
}

impl Splitter {
    /// From a frame's beginning on; `frame_max` is what the broker takes, at least 4096 by AMQP (4.2.3).
    pub(super) fn new(frame_max: u32) -> Splitter {
        Splitter { frame_max, input: Vec::new(), output: Vec::new(), written: 0 }
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(frame) = first_frame(&self.input[at..]) {
            at += frame.len();
            write_frame(self.frame_max, frame, &mut self.output);
        }
        self.input.drain(..at);
    }

    /// Writes what can be.
    pub(super) fn poll_drain(
        &mut self,
        mut write: impl FnMut(&[u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<()>> {
        while self.written < self.output.len() {
            match ready!(write(&self.output[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                bytes => self.written += bytes,
            }
        }
        (self.output, self.written) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }
}

/// A complete one.
fn first_frame(bytes: &[u8]) -> Option<&[u8]> {
    let size = bytes.get(3..HEAD_BYTES)?.try_into().map(u32::from_be_bytes).ok()?;
    bytes.get(..HEAD_BYTES + size as usize + END_BYTES)
}

fn write_frame(frame_max: u32, frame: &[u8], output: &mut Vec<u8>) {
    let (head, payload) = (&frame[..HEAD_BYTES], &frame[HEAD_BYTES..frame.len() - END_BYTES]);
    let (kind, channel) = (head[0], &head[1..3]);
    let most = (frame_max as usize).saturating_sub(HEAD_BYTES + END_BYTES).max(1);
    if kind == METHOD && payload.starts_with(&CONNECTION_TUNE_OK) {
        let from = output.len() + HEAD_BYTES + FRAME_MAX_AT;
        output.extend_from_slice(frame);
        if let Some(agreed) = output.get_mut(from..from + 4) {
            agreed.copy_from_slice(&frame_max.to_be_bytes());
        }
    } else if kind == BODY && payload.len() > most {
        for part in payload.chunks(most) {
            output.push(BODY);
            output.extend_from_slice(channel);
            output.extend_from_slice(&(part.len() as u32).to_be_bytes());
            output.extend_from_slice(part);
            output.push(FRAME_END);
        }
    } else {
        output.extend_from_slice(frame);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind, 0, 7];
        frame.extend((payload.len() as u32).to_be_bytes());
        frame.extend(payload);
        frame.push(FRAME_END);
        frame
    }

    /// In pieces of the given size.
    fn split(bytes: &[u8], piece: usize) -> Vec<u8> {
        let mut splitter = Splitter::new(4096);
        let mut written = Vec::new();
        for piece in bytes.chunks(piece) {
            splitter.take(piece);
            let drained = splitter.poll_drain(|bytes| {
                written.extend_from_slice(&bytes[..bytes.len().min(1000)]);
                Poll::Ready(Ok(bytes.len().min(1000)))
            });
            assert!(matches!(drained, Poll::Ready(Ok(()))));
        }
        assert!(splitter.input.is_empty());
        written
    }

    #[test]
    fn the_agreement_is_lowered() {
        let tune_ok = |frame_max: u32| {
            let mut payload = CONNECTION_TUNE_OK.to_vec();
            payload.extend(2047_u16.to_be_bytes());
            payload.extend(frame_max.to_be_bytes());
            payload.extend(10_u16.to_be_bytes());
            frame(METHOD, &payload)
        };
        assert_eq!(split(&tune_ok(8192), 5), tune_ok(4096));
    }

    #[test]
    fn a_body_is_cut_to_frames_that_fit() {
        let body: Vec<u8> = (0..8184_u32).map(|number| number as u8).collect();
        let expected: Vec<u8> = body.chunks(4088).flat_map(|part| frame(BODY, part)).collect();
        assert_eq!(split(&frame(BODY, &body), 4000), expected);
        assert!(expected.len() > 2 * 4096);
    }

    proptest! {
        #[test]
        fn everything_else_passes_however_it_is_cut(
            frames in prop::collection::vec((prop::sample::select(vec![1_u8, 2, 3, 8]), 0..4088_usize), 0..6),
            piece in 1..5000_usize,
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(|(kind, size)| frame(*kind, &vec![9; *size])).collect();
            prop_assert_eq!(split(&bytes, piece), bytes);
        }
    }
}
