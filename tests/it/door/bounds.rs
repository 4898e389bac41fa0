//! What a stranger may send before the login, and how long it may take: at each limit and just beyond.

use std::time::{Duration, Instant};

use super::relay;
use crate::support::stomp::Client;

/// `stomp.login_frame_bytes_max`
const LOGIN_BYTES_MAX: usize = 64 * 1024;

/// A CONNECT of exactly this many bytes, NUL included.
fn connect_of(bytes: usize) -> Vec<u8> {
    let mut frame = b"CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n".to_vec();
    // The end of the headers and the NUL.
    let mut left = bytes - frame.len() - 2;
    for number in 0.. {
        // A header line may have 10 KiB; what is left must still make a line.
        let length = if left > 9000 { 8000 } else { left };
        let line = format!("x-{number}:{}\n", "x".repeat(length - 5));
        assert_eq!(line.len(), length);
        frame.extend(line.as_bytes());
        left -= length;
        if left == 0 {
            break;
        }
    }
    frame.extend(b"\n\0");
    assert_eq!(frame.len(), bytes);
    frame
}

#[tokio::test]
async fn before_the_login_64_kib_are_read_over_all_messages() {
    let relay = relay("");
    for (bytes, pieces, expected) in [
        (LOGIN_BYTES_MAX, 1, "broker.unavailable"),
        (LOGIN_BYTES_MAX, 10, "broker.unavailable"),
        (LOGIN_BYTES_MAX + 1, 1, "limit.message"),
        (LOGIN_BYTES_MAX + 1, 10, "frame.malformed"),
    ] {
        let mut client = Client::open(&relay.ws).await;
        let frame = connect_of(bytes);
        for piece in frame.chunks(frame.len().div_ceil(pieces)) {
            client.send_bytes(piece).await;
        }
        let error = client.expect("ERROR").await;
        let body = String::from_utf8_lossy(&error.body);
        assert_eq!(error.header("error-code"), Some(expected), "{bytes} bytes in {pieces}: {body}");
    }
}

#[tokio::test]
async fn a_client_that_trickles_its_login_is_closed_at_the_deadline() {
    let relay = relay("[session]\nlogin_timeout = \"600ms\"\n");
    let start = Instant::now();
    let mut client = Client::open(&relay.ws).await;
    let trickle = async {
        for byte in b"CONNECT\naccept-version:1.2\nhost:/\n".iter().cycle() {
            if client.try_send_bytes(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // What is sent does not put the end off.
    let _ = tokio::time::timeout(Duration::from_millis(700), trickle).await;
    assert_eq!(client.expect("ERROR").await.header("error-code"), Some("connect.timeout"));
    assert_eq!(client.closed().await.0, 1008);
    let elapsed = start.elapsed();
    assert!((Duration::from_millis(600)..Duration::from_secs(5)).contains(&elapsed), "{elapsed:?}");
}
