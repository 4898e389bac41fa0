//! Pacing: pauses between attempts, and how many sessions come back at a time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

/// First and longest pause between a session's or login's attempts.
pub(super) const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(3);
/// Longest pause between the probes of a node.
pub(super) const PROBE_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Sessions that may be making their subscriptions anew at a time, over all identities.
pub(super) const RESUMING_MAX: usize = 64;
/// How long one of them may take before the next one starts nevertheless.
pub(super) const RESUMING_PATIENCE: Duration = Duration::from_secs(10);

/// The pause before an attempt: doubled each time up to a bound, and anywhere between half of that and all of it, so that
/// those who lost the same broker do not come back in step.
pub(super) fn backoff(attempt: u32) -> Duration {
    let full = BACKOFF_FIRST.saturating_mul(1 << attempt.min(16)).min(BACKOFF_MAX);
    let mut random = [0; 2];
    // Without randomness the pause is merely not spread.
    let _ = aws_lc_rs::rand::fill(&mut random);
    full.mul_f64(0.5 + f64::from(u16::from_le_bytes(random)) / f64::from(u16::MAX) / 2.0)
}

/// Held by a session that comes back until everything it had is made anew, or it takes too long.
pub(super) struct Pass {
    permit: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
    patience: JoinHandle<()>,
}

impl Pass {
    /// Waits for one. Logins need none, so they are never behind those who come back.
    pub(super) async fn take(resuming: &Arc<Semaphore>, patience: Duration) -> Option<Pass> {
        // Never closed, so there always is one in the end.
        let permit = resuming.clone().acquire_owned().await.ok()?;
        let permit = Arc::new(Mutex::new(Some(permit)));
        let held = permit.clone();
        // A task of its own, because a session whose client does not read is not polled.
        let patience = tokio::spawn(async move {
            tokio::time::sleep(patience).await;
            held.lock().unwrap_or_else(PoisonError::into_inner).take();
        });
        Some(Pass { permit, patience })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.patience.abort();
        self.permit.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_are_spread_and_bounded() {
        for attempt in [0, 1, 5, 31, u32::MAX] {
            let full = BACKOFF_FIRST.saturating_mul(1 << attempt.min(16)).min(BACKOFF_MAX);
            let pauses = (0..50).map(|_| backoff(attempt)).collect::<Vec<_>>();
            assert!(pauses.iter().all(|pause| *pause >= full / 2 && *pause <= full), "{attempt}: {pauses:?}");
            assert!(pauses.iter().any(|pause| *pause != pauses[0]));
        }
    }

    #[tokio::test]
    async fn passes_are_few_and_none_is_held_for_ever() {
        let resuming = Arc::new(Semaphore::new(2));
        let first = Pass::take(&resuming, Duration::from_secs(60)).await;
        let second = Pass::take(&resuming, Duration::from_millis(10)).await;
        assert_eq!(resuming.available_permits(), 0);
        drop(first);
        assert_eq!(resuming.available_permits(), 1);
        // Given back although the second is held.
        let both = tokio::time::timeout(Duration::from_secs(10), resuming.acquire_many(2)).await;
        drop(both.expect("in time"));
        drop(second);
        assert_eq!(resuming.available_permits(), 2);
    }
}
