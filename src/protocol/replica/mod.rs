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
pub mod stamps;
#[cfg(test)]
mod tests;

pub use lease::{LeaseRecord, Leases};
pub use owed::Owed;

use crate::{
    limits::{
        LATCH_WAITERS_MAX, MERGED_CLOCK_ENTRIES_MAX, MERGED_SIBLINGS_BYTES_MAX, MERGED_SIBLINGS_MAX,
        SIBLINGS_BYTES_MAX, SIBLINGS_MAX,
    },
    protocol::{
        message::{Depth, Refusal},
        ring::{FixedMap, Nodes},
        versions::{Context, Dot, Entry, Head, Merged, Pick, Siblings, Side, Values},
    },
    types::{Conflict, Instant, Key, NodeId, SliceId, Value, WriteId},
};
use bytes::Bytes;
use keys::{HintForm, data_key, hint_key};
use stamps::Stamps;
use std::collections::VecDeque;

/// What is to be done to a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Work {
    /// A client's put.
    Put {
        context: Option<Context>,
        value: Value,
        write_id: WriteId,
        owed: Owed,
    },
    Delete {
        context: Option<Context>,
        owed: Owed,
    },
    /// A state from another replica. `behind`: it was sent for this owner, and there is no room for a hint: the own copy
    /// takes it, and the slice is marked.
    Merge {
        siblings: Siblings,
        behind: Option<NodeId>,
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
    /// The hint cannot be delivered, for it is damaged, or what it points to is: drop it, unless another one has taken its
    /// place, and note that the owner lacks something of the slice.
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

/// What a task is about: a key in its slice, and how conflicts of its table end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subject {
    pub slice: SliceId,
    pub key: Key,
    pub conflict: Conflict,
}

