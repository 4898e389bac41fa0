//! Any sequence of frames that is sent in one go has the same outcome as when the client waits after each until everything has
//! come to rest: replies, deliveries, and what is left in the queues. On a real RabbitMQ; tests/it/session_order.rs plays many
//! more against a model.
//!
//! What a client sends only after it has received something waits for that here too: an ACK for its MESSAGE, and UNSUBSCRIBE for
//! what is on its way, since nobody can say what crosses it. The RECEIPT of an ACK or NACK says nothing of RabbitMQ, as with its
//! plugin, so that a SEND behind a NACK waits until it has been carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use stomp_relay::stomp::{Command, Frame};
use tokio::task::block_in_place;

use crate::support::queue_states::QueueStates;
use crate::support::rabbit::{Admin, Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::stomp::{Client, DEADLINE, Received};

const FIRST_SEED: u64 = 1;
const SEQUENCES: u64 = 40;
const FRAMES_MIN: usize = 4;
const FRAMES_MAX: usize = 12;
/// So often a frame is sent although it will be refused: every refusal ends its sequence.
const MISTAKES: u64 = 12;

/// What messages go to: its name, and the headers of SEND and SUBSCRIBE that make it.
const DESTINATIONS: [(&str, &str); 5] = [
    ("/queue/plain", ""),
    ("/queue/short", "x-max-length:2\n"),
    ("/queue/gone", "auto-delete:true\ndurable:true\n"),
    // A queue of its own, because it asks for a prefetch.
    ("/topic/own", "prefetch-count:100\n"),
    ("/topic/shared", ""),
];
const TOPICS: std::ops::Range<usize> = 3..5;
const SHARED: usize = 4;
const GONE: usize = 2;
/// The kind of a queue that a subscription made.
const SUBSCRIPTION: &str = "of a subscription";
const MODES: [&str; 3] = ["auto", "client", "client-individual"];

/// splitmix64: the same seed, the same sequences.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    fn index(&mut self, end: usize) -> usize {
        usize::try_from(self.below(end as u64)).expect("small")
    }

    fn rarely(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Abort(usize),
    Begin(usize),
    Commit(usize),
    Send {
        to: usize,
        transaction: Option<usize>,
    },
    /// Of a message that the client holds.
    Settle {
        command: &'static str,
        held: Named,
        requeue: bool,
    },
    Subscribe {
        id: usize,
        mode: usize,
        to: usize,
    },
    Unsubscribe(usize),
}

/// A message that was delivered: subscription and body.
type Named = (String, String);

#[derive(Clone, Copy, Debug)]
struct Subscribed {
    mode: usize,
    to: usize,
}

#[derive(Clone, Debug)]
struct Held {
    ack: String,
    mode: usize,
    named: Named,
    to: usize,
}

/// A frame, and what the client has to have received before it can know what to send.
#[derive(Clone, Debug)]
struct Line {
    after: BTreeMap<String, usize>,
    number: usize,
    /// The NACKs before it have to have been carried out.
    settled: bool,
    step: Step,
}

/// Bodies by subscription, in their order; those that come again say so.
type Got = BTreeMap<String, Vec<String>>;

#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    consumers: BTreeMap<String, usize>,
    error: Option<String>,
    got: Got,
    left: BTreeMap<String, Vec<String>>,
    receipts: BTreeSet<String>,
}

/// One client with destinations of its own, and what it has seen.
struct Play<'a> {
    client: Client,
    error: Option<String>,
    got: Got,
    held: Vec<Held>,
    name: String,
    receipts: BTreeSet<String>,
    /// Messages that shared subscriptions must have got: RabbitMQ does not hold them for this client.
    shared_due: BTreeMap<String, usize>,
    states: &'a mut QueueStates,
    strict: bool,
    subscriptions: BTreeMap<usize, Subscribed>,
    /// Destinations of the SENDs of each.
    transactions: BTreeMap<usize, Vec<usize>>,
}

