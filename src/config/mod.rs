//! The relay's configuration: read from file, environment and flags, checked as a whole, typed.
//!
//! Reads no environment variable by itself and touches no network: what it gets is what it judges, so two relays in one
//! process do not meet. Each key is declared once, in `sections`.

mod access;
mod certificates;
mod changes;
mod defences;
mod files;
mod kind;
mod layers;
mod log_filter;
mod parts;
mod problem;
mod quantity;
mod reader;
mod reference;
mod rules;
mod secret;
mod sections;
mod suggest;
mod tls_rules;
mod token_rules;
mod url;
mod value;
mod warnings;

use std::path::{Path, PathBuf};

pub use access::Rule;
pub use log_filter::LogFilter;
pub use problem::{Place, Problem, Problems};
pub use reference::render as render_reference;
pub use secret::Secret;
pub use sections::{
    Admin, AuditFailure, Auth, Broker, Drain, Http, Jwt, Limits, Log, LogFormat, Proxy, Runtime, Session, Stomp,
    Subscriptions, Tls, WebSocket,
};
pub use url::{BrokerUri, ListenUrl, Scheme};

use crate::budget::machine;
use crate::descriptors;
use crate::listener::tls::exposure;
use layers::Layers;
use reader::{Reader, Values};

/// Everything that can be configured. All values are within their ranges and fit each other.
#[derive(Clone, Debug)]
pub struct Config {
    /// At least one; no address twice.
    pub listen: Vec<ListenUrl>,
    pub tls: Tls,
    pub broker: Broker,
    pub auth: Auth,
    /// In their order.
    pub rules: Vec<Rule>,
    pub stomp: Stomp,
    pub session: Session,
    pub subscriptions: Subscriptions,
    pub websocket: WebSocket,
    pub http: Http,
    pub proxy: Proxy,
    pub limits: Limits,
    pub admin: Admin,
    pub drain: Drain,
    pub log: Log,
    pub runtime: Runtime,
    was_set: changes::WasSet,
}

/// What the command line sets above file and environment. Flags never carry a secret.
#[derive(Clone, Default)]
pub struct Overrides {
    /// `--listen`; replaces the whole list when not empty.
    pub listen: Vec<String>,
    /// `--broker`; replaces the whole list when not empty.
    pub broker: Vec<String>,
    /// `--tls-cert`
    pub tls_cert: Option<PathBuf>,
    /// `--tls-key`
    pub tls_key: Option<PathBuf>,
    /// `--admin`
    pub admin: Option<String>,
}

impl Config {
    /// Reads and checks everything, the certificate and key files included; asks no network.
    ///
    /// `env` may hold any variables; those that do not begin with `STOMP_RELAY_` are ignored.
    ///
    /// # Errors
    /// All problems that were found, not only the first.
    pub fn load(
        path: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: &Overrides,
    ) -> Result<Self, Problems> {
        let sections = reference::declared();
        let mut layers = Layers::new(&sections);
        let text = match path.map(files::read_text) {
            None => String::new(),
            Some(Ok(text)) => {
                layers.add_file(&text);
                text
            }
            Some(Err(reason)) => {
                layers.add_unreadable_file(reason);
                String::new()
            }
        };
        layers.add_environment(env);
        layers.add_flags(flags);
        let whole = layers.whole;
        let mut reader = Reader::new(layers.values, layers.problems);
        let config = Self::read(&mut reader);
        if whole {
            rules::check(&config, &mut reader);
        }
        if reader.problems.is_empty() {
            return Ok(Config { was_set: changes::WasSet { text, values: reader.into_values() }, ..config });
        }
        Err(Problems::new(path.map(|path| path.display().to_string()), reader.problems))
    }

    /// What works and yet should be mended, in texts for people: keys that others may read, and settings that undo a defence.
    /// `serve` says the same in its log.
    pub fn warnings(&self) -> Vec<String> {
        let pairs = self.tls_config().map_or_else(Vec::new, |tls| tls.certificates);
        let mut warnings: Vec<String> = pairs.iter().filter_map(|pair| exposure(&pair.key)).collect();
        warnings.extend(self.openings());
        warnings.extend(self.memory_beyond(machine::memory()));
        warnings.extend(descriptors::advice(self.limits.connections_max + self.limits.refusals_max));
        warnings
    }

    fn read(reader: &mut Reader) -> Self {
        Self {
            listen: sections::Top::read(reader).listen,
            tls: Tls::read(reader),
            broker: Broker::read(reader),
            auth: Auth::read(reader),
            rules: Rule::read(reader),
            stomp: Stomp::read(reader),
            session: Session::read(reader),
            subscriptions: Subscriptions::read(reader),
            websocket: WebSocket::read(reader),
            http: Http::read(reader),
            proxy: Proxy::read(reader),
            limits: Limits::read(reader),
            admin: Admin::read(reader),
            drain: Drain::read(reader),
            log: Log::read(reader),
            runtime: Runtime::read(reader),
            was_set: changes::WasSet::default(),
        }
    }
}

impl Default for Config {
    /// All defaults.
    fn default() -> Self {
        Self::read(&mut Reader::new(Values::new(), Vec::new()))
    }
}