/// Why a task did not do its work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rejection {
    Refused(Refusal),
    /// The key would hold more siblings, or more bytes of them, than allowed. Nothing was stored.
    SiblingLimit,
    /// The context claims events of this node that never happened.
    ForeignContext,
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
    /// Hints that were found damaged when another one took their place; likewise.
    pub hints_lost: u64,
    /// Owners of hints and marks of the changes that are being put together.
    noted: Nodes,
    /// Times that a version named a dot of this node that it does not remember.
    pub identity_alarms: u64,
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
            latches: FixedMap::default(),
            tasks: FixedMap::default(),
            next_task: 0,
            bytes: 0,
            next_stamp: generation << 40,
            short_of_space: false,
            hints_kept: Vec::new(),
            hints_ended: Vec::new(),
            marked: Vec::new(),
            hints_lost: 0,
            noted: Nodes::new(),
            identity_alarms: 0,
            rebuilt: 0,
            rebuilds_refused: 0,
        }
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
    /// Whether any task is about such a key.
    pub fn busy_with(&self, which: impl Fn(&Key) -> bool) -> bool {
        self.latches.keys().any(which)
    }

    /// Queues a task behind the key's latch.
    pub fn begin(
        &mut self,
        now: Instant,
        origin: O,
        Subject { slice, key, conflict }: Subject,
        work: Work,
        deadline: Instant,
        out: &mut Vec<Step<O>>,
    ) {
        let queue = self.latches.entry(key.clone()).or_default();
        let from_client = matches!(work, Work::Put { .. } | Work::Delete { .. });
        if from_client && queue.len() >= LATCH_WAITERS_MAX {
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
        self.tasks.insert(id, Task { origin, key, slice, conflict, work, deadline, stamp: None, noted: Nodes::new() });
        if first {
            self.start(now, id, out);
        }
    }

    /// Looks whether a version from elsewhere names dots of this node that it does not remember: then its disk is an old
    /// one, or another node uses its name.
    fn notice(&mut self, slice: SliceId, head: &Head, out: &mut Vec<Step<O>>) {
        let alarms = head.clock.entries().iter().filter(|dot| self.leases.notice(slice, **dot)).count();
        if alarms > 0 {
            self.identity_alarms += alarms as u64;
            self.renew_lease(slice, out);
        }
    }

    fn start(&mut self, now: Instant, id: u64, out: &mut Vec<Step<O>>) {
        let Some(task) = self.tasks.get(&id) else { return };
        let io = id << 1;
        if now > task.deadline {
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
            Work::Merge { siblings, .. } => merge(siblings, stored, task.conflict),
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
                out.push(Step::Prepared { origin: task.origin.clone(), siblings, context });
                self.finish(now, id, Ok(()), out);
            }
            Ok(Next::Write { siblings, .. }) if !can_be_read(&siblings.head) => {
                self.finish(now, id, Err(Rejection::SiblingLimit), out);
            }
            Ok(Next::Write { siblings, context }) => {
                let record = Some((siblings.head.encode(), siblings.values.clone()));
                let mut changes = vec![Change { slice, key: data_key(&task.key), record }];
                changes.extend(self.note_stamp(id, &siblings.head));
                let Some(task) = self.tasks.get(&id) else { return };
                if let Some(context) = context {
                    out.push(Step::Prepared { origin: task.origin.clone(), siblings, context });
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

    // ---- the works ---------------------------------------------------------------------------------------------

    /// A client's put or delete upon what is stored. Called with the head alone first, and again with the values when
    /// some sibling survives (it is rewritten and replicated with the rest).
    fn write(&mut self, id: u64, stored: Option<Stored>) -> Result<Next, Rejection> {
        let Some(task) = self.tasks.get(&id) else { return Ok(Next::Nothing) };
        if !self.leases.holds(task.slice) {
            return Err(Rejection::Refused(Refusal::Damaged));
        }
        let (head, values) = parse(stored)?;
        let values_read = !values.is_empty() || head.entries.is_empty();
        match &task.work {
            Work::Put { context, write_id, .. } if head.knows_write(*write_id) => {
                if !values_read {
                    return Ok(Next::ReadValues);
                }
                let context = written_before(&head, context.as_ref(), *write_id);
                Ok(Next::Known { siblings: Siblings { head, values }, context })
            }
            Work::Put { .. } if self.short_of_space => Err(Rejection::Refused(Refusal::DiskFull)),
            Work::Put { context, value, write_id, .. } => {
                let seen = context.clone().unwrap_or_default();
                if head.has_survivors(&seen) && !values_read {
                    return Ok(Next::ReadValues);
                }
                check_limits(&head, &seen, value.bytes.len())?;
                if self.leases.is_foreign(task.slice, |actor| seen.highest(actor)) {
                    return Err(Rejection::ForeignContext);
                }
                if self.leases.is_foreign(task.slice, |actor| head.clock.get(actor)) {
                    // The record knows a later dot of this actor than its lease: the disk has forgotten something.
                    self.leases.doubt(task.slice);
                    self.identity_alarms += 1;
                }
                let dot = self.leases.mint(task.slice).ok_or(Rejection::Refused(Refusal::Overloaded))?;
                let entry = entry_of(value, dot, *write_id);
                let merged = head.put(&seen, entry);
                let alone = merged.head.entries.len() == 1;
                // What the writer knew and this copy does not stays apart.
                let context =
                    if alone { Context::from(merged.head.clock.clone()).join(&seen) } else { seen.with_dot(dot) };
                let fresh: Values = [value.bytes.clone()].into_iter().collect();
                Ok(Next::Write { siblings: pick(merged, &values, &fresh), context: Some(context) })
            }
            Work::Delete { context, .. } => {
                let seen = context.clone().unwrap_or_else(|| Context::from(head.clock.clone()));
                if self.leases.is_foreign(task.slice, |actor| seen.highest(actor)) {
                    return Err(Rejection::ForeignContext);
                }
                if head.has_survivors(&seen) && !values_read {
                    return Ok(Next::ReadValues);
                }
                let merged = head.delete(&seen);
                let unchanged = merged.head.same_state(&head);
                let siblings = pick(merged, &values, &Values::new());
                // What the delete superseded; the clock when nothing stands beside it.
                let context = if siblings.head.entries.is_empty() {
                    Context::from(siblings.head.clock.clone()).join(&seen)
                } else {
                    seen
                };
                if unchanged {
                    return Ok(Next::Known { siblings, context });
                }
                Ok(Next::Write { siblings, context: Some(context) })
            }
            Work::Merge { .. }
            | Work::Rebuild { .. }
            | Work::KeepHint { .. }
            | Work::DropHint { .. }
            | Work::GiveUpHint { .. }
            | Work::MarkBehind { .. } => Ok(Next::Nothing),
        }
    }

    /// What all other home replicas hold, in the place of a damaged record. Called with what a whole read of the record
    /// gave, and again with its head alone when that failed.
    fn rebuild(&mut self, id: u64, read: Result<Option<Stored>, Refusal>) -> Result<Next, Rejection> {
        let Some(task) = self.tasks.get_mut(&id) else { return Ok(Next::Nothing) };
        let (slice, conflict, key) = (task.slice, task.conflict, data_key(&task.key));
        let Work::Rebuild { siblings, head_read } = &mut task.work else { return Ok(Next::Nothing) };
        match read {
            Err(Refusal::Damaged) if !std::mem::replace(head_read, true) => Ok(Next::ReadHead),
            Err(Refusal::Damaged) => {
                let siblings = siblings.clone();
                // Dots of this actor that only the lost record held are known to nobody here.
                self.leases.doubt(slice);
                self.rebuilt += 1;
                let nothing = siblings.head.is_empty();
                let removed = Change { slice, key, record: None };
                Ok(if nothing { Next::Changes(vec![removed]) } else { Next::Write { siblings, context: None } })
            }
            Err(refusal) => Err(Rejection::Refused(refusal)),
            // The record is whole: something has taken its place.
            Ok(_) if !*head_read => Ok(Next::Nothing),
            Ok(stored) => {
                // Its head is sound, its values are not. One that nobody else has is lost, and is not called absent.
                let (head, _) = parse(stored)?;
                let merged = head.join(&siblings.head, conflict).head;
                let value = |e: &Entry| {
                    let index = siblings.head.entries.iter().position(|other| other.dot == e.dot)?;
                    siblings.values.get(index).cloned()
                };
                let values = merged.entries.iter().map(value).collect::<Option<Values>>();
                (self.rebuilt, self.rebuilds_refused) =
                    (self.rebuilt + u64::from(values.is_some()), self.rebuilds_refused + u64::from(values.is_none()));
                let values = values.ok_or(DAMAGED)?;
                Ok(Next::Write { siblings: Siblings { head: merged, values }, context: None })
            }
        }
    }

    // ---- the last write wins -----------------------------------------------------------------------------------

    /// What a stamped write does if nothing stored can be newer; `None`: the record must be read.
    fn without_read(&mut self, id: u64) -> Option<Result<Next, Rejection>> {
        let task = self.tasks.get(&id)?;
        let (slice, token) = (task.slice, task.key.token());
        match &task.work {
            Work::Put { .. } | Work::Delete { .. } => {
                let stamp = self.next_stamp_of(id, None)?;
                self.stamps.is_newest(slice, token, stamp).then(|| self.stamped(id, stamp))
            }
            Work::Merge { siblings, .. } => {
                let stamp = siblings.head.stamp()?;
                if !self.stamps.meet(stamp) {
                    self.stamps.refused += 1;
                    return Some(Err(Rejection::Refused(Refusal::ClockAhead)));
                }
                let siblings = siblings.join(siblings, Conflict::LastWriteWins);
                let newest = self.stamps.is_newest(slice, token, stamp);
                newest.then_some(Ok(Next::Write { siblings, context: None }))
            }
            Work::KeepHint { parked: Some(parked), .. } => {
                let ahead = parked.head.stamp().is_some_and(|stamp| !self.stamps.meet(stamp));
                self.stamps.refused += u64::from(ahead);
                ahead.then_some(Err(Rejection::Refused(Refusal::ClockAhead)))
            }
            Work::Rebuild { .. }
            | Work::KeepHint { parked: None, .. }
            | Work::DropHint { .. }
            | Work::GiveUpHint { .. }
            | Work::MarkBehind { .. } => None,
        }
    }
    /// A client's write upon what is stored, which may be of a time that this clock has not reached.
    fn write_stamped(&mut self, id: u64, stored: Option<Stored>) -> Result<Next, Rejection> {
        let (head, _) = parse(stored)?;
        match self.next_stamp_of(id, head.stamp()) {
            Some(stamp) => self.stamped(id, stamp),
            None => Ok(Next::Nothing),
        }
    }
    /// After all that this shard has met, and all that the writer has read.
    fn next_stamp_of(&mut self, id: u64, stored: Option<Dot>) -> Option<Dot> {
        let (Work::Put { context, .. } | Work::Delete { context, .. }) = &self.tasks.get(&id)?.work else {
            return None;
        };
        let seen = context.iter().flat_map(|context| context.clock.entries().iter().chain(&context.dots));
        let seen = seen.copied().filter(|dot| dot.is_stamp()).max_by_key(|dot| dot.counter);
        if let Some(seen) = seen {
            self.stamps.meet(seen);
        }
        Some(self.stamps.mint(stored))
    }
    fn stamped(&self, id: u64, stamp: Dot) -> Result<Next, Rejection> {
        let Some(task) = self.tasks.get(&id) else { return Ok(Next::Nothing) };
        let siblings = match &task.work {
            Work::Put { .. } if self.short_of_space => return Err(Rejection::Refused(Refusal::DiskFull)),
            Work::Put { value, write_id, .. } => {
                let entry = entry_of(value, stamp, *write_id);
                let values: Values = [value.bytes.clone()].into_iter().collect();
                Siblings { head: Head::stamped(stamp, Some(entry)), values }
            }
            _ => Siblings { head: Head::stamped(stamp, None), values: Values::new() },
        };
        let context = Context::from(siblings.head.clock.clone());
        Ok(Next::Write { siblings, context: Some(context) })
    }
    /// Remembers what is being stored; the slice's new ceiling, if it needs one.
    fn note_stamp(&mut self, id: u64, head: &Head) -> Option<Change> {
        let task = self.tasks.get_mut(&id)?;
        let stamp = head.stamp().filter(|_| task.conflict == Conflict::LastWriteWins)?;
        let ceiling = self.stamps.raise(task.slice, stamp);
        task.stamp = Some((stamp, ceiling));
        let record = Some((keys::stamps_head(ceiling?), Values::new()));
        Some(Change { slice: task.slice, key: keys::stamps_key(), record })
    }

    fn renew_lease(&mut self, slice: SliceId, out: &mut Vec<Step<O>>) {
        if let Some(lease) = self.leases.renewal(slice) {
            let record = Some((keys::lease_head(lease), Values::new()));
            let change = Change { slice, key: keys::lease_key(), record };
            out.push(Step::Store { io: u64::from(slice.0) << 1 | LEASE_IO, changes: vec![change] });
        }
    }
}

/// What a task does after a read.
enum Next {
    Nothing,
    ReadHead,
    ReadValues,
    /// Already durable here; still to be replicated.
    Known {
        siblings: Siblings,
        context: Context,
    },
    /// Store, and (with a context: a client's write) replicate.
    Write {
        siblings: Siblings,
        context: Option<Context>,
    },
    Changes(Vec<Change>),
}

const DAMAGED: Rejection = Rejection::Refused(Refusal::Damaged);

fn parse(stored: Option<Stored>) -> Result<(Head, Values), Rejection> {
    match stored {
        None => Ok((Head::default(), Values::new())),
        Some(stored) => Ok((Head::decode(&stored.head).map_err(|_| DAMAGED)?, stored.values)),
    }
}

/// The context of a write that is already known here: what its writer had seen, and its dot. When only the trace of a
/// superseded write is left, the dot of that trace.
fn written_before(head: &Head, seen: Option<&Context>, id: WriteId) -> Context {
    let context = seen.cloned().unwrap_or_default();
    let live = head.entries.iter().find(|e| e.write_id == id).map(|e| e.dot);
    let past = head.recent.iter().find(|s| s.write_id == id).map(|s| s.dot);
    if live.is_some() && head.entries.len() == 1 {
        return Context::from(head.clock.clone()).join(&context);
    }
    match live.or(past) {
        Some(dot) => context.with_dot(dot),
        None => context,
    }
}

fn entry_of(value: &Value, dot: Dot, write_id: WriteId) -> Entry {
    Entry { dot, write_id, media: value.media.clone(), bytes: value.bytes.len() as u32, checksum: value.checksum }
}

fn check_limits(head: &Head, seen: &Context, new_bytes: usize) -> Result<(), Rejection> {
    let survivors = head.entries.iter().filter(|e| !seen.covers(e.dot));
    let (count, bytes) = survivors.fold((1, new_bytes), |(n, b), e| (n + 1, b + e.bytes as usize));
    if count > SIBLINGS_MAX || (count > 1 && bytes > SIBLINGS_BYTES_MAX) {
        return Err(Rejection::SiblingLimit);
    }
    Ok(())
}

/// Whether a head is within what its decoding and a frame allow. One that is not is not stored: nobody could read it again.
fn can_be_read(head: &Head) -> bool {
    head.clock.len() <= MERGED_CLOCK_ENTRIES_MAX
        && head.entries.len() <= MERGED_SIBLINGS_MAX
        && head.value_bytes() <= MERGED_SIBLINGS_BYTES_MAX
}

fn pick(merged: Merged, left: &Values, right: &Values) -> Siblings {
    let from = |p: &Pick| match p.side {
        Side::Left => left[p.index].clone(),
        Side::Right => right[p.index].clone(),
    };
    Siblings { values: merged.picks.iter().map(from).collect(), head: merged.head }
}

/// A state from another replica upon what is stored: with the head alone first, with the values when some survive.
fn merge(incoming: &Siblings, stored: Option<Stored>, conflict: Conflict) -> Result<Next, Rejection> {
    let (head, values) = parse(stored)?;
    let merged = head.join(&incoming.head, conflict);
    if merged.head.same_state(&head) {
        return Ok(Next::Nothing);
    }
    let needs_own = merged.picks.iter().any(|p| p.side == Side::Left && p.index >= values.len());
    // A sibling that both hold is taken from the message: its value is at hand.
    let shared: Option<Vec<Pick>> = merged
        .picks
        .iter()
        .zip(&merged.head.entries)
        .map(|(p, e)| match incoming.head.entries.iter().position(|i| i.dot == e.dot) {
            Some(index) => Some(Pick { side: Side::Right, index }),
            None if p.index < values.len() || p.side == Side::Right => Some(*p),
            None => None,
        })
        .collect();
    match shared {
        Some(picks) => {
            let merged = Merged { picks: picks.into_iter().collect(), head: merged.head };
            Ok(Next::Write { siblings: pick(merged, &values, &incoming.values), context: None })
        }
        None if needs_own => Ok(Next::ReadValues),
        None => Err(DAMAGED),
    }
}
