//! Plays bytes as a client, a broker, a socket and a clock around one session, and checks what must hold whatever happens.
//!
//! The broker here is as correct as the real one has to be: it answers what it was told, in order, and says nothing once the
//! lease is gone. Also included by the fuzz target `session`, so: std, bytes and the crate under test only.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stomp_relay::rate::Rate;
use stomp_relay::session::amqp::{FieldValue, Properties, ShortText};
use stomp_relay::session::command::{
    BrokerCommand, Credentials, DeclareToken, DeliveryTag, Publish, PublishToken, Settlement, Side, SubscribedQueue,
    SubscriptionKey,
};
use stomp_relay::session::config::{Compatibility, Replay, SessionConfig};
use stomp_relay::session::event::{BrokerEvent, BrokerInfo, Concern, Delivery, Failure, LoginFailure, Message};
use stomp_relay::session::identity::Identity;
use stomp_relay::session::io::{Input, LoggedIn, Output};
use stomp_relay::session::refusal::CloseCode;
use stomp_relay::session::rules::{Audience, Effect, Grants, Pattern, Rule, RuleSet};
use stomp_relay::session::{Locality, Session, SessionSeed, Stats};
use stomp_relay::stomp::{Command, DecodeError, Frame, Version};

const DESTINATIONS: [&str; 8] = [
    "/queue/a",
    "/queue/b",
    "/topic/a",
    "/exchange/amq.direct/k",
    "/amq/queue/c",
    "/temp-queue/a",
    "/nonsense",
    "/queue/amq.rabbitmq.reply-to",
];

/// Any bytes are a play; it ends with the session, at the latest by a DISCONNECT behind the last byte.
pub fn play(bytes: &[u8]) -> Played {
    let mut bytes = Bytes(bytes);
    let mut stage = Stage::open(bytes.next());
    while !bytes.0.is_empty() {
        stage.step(&mut bytes);
    }
    stage.finish();
    let Client { commits, errors, receipts_given, .. } = stage.client;
    Played { commits: commits.len(), errors, receipts: receipts_given.len(), stats: stage.session.stats() }
}

/// How far a play came.
pub struct Played {
    pub commits: usize,
    pub errors: usize,
    pub receipts: usize,
    pub stats: Stats,
}

fn rules() -> RuleSet {
    let rule = |patterns: &[&str]| {
        let patterns: Vec<_> = patterns.iter().filter_map(|pattern| Pattern::parse(pattern).ok()).collect();
        Rule {
            audience: Audience::default(),
            effect: Effect::Allow,
            grants: Grants { subscriptions_max: Some(4), ..Grants::default() },
            line: None,
            name: None,
            send: patterns.clone(),
            subscribe: patterns,
        }
    };
    RuleSet::new(vec![rule(&["/queue/a", "/topic/**", "/queue/c"])])
}

/// Choices, and zero for ever behind the last.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// True once in `of` times.
    fn rarely(&mut self, of: u8) -> bool {
        self.next() % of == of - 1
    }
}

/// What the consume channel has yet to answer.
enum Pending {
    Declare(DeclareToken),
    Subscribe(SubscriptionKey),
    Unsubscribe(SubscriptionKey),
}

struct Published {
    mandatory: bool,
    message_id: Option<ShortText>,
    /// Which SEND it was.
    number: u64,
    token: PublishToken,
}

#[derive(Default)]
struct Broker {
    active: HashSet<SubscriptionKey>,
    closing: bool,
    gone: bool,
    login: bool,
    /// The sides of the lease that are lost, and others were asked for.
    lost: Vec<Side>,
    next_tag: u64,
    outages: usize,
    pending: VecDeque<Pending>,
    published: VecDeque<Published>,
    /// Message ids of SENDs that were published before and must be again, under the same ids.
    repeated: HashMap<u64, Option<ShortText>>,
}

impl Broker {
    fn has_lost(&self, side: Side) -> bool {
        self.lost.contains(&side)
    }
}

/// What the client knows and what it may expect.
#[derive(Default)]
struct Client {
    /// The `ack` or `message-id` of every MESSAGE in a client mode.
    acks: Vec<Unsettled>,
    /// Receipts by COMMIT, with the SENDs that must be confirmed first.
    commits: HashMap<String, Vec<u64>>,
    confirmed: HashSet<u64>,
    connected: bool,
    errors: usize,
    /// Of subscriptions, the newest last.
    ids: Vec<u64>,
    next: u64,
    /// SENDs in the order in which they must be published.
    order: VecDeque<u64>,
    receipts_asked: HashMap<String, usize>,
    receipts_given: HashMap<String, usize>,
    /// SENDs whose client has to be told what became of them.
    told: HashSet<u64>,
    transactions: HashMap<String, Vec<u64>>,
}

