//! One side of a lease is away, and the other one works: how often each message is delivered, and how often published.

use super::*;
use std::collections::BTreeMap;
use stomp_relay::stomp::{Command, Frame};
use tokio::task::block_in_place;

/// As the relay's AMQP connections begin.
const CONSUMING: &str = "stomp-relay consume";
const PUBLISHING: &str = "stomp-relay publish";

const MESSAGES: usize = 50;

/// What RabbitMQ 4 has for quorum queues by itself.
const DELIVERY_LIMIT: u32 = 20;

/// A client with all messages of a quorum queue delivered, and none acknowledged.
struct Scene {
    admin: Admin,
    client: Client,
    proxy: FaultProxy,
    queue: String,
    relay: Relay,
    /// By body: how often it came, and the newest `ack`.
    seen: BTreeMap<String, (usize, String)>,
}

impl Scene {
    async fn new(settings: &str) -> Scene {
        let rabbit = Rabbit::shared();
        let proxy = FaultProxy::start(rabbit.amqp_port()).await;
        let relay = Relay::start_at(&format!("amqp://127.0.0.1:{}", proxy.port()), settings);
        let queue = unique("sides");
        let admin = rabbit.admin().await;
        let client = relay.client().await;
        let mut scene = Scene { admin, client, proxy, queue, relay, seen: BTreeMap::new() };
        let queue = scene.queue.clone();
        let kind = format!("x-queue-type:quorum\nx-delivery-limit:{DELIVERY_LIMIT}\nauto-delete:false");
        let subscribe = format!("id:q\ndestination:/queue/{queue}\nack:client-individual\nprefetch-count:100\n{kind}");
        scene.client.subscribe(&subscribe).await;
        for number in 0..MESSAGES {
            scene.admin.send(&queue, format!("m{number}").as_bytes()).await;
        }
        while scene.seen.len() < MESSAGES {
            scene.frame().await;
        }
        scene
    }

    /// The next frame, noted if it is a message.
    async fn frame(&mut self) -> Frame {
        let frame = self.client.frame().await;
        if frame.command == Command::Message {
            let body = String::from_utf8_lossy(&frame.body).into_owned();
            let entry = self.seen.entry(body).or_default();
            assert_eq!(frame.header("redelivered"), Some(if entry.0 == 0 { "false" } else { "true" }), "{frame:?}");
            *entry = (entry.0 + 1, frame.header("ack").unwrap_or_default().to_owned());
        }
        frame
    }

    /// From now on there are no such connections.
    async fn cut(&mut self, connections: &str) {
        let before = self.proxy.live();
        self.proxy.ban(Some(connections));
        eventually("a connection is cut", async || self.proxy.live() < before).await;
    }

    async fn send(&mut self, receipt: &str) {
        let queue = &self.queue;
        self.client.send(&format!("SEND\ndestination:/amq/queue/{queue}-other\nreceipt:{receipt}\n\n{receipt}")).await;
    }

    /// Reads on until the RECEIPT of this.
    async fn receipt(&mut self, receipt: &str) {
        loop {
            let frame = self.frame().await;
            match frame.command {
                Command::Message => {}
                Command::Receipt if frame.header("receipt-id") == Some(receipt) => return,
                _ => panic!("unexpected {frame:?}"),
            }
        }
    }

    /// Everything is still there to be acknowledged; how often each message came at most.
    async fn finish(mut self) -> usize {
        let most = self.seen.values().map(|(times, _)| *times).max().unwrap_or_default();
        assert_eq!(self.seen.len(), MESSAGES);
        for (number, (_, ack)) in self.seen.values().enumerate() {
            self.client.send(&format!("ACK\nid:{ack}\nreceipt:a{number}\n\n")).await;
            self.client.expect("RECEIPT").await;
        }
        // A channel of RabbitMQ holds acknowledgements of a quorum queue back while 32 of its commands are under way, and forgets
        // those that are left when it closes.
        let messages = format!("{}\t0", self.queue);
        eventually("the queue has every acknowledgement", async || {
            let list = block_in_place(|| Rabbit::shared().ctl(&["list_queues", "name", "messages"]));
            list.lines().any(|line| line == messages)
        })
        .await;
        self.client.disconnect().await;
        assert_eq!(self.admin.ready(&self.queue).await, Some(0), "acknowledged, and none came back");
        self.admin.delete(&self.queue).await;
        drop(self.relay);
        most
    }
}

