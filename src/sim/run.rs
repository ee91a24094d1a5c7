//! One run from its seed to its verdict: form the cluster, load it under faults, heal it, and see that all that was
//! promised holds.

use super::{
    checker::{Invariant, Violation},
    cluster::{Cluster, WALL_BEGIN},
    counts::FaultCounts,
    coverage::Coverage,
    disk::DiskCounts,
    excuses::Excuses,
    executor::{Executor, Life},
    faults::Faults,
    looks::Looks,
    operator::Operator,
    plan::Plan,
    sockets::CallEnd,
    trace::Sink,
    workload::{ClientCounts, Workload},
};
use crate::{
    driver::core::CoreStats,
    engine::{error::EngineError, types::Want},
    protocol::{
        message::{Answer, Operation, Request},
        replica::keys::data_key,
        versions::{Head, Siblings},
    },
    types::{Conflict, Consistency, ErrorCode, Instant, Key, Level, MemberView, SliceId},
};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    panic::{self, AssertUnwindSafe},
    rc::Rc,
    time::Duration,
};

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Report {
    pub seed: u64,
    pub hash: u64,
    pub events: u64,
    pub clients: ClientCounts,
    pub writes: usize,
    /// Acknowledged, not applied, unknown.
    pub outcomes: [usize; 3],
    pub reads: u64,
    pub values_read: u64,
    pub excuses: Excuses,
    /// Keys whose replicas hints alone had not made equal: repair or reads had to.
    pub unequal_before_reads: usize,
    pub faults: FaultCounts,
    pub coverage: Coverage,
    pub disk: DiskCounts,
    pub virtual_time: Duration,
    /// The time from healing until all replicas were equal.
    pub heal_time: Duration,
    pub violations: Vec<Violation>,
}
impl Report {
    pub fn ok(&self) -> bool {
        self.violations.is_empty()
    }
}

/// Time in which a new cluster without faults must form.
const FORM_MAX: Duration = Duration::from_secs(60);
/// How often the convergence of the cluster is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Reads at once after healing.
const READERS: usize = 16;
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the background writes that a read at all replicas causes.
const REPAIR_PAUSE: Duration = Duration::from_secs(3);

/// Time in which what is in hand ends, when nothing comes after it.
const IDLE_MAX: Duration = Duration::from_secs(15);

/// Runs a plan. `sink` takes the lines of a printed trace.
pub fn run(plan: Plan, sink: Option<Sink>) -> Report {
    let cluster = Cluster::new(plan);
    if let Some(sink) = sink {
        cluster.trace.print_to(sink);
    }
    let run = Run { workload: Workload::new(&cluster), cluster, unequal: Cell::new(0) };
    let started = run.cluster.executor.now();
    let mut heal_time = Duration::ZERO;
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
        if run.form() {
            run.load();
            heal_time = run.heal();
        }
    }));
    if let Err(panic) = outcome {
        let words = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        run.cluster.violate(Invariant::Alive, format!("a node panicked: {}", words.unwrap_or("without words")));
    }
    let report = run.report(started, heal_time);
    run.cluster.shut_down();
    report
}

struct Run {
    cluster: Rc<Cluster>,
    workload: Rc<Workload>,
    unequal: Cell<usize>,
}

impl Run {
    fn executor(&self) -> &Executor {
        &self.cluster.executor
    }
    fn failed(&self) -> bool {
        if self.executor().spins() && self.cluster.violations.borrow().is_empty() {
            self.cluster.violate(Invariant::I11, "tasks wake each other for ever while no time passes");
        }
        !self.cluster.violations.borrow().is_empty()
    }
    /// Lets time pass until the condition holds, looking at it now and then; false when it does not by then.
    fn wait(&self, limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
        let end = self.executor().now() + limit;
        while self.executor().now() < end {
            if condition() {
                return true;
            }
            if self.failed() {
                return false;
            }
            self.executor().run_for(LOOK_EVERY);
        }
        condition()
    }

