//! CONNECT: version, heart-beats, credentials and virtual host; and the broker's answer to them.

use std::time::Instant;

use super::command::Credentials;
use super::config::{Compatibility, HostHeader};
use super::event::{BrokerInfo, LoginFailure};
use super::expiry::token_expired;
use super::io::{LoggedIn, Output};
use super::proof::{Denial, Evidence, Proof, ProofFailure, Source, Token};
use super::queue::FlagEra;
use super::refusal::{self, CloseCode, Refusal};
use super::state::State;
use super::strict;
use super::{Locality, Session};
use crate::stomp::heartbeat::{Request, Rule};
use crate::stomp::{Command, Frame, Version};

impl Session {
    /// A frame before CONNECTED.
    pub(super) fn handle_first_frame(&mut self, mut frame: Frame, deadline: Instant, failures: u32) {
        if !matches!(frame.command, Command::Connect | Command::Stomp) {
            return self.refuse(not_connected(&frame.command));
        }
        match self.read_connect(&mut frame) {
            Ok((_, evidence)) if self.is_too_far(&evidence) => {
                let (claimed, source) = (evidence.claimed_login().to_owned(), evidence.source);
                self.outputs.push_back(Output::NotAuthenticated { claimed, source });
                let hint = "This user may log in from the relay's machine only.";
                self.fail_login(bad_connect("non-loopback access denied", hint), deadline, failures);
            }
            Ok((login, evidence)) => {
                let Login { heartbeats, version, virtual_host } = login;
                let login = evidence.claimed_login().to_owned();
                self.state = State::LoggingIn {
                    deadline,
                    failures,
                    heartbeats,
                    login,
                    version,
                    virtual_host: virtual_host.clone(),
                };
                self.outputs.push_back(Output::Login { evidence, virtual_host });
            }
            Err(refusal) => self.fail_login(refusal, deadline, failures),
        }
    }

    /// Claims to be a user that may log in from the relay's machine only, and comes from elsewhere (RabbitMQ's
    /// `loopback_users`, which sees the relay's address alone).
    fn is_too_far(&self, evidence: &Evidence) -> bool {
        let case = self.config.user_case;
        let claimed = case.counted(evidence.claimed_login());
        let claims_loopback_user = self.config.loopback_users.iter().any(|user| case.counted(user) == claimed);
        claims_loopback_user && self.locality == Locality::Remote
    }

    fn read_connect(&self, frame: &mut Frame) -> Result<(Login, Evidence), Refusal> {
        let version = Version::negotiate(frame.header("accept-version")).ok_or_else(|| {
            Refusal::soft(
                "connect.version",
                "Version mismatch",
                format!("Supported versions are {}\n", Version::SUPPORTED),
                "Name one of them in accept-version.",
            )
        })?;
        if version == Version::V1_0 {
            frame.headers.trim_values_start();
        }
        let rule = match self.config.compatibility {
            Compatibility::Rabbitmq => Rule::WholeSeconds,
            Compatibility::Strict => Rule::Exact { minimum: self.config.heartbeat_min },
        };
        let asked = frame.header("heart-beat").unwrap_or("0,0");
        if self.is_strict() && asked.contains(['+', '-']) {
            return Err(Refusal::bad_header("heart-beat", "expected two numbers without a sign"));
        }
        let request = Request::parse(asked);
        let heartbeats = request.map_err(|malformed| Refusal::bad_header("heart-beat", malformed))?.negotiate(rule);
        if self.is_strict() {
            strict::check(frame, version)?;
        }
        let evidence = self.evidence(frame)?;
        Ok((Login { heartbeats, version, virtual_host: self.requested_host(frame) }, evidence))
    }

    /// What CONNECT shows, else what was shown before it, else the configured default.
    fn evidence(&self, frame: &Frame) -> Result<Evidence, Refusal> {
        if let Some(token) = self.token(frame) {
            return Ok(token);
        }
        let has_login = frame.header("login").is_some() || frame.header("passcode").is_some();
        let presented = self.presented.as_deref().filter(|presented| self.accepts(presented.source));
        match presented {
            Some(presented) if !has_login || !self.accepts(Source::Password) => Ok(presented.clone()),
            _ if self.accepts(Source::Password) => self.credentials(frame),
            _ => Err(bad_connect(
                "No accepted proof of identity",
                "CONNECT with a token in an Authorization header or as passcode.",
            )),
        }
    }

