//! CONNECT and DISCONNECT: versions, credentials, and what a refused login reads like.

use crate::support::rabbit::Rabbit;
use crate::support::relay::Relay;
use crate::support::stomp::Client;

/// Sends CONNECT with these headers and gives the ERROR's `message` and body.
async fn refused(client: &mut Client, headers: &str) -> (String, String) {
    client.send(&format!("CONNECT\n{headers}\n\n")).await;
    let error = client.expect("ERROR").await;
    assert_eq!(error.header("content-type"), Some("text/plain"));
    assert_eq!(error.header("version"), Some("1.0,1.1,1.2"));
    let message = error.header("message").expect("every ERROR has one").to_owned();
    (message, String::from_utf8_lossy(&error.body).into_owned())
}

/// The highest version that both know is taken, 1.0 where the client names none.
#[tokio::test]
async fn the_version_is_negotiated() {
    let relay = Relay::start(Rabbit::shared());
    let offers = [
        ("accept-version:1.0\n", "1.0"),
        ("accept-version:1.1\n", "1.1"),
        ("accept-version:1.2\n", "1.2"),
        ("", "1.0"),
        ("accept-version:1.0,1.1,1.2\n", "1.2"),
        ("accept-version:1.1,100.1\n", "1.1"),
    ];
    for (offer, version) in offers {
        for command in ["CONNECT", "STOMP"] {
            let mut client = Client::open(&relay.ws).await;
            client.send(&format!("{command}\n{offer}host:/\nlogin:guest\npasscode:guest\n\n")).await;
            assert_eq!(client.expect("CONNECTED").await.header("version"), Some(version), "{command} {offer}");
            client.disconnect().await;
        }
    }
}

/// The plugin's literal texts, and the client may try again on the same connection.
#[tokio::test]
async fn refused_logins_read_as_the_plugins_do_and_may_be_repeated() {
    let relay = Relay::start_with(Rabbit::shared(), "stomp.compatibility = \"rabbitmq\"\nauth.attempts_max = 5\n");
    let mut client = Client::open(&relay.ws).await;
    let cases = [
        (
            "accept-version:100.1\nlogin:guest\npasscode:guest",
            "Version mismatch",
            "Supported versions are 1.0,1.1,1.2\n",
        ),
        ("login:gust\npasscode:guest", "Bad CONNECT", "Access refused for user 'gust'"),
        ("login:guest\npasscode:wrong", "Bad CONNECT", "Access refused for user 'guest'"),
        ("login:guest\npasscode:guest\nhost://", "Bad CONNECT", "Virtual host '//' access denied"),
    ];
    for (headers, message, body) in cases {
        assert_eq!(refused(&mut client, headers).await, (message.to_owned(), body.to_owned()));
    }
    client.send("CONNECT\nlogin:guest\npasscode:guest\nhost:/\n\n").await;
    client.expect("CONNECTED").await;
    client.disconnect().await;
}

/// By default a refused login says the same first, then what to do, and the connection closes.
#[tokio::test]
async fn a_refused_login_closes_by_default() {
    let relay = Relay::start(Rabbit::shared());
    let cases = [
        ("accept-version:100.1", "Supported versions are 1.0,1.1,1.2\n", 1002),
        ("login:gust\npasscode:guest", "Access refused for user 'gust'\n", 1008),
        ("login:guest\npasscode:wrong", "Access refused for user 'guest'\n", 1008),
        ("login:guest\npasscode:guest\nhost://", "Virtual host '//' access denied\n", 1008),
    ];
    for (headers, body, code) in cases {
        let mut client = Client::open(&relay.ws).await;
        let (_, text) = refused(&mut client, headers).await;
        assert!(text.starts_with(body) && text.len() > body.len(), "{text}");
        assert_eq!(client.closed().await.0, code, "{headers}");
    }
}

/// The default login stands in for a missing `login`, the default passcode for a missing `passcode`.
#[tokio::test]
async fn the_default_login_is_used_where_none_is_given() {
    let defaults = "auth.default_login = \"guest\"\nauth.default_passcode = \"guest\"\n";
    let relay = Relay::start_with(Rabbit::shared(), defaults);
    for headers in ["accept-version:1.2", "login:guest", "passcode:guest", "login:guest\npasscode:guest"] {
        relay.client_with(headers).await.disconnect().await;
    }
    for headers in ["passcode:wrong", "login:guest\npasscode:wrong", "login:uncorrect"] {
        let mut client = Client::open(&relay.ws).await;
        assert_eq!(refused(&mut client, headers).await.0, "Bad CONNECT", "{headers}");
    }
}

/// Without a default a CONNECT must bring both credentials.
#[tokio::test]
async fn without_a_default_login_credentials_are_required() {
    let relay = Relay::start(Rabbit::shared());
    for headers in ["accept-version:1.2", "login:guest", "passcode:guest"] {
        let mut client = Client::open(&relay.ws).await;
        let (message, body) = refused(&mut client, headers).await;
        assert_eq!(message, "Bad CONNECT");
        assert!(body.starts_with("Missing login or passcode header(s)\n"), "{body}");
        assert_eq!(client.closed().await.0, 1008);
    }
    relay.client_with("login:guest\npasscode:guest").await.disconnect().await;
}

/// DISCONNECT with a receipt is answered before the connection closes; without one it just closes.
#[tokio::test]
async fn disconnect_closes_normally() {
    let relay = Relay::start(Rabbit::shared());
    relay.client().await.disconnect().await;
    let mut client = relay.client().await;
    client.send("DISCONNECT\n\n").await;
    assert_eq!(client.closed().await.0, 1000);
}
