//! What becomes of subscriptions when rules have a say: which they judged, who may delete a queue, how one is taken away.

use std::sync::Arc;

use super::{Stage, Subscriptions, name_bytes};
use crate::session::Session;
use crate::session::command::{AfterUnsubscribe, SubscriptionKey};
use crate::session::refusal::Refusal;
use crate::session::retained::MAP_ENTRY_BYTES;
use crate::session::rules::{Demand, Permit, Stance};

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
    /// Where users share one account at the broker, nothing else would keep their durable queues apart.
    pub(super) fn durable_id(&self, id: &str) -> String {
        let user = &self.identity.user;
        match self.config.stance {
            Stance::Closed => format!("{}:{user}{id}", user.len()),
            Stance::Open => id.to_owned(),
        }
    }

    pub(super) fn judge_unsubscribe(&mut self, key: SubscriptionKey, durable: bool) -> Result<(), Refusal> {
        let Some(entry) = self.subscriptions.by_key.get(&key).filter(|entry| durable && entry.topic) else {
            return Ok(());
        };
        let (demand, destination) = (entry.access.demand.clone(), entry.destination.clone());
        self.judge_delete("durable", demand.as_deref(), &destination)
    }

    /// Ends a subscription without a word; its queue stays if it is durable.
    pub(in crate::session) fn revoke_subscription(&mut self, key: SubscriptionKey) -> Option<Revoked> {
        let subscription = self.subscriptions.by_key.get(&key)?;
        let (name, id) = (subscription.name.clone(), subscription.id.clone());
        let then = if subscription.making.exclusive { AfterUnsubscribe::Delete } else { AfterUnsubscribe::Keep };
        let gone = Revoked { destination: subscription.destination.clone(), id };
        self.subscriptions.remember_revoked(name, self.config.subscriptions_max);
        self.stop_subscription(key, None, then);
        Some(gone)
    }
}
