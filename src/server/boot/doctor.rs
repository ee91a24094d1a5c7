//! What `doctor` looks at: the same things that a start insists on, and some that only make a node slow or its clock
//! wrong. Each finding says what was found, whether it matters, and how to mend it.

use super::checks;
use crate::{
    limits::{CONNECTIONS_MAX, DISK_FULL_PERCENT},
    server::{kernel, probe},
};
use std::{fs, io, path::Path, time::Duration};

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Verdict {
    Good,
    /// A node runs, but not as well as it could.
    Poor,
    /// A node does not start, or refuses writes.
    Bad,
}
impl Verdict {
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Good => "good",
            Verdict::Poor => "poor",
            Verdict::Bad => "bad",
        }
    }
}

/// One thing looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    pub name: &'static str,
    pub verdict: Verdict,
    pub found: String,
    /// How to mend it; empty when there is nothing to mend.
    pub mend: String,
}
fn finding(name: &'static str, verdict: Verdict, found: impl Into<String>, mend: impl Into<String>) -> Finding {
    let mend = if verdict == Verdict::Good { String::new() } else { mend.into() };
    Finding { name, verdict, found: found.into(), mend }
}

/// A sync that takes longer than this makes every write slow.
const SYNC_POOR: Duration = Duration::from_millis(10);
/// Share of a disk in use that is worth a word, in percent.
const DISK_POOR_PERCENT: u64 = 85;

/// Looks at the machine, and at the file system of `data` if it is given; writes nothing but a scratch file there,
/// removed again.
pub fn look(data: Option<&Path>) -> Vec<Finding> {
    let cpus = kernel::allowed_cpus();
    let shards = cpus.as_ref().map_or(1, Vec::len);
    let mut findings = vec![look_at_kernel(), look_at_ring(), look_at_memory(shards), look_at_files(shards)];
    findings.push(match cpus {
        Ok(cpus) => finding("cpus", Verdict::Good, format!("{} for shards", cpus.len()), ""),
        Err(e) => finding("cpus", Verdict::Bad, e.to_string(), "the CPU affinity must be readable"),
    });
    findings.push(look_at_clock_source());
    findings.push(look_at_clock());
    if let Some(data) = data {
        look_at_data(data, &mut findings);
    }
    findings
}

/// Mends what can be mended from here without harm. Says what was done.
pub fn fix(data: Option<&Path>) -> Vec<String> {
    let mut done = Vec::new();
    let mut note = |what: String, result: io::Result<()>| {
        done.push(match result {
            Ok(()) => what,
            Err(error) => format!("{what}: not done: {error}"),
        });
    };
    const SWITCH: &str = "/proc/sys/kernel/io_uring_disabled";
    if fs::read_to_string(SWITCH).is_ok_and(|value| value.trim() != "0") {
        note("switched io_uring on (kernel.io_uring_disabled = 0) until the next boot".into(), fs::write(SWITCH, "0"));
    }
    if let Some(data) = data.filter(|data| !data.exists()) {
        note(format!("made {}", data.display()), checks::make_directory(data));
    }
    done
}

fn look_at_kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let verdict = match version {
        v if v >= (6, 1) => Verdict::Good,
        v if v >= (5, 19) => Verdict::Poor,
        _ => Verdict::Bad,
    };
    finding("kernel", verdict, format!("Linux {release}"), "Dynarc is made for Linux 6.1 or newer")
}

fn look_at_ring() -> Finding {
    match checks::io_uring() {
        Ok(()) => finding("io_uring", Verdict::Good, "works", ""),
        Err(error) => finding("io_uring", Verdict::Bad, "does not work", error.to_string()),
    }
}

fn look_at_memory(shards: usize) -> Finding {
    // As a start does it.
    let raised = kernel::raise_limits();
    let found = match (raised, kernel::memory_lock_limit()) {
        (_, u64::MAX) => "unlimited".to_string(),
        (Ok(_), bytes) => format!("{} KiB", bytes / 1024),
        (Err(error), bytes) => format!("{} KiB, cannot be raised: {error}", bytes / 1024),
    };
    match checks::memory_lock(shards) {
        Ok(()) => finding("locked memory", Verdict::Good, found, ""),
        Err(error) => finding("locked memory", Verdict::Bad, found, error.to_string()),
    }
}

fn look_at_files(shards: usize) -> Finding {
    let wanted = checks::open_files_wanted(shards, CONNECTIONS_MAX);
    let limit = kernel::raise_limits().unwrap_or(0);
    let verdict = if limit >= wanted { Verdict::Good } else { Verdict::Poor };
    let mend =
        format!("{wanted} for {CONNECTIONS_MAX} connections a shard: raise the hard limit (ulimit -Hn, LimitNOFILE=)");
    finding("open files", verdict, limit.to_string(), mend)
}

