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
