//! How fast a client may SEND: one that is faster is not read for a while, so that its own socket holds it back. Never an
//! ERROR: nothing is lost and nothing is refused.

use std::time::Instant;

use super::Session;
use crate::rate::Bucket;

#[derive(Debug, Default)]
pub(super) struct Throttle {
    bucket: Bucket,
    until: Option<Instant>,
}

impl Throttle {
    /// No frame is wanted before.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    pub(super) fn release(&mut self, now: Instant) {
        self.until = self.until.filter(|until| now < *until);
    }
}

impl Session {
    /// Every SEND counts, those of transactions too, and those that are refused.
    pub(super) fn count_send(&mut self) {
        let rate = self.config.send_rate;
        let throttle = &mut self.throttle;
        throttle.bucket.take(rate, self.now);
        let wait = throttle.bucket.wait(rate, self.now);
        if !wait.is_zero() {
            throttle.until = Some(self.now + wait);
            self.stats.throttles += 1;
        }
    }
}
