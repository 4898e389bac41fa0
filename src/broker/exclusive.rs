//! Which lease owns which exclusive queue of a link.
//!
//! RabbitMQ locks an exclusive queue to its AMQP connection, and sessions share connections. This registry restores the
//! lock between sessions, and knows what a lease has to delete when it ends.

use crate::session::amqp::ShortText;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Numbers a session's lease; never used twice in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct LeaseId(pub(super) u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The name is taken, the broker has not answered yet.
    Reserved,
    Created,
}

/// What came of reserving a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reservation {
    New,
    /// This lease has the queue already.
    Own,
    /// Another session has it.
    Locked,
}

#[derive(Default)]
pub(super) struct ExclusiveQueues(Mutex<HashMap<ShortText, (LeaseId, Stage)>>);

impl ExclusiveQueues {
    fn lock(&self) -> MutexGuard<'_, HashMap<ShortText, (LeaseId, Stage)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn reserve(&self, name: &ShortText, lease: LeaseId) -> Reservation {
        let mut queues = self.lock();
        match queues.get(name) {
            Some((owner, _)) if *owner == lease => Reservation::Own,
            Some(_) => Reservation::Locked,
            None => {
                queues.insert(name.clone(), (lease, Stage::Reserved));
                Reservation::New
            }
        }
    }

    /// The broker has the queue.
    pub(super) fn created(&self, name: &ShortText, lease: LeaseId) {
        self.lock().insert(name.clone(), (lease, Stage::Created));
    }

    pub(super) fn release(&self, name: &ShortText, lease: LeaseId) {
        let mut queues = self.lock();
        if queues.get(name).is_some_and(|(owner, _)| *owner == lease) {
            queues.remove(name);
        }
    }

    pub(super) fn locked_for(&self, name: &ShortText, lease: LeaseId) -> bool {
        self.lock().get(name).is_some_and(|(owner, _)| *owner != lease)
    }

    /// Queues of this lease that the broker has.
    pub(super) fn created_by(&self, lease: LeaseId) -> Vec<ShortText> {
        let queues = self.lock();
        let own = queues.iter().filter(|(_, entry)| **entry == (lease, Stage::Created));
        own.map(|(name, _)| name.clone()).collect()
    }
}
