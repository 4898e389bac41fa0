//! A relay with rules before a real RabbitMQ that checks the logins: a further fence.

use crate::support::process::get;
use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;

fn rules(name: &str, compatibility: &str) -> String {
    format!(
        "[stomp]\ncompatibility = \"{compatibility}\"\n\n\
         [[rules]]\neffect = \"deny\"\nsend = [\"/queue/{name}-closed\"]\nsubscribe = [\"/topic/{name}.secret.**\"]\n\n\
         [[rules]]\nusers = [\"guest\"]\nsend = [\"/queue/{name}-*\", \"/topic/{name}.**\"]\n\
         subscribe = [\"/queue/{name}-*\", \"/topic/{name}.{{username}}.**\", \"/topic/{name}.news.*\"]\n\
         headers = [\"durable\"]\n"
    )
}

#[tokio::test]
async fn what_rules_allow_works_and_nothing_else() {
    let (rabbit, name) = (Rabbit::shared(), unique("rules"));
    let relay = Relay::start_with(rabbit, &rules(&name, "rabbitmq"));
    let mut client = relay.client().await;
    client.subscribe(&format!("id:0\ndestination:/topic/{name}.guest.#")).await;
    client.subscribe(&format!("id:1\ndestination:/topic/{name}.news.*")).await;
    client.subscribe(&format!("id:2\ndestination:/queue/{name}-a")).await;
    let denied = [
        format!("SUBSCRIBE\nid:9\ndestination:/topic/{name}.#"),
        format!("SUBSCRIBE\nid:9\ndestination:/topic/{name}.secret.a"),
        format!("SUBSCRIBE\nid:9\ndestination:/exchange/amq.topic/{name}.#"),
        "SUBSCRIBE\nid:9\ndestination:/exchange/amq.topic/#".to_owned(),
        format!("SUBSCRIBE\nid:9\ndestination:/queue/{name}.a"),
        format!("SUBSCRIBE\nid:9\ndestination:/queue/{name}-a\nx-max-length:1"),
        format!("SEND\ndestination:/queue/{name}-closed\n\nno"),
        format!("SEND\ndestination:/amq/queue/{name}-closed\n\nno"),
        format!("SEND\ndestination:{name}-closed\n\nno"),
        format!("SEND\ndestination:/queue/{name}-a\nCC:{name}-closed\n\nno"),
        format!("SEND\ndestination:/queue/{name}-a\nuser-id:guest\n\nno"),
    ];
    for (number, frame) in denied.iter().enumerate() {
        let (head, body) = frame.split_once("\n\n").unwrap_or((frame, ""));
        client.send(&format!("{head}\nreceipt:{number}\n\n{body}")).await;
        let error = client.error("access_refused").await;
        assert_eq!(error.header("error-code"), Some("auth.denied"), "{frame}");
        assert_eq!(error.header("receipt-id"), Some(number.to_string().as_str()), "{frame}");
    }
    for (destination, body) in [
        (format!("/topic/{name}.guest.deep.er"), "own"),
        (format!("/exchange/amq.topic/{name}.news.eu"), "news"),
        (format!("/amq/queue/{name}-a"), "queue"),
    ] {
        client.send(&format!("SEND\ndestination:{destination}\n\n{body}")).await;
        client.message(body).await;
    }
    // Nothing of what was denied has come to RabbitMQ.
    let queues = rabbit.ctl(&["list_queues", "name", "--silent"]);
    assert!(queues.contains(&format!("{name}-a")) && !queues.contains(&format!("{name}-closed")), "{queues}");
    let metrics = get(relay.admin, "/metrics").await.body;
    for (command, count) in [("SEND", 5), ("SUBSCRIBE", 6)] {
        let line = format!("stomp_relay_authz_denied_total{{command=\"{command}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line} not in {metrics}");
    }
    client.disconnect().await;
    rabbit.ctl(&["delete_queue", &format!("{name}-a")]);
}

#[tokio::test]
async fn a_denial_ends_a_strict_session_and_no_other() {
    let (rabbit, name) = (Rabbit::shared(), unique("rules"));
    let relay = Relay::start_with(rabbit, &rules(&name, "strict"));
    let (mut bystander, mut client) = (relay.client().await, relay.client().await);
    bystander.subscribe(&format!("id:0\ndestination:/topic/{name}.news.*")).await;
    client.send("SUBSCRIBE\nid:0\ndestination:/topic/#\n\n").await;
    let error = client.error("access_refused").await;
    assert!(String::from_utf8_lossy(&error.body).starts_with("SUBSCRIBE '/topic/#': user 'guest' may not"));
    assert_eq!(client.closed().await, (1008, "auth.denied: access_refused".to_owned()));
    bystander.send(&format!("SEND\ndestination:/topic/{name}.news.a\n\nhere")).await;
    bystander.message("here").await;
    bystander.disconnect().await;
}

#[tokio::test]
async fn rabbitmq_still_has_its_say() {
    let (rabbit, name) = (Rabbit::shared(), unique("rules"));
    rabbit.add_user(&name, "secret", "/", ["^$", "^$", "^$"]);
    let relay = Relay::start_with(rabbit, "[[rules]]\nsend = [\"**\"]\nsubscribe = [\"**\"]\n");
    let mut client = relay.client_with(&format!("accept-version:1.2\nhost:/\nlogin:{name}\npasscode:secret")).await;
    client.send("SEND\ndestination:/topic/a\nreceipt:r\n\nno").await;
    let error = client.error("access_refused").await;
    assert_eq!(error.header("error-code"), Some("broker.access_refused"));
    assert_eq!(client.closed().await.0, 1008);
    rabbit.ctl(&["delete_user", &name]);
}
