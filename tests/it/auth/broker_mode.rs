//! Broker mode: a real RabbitMQ with its OAuth 2 plugin is given the token that the relay has verified, and newer ones later.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::issuer::{AUDIENCE, claims, issuer, now, pem};
use super::key_server::{Answer, KeyServer};
use super::settings;
use crate::support::condition::eventually;
use crate::support::rabbit::Rabbit;
use crate::support::relay::Relay;
use crate::support::scratch::Scratch;
use crate::support::stomp::Client;

/// What a token of this user says to RabbitMQ.
fn scoped(user: &str, seconds: u64, scopes: &[&str]) -> Value {
    let mut claims = claims(user, seconds);
    claims["scope"] = scopes.iter().map(|scope| format!("{AUDIENCE}.{scope}")).collect();
    claims
}

const ALL: [&str; 5] = ["configure:*/*", "write:*/*", "read:*/*", "write:*/*/*", "read:*/*/*"];

struct Stage {
    rabbit: Rabbit,
    relay: Relay,
    _folder: Scratch,
    _server: KeyServer,
}

impl Stage {
    async fn set() -> Stage {
        let folder = Scratch::new();
        let key = folder.write("rsa.pem", &pem("PUBLIC KEY", &issuer().rsa_der()));
        let configuration = format!(
            "auth_backends.1 = rabbit_auth_backend_oauth2\nauth_backends.2 = internal\n\
             auth_oauth2.resource_server_id = {AUDIENCE}\nauth_oauth2.default_key = rsa\n\
             auth_oauth2.signing_keys.rsa = {}\n",
            key.display()
        );
        let start = || Rabbit::start_with_plugins(&configuration, "rabbitmq_auth_backend_oauth2");
        let rabbit = tokio::task::block_in_place(start);
        let server = KeyServer::start(Answer::json(&issuer().key_set())).await;
        let relay = Relay::start_with(&rabbit, &settings::broker(&server));
        Stage { rabbit, relay, _folder: folder, _server: server }
    }

    async fn log_in(&self, claims: &Value) -> Client {
        let token = issuer().rs256(claims);
        self.relay.client_with(&format!("accept-version:1.2\nhost:/\npasscode:{token}")).await
    }

    fn links_of(&self, user: &str) -> usize {
        tokio::task::block_in_place(|| self.rabbit.links_of(user).len())
    }
}

async fn refresh(client: &mut Client, claims: &Value) {
    client.send(&format!("SEND\ndestination:/auth/tokens\nreceipt:new\n\n{}", issuer().rs256(claims))).await;
}

/// One RabbitMQ for all: it takes seconds to start.
#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_is_given_the_token_and_newer_ones() {
    let stage = Stage::set().await;
    a_token_is_a_password(&stage).await;
    a_new_token_reaches_the_live_links(&stage).await;
    a_token_that_rabbitmq_refuses_changes_nothing(&stage).await;
    sessions_with_one_token_do_not_share(&stage).await;
    a_restart_finds_the_newest_token(&stage).await;
}

async fn a_token_is_a_password(stage: &Stage) {
    let mut client = stage.log_in(&scoped("alice", 60, &ALL)).await;
    client.subscribe("id:1\ndestination:/topic/auth.broker_mode").await;
    client.send("SEND\ndestination:/topic/auth.broker_mode\nreceipt:r\n\nhello").await;
    let (mut receipt, mut message) = (false, false);
    while !(receipt && message) {
        match client.frame().await.command.as_str() {
            "RECEIPT" => receipt = true,
            "MESSAGE" => message = true,
            other => panic!("{other}"),
        }
    }
    assert_eq!(stage.links_of("alice"), 2, "one to consume, one to publish");
    client.disconnect().await;
    eventually("links end with their session", || async { stage.links_of("alice") == 0 }).await;
    // What the scopes do not cover is refused by RabbitMQ.
    let mut reader = stage.log_in(&scoped("reader", 60, &["read:*/*", "configure:*/*"])).await;
    reader.send("SEND\ndestination:/topic/auth.broker_mode\nreceipt:r\n\nhello").await;
    reader.error("access_refused").await;
    // Signed well, but for no virtual host.
    let mut client = Client::open(&stage.relay.ws).await;
    let token = issuer().rs256(&scoped("nobody", 60, &[]));
    client.send(&format!("CONNECT\naccept-version:1.2\nhost:/\npasscode:{token}\n\n")).await;
    client.error("Bad CONNECT").await;
    // A user of RabbitMQ's own comes in beside.
    stage.relay.client().await.disconnect().await;
}

