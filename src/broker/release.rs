//! Giving a lease's channels back so that nobody else on the link notices.
//!
//! A channel is closed behind a barrier, and consumers are dropped after that.
//!
//! The barrier proves that RabbitMQ's channel has every acknowledgement, which is as much as its queue for most kinds. For a
//! quorum queue the channel holds acknowledgements back while 32 of its commands are under way, and forgets those when it is
//! closed. So where there may be so many, the queue is asked as well: see [`hand_over`].

use super::barrier::{Closing, barrier, barrier_close, close, judge};
use super::consume::{Completed, Running};
use super::convert::short;
use super::exclusive::LeaseId;
use super::fault::{Fault, refused, within};
use super::link::{Leased, Link};
use super::publish::{Making, Writing};
use super::subscribe::Subscribed;
use crate::session::amqp::ShortText;
use crate::session::event::Failure;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use lapin::PublisherConfirm;
use lapin::options::{BasicCancelOptions, BasicQosOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use std::collections::VecDeque;
use std::sync::Arc;
use tracing::debug;

/// AMQP's reply code.
const NOT_FOUND: u16 = 404;
/// Half of what RabbitMQ's channel sends to a quorum queue before it waits (`quorum_commands_soft_limit`, 32): an operator may have
/// set less.
const HELD_BACK_FROM: u64 = 16;

/// All that a lease holds, to be released as a whole.
#[derive(Default)]
pub(super) struct Remains {
    pub(super) consume: ConsumeRemains,
    pub(super) publish: PublishRemains,
}

#[derive(Default)]
pub(super) struct ConsumeRemains {
    pub(super) lease: Option<LeaseId>,
    pub(super) channel: Option<Leased>,
    pub(super) consumers: Vec<Subscribed>,
    /// Commands that a queue may have had from this channel.
    pub(super) orders: u64,
    pub(super) running: Option<Running>,
    pub(super) settling: FuturesUnordered<BoxFuture<'static, Result<(), Fault>>>,
    /// Whether RabbitMQ may not have all settlements: then a channel that is found dead is told.
    pub(super) unproven: bool,
}

#[derive(Default)]
pub(super) struct PublishRemains {
    pub(super) channel: Option<Leased>,
    pub(super) opening: Option<Making>,
    /// In the order of publishing.
    pub(super) writing: VecDeque<Writing>,
    /// Dropped after the channel was closed: lapin would collect a dropped confirm until then.
    pub(super) confirms: Vec<PublisherConfirm>,
}

impl Remains {
    /// Releases everything; every wait in it has a deadline. The error is the first step that was not answered.
    pub(super) async fn release(self) -> Result<(), Failure> {
        let (consume, publish) = futures_util::join!(self.consume.release(), self.publish.release());
        consume.and(publish)
    }

    /// Releases in the background. Without a runtime the process is ending, and the connections end with it.
    pub(super) fn release_aside(self) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(failure) = self.release().await {
                    debug!(?failure, "a lease could not be released properly");
                }
            });
        }
    }
}

impl ConsumeRemains {
    async fn release(mut self) -> Result<(), Failure> {
        if let Some(running) = self.running.take() {
            match running.work.await {
                Ok(Completed::Opened(channel)) => self.channel = Some(channel),
                Ok(Completed::Subscribed { subscribed, .. }) => self.consumers.push(subscribed),
                Ok(_) | Err(_) => {}
            }
        }
        while self.settling.next().await.is_some() {}
        let (Some(channel), Some(lease)) = (&self.channel, self.lease) else { return Ok(()) };
        let mut proof = barrier(&channel.raw, &channel.link).await;
        let asks = proof == Closing::Closed && self.orders >= HELD_BACK_FROM;
        if asks {
            proof = hand_over(&channel.raw, &channel.link, &self.consumers).await;
        }
        let mut end = proof;
        let queues = channel.link.exclusive.created_by(lease);
        if end == Closing::Closed {
            end = delete_queues(&channel.raw, &channel.link, &queues).await;
        }
        if end == Closing::Dead
            && !queues.is_empty()
            && let Ok(scratch) = channel.link.scratch().await
            && delete_queues(&scratch, &channel.link, &queues).await == Closing::Closed
        {
            barrier_close(&scratch, &channel.link).await;
        }
        // What could not be deleted is gone, or goes with the connection.
        queues.iter().for_each(|queue| channel.link.exclusive.release(queue, lease));
        if end == Closing::Closed {
            end = close(&channel.raw, &channel.link).await;
        }
        // Only the barrier says that they have arrived; what is dead behind it does no harm.
        let lost = proof == Closing::Dead && self.unproven;
        let failure = lost.then_some(()).and_then(|()| {
            // A queue that is gone has nothing that could come again.
            let refusal = channel.link.wire.refusal(channel.raw.id());
            if asks && refusal.as_ref().is_some_and(|refusal| refusal.reply_code == NOT_FOUND) {
                return None;
            }
            let reason =
                || channel.link.state().lost.map_or_else(|| "the AMQP channel was closed".into(), |loss| loss.reason);
            Some(refusal.map_or_else(|| Failure::LinkLost { reason: reason() }, refused))
        });
        if end == Closing::Silent
            && let Some(channel) = self.channel.take()
        {
            park(channel, self.consumers);
        }
        failure.map_or_else(|| answered(end), Err)
    }
}

