//! A side of the lease was lost and comes back: the client notices nothing but a pause.
//!
//! The consume side: the session is suspended; deliveries that were not settled belong to the broker again, and subscriptions
//! are made anew in their old order before anything else goes on. The publish side: everything goes on but SENDs; what is
//! unconfirmed goes out again under its old message ids, then the next ones. Neither touches the other: what was delivered
//! stays delivered while nothing can be published, and what was published is still confirmed while nothing can be consumed.
//!
//! Pauses and grace count from the first loss until the side has shown that it works. Past the grace the session gives up.

use std::time::{Duration, Instant};

use super::Session;
use super::command::{BrokerCommand, Side};
use super::event::{BrokerInfo, Concern, Failure, LoginFailure};
use super::identity::Account;
use super::queue::FlagEra;
use super::refusal::{CloseCode, Refusal};
use super::state::State;

/// A side that is lost again sooner than that after it came back is as good as never back: pauses go on growing, because each
/// loss of a consumer counts against the delivery limit of what it had.
const CALM: Duration = Duration::from_secs(10);

/// How long the nodes are asked for one that has a stream's replica. A node that was just started runs its own within seconds.
const REPLICA_PATIENCE: Duration = Duration::from_secs(10);

/// What an outage waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Missing {
    /// RabbitMQ refuses the account of the relay's that this session works as.
    Account,
    #[default]
    Broker,
    /// Its node is away, and all else is well.
    Queue,
}

/// What one side of the lease has been through.
#[derive(Debug, Default)]
pub(super) struct Outage {
    /// The next one's number.
    attempt: u32,
    ended_at: Option<Instant>,
    /// There from the first loss until the side has shown that it works.
    give_up_at: Option<Instant>,
    /// Whether another one is being waited for.
    lost: bool,
    missing: Missing,
}

impl Outage {
    pub(super) fn is_on(&self) -> bool {
        self.give_up_at.is_some()
    }

