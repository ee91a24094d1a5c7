//! One request from its first word to its answer: quorum put, quorum get, read repair, forwarding.
//!
//! The coordinator of a key is one of its home replicas; any other shard forwards. A put is stored here and sent to
//! all the other replicas at once, and answered at the W-th acknowledgement. A get reads the value here and the heads
//! elsewhere, and fetches values from another replica only when the heads differ.
//!
//! A replica that does not answer in time is replaced, and the caller is told who it was ([`Act::Late`]): if it turns
//! out to be away, all that waits for it is moved on at once ([`Coordinator::doubted`]). Reads that take longer than
//! most are hedged within a budget.
//!
//! The machine keeps one entry for each request in hand. It is told what happened (`begin`, `prepared`, `applied`,
//! `loaded`, `replicated`, `fetched`, `forwarded`, `unreachable`, `doubted`, `expire`) and says what is to be done as
//! [`Act`]s. It reads no clock; [`Coordinator::next_deadline`] says when it wants to be called.

mod forward;
mod get;
mod hedge;
pub mod plan;
mod put;
#[cfg(test)]
mod tests;

use forward::Before;
pub use forward::Route;
pub use plan::{Home, Plan};
pub use put::KNOWN_TO;

use crate::{
    limits::{FORWARD_LATE, FORWARD_PROBED, REPLICA_LATE, REQUEST_BYTES_IN_FLIGHT_MAX},
    protocol::{
        message::{ClientToken, Depth, Lane, Message, Operation, Purpose, Refusal, Request, Response},
        ring::{FixedMap, Nodes},
        versions::{Dot, Siblings},
    },
    types::{Address, Conflict, ErrorCode, Failure, Instant, Key, NodeId, Outcome, ShardBounds, TableWord},
};
use smallvec::SmallVec;
use std::{collections::BTreeSet, time::Duration};

/// Cores that take part in a request: a handful.
type Cores = SmallVec<[Address; 8]>;

/// The one that waits for the answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Asker {
    Client(ClientToken),
    /// A shard that forwarded.
    Shard {
        address: Address,
        exchange: u64,
        /// It has said by which word of the key's table, and takes newer word of it for an answer.
        takes_news: bool,
    },
}

/// The work that the coordinator asks for. The answer names the same `operation` number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Act {
    Send {
        to: Address,
        exchange: u64,
        deadline: Instant,
        message: Message,
    },
    /// Apply a client's write to the own copy; answered by `prepared`, then `applied`.
    Write {
        operation: u64,
        request: Request,
        /// The stamp that it came with.
        stamp: Option<Dot>,
        owed: Nodes,
    },
    /// Merge into the own copy, unless its table has been dropped since; nobody waits.
    Merge {
        key: Key,
        siblings: Siblings,
        word: TableWord,
    },
    /// Keep a marker hint for an absent owner; nobody waits.
    Owe {
        key: Key,
        owner: NodeId,
    },
    /// Read the own copy; answered by `loaded`.
    Load {
        operation: u64,
        key: Key,
        depth: Depth,
    },
    /// The own copy need not take this write any more, unless it has begun to.
    Abandon {
        operation: u64,
        key: Key,
    },
    Reply {
        asker: Asker,
        response: Response,
    },
    /// The core has not answered a request for [`REPLICA_LATE`].
    Late {
        core: Address,
    },
    /// The core has been passed a request and has not answered for [`FORWARD_PROBED`]: it is asked for a sign of life.
    Probe {
        core: Address,
    },
    /// A request that was begun by word of its table that is not the newest: begin it again.
    Again {
        asker: Asker,
        request: Request,
        /// The stamp that it came with, or was given since.
        stamp: Option<Dot>,
        /// The number of times that it had been passed from shard to shard when it came here.
        hops: u8,
    },
    /// The shard that has passed a request on is told the newest word of the key's table, and begins it again.
    TellNews {
        to: Address,
        exchange: u64,
        key: Key,
    },
    /// A replica says that it knows this fresh dot, and has no such write. `known`: see [`Refusal::KnownDot`].
    KnownDot {
        key: Key,
        dot: Dot,
        known: u64,
    },
}

