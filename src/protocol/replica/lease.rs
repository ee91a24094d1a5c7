//! Dots: counters leased durably in blocks for each slice before the first of a block is used, under an incarnation
//! that changes whenever the own copies may have lost a dot that others hold.
//!
//! A client's write goes to the other replicas while it is being stored here. If this node stops before its own copy
//! is durable, the others know a dot that it does not; a later dot of the same actor would cover that one in every
//! clock without its value having been seen, and the write would vanish. So a slice that was not closed in good
//! order, or whose store of a prepared write failed, goes on as a new actor. After an orderly stop it keeps its actor
//! and continues its counter: clocks grow by crashes only.
//!
//! A record says at which start of the node it was made. One that is older than the start before has had successors that
//! a rotten medium took: the incarnations that these may have used are left out.
//!
//! A disk may also be an old one: a backup, a copy. The start leaves out many incarnations where that is known
//! ([`Leases::begin_far`]); where it is not, a version that names a dot which this node does not remember tells
//! ([`Leases::notice`]), and the next dot is minted by a new actor.

use crate::{
    limits::{
        DOT_LEASE, FORGOTTEN_INCARNATIONS, FORGOTTEN_INCARNATIONS_DRAWN, INCARNATIONS_OF_START, LOST_INCARNATIONS,
    },
    protocol::{
        ring::FixedMap,
        versions::{Actor, Dot},
    },
    types::{NodeId, SliceId},
};

/// What is stored of a lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseRecord {
    pub incarnation: u16,
    /// The slice was closed in good order: every dot minted is durable here, and `ceiling` is the next counter.
    pub clean: bool,
    /// The first counter that has not been leased.
    pub ceiling: u64,
    /// The node's generation when it was made.
    pub start: u64,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    incarnation: u16,
    next: u64,
    /// Counters below are durably leased.
    ceiling: u64,
    /// The incarnation was chosen far from all that may be in use: that others name later ones tells nothing.
    far: bool,
    /// Others may hold a dot of this incarnation that the own copy lost: none is minted until the next one is durable.
    doubted: bool,
    /// The greatest incarnation of this node that any version has named.
    named: u16,
    /// This record is being stored.
    renewing: Option<LeaseRecord>,
}

/// The leases of a shard's slices.
#[derive(Clone, Debug)]
pub struct Leases {
    node: NodeId,
    /// The node's generation.
    start: u64,
    /// Bits of this start that no other one has.
    draw: u64,
    /// Dots leased at once.
    block: u64,
    slices: FixedMap<SliceId, Lease>,
}

