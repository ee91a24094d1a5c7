//! What `/v1/cluster`, `/v1/ring`, `/v1/node` and `/metrics` show: plain snapshots that the server fills.

use super::latencies::{BOUNDS_MICROS, LatencyView};
use crate::types::{ClusterId, ErrorCode, Key, Member, MemberView, NodeId, Ports, Stranger, Token};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

/// `/v1/cluster`: the members as the answering node sees them.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ClusterView {
    pub members: Vec<MemberLine>,
    /// 16 hexadecimal digits; equal on nodes that agree on the ring.
    pub ring_digest: String,
    /// 16 hexadecimal digits, drawn when the cluster was formed; absent while the node belongs to none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Nodes of other clusters that the answering node has met, and refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub strangers: Vec<StrangerLine>,
}
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StrangerLine {
    pub id: String,
    pub cluster: String,
    /// Where it listens for peers.
    pub peer_address: SocketAddr,
}
impl From<&Stranger> for StrangerLine {
    fn from(stranger: &Stranger) -> StrangerLine {
        let Stranger { node, cluster, at } = stranger;
        StrangerLine { id: node.to_string(), cluster: cluster.to_string(), peer_address: *at }
    }
}
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MemberLine {
    /// 12 hexadecimal digits.
    pub id: String,
    pub address: IpAddr,
    pub state: String,
    pub shards: u16,
    /// Share of the ring whose first owner it is, 0 to 1.
    pub owned: f64,
    pub ports: PortsView,
}
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PortsView {
    pub http: u16,
    pub client: u16,
    pub peer: u16,
}
impl From<Ports> for PortsView {
    fn from(ports: Ports) -> PortsView {
        PortsView { http: ports.http, client: ports.client, peer: ports.peer }
    }
}
impl ClusterView {
    /// From what a shard's handle tells: members, how they are seen, the share that each owns. Sorted by address.
    pub fn new(members: &[(Member, MemberView, f64)], ring_digest: u64) -> ClusterView {
        let line = |(member, view, owned): &(Member, MemberView, f64)| MemberLine {
            id: member.id.to_string(),
            address: member.ip,
            state: view.name().to_owned(),
            shards: member.shards,
            owned: *owned,
            ports: member.ports.into(),
        };
        let mut members: Vec<_> = members.iter().map(line).collect();
        members.sort_by_key(|m| (m.address, m.ports.peer));
        ClusterView { members, ring_digest: digest_text(ring_digest), cluster: None, strangers: Vec::new() }
    }
    /// With the cluster that the node belongs to, and the strangers that it has met.
    pub fn of_cluster(self, cluster: ClusterId, strangers: &[Stranger]) -> ClusterView {
        let cluster = (!cluster.is_none()).then(|| cluster.to_string());
        ClusterView { cluster, strangers: strangers.iter().map(StrangerLine::from).collect(), ..self }
    }
}

/// `/v1/ring?key=K`: where a key lives.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KeyRingView {
    /// Percent-encoded.
    pub key: String,
    /// 16 hexadecimal digits.
    pub token: String,
    /// The home replicas in order, then the fallbacks.
    pub preference_list: Vec<ReplicaLine>,
    pub ring_digest: String,
}
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReplicaLine {
    pub node: String,
    pub address: IpAddr,
    /// The core of that node that serves the key.
    pub core: u16,
    pub slice: u16,
    pub home: bool,
    pub state: String,
}
impl KeyRingView {
    pub fn new(key: &Key, preference_list: Vec<ReplicaLine>, ring_digest: u64) -> KeyRingView {
        KeyRingView {
            key: encode_key(key.as_bytes()),
            token: token_text(key.token()),
            preference_list,
            ring_digest: digest_text(ring_digest),
        }
    }
}

/// `/v1/ring`: the ring as a whole.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RingView {
    pub ring_digest: String,
    /// Replicas of a key in the table `default`.
    pub n: u8,
    pub nodes: Vec<RingNode>,
}
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RingNode {
    pub node: String,
    pub address: IpAddr,
    pub vnodes: usize,
    pub slices: u16,
    pub shards: u16,
    pub owned: f64,
}
impl RingView {
    pub fn new(members: &[(Member, MemberView, f64)], n: u8, ring_digest: u64) -> RingView {
        let line = |(member, _, owned): &(Member, MemberView, f64)| RingNode {
            node: member.id.to_string(),
            address: member.ip,
            vnodes: member.tokens.len(),
            slices: member.slices,
            shards: member.shards,
            owned: *owned,
        };
        let mut nodes: Vec<_> = members.iter().map(line).collect();
        nodes.sort_by_key(|m| m.address);
        RingView { ring_digest: digest_text(ring_digest), n, nodes }
    }
}

