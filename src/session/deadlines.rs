//! When a session has to be looked at again although nothing happened, and what that means: a wait that is over, a beat or
//! a ping that is due, a client that is gone. Reads no clock.

use std::time::{Duration, Instant};

use super::Session;
use super::io::Output;
use super::liveness::Due;
use super::refusal::{CloseCode, Refusal};
use super::state::{Departure, State};

impl Session {
    /// When `Input::Timeout` is due. None only when the session has ended.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::AwaitConnect { deadline, .. } | State::LoggingIn { deadline, .. } => {
                Some((*deadline).min(self.liveness.deadline()))
            }
            State::Ended => None,
            State::Leaving { departure: Departure { deadline, .. }, .. } => {
                let deadline = self.identity.ends_at().map_or(*deadline, |expiry| expiry.min(*deadline));
                Some(deadline.min(self.liveness.deadline()))
            }
            State::Open { .. } | State::Suspended { .. } => {
                let others = [
                    self.departure_deadline(),
                    self.frame_deadline(),
                    self.outages.give_up_at(),
                    self.blocked_deadline(),
                    self.throttle.until(),
                    self.identity.ends_at(),
                ];
                Some(others.into_iter().flatten().fold(self.liveness.deadline(), Instant::min))
            }
        }
    }

    pub(super) fn handle_timeout(&mut self) {
        if matches!(self.state, State::Open { .. } | State::Suspended { .. }) && self.give_up_outage() {
            return;
        }
        match &self.state {
            State::AwaitConnect { deadline, .. } | State::LoggingIn { deadline, .. } if self.now >= *deadline => {
                let seconds = self.config.login_timeout.as_secs_f32();
                let unfinished = self.frame_wait.frame();
                let unfinished = unfinished.map_or(String::new(), |frame| format!("The relay is {frame}\n"));
                let refusal = Refusal::fatal(
                    "connect.timeout",
                    "Login timeout",
                    format!("no successful CONNECT in the time for it, {seconds} s at most\n{unfinished}"),
                    "Send CONNECT as soon as the WebSocket is open.",
                );
                return self.refuse(refusal.closing(CloseCode::PolicyViolation));
            }
            State::Leaving { .. } | State::Open { .. } | State::Suspended { .. }
                if self.departure_deadline().is_some_and(|deadline| self.now >= deadline) =>
            {
                return self.give_up_leaving();
            }
            State::Open { .. } if self.blocked_deadline().is_some_and(|at| self.now >= at) => {
                return self.give_up_blocked();
            }
            State::Open { .. } if self.frame_deadline().is_some_and(|at| self.now >= at) => {
                return self.give_up_frame();
            }
            _ => {}
        }
        if !self.wants_frames() {
            // The client may have spoken, but nobody listened. Each of these waits has an end of its own.
            self.liveness.received(self.now);
        }
        self.keep_alive();
    }

    /// Nobody listened for a while: what the client said meanwhile may be on its way still. What is due to it goes out.
    pub(super) fn handle_unheard(&mut self) {
        self.liveness.received(self.now);
        self.frame_wait.restart(self.now);
        self.keep_alive();
    }

    fn keep_alive(&mut self) {
        while let Some(due) = self.liveness.poll(self.now) {
            match due {
                Due::SendHeartbeat => self.outputs.push_back(Output::Heartbeat),
                Due::SendPing => self.outputs.push_back(Output::Ping),
                Due::PongMissed { silence } => return self.lose_client(silence),
            }
        }
    }

    fn lose_client(&mut self, silence: Duration) {
        let refusal = Refusal::fatal(
            "session.heartbeat_missed",
            "Heart-beat missed",
            format!("nothing came from the client for {:.1} s, not even an answer to a ping\n", silence.as_secs_f32()),
            "Send heart-beats, or answer WebSocket pings; what is behind the network was not reached.",
        );
        self.refuse(refusal.closing(CloseCode::HeartbeatMissed));
    }
}
