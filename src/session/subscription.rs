//! SUBSCRIBE, UNSUBSCRIBE and what is delivered to a subscription, reply queues of `/temp-queue` included.

mod rights;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Session;
use super::access::Access;
use super::amqp::{QueueDeclaration, ShortText};
use super::arguments;
use super::command::{
    AfterUnsubscribe, BrokerCommand, Overflow, Settlement, Sharing, Subscribe, SubscribedQueue, SubscriptionKey,
};
use super::destination::Destination;
use super::event::{Concern, Delivery, Failure};
use super::ledger::{AckMode, MessageId, Outstanding, Serial};
use super::message::{self, Envelope};
use super::position::{self, Position};
use super::properties::number;
use super::publish::not_for;
use super::queue::{self, On, Purpose};
use super::refusal::{CloseCode, Refusal};
use super::retained::{self, MAP_ENTRY_BYTES};
use super::state::State;
use super::strict;
use crate::stomp::{Frame, Version};

pub(super) use rights::Revoked;

/// Ids of this form belong to the reply queues that a SEND's `reply-to` makes.
const REPLY_PREFIX: &str = "/temp-queue/";

/// A subscription that RabbitMQ ends more often in a row is not made again.
const RESTARTS_MAX: u32 = 3;

/// One that has lasted so long begins to count anew.
const RESTART_MEMORY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Subscription {
    access: Access,
    /// What it holds, here and on the broker side, up to its end.
    bytes: usize,
    /// Whether it declares a queue that SENDs of this session may use too.
    declares: bool,
    destination: String,
    /// None for a subscription that the client gave no id.
    id: Option<String>,
    /// The command that made it, and makes it anew after an outage.
    making: Subscribe,
    mode: AckMode,
    /// The latest of its deliveries that waited for a settlement.
    newest: Option<Serial>,
    /// Whether its queue has a name that nobody knows, so that a new one is as good: the old queue may still be locked.
    nameless: bool,
    /// Whether its queue is this user's for this destination alone, so that it ends with the right to it.
    owned: bool,
    /// The client chose the queue's name.
    named: bool,
    /// First part of its message ids: `T_<id>`, or `Q_<destination>` without id.
    name: Arc<str>,
    /// Where a stream is read; none for what can be no stream.
    position: Option<Box<Position>>,
    /// Known once the broker has said it.
    queue: Option<ShortText>,
    stage: Stage,
    restarts: Restarts,
    /// Only these delete their queue by a `durable` UNSUBSCRIBE.
    topic: bool,
}

/// How often RabbitMQ ended a subscription whose queue was there.
#[derive(Debug, Default)]
struct Restarts {
    count: u32,
    last: Option<Instant>,
}

impl Restarts {
    /// Whether it may be made once more: not if it is ended again and again.
    fn admits(&mut self, now: Instant) -> bool {
        if self.last.is_none_or(|last| now >= last + RESTART_MEMORY) {
            self.count = 0;
        }
        (self.count, self.last) = (self.count + 1, Some(now));
        self.count <= RESTARTS_MAX
    }
}

#[derive(Debug, PartialEq)]
enum Stage {
    Active,
    /// SUBSCRIBE is under way.
    Starting {
        receipt: Option<String>,
    },
    /// UNSUBSCRIBE is under way; `owed` is the receipt of a SUBSCRIBE that it overtook.
    Stopping {
        owed: Option<String>,
        receipt: Option<String>,
        then: AfterUnsubscribe,
    },
}

impl Subscription {
    /// With what it holds.
    fn measured(self) -> Subscription {
        let receipt = match &self.stage {
            Stage::Starting { receipt } => receipt.as_ref(),
            Stage::Active | Stage::Stopping { .. } => None,
        };
        let bytes = retained::allocation(size_of::<Subscription>())
            + 2 * MAP_ENTRY_BYTES
            + name_bytes(&self.name)
            + self.position.as_ref().map_or(0, |_| retained::allocation(size_of::<Position>()))
            + retained::string(&self.destination)
            + retained::maybe_string(self.id.as_ref())
            + retained::maybe_string(receipt)
            + self.access.demand.as_ref().map_or(0, |demand| retained::demand(demand))
            // The broker side keeps another.
            + 2 * (size_of::<Subscribe>() + retained::subscribe(&self.making));
        Subscription { bytes, ..self }
    }
}

