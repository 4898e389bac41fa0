//! The end of a token and its renewal in a live session, relay mode.

use std::time::{Duration, Instant};

use stomp_relay::server::Signal;
use stomp_relay::stomp::Command;

use super::issuer::{AUDIENCE, claims, issuer};
use super::key_server::{Answer, KeyServer};
use super::settings;
use crate::support::process::get;
use crate::support::rabbit::Rabbit;
use crate::support::raw_http::within;
use crate::support::relay::Relay;
use crate::support::stomp::Client;

async fn relay() -> (Relay, KeyServer) {
    let server = KeyServer::start(Answer::json(&issuer().key_set())).await;
    let settings = format!("{}leeway = \"0s\"\n", settings::relay(&server));
    (Relay::start_with(Rabbit::shared(), &settings), server)
}

/// Logged in as alice for this many seconds.
async fn alice(relay: &Relay, seconds: u64) -> Client {
    let token = issuer().rs256(&claims("alice", seconds));
    relay.client_with(&format!("accept-version:1.2\nhost:/\nAuthorization:Bearer {token}")).await
}

#[tokio::test]
async fn a_session_ends_with_its_token() {
    let (relay, _server) = relay().await;
    let start = Instant::now();
    let mut client = alice(&relay, 2).await;
    client.subscribe("id:1\ndestination:/topic/auth.lifetime").await;
    let error = client.error("Token expired").await;
    assert_eq!(error.header("error-code"), Some("auth.token_expired"));
    assert_eq!(client.closed().await, (4001, "auth.token_expired: Token expired".to_owned()));
    // Seconds in a token are whole.
    assert!(start.elapsed() > Duration::from_secs(1), "{:?}", start.elapsed());
    let page = get(relay.admin, "/metrics").await.body;
    assert!(page.contains("sessions_closed_total{reason=\"token_expired\"} 1"), "{page}");
}

#[tokio::test]
async fn a_new_token_keeps_the_session() {
    let (relay, _server) = relay().await;
    let mut client = alice(&relay, 3).await;
    client.subscribe("id:1\ndestination:/topic/auth.refreshed").await;
    let token = issuer().rs256(&claims("alice", 60));
    client.send(&format!("SEND\ndestination:/auth/tokens\nreceipt:new\n\n{token}")).await;
    client.receipt("new").await;
    let old = Instant::now() + Duration::from_secs(4);
    while Instant::now() < old {
        client.send("SEND\ndestination:/topic/auth.refreshed\n\ngoes on").await;
        client.message("goes on").await;
    }
    let page = get(relay.admin, "/metrics").await.body;
    assert!(page.contains("token_refresh_total{result=\"ok\"} 1"), "{page}");
}

#[tokio::test]
async fn a_bad_new_token_leaves_the_session_with_the_old_one() {
    let (relay, _server) = relay().await;
    let mut client = alice(&relay, 4).await;
    let others = issuer().rs256(&claims("bob", 60));
    let expired = issuer().rs256(&serde_json::json!({ "exp": 1 }));
    for token in [others.as_str(), expired.as_str(), "eyJ.a.b", ""] {
        client.send(&format!("SEND\ndestination:/auth/tokens\nreceipt:r\n\n{token}")).await;
        let error = client.error("Token refused").await;
        assert_eq!(error.header("error-code"), Some("auth.refresh_refused"));
        assert_eq!(error.header("receipt-id"), Some("r"));
    }
    client.subscribe("id:1\ndestination:/topic/auth.not_refreshed").await;
    client.error("Token expired").await;
    assert_eq!(client.closed().await.0, 4001);
}

#[tokio::test]
async fn a_new_token_is_judged_by_what_a_reload_has_brought() {
    let (relay, server) = relay().await;
    let mut client = alice(&relay, 60).await;
    let token = issuer().rs256(&claims("alice", 60));
    let refresh = format!("SEND\ndestination:/auth/tokens\nreceipt:r\n\n{token}");
    client.send(&refresh).await;
    client.receipt("r").await;
    relay.rewrite(&settings::relay(&server).replace(AUDIENCE, "another"));
    relay.signal(Signal::Reload).await;
    within("the token is refused", async {
        loop {
            client.send(&refresh).await;
            let answer = client.frame().await;
            if answer.command == Command::Error {
                break assert_eq!(answer.header("error-code"), Some("auth.refresh_refused"));
            }
        }
    })
    .await;
    // The session goes on with the token that it has.
    client.subscribe("id:1\ndestination:/topic/auth.reloaded").await;
    client.disconnect().await;
}
