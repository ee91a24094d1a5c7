//! Stamps for tables where the last write wins, and why storing one needs no read.
//!
//! A stamp is the wall clock's time or, where that is behind, one more than the greatest stamp that this shard has met:
//! a hybrid logical clock. So a write that is coordinated here is newer than all that is stored here.
//!
//! A write from another replica is newer than what is stored if it is newer than every stamp stored lately for the key,
//! and newer than all stored before: the newest stamps of the last few tens of thousands of writes are kept in memory
//! by the key's token, and no stamp that is stored and not kept is above the *floor*. What is at the floor or below,
//! and what meets a newer stamp under its token, is compared with the record itself: late messages, hints, repairs.
//!
//! After a crash the floor is where nothing stored can be above: each slice has a record of a *ceiling*, written with
//! the first stamp that passes the one before, so it costs a small record each [`STAMP_LEAD`]. Until the clock has
//! passed it, writes are compared with the records that they replace. A clock that was set back is no different: its
//! stamps are at the floor, or follow the greatest one met.
//!
//! A write that is stamped more than [`SKEW_MAX`] ahead of the own clock is refused: it would drag all clocks along,
//! and win over writes of hours to come. So is one that this shard would have to stamp so far ahead, because what is
//! stored or what its writer has read is of such a time: all others would refuse it. What has been stored somewhere
//! already (a hint that is delivered, a repair) is taken whatever its stamp: replicas must become equal. A node that is
//! alone in its cluster goes by no other clock, and refuses nothing.

use crate::{
    limits::{REQUEST_TIMEOUT_MAX, SKEW_MAX, STAMP_CORES, STAMP_LEAD, STAMPS_KEPT},
    protocol::{ring::FixedMap, versions::Dot},
    types::{NodeId, ShardId, SliceId, Token},
};

/// The floor of a slice of which nothing is known: everything in it is read before it is replaced.
pub const UNKNOWN: u64 = u64::MAX;

pub(super) const SKEW: u64 = SKEW_MAX.as_nanos() as u64;

/// By time, then node.
pub(super) fn order(stamp: Dot) -> (u64, NodeId) {
    (stamp.counter, stamp.actor.node())
}

#[derive(Clone, Copy, Debug, Default)]
struct Slice {
    /// No stamp stored in an earlier life is above.
    floor: u64,
    /// What is durably known as the floor of the next life.
    ceiling: u64,
    /// The greatest that has been asked to be stored as such. Stores are in flight together and end in any order, so
    /// what is asked for later is never less: the record cannot go back.
    asked: u64,
    /// The greatest stamp stored.
    greatest: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Stamps {
    node: NodeId,
    /// The core that mints. Each core of a node has times of its own, so that no two give out the same stamp: any core
    /// that takes a write from its client stamps it, whichever core owns the key.
    core: u64,
    /// Nanoseconds since 1970 by the wall clock.
    wall: u64,
    /// There is no other node.
    alone: bool,
    /// The greatest stamp made or met.
    last: u64,
    slices: FixedMap<SliceId, Slice>,
    /// The newest stamps stored in this life, by token: those of the present generation, and of the one before.
    young: FixedMap<Token, Dot>,
    old: FixedMap<Token, Dot>,
    /// No stamp of this life that is not kept is above.
    floor: u64,
    /// Stamps of a generation that are kept.
    kept_max: usize,
    /// Stamps refused because they were too far ahead.
    pub refused: u64,
}

impl Stamps {
    /// `floors`: what the slices' records say; [`UNKNOWN`] for one that cannot be read.
    pub fn new(node: NodeId, floors: Vec<(SliceId, u64)>) -> Stamps {
        let ceiling = |floor| if floor == UNKNOWN { 0 } else { floor };
        let slice = |(id, floor)| (id, Slice { floor, ceiling: ceiling(floor), ..Slice::default() });
        Stamps {
            node,
            core: 0,
            wall: 0,
            alone: false,
            last: 0,
            slices: floors.into_iter().map(slice).collect(),
            young: FixedMap::default(),
            old: FixedMap::default(),
            floor: 0,
            kept_max: STAMPS_KEPT,
            refused: 0,
        }
    }
    /// Mints for this core of the node.
    pub fn of_core(self, core: ShardId) -> Stamps {
        Stamps { core: u64::from(core.0), ..self }
    }
    /// The first time of this core at or after this one.
    fn own(&self, time: u64) -> u64 {
        time.saturating_add(self.core.wrapping_sub(time) % STAMP_CORES)
    }
    /// Keeps so many stamps of a generation.
    pub fn keep(&mut self, kept_max: usize) {
        self.kept_max = kept_max.max(1);
    }
    /// The wall clock shows this, in nanoseconds since 1970, as far as others agree; it may jump.
    pub fn time_is(&mut self, wall: u64, alone: bool) {
        (self.wall, self.alone) = (wall, alone);
    }
    /// The latest time that others take.
    fn bound(&self) -> u64 {
        if self.alone { u64::MAX } else { self.wall.saturating_add(SKEW) }
    }

