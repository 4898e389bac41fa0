//! The relay stands still for a while, as on a virtual machine that is moved: SIGSTOP and SIGCONT. Whoever kept its time
//! meanwhile is not made to pay for it.

use std::process::Command;
use std::time::Duration;

use stomp_relay::stomp::Command::Receipt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::alone;
use crate::support::condition::eventually;
use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay_process::RelayProcess;
use crate::support::stomp::{Client, DEADLINE, Received};

/// Longer than any deadline that is set below.
const STANDSTILL: Duration = Duration::from_secs(8);

const SETTINGS: &str = "[websocket]\nping_interval = \"2s\"\npong_timeout = \"1s\"\n\
                        [session]\nlogin_timeout = \"3s\"\nwrite_timeout = \"2s\"\nconfirm_timeout = \"3s\"\n\
                        [broker]\noperation_timeout = \"3s\"\n[http]\nhead_timeout = \"3s\"\n";

const CONNECT: &str = "CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\nheart-beat:1000,1000\n\n";

fn signal(relay: &RelayProcess, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &relay.pid.to_string()]).status();
    assert!(status.expect("kill can be run").success());
}

/// Beats twice as often as it has to, until it is told to stop; how its session ended if that was before.
async fn beat(mut client: Client, stop: CancellationToken) -> Result<Client, String> {
    let mut beats = interval(Duration::from_millis(500));
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(client),
            _ = beats.tick() => client.send_bytes(b"\n").await,
            received = client.next() => match received {
                Received::Heartbeat => {}
                other => return Err(format!("{other:?}")),
            },
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_beat_punctually_survive_a_standstill() {
    let _alone = alone().await;
    let program = env!("CARGO_BIN_EXE_stomp-relay");
    let relay = RelayProcess::start(program, &[Rabbit::shared().uri()], SETTINGS, 1024);
    let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
    for _ in 0..60 {
        let mut client = Client::open(&relay.ws).await;
        client.send(CONNECT).await;
        client.expect("CONNECTED").await;
        tasks.spawn(beat(client, stop.clone()));
    }
    // One waits for a confirm, one has yet to log in, one has said half of its request.
    let mut sender = Client::open(&relay.ws).await;
    sender.send(CONNECT).await;
    sender.expect("CONNECTED").await;
    let queue = unique("/queue/standstill");
    sender.send(&format!("SEND\ndestination:{queue}\nreceipt:first\n\nx")).await;
    sender.receipt("first").await;
    let mut newcomer = Client::open(&relay.ws).await;
    let address = relay.ws.trim_start_matches("ws://").trim_end_matches("/ws").to_owned();
    let mut halfway = TcpStream::connect(&address).await.expect("the relay listens");
    halfway.write_all(format!("GET /ws HTTP/1.1\r\nHost: {address}\r\n").as_bytes()).await.expect("written");
    sender.send(&format!("SEND\ndestination:{queue}\nreceipt:second\n\nx")).await;
    signal(&relay, "STOP");
    sleep(Duration::from_millis(500)).await;
    newcomer.send(CONNECT).await;
    let rest = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    halfway.write_all(rest.as_bytes()).await.expect("written");
    sleep(STANDSTILL).await;
    signal(&relay, "CONT");
    sender.receipt("second").await;
    newcomer.expect("CONNECTED").await;
    let mut head = [0; 12];
    tokio::time::timeout(DEADLINE, halfway.read_exact(&mut head)).await.expect("an answer").expect("an answer");
    assert_eq!(std::str::from_utf8(&head), Ok("HTTP/1.1 101"));
    // Longer than a beat and a pong may take.
    sleep(Duration::from_secs(4)).await;
    stop.cancel();
    let mut ended = Vec::new();
    while let Some(result) = tasks.join_next().await {
        match result.expect("no panic") {
            Ok(client) => client.disconnect().await,
            Err(how) => ended.push(how),
        }
    }
    assert!(ended.is_empty(), "{} of 60 were closed: {:?}", ended.len(), ended.first());
}

/// RabbitMQ gives the relay's connections up meanwhile: what the client acknowledges by the ids it had reaches no other message,
/// and a RECEIPT is of what RabbitMQ has.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_held_over_a_standstill_comes_again() {
    const HELD: usize = 20;
    let _alone = alone().await;
    let settings = SETTINGS.replace("[broker]\n", "[broker]\nheartbeat = \"2s\"\n");
    let program = env!("CARGO_BIN_EXE_stomp-relay");
    let relay = RelayProcess::start(program, &[Rabbit::shared().uri()], &settings, 1024);
    let (queue, other) = (unique("/queue/held"), unique("/queue/sent"));
    let mut client = Client::open(&relay.ws).await;
    client.send(&CONNECT.replace("1000,1000", "0,0")).await;
    client.expect("CONNECTED").await;
    client.subscribe(&format!("id:0\ndestination:{queue}\nack:client-individual")).await;
    let mut ids = Vec::new();
    for number in 0..HELD {
        client.send(&format!("SEND\ndestination:{queue}\n\n{number}")).await;
        ids.push(client.message(&number.to_string()).await.header("ack").expect("an id").to_owned());
    }
    signal(&relay, "STOP");
    for id in &ids[..HELD / 2] {
        client.send(&format!("ACK\nid:{id}\n\n")).await;
    }
    client.send(&format!("SEND\ndestination:{other}\nreceipt:sent\n\nx")).await;
    sleep(STANDSTILL).await;
    // A busy RabbitMQ may take longer than two heart-beats to give the relay up.
    let admin = Rabbit::shared().admin().await;
    let taken_back = async || admin.ready(&queue["/queue/".len()..]).await == Some(HELD as u32);
    eventually("RabbitMQ has taken back what is held", taken_back).await;
    signal(&relay, "CONT");
    let (mut again, mut confirmed) = (Vec::new(), false);
    while again.len() < HELD || !confirmed {
        let frame = client.frame().await;
        if frame.command == Receipt {
            confirmed = true;
            continue;
        }
        assert_eq!(frame.header("redelivered"), Some("true"), "{frame:?}");
        again.push(String::from_utf8(frame.body.to_vec()).expect("text"));
        client.send(&format!("ACK\nid:{}\n\n", frame.header("ack").expect("an id"))).await;
    }
    assert_eq!(again, (0..HELD).map(|number| number.to_string()).collect::<Vec<_>>());
    client.disconnect().await;
    let ready = async |name: &str| admin.ready(&name["/queue/".len()..]).await;
    assert_eq!((ready(&queue).await, ready(&other).await), (Some(0), Some(1)));
}