/// A MESSAGE as the client keeps it, to acknowledge it later.
struct Unsettled {
    ack: String,
    subscription: Option<String>,
}

#[derive(Default)]
struct Deliveries {
    /// How the SUBSCRIBE wants to acknowledge that was sent last.
    asked: Option<Automatic>,
    /// Of automatic subscriptions, and not yet flushed.
    automatic: HashSet<DeliveryTag>,
    current: Option<SubscriptionKey>,
    /// The delivery under way, if it is of a stream.
    of_stream: Option<DeliveryTag>,
    /// Neither shown nor settled, or shown and not settled.
    open: HashSet<DeliveryTag>,
    modes: HashMap<SubscriptionKey, Automatic>,
}

#[derive(Clone, Copy, PartialEq)]
enum Automatic {
    No,
    Yes,
}

struct Stage {
    broker: Broker,
    client: Client,
    /// The Close that ended the session.
    closed: Option<CloseCode>,
    /// Of which the operator was told, and the client not yet.
    denials: usize,
    config: SessionConfig,
    deliveries: Deliveries,
    now: Instant,
    session: Session,
}

impl Stage {
    fn open(choice: u8) -> Stage {
        let compatibility = if choice & 1 == 0 { Compatibility::Rabbitmq } else { Compatibility::Strict };
        let config = SessionConfig {
            compatibility,
            rules: if choice & 16 == 0 { Arc::default() } else { Arc::new(rules()) },
            send_rate: match choice & 32 {
                0 => Rate { per_second: 2, burst: 3 },
                _ => Rate::UNLIMITED,
            },
            subscriptions_max: 6,
            transaction_bytes_max: 16_000,
            transaction_frames_max: 8,
            transactions_max: 2,
            unconfirmed_bytes_max: 6000,
            unconfirmed_messages_max: 3,
            replay: [Replay::All, Replay::All, Replay::Receipted, Replay::None][usize::from(choice >> 2) % 4],
            default_credentials: (choice & 2 == 0)
                .then(|| Credentials { login: "user".to_owned(), passcode: "secret".to_owned() }),
            ..SessionConfig::default()
        };
        let now = Instant::now();
        let seed = SessionSeed { id: "session-s".to_owned(), queue_names: [7; 16] };
        let session = Session::new(Arc::new(config.clone()), seed, Locality::Local, now);
        let (broker, client, deliveries) = (Broker::default(), Client::default(), Deliveries::default());
        Stage { broker, client, closed: None, config, deliveries, denials: 0, now, session }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.next() % 16 {
            0..=6 => self.client_speaks(bytes),
            7..=11 => self.broker_speaks(bytes),
            12 => self.time_passes(bytes),
            13 | 14 => self.input(Input::Flushed),
            _ => self.rare(bytes),
        }
    }

    /// What ends most sessions, so that it must not come often.
    fn rare(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.next() {
            0..=40 => self.input(Input::Received),
            41..=80 => self.input(Input::Timeout),
            81 => {
                let until = self.now + Duration::from_secs(u64::from(bytes.next() % 60));
                self.input(Input::Drain { until, unread: usize::from(bytes.next() / 200) });
            }
            82 => self.input(Input::TransportClosed),
            83 => self.input(Input::WriteStalled),
            84 => self.input(Input::Malformed(DecodeError::ContentLengthNegative)),
            85 => self.input(Input::Unreadable { close: CloseCode::TooBig, reason: "large".to_owned() }),
            86 => self.fail(Concern::Session, bytes.next()),
            141..=200 if self.client.connected => self.replace_rules(bytes),
            87..=140 => self.lose_lease(bytes.next()),
            _ => {}
        }
    }

    /// Without rules everything is allowed; with them, subscriptions and transactions may lose their ground.
    fn replace_rules(&mut self, bytes: &mut Bytes<'_>) {
        let rules = if bytes.rarely(2) { RuleSet::default() } else { rules() };
        self.input(Input::RulesReplaced(Arc::new(rules)));
    }

    fn time_passes(&mut self, bytes: &mut Bytes<'_>) {
        // A client that says nothing for long is lost; most speak.
        let (longest, silent) = if bytes.rarely(16) { (250, true) } else { (3, false) };
        let end = self.now + Duration::from_millis(u64::from(bytes.next()) * longest);
        // As the driver does it: every deadline on the way is met.
        let mut turns = 0;
        while let Some(deadline) = self.session.poll_timeout().filter(|deadline| *deadline <= end) {
            self.now = self.now.max(deadline);
            self.input(Input::Timeout);
            turns += 1;
            assert!(turns < 10_000, "a busy loop: {:?}", self.session);
        }
        self.now = end;
        if !silent {
            self.input(Input::Received);
        }
    }

