//! Links and leases: shared, full, worn out, lost; what is left of a lease that ends.

use super::*;

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
        matches!(&event, BrokerEvent::Failed { failure: Failure::LinkLost { reason }, concerns: Concern::Session, .. }
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
    let config = BrokerConfig { channels_per_link_max: 2, ..config(&[Rabbit::shared().amqp_port()]) };
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

/// lapin never uses the number of a channel again that the broker closed, and fails when its counter comes round to one.
#[tokio::test(flavor = "multi_thread")]
async fn refused_sessions_do_not_wear_a_link_out() {
    const CHANNELS: u64 = 40;
    let rabbit = Rabbit::start_with(&format!("channel_max = {CHANNELS}\n"));
    let broker = Broker::new(config(&[rabbit.amqp_port()])).expect("the configuration is fine");
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

/// lapin has many of them queued when RabbitMQ closes the channel; written after that they would end the connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_behind_a_refused_publish_disturbs_no_other() {
    const ROUNDS: u64 = 30;
    let broker = broker();
    let mut neighbour = lease(&broker).await;
    neighbour.execute(BrokerCommand::Publish(publish(0, "", "nowhere")));
    assert_eq!(next(&mut neighbour).await, BrokerEvent::Confirmed { token: PublishToken(0) });
    let bad = async {
        for round in 0..ROUNDS {
            let mut channel = lease(&broker).await;
            let refused = round * 7 % 60;
            for token in 0..500 {
                let exchange = if token == refused { "no such exchange" } else { "" };
                let body = Bytes::from(vec![1; [0, 10, 2000][token as usize % 3]]);
                let publish = publish_as(token, exchange, "nowhere", |message| message.body = body);
                channel.execute(BrokerCommand::Publish(publish));
            }
            let concerns = loop {
                match next(&mut channel).await {
                    BrokerEvent::Confirmed { token } => assert!(token.0 < refused, "{token:?} came behind the refusal"),
                    BrokerEvent::Failed { failure: Failure::Refused { reply_code: 404, .. }, concerns, .. } => {
                        break concerns;
                    }
                    other => panic!("unexpected {other:?}"),
                }
            };
            assert_eq!(concerns, Concern::Publish(PublishToken(refused)));
        }
    };
    let good = async {
        for token in 1.. {
            neighbour.execute(BrokerCommand::Publish(publish(token, "", "nowhere")));
            assert_eq!(next(&mut neighbour).await, BrokerEvent::Confirmed { token: PublishToken(token) });
        }
    };
    tokio::select! {
        () = bad => {}
        () = good => {}
    }
    assert_eq!(broker.status().links_lost, 0);
    neighbour.close().await;
}
