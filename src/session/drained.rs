//! The relay is being stopped: what it has read of this client is finished, or the client is told what is not. RabbitMQ's
//! silence does not move the end, which is the same for the whole process.

use std::time::Instant;

use super::Session;
use super::refusal::{Close, CloseCode, Refusal};
use super::state::State;
use super::transaction::Action;

/// Receipts that an ERROR names; the others are counted.
const RECEIPTS_NAMED_MAX: usize = 20;

#[derive(Debug)]
pub(super) struct Drained {
    /// Frames that were read and never handed over.
    unread: usize,
    pub(super) until: Instant,
}

impl Session {
    pub(super) fn handle_drain(&mut self, until: Instant, unread: usize) {
        let close = Close::new(CloseCode::ServiceRestart, "server draining, reconnect");
        self.drained = Some(Drained { unread, until });
        let waits = !self.actions.is_empty() || self.publishing.has_unconfirmed() || unread > 0;
        match &mut self.state {
            State::AwaitConnect { .. } | State::LoggingIn { .. } => self.end(close),
            State::Ended | State::Leaving { .. } => {}
            State::Open { .. } => {
                if self.departure.is_none() {
                    self.depart(close, None);
                    self.set_departure_deadline(until);
                }
            }
            State::Suspended { leaving: Some(_), .. } => {}
            // Nothing of this client is in flight.
            State::Suspended { .. } if !waits && self.held.is_empty() => self.end(close),
            State::Suspended { version, .. } => {
                let version = *version;
                let leaving = Some(self.departure(close, None));
                self.state = State::Suspended { leaving, version };
            }
        }
        if unread > 0 && !matches!(self.state, State::Ended) {
            // There is no time left.
            self.give_up_leaving();
        }
    }

    /// What the relay's end leaves undone, if it is that and not RabbitMQ's silence.
    pub(super) fn unfinished(&self) -> Option<Refusal> {
        let drained = self.drained.as_ref().filter(|drained| self.now >= drained.until)?;
        let waiting = self.actions.iter().filter(|action| matches!(action, Action::Publish(_))).count();
        let sends = self.publishing.unconfirmed_count() + waiting;
        let receipts = self.unfinished_receipts();
        if sends == 0 && receipts.is_empty() && drained.unread == 0 {
            return None;
        }
        let mut body = format!(
            "the relay was stopped before RabbitMQ had answered everything\nSENDs that may not have arrived: {sends}\n"
        );
        if drained.unread > 0 {
            body.push_str(&format!("frames behind them that were not looked at: {}\n", drained.unread));
        }
        if !receipts.is_empty() {
            let named = receipts.len().min(RECEIPTS_NAMED_MAX);
            body.push_str(&format!("receipts that were due: {}", receipts[..named].join(" ")));
            if receipts.len() > named {
                body.push_str(&format!(" and {} more", receipts.len() - named));
            }
            body.push('\n');
        }
        let refusal = Refusal::fatal(
            "drain.unfinished",
            "Server draining",
            body,
            "Connect again, and repeat what was not confirmed with the same amqp-message-id.",
        );
        Some(refusal.about_receipt(receipts.first().copied()).closing(CloseCode::ServiceRestart))
    }

    fn unfinished_receipts(&self) -> Vec<&str> {
        let departure = match &self.state {
            State::Leaving { departure, .. } => Some(departure),
            State::Suspended { leaving, .. } => leaving.as_ref(),
            _ => self.departure.as_deref(),
        };
        let waiting = self.actions.iter().filter_map(|action| match action {
            Action::Publish(send) => send.receipt.as_deref(),
            Action::Frame(frame) => frame.header("receipt"),
            Action::Refuse(refusal) => refusal.receipt.as_deref(),
            Action::Committed(_) | Action::Settle(_) => None,
        });
        let published = self.publishing.unconfirmed_receipts();
        let left = departure.and_then(|departure| departure.receipt.as_deref());
        let held = self.held.receipts();
        published.chain(waiting).chain(self.transactions.commit_receipts()).chain(held).chain(left).collect()
    }
}
