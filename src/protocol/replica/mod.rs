//! This shard's own copies: one write of a key at a time.
//!
//! A task takes the key's latch, reads what is stored (the head only, unless siblings survive), applies its work, and
//! writes the record whole. The latch is held until the write is durable, so the next task reads it. A client's write
//! mints its dot here, from counters leased durably before use, and is *prepared* (its merged state goes to the other
//! replicas) in the moment in which its own store begins.
//!
//! In a table where the last write wins a write is stored without a read: [`stamps`] says when that is right.
//!
//! Input: [`Replica::begin`], [`Replica::loaded`], [`Replica::stored`]. Output: [`Step`]s. One I/O a task at a time.

pub mod keys;
mod lease;
mod owed;
mod stamped;
pub mod stamps;
#[cfg(test)]
mod tests;
mod works;

pub use lease::{LeaseRecord, Leases};
pub use owed::Owed;
pub use stamped::latest_seen;

use crate::{
    limits::{INCARNATION_MAX, INCARNATIONS_EACH_START, STARTS_UNHEARD},
    protocol::{
        message::{DOT_OF_ANOTHER_WRITE, Depth, Refusal},
        ring::{FixedMap, Nodes},
        versions::{Context, Dot, Head, Siblings, Values},
    },
    types::{Conflict, Instant, Key, NodeId, ShardBounds, SliceId, Token, Value, WriteId},
};
use bytes::Bytes;
use keys::{HintForm, data_key, hint_key};
use stamps::Stamps;
use std::collections::VecDeque;
use works::{Next, can_be_read, merge};

/// What is to be done to a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Work {
    /// A client's put.
    Put {
        context: Option<Context>,
        value: Value,
        write_id: WriteId,
        /// Where the last write wins: the stamp of the node that took the request, if that was another.
        stamp: Option<Dot>,
        owed: Owed,
    },
    Delete {
        context: Option<Context>,
        write_id: WriteId,
        stamp: Option<Dot>,
        owed: Owed,
    },
    /// A state from another replica. `behind`: it was sent for this owner, and there is no room for a hint: the own
    /// copy takes it, and the slice is marked. `fresh`: the entry whose dot the sender has minted for this very write.
    /// `awaited`: a client waits for it, and nobody has been told yet that it is stored.
    Merge {
        siblings: Siblings,
        behind: Option<NodeId>,
        fresh: Option<u16>,
        awaited: bool,
    },
    /// What all other home replicas hold, if the own record is damaged.
    Rebuild {
        siblings: Siblings,
        /// So far only known to be damaged as a whole: the head may be sound.
        head_read: bool,
    },
    /// Keep a hint: a parked state, or a marker.
    KeepHint {
        owner: NodeId,
        parked: Option<Siblings>,
    },
    /// The hint was delivered: drop it if it is still the one with this stamp.
    DropHint {
        owner: NodeId,
        form: HintForm,
        stamp: u64,
    },
    /// The hint cannot be delivered, for it is damaged, or what it points to is: drop it, unless another one has taken
    /// its place, and note that the owner lacks something of the slice.
    GiveUpHint {
        owner: NodeId,
        form: HintForm,
        stamp: u64,
    },
    /// There is no room for a hint: note that the owner lacks something of the slice.
    MarkBehind {
        owner: NodeId,
    },
}

impl Work {
    /// Who is owed a hint or a mark with what this work stores.
    fn owed(&self) -> Owed {
        match self {
            Work::Put { owed, .. } | Work::Delete { owed, .. } => owed.clone(),
            Work::Merge { behind, .. } => Owed { markers: Nodes::new(), behind: behind.iter().copied().collect() },
            Work::Rebuild { .. }
            | Work::KeepHint { .. }
            | Work::DropHint { .. }
            | Work::GiveUpHint { .. }
            | Work::MarkBehind { .. } => Owed::default(),
        }
    }
    fn bytes(&self) -> usize {
        match self {
            Work::Put { value, .. } => value.bytes.len(),
            Work::Merge { siblings, .. }
            | Work::Rebuild { siblings, .. }
            | Work::KeepHint { parked: Some(siblings), .. } => siblings.head.value_bytes(),
            Work::Delete { .. }
            | Work::KeepHint { parked: None, .. }
            | Work::DropHint { .. }
            | Work::GiveUpHint { .. }
            | Work::MarkBehind { .. } => 0,
        }
    }
}

