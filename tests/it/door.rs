//! Who may knock: origins, limits, rates, proxies, and what those who are not let in are told.

mod bounds;
mod flood;
mod hosts;
mod http_heads;
mod limits;
mod origins;
mod proxies;
mod proxy_header;
mod rate;
mod reaped;
mod seats;
mod send_rate;
mod settings;

use crate::support::process::get;
use crate::support::relay::Relay;
use crate::support::stomp::Client;

/// A relay without a broker: nothing that is tested with it gets that far.
fn relay(settings: &str) -> Relay {
    Relay::start_at("amqp://127.0.0.1:1", &format!("{settings}\n[broker]\nlogin_wait = \"0s\"\n"))
}

/// Whether a metric has this line, without its prefix.
async fn has_metric(relay: &Relay, line: &str) -> bool {
    get(relay.admin, "/metrics").await.body.contains(&format!("\nstomp_relay_{line}\n"))
}

/// This client is told that a limit is reached, and closed.
async fn is_refused(mut client: Client, code: &str) {
    let frame = client.expect("ERROR").await;
    assert_eq!(frame.header("error-code"), Some(code), "{}", String::from_utf8_lossy(&frame.body));
    let (close, reason) = client.closed().await;
    assert_eq!(close, 1013);
    assert!(reason.starts_with(code), "{reason}");
}
