//! Messages in both directions, limits, stalled peers, and closing.

use std::time::Duration;

use stomp_relay::listener::{
    DriveError, Event, Incoming, ListenerConfig, Opcode, Read, ReceiveError, WebSocket, WebSocketConfig, Write,
};
use tokio::io::AsyncWriteExt;

use super::server::{MESSAGE_MAX, Server, config};
use crate::support::raw_http::{
    BINARY, CLOSE, CONTINUE, FIN, Frame, PING, PONG, RawClient, TEXT, frame, frame_head, upgrade, within,
};

const DEADLINE: Duration = Duration::from_secs(10);

async fn receive(websocket: &mut WebSocket) -> Result<Incoming, DriveError> {
    within("something incoming", websocket.recv()).await
}

/// Collects that many bytes of messages, or more; they come in pieces.
async fn collect(websocket: &mut WebSocket, bytes: usize) -> Result<Vec<u8>, DriveError> {
    let mut data = Vec::new();
    while data.len() < bytes {
        match receive(websocket).await? {
            Incoming::Data(piece) => data.extend_from_slice(&piece),
            Incoming::Activity => {}
            other => panic!("{other:?}"),
        }
    }
    Ok(data)
}

/// The error behind whatever comes before it.
async fn failure(websocket: &mut WebSocket) -> ReceiveError {
    match collect(websocket, usize::MAX).await {
        Err(DriveError::Receive(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn messages_arrive_complete_however_they_are_cut() {
    let mut server = Server::start(config());
    let (mut client, mut websocket) = server.pair().await;
    client.send(frame(FIN | TEXT, "SEND\ngrüß".as_bytes())).await;
    assert_eq!(collect(&mut websocket, 11).await.unwrap(), "SEND\ngrüß".as_bytes());
    // A character cut between fragments, with a ping in between.
    client.send(frame(TEXT, b"gr\xc3")).await;
    client.send(frame(FIN | PING, b"?")).await;
    client.send(frame(CONTINUE, b"\xbc")).await;
    client.send(frame(FIN | CONTINUE, b"n")).await;
    assert_eq!(collect(&mut websocket, 5).await.unwrap(), "grün".as_bytes());
    client.send(frame(FIN | BINARY, b"")).await;
    assert_eq!(receive(&mut websocket).await, Ok(Incoming::Activity));
    // Byte by byte.
    for byte in frame(FIN | BINARY, &[0xff; 300]) {
        client.send([byte]).await;
    }
    assert_eq!(collect(&mut websocket, 300).await.unwrap(), [0xff; 300]);
    assert_eq!(client.frame().await, Frame { opcode: PONG, payload: b"?".to_vec() });
}

#[tokio::test]
async fn an_unfinished_message_is_handed_over_and_not_kept() {
    let mut server = Server::start(config());
    let (mut client, mut websocket) = server.pair().await;
    websocket.set_message_bytes_max(1 << 20);
    client.send(frame_head(FIN | BINARY, 1 << 20)).await;
    let sending = tokio::spawn(async move {
        client.send(vec![0; 4 + 500_000]).await;
        client
    });
    assert_eq!(collect(&mut websocket, 500_000).await.unwrap(), vec![0; 500_000]);
    drop(sending.await.unwrap());
    assert_eq!(websocket.retained_bytes(), 0);
}

#[tokio::test]
async fn a_message_of_the_limit_passes_and_one_byte_more_closes_with_1009() {
    let mut server = Server::start(config());
    for fragments in [1, 2] {
        let (mut client, mut websocket) = server.pair().await;
        let send = |size: usize| match fragments {
            1 => frame(FIN | BINARY, &vec![7; size]),
            _ => [frame(BINARY, &vec![7; size - 10]), frame(FIN | CONTINUE, &[7; 10])].concat(),
        };
        client.send(send(MESSAGE_MAX)).await;
        assert_eq!(collect(&mut websocket, MESSAGE_MAX).await.unwrap(), [7; MESSAGE_MAX]);
        client.send(send(MESSAGE_MAX + 1)).await;
        let error = failure(&mut websocket).await;
        assert_eq!(error, ReceiveError::TooBig { max: MESSAGE_MAX });
        let close = tokio::spawn(websocket.close(error.close_code().unwrap(), "too big", DEADLINE));
        assert_eq!(client.frame().await.close_code(), 1009);
        drop(client);
        within("close", close).await.unwrap();
    }
}

#[tokio::test]
async fn an_announced_length_over_the_limit_is_refused_at_its_head() {
    let mut server = Server::start(config());
    let (mut client, mut websocket) = server.pair().await;
    // No byte of the message follows.
    client.send(frame_head(FIN | BINARY, MESSAGE_MAX + 1)).await;
    client.send([0; 4]).await;
    assert_eq!(failure(&mut websocket).await, ReceiveError::TooBig { max: MESSAGE_MAX });
}

#[tokio::test]
async fn the_limit_can_be_raised_after_login() {
    let mut server = Server::start(config());
    let (mut client, mut websocket) = server.pair().await;
    websocket.set_message_bytes_max(100_000);
    client.send(frame(FIN | BINARY, &[1; 100_000])).await;
    assert_eq!(collect(&mut websocket, 100_000).await.unwrap(), [1; 100_000]);
    client.send(frame(FIN | BINARY, &[1; 100_001])).await;
    assert_eq!(failure(&mut websocket).await, ReceiveError::TooBig { max: 100_000 });
}

#[tokio::test]
async fn the_close_frame_reaches_a_peer_that_is_still_sending() {
    let mut server = Server::start(config());
    let (mut client, mut websocket) = server.pair().await;
    // Far more than the socket buffers hold, so the peer sends while it is told.
    let sending = tokio::spawn(async move {
        let sent = client.try_send(&frame(FIN | BINARY, &vec![0; 8 << 20])).await;
        (client, sent)
    });
    let error = failure(&mut websocket).await;
    let close = tokio::spawn(websocket.close(error.close_code().unwrap(), "", DEADLINE));
    let (mut client, sent) = within("send all", sending).await.unwrap();
    sent.expect("no reset while the close frame is on its way");
    assert_eq!(client.frame().await.close_code(), 1009);
    drop(client);
    within("close", close).await.unwrap();
}

#[tokio::test]
async fn violations_are_named() {
    let mut server = Server::start(config());
    let unmasked = vec![FIN | TEXT, 2, b'h', b'i'];
    let cases = [
        (frame(FIN | TEXT, b"\xff\xfe"), 1007),
        (frame(FIN | TEXT, b"\xc3"), 1007),
        (unmasked, 1002),
        (frame(FIN | 0x40 | TEXT, b"reserved bit"), 1002),
        (frame(FIN | CONTINUE, b"continues nothing"), 1002),
        (frame(FIN | 0x3, b"reserved opcode"), 1002),
        (frame(PING, b"cut ping"), 1002),
        (frame(FIN | PING, &[0; 126]), 1002),
    ];
    for (bytes, code) in cases {
        let (mut client, mut websocket) = server.pair().await;
        client.send(&bytes).await;
        let error = failure(&mut websocket).await;
        assert_eq!(error.close_code(), Some(code), "{bytes:?}: {error}");
        let close = tokio::spawn(websocket.close(code, "", DEADLINE));
        assert_eq!(client.frame().await.close_code(), code);
        drop(client);
        within("close", close).await.unwrap();
    }
}

#[tokio::test]
async fn frames_go_out_as_text_when_they_are_utf8_or_always_as_binary() {
    for (opcode, of_text, of_bytes) in [(Opcode::TextWhenUtf8, TEXT, BINARY), (Opcode::Binary, BINARY, BINARY)] {
        let websocket = WebSocketConfig { message_bytes_max: MESSAGE_MAX, opcode };
        let mut server = Server::start(ListenerConfig { websocket, ..config() });
        let (mut client, mut websocket) = server.pair().await;
        websocket.queue("MESSAGE\n\ngrün\0".into());
        websocket.queue(b"MESSAGE\n\n\xff\0"[..].into());
        websocket.queue("\n".into());
        within("flush", websocket.flush()).await.unwrap();
        assert_eq!(websocket.queued_bytes(), 0);
        assert_eq!(client.frame().await, Frame { opcode: of_text, payload: "MESSAGE\n\ngrün\0".into() });
        assert_eq!(client.frame().await, Frame { opcode: of_bytes, payload: b"MESSAGE\n\n\xff\0".to_vec() });
        assert_eq!(client.frame().await, Frame { opcode: of_text, payload: b"\n".to_vec() });
    }
}

#[tokio::test]
async fn pings_are_answered_and_sent() {
    let mut server = Server::start(config());
    let (mut client, mut websocket) = server.pair().await;
    client.send(frame(FIN | PING, b"are you there")).await;
    // Answered even while queued messages are held back.
    websocket.queue("held".into());
    let drive = tokio::spawn(async move {
        assert_eq!(receive(&mut websocket).await, Ok(Incoming::Activity));
        websocket.queue_ping();
        websocket.queue_ping();
        assert_eq!(receive(&mut websocket).await, Ok(Incoming::Pong));
        websocket
    });
    assert_eq!(client.frame().await, Frame { opcode: PONG, payload: b"are you there".to_vec() });
    assert_eq!(client.frame().await, Frame { opcode: PING, payload: vec![] });
    client.send(frame(FIN | PONG, b"")).await;
    let mut websocket = within("pong", drive).await.unwrap();
    assert_eq!(websocket.queued_bytes(), 4);
    within("flush", websocket.flush()).await.unwrap();
    assert_eq!(client.frame().await, Frame { opcode: TEXT, payload: b"held".to_vec() });
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_still_read_from_and_loses_nothing() {
    const MESSAGES: usize = 20_000;
    let mut server = Server::start(config());
    let (mut client, mut websocket) = server.pair().await;
    // More than the socket buffers of both sides take.
    let payload = bytes::Bytes::from(vec![b'x'; 1000]);
    (0..MESSAGES).for_each(|_| websocket.queue(payload.clone()));
    assert!(within_a_moment(&mut websocket).await, "20 MB were taken by a peer that reads nothing");
    for _ in 0..1000 {
        client.send([frame(FIN | TEXT, b"hello"), frame(FIN | PING, &[0; 100])].concat()).await;
        assert_eq!(collect(&mut websocket, 5).await.unwrap(), b"hello");
    }
    let queued = websocket.queued_bytes();
    assert!(queued < MESSAGES * 1000 + 64 * 1024, "unsent pongs pile up: {queued} bytes");
    let flushing = tokio::spawn(async move {
        within("flush", websocket.flush()).await.unwrap();
        websocket.queued_bytes()
    });
    let mut messages = 0;
    while messages < MESSAGES {
        match client.frame().await {
            Frame { opcode: TEXT, payload: got } => {
                assert_eq!(got, payload);
                messages += 1;
            }
            Frame { opcode, .. } => assert_eq!(opcode, PONG),
        }
    }
    assert_eq!(flushing.await.unwrap(), 0);
}

/// Drives until nothing moves for a moment; true if something is left to write.
async fn within_a_moment(websocket: &mut WebSocket) -> bool {
    let moment = Duration::from_millis(100);
    while let Ok(event) = tokio::time::timeout(moment, websocket.drive(Read::Yes, Write::Yes)).await {
        event.unwrap();
    }
    websocket.queued_bytes() > 0
}

#[tokio::test]
async fn a_peer_that_is_not_read_from_still_gets_its_messages() {
    let mut server = Server::start(config());
    let (client, mut websocket) = server.pair().await;
    websocket.queue("one".into());
    let event = within("flush", websocket.drive(Read::No, Write::Yes)).await.unwrap();
    assert_eq!(event, Event::Flushed);
    // Nothing queued: nothing to tell, and Write::Yes is no busy loop.
    let quiet = tokio::time::timeout(Duration::from_millis(50), websocket.drive(Read::Yes, Write::Yes)).await;
    assert!(quiet.is_err(), "{quiet:?}");
    drop(client);
}

#[tokio::test]
async fn cancelled_drives_lose_and_repeat_nothing() {
    const MESSAGES: u32 = 3000;
    let mut server = Server::start(config());
    let (mut client, mut websocket) = server.pair().await;
    let driver = tokio::spawn(async move {
        let expected = (0..MESSAGES).map(|count| count.to_string()).collect::<String>();
        let mut received = String::new();
        let mut queued = 0;
        while received.len() < expected.len() || queued < MESSAGES || websocket.queued_bytes() > 0 {
            if queued < MESSAGES {
                websocket.queue(queued.to_string().repeat(50).into());
                queued += 1;
            }
            tokio::select! {
                biased;
                event = websocket.drive(Read::Yes, Write::Yes) => {
                    if let Event::Incoming(Incoming::Data(bytes)) = event.unwrap() {
                        received.push_str(std::str::from_utf8(&bytes).unwrap());
                    }
                }
                () = tokio::task::yield_now() => {}
            }
        }
        assert_eq!(received, expected);
        websocket
    });
    let sender = async {
        for count in 0..MESSAGES {
            client.send(frame(FIN | TEXT, count.to_string().as_bytes())).await;
        }
        for count in 0..MESSAGES {
            assert_eq!(client.frame().await.payload, count.to_string().repeat(50).into_bytes());
        }
    };
    within("all messages", sender).await;
    within("the driver", driver).await.unwrap();
}

#[tokio::test]
async fn neither_direction_starves_the_other() {
    let mut server = Server::start(config());
    let (mut client, mut websocket) = server.pair().await;
    // Always something to read and always something to report as written.
    websocket.set_message_bytes_max(1 << 20);
    let sender = tokio::spawn(async move {
        client.send(frame(FIN | TEXT, &[b'x'; 60_000]).repeat(100)).await;
        client
    });
    let (mut incoming, mut flushed, mut bytes) = (0, 0, 0);
    while bytes < 6_000_000 {
        websocket.queue("y".into());
        match within("an event", websocket.drive(Read::Yes, Write::Yes)).await.unwrap() {
            Event::Incoming(Incoming::Data(data)) => {
                incoming += 1;
                bytes += data.len();
            }
            Event::Incoming(other) => assert_eq!(other, Incoming::Activity),
            Event::Flushed => flushed += 1,
        }
    }
    assert!(incoming >= 300 && flushed >= incoming * 9 / 10, "{flushed} of {incoming}");
    drop(within("the sender", sender).await);
}

#[tokio::test]
async fn everything_queued_arrives_before_the_close_frame() {
    let mut server = Server::start(config());
    let (mut client, mut websocket) = server.pair().await;
    (0..5000).for_each(|count: u32| websocket.queue(format!("{count}{}", "x".repeat(1000)).into()));
    let reason = "ä".repeat(100);
    let close = tokio::spawn(async move { websocket.close(1011, &reason, DEADLINE).await });
    // What the client sends meanwhile is thrown away.
    client.send(frame(FIN | TEXT, b"late")).await;
    for count in 0..5000 {
        let got = client.frame().await;
        assert!(got.payload.starts_with(format!("{count}x").as_bytes()), "message {count}");
    }
    let got = client.frame().await;
    assert_eq!(got.close_code(), 1011);
    assert_eq!(std::str::from_utf8(&got.payload[2..]).unwrap(), "ä".repeat(61));
    assert!(!close.is_finished(), "did not wait for the peer's close");
    client.send(frame(FIN | CLOSE, &1011u16.to_be_bytes())).await;
    assert_eq!(client.rest().await, b"");
    drop(client);
    within("close", close).await.unwrap();
}

#[tokio::test]
async fn close_gives_up_at_its_deadline() {
    let mut server = Server::start(config());
    // A peer that answers nothing, and one that reads nothing.
    for messages in [0, 20_000] {
        let (client, mut websocket) = server.pair().await;
        (0..messages).for_each(|_| websocket.queue("x".repeat(1000).into()));
        let deadline = Duration::from_millis(300);
        let start = std::time::Instant::now();
        within("giving up", websocket.close(1001, "", deadline)).await;
        assert!(start.elapsed() >= deadline, "gave up early");
        drop(client);
    }
}

#[tokio::test]
async fn a_peer_that_closes_first_is_answered() {
    let mut server = Server::start(config());
    for (payload, code) in [(&b"\x03\xe8bye"[..], Some(1000)), (b"", None), (b"\x0f\xa1", Some(4001))] {
        let (mut client, mut websocket) = server.pair().await;
        client.send(frame(FIN | CLOSE, payload)).await;
        assert_eq!(receive(&mut websocket).await, Ok(Incoming::Closed { code }));
        assert_eq!(receive(&mut websocket).await, Ok(Incoming::Closed { code: None }), "closed stays closed");
        websocket.queue("too late".into());
        let close = tokio::spawn(websocket.close(1001, "not sent", DEADLINE));
        let answer = client.frame().await;
        assert_eq!((answer.opcode, &answer.payload[..]), (CLOSE, payload));
        assert_eq!(client.rest().await, b"");
        drop(client);
        within("close", close).await.unwrap();
    }
}

#[tokio::test]
async fn a_vanished_peer_is_closed_without_a_code() {
    let mut server = Server::start(config());
    let (client, mut websocket) = server.pair().await;
    drop(client);
    assert_eq!(receive(&mut websocket).await, Ok(Incoming::Closed { code: None }));
    within("close", websocket.close(1000, "", DEADLINE)).await;
    // In the middle of a message.
    let mut socket = server.connect().await;
    within("send", socket.write_all(upgrade("/ws", "").as_bytes())).await.unwrap();
    let (mut websocket, _) = server.opened().await;
    within("send", socket.write_all(&frame(FIN | TEXT, b"half a message")[..9])).await.unwrap();
    within("shutdown", socket.shutdown()).await.unwrap();
    assert_eq!(collect(&mut websocket, 3).await.unwrap(), b"hal");
    assert_eq!(receive(&mut websocket).await, Ok(Incoming::Closed { code: None }));
    drop(RawClient::new(socket));
}
