//! A link: one AMQP connection that many sessions share, with its state and its channel slots.
//!
//! It watches itself: blocked, lost, idle. It does not reconnect: a lost link is forgotten, its sessions are told, and the
//! next login makes a new one.

use super::config::{BROKER_CLOSED_CHANNELS_MAX, BrokerConfig, LINK_IDLE};
use super::connect::Connected;
use super::counts::{BlockedLink, Counts};
use super::death::{Death, Loss};
use super::exclusive::ExclusiveQueues;
use super::fault::{Fault, within};
use super::proving::Troubles;
use super::quarantine::{Company, Seclusion};
use super::reply_text::ReplyText;
use super::stream::KillSwitch;
use super::wire::{Refusal, Wire};
use crate::patience::{self, Timer};
use crate::session::event::Failure;
use futures_util::StreamExt;
use lapin::Event;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// How long a lost link waits for lapin to say why.
const REASON_PATIENCE: Duration = Duration::from_secs(1);
/// How closely the broker's silence is measured.
const SILENCE_GRAIN: Duration = Duration::from_millis(50);

/// Publishing and consuming never share a connection: RabbitMQ blocks publishing ones under an alarm, and
/// acknowledgements on them would stop too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Consume,
    /// For declarations with arguments from clients, which may end their connection; there while they come.
    Declare,
    Publish,
}

impl Role {
    pub(super) const ALL: [Role; 3] = [Role::Consume, Role::Declare, Role::Publish];

