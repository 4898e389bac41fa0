//! What bounds a frame, and which frames have escapes. Values only.

/// Longest command in bytes. RabbitMQ's plugin has the same bound; the longest command of STOMP has 11.
pub const COMMAND_BYTES_MAX: usize = 32;

/// Bounds on one frame. What crosses one is refused before it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes from the command's first to the terminating NUL, both counted. Heart-beats never count.
    pub frame_bytes_max: usize,
    /// Bytes of all header lines as sent, line ends and repeated headers included.
    pub header_bytes_max: usize,
    /// Different header names; a repeated header is dropped and does not count.
    pub header_count_max: usize,
    /// Bytes of one header line as sent, name, colon and value, without its line end.
    pub header_line_bytes_max: usize,
    /// Header lines, those that repeat a name included: each is compared with the names before it.
    pub header_lines_max: usize,
}

impl Default for Limits {
    /// 4 MiB, 128 KiB of headers, 100 of them, 10 KiB each, in 1000 lines.
    fn default() -> Limits {
        Limits {
            frame_bytes_max: 4 << 20,
            header_bytes_max: 128 << 10,
            header_count_max: 100,
            header_line_bytes_max: 10 << 10,
            header_lines_max: 1000,
        }
    }
}

/// In which frames `\n`, `\r`, `\c` and `\\` stand for another character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escapes {
    /// In every frame of every version, as RabbitMQ's plugin does: a passcode with a backslash must be sent escaped.
    All,
    /// Everywhere but in CONNECT, STOMP and CONNECTED (STOMP 1.2, "Value Encoding").
    ExceptConnect,
}
