//! What can happen next: every step that nodes, network and disks may take in a world.
//!
//! Each step is one durable change at one place, or one exchange under latches. Sessions, and what homes do by
//! themselves, are in `sessions.rs`. The rules of [`super::rules`] are asked
//! for by name where they apply, so this file is the place to look up what exactly a rule says.

use super::{
    rules::{Bounds, HINTS, REPAIRS, REPLAYS, Rule, Rules, WRITES},
    world::{HOMES, Home, Message, Parked, Purpose, Record, STAND_IN, Set, World},
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// A node takes a client's put or delete and mints its dot. A home's record is not durable yet.
    Mint {
        node: usize,
        event: usize,
        time: u8,
        context: Set,
    },
    /// A home's own record of its write becomes durable.
    Sync {
        node: usize,
    },
    /// A coordinator's write arrives at once, at a home or, as a hint for `owner`, at the stand-in.
    Write {
        event: usize,
        to: usize,
        owner: usize,
    },
    /// A message is sent and waits.
    Send {
        from: usize,
        to: usize,
        purpose: Purpose,
    },
    /// The message that waits arrives.
    Arrive,
    /// The stand-in delivers what it holds; the owner's copy is durable; the stand-in drops its own.
    Deliver,
    /// The stand-in has heard bounds of all members and tells this `settled`.
    Tell {
        bound: u8,
    },
    /// Only where `Rule::SettledOfAllMembers` is left out: the homes' bounds alone count.
    Settle {
        bound: u8,
    },
    /// Two homes compare the arc, and exchange what differs.
    Session {
        x: usize,
        y: usize,
    },
    /// Only where `Rule::SettledReadFirst` is left out: S is read when the session is over.
    Note {
        x: usize,
        y: usize,
    },
    RaiseFloor {
        home: usize,
    },
    Purge {
        home: usize,
    },
    Prune {
        home: usize,
    },
    /// A node stops and starts again: what was not durable is lost, and its answers count no more.
    Crash {
        node: usize,
    },
    /// A node's disk is lost. A home starts over with an empty one.
    LoseDisk {
        node: usize,
    },
    /// A record vanishes from a home's disk, and nothing says so.
    Rot {
        home: usize,
    },
    /// The disk of a home is copied; later the copy takes the disk's place.
    Backup {
        home: usize,
    },
    SetBack {
        home: usize,
    },
}

/// One configuration: the rules in force and how much may happen.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    pub rules: Rules,
    pub bounds: Bounds,
}

pub type Found = Vec<(Step, World)>;

impl Model {
    pub fn start(&self) -> World {
        World {
            events: Default::default(),
            homes: Default::default(),
            parked: None,
            late: None,
            incarnations: [0; HOMES + 1],
            clocks_back: 0,
            told: 0,
            settled: 0,
            gone: 0,
            backup: None,
            crashes: self.bounds.crashes,
            losses: self.bounds.losses,
            rots: self.bounds.rots,
            backups: self.bounds.backups,
            returned: false,
        }
    }

    pub fn steps(&self, w: &World, found: &mut Found) {
        found.clear();
        self.mints(w, found);
        self.writes(w, found);
        self.sends(w, found);
        self.arrivals(w, found);
        self.bounds_told(w, found);
        self.sessions(w, found);
        self.housekeeping(w, found);
        self.faults(w, found);
    }

    pub fn has(&self, rule: Rule) -> bool {
        self.rules.has(rule)
    }
    fn puts(&self) -> Set {
        self.bounds.puts
    }

    // ---- Writes

