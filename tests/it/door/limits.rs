//! Limits of the process: those who meet one are told so, a few at a time; the others are not disturbed.

use std::time::{Duration, Instant};

use stomp_relay::server::{Ended, Signal};
use tokio::net::TcpStream;

use super::{has_metric, is_refused, relay};
use crate::support::condition::eventually;
use crate::support::process::Process;
use crate::support::rabbit::{Rabbit, unique};
use crate::support::raw_http::{CLOSE, RawClient, upgrade};
use crate::support::relay::Relay;
use crate::support::stomp::{Client, QUIET, Received, address};

const CONNECT: &str = "CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n";

#[tokio::test]
async fn beyond_the_cap_a_client_is_told_why_and_then_there_is_silence() {
    let relay = Relay::start_with(Rabbit::shared(), "[limits]\nconnections_max = 1\nrefusals_max = 1\n");
    let first = relay.client().await;
    is_refused(Client::open(&relay.ws).await, "limit.connections").await;
    is_refused(Client::open_tls(&relay.wss, &relay.ca).await, "limit.connections").await;
    assert!(has_metric(&relay, "connections_rejected_total{reason=\"limit_total\"} 2").await);
    assert!(has_metric(&relay, "sessions_closed_total{reason=\"limit\"} 2").await);
    // Silent, so it stays the one that is still to be told.
    let waiting = TcpStream::connect(address(&relay.ws)).await.unwrap();
    let refused = |count: usize| format!("connections_rejected_total{{reason=\"limit_total\"}} {count}");
    eventually("the silent one is counted", async || has_metric(&relay, &refused(3)).await).await;
    let mut client = RawClient::new(TcpStream::connect(address(&relay.ws)).await.unwrap());
    let _ = client.try_send(upgrade("/ws", "").as_bytes()).await;
    assert_eq!(client.rest().await, b"", "closed without an answer");
    drop(waiting);
    // Who is in stays in.
    first.disconnect().await;
    assert!(has_metric(&relay, "sessions_closed_total{reason=\"client\"} 1").await);
    eventually("a place is free", async || has_metric(&relay, "connections 0").await).await;
    let mut next = Client::open(&relay.ws).await;
    next.quiet().await;
}

#[tokio::test]
async fn an_address_has_its_share() {
    let relay = Relay::start_with(Rabbit::shared(), "[limits]\nconnections_per_address_max = 2\n");
    let _held = [relay.client().await, relay.client().await];
    is_refused(Client::open(&relay.ws).await, "limit.address").await;
    let other = tokio::net::TcpSocket::new_v4().unwrap();
    other.bind("127.0.0.9:0".parse().unwrap()).unwrap();
    let other = other.connect(address(&relay.ws).parse().unwrap()).await.unwrap();
    Client::over(&relay.ws, other).await.quiet().await;
    assert!(has_metric(&relay, "connections_rejected_total{reason=\"limit_address\"} 1").await);
}

#[tokio::test]
async fn a_user_has_its_share_which_is_known_after_the_login() {
    let rabbit = Rabbit::shared();
    let user = unique("limited");
    rabbit.add_user(&user, "secret", "/", [".*"; 3]);
    for compatibility in ["strict", "rabbitmq"] {
        let settings =
            format!("[limits]\nconnections_per_user_max = 1\n[stomp]\ncompatibility = \"{compatibility}\"\n");
        let relay = Relay::start_with(rabbit, &settings);
        let connect = format!("accept-version:1.2\nhost:/\nlogin:{user}\npasscode:secret");
        let first = relay.client_with(&connect).await;
        let mut second = Client::open(&relay.ws).await;
        second.send(&format!("CONNECT\n{connect}\n\n")).await;
        is_refused(second, "limit.user").await;
        assert!(has_metric(&relay, "connections_rejected_total{reason=\"limit_user\"} 1").await);
        let other = relay.client().await;
        first.disconnect().await;
        other.disconnect().await;
        eventually("the place is free", async || has_metric(&relay, "connections 0").await).await;
        relay.client_with(&connect).await.disconnect().await;
    }
}

#[tokio::test]
async fn handshakes_beyond_the_rate_wait_and_beyond_the_wait_are_refused() {
    let rate = "handshake_rate_max = 1\nhandshake_burst_max = 1\n";
    let relay = relay(&format!("[limits]\n{rate}rate_wait_max = \"1500ms\"\n"));
    let start = Instant::now();
    let url = relay.ws.clone();
    let open = async || (Client::open(&url).await, start.elapsed());
    let ((a, first), (b, second), (c, third)) = tokio::join!(open(), open(), open());
    let (mut admitted, mut refused) = (Vec::new(), Vec::new());
    for (mut client, elapsed) in [(a, first), (b, second), (c, third)] {
        match tokio::time::timeout(QUIET, client.next()).await {
            Err(_) => admitted.push((elapsed, client)),
            Ok(Received::Frame(frame)) => refused.push((elapsed, frame.header("error-code").map(str::to_owned))),
            Ok(other) => panic!("{other:?}"),
        }
    }
    let waited = admitted.iter().map(|(elapsed, _)| *elapsed).max().unwrap();
    assert!(admitted.len() == 2 && waited >= Duration::from_millis(900), "{waited:?}");
    let [(at, code)] = &refused[..] else { panic!("{refused:?}") };
    assert_eq!(code.as_deref(), Some("limit.handshake_rate"));
    assert!(*at < waited, "the refused one does not wait");
    assert!(has_metric(&relay, "connections_rejected_total{reason=\"rate_handshake\"} 1").await);
}