    /// A token in `Authorization`, else in `passcode`.
    fn token(&self, frame: &Frame) -> Option<Evidence> {
        let evidence = |source, text: &str| Evidence { proof: Proof::Token(Token::new(text)), source };
        if self.accepts(Source::JwtHeader)
            && let Some(text) = authorization(frame).and_then(bearer)
        {
            return Some(evidence(Source::JwtHeader, text));
        }
        let passcode =
            frame.header("passcode").filter(|text| self.accepts(Source::JwtPasscode) && Token::is_like(text));
        passcode.map(|text| evidence(Source::JwtPasscode, text))
    }

    fn accepts(&self, source: Source) -> bool {
        self.config.sources.contains(&source)
    }

    /// `login` and `passcode`, each with its configured default; without defaults both are required.
    fn credentials(&self, frame: &Frame) -> Result<Evidence, Refusal> {
        let default = self.config.default_credentials.as_ref();
        let or_default = |header: &str, default: Option<&String>| {
            frame.header(header).map(str::to_owned).or_else(|| default.cloned())
        };
        let login = or_default("login", default.map(|credentials| &credentials.login));
        let passcode = or_default("passcode", default.map(|credentials| &credentials.passcode));
        match (login, passcode) {
            (Some(login), Some(passcode)) => {
                let proof = Proof::Password(Credentials { login, passcode });
                Ok(Evidence { proof, source: Source::Password })
            }
            _ => Err(bad_connect(
                "Missing login or passcode header(s)",
                "CONNECT with login and passcode of a RabbitMQ user.",
            )),
        }
    }

    fn requested_host(&self, frame: &Frame) -> String {
        let hosts = &self.config.virtual_hosts;
        match (&hosts.host_header, frame.header("host")) {
            (HostHeader::Ignored, _) | (_, None) => hosts.default.clone(),
            (HostHeader::Named(map), Some(host)) => map.get(host).cloned().unwrap_or_else(|| host.to_owned()),
        }
    }

    pub(super) fn handle_login(&mut self, now: Instant, result: Result<LoggedIn, Denial>) {
        let state = std::mem::replace(&mut self.state, State::Ended);
        let State::LoggingIn { deadline, failures, heartbeats, login, version, virtual_host } = state else {
            self.state = state;
            return;
        };
        match result {
            Ok(LoggedIn { broker, identity }) => {
                self.state = State::Open { version };
                self.identity_bytes = super::retained::identity(&identity);
                self.identity = identity;
                self.version = Some(version);
                self.virtual_host_name = virtual_host;
                self.era = FlagEra::of(&broker.version);
                self.liveness.received(now);
                self.liveness.start_heartbeats(heartbeats);
                self.outputs.push_back(Output::LoggedIn);
                self.send_connected(version, &heartbeats.reply(), &broker);
            }
            Err(denial) => {
                let refusal = match denial {
                    Denial::Broker(failure) => login_refusal(&failure, &login, &virtual_host),
                    Denial::Proof(failure) => proof_refusal(failure),
                };
                self.state = State::AwaitConnect { deadline, failures };
                self.fail_login(refusal, deadline, failures);
            }
        }
    }

    /// The plugin lets a client try again; so does compatibility mode, a few times.
    fn fail_login(&mut self, refusal: Refusal, deadline: Instant, failures: u32) {
        let failures = failures + 1;
        let last = failures >= self.config.login_attempts_max;
        self.state = State::AwaitConnect { deadline, failures };
        let close = refusal.to_close();
        self.refuse(refusal);
        if last {
            self.end(close);
        }
    }

