//! Repairs frames that lapin or amq-protocol could not take, so that what the broker delivers cannot end the link.
//!
//! Only what other AMQP clients can put into a message is repaired: exchange, routing key and consumer tag of a delivery,
//! the content header; and the text of an exception, which RabbitMQ cuts at 255 bytes, in the midst of a character if it
//! so happens. As much as can be read is kept; the body is never touched. Everything else that is wrong passes as it is
//! and ends the link: the broker itself would be broken.
//!
//! A repaired frame is never longer than it was.

use super::frame::{self, CONTENT_HEAD_BYTES, END_BYTES, HEAD_BYTES, Kind, PROPERTIES, PropertyKind, methods};
use super::table;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing to repair, or nothing that could be.
    Untouched,
    /// The frame is the first so many bytes now.
    Repaired(usize),
}

/// Repairs a whole frame in place.
pub(super) fn repair(kind: Kind, frame: &mut [u8]) -> Outcome {
    if frame::payload(frame).is_none() {
        return Outcome::Untouched;
    }
    match kind {
        Kind::Method { class, method } => repair_method((class, method), frame),
        Kind::Header => repair_content_header(frame),
        Kind::Body | Kind::Heartbeat => Outcome::Untouched,
    }
}

/// Before a short string in a method's arguments, in bytes.
type Gap = usize;

fn repair_method(method: (u16, u16), frame: &mut [u8]) -> Outcome {
    // class and method come first.
    const DELIVER: &[Gap] = &[4, 8 + 1, 0]; // consumer tag; after delivery tag and redelivered: exchange; routing key
    const CLOSE: &[Gap] = &[4 + 2]; // after the reply code: reply text
    let texts = match method {
        methods::BASIC_DELIVER => DELIVER,
        methods::CHANNEL_CLOSE | methods::CONNECTION_CLOSE => CLOSE,
        _ => return Outcome::Untouched,
    };
    let mut at = HEAD_BYTES;
    let mut mended = false;
    for gap in texts {
        at += gap;
        let Some(&bytes) = frame.get(at) else { break };
        let from = at + 1;
        at = from + usize::from(bytes);
        let Some(text) = frame.get_mut(from..at) else { break };
        mended |= table::mend_text(text);
    }
    if mended { Outcome::Repaired(frame.len()) } else { Outcome::Untouched }
}

fn repair_content_header(frame: &mut [u8]) -> Outcome {
    let payload = &frame[HEAD_BYTES..frame.len() - END_BYTES];
    // Without its fixed part there is nothing to build on.
    if payload.len() < CONTENT_HEAD_BYTES || is_sound(payload) {
        return Outcome::Untouched;
    }
    let mended = mend(payload);
    frame[HEAD_BYTES..HEAD_BYTES + mended.len()].copy_from_slice(&mended);
    Outcome::Repaired(close_frame(frame, mended.len()))
}

/// Writes the size and the end of a frame whose payload has become so many bytes long; returns the frame's length.
fn close_frame(frame: &mut [u8], payload: usize) -> usize {
    // Fits: it is not longer than it was, and its size stood in four bytes.
    frame[3..HEAD_BYTES].copy_from_slice(&u32::try_from(payload).unwrap_or(u32::MAX).to_be_bytes());
    frame[HEAD_BYTES + payload] = frame::FRAME_END;
    HEAD_BYTES + payload + END_BYTES
}

/// Whether amq-protocol reads this content header.
fn is_sound(payload: &[u8]) -> bool {
    let Some(flags) = frame::property_flags(payload) else { return false };
    let mut rest = &payload[CONTENT_HEAD_BYTES..];
    for (flag, kind) in PROPERTIES {
        if flags & flag == 0 {
            continue;
        }
        let Some(value) = frame::split_property(&mut rest, kind) else { return false };
        let sound = match kind {
            PropertyKind::Text => std::str::from_utf8(&value[1..]).is_ok(),
            PropertyKind::Table => table::is_sound(&value[4..]),
            PropertyKind::Octet | PropertyKind::Timestamp => true,
        };
        if !sound {
            return false;
        }
    }
    rest.is_empty()
}

