//! The built program as operators meet it: what it says when it starts, health and metrics, signals, exit codes.

use std::net::SocketAddr;
use std::time::Duration;

use stomp_relay::dev_cert::{self, Existing};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpSocket, TcpStream};

use crate::support::process::{Process, Ready, get};
use crate::support::rabbit::{Rabbit, unique};
use crate::support::raw_http::within;
use crate::support::scratch::Scratch;
use crate::support::stomp::{Client, Received};

const CONNECT: &str = "CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n";
const QUICK_DRAIN: [(&str, &str); 2] = [("STOMP_RELAY_DRAIN__DELAY", "0s"), ("STOMP_RELAY_DRAIN__SPREAD", "0s")];

/// `serve` on free ports in front of the shared broker, with further flags.
fn serve(flags: &[&str], environment: &[(&str, &str)]) -> (Process, Ready) {
    let broker = format!("amqp://127.0.0.1:{}", Rabbit::shared().amqp_port());
    serve_at(&broker, flags, environment)
}

fn serve_at(broker: &str, flags: &[&str], environment: &[(&str, &str)]) -> (Process, Ready) {
    let fixed = ["serve", "--broker", broker, "--listen", "ws://127.0.0.1:0/ws", "--admin", "127.0.0.1:0"];
    let mut process = Process::start(&[&fixed[..], flags].concat(), environment);
    let ready = process.ready();
    (process, ready)
}

async fn client(url: &str) -> Client {
    let mut client = Client::open(url).await;
    client.send(CONNECT).await;
    client.expect("CONNECTED").await;
    client
}

/// The client is served to the broker and back.
async fn echo(client: &mut Client) {
    client.send("BEGIN\ntransaction:t\nreceipt:b\n\n").await;
    client.receipt("b").await;
    client.send("SEND\ndestination:/topic/process\ntransaction:t\n\n").await;
    client.send("COMMIT\ntransaction:t\nreceipt:c\n\n").await;
    client.receipt("c").await;
}