/// Counters and gauges, each named once: here. A node's figures are the sum (or the maximum) of its shards'.
macro_rules! figures {
    ($($(#[doc = $help:literal])+ $name:ident: $kind:ident),* $(,)?) => {
        /// Counters and gauges of a shard, or of a node.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Figures { $($(#[doc = $help])+ pub $name: u64,)* }
        impl Figures {
            const NAMES: [(&str, &str, Kind); [$(stringify!($name)),*].len()] =
                [$((stringify!($name), concat!($($help),+), Kind::$kind),)*];
            fn values(&self) -> Vec<u64> {
                vec![$(self.$name,)*]
            }
            /// Takes another shard's figures in.
            pub fn add(&mut self, other: &Figures) {
                $(self.$name = Kind::$kind.join(self.$name, other.$name);)*
            }
        }
    };
}
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Only grows.
    Counter,
    Gauge,
    /// A gauge whose greatest value speaks for the node.
    Greatest,
}
impl Kind {
    fn join(self, a: u64, b: u64) -> u64 {
        if self == Kind::Greatest { a.max(b) } else { a.saturating_add(b) }
    }
}
figures! {
    /// Writes kept here for replicas that are away.
    hints_pending: Gauge,
    /// Bytes of those writes.
    hints_pending_bytes: Gauge,
    /// Bytes that compaction has still to merge.
    compaction_backlog_bytes: Gauge,
    /// The same in seconds of what was flushed lately.
    compaction_backlog_seconds: Greatest,
    /// Bytes that segments take beyond what collection lets them have.
    collection_backlog_bytes: Gauge,
    /// The same in seconds of what was written lately.
    collection_backlog_seconds: Greatest,
    /// 1 when background work is behind by more than half a minute of writes.
    backlog_alert: Greatest,
    /// Bytes of memory held by memtables, caches, filters and requests in hand.
    memory_bytes: Gauge,
    /// Bytes that the caches of values may take.
    value_cache_bytes: Gauge,
    /// Bytes that the caches of table blocks, with short values in them, may take.
    block_cache_bytes: Gauge,
    /// Durable batches of the log, one sync each.
    syncs: Counter,
    /// Writes acknowledged after their sync.
    durable_writes: Counter,
    /// Gets coordinated.
    gets: Counter,
    /// Puts coordinated.
    puts: Counter,
    /// Deletes coordinated.
    deletes: Counter,
    /// Client requests that ended in an error.
    failures: Counter,
    /// Client requests refused because too much was in hand.
    overloaded: Counter,
    /// Requests passed on to a core that owns the key.
    forwarded: Counter,
    /// Client requests in hand.
    requests_in_flight: Gauge,
    /// Stale replicas written back by reads.
    read_repairs: Counter,
    /// Reads for which a second replica was asked because the first was slow.
    read_hedges: Counter,
    /// Hints stored for absent replicas.
    hints_stored: Counter,
    /// Hints delivered to their owners.
    hints_delivered: Counter,
    /// Bytes of values delivered with them.
    hints_delivered_bytes: Counter,
    /// Hints dropped because the bound on their bytes was reached, or because they were damaged.
    hints_dropped: Counter,
    /// Writes refused because their stamp was too far ahead of this node's clock, or behind it.
    stamps_refused: Counter,
    /// Milliseconds by which this node's clock is off the others', beyond doubt; 0 while they take what it stamps.
    clock_off_milliseconds: Greatest,
    /// Writes of tables where the last one wins that were refused because of this node's clock.
    clock_refusals: Counter,
    /// Ranges, of each absent replica, in which it lacks something because a hint was dropped.
    ranges_marked: Gauge,
    /// Times that such a range was gone through and its owner given what it lacked.
    ranges_swept: Counter,
    /// Seconds since the two homes of some arc of the ring were last seen to hold the same, of the oldest such pair.
    repair_oldest_arc_seconds: Greatest,
    /// Arcs that this node is a home of, counted with each other home.
    repair_arcs: Gauge,
    /// Those of them that have not been compared for longer than a pass of repair.
    repair_arcs_late: Gauge,
    /// Those of them that an operator has asked to be compared, until that is done.
    repair_arcs_waiting: Gauge,
    /// Leaves of arcs whose keys were compared, since their sums differed.
    repair_leaves_differed: Counter,
    /// Values that repair has sent, or fetched, since one home lacked them.
    repair_values_sent: Counter,
    /// Bytes of the sums, lists and values of repair.
    repair_bytes: Counter,
    /// Slices that may have lost records, until they have been compared with all other homes.
    slices_doubted: Gauge,
    /// Damaged records that were put together again from the other home replicas.
    records_rebuilt: Counter,
    /// Times that one could not be, since a value that it names is held by nobody else.
    rebuilds_refused: Counter,
    /// Signs that this node's disk is an older state or a copy, or that another node uses its name.
    identity_alarms: Counter,
    /// The greatest incarnation of this node in any slice: each unclean start takes one of 2^62.
    incarnation: Gauge,
    /// Stores of keys that so many nodes, and lives of nodes, have written that their clock is near its bound.
    clocks_long: Counter,
    /// Times that another node was routed around because it let requests wait.
    peer_silences: Counter,
    /// Times that another node that came back was not trusted at once because it had come and gone before.
    peer_dampings: Counter,
    /// Requests that another replica coordinated because this node could not.
    passed_on: Counter,
    /// 1 while the disk answers no writes.
    disk_stalled: Greatest,
    /// Times that the disk answered no writes for as long as a replica may be late.
    disk_stalls: Counter,
    /// Client connections open.
    connections: Gauge,
    /// Requests over HTTP that have begun and are not answered.
    http_requests_begun: Gauge,
    /// Connections given up: their place or their memory was needed, or nobody read what was sent.
    connections_given_up: Counter,
    /// Bytes held for connections: unfinished frames and bodies, answers and messages not sent yet.
    connection_bytes: Gauge,
    /// HTTP requests answered.
    http_requests: Counter,
    /// Requests of the client protocol answered.
    client_requests: Counter,
    /// Messages sent to other nodes.
    peer_messages_sent: Counter,
    /// Messages received from other nodes.
    peer_messages_received: Counter,
    /// Messages dropped because a queue was full.
    messages_dropped: Counter,
    /// Messages from other nodes that could not be read, and were refused.
    messages_unread: Counter,
    /// Bytes of keys and values written by clients and replicas.
    user_bytes_written: Counter,
    /// Bytes written to the disk for them, compaction included.
    device_bytes_written: Counter,
    /// Reads of the disk.
    device_reads: Counter,
    /// Bytes in memtables.
    memtable_bytes: Gauge,
    /// Tables on disk.
    tables: Gauge,
    /// Bytes of tables on disk.
    table_bytes: Gauge,
    /// Segments of the value log.
    segments: Gauge,
    /// Bytes of those segments.
    segment_bytes: Gauge,
    /// Bytes of those segments that are still referred to.
    segment_live_bytes: Gauge,
    /// Memtables written to disk.
    flushes: Counter,
    /// Compactions done.
    compactions: Counter,
    /// Segments collected.
    collections: Counter,
    /// Reads that found bytes not matching their checksum.
    damaged_reads: Counter,
    /// Places of files known to be damaged; the log names them.
    damaged_places: Gauge,
    /// 1 when writes are refused because the disk is full.
    read_only: Greatest,
}

/// `/v1/node`: the answering node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NodeView {
    pub id: String,
    pub address: IpAddr,
    pub version: String,
    pub uptime_seconds: u64,
    /// Memory that the process holds, allocator, rings and stacks included.
    pub resident_bytes: u64,
    /// Room of the file system that holds the data, and how much of it is left to this process.
    #[serde(default)]
    pub disk_bytes: u64,
    #[serde(default)]
    pub disk_free_bytes: u64,
    /// The sum of the shards'.
    #[serde(flatten)]
    pub figures: Figures,
    /// What clients' requests took, by operation, front and outcome.
    #[serde(default)]
    pub latencies: Vec<LatencyView>,
    /// Requests that ended in an error since the start, by its code; those that have occurred.
    #[serde(default)]
    pub errors: BTreeMap<String, u64>,
    pub shards: Vec<ShardView>,
}
/// One shard of a node.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct ShardView {
    pub shard: u16,
    /// The CPU it is pinned to.
    pub cpu: Option<u16>,
    /// Share of the last second that its core was at work, 0 to 1.
    pub busy_ratio: f64,
    #[serde(flatten)]
    pub figures: Figures,
}
impl NodeView {
    pub fn new(
        id: NodeId,
        address: IpAddr,
        uptime_seconds: u64,
        resident_bytes: u64,
        shards: Vec<ShardView>,
    ) -> NodeView {
        let mut figures = Figures::default();
        shards.iter().for_each(|s| figures.add(&s.figures));
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let (latencies, errors) = (Vec::new(), BTreeMap::new());
        NodeView {
            id: id.to_string(),
            address,
            version,
            uptime_seconds,
            resident_bytes,
            disk_bytes: 0,
            disk_free_bytes: 0,
            figures,
            latencies,
            errors,
            shards,
        }
    }
    /// On a file system of this size, with so much room left.
    pub fn on_disk(self, bytes: u64, free: u64) -> NodeView {
        NodeView { disk_bytes: bytes, disk_free_bytes: free, ..self }
    }
    /// With what requests took, and how they failed.
    pub fn of_requests(self, latencies: Vec<LatencyView>, errors: BTreeMap<String, u64>) -> NodeView {
        NodeView { latencies, errors, ..self }
    }
}

