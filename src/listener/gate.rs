//! What the listener asks of those above it, and tells them, while a connection is on its way to a WebSocket.
//!
//! Counts and limits nothing itself.

use std::time::Instant;

use super::source::Source;

/// Whether a connection may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Nothing more is said: the connection is closed, or answered with 503 if there is an HTTP request.
    Close,
    /// Perhaps only to be told within the WebSocket why it may go no further.
    GoOn,
}

/// What became of a request that came to the WebSocket's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade {
    Accepted,
    /// No WebSocket handshake, or a wrong one.
    BadHandshake,
    /// The request calls the relay by a name that is not its own.
    Host,
    /// By [`Gate::admit`].
    NotAdmitted,
    /// The page's origin is not allowed.
    Origin,
}

impl Upgrade {
    /// As a metric shows it.
    pub fn label(self) -> &'static str {
        match self {
            Upgrade::Accepted => "accepted",
            Upgrade::BadHandshake => "bad_handshake",
            Upgrade::Host => "host",
            Upgrade::NotAdmitted => "not_admitted",
            Upgrade::Origin => "origin",
        }
    }
}

/// Where a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Below `http.root`, also if nothing was found.
    File,
    /// No path of ours.
    None,
    WebSocket,
}

impl Route {
    /// As a metric shows it.
    pub fn label(self) -> &'static str {
        match self {
            Route::File => "file",
            Route::None => "none",
            Route::WebSocket => "websocket",
        }
    }
}

/// Asked and told about one connection.
pub trait Gate: Send + Sync + 'static {
    /// Before TLS, when the client's address is known: not for trusted HTTP proxies, whose clients are known later. And at the
    /// upgrade of those. May take its time: the client waits for its turn.
    fn admit(&self, source: &Source) -> impl Future<Output = Admission> + Send;

    /// When this connection ends if it has no WebSocket by then, whatever it is doing. Asked once at each step on its way there.
    fn deadline(&self) -> Instant;

    fn upgraded(&self, result: Upgrade);

    /// A request was turned away for its host or origin ([`Upgrade::Host`], [`Upgrade::Origin`]), which are as the client says.
    fn refused(&self, why: Upgrade, source: &Source, origin: &str, host: &str);

    fn answered(&self, route: Route, status: u16);
}
