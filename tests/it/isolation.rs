//! What a STOMP client can say that would make RabbitMQ, or lapin, close the AMQP connection that all sessions of a login
//! share: every such input is answered to its own client, and the neighbours on both links notice nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::stomp::{Client, Received};

/// Messages that the neighbour gets at least.
const MESSAGES: usize = 1000;

/// RabbitMQ 3.10 answers a publish to such a key by an error of the whole connection (541).
const REPLY_KEY: &str = "amq.rabbitmq.reply-to.AAAA.AAAA";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Which of them is RabbitMQ's to say, by its version.
    Either,
    /// An ERROR, from the relay or from the broker.
    Error,
    Receipt,
}

use Answer::{Either, Error, Receipt};

/// Frames of one client; the last one is answered.
struct Row {
    what: String,
    frames: Vec<Vec<u8>>,
    /// In strict mode.
    answer: Answer,
}

fn row(what: impl Into<String>, answer: Answer, frames: &[String]) -> Row {
    let frames = frames.iter().map(|frame| [frame.as_bytes(), b"\0"].concat()).collect();
    Row { what: what.into(), frames, answer }
}

fn send(headers: &str) -> String {
    format!("SEND\n{headers}\nreceipt:r\n\nhello")
}

fn subscribe(headers: &str) -> String {
    format!("SUBSCRIBE\nid:s\n{headers}\nreceipt:r\n\n")
}

/// A SEND with these headers beside the destination.
fn property(headers: &str, answer: Answer) -> Row {
    let frame = send(&format!("destination:/exchange/amq.topic/nobody\n{headers}"));
    row(format!("SEND with {}", brief(headers)), answer, &[frame])
}

fn send_to(destination: &str, answer: Answer) -> Row {
    row(format!("SEND to {}", brief(destination)), answer, &[send(&format!("destination:{destination}"))])
}

/// A SUBSCRIBE to a queue of its own with these headers.
fn argument(name: &str, headers: &str, answer: Answer) -> Row {
    let frame = subscribe(&format!("destination:/topic/{name}\n{headers}"));
    row(format!("SUBSCRIBE with {}", brief(headers)), answer, &[frame])
}

fn subscribe_to(destination: &str, answer: Answer) -> Row {
    row(format!("SUBSCRIBE to {}", brief(destination)), answer, &[subscribe(&format!("destination:{destination}"))])
}

fn brief(text: &str) -> String {
    text.chars().take(60).collect::<String>().replace('\n', " ")
}

