//! Who is connected: counts under caps, rates, and a way to ask each client to leave.
//!
//! Waits for nobody and tells nobody: a turn is a point in time, a limit is a value. What is done with them is decided
//! above.

mod network;
mod pace;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use self::pace::Pace;
pub use self::pace::PaceLimits;
use crate::budget::{Account, Budget};
use crate::rate::{Bucket, Rate};
use crate::session::admission::Limit;

/// Log lines about limits; those beyond are for the level `debug` alone.
const WARNINGS: Rate = Rate { per_second: 1, burst: 5 };

/// How many clients there may be, and how fast they may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    pub connections_max: usize,
    pub connections_per_address_max: usize,
    pub connections_per_user_max: usize,
    /// Connections, beyond the others, that are kept only until they have been told why they are not let in.
    pub refusals_max: usize,
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
    by_user: HashMap<String, usize>,
    connects: Pace,
    drains: HashMap<u64, CancellationToken>,
    handshakes: Pace,
    limits: ClientLimits,
    next: u64,
    /// Paces the log lines about limits.
    warnings: Bucket,
    /// How many of all are kept only until they have been told why.
    refused: usize,
}

/// A client's place; given back when it is dropped, however its task ends.
#[derive(Debug)]
pub struct Place {
    /// What it holds in memory.
    pub account: Account,
    clients: Clients,
    /// Cancelled when this client shall leave.
    pub drain: CancellationToken,
    held: Mutex<Held>,
    number: u64,
}

/// What a place counts under.
#[derive(Debug, Default)]
struct Held {
    address: Option<IpAddr>,
    refused: Option<Limit>,
    user: Option<String>,
}

impl Clients {
    pub fn new(limits: ClientLimits, budget: Budget) -> Clients {
        let table = Table {
            by_address: HashMap::new(),
            by_user: HashMap::new(),
            connects: Pace::default(),
            drains: HashMap::new(),
            handshakes: Pace::default(),
            limits,
            next: 0,
            refused: 0,
            warnings: Bucket::new(),
        };
        Clients(Arc::new(Inner { budget, table: Mutex::new(table), stop: CancellationToken::new() }))
    }

    /// For clients that come from now on.
    pub fn set_limits(&self, limits: ClientLimits) {
        self.table().limits = limits;
    }