enum Work {
    Put(Box<put::Put>),
    Get(Box<get::Get>),
    Forward(forward::Forward),
}

struct Op {
    asker: Asker,
    key: Key,
    bytes: usize,
    deadline: Instant,
    began: Instant,
    /// The time at which the timer of this operation fires.
    alarm: Instant,
    /// Whether the timer is the one that hedges a read, which fires before anything counts as late.
    hedges: bool,
    /// The way in which the request is passed on, once, when this node cannot do it: to the other home replicas.
    /// Whoever has forwarded it here is told why it was not done and asks them by itself; only where nothing can be
    /// told, because the disk says nothing, is it passed on once more.
    relay: Option<Box<Route>>,
    /// Whether the asker has its answer; what follows is repair and bookkeeping.
    replied: bool,
    /// The request as it came, with the stamp that it had and the shards that it had passed.
    request: Request,
    stamp: Option<Dot>,
    hops: u8,
    work: Work,
}

impl Op {
    /// A request that has just been taken on, as it came. `hedges`: what its timer, at `alarm`, is for.
    fn new(
        now: Instant,
        asker: Asker,
        (request, stamp, hops): (Request, Option<Dot>, u8),
        (alarm, hedges): (Instant, bool),
        work: Work,
    ) -> Op {
        Op {
            asker,
            key: request.key.clone(),
            bytes: request.operation.bytes(),
            deadline: request.deadline,
            began: now,
            alarm,
            hedges,
            relay: None,
            replied: false,
            request,
            stamp,
            hops,
            work,
        }
    }
}

/// See the module.
pub struct Coordinator {
    me: Address,
    bounds: ShardBounds,
    ops: FixedMap<u64, Op>,
    alarms: BTreeSet<(Instant, u64)>,
    next: u64,
    bytes: usize,
    /// Requests in hand whose askers still wait.
    open: usize,
    /// Hedging of the gets coordinated here, and of those passed on.
    get_hedge: hedge::Hedge,
    forward_hedge: hedge::Hedge,
    pub counters: Counters,
}

/// Counters of what has happened since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    pub gets: u64,
    pub puts: u64,
    pub deletes: u64,
    pub forwards: u64,
    pub read_repairs: u64,
    pub hedges: u64,
    pub failures: u64,
    pub overloads: u64,
    /// Requests that another home replica coordinates because this one could not.
    pub passed_on: u64,
}

/// The exchange number of the `index`-th message of an operation.
fn exchange(operation: u64, index: usize) -> u64 {
    operation << 8 | index as u64
}

impl Coordinator {
    /// `first`: where the numbers of operations start, below 2^52 and different in each life: a late answer to the life
    /// before must not be taken for one to this.
    pub fn new(me: Address, first: u64) -> Coordinator {
        Coordinator {
            me,
            bounds: ShardBounds::default(),
            ops: FixedMap::default(),
            alarms: BTreeSet::new(),
            next: first,
            bytes: 0,
            open: 0,
            get_hedge: hedge::Hedge::default(),
            forward_hedge: hedge::Hedge::default(),
            counters: Counters::default(),
        }
    }
    pub fn with_bounds(self, bounds: ShardBounds) -> Coordinator {
        Coordinator { bounds, ..self }
    }
    /// Requests in hand, those already answered included.
    pub fn len(&self) -> usize {
        self.ops.len()
    }
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
    /// The key of a request in hand.
    pub fn key_of(&self, operation: u64) -> Option<&Key> {
        self.ops.get(&operation).map(|op| &op.key)
    }
    pub fn next_deadline(&self) -> Option<Instant> {
        self.alarms.first().map(|(at, _)| *at)
    }