    /// Starts all nodes, the first alone and the others to join it, on a sound network.
    fn form(&self) -> bool {
        for node in 0..self.cluster.node_count() {
            self.cluster.start(node);
            self.executor().run_for(Duration::from_millis(200));
        }
        let formed = self.wait(FORM_MAX, || self.why_not_whole().is_none()) && {
            self.cluster.make_table();
            self.wait(FORM_MAX, || self.all_know_the_table())
        };
        self.cluster.start_outsider();
        if !formed && !self.failed() {
            let reason = self.why_not_whole().unwrap_or_else(|| "a table is not known everywhere".to_string());
            self.cluster.violate(Invariant::Converge, format!("the cluster does not form: {reason}"));
        }
        formed
    }
    /// Faults and clients together, for the duration of the plan; then the clients finish.
    fn load(&self) {
        let looks = Looks::start(&self.cluster);
        let faults = Faults::start(&self.cluster);
        let operator = Operator::start(&self.cluster, &self.workload);
        self.workload.start();
        let end = self.executor().now() + self.cluster.plan.duration;
        self.executor().run_while(end, || !self.failed());
        self.workload.stop();
        operator.stop();
        faults.heal();
        let patience = self.cluster.plan.workload.timeout_max * 10;
        let ended = self.wait(patience, || self.workload.ended());
        if !ended && !self.failed() {
            self.cluster.violate(Invariant::I11, "clients still wait long after their deadlines");
        }
        let known = self.wait(self.cluster.plan.heal_max, || {
            start_the_ended(&self.cluster);
            operator.ended()
        });
        if !known && !self.failed() {
            operator.complain();
        }
        looks.stop();
    }
    /// After all faults have ended: the cluster becomes whole, hints drain, reading all keys makes equal the replicas
    /// that hints alone could not, and the history is judged.
    fn heal(&self) -> Duration {
        let start = self.executor().now();
        let end = start + self.cluster.plan.heal_max;
        // Messages of a node's former life that were held back, and connections to it that nobody has missed yet, are
        // the last that faults can do.
        let last_arrival = self.cluster.last_arrival();
        if self.failed() {
            return Duration::ZERO;
        }
        self.become_whole();
        // What arrives late may owe hints of its own, and set nodes apart for a moment.
        let drained = self.drain(end) && {
            self.executor().run_for(last_arrival.since(self.executor().now()));
            self.cluster.miss_the_dead();
            // A disk's error may end a node at any time still, once.
            (0..self.cluster.node_count()).any(|_| {
                self.become_whole();
                self.drain(end) && self.why_not_whole().is_none()
            })
        };
        if !drained && !self.failed() {
            self.note_stats();
            self.cluster.violate(Invariant::I5, format!("{} hints and marked ranges do not drain", self.hints()));
        }
        if self.failed() {
            return Duration::ZERO;
        }
        let unequal = self.unequal_keys();
        self.unequal.set(unequal.len());
        // A drop ends hints of its table, and who has missed it has other records until a read.
        if self.cluster.plan.crash_free() && self.cluster.plan.tables.count == 0 {
            for (text, _) in unequal.into_iter().filter(|(_, behind)| *behind) {
                self.cluster.violate(Invariant::I5, format!("no node has ended, and hints left {text}"));
            }
        }
        self.wait_for_repair();
        self.read_all_keys();
        self.executor().run_for(REPAIR_PAUSE);
        for (text, _) in self.unequal_keys() {
            if self.is_in_doubt(&text) {
                self.cluster.excuse(|e| e.unequal_in_doubt += 1);
            } else {
                self.cluster.violate(Invariant::I5, text);
            }
        }
        self.expect_idle();
        let healed = self.executor().now().since(start);
        if !self.failed() {
            self.judge_all_keys();
        }
        healed
    }

    fn become_whole(&self) {
        let whole = self.wait(self.cluster.plan.heal_max, || {
            start_the_ended(&self.cluster);
            self.why_not_whole().is_none()
        });
        if let Some(reason) = self.why_not_whole().filter(|_| !whole) {
            self.cluster.violate(Invariant::Converge, format!("the cluster does not heal: {reason}"));
        }
    }

