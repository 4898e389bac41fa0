//! What is known of a frame whose end has not come, in words that may go to the peer. Reads no bytes and knows no clock.

use std::fmt;

use super::Command;
use super::error::excerpt;

/// A frame that has begun and is not complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// None while the command's own line has no end.
    pub(super) command: Option<Command>,
    /// Bytes of the frame up to the last one that is no line end: those behind it may be the heart-beats of a peer that
    /// believes its frame to be complete.
    pub(super) heard_bytes: usize,
    pub(super) part: Part,
}

/// Where the bytes end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Command {
        text: String,
    },
    Headers {
        /// Complete ones.
        lines: usize,
        /// Of the one behind them.
        bytes: usize,
    },
    Body {
        bytes: usize,
        /// By content-length, where that counts.
        announced: Option<usize>,
    },
}

impl Unfinished {
    /// Grows with everything that comes of the frame but line ends.
    pub fn heard_bytes(&self) -> usize {
        self.heard_bytes
    }

    pub(super) fn command_line(bytes: &[u8]) -> Part {
        Part::Command { text: excerpt(bytes) }
    }
}

/// Behind "the relay is".
impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let command = self.command.as_ref().map_or("", Command::as_str);
        let command = excerpt(command.as_bytes());
        match &self.part {
            Part::Command { text } => write!(f, "inside the command line \"{text}\", which no line feed ends"),
            Part::Headers { lines, bytes } => {
                write!(f, "inside the headers of the frame \"{command}\" (complete lines: {lines}")?;
                if *bytes > 0 {
                    write!(f, ", bytes of the next: {bytes}")?;
                }
                f.write_str("), which no empty line ends")
            }
            Part::Body { bytes, announced: None } => {
                write!(f, "inside the body of the frame \"{command}\" (bytes so far: {bytes}), which no NUL ends")
            }
            Part::Body { bytes, announced: Some(all) } if bytes == all => {
                write!(
                    f,
                    "behind the body of the frame \"{command}\" (all {all} bytes of content-length), which no NUL ends"
                )
            }
            Part::Body { bytes, announced: Some(all) } => {
                write!(
                    f,
                    "inside the body of the frame \"{command}\" (bytes so far: {bytes} of the {all} of content-length)"
                )
            }
        }
    }
}
