//! What must hold, checked against the history that the clients keep and against looks at the nodes. Linear in the
//! history.
//!
//! The oracle is causality by value: each write knows which values its writer had been shown (`seen`). Clocks are
//! looked at as well, where they say more: a write that was sent twice under one id may have two dots, and the context
//! of a write among siblings keeps its dot apart.
//!
//! - I1: an acknowledged write, or one that any read has shown, is in the end among the siblings, or was superseded by
//!   a writer who had seen it (or by a blind delete that may have come after it), and so was that one, up to a sibling;
//!   and its dot is known (`ending`).
//! - I2: no read shows a value beside one whose writer had seen it; in the end, none that an acknowledged write has
//!   superseded. One dot names one write.
//! - I3: every value read was written to that key, whole (`value`).
//! - I4: in the end, and wherever quorums overlap, none that an acknowledged delete has superseded.
//! - I6, I7: see [`floor`].
//! - I9: a write whose outcome is `not_applied` never appears.
//! - I10: see [`rings`]. I12: see [`bounds`].
//!
//! In a table where the last write wins, I1, I2, I4, I6 and I7 make place for I8: see `winner`. Keys of tables that
//! are made and dropped meanwhile are judged by what they were written in: see [`lives`].
//!
//! I5 and I11 are judged where they are seen: after healing by the run, at the clients' sockets by the cluster.

pub mod bounds;
mod ending;
pub mod floor;
pub mod lives;
pub mod rings;
mod standing;
mod traces;
mod value;
mod winner;

pub use floor::{Floor, Quorum, written_dot};
pub use traces::Traces;
pub use value::{VALUE_BYTES_MIN, make_value};

use super::excuses::Excuses;
use crate::{
    limits::{CONTEXT_DOTS_MAX, MERGED_CLOCK_ENTRIES_MAX, MERGED_SIBLINGS_MAX, RECENT_WRITES_MAX},
    protocol::{
        ring::FixedMap,
        versions::{Context, Dot, Siblings, VersionVector},
    },
    types::{Instant, Key, Outcome, WriteId},
};
use smallvec::SmallVec;
use standing::Standing;
use std::{fmt, time::Duration};
use value::parse_value;

/// The promise that was broken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Invariant {
    I1,
    I2,
    I3,
    I4,
    I5,
    I6,
    I7,
    I8,
    I9,
    I10,
    I11,
    I12,
    /// A request failed although enough nodes were well.
    Available,
    /// The cluster does not come back to work in time after healing.
    Converge,
    /// A node ended, or made or met an unreadable message, without a fault that explains it.
    Alive,
}
impl Invariant {
    pub fn name(self) -> &'static str {
        match self {
            Invariant::I1 => "I1 (no acknowledged write is lost)",
            Invariant::I2 => "I2 (siblings are exactly the concurrent values)",
            Invariant::I3 => "I3 (values are whole and belong to their key)",
            Invariant::I4 => "I4 (a delete stays deleted)",
            Invariant::I5 => "I5 (replicas become equal, hints drain)",
            Invariant::I6 => "I6 (reads see what overlapping quorums have acknowledged)",
            Invariant::I7 => "I7 (contexts carry what was seen)",
            Invariant::I8 => "I8 (one winner everywhere)",
            Invariant::I9 => "I9 (not_applied never appears)",
            Invariant::I10 => "I10 (one view, one ring)",
            Invariant::I11 => "I11 (every request ends within its deadline)",
            Invariant::I12 => "I12 (all stays within its bounds)",
            Invariant::Available => "what a healthy majority can answer is answered",
            Invariant::Converge => "liveness after healing",
            Invariant::Alive => "nodes stay up on sound disks",
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    pub at: Instant,
    pub invariant: Invariant,
    pub text: String,
}
impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:.6} s: {}", self.invariant.name(), self.at.0 as f64 / 1e9, self.text)
    }
}

/// A write or delete, by its place in the history. Its write id is one more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EventId(pub u32);
impl EventId {
    pub fn write_id(self) -> WriteId {
        WriteId(u64::from(self.0) + 1)
    }
    fn from_write_id(id: WriteId) -> Option<EventId> {
        u32::try_from(id.0.checked_sub(1)?).ok().map(EventId)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Put,
    Delete,
    /// A delete without a context: it drops whatever its coordinator has.
    BlindDelete,
}

/// How a write ended, as its client knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Not yet, or never heard.
    Open,
    Acknowledged,
    NotApplied,
    Unknown,
}
impl From<Outcome> for End {
    fn from(outcome: Outcome) -> End {
        match outcome {
            Outcome::NotApplied => End::NotApplied,
            Outcome::Unknown => End::Unknown,
        }
    }
}

