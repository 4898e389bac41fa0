//! How many lines the log has lost, for those who tell it: the log itself can't.

use std::sync::atomic::{AtomicU64, Ordering};

/// Of the one log of this process.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Told by who writes the log: a line could not be written.
pub fn add() {
    LOST.fetch_add(1, Ordering::Relaxed);
}

/// Lines since the start.
pub fn count() -> u64 {
    LOST.load(Ordering::Relaxed)
}
