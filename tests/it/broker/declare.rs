//! Declarations that RabbitMQ ends an AMQP connection over: they hurt whoever makes them, and nobody else.

use super::*;
use futures_util::future::join_all;
use stomp_relay::broker::Channel;

fn queue(name: &str, exclusive: bool, arguments: &[(&'static str, FieldValue)]) -> QueueDeclaration {
    let arguments = arguments.iter().map(|(name, value)| (text(name), value.clone())).collect();
    QueueDeclaration { arguments, auto_delete: exclusive, durable: !exclusive, exclusive, name: text(name) }
}

/// RabbitMQ 3.10 and 4.0 end the connection (541); no client can say it, so it stands for what is not known yet.
fn poison(name: &str) -> QueueDeclaration {
    let word = |word: &str| FieldValue::Text(word.into());
    queue(name, false, &[("x-queue-type", word("stream")), ("x-max-age", word("s"))])
}

async fn declare(channel: &mut Channel, queue: QueueDeclaration) -> BrokerEvent {
    channel.execute(BrokerCommand::Declare { token: DeclareToken(1), queue });
    next(channel).await
}

async fn let_in(broker: &Broker, user: &str) -> Channel {
    broker.login("/", &credentials(user, "secret"), &ClientLabel::default()).await.expect("let in").0
}

fn is_refused_for_itself(event: &BrokerEvent) -> bool {
    let concern = Concern::Declare(DeclareToken(1));
    matches!(event, BrokerEvent::Failed { failure: Failure::Refused { reply_code: 541, .. }, concerns, .. } if *concerns == concern)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declaration_that_ends_connections_is_its_own_sessions_error() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let (user, name) = (unique("user"), unique("q"));
    rabbit.add_user(&user, "secret", "/", [".*", ".*", ".*"]);
    admin.queue(&name).await;
    let broker = broker();
    let mut neighbour = let_in(&broker, &user).await;
    subscribed(&mut neighbour, 1, &name, 1000).await;
    neighbour.execute(BrokerCommand::Publish(publish(1, "", &name)));
    let mut number = 1;
    let attackers = async {
        for round in 0..5 {
            let mut attackers = Vec::new();
            for _ in 0..4 {
                attackers.push(let_in(&broker, &user).await);
            }
            let poisons = attackers.iter_mut().enumerate().map(|(at, channel)| {
                let poison = poison(&format!("{name}-{round}-{at}"));
                async move { declare(channel, poison).await }
            });
            let mut innocent = let_in(&broker, &user).await;
            let harmless = queue(&format!("{name}-good-{round}"), false, &[("x-max-length", FieldValue::Integer(5))]);
            let (events, declared) = tokio::join!(join_all(poisons), declare(&mut innocent, harmless));
            assert!(events.iter().all(is_refused_for_itself), "{events:?}");
            assert!(matches!(declared, BrokerEvent::Declared { .. }), "{declared:?}");
            innocent.close().await;
        }
    };
    tokio::pin!(attackers);
    // Its messages come one by one, each once, and no link of its own is lost.
    let mut through = false;
    let (mut confirmed, mut heard) = (0, 0);
    while !through || heard < number {
        tokio::select! {
            () = &mut attackers, if !through => through = true,
            event = next(&mut neighbour) => match event {
                BrokerEvent::Confirmed { .. } => confirmed += 1,
                BrokerEvent::Delivery(delivery) => {
                    assert_eq!(delivery.message.body, format!("body {}", heard + 1).as_bytes());
                    assert!(!delivery.redelivered);
                    settle(&mut neighbour, tag(&delivery), Settlement::Ack);
                    heard += 1;
                    if !through {
                        number += 1;
                        neighbour.execute(BrokerCommand::Publish(publish(number, "", &name)));
                    }
                }
                other => panic!("unexpected {other:?}"),
            },
        }
    }
    while confirmed < number {
        assert!(matches!(next(&mut neighbour).await, BrokerEvent::Confirmed { .. }));
        confirmed += 1;
    }
    neighbour.close().await;
    admin.delete(&name).await;
    for round in 0..5 {
        admin.delete(&format!("{name}-good-{round}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_a_connection_is_not_tried_again_at_once() {
    let broker = broker();
    let name = unique("q");
    assert!(is_refused_for_itself(&declare(&mut lease(&broker).await, poison(&name)).await));
    let lost = broker.status().links_lost;
    for _ in 0..10 {
        assert!(is_refused_for_itself(&declare(&mut lease(&broker).await, poison(&name)).await));
    }
    assert_eq!(broker.status().links_lost, lost, "no further connection was spent on it");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exclusive_queue_with_arguments_belongs_to_its_session() {
    let rabbit = Rabbit::shared();
    let broker = broker();
    let name = unique("q");
    let (mut first, mut second) = (lease(&broker).await, lease(&broker).await);
    let own = queue(&name, true, &[("x-max-length", FieldValue::Integer(5))]);
    assert!(matches!(declare(&mut first, own.clone()).await, BrokerEvent::Declared { .. }));
    // Once more it is no other's.
    assert!(matches!(declare(&mut first, own.clone()).await, BrokerEvent::Declared { .. }));
    let refused = declare(&mut second, own).await;
    assert!(
        matches!(refused, BrokerEvent::Failed { failure: Failure::Refused { reply_code: 405, .. }, .. }),
        "{refused:?}"
    );
    subscribed(&mut first, 1, &name, 10).await;
    first.execute(BrokerCommand::Publish(publish(1, "", &name)));
    let mut wanted = 2;
    while wanted > 0 {
        match next(&mut first).await {
            BrokerEvent::Confirmed { .. } | BrokerEvent::Delivery(_) => wanted -= 1,
            other => panic!("unexpected {other:?}"),
        }
    }
    first.close().await;
    eventually("the queue is gone", || async { !rabbit.ctl(&["list_queues", "name"]).contains(&name) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_for_declarations_is_there_on_need_only() {
    let broker = broker();
    let roles = || broker.status().links.iter().filter(|link| link.role == Role::Declare).count();
    let mut channel = lease(&broker).await;
    let plain = unique("q");
    assert!(matches!(declare(&mut channel, queue(&plain, true, &[])).await, BrokerEvent::Declared { .. }));
    assert_eq!(roles(), 0);
    let own = queue(&unique("q"), true, &[("x-max-length", FieldValue::Integer(5))]);
    assert!(matches!(declare(&mut channel, own).await, BrokerEvent::Declared { .. }));
    assert_eq!(roles(), 1);
    eventually("its places are given back", || async {
        broker.status().links.iter().all(|link| link.role != Role::Declare || link.channels == 0)
    })
    .await;
}
