//! What becomes of subscriptions when rules have a say: which they judged, who may delete a queue, how one is taken away.

use super::{Stage, Subscriptions};
use crate::session::Session;
use crate::session::command::{AfterUnsubscribe, SubscriptionKey};
use crate::session::refusal::Refusal;
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
        let revoked = &mut self.subscriptions.revoked;
        if revoked.len() >= self.config.subscriptions_max {
            revoked.clear();
        }
        revoked.insert(name);
        self.stop_subscription(key, None, then);
        Some(gone)
    }
}
