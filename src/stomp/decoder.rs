//! Bytes to frames, as they arrive. Owns what has been read of the frame under way; the caller keeps the beginning of a line or
//! of a body.
//!
//! Does not judge whether a frame makes sense, and does not read or wait: it is given what has arrived.

use super::content_length::ContentLength;
use super::error::excerpt;
use super::escape::unescape;
use super::line::{Bounds, Fault, find_line};
use super::unfinished::Part;
use super::{COMMAND_BYTES_MAX, Command, DecodeError, Escapes, Frame, Limits, Unfinished};
use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr;

/// What a peer sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Frame(Frame),
    /// One or more line ends between frames (STOMP 1.2, "Heart-beating"); also the one that many peers send behind a
    /// frame's NUL. How many is not said: a run of them that has arrived together is one item.
    Heartbeat,
}

/// Decodes the frames of one connection. Every byte is looked at once, however the bytes are cut.
///
/// Deviations from STOMP 1.2, all of RabbitMQ's plugin: escapes as [`Escapes`] says; `content-length` counts for SEND
/// only, and one that is not a number counts as absent; NULs between frames are skipped; any frame may have a body.
pub struct Decoder {
    /// What has come of a large body. Apart from the input, so that a body never keeps more alive than itself, nor does the input.
    body: Vec<u8>,
    limits: Limits,
    escapes: Escapes,
    stage: Stage,
    /// What is known of the frame under way; without meaning between frames.
    frame: Frame,
    /// Bytes of the frame under way that have been consumed.
    frame_bytes: usize,
    /// Those up to the last one of the body that is no line end.
    heard_bytes: usize,
    /// Bytes of its header lines that have been consumed.
    header_bytes: usize,
    /// Header lines of the frame under way that have been consumed.
    header_lines: usize,
    /// Bytes at the beginning of the input in which nothing was found.
    scanned: usize,
}

/// The beginning of a body stays in the input below this: most bodies are complete by then, and are copied once.
const BODY_IN_INPUT_MAX: usize = 32 * 1024;

/// A larger one gets this part of itself as room.
const BODY_GROWTH: usize = 4;

enum Stage {
    BetweenFrames,
    Command,
    Headers,
    /// Ends at the first NUL.
    Body,
    SizedBody {
        bytes: usize,
    },
    Failed(DecodeError),
}

enum Step {
    Again,
    Item(Item),
    NeedsMore,
}

impl Decoder {
    pub fn new(limits: Limits, escapes: Escapes) -> Decoder {
        Decoder {
            body: Vec::new(),
            limits,
            escapes,
            stage: Stage::BetweenFrames,
            frame: blank_frame(),
            frame_bytes: 0,
            heard_bytes: 0,
            header_bytes: 0,
            header_lines: 0,
            scanned: 0,
        }
    }

    /// Holds for what is decoded from now on; what was accepted of a frame under way stays accepted.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Whether a frame has begun but is not complete.
    pub fn in_frame(&self) -> bool {
        !matches!(self.stage, Stage::BetweenFrames | Stage::Failed(_))
    }

    /// The frame under way; `input` is what `decode` left there.
    pub fn unfinished(&self, input: &[u8]) -> Option<Unfinished> {
        let command = Some(self.frame.command.clone());
        // The rest of a line has no line end but half a one.
        let heard_bytes = self.frame_bytes + input.len();
        let (command, heard_bytes, part) = match &self.stage {
            Stage::BetweenFrames | Stage::Failed(_) => return None,
            Stage::Command => (None, heard_bytes, Unfinished::command_line(input)),
            Stage::Headers => (command, heard_bytes, Part::Headers { lines: self.header_lines, bytes: input.len() }),
            Stage::Body | Stage::SizedBody { .. } => {
                let announced = if let Stage::SizedBody { bytes } = &self.stage { Some(*bytes) } else { None };
                let bytes = self.body.len() + input.len();
                (command, self.heard_bytes_with(input), Part::Body { bytes, announced })
            }
        };
        Some(Unfinished { command, heard_bytes, part })
    }