/// What a task is about: a key in its slice, how conflicts of its table end, and which life of it is written in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subject {
    pub slice: SliceId,
    pub key: Key,
    pub conflict: Conflict,
    pub life: u64,
}

/// Why a task did not do its work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rejection {
    Refused(Refusal),
    /// The key would hold more siblings, or more bytes of them, than allowed. Nothing was stored.
    SiblingLimit,
    /// The context claims events of this node that never happened.
    ForeignContext,
    /// The context names a node that neither the member list nor the own copy of the key knows.
    UnknownNode(NodeId),
    /// The slice has no incarnation left under which a dot could be minted.
    IncarnationsUsedUp,
    /// The key's clock would have more entries than a write may make.
    ClockLimit,
    /// The write's stamp would have to be of a time to come, for what is stored or what its writer has seen is.
    Clock,
    /// The write id has been used for another write of the key.
    WriteIdReused,
    /// A value with a later stamp than the write came with is stored.
    Overtaken,
}

/// What is stored under an engine key, as read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    pub head: Bytes,
    /// Empty unless the read was of full depth.
    pub values: Values,
}

/// One change of the engine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    pub slice: SliceId,
    pub key: Bytes,
    /// `None`: the record is removed.
    pub record: Option<(Bytes, Values)>,
}

/// What the replica asks for or has to say. `O` is the origin that the caller gave the task.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step<O> {
    Load {
        io: u64,
        slice: SliceId,
        key: Bytes,
        depth: Depth,
    },
    Store {
        io: u64,
        changes: Vec<Change>,
    },
    /// A client's write has its dot; its state may go to the other replicas. `Done` follows when it is durable here.
    Prepared {
        origin: O,
        siblings: Siblings,
        context: Context,
        /// The entry that has the dot, if the dot is new.
        fresh: Option<u16>,
    },
    Done {
        origin: O,
        result: Result<(), Rejection>,
    },
    /// The own record of the key is damaged.
    Damaged {
        key: Key,
    },
}

struct Task<O> {
    origin: O,
    key: Key,
    slice: SliceId,
    conflict: Conflict,
    life: u64,
    work: Work,
    deadline: Instant,
    /// The stamp that is being stored, and its slice's new ceiling.
    stamp: Option<(Dot, Option<u64>)>,
    /// Owners of the hints and marks that are being stored.
    noted: Nodes,
}

/// See the module.
pub struct Replica<O> {
    leases: Leases,
    pub stamps: Stamps,
    bounds: ShardBounds,
    /// Tasks of each key in order; the first holds the latch.
    latches: FixedMap<Key, VecDeque<u64>>,
    tasks: FixedMap<u64, Task<O>>,
    next_task: u64,
    bytes: usize,
    next_stamp: u64,
    /// The disk takes no more values. A write that needs space is refused before its dot is minted: one that failed
    /// later would cost an incarnation, and nobody could say that it was not applied.
    pub short_of_space: bool,
    /// Hints written since the start, by owner; taken by the hints machine.
    pub hints_kept: Vec<(NodeId, u64)>,
    /// Owners of hints and marks whose writing has ended, one for each of `hints_kept` and `marked`; likewise.
    pub hints_ended: Vec<NodeId>,
    /// Slices in which an owner is noted to be behind; likewise.
    pub marked: Vec<(NodeId, SliceId)>,
    /// Tokens of keys of which something has been stored; taken by the repair machine.
    pub touched: Vec<Token>,
    /// Hints that were found damaged when another one took their place; likewise.
    pub hints_lost: u64,
    /// Owners of hints and marks of the changes that are being put together.
    noted: Nodes,
    /// Times that a version named a dot of this node that it does not remember.
    pub identity_alarms: u64,
    /// All that are or were members, sorted, and the greatest incarnation that each can have had: contexts from clients
    /// name no others.
    nodes: Vec<(NodeId, u64)>,
    /// Stores of keys whose clock is near its bound.
    pub clocks_long: u64,
    /// Signs among them that the shard has not taken note of yet.
    pub signs: u32,
    /// Damaged records that others have taken the place of.
    pub rebuilt: u64,
    pub rebuilds_refused: u64,
}

