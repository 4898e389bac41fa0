//! Frames byte for byte: what the relay takes beyond the letter of STOMP, and what exactly it writes.

use lapin::ExchangeKind;
use tokio_tungstenite::tungstenite::Message;

use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::stomp::Client;

/// A STOMP 1.0 client and the session that CONNECTED named. 1.0 writes no `subscription` and no `ack`.
async fn plain_client(relay: &Relay) -> (Client, String) {
    let mut client = Client::open(&relay.ws).await;
    client.send("CONNECT\nlogin:guest\npasscode:guest\n\n").await;
    let connected = client.expect("CONNECTED").await;
    assert_eq!(connected.header("version"), Some("1.0"));
    let session = connected.header("session").expect("every session has a name").to_owned();
    (client, session)
}

/// A fanout exchange of the test's own, so that no other test's messages come through it.
async fn fanout(rabbit: &Rabbit) -> (crate::support::rabbit::Admin, String) {
    let admin = rabbit.admin().await;
    let name = unique("fanout");
    admin.exchange(&name, ExchangeKind::Fanout).await;
    (admin, name)
}

/// CONNECTED, RECEIPT: names, values and their order.
#[tokio::test]
async fn connected_and_receipt_stand_in_the_order_of_the_plugin() {
    let relay = Relay::start_compatible(Rabbit::shared());
    let mut client = Client::open(&relay.ws).await;
    client.send("CONNECT\naccept-version:1.1,1.2\nlogin:guest\npasscode:guest\nheart-beat:0,0\n\n").await;
    let text = client.raw().await;
    let lines = text.lines().collect::<Vec<_>>();
    assert_eq!(lines[0], "CONNECTED");
    assert!(lines[1].starts_with("server:RabbitMQ/"), "{text}");
    let session = lines[2].strip_prefix("session:session-").expect("the third line");
    // 16 bytes in base64url without padding.
    assert_eq!(session.len(), 22, "{session}");
    assert_eq!(lines[3..], ["heart-beat:0,0", "version:1.2", "", "\0"]);
    client.send("BEGIN\ntransaction:t\nreceipt:a\\cb\n\n").await;
    assert_eq!(client.raw().await, "RECEIPT\nreceipt-id:a\\cb\n\n\0\n");
}

/// Line feeds and NULs between frames are passed over; MESSAGE has the plugin's headers in the plugin's order.
#[tokio::test]
async fn line_feeds_and_nuls_between_frames_are_passed_over() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start_compatible(rabbit);
    for lead in ["\n", "\n\0", "\r\n\0\0\n"] {
        let (_admin, exchange) = fanout(rabbit).await;
        let (mut client, session) = plain_client(&relay).await;
        let frames = format!(
            "{lead}SUBSCRIBE\ndestination:/exchange/{exchange}\n\n\0\n\
             {lead}SEND\ncontent-type:text/plain\ndestination:/exchange/{exchange}\n\nhello\n\0\n"
        );
        client.send_bytes(frames.as_bytes()).await;
        let expected = format!(
            "MESSAGE\ndestination:/exchange/{exchange}\nmessage-id:Q_/exchange/{exchange}@@{session}@@1\n\
             redelivered:false\ncontent-type:text/plain\ncontent-length:6\n\nhello\n\0\n"
        );
        assert_eq!(client.raw().await, expected);
        client.disconnect().await;
    }
}

/// Without `content-type` none is invented, with `content-length` or without.
#[tokio::test]
async fn no_content_type_is_invented() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start_compatible(rabbit);
    let (_admin, exchange) = fanout(rabbit).await;
    let (mut client, session) = plain_client(&relay).await;
    client.send(&format!("SUBSCRIBE\ndestination:/exchange/{exchange}\n\n")).await;
    for (number, length) in ["", "content-length:6\n"].into_iter().enumerate() {
        client.send(&format!("SEND\ndestination:/exchange/{exchange}\n{length}\nhello\n")).await;
        let expected = format!(
            "MESSAGE\ndestination:/exchange/{exchange}\nmessage-id:Q_/exchange/{exchange}@@{session}@@{}\n\
             redelivered:false\ncontent-length:6\n\nhello\n\0\n",
            number + 1
        );
        assert_eq!(client.raw().await, expected);
    }
}

/// All properties come back, in the plugin's order, which is not that of the SEND.
#[tokio::test]
async fn message_headers_stand_in_the_order_of_the_plugin() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start_compatible(rabbit);
    let name = unique("order");
    let mut client = Client::open(&relay.ws).await;
    client.send("CONNECT\naccept-version:1.2\nlogin:guest\npasscode:guest\n\n").await;
    let connected = client.expect("CONNECTED").await;
    let session = connected.header("session").expect("every session has a name");
    client.subscribe(&format!("id:s\ndestination:/queue/{name}\nack:client")).await;
    client
        .send(&format!(
            "SEND\ndestination:/queue/{name}\ncontent-type:t/p\ncontent-encoding:e\npersistent:true\npriority:4\n\
             correlation-id:c\nreply-to:/queue/r\nexpiration:60000\namqp-message-id:m\ntimestamp:17\ntype:ty\n\
             user-id:guest\napp-id:a\nxyz:1\nabc:2\n\nb"
        ))
        .await;
    let id = format!("T_s@@{session}@@1");
    let expected = format!(
        "MESSAGE\nsubscription:s\ndestination:/queue/{name}\nmessage-id:{id}\nredelivered:false\nack:{id}\nabc:2\nxyz:1\n\
         app-id:a\nuser-id:guest\ntype:ty\ntimestamp:17\namqp-message-id:m\nexpiration:60000\nreply-to:/queue/r\n\
         correlation-id:c\npriority:4\npersistent:true\ncontent-encoding:e\ncontent-type:t/p\ncontent-length:1\n\nb\0\n"
    );
    assert_eq!(client.raw().await, expected);
    client.disconnect().await;
    rabbit.admin().await.delete(&name).await;
}

