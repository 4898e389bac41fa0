//! Who is connected: counts under caps, rates, and a way to ask each client to leave.
//!
//! A client is a stranger until it has logged in. Strangers have a share of the places and a time of their own; where a place is
//! needed the oldest stranger of the network that holds most gives up its own, so that nobody is kept out by those who only hold
//! places. Waits for nobody and tells nobody: a turn is a point in time, a limit is a value. What is done with them is decided
//! above.

mod network;
mod pace;
mod strangers;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

pub use self::network::NetworkSize;
use self::pace::Pace;
pub use self::pace::PaceLimits;
use self::strangers::{Origin, Strangers};
use crate::audit;
use crate::budget::{Account, Budget};
use crate::rate::{Bucket, Rate};
use crate::session::admission::Limit;

/// Log lines about limits; those beyond are for the level `debug` alone.
const WARNINGS: Rate = Rate { per_second: 1, burst: 5 };

/// Events about those who have not logged in that log and audit log tell: of all, and of each network.
const STRANGERS_TOLD: PaceLimits = PaceLimits {
    everybody: Rate { per_second: 100, burst: 2_000 },
    each_address: Rate { per_second: 5, burst: 200 },
    network_factor: 1,
    wait_max: Duration::ZERO,
};

/// How often it is told how many events were left out.
const LEFT_OUT_INTERVAL: Duration = Duration::from_secs(10);

/// How many clients there may be, and how fast they may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    pub connections_max: usize,
    pub connections_per_address_max: usize,
    pub connections_per_network_max: usize,
    pub connections_per_user_max: usize,
    pub network: NetworkSize,
    /// Connections, beyond the others, that are kept only until they have been told why they are not let in.
    pub refusals_max: usize,
    /// Of `connections_max`, those that have not logged in.
    pub strangers_max: usize,
    /// From accept to CONNECTED.
    pub stranger_timeout: Duration,
    pub connects: PaceLimits,
    pub handshakes: PaceLimits,
}

/// Live clients; cheap to clone.
#[derive(Clone, Debug)]
pub struct Clients(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    budget: Budget,
    table: Mutex<Table>,
    /// Ends requests and handshakes that are not yet a WebSocket.
    stop: CancellationToken,
}

#[derive(Debug)]
struct Table {
    by_address: HashMap<IpAddr, usize>,
    by_network: HashMap<IpAddr, usize>,
    by_user: HashMap<String, usize>,
    clients: HashMap<u64, Client>,
    connects: Pace,
    /// When the process ends at the latest, once it is being stopped.
    drain_until: Option<Instant>,
    handshakes: Pace,
    /// Events about strangers that were not told, and how many of them were counted in the audit log already.
    left_out: (u64, u64),
    left_out_told_at: Option<Instant>,
    limits: ClientLimits,
    next: u64,
    strangers: Strangers,
    /// The tasks of strangers that have no WebSocket yet.
    tasks: HashMap<u64, AbortHandle>,
    /// Paces what is told of strangers.
    told: Pace,
    /// Paces the log lines about limits.
    warnings: Bucket,
    /// Strangers that gave up their places since the start.
    evicted: u64,
    /// How many are on their way out because another one needed their place, and are not told why.
    leaving: usize,
    /// How many of all are kept only until they have been told why.
    refused: usize,
}

/// What the table knows of one client.
#[derive(Debug)]
struct Client {
    /// Under which it counts.
    counted: Option<Origin>,
    drain: CancellationToken,
    /// Its place went to another one; whether it is told.
    evicted: Option<Told>,
    /// It has a WebSocket.
    open: bool,
    refused: Option<Limit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// There are enough of those already, or it has no WebSocket to be told in.
    No,
    Yes,
}

/// A client's place; given back when it is dropped, however its task ends.
#[derive(Debug)]
pub struct Place {
    /// What it holds in memory.
    pub account: Account,
    clients: Clients,
    /// A stranger's end.
    deadline: Instant,
    /// Cancelled when this client shall leave.
    pub drain: CancellationToken,
    number: u64,
    /// It has a WebSocket.
    open: AtomicBool,
    user: Mutex<Option<String>>,
}

