//! The deliveries that a client has been given and not yet settled, in the order in which it got them.
//!
//! The client names a delivery by a serial number of this session, never by the broker's delivery tag. So a made-up or late
//! id can at most miss; it never reaches another delivery, and never the broker, where an unknown tag ends the channel.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::iter::successors;
use std::sync::Arc;

use super::command::{DeliveryTag, SubscriptionKey};
use super::retained::MAP_ENTRY_BYTES;

/// Numbers the MESSAGEs of a session, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Serial(pub u64);

/// STOMP's `ack` header of SUBSCRIBE, as it was when the message was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AckMode {
    Auto,
    /// Cumulative.
    Client,
    ClientIndividual,
}

/// How far a cumulative ACK or NACK reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CumulativeScope {
    /// All older deliveries of the connection, whatever their mode; what RabbitMQ's plugin does.
    Connection,
    /// The older deliveries of the same subscription (STOMP 1.2, ACK).
    Subscription,
}

#[derive(Clone, Debug)]
pub(super) struct Outstanding {
    pub key: SubscriptionKey,
    pub mode: AckMode,
    /// First part of the message id: `T_<id>` or `Q_<destination>`.
    pub name: Arc<str>,
    /// Of a message of a stream. Streams can't take it back: a NACK would close the AMQP connection.
    pub offset: Option<i64>,
    /// The delivery before of the same subscription, outstanding or settled. So a cumulative settlement costs what it covers, not what
    /// other subscriptions have outstanding.
    pub older: Option<Serial>,
    pub tag: DeliveryTag,
}

impl Outstanding {
    /// What it holds. Deliveries of a subscription share its name, but a name may outlive its subscription with one of them, so
    /// each counts it.
    fn bytes(&self) -> usize {
        MAP_ENTRY_BYTES + size_of::<(Serial, Outstanding)>() + self.name.len()
    }
}

#[derive(Debug)]
pub(super) struct Ledger {
    /// Of what is outstanding.
    bytes: usize,
    next: u64,
    outstanding: BTreeMap<Serial, Outstanding>,
    /// Deliveries before this one came from a lease that is gone: the broker has taken them back.
    stale_before: Serial,
    scope: CumulativeScope,
}

/// A settlement names nothing that is outstanding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotFound;

impl Ledger {
    pub(super) fn new(scope: CumulativeScope) -> Ledger {
        Ledger { bytes: 0, next: 1, outstanding: BTreeMap::new(), stale_before: Serial(0), scope }
    }

    /// The number of the next MESSAGE.
    pub(super) fn next_serial(&mut self) -> Serial {
        let serial = Serial(self.next);
        self.next += 1;
        serial
    }

    /// Keeps a delivery until it is settled. The sum of the prefetches does not bound them: those of a subscription that has
    /// ended stay. The caller bounds [`Ledger::bytes`].
    pub(super) fn insert(&mut self, serial: Serial, delivery: Outstanding) {
        self.bytes += delivery.bytes();
        self.outstanding.insert(serial, delivery);
    }

    pub(super) fn get(&self, serial: Serial) -> Option<&Outstanding> {
        self.outstanding.get(&serial)
    }

    /// The lease is gone: the broker delivers everything unsettled again, under new numbers.
    pub(super) fn lose(&mut self) {
        self.outstanding.clear();
        self.bytes = 0;
        self.stale_before = Serial(self.next);
    }

    /// The lowest offset of a stream's messages that a subscription has not settled, for each that has such.
    pub(super) fn oldest_offsets(&self) -> BTreeMap<SubscriptionKey, i64> {
        let mut oldest = BTreeMap::new();
        for Outstanding { key, offset, .. } in self.outstanding.values() {
            if let Some(offset) = *offset {
                oldest.entry(*key).and_modify(|least: &mut i64| *least = offset.min(*least)).or_insert(offset);
            }
        }
        oldest
    }

