//! The PROXY protocol and forwarding headers on the wire: whose word is taken, and what hangs on the address.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{has_metric, is_refused, relay};
use crate::support::process::Process;
use crate::support::rabbit::Rabbit;
use crate::support::raw_http::{FIN, RawClient, TEXT, frame, upgrade};
use crate::support::relay::Relay;
use crate::support::stomp::{Client, address};

const FROM_LOOPBACK: &str = "[proxy]\nprotocol_from = [\"127.0.0.1\"]\n";

/// A connection that begins with these bytes.
async fn announced(url: &str, header: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address(url)).await.unwrap();
    stream.write_all(header).await.unwrap();
    stream
}

fn v1(client: &str) -> Vec<u8> {
    let (family, relay) = if client.contains(':') { ("TCP6", "::1") } else { ("TCP4", "127.0.0.1") };
    format!("PROXY {family} {client} {relay} 40000 443\r\n").into_bytes()
}

/// What `guest`, who may log in from the relay's own machine only, is told; without a broker.
async fn guest(mut client: Client) -> String {
    client.send("CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n").await;
    client.expect("ERROR").await.header("error-code").unwrap().to_owned()
}

#[tokio::test]
async fn the_header_comes_before_tls_and_http_and_its_address_is_counted() {
    let relay = relay(&format!("[limits]\nconnections_per_address_max = 1\n{FROM_LOOPBACK}"));
    let plain = async |header: &[u8]| Client::over(&relay.ws, announced(&relay.ws, header).await).await;
    let first = plain(&v1("203.0.113.7")).await;
    // The older one of the same address gives way.
    let second = plain(&v1("203.0.113.7")).await;
    is_refused(first, "limit.strangers").await;
    let mut other = plain(&v1("203.0.113.8")).await;
    let stream = announced(&relay.wss, &v1("203.0.113.7")).await;
    let stream = Client::handshake(stream, &relay.ca).await;
    let mut third = Client::over("wss://localhost/ws", stream).await;
    is_refused(second, "limit.strangers").await;
    // All addresses of an IPv6 network are one client's.
    let v6 = plain(&v1("2001:db8::1")).await;
    let mut same = plain(&v1("2001:db8::ffff:2")).await;
    is_refused(v6, "limit.strangers").await;
    let mut neighbour = plain(&v1("2001:db8:0:1::1")).await;
    for client in [&mut third, &mut same, &mut neighbour, &mut other] {
        client.quiet().await;
    }
}

#[tokio::test]
async fn without_its_header_a_proxy_is_not_served() {
    let relay = relay(FROM_LOOPBACK);
    let client = upgrade("/ws", "");
    for bytes in
        [client.as_bytes(), b"PROXY TCP4 x y 1 2\r\n", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", b"\x16\x03\x01\x02\0"]
    {
        let mut client = RawClient::new(announced(&relay.ws, bytes).await);
        assert_eq!(client.rest().await, b"", "{}", String::from_utf8_lossy(bytes));
    }
    // A proxy that speaks for itself, as for a health check.
    for header in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        let mut client = RawClient::new(announced(&relay.ws, header).await);
        client.send(&upgrade("/ws", "")).await;
        assert_eq!(client.answer("GET").await.status, 101);
    }
}

#[tokio::test]
async fn a_client_can_not_claim_an_address() {
    let relay = relay("[limits]\nconnections_per_address_max = 1\n[proxy]\nprotocol_from = [\"192.0.2.1\"]\n");
    let mut client = RawClient::new(announced(&relay.ws, &v1("203.0.113.7")).await);
    client.send(&upgrade("/ws", "")).await;
    assert_eq!(client.answer("GET").await.status, 400);
    drop(client);
    let mut held = forwarded(&relay, "X-Forwarded-For: 203.0.113.7\r\n").await;
    let _next = forwarded(&relay, "X-Forwarded-For: 203.0.113.8\r\nForwarded: for=203.0.113.9\r\n").await;
    assert_eq!(held.frame().await.opcode, 1, "it gave way, though another address was claimed");
}

/// A WebSocket opened with these lines.
async fn forwarded(relay: &Relay, lines: &str) -> RawClient {
    let mut client = RawClient::new(TcpStream::connect(address(&relay.ws)).await.unwrap());
    client.send(&upgrade("/ws", lines)).await;
    assert_eq!(client.answer("GET").await.status, 101);
    client
}

