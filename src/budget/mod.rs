//! What is held in memory for clients: counted per connection, per user and for the process, under a limit for each.
//!
//! Counts and names those who have to leave; ends nobody and tells nobody. Two kinds of bytes are told apart: those that a
//! connection alone keeps alive, and its share of what many wait for, which exists once and is counted for the process where
//! it exists ([`Charge`]).
//!
//! Near the process's limit newcomers have to come later ([`Budget::is_tight`]); beyond it those who hold most are chosen,
//! until what is left has room again.

pub mod machine;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;

/// A connection that is not yet a WebSocket: its task, TLS and HTTP. Its request head, or its TLS handshake, comes on top
/// ([`BudgetLimits::stranger`]).
pub const STRANGER_BYTES: usize = 32 << 10;

/// An idle WebSocket, with TLS and a session: what it keeps beside the bytes that are counted as they come.
pub const SESSION_BYTES: usize = 24 << 10;

/// What the process needs for itself.
const PROCESS_BYTES: usize = 24 << 20;

/// A change below this is not worth telling everybody: each connection may be wrong by so much.
const GRAIN: usize = 4 << 10;

/// Thousandths of the process's limit at which newcomers have to come later. Counted is what is kept; the memory that the
/// system sees is more by what the allocator keeps and what is being copied, so the limits of counting lie below.
const TIGHT: usize = 700;
/// … at which those who hold most are chosen.
const FULL: usize = 730;
/// … that is left by those who stay.
const RELIEVED: usize = 600;

/// Newcomers are kept out no longer than this by those who hold much.
const TIGHT_MAX: Duration = Duration::from_secs(10);
/// How much that is, in parts of the process's limit.
const MUCH: usize = 128;

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetLimits {
    /// `limits.memory_max`
    pub process: usize,
    /// `limits.session_bytes_max`
    pub session: usize,
    /// No limit, but what a connection without a WebSocket counts for: the most that it can hold.
    pub stranger: usize,
    /// `limits.user_bytes_max`
    pub user: usize,
}

impl BudgetLimits {
    pub const UNLIMITED: BudgetLimits =
        BudgetLimits { process: usize::MAX, session: usize::MAX, stranger: STRANGER_BYTES, user: usize::MAX };

    fn share(self, thousandths: usize) -> usize {
        self.process / 1000 * thousandths
    }
}

/// Which limit a connection has to leave for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    Process,
    Session,
    User,
}

impl Excess {
    /// As a metric shows it.
    pub fn label(self) -> &'static str {
        match self {
            Excess::Process => "process",
            Excess::Session => "session",
            Excess::User => "user",
        }
    }
}

/// Cheap to clone; all clones count together.
#[derive(Clone)]
pub struct Budget(Arc<Inner>);

struct Inner {
    limits: Mutex<BudgetLimits>,
    /// As in `limits`, to be read without a lock.
    process_max: AtomicUsize,
    session_max: AtomicUsize,
    user_max: AtomicUsize,
    used: AtomicUsize,
    /// Of those who are chosen and not yet gone.
    leaving: AtomicUsize,
    /// Milliseconds after `since` at which newcomers began to be kept out, and one; 0: they are let in.
    tight_since: AtomicU64,
    since: Instant,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    holders: HashMap<u64, Weak<Holder>>,
    next: u64,
    users: HashMap<String, Weak<User>>,
}

struct User {
    bytes: AtomicUsize,
    name: String,
}

/// One connection's part.
#[derive(Default)]
struct Holder {
    own: AtomicUsize,
    shared: AtomicUsize,
    /// 0, or why it has to leave.
    chosen: AtomicU8,
    /// Locked while anything of it changes, so that who leaves is counted with what it has.
    user: Mutex<Option<Arc<User>>>,
    waker: AtomicWaker,
}

impl Holder {
    fn bytes(&self) -> usize {
        self.own.load(Ordering::Relaxed) + self.shared.load(Ordering::Relaxed)
    }

    fn user(&self) -> MutexGuard<'_, Option<Arc<User>>> {
        self.user.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chosen(&self) -> Option<Excess> {
        match self.chosen.load(Ordering::Acquire) {
            1 => Some(Excess::Process),
            2 => Some(Excess::Session),
            3 => Some(Excess::User),
            _ => None,
        }
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget").field("limits", &self.limits()).field("used", &self.used()).finish()
    }
}

/// Counts, and limits nothing.
impl Default for Budget {
    fn default() -> Budget {
        Budget::new(BudgetLimits::UNLIMITED)
    }
}

