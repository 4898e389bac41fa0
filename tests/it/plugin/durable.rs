//! Durable topic subscriptions, and who may read, write and delete topics.

use std::collections::BTreeSet;

use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::stomp::Client;

const DURABLE: &str = "durable:true\nauto-delete:false";

async fn unsubscribe(client: &mut Client, headers: &str) {
    client.send(&format!("UNSUBSCRIBE\n{headers}\nreceipt:unsubscribed\n\n")).await;
    client.receipt("unsubscribed").await;
}

async fn send(client: &mut Client, destination: &str, body: &str) {
    client.send(&format!("SEND\ndestination:{destination}\nreceipt:sent\n\n{body}")).await;
}

/// Messages wait for the subscriber while it is away, until an UNSUBSCRIBE with `durable:true`, or `persistent:true` as it
/// was called before, deletes the queue.
#[tokio::test]
async fn a_durable_subscription_waits_for_its_subscriber() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    for header in ["durable", "persistent"] {
        let destination = format!("/topic/{}", unique("durable"));
        let subscribe = format!("id:sub\ndestination:{destination}\n{header}:true\nauto-delete:false");
        let mut sender = relay.client().await;
        let mut client = relay.client().await;
        client.subscribe(&subscribe).await;
        send(&mut sender, &destination, "present").await;
        sender.receipt("sent").await;
        client.message("present").await;
        unsubscribe(&mut client, "id:sub").await;
        send(&mut sender, &destination, "away").await;
        sender.receipt("sent").await;
        client.quiet().await;
        client.subscribe(&subscribe).await;
        client.message("away").await;
        client.disconnect().await;
        // Gone altogether.
        send(&mut sender, &destination, "offline").await;
        sender.receipt("sent").await;
        let mut client = relay.client().await;
        client.subscribe(&subscribe).await;
        client.message("offline").await;
        unsubscribe(&mut client, &format!("id:sub\n{header}:true")).await;
        send(&mut sender, &destination, "deleted").await;
        sender.receipt("sent").await;
        client.subscribe(&subscribe).await;
        client.quiet().await;
        unsubscribe(&mut client, "id:sub\ndurable:true").await;
    }
}

/// The queue has the name that the plugin gives it, so that clients that move over find what waits for them.
#[tokio::test]
async fn a_durable_subscription_finds_the_queue_of_the_plugin() {
    let rabbit = Rabbit::shared();
    let (admin, relay) = (rabbit.admin().await, Relay::start(rabbit));
    // Of topic `durable` and id `test.subscription`, as RabbitMQ 3.10 names it.
    let queue = "stomp-subscription-tMbeqL30tjlgaXMmaFM6Ew";
    // The name is not this run's alone: a failed one may have left messages.
    admin.delete(queue).await;
    admin.queue(queue).await;
    admin.send(queue, b"left by the plugin").await;
    let mut client = relay.client().await;
    client.subscribe(&format!("id:test.subscription\ndestination:/topic/durable\n{DURABLE}")).await;
    client.message("left by the plugin").await;
    unsubscribe(&mut client, "id:test.subscription\ndurable:true").await;
    assert_eq!(admin.ready(queue).await, None);
}

/// Two connections with the same topic and id share one queue: 100 messages, each to one of them.
#[tokio::test]
async fn the_same_topic_and_id_share_a_queue() {
    let relay = Relay::start(Rabbit::shared());
    let destination = format!("/topic/{}", unique("share"));
    let subscribe = format!("id:shared\ndestination:{destination}\n{DURABLE}");
    let (mut one, mut two) = (relay.client().await, relay.client().await);
    one.subscribe(&subscribe).await;
    two.subscribe(&subscribe).await;
    let mut sender = relay.client().await;
    for number in 0..100 {
        sender.send(&format!("SEND\ndestination:{destination}\n\n{number}")).await;
    }
    let (mut seen, mut by_one) = (BTreeSet::new(), 0);
    while seen.len() < 100 {
        let message = tokio::select! {
            message = one.expect("MESSAGE") => { by_one += 1; message }
            message = two.expect("MESSAGE") => message,
        };
        assert!(seen.insert(message.body.clone()), "{:?} came twice", message.body);
    }
    assert!(0 < by_one && by_one < 100, "{by_one} of 100 went to one");
    tokio::join!(one.quiet(), two.quiet());
    two.disconnect().await;
    unsubscribe(&mut one, "id:shared\ndurable:true").await;
}