impl Clients {
    pub fn new(limits: ClientLimits, budget: Budget) -> Clients {
        let table = Table {
            by_address: HashMap::new(),
            by_network: HashMap::new(),
            by_user: HashMap::new(),
            clients: HashMap::new(),
            connects: Pace::default(),
            drain_until: None,
            evicted: 0,
            handshakes: Pace::default(),
            leaving: 0,
            left_out: (0, 0),
            left_out_told_at: None,
            limits,
            next: 0,
            refused: 0,
            strangers: Strangers::default(),
            tasks: HashMap::new(),
            told: Pace::default(),
            warnings: Bucket::new(),
        };
        Clients(Arc::new(Inner { budget, table: Mutex::new(table), stop: CancellationToken::new() }))
    }

    /// For clients that come from now on.
    pub fn set_limits(&self, limits: ClientLimits) {
        self.table().limits = limits;
    }

    /// A place for a connection from this address, of which nothing else is known yet. Where there is none left, a stranger gives
    /// up its own. Where there is no stranger, it is one of the few that are only told why ([`Place::refused`]); None when there
    /// is none of these left either.
    pub fn take_place(&self, peer: IpAddr, now: Instant) -> Option<Place> {
        let mut table = self.table();
        let limits = table.limits;
        while table.is_full()
            && let Some(number) = table.strangers.next_to_go()
        {
            table.evict(number);
        }
        let full = table.is_full();
        if full && table.refused >= limits.refusals_max {
            return None;
        }
        table.refused += usize::from(full);
        let (number, drain) = (table.next, CancellationToken::new());
        table.next += 1;
        let refused = full.then_some(Limit::Connections);
        let client = Client { counted: None, drain: drain.clone(), evicted: None, open: false, refused };
        table.clients.insert(number, client);
        if !full {
            let origin = table.origin(peer);
            table.strangers.place(number, origin);
        }
        let deadline = now + limits.stranger_timeout;
        drop(table);
        let account = self.0.budget.account();
        Some(Place {
            account,
            clients: self.clone(),
            deadline,
            drain,
            number,
            open: AtomicBool::new(false),
            user: Mutex::default(),
        })
    }

    /// Memory is short: newcomers have to come later.
    pub fn is_tight(&self) -> bool {
        self.0.budget.is_tight()
    }

    /// Whether a refusal is worth a warning, or there were enough of them just now: a flood must not fill the log.
    pub fn may_warn(&self, now: Instant) -> bool {
        let warnings = &mut self.table().warnings;
        let due = warnings.wait(WARNINGS, now).is_zero();
        if due {
            warnings.take(WARNINGS, now);
        }
        due
    }

    /// Whether log and audit log may tell of one more thing that a stranger from this address has done: it must not fill a disk.
    pub fn may_tell(&self, address: IpAddr, now: Instant) -> bool {
        let mut table = self.table();
        let network = table.origin(address).network;
        if table.told.turn(&STRANGERS_TOLD, Origin { address: network, network }, now).is_err() {
            table.left_out.0 += 1;
            return false;
        }
        let (all, told) = table.left_out;
        if all > told && table.left_out_told_at.is_none_or(|at| now >= at + LEFT_OUT_INTERVAL) {
            (table.left_out.1, table.left_out_told_at) = (all, Some(now));
            drop(table);
            audit::left_out(all - told);
        }
        true
    }

    /// Events about strangers that were not told, since the start.
    pub fn left_out(&self) -> u64 {
        self.table().left_out.0
    }

    pub fn count(&self) -> usize {
        self.table().clients.len()
    }

    /// Those that have not logged in.
    pub fn strangers(&self) -> usize {
        self.table().strangers.len()
    }

    /// Strangers that gave up their places since the start.
    pub fn evicted(&self) -> u64 {
        self.table().evicted
    }

    /// Connections taken since the start.
    pub fn total(&self) -> u64 {
        self.table().next
    }

    /// Somebody else needs what a stranger holds, such as a file descriptor.
    pub fn make_room(&self) {
        let mut table = self.table();
        if let Some(number) = table.strangers.next_to_go() {
            table.evict(number);
        }
    }

    pub fn stop_accepting(&self) {
        self.0.stop.cancel();
    }

    pub fn stop(&self) -> &CancellationToken {
        &self.0.stop
    }

    /// Clients that are asked to leave from now on have this much time.
    pub fn set_drain_until(&self, until: Instant) {
        self.table().drain_until = Some(until);
    }

