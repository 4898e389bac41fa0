//! Frames to bytes, in the form in which RabbitMQ's STOMP plugin writes them. Never fails and bounds nothing.

use super::escape::escape_into;
use super::{Frame, Headers};
use bytes::{BufMut, BytesMut};

/// Written from the body's length only, whatever the frame's headers say.
const CONTENT_LENGTH: &str = "content-length";

/// Room for what is neither header text nor body: line ends, escapes, content-length, NUL.
const OVERHEAD_BYTES: usize = 64;

/// Appends `COMMAND LF (name:value LF)* [content-length:n LF] LF body NUL LF`.
///
/// Names and values are escaped in every frame of every version, CONNECTED and 1.0 included: a deviation from STOMP that
/// RabbitMQ's plugin makes and clients are used to. A NUL in them, for which there is no escape, becomes U+FFFD.
/// `content-length` stands last and only if there is a body; one among the frame's headers is skipped. The command is
/// written as it is, so an unknown one must not come from a peer.
pub fn encode(frame: &Frame, output: &mut BytesMut) {
    output.reserve(frame.headers.text_bytes() + frame.body.len() + OVERHEAD_BYTES);
    output.put_slice(frame.command.as_str().as_bytes());
    output.put_u8(b'\n');
    match frame.headers.written(CONTENT_LENGTH) {
        Some(text) => output.put_slice(text.as_bytes()),
        None => escape_headers(&frame.headers, output),
    }
    if !frame.body.is_empty() {
        output.put_slice(CONTENT_LENGTH.as_bytes());
        output.put_u8(b':');
        output.put_slice(itoa::Buffer::new().format(frame.body.len()).as_bytes());
        output.put_u8(b'\n');
    }
    output.put_u8(b'\n');
    output.put_slice(&frame.body);
    output.put_slice(b"\0\n");
}

fn escape_headers(headers: &Headers, output: &mut BytesMut) {
    for (name, value) in headers.iter().filter(|(name, _)| *name != CONTENT_LENGTH) {
        escape_into(name, output);
        output.put_u8(b':');
        escape_into(value, output);
        output.put_u8(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::encode;
    use crate::stomp::{Command, Frame};
    use bytes::{Bytes, BytesMut};

    fn encoded(frame: &Frame) -> String {
        let mut output = BytesMut::new();
        encode(frame, &mut output);
        String::from_utf8(output.to_vec()).unwrap()
    }

    fn with_body(frame: Frame, body: &'static str) -> Frame {
        Frame { body: Bytes::from_static(body.as_bytes()), ..frame }
    }

    #[test]
    fn a_frame_without_body_has_no_content_length() {
        let frame = Frame::new(Command::Receipt).with_header("receipt-id", "1");
        assert_eq!(encoded(&frame), "RECEIPT\nreceipt-id:1\n\n\0\n");
        assert_eq!(encoded(&Frame::new(Command::Connected)), "CONNECTED\n\n\0\n");
    }

    #[test]
    fn content_length_is_the_last_header() {
        let frame = Frame::new(Command::Message).with_header("b", "2").with_header("a", "1");
        assert_eq!(encoded(&with_body(frame, "é\0é")), "MESSAGE\nb:2\na:1\ncontent-length:5\n\né\0é\0\n");
    }

    #[test]
    fn content_length_among_the_headers_is_skipped() {
        let frame = Frame::new(Command::Message).with_header("content-length", "999").with_header("a", "1");
        assert_eq!(encoded(&frame), "MESSAGE\na:1\n\n\0\n");
        assert_eq!(encoded(&with_body(frame, "x")), "MESSAGE\na:1\ncontent-length:1\n\nx\0\n");
    }

    #[test]
    fn names_and_values_are_escaped_in_every_frame() {
        for command in [Command::Connected, Command::Message, Command::Error] {
            let frame = Frame::new(command.clone()).with_header("a:\n", "\\r\r:");
            assert_eq!(encoded(&frame), format!("{command}\na\\c\\n:\\\\r\\r\\c\n\n\0\n"));
        }
    }

    #[test]
    fn one_header_with_an_escape_changes_no_other() {
        let frame = Frame::new(Command::Message).with_header("a", "1").with_header("b", ":").with_header("c", "2");
        assert_eq!(encoded(&frame), "MESSAGE\na:1\nb:\\c\nc:2\n\n\0\n");
    }

    #[test]
    fn trimmed_values_are_written_trimmed() {
        let mut frame = Frame::new(Command::Message).with_header("a", "  1").with_header("b", "2 ");
        frame.headers.trim_values_start();
        assert_eq!(encoded(&frame), "MESSAGE\na:1\nb:2 \n\n\0\n");
    }

    #[test]
    fn frames_are_appended() {
        let mut output = BytesMut::from("before");
        encode(&Frame::new(Command::Receipt), &mut output);
        assert_eq!(output, "beforeRECEIPT\n\n\0\n");
    }
}
