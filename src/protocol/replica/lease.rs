//! Dots: counters leased durably in blocks for each slice before the first of a block is used, under an incarnation
//! that changes whenever the own copies may have lost a dot that others hold.
//!
//! A client's write goes to the other replicas while it is being stored here. If this node stops before its own copy
//! is durable, the others know a dot that it does not; a later dot of the same actor would cover that one in every
//! clock without its value having been seen, and the write would vanish. So a slice that was not closed in good
//! order, or whose store of a prepared write failed, goes on as a new actor. After an orderly stop it keeps its actor
//! and continues its counter: clocks grow by crashes only.
//!
//! A record says at which start of the node it was made. One that is older than the start before has had successors
//! that a rotten medium took: the incarnations that these may have used are left out.
//!
//! A disk may also be an old one: a backup, a copy, a volume set back to a snapshot; and none of them knows its age.
//! What the other members remember of the node decides (`membership::past`), before the first dot of a life: without
//! the word of all of them the slices go on far away ([`Leases::doubt_far`]). What slips through that, the replicas
//! tell: a dot that is fresh to its sender and no news to them is refused as known
//! ([`crate::protocol::message::Refusal::KnownDot`]), and each such sign doubts all slices of the node, for they come
//! from one disk.
//!
//! Where a copy is known to be one, the start leaves out many incarnations at once ([`Leases::begin_far`]); and a
//! version from elsewhere that names a dot which this node does not remember is a sign as well ([`Leases::notice`]). A
//! forged version can name any incarnation: how far ahead it lies does not decide how far the next one is, so nobody
//! can use them up from outside.
//!
//! There are 2^62 incarnations. A slice that has none left mints no more dots and says so ([`Leases::refusal`]); half
//! of them used is an alarm ([`Leases::greatest`]).

use super::Rejection;
use crate::{
    limits::{
        DOT_LEASE, FAR_INCARNATIONS_DRAWN, FORGOTTEN_INCARNATIONS, FORGOTTEN_INCARNATIONS_DRAWN, INCARNATION_MAX,
        INCARNATIONS_OF_START, LOST_INCARNATIONS, NEAR_INCARNATIONS,
    },
    protocol::{
        message::Refusal,
        ring::FixedMap,
        versions::{Actor, Dot},
    },
    types::{NodeId, SliceId},
};

