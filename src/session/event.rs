//! What the broker side tells the session. Causes say whose fault it was; texts of the broker are kept verbatim.

use super::amqp::{Body, Properties, ShortText};
use super::command::{DeclareToken, DeliveryTag, PublishToken, SubscriptionKey};

#[derive(Clone, Debug, PartialEq)]
pub enum BrokerEvent {
    /// RabbitMQ blocks publishing (memory or disk alarm); deliveries and acknowledgements go on.
    Blocked,
    /// Answer to `Close`: the broker has everything that was given before, the lease is gone.
    Closed,
    /// RabbitMQ confirmed the publish. Confirmed, Rejected and Returned come in the order of publishing.
    Confirmed {
        token: PublishToken,
    },
    Declared {
        token: DeclareToken,
        queue: ShortText,
    },
    Delivery(Delivery),
    /// The lease is gone and nothing given to it will be answered any more.
    Failed {
        failure: Failure,
        concerns: Concern,
    },
    /// RabbitMQ refused the publish with `basic.nack` (queue length limit with reject-publish, or an internal error).
    Rejected {
        token: PublishToken,
    },
    /// A mandatory publish reached no queue. No Confirmed follows for this token.
    Returned {
        token: PublishToken,
        reply_code: u16,
        reply_text: String,
    },
    Subscribed {
        key: SubscriptionKey,
        queue: ShortText,
    },
    /// The broker cancelled the consumer: its queue was deleted or its node is gone.
    SubscriptionCancelled {
        key: SubscriptionKey,
    },
    Unblocked,
    Unsubscribed {
        key: SubscriptionKey,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    pub body: Body,
    pub exchange: ShortText,
    pub key: SubscriptionKey,
    pub properties: Properties,
    pub redelivered: bool,
    pub routing_key: ShortText,
    pub tag: DeliveryTag,
}

/// Which command a failure answers, as far as the broker side can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concern {
    Declare(DeclareToken),
    Publish(PublishToken),
    Session,
    Subscription(SubscriptionKey),
}

/// Why a lease ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The AMQP connection was lost or closed by the broker; not this client's fault.
    LinkLost { reason: String },
    /// A step was not answered within its deadline.
    TimedOut { step: &'static str },
    /// The broker refused with a channel exception: this client's own error.
    /// `reply_code` is AMQP's (403, 404, 405, 406 …), `reply_text` as sent, with its `NAME - ` prefix.
    Refused { reply_code: u16, reply_text: String },
}

/// The outcome of a login at the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoginFailure {
    /// 403 at start-ok: unknown user or wrong passcode.
    AccessRefused,
    /// No node could be reached, or none answered in time.
    Unavailable { reason: String },
    /// 530 at open: no such virtual host, no permission on it, or a connection limit of it or of the user.
    VirtualHost { reply_text: String },
}

/// What is known of the broker after login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerInfo {
    /// RabbitMQ's version as it announces it, for example `3.10.8`; empty if it announced none.
    pub version: String,
}
