//! Mixed traffic through two real relays in front of a real RabbitMQ, with random faults; ends with one line of numbers. Run by
//! scripts/soak.
//!
//! Checked after every fault: nothing confirmed is lost, nothing is out of order, every repetition says so, and no client was
//! disconnected but those that were cut on purpose, and those of a relay that was killed: they go to the other one. The first violation ends the run with exit code 1.

// It shares the clients and the tally with the tests, and needs only some of their support.
#[allow(dead_code, unreachable_pub)]
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use support::rabbit::Rabbit;
use support::relay_process::RelayProcess;
use support::stomp::Client;
use support::tally::{Promise, Publisher, Tally};
use support::traffic::{Acks, Barrier, PATIENCE, Pace, consume, publish, subscribe_as};

/// A node on a busy machine may take longer to boot than the default grace.
const SETTINGS: &str = "[broker]\nheartbeat = \"5s\"\ngrace = \"5m\"\n[limits]\nconnections_max = 1000\n";
const QUEUES: usize = 9;
const PLAIN: usize = 10;
const RELAYS: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Alarm,
    Cut,
    Kill,
    /// One of the two relays is killed, and another one started in its place.
    Relay,
    Reload,
    Restart,
    Stop,
}

const FAULTS: [Fault; 7] =
    [Fault::Alarm, Fault::Cut, Fault::Kill, Fault::Relay, Fault::Reload, Fault::Restart, Fault::Stop];

/// A linear congruential generator: the same seed gives the same faults.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// What every client of the soak knows.
#[derive(Clone)]
struct Scene {
    cuts: Arc<AtomicU64>,
    /// Sessions that ended with their relay.
    orphans: Arc<AtomicU64>,
    /// The relays that are there, in no order.
    relays: Arc<Mutex<Vec<Place>>>,
    stops: CancellationToken,
    tally: Tally,
    turns: Arc<AtomicU64>,
}

/// A relay, as its clients see it.
#[derive(Clone)]
struct Place {
    /// It is killed, or will be at once.
    killed: CancellationToken,
    url: String,
}

