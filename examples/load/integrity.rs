//! What arrived, by publisher and sequence, and what that says: lost, repeated, out of order. Knows no transport.
//!
//! An audience is a set of subscribers among which every message goes once: the consumers of a queue, or one subscriber of
//! a topic.

use serde::Serialize;

use super::stamp::Stamp;

/// Highest sequence that is written down, 32 MiB of bits: a run ends long before, so what is above is not ours.
const SEQUENCE_MAX: u64 = 1 << 28;

/// What one subscriber got.
#[derive(Default)]
pub struct Log {
    by_publisher: Vec<Seen>,
    pub unknown: u64,
}

#[derive(Clone, Default)]
struct Seen {
    bits: Vec<u64>,
    count: u64,
    /// One above the highest sequence.
    next: u64,
    reordered: u64,
    repeated: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Integrity {
    pub sent: u64,
    pub received: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
    /// Bodies that nobody of this run has sent.
    pub unknown: u64,
    /// Clients that were cut off.
    pub disconnected: u64,
}

impl Integrity {
    pub fn is_whole(&self) -> bool {
        [self.lost, self.duplicated, self.reordered, self.unknown, self.disconnected] == [0; 5]
    }
}

impl Log {
    pub fn new(publishers: usize) -> Log {
        Log { by_publisher: vec![Seen::default(); publishers], unknown: 0 }
    }

    /// False: nobody of this run has sent it.
    pub fn record(&mut self, stamp: Stamp) -> bool {
        match self.by_publisher.get_mut(stamp.publisher as usize) {
            Some(seen) if stamp.sequence < SEQUENCE_MAX => {
                seen.record(stamp.sequence);
                true
            }
            _ => {
                self.unknown += 1;
                false
            }
        }
    }
}

impl Seen {
    fn record(&mut self, sequence: u64) {
        let (word, bit) = ((sequence / 64) as usize, 1 << (sequence % 64));
        if word >= self.bits.len() {
            self.bits.resize(word + 1, 0);
        }
        if self.bits[word] & bit != 0 {
            self.repeated += 1;
            return;
        }
        self.bits[word] |= bit;
        self.count += 1;
        if sequence < self.next {
            self.reordered += 1;
        } else {
            self.next = sequence + 1;
        }
    }
}

/// Compares an audience's logs with what it should have got: the number of messages from each publisher that it listens to,
/// none from the others.
pub fn judge(logs: &[Log], sent: &[u64]) -> Integrity {
    let mut total = Integrity { unknown: logs.iter().map(|log| log.unknown).sum(), ..Integrity::default() };
    for (publisher, sent) in sent.iter().enumerate() {
        let all: Vec<&Seen> = logs.iter().filter_map(|log| log.by_publisher.get(publisher)).collect();
        let words = all.iter().map(|seen| seen.bits.len()).max().unwrap_or(0);
        let union = |word: usize| all.iter().fold(0, |bits, seen| bits | seen.bits.get(word).copied().unwrap_or(0));
        let within = |word: usize| match (*sent).saturating_sub(word as u64 * 64) {
            left @ 0..64 => (1_u64 << left) - 1,
            _ => u64::MAX,
        };
        let different: u64 = (0..words).map(|word| u64::from(union(word).count_ones())).sum();
        let expected: u64 = (0..words).map(|word| u64::from((union(word) & within(word)).count_ones())).sum();
        let count: u64 = all.iter().map(|seen| seen.count).sum();
        total.sent += sent;
        total.received += expected;
        total.lost += sent - expected;
        total.unknown += different - expected;
        total.duplicated += count - different + all.iter().map(|seen| seen.repeated).sum::<u64>();
        total.reordered += all.iter().map(|seen| seen.reordered).sum::<u64>();
    }
    total
}

impl std::ops::AddAssign for Integrity {
    fn add_assign(&mut self, other: Integrity) {
        self.sent += other.sent;
        self.received += other.received;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.unknown += other.unknown;
        self.disconnected += other.disconnected;
    }
}

#[cfg(test)]
mod tests {
    use super::super::stamp::Stamp;
    use super::{Integrity, Log, judge};

    fn log(publishers: usize, received: &[(u32, u64)]) -> Log {
        let mut log = Log::new(publishers);
        for &(publisher, sequence) in received {
            log.record(Stamp { publisher, sequence, due_ns: 0 });
        }
        log
    }

    #[test]
    fn all_in_order_is_whole() {
        let log = log(2, &[(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]);
        let found = judge(&[log], &[3, 2]);
        assert_eq!(found, Integrity { sent: 5, received: 5, ..Integrity::default() });
        assert!(found.is_whole());
    }

    #[test]
    fn each_fault_is_counted_as_itself() {
        let none = Integrity { sent: 4, received: 4, ..Integrity::default() };
        let cases: [(&[u64], Integrity); 5] = [
            (&[0, 1, 3], Integrity { received: 3, lost: 1, ..none }),
            (&[0, 1, 2], Integrity { received: 3, lost: 1, ..none }),
            (&[0, 1, 1, 2, 3], Integrity { duplicated: 1, ..none }),
            (&[0, 2, 1, 3], Integrity { reordered: 1, ..none }),
            (&[0, 1, 2, 3, 4, 70], Integrity { unknown: 2, ..none }),
        ];
        for (received, expected) in cases {
            let received: Vec<_> = received.iter().map(|sequence| (0, *sequence)).collect();
            let found = judge(&[log(1, &received)], &[4]);
            assert_eq!(found, expected, "{received:?}");
            assert!(!found.is_whole());
        }
    }

    #[test]
    fn consumers_of_a_queue_are_one_audience() {
        let shared = [log(1, &[(0, 0), (0, 3)]), log(1, &[(0, 1), (0, 2)])];
        assert!(judge(&shared, &[4]).is_whole());
        let twice = [log(1, &[(0, 0), (0, 1)]), log(1, &[(0, 1)])];
        assert_eq!(judge(&twice, &[2]).duplicated, 1);
    }

    #[test]
    fn what_nobody_sent_is_unknown() {
        let mut log = log(1, &[(0, 0), (7, 0)]);
        assert!(!log.record(Stamp { publisher: 0, sequence: u64::MAX, due_ns: 0 }));
        assert_eq!(judge(&[log], &[1]), Integrity { sent: 1, received: 1, unknown: 2, ..Integrity::default() });
    }
}
