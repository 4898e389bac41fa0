//! Settlements that wait for the SENDs before them: a consumer answers and then acknowledges, and if its answer is refused it
//! must get the message again. Frames behind them are read on, so SENDs and ACKs by turns lose no pace.

use std::collections::VecDeque;

use super::Session;
use super::command::{BrokerCommand, DeliveryTag, Settlement};
use super::io::Output;
use super::state::State;

#[derive(Debug)]
enum Entry {
    Receipt(String),
    Settle { outcome: Settlement, tag: DeliveryTag },
}

/// In the order in which the client gave them. Settlements are bounded by what was delivered, receipts by `bytes`.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Of receipts.
    bytes: usize,
    /// With the number of the SEND that each waits for.
    entries: VecDeque<(u64, Entry)>,
}

impl Held {
    /// Bytes of receipts that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn retained_bytes(&self) -> usize {
        self.bytes + self.entries.capacity() * size_of::<(u64, Entry)>()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn receipts(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().filter_map(|(_, entry)| match entry {
            Entry::Receipt(id) => Some(id.as_str()),
            Entry::Settle { .. } => None,
        })
    }

    /// The broker has taken the deliveries back; the receipts are due all the same.
    pub(super) fn lose(&mut self) {
        self.entries.retain(|(_, entry)| matches!(entry, Entry::Receipt(_)));
    }

    fn push(&mut self, after: u64, entry: Entry) {
        if let Entry::Receipt(id) = &entry {
            self.bytes += id.len() + size_of::<(u64, Entry)>();
        }
        self.entries.push_back((after, entry));
    }

    fn pop_before(&mut self, unconfirmed: Option<u64>) -> Option<Entry> {
        let (after, _) = self.entries.front()?;
        if unconfirmed.is_some_and(|first| *after >= first) {
            return None;
        }
        let (_, entry) = self.entries.pop_front()?;
        match &entry {
            Entry::Receipt(id) => self.bytes -= id.len() + size_of::<(u64, Entry)>(),
            Entry::Settle { .. } if self.entries.is_empty() => self.entries = VecDeque::new(),
            Entry::Settle { .. } => {}
        }
        Some(entry)
    }
}

impl Session {
    /// Settles now, or when the SENDs before it are confirmed.
    pub(super) fn settle_in_turn(&mut self, tag: DeliveryTag, outcome: Settlement) {
        match self.awaited_send() {
            Some(after) => self.held.push(after, Entry::Settle { outcome, tag }),
            None => self.settle_now(tag, outcome),
        }
    }

    /// The RECEIPT of a settlement, behind it.
    pub(super) fn receipt_in_turn(&mut self, id: &str) {
        match self.awaited_send() {
            Some(after) => self.held.push(after, Entry::Receipt(id.to_owned())),
            None => self.receipt(id),
        }
    }

    /// After every input that may have answered a SEND.
    pub(super) fn release_held(&mut self) {
        if self.held.is_empty() || !matches!(self.state, State::Open { .. }) {
            return;
        }
        let first = self.publishing.first_unconfirmed().filter(|_| self.awaited_send().is_some());
        while let Some(entry) = self.held.pop_before(first) {
            match entry {
                Entry::Receipt(id) => self.receipt(&id),
                Entry::Settle { outcome, tag } => self.settle_now(tag, outcome),
            }
        }
    }

    fn settle_now(&mut self, tag: DeliveryTag, outcome: Settlement) {
        self.doubts.settled();
        self.outputs.push_back(Output::Command(BrokerCommand::Settle { tag, outcome }));
    }
}
