//! AMQP field tables and arrays as bytes: whether amq-protocol can read one, and what of it can be kept if not.
//!
//! RabbitMQ checks a table's types and lengths when a message is published, but neither how deep it is nested nor whether
//! names are UTF-8. amq-protocol recurses per level, without a bound, and refuses names that are not UTF-8. Its types are
//! RabbitMQ's and `U` besides (AMQP 0-9-1, 4.2.1, with RabbitMQ's errata: `s` is a short int, `l` and `L` are signed).
//!
//! Everything here is linear in the bytes and recurses [`NESTING_MAX`] levels at most. It allocates only to repair.

use super::frame::{split_short_string, table_at, value_bytes};

/// Levels of tables and arrays that reach lapin, the outermost included. Real headers have three or four (`x-death` is a
/// table in an array in the table); lapin's thread has room for hundreds.
pub(super) const NESTING_MAX: usize = 32;
/// The type of no value.
const VOID: u8 = b'V';

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Array,
    Table,
}

/// One value, with its name in a table.
struct Entry<'a> {
    /// Empty in an array.
    name: &'a [u8],
    kind: u8,
    /// Without the type.
    value: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Splits the first entry off; `None` if there is none or it cannot be read.
    fn split(rest: &mut &'a [u8], shape: Shape) -> Option<Entry<'a>> {
        let mut after = *rest;
        let name = match shape {
            Shape::Array => &[],
            Shape::Table => split_short_string(&mut after)?,
        };
        let (&kind, after) = after.split_first()?;
        let (value, after) = after.split_at_checked(value_bytes(kind, after)?)?;
        *rest = after;
        Some(Entry { name, kind, value })
    }

    /// The content of a table or an array, without its length.
    fn nested(&self) -> Option<(Shape, &'a [u8])> {
        match self.kind {
            b'A' => Some((Shape::Array, self.value.get(4..)?)),
            b'F' => Some((Shape::Table, self.value.get(4..)?)),
            _ => None,
        }
    }
}

/// Whether the content of a table, without its length, can be given to amq-protocol.
pub(super) fn is_sound(content: &[u8]) -> bool {
    is_sound_at(1, Shape::Table, content)
}

/// The number (`l`, 64 bits) of this name among the headers of a content header frame's payload; not one within another value.
pub(super) fn number_in_headers(payload: &[u8], name: &[u8]) -> Option<i64> {
    let (length, rest) = payload.get(table_at(payload)?..)?.split_first_chunk()?;
    let mut rest = rest.get(..u32::from_be_bytes(*length) as usize)?;
    while let Some(entry) = Entry::split(&mut rest, Shape::Table) {
        if entry.name == name && entry.kind == b'l' {
            return Some(i64::from_be_bytes(entry.value.try_into().ok()?));
        }
    }
    None
}

fn is_sound_at(level: usize, shape: Shape, mut rest: &[u8]) -> bool {
    while !rest.is_empty() {
        let Some(entry) = Entry::split(&mut rest, shape) else { return false };
        if std::str::from_utf8(entry.name).is_err() {
            return false;
        }
        if let Some((shape, content)) = entry.nested()
            && (level == NESTING_MAX || !is_sound_at(level + 1, shape, content))
        {
            return false;
        }
    }
    true
}

/// Appends what can be kept of a table's content, with its length in front, which is never more than it was: entries up to
/// the first that cannot be read, `?` for bytes that are not UTF-8 in names, no value where it is nested too deep.
pub(super) fn mend(content: &[u8], out: &mut Vec<u8>) {
    mend_at(1, Shape::Table, content, out);
}

fn mend_at(level: usize, shape: Shape, mut rest: &[u8], out: &mut Vec<u8>) {
    let length_at = out.len();
    out.extend([0; 4]);
    while let Some(Entry { name, kind, value }) = Entry::split(&mut rest, shape) {
        if shape == Shape::Table {
            push_short_string(name, out);
        }
        match (Entry { name, kind, value }).nested() {
            Some(_) if level == NESTING_MAX => out.push(VOID),
            Some((shape, content)) => {
                out.push(kind);
                mend_at(level + 1, shape, content, out);
            }
            None => {
                out.push(kind);
                out.extend_from_slice(value);
            }
        }
    }
    // Fits: it is not longer than what was read, whose length stood in four bytes.
    let bytes = u32::try_from(out.len() - length_at - 4).unwrap_or(u32::MAX);
    out[length_at..length_at + 4].copy_from_slice(&bytes.to_be_bytes());
}

/// Appends a short string, mended.
pub(super) fn push_short_string(text: &[u8], out: &mut Vec<u8>) {
    // Fits: it was split off a short string.
    out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
    let at = out.len();
    out.extend_from_slice(text);
    mend_text(&mut out[at..]);
}

/// Replaces each byte that is not part of UTF-8 by `?`, so that the length stays. Says whether there were any.
pub(super) fn mend_text(text: &mut [u8]) -> bool {
    let mut at = 0;
    while let Err(error) = std::str::from_utf8(&text[at..]) {
        let from = at + error.valid_up_to();
        at = error.error_len().map_or(text.len(), |bytes| from + bytes);
        text[from..at].fill(b'?');
    }
    at > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_bytes_that_are_wrong_are_replaced() {
        for (text, mended) in [
            (&b"plain"[..], &b"plain"[..]),
            ("ünï€😀".as_bytes(), "ünï€😀".as_bytes()),
            (b"\xff", b"?"),
            (b"a\xc3", b"a?"),
            (b"a\xc3b\xfe\xffc\xe2\x82", b"a?b??c??"),
            (b"\xf0\x9f\x98x\xc3\xa9", b"???x\xc3\xa9"),
        ] {
            let mut bytes = text.to_vec();
            assert_eq!(mend_text(&mut bytes), text != mended);
            assert_eq!(bytes, mended);
        }
    }

    proptest! {
        #[test]
        fn mended_text_is_utf8_and_as_long(text in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut mended = text.clone();
            prop_assert_eq!(mend_text(&mut mended), std::str::from_utf8(&text).is_err());
            prop_assert!(std::str::from_utf8(&mended).is_ok());
            prop_assert_eq!(mended.len(), text.len());
        }

        #[test]
        fn mending_makes_sound_and_never_longer(content in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut out = Vec::new();
            mend(&content, &mut out);
            prop_assert!(is_sound(&out[4..]));
            prop_assert!(out.len() <= content.len() + 4);
            if is_sound(&content) {
                prop_assert_eq!(&out[4..], &content[..]);
            }
        }
    }
}
