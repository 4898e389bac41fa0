//! What differs between two configurations, key by key. Shows no value: some are secret.

use super::Config;
use super::reader::Values;
use super::value::{Data, Value};

/// What was set, wherever it was set. Without `Debug` output: a value may be a secret.
#[derive(Clone, Default)]
pub(super) struct WasSet(pub(super) Values);

impl std::fmt::Debug for WasSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

impl WasSet {
    pub(super) fn has(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }
}

impl Config {
    /// The keys that `new` sets differently, sorted; `rules` stands for all rules. A file that a key names may have other
    /// contents all the same.
    pub fn changed_keys(&self, new: &Config) -> Vec<String> {
        let (old, new) = (&self.was_set.0, &new.was_set.0);
        let differs = |path: &&String| match (old.get(*path), new.get(*path)) {
            (Some(old), Some(new)) => !is_same(old, new),
            _ => true,
        };
        let mut keys: Vec<String> = old.keys().chain(new.keys()).filter(differs).map(|path| key_of(path)).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

/// The key that a path belongs to: tables of a repeated section are counted in it.
fn key_of(path: &str) -> String {
    match path.split_once('.') {
        Some((section, rest)) if rest.starts_with(|first: char| first.is_ascii_digit()) => section.to_owned(),
        _ => path.to_owned(),
    }
}

/// The same wherever it stands.
fn is_same(a: &Value, b: &Value) -> bool {
    match (&a.data, &b.data) {
        (Data::List(a), Data::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b)),
        (Data::Table(a), Data::Table(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|((a_key, a), (b_key, b))| a_key == b_key && is_same(a, b))
        }
        (a, b) => a == b,
    }
}
