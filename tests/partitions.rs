//! Five nodes under partition, kill -9, SIGSTOP and restart, with clients on all sides: nothing acknowledged is lost,
//! siblings are exactly the concurrent values, replicas become equal.
//!
//! The cluster runs on 127.0.0.1 to 127.0.0.5 of a network namespace of its own, so root is needed. A firewall there
//! drops or refuses what goes from one node's address to another's; clients have an address of their own and reach
//! every node. Like the tests of disks it runs when `ROOT_TESTS` is set (`.ci/run` does that) and otherwise says that
//! nothing was run.
//!
//! `ROOT_TESTS=1 cargo test --release --test partitions`; `PARTITION_ROUNDS=N` and `PARTITION_SEED=N` change length and
//! faults. The same seed draws the same faults; what the clients do in between is the machine's own.

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

#[path = "partitions/clients.rs"]
mod clients;
#[path = "partitions/faults.rs"]
mod faults;
#[path = "partitions/firewall.rs"]
mod firewall;
#[path = "partitions/verdict.rs"]
mod verdict;

use std::{
    env,
    os::unix::process::CommandExt,
    panic,
    process::{Command, ExitCode},
    time::Instant,
};

const NAME: &str = "nothing_is_lost_in_rounds_of_partition_and_death";
/// Set once in the namespace of its own.
const WITHIN: &str = "PARTITIONS_WITHIN_NAMESPACE";

fn main() -> ExitCode {
    if env::args().any(|a| a == "--list") {
        println!("{NAME}: test");
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<String> = env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let chosen = wanted.is_empty() || wanted.iter().any(|w| NAME.contains(w.as_str()));
    if env::var_os("ROOT_TESTS").is_none() || !chosen {
        println!("partitions: NOT RUN: 1 test with a firewall; as root: ROOT_TESTS=1 cargo test --test partitions");
        println!("test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out");
        return ExitCode::SUCCESS;
    }
    if env::var_os(WITHIN).is_none() {
        let mut again = Command::new("unshare");
        let this = env::current_exe().expect("the path of this program");
        let error = again.arg("--net").arg(this).args(env::args_os().skip(1)).env(WITHIN, "1").exec();
        eprintln!("partitions: cannot make a network namespace: unshare: {error}");
        return ExitCode::FAILURE;
    }
    println!("running 1 test");
    let start = Instant::now();
    let passed = panic::catch_unwind(faults::rounds).is_ok();
    let verdict = if passed { "ok" } else { "FAILED" };
    println!("test {NAME} ... {verdict} ({:.1} s)", start.elapsed().as_secs_f64());
    println!(
        "test result: {verdict}. {} passed; {} failed; 0 ignored; 0 measured; 0 filtered out",
        u8::from(passed),
        u8::from(!passed)
    );
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
