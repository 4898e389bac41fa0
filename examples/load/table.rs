//! The lines of the comparison, and how they stand in a table.

use std::fmt::Write;

use super::compare::{Group, Groups, Spread};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    Less,
    More,
}

/// One row: a value of a line.
pub struct Row {
    pub line: &'static str,
    pub title: &'static str,
    pub value: &'static str,
    pub better: Better,
}

pub struct Lines(pub Vec<Row>);

const RELAY: &str = "relay wss";
const WEB_STOMP: &str = "webstomp wss";

/// Name in the reports, title in the table.
const SERVERS: [(&str, &str); 5] = [
    (RELAY, "relay wss"),
    (WEB_STOMP, "Web STOMP wss"),
    ("relay ws", "relay ws"),
    ("webstomp ws", "Web STOMP ws"),
    ("amqp amqp", "raw AMQP"),
];

impl Default for Lines {
    fn default() -> Lines {
        use Better::{Less, More};
        let row = |(line, title, value, better)| Row { line, title, value, better };
        let rows = [
            ("fanout", "fan-out of one topic, deliveries/s", "per_s", More),
            ("fanout", "… server CPU, µs per delivery", "server_cpu_us", Less),
            ("burst", "one message to all, p50 ms", "p50_ms", Less),
            ("burst", "… p99 ms", "p99_ms", Less),
            ("connect", "connect + SUBSCRIBE per second, own topic", "per_s", More),
            ("connect", "… server CPU, µs for each", "server_cpu_us", Less),
            ("connectshared", "connect + SUBSCRIBE per second, one topic", "per_s", More),
            ("connectshared", "… server CPU, µs for each", "server_cpu_us", Less),
            ("pipe", "queue pipe, auto, msg/s", "per_s", More),
            ("pipe", "… server CPU, µs per message", "server_cpu_us", Less),
            ("individual", "queue pipe, client-individual, msg/s", "per_s", More),
            ("individual", "… server CPU, µs per message", "server_cpu_us", Less),
            ("pipe16k", "queue pipe, 16 KiB, auto, msg/s", "per_s", More),
            ("receipts100", "receipts, window 100, per second", "per_s", More),
            ("receipts1", "receipts, window 1, per second", "per_s", More),
            ("rtt", "round trip at 1,000/s, p50 ms", "p50_ms", Less),
            ("rtt", "… p99 ms", "p99_ms", Less),
            ("idle", "idle subscriber, own topic: all servers, KiB", "servers_session_kb", Less),
            ("idle", "… relay alone, KiB", "relay_session_kb", Less),
            ("idle", "… server CPU of all of them, cores", "server_cores", Less),
            ("idleshared", "idle subscriber, one topic: all servers, KiB", "servers_session_kb", Less),
            ("idleshared", "… relay alone, KiB", "relay_session_kb", Less),
            ("unthrottled", "publishers unthrottled with heart-beats, msg/s", "per_s", More),
            ("slow", "4 KiB at 1,000/s to ten, p99 ms", "p99_ms", Less),
            ("slow", "… one of them stalled, p99 ms of the others", "stalled_p99_ms", Less),
            ("slow", "… growth of the servers, KiB/s", "server_grows_kb_per_s", Less),
            ("mixed", "queue pipe beside idle sessions, msg/s", "per_s", More),
        ];
        Lines(rows.into_iter().map(row).collect())
    }
}

impl Row {
    /// How many times better than Web STOMP the relay is, both over wss.
    pub fn ratio(&self, groups: &Groups) -> Option<f64> {
        let median = |server| Some(groups.get(self.line)?.get(server)?.spread(self.value)?.median);
        let (relay, other) = (median(RELAY)?, median(WEB_STOMP)?);
        let ratio = match self.better {
            Better::More => relay / other,
            Better::Less => other / relay,
        };
        // A share of nothing says nothing: memory may shrink, and a server may use no time at all.
        (relay > 0.0 && other > 0.0).then_some(ratio)
    }
}

pub fn table(lines: &Lines, groups: &Groups, facts: &[String]) -> String {
    let mut text = String::new();
    for fact in facts {
        let (key, value) = fact.split_once('=').unwrap_or((fact, ""));
        let _ = writeln!(text, "* {key}: {value}");
    }
    let all: Vec<&Group> = groups.values().flat_map(|servers| servers.values()).collect();
    let others: Vec<f64> = all.iter().filter_map(|group| Some(group.spread("others_cores")?.median)).collect();
    let mean = others.iter().sum::<f64>() / others.len().max(1) as f64;
    let _ = writeln!(text, "* used by processes of others meanwhile: {mean:.1} of the machine's processors\n");
    let mut head = "| line |".to_owned();
    let mut rule = "|---|".to_owned();
    for (number, (_, title)) in SERVERS.iter().enumerate() {
        let _ = write!(head, " {title} |{}", if number == 1 { " ratio |" } else { "" });
        rule += if number == 1 { "---|---|" } else { "---|" };
    }
    let _ = writeln!(text, "{head} busy with relay wss |\n{rule}---|");
    for row in &lines.0 {
        let Some(servers) = groups.get(row.line) else { continue };
        let cell =
            |server: &str| servers.get(server).and_then(|group| group.spread(row.value)).map_or("–".to_owned(), show);
        let ratio = row.ratio(groups).map_or("–".to_owned(), |ratio| format!("**{ratio:.1}×**"));
        let busy = servers.get(RELAY).and_then(|group| group.limited_by.get(group.runs / 2));
        let busy = busy.filter(|_| !row.title.starts_with('…')).map_or("", String::as_str);
        let rest: Vec<String> = SERVERS[2..].iter().map(|(server, _)| cell(server)).collect();
        let (relay, web) = (cell(RELAY), cell(WEB_STOMP));
        let _ = writeln!(text, "| {} | {relay} | {web} | {ratio} | {} | {busy} |", row.title, rest.join(" | "));
    }
    text += &faults(groups);
    text
}

/// Who lost, repeated or swapped something, or cut somebody off.
fn faults(groups: &Groups) -> String {
    let mut found = Vec::new();
    for (line, servers) in groups {
        for (server, group) in servers.iter().filter(|(_, group)| !group.faults.is_empty()) {
            let counts: Vec<String> = group.faults.iter().map(|(name, count)| format!("{name} {count}")).collect();
            found.push(format!("* {line}, {server}: {}\n", counts.join(", ")));
        }
    }
    if found.is_empty() {
        return "\nNo message was lost, repeated or out of order, and no client cut off, in any run.\n".to_owned();
    }
    format!("\nLost, repeated, out of order, or cut off, in all runs together:\n\n{}", found.concat())
}

fn show(spread: Spread) -> String {
    let Spread { median, least, most } = spread;
    if least == most {
        return number(median);
    }
    format!("{} ({}–{})", number(median), number(least), number(most))
}

/// Three digits that count, and commas between thousands.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}{rest}")
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0.00"),
            (1.234, "1.23"),
            (12.34, "12.3"),
            (999.6, "1,000"),
            (-1234.0, "-1,234"),
            (1e6, "1,000,000"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }
}
