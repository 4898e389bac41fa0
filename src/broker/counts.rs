//! What all links count together: numbers that never fall, beside those of now. Asks nobody anything; the pool shows them.

use crate::session::event::LoginFailure;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

#[derive(Default)]
pub(super) struct Counts {
    pub(super) blocked: Arc<Blocked>,
    pub(super) connects: Connects,
    pub(super) links_lost: AtomicU64,
    pub(super) publishes_retried: AtomicU64,
    pub(super) repaired_frames: Arc<AtomicU64>,
    pub(super) shared_queues: Arc<AtomicUsize>,
    pub(super) shared_subscribers: Arc<AtomicUsize>,
}

/// Connections that were tried, by what they came to.
#[derive(Default)]
pub(super) struct Connects {
    ok: AtomicU64,
    refused: AtomicU64,
    unavailable: AtomicU64,
    virtual_host: AtomicU64,
}

/// AMQP connections that were tried since the start, by what they came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectCounts {
    pub ok: u64,
    pub refused: u64,
    /// All nodes were tried, and none answered.
    pub unavailable: u64,
    pub virtual_host: u64,
}

impl Connects {
    pub(super) fn note<T>(&self, result: &Result<T, LoginFailure>) {
        let count = match result {
            Ok(_) => &self.ok,
            Err(LoginFailure::AccessRefused) => &self.refused,
            Err(LoginFailure::Unavailable { .. }) => &self.unavailable,
            Err(LoginFailure::VirtualHost { .. }) => &self.virtual_host,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> ConnectCounts {
        ConnectCounts {
            ok: self.ok.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            unavailable: self.unavailable.load(Ordering::Relaxed),
            virtual_host: self.virtual_host.load(Ordering::Relaxed),
        }
    }
}

/// How long at least one link was blocked. Not the sum over links: an alarm blocks them all.
#[derive(Default)]
pub(super) struct Blocked(Mutex<BlockedTime>);

#[derive(Default)]
struct BlockedTime {
    links: usize,
    since: Option<Instant>,
    total: Duration,
}

impl BlockedTime {
    fn begin(&mut self, now: Instant) {
        self.links += 1;
        self.since.get_or_insert(now);
    }

    fn end(&mut self, now: Instant) {
        self.links -= 1;
        if self.links == 0 {
            self.total = self.total_at(now);
            self.since = None;
        }
    }

    fn total_at(&self, now: Instant) -> Duration {
        self.total + self.since.map_or(Duration::ZERO, |since| now - since)
    }
}

impl Blocked {
    fn lock(&self) -> MutexGuard<'_, BlockedTime> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One link is blocked until the result is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> BlockedLink {
        self.lock().begin(Instant::now());
        BlockedLink(self.clone())
    }

    pub(super) fn total(&self) -> Duration {
        self.lock().total_at(Instant::now())
    }
}

pub(super) struct BlockedLink(Arc<Blocked>);

impl Drop for BlockedLink {
    fn drop(&mut self) {
        self.0.lock().end(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_time_counts_once_for_all_links() {
        let start = Instant::now();
        let seconds = Duration::from_secs;
        let mut time = BlockedTime::default();
        time.begin(start);
        time.begin(start + seconds(3));
        time.end(start + seconds(7));
        assert_eq!(time.total_at(start + seconds(12)), seconds(12));
        time.end(start + seconds(12));
        assert_eq!(time.total_at(start + seconds(72)), seconds(12));
        time.begin(start + seconds(72));
        assert_eq!(time.total_at(start + seconds(73)), seconds(13));
    }
}
