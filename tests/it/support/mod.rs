//! What tests share: real parts to talk to, and clients to talk with.

pub mod amqp;
pub mod authority;
pub mod condition;
pub mod cut_proxy;
pub mod dialect;
pub mod fault_proxy;
pub mod front_proxy;
pub mod lease;
pub mod process;
pub mod queue_states;
pub mod rabbit;
pub mod raw_http;
pub mod relay;
pub mod relay_process;
pub mod scratch;
pub mod stomp;
pub mod tally;
pub mod traffic;
