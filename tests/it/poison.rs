//! Messages of other AMQP clients that lapin cannot take: each is put into a real broker by a raw publisher, and the relay's
//! subscriber gets it, body intact, while its neighbour on the same link notices nothing.

use crate::support::amqp::{Publisher, long, short};
use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::stomp::Client;

const CONTENT_TYPE: u16 = 1 << 15;
const CONTENT_ENCODING: u16 = 1 << 14;
const HEADERS: u16 = 1 << 13;
const CORRELATION_ID: u16 = 1 << 10;
const REPLY_TO: u16 = 1 << 9;
const MESSAGE_ID: u16 = 1 << 7;
const TYPE: u16 = 1 << 5;
const APP_ID: u16 = 1 << 3;
const CLUSTER_ID: u16 = 1 << 2;

/// Messages for the neighbour meanwhile.
const MESSAGES: usize = 1000;

struct Poison {
    what: &'static str,
    routing_key: Vec<u8>,
    properties: Vec<u8>,
    /// Headers of the MESSAGE, apart from those that any has. `None` must be missing.
    shown: Vec<(&'static str, Option<&'static str>)>,
}

/// A message with a header before the hostile field, one behind it, and a correlation id.
fn headers(what: &'static str, name: &[u8], value: &[u8]) -> Poison {
    let field = [&short(b"before")[..], b"S", &long(b"1")].concat();
    let table = [&field[..], &short(name), value, &short(b"after"), b"S", &long(b"1")].concat();
    let flags = HEADERS | CORRELATION_ID;
    Poison {
        what,
        routing_key: b"k".to_vec(),
        properties: [&flags.to_be_bytes()[..], &long(&table), &short(b"c-1")].concat(),
        shown: vec![("before", Some("1")), ("after", Some("1")), ("correlation-id", Some("c-1"))],
    }
}

/// Containers within each other; `kind` is `F` or `A`.
fn nested(kind: u8, levels: usize) -> Vec<u8> {
    let mut value = vec![kind, 0, 0, 0, 0];
    let name: &[u8] = if kind == b'F' { &[1, b'n'] } else { &[] };
    // From the innermost out, without copying the whole for each level.
    let per_level = name.len() + 5;
    for level in (0..levels - 1).rev() {
        let inner = ((levels - 1 - level) * per_level) as u32;
        value.splice(0..0, [&[kind][..], &inner.to_be_bytes(), name].concat());
    }
    value
}

fn poisons() -> Vec<Poison> {
    let texts = CONTENT_TYPE | CONTENT_ENCODING | CORRELATION_ID | REPLY_TO | MESSAGE_ID | TYPE | APP_ID | CLUSTER_ID;
    let bad_texts = (0..8).flat_map(|_| short(b"caf\xe9")).collect::<Vec<_>>();
    let bad_name_within = [&b"F"[..], &long(&[&short(b"\xfe\xff")[..], b"t\x01"].concat())].concat();
    // Several, as STOMP clients have limits for one.
    let more = |n: u8| [&short(&[b"large-", &[b'a' + n][..]].concat())[..], b"S", &long(&[b'x'; 8_000])].concat();
    let more = (0..14).flat_map(more);
    let large = [&b"S"[..], &long(&[b'x'; 8_000])].concat().into_iter().chain(more).collect::<Vec<_>>();
    let mut poisons = vec![
        headers("tables 33 deep", b"deep", &nested(b'F', 33)),
        headers("tables 1000 deep", b"deep", &nested(b'F', 1_000)),
        headers("tables 18000 deep", b"deep", &nested(b'F', 18_000)),
        headers("arrays 1000 deep", b"deep", &nested(b'A', 1_000)),
        headers("arrays 25000 deep", b"deep", &nested(b'A', 25_000)),
        Poison { shown: vec![("caf?", Some("x"))], ..headers("a header name", b"caf\xe9", b"S\x00\x00\x00\x01x") },
        headers("a header name within", b"within", &bad_name_within),
        headers("a long string that is not UTF-8", b"text", b"S\x00\x00\x00\x02\xff\xfe"),
        headers("a header table of 120 KB", b"large", &large),
        Poison {
            what: "a routing key",
            routing_key: b"caf\xe9".to_vec(),
            properties: CORRELATION_ID.to_be_bytes().into_iter().chain(short(b"c-1")).collect(),
            shown: vec![("correlation-id", Some("c-1"))],
        },
        Poison {
            what: "all text properties",
            routing_key: b"k".to_vec(),
            properties: [&texts.to_be_bytes()[..], &bad_texts].concat(),
            shown: ["content-type", "content-encoding", "correlation-id", "amqp-message-id", "type", "app-id"]
                .map(|name| (name, Some("caf?")))
                .to_vec(),
        },
        Poison {
            what: "all of it at once",
            routing_key: b"\xff\xff".to_vec(),
            ..headers("", b"\xff", &nested(b'F', 2_000))
        },
    ];
    // Every type that RabbitMQ knows (its binary parser), one message each; it refuses NaN.
    for (what, value) in [
        ("t", &b"t\x02"[..]),
        ("b", b"b\xff"),
        ("B", b"B\xff"),
        ("s", b"s\xff\xff"),
        ("u", b"u\xff\xff"),
        ("I", b"I\xff\xff\xff\xff"),
        ("i", b"i\xff\xff\xff\xff"),
        ("l", b"l\xff\xff\xff\xff\xff\xff\xff\xff"),
        ("L", b"L\xff\xff\xff\xff\xff\xff\xff\xff"),
        ("f", b"f\x7f\x7f\xff\xff"),
        ("d", b"d\x7f\xef\xff\xff\xff\xff\xff\xff"),
        ("D", b"D\xff\xff\xff\xff\xff"),
        ("T", b"T\xff\xff\xff\xff\xff\xff\xff\xff"),
        ("V", b"V"),
        ("x", b"x\x00\x00\x00\x02\xff\x00"),
        ("A", b"A\x00\x00\x00\x03V\x62\x01"),
        ("F", b"F\x00\x00\x00\x03\x01nV"),
    ] {
        poisons.push(headers(what, b"typed", value));
    }
    poisons
}

