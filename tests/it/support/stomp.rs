//! A STOMP client for tests: says exactly what it is told to, and reads frames one at a time with a deadline.
//! Strict in what it reads: every WebSocket message must be one whole frame or one heart-beat.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::{SinkExt, StreamExt};
use stomp_relay::stomp::{Decoder, Escapes, Frame, Item, Limits};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

/// Longest wait for something that must come.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// How long a test looks before it believes that nothing comes.
pub const QUIET: Duration = Duration::from_millis(300);

const PROTOCOLS: &str = "v12.stomp, v11.stomp, v10.stomp";

trait Socket: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Socket for S {}

/// What the relay is to use for its messages: `websocket.frames`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    Auto,
    Binary,
}

pub struct Client {
    frames: Frames,
    /// Frames that `expect` passed over are errors, so nothing is kept here but the socket.
    socket: WebSocketStream<Box<dyn Socket>>,
}

/// What came from the relay.
#[derive(Debug)]
pub enum Received {
    Close(u16, String),
    Frame(Frame),
    Heartbeat,
}

impl Client {
    /// Opens a WebSocket in the clear.
    pub async fn open(url: &str) -> Client {
        Client::open_offering(url, PROTOCOLS).await
    }

    /// The same with these sub-protocols.
    pub async fn open_offering(url: &str, protocols: &str) -> Client {
        let stream = TcpStream::connect(address(url)).await.expect("the relay listens");
        Client::upgrade(url, Box::new(stream), protocols, &[]).await
    }

    /// Opens a WebSocket in the clear with further headers in its request.
    pub async fn open_with(url: &str, headers: &[(&'static str, &str)]) -> Client {
        let stream = TcpStream::connect(address(url)).await.expect("the relay listens");
        Client::upgrade(url, Box::new(stream), PROTOCOLS, headers).await
    }

    /// Opens a WebSocket over TLS, trusting the authority in the PEM file `ca`.
    pub async fn open_tls(url: &str, ca: &Path) -> Client {
        Client::open_tls_offering(url, ca, PROTOCOLS).await
    }

    /// The same with these sub-protocols.
    pub async fn open_tls_offering(url: &str, ca: &Path, protocols: &str) -> Client {
        let stream = TcpStream::connect(address(url)).await.expect("the relay listens");
        Client::upgrade(url, Box::new(Client::handshake(stream, ca).await), protocols, &[]).await
    }

    /// TLS for `localhost` on a connection that is there already.
    pub async fn handshake(stream: TcpStream, ca: &Path) -> tokio_rustls::client::TlsStream<TcpStream> {
        use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca).expect("the CA file can be read") {
            roots.add(certificate.expect("the CA file is PEM")).expect("the CA is a certificate");
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider knows TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").expect("a name");
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        connector.connect(name, stream).await.expect("the handshake succeeds")
    }

    /// Opens a WebSocket on a connection that is there already.
    pub async fn over(
        url: &str,
        stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    ) -> Client {
        Client::upgrade(url, Box::new(stream), PROTOCOLS, &[]).await
    }

    /// The same as a browser does for a page of this origin.
    pub async fn over_as_page(
        url: &str,
        origin: &str,
        stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    ) -> Client {
        let mut request = url.into_client_request().expect("a URL");
        request.headers_mut().insert("Origin", origin.parse().expect("a header value"));
        Client::upgrade(request, Box::new(stream), PROTOCOLS, &[]).await
    }

    async fn upgrade(
        request: impl IntoClientRequest,
        stream: Box<dyn Socket>,
        protocols: &str,
        headers: &[(&'static str, &str)],
    ) -> Client {
        let mut request = request.into_client_request().expect("a URL");
        let protocols = protocols.parse().expect("a header value");
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocols);
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().expect("a header value"));
        }
        // Tests of large messages need more than the 16 MiB that are the default.
        let sizes = WebSocketConfig::default().max_frame_size(None).max_message_size(None);
        let upgrade = client_async_with_config(request, stream, Some(sizes));
        let (socket, response) = upgrade.await.expect("the upgrade succeeds");
        assert_eq!(response.headers()["sec-websocket-protocol"], "v12.stomp");
        Client { frames: Frames::Auto, socket }
    }

    /// Opens a WebSocket where that may fail, and logs in as guest. The error says at which step.
    pub async fn log_in(url: &str) -> Result<Client, String> {
        let stream = TcpStream::connect(address(url)).await.map_err(|error| format!("connect: {error}"))?;
        let mut request = url.into_client_request().expect("a URL");
        request.headers_mut().insert("Sec-WebSocket-Protocol", PROTOCOLS.parse().expect("a header value"));
        let stream: Box<dyn Socket> = Box::new(stream);
        let (socket, _) =
            client_async_with_config(request, stream, None).await.map_err(|error| format!("upgrade: {error}"))?;
        let mut client = Client { frames: Frames::Auto, socket };
        client.try_send("CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n").await?;
        match client.next().await {
            Received::Frame(frame) if frame.command.as_str() == "CONNECTED" => Ok(client),
            other => Err(format!("login: {other:?}")),
        }
    }

    /// From now on every message must be of the type that this setting means.
    pub fn expecting(mut self, frames: Frames) -> Client {
        self.frames = frames;
        self
    }

    /// Sends a frame given as text; the NUL is added. `\n\n` ends the headers, as in STOMP.
    pub async fn send(&mut self, frame: &str) {
        let mut bytes = frame.as_bytes().to_vec();
        bytes.push(0);
        self.send_bytes(&bytes).await;
    }

    /// One binary message with exactly these bytes.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        self.send_message(Message::Binary(bytes.to_vec().into())).await;
    }