#[tokio::test]
async fn handshakes_of_one_address_do_not_use_up_those_of_others() {
    let rate = "handshake_rate_per_address_max = 1\nhandshake_burst_per_address_max = 1\n";
    let relay = relay(&format!("[limits]\n{rate}rate_wait_max = \"0s\"\n"));
    let _first = Client::open(&relay.ws).await;
    is_refused(Client::open(&relay.ws).await, "limit.handshake_rate").await;
    let other = tokio::net::TcpSocket::new_v4().unwrap();
    other.bind("127.0.0.10:0".parse().unwrap()).unwrap();
    let other = other.connect(address(&relay.ws).parse().unwrap()).await.unwrap();
    Client::over(&relay.ws, other).await.quiet().await;
}

#[tokio::test]
async fn logins_beyond_the_rate_wait_and_beyond_the_wait_are_refused() {
    let rate = "connect_rate_max = 1\nconnect_burst_max = 1\n";
    let relay = relay(&format!("[limits]\n{rate}rate_wait_max = \"1500ms\"\n"));
    let mut clients = [Client::open(&relay.ws).await, Client::open(&relay.ws).await, Client::open(&relay.ws).await];
    let start = Instant::now();
    for client in &mut clients {
        client.send(CONNECT).await;
    }
    let mut answers = Vec::new();
    for mut client in clients {
        let frame = client.expect("ERROR").await;
        answers.push((frame.header("error-code").unwrap().to_owned(), client.closed().await.0));
    }
    assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
    answers.sort();
    // Those whose turn came asked for the broker, which is not there.
    let unavailable = ("broker.unavailable".to_owned(), 1013);
    assert_eq!(answers, [unavailable.clone(), unavailable, ("limit.connect_rate".to_owned(), 1013)]);
    assert!(has_metric(&relay, "connections_rejected_total{reason=\"rate_connect\"} 1").await);
}

#[tokio::test]
async fn a_client_that_sends_too_fast_is_slowed_down_and_loses_nothing() {
    let relay = Relay::start_with(Rabbit::shared(), "[session]\nsend_rate_max = 20\nsend_burst_max = 5\n");
    let destination = format!("/topic/{}", unique("rate"));
    let (mut sender, mut receiver, mut other) = (relay.client().await, relay.client().await, relay.client().await);
    receiver.subscribe(&format!("id:1\ndestination:{destination}")).await;
    let start = Instant::now();
    for number in 0..25 {
        sender.send(&format!("SEND\ndestination:{destination}\nreceipt:{number}\n\n{number}")).await;
    }
    // Meanwhile another client is served at once.
    other.send(&format!("SEND\ndestination:/topic/{}\nreceipt:o\n\n", unique("other"))).await;
    other.receipt("o").await;
    assert!(start.elapsed() < Duration::from_millis(900), "{:?}", start.elapsed());
    for number in 0..25 {
        receiver.message(&number.to_string()).await;
        sender.receipt(&number.to_string()).await;
    }
    // Five at once, the other twenty at 20 a second.
    assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
    assert!(!has_metric(&relay, "sends_throttled_total 0").await);
    sender.disconnect().await;
}

#[tokio::test]
async fn limits_are_read_again_on_reload() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start_with(rabbit, "[limits]\nconnections_max = 1\n");
    let _first = relay.client().await;
    is_refused(Client::open(&relay.ws).await, "limit.connections").await;
    relay.rewrite("[limits]\nconnections_max = 2\n");
    relay.signal(Signal::Reload).await;
    let admitted = async || {
        let mut client = Client::open(&relay.ws).await;
        client.send(CONNECT).await;
        client.frame().await.command.as_str() == "CONNECTED"
    };
    eventually("the new limit", admitted).await;
}

#[tokio::test]
async fn a_client_in_the_handshake_when_the_relay_stops_is_told_to_go_elsewhere() {
    let relay = relay("");
    let mut client = RawClient::new(TcpStream::connect(address(&relay.ws)).await.unwrap());
    let request = upgrade("/ws", "");
    let (half, rest) = request.split_at(30);
    client.send(half).await;
    eventually("it is in", async || has_metric(&relay, "connections 1").await).await;
    relay.signal(Signal::Stop).await;
    client.send(rest).await;
    assert_eq!(client.answer("GET").await.status, 101);
    let frame = client.frame().await;
    assert_eq!((frame.opcode, frame.close_code()), (CLOSE, 1012));
    drop(client);
    assert_eq!(relay.ended().await, Ended::Drained);
}

#[tokio::test]
async fn the_log_names_the_limit_and_is_not_flooded() {
    let broker = Rabbit::shared().uri();
    let arguments = ["serve", "--listen", "ws://127.0.0.1:0/ws", "--admin", "127.0.0.1:0", "--broker", &broker];
    let environment = [("STOMP_RELAY_LOG__FORMAT", "json"), ("STOMP_RELAY_LIMITS__CONNECTIONS_PER_ADDRESS_MAX", "1")];
    let mut process = Process::start(&arguments, &environment);
    let url = process.ready().urls.remove(0);
    let _first = Client::log_in(&url).await.expect("there is room");
    for _ in 0..30 {
        is_refused(Client::open(&url).await, "limit.address").await;
    }
    let line = process.log.until("a limit is reached");
    assert!(line.contains("\"key\":\"limits.connections_per_address_max\""), "{line}");
    assert!(line.contains("\"WARN\"") && line.contains("\"client\":\"127.0.0.1\""), "{line}");
    process.signal("TERM");
    let rest = process.log.rest();
    assert!(rest.matches("a limit is reached").count() < 20, "{rest}");
}
