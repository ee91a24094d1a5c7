//! The clients of a run: gets, read-modify-writes, blind writes, writes on old contexts, deletes; failed writes sent
//! again under the same id at another node. All that they do and hear goes into the history.

mod forged;

use super::{
    availability::Asked,
    checker::{self, End, EventId, Floor, History, Kind, Quorum, Seen, written_dot},
    cluster::{Cluster, LAST_WINS},
    executor::Life,
    operator,
    plan::WorkloadPlan,
    prng::Prng,
    sockets::{CallEnd, worth_a_retry},
};
use crate::{
    limits::{MERGED_SIBLINGS_MAX, SIBLINGS_MAX},
    protocol::{
        message::{Answer, Operation, Request, Response},
        versions::{Context, Siblings},
    },
    types::{Consistency, ErrorCode, Instant, Key, Level, Outcome},
};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

/// Attempts of one write, the first included.
const ATTEMPTS_MAX: u32 = 4;

/// What clients have done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClientCounts {
    pub operations: u64,
    pub failures: u64,
    pub refused: u64,
    pub retries: u64,
}

/// The clients and what they know together.
pub struct Workload {
    cluster: Rc<Cluster>,
    plan: WorkloadPlan,
    pub history: RefCell<History>,
    pub counts: RefCell<ClientCounts>,
    /// Cumulated popularity of the keys.
    popularity: Vec<f64>,
    stop: Cell<bool>,
    active: Cell<usize>,
    /// What any client wrote to last.
    written: Cell<Option<u32>>,
}

/// What a client remembers of a key: a context and the values behind it.
#[derive(Clone, Default)]
struct Memory {
    context: Context,
    seen: Seen,
}

struct Client {
    prng: Prng,
    /// What a read has shown some time ago, by key.
    old: Vec<Option<Memory>>,
    /// What the own last write was answered with, by key.
    written: Vec<Option<Memory>>,
}

impl Workload {
    pub fn new(cluster: &Rc<Cluster>) -> Rc<Workload> {
        let plan = cluster.plan.workload;
        let mut prng = Prng::stream(cluster.plan.seed, "keys");
        // Some keys of each table that is made and dropped, and some of none.
        let tables = cluster.plan.tables.count;
        let table_of = |index: usize| (index % (tables + 1)).checked_sub(1);
        let prefix = |index| match table_of(index) {
            Some(table) => Some(operator::name_of(table).to_string()),
            None => cluster.plan.last_write_wins.then(|| LAST_WINS.to_string()),
        };
        let names = (0..plan.keys).map(|index| make_key(prefix(index).as_deref(), index, &mut prng)).collect();
        let overlaps = cluster.plan.overlaps();
        let mut history = History::new(names, usize::from(cluster.plan.n), overlaps);
        history.stamped = cluster.plan.last_write_wins;
        history.forgets = cluster.plan.forgets();
        history.patience = plan.timeout_max;
        // Each of so many coordinators may have taken as many on its own.
        history.siblings_max = MERGED_SIBLINGS_MAX / SIBLINGS_MAX * cluster.plan.bounds.siblings_max;
        history.set_tables((0..plan.keys).map(table_of).collect(), tables);
        let mut sum = 0.0;
        let weight = |rank: usize| (rank as f64 + 1.0).powf(-plan.zipf);
        let popularity = (0..plan.keys).map(|rank| {
            sum += weight(rank);
            sum
        });
        Rc::new(Workload {
            plan,
            history: RefCell::new(history),
            counts: RefCell::default(),
            popularity: popularity.collect(),
            stop: Cell::new(false),
            active: Cell::new(0),
            written: Cell::new(None),
            cluster: cluster.clone(),
        })
    }
    /// Starts the clients; they run until [`Workload::stop`].
    pub fn start(self: &Rc<Self>) {
        self.forge();
        let mut prng = Prng::stream(self.cluster.plan.seed, "clients");
        for _ in 0..self.plan.clients {
            let (workload, prng) = (self.clone(), prng.fork());
            self.active.set(self.active.get() + 1);
            self.cluster.executor.spawn(Life::OUTSIDE, async move {
                let keys = workload.plan.keys;
                let mut client = Client { prng, old: vec![None; keys], written: vec![None; keys] };
                while !workload.stop.get() {
                    let think = client.prng.exponential(workload.plan.think);
                    workload.cluster.executor.sleep(think).await;
                    workload.step(&mut client).await;
                }
                workload.active.set(workload.active.get() - 1);
            });
        }
    }
    /// The clients end with what they have in hand.
    pub fn stop(&self) {
        self.stop.set(true);
    }
    pub fn ended(&self) -> bool {
        self.active.get() == 0
    }

