//! The byte stream under lapin: TCP or TLS, read through the guard, with a switch that cuts it from outside.

use super::config::{BUFFERED_FRAMES, BrokerConfig, Encryption, KEEPALIVE, Node};
use super::guard::Guard;
use super::outbound::OutboundGuard;
use super::split::{FRAME_BYTES_MIN, Splitter};
use super::wire::Wire;
use crate::budget::Charge;
use futures_util::io::{AsyncRead, AsyncWrite};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{SockRef, Socket, TcpKeepalive};
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Cuts the connection at once, whatever lapin's thread waits for. Without it a silent peer would hold that thread.
pub(super) struct KillSwitch(Socket);

impl KillSwitch {
    pub(super) fn cut(&self) {
        // The only errors say that it is cut already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// TCP or TLS to one node, connected.
pub(super) enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    /// Connects without a deadline of its own; dropping the future closes the socket.
    pub(super) async fn connect(node: &Node, tls: Option<&Arc<ClientConfig>>) -> io::Result<(Transport, KillSwitch)> {
        let tcp = TcpStream::connect((node.host.as_str(), node.port)).await?;
        tcp.set_nodelay(true)?;
        let socket = SockRef::from(&tcp);
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
        let switch = KillSwitch(socket.try_clone()?);
        let transport = match (node.encryption, tls) {
            (Encryption::Plain, _) => Transport::Plain(tcp),
            (Encryption::Tls, Some(config)) => {
                let name = ServerName::try_from(node.host.clone()).map_err(io::Error::other)?;
                Transport::Tls(Box::new(TlsConnector::from(config.clone()).connect(name, tcp).await?))
            }
            (Encryption::Tls, None) => return Err(io::Error::other("TLS is not configured")),
        };
        Ok((transport, switch))
    }
}

impl tokio::io::AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl tokio::io::AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Counts what lapin's buffers hold: two rings that are filled once round and then kept, however little is in them.
struct Buffers {
    bytes_max: usize,
    charge: Charge,
    read: usize,
    written: usize,
}

impl Buffers {
    fn new(config: &BrokerConfig) -> Buffers {
        let bytes_max = BUFFERED_FRAMES * config.frame_bytes_max as usize;
        Buffers { bytes_max, charge: config.budget.charge(0), read: 0, written: 0 }
    }

    fn read(&mut self, bytes: usize) {
        fill(&mut self.read, bytes, self.bytes_max, &self.charge);
    }

    fn written(&mut self, bytes: usize) {
        fill(&mut self.written, bytes, self.bytes_max, &self.charge);
    }
}

fn fill(filled: &mut usize, bytes: usize, bytes_max: usize, charge: &Charge) {
    let more = bytes.min(bytes_max - *filled);
    if more > 0 {
        *filled += more;
        charge.grow(more);
    }
}

/// What lapin reads and writes.
pub(super) struct GuardedStream {
    buffers: Buffers,
    guard: Guard,
    outbound: OutboundGuard,
    /// There if the broker takes smaller frames than lapin agrees to.
    splitter: Option<Splitter>,
    transport: Transport,
    wire: Arc<Wire>,
}

impl GuardedStream {
    /// `guard` writes to `wire`.
    pub(super) fn new(transport: Transport, guard: Guard, wire: Arc<Wire>, config: &BrokerConfig) -> GuardedStream {
        let (buffers, outbound) = (Buffers::new(config), OutboundGuard::default());
        GuardedStream { buffers, guard, outbound, splitter: None, transport, wire }
    }
}

impl Drop for GuardedStream {
    fn drop(&mut self) {
        self.wire.ended.cancel();
    }
}

impl AsyncRead for GuardedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let GuardedStream { buffers, guard, transport, wire, .. } = self.get_mut();
        let asked = buffer.len();
        let result = ready!(guard.poll_fill(buffer, |space| {
            let mut space = ReadBuf::new(space);
            ready!(Pin::new(&mut *transport).poll_read(cx, &mut space))?;
            wire.heard();
            // Before the guard takes anything out: it has been in the buffer then.
            buffers.read(space.filled().len());
            Poll::Ready(Ok(space.filled().len()))
        }));
        if result.is_err() || matches!(result, Ok(0) if asked > 0) {
            wire.ended.cancel();
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for GuardedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let GuardedStream { buffers, outbound, splitter, transport, wire, .. } = self.get_mut();
        let mut write = |bytes: &[u8]| {
            let written = ready!(outbound.poll_write(bytes, |bytes| Pin::new(&mut *transport).poll_write(cx, bytes)));
            if let Ok(bytes) = &written {
                buffers.written(*bytes);
            }
            Poll::Ready(written)
        };
        // It is offered when everything before is written, so this begins with a frame.
        let offered = wire.frame_max();
        if splitter.is_none() && (1..FRAME_BYTES_MIN).contains(&offered) {
            *splitter = Some(Splitter::new(offered));
        }
        let Some(splitter) = splitter else { return write(bytes) };
        ready!(splitter.poll_drain(&mut write))?;
        splitter.take(bytes);
        // What is left goes with the next write, or the flush.
        match splitter.poll_drain(write) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(bytes.len())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let GuardedStream { outbound, splitter, transport, .. } = self.get_mut();
        if let Some(splitter) = splitter {
            ready!(splitter.poll_drain(|bytes| {
                outbound.poll_write(bytes, |bytes| Pin::new(&mut *transport).poll_write(cx, bytes))
            }))?;
        }
        ready!(outbound.poll_due(|bytes| Pin::new(&mut *transport).poll_write(cx, bytes)))?;
        Pin::new(transport).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_shutdown(cx)
    }
}
