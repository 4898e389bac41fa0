//! The session: a pure state machine for one STOMP client. Frames go in, commands for the broker come out; events of the
//! broker go in, frames come out. Knows `crate::stomp` and nothing else: no tokio, no lapin, no clock, no randomness.
//!
//! Methods are of four kinds: `handle_input` for what happened, `poll_output` for what must be done now (drain it after
//! every input), `poll_timeout` for when to come back, and getters. `handle_input` returns nothing on purpose: a protocol
//! error is an output like any other, so there is no error path to forget.
//!
//! Read next: `state`, `io`, `command`, `event`.

mod access;
mod actions;
pub mod admission;
pub mod amqp;
mod arguments;
mod blocked;
mod boolean;
pub mod command;
pub mod config;
mod deadlines;
pub mod destination;
mod doubts;
mod drained;
pub mod event;
mod expiry;
mod failover;
mod held;
pub mod identity;
pub mod io;
mod leaving;
mod ledger;
mod liveness;
mod login;
mod message;
mod position;
pub mod proof;
mod properties;
mod publish;
mod queue;
mod refresh;
pub mod refusal;
mod retained;
pub mod rules;
mod settle;
mod state;
mod stats;
mod strict;
mod subscription;
mod throttle;
mod transaction;
mod turn;
mod unfinished;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actions::Actions;
use amqp::ShortText;
use blocked::Publishable;
use command::{BrokerCommand, DeliveryTag};
use config::{Compatibility, SessionConfig};
use destination::Destination;
use doubts::Doubts;
use drained::Drained;
use event::{BrokerEvent, Concern, Failure};
use failover::Outages;
use held::Held;
use identity::{Account, Identity};
use io::{Input, Output};
use ledger::{CumulativeScope, Ledger};
use liveness::Liveness;
use proof::Evidence;
use publish::Publishing;
use queue::{FlagEra, QueueRules};
use refresh::Refresh;
use refusal::{Close, CloseCode, Refusal};
use rules::RuleSet;
use state::{Departure, State};
pub use stats::Stats;
use subscription::Subscriptions;
use throttle::Throttle;
use transaction::{Action, CommitStep, Transactions};
use unfinished::FrameWait;

use crate::stomp::{Command, DecodeError, Frame, Version};

/// Room for outputs that is kept, about 5 KiB; what a burst took beyond it is given back.
const OUTPUTS_KEPT: usize = 32;

/// What makes a session itself. Random, and drawn by the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSeed {
    /// `session-` and 22 characters of base64url; the client sees it.
    pub id: String,
    /// From which queue names of this session are made; nobody sees it.
    pub queue_names: [u8; 16],
}

/// Where the client runs, as far as that is certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locality {
    /// On the relay's own machine, without a proxy between.
    Local,
    Remote,
}

#[derive(Debug)]
pub struct Session {
    actions: Actions,
    config: Arc<SessionConfig>,
    /// How long the SEND waited that was confirmed last.
    confirm_time: Option<Duration>,
    /// A session that was leaving when it lost its lease goes on leaving when it has another.
    departure: Option<Box<Departure>>,
    doubts: Doubts,
    /// The relay is being stopped.
    drained: Option<Drained>,
    era: FlagEra,
    frame_wait: FrameWait,
    held: Held,
    id: String,
    /// Empty before CONNECTED.
    identity: Identity,
    /// What the identity holds.
    identity_bytes: usize,
    ledger: Ledger,
    liveness: Liveness,
    locality: Locality,
    outages: Outages,
    outputs: VecDeque<Output>,
    /// What the client showed before it spoke STOMP.
    presented: Option<Box<Evidence>>,
    publishable: Publishable,
    publishing: Publishing,
    queue_names: (u64, [u8; 16]),
    /// A new token that is being checked.
    refresh: Option<Refresh>,
    rules: Arc<RuleSet>,
    state: State,
    stats: Stats,
    subscriptions: Subscriptions,
    throttle: Throttle,
    transactions: Transactions,
    /// Deliveries with `ack:auto` that were put out but not yet written to the socket.
    unflushed: Vec<DeliveryTag>,
    version: Option<Version>,
    virtual_host_name: String,
    /// The time of the input being handled.
    now: Instant,
}

