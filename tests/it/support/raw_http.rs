//! A client that writes HTTP and WebSocket bytes by hand, so that a test can say exactly what is on the wire. It checks
//! nothing by itself.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// Every single step of a test ends within this time.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// Waits for `future`, but not for ever.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

/// A response head and body.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    /// All values of a header, given in lower case.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(have, _)| have == name).map(|(_, value)| value.as_str()).collect()
    }

    /// The value of a header that occurs once.
    pub fn one(&self, name: &str) -> &str {
        match self.all(name)[..] {
            [value] => value,
            ref values => panic!("{name}: {values:?}"),
        }
    }
}

/// A WebSocket frame from the server.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn close_code(&self) -> u16 {
        assert_eq!(self.opcode, CLOSE, "{self:?}");
        u16::from_be_bytes([self.payload[0], self.payload[1]])
    }
}

pub const CONTINUE: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;
/// Set on the last frame of a message.
pub const FIN: u8 = 0x80;

/// A masked frame with the first byte as given.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = frame_head(first, payload.len());
    let mask = [1, 2, 3, 4];
    bytes.extend_from_slice(&mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// The head of a masked frame, without the mask itself.
pub fn frame_head(first: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![first];
    match length {
        0..=125 => bytes.push(0x80 | length as u8),
        126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(0x80 | 127);
            bytes.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    bytes
}

/// The request of RFC 6455 section 1.2 with these further lines.
pub fn upgrade(target: &str, further: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{further}\r\n"
    )
}

pub struct RawClient {
    wire: Box<dyn Wire>,
}

impl RawClient {
    pub fn new(wire: impl Wire + 'static) -> Self {
        RawClient { wire: Box::new(wire) }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("send", async {
            self.wire.write_all(bytes.as_ref()).await.unwrap();
            self.wire.flush().await.unwrap();
        })
        .await;
    }

    /// Writes without judging the result: the server may close meanwhile.
    pub async fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.wire.write_all(bytes).await
    }

    /// Reads a response; the body as long as Content-Length says, none for 101 and for the answer to HEAD.
    pub async fn answer(&mut self, method: &str) -> Answer {
        within("an HTTP answer", async {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(self.wire.read_u8().await.expect("an answer before the end"));
            }
            let head = String::from_utf8(head).unwrap();
            let mut lines = head.trim_end().split("\r\n");
            let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
            let headers: Vec<_> = lines
                .map(|line| line.split_once(':').unwrap())
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                .collect();
            let mut answer = Answer { status, headers, body: String::new() };
            if status != 101 && method != "HEAD" {
                let mut body = vec![0; answer.one("content-length").parse().unwrap()];
                self.wire.read_exact(&mut body).await.unwrap();
                answer.body = String::from_utf8(body).unwrap();
            }
            answer
        })
        .await
    }

    pub async fn request(&mut self, method: &str, target: &str, headers: &str) -> Answer {
        self.send(format!("{method} {target} HTTP/1.1\r\nHost: example.com\r\n{headers}\r\n")).await;
        self.answer(method).await
    }

    /// Upgrades or fails.
    pub async fn upgraded(mut self) -> Self {
        self.send(upgrade("/ws", "")).await;
        assert_eq!(self.answer("GET").await.status, 101);
        self
    }

    pub async fn frame(&mut self) -> Frame {
        within("a WebSocket frame", async {
            let first = self.wire.read_u8().await.expect("a frame before the end");
            assert_eq!(first & 0xf0, FIN, "final, no reserved bits");
            let length = match self.wire.read_u8().await.unwrap() {
                126 => self.wire.read_u16().await.unwrap() as usize,
                127 => self.wire.read_u64().await.unwrap() as usize,
                masked if masked >= 0x80 => panic!("a server must not mask"),
                length => length as usize,
            };
            let mut payload = vec![0; length];
            self.wire.read_exact(&mut payload).await.unwrap();
            Frame { opcode: first & 0x0f, payload }
        })
        .await
    }

    /// All bytes until the server closes or resets.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = within("the end of the connection", self.wire.read_to_end(&mut bytes)).await;
        bytes
    }
}
