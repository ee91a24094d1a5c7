//! What one run is like, drawn from its seed: each run has another mixture of sizes, rates and faults (a swarm), so
//! that together the runs meet more than any single mixture would.

use super::{planted::Planted, prng::Prng};
use crate::{
    engine::types::EngineOptions,
    limits::{HINT_BYTES_MAX, KIB},
    types::ShardBounds,
};
use std::time::Duration;

/// Faults of the network between nodes, as probabilities of one message.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct NetworkPlan {
    pub delay_min: Duration,
    pub delay_mean: Duration,
    pub loss: f64,
    pub duplicate: f64,
    /// A message that is held back for up to [`NetworkPlan::held`].
    pub hold: f64,
    pub held: Duration,
    /// A frame of damaged content or of unknown kind comes before it.
    pub strange: f64,
    /// A client's request or its answer is lost.
    pub client_loss: f64,
}

/// Mean times between faults; zero means never.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct FaultPlan {
    pub kill_every: Duration,
    pub power_loss_every: Duration,
    pub power_cut_every: Duration,
    /// Stops in good order.
    pub stop_every: Duration,
    pub pause_every: Duration,
    pub cut_every: Duration,
    /// The time between cuts of single links, from core to core.
    pub link_cut_every: Duration,
    pub clog_every: Duration,
    pub slow_disk_every: Duration,
    pub disk_error_every: Duration,
    pub full_disk_every: Duration,
    pub hang_disk_every: Duration,
    pub clock_step_every: Duration,
    /// The one node whose wall clock may be off by hours, to either side, and not keep pace. Every write is
    /// acknowledged by two nodes then.
    pub wild_clock: Option<usize>,
    /// Flipped bits on the medium of the unsound node.
    pub rot_every: Duration,
    /// Whether its writes go astray or vanish, too. Those of them that nothing proves yet are lost without a word.
    pub stray_writes: bool,
    /// Share of its starts before which files have vanished, or lie under each other's name.
    pub spoilt_files: f64,
    /// The fault atlas: the one node whose medium may lose what it held. Every write is acknowledged by two nodes then,
    /// so that each has a good copy elsewhere and any loss is a defect.
    pub unsound: Option<usize>,
    /// The same atlas for disks that are lost as a whole: the nodes whose disks may be emptied or set back to an older
    /// state. Every write is acknowledged by more nodes than these. Never beside an unsound medium.
    pub fickle: NodeSet,
    pub wipe_every: Duration,
    pub restore_every: Duration,
    /// Share of restarts with another number of shards.
    pub reshard: f64,
    /// How long a node stays down, a link cut, a process paused.
    pub lasting: Duration,
    /// Nodes that may be down at once.
    pub down_max: usize,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub struct WorkloadPlan {
    pub clients: usize,
    pub keys: usize,
    /// Exponent of the keys' popularity; 0 is even.
    pub zipf: f64,
    pub think: Duration,
    pub value_bytes_max: usize,
    pub timeout_min: Duration,
    pub timeout_max: Duration,
    /// Weights of get, read-modify-write, blind put, put with an old context, put with the last write's context,
    /// delete after a read, blind delete.
    pub mix: [u64; 7],
    /// Share of requests that override R or W.
    pub override_level: f64,
    /// The least number of acknowledgements that a single request may ask for.
    pub writes_min: u8,
    /// Share of failed writes that are sent again under the same write id.
    pub retry: f64,
    /// Share of steps of a client on the key that another was the last to write: it writes on what that one has just
    /// written, also while the first is still waiting for its answer.
    pub follow: f64,
}

impl FaultPlan {
    /// What ends nodes, or fails on their disks.
    fn crashes(&mut self) -> [&mut Duration; 9] {
        [
            &mut self.kill_every,
            &mut self.power_loss_every,
            &mut self.power_cut_every,
            &mut self.stop_every,
            &mut self.disk_error_every,
            &mut self.full_disk_every,
            &mut self.rot_every,
            &mut self.wipe_every,
            &mut self.restore_every,
        ]
    }
}

