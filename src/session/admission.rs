//! Which limit keeps a client out, and what the client is told. Who counts and measures is outside.

use super::refusal::{CloseCode, Refusal};

/// What is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `limits.connections_max`
    Connections,
    /// `limits.connections_per_address_max`
    ConnectionsOfAddress,
    /// `limits.connections_per_user_max`
    ConnectionsOfUser,
    /// `limits.connect_rate_max` or `limits.connect_rate_per_address_max`
    ConnectRate,
    /// `limits.handshake_rate_max` or `limits.handshake_rate_per_address_max`
    HandshakeRate,
}

impl Limit {
    /// As a metric shows it.
    pub fn label(self) -> &'static str {
        match self {
            Limit::Connections => "limit_total",
            Limit::ConnectionsOfAddress => "limit_address",
            Limit::ConnectionsOfUser => "limit_user",
            Limit::ConnectRate => "rate_connect",
            Limit::HandshakeRate => "rate_handshake",
        }
    }

    /// Ends the session in both modes.
    pub(super) fn refusal(self) -> Refusal {
        let later = "Try again in a few seconds, after a random time.";
        let (code, message, body, hint) = match self {
            Limit::Connections => (
                "limit.connections",
                "Too many connections",
                "the relay has as many clients as it may have\n",
                "Try again later; the operator may raise limits.connections_max or add a replica.",
            ),
            Limit::ConnectionsOfAddress => (
                "limit.address",
                "Too many connections",
                "as many clients as allowed are connected from this network address\n",
                "Close another connection first. Behind a proxy, the operator lets the relay trust its headers.",
            ),
            Limit::ConnectionsOfUser => (
                "limit.user",
                "Too many connections",
                "this user has as many connections as allowed\n",
                "Close another connection of this user first.",
            ),
            Limit::ConnectRate => (
                "limit.connect_rate",
                "Too many logins",
                "more clients log in at the moment than allowed in a second\n",
                later,
            ),
            Limit::HandshakeRate => (
                "limit.handshake_rate",
                "Too many connections",
                "more clients connect at the moment than allowed in a second\n",
                later,
            ),
        };
        Refusal::fatal(code, message, body, hint).closing(CloseCode::TryAgainLater)
    }
}
