//! The process as a server: binds everything, accepts under a cap, drains on a signal.
//! What happens on one accepted socket is `listener`'s and `connection`'s business.

mod accept;
mod drain;
mod signals;
mod state;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::admin::{self, View};
use crate::broker::Broker;
use crate::clients::Clients;
use crate::config::{Auth, Config, Jwt, Problems};
use crate::listener::tcp;
use crate::metrics::Metrics;
use crate::readiness::Readiness;

use accept::Door;
pub use drain::Ended;
use state::Serving;

/// Why serving ended, other than by a drain that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address}: {reason}")]
    Bind { address: String, reason: String },
    #[error("the broker is unavailable: {reason}")]
    BrokerUnavailable { reason: String },
    #[error("stopped at once by a second signal; what was in flight is lost or will be delivered again")]
    Forced,
    #[error("{reason}")]
    Runtime { reason: String },
}

/// What an operator wants of a running server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Reload,
    /// Drain; the second time, end at once.
    Stop,
}

/// Whether a broker must answer before the server starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtStart {
    Anyway,
    RequireBroker,
}

/// Reads the configuration anew, for SIGHUP.
pub type Reload = Box<dyn Fn() -> Result<Config, Problems> + Send + Sync>;

/// Everything bound, nothing served yet.
pub struct Server {
    admin: Option<TcpListener>,
    broker: Broker,
    config: Config,
    doors: Vec<Door>,
    metrics: Arc<Metrics>,
    serving: Arc<Serving>,
}

/// Serves until SIGTERM or Ctrl-C, and then until clients have been told to go elsewhere.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve(config: Config, at_start: AtStart, reload: Reload) -> Result<(), ServeError> {
    let signals = signals::watch()?;
    let server = Server::bind(config)?;
    if at_start == AtStart::RequireBroker {
        server.broker.probe().await.map_err(|reason| ServeError::BrokerUnavailable { reason })?;
    }
    server.announce();
    match server.run(signals, reload).await {
        Ended::Drained => Ok(()),
        Ended::Forced => Err(ServeError::Forced),
    }
}

impl Server {
    /// Binds every address. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`ServeError::Bind`], or [`ServeError::Runtime`] for a certificate or folder that can't be used.
    pub fn bind(config: Config) -> Result<Server, ServeError> {
        let broker = Broker::new(config.broker_config()).map_err(runtime)?;
        let metrics = Arc::new(Metrics::default());
        let serving = Arc::new(Serving::new(&config, &metrics).map_err(runtime)?);
        let doors = config.listen.iter().enumerate();
        let doors = doors
            .map(|(index, url)| Door::bind(index, url).map_err(|error| cannot_bind(&url.to_string(), &error)))
            .collect::<Result<_, _>>()?;
        let bind_admin =
            |address: SocketAddr| tcp::bind(address).map_err(|error| cannot_bind(&address.to_string(), &error));
        let admin = config.admin.listen.map(bind_admin).transpose()?;
        Ok(Server { admin, broker, config, doors, metrics, serving })
    }

    /// The listen URLs with the ports that were really bound.
    pub fn urls(&self) -> Vec<String> {
        self.doors.iter().map(|door| door.url().to_owned()).collect()
    }

    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref()?.local_addr().ok()
    }

    /// Serves until [`Signal::Stop`], then drains. The end of `signals` counts as Stop.
    pub async fn run(self, mut signals: mpsc::Receiver<Signal>, reload: Reload) -> Ended {
        let Server { admin, broker, config, doors, metrics, serving } = self;
        let readiness = Readiness::default();
        let clients = Clients::new(config.limits.connections_max, config.limits.connections_per_address_max);
        let (background, stopped) = (TaskTracker::new(), CancellationToken::new());
        background.spawn(readiness.clone().watch(broker.clone(), stopped.clone()));
        if let Some(socket) = admin {
            let view = View::new(broker.clone(), clients.clone(), &metrics, readiness.clone());
            background.spawn(admin::serve(socket, view, stopped.clone()));
        }
        for door in doors {
            background.spawn(door.accept(serving.clone(), broker.clone(), clients.clone(), metrics.clone()));
        }
        readiness.listening();
        while let Some(Signal::Reload) = signals.recv().await {
            reload_now(&reload, &serving, &metrics);
        }
        let ended = drain::run(&config.drain, &readiness, &clients, &mut signals).await;
        // A drain that was cut short may not have come to this.
        clients.stop_accepting();
        stopped.cancel();
        background.close();
        background.wait().await;
        if ended == Ended::Drained {
            broker.shutdown().await;
        }
        ended
    }

    /// One line per address on standard output, for people and scripts, and the same in the log.
    fn announce(&self) {
        let brokers: Vec<String> = self.config.broker.uris.iter().map(ToString::to_string).collect();
        let brokers = brokers.join(" ");
        let auth = who_comes_in(&self.config.auth);
        let admin = self.admin_address().map_or_else(|| "none".to_owned(), |address| address.to_string());
        for door in &self.doors {
            say(&format!("listening on {}", door.url()));
            info!(url = door.url(), broker = brokers, auth, admin, version = env!("CARGO_PKG_VERSION"), "listening");
        }
        say(&format!("broker {brokers}; {auth}; admin {admin}"));
        say("ready");
    }
}

/// For the start-up line.
fn who_comes_in(auth: &Auth) -> String {
    let tokens = match auth.jwt {
        Jwt::Broker => ", or with tokens that RabbitMQ is given",
        Jwt::Relay => ", or with tokens, and then work as the service account",
        Jwt::Off => "",
    };
    let default = match &auth.default_login {
        Some(login) => format!(", without any as '{login}'"),
        None => String::new(),
    };
    format!("clients log in with RabbitMQ credentials{tokens}{default}")
}

fn cannot_bind(address: &str, error: &std::io::Error) -> ServeError {
    let remedy = match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need the capability CAP_NET_BIND_SERVICE, or use a higher port behind a load balancer"
        }
        std::io::ErrorKind::AddrInUse => "; another process has it",
        _ => "",
    };
    ServeError::Bind { address: address.to_owned(), reason: format!("{error}{remedy}") }
}

/// A reader of standard output that went away is no failure of ours.
fn say(line: &str) {
    use std::io::Write as _;
    let mut output = std::io::stdout().lock();
    let _ = writeln!(output, "{line}").and_then(|()| output.flush());
}

/// A file with a problem changes nothing.
fn reload_now(reload: &Reload, serving: &Serving, metrics: &Arc<Metrics>) {
    let result = reload().map_err(|problems| problems.to_string()).and_then(|config| serving.replace(&config, metrics));
    match result {
        Ok(()) => info!(
            "configuration reloaded: certificates, limits and defaults apply to new clients; \
             listen, broker, admin, drain and log need a restart"
        ),
        Err(reason) => warn!(reason, "configuration not reloaded, nothing changed"),
    }
}

fn runtime(error: impl std::fmt::Display) -> ServeError {
    ServeError::Runtime { reason: error.to_string() }
}
