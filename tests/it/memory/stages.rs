//! What one connection takes in each stage of its life, measured in a relay process of its own and held against the formulas of
//! docs/defaults.md, "What a stranger costs" and "What a session costs at most".

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::faults::alone;
use crate::support::fault_proxy::{Direction, FaultProxy, Mode};
use crate::support::rabbit::{Rabbit, unique};
use crate::support::raw_http::{BINARY, CONTINUE, FIN, frame, frame_head, upgrade, within};
use crate::support::relay_process::RelayProcess;
use crate::support::stomp::{Client, address};

const KIB: u64 = 1024;

/// A connection without a login, beside what it has sent.
const STRANGER: u64 = 32 * KIB;

/// A session, beside what it makes the relay keep.
const SESSION: u64 = 32 * KIB;

/// What is read ahead of a session, its frame apart.
const READ_AHEAD: u64 = 64 * KIB;

/// The buffers of an AMQP connection, 64 frames.
const LINK: u64 = 8 * KIB * KIB;

/// What the stages hold, so that it stays there.
type Held = Box<dyn std::any::Any + Send>;

/// Opens `warm` connections, then `count` more, and says by how many bytes for each of those the process grew.
async fn grown(relay: &RelayProcess, count: usize, open: impl AsyncFn(&RelayProcess) -> Held) -> u64 {
    // The first ones bring what all share: pages of code, threads' buffers, the broker's connections.
    let mut held = Vec::new();
    for _ in 0..(count / 4).max(2) {
        held.push(open(relay).await);
    }
    let before = settled(relay).await;
    for _ in 0..count {
        held.push(open(relay).await);
    }
    settled(relay).await.saturating_sub(before) / count as u64
}