async fn until_ready(admin: SocketAddr) {
    within("/readyz 200", async {
        while get(admin, "/readyz").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn start_up_names_the_real_addresses_and_everything_answers() {
    let scratch = Scratch::new();
    let certificate = dev_cert::write(scratch.folder(), Existing::Keep).unwrap();
    let (cert, key) = (certificate.cert.to_str().unwrap(), certificate.key.to_str().unwrap());
    let flags = ["--listen", "wss://127.0.0.1:0/secure", "--tls-cert", cert, "--tls-key", key];
    let (mut process, ready) = serve(&flags, &QUICK_DRAIN);

    let [ws, wss] = &ready.urls[..] else { panic!("{:?}", ready.lines) };
    let address: SocketAddr =
        ws.strip_prefix("ws://").and_then(|rest| rest.strip_suffix("/ws")).unwrap().parse().unwrap();
    assert_ne!(address.port(), 0);
    assert!(wss.starts_with("wss://127.0.0.1:") && wss.ends_with("/secure") && !wss.contains(":0/"), "{wss}");
    let broker = format!("amqp://127.0.0.1:{}", Rabbit::shared().amqp_port());
    let summary = format!("broker {broker}; clients log in with RabbitMQ credentials; admin {}", ready.admin);
    let mut lines = ready.lines.clone();
    // How much there is depends on the machine.
    let memory = lines.remove(3);
    assert!(memory.starts_with("memory ") && memory.ends_with(" for a session"), "{memory}");
    assert_eq!(lines, [format!("listening on {ws}"), format!("listening on {wss}"), summary, "ready".to_owned()]);
    for url in [ws, wss] {
        assert!(process.log.until("listening").contains(url.as_str()));
    }

    let mut plain = client(ws).await;
    echo(&mut plain).await;
    let mut secure = Client::open_tls(wss, &certificate.ca).await;
    secure.send(CONNECT).await;
    secure.expect("CONNECTED").await;
    echo(&mut secure).await;

    assert_eq!(get(ready.admin, "/livez").await.body, "ok\n");
    until_ready(ready.admin).await;
    assert_eq!(
        get(ready.admin, "/readyz?verbose").await.body,
        "[+]listener ok\n[+]broker ok\n[+]audit ok\n[+]drain ok\n"
    );
    assert_eq!(get(ready.admin, "/nothing").await.status, 404);
    let metrics = get(ready.admin, "/metrics").await;
    assert_eq!(metrics.one("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let samples: Vec<(&str, f64)> = samples(&metrics.body);
    assert!(samples.contains(&("stomp_relay_connections", 2.0)), "{samples:?}");
    assert!(samples.contains(&("stomp_relay_ready", 1.0)), "{samples:?}");
    assert!(samples.contains(&("stomp_relay_sessions", 2.0)), "{samples:?}");
    assert!(
        samples.contains(&("stomp_relay_stomp_frames_total{command=\"CONNECTED\",dir=\"out\"}", 2.0)),
        "{samples:?}"
    );
    assert!(samples.contains(&("stomp_relay_stomp_frames_total{command=\"CONNECT\",dir=\"in\"}", 2.0)), "{samples:?}");

    let page = get(address, "/ws").await;
    assert_eq!((page.status, page.one("upgrade")), (426, "websocket"));
    assert!(page.body.contains("STOMP"), "{}", page.body);
    assert_eq!(get(address, "/nothing").await.status, 404);

    plain.disconnect().await;
    secure.disconnect().await;
    process.signal("TERM");
    assert_eq!(process.exit_code(), 0);
}

/// OpenMetrics' text format: comments, a name with labels and a number per line, and the end.
fn samples(text: &str) -> Vec<(&str, f64)> {
    let text = text.strip_suffix("# EOF\n").expect("OpenMetrics ends with # EOF");
    let lines = text.lines().filter(|line| !line.starts_with("# "));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            let family = name.split('{').next().unwrap_or(name);
            let endings = ["", "_total", "_count", "_sum", "_bucket", "_info"];
            let families = endings.iter().filter_map(|ending| family.strip_suffix(ending));
            let known = families.into_iter().any(|family| text.contains(&format!("# TYPE {family} ")));
            assert!(known, "{name} has no type");
            (name, value.parse().expect("a number"))
        })
        .collect()
}

#[tokio::test]
async fn sigterm_finishes_what_is_in_flight_and_sends_clients_elsewhere() {
    let (mut process, ready) = serve(&[], &QUICK_DRAIN);
    let queue = unique("drain");
    let admin = Rabbit::shared().admin().await;
    admin.queue(&queue).await;
    let mut idle = client(&ready.urls[0]).await;
    let mut busy = client(&ready.urls[0]).await;
    busy.send(&format!("SEND\ndestination:/amq/queue/{queue}\nreceipt:0\n\nx")).await;
    busy.receipt("0").await;
    let burst: String =
        (1..=200).map(|number| format!("SEND\ndestination:/amq/queue/{queue}\nreceipt:{number}\n\nx\0")).collect();
    busy.send_bytes(burst.as_bytes()).await;
    process.signal("TERM");

    assert_eq!(idle.closed().await, (1012, "server draining, reconnect".to_owned()));
    let mut receipts = 1;
    let code = loop {
        match busy.receive().await {
            Received::Close(code, _) => break code,
            Received::Frame(frame) => {
                assert_eq!(frame.header("receipt-id"), Some(receipts.to_string().as_str()), "{frame:?}");
                receipts += 1;
            }
            Received::Heartbeat => {}
        }
    };
    assert_eq!(code, 1012);
    assert_eq!(process.exit_code(), 0);
    assert!(TcpStream::connect(ready.admin).await.is_err());
    // Each message that was taken has its receipt, and each receipt its message.
    assert_eq!(admin.ready(&queue).await, Some(receipts));
    Rabbit::shared().ctl(&["delete_queue", &queue]);
}

#[tokio::test]
async fn a_second_sigterm_ends_the_drain_at_once() {
    let slow = [("STOMP_RELAY_DRAIN__DELAY", "50s"), ("STOMP_RELAY_DRAIN__TIMEOUT", "10m")];
    let (mut process, ready) = serve(&[], &slow);
    until_ready(ready.admin).await;
    let mut before = client(&ready.urls[0]).await;
    process.signal("TERM");
    process.log.until("draining");
    let answer = get(ready.admin, "/readyz").await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (503, "[+]listener ok\n[+]broker ok\n[+]audit ok\n[-]drain failed: draining\n")
    );
    assert_eq!(get(ready.admin, "/livez").await.status, 200);
    // Load balancers have not noticed yet.
    client(&ready.urls[0]).await.disconnect().await;
    echo(&mut before).await;
    process.signal("TERM");
    assert_eq!(process.exit_code(), 2);
    assert!(process.log.rest().contains("stopped at once by a second signal"));
}

#[tokio::test]
async fn sighup_takes_a_new_certificate_and_nothing_else() {
    let scratch = Scratch::new();
    let certificate = dev_cert::write(scratch.folder(), Existing::Keep).unwrap();
    let (cert, key) = (certificate.cert.to_str().unwrap(), certificate.key.to_str().unwrap());
    let file = scratch.write("relay.toml", "");
    let flags =
        ["--config", file.to_str().unwrap(), "--listen", "wss://127.0.0.1:0/ws", "--tls-cert", cert, "--tls-key", key];
    let (mut process, ready) = serve(&flags, &QUICK_DRAIN);
    let wss = &ready.urls[1];
    let connected = async |ca: &std::path::Path| {
        let mut client = Client::open_tls(wss, ca).await;
        client.send(CONNECT).await;
        client.expect("CONNECTED").await;
        client
    };
    let mut old = connected(&certificate.ca).await;

    let renewed = dev_cert::write(scratch.folder(), Existing::Replace).unwrap();
    process.signal("HUP");
    process.log.until("configuration reloaded");
    // The old authority is gone from its file, so this trusts the new one only.
    let mut new = connected(&renewed.ca).await;
    echo(&mut old).await;
    echo(&mut new).await;

    // A file that can't be used, and one that can't even be read as a configuration.
    std::fs::write(&renewed.cert, "no certificate").unwrap();
    process.signal("HUP");
    assert!(process.log.until("configuration not reloaded").contains(cert));
    echo(&mut connected(&renewed.ca).await).await;
    std::fs::write(&file, "[stomp]\ncompatibilty = \"rabbitmq\"\n").unwrap();
    process.signal("HUP");
    assert!(process.log.until("configuration not reloaded").contains("did you mean"));
    echo(&mut connected(&renewed.ca).await).await;
    echo(&mut old).await;
    process.signal("INT");
    assert_eq!(old.closed().await.0, 1012);
    assert_eq!(process.exit_code(), 0);
}

#[tokio::test]
async fn sighup_names_other_nodes_and_waiting_sessions_find_them() {
    let (_socket, nobody) = reserved();
    let scratch = Scratch::new();
    let nodes = |address: &str| format!("[broker]\nlogin_wait = \"60s\"\nuris = [\"amqp://{address}\"]\n");
    let file = scratch.write("relay.toml", &nodes(&nobody.to_string()));
    let flags =
        ["serve", "--config", file.to_str().unwrap(), "--listen", "ws://127.0.0.1:0/ws", "--admin", "127.0.0.1:0"];
    let mut process = Process::start(&flags, &QUICK_DRAIN);
    let ready = process.ready();
    process.log.until("broker not reached");
    let mut waiting = Client::open(&ready.urls[0]).await;
    waiting.send(CONNECT).await;
    std::fs::write(&file, nodes(&format!("127.0.0.1:{}", Rabbit::shared().amqp_port()))).unwrap();
    process.signal("HUP");
    process.log.until("configuration reloaded");
    waiting.expect("CONNECTED").await;
    echo(&mut waiting).await;
    until_ready(ready.admin).await;
    process.signal("INT");
    assert_eq!(waiting.closed().await.0, 1012);
    assert_eq!(process.exit_code(), 0);
}

/// A port that is nobody else's, and on which nobody listens yet.
fn reserved() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[tokio::test]
async fn a_required_broker_must_be_there() {
    let (_socket, address) = reserved();
    let broker = format!("amqp://{address}");
    let arguments =
        ["serve", "--require-broker", "--broker", &broker, "--listen", "ws://127.0.0.1:0/ws", "--admin", "none"];
    let mut process = Process::start(&arguments, &[]);
    assert_eq!(process.exit_code(), 69);
    let log = process.log.rest();
    assert!(log.contains("error: the broker is unavailable: ") && log.contains(&address.to_string()), "{log}");
    assert!(!process.stdout.rest().contains("ready"));
}

#[tokio::test]
async fn an_address_that_is_taken_ends_the_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let url = format!("ws://{address}/ws");
    for arguments in [
        ["serve", "--listen", &url, "--admin", "none"],
        ["serve", "--listen", "ws://127.0.0.1:0/ws", "--admin", &address],
    ] {
        let mut process = Process::start(&arguments, &[]);
        assert_eq!(process.exit_code(), 77, "{arguments:?}");
        let log = process.log.rest();
        assert!(log.contains("error: cannot listen on ") && log.contains("another process has it"), "{log}");
        assert!(log.contains(&address), "{log}");
    }
}

#[tokio::test]
async fn without_a_broker_it_says_so_until_there_is_one() {
    let (socket, address) = reserved();
    let (mut process, ready) = serve_at(&format!("amqp://{address}"), &[], &QUICK_DRAIN);
    process.log.until("broker not reached");
    assert_eq!(get(ready.admin, "/livez").await.status, 200);
    let answer = get(ready.admin, "/readyz").await;
    assert_eq!(answer.status, 503);
    let reason = answer.body.lines().find_map(|line| line.strip_prefix("[-]broker failed: ")).expect("the reason");
    assert!(reason.contains(&address.to_string()), "{reason}");
    let mut refused = Client::open(&ready.urls[0]).await;
    refused.send(CONNECT).await;
    let error = refused.error("Broker unavailable").await;
    assert_eq!(error.header("error-code"), Some("broker.unavailable"));
    assert_eq!(refused.closed().await.0, 1013);

    // Now the broker comes up, or rather its door.
    let door = socket.listen(64).unwrap();
    let broker = ("127.0.0.1", Rabbit::shared().amqp_port());
    let proxy = tokio::spawn(async move {
        loop {
            let (mut from, _) = door.accept().await.unwrap();
            tokio::spawn(async move {
                let mut to = TcpStream::connect(broker).await.unwrap();
                let _ = copy_bidirectional(&mut from, &mut to).await;
            });
        }
    });
    until_ready(ready.admin).await;
    process.log.until("broker reached");
    let mut served = client(&ready.urls[0]).await;
    echo(&mut served).await;
    served.disconnect().await;
    process.signal("TERM");
    // The proxy works in this task's runtime, so the wait must not block it.
    let code = tokio::task::spawn_blocking(move || process.exit_code()).await.unwrap();
    assert_eq!(code, 0);
    proxy.abort();
}