    fn mints(&self, w: &World, found: &mut Found) {
        let event = w.minted();
        if event == self.bounds.events {
            return;
        }
        for node in 0..=STAND_IN {
            let allowed = if node == STAND_IN { self.bounds.stand_in_mints } else { true };
            if !allowed || (node < HOMES && (w.homes[node].wet > 0 || w.homes[node].filling)) {
                continue;
            }
            // A client has read nothing, or what one home knows.
            let mut contexts = vec![0];
            for clock in w.homes.iter().filter(|h| !h.filling).map(|h| h.copy.clock) {
                if !contexts.contains(&clock) {
                    contexts.push(clock);
                }
            }
            for time in self.least_time(w, node)..=self.bounds.time_max {
                for &context in &contexts {
                    // A delete without a context is given its coordinator's own.
                    if self.puts() >> event & 1 == 0 && context == 0 {
                        continue;
                    }
                    let mut new = *w;
                    let minted = &mut new.events[event];
                    (minted.time, minted.minter, minted.context) = (time, node as u8, context);
                    (minted.incarnation, minted.open) = (w.incarnations[node], true);
                    if node < HOMES {
                        new.homes[node].wet = event as u8 + 1;
                        if self.nothing_can_fail(w) {
                            self.sync(&mut new, node, event);
                        }
                        found.push((Step::Mint { node, event, time, context }, new));
                    } else {
                        self.park_own(&new, event, found);
                    }
                }
            }
        }
    }

    /// The least time that the mint clock of a node may give: above all that it gave, and above the bounds it told.
    fn least_time(&self, w: &World, node: usize) -> u8 {
        if w.clocks_back >> node & 1 == 1 {
            return 1;
        }
        let own = w.events.iter().filter(|e| usize::from(e.minter) == node).map(|e| e.time).max().unwrap_or(0);
        own.max(w.told).max(w.settled) + 1
    }

    /// A home's copy, with the write that is under way.
    fn copy_with(&self, w: &World, node: usize, event: usize) -> Record {
        let copy = if node < HOMES { w.homes[node].copy } else { w.parked.map_or_else(Record::default, |p| p.record) };
        let context = w.events[event].context;
        let own = 1 << event;
        let is_put = self.puts() & own != 0;
        let dot = if is_put || self.has(Rule::DeleteHasDot) { own } else { 0 };
        Record {
            clock: copy.clock | context | dot,
            values: copy.values & !w.covered(context) | if is_put { own } else { 0 },
            history: copy.history | context | own,
        }
    }

    /// The stand-in coordinates: its record is durable at once, for the sake of one step less.
    fn park_own(&self, w: &World, event: usize, found: &mut Found) {
        let owners = w.parked.map_or(vec![0, 1, 2], |p| vec![p.owner]);
        for owner in owners {
            let mut new = *w;
            let record = self.copy_with(w, STAND_IN, event);
            let answers = w.parked.map_or(0, |p| p.answers) | 1 << event;
            new.parked = Some(Parked { owner, record, tried: false, answers });
            self.count(&mut new, event, STAND_IN);
            let e = w.events[event];
            found.push((Step::Mint { node: STAND_IN, event, time: e.time, context: e.context }, new));
        }
    }

    /// A durable answer reaches the coordinator, if it still lives and counts.
    fn count(&self, w: &mut World, event: usize, node: usize) {
        let e = &mut w.events[event];
        if e.open {
            e.stored_by |= 1 << node;
            if e.stored_by.count_ones() >= u32::from(self.bounds.write_quorum) {
                (e.acknowledged, e.open, e.stored_by) = (true, false, 0);
            }
        }
    }

    fn writes(&self, w: &World, found: &mut Found) {
        for node in 0..HOMES {
            if let Some(event) = w.homes[node].wet.checked_sub(1).map(usize::from) {
                let mut new = *w;
                self.sync(&mut new, node, event);
                found.push((Step::Sync { node }, new));
            }
        }
        for event in (0..w.minted()).filter(|e| w.events[*e].open) {
            self.messages_of(w, event, |message, owner| {
                if let Some(new) = self.arrive(w, message) {
                    found.push((Step::Write { event, to: usize::from(message.to), owner }, new));
                }
            });
        }
    }

