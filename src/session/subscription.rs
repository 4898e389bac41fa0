//! SUBSCRIBE, UNSUBSCRIBE and what is delivered to a subscription, reply queues of `/temp-queue` included.

use std::collections::HashMap;
use std::sync::Arc;

use super::Session;
use super::amqp::{QueueDeclaration, ShortText};
use super::command::{AfterUnsubscribe, BrokerCommand, Settlement, Subscribe, SubscribedQueue, SubscriptionKey};
use super::destination::Destination;
use super::event::Delivery;
use super::ledger::{AckMode, Outstanding, message_id};
use super::message::{self, Envelope};
use super::properties::number;
use super::publish::not_for;
use super::queue::{self, On, Purpose};
use super::refusal::{CloseCode, Refusal};
use crate::stomp::{Frame, Version};

/// Ids of this form belong to the reply queues that a SEND's `reply-to` makes.
const REPLY_PREFIX: &str = "/temp-queue/";

#[derive(Debug)]
pub(super) struct Subscription {
    /// Whether it declares a queue that SENDs of this session may use too.
    declares: bool,
    destination: String,
    /// None for a subscription that the client gave no id.
    id: Option<String>,
    mode: AckMode,
    /// First part of its message ids: `T_<id>`, or `Q_<destination>` without id.
    name: Arc<str>,
    /// Known once the broker has said it.
    queue: Option<ShortText>,
    stage: Stage,
    /// Only these delete their queue by a `durable` UNSUBSCRIBE.
    topic: bool,
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
    },
}

#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    by_key: HashMap<SubscriptionKey, Subscription>,
    by_name: HashMap<Arc<str>, SubscriptionKey>,
    next: u64,
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

    fn insert(&mut self, subscription: Subscription) -> SubscriptionKey {
        let key = SubscriptionKey(self.next);
        self.next += 1;
        self.pending += 1;
        self.by_name.insert(subscription.name.clone(), key);
        self.by_key.insert(key, subscription);
        key
    }

    fn remove(&mut self, key: SubscriptionKey) -> Option<Subscription> {
        let subscription = self.by_key.remove(&key)?;
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
        let mode = ack_mode(frame)?;
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
        let consumer_arguments = queue::consumer_arguments(&frame.headers, self.config.compatibility)?;
        let (queue, binding) = self.subscription_source(frame, &destination, durable)?;
        let receipt = frame.header("receipt").map(str::to_owned);
        let key = self.subscriptions.insert(Subscription {
            declares: matches!(destination, Destination::Queue(_)),
            destination: frame.header("destination").unwrap_or_default().to_owned(),
            id,
            mode,
            name,
            queue: None,
            stage: Stage::Starting { receipt },
            topic: matches!(destination, Destination::Topic(_)),
        });
        self.command(BrokerCommand::Subscribe(Subscribe { binding, consumer_arguments, key, prefetch, queue }));
        Ok(())
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
            (Some(name), _) => super::properties::short("x-queue-name", name)?,
            (None, Some(id)) if durable => queue::durable_name(key.as_str(), id, self.config.durable_queue_naming),
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
        let found = self.subscriptions.by_name.get(name.as_str()).copied();
        let Some(key) = found.filter(|key| !self.is_stopping(*key)) else {
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
        let Some(subscription) = self.subscriptions.by_key.get_mut(&key) else { return Ok(()) };
        let queue = match durable && subscription.topic {
            true => AfterUnsubscribe::Delete,
            false => AfterUnsubscribe::Keep,
        };
        let owed = match &mut subscription.stage {
            Stage::Active => {
                self.subscriptions.pending += 1;
                None
            }
            Stage::Starting { receipt } | Stage::Stopping { owed: receipt, .. } => receipt.take(),
        };
        subscription.stage = Stage::Stopping { owed, receipt };
        self.command(BrokerCommand::Unsubscribe { key, queue });
        Ok(())
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

    /// The broker ended the subscription: its queue was deleted, or the node that had it is gone.
    pub(super) fn handle_cancelled(&mut self, key: SubscriptionKey) {
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
            "The queue was deleted, or the node that holds it is gone. Subscribe again.",
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

    pub(super) fn handle_delivery(&mut self, delivery: Delivery, version: Version) {
        let wanted = self.subscriptions.by_key.get(&delivery.key);
        let Some(subscription) = wanted.filter(|entry| !matches!(entry.stage, Stage::Stopping { .. })) else {
            let requeue = Settlement::Nack { requeue: true };
            self.command(BrokerCommand::Settle { tag: delivery.tag, outcome: requeue });
            return;
        };
        let (mode, name, tag, key) = (subscription.mode, subscription.name.clone(), delivery.tag, delivery.key);
        let serial = self.ledger.next_serial();
        let message_id = message_id(&name, &self.id, serial);
        // Only a stream's deliveries carry their offset as a number.
        let stream = delivery.properties.headers.iter().any(|(name, value)| {
            name.as_str() == "x-stream-offset" && matches!(value, super::amqp::FieldValue::Integer(_))
        });
        let ack = (version == Version::V1_2 && mode != AckMode::Auto).then_some(message_id.as_str());
        let envelope = Envelope { ack, message_id: &message_id, subscription: subscription.id.as_deref() };
        let frame = message::frame(delivery, &envelope, &self.config);
        match mode {
            AckMode::Auto => self.unflushed.push(tag),
            AckMode::Client | AckMode::ClientIndividual => {
                self.ledger.insert(serial, Outstanding { key, mode, name, stream, tag });
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
        let key = self.subscriptions.insert(Subscription {
            declares: false,
            destination: id.clone(),
            name: format!("T_{id}").into(),
            id: Some(id),
            mode: AckMode::Auto,
            queue: None,
            stage: Stage::Starting { receipt: None },
            topic: false,
        });
        self.command(BrokerCommand::Subscribe(Subscribe {
            binding: None,
            consumer_arguments: Vec::new(),
            key,
            prefetch: self.config.prefetch_auto,
            queue: SubscribedQueue::Declared(QueueDeclaration {
                arguments: Vec::new(),
                auto_delete: true,
                durable: false,
                exclusive: true,
                name: ShortText::default(),
            }),
        }));
    }

    pub(super) fn too_many_subscriptions(&self) -> Refusal {
        let limit = self.config.subscriptions_max;
        Refusal::soft(
            "limit.subscriptions",
            "Subscription limit exceeded",
            format!("this session has {limit} subscriptions, the most it may have\n"),
            "UNSUBSCRIBE one, or use a topic pattern with * or #.",
        )
        .closing(CloseCode::PolicyViolation)
    }

    /// Reply queues count as subscriptions.
    pub(super) fn has_room_for_reply_queue(&self, name: &str) -> bool {
        self.subscriptions.by_name.contains_key(format!("T_{REPLY_PREFIX}{name}").as_str())
            || self.subscriptions.len() < self.config.subscriptions_max
    }
}

/// Whether the frame says `durable` or `persistent`, which needs an id to find the queue again.
fn require_id_if_durable(frame: &Frame) -> Result<bool, Refusal> {
    let durable = queue::is_durable(&frame.headers);
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
