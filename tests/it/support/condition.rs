//! Waiting for a condition that somebody else brings about.

use std::time::{Duration, Instant};

use super::stomp::DEADLINE;

/// Looks again and again until the condition holds.
///
/// # Panics
/// It does not hold within [`DEADLINE`].
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let end = Instant::now() + DEADLINE;
    while !check().await {
        assert!(Instant::now() < end, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
