//! Sessions between homes, filling, and what the floor that they make allows: the steps of a pass of repair.

use super::{
    rules::Rule,
    steps::{Found, Model, Step},
    world::{HOMES, Record, Set, World},
};

impl Model {
    // ---- Sessions

    pub fn sessions(&self, w: &World, found: &mut Found) {
        for (x, y) in [(0, 1), (0, 2), (1, 2)] {
            let bound = self.floor(w, x).max(self.floor(w, y));
            let [left, right] = [x, y].map(|h| self.form(w, w.homes[h].copy, bound));
            let is_still = w.homes[x].wet + w.homes[y].wet == 0;
            // Without the rule it is only the exchange of a key that waits for its latch.
            if is_still || left == right && !self.has(Rule::SessionsWaitForWrites) {
                found.push((Step::Session { x, y }, self.session(w, x, y)));
                if !self.has(Rule::SettledReadFirst) {
                    let mut new = *w;
                    self.agree(&mut new, x, y);
                    found.push((Step::Note { x, y }, new));
                }
            }
        }
    }

    /// What a comparison sees of a record: nothing of its clock, if all of that is at or below the bound.
    fn form(&self, w: &World, record: Record, bound: u8) -> (Set, Set) {
        let settled = record.clock & !w.up_to(bound) == 0 && self.has(Rule::CompareUnderFloor);
        let clock = if settled || !self.has(Rule::CompareClocks) { 0 } else { record.clock };
        (record.values, clock)
    }

    fn session(&self, w: &World, x: usize, y: usize) -> World {
        let mut new = *w;
        let (left, right) = (w.homes[x].copy, w.homes[y].copy);
        let bound = self.floor(w, x).max(self.floor(w, y));
        if self.form(w, left, bound) != self.form(w, right, bound) {
            let merged = w.join(left, right);
            let dropped = self.dropped(w, x, y, left, right) | self.dropped(w, y, x, right, left);
            for (home, own, sent) in [(x, left, right), (y, right, left)] {
                let took = if sent.clock == 0 { own.history } else { merged.history };
                new.homes[home].copy = Record { values: merged.values & !dropped, history: took, ..merged };
                // A home that starts over is told what its strange values are: nothing.
                if w.homes[home].filling {
                    new.homes[home].copy.history &= !(dropped & own.values);
                }
                let was_purged = own.clock == 0 && own.history & sent.clock == sent.clock && sent.clock != 0;
                let is_dead = merged.values == 0 && sent.clock & !w.up_to(self.floor(w, home)) == 0;
                new.returned |= was_purged && is_dead;
            }
        }
        if let Some(late) = w.late.filter(|m| m.earlier_life) {
            let between = [late.from, late.to].iter().all(|n| [x, y].contains(&usize::from(*n)));
            if between && self.has(Rule::EarlierLivesRefused) {
                new.late = None;
            }
        }
        if self.has(Rule::SettledReadFirst) {
            self.agree(&mut new, x, y);
        }
        for (home, peer) in [(x, y), (y, x)] {
            self.fill(w, &mut new, home, peer);
        }
        new
    }

    /// The values of `holder` that the session ends, because `other` lacks them and knows better.
    fn dropped(&self, w: &World, holder: usize, other: usize, held: Record, lacks: Record) -> Set {
        let only = held.values & !lacks.values & !w.covered(lacks.clock);
        let (low, high) = (self.floor(w, holder), self.floor(w, other));
        if low == high {
            // Both have seen all of it: what one lacks, it has lost.
            return if self.has(Rule::AbsenceIsLoss) { 0 } else { only & w.up_to(high) };
        }
        if low > high {
            return 0;
        }
        let old = only & w.up_to(high);
        let third = HOMES - holder - other;
        let held_there = if w.homes[third].filling { 0 } else { w.homes[third].copy.values };
        old & if self.has(Rule::AskTheOthers) { !held_there } else { Set::MAX }
    }

    /// Both homes note that each has what either had.
    fn agree(&self, w: &mut World, x: usize, y: usize) {
        for (home, peer) in [(x, y), (y, x)] {
            let counts = !w.homes[peer].filling || !self.has(Rule::FillingAgreesNothing);
            if counts {
                let noted = &mut w.homes[home].agreed[peer];
                *noted = (*noted).max(w.settled);
            }
            let seen = self.seen(w, home);
            let me = &mut w.homes[home];
            me.seen_told = me.seen_told.max(seen);
        }
    }

    fn seen(&self, w: &World, home: usize) -> u8 {
        World::others(home).map(|o| w.homes[home].agreed[o]).into_iter().min().unwrap_or(0)
    }

    /// The `seen` that a home knows of another. In a session with one that fills it hears that there is none.
    fn heard(&self, w: &World, home: usize, of: usize) -> u8 {
        let other = &w.homes[of];
        let met = other.filling && other.pulled >> home & 1 == 1;
        if met && self.has(Rule::FloorStandsStill) { 0 } else { other.seen_told }
    }

    fn fill(&self, before: &World, w: &mut World, home: usize, peer: usize) {
        if !before.homes[home].filling {
            return;
        }
        let floor = self.floor(before, peer);
        let known = before.homes[peer].copy.history & before.up_to(floor);
        let me = &mut w.homes[home];
        me.pulled |= 1 << peer;
        me.floor_found = me.floor_found.max(floor);
        me.copy.history |= known;
        let whole = World::others(home).iter().all(|o| me.pulled >> o & 1 == 1);
        if whole || !self.has(Rule::FillFromAll) {
            me.floor = me.floor_found;
            (me.filling, me.pulled, me.floor_found) = (false, 0, 0);
            let seen = self.seen(w, home);
            if self.has(Rule::FloorStandsStill) {
                w.homes[home].seen_told = seen;
            }
        }
    }

    // ---- Floors and what they allow

    pub fn housekeeping(&self, w: &World, found: &mut Found) {
        for home in (0..HOMES).filter(|h| !w.homes[*h].filling && w.homes[*h].wet == 0) {
            let me = w.homes[home];
            let others = World::others(home).map(|o| self.heard(w, home, o));
            let least = if self.has(Rule::FloorOfAllHomes) { others[0].min(others[1]) } else { u8::MAX };
            let floor = self.seen(w, home).min(least);
            if floor > me.floor {
                let mut new = *w;
                new.homes[home].floor = floor;
                found.push((Step::RaiseFloor { home }, new));
            }
            let all_old = me.copy.clock & !w.up_to(me.floor) == 0;
            if me.copy.clock > 0 && all_old {
                let mut new = *w;
                new.homes[home].copy.clock = me.copy.values;
                if me.copy.values == 0 {
                    found.push((Step::Purge { home }, new));
                } else if me.copy.values != me.copy.clock {
                    found.push((Step::Prune { home }, new));
                }
            }
        }
    }
}
