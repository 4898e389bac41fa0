//! A crowd at all of its limits beside sessions that work, in a process with a small budget.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::task::JoinSet;

use super::LARGE;
use crate::faults::alone;
use crate::support::rabbit::{Rabbit, unique};
use crate::support::relay_process::RelayProcess;
use crate::support::stomp::{Client, Received};

const WORKING: usize = 200;
const ATTACKERS: usize = 64;
const BUDGET: u64 = 512 << 20;
const QUIET: Duration = Duration::from_secs(4);
const ATTACK: Duration = Duration::from_secs(25);
/// Until what the attackers held must have gone back to the system.
const GIVEN_BACK: Duration = Duration::from_secs(120);
/// Of 64 sessions on a connection.
const FIRST_BYTES: usize = 100_000;
const PING_INTERVAL: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread")]
async fn attackers_at_all_limits_neither_end_the_others_nor_keep_the_memory() {
    let _alone = alone().await;
    // The first clients answer no ping before the last one has come.
    let settings = "[limits]\nmemory_max = \"512MiB\"\n[websocket]\nping_interval = \"5m\"\n";
    let relay = RelayProcess::start(env!("CARGO_BIN_EXE_stomp-relay"), &[Rabbit::shared().uri()], settings, 2048);
    let mut working = Vec::new();
    for _ in 0..WORKING {
        let mut client = Client::log_in(&relay.ws).await.expect("there is room");
        let topic = format!("/topic/{}", unique("works"));
        client.subscribe(&format!("id:0\ndestination:{topic}")).await;
        working.push((client, topic));
    }
    let working = use_buffers(&relay, working).await;
    let (working, quiet) = pings(working, QUIET).await;
    let start = relay.resident_bytes();

    let crowd = Crowd::start(&relay.ws);
    let peak = Arc::new(AtomicU64::new(0));
    let (working, attacked) = {
        let watch = async {
            let end = Instant::now() + ATTACK;
            while Instant::now() < end {
                peak.fetch_max(relay.resident_bytes(), Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::join!(pings(working, ATTACK), watch).0
    };
    let (tried, ended) = crowd.end().await;
    let peak = peak.load(Ordering::Relaxed);

    let left = Instant::now();
    let (mut working, mut after) = (working, relay.resident_bytes());
    while after > start * 13 / 10 && left.elapsed() < GIVEN_BACK {
        working = pings(working, PING_INTERVAL).await.0;
        after = relay.resident_bytes();
    }
    let mib = |bytes: u64| bytes >> 20;
    println!(
        "{WORKING} sessions beside {ATTACKERS} attackers: {} MiB at first, at most {} of {}, {} after {:.1} s; {tried} attacks, \
         {ended} of them ended; p99 {:?} before, {:?} during",
        mib(start),
        mib(peak),
        mib(BUDGET),
        mib(after),
        left.elapsed().as_secs_f64(),
        p99(quiet),
        p99(attacked),
    );
    assert!(tried >= ATTACKERS, "only {tried} attacks were made");
    assert!(peak > start + (64 << 20), "{} MiB at most: it was no attack", mib(peak));
    assert!(peak <= BUDGET, "{} MiB at most", mib(peak));
    assert!(after <= start * 13 / 10, "{} MiB are left, {} were there at first", mib(after), mib(start));
    let working = pings(working, PING_INTERVAL).await.0;
    assert_eq!(working.len(), WORKING, "each is still there and served");
}

/// Fills the buffers of the AMQP connections that the attackers will share, which keep their 8 MiB for good: there are as many
/// sessions as there will be, and each sends itself as much as makes more than 4 MiB on each connection.
async fn use_buffers(relay: &RelayProcess, working: Working) -> Working {
    let others = join_all((0..ATTACKERS).map(async |_| {
        let mut client = Client::log_in(&relay.ws).await.expect("there is room");
        let topic = format!("/topic/{}", unique("first"));
        client.subscribe(&format!("id:0\ndestination:{topic}")).await;
        (client, topic)
    }));
    let others = others.await;
    let fill = async |(mut client, topic): (Client, String)| {
        client.send(&format!("SEND\ndestination:{topic}\n\n{}", "x".repeat(FIRST_BYTES))).await;
        client.expect("MESSAGE").await;
        (client, topic)
    };
    for (client, _) in join_all(others.into_iter().map(fill)).await {
        client.disconnect().await;
    }
    join_all(working.into_iter().map(fill)).await
}

type Working = Vec<(Client, String)>;

/// Every session sends itself a message again and again; how long each took. None may be ended.
async fn pings(sessions: Working, time: Duration) -> (Working, Vec<Duration>) {
    let end = Instant::now() + time;
    let each = sessions.into_iter().map(|(mut client, topic)| {
        tokio::spawn(async move {
            let mut times = Vec::new();
            while times.is_empty() || Instant::now() < end {
                let start = Instant::now();
                super::works(&mut client, &topic).await;
                times.push(start.elapsed());
                tokio::time::sleep(PING_INTERVAL).await;
            }
            ((client, topic), times)
        })
    });
    let (mut sessions, mut all) = (Vec::new(), Vec::new());
    for each in join_all(each).await {
        let (session, times) = each.expect("a working session was ended");
        sessions.push(session);
        all.extend(times);
    }
    (sessions, all)
}

fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() * 99 / 100]
}

struct Crowd {
    ended: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
    tried: Arc<AtomicUsize>,
}

impl Crowd {
    /// Each comes again as soon as the relay has ended it.
    fn start(url: &str) -> Crowd {
        let (ended, tried) = (Arc::default(), Arc::default());
        let big = format!("/topic/{}", unique("big"));
        let mut tasks = JoinSet::new();
        for number in 0..ATTACKERS {
            let (url, big) = (url.to_owned(), big.clone());
            let (ended, tried): (Arc<AtomicUsize>, Arc<AtomicUsize>) = (Arc::clone(&ended), Arc::clone(&tried));
            tasks.spawn(async move {
                loop {
                    tried.fetch_add(1, Ordering::Relaxed);
                    let _ = attack(number, &url, &big).await;
                    ended.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            });
        }
        Crowd { ended, tasks, tried }
    }

    async fn end(mut self) -> (usize, usize) {
        self.tasks.shutdown().await;
        (self.tried.load(Ordering::Relaxed), self.ended.load(Ordering::Relaxed))
    }
}

/// Comes to one of the limits and stays there; comes back when the relay has had enough.
async fn attack(number: usize, url: &str, big: &str) -> Result<(), String> {
    let body = "x".repeat(LARGE);
    if number.is_multiple_of(7) {
        let mut client = Client::open(url).await;
        let lines = (0..12).map(|number| format!("x-{number}:{}\n", "x".repeat(5_000))).collect::<String>();
        client.try_send_bytes(format!("CONNECT\naccept-version:1.2\nhost:/\n{lines}").as_bytes()).await?;
        return stay(&mut client).await;
    }
    let mut client = Client::log_in(url).await?;
    match number % 7 {
        // Half a frame.
        1 => client.try_send_bytes(&format!("SEND\ndestination:{big}\n\n{body}").as_bytes()[..LARGE / 2]).await?,
        // Open transactions, with long bodies or with long headers.
        2 | 3 => {
            let values = (0..6).map(|number| format!("x{number}:{}\n", "v".repeat(9_000))).collect::<String>();
            for transaction in 0..8 {
                client.try_send(&format!("BEGIN\ntransaction:{transaction}\n\n")).await?;
                let head = format!("SEND\ndestination:{big}\ntransaction:{transaction}\n");
                if number % 7 == 2 {
                    client.try_send(&format!("{head}\n{body}")).await?;
                } else {
                    for _ in 0..60 {
                        client.try_send(&format!("{head}{values}\nx")).await?;
                    }
                }
            }
        }
        // Subscribers that never read.
        4 => {
            for id in 0..4 {
                client.try_send(&format!("SUBSCRIBE\nid:{id}\ndestination:{big}\nack:client\n\n")).await?;
            }
            tokio::time::sleep(ATTACK).await;
            return Ok(());
        }
        // SENDs that wait for their confirms, because each has to be written to a disk.
        5 => {
            let queue = format!("/queue/crowd-{number}");
            for receipt in 0.. {
                let head = format!("SEND\ndestination:{queue}\npersistent:true\nx-max-length:10\nreceipt:{receipt}\n");
                client.try_send(&format!("{head}\n{}", &body[..16_000])).await?;
            }
        }
        // What they never read, as fast as it is taken.
        _ => loop {
            client.try_send(&format!("SEND\ndestination:{big}\n\n{}", &body[..1_000_000])).await?;
        },
    }
    stay(&mut client).await
}

async fn stay(client: &mut Client) -> Result<(), String> {
    loop {
        if matches!(client.next().await, Received::Close(..)) {
            return Ok(());
        }
    }
}
