//! One login: what the client shows goes to the authenticator, and what that makes of it to RabbitMQ.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::time::Instant;
use tracing::info;

use crate::auth::{Admitted, Attempt, Authenticator, Limited, Links};
use crate::broker::{Broker, Channel, ClientLabel, LinkSecret};
use crate::listener::Presented;
use crate::session::command::Credentials;
use crate::session::event::LoginFailure;
use crate::session::identity::Identity;
use crate::session::io::LoggedIn;
use crate::session::proof::{CertificateName, Denial, Evidence, Proof, ProofFailure, Source, Token};

/// What was shown before CONNECT. A certificate counts when the request shows nothing.
pub fn evidence(presented: Option<Presented>, certificate: Option<CertificateName>) -> Option<Evidence> {
    let token = |source, text| Some(Evidence { proof: Proof::Token(Token::new(text)), source });
    match presented {
        Some(Presented::Basic { login, passcode }) => {
            Some(Evidence { proof: Proof::Password(Credentials { login, passcode }), source: Source::Basic })
        }
        Some(Presented::BearerToken(text)) => token(Source::JwtHttp, text),
        Some(Presented::CookieToken(text)) => token(Source::JwtCookie, text),
        Some(Presented::SubprotocolToken(text)) => token(Source::JwtSubprotocol, text),
        None => certificate.map(|name| Evidence { proof: Proof::Certificate(name), source: Source::Certificate }),
    }
}

/// What a login needs of the relay.
#[derive(Clone)]
pub struct Logins {
    /// Of the client.
    pub address: IpAddr,
    pub auth: Arc<Authenticator>,
    pub broker: Broker,
    pub label: ClientLabel,
}

impl Logins {
    /// # Errors
    /// See [`Denial`].
    pub async fn log_in(self, virtual_host: String, evidence: Evidence) -> Result<(Channel, LoggedIn), Denial> {
        let started = Instant::now();
        let attempt = self.begin(evidence.claimed_login()).await?;
        let result = self.judge(&virtual_host, &evidence).await;
        let wrong =
            matches!(result, Err(Denial::Broker(LoginFailure::AccessRefused) | Denial::Proof(ProofFailure::Refused)));
        if wrong {
            self.fail(attempt, started).await;
        }
        result
    }

    async fn judge(&self, virtual_host: &str, evidence: &Evidence) -> Result<(Channel, LoggedIn), Denial> {
        let Logins { auth, broker, label, .. } = self;
        let Admitted { credentials, identity, links } = auth.admit(evidence, &label.0).await?;
        let (lease, broker) = match links {
            Links::Own => broker.login_apart(virtual_host, &credentials, label).await?,
            Links::Shared => broker.login(virtual_host, &credentials, label).await?,
        };
        Ok((lease, LoggedIn { broker, identity }))
    }

    async fn begin(&self, user: &str) -> Result<Attempt, ProofFailure> {
        self.auth.attempts().begin(self.address, user).await.map_err(|Limited| {
            info!(client = self.label.0, "not checked: too many logins have failed");
            ProofFailure::TooMany
        })
    }

    /// The answer comes at the same time whatever was wrong.
    async fn fail(&self, attempt: Attempt, started: Instant) {
        attempt.failed();
        tokio::time::sleep_until(started + self.auth.attempts().delay()).await;
    }

    /// Another token for a session of `user`; `secret` is that of its links.
    ///
    /// # Errors
    /// See [`ProofFailure`].
    pub async fn refresh(
        self,
        token: Token,
        user: String,
        secret: Option<LinkSecret>,
    ) -> Result<Identity, ProofFailure> {
        let started = Instant::now();
        let attempt = self.begin(&user).await?;
        let result = self.judge_renewal(&token, &user, secret).await;
        if matches!(result, Err(ProofFailure::Refused)) {
            self.fail(attempt, started).await;
        }
        result
    }

    async fn judge_renewal(
        &self,
        token: &Token,
        user: &str,
        secret: Option<LinkSecret>,
    ) -> Result<Identity, ProofFailure> {
        let Logins { auth, label, .. } = self;
        let Admitted { credentials, identity, links } = auth.renew(token, user, &label.0).await?;
        if let (Links::Own, Some(secret)) = (links, secret) {
            secret.update(credentials).await.map_err(|failure| {
                info!(client = label.0, ?failure, "RabbitMQ did not take a new token");
                match failure {
                    LoginFailure::AccessRefused | LoginFailure::VirtualHost { .. } => ProofFailure::Refused,
                    LoginFailure::Unavailable { .. } => ProofFailure::Unavailable,
                }
            })?;
        }
        Ok(identity)
    }
}
