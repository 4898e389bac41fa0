//! The subscribers of one shared queue: they join and leave without the others noticing.
//!
//! A message is put into the inbox of everyone who is a member at that moment, under one lock: so whoever joins an active
//! fan-out gets every message from then on, and whoever leaves takes nothing from others.
//!
//! Sharing skips no permission: whoever joins an active fan-out waits for a proof, RabbitMQ's answer to a question about the
//! binding that was asked after the join. Those who come at the same time share one. Asking is the hub channel's part.

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

/// Numbers the questions about one binding, in the order in which they were begun; 0 is none.
pub(super) type ProofNumber = u64;

/// What RabbitMQ was asked about a binding, and what it said.
#[derive(Debug, Default)]
struct Proofs {
    /// A question is to be asked for those who joined.
    wanted: bool,
    begun: ProofNumber,
    /// The latest one that was answered well.
    good: ProofNumber,
    /// The latest one that has no answer, and why.
    open: Option<(ProofNumber, Failure)>,
    /// When the latest good one was asked.
    at: Option<Instant>,
}

#[derive(Debug)]
struct State {
    proofs: Proofs,
    stage: Stage,
}

pub(super) struct Fanout {
    pub(super) binding: Binding,
    pub(super) declaration: QueueDeclaration,
    pub(super) place: Arc<Place>,
    members: Mutex<Members>,
    state: watch::Sender<State>,
}

impl Fanout {
    pub(super) fn new(binding: Binding, declaration: QueueDeclaration, place: Arc<Place>) -> Fanout {
        let members = Members { list: Vec::new(), deserted: None };
        let state = State { proofs: Proofs::default(), stage: Stage::Starting };
        Fanout { binding, declaration, place, members: Mutex::new(members), state: watch::Sender::new(state) }
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
        drop(members);
        let proof = self.want_proof();
        Membership { fanout: self.clone(), inbox, key, proof, _count: count }
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

    /// Which proof a member that comes now has to wait for; 0 while the queue is being made, which proves the same.
    fn want_proof(self: &Arc<Self>) -> ProofNumber {
        let (mut number, mut ask) = (0, false);
        self.state.send_if_modified(|state| {
            if let Stage::Active(_) = state.stage {
                number = state.proofs.begun + 1;
                ask = !std::mem::replace(&mut state.proofs.wanted, true);
            }
            // Nobody waits for this.
            false
        });
        if ask {
            self.place.ask(self);
        }
        number
    }

    /// RabbitMQ is being asked from now on.
    pub(super) fn begin_proof(&self) -> ProofNumber {
        let mut number = 0;
        self.state.send_if_modified(|State { proofs, .. }| {
            proofs.wanted = false;
            proofs.begun += 1;
            number = proofs.begun;
            false
        });
        number
    }

    /// RabbitMQ said that the binding may be and is. It may have judged the permission as early as `at`.
    pub(super) fn proven(&self, number: ProofNumber, at: Instant) {
        self.state.send_modify(|State { proofs, .. }| {
            proofs.good = proofs.good.max(number);
            proofs.at = proofs.at.max(Some(at));
        });
    }

    /// There was no answer: those who wait for it are told, the others go on.
    pub(super) fn unproven(&self, number: ProofNumber, failure: Failure) {
        self.state.send_modify(|State { proofs, .. }| {
            if proofs.open.as_ref().is_none_or(|(latest, _)| *latest < number) {
                proofs.open = Some((number, failure));
            }
        });
    }

    /// When RabbitMQ last judged the binding; none before the queue was made.
    pub(super) fn proven_at(&self) -> Option<Instant> {
        self.state.borrow().proofs.at
    }

    /// `at` is when RabbitMQ was asked for the queue.
    pub(super) fn activate(&self, queue: ShortText, at: Instant) {
        self.state.send_modify(|state| {
            state.stage = Stage::Active(queue);
            state.proofs.at = Some(at);
        });
    }

    fn end(&self, failure: Failure) -> Stage {
        let mut before = Stage::Starting;
        self.state.send_modify(|state| before = std::mem::replace(&mut state.stage, Stage::Ended(failure)));
        before
    }

    /// The hub must not list this fan-out any more.
    pub(super) fn fail(&self, failure: Failure) {
        let members = std::mem::take(&mut self.members().list);
        // Those who still wait for the start learn it from there.
        if let Stage::Active(_) = self.end(failure.clone()) {
            members.iter().for_each(|member| member.inbox.end(member.key, End::Failed(failure.clone())));
        }
    }

    /// The same after the broker cancelled the consumer.
    pub(super) fn cancel(&self) {
        let members = std::mem::take(&mut self.members().list);
        let reason = "the queue of a shared subscription was deleted".to_owned();
        self.end(Failure::LinkLost { reason });
        members.iter().for_each(|member| member.inbox.end(member.key, End::Cancelled));
    }
}

/// One subscription's part in a fan-out; leaves it when dropped.
pub(super) struct Membership {
    fanout: Arc<Fanout>,
    inbox: Arc<Inbox>,
    key: SubscriptionKey,
    proof: ProofNumber,
    _count: Counted,
}

impl Membership {
    /// Waits for the queue, or for the proof if it is there; returns its name.
    pub(super) async fn started(&self) -> Result<ShortText, Failure> {
        let mut state = self.fanout.state.subscribe();
        let started = state.wait_for(|state| self.verdict(state).is_some()).await;
        let verdict = started.ok().and_then(|state| self.verdict(&state));
        // The sender is in the fan-out, which this holds.
        verdict.unwrap_or_else(|| Err(Failure::LinkLost { reason: "the subscription ended".into() }))
    }

    /// None as long as it is not known.
    fn verdict(&self, State { proofs, stage }: &State) -> Option<Result<ShortText, Failure>> {
        match stage {
            Stage::Starting => None,
            Stage::Ended(failure) => Some(Err(failure.clone())),
            Stage::Active(queue) if proofs.good >= self.proof => Some(Ok(queue.clone())),
            Stage::Active(_) => match &proofs.open {
                Some((number, failure)) if *number >= self.proof => Some(Err(failure.clone())),
                _ => None,
            },
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
