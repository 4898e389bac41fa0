//! The consume side of a lease: declarations, subscriptions, deliveries, acknowledgements.
//!
//! One AMQP channel, opened when the first command needs it. Commands run one after another; deliveries and
//! settlements go on beside them. Nothing here awaits: all progress is in the fields, so polling may stop at any time.

mod commands;
mod streams;

pub(super) use self::commands::{Completed, ConsumeCommand, Running};
use self::streams::{Stage, Window};
use super::config::{RETURN_PATIENCE, SETTLEMENTS_IN_FLIGHT_MAX, SHARED_BUFFER_MESSAGES_MAX};
use super::convert::{from_lapin, short_text};
use super::death::Loss;
use super::exclusive::LeaseId;
use super::fanout::Membership;
use super::fault::{Fault, refused, within};
use super::idle::IdleTimer;
use super::inbox::{Inbox, Interest, Limits};
use super::inquiry::{Inquiry, Whereabouts};
use super::link::{Leased, Link};
use super::pool::Entry;
use super::quarantine::{Avoided, Past, Suspicion};
use super::release::{ConsumeRemains, Remains};
use super::settle::{Coverage, Ledger, Order};
use super::sluice::{self, Patience, Sluice};
use super::subscribe::{QueueFate, Subscribed};
use super::watch::LinkWatch;
use crate::session::amqp::ShortText;
use crate::session::command::{DeliveryTag, Settlement, SubscriptionKey};
use crate::session::event::{BrokerEvent, Concern, Delivery, Failure, Message};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, Stream, StreamExt};
use lapin::options::{BasicAckOptions, BasicNackOptions};
use lapin::types::ShortString;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tracing::debug;

/// How long acknowledgements stay unproven while nothing is amiss; each proof costs a round trip.
const PROOF_INTERVAL: Duration = Duration::from_secs(5);

struct Consumer {
    key: SubscriptionKey,
    stage: Stage,
    subscribed: Subscribed,
    /// Handed out and not settled, if it may be a stream's.
    unsettled: BTreeSet<u64>,
    /// Of a stream that has brought more than fitted.
    window: Option<Box<Window>>,
}

/// A consumer that RabbitMQ has ended.
struct Cancelled {
    /// Why: whether its queue is there.
    inquiry: Inquiry,
    key: SubscriptionKey,
    queue: ShortText,
    source: Option<sluice::Source>,
    tag: ShortString,
}

/// Why the lease ends, and what that answers.
pub(super) type Ending = (Failure, Concern);

pub(super) struct ConsumeSide {
    /// The queue whose node is away, if that is why it is lost.
    absent: Option<Box<ShortText>>,
    avoid: Option<Box<Avoided>>,
    /// The queue that the running command is about.
    asked: Option<ShortText>,
    channel: Option<Leased>,
    /// Consumers that RabbitMQ has ended, and it is not known why.
    cancelled: Vec<Cancelled>,
    commands: VecDeque<ConsumeCommand>,
    consumers: Vec<Consumer>,
    entry: Arc<Entry>,
    /// Whether a queue was declared that a restart of the broker would lose; the session has to be told then.
    declared_transient: bool,
    idle: IdleTimer,
    first: Source,
    /// Settlements that were given in this lease; how many of them RabbitMQ is known to have; how many it will be known to
    /// have when the running command is answered; of how many the session was told.
    given: u64,
    proven: u64,
    proving: u64,
    told: u64,
    /// Runs while some are not.
    proof: IdleTimer,
    /// What comes by shared subscriptions.
    inbox: Arc<Inbox>,
    lease: LeaseId,
    ledger: Ledger,
    /// Commands that a queue may have from the present channel because of settlements.
    orders: u64,
    /// Shared subscriptions.
    memberships: HashMap<SubscriptionKey, Membership>,
    /// Whose turn it is among the consumers.
    next: usize,
    running: Option<Running>,
    settling: FuturesUnordered<BoxFuture<'static, Result<(), Fault>>>,
    /// The queue of the subscription that is being made.
    starting: Option<ShortText>,
    suspicion: Suspicion,
    /// Waits while what was requeued may still come.
    patience: IdleTimer,
    /// Of the present channel.
    sluice: Option<Arc<Sluice>>,
    /// What is added to the tags of the present channel, so that none is like one of a channel before.
    tags_before: u64,
    watch: Option<LinkWatch>,
}

