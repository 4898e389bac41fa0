//! One hub channel: the AMQP channel that consumes up to 256 shared queues, and the task that hands out what comes.
//!
//! Queues are made in a workshop beside it; only `basic.consume` and acknowledgements are written here, and queues that are
//! ready at the same time are consumed at once. A delivery is acknowledged when it is in the inboxes of all subscribers:
//! nobody holds the others back.
//!
//! If the broker closes the channel, the queues live on with the connection, and are consumed again on a new one. What was
//! delivered and not handed out by then comes again; nothing is lost. Before consumers are added, everything handed out has
//! been acknowledged, and nothing more is handed out until they are answered, so that if one is refused nothing comes twice
//! either. After any other loss what was handed out last may come again, flagged as redelivered.

use super::barrier::barrier_close;
use super::config::{
    PERMISSION_AGE_MAX, SETTLEMENTS_IN_FLIGHT_MAX, SHARED_LINGER, SHARED_PREFETCH, SHARED_RETURN_PATIENCE,
};
use super::consume::{message, send};
use super::convert::{header_bytes, short};
use super::fanout::{Counted, Fanout};
use super::fault::{Fault, within};
use super::hub::{Errand, Place};
use super::inbox::Parcel;
use super::link::{Leased, Role};
use super::pool::Entry;
use super::publish::reserve_failure;
use super::quarantine::Company;
use super::settle::Ledger;
use super::shared_consumer::{Item, QueueNumber, SharedConsumer};
use super::sluice::{Patience, Sluice, Source};
use super::workshop::{Prepared, Product, Proven, Request, Workshop};
use crate::budget::Charge;
use crate::patience;
use crate::session::amqp::ShortText;
use crate::session::command::Settlement;
use crate::session::event::Failure;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::{FuturesUnordered, SelectAll, StreamExt};
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, warn};

/// Messages put into inboxes before other tasks get their turn, those that empty the inboxes among them.
const INTAKES_PER_TURN: usize = 4096;

/// RabbitMQ is asked about a binding in use when this part of `recheck` has passed since it last was.
const REVIEW_SHARE: f64 = 0.9;

/// Channels lost in a row, without a queue consumed in between, before all is given up. Each burns a channel number.
const REOPENINGS_MAX: usize = 8;

/// Serves the fan-outs of one place until it has none, or its link is lost.
pub(super) async fn run(entry: Arc<Entry>, place: Arc<Place>, errands: mpsc::UnboundedReceiver<Errand>) {
    let channel = match open(&entry).await {
        Ok(channel) => channel,
        Err(failure) => return entry.hub().abandon(&place, &failure),
    };
    // It is set only here.
    let _ = place.link.set(channel.link.clone());
    let mut hub_channel = HubChannel::new(entry, place, errands, channel);
    if let Err(failure) = hub_channel.serve().await {
        debug!(?failure, "a hub channel was lost");
        hub_channel.entry.hub().abandon(&hub_channel.place, &failure);
    }
    hub_channel.close().await;
}

async fn open(entry: &Arc<Entry>) -> Result<Leased, Failure> {
    let company = entry.channel_limit().company(Company::Any, Instant::now());
    let slot = entry.clone().reserve(Role::Consume, company).await.map_err(reserve_failure)?;
    let channel = entry.channel_limit().open(slot).await?;
    prefetch(&channel).await?;
    Ok(channel)
}

/// For each consumer that is added later.
async fn prefetch(channel: &Leased) -> Result<(), Failure> {
    let qos = channel.raw.basic_qos(SHARED_PREFETCH, BasicQosOptions { global: false });
    let done = within(channel.link.config.operation_timeout, "prefetch", qos).await;
    done.map_err(|fault| channel.link.failure(fault, channel.refusal()))
}

/// Bounds and counts what waits on a channel from now on.
fn bound_waiting(channel: &Leased) -> Arc<Sluice> {
    let config = &channel.link.config;
    let sluice = Arc::new(Sluice::charged(config.shared_waiting_bytes_max, config.budget.clone()));
    channel.link.wire.limit_channel(channel.raw.id(), &sluice);
    sluice
}

fn tag_of(number: QueueNumber) -> ShortString {
    ShortString::try_new(format!("h{number}")).unwrap_or_default()
}

struct Queue {
    /// When RabbitMQ was asked for it.
    asked_at: Instant,
    fanout: Arc<Fanout>,
    name: ShortText,
    _count: Counted,
}

