//! SEND: from frame to publish, the order in which publishes may go out, and the receipts that wait for their confirms.
//!
//! A publish waits while a declaration or subscription of this session is under way (it uses another AMQP connection and
//! would overtake it), while its queue is being declared, and while as much is unconfirmed as the limits allow. While the
//! publish side is lost, what the limits allow waits among the unconfirmed, so that the client's other frames are read.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::Session;
use super::amqp::{Properties, QueueDeclaration, ShortText};
use super::boolean::flag;
use super::command::{BrokerCommand, DeclareToken, Outgoing, Publish, PublishToken};
use super::config::{Compatibility, Replay, SessionConfig};
use super::destination::Destination;
use super::failover::connection_lost;
use super::identity::Account;
use super::properties;
use super::queue::{self, On, Purpose};
use super::refusal::{CloseCode, Refusal};
use super::retained::{self, MAP_ENTRY_BYTES};
use super::rules::Demand;
use super::transaction::{CommitNumber, CommitStep};
use crate::stomp::Frame;

/// Names of queues that this session has declared. When full it is emptied, which costs a declaration each.
const DECLARED_QUEUES_MAX: usize = 1024;

/// What a SEND takes on the broker side until it is confirmed, beside the message that both share; and what the relay still
/// adds to it, a message id or the name of a reply queue.
const BROKER_BYTES: usize = 768;

/// A SEND that has been checked and waits for its turn, or for its confirm.
#[derive(Debug)]
pub(super) struct Prepared {
    /// What it counts towards `transaction_bytes_max` and `unconfirmed_bytes_max`: what it holds, from the first to the last.
    pub(super) bytes: usize,
    /// The COMMIT that released it.
    pub(super) commit: Option<CommitNumber>,
    /// Declared before the first publish to it in a session.
    pub(super) declare: Option<QueueDeclaration>,
    /// What rules judge of a SEND in a transaction.
    pub(super) demand: Option<Box<Demand>>,
    /// As the client wrote it; empty without `demand`.
    pub(super) destination: String,
    pub(super) message: Arc<Outgoing>,
    pub(super) receipt: Option<String>,
    /// `/temp-queue/NAME` of `reply-to`.
    pub(super) reply_queue: Option<String>,
    /// Whether the client is told when the message does not arrive: it asked for a receipt or for `mandatory`.
    pub(super) tell: bool,
    /// Since when its queue is known to be away.
    pub(super) waits_since: Option<Instant>,
}

impl Prepared {
    /// With what it holds.
    fn measured(self) -> Prepared {
        let bytes = retained::allocation(size_of::<Prepared>())
            + 2 * size_of::<Unconfirmed>()
            + BROKER_BYTES
            + retained::outgoing(&self.message)
            + retained::string(&self.destination)
            + retained::maybe_string(self.receipt.as_ref())
            + retained::maybe_string(self.reply_queue.as_ref())
            + self.declare.as_ref().map_or(0, retained::declaration)
            + self.demand.as_ref().map_or(0, |demand| retained::demand(demand));
        Prepared { bytes, ..self }
    }
}

/// A publish that the broker has not answered yet.
#[derive(Debug)]
struct Unconfirmed {
    bytes: usize,
    /// Counts the SENDs of the session, and stays the same when this one is published again.
    number: u64,
    send: Box<Prepared>,
    since: Instant,
    /// None while it waits for a publish side.
    token: Option<PublishToken>,
}

#[derive(Debug, Default)]
pub(super) struct Publishing {
    declared: BTreeSet<ShortText>,
    declared_bytes: usize,
    /// The declaration that the first waiting publish needs.
    declaring: Option<(DeclareToken, ShortText)>,
    next_declare: u64,
    next_number: u64,
    next_publish: u64,
    unconfirmed: VecDeque<Unconfirmed>,
    unconfirmed_bytes: usize,
    /// How many of the unconfirmed wait for a publish side: the youngest.
    waiting: usize,
}

impl Publishing {
    /// So that the queue is declared again when it is next used: its last consumer here is gone, and it may be too.
    pub(super) fn forget_queue(&mut self, name: &ShortText) {
        if self.declared.remove(name) {
            self.declared_bytes -= declared_bytes(name);
        }
    }

    pub(super) fn remember_queue(&mut self, name: ShortText) {
        if self.declared.len() >= DECLARED_QUEUES_MAX {
            self.forget_queues();
        }
        let bytes = declared_bytes(&name);
        if self.declared.insert(name) {
            self.declared_bytes += bytes;
        }
    }

    fn forget_queues(&mut self) {
        self.declared.clear();
        self.declared_bytes = 0;
    }

