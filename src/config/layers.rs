//! Collects what file, environment and flags set, by path, and refuses names that no key has.
//!
//! A later layer replaces an earlier one: file, then environment, then flags. Knows which keys exist, not their types.

use std::collections::{BTreeMap, BTreeSet};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Overrides;
use super::problem::{Place, Problem};
use super::reader::{Form, Section, Values, path_of, table_path};
use super::suggest::nearest;
use super::value::{Data, Lines, Value, from_toml};

/// What every variable of ours begins with.
pub(super) const ENVIRONMENT_PREFIX: &str = "STOMP_RELAY_";

/// The environment variable of a key.
pub(super) fn environment_name(path: &str) -> String {
    format!("{ENVIRONMENT_PREFIX}{}", path.replace('.', "__").to_uppercase())
}

pub(super) struct Layers<'a> {
    /// Lines of the file with a syntax error.
    broken_lines: BTreeSet<usize>,
    pub(super) problems: Vec<Problem>,
    sections: &'a [Section],
    pub(super) values: Values,
    /// Whether the file could be read and parsed, so that a missing key is really missing.
    pub(super) whole: bool,
}

impl<'a> Layers<'a> {
    pub(super) fn new(sections: &'a [Section]) -> Self {
        Self { broken_lines: BTreeSet::new(), problems: Vec::new(), sections, values: Values::new(), whole: true }
    }

    /// After a syntax error the other lines are still judged, the line itself is not: what it means is a guess.
    pub(super) fn add_file(&mut self, text: &str) {
        let lines = Lines::new(text);
        let (table, errors) = DeTable::parse_recoverable(text);
        self.whole = errors.is_empty();
        for error in &errors {
            let place = error.span().map_or(Place::WholeFile, |span| lines.place(&span));
            self.broken_lines.extend(place.line());
            self.problems.push(Problem { place, text: error.message().replace('\n', ", ") });
        }
        for (key, value) in table.get_ref() {
            self.add_top_level(key, value, &lines);
        }
    }

    pub(super) fn add_unreadable_file(&mut self, reason: String) {
        self.whole = false;
        self.problem(Place::WholeFile, reason);
    }

    fn add_top_level(
        &mut self,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
        lines: &Lines<'_>,
    ) {
        let name = key.get_ref().as_ref();
        let at = lines.place(&key.span());
        let section = self.sections.iter().find(|section| !section.name.is_empty() && section.name == name);
        match (value.get_ref(), section.map(|section| section.form)) {
            (DeValue::Table(keys), Some(Form::Single)) => {
                for (key, value) in keys {
                    self.add_key((name, name), key.get_ref(), lines.place(&key.span()), value, lines);
                }
            }
            (DeValue::Array(tables), Some(Form::Repeated)) => self.add_tables(name, at, tables, lines),
            (_, Some(Form::Repeated)) => self.problem(at, repeated(name)),
            (_, Some(Form::Single)) => {
                self.problem(at, format!("\"{name}\" is a section; write its keys below [{name}]"));
            }
            (DeValue::Table(_), None) if !self.known("", name) => {
                if self.on_broken_line(&at) {
                    return;
                }
                let sections = self.sections.iter().map(|section| section.name).filter(|known| !known.is_empty());
                let hint = did_you_mean(nearest(name, sections));
                self.problem(at, format!("unknown section \"{name}\"{hint}"));
            }
            (_, None) => self.add_key(("", ""), name, at, value, lines),
        }
    }

    fn add_tables(&mut self, section: &str, at: Place, tables: &[Spanned<DeValue<'_>>], lines: &Lines<'_>) {
        let mut index = 0;
        if tables.is_empty() {
            // None, and somebody says so.
            self.values.insert(section.to_owned(), Value { data: Data::List(Vec::new()), place: at });
        }
        for table in tables {
            let place = lines.place(&table.span());
            let DeValue::Table(keys) = table.get_ref() else {
                self.problem(place, repeated(section));
                continue;
            };
            let path = table_path(section, index);
            for (key, value) in keys {
                self.add_key((section, &path), key.get_ref(), lines.place(&key.span()), value, lines);
            }
            self.values.insert(path, Value { data: Data::Table(BTreeMap::new()), place });
            index += 1;
        }
    }

    /// `parent` is the path of the section, or of one of its tables.
    fn add_key(
        &mut self,
        (section, parent): (&str, &str),
        name: &str,
        at: Place,
        value: &Spanned<DeValue<'_>>,
        lines: &Lines<'_>,
    ) {
        let path = path_of(section, name);
        if self.on_broken_line(&at) {
            return;
        }
        if self.known(section, name) {
            self.values.insert(path_of(parent, name), from_toml(value, &|span| lines.place(span)));
        } else {
            let hint = did_you_mean(self.similar(section, name).as_deref());
            self.problem(at, format!("unknown key \"{path}\"{hint}"));
        }
    }

    /// Variables that are not ours, by name, are left alone.
    pub(super) fn add_environment(&mut self, variables: impl Iterator<Item = (String, String)>) {
        let paths: BTreeMap<String, String> = self.paths().map(|path| (environment_name(&path), path)).collect();
        for (name, text) in variables {
            let Some(rest) = name.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
            let place = Place::Environment(name.clone());
            if let Some(path) = paths.get(&name) {
                // The standard library's lossy conversion leaves this mark in what was not UTF-8.
                if text.contains(char::REPLACEMENT_CHARACTER) {
                    self.problem(place, format!("{path}: is not UTF-8 text"));
                } else {
                    self.values.insert(path.clone(), Value::raw(text, place));
                }
            } else if !is_service_link(rest, &text) {
                let hint = self.similar_variable(rest, &paths);
                self.problem(place, format!("unknown variable{}", did_you_mean(hint.as_deref())));
            }
        }
    }

    pub(super) fn add_flags(&mut self, flags: &Overrides) {
        let list = |items: &[String], flag: &'static str| {
            let items: Vec<Value> = items.iter().map(|item| Value::raw(item.as_str(), Place::Flag(flag))).collect();
            let value = Value { data: Data::List(items), place: Place::Flag(flag) };
            (!flags_empty(&value)).then_some(value)
        };
        let single = |text: Option<String>, flag| text.map(|text| Value::raw(text, Place::Flag(flag)));
        let file = |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
        let given = [
            ("listen", list(&flags.listen, "--listen")),
            ("broker.uris", list(&flags.broker, "--broker")),
            ("tls.cert_file", single(file(&flags.tls_cert), "--tls-cert")),
            ("tls.key_file", single(file(&flags.tls_key), "--tls-key")),
            ("admin.listen", single(flags.admin.clone(), "--admin")),
        ];
        for (path, value) in given {
            if let Some(value) = value {
                self.values.insert(path.to_owned(), value);
            }
        }
    }