    /// Coordinates a request for a key of which this shard is a home replica. `stamp`: of a write that another node has
    /// stamped. `hops`: from shard to shard so far.
    pub fn begin(
        &mut self,
        now: Instant,
        asker: Asker,
        (request, stamp, hops): (Request, Option<Dot>, u8),
        plan: Plan,
        out: &mut Vec<Act>,
    ) {
        let relay = relay(self.me, asker, (&request, stamp), hops, &plan);
        if let Err(failure) = self.admit(now, &request, &plan) {
            self.counters.failures += 1;
            out.push(Act::Reply { asker, response: Err(failure) });
            return;
        }
        match &request.operation {
            Operation::Get { .. } => self.counters.gets += 1,
            Operation::Put { .. } => self.counters.puts += 1,
            Operation::Delete { .. } => self.counters.deletes += 1,
        }
        let (id, deadline, again) = (self.next_id(), request.deadline, request.clone());
        let work = match &request.operation {
            Operation::Put { .. } | Operation::Delete { .. } => {
                Work::Put(Box::new(put::Put::begin(id, self.me, (request, stamp), plan, out)))
            }
            Operation::Get { context } => {
                let asked = (&request.key, context.as_ref());
                Work::Get(Box::new(get::Get::begin(id, self.me, asked, deadline, plan, out)))
            }
        };
        let hedge = if matches!(work, Work::Get(_)) { self.get_hedge.begin() } else { None };
        let alarm = deadline.min(now + hedge.unwrap_or(REPLICA_LATE));
        let op = Op::new(now, asker, (again, stamp, hops), (alarm, hedge.is_some()), work);
        self.insert(id, Op { relay, ..op });
    }
    /// Passes an operation on to another home replica, since this node cannot do it.
    fn pass_on(
        &mut self,
        now: Instant,
        asker: Asker,
        request: Request,
        route: Route,
        before: Before,
        out: &mut Vec<Act>,
    ) {
        self.counters.passed_on += 1;
        self.send_off(now, asker, request, route, Some(before), out);
    }

    /// Passes a request on to one of the targets of `route`; to the next one when it fails.
    pub fn forward(&mut self, now: Instant, asker: Asker, request: Request, route: Route, out: &mut Vec<Act>) {
        let overload = self.overload(&request).or_else(|| expired(now, request.deadline));
        if let Some(failure) = overload {
            out.push(Act::Reply { asker, response: Err(failure) });
            return;
        }
        self.counters.forwards += 1;
        self.send_off(now, asker, request, route, None, out);
    }
    fn send_off(
        &mut self,
        now: Instant,
        asker: Asker,
        request: Request,
        route: Route,
        before: Option<Before>,
        out: &mut Vec<Act>,
    ) {
        let (id, again) = (self.next_id(), request.clone());
        let (stamp, hops) = (route.stamp, route.hops.saturating_sub(1));
        match forward::Forward::begin(now, id, request, route, before, out) {
            Ok((work, alarm)) => {
                let hedge = if work.is_read() { self.forward_hedge.begin() } else { None };
                let timer = (hedge.map_or(alarm, |delay| alarm.min(now + delay)), hedge.is_some());
                self.insert(id, Op::new(now, asker, (again, stamp, hops), timer, Work::Forward(work)));
            }
            Err(failure) => out.push(Act::Reply { asker, response: Err(failure) }),
        }
    }

    fn admit(&mut self, now: Instant, request: &Request, plan: &Plan) -> Result<(), Failure> {
        if let Some(failure) = self.overload(request).or_else(|| expired(now, request.deadline)) {
            return Err(failure);
        }
        let reachable = plan.reachable();
        if reachable < plan.needed {
            let detail = format!("{} replicas must answer, {reachable} can be reached", plan.needed);
            let failure = Failure::new(ErrorCode::QuorumUnavailable, Outcome::NotApplied, detail);
            return Err(failure.counts(0, plan.needed));
        }
        Ok(())
    }
    fn overload(&mut self, request: &Request) -> Option<Failure> {
        // What has been answered waits for a slower replica and costs little more than its memory: a silent one may
        // not use up the places of those who still wait for an answer.
        let full = self.open >= self.bounds.requests_in_flight_max
            || self.ops.len() - self.open >= self.bounds.requests_answered_max
            || self.bytes + request.operation.bytes().max(1) > REQUEST_BYTES_IN_FLIGHT_MAX;
        full.then(|| {
            self.counters.overloads += 1;
            Failure::new(ErrorCode::Overloaded, Outcome::NotApplied, "too many requests in hand; try again later")
        })
    }
    fn next_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
    fn insert(&mut self, id: u64, op: Op) {
        self.alarms.insert((op.alarm, id));
        self.bytes += op.bytes;
        self.open += 1;
        self.ops.insert(id, op);
    }
    /// Values that a read has got and keeps until it ends.
    fn hold(&mut self, id: u64, bytes: usize) {
        if let Some(op) = self.ops.get_mut(&id) {
            op.bytes += bytes;
            self.bytes += bytes;
        }
    }
    fn remove(&mut self, id: u64) {
        if let Some(op) = self.ops.remove(&id) {
            self.alarms.remove(&(op.alarm, id));
            self.bytes -= op.bytes;
            self.open -= usize::from(!op.replied);
        }
    }

