//! What the wall clocks of other nodes show, and so whether the own one is wrong.
//!
//! Where the last write wins a write bears the wall clock's time. A node whose clock is off would lose its writes
//! silently, or win over those of hours to come. So with each round of gossip a node asks its partner for the time: the
//! answer is that of some moment between question and answer. What is kept is how far the other's clock is from the own
//! *monotonic* one, so that a jump of the own wall clock shows at once, by what is known already.
//!
//! The own clock is off when more than half of the others agree that it is, each beyond doubt and by more than
//! [`SKEW_MAX`]. With only one other, the two disagree and nobody knows who is right: both are off.

use crate::{
    limits::{CLOCK_FRESH, CLOCK_ROUND_TRIP_MAX, CLOCKS_KEPT, SKEW_MAX},
    types::{Instant, NodeId},
};
use std::time::Duration;

/// One in so many is what a clock may gain or lose.
const DRIFT: u32 = 2_000;

/// A wall clock against the own monotonic one, in nanoseconds: what it shows more.
pub type Ahead = i64;

/// What the others' clocks show, as far as more than half of them agree: none of that half is before `earliest` or
/// after `latest`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Reference {
    pub earliest: Ahead,
    pub latest: Ahead,
}

impl Reference {
    /// By how much the own clock is off beyond doubt; behind is negative.
    pub fn off(&self, own: Ahead) -> Option<i64> {
        let skew = SKEW_MAX.as_nanos() as i64;
        if own > self.latest.saturating_add(skew) {
            Some(own.saturating_sub(self.latest))
        } else if own < self.earliest.saturating_sub(skew) {
            Some(own.saturating_sub(self.earliest))
        } else {
            None
        }
    }
    /// The own clock, or what it should show.
    pub fn correct(&self, own: Ahead) -> Ahead {
        match self.off(own) {
            None => own,
            Some(ahead) if ahead > 0 => self.latest,
            Some(_) => self.earliest,
        }
    }
    /// Whether the difference is worth telling.
    pub fn is_near(&self, other: &Reference) -> bool {
        let near = |a: Ahead, b: Ahead| a.abs_diff(b) <= SKEW_MAX.as_nanos() as u64 / 20;
        near(self.earliest, other.earliest) && near(self.latest, other.latest)
    }
}

