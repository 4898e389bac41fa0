//! How much memory this process may use: the machine's, or less where a control group (version 1 or 2) says so.
//!
//! Reads Linux's own files and knows no configuration.

use std::fs;
use std::path::Path;

/// Where the number comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    ControlGroup,
    Machine,
    /// Nothing says it: a machine of 1 GiB is assumed.
    Unknown,
}

impl Source {
    /// For people, as in "three quarters of the machine's 8 GiB".
    pub fn owner(self) -> &'static str {
        match self {
            Source::ControlGroup => "the control group's",
            Source::Machine => "the machine's",
            Source::Unknown => "an assumed machine's",
        }
    }
}

/// Bytes, and who has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub bytes: usize,
    pub source: Source,
}

const ASSUMED: usize = 1 << 30;

/// What this process may use now.
pub fn memory() -> Memory {
    memory_below(Path::new("/"))
}

/// As a process sees it whose file system begins at `root`.
fn memory_below(root: &Path) -> Memory {
    let machine = machine(root);
    let group = control_groups(root).into_iter().min();
    match (group, machine) {
        (Some(bytes), machine) if machine.is_none_or(|machine| bytes < machine) => {
            Memory { bytes, source: Source::ControlGroup }
        }
        (_, Some(bytes)) => Memory { bytes, source: Source::Machine },
        (_, None) => Memory { bytes: ASSUMED, source: Source::Unknown },
    }
}

fn machine(root: &Path) -> Option<usize> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.saturating_mul(1024))
}

/// The limits of all groups that the process is in. Inside a container the path in `/proc/self/cgroup` is often the host's,
/// and the group itself is what is mounted: so the mounted root is looked at too.
fn control_groups(root: &Path) -> Vec<usize> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mounted = root.join("sys/fs/cgroup");
    let mut limits = Vec::new();
    let mut read = |path: &Path| {
        // "max" of version 2 is no number.
        limits.extend(fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<usize>().ok()));
    };
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (base, files): (_, &[&str]) = match controllers {
            "" => (mounted.clone(), &["memory.max", "memory.high"]),
            names if names.split(',').any(|name| name == "memory") => {
                (mounted.join("memory"), &["memory.limit_in_bytes"])
            }
            _ => continue,
        };
        let group = base.join(path.trim_start_matches('/'));
        // Each group is bound by those above it.
        for folder in group.ancestors().take_while(|folder| folder.starts_with(&base)) {
            files.iter().for_each(|file| read(&folder.join(file)));
        }
    }
    limits
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A folder of its own, gone with the test.
    struct Root(PathBuf);

    impl Root {
        fn with(name: &str, files: &[(&str, &str)]) -> Root {
            let root = std::env::temp_dir().join(format!("stomp-relay-memory-{}-{name}", std::process::id()));
            for (path, text) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().expect("it has one")).expect("writable");
                fs::write(path, text).expect("writable");
            }
            Root(root)
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const MACHINE: (&str, &str) = ("proc/meminfo", "MemTotal:       16384 kB\nMemFree: 1 kB\n");
    const MIB: usize = 1 << 20;

    #[test]
    fn the_machine_counts_without_a_group_or_with_a_larger_one() {
        let root = Root::with("machine", &[MACHINE]);
        assert_eq!(memory_below(&root.0), Memory { bytes: 16 * MIB, source: Source::Machine });
        let root = Root::with(
            "no-limit",
            &[
                MACHINE,
                ("proc/self/cgroup", "0::/a\n4:cpu,memory:/b\n"),
                ("sys/fs/cgroup/a/memory.max", "max\n"),
                ("sys/fs/cgroup/memory/b/memory.limit_in_bytes", "9223372036854771712\n"),
            ],
        );
        assert_eq!(memory_below(&root.0), Memory { bytes: 16 * MIB, source: Source::Machine });
    }

    #[test]
    fn the_least_of_a_group_and_those_above_it_counts() {
        let root = Root::with(
            "version-2",
            &[
                MACHINE,
                ("proc/self/cgroup", "0::/system.slice/relay.service\n"),
                ("sys/fs/cgroup/system.slice/relay.service/memory.max", "8388608\n"),
                ("sys/fs/cgroup/system.slice/relay.service/memory.high", "6291456\n"),
                ("sys/fs/cgroup/system.slice/memory.max", "4194304\n"),
            ],
        );
        assert_eq!(memory_below(&root.0), Memory { bytes: 4 * MIB, source: Source::ControlGroup });
    }

    #[test]
    fn version_1_counts_and_the_root_in_a_container() {
        let root = Root::with(
            "version-1",
            &[
                MACHINE,
                ("proc/self/cgroup", "11:memory:/docker/abc\n2:cpu:/docker/abc\n"),
                // The container sees its own group as the root.
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2097152\n"),
            ],
        );
        assert_eq!(memory_below(&root.0), Memory { bytes: 2 * MIB, source: Source::ControlGroup });
    }

    #[test]
    fn something_is_assumed_where_nothing_is_said() {
        let root = Root::with("nothing", &[("proc/other", "")]);
        assert_eq!(memory_below(&root.0), Memory { bytes: 1 << 30, source: Source::Unknown });
    }
}
