//! STOMP headers and AMQP properties, each looked at from the other side: a SEND is read, and what becomes a MESSAGE is
//! published, by a plain AMQP client.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, DecimalValue, FieldArray, FieldTable};
use stomp_relay::stomp::Frame;

use crate::support::dialect::{DIALECTS, Dialect, RABBITMQ};
use crate::support::rabbit::{Admin, Rabbit, unique};
use crate::support::relay::Relay;
use crate::support::stomp::Client;

/// A queue, and one client on each side of it.
struct Bench {
    admin: Admin,
    client: Client,
    queue: String,
}

impl Bench {
    async fn new(relay: &Relay, dialect: Dialect) -> Bench {
        let admin = Rabbit::shared().admin().await;
        let queue = unique("properties");
        admin.queue(&queue).await;
        Bench { admin, client: dialect.guest(relay).await, queue }
    }

    /// What a SEND with these header lines becomes.
    async fn published(&mut self, lines: &str) -> BasicProperties {
        self.client.send(&format!("SEND\ndestination:/amq/queue/{}\n{lines}\n\nhello", self.queue)).await;
        let delivery = self.admin.get(&self.queue).await;
        assert_eq!(delivery.data, b"hello");
        delivery.properties
    }

    /// Has the client consume, so that `delivered` can be used instead of `published`.
    async fn consume(&mut self, further: &str) {
        self.client.subscribe(&format!("id:0\ndestination:/amq/queue/{}{further}", self.queue)).await;
    }

    /// The headers of the MESSAGE that a message with these properties becomes, after those of every MESSAGE.
    async fn delivered(&mut self, properties: BasicProperties) -> Vec<(String, String)> {
        self.admin.publish("", &self.queue, properties, b"hello").await;
        headers(&self.client.message("hello").await)
    }

    async fn end(self) {
        self.client.disconnect().await;
        self.admin.delete(&self.queue).await;
    }
}

