//! The nodes of a run and their lives: boot, crash, pause; and the clients' side of their sockets.
//!
//! A node is a disk, a clock and, while it runs, a driver for each shard: the production driver, over
//! [`super::world::ShardWorld`] and [`VirtualDisk`]. A life ends by a kill (the disk keeps all that was written), by
//! loss of power (it keeps what was synced, and of the rest an arbitrary part), or by itself when storage fails.

use super::{
    checker::{Invariant, Violation},
    clock::NodeClock,
    disk::{Access, FaultRates, Lie, VirtualDisk},
    executor::{Executor, Life},
    network::Network,
    plan::{Plan, Planted},
    prng::Prng,
    trace::Trace,
    world::ShardWorld,
};
use crate::{
    driver::{
        core::{self, CoreSetup, Handle, Settings},
        identity::{self, Identity, NodeWish},
        world::{Arrival, ClientToken, Inbox},
    },
    engine::types::Durability,
    limits::KIB,
    protocol::{
        message::{Request, Response},
        ring::FixedMap,
    },
    types::{ErrorCode, Failure, Instant, NodeId, Outcome, Ports, ShardId},
};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    task::{Poll, Waker},
    time::Duration,
};

pub type ShardHandle = Handle<ShardWorld, VirtualDisk>;

/// How often each fault has struck.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FaultCounts {
    pub kills: u64,
    pub power_losses: u64,
    pub power_cuts: u64,
    pub restarts: u64,
    pub pauses: u64,
    pub cuts_two_way: u64,
    pub cuts_one_way: u64,
    pub clogs: u64,
    pub slow_disks: u64,
    pub disk_errors: u64,
    pub storage_failures: u64,
    pub messages_lost: u64,
    pub messages_doubled: u64,
    pub messages_held: u64,
    pub messages_to_the_dead: u64,
    pub connections_broken: u64,
    pub client_losses: u64,
    pub lost_writes: u64,
    pub torn_writes: u64,
    pub lost_names: u64,
    pub planted: u64,
}
impl FaultCounts {
    /// Each kind of fault by name.
    pub fn named(&self) -> [(&'static str, u64); 21] {
        [
            ("kills", self.kills),
            ("power_losses", self.power_losses),
            ("power_cuts", self.power_cuts),
            ("restarts", self.restarts),
            ("pauses", self.pauses),
            ("cuts_two_way", self.cuts_two_way),
            ("cuts_one_way", self.cuts_one_way),
            ("clogs", self.clogs),
            ("slow_disks", self.slow_disks),
            ("disk_errors", self.disk_errors),
            ("storage_failures", self.storage_failures),
            ("messages_lost", self.messages_lost),
            ("messages_doubled", self.messages_doubled),
            ("messages_held", self.messages_held),
            ("messages_to_the_dead", self.messages_to_the_dead),
            ("connections_broken", self.connections_broken),
            ("client_losses", self.client_losses),
            ("lost_writes", self.lost_writes),
            ("torn_writes", self.torn_writes),
            ("lost_names", self.lost_names),
            ("planted", self.planted),
        ]
    }
    /// Faults of nodes, links and disks; single messages do not count.
    pub fn total(&self) -> u64 {
        self.kills
            + self.power_losses
            + self.power_cuts
            + self.pauses
            + self.cuts_two_way
            + self.cuts_one_way
            + self.clogs
            + self.slow_disks
            + self.disk_errors
    }
    pub fn add(&mut self, other: &FaultCounts) {
        self.kills += other.kills;
        self.power_losses += other.power_losses;
        self.power_cuts += other.power_cuts;
        self.restarts += other.restarts;
        self.pauses += other.pauses;
        self.cuts_two_way += other.cuts_two_way;
        self.cuts_one_way += other.cuts_one_way;
        self.clogs += other.clogs;
        self.slow_disks += other.slow_disks;
        self.disk_errors += other.disk_errors;
        self.storage_failures += other.storage_failures;
        self.messages_lost += other.messages_lost;
        self.messages_doubled += other.messages_doubled;
        self.messages_held += other.messages_held;
        self.messages_to_the_dead += other.messages_to_the_dead;
        self.connections_broken += other.connections_broken;
        self.client_losses += other.client_losses;
        self.lost_writes += other.lost_writes;
        self.torn_writes += other.torn_writes;
        self.lost_names += other.lost_names;
        self.planted += other.planted;
    }
}

/// How a life ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The process dies; connections are reset at once.
    Kill,
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
    /// When it was last started, paused or resumed: answers due around such a time may be late.
    disturbed: Instant,
    /// Whether the disk was made to fail in this life.
    disk_spoiled: bool,
    /// The rate of its failures.
    disk_error_rate: f64,
    /// Whether the last life ended by itself, and nobody but the keeper starts the node again.
    failed: bool,
    id: Option<NodeId>,
    shards: BTreeMap<u16, ShardSlot>,
    slowness: Rc<Cell<u32>>,
    prng: Prng,
}