impl ConsumeSide {
    pub(super) fn new(entry: Arc<Entry>, lease: LeaseId) -> ConsumeSide {
        let bytes = entry.config().shared_buffer_bytes_max;
        ConsumeSide {
            absent: None,
            asked: None,
            avoid: None,
            declared_transient: false,
            idle: IdleTimer::default(),
            starting: None,
            suspicion: Suspicion::default(),
            tags_before: 0,
            patience: IdleTimer::default(),
            sluice: None,
            cancelled: Vec::new(),
            channel: None,
            commands: VecDeque::new(),
            consumers: Vec::new(),
            entry,
            first: Source::Own,
            given: 0,
            proven: 0,
            proving: 0,
            told: 0,
            proof: IdleTimer::default(),
            inbox: Arc::new(Inbox::new(Limits { bytes, messages: SHARED_BUFFER_MESSAGES_MAX })),
            lease,
            ledger: Ledger::default(),
            orders: 0,
            memberships: HashMap::new(),
            next: 0,
            running: None,
            settling: FuturesUnordered::new(),
            watch: None,
        }
    }

    /// After a loss. No tag is like one of before.
    pub(super) fn begin_anew(&mut self, lease: LeaseId, suspicion: Suspicion, avoid: Option<Box<Avoided>>) {
        let tags_before = self.tags_before + std::mem::take(&mut self.ledger).end();
        let new = ConsumeSide::new(self.entry.clone(), lease);
        *self = ConsumeSide { avoid, suspicion: suspicion.comes_back(), tags_before, ..new };
    }

    /// What it leaves to the side that comes after it.
    pub(super) fn past(&mut self) -> Past {
        let (absent, avoid) = (self.absent.take(), self.avoid.take());
        Past { absent, avoid, link: self.link(), suspicion: self.suspicion }
    }

    pub(super) fn entry(&self) -> Arc<Entry> {
        self.entry.clone()
    }

    pub(super) fn push(&mut self, command: ConsumeCommand) {
        self.commands.push_back(command);
    }

    pub(super) fn settle(&mut self, tag: DeliveryTag, outcome: Settlement) {
        self.given += 1;
        // No channel has a tag 0: what belongs to one before is unknown to this one.
        let raw = tag.0.saturating_sub(self.tags_before);
        self.note_settled(raw);
        if self.ledger.settle(raw, outcome).is_err() {
            // Sent on, it would close the channel (406).
            debug!(lease = self.lease.0, tag = tag.0, "ignored a settlement of an unknown delivery");
        }
    }

    /// Nothing given is left to do.
    pub(super) fn is_idle(&self) -> bool {
        let settled = self.ledger.is_flushed() && self.settling.is_empty();
        self.commands.is_empty() && self.running.is_none() && settled
    }

    /// The link of the channel, if there is one.
    pub(super) fn link(&self) -> Option<Arc<Link>> {
        self.channel.as_ref().map(|channel| channel.link.clone())
    }

    pub(super) fn retained_bytes(&self) -> usize {
        self.sluice.as_ref().map_or(0, |sluice| sluice.tell())
    }

    pub(super) fn shared_bytes(&self) -> usize {
        if self.memberships.is_empty() { 0 } else { self.inbox.bytes() }
    }

    /// What is consumed, or about to be.
    pub(super) fn queues(&self) -> Vec<ShortText> {
        let consumed = self.consumers.iter().map(|consumer| &consumer.subscribed.queue);
        consumed.chain(&self.starting).cloned().collect()
    }

    /// Nothing is under way and nothing depends on the channel, so it may go and nobody misses it.
    fn holds_nothing(&self) -> bool {
        self.commands.is_empty() && self.is_unused()
    }

    /// The same, whatever has been asked for and not begun: it can be done on another channel as well.
    fn is_unused(&self) -> bool {
        let Some(channel) = &self.channel else { return false };
        self.consumers.is_empty()
            && self.running.is_none()
            && self.cancelled.is_empty()
            && self.settling.is_empty()
            && self.proven == self.given
            && self.ledger.is_settled()
            && !self.declared_transient
            && channel.link.exclusive.created_by(self.lease).is_empty()
    }

