//! The states of a session.
//!
//! ```text
//!                  CONNECT              Login(Ok)            DISCONNECT, Drain            Closed, timeout
//!  AwaitConnect ------------> LoggingIn ----------> Open --------------------> Leaving --------------------> Ended
//!       ^  |                      |                 |  ^                        |   ^                          ^
//!       |  |                      |    consume side |  | Restored(Ok)           |   | Restored(Ok)             |
//!       |  |                      |            lost v  |           a side lost  v   |                          |
//!       |  |                      |               Suspended <-------------------+---+                          |
//!       |  | any other frame,     | Login(Err)       | grace is over                                           |
//!       |  | login timeout        v                  v          an ERROR that ends the session, from any state |
//!       |  +----------------------+------------------+---------------------------------------------------------+
//!       +---- Login(Err) in compatibility mode, while attempts are left
//! ```
//!
//! Variants carry only what their state needs.

use std::time::Instant;

use super::refusal::Close;
use crate::stomp::Version;
use crate::stomp::heartbeat::Heartbeats;

#[derive(Debug)]
pub(super) enum State {
    AwaitConnect {
        deadline: Instant,
        /// Failed logins so far.
        failures: u32,
    },
    Ended,
    /// All SENDs are answered, and the broker is finishing the rest; then RECEIPT and close.
    Leaving {
        departure: Departure,
        /// Whether the lease is kept until the socket has taken what was delivered: what is on its way to the client must be
        /// acknowledged before.
        flushing: bool,
    },
    LoggingIn {
        deadline: Instant,
        failures: u32,
        heartbeats: Heartbeats,
        login: String,
        version: Version,
        virtual_host: String,
    },
    Open {
        version: Version,
    },
    /// Without a consume side: the WebSocket and its heart-beats go on, frames wait. A lost publish side alone suspends nothing.
    Suspended {
        /// What was to happen when the side was lost.
        leaving: Option<Departure>,
        version: Version,
    },
}

/// How a session that was asked to end will end.
#[derive(Debug)]
pub(super) struct Departure {
    pub(super) close: Close,
    /// When it ends without the broker's answers; an outage moves it.
    pub(super) deadline: Instant,
    pub(super) receipt: Option<String>,
}
