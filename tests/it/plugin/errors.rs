//! The ERRORs that clients compare word for word, and whether the connection lives on after them.

use lapin::ExchangeKind;

use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::stomp::Client;

/// The whole frame as the plugin writes it, with the relay's `error-code` behind the plugin's own headers.
fn frame(message: &str, code: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "ERROR\nmessage:{message}\ncontent-type:text/plain\nversion:1.0,1.1,1.2\nerror-code:{code}\n\
         content-length:{length}\n\n{body}\0\n"
    )
}

/// The connection is as good as new.
async fn is_usable(client: &mut Client) {
    let destination = format!("/topic/{}", unique("usable"));
    client.subscribe(&format!("id:usable\ndestination:{destination}")).await;
    client.send(&format!("SEND\ndestination:{destination}\n\nstill here")).await;
    client.message("still here").await;
    client.send("UNSUBSCRIBE\nid:usable\nreceipt:unsubscribed\n\n").await;
    client.receipt("unsubscribed").await;
}

/// A command that STOMP does not have, or that is the server's.
#[tokio::test]
async fn a_bad_command_is_refused_and_the_connection_stays() {
    let relay = Relay::start_compatible(Rabbit::shared());
    let mut client = relay.client().await;
    for command in ["WRONGCOMMAND", "MESSAGE", "send"] {
        client.send(&format!("{command}\ndestination:/exchange/amq.fanout\n\n")).await;
        let body = format!("Could not interpret command \"{command}\"\n");
        assert_eq!(client.raw().await, frame("Bad command", "frame.command", &body));
    }
    is_usable(&mut client).await;
}

#[tokio::test]
async fn bad_destinations_are_refused_and_the_connection_stays() {
    let relay = Relay::start_compatible(Rabbit::shared());
    let mut client = relay.client().await;
    let cases = [
        ("/queue/bah/baz", "'/bah/baz' is not a valid queue destination\n"),
        ("/queue", "'' is not a valid queue destination\n"),
        ("/topic/bah/baz", "'/bah/baz' is not a valid topic destination\n"),
        ("/topic", "'' is not a valid topic destination\n"),
        ("/exchange/bah/baz/boo", "'/bah/baz/boo' is not a valid exchange destination\n"),
        ("/exchange", "'' is not a valid exchange destination\n"),
        ("/exchange//foo", "'//foo' is not a valid exchange destination\n"),
    ];
    for (destination, body) in cases {
        for command in ["SEND", "SUBSCRIBE"] {
            client.send(&format!("{command}\ndestination:{destination}\n\n")).await;
            assert_eq!(client.raw().await, frame("Invalid destination", "destination.invalid", body));
        }
    }
    client.send("SEND\ndestination:/something/interesting\n\n").await;
    let body = "'/something/interesting' is not a valid destination.\nValid destination types are: \
                /temp-queue, /exchange, /topic, /queue, /amq/queue, /reply-queue/.\n";
    assert_eq!(client.raw().await, frame("Unknown destination", "destination.unknown", body));
    is_usable(&mut client).await;
}

#[tokio::test]
async fn missing_and_forbidden_headers_are_refused_and_the_connection_stays() {
    let relay = Relay::start_compatible(Rabbit::shared());
    let mut client = relay.client().await;
    let missing = |command: &str| format!("\"{command}\" must include a 'destination' header\n");
    let id_missing = "Header 'id' is required for durable subscriptions";
    let cases = [
        ("SEND\n\n", "Missing destination", "frame.header_missing", missing("SEND")),
        ("SUBSCRIBE\n\n", "Missing destination", "frame.header_missing", missing("SUBSCRIBE")),
        (
            "SEND\ndestination:/topic/a\nmessage-id:foo\n\n",
            "Invalid header",
            "frame.header",
            "'message-id' is not allowed on 'SEND'.\n".to_owned(),
        ),
        (
            "SUBSCRIBE\ndestination:/topic/a\ndurable:true\n\n",
            "Missing Header",
            "frame.header_missing",
            id_missing.into(),
        ),
        (
            "SUBSCRIBE\ndestination:/topic/a\npersistent:true\n\n",
            "Missing Header",
            "frame.header_missing",
            id_missing.into(),
        ),
    ];
    for (sent, message, code, body) in cases {
        client.send(sent).await;
        assert_eq!(client.raw().await, frame(message, code, &body), "{sent}");
    }
    is_usable(&mut client).await;
}

