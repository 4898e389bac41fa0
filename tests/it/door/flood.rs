//! A flood of strangers: thousands of connections that say nothing, or trickle a request or a login byte by byte, while
//! sessions work. The sessions are not disturbed, memory is bounded by what docs/defaults.md says of a stranger, and those
//! beyond the cap take the places of the oldest.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::faults::alone;
use crate::support::condition::eventually;
use crate::support::rabbit::{Rabbit, unique};
use crate::support::raw_http::{frame, upgrade};
use crate::support::relay_process::RelayProcess;
use crate::support::stomp::{Client, address};

const SESSIONS: usize = 200;
const STRANGERS: usize = 10_000;
/// Of all addresses together: less than there are strangers, so that some meet it.
const CONNECTIONS_MAX: usize = 9_000;
const REFUSALS_MAX: usize = 100;
/// Source addresses of the strangers, each in a network of its own.
const ADDRESSES: usize = 50;

/// "What a stranger costs" in docs/defaults.md: task, HTTP state, buffers and whatever it has sent so far.
const STRANGER_BYTES_MAX: u64 = 32 * 1024;

/// From SEND to MESSAGE; far above what it takes, far below what a client would call an outage.
const UNDISTURBED: Duration = Duration::from_secs(3);

const PING_INTERVAL: Duration = Duration::from_millis(500);
const PHASE: Duration = Duration::from_secs(6);

#[tokio::test(flavor = "multi_thread")]
async fn strangers_do_not_disturb_sessions() {
    let _alone = alone().await;
    let strangers = affordable(STRANGERS);
    let settings = format!(
        "[limits]\nconnections_max = {CONNECTIONS_MAX}\nrefusals_max = {REFUSALS_MAX}\n\
         strangers_max = {CONNECTIONS_MAX}\nconnections_per_network_max = {CONNECTIONS_MAX}\nstranger_timeout = \"5m\"\n\
         [http]\nhead_timeout = \"60s\"\n[session]\nlogin_timeout = \"60s\"\n"
    );
    let descriptors = u32::try_from(CONNECTIONS_MAX + 1_000).unwrap();
    let program = env!("CARGO_BIN_EXE_stomp-relay");
    let relay = RelayProcess::start(program, &[Rabbit::shared().uri()], &settings, descriptors);
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        let mut client = Client::log_in(&relay.ws).await.expect("there is room");
        let topic = format!("/topic/{}", unique("flood"));
        client.subscribe(&format!("id:0\ndestination:{topic}")).await;
        sessions.push((client, topic));
    }
    let (sessions, quiet) = pings(sessions, PHASE).await;
    let before = relay.resident_bytes();

    let flood = Flood::start(&relay.ws, strangers).await;
    let held = flood.held.load(Ordering::Relaxed);
    let refused = relay.metric("stomp_relay_strangers_evicted_total");
    let (sessions, flooded) = pings(sessions, PHASE).await;
    let grown = relay.resident_bytes().saturating_sub(before);
    let still_held = flood.held.load(Ordering::Relaxed);
    println!(
        "{strangers} strangers, {still_held} of them held (at first {held}), {refused} refused; \
         memory grew by {:.1} MiB, {} bytes for each; p99 of {SESSIONS} sessions {:?} before, {:?} during",
        grown as f64 / f64::from(1 << 20),
        grown / still_held.max(1) as u64,
        p99(&quiet),
        p99(&flooded),
    );
    assert!(still_held >= strangers.min(CONNECTIONS_MAX - SESSIONS) * 9 / 10, "too few to be a flood");
    assert_eq!(refused > 0.0, strangers > CONNECTIONS_MAX - SESSIONS);
    assert!(relay.metric("stomp_relay_connections") <= (CONNECTIONS_MAX + REFUSALS_MAX) as f64);
    assert!(grown <= still_held as u64 * STRANGER_BYTES_MAX, "{grown} bytes");
    assert!(p99(&flooded) < UNDISTURBED, "{:?}", p99(&flooded));
    assert_eq!(relay.metric("stomp_relay_sessions") as usize, SESSIONS);

    flood.end().await;
    eventually("all places are given back", async || relay.metric("stomp_relay_connections") as usize == SESSIONS)
        .await;
    for (client, _) in sessions {
        client.disconnect().await;
    }
}