/// To consumers that were asked for together.
type Answers = Vec<(QueueNumber, Result<lapin::Consumer, Fault>)>;

/// What a delivery that is flagged as redelivered can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Redeliveries {
    /// No subscriber has seen it.
    New,
    PerhapsKnown,
}

struct HubChannel {
    channel: Leased,
    consumers: SelectAll<SharedConsumer>,
    /// Nothing is handed out meanwhile.
    consuming: Option<BoxFuture<'static, Answers>>,
    entry: Arc<Entry>,
    errands: mpsc::UnboundedReceiver<Errand>,
    ledger: Ledger,
    next: QueueNumber,
    /// Until then what was requeued may still come.
    patience_until: Option<Instant>,
    place: Arc<Place>,
    /// Queues to be consumed, and when RabbitMQ was asked for them.
    prepared: Vec<(Arc<Fanout>, ShortText, Instant)>,
    queues: BTreeMap<QueueNumber, Queue>,
    redeliveries: Redeliveries,
    /// When the bindings are looked over again for those that RabbitMQ has to be asked about.
    review_at: Option<Instant>,
    settling: FuturesUnordered<BoxFuture<'static, Result<(), Fault>>>,
    /// Of the present channel.
    sluice: Arc<Sluice>,
    /// When the queues are looked over again for those without subscribers.
    sweep_at: Option<Instant>,
    workshop: Workshop,
}

impl HubChannel {
    fn new(
        entry: Arc<Entry>,
        place: Arc<Place>,
        errands: mpsc::UnboundedReceiver<Errand>,
        channel: Leased,
    ) -> HubChannel {
        HubChannel {
            errands,
            workshop: Workshop::new(channel.link.clone(), entry.next_lease()),
            sluice: bound_waiting(&channel),
            channel,
            consumers: SelectAll::new(),
            consuming: None,
            entry,
            ledger: Ledger::default(),
            next: 0,
            patience_until: None,
            place,
            prepared: Vec::new(),
            queues: BTreeMap::new(),
            redeliveries: Redeliveries::New,
            review_at: None,
            settling: FuturesUnordered::new(),
            sweep_at: None,
        }
    }

