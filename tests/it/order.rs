//! Frames that are sent in one go have the effect that they have one by one, on a real RabbitMQ.

mod sequences;

use crate::support::condition::eventually;
use crate::support::cut_proxy::{CutProxy, Passage};
use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::stomp::Client;
use tokio::task::block_in_place;

const ROUNDS: usize = 20;

/// As a component of a page that is mounted again: the old subscription ends and the same begins, in one message.
#[tokio::test]
async fn a_subscription_is_made_again_in_one_go() {
    for mode in ["strict", "rabbitmq"] {
        let relay = Relay::start_with(Rabbit::shared(), &format!("[stomp]\ncompatibility = \"{mode}\"\n"));
        for headers in [
            format!("destination:{}", unique("/topic/again")),
            format!("destination:{}\nack:client", unique("/topic/again")),
            format!("destination:{}\ndurable:true\nauto-delete:false", unique("/topic/again")),
            format!("destination:{}", unique("/queue/again")),
            format!("destination:{}\nauto-delete:true\ndurable:false", unique("/queue/again")),
        ] {
            let mut client = relay.client().await;
            client.subscribe(&format!("id:s\n{headers}")).await;
            for round in 0..ROUNDS {
                let again = format!(
                    "UNSUBSCRIBE\nid:s\nreceipt:off{round}\n\n\0SUBSCRIBE\nid:s\n{headers}\nreceipt:on{round}\n\n"
                );
                client.send(&again).await;
                client.receipt(&format!("off{round}")).await;
                client.receipt(&format!("on{round}")).await;
            }
            let destination = headers.split('\n').next().expect("a line");
            client.send(&format!("SEND\n{destination}\n\nstill there")).await;
            client.message("still there").await;
            client.disconnect().await;
        }
    }
}

#[tokio::test]
async fn a_subscription_gets_what_the_sends_before_it_have_left() {
    let relay = Relay::start(Rabbit::shared());
    for _ in 0..ROUNDS {
        let (mut client, queue) = (relay.client().await, unique("/queue/short"));
        let sends: String =
            (1..=5).map(|number| format!("SEND\ndestination:{queue}\nx-max-length:2\n\n{number}\0")).collect();
        client.send(&format!("{sends}SUBSCRIBE\nid:s\ndestination:{queue}\nx-max-length:2\n\n")).await;
        client.message("4").await;
        client.message("5").await;
        client.disconnect().await;
    }
}

/// The answer is refused, so the question is not taken for answered.
#[tokio::test]
async fn an_acknowledgement_waits_for_the_answer_before_it() {
    let rabbit = Rabbit::shared();
    let (relay, admin) = (Relay::start(rabbit), rabbit.admin().await);
    let (questions, full) = (unique("questions"), unique("/queue/full"));
    admin.queue(&questions).await;
    admin.send(&questions, b"question").await;
    let mut client = relay.client().await;
    let flags = "x-max-length:1\nx-overflow:reject-publish";
    client.send(&format!("SEND\ndestination:{full}\n{flags}\nreceipt:r\n\nfirst")).await;
    client.receipt("r").await;
    client.send(&format!("SUBSCRIBE\nid:q\ndestination:/amq/queue/{questions}\nack:client\n\n")).await;
    let ack = client.message("question").await.header("ack").expect("in client mode").to_owned();
    client.send(&format!("SEND\ndestination:{full}\n{flags}\nreceipt:answer\n\nx\0ACK\nid:{ack}\n\n")).await;
    assert_eq!(client.error("Message rejected").await.header("receipt-id"), Some("answer"));
    client.closed().await;
    let mut other = relay.client().await;
    other.send(&format!("SUBSCRIBE\nid:q\ndestination:/amq/queue/{questions}\n\n")).await;
    assert_eq!(other.message("question").await.header("redelivered"), Some("true"));
}

