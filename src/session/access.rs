//! The session's side of the rules: each SEND, SUBSCRIBE and UNSUBSCRIBE that deletes a queue is judged here before anything
//! comes of it, and again where it lasts while the client's identity or the rules change.

use std::sync::Arc;

use super::Session;
use super::amqp::ShortText;
use super::destination::Destination;
use super::identity::Identity;
use super::io::{Denied, LoggedIn, Output};
use super::queue::FlagEra;
use super::refusal::{CloseCode, Refusal};
use super::rules::{Asked, COPIES_MAX, Client, Demand, Denial, Operation, Permit, Purpose, RuleSet, Stance};
use super::state::State;
use super::subscription::Revoked;
use super::transaction::Action;
use crate::stomp::{Frame, Version};

/// What a frame may do, and what was asked for it, where rules have a say.
#[derive(Debug)]
pub(super) struct Access {
    pub(super) demand: Option<Box<Demand>>,
    pub(super) permit: Permit,
}

impl Access {
    /// Where no rule is asked.
    pub(super) const OWN: Access = Access { demand: None, permit: Permit::OPEN };

    /// The destination as it may be used: a queue that may not be declared must exist.
    pub(super) fn limit(&self, destination: Destination) -> Destination {
        match destination {
            Destination::Queue(name) if !self.permit.declare => Destination::AmqQueue(name),
            other => other,
        }
    }
}

impl Session {
    /// As after a login, without one: to ask what a frame would become. No client comes in this way.
    pub fn assume_login(&mut self, logged_in: LoggedIn, virtual_host: String) {
        self.state = State::Open { version: Version::V1_2 };
        self.version = Some(Version::V1_2);
        self.era = FlagEra::of(&logged_in.broker.version);
        self.identity = logged_in.identity;
        self.virtual_host_name = virtual_host;
    }

    pub(super) fn judge_send(&mut self, frame: &Frame, destination: &Destination) -> Result<Access, Refusal> {
        self.judge(Operation::Send, frame, destination)
    }

    pub(super) fn judge_subscribe(&mut self, frame: &Frame, destination: &Destination) -> Result<Access, Refusal> {
        let access = self.judge(Operation::Subscribe, frame, destination)?;
        self.check_room(&access.permit).map(|()| access)
    }

    fn judge(&mut self, operation: Operation, frame: &Frame, destination: &Destination) -> Result<Access, Refusal> {
        // What lasts is judged again when there are other rules, so its demand is kept even where there are none yet.
        let lasts = operation == Operation::Subscribe || frame.headers.contains("transaction");
        // No frame takes a reply queue; the answer is the same for everybody.
        if matches!(destination, Destination::TempQueue(_)) || !(lasts || self.has_rules()) {
            return Ok(Access::OWN);
        }
        let config = &self.config;
        let (exchange, decoding) = (&config.default_topic_exchange, config.destination_decoding);
        let demand = Demand::of(operation, &frame.headers, destination, exchange, decoding);
        let permit = match self.permit(&demand) {
            Ok(permit) => permit,
            Err(denial) => {
                if operation == Operation::Subscribe && denial.asked == Asked::Target(Purpose::Itself) {
                    self.delete_unowned_queue(frame, destination);
                }
                let shown = frame.header("destination").unwrap_or_default();
                return Err(self.denied(operation_name(operation), shown, &denial));
            }
        };
        Ok(Access { demand: Some(Box::new(demand)), permit })
    }

    /// The UNSUBSCRIBE of a durable subscription deletes its queue, which takes the right to make one.
    pub(super) fn judge_delete(
        &mut self,
        header: &str,
        demand: Option<&Demand>,
        destination: &str,
    ) -> Result<(), Refusal> {
        let Some(demand) = demand else { return Ok(()) };
        let permit = self.permit(&demand.and_header(header));
        permit.map(drop).map_err(|denial| self.denied("UNSUBSCRIBE", destination, &denial))
    }

    /// Where rules are in force, a queue whose name the client chose may be anybody's, and no rule gives a right to delete it.
    pub(super) fn refuse_delete(&mut self, queue: &ShortText, destination: &str) -> Refusal {
        let denial = Denial { asked: Asked::Deletion(queue.as_str().to_owned()), rule: None };
        self.denied("UNSUBSCRIBE", destination, &denial)
    }

    /// What the client asks for must be allowed; what the relay would choose gives way.
    pub(super) fn limit_prefetch(&mut self, frame: &Frame, permit: &Permit, prefetch: u16) -> Result<u16, Refusal> {
        let Some(limit) = permit.prefetch_max.filter(|limit| prefetch > *limit) else { return Ok(prefetch) };
        if matches!(frame.header("prefetch-count").map(str::trim), None | Some("0")) {
            return Ok(limit);
        }
        let destination = frame.header("destination").unwrap_or_default();
        let denial = Denial { asked: Asked::Prefetch(limit), rule: permit.rule };
        Err(self.denied("SUBSCRIBE", destination, &denial))
    }

