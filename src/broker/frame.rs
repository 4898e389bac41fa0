//! The little of AMQP 0-9-1's wire format that the guard in front of lapin has to read (AMQP 0-9-1, 2.3.5 and 4.2).
//!
//! Pure functions over byte slices; none panics, recurses or allocates more than a few short strings, whatever the bytes
//! are. What cannot be read yields `None`. This is not a codec: lapin's is, behind the guard.

/// Type, channel and size in front of every payload.
pub(super) const HEAD_BYTES: usize = 7;
/// The octet 0xCE after every payload.
pub(super) const END_BYTES: usize = 1;
pub(super) const FRAME_END: u8 = 0xCE;
/// Class, weight, body size and property flags in front of a content header's properties.
pub(super) const CONTENT_HEAD_BYTES: usize = 14;

/// Class and method of the methods that the guard knows.
pub(super) mod methods {
    pub(in crate::broker) const CONNECTION_START: (u16, u16) = (10, 10);
    pub(in crate::broker) const CONNECTION_TUNE: (u16, u16) = (10, 30);
    pub(in crate::broker) const CONNECTION_CLOSE: (u16, u16) = (10, 50);
    pub(in crate::broker) const CHANNEL_CLOSE: (u16, u16) = (20, 40);
    pub(in crate::broker) const BASIC_RETURN: (u16, u16) = (60, 50);
    pub(in crate::broker) const BASIC_DELIVER: (u16, u16) = (60, 60);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PropertyKind {
    Octet,
    Table,
    Text,
    Timestamp,
}

const HEADERS: u16 = 1 << 13;
const MESSAGE_ID: u16 = 1 << 7;

/// The properties of class basic in the order of the wire, with the flag of each (AMQP 0-9-1, 1.8.1 and 4.2.6.1).
pub(super) const PROPERTIES: [(u16, PropertyKind); 14] = [
    (1 << 15, PropertyKind::Text), // content-type
    (1 << 14, PropertyKind::Text), // content-encoding
    (HEADERS, PropertyKind::Table),
    (1 << 12, PropertyKind::Octet), // delivery-mode
    (1 << 11, PropertyKind::Octet), // priority
    (1 << 10, PropertyKind::Text),  // correlation-id
    (1 << 9, PropertyKind::Text),   // reply-to
    (1 << 8, PropertyKind::Text),   // expiration
    (MESSAGE_ID, PropertyKind::Text),
    (1 << 6, PropertyKind::Timestamp),
    (1 << 5, PropertyKind::Text), // type
    (1 << 4, PropertyKind::Text), // user-id
    (1 << 3, PropertyKind::Text), // app-id
    (1 << 2, PropertyKind::Text), // cluster-id
];

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

/// How many bytes have to come until [`scan_head`] can tell more, after it said `Incomplete`.
pub(super) fn head_bytes_missing(bytes: &[u8]) -> usize {
    let wanted = if bytes.len() < HEAD_BYTES { HEAD_BYTES } else { HEAD_BYTES + 4 };
    wanted.saturating_sub(bytes.len()).max(1)
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

/// Which properties a content header has.
pub(super) fn property_flags(payload: &[u8]) -> Option<u16> {
    u16_at(payload, CONTENT_HEAD_BYTES - 2)
}

/// Splits a property off, with the length of a text or a table.
pub(super) fn split_property<'a>(rest: &mut &'a [u8], kind: PropertyKind) -> Option<&'a [u8]> {
    let bytes = match kind {
        PropertyKind::Octet => 1,
        PropertyKind::Table => (u32_at(rest, 0)? as usize).checked_add(4)?,
        PropertyKind::Text => 1 + usize::from(*rest.first()?),
        PropertyKind::Timestamp => 8,
    };
    let (value, after) = rest.split_at_checked(bytes)?;
    *rest = after;
    Some(value)
}

/// What is left of a content header from the property with this flag on; `None` if it has not that one.
fn from_property(payload: &[u8], wanted: u16) -> Option<&[u8]> {
    let flags = property_flags(payload)?;
    let mut rest = payload.get(CONTENT_HEAD_BYTES..)?;
    for (flag, kind) in PROPERTIES {
        if flags & flag == 0 {
            continue;
        }
        if flag == wanted {
            return Some(rest);
        }
        split_property(&mut rest, kind)?;
    }
    None
}

/// Where the length of the headers table stands in a content header frame's payload, if it has one.
pub(super) fn table_at(payload: &[u8]) -> Option<usize> {
    from_property(payload, HEADERS).map(|rest| payload.len() - rest.len())
}

/// Reads the property `message-id` out of a content header frame's payload (class basic).
pub(super) fn message_id(payload: &[u8]) -> Option<String> {
    short_string(&mut from_property(payload, MESSAGE_ID)?)
}

/// Exchange and routing key of a `basic.deliver` method frame.
pub(super) fn delivered_from(payload: &[u8]) -> Option<(String, String)> {
    let mut rest = payload.get(4..)?;
    split_short_string(&mut rest)?;
    // Delivery tag, redelivered.
    rest = rest.get(9..)?;
    Some((short_string(&mut rest)?, short_string(&mut rest)?))
}

/// The frame size that a `connection.tune` method frame offers; 0 is no limit.
pub(super) fn tune_frame_max(payload: &[u8]) -> Option<u32> {
    u32_at(payload, 4 + 2)
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

/// How long a table value of this type is; nested tables and arrays count as a whole.
pub(super) fn value_bytes(kind: u8, rest: &[u8]) -> Option<usize> {
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

/// Splits a short string off, without its length.
pub(super) fn split_short_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (&bytes, after) = rest.split_first()?;
    let (text, after) = after.split_at_checked(usize::from(bytes))?;
    *rest = after;
    Some(text)
}

fn short_string(rest: &mut &[u8]) -> Option<String> {
    split_short_string(rest).map(|text| String::from_utf8_lossy(text).into_owned())
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// For tests of what comes in frames.
#[cfg(test)]
pub(super) fn raw_frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(channel.to_be_bytes());
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes.push(0xCE);
    bytes
}
