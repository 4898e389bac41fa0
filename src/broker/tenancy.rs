//! Who lives on an identity, and whether RabbitMQ still accepts it.
//!
//! RabbitMQ closes the connections of a user that is deleted, and says nothing of one whose password or virtual host was taken
//! away. So one AMQP connection of each identity stays while it has sessions, even idle ones that hold no channel; and RabbitMQ is
//! asked about the identity every `recheck`, not only when the next session comes. If it refuses, the sessions are told.
//!
//! An outage is no refusal. And as a directory behind RabbitMQ that is away looks like one, a refusal is asked for twice.

use super::exclusive::LeaseId;
use super::link::Anchor;
use super::pace::backoff;
use super::pool::Entry;
use crate::session::event::{BrokerEvent, LoginFailure};
use futures_util::task::AtomicWaker;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Notify;
use tracing::{debug, warn};

/// Identities that are asked about at a time.
pub(super) const ASKING_MAX: usize = 4;
/// Before the second time. With it sessions end within 5 s of the first refusal.
const SECOND_TIME: Duration = Duration::from_secs(2);
/// Before a connection that stays is made anew. Sessions come back sooner, each at its own pace, and bring one with them; who asks
/// before them would only find the node down once more.
const AFTER_LOSS: Duration = Duration::from_secs(1);
/// However short `recheck` is.
const RECHECK_MIN: Duration = Duration::from_secs(1);

/// The sessions of one identity.
#[derive(Default)]
pub(super) struct Tenants {
    /// Somebody came or went, or there is a doubt.
    changed: Arc<Notify>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// RabbitMQ refused another session of the same identity.
    doubt: bool,
    /// Whether a task looks after them.
    kept: bool,
    seats: HashMap<LeaseId, Arc<Seat>>,
}

/// What one session is told.
#[derive(Default)]
struct Seat {
    refused: Mutex<Option<LoginFailure>>,
    waker: AtomicWaker,
}

/// That a session lives on the identity; ends when it is dropped.
pub(super) struct Tenancy {
    entry: Arc<Entry>,
    lease: LeaseId,
    seat: Arc<Seat>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether RabbitMQ's answer is about the identity. A limit on connections is not: it will be let in when others have gone.
fn is_refusal(failure: &LoginFailure) -> bool {
    match failure {
        LoginFailure::AccessRefused => true,
        LoginFailure::Unavailable { .. } => false,
        LoginFailure::VirtualHost { reply_text } => !reply_text.ends_with("is reached"),
    }
}

impl Tenancy {
    pub(super) fn new(entry: &Arc<Entry>, lease: LeaseId) -> Tenancy {
        let seat = Arc::new(Seat::default());
        let mut state = lock(&entry.tenants().state);
        state.seats.insert(lease, seat.clone());
        if !std::mem::replace(&mut state.kept, true) {
            tokio::spawn(keep(Arc::downgrade(entry), entry.tenants().changed.clone()));
        }
        Tenancy { entry: entry.clone(), lease, seat }
    }

    /// Ready once when RabbitMQ no longer accepts the identity.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<BrokerEvent> {
        self.seat.waker.register(cx.waker());
        match lock(&self.seat.refused).take() {
            Some(failure) => Poll::Ready(BrokerEvent::Dismissed { failure }),
            None => Poll::Pending,
        }
    }
}

impl Drop for Tenancy {
    fn drop(&mut self) {
        let tenants = self.entry.tenants();
        let mut state = lock(&tenants.state);
        state.seats.remove(&self.lease);
        if state.seats.is_empty() {
            tenants.changed.notify_one();
        }
    }
}

impl Tenants {
    /// RabbitMQ refused the identity to somebody else.
    pub(super) fn doubt(&self, failure: &LoginFailure) {
        let mut state = lock(&self.state);
        if is_refusal(failure) && !state.seats.is_empty() {
            state.doubt = true;
            self.changed.notify_one();
        }
    }

    /// Whether nobody is left to look after; who comes next begins anew.
    fn is_over(&self) -> bool {
        let mut state = lock(&self.state);
        state.kept = !state.seats.is_empty();
        !state.kept
    }

    fn dismiss(&self, failure: &LoginFailure) -> usize {
        let seats: Vec<_> = lock(&self.state).seats.values().cloned().collect();
        for seat in &seats {
            *lock(&seat.refused) = Some(failure.clone());
            seat.waker.wake();
        }
        seats.len()
    }
}

/// Keeps one connection of the identity and asks about it, as long as it has sessions. Does not keep the identity itself.
async fn keep(entry: Weak<Entry>, changed: Arc<Notify>) {
    let (mut anchor, mut attempt) = (None::<Anchor>, 0);
    loop {
        let Some(alive) = entry.upgrade().filter(|entry| !entry.tenants().is_over() && !entry.is_stopped()) else {
            return;
        };
        let pause = match look_after(&alive, &mut anchor).await {
            Ok(due) => {
                attempt = 0;
                due.map(|due| due.max(RECHECK_MIN))
            }
            Err(failure) if is_refusal(&failure) => {
                let sessions = alive.tenants().dismiss(&failure);
                warn!(
                    login = alive.login(),
                    vhost = alive.vhost(),
                    sessions,
                    "RabbitMQ no longer accepts this user, who has sessions"
                );
                Some(alive.recheck_interval().unwrap_or(SECOND_TIME).max(SECOND_TIME))
            }
            Err(failure) => {
                debug!(login = alive.login(), vhost = alive.vhost(), ?failure, "no connection stays for now");
                attempt += 1;
                Some(backoff(attempt))
            }
        };
        drop(alive);
        wait(pause, anchor.as_ref(), &changed).await;
        if anchor.as_ref().is_some_and(|anchor| !anchor.is_up()) {
            anchor = None;
            tokio::time::sleep(AFTER_LOSS).await;
        }
    }
}

/// For the time, the loss of the connection that stays, or a change, whichever comes first. What it was is found out by looking.
async fn wait(pause: Option<Duration>, anchor: Option<&Anchor>, changed: &Notify) {
    let time = async {
        match pause {
            Some(pause) => tokio::time::sleep(pause).await,
            None => std::future::pending().await,
        }
    };
    let lost = async {
        match anchor {
            Some(anchor) => anchor.lost().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = time => {},
        () = lost => {},
        () = changed.notified() => {},
    }
}

/// A connection stays, and RabbitMQ has accepted the identity lately; else the failure, which was found twice if it is a refusal.
async fn look_after(entry: &Arc<Entry>, anchor: &mut Option<Anchor>) -> Result<Option<Duration>, LoginFailure> {
    match look(entry, anchor).await {
        Err(failure) if is_refusal(&failure) => {
            tokio::time::sleep(SECOND_TIME).await;
            lock(&entry.tenants().state).doubt = true;
            look(entry, anchor).await
        }
        result => result,
    }
}

/// When to ask again.
async fn look(entry: &Arc<Entry>, anchor: &mut Option<Anchor>) -> Result<Option<Duration>, LoginFailure> {
    let doubt = std::mem::take(&mut lock(&entry.tenants().state).doubt);
    let asking = entry.asking().await;
    if doubt {
        entry.clone().ask_now().await?;
    }
    if anchor.as_ref().is_none_or(|anchor| !anchor.is_up()) {
        *anchor = None;
        *anchor = Some(entry.anchor().await?);
    }
    let due = entry.ask_if_due().await?;
    drop(asking);
    Ok(due)
}