/// Tables that are made, altered and dropped while the run lasts.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct TablesPlan {
    /// 0: none are.
    pub count: usize,
    /// Mean time between two changes of one of them.
    pub change_every: Duration,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub nodes: usize,
    /// Whether all nodes start with the addresses of all others, and nobody is told to form the cluster.
    pub mutual: bool,
    /// Whether there is a node of another cluster beside them.
    pub outsider: bool,
    /// The shards of each node, at its first start.
    pub shards: Vec<u16>,
    pub slices: u16,
    pub vnodes: usize,
    pub n: u8,
    pub r: u8,
    pub w: u8,
    pub sloppy: bool,
    /// Whether all keys are those of a table where the last write wins.
    pub last_write_wins: bool,
    pub tables: TablesPlan,
    /// How long the faulty phase lasts, in virtual time.
    pub duration: Duration,
    /// Virtual time in which the healed cluster must converge.
    pub heal_max: Duration,
    pub suspect_after: Duration,
    pub drift_ppm_max: i32,
    pub network: NetworkPlan,
    pub faults: FaultPlan,
    pub workload: WorkloadPlan,
    pub engine: EngineOptions,
    /// Bytes of hints that a shard keeps: in some runs so few that writes go on without them.
    pub hint_bytes_max: u64,
    /// Each two homes of a key compare what they hold once in this time; zero: never.
    pub repair_pass: Duration,
    /// Other bounds of a shard, some of them small.
    pub bounds: ShardBounds,
    /// What a kernel keeps of one connection for a process that does not read.
    pub socket_bytes: usize,
    pub planted: Option<Planted>,
}

/// Some of the nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NodeSet(u8);
impl NodeSet {
    pub fn of(nodes: &[usize]) -> NodeSet {
        NodeSet(nodes.iter().fold(0, |set, node| set | 1 << node))
    }
    pub fn add(&mut self, node: usize) {
        self.0 |= 1 << node;
    }
    pub fn contains(self, node: usize) -> bool {
        self.0 >> node & 1 != 0
    }
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..u8::BITS as usize).filter(move |node| self.contains(*node))
    }
}