/// Nodes that may come to carry out one attempt of a write: it is passed on to the next when the first is silent.
const COORDINATORS: usize = 3;

/// Writes that a reader was shown, each under the dot that it had then.
pub type Seen = SmallVec<[(EventId, Dot); 2]>;

#[derive(Clone, Debug)]
struct Event {
    kind: Kind,
    key: u32,
    seen: Seen,
    /// What it was sent with; after a blind delete, what it was answered with.
    context: Context,
    started: Instant,
    /// When its client heard the last of it.
    ended: Instant,
    end: End,
    attempts: u32,
    /// The stretches of its key's table: see [`lives`].
    began_in: u32,
    ended_in: u32,
    /// The stamp of an acknowledged write, if it has one.
    stamp: winner::Stamp,
    /// An attempt before the last may still take effect, whatever the last was answered with.
    lingers: bool,
    shown: bool,
    /// Another writer had seen it.
    superseded: bool,
}

#[derive(Default)]
struct KeyHistory {
    puts: Vec<EventId>,
    deletes: Vec<EventId>,
    dots: FixedMap<Dot, EventId>,
    /// The dots of all acknowledged puts.
    acknowledged: VersionVector,
    /// The floors of the key by W, from 1 on: see [`Floor`].
    floors: Vec<Floor>,
    /// Where the last write wins: the greatest stamp of an acknowledged write, and whose each is.
    greatest: winner::Stamp,
    stamps: FixedMap<winner::Stamp, EventId>,
    standing: Standing,
}

/// What a later write and an earlier one, shown together, can have known of each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Meeting {
    /// All replicas have met.
    Settled,
    /// The later was made with a trace of the earlier; so many other dots may have displaced it since.
    Traced { rivals: usize },
    /// Nobody may have brought them together yet.
    Blind,
}

/// What happened to all keys, as the clients know it.
pub struct History {
    events: Vec<Event>,
    keys: Vec<KeyHistory>,
    names: Vec<Key>,
    /// N.
    replicas: usize,
    /// Whether the last write wins.
    pub stamped: bool,
    /// Siblings of a key when all that coordinators took on their own has come together.
    pub siblings_max: usize,
    pub traces: Traces,
    /// The table of each key, and the stretches of each table: see [`lives`].
    table_of: Vec<Option<usize>>,
    stretches: Vec<lives::Stretches>,
    /// What sound wall clocks show when all is judged, in nanoseconds since 1970.
    pub wall_end: u64,
    /// The longest deadline of a request.
    pub patience: Duration,
    /// Whether overlapping quorums are held to what they promise: not when a disk may forget and not tell.
    overlaps: bool,
    /// Whether what one disk alone held may be lost.
    pub forgets: bool,
    pub excuses: Excuses,
    pub reads: u64,
    pub values_read: u64,
}

pub type Verdict = Result<(), (Invariant, String)>;

impl History {
    /// `replicas` is N; `overlaps`: whether R + W > N promises anything in this run.
    pub fn new(names: Vec<Key>, replicas: usize, overlaps: bool) -> History {
        let keys = names.iter().map(|_| KeyHistory::default()).collect();
        History {
            events: Vec::new(),
            keys,
            names,
            replicas,
            stamped: false,
            siblings_max: MERGED_SIBLINGS_MAX,
            traces: Traces::default(),
            table_of: Vec::new(),
            stretches: Vec::new(),
            wall_end: u64::MAX,
            patience: Duration::ZERO,
            overlaps,
            forgets: !overlaps,
            excuses: Excuses::default(),
            reads: 0,
            values_read: 0,
        }
    }
    pub fn key(&self, key: u32) -> &Key {
        &self.names[key as usize]
    }
    pub fn keys(&self) -> impl Iterator<Item = (u32, &Key)> {
        self.names.iter().enumerate().map(|(i, k)| (i as u32, k))
    }
    /// Writes and deletes so far.
    pub fn len(&self) -> usize {
        self.events.len()
    }
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
    /// Counts of acknowledged, not applied and unknown writes.
    pub fn outcomes(&self) -> [usize; 3] {
        let count = |end| self.events.iter().filter(|e| e.end == end).count();
        [count(End::Acknowledged), count(End::NotApplied), count(End::Unknown) + count(End::Open)]
    }

