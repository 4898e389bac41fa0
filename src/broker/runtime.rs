//! lapin's runtime: tokio, with our own stream type in place of its socket.

use super::stream::GuardedStream;
use async_rs::Tokio;
use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use futures_util::Stream;
use futures_util::io::{AsyncRead, AsyncWrite};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

/// The kit that lapin is given.
pub(super) type Kit = RuntimeParts<Tokio, GuardedReactor>;

/// Bound to the tokio runtime of the caller.
pub(super) fn current() -> async_rs::Runtime<Kit> {
    async_rs::Runtime::new(RuntimeParts::new(Tokio::current(), GuardedReactor(Tokio::current())))
}

/// Timers are tokio's. Connecting is refused: links are connected before lapin sees them.
#[derive(Clone, Debug)]
pub(super) struct GuardedReactor(Tokio);

impl Reactor for GuardedReactor {
    type TcpStream = GuardedStream;
    type Sleep = tokio::time::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(&self, _: SocketAddr) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        std::future::ready(Err(io::Error::from(io::ErrorKind::Unsupported)))
    }
}
