//! Strangers hold places only as long as nobody else needs them, and never longer than their time.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::{has_metric, is_refused, relay};
use crate::support::condition::eventually;
use crate::support::process::get;
use crate::support::rabbit::Rabbit;
use crate::support::raw_http::{FIN, PATIENCE, PING, RawClient, TEXT, frame, upgrade};
use crate::support::relay::Relay;
use crate::support::stomp::{Client, address};

const REQUEST: &str = "GET /none HTTP/1.1\r\nHost: localhost\r\n\r\n";

async fn connect_from(last: u8, url: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(Ipv4Addr::new(127, 7, 0, last).into(), 0)).unwrap();
    socket.connect(address(url).parse().unwrap()).await.unwrap()
}

/// A connection that has had an answer and is kept for the next request.
async fn kept_alive(last: u8, url: &str) -> RawClient {
    let mut client = RawClient::new(connect_from(last, url).await);
    client.send(REQUEST).await;
    assert_eq!(client.answer("GET").await.status, 404);
    client
}

#[tokio::test]
async fn ten_addresses_that_hold_every_place_keep_nobody_out() {
    let relay = Relay::start_with(Rabbit::shared(), "[limits]\nconnections_max = 24\nrefusals_max = 4\n");
    let mut session = relay.client().await;
    let mut holders = Vec::new();
    for number in 0..23 {
        holders.push(kept_alive(number % 10 + 1, &relay.ws).await);
    }
    assert!(has_metric(&relay, "connections 24").await && has_metric(&relay, "strangers 23").await);
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(relay.client().await);
    }
    // The oldest of them have gone, and as many as there are places stay.
    for gone in holders.iter_mut().take(10) {
        assert_eq!(gone.rest().await, b"");
    }
    holders[22].send(REQUEST).await;
    assert_eq!(holders[22].answer("GET").await.status, 404);
    for client in clients.iter_mut().chain([&mut session]) {
        client.send("SEND\ndestination:/topic/seats\nreceipt:r\n\n").await;
        client.receipt("r").await;
    }
}

#[tokio::test]
async fn strangers_have_a_share_of_the_places() {
    let relay = Relay::start_with(Rabbit::shared(), "[limits]\nstrangers_max = 2\n");
    let first = Client::over(&relay.ws, connect_from(1, &relay.ws).await).await;
    let mut second = Client::over(&relay.ws, connect_from(1, &relay.ws).await).await;
    let session = relay.client().await;
    // Three strangers for a moment: the oldest of the network that has most.
    is_refused(first, "limit.strangers").await;
    second.quiet().await;
    assert!(has_metric(&relay, "connections_rejected_total{reason=\"limit_strangers\"} 1").await);
    session.disconnect().await;
}

#[tokio::test]
async fn a_network_has_its_share() {
    let settings = "[limits]\nconnections_per_network_max = 2\nnetwork_ipv4_bits = 24\n";
    let relay = Relay::start_with(Rabbit::shared(), settings);
    let _held = [relay.client().await, relay.client().await];
    let near = TcpSocket::new_v4().unwrap();
    near.bind("127.0.0.99:0".parse().unwrap()).unwrap();
    let near = near.connect(address(&relay.ws).parse().unwrap()).await.unwrap();
    is_refused(Client::over(&relay.ws, near).await, "limit.network").await;
    Client::over(&relay.ws, connect_from(1, &relay.ws).await).await.quiet().await;
}

/// Whatever it sends meanwhile: a cheap request now and then, or pings within the WebSocket.
#[tokio::test]
async fn a_stranger_has_its_time_and_no_more() {
    let relay = relay("[limits]\nstranger_timeout = \"1500ms\"\n[session]\nlogin_timeout = \"1m\"\n");
    let start = Instant::now();
    let mut idle = kept_alive(1, &relay.ws).await;
    let busy = async {
        let mut client = kept_alive(2, &relay.ws).await;
        while client.try_send(REQUEST.as_bytes()).await.is_ok() && start.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let pinging = async {
        let mut client = RawClient::new(connect_from(3, &relay.ws).await);
        client.send(upgrade("/ws", "")).await;
        assert_eq!(client.answer("GET").await.status, 101);
        let half = frame(FIN | TEXT, b"CONNECT\naccept-version:1.2\n");
        let _ = client.try_send(&half).await;
        while client.try_send(&frame(FIN | PING, b"")).await.is_ok() && start.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::join!(busy, pinging);
    assert_eq!(idle.rest().await, b"");
    let elapsed = start.elapsed();
    assert!(elapsed >= Duration::from_millis(1500) && elapsed < PATIENCE, "{elapsed:?}");
    eventually("all are gone", async || has_metric(&relay, "connections 0").await).await;
}

/// Connections that are open and idle do not keep probes from their answer.
#[tokio::test]
async fn the_admin_listener_answers_whoever_holds_its_connections() {
    let relay = relay("");
    let mut idle = Vec::new();
    for number in 0..200 {
        let mut client = RawClient::new(TcpStream::connect(relay.admin).await.unwrap());
        match number % 3 {
            0 => {}
            1 => client.send("GET /livez HTTP/1.1\r\nHost: loc").await,
            _ => {
                client.send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
                assert_eq!(client.answer("GET").await.status, 200);
            }
        }
        idle.push(client);
        if number % 20 == 0 {
            let answer = timeout(Duration::from_secs(5), get(relay.admin, "/livez")).await;
            assert_eq!(answer.expect("in time").status, 200, "with {number} open");
        }
    }
    for path in ["/livez", "/readyz?verbose", "/metrics"] {
        timeout(Duration::from_secs(5), get(relay.admin, path)).await.expect(path);
    }
    // Who came last is still served.
    let last = idle.last_mut().unwrap();
    last.send("lhost\r\n\r\n").await;
    assert_eq!(last.answer("GET").await.status, 200);
}