fn sends(name: &str) -> Vec<Row> {
    let mut rows = vec![
        send_to("/exchange/no such exchange/k", Error),
        send_to(&format!("/exchange/{}/k", "x".repeat(255)), Error),
        send_to(&format!("/exchange/{}/k", "x".repeat(256)), Error),
        send_to(&format!("/exchange/amq.topic/{}", "k".repeat(255)), Receipt),
        send_to(&format!("/exchange/amq.topic/{}", "k".repeat(256)), Error),
        send_to(&format!("/exchange/amq.topic/{}", "é".repeat(128)), Error),
        send_to(&format!("/queue/{}", "q".repeat(256)), Error),
        send_to(&format!("/topic/{}", "t".repeat(256)), Error),
        send_to("/exchange/amq.topic/a%00b", Error),
        send_to("/exchange/amq.topic/a%0Ab", Error),
        send_to("/exchange/amq.topic/a%FFb", Error),
        send_to("/exchange/amq.rabbitmq.trace/k", Error),
        send_to("/exchange/%61mq.rabbitmq.trace/k", Error),
        property("expiration:abc", Error),
        property("expiration:-1", Error),
        property("expiration:1.5", Error),
        property("expiration:", Error),
        property("expiration:1000ms", Error),
        property("expiration:12345678901234567890", Error),
        property("expiration:4294967295", Receipt),
        property("priority:255", Receipt),
        property("priority:256", Error),
        property("priority:-1", Error),
        property("priority:high", Error),
        property("user-id:somebody else", Error),
        property("user-id:", Error),
        property("timestamp:18446744073709551615", Receipt),
        property("timestamp:18446744073709551616", Error),
        property("timestamp:now", Error),
        property("reply-to:amq.rabbitmq.reply-to", Error),
        property(&format!("reply-to:/queue/{REPLY_KEY}"), Error),
        property("CC:a,b,,c", Receipt),
        property("x-death:1", Receipt),
        property("x-delay:1\nx-match:all\nx-received-from:me\nx-stream-offset:1", Receipt),
        property(&format!("{}:1", "n".repeat(255)), Receipt),
        property(&format!("{}:1", "n".repeat(256)), Error),
        property(&large_headers(6, 10_000), Receipt),
        property(&large_headers(7, 10_000), Error),
        property(&large_headers(13, 10_000), Error),
        property(&large_headers(90, 10_000), Error),
        property("mandatory:true", Error),
    ];
    for header in
        ["amqp-message-id", "app-id", "content-encoding", "content-type", "correlation-id", "reply-to", "type"]
    {
        rows.push(property(&format!("{header}:{}", "v".repeat(255)), Receipt));
        rows.push(property(&format!("{header}:{}", "v".repeat(256)), Error));
    }
    // RabbitMQ cuts the text of an exception at 255 bytes, which may be within a character.
    for first in ["", "a"] {
        rows.push(send_to(&format!("/exchange/{first}{}/k", "é".repeat(120)), Error));
    }
    for prefix in ["/queue/", "/amq/queue/", "/reply-queue/", "", "/exchange//"] {
        rows.push(send_to(&format!("{prefix}{REPLY_KEY}"), Error));
        rows.push(send_to(&format!("{prefix}{}", REPLY_KEY.replacen('a', "%61", 1)), Error));
    }
    for header in ["CC", "BCC"] {
        let copy = format!("destination:/amq/queue/{name}\n{header}:other, {REPLY_KEY}");
        rows.push(row(format!("SEND with {header} to a reply queue"), Error, &[send(&copy)]));
    }
    let mut not_utf8 = send("destination:/topic/x\nh:value").into_bytes();
    let at = not_utf8.iter().position(|byte| *byte == b'v').expect("it is there");
    not_utf8[at] = 0xE9;
    not_utf8.push(0);
    rows.push(Row { what: "SEND with a header that is not UTF-8".into(), frames: vec![not_utf8], answer: Error });
    rows
}

/// So many headers of so many bytes each.
fn large_headers(count: usize, bytes: usize) -> String {
    let lines = (0..count).map(|number| format!("large-{number}:{}", "v".repeat(bytes)));
    lines.collect::<Vec<_>>().join("\n")
}

