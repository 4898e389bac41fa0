//! Connections that come to nothing: whatever a stranger leaves half done, it is gone in time and its place is free.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{has_metric, relay};
use crate::support::condition::eventually;
use crate::support::raw_http::upgrade;
use crate::support::stomp::address;

const SETTINGS: &str = "[tls]\nhandshake_timeout = \"400ms\"\n[http]\nhead_timeout = \"400ms\"\n\
                        [session]\nlogin_timeout = \"400ms\"\n[websocket]\nping_interval = \"300ms\"\npong_timeout = \"200ms\"\n";

/// The beginning of a TLS handshake that never goes on.
const HALF_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

#[tokio::test]
async fn half_open_connections_are_reaped() {
    let relay = relay(SETTINGS);
    let announced = super::relay(&format!("{SETTINGS}[proxy]\nprotocol_from = [\"127.0.0.1\"]\n"));
    let upgraded = upgrade("/ws", "");
    for (what, relay, url, sent) in [
        ("silence", &relay, &relay.ws, &b""[..]),
        ("silence before TLS", &relay, &relay.wss, b""),
        ("half a ClientHello", &relay, &relay.wss, HALF_HELLO),
        ("half a request", &relay, &relay.ws, &upgraded.as_bytes()[..40]),
        ("a WebSocket that says nothing and answers no ping", &relay, &relay.ws, upgraded.as_bytes()),
        ("no PROXY header", &announced, &announced.ws, b""),
        ("half a PROXY header", &announced, &announced.ws, b"PROXY TCP4 1.1.1.1"),
        ("half a PROXY header of version 2", &announced, &announced.wss, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"),
        ("a PROXY header and silence", &announced, &announced.wss, b"PROXY UNKNOWN\r\n"),
    ] {
        let start = Instant::now();
        let mut stream = TcpStream::connect(address(url)).await.unwrap();
        stream.write_all(sent).await.unwrap();
        eventually(&format!("in: {what}"), async || has_metric(relay, "connections 1").await).await;
        // The client neither reads nor closes: it is as good as gone.
        eventually(&format!("reaped: {what}"), async || has_metric(relay, "connections 0").await).await;
        let elapsed = start.elapsed();
        assert!(elapsed >= Duration::from_millis(300), "{what}: not given its time, {elapsed:?}");
        drop(stream);
    }
}

#[tokio::test]
async fn a_trickle_does_not_put_the_deadline_off() {
    let relay = relay(SETTINGS);
    let trickled = [HALF_HELLO, &[1; 100]].concat();
    for (url, bytes) in [(&relay.ws, upgrade("/ws", "").into_bytes()), (&relay.wss, trickled)] {
        let mut stream = TcpStream::connect(address(url)).await.unwrap();
        let trickle = async {
            for byte in bytes {
                if stream.write_all(&[byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let start = Instant::now();
        trickle.await;
        assert!(start.elapsed() < Duration::from_secs(4), "all was read: {:?}", start.elapsed());
        eventually("reaped", async || has_metric(&relay, "connections 0").await).await;
    }
}
