//! Thousands of clients come and go, in orderly and other ways: nothing of them stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::{JoinSet, block_in_place};
use tokio::time::Instant;

use super::alone;
use crate::support::rabbit::Rabbit;
use crate::support::relay_process::RelayProcess;
use crate::support::stomp::Client;
use crate::support::traffic::until;

const CYCLES: usize = 10_000;
/// On a busy machine so many will do.
const CYCLES_MIN: usize = 3_000;
const TIME: Duration = Duration::from_secs(60);
const AT_A_TIME: usize = 24;
/// Until caches and pools have their size.
const WARM_UP: usize = 1_000;
/// Memory that may come and go with the allocator's mood; a leak of 1.5 KiB per cycle would be over it.
const SLACK: u64 = 4 << 20;
/// lapin's two buffers of a link, rings of 32 frames each, are used from end to end before they are used again: small ones
/// have their final size after the warm-up; those of the default would go on growing to 8 MiB.
const SETTINGS: &str = "[broker]\nframe_bytes_max = \"8KiB\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_clients_come_and_go_without_a_trace() {
    let _alone = alone().await;
    let rabbit = block_in_place(Rabbit::start);
    let relay = RelayProcess::start(env!("CARGO_BIN_EXE_stomp-relay"), &[rabbit.uri()], SETTINGS, 4096);
    let url = Arc::new(relay.ws.clone());
    cycles(&url, WARM_UP, Duration::MAX).await;
    gone(&relay, &rabbit).await;
    let (memory, descriptors) = (relay.resident_bytes(), relay.descriptors());
    let done = cycles(&url, CYCLES, TIME).await;
    gone(&relay, &rabbit).await;
    let (memory_now, descriptors_now, threads) = (relay.resident_bytes(), relay.descriptors(), relay.threads());
    println!(
        "{done} cycles: memory {} KiB to {} KiB, descriptors {descriptors} to {descriptors_now}, {threads} threads",
        memory / 1024,
        memory_now / 1024,
    );
    assert!(memory_now < memory + SLACK, "memory grew from {memory} to {memory_now} bytes in {done} cycles");
    // Idle links may have gone since.
    assert!(descriptors_now <= descriptors + 4, "descriptors grew from {descriptors} to {descriptors_now}");
}

/// Runs so many cycles, or as many as the time allows but enough; how many it were.
async fn cycles(url: &Arc<String>, count: usize, time: Duration) -> usize {
    let next = Arc::new(AtomicUsize::new(0));
    let end = Instant::now().checked_add(time);
    let mut tasks = JoinSet::new();
    for _ in 0..AT_A_TIME {
        let (next, url) = (next.clone(), url.clone());
        tasks.spawn(async move {
            let mut done = 0;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let is_over = || end.is_some_and(|end| Instant::now() > end);
                if number >= count || (number >= CYCLES_MIN && is_over()) {
                    return done;
                }
                cycle(&url, number).await;
                done += 1;
            }
        });
    }
    let mut done = 0;
    while let Some(task) = tasks.join_next().await {
        done += task.expect("a client gets what it asks for");
    }
    done
}

async fn cycle(url: &str, number: usize) {
    let mut client = Client::log_in(url).await.expect("the relay lets clients in");
    let headers = ["", "durable:true\nauto-delete:true\n", "ack:client\n"][number % 3];
    let subscribe =
        format!("SUBSCRIBE\nid:0\ndestination:/topic/churn.{number}\n{headers}x-queue-name:churn-{number}\n\n");
    let send = format!("SEND\ndestination:/topic/churn.{number}\nreceipt:r\n\nhello");
    client.send(&subscribe).await;
    client.send(&send).await;
    match number % 5 {
        // In order.
        0 => {
            let (one, other) = (client.frame().await, client.frame().await);
            assert!([&one, &other].iter().any(|frame| frame.command.as_str() == "RECEIPT"), "{one:?} {other:?}");
            client.disconnect().await;
        }
        // After the answers, without a word.
        1 => {
            client.frame().await;
            client.frame().await;
        }
        // Amid a subscription and a publish.
        2 => {}
        // In the middle of a frame.
        3 => client.send_bytes(b"SEND\ndestination:/topic/chu").await,
        // By a mistake.
        _ => {
            client.send("NONSENSE\n\n").await;
            while client.frame().await.command.as_str() != "ERROR" {}
            client.closed().await;
        }
    }
}

/// Waits until neither relay nor broker has anything of any client.
async fn gone(relay: &RelayProcess, rabbit: &Rabbit) {
    until("the relay has no clients", Duration::from_secs(30), || relay.metric("stomp_relay_connections") == 0.0).await;
    let limit = Duration::from_secs(60);
    for what in ["queues", "channels", "consumers"] {
        until(&format!("the broker has no {what}"), limit, || {
            let list = block_in_place(|| rabbit.ctl(&[&format!("list_{what}"), "--no-table-headers"]));
            let left = list.trim().lines().count();
            left == 0
        })
        .await;
    }
}
