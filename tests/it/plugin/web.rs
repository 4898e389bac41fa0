//! STOMP in WebSockets: what Web STOMP's clients rely on. Where TLS may make a difference, each test runs over `ws` and `wss`.

use tokio_tungstenite::tungstenite::Message;

use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::stomp::{Client, Frames};

/// A small limit before login, the usual one after it.
const SMALL_LOGIN: &str = "[stomp]\nlogin_frame_bytes_max = \"1KiB\"\nheader_line_bytes_max = \"1KiB\"\n";
const CONNECT: &str = "CONNECT\naccept-version:1.2\nlogin:guest\npasscode:guest\n\n\0";

/// A durable topic subscription with queue name, custom headers and a NUL in the body.
async fn publishes_and_receives(mut client: Client) {
    let name = unique("web");
    client.subscribe(&format!("id:sub\ndestination:/topic/{name}\ndurable:true\nack:auto")).await;
    let frame = format!("SEND\ndestination:/topic/{name}\nx-custom:a\nother:b\ncontent-length:3\n\na\0a\0");
    client.send_message(Message::Text(frame.into())).await;
    let message = client.message("a\0a").await;
    assert_eq!(message.header("destination"), Some(format!("/topic/{name}").as_str()));
    assert_eq!(message.header("content-length"), Some("3"));
    assert_eq!(message.header("x-custom"), Some("a"));
    assert_eq!(message.header("other"), Some("b"));
    assert_eq!(message.header("subscription"), Some("sub"));
    client.send("UNSUBSCRIBE\nid:sub\ndurable:true\nreceipt:gone\n\n").await;
    client.receipt("gone").await;
    client.disconnect().await;
}

#[tokio::test]
async fn a_client_publishes_and_receives() {
    let relay = Relay::start(Rabbit::shared());
    publishes_and_receives(relay.client().await).await;
    publishes_and_receives(relay.tls_client().await).await;
}

/// With `websocket.frames = "binary"` everything comes as binary messages; the client may send text.
#[tokio::test]
async fn everything_can_be_binary() {
    let relay = Relay::start_with(Rabbit::shared(), "websocket.frames = \"binary\"\n");
    let mut client = Client::open(&relay.ws).await.expecting(Frames::Binary);
    client.send_message(Message::Text(CONNECT.into())).await;
    client.expect("CONNECTED").await;
    publishes_and_receives(client).await;
}

/// Headers and body of a message that was published over AMQP.
#[tokio::test]
async fn what_is_published_over_amqp_arrives() {
    let rabbit = Rabbit::shared();
    let (admin, relay) = (rabbit.admin().await, Relay::start(rabbit));
    let name = unique("web");
    let mut client = relay.client().await;
    client.subscribe(&format!("id:0\ndestination:/queue/{name}")).await;
    let mut headers = lapin::types::FieldTable::default();
    headers.insert("x-string".into(), lapin::types::AMQPValue::LongString("value".into()));
    headers.insert("x-number".into(), lapin::types::AMQPValue::LongInt(-7));
    let properties =
        lapin::BasicProperties::default().with_content_type("text/plain".into()).with_headers(headers).with_priority(3);
    let publish = admin.channel.basic_publish("".into(), (&*name).into(), Default::default(), b"a\0a", properties);
    publish.await.expect("the message is written");
    let message = client.message("a\0a").await;
    let expected = [
        ("destination", &*format!("/queue/{name}")),
        ("content-type", "text/plain"),
        ("x-string", "value"),
        ("x-number", "-7"),
        ("priority", "3"),
    ];
    for (header, value) in expected {
        assert_eq!(message.header(header), Some(value));
    }
    client.disconnect().await;
    admin.delete(&name).await;
}

/// A refused login gets its ERROR, word for word; the client can then close.
#[tokio::test]
async fn a_refused_login_gets_its_error() {
    let relay = Relay::start_compatible(Rabbit::shared());
    for mut client in [Client::open(&relay.ws).await, Client::open_tls(&relay.wss, &relay.ca).await] {
        client.send("CONNECT\nlogin:uncorrect_$55\npasscode:nope\n\n").await;
        let error = client.error("Bad CONNECT").await;
        assert_eq!(error.body, "Access refused for user 'uncorrect_$55'");
        assert_eq!(client.close().await, 1000);
    }
}

