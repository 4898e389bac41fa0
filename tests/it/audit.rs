//! The audit log of the built program: who came and what became of it, one JSON object a line, and no secret in it.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use stomp_relay::audit::TEXT_CHARS_MAX;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::condition::eventually;
use crate::support::process::{Process, RELAY, get};
use crate::support::rabbit::{Rabbit, unique};
use crate::support::raw_http::{RawClient, upgrade};
use crate::support::scratch::Scratch;
use crate::support::stomp::{Client, address};
use crate::support::traffic::until;

const CONNECT: &str = "CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n";

fn lines(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).expect("the file is there");
    text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

fn events<'a>(lines: &'a [Value], event: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["event"] == event).collect()
}

async fn until_told(file: &Path, event: &str, count: usize) -> Vec<Value> {
    until(event, Duration::from_secs(20), || events(&lines(file), event).len() >= count).await;
    lines(file)
}

/// A relay with an audit log, and further settings.
fn start(scratch: &Scratch, more: &str) -> (Process, String) {
    let (port, audit) = (Rabbit::shared().amqp_port(), scratch.path("audit.log").display().to_string());
    let settings = format!("[broker]\nuris = [\"amqp://127.0.0.1:{port}\"]\n[log]\naudit_file = {audit:?}\n{more}");
    let file = scratch.write("relay.toml", &settings);
    let arguments =
        ["serve", "--config", file.to_str().unwrap(), "--listen", "ws://127.0.0.1:0/ws", "--admin", "127.0.0.1:0"];
    let mut process = Process::start(&arguments, &[]);
    let url = process.ready().urls[0].clone();
    (process, url)
}

