//! Processor time and memory of processes with their children, and of the whole machine, from Linux's /proc.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use serde::Serialize;

use super::Unusable;

/// Clock ticks per second in /proc: fixed for user space on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// This process, in reports.
pub const CLIENT: &str = "client";

/// Share of the machine's processors in use above which they are what limits.
pub const LIMIT_SHARE: f64 = 0.85;

pub struct Watch {
    roots: Vec<(String, u32)>,
}

/// Totals at one moment.
pub struct Sample {
    at: Instant,
    /// Processor seconds and resident bytes, by name.
    by_name: BTreeMap<String, (f64, u64)>,
    /// Processor seconds in which the machine worked.
    busy: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Usage {
    /// Processor seconds within the measurement.
    pub cpu_s: f64,
    /// Processors kept busy.
    pub cores: f64,
    /// Resident bytes at the end.
    pub rss: u64,
    /// Resident bytes gained within the measurement.
    pub rss_gained: i64,
}

impl Watch {
    /// # Errors
    /// Not NAME=PID, or there is no such process.
    pub fn new(pids: &[String]) -> Result<Watch, Unusable> {
        let mut roots = vec![(CLIENT.to_owned(), std::process::id())];
        for text in pids {
            let parsed = text.split_once('=').and_then(|(name, pid)| Some((name.to_owned(), pid.parse().ok()?)));
            let (name, pid) = parsed.ok_or_else(|| Unusable(format!("--pid {text}: not NAME=PID")))?;
            stat(pid).ok_or_else(|| Unusable(format!("--pid {text}: no such process")))?;
            roots.push((name, pid));
        }
        Ok(Watch { roots })
    }

    pub fn sample(&self) -> Sample {
        let all = all_processes();
        let by_name = self.roots.iter().map(|(name, root)| {
            // A server that the generator's own process runs, in a test, is not a part of it.
            let members = if name == CLIENT { vec![*root] } else { with_children(*root, &all) };
            let of = |pid: &u32| stat(*pid).map_or((0.0, 0), |stat| (stat.cpu_s, stat.rss));
            let sum = members.iter().map(of).fold((0.0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
            (name.clone(), sum)
        });
        Sample { at: Instant::now(), by_name: by_name.collect(), busy: machine_busy() }
    }
}

impl Sample {
    pub fn seconds_to(&self, later: &Sample) -> f64 {
        (later.at - self.at).as_secs_f64().max(1e-6)
    }

    pub fn rss(&self) -> BTreeMap<String, u64> {
        self.by_name.iter().map(|(name, (_, rss))| (name.clone(), *rss)).collect()
    }

    pub fn usage_to(&self, later: &Sample) -> BTreeMap<String, Usage> {
        let seconds = self.seconds_to(later);
        let usage = later.by_name.iter().map(|(name, (cpu, rss))| {
            let (cpu_before, rss_before) = self.by_name.get(name).copied().unwrap_or_default();
            let cpu_s = (cpu - cpu_before).max(0.0);
            let rss_gained = *rss as i64 - rss_before as i64;
            (name.clone(), Usage { cpu_s, cores: cpu_s / seconds, rss: *rss, rss_gained })
        });
        usage.collect()
    }

    /// Processors of the whole machine that were busy.
    pub fn machine_cores_to(&self, later: &Sample) -> f64 {
        (later.busy - self.busy).max(0.0) / self.seconds_to(later)
    }
}

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// "waiting" if processors were idle, else who used them, the largest first: `relay 1.1, client 0.6`. Once they are all in
/// use, everybody has all that the others leave, and only the sizes say whose work it is that limits.
pub fn limited_by(usage: &BTreeMap<String, Usage>, machine_cores: f64, cores: f64) -> String {
    let known: f64 = usage.values().map(|usage| usage.cores).sum();
    if known.max(machine_cores) < LIMIT_SHARE * cores {
        return "waiting".to_owned();
    }
    let mut shares: Vec<(&str, f64)> = usage.iter().map(|(name, usage)| (name.as_str(), usage.cores)).collect();
    shares.push(("others", machine_cores - known));
    shares.retain(|(_, share)| *share >= 0.05 * cores);
    shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    let texts: Vec<String> = shares.iter().map(|(name, share)| format!("{name} {share:.1}")).collect();
    texts.join(", ")
}

struct Stat {
    parent: u32,
    cpu_s: f64,
    rss: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command may hold blanks and parentheses.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let cpu_s = (number(11)? + number(12)?) as f64 / TICKS_PER_SECOND;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let rss = rss.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024;
    Some(Stat { parent: u32::try_from(number(1)?).ok()?, cpu_s, rss })
}

/// Every process with its parent.
fn all_processes() -> Vec<(u32, u32)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, stat(pid)?.parent))).collect()
}

fn with_children(root: u32, all: &[(u32, u32)]) -> Vec<u32> {
    let mut members = vec![root];
    let mut next = 0;
    while next < members.len() {
        let parent = members[next];
        members.extend(all.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    members
}

/// Seconds that all processors together worked since the machine started.
fn machine_busy() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guest times are in user and nice already.
    let busy = [0, 1, 2, 5, 6, 7].iter().filter_map(|index| ticks.get(*index)).sum::<f64>();
    busy / TICKS_PER_SECOND
}

#[cfg(test)]
mod tests {
    use super::{CLIENT, Usage, Watch, limited_by};
    use std::collections::BTreeMap;

    fn usage(shares: &[(&str, f64)]) -> BTreeMap<String, Usage> {
        let usage = |cores: f64| Usage { cpu_s: cores, cores, rss: 0, rss_gained: 0 };
        shares.iter().map(|(name, cores)| ((*name).to_owned(), usage(*cores))).collect()
    }

    #[test]
    fn the_limit_is_named_when_no_processor_is_idle() {
        assert_eq!(limited_by(&usage(&[("client", 0.2), ("relay", 0.3)]), 0.6, 2.0), "waiting");
        assert_eq!(limited_by(&usage(&[("client", 0.2), ("relay", 1.7)]), 1.95, 2.0), "relay 1.7, client 0.2");
        assert_eq!(limited_by(&usage(&[("client", 0.3)]), 1.9, 2.0), "others 1.6, client 0.3");
    }

    #[test]
    fn work_is_seen_and_strangers_are_refused() {
        let watch = Watch::new(&[format!("self={}", std::process::id())]).unwrap();
        let before = watch.sample();
        // A busy machine may give this thread no processor for a while.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let usage = loop {
            std::hint::black_box((0..1_000_000).map(std::hint::black_box).sum::<u64>());
            let usage = before.usage_to(&watch.sample());
            if usage["self"].cpu_s > 0.0 || std::time::Instant::now() > end {
                break usage;
            }
        };
        assert!(usage["self"].cpu_s > 0.0 && usage[CLIENT].rss > 1 << 20, "{usage:?}");
        for bad in ["relay", "relay=x", "relay=999999999"] {
            assert!(Watch::new(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