    async fn step(&self, client: &mut Client) {
        let key = self.draw_key(&mut client.prng);
        let mut draw = client.prng.below(self.plan.mix.iter().sum());
        let mut choice = 0;
        while draw >= self.plan.mix[choice] {
            draw -= self.plan.mix[choice];
            choice += 1;
        }
        let slot = key as usize;
        match choice {
            0 => drop(self.read(client, key).await),
            1 => {
                if let Some(memory) = self.read(client, key).await {
                    self.put(client, key, Some(memory)).await;
                }
            }
            2 => self.put(client, key, None).await,
            3 => {
                let memory = client.old[slot].clone();
                self.put(client, key, memory).await;
            }
            4 => {
                let memory = client.written[slot].clone();
                self.put(client, key, memory).await;
            }
            5 => {
                if let Some(memory) = self.read(client, key).await {
                    self.delete(client, key, Some(memory)).await;
                }
            }
            // A blind delete excuses every loss before it: only some keys see any.
            _ if key % 4 == 3 => self.delete(client, key, None).await,
            _ => drop(self.read(client, key).await),
        }
    }
    fn draw_key(&self, prng: &mut Prng) -> u32 {
        if let Some(key) = self.written.get()
            && self.plan.follow > 0.0
            && prng.chance(self.plan.follow)
        {
            return key;
        }
        let total = self.popularity.last().copied().unwrap_or(0.0);
        let at = prng.unit() * total;
        self.popularity.partition_point(|p| *p < at).min(self.popularity.len() - 1) as u32
    }

    // ---- operations --------------------------------------------------------------------------------------------

