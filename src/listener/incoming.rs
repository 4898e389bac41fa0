//! The reading half of one client's WebSocket (RFC 6455 section 5): frames in, payload out as it comes.
//!
//! Nothing of a message is kept here but a cut frame head, a cut character and a control frame: a message is handed over in
//! the pieces in which it arrives, so that an unfinished one is held once, by who reads it. The format of a frame's head is
//! tungstenite's. Knows no socket and answers nothing.

use std::io::Cursor;
use std::str::from_utf8;

use bytes::{Bytes, BytesMut};
use tokio_tungstenite::tungstenite::Error as Failure;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::event::ReceiveError;

/// Longest frame head (RFC 6455 section 5.2).
const HEAD_BYTES_MAX: usize = 14;

/// Longest payload of a control frame (RFC 6455 section 5.5).
const CONTROL_BYTES_MAX: u64 = 125;

/// A frame whose rest is at most this part of what has come gets room for all of it at once. So a frame that is a little larger
/// than a TLS record is copied once, and what is announced and never comes takes little.
const ANNOUNCED_SHARE: usize = 4;

/// A control frame, complete.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ControlFrame {
    /// Its payload: a code and a reason, or nothing.
    Close(Bytes),
    /// To be answered with this payload.
    Ping(Bytes),
    Pong,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Binary,
    Text,
}

#[derive(Clone, Copy)]
enum Content {
    Control(Control),
    Message(Kind),
}

/// A frame whose payload is being read.
struct Frame {
    content: Content,
    is_final: bool,
    left: u64,
    mask: [u8; 4],
    /// Payload bytes that were read.
    read: usize,
}

impl Frame {
    /// Bytes that are still to come, if they are few beside those that have come.
    fn announced(&self) -> usize {
        let few = (self.read / ANNOUNCED_SHARE) as u64;
        usize::try_from(self.left).ok().filter(|_| self.left <= few).unwrap_or(0)
    }
}

/// How far the frames of one client have been read.
pub(super) struct FrameReader {
    control: Vec<u8>,
    frame: Option<Frame>,
    head: [u8; HEAD_BYTES_MAX],
    head_bytes: usize,
    /// The message whose frames are being read, if the last one was not its end.
    message: Option<Kind>,
    message_bytes: u64,
    message_bytes_max: usize,
    text: TextCheck,
}

impl FrameReader {
    pub(super) fn new(message_bytes_max: usize) -> FrameReader {
        FrameReader {
            control: Vec::new(),
            frame: None,
            head: [0; HEAD_BYTES_MAX],
            head_bytes: 0,
            message: None,
            message_bytes: 0,
            message_bytes_max,
            text: TextCheck::default(),
        }
    }

    /// Holds for frames that begin from now on.
    pub(super) fn set_message_bytes_max(&mut self, bytes: usize) {
        self.message_bytes_max = bytes;
    }

    /// Reads from the front of `input` up to the end of the first control frame or of the input. What belongs to messages is
    /// appended to `data`. Answers with how many bytes it read.
    ///
    /// # Errors
    /// The stream cannot be read further. What was appended before is good.
    pub(super) fn read(
        &mut self,
        input: &[u8],
        data: &mut BytesMut,
    ) -> Result<(usize, Option<ControlFrame>), ReceiveError> {
        let mut at = 0;
        loop {
            if self.frame.is_none() {
                let Some((bytes, frame)) = self.read_head(&input[at..])? else { return Ok((input.len(), None)) };
                at += bytes;
                self.frame = Some(frame);
            }
            let Some(frame) = &mut self.frame else { continue };
            let run = usize::try_from(frame.left).unwrap_or(usize::MAX).min(input.len() - at);
            let payload = &input[at..at + run];
            let (mask, place) = (frame.mask, frame.read);
            at += run;
            frame.read = frame.read.wrapping_add(run);
            frame.left -= run as u64;
            let (content, ends) = (frame.content, frame.left == 0);
            let is_end = ends && frame.is_final;
            match content {
                Content::Control(_) => {
                    let before = self.control.len();
                    self.control.extend_from_slice(payload);
                    unmask(&mut self.control[before..], mask, place);
                }
                Content::Message(kind) => {
                    let before = data.len();
                    if before == 0 {
                        data.reserve(run + frame.announced().max(input.len() - at));
                    }
                    data.extend_from_slice(payload);
                    unmask(&mut data[before..], mask, place);
                    if kind == Kind::Text
                        && let Err(error) = self.text.check(&data[before..], is_end)
                    {
                        data.truncate(before);
                        return Err(error);
                    }
                }
            }
            if !ends {
                return Ok((at, None));
            }
            self.frame = None;
            if let Content::Control(control) = content {
                let payload = Bytes::from(std::mem::take(&mut self.control));
                return Ok((at, Some(control_frame(control, payload)?)));
            }
            if is_end {
                (self.message, self.message_bytes) = (None, 0);
            }
        }
    }

