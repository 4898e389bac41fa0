//! Many runs to one page: medians, spread, ratios, and what went wrong. Measures nothing itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use super::chart;
use super::table::{Lines, table};

/// What stands between these in a page is replaced.
const BEGIN: &str = "<!-- bench: begin -->";
const END: &str = "<!-- bench: end -->";

#[derive(Args)]
pub struct CompareOptions {
    /// One report per line, as `run --json` prints them.
    pub runs: PathBuf,
    /// A page whose table is replaced.
    #[arg(long, value_name = "FILE")]
    pub page: Option<PathBuf>,
    /// A bar chart of the ratios, as SVG.
    #[arg(long, value_name = "FILE")]
    pub chart: Option<PathBuf>,
    /// A line above the table, such as commit=1a2b3c; may be repeated.
    #[arg(long = "fact", value_name = "KEY=VALUE")]
    pub facts: Vec<String>,
}

/// The runs of one line with one server over one transport.
#[derive(Debug, Default)]
pub struct Group {
    pub values: BTreeMap<String, Vec<f64>>,
    pub limited_by: Vec<String>,
    /// Violations of integrity, added up.
    pub faults: BTreeMap<String, u64>,
    pub runs: usize,
}

/// By line, then by server and transport: `relay wss`.
pub type Groups = BTreeMap<String, BTreeMap<String, Group>>;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Group {
    pub fn spread(&self, value: &str) -> Option<Spread> {
        let mut sorted = self.values.get(value)?.clone();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Spread { median, least, most })
    }
}

/// # Errors
/// A file cannot be read or written, is no list of reports, or has no place for the table.
pub fn run(options: &CompareOptions) -> Result<String, String> {
    let groups = read(&text_of(&options.runs)?)?;
    let text = table(&Lines::default(), &groups, &options.facts);
    if let Some(page) = &options.page {
        let chart_name = options.chart.as_ref().and_then(|path| path.file_name()).map(|name| name.to_string_lossy());
        let picture = chart_name.map_or(String::new(), |name| format!("\n![Ratios to Web STOMP]({name})\n"));
        let replaced = replace(&text_of(page)?, &format!("{text}{picture}"));
        let replaced = replaced.ok_or_else(|| format!("{}: no {BEGIN} … {END}", page.display()))?;
        fs::write(page, replaced).map_err(|error| format!("{}: {error}", page.display()))?;
    }
    if let Some(path) = &options.chart {
        let drawn = chart::draw(&Lines::default(), &groups);
        fs::write(path, drawn).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(text)
}

fn text_of(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

pub fn read(runs: &str) -> Result<Groups, String> {
    let mut groups = Groups::new();
    for (number, line) in runs.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let report: Value = serde_json::from_str(line).map_err(|error| format!("run {}: {error}", number + 1))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let server = format!("{} {}", text(&report["label"]["server"]), text(&report["transport"]));
        let group = groups.entry(text(&report["label"]["line"])).or_default().entry(server).or_default();
        group.runs += 1;
        group.limited_by.push(text(&report["limited_by"]));
        add_numbers(&report["values"], |name, value| group.values.entry(name).or_default().push(value));
        let known = report["processes"].as_object().into_iter().flat_map(|all| all.values());
        let known: f64 = known.filter_map(|usage| usage["cores"].as_f64()).sum();
        let others = report["values"]["machine_cores"].as_f64().unwrap_or(known) - known;
        group.values.entry("others_cores".to_owned()).or_default().push(others.max(0.0));
        add_numbers(&report["integrity"], |name, value| {
            let fault = !["sent", "received"].contains(&name.as_str());
            if fault && value > 0.0 {
                *group.faults.entry(name).or_default() += value as u64;
            }
        });
    }
    Ok(groups)
}

fn add_numbers(object: &Value, mut add: impl FnMut(String, f64)) {
    for (name, value) in object.as_object().into_iter().flatten() {
        if let Some(value) = value.as_f64() {
            add(name.clone(), value);
        }
    }
}

/// None: the page has no place for it.
fn replace(page: &str, text: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{text}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::super::table::{Lines, table};
    use super::{BEGIN, END, read, replace};

    fn report(server: &str, transport: &str, per_s: f64, lost: u64) -> String {
        format!(
            "{{\"label\":{{\"line\":\"pipe\",\"server\":\"{server}\"}},\"transport\":\"{transport}\",\
             \"limited_by\":\"waiting\",\"values\":{{\"per_s\":{per_s},\"machine_cores\":1.5}},\
             \"processes\":{{\"client\":{{\"cores\":0.5}}}},\"integrity\":{{\"sent\":9,\"lost\":{lost}}}}}\n"
        )
    }

    #[test]
    fn medians_ratios_and_losses_stand_in_the_table() {
        let mut runs = String::new();
        for per_s in [3000.0, 1000.0, 2000.0] {
            runs += &report("relay", "wss", per_s, 0);
        }
        runs += &report("webstomp", "wss", 400.0, 3);
        runs += &report("webstomp", "wss", 600.0, 4);
        let text = table(&Lines::default(), &read(&runs).unwrap(), &["commit=abc".to_owned()]);
        let row = text.lines().find(|line| line.contains("2,000")).unwrap_or_else(|| panic!("{text}"));
        assert!(row.contains("2,000 (1,000–3,000)") && row.contains("500 (400–600)"), "{row}");
        assert!(row.contains("**4.0×**"), "{row}");
        assert!(text.contains("commit: abc"), "{text}");
        assert!(text.contains("webstomp wss: lost 7"), "{text}");
        assert!(text.contains("1.0 of the machine's processors"), "{text}");
    }

    #[test]
    fn a_page_keeps_what_stands_around_the_table() {
        let page = format!("a\n{BEGIN}\nold\n{END}\nz\n");
        assert_eq!(replace(&page, "new\n"), Some(format!("a\n{BEGIN}\n\nnew\n\n{END}\nz\n")));
        assert_eq!(replace("a", "new"), None);
    }

    #[test]
    fn what_is_no_report_is_refused() {
        assert!(read("{").unwrap_err().starts_with("run 1: "));
    }
}