    /// Whether the delivery was lost with its lease, or settled before. A late settlement of it has no effect and is no
    /// mistake of the client's.
    pub(super) fn is_stale(&self, serial: Serial) -> bool {
        serial < self.stale_before && serial > Serial(0)
    }

    pub(super) fn len(&self) -> usize {
        self.outstanding.len()
    }

    /// What is held of them.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Removes what an ACK or NACK of `serial` covers and hands the tags over, oldest first. Returns how many they were.
    pub(super) fn settle(&mut self, serial: Serial, mut each: impl FnMut(DeliveryTag)) -> Result<usize, NotFound> {
        // The usual case takes no list.
        if let Entry::Occupied(entry) = self.outstanding.entry(serial)
            && entry.get().mode != AckMode::Client
        {
            let delivery = entry.remove();
            self.bytes -= delivery.bytes();
            each(delivery.tag);
            return Ok(1);
        }
        let covered = self.covered(serial)?;
        for delivery in covered.iter().filter_map(|serial| self.outstanding.remove(serial)) {
            self.bytes -= delivery.bytes();
            each(delivery.tag);
        }
        Ok(covered.len())
    }

    /// What an ACK or NACK of `serial` covers, oldest first.
    fn covered(&self, serial: Serial) -> Result<Vec<Serial>, NotFound> {
        if self.is_stale(serial) {
            return Ok(Vec::new());
        }
        let named = self.outstanding.get(&serial).ok_or(NotFound)?;
        if named.mode != AckMode::Client {
            return Ok(vec![serial]);
        }
        if self.scope == CumulativeScope::Connection {
            return Ok(self.outstanding.range(..=serial).map(|(serial, _)| *serial).collect());
        }
        // Of one that is outstanding, those before it were settled from the oldest on.
        let older =
            |serial: &Serial| self.outstanding.get(serial)?.older.filter(|older| self.outstanding.contains_key(older));
        let mut covered: Vec<_> = successors(Some(serial), older).collect();
        covered.reverse();
        Ok(covered)
    }
}

/// A MESSAGE's `message-id` and `ack`: `<name>@@<session>@@<serial>`, the plugin's form.
#[derive(Clone, Copy, Debug)]
pub(super) struct MessageId<'a> {
    pub name: &'a str,
    pub serial: Serial,
    pub session: &'a str,
}

impl MessageId<'_> {
    pub(super) fn append_to(&self, text: &mut String) {
        for part in [self.name, "@@", self.session, "@@", itoa::Buffer::new().format(self.serial.0)] {
            text.push_str(part);
        }
    }
}

/// The parts of an id as a client gave it back. The name may itself contain `@@`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NamedId<'a> {
    pub name: &'a str,
    pub serial: &'a str,
    pub session: &'a str,
}

