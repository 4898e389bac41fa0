//! Three nodes with quorum queues; one at a time is restarted, killed or paused.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use stomp_relay::stomp::Command;
use tokio::task::{JoinSet, block_in_place};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{alone, assert_unharmed, assert_unharmed_but_late, failovers, pace};
use crate::support::rabbit::{Cluster, Rabbit};
use crate::support::relay::Relay;
use crate::support::stomp::{Client, Received};
use crate::support::tally::Promise;
use crate::support::traffic::{Acks, PATIENCE, Traffic, subscribe_as, until};

const QUEUES: usize = 12;

/// Quorum queues, each with a publisher and a consumer. Plain topics would only lose what is published while they are away.
async fn load(relay: &Relay, traffic: &mut Traffic) {
    for number in 0..QUEUES {
        let destination = format!("/queue/quorum-{number}");
        let headers = "x-queue-type:quorum\ndurable:true\nauto-delete:false\n";
        let acks = [Acks::Individual, Acks::Auto, Acks::Client][number % 3];
        traffic.subscribe(relay.client().await, &destination, headers, acks, Promise::All).await;
        // It exists: the publisher takes it as it is.
        traffic.publish_to(relay.client().await, &destination, &format!("/amq/queue/quorum-{number}"), pace(20));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_three_nodes() {
    let _alone = alone().await;
    let cluster = block_in_place(|| Cluster::start(3));
    let relay = Relay::start_before(&cluster.uris(), "");
    let mut traffic = Traffic::default();
    load(&relay, &mut traffic).await;
    traffic.confirmed_more(500).await;
    for node in &cluster.nodes {
        block_in_place(|| node.stop());
        // The others carry on.
        traffic.confirmed_more(200).await;
        block_in_place(|| node.restart());
        synchronised(node).await;
        traffic.confirmed_more(200).await;
    }
    assert!(failovers(&relay) >= 1, "the restarts were not felt");
    assert_unharmed("rolling restart of three nodes", &traffic.finish().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_three_nodes_is_paused_and_another_killed() {
    let _alone = alone().await;
    let cluster = block_in_place(|| Cluster::start(3));
    let relay = Relay::start_before(&cluster.uris(), "[broker]\nheartbeat = \"2s\"\n");
    let mut traffic = Traffic::default();
    load(&relay, &mut traffic).await;
    traffic.confirmed_more(500).await;
    block_in_place(|| cluster.nodes[1].pause());
    // Everything that was on the silent node has moved when each subscription was made anew elsewhere.
    traffic.confirmed_more(1000).await;
    block_in_place(|| cluster.nodes[1].resume());
    synchronised(&cluster.nodes[1]).await;
    traffic.confirmed_more(200).await;
    block_in_place(|| cluster.nodes[0].kill());
    traffic.confirmed_more(1000).await;
    block_in_place(|| cluster.nodes[0].restart());
    assert!(failovers(&relay) >= 1, "the faults were not felt");
    // What a quorum queue had sent to a consumer on the silent node it gives to another one when it believes that node lost,
    // which is after it has given newer ones to the consumer that the relay made elsewhere.
    assert_unharmed_but_late("SIGSTOP of one of three nodes, SIGKILL of another", &traffic.finish().await);
}

/// Waits until no queue would lose its majority without this node: the next one may go.
async fn synchronised(node: &Rabbit) {
    const ASK: &str = "rabbit_upgrade_preparation:await_online_quorum_plus_one(30000).";
    until("the node has caught up", Duration::from_secs(90), || {
        block_in_place(|| node.ctl(&["eval", ASK]).contains("true"))
    })
    .await;
}

/// Classic queues live on one node each. While it is away RabbitMQ cancels their consumers and returns what is sent to them.
async fn load_classic(relay: &Relay, traffic: &mut Traffic) {
    for number in 0..QUEUES {
        let destination = format!("/queue/classic-{number}");
        let acks = [Acks::Individual, Acks::Auto, Acks::Client][number % 3];
        traffic.subscribe(relay.client().await, &destination, "", acks, Promise::All).await;
        traffic.publish(relay.client().await, &destination, pace(20));
    }
    traffic.confirmed_more(500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn classic_queues_wait_for_their_node() {
    let _alone = alone().await;
    let cluster = block_in_place(|| Cluster::start(3));
    let relay = Relay::start_before(&cluster.uris(), "");
    let mut traffic = Traffic::default();
    load_classic(&relay, &mut traffic).await;
    for (number, node) in cluster.nodes.iter().enumerate() {
        block_in_place(|| if number == 1 { node.kill() } else { node.stop() });
        block_in_place(|| node.restart());
        // Each queue has to take some.
        traffic.confirmed_more(QUEUES as u64 * 150).await;
    }
    assert!(failovers(&relay) >= 1, "the restarts were not felt");
    assert_unharmed_but_late("restart of the nodes of classic queues", &traffic.finish().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn classic_queues_wait_for_a_node_that_the_relay_is_not_on() {
    let _alone = alone().await;
    let cluster = block_in_place(|| Cluster::start(3));
    let relay = Relay::start_before(&cluster.uris()[..1], "");
    for number in 0..QUEUES {
        let admin = cluster.nodes[1 + number % 2].admin().await;
        admin.queue(&format!("classic-{number}")).await;
    }
    let mut traffic = Traffic::default();
    load_classic(&relay, &mut traffic).await;
    for node in &cluster.nodes[1..] {
        block_in_place(|| node.stop());
        // Those of the other node go on.
        traffic.confirmed_more(100).await;
        block_in_place(|| node.restart());
        traffic.confirmed_more(QUEUES as u64 * 150).await;
    }
    assert!(failovers(&relay) >= 1, "the restarts were not felt");
    assert_unharmed_but_late("restart of nodes with classic queues, not the relay's", &traffic.finish().await);
}

/// One of three is no majority: it takes nothing, and nothing is confirmed that it does not have.
#[tokio::test(flavor = "multi_thread")]
async fn a_minority_confirms_nothing() {
    let _alone = alone().await;
    let cluster = block_in_place(|| Cluster::start(3));
    // The client answers no ping while the nodes start again.
    let relay = Relay::start_before(&cluster.uris()[..1], "[websocket]\nping_interval = \"5m\"\n");
    let headers = "x-queue-type:quorum\ndurable:true\nauto-delete:false\n";
    let mut client = relay.client().await;
    subscribe_as(&mut client, "/queue/minority", headers, Acks::Individual).await.expect("subscribed");
    client.send("SEND\ndestination:/amq/queue/minority\nreceipt:before\n\nbefore").await;
    acknowledged(&mut client, "before").await;
    for node in &cluster.nodes[1..] {
        block_in_place(|| node.kill());
    }
    client.send("SEND\ndestination:/amq/queue/minority\nreceipt:without\n\nwithout a majority").await;
    // Longer than an election takes where there is somebody to elect.
    let end = Instant::now() + Duration::from_secs(8);
    while let Ok(received) = tokio::time::timeout_at(end, client.next()).await {
        assert!(matches!(received, Received::Heartbeat), "{received:?} from a minority");
    }
    for node in &cluster.nodes[1..] {
        block_in_place(|| node.restart());
    }
    acknowledged(&mut client, "without a majority").await;
    client.disconnect().await;
}

/// The leaders of all queues die, on a node that the relay has no connection to, while new sessions come one after another: the
/// first SEND of each is the first of its channel, and meets a queue that looks for a leader.
#[tokio::test(flavor = "multi_thread")]
async fn first_sends_outlive_leaders_on_a_node_that_the_relay_is_not_on() {
    const COMERS: usize = 2;
    let _alone = alone().await;
    let cluster = block_in_place(|| Cluster::start(3));
    let relay = Relay::start_before(&cluster.uris()[..1], "");
    // RabbitMQ puts a queue's first leader on the node on which it is declared.
    let admin = cluster.nodes[1].admin().await;
    for number in 0..QUEUES {
        admin.typed_queue(&format!("led-{number}"), "quorum").await;
    }
    let (stop, confirmed) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
    let mut comers = JoinSet::new();
    for comer in 0..QUEUES * COMERS {
        let (url, stop, confirmed) = (relay.ws.clone(), stop.clone(), confirmed.clone());
        comers.spawn(async move {
            let queue = comer % QUEUES;
            for number in 0u64.. {
                if stop.is_cancelled() {
                    return Ok(number);
                }
                let mut client = Client::log_in(&url).await?;
                client.try_send(&format!("SEND\ndestination:/amq/queue/led-{queue}\nreceipt:r\n\nx")).await?;
                match tokio::time::timeout(PATIENCE, client.next()).await.map_err(|_| "no answer")? {
                    Received::Frame(frame) if frame.command == Command::Receipt => {}
                    other => return Err(format!("session {number} at queue {queue}: {other:?}")),
                }
                confirmed.fetch_add(1, Ordering::Relaxed);
            }
            unreachable!("the numbers have no end")
        });
    }
    let more = async |count: u64| {
        let goal = confirmed.load(Ordering::Relaxed) + count;
        until("first SENDs are confirmed", PATIENCE, || confirmed.load(Ordering::Relaxed) >= goal).await;
    };
    more(100).await;
    block_in_place(|| cluster.nodes[1].kill());
    more(500).await;
    stop.cancel();
    let (mut sent, mut refused) = (0, Vec::new());
    while let Some(ended) = comers.join_next().await {
        match ended.expect("no panic") {
            Ok(count) => sent += count,
            Err(how) => refused.push(how),
        }
    }
    println!("{sent} first SENDs while the leaders died");
    assert!(refused.is_empty(), "{} of {sent} were refused: {refused:#?}", refused.len());
    assert_eq!(failovers(&relay), 0, "the relay has felt it");
    // A SEND that met no leader may have been kept twice, never not at all.
    let admin = cluster.nodes[0].admin().await;
    let mut kept = 0;
    for number in 0..QUEUES {
        kept += u64::from(admin.ready(&format!("led-{number}")).await.expect("the queue is there"));
    }
    assert!(kept >= sent, "{kept} of {sent}");
}

/// A stream with one replica is read from the node that has it, whichever node a session is on at first.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_read_from_the_node_that_has_it() {
    let _alone = alone().await;
    let cluster = block_in_place(|| Cluster::start(3));
    let relay = Relay::start_before(&cluster.uris(), "");
    for (number, node) in cluster.nodes.iter().enumerate() {
        let admin = node.admin().await;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
        arguments.insert("x-initial-cluster-size".into(), AMQPValue::LongInt(1));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let name = format!("alone-{number}");
        admin.channel.queue_declare(name.as_str().into(), options, arguments).await.expect("declared");
        admin.send(&name, b"hello").await;
    }
    for number in 0..cluster.nodes.len() {
        let mut client = relay.client().await;
        client.subscribe(&format!("id:0\ndestination:/amq/queue/alone-{number}\nx-stream-offset:first")).await;
        client.message("hello").await;
        client.disconnect().await;
    }
    assert!(failovers(&relay) >= 1, "every stream was on the node of the session");
}

/// Whoever publishes to a stream without a majority makes RabbitMQ end the whole connection (506), again and again; others of the
/// same login lose no message by it, and nobody is ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_a_majority_hurts_only_those_who_publish_to_it() {
    const LINKS_LOST: u64 = 2;
    let _alone = alone().await;
    let cluster = block_in_place(|| Cluster::start(3));
    let relay = Relay::start(&cluster.nodes[0]);
    let admin = cluster.nodes[0].admin().await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    admin.channel.queue_declare("halved".into(), options, arguments).await.expect("declared");
    for node in &cluster.nodes[1..] {
        block_in_place(|| node.kill());
    }
    let mut neighbour = relay.client().await;
    neighbour.subscribe("id:0\ndestination:/queue/beside").await;
    let mut publishers = Vec::new();
    for _ in 0..2 {
        let mut publisher = relay.client().await;
        publisher.send("SEND\ndestination:/amq/queue/halved\nreceipt:r\n\nhello").await;
        publishers.push(publisher);
    }
    let end = Instant::now() + PATIENCE;
    for number in 0.. {
        if failovers(&relay) >= LINKS_LOST {
            break;
        }
        assert!(Instant::now() < end, "the stream has ended {} sides of sessions", failovers(&relay));
        let body = number.to_string();
        neighbour.send(&format!("SEND\ndestination:/queue/beside\n\n{body}")).await;
        let message = neighbour.message(&body).await;
        assert_eq!(message.header("redelivered"), Some("false"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for publisher in &mut publishers {
        publisher.quiet().await;
    }
    neighbour.disconnect().await;
}

/// Waits for the one RECEIPT and for the message, which may come again while the queue finds its leader.
async fn acknowledged(client: &mut Client, body: &str) {
    let (mut receipt, mut message) = (false, false);
    let end = Instant::now() + PATIENCE;
    while !(receipt && message) {
        let received = tokio::time::timeout_at(end, client.next()).await.expect("RECEIPT and MESSAGE come");
        match received {
            Received::Heartbeat => {}
            Received::Frame(frame) if frame.command == Command::Receipt => receipt = true,
            Received::Frame(frame) if frame.command == Command::Message => {
                if !message || frame.header("redelivered") != Some("true") {
                    assert_eq!(frame.body, body.as_bytes());
                }
                message = true;
                client.send(&format!("ACK\nid:{}\n\n", frame.header("ack").expect("an id"))).await;
            }
            other => panic!("{other:?}"),
        }
    }
}
