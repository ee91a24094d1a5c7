//! The nodes of a run and their lives: boot, crash, pause; and what is done to their disks.
//!
//! A node is a disk, a clock and, while it runs, a driver for each shard: the production driver, over
//! [`super::world::ShardWorld`] and [`VirtualDisk`]. A life ends by a kill (the disk keeps all that was written), by
//! loss of power (it keeps what was synced, and of the rest an arbitrary part), or by itself when storage fails.

mod media;

use super::{
    availability::Troubles,
    checker::{Invariant, Traces, Violation},
    clock::NodeClock,
    counts::FaultCounts,
    coverage::{Blow, Coverage, Doings},
    disk::{Access, DiskImage, Lie, VirtualDisk},
    excuses::Excuses,
    executor::{Executor, Life},
    kept::Kept,
    network::Network,
    plan::{Plan, SHARDS_MAX},
    planted::{Planted, spoil_settings},
    prng::Prng,
    sockets::Call,
    trace::Trace,
    world::ShardWorld,
};
use crate::{
    driver::{
        core::{self, CoreSetup, Handle, Settings},
        identity::{self, Identity, NodeWish},
        world::{Arrival, ClientToken, Inbox},
    },
    engine::types::EngineOptions,
    limits::{KIB, SKEW_MAX},
    protocol::ring::FixedMap,
    types::{Conflict, Instant, NodeId, Ports, ShardId, TableChange, TableChangeKind, TableName, TableWish},
};
use std::{
    cell::{Cell, RefCell, RefMut},
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    time::Duration,
};

/// Share of starts that follow one which did not serve.
const FALSE_STARTS: f64 = 0.1;

/// The table where the last write wins.
pub const LAST_WINS: &str = "lastwins";

pub type ShardHandle = Handle<ShardWorld, VirtualDisk>;

/// How a life ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The process dies; connections are reset at once.
    Kill,
    /// The process was asked to stop, and has closed all in good order.
    Stop,
    /// The machine goes dark: unsynced writes are at risk, and nobody is told.
    PowerLoss,
}

struct ShardSlot {
    /// There from the start of the life on: what the node's other shards say waits in it.
    inbox: Inbox,
    /// Once the shard has opened.
    handle: Option<ShardHandle>,
}

/// One shard of one life of one node.
#[derive(Clone, Copy)]
struct Place {
    index: usize,
    life: u64,
    shard: u16,
}

struct Node {
    disk: VirtualDisk,
    clock: NodeClock,
    life: u64,
    running: bool,
    paused: bool,
    /// It was asked to stop and has not ended yet.
    stopping: bool,
    /// When it was last started, paused or resumed: answers due around such a time may be late.
    disturbed: Instant,
    /// Whether the medium has lost anything before this life or in it.
    medium_spoiled: bool,
    /// Errors of the disk before this life.
    errors_before: u64,
    /// Whether the last life ended by itself, and nobody but the keeper starts the node again.
    failed: bool,
    id: Option<NodeId>,
    shards: BTreeMap<u16, ShardSlot>,
    /// How many it runs, or ran last.
    shard_count: u16,
    /// The disk as it was some time ago.
    backup: Option<DiskImage>,
    /// The disk is not what the last life left, and the next one is told so, as a data directory itself would tell.
    restored: bool,
    doings: Doings,
    /// The skew of its wall clock against true time, in nanoseconds, when it jumped last; and what it gains since, in
    /// millionths.
    skew: i64,
    jumped: Instant,
    pace_ppm: i64,
    /// How long its process stood still last.
    stood_still: Duration,
    slowness: Rc<Cell<u32>>,
    prng: Prng,
}