    async fn serve(&mut self) -> Result<(), Failure> {
        loop {
            // Where all who wanted a queue are gone already, it is not made.
            self.workshop.start(|fanout| !self.entry.hub().retire(fanout, Duration::ZERO));
            self.consume_prepared().await?;
            let overflows = self.take_back();
            self.flush(SETTLEMENTS_IN_FLIGHT_MAX.saturating_sub(self.settling.len()));
            if self.is_over() {
                return Ok(());
            }
            let hands_out = self.consuming.is_none();
            let sluice = self.sluice.clone();
            let patience_until = self.patience_until.filter(|_| hands_out);
            let timers =
                [self.sweep_at.filter(|_| hands_out), patience_until, self.review_at, self.workshop.idle_until()];
            let timer = timers.into_iter().flatten().min();
            let timer = async {
                match timer {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // Every branch is cancel-safe: what it did so far lives in the field that it borrows.
            tokio::select! {
                Some(errand) = self.errands.recv() => self.receive(errand),
                product = self.workshop.next(), if self.workshop.is_at_work() => self.take(product)?,
                answers = async { self.consuming.as_mut().expect("checked by the branch's condition").await },
                    if !hands_out => {
                    self.consuming = None;
                    self.consumed(answers).await?;
                }
                Some(item) = self.consumers.next(), if hands_out && !self.consumers.is_empty() => self.hand_out(item).await?,
                Some(result) = self.settling.next(), if hands_out && !self.settling.is_empty() => {
                    if let Err(fault) = result {
                        self.lost(fault).await?;
                    }
                }
                () = self.place.nudge.notified() => self.sweep(),
                () = std::future::poll_fn(|cx| sluice.poll_overflow(cx)), if !overflows => {}
                () = timer => {
                    self.sweep();
                    self.review();
                    self.workshop.clear();
                }
            }
        }
    }

    /// Has what did not fit sent again, as far as there is room for it now. Says whether there is more of it.
    fn take_back(&mut self) -> bool {
        let now = Instant::now();
        if !self.sluice.overflows() {
            self.patience_until = None;
            return false;
        }
        if self.consuming.is_some() {
            return true;
        }
        let until = *self.patience_until.get_or_insert(now + SHARED_RETURN_PATIENCE);
        let patience = if now >= until { Patience::Over } else { Patience::Lasts };
        let tags = self.sluice.give_back(patience);
        if patience == Patience::Over || !tags.is_empty() {
            self.patience_until = Some(now + SHARED_RETURN_PATIENCE);
        }
        self.requeue(tags);
        self.sluice.overflows()
    }

    /// Refuses deliveries that nobody has seen.
    fn requeue(&mut self, tags: Vec<u64>) {
        for tag in tags {
            self.ledger.hand_out(tag);
            // It was handed out right above.
            let _ = self.ledger.settle(tag, Settlement::Nack { requeue: true });
        }
    }

    fn is_over(&self) -> bool {
        self.queues.is_empty()
            && self.prepared.is_empty()
            && self.consuming.is_none()
            && self.workshop.is_idle()
            && self.consumers.is_empty()
            && self.entry.hub().leave_if_empty(&self.place)
    }

    fn receive(&mut self, errand: Errand) {
        match errand {
            Errand::Make(fanout) => self.workshop.request(Request::Prepare(fanout)),
            // One that has no queue any more has ended, and so has whoever waits for it.
            Errand::Prove(fanout) => {
                if let Some((_, queue)) = self.queue_of(&fanout) {
                    let name = queue.name.clone();
                    self.workshop.request(Request::Prove(fanout, name));
                }
            }
        }
    }

    fn queue_of(&self, fanout: &Arc<Fanout>) -> Option<(QueueNumber, &Queue)> {
        let queue = self.queues.iter().find(|(_, queue)| Arc::ptr_eq(&queue.fanout, fanout));
        queue.map(|(number, queue)| (*number, queue))
    }

    fn take(&mut self, product: Option<Product>) -> Result<(), Failure> {
        match product {
            None => {}
            Some(Product::Prepared(Prepared { fanout, queue: Ok((queue, at)) })) => {
                self.prepared.push((fanout, queue, at))
            }
            Some(Product::Prepared(Prepared { fanout, queue: Err(failure) })) => {
                self.entry.hub().fail(&fanout, failure)
            }
            Some(Product::Proven(Proven { fanout, number, since: Ok(since) })) => fanout.proven(number, since),
            Some(Product::Proven(Proven { fanout, number, since: Err(failure) })) => match failure {
                Failure::Refused { .. } => {
                    if let Some((number, _)) = self.queue_of(&fanout) {
                        self.refused(number, failure)?;
                    }
                }
                failure => fanout.unproven(number, failure),
            },
        }
        Ok(())
    }

    /// Has RabbitMQ asked about the bindings that it was not asked about for long, and that are in use.
    fn review(&mut self) {
        let now = Instant::now();
        if self.review_at.is_none_or(|at| at > now) || !self.workshop.has_reviewed() {
            return;
        }
        let every = self.review_interval();
        self.review_at = None;
        for queue in self.queues.values() {
            let Some(at) = queue.fanout.proven_at() else { continue };
            let due = at + every;
            if due <= now && queue.fanout.deserted().is_none() {
                self.workshop.review(queue.fanout.clone(), queue.name.clone());
            }
            let next = if due <= now { now + every } else { due };
            self.review_at = Some(self.review_at.map_or(next, |other| other.min(next)));
        }
    }

    /// A little less than the bound, so that the answers are there by then.
    fn review_interval(&self) -> Duration {
        self.entry.config().recheck.mul_f64(REVIEW_SHARE).max(PERMISSION_AGE_MAX / 2)
    }

    /// Asks for consumers of all queues that are ready, unless others are being asked for.
    async fn consume_prepared(&mut self) -> Result<(), Failure> {
        if self.prepared.is_empty() || self.consuming.is_some() {
            return Ok(());
        }
        // However many queues are made, deliveries get their turn in between.
        if let Some(Some(item)) = self.consumers.next().now_or_never() {
            self.hand_out(item).await?;
        }
        if let Err(fault) = self.settle_all().await {
            self.lost(fault).await?;
        }
        let mut asked = Vec::new();
        for (fanout, name, asked_at) in std::mem::take(&mut self.prepared) {
            let number = self.next;
            self.next += 1;
            let count = Counted::new(&self.entry.counts().shared_queues);
            let consumer = self.ask(number, &name);
            asked.push(async move { (number, consumer.await) });
            self.queues.insert(number, Queue { asked_at, fanout, name, _count: count });
        }
        self.consuming = Some(Box::pin(join_all(asked)));
        Ok(())
    }

    async fn consumed(&mut self, answers: Answers) -> Result<(), Failure> {
        let numbers = answers.iter().map(|(number, _)| *number).collect::<Vec<_>>();
        let mut fault = None;
        for (number, answer) in answers {
            match answer {
                Ok(stream) => self.consumers.push(SharedConsumer::new(number, stream)),
                Err(first) => drop(fault.get_or_insert(first)),
            }
        }
        if let Some(fault) = fault {
            // One refusal ended them all. Asked for one by one, it will be seen whose it is.
            self.lost(fault).await?;
        }
        for queue in numbers.iter().filter_map(|number| self.queues.get(number)) {
            queue.fanout.activate(queue.name.clone(), queue.asked_at);
            let review_at = queue.asked_at + self.review_interval();
            self.review_at = Some(self.review_at.map_or(review_at, |at| at.min(review_at)));
            if queue.fanout.deserted().is_some() {
                self.sweep_at = Some(Instant::now());
            }
        }
        Ok(())
    }

    /// Does not borrow this, so that many may be asked for at once.
    fn ask(
        &self,
        number: QueueNumber,
        queue: &ShortText,
    ) -> impl Future<Output = Result<lapin::Consumer, Fault>> + Send + use<> {
        let (raw, limit) = (self.channel.raw.clone(), self.channel.link.config.operation_timeout);
        let tag = tag_of(number);
        self.sluice.learned(tag.as_str().as_bytes(), Source::Queue);
        let (queue, options) = (short(queue), BasicConsumeOptions { no_ack: false, ..BasicConsumeOptions::default() });
        async move { within(limit, "consume", raw.basic_consume(queue, tag, options, FieldTable::default())).await }
    }

    async fn consume(&mut self, number: QueueNumber) -> Result<(), Failure> {
        let Some(queue) = self.queues.get(&number) else { return Ok(()) };
        match self.ask(number, &queue.name).await {
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
            self.workshop.delete(queue.name);
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
        if patience::timeout(limit, ended).await.is_err() {
            return Err(Failure::TimedOut { step: "channel close" });
        }
        while self.settling.next().await.is_some() {}
        self.ledger = Ledger::default();
        let slot = self.channel.extra_slot();
        self.channel = self.channel.link.clone().open_channel(slot).await?;
        self.sluice = bound_waiting(&self.channel);
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
        self.sluice.took(tag, delivery.data.len());
        self.ledger.hand_out(tag);
        let reached = match self.queues.get(&number) {
            Some(queue) => {
                let redelivered = delivery.redelivered && self.redeliveries == Redeliveries::PerhapsKnown;
                let mut message = message(delivery);
                let bytes = message.body.len() + header_bytes(&message.properties);
                let charge = self.entry.config().budget.charge(bytes);
                message.body = Bytes::from_owner(Charged { body: message.body, _charge: charge });
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
        let withheld = self.sluice.end(tag_of(number).as_str().as_bytes());
        self.requeue(withheld);
        if let Some(queue) = self.queues.remove(&number) {
            self.entry.hub().cancel(&queue.fanout);
            self.workshop.delete(queue.name);
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
        if self.consuming.is_some() {
            // One that is being asked for must not go before: its consumer would be refused.
            self.sweep_at = Some(Instant::now());
            return;
        }
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
                self.workshop.delete(queue.name);
            }
        }
    }

    /// Gives back what is left, as far as the link still lets it.
    async fn close(mut self) {
        if let Some(consuming) = self.consuming.take() {
            self.consumers.extend(
                consuming
                    .await
                    .into_iter()
                    .filter_map(|(number, answer)| answer.ok().map(|stream| SharedConsumer::new(number, stream))),
            );
        }
        if self.channel.link.state().lost.is_none() {
            while self.settling.next().await.is_some() {}
            barrier_close(&self.channel.raw, &self.channel.link).await;
        }
        let made = self.queues.into_values().map(|queue| queue.name);
        self.workshop.close(made.chain(self.prepared.into_iter().map(|(_, name, _)| name))).await;
    }
}

/// A body that counts for as long as anybody waits for it.
struct Charged {
    body: Bytes,
    _charge: Charge,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}