impl Session {
    pub fn new(config: Arc<SessionConfig>, seed: SessionSeed, locality: Locality, now: Instant) -> Session {
        let scope = match config.compatibility {
            Compatibility::Rabbitmq => CumulativeScope::Connection,
            Compatibility::Strict => CumulativeScope::Subscription,
        };
        Session {
            actions: Actions::default(),
            confirm_time: None,
            departure: None,
            doubts: Doubts::default(),
            drained: None,
            era: FlagEra::V4_3,
            frame_wait: FrameWait::default(),
            held: Held::default(),
            id: seed.id,
            identity: Identity::default(),
            identity_bytes: 0,
            ledger: Ledger::new(scope),
            liveness: Liveness::new(now, config.ping_interval, config.pong_timeout, config.heartbeat_tolerance),
            locality,
            now,
            outages: Outages::default(),
            outputs: VecDeque::new(),
            presented: None,
            publishable: Publishable::default(),
            publishing: Publishing::default(),
            queue_names: (0, seed.queue_names),
            refresh: None,
            rules: config.rules.clone(),
            state: State::AwaitConnect { deadline: now + config.login_timeout, failures: 0 },
            stats: Stats::default(),
            subscriptions: Subscriptions::default(),
            throttle: Throttle::default(),
            transactions: Transactions::default(),
            unflushed: Vec::new(),
            version: None,
            virtual_host_name: String::new(),
            config,
        }
    }

    /// What the client showed in the TLS handshake or in its HTTP request counts when its CONNECT shows nothing.
    pub fn with_presented(self, presented: Option<Evidence>) -> Session {
        Session { presented: presented.map(Box::new), ..self }
    }

    /// It has to be logged in by then, if that is earlier than `login_timeout` says.
    pub fn with_login_deadline(mut self, latest: Instant) -> Session {
        if let State::AwaitConnect { deadline, .. } = &mut self.state {
            *deadline = latest.min(*deadline);
        }
        self
    }

    pub fn handle_input(&mut self, now: Instant, input: Input) {
        self.now = now;
        if self.frame_wait.is_on() && !self.wants_frames() {
            self.frame_wait.restart(now);
        }
        self.throttle.release(now);
        match input {
            _ if matches!(self.state, State::Ended) => return,
            _ if self.is_expired() => return self.expire(),
            Input::Broker(event) => self.handle_broker(event),
            Input::CertificateWithdrawn => self.refuse(expiry::certificate_withdrawn()),
            Input::Drain { until, unread } => self.handle_drain(until, unread),
            Input::Flushed => self.settle_flushed(),
            Input::Frame(frame) => self.handle_frame(frame),
            Input::Login(result) => self.handle_login(now, result),
            Input::NotAdmitted(limit) => self.refuse(limit.refusal()),
            Input::Malformed(error) => self.handle_malformed(&error),
            Input::Refreshed(result) => self.handle_refreshed(result),
            Input::Received => self.liveness.received(now),
            Input::RulesReplaced(rules) => self.replace_rules(rules),
            Input::Timeout => self.handle_timeout(),
            Input::TransportClosed => self.handle_transport_closed(),
            Input::Unfinished(frame) => self.handle_unfinished(frame),
            Input::Unheard => self.handle_unheard(),
            Input::Unreadable { close, reason } => self.handle_unreadable(close, reason),
            Input::WriteStalled => self.end(Close::new(CloseCode::SlowConsumer, "session.slow_consumer: not reading")),
        }
        self.release_held();
        self.run_actions();
        if self.outages.are_on() {
            self.end_outage();
        }
        if self.departure.is_some() {
            self.go_on_leaving();
        }
        self.note_blocked_sends();
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        let output = self.outputs.pop_front();
        if output.is_none() {
            self.outputs.shrink_to(OUTPUTS_KEPT);
        }
        output
    }

    /// Whether the next frame may be read. While not, the socket is left alone and the client's silence is not judged.
    pub fn wants_frames(&self) -> bool {
        match self.state {
            State::AwaitConnect { .. } | State::Open { .. } => {
                self.actions.is_empty()
                    && self.held.bytes() <= self.config.unconfirmed_bytes_max
                    && self.departure.is_none()
                    && self.refresh.is_none()
                    && self.throttle.until().is_none()
            }
            State::Ended | State::Leaving { .. } | State::LoggingIn { .. } | State::Suspended { .. } => false,
        }
    }

    /// Whether the session waits for `Input::Flushed` before it leaves.
    pub fn is_flushing(&self) -> bool {
        matches!(self.state, State::Leaving { flushing: true, .. })
    }

    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Empty before CONNECTED.
    pub fn login(&self) -> &str {
        &self.identity.user
    }