    // ---- what happened -----------------------------------------------------------------------------------------

    /// The own copy has minted the dot of this write, that of the entry `fresh` if it is a new one: send its state to
    /// the others.
    pub fn prepared(
        &mut self,
        now: Instant,
        operation: u64,
        siblings: Siblings,
        (context, fresh): (crate::protocol::versions::Context, Option<u16>),
        out: &mut Vec<Act>,
    ) {
        if let Some(op) = self.ops.get_mut(&operation)
            && let Work::Put(put) = &mut op.work
        {
            put.prepared(operation, &op.key, op.deadline, siblings, (context, fresh), out);
            // The others have been asked now, however long the own disk took.
            let alarm = op.deadline.min(now + REPLICA_LATE);
            self.rearm(operation, Some(alarm));
        }
    }
    /// The own copy is durable, or was refused (`failure` says how).
    pub fn applied(&mut self, now: Instant, operation: u64, result: Result<(), Failure>, out: &mut Vec<Act>) {
        self.step(now, operation, out, |op, _| match &mut op.work {
            Work::Put(put) => put.applied(result),
            Work::Get(_) | Work::Forward(_) => {}
        });
    }
    /// The own copy has been read; or what it has is in doubt.
    pub fn loaded(
        &mut self,
        now: Instant,
        operation: u64,
        (result, doubted): (Result<Siblings, Refusal>, bool),
        out: &mut Vec<Act>,
    ) {
        self.hold(operation, result.as_ref().map_or(0, Siblings::value_bytes));
        self.step(now, operation, out, |op, out| match &mut op.work {
            Work::Get(get) => get.loaded(operation, &op.key, op.deadline, (result, doubted), out),
            Work::Put(_) | Work::Forward(_) => {}
        });
    }
    /// An answer to message number `exchange`.
    pub fn answered(&mut self, now: Instant, exchange: u64, message: Message, out: &mut Vec<Act>) {
        let (operation, index) = (exchange >> 8, (exchange & 0xff) as usize);
        let mut alarm = None;
        if matches!(message, Message::Fetched(_)) {
            self.hold(operation, message.bytes());
        }
        self.step(now, operation, out, |op, out| match (&mut op.work, message) {
            (Work::Put(put), Message::Replicated(result)) => {
                put.replicated(operation, index, &op.key, op.deadline, result, out);
            }
            (Work::Get(get), Message::Fetched(result)) => {
                get.fetched(operation, index, &op.key, op.deadline, result, out);
            }
            (Work::Forward(forward), Message::Forwarded(response)) => {
                alarm = forward.forwarded(now, operation, index, response, out);
            }
            (Work::Forward(forward), Message::Fetched(result)) => {
                alarm = forward.fetched(now, operation, index, result, out);
            }
            _ => {}
        });
        self.rearm(operation, alarm);
    }
    /// The core that was asked by message number `exchange` has done nothing: it had newer word of the key's table;
    /// `word` is what this shard goes by now. What was begun by another is begun again, by the shard that has it from
    /// its client: that one alone knows whether the client has its answer. A write that is acknowledged is not: it
    /// would come to be of the table that the newer word is of, and go with it when that is dropped. Who has refused it
    /// is owed it as it is.
    pub fn outdated(&mut self, now: Instant, exchange: u64, word: TableWord, out: &mut Vec<Act>) {
        let operation = exchange >> 8;
        let Some(op) = self.ops.get(&operation) else { return };
        let (begun, refused) = match &op.work {
            Work::Put(put) => (put.word(), Message::Replicated(Err(Refusal::NotMine))),
            Work::Get(get) => (get.word(), Message::Fetched(Err(Refusal::NotMine))),
            Work::Forward(forward) => (forward.word(), Message::Fetched(Err(Refusal::NotMine))),
        };
        if op.replied || begun == word || now >= op.deadline {
            return self.answered(now, exchange, refused, out);
        }
        // What others may have of it already stays the same write.
        let stamp = match &op.work {
            Work::Put(put) => put.stamp().or(op.stamp),
            Work::Forward(forward) => forward.stamp(),
            Work::Get(_) => None,
        };
        let (asker, request, hops) = (op.asker, op.request.clone(), op.hops);
        self.remove(operation);
        out.push(match asker {
            Asker::Shard { address, exchange, takes_news: true } => {
                Act::TellNews { to: address, exchange, key: request.key }
            }
            Asker::Client(_) | Asker::Shard { .. } => Act::Again { asker, request, stamp, hops },
        });
    }
    /// A core cannot be reached over this lane: what was asked of it that way is not going to be answered.
    pub fn unreachable(&mut self, now: Instant, core: Address, lane: Lane, out: &mut Vec<Act>) {
        let mut ids: Vec<u64> = self.ops.iter().filter(|(_, op)| op.awaits(core)).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        for id in ids {
            let mut alarm = None;
            self.step(now, id, out, |op, out| match &mut op.work {
                Work::Put(put) => put.unreachable(id, &op.key, op.deadline, (core, lane), out),
                Work::Get(get) => get.unreachable(id, &op.key, op.deadline, (core, lane), out),
                Work::Forward(forward) => alarm = forward.unreachable(now, id, (core, lane), out),
            });
            self.rearm(id, alarm);
        }
    }
    /// A core lets requests wait and says nothing: what was asked of it is asked of another.
    pub fn doubted(&mut self, now: Instant, core: Address, out: &mut Vec<Act>) {
        let mut ids: Vec<u64> = self.ops.iter().filter(|(_, op)| op.awaits(core)).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        for id in ids {
            let mut alarm = None;
            self.step(now, id, out, |op, out| match &mut op.work {
                Work::Put(put) => drop(put.late(id, Some(core), &op.key, op.deadline, out)),
                Work::Get(get) => drop(get.late(id, Some(core), &op.key, op.deadline, out)),
                // If another has been asked since, that one is waited for.
                Work::Forward(forward) if forward.waits_for().last() == Some(core) => {
                    alarm = forward.late(now, id, out);
                }
                Work::Forward(_) => {}
            });
            self.rearm(id, alarm);
        }
    }
    /// Fires the timers that are due. `stalled`: the own disk answers no writes.
    pub fn expire(&mut self, now: Instant, stalled: bool, out: &mut Vec<Act>) {
        while let Some(&(at, id)) = self.alarms.first()
            && at <= now
        {
            let Some(op) = self.ops.get_mut(&id) else {
                self.alarms.pop_first();
                continue;
            };
            let deadline = op.deadline;
            if now >= deadline {
                self.time_out(id, out);
                continue;
            }
            if std::mem::take(&mut op.hedges) {
                self.hedge(now, id, out);
                continue;
            }
            if stalled
                && !op.replied
                && let Work::Put(put) = &op.work
                && put.awaits_own()
                && op.relay.is_some()
            {
                let detail = "the disk of this node answers no writes";
                let failure = Failure::new(ErrorCode::NotReady, Outcome::NotApplied, detail);
                self.leave(now, id, failure, out);
                // The copies are looked after all the same.
                self.rearm(id, Some(now));
                continue;
            }
            let (mut alarm, mut slow) = (None, Cores::new());
            let began = op.began;
            self.step(now, id, out, |op, out| match &mut op.work {
                Work::Put(put) => slow = put.late(id, None, &op.key, op.deadline, out),
                Work::Get(get) => slow = get.late(id, None, &op.key, op.deadline, out),
                Work::Forward(forward) => {
                    alarm = forward.patient(now);
                    if alarm.is_some() {
                        out.extend(forward.waits_for().map(|core| Act::Probe { core }));
                    } else {
                        slow.extend(forward.waits_for());
                        alarm = forward.late(now, id, out);
                    }
                }
            });
            if !slow.is_empty() && self.ops.get(&id).is_some_and(|op| matches!(op.work, Work::Put(_))) {
                // Those that stand in for them may be slow, too.
                alarm = Some(now + REPLICA_LATE);
            }
            if let Some(Op { work: Work::Get(get), replied: false, .. }) = self.ops.get(&id) {
                // Those that speak and do not answer are waited for no longer than that; and those that are asked in
                // their place may not answer, either.
                alarm = match now < began + FORWARD_LATE {
                    true => Some(began + FORWARD_LATE),
                    false => get.has_more().then_some(now + REPLICA_LATE),
                };
            }
            if self.ops.get(&id).is_some_and(|op| op.relay.is_some() && matches!(op.work, Work::Put(_))) {
                // The own disk may have stalled a little later than this began.
                alarm = Some(now + REPLICA_LATE);
            }
            out.extend(slow.into_iter().map(|core| Act::Late { core }));
            self.rearm(id, Some(alarm.unwrap_or(deadline).min(deadline).max(now + Duration::from_nanos(1))));
        }
    }