    fn all_know_the_table(&self) -> bool {
        let shards = |node| (0..self.cluster.shard_count(node)).map(move |shard| (node, shard));
        (0..self.cluster.node_count()).flat_map(shards).all(|(node, shard)| {
            self.cluster.handle(node, shard).is_some_and(|handle| self.cluster.knows_table(&handle))
        })
    }
    /// What keeps the cluster from being whole: every node up, every shard sees every node up, no connection is broken.
    fn why_not_whole(&self) -> Option<String> {
        let count = self.cluster.node_count();
        let (mut ring, mut clusters) = (None, None);
        for node in 0..count {
            if !self.cluster.listening(node) {
                return Some(format!("node {node} does not listen"));
            }
            for shard in 0..self.cluster.shard_count(node) {
                let handle = self.cluster.handle(node, shard)?;
                if !handle.ready() {
                    return Some(format!("{node}/{shard} is not ready"));
                }
                if handle.cluster().is_none() || clusters.is_some_and(|known| known != handle.cluster()) {
                    return Some(format!("{node}/{shard} is of cluster {}, another one", handle.cluster()));
                }
                clusters = Some(handle.cluster());
                if ring.is_some_and(|r| r != handle.ring().digest()) {
                    return Some(format!("{node}/{shard} has another ring than the first shard"));
                }
                ring = Some(handle.ring().digest());
                let up = |(_, view, _): &(_, MemberView, f64)| *view == MemberView::Up;
                let seen = handle.members().iter().filter(|m| up(m)).count();
                if seen != count || handle.ring().node_count() != count {
                    let odd = handle
                        .members()
                        .into_iter()
                        .find(|m| !up(m))
                        .map(|(m, view, _)| (self.cluster.index_of(m.id), view));
                    return Some(format!("{node}/{shard} sees {seen} of {count} nodes up, and {odd:?}"));
                }
            }
        }
        let pairs = (0..count).flat_map(|from| (0..count).map(move |to| (from, to))).filter(|(from, to)| from != to);
        if let Some((from, to)) = pairs.into_iter().find(|(from, to)| self.cluster.is_link_ill(*from, *to)) {
            return Some(format!("a connection from node {from} to node {to} is broken"));
        }
        None
    }
    /// Into a printed trace: what every shard counts, where something does not come to its end.
    fn note_stats(&self) {
        for node in 0..self.cluster.node_count() {
            for shard in 0..self.cluster.shard_count(node) {
                let stats = self.cluster.handle(node, shard).map(|handle| handle.stats());
                self.cluster.note(31, 0, || format!("{node}/{shard} {stats:?}"));
            }
        }
    }
    /// Waits until nothing is in hand anywhere and no hint is left.
    fn drain(&self, end: Instant) -> bool {
        let idle = || self.cluster.handles().iter().all(|handle| handle.is_idle());
        !self.failed() && self.wait(end.since(self.executor().now()), || idle() && self.hints() == 0)
    }
    /// Hints that wait, and ranges that are marked. A range that damage does not let be walked stays marked; and what
    /// is owed to a record that names a lost value, or to a slice that is set aside, waits for a new disk.
    fn hints(&self) -> u64 {
        let stats: Vec<CoreStats> = self.cluster.handles().iter().map(|handle| handle.stats()).collect();
        let rots = self.cluster.plan.faults.unsound.is_some();
        let lost = stats.iter().any(|s| s.engine.damaged_reads > 0 && s.shard.rebuilds_refused > 0);
        let of = |stats: CoreStats| {
            let damaged = rots && stats.engine.damaged_places + stats.engine.damaged_reads > 0;
            stats.shard.hints_pending + if damaged { 0 } else { stats.shard.ranges_marked }
        };
        let owed = stats.into_iter().map(of).sum();
        if rots && owed > 0 && (lost || self.any_slice_is_aside()) {
            self.cluster.excuse(|e| e.owed_and_lost_to_rot += 1);
            return 0;
        }
        owed
    }

    /// Whether a difference is that of the node whose medium is unsound, and slices of it are in doubt.
    fn is_in_doubt(&self, difference: &str) -> bool {
        let Some(node) = self.cluster.plan.faults.unsound else { return false };
        let doubts = |shard| {
            let handle = self.cluster.handle(node, shard);
            handle.is_some_and(|handle| handle.stats().shard.repair.slices_doubted > 0)
        };
        difference.contains(&format!("node {node} holds")) && (0..self.cluster.shard_count(node)).any(doubts)
    }
    fn any_slice_is_aside(&self) -> bool {
        let slices = || (0..self.cluster.plan.slices).map(SliceId);
        self.cluster.handles().iter().any(|handle| slices().any(|slice| handle.engine().is_aside(slice)))
    }

