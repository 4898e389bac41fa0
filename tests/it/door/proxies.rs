//! Real nginx and HAProxy in front, with the very files that docs/proxies.md shows: TLS ended by them and passed through.

use std::net::SocketAddr;

use tokio::net::{TcpSocket, TcpStream};

use super::is_refused;
use crate::support::front_proxy::FrontProxy;
use crate::support::process::Process;
use crate::support::scratch::Scratch;
use crate::support::stomp::Client;

/// A relay on `ws` and `wss` that lets one client in per address, and certificates for both it and the proxy.
struct Site {
    folder: Scratch,
    relay: Process,
    ws: String,
    wss: String,
}

/// What the relay is told of its proxy, which is at 127.0.0.1.
const TRUSTED: (&str, &str) = ("STOMP_RELAY_PROXY__TRUSTED", "127.0.0.1");
const PROTOCOL: (&str, &str) = ("STOMP_RELAY_PROXY__PROTOCOL_FROM", "127.0.0.1");

impl Site {
    fn start(proxy: (&str, &str)) -> Site {
        let folder = Scratch::new();
        let made = stomp_relay::dev_cert::write(folder.folder(), stomp_relay::dev_cert::Existing::Keep).unwrap();
        // HAProxy wants both in one file.
        let both = [&made.cert, &made.key].map(|path| std::fs::read_to_string(path).unwrap()).concat();
        folder.write("both.pem", &both);
        let (cert, key) = (made.cert.display().to_string(), made.key.display().to_string());
        let listen = ["--listen", "ws://127.0.0.1:0/ws", "--listen", "wss://127.0.0.1:0/ws"];
        let rest = ["--admin", "127.0.0.1:0", "--broker", "amqp://127.0.0.1:1", "--tls-cert", &cert, "--tls-key", &key];
        let arguments = [&["serve"][..], &listen, &rest].concat();
        let limit = ("STOMP_RELAY_LIMITS__CONNECTIONS_PER_ADDRESS_MAX", "1");
        let format = ("STOMP_RELAY_LOG__FORMAT", "json");
        let hosts = ("STOMP_RELAY_HTTP__HOSTS", "localhost");
        let mut relay = Process::start(&arguments, &[limit, format, hosts, proxy]);
        let mut urls = relay.ready().urls.into_iter().map(|url| crate::support::stomp::address(&url));
        let (ws, wss) = (urls.next().unwrap(), urls.next().unwrap());
        Site { folder, relay, ws, wss }
    }

    fn file(&self, name: &str) -> String {
        self.folder.path(name).display().to_string()
    }
}

async fn connect_from(client: &str, proxy: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(client.parse().unwrap(), 0)).unwrap();
    socket.connect(proxy).await.unwrap()
}

/// What a client at `client` gets that opens a WebSocket over TLS, as a page of the same origin does.
async fn open(site: &Site, proxy: &FrontProxy, client: &str) -> Client {
    let stream = connect_from(client, proxy.address).await;
    let stream = Client::handshake(stream, site.folder.path("ca.pem").as_path()).await;
    let port = proxy.address.port();
    Client::over_as_page(&format!("wss://localhost:{port}/ws"), &format!("https://localhost:{port}"), stream).await
}

async fn names_the_clients(mut site: Site, proxy: FrontProxy) {
    let first = open(&site, &proxy, "127.0.0.77").await;
    let line = site.relay.log.until("session opened");
    assert!(line.contains("\"client\":\"127.0.0.77 through 127.0.0.1\""), "{line}");
    // The limit is each client's own, not the proxy's.
    let mut second = open(&site, &proxy, "127.0.0.77").await;
    is_refused(first, "limit.strangers").await;
    let mut other = open(&site, &proxy, "127.0.0.78").await;
    // Through a proxy nobody is on the relay's machine.
    second.send("CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n").await;
    let error = second.error("Bad CONNECT").await;
    assert!(error.body.starts_with(b"non-loopback access denied"), "{error:?}");
    assert_eq!(second.closed().await.0, 1008);
    other.quiet().await;
}

#[tokio::test]
async fn nginx_that_ends_tls() {
    let site = Site::start(TRUSTED);
    let (cert, key) = (site.file("cert.pem"), site.file("key.pem"));
    let replacements = [
        ("10.0.0.5:8080", site.ws.as_str()),
        ("/etc/ssl/chat.example.com.pem", &cert),
        ("/etc/ssl/chat.example.com.key", &key),
    ];
    let proxy = FrontProxy::nginx("nginx.conf", &replacements);
    names_the_clients(site, proxy).await;
}

#[tokio::test]
async fn nginx_that_passes_tls_through() {
    let site = Site::start(PROTOCOL);
    let proxy = FrontProxy::nginx_stream("nginx-stream.conf", &[("10.0.0.5:443", &site.wss)]);
    names_the_clients(site, proxy).await;
}

#[tokio::test]
async fn haproxy_that_ends_tls() {
    let site = Site::start(TRUSTED);
    let both = site.file("both.pem");
    let replacements = [("10.0.0.5:8080", site.ws.as_str()), ("/etc/haproxy/chat.example.com.pem", &both)];
    let proxy = FrontProxy::haproxy("haproxy.cfg", &replacements);
    names_the_clients(site, proxy).await;
}

#[tokio::test]
async fn haproxy_that_passes_tls_through() {
    let site = Site::start(PROTOCOL);
    let proxy = FrontProxy::haproxy("haproxy-tcp.cfg", &[("10.0.0.5:443", &site.wss)]);
    names_the_clients(site, proxy).await;
}
