//! What strangers send, for the fuzz targets; compiled under `--cfg fuzzing` alone.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::gate::{Admission, Gate, Route, Upgrade};
use super::presented::{CookieConfig, PresentedConfig};
use super::source::{ProxyConfig, Source};
use super::stream::Stream;
use super::{HostConfig, ListenerConfig, Opcode, WebSocketConfig, http, proxy_protocol};

/// The only origin that the endpoint of [`knock`] allows.
pub const ORIGIN: &str = "https://app.example.com";

/// Turns of both sides before the client hangs up.
const TURNS: usize = 64;

/// The address of a PROXY protocol header, None for an error, and what is left behind it.
pub fn announced(bytes: &[u8]) -> (Option<Option<IpAddr>>, usize) {
    let mut rest = bytes;
    let result = proxy_protocol::read(&mut rest).now_or_never().expect("bytes in memory are always ready");
    (result.ok(), rest.len())
}

/// The same where the reader gets one byte at a time.
pub fn announced_byte_by_byte(bytes: &[u8]) -> (Option<Option<IpAddr>>, usize) {
    struct Drip<'a>(&'a [u8]);
    impl tokio::io::AsyncRead for Drip<'_> {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            buffer: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            if let ([first, rest @ ..], true) = (self.0, buffer.remaining() > 0) {
                buffer.put_slice(&[*first]);
                self.0 = rest;
            }
            std::task::Poll::Ready(Ok(()))
        }
    }
    let mut rest = Drip(bytes);
    let result = proxy_protocol::read(&mut rest).now_or_never().expect("bytes in memory are always ready");
    (result.ok(), rest.0.len())
}

/// What came of bytes that a client behind the trusted proxy 10.0.0.1 sent to `/ws`.
pub struct Knocked {
    pub answer: Vec<u8>,
    /// Origin and source of the WebSocket, if one was opened.
    pub opened: Option<(Option<String>, Source)>,
}

struct Open;

impl Gate for Open {
    async fn admit(&self, _: &Source) -> Admission {
        Admission::GoOn
    }

    fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn upgraded(&self, _: Upgrade) {}

    fn refused(&self, _: Upgrade, _: &Source, _: &str, _: &str) {}

    fn answered(&self, _: Route, _: u16) {}
}

/// Serves one connection on which these bytes come, in the runtime of the caller.
pub async fn knock(bytes: &[u8]) -> Knocked {
    let proxy = ProxyConfig { trusted: vec!["10.0.0.0/8".parse().expect("a network")], ..ProxyConfig::default() };
    let source = Source::direct(SocketAddr::from(([10, 0, 0, 1], 1)), &proxy);
    let config = Arc::new(ListenerConfig {
        path: "/ws".to_owned(),
        tls: None,
        tls_handshake_timeout: Duration::from_secs(60),
        head_timeout: Duration::from_secs(60),
        head_bytes_max: 8192,
        root: None,
        content_security_policy: String::new(),
        hosts: HostConfig::any(),
        origins: vec![ORIGIN.parse().expect("an origin")],
        proxy,
        strict_transport_security: None,
        presented: PresentedConfig {
            basic: true,
            bearer: true,
            cookie: Some(CookieConfig { name: "token".to_owned(), origins: vec![ORIGIN.to_owned()] }),
            subprotocol: true,
        },
        websocket: WebSocketConfig { message_bytes_max: 1000, opcode: Opcode::TextWhenUtf8 },
    });
    let (mut client, relay) = tokio::io::duplex(1 << 20);
    client.write_all(bytes).await.expect("there is room");
    let (stop, gate) = (CancellationToken::new(), Arc::new(Open));
    let mut serving = pin!(http::serve(Stream::Memory(relay), &config, &stop, source, &gate));
    let mut upgraded = None;
    for _ in 0..TURNS {
        tokio::select! {
            biased;
            served = &mut serving => { upgraded = Some(served); break }
            () = tokio::task::yield_now() => {}
        }
    }
    let mut answer = Vec::new();
    let _ = client.shutdown().await;
    let upgraded = match upgraded {
        Some(upgraded) => upgraded,
        None => serving.await,
    };
    let opened = upgraded.map(|upgraded| (upgraded.details.origin, upgraded.details.source));
    let _ = client.read_to_end(&mut answer).now_or_never();
    Knocked { answer, opened }
}