    /// A stamp greater than `after`, and than all that this shard has met. `None`: others would refuse it.
    pub fn mint(&mut self, after: u64) -> Option<Dot> {
        let bound = self.bound();
        if self.last > bound {
            // Of a clock that has been set back since. Whatever is stored of that time is asked itself.
            self.last = self.wall;
        }
        let next = self.own(self.last.saturating_add(1));
        let time = self.own(self.wall).max(next).max(self.own(after.saturating_add(1)));
        if time > bound {
            return None;
        }
        // One from the far future, of a clock that was wrong, does not drag others along.
        if time <= self.wall.saturating_add(SKEW) || time == next {
            self.last = time;
        }
        Some(Dot::stamp(time, self.node))
    }
    /// A stamp from elsewhere is taken note of; `false`: it is too far ahead.
    pub fn meet(&mut self, stamp: Dot) -> bool {
        let sound = stamp.counter <= self.bound();
        if sound {
            self.last = self.last.max(stamp.counter);
        }
        sound
    }
    /// Whether a request that was stamped so would have ended long ago: its clock is behind.
    pub fn is_stale(&self, stamp: Dot) -> bool {
        !self.alone && stamp.counter.saturating_add(REQUEST_TIMEOUT_MAX.as_nanos() as u64 + SKEW) < self.wall
    }

