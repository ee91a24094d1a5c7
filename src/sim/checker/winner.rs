//! One winner everywhere (I8): keys of a table in which the last write wins.
//!
//! Every write has a stamp, of time and node; a state is the write with the greatest. So nothing is said of causes and
//! siblings here. A read shows one value at most; where quorums overlap, none with a stamp below those acknowledged
//! before; and in the end the winner is no older than any acknowledged write, neither by stamp nor, beyond what clocks
//! may differ by, by true time. A request that was passed on to two coordinators is stamped by both, and by the second
//! as late as its deadline, whatever its client has been told by then: so long it counts as being made.

use super::{End, EventId, History, Invariant, Seen, Verdict};
use crate::{
    limits::SKEW_MAX,
    protocol::versions::{Context, Dot, Siblings},
};
use std::time::Duration;

/// By time, then node.
pub type Stamp = (u64, u64);

fn stamp_of(dot: Dot) -> Stamp {
    (dot.counter, dot.actor.0)
}
/// What stamps may lie apart from true time: a clock's skew, and what another's has dragged it along by.
const APART: Duration = SKEW_MAX.saturating_mul(2);
/// What messages and disks take beyond a request's deadline.
const SLACK: Duration = Duration::from_secs(1);

impl History {
    /// A read of such a key has shown this.
    pub(super) fn check_lone_value(&self, key: u32, shown: &Seen, siblings: &Siblings) -> Verdict {
        let stamp = siblings.head.stamp();
        if shown.len() > 1 || shown.iter().any(|(_, dot)| Some(*dot) != stamp) {
            let text =
                format!("{:?}: {} values are shown of a key where one wins: {shown:?}", self.key(key), shown.len());
            return Err((Invariant::I8, text));
        }
        Ok(())
    }
    /// A write of such a key was acknowledged: its stamp. `needed`: how many home replicas have it for sure.
    pub(super) fn acknowledge_stamp(&mut self, id: EventId, needed: Option<usize>, answer: &Context) -> Verdict {
        let event = &self.events[id.0 as usize];
        let (key, replicas) = (event.key as usize, self.replicas);
        let stamp = answer.clock.entries().iter().chain(&answer.dots).copied().filter(|d| d.is_stamp());
        let Some(stamp) = stamp.map(stamp_of).max() else {
            let text = format!("{:?}: the answer to write {} has no stamp", self.names[key], id.0 + 1);
            return Err((Invariant::I8, text));
        };
        let history = &mut self.keys[key];
        history.greatest = history.greatest.max(stamp);
        if let Some(needed) = needed.filter(|_| self.overlaps) {
            history.floors.resize_with(replicas, Default::default);
            let floor = &mut history.floors[needed - 1].stamp;
            *floor = (*floor).max(stamp);
        }
        Ok(())
    }
    /// An answer against the stamps acknowledged before its request.
    pub(super) fn check_stamp(&self, key: u32, least: Stamp, siblings: &Siblings) -> Verdict {
        let stamp = siblings.head.stamp().map(stamp_of).unwrap_or_default();
        if stamp >= least {
            return Ok(());
        }
        let text =
            format!("{:?}: stamp {least:?} was acknowledged before this read, which shows {stamp:?}", self.key(key));
        Err((Invariant::I8, text))
    }
    /// What all replicas agree on in the end.
    pub(super) fn check_winner(&self, key: u32, shown: &Seen, last: &Siblings) -> Verdict {
        let history = &self.keys[key as usize];
        self.check_stamp(key, history.greatest, last)?;
        let Some((winner, _)) = shown.first() else { return Ok(()) };
        let ended = self.events[winner.0 as usize].ended;
        let loser = history.puts.iter().chain(&history.deletes).find(|id| {
            let event = &self.events[id.0 as usize];
            event.end == End::Acknowledged && event.started.since(ended) > APART + self.patience * 2 + SLACK
        });
        match loser {
            None => Ok(()),
            Some(loser) => {
                let (name, winner) = (self.key(key), winner.0 + 1);
                let text = format!("{name:?}: write {winner} has won over write {}, made much later", loser.0 + 1);
                Err((Invariant::I8, text))
            }
        }
    }
}
