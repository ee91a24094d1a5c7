//! What a node takes of its machine: memory and CPU when idle, memory when full.

use crate::{long, node::Cluster, wait};
use std::{fs, time::Duration};

/// Bytes of memory that the process has in RAM.
pub fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("VmRSS");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
    kib << 10
}
/// CPU time that it has used.
fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running process");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks: u64 = [11, 12].iter().map(|i| fields[*i].parse::<u64>().expect("a number")).sum();
    // The kernel counts in hundredths of a second on every machine that this runs on (USER_HZ).
    Duration::from_millis(ticks * 10)
}

#[test]
fn an_idle_node_takes_little() {
    let mut cluster = Cluster::start("idle", 3);
    assert_eq!(cluster.http(0).put("k", "1", None).unwrap().status, 200);
    let pids: Vec<u32> = cluster.nodes.iter().map(|n| n.pid()).collect();
    let used = |pids: &[u32]| pids.iter().map(|p| cpu_time(*p)).collect::<Vec<_>>();
    // Starting up is over.
    wait::pause(Duration::from_secs(2));
    let (before, span) = (used(&pids), Duration::from_secs(10));
    wait::pause(span);
    let after = used(&pids);
    for (index, node) in cluster.nodes.iter_mut().enumerate() {
        node.assert_runs();
        let share = (after[index] - before[index]).as_secs_f64() / span.as_secs_f64();
        let memory = resident_bytes(pids[index]);
        eprintln!("idle node {index}: {:.1} MiB, {:.2} % of a core", memory as f64 / 1_048_576.0, share * 100.0);
        assert!(memory < 64 << 20, "an idle node has {} MiB", memory >> 20);
        assert!(share < 0.02, "an idle node uses {:.2} % of a core", share * 100.0);
    }
}

#[test]
fn a_full_node_stays_within_its_memory() {
    let mut cluster = Cluster::start("full", 1);
    let (total, writers) = (if long() { 2u64 << 30 } else { 160 << 20 }, 8u64);
    let sizes = [100usize, 1_000, 10_000, 100_000];
    std::thread::scope(|scope| {
        for writer in 0..writers {
            let mut http = cluster.http(0);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(writer);
                let (mut written, mut number) = (0, 0);
                while written < total / writers {
                    let mut body = vec![0; sizes[number % sizes.len()]];
                    random.fill(&mut body);
                    let target = format!("/v1/keys/full:{writer}:{number}");
                    let reply = http.send("PUT", &target, &[("Content-Type", "a/b")], &body).expect("an answer");
                    match reply.status {
                        200 => (written, number) = (written + body.len() as u64, number + 1),
                        429 => wait::pause(Duration::from_millis(20)),
                        _ => panic!("{reply:?}"),
                    }
                }
            });
        }
    });
    let memory = |cluster: &Cluster| resident_bytes(cluster.nodes[0].pid());
    eprintln!("after {} MiB written: {} MiB resident", total >> 20, memory(&cluster) >> 20);
    assert!(memory(&cluster) < 512 << 20, "{} MiB after writing", memory(&cluster) >> 20);
    cluster.nodes[0].kill();
    cluster.start_all();
    eprintln!("after a restart: {} MiB resident", memory(&cluster) >> 20);
    let mut http = cluster.http(0);
    for number in (0..400).rev() {
        let read = http.get(&format!("/v1/keys/full:3:{number}")).expect("an answer");
        assert_eq!(read.status, 200, "{}", read.text());
    }
    assert!(memory(&cluster) < 512 << 20, "{} MiB after a restart", memory(&cluster) >> 20);
}
