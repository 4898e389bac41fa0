//! How many sessions can log in and subscribe per second.

use std::time::Instant;

use super::Unusable;
use super::idle::{open, topic};
use super::options::Settings;
use super::peer::Target;
use super::processes::Watch;
use super::report::Report;
use super::run::{Verdict, open_all, run_name};
use super::traffic::no_latencies;

pub async fn run(settings: &Settings) -> Result<Report, Unusable> {
    let target = Target::new(settings)?;
    let watch = Watch::new(&settings.pids)?;
    let (endpoint, run) = (target.endpoint()?, run_name());
    // What a server makes once for its first client is not measured.
    drop(open(endpoint, settings.heart_beat, &format!("/topic/{run}-first")).await?);
    let before = watch.sample();
    let opened = open_all(settings.sessions, settings, async |number| {
        let began = Instant::now();
        let session = open(endpoint, settings.heart_beat, &topic(settings.topics, &run, number)).await?;
        Ok((session, began.elapsed()))
    })
    .await?;
    let after = watch.sample();
    let mut latencies = no_latencies();
    for (_, took) in &opened {
        latencies.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }
    let mut report = Report::new("connect", settings, Verdict::new());
    report.set_usage(&before, &after, Some(settings.sessions as u64));
    report.set_latencies("", &latencies);
    report.set_memory(&before, &after, settings.sessions);
    Ok(report)
}
