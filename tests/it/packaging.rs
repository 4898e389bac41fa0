//! The systemd units, judged by systemd itself.

use std::path::{Path, PathBuf};
use std::process::Command;

use stomp_relay::budget::machine::{Memory, Source};
use stomp_relay::config::Config;

use crate::support::process::RELAY;
use crate::support::scratch::Scratch;

/// systemd's own scale: 0 is closed, 10 is a service without any protection. Times ten, as the tool wants it.
const EXPOSURE_MAX: &str = "--threshold=20";

fn units() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd")
}

/// The units as they are, except that the program is the built one.
fn installed() -> Scratch {
    let folder = Scratch::new();
    for name in ["stomp-relay.service", "stomp-relay.socket"] {
        let unit = std::fs::read_to_string(units().join(name)).unwrap();
        folder.write(name, &unit.replace("/usr/bin/stomp-relay", RELAY));
    }
    folder
}

/// What the tool says.
fn analyze(arguments: &[&str], folder: &Scratch, units: &[&str]) -> String {
    let mut command = Command::new("systemd-analyze");
    command.args(arguments).args(units.iter().map(|unit| folder.path(unit)));
    let output = command.output().expect("systemd-analyze is there; Debian has it in the package systemd");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

#[test]
fn systemd_accepts_the_units() {
    let folder = installed();
    let said = analyze(&["verify", "--man=no"], &folder, &["stomp-relay.service", "stomp-relay.socket"]);
    // A key or value that is not known is a remark, not a failure.
    assert!(!said.contains("stomp-relay."), "{said}");
}

#[test]
fn the_service_is_hardened() {
    analyze(&["security", "--offline=true", EXPOSURE_MAX], &installed(), &["stomp-relay.service"]);
}

/// The value of a key of the service, which must be there once.
fn value(key: &str) -> String {
    let unit = std::fs::read_to_string(units().join("stomp-relay.service")).unwrap();
    let mut values = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let value = values.next().unwrap_or_else(|| panic!("no {key}")).to_owned();
    assert_eq!(values.next(), None, "{key} stands there twice");
    value
}

#[test]
fn the_service_has_a_memory_limit_above_its_own_budget_and_no_privilege_when_memory_runs_out() {
    let percent = |key| value(key).strip_suffix('%').and_then(|text| text.parse::<usize>().ok()).expect("a percentage");
    let (high, max) = (percent("MemoryHigh"), percent("MemoryMax"));
    assert!(high < max && max < 90, "{high} {max}");
    // As the relay reads it: the least of both is its group's.
    let group = Memory { bytes: high << 30, source: Source::ControlGroup };
    let budget = Config::default().budget_limits(group).process;
    assert!(budget < (high << 30), "slowed down before it refuses anybody");
    assert!(value("OOMScoreAdjust").parse::<i32>().expect("a number") >= 0);
    assert_eq!(value("OOMPolicy"), "stop");
    assert!(["auto", "kill"].contains(&value("ManagedOOMMemoryPressure").as_str()));
}
