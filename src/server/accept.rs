//! One listening socket: accepts clients under the caps and starts a task for each.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, warn};

use super::state::Serving;
use crate::broker::Broker;
use crate::clients::{Clients, Place};
use crate::config::ListenUrl;
use crate::connection;
use crate::listener::tcp::{self, AcceptFailure};
use crate::listener::{Opened, WebSocket, serve_connection};
use crate::metrics::Metrics;

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
        match clients.take_place(peer.ip().to_canonical()) {
            Ok(place) => {
                let settings = serving.current();
                let listener = settings.listeners[self.index].clone();
                let (broker, metrics, stop) = (broker.clone(), metrics.clone(), clients.stop().clone());
                let place = Arc::new(place);
                tokio::spawn(async move {
                    let connection = settings.connection.clone();
                    drop(settings);
                    let on_open = {
                        let place = place.clone();
                        move |socket: WebSocket, opened: Opened| {
                            serve_session(
                                socket,
                                opened,
                                broker.clone(),
                                connection.clone(),
                                metrics.clone(),
                                place.clone(),
                            )
                        }
                    };
                    serve_connection(socket, peer, listener, stop, on_open).await;
                });
            }
            Err(reason) => {
                metrics.rejected(reason.label());
                debug!(%peer, ?reason, "connection refused: a limit is reached");
            }
        }
    }
}

async fn serve_session(
    socket: WebSocket,
    opened: Opened,
    broker: Broker,
    config: Arc<connection::ConnectionConfig>,
    metrics: Arc<Metrics>,
    place: Arc<Place>,
) {
    connection::run(socket, opened, &broker, &config, &metrics, &place.drain).await;
}