/// Has quorum queues take what RabbitMQ's channel holds back for them (rabbit_fifo_client of 3.10 and 4.0).
///
/// A cancel is a command of the queue's log, behind all that was sent to it: when it is answered they have been applied. From 4.0 on
/// the channel sends what it holds back before it; 3.10 does when it is told of what was applied. It has been told by the time it
/// has asked the queue something else, twice: whatever that proves, it has been sent before, and so it is in the log before the
/// channel's end.
async fn hand_over(raw: &lapin::Channel, link: &Arc<Link>, consumers: &[Subscribed]) -> Closing {
    let replicated = || consumers.iter().filter(|consumer| consumer.replicated);
    for consumer in replicated() {
        let cancel = raw.basic_cancel(consumer.tag.clone(), BasicCancelOptions::default());
        let end = judge(within(link.config.operation_timeout, "cancel", cancel).await, link);
        if end != Closing::Closed {
            return end;
        }
    }
    let mut queues: Vec<_> = replicated().map(|consumer| &consumer.queue).collect();
    queues.sort_unstable_by_key(|queue| queue.as_str());
    queues.dedup();
    for queue in queues.iter().chain(&queues) {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let question = raw.queue_declare(short(queue), options, FieldTable::default());
        let end = judge(within(link.config.operation_timeout, "queue declare", question).await.map(drop), link);
        if end != Closing::Closed {
            return end;
        }
    }
    Closing::Closed
}

/// Keeps a channel that does not answer until it does or its link ends, with what must not be dropped before. Closed at once,
/// lapin would take a late exception on it for an error of the whole connection.
fn park<T: Send + 'static>(channel: Leased, until_then: T) {
    tokio::spawn(async move {
        let mut state = channel.link.watch();
        let answered = tokio::select! {
            _ = state.wait_for(|state| state.lost.is_some()) => false,
            answer = channel.raw.basic_qos(1, BasicQosOptions { global: false }) => answer.is_ok(),
        };
        if answered {
            close(&channel.raw, &channel.link).await;
        }
        drop(until_then);
    });
}

/// Deletes queues one after another, so that a refusal crosses nothing. A queue that is gone is no refusal.
async fn delete_queues(raw: &lapin::Channel, link: &Arc<Link>, queues: &[ShortText]) -> Closing {
    for queue in queues {
        let deletion = raw.queue_delete(short(queue), QueueDeleteOptions::default());
        let end = judge(within(link.config.operation_timeout, "queue delete", deletion).await.map(drop), link);
        if end != Closing::Closed {
            return end;
        }
    }
    Closing::Closed
}

impl PublishRemains {
    async fn release(mut self) -> Result<(), Failure> {
        if let Some(opening) = self.opening.take()
            && let Ok(channel) = opening.await
        {
            self.channel = Some(channel);
        }
        let Some(channel) = &self.channel else { return Ok(()) };
        if channel.link.state().blocked {
            // lapin writes nothing on a blocked connection. The place on the link stays taken meanwhile.
            tokio::spawn(self.release_when_unblocked());
            return Ok(());
        }
        let end = self.close().await;
        if end == Closing::Silent
            && let Some(channel) = self.channel.take()
        {
            park(channel, (self.confirms, self.writing));
        }
        answered(end)
    }

    async fn release_when_unblocked(mut self) {
        let Some(channel) = &self.channel else { return };
        let mut state = channel.link.watch();
        // An error says that the link is gone.
        let _ = state.wait_for(|state| !state.blocked || state.lost.is_some()).await;
        self.close().await;
    }

    /// lapin writes methods before publishes that wait: the barrier would overtake them, and an exception that one
    /// raises would cross the close. So they are written first.
    async fn close(&mut self) -> Closing {
        let Some(channel) = &self.channel else { return Closing::Dead };
        while let Some(writing) = self.writing.pop_front() {
            match within(channel.link.config.operation_timeout, "publish", writing.end()).await {
                Ok(confirm) => self.confirms.push(confirm),
                Err(fault @ Fault::TimedOut(_)) => {
                    channel.link.failure(fault, None);
                    return Closing::Silent;
                }
                Err(Fault::Lapin(_)) => return Closing::Dead,
            }
        }
        barrier_close(&channel.raw, &channel.link).await
    }
}

fn answered(end: Closing) -> Result<(), Failure> {
    match end {
        Closing::Closed | Closing::Dead => Ok(()),
        Closing::Silent => Err(Failure::TimedOut { step: "channel close" }),
    }
}
