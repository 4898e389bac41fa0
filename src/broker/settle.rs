//! The ledger of one consume channel: which deliveries are unsettled, and how settlements are batched.
//!
//! Delivery tags count up from 1 per AMQP channel, over all its consumers. `multiple` acknowledges every tag up to the
//! one it names, whatever its consumer. So it is used only up to the last tag below which everything has been seen here
//! and is settled: lapin hands out each consumer's deliveries in a stream of its own, and a lower tag may still be waiting
//! in another one.

use crate::session::command::Settlement;
use std::collections::{BTreeMap, BTreeSet};

/// One `basic.ack` or `basic.nack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Ack { tag: u64, coverage: Coverage },
    Nack { tag: u64, requeue: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coverage {
    One,
    /// All unsettled tags up to this one.
    UpTo,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct UnknownTag;

#[derive(Default)]
pub(super) struct Ledger {
    /// Every tag up to this one has been seen.
    seen: u64,
    /// Tags seen beyond a gap.
    seen_ahead: BTreeSet<u64>,
    /// Handed to the session and not settled by it.
    open: BTreeSet<u64>,
    acks: BTreeSet<u64>,
    /// Tag to requeue.
    nacks: BTreeMap<u64, bool>,
}

impl Ledger {
    /// A delivery came out of lapin and goes to the session.
    pub(super) fn hand_out(&mut self, tag: u64) {
        self.open.insert(tag);
        self.see(tag);
    }

    /// A delivery that the session never sees was given back to the broker already.
    pub(super) fn gave_back(&mut self, tag: u64) {
        self.see(tag);
    }

    fn see(&mut self, tag: u64) {
        self.seen_ahead.insert(tag);
        while self.seen_ahead.first() == Some(&(self.seen + 1)) {
            self.seen_ahead.pop_first();
            self.seen += 1;
        }
    }

    pub(super) fn settle(&mut self, tag: u64, outcome: Settlement) -> Result<(), UnknownTag> {
        if !self.open.remove(&tag) {
            return Err(UnknownTag);
        }
        match outcome {
            Settlement::Ack => {
                self.acks.insert(tag);
            }
            Settlement::Nack { requeue } => {
                self.nacks.insert(tag, requeue);
            }
        }
        Ok(())
    }

    /// Nothing that was handed out is open, and the broker knows.
    pub(super) fn is_settled(&self) -> bool {
        self.open.is_empty() && self.is_flushed()
    }

    /// No tag is above it.
    pub(super) fn end(&self) -> u64 {
        self.seen_ahead.last().copied().unwrap_or(0).max(self.seen)
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.acks.is_empty() && self.nacks.is_empty()
    }

    /// The next orders to send, at most `room`. Refusals go first, so that no `multiple` covers them.
    pub(super) fn flush(&mut self, room: usize) -> Vec<Order> {
        let mut orders = Vec::new();
        while orders.len() < room
            && let Some((tag, requeue)) = self.nacks.pop_first()
        {
            orders.push(Order::Nack { tag, requeue });
        }
        if orders.len() < room
            && let Some(order) = self.settled_prefix()
        {
            orders.push(order);
        }
        while orders.len() < room
            && let Some(tag) = self.acks.pop_first()
        {
            orders.push(Order::Ack { tag, coverage: Coverage::One });
        }
        orders
    }

    fn settled_prefix(&mut self) -> Option<Order> {
        let unsettled = self.open.first().into_iter().chain(self.nacks.keys().next()).min();
        let end = unsettled.map_or(self.seen, |tag| self.seen.min(tag - 1));
        let beyond = self.acks.split_off(&(end + 1));
        let covered = std::mem::replace(&mut self.acks, beyond);
        let coverage = if covered.len() > 1 { Coverage::UpTo } else { Coverage::One };
        covered.last().map(|tag| Order::Ack { tag: *tag, coverage })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ACK: Settlement = Settlement::Ack;

    #[test]
    fn a_settled_prefix_is_one_order() {
        let mut ledger = Ledger::default();
        (1..=5).for_each(|tag| ledger.hand_out(tag));
        for tag in [3, 1, 2, 5] {
            ledger.settle(tag, ACK).expect("known");
        }
        let orders = ledger.flush(10);
        assert_eq!(
            orders,
            [Order::Ack { tag: 3, coverage: Coverage::UpTo }, Order::Ack { tag: 5, coverage: Coverage::One }]
        );
        assert!(ledger.is_flushed());
    }

    #[test]
    fn an_unseen_tag_stops_the_prefix() {
        let mut ledger = Ledger::default();
        // Tag 1 waits in another consumer's stream.
        [2, 3].into_iter().for_each(|tag| ledger.hand_out(tag));
        [2, 3].into_iter().for_each(|tag| ledger.settle(tag, ACK).expect("known"));
        let one = |tag| Order::Ack { tag, coverage: Coverage::One };
        assert_eq!(ledger.flush(10), [one(2), one(3)]);
    }

    #[test]
    fn unknown_tags_are_refused() {
        let mut ledger = Ledger::default();
        ledger.hand_out(1);
        ledger.settle(1, ACK).expect("known");
        assert_eq!(ledger.settle(1, ACK), Err(UnknownTag));
        assert_eq!(ledger.settle(0, ACK), Err(UnknownTag));
    }

    proptest! {
        /// Against a model of the broker: what each order settles there is what the session settled that way.
        #[test]
        fn the_broker_settles_what_the_session_settled(
            order in Just((1u64..=30).collect::<Vec<_>>()).prop_shuffle(),
            settles in prop::collection::vec((1u64..=30, 0u8..3), 0..60),
            rooms in prop::collection::vec(1usize..6, 1..20),
        ) {
            let mut ledger = Ledger::default();
            let mut unacked: BTreeSet<u64> = (1..=30).collect();
            let mut wanted = BTreeMap::new();
            let (mut deliveries, mut rooms) = (order.into_iter(), rooms.into_iter().cycle());
            let mut done = BTreeMap::new();
            for (tag, outcome) in settles {
                if let Some(next) = deliveries.next() {
                    ledger.hand_out(next);
                }
                let outcome = [ACK, Settlement::Nack { requeue: true }, Settlement::Nack { requeue: false }]
                    [usize::from(outcome)];
                if ledger.settle(tag, outcome).is_ok() {
                    wanted.insert(tag, outcome);
                }
                for order in ledger.flush(rooms.next().unwrap_or(1)) {
                    match order {
                        Order::Ack { tag, coverage } => {
                            prop_assert!(unacked.contains(&tag));
                            let from = if coverage == Coverage::UpTo { 1 } else { tag };
                            for tag in unacked.range(from..=tag).copied().collect::<Vec<_>>() {
                                unacked.remove(&tag);
                                done.insert(tag, ACK);
                            }
                        }
                        Order::Nack { tag, requeue } => {
                            prop_assert!(unacked.remove(&tag));
                            done.insert(tag, Settlement::Nack { requeue });
                        }
                    }
                }
            }
            for (tag, outcome) in &done {
                prop_assert_eq!(wanted.get(tag), Some(outcome));
            }
            if ledger.is_flushed() {
                prop_assert_eq!(done, wanted);
            }
        }
    }
}