/// The content header with what can be kept: properties up to the first that cannot be read, each mended.
fn mend(payload: &[u8]) -> Vec<u8> {
    let flags = frame::property_flags(payload).unwrap_or(0);
    let (fixed, mut rest) = payload.split_at(CONTENT_HEAD_BYTES);
    let mut mended = Vec::with_capacity(payload.len());
    mended.extend_from_slice(fixed);
    let mut kept = 0;
    for (flag, kind) in PROPERTIES {
        if flags & flag == 0 {
            continue;
        }
        let Some(value) = frame::split_property(&mut rest, kind) else { break };
        match kind {
            PropertyKind::Text => table::push_short_string(&value[1..], &mut mended),
            PropertyKind::Table => table::mend(&value[4..], &mut mended),
            PropertyKind::Octet | PropertyKind::Timestamp => mended.extend_from_slice(value),
        }
        kept |= flag;
    }
    mended[CONTENT_HEAD_BYTES - 2..CONTENT_HEAD_BYTES].copy_from_slice(&kept.to_be_bytes());
    mended
}

/// Takes a content header in that is larger than lapin accepts, and keeps it without its headers table.
///
/// RabbitMQ splits bodies by the receiver's frame size but never a content header, and a publisher may have negotiated a
/// larger one. The table goes by without being held; all else that a legal content header has fits [`KEPT_BYTES_MAX`].
#[derive(Debug)]
pub(super) struct Shrinking {
    /// Bytes of the frame to come.
    left: usize,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    BeforeTable,
    Table(usize),
    AfterTable,
}

/// Frame head, fixed part, content type and encoding, length of the table: after so many bytes the table is found.
const BEFORE_TABLE_BYTES_MAX: usize = HEAD_BYTES + CONTENT_HEAD_BYTES + 2 * 256 + 4;
/// What is kept of an oversize content header. The other properties, eight texts of 256 bytes among them, need fewer; and it
/// is less than the smallest frame size of AMQP, 4096.
const KEPT_BYTES_MAX: usize = 3072;

impl Shrinking {
    pub(super) fn new(frame_bytes: usize) -> Shrinking {
        Shrinking { left: frame_bytes, stage: Stage::BeforeTable }
    }

    /// Bytes to come until the end of the frame.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// Takes bytes of the frame, at most to its end, and adds to `kept` what is kept. Returns how many were taken. When none
    /// are left, `kept` is a whole frame.
    pub(super) fn take(&mut self, bytes: &[u8], kept: &mut Vec<u8>) -> usize {
        let mut taken = 0;
        while taken < bytes.len() && self.left > 0 {
            let offered = &bytes[taken..];
            let run = match self.stage {
                Stage::BeforeTable => BEFORE_TABLE_BYTES_MAX - kept.len(),
                Stage::Table(table) => table,
                // The end octet is kept in any case.
                Stage::AfterTable if self.left > 1 => self.left - 1,
                Stage::AfterTable => 1,
            };
            let run = run.min(offered.len()).min(self.left);
            let room = match self.stage {
                Stage::BeforeTable => run,
                Stage::Table(_) => 0,
                Stage::AfterTable if self.left > 1 => KEPT_BYTES_MAX.saturating_sub(kept.len()),
                Stage::AfterTable => 1,
            };
            kept.extend_from_slice(&offered[..run.min(room)]);
            self.left -= run;
            taken += run;
            self.advance(run, kept);
        }
        if self.left == 0 && kept.last() == Some(&frame::FRAME_END) {
            let payload = kept.len() - HEAD_BYTES - END_BYTES;
            close_frame(kept, payload);
        }
        taken
    }

    fn advance(&mut self, run: usize, kept: &mut Vec<u8>) {
        match &mut self.stage {
            Stage::BeforeTable if kept.len() == BEFORE_TABLE_BYTES_MAX => self.cut_table(kept),
            Stage::Table(left) => {
                *left -= run;
                if *left == 0 {
                    self.stage = Stage::AfterTable;
                }
            }
            Stage::BeforeTable | Stage::AfterTable => {}
        }
    }

    /// Makes the table in `kept` an empty one.
    fn cut_table(&mut self, kept: &mut Vec<u8>) {
        self.stage = Stage::AfterTable;
        let Some(length_at) = frame::table_at(&kept[HEAD_BYTES..]).map(|at| HEAD_BYTES + at) else { return };
        let Some(bytes) = frame::u32_at(kept, length_at) else { return };
        kept[length_at..length_at + 4].fill(0);
        let content_at = length_at + 4;
        let here = (bytes as usize).min(kept.len() - content_at);
        kept.drain(content_at..content_at + here);
        // A table that claims more than the frame ends with it.
        let to_come = (bytes as usize - here).min(self.left.saturating_sub(END_BYTES));
        if to_come > 0 {
            self.stage = Stage::Table(to_come);
        }
    }
}
