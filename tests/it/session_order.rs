//! Frames take effect in the order in which they came: any sequence of frames sent in one go has the same outcome as when the
//! client waits after each until everything has come to rest. Against a model of RabbitMQ whose publishing and consuming
//! connections go at any pace of their own.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use proptest::collection::vec;
use proptest::prelude::*;
use stomp_relay::session::amqp::{FieldValue, Properties, QueueDeclaration, ShortText};
use stomp_relay::session::command::{
    AfterUnsubscribe, BrokerCommand, DeliveryTag, Publish, Settlement, SubscribedQueue, SubscriptionKey,
};
use stomp_relay::session::config::{Compatibility, SessionConfig};
use stomp_relay::session::event::{BrokerEvent, BrokerInfo, Concern, Delivery, Failure, Message};
use stomp_relay::session::identity::Identity;
use stomp_relay::session::io::{Input, LoggedIn, Output};
use stomp_relay::session::{Locality, Session, SessionSeed};
use stomp_relay::stomp::{Command, Frame};

/// Queues `plain`, `short` (two messages at most), `gone` (auto-delete), and a topic.
const DESTINATIONS: [&str; 4] = ["/queue/plain", "/queue/short", "/queue/gone", "/topic/t"];
const FLAGS: [&[(&str, &str)]; 4] =
    [&[], &[("x-max-length", "2")], &[("auto-delete", "true"), ("durable", "true")], &[]];

#[derive(Clone, Copy, Debug)]
enum Step {
    Abort(usize),
    Ack(Mark),
    Begin(usize),
    Commit(usize),
    Nack(Mark),
    Send { to: usize, transaction: Option<usize> },
    Subscribe { flagged: bool, id: usize, mode: usize, to: usize },
    Unsubscribe(usize),
}

/// Which of the messages that the client holds.
type Mark = usize;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4usize, prop::option::weighted(0.2, 0..2usize)).prop_map(|(to, transaction)| Step::Send { to, transaction }),
        4 => (0..4usize, 0..3usize, 0..3usize, any::<bool>())
            .prop_map(|(to, id, mode, flagged)| Step::Subscribe { flagged, id, mode, to }),
        4 => (0..3usize).prop_map(Step::Unsubscribe),
        2 => (0..3usize).prop_map(Step::Ack),
        1 => (0..3usize).prop_map(Step::Nack),
        1 => (0..2usize).prop_map(Step::Begin),
        1 => (0..2usize).prop_map(Step::Commit),
        1 => (0..2usize).prop_map(Step::Abort),
    ]
}

#[derive(Default, Debug)]
struct Queue {
    auto_delete: bool,
    consumers: Vec<SubscriptionKey>,
    max_length: Option<usize>,
    ready: VecDeque<String>,
}

/// RabbitMQ as one client sees it, message by message.
#[derive(Default)]
struct Broker {
    bindings: BTreeSet<(String, String)>,
    /// Not yet carried out, by connection; settlements overtake what waits.
    consume: VecDeque<BrokerCommand>,
    publish: VecDeque<Publish>,
    /// Not yet told, by connection.
    consumed: VecDeque<BrokerEvent>,
    published: VecDeque<BrokerEvent>,
    consumers: HashMap<SubscriptionKey, String>,
    next_tag: u64,
    queues: BTreeMap<String, Queue>,
    unacked: BTreeMap<u64, (String, String)>,
}

impl Broker {
    fn take(&mut self, command: BrokerCommand) {
        match command {
            BrokerCommand::Publish(publish) => self.publish.push_back(publish),
            BrokerCommand::Settle { tag, outcome } => {
                let Some((queue, body)) = self.unacked.remove(&tag.0) else { return };
                if outcome == (Settlement::Nack { requeue: true })
                    && let Some(found) = self.queues.get_mut(&queue)
                {
                    found.ready.push_front(body);
                    self.settle_down(&queue);
                }
            }
            other => self.consume.push_back(other),
        }
    }

    fn step_publish(&mut self) {
        let Some(Publish { message, token, .. }) = self.publish.pop_front() else { return };
        let key = message.routing_key.as_str().to_owned();
        let targets: Vec<String> = match message.exchange.as_str() {
            "" => self.queues.contains_key(&key).then(|| key.clone()).into_iter().collect(),
            _ => self.bindings.iter().filter(|(_, bound)| *bound == key).map(|(queue, _)| queue.clone()).collect(),
        };
        let body = String::from_utf8(message.body.to_vec()).unwrap();
        for queue in &targets {
            self.queues.get_mut(queue).unwrap().ready.push_back(body.clone());
            self.settle_down(queue);
        }
        self.published.push_back(match targets.is_empty() && message.mandatory {
            true => BrokerEvent::Returned { token, reply_code: 312, reply_text: "NO_ROUTE".to_owned() },
            false => BrokerEvent::Confirmed { token },
        });
    }

