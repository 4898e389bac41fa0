//! Publishing: confirms, returns, rejections, refusals, alarms.

use super::*;

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
        BrokerEvent::Failed { failure: Failure::Refused { reply_code: 404, reply_text }, concerns, .. } => {
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
                concerns: Concern::Publish(PublishToken(2)),
                side: Some(Side::Publish),
            }
        ),
        "{event:?}"
    );
    assert!(broker.status().links.iter().any(|link| link.role == Role::Publish), "the link must survive");
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
        ..config(&[rabbit.amqp_port()])
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
