//! Failed logins: a limit per address and per user, and a delay, so that passwords can't be guessed.
//!
//! Only failures count. At most as many logins of an address are judged at a time as it has failures left, the others wait:
//! guessing in parallel gains nothing, and a crowd behind one address gets in. In all, a number of logins of its own bounds what
//! is judged at a time: a login is judged to its end also when its client has left, so clients do not bound it. A user's limit holds back only addresses that
//! have failed themselves: nobody is locked out by what others do elsewhere. User names are kept as hashes, all spellings of one as
//! the same.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::session::identity::fold;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttemptLimits {
    /// A failed login is answered not before this time.
    pub delay: Duration,
    /// Within `window`.
    pub failures_per_address_max: u32,
    /// Within `window`.
    pub failures_per_user_max: u32,
    /// Logins that are judged at a time; the others wait. At least 1 counts.
    pub judged_max: usize,
    /// Addresses that are remembered, and as many users; beyond it the oldest are forgotten.
    pub tracked_max: usize,
    /// Counting starts anew after this time.
    pub window: Duration,
}

/// Who has failed lately; cheap to clone.
#[derive(Clone, Debug)]
pub struct Attempts {
    limits: AttemptLimits,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    addresses: HashMap<IpAddr, Address>,
    /// Told when one more may be judged.
    free: Arc<Notify>,
    hasher: RandomState,
    /// Logins that are being judged.
    judged: usize,
    users: HashMap<u64, Failures>,
}

#[derive(Debug, Default)]
struct Address {
    failures: Failures,
    /// Logins that are being judged.
    pending: u32,
    turn: Arc<Notify>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Failures {
    count: u32,
    since: Option<Instant>,
}

impl Failures {
    fn within(&self, window: Duration, now: Instant) -> u32 {
        let fresh = self.since.is_some_and(|since| now.duration_since(since) < window);
        if fresh { self.count } else { 0 }
    }

    fn add(&mut self, window: Duration, now: Instant) {
        if self.within(window, now) == 0 {
            *self = Failures { count: 0, since: Some(now) };
        }
        self.count += 1;
    }
}

/// Failures reached a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limited;

/// One login that is being judged. Dropped without [`Attempt::failed`] it counts for nothing.
#[derive(Debug)]
pub struct Attempt {
    address: IpAddr,
    attempts: Attempts,
    user: Option<u64>,
}

enum Turn {
    Now(Option<u64>),
    /// Too many of all are being judged.
    Later(Arc<Notify>),
    /// Too many of this address are; another address may have the place.
    LaterHere {
        here: Arc<Notify>,
        free: Arc<Notify>,
    },
}

impl Attempts {
    pub fn new(limits: AttemptLimits) -> Attempts {
        Attempts { limits, table: Arc::default() }
    }

    /// With other limits and the same memory.
    pub fn with_limits(&self, limits: AttemptLimits) -> Attempts {
        Attempts { limits, table: self.table.clone() }
    }

    pub fn delay(&self) -> Duration {
        self.limits.delay
    }

    /// Waits for its turn. `user` is the name that is claimed, empty if there is none.
    ///
    /// # Errors
    /// [`Limited`], whoever the user is.
    pub async fn begin(&self, address: IpAddr, user: &str) -> Result<Attempt, Limited> {
        let address = network(address);
        loop {
            match self.take_turn(address, user, Instant::now())? {
                Turn::Now(user) => return Ok(Attempt { address, attempts: self.clone(), user }),
                Turn::Later(turn) => turn.notified().await,
                Turn::LaterHere { here, free } => {
                    // It may have been woken for a place that it can't take.
                    free.notify_one();
                    here.notified().await;
                }
            }
        }
    }