/// What became of a client's request.
#[derive(Clone, PartialEq, Debug)]
pub enum CallEnd {
    Answered(Response),
    /// Nobody listened: the request was not delivered.
    Refused,
    /// The connection broke while the answer was awaited.
    Broken,
    /// No answer in time.
    Silent,
}

struct Call {
    node: usize,
    life: u64,
    delivered: Option<Instant>,
    /// The fault plan swallows the request or its answer.
    swallowed: bool,
    end: Option<CallEnd>,
    waker: Option<Waker>,
}

/// See the module. Time is true time unless a name says local.
pub struct Cluster {
    pub executor: Executor,
    pub plan: Plan,
    pub trace: Trace,
    pub counts: RefCell<FaultCounts>,
    pub(super) network: RefCell<Network>,
    nodes: Vec<RefCell<Node>>,
    ids: RefCell<FixedMap<NodeId, usize>>,
    calls: RefCell<FixedMap<u64, Call>>,
    next_call: Cell<u64>,
    client_prng: RefCell<Prng>,
    pub violations: RefCell<Vec<Violation>>,
}

/// The seed port of node `index`'s shard 0 is at this address.
pub fn ip_of(index: usize) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, index as u8 + 1).into()
}
/// Answers may be so much later than their deadline: the way back, and the grain of timers.
const ANSWER_SLACK: Duration = Duration::from_millis(300);

impl Cluster {
    pub fn new(plan: Plan) -> Rc<Cluster> {
        let executor = Executor::new();
        let mut prng = Prng::stream(plan.seed, "nodes");
        let nodes = (0..plan.nodes).map(|_| RefCell::new(make_node(&plan, &executor, prng.fork()))).collect();
        Rc::new(Cluster {
            trace: Trace::new(plan.seed),
            counts: RefCell::default(),
            network: RefCell::new(Network::new(&plan)),
            nodes,
            ids: RefCell::default(),
            calls: RefCell::default(),
            next_call: Cell::new(0),
            client_prng: RefCell::new(Prng::stream(plan.seed, "client sockets")),
            violations: RefCell::default(),
            executor,
            plan,
        })
    }
    pub fn violate(&self, invariant: Invariant, text: impl Into<String>) {
        let violation = Violation { at: self.executor.now(), invariant, text: text.into() };
        self.trace.note(violation.at, 99, 0, || format!("VIOLATION {violation}"));
        self.violations.borrow_mut().push(violation);
    }
    pub fn count(&self, change: impl FnOnce(&mut FaultCounts)) {
        change(&mut self.counts.borrow_mut());
    }
    pub fn note(&self, what: u64, detail: u64, words: impl FnOnce() -> String) {
        self.trace.note(self.executor.now(), what, detail, words);
    }
    pub fn planted(&self, planted: Planted) -> bool {
        self.plan.planted == Some(planted)
    }

