//! Publishers and subscribers at work, each a task; what they share is counters.
//!
//! What is outstanding is bounded: receipts by the window, messages on their way to subscribers by `in_flight`.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::integrity::Log;
use super::options::Settings;
use super::pace::Pace;
use super::peer::{Publisher, Subscriber};
use super::stamp::Stamp;
use super::stomp::{ANSWER, CutOff};

/// Messages fed before a flush.
const BATCH: u64 = 64;

/// Longest latency that is told from longer ones, in microseconds.
const LATENCY_MAX_US: u64 = 120_000_000;
/// Histograms that subscribers share, so that they seldom wait for each other.
const SHARDS: usize = 8;

/// Latencies in microseconds; three digits are kept.
pub type Latencies = Histogram<u64>;

pub fn no_latencies() -> Latencies {
    // The bounds are constants that the library accepts.
    Histogram::new_with_bounds(1, LATENCY_MAX_US, 3)
        .unwrap_or_else(|_| Histogram::new(3).expect("3 digits are allowed"))
}

/// What all tasks of a run share.
pub struct Flow {
    pub epoch: Instant,
    pub confirmed: AtomicU64,
    pub delivered: AtomicU64,
    /// How late messages were fed, in nanoseconds: the generator's own part of the latency.
    pub late_max_ns: AtomicU64,
    /// Messages that were due within this time count for latencies, in nanoseconds since the epoch.
    from_ns: AtomicU64,
    to_ns: AtomicU64,
    lanes: Vec<Lane>,
    latencies: Vec<Mutex<Latencies>>,
    /// Publishers at work, and whether the last has ended.
    publishing: AtomicUsize,
    published: CancellationToken,
    pub publishing_stops: CancellationToken,
    pub stops: CancellationToken,
}

/// One publisher's way to its subscribers.
#[derive(Default)]
struct Lane {
    delivered: AtomicU64,
    waits: AtomicBool,
    room: Notify,
}

/// How one publisher ended.
pub struct Published {
    pub sent: u64,
    pub cut_off: Option<String>,
}

pub struct Received {
    pub log: Log,
    pub cut_off: Option<String>,
}

impl Flow {
    pub fn new(publishers: usize) -> Arc<Flow> {
        Arc::new(Flow {
            epoch: Instant::now(),
            confirmed: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            late_max_ns: AtomicU64::new(0),
            from_ns: AtomicU64::new(u64::MAX),
            to_ns: AtomicU64::new(u64::MAX),
            lanes: (0..publishers).map(|_| Lane::default()).collect(),
            latencies: (0..SHARDS).map(|_| Mutex::new(no_latencies())).collect(),
            publishing: AtomicUsize::new(publishers),
            published: CancellationToken::new(),
            publishing_stops: CancellationToken::new(),
            stops: CancellationToken::new(),
        })
    }

    pub fn publishers(&self) -> usize {
        self.lanes.len()
    }

    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub fn open_window(&self) {
        self.from_ns.store(self.now_ns(), Ordering::Relaxed);
    }

    pub fn close_window(&self) {
        self.to_ns.store(self.now_ns(), Ordering::Relaxed);
    }

    /// Nothing counts until the next `open_window`.
    pub fn reopen_window(&self) {
        self.from_ns.store(u64::MAX, Ordering::Relaxed);
        self.to_ns.store(u64::MAX, Ordering::Relaxed);
    }

    /// What was recorded since the last call.
    pub fn take_latencies(&self) -> Latencies {
        let mut all = no_latencies();
        for shard in &self.latencies {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            // All have the same bounds.
            let _ = all.add(&*shard);
            shard.reset();
        }
        all
    }

    fn record(&self, subscriber: usize, arrived_ns: u64, due_ns: &[u64]) {
        if due_ns.is_empty() {
            return;
        }
        let mut shard = self.latencies[subscriber % SHARDS].lock().unwrap_or_else(PoisonError::into_inner);
        for due_ns in due_ns {
            shard.saturating_record(arrived_ns.saturating_sub(*due_ns) / 1000);
        }
    }

    /// Until all publishers have ended, or so long.
    pub async fn pass(&self, time: Duration) {
        let _ = tokio::time::timeout(time, self.published.cancelled()).await;
    }

    fn in_window(&self, due_ns: u64) -> bool {
        (self.from_ns.load(Ordering::Relaxed)..self.to_ns.load(Ordering::Relaxed)).contains(&due_ns)
    }
}

/// Sends until it is told to stop, or has sent all, or is cut off. `copies` is how many subscribers get each message.
pub async fn publish(
    mut publisher: Publisher,
    number: usize,
    copies: u64,
    flow: Arc<Flow>,
    settings: Settings,
) -> Published {
    let pace = (settings.rate > 0.0).then(|| Pace::start(settings.rate / flow.publishers() as f64, flow.epoch));
    let mut state = Sending { copies, confirmed: 0, flow: &flow, number, pace, sent: 0, settings: &settings };
    let result = state.run(&mut publisher).await;
    let sent = state.sent;
    let result = match result {
        Ok(()) => publisher.leave().await,
        failed => failed,
    };
    if flow.publishing.fetch_sub(1, Ordering::SeqCst) == 1 {
        flow.published.cancel();
    }
    Published { sent, cut_off: result.err().map(|error| error.0) }
}

struct Sending<'a> {
    copies: u64,
    confirmed: u64,
    flow: &'a Flow,
    number: usize,
    pace: Option<Pace>,
    sent: u64,
    settings: &'a Settings,
}

