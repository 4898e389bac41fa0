//! CONNECT: version, heart-beats, credentials and virtual host; and the broker's answer to them.

use std::time::Instant;

use super::command::Credentials;
use super::config::{Compatibility, HostHeader};
use super::event::{BrokerInfo, LoginFailure};
use super::io::{LoggedIn, Output};
use super::queue::FlagEra;
use super::refusal::{CloseCode, Refusal};
use super::state::State;
use super::{Locality, Session};
use crate::stomp::heartbeat::{Request, Rule};
use crate::stomp::{Command, Frame, Version};

impl Session {
    /// A frame before CONNECTED.
    pub(super) fn handle_first_frame(&mut self, mut frame: Frame, deadline: Instant, failures: u32) {
        if !matches!(frame.command, Command::Connect | Command::Stomp) {
            let refusal = Refusal::soft(
                "connect.required",
                "Illegal command",
                "You must log in using CONNECT first",
                "In stompjs, send and subscribe inside onConnect.",
            );
            return self.refuse(refusal);
        }
        match self.read_connect(&mut frame) {
            Ok((login, output)) => {
                let Login { heartbeats, version, virtual_host } = login;
                let login = output.login.clone();
                self.state = State::LoggingIn {
                    deadline,
                    failures,
                    heartbeats,
                    login,
                    version,
                    virtual_host: virtual_host.clone(),
                };
                self.outputs.push_back(Output::Login { credentials: output, virtual_host });
            }
            Err(refusal) => self.fail_login(refusal, deadline, failures),
        }
    }

    fn read_connect(&self, frame: &mut Frame) -> Result<(Login, Credentials), Refusal> {
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
        let request = Request::parse(frame.header("heart-beat").unwrap_or("0,0"));
        let heartbeats = request.map_err(|malformed| Refusal::bad_header("heart-beat", malformed))?.negotiate(rule);
        let credentials = self.credentials(frame)?;
        if self.config.loopback_users.contains(&credentials.login) && self.locality == Locality::Remote {
            return Err(bad_connect(
                "non-loopback access denied",
                "This user may log in from the relay's machine only.",
            ));
        }
        Ok((Login { heartbeats, version, virtual_host: self.requested_host(frame) }, credentials))
    }

    /// `login` and `passcode`, each with its configured default; without defaults both are required.
    fn credentials(&self, frame: &Frame) -> Result<Credentials, Refusal> {
        let default = self.config.default_credentials.as_ref();
        let or_default = |header: &str, default: Option<&String>| {
            frame.header(header).map(str::to_owned).or_else(|| default.cloned())
        };
        let login = or_default("login", default.map(|credentials| &credentials.login));
        let passcode = or_default("passcode", default.map(|credentials| &credentials.passcode));
        match (login, passcode) {
            (Some(login), Some(passcode)) => Ok(Credentials { login, passcode }),
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

    pub(super) fn handle_login(&mut self, now: Instant, result: Result<LoggedIn, LoginFailure>) {
        let state = std::mem::replace(&mut self.state, State::Ended);
        let State::LoggingIn { deadline, failures, heartbeats, login, version, virtual_host } = state else {
            self.state = state;
            return;
        };
        match result {
            Ok(LoggedIn { broker, identity }) => {
                self.state = State::Open { version };
                self.identity = identity;
                self.version = Some(version);
                self.virtual_host_name = virtual_host;
                self.era = FlagEra::of(&broker.version);
                self.liveness.received(now);
                self.liveness.start_heartbeats(heartbeats);
                self.outputs.push_back(Output::LoggedIn);
                self.send_connected(version, &heartbeats.reply(), &broker);
            }
            Err(failure) => {
                let refusal = login_refusal(&failure, &login, &virtual_host);
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
            (Compatibility::Strict, Some(server)) => Some(server.clone()),
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
