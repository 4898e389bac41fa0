//! What becomes of subscriptions when rules have a say: which they judged, who may delete a queue, how one is taken away.

use std::sync::Arc;

use super::{Stage, Subscriptions, name_bytes};
use crate::session::Session;
use crate::session::amqp::ShortText;
use crate::session::command::{AfterUnsubscribe, BrokerCommand, SubscriptionKey};
use crate::session::destination::Destination;
use crate::session::queue;
use crate::session::refusal::Refusal;
use crate::session::retained::MAP_ENTRY_BYTES;
use crate::session::rules::{Demand, Permit};
use crate::stomp::Frame;

/// How the client knows a subscription that was taken away.
pub(in crate::session) struct Revoked {
    pub(in crate::session) destination: String,
    pub(in crate::session) id: Option<String>,
}

impl Subscriptions {
    /// Those that rules judged, in the order in which they were made.
    pub(in crate::session) fn demands(&self) -> Vec<(SubscriptionKey, Demand)> {
        let judged = self.by_key.iter().filter(|(_, entry)| !matches!(entry.stage, Stage::Stopping { .. }));
        judged.filter_map(|(key, entry)| Some((*key, Demand::clone(entry.access.demand.as_deref()?)))).collect()
    }

    /// Another rule may allow it now.
    pub(in crate::session) fn allow_by(&mut self, key: SubscriptionKey, permit: Permit) {
        if let Some(entry) = self.by_key.get_mut(&key) {
            entry.access.permit = permit;
        }
    }

    fn makes_queue(&self, queue: &ShortText) -> bool {
        self.by_key.values().any(|entry| entry.making.queue.name() == queue)
    }

    /// How many of them this rule allowed.
    pub(in crate::session) fn allowed_by(&self, rule: usize) -> usize {
        self.by_key.values().filter(|entry| entry.access.permit.rule == Some(rule)).count()
    }
}

impl Subscriptions {
    /// When there is no room for one more name, all are forgotten.
    fn remember_revoked(&mut self, name: Arc<str>, count_max: usize) {
        let bytes = |name: &Arc<str>| MAP_ENTRY_BYTES + name_bytes(name);
        if self.revoked.len() >= count_max {
            self.bytes -= self.revoked.drain().map(|name| bytes(&name)).sum::<usize>();
        }
        self.bytes += bytes(&name);
        if let Some(known) = self.revoked.replace(name) {
            self.bytes -= bytes(&known);
        }
    }
}

impl Session {
    /// The plugin's name has neither user nor exchange in it. Where rules are in force, whoever may have one queue must not get
    /// another's by the same id.
    pub(super) fn durable_name(&self, exchange: &str, routing_key: &str, id: &str) -> ShortText {
        match self.has_rules() {
            true => self.owned_name(exchange, routing_key, id),
            false => queue::durable_name(routing_key, id, self.config.durable_queue_naming),
        }
    }

    fn owned_name(&self, exchange: &str, routing_key: &str, id: &str) -> ShortText {
        queue::Owned { user: &self.identity.user, exchange, routing_key, id }.name()
    }

    /// A durable subscription was asked for that may not be. If it once might, there is a queue, which would go on being filled,
    /// and would be served if the right came back.
    pub(in crate::session) fn delete_unowned_queue(&mut self, frame: &Frame, destination: &Destination) {
        if !queue::is_durable(&frame.headers).unwrap_or(false) || frame.headers.contains("x-queue-name") {
            return;
        }
        let (exchange, key) = match destination {
            Destination::Exchange { name, key } => (name, key),
            Destination::Topic(key) => (&self.config.default_topic_exchange, key),
            _ => return,
        };
        let Some(id) = frame.header("id") else { return };
        let queue = self.owned_name(exchange.as_str(), key.as_str(), id);
        let bounded = self.subscriptions.deletions < self.config.subscriptions_max;
        if bounded && !self.subscriptions.makes_queue(&queue) {
            self.subscriptions.deletions += 1;
            self.command(BrokerCommand::Delete { queue, only: None });
        }
    }

    pub(super) fn judge_unsubscribe(&mut self, key: SubscriptionKey, durable: bool) -> Result<(), Refusal> {
        let Some(entry) = self.subscriptions.by_key.get(&key).filter(|entry| durable && entry.topic) else {
            return Ok(());
        };
        let (demand, destination) = (entry.access.demand.clone(), entry.destination.clone());
        let foreign = entry.named.then(|| entry.making.queue.name().clone());
        self.judge_delete("durable", demand.as_deref(), &destination)?;
        match foreign.filter(|_| self.has_rules()) {
            Some(queue) => Err(self.refuse_delete(&queue, &destination)),
            None => Ok(()),
        }
    }

    /// Ends a subscription without a word. Its queue goes too if it is this user's for this destination alone; of one that has a
    /// name of the client's only the binding, which would go on bringing there what the client may no longer have.
    pub(in crate::session) fn revoke_subscription(&mut self, key: SubscriptionKey) -> Option<Revoked> {
        let subscription = self.subscriptions.by_key.get(&key)?;
        let (name, id) = (subscription.name.clone(), subscription.id.clone());
        let ends = subscription.making.exclusive || subscription.owned;
        let then = if ends { AfterUnsubscribe::Delete } else { AfterUnsubscribe::Keep };
        let gone = Revoked { destination: subscription.destination.clone(), id };
        let queue = subscription.making.queue.name().clone();
        let binding = subscription.making.binding.clone().filter(|_| subscription.named);
        self.subscriptions.remember_revoked(name, self.config.subscriptions_max);
        self.stop_subscription(key, None, then);
        if binding.is_some() {
            self.command(BrokerCommand::Delete { queue, only: binding });
        }
        Some(gone)
    }
}