impl Budget {
    pub fn new(limits: BudgetLimits) -> Budget {
        let budget = Budget(Arc::new(Inner {
            limits: Mutex::new(limits),
            process_max: AtomicUsize::new(0),
            session_max: AtomicUsize::new(0),
            user_max: AtomicUsize::new(0),
            used: AtomicUsize::new(PROCESS_BYTES),
            leaving: AtomicUsize::new(0),
            tight_since: AtomicU64::new(0),
            since: Instant::now(),
            table: Mutex::default(),
        }));
        budget.set_limits(limits);
        budget
    }

    /// From the next change on.
    pub fn set_limits(&self, limits: BudgetLimits) {
        *self.0.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
        self.0.process_max.store(limits.share(FULL), Ordering::Relaxed);
        self.0.session_max.store(limits.session, Ordering::Relaxed);
        self.0.user_max.store(limits.user, Ordering::Relaxed);
    }

    pub fn limits(&self) -> BudgetLimits {
        *self.0.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that are counted now, the process's own included.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Of a connection of which nothing is known yet.
    pub fn account(&self) -> Account {
        let holder = Arc::new(Holder::default());
        let mut table = self.table();
        let number = table.next;
        table.next += 1;
        table.holders.insert(number, Arc::downgrade(&holder));
        drop(table);
        let account = Account { budget: self.clone(), holder, number };
        account.set(self.limits().stranger, 0);
        account
    }

    /// Counts something that many wait for, for as long as the answer lives.
    pub fn charge(&self, bytes: usize) -> Charge {
        let charge = Charge { budget: self.clone(), bytes: AtomicUsize::new(0) };
        charge.grow(bytes);
        charge
    }

    /// Whether newcomers have to come later. Where that lasts, those who hold much are asked to leave.
    pub fn is_tight(&self) -> bool {
        let limits = self.limits();
        let inner = &*self.0;
        if self.staying() <= limits.share(TIGHT) {
            inner.tight_since.store(0, Ordering::Relaxed);
            return false;
        }
        let now = u64::try_from(inner.since.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        match inner.tight_since.load(Ordering::Relaxed) {
            0 => inner.tight_since.store(now, Ordering::Relaxed),
            since if u128::from(now - since.min(now)) >= TIGHT_MAX.as_millis() => {
                inner.tight_since.store(now, Ordering::Relaxed);
                self.relieve(limits.process / MUCH);
            }
            _ => {}
        }
        true
    }

    /// Whether so much is counted, those included who are ended for it and not yet gone, that nothing more should be taken that can
    /// wait elsewhere.
    pub fn is_full(&self) -> bool {
        self.used() > self.0.process_max.load(Ordering::Relaxed)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, bytes: usize) {
        self.0.used.fetch_add(bytes, Ordering::Relaxed);
    }

    fn subtract(&self, bytes: usize) {
        self.0.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Without what those hold who have been chosen already.
    fn staying(&self) -> usize {
        self.used().saturating_sub(self.0.leaving.load(Ordering::Relaxed))
    }

    fn relieve_if_full(&self) {
        if self.staying() > self.0.process_max.load(Ordering::Relaxed) {
            self.relieve(0);
        }
    }

    /// Chooses those who hold most, and at least so much, until the others have room.
    fn relieve(&self, least: usize) {
        let target = self.limits().share(RELIEVED);
        let table = self.table();
        for holder in largest(table.holders.values()) {
            if self.staying() <= target || holder.bytes() < least {
                return;
            }
            self.choose(&holder, Excess::Process);
        }
    }

    fn relieve_user(&self, user: &Arc<User>) {
        let max = self.0.user_max.load(Ordering::Relaxed);
        let table = self.table();
        let mut bytes = user.bytes.load(Ordering::Relaxed);
        let of_user = |holder: &Arc<Holder>| holder.user().as_ref().is_some_and(|other| Arc::ptr_eq(other, user));
        for holder in largest(table.holders.values()).into_iter().filter(of_user) {
            if holder.chosen().is_none() && bytes > max {
                self.choose(&holder, Excess::User);
            }
            if holder.chosen().is_some() {
                bytes = bytes.saturating_sub(holder.bytes());
            }
        }
    }

    fn choose(&self, holder: &Holder, excess: Excess) {
        let code = match excess {
            Excess::Process => 1,
            Excess::Session => 2,
            Excess::User => 3,
        };
        let _unchanged = holder.user();
        if holder.chosen.compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.0.leaving.fetch_add(holder.own.load(Ordering::Relaxed), Ordering::Relaxed);
            holder.waker.wake();
        }
    }
}

/// Those who are there, who holds most first.
fn largest<'a>(holders: impl Iterator<Item = &'a Weak<Holder>>) -> Vec<Arc<Holder>> {
    let mut holders: Vec<_> = holders.filter_map(Weak::upgrade).map(|holder| (holder.bytes(), holder)).collect();
    holders.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
    holders.into_iter().map(|(_, holder)| holder).collect()
}

/// What one connection holds; given back when it is dropped.
#[derive(Debug)]
pub struct Account {
    budget: Budget,
    holder: Arc<Holder>,
    number: u64,
}

impl fmt::Debug for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holder").field("own", &self.own).field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl Account {
    /// From now on it counts under this user as well, and no other.
    pub fn belongs_to(&self, name: &str) {
        let mut table = self.budget.table();
        let user = match table.users.get(name).and_then(Weak::upgrade) {
            Some(user) => user,
            None => {
                let user = Arc::new(User { bytes: AtomicUsize::new(0), name: name.to_owned() });
                table.users.insert(name.to_owned(), Arc::downgrade(&user));
                user
            }
        };
        let bytes = self.holder.bytes();
        user.bytes.fetch_add(bytes, Ordering::Relaxed);
        let before = self.holder.user().replace(user);
        if let Some(before) = before {
            before.bytes.fetch_sub(bytes, Ordering::Relaxed);
            forget_if_last(&mut table, before);
        }
    }

