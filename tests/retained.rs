//! What a session charges is what it holds: the heap is measured while a client fills each thing that is kept for it.
//!
//! A program of its own, and one test, because the allocator counts for all of a process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use peak_alloc::PeakAlloc;
use stomp_relay::session::amqp::{Properties, ShortText};
use stomp_relay::session::command::{BrokerCommand, DeliveryTag, SubscriptionKey};
use stomp_relay::session::config::{Compatibility, SessionConfig};
use stomp_relay::session::event::{BrokerEvent, BrokerInfo, Delivery, Message};
use stomp_relay::session::identity::Identity;
use stomp_relay::session::io::{Input, LoggedIn, Output};
use stomp_relay::session::{Locality, Session, SessionSeed};
use stomp_relay::stomp::{Decoder, Escapes, Item, Limits};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Beside what a client makes it keep: maps that were never used before, room for outputs.
const SLACK: usize = 64 * 1024;

/// A session that is logged in, and the way of bytes into it.
struct Client {
    decoder: Decoder,
    now: Instant,
    session: Session,
}

impl Client {
    fn new(config: SessionConfig) -> Client {
        let now = Instant::now();
        let seed = SessionSeed { id: "session-retained".into(), queue_names: [7; 16] };
        let mut session = Session::new(Arc::new(config), seed, Locality::Local, now);
        let broker = BrokerInfo { version: "3.10.8".into() };
        session.assume_login(LoggedIn { broker, identity: Identity::of_login("alice") }, "/".into());
        Client { decoder: Decoder::new(Limits::default(), Escapes::All), now, session }
    }

    /// Sends frames in one piece. Answers with the error codes of the ERRORs, and what the broker is asked for is dropped but
    /// for subscriptions, which succeed.
    fn send(&mut self, text: &str) -> Vec<String> {
        let mut input = BytesMut::from(text);
        let mut errors = Vec::new();
        while let Some(item) = self.decoder.decode(&mut input).unwrap() {
            if let Item::Frame(frame) = item {
                self.input(Input::Frame(frame), &mut errors);
            }
        }
        errors
    }

    fn input(&mut self, input: Input, errors: &mut Vec<String>) {
        self.session.handle_input(self.now, input);
        let mut subscribed = Vec::new();
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Frame(frame) => errors.extend(frame.header("error-code").map(str::to_owned)),
                Output::Command(BrokerCommand::Subscribe(subscribe)) => {
                    let queue = subscribe.queue.name().clone();
                    subscribed.push(BrokerEvent::Subscribed { key: subscribe.key, queue });
                }
                Output::Command(BrokerCommand::Unsubscribe { key, .. }) => {
                    subscribed.push(BrokerEvent::Unsubscribed { key });
                }
                _ => {}
            }
        }
        for event in subscribed {
            self.input(Input::Broker(event), errors);
        }
    }

    fn deliver(&mut self, key: u64, tag: u64, errors: &mut Vec<String>) {
        let message = Arc::new(Message {
            body: Bytes::from_static(b"x"),
            exchange: ShortText::lit("amq.topic"),
            properties: Properties::default(),
            routing_key: ShortText::lit("a"),
        });
        let (key, tag) = (SubscriptionKey(key), Some(DeliveryTag(tag)));
        let delivery = Delivery { key, message, redelivered: false, tag };
        self.input(Input::Broker(BrokerEvent::Delivery(delivery)), errors);
    }
}

/// Lets `fill` act on a session until nothing more is taken, at most `most` bytes; what was charged must be what the heap
/// grew by, and not more than `limit`.
fn check(what: &str, config: SessionConfig, limit: usize, fill: impl Fn(&mut Client, usize) -> bool) {
    let mut client = Client::new(config);
    let (heap, charged) = (HEAP.current_usage(), client.session.retained_bytes());
    let mut count = 0;
    while count < 100_000 && !fill(&mut client, count) {
        count += 1;
    }
    let heap = HEAP.current_usage().saturating_sub(heap);
    let charged = client.session.retained_bytes() - charged;
    println!("{what:34} {count:6} times: heap {:6} KiB, charged {:6} KiB", heap / 1024, charged / 1024);
    assert!(count > 0 && count < 100_000, "{what}: {count} times");
    assert!(heap <= charged + SLACK, "{what}: {heap} bytes are held, {charged} charged");
    assert!(charged <= 4 * heap + SLACK, "{what}: {charged} bytes are charged, {heap} held");
    assert!(heap <= limit + SLACK, "{what}: {heap} bytes are held, the limit is {limit}");
}

