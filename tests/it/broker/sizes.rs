//! What RabbitMQ sends to a session that does not take it is bounded in bytes, and nothing of it is lost or out of order.

use stomp_relay::session::event::Delivery;

use super::*;

const BODY: usize = 1 << 20;
const MESSAGES: usize = 60;
/// The default of [`BrokerConfig::delivery_bytes_max`], and the message that was let through below it.
const WAITING_MAX: usize = (4 << 20) + BODY + 64 * 1024;

fn body(number: usize) -> Vec<u8> {
    let mut body = format!("{number:06}").into_bytes();
    body.resize(BODY, b'x');
    body
}

fn number(delivery: &Delivery) -> usize {
    std::str::from_utf8(&delivery.message.body[..6]).expect("text").parse().expect("a number")
}

/// How often a quorum queue had it back: at 20 RabbitMQ 4 drops it.
fn requeues(delivery: &Delivery) -> i64 {
    let headers = delivery.message.properties.headers.iter();
    let mut counts = headers.filter(|(name, _)| name.as_str() == "x-delivery-count");
    match counts.next() {
        Some((_, FieldValue::Integer(count))) => *count,
        Some(other) => panic!("{other:?}"),
        None => 0,
    }
}

/// Many large messages meet a session that takes none; then it takes all.
async fn held_and_taken(queue: SubscribedQueue) {
    let (rabbit, broker) = (Rabbit::shared(), broker());
    let admin = rabbit.admin().await;
    let name = queue.name().to_string();
    let mut channel = lease(&broker).await;
    channel.execute(subscribe(1, queue, 100));
    assert!(matches!(next(&mut channel).await, BrokerEvent::Subscribed { .. }));
    for number in 0..MESSAGES {
        admin.send(&name, &body(number)).await;
    }
    eventually("all are on their way", async || {
        admin.ready(&name).await == Some(0) && channel.retained_bytes() >= 4 << 20
    })
    .await;
    assert!(channel.retained_bytes() <= WAITING_MAX, "{}", channel.retained_bytes());
    for wanted in 0..MESSAGES {
        let delivery = delivery(&mut channel).await;
        assert_eq!(number(&delivery), wanted);
        assert!(requeues(&delivery) <= 1, "{:?}", delivery.message.properties.headers);
        assert!(channel.retained_bytes() <= WAITING_MAX, "{}", channel.retained_bytes());
        settle(&mut channel, tag(&delivery), Settlement::Ack);
    }
    assert_eq!(channel.retained_bytes(), 0);
    close(channel).await;
    assert!(matches!(admin.ready(&name).await, None | Some(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_classic_queue() {
    let name = unique("bytes");
    Rabbit::shared().admin().await.queue(&name).await;
    held_and_taken(existing(&name)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_quorum_queue() {
    let name = unique("bytes");
    Rabbit::shared().admin().await.typed_queue(&name, "quorum").await;
    held_and_taken(existing(&name)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_auto_delete_queue() {
    let declaration = QueueDeclaration { auto_delete: true, ..declaration(&unique("bytes")) };
    held_and_taken(SubscribedQueue::Declared(declaration)).await;
}

/// A prefetch that the small ones at the beginning would justify.
#[tokio::test(flavor = "multi_thread")]
async fn of_large_messages_behind_small_ones_and_unsettled() {
    let (rabbit, broker, name) = (Rabbit::shared(), broker(), unique("bytes"));
    let admin = rabbit.admin().await;
    admin.queue(&name).await;
    let mut channel = lease(&broker).await;
    subscribed(&mut channel, 1, &name, 1000).await;
    for number in 0..MESSAGES {
        let body = if number < 20 { format!("{number:06}").into_bytes() } else { body(number) };
        admin.send(&name, &body).await;
    }
    eventually("all are on their way", async || admin.ready(&name).await == Some(0)).await;
    // None is settled before the last has come.
    let mut tags = Vec::new();
    for wanted in 0..MESSAGES {
        let delivery = delivery(&mut channel).await;
        assert_eq!(number(&delivery), wanted);
        assert!(channel.retained_bytes() <= WAITING_MAX, "{}", channel.retained_bytes());
        tags.push(tag(&delivery));
    }
    tags.into_iter().for_each(|tag| settle(&mut channel, tag, Settlement::Ack));
    close(channel).await;
    assert_eq!(admin.ready(&name).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn given_up_halfway_all_of_it_is_back() {
    let (rabbit, broker, name) = (Rabbit::shared(), broker(), unique("bytes"));
    let admin = rabbit.admin().await;
    admin.queue(&name).await;
    let mut channel = lease(&broker).await;
    subscribed(&mut channel, 1, &name, 100).await;
    for number in 0..MESSAGES {
        admin.send(&name, &body(number)).await;
    }
    eventually("all are on their way", async || admin.ready(&name).await == Some(0)).await;
    for _ in 0..3 {
        let delivery = delivery(&mut channel).await;
        settle(&mut channel, tag(&delivery), Settlement::Ack);
    }
    channel.execute(BrokerCommand::Unsubscribe { key: SubscriptionKey(1), queue: AfterUnsubscribe::Keep });
    loop {
        match next(&mut channel).await {
            BrokerEvent::Unsubscribed { .. } => break,
            // It came before the cancel.
            BrokerEvent::Delivery(delivery) => settle(&mut channel, tag(&delivery), Settlement::Nack { requeue: true }),
            event => panic!("{event:?}"),
        }
    }
    while_driving(&mut channel, async {
        let wanted = u32::try_from(MESSAGES - 3).expect("small");
        eventually("all are back", async || admin.ready(&name).await == Some(wanted)).await;
    })
    .await;
    assert_eq!(channel.retained_bytes(), 0);
    let back: BTreeSet<Vec<u8>> = {
        let mut all = BTreeSet::new();
        for _ in 3..MESSAGES {
            all.insert(admin.get(&name).await.data[..6].to_vec());
        }
        all
    };
    assert_eq!(back.len(), MESSAGES - 3);
    close(channel).await;
}

/// A subscription to a stream from its beginning.
fn from_the_first(key: u64, stream: &str, prefetch: u16) -> BrokerCommand {
    BrokerCommand::Subscribe(Subscribe {
        begins_at: None,
        binding: None,
        consumer_arguments: vec![(text("x-stream-offset"), FieldValue::Text("first".into()))],
        exclusive: false,
        key: SubscriptionKey(key),
        prefetch,
        queue: existing(stream),
        sharing: Sharing::Own,
    })
}

async fn stream(bodies: impl Iterator<Item = Vec<u8>>) -> String {
    let (admin, name) = (Rabbit::shared().admin().await, unique("bytes"));
    admin.typed_queue(&name, "stream").await;
    for body in bodies {
        admin.send(&name, &body).await;
    }
    name
}

/// A stream takes nothing back; what was on its way is just left there.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_stream_that_is_given_up_halfway() {
    let (broker, name) = (broker(), stream((0..30).map(|number| format!("{number:06}").into_bytes())).await);
    let mut channel = lease(&broker).await;
    subscribed(&mut channel, 2, &name, 1).await;
    channel.execute(from_the_first(1, &name, 20));
    assert!(matches!(next(&mut channel).await, BrokerEvent::Subscribed { .. }));
    let first = delivery(&mut channel).await;
    settle(&mut channel, tag(&first), Settlement::Ack);
    eventually("others are on their way", async || channel.retained_bytes() > 4 << 10).await;
    channel.execute(BrokerCommand::Unsubscribe { key: SubscriptionKey(1), queue: AfterUnsubscribe::Keep });
    loop {
        match next(&mut channel).await {
            BrokerEvent::Unsubscribed { .. } => break,
            BrokerEvent::Delivery(delivery) => settle(&mut channel, tag(&delivery), Settlement::Ack),
            event => panic!("{event:?}"),
        }
    }
    assert_eq!(channel.retained_bytes(), 0);
    close(channel).await;
    assert_eq!(broker.status().links_lost, 0);
    Rabbit::shared().admin().await.delete(&name).await;
}

/// The prefetch would let all of them come at once; a client that collects them before it acknowledges any gets them all.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_stream() {
    let (broker, name) = (broker(), stream((0..MESSAGES).map(body)).await);
    let mut channel = lease(&broker).await;
    channel.execute(from_the_first(1, &name, 100));
    assert!(matches!(next(&mut channel).await, BrokerEvent::Subscribed { .. }));
    eventually("it is full", async || channel.retained_bytes() >= 4 << 20).await;
    let mut tags = Vec::new();
    for wanted in 0..MESSAGES {
        assert!(channel.retained_bytes() <= WAITING_MAX, "{}", channel.retained_bytes());
        let delivery = delivery(&mut channel).await;
        assert_eq!(number(&delivery), wanted);
        tags.push(tag(&delivery));
    }
    tags.into_iter().for_each(|tag| settle(&mut channel, tag, Settlement::Ack));
    assert_eq!(channel.retained_bytes(), 0);
    close(channel).await;
    assert_eq!(broker.status().links_lost, 0);
    Rabbit::shared().admin().await.delete(&name).await;
}

/// Small ones behind large ones come many at a time again: each is acknowledged only when sixteen are there.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_stream_whose_messages_become_small_again() {
    const SMALL: usize = 400;
    let small = |number: usize| format!("{number:06}").into_bytes();
    let bodies = (0..20 + SMALL).map(|number| if number < 20 { body(number) } else { small(number) });
    let (broker, name) = (broker(), stream(bodies).await);
    let mut channel = lease(&broker).await;
    channel.execute(from_the_first(1, &name, 100));
    assert!(matches!(next(&mut channel).await, BrokerEvent::Subscribed { .. }));
    eventually("it is full", async || channel.retained_bytes() >= 4 << 20).await;
    let mut most = 0;
    for wanted in 0..20 + SMALL {
        let delivery = delivery(&mut channel).await;
        assert_eq!(number(&delivery), wanted);
        settle(&mut channel, tag(&delivery), Settlement::Ack);
        if wanted > 20 + SMALL / 2 {
            most = most.max(channel.retained_bytes() / 1024);
        }
    }
    assert!(most >= 4, "{most} small messages at most were on their way");
    close(channel).await;
    assert_eq!(broker.status().links_lost, 0);
    Rabbit::shared().admin().await.delete(&name).await;
}

/// Somebody has read a stream and published what it brought, with all its headers, to a queue: no stream, and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_queue_that_looks_like_a_stream() {
    let (broker, admin, name) = (broker(), Rabbit::shared().admin().await, unique("bytes"));
    admin.queue(&name).await;
    let publish = async |number: usize, body: &[u8]| {
        let mut headers = lapin::types::FieldTable::default();
        let offset = lapin::types::AMQPValue::LongLongInt(i64::try_from(number).expect("small"));
        headers.insert("x-stream-offset".into(), offset);
        admin.publish("", &name, lapin::BasicProperties::default().with_headers(headers), body).await;
    };
    for number in 0..30 {
        publish(number, &body(number)).await;
    }
    let mut channel = lease(&broker).await;
    subscribed(&mut channel, 1, &name, 100).await;
    eventually("it is full", async || channel.retained_bytes() >= 4 << 20).await;
    for wanted in 0..10 {
        let delivery = delivery(&mut channel).await;
        assert_eq!(number(&delivery), wanted);
        settle(&mut channel, tag(&delivery), Settlement::Ack);
    }
    channel.execute(BrokerCommand::Unsubscribe { key: SubscriptionKey(1), queue: AfterUnsubscribe::Keep });
    loop {
        match next(&mut channel).await {
            BrokerEvent::Unsubscribed { .. } => break,
            BrokerEvent::Delivery(delivery) => settle(&mut channel, tag(&delivery), Settlement::Nack { requeue: true }),
            event => panic!("{event:?}"),
        }
    }
    while_driving(&mut channel, eventually("all are back", async || admin.ready(&name).await == Some(20))).await;
    close(channel).await;
    admin.delete(&name).await;
}

/// One at a time has room: each of the others is sent back and comes again, in order and not flagged.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_shared_queue() {
    let port = Rabbit::shared().amqp_port();
    let config = BrokerConfig { shared_waiting_bytes_max: 1, shared_buffer_bytes_max: 64 << 20, ..config(&[port]) };
    let budget = config.budget.clone();
    let (broker, admin) = (Broker::new(config).expect("the configuration is fine"), Rabbit::shared().admin().await);
    let key = unique("bytes");
    let mut channel = lease(&broker).await;
    channel.execute(BrokerCommand::Subscribe(Subscribe {
        begins_at: None,
        binding: Some(Binding { arguments: vec![], exchange: text("amq.topic"), routing_key: text(&key) }),
        consumer_arguments: vec![],
        exclusive: false,
        key: SubscriptionKey(1),
        prefetch: 100,
        queue: SubscribedQueue::Declared(QueueDeclaration { auto_delete: true, ..declaration(&unique("bytes")) }),
        sharing: Sharing::Shared(Overflow::Disconnect),
    }));
    assert!(matches!(next(&mut channel).await, BrokerEvent::Subscribed { .. }));
    let used = budget.used();
    for number in 0..100 {
        admin.publish("amq.topic", &key, lapin::BasicProperties::default(), &body(number)[..100_000]).await;
    }
    for wanted in 0..100 {
        let delivery = delivery(&mut channel).await;
        assert_eq!((number(&delivery), delivery.redelivered), (wanted, false));
    }
    close(channel).await;
    // But for the buffers of its AMQP connection.
    eventually("nothing of it is counted", async || budget.used() <= used + (4 << 20)).await;
}

/// The buffers below lapin are nobody's, and count for the process as far as they have been used.
#[tokio::test(flavor = "multi_thread")]
async fn of_the_buffers_of_amqp_connections() {
    const RING: usize = 4 << 20;
    let (config, admin, name) =
        (config(&[Rabbit::shared().amqp_port()]), Rabbit::shared().admin().await, unique("bytes"));
    let budget = config.budget.clone();
    let (before, broker) = (budget.used(), Broker::new(config).expect("the configuration is fine"));
    admin.queue(&name).await;
    let mut channel = lease(&broker).await;
    subscribed(&mut channel, 1, &name, 1).await;
    assert!(budget.used() < before + (1 << 20), "{}", budget.used() - before);
    for number in 0..10 {
        admin.send(&name, &body(number)).await;
    }
    for _ in 0..10 {
        let delivery = delivery(&mut channel).await;
        settle(&mut channel, tag(&delivery), Settlement::Ack);
    }
    let counted = budget.used() - before;
    assert!((RING..RING + (1 << 20)).contains(&counted), "{counted}");
    close(channel).await;
    broker.shutdown().await;
    eventually("they are given back", async || budget.used() == before).await;
    admin.delete(&name).await;
}