impl Play<'_> {
    /// A frame that fits what is there, most of the time.
    fn choose(&self, random: &mut Random, usual: [usize; 2]) -> Step {
        // What frames do to each other shows where they meet.
        let place = |random: &mut Random| match random.rarely(5) {
            true => random.index(DESTINATIONS.len()),
            false => usual[random.index(usual.len())],
        };
        loop {
            let (step, fits) = match random.below(20) {
                0..=6 => {
                    let transaction = random.rarely(4).then(|| random.index(2));
                    let open = transaction.is_none_or(|name| self.transactions.contains_key(&name));
                    (Step::Send { to: place(random), transaction }, open)
                }
                7..=10 => {
                    let (id, mode, to) = (random.index(3), random.index(MODES.len()), place(random));
                    (Step::Subscribe { id, mode, to }, !self.subscriptions.contains_key(&id))
                }
                11..=13 => {
                    let id = random.index(3);
                    (Step::Unsubscribe(id), self.subscriptions.contains_key(&id))
                }
                14..=16 if !self.held.is_empty() => {
                    let held = &self.held[random.index(self.held.len())];
                    if !self.covers_the_same_every_time(held) {
                        continue;
                    }
                    let command = if random.rarely(3) { "NACK" } else { "ACK" };
                    let step = Step::Settle { command, held: held.named.clone(), requeue: random.rarely(2) };
                    (step, true)
                }
                17 => {
                    let name = random.index(2);
                    (Step::Begin(name), !self.transactions.contains_key(&name))
                }
                18 => {
                    let name = random.index(2);
                    (Step::Commit(name), self.transactions.contains_key(&name))
                }
                19 => {
                    let name = random.index(2);
                    (Step::Abort(name), self.transactions.contains_key(&name))
                }
                _ => continue,
            };
            if fits || random.rarely(MISTAKES * 4) {
                return step;
            }
        }
    }

    /// With the plugin's behaviour an ACK covers older messages of other subscriptions too, and nobody can say which of two queues
    /// RabbitMQ serves first.
    fn covers_the_same_every_time(&self, held: &Held) -> bool {
        let alone = self.held.iter().all(|other| other.named.0 == held.named.0 && other.to == held.to);
        self.strict || MODES[held.mode] != "client" || alone
    }

    fn destination(&self, to: usize) -> String {
        format!("{}-{}", DESTINATIONS[to].0, self.name)
    }

    /// The bytes of a frame, and its receipt id if one is due before a COMMIT.
    fn frame(&self, step: &Step, number: usize) -> (String, Option<String>) {
        let receipt = format!("r{number}");
        let text = match step {
            Step::Abort(name) => format!("ABORT\ntransaction:t{name}\nreceipt:{receipt}\n\n\0"),
            Step::Begin(name) => format!("BEGIN\ntransaction:t{name}\nreceipt:{receipt}\n\n\0"),
            Step::Commit(name) => format!("COMMIT\ntransaction:t{name}\nreceipt:{receipt}\n\n\0"),
            Step::Send { to, transaction } => {
                let (destination, flags) = (self.destination(*to), DESTINATIONS[*to].1);
                let flags = if TOPICS.contains(to) { "" } else { flags };
                let headers = format!("SEND\ndestination:{destination}\n{flags}");
                match transaction {
                    // Its RECEIPT comes with the COMMIT, or never.
                    Some(name) => return (format!("{headers}transaction:t{name}\n\nm{number}\0"), None),
                    None => format!("{headers}receipt:{receipt}\n\nm{number}\0"),
                }
            }
            Step::Settle { command, held, requeue } => {
                let found = self.held.iter().rev().find(|other| other.named == *held);
                let found = found
                    .unwrap_or_else(|| panic!("{held:?} of {number} is not held: {:?}, {:?}", self.held, self.got));
                format!("{command}\nid:{}\nrequeue:{requeue}\nreceipt:{receipt}\n\n\0", found.ack)
            }
            Step::Subscribe { id, mode, to } => {
                let (destination, flags, mode) = (self.destination(*to), DESTINATIONS[*to].1, MODES[*mode]);
                format!("SUBSCRIBE\nid:s{id}\ndestination:{destination}\nack:{mode}\n{flags}receipt:{receipt}\n\n\0")
            }
            Step::Unsubscribe(id) => format!("UNSUBSCRIBE\nid:s{id}\nreceipt:{receipt}\n\n\0"),
        };
        (text, Some(receipt))
    }

    /// What the client knows once it has sent the frame.
    fn sent(&mut self, step: &Step) {
        match step {
            Step::Abort(name) => drop(self.transactions.remove(name)),
            Step::Begin(name) => drop(self.transactions.insert(*name, Vec::new())),
            Step::Commit(name) => {
                let sends = self.transactions.remove(name).unwrap_or_default();
                sends.into_iter().for_each(|to| self.shared_is_due(to));
            }
            Step::Send { to, transaction: Some(name) } => {
                if let Some(sends) = self.transactions.get_mut(name) {
                    sends.push(*to);
                }
            }
            Step::Send { to, transaction: None } => self.shared_is_due(*to),
            Step::Settle { held, .. } => self.settled(held),
            Step::Subscribe { id, mode, to } => {
                self.subscriptions.entry(*id).or_insert(Subscribed { mode: *mode, to: *to });
            }
            Step::Unsubscribe(id) => {
                let Some(Subscribed { to, .. }) = self.subscriptions.remove(id) else { return };
                let last = !self.subscriptions.values().any(|other| other.to == to);
                // With the queue go the messages that it had given to this client.
                let id = format!("s{id}");
                self.held.retain(|held| match to {
                    GONE => !(last && held.to == GONE),
                    // An earlier subscription of this id may have been to a queue that is still there.
                    _ => !(TOPICS.contains(&to) && held.to == to && held.named.0 == id),
                });
            }
        }
    }

    fn shared_is_due(&mut self, to: usize) {
        if to == SHARED {
            // In the other modes a subscription has a queue of its own.
            let shares = |subscribed: &Subscribed| subscribed.to == SHARED && MODES[subscribed.mode] == "auto";
            for (id, _) in self.subscriptions.iter().filter(|(_, subscribed)| shares(subscribed)) {
                *self.shared_due.entry(format!("s{id}")).or_default() += 1;
            }
        }
    }

    /// `client` covers the older ones of the subscription, or with the plugin's behaviour those of the connection.
    fn settled(&mut self, named: &Named) {
        let Some(at) = self.held.iter().rposition(|held| held.named == *named) else { return };
        let Held { mode, named, .. } = self.held[at].clone();
        let mut index = 0;
        let strict = self.strict;
        self.held.retain(|other| {
            let older = index < at;
            let same = index == at;
            index += 1;
            let covered = MODES[mode] == "client"
                && older
                && (!strict || (other.named.0 == named.0 && MODES[other.mode] == "client"));
            !(same || covered)
        });
    }

    fn take(&mut self, frame: &Frame) {
        let text = |name: &str| frame.header(name).unwrap_or_default().to_owned();
        match frame.command {
            Command::Error => {
                self.error.get_or_insert(format!("{} {}", text("error-code"), text("receipt-id")));
            }
            Command::Message => {
                let (id, mut body) = (text("subscription"), String::from_utf8(frame.body.to_vec()).expect("text"));
                let named = (id.clone(), body.clone());
                if frame.header("ack").is_some() {
                    let number: usize = id.trim_start_matches('s').parse().expect("a number");
                    let Subscribed { mode, to } = self.subscriptions[&number];
                    let ack = text("ack").replace(':', "\\c");
                    self.held.push(Held { ack, mode, named, to });
                }
                if frame.header("redelivered") == Some("true") {
                    body.push_str(" again");
                }
                self.got.entry(id).or_default().push(body);
            }
            Command::Receipt => drop(self.receipts.insert(text("receipt-id"))),
            _ => panic!("{frame:?}"),
        }
    }

    /// Whatever comes within a moment.
    async fn listen(&mut self) {
        let moment = Duration::from_millis(3);
        while self.error.is_none()
            && let Ok(received) = tokio::time::timeout(moment, self.client.next()).await
        {
            match received {
                Received::Frame(frame) => self.take(&frame),
                Received::Heartbeat => {}
                Received::Close(code, reason) => panic!("closed with {code} {reason}, without an ERROR"),
            }
        }
    }

    fn has(&self, counts: &BTreeMap<String, usize>) -> bool {
        counts.iter().all(|(id, count)| self.got.get(id).map_or(0, Vec::len) >= *count)
    }

    fn counts(&self) -> BTreeMap<String, usize> {
        self.got.iter().map(|(id, bodies)| (id.clone(), bodies.len())).collect()
    }

    /// Whether RabbitMQ has given everything that it can give, and the client has it.
    async fn is_at_rest(&mut self) -> bool {
        let due = self.shared_due.clone();
        if !self.has(&due) {
            return false;
        }
        let states = self.states.ask().await;
        let waiting = states.iter().any(|queue| queue.ready > 0 && queue.consumers > 0);
        let unacknowledged: usize = states.iter().map(|queue| queue.unacknowledged).sum();
        !waiting && unacknowledged == self.held.len()
    }

    /// Until the answer has come and everything rests, or the session has ended.
    async fn rest(&mut self, what: &str, receipts: &BTreeSet<String>, counts: &BTreeMap<String, usize>) {
        let end = Instant::now() + DEADLINE;
        loop {
            self.listen().await;
            if self.error.is_some() {
                return;
            }
            if self.receipts.is_superset(receipts) && self.has(counts) && self.is_at_rest().await {
                return;
            }
            let states = self.states.ask().await;
            assert!(
                Instant::now() < end,
                "{what} does not come to rest: receipts {receipts:?}, messages {counts:?} of {:?}, held {:?}, shared {:?}; {:?}; {states:?}",
                self.receipts,
                self.held,
                self.shared_due,
                self.got
            );
        }
    }

    /// Leaves, and looks at what is left.
    async fn outcome(mut self, admin: &Admin) -> Outcome {
        let mut outcome = Outcome { error: self.error.take(), ..Outcome::default() };
        let queues = DESTINATIONS[..TOPICS.start].iter().map(|(destination, _)| *destination);
        let queues: Vec<String> = queues.map(|text| format!("{}-{}", &text["/queue/".len()..], self.name)).collect();
        let states = self.states.ask().await;
        if outcome.error.is_none() {
            outcome.consumers = states
                .iter()
                .filter(|queue| queues.contains(&queue.name))
                .map(|queue| (kind(&queue.name).to_owned(), queue.consumers))
                .collect();
            self.client.disconnect().await;
        } else {
            // In strict mode it is closed already.
            let _ = self.client.try_send("DISCONNECT\n\n").await;
            loop {
                match self.client.receive().await {
                    Received::Close(..) => break,
                    Received::Frame(frame) if self.strict => panic!("behind {:?}: {frame:?}", outcome.error),
                    _ => {}
                }
            }
        }
        let end = Instant::now() + DEADLINE;
        let states = loop {
            let states = self.states.ask().await;
            let idle = states.iter().all(|queue| queue.consumers == 0 && queue.unacknowledged == 0);
            // What follows a mistake may be declared when its play is over.
            let of_subscriptions = states.iter().any(|queue| kind(&queue.name) == SUBSCRIPTION);
            if idle && !of_subscriptions {
                break states;
            }
            assert!(Instant::now() < end, "the session has left something behind: {states:?}");
        };
        for queue in states.into_iter().filter(|queue| queues.contains(&queue.name)) {
            let mut left = Vec::new();
            for _ in 0..queue.ready {
                left.push(String::from_utf8(admin.get(&queue.name).await.data).expect("text"));
            }
            admin.delete(&queue.name).await;
            outcome.left.insert(kind(&queue.name).to_owned(), left);
        }
        outcome.got = self.got;
        outcome.receipts = self.receipts;
        // What the client had sent before its mistake may be answered by nothing but the ERROR.
        if outcome.error.is_some() {
            outcome = Outcome { error: outcome.error, ..Outcome::default() };
        }
        outcome
    }
}

