//! Why bytes are not a frame. Says it in words that may go to the peer and into a log: never a header's value.

/// Characters shown of what a peer sent.
const EXCERPT_CHARS_MAX: usize = 40;

/// Nothing can be decoded after any of these: where the next frame begins is unknown.
///
/// Lines are header lines, counted from 1. Names and commands are shown shortened, control characters escaped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error(
        "the byte after the {content_length} bytes that content-length announced is not NUL; content-length must be the \
         body's length in bytes, not in characters"
    )]
    BodyNotTerminated { content_length: usize },
    #[error("between two frames stands a carriage return without a line feed behind it")]
    CarriageReturnBetweenFrames,
    #[error("the command \"{command}\" is followed by a carriage return without a line feed behind it")]
    CarriageReturnInCommand { command: String },
    #[error(
        "header line {line} has a carriage return without a line feed behind it; inside a header it is written \\r"
    )]
    CarriageReturnInHeader { line: usize },
    #[error("the command \"{command}\" is not UTF-8")]
    CommandNotUtf8 { command: String },
    #[error("a command has at most {} bytes, this one is longer: \"{command}\"", super::COMMAND_BYTES_MAX)]
    CommandTooLong { command: String },
    #[error("content-length is negative; it must be the body's length in bytes")]
    ContentLengthNegative,
    #[error("content-length announces a body that does not fit into a frame of at most {limit} bytes")]
    ContentLengthTooLarge { limit: usize },
    #[error("the frame is larger than {limit} bytes; each frame ends with NUL")]
    FrameTooLarge { limit: usize },
    #[error("header line {line} is longer than {limit} bytes")]
    HeaderLineTooLong { line: usize, limit: usize },
    #[error("the frame's header lines take more than {limit} bytes together; large values belong into the body")]
    HeadersTooLarge { limit: usize },
    #[error("the name \"{name}\" in header line {line} is not UTF-8")]
    HeaderNameNotUtf8 { line: usize, name: String },
    #[error("the value of header \"{name}\" in header line {line} is not UTF-8")]
    HeaderValueNotUtf8 { line: usize, name: String },
    /// The line is not shown: behind an unescaped line feed it is the rest of a value.
    #[error(
        "header line {line} has no colon between name and value; an empty line ends the headers, and a line feed in a \
         value is written \\n"
    )]
    HeaderWithoutColon { line: usize },
    #[error("the command \"{command}\" is followed by NUL; a line feed and an empty line must come before it")]
    NulInCommand { command: String },
    #[error("header line {line} has a NUL; an empty line must come before the body")]
    NulInHeader { line: usize },
    #[error("the frame has more than {limit} header lines")]
    TooManyHeaderLines { limit: usize },
    #[error("the frame has more than {limit} different headers")]
    TooManyHeaders { limit: usize },
    #[error(
        "the name \"{name}\" in header line {line} has an undefined escape; there are only \\n, \\r, \\c and \\\\, and a \
         backslash is written \\\\"
    )]
    UndefinedEscapeInName { line: usize, name: String },
    #[error(
        "the value of header \"{name}\" in header line {line} has an undefined escape; there are only \\n, \\r, \\c and \
         \\\\, and a backslash is written \\\\"
    )]
    UndefinedEscapeInValue { line: usize, name: String },
}

impl DecodeError {
    /// Whether a [`super::Limits`] was crossed: well formed as far as it was read, but too much of it.
    ///
    /// Not so for a command that is too long. No command is that long; such bytes are not STOMP.
    pub fn is_size_limit(&self) -> bool {
        matches!(
            self,
            DecodeError::ContentLengthTooLarge { .. }
                | DecodeError::FrameTooLarge { .. }
                | DecodeError::HeaderLineTooLong { .. }
                | DecodeError::HeadersTooLarge { .. }
                | DecodeError::TooManyHeaderLines { .. }
                | DecodeError::TooManyHeaders { .. }
        )
    }
}

/// The beginning of what a peer sent, fit to be shown.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    // A character has at most four bytes.
    let head = &bytes[..bytes.len().min(EXCERPT_CHARS_MAX * 4)];
    let text = String::from_utf8_lossy(head);
    let mut shown: String = text.chars().flat_map(char::escape_debug).take(EXCERPT_CHARS_MAX + 1).collect();
    if let Some((cut, _)) = shown.char_indices().nth(EXCERPT_CHARS_MAX - 1)
        && shown[cut..].chars().nth(1).is_some()
    {
        shown.truncate(cut);
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::{DecodeError, excerpt};

    #[test]
    fn excerpts_have_at_most_forty_characters() {
        assert_eq!(excerpt(&[b'a'; 40]), "a".repeat(40));
        assert_eq!(excerpt(&[b'a'; 41]), format!("{}…", "a".repeat(39)));
        assert_eq!(excerpt("é".repeat(1000).as_bytes()), format!("{}…", "é".repeat(39)));
        assert_eq!(excerpt("\u{10ffff}".repeat(1000).as_bytes()).chars().count(), 40);
    }

    #[test]
    fn excerpts_have_no_control_characters() {
        assert_eq!(excerpt(b"a\0\t\x1b[31m\x7f\xff\""), "a\\0\\t\\u{1b}[31m\\u{7f}\u{fffd}\\\"");
        assert!(!excerpt(&(0..=255).collect::<Vec<u8>>()).contains(char::is_control));
    }

    #[test]
    fn only_crossed_limits_are_size_limits() {
        assert!(DecodeError::FrameTooLarge { limit: 1 }.is_size_limit());
        assert!(DecodeError::ContentLengthTooLarge { limit: 1 }.is_size_limit());
        assert!(DecodeError::HeaderLineTooLong { line: 1, limit: 1 }.is_size_limit());
        assert!(DecodeError::TooManyHeaders { limit: 1 }.is_size_limit());
        assert!(!DecodeError::CommandTooLong { command: String::new() }.is_size_limit());
        assert!(!DecodeError::ContentLengthNegative.is_size_limit());
    }

    #[test]
    fn texts_show_escapes_as_they_are_written() {
        let error = DecodeError::UndefinedEscapeInValue { line: 2, name: "login".into() };
        assert_eq!(
            error.to_string(),
            r#"the value of header "login" in header line 2 has an undefined escape; there are only \n, \r, \c and \\, and a backslash is written \\"#
        );
        let error = DecodeError::CommandTooLong { command: "GET /".into() };
        assert_eq!(error.to_string(), r#"a command has at most 32 bytes, this one is longer: "GET /""#);
    }
}