    async fn read(&self, client: &mut Client, key: u32) -> Option<Memory> {
        let consistency = self.draw_consistency(client, false);
        let (node, shard) = self.draw_shard(client, key);
        let slot = key as usize;
        let known = client.old[slot].as_ref().or(client.written[slot].as_ref());
        // Whoever has seen something wants to be shown no less.
        let context = if client.prng.chance(0.3) { known.map(|memory| memory.context.clone()) } else { None };
        let request = Request {
            key: self.history.borrow().key(key).clone(),
            operation: Operation::Get { context: context.clone() },
            consistency,
            deadline: Instant::ZERO,
        };
        let quorum = self.quorum(consistency, self.cluster.plan.r);
        let Quorum { needed, strict } = quorum;
        // Stand-ins may answer a sloppy read: it may miss what home replicas know.
        let judged = strict || self.history.borrow().has_table(key);
        let floor = if judged { self.history.borrow().floor(key, needed) } else { Floor::default() };
        let everywhere = self.history.borrow().is_everywhere(key);
        // What is read at all replicas is read at home.
        let at_home = consistency.level == Some(Level::All) && consistency.sloppy.is_none();
        let asked = Quorum { strict: strict || at_home, ..quorum };
        let end = self.call(client, node, shard, request, asked).await;
        let CallEnd::Answered(Ok(Answer::Got(siblings))) = end else {
            self.counts.borrow_mut().failures += 1;
            if let (CallEnd::Answered(Err(failure)), Some(context)) = (&end, &context)
                && failure.code == ErrorCode::NotCovered
            {
                self.judge(self.history.borrow().check_not_covered(key, context, &floor));
            }
            return None;
        };
        if let Some(context) = &context {
            self.judge(self.history.borrow().check_seen(key, context, &floor, &siblings));
        }
        if everywhere && siblings.head.is_empty() {
            let text = format!(
                "{:?} holds nothing, though all home replicas have a write of it",
                self.history.borrow().key(key)
            );
            self.cluster.violate(checker::Invariant::I6, text);
        }
        let seen = self.observe(key, &floor, &siblings)?;
        let memory = Memory { context: siblings.head.clock.clone().into(), seen };
        // Kept for long, so that writers on old contexts are far behind.
        let slot = &mut client.old[key as usize];
        if slot.is_none() || client.prng.chance(0.3) {
            *slot = Some(memory.clone());
        }
        Some(memory)
    }
    fn judge(&self, verdict: checker::Verdict) {
        if let Err((invariant, text)) = verdict {
            self.cluster.violate(invariant, text);
        }
    }
    fn observe(&self, key: u32, floor: &Floor, siblings: &Siblings) -> Option<Seen> {
        let mut history = self.history.borrow_mut();
        history.traces.take(&mut self.cluster.traces.borrow_mut());
        let observed = history.observe(key, siblings);
        let observed = observed.and_then(|seen| history.check_floor(key, floor, siblings).map(|()| seen));
        drop(history);
        match observed {
            Ok(seen) => Some(seen),
            Err((invariant, text)) => {
                self.cluster.violate(invariant, text);
                None
            }
        }
    }
    async fn put(&self, client: &mut Client, key: u32, memory: Option<Memory>) {
        let context = memory.as_ref().map(|m| m.context.clone());
        let memory = memory.unwrap_or_default();
        let id = self.begin(Kind::Put, key, &memory);
        let value = checker::make_value(key, id, self.draw_value_bytes(&mut client.prng));
        let operation = Operation::Put { context, value, write_id: id.write_id() };
        if let Some(context) = self.write(client, key, id, operation).await {
            let dot = written_dot(&memory.context, &context);
            let seen = memory.seen.iter().copied().chain([(id, dot)]).collect();
            client.written[key as usize] = Some(Memory { context, seen });
        }
    }
    async fn delete(&self, client: &mut Client, key: u32, memory: Option<Memory>) {
        let context = memory.as_ref().map(|m| m.context.clone());
        let kind = if memory.is_some() { Kind::Delete } else { Kind::BlindDelete };
        let id = self.begin(kind, key, &memory.unwrap_or_default());
        let operation = Operation::Delete { context, write_id: id.write_id() };
        self.write(client, key, id, operation).await;
    }
    fn begin(&self, kind: Kind, key: u32, memory: &Memory) -> EventId {
        let now = self.cluster.executor.now();
        self.history.borrow_mut().begin(now, kind, key, memory.seen.clone(), memory.context.clone())
    }
    /// Sends a write, again if need be, until its outcome is known or patience ends. Gives the context of an
    /// acknowledged one.
    async fn write(&self, client: &mut Client, key: u32, id: EventId, operation: Operation) -> Option<Context> {
        self.written.set(Some(key));
        let mut end = End::NotApplied;
        let sent = match &operation {
            Operation::Put { context, .. } | Operation::Delete { context, .. } => context.clone().unwrap_or_default(),
            Operation::Get { .. } => Context::default(),
        };
        for attempt in 0..ATTEMPTS_MAX {
            self.history.borrow_mut().attempt(id);
            let consistency = self.draw_consistency(client, true);
            let (node, shard) = self.draw_shard(client, key);
            let request = Request {
                key: self.history.borrow().key(key).clone(),
                operation: operation.clone(),
                consistency,
                deadline: Instant::ZERO,
            };
            let quorum = self.quorum(consistency, self.cluster.plan.w);
            let answer = self.call(client, node, shard, request, quorum).await;
            if let CallEnd::Answered(Ok(Answer::Written(context))) = answer {
                self.finish(id, End::Acknowledged, Some(&context));
                let verdict = self.history.borrow_mut().acknowledge(id, quorum, &sent, &context);
                if let Err((invariant, text)) = verdict {
                    self.cluster.violate(invariant, text);
                }
                return Some(context);
            }
            // One attempt of unknown outcome makes the whole write unknown.
            if outcome_of(&answer) == Outcome::Unknown {
                end = End::Unknown;
                self.history.borrow_mut().linger(id);
            }
            self.counts.borrow_mut().failures += 1;
            let again = match &answer {
                CallEnd::Answered(Err(failure)) => worth_a_retry(failure),
                _ => true,
            };
            if !again || attempt + 1 == ATTEMPTS_MAX || !client.prng.chance(self.plan.retry) {
                break;
            }
            self.counts.borrow_mut().retries += 1;
        }
        self.finish(id, end, None);
        None
    }
    fn finish(&self, id: EventId, end: End, answer: Option<&Context>) {
        self.history.borrow_mut().finish(self.cluster.executor.now(), id, end, answer);
    }

