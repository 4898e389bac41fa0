//! What is laborious to decode is decoded in turns: the neighbours on the same thread go on.

use std::time::{Duration, Instant};

use super::works;
use crate::faults::alone;
use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay_process::RelayProcess;
use crate::support::stomp::Client;

const PINGS: usize = 40;

/// 4 MB of header lines, each of which is compared with those before it.
fn laborious() -> String {
    let lines = (0..90_000).map(|number| format!("a{}:{}\n", number % 90, "v".repeat(37))).collect::<String>();
    format!("SEND\ndestination:/topic/turns\n{lines}")
}

/// Sends one such frame after the other and waits for each; how long each took.
async fn attack(client: &mut Client, frame: &str) -> Duration {
    let start = Instant::now();
    client.send(&format!("{frame}receipt:done\n\nx")).await;
    client.receipt("done").await;
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Two of them keep the only thread busy. A message of a neighbour needs that thread some ten times on its way: with whole
/// frames decoded in one go it would take longer than several of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_waits_for_no_whole_frame() {
    let _alone = alone().await;
    let settings = "[runtime]\nworker_threads = 1\n[stomp]\nheader_lines_max = 100000\nheader_bytes_max = \"8MiB\"\n\
                    frame_bytes_max = \"8MiB\"\n";
    let relay = RelayProcess::start(env!("CARGO_BIN_EXE_stomp-relay"), &[Rabbit::shared().uri()], settings, 1024);
    let frame = laborious();
    let attackers = (0..2).map(|_| {
        let (url, frame) = (relay.ws.clone(), frame.clone());
        tokio::spawn(async move {
            let mut client = Client::log_in(&url).await.expect("there is room");
            let mut times = Vec::new();
            loop {
                times.push(attack(&mut client, &frame).await);
                if times.len() == 8 {
                    return times;
                }
            }
        })
    });
    let attackers = attackers.collect::<Vec<_>>();
    let (mut neighbour, topic) = (Client::log_in(&relay.ws).await.expect("there is room"), unique("turns"));
    let topic = format!("/topic/{topic}");
    neighbour.subscribe(&format!("id:0\ndestination:{topic}")).await;
    let mut pings = Vec::new();
    while pings.len() < PINGS && attackers.iter().all(|attacker| !attacker.is_finished()) {
        let start = Instant::now();
        works(&mut neighbour, &topic).await;
        pings.push(start.elapsed());
    }
    let mut frames = Vec::new();
    for attacker in attackers {
        frames.extend(attacker.await.expect("it is served as well"));
    }
    let (ping, count, frame) = (median(pings.clone()), pings.len(), median(frames));
    println!("{count} messages beside frames of {frame:?}: {ping:?}");
    assert!(count > 0, "the neighbour was not served at all");
    assert!(ping < frame / 2, "a message takes {ping:?} beside frames that take {frame:?}");
}
