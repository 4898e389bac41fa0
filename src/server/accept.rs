//! One listening socket: accepts clients under the caps and starts a task for each.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, warn};

use super::state::Serving;
use crate::audit;
use crate::broker::Broker;
use crate::budget::Excess;
use crate::clients::{Clients, Place};
use crate::config::ListenUrl;
use crate::connection;
use crate::descriptors;
use crate::listener::tcp::{self, AcceptFailure};
use crate::listener::{Admission, Gate, Opened, Route, Source, Upgrade, WebSocket, serve_connection};
use crate::metrics::Metrics;
use crate::patience;
use crate::session::admission::Limit;

/// Time of one that is here only to be told that it is not let in.
const REFUSED_LIFE_MAX: Duration = Duration::from_secs(10);

pub(super) struct Door {
    /// Which of the settings' listeners it is.
    index: usize,
    socket: TcpListener,
    url: String,
}

impl Door {
    pub(super) fn new(index: usize, url: &ListenUrl, socket: TcpListener) -> io::Result<Door> {
        let bound = ListenUrl { address: socket.local_addr()?, ..url.clone() };
        Ok(Door { index, socket, url: bound.to_string() })
    }

    /// With the port that was really bound.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn port(&self) -> Option<u16> {
        self.socket.local_addr().ok().map(|address| address.port())
    }

    pub(super) async fn accept(self, serving: Arc<Serving>, broker: Broker, clients: Clients, metrics: Arc<Metrics>) {
        loop {
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                () = clients.stop().cancelled() => return,
            };
            match accepted {
                Ok((socket, peer)) if descriptors::is_reserved(&socket) => {
                    // Who comes next finds the descriptor of a stranger.
                    clients.make_room();
                    metrics.rejected("descriptors");
                    if clients.may_warn(Instant::now()) {
                        warn!(%peer, "a client is not let in: the limit on open files is reached");
                    }
                }
                Ok((socket, peer)) => self.welcome(socket, peer, &serving, &broker, &clients, &metrics),
                Err(error) => match tcp::accept_failure(&error) {
                    AcceptFailure::Connection => {}
                    AcceptFailure::Exhausted(pause) => {
                        warn!(url = self.url, %error, "cannot accept clients now; those that are in go on");
                        tokio::time::sleep(pause).await;
                    }
                },
            }
        }
    }

    fn welcome(
        &self,
        socket: TcpStream,
        peer: SocketAddr,
        serving: &Serving,
        broker: &Broker,
        clients: &Clients,
        metrics: &Arc<Metrics>,
    ) {
        let evicted = clients.evicted();
        let place = clients.take_place(peer.ip().to_canonical(), Instant::now());
        if place.as_ref().is_none_or(|place| place.refused().is_some()) {
            metrics.rejected(Limit::Connections.label());
            report(clients, &peer, Limit::Connections);
        }
        if clients.evicted() != evicted && clients.may_warn(Instant::now()) {
            let limits = "limits.connections_max and limits.strangers_max";
            warn!(limits, "a limit is reached: clients that have not logged in give their places to those who come");
        }
        let Some(place) = place else { return };
        let listener = serving.current().listeners[self.index].clone();
        let sessions = serving.sessions();
        let (broker, metrics, stop) = (broker.clone(), metrics.clone(), clients.stop().clone());
        let place = Arc::new(place);
        let gate = Arc::new(Counted { clients: clients.clone(), metrics: metrics.clone(), place: place.clone() });
        let (served, ended) = (place.clone(), metrics.clone());
        let task = tokio::spawn(async move {
            let on_open = {
                let place = place.clone();
                move |socket: WebSocket, opened: Opened| {
                    connection::run(socket, opened, broker.clone(), sessions.clone(), metrics.clone(), place.clone())
                }
            };
            let service = serve_connection(socket, peer, listener, stop, gate, on_open);
            tokio::select! {
                () = service => {}
                () = std::future::poll_fn(|cx| place.poll_ended_untold(cx)) => {
                    ended.ended_for_memory(Excess::Process.label());
                    debug!(%peer, key = "limits.memory_max", "a connection without a WebSocket is ended: memory is short");
                }
            }
        });
        served.served_by(task.abort_handle());
    }
}

/// Counts a connection under its address, and makes it wait for its turn.
struct Counted {
    clients: Clients,
    metrics: Arc<Metrics>,
    place: Arc<Place>,
}

impl Gate for Counted {
    async fn admit(&self, source: &Source) -> Admission {
        if self.place.refused().is_some() {
            return Admission::GoOn;
        }
        match self.place.take_address(source.client(), Instant::now()) {
            Ok(turn) => {
                patience::turn(turn).await;
                Admission::GoOn
            }
            Err(limit) => {
                self.metrics.rejected(limit.label());
                report(&self.clients, source, limit);
                if self.place.refuse(limit) { Admission::GoOn } else { Admission::Close }
            }
        }
    }

    fn deadline(&self) -> Instant {
        let deadline = self.place.deadline();
        if self.place.refused().is_some() { deadline.min(Instant::now() + REFUSED_LIFE_MAX) } else { deadline }
    }

    fn upgraded(&self, result: Upgrade) {
        self.metrics.upgrade(result.label());
    }

    fn refused(&self, why: Upgrade, source: &Source, origin: &str, host: &str) {
        let why = if why == Upgrade::Host { audit::Refused::Host } else { audit::Refused::Origin };
        if self.clients.may_tell(source.client(), Instant::now()) {
            audit::refused(&source.to_string(), why, origin, host);
        }
    }

    fn answered(&self, route: Route, status: u16) {
        self.metrics.request(route.label(), status);
    }
}

/// Names the key, so that an operator can tell a limit that is too low from an attack.
fn report(clients: &Clients, client: &dyn std::fmt::Display, limit: Limit) {
    let key = match limit {
        Limit::AuditLog => "log.audit_failure",
        Limit::Connections => "limits.connections_max",
        Limit::ConnectionsOfAddress => "limits.connections_per_address_max",
        Limit::ConnectionsOfNetwork => "limits.connections_per_network_max",
        Limit::Strangers => "limits.strangers_max",
        Limit::ConnectionsOfUser => "limits.connections_per_user_max",
        Limit::ConnectRate => "limits.connect_rate_max or limits.connect_rate_per_address_max",
        Limit::Memory => "limits.memory_max",
        Limit::MemoryOfSession => "limits.session_bytes_max",
        Limit::MemoryOfUser => "limits.user_bytes_max",
        Limit::HandshakeRate => "limits.handshake_rate_max or limits.handshake_rate_per_address_max",
    };
    if clients.may_warn(Instant::now()) {
        warn!(%client, key, "a client is not let in: a limit is reached");
    } else {
        debug!(%client, key, "a client is not let in: a limit is reached");
    }
}