/// See the module. Time is true time unless a name says local.
pub struct Cluster {
    pub executor: Executor,
    pub plan: Plan,
    pub trace: Trace,
    pub counts: RefCell<FaultCounts>,
    pub coverage: RefCell<Coverage>,
    pub excuses: RefCell<Excuses>,
    pub traces: RefCell<Traces>,
    pub(super) network: RefCell<Network>,
    kept: Vec<RefCell<Kept>>,
    nodes: Vec<RefCell<Node>>,
    ids: RefCell<FixedMap<NodeId, usize>>,
    pub(super) calls: RefCell<FixedMap<u64, Call>>,
    pub(super) next_call: Cell<u64>,
    pub(super) client_prng: RefCell<Prng>,
    pub violations: RefCell<Vec<Violation>>,
    pub(super) troubles: RefCell<Troubles>,
}

/// The seed port of node `index`'s shard 0 is at this address.
pub fn ip_of(index: usize) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, index as u8 + 1).into()
}
/// Time that a node has to stop in good order.
const STOP_MAX: Duration = Duration::from_secs(40);
/// The wall clocks' time at the beginning of all runs.
pub(super) const WALL_BEGIN: u64 = 1_700_000_000_000_000_000;
/// How far a wall clock may be from true time, to either side: two of them stay within the skew that is taken.
const WALL_SKEW: u64 = SKEW_MAX.as_nanos() as u64 * 2 / 5;

impl Cluster {
    pub fn new(plan: Plan) -> Rc<Cluster> {
        let executor = Executor::new();
        let mut prng = Prng::stream(plan.seed, "nodes");
        let count = plan.nodes + usize::from(plan.outsider);
        let nodes = (0..count).map(|n| RefCell::new(make_node(&plan, n, &executor, prng.fork()))).collect();
        Rc::new(Cluster {
            trace: Trace::new(plan.seed),
            counts: RefCell::default(),
            coverage: RefCell::default(),
            excuses: RefCell::default(),
            traces: RefCell::default(),
            network: RefCell::new(Network::new(&plan)),
            kept: (0..count).map(|_| RefCell::default()).collect(),
            nodes,
            ids: RefCell::default(),
            calls: RefCell::default(),
            next_call: Cell::new(0),
            client_prng: RefCell::new(Prng::stream(plan.seed, "client sockets")),
            violations: RefCell::default(),
            troubles: RefCell::new(Troubles::new(&plan)),
            executor,
            plan,
        })
    }
    pub fn violate(&self, invariant: Invariant, text: impl Into<String>) {
        let violation = Violation { at: self.executor.now(), invariant, text: text.into() };
        self.trace.note(violation.at, 99, 0, || format!("VIOLATION {violation}"));
        self.violations.borrow_mut().push(violation);
    }
    /// Whether the disk fails, is full, slow or hangs now.
    pub(super) fn is_disk_ill(&self, node: usize) -> bool {
        let node = self.nodes[node].borrow();
        let troubled = node.disk.is_limited() || node.disk.hangs() || node.disk.is_rotten() || node.medium_spoiled;
        troubled || node.disk.fails() || node.slowness.get() > 1
    }
    pub fn count(&self, change: impl FnOnce(&mut FaultCounts)) {
        change(&mut self.counts.borrow_mut());
    }
    /// Something is let pass.
    pub(super) fn excuse(&self, change: impl FnOnce(&mut Excuses)) {
        change(&mut self.excuses.borrow_mut());
    }
    pub fn note(&self, what: u64, detail: u64, words: impl FnOnce() -> String) {
        self.trace.note(self.executor.now(), what, detail, words);
    }

    // ---- nodes ----