/// `/v1/repair`: how far the answering node has compared what it holds with the other homes of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RepairView {
    pub id: String,
    pub address: IpAddr,
    /// Arcs, with each other home.
    pub arcs: u64,
    /// Longer ago than a pass.
    pub arcs_late: u64,
    /// Asked to be compared, until that is done.
    pub arcs_waiting: u64,
    /// Since the oldest of them was compared.
    pub oldest_arc_seconds: u64,
    pub leaves_differed: u64,
    pub values_sent: u64,
    pub bytes: u64,
    /// Slices that may have lost records and have not been compared as a whole since.
    pub slices_doubted: u64,
}
impl RepairView {
    pub fn new(node: &NodeView) -> RepairView {
        let figures = &node.figures;
        RepairView {
            id: node.id.clone(),
            address: node.address,
            arcs: figures.repair_arcs,
            arcs_late: figures.repair_arcs_late,
            arcs_waiting: figures.repair_arcs_waiting,
            oldest_arc_seconds: figures.repair_oldest_arc_seconds,
            leaves_differed: figures.repair_leaves_differed,
            values_sent: figures.repair_values_sent,
            bytes: figures.repair_bytes,
            slices_doubted: figures.slices_doubted,
        }
    }
}

/// `/metrics`: the node and the members that it sees.
pub struct Metrics {
    pub node: NodeView,
    pub cluster: ClusterView,
    /// A series for each shard instead of one for the node.
    pub by_shard: bool,
}
impl Metrics {
    /// Prometheus text, format 0.0.4.
    pub fn to_text(&self) -> String {
        let mut text = String::with_capacity(16 << 10);
        self.write_node(&mut text);
        write_latencies(&mut text, &self.node.latencies);
        let label = |shard: &ShardView| format!("{{shard=\"{}\"}}", shard.shard);
        let columns: Vec<(String, Vec<u64>)> = match self.by_shard {
            true => self.node.shards.iter().map(|shard| (label(shard), shard.figures.values())).collect(),
            false => vec![(String::new(), self.node.figures.values())],
        };
        for (row, (name, help, kind)) in Figures::NAMES.into_iter().enumerate() {
            // Prometheus counts in seconds.
            let (stem, thousandths) = match name.strip_suffix("_milliseconds") {
                Some(stem) => (format!("dynarc_{stem}_seconds"), true),
                None => (format!("dynarc_{name}"), false),
            };
            let (name, kind) = match kind {
                Kind::Counter => (stem + "_total", "counter"),
                Kind::Gauge | Kind::Greatest => (stem, "gauge"),
            };
            let help = help.trim().replace("Milliseconds", "Seconds");
            header(&mut text, &name, &help, kind);
            for (label, column) in &columns {
                match column[row] {
                    value if thousandths => line(&mut text, format_args!("{name}{label} {}", value as f64 / 1e3)),
                    value => line(&mut text, format_args!("{name}{label} {value}")),
                }
            }
        }
        text
    }
    fn write_node(&self, text: &mut String) {
        let node = &self.node;
        header(text, "dynarc_build_info", "The version that runs, always 1.", "gauge");
        let (version, commit) = (&node.version, option_env!("BUILT_OF_COMMIT").unwrap_or("unknown"));
        line(
            text,
            format_args!("dynarc_build_info{{version=\"{version}\",commit=\"{commit}\",node=\"{}\"}} 1", node.id),
        );
        header(text, "dynarc_uptime_seconds", "Seconds since the node started.", "gauge");
        line(text, format_args!("dynarc_uptime_seconds {}", node.uptime_seconds));
        header(text, "dynarc_resident_bytes", "Memory that the process holds.", "gauge");
        line(text, format_args!("dynarc_resident_bytes {}", node.resident_bytes));
        header(text, "dynarc_disk_bytes", "Room of the file system that holds the data.", "gauge");
        line(text, format_args!("dynarc_disk_bytes {}", node.disk_bytes));
        header(text, "dynarc_disk_free_bytes", "How much of it is left to the node.", "gauge");
        line(text, format_args!("dynarc_disk_free_bytes {}", node.disk_free_bytes));
        header(text, "dynarc_members", "Members of the cluster as this node sees them.", "gauge");
        for state in ["joining", "up", "suspect", "down", "leaving", "left", "removed"] {
            let count = self.cluster.members.iter().filter(|m| m.state == state).count();
            line(text, format_args!("dynarc_members{{state=\"{state}\"}} {count}"));
        }
        header(text, "dynarc_request_errors_total", "Client requests that ended in an error, by its code.", "counter");
        for code in ErrorCode::ALL.map(ErrorCode::name) {
            let count = node.errors.get(code).unwrap_or(&0);
            line(text, format_args!("dynarc_request_errors_total{{code=\"{code}\"}} {count}"));
        }
        header(text, "dynarc_busy_ratio", "Share of the last second that the shard's core was at work.", "gauge");
        for shard in &node.shards {
            line(text, format_args!("dynarc_busy_ratio{{shard=\"{}\"}} {:.4}", shard.shard, shard.busy_ratio));
        }
    }
}
fn write_latencies(text: &mut String, views: &[LatencyView]) {
    const NAME: &str = "dynarc_request_duration_seconds";
    let help = "What requests took, from when one was whole until its answer was there.";
    header(text, NAME, help, "histogram");
    for view in views {
        let LatencyView { operation, front, outcome, count, seconds, .. } = view;
        let labels = format!("operation=\"{operation}\",front=\"{front}\",outcome=\"{outcome}\"");
        let mut so_far = 0;
        for (place, bound) in BOUNDS_MICROS.iter().enumerate() {
            so_far += view.buckets.get(place).copied().unwrap_or(0);
            let bound = *bound as f64 / 1e6;
            line(text, format_args!("{NAME}_bucket{{{labels},le=\"{bound}\"}} {so_far}"));
        }
        line(text, format_args!("{NAME}_bucket{{{labels},le=\"+Inf\"}} {count}"));
        line(text, format_args!("{NAME}_sum{{{labels}}} {seconds:.6}"));
        line(text, format_args!("{NAME}_count{{{labels}}} {count}"));
    }
}
fn header(text: &mut String, name: &str, help: &str, kind: &str) {
    line(text, format_args!("# HELP {name} {help}"));
    line(text, format_args!("# TYPE {name} {kind}"));
}
fn line(text: &mut String, arguments: std::fmt::Arguments) {
    // Writing to a String cannot fail.
    let _ = text.write_fmt(arguments);
    text.push('\n');
}

pub fn digest_text(digest: u64) -> String {
    format!("{digest:016x}")
}
pub fn token_text(token: Token) -> String {
    format!("{:016x}", token.0)
}

/// A key as it stands in a URL: letters, digits and a few signs as they are, every other byte as `%XX`.
pub fn encode_key(key: &[u8]) -> String {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
    const ESCAPED: &AsciiSet =
        &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/').remove(b':').remove(b'@');
    percent_encode(key, ESCAPED).to_string()
}
