//! RabbitMQ is short of memory or disk and blocks publishing: SENDs wait at their bound, everything else goes on.

use std::time::{Duration, Instant};

use stomp_relay::server::{Ended, Signal};
use tokio::task::block_in_place;

use super::{Mix, alone, assert_unharmed, load};
use crate::support::rabbit::Rabbit;
use crate::support::relay::Relay;
use crate::support::stomp::{Client, QUIET, Received};
use crate::support::traffic::{Traffic, until};

const WITH_HEARTBEATS: &str = "accept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\nheart-beat:0,1000";

async fn set_alarm(rabbit: &Rabbit, watermark: &str, raised: bool) {
    block_in_place(|| rabbit.ctl(&["set_vm_memory_high_watermark", watermark]));
    until("the alarm is as it should be", Duration::from_secs(30), || {
        block_in_place(|| rabbit.ctl(&["eval", "rabbit_alarm:get_alarms()."]).contains("memory")) == raised
    })
    .await;
}

async fn raise(rabbit: &Rabbit) {
    set_alarm(rabbit, "0.0000001", true).await;
}

async fn clear(rabbit: &Rabbit) {
    set_alarm(rabbit, "0.6", false).await;
}

/// Sends until RabbitMQ answers no more: it takes one message of a connection before it blocks it. The last SEND waits.
async fn send_until_blocked(client: &mut Client, receipt_id: &str) {
    loop {
        client.send(&format!("SEND\ndestination:/topic/probe\nreceipt:{receipt_id}\n\n")).await;
        let end = tokio::time::Instant::now() + QUIET;
        loop {
            match tokio::time::timeout_at(end, client.next()).await {
                Err(_) => return,
                Ok(Received::Heartbeat) => {}
                Ok(Received::Frame(frame)) if frame.header("receipt-id") == Some(receipt_id) => break,
                Ok(other) => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sends_wait_at_the_bound_while_everything_else_goes_on() {
    let _alone = alone().await;
    let rabbit = block_in_place(Rabbit::start);
    let relay = Relay::start_with(&rabbit, "[session]\nunconfirmed_messages_max = 10\n");
    let admin = rabbit.admin().await;
    admin.queue("work").await;
    for number in 0..10 {
        admin.send("work", format!("{number}").as_bytes()).await;
    }
    let mut client = relay.client_with(WITH_HEARTBEATS).await;
    client.send("SEND\ndestination:/topic/x\nreceipt:before\n\n").await;
    receipt(&mut client, "before").await;
    raise(&rabbit).await;
    send_until_blocked(&mut client, "0").await;
    // As many SENDs as the bound allows, then the rest of the work.
    for number in 1..10 {
        client.send(&format!("SEND\ndestination:/topic/x\nreceipt:{number}\n\n")).await;
    }
    client.send("SUBSCRIBE\nid:w\ndestination:/amq/queue/work\nack:client-individual\nprefetch-count:1\n\n").await;
    for number in 0..10 {
        let message = client.message(&number.to_string()).await;
        client.send(&format!("ACK\nid:{}\n\n", message.header("ack").unwrap())).await;
    }
    client.send("UNSUBSCRIBE\nid:w\nreceipt:unsubscribed\n\n").await;
    receipt(&mut client, "unsubscribed").await;
    assert!(matches!(client.receive().await, Received::Heartbeat), "a heart-beat is all that comes");
    // Beyond the bound the relay leaves them unread.
    for number in 10..20 {
        client.send(&format!("SEND\ndestination:/topic/x\nreceipt:{number}\n\n")).await;
    }
    assert!(matches!(client.receive().await, Received::Heartbeat), "a heart-beat is all that comes");
    clear(&rabbit).await;
    for number in 0..20 {
        receipt(&mut client, &number.to_string()).await;
    }
    assert_eq!(admin.ready("work").await, Some(0), "what was acknowledged under the alarm is gone");
    client.disconnect().await;
}

/// The next frame that is no heart-beat.
async fn receipt(client: &mut Client, id: &str) {
    assert_eq!(client.expect("RECEIPT").await.header("receipt-id"), Some(id));
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_goes_on_after_an_alarm() {
    let _alone = alone().await;
    let rabbit = block_in_place(Rabbit::start);
    let relay = Relay::start(&rabbit);
    let mut traffic = Traffic::default();
    load(&relay, &mut traffic, Mix { plain_topic: 6, durable_topic: 6, queues: 6 }).await;
    for _ in 0..2 {
        traffic.confirmed_more(50).await;
        raise(&rabbit).await;
        clear(&rabbit).await;
    }
    traffic.confirmed_more(50).await;
    let report = traffic.finish().await;
    assert_unharmed("memory alarm on and off, twice", &report);
    assert_eq!(report.missed, 0, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_lasts_ends_only_those_that_publish() {
    let _alone = alone().await;
    let rabbit = block_in_place(Rabbit::start);
    let relay = Relay::start_with(&rabbit, "[broker]\nblocked_timeout = \"2s\"\n");
    let (mut publisher, mut listener) = (relay.client().await, relay.client().await);
    listener.subscribe("id:0\ndestination:/topic/x").await;
    for client in [&mut publisher, &mut listener] {
        client.send("SEND\ndestination:/topic/y\nreceipt:before\n\n").await;
        client.receipt("before").await;
    }
    raise(&rabbit).await;
    send_until_blocked(&mut publisher, "stuck").await;
    let error = publisher.error("Broker blocked").await;
    assert_eq!(error.header("error-code"), Some("broker.blocked"));
    assert_eq!(error.header("receipt-id"), Some("stuck"));
    assert_eq!(publisher.closed().await.0, 1013);
    // Nobody needed a channel to publish before.
    let mut starter = relay.client().await;
    starter.send("SEND\ndestination:/topic/y\nreceipt:first\n\n").await;
    let error = starter.error("Broker blocked").await;
    assert_eq!(error.header("receipt-id"), Some("first"));
    assert_eq!(starter.closed().await.0, 1013);
    listener.quiet().await;
    clear(&rabbit).await;
    relay.client().await.send("SEND\ndestination:/topic/x\n\nafter").await;
    listener.message("after").await;
    listener.disconnect().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_starts_to_publish_under_an_alarm_waits_undisturbed() {
    let _alone = alone().await;
    let rabbit = block_in_place(Rabbit::start);
    let relay = Relay::start_with(&rabbit, "[broker]\noperation_timeout = \"1s\"\n");
    let admin = rabbit.admin().await;
    admin.queue("work").await;
    admin.send("work", b"once").await;
    let mut first = relay.client().await;
    first.send("SEND\ndestination:/topic/x\nreceipt:before\n\n").await;
    first.receipt("before").await;
    raise(&rabbit).await;
    send_until_blocked(&mut first, "first").await;
    let mut second = relay.client().await;
    second.subscribe("id:w\ndestination:/amq/queue/work\nack:client-individual").await;
    second.message("once").await;
    second.send("SEND\ndestination:/topic/x\nreceipt:second\n\n").await;
    // Longer than an answer of the broker may take: a block is no failure.
    tokio::time::sleep(Duration::from_secs(3)).await;
    second.quiet().await;
    clear(&rabbit).await;
    first.receipt("first").await;
    second.receipt("second").await;
    second.quiet().await;
}

async fn set_disk_alarm(rabbit: &Rabbit, limit: &str, raised: bool) {
    block_in_place(|| rabbit.ctl(&["set_disk_free_limit", limit]));
    until("the alarm is as it should be", Duration::from_secs(30), || {
        block_in_place(|| rabbit.ctl(&["eval", "rabbit_alarm:get_alarms()."]).contains("disk")) == raised
    })
    .await;
}

/// What waits is refused with an ERROR, and the process keeps its one deadline.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_under_an_alarm_ends_at_its_deadline() {
    const SENDS: usize = 20;
    let _alone = alone().await;
    let rabbit = block_in_place(Rabbit::start);
    for resource in ["memory", "disk"] {
        let settings = "[drain]\ndelay = \"0s\"\nspread = \"0s\"\ntimeout = \"5s\"\n\
                        [session]\nunconfirmed_messages_max = 10\n";
        let relay = Relay::start_with(&rabbit, settings);
        let mut idle = relay.client().await;
        let mut client = relay.client().await;
        client.send("SEND\ndestination:/topic/probe\nreceipt:before\n\n").await;
        client.receipt("before").await;
        match resource {
            "memory" => raise(&rabbit).await,
            _ => set_disk_alarm(&rabbit, "100000GB", true).await,
        }
        send_until_blocked(&mut client, "stuck").await;
        for _ in 1..SENDS {
            client.send("SEND\ndestination:/topic/probe\n\n").await;
        }
        let start = Instant::now();
        relay.signal(Signal::Stop).await;
        assert_eq!(idle.closed().await.0, 1012);
        let error = client.error("Server draining").await;
        assert_eq!((error.header("error-code"), error.header("receipt-id")), (Some("drain.unfinished"), Some("stuck")));
        let body = String::from_utf8_lossy(&error.body);
        let counts = ["SENDs that may not have arrived: ", "frames behind them that were not looked at: "];
        let told = counts.iter().filter_map(|what| body.lines().find_map(|line| line.strip_prefix(what)));
        let told: usize = told.map(|number| number.parse::<usize>().expect("a number")).sum();
        assert_eq!(told, SENDS, "{body}");
        assert_eq!(client.closed().await.0, 1012);
        assert_eq!(relay.ended().await, Ended::Drained);
        // Twice the deadline is what it used to be.
        assert!(start.elapsed() < Duration::from_secs(10), "{resource}: {:?}", start.elapsed());
        match resource {
            "memory" => clear(&rabbit).await,
            _ => set_disk_alarm(&rabbit, "1MB", false).await,
        }
    }
}
