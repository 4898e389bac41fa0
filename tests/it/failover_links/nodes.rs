//! Nodes that are silent, dead, or no RabbitMQ.

use super::*;

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
    subscribed(&mut channel, 1, &queue, 10).await;
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
    let failure = restored(&mut channel, Side::Consume, 0).await.expect_err("the broker is silent");
    assert!(matches!(failure, LoginFailure::Unavailable { .. }), "{failure:?}");
    let start = Instant::now();
    restored(&mut channel, Side::Consume, 0).await.expect_err("the broker is silent");
    assert!(start.elapsed() < connect_timeout / 2, "{:?}", start.elapsed());

    proxy.set(Mode::Forward);
    proxy.cut();
    let mut attempt = 1;
    while restored(&mut channel, Side::Consume, attempt).await.is_err() {
        attempt += 1;
        assert!(start.elapsed() < PATIENCE);
    }
    subscribed(&mut channel, 1, &queue, 10).await;
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
    let waiting = channels.iter_mut().map(async |channel| {
        let mut attempt = 0;
        while restored(channel, Side::Consume, attempt).await.is_err() {
            attempt += 1;
        }
        // A session polls its lease, which gives its pass back when nothing is left to make anew.
        let _ = tokio::time::timeout(Duration::from_millis(1), channel.next_event()).await;
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