    /// A client is about to write. `seen`: the values behind its context.
    pub fn begin(&mut self, now: Instant, kind: Kind, key: u32, seen: Seen, context: Context) -> EventId {
        let id = EventId(self.events.len() as u32);
        let began_in = self.stretch(key);
        self.events.push(Event {
            kind,
            key,
            seen,
            context,
            started: now,
            ended: Instant::NEVER,
            end: End::Open,
            attempts: 0,
            began_in,
            ended_in: began_in,
            stamp: winner::Stamp::default(),
            lingers: false,
            shown: false,
            superseded: false,
        });
        self.supersede(id);
        let history = &mut self.keys[key as usize];
        match kind {
            Kind::Put => history.puts.push(id),
            Kind::Delete | Kind::BlindDelete => history.deletes.push(id),
        }
        id
    }
    /// Whether another writer had seen this write, or a blind delete may have met it.
    pub fn is_superseded(&self, id: WriteId) -> bool {
        let Some(event) = EventId::from_write_id(id).map(|id| &self.events[id.0 as usize]) else { return false };
        let blind = |id: &EventId| self.events[id.0 as usize].kind == Kind::BlindDelete;
        event.superseded || self.keys[event.key as usize].deletes.iter().any(blind)
    }
    pub fn attempt(&mut self, id: EventId) {
        self.events[id.0 as usize].attempts += 1;
    }
    /// What became of an attempt is not known: it may take effect at any time from now on, though another follows.
    pub fn linger(&mut self, id: EventId) {
        self.events[id.0 as usize].lingers = true;
    }
    /// The last that its client hears of a write. `answer`: the context
    /// that came with an acknowledgement.
    pub fn finish(&mut self, ended: Instant, id: EventId, end: End, answer: Option<&Context>) {
        let ended_in = self.stretch(self.events[id.0 as usize].key);
        let event = &mut self.events[id.0 as usize];
        event.ended_in = ended_in;
        event.end = end;
        event.ended = ended;
        if event.kind == Kind::BlindDelete
            && let Some(context) = answer
        {
            event.context = context.clone();
        }
    }
    /// Blind deletes are over for certain: those of this key took effect, if ever, before this. One that was
    /// acknowledged is over with its answer. An attempt that nobody has heard of may be on its way still: messages
    /// carry the time that is left, and on the way none of it passes.
    fn blind_until(&self, key: u32) -> Instant {
        let deletes = self.keys[key as usize].deletes.iter().map(|d| &self.events[d.0 as usize]);
        let blind = deletes.filter(|e| e.kind == Kind::BlindDelete && e.end != End::NotApplied);
        let over = |e: &Event| if e.end == End::Acknowledged && !e.lingers { e.ended } else { Instant::NEVER };
        blind.map(over).max().unwrap_or(Instant::ZERO)
    }

    // ---- reads -------------------------------------------------------------------------------------------------