    /// Members; an outsider does not count.
    pub fn node_count(&self) -> usize {
        self.plan.nodes
    }
    pub fn clock(&self, node: usize) -> NodeClock {
        self.nodes[node].borrow().clock
    }
    pub fn local_now(&self, node: usize) -> Instant {
        self.clock(node).local(self.executor.now())
    }
    /// The time by the node's wall clock, in nanoseconds since 1970: true time and a skew of its own.
    pub fn wall_time(&self, node: usize) -> u64 {
        let (node, now) = (self.nodes[node].borrow(), self.executor.now());
        let gained = now.since(node.jumped).as_nanos() as i64 / 1_000_000 * node.pace_ppm;
        (WALL_BEGIN + now.0).saturating_add_signed(node.skew.saturating_add(gained))
    }
    /// The wall clock jumps.
    pub fn step_clock(&self, index: usize) {
        let mut node = self.nodes[index].borrow_mut();
        node.set_clock(self.executor.now());
        self.count(|c| c.clock_steps += 1);
        if self.plan.faults.wild_clock != Some(index) || node.prng.chance(0.3) {
            return;
        }
        // From seconds to days, to either side; now and then it does not keep pace either.
        let reach = *node.prng.pick(&[10_000, 60_000, 3_600_000, 864_000_000]).unwrap_or(&10_000);
        let millis = node.prng.between(reach / 10, reach) as i64;
        let signs = [-1, 1];
        let sign = *node.prng.pick(&signs).unwrap_or(&1);
        node.skew = sign * millis * 1_000_000;
        if node.prng.chance(0.3) {
            node.pace_ppm = *node.prng.pick(&signs).unwrap_or(&1) * node.prng.below(200_000) as i64;
        }
        let skew = node.skew;
        drop(node);
        self.count(|c| c.clocks_astray += 1);
        self.note(8, index as u64, || format!("the clock of node {index} is off by {:.1} s", skew as f64 / 1e9));
    }
    /// The wall clock is about right again.
    pub fn mend_clock(&self, node: usize) {
        self.nodes[node].borrow_mut().set_clock(self.executor.now());
    }
    /// How long the node's process stood still last.
    pub(super) fn stood_still(&self, node: usize) -> Duration {
        self.nodes[node].borrow().stood_still
    }
    /// Known from the node's first start on.
    pub fn node_id(&self, node: usize) -> Option<NodeId> {
        self.nodes[node].borrow().id
    }
    pub fn index_of(&self, id: NodeId) -> Option<usize> {
        self.ids.borrow().get(&id).copied()
    }
    pub fn node_at(&self, address: SocketAddr) -> Option<NodeId> {
        (0..self.nodes.len()).find(|n| ip_of(*n) == address.ip()).and_then(|n| self.node_id(n))
    }
    /// Whether this life of the node is the present one and has not ended.
    pub fn lives(&self, node: usize, life: u64) -> bool {
        let node = self.nodes[node].borrow();
        node.running && node.life == life
    }
    pub fn running(&self, node: usize) -> bool {
        self.nodes[node].borrow().running
    }
    pub fn paused(&self, node: usize) -> bool {
        self.nodes[node].borrow().paused
    }
    pub fn life(&self, node: usize) -> u64 {
        self.nodes[node].borrow().life
    }
    /// Whether all shards have opened.
    pub fn listening(&self, node: usize) -> bool {
        let node = self.nodes[node].borrow();
        let open = node.shards.values().filter(|s| s.handle.is_some()).count();
        node.running && open == usize::from(node.shard_count)
    }
    /// Whether others can connect to this core.
    pub(super) fn serves(&self, node: usize, shard: u16) -> bool {
        let node = self.nodes[node].borrow();
        let open = |slot: &ShardSlot| slot.handle.is_some();
        let whole = node.stopping || node.shards.values().filter(|s| open(s)).count() == usize::from(node.shard_count);
        node.running && whole && node.shards.get(&shard).is_some_and(open)
    }
    pub fn stopping(&self, node: usize) -> bool {
        self.nodes[node].borrow().stopping
    }
    pub(super) fn kept(&self, node: usize) -> RefMut<'_, Kept> {
        self.kept[node].borrow_mut()
    }
    pub fn shard_count(&self, node: usize) -> u16 {
        self.nodes[node].borrow().shard_count
    }
    /// When the node was last started, paused or resumed.
    pub fn disturbed(&self, node: usize) -> Instant {
        self.nodes[node].borrow().disturbed
    }
    pub(super) fn doings_before(&self, node: usize) -> Doings {
        self.nodes[node].borrow().doings
    }
    pub(super) fn remember_doings(&self, node: usize) {
        let doings = self.doings(node);
        self.nodes[node].borrow_mut().doings = doings;
    }
    /// The handles of all shards that run.
    pub fn handles(&self) -> Vec<ShardHandle> {
        let shards = |node| (0..self.shard_count(node)).filter_map(move |shard| self.handle(node, shard));
        (0..self.node_count()).flat_map(shards).collect()
    }
    pub fn handle(&self, node: usize, shard: u16) -> Option<ShardHandle> {
        self.nodes[node].borrow().shards.get(&shard).and_then(|s| s.handle.clone())
    }
    pub(super) fn inbox(&self, node: usize, shard: u16) -> Option<Inbox> {
        self.nodes[node].borrow().shards.get(&shard).map(|s| s.inbox.clone())
    }
    pub fn disk(&self, node: usize) -> VirtualDisk {
        self.nodes[node].borrow().disk.clone()
    }
    fn life_of(&self, node: usize, life: u64) -> Life {
        Life(life << 8 | (node as u64 + 1))
    }

    /// Starts a node that does not run.
    pub fn start(self: &Rc<Self>, index: usize) {
        let life = {
            let mut node = self.nodes[index].borrow_mut();
            if node.running {
                return;
            }
            node.running = true;
            node.life += 1;
            node.disturbed = self.executor.now();
            node.failed = false;
            node.medium_spoiled = node.disk.is_rotten();
            node.errors_before = node.disk.counts().errors;
            if node.life > 1 {
                self.change_before_start(index, &mut node);
            }
            node.life
        };
        self.trouble_process(index);
        self.note(1, index as u64, || format!("node {index} starts, life {life}"));
        if life > 1 {
            self.count(|c| c.restarts += 1);
        }
        let cluster = self.clone();
        self.executor.spawn(self.life_of(index, life), async move {
            if let Err(reason) = cluster.boot(index, life).await {
                cluster.failed(index, life, &reason);
            }
        });
    }
    /// What may have become of a machine while it was down.
    fn change_before_start(&self, index: usize, node: &mut Node) {
        if node.prng.chance(self.plan.faults.reshard) {
            let shards = node.prng.between(1, u64::from(SHARDS_MAX)) as u16;
            if shards != node.shard_count {
                self.count(|c| c.reshards += 1);
                self.note(7, index as u64 | u64::from(shards) << 32, || format!("node {index} has {shards} shards"));
            }
            node.shard_count = shards;
        }
    }
    /// Remembers what the disk holds now.
    pub fn back_up(&self, index: usize) {
        let mut node = self.nodes[index].borrow_mut();
        node.backup = Some(node.disk.snapshot());
    }
    pub fn has_backup(&self, index: usize) -> bool {
        self.nodes[index].borrow().backup.is_some()
    }
    /// The disk of a node that does not run holds again what it held at the last backup.
    pub fn restore_disk(&self, index: usize) {
        let mut node = self.nodes[index].borrow_mut();
        let Some(image) = node.backup.clone() else { return };
        node.disk = node.disk.restore(&image);
        // Half of them are copies of blocks: nothing about them says what they are.
        let untold = self.planted(Planted::KnownDotStored) || self.planted(Planted::LoneSign);
        node.restored = !untold && node.prng.coin();
        self.count(|c| c.restored_backups += 1);
        self.count(|c| c.untold_set_backs += u64::from(!node.restored));
        self.note(40, index as u64, || format!("node {index} gets an older disk"));
    }
    /// The disk of a node that does not run loses all but the node's name: what a user does who follows the words of a
    /// start that met a damaged disk, and keeps the name. Without it the node would be another one, and the ring
    /// another.
    pub fn wipe_disk(&self, index: usize) {
        let mut node = self.nodes[index].borrow_mut();
        node.disk = node.disk.wipe("node");
        self.count(|c| c.wiped_disks += 1);
        self.note(41, index as u64, || format!("node {index} gets an empty disk"));
    }
    async fn boot(self: &Rc<Self>, index: usize, life: u64) -> Result<(), String> {
        let disk = self.disk(index);
        if self.planted(Planted::UnprovenEnds) && life > 1 {
            self.unprove_ends(&disk).await.map_err(|e| e.to_string())?;
        }
        let mut identity = identity::open(&disk, &self.wish(index)).await.map_err(|e| e.to_string())?;
        let mut prng = Prng::stream(self.plan.seed ^ (life << 8 | index as u64), "false starts");
        if life > 1 && prng.chance(FALSE_STARTS) {
            // One that was counted, and ended before any shard had opened.
            self.count(|c| c.false_starts += 1);
            identity = identity::open(&disk, &self.wish(index)).await.map_err(|e| e.to_string())?;
        }
        self.nodes[index].borrow_mut().id = Some(identity.node);
        self.ids.borrow_mut().insert(identity.node, index);
        for shard in 0..self.shard_count(index) {
            let (cluster, disk, identity) = (self.clone(), disk.clone(), identity.clone());
            let inbox = Inbox::new();
            let slot = ShardSlot { inbox: inbox.clone(), handle: None };
            self.nodes[index].borrow_mut().shards.insert(shard, slot);
            self.executor.spawn(self.life_of(index, life), async move {
                let place = Place { index, life, shard };
                if let Err(reason) = cluster.boot_shard(place, disk, identity, inbox).await {
                    cluster.failed(index, life, &reason);
                }
            });
        }
        Ok(())
    }
    async fn boot_shard(
        self: &Rc<Self>,
        Place { index, life, shard }: Place,
        disk: VirtualDisk,
        identity: Identity,
        inbox: Inbox,
    ) -> Result<(), String> {
        let world = ShardWorld::new(self, index, life, shard, inbox.clone());
        let setup = CoreSetup {
            identity,
            shard: ShardId(shard),
            settings: self.settings(),
            engine: self.engine_options(),
            seed: self.nodes[index].borrow_mut().prng.bits(),
        };
        if self.planted(Planted::ShortLease) && life > 1 {
            let process = self.life_of(index, life);
            let opening = (&setup.identity, self.engine_options());
            let shortened = self.shorten_leases(process, Rc::new(disk.clone()), ShardId(shard), opening);
            shortened.await.map_err(|e| e.to_string())?;
        }
        let core = core::start(world, Rc::new(disk), inbox, setup).await.map_err(|e| e.to_string())?;
        let process = self.life_of(index, life);
        for (_, future) in core.background {
            self.executor.spawn_boxed(process, future);
        }
        if let Some(slot) = self.nodes[index].borrow_mut().shards.get_mut(&shard) {
            slot.handle = Some(core.handle);
        }
        if self.listening(index) {
            self.note(2, index as u64, || format!("node {index} listens"));
            self.trouble_process(index);
            self.check_alarm(index);
            self.came_up(index);
        }
        match core.driver.await {
            Ok(()) if self.stopping(index) => {
                self.closed(index, life, shard);
                Ok(())
            }
            Ok(()) => Err("a driver came to its end".to_string()),
            Err(e) => Err(e.to_string()),
        }
    }
    /// A node that is told of its restored disk says so, once it is open; from then on the disk is its own.
    fn check_alarm(&self, index: usize) {
        if !std::mem::take(&mut self.nodes[index].borrow_mut().restored) {
            return;
        }
        if self.handle(index, 0).is_some_and(|handle| handle.stats().shard.identity_alarms == 0) {
            self.violate(Invariant::Alive, format!("node {index} has an older disk and raises no alarm"));
        }
    }
    fn wish(&self, index: usize) -> NodeWish {
        let first = Prng::stream(self.plan.seed ^ index as u64, "identity").bits();
        let later = self.life(index) > 1;
        let random = if later { self.nodes[index].borrow_mut().prng.bits() } else { first };
        let ports = Ports::default();
        let at = |node: usize| SocketAddr::new(ip_of(node), ports.peer);
        let outsider = self.outsider() == Some(index);
        let seeds: Vec<SocketAddr> = if (outsider && !later) || (index == 0 && !self.plan.mutual) {
            vec![]
        } else if outsider || self.plan.mutual {
            (0..self.node_count()).filter(|node| *node != index).map(at).collect()
        } else {
            vec![at(0)]
        };
        NodeWish {
            ip: Some(ip_of(index)),
            ports: ports.into(),
            bootstrap: seeds.is_empty(),
            shards: self.shard_count(index),
            slices: self.plan.slices,
            vnodes: self.plan.vnodes,
            seeds,
            random,
            copied: self.nodes[index].borrow().restored,
        }
    }
    fn settings(&self) -> Settings {
        let mut settings = Settings {
            n: self.plan.n,
            r: self.plan.r,
            w: self.plan.w,
            sloppy: self.plan.sloppy,
            suspect_after: self.plan.suspect_after,
            down_after: self.plan.suspect_after * 5,
            hint_bytes_max: self.plan.hint_bytes_max,
            repair_pass: self.plan.repair_pass,
            bounds: self.plan.bounds,
            ..Settings::default()
        };
        spoil_settings(self.plan.planted, &mut settings);
        settings
    }
    fn engine_options(&self) -> EngineOptions {
        let mut options = self.plan.engine.clone();
        if self.planted(Planted::OversizedMemory) {
            options.memtable_bytes *= 1_000;
        }
        options
    }

    /// Makes the table of a run's keys, if it is not the default one, by way of the first node.
    pub fn make_table(&self) {
        let Ok(name) = LAST_WINS.parse::<TableName>() else { return };
        let wish = TableWish { conflict: Some(Conflict::LastWriteWins), ..TableWish::default() };
        let change = TableChange { name, kind: TableChangeKind::Set(wish) };
        if let Some(inbox) = self.inbox(0, 0).filter(|_| self.plan.last_write_wins) {
            // No call has this number: nobody waits for the answer.
            inbox.push(Arrival::TableChange { client: ClientToken(0), change, deadline: Instant::NEVER });
        }
    }
    /// Whether a shard knows the table of the run's keys.
    pub fn knows_table(&self, handle: &ShardHandle) -> bool {
        !self.plan.last_write_wins || handle.tables().get(LAST_WINS).is_some()
    }

    /// A node's process ended by itself.
    fn failed(self: &Rc<Self>, index: usize, life: u64, reason: &str) {
        if !self.lives(index, life) {
            return;
        }
        if self.may_fail(index) {
            self.excuse(|e| e.failed_disks += 1);
        } else {
            self.violate(Invariant::Alive, format!("node {index} ended though its disk was sound: {reason}"));
        }
        self.note(3, index as u64, || format!("node {index} fails: {reason}"));
        self.count(|c| c.storage_failures += 1);
        self.end(index, End::Kill);
        self.nodes[index].borrow_mut().failed = true;
    }
    /// Whether anything explains that a node ends by itself: its disk has failed a call in this life, or the medium has
    /// lost what it held. A full disk explains nothing.
    fn may_fail(&self, index: usize) -> bool {
        let node = self.nodes[index].borrow();
        node.medium_spoiled || node.disk.is_rotten() || node.disk.counts().errors > node.errors_before
    }
    pub fn failed_by_itself(&self, node: usize) -> bool {
        self.nodes[node].borrow().failed
    }
    /// Ends the present life of a node.
    pub fn end(self: &Rc<Self>, index: usize, end: End) {
        if !self.running(index) {
            return;
        }
        match end {
            End::Kill => self.cover(Blow::Kill, index),
            End::PowerLoss => self.cover(Blow::PowerLoss, index),
            End::Stop => {}
        }
        let life = {
            let mut node = self.nodes[index].borrow_mut();
            if !node.running {
                return;
            }
            node.running = false;
            node.paused = false;
            node.stopping = false;
            node.life
        };
        self.trouble_process(index);
        self.note(4, index as u64 | (end as u64) << 32, || format!("node {index} ends: {end:?}"));
        let process = self.life_of(index, life);
        // Handles go with the process, so that nothing of it is reached any more.
        let shards = std::mem::take(&mut self.nodes[index].borrow_mut().shards);
        let before = self.disk(index).counts();
        let disk = {
            let mut node = self.nodes[index].borrow_mut();
            let mut prng = node.prng.fork();
            match end {
                End::Kill | End::Stop => node.disk.kill(),
                End::PowerLoss => node.disk.crash(&mut prng),
            }
        };
        let after = disk.counts();
        self.count(|c| {
            c.lost_writes += after.lost_writes - before.lost_writes;
            c.torn_writes += after.torn_writes - before.torn_writes;
            c.lost_names += after.lost_names - before.lost_names;
            match end {
                End::Kill => c.kills += 1,
                End::Stop => {}
                End::PowerLoss => c.power_losses += 1,
            }
        });
        self.nodes[index].borrow_mut().disk = disk;
        self.forget_kept(index);
        self.break_calls(index, life, None);
        self.went_down(index, end);
        // Last: the caller may be one of these futures.
        self.executor.kill(process);
        drop(shards);
    }
    /// Ends the present life of a node in the middle of its next write, and then calls `ended`.
    pub fn end_in_write(self: &Rc<Self>, index: usize, end: End, ended: impl FnOnce() + 'static) {
        let (cluster, life) = (self.clone(), self.life(index));
        self.disk(index).stop_in_write(move || {
            let executor = cluster.executor.clone();
            executor.schedule(executor.now(), move || {
                if cluster.lives(index, life) {
                    cluster.end(index, end);
                    ended();
                }
            });
        });
    }
    /// Tells a node that it will be asked to stop; it serves meanwhile.
    pub fn drain(&self, index: usize) {
        self.count(|c| c.drains += 1);
        self.note(12, index as u64, || format!("node {index} will be asked to stop"));
        for shard in 0..self.shard_count(index) {
            if let Some(inbox) = self.inbox(index, shard) {
                inbox.push(Arrival::Drain);
            }
        }
    }
    /// Asks a node to stop in good order, as SIGTERM does.
    pub fn stop(self: &Rc<Self>, index: usize) {
        let life = {
            let mut node = self.nodes[index].borrow_mut();
            if !node.running || node.stopping {
                return;
            }
            node.stopping = true;
            node.life
        };
        self.cover(Blow::Stop, index);
        self.count(|c| c.stops += 1);
        self.note(8, index as u64, || format!("node {index} is asked to stop"));
        for shard in 0..self.shard_count(index) {
            if let Some(inbox) = self.inbox(index, shard) {
                inbox.push(Arrival::Stop);
            }
        }
        self.expect_end(index, life, self.executor.now());
    }
    /// A node that was asked to stop does so in time, unless it stands still meanwhile.
    fn expect_end(self: &Rc<Self>, index: usize, life: u64, asked: Instant) {
        let cluster = self.clone();
        self.executor.schedule(asked + STOP_MAX, move || {
            if !cluster.lives(index, life) {
                return;
            }
            if cluster.paused(index) || cluster.disturbed(index) > asked {
                return cluster.expect_end(index, life, cluster.executor.now());
            }
            let hands = cluster.handle(index, 0).map(|handle| handle.stats().shard);
            let text = format!("node {index} was asked to stop {STOP_MAX:?} ago and has not ended: {hands:?}");
            cluster.violate(Invariant::I11, text);
        });
    }
    /// A core has ended in good order.
    fn closed(self: &Rc<Self>, index: usize, life: u64, shard: u16) {
        if !self.lives(index, life) {
            return;
        }
        self.break_calls(index, life, Some(shard));
        let slot = self.nodes[index].borrow_mut().shards.remove(&shard);
        let last = self.nodes[index].borrow().shards.is_empty();
        if last {
            self.end(index, End::Stop);
        }
        drop(slot);
    }
    /// The machine of a node that does not run loses power.
    pub fn darken(&self, index: usize) {
        let mut node = self.nodes[index].borrow_mut();
        if !node.running {
            let mut prng = node.prng.fork();
            node.disk = node.disk.crash(&mut prng);
        }
    }
    pub fn pause(&self, index: usize) {
        self.cover(Blow::Pause, index);
        self.trouble_process(index);
        let mut node = self.nodes[index].borrow_mut();
        if node.running && !node.paused {
            node.paused = true;
            node.disturbed = self.executor.now();
            self.executor.pause(self.life_of(index, node.life));
            self.count(|c| c.pauses += 1);
            self.note(5, index as u64, || format!("node {index} is paused"));
        }
    }
    pub fn resume(self: &Rc<Self>, index: usize) {
        {
            let mut node = self.nodes[index].borrow_mut();
            if !node.running || !node.paused {
                return;
            }
            node.paused = false;
            node.stood_still = self.executor.now().since(node.disturbed);
            node.disturbed = self.executor.now();
            self.executor.resume(self.life_of(index, node.life));
        }
        self.trouble_process(index);
        self.note(6, index as u64, || format!("node {index} goes on"));
        self.read_kept(index);
    }
    /// Drops everything that runs. The run is over.
    pub fn shut_down(&self) {
        for node in &self.nodes {
            node.borrow_mut().shards.clear();
        }
        self.executor.clear();
    }
}

