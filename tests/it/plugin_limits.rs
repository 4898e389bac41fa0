//! What RabbitMQ's plugin bounds, the relay bounds too: sizes, time to log in, frames before login, connections at a time.

use std::time::{Duration, Instant};

use stomp_relay::config::{Config, Overrides};
use tokio::net::TcpStream;

use crate::support::condition::eventually;
use crate::support::dialect::{DIALECTS, RABBITMQ, Transport};
use crate::support::process::get;
use crate::support::rabbit::{Rabbit, unique};
use crate::support::raw_http::{BINARY, FIN, RawClient, TEXT, frame, frame_head};
use crate::support::relay::Relay;
use crate::support::scratch::Scratch;
use crate::support::stomp::{Client, Received};

const BOTH: [Transport; 2] = [Transport::Ws, Transport::Wss];
const CONNECT: &str = "CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n";
const SMALL_FRAMES: &str =
    "[stomp]\nframe_bytes_max = \"1KiB\"\nlogin_frame_bytes_max = \"1KiB\"\nheader_line_bytes_max = \"512B\"\n";

/// Open client connections, as the operator sees them.
async fn connections(relay: &Relay) -> usize {
    let page = get(relay.admin, "/metrics").await.body;
    let value = page.lines().find_map(|line| line.strip_prefix("stomp_relay_connections "));
    value.expect("the metric is there").parse().expect("a number")
}

async fn connections_are(relay: &Relay, wanted: usize) {
    eventually("connections counted", || async { connections(relay).await == wanted }).await;
}

async fn logged_in(relay: &Relay, transport: Transport) -> Client {
    let mut client = transport.open(relay).await;
    client.send(CONNECT).await;
    client.expect("CONNECTED").await;
    client
}

/// A client that does not wait for a receipt loses nothing by leaving: DISCONNECT comes after its SENDs.
#[tokio::test]
async fn everything_sent_before_a_disconnect_arrives() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let admin = rabbit.admin().await;
    for transport in BOTH {
        let queue = unique("bulk");
        admin.queue(&queue).await;
        let mut client = logged_in(&relay, transport).await;
        for number in 0..1000 {
            client.send(&format!("SEND\ndestination:/queue/{queue}\n\n{number}")).await;
        }
        client.send("DISCONNECT\n\n").await;
        drop(client);
        connections_are(&relay, 0).await;
        eventually("1000 messages", || async { admin.ready(&queue).await == Some(1000) }).await;
        admin.delete(&queue).await;
    }
}

/// Clients that send what is no STOMP, or no command, leave no connection behind.
#[tokio::test]
async fn garbage_leaks_no_connection() {
    let relay = Relay::start(Rabbit::shared());
    let mut clients = Vec::new();
    for number in 0..100 {
        let mut client = logged_in(&relay, BOTH[number % 2]).await;
        client.send(if number % 4 < 2 { "bogus\rframe\n\n" } else { "UNKNOWN\n\n" }).await;
        clients.push(client);
    }
    connections_are(&relay, 0).await;
    for (number, client) in clients.iter_mut().enumerate() {
        let (message, code) = if number % 4 < 2 { ("Malformed frame", 1007) } else { ("Bad command", 1002) };
        client.error(message).await;
        assert_eq!(client.closed().await.0, code);
    }
}

/// A WebSocket on which nobody logs in is closed, and told why.
#[tokio::test]
async fn who_does_not_log_in_is_closed() {
    let relay = Relay::start_with(Rabbit::shared(), "[session]\nlogin_timeout = \"400ms\"\n");
    for transport in BOTH {
        let opened = Instant::now();
        let mut client = transport.open(&relay).await;
        client.error("Login timeout").await;
        assert!(opened.elapsed() >= Duration::from_millis(400));
        assert_eq!(client.closed().await.0, 1008);
    }
}

