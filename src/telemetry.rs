//! Sets up the log: JSON or text lines on standard error, filtered, in UTC (RFC 3339); and the audit log, a file of its own.
//!
//! Libraries that would log messages or passwords are capped here, whatever the configured level.

mod audit_file;
mod standard_error;

use std::io::IsTerminal;

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{FilterExt, Targets};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::{Filter, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use self::audit_file::AuditFile;
use self::standard_error::StandardError;
use crate::audit;
use crate::config::{AuditFailure, Log, LogFormat};

/// What no configured level raises. lapin and the AMQP crates below it log frames with bodies and URIs with passwords,
/// tungstenite logs whole messages, CONNECT frames included, at `trace`.
///
/// lapin's errors are events that the relay tells in lines of its own, or that are part of its work: a wrong password, a queue
/// that does not exist yet. They are written only where the configuration names lapin.
fn caps(log: &Log) -> Targets {
    let of_amqp = if log.level.names("lapin") { LevelFilter::ERROR } else { LevelFilter::OFF };
    Targets::new()
        .with_default(LevelFilter::TRACE)
        .with_target("lapin", of_amqp)
        .with_target("amq_protocol", of_amqp)
        .with_target("tungstenite", LevelFilter::DEBUG)
        .with_target("tokio_tungstenite", LevelFilter::DEBUG)
}

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Coloured,
    Json,
    Plain,
}

type LineFilter = Box<dyn Filter<Registry> + Send + Sync>;

/// What can be changed while the process runs.
pub struct Telemetry {
    audit: Option<AuditFile>,
    filter: reload::Handle<LineFilter, Registry>,
}

impl Telemetry {
    /// Starts logging for the whole process.
    ///
    /// # Errors
    /// A text for people: logging was started before, or the audit log's file can't be written.
    pub fn init(log: &Log) -> Result<Telemetry, String> {
        let terminal = std::io::stderr().is_terminal();
        // NO_COLOR counts when it is not empty (no-color.org).
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let style = match log.format {
            LogFormat::Json => Style::Json,
            LogFormat::Auto if !terminal => Style::Json,
            LogFormat::Auto | LogFormat::Pretty if terminal && !no_color => Style::Coloured,
            LogFormat::Auto | LogFormat::Pretty => Style::Plain,
        };
        let audit = log.audit_file.as_deref().map(AuditFile::open).transpose()?;
        let (subscriber, filter) = subscriber(log, style, StandardError::new(), audit.clone());
        subscriber.try_init().map_err(|error| error.to_string())?;
        audit::set_required(log.audit_failure == AuditFailure::Refuse);
        Ok(Telemetry { audit, filter })
    }

    /// Takes another level, and opens the audit log's file anew: the old one may have been moved away.
    pub fn reload(&self, log: &Log) {
        // Fails only when the subscriber is gone.
        let _ = self.filter.reload(line_filter(log));
        audit::set_required(log.audit_failure == AuditFailure::Refuse);
        if let Some(audit) = &self.audit
            && let Err(reason) = audit.reopen()
        {
            tracing::warn!(reason, "the audit log goes on into the file that was open");
        }
    }
}

/// All but the audit log's events.
fn line_filter(log: &Log) -> LineFilter {
    let lines = Targets::new().with_default(LevelFilter::TRACE).with_target(audit::TARGET, LevelFilter::OFF);
    FilterExt::boxed(log.level.targets().clone().and(caps(log)).and(lines))
}

fn subscriber<W>(
    log: &Log,
    style: Style,
    writer: W,
    audit: Option<AuditFile>,
) -> (impl Subscriber + Send + Sync + 'static, reload::Handle<LineFilter, Registry>)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = fmt::layer().with_writer(writer).with_ansi(style == Style::Coloured);
    let lines = match style {
        Style::Json => lines.json().flatten_event(true).boxed(),
        Style::Coloured | Style::Plain => lines.boxed(),
    };
    let (filter, handle) = reload::Layer::new(line_filter(log));
    let audit = audit.map(|file| {
        let only = Targets::new().with_target(audit::TARGET, LevelFilter::TRACE);
        fmt::layer().with_writer(file).json().flatten_event(true).with_filter(only)
    });
    (tracing_subscriber::registry().with(lines.with_filter(filter)).with(audit), handle)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::config::{Config, Overrides};

    /// Logs with `level` from several targets and gives back the lines.
    fn logged(level: &str, style: Style) -> String {
        let variables = [("STOMP_RELAY_LOG__LEVEL".to_owned(), level.to_owned())];
        let config = Config::load(None, variables.into_iter(), &Overrides::default()).unwrap();
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("stomp-relay-log-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        let file = Arc::new(File::create(&path).unwrap());
        tracing::subscriber::with_default(subscriber(&config.log, style, file, None).0, || {
            tracing::info!(target: "stomp_relay::server", port = 443, "listening");
            tracing::debug!(target: "stomp_relay::server", "detail");
            tracing::error!(target: "lapin::channel", "lapin failed");
            tracing::warn!(target: "lapin::channel", "canary");
            tracing::trace!(target: "amq_protocol_tcp", "canary");
            tracing::trace!(target: "tungstenite::protocol", "canary");
        });
        let text = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        text
    }

    #[test]
    fn no_level_lets_libraries_log_what_they_carry() {
        for level in ["trace", "lapin=trace", "off,lapin::channel=trace,amq_protocol_tcp=trace,tungstenite=trace"] {
            let text = logged(level, Style::Plain);
            assert!(!text.contains("canary"), "{level}: {text}");
            assert_eq!(text.contains("lapin failed"), level.contains("lapin"), "{level}: {text}");
        }
    }

    #[test]
    fn lapin_is_silent_unless_it_is_named() {
        for level in ["error", "info", "debug,stomp_relay=trace"] {
            assert!(!logged(level, Style::Plain).contains("lapin failed"), "{level}");
        }
        assert!(logged("info,lapin=error", Style::Plain).contains("lapin failed"));
    }

    #[test]
    fn the_level_holds_for_the_relay() {
        assert!(!logged("info", Style::Plain).contains("detail"));
        assert!(logged("info,stomp_relay::server=debug", Style::Plain).contains("detail"));
        assert!(!logged("warn", Style::Plain).contains("listening"));
    }

    #[test]
    fn a_json_line_has_a_utc_time_and_flat_fields() {
        let text = logged("info", Style::Json);
        let line = text.lines().next().unwrap();
        let time = line.strip_prefix("{\"timestamp\":\"").and_then(|rest| rest.split('"').next()).unwrap();
        assert!(time.len() >= 20 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
        for part in ["\"level\":\"INFO\"", "\"message\":\"listening\"", "\"port\":443"] {
            assert!(line.contains(part), "{part} in {line}");
        }
    }

    #[test]
    fn colour_is_only_where_it_was_chosen() {
        assert!(logged("info", Style::Coloured).contains('\u{1b}'));
        assert!(!logged("info", Style::Plain).contains('\u{1b}'));
    }
}
