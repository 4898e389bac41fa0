//! Which web pages may connect, seen from the wire and in the log.

use tokio::net::TcpStream;

use super::{has_metric, relay};
use crate::support::process::Process;
use crate::support::raw_http::{Answer, RawClient, upgrade};
use crate::support::stomp::address;

/// By the name that the requests here call it.
const KNOWN: &str = "[http]\nhosts = [\"example.com\"]\n";

/// The answer to an upgrade with these further lines; `Host` is example.com.
async fn knock(url: &str, lines: &str) -> Answer {
    knock_with(url, &upgrade("/ws", lines)).await
}

async fn knock_with(url: &str, request: &str) -> Answer {
    let mut client = RawClient::new(TcpStream::connect(address(url)).await.unwrap());
    client.send(request).await;
    client.answer("GET").await
}

#[tokio::test]
async fn pages_of_the_same_origin_and_programs_may_connect() {
    let relay = relay(KNOWN);
    for lines in ["", "Origin: http://example.com\r\n", "Origin: http://example.com:80\r\n"] {
        assert_eq!(knock(&relay.ws, lines).await.status, 101, "{lines}");
    }
    for lines in [
        "Origin: https://example.com\r\n",
        "Origin: http://example.com:8080\r\n",
        "Origin: http://evil.example\r\n",
        "Origin: http://example.com.evil.example\r\n",
        "Origin: null\r\n",
        "Origin: \r\n",
        "Origin: http://example.com\r\nOrigin: http://evil.example\r\n",
        "Origin: http://example.com\u{e9}\r\n",
        // Nobody here is trusted to say that it was TLS.
        "Origin: https://example.com\r\nX-Forwarded-Proto: https\r\n",
    ] {
        let answer = knock(&relay.ws, lines).await;
        assert_eq!(answer.status, 403, "{lines}");
        assert!(answer.body.contains("http.origins"), "{}", answer.body);
    }
    assert!(has_metric(&relay, "ws_upgrades_total{result=\"accepted\"} 3").await);
    assert!(has_metric(&relay, "ws_upgrades_total{result=\"origin\"} 9").await);
    assert!(has_metric(&relay, "http_requests_total{route=\"websocket\",code=\"403\"} 9").await);
}

#[tokio::test]
async fn the_origin_comes_before_everything_else_of_the_handshake() {
    let relay = relay("");
    let evil = "Origin: https://evil.example\r\n";
    let wrong = [
        upgrade("/ws", evil).replace("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8"),
        upgrade("/ws", evil).replace("Upgrade: websocket\r\n", ""),
        upgrade("/ws", evil).replace("GET", "POST"),
        upgrade("/ws", evil).replace("HTTP/1.1", "HTTP/1.0"),
    ];
    for request in wrong {
        assert_eq!(knock_with(&relay.ws, &request).await.status, 403, "{request}");
    }
}

/// A page whose WebSocket was refused sees close code 1006 and nothing else; it may fetch the reason from the same address.
#[tokio::test]
async fn a_refused_page_may_read_why() {
    let relay = relay("[http]\norigins = [\"https://app.example.com\"]\n");
    let fetch = |origin: &str| format!("GET /ws HTTP/1.1\r\nHost: example.com\r\nOrigin: {origin}\r\n\r\n");
    let upgrade = |origin: &str| upgrade("/ws", &format!("Origin: {origin}\r\n"));
    let hostile = format!("https://{}", "x".repeat(300));
    for (request, status, told) in [
        (fetch("https://shop.example"), 403, "Pages of the origin https://shop.example may not connect here: "),
        (upgrade("https://shop.example"), 403, "Pages of the origin https://shop.example may not connect here: "),
        (fetch("null"), 403, "Pages of the origin null may not"),
        (fetch("https://a.example <b>"), 403, "Pages of the origin ? may not"),
        (fetch(&hostile), 403, "Pages of the origin ? may not"),
        (fetch("https://app.example.com"), 426, "This is a STOMP over WebSocket endpoint"),
    ] {
        let answer = knock_with(&relay.ws, &request).await;
        assert_eq!(answer.status, status, "{request}");
        assert!(answer.body.starts_with(told), "{}", answer.body);
        assert!(!answer.body.contains("app.example"), "it does not tell who may: {}", answer.body);
        for (name, value) in [
            ("access-control-allow-origin", "*"),
            ("vary", "Origin"),
            ("cache-control", "no-store"),
            ("content-type", "text/plain; charset=utf-8"),
            ("x-content-type-options", "nosniff"),
        ] {
            assert_eq!(answer.one(name), value, "{request}");
        }
        assert!(answer.all("access-control-allow-credentials").is_empty(), "{request}");
    }
    // Nothing else is for pages of other origins.
    let elsewhere = fetch("https://shop.example").replace("/ws", "/other");
    let elsewhere = elsewhere.replace("Host: example.com", "Host: localhost");
    for request in [upgrade("https://app.example.com"), elsewhere] {
        let answer = knock_with(&relay.ws, &request).await;
        assert!(answer.all("access-control-allow-origin").is_empty(), "{request}");
    }
}