    fn take_turn(&self, address: IpAddr, user: &str, now: Instant) -> Result<Turn, Limited> {
        let AttemptLimits { failures_per_address_max, failures_per_user_max, window, .. } = self.limits;
        let mut table = self.table();
        let user = (!user.is_empty()).then(|| table.hasher.hash_one(fold(user)));
        let users = user.and_then(|user| table.users.get(&user)).map_or(0, |failures| failures.within(window, now));
        if !table.addresses.contains_key(&address) {
            table.make_room(self.limits, now);
        }
        let room = table.judged < self.limits.judged_max.max(1);
        let free = table.free.clone();
        let here = table.addresses.entry(address).or_default();
        let failed = here.failures.within(window, now);
        if failed >= failures_per_address_max || (users >= failures_per_user_max && failed > 0) {
            // Those who wait are to know it too.
            here.turn.notify_one();
            return Err(Limited);
        }
        if here.pending >= failures_per_address_max - failed {
            return Ok(Turn::LaterHere { here: here.turn.clone(), free });
        }
        if !room {
            return Ok(Turn::Later(free));
        }
        here.pending += 1;
        table.judged += 1;
        Ok(Turn::Now(user))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Forgets who has not failed lately; then, if that is not enough, who failed first.
    fn make_room(&mut self, limits: AttemptLimits, now: Instant) {
        let AttemptLimits { tracked_max, window, .. } = limits;
        if self.addresses.len() >= tracked_max {
            self.addresses.retain(|_, address| address.pending > 0 || address.failures.within(window, now) > 0);
        }
        while self.addresses.len() >= tracked_max {
            let idle = self.addresses.iter().filter(|(_, address)| address.pending == 0);
            let Some(oldest) = idle.min_by_key(|(_, address)| address.failures.since).map(|(key, _)| *key) else {
                break;
            };
            self.addresses.remove(&oldest);
        }
    }

    fn fail_user(&mut self, user: u64, limits: AttemptLimits, now: Instant) {
        let AttemptLimits { tracked_max, window, .. } = limits;
        if !self.users.contains_key(&user) && self.users.len() >= tracked_max {
            self.users.retain(|_, failures| failures.within(window, now) > 0);
            if self.users.len() >= tracked_max
                && let Some(oldest) = self.users.iter().min_by_key(|(_, failures)| failures.since).map(|(key, _)| *key)
            {
                self.users.remove(&oldest);
            }
        }
        self.users.entry(user).or_default().add(window, now);
    }
}

impl Attempt {
    /// What was shown was wrong.
    pub fn failed(self) {
        self.fail_at(Instant::now());
    }

    fn fail_at(self, now: Instant) {
        let limits = self.attempts.limits;
        let mut table = self.attempts.table();
        if let Some(address) = table.addresses.get_mut(&self.address) {
            address.failures.add(limits.window, now);
        }
        if let Some(user) = self.user {
            table.fail_user(user, limits, now);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let mut table = self.attempts.table();
        table.judged = table.judged.saturating_sub(1);
        table.free.notify_one();
        if let Some(address) = table.addresses.get_mut(&self.address) {
            address.pending = address.pending.saturating_sub(1);
            address.turn.notify_one();
            if address.pending == 0 && address.failures.count == 0 && Arc::strong_count(&address.turn) == 1 {
                table.addresses.remove(&self.address);
            }
        }
    }
}

/// A customer of a provider has a whole /64 network of IPv6 (RFC 6177), so that counts as one address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) & (u128::MAX << 64))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: AttemptLimits = AttemptLimits {
        delay: Duration::ZERO,
        failures_per_address_max: 3,
        failures_per_user_max: 5,
        judged_max: 100,
        tracked_max: 8,
        window: Duration::from_secs(60),
    };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    async fn fail(attempts: &Attempts, address: &str, user: &str) -> Result<(), Limited> {
        attempts.begin(ip(address), user).await.map(Attempt::failed)
    }

    #[tokio::test]
    async fn an_address_is_limited_whoever_it_says_it_is() {
        let attempts = Attempts::new(LIMITS);
        for user in ["a", "b", ""] {
            assert_eq!(fail(&attempts, "192.0.2.1", user).await, Ok(()));
        }
        assert_eq!(fail(&attempts, "192.0.2.1", "c").await, Err(Limited));
        assert_eq!(fail(&attempts, "::ffff:192.0.2.1", "c").await, Err(Limited), "the same in another form");
        assert_eq!(fail(&attempts, "192.0.2.2", "c").await, Ok(()));
    }