impl Leases {
    /// Leases of a node in its `start`-th life.
    pub fn new(node: NodeId, start: u64) -> Leases {
        Leases { node, start, draw: 0, block: DOT_LEASE, slices: FixedMap::default() }
    }
    /// `draw`: bits of this start that no other one has.
    pub fn with_draw(self, draw: u64) -> Leases {
        Leases { draw, ..self }
    }
    /// Leases so many dots at once.
    pub fn with_block(self, block: u64) -> Leases {
        Leases { block: block.max(2), ..self }
    }
    /// Takes a slice up where its last record left it. Returns the record to make durable before the first dot is
    /// minted; `None` when the incarnations are used up.
    pub fn begin(&mut self, slice: SliceId, last: Option<LeaseRecord>) -> Option<LeaseRecord> {
        let lost = last.map_or(0, |last| self.start.saturating_sub(last.start).saturating_sub(1));
        let (incarnation, next) = match last {
            None => (1, 1),
            Some(last) if lost > 0 => {
                let left_out = u16::try_from(lost.saturating_mul(INCARNATIONS_OF_START)).ok()?;
                (last.incarnation.checked_add(left_out)?.checked_add(1)?, 1)
            }
            Some(LeaseRecord { incarnation, clean: true, ceiling, .. }) => (incarnation, ceiling.max(1)),
            Some(LeaseRecord { incarnation, clean: false, .. }) => (incarnation.checked_add(1)?, 1),
        };
        let ceiling = next.checked_add(self.block)?;
        self.slices
            .insert(slice, Lease { incarnation, next, ceiling, far: false, doubted: false, named: 0, renewing: None });
        Some(LeaseRecord { incarnation, clean: false, ceiling, start: self.start })
    }
    /// As [`Leases::begin`] for a slice whose last lease may be lost or of another life: `last` is one that was written at
    /// some time. Leaves out more incarnations than can have been used since: as many as this and all earlier starts may
    /// have taken. A disk that is `copied`, or an older state, does not know all starts: there as many more are left out as
    /// this start has drawn, the same for all slices, so that neither two copies nor two returns to one state go on as one
    /// actor.
    pub fn begin_far(&mut self, slice: SliceId, last: Option<LeaseRecord>, copied: bool) -> Option<LeaseRecord> {
        let known = u64::from(last.map_or(0, |last| last.incarnation));
        let starts = self.start.saturating_mul(INCARNATIONS_OF_START);
        // One start after the other may find this same record, when a rotten medium takes each one's own: they differ.
        let least = LOST_INCARNATIONS + if known < starts { starts } else { known + starts % LOST_INCARNATIONS };
        let room = u64::from(u16::MAX).checked_sub(least)? / 2;
        let incarnation = u16::try_from(least + if copied { self.draw % (room + 1) } else { 0 }).ok()?;
        let record =
            self.begin(slice, Some(LeaseRecord { incarnation, clean: false, ceiling: 0, start: self.start }))?;
        if let Some(lease) = self.slices.get_mut(&slice) {
            lease.far = true;
        }
        Some(record)
    }
    /// Whether the slice has a lease at all: it has none when its record is damaged.
    pub fn holds(&self, slice: SliceId) -> bool {
        self.slices.get(&slice).is_some()
    }
    /// The actor under which the slice mints.
    pub fn actor(&self, slice: SliceId) -> Actor {
        Actor::new(self.node, self.slices.get(&slice).map_or(0, |l| l.incarnation))
    }
    /// Whether a context claims dots of the slice's own actor that were never minted. `highest`: its highest counter
    /// of an actor.
    pub fn is_foreign(&self, slice: SliceId, highest: impl Fn(Actor) -> u64) -> bool {
        highest(self.actor(slice)) >= self.slices.get(&slice).map_or(0, |l| l.next)
    }
    /// A version from elsewhere names this event. Whether it is one of this node's that the slice does not remember, for
    /// the first time: then a new incarnation is due.
    pub fn notice(&mut self, slice: SliceId, dot: Dot) -> bool {
        let (own, incarnation) = (dot.actor.node() == self.node, dot.actor.incarnation());
        let Some(lease) = self.slices.get_mut(&slice).filter(|_| own) else { return false };
        let forgotten = (incarnation > lease.incarnation && !lease.far)
            || (incarnation == lease.incarnation && dot.counter >= lease.next);
        let known = lease.doubted && incarnation <= lease.named.max(lease.incarnation);
        if forgotten {
            lease.doubted = true;
            lease.named = lease.named.max(incarnation);
        }
        forgotten && !known
    }
    /// A new dot of the slice. `None` when the lease is used up or in doubt and its renewal is not durable yet.
    pub fn mint(&mut self, slice: SliceId) -> Option<Dot> {
        let actor = self.actor(slice);
        let lease = self.slices.get_mut(&slice)?;
        if lease.doubted || lease.next >= lease.ceiling {
            return None;
        }
        lease.next += 1;
        Some(Dot { actor, counter: lease.next - 1 })
    }
    /// A write that others may hold was not stored here.
    pub fn doubt(&mut self, slice: SliceId) {
        if let Some(lease) = self.slices.get_mut(&slice) {
            lease.doubted = true;
        }
    }
    /// The record to store when half of the block is used, or when the incarnation is in doubt.
    pub fn renewal(&mut self, slice: SliceId) -> Option<LeaseRecord> {
        let drawn = (self.draw % u64::from(FORGOTTEN_INCARNATIONS_DRAWN)) as u16;
        let block = self.block;
        let lease = self.slices.get_mut(&slice)?;
        let used = lease.ceiling.saturating_sub(lease.next) <= block / 2;
        if lease.renewing.is_some() || !(used || lease.doubted) {
            return None;
        }
        let (incarnation, base) = if lease.doubted {
            // Starts that are forgotten, too, may have come after the one that was named.
            let named = if lease.named > 0 { lease.named.checked_add(FORGOTTEN_INCARNATIONS + drawn)? } else { 0 };
            (lease.incarnation.max(named).checked_add(1)?, 1)
        } else {
            (lease.incarnation, lease.ceiling)
        };
        let (ceiling, start) = (base.checked_add(block)?, self.start);
        lease.renewing = Some(LeaseRecord { incarnation, clean: false, ceiling, start });
        lease.renewing
    }
    /// The renewal is durable, or failed.
    pub fn renewed(&mut self, slice: SliceId, durable: bool) {
        let Some(lease) = self.slices.get_mut(&slice) else { return };
        let Some(record) = lease.renewing.take() else { return };
        if !durable {
            return;
        }
        if record.incarnation != lease.incarnation {
            // Perhaps a later one has been named while this was written.
            let doubted = lease.named >= record.incarnation;
            (lease.incarnation, lease.next, lease.doubted) = (record.incarnation, 1, doubted);
            lease.named = if doubted { lease.named } else { 0 };
        }
        lease.ceiling = record.ceiling;
    }
    /// What to store at an orderly stop, when no task is in hand: slices in doubt are left out.
    pub fn clean(&self) -> Vec<(SliceId, LeaseRecord)> {
        let sound = self.slices.iter().filter(|(_, l)| !l.doubted && l.renewing.is_none());
        let start = self.start;
        let record = |l: &Lease| LeaseRecord { incarnation: l.incarnation, clean: true, ceiling: l.next, start };
        let mut records: Vec<_> = sound.map(|(slice, lease)| (*slice, record(lease))).collect();
        records.sort_by_key(|(slice, _)| *slice);
        records
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_is_lost_is_not_taken_again() {
        let (node, slice) = (NodeId(7), SliceId(0));
        let begin = |start, last| Leases::new(node, start).begin(slice, last).expect("incarnations are left");
        let first = begin(1, None);
        // A crash: the next incarnation. Its record is lost, and so is the one of the start after.
        let second = begin(2, Some(first));
        let fourth = begin(4, Some(first));
        assert_eq!((first.incarnation, second.incarnation), (1, 2));
        assert!(fourth.incarnation > second.incarnation + 1, "{fourth:?}");
        // An orderly stop counts only for the start that follows it.
        let clean = LeaseRecord { clean: true, ceiling: 9, ..first };
        assert_eq!(begin(2, Some(clean)).incarnation, 1);
        assert!(begin(3, Some(clean)).incarnation > 2);
        assert_eq!(Leases::new(node, u64::MAX).begin(slice, Some(first)), None);
    }

    #[test]
    fn what_came_after_a_forgotten_start_is_not_taken_either() {
        let (node, slice) = (NodeId(7), SliceId(0));
        let mut leases = Leases::new(node, 1);
        let first = leases.begin(slice, None).expect("incarnations are left");
        // Another one saw this life of the node; it has forgotten the next few as well.
        let seen = Dot { actor: Actor::new(node, first.incarnation + 3), counter: 9 };
        assert!(leases.notice(slice, seen) && !leases.notice(slice, seen));
        assert_eq!(leases.mint(slice), None);
        let next = leases.renewal(slice).expect("it is in doubt");
        assert!(next.incarnation > first.incarnation + 3 + FORGOTTEN_INCARNATIONS);
        leases.renewed(slice, true);
        assert_eq!(leases.mint(slice).map(|dot| dot.actor), Some(Actor::new(node, next.incarnation)));
        // It is known now: an ordinary doubt takes the next one.
        leases.doubt(slice);
        assert_eq!(leases.renewal(slice).map(|record| record.incarnation), Some(next.incarnation + 1));
    }

    #[test]
    fn a_disk_that_was_lost_again_and_again_takes_no_incarnation_twice() {
        let (node, slice) = (NodeId(7), SliceId(0));
        let far = |start, last, draw: Option<u64>| {
            let mut leases = Leases::new(node, start).with_draw(draw.unwrap_or(0));
            leases.begin_far(slice, last, draw.is_some()).expect("some are left")
        };
        // Emptied at each second start, with a crash in between: the count of starts is all that is left.
        let mut used = std::collections::BTreeSet::new();
        for start in (2..2_000).step_by(2) {
            let first = far(start, None, None);
            let next = Leases::new(node, start + 1).begin(slice, Some(first)).expect("some are left");
            assert!(used.insert(first.incarnation) && used.insert(next.incarnation), "{start}");
        }
        // One old record is found by many starts, one after the other: the records of all between were lost.
        let old = far(5, None, None);
        let mut used = std::collections::BTreeSet::new();
        for start in 6..200 {
            let first = far(start, Some(old), None);
            let next = Leases::new(node, start).begin(slice, Some(first)).expect("some are left");
            assert!(used.insert(first.incarnation) && used.insert(next.incarnation), "{start}");
        }
        // Set back to one state: each return goes another way, the same in all slices.
        let state = far(5, None, None);
        let (one, two) = (far(6, Some(state), Some(1 << 40)), far(6, Some(state), Some(77)));
        assert_ne!(one.incarnation, two.incarnation);
        assert!(one.incarnation > state.incarnation + 1_000 && two.incarnation > state.incarnation + 1_000);
        assert_eq!(Leases::new(node, 1 << 20).begin_far(slice, None, false), None);
    }
}
