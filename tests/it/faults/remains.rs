//! What must not pile up: ids of one long session, AMQP connections that are lost again and again, and what the broker still
//! holds of clients of other days.

use std::time::Duration;

use tokio::time::Instant;

use super::alone;
use crate::support::fault_proxy::FaultProxy;
use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay_process::RelayProcess;
use crate::support::stomp::Client;
use crate::support::traffic::{PATIENCE, until};

fn relay_before(broker: &str, settings: &str) -> RelayProcess {
    RelayProcess::start(env!("CARGO_BIN_EXE_stomp-relay"), &[broker.to_owned()], settings, 1024)
}

/// Subscribes and unsubscribes with a receipt each, every time under other ids.
async fn churn(client: &mut Client, topic: &str, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let (on, off) = (format!("on-{number}"), format!("off-{number}"));
        client.send(&format!("SUBSCRIBE\nid:{number}\ndestination:{topic}\nreceipt:{on}\n\n")).await;
        client.receipt(&on).await;
        client.send(&format!("UNSUBSCRIBE\nid:{number}\nreceipt:{off}\n\n")).await;
        client.receipt(&off).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_of_a_long_session_leave_nothing_behind() {
    const WARM_UP: usize = 500;
    const CYCLES: usize = 5_000;
    let _alone = alone().await;
    let relay = relay_before(&Rabbit::shared().uri(), "[broker]\nframe_bytes_max = \"8KiB\"\n");
    let topic = unique("/topic/long");
    // Keeps the shared queue, so that only the session's own memory is looked at.
    let mut other = Client::log_in(&relay.ws).await.expect("let in");
    other.subscribe(&format!("id:0\ndestination:{topic}")).await;
    let mut client = Client::log_in(&relay.ws).await.expect("let in");
    churn(&mut client, &topic, 0..WARM_UP).await;
    let before = relay.resident_bytes();
    churn(&mut client, &topic, WARM_UP..WARM_UP + CYCLES).await;
    let grown = relay.resident_bytes().saturating_sub(before);
    println!("{CYCLES} subscriptions, one after the other: {} KiB more", grown / 1024);
    assert!(grown < 1 << 20, "{grown} bytes, {} for each", grown / CYCLES as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_lost_again_and_again_leave_nothing_behind() {
    const CUTS: u64 = 20;
    let _alone = alone().await;
    let proxy = FaultProxy::start(Rabbit::shared().amqp_port()).await;
    let relay = relay_before(&format!("amqp://127.0.0.1:{}", proxy.port()), "");
    let topic = unique("/topic/rebuilt");
    let mut client = Client::log_in(&relay.ws).await.expect("let in");
    client.subscribe(&format!("id:0\ndestination:{topic}")).await;
    let mut counts = Vec::new();
    for cut in 1..=CUTS {
        client.send(&format!("SEND\ndestination:{topic}\nreceipt:r\n\n{cut}")).await;
        client.frame().await;
        client.frame().await;
        // Connections that were given up end in their own time; the first one that fits is taken.
        if cut > 2 {
            let (threads, descriptors) = *counts.get(1).expect("two rounds are over");
            let flat = || relay.threads() <= threads && relay.descriptors() <= descriptors;
            until("threads and descriptors are as before", PATIENCE, flat).await;
        }
        counts.push((relay.threads(), relay.descriptors()));
        proxy.cut();
        until("the cut is felt", PATIENCE, || relay.metric("stomp_relay_failovers_total") >= cut as f64).await;
    }
    println!("threads and descriptors over {CUTS} lost connections: {counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_of_other_days_do_not_hold_up_the_start() {
    const QUEUES: usize = 1_000;
    let _alone = alone().await;
    let rabbit = Rabbit::shared();
    let (admin, prefix) = (rabbit.admin().await, unique("leftover"));
    for number in 0..QUEUES {
        admin.queue(&format!("{prefix}-{number}")).await;
    }
    let began = Instant::now();
    let relay = relay_before(&rabbit.uri(), "");
    let mut client = Client::log_in(&relay.ws).await.expect("let in");
    client.subscribe(&format!("id:0\ndestination:/amq/queue/{prefix}-7")).await;
    client.send(&format!("SEND\ndestination:/amq/queue/{prefix}-7\n\nstill there")).await;
    client.message("still there").await;
    println!(
        "with {QUEUES} queues at the broker: {:?} to the first message, {} KiB",
        began.elapsed(),
        relay.resident_bytes() / 1024
    );
    assert!(began.elapsed() < Duration::from_secs(10));
}
