//! The command line: verbs, flags and exit codes.
//!
//! Flags never carry a secret: other users of the machine can read a process's arguments.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::Overrides;
use crate::server::ServeError;

/// Ended as asked.
pub const EXIT_OK: u8 = 0;
/// Failed while running.
pub const EXIT_FAILURE: u8 = 1;
/// Wrong usage (clap's own), or stopped by a second signal.
pub const EXIT_USAGE_OR_FORCED: u8 = 2;
/// `EX_UNAVAILABLE` of sysexits.h: no broker, and `--require-broker` was given.
pub const EXIT_BROKER_UNAVAILABLE: u8 = 69;
/// `EX_NOPERM` of sysexits.h: an address cannot be bound.
pub const EXIT_CANNOT_BIND: u8 = 77;
/// `EX_CONFIG` of sysexits.h.
pub const EXIT_BAD_CONFIGURATION: u8 = 78;

/// Relays STOMP over WebSocket to RabbitMQ.
#[derive(Parser)]
#[command(name = "stomp-relay", version, subcommand_required = true)]
#[command(after_help = "Exit codes: 0 ok, 1 failure, 2 wrong usage or forced stop, 69 broker unavailable, \
                        77 cannot bind, 78 bad configuration.")]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Subcommand)]
pub enum Verb {
    Serve(Serve),
    Check(Check),
    DevCert(DevCertArgs),
    Explain(Explain),
    Version(Version),
}

/// Serve clients until SIGTERM or Ctrl-C.
#[derive(Args)]
#[command(
    after_help = "Example: stomp-relay serve --listen wss://0.0.0.0:8443/ws --tls-cert cert.pem --tls-key key.pem \
                        --broker amqp://mq1:5672"
)]
pub struct Serve {
    /// Configuration in TOML; without it no file is read.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where clients come in, such as wss://0.0.0.0:443/ws; replaces `listen`.
    #[arg(long, value_name = "URL")]
    listen: Vec<String>,
    /// A RabbitMQ node, such as amqp://host:5672; replaces `broker.uris`.
    #[arg(long, value_name = "URI")]
    broker: Vec<String>,
    /// PEM certificate chain for wss.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// PEM private key of that certificate.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Address of health and metrics, or "none".
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
    /// Exit with 69 if no broker answers at the start, instead of waiting for one.
    #[arg(long)]
    pub require_broker: bool,
}

impl Serve {
    pub fn overrides(&self) -> Overrides {
        Overrides {
            listen: self.listen.clone(),
            broker: self.broker.clone(),
            tls_cert: self.tls_cert.clone(),
            tls_key: self.tls_key.clone(),
            admin: self.admin.clone(),
        }
    }
}

/// Report all problems of a configuration, the environment included; exit with 78 if there are any.
#[derive(Args)]
#[command(after_help = "Example: stomp-relay check --config /etc/stomp-relay/stomp-relay.toml")]
pub struct Check {
    /// Configuration in TOML.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Take warnings for problems: exit with 78 if there are any.
    #[arg(long)]
    pub strict: bool,
    /// Ask no network. So far no check does.
    #[arg(long)]
    pub offline: bool,
}

/// Make a throw-away authority and a certificate for localhost: ca.pem, cert.pem, key.pem.
#[derive(Args)]
#[command(after_help = "Example: stomp-relay dev-cert --out target/dev-cert")]
pub struct DevCertArgs {
    /// Directory of the files; created if needed.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Replace files of an earlier run.
    #[arg(long)]
    pub force: bool,
}

/// Say which rule decides about a frame, and what the frame becomes in AMQP. Asks no broker; exits with 1 if it is refused.
#[derive(Args)]
#[command(after_help = "Example: stomp-relay explain --config stomp-relay.toml --user alice --claim role=trader \
                        SUBSCRIBE '/topic/quotes.#' --header ack:client")]
pub struct Explain {
    /// Configuration in TOML.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Who sends the frame.
    #[arg(long, value_name = "NAME", required_unless_present = "token")]
    pub user: Option<String>,
    /// What the client's token claims; again for further values and claims.
    #[arg(long, value_name = "NAME=VALUE", conflicts_with = "token")]
    pub claim: Vec<String>,
    /// Take user and claims from the JWT in this file, unverified.
    #[arg(long, value_name = "FILE")]
    pub token: Option<PathBuf>,
    /// Common name of the client's certificate.
    #[arg(long, value_name = "NAME")]
    pub certificate: Option<String>,
    /// What the user proved its name by; without it a token if there are claims, else a password.
    #[arg(long, value_name = "KIND", value_parser = ["password", "token", "certificate"])]
    pub proof: Option<String>,
    /// Virtual host at RabbitMQ; without it the configured one.
    #[arg(long, value_name = "NAME")]
    pub vhost: Option<String>,
    /// RabbitMQ's version, which decides about flags of queues; without it the newest.
    #[arg(long, value_name = "VERSION", default_value = "")]
    pub broker_version: String,
    /// SEND or SUBSCRIBE.
    #[arg(value_parser = ["SEND", "SUBSCRIBE"])]
    pub command: String,
    pub destination: String,
    /// A further header of the frame.
    #[arg(long, value_name = "NAME:VALUE")]
    pub header: Vec<String>,
}

/// Show the version.
#[derive(Args)]
#[command(after_help = "Example: stomp-relay version --json")]
pub struct Version {
    /// As one JSON object.
    #[arg(long)]
    pub json: bool,
}

impl Version {
    /// The line to print.
    pub fn line(&self) -> String {
        let (name, version) = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        if self.json {
            // None of these holds a character that JSON escapes.
            format!(r#"{{"name":"{name}","version":"{version}","os":"{os}","arch":"{arch}"}}"#)
        } else {
            format!("{name} {version} ({os} {arch})")
        }
    }
}

/// The process's exit code for an end of serving.
pub fn exit_code(end: &Result<(), ServeError>) -> u8 {
    match end {
        Ok(()) => EXIT_OK,
        Err(ServeError::Runtime { .. }) => EXIT_FAILURE,
        Err(ServeError::Forced) => EXIT_USAGE_OR_FORCED,
        Err(ServeError::BrokerUnavailable { .. }) => EXIT_BROKER_UNAVAILABLE,
        Err(ServeError::Bind { .. }) => EXIT_CANNOT_BIND,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_end_has_its_exit_code() {
        let text = String::new;
        assert_eq!(exit_code(&Ok(())), 0);
        assert_eq!(exit_code(&Err(ServeError::Runtime { reason: text() })), 1);
        assert_eq!(exit_code(&Err(ServeError::Forced)), 2);
        assert_eq!(exit_code(&Err(ServeError::BrokerUnavailable { reason: text() })), 69);
        assert_eq!(exit_code(&Err(ServeError::Bind { address: text(), reason: text() })), 77);
    }
}