    fn send_connected(&mut self, version: Version, heartbeat: &str, info: &BrokerInfo) {
        let server = match (self.config.compatibility, &self.config.server_header) {
            (_, None) => None,
            (Compatibility::Rabbitmq, Some(_)) => Some(format!("RabbitMQ/{}", info.version)),
            // Client libraries look for RabbitMQ here to know which headers they may use; the relay is the comment behind it
            // (STOMP 1.2, CONNECTED: `name ["/" version] *(comment)`).
            (Compatibility::Strict, Some(relay)) => Some(format!("RabbitMQ/{} ({relay})", info.version)),
        };
        let mut frame = Frame::new(Command::Connected);
        if let Some(server) = server {
            frame.headers.push("server", &server);
        }
        frame.headers.push("session", &self.id);
        frame.headers.push("heart-beat", heartbeat);
        frame.headers.push("version", version.as_str());
        self.send_frame(frame);
    }
}

fn not_connected(command: &Command) -> Refusal {
    let hint = match command.as_str() {
        text if text.starts_with('\u{feff}') => {
            "A byte order mark stands before the command; write the text without it."
        }
        text if text.trim().eq_ignore_ascii_case("connect") || text.trim().eq_ignore_ascii_case("stomp") => {
            "Commands are upper case, without blanks."
        }
        _ => "In stompjs, send and subscribe inside onConnect.",
    };
    // Escaped, so that what can't be seen shows.
    let shown = command.as_str().escape_debug();
    let body = format!("You must log in using CONNECT first\nWhat came is \"{shown}\"");
    Refusal::soft("connect.required", "Illegal command", body, hint)
}

fn proof_refusal(failure: ProofFailure) -> Refusal {
    match failure {
        ProofFailure::Unavailable => Refusal::soft(
            "auth.unavailable",
            "Authentication unavailable",
            "This login cannot be checked at the moment\n",
            "Try again in a few seconds.",
        )
        .closing(CloseCode::TryAgainLater),
        ProofFailure::Expired => token_expired(),
        ProofFailure::TooMany => Refusal::soft(
            "auth.too_many_failures",
            "Too many failed logins",
            "Too many logins have failed; this one was not checked\n",
            "Wait a minute. Check what the client sends before it tries again.",
        )
        .closing(CloseCode::TryAgainLater),
        // Why stands in the log: the answer is the same for whatever was tried.
        ProofFailure::Refused => Refusal::soft(
            "auth.token_refused",
            "Token refused",
            "The token or certificate is not accepted\n",
            "Get a token from the identity provider and audience that this relay trusts; its log has the reason.",
        )
        .closing(CloseCode::PolicyViolation),
    }
}

/// The value of `Authorization`, whose name is written in several ways.
fn authorization(frame: &Frame) -> Option<&str> {
    frame.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("authorization")).map(|(_, value)| value)
}

/// The token of a `Bearer` scheme (RFC 6750, 2.1).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim_start().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// What a CONNECT asks for, besides who it is.
struct Login {
    heartbeats: crate::stomp::heartbeat::Heartbeats,
    version: Version,
    virtual_host: String,
}

fn bad_connect(body: impl Into<String>, hint: &'static str) -> Refusal {
    Refusal::soft("connect.refused", "Bad CONNECT", body, hint).closing(CloseCode::PolicyViolation)
}

fn login_refusal(failure: &LoginFailure, login: &str, virtual_host: &str) -> Refusal {
    if let Some(whose) = failure.connection_limit() {
        return refusal::connection_limit("Bad CONNECT", whose);
    }
    match failure {
        LoginFailure::AccessRefused => {
            bad_connect(format!("Access refused for user '{login}'"), "Check login and passcode; both are RabbitMQ's.")
        }
        LoginFailure::VirtualHost { .. } => bad_connect(
            format!("Virtual host '{virtual_host}' access denied"),
            "The host header names RabbitMQ's virtual host, often /; it must exist and the user needs rights on it.",
        ),
        // Why no node answers is the operator's business and stands in the log, not here.
        LoginFailure::Unavailable { .. } => Refusal::soft(
            "broker.unavailable",
            "Broker unavailable",
            "RabbitMQ does not answer at the moment\n",
            "Try again in a few seconds.",
        )
        .closing(CloseCode::TryAgainLater),
    }
}