/// Two subscriptions of one id end the session in both modes, whether the queue is a topic's or durable.
#[tokio::test]
async fn a_repeated_subscription_id_ends_the_session() {
    let rabbit = Rabbit::shared();
    let name = unique("repeated");
    for relay in [Relay::start(rabbit), Relay::start_compatible(rabbit)] {
        for destination in [format!("/topic/{name}"), format!("/queue/{name}\npersistent:true")] {
            let mut client = relay.client().await;
            client.subscribe(&format!("id:1\ndestination:{destination}")).await;
            client.send(&format!("SUBSCRIBE\nid:1\ndestination:{destination}\n\n")).await;
            let error = client.error("Duplicated subscription identifier").await;
            let body = String::from_utf8_lossy(&error.body).into_owned();
            assert!(body.starts_with("A subscription identified by 'T_1' already exists."), "{body}");
            assert_eq!(client.closed().await.0, 1002);
        }
    }
    rabbit.admin().await.delete(&name).await;
}

/// What the broker refuses ends the session: `message` comes first, the body is the broker's own text, and no RECEIPT
/// follows.
#[tokio::test]
async fn a_missing_exchange_ends_the_session() {
    let rabbit = Rabbit::shared();
    let name = unique("missing");
    let body = format!("NOT_FOUND - no exchange '{name}' in vhost '/'");
    let relay = Relay::start_compatible(rabbit);
    for frame in ["SUBSCRIBE\nid:0", "SEND"] {
        let mut client = relay.client().await;
        client.send(&format!("{frame}\ndestination:/exchange/{name}/route\n\n")).await;
        let text = client.raw().await;
        assert!(text.starts_with("ERROR\nmessage:not_found\ncontent-type:text/plain\nversion:1.0,1.1,1.2\n"), "{text}");
        assert!(text.ends_with(&format!("\n\n{body}\0\n")), "{text}");
        client.closed().await;
    }
    let relay = Relay::start(rabbit);
    let mut client = relay.client().await;
    client.send(&format!("SUBSCRIBE\nid:0\ndestination:/exchange/{name}\nreceipt:never\n\n")).await;
    let error = client.error("not_found").await;
    assert_eq!(error.header("receipt-id"), Some("never"));
    assert!(error.body.starts_with(body.as_bytes()));
    client.closed().await;
}

/// The default mode closes after what the plugin forgives; the first line of the body is the plugin's.
#[tokio::test]
async fn every_error_closes_by_default() {
    let relay = Relay::start(Rabbit::shared());
    let cases = [
        ("WRONGCOMMAND\n\n", "Bad command", "Could not interpret command \"WRONGCOMMAND\"\n"),
        (
            "SEND\ndestination:/queue/bah/baz\n\n",
            "Invalid destination",
            "'/bah/baz' is not a valid queue destination\n",
        ),
        ("SUBSCRIBE\n\n", "Missing destination", "\"SUBSCRIBE\" must include a 'destination' header\n"),
        ("SEND\ndestination:a\nmessage-id:b\n\n", "Invalid header", "'message-id' is not allowed on 'SEND'.\n"),
    ];
    for (sent, message, body) in cases {
        let mut client = relay.client().await;
        client.send(sent).await;
        let error = client.error(message).await;
        assert!(error.body.starts_with(body.as_bytes()), "{error:?}");
        assert_eq!(client.closed().await.0, 1002);
    }
}

/// One session's error at the broker is its own: a session of the same login beside it notices nothing.
#[tokio::test]
async fn an_ended_session_takes_no_other_with_it() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let admin = rabbit.admin().await;
    let exchange = unique("neighbours");
    admin.exchange(&exchange, ExchangeKind::Direct).await;
    let mut neighbour = relay.client().await;
    neighbour.subscribe(&format!("id:0\ndestination:/exchange/{exchange}/k")).await;
    let mut client = relay.client().await;
    client.send(&format!("SEND\ndestination:/exchange/{}/k\n\n", unique("missing"))).await;
    client.error("not_found").await;
    client.closed().await;
    neighbour.send(&format!("SEND\ndestination:/exchange/{exchange}/k\nreceipt:r\n\nhello")).await;
    let mut seen = [neighbour.frame().await, neighbour.frame().await].map(|frame| frame.command.as_str().to_owned());
    seen.sort();
    assert_eq!(seen, ["MESSAGE", "RECEIPT"]);
}
