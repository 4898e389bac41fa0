//! The types that a key can have: each reads a value and says in one line what is wrong with it.
//!
//! Owns strings, choices, booleans, lists, tables and paths; numbers with units are in `quantity`, addresses in `url`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::problem::Problem;
use super::secret::Secret;
use super::suggest;
use super::value::{Data, Value, parse_toml};

/// How a default is written in the documentation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Numbers and booleans, without quotes.
    Bare,
    List,
    Table,
    Text,
}

/// Whether the key has a twin `x_file` that names a file with the value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Secrecy {
    Open,
    Secret,
}

type Parse<T> = Box<dyn Fn(&Value) -> Result<T, Vec<Problem>>>;

/// A key's type: its name for people, and the reader of its values.
pub(super) struct Kind<T> {
    pub(super) parse: Parse<T>,
    pub(super) secrecy: Secrecy,
    pub(super) shape: Shape,
    /// As in the documentation, such as `duration, 1s to 60s`.
    pub(super) text: String,
}

impl<T> Kind<T> {
    /// A type of which one value has at most one problem.
    pub(super) fn simple(
        text: impl Into<String>,
        shape: Shape,
        parse: impl Fn(&Value) -> Result<T, String> + 'static,
    ) -> Self {
        let parse =
            move |value: &Value| parse(value).map_err(|text| vec![Problem { place: value.place.clone(), text }]);
        Self { parse: Box::new(parse), secrecy: Secrecy::Open, shape, text: text.into() }
    }
}

/// The text of a string value.
pub(super) fn string(value: &Value) -> Result<&str, String> {
    match &value.data {
        Data::Raw(text) | Data::Text(text) => Ok(text),
        _ => Err(format!("expected a string, found {}", value.type_name())),
    }
}

/// A string that is sent as an AMQP short string: 1 to 255 bytes (AMQP 0-9-1, 4.2.5.3).
pub(super) fn name() -> Kind<String> {
    Kind::simple("string", Shape::Text, |value| {
        let text = string(value)?;
        match text.len() {
            0 => Err("must not be empty".to_owned()),
            1..=255 => Ok(text.to_owned()),
            long => Err(format!("is {long} bytes long; AMQP names have at most 255")),
        }
    })
}

/// A secret that the broker's login takes; the value never appears in a message.
pub(super) fn secret() -> Kind<Option<Secret>> {
    let parse = |value: &Value| Ok(Some(string(value)?).filter(|text| !text.is_empty()).map(Secret::new));
    Kind { secrecy: Secrecy::Secret, ..Kind::simple("secret", Shape::Text, parse) }
}

/// The value of an HTTP field: visible ASCII and spaces (RFC 9110, 5.5).
pub(super) fn header_value() -> Kind<String> {
    Kind::simple("string", Shape::Text, |value| {
        let text = string(value)?;
        match text.chars().find(|character| !matches!(character, ' '..='~')) {
            None => Ok(text.to_owned()),
            Some(odd) => Err(format!("holds {odd:?}; an HTTP header takes printable ASCII only")),
        }
    })
}

/// The value of `Strict-Transport-Security` (RFC 6797, 6.1).
pub(super) fn hsts() -> Kind<String> {
    Kind::simple("string", Shape::Text, |value| {
        let text = string(value)?;
        let mut directives = text.split(';').map(|directive| directive.trim().to_ascii_lowercase());
        let seconds =
            directives.clone().filter_map(|directive| directive.strip_prefix("max-age=")?.parse::<u64>().ok());
        let known = |directive: String| {
            ["includesubdomains", "preload"].contains(&directive.as_str()) || directive.starts_with("max-age=")
        };
        if seconds.count() == 1 && directives.all(known) {
            return Ok(text.to_owned());
        }
        let example = "max-age=63072000; includeSubDomains";
        Err(format!("{text:?} is not max-age=SECONDS with includeSubDomains or preload; such as \"{example}\""))
    })
}

/// A path in the file system; relative ones start in the working directory.
pub(super) fn path() -> Kind<PathBuf> {
    Kind::simple("path", Shape::Text, |value| Ok(PathBuf::from(string(value)?)))
}

pub(super) fn boolean() -> Kind<bool> {
    Kind::simple("boolean", Shape::Bare, |value| match &value.data {
        Data::Boolean(boolean) => Ok(*boolean),
        Data::Raw(text) => text.parse().map_err(|_| format!("expected true or false, found {:?}", text.as_str())),
        _ => Err(format!("expected true or false, found {}", value.type_name())),
    })
}

