//! SENDs in transactions.

use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::stomp::Client;

async fn subscribed(relay: &Relay) -> (Client, String) {
    let mut client = relay.client().await;
    let destination = format!("/topic/{}", unique("transaction"));
    client.subscribe(&format!("id:0\ndestination:{destination}")).await;
    (client, destination)
}

/// A SEND in a transaction is invisible until COMMIT; one beside it overtakes it.
#[tokio::test]
async fn a_commit_publishes() {
    let relay = Relay::start(Rabbit::shared());
    let (mut client, destination) = subscribed(&relay).await;
    client.send("BEGIN\ntransaction:t\n\n").await;
    for number in ["1", "2"] {
        client.send(&format!("SEND\ndestination:{destination}\ntransaction:t\n\nlate {number}")).await;
    }
    client.send(&format!("SEND\ndestination:{destination}\n\nearly")).await;
    client.message("early").await;
    client.quiet().await;
    client.send("COMMIT\ntransaction:t\n\n").await;
    client.message("late 1").await;
    client.message("late 2").await;
}

/// ABORT discards what was in the transaction, and its name may be used again.
#[tokio::test]
async fn an_abort_discards() {
    let relay = Relay::start(Rabbit::shared());
    let (mut client, destination) = subscribed(&relay).await;
    for (body, end) in [("discarded", "ABORT"), ("published", "COMMIT")] {
        client.send("BEGIN\ntransaction:t\n\n").await;
        client.send(&format!("SEND\ndestination:{destination}\ntransaction:t\n\n{body}")).await;
        client.send(&format!("{end}\ntransaction:t\n\n")).await;
    }
    client.message("published").await;
    client.disconnect().await;
}

/// Several transactions may be open at once; each ends on its own.
#[tokio::test]
async fn transactions_do_not_mix() {
    let relay = Relay::start(Rabbit::shared());
    let (mut client, destination) = subscribed(&relay).await;
    for name in ["a", "b"] {
        client.send(&format!("BEGIN\ntransaction:{name}\n\n")).await;
        client.send(&format!("SEND\ndestination:{destination}\ntransaction:{name}\n\n{name}")).await;
    }
    client.send("COMMIT\ntransaction:b\n\n").await;
    client.message("b").await;
    client.send("COMMIT\ntransaction:a\n\n").await;
    client.message("a").await;
}

/// What a session had not committed when it ended is never published.
#[tokio::test]
async fn an_open_transaction_ends_with_its_session() {
    let relay = Relay::start(Rabbit::shared());
    let (mut client, destination) = subscribed(&relay).await;
    let mut sender = relay.client().await;
    sender.send("BEGIN\ntransaction:t\n\n").await;
    sender.send(&format!("SEND\ndestination:{destination}\ntransaction:t\n\nnever")).await;
    sender.disconnect().await;
    client.send(&format!("SEND\ndestination:{destination}\n\nafter")).await;
    client.message("after").await;
    client.disconnect().await;
}
