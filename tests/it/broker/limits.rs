//! RabbitMQ's own limits: each is told as what it is.

use super::*;
use crate::support::relay::Relay;
use crate::support::stomp::Client;
use stomp_relay::stomp::Command;

/// A virtual host and users on it, all of these names.
fn place(rabbit: &Rabbit, users: &[&str]) -> String {
    let vhost = unique("limits");
    rabbit.ctl(&["add_vhost", &vhost]);
    for user in users {
        rabbit.add_user(&format!("{vhost}-{user}"), "secret", &vhost, [".*", ".*", ".*"]);
    }
    vhost
}

fn remove(rabbit: &Rabbit, vhost: &str, users: &[&str]) {
    for user in users {
        rabbit.ctl(&["delete_user", &format!("{vhost}-{user}")]);
    }
    rabbit.ctl(&["delete_vhost", vhost]);
}

async fn is_refused(client: &mut Client, code: &str, close: u16) {
    let error = client.expect("ERROR").await;
    assert_eq!(error.header("error-code"), Some(code), "{error:?}");
    assert_eq!(client.closed().await.0, close);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_connected_gets_in_at_the_limit_on_connections_and_others_are_told() {
    let rabbit = Rabbit::shared();
    let vhost = place(rabbit, &["a", "b"]);
    let (a, b) = (format!("{vhost}-a"), format!("{vhost}-b"));
    let config = BrokerConfig { recheck: Duration::ZERO, ..config(&[rabbit.amqp_port()]) };
    let broker = Broker::new(config).expect("the configuration is fine");
    let login = |user: &str| {
        let (broker, vhost, credentials) = (broker.clone(), vhost.clone(), credentials(user, "secret"));
        async move { broker.login(&vhost, &credentials, &ClientLabel::default()).await }
    };
    let mut first = login(&a).await.expect("let in").0;
    first.execute(BrokerCommand::Publish(publish(1, "amq.topic", "k")));
    assert!(matches!(next(&mut first).await, BrokerEvent::Confirmed { .. }));
    rabbit.ctl(&["set_vhost_limits", "-p", &vhost, r#"{"max-connections": 2}"#]);
    eventually("both connections count, and no other one", || async {
        let of_vhost = rabbit.ctl(&["list_connections", "vhost"]);
        of_vhost.lines().filter(|line| *line == vhost).count() == 2
    })
    .await;
    let mut second = login(&a).await.expect("its password was judged").0;
    second.execute(BrokerCommand::Publish(publish(1, "amq.topic", "k")));
    assert!(matches!(next(&mut second).await, BrokerEvent::Confirmed { .. }));
    let failure = login(&b).await.err().expect("there is no connection for it");
    assert_eq!(failure.connection_limit(), Some("virtual host"), "{failure:?}");
    let wrong = login_error(&broker, &vhost, credentials(&a, "wrong")).await;
    assert_eq!(wrong, LoginFailure::AccessRefused);

    let relay = Relay::start(rabbit);
    let mut client = Client::open(&relay.ws).await;
    client.send(&format!("CONNECT\naccept-version:1.2\nhost:{vhost}\nlogin:{b}\npasscode:secret\n\n")).await;
    is_refused(&mut client, "broker.connection_limit", 1013).await;
    rabbit.ctl(&["change_password", &a, "other"]);
    assert_eq!(login(&a).await.err(), Some(LoginFailure::AccessRefused), "the check still asks");
    drop((first, second));
    remove(rabbit, &vhost, &["a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_limit_on_connections_is_told_when_another_one_is_needed() {
    let rabbit = Rabbit::shared();
    let vhost = place(rabbit, &["a"]);
    let user = format!("{vhost}-a");
    rabbit.ctl(&["set_user_limits", &user, r#"{"max-connections": 1}"#]);
    let relay = Relay::start(rabbit);
    let connect = format!("accept-version:1.2\nhost:{vhost}\nlogin:{user}\npasscode:secret");
    let mut client = relay.client_with(&connect).await;
    client.subscribe("id:1\ndestination:/topic/t").await;
    client.send("SEND\ndestination:/topic/t\nreceipt:r\n\nhello").await;
    is_refused(&mut client, "broker.connection_limit", 1013).await;
    drop(relay);
    remove(rabbit, &vhost, &["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_queues_is_told() {
    let rabbit = Rabbit::shared();
    let vhost = place(rabbit, &["a"]);
    rabbit.ctl(&["set_vhost_limits", "-p", &vhost, r#"{"max-queues": 0}"#]);
    let relay = Relay::start(rabbit);
    let connect = format!("accept-version:1.2\nhost:{vhost}\nlogin:{vhost}-a\npasscode:secret");
    for headers in ["", "x-max-length:5\n"] {
        let mut client = relay.client_with(&connect).await;
        client.send(&format!("SUBSCRIBE\nid:1\ndestination:/queue/q\n{headers}receipt:s\n\n")).await;
        is_refused(&mut client, "broker.queue_limit", 1013).await;
    }
    drop(relay);
    remove(rabbit, &vhost, &["a"]);
}

/// RabbitMQ counts before it declares, so that two at the same time may both be the last one.
#[tokio::test(flavor = "multi_thread")]
async fn two_that_make_queues_up_to_the_limit_get_what_they_were_told() {
    const QUEUES_MAX: usize = 20;
    let rabbit = Rabbit::shared();
    let vhost = place(rabbit, &["a"]);
    rabbit.ctl(&["set_vhost_limits", "-p", &vhost, &format!(r#"{{"max-queues": {QUEUES_MAX}}}"#)]);
    let relay = Relay::start(rabbit);
    let connect = format!("accept-version:1.2\nhost:{vhost}\nlogin:{vhost}-a\npasscode:secret");
    let maker = async |mut client: Client, name: &str| {
        let mut made = 0;
        loop {
            client.send(&format!("SUBSCRIBE\nid:{made}\ndestination:/queue/{name}-{made}\nreceipt:s\n\n")).await;
            match client.frame().await {
                frame if frame.command == Command::Receipt => made += 1,
                frame => {
                    assert_eq!(frame.header("error-code"), Some("broker.queue_limit"), "{frame:?}");
                    assert_eq!(client.closed().await.0, 1013);
                    return made;
                }
            }
            assert!(made <= QUEUES_MAX, "nobody met the limit");
        }
    };
    let (first, second) = (relay.client_with(&connect).await, relay.client_with(&connect).await);
    let (first, second) = tokio::join!(maker(first, "first"), maker(second, "second"));
    let there = rabbit.ctl(&["list_queues", "-p", &vhost, "--silent", "name"]).lines().count();
    assert_eq!(first + second, there, "each that was told of is there, and no other");
    assert!((QUEUES_MAX..=QUEUES_MAX + 1).contains(&there), "{there}");
    assert!(first > 0 && second > 0, "they were at it together: {first}, {second}");
    drop(relay);
    remove(rabbit, &vhost, &["a"]);
}

/// RabbitMQ ends the whole connection for one channel too many; those who have theirs go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_users_limit_on_channels_is_told_to_whom_it_concerns() {
    const CLIENTS_MAX: usize = 20;
    let rabbit = Rabbit::shared();
    let vhost = place(rabbit, &["a", "b"]);
    let user = format!("{vhost}-a");
    rabbit.ctl(&["set_user_limits", &user, r#"{"max-channels": 6}"#]);
    let relay = Relay::start(rabbit);
    let connect = format!("accept-version:1.2\nhost:{vhost}\nlogin:{user}\npasscode:secret");
    let mut working = Vec::new();
    let mut refused = loop {
        assert!(working.len() < CLIENTS_MAX, "nobody met the limit");
        let mut client = relay.client_with(&connect).await;
        // A queue of its own, and so a channel.
        let queue = format!("/queue/own-{}", working.len());
        client.send(&format!("SUBSCRIBE\nid:1\ndestination:{queue}\nreceipt:s\n\n")).await;
        match client.frame().await {
            frame if frame.command == Command::Receipt => working.push((client, queue)),
            frame => break (client, frame),
        }
    };
    assert_eq!(refused.1.header("error-code"), Some("broker.channel_limit"), "{:?}", refused.1);
    assert_eq!(refused.0.closed().await.0, 1013);
    assert!(working.len() >= 2, "only {} got in", working.len());
    let admin = rabbit.admin_of(&vhost, &format!("{vhost}-b"), "secret").await;
    for (client, queue) in &mut working {
        admin.send(&queue["/queue/".len()..], b"hello").await;
        client.message("hello").await;
    }
    drop((relay, working));
    remove(rabbit, &vhost, &["a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_on_messages_are_told() {
    let rabbit = tokio::task::block_in_place(|| Rabbit::start_with("max_message_size = 1000\n"));
    // RabbitMQ looks for late acknowledgements once a minute.
    let often = "application:set_env(rabbit, consumer_timeout, 1000), \
                 application:set_env(rabbit, channel_tick_interval, 500).";
    tokio::task::block_in_place(|| rabbit.ctl(&["eval", often]));
    let relay = Relay::start(&rabbit);
    let mut large = relay.client().await;
    large.send(&format!("SEND\ndestination:/topic/t\nreceipt:r\n\n{}", "x".repeat(2000))).await;
    is_refused(&mut large, "broker.message_limit", 1009).await;
    let mut lazy = relay.client().await;
    lazy.subscribe("id:1\ndestination:/queue/q\nack:client").await;
    lazy.send("SEND\ndestination:/queue/q\n\nhello").await;
    lazy.message("hello").await;
    is_refused(&mut lazy, "broker.consumer_timeout", 1008).await;
}

/// lapin agrees to frames of 8192 bytes and more only. Bodies are cut to what the broker takes; headers can't be.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_with_small_frames_is_served() {
    let rabbit = tokio::task::block_in_place(|| Rabbit::start_with("frame_max = 4096\n"));
    let relay = Relay::start(&rabbit);
    let mut client = relay.client().await;
    client.subscribe("id:1\ndestination:/queue/small").await;
    for bytes in [1, 4088, 4089, 8184, 8185, 100_000, 1_000_000] {
        let body = "x".repeat(bytes);
        client.send(&format!("SEND\ndestination:/queue/small\n\n{body}")).await;
        client.message(&body).await;
    }
    client.send(&format!("SEND\ndestination:/queue/small\nreceipt:r\nlarge:{}\n\nx", "x".repeat(5000))).await;
    assert_eq!(client.expect("ERROR").await.header("receipt-id"), Some("r"));
    client.closed().await;
    let mut other = relay.client().await;
    other.send("SEND\ndestination:/queue/small\nreceipt:r\n\nhello").await;
    other.receipt("r").await;
    other.disconnect().await;
}
