//! The little of AMQP 0-9-1's wire format that the guard in front of lapin has to read (AMQP 0-9-1, 2.3.5 and 4.2).
//!
//! Pure functions over byte slices; none panics, recurses or allocates more than a few short strings, whatever the bytes
//! are. What cannot be read yields `None`. This is not a codec: lapin's is, behind the guard.

/// Type, channel and size in front of every payload.
pub(super) const HEAD_BYTES: usize = 7;
/// The octet 0xCE after every payload.
pub(super) const END_BYTES: usize = 1;
const FRAME_END: u8 = 0xCE;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Method { class: u16, method: u16 },
    Header,
    Body,
    Heartbeat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) channel: u16,
    /// Bytes of payload, without head and end octet.
    pub(super) payload: usize,
}

impl Head {
    /// Bytes of the whole frame.
    pub(super) fn frame_bytes(&self) -> usize {
        HEAD_BYTES + self.payload + END_BYTES
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeadScan {
    /// Too few bytes to tell; at most 11 are needed, a method frame's head with class and method.
    Incomplete,
    /// Not AMQP frames: the protocol header with which a server refuses a version, or another protocol.
    Foreign,
    Found(Head),
}

/// Reads a frame's head from the start of `bytes`.
pub(super) fn scan_head(bytes: &[u8]) -> HeadScan {
    let Some(&kind) = bytes.first() else { return HeadScan::Incomplete };
    if !matches!(kind, 1 | 2 | 3 | 8) {
        return HeadScan::Foreign;
    }
    let (Some(channel), Some(payload)) = (u16_at(bytes, 1), u32_at(bytes, 3)) else { return HeadScan::Incomplete };
    let payload = payload as usize;
    let kind = match kind {
        1 if payload >= 4 => match (u16_at(bytes, HEAD_BYTES), u16_at(bytes, HEAD_BYTES + 2)) {
            (Some(class), Some(method)) => Kind::Method { class, method },
            _ => return HeadScan::Incomplete,
        },
        1 => Kind::Method { class: 0, method: 0 },
        2 => Kind::Header,
        3 => Kind::Body,
        _ => Kind::Heartbeat,
    };
    HeadScan::Found(Head { kind, channel, payload })
}

/// The payload of a whole frame, if it ends as a frame must.
pub(super) fn payload(frame: &[u8]) -> Option<&[u8]> {
    match frame.split_last() {
        Some((&FRAME_END, rest)) => rest.get(HEAD_BYTES..),
        _ => None,
    }
}

/// `basic.return` without the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Return {
    pub(super) reply_code: u16,
    pub(super) reply_text: String,
    pub(super) exchange: String,
    pub(super) routing_key: String,
}

/// Reads the payload of a `basic.return` method frame.
pub(super) fn basic_return(payload: &[u8]) -> Option<Return> {
    let mut rest = payload.get(4..)?;
    let reply_code = u16_at(rest, 0)?;
    rest = &rest[2..];
    let reply_text = short_string(&mut rest)?;
    let exchange = short_string(&mut rest)?;
    let routing_key = short_string(&mut rest)?;
    Some(Return { reply_code, reply_text, exchange, routing_key })
}

/// Reads reply code and text of a `channel.close` method frame.
pub(super) fn channel_close(payload: &[u8]) -> Option<(u16, String)> {
    let mut rest = payload.get(4..)?;
    let code = u16_at(rest, 0)?;
    rest = &rest[2..];
    Some((code, short_string(&mut rest)?))
}

/// The body size that a content header announces.
pub(super) fn body_bytes(payload: &[u8]) -> Option<u64> {
    let bytes = payload.get(4..12)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// Reads the property `message-id` out of a content header frame's payload (class basic).
pub(super) fn message_id(payload: &[u8]) -> Option<String> {
    const CONTENT_TYPE: u16 = 1 << 15;
    const CONTENT_ENCODING: u16 = 1 << 14;
    const HEADERS: u16 = 1 << 13;
    const DELIVERY_MODE: u16 = 1 << 12;
    const PRIORITY: u16 = 1 << 11;
    const CORRELATION_ID: u16 = 1 << 10;
    const REPLY_TO: u16 = 1 << 9;
    const EXPIRATION: u16 = 1 << 8;
    const MESSAGE_ID: u16 = 1 << 7;

    let flags = u16_at(payload, 12)?;
    if flags & MESSAGE_ID == 0 {
        return None;
    }
    let mut rest = payload.get(14..)?;
    for flag in [CONTENT_TYPE, CONTENT_ENCODING] {
        if flags & flag != 0 {
            skip_short_string(&mut rest)?;
        }
    }
    if flags & HEADERS != 0 {
        let table = u32_at(rest, 0)? as usize;
        rest = rest.get(4..)?.get(table..)?;
    }
    for flag in [DELIVERY_MODE, PRIORITY] {
        if flags & flag != 0 {
            rest = rest.get(1..)?;
        }
    }
    for flag in [CORRELATION_ID, REPLY_TO, EXPIRATION] {
        if flags & flag != 0 {
            skip_short_string(&mut rest)?;
        }
    }
    short_string(&mut rest)
}

/// Reads `version` out of the server properties of a `connection.start` method frame.
pub(super) fn server_version(payload: &[u8]) -> Option<String> {
    // class, method, major, minor, then the table.
    let rest = payload.get(6..)?;
    let table = u32_at(rest, 0)? as usize;
    let mut rest = rest.get(4..)?.get(..table)?;
    while !rest.is_empty() {
        let name = short_string(&mut rest)?;
        let (&kind, after) = rest.split_first()?;
        rest = after;
        let bytes = value_bytes(kind, rest)?;
        let value = rest.get(..bytes)?;
        if name == "version" && kind == b'S' {
            return Some(String::from_utf8_lossy(value.get(4..)?).into_owned());
        }
        rest = rest.get(bytes..)?;
    }
    None
}

/// How long a table value of this type is; nested tables and arrays are skipped as a whole, so nothing recurses.
fn value_bytes(kind: u8, rest: &[u8]) -> Option<usize> {
    Some(match kind {
        b't' | b'b' | b'B' => 1,
        b's' | b'U' | b'u' => 2,
        b'I' | b'i' | b'f' => 4,
        b'D' => 5,
        b'l' | b'L' | b'd' | b'T' => 8,
        b'V' => 0,
        b'S' | b'x' | b'A' | b'F' => (u32_at(rest, 0)? as usize).checked_add(4)?,
        _ => return None,
    })
}

fn short_string(rest: &mut &[u8]) -> Option<String> {
    let (&bytes, after) = rest.split_first()?;
    let text = after.get(..usize::from(bytes))?;
    *rest = &after[usize::from(bytes)..];
    Some(String::from_utf8_lossy(text).into_owned())
}

fn skip_short_string(rest: &mut &[u8]) -> Option<()> {
    let (&bytes, after) = rest.split_first()?;
    *rest = after.get(usize::from(bytes)..)?;
    Some(())
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