/// Of a queue, by its name.
fn kind(queue: &str) -> &str {
    queue.split_once('-').map(|(kind, _)| kind).filter(|kind| *kind != "stomp").unwrap_or(SUBSCRIPTION)
}

/// A relay in each mode, on a virtual host of their own.
struct Place {
    admin: Admin,
    name: String,
    relay: Relay,
    states: QueueStates,
    strict: bool,
}

impl Place {
    async fn new(strict: bool) -> Place {
        let rabbit = Rabbit::shared();
        let name = unique("sequences");
        block_in_place(|| {
            rabbit.ctl(&["add_vhost", &name]);
            rabbit.add_user(&name, "secret", &name, [".*"; 3]);
        });
        let mode = if strict { "strict" } else { "rabbitmq" };
        let relay = Relay::start_with(rabbit, &format!("[stomp]\ncompatibility = \"{mode}\"\n"));
        let (admin, states) = (rabbit.admin_of(&name, &name, "secret").await, QueueStates::open(rabbit, &name).await);
        Place { admin, name, relay, states, strict }
    }

    async fn play(&mut self, name: String) -> (Play<'_>, &Admin) {
        let connect = format!("accept-version:1.2\nhost:{0}\nlogin:{0}\npasscode:secret", self.name);
        let client = self.relay.client_with(&connect).await;
        let play = Play {
            client,
            error: None,
            got: Got::new(),
            held: Vec::new(),
            name,
            receipts: BTreeSet::new(),
            shared_due: BTreeMap::new(),
            states: &mut self.states,
            strict: self.strict,
            subscriptions: BTreeMap::new(),
            transactions: BTreeMap::new(),
        };
        (play, &self.admin)
    }

