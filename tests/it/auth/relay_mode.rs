//! Relay mode in front of a real RabbitMQ: the relay verifies the token, a service account does the work.

use serde_json::json;

use super::issuer::{AUDIENCE, ISSUER, claims, issuer};
use super::key_server::{Answer, KeyServer};
use super::settings;
use crate::support::condition::eventually;
use crate::support::process::get;
use crate::support::rabbit::Rabbit;
use crate::support::relay::Relay;
use crate::support::scratch::Scratch;
use crate::support::stomp::Client;

async fn connect(relay: &Relay, headers: &str) -> Client {
    let mut client = Client::open(&relay.ws).await;
    client.send(&format!("CONNECT\naccept-version:1.2\nhost:/\n{headers}\n\n")).await;
    client
}

#[tokio::test]
async fn a_token_works_as_the_service_account() {
    let rabbit = Rabbit::shared();
    let server = KeyServer::start(Answer::json(&issuer().key_set())).await;
    let relay = Relay::start_with(rabbit, &settings::relay(&server));
    let token = issuer().rs256(&claims("alice", 60));
    let mut reader = relay.client_with(&format!("accept-version:1.2\nhost:/\nAuthorization:Bearer {token}")).await;
    reader.subscribe("id:1\ndestination:/topic/auth.relay_mode").await;
    let token = issuer().token("ES256", "p256", &claims("bob", 60));
    let mut writer = relay.client_with(&format!("accept-version:1.2\nhost:/\nlogin:x\npasscode:{token}")).await;
    writer.send("SEND\ndestination:/topic/auth.relay_mode\nreceipt:r\n\nhello").await;
    writer.receipt("r").await;
    reader.message("hello").await;
    // One key set for all, and links that all share.
    assert_eq!(server.asked(), 1);
    let page = get(relay.admin, "/metrics").await.body;
    for line in [
        "stomp_relay_auth_attempts_total{method=\"jwt_header\",result=\"ok\"} 1",
        "stomp_relay_auth_attempts_total{method=\"jwt_passcode\",result=\"ok\"} 1",
        "stomp_relay_jwks_refresh_total{result=\"ok\"} 1",
    ] {
        assert!(page.contains(line), "{line} in {page}");
    }
    // RabbitMQ's own users come in beside.
    relay.client().await.disconnect().await;
}

#[tokio::test]
async fn bad_tokens_get_one_answer_and_expired_ones_another() {
    let server = KeyServer::start(Answer::json(&issuer().key_set())).await;
    let relay = Relay::start_with(Rabbit::shared(), &settings::relay(&server));
    let mut answers = Vec::new();
    let foreign = json!({ "iss": ISSUER, "aud": "account", "sub": "alice", "exp": super::issuer::now() + 60 });
    for token in ["x.y.z", "eyJ.a.b", &issuer().rs256(&foreign), &issuer().token("RS256", "gone", &claims("a", 60))] {
        let mut client = connect(&relay, &format!("Authorization:Bearer {token}")).await;
        let error = client.error("Token refused").await;
        assert_eq!(error.header("error-code"), Some("auth.token_refused"));
        assert_eq!(client.closed().await, (1008, "auth.token_refused: Token refused".to_owned()));
        answers.push(error.body);
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "the answer does not tell what is wrong");
    let expired = json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": super::issuer::now() - 60 });
    let mut client = connect(&relay, &format!("Authorization:Bearer {}", issuer().rs256(&expired))).await;
    client.error("Token expired").await;
    assert_eq!(client.closed().await.0, 4001);
    assert_eq!(server.asked(), 1, "an unknown key asks the server again after auth.jwks_refetch_min only");
}

#[tokio::test]
async fn a_rotated_key_is_accepted_without_a_restart() {
    let server = KeyServer::start(Answer::rsa(&issuer().other_rsa, "old")).await;
    let settings = format!("{}jwks_refetch_min = \"10ms\"\n", settings::relay(&server));
    let relay = Relay::start_with(Rabbit::shared(), &settings);
    let token = issuer().rs256(&claims("alice", 60));
    let mut client = connect(&relay, &format!("Authorization:Bearer {token}")).await;
    client.error("Token refused").await;
    server.answer(Answer::json(&issuer().key_set()));
    eventually("the new key is used", || async {
        let mut client = connect(&relay, &format!("Authorization:Bearer {token}")).await;
        client.frame().await.command.as_str() == "CONNECTED"
    })
    .await;
}

#[tokio::test]
async fn without_keys_the_client_is_told_to_come_later() {
    let server = KeyServer::start(Answer::Status(503, "")).await;
    let relay = Relay::start_with(Rabbit::shared(), &settings::relay(&server));
    let token = issuer().rs256(&claims("alice", 60));
    let mut client = connect(&relay, &format!("Authorization:Bearer {token}")).await;
    let error = client.error("Authentication unavailable").await;
    assert_eq!(error.header("error-code"), Some("auth.unavailable"));
    assert_eq!(client.closed().await.0, 1013);
    let page = get(relay.admin, "/metrics").await.body;
    assert!(page.contains("sessions_closed_total{reason=\"auth_unavailable\"} 1"), "{page}");
}

#[tokio::test]
async fn keys_from_a_file_are_enough() {
    let folder = Scratch::new();
    let file = folder.write("keys.pem", &issuer().pem());
    let relay = Relay::start_with(Rabbit::shared(), &settings::relay_with(&format!("keys_file = {file:?}\n")));
    let token = issuer().token("EdDSA", "whatever", &claims("alice", 60));
    relay.client_with(&format!("accept-version:1.2\nhost:/\nauthorization:bearer {token}")).await.disconnect().await;
}

#[tokio::test]
async fn sources_that_are_off_are_not_looked_at() {
    let server = KeyServer::start(Answer::json(&issuer().key_set())).await;
    let settings = format!("{}sources = [\"jwt_passcode\"]\n", settings::relay(&server));
    let relay = Relay::start_with(Rabbit::shared(), &settings);
    let token = issuer().rs256(&claims("alice", 60));
    for headers in ["login:guest\npasscode:guest".to_owned(), format!("Authorization:Bearer {token}")] {
        connect(&relay, &headers).await.error("Bad CONNECT").await;
    }
    connect(&relay, &format!("passcode:{token}")).await.expect("CONNECTED").await;
}