    /// Delivers what can be, then drops what is too much.
    fn settle_down(&mut self, name: &str) {
        let Some(queue) = self.queues.get_mut(name) else { return };
        if let Some(key) = queue.consumers.first().copied() {
            while let Some(body) = queue.ready.pop_front() {
                self.next_tag += 1;
                self.unacked.insert(self.next_tag, (name.to_owned(), body.clone()));
                let message = Message {
                    body: body.into_bytes().into(),
                    exchange: ShortText::default(),
                    properties: Properties::default(),
                    routing_key: ShortText::new(name).unwrap(),
                };
                let tag = Some(DeliveryTag(self.next_tag));
                let delivery = Delivery { key, message: Arc::new(message), redelivered: false, tag };
                self.consumed.push_back(BrokerEvent::Delivery(delivery));
            }
        }
        while queue.max_length.is_some_and(|max| queue.ready.len() > max) {
            queue.ready.pop_front();
        }
    }

    fn declare(&mut self, queue: &QueueDeclaration) -> bool {
        let max_length = queue.arguments.iter().find(|(name, _)| name.as_str() == "x-max-length");
        let max_length = max_length.map(|(_, value)| match value {
            FieldValue::Integer(max) => *max as usize,
            other => panic!("{other:?}"),
        });
        let declared = self.queues.entry(queue.name.to_string()).or_insert_with(|| Queue {
            auto_delete: queue.auto_delete,
            max_length,
            ..Queue::default()
        });
        declared.max_length == max_length && declared.auto_delete == queue.auto_delete
    }

    fn step_consume(&mut self) {
        let refused = |code, text: &str, concerns| BrokerEvent::Failed {
            failure: Failure::Refused { reply_code: code, reply_text: text.to_owned() },
            concerns,
            side: None,
        };
        let Some(command) = self.consume.pop_front() else { return };
        let event = match command {
            BrokerCommand::Declare { token, queue } => match self.declare(&queue) {
                true => BrokerEvent::Declared { token, queue: queue.name },
                false => refused(406, "PRECONDITION_FAILED", Concern::Declare(token)),
            },
            BrokerCommand::Subscribe(subscribe) => {
                let concerns = Concern::Subscription(subscribe.key);
                let name = subscribe.queue.name().to_string();
                let there = match &subscribe.queue {
                    SubscribedQueue::Declared(queue) => {
                        self.declare(queue).then_some(()).ok_or((406, "PRECONDITION_FAILED"))
                    }
                    SubscribedQueue::Existing(_) if self.queues.contains_key(&name) => Ok(()),
                    SubscribedQueue::Existing(_) => Err((404, "NOT_FOUND - no queue")),
                };
                match there {
                    Err((code, text)) => refused(code, text, concerns),
                    Ok(()) => {
                        if let Some(binding) = &subscribe.binding {
                            self.bindings.insert((name.clone(), binding.routing_key.to_string()));
                        }
                        self.consumers.insert(subscribe.key, name.clone());
                        self.queues.get_mut(&name).unwrap().consumers.push(subscribe.key);
                        let queue = ShortText::new(name.clone()).unwrap();
                        self.consumed.push_back(BrokerEvent::Subscribed { key: subscribe.key, queue });
                        return self.settle_down(&name);
                    }
                }
            }
            BrokerCommand::Unsubscribe { key, queue } => {
                if let Some(name) = self.consumers.remove(&key) {
                    let found = self.queues.get_mut(&name).unwrap();
                    found.consumers.retain(|other| *other != key);
                    if queue == AfterUnsubscribe::Delete || (found.auto_delete && found.consumers.is_empty()) {
                        self.queues.remove(&name);
                        self.bindings.retain(|(bound, _)| *bound != name);
                        self.unacked.retain(|_, (from, _)| *from != name);
                    }
                }
                BrokerEvent::Unsubscribed { key }
            }
            BrokerCommand::Close => BrokerEvent::Closed,
            other => panic!("{other:?}"),
        };
        self.consumed.push_back(event);
    }
}

struct Stage {
    broker: Broker,
    closed: bool,
    errors: Vec<String>,
    /// Messages that the client holds and has not settled: body and ack id.
    held: Vec<(String, String)>,
    /// Bodies by subscription, in their order.
    got: BTreeMap<String, Vec<String>>,
    now: Instant,
    receipts: BTreeSet<String>,
    session: Session,
}

