//! A listening socket in front of `serve_connection`, which hands each opened WebSocket to the test.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use stomp_relay::listener::{
    Admission, Event, Gate, HostConfig, Incoming, ListenerConfig, Opcode, Opened, PresentedConfig, ProxyConfig, Read,
    Route, Source, Upgrade, WebSocket, WebSocketConfig, Write, serve_connection, tcp,
};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::raw_http::{RawClient, within};

/// Largest message that the servers of these tests accept.
pub const MESSAGE_MAX: usize = 1000;

pub fn config() -> ListenerConfig {
    ListenerConfig {
        path: "/ws".into(),
        tls: None,
        tls_handshake_timeout: Duration::from_secs(10),
        head_timeout: Duration::from_secs(10),
        head_bytes_max: 8192,
        root: None,
        content_security_policy: "default-src 'self'".into(),
        hosts: HostConfig::any(),
        origins: vec!["*".parse().unwrap()],
        proxy: ProxyConfig::default(),
        strict_transport_security: None,
        presented: PresentedConfig::default(),
        websocket: WebSocketConfig { message_bytes_max: MESSAGE_MAX, opcode: Opcode::TextWhenUtf8 },
    }
}

/// Stops with its last connection when it is dropped.
pub struct Server {
    pub address: SocketAddr,
    pub stop: CancellationToken,
    opened: mpsc::UnboundedReceiver<(WebSocket, Opened)>,
    /// One message for each serve_connection that came back.
    served: mpsc::UnboundedReceiver<()>,
    _accepting: JoinSet<()>,
}

impl Server {
    pub fn start(config: ListenerConfig) -> Self {
        let listener = tcp::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let (opened_tx, opened) = mpsc::unbounded_channel();
        let (served_tx, served) = mpsc::unbounded_channel();
        let (config, stop) = (Arc::new(config), CancellationToken::new());
        let stop_all = stop.clone();
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, peer) = listener.accept().await.unwrap();
                let (config, stop) = (config.clone(), stop_all.clone());
                let (opened, served) = (opened_tx.clone(), served_tx.clone());
                connections.spawn(async move {
                    let on_open = move |websocket, details| {
                        opened.send((websocket, details)).unwrap();
                        std::future::ready(())
                    };
                    serve_connection(socket, peer, config, stop, Arc::new(Open), on_open).await;
                    let _ = served.send(());
                });
            }
        });
        Server { address, stop, opened, served, _accepting: accepting }
    }

    pub async fn connect(&self) -> TcpStream {
        within("connect", TcpStream::connect(self.address)).await.unwrap()
    }

    pub async fn raw(&self) -> RawClient {
        RawClient::new(self.connect().await)
    }

    /// The WebSocket that was opened next.
    pub async fn opened(&mut self) -> (WebSocket, Opened) {
        within("an upgrade", self.opened.recv()).await.unwrap()
    }

    /// A raw client after its upgrade and the server's end of it.
    pub async fn pair(&mut self) -> (RawClient, WebSocket) {
        let client = self.raw().await.upgraded().await;
        (client, self.opened().await.0)
    }

    /// Waits until one more serve_connection has come back.
    pub async fn one_served(&mut self) {
        within("the end of serve_connection", self.served.recv()).await.unwrap();
    }
}

/// Lets everybody in.
pub struct Open;

impl Gate for Open {
    async fn admit(&self, _: &Source) -> Admission {
        Admission::GoOn
    }

    fn deadline(&self) -> std::time::Instant {
        std::time::Instant::now() + Duration::from_secs(300)
    }

    fn upgraded(&self, _: Upgrade) {}

    fn refused(&self, _: Upgrade, _: &Source, _: &str, _: &str) {}

    fn answered(&self, _: Route, _: u16) {}
}

/// Echoes until the peer closes, then closes.
pub async fn echo(mut websocket: WebSocket) {
    loop {
        match within("echo", websocket.drive(Read::Yes, Write::Yes)).await.unwrap() {
            Event::Incoming(Incoming::Data(bytes)) => websocket.queue(bytes.freeze()),
            Event::Incoming(Incoming::Closed { .. }) => break,
            Event::Incoming(Incoming::Activity | Incoming::Pong) | Event::Flushed => {}
        }
    }
    websocket.close(1000, "", Duration::from_secs(5)).await;
}

/// A folder of its own, removed in the end.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("stomp-relay-front-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }

    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, contents).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