impl Plan {
    /// Draws everything from the seed. `duration` is that of the faulty phase.
    pub fn draw(seed: u64, duration: Duration) -> Plan {
        let mut prng = Prng::stream(seed, "plan");
        let nodes = prng.between(3, 7) as usize;
        let n = *prng.pick(&[3, 3, 3, 3, 2, 5]).unwrap_or(&3).min(&(nodes as u8));
        let majority = n / 2 + 1;
        let (r, w) = match prng.below(6) {
            0 => (1, 1),
            1 => (1, n),
            2 => (n, 1),
            _ => (majority, majority),
        };
        let mut plan = Plan {
            seed,
            nodes,
            mutual: false,
            outsider: false,
            shards: Vec::new(),
            slices: prng.between(u64::from(SHARDS_MAX), 6) as u16,
            vnodes: prng.between(4, 24) as usize,
            n,
            r,
            w,
            sloppy: !prng.chance(0.3),
            last_write_wins: false,
            tables: TablesPlan { count: 0, change_every: Duration::ZERO },
            duration,
            heal_max: Duration::from_secs(300),
            suspect_after: prng.duration(Duration::from_secs(4), Duration::from_secs(8)),
            drift_ppm_max: if prng.coin() { 0 } else { 500 },
            network: draw_network(&mut prng),
            faults: draw_faults(&mut prng, duration, nodes),
            bounds: ShardBounds::default(),
            socket_bytes: 0,
            workload: draw_workload(&mut prng),
            engine: draw_engine(&mut prng),
            hint_bytes_max: HINT_BYTES_MAX,
            repair_pass: Duration::ZERO,
            planted: None,
        };
        if prng.chance(0.15) {
            plan.without_crashes();
        }
        plan.last_write_wins = prng.chance(0.2);
        if plan.workload.value_bytes_max > LARGE_BYTES {
            // Sets of large siblings: the work of a run should stay about that of another.
            plan.workload.think = plan.workload.think.max(Duration::from_millis(100));
            plan.workload.clients = plan.workload.clients.min(8);
        }
        let mut prng = Prng::stream(seed, "hints");
        if prng.chance(0.25) {
            plan.hint_bytes_max = prng.below(8 * KIB as u64);
        }
        let mut prng = Prng::stream(seed, "cores");
        plan.shards = (0..nodes).map(|_| prng.between(1, u64::from(SHARDS_MAX)) as u16).collect();
        let every = |prng: &mut Prng, share: f64, times: u64| {
            if prng.chance(share) { duration / prng.between(1, times) as u32 } else { Duration::ZERO }
        };
        plan.faults.link_cut_every = every(&mut prng, 0.5, 60);
        let mut prng = Prng::stream(seed, "stops");
        plan.faults.stop_every = every(&mut prng, 0.5, 20);
        plan.socket_bytes = *prng.pick(&[8 * KIB, 64 * KIB, 512 * KIB]).unwrap_or(&(64 * KIB));
        plan.bounds = draw_bounds(&mut Prng::stream(seed, "bounds"));
        plan.network.strange = sometimes(&mut Prng::stream(seed, "strange frames"), 0.1, |p| p.unit() * 0.02);
        let mut prng = Prng::stream(seed, "messages held for long");
        if prng.chance(0.1) {
            plan.network.held = prng.duration(Duration::from_secs(10), Duration::from_secs(150));
            plan.network.hold = prng.unit() * 0.01;
        }
        let mut prng = Prng::stream(seed, "wild clocks");
        if prng.chance(0.25) {
            plan.go_wild(&mut prng);
        }
        let mut prng = Prng::stream(seed, "clusters");
        (plan.mutual, plan.outsider) = (prng.chance(0.3), prng.chance(0.2));
        let mut prng = Prng::stream(seed, "lost disks");
        if prng.chance(0.25) && plan.faults.unsound.is_none() {
            plan.lose_disks(&mut prng);
        }
        let mut prng = Prng::stream(seed, "followers");
        if prng.chance(0.25) {
            plan.workload.follow = prng.unit() * 0.6;
        }
        let mut prng = Prng::stream(seed, "hanging disks");
        plan.faults.hang_disk_every = every(&mut prng, 0.3, 12);
        if plan.faults.unsound.is_some() {
            plan.keep_copies(2);
            let mut prng = Prng::stream(seed, "spoilt files");
            plan.faults.stray_writes = prng.coin();
            plan.faults.spoilt_files = sometimes(&mut prng, 0.6, Prng::unit);
        }
        // In some runs nothing but hints and reads makes replicas equal, so that these are seen to do their part.
        let mut prng = Prng::stream(seed, "passes of repair");
        if prng.chance(0.75) {
            plan.repair_pass = prng.duration(Duration::from_secs(5), Duration::from_secs(20));
        }
        let mut prng = Prng::stream(seed, "tables");
        if prng.chance(0.3) {
            plan.change_tables(&mut prng);
        }
        plan
    }
    /// One or two tables are made and dropped again and again.
    pub fn change_tables(&mut self, prng: &mut Prng) {
        let count = prng.between(1, 2) as usize;
        self.tables = TablesPlan { count, change_every: self.duration / prng.between(3, 16) as u32 };
    }
    /// The wall clock of one node is off by hours now and then.
    pub fn go_wild(&mut self, prng: &mut Prng) {
        self.faults.wild_clock = Some(prng.index(self.nodes));
        self.faults.clock_step_every = self.duration / prng.between(3, 20) as u32;
        self.keep_copies(2);
    }
    /// Disks of some nodes are emptied, or set back to what they held before, now and then.
    pub fn lose_disks(&mut self, prng: &mut Prng) {
        let faults = &mut self.faults;
        faults.unsound = None;
        faults.rot_every = Duration::ZERO;
        let mut nodes: Vec<usize> = (0..self.nodes).collect();
        prng.shuffle(&mut nodes);
        // So many copies may be lost, and one stays.
        let lost = if self.n > 2 && prng.chance(0.3) { 2 } else { 1 };
        faults.fickle = NodeSet::of(&nodes[..lost]);
        let every = self.duration / prng.between(4, 16) as u32;
        // One or the other: an emptied disk knows the node's starts, and an older one does not know when it was
        // emptied.
        let wiped = prng.coin();
        faults.wipe_every = if wiped { every } else { Duration::ZERO };
        faults.restore_every = if wiped { Duration::ZERO } else { every };
        self.keep_copies(lost as u8 + 1);
    }
    /// Every write is acknowledged by so many nodes, so that the loss of the others is not the loss of it.
    fn keep_copies(&mut self, copies: u8) {
        self.w = self.w.max(copies);
        self.workload.writes_min = self.workload.writes_min.max(copies);
    }
    /// No node ends, and no disk fails: what is left are links, pauses and slowness.
    pub fn without_crashes(&mut self) {
        self.faults.crashes().into_iter().for_each(|every| *every = Duration::ZERO);
        (self.faults.unsound, self.faults.fickle) = (None, NodeSet::default());
    }
    /// Whether no node ends in this run: then hints alone make replicas equal.
    pub fn crash_free(&self) -> bool {
        self.faults.clone().crashes().iter().all(|every| every.is_zero())
    }
    /// Whether overlapping quorums promise anything: not when one disk may forget what it held and not tell.
    pub fn overlaps(&self) -> bool {
        (self.faults.unsound.is_none() || !self.faults.stray_writes) && self.faults.fickle.is_empty()
    }
    /// Whether what one disk alone holds may be lost.
    pub fn forgets(&self) -> bool {
        self.faults.unsound.is_some() || !self.faults.fickle.is_empty()
    }
}

