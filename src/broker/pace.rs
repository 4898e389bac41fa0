//! Pacing: pauses between attempts, which nodes are worth trying, and how many sessions come back at a time.
//!
//! A node that failed is tried again by one probe, with growing pauses; everybody else leaves it alone until the probe
//! reaches it. So an outage costs the network one attempt per node and second, however many sessions and identities wait.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tracing::{info, warn};

/// First and longest pause between a session's or login's attempts.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(3);
/// Longest pause between the probes of a node.
const PROBE_PAUSE_MAX: Duration = Duration::from_secs(1);
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

/// What is known of each node, and whose turn it is.
pub(super) struct Nodes {
    health: Mutex<Vec<Health>>,
    next: AtomicUsize,
    /// A node answers again.
    recovered: Notify,
}

#[derive(Clone, Default)]
struct Health {
    /// In a row; only an AMQP connection that was made ends the row.
    failures: u32,
    /// Why it can't be used now.
    down: Option<String>,
}

/// Whether a failure has to be followed by a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    NowDown,
    /// A probe is at work already.
    KnownDown,
}

impl Nodes {
    /// `first` is where the rotation starts, so that relays do not all start with the same node.
    pub(super) fn new(count: usize, first: usize) -> Nodes {
        let health = Mutex::new(vec![Health::default(); count]);
        Nodes { health, next: AtomicUsize::new(first), recovered: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Health>> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The nodes that may be tried, another one first each time; and why the others may not.
    pub(super) fn order(&self) -> (Vec<usize>, Vec<String>) {
        let health = self.lock();
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let turns = (0..health.len()).map(|turn| first.wrapping_add(turn) % health.len());
        let (mut usable, mut reasons) = (Vec::new(), Vec::new());
        for node in turns {
            match &health[node].down {
                None => usable.push(node),
                Some(reason) => reasons.push(reason.clone()),
            }
        }
        (usable, reasons)
    }

    pub(super) fn reached(&self, node: usize) {
        let mut health = self.lock();
        health[node] = Health::default();
    }

    /// The reason names the node.
    pub(super) fn failed(&self, node: usize, reason: &str) -> Failed {
        let mut health = self.lock();
        let Health { failures, down } = &mut health[node];
        *failures = failures.saturating_add(1);
        match down.replace(reason.to_owned()) {
            Some(_) => Failed::KnownDown,
            None => {
                if *failures == 1 {
                    warn!(reason, "broker node unavailable");
                }
                Failed::NowDown
            }
        }
    }

    /// The pause before the next probe of a node.
    pub(super) fn probe_pause(&self, node: usize) -> Duration {
        let failures = self.lock()[node].failures;
        backoff(failures.saturating_sub(1)).min(PROBE_PAUSE_MAX)
    }

    /// A probe reached the node; it may be tried again.
    pub(super) fn answers(&self, node: usize) {
        self.lock()[node].down = None;
        info!(node, "broker node answers again");
        self.recovered.notify_waiters();
    }

    /// A pause, cut short when a node comes back; not to less than the first pause, so that not all come at once.
    pub(super) async fn pause(&self, pause: Duration) {
        let recovered = self.recovered.notified();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = recovered => tokio::time::sleep(backoff(0).min(pause)).await,
        }
    }
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

    #[test]
    fn a_node_that_is_down_is_left_alone_until_it_answers() {
        let nodes = Nodes::new(3, 0);
        assert_eq!(nodes.order(), (vec![0, 1, 2], vec![]));
        assert_eq!(nodes.order(), (vec![1, 2, 0], vec![]));
        assert_eq!(nodes.failed(2, "c: refused"), Failed::NowDown);
        assert_eq!(nodes.failed(2, "c: silent"), Failed::KnownDown);
        assert_eq!(nodes.order(), (vec![0, 1], vec!["c: silent".to_owned()]));
        nodes.answers(2);
        assert_eq!(nodes.order().0.len(), 3);
    }

    #[test]
    fn a_node_that_answers_and_fails_again_is_probed_more_and_more_slowly() {
        let nodes = Nodes::new(1, 0);
        let pauses = (0..8).map(|_| {
            nodes.failed(0, "vhost is down");
            nodes.answers(0);
            nodes.probe_pause(0)
        });
        let pauses = pauses.collect::<Vec<_>>();
        assert!(pauses[0] <= BACKOFF_FIRST && pauses[7] == PROBE_PAUSE_MAX, "{pauses:?}");
        nodes.reached(0);
        assert!(nodes.probe_pause(0) <= BACKOFF_FIRST);
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

    #[tokio::test]
    async fn a_pause_ends_soon_after_a_node_came_back() {
        let nodes = Nodes::new(1, 0);
        let work = async {
            tokio::task::yield_now().await;
            nodes.answers(0);
        };
        let both = async { tokio::join!(nodes.pause(Duration::from_secs(600)), work) };
        tokio::time::timeout(Duration::from_secs(10), both).await.expect("it does not last ten minutes");
    }
}
