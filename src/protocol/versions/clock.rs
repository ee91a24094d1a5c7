//! Dots and version vectors.

use crate::types::NodeId;
use smallvec::SmallVec;
use std::fmt;

/// Who mints dots: a node in one incarnation. 48 bits of node id, 16 of incarnation. A node keeps its actor over
/// orderly restarts; after a crash it goes on as a new one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Actor(pub u64);

impl Actor {
    pub fn new(node: NodeId, incarnation: u16) -> Actor {
        Actor(node.0 << 16 | u64::from(incarnation))
    }
    pub fn node(self) -> NodeId {
        NodeId(self.0 >> 16)
    }
    pub fn incarnation(self) -> u16 {
        self.0 as u16
    }
}
impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{}", self.0 >> 16, self.incarnation())
    }
}

/// One write event: the `counter`-th event of `actor`. Counters start at 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Dot {
    pub actor: Actor,
    pub counter: u64,
}
impl fmt::Debug for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}:{}", self.actor, self.counter)
    }
}

/// How two version vectors stand to each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Causality {
    Equal,
    /// The left one is in the past of the right one.
    Before,
    After,
    Concurrent,
}

/// For each actor the highest counter seen, sorted by actor, without zeros.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct VersionVector(SmallVec<[Dot; 3]>);

impl VersionVector {
    pub fn new() -> VersionVector {
        VersionVector::default()
    }
    /// From entries in any order; the highest counter of an actor wins, zeros are dropped.
    pub fn from_dots(dots: impl IntoIterator<Item = Dot>) -> VersionVector {
        let mut vector = VersionVector::new();
        dots.into_iter().for_each(|d| vector.record(d));
        vector
    }
    pub fn entries(&self) -> &[Dot] {
        &self.0
    }
    pub fn len(&self) -> usize {
        self.0.len()
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// The highest counter seen of this actor, 0 when none.
    pub fn get(&self, actor: Actor) -> u64 {
        self.0.binary_search_by_key(&actor, |d| d.actor).map_or(0, |i| self.0[i].counter)
    }
    /// Whether the event is known.
    pub fn covers(&self, dot: Dot) -> bool {
        dot.counter <= self.get(dot.actor)
    }
    /// Knows `dot` from now on, and all of its actor's earlier events.
    pub fn record(&mut self, dot: Dot) {
        if dot.counter == 0 {
            return;
        }
        match self.0.binary_search_by_key(&dot.actor, |d| d.actor) {
            Ok(i) => self.0[i].counter = self.0[i].counter.max(dot.counter),
            Err(i) => self.0.insert(i, dot),
        }
    }
    /// The least vector that knows all that either knows.
    pub fn join(&self, other: &VersionVector) -> VersionVector {
        let mut joined = self.clone();
        other.0.iter().for_each(|&d| joined.record(d));
        joined
    }
    /// Whether every event known to `other` is known to `self`.
    pub fn descends(&self, other: &VersionVector) -> bool {
        other.0.iter().all(|&d| self.covers(d))
    }
    pub fn compare(&self, other: &VersionVector) -> Causality {
        match (self.descends(other), other.descends(self)) {
            (true, true) => Causality::Equal,
            (false, true) => Causality::Before,
            (true, false) => Causality::After,
            (false, false) => Causality::Concurrent,
        }
    }
}
impl fmt::Debug for VersionVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&self.0).finish()
    }
}