    /// Makes a sequence up and waits after each frame.
    async fn one_by_one(&mut self, seed: u64) -> (Outcome, Vec<Line>) {
        let (mut play, admin) = self.play(format!("slow{seed}")).await;
        let mut random = Random(seed);
        let (mut lines, mut nacked) = (Vec::new(), false);
        let mut receipts = BTreeSet::new();
        let usual = [random.index(DESTINATIONS.len()), random.index(DESTINATIONS.len())];
        for number in 0..FRAMES_MIN + random.index(FRAMES_MAX - FRAMES_MIN + 1) {
            let step = play.choose(&mut random, usual);
            let waits = matches!(step, Step::Unsubscribe(_) | Step::Settle { .. });
            let after = if waits { play.counts() } else { BTreeMap::new() };
            let settled = nacked && matches!(step, Step::Send { .. } | Step::Commit(_));
            nacked |= matches!(step, Step::Settle { command: "NACK", .. });
            let (frame, receipt) = play.frame(&step, number);
            receipts.extend(receipt);
            play.client.send_bytes(frame.as_bytes()).await;
            play.sent(&step);
            lines.push(Line { after, number, settled, step });
            play.rest("one by one", &receipts, &BTreeMap::new()).await;
            if play.error.is_some() {
                break;
            }
        }
        (play.outcome(admin).await, lines)
    }

