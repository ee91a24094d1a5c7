//! Acknowledged puts that nobody has seen and overwritten yet: a read whose quorum overlaps with theirs must show them.

use super::{EventId, History, Kind};
use crate::protocol::{
    ring::FixedMap,
    versions::{Context, Dot, VersionVector},
};

/// Of one key.
#[derive(Default)]
pub(super) struct Standing {
    /// Each with its dot, and how many home replicas have it.
    writes: Vec<(EventId, Dot, usize)>,
    /// What the contexts of writes have covered so far.
    covered: VersionVector,
    beside: FixedMap<Dot, ()>,
    /// A delete without a context was begun: it may remove anything.
    blindly_deleted: bool,
}
impl Standing {
    /// A put that nobody's context was known to cover was acknowledged.
    pub fn add(&mut self, id: EventId, dot: Dot, needed: usize) {
        let overwritten = self.blindly_deleted || self.covered.covers(dot) || self.beside.contains_key(&dot);
        if !overwritten && dot != Dot::default() {
            self.writes.push((id, dot, needed));
        }
    }
    /// Those that so many home replicas have.
    pub fn writes(&self, enough: impl Fn(usize) -> bool) -> impl Iterator<Item = EventId> {
        self.writes.iter().filter(move |(_, _, needed)| enough(*needed)).map(|(id, ..)| *id)
    }
    pub fn contains(&self, id: EventId) -> bool {
        self.writes.iter().any(|(other, ..)| *other == id)
    }
    fn cover(&mut self, context: &Context) {
        context.clock.entries().iter().for_each(|dot| self.covered.record(*dot));
        self.beside.extend(context.dots.iter().map(|dot| (*dot, ())));
        self.writes.retain(|(_, dot, _)| !context.covers(*dot));
    }
}

impl History {
    /// What a write's context covers stands no more, whatever becomes of the write.
    pub(super) fn supersede(&mut self, id: EventId) {
        let event = &self.events[id.0 as usize];
        let (key, kind, seen, context) = (event.key as usize, event.kind, event.seen.clone(), event.context.clone());
        for (older, _) in &seen {
            self.events[older.0 as usize].superseded = true;
        }
        let standing = &mut self.keys[key].standing;
        standing.writes.retain(|(older, ..)| seen.iter().all(|(id, _)| id != older));
        standing.cover(&context);
        if kind == Kind::BlindDelete {
            standing.blindly_deleted = true;
            standing.writes.clear();
        }
    }
}