fn headers(message: &Frame) -> Vec<(String, String)> {
    let all: Vec<_> = message.headers.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[..4], ["subscription", "destination", "message-id", "redelivered"]);
    assert_eq!(names.last(), Some(&"content-length"));
    all[4..all.len() - 1].to_vec()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn table(fields: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in fields {
        table.insert((*name).into(), value.clone());
    }
    table
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn array(values: Vec<AMQPValue>) -> AMQPValue {
    AMQPValue::FieldArray(FieldArray::from(values))
}

fn all_properties() -> BasicProperties {
    BasicProperties::default()
        .with_app_id("app".into())
        .with_content_encoding("gzip".into())
        .with_content_type("text/plain".into())
        .with_correlation_id("correlation".into())
        .with_delivery_mode(2)
        .with_expiration("60000".into())
        .with_headers(table(&[("str", text("foo")), ("x-custom", text("bar:baz\n"))]))
        .with_message_id("message".into())
        .with_priority(5)
        .with_reply_to("/topic/answers".into())
        .with_timestamp(123_456)
        .with_type("kind".into())
        .with_user_id("guest".into())
}

/// Every header that has a property sets it and nothing else; the others become headers of type long string.
#[tokio::test]
async fn a_send_sets_properties_and_headers() {
    let relay = Relay::start(Rabbit::shared());
    for dialect in DIALECTS {
        let mut bench = Bench::new(&relay, dialect).await;
        let lines = "app-id:app\ncontent-encoding:gzip\ncontent-type:text/plain\ncorrelation-id:correlation\n\
             persistent:true\nexpiration:60000\nstr:foo\nx-custom:bar\\cbaz\\n\namqp-message-id:message\npriority:5 \n\
             reply-to:/topic/answers\ntimestamp:123456\ntype:kind\nuser-id:guest\nstr:second";
        assert_eq!(bench.published(lines).await, all_properties());
        for lines in ["persistent:false", "content-length:5"] {
            let mut properties = bench.published(lines).await;
            // By this id a consumer recognises a message that had to be published twice.
            let id = properties.message_id().clone().expect("an id of the relay's");
            assert!(id.as_str().starts_with("session-"), "{id}");
            properties = properties.with_message_id("".into());
            assert_eq!(properties, BasicProperties::default().with_message_id("".into()));
        }
        bench.end().await;
    }
}

/// Headers that speak to the server are not the message's; the plugin passes them on all the same.
#[tokio::test]
async fn headers_for_the_server_travel_in_compatibility_mode_only() {
    let (strict, relay) = (Relay::start(Rabbit::shared()), Relay::start_with(Rabbit::shared(), RABBITMQ));
    for dialect in DIALECTS {
        let mut bench = Bench::new(&strict, dialect).await;
        let published = bench.published("receipt:r\nx:y").await;
        assert_eq!(published.headers(), &Some(table(&[("x", text("y"))])));
        bench.client.receipt("r").await;
        bench.end().await;

        let mut bench = Bench::new(&relay, dialect).await;
        let published = bench.published("receipt:r\nx:y").await;
        assert_eq!(published.headers(), &Some(table(&[("receipt", text("r")), ("x", text("y"))])));
        bench.client.receipt("r").await;
        bench.end().await;
    }
}

/// Every property is shown, in the plugin's order; what is absent is not.
#[tokio::test]
async fn a_message_shows_properties_and_headers() {
    let relay = Relay::start(Rabbit::shared());
    let expected = pairs(&[
        ("str", "foo"),
        ("x-custom", "bar:baz\n"),
        ("app-id", "app"),
        ("user-id", "guest"),
        ("type", "kind"),
        ("timestamp", "123456"),
        ("amqp-message-id", "message"),
        ("expiration", "60000"),
        ("reply-to", "/topic/answers"),
        ("correlation-id", "correlation"),
        ("priority", "5"),
        ("persistent", "true"),
        ("content-encoding", "gzip"),
        ("content-type", "text/plain"),
    ]);
    for dialect in DIALECTS {
        let mut bench = Bench::new(&relay, dialect).await;
        bench.consume("").await;
        assert_eq!(bench.delivered(all_properties()).await, expected);
        assert_eq!(bench.delivered(BasicProperties::default()).await, []);
        assert_eq!(bench.delivered(BasicProperties::default().with_delivery_mode(1)).await, []);
        bench.end().await;
    }
}

/// Delivery mode 1 is shown as the plugin shows it.
#[tokio::test]
async fn a_transient_message_says_so_in_compatibility_mode() {
    let relay = Relay::start_with(Rabbit::shared(), RABBITMQ);
    for dialect in DIALECTS {
        let mut bench = Bench::new(&relay, dialect).await;
        bench.consume("").await;
        let transient = BasicProperties::default().with_delivery_mode(1);
        assert_eq!(bench.delivered(transient).await, pairs(&[("persistent", "1")]));
        bench.end().await;
    }
}

fn every_type() -> FieldTable {
    let decimal = DecimalValue { scale: 1, value: 15 };
    table(&[
        ("array", array(vec![text("one"), text("two")])),
        ("array-mixed", array(vec![text("one"), AMQPValue::LongInt(2)])),
        ("bool", AMQPValue::Boolean(true)),
        ("bytes", AMQPValue::ByteArray(vec![1, 2].into())),
        ("decimal", AMQPValue::DecimalValue(decimal)),
        ("double", AMQPValue::Double(1.5)),
        ("float", AMQPValue::Float(1.5)),
        ("int", AMQPValue::LongInt(-32)),
        ("long", AMQPValue::LongLongInt(i64::MIN)),
        ("short", AMQPValue::ShortInt(-16)),
        ("string", text("é")),
        ("table", AMQPValue::FieldTable(table(&[("inner", text("x"))]))),
        ("time", AMQPValue::Timestamp(1_700_000_000)),
        ("tiny", AMQPValue::ShortShortInt(-8)),
        ("void", AMQPValue::Void),
    ])
}

/// Strings and whole numbers of every size are shown, other types only where the operator asked for them, and what has no
/// plain text never.
#[tokio::test]
async fn header_types_that_stomp_cannot_show_are_dropped() {
    let relay = Relay::start(Rabbit::shared());
    let all = Relay::start_with(Rabbit::shared(), "[stomp]\nheader_types = \"all\"\n");
    let min = i64::MIN.to_string();
    let default = [("int", "-32"), ("long", &min), ("short", "-16"), ("string", "é"), ("tiny", "-8")];
    let mut further = [&default[..], &[("array", "one,two"), ("bool", "true"), ("time", "1700000000")]].concat();
    further.sort_unstable();
    for dialect in DIALECTS {
        for (relay, expected) in [(&relay, &default[..]), (&all, &further)] {
            let mut bench = Bench::new(relay, dialect).await;
            bench.consume("").await;
            let properties = BasicProperties::default().with_headers(every_type());
            assert_eq!(bench.delivered(properties).await, pairs(expected));
            bench.end().await;
        }
    }
}

/// A publisher cannot pass its own headers off as the server's.
#[tokio::test]
async fn a_publisher_cannot_forge_server_headers() {
    for settings in ["", RABBITMQ] {
        let relay = Relay::start_with(Rabbit::shared(), settings);
        for dialect in DIALECTS {
            let mut bench = Bench::new(&relay, dialect).await;
            bench.consume("\nack:client").await;
            let names = ["subscription", "destination", "message-id", "redelivered", "ack", "content-length"];
            let forged: Vec<_> =
                names.map(|name| (name, text("forged"))).into_iter().chain([("x", text("y"))]).collect();
            bench
                .admin
                .publish("", &bench.queue, BasicProperties::default().with_headers(table(&forged)), b"hello")
                .await;
            let message = bench.client.message("hello").await;
            assert!(message.headers.iter().all(|(_, value)| value != "forged"), "{message:?}");
            assert_eq!(message.header("x"), Some("y"));
            bench.client.send(&dialect.settle("ACK", &message, "receipt:a\n")).await;
            bench.client.receipt("a").await;
            bench.end().await;
        }
    }
}

/// What other frames of the server have is a publisher's name like any other, from STOMP and from AMQP.
#[tokio::test]
async fn headers_named_like_those_of_other_frames_travel() {
    let headers = [("heart-beat", "1"), ("receipt-id", "r"), ("server", "s"), ("session", "q"), ("version", "9")];
    for settings in ["", RABBITMQ] {
        let relay = Relay::start_with(Rabbit::shared(), settings);
        for dialect in DIALECTS {
            let mut bench = Bench::new(&relay, dialect).await;
            bench.consume("").await;
            let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
            let queue = &bench.queue;
            let shows_all = |message: &Frame| {
                let shown = headers.iter().all(|(name, value)| message.header(name) == Some(value));
                assert!(shown, "{message:?}");
            };
            bench.client.send(&format!("SEND\ndestination:/amq/queue/{queue}\n{lines}\nby stomp")).await;
            shows_all(&bench.client.message("by stomp").await);
            let fields = headers.map(|(name, value)| (name, text(value)));
            let properties = BasicProperties::default().with_headers(table(&fields));
            bench.admin.publish("", &bench.queue, properties, b"by amqp").await;
            shows_all(&bench.client.message("by amqp").await);
            bench.end().await;
        }
    }
}

/// Who sent it, and with what proof, is no reader's business.
#[tokio::test]
async fn credentials_on_a_send_do_not_travel() {
    for settings in ["", RABBITMQ] {
        let relay = Relay::start_with(Rabbit::shared(), settings);
        for dialect in DIALECTS {
            let mut bench = Bench::new(&relay, dialect).await;
            bench.consume("").await;
            let queue = &bench.queue;
            let send = "login:canary\nPasscode:canary\nAuthorization:canary\naccess_token:canary\ncookie:canary\nx:y\n";
            bench.client.send(&format!("SEND\ndestination:/amq/queue/{queue}\n{send}\nhello")).await;
            let message = bench.client.message("hello").await;
            assert!(message.headers.iter().all(|(_, value)| value != "canary"), "{message:?}");
            assert_eq!(message.header("x"), Some("y"));
            bench.end().await;
        }
    }
}

/// `reply-to` of a MESSAGE is always something that can be sent to; that of a SEND stays as it is.
#[tokio::test]
async fn a_reply_to_becomes_a_destination() {
    let relay = Relay::start_with(Rabbit::shared(), RABBITMQ);
    let unchanged = ["/exchange/e/k", "/topic/t", "/queue/q", "/amq/queue/q", "/reply-queue/q", "/queuefoo"];
    for dialect in DIALECTS {
        let mut bench = Bench::new(&relay, dialect).await;
        for reply_to in ["/topic/t", "/reply-queue/q", "plain"] {
            let published = bench.published(&format!("reply-to:{reply_to}")).await;
            assert_eq!(published.reply_to().as_ref().map(|value| value.as_str()), Some(reply_to));
        }
        let queue = &bench.queue;
        bench.client.send(&format!("SEND\ndestination:/amq/queue/{queue}\nreply-to:/foo/bar\n\nx")).await;
        bench.client.error("Processing error").await;
        bench.consume("").await;
        let prefixed = ["amq.gen-x", "/temp-queue/x"].map(|queue| (queue, format!("/reply-queue/{queue}")));
        for (property, shown) in unchanged.map(|value| (value, value.to_owned())).into_iter().chain(prefixed) {
            let properties = BasicProperties::default().with_reply_to(property.into());
            assert_eq!(bench.delivered(properties).await, pairs(&[("reply-to", &shown)]));
        }
        bench.end().await;
    }
}

/// `CC` and `BCC` reach further queues, as RabbitMQ's sender-selected distribution has it. The plugin's way, a plain
/// string, would end the session.
#[tokio::test]
async fn carbon_copies_reach_further_queues() {
    let relay = Relay::start(Rabbit::shared());
    for dialect in DIALECTS {
        let mut bench = Bench::new(&relay, dialect).await;
        let (copy, second, blind) = (unique("cc"), unique("cc"), unique("bcc"));
        for queue in [&copy, &second, &blind] {
            bench.admin.queue(queue).await;
        }
        let published = bench.published(&format!("CC:{copy}, {second}\nBCC:{blind}")).await;
        let expected = Some(table(&[("CC", array(vec![text(&copy), text(&second)]))]));
        assert_eq!(published.headers(), &expected, "the broker takes BCC off");
        for queue in [&copy, &second, &blind] {
            assert_eq!(bench.admin.get(queue).await.properties.headers(), &expected);
            bench.admin.delete(queue).await;
        }
        bench.end().await;
    }
}

/// What no property can hold is refused before anything is published; the session goes on where the plugin's would.
#[tokio::test]
async fn headers_without_a_property_value_are_refused() {
    let (strict, relay) = (Relay::start(Rabbit::shared()), Relay::start_with(Rabbit::shared(), RABBITMQ));
    let long = format!("correlation-id:{}", "x".repeat(256));
    let cases = [
        ("message-id:1", "Invalid header"),
        ("priority:high", "Processing error"),
        ("priority:256", "Processing error"),
        ("timestamp:-1", "Processing error"),
        ("expiration:soon", "Processing error"),
        (&long, "Processing error"),
    ];
    for dialect in DIALECTS {
        let mut bench = Bench::new(&relay, dialect).await;
        for (line, message) in cases {
            let send = format!("SEND\ndestination:/amq/queue/{}\n{line}\nreceipt:r\n\nrefused", bench.queue);
            bench.client.send(&send).await;
            assert_eq!(bench.client.error(message).await.header("receipt-id"), Some("r"));
            let mut client = dialect.guest(&strict).await;
            client.send(&send).await;
            client.error(message).await;
            assert_eq!(client.closed().await.0, 1002);
        }
        bench.published("priority:0").await;
        bench.end().await;
    }
}

/// STOMP 1.0 has no blanks at the beginning of a value; later versions keep every one, and escapes are resolved once.
#[tokio::test]
async fn blanks_and_escapes_reach_the_broker_as_meant() {
    let relay = Relay::start(Rabbit::shared());
    for dialect in DIALECTS {
        let mut bench = Bench::new(&relay, dialect).await;
        let expected = if dialect.version == "1.0" { "foo " } else { "  foo " };
        let published = bench.published("blanks:  foo \nn\\cm:\\\\r\\r\\\\").await;
        assert_eq!(published.headers(), &Some(table(&[("blanks", text(expected)), ("n:m", text("\\r\r\\"))])));
        bench.consume("").await;
        let properties = BasicProperties::default().with_headers(table(&[("n:m\\", text(" \r\n\\c"))]));
        assert_eq!(bench.delivered(properties).await, pairs(&[("n:m\\", " \r\n\\c")]));
        bench.end().await;
    }
}
