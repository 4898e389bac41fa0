//! The claims of a token that are texts, by name, for rules and for the user's name.
//!
//! Numbers, booleans and the claims that only the verification needs are left out: no rule can match them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// How deep objects within claims are looked into; what is deeper is left out.
const DEPTH_MAX: usize = 8;

/// Claims by name; `a.b` is `b` in the object `a`. A name that is ambiguous, because a claim is itself called `a.b`, is left
/// out: one of the two could widen a rule that means the other.
pub(super) fn texts(claims: &Map<String, Value>) -> BTreeMap<String, Vec<String>> {
    let mut texts = Texts::default();
    texts.object("", claims, 1);
    let Texts { mut found, ambiguous } = texts;
    found.retain(|name, _| !ambiguous.contains(name));
    found
}

#[derive(Default)]
struct Texts {
    ambiguous: BTreeSet<String>,
    found: BTreeMap<String, Vec<String>>,
}

impl Texts {
    fn object(&mut self, prefix: &str, object: &Map<String, Value>, depth: usize) {
        for (name, value) in object {
            let path = format!("{prefix}{name}");
            match value {
                Value::String(text) => self.add(path, vec![text.clone()]),
                Value::Array(items) => {
                    let items = items.iter().filter_map(|item| item.as_str().map(str::to_owned));
                    self.add(path, items.collect());
                }
                Value::Object(inner) if depth < DEPTH_MAX => self.object(&format!("{path}."), inner, depth + 1),
                _ => {}
            }
        }
    }

    fn add(&mut self, path: String, texts: Vec<String>) {
        if !texts.is_empty() && self.found.insert(path.clone(), texts).is_some() {
            self.ambiguous.insert(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> BTreeMap<String, Vec<String>> {
        texts(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn texts_and_lists_of_texts_are_found_by_their_path() {
        let found = of(r#"{"sub":"a","n":1,"t":true,"aud":["x",2,"y"],"realm":{"roles":["r"],"x":{"y":"z"}}}"#);
        let names: Vec<_> = found.keys().map(String::as_str).collect();
        assert_eq!(names, ["aud", "realm.roles", "realm.x.y", "sub"]);
        assert_eq!(found["aud"], ["x", "y"]);
    }

    #[test]
    fn an_ambiguous_name_is_left_out() {
        assert_eq!(of(r#"{"a.b":"admin","a":{"b":"guest"},"c":"d"}"#).into_keys().collect::<Vec<_>>(), ["c"]);
    }

    #[test]
    fn depth_is_bounded() {
        let deep = format!("{}\"x\"{}", r#"{"a":"#.repeat(20), "}".repeat(20));
        assert!(of(&deep).is_empty());
        let shallow = format!("{}\"x\"{}", r#"{"a":"#.repeat(DEPTH_MAX), "}".repeat(DEPTH_MAX));
        assert_eq!(of(&shallow).len(), 1);
    }
}
