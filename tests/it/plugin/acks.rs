//! ACK, NACK, prefetch and redelivery, with each version's own headers.

use stomp_relay::stomp::Frame;

use crate::support::rabbit::{Admin, Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::stomp::Client;

const VERSIONS: [&str; 3] = ["1.0", "1.1", "1.2"];

/// A queue of the test's own, a relay, and clients of one STOMP version.
struct Bench {
    admin: Admin,
    queue: String,
    relay: Relay,
    version: &'static str,
}

impl Bench {
    async fn new(version: &'static str) -> Bench {
        let rabbit = Rabbit::shared();
        let (admin, queue) = (rabbit.admin().await, unique("acks"));
        admin.queue(&queue).await;
        Bench { admin, queue, relay: Relay::start(rabbit), version }
    }

    /// A client with a subscription in this ack mode.
    async fn subscriber(&self, mode: &str) -> Client {
        let mut client = self.relay.client_of(self.version).await;
        client.subscribe(&format!("id:0\ndestination:/queue/{}\nack:{mode}\nprefetch-count:10", self.queue)).await;
        client
    }

    async fn publish(&self, bodies: &[&str]) {
        for body in bodies {
            self.admin.send(&self.queue, body.as_bytes()).await;
        }
    }

    /// Settles by the header that the version has for it; `further` are more header lines.
    async fn settle(&self, client: &mut Client, command: &str, message: &Frame, further: &str) {
        let (name, source) = if self.version == "1.2" { ("id", "ack") } else { ("message-id", "message-id") };
        let id = message.header(source).expect("the header that is to be given back");
        client.send(&format!("{command}\n{name}:{id}\nsubscription:0\n{further}receipt:settled\n\n")).await;
        client.receipt("settled").await;
    }

    /// Nothing was left in the queue: a new message is the first that a new client gets.
    async fn expect_drained(self) {
        let mut client = self.subscriber("auto").await;
        self.publish(&["last"]).await;
        client.message("last").await;
        client.disconnect().await;
        self.admin.delete(&self.queue).await;
    }
}

/// Only 1.2 has an `ack` header, and only where the client must acknowledge.
#[tokio::test]
async fn the_ack_header_is_for_version_1_2_in_client_modes() {
    for version in VERSIONS {
        for mode in ["auto", "client", "client-individual"] {
            let bench = Bench::new(version).await;
            let mut client = bench.subscriber(mode).await;
            bench.publish(&["a"]).await;
            let message = client.message("a").await;
            let expected = if version == "1.2" && mode != "auto" { message.header("message-id") } else { None };
            assert_eq!(message.header("ack"), expected, "{version} {mode}");
            bench.admin.delete(&bench.queue).await;
        }
    }
}

/// Unacknowledged messages come again to the next client; an ACK in `client` mode covers the older ones.
#[tokio::test]
async fn an_ack_covers_the_older_messages_in_client_mode() {
    for version in VERSIONS {
        let bench = Bench::new(version).await;
        let mut first = bench.subscriber("client").await;
        bench.publish(&["1", "2"]).await;
        first.message("1").await;
        first.message("2").await;
        first.disconnect().await;
        let mut second = bench.subscriber("client").await;
        second.message("1").await;
        let message = second.message("2").await;
        assert_eq!(message.header("redelivered"), Some("true"));
        bench.settle(&mut second, "ACK", &message, "").await;
        second.disconnect().await;
        bench.expect_drained().await;
    }
}

/// An ACK in `client-individual` mode is for one message.
#[tokio::test]
async fn an_individual_ack_covers_one_message() {
    for version in VERSIONS {
        let bench = Bench::new(version).await;
        let mut first = bench.subscriber("client-individual").await;
        bench.publish(&["1", "2"]).await;
        first.message("1").await;
        let message = first.message("2").await;
        bench.settle(&mut first, "ACK", &message, "").await;
        first.disconnect().await;
        let mut second = bench.subscriber("client-individual").await;
        let message = second.message("1").await;
        bench.settle(&mut second, "ACK", &message, "").await;
        second.disconnect().await;
        bench.expect_drained().await;
    }
}

/// An ACK in a transaction takes effect at COMMIT, and not at all after ABORT.
#[tokio::test]
async fn an_ack_in_a_transaction_waits_for_its_commit() {
    for version in VERSIONS {
        let bench = Bench::new(version).await;
        bench.publish(&["1"]).await;
        for end in ["ABORT", "COMMIT"] {
            let mut client = bench.subscriber("client").await;
            let message = client.message("1").await;
            client.send("BEGIN\ntransaction:t\n\n").await;
            bench.settle(&mut client, "ACK", &message, "transaction:t\n").await;
            client.send(&format!("{end}\ntransaction:t\nreceipt:ended\n\n")).await;
            client.receipt("ended").await;
            client.disconnect().await;
        }
        bench.expect_drained().await;
    }
}

/// NACK, which 1.0 knows here too, gives the message back, and it comes again.
#[tokio::test]
async fn a_nack_gives_the_message_back() {
    for version in VERSIONS {
        let bench = Bench::new(version).await;
        let mut client = bench.subscriber("client").await;
        bench.publish(&["again"]).await;
        let message = client.message("again").await;
        let id = if version == "1.2" { "id" } else { "message-id" };
        let value = message.header("message-id").expect("every message has one");
        client.send(&format!("NACK\nsubscription:0\n{id}:{value}\n\n")).await;
        let message = client.message("again").await;
        assert_eq!(message.header("redelivered"), Some("true"));
        assert_ne!(message.header("message-id"), Some(value));
        bench.settle(&mut client, "ACK", &message, "").await;
        client.disconnect().await;
        bench.expect_drained().await;
    }
}

/// In `client` mode a NACK covers the older messages as an ACK does.
#[tokio::test]
async fn a_nack_covers_the_older_messages_in_client_mode() {
    for version in VERSIONS {
        let bench = Bench::new(version).await;
        let mut client = bench.subscriber("client").await;
        bench.publish(&["1", "2"]).await;
        client.message("1").await;
        let message = client.message("2").await;
        let id = if version == "1.2" { "id" } else { "message-id" };
        let value = message.header("message-id").expect("every message has one");
        client.send(&format!("NACK\nsubscription:0\n{id}:{value}\n\n")).await;
        let mut again = Vec::new();
        for _ in 0..2 {
            let message = client.expect("MESSAGE").await;
            assert_eq!(message.header("redelivered"), Some("true"));
            again.push(message);
        }
        again.sort_by_key(|message| message.body.clone());
        assert_eq!((&*again[0].body, &*again[1].body), (&b"1"[..], &b"2"[..]));
        client.disconnect().await;
        bench.admin.delete(&bench.queue).await;
    }
}

/// `requeue:false` drops the message, in every spelling that the plugin takes.
#[tokio::test]
async fn a_nack_without_requeue_drops_the_message() {
    for version in VERSIONS {
        let bench = Bench::new(version).await;
        let mut client = bench.subscriber("client").await;
        for requeue in ["false", "False"] {
            bench.publish(&["drop"]).await;
            let message = client.message("drop").await;
            bench.settle(&mut client, "NACK", &message, &format!("requeue:{requeue}\n")).await;
        }
        client.disconnect().await;
        bench.expect_drained().await;
    }
}

/// 1.2 acknowledges by `id` alone.
#[tokio::test]
async fn an_ack_of_version_1_2_needs_its_id_header() {
    let relay = Relay::start_compatible(Rabbit::shared());
    let mut client = relay.client().await;
    let destination = format!("/topic/{}", unique("id-header"));
    client.subscribe(&format!("id:0\ndestination:{destination}\nack:client")).await;
    client.send(&format!("SEND\ndestination:{destination}\n\nhello")).await;
    let message = client.message("hello").await;
    let id = message.header("ack").expect("1.2 has one");
    client.send(&format!("ACK\nmessage-id:{id}\nreceipt:no\n\n")).await;
    let error = client.error("Missing header").await;
    assert_eq!(error.body, "\"ACK\" must include the \"id\" header\n");
    client.send(&format!("ACK\nid:{id}\nreceipt:yes\n\n")).await;
    client.receipt("yes").await;
}

/// A topic subscription with `prefetch-count:5` gets five messages, and the next five for its ACK.
#[tokio::test]
async fn prefetch_bounds_what_is_unacknowledged() {
    let relay = Relay::start(Rabbit::shared());
    for version in VERSIONS {
        let bench = Bench::new(version).await;
        let destination = format!("/topic/{}", unique("prefetch"));
        let mut client = relay.client_of(version).await;
        client.subscribe(&format!("id:0\ndestination:{destination}\nack:client\nprefetch-count:5")).await;
        let mut sender = relay.client().await;
        for number in 0..10 {
            sender.send(&format!("SEND\ndestination:{destination}\nreceipt:{number}\n\n{number}")).await;
            sender.receipt(&number.to_string()).await;
        }
        for start in [0, 5] {
            let mut last = client.message(&start.to_string()).await;
            for number in start + 1..start + 5 {
                last = client.message(&number.to_string()).await;
            }
            client.quiet().await;
            // The next messages may overtake this receipt, so none is asked for.
            let (name, source) = if version == "1.2" { ("id", "ack") } else { ("message-id", "message-id") };
            let id = last.header(source).expect("the header that is to be given back");
            client.send(&format!("ACK\n{name}:{id}\nsubscription:0\n\n")).await;
        }
        bench.admin.delete(&bench.queue).await;
    }
}

/// What a client had not acknowledged when its connection was cut goes to the next one, marked as redelivered.
#[tokio::test]
async fn a_cut_connection_gives_its_messages_back() {
    let bench = Bench::new("1.2").await;
    let mut client = bench.subscriber("client").await;
    bench.publish(&["1", "2"]).await;
    for body in ["1", "2"] {
        assert_eq!(client.message(body).await.header("redelivered"), Some("false"));
    }
    // Neither DISCONNECT nor a WebSocket close: the socket is gone.
    drop(client);
    let mut client = bench.subscriber("client").await;
    let mut last = None;
    for body in ["1", "2"] {
        let message = client.message(body).await;
        assert_eq!(message.header("redelivered"), Some("true"));
        last = Some(message);
    }
    bench.settle(&mut client, "ACK", &last.expect("two came"), "").await;
    client.disconnect().await;
    bench.expect_drained().await;
}
