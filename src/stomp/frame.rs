//! One frame: command, headers, body. Does not judge whether the three fit together.

use super::{Command, Headers};
use bytes::Bytes;

/// A STOMP frame with its escapes resolved (STOMP 1.2, "STOMP Frames").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub command: Command,
    pub headers: Headers,
    /// Of a decoded frame: a view into the buffer that it was read from, which stays allocated as long as the body.
    pub body: Bytes,
}

impl Frame {
    /// A frame without headers and body.
    pub fn new(command: Command) -> Frame {
        Frame { command, headers: Headers::new(), body: Bytes::new() }
    }

    /// Appends a header.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Frame {
        self.headers.push(name, value);
        self
    }

    /// The value of the first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }
}

#[cfg(test)]
mod tests {
    use super::{Command, Frame};

    #[test]
    fn a_frame_is_built_header_by_header() {
        let frame = Frame::new(Command::Send).with_header("destination", "/queue/a").with_header("x", "1");
        assert_eq!(frame.header("destination"), Some("/queue/a"));
        assert_eq!(frame.header("y"), None);
        assert_eq!(frame.headers.len(), 2);
    }

    #[test]
    fn debug_output_of_a_frame_hides_the_passcode() {
        let frame = Frame::new(Command::Connect).with_header("passcode", "s3cret");
        assert!(!format!("{frame:?}").contains("s3cret"));
    }
}