    /// Gives back a channel that was not used for a while.
    fn poll_idle(&mut self, cx: &mut Context<'_>) {
        let idle = self.holds_nothing();
        if self.idle.poll_over(cx, idle, self.entry.config().channel_idle).is_ready() {
            let remains = Remains { consume: self.remains(), ..Remains::default() };
            self.watch = None;
            remains.release_aside();
        }
    }

    /// Takes out what has to be released.
    pub(super) fn remains(&mut self) -> ConsumeRemains {
        self.memberships.clear();
        ConsumeRemains {
            lease: Some(self.lease),
            channel: self.channel.take(),
            consumers: self.consumers.drain(..).map(|consumer| consumer.subscribed).collect(),
            orders: self.orders,
            running: self.running.take(),
            unproven: self.proven < self.given,
            settling: std::mem::take(&mut self.settling),
        }
    }

    /// Settlements and commands; then a delivery, unless the lease is closing.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, deliveries: Deliveries) -> Poll<Result<BrokerEvent, Ending>> {
        if let Err(ending) = self.poll_settlements(cx) {
            return Poll::Ready(Err(ending));
        }
        if let Some(event) = self.poll_proof(cx) {
            return Poll::Ready(Ok(event));
        }
        if let Poll::Ready(result) = self.poll_commands(cx) {
            return Poll::Ready(result);
        }
        if let Poll::Ready(result) = self.poll_cancelled(cx) {
            return Poll::Ready(result);
        }
        if deliveries == Deliveries::HandOut {
            if let Poll::Ready(result) = self.poll_sources(cx) {
                return Poll::Ready(result);
            }
            self.poll_withheld(cx);
            self.renew_streams(cx);
        }
        let polled = self.poll_channel(cx);
        self.poll_idle(cx);
        polled
    }

    /// Has what was withheld sent again, as far as there is room for it.
    fn poll_withheld(&mut self, cx: &mut Context<'_>) {
        let Some(sluice) = self.sluice.as_ref().filter(|sluice| sluice.poll_overflow(cx).is_ready()) else { return };
        let mut tags = sluice.give_back(Patience::Lasts);
        if tags.is_empty() && self.patience.poll_over(cx, true, RETURN_PATIENCE).is_ready() {
            tags = sluice.give_back(Patience::Over);
        }
        if !tags.is_empty() {
            self.patience = IdleTimer::default();
            self.give_back(sluice::Source::Queue, tags);
            cx.waker().wake_by_ref();
        }
    }

    /// Own consumers and shared subscriptions take turns.
    fn poll_sources(&mut self, cx: &mut Context<'_>) -> Poll<Result<BrokerEvent, Ending>> {
        let (first, second) = match self.first {
            Source::Own => (Source::Own, Source::Shared),
            Source::Shared => (Source::Shared, Source::Own),
        };
        for source in [first, second] {
            let polled = match source {
                Source::Own => self.poll_deliveries(cx),
                Source::Shared => self.poll_inbox(cx, Interest::Everything),
            };
            if polled.is_ready() {
                self.first = second;
                return polled;
            }
        }
        Poll::Pending
    }

    fn poll_inbox(&mut self, cx: &mut Context<'_>, interest: Interest) -> Poll<Result<BrokerEvent, Ending>> {
        let Poll::Ready(result) = self.inbox.poll(cx, interest) else { return Poll::Pending };
        if let Ok(BrokerEvent::Overflowed { key } | BrokerEvent::SubscriptionCancelled { key }) = &result {
            self.memberships.remove(key);
        }
        Poll::Ready(result.map_err(|(failure, key)| match failure {
            Failure::Refused { .. } => (failure, Concern::Subscription(key)),
            failure => (failure, Concern::Session),
        }))
    }

    /// Ready when much more is retained than [`ConsumeSide::retained_bytes`] last said.
    pub(super) fn poll_growth(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.sluice.as_ref().map_or(Poll::Pending, |sluice| sluice.poll_growth(cx))
    }

    pub(super) fn poll_overflow(&mut self, cx: &mut Context<'_>) -> Poll<BrokerEvent> {
        match self.poll_inbox(cx, Interest::Overflows) {
            Poll::Ready(Ok(event)) => Poll::Ready(event),
            // Asked for overflows, an inbox knows no failures.
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
        }
    }

    /// What came by shared subscriptions and was not handed out.
    pub(super) fn drain_inbox(&self) -> Vec<BrokerEvent> {
        self.inbox.drain()
    }

    /// Notices the end of the channel when no operation does.
    fn poll_channel(&mut self, cx: &mut Context<'_>) -> Poll<Result<BrokerEvent, Ending>> {
        let Some(channel) = &self.channel else { return Poll::Pending };
        let refusal = channel.link.wire.poll_refusal(channel.raw.id(), cx);
        // A running command is refused as well, and knows better whom it concerns.
        if self.running.is_none()
            && let Some(refusal) = refusal
        {
            return Poll::Ready(Err((refused(refusal), Concern::Session)));
        }
        let mut lost = None;
        if let Some(watch) = &mut self.watch {
            while let Poll::Ready(state) = watch.poll_change(cx) {
                lost = state.lost;
            }
        }
        let Some(Loss { reason, .. }) = lost else { return Poll::Pending };
        if self.holds_nothing() {
            // The next command opens another one.
            (self.channel, self.watch) = (None, None);
            return Poll::Pending;
        }
        Poll::Ready(Err((Failure::LinkLost { reason }, Concern::Session)))
    }

    fn poll_settlements(&mut self, cx: &mut Context<'_>) -> Result<(), Ending> {
        let Some(channel) = &self.channel else { return Ok(()) };
        loop {
            let room = SETTLEMENTS_IN_FLIGHT_MAX.saturating_sub(self.settling.len());
            for order in self.ledger.flush(room) {
                // One that covers many is a command for each consumer.
                self.orders += self.consumers.len().max(1) as u64;
                let (raw, limit) = (channel.raw.clone(), channel.link.config.operation_timeout);
                self.settling.push(Box::pin(async move { within(limit, "acknowledgement", send(&raw, order)).await }));
            }
            match self.settling.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(()))) => {}
                Poll::Ready(Some(Err(fault))) if self.running.is_none() => {
                    return Err((channel.link.failure(fault, channel.refusal()), Concern::Session));
                }
                // The running command will say it.
                Poll::Ready(Some(Err(_))) => {}
                Poll::Ready(None) | Poll::Pending => return Ok(()),
            }
        }
    }

    /// An acknowledgement has no answer, but whatever has one behind it on its channel proves it. So that a lost connection
    /// leaves few in doubt, something is asked for that alone now and then.
    fn poll_proof(&mut self, cx: &mut Context<'_>) -> Option<BrokerEvent> {
        if self.proof.poll_over(cx, self.told < self.given, PROOF_INTERVAL).is_pending() {
            return None;
        }
        if self.told < self.proven {
            self.told = self.proven;
            return Some(BrokerEvent::Settled { count: self.told });
        }
        if self.channel.is_some() && self.commands.is_empty() && self.running.is_none() {
            self.commands.push_back(ConsumeCommand::Prove);
        }
        // It has to be polled once, to wake.
        cx.waker().wake_by_ref();
        None
    }

    /// A queue whose node is away comes back, and so does its subscription, on another lease. One that is there can be consumed
    /// again; any other one has ended.
    fn poll_cancelled(&mut self, cx: &mut Context<'_>) -> Poll<Result<BrokerEvent, Ending>> {
        for at in 0..self.cancelled.len() {
            let Poll::Ready(whereabouts) = self.cancelled[at].inquiry.poll(cx) else { continue };
            let Cancelled { key, queue, source, tag, .. } = self.cancelled.swap_remove(at);
            return Poll::Ready(match whereabouts {
                Whereabouts::Away(failure) => {
                    self.absent = failure.is_absence().then(|| Box::new(queue));
                    Err((failure, Concern::Subscription(key)))
                }
                Whereabouts::Missing => Ok(BrokerEvent::SubscriptionCancelled { key }),
                Whereabouts::Led | Whereabouts::There => {
                    // What may be a stream's or a queue's is left to the end of the channel, which is right for both.
                    if let (Some(sluice), Some(source)) = (self.sluice.clone(), source) {
                        self.give_back(source, sluice.end(tag.as_str().as_bytes()));
                    }
                    Ok(BrokerEvent::SubscriptionInterrupted { key })
                }
            });
        }
        Poll::Pending
    }

    /// One delivery; the consumers take turns.
    fn poll_deliveries(&mut self, cx: &mut Context<'_>) -> Poll<Result<BrokerEvent, Ending>> {
        let Some(channel) = &self.channel else { return Poll::Pending };
        for turn in 0..self.consumers.len() {
            let at = (self.next + turn) % self.consumers.len();
            let consumer = &mut self.consumers[at];
            if consumer.stage.is_over() {
                continue;
            }
            let Poll::Ready(item) = Pin::new(&mut consumer.subscribed.consumer).poll_next(cx) else { continue };
            let key = consumer.key;
            match item {
                Some(Ok(delivery)) => {
                    self.next = at + 1;
                    if let Some(sluice) = &self.sluice {
                        sluice.took(delivery.delivery_tag, delivery.data.len());
                    }
                    consumer.note(&delivery);
                    self.ledger.hand_out(delivery.delivery_tag);
                    let tag = DeliveryTag(self.tags_before + delivery.delivery_tag);
                    return Poll::Ready(Ok(BrokerEvent::Delivery(convert(key, tag, delivery))));
                }
                Some(Err(error)) => {
                    if self.running.is_some() {
                        // The running command is refused as well, and knows better whom it concerns.
                        self.consumers.swap_remove(at);
                        return Poll::Pending;
                    }
                    let failure = channel.link.failure(Fault::Lapin(error), channel.refusal());
                    return Poll::Ready(Err((failure, Concern::Session)));
                }
                // The stream is over and must not be polled again.
                None if channel.raw.status().connected() && consumer.stage.is_ending() => {
                    consumer.stage.end();
                    // What is done about it begins with the next poll.
                    cx.waker().wake_by_ref();
                }
                None if channel.raw.status().connected() => {
                    let Subscribed { queue, fate, source, tag, .. } = self.consumers.swap_remove(at).subscribed;
                    if fate == QueueFate::Vanishes {
                        channel.link.exclusive.release(&queue, self.lease);
                        return Poll::Ready(Ok(BrokerEvent::SubscriptionCancelled { key }));
                    }
                    let inquiry = Inquiry::begin_later(channel.link.clone(), queue.clone());
                    self.cancelled.push(Cancelled { inquiry, key, queue, source, tag });
                    // It has to be polled once, to wake.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                None => {
                    let reason = "the AMQP channel was closed".to_owned();
                    let lost = channel.link.state().lost.map_or(reason, |loss| loss.reason);
                    let failure = match channel.refusal() {
                        Some(refusal) => refused(refusal),
                        None => Failure::LinkLost { reason: lost },
                    };
                    return Poll::Ready(Err((failure, Concern::Session)));
                }
            }
        }
        Poll::Pending
    }
}

/// Whether deliveries may still go to the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deliveries {
    HandOut,
    Hold,
}

/// Where deliveries come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Own,
    Shared,
}

pub(super) async fn send(raw: &lapin::Channel, order: Order) -> lapin::Result<()> {
    match order {
        Order::Ack { tag, coverage } => {
            raw.basic_ack(tag, BasicAckOptions { multiple: coverage == Coverage::UpTo }).await
        }
        Order::Nack { tag, requeue } => raw.basic_nack(tag, BasicNackOptions { multiple: false, requeue }).await,
    }
}

fn convert(key: SubscriptionKey, tag: DeliveryTag, delivery: lapin::message::Delivery) -> Delivery {
    Delivery { key, redelivered: delivery.redelivered, tag: Some(tag), message: Arc::new(message(delivery)) }
}

pub(super) fn message(delivery: lapin::message::Delivery) -> Message {
    Message {
        exchange: short_text(&delivery.exchange),
        properties: from_lapin(&delivery.properties),
        routing_key: short_text(&delivery.routing_key),
        body: Bytes::from(delivery.data),
    }
}