/// A SEND over the frame limit ends the session, however it is cut into messages; one within it passes.
#[tokio::test]
async fn a_frame_over_the_limit_is_refused() {
    let relay = Relay::start_with(Rabbit::shared(), SMALL_FRAMES);
    for transport in BOTH {
        let send = format!("SEND\ndestination:/topic/{}\nreceipt:r\n\n", unique("limit"));
        let mut client = logged_in(&relay, transport).await;
        client.send(&format!("{send}{}", "x".repeat(900))).await;
        client.receipt("r").await;
        client.send(&format!("{send}{}", "x".repeat(1024))).await;
        client.error("Unreadable message").await;
        assert_eq!(client.closed().await.0, 1009);

        let mut client = logged_in(&relay, transport).await;
        client.send_bytes(send.as_bytes()).await;
        client.send_bytes("x".repeat(512).as_bytes()).await;
        client.send_bytes("x".repeat(512).as_bytes()).await;
        client.error("Malformed frame").await;
        assert_eq!(client.closed().await.0, 1007);
    }
}

/// A huge frame is refused when its size is announced: not one byte of its body has to come.
#[tokio::test]
async fn a_huge_frame_is_refused_before_its_body() {
    let relay = Relay::start_with(Rabbit::shared(), SMALL_FRAMES);
    for transport in BOTH {
        let mut client = logged_in(&relay, transport).await;
        client.send_bytes(b"SEND\ndestination:/topic/huge\ncontent-length:130000000\n\n").await;
        client.error("Malformed frame").await;
        assert_eq!(client.closed().await.0, 1007);
    }
    let address = relay.ws.trim_start_matches("ws://").trim_end_matches("/ws");
    let socket = TcpStream::connect(address).await.expect("the relay listens");
    let mut client = RawClient::new(socket).upgraded().await;
    client.send(frame(FIN | TEXT, format!("{CONNECT}\0").as_bytes())).await;
    assert!(client.frame().await.payload.starts_with(b"CONNECTED\n"));
    let head = [frame_head(FIN | BINARY, 130_000_000), vec![1, 2, 3, 4]].concat();
    client.send(head).await;
    assert!(client.frame().await.payload.starts_with(b"ERROR\nmessage:Unreadable message\n"));
    assert_eq!(client.frame().await.close_code(), 1009);
}

/// Before login much less is taken than after it, in one message or in many.
#[tokio::test]
async fn frames_before_login_are_small() {
    let relay = Relay::start(Rabbit::shared());
    for transport in BOTH {
        let mut client = transport.open(&relay).await;
        client.send(&format!("CONNECT\naccept-version:1.2\nlogin:{}\n\n", "x".repeat(70_000))).await;
        client.error("Unreadable message").await;
        assert_eq!(client.closed().await.0, 1009);

        let mut client = transport.open(&relay).await;
        client.send_bytes(b"CONNECT\naccept-version:1.2\n").await;
        for number in 0..70 {
            client.send_bytes(format!("header-{number}:{}\n", "x".repeat(1000)).as_bytes()).await;
        }
        client.error("Malformed frame").await;
        assert_eq!(client.closed().await.0, 1007);
    }
}

/// Without CONNECT there is nothing but an ERROR; by default it also ends the connection.
#[tokio::test]
async fn frames_before_login_are_refused() {
    let relay = Relay::start(Rabbit::shared());
    for frame in ["SEND\ndestination:/queue/q\n\nx", "SUBSCRIBE\nid:0\ndestination:/queue/q\n\n", "DISCONNECT\n\n"] {
        for transport in BOTH {
            let mut client = transport.open(&relay).await;
            client.send(frame).await;
            let error = client.error("Illegal command").await;
            assert!(error.body.starts_with(b"You must log in using CONNECT first"), "{error:?}");
            assert_eq!(client.closed().await.0, 1002);
        }
    }
    connections_are(&relay, 0).await;
}

/// As in the plugin, the client may still log in after it, or just leave.
#[tokio::test]
async fn frames_before_login_are_forgiven_in_compatibility_mode() {
    let relay = Relay::start_with(Rabbit::shared(), RABBITMQ);
    for dialect in DIALECTS {
        let mut client = dialect.transport.open(&relay).await;
        for frame in ["SEND\ndestination:/queue/q\n\nx", "SUBSCRIBE\nid:0\ndestination:/queue/q\n\n", "DISCONNECT\n\n"]
        {
            client.send(frame).await;
            let body = client.error("Illegal command").await.body;
            assert!(body.starts_with(b"You must log in using CONNECT first"), "{}", String::from_utf8_lossy(&body));
        }
        client.send(&CONNECT.replace("1.2", dialect.version)).await;
        assert_eq!(client.expect("CONNECTED").await.header("version"), Some(dialect.version));
        client.disconnect().await;

        let mut leaver = dialect.transport.open(&relay).await;
        leaver.send("SEND\ndestination:/queue/q\n\nx").await;
        leaver.error("Illegal command").await;
        drop(leaver);
    }
    connections_are(&relay, 0).await;
}

