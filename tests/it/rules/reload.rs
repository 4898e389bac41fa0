//! Rules that change under sessions that are open: SIGHUP to the built program, before a real RabbitMQ.

use stomp_relay::stomp::Frame;

use crate::support::process::{Process, Ready, get};
use crate::support::rabbit::{Rabbit, unique};
use crate::support::raw_http::within;
use crate::support::scratch::Scratch;
use crate::support::stomp::Client;

/// A relay that reads its settings from a file of ours.
struct Reloadable {
    folder: Scratch,
    process: Process,
    ready: Ready,
}

impl Reloadable {
    fn start(settings: &str) -> Reloadable {
        let folder = Scratch::new();
        let file = folder.write("relay.toml", settings);
        let broker = format!("amqp://127.0.0.1:{}", Rabbit::shared().amqp_port());
        let flags = ["serve", "--broker", &broker, "--listen", "ws://127.0.0.1:0/ws", "--admin", "127.0.0.1:0"];
        let flags = [&flags[..], &["--config", file.to_str().unwrap()]].concat();
        let quick = [("STOMP_RELAY_DRAIN__DELAY", "0s"), ("STOMP_RELAY_DRAIN__SPREAD", "0s")];
        let mut process = Process::start(&flags, &quick);
        let ready = process.ready();
        Reloadable { folder, process, ready }
    }

    async fn client(&self) -> Client {
        Client::log_in(&self.ready.urls[0]).await.unwrap()
    }

    /// Returns what the log says of it.
    fn reload(&mut self, settings: &str) -> String {
        self.folder.write("relay.toml", settings);
        self.process.signal("HUP");
        self.process.log.until("configuration reloaded");
        self.process.log.all().join("\n")
    }
}

fn rules(compatibility: &str, rules: &[String]) -> String {
    let rules: String = rules.iter().map(|rule| format!("[[rules]]\n{rule}\n")).collect();
    let none = if rules.is_empty() { "rules = []\n" } else { "" };
    format!("{none}[stomp]\ncompatibility = \"{compatibility}\"\n{rules}")
}

fn assert_denied(error: &Frame, header: &str, value: &str, text: &str) {
    assert_eq!((error.header("error-code"), error.header(header)), (Some("auth.denied"), Some(value)), "{error:?}");
    assert!(String::from_utf8_lossy(&error.body).starts_with(text), "{error:?}");
}

async fn send(client: &mut Client, topic: &str, body: &str) {
    client.send(&format!("SEND\ndestination:/topic/{topic}\n\n{body}")).await;
}

#[tokio::test]
async fn open_sessions_are_judged_by_the_rules_that_sighup_brings() {
    let name = unique("reload");
    let mut relay = Reloadable::start(&rules("rabbitmq", &[]));
    let (mut client, mut bystander) = (relay.client().await, relay.client().await);
    client.subscribe(&format!("id:quotes\ndestination:/topic/{name}.quotes")).await;
    client.subscribe(&format!("id:news\ndestination:/topic/{name}.news")).await;
    bystander.subscribe(&format!("id:0\ndestination:/topic/{name}.news\nack:client")).await;
    client.send("BEGIN\ntransaction:t\n\n").await;
    client.send(&format!("SEND\ndestination:/topic/{name}.orders\ntransaction:t\nreceipt:kept\n\nnever")).await;
    send(&mut bystander, &format!("{name}.quotes"), "before").await;
    client.message("before").await;

    let tight =
        [format!("effect = \"deny\"\nsend = [\"/topic/{name}.orders\"]\nsubscribe = [\"/topic/{name}.quotes\"]")];
    let tight = [&tight[..], &["send = [\"**\"]\nsubscribe = [\"**\"]".to_owned()]].concat();
    let log = relay.reload(&rules("rabbitmq", &tight));
    assert!(log.contains("to sessions that are open too\",\"key\":\"rules\""), "{log}");

    // The subscription that may no longer be ends, and says so; the other one goes on.
    let lost = format!("no longer allowed: SUBSCRIBE '/topic/{name}.quotes': user 'guest' may not");
    assert_denied(&client.error("access_refused").await, "subscription", "quotes", &lost);
    send(&mut bystander, &format!("{name}.quotes"), "to nobody").await;
    send(&mut bystander, &format!("{name}.news"), "after").await;
    client.message("after").await;
    // Each later frame is judged by the new rules, and so is what waited for its COMMIT.
    let no = "SEND '/topic/";
    client.send(&format!("SEND\ndestination:/topic/{name}.orders\nreceipt:s\n\nno")).await;
    assert_denied(&client.error("access_refused").await, "receipt-id", "s", no);
    client.send("COMMIT\ntransaction:t\nreceipt:c\n\n").await;
    assert_denied(&client.error("access_refused").await, "receipt-id", "c", no);
    client.send(&format!("SUBSCRIBE\nid:9\ndestination:/topic/{name}.quotes\nreceipt:n\n\n")).await;
    assert_denied(&client.error("access_refused").await, "receipt-id", "n", "SUBSCRIBE '/topic/");
    client.send("UNSUBSCRIBE\nid:quotes\nreceipt:u\n\n").await;
    client.receipt("u").await;

    // Whom it does not concern has noticed nothing: its delivery is still its own to acknowledge.
    let message = bystander.message("after").await;
    bystander.send(&format!("ACK\nid:{}\nreceipt:a\n\n", message.header("ack").unwrap())).await;
    bystander.receipt("a").await;

    // And back.
    relay.reload(&rules("rabbitmq", &[]));
    client.subscribe(&format!("id:quotes\ndestination:/topic/{name}.quotes")).await;
    send(&mut client, &format!("{name}.quotes"), "again").await;
    client.message("again").await;
    let metrics = get(relay.ready.admin, "/metrics").await.body;
    for (command, count) in [("SEND", 2), ("SUBSCRIBE", 2)] {
        let line = format!("stomp_relay_authz_denied_total{{command=\"{command}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line} not in {metrics}");
    }
    client.disconnect().await;
    bystander.disconnect().await;
}