/// I/O numbers: even for tasks, odd for lease renewals.
const LEASE_IO: u64 = 1;

impl<O: Clone> Replica<O> {
    /// `generation` makes the stamps of hints differ between starts.
    pub fn new(leases: Leases, stamps: Stamps, generation: u64) -> Replica<O> {
        Replica {
            leases,
            stamps,
            bounds: ShardBounds::default(),
            latches: FixedMap::default(),
            tasks: FixedMap::default(),
            next_task: 0,
            bytes: 0,
            next_stamp: generation << 40,
            short_of_space: false,
            hints_kept: Vec::new(),
            hints_ended: Vec::new(),
            marked: Vec::new(),
            touched: Vec::new(),
            hints_lost: 0,
            noted: Nodes::new(),
            identity_alarms: 0,
            nodes: Vec::new(),
            clocks_long: 0,
            signs: 0,
            rebuilt: 0,
            rebuilds_refused: 0,
        }
    }
    pub fn with_bounds(mut self, bounds: ShardBounds) -> Replica<O> {
        self.stamps.keep(bounds.stamps_kept);
        Replica { bounds, ..self }
    }
    /// Tasks in hand.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Bytes of the values that tasks bring along.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
    /// Who is or was a member, and the generation of each as last heard.
    pub fn members_are(&mut self, nodes: impl Iterator<Item = (NodeId, u64)>) {
        let possible = |generation: u64| {
            generation.saturating_add(STARTS_UNHEARD).saturating_mul(INCARNATIONS_EACH_START).min(INCARNATION_MAX)
        };
        self.nodes.clear();
        self.nodes.extend(nodes.map(|(node, generation)| (node, possible(generation))));
        self.nodes.sort_unstable();
    }
    /// The greatest incarnation of this node in any of the slices.
    pub fn greatest_incarnation(&self) -> u64 {
        self.leases.greatest()
    }
    /// Whether any task is about such a key.
    pub fn busy_with(&self, which: impl Fn(&Key) -> bool) -> bool {
        self.latches.keys().any(which)
    }

    /// Queues a task behind the key's latch.
    pub fn begin(
        &mut self,
        now: Instant,
        origin: O,
        Subject { slice, key, conflict, life }: Subject,
        work: Work,
        deadline: Instant,
        out: &mut Vec<Step<O>>,
    ) {
        let queue = self.latches.entry(key.clone()).or_default();
        let from_client = matches!(work, Work::Put { .. } | Work::Delete { .. });
        if from_client && queue.len() >= self.bounds.latch_waiters_max {
            out.push(Step::Done { origin, result: Err(Rejection::Refused(Refusal::Overloaded)) });
            return;
        }
        self.next_task += 1;
        let id = self.next_task;
        queue.push_back(id);
        let first = queue.len() == 1;
        if let Work::Merge { siblings, .. } | Work::KeepHint { parked: Some(siblings), .. } = &work {
            self.notice(slice, &siblings.head, out);
        }
        self.bytes += work.bytes();
        let (stamp, noted) = (None, Nodes::new());
        self.tasks.insert(id, Task { origin, key, slice, conflict, life, work, deadline, stamp, noted });
        if first {
            self.start(now, id, out);
        }
    }

    /// The client's write that came with this origin is not to be begun any more, if it has not been.
    pub fn abandon(&mut self, key: &Key, of: impl Fn(&O) -> bool) {
        let Some(queue) = self.latches.get(key) else { return };
        for id in queue {
            if let Some(task) = self.tasks.get_mut(id).filter(|task| of(&task.origin)) {
                task.deadline = Instant::ZERO;
            }
        }
    }

