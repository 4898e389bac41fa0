//! A session's lease on the broker, driven by hand: the broker room without STOMP above it.

use std::sync::Arc;

use super::condition::PATIENCE;
use bytes::Bytes;
use stomp_relay::broker::{Broker, BrokerConfig, Channel, ClientLabel, Encryption, Node};
use stomp_relay::session::amqp::{Properties, ShortText};
use stomp_relay::session::command::{
    BrokerCommand, Credentials, DeliveryTag, Outgoing, Publish, PublishToken, Settlement, Sharing, Side, Subscribe,
    SubscribedQueue, SubscriptionKey,
};
use stomp_relay::session::event::{BrokerEvent, BrokerInfo, Delivery, LoginFailure};

pub fn text(text: &str) -> ShortText {
    ShortText::new(text).expect("short")
}

pub fn credentials(login: &str, passcode: &str) -> Credentials {
    Credentials { login: login.into(), passcode: passcode.into() }
}

pub fn guest() -> Credentials {
    credentials("guest", "guest")
}

pub fn node(host: &str, port: u16) -> Node {
    Node { host: host.into(), port, encryption: Encryption::Plain }
}

/// Nodes on this machine.
pub fn config(ports: &[u16]) -> BrokerConfig {
    BrokerConfig { nodes: ports.iter().map(|port| node("127.0.0.1", *port)).collect(), ..BrokerConfig::default() }
}

pub async fn lease(broker: &Broker) -> Channel {
    broker.login("/", &guest(), &ClientLabel("test".into())).await.expect("guest is let in").0
}

pub async fn next(channel: &mut Channel) -> BrokerEvent {
    tokio::time::timeout(PATIENCE, next_of_note(channel)).await.expect("an event comes in time")
}

/// When settlements are proven says nothing of what a test does.
async fn next_of_note(channel: &mut Channel) -> BrokerEvent {
    loop {
        match channel.next_event().await {
            BrokerEvent::Settled { .. } => {}
            event => return event,
        }
    }
}

pub async fn delivery(channel: &mut Channel) -> Delivery {
    match next(channel).await {
        BrokerEvent::Delivery(delivery) => delivery,
        other => panic!("expected a delivery, got {other:?}"),
    }
}

pub async fn close(mut channel: Channel) {
    channel.execute(BrokerCommand::Close);
    assert_eq!(next(&mut channel).await, BrokerEvent::Closed);
}

pub fn publish(token: u64, exchange: &str, routing_key: &str) -> Publish {
    publish_as(token, exchange, routing_key, |_| {})
}

/// The same with changes.
pub fn publish_as(token: u64, exchange: &str, routing_key: &str, change: impl FnOnce(&mut Outgoing)) -> Publish {
    let mut message = Outgoing {
        body: Bytes::from(format!("body {token}")),
        exchange: text(exchange),
        mandatory: false,
        properties: Properties { message_id: Some(text(&format!("m-{token}"))), ..Properties::default() },
        routing_key: text(routing_key),
    };
    change(&mut message);
    Publish { message: Arc::new(message), repeatable: true, token: PublishToken(token) }
}

pub fn subscribe(key: u64, queue: SubscribedQueue, prefetch: u16) -> BrokerCommand {
    BrokerCommand::Subscribe(Subscribe {
        begins_at: None,
        binding: None,
        consumer_arguments: vec![],
        exclusive: false,
        key: SubscriptionKey(key),
        prefetch,
        queue,
        sharing: Sharing::Own,
    })
}

pub fn existing(queue: &str) -> SubscribedQueue {
    SubscribedQueue::Existing(text(queue))
}

pub async fn subscribed(channel: &mut Channel, key: u64, queue: &str, prefetch: u16) {
    channel.execute(subscribe(key, existing(queue), prefetch));
    assert_eq!(next(channel).await, BrokerEvent::Subscribed { key: SubscriptionKey(key), queue: text(queue) });
}

pub fn tag(delivery: &Delivery) -> DeliveryTag {
    delivery.tag.expect("an own consumer's deliveries have tags")
}

/// Asks for a side of the lease once more.
pub async fn restored(channel: &mut Channel, side: Side, attempt: u32) -> Result<BrokerInfo, LoginFailure> {
    channel.execute(BrokerCommand::Restore { side, attempt });
    match next(channel).await {
        BrokerEvent::Restored { side: answered, result } if answered == side => result,
        other => panic!("unexpected {other:?}"),
    }
}

pub fn settle(channel: &mut Channel, tag: DeliveryTag, outcome: Settlement) {
    channel.execute(BrokerCommand::Settle { tag, outcome });
}

/// Drives a channel that must stay silent while `work` goes on.
pub async fn while_driving<T>(channel: &mut Channel, work: impl Future<Output = T>) -> T {
    tokio::select! {
        event = next_of_note(channel) => panic!("unexpected {event:?}"),
        result = work => result,
    }
}
