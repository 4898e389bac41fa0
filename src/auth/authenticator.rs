//! The authenticator: from what a client shows to who it is and whose RabbitMQ credentials it works with.
//!
//! Passwords are RabbitMQ's to check; here they only pass. Tokens are verified here, always, before RabbitMQ sees them.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand;
use tracing::{debug, info};

use super::attempts::{AttemptLimits, Attempts};
use super::key::KeySet;
use super::key_source::{KeySource, KeySourceConfig};
use super::token::{Rules, TokenError, Verified, verify};
use crate::metrics::Metrics;
use crate::session::command::Credentials;
use crate::session::identity::{Account, Identity, UserCase};
use crate::session::proof::{CertificateName, Evidence, Proof, ProofFailure, ProofKind, Token};
use crate::sparse::Sparse;

/// Log lines about tokens that are not good.
static REFUSED: Sparse = Sparse::new();

#[derive(Clone, Debug)]
pub struct AuthConfig {
    pub attempts: AttemptLimits,
    /// RabbitMQ user for clients that RabbitMQ does not know: those with a certificate, and those with a token that RabbitMQ
    /// does not see.
    pub service: Option<Credentials>,
    /// None: no token is accepted.
    pub tokens: Option<TokenConfig>,
    pub user_case: UserCase,
}

#[derive(Clone, Debug)]
pub struct TokenConfig {
    pub keys: Keys,
    pub rules: Rules,
    pub upstream: Upstream,
}

#[derive(Clone, Debug)]
pub enum Keys {
    Fixed(KeySet),
    Source(KeySourceConfig),
}

/// What RabbitMQ is shown for a client with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// The credentials of the service account.
    Service,
    /// The token, as the password: RabbitMQ verifies it again, with its OAuth 2 plugin.
    Token,
}

/// Who the client is, and how it works at RabbitMQ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    pub credentials: Credentials,
    pub identity: Identity,
    pub links: Links,
}

/// Which AMQP connections a session uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// Its own: the secret of these changes with every new token.
    Own,
    /// Those of all sessions with the same credentials.
    Shared,
}

/// Checks what clients show.
pub struct Authenticator {
    attempts: Attempts,
    keys: Option<KeeperOfKeys>,
    service: Option<Credentials>,
    tokens: Option<(Rules, Upstream)>,
    user_case: UserCase,
}

enum KeeperOfKeys {
    Fixed(Arc<KeySet>),
    Source(KeySource),
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

impl Authenticator {
    /// Asks no network. `before` is the one that this one replaces: who has failed is remembered, and keys that it has fetched
    /// from the same place are kept.
    ///
    /// # Errors
    /// A text for people: `auth.jwks_ca_file` can't be used.
    pub fn new(
        config: AuthConfig,
        before: Option<&Authenticator>,
        metrics: &Arc<Metrics>,
    ) -> Result<Authenticator, String> {
        let AuthConfig { attempts, service, tokens, user_case } = config;
        let attempts = match before {
            Some(before) => before.attempts.with_limits(attempts),
            None => Attempts::new(attempts),
        };
        let Some(TokenConfig { keys, rules, upstream }) = tokens else {
            return Ok(Authenticator { attempts, keys: None, service, tokens: None, user_case });
        };
        let keys = match keys {
            Keys::Fixed(keys) => KeeperOfKeys::Fixed(Arc::new(keys)),
            Keys::Source(config) => KeeperOfKeys::Source(match before.and_then(|before| before.source(&config)) {
                Some(source) => source.clone(),
                None => KeySource::new(config, metrics.clone())?,
            }),
        };
        Ok(Authenticator { attempts, keys: Some(keys), service, tokens: Some((rules, upstream)), user_case })
    }

    /// Who has failed lately.
    pub fn attempts(&self) -> &Attempts {
        &self.attempts
    }

    fn source(&self, config: &KeySourceConfig) -> Option<&KeySource> {
        match &self.keys {
            Some(KeeperOfKeys::Source(source)) if source.config() == config => Some(source),
            _ => None,
        }
    }

    /// `client` is a name for the log.
    ///
    /// # Errors
    /// See [`ProofFailure`]; why stands in the log. A password is always let through, to be checked by RabbitMQ.
    pub async fn admit(&self, evidence: &Evidence, client: &str) -> Result<Admitted, ProofFailure> {
        match &evidence.proof {
            Proof::Password(Credentials { login, passcode }) => {
                let login = self.user_case.name(login).into_owned();
                let identity = Identity::of_login(&login);
                let credentials = Credentials { login, passcode: passcode.clone() };
                Ok(Admitted { credentials, identity, links: Links::Shared })
            }
            Proof::Token(token) => self.admit_token(token, client).await,
            Proof::Certificate(name) => self.admit_certificate(name),
        }
    }

