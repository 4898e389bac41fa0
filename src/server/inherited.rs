//! Listening sockets that systemd opened for us (socket activation, sd_listen_fds(3)): port 443 without any privilege, and no
//! refused connection while the service restarts.
//!
//! A socket is matched by its address, so that configuration and socket unit can't mean different things.

use std::net::{SocketAddr, TcpListener};

use listenfd::ListenFd;

use super::ServeError;

#[derive(Debug, Default)]
pub(super) struct Inherited(Vec<(SocketAddr, TcpListener)>);

impl Inherited {
    /// From `LISTEN_FDS`, if `LISTEN_PID` is this process.
    ///
    /// # Errors
    /// A file descriptor is no TCP socket: it would wait in vain for someone to accept.
    pub(super) fn from_environment() -> Result<Inherited, ServeError> {
        let mut passed = ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..passed.len() {
            let socket = passed.take_tcp_listener(index).and_then(|socket| match socket {
                Some(socket) => Ok(Some((socket.local_addr()?, socket))),
                None => Ok(None),
            });
            let socket = socket.map_err(|error| ServeError::Bind {
                address: format!("socket {} of LISTEN_FDS", index + 1),
                reason: format!("{error}; stomp-relay takes TCP sockets only (ListenStream=PORT)"),
            })?;
            sockets.extend(socket);
        }
        Ok(Inherited(sockets))
    }

    /// The socket for an address of the configuration. Of addresses that stand for all (`0.0.0.0`, `[::]`) either fits the other;
    /// apart from that nothing wider than what is configured is taken.
    pub(super) fn take(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let every = |address: SocketAddr| address.ip().is_unspecified();
        let fits = |socket: SocketAddr| {
            socket == address || (socket.port() == address.port() && every(socket) && every(address))
        };
        let index = self.0.iter().position(|(socket, _)| fits(*socket))?;
        Some(self.0.swap_remove(index).1)
    }

    /// Those that the configuration does not name.
    pub(super) fn unused(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().map(|(address, _)| *address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_taken_by_address_and_only_once() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = socket.local_addr().unwrap();
        let wide = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = wide.local_addr().unwrap().port();
        let of = |host: &str, port: u16| SocketAddr::new(host.parse().unwrap(), port);
        let mut inherited = Inherited([socket, wide].map(|socket| (socket.local_addr().unwrap(), socket)).into());
        assert!(inherited.take(of("127.0.0.2", local.port())).is_none());
        assert!(inherited.take(of("0.0.0.0", local.port())).is_none(), "configured wider than it is");
        assert!(inherited.take(of("127.0.0.1", port)).is_none(), "it is wider than configured");
        assert_eq!(inherited.take(of("::", port)).unwrap().local_addr().unwrap().port(), port);
        assert_eq!(inherited.unused().collect::<Vec<_>>(), [local]);
        assert!(inherited.take(local).is_some() && inherited.take(local).is_none());
    }
}
