//! One hub channel: the AMQP channel that consumes up to 256 shared queues, and the task that hands out what comes.
//!
//! Queues are made on a workbench beside it, one after another; only `basic.consume` and acknowledgements are written here.
//! A delivery is acknowledged when it is in the inboxes of all subscribers: nobody holds the others back.
//!
//! If the broker closes the channel, the queues live on with the connection, and are consumed again on a new one. What was
//! delivered and not handed out by then comes again; nothing is lost. Before a consumer is added, everything handed out has
//! been acknowledged, so that if it is refused nothing comes twice either. After any other loss what was handed out last may
//! come again, flagged as redelivered.

use super::config::{SETTLEMENTS_IN_FLIGHT_MAX, SHARED_LINGER, SHARED_PREFETCH};
use super::consume::{message, send};
use super::convert::{header_bytes, short};
use super::fanout::{Counted, Fanout};
use super::fault::{Fault, within};
use super::hub::Place;
use super::inbox::Parcel;
use super::link::{Leased, Role};
use super::pool::Entry;
use super::publish::reserve_failure;
use super::quarantine::Company;
use super::release::barrier_close;
use super::settle::Ledger;
use super::shared_consumer::{Item, QueueNumber, SharedConsumer};
use super::workbench::Workbench;
use crate::session::amqp::ShortText;
use crate::session::command::Settlement;
use crate::session::event::Failure;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, SelectAll, StreamExt};
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, warn};

/// Messages put into inboxes before other tasks get their turn, those that empty the inboxes among them.
const INTAKES_PER_TURN: usize = 4096;

/// Channels lost in a row, without a queue consumed in between, before all is given up. Each burns a channel number.
const REOPENINGS_MAX: usize = 8;

/// Serves the fan-outs of one place until it has none, or its link is lost.
pub(super) async fn run(entry: Arc<Entry>, place: Arc<Place>, arrivals: mpsc::UnboundedReceiver<Arc<Fanout>>) {
    let channel = match open(&entry).await {
        Ok(channel) => channel,
        Err(failure) => return entry.hub().abandon(&place, &failure),
    };
    // It is set only here.
    let _ = place.link.set(channel.link.clone());
    let mut hub_channel = HubChannel::new(entry, place, arrivals, channel);
    if let Err(failure) = hub_channel.serve().await {
        debug!(?failure, "a hub channel was lost");
        hub_channel.entry.hub().abandon(&hub_channel.place, &failure);
    }
    hub_channel.close().await;
}

async fn open(entry: &Arc<Entry>) -> Result<Leased, Failure> {
    let slot = entry.clone().reserve(Role::Consume, Company::Any).await.map_err(reserve_failure)?;
    let link = slot.link().clone();
    let channel = link.open_channel(slot).await?;
    prefetch(&channel).await?;
    Ok(channel)
}

/// For each consumer that is added later.
async fn prefetch(channel: &Leased) -> Result<(), Failure> {
    let qos = channel.raw.basic_qos(SHARED_PREFETCH, BasicQosOptions { global: false });
    let done = within(channel.link.config.operation_timeout, "prefetch", qos).await;
    done.map_err(|fault| channel.link.failure(fault, channel.refusal()))
}

struct Queue {
    fanout: Arc<Fanout>,
    name: ShortText,
    _count: Counted,
}

enum Job {
    Delete(ShortText),
    Prepare(Arc<Fanout>),
}

enum Done {
    Cleared,
    Deleted,
    Prepared(Arc<Fanout>, Result<ShortText, Failure>),
}

/// What a delivery that is flagged as redelivered can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Redeliveries {
    /// No subscriber has seen it.
    New,
    PerhapsKnown,
}

