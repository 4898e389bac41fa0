//! When open-loop messages are due. Runs beside the runtime, whose timers are too coarse (1 ms), and never waits for a
//! sender: a message that is sent late was due no later for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

pub struct Pace {
    shared: Arc<Shared>,
    pub began_ns: u64,
    every_ns: f64,
}

#[derive(Default)]
struct Shared {
    /// Messages due since the beginning.
    due: AtomicU64,
    changed: Notify,
    stops: AtomicBool,
}

impl Pace {
    /// `rate` messages per second, the first one at once. `epoch` is where the stamps' time begins.
    pub fn start(rate: f64, epoch: Instant) -> Pace {
        let shared = Arc::<Shared>::default();
        let began = Instant::now();
        let pace = Pace { shared: shared.clone(), began_ns: (began - epoch).as_nanos() as u64, every_ns: 1e9 / rate };
        let every_ns = pace.every_ns;
        std::thread::spawn(move || tick(&shared, began, every_ns));
        pace
    }

    pub fn due(&self) -> u64 {
        self.shared.due.load(Ordering::Acquire)
    }

    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// When message `number` was due.
    pub fn time_ns(&self, number: u64) -> u64 {
        self.began_ns + (number as f64 * self.every_ns) as u64
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.shared.stops.store(true, Ordering::Relaxed);
    }
}

fn tick(shared: &Shared, began: Instant, every_ns: f64) {
    while !shared.stops.load(Ordering::Relaxed) {
        let due = (began.elapsed().as_nanos() as f64 / every_ns) as u64 + 1;
        if shared.due.swap(due, Ordering::Release) != due {
            shared.changed.notify_one();
        }
        let next = began + Duration::from_nanos((due as f64 * every_ns) as u64 + 1);
        // In slices, so that a slow pace ends soon after its owner.
        std::thread::sleep(next.saturating_duration_since(Instant::now()).min(Duration::from_millis(50)));
    }
}

#[cfg(test)]
mod tests {
    use super::Pace;
    use std::time::Instant;

    #[tokio::test]
    async fn what_was_not_fetched_in_time_was_due_all_the_same() {
        let epoch = Instant::now();
        let pace = Pace::start(1000.0, epoch);
        while pace.due() < 20 {
            pace.changed().await;
        }
        assert!(epoch.elapsed().as_millis() >= 19, "it runs ahead");
        let apart = pace.time_ns(1000) - pace.time_ns(0);
        assert!(apart.abs_diff(1_000_000_000) < 1000, "{apart}");
    }
}
