//! Works in tables where the last write wins: stored without a read wherever nothing stored can be newer.

use super::{
    Change, Rejection, Replica, Stored, Task, Work, keys,
    stamps::{SKEW, order},
    works::{Next, entry_of, parse},
};
use crate::{
    protocol::{
        message::Refusal,
        versions::{Context, Dot, Head, Siblings, Values},
    },
    types::Conflict,
};

impl<O: Clone> Replica<O> {
    /// What a stamped write does if nothing stored can be newer; `None`: the record must be read.
    pub(super) fn without_read(&mut self, id: u64) -> Option<Result<Next, Rejection>> {
        let task = self.tasks.get(&id)?;
        let (slice, token) = (task.slice, task.key.token());
        match &task.work {
            Work::Put { .. } | Work::Delete { .. } => {
                let stamp = match self.stamp_of(id, 0) {
                    Ok(stamp) => stamp,
                    Err(rejection) => return Some(Err(rejection)),
                };
                self.stamps.is_newest(slice, token, stamp).then(|| self.stamped(id, stamp))
            }
            Work::Merge { siblings, awaited, .. } => {
                let (stamp, fresh) = (siblings.head.stamp()?, *awaited);
                let siblings = siblings.join(siblings, Conflict::LastWriteWins);
                if let Err(refusal) = self.meet(stamp, fresh) {
                    return Some(Err(Rejection::Refused(refusal)));
                }
                let newest = self.stamps.is_newest(slice, token, stamp);
                newest.then_some(Ok(Next::Write { siblings, context: None }))
            }
            Work::KeepHint { parked: Some(parked), .. } => {
                let stamp = parked.head.stamp()?;
                self.meet(stamp, true).err().map(|refusal| Err(Rejection::Refused(refusal)))
            }
            Work::Rebuild { .. }
            | Work::KeepHint { parked: None, .. }
            | Work::DropHint { .. }
            | Work::GiveUpHint { .. }
            | Work::MarkBehind { .. } => None,
        }
    }
    /// Takes note of a stamp. One of a write that is being made must be of now.
    fn meet(&mut self, stamp: Dot, fresh: bool) -> Result<(), Refusal> {
        let refusal = match (self.stamps.meet(stamp), self.stamps.is_stale(stamp)) {
            (false, _) if fresh => Refusal::ClockAhead,
            (_, true) if fresh => Refusal::ClockBehind,
            _ => return Ok(()),
        };
        self.stamps.refused += 1;
        Err(refusal)
    }
    /// A client's write upon what is stored, which may be of a time that this clock has not reached.
    pub(super) fn write_stamped(&mut self, id: u64, stored: Option<Stored>) -> Result<Next, Rejection> {
        let stored = parse(stored)?.0.stamp();
        let stamp = self.stamp_of(id, stored.map_or(0, |stored| stored.counter))?;
        // One that was stamped before it came here keeps its stamp, or it would be another write each time it comes.
        if stored.is_some_and(|stored| order(stored) > order(stamp)) {
            return Err(Rejection::Overtaken);
        }
        self.stamped(id, stamp)
    }
    /// A write from another replica has lost against one that was made so much later that its maker's clock must be
    /// behind, or it was on its way for too long: it does not count as stored.
    pub(super) fn is_overtaken(&self, siblings: &Siblings, stored: Option<&Stored>) -> bool {
        let stored = stored.and_then(|stored| Head::decode(&stored.head).ok()).and_then(|head| head.stamp());
        let (Some(stored), Some(stamp)) = (stored, siblings.head.stamp()) else { return false };
        stored.counter > stamp.counter.saturating_add(SKEW)
    }
    /// The stamp that the write came with, or one after all that this shard has met, that the writer has read, and that
    /// is stored.
    fn stamp_of(&mut self, id: u64, stored: u64) -> Result<Dot, Rejection> {
        let Some(Task { work: Work::Put { context, stamp, .. } | Work::Delete { context, stamp, .. }, .. }) =
            self.tasks.get(&id)
        else {
            unreachable!("only a client's write is given a stamp");
        };
        match *stamp {
            Some(stamp) => self.meet(stamp, true).map(|()| stamp).map_err(Rejection::Refused),
            None => {
                let after = latest_seen(context.as_ref()).max(stored);
                self.stamps.mint(after).ok_or(Rejection::Clock)
            }
        }
    }
    fn stamped(&self, id: u64, stamp: Dot) -> Result<Next, Rejection> {
        let Some(task) = self.tasks.get(&id) else { return Ok(Next::Nothing) };
        let siblings = match &task.work {
            Work::Put { .. } if self.short_of_space => return Err(Rejection::Refused(Refusal::DiskFull)),
            Work::Put { value, write_id, .. } => {
                let entry = entry_of(value, stamp, *write_id);
                let values: Values = [value.bytes.clone()].into_iter().collect();
                Siblings { head: Head { life: task.life, ..Head::stamped(stamp, Some(entry)) }, values }
            }
            _ => Siblings { head: Head { life: task.life, ..Head::stamped(stamp, None) }, values: Values::new() },
        };
        let context = Context::from(siblings.head.clock.clone());
        Ok(Next::Write { siblings, context: Some(context) })
    }
    /// Remembers what is being stored; the slice's new ceiling, if it needs one.
    pub(super) fn note_stamp(&mut self, id: u64, head: &Head) -> Option<Change> {
        let task = self.tasks.get_mut(&id)?;
        let stamp = head.stamp().filter(|_| task.conflict == Conflict::LastWriteWins)?;
        let ceiling = self.stamps.raise(task.slice, stamp);
        task.stamp = Some((stamp, ceiling));
        let record = Some((keys::stamps_head(ceiling?), Values::new()));
        Some(Change { slice: task.slice, key: keys::stamps_key(), record })
    }
}

/// The time of the latest write that a writer has seen, 0 when it has seen none.
pub fn latest_seen(context: Option<&Context>) -> u64 {
    let seen = context.into_iter().flat_map(|context| context.clock.entries().iter().chain(&context.dots));
    seen.filter(|dot| dot.is_stamp()).map(|dot| dot.counter).max().unwrap_or(0)
}
