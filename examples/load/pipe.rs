//! Publishers to subscribers over queues: `pipe`, `receipts`, `rtt`, `mixed`.

use super::Unusable;
use super::amqp::Queues;
use super::idle::IdleSessions;
use super::options::Settings;
use super::peer::{Destination, Target};
use super::processes::Watch;
use super::report::Report;
use super::run::{Crew, Verdict, run_name, subscribers};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Pipe,
    /// Subscribers come when the publishers have ended.
    Receipts,
    RoundTrip,
    /// Beside idle sessions.
    Mixed,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Pipe => "pipe",
            Kind::Receipts => "receipts",
            Kind::RoundTrip => "rtt",
            Kind::Mixed => "mixed",
        }
    }

    fn adjust(self, settings: &Settings) -> Settings {
        let mut settings = settings.clone();
        match self {
            Kind::Pipe | Kind::Mixed => {}
            Kind::Receipts => {
                settings.window = settings.window.max(1);
                settings.in_flight = 0;
            }
            Kind::RoundTrip => {
                (settings.publishers, settings.subscribers) = (1, 1);
                settings.in_flight = 0;
                if settings.rate == 0.0 {
                    settings.rate = 1000.0;
                }
            }
        }
        settings
    }
}

pub async fn run(settings: &Settings, kind: Kind) -> Result<Report, Unusable> {
    let settings = &kind.adjust(settings);
    let target = Target::new(settings)?;
    let watch = Watch::new(&settings.pids)?;
    let idle = match kind {
        Kind::Mixed => Some(IdleSessions::open(target.endpoint()?, settings, &run_name()).await?),
        _ => None,
    };
    let (destinations, queues) = queues(&target, settings).await?;
    let played = play(&target, &watch, &destinations, settings, kind).await;
    if let Some(queues) = queues {
        queues.delete().await;
    }
    let mut report = played?;
    if let Some(idle) = idle {
        report.set("idle_sessions", settings.sessions as f64);
        report.integrity.disconnected += idle.close();
    }
    Ok(report)
}

/// One for each pair of publisher and subscriber, made if there is a broker to make them at.
async fn queues(target: &Target, settings: &Settings) -> Result<(Vec<Destination>, Option<Queues>), Unusable> {
    let (run, count) = (run_name(), settings.publishers.min(settings.subscribers));
    let names: Vec<String> = (0..count).map(|number| format!("{run}-{number}")).collect();
    let uri = match target {
        Target::Amqp { uri, .. } => Some(uri),
        Target::Stomp(_) => settings.broker.as_ref(),
    };
    match uri {
        None => Ok((names.into_iter().map(Destination::OwnQueue).collect(), None)),
        Some(uri) => {
            let queues = Queues::declare(uri, names.clone()).await?;
            Ok((names.into_iter().map(Destination::Queue).collect(), Some(queues)))
        }
    }
}

async fn play(
    target: &Target,
    watch: &Watch,
    destinations: &[Destination],
    settings: &Settings,
    kind: Kind,
) -> Result<Report, Unusable> {
    let mut crew = Crew::new(settings.publishers);
    let count = destinations.len();
    let subscribe = async |crew: &mut Crew| {
        let all = subscribers(target, destinations, settings.subscribers, settings).await?;
        all.into_iter().enumerate().for_each(|(number, one)| crew.add_subscriber(one, number % count));
        Ok::<(), Unusable>(())
    };
    if kind != Kind::Receipts {
        subscribe(&mut crew).await?;
    }
    let mut publishers = Vec::new();
    for number in 0..settings.publishers {
        publishers.push(target.publisher(&destinations[number % count], settings).await?);
    }
    publishers.into_iter().for_each(|publisher| crew.add_publisher(publisher, 1, settings));
    let measured = crew.measure(watch, settings).await;
    let mut verdict = Verdict::new();
    let sent = crew.stop_publishing(&mut verdict).await;
    if kind == Kind::Receipts {
        subscribe(&mut crew).await?;
    }
    let flow = crew.flow.clone();
    // Of each publisher what went to this queue.
    let expected = |audience: usize| {
        let of = |(number, sent): (usize, &u64)| if number % count == audience { *sent } else { 0 };
        sent.iter().enumerate().map(of).collect()
    };
    crew.finish(&mut verdict, count, settings.patience(), expected).await;
    let messages = if kind == Kind::Receipts { measured.confirmed } else { measured.delivered };
    let mut report = Report::new(kind.name(), settings, verdict);
    report.set_traffic(&measured, messages);
    if kind != Kind::Receipts {
        report.set_latencies("", &flow.take_latencies());
    }
    if settings.rate > 0.0 {
        report.set("late_max_ms", flow.late_max_ns.load(std::sync::atomic::Ordering::Relaxed) as f64 / 1e6);
    }
    Ok(report)
}
