//! The end of a subscription: UNSUBSCRIBE in all its forms, and the broker's cancel.

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;

/// By id or by destination, with a receipt or without, for exchanges and queues: exactly the receipt comes, if one was asked
/// for, and nothing that is sent afterwards.
#[tokio::test]
async fn unsubscribe_ends_the_subscription() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let name = unique("unsubscribe");
    for destination in [format!("/exchange/amq.direct/{name}"), format!("/queue/{name}")] {
        for by_id in [true, false] {
            for receipt in ["", "receipt:unsubscribed\n"] {
                let handle = if by_id { "id:1234".to_owned() } else { format!("destination:{destination}") };
                // From 1.1 on strict mode wants an id.
                let mut client = relay.client_of(if by_id { "1.2" } else { "1.0" }).await;
                let mut subscribe = format!("destination:{destination}");
                if by_id {
                    subscribe.push_str("\nid:1234");
                }
                client.subscribe(&subscribe).await;
                client.send(&format!("SEND\ndestination:{destination}\n\nbefore")).await;
                let message = client.message("before").await;
                assert_eq!(message.header("subscription"), by_id.then_some("1234"));
                client.send(&format!("UNSUBSCRIBE\n{handle}\n{receipt}\n")).await;
                if !receipt.is_empty() {
                    client.receipt("unsubscribed").await;
                }
                client.send(&format!("SEND\ndestination:{destination}\n\nafter")).await;
                client.quiet().await;
                client.disconnect().await;
                if destination.starts_with("/queue") {
                    rabbit.admin().await.delete(&name).await;
                }
            }
        }
    }
}

/// A queue that is deleted cancels its subscription with an ERROR that names it. As with the plugin the session goes on, and
/// the id is free again.
#[tokio::test]
async fn a_deleted_queue_cancels_its_subscription() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start_compatible(rabbit);
    let admin = rabbit.admin().await;
    let (doomed, other) = (unique("doomed"), format!("/topic/{}", unique("other")));
    let mut client = relay.client().await;
    client.subscribe(&format!("id:1\ndestination:{other}")).await;
    let cases = [
        ("id:2\n", "2", "id='2'".to_owned()),
        ("", &*format!("/queue/{doomed}"), format!("destination='/queue/{doomed}'")),
    ];
    for (id, shown, described) in cases {
        client.subscribe(&format!("{id}destination:/queue/{doomed}")).await;
        admin.delete(&doomed).await;
        let error = client.error("Server cancelled subscription").await;
        assert_eq!(error.header("subscription"), Some(shown));
        let body = format!(
            "The server has canceled a subscription.\nNo more messages will be delivered for \"{described}\".\n"
        );
        assert_eq!(error.body, body);
        client.send(&format!("SEND\ndestination:{other}\n\nstill here")).await;
        assert_eq!(client.message("still here").await.header("subscription"), Some("1"));
    }
    client.subscribe(&format!("id:2\ndestination:/queue/{doomed}")).await;
    client.send(&format!("SEND\ndestination:/queue/{doomed}\n\nanew")).await;
    client.message("anew").await;
    client.disconnect().await;
    admin.delete(&doomed).await;
}

/// RabbitMQ cancels the consumer of a deleted queue. Whoever makes the queue again at once means to go on.
#[tokio::test]
async fn a_queue_that_is_made_again_at_once_is_consumed_again() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    for destination in ["/amq/queue/", "/queue/"] {
        let (relay, name) = (Relay::start(rabbit), unique("anew"));
        admin.queue(&name).await;
        let mut client = relay.client().await;
        client.subscribe(&format!("id:1\ndestination:{destination}{name}\nack:client")).await;
        admin.send(&name, b"before").await;
        let before = client.message("before").await.header("ack").expect("in client mode").to_owned();
        admin.delete(&name).await;
        // Somebody who waits for each answer.
        let again = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        admin.channel.queue_declare(name.as_str().into(), again, FieldTable::default()).await.expect("made again");
        admin.send(&name, b"after").await;
        let after = client.message("after").await.header("ack").expect("in client mode").to_owned();
        // The one of the old queue has no effect and is no mistake.
        client.send(&format!("ACK\nid:{before}\n\n\0ACK\nid:{after}\nreceipt:a\n\n")).await;
        client.receipt("a").await;
        client.disconnect().await;
        assert_eq!(admin.ready(&name).await, Some(0), "{destination}");
        admin.delete(&name).await;
    }
}

/// By default the session ends with the ERROR, as STOMP has it.
#[tokio::test]
async fn a_cancelled_subscription_closes_by_default() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let doomed = unique("doomed");
    let mut client = relay.client().await;
    client.subscribe(&format!("id:1\ndestination:/queue/{doomed}")).await;
    rabbit.admin().await.delete(&doomed).await;
    let error = client.error("Server cancelled subscription").await;
    assert_eq!(error.header("subscription"), Some("1"));
    assert_eq!(client.closed().await.0, 1011);
}

/// SUBSCRIBE's receipt comes before the first message, and means that the binding is there.
#[tokio::test]
async fn the_receipt_of_subscribe_is_a_barrier() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let name = unique("barrier");
    let admin = rabbit.admin().await;
    admin.queue(&name).await;
    admin.send(&name, b"waiting").await;
    let mut client = relay.client().await;
    client.subscribe(&format!("id:0\ndestination:/queue/{name}")).await;
    client.message("waiting").await;
    client.subscribe(&format!("id:1\ndestination:/topic/{name}")).await;
    let body = b"from elsewhere";
    let publish =
        admin.channel.basic_publish("amq.topic".into(), (&*name).into(), Default::default(), body, Default::default());
    publish.await.expect("the message is written");
    client.message("from elsewhere").await;
    client.disconnect().await;
    admin.delete(&name).await;
}