/// As many as this process may have sockets for.
fn affordable(wanted: usize) -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").expect("Linux says it");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("it is there");
    let soft: usize = line.split_whitespace().nth(3).and_then(|number| number.parse().ok()).unwrap_or(usize::MAX);
    wanted.min(soft.saturating_sub(SESSIONS + 200))
}

type Working = Vec<(Client, String)>;

/// Every session sends itself a message again and again; how long each took. None may be lost or closed.
async fn pings(sessions: Working, time: Duration) -> (Working, Vec<Duration>) {
    let end = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for (mut client, topic) in sessions {
        tasks.spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < end {
                let start = Instant::now();
                client.send(&format!("SEND\ndestination:{topic}\n\n{}", times.len())).await;
                client.message(&times.len().to_string()).await;
                times.push(start.elapsed());
                tokio::time::sleep(PING_INTERVAL).await;
            }
            ((client, topic), times)
        });
    }
    let (mut sessions, mut all) = (Vec::new(), Vec::new());
    for (session, times) in tasks.join_all().await {
        sessions.push(session);
        all.extend(times);
    }
    (sessions, all)
}

fn p99(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[sorted.len() * 99 / 100]
}

struct Flood {
    /// Connections that the relay has not closed.
    held: Arc<AtomicUsize>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Flood {
    /// Comes back when every stranger has had its try.
    async fn start(url: &str, count: usize) -> Flood {
        let relay: SocketAddr = address(url).parse().expect("an address");
        let (held, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        // Connecting is not the point: the kernel's backlog is short.
        let (tried, dialling) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(200)));
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let (held, stop, tried, dialling) = (held.clone(), stop.clone(), tried.clone(), dialling.clone());
            tasks.spawn(async move {
                let permit = dialling.acquire().await.expect("open");
                let stream = knock(number, relay).await;
                drop(permit);
                held.fetch_add(stream.is_some().into(), Ordering::Relaxed);
                tried.add_permits(1);
                if let Some(stream) = stream {
                    tokio::select! {
                        () = trickle(stream, number) => { held.fetch_sub(1, Ordering::Relaxed); }
                        () = stop.cancelled() => {}
                    }
                }
            });
        }
        let all = tried.acquire_many(u32::try_from(count).expect("small"));
        let _ = tokio::time::timeout(Duration::from_secs(120), all).await.expect("all have tried");
        Flood { held, stop, tasks }
    }

    async fn end(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn knock(number: usize, relay: SocketAddr) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().ok()?;
    let last = u8::try_from(number % ADDRESSES).ok()?;
    socket.bind(SocketAddr::new(Ipv4Addr::new(127, 1, last, 1).into(), 0)).ok()?;
    tokio::time::timeout(Duration::from_secs(20), socket.connect(relay)).await.ok()?.ok()
}

/// A third says nothing, a third trickles a request, a third a login; until the relay closes.
async fn trickle(mut stream: TcpStream, number: usize) {
    let mut buffer = [0; 512];
    if number % 3 == 2 && (stream.write_all(upgrade("/ws", "").as_bytes()).await.is_err()) {
        return;
    }
    let mut request = upgrade("/ws", &format!("X-Slow: {}", "x".repeat(1000))).into_bytes().into_iter();
    loop {
        let byte = match number % 3 {
            0 => Vec::new(),
            1 => request.next().into_iter().collect(),
            _ => frame(0x82, b"x"),
        };
        if stream.write_all(&byte).await.is_err() {
            return;
        }
        let second = tokio::time::sleep(Duration::from_secs(1));
        tokio::select! {
            // The answer to the upgrade; or the end.
            read = stream.read(&mut buffer) => if !matches!(read, Ok(1..)) { return },
            () = second => {}
        }
    }
}
