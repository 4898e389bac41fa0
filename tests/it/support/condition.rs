//! Waiting for a condition that somebody else brings about.

use std::time::{Duration, Instant};

/// How long anything may take that must happen, on a busy machine too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks again and again until the condition holds.
///
/// # Panics
/// It does not hold within [`PATIENCE`].
pub async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !check().await {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
