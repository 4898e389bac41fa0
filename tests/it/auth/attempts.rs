//! Failed logins in front of a real RabbitMQ: one answer, a delay, a limit.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::issuer::{claims, issuer};
use super::key_server::{Answer, KeyServer};
use super::settings;
use crate::support::condition::eventually;
use crate::support::fault_proxy::{FaultProxy, Mode};
use crate::support::process::get;
use crate::support::rabbit::Rabbit;
use crate::support::relay::Relay;
use crate::support::stomp::Client;

/// The answer to a login: its error code, message and body.
async fn answer(relay: &Relay, login: &str, passcode: &str) -> (String, String) {
    let mut client = Client::open(&relay.ws).await;
    client.send(&format!("CONNECT\naccept-version:1.2\nhost:/\nlogin:{login}\npasscode:{passcode}\n\n")).await;
    let frame = client.frame().await;
    let code = frame.header("error-code").unwrap_or(frame.command.as_str()).to_owned();
    (code, String::from_utf8_lossy(&frame.body).replace(login, "USER"))
}

#[tokio::test]
async fn unknown_users_and_wrong_passcodes_look_the_same_and_take_as_long() {
    let relay = Relay::start_with(Rabbit::shared(), "[auth]\nfailure_delay = \"700ms\"\n");
    let start = Instant::now();
    let wrong = answer(&relay, "guest", "wrong").await;
    let took = start.elapsed();
    let start = Instant::now();
    let unknown = answer(&relay, "nobody", "wrong").await;
    assert_eq!(wrong, unknown);
    assert_eq!(wrong.0, "connect.refused");
    for took in [took, start.elapsed()] {
        assert!(took >= Duration::from_millis(700), "{took:?}");
    }
}

#[tokio::test]
async fn an_address_is_limited_also_in_parallel() {
    let settings = "[auth]\nfailure_delay = \"0ms\"\nfailures_per_address_max = 4\nfailure_window = \"1h\"\n";
    let relay = Relay::start_with(Rabbit::shared(), settings);
    // Good logins are not counted, however many.
    for _ in 0..6 {
        relay.client().await.disconnect().await;
    }
    let names: Vec<String> = (0..30).map(|number| format!("guess{number}")).collect();
    let answers = join_all(names.iter().map(|name| answer(&relay, name, "x"))).await;
    let judged = answers.iter().filter(|(code, _)| code == "connect.refused").count();
    let limited = answers.iter().filter(|(code, _)| code == "auth.too_many_failures").count();
    assert_eq!((judged, limited), (4, 26));
    assert_eq!(answer(&relay, "guest", "guest").await.0, "auth.too_many_failures", "nothing is checked any more");
    let page = get(relay.admin, "/metrics").await.body;
    assert!(page.contains("auth_attempts_total{method=\"password\",result=\"limited\"} 27"), "{page}");
    assert!(page.contains("sessions_closed_total{reason=\"limit\"} 27"), "{page}");
}

/// What the metrics say of logins that were refused.
async fn refused(relay: &Relay, method: &str) -> u64 {
    let page = get(relay.admin, "/metrics").await.body;
    let line = format!("stomp_relay_auth_attempts_total{{method=\"{method}\",result=\"refused\"}} ");
    page.lines().find_map(|known| known.strip_prefix(&line)?.parse().ok()).unwrap_or(0)
}

const FOUR: &str = "[auth]\nsources = [\"password\", \"basic\", \"jwt_header\"]\nfailures_per_address_max = 4\n\
                    failure_window = \"1h\"\n";

#[tokio::test]
async fn a_guess_counts_though_its_client_left_before_the_verdict() {
    let proxy = FaultProxy::start(Rabbit::shared().amqp_port()).await;
    let relay = Relay::start_at(&format!("amqp://127.0.0.1:{}", proxy.port()), FOUR);
    // Behind it nothing is left of the start, such as the search for a broker.
    relay.client().await.disconnect().await;
    // Each piece of the AMQP handshake is late, so that the client can be gone before its verdict.
    proxy.set(Mode::Delay(Duration::from_millis(100)));
    for guess in 0..4 {
        let seen = proxy.accepted();
        let (mut client, method) = match guess % 2 {
            0 => (Client::open(&relay.ws).await, "password"),
            _ => (Client::open_with(&relay.ws, &[("Authorization", "Basic Z3Vlc3Q6d3Jvbmc=")]).await, "basic"),
        };
        let shown = if method == "password" { format!("login:guest\npasscode:guess{guess}\n") } else { String::new() };
        client.send(&format!("CONNECT\naccept-version:1.2\nhost:/\n{shown}\n")).await;
        eventually("it is being judged", async || proxy.accepted() > seen).await;
        drop(client);
        eventually("it was judged and counted", async || {
            refused(&relay, "password").await + refused(&relay, "basic").await > guess
        })
        .await;
    }
    assert_eq!(answer(&relay, "guest", "guest").await.0, "auth.too_many_failures");
}

#[tokio::test]
async fn a_token_counts_though_its_client_left_before_the_verdict() {
    let server = KeyServer::start(Answer::json(&issuer().key_set())).await;
    let more =
        "failures_per_address_max = 2\nfailure_window = \"1h\"\njwks_refetch_min = \"10ms\"\njwks_timeout = \"1s\"\n";
    let relay = Relay::start_with(Rabbit::shared(), &format!("{}{more}", settings::relay(&server)));
    let good = issuer().rs256(&claims("alice", 60));
    let mut session = relay.client_with(&format!("accept-version:1.2\nhost:/\nAuthorization:Bearer {good}")).await;
    // A key that is not known is asked for, and that takes until the time is over.
    server.answer(Answer::Silence);
    // The key set may be asked for again from `jwks_refetch_min` on.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let bad = issuer().token("RS256", "gone", &claims("alice", 60));
    let asked = server.asked();
    let mut client = Client::open(&relay.ws).await;
    client.send(&format!("CONNECT\naccept-version:1.2\nhost:/\nAuthorization:Bearer {bad}\n\n")).await;
    eventually("it is being judged", async || server.asked() > asked).await;
    drop(client);
    eventually("it was judged and counted", async || refused(&relay, "jwt_header").await == 1).await;
    // The same for a token that a session shows.
    let asked = server.asked();
    session.send(&format!("SEND\ndestination:/auth/tokens\nreceipt:r\n\n{bad}")).await;
    eventually("it is being judged", async || server.asked() > asked).await;
    drop(session);
    let line = "stomp_relay_token_refresh_total{result=\"refused\"} 1";
    eventually("it was judged and counted", async || get(relay.admin, "/metrics").await.body.contains(line)).await;
    assert_eq!(answer(&relay, "guest", "guest").await.0, "auth.too_many_failures");
}