fn subscribes(name: &str) -> Vec<Row> {
    let stream = format!("destination:/queue/{name}-stream\nx-queue-type:stream\ndurable:true\nauto-delete:false");
    let in_stream = |offset: &str, answer| {
        let frame = subscribe(&format!("{stream}\nexclusive:false\nack:client\nx-stream-offset:{offset}"));
        row(format!("SUBSCRIBE at {offset} of a stream"), answer, &[frame])
    };
    let bindings = (0..40).map(|n| format!("x-bind-{n}:{}", "v".repeat(9_000))).collect::<Vec<_>>().join("\n");
    let twice = subscribe(&format!("destination:/topic/{name}"));
    let mut rows = vec![
        row("SUBSCRIBE twice with the same id", Error, &[twice.replace("receipt:r\n", ""), twice]),
        row(
            "SUBSCRIBE with a long id",
            Receipt,
            &[subscribe("destination:/topic/x").replace(":s", &"i".repeat(999).replacen('i', ":", 1))],
        ),
        subscribe_to("/amq/queue/no such queue", Error),
        subscribe_to(&format!("/amq/queue/{}", "q".repeat(256)), Error),
        subscribe_to(&format!("/amq/queue/{}", "é".repeat(120)), Error),
        subscribe_to(&format!("/amq/queue/a{}", "é".repeat(120)), Error),
        subscribe_to("/queue/amq.rabbitmq.reply-to", Error),
        subscribe_to("/amq/queue/amq.rabbitmq.reply-to", Error),
        subscribe_to("/queue/amq.reserved", Error),
        subscribe_to("/exchange/no such exchange/k", Error),
        subscribe_to(&format!("/exchange/{}/k", "é".repeat(120)), Error),
        subscribe_to(&format!("/exchange/a{}/k", "é".repeat(120)), Error),
        subscribe_to("/exchange//k", Error),
        subscribe_to("/exchange/amq.rabbitmq.trace/#", Error),
        subscribe_to(&format!("/topic/{}", "k".repeat(256)), Error),
        subscribe_to(&format!("/topic/{}", "#.".repeat(100)), Receipt),
        row(
            "SUBSCRIBE to a headers exchange with a bad x-match",
            Error,
            &[subscribe("destination:/exchange/amq.headers/k\nx-bind-x-match:bogus")],
        ),
        row(
            "SUBSCRIBE with more binding arguments than a frame holds",
            Error,
            &[subscribe(&format!("destination:/exchange/amq.headers/k\n{bindings}"))],
        ),
        in_stream("bogus", Error),
        in_stream("offset=-1", Error),
        in_stream("offset=18446744073709551615", Error),
        in_stream("timestamp=yesterday", Error),
        in_stream("first", Receipt),
    ];
    for arguments in [
        "x-priority:high",
        "x-priority:1.5",
        "x-priority:99999999999",
        "prefetch-count:-1",
        "prefetch-count:many",
        "x-queue-name:amq.reserved",
        "x-queue-name:amq.rabbitmq.reply-to",
        "x-message-ttl:soon",
        "x-message-ttl:-1",
        "x-message-ttl:99999999999999",
        "x-expires:0",
        "x-max-length:-1",
        "x-max-length:much",
        "x-max-length-bytes:true",
        "x-overflow:bogus",
        "x-max-priority:256",
        "x-queue-type:bogus",
        "x-queue-mode:bogus",
        "x-dead-letter-routing-key:k",
        "x-single-active-consumer:perhaps",
        "x-queue-type:quorum\ndurable:true\nexclusive:true",
        "x-queue-type:quorum\ndurable:true\nauto-delete:true",
        "x-queue-type:stream\nx-message-ttl:1000\ndurable:true",
        "x-stream-filter:a\nx-stream-offset:bogus",
        "durable:perhaps",
        "auto-delete:perhaps",
    ] {
        rows.push(argument(name, arguments, Error));
    }
    rows.push(argument(name, &format!("x-queue-name:{}", "q".repeat(256)), Error));
    let dead_letters = format!("x-dead-letter-exchange:\nx-dead-letter-routing-key:{REPLY_KEY}\nx-message-ttl:1");
    rows.push(argument(name, &dead_letters, Error));
    for arguments in ["x-credit:bogus", "x-cancel-on-ha-failover:bogus", "prefetch-count:99999999", "x-priority:-5"] {
        rows.push(argument(name, arguments, Receipt));
    }
    rows
}

fn others(name: &str) -> Vec<Row> {
    let begin = |id: &str| format!("BEGIN\ntransaction:{id}\nreceipt:r\n\n");
    let quiet = |frame: String| frame.replace("receipt:r\n", "");
    let gone = format!("SUBSCRIBE\nid:a\nack:client\ndestination:/topic/{name}\n\n");
    vec![
        row("ACK of an unknown id", Error, &["ACK\nid:unknown\nreceipt:r\n\n".into()]),
        row("NACK of tag 0", Error, &[gone, "NACK\nid:0\nreceipt:r\n\n".into()]),
        row("COMMIT without BEGIN", Error, &["COMMIT\ntransaction:t\nreceipt:r\n\n".into()]),
        row("BEGIN twice", Error, &[quiet(begin("t")), begin("t")]),
        row(
            "COMMIT of a refused SEND",
            Error,
            &[
                quiet(begin("t")),
                quiet(send("destination:/exchange/no such exchange/k\ntransaction:t")),
                "COMMIT\ntransaction:t\nreceipt:r\n\n".into(),
            ],
        ),
        row("an unknown command", Error, &["PUBLISH\nreceipt:r\n\n".into()]),
    ]
}