    pub async fn send_message(&mut self, message: Message) {
        tokio::time::timeout(DEADLINE, self.socket.send(message)).await.expect("written in time").expect("written");
    }

    /// As [`Client::send`], to a relay that may have closed.
    pub async fn try_send(&mut self, frame: &str) -> Result<(), String> {
        self.try_send_bytes(&[frame.as_bytes(), b"\0"].concat()).await
    }

    /// As [`Client::send_bytes`], to a relay that may have closed.
    pub async fn try_send_bytes(&mut self, bytes: &[u8]) -> Result<(), String> {
        let sending = self.socket.send(Message::Binary(bytes.to_vec().into()));
        let sent = tokio::time::timeout(DEADLINE, sending).await.expect("written or refused in time");
        sent.map_err(|error| error.to_string())
    }

    /// The next thing, whatever it is.
    ///
    /// # Panics
    /// Nothing came within [`DEADLINE`].
    pub async fn receive(&mut self) -> Received {
        tokio::time::timeout(DEADLINE, self.next()).await.expect("something comes within the deadline")
    }

    /// The same without a deadline; may be dropped at any point without losing anything.
    pub async fn next(&mut self) -> Received {
        match self.next_message().await {
            Ok(bytes) => decode(&bytes),
            Err((code, reason)) => Received::Close(code, reason),
        }
    }

    /// The bytes of the next message, or code and reason of the close.
    async fn next_message(&mut self) -> Result<bytes::Bytes, (u16, String)> {
        loop {
            return match self.socket.next().await {
                None => Err((1006, "end of stream".to_owned())),
                Some(Err(error)) => Err((1006, error.to_string())),
                Some(Ok(Message::Text(text))) => {
                    std::str::from_utf8(text.as_bytes()).expect("text messages are UTF-8");
                    assert_eq!(self.frames, Frames::Auto, "everything goes as binary: {text}");
                    Ok(bytes::Bytes::from(text))
                }
                Some(Ok(Message::Binary(bytes))) => {
                    let needed = self.frames == Frames::Binary || std::str::from_utf8(&bytes).is_err();
                    assert!(needed, "what is UTF-8 goes as text");
                    Ok(bytes)
                }
                Some(Ok(Message::Close(frame))) => {
                    let frame = frame.map(|frame| (frame.code, frame.reason.to_string()));
                    let (code, reason) = frame.unwrap_or((CloseCode::Status, String::new()));
                    Err((code.into(), reason))
                }
                Some(Ok(_)) => continue,
            };
        }
    }

    /// The next message as it stands on the wire, heart-beats passed over.
    pub async fn raw(&mut self) -> String {
        loop {
            let message = tokio::time::timeout(DEADLINE, self.next_message()).await.expect("something comes");
            match message.expect("a frame, not the end") {
                beat if &*beat == b"\n" => {}
                bytes => return String::from_utf8(bytes.into()).expect("UTF-8"),
            }
        }
    }