    fn sync(&self, w: &mut World, node: usize, event: usize) {
        w.homes[node].copy = self.copy_with(w, node, event);
        w.homes[node].wet = 0;
        self.count(w, event, node);
    }

    /// Whether what is not durable is as good as durable.
    fn nothing_can_fail(&self, w: &World) -> bool {
        w.crashes + w.losses + w.backups == 0 && w.backup.is_none()
    }

    /// The messages that a coordinator sends for its write: to the other homes, and hints to the stand-in.
    fn messages_of(&self, w: &World, event: usize, mut each: impl FnMut(Message, usize)) {
        let from = usize::from(w.events[event].minter);
        if from == STAND_IN {
            return;
        }
        let record = if usize::from(w.homes[from].wet) == event + 1 {
            self.copy_with(w, from, event)
        } else {
            w.homes[from].copy
        };
        let message = |to: usize, purpose| Message {
            from: from as u8,
            to: to as u8,
            purpose,
            record,
            floor: Some(self.floor(w, from)),
            earlier_life: false,
        };
        for owner in World::others(from) {
            if w.events[event].stored_by >> owner & 1 == 0 {
                each(message(owner, Purpose::Write(event as u8)), owner);
                each(message(STAND_IN, Purpose::Hint(event as u8, owner as u8)), owner);
            }
        }
    }

    fn sends(&self, w: &World, found: &mut Found) {
        if w.late.is_some() || self.bounds.late == 0 {
            return;
        }
        let mut send = |message: Message, new: World| {
            let kind = match message.purpose {
                Purpose::Write(_) => WRITES,
                Purpose::Hint(..) => HINTS,
                Purpose::Repair => REPAIRS,
                Purpose::Replay => REPLAYS,
            };
            if self.bounds.late & kind == 0 {
                return;
            }
            let (from, to) = (usize::from(message.from), usize::from(message.to));
            found.push((Step::Send { from, to, purpose: message.purpose }, World { late: Some(message), ..new }));
        };
        for event in (0..w.minted()).filter(|e| w.events[*e].open) {
            self.messages_of(w, event, |message, _| send(message, *w));
        }
        for from in (0..HOMES).filter(|h| !w.homes[*h].filling && w.homes[*h].wet == 0) {
            let record = w.homes[from].copy;
            for to in World::others(from) {
                if record.clock > 0 {
                    let (floor, from) = (Some(self.floor(w, from)), from as u8);
                    let purpose = Purpose::Repair;
                    send(Message { from, to: to as u8, purpose, record, floor, earlier_life: false }, *w);
                }
            }
        }
        if let Some(parked) = w.parked {
            let (from, to, record) = (STAND_IN as u8, parked.owner, parked.record);
            let mut new = *w;
            new.parked = Some(Parked { tried: !self.has(Rule::HoldUntilDelivered), ..parked });
            let purpose = Purpose::Replay;
            send(Message { from, to, purpose, record, floor: None, earlier_life: false }, new);
        }
    }

    // ---- Doors

    fn arrivals(&self, w: &World, found: &mut Found) {
        if let Some(message) = w.late {
            let mut new = self.arrive(w, message);
            // A home whose latch is held lets it wait; every other one takes it or drops it.
            if new.is_none() && usize::from(message.to) < HOMES && w.homes[usize::from(message.to)].wet == 0 {
                new = Some(*w);
            }
            if let Some(new) = new {
                found.push((Step::Arrive, World { late: None, ..new }));
            }
        }
        if let Some(parked) = w.parked {
            let replay = Message {
                from: STAND_IN as u8,
                to: parked.owner,
                purpose: Purpose::Replay,
                record: parked.record,
                floor: None,
                earlier_life: false,
            };
            if let Some(mut new) = self.arrive(w, replay) {
                new.parked = None;
                // What is dropped is not dead: the next dot must not seem to have seen it.
                let has_own = w.events.iter().any(|e| usize::from(e.minter) == STAND_IN);
                if self.has(Rule::NewIncarnation) && has_own {
                    new.incarnations[STAND_IN] += 1;
                }
                found.push((Step::Deliver, new));
            }
        }
    }

