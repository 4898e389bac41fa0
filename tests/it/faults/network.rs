//! The network between relay and broker: connections are cut, or stay open and silent.

use tokio::time::Duration;

use super::{Mix, alone, assert_unharmed, failovers, load};
use crate::support::cut_proxy::{CutProxy, Passage};
use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::traffic::Traffic;

const MIX: Mix = Mix { plain_topic: 10, durable_topic: 6, queues: 6 };

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_the_broker_are_cut_ten_times() {
    let _alone = alone().await;
    let rabbit = Rabbit::shared();
    let proxy = CutProxy::start(rabbit.amqp_port()).await;
    let relay = Relay::start_at(&proxy.uri(), "");
    let mut traffic = Traffic::named(&unique("cut"));
    load(&relay, &mut traffic, MIX).await;
    traffic.tally.outage_begins();
    for _ in 0..10 {
        traffic.confirmed_more(50).await;
        proxy.cut();
    }
    traffic.barrier().await;
    traffic.tally.outage_ends();
    traffic.confirmed_more(50).await;
    assert!(failovers(&relay) >= 10, "the cuts were not felt: {}", failovers(&relay));
    assert_unharmed("TCP cut, ten times", &traffic.finish().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_the_broker_go_silent() {
    let _alone = alone().await;
    let rabbit = Rabbit::shared();
    let proxy = CutProxy::start(rabbit.amqp_port()).await;
    let relay = Relay::start_at(&proxy.uri(), "[broker]\nheartbeat = \"1s\"\nconnect_timeout = \"1s\"\n");
    let mut traffic = Traffic::named(&unique("silent"));
    load(&relay, &mut traffic, MIX).await;
    traffic.confirmed_more(50).await;
    traffic.tally.outage_begins();
    proxy.set(Passage::Silent);
    // Longer than the two heart-beats after which the silence is noticed, so that attempts to come back are swallowed too.
    tokio::time::sleep(Duration::from_secs(5)).await;
    proxy.set(Passage::Open);
    traffic.barrier().await;
    traffic.tally.outage_ends();
    traffic.confirmed_more(50).await;
    assert!(failovers(&relay) >= 1, "the silence was not felt");
    assert_unharmed("half-open connections", &traffic.finish().await);
}
