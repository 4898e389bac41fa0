//! The listener: one accepted socket through TLS, HTTP/1.1 and the WebSocket handshake to an open [`WebSocket`].
//!
//! An adapter to the client's side of the world: knows sockets, TLS, HTTP and WebSocket; knows nothing of STOMP beyond
//! the names of its subprotocols, nothing of AMQP, and nothing of the configuration file. It has no accept loop: what
//! to accept, how many, and when to stop is decided above.

mod event;
mod files;
mod forwarded;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gate;
mod handshake;
mod host;
mod http;
mod incoming;
mod origin;
mod outgoing;
mod pages;
mod presented;
mod proxy_protocol;
mod redirect;
mod refusals;
mod source;
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
pub use self::forwarded::{ForwardedHeader, HOPS_MAX};
pub use self::gate::{Admission, Gate, Route, Upgrade};
pub use self::handshake::Subprotocol;
pub use self::host::{HostConfig, HostError, HostPattern, Literals, host_entry_for, named_host};
pub use self::origin::{OriginPattern, entry_for};
pub use self::presented::{CookieConfig, Presented, PresentedConfig};
pub use self::proxy_protocol::HEADER_BYTES_MAX as PROXY_HEADER_BYTES_MAX;
pub use self::redirect::{RedirectConfig, redirect_connection};
pub use self::source::{ProxyConfig, Source};
use self::stream::Stream;
pub use self::tls::ClientCertificate;
pub use self::websocket::{Opcode, Read, WebSocket, WebSocketConfig, Write};
use crate::patience;

/// How one listening socket treats its clients.
#[derive(Clone, Debug)]
pub struct ListenerConfig {
    /// Path of the WebSocket endpoint, with its slash in front: `/ws`.
    pub path: String,
    /// None: clients speak in the clear.
    pub tls: Option<Arc<tls::Acceptor>>,
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
    /// Names by which clients may call the relay.
    pub hosts: HostConfig,
    /// Pages that may connect; empty: those of the host that the request names.
    pub origins: Vec<OriginPattern>,
    pub proxy: ProxyConfig,
    /// `Strict-Transport-Security` of all answers over TLS (RFC 6797); none without.
    pub strict_transport_security: Option<String>,
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

/// What is known of a client when its WebSocket opens. All but the addresses and the certificate is as the client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Of the TCP connection; a proxy's, if one is between.
    pub peer: SocketAddr,
    /// The client behind it.
    pub source: Source,
    pub local: SocketAddr,
    pub security: Security,
    /// Verified; None without one, which `tls.client_auth = "require"` excludes.
    pub certificate: Option<ClientCertificate>,
    /// The subprotocol that was agreed on; None if the client offered none of ours.
    pub subprotocol: Option<Subprotocol>,
    pub origin: Option<String>,
    pub presented: Option<Presented>,
    pub user_agent: Option<String>,
}

/// What is not yet a WebSocket goes on for this long after `stop`: a client that is just coming in gets its answer.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// Serves one accepted socket to its end: TLS, HTTP, and after an upgrade `on_open`, whose future runs right here. No
/// task is left behind: a client is one task, the caller's.
///
/// `stop` ends what is not yet a WebSocket, after a moment and the request in progress. An open WebSocket is not touched by
/// it.
pub async fn serve_connection<G, F, Fut>(
    socket: TcpStream,
    peer: SocketAddr,
    config: Arc<ListenerConfig>,
    stop: CancellationToken,
    gate: Arc<G>,
    on_open: F,
) where
    G: Gate,
    F: Fn(WebSocket, Opened) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let Ok(local) = tcp::prepare(&socket).and_then(|()| socket.local_addr()) else { return };
    // What is done once and needs much room has it apart: a task keeps the room of its largest part as long as it lives.
    let entered = tokio::select! {
        entered = Box::pin(enter(socket, peer, &config, &*gate)) => entered,
        () = stopped(&stop) => None,
        () = patience::Timer::until(gate.deadline().into()) => None,
    };
    let Some((stream, source, certificate)) = entered else { return };
    let served = Box::pin(http::serve(stream, &config, &stop, source, &gate)).await;
    let Some(http::Upgraded { stream, read_ahead, details }) = served else { return };
    let http::Details { subprotocol, origin, presented, source, user_agent } = details;
    let security = Security::of(&config);
    let opened = Opened { peer, source, local, security, certificate, subprotocol, origin, presented, user_agent };
    let websocket = WebSocket::new(stream, &read_ahead, config.websocket);
    drop((read_ahead, config, stop, gate));
    on_open(websocket, opened).await;
}

async fn stopped(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(STOP_GRACE).await;
}

/// Who it is, whether it may come in, and the stream to speak HTTP on.
async fn enter<G: Gate>(
    mut socket: TcpStream,
    peer: SocketAddr,
    config: &ListenerConfig,
    gate: &G,
) -> Option<(Stream, Source, Option<ClientCertificate>)> {
    let mut source = Source::direct(peer, &config.proxy);
    if config.proxy.speaks_proxy_protocol(source.client()) {
        let announced = patience::timeout(config.head_timeout, proxy_protocol::read(&mut socket)).await;
        match announced {
            Ok(Ok(Some(client))) => source = source.behind(client),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                debug!(%peer, %error, "connection from a network of proxy.protocol_from refused");
                return None;
            }
            Err(_) => {
                debug!(%peer, "no PROXY protocol header in time");
                return None;
            }
        }
    }
    // The clients of a trusted HTTP proxy are admitted one by one, once it has named them.
    if !config.proxy.trusts(source.client()) && gate.admit(&source).await == Admission::Close {
        return None;
    }
    let (stream, certificate) = secure(socket, peer, config).await?;
    Some((stream, source, certificate))
}

/// The stream that HTTP is spoken on, or None when the peer does not get that far in time.
async fn secure(
    socket: TcpStream,
    peer: SocketAddr,
    config: &ListenerConfig,
) -> Option<(Stream, Option<ClientCertificate>)> {
    let Some(tls) = &config.tls else {
        return match patience::timeout(config.head_timeout, tls::is_handshake(&socket)).await {
            Ok(Ok(false)) => {
                if proxy_protocol::begins(&socket).await {
                    refusals::proxy_header(peer);
                }
                Some((Stream::Plain(socket), None))
            }
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
    let accepted = tls.accept(socket, peer, config.tls_handshake_timeout).await?;
    Some((Stream::Tls(Box::new(accepted.stream)), accepted.certificate))
}
