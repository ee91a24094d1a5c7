//! `status` and `ring`: what operators look at. Both read the HTTP views of a node.

use super::{
    Exit, Stop,
    fetch::{self, Host, Reach},
    output,
};
use crate::http::{
    latencies::recent_p99,
    views::{ClusterView, KeyRingView, MemberLine, NodeView, RingView, encode_key},
};
use clap::Args;
use std::{ffi::OsString, os::unix::ffi::OsStrExt, thread, time::Duration};

pub const STATUS_EXAMPLE: &str = "Exit code 6 when a member is not up or does not answer.\n\nExample:\n  dynarc status\n  dynarc status --node 127.0.0.2 --json";
pub const RING_EXAMPLE: &str = "Example:\n  dynarc ring\n  dynarc ring cart:8731";

#[derive(Args)]
pub struct StatusArgs {
    #[command(flatten)]
    reach: Reach,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct RingArgs {
    key: Option<OsString>,
    #[command(flatten)]
    reach: Reach,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn status(args: StatusArgs) -> Result<(), Stop> {
    let (asked, cluster): (Host, ClusterView) = fetch::view(&args.reach.nodes, "/v1/cluster")?;
    let nodes = nodes_of(&cluster.members);
    if args.json {
        output::print_json(&serde_json::json!({
            "asked": asked.to_string(), "members": cluster.members, "ring_digest": cluster.ring_digest, "nodes": nodes,
            "cluster": cluster.cluster, "strangers": cluster.strangers,
        }))?;
    } else {
        output::print(status_text(&asked, &cluster, &nodes))?;
    }
    let told = cluster.members.iter().zip(&nodes).filter_map(|(member, node)| match member.state.as_str() {
        "suspect" | "down" => Some(format!("{} is {}", member.address, member.state)),
        "left" | "removed" => None,
        _ if node.is_none() => Some(format!("{} does not answer", member.address)),
        _ => None,
    });
    let told: Vec<_> = told.collect();
    if told.is_empty() { Ok(()) } else { Err(Stop::new(Exit::Degraded, told.join(", "))) }
}

/// Members that are asked at once.
const ASKED_AT_ONCE: usize = 64;
/// How long one of them may take: a stopped process takes connections and says nothing.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// The figures of all members, asked at once.
fn nodes_of(members: &[MemberLine]) -> Vec<Option<NodeView>> {
    let ask = |some: &[MemberLine]| {
        thread::scope(|scope| {
            let asked: Vec<_> = some.iter().map(|member| scope.spawn(|| node_of(member))).collect();
            let joined = asked.into_iter().map(|thread| thread.join());
            // A thread that panicked has said so; its node counts as one that does not answer.
            joined.map(Result::unwrap_or_default).collect::<Vec<_>>()
        })
    };
    members.chunks(ASKED_AT_ONCE).flat_map(ask).collect()
}
/// The member's own figures; `None` when it does not answer.
fn node_of(member: &MemberLine) -> Option<NodeView> {
    let host = Host::new(member.address, member.ports.http);
    let fetched = fetch::get_within(&host, "/v1/node", CONNECT_TIMEOUT, ANSWER_TIMEOUT);
    let node: NodeView = fetched.and_then(|fetched| fetch::read(&host, fetched)).ok()?;
    // Another node may have its address by now.
    (node.id == member.id).then_some(node)
}

fn status_text(asked: &Host, cluster: &ClusterView, nodes: &[Option<NodeView>]) -> String {
    let rows = cluster.members.iter().zip(nodes).map(|(member, node)| {
        let figure = |pick: fn(&NodeView) -> String| node.as_ref().map_or_else(|| "?".to_owned(), pick);
        let busy = |n: &NodeView| {
            let shards = n.shards.len().max(1) as f64;
            format!("{:.0} %", n.shards.iter().map(|s| s.busy_ratio).sum::<f64>() / shards * 100.0)
        };
        [
            member.address.to_string(),
            member.id.clone(),
            match node {
                Some(node) if node.figures.read_only > 0 => format!("{}, read-only", member.state),
                _ => member.state.clone(),
            },
            member.shards.to_string(),
            format!("{:.1} %", member.owned * 100.0),
            figure(busy),
            figure(|n| output::grouped(n.figures.puts + n.figures.deletes)),
            figure(|n| latency(n, "get")),
            figure(|n| latency(n, "put")),
            figure(|n| output::grouped(n.figures.hints_pending)),
            figure(|n| age(n.figures.repair_oldest_arc_seconds)),
            figure(|n| output::bytes(n.figures.table_bytes + n.figures.segment_bytes)),
            figure(|n| output::bytes(n.resident_bytes)),
        ]
    });
    let titles = [
        "address", "id", "state", "shards", "owned", "busy", "writes", "get p99", "put p99", "hints", "repaired",
        "disk", "memory",
    ];
    let up = cluster.members.iter().filter(|m| m.state == "up").count();
    let name = cluster.cluster.as_ref().map_or(String::new(), |id| format!("cluster {id}, "));
    let (count, digest) = (cluster.members.len(), &cluster.ring_digest);
    let summary = format!("{up} of {count} members up, as {asked} sees it\n{name}ring {digest}\n");
    let strangers = cluster.strangers.iter().map(|s| {
        let (id, at, theirs) = (&s.id, &s.peer_address, &s.cluster);
        format!("refused, for it belongs to cluster {theirs}: node {id} at {at}\n")
    });
    let late = cluster.members.iter().zip(nodes).filter_map(|(member, node)| {
        let figures = node.as_ref().map(|n| n.figures).filter(|f| f.backlog_alert > 0)?;
        let seconds = figures.compaction_backlog_seconds.max(figures.collection_backlog_seconds);
        Some(format!("{}: background work is {seconds} s of writes behind\n", member.address))
    });
    let full = nodes.iter().flatten().filter(|n| n.figures.read_only > 0).map(|n| n.address.to_string());
    let full: Vec<_> = full.collect();
    let hint = match &full[..] {
        [] => String::new(),
        full => format!(
            "read-only, for the disk is full: {}; deletes go on, and so do writes once there is space\n",
            full.join(", ")
        ),
    };
    output::fitting_table(titles, rows, &["shards", "busy", "owned", "memory", "repaired", "get p99", "put p99", "id"])
        + &summary
        + &hint
        + &late.collect::<String>()
        + &strangers.collect::<String>()
}

/// What all but one of a hundred requests of the last minute took at most, on the slower of the two ways that they
/// came.
fn latency(node: &NodeView, operation: &str) -> String {
    match recent_p99(&node.latencies, operation) {
        None => "-".to_owned(),
        Some(micros) if micros < 10_000 => format!("{:.2} ms", micros as f64 / 1e3),
        Some(micros) => format!("{:.0} ms", micros as f64 / 1e3),
    }
}
/// How long ago the oldest arc was compared, in few characters.
fn age(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

pub fn ring(args: RingArgs) -> Result<(), Stop> {
    match &args.key {
        Some(key) => {
            let path = format!("/v1/ring?key={}", encode_key(key.as_bytes()));
            let (_, view): (Host, KeyRingView) = fetch::view(&args.reach.nodes, &path)?;
            if args.json { output::print_json(&view) } else { output::print(key_text(&view)) }
        }
        None => {
            let (_, view): (Host, RingView) = fetch::view(&args.reach.nodes, "/v1/ring")?;
            if args.json { output::print_json(&view) } else { output::print(ring_text(&view)) }
        }
    }
}

fn key_text(view: &KeyRingView) -> String {
    let rows = view.preference_list.iter().enumerate().map(|(index, replica)| {
        [
            (index + 1).to_string(),
            if replica.home { "home" } else { "fallback" }.to_owned(),
            replica.address.to_string(),
            replica.node.clone(),
            replica.core.to_string(),
            replica.slice.to_string(),
            replica.state.clone(),
        ]
    });
    let titles = ["", "replica", "address", "node", "core", "slice", "state"];
    format!("key {}, token {}, ring {}\n", view.key, view.token, view.ring_digest) + &output::table(titles, rows)
}

fn ring_text(view: &RingView) -> String {
    let rows = view.nodes.iter().map(|node| {
        [
            node.address.to_string(),
            node.node.clone(),
            node.vnodes.to_string(),
            node.slices.to_string(),
            node.shards.to_string(),
            format!("{:.1} %", node.owned * 100.0),
        ]
    });
    let titles = ["address", "node", "vnodes", "slices", "shards", "owned"];
    format!("ring {}, {} replicas of a key\n", view.ring_digest, view.n) + &output::table(titles, rows)
}