    /// The drain signals of all that are connected now.
    pub fn drains(&self) -> Vec<CancellationToken> {
        self.table().clients.values().map(|client| client.drain.clone()).collect()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Whether a newcomer finds no place.
    fn is_full(&self) -> bool {
        let counted = self.clients.len() - self.refused - self.leaving;
        counted >= self.limits.connections_max || self.strangers.len() >= self.limits.strangers_max
    }

    fn origin(&self, address: IpAddr) -> Origin {
        let network = network::network_of(address, self.limits.network);
        Origin { address: network::counted_as(address), network }
    }

    /// The place of this stranger is another one's from now on. One with a WebSocket is told why, if not too many are already; one
    /// without ends at once.
    fn evict(&mut self, number: u64) {
        self.strangers.remove(number);
        let task = self.tasks.remove(&number);
        let told = task.is_none() && self.refused < self.limits.refusals_max;
        let Some(client) = self.clients.get_mut(&number) else { return };
        self.evicted += 1;
        client.evicted = Some(if told { Told::Yes } else { Told::No });
        match told {
            true => self.refused += 1,
            false => self.leaving += 1,
        }
        let counted = client.counted.take();
        match task {
            Some(task) => task.abort(),
            None => client.drain.cancel(),
        }
        self.uncount(counted);
    }

    fn uncount(&mut self, counted: Option<Origin>) {
        if let Some(Origin { address, network }) = counted {
            give_back(&mut self.by_address, &address);
            give_back(&mut self.by_network, &network);
        }
    }

    /// Counts a client under its address, where older strangers of the same make room for it.
    fn count_under(&mut self, number: u64, origin: Origin) -> Result<(), Limit> {
        let Origin { address, network } = origin;
        let of = |counts: &HashMap<IpAddr, usize>, key| counts.get(key).copied().unwrap_or(0);
        while of(&self.by_address, &address) >= self.limits.connections_per_address_max {
            let oldest = self.strangers.oldest_of_address(address, number).ok_or(Limit::ConnectionsOfAddress)?;
            self.evict(oldest);
        }
        while of(&self.by_network, &network) >= self.limits.connections_per_network_max {
            let oldest = self.strangers.oldest_of_network(network, number).ok_or(Limit::ConnectionsOfNetwork)?;
            self.evict(oldest);
        }
        *self.by_address.entry(address).or_default() += 1;
        *self.by_network.entry(network).or_default() += 1;
        Ok(())
    }
}

impl Place {
    pub fn clients(&self) -> &Clients {
        &self.clients
    }

    /// When a client that has not logged in by then ends, whatever it is doing.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The task that serves it, as long as it has no WebSocket in which it could be told to leave.
    pub fn served_by(&self, task: AbortHandle) {
        let mut table = self.clients.table();
        match table.clients.get(&self.number).map(|client| (client.evicted.is_some(), client.open)) {
            // Another one needed its place meanwhile.
            Some((true, _)) => task.abort(),
            Some((false, false)) => drop(table.tasks.insert(self.number, task)),
            _ => {}
        }
    }

    /// Its WebSocket is open.
    pub fn opened(&self) {
        self.open.store(true, Ordering::Relaxed);
        let mut table = self.clients.table();
        table.tasks.remove(&self.number);
        if let Some(client) = table.clients.get_mut(&self.number) {
            client.open = true;
        }
    }

    /// Ready when it holds too much and has no WebSocket in which it could be told so.
    pub fn poll_ended_untold(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.open.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        self.account.poll_chosen(cx).map(drop)
    }

    /// Whether its place went to another one.
    pub fn is_evicted(&self) -> bool {
        self.clients.table().clients.get(&self.number).is_some_and(|client| client.evicted.is_some())
    }

    /// Whether it leaves without waiting for the client to have read why.
    pub fn leaves_at_once(&self) -> bool {
        self.clients.table().clients.get(&self.number).is_some_and(|client| client.evicted == Some(Told::No))
    }

