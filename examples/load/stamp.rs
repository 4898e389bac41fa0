//! What every body begins with: who sent it, its number, and when it was due.

use bytes::{Bytes, BytesMut};

/// Three hexadecimal numbers: publisher (8 digits), sequence (16), due time in nanoseconds since the run began (16).
pub const STAMP_BYTES: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub publisher: u32,
    pub sequence: u64,
    pub due_ns: u64,
}

impl Stamp {
    /// A body of `bytes` bytes, of which there must be at least [`STAMP_BYTES`].
    pub fn body(self, bytes: usize) -> Bytes {
        let mut body = BytesMut::zeroed(bytes.max(STAMP_BYTES));
        let (stamp, padding) = body.split_at_mut(STAMP_BYTES);
        write_hex(&mut stamp[..8], u64::from(self.publisher));
        write_hex(&mut stamp[8..24], self.sequence);
        write_hex(&mut stamp[24..], self.due_ns);
        padding.fill(b'.');
        body.freeze()
    }

    /// None: this is no body of ours.
    pub fn read(body: &[u8]) -> Option<Stamp> {
        let stamp = body.get(..STAMP_BYTES)?;
        Some(Stamp {
            publisher: u32::try_from(read_hex(&stamp[..8])?).ok()?,
            sequence: read_hex(&stamp[8..24])?,
            due_ns: read_hex(&stamp[24..])?,
        })
    }
}

fn write_hex(digits: &mut [u8], mut value: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
}

fn read_hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |value, digit| Some(value << 4 | u64::from((*digit as char).to_digit(16)?)))
}

#[cfg(test)]
mod tests {
    use super::{STAMP_BYTES, Stamp};

    #[test]
    fn a_stamp_is_read_as_it_was_written() {
        let stamp = Stamp { publisher: u32::MAX, sequence: 0x0123_4567_89ab_cdef, due_ns: u64::MAX };
        for bytes in [STAMP_BYTES, 100] {
            let body = stamp.body(bytes);
            assert_eq!((Stamp::read(&body), body.len()), (Some(stamp), bytes));
            assert!(!body.contains(&0), "a NUL would end a STOMP body that has no content-length");
        }
    }

    #[test]
    fn other_bodies_are_not_taken_for_stamps() {
        let body = Stamp { publisher: 1, sequence: 2, due_ns: 3 }.body(STAMP_BYTES);
        assert_eq!(Stamp::read(&body[1..]), None);
        assert_eq!(Stamp::read(&[b'x'; STAMP_BYTES]), None);
    }
}
