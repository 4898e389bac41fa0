//! One client stalls, or sends something huge: what that costs those beside it is measured and printed, and bounded.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::alone;
use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay_process::RelayProcess;
use crate::support::stomp::{Client, Received};
use crate::support::traffic::until;

const HEALTHY: usize = 20;
const BODY_BYTES: usize = 4096;
/// Messages per 10 ms: 1,000 a second for a release build, what a debug build can take for itself.
const BURST: usize = if cfg!(debug_assertions) { 1 } else { 10 };

/// Times from publish to arrival, in microseconds.
#[derive(Clone, Default)]
struct Latencies(Arc<Mutex<Vec<u64>>>);

impl Latencies {
    fn add(&self, since: Duration) {
        self.0.lock().unwrap().push(since.as_micros() as u64);
    }

    /// Number, median, 99th percentile and maximum; starts anew.
    fn take(&self) -> (usize, String) {
        let mut all = std::mem::take(&mut *self.0.lock().unwrap());
        all.sort_unstable();
        let at = |part: f64| Duration::from_micros(all[((all.len() - 1) as f64 * part) as usize]);
        (all.len(), format!("{} deliveries, p50 {:?}, p99 {:?}, max {:?}", all.len(), at(0.5), at(0.99), at(1.0)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_reader_costs_its_bound_and_is_closed() {
    let _alone = alone().await;
    let settings = "[session]\nwrite_timeout = \"3s\"\n";
    let relay = RelayProcess::start(env!("CARGO_BIN_EXE_stomp-relay"), &[Rabbit::shared().uri()], settings, 1024);
    let (epoch, latencies) = (Instant::now(), Latencies::default());
    let topic = unique("/topic/stall");
    let mut tasks = JoinSet::new();
    for _ in 0..HEALTHY {
        let mut client = Client::log_in(&relay.ws).await.expect("let in");
        client.subscribe(&format!("id:0\ndestination:{topic}")).await;
        let latencies = latencies.clone();
        tasks.spawn(async move {
            while let Received::Frame(frame) = client.next().await {
                let text = std::str::from_utf8(&frame.body).expect("digits and padding");
                let sent = text.trim_end_matches('x').parse().expect("microseconds");
                latencies.add(epoch.elapsed().saturating_sub(Duration::from_micros(sent)));
            }
            panic!("a healthy client was disconnected");
        });
    }
    let publisher = Client::log_in(&relay.ws).await.expect("let in");
    tasks.spawn(publish(publisher, topic.clone(), epoch));
    measured(&latencies, 3000).await;
    let memory = relay.resident_bytes();
    measured(&latencies, 5000).await;
    let (_, before) = latencies.take();
    let mut stalled = Client::log_in(&relay.ws).await.expect("let in");
    stalled.subscribe(&format!("id:0\ndestination:{topic}")).await;
    let mut memory_max = memory;
    let closed = || relay.metric("stomp_relay_connections") <= (HEALTHY + 1) as f64;
    until("the stalled client is closed", Duration::from_secs(60), || {
        memory_max = memory_max.max(relay.resident_bytes());
        closed()
    })
    .await;
    let (count, during) = latencies.take();
    println!(
        "stalled reader: before {before}; during {during}; memory {} KiB, at most {} KiB",
        memory / 1024,
        memory_max / 1024
    );
    assert!(count > 1000, "healthy clients got only {count} messages");
    assert!(relay.log().contains("4004"), "closed by the slow-consumer rule");
    // The stalled client's write buffer and one prefetch, and what the allocator rounds up to.
    let bound = (1 << 20) + 100 * (BODY_BYTES as u64 + 1024) + (16 << 20);
    assert!(memory_max - memory < bound, "memory grew by {} bytes", memory_max - memory);
    if let Some(ended) = tasks.try_join_next() {
        panic!("a healthy client ended: {ended:?}");
    }
}

/// [`BURST`] messages every 10 ms, or as many as the machine can take.
async fn publish(mut client: Client, topic: String, epoch: Instant) {
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut unanswered = 0;
    loop {
        ticks.tick().await;
        for number in 0..BURST {
            let body = format!("{:x<BODY_BYTES$}", epoch.elapsed().as_micros());
            let receipt = if number == 0 { "receipt:r\n" } else { "" };
            client.send(&format!("SEND\ndestination:{topic}\n{receipt}\n{body}")).await;
        }
        unanswered += 1;
        while unanswered > 5 {
            client.expect("RECEIPT").await;
            unanswered -= 1;
        }
    }
}

async fn measured(latencies: &Latencies, more: usize) {
    latencies.0.lock().unwrap().clear();
    until("messages arrive", Duration::from_secs(60), || latencies.0.lock().unwrap().len() >= more).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_holds_nobody_up_for_long() {
    let _alone = alone().await;
    const LARGE: usize = 16 << 20;
    let settings = "[stomp]\nframe_bytes_max = \"32MiB\"\n[session]\nunconfirmed_bytes_max = \"64MiB\"\n";
    let relay = RelayProcess::start(env!("CARGO_BIN_EXE_stomp-relay"), &[Rabbit::shared().uri()], settings, 1024);
    let latencies = Latencies::default();
    let mut tasks = JoinSet::new();
    for _ in 0..5 {
        let mut client = Client::log_in(&relay.ws).await.expect("let in");
        let (topic, latencies) = (unique("/topic/small"), latencies.clone());
        tasks.spawn(async move {
            client.subscribe(&format!("id:0\ndestination:{topic}")).await;
            loop {
                let sent = Instant::now();
                client.send(&format!("SEND\ndestination:{topic}\n\nsmall")).await;
                client.message("small").await;
                latencies.add(sent.elapsed());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
    }
    measured(&latencies, 500).await;
    measured(&latencies, 500).await;
    let (_, before) = latencies.take();
    let mut large = Client::log_in(&relay.ws).await.expect("let in");
    let mut frame = format!("SEND\ndestination:/topic/large\nreceipt:r\ncontent-length:{LARGE}\n\n").into_bytes();
    frame.resize(frame.len() + LARGE, b'x');
    frame.push(0);
    let began = Instant::now();
    large.send_bytes(&frame).await;
    large.receipt("r").await;
    let took = began.elapsed();
    let (count, during) = latencies.take();
    println!("a body of 16 MiB took {took:?}; small ones before: {before}; meanwhile: {during}");
    assert!(count >= 5, "the small ones waited for the large one");
    if let Some(ended) = tasks.try_join_next() {
        panic!("a small client ended: {ended:?}");
    }
}
