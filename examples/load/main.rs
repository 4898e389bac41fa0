//! The load generator: clients of a STOMP-over-WebSocket server, or of RabbitMQ itself over AMQP, that send as fast as they are
//! told to and count what comes back. `scripts/bench` compares servers with it.
//!
//!   cargo run --release --example load -- run pipe --url wss://localhost:8443/ws --ca certs/ca.pem
//!   cargo run --release --example load -- compare target/bench/runs.jsonl
//!
//! Exit codes: 0, 1 something was lost, repeated, out of order or cut off, 2 wrong usage, 3 the server could not be used.

// Nothing of an example is reachable from outside.
#![allow(unreachable_pub)]

mod amqp;
mod chart;
mod compare;
mod connecting;
mod fanout;
mod idle;
mod integrity;
mod options;
mod pace;
mod peer;
mod pipe;
mod processes;
mod report;
mod run;
mod stamp;
mod stomp;
mod table;
mod traffic;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

pub use options::{Cli, Scenario, Settings, Verb};
pub use report::Report;

/// The server could not be used.
pub const EXIT_UNUSABLE: u8 = 3;

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(pub String);

impl Unusable {
    pub fn because(what: &str, reason: impl std::fmt::Display) -> Unusable {
        Unusable(format!("{what}: {reason}"))
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::parse().verb {
        Verb::Run { scenario, settings } => {
            let outcome = scenario_run(scenario, &settings).await;
            let text = match &outcome {
                Ok(report) if settings.json => format!("{}\n", report.json()),
                Ok(report) => report.table(),
                Err(error) => {
                    let _ = writeln!(std::io::stderr(), "load: {error}");
                    String::new()
                }
            };
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::from(exit_code(&outcome))
        }
        Verb::Compare(options) => match compare::run(&options) {
            Ok(text) => {
                let _ = std::io::stdout().write_all(text.as_bytes());
                ExitCode::SUCCESS
            }
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "load: {error}");
                ExitCode::FAILURE
            }
        },
    }
}

/// Plays one scenario to its end.
///
/// # Errors
/// The server could not be used: nothing was measured.
pub async fn scenario_run(scenario: Scenario, settings: &Settings) -> Result<Report, Unusable> {
    settings.check().map_err(Unusable)?;
    match scenario {
        Scenario::Connect => connecting::run(settings).await,
        Scenario::Pipe => pipe::run(settings, pipe::Kind::Pipe).await,
        Scenario::Receipts => pipe::run(settings, pipe::Kind::Receipts).await,
        Scenario::Rtt => pipe::run(settings, pipe::Kind::RoundTrip).await,
        Scenario::Mixed => pipe::run(settings, pipe::Kind::Mixed).await,
        Scenario::Fanout => fanout::run(settings).await,
        Scenario::Slow => fanout::run_slow(settings).await,
        Scenario::Idle => idle::run(settings).await,
    }
}

pub fn exit_code(outcome: &Result<Report, Unusable>) -> u8 {
    match outcome {
        Ok(report) if report.integrity.is_whole() => 0,
        Ok(_) => 1,
        Err(_) => EXIT_UNUSABLE,
    }
}
