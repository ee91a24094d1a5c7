//! Five nodes under partition, kill -9, SIGSTOP and restart, with clients on all sides: nothing acknowledged is lost,
//! siblings are exactly the concurrent values, replicas become equal.
//!
//! The cluster runs on 127.0.0.1 to 127.0.0.5 of a network namespace of its own, so root is needed. A firewall there
//! drops or refuses what goes from one node's address to another's; clients have an address of their own and reach
//! every node. See `own_namespace` for when it runs.
//!
//! `ROOT_TESTS=1 cargo test --release --test partitions`; `PARTITION_ROUNDS=N` and `PARTITION_SEED=N` change length and
//! faults, `EACH_ROUNDS=N` the length of the other tests. The same seed draws the same faults; what the clients do in
//! between is the machine's own.

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
#[path = "partitions/cores.rs"]
mod cores;
#[path = "partitions/faults.rs"]
mod faults;
#[path = "partitions/firewall.rs"]
mod firewall;
#[path = "partitions/past.rs"]
mod past;
#[path = "partitions/tables.rs"]
mod tables;
#[path = "partitions/verdict.rs"]
mod verdict;

mod own_namespace;

fn main() -> std::process::ExitCode {
    let tests = [
        ("one_port_of_four_is_not_the_node", cores::one_port_of_four_is_not_the_node as fn()),
        ("what_waits_for_a_stopped_node_does_not_win", past::stopped),
        ("a_wrong_clock_loses_nothing", past::clocks),
        ("a_start_beside_a_wrong_clock_takes_writes", past::starts_beside_a_wrong_clock),
        ("tables_made_apart_keep_what_both_sides_wrote", tables::made_apart),
        ("nothing_is_lost_in_rounds_of_partition_and_death", faults::rounds),
    ];
    own_namespace::main("partitions", &["--net"], &tests)
}
