//! The end of an identity: from then on nothing goes in either direction.

use super::Session;
use super::refusal::{CloseCode, Refusal};

impl Session {
    /// Looked at before every input, so that no message passes in a session whose deadline is met late.
    pub(super) fn is_expired(&self) -> bool {
        self.identity.expires_at.is_some_and(|expiry| self.now >= expiry)
    }

    pub(super) fn expire(&mut self) {
        self.refuse(token_expired());
    }
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
