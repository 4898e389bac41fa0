//! Clients take all the file descriptors that they can: those that are in are served, newcomers take the places of strangers, and
//! what the relay needs itself it has, a lost connection to RabbitMQ and the operators' listener included.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::alone;
use crate::support::cut_proxy::CutProxy;
use crate::support::process::get;
use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay_process::RelayProcess;
use crate::support::stomp::{Client, address};
use crate::support::traffic::until;

const PROGRAM: &str = env!("CARGO_BIN_EXE_stomp-relay");

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_with_few_descriptors_serves_those_it_has_and_says_so() {
    const DESCRIPTORS_MAX: u32 = 80;
    let _alone = alone().await;
    let relay = RelayProcess::start(PROGRAM, &[Rabbit::shared().uri()], "", DESCRIPTORS_MAX);
    let told = || relay.log().contains("the limit on open files allows for fewer clients");
    until("the log says so", Duration::from_secs(20), told).await;
    let mut first = Client::log_in(&relay.ws).await.expect("there are descriptors");
    first.subscribe("id:0\ndestination:/topic/descriptors").await;
    let mut clients = Vec::new();
    while let Ok(Ok(client)) = timeout(Duration::from_secs(10), Client::log_in(&relay.ws)).await {
        clients.push(client);
        assert!(clients.len() < DESCRIPTORS_MAX as usize, "the limit has no effect");
    }
    assert!(clients.len() > 10, "only {} clients fit", clients.len());
    assert!(relay.metric("stomp_relay_connections_rejected_total") > 0.0, "they are told, not left in the backlog");
    first.send("SEND\ndestination:/topic/descriptors\n\nduring").await;
    first.message("during").await;
    clients.truncate(clients.len() / 2);
    until("there is room again", Duration::from_secs(20), || {
        relay.metric("stomp_relay_connections") < clients.len() as f64 + 5.0
    })
    .await;
    Client::log_in(&relay.ws).await.expect("there is room").disconnect().await;
    first.disconnect().await;
}

/// Connections that say nothing, from several networks, until no more are taken.
async fn hold_what_there_is(url: &str, count: usize) -> Vec<TcpStream> {
    let relay: SocketAddr = address(url).parse().expect("an address");
    let mut held = Vec::new();
    for number in 0..count {
        let socket = TcpSocket::new_v4().expect("a socket");
        let network = u8::try_from(number % 20).expect("small");
        socket.bind(SocketAddr::new(Ipv4Addr::new(127, 9, network, 1).into(), 0)).expect("of loopback");
        held.extend(timeout(Duration::from_secs(5), socket.connect(relay)).await.into_iter().flatten());
    }
    held
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_holds_all_descriptors_the_relay_has_its_own() {
    let _alone = alone().await;
    let proxy = CutProxy::start(Rabbit::shared().amqp_port()).await;
    let settings = "[http]\nhead_timeout = \"5m\"\n[limits]\nstranger_timeout = \"5m\"\n[broker]\ngrace = \"60s\"\n";
    let relay = RelayProcess::start(PROGRAM, &[proxy.uri()], settings, 200);
    let topic = unique("descriptors");
    let mut session = Client::log_in(&relay.ws).await.expect("there is room");
    session.subscribe(&format!("id:0\ndestination:/topic/{topic}")).await;
    session.send(&format!("SEND\ndestination:/topic/{topic}\nreceipt:r\n\nbefore")).await;
    session.frame().await;
    session.frame().await;

    let held = hold_what_there_is(&relay.ws, 400).await;
    assert!(held.len() > 200, "{}", held.len());
    assert!(relay.descriptors() < 200, "some are left: {}", relay.descriptors());
    let admin = relay.admin.parse().expect("an address");
    for _ in 0..5 {
        let answer = timeout(Duration::from_secs(5), get(admin, "/livez")).await;
        assert_eq!(answer.expect("it answers").status, 200);
    }
    // Both connections to RabbitMQ are lost and come back.
    proxy.cut();
    until("the session is suspended or back", Duration::from_secs(20), || {
        relay.metric("stomp_relay_failovers_total") >= 1.0
    })
    .await;
    until("it is back", Duration::from_secs(30), || relay.metric("stomp_relay_sessions") >= 1.0).await;
    session.send(&format!("SEND\ndestination:/topic/{topic}\n\nafter")).await;
    session.message("after").await;
    // And somebody new is let in.
    let mut client =
        timeout(Duration::from_secs(20), Client::log_in(&relay.ws)).await.expect("in time").expect("let in");
    client.send(&format!("SEND\ndestination:/topic/{topic}\nreceipt:n\n\nnew")).await;
    client.receipt("n").await;
    session.message("new").await;
    assert!(!relay.log().contains("cannot accept"), "{}", relay.log());
    client.disconnect().await;
    session.disconnect().await;
}
