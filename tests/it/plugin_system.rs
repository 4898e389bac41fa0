//! What a client of RabbitMQ's plugin does with destinations, subscriptions and transactions does the same here.

use crate::support::condition::eventually;
use crate::support::dialect::{DIALECTS, RABBITMQ};
use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;

/// A SEND to an exchange that does not exist ends the session, in both modes, and the ERROR says which exchange.
#[tokio::test]
async fn a_send_to_a_missing_exchange_is_not_found() {
    for settings in ["", RABBITMQ] {
        let relay = Relay::start_with(Rabbit::shared(), settings);
        for dialect in DIALECTS {
            let mut client = dialect.guest(&relay).await;
            client.send("SEND\ndestination:/exchange/non.existent\nreceipt:r\n\nhello").await;
            let error = client.error("not_found").await;
            assert_eq!(error.header("receipt-id"), Some("r"));
            assert!(error.body.starts_with(b"NOT_FOUND - no exchange 'non.existent' in vhost '/'"), "{error:?}");
            client.closed().await;
        }
    }
}

/// An existing queue is never declared, so a missing one ends the session.
#[tokio::test]
async fn a_subscription_to_a_missing_queue_is_not_found() {
    let relay = Relay::start(Rabbit::shared());
    for dialect in DIALECTS {
        let missing = unique("missing");
        let mut client = dialect.guest(&relay).await;
        client.send(&format!("SUBSCRIBE\nid:0\ndestination:/amq/queue/{missing}\nreceipt:r\n\n")).await;
        let error = client.error("not_found").await;
        assert!(error.body.starts_with(format!("NOT_FOUND - no queue '{missing}'").as_bytes()), "{error:?}");
        client.closed().await;
    }
}

/// What an AMQP client publishes arrives as a MESSAGE.
#[tokio::test]
async fn a_message_published_by_amqp_arrives() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let admin = rabbit.admin().await;
    for dialect in DIALECTS {
        let queue = unique("amqp");
        admin.queue(&queue).await;
        let mut client = dialect.guest(&relay).await;
        let id = if dialect.version == "1.0" { "" } else { "id:1\n" };
        client.subscribe(&format!("{id}destination:/amq/queue/{queue}")).await;
        admin.send(&queue, b"hello").await;
        let message = client.message("hello").await;
        assert_eq!(message.header("destination"), Some(format!("/queue/{queue}").as_str()));
        assert_eq!(message.header("subscription").is_some(), !id.is_empty(), "only an id is named");
        client.disconnect().await;
        admin.delete(&queue).await;
    }
}

/// From client to client through an existing queue.
#[tokio::test]
async fn a_message_sent_by_stomp_arrives() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let admin = rabbit.admin().await;
    for dialect in DIALECTS {
        let queue = unique("stomp");
        admin.queue(&queue).await;
        let mut receiver = dialect.guest(&relay).await;
        receiver.subscribe(&format!("id:0\ndestination:/amq/queue/{queue}")).await;
        let mut sender = dialect.guest(&relay).await;
        sender.send(&format!("SEND\ndestination:/amq/queue/{queue}\nreceipt:foo\n\nhello")).await;
        sender.receipt("foo").await;
        receiver.message("hello").await;
        sender.disconnect().await;
        receiver.disconnect().await;
        admin.delete(&queue).await;
    }
}

/// Destinations that no SEND may name are refused; the session goes on where the plugin's would.
#[tokio::test]
async fn invalid_destinations_are_refused() {
    let cases = [
        ("/temp-queue/foo", "Invalid destination", "'/temp-queue/foo' is not a valid destination for 'SEND'\n"),
        ("", "Invalid destination", "Destination cannot be blank"),
        ("/queue/a/b", "Invalid destination", "'/a/b' is not a valid queue destination\n"),
        ("/something/else", "Unknown destination", "'/something/else' is not a valid destination.\n"),
    ];
    let strict = Relay::start(Rabbit::shared());
    let relay = Relay::start_with(Rabbit::shared(), RABBITMQ);
    for dialect in DIALECTS {
        let mut forgiven = dialect.guest(&relay).await;
        for (destination, message, body) in cases {
            let send = format!("SEND\ndestination:{destination}\nreceipt:r\n\nhello");
            forgiven.send(&send).await;
            let error = forgiven.error(message).await;
            assert!(error.body.starts_with(body.as_bytes()), "{error:?}");

            let mut client = dialect.guest(&strict).await;
            client.send(&send).await;
            assert_eq!(client.error(message).await.header("receipt-id"), Some("r"));
            assert_eq!(client.closed().await.0, 1002);
        }
        forgiven.disconnect().await;
    }
}