/// Every argument that RabbitMQ knows, with values that some version of it might fail to read, or to use: the queue is declared,
/// published to and consumed.
fn arguments(name: &str) -> Vec<Row> {
    const NUMBERS: [&str; 12] = [
        "",
        "-1",
        "0",
        "1",
        "2",
        "256",
        "1000",
        "4294967296",
        "9223372036854775807",
        "9223372036854775808",
        "1.5",
        "x",
    ];
    const NUMBERED: [&str; 16] = [
        "x-consumer-timeout",
        "x-delivery-limit",
        "x-expires",
        "x-initial-cluster-size",
        "x-max-in-memory-bytes",
        "x-max-in-memory-length",
        "x-max-length",
        "x-max-length-bytes",
        "x-max-priority",
        "x-message-ttl",
        "x-queue-version",
        "x-quorum-initial-group-size",
        "x-quorum-target-group-size",
        "x-stream-filter-size-bytes",
        "x-stream-max-segment-size",
        "x-stream-max-segment-size-bytes",
    ];
    let long = "v".repeat(300);
    let words = [
        ("x-dead-letter-exchange", vec!["", "nope", "é", &long]),
        ("x-dead-letter-routing-key", vec!["", "k", &long]),
        ("x-dead-letter-strategy", vec!["", "bogus", "at-most-once", "at-least-once"]),
        ("x-max-age", vec!["", "s", "1", "5s", "05s", "0s", "-5s", "5S", "5ms", "h5", "99999999999999999999Y", "é"]),
        ("x-overflow", vec!["", "bogus", "drop-head", "reject-publish", "reject-publish-dlx"]),
        ("x-queue-leader-locator", vec!["", "bogus", "client-local", "balanced", "random", "least-leaders"]),
        ("x-queue-master-locator", vec!["", "bogus", "client-local", "min-masters", "random", "é"]),
        ("x-queue-mode", vec!["", "bogus", "default", "lazy"]),
        ("x-queue-type", vec!["", "bogus", "Classic", "rabbit_classic_queue", "rabbit_mqtt_qos0_queue"]),
        ("x-ha-policy", vec!["", "bogus", "all"]),
    ];
    let flags = ["x-single-active-consumer", "x-unclean-leader-promotion", "x-cancel-on-ha-failover"];
    // The second ones are the consumer's.
    let consumers = [
        (
            "x-stream-offset",
            vec!["", "bogus", "first", "offset=-1", "offset=99999999999999999999", "timestamp=-1", "5m"],
        ),
        ("x-stream-filter", vec!["", ",", "a,b", &long]),
        ("x-stream-match-unfiltered", vec!["", "perhaps", "true"]),
        ("x-priority", vec!["", "high", "-2147483648", "2147483648"]),
        ("x-credit", vec!["bogus"]),
    ];
    let numbered = NUMBERED.map(|argument| (argument, NUMBERS.to_vec()));
    let flags = flags.map(|argument| (argument, vec!["", "perhaps", "true", "1"]));
    let all = numbered.into_iter().chain(words).chain(flags).chain(consumers);
    let all = all.flat_map(|(argument, values)| values.into_iter().map(move |value| (argument, value.to_owned())));
    let all = all.collect::<Vec<_>>();
    let mut rows = Vec::new();
    for kind in ["classic", "quorum", "stream"] {
        for (argument, value) in &all {
            let its_own = match *argument {
                "x-max-age" => "stream",
                argument if argument.starts_with("x-stream") => "stream",
                "x-delivery-limit" | "x-dead-letter-strategy" => "quorum",
                argument if argument.starts_with("x-quorum") || argument.starts_with("x-max-in") => "quorum",
                "x-queue-leader-locator" | "x-initial-cluster-size" => kind,
                _ => "classic",
            };
            // The others are refused, and making them takes RabbitMQ long.
            if kind != its_own {
                continue;
            }
            let queue = format!("{name}-{}", rows.len());
            let of_type = if *argument == "x-queue-type" { String::new() } else { format!("x-queue-type:{kind}\n") };
            let headers = format!("destination:/queue/{queue}\n{of_type}durable:true\n{argument}:{value}");
            let frames = [
                format!("SUBSCRIBE\nid:s\nack:client\nprefetch-count:10\n{headers}\n\n"),
                format!("SEND\n{headers}\n\nhello"),
                format!("SEND\n{headers}\nreceipt:r\n\nhello"),
            ];
            rows.push(row(format!("a {kind} queue with {argument}:{}", brief(value)), Either, &frames));
        }
    }
    rows
}

