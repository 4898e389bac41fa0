//! Links that are lost, fall silent or are killed by one of their sessions; and channels that are given back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::support::fault_proxy::{Direction, FaultProxy, Mode};
use super::support::rabbit::{Admin, Rabbit, unique};
use super::support::relay::Relay;
use super::support::stomp::Client;
use bytes::Bytes;
use stomp_relay::broker::{Broker, BrokerConfig, Channel, ClientLabel, Encryption, Node, Role};
use stomp_relay::session::amqp::{Properties, QueueDeclaration, ShortText};
use stomp_relay::session::command::{
    AfterUnsubscribe, BrokerCommand, Credentials, Outgoing, Publish, PublishToken, Settlement, Sharing, Subscribe,
    SubscribedQueue, SubscriptionKey,
};
use stomp_relay::session::event::{BrokerEvent, Delivery, Failure, LoginFailure};

/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

fn guest() -> Credentials {
    Credentials { login: "guest".into(), passcode: "guest".into() }
}

fn node(host: &str, port: u16) -> Node {
    Node { host: host.into(), port, encryption: Encryption::Plain }
}

fn config(ports: &[u16]) -> BrokerConfig {
    BrokerConfig { nodes: ports.iter().map(|port| node("127.0.0.1", *port)).collect(), ..BrokerConfig::default() }
}

fn broker(config: BrokerConfig) -> Broker {
    Broker::new(config).expect("the configuration is fine")
}

async fn lease(broker: &Broker) -> Channel {
    broker.login("/", &guest(), &ClientLabel::default()).await.expect("guest is let in").0
}

async fn unavailable(broker: &Broker) -> String {
    match broker.login("/", &guest(), &ClientLabel::default()).await.map(|_| ()) {
        Err(LoginFailure::Unavailable { reason }) => reason,
        other => panic!("the broker should be unavailable: {other:?}"),
    }
}

async fn next(channel: &mut Channel) -> BrokerEvent {
    tokio::time::timeout(PATIENCE, channel.next_event()).await.expect("an event comes in time")
}

fn text(text: &str) -> ShortText {
    ShortText::new(text).expect("short")
}

fn send(channel: &mut Channel, token: u64, exchange: &str, routing_key: &str) {
    let message = Outgoing {
        body: Bytes::from_static(b"body"),
        exchange: text(exchange),
        mandatory: false,
        properties: Properties::default(),
        routing_key: text(routing_key),
    };
    channel.execute(BrokerCommand::Publish(Publish { message: Arc::new(message), token: PublishToken(token) }));
}

async fn publish(channel: &mut Channel, token: u64, queue: &str) {
    send(channel, token, "", queue);
    assert_eq!(next(channel).await, BrokerEvent::Confirmed { token: PublishToken(token) });
}

/// Publishes to a queue that the channel consumes; the confirm and the delivery come in any order.
async fn round_trip(channel: &mut Channel, token: u64, queue: &str) -> Delivery {
    send(channel, token, "", queue);
    match (next(channel).await, next(channel).await) {
        (BrokerEvent::Delivery(delivery), BrokerEvent::Confirmed { .. })
        | (BrokerEvent::Confirmed { .. }, BrokerEvent::Delivery(delivery)) => delivery,
        other => panic!("unexpected {other:?}"),
    }
}

fn acknowledge(channel: &mut Channel, delivery: &Delivery) {
    let tag = delivery.tag.expect("an own consumer's deliveries have tags");
    channel.execute(BrokerCommand::Settle { tag, outcome: Settlement::Ack });
}

async fn refused_publish(channel: &mut Channel) {
    send(channel, 2, "no-such-exchange", "");
    let event = next(channel).await;
    assert!(
        matches!(event, BrokerEvent::Failed { failure: Failure::Refused { reply_code: 404, .. }, .. }),
        "unexpected {event:?}"
    );
}

