//! Shared subscriptions: many subscribers of one binding are served from one queue, and notice nothing of each other.

mod crowd;
mod proof;

use super::support::lease::restored;
use super::support::rabbit::{Rabbit, unique};
use super::support::relay::Relay;
use super::support::stomp::{Client, Received};
use bytes::Bytes;
use futures_util::future::join_all;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use stomp_relay::broker::{Broker, BrokerConfig, Channel, ClientLabel, Encryption, Node};
use stomp_relay::session::amqp::{Binding, Properties, QueueDeclaration, ShortText};
use stomp_relay::session::command::{
    AfterUnsubscribe, BrokerCommand, Credentials, Outgoing, Overflow, Publish, PublishToken, Sharing, Side, Subscribe,
    SubscribedQueue, SubscriptionKey,
};
use stomp_relay::session::event::{BrokerEvent, Concern, Failure};

/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

const KEY: SubscriptionKey = SubscriptionKey(1);

fn text(text: &str) -> ShortText {
    ShortText::new(text).expect("short")
}

/// A virtual host of its own with a user of its own, both of this name, and a broker handle for it.
struct Place {
    broker: Broker,
    credentials: Credentials,
    name: String,
    rabbit: &'static Rabbit,
}

impl Place {
    fn new() -> Place {
        Place::with(".*", 1 << 20)
    }

    fn with(read: &str, shared_buffer_bytes_max: usize) -> Place {
        let rabbit = Rabbit::shared();
        let name = unique("shared");
        // In one call, because each costs a second.
        let make = format!(
            "ok = rabbit_vhost:add(<<\"{name}\">>, <<\"test\">>), \
             ok = rabbit_auth_backend_internal:add_user(<<\"{name}\">>, <<\"secret\">>, <<\"test\">>), \
             ok = rabbit_auth_backend_internal:set_permissions(\
             <<\"{name}\">>, <<\"{name}\">>, <<\".*\">>, <<\".*\">>, <<\"{read}\">>, <<\"test\">>)."
        );
        rabbit.ctl(&["eval", &make]);
        let node = Node { host: "127.0.0.1".into(), port: rabbit.amqp_port(), encryption: Encryption::Plain };
        let config = BrokerConfig {
            nodes: vec![node],
            // How long RabbitMQ takes on a busy machine is no subject here.
            operation_timeout: PATIENCE,
            shared_buffer_bytes_max,
            ..BrokerConfig::default()
        };
        let credentials = Credentials { login: name.clone(), passcode: "secret".into() };
        Place { broker: Broker::new(config).expect("the configuration is fine"), credentials, name, rabbit }
    }

    async fn lease(&self) -> Channel {
        let label = ClientLabel::default();
        self.broker.login(&self.name, &self.credentials, &label).await.expect("let in").0
    }

    async fn leases(&self, count: usize) -> Vec<Channel> {
        join_all((0..count).map(|_| self.lease())).await
    }

    /// The headers of a CONNECT to it.
    fn connect(&self) -> String {
        format!("accept-version:1.2\nhost:{0}\nlogin:{0}\npasscode:secret", self.name)
    }

    fn rows(&self, list: &str) -> usize {
        self.rabbit.ctl(&["-p", &self.name, list, "--no-table-headers"]).lines().filter(|line| !line.is_empty()).count()
    }

    /// Queues that are made for subscriptions.
    fn queues(&self) -> usize {
        let all = self.rabbit.ctl(&["-p", &self.name, "list_queues", "--no-table-headers", "name"]);
        all.lines().filter(|name| !name.is_empty() && !name.contains("-sample-")).count()
    }

    fn consumers(&self) -> usize {
        self.rows("list_consumers")
    }

    fn channels(&self) -> usize {
        let all = self.rabbit.ctl(&["list_channels", "vhost", "--no-table-headers"]);
        all.lines().filter(|vhost| *vhost == self.name).count()
    }

