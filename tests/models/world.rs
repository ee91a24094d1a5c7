//! The state of the model: what four nodes, one message and the client know of one key.
//!
//! Everything is small numbers, so that millions of states fit: a set of events is a mask of three bits, a time is 1 to
//! 3, a node is its number. Nodes 0 to 2 are the homes of the key's arc; node 3 is the stand-in.

pub const HOMES: usize = 3;
pub const STAND_IN: usize = 3;
pub const EVENTS: usize = 3;

/// A set of events; bit `i` is event `i`.
pub type Set = u8;

/// The members of a set.
pub fn each(set: Set) -> impl Iterator<Item = usize> {
    (0..EVENTS).filter(move |e| set >> e & 1 == 1)
}

/// One event of the key, a put or a delete, and what its client was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Event {
    /// The counter of its dot. 0: the event has not happened yet.
    pub time: u8,
    /// The actor of its dot: the node that coordinates it, and that node's incarnation.
    pub minter: u8,
    pub incarnation: u8,
    /// What its client had read: the event supersedes these and no others.
    pub context: Set,
    /// The coordinator lives and still counts answers.
    pub open: bool,
    /// The client was told that the event is stored.
    pub acknowledged: bool,
    /// The nodes whose durable answers were counted, as a mask.
    pub stored_by: u8,
}

/// One version of the key: what a replica stores, or a message carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Record {
    /// The version vector, as the set of the events that were put into it. An empty one is no record at all.
    pub clock: Set,
    /// The siblings: values that are alive here.
    pub values: Set,
    /// What the judge knows and no node does: each event whose effect this copy ever took in. Purge and prune do not
    /// shrink it; only a lost disk does.
    pub history: Set,
}

/// A home's durable state, and the little that a crash takes from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Home {
    pub copy: Record,
    /// The event that this home mints and whose record is not durable yet, plus 1. Holds the key's latch. 0: none.
    pub wet: u8,
    pub floor: u8,
    /// Per other home: the S that was read before the last whole session with it.
    pub agreed: [u8; HOMES],
    /// The greatest `seen` that the others heard from this home. They remember it when the home does not.
    pub seen_told: u8,
    pub filling: bool,
    /// While filling: the homes that it had a whole session with, as a mask, and the greatest floor told there.
    pub pulled: u8,
    pub floor_found: u8,
    /// A record has vanished here without a sign: nothing is asked of this home any more.
    pub rotten: bool,
}

/// The stand-in's copy: a hint for `owner`, a write it coordinated itself, or both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parked {
    pub owner: u8,
    pub record: Record,
    /// The events that the stand-in's answer was counted for.
    pub answers: Set,
    /// Delivery was tried. Counts for something only where `Rule::HoldUntilDelivered` is left out.
    pub tried: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// A coordinator's write of this event: the receiver's answer counts.
    Write(u8),
    /// The same, to the stand-in, in place of this owner.
    Hint(u8, u8),
    /// A home's copy as it was when it was sent: read repair, or a push of a session that nobody waits for any more.
    Repair,
    /// What the stand-in holds, to its owner.
    Replay,
}

/// A message that was sent and has not arrived: it may wait for any time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    pub from: u8,
    pub to: u8,
    pub purpose: Purpose,
    pub record: Record,
    /// The sender's floor when it was sent; none, if the sender is no home.
    pub floor: Option<u8>,
    /// The sender has started anew since.
    pub earlier_life: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct World {
    pub events: [Event; EVENTS],
    pub homes: [Home; HOMES],
    pub parked: Option<Parked>,
    pub late: Option<Message>,
    /// The incarnation under which each node mints its next dot.
    pub incarnations: [u8; HOMES + 1],
    /// The node minted below its bounds because its clock was set back (only where `Rule::MintClock` is left out).
    pub clocks_back: u8,
    /// The greatest `settled` that the stand-in ever told.
    pub told: u8,
    /// S, the least `settled` of all members, as the best informed of them knows it.
    pub settled: u8,
    /// Events whose last durable copy went with a disk: nothing is promised of them.
    pub gone: Set,
    /// An old copy of a home's disk, and whose.
    pub backup: Option<(u8, Home)>,
    /// What may still go wrong.
    pub crashes: u8,
    pub losses: u8,
    pub rots: u8,
    pub backups: u8,
    /// A tombstone that was purged at a home was brought to it again by a session.
    pub returned: bool,
}

