//! Which log events are written: a level, or levels per target.

use std::fmt;
use std::str::FromStr;

use tracing_subscriber::filter::Targets;

use super::kind::{Kind, Shape, string};
use super::suggest;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A parsed filter such as `info` or `warn,stomp_relay::broker=debug`.
#[derive(Clone, Debug, PartialEq)]
pub struct LogFilter {
    targets: Targets,
    text: String,
}

impl LogFilter {
    pub fn targets(&self) -> &Targets {
        &self.targets
    }

    /// Whether a directive is about this library.
    pub fn names(&self, library: &str) -> bool {
        self.text.split(',').any(|directive| directive.contains('=') && directive.trim().starts_with(library))
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

pub(super) fn log_filter() -> Kind<LogFilter> {
    Kind::simple("levels, as `LEVEL` or `TARGET=LEVEL`, separated by commas", Shape::Text, |value| {
        let text = string(value)?;
        for directive in text.split(',') {
            // Without this check "inof" would be the name of a target, with all of its events.
            let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level).trim();
            if !LEVELS.contains(&level) {
                let hint = suggest::nearest(level, LEVELS).map(|word| format!("; did you mean \"{word}\"?"));
                return Err(format!("{level:?} is not a level ({}){}", LEVELS.join(", "), hint.unwrap_or_default()));
            }
        }
        let targets = Targets::from_str(text).map_err(|error| format!("{text:?} is not a filter: {error}"))?;
        Ok(LogFilter { targets, text: text.to_owned() })
    })
}