    fn on_broken_line(&self, place: &Place) -> bool {
        place.line().is_some_and(|line| self.broken_lines.contains(&line))
    }

    fn problem(&mut self, place: Place, text: String) {
        self.problems.push(Problem { place, text });
    }

    fn paths(&self) -> impl Iterator<Item = String> {
        let single = self.sections.iter().filter(|section| section.form == Form::Single);
        single.flat_map(|section| section.keys.iter().map(|key| path_of(section.name, &key.name)))
    }

    fn known(&self, section: &str, name: &str) -> bool {
        self.sections.iter().any(|known| known.name == section && known.keys.iter().any(|key| key.name == name))
    }

    /// The same name in another section, else the nearest name in this one.
    fn similar(&self, section: &str, name: &str) -> Option<String> {
        let elsewhere = self.sections.iter().find(|other| other.keys.iter().any(|key| key.name == name));
        if let Some(other) = elsewhere {
            return Some(path_of(other.name, name));
        }
        let here = self.sections.iter().find(|known| known.name == section)?;
        let near = nearest(name, here.keys.iter().map(|key| key.name.as_str()))?;
        Some(path_of(section, near))
    }

    /// The variable of the same key in another section, else the nearest variable. The common prefix does not count.
    fn similar_variable(&self, rest: &str, known: &BTreeMap<String, String>) -> Option<String> {
        let key = rest.rsplit_once("__").map(|(_, key)| key.to_lowercase());
        if let Some(path) = key.and_then(|key| self.paths().find(|path| path.rsplit('.').next() == Some(&key))) {
            return Some(environment_name(&path));
        }
        let near = nearest(rest, known.keys().filter_map(|name| name.strip_prefix(ENVIRONMENT_PREFIX)))?;
        Some(format!("{ENVIRONMENT_PREFIX}{near}"))
    }
}

fn repeated(section: &str) -> String {
    format!("\"{section}\" is a list of sections; write the keys of each below [[{section}]]")
}

fn flags_empty(value: &Value) -> bool {
    matches!(&value.data, Data::List(items) if items.is_empty())
}

fn did_you_mean(name: Option<&str>) -> String {
    name.map(|name| format!("; did you mean \"{name}\"?")).unwrap_or_default()
}

/// Kubernetes gives every container such variables for a service named `stomp-relay` or `stomp-relay-…`:
/// `STOMP_RELAY_SERVICE_HOST`, `STOMP_RELAY_PORT_443_TCP_ADDR`, `STOMP_RELAY_PORT=tcp://10.0.0.1:443`. No key of ours
/// looks like one.
fn is_service_link(rest: &str, text: &str) -> bool {
    let words: Vec<&str> = rest.split('_').collect();
    let is_number = |word: &str| word.parse::<u16>().is_ok();
    let is_protocol = |word: &str| ["TCP", "UDP", "SCTP"].contains(&word);
    let numbered_port = words.windows(3).any(|w| w[0] == "PORT" && is_number(w[1]) && is_protocol(w[2]));
    let service = words.windows(2).any(|pair| pair == ["SERVICE", "PORT"]) || words.ends_with(&["SERVICE", "HOST"]);
    // A `…_PORT` could also be a mistake; the link's value is a URL.
    let port = words.ends_with(&["PORT"]) && text.contains("://");
    !rest.contains("__") && (numbered_port || service || port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubernetes_service_variables_are_told_apart_from_mistakes() {
        let links = ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_WSS", "PORT_443_TCP", "PORT_443_TCP_ADDR"];
        for link in links.into_iter().chain(["ADMIN_SERVICE_HOST"]) {
            assert!(is_service_link(link, "x"), "{link}");
        }
        assert!(is_service_link("PORT", "tcp://10.0.0.1:443"));
        for mistake in ["LISTN", "TLS_KEY_FILE", "BROKER__SERVICE_HOST", "PORTS", "PORT", "BROKER_PORT"] {
            assert!(!is_service_link(mistake, "5672"), "{mistake}");
        }
    }
}