impl World {
    pub fn minted(&self) -> usize {
        self.events.iter().take_while(|e| e.time > 0).count()
    }

    /// The events that a version vector made of these dots covers: all earlier ones of the same actors too.
    pub fn covered(&self, clock: Set) -> Set {
        let mut all = clock;
        for e in each(clock) {
            let by = self.events[e];
            for (f, other) in self.events.iter().enumerate() {
                let same = other.minter == by.minter && other.incarnation == by.incarnation;
                if other.time > 0 && same && other.time <= by.time {
                    all |= 1 << f;
                }
            }
        }
        all
    }

    /// The events at or below this bound.
    pub fn up_to(&self, bound: u8) -> Set {
        let below = |e: &usize| (1..=bound).contains(&self.events[*e].time);
        (0..EVENTS).filter(below).fold(0, |set, e| set | 1 << e)
    }

    /// The union of two versions, as dotted version vector sets merge.
    pub fn join(&self, a: Record, b: Record) -> Record {
        let (left, right) = (self.covered(a.clock), self.covered(b.clock));
        Record {
            clock: a.clock | b.clock,
            values: (a.values & b.values) | (a.values & !right) | (b.values & !left),
            history: a.history | b.history,
        }
    }

    /// What must be alive where exactly these events were seen.
    pub fn siblings(&self, history: Set, puts: Set) -> Set {
        each(history).fold(history & puts, |alive, e| alive & !self.events[e].context)
    }

    pub fn others(home: usize) -> [usize; 2] {
        [(home + 1) % HOMES, (home + 2) % HOMES]
    }

    /// Gives the homes other names: home `i` becomes `names[i]`. Homes are alike, so this changes nothing that matters.
    pub fn renamed(&self, names: [u8; HOMES]) -> World {
        let name = |node: u8| if usize::from(node) < HOMES { names[usize::from(node)] } else { node };
        let name_all = |mask: u8| (0..8).filter(|n| mask >> n & 1 == 1).fold(0, |all, n| all | 1 << name(n));
        let home = |old: &Home| {
            let mut agreed = [0; HOMES];
            (0..HOMES).for_each(|i| agreed[usize::from(names[i])] = old.agreed[i]);
            Home { agreed, pulled: name_all(old.pulled), ..*old }
        };
        let mut new = *self;
        for (i, old) in self.homes.iter().enumerate() {
            new.homes[usize::from(names[i])] = home(old);
            new.incarnations[usize::from(names[i])] = self.incarnations[i];
        }
        for event in new.events.iter_mut().filter(|e| e.time > 0) {
            event.minter = name(event.minter);
            event.stored_by = name_all(event.stored_by);
        }
        if let Some(parked) = &mut new.parked {
            parked.owner = name(parked.owner);
        }
        if let Some(late) = &mut new.late {
            (late.from, late.to) = (name(late.from), name(late.to));
            if let Purpose::Hint(_, owner) = &mut late.purpose {
                *owner = name(*owner);
            }
        }
        new.clocks_back = name_all(self.clocks_back);
        new.backup = self.backup.map(|(of, disk)| (name(of), home(&disk)));
        new
    }

