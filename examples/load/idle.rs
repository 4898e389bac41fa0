//! Sessions that are logged in, subscribed, beat, and do nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::task::AbortOnDropHandle;

use super::Unusable;
use super::options::{Settings, Topics};
use super::peer::Target;
use super::processes::Watch;
use super::report::Report;
use super::run::{Verdict, open_all, run_name};
use super::stomp::{CutOff, Endpoint, Session, Traffic, subscription};

/// Seconds, both ways, unless another interval is given.
const HEART_BEAT: u64 = 10;

/// A beat is sent somewhat before it is due.
const BEAT_SHARE: f64 = 0.8;

pub struct IdleSessions {
    cut_off: Arc<AtomicU64>,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl IdleSessions {
    pub async fn open(endpoint: &Endpoint, settings: &Settings, run: &str) -> Result<IdleSessions, Unusable> {
        let every = if settings.heart_beat == 0 { HEART_BEAT } else { settings.heart_beat };
        let cut_off = Arc::<AtomicU64>::default();
        // Each beats from its beginning: opening thousands takes longer than a server waits.
        let tasks = open_all(settings.sessions, settings, async |number| {
            let session = open(endpoint, every, &topic(settings.topics, run, number)).await?;
            let cut_off = cut_off.clone();
            Ok(AbortOnDropHandle::new(tokio::spawn(async move {
                let _: CutOff = beat(session, Duration::from_secs(every).mul_f64(BEAT_SHARE)).await;
                cut_off.fetch_add(1, Ordering::Relaxed);
            })))
        })
        .await?;
        Ok(IdleSessions { cut_off, _tasks: tasks })
    }

    /// Closes them; how many had been cut off before.
    pub fn close(self) -> u64 {
        self.cut_off.load(Ordering::Relaxed)
    }
}

pub fn topic(topics: Topics, run: &str, number: usize) -> String {
    match topics {
        Topics::Own => format!("/topic/{run}.{number}"),
        Topics::Shared => format!("/topic/{run}"),
    }
}

pub async fn open(endpoint: &Endpoint, heart_beat: u64, destination: &str) -> Result<Session, Unusable> {
    let mut session = endpoint.log_in(heart_beat, Traffic::Little).await?;
    let subscribed = session.subscribe(&subscription(destination, "auto", None)).await;
    subscribed.map_err(|error| Unusable::because("SUBSCRIBE", error))?;
    Ok(session)
}

/// Until it is cut off.
async fn beat(mut session: Session, every: Duration) -> CutOff {
    let mut beats = interval_at(Instant::now() + every, every);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let result = tokio::select! {
            frame = session.next() => frame.map(drop),
            _ = beats.tick() => session.beat().await,
        };
        if let Err(reason) = result {
            return reason;
        }
    }
}

pub async fn run(settings: &Settings) -> Result<Report, Unusable> {
    let target = Target::new(settings)?;
    let watch = Watch::new(&settings.pids)?;
    let empty = watch.sample();
    let sessions = IdleSessions::open(target.endpoint()?, settings, &run_name()).await?;
    tokio::time::sleep(settings.warm_up()).await;
    let before = watch.sample();
    tokio::time::sleep(settings.duration()).await;
    let after = watch.sample();
    let mut verdict = Verdict::new();
    verdict.integrity.disconnected = sessions.close();
    let mut report = Report::new("idle", settings, verdict);
    report.set_usage(&before, &after, None);
    report.set_memory(&empty, &after, settings.sessions);
    report.set("sessions", settings.sessions as f64);
    Ok(report)
}