    /// Empty before CONNECTED.
    pub fn virtual_host(&self) -> &str {
        &self.virtual_host_name
    }

    /// The version that was agreed at CONNECTED.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// How long the SEND took that the last input confirmed.
    pub fn take_confirm_time(&mut self) -> Option<Duration> {
        self.confirm_time.take()
    }

    pub fn subscription_count(&self) -> usize {
        self.subscriptions.len()
    }

    /// What the session holds on the heap because of its client: transactions, SENDs that wait or have no confirm,
    /// subscriptions (the broker side's part of them too), deliveries that are not settled, who the client is. Outputs that
    /// were not taken yet do not count. Costs a few additions.
    pub fn retained_bytes(&self) -> usize {
        self.actions.bytes()
            + self.held.retained_bytes()
            + self.identity_bytes
            + self.ledger.bytes()
            + self.publishing.retained_bytes()
            + self.subscriptions.retained_bytes()
            + self.transactions.retained_bytes()
            + self.unflushed.capacity() * size_of::<DeliveryTag>()
    }

    /// Deliveries that the client has not settled.
    pub fn outstanding_count(&self) -> usize {
        self.ledger.len()
    }

    fn handle_frame(&mut self, mut frame: Frame) {
        self.stats.frames_received += 1;
        self.frame_wait.end();
        self.liveness.received(self.now);
        let version = match &self.state {
            State::AwaitConnect { deadline, failures } => {
                let (deadline, failures) = (*deadline, *failures);
                return self.handle_first_frame(frame, deadline, failures);
            }
            State::Open { version } => *version,
            // The driver reads no frames in these states; what it had read before is dropped.
            State::Ended | State::Leaving { .. } | State::LoggingIn { .. } | State::Suspended { .. } => return,
        };
        if version == Version::V1_0 {
            frame.headers.trim_values_start();
        }
        if let Err(refusal) = self.dispatch(&mut frame, version) {
            self.refuse_in_turn(refusal.about_receipt(frame.header("receipt")));
        }
    }

    /// What a SEND has for a body is taken.
    fn dispatch(&mut self, frame: &mut Frame, version: Version) -> Result<(), Refusal> {
        if self.is_strict() {
            strict::check(frame, version)?;
        }
        match frame.command {
            Command::Abort => self.handle_abort(frame),
            Command::Ack | Command::Nack | Command::Subscribe | Command::Unsubscribe => self.take_turn(frame),
            Command::Begin => self.handle_begin(frame),
            Command::Commit => self.handle_commit(frame),
            Command::Connect | Command::Stomp => Err(Refusal::fatal(
                "connect.repeated",
                "Illegal command",
                "CONNECT was sent on a connection that is logged in already\n",
                "Open another connection for another login.",
            )),
            Command::Disconnect => self.handle_disconnect(frame),
            Command::Send => self.handle_send(frame),
            Command::Connected | Command::Error | Command::Message | Command::Receipt | Command::Unknown(_) => {
                Err(Refusal::soft(
                    "frame.command",
                    "Bad command",
                    format!("Could not interpret command \"{}\"\n", frame.command.as_str().escape_debug()),
                    "Commands are upper case: SEND, SUBSCRIBE, UNSUBSCRIBE, ACK, NACK, BEGIN, COMMIT, ABORT, DISCONNECT.",
                ))
            }
        }
    }

    fn handle_send(&mut self, frame: &mut Frame) -> Result<(), Refusal> {
        self.count_send();
        if self.is_refresh(frame) {
            return self.handle_refresh(frame);
        }
        if let Some(name) = frame.header("transaction") {
            self.require_transaction(name)?;
        }
        let send = Action::Publish(Box::new(self.prepare_send(frame)?));
        match frame.header("transaction") {
            Some(name) => self.enlist(name, send),
            None => {
                self.actions.push_back(send);
                Ok(())
            }
        }
    }

    fn handle_unreadable(&mut self, close: CloseCode, reason: String) {
        let (code, hint) = match close {
            CloseCode::TooBig => (
                "limit.message",
                "Send less in one frame: a STOMP frame that is split over messages has the same limit.",
            ),
            _ => ("transport.protocol", ""),
        };
        self.refuse(Refusal::fatal(code, "Unreadable message", format!("{reason}\n"), hint).closing(close));
    }

