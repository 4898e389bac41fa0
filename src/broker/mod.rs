//! RabbitMQ over AMQP 0-9-1: pooled connections ("links"), and on them one lease ([`Channel`]) per session.
//!
//! Performs [`crate::session::command::BrokerCommand`]s and answers with [`crate::session::event::BrokerEvent`]s. Knows
//! nothing of STOMP, WebSocket or configuration files. It is the only place that knows lapin, and none of lapin's types
//! leaves it.
//!
//! ```text
//! channel      one session's lease: consume + publish, settle, subscribe (the operations), release (the end)
//! hub          shared subscriptions of an identity: fanout (who gets a queue's messages), inbox (what waits for a session),
//!              hub_channel (consumes the queues), workshop (has them made, on workbenches)
//! trial        declarations with arguments from clients, tried on a link that nothing else depends on
//! pool         identities and their links; logins, re-checks
//! link         one AMQP connection: state, places for channels; connect makes it
//! stream       TCP/TLS under lapin, read and written through guards; wire is what the inbound guard saw
//! nodes        which nodes there are, and which are down; pace: pauses, how many sessions come back at a time
//! quarantine   which session kills its links; death is what a link died of
//! guard        takes out and repairs what lapin cannot take: frame and table read it, repair, shrink and returns act
//! ```
//!
//! Running sessions are not moved to another link when theirs is lost: they get `Failed { LinkLost }` for that side of their
//! lease, unless they hold nothing on it, and ask for another one (`Restore`). The other side goes on.

mod aside;
mod barrier;
mod channel;
mod channel_limit;
mod config;
mod connect;
mod consume;
mod convert;
mod counts;
mod death;
mod exclusive;
mod fanout;
mod fault;
mod frame;
#[cfg(fuzzing)]
pub mod fuzzing;
mod guard;
mod hub;
mod hub_channel;
mod idle;
mod inbox;
mod inquiry;
mod link;
mod nodes;
mod outbound;
mod pace;
mod pool;
mod proving;
mod publish;
mod quarantine;
mod release;
mod repair;
mod repair_log;
mod reply_text;
mod returns;
mod runtime;
mod settle;
mod shared_consumer;
mod shrink;
mod sluice;
mod split;
mod stream;
mod stream_end;
mod subscribe;
mod table;
mod tenancy;
mod tls;
mod trial;
mod watch;
mod wire;
mod workbench;
mod workshop;

pub use channel::{Channel, Take};
pub use config::{BrokerConfig, ConfigError, Encryption, Node};
pub use counts::ConnectCounts;
pub use link::Role;
pub use pool::{Broker, BrokerStatus, ClientLabel, LinkSecret, LinkStatus, NodeList};