#[tokio::test]
async fn a_list_says_which_pages_may_connect() {
    let settings = "[http]\norigins = [\"https://app.example.com\", \"https://*.partner.example\"]\n";
    let relay = relay(settings);
    for (origin, status) in [
        ("https://app.example.com", 101),
        ("https://a.b.partner.example", 101),
        ("http://app.example.com", 403),
        ("https://partner.example", 403),
        // The own host is not in the list.
        ("http://example.com", 403),
    ] {
        assert_eq!(knock(&relay.ws, &format!("Origin: {origin}\r\n")).await.status, status, "{origin}");
    }
    assert_eq!(knock(&relay.ws, "").await.status, 101, "a program sends none");
}

/// Libraries that name the address they connect to, and applications whose pages have a scheme of their own.
#[tokio::test]
async fn origins_of_libraries_and_applications_are_let_in() {
    let own = relay(KNOWN);
    for (origin, status) in [
        ("ws://example.com", 101),
        ("http://example.com/", 101),
        ("ws://example.com:80/", 101),
        ("wss://example.com", 403),
        ("ws://evil.example", 403),
        ("capacitor://localhost", 403),
    ] {
        assert_eq!(knock(&own.ws, &format!("Origin: {origin}\r\n")).await.status, status, "{origin}");
    }
    for origin in [
        "capacitor://localhost",
        "ionic://localhost",
        "file://",
        "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
        "null",
        "wss://chat.example.com",
        "https://chat.example.com/",
        "app.custom+x://some_host:81",
    ] {
        let line = stomp_relay::listener::entry_for(origin).expect("it can be allowed");
        let relay = relay(&format!("[http]\norigins = [\"{line}\"]\n"));
        assert_eq!(knock(&relay.ws, &format!("Origin: {origin}\r\n")).await.status, 101, "{origin}");
        assert_eq!(knock(&relay.ws, "Origin: https://evil.example\r\n").await.status, 403, "{origin}");
    }
}

#[tokio::test]
async fn the_log_suggests_no_line_that_lets_in_more_than_it_says() {
    let arguments = ["serve", "--listen", "ws://127.0.0.1:0/ws", "--admin", "127.0.0.1:0"];
    let mut process = Process::start(&arguments, &[("STOMP_RELAY_LOG__FORMAT", "json")]);
    let url = process.ready().urls.remove(0);
    for origin in ["*", "https://*.example", "data:x", "https://a b"] {
        assert_eq!(knock(&url, &format!("Origin: {origin}\r\n")).await.status, 403, "{origin}");
        let line = process.log.until("WebSocket refused");
        assert!(line.contains("can't be allowed") && !line.contains("\"allow\""), "{line}");
    }
    assert_eq!(knock(&url, "Origin: capacitor://localhost/\r\n").await.status, 403);
    let line = process.log.until("WebSocket refused");
    assert!(line.contains(r#""allow":"[http] origins = [\"capacitor://localhost\"]""#), "{line}");
}

#[tokio::test]
async fn behind_a_proxy_that_ends_tls_the_page_is_of_the_same_origin() {
    let relay = relay(&format!("{KNOWN}[proxy]\ntrusted = [\"127.0.0.1\"]\n"));
    let told = "Origin: https://example.com\r\nX-Forwarded-Proto: https\r\n";
    assert_eq!(knock(&relay.ws, told).await.status, 101);
    let not_told = "Origin: https://example.com\r\n";
    assert_eq!(knock(&relay.ws, not_told).await.status, 403);
}

#[tokio::test]
async fn the_log_names_the_origin_and_the_line_that_would_allow_it() {
    let arguments = ["serve", "--listen", "ws://127.0.0.1:0/ws", "--admin", "127.0.0.1:0"];
    let mut process = Process::start(&arguments, &[("STOMP_RELAY_LOG__FORMAT", "json")]);
    let url = process.ready().urls.remove(0);
    assert_eq!(knock(&url, "Origin: https://app.example.com\r\n").await.status, 403);
    let line = process.log.until("WebSocket refused");
    assert!(line.contains("\"WARN\"") && line.contains("\"origin\":\"https://app.example.com\""), "{line}");
    assert!(line.contains(r#""allow":"[http] origins = [\"https://app.example.com\"]""#), "{line}");
    assert!(line.contains("\"client\":\"127.0.0.1\"") && line.contains("\"host\":\"example.com\""), "{line}");
    // Not more than a few: a page that tries again and again does not fill the disk.
    for _ in 0..30 {
        knock(&url, "Origin: https://evil.example\r\n").await;
    }
    process.signal("TERM");
    let rest = process.log.rest();
    assert!(rest.matches("WebSocket refused").count() <= 15, "{rest}");
}