async fn every_poison_is_delivered(settings: &str, oversize: impl Fn(&Poison) -> bool) {
    let rabbit = Rabbit::shared();
    let admin = rabbit.admin().await;
    let (user, topic, queue) = (unique("user"), unique("topic"), unique("q"));
    rabbit.add_user(&user, "secret", "/", [".*", ".*", ".*"]);
    admin.queue(&queue).await;
    let relay = Relay::start_with(rabbit, settings);
    let connect = format!("accept-version:1.2\nhost:/\nlogin:{user}\npasscode:secret");
    let mut victim = relay.client_with(&connect).await;
    let mut neighbour = relay.client_with(&connect).await;
    victim.subscribe(&format!("id:0\ndestination:/topic/{topic}.*")).await;
    neighbour.subscribe(&format!("id:0\ndestination:/queue/{queue}")).await;
    let before = rabbit.links_of(&user);
    assert_eq!(before.len(), 1, "both sessions are on one link");

    let poisons = poisons();
    let publish = async {
        let mut publisher = Publisher::connect(rabbit.amqp_port()).await;
        for poison in &poisons {
            let key = [topic.as_bytes(), b".", &poison.routing_key].concat();
            publisher
                .publish("amq.topic", &key, &poison.properties, format!("body of {}", poison.what).as_bytes())
                .await;
        }
    };
    let send = async {
        for number in 0..MESSAGES {
            admin.send(&queue, format!("{number}").as_bytes()).await;
            tokio::task::yield_now().await;
        }
    };
    let receive = async {
        for poison in &poisons {
            let message = victim.message(&format!("body of {}", poison.what)).await;
            assert_eq!(message.header("redelivered"), Some("false"), "{}", poison.what);
            for (name, value) in &poison.shown {
                let value = value.filter(|_| *name == "correlation-id" || !oversize(poison));
                assert_eq!(message.header(name), value, "{name} of {}", poison.what);
            }
        }
    };
    tokio::join!(publish, send, receive, whole(&mut neighbour));
    assert_eq!(rabbit.links_of(&user), before);
    victim.disconnect().await;
    neighbour.disconnect().await;
    admin.channel.queue_delete(queue.as_str().into(), Default::default()).await.expect("deleted");
}

/// The neighbour gets all of its messages, in order and once.
async fn whole(neighbour: &mut Client) {
    for number in 0..MESSAGES {
        let message = neighbour.message(&number.to_string()).await;
        assert_eq!(message.header("redelivered"), Some("false"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_poison_is_delivered_and_disturbs_nobody() {
    every_poison_is_delivered("", |_| false).await;
}

/// RabbitMQ splits bodies by the frame size of the receiver, but never a content header.
#[tokio::test(flavor = "multi_thread")]
async fn so_it_is_where_the_relay_has_smaller_frames_than_the_publisher() {
    let settings = "[broker]\nframe_bytes_max = \"8KiB\"\n";
    every_poison_is_delivered(settings, |poison| poison.properties.len() > 8_000).await;
}
