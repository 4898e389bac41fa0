//! BEGIN, COMMIT and ABORT: actions kept until COMMIT, bounded in number and bytes.
//!
//! Everything about an action that can be wrong is checked when it is queued, and at COMMIT all its settlements are checked
//! before the first is carried out. RabbitMQ has no transaction over several queues, so COMMIT is not atomic beyond that:
//! its RECEIPT says that every message was confirmed, an ERROR names the first that was not.

use std::collections::{BTreeSet, HashMap};

use super::Session;
use super::command::Settlement;
use super::ledger::Serial;
use super::publish::Prepared;
use super::refusal::{CloseCode, Refusal};
use super::retained::{self, MAP_ENTRY_BYTES};
use crate::stomp::Frame;

/// Numbers the COMMITs of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CommitNumber(u64);

/// Something that waits for its turn.
#[derive(Debug)]
pub(super) enum Action {
    /// The end of a COMMIT.
    Committed(CommitNumber),
    /// One that would overtake others.
    Frame(Box<Frame>),
    Publish(Box<Prepared>),
    /// The end of the session because of a frame, behind the answers to the ones before it.
    Refuse(Box<Refusal>),
    Settle(SettleAction),
}

impl Action {
    /// What it holds, its place in a list included.
    pub(super) fn bytes(&self) -> usize {
        // The list grows by doubling.
        let place = 2 * size_of::<Action>();
        match self {
            Action::Frame(frame) => place + retained::frame(frame),
            Action::Publish(send) => place + send.bytes,
            Action::Refuse(refusal) => place + size_of::<Refusal>() + refusal.body.capacity(),
            Action::Committed(_) | Action::Settle(_) => place,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct SettleAction {
    pub outcome: Settlement,
    pub serial: Serial,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CommitStep {
    Done,
    Failed,
}

/// A COMMIT whose publishes are not all confirmed.
#[derive(Debug)]
struct Commit {
    failed: bool,
    number: CommitNumber,
    receipt: Option<String>,
    /// Publishes without an answer, and one for the end of the actions.
    steps_left: usize,
}

#[derive(Debug)]
struct Transaction {
    actions: Vec<Action>,
    /// What it holds: its name and its actions.
    bytes: usize,
}

#[derive(Debug, Default)]
pub(super) struct Transactions {
    /// Of the receipts of the COMMITs under way.
    commit_bytes: usize,
    commits: Vec<Commit>,
    next_commit: u64,
    open: HashMap<String, Transaction>,
    /// Of all that are open, their names included.
    open_bytes: usize,
}

impl Transactions {
    /// What the COMMITs under way hold beside their actions.
    pub(super) fn commit_bytes(&self) -> usize {
        self.commit_bytes
    }

    pub(super) fn retained_bytes(&self) -> usize {
        self.commit_bytes + self.open_bytes
    }

    fn begin(&mut self, name: &str) {
        let name = name.to_owned();
        let bytes = MAP_ENTRY_BYTES + size_of::<(String, Transaction)>() + retained::string(&name);
        self.open_bytes += bytes;
        self.open.insert(name, Transaction { actions: Vec::new(), bytes });
    }

    fn take(&mut self, name: &str) -> Option<Transaction> {
        let transaction = self.open.remove(name)?;
        self.open_bytes -= transaction.bytes;
        Some(transaction)
    }

    fn commit(&mut self, commit: Commit) {
        self.commit_bytes += commit.bytes();
        self.commits.push(commit);
    }
}

impl Commit {
    fn bytes(&self) -> usize {
        2 * size_of::<Commit>() + retained::maybe_string(self.receipt.as_ref())
    }
}

impl Transactions {
    /// Of COMMITs that are not finished.
    pub(super) fn commit_receipts(&self) -> impl Iterator<Item = &str> {
        self.commits.iter().filter_map(|commit| commit.receipt.as_deref())
    }
}

impl Session {
    pub(super) fn handle_begin(&mut self, frame: &Frame) -> Result<(), Refusal> {
        let name = transaction_name(frame, "BEGIN")?;
        if self.transactions.open.contains_key(name) {
            return Err(bad_transaction(
                format!("Transaction \"{name}\" is already open\n"),
                "COMMIT or ABORT it first.",
            ));
        }
        let limit = self.config.transactions_max;
        if self.transactions.open.len() >= limit {
            return Err(Refusal::soft(
                "limit.transactions",
                "Transaction limit exceeded",
                format!("Too many concurrent transactions (limit {limit})\n"),
                "COMMIT or ABORT one first.",
            ));
        }
        self.transactions.begin(name);
        self.receipt_for(frame);
        Ok(())
    }

    pub(super) fn handle_abort(&mut self, frame: &Frame) -> Result<(), Refusal> {
        let name = transaction_name(frame, "ABORT")?;
        self.transactions.take(name).ok_or_else(|| unknown_transaction(name))?;
        self.receipt_for(frame);
        Ok(())
    }

    pub(super) fn handle_commit(&mut self, frame: &Frame) -> Result<(), Refusal> {
        let name = transaction_name(frame, "COMMIT")?;
        let transaction = self.transactions.take(name).ok_or_else(|| unknown_transaction(name))?;
        self.check_settlements(&transaction.actions)?;
        self.judge_commit(&transaction.actions)?;
        let number = CommitNumber(self.transactions.next_commit);
        self.transactions.next_commit += 1;
        let publishes = transaction.actions.iter().filter(|action| matches!(action, Action::Publish(_))).count();
        let receipt = frame.header("receipt").map(str::to_owned);
        self.transactions.commit(Commit { failed: false, number, receipt, steps_left: publishes + 1 });
        for mut action in transaction.actions {
            if let Action::Publish(send) = &mut action {
                send.commit = Some(number);
            }
            self.actions.push_back(action);
        }
        self.actions.push_back(Action::Committed(number));
        Ok(())
    }

    /// Adds to the transaction that the frame names.
    pub(super) fn enlist(&mut self, name: &str, action: Action) -> Result<(), Refusal> {
        let (frames_max, bytes_max) = (self.config.transaction_frames_max, self.config.transaction_bytes_max);
        let transaction = self.transactions.open.get_mut(name).ok_or_else(|| unknown_transaction(name))?;
        let bytes = action.bytes();
        if transaction.actions.len() >= frames_max {
            return Err(too_large(format!("Too many actions in transaction (limit {frames_max})\n")));
        }
        if transaction.bytes + bytes > bytes_max {
            return Err(too_large(format!("Too many bytes in transaction (limit {bytes_max})\n")));
        }
        transaction.bytes += bytes;
        transaction.actions.push(action);
        self.transactions.open_bytes += bytes;
        Ok(())
    }

    /// Whether a transaction of this name is open.
    pub(super) fn require_transaction(&self, name: &str) -> Result<(), Refusal> {
        self.transactions.open.contains_key(name).then_some(()).ok_or_else(|| unknown_transaction(name))
    }

    /// Whether each settlement will find its delivery. One that an earlier cumulative one of the same transaction covers may be
    /// named again; one that was itself named may not.
    fn check_settlements(&self, actions: &[Action]) -> Result<(), Refusal> {
        let mut named = BTreeSet::<Serial>::new();
        for action in actions {
            let Action::Settle(settle) = action else { continue };
            let serial = settle.serial;
            if !self.ledger.is_stale(serial) && (self.ledger.get(serial).is_none() || !named.insert(serial)) {
                return Err(super::settle::not_found(serial));
            }
        }
        Ok(())
    }

    /// One step less to wait for. A failed one returns the receipt that the ERROR has to name, the first time.
    pub(super) fn commit_step(&mut self, number: CommitNumber, step: CommitStep) -> Option<String> {
        let index = self.transactions.commits.iter().position(|commit| commit.number == number)?;
        let commit = &mut self.transactions.commits[index];
        commit.steps_left -= 1;
        let failed_now = step == CommitStep::Failed && !commit.failed;
        commit.failed |= step == CommitStep::Failed;
        let named = if failed_now { commit.receipt.clone() } else { None };
        if commit.steps_left == 0 {
            let commit = self.transactions.commits.remove(index);
            self.transactions.commit_bytes -= commit.bytes();
            if let (false, Some(receipt)) = (commit.failed, commit.receipt) {
                self.receipt(&receipt);
            }
        }
        named
    }
}

fn transaction_name<'a>(frame: &'a Frame, command: &str) -> Result<&'a str, Refusal> {
    frame.header("transaction").ok_or_else(|| {
        Refusal::soft(
            "frame.header_missing",
            "Missing transaction",
            format!("\"{command}\" must include a 'transaction' header\n"),
            "",
        )
    })
}

fn unknown_transaction(name: &str) -> Refusal {
    bad_transaction(format!("Invalid transaction identifier: {name:?}\n"), "Send BEGIN with this name first.")
}

fn bad_transaction(body: String, hint: &'static str) -> Refusal {
    Refusal::soft("transaction.invalid", "Bad transaction", body, hint)
}

fn too_large(body: String) -> Refusal {
    Refusal::soft("limit.transaction", "Transaction too large", body, "Use smaller transactions.")
        .closing(CloseCode::PolicyViolation)
}
