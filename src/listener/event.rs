//! What a WebSocket tells its driver: what came in, what went out, and why it does not go on.

use std::fmt;

use bytes::BytesMut;

/// Something the peer did.
#[derive(Clone, PartialEq, Eq)]
pub enum Incoming {
    /// A ping, which is answered by itself, or a part of a frame: the peer lives.
    Activity,
    /// The peer closed: its code, or None if it gave none or just went away. Nothing comes after it.
    Closed { code: Option<u16> },
    /// What messages brought, text or binary, as far as it has come: a part of one, or several. In an allocation of its own.
    Data(BytesMut),
    /// A pong: the peer lives, and most likely answers the last ping.
    Pong,
}

/// Without contents: a message may hold a passcode.
impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Incoming::Activity => f.write_str("Activity"),
            Incoming::Closed { code } => f.debug_struct("Closed").field("code", code).finish(),
            Incoming::Data(bytes) => write!(f, "Data({} bytes)", bytes.len()),
            Incoming::Pong => f.write_str("Pong"),
        }
    }
}

/// What [`drive`](super::WebSocket::drive) came back for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Incoming(Incoming),
    /// All that was queued has been handed to the operating system.
    Flushed,
}

/// Why nothing more can be received.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    #[error("the message is larger than {max} bytes")]
    TooBig { max: usize },
    #[error("a text message or close reason is not UTF-8")]
    NotUtf8,
    #[error("WebSocket protocol violated: {0}")]
    Protocol(String),
    #[error("connection failed: {0}")]
    Io(String),
}

impl ReceiveError {
    /// The close code that tells the peer (RFC 6455 section 7.4.1); None when there is no one left to tell.
    pub fn close_code(&self) -> Option<u16> {
        match self {
            ReceiveError::TooBig { .. } => Some(1009),
            ReceiveError::NotUtf8 => Some(1007),
            ReceiveError::Protocol(_) => Some(1002),
            ReceiveError::Io(_) => None,
        }
    }
}

/// The socket does not take bytes any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("connection failed while writing: {0}")]
pub struct SendError(pub String);

/// Either direction failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriveError {
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    #[error(transparent)]
    Send(#[from] SendError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_their_close_code() {
        assert_eq!(ReceiveError::TooBig { max: 1 }.close_code(), Some(1009));
        assert_eq!(ReceiveError::NotUtf8.close_code(), Some(1007));
        assert_eq!(ReceiveError::Protocol(String::new()).close_code(), Some(1002));
        assert_eq!(ReceiveError::Io(String::new()).close_code(), None);
    }

    #[test]
    fn debug_output_shows_no_contents() {
        let event = Event::Incoming(Incoming::Data(BytesMut::from("passcode:hunter2")));
        assert_eq!(format!("{event:?}"), "Incoming(Data(16 bytes))");
    }
}
