//! What one run found, as JSON for `compare` and as a table for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use super::integrity::Integrity;
use super::options::Settings;
use super::processes::{CLIENT, Sample, Usage, cores, limited_by};
use super::run::{Measured, Verdict};
use super::traffic::Latencies;

#[derive(Debug, Serialize)]
pub struct Report {
    pub scenario: &'static str,
    /// As given by `--label`.
    pub label: BTreeMap<String, String>,
    /// ws, wss or amqp.
    pub transport: String,
    pub cores: usize,
    /// Length of the measurement in seconds.
    pub seconds: f64,
    /// Names end in their unit: _per_s, _ms, _us, _kb, _cores.
    pub values: BTreeMap<String, f64>,
    pub processes: BTreeMap<String, Usage>,
    pub limited_by: String,
    pub integrity: Integrity,
    pub remarks: Vec<String>,
}

impl Report {
    pub fn new(scenario: &'static str, settings: &Settings, verdict: Verdict) -> Report {
        let pairs = settings.label.split(',').filter_map(|pair| pair.split_once('='));
        Report {
            scenario,
            label: pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            transport: settings.url.split("://").next().unwrap_or_default().to_owned(),
            cores: cores(),
            seconds: 0.0,
            values: BTreeMap::new(),
            processes: BTreeMap::new(),
            limited_by: String::new(),
            integrity: verdict.integrity,
            remarks: verdict.remarks,
        }
    }

    pub fn set(&mut self, name: &str, value: f64) {
        self.values.insert(name.to_owned(), value);
    }

    pub fn set_traffic(&mut self, measured: &Measured, messages: u64) {
        self.set_usage(&measured.before, &measured.after, Some(messages));
    }

    /// Processor time of all servers together; for each of `units`, if there are any.
    pub fn set_usage(&mut self, before: &Sample, after: &Sample, units: Option<u64>) {
        let machine_cores = before.machine_cores_to(after);
        self.seconds = before.seconds_to(after);
        self.processes = before.usage_to(after);
        self.limited_by = limited_by(&self.processes, machine_cores, cores() as f64);
        let servers = self.processes.iter().filter(|(name, _)| *name != CLIENT);
        let (server_s, gained) =
            servers.fold((0.0, 0), |sum, (_, usage)| (sum.0 + usage.cpu_s, sum.1 + usage.rss_gained));
        self.set("machine_cores", machine_cores);
        if self.processes.len() > 1 {
            self.set("server_cores", server_s / self.seconds);
            self.set("server_grows_kb_per_s", gained as f64 / 1024.0 / self.seconds);
        }
        if let Some(units) = units {
            self.set("per_s", units as f64 / self.seconds);
            if self.processes.len() > 1 && units > 0 {
                self.set("server_cpu_us", server_s * 1e6 / units as f64);
            }
        }
    }

    pub fn set_latencies(&mut self, prefix: &str, latencies: &Latencies) {
        if latencies.is_empty() {
            return;
        }
        for (name, quantile) in [("p50_ms", 0.5), ("p99_ms", 0.99), ("max_ms", 1.0)] {
            self.set(&format!("{prefix}{name}"), latencies.value_at_quantile(quantile) as f64 / 1000.0);
        }
    }

    /// Resident memory that came with each of so many sessions, by process.
    pub fn set_memory(&mut self, empty: &Sample, full: &Sample, sessions: usize) {
        let (before, mut servers_kb) = (empty.rss(), 0.0);
        for (name, rss) in full.rss() {
            let gained = rss as f64 - before.get(&name).copied().unwrap_or(0) as f64;
            let kb = gained / 1024.0 / sessions as f64;
            self.set(&format!("{name}_session_kb"), kb);
            if name != CLIENT {
                servers_kb += kb;
            }
        }
        self.set("servers_session_kb", servers_kb);
    }

    pub fn json(&self) -> String {
        // Only maps with keys that are no text, and there are none, can fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    pub fn table(&self) -> String {
        let mut text = format!("{} over {}, {:.1} s measured\n", self.scenario, self.transport, self.seconds);
        for (name, value) in &self.values {
            let _ = writeln!(text, "  {name:<24} {value:>14.3}");
        }
        for (name, usage) in &self.processes {
            let mib = usage.rss as f64 / 1_048_576.0;
            let _ = writeln!(text, "  process {name:<16} {:>8.2} cores {mib:>8.1} MiB", usage.cores);
        }
        let _ = writeln!(text, "  processors: {}", self.limited_by);
        let found = &self.integrity;
        let _ = writeln!(
            text,
            "  sent {} received {} lost {} duplicated {} reordered {} unknown {} disconnected {}",
            found.sent,
            found.received,
            found.lost,
            found.duplicated,
            found.reordered,
            found.unknown,
            found.disconnected
        );
        for remark in &self.remarks {
            let _ = writeln!(text, "  {remark}");
        }
        text
    }
}
