//! Last write wins: states that are ordered by time instead of by cause.
//!
//! A stamp is a dot whose counter is a hybrid logical time, in nanoseconds since 1970, under an actor of incarnation 0,
//! which no lease ever gives out. So a state that one write has made alone is an ordinary head: its clock holds the
//! stamp, its one entry bears it, and a deleted key is a clock without entries. It is stored, sent, parked and shown as
//! any other.
//!
//! Two states of such a table merge by taking the one with the greater stamp, whole. States without a stamp were
//! written before the table was made; they are older than any stamp, and among themselves merge as siblings. All this
//! is one order, so it does not matter who merges what with what, and how often.
//!
//! Of two tables of one name that were made apart the one that keeps siblings comes into force. There a stamped value
//! is one sibling among others, and all stamps together are the events of one writer: a clock knows the greatest
//! ([`VersionVector::record`]), and with it every stamp before, so what had been overwritten does not come back.

use super::{Actor, Dot, Entry, Head, Merged, Pick, Siblings, Side, VersionVector};
use crate::types::{Conflict, NodeId};
use smallvec::SmallVec;

/// The incarnation of stamps.
const STAMPS: u64 = 0;

impl Dot {
    /// The stamp of a write at this time by this node.
    pub fn stamp(time: u64, node: NodeId) -> Dot {
        Dot { actor: Actor::new(node, STAMPS), counter: time }
    }
    pub fn is_stamp(self) -> bool {
        self.actor.incarnation() == STAMPS
    }
}

/// The order of stamped writes: by time, then node, then content. Two states that are equal here must not differ in
/// anything that a reader sees.
type Order = (u64, Actor, Option<(u32, u32)>);

impl Head {
    /// The greatest stamp of the state: what decides when the last write wins.
    pub fn stamp(&self) -> Option<Dot> {
        self.clock.entries().iter().copied().filter(|dot| dot.is_stamp()).max_by_key(|dot| (dot.counter, dot.actor))
    }
    /// The state that a single stamped write makes: one value, or none for a delete.
    pub fn stamped(stamp: Dot, value: Option<Entry>) -> Head {
        let entries = value.map(|entry| Entry { dot: stamp, ..entry });
        Head { clock: VersionVector::from_dots([stamp]), entries: entries.into_iter().collect(), ..Head::default() }
    }
    /// Merges two states of one key of a table with this setting: commutative, associative, idempotent.
    pub fn join(&self, other: &Head, conflict: Conflict) -> Merged {
        if conflict == Conflict::Siblings {
            return self.sync(other);
        }
        match (self.order(), other.order()) {
            (None, None) => self.sync(other),
            (ours, theirs) => {
                let mut merged = if ours >= theirs { self.winner(Side::Left) } else { other.winner(Side::Right) };
                merged.head.life = self.life.max(other.life);
                merged
            }
        }
    }
    fn order(&self) -> Option<Order> {
        let stamp = self.stamp()?;
        let value = self.entries.iter().find(|entry| entry.dot == stamp).map(|entry| (entry.checksum, entry.bytes));
        Some((stamp.counter, stamp.actor, value))
    }
    /// The part of this state that counts under last write wins: its greatest stamp, and the value that this one wrote.
    fn winner(&self, side: Side) -> Merged {
        let Some(stamp) = self.stamp() else { return self.sync(self) };
        let index = self.entries.iter().position(|entry| entry.dot == stamp);
        let head = Head::stamped(stamp, index.map(|index| self.entries[index].clone()));
        let picks: SmallVec<[Pick; 2]> = index.map(|index| Pick { side, index }).into_iter().collect();
        Merged { head, picks }
    }
}

impl Siblings {
    /// Does the same as [`Head::join`], with the values.
    pub fn join(&self, other: &Siblings, conflict: Conflict) -> Siblings {
        let merged = self.head.join(&other.head, conflict);
        let values = merged.picks.iter().map(|p| match p.side {
            Side::Left => self.values[p.index].clone(),
            Side::Right => other.values[p.index].clone(),
        });
        Siblings { values: values.collect(), head: merged.head }
    }
}
