//! The only node is killed, paused, or runs out of memory.

use std::time::Duration;

use tokio::task::block_in_place;

use super::{Mix, alone, assert_unharmed, failovers, load};
use crate::support::rabbit::Rabbit;
use crate::support::relay::Relay;
use crate::support::traffic::Traffic;

#[tokio::test(flavor = "multi_thread")]
async fn the_only_node_is_killed_under_500_subscribers() {
    let _alone = alone().await;
    let rabbit = block_in_place(Rabbit::start);
    let relay = Relay::start(&rabbit);
    let mut traffic = Traffic::default();
    load(&relay, &mut traffic, Mix { plain_topic: 300, durable_topic: 100, queues: 100 }).await;
    traffic.confirmed_more(500).await;
    traffic.tally.outage_begins();
    block_in_place(|| rabbit.kill());
    block_in_place(|| rabbit.restart());
    traffic.barrier().await;
    traffic.tally.outage_ends();
    traffic.confirmed_more(500).await;
    assert!(failovers(&relay) >= 500, "the kill was felt by {} only", failovers(&relay));
    let report = traffic.finish().await;
    assert_unharmed("kill -9 of the only node", &report);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_node_is_paused_for_30_seconds() {
    let _alone = alone().await;
    let rabbit = block_in_place(Rabbit::start);
    let relay = Relay::start(&rabbit);
    let mut traffic = Traffic::default();
    load(&relay, &mut traffic, Mix { plain_topic: 20, durable_topic: 10, queues: 10 }).await;
    traffic.confirmed_more(100).await;
    traffic.tally.outage_begins();
    block_in_place(|| rabbit.pause());
    // The pause is the fault itself, not a wait for something.
    tokio::time::sleep(Duration::from_secs(30)).await;
    block_in_place(|| rabbit.resume());
    traffic.barrier().await;
    traffic.tally.outage_ends();
    traffic.confirmed_more(100).await;
    assert!(failovers(&relay) >= 1, "the silence was not felt");
    assert_unharmed("SIGSTOP of the only node for 30 s", &traffic.finish().await);
}