#[tokio::test]
async fn a_strict_session_ends_with_what_it_loses_and_no_other() {
    let name = unique("reload");
    let mut relay = Reloadable::start(&rules("strict", &["send = [\"**\"]\nsubscribe = [\"**\"]".to_owned()]));
    let (mut client, mut bystander) = (relay.client().await, relay.client().await);
    client.subscribe(&format!("id:0\ndestination:/topic/{name}.quotes")).await;
    bystander.subscribe(&format!("id:0\ndestination:/topic/{name}.news")).await;
    relay.reload(&rules("strict", &[format!("send = [\"**\"]\nsubscribe = [\"/topic/{name}.news\"]")]));
    assert_denied(&client.error("access_refused").await, "subscription", "0", "no longer allowed: SUBSCRIBE");
    assert_eq!(client.closed().await, (1008, "auth.denied: access_refused".to_owned()));
    send(&mut bystander, &format!("{name}.news"), "here").await;
    bystander.message("here").await;
    // A file that can't be used changes nothing for them either.
    relay.folder.write("relay.toml", &rules("strict", &["send = [\"/nonsense\"]".to_owned()]));
    relay.process.signal("HUP");
    relay.process.log.until("configuration not reloaded");
    send(&mut bystander, &format!("{name}.news"), "still here").await;
    bystander.message("still here").await;
    bystander.disconnect().await;
}

#[tokio::test]
async fn what_a_new_file_leaves_out_goes_on_protecting() {
    let name = unique("reload");
    let protecting = format!(
        "http.origins = [\"https://app.example.com\"]\nauth.failures_per_address_max = 5\nbroker.ignore_host = true\n\
         [[rules]]\nsend = [\"**\"]\nsubscribe = [\"/topic/{name}.news\"]\n"
    );
    let mut relay = Reloadable::start(&format!("stomp.compatibility = \"rabbitmq\"\n{protecting}"));
    let mut client = relay.client().await;
    client.subscribe(&format!("id:0\ndestination:/topic/{name}.news")).await;
    // Emptied, cut off, or overwritten with something else.
    for (file, left_out) in [
        ("", vec!["rules: ", "http.origins: ", "auth.failures_per_address_max: ", "broker.ignore_host: "]),
        ("[log]\nlevel = \"info\"\n", vec!["rules: "]),
        (&protecting[..protecting.find("[[rules]]").unwrap()], vec!["rules: "]),
        (&protecting[protecting.find("[[rules]]").unwrap()..], vec!["http.origins: "]),
    ] {
        let before = relay.process.log.all().len();
        relay.folder.write("relay.toml", file);
        relay.process.signal("HUP");
        relay.process.log.until("configuration not reloaded");
        let log = relay.process.log.all()[before..].join("\n");
        assert!(left_out.iter().all(|key| log.contains(key)), "{file:?}: {log}");
        client.send(&format!("SUBSCRIBE\nid:1\ndestination:/topic/{name}.other\nreceipt:r\n\n")).await;
        assert_denied(&client.error("access_refused").await, "receipt-id", "r", "SUBSCRIBE");
    }
    // Who says it gets it.
    let said = "rules = []\nhttp.origins = []\nauth.failures_per_address_max = 20\nbroker.ignore_host = false\n";
    relay.reload(said);
    client.subscribe(&format!("id:1\ndestination:/topic/{name}.other")).await;
    client.disconnect().await;
}