#[tokio::test]
async fn the_clients_of_a_trusted_proxy_are_counted_by_the_address_it_names() {
    let settings = "[limits]\nconnections_per_address_max = 1\nrefusals_max = 1\n[proxy]\ntrusted = [\"127.0.0.0/8\"]\n\
         [auth]\nloopback_users = []\n";
    let relay = Relay::start_with(Rabbit::shared(), settings);
    let mut first = forwarded(&relay, "X-Forwarded-For: 1.1.1.1, 203.0.113.7\r\n").await;
    first.send(frame(FIN | TEXT, b"CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n\0")).await;
    assert!(first.frame().await.payload.starts_with(b"CONNECTED"), "it is in, and keeps its place");
    let _second = forwarded(&relay, "X-Forwarded-For: 203.0.113.7, 203.0.113.8, 127.0.0.5\r\n").await;
    // The refused one is told so within the WebSocket; it does not read on, and keeps the only place for that.
    let mut told = RawClient::new(TcpStream::connect(address(&relay.ws)).await.unwrap());
    told.send(&upgrade("/ws", "X-Forwarded-For: 203.0.113.7\r\n")).await;
    assert_eq!(told.answer("GET").await.status, 101);
    let mut other = RawClient::new(TcpStream::connect(address(&relay.ws)).await.unwrap());
    other.send(&upgrade("/ws", "X-Forwarded-For: 203.0.113.7\r\n")).await;
    let answer = other.answer("GET").await;
    assert_eq!((answer.status, answer.one("retry-after")), (503, "5"));
    assert!(has_metric(&relay, "ws_upgrades_total{result=\"not_admitted\"} 1").await);
}

#[tokio::test]
async fn no_proxy_makes_a_remote_client_local_and_none_makes_all_clients_local() {
    let code = async |settings: &str, header: &[u8], lines: &str| {
        let relay = relay(settings);
        let mut stream = announced(&relay.ws, header).await;
        // The head by hand, since the lines are what it is about.
        stream.write_all(upgrade("/ws", lines).as_bytes()).await.unwrap();
        let mut client = RawClient::new(stream);
        assert_eq!(client.answer("GET").await.status, 101);
        let connect = b"CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n\0";
        client.send(crate::support::raw_http::frame(0x82, connect)).await;
        let text = String::from_utf8(client.frame().await.payload).unwrap();
        text.lines().find_map(|line| line.strip_prefix("error-code:")).unwrap().to_owned()
    };
    let (refused, asked) = ("connect.refused", "broker.unavailable");
    let trusted = "[proxy]\ntrusted = [\"127.0.0.1\"]\n";
    assert_eq!(code("", b"", "").await, asked, "directly connected");
    assert_eq!(code("", b"", "X-Forwarded-For: 127.0.0.1\r\n").await, refused, "a proxy nobody told us of");
    assert_eq!(code("", b"", "Forwarded: for=127.0.0.1\r\n").await, refused);
    assert_eq!(code(trusted, b"", "").await, refused, "a proxy that names nobody");
    for named in ["127.0.0.1", "::1", "127.0.0.2", "203.0.113.7, 127.0.0.1"] {
        assert_eq!(code(trusted, b"", &format!("X-Forwarded-For: {named}\r\n")).await, refused, "{named}");
    }
    for header in [v1("127.0.0.2"), v1("::1"), v1("203.0.113.7"), b"PROXY UNKNOWN\r\n".to_vec()] {
        assert_eq!(code(FROM_LOOPBACK, &header, "").await, refused, "{}", String::from_utf8_lossy(&header));
    }
}

#[tokio::test]
async fn guest_is_asked_for_from_this_machine_alone() {
    let relay = relay("");
    assert_eq!(guest(Client::open(&relay.ws).await).await, "broker.unavailable");
}

#[tokio::test]
async fn the_log_shows_the_chain_of_addresses() {
    let arguments = ["serve", "--listen", "ws://127.0.0.1:0/ws", "--admin", "127.0.0.1:0"];
    let environment = [
        ("STOMP_RELAY_LOG__FORMAT", "json"),
        ("STOMP_RELAY_PROXY__PROTOCOL_FROM", "127.0.0.1"),
        ("STOMP_RELAY_PROXY__TRUSTED", "10.0.0.0/8"),
        ("STOMP_RELAY_PROXY__HEADER", "forwarded"),
    ];
    let mut process = Process::start(&arguments, &environment);
    let url = process.ready().urls.remove(0);
    let mut client = RawClient::new(announced(&url, &v1("10.0.0.3")).await);
    client
        .send(&upgrade("/ws", "Forwarded: for=1.1.1.1, for=\"[2001:db8::7]:99\";proto=https, for=10.0.0.4\r\n"))
        .await;
    assert_eq!(client.answer("GET").await.status, 101);
    let line = process.log.until("session opened");
    assert!(line.contains("\"client\":\"2001:db8::7 through 10.0.0.4, 10.0.0.3, 127.0.0.1\""), "{line}");
}