#[tokio::test]
async fn disconnect_tells_of_a_send_that_was_refused_in_silence() {
    let queue = unique("full");
    for mode in ["strict", "rabbitmq"] {
        let relay = Relay::start_with(Rabbit::shared(), &format!("[stomp]\ncompatibility = \"{mode}\"\n"));
        let mut client = relay.client().await;
        if mode == "strict" {
            let flags = "x-max-length:1\nx-overflow:reject-publish";
            client.send(&format!("SEND\ndestination:/queue/{queue}\n{flags}\nreceipt:r\n\nx")).await;
            client.receipt("r").await;
        }
        for _ in 0..2 {
            client.send(&format!("SEND\ndestination:/amq/queue/{queue}\n\nx")).await;
        }
        client.send("DISCONNECT\nreceipt:bye\n\n").await;
        let error = client.error("Not everything arrived").await;
        assert_eq!(error.header("receipt-id"), Some("bye"));
        assert!(String::from_utf8_lossy(&error.body).contains("or that may be lost: 2\n"), "{error:?}");
        assert_eq!(client.closed().await.0, 1011);
    }
}

/// The bytes of an ACK are stuck on a connection that dies: RabbitMQ has the message still, and no RECEIPT denies it.
#[tokio::test(flavor = "multi_thread")]
async fn disconnect_tells_of_an_ack_that_may_be_lost() {
    let rabbit = Rabbit::shared();
    let (proxy, admin) = (CutProxy::start(rabbit.amqp_port()).await, rabbit.admin().await);
    let relay = Relay::start_at(&proxy.uri(), "");
    let queue = unique("stuck");
    admin.queue(&queue).await;
    admin.send(&queue, b"one").await;
    let mut client = relay.client().await;
    client.send(&format!("SUBSCRIBE\nid:s\ndestination:/amq/queue/{queue}\nack:client\n\n")).await;
    let ack = client.message("one").await.header("ack").expect("in client mode").to_owned();
    proxy.set(Passage::Silent);
    client.send(&format!("ACK\nid:{ack}\n\n\0DISCONNECT\nreceipt:bye\n\n")).await;
    client.quiet().await;
    proxy.cut();
    assert_eq!(client.error("Not everything arrived").await.header("receipt-id"), Some("bye"));
    assert_eq!(client.closed().await.0, 1011);
    proxy.set(Passage::Open);
    let mut other: Client = relay.client().await;
    other.send(&format!("SUBSCRIBE\nid:s\ndestination:/amq/queue/{queue}\n\n")).await;
    assert_eq!(other.message("one").await.header("redelivered"), Some("true"));
}

/// RabbitMQ's channel holds acknowledgements of a quorum queue back while 32 of its commands are under way, and forgets those
/// when it closes. The oldest message stays unacknowledged, so that no acknowledgement covers more than its own. The queue's
/// log stands still for a while, so that its commands stay under way.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_before_a_disconnect_does_not_come_again() {
    const PAUSE: &str =
        "sys:suspend(ra_log_wal), spawn(fun() -> timer:sleep(1000), sys:resume(ra_log_wal) end), stands_still.";
    let (rabbit, queue) = (block_in_place(Rabbit::start), unique("settled"));
    let (relay, admin) = (Relay::start(&rabbit), rabbit.admin().await);
    admin.typed_queue(&queue, "quorum").await;
    for messages in [50, 50, 500] {
        let mut client = relay.client().await;
        client.send(&messages_in_one_go(&queue, messages)).await;
        client.receipt("sent").await;
        let subscribe = format!("SUBSCRIBE\nid:s\ndestination:/amq/queue/{queue}\nack:client-individual\n\n");
        client.send(&subscribe).await;
        let mut acks = String::new();
        for number in 0..messages {
            let message = client.expect("MESSAGE").await;
            if number > 0 {
                acks.push_str(&format!("ACK\nid:{}\n\n\0", message.header("ack").expect("in client mode")));
            }
        }
        assert!(block_in_place(|| rabbit.ctl(&["eval", PAUSE])).contains("stands_still"));
        client.send(&format!("{acks}DISCONNECT\nreceipt:bye\n\n")).await;
        client.receipt("bye").await;
        client.closed().await;
        let what = format!("only the first of {messages} messages is ready again");
        eventually(&what, async || admin.ready(&queue).await == Some(1)).await;
        admin.get(&queue).await;
        eventually("the queue is empty", async || admin.ready(&queue).await == Some(0)).await;
    }
}

/// The last one has a receipt.
fn messages_in_one_go(queue: &str, messages: usize) -> String {
    let send = |number| {
        let receipt = if number + 1 == messages { "receipt:sent\n" } else { "" };
        format!("SEND\ndestination:/amq/queue/{queue}\n{receipt}\nmessage {number}\0")
    };
    let sends: String = (0..messages).map(send).collect();
    sends.trim_end_matches('\0').to_owned()
}
