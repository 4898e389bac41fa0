//! One topic to many subscribers, and the same with one that stops reading.

use super::Unusable;
use super::options::Settings;
use super::peer::{Destination, Target};
use super::processes::Watch;
use super::report::Report;
use super::run::{Crew, Verdict, run_name, subscribers};
use super::traffic::subscribe_and_stall;
use tokio_util::sync::CancellationToken;

/// Messages per second of `slow` when no other rate is given.
const SLOW_RATE: f64 = 1000.0;

pub async fn run(settings: &Settings) -> Result<Report, Unusable> {
    let target = Target::new(settings)?;
    let watch = Watch::new(&settings.pids)?;
    let topic = [Destination::Topic(run_name())];
    let empty = watch.sample();
    let mut crew = Crew::new(settings.publishers);
    let all = subscribers(&target, &topic, settings.subscribers, settings).await?;
    all.into_iter().enumerate().for_each(|(number, one)| crew.add_subscriber(one, number));
    let full = watch.sample();
    for _ in 0..settings.publishers {
        let publisher = target.publisher(&topic[0], settings).await?;
        crew.add_publisher(publisher, settings.subscribers as u64, settings);
    }
    let measured = crew.measure(&watch, settings).await;
    let mut verdict = Verdict::new();
    let sent = crew.stop_publishing(&mut verdict).await;
    let flow = crew.flow.clone();
    crew.finish(&mut verdict, settings.subscribers, settings.patience(), |_| sent.clone()).await;
    let mut report = Report::new("fanout", settings, verdict);
    report.set_traffic(&measured, measured.delivered);
    report.set_latencies("", &flow.take_latencies());
    report.set_memory(&empty, &full, settings.subscribers);
    Ok(report)
}

/// First with all subscribers reading, then with the last one stalled; the figures of the second half begin with `stalled_`.
pub async fn run_slow(settings: &Settings) -> Result<Report, Unusable> {
    let mut settings = settings.clone();
    (settings.in_flight, settings.messages) = (0, 0);
    if settings.rate == 0.0 {
        settings.rate = SLOW_RATE;
    }
    let (target, watch) = (Target::new(&settings)?, Watch::new(&settings.pids)?);
    // Only a front end has readers that are not the broker's own clients.
    target.endpoint()?;
    let topic = [Destination::Topic(run_name())];
    let mut crew = Crew::new(settings.publishers);
    let mut all = subscribers(&target, &topic, settings.subscribers + 1, &settings).await?;
    let stalls = CancellationToken::new();
    let stalled = all.pop().ok_or_else(|| Unusable("no subscriber".to_owned()))?;
    let stalled = tokio::spawn(subscribe_and_stall(stalled, crew.flow.clone(), stalls.clone()));
    all.into_iter().enumerate().for_each(|(number, one)| crew.add_subscriber(one, number));
    for _ in 0..settings.publishers {
        // Unbounded: a stalled reader must not slow its publisher down.
        crew.add_publisher(target.publisher(&topic[0], &settings).await?, 0, &settings);
    }
    let healthy = crew.measure(&watch, &settings).await;
    let (flow, mut verdict) = (crew.flow.clone(), Verdict::new());
    let latencies = flow.take_latencies();
    stalls.cancel();
    flow.reopen_window();
    let measured = crew.measure(&watch, &settings).await;
    let sent = crew.stop_publishing(&mut verdict).await;
    crew.finish(&mut verdict, settings.subscribers, settings.patience(), |_| sent.clone()).await;
    let mut report = Report::new("slow", &settings, verdict);
    report.set_traffic(&measured, measured.delivered);
    report.set_latencies("", &latencies);
    report.set_latencies("stalled_", &flow.take_latencies());
    report.set("before_per_s", healthy.delivered as f64 / healthy.before.seconds_to(&healthy.after));
    report.set("stalled_was_cut_off", f64::from(u8::from(stalled.await.unwrap_or(true))));
    Ok(report)
}
