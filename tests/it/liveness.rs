//! Who is taken for gone: nobody before a ping of its own went unanswered.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::support::rabbit::{Rabbit, unique};
use crate::support::raw_http::{BINARY, CLOSE, FIN, PING, PONG, RawClient, TEXT, frame, frame_head};
use crate::support::relay::Relay;
use crate::support::stomp::{Client, Received};

const SETTINGS: &str = "[websocket]\nping_interval = \"2s\"\npong_timeout = \"1s\"\n";
const CONNECT: &str = "CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\nheart-beat:1000,1000\n\n";

/// As a hidden tab: its own timers are slowed down, its browser answers pings.
#[tokio::test]
async fn a_client_that_only_answers_pings_stays() {
    let relay = Relay::start_with(Rabbit::shared(), SETTINGS);
    let mut client = Client::open(&relay.ws).await;
    client.send(CONNECT).await;
    client.expect("CONNECTED").await;
    let end = Instant::now() + Duration::from_secs(6);
    while let Ok(received) = tokio::time::timeout_at(end, client.next()).await {
        assert!(matches!(received, Received::Heartbeat), "{received:?}");
    }
    client.disconnect().await;
}

#[tokio::test]
async fn a_client_that_does_not_answer_is_asked_and_then_gone() {
    let relay = Relay::start_with(Rabbit::shared(), SETTINGS);
    let mut client = raw(&relay).await;
    let mut pinged = false;
    let error = loop {
        let frame = client.frame().await;
        match frame.opcode {
            PING => pinged = true,
            TEXT if frame.payload == b"\n" => {}
            _ => break String::from_utf8(frame.payload).expect("an ERROR"),
        }
    };
    assert!(pinged, "{error}");
    assert!(error.contains("error-code:session.heartbeat_missed"), "{error}");
    assert_eq!(client.frame().await.close_code(), 4005);
}

/// No pong overtakes the rest of a frame: its bytes are life enough.
#[tokio::test]
async fn a_client_in_the_middle_of_a_long_message_stays() {
    let relay = Relay::start_with(Rabbit::shared(), SETTINGS);
    let mut client = raw(&relay).await;
    let queue = unique("/queue/slow");
    let text = format!("SEND\ndestination:{queue}\nreceipt:r\n\n{}\0", "x".repeat(1000));
    client.send(frame_head(FIN | BINARY, text.len())).await;
    client.send([0; 4]).await;
    for chunk in text.as_bytes().chunks(100) {
        client.send(chunk).await;
        sleep(Duration::from_millis(600)).await;
    }
    loop {
        let received = timeout(Duration::from_secs(20), client.frame()).await.expect("an answer");
        match received.opcode {
            PING => client.send(frame(FIN | PONG, &[])).await,
            CLOSE => panic!("closed with {}", received.close_code()),
            _ if received.payload == b"\n" => {}
            _ => break assert!(received.payload.starts_with(b"RECEIPT"), "{received:?}"),
        }
    }
}

async fn raw(relay: &Relay) -> RawClient {
    let address = relay.ws.trim_start_matches("ws://").trim_end_matches("/ws");
    let socket = TcpStream::connect(address).await.expect("the relay listens");
    let mut client = RawClient::new(socket).upgraded().await;
    client.send(frame(FIN | BINARY, format!("{CONNECT}\0").as_bytes())).await;
    assert!(client.frame().await.payload.starts_with(b"CONNECTED"));
    client
}

/// A client that forgot the NUL believes its frame complete, and its heart-beats become part of it. A slow one needs longer
/// than `stomp.frame_timeout` for the whole.
#[tokio::test]
async fn a_frame_that_does_not_end_is_told_and_a_slow_one_is_read() {
    let relay = Relay::start_with(Rabbit::shared(), "[stomp]\nframe_timeout = \"1s\"\n");
    let queue = unique("unfinished");
    let mut client = relay.client().await;
    let text = format!("SEND\ndestination:/queue/{queue}\nreceipt:slow\n\nhello\0");
    for piece in text.as_bytes().chunks(text.len().div_ceil(8)) {
        client.send_bytes(piece).await;
        sleep(Duration::from_millis(200)).await;
    }
    client.receipt("slow").await;
    client.send_bytes(format!("SEND\ndestination:/queue/{queue}\nreceipt:never\n\nhello").as_bytes()).await;
    let mut beats = 0;
    let error = loop {
        match timeout(Duration::from_millis(100), client.next()).await {
            Ok(Received::Frame(frame)) => break frame,
            Ok(other) => panic!("{other:?} after {beats} heart-beats"),
            Err(_) => client.send_bytes(b"\n").await,
        }
        beats += 1;
        assert!(beats < 600, "nobody says anything");
    };
    assert_eq!(error.header("error-code"), Some("frame.unfinished"));
    let body = String::from_utf8_lossy(&error.body);
    assert!(body.contains("inside the body of the frame \"SEND\""), "{body}");
    assert_eq!(client.closed().await.0, 1008);
}
