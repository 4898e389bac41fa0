//! What outlives the loss of links, and what does not stay behind.

use super::*;

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
    channel.execute(subscribe(1, SubscribedQueue::Declared(queue), 10));
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
