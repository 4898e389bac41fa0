//! Says in the log that deliveries are being repaired, and whose they are: at most once in [`EVERY`] per link.

use super::frame::{self, Head};
use std::time::{Duration, Instant};
use tracing::warn;

/// Least time between two lines about the same link.
const EVERY: Duration = Duration::from_secs(60);

pub(super) struct RepairLog {
    link: String,
    /// The payload of the last `basic.deliver` and its channel: its content header comes next.
    delivery: Vec<u8>,
    channel: u16,
    last: Option<Instant>,
    /// Repairs since that line.
    unreported: u64,
}

impl RepairLog {
    pub(super) fn new(link: String) -> RepairLog {
        RepairLog { link, delivery: Vec::new(), channel: 0, last: None, unreported: 0 }
    }

    pub(super) fn delivering(&mut self, channel: u16, payload: &[u8]) {
        self.channel = channel;
        self.delivery.clear();
        self.delivery.extend_from_slice(payload);
    }

    pub(super) fn repaired(&mut self, head: &Head) {
        self.unreported += 1;
        if self.last.is_some_and(|last| last.elapsed() < EVERY) {
            return;
        }
        self.last = Some(Instant::now());
        let frames = std::mem::take(&mut self.unreported);
        let origin = if head.channel == self.channel { frame::delivered_from(&self.delivery) } else { None };
        let (exchange, routing_key) = origin.unwrap_or_default();
        warn!(
            link = self.link,
            frames,
            exchange,
            routing_key,
            "repaired what the broker sent: headers nested too deep or too large, or names that are not UTF-8; look for the \
             client that publishes them"
        );
    }
}
