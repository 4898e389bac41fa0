//! Request heads that are no WebSocket handshake, or try to be two things at once: each is answered or closed, nothing that
//! is not a proper handshake opens a WebSocket, and the relay serves the next one.

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::relay;
use crate::support::process::Process;
use crate::support::raw_http::{upgrade, within};
use crate::support::stomp::address;

/// What comes back: the status, or 0 if the connection is closed without an answer.
async fn status(url: &str, bytes: &[u8]) -> u16 {
    let mut socket = TcpStream::connect(address(url)).await.unwrap();
    // The relay may have seen enough before the end.
    let _ = socket.write_all(bytes).await;
    let mut line = String::new();
    let _ = within("an answer or the end", BufReader::new(socket).read_line(&mut line)).await;
    assert!(line.is_empty() || line.starts_with("HTTP/1."), "{line}");
    line.split(' ').nth(1).map_or(0, |code| code.parse().unwrap())
}

#[tokio::test]
async fn hostile_heads_open_nothing() {
    // What is answered is then closed soon, whatever it was.
    let relay = relay("[http]\nhead_timeout = \"300ms\"\n[session]\nlogin_timeout = \"300ms\"\n");
    let good = upgrade("/ws", "");
    let with = |line: &str| upgrade("/ws", &format!("{line}\r\n")).into_bytes();
    let big = |bytes: usize| with(&format!("X: {}", "x".repeat(bytes)));
    let cases: Vec<(&str, Vec<u8>, &[u16])> = vec![
        ("nothing", Vec::new(), &[0]),
        ("one byte", b"G".to_vec(), &[0, 400]),
        ("only line ends", b"\r\n\r\n\r\n".to_vec(), &[0, 400]),
        ("no head's end", good.trim_end().as_bytes().to_vec(), &[0, 400]),
        ("a NUL in a value", with("X: a\0b"), &[400]),
        ("a NUL in a name", with("X\0: a"), &[400]),
        ("a bare CR in a value", with("X: a\rInjected: b"), &[400]),
        ("a folded line", with("X: a\r\n b"), &[400]),
        ("a blank before the colon", with("X : a"), &[400]),
        ("a name without a colon", with("X"), &[400]),
        ("an empty name", with(": a"), &[400]),
        ("bytes beyond ASCII in a name", with("X\u{e9}: a"), &[400]),
        ("a body and an upgrade", with("Content-Length: 5"), &[400]),
        ("two lengths", with("Content-Length: 5\r\nContent-Length: 6"), &[400]),
        ("a negative length", with("Content-Length: -1"), &[400]),
        ("length and chunks", with("Content-Length: 5\r\nTransfer-Encoding: chunked"), &[400]),
        ("chunks", with("Transfer-Encoding: chunked"), &[400]),
        ("an unknown coding", with("Transfer-Encoding: x"), &[400]),
        ("a head over the limit", big(20_000), &[0, 431]),
        ("too many lines", with(&"X: a\r\n".repeat(100)), &[431]),
        ("HTTP/1.0", good.replace("HTTP/1.1", "HTTP/1.0").into_bytes(), &[400]),
        ("HTTP/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), &[0, 400, 505]),
        ("HTTP/9.9", good.replace("HTTP/1.1", "HTTP/9.9").into_bytes(), &[0, 400, 505]),
        ("no version", b"GET /ws\r\n\r\n".to_vec(), &[0, 400]),
        ("a blank too many", good.replace("GET /ws", "GET  /ws").into_bytes(), &[0, 400]),
        ("CONNECT", good.replace("GET /ws", "CONNECT relay:443").into_bytes(), &[400, 404, 405]),
        ("OPTIONS", good.replace("GET", "OPTIONS").into_bytes(), &[405]),
        ("lower case", good.replace("GET", "get").into_bytes(), &[405]),
        ("a method of 5000 letters", good.replace("GET", &"G".repeat(5000)).into_bytes(), &[0, 400, 405]),
        (
            "a target of 70,000 bytes",
            good.replace("/ws", &format!("/{}", "w".repeat(70_000))).into_bytes(),
            &[0, 414, 431],
        ),
        ("a target with a NUL", good.replace("/ws", "/w\0s").into_bytes(), &[0, 400]),
        ("another path", good.replace("/ws", "/ws/../ws").into_bytes(), &[421]),
        ("an escaped path", good.replace("/ws", "/%77s").into_bytes(), &[421]),
        ("two keys", with("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), &[400]),
        ("two versions", with("Sec-WebSocket-Version: 13"), &[426]),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), &[0]),
        ("STOMP", b"CONNECT\naccept-version:1.2\nhost:/\n\n\0".to_vec(), &[0, 400]),
        ("PROXY", b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n\r\n".to_vec(), &[0, 400]),
        ("random bytes", (0..=255).cycle().take(4000).collect(), &[0, 400]),
    ];
    for (what, bytes, expected) in cases {
        let status = status(&relay.ws, &bytes).await;
        assert!(expected.contains(&status), "{what}: {status}");
        assert_eq!(self::status(&relay.ws, good.as_bytes()).await, 101, "after {what}");
    }
}

#[tokio::test]
async fn no_header_forges_a_line_of_the_log() {
    let arguments =
        ["serve", "--listen", "ws://127.0.0.1:0/ws", "--admin", "127.0.0.1:0", "--broker", "amqp://127.0.0.1:1"];
    for format in ["pretty", "json"] {
        let environment = [
            ("STOMP_RELAY_LOG__FORMAT", format),
            ("STOMP_RELAY_LOG__LEVEL", "debug"),
            ("STOMP_RELAY_HTTP__HEAD_TIMEOUT", "300ms"),
            ("STOMP_RELAY_HTTP__ORIGINS", "https://app.example.com,null"),
            ("STOMP_RELAY_SESSION__LOGIN_TIMEOUT", "300ms"),
        ];
        let mut process = Process::start(&arguments, &environment);
        let url = process.ready().urls.remove(0);
        let hostile = "https://a\tERROR forged\" \\\u{202e}\u{85}";
        let lines = [
            format!("Origin: {hostile}\r\n"),
            format!("Origin: null\r\nUser-Agent: {hostile}\r\nX-Forwarded-For: {hostile}\r\n"),
            format!("Origin: null\r\nForwarded: for=\"{hostile}\"\r\n").replace("Host: example.com", hostile),
        ];
        for lines in &lines {
            status(&url, upgrade("/ws", lines).as_bytes()).await;
        }
        process.signal("TERM");
        let log = process.log.rest();
        assert!(log.contains("WebSocket refused"), "{log}");
        for character in ['\u{202e}', '\u{85}', '\t', '\r'] {
            assert!(!log.contains(character), "{character:?} in {log}");
        }
        assert!(log.lines().all(|line| !line.trim_start().starts_with("ERROR")), "{log}");
    }
}