    /// Whether all of it is still allowed: identity or rules may be others since BEGIN.
    pub(super) fn judge_commit(&mut self, actions: &[Action]) -> Result<(), Refusal> {
        for action in actions {
            let Action::Publish(send) = action else { continue };
            let Some(demand) = &send.demand else { continue };
            self.permit(demand).map_err(|denial| self.denied("SEND", &send.destination, &denial))?;
        }
        Ok(())
    }

    pub(super) fn change_identity(&mut self, identity: Identity) {
        self.identity_bytes = super::retained::identity(&identity);
        self.identity = identity;
        self.judge_subscriptions();
    }

    pub(super) fn replace_rules(&mut self, rules: Arc<RuleSet>) {
        if self.rules != rules {
            self.rules = rules;
            self.judge_subscriptions();
        }
    }

    /// Identity or rules are others than when these were allowed. Each that may no longer be ends with an ERROR; in
    /// compatibility mode the session goes on, and a later UNSUBSCRIBE of one is answered as if it were there.
    fn judge_subscriptions(&mut self) {
        if !matches!(self.state, State::Open { .. } | State::Suspended { .. }) {
            return;
        }
        let mut lost = Vec::new();
        for (key, demand) in self.subscriptions.demands() {
            match self.permit(&demand) {
                Ok(permit) => self.subscriptions.allow_by(key, permit),
                Err(denial) => lost.extend(self.revoke_subscription(key).map(|revoked| (revoked, denial))),
            }
        }
        for (Revoked { destination, id }, denial) in lost {
            let refusal = self.denied("SUBSCRIBE", &destination, &denial);
            let body = format!("no longer allowed: {}", refusal.body);
            self.refuse(Refusal { body, ..refusal }.about_subscription(&id.unwrap_or(destination)));
            if matches!(self.state, State::Ended) {
                return;
            }
        }
    }

    fn permit(&self, demand: &Demand) -> Result<Permit, Denial> {
        let client = Client {
            identity: &self.identity,
            topic_exchange: self.config.default_topic_exchange.as_str(),
            virtual_host: &self.virtual_host_name,
        };
        self.rules.judge(demand, &client, self.config.stance)
    }

    pub(super) fn has_rules(&self) -> bool {
        self.config.stance == Stance::Closed || !self.rules.is_empty()
    }

    fn check_room(&self, permit: &Permit) -> Result<(), Refusal> {
        let (Some(limit), Some(rule)) = (permit.subscriptions_max, permit.rule) else { return Ok(()) };
        match self.subscriptions.allowed_by(rule) < limit {
            true => Ok(()),
            false => Err(super::subscription::too_many(limit, " to such destinations")),
        }
    }

    /// The client learns what was asked for and what is missing, never the rule, which is told to the operator.
    fn denied(&mut self, command: &'static str, destination: &str, denial: &Denial) -> Refusal {
        let user = &self.identity.user;
        let missing = match &denial.asked {
            Asked::Copies => format!("may not name more than {COPIES_MAX} routing keys in CC and BCC"),
            Asked::Header(name) => format!("may not set the header '{name}' there"),
            Asked::Prefetch(limit) => format!("may have a prefetch-count of {limit} there at most"),
            Asked::ReplyTo(text) => format!("may not ask for answers to '{text}' there"),
            Asked::Target(Purpose::Bound(name)) => {
                format!("may not send to queue '{name}', which x-queue-name binds there")
            }
            Asked::Target(Purpose::Copy(key)) => format!("may not send there with the routing key '{key}'"),
            Asked::Target(Purpose::DeadLetters(name)) => format!("may not send dead letters to exchange '{name}'"),
            Asked::Target(Purpose::Drained(name)) => {
                format!("may not subscribe to queue '{name}', whose dead letters it would direct")
            }
            Asked::Target(Purpose::Itself) => match command {
                "SEND" => "may not send there".to_owned(),
                _ => "may not subscribe to all that it matches".to_owned(),
            },
            Asked::Deletion(name) => {
                format!(
                    "may not delete queue '{name}', which x-queue-name names; UNSUBSCRIBE without durable:true keeps it"
                )
            }
            Asked::Target(Purpose::QueueName(name)) => format!("may not subscribe to queue '{name}'"),
        };
        let what = format!("{command} '{destination}': user '{user}' {missing}");
        let rule = denial.rule.and_then(|index| Some((index + 1, self.rules.rules().get(index)?.name.clone())));
        self.outputs.push_back(Output::Denied(Denied { command, rule, what: what.clone() }));
        Refusal::soft(
            "auth.denied",
            "access_refused",
            what + "\n",
            "Ask the relay's operator for the permission, or connect as another user.",
        )
        .closing(CloseCode::PolicyViolation)
    }
}

fn operation_name(operation: Operation) -> &'static str {
    match operation {
        Operation::Send => "SEND",
        Operation::Subscribe => "SUBSCRIBE",
    }
}