/// RabbitMQ closes the channel for the SEND while the relay ends the session for what came behind it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_on_the_way_out_holds_nothing_back() {
    let rabbit = Rabbit::shared();
    let (relay, admin) = (Relay::start(rabbit), rabbit.admin().await);
    for behind in ["SEND\nnonsense\n\n\0", "FOO\n\n\0"] {
        let queue = unique("way-out");
        admin.queue(&queue).await;
        admin.send(&queue, b"hello").await;
        let mut client = relay.client().await;
        client.subscribe(&format!("id:0\ndestination:/amq/queue/{queue}\nack:client")).await;
        client.message("hello").await;
        client.send_bytes(format!("SEND\ndestination:/exchange/missing/key\n\nx\0{behind}").as_bytes()).await;
        client.expect("ERROR").await;
        client.closed().await;
        // Longer than that, and it waits for an answer that never comes, up to broker.operation_timeout.
        let back = eventually("the message is back", async || admin.ready(&queue).await == Some(1));
        tokio::time::timeout(Duration::from_secs(8), back).await.expect("it is not held back");
        admin.delete(&queue).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_delivered_stays_delivered_while_publishing_is_away() {
    let mut scene = Scene::new("").await;
    let other = format!("{}-other", scene.queue);
    scene.admin.queue(&other).await;
    scene.send("before").await;
    scene.receipt("before").await;
    scene.proxy.ban(Some(PUBLISHING));
    scene.send("first").await;
    // Acknowledgements behind it go on, and so do deliveries.
    let ack = scene.seen["m0"].1.clone();
    for round in 0..5 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let body = format!("n{round}");
        let queue = scene.queue.clone();
        scene.admin.send(&queue, body.as_bytes()).await;
        while !scene.seen.contains_key(&body) {
            scene.frame().await;
        }
        let newest = scene.seen.remove(&body).expect("it came").1;
        scene.client.send(&format!("ACK\nid:{newest}\nreceipt:{body}\n\n")).await;
        scene.receipt(&body).await;
    }
    scene.send("second").await;
    scene.proxy.ban(None);
    scene.receipt("first").await;
    scene.receipt("second").await;
    assert_eq!(scene.seen["m0"].1, ack);
    for body in ["before", "first", "second"] {
        assert_eq!(scene.admin.get(&other).await.data, body.as_bytes());
    }
    assert_eq!(scene.admin.ready(&other).await, Some(0), "published once");
    scene.admin.delete(&other).await;
    assert_eq!(scene.finish().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_side_that_flaps_repeats_no_delivery() {
    let mut scene = Scene::new("").await;
    let other = format!("{}-other", scene.queue);
    scene.admin.queue(&other).await;
    scene.send("before").await;
    scene.receipt("before").await;
    for round in 0..6 {
        let receipt = format!("r{round}");
        scene.cut(PUBLISHING).await;
        scene.send(&receipt).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        scene.proxy.ban(None);
        scene.receipt(&receipt).await;
    }
    scene.admin.delete(&other).await;
    assert_eq!(scene.finish().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grace_bounds_a_publish_side_that_is_away() {
    let mut scene = Scene::new("[broker]\ngrace = \"3s\"\n").await;
    scene.proxy.ban(Some(PUBLISHING));
    let start = Instant::now();
    scene.send("late").await;
    let error = scene.client.error("Broker outage").await;
    assert_eq!(error.header("receipt-id"), Some("late"), "{error:?}");
    assert!((3..6).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert_eq!(scene.client.closed().await.0, 1011);
    // They were delivered once, and are all there.
    let back = eventually("all come back", async || scene.admin.ready(&scene.queue).await == Some(MESSAGES as u32));
    back.await;
    scene.admin.delete(&scene.queue).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_published_once_while_consuming_is_away() {
    let mut scene = Scene::new("").await;
    let other = format!("{}-other", scene.queue);
    scene.admin.queue(&other).await;
    scene.send("before").await;
    scene.receipt("before").await;
    for round in 0..3 {
        let receipt = format!("r{round}");
        scene.proxy.ban(Some(CONSUMING));
        scene.send(&receipt).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        scene.proxy.ban(None);
        scene.receipt(&receipt).await;
        // The subscription is there again when all have come again.
        while scene.seen.values().any(|(times, _)| *times < round + 2) {
            scene.frame().await;
        }
    }
    assert_eq!(scene.admin.ready(&other).await, Some(4), "published once");
    scene.admin.delete(&other).await;
    assert_eq!(scene.finish().await, 4, "one delivery for each loss");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consume_side_that_flaps_is_asked_for_more_and_more_slowly() {
    let mut scene = Scene::new("").await;
    let end = Instant::now() + Duration::from_secs(8);
    // Each time as soon as it has everything again.
    let mut losses = 0;
    while Instant::now() < end {
        scene.cut(CONSUMING).await;
        losses += 1;
        scene.proxy.ban(None);
        while scene.seen.values().any(|(times, _)| *times <= losses) {
            scene.frame().await;
        }
    }
    assert!(losses <= 20, "{losses} deliveries are lost to a link that does not hold");
    assert_eq!(scene.finish().await, losses + 1);
}
