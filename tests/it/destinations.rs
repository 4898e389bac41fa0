//! Every kind of destination, end to end: a client's frame goes in, a real RabbitMQ routes it, a client's frame comes out.

use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::stomp::Client;

/// Subscribes to a destination, sends to it, and gets the message back, which shows where it was published to.
async fn echo(client: &mut Client, destination: &str, shown: &str) {
    client.subscribe(&format!("id:0\ndestination:{destination}")).await;
    client.send(&format!("SEND\ndestination:{destination}\n\nhello")).await;
    let message = client.message("hello").await;
    assert_eq!(message.header("destination"), Some(shown));
    assert_eq!(message.header("subscription"), Some("0"));
    assert_eq!(message.header("redelivered"), Some("false"));
}

#[tokio::test]
async fn every_kind_of_destination_echoes() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let name = unique("d");
    let same = |destination: String| (destination.clone(), destination);
    let destinations = [
        same(format!("/queue/{name}")),
        (name.clone(), format!("/queue/{name}")),
        (format!("/amq/queue/{name}"), format!("/queue/{name}")),
        same(format!("/topic/{name}.a.b")),
        (format!("/exchange/amq.topic/{name}.c"), format!("/topic/{name}.c")),
        same(format!("/exchange/amq.direct/{name}")),
        same(format!("/exchange/amq.direct/{name}%2Fwith%2Fslashes")),
    ];
    for (destination, shown) in destinations {
        let mut client = relay.client().await;
        echo(&mut client, &destination, &shown).await;
        client.disconnect().await;
    }
    rabbit.ctl(&["delete_queue", &name]);
}

#[tokio::test]
async fn the_same_over_tls() {
    let relay = Relay::start(Rabbit::shared());
    let mut client = Client::open_tls(&relay.wss, &relay.ca).await;
    client.send("CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n").await;
    client.expect("CONNECTED").await;
    let destination = format!("/topic/{}", unique("t"));
    echo(&mut client, &destination, &destination).await;
    client.disconnect().await;
}