#[tokio::test]
async fn the_audit_log_tells_who_came_and_what_became_of_it() {
    let scratch = Scratch::new();
    let audit = scratch.path("audit.log");
    let settings = |more: &str| {
        format!(
            "[broker]\nuris = [\"amqp://127.0.0.1:{}\"]\n[log]\naudit_file = {:?}\n{more}\n\
             [[rules]]\nsend = [\"/topic/news.open\"]\nheaders = []\n\
             [[rules]]\nname = \"secrets\"\neffect = \"deny\"\nsubscribe = [\"/topic/news.secret\"]\n\
             [[rules]]\nname = \"news\"\nsubscribe = [\"/topic/news.*\"]\nheaders = []\n",
            Rabbit::shared().amqp_port(),
            audit.display().to_string()
        )
    };
    let file = scratch.write("relay.toml", &settings(""));
    let arguments =
        ["serve", "--config", file.to_str().unwrap(), "--listen", "ws://127.0.0.1:0/ws", "--admin", "127.0.0.1:0"];
    let environment = [("STOMP_RELAY_DRAIN__DELAY", "0s"), ("STOMP_RELAY_DRAIN__SPREAD", "0s")];
    let mut process = Process::start(&arguments, &environment);
    let url = process.ready().urls[0].clone();

    // A name that would forge a line if it were written as it is.
    let mut stranger = Client::open(&url).await;
    let name = format!("mallory\\n{{}}{}", "é".repeat(1000));
    stranger.send(&format!("CONNECT\naccept-version:1.2\nhost:/\nlogin:{name}\npasscode:canary-1\n\n")).await;
    stranger.error("Bad CONNECT").await;
    stranger.closed().await;
    let origin = url.replace("ws://", "http://").replace("/ws", "");
    for (topic, frame) in [
        ("today", "SEND\ndestination:/topic/news.today\n\ncanary-2"),
        ("open", "SEND\ndestination:/topic/news.open\nuser-id:guest\n\ncanary-2"),
        ("today", "SUBSCRIBE\nid:2\ndestination:/topic/news.secret\n\n"),
        ("today", "SUBSCRIBE\nid:2\ndestination:/topic/news.own\nx-queue-type:quorum\n\n"),
    ] {
        let mut client = Client::open_with(&url, &[("Origin", &origin)]).await;
        client.send(CONNECT).await;
        client.expect("CONNECTED").await;
        client.subscribe(&format!("id:1\ndestination:/topic/news.{topic}")).await;
        client.send(frame).await;
        client.error("access_refused").await;
        client.closed().await;
    }
    let told = until_told(&audit, "connection.closed", 5).await;

    assert_eq!(events(&told, "connection.opened").len(), 5, "{told:?}");
    let failed = events(&told, "authentication.failed");
    assert_eq!((failed.len(), &failed[0]["result"]), (1, &Value::from("refused")), "{told:?}");
    let claimed = failed[0]["claimed"].as_str().unwrap();
    assert!(claimed.starts_with("mallory") && claimed.chars().count() == TEXT_CHARS_MAX, "{told:?}");
    let ok = events(&told, "authentication.ok");
    assert_eq!((ok.len(), &ok[0]["user"], &ok[0]["method"]), (4, &"guest".into(), &"password".into()), "{told:?}");
    let denied = events(&told, "authorization.denied");
    let rules: Vec<_> = denied.iter().map(|line| (line["rule"].as_str(), line["rule_name"].as_str())).collect();
    let (none, secrets, news) = ((Some("none"), None), (Some("2"), Some("secrets")), (Some("3"), Some("news")));
    assert_eq!(rules, [none, (Some("1"), None), secrets, news], "{told:?}");
    for (denied, ok) in denied.iter().zip(ok) {
        assert_eq!((&denied["session"], &denied["user"]), (&ok["session"], &"guest".into()), "{told:?}");
        assert_eq!((&denied["client"], &denied["origin"]), (&"127.0.0.1".into(), &origin.as_str().into()), "{told:?}");
    }
    assert!(denied[0]["what"].as_str().unwrap().starts_with("SEND '/topic/news.today': user 'guest' "), "{told:?}");
    let closed = events(&told, "connection.closed");
    assert!(closed.iter().any(|line| line["user"] == "guest" && line["code"] == 1008), "{told:?}");

    // The log is rotated, and the configuration changed.
    std::fs::rename(&audit, scratch.path("audit.log.1")).unwrap();
    std::fs::write(&file, settings("level = \"debug\"\nformat = \"json\"\n[limits]\nconnections_max = 77\n")).unwrap();
    process.signal("HUP");
    process.log.until("configuration reloaded");
    until("the new file is there", Duration::from_secs(20), || audit.exists()).await;
    let told = until_told(&audit, "config.reloaded", 1).await;
    let reloaded = events(&told, "config.reloaded")[0];
    assert_eq!(reloaded["applied"], "limits.connections_max log.level", "{told:?}");
    assert_eq!(reloaded["need_restart"], "log.format", "{told:?}");
    // The level holds at once.
    let mut client = Client::open(&url).await;
    client.send(CONNECT).await;
    client.expect("CONNECTED").await;
    process.log.until("logged in at the broker");
    std::fs::write(&file, "[nonsense]\n").unwrap();
    process.signal("HUP");
    process.log.until("configuration not reloaded");
    until_told(&audit, "config.refused", 1).await;
    client.disconnect().await;
    process.signal("TERM");
    assert_eq!(process.exit_code(), 0);
    let all = std::fs::read_to_string(&audit).unwrap() + &std::fs::read_to_string(scratch.path("audit.log.1")).unwrap();
    assert!(!all.contains("canary") && !all.contains("passcode"), "{all}");
}

#[tokio::test]
async fn a_client_cannot_fill_the_audit_log() {
    let scratch = Scratch::new();
    let audit = scratch.path("audit.log");
    let settings = "[stomp]\ncompatibility = \"rabbitmq\"\n[[rules]]\nsend = [\"/topic/open\"]\n";
    let (_process, url) = start(&scratch, settings);
    let mut client = Client::open(&url).await;
    client.send(CONNECT).await;
    client.expect("CONNECTED").await;
    for _ in 0..1000 {
        client.send("SEND\ndestination:/topic/closed\n\n").await;
        client.expect("ERROR").await;
    }
    client.disconnect().await;
    let told = until_told(&audit, "connection.closed", 1).await;
    let left_out = events(&told, "connection.closed")[0]["left_out"].as_u64().unwrap();
    let denials = events(&told, "authorization.denied").len() as u64;
    assert_eq!(denials + left_out, 1000);
    assert!((100..500).contains(&denials), "{denials} denials were told");
}

#[tokio::test]
async fn a_user_who_comes_from_elsewhere_is_told() {
    let scratch = Scratch::new();
    let audit = scratch.path("audit.log");
    let (_process, url) = start(&scratch, "[proxy]\ntrusted = [\"127.0.0.1/32\"]\n");
    let mut client = Client::open_with(&url, &[("X-Forwarded-For", "203.0.113.7")]).await;
    client.send(CONNECT).await;
    client.error("Bad CONNECT").await;
    client.closed().await;
    let told = until_told(&audit, "authentication.failed", 1).await;
    let failed = events(&told, "authentication.failed")[0];
    assert_eq!((&failed["claimed"], &failed["result"]), (&"guest".into(), &"loopback_only".into()), "{told:?}");
    assert!(failed["client"].as_str().unwrap().starts_with("203.0.113.7"), "{told:?}");
}

