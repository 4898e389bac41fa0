//! The end of an identity: from then on nothing goes in either direction.

use super::Session;
use super::refusal::{CloseCode, Refusal};

impl Session {
    /// Looked at before every input, so that no message passes in a session whose deadline is met late.
    pub(super) fn is_expired(&self) -> bool {
        self.identity.ends_at().is_some_and(|end| self.now >= end)
    }

    pub(super) fn expire(&mut self) {
        let of_certificate = self.identity.certificate_ends_at.is_some_and(|end| self.now >= end);
        self.refuse(if of_certificate { certificate_expired() } else { token_expired() });
    }
}

fn certificate_expired() -> Refusal {
    Refusal::fatal(
        "auth.certificate_expired",
        "Certificate expired",
        "The client's certificate is no longer valid\n",
        "Connect again with a new certificate.",
    )
    .closing(CloseCode::TokenExpired)
}

/// Revoked, or its authority is no longer trusted.
pub(super) fn certificate_withdrawn() -> Refusal {
    Refusal::fatal(
        "auth.certificate_withdrawn",
        "Certificate withdrawn",
        "The client's certificate is no longer accepted: it was revoked, or its authority is no longer trusted\n",
        "Connect again with another certificate; ask the operator why this one is refused.",
    )
    .closing(CloseCode::TokenExpired)
}

/// The time of a token is over, at CONNECT or later.
pub(super) fn token_expired() -> Refusal {
    Refusal::fatal(
        "auth.token_expired",
        "Token expired",
        "The token is no longer valid\n",
        "Connect again with a new token (in stompjs: set connectHeaders in beforeConnect), or SEND one to /auth/tokens before.",
    )
    .closing(CloseCode::TokenExpired)
}
