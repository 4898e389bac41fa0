//! One session's lease on the broker: commands in, events out.
//!
//! Owned by one task. `execute` only takes note; `next_event` does the work and may be dropped at any await point
//! (`select!`): all progress is kept here. The two sides, consuming and publishing, advance independently.

use super::consume::{ConsumeCommand, ConsumeSide, Deliveries, Ending};
use super::death::{Death, Loss};
use super::exclusive::LeaseId;
use super::link::{Link, Role};
use super::pace::Pass;
use super::pool::{Entry, LinkSecret};
use super::publish::PublishSide;
use super::quarantine::{self, Past, Record};
use super::release::Remains;
use crate::patience::{self, Timer};
use crate::session::amqp::ShortText;
use crate::session::command::BrokerCommand;
use crate::session::event::{BrokerEvent, BrokerInfo, Concern, Failure, LoginFailure};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

pub struct Channel {
    consume: ConsumeSide,
    publish: PublishSide,
    phase: Phase,
    /// Events that come before whatever is polled next.
    ready: VecDeque<BrokerEvent>,
    first: Side,
    operation_timeout: Duration,
    confirm_timeout: Duration,
    /// Held by a session that comes back until it has all it had.
    pass: Option<Pass>,
    /// For the next lease.
    past: Past,
}

enum Phase {
    Open,
    /// `Close` was given; what was given before is being finished, at most until the timer that the next poll starts.
    Finishing(Option<Timer>),
    Releasing(BoxFuture<'static, Result<(), Failure>>),
    /// Lost, and whether this session is to blame is not known yet.
    Judging(BoxFuture<'static, Ending>),
    /// Closed or failed: no event follows.
    Ended,
}

/// Which side is polled first; they take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Consume,
    Publish,
}

impl Channel {
    pub(super) fn new(entry: Arc<Entry>, lease: LeaseId, record: Record, pass: Option<Pass>) -> Channel {
        Channel {
            operation_timeout: entry.config().operation_timeout,
            confirm_timeout: entry.config().confirm_timeout,
            consume: ConsumeSide::new(entry.clone(), lease, record.consume),
            publish: PublishSide::new(entry, record.publish),
            pass,
            past: Past { record, links: Vec::new() },
            phase: Phase::Open,
            ready: VecDeque::new(),
            first: Side::Consume,
        }
    }

    /// Takes a command in; [`Channel::next_event`] performs it. Commands after `Close` or `Failed` are ignored.
    pub fn execute(&mut self, command: BrokerCommand) {
        if !matches!(self.phase, Phase::Open) {
            return;
        }
        match command {
            BrokerCommand::Declare { token, queue } => self.consume.push(ConsumeCommand::Declare { token, queue }),
            BrokerCommand::Subscribe(subscribe) => self.consume.push(ConsumeCommand::Subscribe(subscribe)),
            BrokerCommand::Unsubscribe { key, queue } => {
                self.consume.push(ConsumeCommand::Unsubscribe { key, queue });
            }
            BrokerCommand::Settle { tag, outcome } => self.consume.settle(tag, outcome),
            BrokerCommand::Publish(publish) => self.publish.push(publish),
            BrokerCommand::Close => self.phase = Phase::Finishing(None),
        }
    }

    /// Another lease for the same identity, after a pause that grows with the attempt. The work of a future that does not
    /// borrow this lease, which may be lost.
    pub fn renewal(
        &self,
        attempt: u32,
    ) -> impl Future<Output = Result<(Channel, BrokerInfo), LoginFailure>> + Send + 'static {
        self.consume.entry().renew(attempt, self.past.clone())
    }

    /// For a session that came in by [`Broker::login_apart`](super::Broker::login_apart).
    pub fn secret(&self) -> LinkSecret {
        LinkSecret(self.consume.entry())
    }

    /// Publishes that are not yet written to the broker's socket: the caller's back-pressure.
    pub fn unwritten(&self) -> usize {
        self.publish.unwritten()
    }

    /// What was taken from the broker for this session alone and was not handed out.
    pub fn retained_bytes(&self) -> usize {
        self.consume.retained_bytes()
    }

    /// The session's share of what waits for many.
    pub fn shared_bytes(&self) -> usize {
        self.consume.shared_bytes()
    }

    /// Whether everything given has been performed and answered. Subscriptions may be active.
    pub fn is_idle(&self) -> bool {
        self.ready.is_empty() && self.consume.is_idle() && self.publish.is_idle()
    }

    /// The next event. Performs what was given and must be polled for anything to happen. Settlements given since the
    /// last poll go out together. After `Closed` or `Failed` it pends for ever.
    pub async fn next_event(&mut self) -> BrokerEvent {
        std::future::poll_fn(|cx| self.poll_event(cx)).await
    }

    /// The next [`BrokerEvent::Overflowed`], for a caller that can take nothing else now. Performs nothing.
    pub async fn next_overflow(&mut self) -> BrokerEvent {
        std::future::poll_fn(|cx| self.poll_overflow(cx)).await
    }

    fn poll_overflow(&mut self, cx: &mut Context<'_>) -> Poll<BrokerEvent> {
        match self.phase {
            Phase::Open => self.consume.poll_overflow(cx),
            Phase::Finishing(_) | Phase::Judging(_) | Phase::Releasing(_) | Phase::Ended => Poll::Pending,
        }
    }