fn look_at_clock_source() -> Finding {
    let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let source = fs::read_to_string(path).unwrap_or_else(|_| "unknown".into());
    let source = source.trim();
    let quick = ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter", "unknown"].contains(&source);
    let verdict = if quick { Verdict::Good } else { Verdict::Poor };
    finding(
        "clock source",
        verdict,
        source,
        format!("reading this clock is slow: boot with a TSC, or write tsc to {path}"),
    )
}

fn look_at_clock() -> Finding {
    match kernel::clock_is_synchronized() {
        Ok(true) => finding("clock", Verdict::Good, "kept by NTP", ""),
        Ok(false) => finding(
            "clock",
            Verdict::Poor,
            "not synchronized",
            "run chrony or systemd-timesyncd: last_write_wins tables and people who compare logs go by the clock",
        ),
        Err(error) => finding("clock", Verdict::Poor, error.to_string(), "the kernel does not tell"),
    }
}

fn look_at_data(data: &Path, findings: &mut Vec<Finding>) {
    let shown = data.display();
    if !data.is_dir() {
        let mend = "make it, or let the first start do so (--fix makes it); then look again";
        findings.push(finding("data directory", Verdict::Poor, format!("{shown} is no directory"), mend));
        return;
    }
    match kernel::is_memory_file_system(data) {
        Ok(false) => findings.push(finding("data directory", Verdict::Good, shown.to_string(), "")),
        Ok(true) => {
            let mend = "tmpfs and ramfs lose everything with the power: choose a directory on a disk";
            findings.push(finding("data directory", Verdict::Bad, format!("{shown} lies in memory"), mend));
            return;
        }
        Err(error) => {
            findings.push(finding("data directory", Verdict::Bad, error.to_string(), "it must be readable"));
            return;
        }
    }
    findings.push(look_at_space(data));
    findings.extend(look_at_places(data));
    match try_syncs(data) {
        Ok(trial) => {
            findings.push(finding("o_direct", Verdict::Good, "works", ""));
            let best = trial.dsync.min(trial.fdatasync);
            let verdict = if best <= SYNC_POOR { Verdict::Good } else { Verdict::Poor };
            let found = format!("{:.2?} by O_DSYNC, {:.2?} by fdatasync, 16 KiB each", trial.dsync, trial.fdatasync);
            findings.push(finding(
                "sync",
                verdict,
                found,
                "every write waits for one: use a drive with power-loss protection",
            ));
        }
        Err(error) => {
            let mend = match error.kind() {
                io::ErrorKind::Unsupported => {
                    "this file system cannot reserve space (fallocate), as ext2 and ext3 cannot: choose one on ext4 or XFS"
                }
                io::ErrorKind::InvalidInput => "this file system has no O_DIRECT: choose one on ext4 or XFS",
                _ => checks::hint(&error).unwrap_or("Dynarc must be able to write there past the page cache"),
            };
            findings.push(finding("o_direct", Verdict::Bad, error.to_string(), mend));
        }
    }
}

/// Tries both calls on this file system, in a folder of their own: the directory may be anybody's.
fn try_syncs(data: &Path) -> io::Result<probe::Trial> {
    let scratch = data.join(format!(".dynarc-doctor-{}", std::process::id()));
    fs::create_dir(&scratch)?;
    let trial = checks::try_direct_write(&scratch).and_then(|()| probe::try_both(&scratch));
    let removed = fs::remove_dir(&scratch);
    let trial = trial?;
    removed.map(|()| trial)
}

/// Whether there are places for more files.
fn look_at_places(data: &Path) -> Option<Finding> {
    let (total, free) = fs::File::open(data).and_then(kernel::file_system_files).ok().flatten()?;
    let percent = total.saturating_sub(free).saturating_mul(100) / total;
    let verdict = match free {
        0 => Verdict::Bad,
        _ if percent >= DISK_POOR_PERCENT => Verdict::Poor,
        _ => Verdict::Good,
    };
    let mend = "without places for files a node takes no more values: remove files (df -i)";
    Some(finding("disk files", verdict, format!("{percent} % of {total} places for files in use"), mend))
}

fn look_at_space(data: &Path) -> Finding {
    let space = fs::File::open(data).and_then(kernel::file_system_bytes);
    let (total, available) = match space {
        Ok(space) => space,
        Err(error) => return finding("disk space", Verdict::Bad, error.to_string(), "it must be readable"),
    };
    let percent = total.saturating_sub(available).saturating_mul(100).div_ceil(total.max(1));
    let verdict = match percent {
        p if p >= DISK_FULL_PERCENT => Verdict::Bad,
        p if p >= DISK_POOR_PERCENT => Verdict::Poor,
        _ => Verdict::Good,
    };
    let mend = format!("at {DISK_FULL_PERCENT} % a node takes no more values: make room, or delete keys");
    finding("disk space", verdict, format!("{percent} % of {} MiB in use", total >> 20), mend)
}