    /// With what is left in the input of a body.
    fn heard_bytes_with(&self, input: &[u8]) -> usize {
        let last = input.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r'));
        last.map_or(self.heard_bytes, |last| self.frame_bytes + last + 1)
    }

    /// What the frame under way holds on the heap: at most a quarter more than what has come of its body, and room for the headers
    /// that may come if many have.
    pub fn retained_bytes(&self) -> usize {
        self.body.capacity() + self.frame.headers.retained_bytes()
    }

    /// Takes the next item from the beginning of `input`. `None`: needs more bytes behind those that are left there.
    ///
    /// Between two calls `input` may only grow at its end. After `None` at most one line is left there, or less than 32 KiB of a
    /// body. One call reads at most one frame, so its headers' limits bound the work beside the copy of the body. A body has an
    /// allocation of its own size.
    ///
    /// # Errors
    /// The first error is final: every later call returns it again.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Item>, DecodeError> {
        loop {
            let step = match &self.stage {
                Stage::BetweenFrames => self.skip_between_frames(input),
                Stage::Command => self.read_command(input),
                Stage::Headers => self.read_headers(input),
                Stage::Body => self.read_body(input),
                Stage::SizedBody { bytes } => self.read_sized_body(*bytes, input),
                Stage::Failed(error) => return Err(error.clone()),
            };
            match step {
                Ok(Step::Again) => {}
                Ok(Step::Item(item)) => return Ok(Some(item)),
                Ok(Step::NeedsMore) => return Ok(None),
                Err(error) => {
                    self.frame = blank_frame();
                    self.body = Vec::new();
                    self.stage = Stage::Failed(error);
                }
            }
        }
    }

    fn skip_between_frames(&mut self, input: &mut BytesMut) -> Result<Step, DecodeError> {
        let mut skipped = 0;
        let mut heartbeat = false;
        while let Some(byte) = input.get(skipped) {
            match (byte, input.get(skipped + 1)) {
                (b'\0', _) => skipped += 1,
                (b'\n', _) => {
                    heartbeat = true;
                    skipped += 1;
                }
                (b'\r', Some(b'\n')) => {
                    heartbeat = true;
                    skipped += 2;
                }
                (b'\r', None) => break,
                // Reported by the next call, behind the heart-beat that came before it.
                (b'\r', Some(_)) if heartbeat => break,
                (b'\r', Some(_)) => return Err(DecodeError::CarriageReturnBetweenFrames),
                _ => {
                    self.stage = Stage::Command;
                    break;
                }
            }
        }
        input.advance(skipped);
        Ok(match (heartbeat, self.in_frame()) {
            (true, _) => Step::Item(Item::Heartbeat),
            (false, true) => Step::Again,
            (false, false) => Step::NeedsMore,
        })
    }

    fn read_command(&mut self, input: &mut BytesMut) -> Result<Step, DecodeError> {
        let bounds = self.bounds(COMMAND_BYTES_MAX);
        let line = match find_line(input, &mut self.scanned, bounds) {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(Step::NeedsMore),
            Err(fault) => return Err(self.command_error(fault, input)),
        };
        let bytes = &input[..line.text_bytes];
        let command =
            Command::from_bytes(bytes).ok_or_else(|| DecodeError::CommandNotUtf8 { command: excerpt(bytes) })?;
        self.consume(line.bytes, input);
        self.frame = Frame::new(command);
        self.stage = Stage::Headers;
        Ok(Step::Again)
    }

    fn read_headers(&mut self, input: &mut BytesMut) -> Result<Step, DecodeError> {
        let mut read = 0;
        let step = loop {
            let bounds = self.bounds(self.limits.header_line_bytes_max);
            let rest = &input[read..];
            let line = match find_line(rest, &mut self.scanned, bounds) {
                Ok(Some(line)) => line,
                Ok(None) => break Step::NeedsMore,
                Err(fault) => return Err(self.header_error(fault)),
            };
            self.header_bytes += line.bytes;
            if self.header_bytes > self.limits.header_bytes_max {
                return Err(DecodeError::HeadersTooLarge { limit: self.limits.header_bytes_max });
            }
            if line.text_bytes > 0 {
                if self.header_lines >= self.limits.header_lines_max {
                    return Err(DecodeError::TooManyHeaderLines { limit: self.limits.header_lines_max });
                }
                self.keep_header(&rest[..line.text_bytes])?;
                self.header_lines += 1;
            }
            read += line.bytes;
            self.frame_bytes += line.bytes;
            self.scanned = 0;
            if line.text_bytes == 0 {
                self.heard_bytes = self.frame_bytes;
                self.stage = self.body_stage()?;
                break Step::Again;
            }
        };
        input.advance(read);
        Ok(step)
    }

    /// Adds a header to the frame unless its name is there already (STOMP 1.2, "Repeated Header Entries").
    fn keep_header(&mut self, text: &[u8]) -> Result<(), DecodeError> {
        let line = self.header_lines + 1;
        let colon = memchr(b':', text).ok_or(DecodeError::HeaderWithoutColon { line })?;
        let shown = || excerpt(&text[..colon]);
        let (name, value) = match std::str::from_utf8(text) {
            Ok(text) => (&text[..colon], &text[colon + 1..]),
            Err(error) if error.valid_up_to() < colon => {
                return Err(DecodeError::HeaderNameNotUtf8 { line, name: shown() });
            }
            Err(_) => return Err(DecodeError::HeaderValueNotUtf8 { line, name: shown() }),
        };
        if !self.has_escapes() || memchr(b'\\', text).is_none() {
            return self.push_header(name, value);
        }
        let name = unescape(name).map_err(|_| DecodeError::UndefinedEscapeInName { line, name: shown() })?;
        let value = unescape(value).map_err(|_| DecodeError::UndefinedEscapeInValue { line, name: shown() })?;
        self.push_header(&name, &value)
    }

    fn push_header(&mut self, name: &str, value: &str) -> Result<(), DecodeError> {
        if self.frame.headers.contains(name) {
            return Ok(());
        }
        if self.frame.headers.len() >= self.limits.header_count_max {
            return Err(DecodeError::TooManyHeaders { limit: self.limits.header_count_max });
        }
        let most = self.limits.header_bytes_max.min(self.limits.frame_bytes_max);
        self.frame.headers.make_room_within(name, value, most);
        self.frame.headers.push(name, value);
        Ok(())
    }

    /// Of the frame under way.
    fn has_escapes(&self) -> bool {
        let connect = matches!(self.frame.command, Command::Connect | Command::Connected | Command::Stomp);
        self.escapes == Escapes::All || !connect
    }

    /// How the body ends, now that all headers are known.
    fn body_stage(&self) -> Result<Stage, DecodeError> {
        if self.frame.command != Command::Send {
            return Ok(Stage::Body);
        }
        match self.frame.header("content-length").map(ContentLength::parse) {
            None | Some(ContentLength::Junk) => Ok(Stage::Body),
            Some(ContentLength::Negative) => Err(DecodeError::ContentLengthNegative),
            // The NUL needs a byte, too.
            Some(ContentLength::Bytes(bytes)) if bytes >= self.frame_bytes_left() => {
                Err(DecodeError::ContentLengthTooLarge { limit: self.limits.frame_bytes_max })
            }
            Some(ContentLength::Bytes(bytes)) => Ok(Stage::SizedBody { bytes }),
        }
    }

    fn read_body(&mut self, input: &mut BytesMut) -> Result<Step, DecodeError> {
        let left = self.frame_bytes_left();
        let window = input.len().min(left);
        let scanned = self.scanned.min(window);
        match memchr(b'\0', &input[scanned..window]) {
            Some(offset) => Ok(self.finish(scanned + offset, input)),
            None if window == left => Err(self.frame_too_large()),
            None => {
                self.scanned = window;
                self.keep_body(left, input);
                Ok(Step::NeedsMore)
            }
        }
    }

    /// `bytes` is what content-length said.
    fn read_sized_body(&mut self, bytes: usize, input: &mut BytesMut) -> Result<Step, DecodeError> {
        let left = bytes - self.body.len();
        match input.get(left) {
            None => {
                self.keep_body(left, input);
                Ok(Step::NeedsMore)
            }
            Some(b'\0') => Ok(self.finish(left, input)),
            Some(_) => Err(DecodeError::BodyNotTerminated { content_length: bytes }),
        }
    }

    /// Takes all of the input, the beginning or middle of a body of which `left` bytes are to come at most, unless it is a short
    /// beginning.
    fn keep_body(&mut self, left: usize, input: &mut BytesMut) {
        let bytes = input.len();
        if self.body.is_empty() && bytes < BODY_IN_INPUT_MAX {
            return;
        }
        if self.body.capacity() - self.body.len() < bytes {
            // Not doubled: what has not come yet takes little.
            let room = bytes + (self.body.len() + bytes) / BODY_GROWTH;
            self.body.reserve_exact(room.min(left));
        }
        self.body.extend_from_slice(input);
        self.heard_bytes = self.heard_bytes_with(input);
        self.consume(bytes, input);
    }

    /// Takes the last `bytes` of the body and the NUL behind it.
    fn finish(&mut self, bytes: usize, input: &mut BytesMut) -> Step {
        let mut frame = std::mem::replace(&mut self.frame, blank_frame());
        let last = &input[..bytes];
        frame.body = if self.body.is_empty() {
            Bytes::copy_from_slice(last)
        } else {
            let mut body = std::mem::take(&mut self.body);
            body.reserve_exact(bytes);
            body.extend_from_slice(last);
            body.shrink_to_fit();
            body.into()
        };
        input.advance(bytes + 1);
        self.stage = Stage::BetweenFrames;
        self.frame_bytes = 0;
        self.heard_bytes = 0;
        self.header_bytes = 0;
        self.header_lines = 0;
        self.scanned = 0;
        Step::Item(Item::Frame(frame))
    }

    fn consume(&mut self, bytes: usize, input: &mut BytesMut) {
        input.advance(bytes);
        self.frame_bytes += bytes;
        self.scanned = 0;
    }

    fn frame_bytes_left(&self) -> usize {
        self.limits.frame_bytes_max.saturating_sub(self.frame_bytes)
    }

    fn bounds(&self, line_bytes_max: usize) -> Bounds {
        Bounds { line_bytes_max, frame_bytes_left: self.frame_bytes_left() }
    }

    fn frame_too_large(&self) -> DecodeError {
        DecodeError::FrameTooLarge { limit: self.limits.frame_bytes_max }
    }

    fn command_error(&self, fault: Fault, input: &[u8]) -> DecodeError {
        match fault {
            Fault::CarriageReturn { at } => DecodeError::CarriageReturnInCommand { command: excerpt(&input[..at]) },
            Fault::FrameTooLarge => self.frame_too_large(),
            Fault::Nul { at } => DecodeError::NulInCommand { command: excerpt(&input[..at]) },
            // As many bytes as the bound, so that the text does not depend on how much more has arrived.
            Fault::TooLong => DecodeError::CommandTooLong { command: excerpt(&input[..COMMAND_BYTES_MAX]) },
        }
    }

    fn header_error(&self, fault: Fault) -> DecodeError {
        let line = self.header_lines + 1;
        match fault {
            Fault::CarriageReturn { .. } => DecodeError::CarriageReturnInHeader { line },
            Fault::FrameTooLarge => self.frame_too_large(),
            Fault::Nul { .. } => DecodeError::NulInHeader { line },
            Fault::TooLong => DecodeError::HeaderLineTooLong { line, limit: self.limits.header_line_bytes_max },
        }
    }
}

/// Stands where no frame is under way; allocates nothing.
fn blank_frame() -> Frame {
    Frame::new(Command::Disconnect)
}

#[cfg(test)]
mod tests;