    /// Looks whether a version from elsewhere names dots of this node that it does not remember: then its disk is an
    /// old one, or another node uses its name.
    fn notice(&mut self, slice: SliceId, head: &Head, out: &mut Vec<Step<O>>) {
        let alarms = head.clock.entries().iter().filter(|dot| self.leases.notice(slice, **dot)).count();
        if alarms > 0 {
            self.identity_alarms += alarms as u64;
            self.signs += 1;
            self.renew_lease(slice, out);
        }
    }

    fn start(&mut self, now: Instant, id: u64, out: &mut Vec<Step<O>>) {
        let Some(task) = self.tasks.get(&id) else { return };
        let io = id << 1;
        if now >= task.deadline {
            return self.finish(now, id, Err(Rejection::Refused(Refusal::Expired)), out);
        }
        if task.conflict == Conflict::LastWriteWins
            && let Some(next) = self.without_read(id)
        {
            return self.advance(now, id, next, out);
        }
        let Some(task) = self.tasks.get(&id) else { return };
        let (slice, key) = (task.slice, &task.key);
        match &task.work {
            Work::Put { .. } | Work::Delete { .. } | Work::Merge { .. } => {
                out.push(Step::Load { io, slice, key: data_key(key), depth: Depth::Head });
            }
            Work::Rebuild { .. } => out.push(Step::Load { io, slice, key: data_key(key), depth: Depth::Full }),
            Work::KeepHint { owner, parked: Some(_) } => {
                let key = hint_key(*owner, HintForm::Parked, key);
                out.push(Step::Load { io, slice, key, depth: Depth::Full });
            }
            Work::DropHint { owner, form, .. } | Work::GiveUpHint { owner, form, .. } => {
                out.push(Step::Load { io, slice, key: hint_key(*owner, *form, key), depth: Depth::Head });
            }
            Work::MarkBehind { owner } => {
                let owner = *owner;
                let mark = self.mark(slice, owner);
                self.store(id, vec![mark], out);
            }
            Work::KeepHint { owner, parked: None } => {
                let (owner, key) = (*owner, key.clone());
                let marker = self.marker(slice, owner, &key);
                self.store(id, vec![marker], out);
            }
        }
    }
    /// A task's changes go to the disk.
    fn store(&mut self, id: u64, changes: Vec<Change>, out: &mut Vec<Step<O>>) {
        let noted = std::mem::take(&mut self.noted);
        if let Some(task) = self.tasks.get_mut(&id) {
            task.noted = noted;
        }
        out.push(Step::Store { io: id << 1, changes });
    }

    /// A [`Step::Load`] has an answer.
    pub fn loaded(&mut self, now: Instant, io: u64, result: Result<Option<Stored>, Refusal>, out: &mut Vec<Step<O>>) {
        let id = io >> 1;
        let Some(task) = self.tasks.get(&id) else { return };
        if matches!(task.work, Work::Rebuild { .. }) {
            let next = self.rebuild(id, result);
            return self.advance(now, id, next, out);
        }
        // Whoever asked has been told: what is begun now would be sent to nobody.
        if now >= task.deadline && matches!(task.work, Work::Put { .. } | Work::Delete { .. }) {
            return self.finish(now, id, Err(Rejection::Refused(Refusal::Expired)), out);
        }
        let (stored, lost) = match (result, &task.work) {
            (Ok(stored), _) => (stored, false),
            // It can never be delivered, and it shall not stand in the way of what comes after it.
            (Err(Refusal::Damaged), Work::KeepHint { .. } | Work::DropHint { .. } | Work::GiveUpHint { .. }) => {
                (None, true)
            }
            (Err(refusal), work) => {
                if refusal == Refusal::Damaged
                    && matches!(work, Work::Put { .. } | Work::Delete { .. } | Work::Merge { .. })
                {
                    out.push(Step::Damaged { key: task.key.clone() });
                }
                return self.finish(now, id, Err(Rejection::Refused(refusal)), out);
            }
        };
        let next = match &task.work {
            Work::Put { .. } | Work::Delete { .. } if task.conflict == Conflict::LastWriteWins => {
                self.write_stamped(id, stored)
            }
            Work::Put { .. } | Work::Delete { .. } => self.write(id, stored),
            Work::Merge { siblings, awaited: true, .. }
                if task.conflict == Conflict::LastWriteWins && self.is_overtaken(siblings, stored.as_ref()) =>
            {
                Err(Rejection::Refused(Refusal::ClockBehind))
            }
            Work::Merge { siblings, fresh, .. } => merge(siblings, *fresh, stored, task.conflict),
            Work::KeepHint { owner, parked } => {
                let (owner, parked) = (*owner, parked.clone());
                self.park(id, owner, parked.unwrap_or_default(), stored, lost)
            }
            Work::DropHint { owner, form, stamp } if !lost => {
                Ok(owed::drop_hint(task.slice, hint_key(*owner, *form, &task.key), *stamp, stored))
            }
            Work::GiveUpHint { .. } if !lost && stored.is_none() => Ok(Next::Nothing),
            // Nobody can say which hint it was that is damaged now.
            Work::DropHint { owner, form, stamp } | Work::GiveUpHint { owner, form, stamp } => {
                let (owner, stamp, key) = (*owner, *stamp, hint_key(*owner, *form, &task.key));
                let removal = Change { slice: task.slice, key, record: None };
                Ok(self.give_up(owner, removal, stamp, stored))
            }
            Work::MarkBehind { .. } | Work::Rebuild { .. } => Ok(Next::Nothing),
        };
        self.advance(now, id, next, out);
    }

