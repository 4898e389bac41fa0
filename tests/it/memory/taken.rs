//! What RabbitMQ has for a client that reads slowly or not at all stays there, whatever the source: a stream, or a topic that
//! many read.

use std::time::{Duration, Instant};

use super::LARGE;
use crate::faults::alone;
use crate::support::condition::eventually;
use crate::support::rabbit::{Admin, Rabbit, unique};
use crate::support::relay_process::RelayProcess;
use crate::support::stomp::Client;

/// More than any prefetch by default lets through at once, and 390 MB.
const MESSAGES: usize = 100;
/// The session's 4 MiB, one message beyond, copies of two under way, and the buffers of the AMQP connections that come to be used.
const TAKEN_MAX: u64 = 48 << 20;

fn relay() -> RelayProcess {
    let settings = "[limits]\nmemory_max = \"4GiB\"\nsession_bytes_max = \"2GiB\"\n";
    RelayProcess::start(env!("CARGO_BIN_EXE_stomp-relay"), &[Rabbit::shared().uri()], settings, 2048)
}

fn body(number: usize) -> Vec<u8> {
    let mut body = format!("{number:06}").into_bytes();
    body.resize(LARGE, b'x');
    body
}

async fn stream(admin: &Admin) -> String {
    let name = unique("taken");
    admin.typed_queue(&name, "stream").await;
    for number in 0..MESSAGES {
        admin.send(&name, &body(number)).await;
    }
    name
}

/// The most while `time` passes.
async fn peak(relay: &RelayProcess, time: Duration) -> u64 {
    let (end, mut peak) = (Instant::now() + time, 0);
    while Instant::now() < end {
        peak = peak.max(relay.resident_bytes());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    peak
}

fn check(what: &str, start: u64, peak: u64) {
    println!("{what}: {} MiB at first, at most {}", start >> 20, peak >> 20);
    assert!(peak <= start + TAKEN_MAX, "{what}: {} MiB at first, at most {}", start >> 20, peak >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_stream_no_more_than_fits_waits_for_one_that_does_not_read() {
    let _alone = alone().await;
    let (relay, admin) = (relay(), Rabbit::shared().admin().await);
    let name = stream(&admin).await;
    let mut client = Client::log_in(&relay.ws).await.expect("there is room");
    let start = relay.resident_bytes();
    client
        .send(&format!("SUBSCRIBE\nid:0\ndestination:/amq/queue/{name}\nack:client\nx-stream-offset:first\n\n"))
        .await;
    check("a stream, not read", start, peak(&relay, Duration::from_secs(8)).await);
    drop(client);
    admin.delete(&name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_read_slowly_comes_whole_and_in_order() {
    let _alone = alone().await;
    let (relay, admin) = (relay(), Rabbit::shared().admin().await);
    let name = stream(&admin).await;
    let mut client = Client::log_in(&relay.ws).await.expect("there is room");
    let start = relay.resident_bytes();
    client
        .send(&format!("SUBSCRIBE\nid:0\ndestination:/amq/queue/{name}\nack:client\nx-stream-offset:first\n\n"))
        .await;
    let mut most = 0;
    for number in 0..MESSAGES {
        most = most.max(peak(&relay, Duration::from_millis(30)).await);
        let message = client.expect("MESSAGE").await;
        assert_eq!(&message.body[..6], format!("{number:06}").as_bytes());
        if number % 10 == 9 {
            let ack = message.header("ack").expect("a client mode");
            client.send(&format!("ACK\nid:{ack}\n\n")).await;
        }
    }
    check("a stream, read slowly", start, most);
    client.disconnect().await;
    admin.delete(&name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_topic_no_more_than_fits_waits_for_one_that_does_not_read() {
    let _alone = alone().await;
    let (relay, admin) = (relay(), Rabbit::shared().admin().await);
    let topic = unique("taken");
    let mut client = Client::log_in(&relay.ws).await.expect("there is room");
    client.subscribe(&format!("id:0\ndestination:/topic/{topic}")).await;
    let start = relay.resident_bytes();
    let publish = async {
        for number in 0..MESSAGES {
            admin.publish("amq.topic", &topic, lapin::BasicProperties::default(), &body(number)).await;
        }
    };
    let (_, peak) = tokio::join!(publish, peak(&relay, Duration::from_secs(8)));
    check("a topic, not read", start, peak);
    eventually("it is told", async || relay.metric("stomp_relay_sessions_closed_total") >= 1.0).await;
}
