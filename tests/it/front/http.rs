//! What requests get as answers: upgrades, pages, refusals, files, and limits on the head.

use std::time::{Duration, Instant};

use stomp_relay::listener::{FILE_BYTES_MAX, ListenerConfig, Security, StaticRoot, Subprotocol};

use super::server::{Folder, Server, config};
use crate::support::raw_http::{FIN, TEXT, frame, upgrade, within};

#[tokio::test]
async fn upgrades_are_accepted_in_every_usual_spelling() {
    let mut server = Server::start(config());
    let protocol = "Sec-WebSocket-Protocol";
    let none: Option<Subprotocol> = None;
    let cases = [
        (upgrade("/ws", ""), none),
        (upgrade("/ws/", ""), none),
        (upgrade("/ws?token=a/b&x", ""), none),
        (upgrade("http://example.com/ws", ""), none),
        (upgrade("/ws", "Connection: keep-alive\r\n"), none),
        (upgrade("/ws", "").replace("Connection: Upgrade", "connection: Keep-Alive , uPGRADE, foo"), none),
        (upgrade("/ws", "").replace("Connection: Upgrade", "Connection: close\r\nConnection: upgrade"), none),
        (upgrade("/ws", "").replace("Upgrade: websocket", "upgrade: h2c, WebSocket"), none),
        (upgrade("/ws", "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"), none),
        (upgrade("/ws", &format!("{protocol}: v12.stomp, v11.stomp, v10.stomp\r\n")), Some(Subprotocol::V12)),
        (upgrade("/ws", &format!("{protocol}: v10.stomp,v11.stomp\r\n")), Some(Subprotocol::V11)),
        (upgrade("/ws", &format!("{protocol}: v11.stomp\r\n{protocol}: mqtt, v12.stomp\r\n")), Some(Subprotocol::V12)),
        (upgrade("/ws", &format!("{protocol}: v10.stomp\r\n")), Some(Subprotocol::V10)),
        (upgrade("/ws", &format!("{protocol}: mqtt, V12.STOMP\r\n")), none),
        (upgrade("/ws", &format!("{protocol}:\r\n")), none),
    ];
    for (request, subprotocol) in cases {
        let mut client = server.raw().await;
        client.send(&request).await;
        let answer = client.answer("GET").await;
        assert_eq!(answer.status, 101, "{request}");
        assert_eq!(answer.one("sec-websocket-accept"), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(answer.one("upgrade"), "websocket");
        // A client that asked for "close" too gets it confirmed.
        assert_eq!(answer.one("connection").split(',').next(), Some("Upgrade"), "{answer:?}");
        assert_eq!(answer.all("sec-websocket-extensions"), [""; 0]);
        let names: Vec<_> = subprotocol.iter().map(|subprotocol| subprotocol.as_str()).collect();
        assert_eq!(answer.all("sec-websocket-protocol"), names, "{request}");
        assert_eq!(server.opened().await.1.subprotocol, subprotocol, "{request}");
    }
}

#[tokio::test]
async fn the_opened_websocket_says_who_came_and_has_the_bytes_behind_the_head() {
    let mut server = Server::start(config());
    let socket = server.connect().await;
    let address = socket.local_addr().unwrap();
    let mut client = crate::support::raw_http::RawClient::new(socket);
    let mut bytes = upgrade("/ws", "Origin: https://app.example.com\r\nUser-Agent: probe/1\r\n").into_bytes();
    bytes.extend(frame(FIN | TEXT, b"early"));
    client.send(bytes).await;
    let (mut websocket, opened) = server.opened().await;
    assert_eq!((opened.peer, opened.local), (address, server.address));
    assert_eq!(opened.security, Security::Plain);
    assert_eq!(opened.origin.as_deref(), Some("https://app.example.com"));
    assert_eq!(opened.user_agent.as_deref(), Some("probe/1"));
    let incoming = within("the early message", websocket.recv()).await.unwrap();
    assert_eq!(incoming, stomp_relay::listener::Incoming::Data("early".into()));
}

#[tokio::test]
async fn other_requests_get_a_page_that_says_what_to_do() {
    let server = Server::start(config());
    // One keep-alive connection for all of them.
    let mut client = server.raw().await;

    let page = client.request("GET", "/ws", "Accept: text/html,*/*\r\n").await;
    assert_eq!((page.status, page.one("content-type")), (426, "text/html; charset=utf-8"));
    assert_eq!((page.one("upgrade"), page.one("connection")), ("websocket", "Upgrade"));
    assert!(page.body.contains("brokerURL: &#39;ws://example.com/ws&#39;"), "{}", page.body);
    assert!(page.body.contains("proxy"), "{}", page.body);
    assert_eq!(page.one("content-security-policy"), "default-src 'self'");
    assert_eq!((page.one("cache-control"), page.one("x-content-type-options")), ("no-store", "nosniff"));
    assert_eq!(page.one("referrer-policy"), "no-referrer");

    let text = client.request("GET", "/ws/?x", "").await;
    assert_eq!((text.status, text.one("content-type")), (426, "text/plain; charset=utf-8"));
    assert!(text.body.contains("brokerURL: 'ws://example.com/ws'"), "{}", text.body);

    let head = client.request("HEAD", "/ws", "").await;
    assert_eq!((head.status, head.one("content-length")), (426, text.one("content-length")));

    let stripped = client.request("GET", "/ws", "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n").await;
    assert_eq!(stripped.status, 426);

    let post = client.request("POST", "/ws", "Content-Length: 0\r\n").await;
    assert_eq!((post.status, post.one("allow")), (405, "GET, HEAD"));

    for path in ["/", "/WS", "/ws/info", "/ws//", "/stomp", "/%77s"] {
        let missing = client.request("GET", path, "").await;
        assert_eq!(missing.status, 404, "{path}");
        assert!(missing.body.contains("ws://example.com/ws"), "{}", missing.body);
        assert_eq!(missing.one("x-content-type-options"), "nosniff");
    }
}

#[tokio::test]
async fn a_hostile_host_is_not_put_into_the_page() {
    let server = Server::start(config());
    let mut client = server.raw().await;
    client.send("GET /ws HTTP/1.1\r\nHost: <script>alert(1)</script>\r\nAccept: text/html\r\n\r\n").await;
    let page = client.answer("GET").await;
    assert!(page.status == 400 && !page.body.contains("<script>"), "{page:?}");
}

#[tokio::test]
async fn bad_handshakes_are_refused_with_the_reason() {
    let mut server = Server::start(config());
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let good = upgrade("/ws", "");
    let cases = [
        (good.replace("Sec-WebSocket-Version: 13\r\n", ""), 400, "Sec-WebSocket-Version is missing"),
        (good.replace("Version: 13", "Version: 8"), 426, "not 13"),
        (good.replace(key, ""), 400, "Sec-WebSocket-Key"),
        (good.replace("dGhlIHNhbXBsZSBub25jZQ==", "short"), 400, "Sec-WebSocket-Key"),
        (good.replace(key, &format!("{key}{key}")), 400, "Sec-WebSocket-Key"),
        (upgrade("/ws", "Content-Length: 3\r\n") + "abc", 400, "without a body"),
        (good.replace("HTTP/1.1", "HTTP/1.0"), 400, "HTTP/1.1"),
    ];
    for (request, status, reason) in cases {
        let mut client = server.raw().await;
        client.send(&request).await;
        let answer = client.answer("GET").await;
        assert_eq!(answer.status, status, "{request}");
        assert!(answer.body.contains(reason), "{request}{}", answer.body);
        if status == 426 {
            assert_eq!(answer.one("sec-websocket-version"), "13");
            assert_eq!(answer.one("upgrade"), "websocket");
        }
    }
    // None of them opened anything: the next one opened is a good one.
    let mut client = server.raw().await;
    client.send(upgrade("/ws", "User-Agent: good\r\n")).await;
    assert_eq!(server.opened().await.1.user_agent.as_deref(), Some("good"));
}

#[tokio::test]
async fn files_are_served_from_the_root_and_from_nowhere_else() {
    let folder = Folder::new();
    let root = folder.0.join("public");
    folder.write("secret.txt", "secret");
    folder.write("public-not/secret.txt", "secret");
    folder.write("public/index.html", "<p>front</p>");
    folder.write("public/js/app v2.mjs", "export {}");
    folder.write("public/.env", "secret");
    folder.write("public/.git/config", "secret");
    folder.write("public/blob", "?");
    let big = folder.write("public/big.txt", vec![b'x'; FILE_BYTES_MAX as usize]);
    folder.write("public/too-big.txt", vec![b'x'; FILE_BYTES_MAX as usize + 1]);
    std::os::unix::fs::symlink(folder.0.join("secret.txt"), root.join("out.txt")).unwrap();
    std::os::unix::fs::symlink(folder.0.join("public-not"), root.join("out")).unwrap();
    std::os::unix::fs::symlink(&big, root.join("inside.txt")).unwrap();
    // Links within the folder, to what is hidden in it.
    folder.write("public/.hidden/secret.txt", "secret");
    folder.write("public/.ssh/keys/secret.txt", "secret");
    for (target, link) in [(".env", "env.txt"), (".hidden", "shown"), (".ssh/keys", "keys"), ("env.txt", "twice.txt")] {
        std::os::unix::fs::symlink(target, root.join(link)).unwrap();
    }
    // As Kubernetes mounts a volume.
    folder.write("public/..2026_01_01/mounted.txt", "mounted");
    std::os::unix::fs::symlink("..2026_01_01", root.join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/mounted.txt", root.join("mounted.txt")).unwrap();
    let server = Server::start(ListenerConfig { root: Some(StaticRoot::new(&root).unwrap()), ..config() });
    let mut client = server.raw().await;
    assert_eq!(client.request("GET", "/mounted.txt", "").await.body, "mounted");

    let index = client.request("GET", "/?x=1", "").await;
    assert_eq!((index.status, index.body.as_str()), (200, "<p>front</p>"));
    assert_eq!(index.one("content-type"), "text/html; charset=utf-8");
    assert_eq!(index.one("content-security-policy"), "default-src 'self'");
    assert_eq!((index.one("cache-control"), index.one("x-content-type-options")), ("no-cache", "nosniff"));
    let script = client.request("GET", "/js/app%20v2.mjs", "").await;
    assert_eq!((script.body.as_str(), script.one("content-type")), ("export {}", "text/javascript; charset=utf-8"));
    assert_eq!(client.request("GET", "/blob", "").await.one("content-type"), "application/octet-stream");
    for path in ["/big.txt", "/inside.txt"] {
        assert_eq!(client.request("GET", path, "").await.body.len() as u64, FILE_BYTES_MAX, "{path}");
    }
    let head = client.request("HEAD", "/index.html", "").await;
    assert_eq!((head.status, head.one("content-length")), (200, "12"));
    assert_eq!(client.request("POST", "/index.html", "Content-Length: 0\r\n").await.status, 405);
    assert_eq!(client.request("GET", "/ws", "").await.status, 426);

    for path in [
        "/../secret.txt",
        "/js/../../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e%2fsecret.txt",
        "/..%5csecret.txt",
        "/js/%2e%2e/index.html",
        "//etc/passwd",
        "/%2fetc/passwd",
        "/.env",
        "/%2eenv",
        "/.git/config",
        "/out.txt",
        "/out/secret.txt",
        "/env.txt",
        "/twice.txt",
        "/shown/secret.txt",
        "/keys/secret.txt",
        "/..data/mounted.txt",
        "/too-big.txt",
        "/js",
        "/js/",
        "/missing",
        "/index.html%00",
        "/index.html/",
        "/../public-not/secret.txt",
    ] {
        let answer = client.request("GET", path, "").await;
        assert_eq!(answer.status, 404, "{path}");
        assert!(!answer.body.contains("secret") && !answer.body.contains("root:"), "{path}: {}", answer.body);
    }
}

#[tokio::test]
async fn heads_are_bounded() {
    let server = Server::start(config());
    let mut client = server.raw().await;
    client.send(format!("GET /ws HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(8200))).await;
    assert_eq!(client.answer("GET").await.status, 431);
    let mut client = server.raw().await;
    let many: String = (0..65).map(|count| format!("X-{count}: 1\r\n")).collect();
    client.send(format!("GET /ws HTTP/1.1\r\n{many}\r\n")).await;
    assert_eq!(client.answer("GET").await.status, 431);
    let mut client = server.raw().await;
    assert_eq!(client.request("GET", "/ws", &format!("X: {}\r\n", "x".repeat(7000))).await.status, 426);
}

#[tokio::test]
async fn silent_and_slow_clients_are_closed() {
    let head_timeout = Duration::from_millis(300);
    let mut server = Server::start(ListenerConfig { head_timeout, ..config() });
    for sent in ["", "G", "GET /ws HTTP/1.1\r\nHost: h\r\n"] {
        let start = Instant::now();
        let mut client = server.raw().await;
        client.send(sent).await;
        client.rest().await;
        assert!(start.elapsed() >= head_timeout, "{sent:?} was closed early");
        server.one_served().await;
    }
    // Idle after a request.
    let mut client = server.raw().await;
    assert_eq!(client.request("GET", "/", "").await.status, 404);
    assert_eq!(client.rest().await, b"");
    server.one_served().await;
}

#[tokio::test]
async fn garbage_ends_the_connection() {
    let mut server = Server::start(config());
    for bytes in [&b"\x00\x01\x02\r\n\r\n"[..], b"CONNECT\naccept-version:1.2\n\n\0", b"\x80\x80\x80"] {
        let mut client = server.raw().await;
        client.send(bytes).await;
        client.rest().await;
        server.one_served().await;
    }
}

#[tokio::test]
async fn stop_ends_idle_connections_but_no_websocket() {
    // Stop is the only thing that can end them in time.
    let head_timeout = Duration::from_secs(600);
    let mut server = Server::start(ListenerConfig { head_timeout, ..config() });
    let mut silent = server.raw().await;
    let mut idle = server.raw().await;
    assert_eq!(idle.request("GET", "/", "").await.status, 404);
    let (mut client, mut websocket) = server.pair().await;
    server.one_served().await; // the one whose WebSocket was taken out
    server.stop.cancel();
    assert_eq!(silent.rest().await, b"");
    assert_eq!(idle.rest().await, b"");
    server.one_served().await;
    server.one_served().await;
    client.send(frame(FIN | TEXT, b"still here")).await;
    within("a message after stop", websocket.recv()).await.unwrap();
}

#[tokio::test]
async fn the_session_runs_within_serve_connection() {
    let listener = stomp_relay::listener::tcp::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    let (running, mut is_running) = tokio::sync::mpsc::channel(1);
    let (finish, finished) = tokio::sync::watch::channel(false);
    let on_open = move |websocket, _| {
        let (running, mut finished) = (running.clone(), finished.clone());
        async move {
            running.send(()).await.unwrap();
            finished.wait_for(|finished| *finished).await.unwrap();
            drop(websocket);
        }
    };
    let serving = tokio::spawn(async move {
        let (socket, peer) = listener.accept().await.unwrap();
        let stop = tokio_util::sync::CancellationToken::new();
        stomp_relay::listener::serve_connection(
            socket,
            peer,
            config().into(),
            stop,
            super::server::Open.into(),
            on_open,
        )
        .await;
    });
    let socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let client = crate::support::raw_http::RawClient::new(socket).upgraded().await;
    within("the session", is_running.recv()).await.unwrap();
    assert!(!serving.is_finished());
    finish.send(true).unwrap();
    within("the end", serving).await.unwrap();
    drop(client);
}
