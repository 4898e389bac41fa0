//! The broker side's own configuration and the limits that are not configurable.

use crate::budget::Budget;
use std::path::PathBuf;
use std::time::Duration;

/// A link without channels is closed after this time.
pub(super) const LINK_IDLE: Duration = Duration::from_secs(30);
/// The default of [`BrokerConfig::channel_idle`].
const CHANNEL_IDLE: Duration = Duration::from_secs(30);
/// Channels that the broker may close on a link before it takes no new sessions: lapin never uses their numbers again.
pub(super) const BROKER_CLOSED_CHANNELS_MAX: usize = 256;
/// Acknowledgements handed to lapin and not yet written, per session; more are batched until one is.
pub(super) const SETTLEMENTS_IN_FLIGHT_MAX: usize = 64;
/// Unacknowledged messages of one shared queue; the hub acknowledges as soon as they are in its subscribers' buffers.
pub(super) const SHARED_PREFETCH: u16 = 1000;
/// Shared queues that one hub channel consumes.
pub(super) const SHARED_CONSUMERS_PER_CHANNEL_MAX: usize = 256;
/// Shared queues of one hub channel that are made at a time, each on an AMQP channel beside it. RabbitMQ spends its time in
/// transactions on its own tables, so more gain nothing.
pub(super) const WORKBENCHES_MAX: usize = 8;
/// Shared queues that wait before a further channel is opened for making them.
pub(super) const WORKBENCH_QUEUE_MAX: usize = 4;
/// How long what RabbitMQ permitted on a channel counts when shared subscriptions are made or proven: it remembers the latest
/// twelve answers per channel for as long as that is busy.
pub(super) const PERMISSION_AGE_MAX: Duration = Duration::from_secs(1);
/// A shared queue without subscribers is deleted after this time.
pub(super) const SHARED_LINGER: Duration = Duration::from_secs(2);
/// Messages that wait for one subscriber of a shared queue.
pub(super) const SHARED_BUFFER_MESSAGES_MAX: usize = 10_000;
/// What was requeued for want of room comes again within this time, or went to another consumer.
pub(super) const RETURN_PATIENCE: Duration = Duration::from_millis(500);
/// The same for a shared queue, which has no other consumer: only its end makes this wait in vain.
pub(super) const SHARED_RETURN_PATIENCE: Duration = Duration::from_secs(5);
/// Frames for which lapin has room in each of its two buffers, for reading and for writing.
pub(super) const BUFFERED_FRAMES: usize = 32;
/// The default of [`BrokerConfig::shared_waiting_bytes_max`].
const SHARED_WAITING_BYTES_MAX: usize = 16 << 20;
/// TCP keepalive: first probe after this much silence, next ones at the same distance.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(30);

/// How one RabbitMQ node is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Name or address; with TLS the certificate must be valid for it.
    pub host: String,
    pub port: u16,
    pub encryption: Encryption,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    Plain,
    Tls,
}

#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// What is taken from the broker for many is counted here; what is taken for one session is its connection's to count.
    pub budget: Budget,
    /// Tried in turn, starting with another one for each connection.
    pub nodes: Vec<Node>,
    /// PEM file with the certificates that sign the nodes'; none: those of the operating system.
    pub ca: Option<PathBuf>,
    /// TCP, TLS and the AMQP handshake together, per node.
    pub connect_timeout: Duration,
    /// Login and passcode together. RabbitMQ takes no frame above `initial_frame_max` (4 KiB, or more in newer ones) before it has
    /// let a connection in.
    pub credentials_bytes_max: usize,
    /// How long a login waits while no node can be reached.
    pub login_wait: Duration,
    /// AMQP heartbeat interval, whole seconds; 0 takes the broker's.
    pub heartbeat: Duration,
    /// Largest AMQP frame; lapin keeps 64 of them in buffers per link.
    pub frame_bytes_max: u32,
    /// Sessions on one link; each written frame costs time in proportion.
    pub channels_per_link_max: u16,
    /// For every answer of the broker but the publisher confirm.
    pub operation_timeout: Duration,
    /// Credentials of a live link are checked again by RabbitMQ when the last check is older than this.
    pub recheck: Duration,
    /// Bytes of deliveries that wait for a session, beyond what waits for its socket.
    pub delivery_bytes_max: usize,
    /// Bytes that wait on one hub channel to be handed out, all its shared queues together. Handing out waits for no subscriber, so
    /// this is what comes while the task has not had its turn.
    pub shared_waiting_bytes_max: usize,
    /// Bytes that wait for one subscriber of a shared queue, beyond what waits for its socket.
    pub shared_buffer_bytes_max: usize,
    /// From a publish to its confirm; stands still while RabbitMQ blocks publishing.
    pub confirm_timeout: Duration,
    /// A session's channel that it does not use and that holds nothing of it is given back after this time.
    pub channel_idle: Duration,
}

impl Default for BrokerConfig {
    fn default() -> BrokerConfig {
        BrokerConfig {
            budget: Budget::default(),
            nodes: vec![Node { host: "localhost".into(), port: 5672, encryption: Encryption::Plain }],
            ca: None,
            connect_timeout: Duration::from_secs(5),
            login_wait: Duration::from_secs(5),
            heartbeat: Duration::from_secs(10),
            credentials_bytes_max: 3 << 10,
            frame_bytes_max: 131_072,
            channels_per_link_max: 64,
            operation_timeout: Duration::from_secs(10),
            recheck: Duration::from_secs(60),
            delivery_bytes_max: 4 << 20,
            shared_buffer_bytes_max: 1 << 20,
            shared_waiting_bytes_max: SHARED_WAITING_BYTES_MAX,
            confirm_timeout: Duration::from_secs(30),
            channel_idle: CHANNEL_IDLE,
        }
    }
}

/// Why a configuration cannot work.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error("no broker node is configured; name at least one host and port")]
    NoNodes,
    #[error("cannot read certificates from {path}: {reason}")]
    Certificates { path: String, reason: String },
    #[error("{key} is {value}, it must be {rule}")]
    OutOfRange { key: &'static str, value: u64, rule: &'static str },
}

impl BrokerConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.nodes.is_empty() {
            return Err(ConfigError::NoNodes);
        }
        let out_of_range = |key, value, rule| Err(ConfigError::OutOfRange { key, value, rule });
        // 4096 is AMQP's frame-min-size.
        if !(4096..=16 * 1024 * 1024).contains(&self.frame_bytes_max) {
            return out_of_range("frame_bytes_max", self.frame_bytes_max.into(), "4096 to 16777216");
        }
        if !(1..=1024).contains(&self.channels_per_link_max) {
            return out_of_range("channels_per_link_max", self.channels_per_link_max.into(), "1 to 1024");
        }
        if self.heartbeat.as_secs() > u16::MAX.into() {
            return out_of_range("heartbeat", self.heartbeat.as_secs(), "at most 65535 s");
        }
        Ok(())
    }
}
