//! When a channel that is not used is given back.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// Runs while there is nothing to do.
#[derive(Default)]
pub(super) struct IdleTimer(Option<Pin<Box<Sleep>>>);

impl IdleTimer {
    /// Ready once when it has been `idle` at every poll for `limit`. Must be polled whenever that may have changed.
    pub(super) fn poll_over(&mut self, cx: &mut Context<'_>, idle: bool, limit: Duration) -> Poll<()> {
        if !idle {
            self.0 = None;
            return Poll::Pending;
        }
        let timer = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + limit)));
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.0 = None;
        Poll::Ready(())
    }
}
