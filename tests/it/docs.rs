//! The pages for users, compared with what they describe: error codes, configuration keys, links.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use stomp_relay::session::refusal::Refusal;

const PAGES: [&str; 18] = [
    "CHANGELOG.md",
    "README.md",
    "certs/README.md",
    "compose/README.md",
    "docs/architecture.md",
    "docs/authentication.md",
    "docs/configuration.md",
    "docs/defaults.md",
    "docs/errors.md",
    "docs/guarantees.md",
    "docs/lapin.md",
    "docs/mapping.md",
    "docs/metrics.md",
    "docs/rules.md",
    "docs/security.md",
    "docs/tls.md",
    "packaging/systemd/README.md",
    "docs/performance.md",
];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn files(folder: &str, extension: &str) -> Vec<String> {
    let entries = fs::read_dir(path(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    files.sort();
    assert!(!files.is_empty(), "no .{extension} in {folder}");
    files.iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// The rows of docs/errors.md that begin with an error code, as cells.
fn documented() -> BTreeMap<String, Vec<String>> {
    let page = read("docs/errors.md");
    let rows = page.lines().filter(|line| line.starts_with("| `")).map(|line| {
        let cells = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned());
        cells.collect::<Vec<_>>()
    });
    let mut codes = BTreeMap::new();
    for row in rows {
        let code = row[0].trim_matches('`').to_owned();
        if is_code(&code) {
            assert_eq!(row.len(), 6, "cells of {code}");
            assert_eq!(codes.insert(code.clone(), row), None, "{code} stands there twice");
        }
    }
    codes
}

fn is_code(text: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    text.split_once('.').is_some_and(|(area, name)| part(area) && part(name) && area != "amq")
}

#[test]
fn every_error_code_of_the_sources_is_documented_and_no_other() {
    let (mut errors, mut reasons) = (BTreeSet::new(), BTreeSet::new());
    for source in files("src/session", "rs") {
        let code = source.split("#[cfg(test)]").next().unwrap_or_default();
        for literal in code.split('"').skip(1) {
            // `"code"` is an ERROR's, `"code: text"` the reason of a close without one.
            match literal.split_once(": ") {
                None if is_code(literal) => errors.insert(literal.to_owned()),
                Some((code, _)) if is_code(code) => reasons.insert(code.to_owned()),
                _ => continue,
            };
        }
    }
    assert!(errors.len() > 30, "not all found: {errors:?}");
    assert_eq!(errors, documented().into_keys().collect());
    assert!(reasons.contains("session.slow_consumer"), "{reasons:?}");
    let page = read("docs/errors.md");
    for reason in reasons {
        assert!(page.contains(&format!("`{reason}`")), "{reason} is not in docs/errors.md");
    }
}

#[test]
fn refusals_of_the_broker_are_as_documented() {
    let documented = documented();
    let mut seen = BTreeSet::new();
    for reply_code in 300..600 {
        let refusal = Refusal::from_reply(reply_code, "");
        if refusal.code == "broker.internal_error" && reply_code != 541 {
            continue;
        }
        let row = &documented[refusal.code];
        let said = (row[1].as_str(), row[2].as_str(), row[4].as_str());
        let number = if reply_code == 541 { "541 and others".to_owned() } else { reply_code.to_string() };
        let close = (refusal.close as u16).to_string();
        assert_eq!(said, (format!("`{}`", refusal.message).as_str(), number.as_str(), close.as_str()), "{row:?}");
        seen.insert(refusal.code);
    }
    assert!(seen.len() >= 16, "{seen:?}");
}

/// Every ERROR of every transcript: its message, the close code, and whether the session went on.
#[test]
fn transcripts_show_errors_as_documented() {
    let documented = documented();
    let mut compared = 0;
    for transcript in files("tests/session", "txt") {
        let rabbitmq = transcript.starts_with("set compatibility rabbitmq");
        let mut lines = transcript.lines().peekable();
        while let Some(line) = lines.next() {
            let Some(error) = line.strip_prefix("C< ERROR ") else { continue };
            let header = |name: &str| {
                let mut words = error.split(' ').filter_map(|word| word.split_once(':'));
                words.find(|(found, _)| *found == name).map(|(_, value)| value.replace("\\s", " ")).unwrap_or_default()
            };
            let (code, message) = (header("error-code"), header("message"));
            let row = &documented[&code];
            assert!(row[1].contains(&format!("`{message}`")), "{line}: {row:?}");
            let of_broker = row[2].starts_with(|first: char| first.is_ascii_digit());
            let (close, afterwards) = if of_broker { (&row[4], "closes") } else { (&row[3], row[4].as_str()) };
            match lines.peek().and_then(|next| next.strip_prefix("C< close ")) {
                Some(closed) => {
                    let number = closed.split(' ').next().unwrap_or_default();
                    assert!(close.contains(number), "{line}, then {closed}: {row:?}");
                    assert!(!rabbitmq || afterwards != "open", "{line}, then {closed}: {row:?}");
                }
                None => assert!(
                    (rabbitmq || close == "open, in both modes") && afterwards.starts_with("open"),
                    "{line} without close: {row:?}"
                ),
            }
            compared += 1;
        }
    }
    assert!(compared > 40, "only {compared} ERRORs found");
}

#[test]
fn configuration_keys_in_pages_exist() {
    let reference = read("docs/configuration.md");
    let (mut keys, mut sections, mut section) = (BTreeSet::new(), BTreeSet::new(), "");
    for line in reference.lines() {
        if let Some(name) = line.strip_prefix("## [").and_then(|rest| rest.strip_suffix(']')) {
            section = name;
            sections.insert(name);
        } else if let Some(key) = line.strip_prefix("| `").and_then(|rest| rest.split('`').next()) {
            keys.insert(format!("{section}.{key}"));
        }
    }
    let errors = documented();
    let mut compared = 0;
    for page in PAGES {
        for quoted in read(page).split('`').skip(1).step_by(2) {
            let key = quoted.split(" = ").next().unwrap_or_default();
            let of_section = is_code(key) && key.split('.').next().is_some_and(|area| sections.contains(area));
            if of_section && !errors.contains_key(key) && key != "session.slow_consumer" {
                assert!(keys.contains(key), "{page} names {key}, which is not in docs/configuration.md");
                compared += 1;
            }
        }
    }
    assert!(compared > 30, "only {compared} keys found");
}

/// `` `section.key` (VALUE) `` names a default; so does `` `key` (VALUE) `` behind another key of the same section.
#[test]
fn defaults_in_pages_are_those_of_the_configuration() {
    let reference = read("docs/configuration.md");
    let (mut defaults, mut section) = (BTreeMap::new(), "");
    for line in reference.lines() {
        if let Some(name) = line.strip_prefix("## [").and_then(|rest| rest.strip_suffix(']')) {
            section = name;
        } else if line.starts_with("| `") {
            let cells: Vec<&str> = line.split(" | ").collect();
            let key = cells[0].trim_matches(|c| matches!(c, '|' | ' ' | '`'));
            defaults.insert(format!("{section}.{key}"), cells[2].to_owned());
        }
    }
    let plain = |value: &str| value.replace(['`', '"', '[', ']', ' '], "");
    let mut compared = 0;
    for page in PAGES.iter().filter(|page| **page != "docs/configuration.md") {
        let text = read(page);
        let words: Vec<&str> = text.split('`').collect();
        let mut section = "";
        for at in (1..words.len()).step_by(2) {
            let named = match words[at].split_once('.') {
                Some((area, _)) if defaults.contains_key(words[at]) => {
                    section = area;
                    words[at].to_owned()
                }
                _ => format!("{section}.{}", words[at]),
            };
            let Some(default) = defaults.get(&named) else { continue };
            let behind = words[at + 1..].join("`");
            let Some(said) = behind.strip_prefix(" (").and_then(|rest| rest.split([')', ';']).next()) else { continue };
            // Anything else in brackets is no value.
            if !said.starts_with(|c: char| c.is_ascii_digit() || c == '`') && !matches!(said, "true" | "false") {
                continue;
            }
            if said.starts_with("`--") {
                continue;
            }
            assert_eq!(plain(said), plain(default), "{page} says so of {named}");
            compared += 1;
        }
    }
    assert!(compared > 12, "only {compared} defaults found");
}

/// What is finished is not announced.
#[test]
fn pages_speak_of_what_is_there() {
    for page in PAGES {
        let text = read(page).to_lowercase();
        let words = ["| not yet", "not yet;", ", so far;", "is planned", "will be supported", "coming soon"];
        let found = words.iter().find(|word| text.contains(**word));
        assert_eq!(found, None, "{page}");
    }
}

/// docs/guarantees.md names the test that shows each promise.
#[test]
fn tests_named_by_the_guarantees_exist() {
    let page = read("docs/guarantees.md");
    let folders = [
        "tests/it",
        "tests/it/broker",
        "tests/it/failover_links",
        "tests/it/faults",
        "tests/it/plugin",
        "tests/it/shared",
        "src/session",
    ];
    let sources: String = folders.iter().flat_map(|folder| files(folder, "rs")).collect();
    // Names of tests are sentences; keys, codes and headers have other signs in them.
    let names =
        page.split('`').skip(1).step_by(2).filter(|word| word.matches('_').count() >= 2 || word.starts_with("send_"));
    let names: Vec<&str> = names.filter(|word| word.chars().all(|c| c == '_' || c.is_ascii_alphanumeric())).collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        let test = sources.contains(&format!("fn {name}("));
        let transcript = path(&format!("tests/session/{name}.txt")).exists();
        assert!(test || transcript, "docs/guarantees.md names {name}, which is no test");
    }
}

#[test]
fn links_lead_somewhere() {
    for page in PAGES {
        let folder = path(page).parent().unwrap().to_owned();
        for link in read(page).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("https://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path(page) } else { folder.join(file) };
            assert!(target.exists(), "{page} links to {link}, which is not there");
            if !anchor.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                assert!(headings(&text).contains(anchor), "{page} links to {link}, where no such heading is");
            }
        }
    }
}

