//! One login: what the client shows goes to the authenticator, and what that makes of it to RabbitMQ.
//!
//! What is being judged is judged to its end, and counted, delayed and audited, whoever leaves meanwhile: else leaving before the
//! verdict would be a guess that costs nothing.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::audit::{self, Subject};
use crate::auth::{Admitted, Attempt, Authenticator, Limited, Links};
use crate::broker::{Broker, Channel, ClientLabel, LinkSecret};
use crate::clients::Clients;
use crate::listener::Presented;
use crate::metrics::Metrics;
use crate::session::command::Credentials;
use crate::session::event::LoginFailure;
use crate::session::identity::{Account, Identity};
use crate::session::io::LoggedIn;
use crate::session::proof::{CertificateName, Denial, Evidence, Proof, ProofFailure, Source, Token};
use crate::sparse::Sparse;

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

/// A new token of `user`, whose session's links have the secret.
pub struct TokenRenewal {
    pub secret: Option<LinkSecret>,
    pub token: Token,
    pub user: String,
    pub virtual_host: String,
    pub who: Applicant,
}

/// What a token came to; tells it when it is dropped, because nobody else did.
struct Unheard {
    metrics: Arc<Metrics>,
    result: Option<Result<(), ProofFailure>>,
    user: String,
    virtual_host: String,
    who: Applicant,
}

impl Drop for Unheard {
    fn drop(&mut self) {
        let Some(result) = self.result else { return };
        self.metrics.token_refreshed(result.as_ref().copied());
        let label = result.as_ref().map_or_else(ProofFailure::label, |()| "ok");
        audit::refreshed(self.who.subject(&self.user, &self.virtual_host), label);
    }
}

impl Applicant {
    fn subject<'a>(&'a self, user: &'a str, vhost: &'a str) -> Subject<'a> {
        Subject { client: &self.client, origin: &self.origin, session: &self.session, user, vhost }
    }
}

/// Log lines about a service account that RabbitMQ refuses: each login that works as it causes one.
static SERVICE_REFUSED: Sparse = Sparse::new();

/// When it was last said that a proxy may be unannounced.
static PROXY_WARNED: Mutex<Option<Instant>> = Mutex::new(None);

/// How often it is said.
const PROXY_WARNING_INTERVAL: Duration = Duration::from_secs(60);

fn is_due(last: &Mutex<Option<Instant>>) -> bool {
    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
    let due = last.is_none_or(|last| last.elapsed() >= PROXY_WARNING_INTERVAL);
    if due {
        *last = Some(Instant::now());
    }
    due
}

/// What RabbitMQ or the authenticator found wrong, and what may therefore be a guess.
fn is_wrong(result: &Login) -> bool {
    matches!(result, Err(Denial::Broker(LoginFailure::AccessRefused) | Denial::Proof(ProofFailure::Refused)))
}

/// Goes on when the caller goes away. None if the process ends.
async fn to_the_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    tokio::spawn(work).await.ok()
}

/// The answer comes at the same time whatever was wrong.
async fn answer_at(time: Instant) {
    tokio::time::sleep_until(time).await;
}

/// What a login needs of the relay.
#[derive(Clone)]
pub struct Logins {
    /// Of the client.
    pub address: IpAddr,
    pub auth: Arc<Authenticator>,
    pub broker: Broker,
    /// Paces what is told of those who are not in.
    pub clients: Clients,
    pub label: ClientLabel,
    pub metrics: Arc<Metrics>,
    /// The client comes through a proxy that the configuration does not name.
    pub unannounced: bool,
}

/// Whom the audit log names: the client may be gone when there is something to say.
#[derive(Clone)]
pub struct Applicant {
    /// The address, and the proxies between.
    pub client: String,
    pub origin: String,
    pub session: String,
}

/// What a login asks for.
pub struct Application {
    pub asked: Instant,
    pub evidence: Evidence,
    pub virtual_host: String,
    pub who: Applicant,
}

type Login = Result<(Channel, LoggedIn), Denial>;

impl Logins {
    /// # Errors
    /// See [`Denial`].
    pub async fn log_in(self, application: Application) -> Login {
        let (started, delay) = (Instant::now(), self.auth.attempts().delay());
        let attempt = match self.begin(application.evidence.claimed_login()).await {
            Ok(attempt) => attempt,
            Err(failure) => {
                let result = Err(failure.into());
                self.tell(&application, &result);
                return result;
            }
        };
        let judging = to_the_end(async move {
            let result = self.judge(&application.virtual_host, &application.evidence).await;
            if is_wrong(&result) {
                attempt.failed();
            }
            self.tell(&application, &result);
            result
        });
        let result = judging.await.unwrap_or(Err(Denial::Proof(ProofFailure::Unavailable)));
        if is_wrong(&result) {
            answer_at(started + delay).await;
        }
        result
    }