/// `reply-to:/temp-queue/...` becomes a real queue that an AMQP responder can answer to. Its replies need no ACK, and an
/// ACK of one is refused without harm.
#[tokio::test]
async fn replies_come_back_through_a_temporary_queue() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start_with(rabbit, RABBITMQ);
    let admin = rabbit.admin().await;
    for dialect in DIALECTS {
        let queue = unique("requests");
        admin.queue(&queue).await;
        let mut client = dialect.guest(&relay).await;
        let request = format!("SEND\ndestination:/amq/queue/{queue}\nreply-to:/temp-queue/foo\nreceipt:r\n\nping");
        client.send(&request).await;
        client.receipt("r").await;
        let first = admin.get(&queue).await;
        let reply_queue = first.properties.reply_to().clone().expect("the request names its reply queue");
        assert!(reply_queue.as_str().starts_with("stomp-subscription-"), "{reply_queue}");

        admin.send(reply_queue.as_str(), b"pong").await;
        let reply = client.message("pong").await;
        assert_eq!(reply.header("subscription"), Some("/temp-queue/foo"));
        assert_eq!(reply.header("destination"), Some(format!("/queue/{reply_queue}").as_str()));
        assert_eq!(reply.header("ack"), None);
        client.send(&dialect.settle_by_message_id("ACK", &reply, "")).await;
        client.error("Message not found").await;

        // The name stands for the same queue as long as the session lasts, and no longer.
        client.send(&request).await;
        client.receipt("r").await;
        assert_eq!(admin.get(&queue).await.properties.reply_to().as_ref(), Some(&reply_queue));
        client.disconnect().await;
        eventually("the reply queue is gone", || async { admin.ready(reply_queue.as_str()).await.is_none() }).await;
        admin.delete(&queue).await;
    }
}

/// A responder that speaks STOMP sees a destination to answer to.
#[tokio::test]
async fn a_stomp_responder_answers_to_the_reply_destination() {
    let relay = Relay::start(Rabbit::shared());
    for dialect in DIALECTS {
        let topic = format!("/topic/{}", unique("ping"));
        let mut responder = dialect.guest(&relay).await;
        responder.subscribe(&format!("id:0\ndestination:{topic}")).await;
        let mut requester = dialect.guest(&relay).await;
        requester.send(&format!("SEND\ndestination:{topic}\nreply-to:/temp-queue/foo\n\nping")).await;
        let request = responder.message("ping").await;
        let reply_to = request.header("reply-to").expect("where to answer");
        assert!(reply_to.starts_with("/reply-queue/"), "{reply_to}");
        responder.send(&format!("SEND\ndestination:{reply_to}\n\npong")).await;
        assert_eq!(requester.message("pong").await.header("subscription"), Some("/temp-queue/foo"));
        requester.disconnect().await;
        responder.disconnect().await;
    }
}

/// A subscription is known by its id, or by its destination if it has none; what names none is refused.
#[tokio::test]
async fn a_subscription_is_known_by_id_or_destination() {
    let (strict, relay) = (Relay::start(Rabbit::shared()), Relay::start_with(Rabbit::shared(), RABBITMQ));
    let refused = [
        ("UNSUBSCRIBE\n\n", "Missing destination or id"),
        ("UNSUBSCRIBE\nid:/temp-queue/foo\n\n", "Invalid id"),
        ("UNSUBSCRIBE\nid:unknown\n\n", "No subscription found"),
        ("SUBSCRIBE\nid:2\ndestination:/topic/t\nack:sometimes\n\n", "Processing error"),
        ("SUBSCRIBE\ndestination:/topic/t\ndurable:true\n\n", "Missing Header"),
    ];
    for dialect in DIALECTS {
        let topic = format!("/topic/{}", unique("known"));
        let mut client = dialect.guest(&relay).await;
        client.subscribe(&format!("id:1\ndestination:{topic}")).await;
        client.subscribe(&format!("destination:{topic}")).await;
        for (frame, message) in refused {
            client.send(frame).await;
            client.error(message).await;
            let mut client = dialect.guest(&strict).await;
            client.send(frame).await;
            client.error(message).await;
            assert_eq!(client.closed().await.0, 1002);
        }
        client.send(&format!("SEND\ndestination:{topic}\n\ntwice")).await;
        let mut ids = Vec::new();
        for _ in 0..2 {
            let id = client.message("twice").await.header("message-id").expect("there is one").to_owned();
            ids.push(id.split("@@").next().expect("a first part").to_owned());
        }
        ids.sort();
        assert_eq!(ids, [format!("Q_{topic}"), "T_1".to_owned()]);

        for by in ["id:1".to_owned(), format!("destination:{topic}")] {
            client.send(&format!("UNSUBSCRIBE\n{by}\nreceipt:u\n\n")).await;
            client.receipt("u").await;
        }
        client.send(&format!("SUBSCRIBE\nid:1\ndestination:{topic}\n\n")).await;
        client.send(&format!("SUBSCRIBE\nid:1\ndestination:{topic}\n\n")).await;
        client.error("Duplicated subscription identifier").await;
        client.closed().await;
    }
}

