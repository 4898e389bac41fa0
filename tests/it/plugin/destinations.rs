//! Messages to queues, topics and exchanges, between clients.

use lapin::ExchangeKind;

use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::stomp::Client;

async fn send(client: &mut Client, destination: &str, body: &str) {
    client.send(&format!("SEND\ndestination:{destination}\n\n{body}")).await;
}

/// Subscribes to a destination, sends to it, and gets the message with the destination that it was sent to.
async fn echo(client: &mut Client, destination: &str) {
    client.subscribe(&format!("id:0\ndestination:{destination}")).await;
    send(client, destination, "hello").await;
    let message = client.message("hello").await;
    assert_eq!(message.header("destination"), Some(destination));
}

/// Direct, topic and fanout exchanges; a fanout with a routing key and without.
#[tokio::test]
async fn every_type_of_exchange_echoes() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let admin = rabbit.admin().await;
    let (name, fanout) = (unique("echo"), unique("fanout"));
    admin.exchange(&fanout, ExchangeKind::Fanout).await;
    let destinations = [
        format!("/exchange/amq.direct/{name}"),
        format!("/topic/{name}"),
        format!("/exchange/{fanout}/{name}"),
        format!("/exchange/{fanout}"),
    ];
    // One client holds a binding, so that the exchange outlives the clients of the loop.
    let mut holder = relay.client().await;
    holder.subscribe(&format!("id:0\ndestination:/exchange/{fanout}")).await;
    for destination in destinations {
        let mut client = relay.client().await;
        echo(&mut client, &destination).await;
        client.disconnect().await;
    }
}

/// A client's own headers arrive with the message.
#[tokio::test]
async fn custom_headers_arrive() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let name = unique("headers");
    let mut client = relay.client().await;
    client.subscribe(&format!("id:0\ndestination:/queue/{name}")).await;
    client.send(&format!("SEND\ndestination:/queue/{name}\nvar1:6\nvar2:2.5\nvar3:a b\n\nhello")).await;
    let message = client.message("hello").await;
    for (header, value) in [("var1", "6"), ("var2", "2.5"), ("var3", "a b")] {
        assert_eq!(message.header(header), Some(value));
    }
    client.disconnect().await;
    rabbit.admin().await.delete(&name).await;
}

/// A queue keeps messages: the sender may be gone before anybody subscribes.
#[tokio::test]
async fn a_queue_outlives_its_sender() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let destination = format!("/queue/{}", unique("outlives"));
    let mut sender = relay.client().await;
    send(&mut sender, &destination, "one").await;
    send(&mut sender, &destination, "two").await;
    sender.disconnect().await;
    let mut client = relay.client().await;
    client.subscribe(&format!("id:0\ndestination:{destination}")).await;
    client.message("one").await;
    client.message("two").await;
    client.disconnect().await;
    rabbit.admin().await.delete(&destination["/queue/".len()..]).await;
}

/// Another connection receives, while the sender, which does not subscribe, gets nothing.
#[tokio::test]
async fn another_connection_receives() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let destination = format!("/queue/{}", unique("other"));
    let (mut sender, mut receiver) = (relay.client().await, relay.client().await);
    receiver.subscribe(&format!("id:0\ndestination:{destination}")).await;
    send(&mut sender, &destination, "hello").await;
    receiver.message("hello").await;
    sender.disconnect().await;
    rabbit.admin().await.delete(&destination["/queue/".len()..]).await;
}

/// The subscribers of a queue share its messages.
#[tokio::test]
async fn subscribers_of_a_queue_share_its_messages() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let destination = format!("/queue/{}", unique("shared"));
    let (mut one, mut two) = (relay.client().await, relay.client().await);
    one.subscribe(&format!("id:0\ndestination:{destination}")).await;
    two.subscribe(&format!("id:0\ndestination:{destination}")).await;
    send(&mut one, &destination, "first").await;
    send(&mut one, &destination, "second").await;
    let mut got = [one.expect("MESSAGE").await.body, two.expect("MESSAGE").await.body];
    got.sort();
    assert_eq!(got, [&b"first"[..], &b"second"[..]]);
    one.disconnect().await;
    two.disconnect().await;
    rabbit.admin().await.delete(&destination["/queue/".len()..]).await;
}

