//! A frame that has begun and does not end: mostly one whose NUL was forgotten, or whose content-length is in characters.
//! Its client waits for an answer that cannot come, so it is told where the relay is. Reads no clock.
//!
//! The time is counted from the last byte of the frame, so a slow link may take as long as it likes; line ends count only with
//! what comes behind them, since a client that believes its frame complete goes on with heart-beats. While the relay does
//! not read, no time passes.

use std::time::Instant;

use super::Session;
use super::refusal::{CloseCode, Refusal};
use super::state::State;
use crate::stomp::Unfinished;

/// The frame under way and when the last byte of it came. Boxed, because hardly ever there is one.
#[derive(Debug, Default)]
pub(super) struct FrameWait(Option<Box<(Unfinished, Instant)>>);

impl FrameWait {
    fn note(&mut self, now: Instant, frame: Option<Unfinished>) {
        match (&mut self.0, frame) {
            (Some(kept), Some(frame)) => {
                if frame.heard_bytes() != kept.0.heard_bytes() {
                    kept.1 = now;
                }
                kept.0 = frame;
            }
            (kept, frame) => *kept = frame.map(|frame| Box::new((frame, now))),
        }
    }

    /// Nobody listened until now.
    pub(super) fn restart(&mut self, now: Instant) {
        if let Some(kept) = &mut self.0 {
            kept.1 = now;
        }
    }

    pub(super) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    pub(super) fn end(&mut self) {
        self.0 = None;
    }

    pub(super) fn frame(&self) -> Option<&Unfinished> {
        self.0.as_ref().map(|kept| &kept.0)
    }
}

impl Session {
    /// Whether the last thing that was heard of the client's bytes is that they end inside a frame.
    pub fn is_in_frame(&self) -> bool {
        self.frame_wait.is_on()
    }

    pub(super) fn handle_unfinished(&mut self, frame: Option<Unfinished>) {
        self.frame_wait.note(self.now, frame);
    }

    /// From the login on; before it, `login_timeout` counts.
    pub(super) fn frame_deadline(&self) -> Option<Instant> {
        let (_, since) = self.frame_wait.0.as_deref()?;
        let counts = matches!(self.state, State::Open { .. }) && self.wants_frames();
        counts.then(|| *since + self.config.frame_timeout)
    }

    pub(super) fn give_up_frame(&mut self) {
        let Some(frame) = self.frame_wait.frame() else { return };
        let seconds = self.config.frame_timeout.as_secs_f32();
        let refusal = Refusal::fatal(
            "frame.unfinished",
            "Unfinished frame",
            format!("for {seconds} s nothing has come of a frame that has begun: the relay is {frame}\n"),
            "A frame ends with a NUL byte; content-length counts the body's bytes, not its characters.",
        );
        self.refuse(refusal.closing(CloseCode::PolicyViolation));
    }
}
