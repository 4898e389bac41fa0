//! The built program at the edge: renewed certificates, HSTS and redirects, sockets and messages of a service manager.

use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;

use crate::support::authority::{Authority, BOTH, NOW, handshake, shown};
use crate::support::condition::eventually;
use crate::support::process::{Process, RELAY, Ready, get};
use crate::support::rabbit::Rabbit;
use crate::support::raw_http::RawClient;
use crate::support::scratch::Scratch;
use crate::support::stomp::{Client, DEADLINE};

/// A port that nobody listens on: these tests need no broker.
const NO_BROKER: &str = "amqp://127.0.0.1:1";

const QUICK_DRAIN: [(&str, &str); 2] = [("STOMP_RELAY_DRAIN__DELAY", "0s"), ("STOMP_RELAY_DRAIN__SPREAD", "0s")];

/// The address in a listen URL.
fn address(url: &str) -> &str {
    url.split("://").nth(1).and_then(|rest| rest.split('/').next()).unwrap()
}

/// `serve` with one `wss` listener and these files.
fn serve(broker: &str, cert: &Path, key: &Path, environment: &[(&str, &str)]) -> (Process, Ready) {
    let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
    let flags = ["--listen", "wss://127.0.0.1:0/ws", "--tls-cert", cert, "--tls-key", key, "--admin", "127.0.0.1:0"];
    let mut process = Process::start(
        &[&["serve", "--broker", broker][..], &flags].concat(),
        &[&QUICK_DRAIN[..], environment].concat(),
    );
    let ready = process.ready();
    (process, ready)
}

/// Waits until new connections get this certificate.
async fn until_shown(url: &str, authority: &Authority, expected: CertificateDer<'static>) {
    eventually("the new certificate is served", async || {
        shown(address(url), "localhost", authority.trusting(None, &BOTH)).await == expected
    })
    .await;
}

#[tokio::test]
async fn a_swapped_link_is_served_while_sessions_go_on() {
    let (authority, folder) = (Authority::new("edge"), Scratch::new());
    let generation = |name: &str| {
        std::fs::create_dir(folder.path(name)).unwrap();
        let signed = authority.server(&["localhost"], NOW);
        signed.write(&folder, &format!("{name}/tls"));
        signed.der()
    };
    // As Kubernetes mounts a secret: a link to a folder, which is replaced as a whole.
    let swap = |name: &str| {
        symlink(folder.path(name), folder.path("next")).unwrap();
        std::fs::rename(folder.path("next"), folder.path("current")).unwrap();
    };
    let first = generation("one");
    swap("one");
    let broker = format!("amqp://127.0.0.1:{}", Rabbit::shared().amqp_port());
    let (cert, key) = (folder.path("current/tls.pem"), folder.path("current/tls-key.pem"));
    let (mut process, ready) = serve(&broker, &cert, &key, &[]);
    let url = &ready.urls[0];
    assert_eq!(shown(address(url), "localhost", authority.trusting(None, &BOTH)).await, first);
    let ca = folder.write("ca.pem", authority.pem());
    let mut session = Client::open_tls(url, &ca).await;
    session.send("CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n").await;
    session.expect("CONNECTED").await;

    let second = generation("two");
    swap("two");
    until_shown(url, &authority, second.clone()).await;
    process.log.until("TLS files changed: new connections get what they hold now");

    // A pair that does not fit changes nothing but the log.
    std::fs::create_dir(folder.path("three")).unwrap();
    let (one, other) = (authority.server(&["localhost"], NOW), authority.server(&["localhost"], NOW));
    folder.write("three/tls.pem", &one.cert);
    folder.write("three/tls-key.pem", &other.key);
    swap("three");
    let line = process.log.until("TLS files changed and cannot be used");
    assert!(line.contains("does not belong to the certificate") && line.contains("WARN"), "{line}");
    assert_eq!(shown(address(url), "localhost", authority.trusting(None, &BOTH)).await, second);
    folder.write("three/tls-key.pem", &one.key);
    until_shown(url, &authority, one.der()).await;

    session.send("BEGIN\ntransaction:t\nreceipt:still-there\n\n").await;
    session.receipt("still-there").await;
    let metrics = get(ready.admin, "/metrics").await.body;
    let expiry = metrics.lines().find(|line| line.contains("tls_certificate_not_after_timestamp_seconds{")).unwrap();
    assert!(
        expiry.starts_with("stomp_relay_tls_certificate_not_after_timestamp_seconds{name=\"localhost\"} "),
        "{expiry}"
    );
    assert!(expiry.rsplit(' ').next().unwrap().parse::<i64>().unwrap() > 1_700_000_000, "{expiry}");
    assert!(metrics.contains("stomp_relay_tls_handshakes_total{result=\"full\",version=\"1.3\"} "), "{metrics}");
    assert!(metrics.contains("stomp_relay_tls_handshake_duration_seconds_count "), "{metrics}");
    process.signal("TERM");
    assert_eq!(process.exit_code(), 0);
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_and_the_log_says_why() {
    let (authority, folder) = (Authority::new("edge"), Scratch::new());
    let (cert, key) = authority.server(&["localhost"], NOW).write(&folder, "tls");
    let ca = folder.write("ca.pem", authority.pem());
    let environment =
        [("STOMP_RELAY_TLS__CLIENT_AUTH", "require"), ("STOMP_RELAY_TLS__CLIENT_CA_FILE", ca.to_str().unwrap())];
    let (mut process, ready) = serve(NO_BROKER, &cert, &key, &environment);
    let url = &ready.urls[0];
    let alert = handshake(address(url), "localhost", authority.trusting(None, &BOTH[1..])).await.unwrap_err();
    assert!(alert.to_string().contains("alert"), "{alert}");
    let line = process.log.until("TLS client refused");
    assert!(line.contains("shows no certificate") && line.contains("tls.client_auth"), "{line}");
    let alice = authority.client("alice", 2, Vec::new());
    let stream = handshake(address(url), "localhost", authority.trusting(Some(&alice), &BOTH)).await.unwrap();
    RawClient::new(stream).upgraded().await;
}

#[tokio::test]
async fn requests_in_the_clear_are_sent_to_https_and_kept_there() {
    let (authority, folder) = (Authority::new("edge"), Scratch::new());
    let (cert, key) = authority.server(&["localhost"], NOW).write(&folder, "tls");
    let policy = "max-age=3600; includeSubDomains";
    let environment = [("STOMP_RELAY_HTTP__HSTS", policy), ("STOMP_RELAY_HTTP__REDIRECT_LISTEN", "127.0.0.1:0")];
    let (mut process, ready) = serve(NO_BROKER, &cert, &key, &environment);
    let secure: SocketAddr = address(&ready.urls[0]).parse().unwrap();
    let redirect =
        ready.lines.iter().find_map(|line| line.strip_prefix("redirecting http://")?.strip_suffix(" to https"));
    let redirect: SocketAddr = redirect.expect("a line of its own").parse().unwrap();

    let answer = get(redirect, "/chat?room=1").await;
    assert_eq!(answer.status, 308);
    assert_eq!(answer.one("location"), format!("https://localhost:{}/chat?room=1", secure.port()));
    assert!(answer.all("strict-transport-security").is_empty(), "not in the clear");
    // Neither a WebSocket nor a second request.
    let mut client = RawClient::new(TcpStream::connect(redirect).await.unwrap());
    let request = crate::support::raw_http::upgrade("/ws", "");
    client.send(request.replace("example.com", "localhost")).await;
    assert_eq!(client.answer("GET").await.status, 308);
    assert_eq!(client.rest().await, b"");
    // Nor to a place of another name.
    let mut client = RawClient::new(TcpStream::connect(redirect).await.unwrap());
    client.send(request).await;
    assert_eq!(client.answer("GET").await.status, 421);
    for garbage in [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"\0\0\0\0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"] {
        let mut client = RawClient::new(TcpStream::connect(redirect).await.unwrap());
        client.send(garbage).await;
        let answer = String::from_utf8_lossy(&client.rest().await).into_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }

    let trusting = authority.trusting(None, &BOTH);
    for target in ["/ws", "/nothing"] {
        let stream = handshake(&secure.to_string(), "localhost", trusting.clone()).await.unwrap();
        let answer = RawClient::new(stream).request("GET", target, "").await;
        assert_eq!(answer.one("strict-transport-security"), policy, "{target}");
    }
    process.signal("TERM");
    assert_eq!(process.exit_code(), 0);
}

/// Listens, and becomes the program in its arguments with the socket as systemd passes it; `PORT` stands for the port.
const ACTIVATE: &str = r#"
import os, socket, sys
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
port = str(listener.getsockname()[1])
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[1], [argument.replace("PORT", port) for argument in sys.argv[1:]])
"#;

