//! The broker side against a real RabbitMQ: leases, confirms, returns, acknowledgements, isolation, cleaning up.

use super::support::rabbit::{Rabbit, unique};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stomp_relay::broker::{Broker, BrokerConfig, Channel, ClientLabel, Encryption, Node, Role};
use stomp_relay::session::amqp::{Binding, FieldValue, Properties, QueueDeclaration, ShortText};
use stomp_relay::session::command::{
    AfterUnsubscribe, BrokerCommand, Credentials, DeclareToken, DeliveryTag, Outgoing, Publish, PublishToken,
    Settlement, Sharing, Subscribe, SubscribedQueue, SubscriptionKey,
};
use stomp_relay::session::event::{BrokerEvent, Concern, Delivery, Failure, LoginFailure};

/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

fn text(text: &str) -> ShortText {
    ShortText::new(text).expect("short")
}

fn guest() -> Credentials {
    credentials("guest", "guest")
}

fn credentials(login: &str, passcode: &str) -> Credentials {
    Credentials { login: login.into(), passcode: passcode.into() }
}

fn config(port: u16) -> BrokerConfig {
    BrokerConfig {
        nodes: vec![Node { host: "127.0.0.1".into(), port, encryption: Encryption::Plain }],
        ..BrokerConfig::default()
    }
}

fn broker() -> Broker {
    Broker::new(config(Rabbit::shared().amqp_port())).expect("the configuration is fine")
}

async fn lease(broker: &Broker) -> Channel {
    broker.login("/", &guest(), &ClientLabel("test".into())).await.expect("guest is let in").0
}

async fn login_error(broker: &Broker, vhost: &str, credentials: Credentials) -> LoginFailure {
    broker.login(vhost, &credentials, &ClientLabel::default()).await.err().expect("the login is refused")
}

async fn next(channel: &mut Channel) -> BrokerEvent {
    tokio::time::timeout(PATIENCE, channel.next_event()).await.expect("an event comes in time")
}

async fn delivery(channel: &mut Channel) -> Delivery {
    match next(channel).await {
        BrokerEvent::Delivery(delivery) => delivery,
        other => panic!("expected a delivery, got {other:?}"),
    }
}

async fn close(mut channel: Channel) {
    channel.execute(BrokerCommand::Close);
    assert_eq!(next(&mut channel).await, BrokerEvent::Closed);
}

fn publish(token: u64, exchange: &str, routing_key: &str) -> Publish {
    publish_as(token, exchange, routing_key, |_| {})
}

/// The same with changes.
fn publish_as(token: u64, exchange: &str, routing_key: &str, change: impl FnOnce(&mut Outgoing)) -> Publish {
    let mut message = Outgoing {
        body: Bytes::from(format!("body {token}")),
        exchange: text(exchange),
        mandatory: false,
        properties: Properties { message_id: Some(text(&format!("m-{token}"))), ..Properties::default() },
        routing_key: text(routing_key),
    };
    change(&mut message);
    Publish { message: Arc::new(message), token: PublishToken(token) }
}

fn subscribe(key: u64, queue: SubscribedQueue, prefetch: u16) -> BrokerCommand {
    BrokerCommand::Subscribe(Subscribe {
        binding: None,
        consumer_arguments: vec![],
        exclusive: false,
        key: SubscriptionKey(key),
        prefetch,
        queue,
        sharing: Sharing::Own,
    })
}

fn existing(queue: &str) -> SubscribedQueue {
    SubscribedQueue::Existing(text(queue))
}

fn declaration(name: &str) -> QueueDeclaration {
    QueueDeclaration { arguments: vec![], auto_delete: false, durable: false, exclusive: false, name: text(name) }
}

fn exclusive(name: &str) -> QueueDeclaration {
    QueueDeclaration { exclusive: true, ..declaration(name) }
}

async fn subscribed(channel: &mut Channel, key: u64, queue: &str, prefetch: u16) {
    channel.execute(subscribe(key, existing(queue), prefetch));
    assert_eq!(next(channel).await, BrokerEvent::Subscribed { key: SubscriptionKey(key), queue: text(queue) },);
}

fn tag(delivery: &Delivery) -> DeliveryTag {
    delivery.tag.expect("an own consumer's deliveries have tags")
}

fn settle(channel: &mut Channel, tag: DeliveryTag, outcome: Settlement) {
    channel.execute(BrokerCommand::Settle { tag, outcome });
}

/// Waits for a condition of the broker.
async fn eventually<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
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

