//! Links that are lost, fall silent or are killed by one of their sessions; and channels that are given back.

mod channels;
mod culprits;
mod leaderless;
mod nodes;
mod sides;
mod streams;
mod survival;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::support::condition::{PATIENCE, eventually};
use super::support::fault_proxy::{Direction, FaultProxy, Mode};
use super::support::lease::{config, guest, lease, next, node, restored, subscribe, subscribed, text, while_driving};
use super::support::rabbit::{Admin, Rabbit, unique};
use super::support::relay::Relay;
use super::support::stomp::Client;
use bytes::Bytes;
use stomp_relay::broker::{Broker, BrokerConfig, Channel, ClientLabel, Role};
use stomp_relay::session::amqp::{Properties, QueueDeclaration};
use stomp_relay::session::command::{
    AfterUnsubscribe, BrokerCommand, Outgoing, Publish, PublishToken, Settlement, Side, SubscribedQueue,
    SubscriptionKey,
};
use stomp_relay::session::event::{BrokerEvent, Delivery, Failure, LoginFailure};

fn broker(config: BrokerConfig) -> Broker {
    Broker::new(config).expect("the configuration is fine")
}

async fn unavailable(broker: &Broker) -> String {
    match broker.login("/", &guest(), &ClientLabel::default()).await.map(|_| ()) {
        Err(LoginFailure::Unavailable { reason }) => reason,
        other => panic!("the broker should be unavailable: {other:?}"),
    }
}

fn send(channel: &mut Channel, token: u64, exchange: &str, routing_key: &str) {
    let message = Outgoing {
        body: Bytes::from_static(b"body"),
        exchange: text(exchange),
        mandatory: false,
        properties: Properties::default(),
        routing_key: text(routing_key),
    };
    channel.execute(BrokerCommand::Publish(Publish {
        message: Arc::new(message),
        repeatable: true,
        token: PublishToken(token),
    }));
}

async fn publish(channel: &mut Channel, token: u64, queue: &str) {
    send(channel, token, "", queue);
    assert_eq!(next(channel).await, BrokerEvent::Confirmed { token: PublishToken(token) });
}

/// Publishes to a queue that the channel consumes; the confirm and the delivery come in any order.
async fn round_trip(channel: &mut Channel, token: u64, queue: &str) -> Delivery {
    send(channel, token, "", queue);
    match (next(channel).await, next(channel).await) {
        (BrokerEvent::Delivery(delivery), BrokerEvent::Confirmed { .. })
        | (BrokerEvent::Confirmed { .. }, BrokerEvent::Delivery(delivery)) => delivery,
        other => panic!("unexpected {other:?}"),
    }
}

fn acknowledge(channel: &mut Channel, delivery: &Delivery) {
    let tag = delivery.tag.expect("an own consumer's deliveries have tags");
    channel.execute(BrokerCommand::Settle { tag, outcome: Settlement::Ack });
}

async fn refused_publish(channel: &mut Channel) {
    send(channel, 2, "no-such-exchange", "");
    let event = next(channel).await;
    assert!(
        matches!(event, BrokerEvent::Failed { failure: Failure::Refused { reply_code: 404, .. }, .. }),
        "unexpected {event:?}"
    );
}

async fn unsubscribed(channel: &mut Channel, key: u64) {
    channel.execute(BrokerCommand::Unsubscribe { key: SubscriptionKey(key), queue: AfterUnsubscribe::Keep });
    assert_eq!(next(channel).await, BrokerEvent::Unsubscribed { key: SubscriptionKey(key) });
}

fn channels(broker: &Broker, role: Role) -> usize {
    broker.status().links.iter().filter(|link| link.role == role).map(|link| link.channels).sum()
}

fn links(broker: &Broker, role: Role) -> usize {
    broker.status().links.iter().filter(|link| link.role == role).count()
}
