//! What a read must show when its replicas and those of earlier writes overlap (I6), and what a context carries from
//! one request of a client to the next (I7).
//!
//! A write that W home replicas have acknowledged is in the clock of at least one of any R of them when R + W > N. Of
//! each key the history keeps, by W, the dots of all writes acknowledged so far and what those had superseded: the
//! *floor* of a read that starts now. Its answer must know every dot of the floor and show nothing that was superseded
//! there. Writes for which stand-ins may have counted have no floor.

use super::{
    EventId, History, Invariant, Kind, Verdict,
    winner::{Stamp, stamp_of},
};
use crate::{
    limits::{CLOCK_ENTRIES_MAX, CONTEXT_DOTS_MAX},
    protocol::versions::{Context, Dot, Siblings, VersionVector},
};

/// What reads must know of a key from some instant on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Floor {
    /// The dots of acknowledged writes.
    pub written: VersionVector,
    /// What acknowledged puts had superseded.
    pub overwritten: VersionVector,
    /// What acknowledged deletes had superseded.
    pub deleted: VersionVector,
    /// The greatest stamp of them, where the last write wins.
    pub stamp: Stamp,
    /// Acknowledged puts that nobody had seen and overwritten: their values must be shown unless somebody has since.
    pub standing: Vec<EventId>,
    /// Of the key's table, when the read began: see [`super::lives`].
    pub stretch: u32,
}
impl Floor {
    fn join(&mut self, other: &Floor) {
        let join = |mine: &mut VersionVector, theirs: &VersionVector| {
            theirs.entries().iter().for_each(|d| mine.record(*d));
        };
        join(&mut self.written, &other.written);
        join(&mut self.overwritten, &other.overwritten);
        join(&mut self.deleted, &other.deleted);
        self.stamp = self.stamp.max(other.stamp);
    }
}

/// How many replicas a request waits for, and whether only home replicas count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quorum {
    pub needed: usize,
    pub strict: bool,
}