impl<'a> NamedId<'a> {
    pub(super) fn parse(text: &'a str) -> Option<NamedId<'a>> {
        let (rest, serial) = text.rsplit_once("@@")?;
        let (name, session) = rest.rsplit_once("@@")?;
        Some(NamedId { name, serial, session })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(scope: CumulativeScope, entries: &[(u64, AckMode)]) -> Ledger {
        let (mut ledger, mut newest) = (Ledger::new(scope), BTreeMap::new());
        for (index, (key, mode)) in entries.iter().enumerate() {
            let serial = ledger.next_serial();
            ledger.insert(
                serial,
                Outstanding {
                    key: SubscriptionKey(*key),
                    mode: *mode,
                    name: "T_1".into(),
                    offset: None,
                    older: newest.insert(*key, serial),
                    tag: DeliveryTag(100 + index as u64),
                },
            );
        }
        ledger
    }

    fn settled(ledger: &mut Ledger, serial: u64) -> Result<Vec<u64>, NotFound> {
        let mut tags = Vec::new();
        let count = ledger.settle(Serial(serial), |tag| tags.push(tag.0 - 99))?;
        assert_eq!(count, tags.len());
        Ok(tags)
    }

    #[test]
    fn individual_ack_keeps_older_deliveries_and_their_order() {
        let mut ledger = ledger(CumulativeScope::Subscription, &[(1, AckMode::ClientIndividual); 3]);
        assert_eq!(settled(&mut ledger, 2), Ok(vec![2]));
        assert_eq!(ledger.outstanding.keys().map(|serial| serial.0).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn cumulative_ack_takes_older_deliveries_of_its_subscription_only() {
        let modes = [(1, AckMode::Client), (2, AckMode::ClientIndividual), (3, AckMode::Client), (1, AckMode::Client)];
        let mut ledger = ledger(CumulativeScope::Subscription, &modes);
        assert_eq!(settled(&mut ledger, 4), Ok(vec![1, 4]));
        assert_eq!(ledger.len(), 2);
    }

    #[test]
    fn cumulative_ack_takes_everything_older_where_the_scope_is_the_connection() {
        let modes = [(1, AckMode::Client), (2, AckMode::ClientIndividual), (1, AckMode::Client), (1, AckMode::Client)];
        let mut ledger = ledger(CumulativeScope::Connection, &modes);
        assert_eq!(settled(&mut ledger, 3), Ok(vec![1, 2, 3]));
        assert_eq!(ledger.len(), 1);
    }

    #[test]
    fn unknown_and_repeated_settlements_are_not_found() {
        let mut ledger = ledger(CumulativeScope::Connection, &[(1, AckMode::Client)]);
        assert_eq!(settled(&mut ledger, 0), Err(NotFound));
        assert_eq!(settled(&mut ledger, 2), Err(NotFound));
        assert_eq!(settled(&mut ledger, 1), Ok(vec![1]));
        assert_eq!(settled(&mut ledger, 1), Err(NotFound));
        assert_eq!((ledger.len(), ledger.bytes()), (0, 0));
    }

    #[test]
    fn what_others_have_outstanding_costs_a_cumulative_ack_nothing() {
        // Some 100,000 × 100,000 steps if it looked at each of them.
        let modes = [vec![(1, AckMode::Client); 100_000], vec![(2, AckMode::Client); 100_000]].concat();
        let mut ledger = ledger(CumulativeScope::Subscription, &modes);
        for serial in 100_001..=200_000 {
            assert_eq!(ledger.settle(Serial(serial), |_| {}), Ok(1));
        }
        assert_eq!(ledger.len(), 100_000);
        assert_eq!(settled(&mut ledger, 100_000).map(|tags| tags.len()), Ok(100_000));
        assert_eq!((ledger.len(), ledger.bytes()), (0, 0));
    }

    #[test]
    fn cumulative_acks_of_one_subscription_follow_each_other() {
        let modes = [(1, AckMode::Client), (2, AckMode::Client), (1, AckMode::Client), (1, AckMode::Client)];
        let mut ledger = ledger(CumulativeScope::Subscription, &modes);
        assert_eq!(settled(&mut ledger, 1), Ok(vec![1]));
        assert_eq!(settled(&mut ledger, 3), Ok(vec![3]));
        assert_eq!(settled(&mut ledger, 4), Ok(vec![4]));
        assert_eq!(settled(&mut ledger, 2), Ok(vec![2]));
    }

    #[test]
    fn an_empty_ledger_finds_nothing() {
        let mut ledger = ledger(CumulativeScope::Subscription, &[]);
        assert_eq!(settled(&mut ledger, 1), Err(NotFound));
    }

    #[test]
    fn message_ids_split_at_the_last_two_separators() {
        let mut id = String::new();
        MessageId { name: "T_a@@b", serial: Serial(7), session: "session-x" }.append_to(&mut id);
        let parsed = NamedId::parse(&id).unwrap();
        assert_eq!(parsed, NamedId { name: "T_a@@b", serial: "7", session: "session-x" });
        assert_eq!(NamedId::parse("a@@b"), None);
    }
}
