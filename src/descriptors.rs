//! How many files and sockets the process may have open, and which of them are kept for what has to go on when clients have taken
//! all others: the connections to RabbitMQ, the operators' listener, files that are read again.
//!
//! The operating system gives the lowest number that is free. So a client's socket with a number of the last ones says that all
//! others are taken, and is not kept: of the last ones clients never hold any.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

/// The first number that is kept.
static RESERVED_FROM: AtomicI32 = AtomicI32::new(RawFd::MAX);

/// What the process has open at its start, where the system does not tell.
const OPEN_AT_START: usize = 32;

/// What the process may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    limit: usize,
    /// At the start, without any client.
    open: usize,
}

/// Lifts the limit as far as the process may: many systems start with 1024 of some 100,000.
///
/// # Errors
/// What the operating system says; the limit is as it was.
pub fn raise() -> std::io::Result<()> {
    let (soft, hard) = rlimit::Resource::NOFILE.get()?;
    if soft < hard { rlimit::Resource::NOFILE.set(hard, hard) } else { Ok(()) }
}

impl Descriptors {
    /// Of this process now.
    pub fn of_process() -> Descriptors {
        let limit = rlimit::Resource::NOFILE.get_soft().unwrap_or(u64::MAX);
        Descriptors { limit: count(limit), open: open() }
    }

    /// What this process could have, were the limit lifted.
    fn at_most() -> Descriptors {
        let limit = rlimit::Resource::NOFILE.get_hard().unwrap_or(u64::MAX);
        Descriptors { limit: count(limit), open: open() }
    }

    /// Kept back: a few, and more where many clients need more connections to RabbitMQ.
    pub fn reserved(&self) -> usize {
        (self.limit / 4).clamp(16, 32) + self.limit / 16
    }

    /// Clients that there are descriptors for.
    pub fn clients_max(&self) -> usize {
        self.limit.saturating_sub(self.open + self.reserved()).max(1)
    }

    /// From now on [`is_reserved`] knows which are kept.
    pub fn keep(&self) {
        let first = self.limit.saturating_sub(self.reserved());
        RESERVED_FROM.store(RawFd::try_from(first).unwrap_or(RawFd::MAX), Ordering::Relaxed);
    }

    /// The limit that so many clients need, if this is less.
    pub fn shortage(&self, clients: usize) -> Option<usize> {
        let needed = (clients + self.open + 32).saturating_mul(16).div_ceil(15);
        (self.clients_max() < clients).then_some(needed.next_multiple_of(64))
    }
}

/// For people: what so many clients need, and how to get it. None if there is enough.
pub fn advice(clients: usize) -> Option<String> {
    let descriptors = Descriptors::at_most();
    let needed = descriptors.shortage(clients)?;
    Some(format!(
        "limits.connections_max and limits.refusals_max together allow for {clients} clients, and the limit on open files ({}) for \
         {}: set it to {needed} (LimitNOFILE= of a unit, ulimit -n, --ulimit nofile of a container), or lower these keys",
        descriptors.limit,
        descriptors.clients_max(),
    ))
}

/// Whether this one is of those that are kept.
pub fn is_reserved(descriptor: &impl AsRawFd) -> bool {
    descriptor.as_raw_fd() >= RESERVED_FROM.load(Ordering::Relaxed)
}

/// Whether the process (EMFILE) or the machine (ENFILE) has no descriptor left.
pub fn are_short(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}

/// No system has more than fits here.
fn count(limit: u64) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX).min(1 << 30)
}

fn open() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(OPEN_AT_START, Iterator::count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_grows_with_the_limit() {
        for (limit, reserved, clients) in [(80, 25, 35), (200, 44, 136), (1024, 96, 908), (20_000, 1282, 18_698)] {
            let descriptors = Descriptors { limit, open: 20 };
            assert_eq!((descriptors.reserved(), descriptors.clients_max()), (reserved, clients));
        }
        assert_eq!(Descriptors { limit: 20, open: 20 }.clients_max(), 1, "somebody is let in whatever the limit");
    }

    #[test]
    fn what_is_advised_is_enough() {
        for clients in [1, 100, 10_100, 1_000_000] {
            let short = Descriptors { limit: 64, open: 30 };
            let needed = short.shortage(clients).unwrap_or(64);
            assert_eq!(Descriptors { limit: needed, open: 30 }.shortage(clients), None, "{clients}");
        }
        assert_eq!(Descriptors { limit: 100_000, open: 30 }.shortage(10_100), None);
    }

    #[test]
    fn a_high_number_is_reserved() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(!is_reserved(&file));
    }
}