/// A WebSocket may be opened and closed without STOMP, and the versions be offered in any order.
#[tokio::test]
async fn a_websocket_opens_and_closes() {
    let relay = Relay::start(Rabbit::shared());
    assert_eq!(Client::open(&relay.ws).await.close().await, 1000);
    assert_eq!(Client::open_tls(&relay.wss, &relay.ca).await.close().await, 1000);
    let offer = "v11.stomp, v10.stomp, v12.stomp";
    for mut client in
        [Client::open_offering(&relay.ws, offer).await, Client::open_tls_offering(&relay.wss, &relay.ca, offer).await]
    {
        client.send_bytes(CONNECT.as_bytes()).await;
        client.expect("CONNECTED").await;
        assert_eq!(client.close().await, 1000);
    }
}

/// DISCONNECT ends in the close code 1000.
#[tokio::test]
async fn disconnect_closes_with_1000() {
    let relay = Relay::start(Rabbit::shared());
    for mut client in [relay.client().await, relay.tls_client().await] {
        client.send("DISCONNECT\n\n").await;
        assert_eq!(client.closed().await.0, 1000);
    }
}

/// A missing exchange gets its ERROR first and the close after it.
#[tokio::test]
async fn the_error_comes_before_the_close() {
    let relay = Relay::start_compatible(Rabbit::shared());
    for mut client in [relay.client().await, relay.tls_client().await] {
        client.send("SUBSCRIBE\nid:0\ndestination:/exchange/doesnotexist\nreceipt:never\n\n").await;
        let text = client.raw().await;
        assert!(text.starts_with("ERROR\nmessage:not_found\n"), "{text}");
        assert!(text.ends_with("\n\nNOT_FOUND - no exchange 'doesnotexist' in vhost '/'\0\n"), "{text}");
        client.closed().await;
    }
}

/// A frame in many messages counts as one: a login passes, what grows beyond the limit closes with 1007.
#[tokio::test]
async fn frames_before_login_are_bounded_across_messages() {
    let relay = Relay::start_with(Rabbit::shared(), SMALL_LOGIN);
    let mut client = Client::open(&relay.ws).await;
    for piece in CONNECT.as_bytes().chunks(8) {
        client.send_bytes(piece).await;
    }
    client.expect("CONNECTED").await;
    client.disconnect().await;

    let endless = format!("SEND\ndestination:/queue/x\n\n{}", "x".repeat(2000));
    let complete = format!("CONNECT\nlogin:guest\npasscode:guest\nx:{}\n\n\0", "x".repeat(2000));
    for frame in [endless, complete] {
        let mut client = Client::open(&relay.ws).await;
        for piece in frame.as_bytes().chunks(200) {
            client.send_bytes(piece).await;
        }
        client.error("Malformed frame").await;
        assert_eq!(client.closed().await.0, 1007);
    }
}

/// One message over the limit before login closes with 1009.
#[tokio::test]
async fn messages_before_login_are_bounded() {
    let relay = Relay::start_with(Rabbit::shared(), SMALL_LOGIN);
    let mut client = Client::open(&relay.ws).await;
    client.send(&format!("CONNECT\nx:{}\n\n", "x".repeat(5000))).await;
    client.expect("ERROR").await;
    assert_eq!(client.closed().await.0, 1009);
}

/// After login the larger limit holds, for one message and for a frame in pieces.
#[tokio::test]
async fn the_larger_limit_holds_after_login() {
    let relay = Relay::start_with(Rabbit::shared(), SMALL_LOGIN);
    let mut client = relay.client().await;
    let destination = format!("/topic/{}", unique("limit"));
    client.subscribe(&format!("id:0\ndestination:{destination}")).await;
    let (short, long) = ("x".repeat(2000), "y".repeat(13_800));
    client.send(&format!("SEND\ndestination:{destination}\n\n{short}")).await;
    client.message(&short).await;
    for piece in format!("SEND\ndestination:{destination}\n\n{long}\0").as_bytes().chunks(3000) {
        client.send_bytes(piece).await;
    }
    client.message(&long).await;
}

/// Who does not log in in time is closed; who did stays.
#[tokio::test]
async fn a_login_takes_a_limited_time() {
    let relay = Relay::start_with(Rabbit::shared(), "session.login_timeout = \"400ms\"\n");
    let mut logged_in = relay.client().await;
    // Opened later, so that its end means that the time of the other is over too.
    let mut silent = Client::open(&relay.ws).await;
    silent.expect("ERROR").await;
    silent.closed().await;
    logged_in.send("BEGIN\ntransaction:t\nreceipt:r\n\n").await;
    logged_in.receipt("r").await;
    logged_in.disconnect().await;
}
