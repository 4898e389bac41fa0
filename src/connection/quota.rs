//! How many lines of the audit log a client that is in may cause: in compatibility mode its denials do not end it, and it must
//! not fill a disk. Writes nothing.

use std::time::Instant;

use crate::rate::{Bucket, Rate};

/// Denials and new tokens of one client that are told.
const LINES: Rate = Rate { per_second: 1, burst: 100 };

#[derive(Default)]
pub(super) struct Quota {
    bucket: Bucket,
    left_out: u64,
}

impl Quota {
    /// Whether the next line may be written.
    pub(super) fn admits(&mut self, now: Instant) -> bool {
        let admitted = self.bucket.wait(LINES, now).is_zero();
        match admitted {
            true => self.bucket.take(LINES, now),
            false => self.left_out += 1,
        }
        admitted
    }

    /// Lines that were not written, if there are any.
    pub(super) fn left_out(&self) -> Option<u64> {
        Some(self.left_out).filter(|count| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_is_told_and_then_one_a_second() {
        let mut quota = Quota::default();
        let start = Instant::now();
        let told = |quota: &mut Quota, now| (0..1000).filter(|_| quota.admits(now)).count();
        assert_eq!(told(&mut quota, start), 100);
        assert_eq!(quota.left_out(), Some(900));
        assert_eq!(told(&mut quota, start + Duration::from_secs(3)), 3);
        assert_eq!(quota.left_out(), Some(900 + 997));
    }

    #[test]
    fn nothing_is_said_of_nothing() {
        let mut quota = Quota::default();
        assert!(quota.admits(Instant::now()));
        assert_eq!(quota.left_out(), None);
    }
}
