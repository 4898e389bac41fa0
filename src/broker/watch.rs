//! A poll-able view of a link's state for a session's task.

use super::link::{Link, LinkState};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::task::{Context, Poll};
use tokio::sync::watch::Receiver;

pub(super) struct LinkWatch {
    current: LinkState,
    change: BoxFuture<'static, Option<Receiver<LinkState>>>,
}

impl LinkWatch {
    /// Starts with an unblocked, living link, so that anything else is reported as a change.
    pub(super) fn new(link: &Link) -> LinkWatch {
        let mut receiver = link.watch();
        receiver.mark_changed();
        LinkWatch { current: LinkState::default(), change: next(receiver) }
    }

    pub(super) fn blocked(&self) -> bool {
        self.current.blocked
    }

    /// The next state that differs from the one before.
    pub(super) fn poll_change(&mut self, cx: &mut Context<'_>) -> Poll<LinkState> {
        loop {
            let Poll::Ready(changed) = self.change.poll_unpin(cx) else { return Poll::Pending };
            // The sender lives as long as the link, which the session's lease holds.
            let Some(mut receiver) = changed else {
                self.change = Box::pin(std::future::pending());
                return Poll::Pending;
            };
            let state = receiver.borrow_and_update().clone();
            self.change = next(receiver);
            if state != self.current {
                self.current = state.clone();
                return Poll::Ready(state);
            }
        }
    }
}

fn next(mut receiver: Receiver<LinkState>) -> BoxFuture<'static, Option<Receiver<LinkState>>> {
    Box::pin(async move { receiver.changed().await.ok().map(|()| receiver) })
}