/// Resident memory once it has not grown for a while.
async fn settled(relay: &RelayProcess) -> u64 {
    let (mut most, mut since) = (0, Instant::now());
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let now = relay.resident_bytes();
        if now > most + 64 * KIB {
            (most, since) = (now, Instant::now());
        }
        if since.elapsed() > Duration::from_millis(600) || Instant::now() > end {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn connect(url: &str) -> TcpStream {
    within("connect", TcpStream::connect(address(url))).await.expect("the relay listens")
}

async fn sent(url: &str, bytes: &[u8]) -> Held {
    let mut socket = connect(url).await;
    // One that is refused on the way holds nothing, which is what is measured.
    let _ = within("send", socket.write_all(bytes)).await;
    Box::new(socket)
}

/// A WebSocket that has sent these bytes behind its opening.
async fn opened(url: &str, bytes: &[u8]) -> Held {
    let mut socket = connect(url).await;
    let request = upgrade("/ws", "Sec-WebSocket-Protocol: v12.stomp\r\n");
    socket.write_all(request.as_bytes()).await.expect("the relay listens");
    let mut answer = [0; 12];
    within("the answer", socket.read_exact(&mut answer)).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 101");
    within("send", socket.write_all(bytes)).await.expect("it is read");
    Box::new(socket)
}

/// A session that has sent these WebSocket frames.
async fn logged_in(url: &str, bytes: &[u8]) -> Held {
    let mut socket = session(url, "guest", "").await;
    within("send", socket.write_all(bytes)).await.expect("it is read");
    Box::new(socket)
}

/// A session of a user whose passcode is its name, with further headers in its CONNECT.
async fn session(url: &str, user: &str, headers: &str) -> TcpStream {
    let mut socket = connect(url).await;
    let request = upgrade("/ws", "Sec-WebSocket-Protocol: v12.stomp\r\n");
    let connect = format!("CONNECT\naccept-version:1.2\nhost:/\nlogin:{user}\npasscode:{user}\n{headers}\n\0");
    let connect = frame(FIN | BINARY, connect.as_bytes());
    socket.write_all(&[request.as_bytes(), &connect].concat()).await.expect("the relay listens");
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains("CONNECTED") {
        within("CONNECTED", socket.read_buf(&mut answer)).await.expect("an answer");
    }
    socket
}

/// The first part of a client's hello that never ends.
fn hello(bytes: usize) -> Vec<u8> {
    let hello = [&[1, 0, 0xfa, 0, 3, 3][..], &vec![7; bytes]].concat();
    let record = |part: &[u8]| [&[0x16, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat();
    hello.chunks(16_000).flat_map(record).collect()
}

/// Header lines of 5 KB.
fn lines(count: usize) -> String {
    (0..count).map(|number| format!("x-{number}:{}\n", "x".repeat(5_000))).collect()
}

/// A CONNECT without its end.
fn half_connect(bytes: usize) -> Vec<u8> {
    format!("CONNECT\naccept-version:1.2\nhost:/\n{}", &lines(bytes.div_ceil(5_000))[..bytes]).into_bytes()
}

/// As one message that has not ended, in fragments.
fn fragments(bytes: &[u8]) -> Vec<u8> {
    let parts = bytes.chunks(1_000).enumerate();
    parts.flat_map(|(number, part)| frame(if number == 0 { BINARY } else { CONTINUE }, part)).collect()
}

/// SENDs of long headers in one transaction, up to just below its limit.
fn transaction() -> Vec<u8> {
    let values = (0..6).map(|number| format!("x{number}:{}\n", "v".repeat(9_000))).collect::<String>();
    let send = format!("SEND\ndestination:/topic/{}\ntransaction:t\n{values}\nx\0", unique("stages"));
    let frames =
        [&frame(FIN | BINARY, b"BEGIN\ntransaction:t\n\n\0")[..], &frame(FIN | BINARY, send.as_bytes()).repeat(64)];
    frames.concat()
}

/// How a connection gets there.
type Reach<'a> = &'a (dyn Fn(&RelayProcess) -> Reached + Sync);

#[tokio::test(flavor = "multi_thread")]
async fn each_stage_takes_what_the_formulas_say() {
    let _alone = alone().await;
    let half_frame = [&b"SEND\ndestination:/topic/a\n\n"[..], &vec![b'b'; 2 << 20]].concat();
    let half_whole = [&frame_head(FIN | BINARY, 4_000_000)[..], &[0; 4], &half_frame].concat();
    let half_cut = fragments(&half_frame);
    let (connect_whole, connect_cut) = (frame(FIN | BINARY, &half_connect(60_000)), fragments(&half_connect(60_000)));
    let head = format!("GET /ws HTTP/1.1\r\nHost: a\r\nCookie: {}", "c".repeat(8_000));
    let transaction = transaction();
    let half = 2 * KIB * KIB;
    // Stage, how many, KiB that the formula gives, and how it is reached.
    let stages: &[(&str, usize, u64, Reach)] = &[
        ("a hello of 15 KB, unfinished", 200, STRANGER + 16 * KIB, &|relay| {
            Reached::Tcp(relay.wss.clone(), hello(15_000))
        }),
        ("a hello of 60 KB, unfinished", 200, STRANGER, &|relay| Reached::Tcp(relay.wss.clone(), hello(60_000))),
        ("TLS done", 200, STRANGER, &|relay| Reached::Tls(relay.wss.clone())),
        ("half a request head", 200, STRANGER + 8 * KIB, &|relay| {
            Reached::Tcp(relay.ws.clone(), head.clone().into_bytes())
        }),
        ("WebSocket open", 200, STRANGER, &|relay| Reached::Open(relay.ws.clone(), Vec::new())),
        ("60 KB of CONNECT", 100, STRANGER + 60 * KIB, &|relay| Reached::Open(relay.ws.clone(), connect_whole.clone())),
        ("60 KB of CONNECT in fragments", 100, STRANGER + 60 * KIB, &|relay| {
            Reached::Open(relay.ws.clone(), connect_cut.clone())
        }),
        ("logged in", 100, SESSION, &|relay| Reached::LoggedIn(relay.ws.clone(), Vec::new())),
        ("logged in by 60 KB of CONNECT", 100, SESSION, &|relay| Reached::Session(relay.ws.clone(), lines(12))),
        ("half a frame of 4 MB", 8, SESSION + READ_AHEAD + half * 5 / 4, &|relay| {
            Reached::LoggedIn(relay.ws.clone(), half_whole.clone())
        }),
        ("half a frame of 4 MB in fragments", 8, SESSION + READ_AHEAD + half * 5 / 4, &|relay| {
            Reached::LoggedIn(relay.ws.clone(), half_cut.clone())
        }),
        ("a transaction at its limit", 8, SESSION + READ_AHEAD + 4 * KIB * KIB, &|relay| {
            Reached::LoggedIn(relay.ws.clone(), transaction.clone())
        }),
    ];
    let settings =
        "[tls]\nhandshake_timeout = \"60s\"\n[http]\nhead_timeout = \"60s\"\n[session]\nlogin_timeout = \"60s\"\n";
    let program = env!("CARGO_BIN_EXE_stomp-relay");
    let mut over = Vec::new();
    for (stage, count, limit, reach) in stages {
        let relay = RelayProcess::start_with_tls(program, &[Rabbit::shared().uri()], settings, 2048);
        let bytes = grown(&relay, *count, async |relay: &RelayProcess| reach(relay).go(relay).await).await;
        println!("{stage:36} {:6} KiB of {:6}", bytes / KIB, limit / KIB);
        assert!(bytes > 0, "{stage}: nothing was held");
        if bytes > *limit {
            over.push(format!("{stage}: {} KiB, the formula gives {}", bytes / KIB, limit / KIB));
        }
    }
    assert!(over.is_empty(), "{over:#?}");
}

/// Who has a session and nothing else: an AMQP connection stays for each, whose thread has a stack.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_is_idle_takes_one_thread_and_half_a_mebibyte_at_most() {
    const USERS: usize = 40;
    let _alone = alone().await;
    let (rabbit, prefix) = (Rabbit::shared(), unique("idle"));
    let each_user = |what: &str| {
        let user = format!("iolist_to_binary([<<\"{prefix}-\">>, integer_to_list(N)])");
        let all = format!("[begin U = {user}, {what} end || N <- lists:seq(1, {})], ok.", 2 * USERS);
        rabbit.ctl(&["eval", &all]);
    };
    tokio::task::block_in_place(|| {
        each_user(
            "rabbit_auth_backend_internal:add_user(U, U, <<\"test\">>), \
             rabbit_auth_backend_internal:set_permissions(U, <<\"/\">>, <<\".*\">>, <<\".*\">>, <<\".*\">>, <<\"test\">>)",
        );
    });
    let relay = RelayProcess::start(env!("CARGO_BIN_EXE_stomp-relay"), &[rabbit.uri()], "", 1024);
    let (threads, count) = (relay.threads(), std::cell::Cell::new(0));
    let bytes = grown(&relay, USERS, async |relay: &RelayProcess| {
        count.set(count.get() + 1);
        let held: Held = Box::new(session(&relay.ws, &format!("{prefix}-{}", count.get()), "").await);
        held
    })
    .await;
    let threads = relay.threads() - threads;
    println!("an idle user: {} KiB, {threads} threads for {} of them", bytes / KIB, count.get());
    tokio::task::block_in_place(|| each_user("rabbit_auth_backend_internal:delete_user(U, <<\"test\">>)"));
    assert!(bytes <= 512 * KIB, "{} KiB", bytes / KIB);
    assert!(threads <= count.get() + 8, "{threads} threads");
}

#[tokio::test(flavor = "multi_thread")]
async fn sends_without_a_confirm_take_what_their_limit_says() {
    const SESSIONS: usize = 8;
    let _alone = alone().await;
    let proxy = FaultProxy::start(Rabbit::shared().amqp_port()).await;
    let broker = format!("amqp://127.0.0.1:{}", proxy.port());
    let relay = RelayProcess::start(env!("CARGO_BIN_EXE_stomp-relay"), &[broker], "", 1024);
    let values = (0..6).map(|number| format!("x{number}:{}\n", "v".repeat(9_000))).collect::<String>();
    let send = format!("SEND\ndestination:/topic/{}\n{values}\nx\0", unique("stages"));
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        let mut socket = session(&relay.ws, "guest", "").await;
        // Has its channel before confirms stay away.
        socket.write_all(&frame(FIN | BINARY, send.replace("\n\n", "\nreceipt:first\n\n").as_bytes())).await.unwrap();
        let mut answer = Vec::new();
        while !String::from_utf8_lossy(&answer).contains("receipt-id:first") {
            within("RECEIPT", socket.read_buf(&mut answer)).await.expect("an answer");
        }
        sessions.push(socket);
    }
    let before = settled(&relay).await;
    proxy.set(Mode::SwallowFrom(Direction::FromServer));
    let mut sending = Vec::new();
    for mut socket in sessions {
        let frames = frame(FIN | BINARY, send.as_bytes());
        // More than the limit: the rest stays in the socket.
        sending.push(tokio::spawn(async move {
            for _ in 0..200 {
                if socket.write_all(&frames).await.is_err() {
                    break;
                }
            }
            socket
        }));
    }
    let grown = settled(&relay).await.saturating_sub(before) / SESSIONS as u64;
    // The AMQP connection that they share fills its own buffers with what is written.
    let limit = SESSION + READ_AHEAD + 4 * KIB * KIB + 2 * 64 * KIB + LINK / SESSIONS as u64;
    println!("unconfirmed SENDs at their limit     {:6} KiB of {:6}", grown / KIB, limit / KIB);
    assert!(grown > KIB * KIB, "{grown} bytes: nothing was held");
    assert!(grown <= limit, "{grown} bytes, the formula gives {limit}");
    sending.iter().for_each(tokio::task::JoinHandle::abort);
}

/// How a stage is reached.
enum Reached {
    LoggedIn(String, Vec<u8>),
    Open(String, Vec<u8>),
    /// By a CONNECT with these further headers.
    Session(String, String),
    Tcp(String, Vec<u8>),
    Tls(String),
}

impl Reached {
    async fn go(self, relay: &RelayProcess) -> Held {
        match self {
            Reached::LoggedIn(url, bytes) => logged_in(&url, &bytes).await,
            Reached::Open(url, bytes) => opened(&url, &bytes).await,
            Reached::Session(url, headers) => Box::new(session(&url, "guest", &headers).await),
            Reached::Tcp(url, bytes) => sent(&url, &bytes).await,
            Reached::Tls(url) => Box::new(Client::handshake(connect(&url).await, &relay.ca).await),
        }
    }
}