    #[tokio::test]
    async fn a_network_of_ipv6_is_one_address() {
        let attempts = Attempts::new(LIMITS);
        for host in ["2001:db8::1", "2001:db8::2", "2001:db8::3:4"] {
            assert_eq!(fail(&attempts, host, "a").await, Ok(()));
        }
        assert_eq!(fail(&attempts, "2001:db8::5", "a").await, Err(Limited));
        assert_eq!(fail(&attempts, "2001:db8:0:1::5", "a").await, Ok(()));
    }

    #[tokio::test]
    async fn a_user_under_attack_still_gets_in_from_elsewhere() {
        let attempts = Attempts::new(LIMITS);
        for host in 1..=5 {
            assert_eq!(fail(&attempts, &format!("192.0.2.{host}"), "victim").await, Ok(()));
        }
        assert_eq!(fail(&attempts, "192.0.2.1", "victim").await, Err(Limited), "a second guess");
        assert_eq!(fail(&attempts, "192.0.2.1", "other").await, Ok(()));
        assert!(attempts.begin(ip("198.51.100.1"), "victim").await.is_ok());
    }

    #[tokio::test]
    async fn the_window_ends() {
        let attempts = Attempts::new(LIMITS);
        let start = Instant::now();
        for _ in 0..3 {
            attempts.begin(ip("192.0.2.1"), "a").await.unwrap().fail_at(start);
        }
        let at = |seconds| attempts.take_turn(ip("192.0.2.1"), "a", start + Duration::from_secs(seconds)).is_ok();
        assert!(!at(59) && at(60));
    }

    #[tokio::test]
    async fn parallel_guesses_wait_for_each_other() {
        let attempts = Attempts::new(LIMITS);
        let (address, user) = (ip("192.0.2.1"), "a");
        let mut first = Vec::new();
        for _ in 0..3 {
            first.push(attempts.begin(address, user).await.unwrap());
        }
        let waiting: Vec<_> = (0..20)
            .map(|_| {
                let attempts = attempts.clone();
                tokio::spawn(async move { attempts.begin(address, user).await.map(Attempt::failed) })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(waiting.iter().all(|task| !task.is_finished()));
        first.pop().unwrap().failed();
        first.pop().unwrap().failed();
        drop(first);
        let mut judged = 0;
        for task in waiting {
            judged += usize::from(task.await.unwrap().is_ok());
        }
        assert_eq!(judged, 1, "three failures in all, whoever waits");
    }

    #[tokio::test]
    async fn the_logins_that_are_judged_are_bounded_in_all() {
        let attempts = Attempts::new(AttemptLimits { judged_max: 2, ..LIMITS });
        let begin = |host: u8| {
            let attempts = attempts.clone();
            tokio::spawn(async move { attempts.begin(ip(&format!("192.0.2.{host}")), "a").await })
        };
        let first = [begin(1).await.unwrap().unwrap(), begin(2).await.unwrap().unwrap()];
        let waiting = [begin(3), begin(4)];
        tokio::task::yield_now().await;
        assert!(waiting.iter().all(|task| !task.is_finished()));
        drop(first);
        for task in waiting {
            drop(task.await.unwrap().unwrap());
        }
        assert_eq!(attempts.table().judged, 0);
    }

    #[tokio::test]
    async fn a_crowd_of_good_logins_gets_in() {
        let attempts = Attempts::new(LIMITS);
        for _ in 0..100 {
            drop(attempts.begin(ip("192.0.2.1"), "a").await.unwrap());
        }
        assert!(attempts.table().addresses.is_empty(), "nothing is remembered of them");
    }

    #[tokio::test]
    async fn the_memory_is_bounded() {
        let attempts = Attempts::new(LIMITS);
        for number in 0..100 {
            let _ = fail(&attempts, &format!("192.0.2.{number}"), &format!("user{number}")).await;
        }
        let table = attempts.table();
        assert_eq!((table.addresses.len(), table.users.len()), (LIMITS.tracked_max, LIMITS.tracked_max));
        assert!(table.addresses.contains_key(&ip("192.0.2.99")), "the oldest are forgotten");
    }
}