impl History {
    /// A write was acknowledged with this context. The context covers what it was sent with: a client that passes it
    /// on loses sight of nothing.
    pub fn acknowledge(&mut self, id: EventId, quorum: Quorum, sent: &Context, answer: &Context) -> Verdict {
        let sizes = [(answer.clock.len(), CLOCK_ENTRIES_MAX), (answer.dots.len(), CONTEXT_DOTS_MAX)];
        if let Some((count, bound)) = sizes.into_iter().find(|(count, bound)| count > bound) {
            let text = format!("the answer to write {} has a context of {count} entries, at most {bound}", id.0 + 1);
            return Err((Invariant::I12, text));
        }
        let overlaps = quorum.strict && self.overlaps && (1..=self.replicas).contains(&quorum.needed);
        if self.has_table(self.events[id.0 as usize].key) {
            return self.acknowledge_in_table(id, answer);
        }
        if self.stamped {
            return self.acknowledge_stamp(id, overlaps.then_some(quorum.needed), answer);
        }
        let event = &self.events[id.0 as usize];
        let (key, kind) = (event.key as usize, event.kind);
        let lost = sent.clock.entries().iter().find(|d| !answer.clock.covers(**d));
        if let Some(dot) = lost {
            let text = format!("{:?}: the answer to write {} has forgotten {dot:?}", self.names[key], id.0 + 1);
            return Err((Invariant::I7, text));
        }
        let dot = written_dot(sent, answer);
        let superseded = event.superseded;
        let (n, history) = (self.replicas, &mut self.keys[key]);
        if kind == Kind::Put {
            history.acknowledged.record(dot);
        }
        if !overlaps {
            self.excuses.reads_without_overlap += u64::from(!self.overlaps);
            return Ok(());
        }
        if kind == Kind::Put && !superseded {
            history.standing.add(id, dot, quorum.needed);
        }
        history.floors.resize_with(n, Floor::default);
        let floor = &mut history.floors[quorum.needed - 1];
        let superseded = match kind {
            Kind::Put => {
                floor.written.record(dot);
                &mut floor.overwritten
            }
            Kind::Delete | Kind::BlindDelete => &mut floor.deleted,
        };
        sent.clock.entries().iter().for_each(|d| superseded.record(*d));
        Ok(())
    }
    /// What a read that starts now and waits for so many home replicas must know.
    pub fn floor(&self, key: u32, needed: usize) -> Floor {
        let mut floor = Floor { stretch: self.stretch(key), ..Floor::default() };
        let floors = &self.keys[key as usize].floors;
        let overlapping = floors.iter().enumerate().filter(|(w, _)| w + 1 + needed > self.replicas);
        overlapping.for_each(|(_, f)| floor.join(f));
        let standing = &self.keys[key as usize].standing;
        floor.standing = standing.writes(|w| w + needed > self.replicas).collect();
        floor
    }
    /// Whether some write was acknowledged by all home replicas: whoever has heard one of them knows something.
    pub fn is_everywhere(&self, key: u32) -> bool {
        let floor = self.keys[key as usize].floors.get(self.replicas.wrapping_sub(1));
        floor.is_some_and(|floor| *floor != Floor::default())
    }
    /// An answer against the floor from before its request.
    pub fn check_floor(&self, key: u32, floor: &Floor, siblings: &Siblings) -> Verdict {
        if self.has_table(key) {
            return self.check_life(key, floor.stretch, siblings);
        }
        if self.stamped {
            return self.check_stamp(key, floor.stamp, siblings);
        }
        let name = self.key(key);
        let head = &siblings.head;
        if let Some(dot) = floor.written.entries().iter().find(|d| !head.clock.covers(**d)) {
            let text =
                format!("{name:?}: {dot:?} was acknowledged before this read, which knows {:?} only", head.clock);
            return Err((Invariant::I6, text));
        }
        let shows = |id: &EventId| head.entries.iter().any(|e| e.write_id == id.write_id());
        let standing = &self.keys[key as usize].standing;
        if let Some(id) = floor.standing.iter().find(|id| standing.contains(**id) && !shows(id)) {
            let text = format!(
                "{name:?}: write {} was acknowledged before this read, and nobody has overwritten it, but {:?} are shown",
                id.0 + 1,
                head.entries.iter().map(|e| e.write_id.0).collect::<Vec<_>>()
            );
            return Err((Invariant::I6, text));
        }
        for entry in &head.entries {
            let (dot, id) = (entry.dot, entry.write_id.0);
            if floor.deleted.covers(dot) {
                let text = format!("{name:?}: write {id} is read, though a delete of it was acknowledged before");
                return Err((Invariant::I4, text));
            }
            if floor.overwritten.covers(dot) {
                let text = format!("{name:?}: write {id} is read, though a later one was acknowledged before");
                return Err((Invariant::I6, text));
            }
        }
        Ok(())
    }
    /// A read that passed a context shows nothing older than that (I7). Where the last write wins a stamp is later than
    /// all stamps below it, and than all that was written before the table was made; a key's table may have become such
    /// a one since the context was read. `floor`: from before the request.
    pub fn check_seen(&self, key: u32, context: &Context, floor: &Floor, siblings: &Siblings) -> Verdict {
        let (head, name) = (&siblings.head, self.key(key));
        let named = || context.clock.entries().iter().chain(&context.dots).copied();
        let wins = self.may_win(key, floor.stretch);
        let knows = |dot: Dot| {
            let later = |own: &Dot| own.is_stamp() && (!dot.is_stamp() || stamp_of(*own) >= stamp_of(dot));
            let overwritten = wins && head.clock.entries().iter().any(later);
            overwritten || head.clock.covers(dot) || head.recent.iter().any(|superseded| superseded.dot == dot)
        };
        match named().find(|dot| !knows(*dot)) {
            None => Ok(()),
            Some(dot) => {
                let text = format!("{name:?}: its reader has seen {dot:?}, and is shown {:?} only", head.clock);
                Err((Invariant::I7, text))
            }
        }
    }
    /// A read was told that nobody has seen what its context names: not if any quorum has.
    pub fn check_not_covered(&self, key: u32, context: &Context, floor: &Floor) -> Verdict {
        let mut named = context.clock.entries().iter().chain(&context.dots);
        if self.stamped || context.clock.is_empty() || !named.all(|dot| floor.written.covers(*dot)) {
            return Ok(());
        }
        let text = format!(
            "{:?}: {context:?} was acknowledged by quorums, and a read is told that nobody knows it",
            self.key(key)
        );
        Err((Invariant::I7, text))
    }
    /// Whoever is shown a write is shown as well all that its writer had seen: the state's clock covers its context.
    pub(super) fn check_causes(&self, key: u32, shown: &[(EventId, Dot)], clock: &VersionVector) -> Verdict {
        for (id, _) in shown {
            let context = &self.events[id.0 as usize].context;
            if let Some(dot) = context.clock.entries().iter().find(|d| !clock.covers(**d)) {
                let name = self.key(key);
                let text = format!("{name:?}: write {} is shown without {dot:?}, which its writer had seen", id.0 + 1);
                return Err((Invariant::I7, text));
            }
        }
        Ok(())
    }
}

/// The dot of a write, from the contexts before and after it; no dot when the second says more than that.
pub fn written_dot(before: &Context, after: &Context) -> Dot {
    let all = after.dots.iter().chain(after.clock.entries());
    let mut fresh = all.copied().filter(|d| !before.covers(*d));
    match (fresh.next(), fresh.next()) {
        (Some(dot), None) => dot,
        _ => Dot::default(),
    }
}
