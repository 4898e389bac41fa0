//! The generator's command line. Owns defaults and their checks; measures nothing.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::compare::CompareOptions;
use super::stamp::STAMP_BYTES;

/// Measures a STOMP-over-WebSocket server, or RabbitMQ over AMQP.
#[derive(Parser)]
#[command(name = "load")]
#[command(
    after_help = "Exit codes: 0 ok, 1 lost, repeated, out of order or cut off, 2 wrong usage, 3 unusable server."
)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Play one scenario.
    #[command(args_override_self = true)]
    Run {
        scenario: Scenario,
        #[command(flatten)]
        settings: Settings,
    },
    /// Medians, spread and ratios of many runs.
    Compare(CompareOptions),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Sessions that log in and subscribe, `--batch` at a time.
    Connect,
    /// Publishers to subscribers over queues.
    Pipe,
    /// One topic to many subscribers; at `--rate`, the latency of each delivery.
    Fanout,
    /// Publishers that wait for receipts; what they sent is collected afterwards.
    Receipts,
    /// Open loop at `--rate`: latency from when a message was due, not from when it was sent.
    Rtt,
    /// A topic at `--rate`, and one of its subscribers stops reading half-way.
    Slow,
    /// Heart-beating sessions that do nothing else: memory and processor time of each.
    Idle,
    /// A pipe beside `--sessions` idle ones.
    Mixed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AckMode {
    Auto,
    Client,
    ClientIndividual,
}

impl AckMode {
    pub fn name(self) -> &'static str {
        match self {
            AckMode::Auto => "auto",
            AckMode::Client => "client",
            AckMode::ClientIndividual => "client-individual",
        }
    }
}

/// What idle sessions and subscribers of `connect` subscribe to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Topics {
    /// A topic for each.
    Own,
    /// One topic for all.
    Shared,
}

#[derive(Args, Clone)]
pub struct Settings {
    /// ws://, wss:// or amqp://.
    #[arg(long)]
    pub url: String,
    /// PEM file of the authority to trust for wss.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// RabbitMQ behind the server: queues are made there and removed at the end. Without it they are made by /queue/… and stay.
    #[arg(long, value_name = "URI")]
    pub broker: Option<String>,
    #[arg(long, default_value = "guest")]
    pub login: String,
    /// File with the passcode; "guest" without one.
    #[arg(long, value_name = "FILE")]
    pub passcode_file: Option<PathBuf>,
    #[arg(long, default_value_t = 4)]
    pub publishers: usize,
    #[arg(long, default_value_t = 4)]
    pub subscribers: usize,
    #[arg(long, value_enum, default_value = "auto")]
    pub ack: AckMode,
    /// prefetch-count of each subscription; the server's default without it.
    #[arg(long)]
    pub prefetch: Option<u16>,
    /// Bytes of a body; the first 40 say who sent it, its number and when it was due.
    #[arg(long, default_value_t = 100)]
    pub body: usize,
    /// Receipts a publisher leaves outstanding; 0: asks for none.
    #[arg(long, default_value_t = 0)]
    pub window: u64,
    /// Messages of a publisher that may be under way to subscribers; 0: no bound, the broker's queues grow.
    #[arg(long, default_value_t = 2000)]
    pub in_flight: u64,
    /// Messages per second of all publishers; 0: as fast as they can.
    #[arg(long, default_value_t = 0.0)]
    pub rate: f64,
    /// Sessions of `connect`, `idle` and `mixed`.
    #[arg(long, default_value_t = 100)]
    pub sessions: usize,
    /// Sessions that log in at the same time.
    #[arg(long, default_value_t = 50)]
    pub batch: usize,
    #[arg(long, value_enum, default_value = "own")]
    pub topics: Topics,
    /// Heart-beats in seconds, both ways; 0: none. `idle` and `mixed` use 10 for their idle sessions.
    #[arg(long, default_value_t = 0)]
    pub heart_beat: u64,
    /// Seconds before the measurement begins.
    #[arg(long, default_value_t = 1.0)]
    pub warm_up: f64,
    /// Seconds of the measurement.
    #[arg(long, default_value_t = 5.0)]
    pub duration: f64,
    /// Messages of each publisher, after which it stops; 0: until the time is over.
    #[arg(long, default_value_t = 0)]
    pub messages: u64,
    /// Seconds without any progress after which what is missing counts as lost.
    #[arg(long, default_value_t = 10.0)]
    pub patience: f64,
    /// A server process to watch with its children, such as relay=123; may be repeated.
    #[arg(long = "pid", value_name = "NAME=PID")]
    pub pids: Vec<String>,
    /// Text for the report, which `compare` groups by, such as line=pipe,server=relay.
    #[arg(long, default_value = "")]
    pub label: String,
    /// One JSON object on standard output instead of a table.
    #[arg(long)]
    pub json: bool,
}

impl Settings {
    /// # Errors
    /// What is out of range, in words.
    pub fn check(&self) -> Result<(), String> {
        let positive = [self.publishers, self.subscribers, self.sessions, self.batch];
        if positive.contains(&0) {
            return Err("--publishers, --subscribers, --sessions and --batch must be above 0".to_owned());
        }
        if self.body < STAMP_BYTES {
            return Err(format!("--body must be at least {STAMP_BYTES}"));
        }
        let seconds = [self.warm_up, self.duration, self.patience];
        if seconds.iter().any(|value| !(0.0..=86_400.0).contains(value)) || !(0.0..=1e7).contains(&self.rate) {
            return Err("times are 0 to 86400 seconds, --rate is 0 to 10000000".to_owned());
        }
        Ok(())
    }

    pub fn warm_up(&self) -> Duration {
        Duration::from_secs_f64(self.warm_up)
    }

    pub fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.duration)
    }

    pub fn patience(&self) -> Duration {
        Duration::from_secs_f64(self.patience)
    }

    pub fn passcode(&self) -> Result<String, super::Unusable> {
        let Some(file) = &self.passcode_file else { return Ok("guest".to_owned()) };
        let text = std::fs::read_to_string(file);
        text.map(|text| text.trim_end().to_owned())
            .map_err(|error| super::Unusable::because(&file.display().to_string(), error))
    }
}
