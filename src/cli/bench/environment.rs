//! What the numbers were taken on, and what the nodes say of their syncs.

use super::{BenchError, dialect::http_response};
use std::{
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

#[derive(Clone, Debug, serde::Serialize)]
pub struct Environment {
    pub version: &'static str,
    /// The commit, where the build was told.
    pub commit: Option<&'static str>,
    pub debug_build: bool,
    pub kernel: String,
    pub cpu: String,
    pub cpus: usize,
    pub load_average: String,
    /// Type, device and options of the data's file system, if the data is local.
    pub file_system: Option<String>,
}
impl Environment {
    pub fn read(data: Option<&Path>) -> Environment {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let cpu_text = text("/proc/cpuinfo");
        let model = cpu_text.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
        Environment {
            version: env!("CARGO_PKG_VERSION"),
            commit: option_env!("BUILT_OF_COMMIT"),
            debug_build: cfg!(debug_assertions),
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: model.map_or_else(|| "unknown".into(), |(_, name)| name.trim().to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            load_average: text("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
            file_system: data.and_then(|d| file_system(d, &text("/proc/self/mountinfo"))),
        }
    }
}

/// The mount that holds `path`: the longest mount point that is a prefix of it.
fn file_system(path: &Path, mounts: &str) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let parsed = mounts.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(4);
        let (point, options) = (left.next()?, left.next()?);
        let mut right = right.split(' ');
        let (kind, device) = (right.next()?, right.next()?);
        path.starts_with(point).then(|| (point.len(), format!("{kind} on {device} ({options})")))
    });
    parsed.max_by_key(|(length, _)| *length).map(|(_, text)| text)
}

/// CPU time of the whole machine so far, in clock ticks.
#[derive(Clone, Copy, Debug)]
pub struct CpuTime {
    pub steal: u64,
    pub idle: u64,
    pub total: u64,
}
impl CpuTime {
    pub fn read() -> CpuTime {
        CpuTime::parse(&fs::read_to_string("/proc/stat").unwrap_or_default())
    }
    fn parse(stat: &str) -> CpuTime {
        let line = stat.lines().next().unwrap_or_default();
        let ticks: Vec<u64> = line.split_ascii_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
        let at = |index: usize| ticks.get(index).copied().unwrap_or(0);
        // guest and guest_nice are contained in user and nice.
        CpuTime { idle: at(3) + at(4), steal: at(7), total: ticks.iter().take(8).sum() }
    }
    /// Shares since `earlier`: stolen by the hypervisor, idle.
    pub fn shares_since(self, earlier: CpuTime) -> (f64, f64) {
        let total = self.total.saturating_sub(earlier.total).max(1) as f64;
        (self.steal.saturating_sub(earlier.steal) as f64 / total, self.idle.saturating_sub(earlier.idle) as f64 / total)
    }
}

/// What a node says of its log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Deserialize)]
pub struct LogCounts {
    pub syncs: u64,
    pub durable_writes: u64,
}

/// Each node's counts; `None` for one that cannot be asked.
pub fn log_counts(nodes: &[SocketAddr]) -> Vec<Option<LogCounts>> {
    let of_node = |node: &SocketAddr| serde_json::from_slice(&get(*node, "/v1/node").ok()?).ok();
    nodes.iter().map(of_node).collect()
}

/// What was added between two readings of the same nodes, over those that answered both times without a restart, and
/// how many those were.
pub fn log_growth(before: &[Option<LogCounts>], after: &[Option<LogCounts>]) -> (LogCounts, usize) {
    let (mut sum, mut nodes) = (LogCounts::default(), 0);
    for (before, after) in before.iter().zip(after) {
        let (Some(before), Some(after)) = (before, after) else { continue };
        if after.syncs >= before.syncs && after.durable_writes >= before.durable_writes {
            sum.syncs += after.syncs - before.syncs;
            sum.durable_writes += after.durable_writes - before.durable_writes;
            nodes += 1;
        }
    }
    (sum, nodes)
}

/// What the caches of a node may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Deserialize)]
pub struct CacheBytes {
    pub value_cache_bytes: u64,
    pub block_cache_bytes: u64,
}

/// The caches of all nodes that tell them, together, and how many nodes these are.
pub fn cache_bytes(nodes: &[SocketAddr]) -> (CacheBytes, usize) {
    let told = nodes.iter().filter_map(|node| serde_json::from_slice::<CacheBytes>(&get(*node, "/v1/node").ok()?).ok());
    told.fold((CacheBytes::default(), 0), |(sum, count), one| {
        let value_cache_bytes = sum.value_cache_bytes + one.value_cache_bytes;
        let block_cache_bytes = sum.block_cache_bytes + one.block_cache_bytes;
        (CacheBytes { value_cache_bytes, block_cache_bytes }, count + 1)
    })
}

const ANSWER_BYTES_MAX: usize = 4 << 20;
const PATIENCE: Duration = Duration::from_secs(2);

/// One blocking GET; the body of a 200.
pub fn get(node: SocketAddr, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&node, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {node}\r\n\r\n")?;
    let (mut input, mut piece) = (Vec::new(), [0; 16 << 10]);
    while input.len() < ANSWER_BYTES_MAX {
        let got = stream.read(&mut piece)?;
        input.extend_from_slice(&piece[..got]);
        match http_response(&input).map_err(io::Error::other)? {
            Some((200, body)) => return Ok(body.to_vec()),
            Some((status, _)) => return Err(io::Error::other(format!("status {status}"))),
            None if got == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            None => {}
        }
    }
    Err(io::Error::other("the answer is too long"))
}

/// Refuses a directory that does not exist, early.
pub fn check_data(data: Option<&Path>) -> Result<(), BenchError> {
    match data {
        Some(d) if !d.is_dir() => Err(BenchError::Usage(format!("--data {}: no such directory", d.display()))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_mount_point_wins() {
        let mounts = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
                      30 22 0:26 / /proc rw,nosuid - proc proc rw\n";
        assert_eq!(file_system(Path::new("/proc/self"), mounts).unwrap(), "proc on proc (rw,nosuid)");
        assert_eq!(file_system(Path::new("/"), mounts).unwrap(), "ext4 on /dev/root (rw,relatime)");
    }
    #[test]
    fn cpu_shares_come_from_differences() {
        let before = CpuTime::parse("cpu  100 0 100 700 100 0 0 0 0 0\n");
        let after = CpuTime::parse("cpu  150 0 150 780 100 0 0 20 0 0\n");
        let (steal, idle) = after.shares_since(before);
        assert!((steal - 0.1).abs() < 1e-9 && (idle - 0.4).abs() < 1e-9);
    }
    #[test]
    fn nodes_that_vanish_or_restart_are_left_out_of_the_growth() {
        let counts = |syncs, durable_writes| Some(LogCounts { syncs, durable_writes });
        let before = [counts(10, 100), counts(5, 50), counts(7, 70)];
        let after = [counts(15, 160), None, counts(1, 10)];
        assert_eq!(log_growth(&before, &after), (LogCounts { syncs: 5, durable_writes: 60 }, 1));
    }
    #[test]
    fn the_environment_is_known_here() {
        let here = Environment::read(Some(Path::new("/")));
        assert!(!here.kernel.is_empty() && here.cpus > 0 && here.file_system.is_some());
    }
}