    /// Has the broker close the channels that consume: by an acknowledgement that nobody sent, with 406.
    fn close_consuming_channels(&self) -> impl Future<Output = ()> + use<> {
        let close = format!(
            // Others of the list may be gone before they are asked.
            "[rabbit_channel:do(Pid, {{'basic.ack', 99999999, false}}) || Pid <- rabbit_channel:list(), \
             {{ok, [{{vhost, <<\"{}\">>}}, {{consumer_count, C}}]}} <- \
             [catch {{ok, rabbit_channel:info(Pid, [vhost, consumer_count])}}], C > 0].",
            self.name
        );
        let rabbit = self.rabbit;
        let closing = tokio::task::spawn_blocking(move || rabbit.ctl(&["eval", &close]));
        async { drop(closing.await.expect("ran")) }
    }

    async fn no_queues(&self) {
        let end = Instant::now() + PATIENCE;
        while self.rows("list_queues") > 0 {
            assert!(Instant::now() < end, "queues are left");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let name = &self.name;
            let remove = format!(
                "rabbit_vhost:delete(<<\"{name}\">>, <<\"test\">>), \
                 rabbit_auth_backend_internal:delete_user(<<\"{name}\">>, <<\"test\">>)."
            );
            self.rabbit.ctl(&["eval", &remove]);
        }
    }
}

async fn next(channel: &mut Channel) -> BrokerEvent {
    tokio::time::timeout(PATIENCE, channel.next_event()).await.expect("an event comes in time")
}

fn subscribe(key: SubscriptionKey, routing_key: &str, overflow: Overflow) -> BrokerCommand {
    subscribe_as(key, routing_key, overflow, &unique("stomp-subscription"))
}

fn subscribe_as(key: SubscriptionKey, routing_key: &str, overflow: Overflow, queue: &str) -> BrokerCommand {
    let queue =
        QueueDeclaration { arguments: vec![], auto_delete: true, durable: false, exclusive: false, name: text(queue) };
    BrokerCommand::Subscribe(Subscribe {
        begins_at: None,
        binding: Some(Binding { arguments: vec![], exchange: text("amq.topic"), routing_key: text(routing_key) }),
        consumer_arguments: vec![],
        exclusive: false,
        key,
        prefetch: 100,
        queue: SubscribedQueue::Declared(queue),
        sharing: Sharing::Shared(overflow),
    })
}

/// Subscribes and returns the queue's name.
async fn join(channel: &mut Channel, key: SubscriptionKey, routing_key: &str) -> ShortText {
    channel.execute(subscribe(key, routing_key, Overflow::Disconnect));
    match next(channel).await {
        BrokerEvent::Subscribed { key: answered, queue } if answered == key => queue,
        other => panic!("expected Subscribed, got {other:?}"),
    }
}

async fn leave(channel: &mut Channel, key: SubscriptionKey) {
    channel.execute(BrokerCommand::Unsubscribe { key, queue: AfterUnsubscribe::Keep });
    loop {
        match next(channel).await {
            BrokerEvent::Delivery(_) => {}
            other => return assert_eq!(other, BrokerEvent::Unsubscribed { key }),
        }
    }
}

/// Publishes the number and waits for the confirm.
async fn publish(channel: &mut Channel, routing_key: &str, number: u64) {
    let message = Outgoing {
        body: Bytes::from(number.to_string()),
        exchange: text("amq.topic"),
        mandatory: false,
        properties: Properties::default(),
        routing_key: text(routing_key),
    };
    let token = PublishToken(number);
    channel.execute(BrokerCommand::Publish(Publish { message: Arc::new(message), repeatable: true, token }));
    assert_eq!(next(channel).await, BrokerEvent::Confirmed { token });
}

/// The number in the next delivery, and whether it is flagged as redelivered.
async fn flagged_number(channel: &mut Channel) -> (u64, bool) {
    match next(channel).await {
        BrokerEvent::Delivery(delivery) => {
            assert_eq!(delivery.tag, None);
            let body = std::str::from_utf8(&delivery.message.body).expect("text");
            (body.parse().expect("a number"), delivery.redelivered)
        }
        other => panic!("expected a delivery, got {other:?}"),
    }
}

async fn number(channel: &mut Channel) -> u64 {
    let (number, redelivered) = flagged_number(channel).await;
    assert!(!redelivered);
    number
}

