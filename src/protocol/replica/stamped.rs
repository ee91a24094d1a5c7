//! Works in tables where the last write wins: stored without a read wherever nothing stored can be newer.

use super::{
    Change, Rejection, Replica, Stored, Work, keys,
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
                let stamp = self.next_stamp_of(id, None)?;
                self.stamps.is_newest(slice, token, stamp).then(|| self.stamped(id, stamp))
            }
            Work::Merge { siblings, .. } => {
                let stamp = siblings.head.stamp()?;
                if !self.stamps.meet(stamp) {
                    self.stamps.refused += 1;
                    return Some(Err(Rejection::Refused(Refusal::ClockAhead)));
                }
                let siblings = siblings.join(siblings, Conflict::LastWriteWins);
                let newest = self.stamps.is_newest(slice, token, stamp);
                newest.then_some(Ok(Next::Write { siblings, context: None }))
            }
            Work::KeepHint { parked: Some(parked), .. } => {
                let ahead = parked.head.stamp().is_some_and(|stamp| !self.stamps.meet(stamp));
                self.stamps.refused += u64::from(ahead);
                ahead.then_some(Err(Rejection::Refused(Refusal::ClockAhead)))
            }
            Work::Rebuild { .. }
            | Work::KeepHint { parked: None, .. }
            | Work::DropHint { .. }
            | Work::GiveUpHint { .. }
            | Work::MarkBehind { .. } => None,
        }
    }
    /// A client's write upon what is stored, which may be of a time that this clock has not reached.
    pub(super) fn write_stamped(&mut self, id: u64, stored: Option<Stored>) -> Result<Next, Rejection> {
        let (head, _) = parse(stored)?;
        match self.next_stamp_of(id, head.stamp()) {
            Some(stamp) => self.stamped(id, stamp),
            None => Ok(Next::Nothing),
        }
    }
    /// After all that this shard has met, and all that the writer has read.
    fn next_stamp_of(&mut self, id: u64, stored: Option<Dot>) -> Option<Dot> {
        let (Work::Put { context, .. } | Work::Delete { context, .. }) = &self.tasks.get(&id)?.work else {
            return None;
        };
        let seen = context.iter().flat_map(|context| context.clock.entries().iter().chain(&context.dots));
        let seen = seen.copied().filter(|dot| dot.is_stamp()).max_by_key(|dot| dot.counter);
        if let Some(seen) = seen {
            self.stamps.meet(seen);
        }
        Some(self.stamps.mint(stored))
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