/// What the last frame of the row is answered by.
async fn answer(relay: &Relay, connect: &str, row: &Row) -> Option<Answer> {
    let mut client = relay.client_with(connect).await;
    for frame in &row.frames {
        client.send_bytes(frame).await;
    }
    loop {
        match client.receive().await {
            Received::Close(..) => return None,
            Received::Heartbeat => {}
            Received::Frame(frame) => match frame.command.as_str() {
                "ERROR" => return Some(Error),
                "RECEIPT" => return Some(Receipt),
                _ => {}
            },
        }
    }
}

/// Says numbers through the relay and hears all of them, until the rows are through and a thousand have come.
async fn converse(talker: &mut Client, listener: &mut Client, destination: &str, rows_are_through: &AtomicBool) {
    let mut number = 0;
    while number < MESSAGES || !rows_are_through.load(Ordering::Relaxed) {
        talker.send(&format!("SEND\ndestination:{destination}\nreceipt:{number}\n\n{number}")).await;
        let message = listener.message(&number.to_string()).await;
        assert_eq!(message.header("redelivered"), Some("false"));
        talker.receipt(&number.to_string()).await;
        number += 1;
    }
}

fn everything(name: &str) -> Vec<Row> {
    [sends(name), subscribes(name), others(name)].into_iter().flatten().collect()
}

async fn nobody_is_disturbed(
    settings: &str,
    rows: impl Fn(&str) -> Vec<Row>,
    fits: impl Fn(&Row, Option<Answer>) -> bool,
) {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let (user, name) = (unique("user"), unique("isolation"));
    rabbit.add_user(&user, "secret", "/", [".*", ".*", ".*"]);
    let relay = Relay::start_with(rabbit, settings);
    let connect = format!("accept-version:1.2\nhost:/\nlogin:{user}\npasscode:secret");
    let destination = format!("/topic/{name}.neighbours");
    let (mut talker, mut listener) = (relay.client_with(&connect).await, relay.client_with(&connect).await);
    listener.subscribe(&format!("id:0\ndestination:{destination}\nack:client-individual\nprefetch-count:60000")).await;
    talker.send(&format!("SEND\ndestination:{destination}\nreceipt:first\n\nfirst")).await;
    talker.receipt("first").await;
    listener.message("first").await;
    let before = rabbit.links_of(&user);
    assert_eq!(before.len(), 2, "one link to publish, one to consume");

    let through = AtomicBool::new(false);
    let mut misfits = Vec::new();
    let rows = rows(&name);
    let rows = async {
        for row in rows {
            let answer = answer(&relay, &connect, &row).await;
            if !fits(&row, answer) {
                misfits.push(format!("{}: {answer:?} instead of {:?}", row.what, row.answer));
            }
        }
        through.store(true, Ordering::Relaxed);
    };
    tokio::join!(rows, converse(&mut talker, &mut listener, &destination, &through));
    assert_eq!(rabbit.links_of(&user), before, "the links are the same as before");
    assert!(misfits.is_empty(), "{misfits:#?}");
    let all = rabbit.ctl(&["list_queues", "--no-table-headers", "name"]);
    for queue in all.lines().filter(|queue| queue.starts_with(&name)) {
        admin.channel.queue_delete(queue.into(), Default::default()).await.expect("deleted, or not there");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_client_says_concerns_itself_alone() {
    let settings = "[stomp]\ndestination_decoding = \"full\"\n";
    nobody_is_disturbed(settings, everything, |row, answer| answer == Some(row.answer)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_arguments_a_client_gives_its_queue_concern_itself_alone() {
    nobody_is_disturbed("", arguments, |_, answer| answer.is_some()).await;
}

/// The plugin takes some of it for something else; that nobody is disturbed holds all the same.
#[tokio::test(flavor = "multi_thread")]
async fn so_it_is_in_compatibility_mode() {
    let settings = "[stomp]\ncompatibility = \"rabbitmq\"\n";
    nobody_is_disturbed(settings, everything, |_, answer| answer.is_some()).await;
}