async fn refused(channel: &mut Channel, part: &str) {
    match next(channel).await {
        BrokerEvent::Failed { failure: Failure::Refused { reply_code: 403, reply_text }, concerns, .. } => {
            assert_eq!(concerns, Concern::Subscription(KEY));
            assert!(reply_text.contains(part), "{reply_text}");
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_one_topic_are_served_from_one_queue() {
    let place = Place::new();
    let relay = Relay::start(place.rabbit);
    let connect = place.connect();
    let mut clients = join_all((0..200).map(|_| relay.client_with(&connect))).await;
    join_all(clients.iter_mut().map(|client| client.subscribe("id:0\ndestination:/topic/news.*"))).await;
    assert_eq!((place.queues(), place.consumers()), (1, 1));
    let links = place.rabbit.ctl(&["list_connections", "vhost", "--no-table-headers"]);
    assert!(links.lines().filter(|vhost| *vhost == place.name).count() <= 2, "{links}");
    // The publisher is a subscriber too.
    for number in 0..20 {
        clients[0].send(&format!("SEND\ndestination:/topic/news.a\n\n{number}")).await;
    }
    for client in &mut clients {
        for number in 0..20 {
            let message = client.message(&number.to_string()).await;
            assert_eq!(message.header("redelivered"), Some("false"));
        }
    }
    join_all(clients.into_iter().map(Client::disconnect)).await;
    place.no_queues().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_subscribers_get_a_hundred_messages_each_once() {
    let place = Place::new();
    let mut publisher = place.lease().await;
    let mut subscribers = place.leases(1000).await;
    let queues = join_all(subscribers.iter_mut().map(|subscriber| join(subscriber, KEY, "t"))).await;
    assert!(queues.iter().all(|queue| *queue == queues[0]));
    assert_eq!((place.broker.status().shared_queues, place.broker.status().shared_subscribers), (1, 1000));
    let readers = subscribers.into_iter().map(|mut subscriber| {
        tokio::spawn(async move {
            for expected in 0..100 {
                assert_eq!(number(&mut subscriber).await, expected);
            }
            // Whatever else there is comes before what follows.
            assert_eq!(number(&mut subscriber).await, 1000);
        })
    });
    let readers = readers.collect::<Vec<_>>();
    for number in (0..100).chain([1000]) {
        publish(&mut publisher, "t", number).await;
    }
    for reader in readers {
        reader.await.expect("all came");
    }
    assert_eq!(place.broker.status().shared_subscribers, 0);
    place.no_queues().await;
    assert_eq!(place.broker.status().shared_queues, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn different_keys_are_as_many_queues_on_few_channels() {
    let place = Place::new();
    let mut sessions = place.leases(3).await;
    let keys = |session: usize| (0..100).map(move |key| (SubscriptionKey(key), format!("k.{session}.{key}")));
    join_all(sessions.iter_mut().enumerate().map(async |(number, session)| {
        for (key, routing_key) in keys(number) {
            session.execute(subscribe(key, &routing_key, Overflow::Disconnect));
        }
        for (expected, _) in keys(number) {
            assert!(matches!(next(session).await, BrokerEvent::Subscribed { key, .. } if key == expected));
        }
    }))
    .await;
    assert_eq!((place.queues(), place.consumers()), (300, 300));
    // Two for consuming, and two beside them while queues are being made.
    assert!(place.channels() <= 4, "{}", place.channels());
    let mut publisher = place.lease().await;
    for (number, session) in sessions.iter_mut().enumerate() {
        for (key, routing_key) in keys(number) {
            publish(&mut publisher, &routing_key, key.0).await;
            let BrokerEvent::Delivery(delivery) = next(session).await else { panic!("expected a delivery") };
            assert_eq!((delivery.key, &delivery.message.body[..]), (key, key.0.to_string().as_bytes()));
        }
    }
    drop(sessions);
    place.no_queues().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_and_leaves_disturbs_nobody() {
    let place = Place::new();
    let mut steady = place.lease().await;
    join(&mut steady, KEY, "t").await;
    let (sent, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut publisher = place.lease().await;
    let stream = tokio::spawn({
        let (sent, stop) = (sent.clone(), stop.clone());
        async move {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                // Counted before it goes out: whoever reads the count knows that later numbers are published later.
                sent.store(number + 1, Ordering::SeqCst);
                publish(&mut publisher, "t", number).await;
                number += 1;
                // At full speed it would keep everybody else from the processor.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            number
        }
    });
    let guests = (0..8).map(async |guest: u64| {
        for round in 0..10 {
            let mut channel = place.lease().await;
            join(&mut channel, KEY, "t").await;
            let since = sent.load(Ordering::SeqCst);
            let mut previous = None;
            loop {
                let number = number(&mut channel).await;
                assert!(previous.is_none_or(|previous| number == previous + 1), "{number} after {previous:?}");
                assert!(previous.is_some() || number <= since, "{number} is the first since {since}");
                previous = Some(number);
                if number >= since + 20 {
                    break;
                }
            }
            match (guest + round) % 3 {
                0 => drop(channel),
                1 => channel.close().await,
                _ => {
                    leave(&mut channel, KEY).await;
                    // Messages still flow, but not to this one.
                    let until = sent.load(Ordering::SeqCst) + 5;
                    while sent.load(Ordering::SeqCst) < until {
                        let silence = tokio::time::timeout(Duration::from_millis(5), channel.next_event()).await;
                        assert!(silence.is_err(), "{silence:?}");
                    }
                }
            }
        }
    });
    join_all(guests).await;
    stop.store(true, Ordering::Relaxed);
    for expected in 0..stream.await.expect("all confirmed") {
        assert_eq!(number(&mut steady).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_lingers_for_those_who_come_back() {
    let place = Place::new();
    let mut channel = place.lease().await;
    let queue = join(&mut channel, KEY, "t").await;
    leave(&mut channel, KEY).await;
    let mut publisher = place.lease().await;
    publish(&mut publisher, "t", 1).await;
    // Nobody is there to get it.
    let silence = tokio::time::timeout(Duration::from_millis(200), channel.next_event()).await;
    assert!(silence.is_err(), "{silence:?}");
    let again = SubscriptionKey(2);
    assert_eq!(join(&mut channel, again, "t").await, queue);
    publish(&mut publisher, "t", 2).await;
    assert_eq!(number(&mut channel).await, 2);
    leave(&mut channel, again).await;
    place.no_queues().await;
    assert_ne!(join(&mut channel, SubscriptionKey(3), "t").await, queue);
    publish(&mut publisher, "t", 3).await;
    assert_eq!(number(&mut channel).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_subscriber_loses_the_oldest_or_all() {
    let place = Place::with(".*", 500);
    let mut channels = place.leases(4).await.into_iter();
    let [mut publisher, mut dropping, mut leaving, mut quick] = std::array::from_fn(|_| channels.next().expect("4"));
    for (channel, overflow) in [(&mut dropping, Overflow::DropOldest), (&mut leaving, Overflow::Disconnect)] {
        channel.execute(subscribe(KEY, "t", overflow));
        assert!(matches!(next(channel).await, BrokerEvent::Subscribed { .. }));
    }
    join(&mut quick, KEY, "t").await;
    for sent in 0..200 {
        publish(&mut publisher, "t", sent).await;
        assert_eq!(number(&mut quick).await, sent);
    }
    let dropped = match next(&mut dropping).await {
        BrokerEvent::Dropped { key: KEY, messages } => messages,
        other => panic!("expected Dropped, got {other:?}"),
    };
    assert!((1..200).contains(&dropped), "{dropped}");
    for expected in dropped..200 {
        assert_eq!(number(&mut dropping).await, expected);
    }
    assert_eq!(next(&mut leaving).await, BrokerEvent::Overflowed { key: KEY });
    publish(&mut publisher, "t", 200).await;
    assert_eq!((number(&mut quick).await, number(&mut dropping).await), (200, 200));
    let silence = tokio::time::timeout(Duration::from_millis(100), leaving.next_event()).await;
    assert!(silence.is_err(), "{silence:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_closed_and_nobody_else() {
    let place = Place::new();
    let relay = Relay::start_with(place.rabbit, "[session]\nwrite_buffer_bytes_max = \"256KiB\"\n");
    let connect = place.connect();
    let mut slow = relay.client_with(&connect).await;
    let mut quick = relay.client_with(&connect).await;
    for client in [&mut slow, &mut quick] {
        client.subscribe("id:0\ndestination:/topic/t").await;
    }
    // More than the two sockets hold between them.
    let body = "x".repeat(64 * 1024);
    for _ in 0..250 {
        quick.send(&format!("SEND\ndestination:/topic/t\n\n{body}")).await;
        quick.message(&body).await;
    }
    let mut messages = 0;
    let error = loop {
        let frame = slow.frame().await;
        if frame.command.as_str() != "MESSAGE" {
            break frame;
        }
        messages += 1;
    };
    assert!((1..250).contains(&messages), "{messages}");
    assert_eq!((error.command.as_str(), error.header("message")), ("ERROR", Some("Slow consumer")));
    assert_eq!(slow.closed().await.0, 4004);
    quick.send("SEND\ndestination:/topic/t\n\nlast").await;
    quick.message("last").await;
    quick.disconnect().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_binding_harms_nobody_and_is_not_remembered() {
    let place = Place::new();
    let grant = |read: &str| {
        place.rabbit.ctl(&["set_topic_permissions", "-p", &place.name, &place.name, "amq.topic", ".*", read]);
    };
    grant("^allowed$");
    let mut neighbour = place.lease().await;
    join(&mut neighbour, KEY, "allowed").await;
    let mut publisher = place.lease().await;
    let mut refused_ones = place.leases(10).await;
    for channel in &mut refused_ones {
        channel.execute(subscribe(KEY, "forbidden", Overflow::Disconnect));
    }
    join_all(refused_ones.iter_mut().map(|channel| refused(channel, "access to topic 'forbidden'"))).await;
    publish(&mut publisher, "allowed", 1).await;
    assert_eq!(number(&mut neighbour).await, 1);
    assert_eq!(place.queues(), 1);
    grant(".*");
    let mut later = place.lease().await;
    join(&mut later, KEY, "forbidden").await;
    publish(&mut publisher, "forbidden", 2).await;
    assert_eq!(number(&mut later).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_may_not_be_read_harms_nobody() {
    let place = Place::with("^(amq[.]topic|good.*)$", 1 << 20);
    let mut neighbour = place.lease().await;
    neighbour.execute(subscribe_as(KEY, "t", Overflow::Disconnect, "good-queue"));
    assert!(matches!(next(&mut neighbour).await, BrokerEvent::Subscribed { .. }));
    let mut publisher = place.lease().await;
    for attempt in 0..5 {
        publish(&mut publisher, "t", 2 * attempt).await;
        let mut channel = place.lease().await;
        channel.execute(subscribe_as(KEY, "other", Overflow::Disconnect, "bad-queue"));
        refused(&mut channel, "access to queue 'bad-queue'").await;
        publish(&mut publisher, "t", 2 * attempt + 1).await;
    }
    for expected in 0..10 {
        assert_eq!(number(&mut neighbour).await, expected);
    }
    assert_eq!((place.queues(), place.consumers()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_hub_channel_costs_no_message() {
    /// Behind all others.
    const LAST: u64 = u64::MAX;
    let place = Place::new();
    let mut subscribers = place.leases(3).await;
    for (subscriber, routing_key) in subscribers.iter_mut().zip(["t", "t", "*"]) {
        join(subscriber, KEY, routing_key).await;
    }
    // They read all the time: whoever does not is told that its buffer is full.
    let readers = subscribers.into_iter().map(|mut subscriber| {
        tokio::spawn(async move {
            let mut expected = 0;
            loop {
                match flagged_number(&mut subscriber).await {
                    (LAST, _) => return (expected, subscriber),
                    (number, _) if number == expected => expected += 1,
                    (number, flagged) => assert!(flagged && number < expected, "{number} instead of {expected}"),
                }
            }
        })
    });
    let readers = readers.collect::<Vec<_>>();
    let stop = Arc::new(AtomicBool::new(false));
    let mut publisher = place.lease().await;
    let stream = tokio::spawn({
        let stop = stop.clone();
        async move {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                publish(&mut publisher, "t", number).await;
                number += 1;
            }
            publish(&mut publisher, "t", LAST).await;
            number
        }
    });
    for _ in 0..3 {
        place.close_consuming_channels().await;
    }
    stop.store(true, Ordering::Relaxed);
    let sent = stream.await.expect("all confirmed");
    let mut subscribers = Vec::new();
    for reader in readers {
        let (received, subscriber) = reader.await.expect("everything arrives");
        assert_eq!(received, sent);
        subscribers.push(subscriber);
    }
    assert_eq!((place.queues(), place.consumers()), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_lost_link_all_come_back_to_one_queue() {
    let place = Place::new();
    let mut subscribers = place.leases(50).await;
    join_all(subscribers.iter_mut().map(|subscriber| join(subscriber, KEY, "t"))).await;
    let rabbit = place.rabbit;
    let arguments = ["close_all_connections", "--vhost", &place.name, "test"].map(str::to_owned);
    let closing = tokio::task::spawn_blocking(move || rabbit.ctl(&arguments.each_ref().map(String::as_str)));
    join_all(subscribers.iter_mut().map(async |subscriber| {
        let lost = next(subscriber).await;
        assert!(matches!(lost, BrokerEvent::Failed { failure: Failure::LinkLost { .. }, .. }), "{lost:?}");
        restored(subscriber, Side::Consume, 0).await.expect("let in again");
        join(subscriber, KEY, "t").await;
    }))
    .await;
    closing.await.expect("ran");
    assert_eq!((place.queues(), place.consumers()), (1, 1));
    publish(&mut place.lease().await, "t", 7).await;
    for subscriber in &mut subscribers {
        assert_eq!(number(subscriber).await, 7);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_queue_is_told_to_its_subscribers() {
    let place = Place::new();
    let mut subscribers = place.leases(2).await;
    let mut queue = text("");
    for subscriber in &mut subscribers {
        queue = join(subscriber, KEY, "t").await;
    }
    // Being exclusive, it cannot be deleted by another connection.
    let delete = format!(
        "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"{}\">>, queue, <<\"{queue}\">>)), \
         rabbit_amqqueue:delete(Q, false, false, <<\"test\">>).",
        place.name
    );
    place.rabbit.ctl(&["eval", &delete]);
    for subscriber in &mut subscribers {
        assert_eq!(next(subscriber).await, BrokerEvent::SubscriptionCancelled { key: KEY });
        join(subscriber, SubscriptionKey(2), "t").await;
    }
    assert_eq!(place.queues(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_something_of_their_own_gets_a_queue_of_their_own() {
    let place = Place::new();
    let relay = Relay::start(place.rabbit);
    let connect = place.connect();
    let mut clients = [relay.client_with(&connect).await, relay.client_with(&connect).await];
    let own = [
        "ack:client",
        "ack:client-individual",
        "prefetch-count:5",
        "durable:true\nauto-delete:false",
        "exclusive:true",
        "auto-delete:true",
        "x-message-ttl:60000",
    ];
    for (number, client) in clients.iter_mut().enumerate() {
        for (id, headers) in own.iter().enumerate() {
            client.subscribe(&format!("id:{number}-{id}\ndestination:/topic/t\n{headers}")).await;
        }
        client.subscribe("id:shared\ndestination:/topic/t").await;
    }
    assert_eq!((place.queues(), place.consumers()), (2 * own.len() + 1, 2 * own.len() + 1));
    let [sender, other] = &mut clients;
    sender.send("SEND\ndestination:/topic/t\n\nhello").await;
    for client in [sender, other] {
        for _ in 0..=own.len() {
            client.message("hello").await;
        }
        client.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsubscribe_amid_messages_is_clean() {
    let place = Place::new();
    let relay = Relay::start(place.rabbit);
    let connect = place.connect();
    let mut publisher = relay.client_with(&connect).await;
    let mut client = relay.client_with(&connect).await;
    client.subscribe("id:0\ndestination:/topic/t").await;
    for number in 0..100 {
        publisher.send(&format!("SEND\ndestination:/topic/t\n\n{number}")).await;
        if number == 50 {
            client.send("UNSUBSCRIBE\nid:0\nreceipt:gone\n\n").await;
        }
    }
    let mut expected = 0;
    loop {
        let Received::Frame(frame) = client.receive().await else { continue };
        if frame.command.as_str() == "RECEIPT" {
            break;
        }
        assert_eq!(String::from_utf8_lossy(&frame.body), expected.to_string());
        expected += 1;
    }
    client.quiet().await;
    client.disconnect().await;
}