    /// A [`Step::Store`] has an answer.
    pub fn stored(&mut self, now: Instant, io: u64, result: Result<(), Refusal>, out: &mut Vec<Step<O>>) {
        if io & LEASE_IO != 0 {
            self.leases.renewed(SliceId((io >> 1) as u16), result.is_ok());
            return;
        }
        let id = io >> 1;
        if let (Ok(()), Some(Task { slice, key, stamp: Some((stamp, ceiling)), .. })) = (result, self.tasks.get(&id)) {
            self.stamps.stored(*slice, key.token(), *stamp, *ceiling);
        }
        if let Some(task) = self.tasks.get_mut(&id) {
            self.hints_ended.extend(std::mem::take(&mut task.noted));
            self.touched.push(task.key.token());
        }
        if let (Err(_), Some(task)) = (result, self.tasks.get(&id))
            && matches!(task.work, Work::Put { .. })
            && task.stamp.is_none()
        {
            // The others may hold its dot.
            let slice = task.slice;
            self.leases.doubt(slice);
            self.renew_lease(slice, out);
        }
        self.finish(now, id, result.map_err(Rejection::Refused), out);
    }
    /// What to store at an orderly stop, when no task is in hand.
    pub fn clean_leases(&self) -> Vec<Change> {
        let change = |(slice, lease)| {
            let record = Some((keys::lease_head(lease), Values::new()));
            Change { slice, key: keys::lease_key(), record }
        };
        let floor = |(slice, floor)| {
            let record = Some((keys::stamps_head(floor), Values::new()));
            Change { slice, key: keys::stamps_key(), record }
        };
        self.leases.clean().into_iter().map(change).chain(self.stamps.clean().into_iter().map(floor)).collect()
    }