    /// After two passes all replicas are equal without a read, and the next pass sends no value. On an unsound medium
    /// arcs that cannot be walked stay as they are.
    fn wait_for_repair(&self) {
        let plan = &self.cluster.plan;
        if plan.repair_pass.is_zero() || plan.faults.unsound.is_some() || self.failed() {
            return;
        }
        self.executor().run_for(plan.repair_pass * 2 + REPAIR_PAUSE);
        for (text, _) in self.unequal_keys() {
            self.cluster.violate(Invariant::I5, format!("two passes of repair left {text}"));
        }
        let sent = || self.cluster.handles().iter().map(|handle| handle.stats().shard.repair.values_sent).sum::<u64>();
        let before = sent();
        self.executor().run_for(plan.repair_pass);
        let more = sent() - before;
        if more > 0 {
            self.cluster.violate(Invariant::I5, format!("repair sent {more} values between equal replicas"));
        }
        for handle in self.cluster.handles() {
            let oldest = handle.stats().shard.repair.oldest;
            if oldest > plan.repair_pass * 2 {
                let text = format!("{} has not compared an arc for {oldest:?}", handle.address());
                self.cluster.violate(Invariant::I5, text);
            }
        }
    }

    /// THE STEP *reading all keys*: one read of each at all its replicas, which writes back what it finds stale: in
    /// runs without repair this is what makes up for hints that died with their coordinator. With an unsound medium not
    /// all replicas can be read: each node is asked then, for a quorum.
    fn read_all_keys(&self) {
        let keys: VecDeque<(u32, Key)> =
            self.workload.history.borrow().keys().map(|(index, key)| (index, key.clone())).collect();
        let queue = Rc::new(RefCell::new(keys));
        // Each read is in hand at two cores at least, and none should be refused for it.
        let readers = (self.cluster.plan.bounds.requests_in_flight_max / 2).clamp(1, READERS);
        let active = Rc::new(Cell::new(readers));
        for reader in 0..readers {
            let (cluster, workload) = (self.cluster.clone(), self.workload.clone());
            let (queue, active) = (queue.clone(), active.clone());
            self.executor().spawn(Life::OUTSIDE, async move {
                loop {
                    let Some((index, key)) = queue.borrow_mut().pop_front() else { break };
                    if cluster.plan.faults.unsound.is_some() {
                        read_at_each(&cluster, &key).await;
                        continue;
                    }
                    match read_everywhere(&cluster, &key, reader + index as usize).await {
                        Ok(siblings) => judge(&cluster, &workload, index, &siblings, false),
                        Err(why) => {
                            let text = format!("{key:?} cannot be read at all replicas after healing: {why}");
                            cluster.violate(Invariant::Converge, text);
                        }
                    }
                }
                active.set(active.get() - 1);
            });
        }
        if !self.wait(self.cluster.plan.heal_max, || active.get() == 0) && !self.failed() {
            self.cluster.violate(Invariant::I11, "reads after healing do not end");
        }
    }
    /// Holds what the replicas have agreed on against the history.
    fn judge_all_keys(&self) {
        self.workload.history.borrow_mut().wall_end = WALL_BEGIN + self.executor().now().0;
        let keys: Vec<(u32, Key)> = self.workload.history.borrow().keys().map(|(i, k)| (i, k.clone())).collect();
        let done = Rc::new(Cell::new(false));
        let (cluster, workload, finished) = (self.cluster.clone(), self.workload.clone(), done.clone());
        self.executor().spawn(Life::OUTSIDE, async move {
            for (index, key) in keys {
                match gather(&cluster, &key, Want::Full).await {
                    Ok(states) => {
                        let tables = cluster.handle(0, 0).map(|handle| handle.tables());
                        let rule = tables.map_or(Conflict::Siblings, |tables| tables.of(key.as_bytes()).conflict);
                        let join = |all: Siblings, (_, state): &(usize, Siblings)| all.join(state, rule);
                        let all = states.iter().fold(Siblings::default(), join);
                        judge(&cluster, &workload, index, &all.into_shown(), true);
                    }
                    Err(why) => cluster.violate(Invariant::Converge, format!("{key:?}: {why}")),
                }
            }
            finished.set(true);
        });
        if !self.wait(self.cluster.plan.heal_max, || done.get()) && !self.failed() {
            self.cluster.violate(Invariant::I11, "engines do not answer after healing");
        }
    }
    /// Nothing stays in hand when nobody asks for anything any more: no request, latch or fetch, and no hint of no
    /// bytes.
    fn expect_idle(&self) {
        let busy = || self.cluster.handles().into_iter().find(|handle| !handle.is_idle());
        if !self.wait(IDLE_MAX, || busy().is_none())
            && let Some(handle) = busy()
        {
            let text = format!("{} still has work in hand: {:?}", handle.address(), handle.stats().shard);
            self.cluster.violate(Invariant::I12, text);
        }
        for handle in self.cluster.handles() {
            let stats = handle.stats().shard;
            if stats.hints_pending == 0 && stats.hints_pending_bytes != 0 {
                let text = format!("{} counts {} bytes of no hints", handle.address(), stats.hints_pending_bytes);
                self.cluster.violate(Invariant::I12, text);
            }
        }
    }
    /// The keys whose home replicas do not all hold the same state, with what they hold; and whether one knows less
    /// than another. Two that know the same may still differ in a write that was sent twice, of which one has forgotten
    /// the trace.
    fn unequal_keys(&self) -> Vec<(String, bool)> {
        let keys: Vec<Key> = self.workload.history.borrow().keys().map(|(_, k)| k.clone()).collect();
        let done = Rc::new(Cell::new(false));
        let unequal = Rc::new(RefCell::new(Vec::new()));
        let (cluster, finished, found) = (self.cluster.clone(), done.clone(), unequal.clone());
        self.executor().spawn(Life::OUTSIDE, async move {
            for key in keys {
                match compare(&cluster, &key).await {
                    Ok(None) => {}
                    Ok(Some((why, behind))) => found.borrow_mut().push((format!("{key:?}: {why}"), behind)),
                    Err(why) => found.borrow_mut().push((format!("{key:?}: {why}"), true)),
                }
            }
            finished.set(true);
        });
        if !self.wait(self.cluster.plan.heal_max, || done.get()) && !self.failed() {
            self.cluster.violate(Invariant::I11, "engines do not answer after healing");
        }
        unequal.take()
    }

