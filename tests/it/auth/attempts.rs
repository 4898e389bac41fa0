//! Failed logins in front of a real RabbitMQ: one answer, a delay, a limit.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

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