/// Opens and leaves again.
async fn look_in(url: &str) {
    drop(Client::open(url).await);
}

#[tokio::test]
async fn on_a_full_disk_lines_are_whole_and_the_lost_ones_are_counted() {
    let scratch = Scratch::new();
    let audit = scratch.path("audit.log");
    let settings = format!("[log]\naudit_file = {:?}\nformat = \"json\"\n", audit.display().to_string());
    let file = scratch.write("relay.toml", &settings);
    // The file may have 2 KiB.
    let limited = ["sh", "-c", "ulimit -f 4; exec \"$@\"", "sh", RELAY];
    let arguments =
        ["serve", "--config", file.to_str().unwrap(), "--listen", "ws://127.0.0.1:0/ws", "--admin", "127.0.0.1:0"];
    let mut process = Process::start_by(&[&limited[..], &arguments].concat(), &[]);
    let ready = process.ready();
    let url = &ready.urls[0];
    let lost = async || {
        let page = get(ready.admin, "/metrics").await.body;
        let line = page.lines().find_map(|line| line.strip_prefix("stomp_relay_audit_events_lost_total "));
        line.and_then(|number| number.parse::<u64>().ok()).unwrap()
    };
    for _ in 0..20 {
        look_in(url).await;
    }
    eventually("events are lost", async || lost().await > 5).await;
    let line = process.log.until("the audit log can't be written");
    assert!(line.contains("\"WARN\"") && line.contains("reason") && line.contains("log.audit_failure"), "{line}");
    eventually("all have left", async || get(ready.admin, "/metrics").await.body.contains("relay_connections 0\n"))
        .await;
    let text = std::fs::read_to_string(&audit).unwrap();
    assert!(text.ends_with('\n') && text.len() <= 2048, "{text}");
    let whole = lines(&audit).len() as u64;
    let missing = lost().await;
    assert_eq!(whole + missing, 40, "each event is there, or counted");

    // There is room again.
    std::fs::rename(&audit, scratch.path("audit.log.1")).unwrap();
    process.signal("HUP");
    until("the new file is there", Duration::from_secs(20), || audit.exists()).await;
    let told = until_told(&audit, "config.reloaded", 1).await;
    assert_eq!((&told[0]["event"], &told[0]["count"]), (&"audit.lost".into(), &missing.into()), "{told:?}");
    look_in(url).await;
    until_told(&audit, "connection.closed", 1).await;
    process.log.until("the audit log is written again");
}

#[tokio::test]
async fn whether_clients_come_in_without_a_record_is_the_operators_choice() {
    for (policy, admitted) in [("continue", true), ("refuse", false)] {
        let scratch = Scratch::new();
        let port = Rabbit::shared().amqp_port();
        let settings = format!(
            "[broker]\nuris = [\"amqp://127.0.0.1:{port}\"]\n[log]\naudit_file = \"/dev/full\"\naudit_failure = \"{policy}\"\n"
        );
        let file = scratch.write("relay.toml", &settings);
        let arguments =
            ["serve", "--config", file.to_str().unwrap(), "--listen", "ws://127.0.0.1:0/ws", "--admin", "127.0.0.1:0"];
        let mut process = Process::start(&arguments, &[]);
        let ready = process.ready();
        let mut client = Client::open(&ready.urls[0]).await;
        if admitted {
            client.send(CONNECT).await;
            client.expect("CONNECTED").await;
            client.disconnect().await;
        } else {
            let error = client.expect("ERROR").await;
            assert_eq!(error.header("error-code"), Some("limit.audit_log"));
            assert_eq!(client.closed().await.0, 1013);
            let page = get(ready.admin, "/readyz").await;
            assert!(page.status == 503 && page.body.contains("[-]audit failed"), "{}", page.body);
            assert_eq!(get(ready.admin, "/livez").await.status, 200);
        }
    }
}

