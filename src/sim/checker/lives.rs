//! Keys whose tables are made and dropped while they are written: each write is judged by what it was written in.
//!
//! The history of a table is cut into stretches. In a settled one all nodes that serve go by the same word: the keys
//! belong to the table `default`, or to one life of the table. Between those, while a change is on its way, nobody can
//! say what a write belongs to; nor can it of a write that reaches from one stretch into another. Of the others:
//!
//! - what was written in a life of the table that was dropped is never shown again (I4);
//! - what was acknowledged in the last life, or in `default` and not touched by a table since, is there in the end, or
//!   was superseded by a writer who had seen it (I1); where the last write wins, the winner is no older (I8).

use super::{End, EventId, History, Invariant, Kind, Seen, Verdict, winner};
use crate::{
    protocol::{
        ring::FixedMap,
        versions::{Context, Siblings},
    },
    types::Conflict,
};

/// What all nodes go by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settled {
    /// The version of the latest drop.
    pub dropped: u64,
    /// Of the table; `None`: there is none.
    pub conflict: Option<Conflict>,
}

/// By table; the number of a stretch is its place. `None`: a change is on its way.
pub(super) type Stretches = Vec<Option<Settled>>;

impl History {
    /// `of`: by key, which table it belongs to, when that is made and dropped.
    pub fn set_tables(&mut self, of: Vec<Option<usize>>, count: usize) {
        self.table_of = of;
        self.stretches = vec![vec![Some(Settled::default())]; count];
    }
    pub fn has_table(&self, key: u32) -> bool {
        self.table_of.get(key as usize).copied().flatten().is_some()
    }
    /// The table is about to change.
    pub fn table_changes(&mut self, table: usize) {
        self.stretches[table].push(None);
    }
    pub fn table_settled(&mut self, table: usize, settled: Settled) {
        self.stretches[table].push(Some(settled));
    }
    /// The present stretch of the key's table.
    pub fn stretch(&self, key: u32) -> u32 {
        let table = self.table_of.get(key as usize).copied().flatten();
        table.map_or(0, |table| self.stretches[table].len() as u32 - 1)
    }
    fn settled(&self, key: u32, stretch: u32) -> Option<Settled> {
        let table = self.table_of.get(key as usize).copied().flatten()?;
        self.stretches[table].get(stretch as usize).copied().flatten()
    }
    /// Whether an answer to a request that was begun in this stretch, and has come now, may be by the rule that the
    /// last write wins.
    pub(super) fn may_win(&self, key: u32, stretch: u32) -> bool {
        if !self.has_table(key) {
            return self.stamped;
        }
        let settled = self.settled(key, stretch).filter(|_| stretch == self.stretch(key));
        settled.is_none_or(|of| of.conflict == Some(Conflict::LastWriteWins))
    }
    /// What a write was for certain written in, every attempt of it.
    fn written_in(&self, id: EventId) -> Option<Settled> {
        let event = &self.events[id.0 as usize];
        let sure = event.began_in == event.ended_in && event.end == End::Acknowledged && !event.lingers;
        self.settled(event.key, event.began_in).filter(|_| sure)
    }

    /// A write was acknowledged.
    pub(super) fn acknowledge_in_table(&mut self, id: EventId, answer: &Context) -> Verdict {
        let stamp = answer.clock.entries().iter().chain(&answer.dots).copied().filter(|dot| dot.is_stamp());
        let stamp = stamp.map(winner::stamp_of).max();
        let lossy = self.written_in(id).is_some_and(|of| of.conflict == Some(Conflict::LastWriteWins));
        let event = &mut self.events[id.0 as usize];
        event.stamp = stamp.unwrap_or_default();
        if lossy && stamp.is_none() {
            let key = event.key;
            let text = format!("{:?}: the answer to write {} has no stamp", self.key(key), id.0 + 1);
            return Err((Invariant::I8, text));
        }
        Ok(())
    }
    /// A read that began in a stretch, and ends in it, shows nothing of a life that was over.
    pub(super) fn check_life(&self, key: u32, stretch: u32, siblings: &Siblings) -> Verdict {
        let Some(now) = self.settled(key, stretch).filter(|_| stretch == self.stretch(key)) else { return Ok(()) };
        for entry in &siblings.head.entries {
            let Some(id) = EventId::from_write_id(entry.write_id) else { continue };
            let over = |of: &Settled| of.conflict.is_some() && of.dropped < now.dropped;
            if let Some(of) = self.written_in(id).filter(over) {
                let text = format!(
                    "{:?}: write {} is read, made in the table after drop {}, though it was dropped again by {}",
                    self.key(key),
                    id.0 + 1,
                    of.dropped,
                    now.dropped
                );
                return Err((Invariant::I4, text));
            }
        }
        Ok(())
    }
    /// What all replicas agree on in the end.
    pub(super) fn check_final_in_table(&self, key: u32, shown: &Seen, last: &Siblings) -> Verdict {
        let stretch = self.stretch(key);
        self.check_life(key, stretch, last)?;
        let Some(now) = self.settled(key, stretch) else { return Ok(()) };
        let history = &self.keys[key as usize];
        let effective = |id: &&EventId| self.events[id.0 as usize].end != End::NotApplied;
        let lossy = now.conflict == Some(Conflict::LastWriteWins);
        let in_life =
            |id: &EventId| self.written_in(*id).filter(|of| of.conflict.is_some() && of.dropped == now.dropped);
        if lossy {
            let writes = history.puts.iter().chain(&history.deletes).filter(|id| in_life(id).is_some());
            let greatest = writes.map(|id| self.events[id.0 as usize].stamp).max().unwrap_or_default();
            return self.check_stamp(key, greatest, last);
        }
        let mut reached: FixedMap<EventId, ()> = FixedMap::default();
        let shown_ids = shown.iter().map(|(id, _)| id);
        let mut open: Vec<EventId> = history.deletes.iter().filter(effective).chain(shown_ids).copied().collect();
        while let Some(id) = open.pop() {
            if reached.insert(id, ()).is_none() {
                open.extend(self.events[id.0 as usize].seen.iter().map(|(id, _)| *id));
            }
        }
        if history.deletes.iter().any(|id| self.events[id.0 as usize].kind == Kind::BlindDelete) {
            return Ok(());
        }
        // Whoever wrote to the key in a life that is over, or while a table was made or dropped, has taken it along.
        let before = |id: &EventId| self.written_in(*id).is_some_and(|of| of.conflict.is_none());
        let all = || history.puts.iter().chain(&history.deletes).filter(effective);
        let untouched = all().all(|id| before(id) || in_life(id).is_some());
        let kept = |id: &EventId| in_life(id).is_some() || (untouched && before(id));
        match history.puts.iter().find(|id| kept(id) && !reached.contains_key(*id)) {
            None => Ok(()),
            Some(id) => {
                let text = format!(
                    "{:?}: write {} of {:.3} s was acknowledged in {:?} and is lost; now {now:?}, siblings {:?}",
                    self.key(key),
                    id.0 + 1,
                    self.events[id.0 as usize].started.0 as f64 / 1e9,
                    self.written_in(*id),
                    shown.iter().map(|(id, dot)| (id.0 + 1, dot)).collect::<Vec<_>>(),
                );
                Err((Invariant::I1, text))
            }
        }
    }
}
