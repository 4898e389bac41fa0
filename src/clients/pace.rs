//! Who may come now, who a moment later, and who not at all: a rate for everybody together and one for each network
//! address. Pure: `now` is a parameter.
//!
//! Whoever is beyond the rate gets a turn in the future. No turn is further away than `wait_max`, so the queue of those who
//! wait is bounded: rate times `wait_max`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::rate::{Bucket, Rate};

/// Addresses that are remembered at a time; those beyond share one bucket.
pub(super) const ADDRESSES_MAX: usize = 65_536;

/// How often addresses with full buckets are forgotten.
const FORGET_INTERVAL: Duration = Duration::from_secs(1);

/// How fast clients may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PaceLimits {
    pub everybody: Rate,
    pub each_address: Rate,
    /// Longest wait for a turn; beyond it a client is refused.
    pub wait_max: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Pace {
    addresses: HashMap<IpAddr, Bucket>,
    everybody: Bucket,
    forgotten_at: Option<Instant>,
    /// Of all addresses that found no room.
    others: Bucket,
}

/// No turn within `wait_max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMany;

impl Pace {
    /// When it is this client's turn; a refused one takes nothing from the others.
    pub(super) fn turn(&mut self, limits: &PaceLimits, address: IpAddr, now: Instant) -> Result<Instant, TooMany> {
        let PaceLimits { everybody, each_address, wait_max } = *limits;
        self.forget(now);
        let known = self.addresses.get(&address).copied();
        let mut own = known.unwrap_or(if self.has_room() { Bucket::default() } else { self.others });
        let wait = own.wait(each_address, now).max(self.everybody.wait(everybody, now));
        if wait > wait_max {
            return Err(TooMany);
        }
        own.take(each_address, now);
        self.everybody.take(everybody, now);
        if known.is_some() || self.has_room() {
            if !own.is_full(now) {
                self.addresses.insert(address, own);
            }
        } else {
            self.others = own;
        }
        Ok(now + wait)
    }

    fn has_room(&self) -> bool {
        self.addresses.len() < ADDRESSES_MAX
    }

    fn forget(&mut self, now: Instant) {
        if self.forgotten_at.is_none_or(|at| now >= at + FORGET_INTERVAL) {
            self.forgotten_at = Some(now);
            self.addresses.retain(|_, bucket| !bucket.is_full(now));
            if self.addresses.len() < self.addresses.capacity() / 4 {
                self.addresses.shrink_to_fit();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const LIMITS: PaceLimits = PaceLimits {
        everybody: Rate { per_second: 100, burst: 10 },
        each_address: Rate { per_second: 10, burst: 2 },
        wait_max: Duration::from_millis(200),
    };

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from(number).into()
    }

    #[test]
    fn an_address_beyond_its_rate_waits_and_then_is_refused() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        let waits: Vec<_> =
            (0..5).map(|_| pace.turn(&LIMITS, address(1), now).map(|turn| (turn - now).as_millis())).collect();
        assert_eq!(waits, [Ok(0), Ok(0), Ok(100), Ok(200), Err(TooMany)]);
        assert_eq!(pace.turn(&LIMITS, address(2), now), Ok(now), "another address is not concerned");
        let later = now + Duration::from_millis(100);
        assert_eq!(pace.turn(&LIMITS, address(1), later), Ok(later + Duration::from_millis(200)));
    }

    #[test]
    fn the_refused_take_nothing_from_the_others() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        let all: Vec<_> = (0..1000).filter_map(|_| pace.turn(&LIMITS, address(1), now).ok()).collect();
        assert_eq!(all.len(), 4);
        for number in 2..8 {
            assert_eq!(pace.turn(&LIMITS, address(number), now), Ok(now));
        }
    }

    #[test]
    fn everybody_together_is_bounded_however_many_addresses_there_are() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        let turns = (0..1000).filter(|number| pace.turn(&LIMITS, address(*number), now).is_ok()).count();
        // The burst, and those who wait at most 200 ms at 100 a second.
        assert_eq!(turns, 10 + 20);
    }

    #[test]
    fn the_table_is_bounded_and_forgets() {
        let limits = PaceLimits { everybody: Rate::UNLIMITED, ..LIMITS };
        let (mut pace, now) = (Pace::default(), Instant::now());
        let count = u32::try_from(ADDRESSES_MAX).unwrap();
        for number in 0..count {
            assert_eq!(pace.turn(&limits, address(number), now), Ok(now));
        }
        // Those beyond share a bucket: the fifth of them is refused although each comes once.
        let beyond = (count..count + 5).filter(|number| pace.turn(&limits, address(*number), now).is_ok()).count();
        assert_eq!((beyond, pace.addresses.len()), (4, ADDRESSES_MAX));
        let later = now + Duration::from_secs(2);
        assert_eq!(pace.turn(&limits, address(count), later), Ok(later));
        assert_eq!(pace.addresses.len(), 1);
    }
}
