//! The session: a pure state machine for one STOMP client. Knows `crate::stomp` and nothing else: no tokio, no lapin, no
//! clock, no randomness.

pub mod amqp;
pub mod command;
pub mod event;