    fn client_speaks(&mut self, bytes: &mut Bytes<'_>) {
        if !self.session.wants_frames() {
            return;
        }
        if !self.client.connected {
            return self.connect(bytes);
        }
        match bytes.next() % 16 {
            0..=5 => self.send(bytes),
            6..=8 => self.subscribe(bytes),
            9 => self.unsubscribe(bytes),
            10 | 11 => self.settle(bytes),
            12 => self.begin(bytes),
            13 | 14 => self.commit_or_abort(bytes),
            _ => match bytes.next() {
                0..=2 => self.disconnect(),
                3 => self.frame(Frame::new(Command::Unknown("NONSENSE".into()))),
                4 => self.frame(Frame::new(Command::Connect)),
                _ => {}
            },
        }
    }

    fn connect(&mut self, bytes: &mut Bytes<'_>) {
        let mut frame = Frame::new(if bytes.rarely(2) { Command::Stomp } else { Command::Connect });
        let choice = bytes.next();
        if choice & 3 != 0 {
            frame.headers.push("accept-version", ["1.2", "1.1", "1.0,1.1,1.2"][usize::from(choice & 3) - 1]);
        }
        if choice & 4 != 0 {
            frame.headers.push("heart-beat", ["0,0", "1000,1000", "10,0", "0,5000"][usize::from(choice >> 6)]);
        }
        if choice & 56 != 0 {
            frame = frame.with_header("login", "user").with_header("passcode", "secret");
        }
        self.frame(frame);
    }

    /// A receipt header, most of the time one that is used once.
    fn ask(&mut self, frame: &mut Frame, kind: &str, bytes: &mut Bytes<'_>) -> String {
        let id = match bytes.next() {
            0..=120 => return String::new(),
            121..=135 => "same".to_owned(),
            _ => format!("{kind}{}", self.client.next),
        };
        frame.headers.push("receipt", &id);
        id
    }

    fn send(&mut self, bytes: &mut Bytes<'_>) {
        self.client.next += 1;
        let number = self.client.next;
        let choice = bytes.next();
        let known = if bytes.rarely(32) { 8 } else { 5 };
        let mut frame = Frame::new(Command::Send).with_header("destination", DESTINATIONS[usize::from(choice % known)]);
        let transaction = self.transaction(bytes);
        if let Some(name) = &transaction {
            frame.headers.push("transaction", name);
        }
        if choice & 32 != 0 {
            frame.headers.push("mandatory", "true");
        }
        if choice & 192 == 192 {
            frame.headers.push("reply-to", ["/temp-queue/r", "/temp-queue/s", "/queue/r"][usize::from(choice % 3)]);
        }
        let receipt = self.ask(&mut frame, "send-", bytes);
        if !receipt.is_empty() || choice & 32 != 0 {
            self.client.told.insert(number);
        }
        frame.body = format!("{number} {}", "b".repeat(usize::from(bytes.next()) * 4)).into();
        if transaction.is_none() {
            self.client.order.push_back(number);
        }
        match (self.refused(frame), transaction) {
            (true, _) => self.client.order.retain(|other| *other != number),
            (false, Some(name)) => self.client.transactions.entry(name).or_default().push(number),
            (false, None) => {}
        }
    }

    fn transaction(&mut self, bytes: &mut Bytes<'_>) -> Option<String> {
        let choice = bytes.next();
        let mut open: Vec<&String> = self.client.transactions.keys().collect();
        open.sort();
        match choice {
            0 => Some("unknown".to_owned()),
            1..=100 => open.get(usize::from(choice) % 2).map(|name| (*name).clone()),
            _ => None,
        }
    }

    fn subscribe(&mut self, bytes: &mut Bytes<'_>) {
        self.client.next += 1;
        if self.session.subscription_count() >= 4 && !bytes.rarely(16) {
            return;
        }
        let choice = bytes.next();
        let mut frame =
            Frame::new(Command::Subscribe).with_header("destination", DESTINATIONS[usize::from(choice % 5)]);
        // Some have none, some one that was used before.
        let id = if bytes.rarely(8) { u64::from(choice >> 6) } else { self.client.next };
        if !bytes.rarely(16) {
            frame.headers.push("id", &id.to_string());
        }
        frame.headers.push("ack", ["auto", "client", "client-individual"][usize::from(choice >> 3) % 3]);
        self.ask(&mut frame, "sub-", bytes);
        if !self.refused(frame) {
            self.client.ids.push(id);
        }
    }