    /// Whether nothing that is stored of the key can be newer, so that it need not be read.
    pub fn is_newest(&self, slice: SliceId, token: Token, stamp: Dot) -> bool {
        let floor = self.slices.get(&slice).map_or(0, |s| s.floor).max(self.floor);
        let kept = self.young.get(&token).or_else(|| self.old.get(&token));
        stamp.counter > floor && kept.is_none_or(|kept| order(*kept) < order(stamp))
    }
    /// What must be stored with this stamp as the slice's ceiling, if it is above the one that is durable.
    pub fn raise(&mut self, slice: SliceId, stamp: Dot) -> Option<u64> {
        let place = self.slices.entry(slice).or_default();
        if stamp.counter <= place.ceiling {
            return None;
        }
        let lead = stamp.counter.saturating_add(STAMP_LEAD.as_nanos() as u64);
        place.asked = place.asked.max(lead);
        Some(place.asked)
    }
    /// A record with this stamp is stored, and with it the ceiling.
    pub fn stored(&mut self, slice: SliceId, token: Token, stamp: Dot, ceiling: Option<u64>) {
        let place = self.slices.entry(slice).or_default();
        place.ceiling = place.ceiling.max(ceiling.unwrap_or(0));
        place.greatest = place.greatest.max(stamp.counter);
        if self.young.len() >= self.kept_max {
            let forgotten = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
            self.floor = forgotten.values().map(|stamp| stamp.counter).max().unwrap_or(0).max(self.floor);
        }
        let kept = self.young.entry(token).or_insert(stamp);
        if order(*kept) < order(stamp) {
            *kept = stamp;
        }
    }
    /// Exact floors for the next life, at an orderly stop: of the slices that stored any stamp.
    pub fn clean(&self) -> Vec<(SliceId, u64)> {
        // What was not known is not above a ceiling of now, unless clocks were wrong by more than its lead.
        let least = |s: &Slice| if s.floor == UNKNOWN { s.ceiling } else { s.floor };
        let floor = |(id, s): (&SliceId, &Slice)| (s.greatest > 0).then(|| (*id, s.greatest.max(least(s))));
        let mut floors: Vec<(SliceId, u64)> = self.slices.iter().filter_map(floor).collect();
        floors.sort_unstable();
        floors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const SECOND: u64 = 1_000_000_000;
    const SLICE: SliceId = SliceId(3);

    fn stamps(wall: u64) -> Stamps {
        let mut stamps = Stamps::new(A, vec![]);
        stamps.time_is(wall, false);
        stamps
    }

    #[test]
    fn stamps_grow_whatever_the_clock_does() {
        let mut stamps = stamps(100 * SECOND);
        stamps.alone = true;
        let mut last = stamps.mint(0).expect("a sound clock");
        for wall in [100 * SECOND, 7 * SECOND, 101 * SECOND, 0, 200 * SECOND] {
            stamps.time_is(wall, true);
            let next = stamps.mint(0).expect("a sound clock");
            assert!(next.counter > last.counter, "{wall}");
            last = next;
        }
        assert_eq!(last.counter, 200 * SECOND);
        assert!(stamps.meet(Dot::stamp(last.counter + 400_000_000, B)));
        assert_eq!(stamps.mint(0).expect("a sound clock").counter, last.counter + 400_000_000 + STAMP_CORES);
        assert_eq!(stamps.mint(300 * SECOND).expect("alone").counter, 300 * SECOND + STAMP_CORES);
        assert!(stamps.mint(0).expect("a sound clock").counter < 201 * SECOND);
    }

    #[test]
    fn cores_of_a_node_never_give_out_the_same_stamp() {
        let mut cores = [0, 1, 255].map(|core| {
            let mut stamps = Stamps::new(A, vec![]).of_core(ShardId(core));
            stamps.time_is(100 * SECOND + 3, true);
            stamps
        });
        let all: std::collections::BTreeSet<u64> =
            (0..300).map(|turn| cores[turn % 3].mint(0).expect("alone").counter).collect();
        assert_eq!(all.len(), 300);
    }

    #[test]
    fn what_all_others_would_refuse_is_not_made() {
        let mut stamps = stamps(100 * SECOND);
        assert!(stamps.mint(100 * SECOND + SKEW).is_none(), "what is stored is of a time to come");
        assert_eq!(stamps.mint(100 * SECOND + SKEW - 1).expect("just so").counter, 100 * SECOND + SKEW);
        // The clock was an hour ahead, and is mended.
        stamps.time_is(3_700 * SECOND, false);
        assert_eq!(stamps.mint(0).expect("by its own clock").counter, 3_700 * SECOND);
        stamps.time_is(101 * SECOND, false);
        assert_eq!(stamps.mint(0).expect("mended").counter, 101 * SECOND + STAMP_CORES);
        assert!(stamps.mint(3_700 * SECOND).is_none());
        assert!(stamps.is_stale(Dot::stamp(40 * SECOND, B)) && !stamps.is_stale(Dot::stamp(41 * SECOND, B)));
    }

    #[test]
    fn stamps_from_the_future_are_refused() {
        let mut stamps = stamps(100 * SECOND);
        let bound = 100 * SECOND + SKEW_MAX.as_nanos() as u64;
        assert!(!stamps.meet(Dot::stamp(bound + 1, B)) && !stamps.meet(Dot::stamp(u64::MAX, B)));
        assert_eq!(stamps.mint(0).expect("a sound clock").counter, 100 * SECOND);
        assert!(stamps.meet(Dot::stamp(bound, B)));
    }

    /// Against a map of what is stored: a stamp said to be the newest is.
    #[test]
    fn what_is_said_to_be_the_newest_is() {
        let mut rng = fastrand::Rng::with_seed(7);
        let (mut stamps, mut stored) = (stamps(SECOND), std::collections::BTreeMap::<u64, Dot>::new());
        let (mut blind, mut compared) = (0, 0);
        for step in 0..6 * STAMPS_KEPT as u64 {
            stamps.time_is(SECOND + step * 1_000, false);
            let token = rng.u64(0..20_000);
            let late = if rng.u8(0..20) == 0 { rng.u64(0..400_000_000) } else { rng.u64(0..200_000) };
            let time = (SECOND + step * 1_000).saturating_sub(late);
            let stamp = if rng.bool() { Dot::stamp(time, B) } else { stamps.mint(0).expect("a sound clock") };
            assert!(stamps.meet(stamp));
            let newer = stored.get(&token).is_none_or(|s| order(*s) < order(stamp));
            if stamps.is_newest(SLICE, Token(token), stamp) {
                assert!(newer, "{step}");
                blind += 1;
            } else {
                compared += 1;
            }
            if newer {
                let ceiling = stamps.raise(SLICE, stamp);
                stamps.stored(SLICE, Token(token), stamp, ceiling);
                stored.insert(token, stamp);
            }
        }
        assert!(blind > 9 * compared, "{blind} {compared}");
    }

    /// Two stores in flight, the second with an earlier stamp: whichever ends first, and whichever a crash takes, the
    /// record on disk is above all stamps that are.
    #[test]
    fn the_ceiling_on_disk_never_goes_back() {
        let mut before = stamps(100 * SECOND);
        let late = Dot::stamp(100 * SECOND, B);
        let early = Dot::stamp(60 * SECOND, B);
        let first = before.raise(SLICE, late).expect("nothing is durable yet");
        let second = before.raise(SLICE, early).expect("nothing is durable yet");
        // The log keeps their order, so that the second is what a later life reads.
        assert!(second >= first, "the record goes back from {first} to {second}");
        before.stored(SLICE, Token(2), early, Some(second));
        before.stored(SLICE, Token(1), late, Some(first));
        // Below what was said to be the ceiling: no record goes with it.
        let third = Dot::stamp(first - 1, B);
        assert_eq!(before.raise(SLICE, third), None);
        before.stored(SLICE, Token(1), third, None);
        let mut after = Stamps::new(A, vec![(SLICE, second)]);
        after.time_is(first - 2, false);
        assert!(!after.is_newest(SLICE, Token(1), Dot::stamp(first - 2, A)), "{third:?} is stored");
    }

    #[test]
    fn after_a_crash_nothing_is_taken_for_new_that_might_not_be() {
        let mut before = stamps(100 * SECOND);
        let stamp = before.mint(0).expect("a sound clock");
        let known = before.raise(SLICE, stamp).expect("the first one");
        before.stored(SLICE, Token(1), stamp, Some(known));
        assert_eq!(before.raise(SLICE, Dot::stamp(known, B)), None);
        assert_eq!(before.clean(), [(SLICE, stamp.counter)]);
        let mut after = Stamps::new(A, vec![(SLICE, known)]);
        // The clock was set back meanwhile.
        after.time_is(50 * SECOND, false);
        let early = after.mint(0).expect("a sound clock");
        assert!(!after.is_newest(SLICE, Token(1), early) && after.is_newest(SliceId(4), Token(1), early));
        let mut lost = Stamps::new(A, vec![(SLICE, UNKNOWN)]);
        lost.time_is(100 * SECOND, false);
        let stamp = lost.mint(0).expect("a sound clock");
        assert!(!lost.is_newest(SLICE, Token(1), stamp));
        let ceiling = lost.raise(SLICE, stamp);
        assert!(ceiling.is_some_and(|c| c > stamp.counter));
        lost.stored(SLICE, Token(1), stamp, ceiling);
        assert_eq!(lost.clean(), [(SLICE, ceiling.unwrap_or(0))]);
        after.time_is(known + 1, false);
        let late = after.mint(0).expect("a sound clock");
        assert!(after.is_newest(SLICE, Token(1), late));
    }
}
