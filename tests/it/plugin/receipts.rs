//! Receipts of SENDs: exactly those that were asked for, and when. And what was sent before a DISCONNECT arrives.

use std::collections::BTreeSet;

use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::stomp::Client;

const COUNT: usize = 50;

/// Reads receipts until all of `ids` came; they must be these and come once.
async fn receipts(client: &mut Client, ids: impl IntoIterator<Item = usize>) {
    let mut missing = ids.into_iter().map(|id| id.to_string()).collect::<BTreeSet<_>>();
    while !missing.is_empty() {
        let receipt = client.expect("RECEIPT").await;
        let id = receipt.header("receipt-id").expect("every RECEIPT has one");
        assert!(missing.remove(id), "{id} was not asked for, or came twice; missing {missing:?}");
    }
}

/// A queue, and a client that sends to it [`COUNT`] times; `receipt` says which SENDs ask for one.
async fn send_all(client: &mut Client, destination: &str, further: &str, receipt: impl Fn(usize) -> bool) {
    for number in 0..COUNT {
        let receipt = if receipt(number) { format!("receipt:{number}\n") } else { String::new() };
        client.send(&format!("SEND\ndestination:{destination}\n{further}{receipt}\n{number}")).await;
    }
}

/// The queue has every message, in order.
async fn arrived(relay: &Relay, destination: &str) {
    let mut client = relay.client().await;
    client.subscribe(&format!("id:0\ndestination:{destination}")).await;
    for number in 0..COUNT {
        client.message(&number.to_string()).await;
    }
    client.disconnect().await;
}

/// Every SEND with a receipt is answered, to a queue that is there and to one that the first SEND makes.
#[tokio::test]
async fn every_receipt_comes() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let name = unique("receipts");
    let destination = format!("/queue/{name}");
    let mut client = relay.client().await;
    send_all(&mut client, &destination, "", |_| true).await;
    receipts(&mut client, 0..COUNT).await;
    client.disconnect().await;
    arrived(&relay, &destination).await;
    rabbit.admin().await.delete(&name).await;
}

/// Receipts come for those SENDs that ask, wherever they stand between others.
#[tokio::test]
async fn receipts_come_only_where_asked_for() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let name = unique("receipts");
    let destination = format!("/queue/{name}");
    // Every second, the last alone, one in the middle.
    let asked: [fn(usize) -> bool; 3] = [|number| number % 2 == 0, |number| number == COUNT - 1, |number| number == 10];
    for asked in asked {
        let mut client = relay.client().await;
        send_all(&mut client, &destination, "", asked).await;
        receipts(&mut client, (0..COUNT).filter(|number| asked(*number))).await;
        client.disconnect().await;
        arrived(&relay, &destination).await;
    }
    rabbit.admin().await.delete(&name).await;
}

/// In a transaction no receipt of a SEND comes before COMMIT, and all of them after it.
#[tokio::test]
async fn receipts_in_a_transaction_come_after_commit() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let name = unique("receipts");
    let destination = format!("/queue/{name}");
    let asked: [fn(usize) -> bool; 3] = [|_| true, |number| number % 2 == 0, |number| number == 10];
    for asked in asked {
        let mut client = relay.client().await;
        client.send("BEGIN\ntransaction:t\n\n").await;
        send_all(&mut client, &destination, "transaction:t\n", asked).await;
        // Frames are handled in order, so this one's receipt would come behind theirs.
        client.send("BEGIN\ntransaction:barrier\nreceipt:barrier\n\n").await;
        client.receipt("barrier").await;
        client.quiet().await;
        client.send("COMMIT\ntransaction:t\n\n").await;
        receipts(&mut client, (0..COUNT).filter(|number| asked(*number))).await;
        client.disconnect().await;
        arrived(&relay, &destination).await;
    }
    rabbit.admin().await.delete(&name).await;
}

/// 10 000 messages and a DISCONNECT behind them: all arrive, in order.
#[tokio::test]
async fn what_was_sent_before_a_disconnect_arrives() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let name = unique("reliability");
    let (mut sender, mut receiver) = (relay.client().await, relay.client().await);
    receiver.subscribe(&format!("id:0\ndestination:/queue/{name}")).await;
    let padding = "0".repeat(128);
    let sending = async {
        for number in 0..10_000 {
            sender.send(&format!("SEND\ndestination:/queue/{name}\n\n{padding}{number}")).await;
        }
        sender.send("DISCONNECT\n\n").await;
        assert_eq!(sender.closed().await.0, 1000);
    };
    let receiving = async {
        for number in 0..10_000 {
            receiver.message(&format!("{padding}{number}")).await;
        }
    };
    tokio::join!(sending, receiving);
    receiver.disconnect().await;
    rabbit.admin().await.delete(&name).await;
}
