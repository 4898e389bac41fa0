//! What a SUBSCRIBE asks of its consumer: priority, the place in a stream, a stream's filters; and how a stream is
//! acknowledged.

use crate::support::dialect::{DIALECTS, RABBITMQ};
use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;

/// Messages go to the consumer of the highest priority as long as it takes them.
#[tokio::test]
async fn the_consumer_of_higher_priority_is_served_first() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let admin = rabbit.admin().await;
    for dialect in DIALECTS {
        let queue = unique("priority");
        admin.queue(&queue).await;
        let (mut low, mut high) = (dialect.guest(&relay).await, dialect.guest(&relay).await);
        low.subscribe(&format!("id:0\ndestination:/amq/queue/{queue}\nack:client")).await;
        let high_priority = "ack:client\nprefetch-count:3\nx-priority:10";
        high.subscribe(&format!("id:0\ndestination:/amq/queue/{queue}\n{high_priority}")).await;
        for body in ["1", "2", "3", "4"] {
            admin.send(&queue, body.as_bytes()).await;
        }
        for body in ["1", "2", "3"] {
            high.message(body).await;
        }
        low.message("4").await;
        low.disconnect().await;
        high.disconnect().await;
        admin.delete(&queue).await;
    }
}

/// A priority that is no number is refused before anything is made of it.
#[tokio::test]
async fn a_priority_that_is_no_number_is_refused() {
    let relay = Relay::start_with(Rabbit::shared(), RABBITMQ);
    for dialect in DIALECTS {
        let mut client = dialect.guest(&relay).await;
        client.send("SUBSCRIBE\nid:0\ndestination:/topic/p\nx-priority:high\n\n").await;
        client.error("Processing error").await;
        client.subscribe("id:0\ndestination:/topic/p\nx-priority:-1").await;
        client.disconnect().await;
    }
}

/// A stream made by SUBSCRIBE is read from where the header says. Each message names its offset, can be acknowledged once
/// even after UNSUBSCRIBE, and cannot be given back.
#[tokio::test]
async fn a_stream_is_read_from_an_offset_and_acknowledged_once() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start_with(rabbit, RABBITMQ);
    let admin = rabbit.admin().await;
    for dialect in DIALECTS {
        let stream = unique("stream");
        let queue = format!("destination:/queue/{stream}\nx-queue-type:stream\ndurable:true\nauto-delete:false");
        let mut client = dialect.guest(&relay).await;
        let consumer = "ack:client-individual\nprefetch-count:10";
        client.subscribe(&format!("id:0\n{queue}\n{consumer}\nx-stream-offset:first")).await;
        for body in ["1", "2", "3"] {
            client.send(&format!("SEND\n{queue}\nreceipt:{body}\n\n{body}")).await;
        }
        let (mut receipts, mut messages) = (0, Vec::new());
        while receipts < 3 || messages.len() < 3 {
            let frame = client.frame().await;
            match frame.command.as_str() {
                "MESSAGE" => messages.push(frame),
                "RECEIPT" => receipts += 1,
                other => panic!("{other} {frame:?}"),
            }
        }
        for (number, message) in messages.iter().enumerate() {
            assert_eq!(message.body, (number + 1).to_string());
            assert_eq!(message.header("x-stream-offset"), Some(number.to_string().as_str()));
        }
        client.send("UNSUBSCRIBE\nid:0\nreceipt:u\n\n").await;
        client.receipt("u").await;
        client.send(&dialect.settle("ACK", &messages[0], "receipt:a\n")).await;
        client.receipt("a").await;
        client.send(&dialect.settle("ACK", &messages[0], "")).await;
        client.error("Message not found").await;
        client.send(&dialect.settle("NACK", &messages[1], "")).await;
        client.error("Processing error").await;

        for (offset, bodies) in [("offset=1", &["2", "3"][..]), ("timestamp=1", &["1", "2", "3"]), ("next", &[])] {
            client.subscribe(&format!("id:0\n{queue}\n{consumer}\nx-stream-offset:{offset}")).await;
            for body in bodies {
                client.message(body).await;
            }
            client.send("UNSUBSCRIBE\nid:0\nreceipt:u\n\n").await;
            client.receipt("u").await;
        }
        client.disconnect().await;
        admin.delete(&stream).await;
    }
}

/// Filters of a SUBSCRIBE reach the broker in the types that RabbitMQ reads from 3.13 on; the filter value of a SEND is a
/// header of the message. Whether it filters is the broker's affair; from 4.0 on it refuses filters on a queue that is no
/// stream, which shows them as well.
#[tokio::test]
async fn stream_filters_reach_the_broker() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let admin = rabbit.admin().await;
    let mut consumers = Vec::new();
    for dialect in DIALECTS {
        let queue = unique("filter");
        admin.queue(&queue).await;
        let mut client = dialect.guest(&relay).await;
        let filters = "x-stream-filter:apple,orange\nx-stream-match-unfiltered:true\nx-priority:7";
        client.send(&format!("SUBSCRIBE\nid:0\ndestination:/amq/queue/{queue}\nreceipt:r\n{filters}\n\n")).await;
        let answer = client.frame().await;
        if answer.command.as_str() == "RECEIPT" {
            consumers.push((client, queue));
        } else {
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            assert!(text.contains(&format!("invalid arg 'x-stream-filter' for queue '{queue}'")), "{text}");
        }
    }
    let listed = rabbit.ctl(&["list_consumers", "queue_name", "arguments"]);
    let arguments = r#"[{"x-priority",7},{"x-stream-filter",["apple","orange"]},{"x-stream-match-unfiltered",true}]"#;
    for (mut client, queue) in consumers {
        let consumer = listed.lines().find(|line| line.starts_with(&queue)).expect("the consumer is listed");
        assert!(consumer.replace(' ', "").ends_with(arguments), "{arguments} is not in {consumer}");
        client.send(&format!("SEND\ndestination:/amq/queue/{queue}\nx-stream-filter-value:apple\n\nx")).await;
        assert_eq!(client.message("x").await.header("x-stream-filter-value"), Some("apple"));
        client.disconnect().await;
        admin.delete(&queue).await;
    }
}