impl Stage {
    fn new(compatibility: Compatibility) -> Stage {
        let config = SessionConfig { compatibility, unconfirmed_messages_max: 3, ..SessionConfig::default() };
        let now = Instant::now();
        let seed = SessionSeed { id: "session-s".to_owned(), queue_names: [7; 16] };
        let session = Session::new(Arc::new(config), seed, Locality::Local, now);
        let mut stage = Stage {
            broker: Broker::default(),
            closed: false,
            errors: Vec::new(),
            held: Vec::new(),
            got: BTreeMap::new(),
            now,
            receipts: BTreeSet::new(),
            session,
        };
        let connect = Frame::new(Command::Connect).with_header("accept-version", "1.2").with_header("host", "/");
        stage.input(Input::Frame(connect.with_header("login", "guest").with_header("passcode", "guest")));
        let broker = BrokerInfo { version: "3.10.8".to_owned() };
        stage.input(Input::Login(Ok(LoggedIn { broker, identity: Identity::of_login("guest") })));
        stage
    }

    fn input(&mut self, input: Input) {
        self.session.handle_input(self.now, input);
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Close(_) => self.closed = true,
                Output::Command(command) => self.broker.take(command),
                Output::Frame(frame) => self.frame(&frame),
                _ => {}
            }
        }
    }

    fn frame(&mut self, frame: &Frame) {
        let text = |name: &str| frame.header(name).unwrap_or_default().to_owned();
        match frame.command {
            Command::Error => self.errors.push(format!("{} {}", text("error-code"), text("receipt-id"))),
            Command::Message => {
                let body = String::from_utf8(frame.body.to_vec()).unwrap();
                self.got.entry(text("subscription")).or_default().push(body.clone());
                if frame.header("ack").is_some() {
                    self.held.push((body, text("ack")));
                }
            }
            Command::Receipt => drop(self.receipts.insert(text("receipt-id"))),
            _ => {}
        }
    }

    /// One thing happens at the broker or on the way from it; false if there is nothing left.
    fn advance(&mut self, choice: u8) -> bool {
        if self.closed {
            return false;
        }
        let Broker { consume, publish, consumed, published, .. } = &self.broker;
        let ready: Vec<u8> = [!publish.is_empty(), !consume.is_empty(), !published.is_empty(), !consumed.is_empty()]
            .iter()
            .enumerate()
            .filter(|(_, ready)| **ready)
            .map(|(index, _)| index as u8)
            .collect();
        if ready.is_empty() {
            return false;
        }
        match ready[usize::from(choice) % ready.len()] {
            0 => self.broker.step_publish(),
            1 => self.broker.step_consume(),
            lane => {
                let lane = if lane == 2 { &mut self.broker.published } else { &mut self.broker.consumed };
                let event = lane.pop_front().expect("ready");
                self.input(Input::Broker(event));
                self.input(Input::Flushed);
            }
        }
        true
    }

    fn rest(&mut self) {
        while self.advance(0) {}
    }

    fn outcome(&self) -> impl PartialEq + std::fmt::Debug {
        let queues: BTreeMap<_, _> = self
            .broker
            .queues
            .iter()
            .map(|(name, queue)| (name.clone(), (queue.ready.clone(), queue.consumers.len(), queue.max_length)))
            .collect();
        let unacked: BTreeSet<_> = self.broker.unacked.values().cloned().collect();
        (self.receipts.clone(), self.errors.clone(), self.got.clone(), queues, unacked)
    }
}

/// A frame, and what the client has to have received before it can know what to send.
struct Line {
    /// Messages by subscription.
    after: BTreeMap<String, Vec<String>>,
    /// Of a settlement: which message.
    body: Option<String>,
    frame: Frame,
}

/// Plays the steps one after another, each to its rest, and writes the lines down.
fn one_by_one(steps: &[Step], compatibility: Compatibility) -> (Stage, Vec<Line>) {
    let mut stage = Stage::new(compatibility);
    let mut lines = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let Some((frame, body)) = frame(*step, number, &stage.held) else { continue };
        // What crosses an UNSUBSCRIBE, or whether a settlement came before a message, is for nobody to say.
        let waits = matches!(step, Step::Unsubscribe(_) | Step::Ack(_) | Step::Nack(_));
        let after = if waits { stage.got.clone() } else { BTreeMap::new() };
        lines.push(Line { after, body: body.clone(), frame: frame.clone() });
        settle_held(&mut stage, body);
        stage.input(Input::Frame(frame));
        stage.rest();
        if !stage.errors.is_empty() {
            break;
        }
    }
    (stage, lines)
}