#[tokio::test]
async fn a_file_that_was_cut_at_the_end_of_a_line_opens_nothing() {
    let name = unique("cut");
    let settings = format!(
        "stomp.compatibility = \"rabbitmq\"\n[[rules]]\neffect = \"deny\"\nsend = [\"/topic/{name}.secret\"]\n\
         [[rules]]\nsend = [\"/topic/{name}.*\"]\nsubscribe = [\"/topic/{name}.*\"]\n[[rules]]\nsend = [\"/topic/{name}\"]\n\
         users = [\"ops\"]\n"
    );
    let mut relay = Reloadable::start(&settings);
    let mut client = relay.client().await;
    let without = |text: &str| settings.replace(text, "");
    for (file, said) in [
        // Cut; cut after something else was changed; what the deny rule is would be an allow rule.
        (without("users = [\"ops\"]\n"), "the file ends where it went on before"),
        (
            without("users = [\"ops\"]\n").replace("[[rules]]\nsend", "# changed\n[[rules]]\nsend"),
            "rule 3 is as before but for users",
        ),
        (without("effect = \"deny\"\n"), "rule 1 is as before but for effect"),
    ] {
        let before = relay.process.log.all().len();
        relay.folder.write("relay.toml", &file);
        relay.process.signal("HUP");
        relay.process.log.until("configuration not reloaded");
        let log = relay.process.log.all()[before..].join("\n");
        assert!(log.contains(said), "{said}: {log}");
        for topic in [name.clone(), format!("{name}.secret")] {
            client.send(&format!("SEND\ndestination:/topic/{topic}\nreceipt:r\n\nx")).await;
            assert_denied(&client.error("access_refused").await, "receipt-id", "r", "SEND");
        }
    }
    // Who says it gets it.
    relay.reload(&format!("{}users = [\"*\"]\n", without("users = [\"ops\"]\n")));
    client.send(&format!("SEND\ndestination:/topic/{name}\nreceipt:r\n\nx")).await;
    client.receipt("r").await;
    client.disconnect().await;
}

#[tokio::test]
async fn a_binding_ends_with_the_right_to_it() {
    let name = unique("binding");
    let rules = |subscribe: &str| {
        format!(
            "stomp.compatibility = \"rabbitmq\"\n[[rules]]\nsend = [\"**\"]\nsubscribe = [\"/queue/{name}\", {subscribe}]\n\
             headers = [\"x-queue-name\", \"durable\", \"auto-delete\"]\n"
        )
    };
    let mut relay = Reloadable::start(&rules(&format!("\"/topic/{name}.a\", \"/topic/{name}.b\"")));
    let mut client = relay.client().await;
    for id in ["a", "b"] {
        let headers = format!("x-queue-name:{name}\ndurable:true\nauto-delete:false");
        client.subscribe(&format!("id:{id}\ndestination:/topic/{name}.{id}\n{headers}")).await;
    }
    relay.reload(&rules(&format!("\"/topic/{name}.b\"")));
    assert_denied(&client.error("access_refused").await, "subscription", "a", "no longer allowed: SUBSCRIBE");
    // What comes by the other binding shows that nothing came by this one before.
    let mut sender = relay.client().await;
    within("the binding is gone", async {
        for number in 0.. {
            for topic in ["a", "b"] {
                send(&mut sender, &format!("{name}.{topic}"), &format!("{topic}{number}")).await;
            }
            let first = client.frame().await;
            let gone = first.body.starts_with(b"b");
            if gone {
                break;
            }
            client.message(&format!("b{number}")).await;
        }
    })
    .await;
    client.disconnect().await;
}
