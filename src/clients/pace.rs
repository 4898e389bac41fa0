//! Who may come now, who a moment later, and who not at all: a rate for everybody together, one for each network and one for
//! each address. Pure: `now` is a parameter.
//!
//! Whoever is beyond the rate gets a turn in the future. No turn is further away than `wait_max`, so the queue of those who
//! wait is bounded: rate times `wait_max`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::strangers::Origin;
use crate::rate::{Bucket, Rate};

/// Addresses that are remembered at a time, and as many networks; those beyond share one bucket.
pub(super) const ADDRESSES_MAX: usize = 65_536;

/// How often addresses with full buckets are forgotten.
const FORGET_INTERVAL: Duration = Duration::from_secs(1);

/// How fast clients may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PaceLimits {
    pub everybody: Rate,
    pub each_address: Rate,
    /// An address with its network has so many times the rate of a single one, so that who has many addresses does not use up what
    /// is everybody's.
    pub network_factor: u32,
    /// Longest wait for a turn; beyond it a client is refused.
    pub wait_max: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Pace {
    addresses: Buckets,
    everybody: Bucket,
    forgotten_at: Option<Instant>,
    networks: Buckets,
}

/// No turn within `wait_max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMany;

impl Pace {
    /// When it is this client's turn; a refused one takes nothing from the others.
    pub(super) fn turn(&mut self, limits: &PaceLimits, origin: Origin, now: Instant) -> Result<Instant, TooMany> {
        let PaceLimits { everybody, each_address, network_factor, wait_max } = *limits;
        let each_network = Rate {
            per_second: each_address.per_second.saturating_mul(network_factor),
            burst: each_address.burst.saturating_mul(network_factor),
        };
        self.forget(now);
        let (mut address, mut network) = (self.addresses.of(origin.address), self.networks.of(origin.network));
        let own = address.wait(each_address, now).max(network.wait(each_network, now));
        let wait = own.max(self.everybody.wait(everybody, now));
        if wait > wait_max {
            return Err(TooMany);
        }
        address.take(each_address, now);
        network.take(each_network, now);
        self.everybody.take(everybody, now);
        self.addresses.keep(origin.address, address, now);
        self.networks.keep(origin.network, network, now);
        Ok(now + wait)
    }

    fn forget(&mut self, now: Instant) {
        if self.forgotten_at.is_none_or(|at| now >= at + FORGET_INTERVAL) {
            self.forgotten_at = Some(now);
            self.addresses.forget(now);
            self.networks.forget(now);
        }
    }
}

/// A bucket for each address, or for each network by its first address.
#[derive(Debug, Default)]
struct Buckets {
    known: HashMap<IpAddr, Bucket>,
    /// Of all that found no room.
    others: Bucket,
}

impl Buckets {
    fn of(&self, key: IpAddr) -> Bucket {
        let new = || if self.has_room() { Bucket::default() } else { self.others };
        self.known.get(&key).copied().unwrap_or_else(new)
    }

    fn keep(&mut self, key: IpAddr, bucket: Bucket, now: Instant) {
        if !self.known.contains_key(&key) && !self.has_room() {
            self.others = bucket;
        } else if !bucket.is_full(now) {
            self.known.insert(key, bucket);
        }
    }

    fn has_room(&self) -> bool {
        self.known.len() < ADDRESSES_MAX
    }

    fn forget(&mut self, now: Instant) {
        self.known.retain(|_, bucket| !bucket.is_full(now));
        if self.known.len() < self.known.capacity() / 4 {
            self.known.shrink_to_fit();
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
        network_factor: 4,
        wait_max: Duration::from_millis(200),
    };

    /// An address in a network of its own.
    fn address(number: u32) -> Origin {
        let address = Ipv4Addr::from(number).into();
        Origin { address, network: address }
    }

    #[test]
    fn many_addresses_of_a_network_do_not_use_up_what_is_everybodys() {
        let limits = PaceLimits { everybody: Rate { per_second: 100, burst: 20 }, ..LIMITS };
        let (mut pace, now) = (Pace::default(), Instant::now());
        let near = |number| Origin { network: Ipv4Addr::UNSPECIFIED.into(), ..address(number) };
        let turns = (1..1000).filter(|number| pace.turn(&limits, near(*number), now).is_ok()).count();
        // Four times the burst of one, and those who wait at most 200 ms at 40 a second.
        assert_eq!(turns, 8 + 8);
        assert_eq!(pace.turn(&limits, address(5000), now), Ok(now), "another network is not concerned");
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
        assert_eq!((beyond, pace.addresses.known.len()), (4, ADDRESSES_MAX));
        let later = now + Duration::from_secs(2);
        assert_eq!(pace.turn(&limits, address(count), later), Ok(later));
        assert_eq!(pace.addresses.known.len(), 1);
    }
}
