//! What must hold of each key in the end, when the cluster has healed: nothing lost (I1), nothing back (I2, I4).

use super::{End, EventId, History, Invariant, Kind, Meeting, Seen, Verdict};
use crate::{
    protocol::{
        ring::FixedMap,
        versions::{Siblings, VersionVector},
    },
    types::Instant,
};

impl History {
    /// The cluster has converged; these are the siblings of a key, as a last read of all replicas has shown them.
    pub fn check_final(&mut self, key: u32, last: &Siblings) -> Verdict {
        let shown = self.observe(key, last)?;
        if self.has_table(key) {
            return self.check_final_in_table(key, &shown, last);
        }
        if self.stamped {
            return self.check_winner(key, &shown, last);
        }
        self.check_siblings(key, &shown, true)?;
        self.check_resurrection(key, &shown)?;
        self.check_losses(key, &shown, &last.head.clock)?;
        let known = &self.keys[key as usize].acknowledged;
        match known.entries().iter().find(|d| !last.head.clock.covers(**d)) {
            None => Ok(()),
            Some(dot) => {
                Err((Invariant::I1, format!("{:?}: {dot:?} was acknowledged and is not known any more", self.key(key))))
            }
        }
    }
    fn check_resurrection(&mut self, key: u32, shown: &Seen) -> Verdict {
        let history = &self.keys[key as usize];
        let acknowledged = |id: &&EventId| self.events[id.0 as usize].end == End::Acknowledged;
        let later: Vec<EventId> = history.puts.iter().chain(&history.deletes).filter(acknowledged).copied().collect();
        for newer in later {
            for &(older, dot) in shown.iter().filter(|(older, _)| *older != newer) {
                if self.supersedes((newer, older, dot), Meeting::Settled)? {
                    let (kind, name) = (self.events[newer.0 as usize].kind, self.key(key));
                    let (newer, older) = (newer.0 + 1, older.0 + 1);
                    let text = format!(
                        "{name:?}: write {older} is back, though the acknowledged {kind:?} {newer} had removed it"
                    );
                    return Err((if kind == Kind::Put { Invariant::I2 } else { Invariant::I4 }, text));
                }
            }
        }
        Ok(())
    }
    /// Who had seen a write, and who had seen those, with their ends: where a chain of causes breaks.
    fn successors(&self, key: u32, id: EventId, depth: usize) -> String {
        let history = &self.keys[key as usize];
        let mut words = Vec::new();
        for later in history.puts.iter().chain(&history.deletes) {
            let event = &self.events[later.0 as usize];
            if event.seen.iter().any(|(seen, _)| *seen == id) {
                let next = if depth > 1 { self.successors(key, *later, depth - 1) } else { "..".to_string() };
                words.push(format!("{} {:?} x{} <- {next}", later.0 + 1, event.end, event.attempts));
            }
            if words.len() == 3 {
                words.push("..".to_string());
                break;
            }
        }
        format!("[{}]", words.join(", "))
    }
    /// Those of a key, with the times that clients know: one that was sent more than once may have taken effect after
    /// its answer.
    fn blind_deletes(&self, key: u32) -> String {
        let deletes = self.keys[key as usize].deletes.iter().map(|id| (id.0 + 1, &self.events[id.0 as usize]));
        let blind = deletes.filter(|(_, event)| event.kind == Kind::BlindDelete);
        let words = blind.map(|(id, event)| {
            let (from, to) =
                (event.started.since(Instant::ZERO).as_secs_f64(), event.ended.since(Instant::ZERO).as_secs_f64());
            format!("{id} {from:.3} to {to:.3} s {:?} x{}", event.end, event.attempts)
        });
        format!("[{}]", words.collect::<Vec<_>>().join(", "))
    }
    /// Walks from the siblings and deletes to all that they have legitimately superseded; what must survive and is not
    /// reached is lost.
    fn check_losses(&mut self, key: u32, shown: &Seen, clock: &VersionVector) -> Verdict {
        let history = &self.keys[key as usize];
        let mut reached: FixedMap<EventId, ()> = FixedMap::default();
        let effective = |id: &&EventId| self.events[id.0 as usize].end != End::NotApplied;
        let shown_ids = shown.iter().map(|(id, _)| id);
        let mut open: Vec<EventId> = history.deletes.iter().filter(effective).chain(shown_ids).copied().collect();
        while let Some(id) = open.pop() {
            if reached.insert(id, ()).is_none() {
                open.extend(self.events[id.0 as usize].seen.iter().map(|(id, _)| *id));
            }
        }
        let blind_until = self.blind_until(key);
        let mut excuses = self.excuses;
        for id in &history.puts {
            let event = &self.events[id.0 as usize];
            // What was shown and never acknowledged may have been on the unsound medium alone.
            let acknowledged = event.end == End::Acknowledged;
            if reached.contains_key(id) || !(acknowledged || event.shown) {
                continue;
            }
            if event.started < blind_until {
                excuses.losses_to_blind_deletes += 1;
            } else if !acknowledged && self.forgets {
                excuses.unacknowledged_and_lost += 1;
            } else {
                let how = if event.end == End::Acknowledged { "was acknowledged" } else { "had been read" };
                let text = format!(
                    "{:?}: write {} of {:.3} s {how} and is lost; siblings now {:?}; seen by {}; dots, and whether they are known: {:?}; deletes without a context: {}",
                    self.key(key),
                    id.0 + 1,
                    event.started.since(Instant::ZERO).as_secs_f64(),
                    shown.iter().map(|(id, dot)| (id.0 + 1, dot)).collect::<Vec<_>>(),
                    self.successors(key, *id, 4),
                    history
                        .dots
                        .iter()
                        .filter(|(_, of)| *of == id)
                        .map(|(dot, _)| (*dot, clock.covers(*dot)))
                        .collect::<Vec<_>>(),
                    self.blind_deletes(key),
                );
                return Err((Invariant::I1, text));
            }
        }
        self.excuses = excuses;
        Ok(())
    }
}