struct HubChannel {
    arrivals: mpsc::UnboundedReceiver<Arc<Fanout>>,
    /// None while it is at work.
    bench: Option<Workbench>,
    /// When the workbench gives its channel back.
    bench_until: Option<Instant>,
    channel: Leased,
    consumers: SelectAll<SharedConsumer>,
    entry: Arc<Entry>,
    jobs: VecDeque<Job>,
    ledger: Ledger,
    next: QueueNumber,
    place: Arc<Place>,
    queues: BTreeMap<QueueNumber, Queue>,
    redeliveries: Redeliveries,
    settling: FuturesUnordered<BoxFuture<'static, Result<(), Fault>>>,
    /// When the queues are looked over again for those without subscribers.
    sweep_at: Option<Instant>,
    working: Option<BoxFuture<'static, (Workbench, Done)>>,
}

impl HubChannel {
    fn new(
        entry: Arc<Entry>,
        place: Arc<Place>,
        arrivals: mpsc::UnboundedReceiver<Arc<Fanout>>,
        channel: Leased,
    ) -> HubChannel {
        HubChannel {
            arrivals,
            bench: Some(Workbench::new(channel.link.clone(), entry.next_lease())),
            bench_until: None,
            channel,
            consumers: SelectAll::new(),
            entry,
            jobs: VecDeque::new(),
            ledger: Ledger::default(),
            next: 0,
            place,
            queues: BTreeMap::new(),
            redeliveries: Redeliveries::New,
            settling: FuturesUnordered::new(),
            sweep_at: None,
            working: None,
        }
    }