#[tokio::test]
async fn a_socket_of_the_service_manager_is_used() {
    let arguments = ["serve", "--broker", NO_BROKER, "--admin", "127.0.0.1:0", "--listen", "ws://127.0.0.1:PORT/ws"];
    let command = [&["python3", "-c", ACTIVATE, RELAY][..], &arguments].concat();
    let mut process = Process::start_by(&command, &QUICK_DRAIN);
    // Binding the port again would have failed: somebody listens on it.
    let ready = process.ready();
    let address: SocketAddr = address(&ready.urls[0]).parse().unwrap();
    assert_eq!(get(address, "/ws").await.status, 426);
    process.signal("TERM");
    assert_eq!(process.exit_code(), 0);
    assert!(!process.log.rest().contains("does not name"));

    // A socket that nothing in the configuration is for is not served.
    let others = ["serve", "--broker", NO_BROKER, "--admin", "127.0.0.1:0", "--listen", "ws://127.0.0.1:0/ws"];
    let mut process = Process::start_by(&[&["python3", "-c", ACTIVATE, RELAY][..], &others].concat(), &QUICK_DRAIN);
    process.ready();
    process.log.until("passes a socket that the configuration does not name");
}

#[test]
fn the_service_manager_is_told_of_each_change() {
    let folder = Scratch::new();
    let path = folder.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let told = || {
        let mut bytes = [0; 1000];
        let length = socket.recv(&mut bytes).expect("a message in time");
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    };
    let config = folder.write("relay.toml", "listen = [\"ws://127.0.0.1:0/ws\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n");
    let environment = [&QUICK_DRAIN[..], &[("NOTIFY_SOCKET", path.to_str().unwrap())]].concat();
    let arguments = ["serve", "--broker", NO_BROKER, "--config", config.to_str().unwrap()];
    let mut process = Process::start(&arguments, &environment);
    process.ready();
    assert!(told().starts_with("READY=1\n"));
    for (text, status) in
        [("", "STATUS=serving\n"), ("no TOML", "STATUS=serving; the last reload failed, see the log\n")]
    {
        let old = std::fs::read_to_string(&config).unwrap();
        folder.write("relay.toml", &format!("{old}{text}"));
        process.signal("HUP");
        let reloading = told();
        assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
        assert_eq!(told(), format!("READY=1\n{status}"));
    }
    process.signal("TERM");
    let stopping = told();
    assert!(stopping.starts_with("STOPPING=1\nEXTEND_TIMEOUT_USEC=40000000\n"), "{stopping}");
    assert_eq!(process.exit_code(), 0);
}
