//! What one session adds to the gauges of all: it is taken out again with the same numbers.

use std::sync::Arc;

use super::Connection;
use crate::metrics::Metrics;

/// Numbers that go up and down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Gauged {
    pub(super) send_queue_bytes: i64,
    pub(super) subscriptions: i64,
    pub(super) unacked: i64,
}

/// In which of the gauges a session counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    LoggedIn,
    Suspended,
    Unknown,
}

/// The share of one session.
pub(super) struct Gauges {
    gauged: Gauged,
    metrics: Arc<Metrics>,
    presence: Presence,
}

impl Gauges {
    pub(super) fn new(metrics: Arc<Metrics>) -> Gauges {
        Gauges { gauged: Gauged::default(), metrics, presence: Presence::Unknown }
    }

    pub(super) fn presence(&self) -> Presence {
        self.presence
    }

    pub(super) fn gauge(&mut self, now: Gauged) {
        let before = std::mem::replace(&mut self.gauged, now);
        if now != before {
            self.metrics.send_queue_bytes.inc_by(now.send_queue_bytes - before.send_queue_bytes);
            self.metrics.subscriptions.inc_by(now.subscriptions - before.subscriptions);
            self.metrics.unacked.inc_by(now.unacked - before.unacked);
        }
    }

    /// Moves the session from one gauge to another.
    pub(super) fn show(&mut self, presence: Presence) {
        let gauge = |presence| match presence {
            Presence::LoggedIn => Some(&self.metrics.sessions),
            Presence::Suspended => Some(&self.metrics.suspended),
            Presence::Unknown => None,
        };
        if let Some(old) = gauge(self.presence) {
            old.dec();
        }
        if let Some(new) = gauge(presence) {
            new.inc();
        }
        self.presence = presence;
    }
}

impl Connection {
    pub(super) fn count(&mut self) {
        let stats = self.session.stats();
        if stats != self.counted {
            self.metrics.count(&stats, &self.counted);
            self.counted = stats;
        }
    }

    pub(super) fn numbers(&self) -> Gauged {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        Gauged {
            send_queue_bytes: number(self.socket.queued_bytes()),
            subscriptions: number(self.session.subscription_count()),
            unacked: number(self.session.outstanding_count()),
        }
    }
}
