//! ACK and NACK, also of what was delivered before an UNSUBSCRIBE, by an earlier subscription of the same id, or within a
//! transaction; and what remains in the queue after each.

use stomp_relay::stomp::Frame;

use crate::support::condition::eventually;
use crate::support::dialect::{DIALECTS, Dialect, RABBITMQ};
use crate::support::rabbit::{Admin, Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::stomp::Client;

/// A queue with messages `1`, `2` and so on, and a client in compatibility mode.
struct Bench {
    admin: Admin,
    client: Client,
    dialect: Dialect,
    queue: String,
}

impl Bench {
    async fn new(relay: &Relay, dialect: Dialect, messages: usize) -> Bench {
        let admin = Rabbit::shared().admin().await;
        let queue = unique("acks");
        admin.queue(&queue).await;
        for number in 1..=messages {
            admin.send(&queue, number.to_string().as_bytes()).await;
        }
        Bench { admin, client: dialect.guest(relay).await, dialect, queue }
    }

    async fn subscribe(&mut self, id: &str, mode: &str) {
        let queue = &self.queue;
        self.client.subscribe(&format!("id:{id}\ndestination:/amq/queue/{queue}\nack:{mode}")).await;
    }

    async fn unsubscribe(&mut self, id: &str) {
        self.client.send(&format!("UNSUBSCRIBE\nid:{id}\nreceipt:unsubscribed\n\n")).await;
        self.client.receipt("unsubscribed").await;
    }

    /// The messages with these bodies, which come next.
    async fn messages<const N: usize>(&mut self, bodies: [&str; N]) -> [Frame; N] {
        let mut frames = Vec::new();
        for body in bodies {
            frames.push(self.client.message(body).await);
        }
        frames.try_into().expect("as many as bodies")
    }

    /// A settlement that must be accepted.
    async fn settle(&mut self, command: &str, message: &Frame, further: &str) {
        self.client.send(&self.dialect.settle(command, message, &format!("{further}receipt:settled\n"))).await;
        self.client.receipt("settled").await;
    }

    /// A settlement that names nothing outstanding, after which the session is still usable.
    async fn is_not_found(&mut self, command: &str, message: &Frame) {
        self.client.send(&self.dialect.settle_by_message_id(command, message, "receipt:refused\n")).await;
        let error = self.client.error("Message not found").await;
        assert_eq!(error.header("receipt-id"), Some("refused"));
        self.is_usable().await;
    }

    async fn is_usable(&mut self) {
        self.client.send("BEGIN\ntransaction:usable\nreceipt:usable\n\n").await;
        self.client.receipt("usable").await;
        self.client.send("ABORT\ntransaction:usable\n\n").await;
    }

    async fn transaction(&mut self, command: &str) {
        self.client.send(&format!("{command}\ntransaction:t\nreceipt:{command}\n\n")).await;
        self.client.receipt(command).await;
    }

    /// The session ends, and this many messages are in the queue. RabbitMQ gives back to a classic queue before it
    /// confirms the end of a channel, and the receipt of DISCONNECT waits for that, so none can come later.
    async fn leaves(self, ready: u32) {
        self.client.disconnect().await;
        let (admin, queue) = (&self.admin, &self.queue);
        eventually("the queue is as expected", || async { admin.ready(queue).await == Some(ready) }).await;
        self.admin.delete(&self.queue).await;
    }
}

/// The `ack` header stands exactly where the client must send it back, and the ACK empties the queue.
#[tokio::test]
async fn only_stomp_1_2_has_an_ack_header() {
    for settings in ["", RABBITMQ] {
        let relay = Relay::start_with(Rabbit::shared(), settings);
        for dialect in DIALECTS {
            let mut bench = Bench::new(&relay, dialect, 1).await;
            let queue = &bench.queue;
            // Strict mode wants an id from 1.1 on.
            let (id, name) = match settings.is_empty() && dialect.version != "1.0" {
                true => ("id:1\n", "T_1@@".to_owned()),
                false => ("", format!("Q_/amq/queue/{queue}@@")),
            };
            bench.client.subscribe(&format!("{id}destination:/amq/queue/{queue}\nack:client")).await;
            let [one] = bench.messages(["1"]).await;
            assert_eq!(one.header("ack").is_some(), dialect.version == "1.2");
            assert!(one.header("message-id").is_some_and(|id| id.starts_with(&name)));
            bench.settle("ACK", &one, "").await;
            bench.leaves(0).await;
        }
    }
}

/// A delivered message can be acknowledged after its subscription is gone, in both modes; the others stay in the queue.
#[tokio::test]
async fn an_ack_after_unsubscribe_counts() {
    for settings in ["", RABBITMQ] {
        let relay = Relay::start_with(Rabbit::shared(), settings);
        for dialect in DIALECTS {
            let mut bench = Bench::new(&relay, dialect, 2).await;
            bench.subscribe("0", "client-individual").await;
            let [one, _] = bench.messages(["1", "2"]).await;
            bench.unsubscribe("0").await;
            bench.settle("ACK", &one, "").await;
            bench.leaves(1).await;
        }
    }
}

/// After UNSUBSCRIBE a cumulative ACK still takes what is older and nothing else, once.
#[tokio::test]
async fn a_cumulative_ack_after_unsubscribe_leaves_later_messages() {
    let relay = Relay::start_with(Rabbit::shared(), RABBITMQ);
    for dialect in DIALECTS {
        let mut bench = Bench::new(&relay, dialect, 4).await;
        bench.subscribe("0", "client").await;
        let [one, two, three, _] = bench.messages(["1", "2", "3", "4"]).await;
        bench.unsubscribe("0").await;
        bench.settle("ACK", &one, "").await;
        bench.settle("ACK", &three, "").await;
        bench.is_not_found("ACK", &three).await;
        bench.is_not_found("ACK", &two).await;
        bench.leaves(1).await;
    }
}

/// In compatibility mode a cumulative ACK reaches the older deliveries of all subscriptions, as the plugin's does.
#[tokio::test]
async fn a_cumulative_ack_covers_the_whole_connection_in_compatibility_mode() {
    let relay = Relay::start_with(Rabbit::shared(), RABBITMQ);
    for dialect in DIALECTS {
        let mut bench = Bench::new(&relay, dialect, 1).await;
        bench.subscribe("b", "client-individual").await;
        let [one] = bench.messages(["1"]).await;
        bench.unsubscribe("b").await;
        bench.admin.send(&bench.queue, b"2").await;
        bench.subscribe("a", "client").await;
        let [two] = bench.messages(["2"]).await;
        bench.settle("ACK", &two, "").await;
        bench.is_not_found("ACK", &one).await;
        bench.leaves(0).await;
    }
}

/// By default it reaches the older deliveries of its own subscription, as STOMP says.
#[tokio::test]
async fn a_cumulative_ack_covers_its_subscription_in_strict_mode() {
    let relay = Relay::start(Rabbit::shared());
    for dialect in DIALECTS {
        let mut bench = Bench::new(&relay, dialect, 1).await;
        bench.subscribe("b", "client-individual").await;
        bench.messages(["1"]).await;
        bench.unsubscribe("b").await;
        bench.subscribe("a", "client").await;
        bench.admin.send(&bench.queue, b"2").await;
        bench.admin.send(&bench.queue, b"3").await;
        let [_, three] = bench.messages(["2", "3"]).await;
        bench.settle("ACK", &three, "").await;
        bench.leaves(1).await;
    }
}

/// An ACK in a transaction is nothing until COMMIT, also for a delivery whose subscription is gone.
#[tokio::test]
async fn an_ack_in_a_transaction_counts_at_commit() {
    let relay = Relay::start(Rabbit::shared());
    for dialect in DIALECTS {
        for (kind, end, left) in [("quorum", "ABORT", 1), ("quorum", "COMMIT", 0), ("classic", "COMMIT", 0)] {
            let mut bench = Bench::new(&relay, dialect, 0).await;
            bench.admin.delete(&bench.queue).await;
            bench.admin.typed_queue(&bench.queue, kind).await;
            bench.admin.send(&bench.queue, b"1").await;
            bench.subscribe("0", "client").await;
            let [one] = bench.messages(["1"]).await;
            bench.unsubscribe("0").await;
            bench.transaction("BEGIN").await;
            bench.settle("ACK", &one, "transaction:t\n").await;
            bench.transaction(end).await;
            bench.leaves(left).await;
        }
    }
}

/// Within one COMMIT a delivery may be named again that an earlier cumulative ACK of it has covered; afterwards not.
#[tokio::test]
async fn a_commit_absorbs_what_a_cumulative_ack_covered() {
    let relay = Relay::start_with(Rabbit::shared(), RABBITMQ);
    for dialect in DIALECTS {
        let mut bench = Bench::new(&relay, dialect, 3).await;
        bench.subscribe("0", "client").await;
        let [one, two, three] = bench.messages(["1", "2", "3"]).await;
        bench.unsubscribe("0").await;
        bench.transaction("BEGIN").await;
        bench.settle("ACK", &two, "transaction:t\n").await;
        bench.settle("ACK", &one, "transaction:t\n").await;
        bench.transaction("COMMIT").await;
        bench.transaction("BEGIN").await;
        bench.client.send(&dialect.settle("ACK", &one, "transaction:t\n")).await;
        bench.client.error("Message not found").await;
        bench.settle("ACK", &three, "transaction:t\n").await;
        bench.transaction("COMMIT").await;
        bench.leaves(0).await;
    }
}

/// The same delivery named twice in one transaction: the COMMIT is refused and nothing of it is done. Individual
/// settlements absorb nothing.
#[tokio::test]
async fn a_commit_that_names_a_delivery_twice_is_refused() {
    let (strict, relay) = (Relay::start(Rabbit::shared()), Relay::start_with(Rabbit::shared(), RABBITMQ));
    for dialect in DIALECTS {
        for (mode, second) in [("client", "NACK"), ("client-individual", "NACK"), ("client-individual", "ACK")] {
            let mut bench = Bench::new(&relay, dialect, 2).await;
            let mut closing = Bench::new(&strict, dialect, 2).await;
            for bench in [&mut bench, &mut closing] {
                bench.subscribe("0", mode).await;
                let [_, two] = bench.messages(["1", "2"]).await;
                bench.transaction("BEGIN").await;
                bench.settle("ACK", &two, "transaction:t\n").await;
                bench.settle(second, &two, "transaction:t\n").await;
                bench.client.send("COMMIT\ntransaction:t\nreceipt:c\n\n").await;
                assert_eq!(bench.client.error("Message not found").await.header("receipt-id"), Some("c"));
            }
            bench.is_usable().await;
            bench.leaves(2).await;
            assert_eq!(closing.client.closed().await.0, 1002);
            let (admin, queue) = (&closing.admin, &closing.queue);
            eventually("both are back", || async { admin.ready(queue).await == Some(2) }).await;
            admin.delete(queue).await;
        }
    }
}

/// A NACK after UNSUBSCRIBE puts the message back at once, and works once.
#[tokio::test]
async fn a_nack_after_unsubscribe_requeues() {
    let relay = Relay::start_with(Rabbit::shared(), RABBITMQ);
    for dialect in DIALECTS {
        let mut bench = Bench::new(&relay, dialect, 1).await;
        bench.subscribe("0", "client-individual").await;
        let [one] = bench.messages(["1"]).await;
        bench.unsubscribe("0").await;
        bench.settle("NACK", &one, "requeue:true\n").await;
        let (admin, queue) = (&bench.admin, &bench.queue);
        eventually("it is back", || async { admin.ready(queue).await == Some(1) }).await;
        bench.is_not_found("NACK", &one).await;
        bench.leaves(1).await;
    }
}

/// `requeue:false` discards.
#[tokio::test]
async fn a_nack_after_unsubscribe_discards() {
    let relay = Relay::start(Rabbit::shared());
    for dialect in DIALECTS {
        let mut bench = Bench::new(&relay, dialect, 1).await;
        bench.subscribe("0", "client").await;
        let [one] = bench.messages(["1"]).await;
        bench.unsubscribe("0").await;
        bench.settle("NACK", &one, "requeue:false\n").await;
        bench.leaves(0).await;
    }
}

/// What was delivered with `ack:auto` cannot be acknowledged. The broker never sees the attempt.
#[tokio::test]
async fn an_ack_of_an_automatic_delivery_is_refused() {
    let (strict, relay) = (Relay::start(Rabbit::shared()), Relay::start_with(Rabbit::shared(), RABBITMQ));
    for dialect in DIALECTS {
        let mut bench = Bench::new(&relay, dialect, 1).await;
        bench.subscribe("0", "auto").await;
        let [one] = bench.messages(["1"]).await;
        assert_eq!(one.header("ack"), None);
        bench.is_not_found("ACK", &one).await;
        bench.is_not_found("NACK", &one).await;
        bench.admin.send(&bench.queue, b"2").await;
        bench.messages(["2"]).await;
        bench.leaves(0).await;

        let mut closing = Bench::new(&strict, dialect, 1).await;
        closing.subscribe("0", "auto").await;
        let [one] = closing.messages(["1"]).await;
        closing.client.send(&dialect.settle_by_message_id("ACK", &one, "")).await;
        closing.client.error("Message not found").await;
        assert_eq!(closing.client.closed().await.0, 1002);
        closing.admin.delete(&closing.queue).await;
    }
}

/// An id with another subscription's name, another session or another number in it names nothing.
#[tokio::test]
async fn forged_ids_name_nothing() {
    let relay = Relay::start_with(Rabbit::shared(), RABBITMQ);
    for dialect in DIALECTS {
        let mut bench = Bench::new(&relay, dialect, 1).await;
        bench.subscribe("0", "client").await;
        let [one] = bench.messages(["1"]).await;
        let id = one.header("message-id").expect("there is one").to_owned();
        let (front, serial) = id.rsplit_once("@@").expect("three parts");
        let (name, session) = front.rsplit_once("@@").expect("three parts");
        assert_eq!(name, "T_0");
        let forged = [
            format!("T_1@@{session}@@{serial}"),
            format!("Q_0@@{session}@@{serial}"),
            format!("T_0@@session-other@@{serial}"),
            format!("T_0@@{session}@@0"),
            format!("T_0@@{session}@@99"),
        ];
        for id in forged {
            let mut frame = Frame::new(stomp_relay::stomp::Command::Message);
            frame.headers.push("message-id", &id);
            bench.is_not_found("ACK", &frame).await;
        }
        let header = if dialect.version == "1.2" { "id" } else { "message-id" };
        for (id, message) in [("T_0@@1", "Invalid header"), ("a@@b@@c", "Processing error")] {
            bench.client.send(&format!("ACK\n{header}:{id}\n\n")).await;
            bench.client.error(message).await;
        }
        bench.settle("ACK", &one, "").await;
        bench.leaves(0).await;
    }
}

/// A subscription id used again: each delivery keeps the ack mode that it was made with.
#[tokio::test]
async fn a_delivery_keeps_its_ack_mode() {
    let relay = Relay::start_with(Rabbit::shared(), RABBITMQ);
    for dialect in DIALECTS {
        let mut bench = Bench::new(&relay, dialect, 2).await;
        bench.subscribe("0", "client").await;
        let [one, two] = bench.messages(["1", "2"]).await;
        bench.unsubscribe("0").await;
        bench.subscribe("0", "client-individual").await;
        bench.admin.send(&bench.queue, b"3").await;
        bench.admin.send(&bench.queue, b"4").await;
        let [three, four] = bench.messages(["3", "4"]).await;
        // Individual, so 1 to 3 stay.
        bench.settle("ACK", &four, "").await;
        // Cumulative, so 1 goes with it.
        bench.settle("ACK", &two, "").await;
        bench.is_not_found("ACK", &one).await;
        bench.settle("ACK", &three, "").await;
        bench.leaves(0).await;
    }
}

/// The queue is deleted under a subscription without id: the ERROR names its destination, an ACK that comes late is
/// accepted, and the session goes on, in compatibility mode.
#[tokio::test]
async fn a_deleted_queue_cancels_its_subscription() {
    let (strict, relay) = (Relay::start(Rabbit::shared()), Relay::start_with(Rabbit::shared(), RABBITMQ));
    for dialect in DIALECTS {
        let mut bench = Bench::new(&relay, dialect, 1).await;
        let mut closing = Bench::new(&strict, dialect, 1).await;
        let mut delivered = Vec::new();
        for (bench, strict) in [(&mut bench, false), (&mut closing, true)] {
            let destination = format!("/amq/queue/{}", bench.queue);
            // Strict mode wants an id from 1.1 on.
            let (id, name, shown) = match strict && dialect.version != "1.0" {
                true => ("id:1\n", "1", "id='1'".to_owned()),
                false => ("", destination.as_str(), format!("destination='{destination}'")),
            };
            bench.client.subscribe(&format!("{id}destination:{destination}\nack:client")).await;
            let [one] = bench.messages(["1"]).await;
            bench.admin.delete(&bench.queue).await;
            let error = bench.client.error("Server cancelled subscription").await;
            assert_eq!(error.header("subscription"), Some(name));
            let body = format!(
                "The server has canceled a subscription.\n\
                 No more messages will be delivered for \"{shown}\".\n"
            );
            assert!(error.body.starts_with(body.as_bytes()), "{error:?}");
            delivered.push(one);
        }
        bench.settle("ACK", &delivered[0], "").await;
        bench.is_usable().await;
        bench.client.disconnect().await;
        assert_eq!(closing.client.closed().await.0, 1011);
    }
}