    /// A frame's head, and how many bytes of the input it took. None: needs more, and has taken all.
    fn read_head(&mut self, input: &[u8]) -> Result<Option<(usize, Frame)>, ReceiveError> {
        let before = self.head_bytes;
        let more = input.len().min(HEAD_BYTES_MAX - before);
        self.head[before..before + more].copy_from_slice(&input[..more]);
        let mut cursor = Cursor::new(&self.head[..before + more]);
        match FrameHeader::parse(&mut cursor) {
            Err(error) => Err(violation(&error)),
            Ok(None) => {
                self.head_bytes = before + more;
                Ok(None)
            }
            Ok(Some((head, bytes))) => {
                let taken = usize::try_from(cursor.position()).unwrap_or(before).saturating_sub(before);
                self.head_bytes = 0;
                Ok(Some((taken, self.begin(&head, bytes)?)))
            }
        }
    }

    fn begin(&mut self, head: &FrameHeader, bytes: u64) -> Result<Frame, ReceiveError> {
        let refuse = |error: ProtocolError| Err(violation(&Failure::Protocol(error)));
        if head.rsv1 || head.rsv2 || head.rsv3 {
            return refuse(ProtocolError::NonZeroReservedBits);
        }
        let Some(mask) = head.mask else { return refuse(ProtocolError::UnmaskedFrameFromClient) };
        let content = match (head.opcode, self.message) {
            (OpCode::Control(_), _) if !head.is_final => return refuse(ProtocolError::FragmentedControlFrame),
            (OpCode::Control(_), _) if bytes > CONTROL_BYTES_MAX => return refuse(ProtocolError::ControlFrameTooBig),
            (OpCode::Control(control), _) => Content::Control(control),
            (OpCode::Data(Data::Continue), None) => return refuse(ProtocolError::UnexpectedContinueFrame),
            (OpCode::Data(Data::Continue), Some(kind)) => Content::Message(kind),
            (OpCode::Data(data), Some(_)) => return refuse(ProtocolError::ExpectedFragment(data)),
            (OpCode::Data(Data::Text), None) => Content::Message(Kind::Text),
            (OpCode::Data(Data::Binary), None) => Content::Message(Kind::Binary),
            (OpCode::Data(Data::Reserved(code)), None) => return refuse(ProtocolError::UnknownDataFrameType(code)),
        };
        if let Content::Message(kind) = content {
            self.message = Some(kind);
            self.message_bytes = self.message_bytes.saturating_add(bytes);
            if self.message_bytes > self.message_bytes_max as u64 {
                return Err(ReceiveError::TooBig { max: self.message_bytes_max });
            }
        }
        Ok(Frame { content, is_final: head.is_final, left: bytes, mask, read: 0 })
    }
}

fn control_frame(control: Control, payload: Bytes) -> Result<ControlFrame, ReceiveError> {
    match control {
        Control::Close => Ok(ControlFrame::Close(payload)),
        Control::Ping => Ok(ControlFrame::Ping(payload)),
        Control::Pong => Ok(ControlFrame::Pong),
        Control::Reserved(code) => Err(violation(&Failure::Protocol(ProtocolError::UnknownControlFrameType(code)))),
    }
}

fn violation(error: &Failure) -> ReceiveError {
    ReceiveError::Protocol(error.to_string())
}

