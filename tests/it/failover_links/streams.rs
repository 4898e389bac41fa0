//! Subscriptions to streams over an outage: nothing that was settled comes again, nothing that came meanwhile is missed.

use super::*;
use stomp_relay::stomp::Command;

/// As the relay's AMQP connections begin.
const CONSUMING: &str = "stomp-relay consume";

/// A client and a stream of its own that had some messages before.
struct Scene {
    admin: Admin,
    client: Client,
    proxy: FaultProxy,
    queue: String,
    _relay: Relay,
}

impl Scene {
    async fn new(headers: &str) -> Scene {
        let rabbit = Rabbit::shared();
        let proxy = FaultProxy::start(rabbit.amqp_port()).await;
        let relay = Relay::start_at(&format!("amqp://127.0.0.1:{}", proxy.port()), "");
        let admin = rabbit.admin().await;
        let queue = unique("stream");
        admin.typed_queue(&queue, "stream").await;
        let client = relay.client().await;
        let mut scene = Scene { admin, client, proxy, queue, _relay: relay };
        scene.publish(0..3).await;
        let queue = &scene.queue;
        let subscribe = format!("id:s\ndestination:/amq/queue/{queue}\nprefetch-count:50\n{headers}");
        scene.client.subscribe(&subscribe).await;
        scene
    }

    async fn publish(&mut self, numbers: std::ops::Range<usize>) {
        for number in numbers {
            self.admin.send(&self.queue, number.to_string().as_bytes()).await;
        }
    }

    /// What comes up to the number `last`: each number, and whether it is flagged. The first `acknowledged` are,
    /// and the relay has their ACKs at the end: one that came after an outage began would settle nothing.
    async fn read(&mut self, last: usize, acknowledged: usize) -> Vec<(usize, bool)> {
        let mut read = Vec::new();
        let mut acks = Vec::new();
        while read.last().is_none_or(|(number, _)| *number < last) {
            let frame = self.client.frame().await;
            assert_eq!(frame.command, Command::Message, "{frame:?}");
            let number = String::from_utf8_lossy(&frame.body).parse().expect("a number");
            if read.len() < acknowledged {
                acks.push(frame.header("ack").expect("a client mode").to_owned());
            }
            read.push((number, frame.header("redelivered") == Some("true")));
        }
        for ack in acks {
            self.client.send(&format!("ACK\nid:{ack}\nreceipt:{ack}\n\n")).await;
            let frame = self.client.frame().await;
            assert!(frame.command == Command::Receipt && frame.header("receipt-id") == Some(&*ack), "{frame:?}");
        }
        read
    }

    async fn outage(&mut self, meanwhile: std::ops::Range<usize>) {
        let before = self.proxy.live();
        self.proxy.ban(Some(CONSUMING));
        eventually("a connection is cut", async || self.proxy.live() < before).await;
        self.publish(meanwhile).await;
        self.proxy.ban(None);
    }

    async fn finish(self) {
        self.client.disconnect().await;
        self.admin.delete(&self.queue).await;
    }
}

fn fresh(numbers: std::ops::Range<usize>) -> Vec<(usize, bool)> {
    numbers.map(|number| (number, false)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_behind_what_was_settled() {
    let mut scene = Scene::new("ack:client-individual\nx-stream-offset:first").await;
    assert_eq!(scene.read(2, 2).await, fresh(0..3));
    scene.outage(3..5).await;
    assert_eq!(scene.read(4, 3).await, [(2, true), (3, false), (4, false)]);
    scene.outage(5..7).await;
    assert_eq!(scene.read(6, 2).await, fresh(5..7));
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_to_a_stream_meanwhile_is_not_missed() {
    for headers in ["x-stream-offset:next", "x-stream-offset:last", "ack:auto\nx-stream-offset:next"] {
        let mut scene = Scene::new(headers).await;
        scene.publish(3..4).await;
        scene.read(3, 0).await;
        scene.outage(4..24).await;
        assert_eq!(scene.read(23, 0).await, fresh(4..24), "{headers}");
        scene.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_to_a_stream_before_its_first_delivery_is_not_missed() {
    let mut scene = Scene::new("x-stream-offset:next").await;
    scene.outage(3..23).await;
    let mut read = scene.read(22, 0).await;
    // Some of what came just before the SUBSCRIBE may be among them.
    read.retain(|(number, _)| *number >= 3);
    assert_eq!(read, fresh(3..23));
    scene.finish().await;
}
