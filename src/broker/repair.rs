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
    let end = HEAD_BYTES + mended.len();
    frame[HEAD_BYTES..end].copy_from_slice(&mended);
    frame[end] = frame::FRAME_END;
    write_size(frame, mended.len());
    Outcome::Repaired(end + END_BYTES)
}

/// Writes the size of a frame whose payload is not longer than it was.
pub(super) fn write_size(frame: &mut [u8], payload: usize) {
    // Fits: the size before stood in four bytes.
    frame[3..HEAD_BYTES].copy_from_slice(&u32::try_from(payload).unwrap_or(u32::MAX).to_be_bytes());
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
