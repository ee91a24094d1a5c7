//! The claims: what must hold in every world that can be reached.

use super::{
    rules::Rule,
    steps::Model,
    world::{HOMES, Record, World},
};

impl Model {
    /// The claim that this world breaks, if any.
    pub fn broken(&self, w: &World) -> Option<&'static str> {
        let puts = self.bounds.puts;
        let acknowledged = (0..w.minted()).filter(|e| w.events[*e].acknowledged).fold(0, |all, e| all | 1 << e);
        let promised = acknowledged & !w.gone;
        if promised & !self.held(w) != 0 {
            return Some("an acknowledged event is lost");
        }
        let floor = w.homes.iter().map(|h| h.floor).max().unwrap_or(0);
        let must_be_seen = promised & w.up_to(floor);
        for (h, home) in w.homes.iter().enumerate().filter(|(_, h)| !h.rotten) {
            let serves = !home.filling || !self.rules.has(Rule::FillingServesNothing);
            if serves && must_be_seen & !home.copy.history != 0 {
                return Some("an event at or below a floor is not seen by every home");
            }
            let sure = if w.homes.iter().any(|h| h.rotten) { promised } else { 7 };
            let alive = w.siblings(home.copy.history & sure, puts) | home.copy.history & puts & !sure;
            if serves && home.copy.values & !alive != 0 {
                return Some("a home shows a value that was superseded there");
            }
            if serves && promised & home.copy.history & w.siblings(self.held(w), puts) & !home.copy.values != 0 {
                return Some("a home lacks an acknowledged value that nothing superseded");
            }
            if serves && self.read_with_stand_in(w, h).is_some_and(|r| r.values & !w.siblings(r.history, puts) != 0) {
                return Some("a sloppy read shows a value that was superseded");
            }
        }
        w.returned.then_some("a session brought a purged tombstone back")
    }

    /// A sloppy read: what a home answers when it merges what the stand-in holds.
    fn read_with_stand_in(&self, w: &World, home: usize) -> Option<Record> {
        let mut theirs = w.parked?.record;
        if self.rules.has(Rule::DoorInReads) {
            let dead = self.dead_at(w, home, theirs);
            theirs.values &= !dead;
            theirs.history &= !dead;
        }
        assert!(home < HOMES);
        Some(w.join(w.homes[home].copy, theirs))
    }
}