    async fn judge(&self, virtual_host: &str, evidence: &Evidence) -> Login {
        let Logins { auth, broker, label, .. } = self;
        let Admitted { credentials, identity, links } = auth.admit(evidence, &label.0).await?;
        let leased = match links {
            Links::Own => broker.login_apart(virtual_host, &credentials, label).await,
            Links::Shared => broker.login(virtual_host, &credentials, label).await,
        };
        match leased {
            Ok((lease, broker)) => Ok((lease, LoggedIn { broker, identity })),
            // Nothing that the client has shown is wrong.
            Err(LoginFailure::AccessRefused) if identity.account == Account::Service => {
                if let Some(suppressed) = SERVICE_REFUSED.line() {
                    let login = credentials.login;
                    error!(login, suppressed, "RabbitMQ refuses auth.service_login; nobody who works as it is let in");
                }
                Err(ProofFailure::Unavailable.into())
            }
            Err(failure) => Err(failure.into()),
        }
    }

    /// To metrics and audit log.
    fn tell(&self, application: &Application, result: &Login) {
        let Application { asked, evidence, virtual_host, who } = application;
        let method = evidence.source;
        self.metrics.login(method.name(), result.as_ref().map(|_| ()), asked.elapsed().as_secs_f64());
        match result {
            Ok((_, LoggedIn { identity, .. })) => {
                audit::authenticated(who.subject(&identity.user, virtual_host), method.name());
            }
            Err(denial) => {
                if is_wrong(result) || matches!(denial, Denial::Proof(ProofFailure::TooMany)) {
                    self.suspect_proxy();
                }
                if self.clients.may_tell(self.address, std::time::Instant::now()) {
                    let claimed = evidence.claimed_login();
                    self.log(claimed, virtual_host, denial);
                    audit::not_authenticated(who.subject("", ""), claimed, method.name(), denial.label());
                }
            }
        }
    }

    /// Failed logins of all who come through a proxy that nobody announced count against its one address.
    fn suspect_proxy(&self) {
        let address = self.address;
        if self.unannounced && is_due(&PROXY_WARNED) {
            let remedy = format!("[proxy] trusted = [\"{address}\"]");
            warn!(
                %address,
                remedy,
                "failed logins come with a proxy's header from an address that is not in proxy.trusted: all of them count \
                 against it, and at auth.failures_per_address_max nobody behind it gets in; name it if it is a proxy of yours"
            );
        }
    }

    /// One line for each login that is refused. Why a token is, its authenticator has said; that too many have failed, `begin`;
    /// that no node answers is said once, not for each client.
    fn log(&self, user: &str, vhost: &str, denial: &Denial) {
        let reason = match denial {
            Denial::Broker(LoginFailure::AccessRefused) => "RabbitMQ does not accept the user or its password",
            // That it does not exist, that the user has no right to it, or that it has too many connections.
            Denial::Broker(LoginFailure::VirtualHost { reply_text }) => audit::cut(reply_text),
            Denial::Broker(LoginFailure::Unavailable { .. }) | Denial::Proof(_) => return,
        };
        info!(user = audit::cut(user), vhost = audit::cut(vhost), client = self.label.0, reason, "login refused");
    }

    async fn begin(&self, user: &str) -> Result<Attempt, ProofFailure> {
        self.auth.attempts().begin(self.address, user).await.map_err(|Limited| {
            // The audit log tells of each, and strangers cause as many as they like.
            debug!(client = self.label.0, "not checked: too many logins have failed");
            ProofFailure::TooMany
        })
    }

    /// The audit log and the metrics are the caller's, unless the caller is gone when there is something to say.
    ///
    /// # Errors
    /// See [`ProofFailure`].
    pub async fn refresh(self, renewal: TokenRenewal) -> Result<Identity, ProofFailure> {
        let (started, delay) = (Instant::now(), self.auth.attempts().delay());
        let attempt = self.begin(&renewal.user).await?;
        let TokenRenewal { secret, token, user, virtual_host, who } = renewal;
        let mut unheard = Unheard { metrics: self.metrics.clone(), result: None, user, virtual_host, who };
        let judging = to_the_end(async move {
            let result = self.judge_renewal(&token, &unheard.user, secret).await;
            let refused = matches!(result, Err(ProofFailure::Refused));
            if refused {
                attempt.failed();
            }
            unheard.result = Some(result.as_ref().map(drop).map_err(|failure| *failure));
            (result, unheard)
        });
        let result = judging.await.map_or(Err(ProofFailure::Unavailable), |(result, mut unheard)| {
            unheard.result = None;
            result
        });
        if matches!(result, Err(ProofFailure::Refused)) {
            answer_at(started + delay).await;
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
                    failure if failure.connection_limit().is_some() => ProofFailure::Unavailable,
                    LoginFailure::AccessRefused | LoginFailure::VirtualHost { .. } => ProofFailure::Refused,
                    LoginFailure::Unavailable { .. } => ProofFailure::Unavailable,
                }
            })?;
        }
        Ok(identity)
    }
}
