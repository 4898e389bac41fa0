//! Subscriptions: refusals, settlements, their end, exclusive queues.

use super::*;

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
                concerns: Concern::Subscription(SubscriptionKey(7)),
                side: Some(Side::Consume),
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
            begins_at: None,
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