fn subscribe(key: u64, queue: SubscribedQueue) -> BrokerCommand {
    BrokerCommand::Subscribe(Subscribe {
        binding: None,
        consumer_arguments: vec![],
        exclusive: false,
        key: SubscriptionKey(key),
        prefetch: 10,
        queue,
        sharing: Sharing::Own,
    })
}

async fn subscribed(channel: &mut Channel, key: u64, queue: &str) {
    channel.execute(subscribe(key, SubscribedQueue::Existing(text(queue))));
    assert_eq!(next(channel).await, BrokerEvent::Subscribed { key: SubscriptionKey(key), queue: text(queue) });
}

async fn unsubscribed(channel: &mut Channel, key: u64) {
    channel.execute(BrokerCommand::Unsubscribe { key: SubscriptionKey(key), queue: AfterUnsubscribe::Keep });
    assert_eq!(next(channel).await, BrokerEvent::Unsubscribed { key: SubscriptionKey(key) });
}

async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !check().await {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Drives a channel that must stay silent while `work` goes on.
async fn while_driving<T>(channel: &mut Channel, work: impl Future<Output = T>) -> T {
    tokio::select! {
        event = channel.next_event() => panic!("unexpected {event:?}"),
        result = work => result,
    }
}

fn channels(broker: &Broker, role: Role) -> usize {
    broker.status().links.iter().filter(|link| link.role == role).map(|link| link.channels).sum()
}

fn links(broker: &Broker, role: Role) -> usize {
    broker.status().links.iter().filter(|link| link.role == role).count()
}

/// A port on which nobody listens.
fn closed_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port can be bound");
    listener.local_addr().expect("it is bound").port()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_falls_silent_is_left_within_two_heartbeats() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let queue = unique("silent");
    admin.queue(&queue).await;
    let proxy = FaultProxy::start(rabbit.amqp_port()).await;
    let heartbeat = Duration::from_secs(1);
    let connect_timeout = Duration::from_secs(2);
    let broker = broker(BrokerConfig { connect_timeout, heartbeat, ..config(&[proxy.port()]) });
    let mut channel = lease(&broker).await;
    subscribed(&mut channel, 1, &queue).await;
    round_trip(&mut channel, 1, &queue).await;
    // Longer than two intervals without traffic: heartbeats keep it alive.
    while_driving(&mut channel, tokio::time::sleep(heartbeat * 3)).await;
    // So does a slow network.
    proxy.set(Mode::Delay(heartbeat / 4));
    round_trip(&mut channel, 2, &queue).await;
    while_driving(&mut channel, tokio::time::sleep(heartbeat * 3)).await;

    proxy.set(Mode::Swallow);
    let start = Instant::now();
    match next(&mut channel).await {
        BrokerEvent::Failed { failure: Failure::LinkLost { reason }, .. } => {
            assert!(reason.to_lowercase().contains("heartbeat"), "{reason}");
        }
        other => panic!("unexpected {other:?}"),
    }
    assert!(start.elapsed() < heartbeat * 2 + Duration::from_millis(1500), "{:?}", start.elapsed());
    eventually("both links are gone", async || broker.status().links.is_empty()).await;

    // One attempt costs the timeout; who comes after it is told at once.
    let failure = channel.renewal(0).await.map(|_| ()).expect_err("the broker is silent");
    assert!(matches!(failure, LoginFailure::Unavailable { .. }), "{failure:?}");
    let start = Instant::now();
    channel.renewal(0).await.map(|_| ()).expect_err("the broker is silent");
    assert!(start.elapsed() < connect_timeout / 2, "{:?}", start.elapsed());

    proxy.set(Mode::Forward);
    proxy.cut();
    let mut attempt = 1;
    let (mut channel, _) = loop {
        match channel.renewal(attempt).await {
            Ok(renewed) => break renewed,
            Err(_) => attempt += 1,
        }
        assert!(start.elapsed() < PATIENCE);
    };
    subscribed(&mut channel, 1, &queue).await;
    match next(&mut channel).await {
        BrokerEvent::Delivery(delivery) => assert!(delivery.redelivered),
        other => panic!("unexpected {other:?}"),
    }
    channel.close().await;
    admin.channel.queue_delete(queue.into(), Default::default()).await.expect("deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_is_tried_at_once_and_a_dead_one_not_again() {
    let rabbit = Rabbit::shared();
    let silent = FaultProxy::start(rabbit.amqp_port()).await;
    silent.set(Mode::Swallow);
    let connect_timeout = Duration::from_millis(700);
    let ports = [closed_port(), silent.port(), closed_port(), rabbit.amqp_port()];
    let broker = broker(BrokerConfig { connect_timeout, login_wait: Duration::ZERO, ..config(&ports) });
    // Whichever comes first: one login meets all that are dead, if they come before the one that lives.
    for _ in 0..ports.len() {
        let start = Instant::now();
        let channel = lease(&broker).await;
        assert!(start.elapsed() < connect_timeout * 2, "{:?}", start.elapsed());
        broker.status().links.iter().for_each(|link| assert!(link.node.ends_with(&ports[3].to_string())));
        channel.close().await;
    }
    // The probe that watches a dead node leaves the logins alone.
    let start = Instant::now();
    let mut channels = Vec::new();
    for _ in 0..20 {
        channels.push(lease(&broker).await);
    }
    assert!(start.elapsed() < connect_timeout, "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_that_wait_for_a_broker_do_not_storm_it() {
    let rabbit = Rabbit::shared();
    let proxy = FaultProxy::start(rabbit.amqp_port()).await;
    let broker = broker(config(&[proxy.port()]));
    let mut channels = Vec::new();
    for _ in 0..200 {
        channels.push(lease(&broker).await);
    }
    proxy.set(Mode::Refuse);
    proxy.cut();
    eventually("the links are gone", async || broker.status().links.is_empty()).await;
    let before = proxy.accepted();
    let outage = Duration::from_secs(3);
    let waiting = channels.iter().map(|channel| async {
        let mut attempt = 0;
        loop {
            match channel.renewal(attempt).await {
                Ok((mut channel, _)) => {
                    // A session polls its lease, which gives its pass back when nothing is left to make anew.
                    let _ = tokio::time::timeout(Duration::from_millis(1), channel.next_event()).await;
                    return channel;
                }
                Err(_) => attempt += 1,
            }
        }
    });
    let back = async {
        tokio::time::sleep(outage).await;
        let tries = proxy.accepted() - before;
        proxy.set(Mode::Forward);
        tries
    };
    let start = Instant::now();
    let both = async { tokio::join!(futures_util::future::join_all(waiting), back) };
    let (renewed, tries) = tokio::time::timeout(PATIENCE, both).await.expect("all come back");
    // At first some pauses are short; then one attempt a second, however many wait.
    assert!((1..=15).contains(&tries), "{tries} attempts within {outage:?}");
    assert!(start.elapsed() < outage + Duration::from_secs(4), "{:?}", start.elapsed());
    assert_eq!((renewed.len(), links(&broker, Role::Consume)), (200, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_that_are_not_used_are_given_back() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let queue = unique("idle");
    admin.queue(&queue).await;
    let channel_idle = Duration::from_millis(200);
    let broker = broker(BrokerConfig { channel_idle, ..config(&[rabbit.amqp_port()]) });
    let mut channel = lease(&broker).await;
    for round in 0..3 {
        publish(&mut channel, 2 * round, &queue).await;
        subscribed(&mut channel, round, &queue).await;
        let BrokerEvent::Delivery(first) = next(&mut channel).await else { panic!("not a delivery") };
        unsubscribed(&mut channel, round).await;
        let given_back = async {
            eventually("the publish channel is given back", async || channels(&broker, Role::Publish) == 0).await;
        };
        while_driving(&mut channel, given_back).await;
        // What is not settled keeps the other one.
        assert_eq!(channels(&broker, Role::Consume), 1);
        acknowledge(&mut channel, &first);
        let given_back = async {
            eventually("the consume channel is given back", async || channels(&broker, Role::Consume) == 0).await;
            assert_eq!(admin.ready(&queue).await, Some(0));
        };
        while_driving(&mut channel, given_back).await;
        // Said twice, on a new channel: it must not touch what has the same tag there.
        publish(&mut channel, 2 * round + 1, &queue).await;
        subscribed(&mut channel, 100 + round, &queue).await;
        let BrokerEvent::Delivery(second) = next(&mut channel).await else { panic!("not a delivery") };
        acknowledge(&mut channel, &first);
        assert_ne!(second.tag, first.tag);
        acknowledge(&mut channel, &second);
        unsubscribed(&mut channel, 100 + round).await;
    }
    channel.close().await;
    admin.channel.queue_delete(queue.into(), Default::default()).await.expect("deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn exclusive_queues_and_subscriptions_keep_their_channel() {
    let rabbit = Rabbit::shared();
    let channel_idle = Duration::from_millis(50);
    let broker = broker(BrokerConfig { channel_idle, ..config(&[rabbit.amqp_port()]) });
    let mut channel = lease(&broker).await;
    let queue = QueueDeclaration {
        arguments: vec![],
        auto_delete: false,
        durable: false,
        exclusive: true,
        name: text(&unique("exclusive")),
    };
    channel.execute(subscribe(1, SubscribedQueue::Declared(queue)));
    assert!(matches!(next(&mut channel).await, BrokerEvent::Subscribed { .. }));
    while_driving(&mut channel, tokio::time::sleep(channel_idle * 5)).await;
    unsubscribed(&mut channel, 1).await;
    while_driving(&mut channel, tokio::time::sleep(channel_idle * 5)).await;
    assert_eq!(channels(&broker, Role::Consume), 1);
    channel.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_holds_nothing_does_not_notice_a_lost_link() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let queue = unique("nothing");
    admin.queue(&queue).await;
    let proxy = FaultProxy::start(rabbit.amqp_port()).await;
    let broker = broker(config(&[proxy.port()]));
    let mut channel = lease(&broker).await;
    for token in 0..3 {
        publish(&mut channel, token, &queue).await;
        subscribed(&mut channel, token, &queue).await;
        let BrokerEvent::Delivery(delivery) = next(&mut channel).await else { panic!("not a delivery") };
        acknowledge(&mut channel, &delivery);
        unsubscribed(&mut channel, token).await;
        let settled = eventually("settled", async || admin.ready(&queue).await == Some(0));
        while_driving(&mut channel, settled).await;
        proxy.cut();
        let lost = eventually("the links are gone", async || broker.status().links.is_empty());
        while_driving(&mut channel, lost).await;
    }
    channel.close().await;
    admin.channel.queue_delete(queue.into(), Default::default()).await.expect("deleted");
}

/// Stops the process behind a queue: what asks for the queue gets no answer, everything else goes on.
fn suspend(rabbit: &Rabbit, queue: &str, what: &str) {
    let find = format!("{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>))");
    rabbit.ctl(&["eval", &format!("{find}, sys:{what}(amqqueue:get_pid(Q)).")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_takes_too_long_leaves_a_well_link_alone() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let (stuck, well) = (unique("stuck"), unique("well"));
    admin.queue(&stuck).await;
    admin.queue(&well).await;
    let (heartbeat, operation_timeout) = (Duration::from_secs(1), Duration::from_secs(2));
    let broker = broker(BrokerConfig { heartbeat, operation_timeout, ..config(&[rabbit.amqp_port()]) });
    let (mut patient, mut neighbour) = (lease(&broker).await, lease(&broker).await);
    subscribed(&mut neighbour, 1, &well).await;
    suspend(rabbit, &stuck, "suspend");
    patient.execute(subscribe(1, SubscribedQueue::Existing(text(&stuck))));
    let event = next(&mut patient).await;
    assert!(
        matches!(event, BrokerEvent::Failed { failure: Failure::TimedOut { step: "consume" }, .. }),
        "unexpected {event:?}"
    );
    // Old and new neighbours are served by the same link, also while the stuck channel is being given back.
    let mut another = lease(&broker).await;
    subscribed(&mut another, 1, &well).await;
    while_driving(&mut neighbour, tokio::time::sleep(operation_timeout * 2)).await;
    assert_eq!(links(&broker, Role::Consume), 1);
    suspend(rabbit, &stuck, "resume");
    eventually("the stuck channel is given back", async || channels(&broker, Role::Consume) == 2).await;
    publish(&mut another, 1, &well).await;
    assert_eq!(links(&broker, Role::Consume), 1);
    neighbour.close().await;
    another.close().await;
    for queue in [stuck, well] {
        admin.channel.queue_delete(queue.into(), Default::default()).await.expect("deleted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_rabbitmq_is_named_as_such() {
    let rabbit = Rabbit::shared();
    let http = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port can be bound");
    let http_port = http.local_addr().expect("it is bound").port();
    std::thread::spawn(move || {
        for stream in http.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
            let _ = std::io::Read::read(&mut stream, &mut [0; 64]);
        }
    });
    let silent = FaultProxy::start(rabbit.amqp_port()).await;
    silent.set(Mode::Swallow);
    let closing = FaultProxy::start(rabbit.amqp_port()).await;
    closing.set(Mode::Refuse);
    let cases = [
        (node("no-such-host.invalid", 5672), "no-such-host.invalid:5672: ", "lookup", "lookup"),
        (node("127.0.0.1", closed_port()), "127.0.0.1:", "refused", "refused"),
        (node("127.0.0.1", http_port), "127.0.0.1:", "does not speak AMQP 0-9-1", "does not speak AMQP 0-9-1"),
        (node("127.0.0.1", silent.port()), "127.0.0.1:", "no AMQP handshake within 300ms", "no answer within 300ms"),
        (node("127.0.0.1", closing.port()), "127.0.0.1:", "before the AMQP handshake", ""),
    ];
    for (node, name, login, probe) in cases {
        let connect_timeout = Duration::from_millis(300);
        let limits = BrokerConfig { connect_timeout, login_wait: Duration::ZERO, ..BrokerConfig::default() };
        let broker = broker(BrokerConfig { nodes: vec![node], ..limits });
        let reason = unavailable(&broker).await;
        let probed = broker.probe().await.expect_err("it is no RabbitMQ");
        for (text, expected) in [(reason, login), (probed, probe)] {
            assert!(text.starts_with(name) && text.contains(expected) && !text.contains('\n'), "{text:?}: {expected}");
        }
    }
}

/// Clients of one user, each with a queue of its own, on shared links behind the proxy.
async fn neighbours(relay: &Relay, admin: &Admin, count: usize) -> Vec<(String, Client)> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let queue = unique("neighbour");
        admin.queue(&queue).await;
        let mut client = relay.client().await;
        client.subscribe(&format!("id:1\ndestination:/amq/queue/{queue}")).await;
        clients.push((queue, client));
    }
    clients
}

/// Each of them still gets its messages, and can send.
async fn all_are_well(clients: &mut [(String, Client)], body: &str) {
    for (queue, client) in clients {
        client.send(&format!("SEND\ndestination:/amq/queue/{queue}\nreceipt:{body}\n\n{body}")).await;
        let mut wanted = BTreeSet::from(["RECEIPT", "MESSAGE"]);
        while !wanted.is_empty() {
            let frame = client.frame().await;
            assert!(wanted.remove(frame.command.as_str()), "{frame:?}");
        }
    }
}

async fn remove(admin: &Admin, clients: Vec<(String, Client)>) {
    for (queue, client) in clients {
        client.disconnect().await;
        admin.channel.queue_delete(queue.into(), Default::default()).await.expect("deleted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_kills_links_ends_its_consumer_only() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let proxy = FaultProxy::start(rabbit.amqp_port()).await;
    let relay = Relay::start_at(&format!("amqp://127.0.0.1:{}", proxy.port()), "");
    let mut clients = neighbours(&relay, &admin, 20).await;
    let (poisoned, poison) = (unique("poisoned"), unique("poison"));
    admin.queue(&poisoned).await;
    proxy.garble(Some((Direction::FromServer, poison.as_bytes())));
    admin.send(&poisoned, poison.as_bytes()).await;
    for _ in 0..2 {
        let mut culprit = relay.client().await;
        culprit.send(&format!("SUBSCRIBE\nid:p\ndestination:/amq/queue/{poisoned}\n\n")).await;
        let error = culprit.error("Unreadable message").await;
        assert!(String::from_utf8_lossy(&error.body).contains(&poisoned), "{error:?}");
        assert_eq!(culprit.closed().await.0, 1011);
        all_are_well(&mut clients, "well").await;
    }
    proxy.garble(None);
    remove(&admin, clients).await;
    admin.channel.queue_delete(poisoned.into(), Default::default()).await.expect("deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_to_a_queue_that_kills_links_disturbs_nobody() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let proxy = FaultProxy::start(rabbit.amqp_port()).await;
    let broker = broker(config(&[proxy.port()]));
    let (poisoned, poison, well) = (unique("poisoned"), unique("poison"), unique("well"));
    admin.queue(&poisoned).await;
    admin.queue(&well).await;
    proxy.garble(Some((Direction::FromServer, poison.as_bytes())));
    admin.send(&poisoned, poison.as_bytes()).await;
    let mut culprit = lease(&broker).await;
    let mut deaths = 0;
    loop {
        culprit.execute(subscribe(1, SubscribedQueue::Existing(text(&poisoned))));
        let mut event = next(&mut culprit).await;
        if matches!(event, BrokerEvent::Subscribed { .. }) {
            event = next(&mut culprit).await;
        }
        match event {
            BrokerEvent::Failed { failure: Failure::LinkLost { .. }, .. } => deaths += 1,
            BrokerEvent::Failed { failure: Failure::Poisoned { queues }, .. } => {
                assert_eq!(queues, [text(&poisoned)]);
                break;
            }
            other => panic!("unexpected {other:?}"),
        }
        culprit = culprit.renewal(0).await.expect("the broker is there").0;
    }
    // On a link for all, on one for few, and the third time on one of its own.
    assert_eq!(deaths, 2);

    let mut neighbour = lease(&broker).await;
    subscribed(&mut neighbour, 1, &well).await;
    let work = async {
        // Its first command is about that queue: it gets a link of its own at once.
        let mut culprit = lease(&broker).await;
        culprit.execute(subscribe(1, SubscribedQueue::Existing(text(&poisoned))));
        let mut event = next(&mut culprit).await;
        if matches!(event, BrokerEvent::Subscribed { .. }) {
            event = next(&mut culprit).await;
        }
        assert!(matches!(event, BrokerEvent::Failed { failure: Failure::Poisoned { .. }, .. }), "{event:?}");
        // Its channel is among others: it is refused.
        let mut culprit = lease(&broker).await;
        subscribed(&mut culprit, 1, &well).await;
        culprit.execute(subscribe(2, SubscribedQueue::Existing(text(&poisoned))));
        let event = next(&mut culprit).await;
        assert!(matches!(event, BrokerEvent::Failed { failure: Failure::Poisoned { .. }, .. }), "{event:?}");
    };
    while_driving(&mut neighbour, work).await;
    publish(&mut neighbour, 1, "nowhere").await;
    neighbour.close().await;
    for queue in [poisoned, well] {
        admin.channel.queue_delete(queue.into(), Default::default()).await.expect("deleted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_kills_links_ends_alone() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let proxy = FaultProxy::start(rabbit.amqp_port()).await;
    let relay = Relay::start_at(&format!("amqp://127.0.0.1:{}", proxy.port()), "");
    let mut clients = neighbours(&relay, &admin, 20).await;
    all_are_well(&mut clients, "before").await;
    let poison = unique("poison");
    proxy.garble(Some((Direction::ToServer, poison.as_bytes())));
    let mut culprit = relay.client().await;
    culprit.send(&format!("SEND\ndestination:/topic/nowhere\nreceipt:r\n\n{poison}")).await;
    let error = culprit.expect("ERROR").await;
    assert!(String::from_utf8_lossy(&error.body).contains("FRAME_ERROR"), "{error:?}");
    assert_eq!(culprit.closed().await.0, 1011);
    all_are_well(&mut clients, "after").await;
    proxy.garble(None);
    remove(&admin, clients).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn surviving_subscriptions_miss_nothing_while_links_are_cut() {
    const MESSAGES: usize = 300;
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let proxy = FaultProxy::start(rabbit.amqp_port()).await;
    let settings = "[subscriptions]\nsurvive = \"60s\"\n";
    let relay = Relay::start_at(&format!("amqp://127.0.0.1:{}", proxy.port()), settings);
    let topic = unique("survive");
    let mut auto = relay.client().await;
    auto.subscribe(&format!("id:1\ndestination:/topic/{topic}")).await;
    let mut manual = relay.client().await;
    manual.subscribe(&format!("id:1\nack:client-individual\ndestination:/topic/{topic}")).await;
    let publisher = async {
        for number in 0..MESSAGES {
            match number {
                50 | 150 => proxy.cut(),
                100 | 200 => {
                    proxy.set(Mode::Refuse);
                    proxy.cut();
                    eventually("the links are cut", async || proxy.live() == 0).await;
                }
                130 | 230 => proxy.set(Mode::Forward),
                _ => {}
            }
            let body = number.to_string();
            let (exchange, key) = ("amq.topic".into(), topic.as_str().into());
            let properties = lapin::BasicProperties::default();
            admin
                .channel
                .basic_publish(exchange, key, Default::default(), body.as_bytes(), properties)
                .await
                .expect("the message is written");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let reader = async |client: &mut Client, acknowledges: bool| {
        let mut expected = 0;
        while expected < MESSAGES {
            let frame = client.expect("MESSAGE").await;
            let number: usize = String::from_utf8_lossy(&frame.body).parse().expect("a number");
            if acknowledges {
                client.send(&format!("ACK\nid:{}\n\n", frame.header("ack").expect("STOMP 1.2"))).await;
            }
            match frame.header("redelivered") {
                // What was seen before comes again, or what was on its way comes late.
                Some("true") => assert!(number <= expected, "{number} after {expected}"),
                _ => assert_eq!(number, expected),
            }
            expected = expected.max(number + 1);
        }
    };
    tokio::join!(publisher, reader(&mut auto, false), reader(&mut manual, true));
    let queues = || rabbit.ctl(&["list_bindings", "routing_key", "destination_name"]).contains(&topic);
    assert!(queues());
    auto.send("UNSUBSCRIBE\nid:1\nreceipt:u\n\n").await;
    auto.receipt("u").await;
    auto.disconnect().await;
    manual.disconnect().await;
    assert!(!queues(), "the queues are deleted at the orderly end");
}

/// One short session that ends in one of many ways, at any stage of what it does.
async fn short_life(broker: Broker, number: usize) {
    let mut channel = lease(&broker).await;
    let queue = QueueDeclaration {
        arguments: vec![],
        auto_delete: true,
        durable: false,
        exclusive: true,
        name: text(&unique("churn")),
    };
    let name = queue.name.as_str().to_owned();
    channel.execute(subscribe(1, SubscribedQueue::Declared(queue)));
    if number.is_multiple_of(7) {
        // Dropped unpolled, or in the midst of its first operations.
        return while_dropping(channel, Duration::from_millis(number as u64 % 30)).await;
    }
    assert!(matches!(next(&mut channel).await, BrokerEvent::Subscribed { .. }));
    if number % 7 == 1 {
        return;
    }
    let delivery = round_trip(&mut channel, 1, &name).await;
    if number % 7 == 2 {
        return;
    }
    acknowledge(&mut channel, &delivery);
    match number % 7 {
        3 => return,
        4 => return refused_publish(&mut channel).await,
        5 => unsubscribed(&mut channel, 1).await,
        _ => {}
    }
    channel.close().await;
}

async fn while_dropping(mut channel: Channel, after: Duration) {
    let _ = tokio::time::timeout(after, channel.next_event()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn churn_leaves_nothing_behind() {
    const ROUNDS: usize = 10;
    const LEASES: usize = 500;
    let rabbit = Rabbit::start();
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let tasks_before = tasks();
    let broker = broker(config(&[rabbit.amqp_port()]));
    let peak = Arc::new(std::sync::Mutex::new([0; 2]));
    let (watched, peaks) = (broker.clone(), peak.clone());
    let watcher = tokio::spawn(async move {
        loop {
            for (at, role) in [Role::Consume, Role::Publish].into_iter().enumerate() {
                let now = links(&watched, role);
                let mut peaks = peaks.lock().unwrap();
                peaks[at] = now.max(peaks[at]);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    for round in 0..ROUNDS {
        let lives = (0..LEASES).map(|number| tokio::spawn(short_life(broker.clone(), number + round)));
        for life in futures_util::future::join_all(lives).await {
            life.expect("no life fails");
        }
        eventually("all channels are given back", async || {
            channels(&broker, Role::Consume) + channels(&broker, Role::Publish) == 0
        })
        .await;
    }
    watcher.abort();
    let peak = *peak.lock().unwrap();
    assert!(peak.iter().all(|links| *links <= LEASES.div_ceil(64) + 1), "{peak:?}");
    assert_eq!(rabbit.ctl(&["list_queues", "name"]).lines().filter(|line| line.starts_with("churn")).count(), 0);
    assert_eq!(
        rabbit.ctl(&["list_consumers", "queue_name"]).lines().filter(|line| line.starts_with("churn")).count(),
        0
    );
    let open = rabbit.ctl(&["list_channels", "pid"]).lines().filter(|line| line.starts_with('<')).count();
    assert_eq!(open, 0, "channels that the broker still has");
    broker.shutdown().await;
    eventually("all tasks have ended", async || tasks() <= tasks_before).await;
    eventually("the broker has no connection left", async || {
        !rabbit.ctl(&["list_connections", "pid"]).lines().any(|line| line.starts_with('<'))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_whose_channel_numbers_are_burnt_is_replaced() {
    let rabbit = Rabbit::shared();
    let broker = broker(config(&[rabbit.amqp_port()]));
    let mut neighbour = lease(&broker).await;
    publish(&mut neighbour, 0, "nowhere").await;
    // The broker closes each one's channel. 256 of them are borne.
    for _ in 0..260 {
        let mut channel = lease(&broker).await;
        refused_publish(&mut channel).await;
    }
    let mut newcomer = lease(&broker).await;
    publish(&mut newcomer, 0, "nowhere").await;
    assert_eq!(links(&broker, Role::Publish), 2);
    // The old one serves those who have it, and ends with them.
    publish(&mut neighbour, 1, "nowhere").await;
    neighbour.close().await;
    eventually("the old link is closed", async || links(&broker, Role::Publish) == 1).await;
    publish(&mut newcomer, 1, "nowhere").await;
    newcomer.close().await;
}
