//! The process as a server: binds everything, accepts under a cap, drains on a signal.
//! What happens on one accepted socket is `listener`'s and `connection`'s business.

mod accept;
mod certificates;
mod drain;
mod inherited;
mod notify;
mod records;
mod redirect;
mod reload;
mod signals;
mod state;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::admin::{self, View};
use crate::broker::{Broker, BrokerConfig};
use crate::budget::{Budget, machine};
use crate::clients::{ClientLimits, Clients};
use crate::config::{Auth, Config, Jwt, Problems, Scheme};
use crate::descriptors::{self, Descriptors};
use crate::listener::tcp;
use crate::metrics::Metrics;
use crate::readiness::Readiness;

use accept::Door;
pub use drain::Ended;
use inherited::Inherited;
use reload::Reloadable;
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

/// For the last words to RabbitMQ when the time is over.
const MOMENT: Duration = Duration::from_millis(200);

/// Reads the configuration anew, for SIGHUP.
pub struct Reload {
    pub load: Box<dyn Fn() -> Result<Config, Problems> + Send + Sync>,
    /// Told of the one that holds from now on, for what the server does not own, such as the log.
    pub applied: Box<dyn Fn(&Config) + Send + Sync>,
}

/// Everything bound, nothing served yet.
pub struct Server {
    admin: Option<TcpListener>,
    broker: Broker,
    budget: Budget,
    config: Config,
    doors: Vec<Door>,
    metrics: Arc<Metrics>,
    redirect: Option<TcpListener>,
    serving: Arc<Serving>,
}

/// Serves until SIGTERM or Ctrl-C, and then until clients have been told to go elsewhere.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve(config: Config, at_start: AtStart, reload: Reload) -> Result<(), ServeError> {
    let signals = signals::watch()?;
    if let Err(error) = descriptors::raise() {
        warn!(%error, "the limit on open files stays as it is");
    }
    let server = Server::open(config, Inherited::from_environment()?)?;
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
        Server::open(config, Inherited::default())
    }

    /// Takes the sockets that are there already and binds the others.
    fn open(config: Config, mut inherited: Inherited) -> Result<Server, ServeError> {
        let budget = Budget::new(config.budget_limits(machine::memory()));
        let broker = BrokerConfig { budget: budget.clone(), ..config.broker_config() };
        let broker = Broker::new(broker).map_err(runtime)?;
        let metrics = Arc::new(Metrics::default());
        let serving = Arc::new(Serving::new(&config, &metrics).map_err(runtime)?);
        let mut listen = |address: SocketAddr, name: &dyn std::fmt::Display| {
            let socket = inherited.take(address).map_or_else(|| tcp::bind(address), tcp::adopt);
            socket.map_err(|error| cannot_bind(address, name, &error))
        };
        let mut doors = Vec::new();
        for (index, url) in config.listen.iter().enumerate() {
            doors.push(Door::new(index, url, listen(url.address, url)?).map_err(runtime)?);
        }
        let redirect = config.http.redirect_listen.map(|address| listen(address, &address)).transpose()?;
        let admin = config.admin.listen.map(|address| listen(address, &address)).transpose()?;
        for address in inherited.unused() {
            warn!(%address, "the service manager passes a socket that the configuration does not name; it is closed");
        }
        Ok(Server { admin, broker, budget, config, doors, metrics, redirect, serving })
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
        let secure_port = self.secure_port();
        self.config.openings().iter().for_each(|opening| warn!("{opening}"));
        let Server { admin, broker, budget, mut config, doors, metrics, redirect, serving } = self;
        let readiness = Readiness::default();
        let descriptors = Descriptors::of_process();
        descriptors.keep();
        let clients = Clients::new(affordable(config.client_limits(), descriptors), budget.clone());
        let (background, stopped) = (TaskTracker::new(), CancellationToken::new());
        background.spawn(readiness.clone().watch(broker.clone(), stopped.clone()));
        if let Some(socket) = admin {
            let hosts = config.admin_host_config();
            let view = View::new(broker.clone(), budget.clone(), clients.clone(), hosts, &metrics, readiness.clone());
            background.spawn(admin::serve(socket, view, descriptors.reserved() / 4, stopped.clone()));
        }
        if let Some(acceptor) = &serving.current().tls {
            acceptor.announce();
        }
        background.spawn(certificates::watch(serving.clone(), stopped.clone()));
        background.spawn(records::watch(stopped.clone()));
        for door in doors {
            background.spawn(door.accept(serving.clone(), broker.clone(), clients.clone(), metrics.clone()));
        }
        if let (Some(socket), Some(port)) = (redirect, secure_port) {
            let (http, serving) = (config.http.clone(), serving.clone());
            background.spawn(redirect::accept(socket, http, port, serving, clients.clone(), metrics.clone()));
        }
        readiness.listening();
        notify::ready("serving");
        let reloadable = Reloadable {
            broker: &broker,
            budget: &budget,
            clients: &clients,
            descriptors,
            metrics: &metrics,
            serving: &serving,
        };
        while let Some(Signal::Reload) = signals.recv().await {
            notify::reloading();
            let new = reloadable.reload(&reload, &config);
            notify::ready(if new.is_some() { "serving" } else { "serving; the last reload failed, see the log" });
            config = new.unwrap_or(config);
        }
        notify::stopping(config.drain.timeout, clients.count());
        let deadline = drain::deadline(&config.drain);
        let ended = drain::run(&config.drain, deadline, &readiness, &clients, &mut signals).await;
        // A drain that was cut short may not have come to this.
        clients.stop_accepting();
        stopped.cancel();
        background.close();
        // One deadline for everything: whoever stops the process has one too.
        let goodbye = async {
            background.wait().await;
            if ended == Ended::Drained {
                broker.shutdown().await;
            }
        };
        if tokio::time::timeout_at(deadline.max(tokio::time::Instant::now() + MOMENT), goodbye).await.is_err() {
            warn!("drain timeout: ending with connections to RabbitMQ open");
        }
        ended
    }

    /// The port that requests in the clear are sent to.
    fn secure_port(&self) -> Option<u16> {
        let urls = self.config.listen.iter().zip(&self.doors);
        let mut secure = urls.filter(|(url, _)| url.scheme == Scheme::Wss);
        secure.next().and_then(|(_, door)| door.port())
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
        if let Some(address) = self.redirect.as_ref().and_then(|socket| socket.local_addr().ok()) {
            say(&format!("redirecting {} to https", redirect::url(address)));
        }
        say(&format!("broker {brokers}; {auth}; admin {admin}"));
        let memory = self.config.budget_text(machine::memory());
        info!(memory, "budget");
        say(&memory);
        say("ready");
    }
}

