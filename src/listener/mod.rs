//! The listener: one accepted socket through TLS, HTTP/1.1 and the WebSocket handshake to an open [`WebSocket`].
//!
//! An adapter to the client's side of the world: knows sockets, TLS, HTTP and WebSocket; knows nothing of STOMP beyond
//! the names of its subprotocols, nothing of AMQP, and nothing of the configuration file. It has no accept loop: what
//! to accept, how many, and when to stop is decided above.

mod event;
mod files;
mod handshake;
mod http;
mod outgoing;
mod pages;
mod presented;
mod stream;
pub mod tcp;
pub mod tls;
mod websocket;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tracing::debug;

pub use self::event::{DriveError, Event, Incoming, ReceiveError, SendError};
pub use self::files::{FILE_BYTES_MAX, StaticRoot};
pub use self::handshake::Subprotocol;
pub use self::presented::{CookieConfig, Presented, PresentedConfig};
use self::stream::Stream;
pub use self::websocket::{Opcode, Read, WebSocket, WebSocketConfig, Write};

/// How one listening socket treats its clients.
#[derive(Clone, Debug)]
pub struct ListenerConfig {
    /// Path of the WebSocket endpoint, with its slash in front: `/ws`.
    pub path: String,
    /// None: clients speak in the clear.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Time from accept to the end of the TLS handshake.
    pub tls_handshake_timeout: Duration,
    /// Time for each request head, and so for which a connection may be idle between requests. In the clear, the first
    /// byte has this much time and the head that starts with it as much again.
    pub head_timeout: Duration,
    /// Largest request head in bytes; at least 8 KiB are allowed.
    pub head_bytes_max: usize,
    /// Folder of files served beside the endpoint.
    pub root: Option<StaticRoot>,
    /// `Content-Security-Policy` of HTML pages.
    pub content_security_policy: String,
    /// Where an upgrade request may show who the client is.
    pub presented: PresentedConfig,
    pub websocket: WebSocketConfig,
}

/// Whether bytes are encrypted between the client and here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    Plain,
    Tls,
}

impl Security {
    fn of(config: &ListenerConfig) -> Self {
        if config.tls.is_some() { Security::Tls } else { Security::Plain }
    }
}

/// What is known of a client when its WebSocket opens. All but the addresses is as the client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    pub peer: SocketAddr,
    pub local: SocketAddr,
    pub security: Security,
    /// The subprotocol that was agreed on; None if the client offered none of ours.
    pub subprotocol: Option<Subprotocol>,
    pub origin: Option<String>,
    pub presented: Option<Presented>,
    pub user_agent: Option<String>,
}

/// Serves one accepted socket to its end: TLS, HTTP, and after an upgrade `on_open`, whose future runs right here. No
/// task is left behind: a client is one task, the caller's.
///
/// `stop` ends what is not yet a WebSocket, after the request in progress. An open WebSocket is not touched by it.
pub async fn serve_connection<F, Fut>(
    socket: TcpStream,
    peer: SocketAddr,
    config: Arc<ListenerConfig>,
    stop: CancellationToken,
    on_open: F,
) where
    F: Fn(WebSocket, Opened) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let Ok(local) = tcp::prepare(&socket).and_then(|()| socket.local_addr()) else { return };
    let stream = tokio::select! {
        stream = secure(socket, peer, &config) => stream,
        () = stop.cancelled() => None,
    };
    let Some(stream) = stream else { return };
    let Some(http::Upgraded { stream, read_ahead, details }) = http::serve(stream, &config, &stop).await else {
        return;
    };
    let http::Details { subprotocol, origin, presented, user_agent } = details;
    let opened = Opened { peer, local, security: Security::of(&config), subprotocol, origin, presented, user_agent };
    let websocket = WebSocket::new(stream, &read_ahead, config.websocket);
    drop((read_ahead, config, stop));
    on_open(websocket, opened).await;
}

/// The stream that HTTP is spoken on, or None when the peer does not get that far in time.
async fn secure(socket: TcpStream, peer: SocketAddr, config: &ListenerConfig) -> Option<Stream> {
    let Some(tls) = &config.tls else {
        return match tokio::time::timeout(config.head_timeout, tls::is_handshake(&socket)).await {
            Ok(Ok(false)) => Some(Stream::Plain(socket)),
            Ok(Ok(true)) => {
                debug!(%peer, "a client speaks TLS to a port without: connect with http:// or ws://");
                None
            }
            Ok(Err(error)) => {
                debug!(%peer, %error, "connection lost before a request");
                None
            }
            Err(_) => {
                debug!(%peer, "silent connection closed");
                None
            }
        };
    };
    match tokio::time::timeout(config.tls_handshake_timeout, tls::accept(socket, tls.clone())).await {
        Ok(Ok(stream)) => Some(Stream::Tls(Box::new(stream))),
        Ok(Err(error)) => {
            debug!(%peer, %error, "TLS handshake failed");
            None
        }
        Err(_) => {
            debug!(%peer, "TLS handshake not finished in time");
            None
        }
    }
}