#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    /// In the order in which they were made.
    by_key: BTreeMap<SubscriptionKey, Box<Subscription>>,
    by_name: HashMap<Arc<str>, SubscriptionKey>,
    /// What all of them hold, the names of those that ended with a right included.
    bytes: usize,
    /// Queues that were deleted because there is no right to them. A client that asks for ever more has its bound.
    deletions: usize,
    next: u64,
    /// Names of subscriptions that ended with a right to them, until the client gives them up or uses the name again.
    revoked: HashSet<Arc<str>>,
    /// Subscriptions that are starting or stopping.
    pending: usize,
}

impl Subscriptions {
    pub(super) fn has_pending(&self) -> bool {
        self.pending > 0
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn retained_bytes(&self) -> usize {
        self.bytes
    }

    /// Gives up the name of one that ended with a right to it.
    fn forget_revoked(&mut self, name: &str) -> bool {
        match self.revoked.take(name) {
            Some(name) => {
                self.bytes -= MAP_ENTRY_BYTES + name_bytes(&name);
                true
            }
            None => false,
        }
    }

    /// Whether an UNSUBSCRIBE is under way.
    pub(super) fn has_stopping(&self) -> bool {
        self.pending > 0 && self.by_key.values().any(|entry| matches!(entry.stage, Stage::Stopping { .. }))
    }

    /// Whether a SUBSCRIBE or UNSUBSCRIBE is under way that asks for a receipt.
    pub(super) fn owe_receipts(&self) -> bool {
        let owes = |entry: &Subscription| match &entry.stage {
            Stage::Active => false,
            Stage::Starting { receipt } => receipt.is_some(),
            Stage::Stopping { owed, receipt, .. } => owed.is_some() || receipt.is_some(),
        };
        self.pending > 0 && self.by_key.values().any(|entry| owes(entry))
    }

    /// Whether a SUBSCRIBE that declares this queue is under way.
    pub(super) fn is_declaring(&self, queue: &ShortText) -> bool {
        let starting = |entry: &Subscription| entry.declares && matches!(entry.stage, Stage::Starting { .. });
        self.by_key.values().any(|entry| starting(entry) && entry.making.queue.name() == queue)
    }

    /// What counts towards limits: not what the client has given up.
    fn live(&self) -> usize {
        match self.pending {
            0 => self.by_key.len(),
            _ => self.by_key.values().filter(|entry| !matches!(entry.stage, Stage::Stopping { .. })).count(),
        }
    }

    fn next_key(&mut self) -> SubscriptionKey {
        let key = SubscriptionKey(self.next);
        self.next += 1;
        key
    }

    fn insert(&mut self, subscription: Subscription) {
        let key = subscription.making.key;
        self.pending += 1;
        self.bytes += subscription.bytes;
        self.forget_revoked(&subscription.name.clone());
        self.by_name.insert(subscription.name.clone(), key);
        self.by_key.insert(key, Box::new(subscription));
    }

    fn remove(&mut self, key: SubscriptionKey) -> Option<Box<Subscription>> {
        let subscription = self.by_key.remove(&key)?;
        self.bytes -= subscription.bytes;
        if self.by_name.get(&subscription.name) == Some(&key) {
            self.by_name.remove(&subscription.name);
        }
        if subscription.stage != Stage::Active {
            self.pending -= 1;
        }
        Some(subscription)
    }

    fn uses_queue(&self, queue: &ShortText) -> bool {
        self.by_key.values().any(|subscription| subscription.queue.as_ref() == Some(queue))
    }

    /// How an ERROR names a subscription that was well until now.
    pub(super) fn active_id(&self, key: SubscriptionKey) -> Option<&str> {
        let subscription = self.by_key.get(&key).filter(|subscription| subscription.stage == Stage::Active)?;
        Some(subscription.id.as_deref().unwrap_or(&subscription.destination))
    }

    /// Of the oldest SUBSCRIBE or UNSUBSCRIBE under way that has one.
    pub(super) fn first_receipt(&self) -> Option<&str> {
        self.by_key.keys().find_map(|key| self.receipt(*key))
    }

    /// The receipt of a SUBSCRIBE or UNSUBSCRIBE under way, for an ERROR that concerns it.
    pub(super) fn receipt(&self, key: SubscriptionKey) -> Option<&str> {
        match &self.by_key.get(&key)?.stage {
            Stage::Starting { receipt } | Stage::Stopping { receipt, .. } => receipt.as_deref(),
            Stage::Active => None,
        }
    }
}

impl Session {
    pub(super) fn handle_subscribe(&mut self, frame: &Frame) -> Result<(), Refusal> {
        let durable = require_id_if_durable(frame)?;
        let destination = self.destination(frame, "SUBSCRIBE")?;
        let access = self.judge_subscribe(frame, &destination)?;
        let destination = access.limit(destination);
        let mode = ack_mode(frame)?;
        self.demand_id(frame)?;
        let (id, name) = self.subscription_name(frame)?;
        if self.subscriptions.by_name.contains_key(&*name) {
            return Err(Refusal::fatal(
                "subscription.duplicate",
                "Duplicated subscription identifier",
                format!("A subscription identified by '{name}' already exists."),
                "UNSUBSCRIBE it first, or use another id.",
            )
            .closing(CloseCode::ProtocolError));
        }
        if self.subscriptions.len() >= self.config.subscriptions_max {
            return Err(self.too_many_subscriptions());
        }
        let prefetch = self.prefetch(frame, mode)?;
        let prefetch = self.limit_prefetch(frame, &access.permit, prefetch)?;
        let consumer_arguments = arguments::of_consumer(&frame.headers, self.config.compatibility)?;
        let (mut queue, binding) = self.subscription_source(frame, &destination, durable)?;
        let receipt = frame.header("receipt").map(str::to_owned);
        let named = frame.headers.contains("x-queue-name");
        let owned = durable && binding.is_some() && !named && self.has_rules();
        let key = self.subscriptions.next_key();
        let nameless = binding.is_some() && !durable && frame.header("x-queue-name").is_none();
        let survives = nameless && self.let_survive(frame, &mut queue);
        let sharing = match survives {
            true => Sharing::Own,
            false => self.sharing(frame, mode, nameless, &queue, &consumer_arguments),
        };
        let begins_at = position::asked(&consumer_arguments);
        let exclusive = survives;
        let making = Subscribe { begins_at, binding, consumer_arguments, exclusive, key, prefetch, queue, sharing };
        let position = Position::of(&making, self.now);
        let subscription = Subscription {
            access,
            bytes: 0,
            declares: matches!(destination, Destination::Queue(_)),
            destination: frame.header("destination").unwrap_or_default().to_owned(),
            id,
            making,
            mode,
            newest: None,
            nameless: nameless && !survives,
            named,
            owned,
            name,
            position,
            queue: None,
            restarts: Restarts::default(),
            stage: Stage::Starting { receipt },
            topic: matches!(destination, Destination::Topic(_)),
        };
        let subscription = subscription.measured();
        let limit = self.config.subscription_bytes_max;
        if subscription.bytes > limit {
            return Err(too_large(subscription.bytes, limit));
        }
        self.command(BrokerCommand::Subscribe(subscription.making.clone()));
        self.subscriptions.insert(subscription);
        Ok(())
    }