    /// Since the first loss.
    fn has_lasted(&self, now: Instant, grace: Duration) -> Option<Duration> {
        self.give_up_at.map(|at| (now + grace).saturating_duration_since(at))
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    fn begin(&mut self, now: Instant, grace: Duration, missing: Missing) {
        if !self.is_on() && self.ended_at.is_none_or(|at| now >= at + CALM) {
            self.attempt = 0;
        }
        self.give_up_at.get_or_insert(now + grace);
        (self.lost, self.missing) = (true, missing);
    }

    fn next_attempt(&mut self) -> u32 {
        let attempt = self.attempt;
        self.attempt = attempt.saturating_add(1);
        attempt
    }

    fn end(&mut self, now: Instant) {
        if self.give_up_at.take().is_some() {
            self.ended_at = Some(now);
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Outages {
    consume: Outage,
    pub(super) publish: Outage,
}

impl Outages {
    fn of(&mut self, side: Side) -> &mut Outage {
        match side {
            Side::Consume => &mut self.consume,
            Side::Publish => &mut self.publish,
        }
    }

    pub(super) fn are_on(&self) -> bool {
        self.consume.is_on() || self.publish.is_on()
    }

    /// Whether what is consumed is not as it was yet.
    pub(super) fn consuming(&self) -> bool {
        self.consume.is_on()
    }

    pub(super) fn give_up_at(&self) -> Option<Instant> {
        [self.consume.give_up_at, self.publish.give_up_at].into_iter().flatten().min()
    }

    /// The side whose grace is over.
    fn overdue(&self, now: Instant) -> Option<Side> {
        let due = |outage: &Outage| outage.give_up_at.is_some_and(|at| now >= at);
        if due(&self.consume) { Some(Side::Consume) } else { due(&self.publish).then_some(Side::Publish) }
    }
}

impl Session {
    /// Whether a side of the lease is lost, or has not shown yet that it works again.
    pub fn is_in_outage(&self) -> bool {
        self.outages.are_on()
    }

    pub(super) fn handle_side_lost(&mut self, side: Side, failure: Failure, concerns: Concern) {
        if self.was_no_stream(&failure, concerns) {
            self.lose_side(side, &failure);
        } else if !self.may_resume(&failure) {
            self.handle_failed(failure, concerns);
        } else if self.has_waited_enough(&failure, concerns) {
            let receipt = self.receipt_of(concerns).map(str::to_owned);
            self.give_up(Missing::Queue, receipt.as_deref());
        } else {
            self.lose_side(side, &failure);
        }
    }

    /// Whether to have the side again can help. What the broker refuses is refused; but a queue may wait for its node and, while
    /// subscriptions are being made anew, be held by the connection that was lost.
    fn may_resume(&self, failure: &Failure) -> bool {
        match failure {
            Failure::LinkLost { .. } | Failure::TimedOut { .. } => true,
            Failure::Refused { reply_code: 405, .. } => self.outages.consume.is_on(),
            Failure::Refused { reply_code: 403, reply_text } => {
                self.outages.consume.is_on() && reply_text.contains("in exclusive use")
            }
            Failure::Refused { reply_code: 404, .. } => failure.is_absence(),
            Failure::Refused { reply_code: 406, .. } if failure.is_elsewhere() => {
                self.outages.consume.has_lasted(self.now, self.config.grace).is_none_or(|time| time < REPLICA_PATIENCE)
            }
            Failure::BehindEnd { .. } | Failure::Poisoned { .. } | Failure::Refused { .. } | Failure::Unconfirmed => {
                false
            }
        }
    }

    fn lose_side(&mut self, side: Side, failure: &Failure) {
        let (version, departure, suspended) = match std::mem::replace(&mut self.state, State::Ended) {
            // It may have been on its way back to leaving.
            State::Open { version } => (version, self.departure.take().map(|departure| *departure), false),
            // All SENDs are answered: what else was under way ends with the lease as well, or is in doubt.
            State::Leaving { departure, .. } if side == Side::Consume && !self.has_pending_consumer_work() => {
                self.state = State::Leaving { departure, flushing: false };
                return self.end_with_doubts();
            }
            State::Leaving { departure, .. } => (self.agreed_version(), Some(departure), false),
            State::Suspended { leaving, version } => (version, leaving, true),
            other => {
                self.state = other;
                return;
            }
        };
        if suspended || side == Side::Consume {
            self.state = State::Suspended { leaving: departure, version };
        } else {
            self.state = State::Open { version };
            self.departure = departure.map(Box::new);
        }
        if !self.outages.are_on() {
            self.stats.suspensions += 1;
        }
        match side {
            Side::Consume => {
                self.lose_consumers();
                self.ledger.lose();
                self.held.lose();
                self.doubts.lose_lease();
                self.unflushed.clear();
                self.publishing.lose_queues();
            }
            Side::Publish => {
                self.handle_unblocked();
                if let Some(refusal) = self.take_back_unconfirmed() {
                    return self.refuse(refusal);
                }
            }
        }
        let missing = if failure.is_absence() { Missing::Queue } else { Missing::Broker };
        self.outages.of(side).begin(self.now, self.config.grace, missing);
        self.ask_for(side);
    }

    fn ask_for(&mut self, side: Side) {
        let attempt = self.outages.of(side).next_attempt();
        self.command(BrokerCommand::Restore { side, attempt });
    }

    pub(super) fn handle_restored(&mut self, side: Side, result: Result<BrokerInfo, LoginFailure>) {
        if !self.outages.of(side).lost {
            return;
        }
        match result {
            Ok(info) => {
                self.outages.of(side).lost = false;
                match side {
                    Side::Consume => self.resume_consuming(&info),
                    Side::Publish if !self.publishing.has_unconfirmed() => self.outages.publish.end(self.now),
                    Side::Publish => {}
                }
            }
            // At a limit on connections the one that was lost may still count.
            Err(failure)
                if matches!(failure, LoginFailure::Unavailable { .. }) || failure.connection_limit().is_some() =>
            {
                // A lease that was told to end takes no other command.
                if !matches!(self.state, State::Leaving { .. }) {
                    self.ask_for(side);
                }
            }
            // The operator's account, and the operator's to mend: the client waits as for a broker.
            Err(_) if self.identity.account == Account::Service => {
                self.outages.of(side).missing = Missing::Account;
                if !matches!(self.state, State::Leaving { .. }) {
                    self.ask_for(side);
                }
            }
            Err(_) => self.refuse(no_longer_let_in()),
        }
    }

    /// RabbitMQ was asked about the account, and refuses it. One that many share may work on as long as its connections do: that
    /// it would get no other is for the log.
    pub(super) fn handle_dismissed(&mut self) {
        match self.identity.account {
            Account::Own => self.refuse(no_longer_let_in()),
            Account::Service => {}
        }
    }

    fn resume_consuming(&mut self, info: &BrokerInfo) {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Suspended { leaving, version } => {
                self.state = State::Open { version };
                self.era = FlagEra::of(&info.version);
                self.departure = leaving.map(|departure| Box::new(self.postponed(departure)));
                self.resume_subscriptions();
            }
            other => self.state = other,
        }
    }

    /// Whether a SEND has waited for its queue's node as long as it may. Other SENDs may be confirmed meanwhile, and end each
    /// outage.
    fn has_waited_enough(&mut self, failure: &Failure, concerns: Concern) -> bool {
        let Concern::Publish(token) = concerns else { return false };
        let waiting = failure.is_absence().then(|| self.publishing.wait_for_queue(token, self.now)).flatten();
        waiting.is_some_and(|since| self.now >= since + self.config.grace)
    }

    /// RabbitMQ has answered a publish, or has said why it does not: it is reached, and no queue is away that the next ones
    /// wait for.
    pub(super) fn end_publish_outage(&mut self) {
        if !self.outages.publish.lost {
            self.outages.publish.end(self.now);
        }
    }

    /// The consume side's outage is over when everything is as it was; then a session that was leaving goes on leaving.
    pub(super) fn end_outage(&mut self) {
        if self.has_pending_consumer_work() || !matches!(self.state, State::Open { .. }) {
            return;
        }
        self.outages.consume.end(self.now);
    }

    /// At the end of a side's grace, if that has come.
    pub(super) fn give_up_outage(&mut self) -> bool {
        let Some(side) = self.outages.overdue(self.now) else { return false };
        let missing = self.outages.of(side).missing;
        let subscription = if side == Side::Consume { self.subscriptions.first_receipt() } else { None };
        let send = || self.publishing.first_receipt().or_else(|| self.waiting_receipt());
        let receipt = subscription.or_else(send).or_else(|| self.departure_receipt()).map(str::to_owned);
        self.give_up(missing, receipt.as_deref());
        true
    }

    fn give_up(&mut self, missing: Missing, receipt: Option<&str>) {
        let seconds = self.config.grace.as_secs();
        let what = match missing {
            Missing::Account => return self.refuse(account_unavailable().about_receipt(receipt)),
            Missing::Broker => "RabbitMQ was not reached again",
            Missing::Queue => "the node of a queue did not come back",
        };
        let refusal = Refusal::fatal(
            "broker.outage",
            "Broker outage",
            format!("{what} within {seconds} s; what has no RECEIPT may not have arrived\n"),
            "Connect again in a while and repeat what was not confirmed.",
        );
        self.refuse(refusal.about_receipt(receipt).closing(CloseCode::InternalError));
    }

    /// Of a DISCONNECT that waits for the end of an outage, or for the broker.
    pub(super) fn departure_receipt(&self) -> Option<&str> {
        let departure = match &self.state {
            State::Leaving { departure, .. } | State::Suspended { leaving: Some(departure), .. } => Some(departure),
            _ => self.departure.as_deref(),
        };
        departure.and_then(|departure| departure.receipt.as_deref())
    }
}

fn no_longer_let_in() -> Refusal {
    Refusal::fatal(
        "broker.access_refused",
        "access_refused",
        "RabbitMQ no longer lets this user in\n",
        "Connect again with valid credentials.",
    )
    .closing(CloseCode::PolicyViolation)
}

fn account_unavailable() -> Refusal {
    Refusal::fatal(
        "auth.unavailable",
        "Authentication unavailable",
        "RabbitMQ does not let the relay in at the moment; what has no RECEIPT may not have arrived\n",
        "Connect again in a while and repeat what was not confirmed.",
    )
    .closing(CloseCode::TryAgainLater)
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
