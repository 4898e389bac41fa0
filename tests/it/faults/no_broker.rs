//! The relay starts before the broker does.

use std::time::{Duration, Instant};

use tokio::task::block_in_place;

use super::alone;
use crate::support::rabbit::Rabbit;
use crate::support::relay::Relay;
use crate::support::stomp::Client;

const CONNECT: &str = "CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n";

#[tokio::test(flavor = "multi_thread")]
async fn clients_wait_for_a_broker_up_to_the_bound_and_are_let_in_when_it_comes() {
    let _alone = alone().await;
    let rabbit = block_in_place(Rabbit::start);
    block_in_place(|| rabbit.stop());
    let relay = Relay::start_with(&rabbit, "[broker]\nlogin_wait = \"1s\"\n");
    let began = Instant::now();
    let mut early = Client::open(&relay.ws).await;
    early.send(CONNECT).await;
    let error = early.error("Broker unavailable").await;
    assert_eq!(error.header("error-code"), Some("broker.unavailable"));
    assert_eq!(early.closed().await.0, 1013);
    let waited = began.elapsed();
    assert!((Duration::from_millis(300)..Duration::from_secs(4)).contains(&waited), "told after {waited:?}");

    // A patient relay: the clients come while the broker boots, and wait.
    let patient = Relay::start_with(&rabbit, "[broker]\nlogin_wait = \"60s\"\n[session]\nlogin_timeout = \"90s\"\n");
    let mut waiting = Vec::new();
    for _ in 0..20 {
        let mut client = Client::open(&patient.ws).await;
        client.send(CONNECT).await;
        waiting.push(client);
    }
    block_in_place(|| rabbit.restart());
    let up = Instant::now();
    for client in &mut waiting {
        client.expect("CONNECTED").await;
    }
    let took = up.elapsed();
    println!("20 waiting clients were let in {took:?} after the broker had started");
    // The longest pause between two attempts, and time for a login.
    assert!(took < Duration::from_secs(6), "let in after {took:?}");
    relay.client().await.disconnect().await;
}