    async fn call(&self, client: &mut Client, node: usize, shard: u16, request: Request, quorum: Quorum) -> CallEnd {
        let timeout = client.prng.duration(self.plan.timeout_min, self.plan.timeout_max);
        self.counts.borrow_mut().operations += 1;
        let (key, is_write) = (request.key.clone(), request.operation.is_write());
        let write_id = request.operation.write_id();
        let started = self.cluster.executor.now();
        let end = self.cluster.call(node, shard, request, timeout).await;
        match &end {
            CallEnd::Refused => self.counts.borrow_mut().refused += 1,
            CallEnd::Answered(Err(failure)) => {
                self.check_failure(&key, failure.code, &failure.detail);
                let superseded = write_id.is_some_and(|id| self.history.borrow().is_superseded(id));
                let asked = Asked { key: &key, node, started, timeout, is_write, quorum, superseded };
                self.cluster.judge_failure(&asked, failure);
            }
            _ => {}
        }
        end
    }
    /// Failures that no fault of the plan explains.
    fn check_failure(&self, key: &Key, code: ErrorCode, detail: &str) {
        let faults = &self.cluster.plan.faults;
        let sound = faults.unsound.is_none() && faults.disk_error_every.is_zero();
        if code == ErrorCode::Damaged && !sound {
            self.cluster.excuse(|e| e.damaged_answers += 1);
        }
        let damage = code == ErrorCode::Damaged && sound;
        if damage || matches!(code, ErrorCode::BadRequest | ErrorCode::TooLarge | ErrorCode::WriteIdReused) {
            self.cluster.violate(checker::Invariant::Alive, format!("{key:?}: {}: {detail}", code.name()));
        }
    }

    // ---- draws -------------------------------------------------------------------------------------------------

    /// Mostly the shard that owns the key on some node, sometimes any.
    fn draw_shard(&self, client: &mut Client, key: u32) -> (usize, u16) {
        let node = client.prng.index(self.cluster.node_count());
        let any = client.prng.below(u64::from(self.cluster.shard_count(node))) as u16;
        if client.prng.chance(0.3) {
            return (node, any);
        }
        let token = self.history.borrow().key(key).token();
        let known = (0..self.cluster.node_count()).find_map(|n| self.cluster.handle(n, 0));
        let Some(ring) = known.map(|h| h.ring()) else { return (node, any) };
        let homes = ring.walk(token, usize::from(self.cluster.plan.n));
        let home =
            client.prng.pick(&homes).and_then(|id| Some((self.cluster.index_of(*id)?, ring.address(*id, token)?)));
        home.map_or((node, any), |(index, address)| (index, address.shard.0))
    }
    fn draw_consistency(&self, client: &mut Client, is_write: bool) -> Consistency {
        if !client.prng.chance(self.plan.override_level) {
            return Consistency::default();
        }
        let least = if is_write { usize::from(self.plan.writes_min) } else { 1 };
        let levels = [Level::One, Level::Quorum, Level::All].map(|level| {
            let enough = level.needed(usize::from(self.cluster.plan.n)) >= least;
            if enough { level } else { Level::All }
        });
        let sloppy = if client.prng.chance(0.2) { Some(client.prng.coin()) } else { None };
        Consistency { level: client.prng.pick(&levels).copied(), sloppy }
    }
    /// What a request asks for, of a table with this R or W.
    fn quorum(&self, consistency: Consistency, table: u8) -> Quorum {
        let plan = &self.cluster.plan;
        let needed = consistency.level.map_or(usize::from(table), |level| level.needed(usize::from(plan.n)));
        Quorum { needed, strict: !consistency.sloppy.unwrap_or(plan.sloppy) }
    }
    fn draw_value_bytes(&self, prng: &mut Prng) -> usize {
        // Squared: most are small.
        let share = prng.unit();
        (share * share * self.plan.value_bytes_max as f64) as usize
    }
}

fn outcome_of(answer: &CallEnd) -> Outcome {
    match answer {
        CallEnd::Refused => Outcome::NotApplied,
        CallEnd::Answered(Err(failure)) => failure.outcome,
        CallEnd::Answered(Ok(_)) | CallEnd::Broken | CallEnd::Silent => Outcome::Unknown,
    }
}

/// Keys of many lengths and bytes; the index makes them distinct.
fn make_key(table: Option<&str>, index: usize, prng: &mut Prng) -> Key {
    let prefix = table.map(|name| format!("{name}:")).unwrap_or_default();
    let mut bytes = format!("{prefix}k{index}").into_bytes();
    if prng.chance(0.2) {
        let (start, tail) = (bytes.len(), prng.below(60));
        bytes.extend((0..tail).map(|_| prng.below(256) as u8));
        // Not the name of another key: `k3` and a tail of `4` would be `k34`.
        if let Some(first) = bytes.get_mut(start).filter(|byte| byte.is_ascii_digit()) {
            *first = b'/';
        }
    }
    match Key::new(bytes) {
        Ok(key) => key,
        Err(_) => unreachable!("a key of 2 to 80 bytes is valid"),
    }
}

/// Whether an answer is a success, for checks after healing.
pub fn got(response: &Response) -> Option<&Siblings> {
    match response {
        Ok(Answer::Got(siblings)) => Some(siblings),
        _ => None,
    }
}
