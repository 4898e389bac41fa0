//! Escapes in header names and values (STOMP 1.2, "Value Encoding"). Does not know which frames have them.

use std::borrow::Cow;

/// The sequence is none of `\n`, `\r`, `\c` and `\\`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UndefinedEscape;

/// Resolves escapes in a single pass: `\\r` is a backslash and an r. Copies only if there is an escape.
pub(super) fn unescape(text: &str) -> Result<Cow<'_, str>, UndefinedEscape> {
    let Some((plain, mut rest)) = text.split_once('\\') else { return Ok(Cow::Borrowed(text)) };
    let mut resolved = String::with_capacity(text.len());
    resolved.push_str(plain);
    // `rest` begins just behind a backslash.
    loop {
        let mut characters = rest.chars();
        resolved.push(match characters.next() {
            Some('n') => '\n',
            Some('r') => '\r',
            Some('c') => ':',
            Some('\\') => '\\',
            _ => return Err(UndefinedEscape),
        });
        let Some((plain, behind)) = characters.as_str().split_once('\\') else {
            resolved.push_str(characters.as_str());
            return Ok(Cow::Owned(resolved));
        };
        resolved.push_str(plain);
        rest = behind;
    }
}

/// Appends the text with backslash, LF, CR and colon escaped.
///
/// NUL has no escape, and many clients end a frame at the first one wherever it stands; it becomes U+FFFD.
pub(super) fn escape_into(text: &str, output: &mut impl bytes::BufMut) {
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|byte| is_escaped(*byte)) {
        output.put_slice(&rest[..at]);
        output.put_slice(match rest[at] {
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b':' => b"\\c",
            b'\0' => "\u{fffd}".as_bytes(),
            _ => b"\\\\",
        });
        rest = &rest[at + 1..];
    }
    output.put_slice(rest);
}

/// How many bytes [`escape_into`] would not write as they are.
pub(super) fn count_escaped(text: &[u8]) -> usize {
    // Sums of bytes and no branch: the compiler makes of it a loop over many bytes at once.
    let count = |chunk: &[u8]| chunk.iter().map(|byte| u8::from(is_escaped(*byte))).sum::<u8>();
    text.chunks(usize::from(u8::MAX)).map(|chunk| usize::from(count(chunk))).sum()
}

fn is_escaped(byte: u8) -> bool {
    matches!(byte, b'\\' | b'\n' | b'\r' | b':' | b'\0')
}

#[cfg(test)]
mod tests {
    use super::{UndefinedEscape, count_escaped, escape_into, unescape};
    use std::borrow::Cow;

    #[test]
    fn the_four_escapes_are_resolved() {
        assert_eq!(unescape(r"a\nb\rc\cd\\e").unwrap(), "a\nb\rc:d\\e");
        assert_eq!(unescape(r"\\\\").unwrap(), r"\\");
    }

    #[test]
    fn text_without_escapes_is_not_copied() {
        assert!(matches!(unescape("plain é"), Ok(Cow::Borrowed("plain é"))));
    }

    #[test]
    fn escapes_are_resolved_once_only() {
        assert_eq!(unescape(r"\\r").unwrap(), r"\r");
        assert_eq!(unescape(r"\\\r").unwrap(), "\\\r");
    }

    #[test]
    fn other_sequences_are_undefined() {
        for text in [r"\t", r"\N", r"a\", r"\\\", r"\é", r"\ ", r"\n\0"] {
            assert_eq!(unescape(text), Err(UndefinedEscape), "{text}");
        }
    }

    #[test]
    fn escaping_covers_exactly_the_four_characters() {
        let mut output = Vec::new();
        escape_into(":a\\b\r\nc\té:", &mut output);
        assert_eq!(output, "\\ca\\\\b\\r\\nc\té\\c".as_bytes());
    }

    #[test]
    fn a_nul_is_replaced() {
        let mut output = Vec::new();
        escape_into("a\0\0b", &mut output);
        assert_eq!(output, "a\u{fffd}\u{fffd}b".as_bytes());
    }

    #[test]
    fn what_escaping_changes_is_counted() {
        for (text, count) in [("", 0), ("plain é", 0), (":a\\b\r\nc\td\0", 5)] {
            assert_eq!(count_escaped(text.as_bytes()), count, "{text:?}");
        }
        assert_eq!(count_escaped(&[b':'; 1000]), 1000);
    }
}
