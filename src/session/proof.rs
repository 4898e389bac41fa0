//! What a client shows to say who it is, and where it showed it. Whether it is true is decided outside the session.

use std::fmt;

use super::command::Credentials;
use super::event::LoginFailure;

/// A bearer token. Whoever has it is its user, so nothing prints it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    pub fn new(text: impl Into<String>) -> Token {
        Token(text.into())
    }

    /// The token itself, for those who verify it or pass it on.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether a text has the form of a signed token (RFC 7515, 3.1) with a header that is a JSON object.
    pub fn is_like(text: &str) -> bool {
        text.starts_with("eyJ") && text.bytes().filter(|byte| *byte == b'.').count() == 2
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

/// The name in a client certificate that was verified in the TLS handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateName(pub String);

/// Where a proof was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// `login` and `passcode` of CONNECT.
    Password,
    /// HTTP Basic on the upgrade.
    Basic,
    /// The client's certificate.
    Certificate,
    /// A token in a cookie of the upgrade.
    JwtCookie,
    /// A token in CONNECT's `Authorization` header.
    JwtHeader,
    /// A token in the upgrade's `Authorization` header.
    JwtHttp,
    /// A token in CONNECT's `passcode`.
    JwtPasscode,
    /// A token in a subprotocol of the upgrade.
    JwtSubprotocol,
}

impl Source {
    /// As configuration and metrics say it.
    pub const NAMES: [(&str, Source); 8] = [
        ("password", Source::Password),
        ("basic", Source::Basic),
        ("certificate", Source::Certificate),
        ("jwt_cookie", Source::JwtCookie),
        ("jwt_header", Source::JwtHeader),
        ("jwt_http", Source::JwtHttp),
        ("jwt_passcode", Source::JwtPasscode),
        ("jwt_subprotocol", Source::JwtSubprotocol),
    ];

    pub fn name(self) -> &'static str {
        Source::NAMES.iter().find(|(_, source)| *source == self).map_or("", |(name, _)| name)
    }

    pub fn is_token(self) -> bool {
        match self {
            Source::Password | Source::Basic | Source::Certificate => false,
            Source::JwtCookie | Source::JwtHeader | Source::JwtHttp | Source::JwtPasscode | Source::JwtSubprotocol => {
                true
            }
        }
    }
}

/// What convinced, wherever it was shown. The same name proven in two ways may be two people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProofKind {
    Certificate,
    /// RabbitMQ has checked login and passcode.
    #[default]
    Password,
    Token,
}

impl ProofKind {
    /// As configuration says it.
    pub const NAMES: [(&str, ProofKind); 3] =
        [("password", ProofKind::Password), ("token", ProofKind::Token), ("certificate", ProofKind::Certificate)];
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    Certificate(CertificateName),
    Password(Credentials),
    Token(Token),
}

/// A proof, and where it was shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    pub proof: Proof,
    pub source: Source,
}

impl Evidence {
    /// The login name that is claimed; empty where only the proof says it.
    pub fn claimed_login(&self) -> &str {
        match &self.proof {
            Proof::Password(credentials) => &credentials.login,
            Proof::Certificate(_) | Proof::Token(_) => "",
        }
    }
}

/// Why a token or certificate was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProofFailure {
    /// It was good once.
    Expired,
    /// Why is for the log.
    Refused,
    /// Too many have failed; this one was not looked at.
    TooMany,
    /// It can't be checked now.
    Unavailable,
}

/// Why a login failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// RabbitMQ, or the lack of it.
    Broker(LoginFailure),
    Proof(ProofFailure),
}

impl From<LoginFailure> for Denial {
    fn from(failure: LoginFailure) -> Denial {
        Denial::Broker(failure)
    }
}

impl From<ProofFailure> for Denial {
    fn from(failure: ProofFailure) -> Denial {
        Denial::Proof(failure)
    }
}

impl ProofFailure {
    /// As metrics and the audit log show it.
    pub fn label(&self) -> &'static str {
        match self {
            ProofFailure::Expired => "expired",
            ProofFailure::Refused => "refused",
            ProofFailure::TooMany => "limited",
            ProofFailure::Unavailable => "unavailable",
        }
    }
}

impl Denial {
    /// As metrics and the audit log show it.
    pub fn label(&self) -> &'static str {
        match self {
            Denial::Broker(LoginFailure::AccessRefused) => "refused",
            Denial::Broker(LoginFailure::Unavailable { .. }) => "unavailable",
            Denial::Broker(failure) if failure.connection_limit().is_some() => "limited",
            Denial::Broker(LoginFailure::VirtualHost { .. }) => "virtual_host",
            Denial::Proof(failure) => failure.label(),
        }
    }
}
