//! The lease was lost and comes back: sessions suspend and resume, and their clients notice nothing but a pause.
//!
//! On the way out: deliveries that were not settled belong to the broker again, what is unconfirmed will be published again.
//! On the way back: subscriptions are made anew in their old order, then the unconfirmed SENDs go out under their old message
//! ids, then the client's next frames. Past the grace the session gives up.

use std::time::Instant;

use super::Session;
use super::event::{BrokerInfo, Failure, LoginFailure};
use super::io::Output;
use super::queue::FlagEra;
use super::refusal::{CloseCode, Refusal};
use super::state::{Departure, State};

/// Since when, and how often, this session has been trying to get a lease that works.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outage {
    attempt: u32,
    pub give_up_at: Instant,
}

impl Session {
    /// Whether a new lease can help. What the broker refuses is refused; but while subscriptions are being made anew, a queue
    /// may still be held by the connection that was lost, or wait for its node.
    pub(super) fn may_resume(&self, failure: &Failure) -> bool {
        match failure {
            Failure::LinkLost { .. } | Failure::TimedOut { .. } => true,
            Failure::Refused { reply_code: 405, .. } => self.outage.is_some(),
            Failure::Refused { reply_code: 403, reply_text } => {
                self.outage.is_some() && reply_text.contains("in exclusive use")
            }
            Failure::Refused { reply_code: 404, reply_text } => {
                self.outage.is_some() && reply_text.contains("is down or inaccessible")
            }
            Failure::Poisoned { .. } | Failure::Refused { .. } | Failure::Unconfirmed => false,
        }
    }

    pub(super) fn suspend(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Ended);
        let (version, leaving) = match state {
            // It may have been on its way back to leaving.
            State::Open { version } => (version, self.departure.take()),
            State::Leaving { departure, .. } => (self.agreed_version(), Some(departure)),
            other => {
                self.state = other;
                return;
            }
        };
        self.state = State::Suspended { leaving, version };
        self.ledger.lose();
        self.unflushed.clear();
        self.handle_unblocked();
        self.stats.suspensions += 1;
        if let Some(refusal) = self.take_back_unconfirmed() {
            return self.refuse(refusal);
        }
        self.ask_for_lease();
    }

    fn ask_for_lease(&mut self) {
        let give_up_at = self.now + self.config.grace;
        let outage = self.outage.get_or_insert(Outage { attempt: 0, give_up_at });
        let attempt = outage.attempt;
        outage.attempt += 1;
        self.outputs.push_back(Output::Resume { attempt });
    }

    pub(super) fn handle_resumed(&mut self, result: Result<BrokerInfo, LoginFailure>) {
        let state = std::mem::replace(&mut self.state, State::Ended);
        let State::Suspended { leaving, version } = state else {
            self.state = state;
            return;
        };
        match result {
            Ok(info) => {
                self.state = State::Open { version };
                self.era = FlagEra::of(&info.version);
                self.departure = leaving;
                self.resume_subscriptions();
            }
            Err(LoginFailure::Unavailable { .. }) => {
                self.state = State::Suspended { leaving, version };
                self.ask_for_lease();
            }
            Err(LoginFailure::AccessRefused | LoginFailure::VirtualHost { .. }) => {
                let refusal = Refusal::fatal(
                    "broker.access_refused",
                    "access_refused",
                    "RabbitMQ no longer lets this user in\n",
                    "Connect again with valid credentials.",
                );
                self.refuse(refusal.closing(CloseCode::PolicyViolation));
            }
        }
    }

    /// The outage is over when everything is as it was; then a session that was leaving goes on leaving.
    pub(super) fn end_outage(&mut self) {
        if self.has_pending_consumer_work() || !matches!(self.state, State::Open { .. }) {
            return;
        }
        self.outage = None;
        if self.actions.is_empty()
            && let Some(Departure { close, receipt }) = self.departure.take()
        {
            self.leave(close, receipt);
        }
    }

    pub(super) fn give_up_outage(&mut self) {
        let seconds = self.config.grace.as_secs();
        let refusal = Refusal::fatal(
            "broker.outage",
            "Broker outage",
            format!("RabbitMQ was not reached again within {seconds} s; what has no RECEIPT may not have arrived\n"),
            "Connect again in a while and repeat what was not confirmed.",
        );
        self.refuse(refusal.closing(CloseCode::InternalError));
    }
}

pub(super) fn connection_lost() -> Refusal {
    Refusal::fatal(
        "broker.connection_lost",
        "AMQP connection died",
        "the connection to RabbitMQ was lost; what was not confirmed by a RECEIPT may not have arrived\n",
        "Connect again and repeat what was not confirmed.",
    )
    .closing(CloseCode::InternalError)
}