impl Node {
    /// The wall clock shows about the true time, and keeps pace.
    fn set_clock(&mut self, now: Instant) {
        (self.skew, self.jumped, self.pace_ppm) = (sound_skew(&mut self.prng), now, 0);
    }
}
fn sound_skew(prng: &mut Prng) -> i64 {
    prng.below(2 * WALL_SKEW) as i64 - WALL_SKEW as i64
}

fn make_node(plan: &Plan, index: usize, executor: &Executor, mut prng: Prng) -> Node {
    let disk = VirtualDisk::new();
    let slowness = Rc::new(Cell::new(1));
    let mut skews = prng.fork();
    let (mut latencies, factor) = (prng.fork(), slowness.clone());
    let (write, read) = (prng.between(60, 400), prng.between(20, 120));
    disk.set_clock(executor, move |access, bytes| {
        let typical = match access {
            Access::Read(_) | Access::List | Access::Open => read,
            Access::Write(_) | Access::Names | Access::Allocate => write / 2,
            Access::WriteDurable(_) | Access::Sync | Access::SyncDir => write,
        };
        let transfer = Duration::from_nanos((bytes / KIB) as u64 * 600);
        let waiting = latencies.duration(Duration::from_micros(typical / 2), Duration::from_micros(typical * 2));
        (waiting + transfer) * factor.get()
    });
    match plan.planted {
        Some(Planted::SkippedSync) => disk.set_lie(Some(Lie::SkippedSync), prng.fork()),
        Some(Planted::FullDiskEnds) => disk.set_lie(Some(Lie::FullAsError), prng.fork()),
        Some(Planted::ShortWrite) => disk.set_lie(Some(Lie::UnreportedShortWrite), prng.fork()),
        _ => {}
    }
    let drift = i64::from(plan.drift_ppm_max);
    let drift_ppm = prng.below(2 * drift as u64 + 1) as i64 - drift;
    let clock =
        NodeClock { started: executor.now(), origin: Instant(prng.between(1, 1 << 50)), drift_ppm: drift_ppm as i32 };
    Node {
        disk,
        clock,
        life: 0,
        running: false,
        paused: false,
        stopping: false,
        disturbed: Instant::ZERO,
        medium_spoiled: false,
        errors_before: 0,
        failed: false,
        id: None,
        shards: BTreeMap::new(),
        shard_count: plan.shards.get(index).copied().unwrap_or(1),
        backup: None,
        restored: false,
        doings: Doings::default(),
        skew: sound_skew(&mut skews),
        jumped: executor.now(),
        pace_ppm: 0,
        stood_still: Duration::ZERO,
        slowness,
        prng,
    }
}
