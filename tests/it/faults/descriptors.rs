//! The relay runs out of file descriptors: those that are in are served, the log says so, and later others come in again.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::alone;
use crate::support::rabbit::Rabbit;
use crate::support::relay_process::RelayProcess;
use crate::support::stomp::Client;
use crate::support::traffic::until;

const DESCRIPTORS_MAX: u32 = 80;

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_without_descriptors_serves_those_it_has() {
    let _alone = alone().await;
    let program = env!("CARGO_BIN_EXE_stomp-relay");
    let relay = RelayProcess::start(program, &[Rabbit::shared().uri()], "", DESCRIPTORS_MAX);
    // Both links are open before the descriptors are gone.
    let mut first = Client::log_in(&relay.ws).await.expect("there are descriptors");
    first.subscribe("id:0\ndestination:/topic/descriptors").await;
    first.send("SEND\ndestination:/topic/descriptors\nreceipt:r\n\nbefore").await;
    first.frame().await;
    first.frame().await;
    let mut clients = Vec::new();
    // A connection that is not accepted stays in the kernel's backlog and is never answered.
    while let Ok(Ok(client)) = timeout(Duration::from_secs(2), Client::log_in(&relay.ws)).await {
        clients.push(client);
        assert!(clients.len() < DESCRIPTORS_MAX as usize, "the limit has no effect");
    }
    assert!(clients.len() > 20, "only {} clients fit", clients.len());
    until("the log says so", Duration::from_secs(10), || relay.log().contains("cannot accept clients now")).await;

    first.send("SEND\ndestination:/topic/descriptors\n\nduring").await;
    first.message("during").await;
    clients.truncate(clients.len() / 2);
    let end = Instant::now() + Duration::from_secs(20);
    let again = loop {
        if let Ok(Ok(client)) = timeout(Duration::from_secs(2), Client::log_in(&relay.ws)).await {
            break client;
        }
        assert!(Instant::now() < end, "nobody is let in although descriptors are free");
    };
    again.disconnect().await;
    first.disconnect().await;
}