    fn advance(&mut self, now: Instant, id: u64, next: Result<Next, Rejection>, out: &mut Vec<Step<O>>) {
        let Some(task) = self.tasks.get(&id) else { return };
        let (io, slice) = (id << 1, task.slice);
        match next {
            Err(rejection) => {
                // It may have been refused for want of a dot.
                self.renew_lease(slice, out);
                self.finish(now, id, Err(rejection), out);
            }
            Ok(Next::Nothing) => match task.work {
                // The own copy knew it already; the owner may not.
                Work::Merge { behind: Some(owner), .. } => {
                    let mark = self.mark(slice, owner);
                    self.store(id, vec![mark], out);
                }
                _ => self.finish(now, id, Ok(()), out),
            },
            Ok(Next::ReadHead) => {
                out.push(Step::Load { io, slice, key: data_key(&task.key), depth: Depth::Head });
            }
            Ok(Next::ReadValues) => {
                out.push(Step::Load { io, slice, key: data_key(&task.key), depth: Depth::Full });
            }
            Ok(Next::Known { siblings, context }) => {
                out.push(Step::Prepared { origin: task.origin.clone(), siblings, context, fresh: None });
                self.finish(now, id, Ok(()), out);
            }
            Ok(Next::Write { siblings, .. }) if !siblings.head.clock.can_be_read() => {
                self.finish(now, id, Err(Rejection::ClockLimit), out);
            }
            Ok(Next::Write { siblings, .. }) if !can_be_read(&siblings.head) => {
                self.finish(now, id, Err(Rejection::SiblingLimit), out);
            }
            Ok(Next::Write { siblings, context }) => {
                self.clocks_long += u64::from(works::is_long(&siblings.head));
                let Some(task) = self.tasks.get(&id) else { return };
                let record = Some((siblings.head.encode(), siblings.values.clone()));
                let mut changes = vec![Change { slice, key: data_key(&task.key), record }];
                changes.extend(self.note_stamp(id, &siblings.head));
                let Some(task) = self.tasks.get(&id) else { return };
                if let Some(context) = context {
                    let fresh = self.fresh_entry(task, &siblings.head);
                    out.push(Step::Prepared { origin: task.origin.clone(), siblings, context, fresh });
                }
                let (owed, key) = (task.work.owed(), task.key.clone());
                changes.extend(owed.markers.iter().map(|owner| self.marker(slice, *owner, &key)));
                changes.extend(owed.behind.iter().map(|owner| self.mark(slice, *owner)));
                self.store(id, changes, out);
                self.renew_lease(slice, out);
            }
            Ok(Next::Changes(changes)) => self.store(id, changes, out),
        }
    }

    /// The entry that a client's put has just made, unless it bears a stamp.
    fn fresh_entry(&self, task: &Task<O>, head: &Head) -> Option<u16> {
        let Work::Put { write_id, .. } = &task.work else { return None };
        let actor = self.leases.actor(task.slice);
        let entry = head.entries.iter().position(|e| e.write_id == *write_id && e.dot.actor == actor)?;
        u16::try_from(entry).ok()
    }
    /// Whether a replica that knows the fresh dot so far (see [`Refusal::KnownDot`]) can only know it from a life that
    /// this node has forgotten.
    pub fn is_forgotten(&self, slice: SliceId, dot: Dot, known: u64) -> bool {
        let forgotten = known == DOT_OF_ANOTHER_WRITE || self.leases.is_unminted(slice, Dot { counter: known, ..dot });
        self.leases.actor(slice) == dot.actor && forgotten
    }

    fn finish(&mut self, now: Instant, id: u64, result: Result<(), Rejection>, out: &mut Vec<Step<O>>) {
        let Some(task) = self.tasks.remove(&id) else { return };
        self.bytes -= task.work.bytes();
        out.push(Step::Done { origin: task.origin, result });
        let Some(queue) = self.latches.get_mut(&task.key) else { return };
        debug_assert_eq!(queue.front(), Some(&id));
        queue.pop_front();
        match queue.front().copied() {
            Some(next) => self.start(now, next, out),
            None => {
                self.latches.remove(&task.key);
            }
        }
    }

    /// All slices go on under new incarnations, far away.
    pub fn doubt_all(&mut self, out: &mut Vec<Step<O>>) {
        for slice in self.leases.slices() {
            self.leases.doubt_far(slice);
            self.renew_lease(slice, out);
        }
    }
    /// Whether an incarnation in doubt is being replaced.
    pub fn is_renewing(&self) -> bool {
        self.leases.is_replacing()
    }
    fn renew_lease(&mut self, slice: SliceId, out: &mut Vec<Step<O>>) {
        if let Some(lease) = self.leases.renewal(slice) {
            let record = Some((keys::lease_head(lease), Values::new()));
            let change = Change { slice, key: keys::lease_key(), record };
            out.push(Step::Store { io: u64::from(slice.0) << 1 | LEASE_IO, changes: vec![change] });
        }
    }
}
