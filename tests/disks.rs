//! Nodes on disks of their own: file systems on loop devices whose power is cut, which are full, whose device breaks.
//!
//! All of it mounts file systems and so needs root, and a mount namespace: see `own_namespace` for when it runs.
//!
//! `ROOT_TESTS=1 cargo test --release --test disks [NAME]`; `DISK_ROUNDS=N` changes how often power is cut and volumes
//! are set back.

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
#[path = "disks/frozen.rs"]
mod frozen;
#[path = "disks/full.rs"]
mod full;
#[path = "disks/power.rs"]
mod power;
#[path = "disks/set_back.rs"]
mod set_back;

mod own_namespace;

/// Every test, the quickest first.
const TESTS: &[own_namespace::Test] = &[
    ("broken::a_failed_write_stops_the_node", broken::a_failed_write_stops_the_node),
    ("broken::a_failed_flush_stops_the_node", broken::a_failed_flush_stops_the_node),
    ("set_back::a_stopped_node_on_a_snapshot", set_back::a_stopped_node_on_a_snapshot),
    ("set_back::a_killed_node_on_a_snapshot", set_back::a_killed_node_on_a_snapshot),
    ("frozen::a_frozen_disk_is_no_outage", frozen::a_frozen_disk_is_no_outage),
    ("full::a_small_disk_fills_and_empties", full::a_small_disk_fills_and_empties),
    ("full::other_files_come_and_go", full::other_files_come_and_go),
    ("power::lost_write_caches", power::lost_write_caches),
    ("power::ext4_shutdowns", power::ext4_shutdowns),
];

fn main() -> std::process::ExitCode {
    own_namespace::main("disks", &["--mount", "--propagation", "private"], TESTS)
}
