//! What all scenarios with messages have in common: the time of the measurement, the end of the traffic, the verdict.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt};
use tokio::task::JoinSet;

use super::Unusable;
use super::integrity::{Integrity, Log, judge};
use super::options::Settings;
use super::peer::{Destination, Publisher, Subscriber, Target};
use super::processes::{Sample, Watch};
use super::stomp::Traffic;
use super::traffic::{Flow, Published, Received, publish, subscribe};

/// After the last message that was expected, for what nobody expects.
const QUIET: Duration = Duration::from_millis(300);

/// Destinations are named by process and time, so that runs on one broker do not meet.
pub fn run_name() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("load-{}-{}", std::process::id(), now.as_nanos())
}

/// The tasks of a run.
pub struct Crew {
    pub flow: Arc<Flow>,
    publishers: JoinSet<(usize, Published)>,
    /// With the audience of each.
    subscribers: JoinSet<(usize, Received)>,
}

/// The counts of one measurement.
pub struct Measured {
    pub before: Sample,
    pub after: Sample,
    pub confirmed: u64,
    pub delivered: u64,
}

pub struct Verdict {
    pub integrity: Integrity,
    /// What clients were cut off with; the first few.
    pub remarks: Vec<String>,
}

impl Crew {
    pub fn new(publishers: usize) -> Crew {
        Crew { flow: Flow::new(publishers), publishers: JoinSet::new(), subscribers: JoinSet::new() }
    }

    pub fn add_subscriber(&mut self, subscriber: Subscriber, audience: usize) {
        let (flow, number) = (self.flow.clone(), self.subscribers.len());
        self.subscribers.spawn(async move { (audience, subscribe(subscriber, number, flow).await) });
    }

    /// `copies`: subscribers that get each message; the publisher does not run ahead of them by more than it may.
    pub fn add_publisher(&mut self, publisher: Publisher, copies: u64, settings: &Settings) {
        let (flow, settings, number) = (self.flow.clone(), settings.clone(), self.publishers.len());
        self.publishers.spawn(async move { (number, publish(publisher, number, copies, flow, settings).await) });
    }

    /// Warm-up, then the measurement. Ends early when all publishers have sent what they had to.
    pub async fn measure(&self, watch: &Watch, settings: &Settings) -> Measured {
        let flow = &self.flow;
        flow.pass(settings.warm_up()).await;
        let count = || (flow.confirmed.load(Ordering::Relaxed), flow.delivered.load(Ordering::Relaxed));
        flow.open_window();
        let (before, at_begin) = (watch.sample(), count());
        flow.pass(settings.duration()).await;
        let (after, at_end) = (watch.sample(), count());
        flow.close_window();
        Measured { before, after, confirmed: at_end.0 - at_begin.0, delivered: at_end.1 - at_begin.1 }
    }

    /// Ends the publishers; the number of messages that each has sent.
    pub async fn stop_publishing(&mut self, verdict: &mut Verdict) -> Vec<u64> {
        self.flow.publishing_stops.cancel();
        let mut sent = vec![0; self.flow.publishers()];
        while let Some(joined) = self.publishers.join_next().await {
            match joined {
                Ok((number, published)) => {
                    sent[number] = published.sent;
                    verdict.cut_off(published.cut_off.map(|reason| format!("publisher {number}: {reason}")));
                }
                Err(error) => verdict.cut_off(Some(error.to_string())),
            }
        }
        sent
    }

    /// Waits for what is still under way, ends the subscribers and judges. `expected(audience)` is how many messages of each
    /// publisher it should have got.
    pub async fn finish(
        mut self,
        verdict: &mut Verdict,
        audiences: usize,
        patience: Duration,
        expected: impl Fn(usize) -> Vec<u64>,
    ) {
        let total: u64 = (0..audiences).map(|audience| expected(audience).iter().sum::<u64>()).sum();
        let (mut seen, mut since) = (0, Instant::now());
        while seen < total && since.elapsed() < patience {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let delivered = self.flow.delivered.load(Ordering::Relaxed);
            if delivered != seen {
                (seen, since) = (delivered, Instant::now());
            }
        }
        tokio::time::sleep(QUIET).await;
        self.flow.stops.cancel();
        let mut logs: Vec<Vec<Log>> = (0..audiences).map(|_| Vec::new()).collect();
        while let Some(joined) = self.subscribers.join_next().await {
            match joined {
                Ok((audience, received)) => {
                    logs[audience].push(received.log);
                    verdict.cut_off(received.cut_off.map(|reason| format!("subscriber: {reason}")));
                }
                Err(error) => verdict.cut_off(Some(error.to_string())),
            }
        }
        for (audience, logs) in logs.iter().enumerate() {
            verdict.integrity += judge(logs, &expected(audience));
        }
    }
}

impl Verdict {
    pub fn new() -> Verdict {
        Verdict { integrity: Integrity::default(), remarks: Vec::new() }
    }

    pub fn cut_off(&mut self, reason: Option<String>) {
        if let Some(reason) = reason {
            self.integrity.disconnected += 1;
            if self.remarks.len() < 5 {
                self.remarks.push(reason);
            }
        }
    }
}

/// Opens many, `--batch` at a time, in order.
///
/// # Errors
/// The first that could not be opened.
pub async fn open_all<T>(
    count: usize,
    settings: &Settings,
    open: impl AsyncFn(usize) -> Result<T, Unusable>,
) -> Result<Vec<T>, Unusable> {
    let opening = futures_util::stream::iter(0..count).map(|number| open(number)).buffered(settings.batch);
    opening.try_collect().await
}

pub async fn subscribers(
    target: &Target,
    destinations: &[Destination],
    count: usize,
    settings: &Settings,
) -> Result<Vec<Subscriber>, Unusable> {
    let traffic = if count > 100 { Traffic::Little } else { Traffic::Busy };
    let open =
        async |number: usize| target.subscriber(&destinations[number % destinations.len()], settings, traffic).await;
    open_all(count, settings, open).await
}