/// One transaction that takes SENDs with these headers and body until it is full.
fn transaction(what: &str, headers: &str, body: &str) {
    let config = SessionConfig { transaction_frames_max: usize::MAX, ..SessionConfig::default() };
    let limit = config.transaction_bytes_max;
    let config = SessionConfig { compatibility: Compatibility::Rabbitmq, ..config };
    check(what, config, limit, |client, count| {
        if count == 0 {
            assert_eq!(client.send("BEGIN\ntransaction:t\n\n\0"), [""; 0]);
        }
        let errors = client.send(&format!("SEND\ndestination:/topic/a\ntransaction:t\n{headers}\n{body}\0"));
        assert!(errors.is_empty() || errors == ["limit.transaction"], "{what}: {errors:?}");
        !errors.is_empty()
    });
}

/// SENDs without a confirm until the session wants no more.
fn unconfirmed(what: &str, headers: &str, body: &str) {
    let config = SessionConfig { unconfirmed_messages_max: usize::MAX, ..SessionConfig::default() };
    // The one that finds no room waits.
    let limit = config.unconfirmed_bytes_max + 128 * 1024;
    check(what, config, limit, |client, count| {
        let frame = format!("SEND\ndestination:/topic/a\nreceipt:{count}\n{headers}\n{body}\0");
        assert_eq!(client.send(&frame), [""; 0], "{what}");
        !client.session.wants_frames()
    });
}

/// SUBSCRIBEs with these headers until no more is taken.
fn subscriptions(what: &str, headers: impl Fn(usize) -> String) {
    let config = SessionConfig { compatibility: Compatibility::Rabbitmq, ..SessionConfig::default() };
    let limit = config.subscription_bytes_max * config.subscriptions_max;
    check(what, config, limit, |client, count| {
        let errors = client.send(&format!("SUBSCRIBE\ndestination:/topic/a\n{}\n\0", headers(count)));
        assert!(errors.is_empty() || errors == ["limit.subscriptions"], "{what}: {errors:?}");
        !errors.is_empty()
    });
}

/// Deliveries that nobody settles, each of a subscription that has ended.
fn unsettled() {
    let config = SessionConfig { unacked_bytes_max: 1 << 20, ..SessionConfig::default() };
    let id = "i".repeat(2000);
    check("unsettled, subscription gone", config, 1 << 20, |client, count| {
        let frame = format!("SUBSCRIBE\nid:{id}\ndestination:/queue/a\nack:client\n\n\0");
        assert_eq!(client.send(&frame), [""; 0]);
        let mut errors = Vec::new();
        client.deliver(count as u64, count as u64 + 1, &mut errors);
        if errors.is_empty() {
            assert_eq!(client.send(&format!("UNSUBSCRIBE\nid:{id}\n\n\0")), [""; 0]);
        }
        assert!(errors.is_empty() || errors == ["limit.unacked"], "{errors:?}");
        !errors.is_empty()
    });
}

#[test]
fn what_is_charged_is_what_is_held() {
    let started = Instant::now();
    let long = "v".repeat(9000);
    let copies = format!("CC:{}\n", vec!["k"; 100].join(","));
    let many = (0..90).map(|number| format!("n{number}:v\n")).collect::<String>();
    for (what, headers, body) in [
        ("small", "", "x"),
        ("without a body", "", ""),
        ("a body", "", &*"b".repeat(20_000)),
        ("long values", &*(0..6).map(|number| format!("x{number}:{long}\n")).collect::<String>(), "x"),
        ("short headers", &*many, "x"),
        ("copies", &*copies, "x"),
        ("a long receipt", &*format!("receipt:{long}\n"), "x"),
    ] {
        transaction(&format!("transaction, {what}"), headers, body);
        unconfirmed(&format!("unconfirmed, {what}"), headers, body);
    }
    subscriptions("subscriptions", |count| format!("id:{count}\n"));
    subscriptions("subscriptions, long ids", |count| format!("id:{count}{}\n", "i".repeat(5000)));
    subscriptions("subscriptions, bindings", |count| {
        let bindings = (0..60).map(|number| format!("x-bind-{number}:v\n")).collect::<String>();
        format!("id:{count}\n{bindings}")
    });
    unsettled();
    assert!(started.elapsed() < Duration::from_secs(300));
}