    pub(super) fn name(self) -> &'static str {
        match self {
            Role::Consume => "consume",
            Role::Declare => "declare",
            Role::Publish => "publish",
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LinkState {
    pub(super) blocked: bool,
    /// How the connection ended.
    pub(super) lost: Option<Loss>,
}

struct Slots {
    /// Those who want the link to stay though nobody has a place on it.
    anchors: usize,
    open: usize,
    /// lapin's channel numbers handed out so far; they are used again only after all of them were.
    numbers: usize,
    idle_since: Instant,
    /// No new sessions; closed when empty.
    retired: bool,
}

/// Whose a link is.
pub(super) struct Account {
    pub(super) login: String,
    pub(super) troubles: Troubles,
    pub(super) vhost: String,
}

pub(super) struct Link {
    pub(super) role: Role,
    pub(super) vhost: String,
    pub(super) login: String,
    pub(super) node: String,
    /// As the broker announces it.
    pub(super) version: String,
    pub(super) exclusive: ExclusiveQueues,
    pub(super) wire: Arc<Wire>,
    pub(super) config: Arc<BrokerConfig>,
    counts: Arc<Counts>,
    pub(super) troubles: Troubles,
    pub(super) seclusion: Seclusion,
    connection: lapin::Connection,
    switch: KillSwitch,
    state: watch::Sender<LinkState>,
    slots: Mutex<Slots>,
    slots_changed: Notify,
}

impl Link {
    pub(super) fn new(
        connected: Connected,
        role: Role,
        account: Account,
        config: Arc<BrokerConfig>,
        counts: Arc<Counts>,
        seclusion: Seclusion,
    ) -> Arc<Link> {
        let Account { login, troubles, vhost } = account;
        let Connected { connection, node, switch, wire } = connected;
        let version = wire.version();
        let slots = Slots { anchors: 0, open: 0, numbers: 0, idle_since: Instant::now(), retired: false };
        Arc::new(Link {
            role,
            vhost,
            login,
            node,
            version,
            exclusive: ExclusiveQueues::default(),
            wire,
            config,
            counts,
            troubles,
            seclusion,
            connection,
            switch,
            state: watch::Sender::new(LinkState::default()),
            slots: Mutex::new(slots),
            slots_changed: Notify::new(),
        })
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one session's channel, if the link is for such sessions and has one left.
    pub(super) fn reserve(self: &Arc<Self>, company: Company) -> Option<Slot> {
        let mut slots = self.slots();
        if self.worn_out(&slots) {
            slots.retired = true;
            self.slots_changed.notify_one();
        }
        if slots.retired || !self.has_place(&slots, company) {
            return None;
        }
        slots.open += 1;
        Some(Slot(self.clone()))
    }

    /// Whether a reservation would succeed now.
    pub(super) fn is_open_to(&self, company: Company) -> bool {
        self.is_usable() && self.has_place(&self.slots(), company)
    }

    fn has_place(&self, slots: &Slots, company: Company) -> bool {
        let places = usize::from(company.places(self.config.channels_per_link_max));
        self.seclusion.company(Instant::now()) == company && slots.open < places
    }

    /// As far as lapin knows.
    pub(super) fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }

    /// lapin never gives a number back that the broker closed; when its counter comes round to one, opening fails.
    fn worn_out(&self, slots: &Slots) -> bool {
        let closed = self.wire.broker_closed_channels();
        let numbers = usize::from(self.connection.configuration().channel_max());
        closed >= BROKER_CLOSED_CHANNELS_MAX || (closed > 0 && slots.numbers >= numbers / 2)
    }

    /// No new sessions from now on.
    pub(super) fn retire(&self) {
        self.slots().retired = true;
        self.slots_changed.notify_one();
    }

    pub(super) fn is_usable(&self) -> bool {
        !self.slots().retired && self.state.borrow().lost.is_none()
    }

    /// Has the link stay, if it is usable.
    pub(super) fn anchor(self: &Arc<Self>) -> Option<Anchor> {
        self.is_usable().then(|| {
            self.slots().anchors += 1;
            Anchor(self.clone())
        })
    }

    pub(super) fn open_slots(&self) -> usize {
        self.slots().open
    }

    pub(super) fn state(&self) -> LinkState {
        self.state.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<LinkState> {
        self.state.subscribe()
    }

    /// What `judge` says of names that a refusal of this broker would quote.
    pub(super) fn judge_names(&self, judge: impl FnOnce(&ReplyText<'_>) -> Result<(), Failure>) -> Result<(), Failure> {
        judge(&ReplyText { login: &self.login, version: &self.version, vhost: &self.vhost })
    }

    pub(super) fn frame_bytes_max(&self) -> usize {
        let (agreed, offered) = (self.connection.configuration().frame_max(), self.wire.frame_max());
        if offered > 0 { agreed.min(offered) as usize } else { agreed as usize }
    }

    /// Opens a channel on a reserved place.
    pub(super) async fn open_channel(self: &Arc<Self>, slot: Slot) -> Result<Leased, Failure> {
        self.slots().numbers += 1;
        match within(self.config.operation_timeout, "channel open", self.connection.create_channel()).await {
            Ok(raw) => {
                self.wire.watch_channel(raw.id());
                Ok(Leased { raw, link: self.clone(), _slot: slot })
            }
            Err(fault) => {
                // Either the connection is gone, or it has no usable channel numbers left.
                self.retire();
                Err(self.failure(fault, None))
            }
        }
    }

    /// Opens a channel beside those of the sessions, for one operation that may be refused.
    pub(super) async fn scratch(self: &Arc<Self>) -> Result<lapin::Channel, Failure> {
        self.slots().numbers += 1;
        let opened = within(self.config.operation_timeout, "channel open", self.connection.create_channel()).await;
        opened.map_err(|fault| self.failure(fault, None))
    }

    /// Words a fault; a step that timed out may retire the link.
    pub(super) fn failure(&self, fault: Fault, refusal: Option<Refusal>) -> Failure {
        if let Fault::TimedOut(step) = &fault {
            self.suspect(step);
        }
        match (fault.into_failure(refusal), self.state().lost) {
            (Failure::LinkLost { .. }, Some(Loss { reason, .. })) => Failure::LinkLost { reason },
            (failure, _) => failure,
        }
    }

    /// One operation may take its time, such as one on a queue without its majority, while the link is well. It is not when
    /// the broker said nothing at all meanwhile.
    fn suspect(&self, step: &str) {
        let silent = self.wire.silence() >= self.config.operation_timeout;
        if silent && self.is_usable() {
            warn!(node = self.node, role = self.role.name(), step, "no answer from the broker; the link is retired");
            self.retire();
        } else {
            debug!(node = self.node, role = self.role.name(), step, "no answer from the broker");
        }
    }

    /// Closes the connection, at most for the operation timeout; then the socket is cut in any case.
    pub(super) async fn close(&self, reason: &str) {
        self.retire();
        let closing = self.connection.close(200, "OK".into());
        let _ = within(self.config.operation_timeout, "connection close", closing).await;
        self.lose(Loss::forced(reason));
    }

    /// Shows RabbitMQ a newer secret (a token) on the live connection. If RabbitMQ refuses it, the link is lost.
    pub(super) async fn update_secret(&self, secret: &str) {
        let update = self.connection.update_secret(secret.as_bytes().into(), "token refreshed".into());
        if within(self.config.operation_timeout, "update secret", update).await.is_err() {
            warn!(node = self.node, role = self.role.name(), login = self.login, "a new secret was not taken");
        }
    }

    fn lose(&self, loss: Loss) {
        self.slots().retired = true;
        self.switch.cut();
        self.state.send_if_modified(|state| {
            let first = state.lost.is_none();
            state.lost.get_or_insert(loss);
            first
        });
    }

    /// Follows the link to its end. Runs as a task of its own.
    pub(super) async fn supervise(self: Arc<Link>) {
        info!(node = self.node, role = self.role.name(), login = self.login, vhost = self.vhost, "link up");
        let mut events = Box::pin(self.connection.events_listener());
        let mut blocked = None;
        if self.connection.status().blocked() {
            self.set_blocked(&mut blocked, true);
        }
        loop {
            let end_of_idleness = self.end_of_idleness();
            let idle = async {
                match end_of_idleness {
                    Some(end) => tokio::time::sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => {
                        warn!(node = self.node, login = self.login, vhost = self.vhost, reason, "publishing is blocked");
                        self.set_blocked(&mut blocked, true);
                    }
                    Some(Event::ConnectionUnblocked) => {
                        info!(node = self.node, login = self.login, vhost = self.vhost, "publishing goes on");
                        self.set_blocked(&mut blocked, false);
                    }
                    // Channel errors are reported here too.
                    Some(Event::Error(error)) if !self.connection.status().connected() => {
                        return self.lost(Loss::of(&error));
                    }
                    Some(_) => {}
                    None => return self.lost(Loss::network("the AMQP connection ended")),
                },
                () = self.wire.ended.cancelled() => {
                    let loss = async {
                        loop {
                            match events.next().await {
                                Some(Event::Error(error)) if !error.is_amqp_soft_error() => return Loss::of(&error),
                                Some(_) => {}
                                None => return Loss::network("the AMQP connection ended"),
                            }
                        }
                    };
                    let loss = patience::timeout(REASON_PATIENCE, loss).await;
                    return self.lost(loss.unwrap_or_else(|_| Loss::network("the broker closed the TCP connection")));
                }
                () = self.silence() => {
                    let limit = self.silence_max();
                    return self.lost(Loss::network(format!("nothing came from the broker for {limit:?}, not even a heartbeat")));
                }
                () = self.slots_changed.notified() => {}
                () = idle => {
                    if self.retire_when_idle() {
                        debug!(node = self.node, role = self.role.name(), "closing an idle link");
                        return self.close("closed because it was idle").await;
                    }
                }
            }
        }
    }

    /// Ends when the broker has said nothing for too long. lapin has such a watch too, but a coarser one.
    async fn silence(&self) {
        let limit = self.silence_max();
        if limit.is_zero() {
            return std::future::pending().await;
        }
        while let Some(left) = limit.checked_sub(self.wire.silence()) {
            Timer::until(Instant::now() + left.max(SILENCE_GRAIN)).await;
        }
    }

    /// Two heartbeat intervals (AMQP 0-9-1, 4.2.7); nothing without heartbeats.
    fn silence_max(&self) -> Duration {
        2 * Duration::from_secs(self.connection.configuration().heartbeat().into())
    }

    fn lost(&self, loss: Loss) {
        let tried = self.role == Role::Declare && matches!(loss.death, Death::Protocol { .. } | Death::State { .. });
        if tried {
            // Whose declaration it was is found out and said by those who try them. It says nothing of the broker.
            debug!(
                node = self.node,
                login = self.login,
                vhost = self.vhost,
                reason = loss.reason,
                "link lost by a trial"
            );
            self.counts.links_lost.fetch_add(1, Ordering::Relaxed);
        } else if self.state().lost.is_none() {
            warn!(
                node = self.node,
                role = self.role.name(),
                login = self.login,
                vhost = self.vhost,
                sessions = self.open_slots(),
                reason = loss.reason,
                "link lost"
            );
            self.counts.links_lost.fetch_add(1, Ordering::Relaxed);
            self.troubles.account.note();
        }
        self.lose(loss);
    }

    /// `time` is what counts the blocked time, until it is dropped.
    fn set_blocked(&self, time: &mut Option<BlockedLink>, blocked: bool) {
        match blocked {
            true => drop(time.get_or_insert_with(|| self.counts.blocked.begin())),
            false => *time = None,
        }
        self.state.send_if_modified(|state| std::mem::replace(&mut state.blocked, blocked) != blocked);
    }

    fn end_of_idleness(&self) -> Option<Instant> {
        let slots = self.slots();
        match (slots.open, slots.retired) {
            (0, true) => Some(Instant::now()),
            (0, false) if slots.anchors == 0 => Some(slots.idle_since + LINK_IDLE),
            _ => None,
        }
    }

    fn retire_when_idle(&self) -> bool {
        let mut slots = self.slots();
        let unused = slots.anchors == 0 && slots.idle_since.elapsed() >= LINK_IDLE;
        let idle = slots.open == 0 && (slots.retired || unused);
        slots.retired |= idle;
        idle
    }
}

/// Keeps a link from being closed because it is idle. One that is retired closes all the same.
pub(super) struct Anchor(Arc<Link>);

impl Anchor {
    pub(super) fn is_up(&self) -> bool {
        self.0.state.borrow().lost.is_none()
    }

    pub(super) async fn lost(&self) {
        // An error says that the link is gone.
        let _ = self.0.watch().wait_for(|state| state.lost.is_some()).await;
    }
}

impl Drop for Anchor {
    fn drop(&mut self) {
        let mut slots = self.0.slots();
        slots.anchors -= 1;
        slots.idle_since = Instant::now();
        drop(slots);
        self.0.slots_changed.notify_one();
    }
}

/// A session's place on a link.
pub(super) struct Slot(Arc<Link>);

impl Slot {
    pub(super) fn link(&self) -> &Arc<Link> {
        &self.0
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut slots = self.0.slots();
        slots.open -= 1;
        slots.idle_since = Instant::now();
        drop(slots);
        self.0.slots_changed.notify_one();
    }
}

/// An AMQP channel that one session holds.
pub(super) struct Leased {
    pub(super) raw: lapin::Channel,
    pub(super) link: Arc<Link>,
    _slot: Slot,
}

impl Leased {
    /// A further place on the same link, full or retired as it may be: for what must stay on this connection.
    pub(super) fn extra_slot(&self) -> Slot {
        self.link.slots().open += 1;
        Slot(self.link.clone())
    }

    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.link.wire.refusal(self.raw.id())
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        self.link.wire.forget_channel(self.raw.id());
    }
}
