//! Real processes: clusters of the built binary on loopback addresses of their own, over sockets, files and signals.
//!
//! Short by default; `LONG_TESTS=1` (set by `.ci/run`) runs the long form: more rounds, more data. Nothing sleeps to
//! pass: [`wait`] looks at a condition until its deadline.

#![cfg(feature = "server")]
// Outside of the data path: tests have clocks, threads and locks.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

#[allow(dead_code, reason = "shared with tests/disks.rs")]
#[path = "cluster/http.rs"]
mod http;
#[path = "cluster/node.rs"]
mod node;
#[allow(dead_code, reason = "shared with tests/disks.rs")]
#[path = "cluster/wait.rs"]
mod wait;

#[path = "cluster/bad_input.rs"]
mod bad_input;
#[path = "cluster/clusters.rs"]
mod clusters;
#[path = "cluster/connections.rs"]
mod connections;
#[path = "cluster/crashes.rs"]
mod crashes;
#[path = "cluster/demos.rs"]
mod demos;
#[path = "cluster/exchanges.rs"]
mod exchanges;
#[path = "cluster/footprint.rs"]
mod footprint;
#[path = "cluster/identity.rs"]
mod identity;
#[path = "cluster/metrics.rs"]
mod metrics;
#[path = "cluster/promises.rs"]
mod promises;
#[path = "cluster/refused_starts.rs"]
mod refused_starts;
#[path = "cluster/repair.rs"]
mod repair;
#[path = "cluster/rolling.rs"]
mod rolling;
#[path = "cluster/slices.rs"]
mod slices;
#[path = "cluster/strangers.rs"]
mod strangers;
#[path = "cluster/supervision.rs"]
mod supervision;
#[path = "cluster/tables.rs"]
mod tables;

/// Whether the long form was asked for.
fn long() -> bool {
    std::env::var_os("LONG_TESTS").is_some()
}
