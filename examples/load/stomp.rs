//! A STOMP 1.2 client over WebSocket that is cheap: frames are fed and flushed together, and read as many as are there.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, SinkExt, StreamExt};
use stomp_relay::stomp::{Command, Decoder, Escapes, Frame, Item, Limits, encode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::Unusable;

/// Longest wait for an answer.
pub const ANSWER: Duration = Duration::from_secs(60);

/// Frames written or read at a stretch.
pub const BATCH: usize = 256;

/// Buffers of a session that has traffic, and of one that has next to none.
const BUSY_BYTES: usize = 64 << 10;
const IDLE_BYTES: usize = 1 << 10;

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// Where sessions go, and as whom.
#[derive(Clone)]
pub struct Endpoint {
    address: String,
    host: String,
    passcode: String,
    login: String,
    tls: Option<TlsConnector>,
    url: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    Busy,
    Little,
}

pub struct Session {
    socket: WebSocketStream<Box<dyn Socket>>,
    decoder: Decoder,
    input: BytesMut,
    output: BytesMut,
    /// Came while an answer was awaited: what a queue holds may overtake the receipt of its SUBSCRIBE.
    early: VecDeque<Frame>,
    /// The server closed with 1000.
    closed_normally: bool,
}

/// Why a session ended although nobody here ended it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CutOff(pub String);

impl CutOff {
    fn because(error: impl std::fmt::Display) -> CutOff {
        CutOff(error.to_string())
    }
}

impl Endpoint {
    /// # Errors
    /// The URL or the CA file is of no use.
    pub fn new(url: &str, ca: Option<&Path>, login: &str, passcode: &str) -> Result<Endpoint, Unusable> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| Unusable(format!("{url}: not a URL")))?;
        let address = rest.split('/').next().unwrap_or_default();
        let host = address.rsplit_once(':').map(|(host, _)| host.trim_matches(['[', ']']));
        let host = host.ok_or_else(|| Unusable(format!("{url}: has no port")))?;
        let tls = match (scheme, ca) {
            ("ws", _) => None,
            ("wss", Some(ca)) => Some(connector(ca)?),
            ("wss", None) => return Err(Unusable("wss needs --ca".to_owned())),
            _ => return Err(Unusable(format!("{url}: neither ws:// nor wss://"))),
        };
        Ok(Endpoint {
            address: address.to_owned(),
            host: host.to_owned(),
            passcode: passcode.to_owned(),
            login: login.to_owned(),
            tls,
            url: url.to_owned(),
        })
    }

    /// Opens a WebSocket and logs in. `heart_beat` in seconds, both ways; 0: none.
    pub async fn log_in(&self, heart_beat: u64, traffic: Traffic) -> Result<Session, Unusable> {
        let opened = timeout(ANSWER, self.open(heart_beat, traffic)).await;
        opened.unwrap_or_else(|_| Err("no answer".into())).map_err(|error| Unusable::because(&self.url, error))
    }

    async fn open(&self, heart_beat: u64, traffic: Traffic) -> Result<Session, Box<dyn std::error::Error>> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let stream: Box<dyn Socket> = match &self.tls {
            None => Box::new(stream),
            Some(tls) => Box::new(tls.connect(ServerName::try_from(self.host.clone())?, stream).await?),
        };
        let mut request = self.url.as_str().into_client_request()?;
        request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static("v12.stomp"));
        let bytes = if traffic == Traffic::Busy { BUSY_BYTES } else { IDLE_BYTES };
        let config = WebSocketConfig::default().read_buffer_size(bytes).write_buffer_size(bytes);
        let (socket, _) = client_async_with_config(request, stream, Some(config)).await?;
        let limits = Limits { frame_bytes_max: 64 << 20, ..Limits::default() };
        let decoder = Decoder::new(limits, Escapes::All);
        let mut session = Session {
            socket,
            decoder,
            input: BytesMut::new(),
            output: BytesMut::new(),
            early: VecDeque::new(),
            closed_normally: false,
        };
        let beat = heart_beat * 1000;
        let connect = Frame::new(Command::Connect)
            .with_header("accept-version", "1.2")
            .with_header("host", "/")
            .with_header("heart-beat", &format!("{beat},{beat}"))
            .with_header("login", &self.login)
            .with_header("passcode", &self.passcode);
        session.feed(&connect).await?;
        session.flush().await?;
        session.expect(Command::Connected).await?;
        Ok(session)
    }
}