#[tokio::test]
async fn refused_pages_and_what_rabbitmq_denies_are_on_record() {
    let scratch = Scratch::new();
    let audit = scratch.path("audit.log");
    let user = unique("reader");
    Rabbit::shared().add_user(&user, "secret", "/", ["^$", "^$", "^$"]);
    let (_process, url) = start(&scratch, "");
    for lines in ["Origin: https://evil.example\r\n", "Origin: http://evil.example\r\n"] {
        let request = upgrade("/ws", lines).replace("example.com\r\nUp", "evil.example\r\nUp");
        let mut client = RawClient::new(TcpStream::connect(address(&url)).await.unwrap());
        client.send(request).await;
        client.answer("GET").await;
    }
    let told = until_told(&audit, "connection.refused", 2).await;
    let refused = events(&told, "connection.refused");
    let seen: Vec<_> = refused.iter().map(|line| (line["reason"].as_str(), line["origin"].as_str())).collect();
    let expected = [(Some("origin"), Some("https://evil.example")), (Some("host"), Some("http://evil.example"))];
    assert_eq!(seen, expected, "{told:?}");
    assert!(refused.iter().all(|line| line["host"] == "evil.example" && line["client"] == "127.0.0.1"), "{told:?}");

    for frame in
        ["SEND\ndestination:/exchange/amq.direct/x\nreceipt:r\n\n", "SUBSCRIBE\nid:1\ndestination:/topic/x\n\n"]
    {
        let mut client = Client::open(&url).await;
        client.send(&format!("CONNECT\naccept-version:1.2\nhost:/\nlogin:{user}\npasscode:secret\n\n")).await;
        client.expect("CONNECTED").await;
        client.send(frame).await;
        client.expect("ERROR").await;
        client.closed().await;
    }
    let told = until_told(&audit, "authorization.denied", 2).await;
    for denied in events(&told, "authorization.denied") {
        assert_eq!((&denied["rule"], &denied["user"]), (&"rabbitmq".into(), &user.as_str().into()), "{denied}");
        assert!(denied["what"].as_str().unwrap().contains("refused"), "{denied}");
    }
}

#[tokio::test]
async fn strangers_cannot_fill_a_disk() {
    const STRANGERS: usize = 600;
    let scratch = Scratch::new();
    let audit = scratch.path("audit.log");
    let (mut process, url) = start(&scratch, "format = \"json\"\n[http]\norigins = [\"*\"]\n");
    let start = Instant::now();
    let origin = format!("https://{}", "x".repeat(5000));
    for _ in 0..STRANGERS {
        drop(Client::open_with(&url, &[("Origin", &origin)]).await);
    }
    let mut client = Client::open(&url).await;
    client.send(CONNECT).await;
    client.expect("CONNECTED").await;
    client.disconnect().await;
    let told = until_told(&audit, "authentication.ok", 1).await;
    // The burst, and so many a second; then those of the one that logged in.
    let most = 200 + 5 * (start.elapsed().as_secs() as usize + 1) + 10;
    assert!(events(&told, "connection.opened").len() <= most, "{} events", told.len());
    let ok = &events(&told, "authentication.ok")[0]["session"];
    assert!(events(&told, "connection.opened").iter().any(|line| line["session"] == *ok), "who logs in is told of");
    assert!(std::fs::metadata(&audit).unwrap().len() < 2 * most as u64 * 1000);
    process.signal("TERM");
    let log = process.log.rest();
    assert!(log.matches("session opened").count() <= most, "{}", log.matches("session opened").count());
    assert!(log.len() < 2 * most * 1500, "{} bytes", log.len());
}

#[tokio::test]
async fn failed_logins_behind_a_proxy_that_nobody_announced_are_explained() {
    let scratch = Scratch::new();
    let (mut process, url) = start(&scratch, "format = \"json\"\n");
    for _ in 0..3 {
        let mut client = Client::open_with(&url, &[("X-Forwarded-For", "203.0.113.7")]).await;
        client.send("CONNECT\naccept-version:1.2\nhost:/\nlogin:nobody\npasscode:wrong\n\n").await;
        client.error("Bad CONNECT").await;
    }
    let line = process.log.until("failed logins come with a proxy's header");
    assert!(line.contains("\"WARN\"") && line.contains(r#"[proxy] trusted = [\"127.0.0.1\"]"#), "{line}");
    // A client that nobody forwarded says nothing of the kind; and the same is not said again and again.
    let mut stream = TcpStream::connect(address(&url)).await.unwrap();
    stream.write_all(b"PROXY TCP4 203.0.113.7 127.0.0.1 4000 80\r\n").await.unwrap();
    let line = process.log.until("PROXY protocol header");
    assert!(line.contains("\"WARN\"") && line.contains(r#"[proxy] protocol_from = [\"127.0.0.1\"]"#), "{line}");
    process.signal("TERM");
    assert_eq!(process.log.rest().matches("failed logins come").count(), 1);
}
