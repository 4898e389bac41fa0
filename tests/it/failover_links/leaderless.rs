//! Refusals after an outage. A full queue stands for one without a leader: RabbitMQ answers both with `basic.nack`.

use super::*;
use stomp_relay::session::amqp::FieldValue;
use stomp_relay::session::command::DeclareToken;

/// A queue that takes one message, and has it.
async fn full_queue(channel: &mut Channel, name: &str) {
    let arguments = vec![
        (text("x-max-length"), FieldValue::Integer(1)),
        (text("x-overflow"), FieldValue::Text("reject-publish".into())),
    ];
    let queue = QueueDeclaration { arguments, auto_delete: false, durable: true, exclusive: false, name: text(name) };
    channel.execute(BrokerCommand::Declare { token: DeclareToken(1), queue });
    assert_eq!(next(channel).await, BrokerEvent::Declared { token: DeclareToken(1), queue: text(name) });
    publish(channel, 0, name).await;
}

async fn refusals(channel: &mut Channel, broker: &Broker, count: u64) {
    let refused = eventually("the publish is refused", async || broker.status().publishes_retried >= count);
    while_driving(channel, refused).await;
}

/// The queue's one message goes, before RabbitMQ is asked whether it has one: then it is as silent as one without a leader.
async fn emptied(admin: &Admin, queue: &str) {
    admin.get(queue).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_after_an_outage_is_no_answer() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let (full, well) = (unique("full"), unique("well"));
    admin.queue(&well).await;
    let proxy = FaultProxy::start(rabbit.amqp_port()).await;
    let broker = broker(config(&[proxy.port()]));
    let mut channel = lease(&broker).await;
    full_queue(&mut channel, &full).await;
    // It has nothing under way, so it keeps its lease and only opens another channel.
    proxy.cut();
    let lost = eventually("the links are gone", async || broker.status().links.is_empty());
    while_driving(&mut channel, lost).await;
    for (token, queue) in [(1, &well), (2, &full), (3, &well), (4, &full)] {
        send(&mut channel, token, "", queue);
    }
    assert_eq!(next(&mut channel).await, BrokerEvent::Confirmed { token: PublishToken(1) });
    refusals(&mut channel, &broker, 1).await;
    assert_eq!(admin.ready(&well).await, Some(1), "what came later waits");
    emptied(&admin, &full).await;
    for token in [2, 3] {
        assert_eq!(next(&mut channel).await, BrokerEvent::Confirmed { token: PublishToken(token) });
    }
    // The queue has shown that it takes messages, and is full again.
    assert_eq!(next(&mut channel).await, BrokerEvent::Rejected { token: PublishToken(4) });
    // Another session, which was not there in the outage, finds the same state of things.
    let mut other = lease(&broker).await;
    send(&mut other, 1, "", &full);
    refusals(&mut other, &broker, 2).await;
    emptied(&admin, &full).await;
    assert_eq!(next(&mut other).await, BrokerEvent::Confirmed { token: PublishToken(1) });
    channel.close().await;
    other.close().await;
    admin.delete(&full).await;
    admin.delete(&well).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_channels_first_refusal_is_no_answer_without_an_outage_either() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let full = unique("full");
    let broker = broker(config(&[rabbit.amqp_port()]));
    let mut owner = lease(&broker).await;
    full_queue(&mut owner, &full).await;
    let mut channel = lease(&broker).await;
    for token in 1..=3 {
        send(&mut channel, token, "", &full);
    }
    refusals(&mut channel, &broker, 1).await;
    emptied(&admin, &full).await;
    assert_eq!(next(&mut channel).await, BrokerEvent::Confirmed { token: PublishToken(1) });
    for token in 2..=3 {
        assert_eq!(next(&mut channel).await, BrokerEvent::Rejected { token: PublishToken(token) }, "in their order");
    }
    channel.close().await;
    owner.close().await;
    admin.delete(&full).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_outage_delays_no_answer() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let full = unique("full");
    let proxy = FaultProxy::start(rabbit.amqp_port()).await;
    let broker = broker(config(&[proxy.port()]));
    let user = unique("other");
    rabbit.add_user(&user, "secret", "/", [".*", ".*", ".*"]);
    let mut channel = lease(&broker).await;
    full_queue(&mut channel, &full).await;
    let who = super::super::support::lease::credentials(&user, "secret");
    for round in 1..=3 {
        let (mut theirs, _) = broker.login("/", &who, &ClientLabel::default()).await.expect("let in");
        publish(&mut theirs, 1, "nowhere").await;
        rabbit.ctl(&["close_all_user_connections", &user, "again"]);
        drop(theirs);
        // Two at once: the second waits for nothing of the first.
        let start = Instant::now();
        for token in [2 * round, 2 * round + 1] {
            send(&mut channel, token, "", &full);
        }
        for token in [2 * round, 2 * round + 1] {
            assert_eq!(next(&mut channel).await, BrokerEvent::Rejected { token: PublishToken(token) });
        }
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        assert_eq!(broker.status().publishes_retried, 0, "what others feel says nothing");
    }
    channel.close().await;
    admin.delete(&full).await;
}
