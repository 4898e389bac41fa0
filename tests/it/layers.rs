//! The layers of src/lib.rs, kept by reading the source: who may import whom, and which libraries the pure rooms know. Not
//! a parser: it reads words, and knows comments, texts, `use` trees and `::` paths.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms that know a few libraries only: what is not listed here has input, output, a clock or randomness.
const PURE: [(&str, &[&str]); 3] = [
    ("rate", &[]),
    ("stomp", &["bytes", "itoa", "memchr", "thiserror"]),
    (
        "session",
        &[
            "base64",
            "bytes",
            "itoa",
            "md5",
            "percent_encoding",
            "sha2",
            "smol_str",
            "stringprep",
            "unicode_normalization",
        ],
    ),
];

/// Beginnings of paths that the pure rooms must not say.
const IMPURE: [&[&str]; 10] = [
    &["Instant", "now"],
    &["SystemTime"],
    &["RandomState"],
    &["std", "env"],
    &["std", "fs"],
    &["std", "process"],
    &["std", "thread"],
    &["std", "time", "SystemTime"],
    &["std", "time", "Instant", "now"],
    &["thread"],
];

/// Room, what it must not import although the drawing would allow it, and the exceptions.
const FORBIDDEN: [(&str, &[&str], &[&str]); 3] = [
    (
        "auth",
        &["session", "stomp", "clients", "dev_cert"],
        &["session::command", "session::event", "session::identity", "session::proof"],
    ),
    ("broker", &["auth", "session", "stomp"], &["session::amqp", "session::command", "session::event"]),
    ("listener", &["auth", "broker", "session", "stomp", "clients", "dev_cert"], &[]),
];

/// lapin and the libraries that only serve it.
const LAPIN: [&str; 3] = ["amq_protocol", "async_rs", "lapin"];

#[test]
fn the_source_keeps_its_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rules = Rules::new(
        &fs::read_to_string(root.join("src/lib.rs")).unwrap(),
        &fs::read_to_string(root.join("Cargo.toml")).unwrap(),
    );
    let mut files = Vec::new();
    collect(&root.join("src"), &mut files);
    assert!(files.len() > 60, "src has far more files than {}", files.len());
    let faults: Vec<String> = files
        .iter()
        .flat_map(|path| {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            rules.faults(name, &fs::read_to_string(path).unwrap())
        })
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => collect(&path, files),
            false if path.extension().is_some_and(|extension| extension == "rs") => files.push(path),
            false => {}
        }
    }
    files.sort();
}

struct Rules {
    /// From Cargo.toml, as paths say them.
    crates: BTreeSet<String>,
    /// In the drawing's reading order: a room may import those behind it.
    rooms: Vec<String>,
}