    fn report(&self, started: Instant, heal_time: Duration) -> Report {
        let history = self.workload.history.borrow();
        let mut excuses = *self.cluster.excuses.borrow();
        excuses.add(&history.excuses);
        let mut disk = DiskCounts::default();
        let mut faults = *self.cluster.counts.borrow();
        for node in 0..self.cluster.node_count() {
            let counts = self.cluster.disk(node).counts();
            disk.ios += counts.ios;
            disk.reads += counts.reads;
            disk.writes += counts.writes;
            disk.syncs += counts.syncs;
            disk.bytes_written += counts.bytes_written;
            disk.errors += counts.errors;
            for shard in 0..self.cluster.shard_count(node) {
                let Some(handle) = self.cluster.handle(node, shard) else { continue };
                let stats = handle.stats().shard;
                faults.hints_dropped += stats.hints_dropped;
                faults.ranges_swept += stats.ranges_swept;
            }
            faults.rotten_pages += counts.bit_flips;
            faults.misdirected_writes += counts.misdirected_writes;
            faults.vanished_writes += counts.vanished_writes;
        }
        Report {
            seed: self.cluster.plan.seed,
            hash: self.cluster.trace.hash(),
            events: self.cluster.trace.events(),
            clients: *self.workload.counts.borrow(),
            writes: history.len(),
            outcomes: history.outcomes(),
            reads: history.reads,
            values_read: history.values_read,
            excuses,
            unequal_before_reads: self.unequal.get(),
            faults,
            coverage: *self.cluster.coverage.borrow(),
            disk,
            virtual_time: self.executor().now().since(started),
            heal_time,
            violations: self.cluster.violations.borrow().clone(),
        }
    }
}

/// An error that a disk had drawn before the faults ended may end its node after them, and one that was asked to stop
/// before may do so after. On a sound disk no other does.
fn start_the_ended(cluster: &Rc<Cluster>) {
    let ended = (0..cluster.node_count()).filter(|node| !cluster.running(*node));
    ended.for_each(|node| cluster.start(node));
}

