//! The way out, seen by clients: each is told to reconnect elsewhere, and then the server ends.

use stomp_relay::server::{Ended, Signal};

use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;

#[tokio::test]
async fn clients_are_told_to_reconnect_when_the_relay_stops() {
    let relay = Relay::start(Rabbit::shared());
    let (mut idle, mut busy) = (relay.client().await, relay.client().await);
    busy.send(&format!("SEND\ndestination:/topic/{}\nreceipt:r\n\nhello", unique("t"))).await;
    busy.receipt("r").await;
    relay.signal(Signal::Stop).await;
    assert_eq!(idle.closed().await, (1012, "server draining, reconnect".to_owned()));
    assert_eq!(busy.closed().await.0, 1012);
    assert_eq!(relay.ended().await, Ended::Drained);
}