impl Rules {
    /// The drawing is the first block in lib.rs: per line a number, the rooms, and behind three blanks or more what they do.
    fn new(lib: &str, manifest: &str) -> Rules {
        let modules: BTreeSet<&str> =
            lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).chain(["main"]).collect();
        let drawing = lib.split("```").nth(1).expect("lib.rs has a drawing");
        let levels = drawing.lines().filter_map(|line| line.strip_prefix("//! ")?.split_once("  "));
        let rooms = levels.flat_map(|(_, rest)| rest.split("   ").next().unwrap_or_default().split_whitespace());
        let rooms: Vec<String> = rooms.map(str::to_owned).collect();
        for module in modules {
            assert_eq!(rooms.iter().filter(|room| *room == module).count(), 1, "{module} in the drawing of lib.rs");
        }
        let dependencies = manifest.split("\n[dependencies]\n").nth(1).expect("Cargo.toml has dependencies");
        let dependencies = dependencies.split("\n[").next().unwrap_or_default();
        let names = dependencies.lines().filter_map(|line| line.split_once(" = ").map(|(name, _)| name));
        let crates = names.map(|name| if name == "md-5" { "md5".to_owned() } else { name.replace('-', "_") });
        Rules { crates: crates.collect(), rooms }
    }

    /// What is wrong with a file, a line each.
    fn faults(&self, file: &str, text: &str) -> Vec<String> {
        let mut faults = Vec::new();
        let mut fault = |what: String| faults.push(format!("{file}: {what}"));
        if !text.starts_with("//! ") {
            fault("does not open with a //! comment".to_owned());
        }
        let parts: Vec<&str> = file.trim_start_matches("src/").trim_end_matches(".rs").split('/').collect();
        let room = parts[0];
        // What `super` means at the top of a room is the root of the crate.
        let at_top = parts.len() == 1 || parts[1..] == ["mod"];
        for path in paths(text) {
            let words: Vec<&str> = path.iter().map(String::as_str).collect();
            let shown = words.join("::");
            if let ["super", "super", ..] = words[..] {
                fault(format!("{shown}: say crate::"));
            }
            match words[..] {
                ["crate" | "stomp_relay", ..] if words.len() > 1 && room != "lib" => {
                    self.import(room, &words[1..]).unwrap_or_else(&mut fault);
                }
                ["super", name, ..] if at_top && self.rooms.iter().any(|room| room == name) => {
                    self.import(room, &words[1..]).unwrap_or_else(&mut fault);
                }
                [name, ..] if self.crates.contains(name) => library(room, name).unwrap_or_else(&mut fault),
                _ => {}
            }
            let pure = PURE.iter().any(|(pure, _)| *pure == room);
            if pure && IMPURE.iter().any(|impure| words.starts_with(impure)) {
                fault(format!("{shown} in a pure room"));
            }
        }
        faults
    }

    /// Whether `room` may say `crate::<path>`.
    fn import(&self, room: &str, path: &[&str]) -> Result<(), String> {
        let Some(target) = self.rooms.iter().position(|room| room == path[0]) else { return Ok(()) };
        let Some(own) = self.rooms.iter().position(|name| name == room) else {
            return Err("is not in the drawing of src/lib.rs".to_owned());
        };
        let shown = path.join("::");
        if target < own {
            return Err(format!("imports {shown}, which is above {room} in the drawing of src/lib.rs"));
        }
        for (forbidding, forbidden, exceptions) in FORBIDDEN {
            let excepted = exceptions.iter().any(|exception| path.iter().copied().take(2).eq(exception.split("::")));
            if forbidding == room && forbidden.contains(&path[0]) && !excepted {
                return Err(format!("imports {shown}, which {room} must not know"));
            }
        }
        Ok(())
    }
}

fn library(room: &str, name: &str) -> Result<(), String> {
    if LAPIN.contains(&name) && room != "broker" {
        return Err(format!("knows {name}, which only broker may know"));
    }
    match PURE.iter().find(|(pure, _)| *pure == room) {
        Some((_, allowed)) if !allowed.contains(&name) => Err(format!("knows {name}, but {room} is pure")),
        _ => Ok(()),
    }
}

/// Every path in a source text: those of `use` trees spelt out, and wherever else `::` stands.
fn paths(text: &str) -> Vec<Vec<String>> {
    let words = words(text);
    let mut found = Vec::new();
    let mut at = 0;
    while at < words.len() {
        if words[at] == "use" {
            at = use_tree(&words, at + 1, &[], &mut found);
        } else {
            let (path, next) = path_at(&words, at);
            if path.len() > 1 {
                found.push(path);
            }
            at = next.max(at + 1);
        }
    }
    found
}

/// `a::b::c` from `at`; what was read and where it ends.
fn path_at(words: &[String], mut at: usize) -> (Vec<String>, usize) {
    let mut path = Vec::new();
    while is_name(words, at) {
        path.push(words[at].clone());
        if words.get(at + 1).map(String::as_str) != Some("::") || !is_name(words, at + 2) {
            return (path, at + 1);
        }
        at += 2;
    }
    (path, at)
}

fn use_tree(words: &[String], at: usize, before: &[String], found: &mut Vec<Vec<String>>) -> usize {
    // A leading `::` says that a library follows.
    let at = if words.get(at).is_some_and(|word| word == "::") { at + 1 } else { at };
    let (path, mut at) = path_at(words, at);
    let path = [before, &path[..]].concat();
    let word = |at: usize| words.get(at).map(String::as_str);
    if word(at) == Some("::") {
        at += 1;
    }
    if word(at) == Some("{") {
        at += 1;
        while !matches!(word(at), Some("}") | None) {
            at = use_tree(words, at, &path, found);
            // Over the comma, a star, a renaming.
            while !matches!(word(at), Some("," | "}") | None) {
                at += 1;
            }
            if word(at) == Some(",") {
                at += 1;
            }
        }
        return at + 1;
    }
    found.push(path);
    at
}

