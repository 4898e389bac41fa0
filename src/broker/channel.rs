//! One session's lease on the broker: commands in, events out.
//!
//! Owned by one task. `execute` only takes note; `next_event` does the work and may be dropped at any await point
//! (`select!`): all progress is kept here. The two sides, consuming and publishing, advance independently; one of them may be
//! lost and come back while the other one goes on.

use super::consume::{ConsumeCommand, ConsumeSide, Deliveries, Ending};
use super::death::{Death, Loss};
use super::exclusive::LeaseId;
use super::link::{Link, Role, Slot};
use super::pace::Pass;
use super::pool::{Entry, LinkSecret};
use super::publish::PublishSide;
use super::quarantine::{self, Avoided, Past, Suspicion};
use super::release::Remains;
use super::tenancy::Tenancy;
use crate::patience::{self, Timer};
use crate::session::amqp::ShortText;
use crate::session::command::{BrokerCommand, Side};
use crate::session::event::{BrokerEvent, BrokerInfo, Concern, Failure, LoginFailure};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

/// What a caller takes of a session's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    Everything,
    /// No more than what tells it that it is too slow.
    Overflows,
}

pub struct Channel {
    consume: ConsumeSide,
    publish: PublishSide,
    consuming: Standing,
    publishing: Standing,
    phase: Phase,
    /// Events that come before whatever is polled next.
    ready: VecDeque<BrokerEvent>,
    first: Side,
    operation_timeout: Duration,
    confirm_timeout: Duration,
    /// Held by a session that comes back until it has all it had.
    pass: Option<Pass>,
    tenancy: Tenancy,
}

