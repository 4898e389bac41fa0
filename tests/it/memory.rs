//! Memory has a budget for a session, a user and the process, and it holds: who holds too much is told so and ended, newcomers
//! come later, the others work on.

mod budget;
mod crowd;
mod slow;
mod stages;
mod taken;
mod turns;

use crate::support::relay::Relay;
use crate::support::stomp::{Client, Received};

/// A SEND below `stomp.frame_bytes_max`.
pub const LARGE: usize = 3_900_000;

/// Opens a transaction and puts so many large SENDs into it; the relay may end the session on the way.
pub async fn hold(client: &mut Client, transaction: &str, sends: usize) {
    let body = "x".repeat(LARGE);
    let _ = client.try_send(&format!("BEGIN\ntransaction:{transaction}\n\n")).await;
    for _ in 0..sends {
        let send = format!("SEND\ndestination:/topic/memory\ntransaction:{transaction}\n\n{body}");
        let _ = client.try_send(&send).await;
    }
}

/// The ERROR and the close behind it.
pub async fn is_ended(client: &mut Client, error_code: &str, close: u16) {
    loop {
        match client.receive().await {
            Received::Frame(frame) if frame.command.as_str() == "ERROR" => {
                assert_eq!(frame.header("error-code"), Some(error_code), "{frame:?}");
                assert_eq!(client.closed().await.0, close);
                return;
            }
            Received::Close(code, reason) => panic!("closed with {code} {reason} instead of an ERROR"),
            Received::Frame(_) | Received::Heartbeat => {}
        }
    }
}

/// Works: what it sends comes back.
pub async fn works(client: &mut Client, topic: &str) {
    client.send(&format!("SEND\ndestination:{topic}\n\nhello")).await;
    client.message("hello").await;
}

pub async fn has_metric(relay: &Relay, sample: &str) -> bool {
    crate::support::process::get(relay.admin, "/metrics").await.body.contains(&format!("\nstomp_relay_{sample}\n"))
}