    /// What the connection holds now. `own` is freed with it; `shared` is its share of what others may wait for too. Cheap
    /// where little has changed.
    pub fn set(&self, own: usize, shared: usize) {
        let (before, shared_before) =
            (self.holder.own.load(Ordering::Relaxed), self.holder.shared.load(Ordering::Relaxed));
        if own.abs_diff(before) < GRAIN && shared.abs_diff(shared_before) < GRAIN {
            return;
        }
        self.replace(own, shared);
        if own + shared > before + shared_before {
            self.judge(own + shared);
        }
    }

    fn replace(&self, own: usize, shared: usize) {
        let (inner, holder) = (&*self.budget.0, &*self.holder);
        let user = holder.user();
        let (before, shared_before) =
            (holder.own.swap(own, Ordering::Relaxed), holder.shared.swap(shared, Ordering::Relaxed));
        let change = |total: &AtomicUsize, now: usize, before: usize| match now >= before {
            true => total.fetch_add(now - before, Ordering::Relaxed),
            false => total.fetch_sub(before - now, Ordering::Relaxed),
        };
        change(&inner.used, own, before);
        if holder.chosen().is_some() {
            change(&inner.leaving, own, before);
        }
        if let Some(user) = &*user {
            change(&user.bytes, own + shared, before + shared_before);
        }
    }

    fn judge(&self, bytes: usize) {
        let inner = &*self.budget.0;
        if bytes > inner.session_max.load(Ordering::Relaxed) {
            self.budget.choose(&self.holder, Excess::Session);
        }
        let user = self.holder.user().clone();
        if let Some(user) =
            user.filter(|user| user.bytes.load(Ordering::Relaxed) > inner.user_max.load(Ordering::Relaxed))
        {
            self.budget.relieve_user(&user);
        }
        self.budget.relieve_if_full();
    }

    pub fn bytes(&self) -> usize {
        self.holder.bytes()
    }

    /// Whether this connection has to leave because the process has no room.
    pub fn makes_room(&self) -> bool {
        self.holder.chosen() == Some(Excess::Process)
    }

    /// Ready when this connection has to leave, and why.
    pub fn poll_chosen(&self, cx: &mut Context<'_>) -> Poll<Excess> {
        if let Some(excess) = self.holder.chosen() {
            return Poll::Ready(excess);
        }
        self.holder.waker.register(cx.waker());
        self.holder.chosen().map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.replace(0, 0);
        let mut table = self.budget.table();
        table.holders.remove(&self.number);
        let user = self.holder.user().take();
        if let Some(user) = user {
            forget_if_last(&mut table, user);
        }
    }
}

/// Under the table's lock nobody else comes to know the user.
fn forget_if_last(table: &mut Table, user: Arc<User>) {
    if Arc::strong_count(&user) == 1 {
        table.users.remove(&user.name);
    }
}

/// Bytes that exist once, however many wait for them, or that are no client's.
#[derive(Debug)]
pub struct Charge {
    budget: Budget,
    bytes: AtomicUsize,
}

