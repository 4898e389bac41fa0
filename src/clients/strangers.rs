//! Clients that have not logged in, and which of them goes when a place is needed: the oldest of the network that holds most.
//! Pure: knows numbers and addresses.
//!
//! Those that wait for an answer of the relay are counted, but do not go: it is not they who take their time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// Where a client comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// As it counts.
    pub(super) address: IpAddr,
    /// As it counts.
    pub(super) network: IpAddr,
}

/// Clients by number; a lower number is older.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    all: BTreeMap<u64, (Origin, Patience)>,
    /// Of those that may be asked to go.
    by_address: HashMap<IpAddr, BTreeSet<u64>>,
    by_network: HashMap<IpAddr, BTreeSet<u64>>,
    /// How many each network has, then its oldest; the last one is the next to lose one.
    ranking: BTreeSet<(usize, Reverse<u64>, IpAddr)>,
}

/// Who is waiting for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    /// The relay for the client.
    Ours,
    /// The client for the relay.
    Theirs,
}

impl Strangers {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// A new client, or one whose address is known better now.
    pub(super) fn place(&mut self, number: u64, origin: Origin) {
        let patience = self.all.get(&number).map_or(Patience::Ours, |(_, patience)| *patience);
        self.remove(number);
        self.all.insert(number, (origin, patience));
        if patience == Patience::Ours {
            self.index(number, origin);
        }
    }

    /// It waits for an answer of the relay, such as to its login, from now on.
    pub(super) fn is_waiting(&mut self, number: u64) {
        if let Some((origin, patience @ Patience::Ours)) = self.all.get_mut(&number) {
            *patience = Patience::Theirs;
            let origin = *origin;
            self.unindex(number, origin);
        }
    }

    /// It was answered, and has to go on.
    pub(super) fn was_answered(&mut self, number: u64) {
        if let Some((origin, patience @ Patience::Theirs)) = self.all.get_mut(&number) {
            *patience = Patience::Ours;
            let origin = *origin;
            self.index(number, origin);
        }
    }

    pub(super) fn remove(&mut self, number: u64) {
        if let Some((origin, Patience::Ours)) = self.all.remove(&number) {
            self.unindex(number, origin);
        }
    }

    /// Who goes when there is room for no other.
    pub(super) fn next_to_go(&self) -> Option<u64> {
        self.ranking.last().map(|(_, Reverse(oldest), _)| *oldest)
    }

    /// Who goes when this address has as many as it may.
    pub(super) fn oldest_of_address(&self, address: IpAddr, but: u64) -> Option<u64> {
        self.by_address.get(&address)?.iter().copied().find(|number| *number != but)
    }

    /// Who goes when this network has as many as it may.
    pub(super) fn oldest_of_network(&self, network: IpAddr, but: u64) -> Option<u64> {
        self.by_network.get(&network)?.iter().copied().find(|number| *number != but)
    }

    fn index(&mut self, number: u64, Origin { address, network }: Origin) {
        self.by_address.entry(address).or_default().insert(number);
        self.ranked(network, |numbers| numbers.insert(number));
    }

    fn unindex(&mut self, number: u64, Origin { address, network }: Origin) {
        if let Some(numbers) = self.by_address.get_mut(&address) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_address.remove(&address);
            }
        }
        self.ranked(network, |numbers| numbers.remove(&number));
    }

    /// Changes what a network holds, and its place among the others.
    fn ranked(&mut self, network: IpAddr, change: impl FnOnce(&mut BTreeSet<u64>) -> bool) {
        let numbers = self.by_network.entry(network).or_default();
        let rank = |numbers: &BTreeSet<u64>| numbers.first().map(|oldest| (numbers.len(), Reverse(*oldest), network));
        let before = rank(numbers);
        change(numbers);
        let after = rank(numbers);
        before.map(|rank| self.ranking.remove(&rank));
        match after {
            Some(rank) => drop(self.ranking.insert(rank)),
            None => drop(self.by_network.remove(&network)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Origin {
        let address: IpAddr = text.parse().unwrap();
        let IpAddr::V4(v4) = address else { panic!("{text}") };
        let [a, b, c, _] = v4.octets();
        Origin { address, network: [a, b, c, 0].into() }
    }

    #[test]
    fn the_oldest_of_the_largest_network_goes_first() {
        let mut strangers = Strangers::default();
        assert_eq!(strangers.next_to_go(), None);
        for (number, address) in ["192.0.2.1", "198.51.100.1", "198.51.100.2", "203.0.113.1"].iter().enumerate() {
            strangers.place(number as u64, origin(address));
        }
        assert_eq!(strangers.next_to_go(), Some(1));
        strangers.remove(1);
        assert_eq!(strangers.next_to_go(), Some(0), "of equal networks the one with the oldest");
        assert_eq!(strangers.oldest_of_address("203.0.113.1".parse().unwrap(), 9), Some(3));
        assert_eq!(strangers.oldest_of_address("203.0.113.1".parse().unwrap(), 3), None);
        assert_eq!(strangers.oldest_of_network("203.0.113.0".parse().unwrap(), 9), Some(3));
        // A proxy's client is known later.
        strangers.place(3, origin("192.0.2.9"));
        strangers.remove(0);
        assert_eq!((strangers.next_to_go(), strangers.len()), (Some(2), 2));
        strangers.remove(2);
        strangers.remove(3);
        strangers.remove(3);
        assert!(strangers.by_address.is_empty() && strangers.by_network.is_empty() && strangers.ranking.is_empty());
    }

    #[test]
    fn who_waits_for_the_relay_does_not_go() {
        let mut strangers = Strangers::default();
        strangers.place(0, origin("192.0.2.1"));
        strangers.place(1, origin("192.0.2.1"));
        strangers.is_waiting(0);
        assert_eq!((strangers.next_to_go(), strangers.len()), (Some(1), 2));
        strangers.is_waiting(1);
        strangers.is_waiting(1);
        assert_eq!(strangers.next_to_go(), None);
        strangers.was_answered(0);
        strangers.was_answered(0);
        assert_eq!(strangers.next_to_go(), Some(0));
        strangers.remove(0);
        strangers.remove(1);
        strangers.is_waiting(1);
        strangers.was_answered(1);
        assert_eq!((strangers.next_to_go(), strangers.len()), (None, 0));
    }
}