    /// A read takes longer than most: another replica is asked as well, if the budget allows.
    fn hedge(&mut self, now: Instant, id: u64, out: &mut Vec<Act>) {
        let Some(op) = self.ops.get(&id) else { return };
        let (forwarded, open) = (matches!(op.work, Work::Forward(_)), !op.replied);
        let late = if forwarded { FORWARD_PROBED } else { REPLICA_LATE };
        let alarm = (op.began + late).min(op.deadline).max(now + Duration::from_nanos(1));
        let hedge = if forwarded { &mut self.forward_hedge } else { &mut self.get_hedge };
        if open && hedge.spend() {
            let mut asked = false;
            self.step(now, id, out, |op, out| match &mut op.work {
                Work::Get(get) => asked = get.hedge(id, &op.key, op.deadline, out),
                Work::Forward(forward) => asked = forward.late(now, id, out).is_some(),
                Work::Put(_) => {}
            });
            self.counters.hedges += u64::from(asked);
        }
        self.rearm(id, Some(alarm));
    }
    /// Runs one step of an operation, then sees whether it has an answer and whether it is over.
    fn step(&mut self, now: Instant, id: u64, out: &mut Vec<Act>, step: impl FnOnce(&mut Op, &mut Vec<Act>)) {
        let Some(op) = self.ops.get_mut(&id) else { return };
        step(op, out);
        if !op.replied
            && op.relay.as_ref().is_some_and(|relay| relay.hops == 1)
            && let Some(failure) = op.gives_up()
        {
            return self.leave(now, id, failure, out);
        }
        if !op.replied
            && let Some(response) = op.answer()
        {
            op.relay = None;
            op.replied = true;
            self.open -= 1;
            match &op.work {
                Work::Get(_) if response.is_ok() => self.get_hedge.record(now.since(op.began)),
                Work::Forward(forward) if forward.is_read() && response.is_ok() => {
                    self.forward_hedge.record(now.since(op.began));
                }
                Work::Get(_) | Work::Forward(_) | Work::Put(_) => {}
            }
            self.counters.failures += u64::from(response.is_err());
            out.push(Act::Reply { asker: op.asker, response });
        }
        if op.replied && op.is_over() {
            if let Work::Get(get) = &mut op.work {
                self.counters.read_repairs += get.repair(id, &op.key, out);
            }
            self.remove(id);
        }
    }
    /// The asker is answered by another home replica. What others may hold of it already is looked after here.
    fn leave(&mut self, now: Instant, id: u64, failure: Failure, out: &mut Vec<Act>) {
        let Some(op) = self.ops.get_mut(&id) else { return };
        let Some(mut route) = op.relay.take() else { return };
        let mut request = op.request.clone();
        op.replied = true;
        self.open -= 1;
        let asker = op.asker;
        let (mut acted, mut over) = (false, op.is_over());
        if let Work::Put(put) = &op.work {
            acted = put.has_begun() || failure.outcome == Outcome::Unknown;
            // The same event wherever it is carried out.
            route.stamp = put.stamp().or(route.stamp);
            if let (Some(known), Operation::Delete { context, .. }) = (put.context(), &mut request.operation) {
                // The same delete wherever it is carried out.
                *context = Some(known.clone());
                route.asks = false;
            }
            if !put.has_begun() {
                out.push(Act::Abandon { operation: id, key: op.key.clone() });
                over = true;
            }
        }
        if over {
            self.remove(id);
        }
        self.pass_on(now, asker, request, *route, Before { failure, acted }, out);
    }
    fn rearm(&mut self, id: u64, alarm: Option<Instant>) {
        if let (Some(alarm), Some(op)) = (alarm, self.ops.get_mut(&id)) {
            self.alarms.remove(&(op.alarm, id));
            op.alarm = alarm;
            self.alarms.insert((alarm, id));
        }
    }
    fn time_out(&mut self, id: u64, out: &mut Vec<Act>) {
        let Some(op) = self.ops.get_mut(&id) else { return };
        if !op.replied {
            self.counters.failures += 1;
            let failure = match &op.work {
                Work::Put(put) => put.deadline_failure(),
                Work::Get(get) => get.deadline_failure(),
                Work::Forward(forward) => forward.deadline_failure(),
            };
            out.push(Act::Reply { asker: op.asker, response: Err(failure) });
        }
        match &mut op.work {
            Work::Get(get) => self.counters.read_repairs += get.repair(id, &op.key, out),
            Work::Put(put) => {
                let owe = |owner| Act::Owe { key: op.key.clone(), owner };
                out.extend(put.unpaid().into_iter().map(owe));
            }
            Work::Forward(_) => {}
        }
        self.remove(id);
    }
}

