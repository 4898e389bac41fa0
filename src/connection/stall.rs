//! Whether a client takes what is written to it. Knows no socket and reads no clock.

use std::time::{Duration, Instant};

/// Notices a client that does not read: bytes wait, and none has been taken for a while.
pub(super) struct Stall {
    since: Option<Instant>,
    written: u64,
}

impl Stall {
    pub(super) fn new() -> Stall {
        Stall { since: None, written: 0 }
    }

    pub(super) fn observe(&mut self, now: Instant, queued: usize, written: u64) {
        if queued == 0 {
            self.since = None;
        } else if self.since.is_none() || written != self.written {
            self.since = Some(now);
        }
        self.written = written;
    }

    /// The time counts anew.
    pub(super) fn restart(&mut self, now: Instant) {
        self.since = self.since.map(|_| now);
    }

    pub(super) fn deadline(&self, timeout: Duration) -> Option<Instant> {
        Some(self.since? + timeout)
    }

    pub(super) fn is_over(&self, now: Instant, timeout: Duration) -> bool {
        self.deadline(timeout).is_some_and(|deadline| now >= deadline)
    }
}