    /// What is held of SENDs without a confirm, and of the queues that are known.
    pub(super) fn retained_bytes(&self) -> usize {
        self.unconfirmed_bytes + self.declared_bytes
    }

    pub(super) fn is_declared(&self, name: &ShortText) -> bool {
        self.declared.contains(name)
    }

    /// The receipt of an unconfirmed SEND, for an ERROR that concerns it.
    pub(super) fn receipt(&self, token: PublishToken) -> Option<&str> {
        self.unconfirmed.iter().find(|entry| entry.token == Some(token))?.send.receipt.as_deref()
    }

    /// A SEND whose queue is away waits since then, or since before.
    pub(super) fn wait_for_queue(&mut self, token: PublishToken, now: Instant) -> Option<Instant> {
        let entry = self.unconfirmed.iter_mut().find(|entry| entry.token == Some(token))?;
        Some(*entry.send.waits_since.get_or_insert(now))
    }

    pub(super) fn has_unconfirmed(&self) -> bool {
        !self.unconfirmed.is_empty()
    }

    /// Whether SENDs wait for a publish side that was lost.
    pub(super) fn has_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// The consume side is gone, and with it may be the queues.
    pub(super) fn lose_queues(&mut self) {
        self.forget_queues();
        self.declaring = None;
    }

    pub(super) fn unconfirmed_count(&self) -> usize {
        self.unconfirmed.len()
    }

    pub(super) fn unconfirmed_receipts(&self) -> impl Iterator<Item = &str> {
        self.unconfirmed.iter().filter_map(|entry| entry.send.receipt.as_deref())
    }

    /// The number of the oldest SEND without an answer.
    pub(super) fn first_unconfirmed(&self) -> Option<u64> {
        self.unconfirmed.front().map(|entry| entry.number)
    }

    pub(super) fn last_unconfirmed(&self) -> Option<u64> {
        self.unconfirmed.back().map(|entry| entry.number)
    }

    /// Of the oldest unconfirmed SEND that has one.
    pub(super) fn first_receipt(&self) -> Option<&str> {
        self.unconfirmed.iter().find_map(|entry| entry.send.receipt.as_deref())
    }

    fn take(&mut self, token: PublishToken) -> Option<Unconfirmed> {
        let index = self.unconfirmed.iter().position(|entry| entry.token == Some(token))?;
        let entry = self.unconfirmed.remove(index)?;
        self.unconfirmed_bytes -= entry.bytes;
        Some(entry)
    }
}

impl Session {
    /// Checks a SEND completely, so that nothing of it can be wrong later, when it is a transaction's turn. Takes its body.
    pub(super) fn prepare_send(&mut self, frame: &mut Frame) -> Result<Prepared, Refusal> {
        let body = std::mem::take(&mut frame.body);
        let (frame, headers) = (&*frame, &frame.headers);
        let destination = self.destination(frame, "SEND")?;
        let Some((exchange, routing_key)) = destination.publish_address(&self.config.default_topic_exchange) else {
            return Err(not_for(headers.get("destination").unwrap_or_default(), "SEND"));
        };
        let access = self.judge_send(frame, &destination)?;
        let destination = access.limit(destination);
        let demand = access.demand.filter(|_| headers.contains("transaction"));
        let mut properties = properties::from_send(headers, &self.config)?;
        if properties.user_id.is_some() && self.identity.account == Account::Service {
            return Err(foreign_user_id());
        }
        let receipt = frame.header("receipt").map(str::to_owned);
        let reply_queue = self.read_reply_to(frame, &mut properties)?;
        let declare = match &destination {
            Destination::Queue(name) => {
                Some(queue::declaration(name.clone(), Purpose::Queue, On::Send, headers, self.queue_rules())?)
            }
            _ => None,
        };
        let asked = flag(headers, "mandatory")?.unwrap_or(false);
        let mandatory = asked || (receipt.is_some() && destination.is_one_queue() && self.is_strict());
        let prepared = Prepared {
            bytes: 0,
            commit: None,
            declare,
            destination: demand.as_ref().and(headers.get("destination")).unwrap_or_default().to_owned(),
            demand,
            message: Arc::new(Outgoing { body, exchange, mandatory, properties, routing_key }),
            tell: asked || receipt.is_some(),
            receipt,
            reply_queue,
            waits_since: None,
        };
        Ok(prepared.measured())
    }

    /// `reply-to`: a temporary queue that has yet to be made, or a value that goes through unchanged.
    fn read_reply_to(&self, frame: &Frame, properties: &mut Properties) -> Result<Option<String>, Refusal> {
        let Some(value) = frame.header("reply-to") else { return Ok(None) };
        let malformed =
            |_| Refusal::bad_header("reply-to", "expected a destination, /temp-queue/<name> or a queue name");
        match Destination::parse(value, self.config.destination_decoding).map_err(malformed)? {
            Destination::TempQueue(name) if self.has_room_for_reply_queue(&name) => Ok(Some(name)),
            Destination::TempQueue(_) => Err(self.too_many_subscriptions()),
            _ => {
                properties.reply_to = Some(properties::short("reply-to", value)?);
                Ok(None)
            }
        }
    }