    /// A state comes to a node; what becomes of it there. Nothing, if it is refused or must wait.
    fn arrive(&self, w: &World, message: Message) -> Option<World> {
        match message.purpose {
            Purpose::Hint(event, owner) => self.park(w, message, usize::from(event), owner),
            Purpose::Write(event) => self.store(w, message, Some(usize::from(event))),
            Purpose::Repair | Purpose::Replay => self.store(w, message, None),
        }
    }

    fn park(&self, w: &World, message: Message, event: usize, owner: u8) -> Option<World> {
        if w.events[event].time <= w.told && self.has(Rule::LateWritesRefused) {
            return None;
        }
        let parked = match w.parked {
            Some(held) if held.owner != owner => return None,
            Some(held) => Parked { record: w.join(held.record, message.record), ..held },
            None => Parked { owner, record: message.record, tried: false, answers: 0 },
        };
        let mut new = *w;
        let answers = parked.answers | Set::from(w.events[event].open) << event;
        new.parked = Some(Parked { answers, ..parked });
        self.count(&mut new, event, STAND_IN);
        Some(new)
    }

    fn store(&self, w: &World, message: Message, event: Option<usize>) -> Option<World> {
        let to = usize::from(message.to);
        let home = &w.homes[to];
        let is_write = event.is_some();
        if home.wet > 0 || (home.filling && !is_write) {
            return None;
        }
        let is_late = event.is_some_and(|e| w.events[e].time <= w.settled);
        if is_late && self.has(Rule::LateWritesRefused) {
            return None;
        }
        let floor = self.floor(w, to);
        let mut record = message.record;
        if self.has(Rule::Door) && message.floor.is_none_or(|f| f < floor) {
            let dead = self.dead_at(w, to, record);
            if dead != 0 && message.purpose != Purpose::Replay {
                return None;
            }
            record.values &= !dead;
            record.history &= !dead;
        }
        let mut new = *w;
        new.homes[to].copy = w.join(home.copy, record);
        if let Some(event) = event {
            self.count(&mut new, event, to);
        }
        Some(new)
    }

    /// The values of a state that the home judges dead by its floor: old enough to be here if they were alive.
    pub fn dead_at(&self, w: &World, home: usize, record: Record) -> Set {
        let own = w.homes[home].copy;
        record.values & w.up_to(self.floor(w, home)) & !own.values & !w.covered(own.clock)
    }

    /// The floor by which a home judges, and that its messages carry. While it fills, that is the greatest it has
    /// found: a whole session with a home that has a floor shows all that is at or below it.
    pub fn floor(&self, w: &World, home: usize) -> u8 {
        let home = &w.homes[home];
        match home.filling {
            true if self.has(Rule::FoundFloorHolds) => home.floor_found,
            true => 0,
            false => home.floor,
        }
    }

    // ---- Bounds in gossip

    fn bounds_told(&self, w: &World, found: &mut Found) {
        // A bound above all events says no more than the greatest of their times.
        let greatest = w.events.iter().map(|e| e.time).max().unwrap_or(0);
        for bound in w.told + 1..=greatest {
            let held = w.parked.is_some_and(|p| !p.tried) && self.has(Rule::SettledHoldsParked);
            if !held {
                // Homes park nothing, so they tell as much as soon as it counts.
                found.push((Step::Tell { bound }, World { told: bound, settled: w.settled.max(bound), ..*w }));
            }
        }
        if !self.has(Rule::SettledOfAllMembers) {
            for bound in w.settled + 1..=greatest {
                found.push((Step::Settle { bound }, World { settled: bound, ..*w }));
            }
        }
    }

    // ---- Faults