#[tokio::test(flavor = "multi_thread")]
async fn login_is_judged_by_the_broker() {
    let rabbit = Rabbit::shared();
    let broker = broker();
    let (user, vhost) = (unique("user"), unique("vhost"));
    rabbit.ctl(&["add_vhost", &vhost]);
    rabbit.add_user(&user, "secret", "/", [".*", ".*", ".*"]);

    let (channel, info) = broker.login("/", &guest(), &ClientLabel::default()).await.expect("guest is let in");
    assert!(info.version.starts_with(|first: char| first.is_ascii_digit()), "{info:?}");
    assert_eq!(login_error(&broker, "/", credentials("guest", "wrong")).await, LoginFailure::AccessRefused);
    assert_eq!(login_error(&broker, "/", credentials("nobody", "guest")).await, LoginFailure::AccessRefused);
    assert_eq!(login_error(&broker, "/", credentials("guest\0x", "guest")).await, LoginFailure::AccessRefused);
    for (vhost, credentials) in [("no such vhost", guest()), (vhost.as_str(), credentials(&user, "secret"))] {
        let failure = login_error(&broker, vhost, credentials).await;
        assert!(
            matches!(&failure, LoginFailure::VirtualHost { reply_text } if reply_text.starts_with("NOT_ALLOWED - ")),
            "{vhost}: {failure:?}"
        );
    }
    let long = "v".repeat(300);
    assert!(matches!(login_error(&broker, &long, guest()).await, LoginFailure::VirtualHost { .. }));
    broker.probe().await.expect("the broker is there");

    let roles = broker.status().links.iter().map(|link| link.role).collect::<Vec<_>>();
    assert_eq!(roles, [Role::Consume]);
    close(channel).await;
    broker.shutdown().await;
    assert!(broker.status().links.is_empty());
    assert!(matches!(login_error(&broker, "/", guest()).await, LoginFailure::Unavailable { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_passcode_is_noticed_at_the_next_check() {
    let rabbit = Rabbit::shared();
    let user = unique("user");
    rabbit.add_user(&user, "old", "/", [".*", ".*", ".*"]);
    let rarely = broker();
    let config = BrokerConfig { recheck: Duration::ZERO, ..config(rabbit.amqp_port()) };
    let always = Broker::new(config).expect("the configuration is fine");
    let old = credentials(&user, "old");
    let label = ClientLabel::default();
    let (first, _) = rarely.login("/", &old, &label).await.expect("let in");
    let (mut second, _) = always.login("/", &old, &label).await.expect("let in");
    rabbit.ctl(&["change_password", &user, "new"]);

    rarely.login("/", &old, &label).await.expect("the last check is not old enough");
    assert_eq!(login_error(&rarely, "/", credentials(&user, "other")).await, LoginFailure::AccessRefused);
    assert_eq!(login_error(&always, "/", old.clone()).await, LoginFailure::AccessRefused);
    always.login("/", &credentials(&user, "new"), &label).await.expect("the new passcode is right");
    // A session that is in stays in.
    second.execute(BrokerCommand::Close);
    assert_eq!(next(&mut second).await, BrokerEvent::Closed);
    close(first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn publishes_are_confirmed_in_order_and_arrive_whole() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let queue = unique("q");
    admin.queue(&queue).await;
    let broker = broker();
    let mut channel = lease(&broker).await;
    let properties = Properties {
        content_type: Some(text("text/plain")),
        delivery_mode: Some(2),
        headers: vec![
            (text("list"), FieldValue::List(vec!["a".into()])),
            (text("number"), FieldValue::Integer(5)),
            (text("text"), FieldValue::Text("ünï".into())),
        ],
        message_id: Some(text("id")),
        priority: Some(4),
        timestamp: Some(1_700_000_000),
        ..Properties::default()
    };
    channel
        .execute(BrokerCommand::Publish(publish_as(1, "", &queue, |message| message.properties = properties.clone())));
    // Larger than a frame.
    let large = Bytes::from(vec![7; 300_000]);
    channel.execute(BrokerCommand::Publish(publish_as(2, "", &queue, |message| message.body = large.clone())));
    (3..200).for_each(|token| channel.execute(BrokerCommand::Publish(publish(token, "", &queue))));
    assert_eq!(channel.unwritten(), 199);
    for token in 1..200 {
        assert_eq!(next(&mut channel).await, BrokerEvent::Confirmed { token: PublishToken(token) });
    }
    assert!(channel.is_idle());

    subscribed(&mut channel, 1, &queue, 500).await;
    let first = delivery(&mut channel).await;
    assert_eq!((first.message.properties.clone(), &first.message.body[..]), (properties, &b"body 1"[..]));
    assert_eq!(
        (first.message.exchange.clone(), first.message.routing_key.clone(), first.redelivered),
        (text(""), text(&queue), false)
    );
    assert_eq!(delivery(&mut channel).await.message.body, large);
    for token in 3..200 {
        assert_eq!(delivery(&mut channel).await.message.body, format!("body {token}"));
    }
    close(channel).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn returns_are_told_from_confirms_among_many() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let (queue, nowhere) = (unique("q"), unique("nowhere"));
    admin.queue(&queue).await;
    let broker = broker();
    let mut channel = lease(&broker).await;
    let mut token = 0;
    for _ in 0..10 {
        let first = token;
        for _ in 0..200 {
            let key = if token % 2 == 0 { &queue } else { &nowhere };
            // Bodies of no, one and several frames.
            let body = Bytes::from(vec![1; [0, 10, 200_000][token as usize % 41 % 3] as usize]);
            channel.execute(BrokerCommand::Publish(publish_as(token, "", key, |message| {
                message.mandatory = true;
                message.body = body;
            })));
            token += 1;
        }
        for token in first..token {
            let expected = match token % 2 {
                0 => BrokerEvent::Confirmed { token: PublishToken(token) },
                _ => {
                    BrokerEvent::Returned { token: PublishToken(token), reply_code: 312, reply_text: "NO_ROUTE".into() }
                }
            };
            assert_eq!(next(&mut channel).await, expected);
        }
    }
    close(channel).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_rejects() {
    let broker = broker();
    let queue = unique("q");
    let mut channel = lease(&broker).await;
    let arguments = vec![
        (text("x-max-length"), FieldValue::Integer(1)),
        (text("x-overflow"), FieldValue::Text("reject-publish".into())),
    ];
    let queue_of_one = QueueDeclaration { arguments, durable: true, ..declaration(&queue) };
    channel.execute(BrokerCommand::Declare { token: DeclareToken(1), queue: queue_of_one });
    assert_eq!(next(&mut channel).await, BrokerEvent::Declared { token: DeclareToken(1), queue: text(&queue) });
    for token in [1, 2] {
        channel.execute(BrokerCommand::Publish(publish(token, "", &queue)));
        let expected = match token {
            1 => BrokerEvent::Confirmed { token: PublishToken(1) },
            _ => BrokerEvent::Rejected { token: PublishToken(2) },
        };
        assert_eq!(next(&mut channel).await, expected);
    }
    close(channel).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_publish_names_its_culprit() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let queue = unique("q");
    admin.queue(&queue).await;
    let broker = broker();
    let mut channel = lease(&broker).await;
    // The broker may drop the confirms of the ones before when it closes the channel, so they may stay unanswered.
    channel.execute(BrokerCommand::Publish(publish(1, "", &queue)));
    channel.execute(BrokerCommand::Publish(publish(2, "no-such-exchange", "k")));
    channel.execute(BrokerCommand::Publish(publish(3, "", &queue)));
    let mut event = next(&mut channel).await;
    if event == (BrokerEvent::Confirmed { token: PublishToken(1) }) {
        event = next(&mut channel).await;
    }
    match event {
        BrokerEvent::Failed { failure: Failure::Refused { reply_code: 404, reply_text }, concerns } => {
            assert_eq!(concerns, Concern::Publish(PublishToken(2)));
            assert_eq!(reply_text, "NOT_FOUND - no exchange 'no-such-exchange' in vhost '/'");
        }
        other => panic!("unexpected {other:?}"),
    }

    let mut channel = lease(&broker).await;
    let headers = vec![(text("big"), FieldValue::Text("x".repeat(140_000)))];
    let properties = Properties { headers, ..Properties::default() };
    channel.execute(BrokerCommand::Publish(publish(1, "", &queue)));
    channel.execute(BrokerCommand::Publish(publish_as(2, "", &queue, |message| message.properties = properties)));
    assert_eq!(next(&mut channel).await, BrokerEvent::Confirmed { token: PublishToken(1) });
    let event = next(&mut channel).await;
    assert!(
        matches!(
            event,
            BrokerEvent::Failed {
                failure: Failure::Refused { reply_code: 406, .. },
                concerns: Concern::Publish(PublishToken(2))
            }
        ),
        "{event:?}"
    );
    assert!(broker.status().links.iter().any(|link| link.role == Role::Publish), "the link must survive");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_subscription_names_itself_and_leaves_nothing() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let broker = broker();
    let mut channel = lease(&broker).await;
    channel.execute(subscribe(7, existing("no such queue"), 10));
    let event = next(&mut channel).await;
    assert!(
        matches!(
            event,
            BrokerEvent::Failed {
                failure: Failure::Refused { reply_code: 404, .. },
                concerns: Concern::Subscription(SubscriptionKey(7))
            }
        ),
        "{event:?}"
    );

    let kept = unique("kept");
    admin.queue(&kept).await;
    let durable = |name: &str| QueueDeclaration { durable: true, ..declaration(name) };
    let auto_delete = |name: &str| QueueDeclaration { auto_delete: true, ..declaration(name) };
    let gone = [unique("gone"), unique("gone"), unique("gone")];
    for (queue, left) in [
        (durable(&kept), Some(0)),
        (durable(&gone[0]), None),
        (auto_delete(&gone[1]), None),
        (exclusive(&gone[2]), None),
    ] {
        let name = queue.name.to_string();
        let mut channel = lease(&broker).await;
        channel.execute(BrokerCommand::Subscribe(Subscribe {
            binding: Some(Binding { arguments: vec![], exchange: text("no such exchange"), routing_key: text("k") }),
            consumer_arguments: vec![],
            exclusive: false,
            key: SubscriptionKey(1),
            prefetch: 1,
            queue: SubscribedQueue::Declared(queue),
            sharing: Sharing::Own,
        }));
        let event = next(&mut channel).await;
        assert!(matches!(event, BrokerEvent::Failed { failure: Failure::Refused { reply_code: 404, .. }, .. }));
        assert_eq!(admin.ready(&name).await, left, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_was_settled_is_settled() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let queues = [unique("q"), unique("q")];
    for queue in &queues {
        admin.queue(queue).await;
    }
    let broker = broker();
    let mut channel = lease(&broker).await;
    for (key, queue) in [(0, &queues[0]), (1, &queues[1])] {
        subscribed(&mut channel, key, queue, 1000).await;
    }
    for number in 0..100 {
        for queue in &queues {
            admin.send(queue, format!("{number}").as_bytes()).await;
        }
    }
    let mut deliveries = Vec::new();
    while deliveries.len() < 200 {
        let delivery = delivery(&mut channel).await;
        deliveries.push((delivery.key.0, tag(&delivery), String::from_utf8_lossy(&delivery.message.body).into_owned()));
        // Settle in an order that has nothing to do with the tags, some of them at once and some never.
        if deliveries.len() % 5 == 0 {
            for at in [deliveries.len() - 2, deliveries.len() - 5, deliveries.len() - 1] {
                settle(&mut channel, deliveries[at].1, Settlement::Ack);
            }
            settle(&mut channel, deliveries[deliveries.len() - 4].1, Settlement::Nack { requeue: false });
            // Neither a repetition nor an unknown tag may reach the broker.
            settle(&mut channel, deliveries[deliveries.len() - 5].1, Settlement::Ack);
            settle(&mut channel, DeliveryTag(100_000), Settlement::Ack);
        }
    }
    close(channel).await;
    let unsettled = |key: usize| {
        let left = deliveries.iter().enumerate().filter(|(at, entry)| at % 5 == 2 && entry.0 == key as u64);
        left.map(|(_, entry)| entry.2.clone()).collect::<BTreeSet<_>>()
    };
    for (key, queue) in queues.iter().enumerate() {
        let mut channel = lease(&broker).await;
        eventually("the unsettled are ready again", || async {
            admin.ready(queue).await == Some(unsettled(key).len() as u32)
        })
        .await;
        subscribed(&mut channel, 1, queue, 1000).await;
        let mut found = BTreeSet::new();
        while found.len() < unsettled(key).len() {
            let delivery = delivery(&mut channel).await;
            assert!(delivery.redelivered);
            found.insert(String::from_utf8_lossy(&delivery.message.body).into_owned());
        }
        assert_eq!(found, unsettled(key));
        close(channel).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unsubscribe_gives_back_what_was_not_seen() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let queue = unique("q");
    admin.queue(&queue).await;
    for number in 0..50 {
        admin.send(&queue, format!("{number}").as_bytes()).await;
    }
    eventually("all are there", || async { admin.ready(&queue).await == Some(50) }).await;
    let broker = broker();
    let mut channel = lease(&broker).await;
    subscribed(&mut channel, 1, &queue, 50).await;
    let first = delivery(&mut channel).await;
    let _second = delivery(&mut channel).await;
    channel.execute(BrokerCommand::Unsubscribe { key: SubscriptionKey(1), queue: AfterUnsubscribe::Keep });
    // Deliveries that were under way may still come.
    let mut seen = 2;
    loop {
        match next(&mut channel).await {
            BrokerEvent::Delivery(_) => seen += 1,
            BrokerEvent::Unsubscribed { key } => break assert_eq!(key, SubscriptionKey(1)),
            other => panic!("unexpected {other:?}"),
        }
    }
    assert!(seen < 50, "nothing was left to give back");
    // A refusal has no answer, so the broker may not have come to it yet.
    eventually("the unseen are back", || async { admin.ready(&queue).await == Some(50 - seen) }).await;
    // The one that the session has is still its own.
    settle(&mut channel, tag(&first), Settlement::Ack);
    close(channel).await;
    eventually("the other ones are back", || async { admin.ready(&queue).await == Some(49) }).await;

    let mut channel = lease(&broker).await;
    subscribed(&mut channel, 2, &queue, 10).await;
    channel.execute(BrokerCommand::Unsubscribe { key: SubscriptionKey(2), queue: AfterUnsubscribe::Delete });
    while !matches!(next(&mut channel).await, BrokerEvent::Unsubscribed { .. }) {}
    assert_eq!(admin.ready(&queue).await, None);
    close(channel).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_queue_cancels_its_subscription_only() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let queues = [unique("q"), unique("q")];
    for queue in &queues {
        admin.queue(queue).await;
    }
    let broker = broker();
    let mut channel = lease(&broker).await;
    subscribed(&mut channel, 1, &queues[0], 10).await;
    subscribed(&mut channel, 2, &queues[1], 10).await;
    admin.channel.queue_delete(queues[0].as_str().into(), Default::default()).await.expect("deleted");
    assert_eq!(next(&mut channel).await, BrokerEvent::SubscriptionCancelled { key: SubscriptionKey(1) });
    admin.send(&queues[1], b"still here").await;
    assert_eq!(delivery(&mut channel).await.message.body, "still here");
    channel.execute(BrokerCommand::Unsubscribe { key: SubscriptionKey(1), queue: AfterUnsubscribe::Keep });
    assert_eq!(next(&mut channel).await, BrokerEvent::Unsubscribed { key: SubscriptionKey(1) });
    close(channel).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exclusive_queues_belong_to_one_session() {
    let rabbit = Rabbit::shared();
    let broker = broker();
    let queue = unique("exclusive");
    let mut owner = lease(&broker).await;
    owner.execute(BrokerCommand::Declare { token: DeclareToken(1), queue: exclusive(&queue) });
    assert_eq!(next(&mut owner).await, BrokerEvent::Declared { token: DeclareToken(1), queue: text(&queue) });
    // Declared again by the same session: fine.
    owner.execute(BrokerCommand::Declare { token: DeclareToken(2), queue: exclusive(&queue) });
    assert_eq!(next(&mut owner).await, BrokerEvent::Declared { token: DeclareToken(2), queue: text(&queue) });

    let locked = format!("RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '{queue}' in vhost '/'");
    for command in [
        BrokerCommand::Declare { token: DeclareToken(1), queue: exclusive(&queue) },
        subscribe(1, existing(&queue), 1),
        subscribe(1, SubscribedQueue::Declared(declaration(&queue)), 1),
    ] {
        let mut other = lease(&broker).await;
        other.execute(command);
        match while_driving(&mut owner, next(&mut other)).await {
            BrokerEvent::Failed { failure: Failure::Refused { reply_code: 405, reply_text }, .. } => {
                assert_eq!(reply_text, locked);
            }
            event => panic!("unexpected {event:?}"),
        }
    }
    // The broker locks it for other connections, so only its own list can tell.
    assert!(rabbit.ctl(&["list_queues", "name"]).contains(&queue));
    close(owner).await;
    assert!(!rabbit.ctl(&["list_queues", "name"]).contains(&queue));
    let mut next_owner = lease(&broker).await;
    next_owner.execute(BrokerCommand::Declare { token: DeclareToken(1), queue: exclusive(&queue) });
    assert_eq!(next(&mut next_owner).await, BrokerEvent::Declared { token: DeclareToken(1), queue: text(&queue) });
    close(next_owner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_dropped_leaves_nothing() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let user = unique("user");
    rabbit.add_user(&user, "secret", "/", [".*", ".*", ".*"]);
    let broker = broker();
    let (queue, own) = (unique("q"), unique("own"));
    admin.queue(&queue).await;
    for number in 0..20 {
        admin.send(&queue, format!("{number}").as_bytes()).await;
    }
    for moment in 0..6 {
        let (mut channel, _) =
            broker.login("/", &credentials(&user, "secret"), &ClientLabel::default()).await.expect("let in");
        channel.execute(BrokerCommand::Declare { token: DeclareToken(1), queue: exclusive(&own) });
        channel.execute(subscribe(1, existing(&queue), 5));
        channel.execute(BrokerCommand::Publish(publish(1, "", &queue)));
        // Stop after so many events, in the midst of whatever is under way.
        for _ in 0..moment {
            next(&mut channel).await;
        }
        if moment % 2 == 0 {
            let _ = tokio::time::timeout(Duration::from_millis(moment), channel.next_event()).await;
        }
        match moment {
            5 => channel.close().await,
            _ => drop(channel),
        }
        eventually("all channels are given back", || async {
            broker.status().links.iter().all(|link| link.channels == 0)
        })
        .await;
        let channels = rabbit.ctl(&["list_channels", "user"]);
        assert!(!channels.contains(&user), "moment {moment}: {channels}");
        assert!(!rabbit.ctl(&["list_queues", "name"]).contains(&own), "moment {moment}");
    }
    assert!(broker.status().links.iter().all(|link| link.channels == 0));
}

/// The central promise of shared links: what one session does wrong, no other one notices.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_fails_again_and_again_disturbs_no_other() {
    const ROUNDS: u64 = 100;
    const MESSAGES: u64 = 1000;
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let queue = unique("q");
    admin.queue(&queue).await;
    let broker = broker();
    let mut good = lease(&broker).await;
    subscribed(&mut good, 1, &queue, 50).await;

    let bad = async {
        for round in 0..ROUNDS {
            let mut channel = lease(&broker).await;
            for token in 0..round % 5 {
                channel.execute(BrokerCommand::Publish(publish(token, "", "nowhere")));
            }
            channel.execute(BrokerCommand::Publish(publish(90, "no such exchange", "k")));
            (91..95).for_each(|token| channel.execute(BrokerCommand::Publish(publish(token, "", "nowhere"))));
            channel.execute(subscribe(1, existing("no such queue"), 1));
            // Give up at any moment: before anything was sent, while it is under way, after the refusal.
            let moment = Duration::from_micros(round * 7919 % 8000);
            let mut answered = false;
            let watch = async {
                while !matches!(channel.next_event().await, BrokerEvent::Failed { .. }) {}
                answered = true;
            };
            if round % 4 == 0 {
                watch.await
            } else {
                tokio::time::timeout(moment, watch).await.unwrap_or_default()
            }
            if round % 3 == 0 && !answered { channel.close().await } else { drop(channel) }
        }
    };
    let sender = async {
        for number in 0..MESSAGES {
            admin.send(&queue, format!("{number}").as_bytes()).await;
            tokio::task::yield_now().await;
        }
    };
    let publisher = async {
        // The other half of being undisturbed: every publish on the shared publish link is confirmed.
        let mut channel = lease(&broker).await;
        for token in 0..300 {
            channel.execute(BrokerCommand::Publish(publish(token, "", "nowhere")));
            assert_eq!(next(&mut channel).await, BrokerEvent::Confirmed { token: PublishToken(token) });
        }
        close(channel).await;
    };
    let receiver = async {
        for number in 0..MESSAGES {
            let delivery = delivery(&mut good).await;
            assert_eq!(delivery.message.body, format!("{number}"));
            assert!(!delivery.redelivered);
            settle(&mut good, tag(&delivery), Settlement::Ack);
        }
    };
    tokio::join!(bad, sender, publisher, receiver);
    close(good).await;
    assert_eq!(admin.ready(&queue).await, Some(0));
    eventually("the bad sessions' channels are given back", || async {
        broker.status().links.iter().all(|link| link.channels == 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_link_ends_its_sessions_and_is_replaced() {
    let rabbit = Rabbit::shared();
    let user = unique("user");
    rabbit.add_user(&user, "secret", "/", [".*", ".*", ".*"]);
    let broker = broker();
    let who = credentials(&user, "secret");
    let (mut channel, _) = broker.login("/", &who, &ClientLabel::default()).await.expect("let in");
    channel.execute(BrokerCommand::Declare { token: DeclareToken(1), queue: exclusive("") });
    let BrokerEvent::Declared { queue, .. } = next(&mut channel).await else { panic!("not declared") };
    assert!(queue.as_str().starts_with("amq.gen-"));
    rabbit.ctl(&["close_all_user_connections", &user, "maintenance"]);
    let event = next(&mut channel).await;
    assert!(
        matches!(&event, BrokerEvent::Failed { failure: Failure::LinkLost { reason }, concerns: Concern::Session }
            if reason.contains("maintenance")),
        "{event:?}"
    );
    drop(channel);
    eventually("the link is forgotten", || async { broker.status().links.is_empty() }).await;
    let (channel, _) = broker.login("/", &who, &ClientLabel::default()).await.expect("let in on a new link");
    close(channel).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_links_are_joined_by_others() {
    let config = BrokerConfig { channels_per_link_max: 2, ..config(Rabbit::shared().amqp_port()) };
    let broker = Broker::new(config).expect("the configuration is fine");
    let mut channels = Vec::new();
    for number in 0..5 {
        let mut channel = lease(&broker).await;
        channel.execute(BrokerCommand::Declare { token: DeclareToken(number), queue: exclusive("") });
        next(&mut channel).await;
        channels.push(channel);
    }
    let mut places = broker.status().links.iter().map(|link| link.channels).collect::<Vec<_>>();
    places.sort_unstable();
    assert_eq!(places, [1, 2, 2]);
    for channel in channels {
        close(channel).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_blocks_publishing_and_nothing_else() {
    let rabbit = Rabbit::start();
    let admin = rabbit.admin().await;
    admin.queue("alarm").await;
    for number in 0..3 {
        admin.send("alarm", format!("{number}").as_bytes()).await;
    }
    let config = BrokerConfig {
        confirm_timeout: Duration::from_secs(3),
        operation_timeout: Duration::from_secs(3),
        ..config(rabbit.amqp_port())
    };
    let broker = Broker::new(config).expect("the configuration is fine");
    let mut channel = lease(&broker).await;
    channel.execute(BrokerCommand::Publish(publish(1, "", "alarm")));
    assert_eq!(next(&mut channel).await, BrokerEvent::Confirmed { token: PublishToken(1) });
    rabbit.ctl(&["set_vm_memory_high_watermark", "0"]);
    channel.execute(BrokerCommand::Publish(publish(2, "", "alarm")));
    assert_eq!(next(&mut channel).await, BrokerEvent::Blocked);
    // A lease that is released now must not wait for the broker.
    let mut other = lease(&broker).await;
    other.execute(BrokerCommand::Publish(publish(1, "", "alarm")));
    let _ = tokio::time::timeout(Duration::from_millis(50), other.next_event()).await;
    drop(other);
    // Deliveries and acknowledgements go on; longer than the deadlines, which stand still.
    let since = Instant::now();
    subscribed(&mut channel, 1, "alarm", 1).await;
    for _ in 0..4 {
        let delivery = delivery(&mut channel).await;
        settle(&mut channel, tag(&delivery), Settlement::Ack);
        let _ = tokio::time::timeout(Duration::from_millis(1), async {}).await;
    }
    let rest = Duration::from_secs(5).saturating_sub(since.elapsed());
    while_driving(&mut channel, tokio::time::sleep(rest)).await;
    assert!(broker.status().links.iter().any(|link| link.role == Role::Publish && link.blocked));
    rabbit.ctl(&["set_vm_memory_high_watermark", "0.8"]);
    assert_eq!(next(&mut channel).await, BrokerEvent::Unblocked);
    let mut events = [next(&mut channel).await, next(&mut channel).await];
    events.sort_by_key(|event| matches!(event, BrokerEvent::Delivery(_)));
    assert_eq!(events[0], BrokerEvent::Confirmed { token: PublishToken(2) });
    close(channel).await;
    eventually("the other lease is released", || async { broker.status().links.iter().all(|link| link.channels == 0) })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_to_a_plaintext_port_fails() {
    let mut config = config(Rabbit::shared().amqp_port());
    config.nodes[0].encryption = Encryption::Tls;
    config.nodes[0].host = "localhost".into();
    let authority = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    let file = std::env::temp_dir().join(unique("ca"));
    std::fs::write(&file, authority.cert.pem()).expect("written");
    config.ca = Some(file.clone());
    let broker = Broker::new(config).expect("the configuration is fine");
    std::fs::remove_file(file).expect("removed");
    let failure = login_error(&broker, "/", guest()).await;
    assert!(matches!(failure, LoginFailure::Unavailable { .. }), "{failure:?}");
    assert!(broker.probe().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_encrypts_and_checks_the_certificate() {
    let folder = std::env::temp_dir().join(unique("certificates"));
    std::fs::create_dir(&folder).expect("created");
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    let other = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    let file = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let (cert, key) = (file("cert.pem", cert.pem()), file("key.pem", signing_key.serialize_pem()));
    let other = file("other.pem", other.cert.pem());
    // Free a moment ago: the node cannot be asked which one it took.
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("known").port();
    let _rabbit = Rabbit::start_with(&format!(
        "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.certfile = {}\nssl_options.keyfile = {}\n",
        cert.display(),
        key.display()
    ));
    let broker = |host: &str, ca: &std::path::Path| {
        let nodes = vec![Node { host: host.into(), port, encryption: Encryption::Tls }];
        Broker::new(BrokerConfig {
            nodes,
            ca: Some(ca.to_owned()),
            login_wait: Duration::ZERO,
            ..BrokerConfig::default()
        })
        .expect("fine")
    };
    let right = broker("localhost", &cert);
    right.probe().await.expect("the node answers");
    let mut channel = lease(&right).await;
    channel.execute(BrokerCommand::Publish(publish_as(1, "", "nowhere", |message| {
        message.body = Bytes::from(vec![1; 500_000]);
        message.mandatory = true;
    })));
    assert!(matches!(next(&mut channel).await, BrokerEvent::Returned { reply_code: 312, .. }));
    close(channel).await;
    for wrong in [broker("localhost", &other), broker("127.0.0.1", &cert)] {
        let failure = login_error(&wrong, "/", guest()).await;
        assert!(
            matches!(&failure, LoginFailure::Unavailable { reason } if reason.contains("certificate")),
            "{failure:?}"
        );
    }
    std::fs::remove_dir_all(folder).expect("removed");
}

/// Runs alone in a process of its own, because it counts threads.
#[test]
fn a_silent_peer_costs_nothing_but_time() {
    let this = std::env::current_exe().expect("known");
    let run = std::process::Command::new(this)
        .args(["--exact", "broker::silent_peer_alone", "--ignored", "--nocapture"])
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&run.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by a_silent_peer_costs_nothing_but_time"]
async fn silent_peer_alone() {
    let lapin_threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.starts_with("lapin")).count()
    };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = listener.local_addr().expect("known").port();
    // Accepts, reads what comes and answers nothing, or the beginning of something.
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            std::thread::spawn(move || {
                let mut stream = stream.expect("accepted");
                if number % 2 == 1 {
                    let _ = std::io::Write::write_all(&mut stream, &[1, 0, 0, 0, 0, 1]);
                }
                let _ = stream.read_to_end(&mut Vec::new());
            });
        }
    });
    let limit = Duration::from_millis(400);
    let config = BrokerConfig { connect_timeout: limit, login_wait: Duration::ZERO, ..config(port) };
    let broker = Broker::new(config).expect("the configuration is fine");
    for _ in 0..4 {
        let start = Instant::now();
        assert!(matches!(login_error(&broker, "/", guest()).await, LoginFailure::Unavailable { .. }));
        assert!(start.elapsed() < limit * 4, "{:?}", start.elapsed());
    }
    let start = Instant::now();
    assert!(broker.probe().await.is_err());
    assert!(start.elapsed() < limit * 4);
    eventually("lapin's threads are gone", || async { lapin_threads() == 0 }).await;
}

/// lapin never uses the number of a channel again that the broker closed, and fails when its counter comes round to one.
#[tokio::test(flavor = "multi_thread")]
async fn refused_sessions_do_not_wear_a_link_out() {
    const CHANNELS: u64 = 40;
    let rabbit = Rabbit::start_with(&format!("channel_max = {CHANNELS}\n"));
    let broker = Broker::new(config(rabbit.amqp_port())).expect("the configuration is fine");
    let mut good = lease(&broker).await;
    good.execute(BrokerCommand::Declare { token: DeclareToken(0), queue: exclusive("mine") });
    assert_eq!(next(&mut good).await, BrokerEvent::Declared { token: DeclareToken(0), queue: text("mine") });
    for round in 0..CHANNELS * 3 {
        let mut channel = lease(&broker).await;
        // A worn link answers with the refusal that an earlier session got.
        let queue = format!("no queue {round}");
        channel.execute(subscribe(1, existing(&queue), 1));
        match while_driving(&mut good, next(&mut channel)).await {
            BrokerEvent::Failed { failure: Failure::Refused { reply_code: 404, reply_text }, .. } => {
                assert!(reply_text.contains(&format!("'{queue}'")), "round {round}: {reply_text}");
            }
            event => panic!("round {round}: {event:?}"),
        }
    }
    eventually("worn links go when they are empty", || async { broker.status().links.len() <= 2 }).await;
    // The session that was there before still has its channel.
    good.execute(BrokerCommand::Declare { token: DeclareToken(1), queue: exclusive("mine") });
    assert_eq!(next(&mut good).await, BrokerEvent::Declared { token: DeclareToken(1), queue: text("mine") });
    close(good).await;
}

/// Runs alone in a process of its own, because it looks at memory.
#[test]
fn confirms_leave_nothing_behind() {
    let this = std::env::current_exe().expect("known");
    let run = std::process::Command::new(this)
        .args(["--exact", "broker::confirms_alone", "--ignored", "--nocapture"])
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&run.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by confirms_leave_nothing_behind"]
async fn confirms_alone() {
    const PUBLISHES: u64 = 20_000;
    /// A confirm that lapin collects has 800 bytes.
    const GROWTH_MAX: u64 = PUBLISHES * 800 / 2;
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it is there");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
    };
    let broker = broker();
    let mut channel = lease(&broker).await;
    let mut token = 0;
    let mut round = async |publishes: u64| {
        for _ in 0..publishes / 100 {
            (0..100).for_each(|n| channel.execute(BrokerCommand::Publish(publish(token + n, "", "nowhere"))));
            for _ in 0..100 {
                assert_eq!(next(&mut channel).await, BrokerEvent::Confirmed { token: PublishToken(token) });
                token += 1;
            }
        }
    };
    round(2_000).await;
    let before = resident();
    round(PUBLISHES).await;
    let growth = resident().saturating_sub(before);
    assert!(growth < GROWTH_MAX, "{growth} bytes more after {PUBLISHES} confirms");
    close(channel).await;

    // The measure would show it: lapin alone, its confirms dropped.
    let admin = Rabbit::shared().admin().await;
    admin.channel.confirm_select(Default::default()).await.expect("confirm mode");
    let before = resident();
    for _ in 0..PUBLISHES {
        admin.send("nowhere", b"body").await;
    }
    let growth = resident().saturating_sub(before);
    assert!(growth > GROWTH_MAX, "only {growth} bytes more: lapin collects dropped confirms no longer");
}