    /// The same in as few WebSocket messages as can be.
    async fn in_one_go(&mut self, seed: u64, lines: &[Line], slow: &Outcome) -> Outcome {
        let (mut play, admin) = self.play(format!("fast{seed}")).await;
        let (mut batch, mut receipts) = (String::new(), BTreeSet::new());
        for line in lines {
            if line.settled || !play.has(&line.after) {
                play.client.send_bytes(std::mem::take(&mut batch).as_bytes()).await;
                let receipts = if line.settled { receipts.clone() } else { BTreeSet::new() };
                play.rest("in one go", &receipts, &line.after).await;
                if play.error.is_some() {
                    break;
                }
            }
            let (frame, receipt) = play.frame(&line.step, line.number);
            receipts.extend(receipt);
            batch.push_str(&frame);
            play.sent(&line.step);
        }
        if !batch.is_empty() && play.error.is_none() {
            play.client.send_bytes(batch.as_bytes()).await;
        }
        let counts = slow.got.iter().map(|(id, bodies)| (id.clone(), bodies.len())).collect();
        match slow.error {
            None => play.rest("in one go", &receipts, &counts).await,
            Some(_) => {
                let end = Instant::now() + DEADLINE;
                while play.error.is_none() {
                    play.listen().await;
                    assert!(Instant::now() < end, "no ERROR came, but one by one: {slow:?}");
                }
            }
        }
        play.outcome(admin).await
    }
}

/// The same sequences each time; `RELAY_TEST_SEED` plays others.
#[tokio::test(flavor = "multi_thread")]
async fn any_sequence_in_one_go_is_as_one_by_one() {
    let seed = std::env::var("RELAY_TEST_SEED").ok().map(|text| text.parse().expect("RELAY_TEST_SEED is a number"));
    let first: u64 = seed.unwrap_or(FIRST_SEED);
    let played = tokio::join!(sequences(first, true), sequences(first, false));
    for Played { frames, messages, refused } in [played.0, played.1] {
        println!("{frames} frames, {messages} messages, {refused} sequences refused");
        // Sequences are of use only if they come far.
        assert!(messages >= 40 && refused <= 30, "{frames} frames, {messages} messages, {refused} refused");
    }
}

/// How far sequences have come.
#[derive(Default)]
struct Played {
    frames: usize,
    messages: usize,
    refused: usize,
}

async fn sequences(first: u64, strict: bool) -> Played {
    let mut played = Played::default();
    let mut place = Place::new(strict).await;
    for seed in first..first + SEQUENCES {
        println!("RELAY_TEST_SEED={seed}, strict {strict}");
        let (slow, lines) = place.one_by_one(seed).await;
        let fast = place.in_one_go(seed, &lines, &slow).await;
        assert_eq!(fast, slow, "RELAY_TEST_SEED={seed}, strict {strict}: {lines:#?}");
        played.frames += lines.len();
        played.messages += slow.got.values().map(Vec::len).sum::<usize>();
        played.refused += usize::from(slow.error.is_some());
    }
    let name = place.name.clone();
    drop(place);
    block_in_place(|| {
        Rabbit::shared().ctl(&["delete_vhost", &name]);
        Rabbit::shared().ctl(&["delete_user", &name]);
    });
    played
}