async fn a_new_token_reaches_the_live_links(stage: &Stage) {
    // RabbitMQ knows no leeway, so without the new token it would refuse to publish from the 3rd second on.
    let mut client = stage.log_in(&scoped("bob", 3, &ALL)).await;
    client.send("SEND\ndestination:/topic/auth.refresh\nreceipt:1\n\nx").await;
    client.receipt("1").await;
    let before = tokio::task::block_in_place(|| stage.rabbit.links_of("bob"));
    refresh(&mut client, &scoped("bob", 600, &ALL)).await;
    client.receipt("new").await;
    let old = Instant::now() + Duration::from_secs(4);
    let mut number = 1;
    while Instant::now() < old {
        number += 1;
        client.send(&format!("SEND\ndestination:/topic/auth.refresh\nreceipt:{number}\n\nx")).await;
        client.receipt(&number.to_string()).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(tokio::task::block_in_place(|| stage.rabbit.links_of("bob")), before, "no link was lost");
    client.subscribe("id:1\ndestination:/topic/auth.refresh").await;
    client.disconnect().await;
}

async fn a_token_that_rabbitmq_refuses_changes_nothing(stage: &Stage) {
    let mut client = stage.log_in(&scoped("carol", 60, &ALL)).await;
    client.send("SEND\ndestination:/topic/auth.refused\nreceipt:1\n\nx").await;
    client.receipt("1").await;
    let before = tokio::task::block_in_place(|| stage.rabbit.links_of("carol"));
    // The relay trusts this key, RabbitMQ does not.
    let token = issuer().token("ES256", "p256", &scoped("carol", 60, &ALL));
    client.send(&format!("SEND\ndestination:/auth/tokens\nreceipt:new\n\n{token}")).await;
    let error = client.error("Token refused").await;
    assert_eq!(error.header("error-code"), Some("auth.refresh_refused"));
    client.send("SEND\ndestination:/topic/auth.refused\nreceipt:2\n\nx").await;
    client.receipt("2").await;
    assert_eq!(tokio::task::block_in_place(|| stage.rabbit.links_of("carol")), before, "no link was lost");
    client.disconnect().await;
}

async fn sessions_with_one_token_do_not_share(stage: &Stage) {
    let both = scoped("dora", 60, &ALL);
    let mut first = stage.log_in(&both).await;
    let mut second = stage.log_in(&both).await;
    // The first gives up its rights; the second keeps them.
    refresh(&mut first, &scoped("dora", 60, &["read:*/*"])).await;
    first.receipt("new").await;
    second.send("SEND\ndestination:/topic/auth.apart\nreceipt:1\n\nx").await;
    second.receipt("1").await;
    first.send("SEND\ndestination:/topic/auth.apart\nreceipt:1\n\nx").await;
    first.error("access_refused").await;
    second.disconnect().await;
}

async fn a_restart_finds_the_newest_token(stage: &Stage) {
    let mut client = stage.log_in(&scoped("emil", 4, &ALL)).await;
    client.subscribe("id:1\ndestination:/topic/auth.restart").await;
    let end = now() + 4;
    refresh(&mut client, &scoped("emil", 600, &ALL)).await;
    client.receipt("new").await;
    tokio::task::block_in_place(|| {
        stage.rabbit.kill();
        stage.rabbit.restart();
    });
    eventually("the first token is over", || async { now() > end }).await;
    client.send("SEND\ndestination:/topic/auth.restart\n\nback").await;
    client.message("back").await;
    client.disconnect().await;
}