impl Op {
    fn awaits(&self, core: Address) -> bool {
        match &self.work {
            Work::Put(put) => put.awaits(core),
            Work::Get(get) => get.awaits(core),
            Work::Forward(forward) => forward.awaits(core),
        }
    }
    /// Why this node cannot do it although another home replica might.
    fn gives_up(&self) -> Option<Failure> {
        match &self.work {
            Work::Put(put) => put.gives_up(),
            Work::Get(get) => get.gives_up(),
            Work::Forward(_) => None,
        }
    }
    fn answer(&mut self) -> Option<Response> {
        match &mut self.work {
            Work::Put(put) => put.answer(),
            Work::Get(get) => get.answer(),
            Work::Forward(forward) => forward.answer(),
        }
    }
    fn is_over(&self) -> bool {
        match &self.work {
            Work::Put(put) => put.is_over(),
            Work::Get(get) => get.is_over(),
            Work::Forward(_) => true,
        }
    }
}

fn expired(now: Instant, deadline: Instant) -> Option<Failure> {
    (now >= deadline).then(|| Failure::new(ErrorCode::Deadline, Outcome::NotApplied, "the deadline has passed"))
}

/// The way in which a request is passed on if need be: to the other healthy home replicas, once. `None`: there is
/// nobody else.
fn relay(
    me: Address,
    asker: Asker,
    (request, stamp): (&Request, Option<Dot>),
    hops: u8,
    plan: &Plan,
) -> Option<Box<Route>> {
    let from = match asker {
        Asker::Client(_) => me.node,
        Asker::Shard { address, .. } => address.node,
    };
    let others = plan.healthy().filter(|home| home.node != me.node && home.node != from);
    let targets: SmallVec<[Address; 4]> = others.collect();
    if targets.is_empty() || hops > 1 {
        return None;
    }
    let blind = matches!(request.operation, Operation::Delete { context: None, .. });
    let asks = blind && plan.conflict == Conflict::Siblings;
    Some(Box::new(Route { targets, hops: hops + 1, word: plan.word, asks, stamp, conflict: plan.conflict }))
}

fn replicate(key: &Key, siblings: &Siblings, purpose: Purpose, word: TableWord) -> Message {
    Message::Replicate { key: key.clone(), siblings: siblings.clone(), purpose, word, fresh: None }
}
