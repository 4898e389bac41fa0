//! The states of a session.
//!
//! ```text
//!                  CONNECT              Login(Ok)                DISCONNECT, Drain           Closed, timeout
//!  AwaitConnect ------------> LoggingIn ----------> Open ------------------------> Leaving ------------------> Ended
//!       ^  |                      |                   |                                                          ^
//!       |  | any other frame,     | Login(Err)        | ERROR that ends the session                              |
//!       |  | login timeout        v                   v                                                          |
//!       |  +----------------------+-------------------+----------------------------------------------------------+
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
    /// The broker is finishing what was given to it; then RECEIPT and close.
    Leaving {
        close: Close,
        deadline: Instant,
        receipt: Option<String>,
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
}
