//! The ways out that are not errors: DISCONNECT, the relay's drain, a client that is gone. Each lets the broker finish what was
//! given to it, and what comes of that still reaches the client.

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
        self.leave(Close::new(CloseCode::Normal, ""), frame.header("receipt").map(str::to_owned));
        Ok(())
    }

    pub(super) fn handle_drain(&mut self) {
        let close = Close::new(CloseCode::ServiceRestart, "server draining, reconnect");
        match self.state {
            State::Open { .. } => self.leave(close, None),
            // Nothing is in flight at the broker, and waiting for one may take longer than the drain.
            State::AwaitConnect { .. } | State::LoggingIn { .. } | State::Suspended { .. } => self.end(close),
            State::Ended | State::Leaving { .. } => {}
        }
    }

    /// Nobody is left to tell, but what the client sent still goes to the broker.
    pub(super) fn handle_transport_closed(&mut self) {
        let close = Close::new(CloseCode::Normal, "");
        match self.state {
            State::Open { .. } => {
                // Nobody will take them any more: they go back to their queues.
                self.unflushed.clear();
                self.leave(close, None);
            }
            State::Leaving { flushing: true, .. } => {
                self.unflushed.clear();
                self.settle_flushed();
            }
            State::AwaitConnect { .. } | State::LoggingIn { .. } => self.end(close),
            State::Suspended { .. } if self.actions.is_empty() && !self.publishing.has_unconfirmed() => self.end(close),
            State::Suspended { version, .. } => {
                let leaving = Some(Departure { close, receipt: None });
                self.state = State::Suspended { leaving, version };
            }
            State::Ended | State::Leaving { .. } => {}
        }
    }

    /// Lets the broker finish what was given to it; what comes of that still reaches the client.
    pub(super) fn leave(&mut self, close: Close, receipt: Option<String>) {
        if self.publishing.has_waiting() {
            // It goes on when they have gone.
            self.departure = Some(Departure { close, receipt });
            return;
        }
        let deadline = self.now + self.config.disconnect_timeout;
        let flushing = !self.unflushed.is_empty();
        self.state = State::Leaving { deadline, departure: Departure { close, receipt }, flushing };
        self.delete_surviving_queues();
        if !flushing {
            self.command(BrokerCommand::Close);
        }
    }

    pub(super) fn handle_closed(&mut self) {
        let State::Leaving { departure: Departure { close, receipt }, .. } =
            std::mem::replace(&mut self.state, State::Ended)
        else {
            return;
        };
        if let Some(receipt) = receipt {
            self.receipt(&receipt);
        }
        self.outputs.push_back(Output::Close(close));
    }

    /// The broker has not finished in time: no RECEIPT, because nobody knows.
    pub(super) fn give_up_leaving(&mut self) {
        let State::Leaving { departure: Departure { close, receipt }, .. } =
            std::mem::replace(&mut self.state, State::Ended)
        else {
            return;
        };
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

    /// What was put out before is written now, so the broker may forget it.
    pub(super) fn settle_flushed(&mut self) {
        let settle = |tag| Output::Command(BrokerCommand::Settle { tag, outcome: Settlement::Ack });
        self.outputs.extend(self.unflushed.drain(..).map(settle));
        self.unflushed.shrink_to(UNFLUSHED_KEPT);
        if let State::Leaving { flushing, .. } = &mut self.state
            && std::mem::replace(flushing, false)
        {
            self.command(BrokerCommand::Close);
        }
    }
}
