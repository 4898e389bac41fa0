//! What the broker side tells the session. Causes say whose fault it was; texts of the broker are kept verbatim.

use std::sync::Arc;

use super::amqp::{Body, Properties, ShortText};
use super::command::{DeclareToken, DeliveryTag, PublishToken, Side, SubscriptionKey};

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
    /// RabbitMQ no longer accepts the account that the session works as. The lease goes on as long as its connections do.
    Dismissed {
        failure: LoginFailure,
    },
    /// Messages of a shared subscription were dropped because the client did not take them in time
    /// ([`Overflow::DropOldest`](super::command::Overflow::DropOldest)).
    Dropped {
        key: SubscriptionKey,
        messages: u64,
    },
    /// A side of the lease is gone, both if none is named, and nothing given to it will be answered any more. A side can be
    /// had again by [`BrokerCommand::Restore`](super::command::BrokerCommand::Restore).
    Failed {
        failure: Failure,
        concerns: Concern,
        side: Option<Side>,
    },
    /// The client did not take the messages of a shared subscription in time
    /// ([`Overflow::Disconnect`](super::command::Overflow::Disconnect)); no more follow.
    Overflowed {
        key: SubscriptionKey,
    },
    /// RabbitMQ refused the publish with `basic.nack` (queue length limit with reject-publish, or an internal error).
    Rejected {
        token: PublishToken,
    },
    /// Answer to `Restore`. A failure leaves the side lost.
    Restored {
        side: Side,
        result: Result<BrokerInfo, LoginFailure>,
    },
    /// A mandatory publish reached no queue. No Confirmed follows for this token.
    Returned {
        token: PublishToken,
        reply_code: u16,
        reply_text: String,
    },
    /// The first `count` settlements that were given in this lease have reached the broker. Said now and then, not for each.
    Settled {
        count: u64,
    },
    Subscribed {
        key: SubscriptionKey,
        queue: ShortText,
    },
    /// The broker cancelled the consumer: its queue was deleted or its node is gone.
    SubscriptionCancelled {
        key: SubscriptionKey,
    },
    /// The broker cancelled the consumer, and its queue is there: it was made again, or another node has it now.
    SubscriptionInterrupted {
        key: SubscriptionKey,
    },
    Unblocked,
    Unsubscribed {
        key: SubscriptionKey,
    },
}

/// A message on its way to one subscription.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    pub key: SubscriptionKey,
    /// Shared by all subscribers of a shared subscription.
    pub message: Arc<Message>,
    pub redelivered: bool,
    /// What has to be settled; none where the broker side settles by itself (shared subscriptions).
    pub tag: Option<DeliveryTag>,
}

/// A message as RabbitMQ delivered it.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub body: Body,
    pub exchange: ShortText,
    pub properties: Properties,
    pub routing_key: ShortText,
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
    /// The stream that is subscribed to ends before the offset that was asked for; `next` is that of its next message.
    BehindEnd { offset: i64, next: i64 },
    /// The AMQP connection was lost or closed by the broker; not this client's fault.
    LinkLost { reason: String },
    /// The AMQP connection was lost again and again, and only while this session was on it: what it consumes can't be read.
    Poisoned { queues: Vec<ShortText> },
    /// A publish was not confirmed within its deadline.
    Unconfirmed,
    /// A step was not answered within its deadline.
    TimedOut { step: &'static str },
    /// The broker refused with a channel exception: this client's own error.
    /// `reply_code` is AMQP's (403, 404, 405, 406 …), `reply_text` as sent, with its `NAME - ` prefix.
    Refused { reply_code: u16, reply_text: String },
}

impl Failure {
    /// Whether a queue is refused because its node is away (404 for classic queues of a cluster): it comes back with the node.
    pub fn is_absence(&self) -> bool {
        let Failure::Refused { reply_code: 404, reply_text } = self else { return false };
        // Texts over 255 bytes are cut.
        reply_text.starts_with("NOT_FOUND - home node '")
            || reply_text.ends_with("is down or inaccessible")
            || reply_text.ends_with("process is stopped by supervisor")
    }