fn is_name(words: &[String], at: usize) -> bool {
    words.get(at).is_some_and(|word| word.starts_with(|first: char| first.is_alphabetic() || first == '_'))
}

/// Names, `::` and single other characters; without comments, texts and characters in quotes.
fn words(text: &str) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    let is = |at: usize, wanted: char| characters.get(at) == Some(&wanted);
    let skip_to = |mut at: usize, end: char| {
        while at < characters.len() && characters[at] != end {
            at += if characters[at] == '\\' && end != '\n' { 2 } else { 1 };
        }
        at + 1
    };
    let (mut words, mut at) = (Vec::new(), 0);
    while at < characters.len() {
        let here = characters[at];
        if here == '/' && is(at + 1, '/') {
            at = skip_to(at, '\n');
        } else if here == '"' {
            at = skip_to(at + 1, '"');
        } else if here == '\'' && is(at + 1, '\\') {
            // Over the escaped character, which may be a quote.
            at = skip_to(at + 3, '\'');
        } else if here == '\'' {
            at += if is(at + 2, '\'') { 3 } else { 1 };
        } else if here.is_alphanumeric() || here == '_' {
            let start = at;
            while characters.get(at).is_some_and(|next| next.is_alphanumeric() || *next == '_') {
                at += 1;
            }
            let word: String = characters[start..at].iter().collect();
            match raw_text_end(&characters, &word, at) {
                Some(end) => at = end,
                None => words.push(word),
            }
        } else if here == ':' && is(at + 1, ':') {
            words.push("::".to_owned());
            at += 2;
        } else {
            if !here.is_whitespace() {
                words.push(here.to_string());
            }
            at += 1;
        }
    }
    words
}

/// Behind `r"…"` or `br#"…"#`, if that is what follows the word `r` or `br`.
fn raw_text_end(characters: &[char], word: &str, at: usize) -> Option<usize> {
    if !matches!(word, "r" | "br") {
        return None;
    }
    let hashes = characters[at..].iter().take_while(|next| **next == '#').count();
    let body = at + hashes + 1;
    if characters.get(at + hashes) != Some(&'"') {
        return None;
    }
    let closes =
        |end: &usize| characters[*end] == '"' && (1..=hashes).all(|offset| characters.get(end + offset) == Some(&'#'));
    Some((body..characters.len()).find(closes)? + hashes + 1)
}

mod checker {
    use super::Rules;

    const LIB: &str = "//! A crate.\n//! ```text\n//! 6  main  cli   flags\n//! 5  server         server is not twice here\n\
                       //! 4  config  connection   settings\n//! 3  listener  broker\n//! 2  clients  dev_cert\n//! 1  session\n\
                       //! 0  stomp\n//! ```\npub mod broker;\npub mod cli;\npub mod clients;\npub mod config;\n\
                       pub mod connection;\npub mod dev_cert;\npub mod listener;\npub mod server;\npub mod session;\n\
                       pub mod stomp;\n";
    const MANIFEST: &str = "[package]\nname = \"x\"\n\n[dependencies]\n# A comment.\ntokio = \"1\"\nlapin = \"4\" # why\n\
                            bytes = \"1\"\nmd-5 = \"1\"\naws-lc-rs = \"1\"\namq-protocol = \"1\"\n\n[dev-dependencies]\n";

    fn faults(file: &str, code: &str) -> Vec<String> {
        Rules::new(LIB, MANIFEST).faults(file, &format!("//! A file.\n{code}\n"))
    }

    #[test]
    fn the_drawing_is_read() {
        let rooms = Rules::new(LIB, MANIFEST).rooms;
        let expected = "main cli server config connection listener broker clients dev_cert session stomp";
        assert_eq!(rooms.join(" "), expected);
    }

