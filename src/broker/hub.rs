//! The shared subscriptions of one identity: which queue serves which binding, and which hub channel has it.
//!
//! The first subscriber of a binding has a queue made, those who come meanwhile wait for the same attempt, later ones until
//! RabbitMQ has been asked about the binding once more. A refusal is told to all who wait and is not remembered. The AMQP part
//! is each hub channel's task.
//!
//! Locks are taken in this order: hub, fan-out, inbox.

use super::config::SHARED_CONSUMERS_PER_CHANNEL_MAX;
use super::fanout::{Counted, Fanout, Membership};
use super::hub_channel;
use super::inbox::Inbox;
use super::link::Link;
use super::pool::Entry;
use crate::session::amqp::{Binding, QueueDeclaration, ShortText};
use crate::session::command::{Overflow, Sharing, Subscribe, SubscribedQueue, SubscriptionKey};
use crate::session::event::Failure;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

#[derive(Clone, PartialEq, Eq, Hash)]
struct Topic {
    exchange: ShortText,
    routing_key: ShortText,
}

impl Topic {
    fn of(binding: &Binding) -> Topic {
        Topic { exchange: binding.exchange.clone(), routing_key: binding.routing_key.clone() }
    }
}

/// What a hub channel has to do for a fan-out.
pub(super) enum Errand {
    Make(Arc<Fanout>),
    /// RabbitMQ has to be asked about the binding, for those who joined.
    Prove(Arc<Fanout>),
}

/// A hub channel as the hub and the fan-outs see it.
pub(super) struct Place {
    /// At most one of each kind per fan-out waits.
    errands: mpsc::UnboundedSender<Errand>,
    /// Known when the channel is open.
    pub(super) link: OnceLock<Arc<Link>>,
    /// A fan-out of it has lost its last subscriber.
    pub(super) nudge: Notify,
}

impl Place {
    fn is_usable(&self) -> bool {
        self.link.get().is_none_or(|link| link.is_usable())
    }

    pub(super) fn ask(&self, fanout: &Arc<Fanout>) {
        // Fails only when the task has ended, which ends its fan-outs and so whoever waits.
        let _ = self.errands.send(Errand::Prove(fanout.clone()));
    }
}

struct Seats {
    place: Arc<Place>,
    taken: usize,
}

#[derive(Default)]
struct Registry {
    fanouts: HashMap<Topic, Arc<Fanout>>,
    seats: Vec<Seats>,
}

#[derive(Default)]
pub(super) struct Hub(Mutex<Registry>);

/// A command that the hub can serve.
pub(super) struct SharedSubscribe {
    binding: Binding,
    declaration: QueueDeclaration,
    pub(super) key: SubscriptionKey,
    overflow: Overflow,
}

impl SharedSubscribe {
    /// `None` for a subscription with a queue of its own.
    pub(super) fn of(subscribe: &Subscribe) -> Option<SharedSubscribe> {
        match subscribe {
            Subscribe {
                binding: Some(binding),
                key,
                queue: SubscribedQueue::Declared(declaration),
                sharing: Sharing::Shared(overflow),
                ..
            } => Some(SharedSubscribe {
                binding: binding.clone(),
                declaration: declaration.clone(),
                key: *key,
                overflow: *overflow,
            }),
            _ => None,
        }
    }

    /// Returns when every message from now on comes to `inbox`, and RabbitMQ has said since this was called that it may.
    /// Leaves again when what it returns, or its future, is dropped.
    pub(super) async fn join(self, entry: Arc<Entry>, inbox: Arc<Inbox>) -> Result<(Membership, ShortText), Failure> {
        let membership = entry.hub().admit(&entry, self, inbox);
        let queue = membership.started().await?;
        Ok((membership, queue))
    }
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, entry: &Arc<Entry>, subscribe: SharedSubscribe, inbox: Arc<Inbox>) -> Membership {
        let SharedSubscribe { binding, declaration, key, overflow } = subscribe;
        let count = Counted::new(&entry.counts().shared_subscribers);
        let mut registry = self.lock();
        let topic = Topic::of(&binding);
        if let Some(fanout) = registry.fanouts.get(&topic) {
            return fanout.join(inbox, key, overflow, count);
        }
        let place = registry.take_seat(entry);
        let fanout = Arc::new(Fanout::new(binding, declaration, place.clone()));
        registry.fanouts.insert(topic, fanout.clone());
        let membership = fanout.join(inbox, key, overflow, count);
        // Fails only when the task has ended, which takes its place out of the registry first.
        let _ = place.errands.send(Errand::Make(fanout));
        membership
    }

    /// Ends one fan-out for all its members.
    pub(super) fn fail(&self, fanout: &Arc<Fanout>, failure: Failure) {
        self.lock().remove(fanout);
        fanout.fail(failure);
    }

    pub(super) fn cancel(&self, fanout: &Arc<Fanout>) {
        self.lock().remove(fanout);
        fanout.cancel();
    }

    /// Takes out a fan-out that has had no members for `linger`; false if it is not so.
    pub(super) fn retire(&self, fanout: &Arc<Fanout>, linger: Duration) -> bool {
        let mut registry = self.lock();
        let due = fanout.deserted().is_some_and(|since| since.elapsed() >= linger);
        if due {
            registry.remove(fanout);
        }
        due
    }

    /// Gives up a place that has nothing left to do; false if something came meanwhile.
    pub(super) fn leave_if_empty(&self, place: &Arc<Place>) -> bool {
        let mut registry = self.lock();
        let busy = |seats: &Seats| Arc::ptr_eq(&seats.place, place) && seats.taken > 0;
        if registry.seats.iter().any(busy) {
            return false;
        }
        registry.seats.retain(|seats| !Arc::ptr_eq(&seats.place, place));
        true
    }

    /// Gives up a place and ends all its fan-outs, those included that it has not got to know yet.
    pub(super) fn abandon(&self, place: &Arc<Place>, failure: &Failure) {
        let mut registry = self.lock();
        registry.seats.retain(|seats| !Arc::ptr_eq(&seats.place, place));
        let gone = registry.fanouts.extract_if(|_, fanout| Arc::ptr_eq(&fanout.place, place));
        let gone = gone.map(|(_, fanout)| fanout).collect::<Vec<_>>();
        drop(registry);
        gone.iter().for_each(|fanout| fanout.fail(failure.clone()));
    }
}

impl Registry {
    fn take_seat(&mut self, entry: &Arc<Entry>) -> Arc<Place> {
        let free = |seats: &&mut Seats| seats.taken < SHARED_CONSUMERS_PER_CHANNEL_MAX && seats.place.is_usable();
        if let Some(seats) = self.seats.iter_mut().find(free) {
            seats.taken += 1;
            return seats.place.clone();
        }
        let (errands, coming) = mpsc::unbounded_channel();
        let place = Arc::new(Place { errands, link: OnceLock::new(), nudge: Notify::new() });
        self.seats.push(Seats { place: place.clone(), taken: 1 });
        tokio::spawn(hub_channel::run(entry.clone(), place.clone(), coming));
        place
    }

    fn remove(&mut self, fanout: &Arc<Fanout>) {
        let topic = Topic::of(&fanout.binding);
        if !self.fanouts.get(&topic).is_some_and(|known| Arc::ptr_eq(known, fanout)) {
            return;
        }
        self.fanouts.remove(&topic);
        if let Some(seats) = self.seats.iter_mut().find(|seats| Arc::ptr_eq(&seats.place, &fanout.place)) {
            seats.taken -= 1;
        }
    }
}