/// One of a few words.
pub(super) fn choice<T: Copy + 'static>(options: &'static [(&'static str, T)]) -> Kind<T> {
    let words: Vec<String> = options.iter().map(|(word, _)| format!("\"{word}\"")).collect();
    let text = words.join(" or ");
    let expected = text.clone();
    Kind::simple(text, Shape::Text, move |value| {
        let given = string(value)?;
        if let Some((_, option)) = options.iter().find(|(word, _)| *word == given) {
            return Ok(*option);
        }
        let hint = suggest::nearest(given, options.iter().map(|(word, _)| *word));
        let hint = hint.map(|word| format!("; did you mean \"{word}\"?")).unwrap_or_default();
        Err(format!("{given:?} is not {expected}{hint}"))
    })
}

/// A value that may be missing; the empty string counts as missing.
pub(super) fn optional<T: 'static>(kind: Kind<T>) -> Kind<Option<T>> {
    let parse = move |value: &Value| match &value.data {
        Data::Raw(text) | Data::Text(text) if text.is_empty() => Ok(None),
        _ => (kind.parse)(value).map(Some),
    };
    Kind { parse: Box::new(parse), secrecy: kind.secrecy, shape: kind.shape, text: kind.text }
}

/// How many items a list must have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ListMin {
    One,
    Zero,
}

/// A TOML list; in the environment also items separated by commas.
pub(super) fn list<T: 'static>(item: Kind<T>, min: ListMin) -> Kind<Vec<T>> {
    let text = format!("list of {}", item.text);
    let parse = move |value: &Value| {
        let at = |text: String| vec![Problem { place: value.place.clone(), text }];
        let items = items(value).map_err(at)?;
        if items.is_empty() && min == ListMin::One {
            return Err(at("must name at least one".to_owned()));
        }
        collect(items.iter().map(&item.parse))
    };
    Kind { parse: Box::new(parse), secrecy: Secrecy::Open, shape: Shape::List, text }
}

/// All values, or all problems of all items.
fn collect<T>(results: impl Iterator<Item = Result<T, Vec<Problem>>>) -> Result<Vec<T>, Vec<Problem>> {
    let (mut values, mut problems) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(value) => values.push(value),
            Err(found) => problems.extend(found),
        }
    }
    if problems.is_empty() { Ok(values) } else { Err(problems) }
}

fn items(value: &Value) -> Result<Vec<Value>, String> {
    match &value.data {
        Data::List(items) => Ok(items.clone()),
        Data::Raw(text) if text.trim_start().starts_with('[') => {
            let list = parse_toml(text, &value.place).map_err(|error| format!("is not a TOML list: {error}"))?;
            if matches!(list.data, Data::List(_)) { items(&list) } else { Err("is not a TOML list".to_owned()) }
        }
        Data::Raw(text) => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            Ok(parts.map(|part| Value::raw(part, value.place.clone())).collect())
        }
        _ => Err(format!("expected a list, found {}; put it between [ and ]", value.type_name())),
    }
}

/// A TOML table from names to names; in the environment also `a=b,c=d`.
pub(super) fn table() -> Kind<BTreeMap<String, String>> {
    let parse = |value: &Value| {
        let at = |text: String| vec![Problem { place: value.place.clone(), text }];
        let mut pairs = BTreeMap::new();
        let mut problems = Vec::new();
        for (key, value) in entries(value).map_err(at)? {
            match (name().parse)(&value) {
                Ok(text) => drop(pairs.insert(key, text)),
                Err(found) => problems.extend(
                    found.into_iter().map(|problem| Problem { text: format!("{key:?}: {}", problem.text), ..problem }),
                ),
            }
        }
        if problems.is_empty() { Ok(pairs) } else { Err(problems) }
    };
    Kind { parse: Box::new(parse), secrecy: Secrecy::Open, shape: Shape::Table, text: "table of strings".to_owned() }
}

fn entries(value: &Value) -> Result<BTreeMap<String, Value>, String> {
    match &value.data {
        Data::Table(entries) => Ok(entries.clone()),
        Data::Raw(text) if text.trim_start().starts_with('{') => {
            let table = parse_toml(text, &value.place).map_err(|error| format!("is not a TOML table: {error}"))?;
            if matches!(table.data, Data::Table(_)) { entries(&table) } else { Err("is not a TOML table".to_owned()) }
        }
        Data::Raw(text) => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            let pair = |part: &str| match part.split_once('=') {
                Some((key, text)) => Ok((key.trim().to_owned(), Value::raw(text.trim(), value.place.clone()))),
                None => Err(format!("{part:?} is not a pair; write name=value,name=value")),
            };
            parts.map(pair).collect()
        }
        _ => Err(format!("expected a table, found {}; write {{ \"name\" = \"value\" }}", value.type_name())),
    }
}
