//! The lease was lost and comes back: sessions suspend and resume, and their clients notice nothing but a pause.
//!
//! On the way out: deliveries that were not settled belong to the broker again, what is unconfirmed will be published again.
//! On the way back: subscriptions are made anew in their old order, then the unconfirmed SENDs go out under their old message
//! ids, then the client's next frames. Past the grace the session gives up.

use std::time::Instant;

use super::Session;
use super::event::{BrokerInfo, Concern, Failure, LoginFailure};
use super::io::Output;
use super::queue::FlagEra;
use super::refusal::{CloseCode, Refusal};
use super::state::{Departure, State};

/// What an outage waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    Broker,
    /// Its node is away, and all else is well.
    Queue,
}

/// Since when, and how often, this session has been trying to get a lease that works.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outage {
    attempt: u32,
    /// Over when a SEND is confirmed, if it is a queue that is missing and one waits.
    pub missing: Missing,
    pub give_up_at: Instant,
}

impl Session {
    /// Whether a new lease can help. What the broker refuses is refused; but a queue may wait for its node and, while
    /// subscriptions are being made anew, be held by the connection that was lost.
    pub(super) fn may_resume(&self, failure: &Failure) -> bool {
        match failure {
            Failure::LinkLost { .. } | Failure::TimedOut { .. } => true,
            Failure::Refused { reply_code: 405, .. } => self.outage.is_some(),
            Failure::Refused { reply_code: 403, reply_text } => {
                self.outage.is_some() && reply_text.contains("in exclusive use")
            }
            Failure::Refused { reply_code: 404, .. } => failure.is_absence(),
            Failure::Poisoned { .. } | Failure::Refused { .. } | Failure::Unconfirmed => false,
        }
    }

    pub(super) fn suspend(&mut self, failure: &Failure) {
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
        if let Some(outage) = &mut self.outage {
            outage.missing = if failure.is_absence() { Missing::Queue } else { Missing::Broker };
        }
    }

    fn ask_for_lease(&mut self) {
        let give_up_at = self.now + self.config.grace;
        let outage = self.outage.get_or_insert(Outage { attempt: 0, give_up_at, missing: Missing::Broker });
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

    /// Whether a SEND has waited for its queue's node as long as it may. Other SENDs may be confirmed meanwhile, and end each
    /// outage.
    pub(super) fn has_waited_enough(&mut self, failure: &Failure, concerns: Concern) -> bool {
        let Concern::Publish(token) = concerns else { return false };
        let waiting = failure.is_absence().then(|| self.publishing.wait_for_queue(token, self.now)).flatten();
        waiting.is_some_and(|since| self.now >= since + self.config.grace)
    }

    /// A SEND was confirmed, so no queue is away that the next ones wait for.
    pub(super) fn end_absence(&mut self) {
        if let Some(outage) = &mut self.outage {
            outage.missing = Missing::Broker;
        }
    }

    /// The outage is over when everything is as it was; then a session that was leaving goes on leaving.
    pub(super) fn end_outage(&mut self) {
        if self.has_pending_consumer_work() || !matches!(self.state, State::Open { .. }) {
            return;
        }
        let of_queue = self.outage.is_some_and(|outage| outage.missing == Missing::Queue);
        let sends_wait = self.publishing.has_unconfirmed() || !self.actions.is_empty();
        if of_queue && sends_wait && self.blocked_deadline().is_none() {
            return;
        }
        self.outage = None;
        if self.actions.is_empty()
            && let Some(Departure { close, receipt }) = self.departure.take()
        {
            self.leave(close, receipt);
        }
    }

    pub(super) fn give_up_outage(&mut self, missing: Missing) {
        let seconds = self.config.grace.as_secs();
        let what = match missing {
            Missing::Broker => "RabbitMQ was not reached again",
            Missing::Queue => "the node of a queue did not come back",
        };
        let refusal = Refusal::fatal(
            "broker.outage",
            "Broker outage",
            format!("{what} within {seconds} s; what has no RECEIPT may not have arrived\n"),
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