    fn unsubscribe(&mut self, bytes: &mut Bytes<'_>) {
        self.client.next += 1;
        let choice = usize::from(bytes.next());
        let mut frame = Frame::new(Command::Unsubscribe);
        match self.client.ids.len() {
            _ if choice == 0 => frame.headers.push("destination", DESTINATIONS[0]),
            0 => return,
            some => frame.headers.push("id", &self.client.ids.remove(choice % some).to_string()),
        }
        self.ask(&mut frame, "uns-", bytes);
        self.frame(frame);
    }

    fn settle(&mut self, bytes: &mut Bytes<'_>) {
        self.client.next += 1;
        let choice = usize::from(bytes.next());
        let acks = &mut self.client.acks;
        let id = match (acks.len(), choice) {
            (0, 0) => "T_1@@session-s@@99".to_owned(),
            (0, _) => return,
            // Again, which is an error.
            (some, 0..=3) => acks[choice % some].ack.clone(),
            (some, _) => {
                let named = acks.remove(choice % some);
                // In case it was cumulative.
                let mut older = choice % some;
                acks.retain(|other| {
                    let kept = older == 0 || other.subscription != named.subscription;
                    older = older.saturating_sub(1);
                    kept
                });
                named.ack
            }
        };
        let command = if bytes.rarely(3) { Command::Nack } else { Command::Ack };
        let mut frame = Frame::new(command).with_header("id", &id).with_header("message-id", &id);
        if let Some(name) = self.transaction(bytes) {
            frame.headers.push("transaction", &name);
        }
        self.ask(&mut frame, "ack-", bytes);
        self.frame(frame);
    }

    fn begin(&mut self, bytes: &mut Bytes<'_>) {
        self.client.next += 1;
        let name = format!("t{}", bytes.next() % 8);
        let open = &self.client.transactions;
        if (open.len() >= 2 || open.contains_key(&name)) && !bytes.rarely(16) {
            return;
        }
        let mut frame = Frame::new(Command::Begin).with_header("transaction", &name);
        self.ask(&mut frame, "beg-", bytes);
        if !self.refused(frame) {
            let before = self.client.transactions.insert(name, Vec::new());
            // Its ERROR may come behind receipts that are due; until then nothing more is read.
            assert!(before.is_none() || !self.session.wants_frames(), "BEGIN of an open transaction");
        }
    }

    fn commit_or_abort(&mut self, bytes: &mut Bytes<'_>) {
        self.client.next += 1;
        let Some(name) = self.client.transactions.keys().min().cloned() else { return };
        let commit = !bytes.rarely(3);
        let mut frame = Frame::new(if commit { Command::Commit } else { Command::Abort });
        frame.headers.push("transaction", &name);
        let receipt = self.ask(&mut frame, "com-", bytes);
        let sends = self.client.transactions.remove(&name).unwrap_or_default();
        if commit {
            self.client.order.extend(&sends);
            self.client.told.extend(&sends);
            self.client.commits.insert(receipt, sends.clone());
        }
        if self.refused(frame) && commit {
            self.client.order.retain(|number| !sends.contains(number));
        }
    }

    fn disconnect(&mut self) {
        self.frame(Frame::new(Command::Disconnect).with_header("receipt", "bye"));
    }

    /// Whether the frame was answered by an ERROR.
    fn refused(&mut self, frame: Frame) -> bool {
        let errors = self.client.errors;
        self.frame(frame);
        self.client.errors > errors
    }

    fn frame(&mut self, frame: Frame) {
        assert!(self.session.wants_frames());
        if let Some(id) = frame.header("receipt") {
            *self.client.receipts_asked.entry(id.to_owned()).or_default() += 1;
        }
        // It may have to wait for its turn, and at most one frame does.
        let automatic = frame.header("ack").is_none_or(|mode| mode == "auto");
        self.deliveries.asked = (frame.command == Command::Subscribe && !automatic).then_some(Automatic::No);
        self.input(Input::Frame(frame));
    }

    fn broker_speaks(&mut self, bytes: &mut Bytes<'_>) {
        if self.broker.login {
            return self.answer_login(bytes.next());
        }
        if !self.broker.lost.is_empty() && self.closed.is_none() && bytes.rarely(2) {
            return self.answer_restore(bytes.next());
        }
        if self.broker.gone || !self.client.connected {
            return;
        }
        match bytes.next() % 16 {
            0..=5 => self.answer_command(bytes.next()),
            6..=9 => self.answer_publish(bytes.next()),
            10..=14 => self.deliver(bytes),
            _ => match bytes.next() {
                0..=60 => self.input(Input::Broker(BrokerEvent::Blocked)),
                61..=120 => self.input(Input::Broker(BrokerEvent::Unblocked)),
                121..=130 => self.cancel(bytes),
                _ => {}
            },
        }
    }

