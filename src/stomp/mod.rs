//! STOMP 1.0, 1.1 and 1.2 frames and their byte form. Pure: std, bytes and memchr; no input or output, no clock.
//!
//! Where RabbitMQ's STOMP plugin reads or writes more liberally than the specification, this does as the plugin does;
//! each place says so. What a frame means (which headers a command needs, which commands a client may send) is not
//! decided here.

mod command;
mod frame;
mod headers;
pub mod heartbeat;
mod version;

pub use command::Command;
pub use frame::Frame;
pub use headers::Headers;
pub use version::Version;