    /// Whether a stream is refused because the node that was asked has no replica of it, or does not run it yet: another node may.
    pub fn is_elsewhere(&self) -> bool {
        let Failure::Refused { reply_code: 406, reply_text } = self else { return false };
        reply_text.ends_with("replica on the local node")
    }
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

impl LoginFailure {
    /// Whether one of RabbitMQ's limits on connections is met, which are judged after the credentials; and whose it is.
    pub fn connection_limit(&self) -> Option<&'static str> {
        let LoginFailure::VirtualHost { reply_text } = self else { return None };
        connection_limit(reply_text)
    }
}

/// The same of a refusal's text (530).
pub fn connection_limit(reply_text: &str) -> Option<&'static str> {
    // The names that are quoted are the client's: only the end counts.
    let (before, _) = reply_text.strip_suffix(") is reached")?.rsplit_once(" (")?;
    match before {
        _ if before.ends_with(": user connection limit") => Some("user"),
        _ if before.ends_with(": node connection limit") => Some("node"),
        _ if before.ends_with(": connection limit") || before.ends_with(": vhost connection limit") => {
            Some("virtual host")
        }
        _ => None,
    }
}

/// What is known of the broker after login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerInfo {
    /// RabbitMQ's version as it announces it, for example `3.10.8`; empty if it announced none.
    pub version: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_on_connections_is_told_from_other_refusals() {
        for (text, whose) in [
            (
                "NOT_ALLOWED - access to vhost '/' refused for user 'a': connection limit (2) is reached",
                Some("virtual host"),
            ),
            (
                "NOT_ALLOWED - access to vhost '/' refused for user 'a': vhost connection limit (2) is reached",
                Some("virtual host"),
            ),
            ("NOT_ALLOWED - Connection refused for user 'a': user connection limit (2) is reached", Some("user")),
            ("NOT_ALLOWED - connection refused: node connection limit (2) is reached", Some("node")),
            ("NOT_ALLOWED - vhost ': connection limit (2) is reached' not found", None),
            ("NOT_ALLOWED - access to vhost '/' refused for user 'a'", None),
        ] {
            let failure = LoginFailure::VirtualHost { reply_text: text.to_owned() };
            assert_eq!(failure.connection_limit(), whose, "{text}");
        }
    }

    #[test]
    fn a_queue_whose_node_is_away_is_told_from_a_missing_one() {
        for (code, text, absence) in [
            (404, "NOT_FOUND - home node 'rabbit@a' of durable queue 'q' in vhost '/' is down or inaccessible", true),
            (404, "NOT_FOUND - queue 'q' in vhost '/' process is stopped by supervisor", true),
            (404, "NOT_FOUND - home node 'rabbit@a' of durable queue 'a name so long that the text is cu", true),
            (404, "NOT_FOUND - no queue 'q' in vhost '/'", false),
            (404, "NOT_FOUND - no queue 'process is stopped by supervisor' in vhost '/'", false),
            (406, "PRECONDITION_FAILED - is down or inaccessible", false),
        ] {
            let failure = Failure::Refused { reply_code: code, reply_text: text.to_owned() };
            assert_eq!(failure.is_absence(), absence, "{text}");
        }
    }

    #[test]
    fn a_stream_that_another_node_has_is_told_from_other_refusals() {
        for (text, elsewhere) in [
            ("PRECONDITION_FAILED - queue 'q' in vhost '/' does not have a replica on the local node", true),
            (
                "PRECONDITION_FAILED - stream queue 'q' in vhost '/' does not have a running replica on the local node",
                true,
            ),
            ("PRECONDITION_FAILED - queue 'a replica on the local node' in vhost '/' is something else", false),
        ] {
            let failure = Failure::Refused { reply_code: 406, reply_text: text.to_owned() };
            assert_eq!(failure.is_elsewhere(), elsewhere, "{text}");
        }
    }
}
