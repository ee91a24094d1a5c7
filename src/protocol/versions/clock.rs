//! Dots and version vectors.

use crate::types::NodeId;
use smallvec::SmallVec;
use std::{cmp::Ordering, fmt};

/// Who mints dots: a node in one incarnation. A node keeps its actor over orderly restarts; after a crash it goes on as
/// a new one. Ordered by node, then incarnation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Actor {
    node: NodeId,
    incarnation: u64,
}

impl Actor {
    pub fn new(node: NodeId, incarnation: u64) -> Actor {
        Actor { node, incarnation }
    }
    pub fn node(self) -> NodeId {
        self.node
    }
    /// The incarnation, at most [`INCARNATION_MAX`](crate::limits::INCARNATION_MAX).
    pub fn incarnation(self) -> u64 {
        self.incarnation
    }
    /// Reads an actor from its narrow form: node id in the upper 48 bits, incarnation in the lower 16.
    pub fn from_narrow(bits: u64) -> Actor {
        Actor { node: NodeId(bits >> 16), incarnation: bits & u64::from(u16::MAX) }
    }
    /// The narrow form, which is all that earlier versions read; `None` when the incarnation does not fit.
    pub fn narrow(self) -> Option<u64> {
        let incarnation = u16::try_from(self.incarnation).ok()?;
        Some(self.node.0 << 16 | u64::from(incarnation))
    }
}
impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{}", self.node.0, self.incarnation)
    }
}

/// A write event: the `counter`-th event of `actor`. Counters start at 1.
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

/// The order of two version vectors, if there is one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Causality {
    Equal,
    /// The left one is in the past of the right one.
    Before,
    After,
    Concurrent,
}

/// A version vector: for each actor the highest counter seen, sorted by actor, without zeros. It covers all events of
/// an actor up to that counter.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct VersionVector(SmallVec<[Dot; 3]>);

impl VersionVector {
    pub fn new() -> VersionVector {
        VersionVector::default()
    }
    /// Makes a vector from entries in any order; the highest counter of an actor counts, zeros are dropped.
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
    /// Whether every actor has a narrow form.
    pub fn is_narrow(&self) -> bool {
        self.0.iter().all(|d| d.actor.narrow().is_some())
    }
    /// Whether any event of this node is known.
    pub fn names(&self, node: NodeId) -> bool {
        let at = self.0.partition_point(|d| d.actor.node() < node);
        self.0.get(at).is_some_and(|d| d.actor.node() == node)
    }
    /// The stamp in it, if there is one: see `stamp`.
    pub fn stamp(&self) -> Option<Dot> {
        self.0.iter().copied().filter(|dot| dot.is_stamp()).max_by_key(|dot| (dot.counter, dot.actor))
    }
    /// Whether the event is known. Of stamps all that are not after the one in the vector.
    pub fn covers(&self, dot: Dot) -> bool {
        if dot.is_stamp() {
            return self.stamp().is_some_and(|known| (dot.counter, dot.actor) <= (known.counter, known.actor));
        }
        dot.counter <= self.get(dot.actor)
    }
    /// Knows `dot` from now on, and all of its actor's earlier events; of stamps only the greatest is kept.
    pub fn record(&mut self, dot: Dot) {
        if dot.counter == 0 {
            return;
        }
        if dot.is_stamp() {
            if self.covers(dot) {
                return;
            }
            self.0.retain(|known| !known.is_stamp());
        }
        match self.0.binary_search_by_key(&dot.actor, |d| d.actor) {
            Ok(i) => self.0[i].counter = self.0[i].counter.max(dot.counter),
            Err(i) => self.0.insert(i, dot),
        }
    }
    /// The least vector that knows all that either knows.
    pub fn join(&self, other: &VersionVector) -> VersionVector {
        // Entry by entry from both: to insert one by one would take time by the square of their number.
        let (mut left, mut right) = (&self.0[..], &other.0[..]);
        let mut joined = SmallVec::with_capacity(left.len().max(right.len()));
        while let (Some(&l), Some(&r)) = (left.first(), right.first()) {
            joined.push(match l.actor.cmp(&r.actor) {
                Ordering::Less => l,
                Ordering::Greater => r,
                Ordering::Equal => l.max(r),
            });
            left = &left[usize::from(l.actor <= r.actor)..];
            right = &right[usize::from(r.actor <= l.actor)..];
        }
        joined.extend_from_slice(left);
        joined.extend_from_slice(right);
        let mut joined = VersionVector(joined);
        if let (Some(ours), Some(theirs)) = (self.stamp(), other.stamp())
            && ours.actor != theirs.actor
        {
            let stamp = joined.stamp();
            joined.0.retain(|known| !known.is_stamp() || Some(*known) == stamp);
        }
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