fn settle_held(stage: &mut Stage, body: Option<String>) {
    let Some(body) = body else { return };
    let at = stage.held.iter().position(|(other, _)| *other == body).expect("it was received");
    // It may be cumulative: nothing before it is settled again.
    stage.held.drain(..=at);
}

fn frame(step: Step, number: usize, held: &[(String, String)]) -> Option<(Frame, Option<String>)> {
    let mut body = None;
    let frame = match step {
        Step::Send { to, transaction } => {
            let mut frame = Frame::new(Command::Send).with_header("destination", DESTINATIONS[to]);
            FLAGS[to].iter().for_each(|(name, value)| frame.headers.push(name, value));
            if let Some(name) = transaction {
                frame.headers.push("transaction", &format!("t{name}"));
            }
            frame.body = format!("m{number}").into();
            frame
        }
        Step::Subscribe { flagged, id, mode, to } => {
            let mut frame = Frame::new(Command::Subscribe).with_header("destination", DESTINATIONS[to]);
            frame.headers.push("id", &format!("s{id}"));
            frame.headers.push("ack", ["auto", "client", "client-individual"][mode]);
            if flagged || to == 2 {
                FLAGS[to].iter().for_each(|(name, value)| frame.headers.push(name, value));
            }
            // Shared subscriptions have no queue of their own, which the model does not know.
            frame.headers.push("prefetch-count", "100");
            frame
        }
        Step::Unsubscribe(id) => Frame::new(Command::Unsubscribe).with_header("id", &format!("s{id}")),
        Step::Begin(name) => Frame::new(Command::Begin).with_header("transaction", &format!("t{name}")),
        Step::Commit(name) => Frame::new(Command::Commit).with_header("transaction", &format!("t{name}")),
        Step::Abort(name) => Frame::new(Command::Abort).with_header("transaction", &format!("t{name}")),
        Step::Ack(mark) | Step::Nack(mark) => {
            let (text, id) = held.get(mark)?;
            body = Some(text.clone());
            let command = if matches!(step, Step::Ack(_)) { Command::Ack } else { Command::Nack };
            let requeue = if mark == 0 { "true" } else { "false" };
            Frame::new(command).with_header("id", id).with_header("requeue", requeue)
        }
    };
    Some((frame.with_header("receipt", &format!("r{number}")), body))
}

/// Plays the lines as fast as the session takes them, with the broker at any pace.
fn in_one_go(lines: Vec<Line>, compatibility: Compatibility, paces: &[u8]) -> Stage {
    let mut stage = Stage::new(compatibility);
    let mut paces = paces.iter().copied().cycle();
    let mut lines: VecDeque<Line> = lines.into();
    while let Some(line) = lines.pop_front() {
        loop {
            // Mostly the client is faster than everything else.
            let pace = paces.next().unwrap_or(0);
            let known =
                line.after.iter().all(|(id, bodies)| stage.got.get(id).is_some_and(|got| got.len() >= bodies.len()));
            let can = known && stage.session.wants_frames();
            if can && pace % 4 != 0 {
                break;
            }
            if !stage.advance(pace / 4) {
                if can {
                    break;
                }
                return stage;
            }
        }
        let Line { body, mut frame, .. } = line;
        if let Some(body) = &body {
            let Some((_, id)) = stage.held.iter().find(|(other, _)| other == body) else { return stage };
            let mut fresh = Frame::new(frame.command.clone()).with_header("id", id);
            for name in ["requeue", "receipt"] {
                fresh.headers.push(name, frame.header(name).unwrap_or_default());
            }
            frame = fresh;
        }
        settle_held(&mut stage, body);
        stage.input(Input::Frame(frame));
    }
    while let Some(pace) = paces.next()
        && stage.advance(pace)
    {}
    stage
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_one_go_is_as_one_by_one(
        steps in vec(step(), 1..24),
        paces in vec(any::<u8>(), 16..64),
        strict in any::<bool>(),
    ) {
        let compatibility = if strict { Compatibility::Strict } else { Compatibility::Rabbitmq };
        let (slow, lines) = one_by_one(&steps, compatibility);
        let script: Vec<String> = lines.iter().map(|line| format!("{:?}", line.frame)).collect();
        let fast = in_one_go(lines, compatibility, &paces);
        match slow.errors.first() {
            // What the client had sent behind the mistake may have been done before it was found.
            Some(error) => prop_assert_eq!(fast.errors.first(), Some(error), "{:#?}", script),
            None => prop_assert_eq!(format!("{:?}", fast.outcome()), format!("{:?}", slow.outcome()), "{:#?}", script),
        }
    }
}
