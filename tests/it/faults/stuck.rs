//! Clients that are slow in their own way: one that never acknowledges until RabbitMQ loses patience, one that reads a
//! trickle, one that has no processor left.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, block_in_place};
use tokio::time::Instant;

use super::alone;
use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::relay_process::{RelayProcess, metric};
use crate::support::stomp::{Client, Received};

/// RabbitMQ closes the channel of a consumer that acknowledges too late (`consumer_timeout`); that is the stuck client's alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_acknowledges_is_ended_alone() {
    let _alone = alone().await;
    let rabbit = block_in_place(Rabbit::start);
    let impatient =
        "application:set_env(rabbit, consumer_timeout, 2000), application:set_env(rabbit, channel_tick_interval, 500).";
    block_in_place(|| rabbit.ctl(&["eval", impatient]));
    let relay = Relay::start(&rabbit);
    let (mut stuck, mut healthy) = (relay.client().await, relay.client().await);
    stuck.subscribe("id:0\ndestination:/queue/stuck\nack:client").await;
    healthy.subscribe("id:0\ndestination:/queue/healthy\nack:client-individual").await;
    healthy.send("SEND\ndestination:/queue/stuck\n\nnever acknowledged").await;
    stuck.message("never acknowledged").await;
    let stuck = tokio::spawn(async move {
        let error = stuck.expect("ERROR").await;
        let (code, _) = stuck.closed().await;
        (error, code)
    });
    let mut number = 0;
    while !stuck.is_finished() {
        healthy.send(&format!("SEND\ndestination:/queue/healthy\n\n{number}")).await;
        let message = healthy.message(&number.to_string()).await;
        healthy.send(&format!("ACK\nid:{}\n\n", message.header("ack").expect("an id"))).await;
        number += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (error, code) = stuck.await.expect("an ERROR and a close");
    println!("{error:?} {code}");
    assert!(number > 20, "only {number} messages beside it");
    // What it did not acknowledge is somebody else's now.
    healthy.subscribe("id:1\ndestination:/queue/stuck\nack:client").await;
    assert_eq!(healthy.message("never acknowledged").await.header("redelivered"), Some("true"));
    healthy.disconnect().await;
}

/// A socket with so small a window that the relay feels each read.
async fn narrow(address: &str) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let address = address.parse::<std::net::SocketAddr>().expect("an address");
    socket.connect(&address.into()).expect("the relay listens");
    socket.set_nonblocking(true).expect("for tokio");
    TcpStream::from_std(socket.into()).expect("a runtime")
}

/// `session.write_timeout` is for a socket that takes nothing: a trickle is enough.
#[tokio::test(flavor = "multi_thread")]
async fn a_trickling_reader_is_left_in_peace() {
    const MESSAGES: usize = 1_000;
    const READ: usize = 40;
    let _alone = alone().await;
    let relay = Relay::start_with(Rabbit::shared(), "[session]\nwrite_timeout = \"2s\"\n");
    let queue = unique("/queue/trickle");
    let mut publisher = relay.client().await;
    for number in 0..MESSAGES {
        let receipt = if number + 1 == MESSAGES { "receipt:r\n" } else { "" };
        publisher.send(&format!("SEND\ndestination:{queue}\n{receipt}\n{number:04}{}", "x".repeat(16 * 1024))).await;
    }
    publisher.receipt("r").await;
    let address = relay.ws.trim_start_matches("ws://").trim_end_matches("/ws").to_owned();
    let mut slow = Client::over(&relay.ws, narrow(&address).await).await;
    slow.send("CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n").await;
    slow.expect("CONNECTED").await;
    slow.send(&format!("SUBSCRIBE\nid:0\ndestination:{queue}\nack:auto\nprefetch-count:1000\n\n")).await;
    let began = Instant::now();
    for number in 0..READ {
        let message = slow.expect("MESSAGE").await;
        assert!(message.body.starts_with(format!("{number:04}").as_bytes()), "in order");
        // The pace itself is what is tested.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(began.elapsed() > Duration::from_secs(6), "three times the timeout");
    let waiting = block_in_place(|| metric(&relay.admin.to_string(), "stomp_relay_send_queue_bytes"));
    println!("{waiting} bytes wait for the trickling reader");
    assert!(waiting > 0.0, "the socket took everything, so nothing was tried");
}

/// Burns a processor at the highest priority until it is dropped.
struct Spinner(Child);

impl Spinner {
    fn start() -> Spinner {
        let mut command = Command::new("nice");
        command.args(["-n", "-20", "sh", "-c", "while :; do :; done"]).stdin(Stdio::null());
        Spinner(command.spawn().expect("nice can be run"))
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_are_kept_beside_a_process_that_takes_a_processor() {
    const CLIENTS: usize = 20;
    const BEAT: Duration = Duration::from_secs(1);
    const TIME: Duration = Duration::from_secs(8);
    let _alone = alone().await;
    let relay = RelayProcess::start(env!("CARGO_BIN_EXE_stomp-relay"), &[Rabbit::shared().uri()], "", 1024);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = Client::open(&relay.ws).await;
        client.send("CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\nheart-beat:2000,2000\n\n").await;
        client.expect("CONNECTED").await;
        clients.push(client);
    }
    let _spinner = Spinner::start();
    let mut tasks = JoinSet::new();
    for mut client in clients {
        tasks.spawn(async move {
            let (end, mut beat, mut beats) = (Instant::now() + TIME, tokio::time::interval(BEAT), 0);
            while Instant::now() < end {
                tokio::select! {
                    _ = beat.tick() => client.send_bytes(b"\n").await,
                    received = client.next() => match received {
                        Received::Heartbeat => beats += 1,
                        other => panic!("{other:?}"),
                    }
                }
            }
            beats
        });
    }
    while let Some(beats) = tasks.join_next().await {
        let beats = beats.expect("nobody is closed");
        assert!(beats >= 2, "{beats} heart-beats of the relay in {TIME:?}");
    }
}
