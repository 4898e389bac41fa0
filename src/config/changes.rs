//! What differs between two configurations, key by key. Shows no value: some are secret.

use std::collections::BTreeMap;

use super::Config;
use super::reader::Values;
use super::value::{Data, Value};

/// What was set, wherever it was set. Without `Debug` output: a value may be a secret.
#[derive(Clone, Default)]
pub(super) struct WasSet {
    /// Of the file.
    pub(super) text: String,
    pub(super) values: Values,
}

/// A rule's keys.
type RuleKeys<'a> = BTreeMap<&'a str, &'a Value>;

impl std::fmt::Debug for WasSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.values.len())
    }
}

impl WasSet {
    pub(super) fn has(&self, path: &str) -> bool {
        self.values.contains_key(path)
    }

    /// Whether `new` is the beginning of this file, and what is missing is more than blanks and comments.
    pub(super) fn is_continued_in(&self, new: &WasSet) -> bool {
        let rest = self.text.strip_prefix(new.text.trim_end());
        rest.is_some_and(|rest| rest.lines().map(str::trim).any(|line| !line.is_empty() && !line.starts_with('#')))
    }

    /// The number of each rule of `new`, from 1, that is one of these rules without some of its keys, and these keys.
    pub(super) fn rules_cut_short(&self, new: &WasSet) -> Vec<(usize, String)> {
        let old = self.rules();
        let cut_short = new.rules().into_iter().filter_map(|(number, rule)| {
            let is_part_of = |former: &&RuleKeys<'_>| {
                rule.iter().all(|(key, value)| former.get(key).is_some_and(|former| is_same(value, former)))
            };
            let former: Vec<_> = old.values().filter(is_part_of).collect();
            let missing = |former: &RuleKeys<'_>| {
                let keys = former.keys().filter(|key| **key != "name" && !rule.contains_key(**key));
                keys.copied().collect::<Vec<_>>().join(", ")
            };
            let missing: Vec<_> = former.into_iter().map(missing).collect();
            // Where one of them is the same rule, nothing was cut.
            let first = missing.first().filter(|_| missing.iter().all(|keys| !keys.is_empty()))?;
            Some((number, first.clone()))
        });
        cut_short.collect()
    }

    fn rules(&self) -> BTreeMap<usize, RuleKeys<'_>> {
        let mut rules: BTreeMap<usize, RuleKeys<'_>> = BTreeMap::new();
        for (path, value) in &self.values {
            let Some((index, key)) = path.strip_prefix("rules.").and_then(|rest| rest.split_once('.')) else {
                continue;
            };
            let Ok(index) = index.parse::<usize>() else { continue };
            rules.entry(index + 1).or_default().insert(key, value);
        }
        rules
    }
}

impl Config {
    /// The keys that `new` sets differently, sorted; `rules` stands for all rules. A file that a key names may have other
    /// contents all the same.
    pub fn changed_keys(&self, new: &Config) -> Vec<String> {
        let (old, new) = (&self.was_set.values, &new.was_set.values);
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