    /// Ends the lease of a session that goes without `Close`: what was given is still performed, what is unacknowledged
    /// goes back. Takes at most the operation timeout; what is not done by then is done in the background.
    pub async fn close(mut self) {
        self.execute(BrokerCommand::Close);
        let limit = self.operation_timeout;
        let end = async {
            while !matches!(self.phase, Phase::Ended) || !self.ready.is_empty() {
                self.next_event().await;
            }
        };
        // Past the deadline `self` is dropped, which releases in the background.
        let _ = patience::timeout(limit, end).await;
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<BrokerEvent> {
        if let Some(event) = self.ready.pop_front() {
            return Poll::Ready(event);
        }
        let deliveries = match &mut self.phase {
            Phase::Ended => return Poll::Pending,
            Phase::Judging(work) => {
                let Poll::Ready((failure, concerns)) = work.poll_unpin(cx) else { return Poll::Pending };
                self.phase = Phase::Ended;
                return Poll::Ready(BrokerEvent::Failed { failure, concerns });
            }
            Phase::Releasing(work) => {
                let Poll::Ready(result) = work.poll_unpin(cx) else { return Poll::Pending };
                self.phase = Phase::Ended;
                return Poll::Ready(match result {
                    Ok(()) => BrokerEvent::Closed,
                    Err(failure) => BrokerEvent::Failed { failure, concerns: Concern::Session },
                });
            }
            Phase::Open => Deliveries::HandOut,
            Phase::Finishing(_) => Deliveries::Hold,
        };
        if let Poll::Ready(result) = self.poll_sides(cx, deliveries) {
            match result {
                Ok(event) => self.ready.push_back(event),
                Err(ending) => {
                    self.fail(ending);
                    return self.poll_event(cx);
                }
            }
        } else if let Phase::Finishing(deadline) = &mut self.phase {
            if self.consume.is_idle() && self.publish.is_idle() {
                self.phase = Phase::Releasing(Box::pin(self.remains().release()));
                return self.poll_event(cx);
            }
            let limit = self.confirm_timeout + self.operation_timeout;
            let deadline = deadline.get_or_insert_with(|| Timer::until(Instant::now() + limit));
            if deadline.poll_unpin(cx).is_ready() {
                self.fail((Failure::TimedOut { step: "close" }, Concern::Session));
            }
        }
        if self.pass.is_some() && self.consume.is_idle() && self.publish.is_idle() {
            self.pass = None;
        }
        self.ready.pop_front().map_or(Poll::Pending, Poll::Ready)
    }

    fn poll_sides(&mut self, cx: &mut Context<'_>, deliveries: Deliveries) -> Poll<Result<BrokerEvent, Ending>> {
        let sides = match self.first {
            Side::Consume => [Side::Consume, Side::Publish],
            Side::Publish => [Side::Publish, Side::Consume],
        };
        for side in sides {
            let polled = match side {
                Side::Consume => self.consume.poll(cx, deliveries),
                Side::Publish => self.publish.poll(cx, &mut self.ready),
            };
            if polled.is_ready() {
                self.first = sides[1];
                return polled;
            }
        }
        Poll::Pending
    }

    fn fail(&mut self, ending: Ending) {
        self.pass = None;
        // Acknowledged already, so nobody else would deliver them.
        self.ready.extend(self.consume.drain_inbox());
        let links = [self.consume.link(), self.publish.link()];
        self.past.links = links.into_iter().flatten().collect();
        let alone = self.past.links.iter().any(|link| link.seclusion.is_for_one());
        if alone && matches!(ending.0, Failure::LinkLost { .. }) {
            let (links, entry) = (self.past.links.clone(), self.consume.entry());
            let queues = self.consume.queues();
            self.phase = Phase::Judging(Box::pin(judge(ending, links, queues, entry)));
        } else {
            let (failure, concerns) = ending;
            self.ready.push_back(BrokerEvent::Failed { failure, concerns });
            self.phase = Phase::Ended;
        }
        self.remains().release_aside();
    }

    fn remains(&mut self) -> Remains {
        Remains { consume: self.consume.remains(), publish: self.publish.remains() }
    }
}

/// A session that was alone on a link that died by a protocol error is to blame for it.
async fn judge(ending: Ending, links: Vec<Arc<Link>>, queues: Vec<ShortText>, entry: Arc<Entry>) -> Ending {
    for link in links.iter().filter(|link| link.seclusion.is_for_one()) {
        let Some(Loss { death: Death::Protocol { reply_code }, reason }) = quarantine::loss(link).await else {
            continue;
        };
        warn!(
            node = link.node,
            role = link.role.name(),
            login = link.login,
            vhost = link.vhost,
            ?queues,
            reason,
            "a session is ended because its links die by it"
        );
        if link.role == Role::Consume && !queues.is_empty() {
            entry.quarantine().blame(entry.vhost(), &queues, Instant::now());
            return (Failure::Poisoned { queues }, Concern::Session);
        }
        return (Failure::Refused { reply_code, reply_text: reason }, ending.1);
    }
    ending
}

impl Drop for Channel {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Open | Phase::Finishing(_) => self.remains().release_aside(),
            // Half released: it goes on where it was.
            Phase::Releasing(work) => {
                if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                    runtime.spawn(work);
                }
            }
            Phase::Judging(_) | Phase::Ended => {}
        }
    }
}
