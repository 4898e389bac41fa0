//! The end of a command or header line in a growing buffer. Consumes nothing and does not look into the line.

use memchr::memchr3;

/// How far a line may reach.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// Bytes without the line end.
    pub(super) line_bytes_max: usize,
    /// Bytes with the line end: what the frame may still have.
    pub(super) frame_bytes_left: usize,
}

/// A complete line at the beginning of the buffer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Without the line end.
    pub(super) text_bytes: usize,
    /// With the line end, LF or CR LF.
    pub(super) bytes: usize,
}

/// Why there is no line; `at` is the offending byte's offset.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    CarriageReturn { at: usize },
    FrameTooLarge,
    Nul { at: usize },
    TooLong,
}

/// Looks at bytes from `scanned` on and moves it behind what need not be looked at again. `None`: needs more bytes.
///
/// Whatever comes first decides, a line's end, a fault or a bound: so the outcome does not depend on how bytes arrive.
pub(super) fn find_line(input: &[u8], scanned: &mut usize, bounds: Bounds) -> Result<Option<Line>, Fault> {
    let window = input.len().min(bounds.line_bytes_max.saturating_add(1)).min(bounds.frame_bytes_left);
    let from = (*scanned).min(window);
    let Some(at) = memchr3(b'\0', b'\n', b'\r', &input[from..window]).map(|offset| from + offset) else {
        *scanned = window;
        return match () {
            () if window > bounds.line_bytes_max => Err(Fault::TooLong),
            () if window == bounds.frame_bytes_left => Err(Fault::FrameTooLarge),
            () => Ok(None),
        };
    };
    *scanned = at;
    let bytes = match (input[at], input.get(at + 1)) {
        (b'\n', _) => at + 1,
        (b'\r', Some(b'\n')) => at + 2,
        (b'\r', Some(_)) => return Err(Fault::CarriageReturn { at }),
        (b'\r', None) => return Ok(None),
        _ => return Err(Fault::Nul { at }),
    };
    if bytes > bounds.frame_bytes_left {
        return Err(Fault::FrameTooLarge);
    }
    Ok(Some(Line { text_bytes: at, bytes }))
}

#[cfg(test)]
mod tests {
    use super::{Bounds, Fault, Line, find_line};

    fn find(input: &[u8], line_bytes_max: usize, frame_bytes_left: usize) -> Result<Option<Line>, Fault> {
        find_line(input, &mut 0, Bounds { line_bytes_max, frame_bytes_left })
    }

    #[test]
    fn lines_end_with_lf_or_crlf() {
        assert_eq!(find(b"ab\ncd", 10, 10), Ok(Some(Line { text_bytes: 2, bytes: 3 })));
        assert_eq!(find(b"ab\r\ncd", 10, 10), Ok(Some(Line { text_bytes: 2, bytes: 4 })));
        assert_eq!(find(b"\n", 10, 10), Ok(Some(Line { text_bytes: 0, bytes: 1 })));
        assert_eq!(find(b"ab", 10, 10), Ok(None));
        assert_eq!(find(b"ab\r", 10, 10), Ok(None));
    }

    #[test]
    fn the_first_fault_decides() {
        assert_eq!(find(b"a\rb\0\n", 10, 10), Err(Fault::CarriageReturn { at: 1 }));
        assert_eq!(find(b"a\r\r\n", 10, 10), Err(Fault::CarriageReturn { at: 1 }));
        assert_eq!(find(b"a\0\r\n", 10, 10), Err(Fault::Nul { at: 1 }));
    }

    #[test]
    fn the_line_end_does_not_count_against_the_line() {
        assert_eq!(find(b"ab\r\n", 2, 10), Ok(Some(Line { text_bytes: 2, bytes: 4 })));
        assert_eq!(find(b"ab\r", 2, 10), Ok(None));
        assert_eq!(find(b"abc", 2, 10), Err(Fault::TooLong));
        assert_eq!(find(b"ab", 2, 10), Ok(None));
    }

    #[test]
    fn the_line_end_counts_against_the_frame() {
        assert_eq!(find(b"ab\r\n", 10, 4), Ok(Some(Line { text_bytes: 2, bytes: 4 })));
        assert_eq!(find(b"ab\r\n", 10, 3), Err(Fault::FrameTooLarge));
        assert_eq!(find(b"ab\n", 10, 2), Err(Fault::FrameTooLarge));
        assert_eq!(find(b"ab", 10, 3), Ok(None));
        assert_eq!(find(b"abc", 10, 3), Err(Fault::FrameTooLarge));
        assert_eq!(find(b"a", 10, 0), Err(Fault::FrameTooLarge));
    }

    #[test]
    fn scanned_bytes_are_not_looked_at_again() {
        let mut scanned = 0;
        let bounds = Bounds { line_bytes_max: 10, frame_bytes_left: 10 };
        assert_eq!(find_line(b"abc", &mut scanned, bounds), Ok(None));
        assert_eq!(scanned, 3);
        // A line feed where the scan has been is passed over, which shows that it was not looked at.
        assert_eq!(find_line(b"a\nc\n", &mut scanned, bounds), Ok(Some(Line { text_bytes: 3, bytes: 4 })));
    }
}