    /// Gives a subscription that would end with its connection a queue that outlives it, unless the client asks for a certain
    /// kind of queue. Nobody else knows the name, and only this session may consume it.
    fn let_survive(&self, frame: &Frame, queue: &mut SubscribedQueue) -> bool {
        const KIND: [&str; 6] = ["auto-delete", "durable", "exclusive", "persistent", "x-expires", "x-queue-type"];
        let (Some(survive), SubscribedQueue::Declared(declaration)) = (self.config.survive, queue) else {
            return false;
        };
        if KIND.iter().any(|name| frame.headers.contains(name)) {
            return false;
        }
        queue::survive(declaration, survive);
        true
    }

    /// Queues that would outlive the session: they go now, not when they expire.
    pub(super) fn delete_surviving_queues(&mut self) {
        let surviving = |subscription: &Subscription| {
            subscription.making.exclusive && !matches!(subscription.stage, Stage::Stopping { .. })
        };
        let by_key = self.subscriptions.by_key.iter();
        let keys: Vec<_> = by_key.filter(|(_, subscription)| surviving(subscription)).map(|(key, _)| *key).collect();
        for key in keys {
            self.command(BrokerCommand::Unsubscribe { key, queue: AfterUnsubscribe::Delete });
        }
    }

    /// Any queue with the same binding serves a subscription that asks for nothing of its own.
    fn sharing(
        &self,
        frame: &Frame,
        mode: AckMode,
        nameless: bool,
        queue: &SubscribedQueue,
        consumer_arguments: &[(ShortText, super::amqp::FieldValue)],
    ) -> Sharing {
        const OWN: [&str; 4] = ["auto-delete", "durable", "exclusive", "prefetch-count"];
        let SubscribedQueue::Declared(declaration) = queue else { return Sharing::Own };
        let plain = declaration.arguments.is_empty() && consumer_arguments.is_empty();
        let asks = OWN.iter().any(|name| frame.headers.contains(name))
            || frame.headers.iter().any(|(name, _)| name.starts_with("x-bind-"));
        if mode != AckMode::Auto || !nameless || !plain || asks {
            return Sharing::Own;
        }
        let destination = frame.header("destination").unwrap_or_default();
        let drops = self.config.drop_oldest.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => destination.starts_with(prefix),
            None => destination == pattern,
        });
        Sharing::Shared(if drops { Overflow::DropOldest } else { Overflow::Disconnect })
    }

    fn subscription_source(
        &mut self,
        frame: &Frame,
        destination: &Destination,
        durable: bool,
    ) -> Result<(SubscribedQueue, Option<super::amqp::Binding>), Refusal> {
        let headers = &frame.headers;
        let (purpose, exchange, key) = match destination {
            Destination::AmqQueue(name) | Destination::ReplyQueue(name) => {
                return Ok((SubscribedQueue::Existing(name.clone()), None));
            }
            Destination::Queue(name) if self.publishing.is_declared(name) => {
                return Ok((SubscribedQueue::Existing(name.clone()), None));
            }
            Destination::Queue(name) => {
                let queue =
                    queue::declaration(name.clone(), Purpose::Queue, On::Subscribe, headers, self.queue_rules())?;
                return Ok((SubscribedQueue::Declared(queue), None));
            }
            Destination::TempQueue(_) => {
                return Err(not_for(frame.header("destination").unwrap_or_default(), "SUBSCRIBE"));
            }
            Destination::Exchange { name, key } => (Purpose::Exchange, name.clone(), key.clone()),
            Destination::Topic(key) => (Purpose::Topic, self.config.default_topic_exchange.clone(), key.clone()),
        };
        let name = match (headers.get("x-queue-name"), headers.get("id")) {
            (Some(name), _) => {
                super::destination::refuse_direct_reply_to(name)?;
                super::properties::short("x-queue-name", name)?
            }
            (None, Some(id)) if durable => self.durable_name(exchange.as_str(), key.as_str(), id),
            (None, _) => self.next_queue_name(),
        };
        let queue = queue::declaration(name, purpose, On::Subscribe, headers, self.queue_rules())?;
        Ok((SubscribedQueue::Declared(queue), Some(queue::binding(exchange, key, headers)?)))
    }

    /// The plugin leaves the client modes without bound; the relay has one, large enough for a client that collects messages
    /// before it acknowledges them, unless the client asks for another.
    fn prefetch(&self, frame: &Frame, mode: AckMode) -> Result<u16, Refusal> {
        let default = match mode {
            AckMode::Auto => self.config.prefetch_auto,
            AckMode::Client | AckMode::ClientIndividual => self.config.prefetch_client,
        };
        let Some(value) = frame.header("prefetch-count") else { return Ok(default) };
        let asked: u64 = number("prefetch-count", value, "a whole number")?;
        Ok(match u16::try_from(asked).unwrap_or(u16::MAX) {
            0 => default,
            count => count,
        })
    }

    /// A subscription without id is named by its destination in STOMP 1.0, and by the plugin.
    fn demand_id(&self, frame: &Frame) -> Result<(), Refusal> {
        if self.is_strict() { strict::require(frame, "id", self.agreed_version()) } else { Ok(()) }
    }

    fn subscription_name(&self, frame: &Frame) -> Result<(Option<String>, Arc<str>), Refusal> {
        match frame.header("id") {
            Some(id) if id.starts_with(REPLY_PREFIX) => {
                Err(Refusal::bad_header("id", "must not begin with /temp-queue/, which names reply queues"))
            }
            Some(id) => Ok((Some(id.to_owned()), format!("T_{id}").into())),
            None => Ok((None, format!("Q_{}", frame.header("destination").unwrap_or_default()).into())),
        }
    }

    pub(super) fn handle_unsubscribe(&mut self, frame: &Frame) -> Result<(), Refusal> {
        let durable = require_id_if_durable(frame)?;
        let (name, shown) = unsubscribed_name(frame)?;
        self.demand_id(frame)?;
        let found = self.subscriptions.by_name.get(name.as_str()).copied();
        let Some(key) = found.filter(|key| !self.is_stopping(*key)) else {
            if self.subscriptions.forget_revoked(&name) {
                self.receipt_for(frame);
                return Ok(());
            }
            return Err(Refusal::soft(
                "subscription.unknown",
                "No subscription found",
                format!(
                    "UNSUBSCRIBE must refer to an existing subscription.\nSubscription to \"{shown}\" not found.\n"
                ),
                "",
            ));
        };
        let receipt = frame.header("receipt").map(str::to_owned);
        self.judge_unsubscribe(key, durable)?;
        let Some(subscription) = self.subscriptions.by_key.get_mut(&key) else { return Ok(()) };
        let then = match (durable && subscription.topic) || subscription.making.exclusive {
            true => AfterUnsubscribe::Delete,
            false => AfterUnsubscribe::Keep,
        };
        self.stop_subscription(key, receipt, then);
        Ok(())
    }

    fn stop_subscription(&mut self, key: SubscriptionKey, receipt: Option<String>, then: AfterUnsubscribe) {
        let Some(subscription) = self.subscriptions.by_key.get_mut(&key) else { return };
        let owed = match &mut subscription.stage {
            Stage::Active => {
                self.subscriptions.pending += 1;
                None
            }
            Stage::Starting { receipt } | Stage::Stopping { owed: receipt, .. } => receipt.take(),
        };
        let bytes = retained::maybe_string(receipt.as_ref());
        subscription.bytes += bytes;
        self.subscriptions.bytes += bytes;
        subscription.stage = Stage::Stopping { owed, receipt, then };
        if matches!(self.state, State::Suspended { .. }) {
            // There is no lease; the next one is told.
            return;
        }
        self.command(BrokerCommand::Unsubscribe { key, queue: then });
    }

    fn is_stopping(&self, key: SubscriptionKey) -> bool {
        self.subscriptions.by_key.get(&key).is_some_and(|entry| matches!(entry.stage, Stage::Stopping { .. }))
    }

    pub(super) fn handle_subscribed(&mut self, key: SubscriptionKey, queue: ShortText) {
        let Some(subscription) = self.subscriptions.by_key.get_mut(&key) else { return };
        subscription.queue = Some(queue.clone());
        let receipt = match &mut subscription.stage {
            Stage::Starting { receipt } => {
                let receipt = receipt.take();
                subscription.stage = Stage::Active;
                self.subscriptions.pending -= 1;
                receipt
            }
            Stage::Stopping { owed, .. } => owed.take(),
            Stage::Active => None,
        };
        if subscription.declares {
            self.publishing.remember_queue(queue);
        }
        if let Some(receipt) = receipt {
            self.receipt(&receipt);
        }
    }

    pub(super) fn handle_unsubscribed(&mut self, key: SubscriptionKey) {
        let Some(subscription) = self.subscriptions.remove(key) else { return };
        self.forget_unused_queue(subscription.queue);
        if let Stage::Stopping { receipt: Some(receipt), .. } = subscription.stage {
            self.receipt(&receipt);
        }
    }

    /// The broker ended the subscription, but its queue is there, so it is consumed again. Nothing is declared that somebody else
    /// has not: a queue without binding is taken as it is.
    pub(super) fn handle_interrupted(&mut self, key: SubscriptionKey) {
        if self.is_stopping(key) {
            return;
        }
        let Some(subscription) = self.subscriptions.by_key.get_mut(&key) else { return };
        if !subscription.restarts.admits(self.now) {
            return self.handle_cancelled(key);
        }
        if let Some(position) = &mut subscription.position {
            position.lose(self.ledger.oldest_offsets().get(&key).copied());
        }
        if subscription.stage == Stage::Active {
            subscription.stage = Stage::Starting { receipt: None };
            self.subscriptions.pending += 1;
        }
        let mut making = subscription.making.clone();
        if making.binding.is_none()
            && let Some(queue) = &subscription.queue
        {
            making.queue = SubscribedQueue::Existing(queue.clone());
        }
        if subscription.queue.is_some() {
            // It has begun, and a replica that is behind for a moment is no reason to end it.
            making.begins_at = None;
        }
        if let Some(position) = &subscription.position {
            position.apply(&mut making, self.now);
        }
        self.command(BrokerCommand::Subscribe(making));
    }

    /// The broker ended the subscription: its queue was deleted, or the node that had it is gone.
    pub(super) fn handle_cancelled(&mut self, key: SubscriptionKey) {
        // The client has asked for this end, and the answer to that still comes.
        if self.is_stopping(key) {
            return;
        }
        let Some(subscription) = self.subscriptions.remove(key) else { return };
        let shown = match &subscription.id {
            Some(id) => format!("id='{id}'"),
            None => format!("destination='{}'", subscription.destination),
        };
        self.forget_unused_queue(subscription.queue);
        let refusal = Refusal::soft(
            "subscription.cancelled",
            "Server cancelled subscription",
            format!("The server has canceled a subscription.\nNo more messages will be delivered for \"{shown}\".\n"),
            "The queue was deleted, or it was not durable and its node is gone. Subscribe again.",
        );
        let id = subscription.id.unwrap_or(subscription.destination);
        self.refuse(refusal.about_subscription(&id).closing(CloseCode::InternalError));
    }

    /// An auto-delete queue goes with its last consumer, so it must be declared again when it is next used.
    fn forget_unused_queue(&mut self, queue: Option<ShortText>) {
        if let Some(queue) = queue
            && !self.subscriptions.uses_queue(&queue)
        {
            self.publishing.forget_queue(&queue);
        }
    }

    pub(super) fn handle_delivery(&mut self, mut delivery: Delivery, version: Version) {
        let wanted = self.subscriptions.by_key.get_mut(&delivery.key);
        // What was read from a stream and published again has an offset in any queue.
        let is_queue = wanted.as_ref().is_some_and(|entry| entry.position.is_none());
        let offset = if is_queue { None } else { position::offset(&delivery.message) };
        let Some(subscription) = wanted.filter(|entry| !matches!(entry.stage, Stage::Stopping { .. })) else {
            // A stream takes nothing back.
            let outcome = if offset.is_some() { Settlement::Ack } else { Settlement::Nack { requeue: true } };
            if let Some(tag) = delivery.tag {
                self.doubts.settled_automatically(1);
                self.command(BrokerCommand::Settle { tag, outcome });
            }
            return;
        };
        let (mode, name, tag, key) = (subscription.mode, subscription.name.clone(), delivery.tag, delivery.key);
        let serial = self.ledger.next_serial();
        let message_id = MessageId { name: &name, serial, session: &self.id };
        if let (Some(position), Some(offset)) = (&mut subscription.position, offset) {
            delivery.redelivered |= position.note(offset);
        }
        let ack = version == Version::V1_2 && mode != AckMode::Auto;
        let envelope = Envelope { ack, message_id, subscription: subscription.id.as_deref() };
        let frame = message::frame(&delivery, &envelope, &self.config);
        match (mode, tag) {
            (_, None) => {}
            (AckMode::Auto, Some(tag)) => self.unflushed.push(tag),
            (AckMode::Client | AckMode::ClientIndividual, Some(_))
                if self.ledger.bytes() >= self.config.unacked_bytes_max =>
            {
                return self.refuse(too_many_unacked(self.ledger.len()));
            }
            (AckMode::Client | AckMode::ClientIndividual, Some(tag)) => {
                let older = subscription.newest.replace(serial);
                self.ledger.insert(serial, Outstanding { key, mode, name, offset, older, tag });
            }
        }
        self.stats.messages_delivered += 1;
        self.send_frame(frame);
    }

    /// The queue behind `/temp-queue/<name>`, once the broker has named it.
    pub(super) fn reply_queue(&self, name: &str) -> Option<ShortText> {
        let key = self.subscriptions.by_name.get(format!("T_{REPLY_PREFIX}{name}").as_str())?;
        self.subscriptions.by_key.get(key)?.queue.clone()
    }

    /// Makes the reply queue: one per name and session, exclusive, gone with the session.
    pub(super) fn subscribe_reply_queue(&mut self, name: &str) {
        let id = format!("{REPLY_PREFIX}{name}");
        // A name of our own, so that it is the same after an outage: others have it as the address to answer to.
        let queue = QueueDeclaration {
            arguments: Vec::new(),
            auto_delete: true,
            durable: false,
            exclusive: true,
            name: self.next_queue_name(),
        };
        let making = Subscribe {
            begins_at: None,
            binding: None,
            consumer_arguments: Vec::new(),
            exclusive: false,
            key: self.subscriptions.next_key(),
            prefetch: self.config.prefetch_auto,
            queue: SubscribedQueue::Declared(queue),
            sharing: Sharing::Own,
        };
        self.command(BrokerCommand::Subscribe(making.clone()));
        let subscription = Subscription {
            access: Access::OWN,
            bytes: 0,
            declares: false,
            destination: id.clone(),
            making,
            name: format!("T_{id}").into(),
            nameless: false,
            named: false,
            owned: false,
            id: Some(id),
            mode: AckMode::Auto,
            newest: None,
            position: None,
            queue: None,
            restarts: Restarts::default(),
            stage: Stage::Starting { receipt: None },
            topic: false,
        };
        self.subscriptions.insert(subscription.measured());
    }

    /// After an outage: every subscription again, in the order in which they were made.
    pub(super) fn resume_subscriptions(&mut self) {
        let keys: Vec<_> = self.subscriptions.by_key.keys().copied().collect();
        for key in keys {
            self.resume_subscription(key);
        }
    }

    /// The consumers are gone; what they had delivered is still in the ledger.
    pub(super) fn lose_consumers(&mut self) {
        let oldest = self.ledger.oldest_offsets();
        for (key, subscription) in &mut self.subscriptions.by_key {
            if let Some(position) = &mut subscription.position {
                position.lose(oldest.get(key).copied());
            }
        }
    }

    /// Whether a subscription was refused because it was taken for a stream's; from now on it is none.
    pub(super) fn was_no_stream(&mut self, failure: &Failure, concerns: Concern) -> bool {
        let Concern::Subscription(key) = concerns else { return false };
        let Failure::Refused { reply_text, .. } = failure else { return false };
        let Some(subscription) = self.subscriptions.by_key.get_mut(&key) else { return false };
        subscription.position.take_if(|position| position.is_refused_by(reply_text)).is_some()
    }

    fn resume_subscription(&mut self, key: SubscriptionKey) {
        let fresh = self.next_queue_name();
        let Some(subscription) = self.subscriptions.by_key.get_mut(&key) else { return };
        let stop = match &subscription.stage {
            // It was going anyway, and with its connection it is gone.
            Stage::Stopping { owed: None, then: AfterUnsubscribe::Keep, .. } => return self.handle_unsubscribed(key),
            // A receipt that is owed says that there is a queue, so there has to be one.
            Stage::Stopping { then, .. } => Some(*then),
            Stage::Active => {
                subscription.stage = Stage::Starting { receipt: None };
                self.subscriptions.pending += 1;
                None
            }
            Stage::Starting { .. } => None,
        };
        if subscription.nameless
            && let SubscribedQueue::Declared(queue) = &mut subscription.making.queue
        {
            queue.name = fresh;
        }
        let mut making = subscription.making.clone();
        if subscription.queue.is_some() {
            // It has begun, and a replica that is behind for a moment is no reason to end it.
            making.begins_at = None;
        }
        if let Some(position) = &subscription.position {
            position.apply(&mut making, self.now);
        }
        self.command(BrokerCommand::Subscribe(making));
        if let Some(queue) = stop {
            self.command(BrokerCommand::Unsubscribe { key, queue });
        }
    }

    /// The client does not read as fast as messages come.
    pub(super) fn handle_overflowed(&mut self, key: SubscriptionKey) {
        let Some(subscription) = self.subscriptions.by_key.get(&key) else { return };
        let id = subscription.id.clone().unwrap_or_else(|| subscription.destination.clone());
        let refusal = Refusal::fatal(
            "session.slow_consumer",
            "Slow consumer",
            "messages of this subscription came faster than the client took them\n",
            "Read faster, subscribe to less, or let the operator set drop_oldest for this destination.",
        );
        self.refuse(refusal.about_subscription(&id).closing(CloseCode::SlowConsumer));
    }

    pub(super) fn too_many_subscriptions(&self) -> Refusal {
        too_many(self.config.subscriptions_max, "")
    }

    /// Reply queues count as subscriptions.
    pub(super) fn has_room_for_reply_queue(&self, name: &str) -> bool {
        self.subscriptions.by_name.contains_key(format!("T_{REPLY_PREFIX}{name}").as_str())
            || self.subscriptions.live() < self.config.subscriptions_max
    }
}

