//! Who sent what, and who got it: publishers number their messages, subscribers write down what comes, and the report counts
//! what was lost, repeated or out of order.
//!
//! A body is `PUBLISHER NUMBER PADDING`. Order is judged by first occurrences: a broker may repeat what it is not sure of, but
//! a repetition must be recognisable, by `redelivered:true` or by the message id of the first one.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stomp_relay::stomp::Frame;

/// What a subscriber may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Everything that was confirmed.
    All,
    /// Everything but what was published during an outage: see [`Tally::outage_begins`].
    WhileLinked,
}

#[derive(Clone, Default)]
pub struct Tally(Arc<Inner>);

#[derive(Default)]
struct Inner {
    disconnected: AtomicU64,
    /// Held while publishers are added, so that none slips between an outage and its own beginning.
    in_outage: Mutex<bool>,
    publishers: Mutex<Vec<Arc<Publisher>>>,
    subscribers: Mutex<Vec<Arc<Subscriber>>>,
}

/// One publisher: its numbers start at 0 and have no gap.
pub struct Publisher {
    number: usize,
    pub destination: String,
    log: Mutex<Published>,
}

#[derive(Default)]
struct Published {
    confirmed: Vec<bool>,
    /// First number that was not yet received by all, and the number after the last, of each outage.
    outages: Vec<(usize, Option<usize>)>,
}

pub struct Subscriber {
    pub destination: String,
    pub promise: Promise,
    log: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    by_publisher: HashMap<usize, SeenOfOne>,
    delivered: u64,
    flagged: u64,
    late: u64,
    reordered: u64,
    unflagged: u64,
}

#[derive(Default)]
struct SeenOfOne {
    /// By number: the hash of the message id at the first occurrence; 0 if it has not come.
    ids: Vec<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub confirmed: u64,
    pub delivered: u64,
    pub disconnected: u64,
    /// Repetitions that say so.
    pub duplicates_flagged: u64,
    pub duplicates_unflagged: u64,
    /// First seen after later ones, and flagged as redelivered: the broker had given them to a consumer that was lost.
    pub late: u64,
    /// Confirmed and not delivered although promised.
    pub lost: u64,
    /// By subscribers that were promised no more, during outages.
    pub missed: u64,
    pub reordered: u64,
    pub sent: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tally {
    pub fn publisher(&self, destination: &str) -> Arc<Publisher> {
        let in_outage = lock(&self.0.in_outage);
        let mut publishers = lock(&self.0.publishers);
        let destination = destination.to_owned();
        // One that begins amid an outage is in it from its first message on.
        let outages = in_outage.then_some((0, None)).into_iter().collect();
        let log = Mutex::new(Published { outages, ..Published::default() });
        let publisher = Arc::new(Publisher { number: publishers.len(), destination, log });
        publishers.push(publisher.clone());
        publisher
    }

    /// Must be there before the first publisher of its destination.
    pub fn subscriber(&self, destination: &str, promise: Promise) -> Arc<Subscriber> {
        let destination = destination.to_owned();
        let subscriber = Arc::new(Subscriber { destination, promise, log: Mutex::default() });
        lock(&self.0.subscribers).push(subscriber.clone());
        subscriber
    }

    /// A client was disconnected against its will.
    pub fn disconnected(&self) {
        self.0.disconnected.fetch_add(1, Ordering::Relaxed);
    }

    /// From here on [`Promise::WhileLinked`] holds for nothing but what was received already.
    pub fn outage_begins(&self) {
        let mut in_outage = lock(&self.0.in_outage);
        *in_outage = true;
        for publisher in lock(&self.0.publishers).iter() {
            // What was missed in outages before does not count again.
            let start = lock(&publisher.log).outages.iter().filter_map(|(_, end)| *end).max().unwrap_or(0);
            let received = |subscriber: &Arc<Subscriber>| subscriber.contiguous(publisher.number, start);
            let listeners = self.listeners(publisher);
            let plain = listeners.iter().filter(|subscriber| subscriber.promise == Promise::WhileLinked);
            let Some(from) = plain.map(received).min() else { continue };
            lock(&publisher.log).outages.push((from, None));
        }
    }

    /// From here on it holds again: every subscription was made anew.
    pub fn outage_ends(&self) {
        let mut in_outage = lock(&self.0.in_outage);
        *in_outage = false;
        for publisher in lock(&self.0.publishers).iter() {
            let mut log = lock(&publisher.log);
            let next = log.confirmed.len();
            log.outages.iter_mut().for_each(|(_, end)| {
                end.get_or_insert(next);
            });
        }
    }

    fn listeners(&self, publisher: &Publisher) -> Vec<Arc<Subscriber>> {
        let subscribers = lock(&self.0.subscribers);
        subscribers.iter().filter(|subscriber| subscriber.destination == publisher.destination).cloned().collect()
    }

    /// Where the publishers are now: for [`Tally::lost_before`].
    pub fn mark(&self) -> Vec<usize> {
        lock(&self.0.publishers).iter().map(|publisher| lock(&publisher.log).confirmed.len()).collect()
    }

    /// What is lost of the messages before the mark; what came after may still be under way.
    pub fn lost_before(&self, mark: &[usize]) -> u64 {
        self.count(|publisher| mark.get(publisher).copied().unwrap_or(0)).lost
    }

    pub fn report(&self) -> Report {
        self.count(|_| usize::MAX)
    }

    /// Of each publisher the messages before a number.
    fn count(&self, end: impl Fn(usize) -> usize) -> Report {
        let mut report = Report { disconnected: self.0.disconnected.load(Ordering::Relaxed), ..Report::default() };
        for publisher in lock(&self.0.publishers).iter() {
            let listeners = self.listeners(publisher);
            let log = lock(&publisher.log);
            report.sent += log.confirmed.len() as u64;
            for (number, confirmed) in log.confirmed.iter().enumerate().take(end(publisher.number)) {
                if !confirmed {
                    continue;
                }
                report.confirmed += 1;
                let in_outage = log.in_outage(number);
                for subscriber in &listeners {
                    match subscriber.has(publisher.number, number) {
                        true => {}
                        false if in_outage && subscriber.promise == Promise::WhileLinked => report.missed += 1,
                        false => report.lost += 1,
                    }
                }
            }
        }
        for subscriber in lock(&self.0.subscribers).iter() {
            let seen = lock(&subscriber.log);
            report.delivered += seen.delivered;
            report.duplicates_flagged += seen.flagged;
            report.duplicates_unflagged += seen.unflagged;
            report.late += seen.late;
            report.reordered += seen.reordered;
        }
        report
    }

    /// What is missing, for the message of a failed assertion: the first few, one per line.
    pub fn missing(&self) -> String {
        let mut lines = Vec::new();
        for publisher in lock(&self.0.publishers).iter() {
            let log = lock(&publisher.log);
            for (index, subscriber) in self.listeners(publisher).iter().enumerate() {
                let missing = (0..log.confirmed.len())
                    .filter(|number| log.confirmed[*number] && !subscriber.has(publisher.number, *number))
                    .filter(|number| subscriber.promise == Promise::All || !log.in_outage(*number))
                    .collect::<Vec<_>>();
                if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
                    let Published { confirmed, outages } = &*log;
                    lines.push(format!(
                        "{} ({:?}, listener {index}) misses {} of {} of publisher {}, {first} to {last}; outages {outages:?}",
                        publisher.destination, subscriber.promise, missing.len(), confirmed.len(), publisher.number,
                    ));
                }
            }
        }
        lines.truncate(12);
        lines.join("\n")
    }
}

