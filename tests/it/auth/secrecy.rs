//! A relay that logs all it can: no token, passcode or secret is in its log, its metrics or its answers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::issuer::{base64url, claims, issuer};
use super::key_server::{Answer, KeyServer};
use super::settings;
use crate::support::rabbit::Rabbit;
use crate::support::relay_process::{RelayProcess, page};
use crate::support::stomp::Client;

const CONNECT: &str = "CONNECT\naccept-version:1.2\nhost:/\n";
const PASSCODE: &str = "a-passcode-that-nobody-may-see";

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_logged() {
    let rabbit = Rabbit::shared();
    let server = KeyServer::start(Answer::json(&issuer().key_set())).await;
    let settings = settings::relay(&server)
        + "sources = [\"password\", \"basic\", \"jwt_header\", \"jwt_passcode\", \"jwt_http\", \"jwt_subprotocol\"]\n\
           [log]\nlevel = \"trace\"\nformat = \"json\"\n";
    let relay = tokio::task::block_in_place(|| {
        RelayProcess::start(env!("CARGO_BIN_EXE_stomp-relay"), &[rabbit.uri()], &settings, 1024)
    });
    let good = issuer().rs256(&claims("alice", 60));
    let foreign = issuer().token("RS256", "another", &claims("mallory", 60));
    let mut answers = Vec::new();
    let mut log_in = async |mut client: Client, headers: String| {
        client.send(&format!("{CONNECT}{headers}\n")).await;
        let frame = client.frame().await;
        answers.push(format!("{:?} {}", frame, String::from_utf8_lossy(&frame.body)));
        (frame.command.as_str() == "CONNECTED").then_some(client)
    };
    for token in [&good, &foreign] {
        log_in(Client::open(&relay.ws).await, format!("Authorization:Bearer {token}\n")).await;
        log_in(Client::open(&relay.ws).await, format!("login:alice\npasscode:{token}\n")).await;
        let bearer = format!("Bearer {token}");
        log_in(Client::open_with(&relay.ws, &[("authorization", &bearer)]).await, String::new()).await;
        let offered = format!("v12.stomp, base64url.bearer.authorization.{}", base64url(token));
        log_in(Client::open_offering(&relay.ws, &offered).await, String::new()).await;
    }
    let basic = STANDARD.encode(format!("alice:{PASSCODE}"));
    let header = format!("Basic {basic}");
    log_in(Client::open_with(&relay.ws, &[("authorization", &header)]).await, String::new()).await;
    log_in(Client::open(&relay.ws).await, format!("login:alice\npasscode:{PASSCODE}\n")).await;
    let mut client = log_in(Client::open(&relay.ws).await, format!("passcode:{good}\n")).await.expect("let in");
    for token in [&foreign, &good] {
        client.send(&format!("SEND\ndestination:/auth/tokens\nreceipt:r\n\n{token}")).await;
        let frame = client.frame().await;
        answers.push(format!("{:?} {}", frame, String::from_utf8_lossy(&frame.body)));
    }
    let seen = tokio::task::block_in_place(|| relay.log() + &page(&relay.admin, "/metrics")) + &answers.concat();
    assert!(seen.contains("token refused") && seen.contains("token refreshed"), "the log is complete: {seen}");
    let signature = |token: &str| token.rsplit('.').next().expect("three parts").to_owned();
    let encoded = |token: &str| base64url(token)[200..260].to_owned();
    for secret in [signature(&good), signature(&foreign), encoded(&good), encoded(&foreign), basic, PASSCODE.to_owned()]
    {
        assert!(!seen.contains(&secret), "{secret} was shown");
    }
}