    /// Lets the publish go, or says what it waits for.
    pub(super) fn try_publish(&mut self, mut send: Box<Prepared>) -> Result<(), Box<Prepared>> {
        if self.has_pending_consumer_work() || self.publishing.declaring.is_some() || self.window_is_full(&send) {
            return Err(send);
        }
        if let Some(queue) = &send.declare
            && !self.publishing.is_declared(&queue.name)
        {
            let queue = queue.clone();
            self.declare(queue);
            return Err(send);
        }
        if let Some(name) = send.reply_queue.take() {
            match self.reply_queue(&name) {
                Some(queue) => Arc::make_mut(&mut send.message).properties.reply_to = Some(queue),
                // There was room when the SEND came, but others of its transaction have taken it.
                None if !self.has_room_for_reply_queue(&name) => {
                    self.drop_send(*send);
                    return Ok(());
                }
                None => {
                    self.subscribe_reply_queue(&name);
                    send.reply_queue = Some(name);
                    return Err(send);
                }
            }
        }
        self.publish(send);
        Ok(())
    }

    fn drop_send(&mut self, send: Prepared) {
        let commit = send.commit.and_then(|commit| self.commit_step(commit, CommitStep::Failed));
        let receipt = send.receipt.or(commit);
        self.refuse(self.too_many_subscriptions().about_receipt(receipt.as_deref()));
    }

    fn window_is_full(&self, send: &Prepared) -> bool {
        let publishing = &self.publishing;
        let bytes = publishing.unconfirmed_bytes + self.transactions.commit_bytes() + send.bytes;
        publishing.unconfirmed.len() >= self.config.unconfirmed_messages_max
            || (bytes > self.config.unconfirmed_bytes_max && !publishing.unconfirmed.is_empty())
    }

    fn publish(&mut self, send: Box<Prepared>) {
        let bytes = send.bytes;
        self.publishing.unconfirmed_bytes += bytes;
        let number = self.publishing.next_number;
        self.publishing.next_number += 1;
        self.publishing.unconfirmed.push_back(Unconfirmed { bytes, number, send, since: self.now, token: None });
        if self.publishing.has_waiting() || self.outages.publish.is_lost() {
            self.publishing.waiting += 1;
        } else {
            self.hand_over(self.publishing.unconfirmed.len() - 1);
        }
    }

    /// Gives an unconfirmed SEND to the broker, another time perhaps.
    fn hand_over(&mut self, at: usize) {
        let token = PublishToken(self.publishing.next_publish);
        self.publishing.next_publish += 1;
        let Some(Unconfirmed { send, token: given, .. }) = self.publishing.unconfirmed.get_mut(at) else { return };
        *given = Some(token);
        let repeatable = is_repeated(&self.config, send);
        // Consumers recognise a message that had to be published twice by its id, and a returned one is found by it.
        if send.message.properties.message_id.is_none() && needs_message_id(&self.config, send) {
            let id = ShortText::new([&*self.id, "-", itoa::Buffer::new().format(token.0)].concat()).ok();
            Arc::make_mut(&mut send.message).properties.message_id = id;
        }
        let message = send.message.clone();
        self.stats.messages_published += 1;
        self.command(BrokerCommand::Publish(Publish { message, repeatable, token }));
    }

    /// The publish side is gone: what is unconfirmed waits for another one, in its order. What may not be repeated is given up;
    /// the first of it that the client wants to know of is the answer.
    pub(super) fn take_back_unconfirmed(&mut self) -> Option<Refusal> {
        let mut refusal = None;
        for mut entry in std::mem::take(&mut self.publishing.unconfirmed) {
            let given = entry.token.take().is_some();
            if !given || is_repeated(&self.config, &entry.send) {
                self.stats.messages_repeated += u64::from(given);
                self.publishing.unconfirmed.push_back(entry);
                continue;
            }
            self.publishing.unconfirmed_bytes -= entry.bytes;
            if entry.send.tell || entry.send.commit.is_some() {
                refusal.get_or_insert_with(|| connection_lost().about_receipt(entry.send.receipt.as_deref()));
            } else {
                self.doubts.lose_send();
            }
        }
        self.publishing.waiting = self.publishing.unconfirmed.len();
        refusal
    }

