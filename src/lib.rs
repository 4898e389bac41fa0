//! stomp-relay: a thin TLS-terminating WebSocket front end that authenticates clients and relays STOMP 1.0/1.1/1.2
//! frames to RabbitMQ over AMQP 0-9-1.
//!
//! Imports point down this list, and within a line to the right; data flows both ways. `tests/it/layers.rs` reads the
//! drawing and keeps it so.
//!
//! ```text
//! 6  main  cli  telemetry                    flags, log, exit code
//! 5  server  explain                         bind, accept, drain, reload; what becomes of one frame
//! 4  config  admin  readiness  connection  login   connection: where transport, codec, session and broker channel meet
//! 3  listener  broker  auth  dev_cert        adapters: each knows one outside world, none knows another
//! 2  metrics  clients  audit  patience       what is counted; who is connected, and the cap; what is put on record; deadlines
//! 2  descriptors  sparse  lost_lines         open files; log lines that strangers cause, and that were lost
//! 1  session                                 pure state machine: frames in, commands out; broker events in, frames out
//! 0  stomp  rate  budget                     pure codec: std, bytes, itoa, memchr, thiserror; token buckets; memory
//! ```
//!
//! Read in this order: `session`, `session::command`, `session::event`, `connection`, `broker::channel`, `server`.

pub mod admin;
pub mod audit;
pub mod auth;
pub mod broker;
pub mod budget;
pub mod cli;
pub mod clients;
pub mod config;
pub mod connection;
pub mod descriptors;
pub mod dev_cert;
pub mod explain;
pub mod listener;
pub mod login;
pub mod lost_lines;
pub mod metrics;
pub mod patience;
pub mod rate;
pub mod readiness;
pub mod server;
pub mod session;
pub mod sparse;
pub mod stomp;
pub mod telemetry;
