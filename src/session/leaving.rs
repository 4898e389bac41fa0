//! The ways out that are not errors: DISCONNECT, the relay's drain, a client that is gone. Each lets the broker finish what was
//! given to it, and what comes of that still reaches the client.

use std::time::Instant;

use super::Session;
use super::command::{BrokerCommand, Settlement};
use super::io::Output;
use super::refusal::{Close, CloseCode, Refusal};
use super::state::{Departure, State};
use crate::stomp::Frame;

/// Room that is kept between flushes, in deliveries of 8 bytes; what a burst took beyond it is given back.
const UNFLUSHED_KEPT: usize = 64;

impl Session {
    pub(super) fn handle_disconnect(&mut self, frame: &Frame) -> Result<(), Refusal> {
        self.depart(Close::new(CloseCode::Normal, ""), frame.header("receipt").map(str::to_owned));
        Ok(())
    }

    /// Nobody is left to tell, but what the client sent still goes to the broker.
    pub(super) fn handle_transport_closed(&mut self) {
        let close = Close::new(CloseCode::Normal, "");
        match self.state {
            State::Open { .. } => {
                // Nobody will take them any more: they go back to their queues.
                self.unflushed.clear();
                if self.departure.is_none() {
                    self.depart(close, None);
                }
            }
            State::Leaving { flushing: true, .. } => {
                self.unflushed.clear();
                self.settle_flushed();
            }
            State::AwaitConnect { .. } | State::LoggingIn { .. } => self.end(close),
            State::Suspended { .. } if self.actions.is_empty() && !self.publishing.has_unconfirmed() => self.end(close),
            State::Suspended { version, .. } => {
                let leaving = Some(self.departure(close, None));
                self.state = State::Suspended { leaving, version };
            }
            State::Ended | State::Leaving { .. } => {}
        }
    }

    pub(super) fn departure(&self, close: Close, receipt: Option<String>) -> Departure {
        let deadline = self.now + self.config.disconnect_timeout;
        Departure { close, deadline, receipt }
    }

    /// Reads no more, and leaves when everything before is done.
    pub(super) fn depart(&mut self, close: Close, receipt: Option<String>) {
        self.departure = Some(Box::new(self.departure(close, receipt)));
    }

    pub(super) fn set_departure_deadline(&mut self, deadline: Instant) {
        if let Some(departure) = &mut self.departure {
            departure.deadline = deadline;
        }
    }

    /// An outage has used up its time.
    pub(super) fn postponed(&self, departure: Departure) -> Departure {
        self.departure(departure.close, departure.receipt)
    }

    /// An outage has a deadline of its own; the relay's end waits for neither.
    pub(super) fn departure_deadline(&self) -> Option<Instant> {
        let departure = match &self.state {
            State::Leaving { departure, .. } => Some(departure),
            State::Open { .. } if !self.outages.are_on() => self.departure.as_deref(),
            _ => None,
        };
        let drained = self.drained.as_ref().map(|drained| drained.until);
        [departure.map(|departure| departure.deadline), drained].into_iter().flatten().min()
    }

    /// When all SENDs are answered, lets the broker finish the rest; what comes of that still reaches the client.
    pub(super) fn go_on_leaving(&mut self) {
        let ready = !self.outages.consuming() && self.actions.is_empty() && !self.publishing.has_unconfirmed();
        if !ready || !matches!(self.state, State::Open { .. }) {
            return;
        }
        let Some(departure) = self.departure.take().map(|departure| *departure) else { return };
        let flushing = !self.unflushed.is_empty();
        self.state = State::Leaving { departure, flushing };
        self.delete_surviving_queues();
        if !flushing {
            self.command(BrokerCommand::Close);
        }
    }

    pub(super) fn handle_closed(&mut self) {
        let Some(Departure { close, receipt, .. }) = self.end_departure() else { return };
        match (receipt, self.doubt()) {
            (Some(receipt), Some(doubt)) => return self.refuse(doubt.about_receipt(Some(&receipt))),
            (Some(receipt), None) => self.receipt(&receipt),
            (None, _) => {}
        }
        self.outputs.push_back(Output::Close(close));
    }

    /// Whether nothing of this client is under way but its last settlements.
    pub(super) fn has_left(&self) -> bool {
        matches!(self.state, State::Leaving { .. }) && !self.has_pending_consumer_work()
    }

    /// The lease ended before RabbitMQ had said that it has everything.
    pub(super) fn end_with_doubts(&mut self) {
        self.ledger.lose();
        self.unflushed.clear();
        self.doubts.lose_lease();
        self.handle_closed();
    }

    /// The broker has not finished in time: no RECEIPT, because nobody knows.
    pub(super) fn give_up_leaving(&mut self) {
        if let Some(unfinished) = self.unfinished() {
            self.end_departure();
            return self.refuse(unfinished);
        }
        let Some(Departure { close, receipt, .. }) = self.end_departure() else { return };
        match receipt {
            Some(receipt) => {
                let refusal = Refusal::fatal(
                    "broker.timeout",
                    "Broker timeout",
                    "RabbitMQ did not confirm everything before DISCONNECT's deadline\n",
                    "Repeat what was not confirmed by a RECEIPT.",
                );
                self.refuse(refusal.about_receipt(Some(&receipt)).closing(CloseCode::InternalError));
            }
            None => self.outputs.push_back(Output::Close(close)),
        }
    }

    fn end_departure(&mut self) -> Option<Departure> {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Leaving { departure, .. } => Some(departure),
            State::Suspended { leaving, .. } => leaving,
            _ => self.departure.take().map(|departure| *departure),
        }
    }

    /// What was put out before is written now, so the broker may forget it.
    pub(super) fn settle_flushed(&mut self) {
        let settle = |tag| Output::Command(BrokerCommand::Settle { tag, outcome: Settlement::Ack });
        self.doubts.settled_automatically(self.unflushed.len());
        self.outputs.extend(self.unflushed.drain(..).map(settle));
        self.unflushed.shrink_to(UNFLUSHED_KEPT);
        if let State::Leaving { flushing, .. } = &mut self.state
            && std::mem::replace(flushing, false)
        {
            self.command(BrokerCommand::Close);
        }
    }
}