fn name_bytes(name: &Arc<str>) -> usize {
    retained::allocation(name.len() + 2 * size_of::<usize>())
}

fn too_large(bytes: usize, limit: usize) -> Refusal {
    Refusal::soft(
        "limit.subscription",
        "Subscription too large",
        format!(
            "the headers of this SUBSCRIBE take {bytes} bytes for as long as it lasts, the limit is {limit} bytes\n"
        ),
        "Use a shorter id, and fewer or shorter x- headers.",
    )
    .closing(CloseCode::PolicyViolation)
}

fn too_many_unacked(count: usize) -> Refusal {
    Refusal::fatal(
        "limit.unacked",
        "Too many unacknowledged messages",
        format!("{count} messages wait for their ACK or NACK, more than a session may have\n"),
        "Acknowledge messages as they are handled, or ask for a smaller prefetch-count.",
    )
    .closing(CloseCode::PolicyViolation)
}

/// `kind` says which ones, with a blank before, if not all are meant.
pub(super) fn too_many(limit: usize, kind: &str) -> Refusal {
    Refusal::soft(
        "limit.subscriptions",
        "Subscription limit exceeded",
        format!("this session has {limit} subscriptions{kind}, the most it may have\n"),
        "UNSUBSCRIBE one, or use a topic pattern with * or #.",
    )
    .closing(CloseCode::PolicyViolation)
}