    /// Hands over what waits for its publish side, oldest first, as far as it may go now.
    pub(super) fn publish_waiting(&mut self) {
        while self.publishing.has_waiting() && self.may_publish() {
            let publishing = &mut self.publishing;
            let at = publishing.unconfirmed.len() - publishing.waiting;
            let Some(entry) = publishing.unconfirmed.get(at) else { return };
            if let Some(queue) = entry.send.declare.clone().filter(|queue| !self.publishing.is_declared(&queue.name)) {
                return self.declare(queue);
            }
            self.publishing.waiting -= 1;
            self.hand_over(at);
        }
    }

    /// Nothing is under way that publishes would overtake, and there is somebody to take them.
    fn may_publish(&self) -> bool {
        let busy = self.has_pending_consumer_work() || self.publishing.declaring.is_some();
        !busy && !self.outages.publish.is_lost()
    }

    fn declare(&mut self, queue: QueueDeclaration) {
        let token = DeclareToken(self.publishing.next_declare);
        self.publishing.next_declare += 1;
        self.publishing.declaring = Some((token, queue.name.clone()));
        self.command(BrokerCommand::Declare { token, queue });
    }

    pub(super) fn handle_declared(&mut self, token: DeclareToken) {
        if let Some((_, name)) = self.publishing.declaring.take_if(|(expected, _)| *expected == token) {
            self.publishing.remember_queue(name);
        }
    }

    pub(super) fn handle_confirmed(&mut self, token: PublishToken) {
        let Some(entry) = self.publishing.take(token) else { return };
        self.stats.messages_confirmed += 1;
        self.end_publish_outage();
        self.confirm_time = Some(self.now.saturating_duration_since(entry.since));
        if let Some(receipt) = &entry.send.receipt {
            self.receipt(receipt);
        }
        self.release_held();
        if let Some(commit) = entry.send.commit {
            self.commit_step(commit, CommitStep::Done);
        }
    }

    pub(super) fn handle_rejected(&mut self, token: PublishToken) {
        let refusal = Refusal::soft(
            "publish.rejected",
            "Message rejected",
            "RabbitMQ refused the message; a queue may have reached its length limit\n",
            "Send it again later.",
        )
        .closing(CloseCode::TryAgainLater);
        self.handle_unstored(token, refusal);
    }

    pub(super) fn handle_returned(&mut self, token: PublishToken, reply_code: u16, reply_text: &str) {
        let refusal = Refusal::soft(
            "publish.unroutable",
            "Message returned",
            format!("RabbitMQ returned the message: {reply_code} {reply_text}\n"),
            "No queue is reached by this destination; subscribe first, or correct it.",
        )
        .closing(CloseCode::PolicyViolation);
        self.handle_unstored(token, refusal);
    }

    /// No RECEIPT, and an ERROR that names it. A SEND without receipt whose client did not ask for `mandatory` fails in
    /// silence, as STOMP has it.
    fn handle_unstored(&mut self, token: PublishToken, refusal: Refusal) {
        let Some(entry) = self.publishing.take(token) else { return };
        self.end_publish_outage();
        self.stats.messages_rejected += 1;
        let send = entry.send;
        let commit = send.commit.and_then(|commit| self.commit_step(commit, CommitStep::Failed));
        if !send.tell && commit.is_none() {
            self.doubts.lose_send();
            return;
        }
        let receipt = send.receipt.or(commit);
        self.refuse(refusal.about_receipt(receipt.as_deref()));
    }
}

/// What the name of a queue that is known takes.
fn declared_bytes(name: &ShortText) -> usize {
    MAP_ENTRY_BYTES + size_of::<ShortText>() + retained::short_text(name)
}

/// In compatibility mode a SEND without receipt stays as the plugin would have published it.
fn needs_message_id(config: &SessionConfig, send: &Prepared) -> bool {
    let shown = config.compatibility == Compatibility::Strict || send.receipt.is_some();
    send.message.mandatory || (shown && is_repeated(config, send))
}

fn is_repeated(config: &SessionConfig, send: &Prepared) -> bool {
    match config.replay {
        Replay::All => true,
        Replay::None => false,
        Replay::Receipted => send.tell || send.commit.is_some(),
    }
}

pub(super) fn not_for(destination: &str, command: &str) -> Refusal {
    Refusal::soft(
        "destination.invalid",
        "Invalid destination",
        format!("'{destination}' is not a valid destination for '{command}'\n"),
        "/temp-queue is for the reply-to header of a SEND.",
    )
}

/// RabbitMQ compares it with the account, which is none of the client's business.
fn foreign_user_id() -> Refusal {
    Refusal::soft(
        "frame.header",
        "Invalid header",
        "'user-id' is for clients that RabbitMQ knows by their own name, and this one works as an account of the relay's\n",
        "Leave it out; a header of another name can say who sent the message.",
    )
}