/// Anchors of a page's headings, as GitHub makes them.
fn headings(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    let anchor = |heading: &str| heading.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-");
    headings.map(anchor).collect()
}

#[test]
fn every_reason_of_a_close_is_documented_and_no_other() {
    let sources = read("src/metrics.rs");
    let arms = sources.split("fn close_reason").nth(1).unwrap().split("\n}\n").next().unwrap();
    let values = arms.split("=> \"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
    let reasons: BTreeSet<String> = values.collect();
    assert!(reasons.len() > 8, "not all found: {reasons:?}");
    let page = read("docs/metrics.md");
    let row = page.lines().find(|line| line.starts_with("| `sessions_closed_total`")).unwrap();
    let cell = row.split('|').nth(3).unwrap();
    let documented = cell.split('`').skip(3).step_by(2).map(str::to_owned).collect();
    assert_eq!(reasons, documented);
}

#[test]
fn every_metric_of_the_sources_is_documented_and_no_other() {
    let sources = read("src/metrics.rs") + &read("src/admin.rs");
    let mut registered = BTreeSet::new();
    for (call, ending) in
        [(".register(", ""), (".register_with_unit(", "_seconds"), ("gauge(", ""), ("counter(", ""), ("counters(", "")]
    {
        for arguments in sources.split(call).skip(1) {
            // `"name", …` or `&mut text, "name", …`; the definitions of these functions have no text.
            let mut words = arguments.trim_start().trim_start_matches("&mut text,").trim_start().split('"');
            if let (Some(""), Some(name)) = (words.next(), words.next()) {
                registered.insert(format!("{name}{ending}"));
            }
        }
    }
    let page = read("docs/metrics.md");
    let rows = page.lines().filter(|line| line.starts_with("| `") && !line.starts_with("| `/"));
    let names = rows.flat_map(|row| row.split('|').nth(1).unwrap_or_default().split(','));
    let names = names.map(|name| name.trim().trim_matches('`'));
    let documented = names.map(|name| name.strip_suffix("_total").unwrap_or(name).to_owned()).collect();
    assert!(registered.len() > 30, "not all found: {registered:?}");
    assert_eq!(registered, documented);
}