    /// Says the WebSocket goodbye without STOMP's DISCONNECT; the code that is answered.
    pub async fn close(mut self) -> u16 {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        self.socket.close(Some(frame)).await.expect("written");
        self.closed().await.0
    }

    /// The next frame, heart-beats passed over.
    pub async fn frame(&mut self) -> Frame {
        loop {
            match self.receive().await {
                Received::Close(code, reason) => panic!("closed with {code} {reason} instead of a frame"),
                Received::Frame(frame) => return frame,
                Received::Heartbeat => {}
            }
        }
    }

    /// The next frame, which must have this command.
    pub async fn expect(&mut self, command: &str) -> Frame {
        let frame = self.frame().await;
        let body = String::from_utf8_lossy(&frame.body);
        assert_eq!(frame.command.as_str(), command, "got {:?} {body}", frame.headers);
        frame
    }

    /// The next frame, which must be this RECEIPT.
    pub async fn receipt(&mut self, id: &str) {
        assert_eq!(self.expect("RECEIPT").await.header("receipt-id"), Some(id));
    }

    /// The next frame, which must be a MESSAGE with this body.
    pub async fn message(&mut self, body: &str) -> Frame {
        let frame = self.expect("MESSAGE").await;
        assert_eq!(String::from_utf8_lossy(&frame.body), body, "{:?}", frame.headers);
        frame
    }

    /// The next frame, which must be an ERROR with this message.
    pub async fn error(&mut self, message: &str) -> Frame {
        let frame = self.expect("ERROR").await;
        assert_eq!(frame.header("message"), Some(message), "{}", String::from_utf8_lossy(&frame.body));
        frame
    }

    /// The close frame, which must be next; its code and reason.
    pub async fn closed(&mut self) -> (u16, String) {
        loop {
            match self.receive().await {
                Received::Close(code, reason) => return (code, reason),
                Received::Frame(frame) => panic!("{} instead of the close", frame.command.as_str()),
                Received::Heartbeat => {}
            }
        }
    }

    /// Nothing but heart-beats comes for [`QUIET`].
    pub async fn quiet(&mut self) {
        let end = tokio::time::Instant::now() + QUIET;
        while let Ok(received) = tokio::time::timeout_at(end, self.next()).await {
            assert!(matches!(received, Received::Heartbeat), "nothing should come, but {received:?}");
        }
    }

    /// Subscribes and waits for the receipt.
    pub async fn subscribe(&mut self, headers: &str) {
        self.send(&format!("SUBSCRIBE\n{headers}\nreceipt:subscribed\n\n")).await;
        self.receipt("subscribed").await;
    }

    /// DISCONNECT with a receipt, to the end.
    pub async fn disconnect(mut self) {
        self.send("DISCONNECT\nreceipt:bye\n\n").await;
        self.receipt("bye").await;
        assert_eq!(self.closed().await.0, 1000);
    }
}

fn decode(bytes: &[u8]) -> Received {
    let mut decoder = Decoder::new(Limits { frame_bytes_max: usize::MAX, ..Limits::default() }, Escapes::All);
    let mut buffer = BytesMut::from(bytes);
    match decoder.decode(&mut buffer).expect("the relay writes STOMP") {
        None => panic!("a message without a whole frame: {bytes:?}"),
        Some(Item::Heartbeat) => Received::Heartbeat,
        // Server frames other than SEND have a body by content-length; the decoder reads that for SEND alone.
        Some(Item::Frame(frame)) => Received::Frame(with_body(frame, bytes)),
    }
}

/// MESSAGE and ERROR bodies may hold NULs: the body is what stands between the empty line and the last NUL.
fn with_body(mut frame: Frame, bytes: &[u8]) -> Frame {
    let start = bytes.windows(2).position(|pair| pair == b"\n\n").expect("an empty line") + 2;
    let body = bytes[start..].strip_suffix(b"\0\n").expect("a frame ends with NUL and line feed");
    assert_eq!(frame.header("content-length").map_or(0, |length| length.parse().expect("a number")), body.len());
    frame.body = bytes::Bytes::copy_from_slice(body);
    frame
}

/// `host:port` of a URL.
pub fn address(url: &str) -> String {
    let rest = url.split("://").nth(1).expect("a URL");
    rest.split('/').next().expect("a host").to_owned()
}
