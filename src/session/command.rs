//! What the session asks of the broker side. The session decides, `crate::broker` performs.
//!
//! Every command is performed in the order in which it was given, with two exceptions that the session relies on:
//! settlements go out as soon as their channel can take them, and publishes wait for nothing but earlier publishes (they
//! use another AMQP connection). So the session holds a SEND back while a declaration or subscription is under way.

use std::sync::Arc;

use super::amqp::{Binding, Body, FieldValue, Properties, QueueDeclaration, ShortText};

/// Numbers a SEND of this session; confirms are reported by it, in the order of publishing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublishToken(pub u64);

/// Numbers a subscription of this session; never used twice in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriptionKey(pub u64);

/// Numbers a queue declaration of this session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeclareToken(pub u64);

/// The broker's delivery tag, valid for one lease; opaque to the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeliveryTag(pub u64);

/// What the client shows to be let in.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub login: String,
    pub passcode: String,
}

// The passcode must never reach a log, so there is no derived Debug.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("login", &self.login).finish_non_exhaustive()
    }
}

/// A lease has two sides on AMQP connections of their own. One of them may be lost while the other one goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Declarations, subscriptions, deliveries and their settlement.
    Consume,
    Publish,
}

#[derive(Clone, Debug, PartialEq)]
pub enum BrokerCommand {
    /// Declare a queue that a SEND or a `reply-to` needs. Answer: `Declared`.
    Declare {
        token: DeclareToken,
        queue: QueueDeclaration,
    },
    /// Delete a durable queue that nobody has a right to any more, or only what brings messages into it from where the client
    /// has none. No answer; whether there is such a queue or binding does not matter.
    Delete {
        queue: ShortText,
        only: Option<Binding>,
    },
    /// Finish what was given before, give back what is unacknowledged, end the lease. Answer: `Closed`.
    Close,
    Publish(Publish),
    /// Make a side that was lost anew, after a pause that grows with the attempt. Answer: `Restored`.
    Restore {
        side: Side,
        attempt: u32,
    },
    /// Acknowledge or refuse one delivery. No answer.
    Settle {
        tag: DeliveryTag,
        outcome: Settlement,
    },
    /// Declare, bind, set the prefetch, consume, in this order. Answer: `Subscribed`.
    Subscribe(Subscribe),
    /// Cancel the consumer; deliveries that the session never saw go back to the queue. Answer: `Unsubscribed`.
    Unsubscribe {
        key: SubscriptionKey,
        queue: AfterUnsubscribe,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Publish {
    /// Shared with the session, which keeps it until it is confirmed.
    pub message: Arc<Outgoing>,
    /// It may be published again where a refusal is no verdict on it: after an outage.
    pub repeatable: bool,
    pub token: PublishToken,
}

/// A message as it goes to RabbitMQ.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    pub body: Body,
    pub exchange: ShortText,
    /// Unroutable messages come back as `Returned` when set. Always set together with `properties.message_id`.
    pub mandatory: bool,
    pub properties: Properties,
    pub routing_key: ShortText,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Subscribe {
    /// Where its client wants a stream to begin: one that ends before is refused.
    pub begins_at: Option<i64>,
    pub binding: Option<Binding>,
    pub consumer_arguments: Vec<(ShortText, FieldValue)>,
    /// The queue's only consumer. Its queue outlives lost connections and expires by itself, so a failed step leaves it alone.
    pub exclusive: bool,
    pub key: SubscriptionKey,
    /// Messages in flight, 1 to 65,535; 0 would be without bound and is never sent by the session.
    pub prefetch: u16,
    pub queue: SubscribedQueue,
    pub sharing: Sharing,
}

/// Whether a subscription may be served from a queue that other sessions of the same identity are served from too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// A queue and a consumer of its own.
    Own,
    /// Acknowledged by the relay, bound to one key, without queue or consumer arguments of its own: any queue with the same
    /// binding does. The declaration in the command then only serves as a pattern.
    Shared(Overflow),
}

/// What happens to a client that does not take the messages of a shared subscription as fast as they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    Disconnect,
    DropOldest,
}

#[derive(Clone, Debug, PartialEq)]
pub enum SubscribedQueue {
    /// Must exist; nothing is declared.
    Existing(ShortText),
    /// Declared first. With a `binding`, a queue that this very command created is deleted again if a later step fails.
    Declared(QueueDeclaration),
}

impl SubscribedQueue {
    pub fn name(&self) -> &ShortText {
        match self {
            SubscribedQueue::Existing(name) => name,
            SubscribedQueue::Declared(queue) => &queue.name,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    Ack,
    /// `requeue` false dead-letters or drops.
    Nack {
        requeue: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterUnsubscribe {
    /// Delete the queue with all that is in it.
    Delete,
    Keep,
}
