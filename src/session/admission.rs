//! Which limit keeps a client out, and what the client is told. Who counts and measures is outside.

use super::refusal::{CloseCode, Refusal};

/// What is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `log.audit_failure`
    AuditLog,
    /// `limits.connections_max`
    Connections,
    /// `limits.connections_per_address_max`
    ConnectionsOfAddress,
    /// `limits.connections_per_network_max`
    ConnectionsOfNetwork,
    /// `limits.connections_per_user_max`
    ConnectionsOfUser,
    /// `limits.connect_rate_max` or `limits.connect_rate_per_address_max`
    ConnectRate,
    /// `limits.handshake_rate_max` or `limits.handshake_rate_per_address_max`
    HandshakeRate,
    /// `limits.memory_max`
    Memory,
    /// `limits.session_bytes_max`
    MemoryOfSession,
    /// `limits.user_bytes_max`
    MemoryOfUser,
    /// `limits.strangers_max`, or another limit at which those go first that have not logged in
    Strangers,
}

impl Limit {
    /// As a metric shows it.
    pub fn label(self) -> &'static str {
        match self {
            Limit::AuditLog => "audit_log",
            Limit::Connections => "limit_total",
            Limit::ConnectionsOfAddress => "limit_address",
            Limit::ConnectionsOfNetwork => "limit_network",
            Limit::ConnectionsOfUser => "limit_user",
            Limit::ConnectRate => "rate_connect",
            Limit::HandshakeRate => "rate_handshake",
            Limit::Memory => "memory",
            Limit::MemoryOfSession => "memory_session",
            Limit::MemoryOfUser => "memory_user",
            Limit::Strangers => "limit_strangers",
        }
    }

    /// Ends the session in both modes.
    pub(super) fn refusal(self) -> Refusal {
        let later = "Try again in a few seconds, after a random time.";
        let (code, message, body, hint) = match self {
            Limit::AuditLog => (
                "limit.audit_log",
                "Not available",
                "the relay can't put on record who comes in, and so lets nobody in\n",
                "Try again in a minute, after a random time; the operator finds the reason in the log.",
            ),
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
            Limit::ConnectionsOfNetwork => (
                "limit.network",
                "Too many connections",
                "as many clients as allowed are connected from networks near this address\n",
                "Close another connection first; the operator may raise limits.connections_per_network_max.",
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
            Limit::Memory => (
                "limit.memory",
                "Out of memory",
                "the relay has no memory left for this connection: newcomers are refused, and those who hold most are ended\n",
                "Try again after a random time; take messages faster, send less at once. The operator may raise limits.memory_max.",
            ),
            Limit::MemoryOfSession => (
                "limit.session_memory",
                "Out of memory",
                "this session holds more memory than one may: unfinished frames, transactions, unconfirmed or unread messages\n",
                "Commit smaller transactions, wait for receipts, read what is sent. The operator may raise limits.session_bytes_max.",
            ),
            Limit::MemoryOfUser => (
                "limit.user_memory",
                "Out of memory",
                "the sessions of this user together hold more memory than one user's may, and this one held most\n",
                "Use fewer connections, read what is sent. The operator may raise limits.user_bytes_max.",
            ),
            Limit::Strangers => (
                "limit.strangers",
                "Too many connections",
                "the place was needed for another client before this one had logged in\n",
                "Send CONNECT as soon as the WebSocket is open. Try again in a few seconds, after a random time.",
            ),
        };
        let close = match self {
            Limit::MemoryOfSession => CloseCode::PolicyViolation,
            _ => CloseCode::TryAgainLater,
        };
        Refusal::fatal(code, message, body, hint).closing(close)
    }
}