impl Sending<'_> {
    async fn run(&mut self, publisher: &mut Publisher) -> Result<(), CutOff> {
        while !self.flow.publishing_stops.is_cancelled() && self.left() > 0 {
            let budget = self.budget();
            if budget == 0 {
                self.wait(publisher).await?;
                continue;
            }
            for _ in 0..budget {
                let due_ns = self.due_ns();
                let stamp = Stamp { publisher: self.number as u32, sequence: self.sent, due_ns };
                publisher.feed(stamp.body(self.settings.body)).await?;
                self.sent += 1;
            }
            publisher.flush().await?;
            self.count(publisher.confirmed(false).await?);
            // A publisher that never waits must let the subscribers of its thread run.
            tokio::task::yield_now().await;
        }
        while self.settings.window > 0 && self.confirmed < self.sent {
            let waiting = tokio::time::timeout(ANSWER, publisher.confirmed(true));
            let count = waiting.await.unwrap_or_else(|_| Err(CutOff("receipts are missing".to_owned())))?;
            self.count(count);
        }
        Ok(())
    }

    fn left(&self) -> u64 {
        if self.settings.messages == 0 { u64::MAX } else { self.settings.messages - self.sent }
    }

    /// Messages that may be sent now.
    fn budget(&self) -> u64 {
        let window = match self.settings.window {
            0 => u64::MAX,
            window => (self.confirmed + window).saturating_sub(self.sent),
        };
        let due = self.pace.as_ref().map_or(u64::MAX, |pace| pace.due().saturating_sub(self.sent));
        BATCH.min(self.left()).min(window).min(due).min(self.room())
    }

    fn room(&self) -> u64 {
        if self.settings.in_flight == 0 || self.copies == 0 {
            return u64::MAX;
        }
        let delivered = self.flow.lanes[self.number].delivered.load(Ordering::SeqCst) / self.copies;
        (delivered + self.settings.in_flight).saturating_sub(self.sent)
    }

    fn due_ns(&self) -> u64 {
        let now = self.flow.now_ns();
        let Some(pace) = &self.pace else { return now };
        let due = pace.time_ns(self.sent);
        if self.flow.in_window(due) {
            self.flow.late_max_ns.fetch_max(now.saturating_sub(due), Ordering::Relaxed);
        }
        due
    }

    async fn wait(&mut self, publisher: &mut Publisher) -> Result<(), CutOff> {
        let lane = &self.flow.lanes[self.number];
        lane.waits.store(true, Ordering::SeqCst);
        if self.budget() == 0 {
            let due = async {
                match &self.pace {
                    Some(pace) if self.room() > 0 => pace.changed().await,
                    _ => std::future::pending().await,
                }
            };
            let confirmed = tokio::select! {
                count = publisher.confirmed(true) => count?,
                () = lane.room.notified() => 0,
                () = due => 0,
                () = self.flow.publishing_stops.cancelled() => 0,
            };
            self.count(confirmed);
        }
        self.flow.lanes[self.number].waits.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn count(&mut self, confirmed: u64) {
        self.confirmed += confirmed;
        self.flow.confirmed.fetch_add(confirmed, Ordering::Relaxed);
    }
}

/// Receives until it is told to stop, or is cut off.
pub async fn subscribe(mut subscriber: Subscriber, number: usize, flow: Arc<Flow>) -> Received {
    let mut log = Log::new(flow.publishers());
    let stops = flow.stops.clone();
    let cut_off = loop {
        tokio::select! {
            () = stops.cancelled() => break None,
            result = receive(&mut subscriber, number, &mut log, &flow) => if let Err(error) = result {
                break Some(error.0);
            },
        }
    };
    Received { log, cut_off }
}

/// The same until `stalls`, from then on it reads nothing. Whether it was cut off for that.
pub async fn subscribe_and_stall(mut subscriber: Subscriber, flow: Arc<Flow>, stalls: CancellationToken) -> bool {
    let mut log = Log::new(flow.publishers());
    loop {
        tokio::select! {
            () = stalls.cancelled() => break,
            result = receive(&mut subscriber, 0, &mut log, &flow) => if result.is_err() {
                return true;
            },
        }
    }
    subscriber.stall(flow.stops.cancelled()).await
}

async fn receive(subscriber: &mut Subscriber, number: usize, log: &mut Log, flow: &Flow) -> Result<(), CutOff> {
    let (mut count, mut arrived_ns) = (0, 0);
    let mut due_ns = Vec::new();
    let mut take = |body: &[u8]| {
        count += 1;
        let Some(stamp) = Stamp::read(body) else {
            log.unknown += 1;
            return;
        };
        if !log.record(stamp) {
            return;
        }
        flow.lanes[stamp.publisher as usize].delivered.fetch_add(1, Ordering::SeqCst);
        if flow.in_window(stamp.due_ns) {
            // One look at the clock for what has arrived together.
            if due_ns.is_empty() {
                arrived_ns = flow.now_ns();
            }
            due_ns.push(stamp.due_ns);
        }
    };
    let result = subscriber.next(&mut take).await;
    flow.record(number, arrived_ns, &due_ns);
    flow.delivered.fetch_add(count, Ordering::Relaxed);
    for lane in &flow.lanes {
        if lane.waits.load(Ordering::SeqCst) {
            lane.room.notify_one();
        }
    }
    result
}