/// A limited relay that closes at once, and whose other deadlines are far away, so that a closed socket means a refused one.
fn limited(settings: &str) -> Relay {
    let patient = "[http]\nhead_timeout = \"5m\"\n[tls]\nhandshake_timeout = \"5m\"\n";
    Relay::start_with(Rabbit::shared(), &format!("{patient}[limits]\nrefusals_max = 0\n{settings}\n"))
}

/// The relay closes the socket at once and says nothing.
async fn is_refused(url: &str) {
    let address = url.split('/').nth(2).expect("a URL has a host").replace("localhost", "127.0.0.1");
    let socket = TcpStream::connect(address).await.expect("the relay listens");
    assert_eq!(RawClient::new(socket).rest().await, b"");
}

/// ws and wss count together; a place is free again after DISCONNECT and after a socket that just ends.
#[tokio::test]
async fn connections_are_limited_over_all_listeners() {
    let relay = limited("connections_max = 2");
    let first = logged_in(&relay, Transport::Ws).await;
    let second = logged_in(&relay, Transport::Wss).await;
    is_refused(&relay.ws).await;
    is_refused(&relay.wss).await;

    first.disconnect().await;
    connections_are(&relay, 1).await;
    let third = logged_in(&relay, Transport::Wss).await;
    is_refused(&relay.ws).await;

    drop(second);
    connections_are(&relay, 1).await;
    let fourth = logged_in(&relay, Transport::Ws).await;
    is_refused(&relay.wss).await;
    third.disconnect().await;
    fourth.disconnect().await;
}

/// As many clients get in as the limit says, and no fewer.
#[tokio::test]
async fn as_many_connections_as_the_limit_are_admitted() {
    for limit in [1, 2, 3, 4, 1000] {
        let relay = limited(&format!("connections_max = {limit}"));
        let mut clients = Vec::new();
        for number in 0..6 {
            match number < limit {
                true => clients.push(logged_in(&relay, BOTH[number % 2]).await),
                false => is_refused(&relay.ws).await,
            }
        }
        assert_eq!(connections(&relay).await, clients.len());
    }
}

/// One address cannot take every place.
#[tokio::test]
async fn connections_are_limited_per_address() {
    let relay = limited("connections_per_address_max = 1");
    let mut client = logged_in(&relay, Transport::Ws).await;
    is_refused(&relay.wss).await;
    client.send("SEND\ndestination:/topic/still\nreceipt:r\n\n").await;
    client.receipt("r").await;
    client.disconnect().await;
    connections_are(&relay, 0).await;
    logged_in(&relay, Transport::Wss).await.disconnect().await;
}

/// A relay that nobody may enter is a mistake, found when it starts.
#[test]
fn a_limit_of_no_connections_is_no_configuration() {
    let folder = Scratch::new();
    let file = folder.write("relay.toml", "[limits]\nconnections_max = 0\n");
    let problems = Config::load(Some(&file), std::iter::empty(), &Overrides::default()).expect_err("0 is out of range");
    assert!(problems.to_string().contains("limits.connections_max"), "{problems}");
}

/// An agreed heart-beat swaps the two numbers, and then comes by itself.
#[tokio::test]
async fn heartbeats_are_agreed_and_sent() {
    let relay = Relay::start_with(Rabbit::shared(), RABBITMQ);
    let mut clients = Vec::new();
    for dialect in DIALECTS {
        let mut client = dialect.transport.open(&relay).await;
        client.send(&CONNECT.replace("1.2\n", &format!("{}\nheart-beat:5000,1000\n", dialect.version))).await;
        assert_eq!(client.expect("CONNECTED").await.header("heart-beat"), Some("1000,5000"));
        clients.push(client);
    }
    for client in &mut clients {
        assert!(matches!(client.receive().await, Received::Heartbeat));
    }
}
