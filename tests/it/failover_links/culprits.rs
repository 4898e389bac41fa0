//! Links that one of their sessions kills.

use super::*;

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
        culprit.execute(subscribe(1, SubscribedQueue::Existing(text(&poisoned)), 10));
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
        restored(&mut culprit, Side::Consume, 0).await.expect("the broker is there");
    }
    // On a link for all, on one for few, and the third time on one of its own.
    assert_eq!(deaths, 2);

    let mut neighbour = lease(&broker).await;
    subscribed(&mut neighbour, 1, &well, 10).await;
    let work = async {
        // Its first command is about that queue: it gets a link of its own at once.
        let mut culprit = lease(&broker).await;
        culprit.execute(subscribe(1, SubscribedQueue::Existing(text(&poisoned)), 10));
        let mut event = next(&mut culprit).await;
        if matches!(event, BrokerEvent::Subscribed { .. }) {
            event = next(&mut culprit).await;
        }
        assert!(matches!(event, BrokerEvent::Failed { failure: Failure::Poisoned { .. }, .. }), "{event:?}");
        // Its channel is among others: it is refused.
        let mut culprit = lease(&broker).await;
        subscribed(&mut culprit, 1, &well, 10).await;
        culprit.execute(subscribe(2, SubscribedQueue::Existing(text(&poisoned)), 10));
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
