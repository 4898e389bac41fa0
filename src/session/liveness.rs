//! When something must be sent and when the client counts as gone: STOMP heart-beats and WebSocket pings.
//! Times come in as parameters; nothing here reads a clock.
//!
//! Pings go out whatever the heart-beats are, and a pong counts as life: browsers slow the timers of hidden tabs down, so
//! that a healthy page may be late with its heart-beats but still answers pings. So a heart-beat that does not come is a
//! reason to ask, and only a ping without an answer says that the client is gone.

use std::time::{Duration, Instant};

use crate::stomp::heartbeat::Heartbeats;

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing came from the client after a ping, not even the pong.
    PongMissed {
        silence: Duration,
    },
    SendHeartbeat,
    SendPing,
}

#[derive(Debug)]
pub(super) struct Liveness {
    /// Silence after which the client is asked because its heart-beat is missing; worked out once, it is asked for with every frame.
    expect_within: Option<Duration>,
    last_ping: Instant,
    last_received: Instant,
    last_sent: Instant,
    ping_interval: Duration,
    pinged: Option<Instant>,
    pong_timeout: Duration,
    /// Silence of ours after which a beat goes out.
    send_after: Option<Duration>,
    tolerance: f64,
}

impl Liveness {
    pub(super) fn new(now: Instant, ping_interval: Duration, pong_timeout: Duration, tolerance: f64) -> Liveness {
        Liveness {
            expect_within: None,
            last_ping: now,
            last_received: now,
            last_sent: now,
            ping_interval,
            pinged: None,
            pong_timeout,
            send_after: None,
            tolerance,
        }
    }

    /// From CONNECTED on.
    pub(super) fn start_heartbeats(&mut self, heartbeats: Heartbeats) {
        self.expect_within = heartbeats.expect_every.map(|every| every.mul_f64(self.tolerance));
        self.send_after = heartbeats.send_every.map(early);
    }

    /// Any byte, a ping or a pong.
    pub(super) fn received(&mut self, now: Instant) {
        self.last_received = now;
        self.pinged = None;
    }

    pub(super) fn sent(&mut self, now: Instant) {
        self.last_sent = now;
    }

    /// The earliest time at which `poll` may have something.
    pub(super) fn deadline(&self) -> Instant {
        let beat = self.send_after.map(|silence| self.last_sent + silence);
        let ping = match self.pinged {
            Some(pinged) => pinged + self.pong_timeout,
            None => self.ping_due(),
        };
        beat.map_or(ping, |beat| beat.min(ping))
    }

    /// What is due now, one at a time; call again until there is nothing.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Due> {
        if let Some(pinged) = self.pinged {
            if now >= pinged + self.pong_timeout {
                return Some(Due::PongMissed { silence: now.saturating_duration_since(self.last_received) });
            }
        } else if now >= self.ping_due() {
            self.pinged = Some(now);
            self.last_ping = now;
            return Some(Due::SendPing);
        }
        if let Some(after) = self.send_after
            && now >= self.last_sent + after
        {
            self.last_sent = now;
            return Some(Due::SendHeartbeat);
        }
        None
    }

    fn ping_due(&self) -> Instant {
        let quiet = self.last_received.min(self.last_sent).max(self.last_ping) + self.ping_interval;
        match self.expect_within {
            Some(within) => quiet.min(self.last_received + within),
            None => quiet,
        }
    }
}

/// A beat must never be late, so it is sent when nine tenths of the interval have passed in silence.
fn early(every: Duration) -> Duration {
    every.mul_f64(0.9)
}