impl Published {
    fn in_outage(&self, number: usize) -> bool {
        self.outages.iter().any(|(from, to)| number >= *from && to.is_none_or(|to| number < to))
    }
}

impl Publisher {
    /// The next message: its number and its body of at least `bytes`.
    pub fn next(&self, bytes: usize) -> (usize, String) {
        let mut log = lock(&self.log);
        let number = log.confirmed.len();
        log.confirmed.push(false);
        let mut body = format!("{} {number} ", self.number);
        body.extend(std::iter::repeat_n('x', bytes.saturating_sub(body.len())));
        (number, body)
    }

    pub fn confirmed(&self, number: usize) {
        lock(&self.log).confirmed[number] = true;
    }
}

impl Subscriber {
    /// Writes a MESSAGE down.
    pub fn delivered(&self, message: &Frame) {
        let text = std::str::from_utf8(&message.body).expect("a publisher's body");
        let mut words = text.split(' ').map(|word| word.parse::<usize>());
        let (Some(Ok(publisher)), Some(Ok(number))) = (words.next(), words.next()) else {
            panic!("not a publisher's body: {text}")
        };
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        let id = hasher.hash_one(message.header("amqp-message-id").unwrap_or_default()).max(1);
        let mut seen = lock(&self.log);
        let seen = &mut *seen;
        seen.delivered += 1;
        let ids = &mut seen.by_publisher.entry(publisher).or_default().ids;
        if number >= ids.len() {
            ids.resize(number + 1, 0);
            ids[number] = id;
        } else if ids[number] == 0 {
            ids[number] = id;
            // What was on its way on a lost connection comes back after its successors, and says so.
            match message.header("redelivered") == Some("true") {
                true => seen.late += 1,
                false => seen.reordered += 1,
            }
        } else if message.header("redelivered") == Some("true") || ids[number] == id {
            seen.flagged += 1;
        } else {
            seen.unflagged += 1;
        }
    }

    fn has(&self, publisher: usize, number: usize) -> bool {
        let seen = lock(&self.log);
        seen.by_publisher.get(&publisher).and_then(|seen| seen.ids.get(number)).is_some_and(|id| *id != 0)
    }

    /// The end of what came without a gap from number `start` on.
    fn contiguous(&self, publisher: usize, start: usize) -> usize {
        let seen = lock(&self.log);
        let ids = seen.by_publisher.get(&publisher).and_then(|seen| seen.ids.get(start..)).unwrap_or_default();
        start + ids.iter().position(|id| *id == 0).unwrap_or(ids.len())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "sent {} confirmed {} delivered {} duplicates flagged {} unflagged {} lost {} missed {} late {} reordered {} disconnected {}",
            self.sent,
            self.confirmed,
            self.delivered,
            self.duplicates_flagged,
            self.duplicates_unflagged,
            self.lost,
            self.missed,
            self.late,
            self.reordered,
            self.disconnected,
        )
    }
}