/// Bounds of the values' sizes; most values are much smaller than the bound of their run.
const VALUE_BYTES: [usize; 14] =
    [64, 64, 300, 300, 700, 700, 3_000, 3_000, 3_000, 3_000, 8_000, 20_000, 100_000, 400_000];

const LARGE_BYTES: usize = 50_000;

/// Shards that a node may restart with.
pub const SHARDS_MAX: u16 = 3;

/// One of the values, or nothing at all in a share of the runs.
fn sometimes(prng: &mut Prng, share: f64, draw: impl FnOnce(&mut Prng) -> f64) -> f64 {
    if prng.chance(share) { draw(prng) } else { 0.0 }
}

fn draw_network(prng: &mut Prng) -> NetworkPlan {
    let delay_min = prng.duration(Duration::from_micros(50), Duration::from_millis(2));
    NetworkPlan {
        delay_min,
        delay_mean: prng.duration(Duration::from_micros(50), Duration::from_millis(10)),
        loss: sometimes(prng, 0.6, |p| p.unit() * p.unit() * 0.3),
        duplicate: sometimes(prng, 0.5, |p| p.unit() * 0.1),
        hold: sometimes(prng, 0.5, |p| p.unit() * 0.05),
        held: prng.duration(Duration::from_millis(10), Duration::from_secs(3)),
        strange: 0.0,
        client_loss: sometimes(prng, 0.5, |p| p.unit() * 0.03),
    }
}

