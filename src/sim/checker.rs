//! What must hold, checked against the history that the clients keep. Linear in the history.
//!
//! The oracle is causality by value: each write knows which values its writer had been shown (`seen`). Clocks are
//! looked at as well, where they say more: a write that was sent twice under one id may have two dots, and the context
//! of a write among siblings keeps its dot apart.
//!
//! - I1: an acknowledged write, or one that any read has shown, is in the end among the siblings, or was superseded by
//!   a writer who had seen it (or by a blind delete that may have come after it), and so was that one, up to a sibling.
//! - I2: no read shows a value beside one whose writer had seen it; in the end, none that an acknowledged write or
//!   delete has superseded. One dot names one write.
//! - I3: every value read was written to that key, whole.
//! - I9: a write whose outcome is `not_applied` never appears.

use crate::{
    limits::CONTEXT_DOTS_MAX,
    protocol::{
        ring::FixedMap,
        versions::{Context, Dot, Siblings},
    },
    types::{Instant, Key, Outcome, Value, WriteId},
};
use smallvec::SmallVec;
use std::fmt;
use xxhash_rust::xxh3::xxh3_64;

/// Which promise was broken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Invariant {
    I1,
    I2,
    I3,
    I5,
    I9,
    I11,
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
            Invariant::I5 => "I5 (replicas become equal, hints drain)",
            Invariant::I9 => "I9 (not_applied never appears)",
            Invariant::I11 => "I11 (every request ends within its deadline)",
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
    /// No effect begins later than this.
    ended: Instant,
    end: End,
    attempts: u32,
    shown: bool,
}

#[derive(Default)]
struct KeyHistory {
    puts: Vec<EventId>,
    deletes: Vec<EventId>,
    dots: FixedMap<Dot, EventId>,
}

/// What happened to all keys, as the clients know it.
pub struct History {
    events: Vec<Event>,
    keys: Vec<KeyHistory>,
    names: Vec<Key>,
    /// Values that came back after all because their write had been sent twice and its trace was forgotten.
    pub revived_retries: u64,
    pub reads: u64,
    pub values_read: u64,
}

const MAGIC: &[u8; 4] = b"DYSV";
const HEADER_BYTES: usize = 24;
const TRAILER_BYTES: usize = 8;
/// The least bytes of a self-describing value.
pub const VALUE_BYTES_MIN: usize = HEADER_BYTES + TRAILER_BYTES;

/// `magic 4, key 4, write id 8, length 8, noise, xxh3-64 of all before`.
pub fn make_value(key: u32, id: EventId, bytes: usize) -> Value {
    let bytes = bytes.max(VALUE_BYTES_MIN);
    let mut value = Vec::with_capacity(bytes);
    value.extend_from_slice(MAGIC);
    value.extend_from_slice(&key.to_le_bytes());
    value.extend_from_slice(&id.write_id().0.to_le_bytes());
    value.extend_from_slice(&(bytes as u64).to_le_bytes());
    let noise = xxh3_64(&value).to_le_bytes();
    while value.len() < bytes - TRAILER_BYTES {
        let take = noise.len().min(bytes - TRAILER_BYTES - value.len());
        value.extend_from_slice(&noise[..take]);
    }
    value.extend_from_slice(&xxh3_64(&value).to_le_bytes());
    Value::json(value)
}

/// The key and write that a value names, if it is whole.
fn parse_value(value: &[u8]) -> Result<(u32, WriteId), &'static str> {
    let Some((body, trailer)) = value.split_last_chunk::<TRAILER_BYTES>() else { return Err("cut short") };
    if body.len() < HEADER_BYTES || &body[..4] != MAGIC {
        return Err("not a value of this run");
    }
    if xxh3_64(body) != u64::from_le_bytes(*trailer) {
        return Err("damaged");
    }
    let word = |at: usize| -> u64 { (0..8).fold(0, |w, i| w | u64::from(body[at + i]) << (8 * i)) };
    if word(16) != value.len() as u64 {
        return Err("of another length");
    }
    Ok((word(4) as u32, WriteId(word(8))))
}

type Verdict = Result<(), (Invariant, String)>;