    fn answer_login(&mut self, choice: u8) {
        self.broker.login = false;
        let answer = match choice {
            0 => Err(LoginFailure::AccessRefused),
            1 => Err(LoginFailure::Unavailable { reason: "no node".to_owned() }),
            2 => Err(LoginFailure::VirtualHost { reply_text: "NOT_ALLOWED".to_owned() }),
            _ => Ok(LoggedIn {
                broker: BrokerInfo { version: ["3.10.8", "4.0.5", "4.3.0", ""][usize::from(choice % 4)].to_owned() },
                identity: Identity::of_login("guest"),
            }),
        };
        self.input(Input::Login(answer.map_err(Into::into)));
    }

    /// One side of the lease or both, in any order.
    fn lose_lease(&mut self, choice: u8) {
        let sides: &[Side] = match choice % 8 {
            0 => &[Side::Consume],
            1..=3 => &[Side::Publish],
            4 | 5 => &[Side::Consume, Side::Publish],
            _ => &[Side::Publish, Side::Consume],
        };
        for side in sides {
            self.lose_side(*side, choice / 8);
        }
    }

    /// What was under way there is void. The session lives on, and asks for another one.
    fn lose_side(&mut self, side: Side, choice: u8) {
        if self.broker.gone || self.broker.has_lost(side) || !self.client.connected || self.closed.is_some() {
            return;
        }
        // All SENDs of a session that leaves are answered, so there is nothing to come back for.
        let leaving = self.broker.closing || self.session.is_flushing();
        self.broker.closing = false;
        let mut ends = false;
        match side {
            Side::Consume => {
                self.broker.pending.clear();
                self.broker.active.clear();
                self.deliveries.open.clear();
                self.deliveries.automatic.clear();
                self.broker.outages += 1;
            }
            Side::Publish => {
                let published = std::mem::take(&mut self.broker.published);
                ends = self.config.replay == Replay::None
                    && published.iter().any(|send| self.client.told.contains(&send.number));
                let repeated = published.into_iter().rev().filter(|send| self.is_repeated(send.number));
                for published in repeated.collect::<Vec<_>>() {
                    self.repeat(published);
                }
            }
        }
        let failure = match choice % 2 {
            0 => Failure::LinkLost { reason: "cut".to_owned() },
            _ => Failure::TimedOut { step: "consume" },
        };
        let errors = self.client.errors;
        self.input(Input::Broker(BrokerEvent::Failed { failure, concerns: Concern::Session, side: Some(side) }));
        // A frame that waited for a SEND no longer does, and may be wrong.
        let told = self.client.errors > errors;
        assert!(self.closed.is_some() || !ends, "the end of a side ends what must not be repeated");
        assert!(self.closed.is_none() || ends || leaving || told, "the end of a side ends nothing else");
        assert!(told || self.broker.has_lost(side) == self.closed.is_none(), "another one is asked for");
    }

    fn is_repeated(&self, number: u64) -> bool {
        match self.config.replay {
            Replay::All => true,
            Replay::None => false,
            Replay::Receipted => self.client.told.contains(&number),
        }
    }

    fn repeat(&mut self, published: Published) {
        self.client.order.push_front(published.number);
        self.broker.repeated.insert(published.number, published.message_id);
    }

    fn answer_restore(&mut self, choice: u8) {
        let answer = match choice {
            0 => Err(LoginFailure::AccessRefused),
            1..=60 => Err(LoginFailure::Unavailable { reason: "no node".to_owned() }),
            _ => Ok(BrokerInfo { version: "4.0.5".to_owned() }),
        };
        let side = self.broker.lost[usize::from(choice) % self.broker.lost.len()];
        self.broker.lost.retain(|lost| *lost != side);
        let errors = self.client.errors;
        let (had, refused) = (answer.is_ok(), choice == 0);
        // Whoever is leaving needs no other one.
        let leaving = self.broker.closing || self.session.is_flushing();
        self.input(Input::Broker(BrokerEvent::Restored { side, result: answer }));
        assert_eq!(
            self.broker.has_lost(side),
            !had && !refused && !leaving,
            "another attempt follows where there is hope"
        );
        // A frame that waited for its turn may be wrong.
        let told = self.client.errors > errors;
        assert!(self.closed.is_some() == refused || told, "a session ends when it is refused");
    }