fn connector(ca: &Path) -> Result<TlsConnector, Unusable> {
    let unusable = |error: &dyn std::fmt::Display| Unusable::because(&ca.display().to_string(), error);
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|error| unusable(&error))? {
        roots.add(certificate.map_err(|error| unusable(&error))?).map_err(|error| unusable(&error))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Every session is another user's browser: none has a ticket.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

impl Session {
    /// Into the buffer only; it is written when that is full, or by `flush`.
    pub async fn feed(&mut self, frame: &Frame) -> Result<(), CutOff> {
        encode(frame, &mut self.output);
        let text = Utf8Bytes::try_from(self.output.split().freeze()).map_err(CutOff::because)?;
        self.socket.feed(Message::Text(text)).await.map_err(CutOff::because)
    }

    pub async fn flush(&mut self) -> Result<(), CutOff> {
        self.socket.flush().await.map_err(CutOff::because)
    }

    pub async fn beat(&mut self) -> Result<(), CutOff> {
        self.socket.send(Message::Text(Utf8Bytes::from_static("\n"))).await.map_err(CutOff::because)
    }

    /// The next frame; heart-beats and pings are passed over. Nothing is lost if this is dropped while it waits.
    pub async fn next(&mut self) -> Result<Frame, CutOff> {
        match self.early.pop_front() {
            Some(frame) => Ok(frame),
            None => self.read().await,
        }
    }

    async fn read(&mut self) -> Result<Frame, CutOff> {
        loop {
            if let Some(item) = self.decoder.decode(&mut self.input).map_err(CutOff::because)? {
                match item {
                    Item::Heartbeat => continue,
                    Item::Frame(frame) if frame.command == Command::Error => {
                        let message = frame.header("message").unwrap_or_default();
                        return Err(CutOff(format!("ERROR {message}: {}", String::from_utf8_lossy(&frame.body))));
                    }
                    Item::Frame(frame) => return Ok(frame),
                }
            }
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => self.input.extend_from_slice(text.as_bytes()),
                Some(Ok(Message::Binary(bytes))) => self.input.extend_from_slice(&bytes),
                Some(Ok(Message::Close(close))) => {
                    self.closed_normally = close.as_ref().is_some_and(|close| close.code == CloseCode::Normal);
                    return Err(CutOff(format!("closed: {close:?}")));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(CutOff::because(error)),
                None => return Err(CutOff("closed".to_owned())),
            }
        }
    }

    /// The next frame if it has arrived already.
    pub fn next_now(&mut self) -> Option<Result<Frame, CutOff>> {
        self.next().now_or_never()
    }

    /// Waits for a frame with this command; others are kept for `next`.
    async fn expect(&mut self, command: Command) -> Result<Frame, CutOff> {
        loop {
            let frame = self.read().await?;
            if frame.command == command {
                return Ok(frame);
            }
            self.early.push_back(frame);
        }
    }

    /// Subscribes and waits until that is established.
    pub async fn subscribe(&mut self, subscription: &Frame) -> Result<(), CutOff> {
        self.feed(&subscription.clone().with_header("receipt", "subscribed")).await?;
        self.flush().await?;
        timeout(ANSWER, self.expect(Command::Receipt)).await.map_err(CutOff::because)?.map(drop)
    }

    /// DISCONNECT, and waits until the server has taken all that was sent before. It says so by the receipt; Web STOMP before
    /// RabbitMQ 3.10.14 and 3.11.7 loses that one, and only closes.
    pub async fn leave(mut self) -> Result<(), CutOff> {
        self.feed(&Frame::new(Command::Disconnect).with_header("receipt", "bye")).await?;
        self.flush().await?;
        match timeout(ANSWER, self.await_goodbye()).await.map_err(CutOff::because)? {
            Err(_) if self.closed_normally => Ok(()),
            result => result,
        }
    }

    async fn await_goodbye(&mut self) -> Result<(), CutOff> {
        while self.next().await?.header("receipt-id") != Some("bye") {}
        Ok(())
    }
}

/// A subscription's frame.
pub fn subscription(destination: &str, ack: &str, prefetch: Option<u16>) -> Frame {
    let frame = Frame::new(Command::Subscribe)
        .with_header("id", "0")
        .with_header("destination", destination)
        .with_header("ack", ack);
    match prefetch {
        Some(count) => frame.with_header("prefetch-count", &count.to_string()),
        None => frame,
    }
}

/// A message; `receipt` is its receipt's id.
pub fn send(destination: &str, receipt: Option<u64>, body: Bytes) -> Frame {
    let mut frame = Frame::new(Command::Send).with_header("destination", destination);
    if let Some(number) = receipt {
        frame = frame.with_header("receipt", &number.to_string());
    }
    frame.body = body;
    frame
}