    /// One world for all that differ in the names of homes only, or nearly so.
    pub fn representative(&self) -> World {
        let key = |h: usize| {
            let (me, home) = (h as u8, &self.homes[h]);
            let record = &home.copy;
            let agreed = World::others(h).map(|o| home.agreed[o]);
            let mut bits = 0u64;
            let mut put = |width: u32, value: u8| bits = bits << width | u64::from(value);
            [record.clock, record.values, record.history].iter().for_each(|set| put(3, *set));
            [home.floor, home.seen_told, home.floor_found].iter().for_each(|t| put(2, *t));
            put(2, agreed[0].min(agreed[1]));
            put(2, agreed[0].max(agreed[1]));
            put(2, home.pulled.count_ones() as u8);
            put(2, home.wet);
            for e in self.events.iter().filter(|e| e.time > 0) {
                put(1, u8::from(e.minter == me));
                put(1, e.stored_by >> me & 1);
            }
            let owner = matches!(self.late, Some(Message { purpose: Purpose::Hint(_, owner), .. }) if owner == me);
            for flag in [
                home.filling,
                home.rotten,
                self.parked.is_some_and(|p| p.owner == me),
                self.late.is_some_and(|m| m.from == me),
                self.late.is_some_and(|m| m.to == me),
                owner,
                self.backup.is_some_and(|b| b.0 == me),
            ] {
                put(1, u8::from(flag));
            }
            put(2, self.incarnations[h]);
            (bits, me)
        };
        let mut order = [key(0), key(1), key(2)];
        order.sort_unstable();
        let mut names = [0; HOMES];
        (0..HOMES).for_each(|i| names[usize::from(order[i].1)] = i as u8);
        if names == [0, 1, 2] { *self } else { self.renamed(names) }
    }

    /// The whole state as bits: equal worlds and no others have equal bits.
    pub fn bits(&self) -> [u64; 5] {
        let mut bits = Bits::default();
        for e in self.events {
            [(2, e.time), (2, e.minter), (2, e.incarnation), (3, e.context), (4, e.stored_by)]
                .iter()
                .for_each(|(width, value)| bits.put(*width, *value));
            bits.flag(e.open);
            bits.flag(e.acknowledged);
        }
        self.homes.iter().for_each(|h| bits.home(h));
        bits.flag(self.parked.is_some());
        if let Some(p) = &self.parked {
            bits.put(2, p.owner);
            bits.record(&p.record);
            bits.put(3, p.answers);
            bits.flag(p.tried);
        }
        bits.flag(self.late.is_some());
        if let Some(m) = &self.late {
            bits.put(2, m.from);
            bits.put(2, m.to);
            let (kind, event, owner) = match m.purpose {
                Purpose::Write(event) => (0, event, 0),
                Purpose::Hint(event, owner) => (1, event, owner),
                Purpose::Repair => (2, 0, 0),
                Purpose::Replay => (3, 0, 0),
            };
            [kind, event, owner].iter().for_each(|value| bits.put(2, *value));
            bits.record(&m.record);
            bits.flag(m.floor.is_some());
            bits.put(2, m.floor.unwrap_or(0));
            bits.flag(m.earlier_life);
        }
        self.incarnations.iter().for_each(|i| bits.put(2, *i));
        bits.put(4, self.clocks_back);
        bits.put(2, self.told);
        bits.put(2, self.settled);
        bits.put(3, self.gone);
        [self.crashes, self.losses, self.rots, self.backups].iter().for_each(|left| bits.put(2, *left));
        bits.flag(self.returned);
        bits.flag(self.backup.is_some());
        if let Some((of, disk)) = &self.backup {
            bits.put(2, *of);
            bits.home(disk);
        }
        bits.words
    }
}

/// Small numbers, one after the other.
#[derive(Default)]
struct Bits {
    words: [u64; 5],
    at: usize,
}
impl Bits {
    fn put(&mut self, width: usize, value: u8) {
        assert!(usize::from(value) < 1 << width, "{value} in {width} bits");
        if self.at % 64 + width > 64 {
            self.at = self.at.next_multiple_of(64);
        }
        self.words[self.at / 64] |= u64::from(value) << (self.at % 64);
        self.at += width;
    }
    fn flag(&mut self, flag: bool) {
        self.put(1, u8::from(flag));
    }
    fn record(&mut self, record: &Record) {
        [record.clock, record.values, record.history].iter().for_each(|set| self.put(3, *set));
    }
    fn home(&mut self, home: &Home) {
        self.record(&home.copy);
        self.put(2, home.wet);
        [home.floor, home.seen_told, home.floor_found].iter().for_each(|t| self.put(2, *t));
        home.agreed.iter().for_each(|t| self.put(2, *t));
        self.put(3, home.pulled);
        self.flag(home.filling);
        self.flag(home.rotten);
    }
}