    /// A read has shown these siblings. Gives the writes behind them.
    pub fn observe(&mut self, key: u32, siblings: &Siblings) -> Result<Seen, (Invariant, String)> {
        self.reads += 1;
        let mut shown = Seen::new();
        if siblings.head.entries.len() != siblings.values.len() {
            return Err((Invariant::I3, format!("{:?}: heads and values differ in number", self.key(key))));
        }
        let siblings = &siblings.clone().into_shown();
        self.check_size(key, siblings)?;
        for (entry, value) in siblings.head.entries.iter().zip(&siblings.values) {
            self.values_read += 1;
            let id = self.check_value(key, entry.write_id, value)?;
            if !self.has_table(key) {
                self.check_dot(key, entry.dot, id)?;
            }
            if shown.iter().any(|(other, _)| *other == id) {
                return Err((Invariant::I2, format!("{:?}: write {} is its own sibling", self.key(key), id.0 + 1)));
            }
            if !siblings.head.clock.covers(entry.dot) {
                return Err((Invariant::I2, format!("{:?}: the clock does not cover {:?}", self.key(key), entry.dot)));
            }
            shown.push((id, entry.dot));
        }
        if self.has_table(key) {
            return Ok(shown);
        }
        if self.stamped {
            self.check_lone_value(key, &shown, siblings)?;
            return Ok(shown);
        }
        self.check_siblings(key, &shown, false)?;
        self.check_causes(key, &shown, &siblings.head.clock)?;
        Ok(shown)
    }
    fn check_size(&self, key: u32, siblings: &Siblings) -> Verdict {
        let head = &siblings.head;
        let rows = [
            ("siblings", head.entries.len(), self.siblings_max),
            ("entries of its clock", head.clock.len(), MERGED_CLOCK_ENTRIES_MAX),
            ("remembered writes", head.recent.len(), RECENT_WRITES_MAX),
        ];
        match rows.iter().find(|(_, count, bound)| count > bound) {
            None => Ok(()),
            Some((what, count, bound)) => {
                Err((Invariant::I12, format!("{:?} has {count} {what}, at most {bound} were declared", self.key(key))))
            }
        }
    }
    fn check_value(&mut self, key: u32, write_id: WriteId, value: &[u8]) -> Result<EventId, (Invariant, String)> {
        let name = self.names[key as usize].clone();
        let (value_key, value_id) =
            parse_value(value).map_err(|e| (Invariant::I3, format!("{name:?}: a value is {e}")))?;
        if value_key != key || value_id != write_id {
            let text =
                format!("{name:?}: write {} shows the value of write {} of key {value_key}", write_id.0, value_id.0);
            return Err((Invariant::I3, text));
        }
        let id = EventId::from_write_id(write_id).filter(|id| (id.0 as usize) < self.events.len());
        let Some(id) = id else {
            return Err((Invariant::I3, format!("{name:?}: write {} was never made", write_id.0)));
        };
        let event = &mut self.events[id.0 as usize];
        if event.key != key || event.kind != Kind::Put {
            return Err((Invariant::I3, format!("{name:?}: write {} was to another key", write_id.0)));
        }
        event.shown = true;
        if event.end == End::NotApplied {
            return Err((Invariant::I9, format!("{name:?}: write {} was not applied, and is read", write_id.0)));
        }
        Ok(id)
    }
    fn check_dot(&mut self, key: u32, dot: Dot, id: EventId) -> Verdict {
        let other = *self.keys[key as usize].dots.entry(dot).or_insert(id);
        if other == id {
            return Ok(());
        }
        let name = self.key(key);
        Err((Invariant::I2, format!("{name:?}: dot {dot:?} names write {} and write {}", other.0 + 1, id.0 + 1)))
    }
    /// No value stands beside one whose writer had seen it. `settled`: all replicas have met.
    fn check_siblings(&mut self, key: u32, shown: &Seen, settled: bool) -> Verdict {
        for &(newer, by) in shown {
            for &(older, dot) in shown.iter().filter(|(older, _)| *older != newer) {
                let meeting = match self.traces.rivals(self.key(key), by, (older.write_id(), dot)) {
                    _ if settled => Meeting::Settled,
                    Some(rivals) => Meeting::Traced { rivals },
                    None => Meeting::Blind,
                };
                if self.supersedes((newer, older, dot), meeting)? {
                    let (newer, older) = (newer.0 + 1, older.0 + 1);
                    let name = self.key(key);
                    let text = format!("{name:?}: write {older} stands beside write {newer}, whose writer had seen it");
                    return Err((Invariant::I2, text));
                }
            }
        }
        Ok(())
    }
    /// Whether `newer` must have removed the sibling `older` with this dot wherever it took effect. A write that was
    /// sent or forwarded twice may have a second dot, which the writer of `newer` had not seen: it may come later. So
    /// may a dot that a context keeps apart from its clock, or has no more room for. Heads remember what was superseded
    /// last, so neither comes back before so much else was written that its trace may be forgotten.
    ///
    /// Contexts name dots and not writes: that two dots are of one write is known only to whoever has held the first. A
    /// coordinator that has not, and is sent the second later, shows it beside `newer` until it meets one of those:
    /// that is let pass.
    fn supersedes(
        &mut self,
        (newer, older, dot): (EventId, EventId, Dot),
        meeting: Meeting,
    ) -> Result<bool, (Invariant, String)> {
        let event = &self.events[newer.0 as usize];
        if event.context.clock.covers(dot) {
            return Ok(true);
        }
        let Some((_, seen)) = event.seen.iter().find(|(id, _)| *id == older) else { return Ok(false) };
        let apart = event.context.dots.contains(&dot) || event.context.dots.len() >= CONTEXT_DOTS_MAX;
        if *seen == dot && !apart {
            return Ok(true);
        }
        let (key, second) = (event.key, *seen != dot);
        let others = self.keys[key as usize].puts.iter().filter(|id| **id != older);
        let all: usize = others.map(|id| self.events[id.0 as usize].attempts as usize * COORDINATORS).sum();
        let (traces, blind) = match meeting {
            Meeting::Settled => (all.min(self.traces.named(self.key(key), [*seen, dot])), false),
            Meeting::Traced { rivals } => (rivals, false),
            Meeting::Blind => (all, second),
        };
        if traces < RECENT_WRITES_MAX && blind {
            self.excuses.second_names += 1;
            return Ok(false);
        }
        if traces < RECENT_WRITES_MAX {
            let (newer, older, name) = (newer.0 + 1, older.0 + 1, self.key(key));
            let text =
                format!("{name:?}: write {older} is back beside write {newer}, and nobody can have forgotten it");
            return Err((Invariant::I2, text));
        }
        self.excuses.revived_retries += 1;
        Ok(false)
    }
}

#[cfg(test)]
mod tests;
