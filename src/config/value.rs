//! A configured value before it is typed, with the place where it was set; the same for file, environment and flags.
//!
//! Owns the way from TOML text to such values. Knows no key and no type of a key.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::DeValue;

use super::problem::Place;

/// A value and where it was set.
#[derive(Clone, PartialEq)]
pub(super) struct Value {
    pub(super) data: Data,
    pub(super) place: Place,
}

// No Debug: a value may be a secret.
#[derive(Clone, PartialEq)]
pub(super) enum Data {
    Boolean(bool),
    /// A TOML date or time; no key takes one.
    Date,
    Decimal(f64),
    Integer(i128),
    List(Vec<Value>),
    /// Untyped text of a variable, a flag, a secret's file or a default: the key's type says how to read it.
    Raw(String),
    Table(BTreeMap<String, Value>),
    Text(String),
}

impl Value {
    pub(super) fn raw(text: impl Into<String>, place: Place) -> Self {
        Self { data: Data::Raw(text.into()), place }
    }

    /// Names the type for an error message; never shows the value.
    pub(super) fn type_name(&self) -> &'static str {
        match self.data {
            Data::Boolean(_) => "a boolean",
            Data::Date => "a date",
            Data::Decimal(_) => "a decimal number",
            Data::Integer(_) => "an integer",
            Data::List(_) => "a list",
            Data::Raw(_) | Data::Text(_) => "a string",
            Data::Table(_) => "a table",
        }
    }
}

/// Turns byte offsets of a text into places.
pub(super) struct Lines<'a> {
    starts: Vec<usize>,
    text: &'a str,
}

impl<'a> Lines<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let after_breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { starts: std::iter::once(0).chain(after_breaks).collect(), text }
    }

    pub(super) fn place(&self, span: &Range<usize>) -> Place {
        let line = self.starts.partition_point(|start| *start <= span.start).max(1);
        let before = self.text.get(self.starts[line - 1]..span.start).unwrap_or_default();
        Place::File { line, column: before.chars().count() + 1 }
    }
}

/// Converts a parsed TOML value; `place` tells where a span lies.
pub(super) fn from_toml(value: &Spanned<DeValue<'_>>, place: &dyn Fn(&Range<usize>) -> Place) -> Value {
    let data = match value.get_ref() {
        DeValue::String(text) => Data::Text(text.to_string()),
        // An integer beyond 128 bits saturates: every range refuses it all the same.
        DeValue::Integer(integer) => {
            Data::Integer(i128::from_str_radix(integer.as_str(), integer.radix()).unwrap_or(i128::MAX))
        }
        DeValue::Float(decimal) => Data::Decimal(decimal.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(boolean) => Data::Boolean(*boolean),
        DeValue::Datetime(_) => Data::Date,
        DeValue::Array(items) => Data::List(items.iter().map(|item| from_toml(item, place)).collect()),
        DeValue::Table(table) => {
            Data::Table(table.iter().map(|(key, value)| (key.get_ref().to_string(), from_toml(value, place))).collect())
        }
    };
    Value { data, place: place(&value.span()) }
}

/// Reads `text`, one TOML value such as `["a", "b"]`, all of it set at `place`.
pub(super) fn parse_toml(text: &str, place: &Place) -> Result<Value, String> {
    match DeValue::parse(text) {
        Ok(value) => Ok(from_toml(&value, &|_| place.clone())),
        Err(error) => Err(error.message().to_owned()),
    }
}
