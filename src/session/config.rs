//! What an operator may set about sessions: the behaviour switch, the limits, the defaults. Values only; where they come
//! from is `crate::config`'s business.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::amqp::ShortText;
use super::command::Credentials;
use super::identity::UserCase;
use super::proof::Source;
use super::rules::{RuleSet, Stance};
use crate::rate::Rate;

/// Which behaviour wins where STOMP's specification and RabbitMQ's released plugin disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compatibility {
    /// The plugin's: soft errors leave the connection open, its texts only, a cumulative ACK covers the connection.
    Rabbitmq,
    /// The specification's: every ERROR closes, a cumulative ACK covers its subscription.
    Strict,
}

/// How `%XX` in a destination is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestinationDecoding {
    /// Every `%XX`, so that what a MESSAGE shows can be used in a SEND.
    Full,
    /// Only `%2F`, as the plugin does.
    Rabbitmq,
}

/// Which names durable `/topic` and `/exchange` subscriptions give to their queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurableQueueNaming {
    /// The released plugin's, up to RabbitMQ 4.3.
    Legacy,
    /// The rewritten plugin's.
    Native,
}

/// Which AMQP header types a MESSAGE shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderTypes {
    /// Texts, numbers, booleans, timestamps and lists of texts.
    All,
    /// Texts and numbers, as the plugin does; the rest is dropped.
    Rabbitmq,
}

/// Which unconfirmed SENDs are published again after the broker was lost. Consumers recognise a repetition by its message
/// id, so those that may be repeated get one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    All,
    /// None: a lost connection ends the sessions that have a receipt outstanding with an ERROR.
    None,
    /// Only those with a receipt; the others may be lost, as STOMP has it.
    Receipted,
}

/// What CONNECT's `host` header means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualHosts {
    /// Used when there is no `host` header.
    pub default: String,
    pub host_header: HostHeader,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostHeader {
    Ignored,
    /// The virtual host, after this translation; names that are not in it are used as they are.
    Named(HashMap<String, String>),
}

#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// How long a SEND waits while RabbitMQ blocks publishing.
    pub blocked_timeout: Duration,
    pub compatibility: Compatibility,
    /// For a CONNECT without `login`; none: such a CONNECT is refused.
    pub default_credentials: Option<Credentials>,
    /// Whether a NACK without `requeue` gives the message back to its queue.
    pub default_nack_requeue: bool,
    /// Routing keys in `CC` and `BCC` together.
    pub copies_max: usize,
    pub default_topic_exchange: ShortText,
    pub destination_decoding: DestinationDecoding,
    /// For what is unconfirmed when the client says DISCONNECT.
    pub disconnect_timeout: Duration,
    /// Topic destinations, `*` at the end standing for any rest, whose slow subscribers lose the oldest messages instead of
    /// their connection.
    pub drop_oldest: Vec<String>,
    pub durable_queue_naming: DurableQueueNaming,
    /// Time without a byte of a frame that has begun, after which the session ends.
    pub frame_timeout: Duration,
    /// How long a session waits for a broker before it ends.
    pub grace: Duration,
    pub header_types: HeaderTypes,
    /// Shortest heart-beat interval that is agreed to, in either direction.
    pub heartbeat_min: Duration,
    /// A client's heart-beat is missed after this many of its intervals.
    pub heartbeat_tolerance: f64,
    /// Failed CONNECTs before the session ends; only in [`Compatibility::Rabbitmq`], else the first ends it.
    pub login_attempts_max: u32,
    /// From the opened WebSocket to CONNECTED.
    pub login_timeout: Duration,
    /// RabbitMQ users that may log in from the relay's own machine only.
    pub loopback_users: Vec<String>,
    pub ping_interval: Duration,
    pub pong_timeout: Duration,
    /// Messages in flight for a subscription with `ack:auto`.
    pub prefetch_auto: u16,
    /// The same for the client modes when the client asks for no `prefetch-count`.
    pub prefetch_client: u16,
    pub replay: Replay,
    /// Until they are replaced.
    pub rules: Arc<RuleSet>,
    /// SENDs of one client; a faster one is not read for a while.
    pub send_rate: Rate,
    /// The relay in CONNECTED's `server` header; none: no header.
    pub server_header: Option<String>,
    /// What happens to what no rule speaks of.
    pub stance: Stance,
    /// Which spellings are one user.
    pub user_case: UserCase,
    /// Where a client may show who it is.
    pub sources: Vec<Source>,
    /// What one subscription may hold for as long as it lasts.
    pub subscription_bytes_max: usize,
    pub subscriptions_max: usize,
    /// Topic subscriptions get a durable queue that outlives a lost connection for this long; none: a queue that ends with it.
    pub survive: Option<Duration>,
    pub transaction_bytes_max: usize,
    pub transaction_frames_max: usize,
    pub transactions_max: usize,
    /// What deliveries that the client has not settled may hold; beyond it the session ends.
    pub unacked_bytes_max: usize,
    pub unconfirmed_bytes_max: usize,
    pub unconfirmed_messages_max: usize,
    pub virtual_hosts: VirtualHosts,
}

impl Default for SessionConfig {
    fn default() -> SessionConfig {
        SessionConfig {
            blocked_timeout: Duration::from_secs(300),
            compatibility: Compatibility::Strict,
            default_credentials: None,
            default_nack_requeue: true,
            copies_max: 100,
            default_topic_exchange: ShortText::lit("amq.topic"),
            destination_decoding: DestinationDecoding::Rabbitmq,
            disconnect_timeout: Duration::from_secs(10),
            drop_oldest: Vec::new(),
            durable_queue_naming: DurableQueueNaming::Legacy,
            frame_timeout: Duration::from_secs(30),
            grace: Duration::from_secs(60),
            header_types: HeaderTypes::Rabbitmq,
            heartbeat_min: Duration::from_secs(1),
            heartbeat_tolerance: 2.0,
            login_attempts_max: 3,
            login_timeout: Duration::from_secs(10),
            loopback_users: vec!["guest".to_owned()],
            ping_interval: Duration::from_secs(25),
            pong_timeout: Duration::from_secs(10),
            prefetch_auto: 100,
            prefetch_client: 1000,
            replay: Replay::All,
            rules: Arc::default(),
            send_rate: Rate::UNLIMITED,
            server_header: Some(concat!("stomp-relay/", env!("CARGO_PKG_VERSION")).to_owned()),
            stance: Stance::Open,
            user_case: UserCase::default(),
            sources: vec![Source::Password],
            subscription_bytes_max: 32 << 10,
            subscriptions_max: 256,
            survive: None,
            transaction_bytes_max: 4 << 20,
            transaction_frames_max: 1024,
            transactions_max: 16,
            unacked_bytes_max: 32 << 20,
            unconfirmed_bytes_max: 4 << 20,
            unconfirmed_messages_max: 256,
            virtual_hosts: VirtualHosts { default: "/".to_owned(), host_header: HostHeader::Named(HashMap::new()) },
        }
    }
}