struct Soak {
    cuttable: Vec<Arc<Notify>>,
    dice: Dice,
    faults: BTreeMap<Fault, u32>,
    plain: Arc<Barrier>,
    publishing_stops: CancellationToken,
    program: String,
    rabbit: Rabbit,
    relays: Vec<RelayProcess>,
    resident_max: u64,
    scene: Scene,
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(minutes), Some(program)) = (arguments.next().and_then(|text| text.parse::<f64>().ok()), arguments.next())
    else {
        eprintln!("usage: soak MINUTES RELAY-PROGRAM [SEED]");
        return ExitCode::from(2);
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
    let seed = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(now);
    let tally = Tally::default();
    let began = Instant::now();
    let shared = tally.clone();
    let run = tokio::spawn(async move {
        let mut soak = Soak::start(&program, seed, shared).await;
        let broken = soak.run(began + Duration::from_secs_f64(minutes * 60.0)).await.err();
        let summary = soak.summary();
        soak.scene.stops.cancel();
        (summary, broken)
    });
    // A panic is a broken promise too: of a helper that waited in vain.
    let (summary, broken) =
        run.await.unwrap_or_else(|error| (tally.report().to_string(), Some(format!("stopped: {error}"))));
    let verdict = broken.map_or("ok".to_owned(), |reason| format!("BROKEN: {reason}"));
    let lasted = began.elapsed().as_secs_f64() / 60.0;
    println!("soak: {lasted:.1} min, seed {seed}, {summary}: {verdict}");
    if verdict == "ok" { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

impl Soak {
    async fn start(program: &str, seed: u64, tally: Tally) -> Soak {
        let rabbit = block_in_place(Rabbit::start);
        let scene = Scene {
            cuts: Arc::default(),
            orphans: Arc::default(),
            relays: Arc::default(),
            stops: CancellationToken::new(),
            tally,
            turns: Arc::default(),
        };
        let mut soak = Soak {
            cuttable: Vec::new(),
            dice: Dice(seed),
            faults: BTreeMap::new(),
            plain: Arc::default(),
            program: program.to_owned(),
            publishing_stops: CancellationToken::new(),
            rabbit,
            relays: Vec::new(),
            resident_max: 0,
            scene,
        };
        for _ in 0..RELAYS {
            soak.start_relay();
        }
        soak.populate().await;
        soak
    }

    fn start_relay(&mut self) {
        let brokers = [self.rabbit.uri()];
        let relay = block_in_place(|| RelayProcess::start(&self.program, &brokers, SETTINGS, 4096));
        self.scene.places().push(Place { killed: CancellationToken::new(), url: relay.ws.clone() });
        self.relays.push(relay);
    }

    /// SIGKILL of one, whose clients go to the others, and then another one.
    async fn kill_relay(&mut self) {
        let which = self.dice.below(self.relays.len() as u64) as usize;
        self.scene.tally.outage_begins();
        // Both lists are in the same order.
        self.scene.places().remove(which).killed.cancel();
        let relay = self.relays.remove(which);
        block_in_place(|| drop(relay));
        self.plain.pass(PLAIN).await;
        self.scene.tally.outage_ends();
        self.start_relay();
    }

    /// All subscribers, then all publishers.
    async fn populate(&mut self) {
        for number in 0..PLAIN {
            let acks = [Acks::Auto, Acks::Client, Acks::Individual][number % 3];
            self.subscriber("/topic/soak.plain", String::new(), acks, Promise::WhileLinked).await;
        }
        for number in 0..6 {
            let acks = [Acks::Auto, Acks::Client, Acks::Individual][number % 3];
            let headers = format!("durable:true\nauto-delete:false\nx-queue-name:soak-durable-{number}\n");
            self.subscriber("/topic/soak.durable", headers, acks, Promise::All).await;
        }
        for number in 0..QUEUES {
            let acks = [Acks::Auto, Acks::Client, Acks::Individual][number % 3];
            self.subscriber(&format!("/queue/soak-{number}"), String::new(), acks, Promise::All).await;
        }
        for _ in 0..2 {
            self.publisher("/topic/soak.plain", Sending::Single, None);
            let cut = self.cuttable();
            self.publisher("/topic/soak.durable", Sending::Single, Some(cut));
        }
        for number in 0..QUEUES {
            let sending = if number % 3 == 1 { Sending::Transactions } else { Sending::Single };
            let cut = self.cuttable();
            self.publisher(&format!("/queue/soak-{number}"), sending, Some(cut));
        }
    }

    fn cuttable(&mut self) -> Arc<Notify> {
        let cut = Arc::new(Notify::new());
        self.cuttable.push(cut.clone());
        cut
    }

    /// With `ack:auto`, and on a plain topic, what a client had not read when it was cut is gone: those are not cut.
    async fn subscriber(&mut self, destination: &str, headers: String, acks: Acks, promise: Promise) {
        let plain = promise == Promise::WhileLinked;
        let cut = if plain || acks == Acks::Auto { Arc::new(Notify::new()) } else { self.cuttable() };
        let barrier = if plain { self.plain.clone() } else { Arc::default() };
        let (scene, destination) = (self.scene.clone(), destination.to_owned());
        let log = scene.tally.subscriber(&destination, promise);
        let subscribed = Arc::new(Notify::new());
        let ready = subscribed.clone();
        tokio::spawn(async move {
            while let Some((mut client, place)) = scene.log_in().await {
                let session = async {
                    subscribe_as(&mut client, &destination, &headers, acks).await?;
                    ready.notify_one();
                    consume(&mut client, acks, &log, &barrier, &scene.stops).await
                };
                scene.ended(session, &cut, &place, "subscriber of", &destination).await;
            }
        });
        subscribed.notified().await;
    }

    fn publisher(&mut self, destination: &str, sending: Sending, cut: Option<Arc<Notify>>) {
        let (scene, stops, destination) = (self.scene.clone(), self.publishing_stops.clone(), destination.to_owned());
        let cut = cut.unwrap_or_default();
        let every = Duration::from_millis(20 + self.dice.below(60));
        let pace = Pace { body_bytes: 200, every, window: 64 };
        tokio::spawn(async move {
            while !stops.is_cancelled() {
                let Some((mut client, place)) = scene.log_in().await else { return };
                // After a cut nobody knows what became of the unconfirmed: a new publisher has an order of its own.
                let numbers = scene.tally.publisher(&destination);
                let session = async {
                    match sending {
                        Sending::Single => publish(&mut client, &numbers, &destination, pace, &stops).await,
                        Sending::Transactions => transact(&mut client, &numbers, &destination, pace, &stops).await,
                    }
                };
                scene.ended(session, &cut, &place, "publisher to", &destination).await;
            }
        });
    }

    async fn run(&mut self, end: Instant) -> Result<(), String> {
        while Instant::now() < end {
            let pause = Duration::from_millis(2000 + self.dice.below(4000));
            self.pass(pause).await;
            let fault = FAULTS[self.dice.below(FAULTS.len() as u64) as usize];
            *self.faults.entry(fault).or_default() += 1;
            self.inflict(fault).await;
            self.check().await?;
            eprintln!("{fault:?}: {}", self.scene.tally.report());
        }
        self.publishing_stops.cancel();
        self.check().await
    }

    /// Lets time go by and watches the relay's memory.
    async fn pass(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let resident = self.relays.iter().map(RelayProcess::resident_bytes).max().unwrap_or(0);
            self.resident_max = self.resident_max.max(resident);
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn inflict(&mut self, fault: Fault) {
        match fault {
            Fault::Alarm => {
                block_in_place(|| self.rabbit.ctl(&["set_vm_memory_high_watermark", "0.0000001"]));
                self.pass(Duration::from_secs(3)).await;
                block_in_place(|| self.rabbit.ctl(&["set_vm_memory_high_watermark", "0.6"]));
            }
            Fault::Cut => {
                for _ in 0..3 {
                    let which = self.dice.below(self.cuttable.len() as u64) as usize;
                    self.cuttable[which].notify_one();
                }
            }
            Fault::Kill => self.outage(Rabbit::kill, Rabbit::restart, Duration::from_secs(1)).await,
            Fault::Relay => self.kill_relay().await,
            Fault::Reload => {
                for relay in &self.relays {
                    let status = std::process::Command::new("kill").args(["-HUP", &relay.pid.to_string()]).status();
                    assert!(status.expect("kill can be run").success(), "the relay is gone");
                }
            }
            Fault::Restart => self.outage(Rabbit::stop, Rabbit::restart, Duration::ZERO).await,
            Fault::Stop => {
                let time = Duration::from_secs(2 + self.dice.below(18));
                self.outage(Rabbit::pause, Rabbit::resume, time).await;
            }
        }
    }

    async fn outage(&mut self, begin: fn(&Rabbit), end: fn(&Rabbit), time: Duration) {
        self.scene.tally.outage_begins();
        block_in_place(|| begin(&self.rabbit));
        self.pass(time).await;
        block_in_place(|| end(&self.rabbit));
        self.plain.pass(PLAIN).await;
        self.scene.tally.outage_ends();
    }

    /// Waits for what was confirmed until now, then looks at the whole.
    async fn check(&mut self) -> Result<(), String> {
        let mark = self.scene.tally.mark();
        let end = Instant::now() + PATIENCE;
        while self.scene.tally.lost_before(&mark) > 0 {
            if Instant::now() > end {
                return Err(format!("confirmed messages did not arrive:\n{}", self.scene.tally.missing()));
            }
            sleep(Duration::from_millis(100)).await;
        }
        let report = self.scene.tally.report();
        let broken = [
            ("out of order", report.reordered),
            ("repeated without a sign", report.duplicates_unflagged),
            ("disconnected", report.disconnected),
        ];
        match broken.iter().find(|(_, count)| *count > 0) {
            Some((what, count)) => Err(format!("{count} {what}")),
            None => Ok(()),
        }
    }

    fn summary(&self) -> String {
        let cuts = self.scene.cuts.load(Ordering::Relaxed);
        let orphans = self.scene.orphans.load(Ordering::Relaxed);
        let mut text = format!("{}, client cuts {cuts}, orphans {orphans}, faults", self.scene.tally.report());
        for (fault, count) in &self.faults {
            let _ = write!(text, " {} {count}", format!("{fault:?}").to_lowercase());
        }
        let _ = write!(text, ", max RSS {} MiB", self.resident_max >> 20);
        text
    }
}

impl Scene {
    /// As often as it takes: new clients may be turned away while there is no broker. None: the soak is over.
    async fn log_in(&self) -> Option<(Client, Place)> {
        while !self.stops.is_cancelled() {
            let turn = self.turns.fetch_add(1, Ordering::Relaxed) as usize;
            let place = {
                let places = self.places();
                places[turn % places.len()].clone()
            };
            let login = Client::log_in(&place.url);
            if let Ok(Ok(client)) = tokio::time::timeout(Duration::from_secs(30), login).await {
                return Some((client, place));
            }
            sleep(Duration::from_millis(500)).await;
        }
        None
    }

    fn places(&self) -> MutexGuard<'_, Vec<Place>> {
        self.relays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one connection's life, unless it is cut before its end.
    async fn ended(
        &self,
        session: impl Future<Output = Result<(), String>>,
        cut: &Notify,
        place: &Place,
        what: &str,
        destination: &str,
    ) {
        tokio::select! {
            result = session => if let Err(reason) = result && !self.stops.is_cancelled() {
                if place.killed.is_cancelled() {
                    self.orphans.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                eprintln!("a {what} {destination} was disconnected: {reason}");
                self.tally.disconnected();
            },
            () = cut.notified() => {
                self.cuts.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Sending {
    Single,
    Transactions,
}

/// Five messages to a transaction; COMMIT's receipt confirms them all.
async fn transact(
    client: &mut Client,
    numbers: &Publisher,
    destination: &str,
    pace: Pace,
    stops: &CancellationToken,
) -> Result<(), String> {
    while !stops.is_cancelled() {
        sleep(pace.every * 5).await;
        client.try_send("BEGIN\ntransaction:t\n\n").await?;
        let mut sent = Vec::new();
        for _ in 0..5 {
            let (number, body) = numbers.next(pace.body_bytes);
            let headers = format!("destination:{destination}\npersistent:true\ntransaction:t");
            client.try_send(&format!("SEND\n{headers}\n\n{body}")).await?;
            sent.push(number);
        }
        client.try_send("COMMIT\ntransaction:t\nreceipt:c\n\n").await?;
        match client.next().await {
            support::stomp::Received::Frame(frame) if frame.header("receipt-id") == Some("c") => {
                sent.into_iter().for_each(|number| numbers.confirmed(number));
            }
            other => return Err(format!("{other:?} instead of the receipt of COMMIT")),
        }
    }
    Ok(())
}