    fn handle_broker(&mut self, event: BrokerEvent) {
        match event {
            BrokerEvent::Blocked => self.handle_blocked(),
            BrokerEvent::Closed => {
                self.doubts.all_proven();
                self.handle_closed();
            }
            BrokerEvent::Confirmed { token } => self.handle_confirmed(token),
            BrokerEvent::Declared { token, .. } => self.handle_declared(token),
            BrokerEvent::Delivery(delivery) => {
                // While leaving, nothing more is delivered: closing gives it back to its queue.
                if let State::Open { version } = self.state
                    && self.departure.is_none()
                {
                    self.handle_delivery(delivery, version);
                }
            }
            BrokerEvent::Dismissed { .. } => self.handle_dismissed(),
            BrokerEvent::Dropped { messages, .. } => self.stats.messages_dropped += messages,
            BrokerEvent::Failed { failure, concerns, side: Some(side) } => {
                self.handle_side_lost(side, failure, concerns);
            }
            BrokerEvent::Failed { failure: Failure::LinkLost { .. }, side: None, .. } if self.has_left() => {
                self.end_with_doubts();
            }
            BrokerEvent::Failed { failure, concerns, side: None } => self.handle_failed(failure, concerns),
            BrokerEvent::Overflowed { key } => self.handle_overflowed(key),
            BrokerEvent::Rejected { token } => self.handle_rejected(token),
            BrokerEvent::Restored { side, result } => self.handle_restored(side, result),
            BrokerEvent::Returned { token, reply_code, reply_text } => {
                self.handle_returned(token, reply_code, &reply_text);
            }
            BrokerEvent::Settled { count } => self.doubts.proven(count),
            BrokerEvent::Subscribed { key, queue } => self.handle_subscribed(key, queue),
            BrokerEvent::SubscriptionCancelled { key } => self.handle_cancelled(key),
            BrokerEvent::SubscriptionInterrupted { key } => self.handle_interrupted(key),
            BrokerEvent::Unblocked => self.handle_unblocked(),
            BrokerEvent::Unsubscribed { key } => self.handle_unsubscribed(key),
        }
    }

    fn handle_failed(&mut self, failure: Failure, concerns: Concern) {
        let receipt = self.receipt_of(concerns).map(str::to_owned);
        let ended = match concerns {
            Concern::Subscription(key) => self.subscriptions.active_id(key).map(str::to_owned),
            Concern::Declare(_) | Concern::Publish(_) | Concern::Session => None,
        };
        let refusal = match failure {
            Failure::BehindEnd { offset, next } => position::behind_end(offset, next),
            Failure::Refused { reply_code, reply_text } => {
                let refusal = Refusal::from_reply(reply_code, &reply_text);
                match self.identity.account {
                    Account::Own => refusal,
                    Account::Service => refusal.speaking_of(&self.identity.user),
                }
            }
            Failure::LinkLost { .. } | Failure::TimedOut { .. } => failover::connection_lost(),
            Failure::Poisoned { queues } => {
                let names: Vec<_> = queues.iter().map(|queue| queue.as_str()).collect();
                Refusal::fatal(
                    "broker.poisoned",
                    "Unreadable message",
                    format!("a message in one of these queues can't be read: {}\n", names.join(", ")),
                    "Ask the broker's administrator to remove it.",
                )
                .closing(CloseCode::InternalError)
            }
            Failure::Unconfirmed => Refusal::fatal(
                "publish.unconfirmed",
                "Broker timeout",
                "RabbitMQ did not confirm the message in time; it may or may not have arrived\n",
                "Connect again and repeat it with the same amqp-message-id.",
            )
            .closing(CloseCode::InternalError),
        };
        let refusal = match ended {
            Some(id) => refusal.about_subscription(&id),
            None => refusal,
        };
        self.refuse(refusal.about_receipt(receipt.as_deref()));
    }

    /// The receipt that an ERROR about this has to name.
    fn receipt_of(&self, concerns: Concern) -> Option<&str> {
        match concerns {
            Concern::Publish(token) => self.publishing.receipt(token),
            Concern::Subscription(key) => self.subscriptions.receipt(key),
            Concern::Declare(_) => self.waiting_receipt(),
            Concern::Session => self.departure_receipt(),
        }
    }

    /// The receipt of the SEND that waits for its queue.
    fn waiting_receipt(&self) -> Option<&str> {
        match self.actions.front()? {
            Action::Publish(send) => send.receipt.as_deref(),
            Action::Frame(frame) => frame.header("receipt"),
            Action::Committed(_) | Action::Refuse(_) | Action::Settle(_) => None,
        }
    }

