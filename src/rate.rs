//! Rates with a burst: a token bucket kept as one point in time. Pure: `now` is a parameter.
//!
//! Does not wait and does not know what is limited; who waits, and how long, is decided by the caller.

use std::time::{Duration, Instant};

/// So many in a second in the long run, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens that come back in a second; 0: no limit.
    pub per_second: u32,
    /// Tokens in a full bucket; at least 1 counts.
    pub burst: u32,
}

impl Rate {
    pub const UNLIMITED: Rate = Rate { per_second: 0, burst: 0 };

    fn time_of(self, tokens: u32) -> Duration {
        match self.per_second {
            0 => Duration::ZERO,
            per_second => Duration::from_secs(1) * tokens / per_second,
        }
    }
}

/// The tokens of one peer. Full at first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Before it, tokens are missing.
    full_at: Option<Instant>,
}

impl Bucket {
    pub const fn new() -> Bucket {
        Bucket { full_at: None }
    }

    /// How long until there is a token; zero if there is one now.
    pub fn wait(&self, rate: Rate, now: Instant) -> Duration {
        let missing = self.full_at.map_or(Duration::ZERO, |full_at| full_at.saturating_duration_since(now));
        (missing + rate.time_of(1)).saturating_sub(rate.time_of(rate.burst.max(1)))
    }

    /// Takes a token, or reserves the next one: the wait grows by its time.
    pub fn take(&mut self, rate: Rate, now: Instant) {
        if rate.per_second > 0 {
            let from = self.full_at.map_or(now, |full_at| full_at.max(now));
            self.full_at = Some(from + rate.time_of(1));
        }
    }

    /// Whether it can be forgotten: a new one would be the same.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at.is_none_or(|full_at| full_at <= now)
    }
}