    /// Counts the client under its address, instead of any before; the answer is when its handshake may go on.
    ///
    /// # Errors
    /// The limit that is reached. It then counts under no address.
    pub fn take_address(&self, address: IpAddr, now: Instant) -> Result<Instant, Limit> {
        let mut table = self.clients.table();
        let origin = table.origin(address);
        let Some(client) = table.clients.get_mut(&self.number).filter(|client| client.evicted.is_none()) else {
            return Err(Limit::Strangers);
        };
        let (before, refused) = (client.counted.take(), client.refused.is_some());
        table.uncount(before);
        if !refused {
            table.strangers.place(self.number, origin);
        }
        let limits = table.limits;
        if self.clients.is_tight() {
            return Err(Limit::Memory);
        }
        table.count_under(self.number, origin)?;
        match table.handshakes.turn(&limits.handshakes, origin, now) {
            Ok(turn) => {
                if let Some(client) = table.clients.get_mut(&self.number) {
                    client.counted = Some(origin);
                }
                Ok(turn)
            }
            Err(_) => {
                table.uncount(Some(origin));
                Err(Limit::HandshakeRate)
            }
        }
    }

    /// When this client may log in. Until [`Place::was_answered`] its place is not another one's.
    ///
    /// # Errors
    /// [`Limit::ConnectRate`], [`Limit::Memory`]
    pub fn take_connect(&self, now: Instant) -> Result<Instant, Limit> {
        let mut table = self.clients.table();
        let limits = table.limits;
        if self.clients.is_tight() {
            return Err(Limit::Memory);
        }
        // Without an address it was refused, and does not come this far.
        let counted = table.clients.get(&self.number).and_then(|client| client.counted);
        let Some(origin) = counted else { return Ok(now) };
        let turn = table.connects.turn(&limits.connects, origin, now).map_err(|_| Limit::ConnectRate)?;
        table.strangers.is_waiting(self.number);
        Ok(turn)
    }

    /// Its login was answered, and it is not in.
    pub fn was_answered(&self) {
        self.clients.table().strangers.was_answered(self.number);
    }

    /// It has logged in: counts the client under its user, instead of any before, and no longer as a stranger.
    ///
    /// # Errors
    /// [`Limit::ConnectionsOfUser`], or [`Limit::Strangers`] if its place went to another one just now.
    pub fn take_user(&self, user: &str) -> Result<(), Limit> {
        let (mut table, mut held) = (self.clients.table(), self.user());
        if table.clients.get(&self.number).is_some_and(|client| client.evicted.is_some()) {
            return Err(Limit::Strangers);
        }
        if let Some(before) = held.take() {
            give_back(&mut table.by_user, &before);
        }
        if table.by_user.get(user).copied().unwrap_or(0) >= table.limits.connections_per_user_max {
            return Err(Limit::ConnectionsOfUser);
        }
        *table.by_user.entry(user.to_owned()).or_default() += 1;
        self.account.belongs_to(user);
        *held = Some(user.to_owned());
        table.strangers.remove(self.number);
        Ok(())
    }

    /// As [`Clients::may_warn`].
    pub fn may_warn(&self, now: Instant) -> bool {
        self.clients.may_warn(now)
    }

    /// Which limit keeps this client out, if it is here only to be told so.
    pub fn refused(&self) -> Option<Limit> {
        self.clients.table().clients.get(&self.number).and_then(|client| client.refused)
    }

    /// From now on this client is here only to be told why; false if there are too many such already.
    pub fn refuse(&self, limit: Limit) -> bool {
        let mut table = self.clients.table();
        let full = table.refused >= table.limits.refusals_max;
        let Some(client) = table.clients.get_mut(&self.number) else { return false };
        if client.refused.is_some() || client.evicted.is_some() {
            return client.evicted.is_none();
        }
        if full {
            return false;
        }
        client.refused = Some(limit);
        table.refused += 1;
        table.strangers.remove(self.number);
        true
    }

    /// Until when a client that was asked to leave has to be gone.
    pub fn drain_until(&self) -> Instant {
        self.clients.table().drain_until.unwrap_or_else(Instant::now)
    }

    /// Always locked after the table.
    fn user(&self) -> MutexGuard<'_, Option<String>> {
        self.user.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let (mut table, mut user) = (self.clients.table(), self.user());
        table.strangers.remove(self.number);
        table.tasks.remove(&self.number);
        if let Some(client) = table.clients.remove(&self.number) {
            table.leaving -= usize::from(client.evicted == Some(Told::No));
            table.refused -= usize::from(client.evicted == Some(Told::Yes)) + usize::from(client.refused.is_some());
            table.uncount(client.counted);
        }
        if let Some(user) = user.take() {
            give_back(&mut table.by_user, &user);
        }
    }
}

/// One less of these; a name without any is forgotten.
fn give_back<K: Clone + Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Entry::Occupied(mut entry) = counts.entry(key.clone()) {
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests;