enum Phase {
    Open,
    /// `Close` was given; what was given before is being finished, at most until the timer that the next poll starts.
    Finishing(Option<Timer>),
    Releasing(BoxFuture<'static, Result<(), Failure>>),
    /// A side is lost, and whether this session is to blame is not known yet.
    Judging(Side, BoxFuture<'static, Ending>),
    /// Closed or failed: no event follows.
    Ended,
}

/// How a side is. One that is not up takes nothing.
enum Standing {
    Up,
    /// What it leaves to the next one.
    Lost(Box<Past>),
    Restoring(Box<Past>, BoxFuture<'static, Result<Restored, LoginFailure>>),
}

impl Standing {
    fn is_up(&self) -> bool {
        matches!(self, Standing::Up)
    }
}

/// What a side that was lost begins anew with.
pub(super) enum Restored {
    Consume { avoid: Option<Box<Avoided>>, lease: LeaseId, pass: Option<Pass>, suspicion: Suspicion, version: String },
    Publish { slot: Slot, suspicion: Suspicion },
}

impl Channel {
    pub(super) fn new(entry: Arc<Entry>, lease: LeaseId) -> Channel {
        Channel {
            operation_timeout: entry.config().operation_timeout,
            confirm_timeout: entry.config().confirm_timeout,
            tenancy: Tenancy::new(&entry, lease),
            consume: ConsumeSide::new(entry.clone(), lease),
            publish: PublishSide::new(entry),
            consuming: Standing::Up,
            publishing: Standing::Up,
            pass: None,
            phase: Phase::Open,
            ready: VecDeque::new(),
            first: Side::Consume,
        }
    }

    /// Takes a command in; [`Channel::next_event`] performs it. Commands after `Close` are ignored, and so are those for a side
    /// that is lost, but for `Restore`.
    pub fn execute(&mut self, command: BrokerCommand) {
        if !matches!(self.phase, Phase::Open | Phase::Judging(..)) {
            return;
        }
        match command {
            BrokerCommand::Declare { token, queue } => self.consume(ConsumeCommand::Declare { token, queue }),
            BrokerCommand::Delete { queue, only } => self.consume(ConsumeCommand::Delete { queue, only }),
            BrokerCommand::Subscribe(subscribe) => self.consume(ConsumeCommand::Subscribe(subscribe)),
            BrokerCommand::Unsubscribe { key, queue } => self.consume(ConsumeCommand::Unsubscribe { key, queue }),
            BrokerCommand::Settle { tag, outcome } if self.consuming.is_up() => self.consume.settle(tag, outcome),
            BrokerCommand::Publish(publish) if self.publishing.is_up() => self.publish.push(publish),
            BrokerCommand::Settle { .. } | BrokerCommand::Publish(_) => {}
            BrokerCommand::Restore { side, attempt } => self.restore(side, attempt),
            BrokerCommand::Close => {
                if let Phase::Open = self.phase {
                    self.phase = Phase::Finishing(None);
                }
            }
        }
    }

    fn consume(&mut self, command: ConsumeCommand) {
        if self.consuming.is_up() {
            self.consume.push(command);
        }
    }

    /// A side that is up is given up for a new one.
    fn restore(&mut self, side: Side, attempt: u32) {
        let entry = self.consume.entry();
        let past = match std::mem::replace(self.standing(side), Standing::Up) {
            Standing::Lost(past) | Standing::Restoring(past, _) => past,
            Standing::Up => Box::new(self.give_up(side)),
        };
        *self.standing(side) = match side {
            Side::Consume => Standing::Restoring(past.clone(), Box::pin(entry.restore_consuming(attempt, *past))),
            Side::Publish => Standing::Restoring(past.clone(), Box::pin(entry.restore_publishing(attempt, *past))),
        };
    }

    fn standing(&mut self, side: Side) -> &mut Standing {
        match side {
            Side::Consume => &mut self.consuming,
            Side::Publish => &mut self.publishing,
        }
    }

    /// For a session that came in by [`Broker::login_apart`](super::Broker::login_apart).
    pub fn secret(&self) -> LinkSecret {
        LinkSecret(self.consume.entry())
    }

    /// Publishes that are not yet written to the broker's socket: the caller's back-pressure.
    pub fn unwritten(&self) -> usize {
        if self.publishing.is_up() { self.publish.unwritten() } else { 0 }
    }

    /// What was taken from the broker for this session alone and was not handed out. Growth counts from here.
    pub fn retained_bytes(&self) -> usize {
        self.consume.retained_bytes()
    }

    /// The session's share of what waits for many.
    pub fn shared_bytes(&self) -> usize {
        self.consume.shared_bytes()
    }

    /// Whether everything given has been performed and answered. Subscriptions may be active.
    pub fn is_idle(&self) -> bool {
        let restoring = |standing: &Standing| matches!(standing, Standing::Restoring(..));
        let sides = self.is_finished() && !restoring(&self.consuming) && !restoring(&self.publishing);
        self.ready.is_empty() && sides
    }

    /// Nothing given is left to do. A side that is lost has nothing.
    fn is_finished(&self) -> bool {
        let consume = !self.consuming.is_up() || self.consume.is_idle();
        consume && (!self.publishing.is_up() || self.publish.is_idle())
    }

    /// The next event. Performs what was given and must be polled for anything to happen. Settlements given since the
    /// last poll go out together. After `Closed` or `Failed` it pends for ever.
    pub async fn next_event(&mut self) -> BrokerEvent {
        std::future::poll_fn(|cx| match self.poll_event(cx) {
            Poll::Pending => self.poll_tenancy(cx),
            ready => ready,
        })
        .await
    }

    /// The same, or, for a caller that can take nothing else now, the next [`BrokerEvent::Overflowed`] or `Dismissed`, which performs
    /// nothing. None when much more is retained than [`Channel::retained_bytes`] last said.
    pub async fn next_event_or_growth(&mut self, take: Take) -> Option<BrokerEvent> {
        std::future::poll_fn(|cx| {
            let polled = match take {
                Take::Everything => self.poll_event(cx),
                Take::Overflows => self.poll_overflow(cx),
            };
            let polled = match polled {
                Poll::Pending => self.poll_tenancy(cx),
                ready => ready,
            };
            match polled {
                Poll::Pending => self.consume.poll_growth(cx).map(|()| None),
                ready => ready.map(Some),
            }
        })
        .await
    }

    fn poll_tenancy(&self, cx: &mut Context<'_>) -> Poll<BrokerEvent> {
        match self.phase {
            // One that is closing or failed is over anyhow.
            Phase::Open | Phase::Finishing(_) => self.tenancy.poll(cx),
            Phase::Judging(..) | Phase::Releasing(_) | Phase::Ended => Poll::Pending,
        }
    }

    fn poll_overflow(&mut self, cx: &mut Context<'_>) -> Poll<BrokerEvent> {
        match self.phase {
            Phase::Open if self.consuming.is_up() => self.consume.poll_overflow(cx),
            _ => Poll::Pending,
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
                // A side that was lost on the way has it begin again, with the other one alone.
                if matches!(self.phase, Phase::Open) {
                    self.execute(BrokerCommand::Close);
                }
            }
        };
        // Past the deadline `self` is dropped, which releases in the background.
        let _ = patience::timeout(limit, end).await;
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<BrokerEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(event);
            }
            let deliveries = match &mut self.phase {
                Phase::Ended => return Poll::Pending,
                Phase::Judging(side, work) => {
                    let (side, (failure, concerns)) = (*side, ready!(work.poll_unpin(cx)));
                    self.phase = Phase::Open;
                    return Poll::Ready(BrokerEvent::Failed { failure, concerns, side: Some(side) });
                }
                Phase::Releasing(work) => {
                    let result = ready!(work.poll_unpin(cx));
                    self.phase = Phase::Ended;
                    return Poll::Ready(match result {
                        Ok(()) => BrokerEvent::Closed,
                        Err(failure) => BrokerEvent::Failed { failure, concerns: Concern::Session, side: None },
                    });
                }
                Phase::Open => Deliveries::HandOut,
                Phase::Finishing(_) => Deliveries::Hold,
            };
            if let Poll::Ready(event) = self.poll_restored(cx) {
                return Poll::Ready(event);
            }
            match self.poll_sides(cx, deliveries) {
                // Answers that came before it are ready.
                Poll::Ready((_, Ok(event))) => self.ready.push_back(event),
                Poll::Ready((side, Err(ending))) => self.lose(side, ending),
                Poll::Pending => {
                    if self.pass.is_some() && self.is_finished() {
                        self.pass = None;
                    }
                    if self.poll_finished(cx).is_pending() && self.ready.is_empty() {
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    /// Ready when the phase has changed.
    fn poll_finished(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let finished = self.is_finished();
        let Phase::Finishing(deadline) = &mut self.phase else { return Poll::Pending };
        if finished {
            self.phase = Phase::Releasing(Box::pin(self.remains().release()));
            return Poll::Ready(());
        }
        let limit = self.confirm_timeout + self.operation_timeout;
        let deadline = deadline.get_or_insert_with(|| Timer::until(Instant::now() + limit));
        ready!(deadline.poll_unpin(cx));
        let failure = Failure::TimedOut { step: "close" };
        self.ready.push_back(BrokerEvent::Failed { failure, concerns: Concern::Session, side: None });
        self.phase = Phase::Ended;
        self.remains().release_aside();
        Poll::Ready(())
    }

    fn poll_sides(
        &mut self,
        cx: &mut Context<'_>,
        deliveries: Deliveries,
    ) -> Poll<(Side, Result<BrokerEvent, Ending>)> {
        let sides = match self.first {
            Side::Consume => [Side::Consume, Side::Publish],
            Side::Publish => [Side::Publish, Side::Consume],
        };
        for side in sides {
            let polled = match side {
                Side::Consume if self.consuming.is_up() => self.consume.poll(cx, deliveries),
                Side::Publish if self.publishing.is_up() => self.publish.poll(cx, &mut self.ready),
                Side::Consume | Side::Publish => Poll::Pending,
            };
            if let Poll::Ready(result) = polled {
                self.first = sides[1];
                return Poll::Ready((side, result));
            }
        }
        Poll::Pending
    }

    fn poll_restored(&mut self, cx: &mut Context<'_>) -> Poll<BrokerEvent> {
        for side in [Side::Consume, Side::Publish] {
            let Standing::Restoring(_, work) = self.standing(side) else { continue };
            let Poll::Ready(result) = work.poll_unpin(cx) else { continue };
            let result = match result {
                Ok(restored) => Ok(self.begin_anew(side, restored)),
                Err(failure) => {
                    if let Standing::Restoring(past, _) = std::mem::replace(self.standing(side), Standing::Up) {
                        *self.standing(side) = Standing::Lost(past);
                    }
                    Err(failure)
                }
            };
            return Poll::Ready(BrokerEvent::Restored { side, result });
        }
        Poll::Pending
    }

    fn begin_anew(&mut self, side: Side, restored: Restored) -> BrokerInfo {
        *self.standing(side) = Standing::Up;
        match restored {
            Restored::Consume { avoid, lease, pass, suspicion, version } => {
                self.consume.begin_anew(lease, suspicion, avoid);
                self.pass = pass;
                BrokerInfo { version }
            }
            Restored::Publish { slot, suspicion } => {
                let version = slot.link().version.clone();
                self.publish.begin_anew(slot, suspicion);
                BrokerInfo { version }
            }
        }
    }

    /// One side is lost; the other one goes on.
    fn lose(&mut self, side: Side, ending: Ending) {
        if let Phase::Finishing(_) = self.phase {
            // What was to be finished on this side has to be given again.
            self.phase = Phase::Open;
        }
        let queues = self.consume.queues();
        let past = self.give_up(side);
        let alone = past.link.clone().filter(|link| link.seclusion.is_for_one());
        *self.standing(side) = Standing::Lost(Box::new(past));
        match alone {
            Some(link) if matches!(ending.0, Failure::LinkLost { .. }) => {
                let entry = self.consume.entry();
                self.phase = Phase::Judging(side, Box::pin(judge(ending, link, queues, entry)));
            }
            _ => {
                let (failure, concerns) = ending;
                self.ready.push_back(BrokerEvent::Failed { failure, concerns, side: Some(side) });
            }
        }
    }

    /// Releases what a side holds.
    fn give_up(&mut self, side: Side) -> Past {
        let (past, remains) = match side {
            Side::Consume => {
                self.pass = None;
                // Acknowledged already, so nobody else would deliver them.
                self.ready.extend(self.consume.drain_inbox());
                let past = self.consume.past();
                (past, Remains { consume: self.consume.remains(), ..Remains::default() })
            }
            Side::Publish => {
                let past = self.publish.past();
                (past, Remains { publish: self.publish.remains(), ..Remains::default() })
            }
        };
        remains.release_aside();
        past
    }

    fn remains(&mut self) -> Remains {
        Remains { consume: self.consume.remains(), publish: self.publish.remains() }
    }
}

/// A session that was alone on a link that died by a protocol error is to blame for it.
async fn judge(ending: Ending, link: Arc<Link>, queues: Vec<ShortText>, entry: Arc<Entry>) -> Ending {
    let Some(Loss { death: Death::Protocol { reply_code }, reason }) = quarantine::loss(&link).await else {
        return ending;
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
    (Failure::Refused { reply_code, reply_text: reason }, ending.1)
}

impl Drop for Channel {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Open | Phase::Finishing(_) | Phase::Judging(..) => self.remains().release_aside(),
            // Half released: it goes on where it was.
            Phase::Releasing(work) => {
                if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                    runtime.spawn(work);
                }
            }
            Phase::Ended => {}
        }
    }
}
