//! Nodes on disks of their own: file systems on loop devices whose power is cut, which are full, whose device breaks.
//!
//! All of it mounts file systems and so needs root. It runs when `ROOT_TESTS` is set (`.ci/run` does that) and fails
//! there if it cannot; without `ROOT_TESTS` it says that nothing was run, and counts nothing as passed. It runs in a mount
//! namespace of its own: whatever ends it, the kernel takes its mounts and loop devices away with it.
//!
//! `ROOT_TESTS=1 cargo test --release --test disks [NAME]`; `DISK_ROUNDS=N` changes how often power is cut.

// Outside of the data path: tests have clocks, threads and locks.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

#[allow(dead_code, reason = "shared with the cluster's tests")]
#[path = "cluster/http.rs"]
mod http;
#[allow(dead_code, reason = "shared with the cluster's tests")]
#[path = "cluster/node.rs"]
mod node;
#[allow(dead_code, reason = "shared with the cluster's tests")]
#[path = "cluster/wait.rs"]
mod wait;

#[path = "disks/drive.rs"]
mod drive;
#[path = "disks/ledger.rs"]
mod ledger;
#[path = "disks/volume.rs"]
mod volume;

#[path = "disks/broken.rs"]
mod broken;
#[path = "disks/full.rs"]
mod full;
#[path = "disks/power.rs"]
mod power;

use std::{
    env,
    os::unix::process::CommandExt,
    panic,
    process::{Command, ExitCode},
    time::Instant,
};

/// Every test, the quickest first.
const TESTS: &[(&str, fn())] = &[
    ("broken::a_failed_write_stops_the_node", broken::a_failed_write_stops_the_node),
    ("broken::a_failed_flush_stops_the_node", broken::a_failed_flush_stops_the_node),
    ("full::a_small_disk_fills_and_empties", full::a_small_disk_fills_and_empties),
    ("full::other_files_come_and_go", full::other_files_come_and_go),
    ("power::lost_write_caches", power::lost_write_caches),
    ("power::ext4_shutdowns", power::ext4_shutdowns),
];
/// Set once in the namespace of its own.
const WITHIN: &str = "DISKS_WITHIN_NAMESPACE";

fn main() -> ExitCode {
    let wanted: Vec<String> = env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if env::args().any(|a| a == "--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if env::var_os("ROOT_TESTS").is_none() {
        println!(
            "disks: NOT RUN: {} tests that mount file systems; as root: ROOT_TESTS=1 cargo test --test disks",
            TESTS.len()
        );
        println!("test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; {} filtered out", TESTS.len());
        return ExitCode::SUCCESS;
    }
    if env::var_os(WITHIN).is_none() {
        let mut again = Command::new("unshare");
        let this = env::current_exe().expect("the path of this program");
        again.args(["--mount", "--propagation", "private"]).arg(this).args(env::args_os().skip(1));
        let error = again.env(WITHIN, "1").exec();
        eprintln!("disks: cannot make a mount namespace: unshare: {error}");
        return ExitCode::FAILURE;
    }
    run(&wanted)
}

fn run(wanted: &[String]) -> ExitCode {
    let chosen = |name: &&(&str, fn())| wanted.is_empty() || wanted.iter().any(|w| name.0.contains(w.as_str()));
    let chosen: Vec<_> = TESTS.iter().filter(chosen).collect();
    println!("running {} tests", chosen.len());
    let mut failed = Vec::new();
    for (name, test) in &chosen {
        let start = Instant::now();
        let passed = panic::catch_unwind(test).is_ok();
        println!("test {name} ... {} ({:.1} s)", if passed { "ok" } else { "FAILED" }, start.elapsed().as_secs_f64());
        failed.extend((!passed).then_some(*name));
    }
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    let (passed, out) = (chosen.len() - failed.len(), TESTS.len() - chosen.len());
    println!(
        "test result: {verdict}. {passed} passed; {} failed; 0 ignored; 0 measured; {out} filtered out",
        failed.len()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
