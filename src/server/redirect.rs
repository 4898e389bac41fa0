//! The listening socket of `http.redirect_listen`; its clients count as clients like all others.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpListener;
use tracing::{debug, warn};

use super::state::Serving;
use crate::clients::{Clients, Place};
use crate::config::Http;
use crate::descriptors;
use crate::listener::tcp::{self, AcceptFailure};
use crate::listener::{RedirectConfig, redirect_connection};
use crate::metrics::Metrics;
use crate::session::admission::Limit;

/// Accepts until clients are no longer accepted.
pub(super) async fn accept(
    socket: TcpListener,
    config: Http,
    port: u16,
    serving: Arc<Serving>,
    clients: Clients,
    metrics: Arc<Metrics>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = clients.stop().cancelled() => return,
        };
        match accepted {
            Ok((socket, _)) if descriptors::is_reserved(&socket) => metrics.rejected("descriptors"),
            Ok((socket, peer)) => match place(&clients, peer) {
                Ok(place) => {
                    let (stop, hosts) = (clients.stop().clone(), serving.current().redirect_hosts.clone());
                    let Http { head_timeout, head_bytes_max, .. } = config;
                    let place = Arc::new(place);
                    let served = place.clone();
                    let task = tokio::spawn(async move {
                        let config = RedirectConfig { hosts: &hosts, port, head_timeout, head_bytes_max };
                        tokio::select! {
                            () = redirect_connection(socket, peer, config, stop) => {}
                            () = std::future::poll_fn(|cx| place.poll_ended_untold(cx)) => {}
                        }
                    });
                    served.served_by(task.abort_handle());
                }
                Err(reason) => {
                    metrics.rejected(reason.label());
                    debug!(%peer, ?reason, "connection refused: a limit is reached");
                }
            },
            Err(error) => {
                if let AcceptFailure::Exhausted(pause) = tcp::accept_failure(&error) {
                    warn!(%error, "cannot accept requests for a redirect now");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}

/// Who would have to be told that it may not come in is not served: this is a courtesy.
fn place(clients: &Clients, peer: SocketAddr) -> Result<Place, Limit> {
    let place = clients.take_place(peer.ip().to_canonical(), Instant::now()).ok_or(Limit::Connections)?;
    if let Some(limit) = place.refused() {
        return Err(limit);
    }
    place.take_address(peer.ip().to_canonical(), Instant::now())?;
    Ok(place)
}

/// As people read it.
pub(super) fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}