/// The subscribers of a topic each get every message.
#[tokio::test]
async fn subscribers_of_a_topic_get_all_its_messages() {
    let relay = Relay::start(Rabbit::shared());
    let destination = format!("/topic/{}", unique("all"));
    let (mut one, mut two) = (relay.client().await, relay.client().await);
    one.subscribe(&format!("id:0\ndestination:{destination}")).await;
    two.subscribe(&format!("id:0\ndestination:{destination}")).await;
    send(&mut one, &destination, "first").await;
    send(&mut one, &destination, "second").await;
    for client in [&mut one, &mut two] {
        client.message("first").await;
        client.message("second").await;
    }
}

/// Two messages of 16 MiB reach two subscribers, byte for byte.
#[tokio::test]
async fn large_messages_reach_every_subscriber() {
    let relay = Relay::start_with(Rabbit::shared(), "stomp.frame_bytes_max = \"32MiB\"\n");
    let destination = format!("/topic/{}", unique("large"));
    let (mut one, mut two) = (relay.client().await, relay.client().await);
    one.subscribe(&format!("id:0\ndestination:{destination}")).await;
    two.subscribe(&format!("id:0\ndestination:{destination}")).await;
    let mut sender = relay.client().await;
    let bodies = ["x", "y"].map(|letter| letter.repeat(16 * 1024 * 1024));
    let sending = async {
        for body in &bodies {
            send(&mut sender, &destination, body).await;
        }
        sender.disconnect().await;
    };
    let receiving = async |client: &mut Client| {
        for body in &bodies {
            let message = client.expect("MESSAGE").await;
            assert!(message.body == body.as_bytes(), "{} bytes, or others", message.body.len());
        }
    };
    tokio::join!(sending, receiving(&mut one), receiving(&mut two));
}

/// `reply-to` with a queue of the client's own goes through unchanged, and the answer goes there.
#[tokio::test]
async fn a_known_reply_queue_is_answered() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let (work, answers) = (unique("work"), unique("answers"));
    let (mut requester, mut responder) = (relay.client().await, relay.client().await);
    responder.subscribe(&format!("id:0\ndestination:/queue/{work}")).await;
    requester.subscribe(&format!("id:0\ndestination:/queue/{answers}")).await;
    requester.send(&format!("SEND\ndestination:/queue/{work}\nreply-to:/queue/{answers}\n\nask")).await;
    let question = responder.message("ask").await;
    assert_eq!(question.header("reply-to"), Some(format!("/queue/{answers}").as_str()));
    send(&mut responder, question.header("reply-to").expect("just seen"), "answer").await;
    requester.message("answer").await;
    requester.disconnect().await;
    responder.disconnect().await;
    let admin = rabbit.admin().await;
    admin.delete(&work).await;
    admin.delete(&answers).await;
}

/// `reply-to:/temp-queue/…` makes a queue that only this session reads; the responder is given an address for it.
#[tokio::test]
async fn a_temporary_reply_queue_is_answered() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let work = unique("work");
    let (mut requester, mut responder) = (relay.client().await, relay.client().await);
    responder.subscribe(&format!("id:0\ndestination:/queue/{work}")).await;
    let mut addresses = Vec::new();
    for (name, body) in [("foo", "one"), ("foo", "two"), ("bar", "three")] {
        requester.send(&format!("SEND\ndestination:/queue/{work}\nreply-to:/temp-queue/{name}\n\n{body}")).await;
        let question = responder.message(body).await;
        let address = question.header("reply-to").expect("an address to answer to").to_owned();
        let queue = address.strip_prefix("/reply-queue/").expect("which names a queue").to_owned();
        send(&mut responder, &address, &format!("answer to {body}")).await;
        let answer = requester.message(&format!("answer to {body}")).await;
        assert_eq!(answer.header("subscription"), Some(format!("/temp-queue/{name}").as_str()));
        assert_eq!(answer.header("destination"), Some(format!("/queue/{queue}").as_str()));
        addresses.push(address);
    }
    assert_eq!(addresses[0], addresses[1], "one queue per name and session");
    assert_ne!(addresses[0], addresses[2]);
    // Nobody else may read it.
    responder.send(&format!("SUBSCRIBE\nid:1\ndestination:{}\n\n", addresses[0])).await;
    responder.error("resource_locked").await;
    requester.disconnect().await;
    rabbit.admin().await.delete(&work).await;
}