#[derive(Clone, Copy, Debug)]
struct Measure {
    node: NodeId,
    ahead: Ahead,
    error: Duration,
    at: Instant,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Clocks {
    /// The latest of each node, the latest of all last.
    measures: Vec<Measure>,
}

impl Clocks {
    /// A node has said its time, in nanoseconds since 1970, when it was asked at `asked`.
    pub fn told(&mut self, now: Instant, node: NodeId, asked: Instant, wall: u64) {
        let took = now.since(asked);
        if asked > now || took > CLOCK_ROUND_TRIP_MAX {
            return;
        }
        let error = took / 2;
        let then = i128::from(asked.0) + error.as_nanos() as i128;
        let Ok(ahead) = Ahead::try_from(i128::from(wall) - then) else { return };
        self.measures.retain(|measure| measure.node != node);
        if self.measures.len() >= CLOCKS_KEPT {
            self.measures.remove(0);
        }
        self.measures.push(Measure { node, ahead, error, at: now });
    }
    /// A node is no member any more.
    pub fn retain(&mut self, member: impl Fn(NodeId) -> bool) {
        self.measures.retain(|measure| member(measure.node));
    }
    /// Whether the node has said its time lately.
    pub fn is_fresh(&self, now: Instant, node: NodeId) -> bool {
        self.measures.iter().any(|measure| measure.node == node && now.since(measure.at) <= CLOCK_FRESH)
    }
    /// What the others show. Measures that are not fresh count only while there are no others.
    pub fn reference(&self, now: Instant) -> Option<Reference> {
        let fresh = |measure: &&Measure| now.since(measure.at) <= CLOCK_FRESH;
        let any = self.measures.iter().any(|measure| fresh(&measure));
        let counted = self.measures.iter().filter(|measure| !any || fresh(measure));
        let bounds = counted.map(|measure| {
            let error = (measure.error + now.since(measure.at) / DRIFT).as_nanos() as i64;
            (measure.ahead.saturating_sub(error), measure.ahead.saturating_add(error))
        });
        let (mut least, mut most): (Vec<Ahead>, Vec<Ahead>) = bounds.unzip();
        least.sort_unstable();
        most.sort_unstable();
        let half = least.len() / 2;
        let earliest = least.iter().rev().nth(half)?;
        let latest = most.get(half)?;
        Some(Reference { earliest: *earliest.min(latest), latest: *latest.max(earliest) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn at(millis: u64) -> Instant {
        Instant(1_000_000_000 + millis * 1_000_000)
    }
    /// Nodes whose clocks show so many seconds more than the own monotonic one.
    fn clocks(aheads: &[i64]) -> Clocks {
        let mut clocks = Clocks::default();
        for (index, ahead) in aheads.iter().enumerate() {
            let (asked, now) = (at(100), at(102));
            let wall = (asked.0 as i64 + 1_000_000 + ahead * SECOND) as u64;
            clocks.told(now, NodeId(index as u64 + 1), asked, wall);
        }
        clocks
    }
    fn off(clocks: &Clocks, own: i64) -> Option<i64> {
        let reference = clocks.reference(at(200)).expect("somebody has told");
        reference.off(own * SECOND).map(|off| (off as f64 / SECOND as f64).round() as i64)
    }

    #[test]
    fn more_than_half_of_the_others_say_who_is_off() {
        let hour = 3_600;
        assert_eq!(off(&clocks(&[100, 100]), 100), None);
        assert_eq!(off(&clocks(&[100, 100]), 100 + hour), Some(hour));
        assert_eq!(off(&clocks(&[10_000, 10_000]), 10_000 - hour), Some(-hour));
        assert_eq!(off(&clocks(&[100, 100 + hour]), 100), None, "one of two");
        assert_eq!(off(&clocks(&[100, 100 + hour, 100 + hour]), 100), Some(-hour), "two of three");
        assert_eq!(off(&clocks(&[100, 100, 100 + hour, 100 + hour]), 100), None, "two of four");
        assert_eq!(off(&clocks(&[100]), 100 + hour), Some(hour), "nobody knows which of two is right");
        assert_eq!(Clocks::default().reference(at(0)), None);
    }
    #[test]
    fn who_is_off_knows_what_it_should_show() {
        let reference = clocks(&[100, 100, 100]).reference(at(200)).expect("told");
        let near = |shown: i64| (shown - 100 * SECOND).abs() < SECOND / 100;
        assert!(near(reference.correct(9_000 * SECOND)) && near(reference.correct(-9_000 * SECOND)));
        assert_eq!(reference.correct(100 * SECOND + 400_000_000), 100 * SECOND + 400_000_000);
    }
    #[test]
    fn what_took_long_or_is_old_proves_little() {
        let mut clocks = Clocks::default();
        clocks.told(at(5_000), NodeId(1), at(0), 7);
        assert_eq!(clocks.reference(at(5_000)), None, "an answer that was long on its way");
        clocks.told(at(1_900), NodeId(1), at(0), (at(0).0 as i64 + 2 * SECOND) as u64);
        let reference = clocks.reference(at(1_900)).expect("told");
        assert_eq!(reference.off(0), None, "a second of it may be the way");
        assert!(reference.off(-SECOND).is_some());
        // A clock that was seen long ago.
        let clocks = self::clocks(&[2]);
        let later = Instant(at(0).0 + 4_000 * SECOND as u64);
        assert!(clocks.reference(at(200)).expect("told").off(0).is_some());
        assert_eq!(clocks.reference(later).expect("told").off(0), None);
        assert!(clocks.reference(later).expect("told").off(3_600 * SECOND).is_some());
    }
}
