//! The queues that frames declare: names, arguments, types. Each is held against a declaration over AMQP, which the broker
//! refuses unless it is equivalent.

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable, LongString};

use crate::support::rabbit::{Admin, Rabbit, unique};
use crate::support::relay::Relay;

fn table(arguments: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert((*name).into(), value.clone());
    }
    table
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(value))
}

/// Whether the broker takes this for the declaration of the queue that is there.
async fn is_declared(rabbit: &Rabbit, queue: &str, arguments: &[(&str, AMQPValue)]) -> bool {
    // A refusal closes the channel, so each question has its own.
    let Admin { channel, .. } = &rabbit.admin().await;
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(queue.into(), options, table(arguments)).await.is_ok()
}

/// All arguments of a classic queue arrive with their AMQP types, from SUBSCRIBE as from SEND.
#[tokio::test]
async fn classic_queues_get_their_arguments() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start_compatible(rabbit);
    let headers = "x-dead-letter-exchange:dead-letters\nx-dead-letter-routing-key:rk\nx-expires:86400000\n\
                   x-message-ttl:1000000\nx-max-length:700\nx-max-length-bytes:1000000\nx-max-priority:4\n";
    let arguments = [
        ("x-dead-letter-exchange", text("dead-letters")),
        ("x-dead-letter-routing-key", text("rk")),
        ("x-expires", AMQPValue::LongLongInt(86_400_000)),
        ("x-message-ttl", AMQPValue::LongLongInt(1_000_000)),
        ("x-max-length", AMQPValue::LongLongInt(700)),
        ("x-max-length-bytes", AMQPValue::LongLongInt(1_000_000)),
        ("x-max-priority", AMQPValue::LongLongInt(4)),
    ];
    for frame in ["SUBSCRIBE\nid:0\n", "SEND\n"] {
        let name = unique("arguments");
        let mut client = relay.client().await;
        client.send(&format!("{frame}destination:/queue/{name}\n{headers}receipt:done\n\n")).await;
        client.receipt("done").await;
        assert!(is_declared(rabbit, &name, &arguments).await, "{frame}");
        for missing in 0..arguments.len() {
            let mut others = arguments.to_vec();
            let removed = others.remove(missing);
            assert!(!is_declared(rabbit, &name, &others).await, "{frame} without {removed:?}");
        }
        rabbit.admin().await.delete(&name).await;
    }
}

/// The arguments of a stream, likewise.
#[tokio::test]
async fn streams_get_their_arguments() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start_compatible(rabbit);
    let headers =
        "x-queue-type:stream\nx-max-age:10h\nx-stream-max-segment-size-bytes:100000\nx-max-length-bytes:5000000\n";
    let arguments = [
        ("x-queue-type", text("stream")),
        ("x-max-age", text("10h")),
        ("x-stream-max-segment-size-bytes", AMQPValue::LongLongInt(100_000)),
        ("x-max-length-bytes", AMQPValue::LongLongInt(5_000_000)),
    ];
    for frame in ["SUBSCRIBE\nid:0\nack:client\nprefetch-count:1\n", "SEND\n"] {
        let name = unique("stream");
        let mut client = relay.client().await;
        client.send(&format!("{frame}destination:/queue/{name}\n{headers}receipt:done\n\n")).await;
        client.receipt("done").await;
        assert!(is_declared(rabbit, &name, &arguments).await, "{frame}");
        let others = [&arguments[..1], &[("x-max-age", text("9h"))], &arguments[2..]].concat();
        assert!(!is_declared(rabbit, &name, &others).await, "{frame}");
        rabbit.admin().await.delete(&name).await;
    }
}

/// `x-queue-name` names the queue of an exchange or topic subscription, so that others can send to it directly.
#[tokio::test]
async fn a_subscription_queue_can_be_named() {
    let rabbit = Rabbit::shared();
    let (admin, relay) = (rabbit.admin().await, Relay::start(rabbit));
    for kind in ["/exchange/amq.direct", "/topic"] {
        let name = unique("named");
        let mut client = relay.client().await;
        client.subscribe(&format!("id:0\ndestination:{kind}/{name}\nx-queue-name:{name}")).await;
        admin.send(&name, b"directly").await;
        let message = client.message("directly").await;
        assert_eq!(message.header("destination"), Some(format!("/queue/{name}").as_str()));
        client.send(&format!("SEND\ndestination:{kind}/{name}\n\nrouted")).await;
        client.message("routed").await;
        client.disconnect().await;
    }
}

/// String headers of an AMQP message become STOMP headers.
#[tokio::test]
async fn headers_of_an_amqp_message_arrive() {
    let rabbit = Rabbit::shared();
    let (admin, relay) = (rabbit.admin().await, Relay::start(rabbit));
    let name = unique("amqp-headers");
    let mut client = relay.client().await;
    client.subscribe(&format!("id:0\ndestination:/topic/{name}\nx-queue-name:{name}")).await;
    let headers =
        [("x-custom-hdr-1", text("value1")), ("x-custom-hdr-2", text("value2")), ("custom-hdr-3", text("value3"))];
    let properties = lapin::BasicProperties::default().with_headers(table(&headers));
    let publish = admin.channel.basic_publish("".into(), (&*name).into(), Default::default(), b"Hello", properties);
    publish.await.expect("the message is written");
    let message = client.message("Hello").await;
    for (header, value) in [("x-custom-hdr-1", "value1"), ("x-custom-hdr-2", "value2"), ("custom-hdr-3", "value3")] {
        assert_eq!(message.header(header), Some(value));
    }
}

/// A durable topic subscription on a quorum queue.
#[tokio::test]
async fn a_subscription_queue_can_be_a_quorum_queue() {
    let rabbit = Rabbit::shared();
    let (admin, relay) = (rabbit.admin().await, Relay::start(rabbit));
    let name = unique("quorum");
    let mut client = relay.client().await;
    client
        .subscribe(&format!(
            "id:1234\ndestination:/topic/{name}\nx-queue-name:{name}\nx-queue-type:quorum\ndurable:true\nauto-delete:false\n\
             ack:client"
        ))
        .await;
    assert!(is_declared(rabbit, &name, &[("x-queue-type", text("quorum"))]).await);
    client.send(&format!("SEND\ndestination:/topic/{name}\n\nhello")).await;
    let message = client.message("hello").await;
    let id = message.header("ack").expect("1.2");
    client.send(&format!("ACK\nid:{id}\n\n")).await;
    client.disconnect().await;
    assert_eq!(admin.ready(&name).await, Some(0));
    admin.delete(&name).await;
}