    fn faults(&self, w: &World, found: &mut Found) {
        for node in 0..=STAND_IN {
            if w.crashes > 0 && node < HOMES {
                let mut new = World { crashes: w.crashes - 1, ..*w };
                self.restart(&mut new, node);
                found.push((Step::Crash { node }, new));
            }
            if w.losses > 0 {
                let mut new = World { losses: w.losses - 1, ..*w };
                self.restart(&mut new, node);
                if node < HOMES {
                    let old = &w.homes[node];
                    new.homes[node] =
                        Home { seen_told: old.seen_told, filling: self.has(Rule::LostDiskFills), ..Home::default() };
                } else {
                    new.parked = None;
                }
                self.mourn(&mut new);
                found.push((Step::LoseDisk { node }, new));
            }
            let rots = node < HOMES && (w.homes[node].copy.values > 0 || self.bounds.tombstones_rot);
            if w.rots > 0 && rots && w.homes[node].copy.clock > 0 && w.homes[node].wet == 0 {
                let mut new = World { rots: w.rots - 1, ..*w };
                new.homes[node].copy = Record::default();
                new.homes[node].rotten = true;
                self.mourn(&mut new);
                found.push((Step::Rot { home: node }, new));
            }
            if w.backups > 0 && node < HOMES && w.homes[node].wet == 0 && w.minted() > 0 {
                let backup = Some((node as u8, w.homes[node]));
                found.push((Step::Backup { home: node }, World { backups: w.backups - 1, backup, ..*w }));
            }
        }
        if let Some((of, disk)) = w.backup {
            let home = usize::from(of);
            let mut new = World { backup: None, ..*w };
            self.restart(&mut new, home);
            let seen_told = w.homes[home].seen_told;
            let is_old = World::others(home).iter().any(|o| w.homes[*o].agreed[home] > disk.agreed[*o]);
            let filling = disk.filling || is_old && self.has(Rule::SetBackFills);
            let (pulled, floor_found) = (0, 0);
            let rotten = disk.rotten || !filling;
            new.homes[home] = Home { seen_told, filling, rotten, pulled, floor_found, wet: 0, ..disk };
            self.mourn(&mut new);
            found.push((Step::SetBack { home }, new));
        }
    }

    /// A node starts anew: its writes are over, its next dots bear another incarnation, its messages are old ones.
    fn restart(&self, w: &mut World, node: usize) {
        for e in w.events.iter_mut().filter(|e| e.time > 0 && usize::from(e.minter) == node) {
            (e.open, e.stored_by) = (false, 0);
        }
        let minted = w.events.iter().any(|e| e.time > 0 && usize::from(e.minter) == node);
        if minted && self.has(Rule::NewIncarnation) {
            w.incarnations[node] += 1;
        }
        if minted && !self.has(Rule::MintClock) {
            w.clocks_back |= 1 << node;
        }
        if let Some(late) = w.late.as_mut().filter(|m| usize::from(m.from) == node) {
            late.earlier_life = true;
        }
        if node < HOMES {
            w.homes[node].wet = 0;
            if !self.has(Rule::FloorIsDurable) {
                w.homes[node].floor = 0;
            }
        }
    }

    /// Events whose last durable copy has just gone with a disk. What the stand-in holds of an event by chance, in a
    /// record of a later one, does not count: it answers for what came before it told a bound as high.
    fn mourn(&self, w: &mut World) {
        let parked = w.parked.map_or(0, |p| p.record.history & (p.answers | !w.up_to(w.told)));
        let at_homes = w.homes.iter().fold(0, |all, h| all | h.copy.history);
        w.gone |= !(at_homes | parked) & 7;
    }

    /// The events that some disk still holds.
    pub fn held(&self, w: &World) -> Set {
        let at_homes = w.homes.iter().fold(0, |all, h| all | h.copy.history);
        at_homes | w.parked.map_or(0, |p| p.record.history)
    }
}