/// The stored record of a lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseRecord {
    pub incarnation: u64,
    /// Whether the slice was closed in good order: then every dot minted is durable here, and `ceiling` is the next
    /// counter.
    pub clean: bool,
    /// Whether the incarnation was chosen far from those that others may know: then that they name much later ones
    /// tells nothing.
    pub far: bool,
    /// The first counter that has not been leased.
    pub ceiling: u64,
    /// The node's generation when it was made.
    pub start: u64,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    incarnation: u64,
    next: u64,
    /// The counter below which all are durably leased.
    ceiling: u64,
    /// The same as in the record.
    far: bool,
    /// Whether no incarnation is left.
    spent: bool,
    /// Whether others may hold a dot of this incarnation that the own copy lost: then none is minted until the next
    /// incarnation is durable.
    doubted: bool,
    /// The greatest incarnation of this node that any version has named.
    named: u64,
    /// The record that is being stored, if one is.
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
    /// Sets the number of dots that are leased at once.
    pub fn with_block(self, block: u64) -> Leases {
        Leases { block: block.max(2), ..self }
    }
    /// Goes on with a slice where its last record left it. Returns the record to make durable before the first dot is
    /// minted; `None` when the incarnations are used up.
    pub fn begin(&mut self, slice: SliceId, last: Option<LeaseRecord>) -> Option<LeaseRecord> {
        let known = last.map_or(0, |last| last.incarnation.min(INCARNATION_MAX));
        let record = self.first_record(last);
        let ended = LeaseRecord { incarnation: known, clean: false, far: false, ceiling: 0, start: self.start };
        let LeaseRecord { incarnation, far, ceiling, .. } = record.unwrap_or(ended);
        let (next, spent) = (ceiling.saturating_sub(self.block), record.is_none());
        let lease = Lease { incarnation, next, ceiling, far, spent, doubted: false, named: 0, renewing: None };
        self.slices.insert(slice, lease);
        record
    }
    fn first_record(&self, last: Option<LeaseRecord>) -> Option<LeaseRecord> {
        let lost = last.map_or(0, |last| self.start.saturating_sub(last.start).saturating_sub(1));
        let (incarnation, next) = match last {
            None => (1, 1),
            Some(last) if lost > 0 => {
                let left_out = lost.saturating_mul(INCARNATIONS_OF_START);
                (last.incarnation.saturating_add(left_out).saturating_add(1), 1)
            }
            Some(LeaseRecord { incarnation, clean: true, ceiling, .. }) => (incarnation, ceiling.max(1)),
            Some(LeaseRecord { incarnation, clean: false, .. }) => (incarnation.saturating_add(1), 1),
        };
        let (far, start) = (last.is_some_and(|last| last.far), self.start);
        let ceiling = next.checked_add(self.block)?;
        (incarnation <= INCARNATION_MAX).then_some(LeaseRecord { incarnation, clean: false, far, ceiling, start })
    }
    /// Begins like [`Leases::begin`], for a slice whose last lease may be lost or of another life; `last` is a record
    /// that was written at some time. It leaves out more incarnations than can have been used since: as many as this
    /// and all earlier starts may have taken. A disk that is `copied`, or an older state, does not know all starts.
    /// There as many more are left out as this start has drawn, the same for all slices, so that neither two copies nor
    /// two returns to one state go on as one actor.
    pub fn begin_far(&mut self, slice: SliceId, last: Option<LeaseRecord>, copied: bool) -> Option<LeaseRecord> {
        let known = last.map_or(0, |last| last.incarnation);
        let starts = self.start.saturating_mul(INCARNATIONS_OF_START);
        // On a rotten medium each start may lose its own record and find this same old one. They must not choose alike,
        // so the start's number is part of the choice.
        let least = if known < starts { starts } else { known.saturating_add(starts % LOST_INCARNATIONS) };
        let drawn = if copied { self.draw % FAR_INCARNATIONS_DRAWN } else { 0 };
        let incarnation = least.saturating_add(LOST_INCARNATIONS).saturating_add(drawn);
        let start = self.start;
        self.begin(slice, Some(LeaseRecord { incarnation, clean: false, far: true, ceiling: 0, start }))
    }
    /// Whether the slice has a lease at all: it has none when its record is damaged.
    pub fn holds(&self, slice: SliceId) -> bool {
        self.slices.get(&slice).is_some()
    }
    /// Whether it has one that is durable and not in doubt.
    pub fn is_sound(&self, slice: SliceId) -> bool {
        self.slices.get(&slice).is_some_and(|lease| !lease.doubted)
    }
    /// The actor under which the slice mints.
    pub fn actor(&self, slice: SliceId) -> Actor {
        Actor::new(self.node, self.slices.get(&slice).map_or(0, |l| l.incarnation))
    }
    pub fn is_own(&self, node: NodeId) -> bool {
        node == self.node
    }
    /// Whether this node may have minted the event in the slice, as far as it can know. A slice that was begun apart
    /// from lives that it does not remember cannot know of those.
    pub fn may_have_minted(&self, slice: SliceId, dot: Dot) -> bool {
        let Some(lease) = self.slices.get(&slice) else { return true };
        let incarnation = dot.actor.incarnation();
        incarnation < lease.incarnation
            || (incarnation == lease.incarnation && dot.counter < lease.next)
            || (incarnation > lease.incarnation && lease.far)
    }
    /// Whether the own copy knows dots of the slice's own actor that were never minted. `counter`: the greatest of an
    /// actor.
    pub fn is_foreign(&self, slice: SliceId, counter: impl Fn(Actor) -> u64) -> bool {
        counter(self.actor(slice)) >= self.slices.get(&slice).map_or(0, |l| l.next)
    }
    /// Whether an event of the slice's own actor has not been minted by it in this life, nor in the ones that it
    /// remembers.
    pub fn is_unminted(&self, slice: SliceId, dot: Dot) -> bool {
        dot.actor == self.actor(slice) && self.slices.get(&slice).is_some_and(|l| dot.counter >= l.next)
    }
    /// A version from elsewhere names this event. Whether it is one of this node's that the slice does not remember,
    /// for the first time: then a new incarnation is due.
    pub fn notice(&mut self, slice: SliceId, dot: Dot) -> bool {
        let (own, incarnation) = (dot.actor.node() == self.node, dot.actor.incarnation());
        let Some(lease) = self.slices.get_mut(&slice).filter(|_| own) else { return false };
        let ahead = incarnation.saturating_sub(lease.incarnation);
        let forgotten = (ahead > 0 && (ahead <= NEAR_INCARNATIONS || !lease.far))
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
        if lease.spent || lease.doubted || lease.next >= lease.ceiling {
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
    /// Why a slice mints no dot.
    pub fn refusal(&self, slice: SliceId) -> Rejection {
        match self.slices.get(&slice) {
            None => Rejection::Refused(Refusal::Damaged),
            Some(lease) if lease.spent => Rejection::IncarnationsUsedUp,
            Some(_) => Rejection::Refused(Refusal::Overloaded),
        }
    }
    /// The greatest incarnation of any slice.
    pub fn greatest(&self) -> u64 {
        self.slices.values().map(|lease| lease.incarnation).max().unwrap_or(0)
    }
    /// Makes the slice go on far away from its present incarnation, since others may hold any number of dots of lives
    /// that this disk does not remember.
    pub fn doubt_far(&mut self, slice: SliceId) {
        if let Some(lease) = self.slices.get_mut(&slice) {
            lease.doubted = true;
            // As if a version from out of sight had named one.
            lease.named = lease.named.max(lease.incarnation + NEAR_INCARNATIONS + 1);
        }
    }
    /// The slices that have leases, in order.
    pub fn slices(&self) -> Vec<SliceId> {
        let mut slices: Vec<SliceId> = self.slices.keys().copied().collect();
        slices.sort_unstable();
        slices
    }
    /// Whether an incarnation in doubt is being replaced.
    pub fn is_replacing(&self) -> bool {
        self.slices.values().any(|lease| lease.doubted && lease.renewing.is_some())
    }
    /// The record to store when half of the block is used, or when the incarnation is in doubt.
    pub fn renewal(&mut self, slice: SliceId) -> Option<LeaseRecord> {
        let drawn = self.draw % FORGOTTEN_INCARNATIONS_DRAWN;
        let drawn_far = self.draw % FAR_INCARNATIONS_DRAWN;
        let block = self.block;
        let lease = self.slices.get_mut(&slice)?;
        let used = lease.ceiling.saturating_sub(lease.next) <= block / 2;
        if lease.spent || lease.renewing.is_some() || !(used || lease.doubted) {
            return None;
        }
        let ahead = lease.named.saturating_sub(lease.incarnation);
        let (incarnation, far, base) = if !lease.doubted {
            (lease.incarnation, lease.far, lease.ceiling)
        } else if lease.named == 0 {
            (lease.incarnation + 1, lease.far, 1)
        } else if ahead <= NEAR_INCARNATIONS {
            // Starts that are forgotten, too, may have come after the one that was named.
            (lease.incarnation.max(lease.named) + FORGOTTEN_INCARNATIONS + drawn + 1, lease.far, 1)
        } else {
            // Beyond whatever counts as near, so that what was named stays behind.
            (lease.incarnation + NEAR_INCARNATIONS + FORGOTTEN_INCARNATIONS + drawn_far + 2, true, 1)
        };
        lease.spent = incarnation > INCARNATION_MAX || base.checked_add(block).is_none();
        if lease.spent {
            return None;
        }
        lease.renewing = Some(LeaseRecord { incarnation, clean: false, far, ceiling: base + block, start: self.start });
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
            let ahead = (lease.named + 1).saturating_sub(record.incarnation);
            let doubted = ahead > 0 && (ahead <= NEAR_INCARNATIONS || !record.far);
            (lease.incarnation, lease.next, lease.doubted) = (record.incarnation, 1, doubted);
            (lease.named, lease.far) = (if doubted { lease.named } else { 0 }, record.far);
        }
        lease.ceiling = record.ceiling;
    }
    /// The records to store at an orderly stop, when no task is in hand; slices in doubt are left out.
    pub fn clean(&self) -> Vec<(SliceId, LeaseRecord)> {
        let sound = self.slices.iter().filter(|(_, l)| !l.spent && !l.doubted && l.renewing.is_none());
        let start = self.start;
        let record =
            |l: &Lease| LeaseRecord { incarnation: l.incarnation, clean: true, far: l.far, ceiling: l.next, start };
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
    }

    #[test]
    fn incarnations_end_with_a_word() {
        let (node, slice) = (NodeId(7), SliceId(0));
        let last = LeaseRecord { incarnation: INCARNATION_MAX - 1, clean: false, far: false, ceiling: 9, start: 1 };
        let mut leases = Leases::new(node, 2);
        assert_eq!(leases.begin(slice, Some(last)).map(|record| record.incarnation), Some(INCARNATION_MAX));
        assert_eq!(leases.mint(slice).map(|dot| dot.actor), Some(Actor::new(node, INCARNATION_MAX)));
        assert_eq!(leases.refusal(slice), Rejection::Refused(Refusal::Overloaded), "one is left");
        // A write that was not stored wants one more.
        leases.doubt(slice);
        assert_eq!((leases.renewal(slice), leases.mint(slice)), (None, None));
        assert_eq!(leases.refusal(slice), Rejection::IncarnationsUsedUp);
        assert_eq!(leases.clean(), []);
        // And so does the start after an unclean one.
        let used_up = LeaseRecord { incarnation: INCARNATION_MAX, ..last };
        for (start, copied) in [(2, None), (9, None), (2, Some(false)), (2, Some(true))] {
            let mut leases = Leases::new(node, start).with_draw(77);
            let begun = match copied {
                None => leases.begin(slice, Some(used_up)),
                Some(copied) => leases.begin_far(slice, Some(used_up), copied),
            };
            assert_eq!((begun, leases.mint(slice), leases.renewal(slice)), (None, None, None));
            assert_eq!(leases.refusal(slice), Rejection::IncarnationsUsedUp);
            assert_eq!(leases.greatest(), INCARNATION_MAX);
        }
        // An orderly stop needs none, but counters end as well.
        let clean = LeaseRecord { clean: true, start: 1, ..used_up };
        let mut leases = Leases::new(node, 2);
        assert!(leases.begin(slice, Some(clean)).is_some() && leases.mint(slice).is_some());
        let mut leases = Leases::new(node, 2);
        assert_eq!(leases.begin(slice, Some(LeaseRecord { ceiling: u64::MAX - 1, ..clean })), None);
        assert_eq!(leases.refusal(slice), Rejection::IncarnationsUsedUp);
    }

    #[test]
    fn forged_incarnations_use_none_up() {
        let (node, slice) = (NodeId(7), SliceId(0));
        let mut leases = Leases::new(node, 1).with_draw(u64::MAX);
        leases.begin(slice, None).expect("incarnations are left");
        let mut minted = std::collections::BTreeSet::new();
        for round in 0..10_000 {
            // The greatest of all, one just out of sight, and the next counter of the present one.
            let own = leases.actor(slice);
            let ahead = [INCARNATION_MAX, own.incarnation() + NEAR_INCARNATIONS + 1, own.incarnation()][round % 3];
            leases.notice(slice, Dot { actor: Actor::new(node, ahead), counter: u64::MAX });
            if leases.renewal(slice).is_some() {
                leases.renewed(slice, true);
            }
            let dot = leases.mint(slice).expect("it goes on");
            assert!(minted.insert(dot));
        }
        assert!(leases.greatest() < INCARNATION_MAX / 100, "{}", leases.greatest());
    }
}