    /// A place for a connection of which nothing is known yet. Beyond `connections_max` it is one of the few that are
    /// only told why ([`Place::refused`]); None when there is none of these left either.
    pub fn take_place(&self) -> Option<Place> {
        let mut table = self.table();
        let full = table.drains.len() - table.refused >= table.limits.connections_max;
        if full && table.refused >= table.limits.refusals_max {
            return None;
        }
        table.refused += usize::from(full);
        let (number, drain) = (table.next, CancellationToken::new());
        table.next += 1;
        table.drains.insert(number, drain.clone());
        let held = Held { refused: full.then_some(Limit::Connections), ..Held::default() };
        drop(table);
        Some(Place { account: self.0.budget.account(), clients: self.clone(), drain, held: Mutex::new(held), number })
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

    pub fn count(&self) -> usize {
        self.table().drains.len()
    }

    /// Connections taken since the start.
    pub fn total(&self) -> u64 {
        self.table().next
    }

    pub fn stop_accepting(&self) {
        self.0.stop.cancel();
    }

    pub fn stop(&self) -> &CancellationToken {
        &self.0.stop
    }

    /// The drain signals of all that are connected now.
    pub fn drains(&self) -> Vec<CancellationToken> {
        self.table().drains.values().cloned().collect()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Counts the client under its address, instead of any before; the answer is when its handshake may go on.
    ///
    /// # Errors
    /// The limit that is reached. It then counts under no address.
    pub fn take_address(&self, address: IpAddr, now: Instant) -> Result<Instant, Limit> {
        let address = network::counted_as(address);
        let (mut table, mut held) = (self.clients.table(), self.held());
        if let Some(before) = held.address.take() {
            give_back(&mut table.by_address, &before);
        }
        let limits = table.limits;
        if self.clients.is_tight() {
            return Err(Limit::Memory);
        }
        if table.by_address.get(&address).copied().unwrap_or(0) >= limits.connections_per_address_max {
            return Err(Limit::ConnectionsOfAddress);
        }
        let turn = table.handshakes.turn(&limits.handshakes, address, now).map_err(|_| Limit::HandshakeRate)?;
        *table.by_address.entry(address).or_default() += 1;
        held.address = Some(address);
        Ok(turn)
    }

    /// When this client may log in.
    ///
    /// # Errors
    /// [`Limit::ConnectRate`], [`Limit::Memory`]
    pub fn take_connect(&self, now: Instant) -> Result<Instant, Limit> {
        let (mut table, held) = (self.clients.table(), self.held());
        let limits = table.limits;
        if self.clients.is_tight() {
            return Err(Limit::Memory);
        }
        // Without an address it was refused, and does not come this far.
        let Some(address) = held.address else { return Ok(now) };
        table.connects.turn(&limits.connects, address, now).map_err(|_| Limit::ConnectRate)
    }

    /// Counts the client under its user, instead of any before.
    ///
    /// # Errors
    /// [`Limit::ConnectionsOfUser`]
    pub fn take_user(&self, user: &str) -> Result<(), Limit> {
        let (mut table, mut held) = (self.clients.table(), self.held());
        if let Some(before) = held.user.take() {
            give_back(&mut table.by_user, &before);
        }
        if table.by_user.get(user).copied().unwrap_or(0) >= table.limits.connections_per_user_max {
            return Err(Limit::ConnectionsOfUser);
        }
        *table.by_user.entry(user.to_owned()).or_default() += 1;
        self.account.belongs_to(user);
        held.user = Some(user.to_owned());
        Ok(())
    }

    /// As [`Clients::may_warn`].
    pub fn may_warn(&self, now: Instant) -> bool {
        self.clients.may_warn(now)
    }

    /// Which limit keeps this client out, if it is here only to be told so.
    pub fn refused(&self) -> Option<Limit> {
        self.held().refused
    }

    /// From now on this client is here only to be told why; false if there are too many such already.
    pub fn refuse(&self, limit: Limit) -> bool {
        let (mut table, mut held) = (self.clients.table(), self.held());
        if held.refused.is_none() {
            if table.refused >= table.limits.refusals_max {
                return false;
            }
            table.refused += 1;
            held.refused = Some(limit);
        }
        true
    }

    /// Always locked after the table.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let (mut table, mut held) = (self.clients.table(), self.held());
        table.drains.remove(&self.number);
        table.refused -= usize::from(held.refused.is_some());
        if let Some(address) = held.address.take() {
            give_back(&mut table.by_address, &address);
        }
        if let Some(user) = held.user.take() {
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
mod tests {
    use std::time::Duration;

    use super::*;

    const UNPACED: PaceLimits =
        PaceLimits { everybody: Rate::UNLIMITED, each_address: Rate::UNLIMITED, wait_max: Duration::ZERO };

    const LIMITS: ClientLimits = ClientLimits {
        connections_max: 3,
        connections_per_address_max: 2,
        connections_per_user_max: 1,
        refusals_max: 1,
        connects: UNPACED,
        handshakes: UNPACED,
    };

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn beyond_the_cap_a_few_are_told_why_and_the_rest_is_not_taken() {
        let clients = Clients::new(LIMITS, Budget::default());
        let mut places: Vec<_> = (0..3).map(|_| clients.take_place().unwrap()).collect();
        assert!(places.iter().all(|place| place.refused().is_none()));
        let told = clients.take_place().unwrap();
        assert_eq!(told.refused(), Some(Limit::Connections));
        assert!(clients.take_place().is_none());
        assert_eq!((clients.count(), clients.total()), (4, 4));
        places.pop();
        assert_eq!(clients.take_place().unwrap().refused(), None, "a place was given back");
        drop((places, told));
        assert_eq!((clients.count(), clients.table().refused), (0, 0));
    }

    #[test]
    fn an_address_has_its_share_wherever_it_is_counted_first() {
        let clients = Clients::new(ClientLimits { connections_max: 100, ..LIMITS }, Budget::default());
        let now = Instant::now();
        let [a, b, c] = [(); 3].map(|()| clients.take_place().unwrap());
        assert_eq!(a.take_address(address("2001:db8::1"), now), Ok(now));
        assert_eq!(b.take_address(address("2001:db8::2"), now), Ok(now));
        assert_eq!(c.take_address(address("2001:db8::3"), now), Err(Limit::ConnectionsOfAddress), "the same /64");
        assert_eq!(c.take_address(address("2001:db8:0:1::"), now), Ok(now));
        // A proxy's address gives way to the client's.
        assert_eq!(a.take_address(address("203.0.113.7"), now), Ok(now));
        assert_eq!(c.take_address(address("2001:db8::3"), now), Ok(now));
        drop((a, b, c));
        assert!(clients.table().by_address.is_empty());
    }

    #[test]
    fn a_user_has_its_share_and_may_log_in_again() {
        let clients = Clients::new(LIMITS, Budget::default());
        let [a, b] = [(); 2].map(|()| clients.take_place().unwrap());
        assert_eq!((a.take_user("alice"), a.take_user("alice")), (Ok(()), Ok(())));
        assert_eq!(b.take_user("alice"), Err(Limit::ConnectionsOfUser));
        assert_eq!(b.take_user("bob"), Ok(()));
        drop(a);
        assert_eq!(b.take_user("alice"), Ok(()));
        drop(b);
        assert!(clients.table().by_user.is_empty());
    }

    #[test]
    fn those_who_are_told_why_are_bounded() {
        let clients = Clients::new(LIMITS, Budget::default());
        let [a, b] = [(); 2].map(|()| clients.take_place().unwrap());
        assert!(a.refuse(Limit::HandshakeRate) && a.refuse(Limit::ConnectionsOfAddress));
        assert_eq!(a.refused(), Some(Limit::HandshakeRate));
        assert!(!b.refuse(Limit::HandshakeRate));
        drop(a);
        assert!(b.refuse(Limit::HandshakeRate));
    }

    #[test]
    fn warnings_are_paced() {
        let (clients, now) = (Clients::new(LIMITS, Budget::default()), Instant::now());
        assert_eq!((0..100).filter(|_| clients.may_warn(now)).count(), 5);
        assert!(clients.may_warn(now + Duration::from_secs(1)));
    }

    #[test]
    fn new_limits_hold_at_once() {
        let clients = Clients::new(LIMITS, Budget::default());
        let _places: Vec<_> = (0..3).map(|_| clients.take_place().unwrap()).collect();
        clients.set_limits(ClientLimits { connections_max: 4, refusals_max: 0, ..LIMITS });
        assert!(clients.take_place().is_some_and(|place| place.refused().is_none()));
        clients.set_limits(ClientLimits { connections_max: 1, refusals_max: 0, ..LIMITS });
        assert!(clients.take_place().is_none());
    }
}