    fn handle_malformed(&mut self, error: &DecodeError) {
        let refusal = Refusal::fatal(
            "frame.malformed",
            "Malformed frame",
            format!("{error}\n"),
            "A frame is a command line, header lines, an empty line, the body and a NUL byte.",
        );
        self.refuse_in_turn(refusal.closing(CloseCode::InvalidFrame));
    }

    /// Carries out what may go now, in order.
    fn run_actions(&mut self) {
        while matches!(self.state, State::Open { .. }) {
            self.publish_waiting();
            match self.actions.pop_front() {
                None => return,
                Some(Action::Committed(number)) => {
                    self.commit_step(number, CommitStep::Done);
                }
                Some(Action::Publish(send)) => {
                    if let Err(waiting) = self.try_publish(send) {
                        self.actions.push_front(Action::Publish(waiting));
                        return;
                    }
                }
                Some(Action::Refuse(refusal)) if self.owes_receipts() => {
                    return self.actions.push_front(Action::Refuse(refusal));
                }
                Some(Action::Refuse(refusal)) => self.refuse(*refusal),
                Some(Action::Frame(frame)) => {
                    if !self.is_its_turn(&frame) {
                        self.actions.push_front(Action::Frame(frame));
                        return;
                    }
                    if let Err(refusal) = self.carry_out(&frame) {
                        // It takes its own turn, behind the receipts of what was before it.
                        let refusal = refusal.about_receipt(frame.header("receipt"));
                        match refusal.ends_session(self.config.compatibility) {
                            true => self.actions.push_front(Action::Refuse(Box::new(refusal))),
                            false => self.refuse(refusal),
                        }
                    }
                }
                // What a COMMIT acknowledges is kept until what it publishes has gone.
                Some(settle @ Action::Settle(_))
                    if self.publishing.has_waiting() || self.subscriptions.has_stopping() =>
                {
                    return self.actions.push_front(settle);
                }
                // Checked at COMMIT: it can only be gone because an earlier one of the same COMMIT covered it.
                Some(Action::Settle(settle)) => self.settle(&settle).unwrap_or_default(),
            }
        }
    }

    /// The destination of a frame, parsed.
    fn destination(&self, frame: &Frame, command: &str) -> Result<Destination, Refusal> {
        let text = frame.header("destination").ok_or_else(|| {
            Refusal::soft(
                "frame.header_missing",
                "Missing destination",
                format!("\"{command}\" must include a 'destination' header\n"),
                "",
            )
        })?;
        Destination::parse(text, self.config.destination_decoding)
    }

    fn queue_rules(&self) -> QueueRules {
        QueueRules { compatibility: self.config.compatibility, era: self.era }
    }

    fn next_queue_name(&mut self) -> ShortText {
        self.queue_names.0 += 1;
        queue::transient_name(&self.queue_names.1, self.queue_names.0)
    }

    fn agreed_version(&self) -> Version {
        self.version.unwrap_or(Version::V1_0)
    }

    fn is_strict(&self) -> bool {
        self.config.compatibility == Compatibility::Strict
    }

    fn has_pending_consumer_work(&self) -> bool {
        self.subscriptions.has_pending()
    }

    fn command(&mut self, command: BrokerCommand) {
        self.outputs.push_back(Output::Command(command));
    }

    fn send_frame(&mut self, frame: Frame) {
        self.stats.frames_sent += 1;
        self.liveness.sent(self.now);
        self.outputs.push_back(Output::Frame(frame));
    }

    fn receipt_for(&mut self, frame: &Frame) {
        if let Some(receipt) = frame.header("receipt") {
            self.receipt(receipt);
        }
    }

    fn receipt(&mut self, id: &str) {
        let mut frame = Frame::new(Command::Receipt);
        frame.headers.push("receipt-id", id);
        self.send_frame(frame);
    }

    /// The one way to an ERROR frame, and to the end where the refusal ends the session.
    fn refuse(&mut self, refusal: Refusal) {
        let compatibility = self.config.compatibility;
        self.send_frame(refusal.to_frame(compatibility));
        if refusal.ends_session(compatibility) {
            self.end(refusal.to_close());
        }
    }

    fn end(&mut self, close: Close) {
        if !matches!(self.state, State::Ended) || self.outputs.back() != Some(&Output::Close(close.clone())) {
            self.state = State::Ended;
            self.outputs.push_back(Output::Close(close));
        }
    }
}