    fn answer_command(&mut self, choice: u8) {
        let Some(pending) = self.broker.pending.front() else { return self.close() };
        if choice == 0 {
            let concerns = match pending {
                Pending::Declare(token) => Concern::Declare(*token),
                Pending::Subscribe(key) | Pending::Unsubscribe(key) => Concern::Subscription(*key),
            };
            return self.fail(concerns, choice);
        }
        let Some(pending) = self.broker.pending.pop_front() else { return };
        let event = match pending {
            Pending::Declare(token) => BrokerEvent::Declared { token, queue: ShortText::lit("a") },
            Pending::Subscribe(key) => {
                self.broker.active.insert(key);
                BrokerEvent::Subscribed { key, queue: ShortText::lit("a") }
            }
            Pending::Unsubscribe(key) => {
                self.broker.active.remove(&key);
                BrokerEvent::Unsubscribed { key }
            }
        };
        self.input(Input::Broker(event));
    }

    /// Closed comes behind all other answers.
    fn close(&mut self) {
        if self.broker.closing && self.broker.pending.is_empty() && self.broker.published.is_empty() {
            self.broker.gone = true;
            self.input(Input::Broker(BrokerEvent::Closed));
            assert!(self.closed.is_some(), "the broker has finished, and the session goes on");
        }
    }

    fn answer_publish(&mut self, choice: u8) {
        let Some(published) = self.broker.published.front() else { return };
        let (mandatory, token, number) = (published.mandatory, published.token, published.number);
        match choice {
            0 => return self.fail(Concern::Publish(token), choice),
            _ => self.broker.published.pop_front(),
        };
        let event = match choice {
            1..=3 => BrokerEvent::Rejected { token },
            4..=9 if mandatory => BrokerEvent::Returned { token, reply_code: 312, reply_text: "NO_ROUTE".to_owned() },
            _ => {
                self.client.confirmed.insert(number);
                BrokerEvent::Confirmed { token }
            }
        };
        self.input(Input::Broker(event));
    }

    fn deliver(&mut self, bytes: &mut Bytes<'_>) {
        let Some(key) = self.active(bytes.next()) else { return };
        self.broker.next_tag += 1;
        let tag = DeliveryTag(self.broker.next_tag);
        let mut properties = Properties::default();
        let of_stream = bytes.rarely(16);
        if of_stream {
            properties.headers.push((ShortText::lit("x-stream-offset"), FieldValue::Integer(5)));
        }
        // One that crosses an UNSUBSCRIBE is settled at once, and a stream takes nothing back.
        self.deliveries.of_stream = of_stream.then_some(tag);
        self.deliveries.open.insert(tag);
        self.deliveries.current = Some(key);
        let delivery = Delivery {
            key,
            message: Arc::new(Message {
                body: "delivered".into(),
                exchange: ShortText::default(),
                properties,
                routing_key: ShortText::lit("a"),
            }),
            redelivered: false,
            tag: Some(tag),
        };
        if self.deliveries.modes[&key] == Automatic::Yes {
            self.deliveries.automatic.insert(tag);
        }
        let shown = self.session.stats().messages_delivered;
        self.input(Input::Broker(BrokerEvent::Delivery(delivery)));
        self.deliveries.of_stream = None;
        if self.session.stats().messages_delivered == shown {
            self.deliveries.automatic.remove(&tag);
        }
    }

    fn cancel(&mut self, bytes: &mut Bytes<'_>) {
        let Some(key) = self.active(bytes.next()) else { return };
        self.broker.active.remove(&key);
        self.input(Input::Broker(BrokerEvent::SubscriptionCancelled { key }));
    }

    fn active(&self, choice: u8) -> Option<SubscriptionKey> {
        let mut active: Vec<SubscriptionKey> = self.broker.active.iter().copied().collect();
        active.sort();
        active.get(usize::from(choice) % active.len().max(1)).copied()
    }

    fn fail(&mut self, concerns: Concern, choice: u8) {
        if self.broker.gone || !self.client.connected {
            return;
        }
        self.broker.gone = true;
        let failure = match choice % 3 {
            0 => Failure::Refused { reply_code: 404, reply_text: "NOT_FOUND - no queue".to_owned() },
            1 => Failure::Unconfirmed,
            _ => Failure::Poisoned { queues: Vec::new() },
        };
        let side = Some(if let Concern::Publish(_) = concerns { Side::Publish } else { Side::Consume });
        self.input(Input::Broker(BrokerEvent::Failed { failure, concerns, side }));
        assert!(self.closed.is_some(), "a session without a lease goes on");
    }