/// UTF-8 in header names, values and bodies goes through unchanged.
#[tokio::test]
async fn unicode_goes_through() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let (_admin, exchange) = fanout(rabbit).await;
    let mut client = relay.client().await;
    client.subscribe(&format!("id:0\ndestination:/exchange/{exchange}")).await;
    client.send(&format!("SEND\ndestination:/exchange/{exchange}\nheaderé:headerval ß🐇\n\nκαλημέρα")).await;
    let message = client.message("καλημέρα").await;
    assert_eq!(message.header("headeré"), Some("headerval ß🐇"));
}

/// Escapes are resolved on the way in and written on the way out, also in the id that comes back with every message.
#[tokio::test]
async fn escapes_go_through() {
    let relay = Relay::start(Rabbit::shared());
    let mut client = relay.client().await;
    let destination = format!("/topic/{}", unique("escape"));
    client.subscribe(&format!("id:a\\cb\\nc\ndestination:{destination}\nack:client")).await;
    client.send(&format!("SEND\ndestination:{destination}\nx\\cy:1\\r\\n\\\\n\n\nhi")).await;
    let message = client.message("hi").await;
    assert_eq!(message.header("x:y"), Some("1\r\n\\n"));
    assert_eq!(message.header("subscription"), Some("a:b\nc"));
    let id = message.header("ack").expect("1.2").replace(':', "\\c").replace('\n', "\\n");
    client.send(&format!("ACK\nid:{id}\nreceipt:acked\n\n")).await;
    client.receipt("acked").await;
}

/// A body with NULs keeps them by its `content-length`, in a text message as in a binary one.
#[tokio::test]
async fn nuls_in_a_body_go_through() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let (_admin, exchange) = fanout(rabbit).await;
    let mut client = relay.client().await;
    client.subscribe(&format!("id:0\ndestination:/exchange/{exchange}")).await;
    let body = "\0mess\0age\0\0";
    let frame = format!("SEND\ndestination:/exchange/{exchange}\ncontent-length:{}\n\n{body}\0", body.len());
    client.send_bytes(frame.as_bytes()).await;
    client.message(body).await;
    client.send_message(Message::Text(frame.into())).await;
    client.message(body).await;
}

/// Bytes that are not UTF-8 arrive unchanged, in a binary message (the test's client insists on it).
#[tokio::test]
async fn a_body_of_any_bytes_goes_through() {
    let relay = Relay::start(Rabbit::shared());
    let mut client = relay.client().await;
    let destination = format!("/topic/{}", unique("bytes"));
    client.subscribe(&format!("id:0\ndestination:{destination}")).await;
    let body = (0..=255).collect::<Vec<u8>>();
    let mut frame = format!("SEND\ndestination:{destination}\ncontent-length:256\n\n").into_bytes();
    frame.extend_from_slice(&body);
    frame.push(0);
    client.send_bytes(&frame).await;
    let message = client.expect("MESSAGE").await;
    assert_eq!(message.body, body);
}

/// A frame may be cut into WebSocket messages anywhere.
#[tokio::test]
async fn a_frame_in_pieces_is_put_together() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let (_admin, exchange) = fanout(rabbit).await;
    let mut client = relay.client().await;
    client.subscribe(&format!("id:0\ndestination:/exchange/{exchange}")).await;
    let body = "message in packets ".repeat(100);
    let frame = format!("SEND\ndestination:/exchange/{exchange}\n\n{body}\0\n");
    for size in [191, 7] {
        for piece in frame.as_bytes().chunks(size) {
            client.send_bytes(piece).await;
        }
        client.message(&body).await;
    }
}

/// Two clients of an exchange's key both get a message; a header whose name begins with a blank is another header.
#[tokio::test]
async fn a_broadcast_reaches_every_client() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let key = unique("broadcast");
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = relay.client_of("1.0").await;
        client.subscribe(&format!("destination:/exchange/amq.topic/{key}\n id:blank")).await;
        clients.push(client);
    }
    clients[0].send(&format!("SEND\ndestination:/exchange/amq.topic/{key}\n\nhello")).await;
    for client in &mut clients {
        let message = client.message("hello").await;
        assert_eq!(message.header("destination"), Some(format!("/topic/{key}").as_str()));
        assert_eq!(message.header("subscription"), None);
    }
}
