//! Many subscribers that do not read, beside sessions that work, in a process with a small budget.

use std::time::Duration;

use futures_util::future::join_all;

use super::works;
use crate::faults::alone;
use crate::support::condition::eventually;
use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay_process::RelayProcess;
use crate::support::stomp::Client;

const SLOW: usize = 500;
const WORKING: usize = 20;
const BUDGET: u64 = 384 << 20;
const BODY_BYTES: usize = 64 * 1024;
/// What one subscriber may hold, several times over.
const MESSAGES: usize = 200;
/// At a time, so that the broker's limit on logins in a second is none.
const AT_ONCE: usize = 50;
const ENDED: &str = "stomp_relay_memory_sessions_ended_total{limit=\"process\"}";

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_do_not_read_the_largest_go_and_those_who_work_stay() {
    let _alone = alone().await;
    // Nobody among them answers a ping.
    let settings = format!("[limits]\nmemory_max = \"{BUDGET}B\"\n[websocket]\nping_interval = \"5m\"\n");
    let relay = RelayProcess::start(env!("CARGO_BIN_EXE_stomp-relay"), &[Rabbit::shared().uri()], &settings, 2048);
    let mut working = Vec::new();
    for _ in 0..WORKING {
        working.push(subscriber(&relay, &format!("/topic/{}", unique("works")), "auto").await);
    }
    let (topic, admin) = (unique("slow"), Rabbit::shared().admin().await);
    let mut slow = Vec::new();
    while slow.len() < SLOW {
        let more = (0..AT_ONCE).map(async |_| subscriber(&relay, &format!("/topic/{topic}"), "client").await.0);
        slow.extend(join_all(more).await);
    }
    let (body, mut peak) = (vec![b'x'; BODY_BYTES], 0);
    for number in 0..MESSAGES {
        admin.publish("amq.topic", &topic, lapin::BasicProperties::default(), &body).await;
        peak = peak.max(relay.resident_bytes());
        let (client, topic) = &mut working[number % WORKING];
        works(client, topic).await;
    }
    eventually("some of them are ended", async || relay.metric(ENDED) >= 1.0).await;
    for _ in 0..50 {
        peak = peak.max(relay.resident_bytes());
        for (client, topic) in &mut working {
            works(client, topic).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!(
        "{SLOW} do not read: {} of {SLOW} ended, at most {} MiB of {}",
        relay.metric(ENDED),
        peak >> 20,
        BUDGET >> 20
    );
    assert!(peak <= BUDGET, "{} MiB", peak >> 20);
    assert!(relay.metric(ENDED) < SLOW as f64, "those that fit stay");
    drop(slow);
}

async fn subscriber(relay: &RelayProcess, topic: &str, ack: &str) -> (Client, String) {
    let mut client = Client::log_in(&relay.ws).await.expect("there is room");
    client.subscribe(&format!("id:0\ndestination:{topic}\nack:{ack}")).await;
    (client, topic.to_owned())
}
