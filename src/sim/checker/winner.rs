//! One winner everywhere (I8): keys of a table in which the last write wins.
//!
//! Every write has a stamp, of time and node; a state is the write with the greatest, and shows its value, or that it
//! was a delete. So nothing is said of causes and siblings here. A read shows one value at most; where quorums overlap,
//! none with a stamp below those acknowledged before; and in the end the winner is no older than any acknowledged
//! write, neither by stamp nor, beyond what clocks may differ by, by true time. A request that was passed on to two
//! coordinators is stamped by both, and by the second as late as its deadline, whatever its client has been told by
//! then: so long it counts as being made.

use super::{End, Event, EventId, History, Invariant, Kind, Seen, Verdict};
use crate::{
    limits::SKEW_MAX,
    protocol::versions::{Actor, Context, Dot, Siblings},
};
use std::time::Duration;

/// By time, then node.
pub type Stamp = (u64, Actor);

pub(super) fn stamp_of(dot: Dot) -> Stamp {
    (dot.counter, dot.actor)
}
/// What stamps may lie apart from true time: a clock's skew, and what another's has dragged it along by.
const APART: Duration = SKEW_MAX.saturating_mul(2);
/// What messages and disks take beyond a request's deadline.
const SLACK: Duration = Duration::from_secs(1);

impl History {
    /// A read of such a key has shown this.
    pub(super) fn check_lone_value(&mut self, key: u32, shown: &Seen, siblings: &Siblings) -> Verdict {
        let stamp = siblings.head.stamp();
        if shown.len() > 1 || shown.iter().any(|(_, dot)| Some(*dot) != stamp) {
            let text =
                format!("{:?}: {} values are shown of a key where one wins: {shown:?}", self.key(key), shown.len());
            return Err((Invariant::I8, text));
        }
        let Some(stamp) = stamp.map(stamp_of) else { return Ok(()) };
        let (shown, puts) = (shown.first().map(|(id, _)| *id), Some(Kind::Put));
        let told = self.keys[key as usize].stamps.get(&stamp).copied();
        let fits = match told {
            Some(id) => {
                let kind = Some(self.events[id.0 as usize].kind);
                if kind == puts { shown == Some(id) } else { shown.is_none() }
            }
            // Of a write that has no answer yet, or was sent or passed on twice.
            None => {
                self.excuses.untold_stamps += 1;
                shown.is_some() || !self.tombstones(key).is_empty()
            }
        };
        if fits {
            return Ok(());
        }
        let (name, shown, told) = (self.key(key), shown.map(|id| id.0 + 1), told.map(|id| id.0 + 1));
        let text =
            format!("{name:?}: stamp {stamp:?} was given to write {told:?}, and write {shown:?} is shown with it");
        Err((Invariant::I8, text))
    }
    /// Deletes of the key that may have left a tombstone.
    fn tombstones(&self, key: u32) -> Vec<EventId> {
        let deletes = self.keys[key as usize].deletes.iter().copied();
        let told = |e: &Event| e.end == End::Acknowledged && e.attempts == 1;
        let may = |id: &EventId| {
            let event = &self.events[id.0 as usize];
            event.end != End::NotApplied && !told(event)
        };
        deletes.filter(may).collect()
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
        let first = *history.stamps.entry(stamp).or_insert(id);
        if first != id {
            let (name, first) = (&self.names[key], first.0 + 1);
            let text = format!("{name:?}: writes {first} and {} were both told stamp {stamp:?}", id.0 + 1);
            return Err((Invariant::I8, text));
        }
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
    pub(super) fn check_winner(&mut self, key: u32, shown: &Seen, last: &Siblings) -> Verdict {
        let history = &self.keys[key as usize];
        self.check_stamp(key, history.greatest, last)?;
        let Some(stamp) = last.head.stamp().map(stamp_of) else { return Ok(()) };
        if stamp.0 > self.wall_end.saturating_add(APART.as_nanos() as u64) {
            let text = format!("{:?}: the winner is stamped {stamp:?}, a time to come", self.key(key));
            return Err((Invariant::I8, text));
        }
        // A tombstone does not say whose it is: the latest of those that it may be of.
        let known = shown.first().map(|(id, _)| *id).or_else(|| history.stamps.get(&stamp).copied());
        let candidates = known.map_or_else(|| self.tombstones(key), |id| vec![id]);
        let ended = |id: &EventId| self.events[id.0 as usize].ended;
        let Some(winner) = candidates.into_iter().max_by_key(ended) else { return Ok(()) };
        let ended = ended(&winner);
        let latest = history
            .puts
            .iter()
            .chain(&history.deletes)
            .copied()
            .filter(|id| self.events[id.0 as usize].end == End::Acknowledged);
        let latest = latest.max_by_key(|id| self.events[id.0 as usize].started);
        let apart = latest.map_or(Duration::ZERO, |id| self.events[id.0 as usize].started.since(ended));
        let loser = latest.filter(|_| apart > APART + self.patience * 2 + SLACK);
        self.excuses.winners_within_skew += u64::from(!apart.is_zero());
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
