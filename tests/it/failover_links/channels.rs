//! Channels that are given back, and those that are kept.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn channels_that_are_not_used_are_given_back() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let queue = unique("idle");
    admin.queue(&queue).await;
    let channel_idle = Duration::from_millis(200);
    let broker = broker(BrokerConfig { channel_idle, ..config(&[rabbit.amqp_port()]) });
    let mut channel = lease(&broker).await;
    for round in 0..3 {
        publish(&mut channel, 2 * round, &queue).await;
        subscribed(&mut channel, round, &queue, 10).await;
        let BrokerEvent::Delivery(first) = next(&mut channel).await else { panic!("not a delivery") };
        unsubscribed(&mut channel, round).await;
        let given_back = async {
            eventually("the publish channel is given back", async || channels(&broker, Role::Publish) == 0).await;
        };
        while_driving(&mut channel, given_back).await;
        // What is not settled keeps the other one.
        assert_eq!(channels(&broker, Role::Consume), 1);
        acknowledge(&mut channel, &first);
        let given_back = async {
            eventually("the consume channel is given back", async || channels(&broker, Role::Consume) == 0).await;
            assert_eq!(admin.ready(&queue).await, Some(0));
        };
        while_driving(&mut channel, given_back).await;
        // Said twice, on a new channel: it must not touch what has the same tag there.
        publish(&mut channel, 2 * round + 1, &queue).await;
        subscribed(&mut channel, 100 + round, &queue, 10).await;
        let BrokerEvent::Delivery(second) = next(&mut channel).await else { panic!("not a delivery") };
        acknowledge(&mut channel, &first);
        assert_ne!(second.tag, first.tag);
        acknowledge(&mut channel, &second);
        unsubscribed(&mut channel, 100 + round).await;
    }
    channel.close().await;
    admin.channel.queue_delete(queue.into(), Default::default()).await.expect("deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn exclusive_queues_and_subscriptions_keep_their_channel() {
    let rabbit = Rabbit::shared();
    let channel_idle = Duration::from_millis(50);
    let broker = broker(BrokerConfig { channel_idle, ..config(&[rabbit.amqp_port()]) });
    let mut channel = lease(&broker).await;
    let queue = QueueDeclaration {
        arguments: vec![],
        auto_delete: false,
        durable: false,
        exclusive: true,
        name: text(&unique("exclusive")),
    };
    channel.execute(subscribe(1, SubscribedQueue::Declared(queue), 10));
    assert!(matches!(next(&mut channel).await, BrokerEvent::Subscribed { .. }));
    while_driving(&mut channel, tokio::time::sleep(channel_idle * 5)).await;
    unsubscribed(&mut channel, 1).await;
    while_driving(&mut channel, tokio::time::sleep(channel_idle * 5)).await;
    assert_eq!(channels(&broker, Role::Consume), 1);
    channel.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_holds_nothing_does_not_notice_a_lost_link() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let queue = unique("nothing");
    admin.queue(&queue).await;
    let proxy = FaultProxy::start(rabbit.amqp_port()).await;
    let broker = broker(config(&[proxy.port()]));
    let mut channel = lease(&broker).await;
    for token in 0..3 {
        publish(&mut channel, token, &queue).await;
        subscribed(&mut channel, token, &queue, 10).await;
        let BrokerEvent::Delivery(delivery) = next(&mut channel).await else { panic!("not a delivery") };
        acknowledge(&mut channel, &delivery);
        unsubscribed(&mut channel, token).await;
        let settled = eventually("settled", async || admin.ready(&queue).await == Some(0));
        while_driving(&mut channel, settled).await;
        proxy.cut();
        let lost = eventually("the links are gone", async || broker.status().links.is_empty());
        while_driving(&mut channel, lost).await;
    }
    channel.close().await;
    admin.channel.queue_delete(queue.into(), Default::default()).await.expect("deleted");
}

/// Stops the process behind a queue: what asks for the queue gets no answer, everything else goes on.
fn suspend(rabbit: &Rabbit, queue: &str, what: &str) {
    let find = format!("{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>))");
    rabbit.ctl(&["eval", &format!("{find}, sys:{what}(amqqueue:get_pid(Q)).")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_takes_too_long_leaves_a_well_link_alone() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let (stuck, well) = (unique("stuck"), unique("well"));
    admin.queue(&stuck).await;
    admin.queue(&well).await;
    let (heartbeat, operation_timeout) = (Duration::from_secs(1), Duration::from_secs(2));
    let broker = broker(BrokerConfig { heartbeat, operation_timeout, ..config(&[rabbit.amqp_port()]) });
    let (mut patient, mut neighbour) = (lease(&broker).await, lease(&broker).await);
    subscribed(&mut neighbour, 1, &well, 10).await;
    suspend(rabbit, &stuck, "suspend");
    patient.execute(subscribe(1, SubscribedQueue::Existing(text(&stuck)), 10));
    let event = next(&mut patient).await;
    assert!(
        matches!(event, BrokerEvent::Failed { failure: Failure::TimedOut { step: "consume" }, .. }),
        "unexpected {event:?}"
    );
    // Old and new neighbours are served by the same link, also while the stuck channel is being given back.
    let mut another = lease(&broker).await;
    subscribed(&mut another, 1, &well, 10).await;
    while_driving(&mut neighbour, tokio::time::sleep(operation_timeout * 2)).await;
    assert_eq!(links(&broker, Role::Consume), 1);
    suspend(rabbit, &stuck, "resume");
    eventually("the stuck channel is given back", async || channels(&broker, Role::Consume) == 2).await;
    publish(&mut another, 1, &well).await;
    assert_eq!(links(&broker, Role::Consume), 1);
    neighbour.close().await;
    another.close().await;
    for queue in [stuck, well] {
        admin.channel.queue_delete(queue.into(), Default::default()).await.expect("deleted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_whose_channel_numbers_are_burnt_is_replaced() {
    let rabbit = Rabbit::shared();
    let broker = broker(config(&[rabbit.amqp_port()]));
    let mut neighbour = lease(&broker).await;
    publish(&mut neighbour, 0, "nowhere").await;
    // The broker closes each one's channel. 256 of them are borne.
    for _ in 0..260 {
        let mut channel = lease(&broker).await;
        refused_publish(&mut channel).await;
    }
    let mut newcomer = lease(&broker).await;
    publish(&mut newcomer, 0, "nowhere").await;
    assert_eq!(links(&broker, Role::Publish), 2);
    // The old one serves those who have it, and ends with them.
    publish(&mut neighbour, 1, "nowhere").await;
    neighbour.close().await;
    eventually("the old link is closed", async || links(&broker, Role::Publish) == 1).await;
    publish(&mut newcomer, 1, "nowhere").await;
    newcomer.close().await;
}