    // ---- nodes ----

    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }
    pub fn clock(&self, node: usize) -> NodeClock {
        self.nodes[node].borrow().clock
    }
    pub fn local_now(&self, node: usize) -> Instant {
        self.clock(node).local(self.executor.now())
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
        node.running && open == usize::from(self.plan.shards)
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
            node.disk_spoiled = node.disk_error_rate > 0.0;
            node.life
        };
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
    async fn boot(self: &Rc<Self>, index: usize, life: u64) -> Result<(), String> {
        let disk = self.disk(index);
        let identity = identity::open(&disk, &self.wish(index)).await.map_err(|e| e.to_string())?;
        self.nodes[index].borrow_mut().id = Some(identity.node);
        self.ids.borrow_mut().insert(identity.node, index);
        for shard in 0..self.plan.shards {
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
            durability: Durability::Sync,
            engine: self.plan.engine.clone(),
            seed: self.nodes[index].borrow_mut().prng.bits(),
        };
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
            self.came_up(index);
        }
        match core.driver.await {
            Ok(()) => Err("a driver came to its end".to_string()),
            Err(e) => Err(e.to_string()),
        }
    }
    fn wish(&self, index: usize) -> NodeWish {
        let mut prng = Prng::stream(self.plan.seed ^ index as u64, "identity");
        let ports = Ports::default();
        let seeds = if index == 0 { vec![] } else { vec![SocketAddr::new(ip_of(0), ports.peer)] };
        NodeWish {
            ip: Some(ip_of(index)),
            ports: Some(ports),
            shards: self.plan.shards,
            slices: self.plan.slices,
            vnodes: self.plan.vnodes,
            seeds,
            random: prng.bits(),
            copied: false,
        }
    }
    fn settings(&self) -> Settings {
        Settings {
            n: self.plan.n,
            r: self.plan.r,
            w: self.plan.w,
            sloppy: self.plan.sloppy,
            suspect_after: self.plan.suspect_after,
            down_after: self.plan.suspect_after * 5,
            ..Settings::default()
        }
    }

    /// A node's process ended by itself.
    fn failed(self: &Rc<Self>, index: usize, life: u64, reason: &str) {
        if !self.lives(index, life) {
            return;
        }
        let spoiled = self.nodes[index].borrow().disk_spoiled;
        if !spoiled {
            self.violate(Invariant::Alive, format!("node {index} ended though its disk was sound: {reason}"));
        }
        self.note(3, index as u64, || format!("node {index} fails: {reason}"));
        self.count(|c| c.storage_failures += 1);
        self.end(index, End::Kill);
        self.nodes[index].borrow_mut().failed = true;
    }
    pub fn failed_by_itself(&self, node: usize) -> bool {
        self.nodes[node].borrow().failed
    }
    /// Ends the present life of a node.
    pub fn end(self: &Rc<Self>, index: usize, end: End) {
        let life = {
            let mut node = self.nodes[index].borrow_mut();
            if !node.running {
                return;
            }
            node.running = false;
            node.paused = false;
            node.life
        };
        self.note(4, index as u64 | (end as u64) << 32, || format!("node {index} ends: {end:?}"));
        let process = self.life_of(index, life);
        // Handles go with the process, so that nothing of it is reached any more.
        let shards = std::mem::take(&mut self.nodes[index].borrow_mut().shards);
        let before = self.disk(index).counts();
        let disk = {
            let mut node = self.nodes[index].borrow_mut();
            let mut prng = node.prng.fork();
            match end {
                End::Kill => node.disk.kill(),
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
                End::PowerLoss => c.power_losses += 1,
            }
        });
        self.nodes[index].borrow_mut().disk = disk;
        self.break_calls(index, life);
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
    pub fn pause(&self, index: usize) {
        let mut node = self.nodes[index].borrow_mut();
        if node.running && !node.paused {
            node.paused = true;
            node.disturbed = self.executor.now();
            self.executor.pause(self.life_of(index, node.life));
            self.count(|c| c.pauses += 1);
            self.note(5, index as u64, || format!("node {index} is paused"));
        }
    }
    pub fn resume(&self, index: usize) {
        let mut node = self.nodes[index].borrow_mut();
        if node.running && node.paused {
            node.paused = false;
            node.disturbed = self.executor.now();
            self.executor.resume(self.life_of(index, node.life));
            self.note(6, index as u64, || format!("node {index} goes on"));
        }
    }
    /// The disk fails from now on at this rate; 0 mends it.
    pub fn spoil_disk(&self, index: usize, rate: f64) {
        let mut node = self.nodes[index].borrow_mut();
        node.disk_spoiled |= rate > 0.0;
        node.disk_error_rate = rate;
        let rates = FaultRates { read_error: 0.0, write_error: rate, sync_error: rate, bit_flip: 0.0 };
        let prng = node.prng.fork();
        node.disk.set_rates(rates, prng);
    }
    /// Makes the disk so many times slower.
    pub fn slow_disk(&self, index: usize, factor: u32) {
        self.nodes[index].borrow().slowness.set(factor);
    }

    /// Drops everything that runs. The run is over.
    pub fn shut_down(&self) {
        for node in &self.nodes {
            node.borrow_mut().shards.clear();
        }
        self.executor.clear();
    }

    // ---- clients ----

    /// Sends a request to a shard and waits for its end. `request.deadline` is ignored: it is `timeout` from now.
    pub async fn call(self: &Rc<Self>, node: usize, shard: u16, mut request: Request, timeout: Duration) -> CallEnd {
        let number = self.next_call.get() + 1;
        self.next_call.set(number);
        let (delay, swallowed, swallowed_early) = {
            let mut prng = self.client_prng.borrow_mut();
            let loss = prng.chance(self.network.borrow().client_loss());
            (self.client_delay(&mut prng), loss, loss && prng.coin())
        };
        if swallowed {
            self.count(|c| c.client_losses += 1);
        }
        let life = self.life(node);
        let call = Call { node, life, delivered: None, swallowed, end: None, waker: None };
        self.calls.borrow_mut().insert(number, call);
        if !swallowed_early {
            let cluster = self.clone();
            self.executor.schedule(self.executor.now() + delay, move || {
                request.deadline = cluster.local_now(node) + timeout;
                cluster.deliver_call(number, node, shard, request);
            });
        }
        let give_up = self.executor.now() + timeout + delay + ANSWER_SLACK;
        let end = self.wait_for_call(number, give_up).await;
        if let Some(call) = self.calls.borrow_mut().remove(&number)
            && end == CallEnd::Silent
        {
            self.check_silence(&call, node);
        }
        end
    }
    fn client_delay(&self, prng: &mut Prng) -> Duration {
        prng.duration(Duration::from_micros(30), Duration::from_micros(400))
    }
    fn deliver_call(&self, number: u64, node: usize, shard: u16, request: Request) {
        let life = self.life(node);
        let inbox = if self.listening(node) { self.inbox(node, shard) } else { None };
        let Some(inbox) = inbox else {
            return self.end_call(number, CallEnd::Refused);
        };
        if let Some(call) = self.calls.borrow_mut().get_mut(&number) {
            call.life = life;
            call.delivered = Some(self.executor.now());
            self.note(10, number, || format!("client request {number} reaches {node}/{shard}: {}", words_of(&request)));
            inbox.push(Arrival::Request { client: ClientToken(number), request });
        }
    }
    /// A shard answers a client.
    pub(super) fn reply(self: &Rc<Self>, client: ClientToken, response: Response) {
        let number = client.0;
        self.note(11, number ^ detail_of(&response), || {
            let words = match &response {
                Ok(crate::protocol::message::Answer::Got(s)) => format!("{:?}", s.head),
                Ok(crate::protocol::message::Answer::Written(c)) => format!("written {c:?}"),
                Err(e) => format!("{e:?}"),
            };
            format!("answer {number}: {words}")
        });
        let response = self.spoil_answer(response);
        let Some(response) = response else { return };
        if self.calls.borrow().get(&number).is_none_or(|c| c.swallowed) {
            return;
        }
        let delay = self.client_delay(&mut self.client_prng.borrow_mut());
        let cluster = self.clone();
        self.executor.schedule(self.executor.now() + delay, move || {
            cluster.end_call(number, CallEnd::Answered(response));
        });
    }
    /// The planted defects of answers.
    fn spoil_answer(&self, response: Response) -> Option<Response> {
        if self.planted(Planted::LostAnswer) && self.client_prng.borrow_mut().chance(0.002) {
            self.count(|c| c.planted += 1);
            return None;
        }
        match response {
            Err(failure) if failure.outcome == Outcome::Unknown && self.planted(Planted::CertainFailure) => {
                self.count(|c| c.planted += 1);
                Some(Err(Failure { outcome: Outcome::NotApplied, ..failure }))
            }
            response => Some(response),
        }
    }
    fn end_call(&self, number: u64, end: CallEnd) {
        let mut calls = self.calls.borrow_mut();
        if let Some(call) = calls.get_mut(&number)
            && call.end.is_none()
        {
            call.end = Some(end);
            if let Some(waker) = call.waker.take() {
                waker.wake();
            }
        }
    }
    async fn wait_for_call(&self, number: u64, give_up: Instant) -> CallEnd {
        let mut sleep = self.executor.sleep_until(give_up);
        std::future::poll_fn(|context| {
            let mut calls = self.calls.borrow_mut();
            let Some(call) = calls.get_mut(&number) else { return Poll::Ready(CallEnd::Silent) };
            if let Some(end) = call.end.take() {
                return Poll::Ready(end);
            }
            call.waker = Some(context.waker().clone());
            drop(calls);
            std::pin::Pin::new(&mut sleep).poll(context).map(|()| CallEnd::Silent)
        })
        .await
    }
    /// I11: a delivered request is answered by its deadline, unless its node died or stood still meanwhile.
    fn check_silence(&self, call: &Call, node: usize) {
        let Some(delivered) = call.delivered.filter(|_| !call.swallowed) else { return };
        let undisturbed = {
            let node = self.nodes[node].borrow();
            node.running && node.life == call.life && !node.paused && node.disturbed < delivered
        };
        if undisturbed {
            self.violate(Invariant::I11, format!("node {node} left a request unanswered past its deadline"));
        }
    }
    fn break_calls(self: &Rc<Self>, index: usize, life: u64) {
        let mut broken: Vec<u64> = Vec::new();
        for (number, call) in self.calls.borrow().iter() {
            if call.node == index && call.life == life && call.delivered.is_some() && call.end.is_none() {
                broken.push(*number);
            }
        }
        broken.sort_unstable();
        for number in broken {
            let delay = self.client_delay(&mut self.client_prng.borrow_mut());
            let cluster = self.clone();
            self.executor.schedule(self.executor.now() + delay, move || cluster.end_call(number, CallEnd::Broken));
        }
    }
}