    fn input(&mut self, input: Input) {
        let flushed = matches!(input, Input::Flushed);
        let timeout = matches!(input, Input::Timeout);
        if flushed {
            self.deliveries.automatic.clear();
        }
        self.session.handle_input(self.now, input);
        let mut error_ends = false;
        while let Some(output) = self.session.poll_output() {
            assert!(self.closed.is_none(), "behind the close: {output:?}");
            assert!(!error_ends || matches!(output, Output::Close(_)), "behind an ERROR: {output:?}");
            error_ends = self.is_strict() && matches!(&output, Output::Frame(frame) if frame.command == Command::Error);
            let says_denied =
                matches!(&output, Output::Frame(frame) if frame.header("error-code") == Some("auth.denied"));
            // The operator is told at once, the client behind the receipts that are due.
            match &output {
                Output::Denied(_) => self.denials += 1,
                _ if says_denied => {
                    let untold = self.denials.checked_sub(1);
                    self.denials =
                        untold.unwrap_or_else(|| panic!("a denial of which the operator is not told: {output:?}"));
                }
                _ => {}
            }
            self.output(output);
        }
        assert!(!error_ends || self.closed.is_some(), "an ERROR without a close");
        self.check(timeout);
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::Close(close) => self.closed = Some(close.code),
            Output::Command(command) => self.command(command),
            Output::Frame(frame) => self.frame_out(&frame),
            Output::Login { .. } => {
                assert!(!self.broker.login && !self.client.connected, "a login at the wrong time");
                self.broker.login = true;
            }
            Output::LoggedIn => assert!(!self.client.connected, "logged in twice"),
            Output::Refresh { .. } => panic!("these sessions accept no token"),
            Output::NotAuthenticated { .. } => panic!("these users may log in from anywhere"),
            Output::Denied(_) | Output::Heartbeat | Output::Ping => {}
        }
    }

    fn command(&mut self, command: BrokerCommand) {
        // A settlement that comes too late is ignored by the broker side, and the delivery goes back to its queue.
        let late = self.broker.closing && !matches!(command, BrokerCommand::Settle { .. });
        let side = match &command {
            BrokerCommand::Publish(_) => Some(Side::Publish),
            BrokerCommand::Close | BrokerCommand::Restore { .. } => None,
            _ => Some(Side::Consume),
        };
        let lost = side.is_some_and(|side| self.broker.has_lost(side));
        assert!(self.client.connected && !late && !lost, "a command without a lease: {command:?}");
        match command {
            BrokerCommand::Close => self.broker.closing = true,
            BrokerCommand::Declare { token, .. } => self.broker.pending.push_back(Pending::Declare(token)),
            BrokerCommand::Publish(Publish { message, token, .. }) => {
                assert!(self.broker.pending.is_empty(), "a publish overtakes a declaration");
                assert!(!message.mandatory || message.properties.message_id.is_some(), "{message:?}");
                let text = std::str::from_utf8(&message.body).unwrap_or_default();
                let number = text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default();
                // What an ERROR refused, for want of room for its reply queue, is missing.
                while self.client.errors > 0 && self.client.order.front().is_some_and(|next| *next != number) {
                    self.client.order.pop_front();
                }
                assert_eq!(self.client.order.pop_front(), Some(number), "published out of order");
                let (mandatory, message_id) = (message.mandatory, message.properties.message_id.clone());
                if let Some(before) = self.broker.repeated.remove(&number) {
                    assert_eq!(message_id, before, "SEND {number} is repeated as another message");
                    // The plugin's messages have no id unless the client gave one.
                    assert!(
                        message_id.is_some() || !self.is_strict(),
                        "nobody can tell that SEND {number} is repeated"
                    );
                }
                self.broker.published.push_back(Published { mandatory, message_id, number, token });
                assert!(self.broker.published.len() <= self.config.unconfirmed_messages_max, "too many unconfirmed");
            }
            BrokerCommand::Restore { side, .. } => {
                assert!(!self.broker.gone && !self.broker.has_lost(side), "{side:?} is asked for at the wrong time");
                self.broker.lost.push(side);
            }
            BrokerCommand::Settle { tag, outcome } => {
                assert!(self.deliveries.open.remove(&tag), "{tag:?} settled twice, or never delivered");
                let unwritten = self.deliveries.automatic.contains(&tag) && outcome == Settlement::Ack;
                let crosses = self.deliveries.of_stream == Some(tag);
                assert!(!unwritten || crosses, "{tag:?} settled before it was written");
            }
            BrokerCommand::Subscribe(subscribe) => {
                assert!(subscribe.prefetch > 0);
                let again = self.deliveries.modes.contains_key(&subscribe.key);
                assert!(!again || self.broker.outages > 0, "a key was used twice");
                let reply_queue = subscribe.binding.is_none()
                    && matches!(&subscribe.queue, SubscribedQueue::Declared(queue) if queue.exclusive);
                let mode = self.deliveries.asked.take_if(|_| !reply_queue && !again).unwrap_or(Automatic::Yes);
                self.deliveries.modes.entry(subscribe.key).or_insert(mode);
                self.broker.pending.push_back(Pending::Subscribe(subscribe.key));
            }
            BrokerCommand::Delete { .. } => {}
            BrokerCommand::Unsubscribe { key, .. } => self.broker.pending.push_back(Pending::Unsubscribe(key)),
        }
    }

    fn frame_out(&mut self, frame: &Frame) {
        match &frame.command {
            Command::Connected => {
                assert!(!std::mem::replace(&mut self.client.connected, true), "CONNECTED twice");
            }
            Command::Error => self.client.errors += 1,
            Command::Message => {
                // STOMP 1.2 has `ack` where the client may acknowledge; the older versions leave it to the client to know.
                let id = frame.header("subscription").map(str::to_owned);
                let ack = frame.header("ack").or(frame.header("message-id").filter(|_| self.old_and_manual()));
                self.client.acks.extend(ack.map(|ack| Unsettled { ack: ack.to_owned(), subscription: id }));
            }
            Command::Receipt => self.receipt(frame.header("receipt-id").unwrap_or_default()),
            other => panic!("a server does not send {other}"),
        }
    }

    fn receipt(&mut self, id: &str) {
        let given = self.client.receipts_given.entry(id.to_owned()).or_default();
        *given += 1;
        let asked = self.client.receipts_asked.get(id).copied().unwrap_or_default();
        assert!(*given <= asked, "RECEIPT {id} was given {given} times and asked for {asked} times");
        if let Some(number) = id.strip_prefix("send-").and_then(|number| number.parse().ok()) {
            assert!(self.client.confirmed.contains(&number), "RECEIPT for SEND {number}, which is not confirmed");
        }
        let sends = self.client.commits.get(id).filter(|_| id.starts_with("com-"));
        let confirmed = sends.is_none_or(|sends| sends.iter().all(|number| self.client.confirmed.contains(number)));
        assert!(confirmed, "RECEIPT {id} for a COMMIT that is not confirmed");
    }

    fn check(&self, timeout: bool) {
        assert_eq!(self.session.has_ended(), self.closed.is_some());
        assert!(self.session.outstanding_count() <= self.deliveries.open.len(), "more outstanding than delivered");
        assert!(self.session.subscription_count() <= self.config.subscriptions_max, "too many subscriptions");
        match self.session.poll_timeout() {
            None => assert!(self.closed.is_some(), "a session without a deadline"),
            Some(_) if self.closed.is_some() => panic!("an ended session waits"),
            Some(deadline) => assert!(!timeout || deadline > self.now, "a deadline that does not go away"),
        }
    }

    /// Whether the delivery under way is one to acknowledge, in a version that has no `ack` header.
    fn old_and_manual(&self) -> bool {
        let manual = self.deliveries.current.is_some_and(|key| self.deliveries.modes[&key] == Automatic::No);
        manual && self.session.version() != Some(Version::V1_2)
    }

    fn is_strict(&self) -> bool {
        self.config.compatibility == Compatibility::Strict
    }

    /// The client wants to leave, and the broker answers everything: the session must come to its end.
    fn finish(&mut self) {
        for _ in 0..1000 {
            if self.closed.is_some() {
                return self.check_receipts();
            }
            self.input(Input::Flushed);
            if self.broker.login {
                self.answer_login(3);
            } else if !self.broker.lost.is_empty() {
                self.answer_restore(255);
            } else if !self.broker.pending.is_empty() {
                self.answer_command(1);
            } else if !self.broker.published.is_empty() {
                self.answer_publish(255);
            } else if self.broker.closing {
                self.close();
            } else if self.session.wants_frames() && self.client.connected {
                self.disconnect();
            } else {
                self.time_passes(&mut Bytes(&[255, 255]));
            }
        }
        panic!("the session does not end: {:?}", self.session);
    }

    /// After a DISCONNECT that was answered, and without an ERROR, every receipt was given that was due.
    fn check_receipts(&self) {
        let client = &self.client;
        if client.errors > 0 || !client.receipts_given.contains_key("bye") {
            return;
        }
        let mut missing = client.receipts_asked.iter().filter(|(id, asked)| {
            let in_transaction = id.starts_with("send-") && !self.is_confirmed(id);
            let ambiguous = *id == "same" || in_transaction;
            !ambiguous && client.receipts_given.get(*id) != Some(asked)
        });
        assert!(missing.next().is_none(), "not all receipts were given: {:?}", client.receipts_asked);
        assert!(client.order.is_empty(), "a SEND was never published: {:?}", client.order);
    }

    fn is_confirmed(&self, id: &str) -> bool {
        let number = id.strip_prefix("send-").and_then(|number| number.parse().ok());
        number.is_some_and(|number| self.client.confirmed.contains(&number))
    }
}