impl History {
    pub fn new(names: Vec<Key>) -> History {
        let keys = names.iter().map(|_| KeyHistory::default()).collect();
        History { events: Vec::new(), keys, names, revived_retries: 0, reads: 0, values_read: 0 }
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
        self.events.push(Event {
            kind,
            key,
            seen,
            context,
            started: now,
            ended: Instant::NEVER,
            end: End::Open,
            attempts: 0,
            shown: false,
        });
        let history = &mut self.keys[key as usize];
        match kind {
            Kind::Put => history.puts.push(id),
            Kind::Delete | Kind::BlindDelete => history.deletes.push(id),
        }
        id
    }
    pub fn attempt(&mut self, id: EventId) {
        self.events[id.0 as usize].attempts += 1;
    }
    /// The last that its client hears of a write; after `ended` it cannot begin to take effect. `answer`: the context
    /// that came with an acknowledgement.
    pub fn finish(&mut self, ended: Instant, id: EventId, end: End, answer: Option<&Context>) {
        let event = &mut self.events[id.0 as usize];
        event.end = end;
        event.ended = ended;
        if event.kind == Kind::BlindDelete
            && let Some(context) = answer
        {
            event.context = context.clone();
        }
    }
    /// Blind deletes are over for certain: those of this key took effect, if ever, before `until`.
    fn blind_until(&self, key: u32) -> Instant {
        let deletes = self.keys[key as usize].deletes.iter().map(|d| &self.events[d.0 as usize]);
        let blind = deletes.filter(|e| e.kind == Kind::BlindDelete && e.end != End::NotApplied);
        blind.map(|e| e.ended).max().unwrap_or(Instant::ZERO)
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
        for (entry, value) in siblings.head.entries.iter().zip(&siblings.values) {
            self.values_read += 1;
            let id = self.check_value(key, entry.write_id, value)?;
            self.check_dot(key, entry.dot, id)?;
            if shown.iter().any(|(other, _)| *other == id) {
                return Err((Invariant::I2, format!("{:?}: write {} is its own sibling", self.key(key), id.0 + 1)));
            }
            if !siblings.head.clock.covers(entry.dot) {
                return Err((Invariant::I2, format!("{:?}: the clock does not cover {:?}", self.key(key), entry.dot)));
            }
            shown.push((id, entry.dot));
        }
        self.check_siblings(key, &shown)?;
        Ok(shown)
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
    /// No value stands beside one whose writer had seen it.
    fn check_siblings(&mut self, key: u32, shown: &Seen) -> Verdict {
        for &(newer, _) in shown {
            for &(older, dot) in shown.iter().filter(|(older, _)| *older != newer) {
                if self.supersedes(newer, older, dot) {
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
    /// may a dot that a context keeps apart from its clock, or has no more room for.
    fn supersedes(&mut self, newer: EventId, older: EventId, dot: Dot) -> bool {
        let event = &self.events[newer.0 as usize];
        if event.context.clock.covers(dot) {
            return true;
        }
        let Some((_, seen)) = event.seen.iter().find(|(id, _)| *id == older) else { return false };
        let apart = event.context.dots.contains(&dot) || event.context.dots.len() >= CONTEXT_DOTS_MAX;
        if *seen == dot && !apart {
            return true;
        }
        self.revived_retries += 1;
        false
    }

    // ---- in the end --------------------------------------------------------------------------------------------

    /// The cluster has converged; these are the siblings of a key, as a last read of all replicas has shown them.
    pub fn check_final(&mut self, key: u32, last: &Siblings) -> Verdict {
        let shown = self.observe(key, last)?;
        self.check_resurrection(key, &shown)?;
        self.check_losses(key, &shown)
    }
    fn check_resurrection(&mut self, key: u32, shown: &Seen) -> Verdict {
        let history = &self.keys[key as usize];
        let acknowledged = |id: &&EventId| self.events[id.0 as usize].end == End::Acknowledged;
        let later: Vec<EventId> = history.puts.iter().chain(&history.deletes).filter(acknowledged).copied().collect();
        for newer in later {
            for &(older, dot) in shown.iter().filter(|(older, _)| *older != newer) {
                if self.supersedes(newer, older, dot) {
                    let (kind, name) = (self.events[newer.0 as usize].kind, self.key(key));
                    let (newer, older) = (newer.0 + 1, older.0 + 1);
                    let text = format!(
                        "{name:?}: write {older} is back, though the acknowledged {kind:?} {newer} had removed it"
                    );
                    return Err((Invariant::I2, text));
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
    /// Walks from the siblings and deletes to all that they have legitimately superseded; what must survive and is not
    /// reached is lost.
    fn check_losses(&self, key: u32, shown: &Seen) -> Verdict {
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
        for id in &history.puts {
            let event = &self.events[id.0 as usize];
            let must_survive = event.end == End::Acknowledged || event.shown;
            if must_survive && !reached.contains_key(id) && event.started >= blind_until {
                let how = if event.end == End::Acknowledged { "was acknowledged" } else { "had been read" };
                let text = format!(
                    "{:?}: write {} {how} and is lost; siblings now {:?}; seen by {}",
                    self.key(key),
                    id.0 + 1,
                    shown.iter().map(|(id, dot)| (id.0 + 1, dot)).collect::<Vec<_>>(),
                    self.successors(key, *id, 4),
                );
                return Err((Invariant::I1, text));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::versions::{Actor, Entry, Head, VersionVector};

    fn dot(actor: u64, counter: u64) -> Dot {
        Dot { actor: Actor(actor), counter }
    }
    fn state(clock: &[Dot], entries: &[(Dot, EventId)]) -> Siblings {
        let head = Head { clock: VersionVector::from_dots(clock.iter().copied()), ..Head::default() };
        let mut siblings = Siblings { head, ..Siblings::default() };
        for (dot, id) in entries {
            let value = make_value(0, *id, 50);
            let (bytes, checksum) = (value.bytes.len() as u32, value.checksum);
            let entry = Entry { dot: *dot, write_id: id.write_id(), media: value.media, bytes, checksum };
            siblings.head.entries.push(entry);
            siblings.values.push(value.bytes);
        }
        siblings
    }
    fn history() -> History {
        History::new(vec![Key::new(&b"k"[..]).unwrap()])
    }
    fn put(history: &mut History, seen: &[EventId], clock: &[Dot], end: End) -> EventId {
        let context = VersionVector::from_dots(clock.iter().copied()).into();
        let seen = seen.iter().map(|id| (*id, dot(1, 1))).collect();
        let id = history.begin(Instant(1), Kind::Put, 0, seen, context);
        history.attempt(id);
        history.finish(Instant(2), id, end, None);
        id
    }
    fn broken(verdict: Verdict) -> Option<Invariant> {
        verdict.err().map(|(i, _)| i)
    }

    #[test]
    fn a_lost_write_is_noticed_and_a_superseded_one_is_not() {
        let mut h = history();
        let one = put(&mut h, &[], &[], End::Acknowledged);
        let two = put(&mut h, &[one], &[dot(1, 1)], End::Acknowledged);
        let three = put(&mut h, &[], &[], End::Acknowledged);
        let good = state(&[dot(1, 2), dot(2, 1)], &[(dot(1, 2), two), (dot(2, 1), three)]);
        assert_eq!(h.check_final(0, &good), Ok(()));
        let lost = state(&[dot(1, 2), dot(2, 1)], &[(dot(1, 2), two)]);
        assert_eq!(broken(h.check_final(0, &lost)), Some(Invariant::I1));
    }

    #[test]
    fn false_siblings_and_returns_are_noticed() {
        let mut h = history();
        let one = put(&mut h, &[], &[], End::Acknowledged);
        let two = put(&mut h, &[one], &[dot(1, 1)], End::Acknowledged);
        let both = state(&[dot(1, 2)], &[(dot(1, 1), one), (dot(1, 2), two)]);
        assert_eq!(broken(h.observe(0, &both).map(drop)), Some(Invariant::I2));
        let back = state(&[dot(1, 2)], &[(dot(1, 1), one)]);
        assert_eq!(broken(h.check_final(0, &back)), Some(Invariant::I2));
    }

    #[test]
    fn reused_dots_foreign_values_and_undead_failures_are_noticed() {
        let mut h = history();
        let one = put(&mut h, &[], &[], End::Acknowledged);
        let two = put(&mut h, &[], &[], End::Unknown);
        let never = put(&mut h, &[], &[], End::NotApplied);
        h.observe(0, &state(&[dot(1, 1)], &[(dot(1, 1), one)])).unwrap();
        assert_eq!(broken(h.observe(0, &state(&[dot(1, 1)], &[(dot(1, 1), two)])).map(drop)), Some(Invariant::I2));
        assert_eq!(broken(h.observe(0, &state(&[dot(3, 1)], &[(dot(3, 1), never)])).map(drop)), Some(Invariant::I9));
        let mut foreign = state(&[dot(1, 1)], &[(dot(1, 1), one)]);
        foreign.values[0] = make_value(0, two, 50).bytes;
        assert_eq!(broken(h.observe(0, &foreign).map(drop)), Some(Invariant::I3));
        foreign.values[0] = foreign.values[0].slice(..40);
        assert_eq!(broken(h.observe(0, &foreign).map(drop)), Some(Invariant::I3));
    }
}