fn words_of(request: &Request) -> String {
    use crate::protocol::message::Operation;
    let operation = match &request.operation {
        Operation::Get => "get".to_string(),
        Operation::Put { context, value, write_id } => {
            format!("put {} ({} bytes) context {context:?}", write_id.0, value.bytes.len())
        }
        Operation::Delete { context, write_id } => format!("delete {} context {context:?}", write_id.0),
    };
    format!("{:?} {operation} {:?}", request.key, request.consistency)
}

fn detail_of(response: &Response) -> u64 {
    use crate::protocol::message::Answer;
    match response {
        Ok(Answer::Got(siblings)) => siblings
            .head
            .entries
            .iter()
            .fold(1, |h, e| (h ^ e.dot.actor.0 ^ e.dot.counter).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        Ok(Answer::Written(context)) => context.clock.entries().iter().fold(2, |h, d| h ^ d.actor.0 ^ d.counter << 20),
        Err(failure) => failure.code as u64 + 1000,
    }
}

/// Whether another node may be tried after this failure.
pub fn worth_a_retry(failure: &Failure) -> bool {
    failure.code.retryable() || failure.code == ErrorCode::DiskFull
}

fn make_node(plan: &Plan, executor: &Executor, mut prng: Prng) -> Node {
    let disk = VirtualDisk::new();
    let slowness = Rc::new(Cell::new(1));
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
        disturbed: Instant::ZERO,
        disk_spoiled: false,
        disk_error_rate: 0.0,
        failed: false,
        id: None,
        shards: BTreeMap::new(),
        slowness,
        prng,
    }
}
