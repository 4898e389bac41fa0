//! STOMP 1.0, 1.1 and 1.2 frames and their byte form. Pure: std, bytes, itoa and memchr; no input or output, no clock.
//!
//! What a peer sends goes through [`Decoder`], what it gets through [`encode`]. Where RabbitMQ's STOMP plugin reads or
//! writes more liberally than the specification, this does as the plugin does; each place says so. What a frame means
//! (which headers a command needs, which commands a client may send) is not decided here.

mod command;
mod content_length;
mod decoder;
mod encoder;
mod error;
mod escape;
mod frame;
mod headers;
pub mod heartbeat;
mod limits;
mod line;
mod unfinished;
mod version;

pub use command::Command;
pub use decoder::{Decoder, Item};
pub use encoder::encode;
pub use error::DecodeError;
pub use frame::Frame;
pub use headers::Headers;
pub use limits::{COMMAND_BYTES_MAX, Escapes, Limits};
pub use unfinished::Unfinished;
pub use version::Version;