/// Whether the frame says `durable` or `persistent`, which needs an id to find the queue again.
fn require_id_if_durable(frame: &Frame) -> Result<bool, Refusal> {
    let durable = queue::is_durable(&frame.headers)?;
    if durable && frame.header("id").is_none() {
        return Err(Refusal::soft(
            "frame.header_missing",
            "Missing Header",
            "Header 'id' is required for durable subscriptions",
            "",
        ));
    }
    Ok(durable)
}

fn ack_mode(frame: &Frame) -> Result<AckMode, Refusal> {
    match frame.header("ack") {
        None | Some("auto") => Ok(AckMode::Auto),
        Some("client") => Ok(AckMode::Client),
        Some("client-individual") => Ok(AckMode::ClientIndividual),
        Some(_) => Err(Refusal::bad_header("ack", "expected auto, client or client-individual")),
    }
}

/// By id, else by destination, which finds subscriptions without id; and how an ERROR shows it.
fn unsubscribed_name(frame: &Frame) -> Result<(String, String), Refusal> {
    match (frame.header("id"), frame.header("destination")) {
        (Some(id), _) if id.starts_with(REPLY_PREFIX) => Err(Refusal::soft(
            "subscription.reply_queue",
            "Invalid id",
            "UNSUBSCRIBE 'id' may not start with /temp-queue/\n",
            "A reply queue lasts as long as its session.",
        )),
        (Some(id), _) => Ok((format!("T_{id}"), format!("id='{id}'"))),
        (None, Some(destination)) => Ok((format!("Q_{destination}"), format!("destination='{destination}'"))),
        (None, None) => Err(Refusal::soft(
            "frame.header_missing",
            "Missing destination or id",
            "UNSUBSCRIBE must include a 'destination' or 'id' header",
            "",
        )),
    }
}