    async fn serve(&mut self) -> Result<(), Failure> {
        loop {
            self.start_job();
            self.flush(SETTLEMENTS_IN_FLIGHT_MAX.saturating_sub(self.settling.len()));
            if self.is_over() {
                return Ok(());
            }
            let timer = [self.sweep_at, self.bench_until].into_iter().flatten().min();
            let timer = async {
                match timer {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // Every branch is cancel-safe: what it did so far lives in the field that it borrows.
            tokio::select! {
                Some(fanout) = self.arrivals.recv() => self.jobs.push_back(Job::Prepare(fanout)),
                (bench, done) = async { self.working.as_mut().expect("checked by the branch's condition").await },
                    if self.working.is_some() => {
                    self.working = None;
                    self.bench = Some(bench);
                    self.finish(done).await?;
                }
                Some(item) = self.consumers.next(), if !self.consumers.is_empty() => self.hand_out(item).await?,
                Some(result) = self.settling.next(), if !self.settling.is_empty() => {
                    if let Err(fault) = result {
                        self.lost(fault).await?;
                    }
                }
                () = self.place.nudge.notified() => self.sweep(),
                () = timer => {
                    self.sweep();
                    self.clear_bench();
                }
            }
        }
    }

    fn is_over(&self) -> bool {
        self.queues.is_empty()
            && self.jobs.is_empty()
            && self.working.is_none()
            && self.consumers.is_empty()
            && self.entry.hub().leave_if_empty(&self.place)
    }

    /// Starts the next job if the workbench is free.
    fn start_job(&mut self) {
        while let Some(bench) = self.bench.take_if(|_| !self.jobs.is_empty()) {
            let mut bench = bench;
            match self.jobs.pop_front() {
                Some(Job::Prepare(fanout)) => {
                    // All who wanted it are gone already.
                    if self.entry.hub().retire(&fanout, std::time::Duration::ZERO) {
                        self.bench = Some(bench);
                        continue;
                    }
                    self.working = Some(Box::pin(async move {
                        let result = bench.prepare(&fanout.declaration, &fanout.binding).await;
                        (bench, Done::Prepared(fanout, result))
                    }));
                }
                Some(Job::Delete(queue)) => {
                    self.working = Some(Box::pin(async move {
                        if let Err(failure) = bench.delete(&queue).await {
                            // It is still consumed, so it does not grow, and ends with the connection.
                            warn!(%queue, ?failure, "the queue of a shared subscription could not be deleted");
                        }
                        (bench, Done::Deleted)
                    }));
                }
                None => self.bench = Some(bench),
            }
        }
    }

    fn clear_bench(&mut self) {
        if self.bench_until.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.bench_until = None;
        // If it is at work, its end sets the time anew.
        if let Some(mut bench) = self.bench.take() {
            self.working = Some(Box::pin(async move {
                bench.clear().await;
                (bench, Done::Cleared)
            }));
        }
    }

    async fn finish(&mut self, done: Done) -> Result<(), Failure> {
        if !matches!(done, Done::Cleared) {
            self.bench_until = Some(Instant::now() + SHARED_LINGER);
        }
        let (fanout, name) = match done {
            Done::Cleared | Done::Deleted => return Ok(()),
            Done::Prepared(fanout, Ok(name)) => (fanout, name),
            Done::Prepared(fanout, Err(failure)) => {
                self.entry.hub().fail(&fanout, failure);
                return Ok(());
            }
        };
        let number = self.next;
        self.next += 1;
        let count = Counted::new(&self.entry.counts().shared_queues);
        self.queues.insert(number, Queue { fanout: fanout.clone(), name: name.clone(), _count: count });
        if let Err(fault) = self.settle_all().await {
            self.lost(fault).await?;
        } else if let Err(failure) = self.consume(number).await {
            self.refused(number, failure)?;
            self.recover().await?;
        }
        if self.queues.contains_key(&number) {
            fanout.activate(name);
            self.sweep();
        }
        Ok(())
    }

    async fn consume(&mut self, number: QueueNumber) -> Result<(), Failure> {
        let Some(queue) = self.queues.get(&number) else { return Ok(()) };
        let tag = ShortString::try_new(format!("h{number}")).unwrap_or_default();
        let options = BasicConsumeOptions { no_ack: false, ..BasicConsumeOptions::default() };
        let work = self.channel.raw.basic_consume(short(&queue.name), tag, options, FieldTable::default());
        match within(self.channel.link.config.operation_timeout, "consume", work).await {
            Ok(stream) => {
                self.consumers.push(SharedConsumer::new(number, stream));
                Ok(())
            }
            Err(fault) => Err(self.failure(fault)),
        }
    }

    /// Ends the one queue that may not be consumed; any other failure concerns all.
    fn refused(&mut self, number: QueueNumber, failure: Failure) -> Result<(), Failure> {
        let Failure::Refused { .. } = failure else { return Err(failure) };
        if let Some(queue) = self.queues.remove(&number) {
            self.entry.hub().fail(&queue.fanout, failure);
            self.jobs.push_back(Job::Delete(queue.name));
        }
        Ok(())
    }

    fn failure(&self, fault: Fault) -> Failure {
        self.channel.link.failure(fault, self.channel.refusal())
    }

    /// The channel is gone without a reason of ours; if the link is well, all goes on with another one.
    async fn lost(&mut self, fault: Fault) -> Result<(), Failure> {
        match self.failure(fault) {
            failure @ Failure::Refused { .. } => {
                warn!(?failure, "the broker closed a hub channel");
                self.redeliveries = Redeliveries::PerhapsKnown;
                self.recover().await
            }
            failure => Err(failure),
        }
    }

    async fn recover(&mut self) -> Result<(), Failure> {
        'channel: for _ in 0..REOPENINGS_MAX {
            self.reopen().await?;
            for number in self.queues.keys().copied().collect::<Vec<_>>() {
                if let Err(failure) = self.consume(number).await {
                    self.refused(number, failure)?;
                    continue 'channel;
                }
            }
            return Ok(());
        }
        Err(Failure::LinkLost { reason: "the broker closed the channel again and again".into() })
    }

    /// Another channel on the same connection, to which the queues are exclusive.
    async fn reopen(&mut self) -> Result<(), Failure> {
        let limit = self.channel.link.config.operation_timeout;
        // lapin would cancel consumers that are dropped before it has ended them, on a channel that is closed.
        let ended = async { while self.consumers.next().await.is_some() {} };
        if tokio::time::timeout(limit, ended).await.is_err() {
            return Err(Failure::TimedOut { step: "channel close" });
        }
        while self.settling.next().await.is_some() {}
        self.ledger = Ledger::default();
        let slot = self.channel.extra_slot();
        self.channel = self.channel.link.clone().open_channel(slot).await?;
        prefetch(&self.channel).await
    }

    /// Hands out the delivery and those that are there already, then lets the subscribers run.
    async fn hand_out(&mut self, first: (QueueNumber, Item)) -> Result<(), Failure> {
        let mut intakes = 0;
        let mut next = Some(first);
        while let Some((number, item)) = next {
            match item {
                Item::Delivery(delivery) => intakes += 1 + self.deliver(number, delivery),
                Item::Error(error) => return self.lost(Fault::Lapin(error)).await,
                Item::End => self.ended(number)?,
            }
            if intakes >= INTAKES_PER_TURN {
                break;
            }
            next = self.consumers.next().now_or_never().flatten();
        }
        self.flush(SETTLEMENTS_IN_FLIGHT_MAX.saturating_sub(self.settling.len()));
        tokio::task::yield_now().await;
        Ok(())
    }

    fn deliver(&mut self, number: QueueNumber, delivery: lapin::message::Delivery) -> usize {
        let tag = delivery.delivery_tag;
        self.ledger.hand_out(tag);
        let reached = match self.queues.get(&number) {
            Some(queue) => {
                let redelivered = delivery.redelivered && self.redeliveries == Redeliveries::PerhapsKnown;
                let message = message(delivery);
                let bytes = message.body.len() + header_bytes(&message.properties);
                queue.fanout.deliver(&Parcel { bytes, message: Arc::new(message), redelivered })
            }
            // Its queue is being deleted.
            None => 0,
        };
        // It was handed out right above.
        let _ = self.ledger.settle(tag, Settlement::Ack);
        reached
    }

    /// A stream is over: the queue was deleted, by us or by somebody else.
    fn ended(&mut self, number: QueueNumber) -> Result<(), Failure> {
        if !self.channel.raw.status().connected() {
            let lost = self.channel.link.state().lost.map(|loss| loss.reason);
            return Err(Failure::LinkLost { reason: lost.unwrap_or_else(|| "the AMQP channel was closed".into()) });
        }
        if let Some(queue) = self.queues.remove(&number) {
            self.entry.hub().cancel(&queue.fanout);
            self.jobs.push_back(Job::Delete(queue.name));
        }
        Ok(())
    }

    fn flush(&mut self, room: usize) {
        let limit = self.channel.link.config.operation_timeout;
        for order in self.ledger.flush(room) {
            let raw = self.channel.raw.clone();
            self.settling.push(Box::pin(async move { within(limit, "acknowledgement", send(&raw, order)).await }));
        }
    }

    /// Everything handed out is acknowledged before anything else is written.
    async fn settle_all(&mut self) -> Result<(), Fault> {
        self.flush(usize::MAX);
        while let Some(result) = self.settling.next().await {
            result?;
        }
        Ok(())
    }

    /// Deletes the queues that have been without subscribers for long enough.
    fn sweep(&mut self) {
        self.sweep_at = None;
        let mut due = Vec::new();
        for (number, queue) in &self.queues {
            if self.entry.hub().retire(&queue.fanout, SHARED_LINGER) {
                due.push(*number);
            } else if let Some(since) = queue.fanout.deserted() {
                let at = since + SHARED_LINGER;
                self.sweep_at = Some(self.sweep_at.map_or(at, |other| other.min(at)));
            }
        }
        for number in due {
            if let Some(queue) = self.queues.remove(&number) {
                self.jobs.push_back(Job::Delete(queue.name));
            }
        }
    }

    /// Gives back what is left, as far as the link still lets it.
    async fn close(mut self) {
        if let Some(working) = self.working.take() {
            self.bench = Some(working.await.0);
        }
        if self.channel.link.state().lost.is_some() {
            return;
        }
        while self.settling.next().await.is_some() {}
        barrier_close(&self.channel.raw, &self.channel.link).await;
        let Some(mut bench) = self.bench.take() else { return };
        for queue in self.queues.values() {
            if bench.delete(&queue.name).await.is_err() {
                break;
            }
        }
        bench.clear().await;
    }
}
