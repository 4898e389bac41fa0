//! Identity shown in the HTTP request, in front of a real RabbitMQ: who is let in by what, and when it does not count.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::issuer::{base64url, claims, issuer};
use super::key_server::{Answer, KeyServer};
use super::settings;
use crate::support::process::get;
use crate::support::rabbit::Rabbit;
use crate::support::relay::Relay;
use crate::support::stomp::Client;

const PAGE: &str = "http://127.0.0.1:8080";
/// Pages from anywhere may connect; whether their cookies count is another matter.
const ORIGINS: &str = "[http]\norigins = [\"*\"]\n";

async fn relay(sources: &str) -> (Relay, KeyServer) {
    let server = KeyServer::start(Answer::json(&issuer().key_set())).await;
    let lines = format!("sources = [{sources}]\ncookie = \"session\"\ncookie_origins = [\"{PAGE}\"]\n");
    (Relay::start_with(Rabbit::shared(), &(settings::relay(&server) + &lines + ORIGINS)), server)
}

/// CONNECT without any proof of its own; the answer's command.
async fn connect(mut client: Client) -> String {
    client.send("CONNECT\naccept-version:1.2\nhost:/\n\n").await;
    client.frame().await.command.as_str().to_owned()
}

fn token() -> String {
    issuer().rs256(&claims("alice", 60))
}

#[tokio::test]
async fn the_request_shows_who_it_is() {
    let all = r#""basic", "jwt_http", "jwt_cookie", "jwt_subprotocol""#;
    let (relay, _server) = relay(all).await;
    let basic = format!("Basic {}", STANDARD.encode("guest:guest"));
    let bearer = format!("Bearer {}", token());
    let cookie = format!("theme=dark; session={}", token());
    let subprotocol = format!("v12.stomp, base64url.bearer.authorization.{}", base64url(token()));
    assert_eq!(connect(Client::open_with(&relay.ws, &[("authorization", &basic)]).await).await, "CONNECTED");
    assert_eq!(connect(Client::open_with(&relay.ws, &[("authorization", &bearer)]).await).await, "CONNECTED");
    let headers = [("cookie", cookie.as_str()), ("origin", PAGE)];
    assert_eq!(connect(Client::open_with(&relay.ws, &headers).await).await, "CONNECTED");
    // The client checks that the answer names v12.stomp and nothing else.
    assert_eq!(connect(Client::open_offering(&relay.ws, &subprotocol).await).await, "CONNECTED");
    let page = get(relay.admin, "/metrics").await.body;
    for method in ["basic", "jwt_http", "jwt_cookie", "jwt_subprotocol"] {
        let line = format!("auth_attempts_total{{method=\"{method}\",result=\"ok\"}} 1");
        assert!(page.contains(&line), "{line} in {page}");
    }
}

#[tokio::test]
async fn a_cookie_from_another_page_does_not_count() {
    let (relay, _server) = relay(r#""jwt_cookie""#).await;
    let cookie = format!("session={}", token());
    for headers in [&[("cookie", cookie.as_str()), ("origin", "http://127.0.0.1:9999")][..], &[("cookie", &cookie)]] {
        assert_eq!(connect(Client::open_with(&relay.ws, headers).await).await, "ERROR");
    }
}

#[tokio::test]
async fn by_default_neither_basic_nor_subprotocol_nor_cookie_counts() {
    let server = KeyServer::start(Answer::json(&issuer().key_set())).await;
    let relay = Relay::start_with(Rabbit::shared(), &(settings::relay(&server) + ORIGINS));
    let basic = format!("Basic {}", STANDARD.encode("guest:guest"));
    assert_eq!(connect(Client::open_with(&relay.ws, &[("authorization", &basic)]).await).await, "ERROR");
    let subprotocol = format!("v12.stomp, base64url.bearer.authorization.{}", base64url(token()));
    assert_eq!(connect(Client::open_offering(&relay.ws, &subprotocol).await).await, "ERROR");
    let cookie = format!("stomp_relay_token={}", token());
    let headers = [("cookie", cookie.as_str()), ("origin", PAGE)];
    assert_eq!(connect(Client::open_with(&relay.ws, &headers).await).await, "ERROR");
}

#[tokio::test]
async fn a_wrong_basic_passcode_is_refused_by_rabbitmq() {
    let (relay, _server) = relay(r#""basic""#).await;
    let basic = format!("Basic {}", STANDARD.encode("guest:wrong"));
    let mut client = Client::open_with(&relay.ws, &[("authorization", &basic)]).await;
    client.send("CONNECT\naccept-version:1.2\nhost:/\n\n").await;
    client.error("Bad CONNECT").await;
    assert_eq!(client.closed().await.0, 1008);
}
