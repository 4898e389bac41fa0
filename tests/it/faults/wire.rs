//! What a bad network between relay and broker does to the bytes: passed one way only, cut within a message, before its
//! confirm, late, slow, or sent to an address where nobody answers.

use std::collections::HashSet;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::Instant;

use super::{Mix, alone, assert_unharmed, failovers, load};
use crate::support::fault_proxy::{Direction, FaultProxy, Mode};
use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::relay_process::RelayProcess;
use crate::support::stomp::Client;
use crate::support::traffic::{PATIENCE, Traffic, until};

const MIX: Mix = Mix { plain_topic: 10, durable_topic: 6, queues: 6 };

/// `basic.ack`, class 60 and method 80, as RabbitMQ confirms.
const CONFIRM: [u8; 4] = [0, 60, 0, 80];

/// The relay finds a silent broker within seconds.
const IMPATIENT: &str = "[broker]\nheartbeat = \"1s\"\nconnect_timeout = \"1s\"\n";

fn uri(proxy: &FaultProxy) -> String {
    format!("amqp://127.0.0.1:{}", proxy.port())
}

async fn one_way(direction: Direction, what: &str) {
    let _alone = alone().await;
    let proxy = FaultProxy::start(Rabbit::shared().amqp_port()).await;
    let relay = Relay::start_at(&uri(&proxy), IMPATIENT);
    let mut traffic = Traffic::named(&unique("oneway"));
    load(&relay, &mut traffic, MIX).await;
    traffic.confirmed_more(50).await;
    traffic.tally.outage_begins();
    proxy.set(Mode::SwallowFrom(direction));
    until("the silence is felt", PATIENCE, || failovers(&relay) >= 1).await;
    proxy.set(Mode::Forward);
    traffic.barrier().await;
    traffic.tally.outage_ends();
    traffic.confirmed_more(50).await;
    assert_unharmed(what, &traffic.finish().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_comes_from_the_broker() {
    one_way(Direction::FromServer, "loss from broker to relay only").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_gets_to_the_broker() {
    one_way(Direction::ToServer, "loss from relay to broker only").await;
}

/// A queue without a consumer, so that what arrives can be counted.
async fn publisher_and_queue(relay: &Relay, name: &str) -> (Client, String) {
    let queue = unique(name);
    Rabbit::shared().admin().await.queue(&queue).await;
    (relay.client().await, queue)
}

/// The bodies in the queue, and how often each came.
async fn drained(relay: &Relay, queue: &str, last: &str) -> Vec<String> {
    let mut client = relay.client().await;
    client.send(&format!("SEND\ndestination:/amq/queue/{queue}\nreceipt:last\n\n{last}")).await;
    client.receipt("last").await;
    client.subscribe(&format!("id:0\ndestination:/amq/queue/{queue}\nack:client")).await;
    let mut bodies = Vec::new();
    loop {
        let body = String::from_utf8(client.expect("MESSAGE").await.body.to_vec()).expect("text");
        if body == last {
            return bodies;
        }
        bodies.push(body);
    }
}

/// Each cut falls a little later into the frames of one SEND, from before their first byte to behind their last.
#[tokio::test(flavor = "multi_thread")]
async fn a_publish_that_is_cut_at_any_byte_arrives() {
    let _alone = alone().await;
    let proxy = FaultProxy::start(Rabbit::shared().amqp_port()).await;
    let relay = Relay::start_at(&uri(&proxy), "");
    let (mut client, queue) = publisher_and_queue(&relay, "cut-within").await;
    let offsets = (0..400).step_by(20).collect::<Vec<_>>();
    for offset in &offsets {
        proxy.cut_within(Direction::ToServer, format!("cut at {offset:03}").as_bytes(), *offset);
        client.send(&format!("SEND\ndestination:/amq/queue/{queue}\nreceipt:{offset}\n\ncut at {offset:03}")).await;
        client.receipt(&offset.to_string()).await;
        assert!(proxy.has_cut(), "no publish passed through the proxy");
    }
    let bodies = drained(&relay, &queue, "the last").await;
    let different = bodies.iter().collect::<HashSet<_>>();
    assert_eq!(different.len(), offsets.len(), "{bodies:?}");
    assert!(bodies.len() <= 2 * offsets.len(), "one repetition at most: {bodies:?}");
}

/// RabbitMQ has the message and says so, and the network loses the answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_confirm_that_is_lost_costs_a_repetition_with_the_same_id() {
    let _alone = alone().await;
    let proxy = FaultProxy::start(Rabbit::shared().amqp_port()).await;
    let relay = Relay::start_at(&uri(&proxy), "");
    let (mut client, queue) = publisher_and_queue(&relay, "lost-confirm").await;
    for round in 0..5 {
        proxy.cut_within(Direction::FromServer, &CONFIRM, 0);
        client.send(&format!("SEND\ndestination:/amq/queue/{queue}\nreceipt:{round}\n\n{round}")).await;
        client.receipt(&round.to_string()).await;
        assert!(proxy.has_cut(), "no confirm passed through the proxy");
    }
    let mut reader = relay.client().await;
    reader.subscribe(&format!("id:0\ndestination:/amq/queue/{queue}\nack:client")).await;
    for round in 0..5 {
        let first = reader.message(&round.to_string()).await;
        let second = reader.message(&round.to_string()).await;
        let id = first.header("amqp-message-id").expect("a SEND with a receipt has an id");
        assert_eq!(second.header("amqp-message-id"), Some(id), "the repetition can be told");
    }
    reader.quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_distant_broker_is_slow_and_nothing_else() {
    let _alone = alone().await;
    let proxy = FaultProxy::start(Rabbit::shared().amqp_port()).await;
    proxy.set(Mode::Delay(Duration::from_millis(50)));
    let relay = Relay::start_at(&uri(&proxy), "");
    let mut traffic = Traffic::named(&unique("distant"));
    load(&relay, &mut traffic, MIX).await;
    traffic.confirmed_more(200).await;
    assert_eq!(failovers(&relay), 0, "latency is no loss");
    assert_unharmed("100 ms to the broker and back", &traffic.finish().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_loses_packets_is_slow_and_nothing_else() {
    let _alone = alone().await;
    let proxy = FaultProxy::start(Rabbit::shared().amqp_port()).await;
    // One in a hundred is the row's; more of them make the run short.
    proxy.set(Mode::Lossy(Duration::from_millis(50), 20));
    let relay = Relay::start_at(&uri(&proxy), "");
    let mut traffic = Traffic::named(&unique("lossy"));
    load(&relay, &mut traffic, MIX).await;
    traffic.confirmed_more(200).await;
    assert_eq!(failovers(&relay), 0, "loss is not the end of a connection");
    assert_unharmed("uneven latency and loss", &traffic.finish().await);
}

/// A flooder in front of a narrow line is read as slowly as the line takes its messages.
#[tokio::test(flavor = "multi_thread")]
async fn a_narrow_line_to_the_broker_holds_the_clients_back() {
    const BODY_BYTES: usize = 16 * 1024;
    const FLOODERS: usize = 8;
    let _alone = alone().await;
    let proxy = FaultProxy::start(Rabbit::shared().amqp_port()).await;
    let program = env!("CARGO_BIN_EXE_stomp-relay");
    let relay = RelayProcess::start(program, &[uri(&proxy)], "", 1024);
    let topic = unique("/topic/narrow");
    let mut clients = Vec::new();
    for _ in 0..FLOODERS {
        let mut client = Client::log_in(&relay.ws).await.expect("let in");
        client.send(&format!("SEND\ndestination:{topic}\nreceipt:first\n\nfirst")).await;
        client.receipt("first").await;
        clients.push(client);
    }
    // 1 Mbit/s.
    proxy.set(Mode::Throttle(125_000));
    let before = relay.resident_bytes();
    let frame = format!("SEND\ndestination:{topic}\n\n{}", "x".repeat(BODY_BYTES));
    let mut tasks = tokio::task::JoinSet::new();
    for mut client in clients {
        let frame = frame.clone();
        tasks.spawn(async move {
            // 16 MiB each would be 128 MiB in the relay if it were read. Nobody is closed for being held back.
            for _ in 0..1024 {
                let sent = tokio::time::timeout(Duration::from_secs(5), client.try_send(&frame)).await;
                let Ok(sent) = sent else { return client };
                sent.expect("held back, not closed");
            }
            panic!("16 MiB were taken although the line is narrow");
        });
    }
    let mut clients = Vec::new();
    while let Some(client) = tasks.join_next().await {
        clients.push(client.expect("a flooder is held back"));
    }
    let grown = relay.resident_bytes().saturating_sub(before);
    println!("{FLOODERS} flooders in front of 1 Mbit/s: {} KiB more", grown / 1024);
    // What is unconfirmed, a frame, and what is read ahead, of each.
    let bound = FLOODERS as u64 * ((4 << 20) + (1 << 20)) + (16 << 20);
    assert!(grown < bound, "{grown} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_where_nobody_answers_is_passed_over() {
    let _alone = alone().await;
    // It takes connections into its backlog and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let silent = (silent.local_addr().expect("it is bound").port(), silent);
    let uris = [format!("amqp://127.0.0.1:{}", silent.0), Rabbit::shared().uri()];
    let relay = Relay::start_before(&uris, "[broker]\nconnect_timeout = \"1s\"\n");
    for _ in 0..4 {
        let began = Instant::now();
        let mut client = relay.client().await;
        client.send("SEND\ndestination:/topic/passed-over\nreceipt:r\n\n").await;
        client.receipt("r").await;
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
        client.disconnect().await;
    }
}

/// A broker that takes no new connections leaves those alone that it has, and is asked again with pauses.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_refuses_new_connections_is_not_stormed() {
    let _alone = alone().await;
    let proxy = FaultProxy::start(Rabbit::shared().amqp_port()).await;
    let relay = Relay::start_at(&uri(&proxy), "");
    let topic = unique("/topic/refusing");
    let mut client = relay.client().await;
    client.subscribe(&format!("id:0\ndestination:{topic}")).await;
    client.send(&format!("SEND\ndestination:{topic}\n\nbefore")).await;
    client.message("before").await;
    proxy.set(Mode::Refuse);
    proxy.cut();
    until("the loss is felt", PATIENCE, || failovers(&relay) >= 1).await;
    let accepted = proxy.accepted();
    // The time itself is what is looked at: how often the broker is asked meanwhile.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let tries = proxy.accepted() - accepted;
    assert!(tries <= 30, "{tries} tries in five seconds");
    proxy.set(Mode::Forward);
    let end = Instant::now() + Duration::from_secs(15);
    client.send(&format!("SEND\ndestination:{topic}\nreceipt:r\n\nafter")).await;
    client.frame().await;
    client.frame().await;
    assert!(Instant::now() < end, "the relay comes back soon after the broker does");
}