fn judge(cluster: &Cluster, workload: &Workload, index: u32, siblings: &Siblings, last: bool) {
    let mut history = workload.history.borrow_mut();
    history.traces.take(&mut cluster.traces.borrow_mut());
    let verdict = if last { history.check_final(index, siblings) } else { history.observe(index, siblings).map(drop) };
    drop(history);
    if let Err((invariant, text)) = verdict {
        cluster.violate(invariant, text);
    }
}

/// Reads a key at all of its replicas; tries a few nodes, since the first may still be reconnecting.
async fn read_everywhere(cluster: &Rc<Cluster>, key: &Key, first: usize) -> Result<Siblings, String> {
    let mut why = String::new();
    for attempt in 0..8 {
        let node = (first + attempt) % cluster.node_count();
        let request = Request {
            key: key.clone(),
            operation: Operation::Get { context: None },
            consistency: Consistency { level: Some(Level::All), sloppy: Some(false) },
            deadline: Instant::ZERO,
        };
        match cluster.call(node, 0, request, READ_TIMEOUT).await {
            CallEnd::Answered(Ok(Answer::Got(siblings))) => return Ok(siblings),
            other => why = format!("{other:?}"),
        }
        start_the_ended(cluster);
        cluster.executor.sleep(Duration::from_millis(500)).await;
    }
    Err(why)
}

/// Reads a key at a quorum, with each node as the coordinator if it can be.
async fn read_at_each(cluster: &Rc<Cluster>, key: &Key) {
    for node in 0..cluster.node_count() {
        let request = Request {
            key: key.clone(),
            operation: Operation::Get { context: None },
            consistency: Consistency { level: Some(Level::Quorum), sloppy: Some(false) },
            deadline: Instant::ZERO,
        };
        for _ in 0..8 {
            match cluster.call(node, 0, request.clone(), READ_TIMEOUT).await {
                CallEnd::Answered(Err(failure)) if failure.code == ErrorCode::Overloaded => {}
                _ => break,
            }
            cluster.executor.sleep(Duration::from_millis(500)).await;
        }
    }
}

/// What the engines of the home replicas hold of a key, with the node of each; what an unsound medium has damaged is
/// left out.
async fn gather(cluster: &Rc<Cluster>, key: &Key, want: Want) -> Result<Vec<(usize, Siblings)>, String> {
    let token = key.token();
    let ring = cluster.handle(0, 0).ok_or("node 0 does not run")?.ring();
    let mut states = Vec::new();
    for id in ring.walk(token, usize::from(cluster.plan.n)) {
        let (Some(node), Some(address)) = (cluster.index_of(id), ring.address(id, token)) else { continue };
        let handle = cluster.handle(node, address.shard.0).ok_or("a node does not run")?;
        let slice = ring.placement(id).map(|p| p.slice_of(token)).ok_or("a node is not in the ring")?;
        let record = match handle.engine().get(slice, &data_key(key), want).await {
            Err(EngineError::Damaged(_)) if cluster.plan.faults.unsound == Some(node) => {
                cluster.excuse(|e| e.copies_lost_to_rot += 1);
                continue;
            }
            record => record.map_err(|e| format!("node {node}: {e}"))?,
        };
        let state = match record {
            None => Siblings::default(),
            Some(record) => {
                let head = Head::decode(&record.head).map_err(|e| format!("node {node} holds a bad head: {e}"))?;
                Siblings { head, values: record.values }
            }
        };
        states.push((node, state));
    }
    Ok(states)
}

/// How the home replicas of a key differ, and whether one knows less than another.
async fn compare(cluster: &Rc<Cluster>, key: &Key) -> Result<Option<(String, bool)>, String> {
    // A head whose values the medium has lost cannot be made equal: nobody may have them.
    let want = if cluster.plan.faults.unsound.is_some() { Want::Full } else { Want::Head };
    let states = gather(cluster, key, want).await?;
    let Some(((first, expected), others)) = states.split_first() else { return Ok(None) };
    let other = others.iter().find(|(_, state)| !state.head.same_state(&expected.head));
    Ok(other.map(|(other, state)| {
        let (left, right) = (&expected.head, &state.head);
        let words =
            |head: &Head| format!("{:?} {:?}", head.clock, head.entries.iter().map(|e| e.dot).collect::<Vec<_>>());
        let text = format!("node {first} holds {}, node {other} holds {}", words(left), words(right));
        (text, left.clock != right.clock)
    }))
}