/// One more than the limit of open transactions is refused; the open ones still work, in compatibility mode.
#[tokio::test]
async fn open_transactions_are_limited() {
    let (strict, relay) = (Relay::start(Rabbit::shared()), Relay::start_with(Rabbit::shared(), RABBITMQ));
    for dialect in DIALECTS {
        let mut client = dialect.guest(&relay).await;
        let mut closing = dialect.guest(&strict).await;
        for client in [&mut client, &mut closing] {
            for number in 1..=17 {
                client.send(&format!("BEGIN\ntransaction:t{number}\n\n")).await;
            }
            let error = client.error("Transaction limit exceeded").await;
            assert!(error.body.starts_with(b"Too many concurrent transactions (limit 16)\n"), "{error:?}");
        }
        client.send("COMMIT\ntransaction:t16\nreceipt:c\n\n").await;
        client.receipt("c").await;
        client.send("BEGIN\ntransaction:t17\nreceipt:b\n\n").await;
        client.receipt("b").await;
        client.disconnect().await;
        closing.closed().await;
    }
}

/// UNSUBSCRIBE with `durable:true` deletes the subscription's own queue, whatever queue the frame names.
#[tokio::test]
async fn a_durable_unsubscribe_deletes_its_own_queue_only() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let admin = rabbit.admin().await;
    for dialect in DIALECTS {
        let (own, foreign) = (unique("own"), unique("foreign"));
        admin.queue(&foreign).await;
        let mut client = dialect.guest(&relay).await;
        let durable = format!("id:0\ndestination:/topic/{own}\ndurable:true\nauto-delete:false\nx-queue-name:{own}");
        client.subscribe(&durable).await;
        assert_eq!(admin.ready(&own).await, Some(0));
        client.send(&format!("UNSUBSCRIBE\nid:0\ndurable:true\nx-queue-name:{foreign}\nreceipt:u\n\n")).await;
        client.receipt("u").await;
        assert_eq!(admin.ready(&own).await, None);
        assert_eq!(admin.ready(&foreign).await, Some(0));
        client.disconnect().await;
        admin.delete(&foreign).await;
    }
}

/// `/topic` uses the configured exchange: to bind, to publish, and in what a MESSAGE shows.
#[tokio::test]
async fn the_topic_exchange_can_be_another() {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let exchange = unique("topics");
    admin.exchange(&exchange, lapin::ExchangeKind::Topic).await;
    let relay = Relay::start_with(rabbit, &format!("[stomp]\ndefault_topic_exchange = \"{exchange}\"\n"));
    for dialect in DIALECTS {
        let mut client = dialect.guest(&relay).await;
        client.subscribe("id:0\ndestination:/topic/a.*").await;
        client.send("SEND\ndestination:/topic/a.b\n\nby stomp").await;
        assert_eq!(client.message("by stomp").await.header("destination"), Some("/topic/a.b"));
        admin.publish(&exchange, "a.c", lapin::BasicProperties::default(), b"by amqp").await;
        client.message("by amqp").await;
        admin.publish("amq.topic", "a.c", lapin::BasicProperties::default(), b"elsewhere").await;
        client.send("SEND\ndestination:/topic/a.last\n\nlast").await;
        client.message("last").await;
        client.disconnect().await;
    }
    admin.channel.exchange_delete(exchange.into(), Default::default()).await.expect("the exchange is deleted");
}