    #[test]
    #[should_panic(expected = "metrics in the drawing")]
    fn a_module_outside_the_drawing_is_found() {
        Rules::new(&format!("{LIB}pub mod metrics;\n"), MANIFEST);
    }

    #[test]
    fn what_the_layers_allow_is_no_fault() {
        for (file, code) in [
            ("src/broker/link.rs", "use crate::session::{amqp::ShortText, event};\nuse lapin::Channel;"),
            ("src/cli.rs", "use crate::server::ServeError;"),
            ("src/config/parts.rs", "use crate::connection::ConnectionConfig;"),
            ("src/connection.rs", "fn f() { crate::broker::g(crate::stomp::h(std::time::Instant::now())) }"),
            ("src/listener/tls.rs", "use super::tcp;\nuse crate::listener::tcp::bind;\nuse tokio::net::TcpStream;"),
            ("src/main.rs", "use stomp_relay::server;"),
            ("src/session/login.rs", "use super::config;\nuse crate::stomp::Frame;\nuse std::time::Instant;"),
            ("src/session/queue.rs", "use md5::Md5;\nfn f(instant: Instant) {}"),
            ("src/stomp/line.rs", "use bytes::{Buf, BytesMut};"),
            // Not code.
            ("src/stomp/line.rs", "/// Unlike `tokio::io`\nconst TEXT: &str = \"tokio::io \\\" lapin::x\";"),
            (
                "src/stomp/line.rs",
                "const RAW: &str = r#\"\"tokio::io\"#; const QUOTE: char = '\\''; const Q: char = '\"';",
            ),
        ] {
            assert_eq!(faults(file, code), Vec::<String>::new(), "{code}");
        }
    }

    #[test]
    fn every_broken_rule_is_found() {
        for (file, code) in [
            ("src/admin.rs", "use crate::stomp::Frame;"),
            ("src/broker/link.rs", "use crate::session::Session;"),
            ("src/broker/link.rs", "use crate::session::{amqp, io::Output};"),
            ("src/broker/link.rs", "use crate::stomp::Frame;"),
            ("src/broker/link.rs", "use crate::{listener, session::event};"),
            ("src/config/parts.rs", "fn f() { crate::server::serve() }"),
            ("src/connection.rs", "use lapin::Channel;"),
            ("src/connection.rs", "use crate::config::Config;"),
            ("src/connection.rs", "use super::config::Config;"),
            ("src/connection.rs", "fn f() -> amq_protocol::X {}"),
            ("src/listener/mod.rs", "use super::session::Session;"),
            ("src/listener/tcp.rs", "use crate::connection;"),
            ("src/listener/tcp.rs", "use crate::{broker::{Broker as B}};"),
            ("src/listener/tcp.rs", "use crate::stomp::Frame;"),
            ("src/session/a.rs", "fn f() { let now = Instant::now(); }"),
            ("src/session/a.rs", "fn f(a: &'static str) -> char { std::time::SystemTime::now(); 'x' }"),
            ("src/session/a.rs", "use std::time::{Duration, SystemTime};"),
            ("src/session/a.rs", "use tokio::sync::mpsc;"),
            ("src/session/a.rs", "use ::aws_lc_rs::rand;"),
            ("src/session/a.rs", "use super::super::broker;"),
            ("src/session/mod.rs", "use crate::broker;"),
            ("src/stomp/a.rs", "use md5::Md5;"),
            ("src/stomp/a.rs", "use crate::session::Session;"),
            ("src/stomp/a.rs", "use std::{fmt, fs};"),
            ("src/stomp/a.rs", "#[tokio::test]\nfn f() {}"),
        ] {
            assert_eq!(faults(file, code).len(), 1, "{file}: {code}: {:?}", faults(file, code));
        }
    }

    #[test]
    fn files_without_a_word_are_found() {
        let rules = Rules::new(LIB, MANIFEST);
        assert_eq!(rules.faults("src/broker/a.rs", "//! A file.\n"), Vec::<String>::new());
        assert_eq!(rules.faults("src/broker/a.rs", "use std::fmt;\n").len(), 1);
    }
}
