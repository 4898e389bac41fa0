//! TCP: binding a listening socket, options of accepted sockets, and what to do when accept fails.
//!
//! Does not own the accept loop; counting and capping connections is the caller's.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

/// Connections that the kernel completes before they are accepted: room for a reconnect storm (the kernel cuts it to
/// `net.core.somaxconn`).
pub const BACKLOG: i32 = 1024;

/// Silence after which the kernel probes whether the peer still exists.
pub const KEEPALIVE: Duration = Duration::from_secs(60);

/// Bytes of a client that the kernel holds and has not sent (Linux; elsewhere its own choice). Its buffer grows to 4 MiB and is
/// offered again when a third of it is free: a client that reads steadily but slowly would look for a minute like one that does
/// not read at all. So little is sent within a few seconds even at 16 KiB/s, and what is in flight is not bounded by it.
pub const UNSENT_BYTES_MAX: u32 = 64 * 1024;

/// Pause after an accept error that would come again at once, such as "too many open files".
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Opens a listening socket with [`BACKLOG`] and `SO_REUSEADDR`, so that a restart does not wait for old connections.
/// Port 0 takes a free port. Must be called within a tokio runtime.
///
/// # Errors
/// What the operating system says: address in use, permission denied, address not of this host.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Takes over a listening socket that was opened elsewhere. Must be called within a tokio runtime.
///
/// # Errors
/// What the operating system says.
pub fn adopt(socket: std::net::TcpListener) -> io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

/// Sets the options of an accepted socket: no delay (frames are small and already batched), keepalive, and
/// [`UNSENT_BYTES_MAX`].
///
/// # Errors
/// The socket is gone already.
pub(super) fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4))
}

/// What an accept loop does after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptFailure {
    /// This one connection vanished before it was accepted: accept the next one.
    Connection,
    /// The process or the host is short of something (file descriptors, memory): wait this long, then go on. Accepting
    /// again at once would spin, as the connection stays in the backlog.
    Exhausted(Duration),
}

/// Judges an error of [`TcpListener::accept`]. No error ends a listener: whatever is short now may be free later.
pub fn accept_failure(error: &io::Error) -> AcceptFailure {
    match error.kind() {
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted => {
            AcceptFailure::Connection
        }
        _ => AcceptFailure::Exhausted(ACCEPT_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_connections_do_not_pause_but_exhaustion_does() {
        const EMFILE: i32 = 24;
        const ECONNABORTED: i32 = 103;
        assert_eq!(accept_failure(&io::Error::from_raw_os_error(EMFILE)), AcceptFailure::Exhausted(ACCEPT_PAUSE));
        assert_eq!(accept_failure(&io::Error::from(io::ErrorKind::ConnectionAborted)), AcceptFailure::Connection);
        if cfg!(target_os = "linux") {
            assert_eq!(accept_failure(&io::Error::from_raw_os_error(ECONNABORTED)), AcceptFailure::Connection);
        }
    }

    #[tokio::test]
    async fn a_bound_socket_names_its_port_and_accepts() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.local_addr().unwrap();
        assert_ne!(address.port(), 0);
        let client = TcpStream::connect(address).await.unwrap();
        let (socket, peer) = listener.accept().await.unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        prepare(&socket).unwrap();
        assert!(socket.nodelay().unwrap());
        assert!(SockRef::from(&socket).keepalive().unwrap());
        assert!(bind(address).is_err(), "two listeners on one port");
    }
}