    /// Another token for a session of `user`.
    ///
    /// # Errors
    /// As [`Authenticator::admit`]; also a token of somebody else.
    pub async fn renew(&self, token: &Token, user: &str, client: &str) -> Result<Admitted, ProofFailure> {
        let admitted = self.admit_token(token, client).await?;
        if admitted.identity.user != user {
            info!(client, "token refused: it is another user's");
            return Err(ProofFailure::Refused);
        }
        Ok(admitted)
    }

    fn admit_certificate(&self, name: &CertificateName) -> Result<Admitted, ProofFailure> {
        let credentials = self.service.clone().ok_or(ProofFailure::Refused)?;
        let user = self.user_case.name(&name.0).into_owned();
        let identity =
            Identity { user, proof: ProofKind::Certificate, account: Account::Service, ..Identity::default() };
        Ok(Admitted { credentials, identity, links: Links::Shared })
    }

    async fn admit_token(&self, token: &Token, client: &str) -> Result<Admitted, ProofFailure> {
        let Some((rules, upstream)) = &self.tokens else { return Err(ProofFailure::Refused) };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let Verified { claims, expires, user } = self.verify(token, rules, now.as_secs(), client).await?;
        let left = (Duration::from_secs(expires) + rules.leeway).saturating_sub(now);
        let expires_at = Instant::now().checked_add(end(left, rules.leeway, share()));
        let user = self.user_case.name(&user).into_owned();
        let account = match upstream {
            Upstream::Service => Account::Service,
            Upstream::Token => Account::Own,
        };
        let identity = Identity { user, proof: ProofKind::Token, claims, account, expires_at, ..Identity::default() };
        let (credentials, links) = match upstream {
            Upstream::Service => (self.service.clone().ok_or(ProofFailure::Refused)?, Links::Shared),
            Upstream::Token => {
                let (login, passcode) = (identity.user.clone(), token.expose().to_owned());
                (Credentials { login, passcode }, Links::Own)
            }
        };
        Ok(Admitted { credentials, identity, links })
    }

    async fn verify(&self, token: &Token, rules: &Rules, now: u64, client: &str) -> Result<Verified, ProofFailure> {
        let keys = match &self.keys {
            Some(KeeperOfKeys::Fixed(keys)) => Some(keys.clone()),
            Some(KeeperOfKeys::Source(source)) => source.current().await,
            None => None,
        };
        let keys = keys.ok_or(ProofFailure::Unavailable)?;
        let mut result = verify(token.expose(), &keys, rules, now);
        if let (Err(TokenError::UnknownKey(_)), Some(KeeperOfKeys::Source(source))) = (&result, &self.keys)
            && let Some(newer) = source.newer(&keys).await
        {
            result = verify(token.expose(), &newer, rules, now);
        }
        result.map_err(|error| {
            match REFUSED.line() {
                Some(suppressed) => info!(client, reason = %error, suppressed, "token refused"),
                None => debug!(client, reason = %error, "token refused"),
            }
            match error {
                TokenError::Expired { .. } => ProofFailure::Expired,
                _ => ProofFailure::Refused,
            }
        })
    }
}

/// When a session ends whose token is accepted for `left` yet, the leeway included. Tokens of many clients may end in the same
/// second, and so would their sessions; `share`, from 0 to 1, spreads these over the leeway, or over what is left of it.
fn end(left: Duration, leeway: Duration, share: f64) -> Duration {
    left - leeway.min(left).mul_f64(share)
}

/// Another one each time, less than 1.
fn share() -> f64 {
    let mut bytes = [0; 4];
    // Without a random source all sessions end together, which is no harm.
    let _ = rand::fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / 2_f64.powi(32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_ends_between_the_end_of_its_token_and_that_of_the_leeway() {
        let seconds = Duration::from_secs;
        for (left, leeway, share, expected) in [
            (seconds(65), seconds(5), 0.0, seconds(65)),
            (seconds(65), seconds(5), 0.5, Duration::from_millis(62_500)),
            (seconds(65), seconds(5), 1.0, seconds(60)),
            (seconds(60), seconds(0), 0.9, seconds(60)),
            // The token is over, and accepted because of the leeway: some of what is left of it is the session's.
            (seconds(4), seconds(5), 0.5, seconds(2)),
        ] {
            assert_eq!(end(left, leeway, share), expected, "{left:?} {leeway:?} {share}");
        }
    }
}