/// Different ids have queues of their own: each gets every message, also what came while it was away.
#[tokio::test]
async fn different_ids_get_their_own_copies() {
    let relay = Relay::start(Rabbit::shared());
    let destination = format!("/topic/{}", unique("separate"));
    let subscribe = |id: &str| format!("id:{id}\ndestination:{destination}\n{DURABLE}");
    let mut client = relay.client().await;
    client.subscribe(&subscribe("one")).await;
    client.subscribe(&subscribe("two")).await;
    client.disconnect().await;
    let mut sender = relay.client().await;
    for number in 0..10 {
        sender.send(&format!("SEND\ndestination:{destination}\n\n{number}")).await;
    }
    sender.disconnect().await;
    for id in ["one", "two"] {
        let mut client = relay.client().await;
        client.subscribe(&subscribe(id)).await;
        for number in 0..10 {
            assert_eq!(client.message(&number.to_string()).await.header("subscription"), Some(id));
        }
        unsubscribe(&mut client, &format!("id:{id}\ndurable:true")).await;
    }
}

/// Topic permissions are the broker's: what it allows arrives, what it does not ends the session.
#[tokio::test]
async fn topic_permissions_are_kept() {
    let rabbit = Rabbit::shared();
    let (user, topic) = (unique("topics"), unique("topic"));
    rabbit.add_user(&user, "secret", "/", [".*", ".*", ".*"]);
    let allowed = format!("^{topic}\\.allowed");
    rabbit.ctl(&["set_topic_permissions", "-p", "/", &user, "amq.topic", &allowed, &allowed]);
    let relay = Relay::start(rabbit);
    let login = format!("accept-version:1.2\nhost:/\nlogin:{user}\npasscode:secret");
    let mut client = relay.client_with(&login).await;
    client.subscribe(&format!("id:0\ndestination:/topic/{topic}.allowed.a")).await;
    client.send(&format!("SEND\ndestination:/topic/{topic}.allowed.a\n\nhello")).await;
    client.message("hello").await;
    client.send(&format!("SEND\ndestination:/topic/{topic}.restricted\n\nhello")).await;
    let error = client.error("access_refused").await;
    assert!(error.body.starts_with(b"ACCESS_REFUSED - "), "{error:?}");
    client.closed().await;
    let mut client = relay.client_with(&login).await;
    client.send(&format!("SUBSCRIBE\nid:0\ndestination:/topic/{topic}.restricted\nreceipt:never\n\n")).await;
    client.error("access_refused").await;
    client.closed().await;
    rabbit.ctl(&["delete_user", &user]);
}

/// A durable UNSUBSCRIBE deletes the subscription's own queue, whatever queue its frame names.
#[tokio::test]
async fn a_durable_unsubscribe_deletes_its_own_queue_only() {
    let rabbit = Rabbit::shared();
    let (admin, relay) = (rabbit.admin().await, Relay::start(rabbit));
    let (own, foreign, topic) = (unique("own"), unique("foreign"), unique("topic"));
    admin.queue(&foreign).await;
    for name in [String::new(), format!("x-queue-name:{own}\n")] {
        let mut client = relay.client().await;
        client.subscribe(&format!("id:0\ndestination:/topic/{topic}\n{name}{DURABLE}")).await;
        assert_eq!(admin.ready(&own).await, (!name.is_empty()).then_some(0));
        unsubscribe(&mut client, &format!("id:0\ndurable:true\nx-queue-name:{foreign}")).await;
        assert_eq!(admin.ready(&foreign).await, Some(0));
        assert_eq!(admin.ready(&own).await, None);
        client.disconnect().await;
    }
    admin.delete(&foreign).await;
}

/// Without the permission to configure the queue, a durable UNSUBSCRIBE is refused and deletes nothing; the close follows the
/// ERROR without a RECEIPT between them.
#[tokio::test]
async fn a_durable_unsubscribe_needs_the_permission_to_configure() {
    let rabbit = Rabbit::shared();
    let (user, queue) = (unique("revoked"), unique("kept"));
    rabbit.add_user(&user, "secret", "/", [".*", ".*", ".*"]);
    let (admin, relay) = (rabbit.admin().await, Relay::start(rabbit));
    let mut client = relay.client_with(&format!("accept-version:1.2\nhost:/\nlogin:{user}\npasscode:secret")).await;
    client.subscribe(&format!("id:0\ndestination:/topic/{queue}\nx-queue-name:{queue}\n{DURABLE}")).await;
    rabbit.ctl(&["set_permissions", "-p", "/", &user, "^$", ".*", ".*"]);
    client.send("UNSUBSCRIBE\nid:0\ndurable:true\nreceipt:never\n\n").await;
    let error = client.error("access_refused").await;
    assert_eq!(error.header("receipt-id"), Some("never"));
    client.closed().await;
    assert_eq!(admin.ready(&queue).await, Some(0));
    admin.delete(&queue).await;
    rabbit.ctl(&["delete_user", &user]);
}