fn draw_faults(prng: &mut Prng, duration: Duration, nodes: usize) -> FaultPlan {
    let unsound = prng.chance(0.25).then(|| prng.index(nodes));
    let reshard = sometimes(prng, 0.3, Prng::unit);
    let mut every = |share: f64, times: u64| {
        if prng.chance(share) { duration / prng.between(1, times) as u32 } else { Duration::ZERO }
    };
    let rot_every = every(1.0, 20);
    FaultPlan {
        kill_every: every(0.6, 20),
        power_loss_every: every(0.5, 10),
        power_cut_every: every(0.3, 3),
        pause_every: every(0.5, 36),
        cut_every: every(0.6, 34),
        clog_every: every(0.5, 80),
        slow_disk_every: every(0.4, 25),
        disk_error_every: every(0.3, 14),
        full_disk_every: every(0.3, 12),
        hang_disk_every: Duration::ZERO,
        clock_step_every: every(0.5, 20),
        wild_clock: None,
        rot_every: if unsound.is_some() { rot_every } else { Duration::ZERO },
        stray_writes: false,
        spoilt_files: 0.0,
        unsound,
        fickle: NodeSet::default(),
        stop_every: Duration::ZERO,
        link_cut_every: Duration::ZERO,
        wipe_every: Duration::ZERO,
        restore_every: Duration::ZERO,
        reshard,
        lasting: prng.duration(Duration::from_millis(500), Duration::from_secs(12)),
        down_max: prng.between(1, 3) as usize,
    }
}

fn draw_workload(prng: &mut Prng) -> WorkloadPlan {
    let mut weight = |max: u64| prng.below(max + 1);
    let mix = [1 + weight(8), 1 + weight(8), weight(4), weight(4), weight(2), weight(2), weight(1)];
    WorkloadPlan {
        clients: prng.between(4, 24) as usize,
        keys: *prng.pick(&[8, 32, 100, 300]).unwrap_or(&32),
        zipf: prng.unit() * 1.3,
        think: prng.duration(Duration::from_millis(5), Duration::from_millis(120)),
        value_bytes_max: *prng.pick(&VALUE_BYTES).unwrap_or(&700),
        timeout_min: Duration::from_millis(500),
        timeout_max: prng.duration(Duration::from_secs(1), Duration::from_secs(5)),
        mix,
        override_level: sometimes(prng, 0.4, |p| p.unit() * 0.5),
        writes_min: 1,
        retry: sometimes(prng, 0.8, |p| p.unit()),
        follow: 0.0,
    }
}

/// Bounds so small that they are met, each in a share of the runs.
fn draw_bounds(prng: &mut Prng) -> ShardBounds {
    let usual = ShardBounds::default();
    let mut small = |choices: [u64; 2], usual: u64| {
        if prng.chance(0.12) { choices[usize::from(prng.coin())] } else { usual }
    };
    ShardBounds {
        dot_lease: small([4, 64], usual.dot_lease),
        stamps_kept: small([4, 100], usual.stamps_kept as u64) as usize,
        latch_waiters_max: small([2, 8], usual.latch_waiters_max as u64) as usize,
        requests_in_flight_max: small([3, 10], usual.requests_in_flight_max as u64) as usize,
        requests_answered_max: small([4, 30], usual.requests_answered_max as u64) as usize,
        siblings_max: small([3, 10], usual.siblings_max as u64) as usize,
    }
}

/// Small sizes, so that flushes, compactions and collections happen within a short run.
fn draw_engine(prng: &mut Prng) -> EngineOptions {
    EngineOptions {
        segment_bytes: *prng.pick(&[2048 * KIB, 4096 * KIB]).unwrap_or(&(2048 * KIB)),
        memtable_bytes: *prng.pick(&[16 * KIB, 64 * KIB, 512 * KIB]).unwrap_or(&(64 * KIB)),
        log_replay_bytes: 4096 * KIB,
        table_bytes: 64 * KIB,
        level0_tables: prng.between(2, 4) as usize,
        level_factor: 4,
        block_cache_bytes: *prng.pick(&[16 * KIB, 256 * KIB]).unwrap_or(&(16 * KIB)),
        value_cache_bytes: *prng.pick(&[16 * KIB, 256 * KIB]).unwrap_or(&(16 * KIB)),
        ..EngineOptions::default()
    }
}
