//! What `content-length` says. Does not hold it against a limit.

/// The body's length as announced.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ContentLength {
    Bytes(usize),
    Negative,
    /// Not a whole number. Taken as if the header were absent, as RabbitMQ's plugin does.
    Junk,
}

impl ContentLength {
    /// Blanks around the number and a sign before it are allowed. What no `usize` can hold comes back as the largest.
    pub(super) fn parse(value: &str) -> ContentLength {
        let value = value.trim();
        let (negative, digits) = match value.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, value.strip_prefix('+').unwrap_or(value)),
        };
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return ContentLength::Junk;
        }
        // Only digits are left, so parsing can fail in one way: the number is too large.
        match digits.parse().unwrap_or(usize::MAX) {
            0 => ContentLength::Bytes(0),
            _ if negative => ContentLength::Negative,
            bytes => ContentLength::Bytes(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ContentLength::{self, Bytes, Junk, Negative};

    #[test]
    fn whole_numbers_are_lengths() {
        for (value, bytes) in [("0", 0), ("5", 5), ("007", 7), ("+5", 5), ("-0", 0), (" 5\t", 5), ("\r5\n", 5)] {
            assert_eq!(ContentLength::parse(value), Bytes(bytes), "{value:?}");
        }
    }

    #[test]
    fn numbers_beyond_usize_are_the_largest_length() {
        assert_eq!(ContentLength::parse(&"9".repeat(400)), Bytes(usize::MAX));
    }

    #[test]
    fn negative_numbers_are_told_apart() {
        assert_eq!(ContentLength::parse("-1"), Negative);
        assert_eq!(ContentLength::parse(&format!("-{}", "9".repeat(400))), Negative);
    }

    #[test]
    fn anything_else_is_junk() {
        for value in ["", " ", "-", "+", "5x", "1.5", "0x10", "1e3", "5 5", "--5", "٥"] {
            assert_eq!(ContentLength::parse(value), Junk, "{value:?}");
        }
    }
}