impl Charge {
    /// So many more.
    pub fn grow(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.budget.add(bytes);
        self.budget.relieve_if_full();
    }

    /// So many fewer; there must have been as many.
    pub fn shrink(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.subtract(bytes);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.subtract(*self.bytes.get_mut());
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    const MIB: usize = 1 << 20;
    const LIMITS: BudgetLimits =
        BudgetLimits { process: 200 * MIB, session: 50 * MIB, stranger: STRANGER_BYTES, user: 80 * MIB };

    fn chosen(account: &Account) -> Option<Excess> {
        match account.poll_chosen(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(excess) => Some(excess),
            Poll::Pending => None,
        }
    }

    #[test]
    fn what_is_given_back_leaves_nothing_behind() {
        let budget = Budget::new(LIMITS);
        let before = budget.used();
        let accounts: Vec<_> = (0..10).map(|_| budget.account()).collect();
        for account in &accounts {
            account.belongs_to("alice");
            account.set(MIB, MIB);
            account.belongs_to("bob");
            account.set(2 * MIB, 0);
        }
        let charge = budget.charge(MIB);
        assert_eq!(budget.used(), before + 21 * MIB);
        drop((accounts, charge));
        assert_eq!((budget.used(), budget.0.leaving.load(Ordering::Relaxed)), (before, 0));
        let table = budget.table();
        assert!(table.holders.is_empty() && table.users.is_empty());
    }

    #[test]
    fn a_session_beyond_its_own_limit_has_to_leave_and_no_other() {
        let budget = Budget::new(LIMITS);
        let (small, large) = (budget.account(), budget.account());
        small.set(10 * MIB, 0);
        large.set(30 * MIB, 21 * MIB);
        assert_eq!((chosen(&small), chosen(&large)), (None, Some(Excess::Session)));
    }

    #[test]
    fn of_a_user_beyond_its_limit_the_largest_leaves_whoever_went_beyond() {
        let budget = Budget::new(LIMITS);
        let accounts: Vec<_> = (0..4).map(|_| budget.account()).collect();
        accounts.iter().take(3).for_each(|account| account.belongs_to("alice"));
        accounts[0].set(40 * MIB, 0);
        accounts[1].set(39 * MIB, 0);
        accounts[3].set(41 * MIB, 0);
        accounts[2].set(2 * MIB, 0);
        let all: Vec<_> = accounts.iter().map(chosen).collect();
        assert_eq!(all, [Some(Excess::User), None, None, None]);
    }

    #[test]
    fn beyond_the_process_limit_the_largest_leave_until_there_is_room() {
        let budget = Budget::new(BudgetLimits { session: usize::MAX, user: usize::MAX, ..LIMITS });
        let small: Vec<_> = (0..50).map(|_| budget.account()).collect();
        let large: Vec<_> = (0..5).map(|_| budget.account()).collect();
        large.iter().enumerate().for_each(|(at, account)| account.set((26 + at) * MIB, 0));
        let all: Vec<_> = large.iter().map(chosen).collect();
        assert!(small.iter().all(|account| chosen(account).is_none()));
        // 24 and 140 MiB are counted, above 146; 120 may stay.
        assert_eq!(all, [None, None, None, Some(Excess::Process), Some(Excess::Process)]);
        assert!(!budget.is_tight(), "those who leave do not count");
    }

    #[test]
    fn what_many_wait_for_counts_once_for_the_process() {
        let budget = Budget::new(LIMITS);
        let _body = budget.charge(10 * MIB);
        let waiting: Vec<_> = (0..20).map(|_| budget.account()).collect();
        waiting.iter().for_each(|account| account.set(SESSION_BYTES, 10 * MIB));
        assert!(waiting.iter().all(|account| chosen(account).is_none()));
        assert!(budget.used() < 40 * MIB, "{}", budget.used());
    }

    #[test]
    fn newcomers_come_later_near_the_limit_and_again_when_there_is_room() {
        let budget = Budget::new(LIMITS);
        let body = budget.charge(120 * MIB);
        assert!(budget.is_tight());
        drop(body);
        assert!(!budget.is_tight());
    }

    #[test]
    fn small_changes_are_not_told() {
        let budget = Budget::new(LIMITS);
        let account = budget.account();
        account.set(STRANGER_BYTES + GRAIN - 1, 0);
        assert_eq!(account.bytes(), STRANGER_BYTES);
        account.set(STRANGER_BYTES + GRAIN, 0);
        assert_eq!(account.bytes(), STRANGER_BYTES + GRAIN);
    }
}
