//! The subscribers of one shared queue: they join and leave without the others noticing.
//!
//! A message is put into the inbox of everyone who is a member at that moment, under one lock: so whoever joins an active
//! fan-out gets every message from then on, and whoever leaves takes nothing from others.

use super::hub::Place;
use super::inbox::{End, Inbox, Intake, Parcel};
use crate::session::amqp::{Binding, QueueDeclaration, ShortText};
use crate::session::command::{Overflow, SubscriptionKey};
use crate::session::event::Failure;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio::time::Instant;

#[derive(Clone, Debug)]
enum Stage {
    /// The queue is being made.
    Starting,
    /// Every message from now on goes to the members.
    Active(ShortText),
    Ended(Failure),
}

struct Member {
    inbox: Arc<Inbox>,
    key: SubscriptionKey,
}

struct Members {
    list: Vec<Member>,
    /// Since when there is none.
    deserted: Option<Instant>,
}

pub(super) struct Fanout {
    pub(super) binding: Binding,
    pub(super) declaration: QueueDeclaration,
    pub(super) place: Arc<Place>,
    members: Mutex<Members>,
    stage: watch::Sender<Stage>,
}

impl Fanout {
    pub(super) fn new(binding: Binding, declaration: QueueDeclaration, place: Arc<Place>) -> Fanout {
        let members = Members { list: Vec::new(), deserted: None };
        Fanout { binding, declaration, place, members: Mutex::new(members), stage: watch::Sender::new(Stage::Starting) }
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Must be called while the hub lists this fan-out, with the hub locked.
    pub(super) fn join(
        self: &Arc<Self>,
        inbox: Arc<Inbox>,
        key: SubscriptionKey,
        overflow: Overflow,
        count: Counted,
    ) -> Membership {
        inbox.add(key, overflow);
        let mut members = self.members();
        members.list.push(Member { inbox: inbox.clone(), key });
        members.deserted = None;
        Membership { fanout: self.clone(), inbox, key, _count: count }
    }

    fn leave(&self, inbox: &Arc<Inbox>, key: SubscriptionKey) {
        let mut members = self.members();
        let at = members.list.iter().position(|member| member.key == key && Arc::ptr_eq(&member.inbox, inbox));
        if let Some(at) = at {
            members.list.swap_remove(at);
        }
        self.note_desertion(members);
        inbox.remove(key);
    }

    fn note_desertion(&self, mut members: MutexGuard<'_, Members>) {
        if members.list.is_empty() && members.deserted.is_none() {
            members.deserted = Some(Instant::now());
            drop(members);
            self.place.nudge.notify_one();
        }
    }

    pub(super) fn deserted(&self) -> Option<Instant> {
        self.members().deserted
    }

    /// Gives a message to all members; returns to how many.
    pub(super) fn deliver(&self, parcel: &Parcel) -> usize {
        let mut members = self.members();
        let reached = members.list.len();
        members.list.retain(|member| member.inbox.put(member.key, parcel) == Intake::GoesOn);
        self.note_desertion(members);
        reached
    }

    pub(super) fn activate(&self, queue: ShortText) {
        self.stage.send_replace(Stage::Active(queue));
    }

    /// The hub must not list this fan-out any more.
    pub(super) fn fail(&self, failure: Failure) {
        let members = std::mem::take(&mut self.members().list);
        // Those who still wait for the start learn it from there.
        if let Stage::Active(_) = self.stage.send_replace(Stage::Ended(failure.clone())) {
            members.iter().for_each(|member| member.inbox.end(member.key, End::Failed(failure.clone())));
        }
    }

    /// The same after the broker cancelled the consumer.
    pub(super) fn cancel(&self) {
        let members = std::mem::take(&mut self.members().list);
        let reason = "the queue of a shared subscription was deleted".to_owned();
        self.stage.send_replace(Stage::Ended(Failure::LinkLost { reason }));
        members.iter().for_each(|member| member.inbox.end(member.key, End::Cancelled));
    }
}

/// One subscription's part in a fan-out; leaves it when dropped.
pub(super) struct Membership {
    fanout: Arc<Fanout>,
    inbox: Arc<Inbox>,
    key: SubscriptionKey,
    _count: Counted,
}

impl Membership {
    /// Waits for the queue, which is there at once unless this is the first subscriber; returns its name.
    pub(super) async fn started(&self) -> Result<ShortText, Failure> {
        let mut stage = self.fanout.stage.subscribe();
        let started = stage.wait_for(|stage| !matches!(stage, Stage::Starting)).await;
        match started.as_deref() {
            Ok(Stage::Active(queue)) => Ok(queue.clone()),
            Ok(Stage::Ended(failure)) => Err(failure.clone()),
            // The sender is in the fan-out, which this holds.
            Ok(Stage::Starting) | Err(_) => Err(Failure::LinkLost { reason: "the subscription ended".into() }),
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.fanout.leave(&self.inbox, self.key);
    }
}

/// Counts itself for as long as it lives.
pub(super) struct Counted(Arc<AtomicUsize>);

impl Counted {
    pub(super) fn new(counter: &Arc<AtomicUsize>) -> Counted {
        counter.fetch_add(1, Ordering::Relaxed);
        Counted(counter.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
