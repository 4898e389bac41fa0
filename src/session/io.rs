//! What goes into a session and what comes out: two closed enums, so that everything that can happen to a client is listed here.

use std::sync::Arc;
use std::time::Instant;

use super::admission::Limit;
use super::command::BrokerCommand;
use super::event::{BrokerEvent, BrokerInfo};
use super::identity::Identity;
use super::proof::{Denial, Evidence, ProofFailure, Source, Token};
use super::refusal::{Close, CloseCode};
use super::rules::RuleSet;
use crate::stomp::{DecodeError, Frame, Unfinished};

#[derive(Debug)]
pub enum Input {
    Broker(BrokerEvent),
    /// The client's certificate was revoked, or its authority is no longer one; at any time.
    CertificateWithdrawn,
    /// The relay is being stopped, and everything that the client sent and the relay read has been handed over but `unread`
    /// frames, for which there was no time.
    Drain {
        until: Instant,
        unread: usize,
    },
    /// All frames put out so far have been written to the socket.
    Flushed,
    Frame(Frame),
    Login(Result<LoggedIn, Denial>),
    /// The bytes are no STOMP frame; nothing after them can be read.
    Malformed(DecodeError),
    /// The client is let in no further because a limit is reached; at any time.
    NotAdmitted(Limit),
    /// Something came from the client: bytes, a ping or a pong.
    Received,
    /// The answer to `Output::Refresh`.
    Refreshed(Result<Identity, ProofFailure>),
    /// Other rules hold from now on, for what was allowed before too.
    RulesReplaced(Arc<RuleSet>),
    /// The client is gone, and everything it sent before has been handed over.
    TransportClosed,
    /// The deadline of `poll_timeout` has come, and whatever had come before it was handed over.
    Timeout,
    /// The bytes at hand have all been read and end inside this frame; None: between frames.
    Unfinished(Option<Unfinished>),
    /// The client's silence says nothing: the relay was not listening, or what it wrote is still on its way out.
    Unheard,
    /// The WebSocket can't be read any further: a message over the limit, a violated protocol.
    Unreadable {
        close: CloseCode,
        reason: String,
    },
    /// The socket has taken no byte within the write timeout although some wait.
    WriteStalled,
}

/// A login that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedIn {
    pub broker: BrokerInfo,
    pub identity: Identity,
}

/// What rules did not allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// SEND, SUBSCRIBE or UNSUBSCRIBE.
    pub command: &'static str,
    /// The number, from 1, and the name of the rule that decided; None if none did.
    pub rule: Option<(usize, Option<String>)>,
    /// As the client is told.
    pub what: String,
}

#[derive(Debug, PartialEq)]
pub enum Output {
    /// Write what is queued, then close the WebSocket. The last output of a session.
    Close(Close),
    Command(BrokerCommand),
    /// For the operator; the client is told by a frame.
    Denied(Denied),
    Frame(Frame),
    Heartbeat,
    /// Have it checked, and ask the broker; the answer is `Input::Login`.
    Login {
        evidence: Evidence,
        virtual_host: String,
    },
    /// For the operator: a login that is refused without asking anybody. The client is told by a frame.
    NotAuthenticated {
        claimed: String,
        source: Source,
    },
    /// Have a new token of this user checked; the answer is `Input::Refreshed`. At most one is under way.
    Refresh {
        token: Token,
        user: String,
    },
    /// From now on the limits for clients that have logged in apply.
    LoggedIn,
    Ping,
}
