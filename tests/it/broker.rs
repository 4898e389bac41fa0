//! The broker side against a real RabbitMQ: leases, confirms, returns, acknowledgements, isolation, cleaning up.

mod alone;

mod consume;
mod declare;
mod limits;
mod links;
mod login;
mod publish;
mod sizes;
mod tenancy;
mod tls;

use super::support::condition::eventually;
use super::support::lease::*;
use super::support::rabbit::{Rabbit, unique};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::io::Read;
use std::time::{Duration, Instant};
use stomp_relay::broker::{Broker, BrokerConfig, ClientLabel, Encryption, Node, Role};
use stomp_relay::session::amqp::{Binding, FieldValue, Properties, QueueDeclaration};
use stomp_relay::session::command::{
    AfterUnsubscribe, BrokerCommand, Credentials, DeclareToken, DeliveryTag, Overflow, PublishToken, Settlement,
    Sharing, Side, Subscribe, SubscribedQueue, SubscriptionKey,
};
use stomp_relay::session::event::{BrokerEvent, Concern, Failure, LoginFailure};

fn broker() -> Broker {
    Broker::new(config(&[Rabbit::shared().amqp_port()])).expect("the configuration is fine")
}

async fn login_error(broker: &Broker, vhost: &str, credentials: Credentials) -> LoginFailure {
    broker.login(vhost, &credentials, &ClientLabel::default()).await.err().expect("the login is refused")
}

fn declaration(name: &str) -> QueueDeclaration {
    QueueDeclaration { arguments: vec![], auto_delete: false, durable: false, exclusive: false, name: text(name) }
}

fn exclusive(name: &str) -> QueueDeclaration {
    QueueDeclaration { exclusive: true, ..declaration(name) }
}