/// RFC 6455 section 5.3; `at` is the place of the first byte in its payload.
fn unmask(payload: &mut [u8], mask: [u8; 4], at: usize) {
    let turned = |index: usize| mask[(at + index) % 4];
    let mask = [turned(0), turned(1), turned(2), turned(3)];
    let wide = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    let mut chunks = payload.chunks_exact_mut(8);
    for chunk in &mut chunks {
        if let Ok(bytes) = <&mut [u8; 8]>::try_from(chunk) {
            *bytes = (u64::from_ne_bytes(*bytes) ^ wide).to_ne_bytes();
        }
    }
    for (byte, mask) in chunks.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// Whether text is UTF-8, however it is cut.
#[derive(Default)]
struct TextCheck {
    /// The beginning of a character whose rest has not come.
    cut: [u8; 4],
    cut_bytes: usize,
}

impl TextCheck {
    fn check(&mut self, mut text: &[u8], is_end: bool) -> Result<(), ReceiveError> {
        while self.cut_bytes > 0
            && let Some((first, rest)) = text.split_first()
        {
            self.cut[self.cut_bytes] = *first;
            self.cut_bytes += 1;
            text = rest;
            match from_utf8(&self.cut[..self.cut_bytes]) {
                Ok(_) => self.cut_bytes = 0,
                Err(error) if error.error_len().is_some() => return Err(ReceiveError::NotUtf8),
                Err(_) => {}
            }
        }
        if let Err(error) = from_utf8(text) {
            if error.error_len().is_some() {
                return Err(ReceiveError::NotUtf8);
            }
            let rest = &text[error.valid_up_to()..];
            self.cut[..rest.len()].copy_from_slice(rest);
            self.cut_bytes = rest.len();
        }
        if is_end && self.cut_bytes > 0 { Err(ReceiveError::NotUtf8) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FIN: u8 = 0x80;

    fn frame(first: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first];
        match payload.len() {
            length @ 0..126 => bytes.push(0x80 | length as u8),
            length => {
                bytes.push(0x80 | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
        }
        bytes.extend(mask);
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        bytes
    }

    /// What comes of the input when it arrives in pieces.
    fn read(input: &[u8], pieces: &[usize]) -> (Vec<u8>, Vec<ControlFrame>, Option<ReceiveError>) {
        let mut reader = FrameReader::new(10_000);
        let (mut data, mut controls) = (BytesMut::new(), Vec::new());
        let mut rest = input.to_vec();
        let mut turn = 0;
        while !rest.is_empty() {
            let run = pieces[turn % pieces.len()].min(rest.len());
            turn += 1;
            let piece: Vec<u8> = rest.drain(..run).collect();
            let mut at = 0;
            while at < piece.len() {
                match reader.read(&piece[at..], &mut data) {
                    Ok((taken, control)) => {
                        at += taken;
                        controls.extend(control);
                    }
                    Err(error) => return (data.to_vec(), controls, Some(error)),
                }
            }
        }
        (data.to_vec(), controls, None)
    }

    proptest! {
        #[test]
        fn payload_is_the_same_however_it_is_cut(
            text in "[a-zß€😀]{0,200}",
            cuts in prop::collection::vec(0_usize..800, 0..4),
            pieces in prop::collection::vec(1_usize..40, 1..6),
            mask: [u8; 4],
            ping in prop::collection::vec(any::<u8>(), 0..125),
        ) {
            let mut ends = cuts.iter().map(|cut| cut % (text.len() + 1)).collect::<Vec<_>>();
            ends.sort_unstable();
            ends.push(text.len());
            let mut input = Vec::new();
            let mut from = 0;
            for (index, to) in ends.iter().enumerate() {
                let fin = if index + 1 == ends.len() { FIN } else { 0 };
                input.extend(frame(fin | u8::from(index == 0), mask, &text.as_bytes()[from..*to]));
                input.extend(frame(FIN | 9, mask, &ping));
                from = *to;
            }
            let (data, controls, error) = read(&input, &pieces);
            prop_assert_eq!(error, None);
            prop_assert_eq!(data, text.as_bytes());
            prop_assert_eq!(controls.len(), ends.len());
            prop_assert!(controls.iter().all(|control| *control == ControlFrame::Ping(ping.clone().into())));
        }

        #[test]
        fn text_that_is_not_utf8_is_refused_however_it_is_cut(
            text in prop::collection::vec(any::<u8>(), 1..60),
            pieces in prop::collection::vec(1_usize..20, 1..6),
        ) {
            let good = from_utf8(&text).is_ok();
            let (data, _, error) = read(&frame(FIN | 1, [1, 2, 3, 4], &text), &pieces);
            prop_assert_eq!(error, if good { None } else { Some(ReceiveError::NotUtf8) });
            prop_assert!(text.starts_with(&data));
        }
    }

    #[test]
    fn nothing_of_a_message_is_kept() {
        let mut reader = FrameReader::new(1 << 20);
        let mut data = BytesMut::new();
        let input = frame(2, [0; 4], &[7; 60_000]);
        assert_eq!(reader.read(&input, &mut data), Ok((60_008, None)));
        assert_eq!(data.len(), 60_000);
        assert_eq!(reader.control.capacity(), 0);
    }

    #[test]
    fn a_short_rest_finds_room_and_a_long_one_gets_none() {
        let first = 16_384;
        for (whole, finds_room) in [(16_500, true), (60_000, false)] {
            let mut reader = FrameReader::new(1 << 20);
            let mut data = BytesMut::new();
            let input = frame(2, [1, 2, 3, 4], &vec![7; whole]);
            assert_eq!(reader.read(&input[..first], &mut data), Ok((first, None)));
            let most = if finds_room { whole } else { first };
            assert!(data.capacity() <= most, "{} bytes for {}", data.capacity(), data.len());
            let place = data.as_ptr();
            assert_eq!(reader.read(&input[first..], &mut data), Ok((input.len() - first, None)));
            assert_eq!(data, vec![7; whole]);
            assert!(!finds_room || data.as_ptr() == place, "what came first was copied again");
        }
    }

    #[test]
    fn bytes_of_all_frames_count_towards_a_message() {
        let whole = [frame(2, [0; 4], &[7; 9_999]), frame(FIN, [0; 4], b"x")].concat();
        assert_eq!(read(&whole, &[100]).2, None);
        let more = [frame(2, [0; 4], &[7; 9_999]), frame(FIN, [0; 4], b"xy")].concat();
        assert_eq!(read(&more, &[100]).2, Some(ReceiveError::TooBig { max: 10_000 }));
        // The next message counts anew.
        let two = [frame(FIN | 2, [0; 4], &[7; 9_999]), frame(FIN | 2, [0; 4], b"xy")].concat();
        assert_eq!(read(&two, &[100]).2, None);
    }
}
