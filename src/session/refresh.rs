//! A new token for a session that goes on: a SEND to `/auth/tokens` with the token as its body, which the broker never sees.
//!
//! Frames wait until it is checked, so that those behind it are judged by the new identity. While it is checked the old one
//! holds, to its own end.

use super::Session;
use super::identity::Identity;
use super::io::Output;
use super::proof::{ProofFailure, Token};
use super::refusal::{CloseCode, Refusal, Severity};
use crate::stomp::Frame;

/// Where new tokens are sent.
const DESTINATION: &str = "/auth/tokens";

/// A new token that is being checked.
#[derive(Debug)]
pub(super) struct Refresh {
    receipt: Option<String>,
}

impl Session {
    /// Without a source of tokens the destination means what any unknown one means.
    pub(super) fn is_refresh(&self, frame: &Frame) -> bool {
        self.config.sources.iter().any(|source| source.is_token()) && frame.header("destination") == Some(DESTINATION)
    }

    pub(super) fn handle_refresh(&mut self, frame: &Frame) -> Result<(), Refusal> {
        if self.identity.expires_at.is_none() {
            return Err(refused("This session came in without a token\n"));
        }
        if frame.header("transaction").is_some() {
            return Err(refused("A new token is no part of a transaction\n"));
        }
        let Some(token) = std::str::from_utf8(&frame.body).ok().map(str::trim).filter(|token| !token.is_empty()) else {
            return Err(refused("The body is no token\n"));
        };
        self.outputs.push_back(Output::Refresh { token: Token::new(token), user: self.identity.user.clone() });
        self.refresh = Some(Refresh { receipt: frame.header("receipt").map(str::to_owned) });
        Ok(())
    }

    pub(super) fn handle_refreshed(&mut self, result: Result<Identity, ProofFailure>) {
        let Some(Refresh { receipt }) = self.refresh.take() else { return };
        match result {
            Ok(identity) => {
                // First: what the new token does not allow may end the session.
                if let Some(receipt) = receipt {
                    self.receipt(&receipt);
                }
                self.change_identity(identity);
            }
            Err(failure) => {
                let why = match failure {
                    ProofFailure::Unavailable => "Tokens cannot be verified at the moment\n",
                    ProofFailure::TooMany => "Too many tokens have been refused\n",
                    ProofFailure::Expired | ProofFailure::Refused => "The token is not accepted\n",
                };
                self.refuse(refused(why).about_receipt(receipt.as_deref()));
            }
        }
    }
}

/// The session goes on with the token that it has, in both modes.
fn refused(why: &'static str) -> Refusal {
    let hint = "The session goes on until the token that it has ends. SEND a valid token of the same user.";
    let refusal = Refusal::soft("auth.refresh_refused", "Token refused", why, hint);
    Refusal { severity: Severity::Harmless, ..refusal }.closing(CloseCode::PolicyViolation)
}
