//! Streams: a queue type that keeps its messages, so that a subscription says where it begins.

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable, LongString};

use crate::support::rabbit::{Admin, Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::stomp::Client;

async fn stream(admin: &Admin, name: &str) {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(LongString::from("stream")));
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    admin.channel.queue_declare(name.into(), options, arguments).await.expect("the stream is declared");
}

/// Sends with receipts, so that the stream has all of them afterwards.
async fn fill(relay: &Relay, name: &str, bodies: &[&str]) {
    let mut sender = relay.client().await;
    for body in bodies {
        sender.send(&format!("SEND\ndestination:/amq/queue/{name}\nreceipt:sent\n\n{body}")).await;
        sender.receipt("sent").await;
    }
    sender.disconnect().await;
}

async fn ack(client: &mut Client, frame: &stomp_relay::stomp::Frame) {
    let id = frame.header("ack").expect("1.2 in a client mode");
    client.send(&format!("ACK\nid:{id}\n\n")).await;
}

/// A topic subscription on a stream of its own, with the arguments that a stream takes.
#[tokio::test]
async fn a_subscription_queue_can_be_a_stream() {
    let rabbit = Rabbit::shared();
    let (admin, relay) = (rabbit.admin().await, Relay::start(rabbit));
    let name = unique("stream");
    let mut client = relay.client().await;
    client
        .subscribe(&format!(
            "id:1234\ndestination:/topic/{name}\nx-queue-name:{name}\nx-queue-type:stream\nx-max-age:10h\n\
             x-stream-max-segment-size-bytes:100000\nx-stream-filter-size-bytes:32\nx-stream-match-unfiltered:true\n\
             durable:true\nauto-delete:false\nexclusive:false\nprefetch-count:10\nack:client"
        ))
        .await;
    client.send(&format!("SEND\ndestination:/topic/{name}\n\nhello")).await;
    let message = client.message("hello").await;
    assert_eq!(message.header("x-stream-offset"), Some("0"));
    ack(&mut client, &message).await;
    client.disconnect().await;
    admin.delete(&name).await;
}

/// More messages than the prefetch come as they are acknowledged; a second reader gets them all again.
#[tokio::test]
async fn a_stream_is_read_again_and_again() {
    let rabbit = Rabbit::shared();
    let (admin, relay) = (rabbit.admin().await, Relay::start(rabbit));
    let name = unique("stream");
    stream(&admin, &name).await;
    fill(&relay, &name, &["0", "1", "2", "3", "4", "5"]).await;
    for mode in ["client", "client-individual", "auto"] {
        let mut client = relay.client().await;
        client
            .subscribe(&format!(
                "id:0\ndestination:/amq/queue/{name}\nack:{mode}\nprefetch-count:2\nx-stream-offset:first"
            ))
            .await;
        for number in ["0", "1", "2", "3", "4", "5"] {
            let message = client.message(number).await;
            assert_eq!(message.header("x-stream-offset"), Some(number), "{mode}");
            if mode != "auto" {
                ack(&mut client, &message).await;
            }
        }
        client.disconnect().await;
    }
    admin.delete(&name).await;
}

/// `first`, `offset=N`, `timestamp=SECONDS` and the default, which is what comes from now on.
#[tokio::test]
async fn a_subscription_begins_where_it_says() {
    let rabbit = Rabbit::shared();
    let (admin, relay) = (rabbit.admin().await, Relay::start(rabbit));
    let name = unique("stream");
    stream(&admin, &name).await;
    fill(&relay, &name, &["0", "1", "2"]).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let cases = [
        ("x-stream-offset:first", 0),
        ("x-stream-offset:offset=1", 1),
        ("x-stream-offset:5m", 0),
        (&*format!("x-stream-offset:timestamp={}", now - 3600), 0),
        (&*format!("x-stream-offset:timestamp={}", now + 3600), 3),
        ("x-stream-offset:next", 3),
        ("x-nothing:", 3),
    ];
    let mut clients = Vec::new();
    for (offset, begin) in cases {
        let mut client = relay.client().await;
        client
            .subscribe(&format!("id:0\ndestination:/amq/queue/{name}\nack:client\nprefetch-count:10\n{offset}"))
            .await;
        clients.push((client, offset.to_owned(), begin));
    }
    fill(&relay, &name, &["3"]).await;
    for (mut client, offset, begin) in clients {
        for number in begin..4 {
            let message = client.expect("MESSAGE").await;
            assert_eq!(String::from_utf8_lossy(&message.body), number.to_string(), "{offset}");
        }
        client.disconnect().await;
    }
    admin.delete(&name).await;
}

/// A NACK cannot give a message back to a stream: the relay refuses it, and the session goes on with the plugin's manners.
#[tokio::test]
async fn a_nack_on_a_stream_is_refused() {
    let rabbit = Rabbit::shared();
    let (admin, relay) = (rabbit.admin().await, Relay::start_compatible(rabbit));
    let name = unique("stream");
    stream(&admin, &name).await;
    fill(&relay, &name, &["0"]).await;
    let mut client = relay.client().await;
    client
        .subscribe(&format!("id:0\ndestination:/amq/queue/{name}\nack:client\nprefetch-count:1\nx-stream-offset:first"))
        .await;
    let message = client.message("0").await;
    let id = message.header("ack").expect("1.2");
    client.send(&format!("NACK\nid:{id}\n\n")).await;
    client.error("Processing error").await;
    ack(&mut client, &message).await;
    client.disconnect().await;
    admin.delete(&name).await;
}

/// RabbitMQ would say nothing until the stream has grown so far. One that goes on behind the last message waits for the next.
#[tokio::test]
async fn an_offset_behind_the_end_is_told() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    for mode in ["strict", "rabbitmq"] {
        let relay = Relay::start_with(rabbit, &format!("[stomp]\ncompatibility = \"{mode}\"\n"));
        let name = unique("stream");
        stream(&admin, &name).await;
        is_behind_the_end(&relay, &name, 1, 0).await;
        // Many in a chunk.
        let mut sender = relay.client().await;
        let send = |number| format!("SEND\ndestination:/amq/queue/{name}\nreceipt:{number}\n\n{number}\0");
        let sends: String = (0..200).map(send).collect();
        sender.send(sends.trim_end_matches('\0')).await;
        for number in 0..200 {
            sender.receipt(&number.to_string()).await;
        }
        is_behind_the_end(&relay, &name, 201, 200).await;
        for offset in [0, 150, 200] {
            let mut client = relay.client().await;
            client.subscribe(&format!("id:0\ndestination:/amq/queue/{name}\nx-stream-offset:offset={offset}")).await;
            if offset == 200 {
                sender.send(&send(200)).await;
            }
            client.message(&offset.to_string()).await;
        }
        admin.delete(&name).await;
    }
}

async fn is_behind_the_end(relay: &Relay, name: &str, offset: u64, next: u64) {
    let mut client = relay.client().await;
    let headers = format!("id:0\ndestination:/amq/queue/{name}\nx-stream-offset:offset={offset}\nreceipt:s");
    client.send(&format!("SUBSCRIBE\n{headers}\n\n")).await;
    let error = client.error("Offset behind the end").await;
    assert_eq!((error.header("error-code"), error.header("receipt-id")), (Some("subscription.offset"), Some("s")));
    let body = String::from_utf8_lossy(&error.body);
    assert!(body.contains(&format!("whose next message has the offset {next}\n")), "{body}");
    assert_eq!(client.closed().await.0, 1002);
}