/// Ports below this need a privilege (Linux: `net.ipv4.ip_unprivileged_port_start`).
const FIRST_FREE_PORT: u16 = 1024;

/// One line per way out, ready to be copied.
const WAYS_TO_A_LOW_PORT: &str = "; ports below 1024 need a privilege that this process does not have. One of these gives it:
  systemd opens the port:  systemctl enable --now stomp-relay.socket
  a capability:            AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit, or setcap cap_net_bind_service=+ep FILE
  the port for everybody:  sysctl -w net.ipv4.ip_unprivileged_port_start=443
  another port, forwarded: listen on 8443, then iptables -t nat -A PREROUTING -p tcp --dport 443 -j REDIRECT --to-ports 8443";

/// As many clients as there are descriptors for.
fn affordable(limits: ClientLimits, descriptors: Descriptors) -> ClientLimits {
    let (most, wanted) = (descriptors.clients_max(), limits.connections_max + limits.refusals_max);
    if wanted <= most {
        return limits;
    }
    let refusals_max = limits.refusals_max.min(most / 4);
    let connections_max = limits.connections_max.min(most - refusals_max);
    let needed = descriptors.shortage(wanted);
    warn!(
        connections_max,
        configured = limits.connections_max,
        needed,
        "the limit on open files allows for fewer clients than limits.connections_max: set it to `needed` (LimitNOFILE= of a \
         unit, ulimit -n, --ulimit nofile of a container), or lower the key"
    );
    ClientLimits { connections_max, refusals_max, ..limits }
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

fn cannot_bind(address: SocketAddr, name: &dyn std::fmt::Display, error: &std::io::Error) -> ServeError {
    let remedy = match error.kind() {
        std::io::ErrorKind::PermissionDenied if address.port() < FIRST_FREE_PORT => WAYS_TO_A_LOW_PORT,
        std::io::ErrorKind::PermissionDenied => "; a security policy such as SELinux or a container's refuses it",
        std::io::ErrorKind::AddrInUse => "; another process has it",
        std::io::ErrorKind::AddrNotAvailable => "; it is not an address of this machine",
        _ => "",
    };
    ServeError::Bind { address: name.to_string(), reason: format!("{error}{remedy}") }
}

/// A reader of standard output that went away is no failure of ours.
fn say(line: &str) {
    use std::io::Write as _;
    let mut output = std::io::stdout().lock();
    let _ = writeln!(output, "{line}").and_then(|()| output.flush());
}

fn runtime(error: impl std::fmt::Display) -> ServeError {
    ServeError::Runtime { reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_needs_a_privilege_comes_with_the_ways_to_get_it() {
        let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let low = cannot_bind(SocketAddr::from(([0, 0, 0, 0], 443)), &"wss://0.0.0.0:443/ws", &denied).to_string();
        assert!(low.starts_with("cannot listen on wss://0.0.0.0:443/ws: permission denied; ports below 1024"), "{low}");
        for way in ["stomp-relay.socket", "CAP_NET_BIND_SERVICE", "setcap", "sysctl -w", "REDIRECT --to-ports 8443"] {
            assert!(low.contains(way), "{low}");
        }
        let high = cannot_bind(SocketAddr::from(([0, 0, 0, 0], 8443)), &"x", &denied).to_string();
        assert!(high.contains("security policy") && !high.contains("sysctl"), "{high}");
    }
}
