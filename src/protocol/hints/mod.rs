//! Writes owed to an absent replica: counted, and delivered when it is back.
//!
//! The hints themselves are records of the engine, written by the replica machine; this machine knows how many there
//! are for each owner and replays them. A replay walks the owner's hints slice by slice, a window of deliveries at a
//! time: read what is owed (a parked state from the hint, otherwise the key's own record), send it, and drop the hint
//! after the owner's durable acknowledgement, if it is still the same hint.
//!
//! The owner sets the pace: the window grows while it answers quickly, and shrinks when it takes long or refuses. A
//! replay begins a random moment after the owner's return, so that not all who owe it something begin at once.
//!
//! # At the bound
//!
//! Hints are bounded in bytes, and never is a client's write refused for it. What a stand-in acknowledges counts toward
//! W, so it cannot be dropped: at the bound its own copy takes the state, as a replica's would, and the slice is
//! *marked* as one in which the owner lacks something. A replica that owes a marker at the bound has the state in its
//! own copy anyway, and marks likewise. A mark is one small record a slice and owner, stored in one batch with the
//! state: marks are bounded by their number, and the states by the disk, which turns read-only before it is full.
//!
//! When the owner is back and has its hints, each marked slice is *swept*: the shard goes through its own records of
//! the slice, and for each key that the owner is a home of it asks the owner for its head, and sends its own record if
//! the owner lacks some of it. After a sweep that has left nothing out the mark goes. So what was acknowledged reaches
//! its homes, bound or not; what is sent is merged like any other state, so what was deleted since stays so. A
//! stand-in's copy stays behind, stale and harmless: it is read only while too few homes can be, and merged.
//!
//! # Damage
//!
//! A hint that cannot be read, twice, or whose record cannot, is dropped, its range marked and the drop counted: the
//! others that acknowledged the write have it. A slice whose hints or records cannot be walked stays marked; it is
//! tried again after [`SWEEP_PAUSE`].

use crate::{
    limits::{BACKGROUND_TIMEOUT, HINT_INTERVAL, HINT_JITTER_MAX, HINT_SCAN, HINT_WINDOW, SWEEP_PAUSE},
    protocol::{
        message::{Depth, Fetched, Message, Purpose, Refusal},
        pace::Pace,
        replica::{
            Stored,
            keys::{
                HintForm, HintHead, HintKind, all_records, data_key, hint_bytes, hint_key, hints_of, parse_hint_key,
                user_key,
            },
        },
        ring::{FixedMap, Nodes, Ring},
        versions::{Dot, Head, Siblings},
    },
    types::{Address, Instant, Key, NodeId, SliceId, TableWord},
};
use bytes::{Bytes, BytesMut};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// The work that the machine asks for. The answer names the same `io` or `delivery` number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Act {
    Scan {
        io: u64,
        slice: SliceId,
        from: Bytes,
        to: Bytes,
        limit: usize,
    },
    Load {
        io: u64,
        slice: SliceId,
        key: Bytes,
        depth: Depth,
    },
    /// A message to the owner. The shard adds which drops of the key's table the state comes after.
    Send {
        to: Address,
        delivery: u64,
        deadline: Instant,
        message: Message,
    },
    /// Drop this hint if its stamp is still the same; answered by `dropped`.
    Drop {
        delivery: u64,
        slice: SliceId,
        key: Key,
        owner: NodeId,
        form: HintForm,
        stamp: u64,
    },
    /// Drops a hint like `Drop`, because it cannot be delivered; its slice is marked in the same step.
    GiveUp {
        delivery: u64,
        slice: SliceId,
        key: Key,
        owner: NodeId,
        form: HintForm,
        stamp: u64,
    },
    /// Hints of the slice cannot be walked: note that the owner lacks something of it.
    Mark {
        slice: SliceId,
        owner: NodeId,
    },
    /// The owner has all that this shard has of the slice: the mark goes. Nobody waits.
    Unmark {
        slice: SliceId,
        owner: NodeId,
    },
}

/// The facts of the moment that a walk needs.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub ring: &'a Ring,
    /// The home replicas of a key.
    pub homes: &'a dyn Fn(&Key) -> Nodes,
    /// Whether a core can be asked.
    pub usable: &'a dyn Fn(Address) -> bool,
}

/// The debts of this shard to one node.
struct Owed {
    /// The number of its hints at most: a hint written twice counts twice until a replay has found none left.
    count: u64,
    bytes: u64,
    /// Hints and marks that are being written: a walk may pass by before they can be seen.
    writing: u64,
    walk: Option<Walk>,
    not_before: Instant,
    /// The slices in which the owner lacks something; those of them that the present round of sweeps has still to walk;
    /// and the time before which no next round begins.
    marked: BTreeSet<SliceId>,
    round: VecDeque<SliceId>,
    next_round: Instant,
    /// Whether the last walk over its hints has left some that were refused.
    stuck: bool,
    /// Whether the owner has been seen to be back; its replay may begin at `not_before`.
    back: bool,
    /// Deliveries in flight at once.
    pace: Pace,
}
impl Owed {
    fn new(count: u64, bytes: u64) -> Owed {
        Owed {
            count,
            bytes,
            writing: 0,
            walk: None,
            not_before: Instant::ZERO,
            marked: BTreeSet::new(),
            round: VecDeque::new(),
            next_round: Instant::ZERO,
            stuck: false,
            back: false,
            pace: Pace::default(),
        }
    }
    fn is_empty(&self) -> bool {
        self.count == 0 && self.marked.is_empty()
    }
    /// Notes that something is being written for the owner that a walk under way may miss.
    fn begin_writing(&mut self) {
        self.writing += 1;
        if let Some(walk) = &mut self.walk {
            walk.complete = false;
        }
    }
    /// Chooses the next walk, if one is due: the sweep of a slice, or all hints. Returns what it is over, and its
    /// slices.
    fn next_walk(&mut self, now: Instant, slices: &[SliceId]) -> Option<(What, VecDeque<SliceId>)> {
        // Hints first; those that are refused again and again hold nothing up.
        let sweeps = self.count == 0 || self.stuck;
        if sweeps && self.round.is_empty() && now >= self.next_round {
            self.round.extend(&self.marked);
            self.next_round = now + SWEEP_PAUSE;
        }
        let swept = if sweeps { self.round.pop_front() } else { None };
        match swept {
            Some(slice) => Some((What::Records(slice), [slice].into())),
            None => (self.count > 0).then(|| (What::Hints, slices.iter().copied().collect())),
        }
    }
}

/// The records that a walk goes through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    /// The owner's hints, in all slices.
    Hints,
    /// The own records of one marked slice.
    Records(SliceId),
}
impl What {
    fn bounds(self, owner: NodeId) -> (Bytes, Bytes) {
        match self {
            What::Hints => hints_of(owner),
            What::Records(_) => all_records(),
        }
    }
}

/// A walk over what an owner is owed.
struct Walk {
    what: What,
    /// The slices still to be walked; the first is being walked, from the key `from` on.
    slices: VecDeque<SliceId>,
    from: Bytes,
    scanning: bool,
    waiting: VecDeque<(SliceId, Bytes, Bytes)>,
    in_flight: usize,
    found: u64,
    /// Deliveries that the owner, or the own disk, refused: each for its key alone.
    refused: u64,
    /// Whether the owner takes nothing now: then the walk ends.
    failed: bool,
    /// Whether nothing was being written when the walk began, and nothing has been since: then what it does not find
    /// does not exist.
    complete: bool,
}
impl Walk {
    fn next_slice(&mut self, owner: NodeId) {
        self.slices.pop_front();
        self.from = self.what.bounds(owner).0;
    }
}

/// The reason of a delivery.
enum Source {
    /// A hint: its form and stamp, and the bytes that it counts for.
    Hint { form: HintForm, stamp: u64, bytes: u64 },
    /// A sweep of a marked slice: the head that the own record had when the sweep passed.
    Sweep { head: Head },
}

struct Delivery {
    owner: NodeId,
    slice: SliceId,
    key: Key,
    source: Source,
    sent_bytes: u64,
    /// Whether what is owed has already failed to be read once.
    damaged: bool,
    /// Whether it cannot be delivered and its hint is being dropped.
    given_up: bool,
    sent: Instant,
    give_up: Instant,
}

/// See the module.
pub struct Hints {
    slices: Vec<SliceId>,
    /// Bytes of hints that are kept at most.
    bytes_max: u64,
    owners: BTreeMap<NodeId, Owed>,
    deliveries: FixedMap<u64, Delivery>,
    scans: FixedMap<u64, (NodeId, SliceId)>,
    next: u64,
    next_look: Instant,
    random: fastrand::Rng,
    pub stored: u64,
    pub delivered: u64,
    /// Bytes of values that owners have acknowledged.
    pub delivered_bytes: u64,
    /// Hints not kept because of the bound in bytes, or given up because they were damaged.
    pub dropped: u64,
    /// Marked ranges of which the owner has got all that this shard has.
    pub swept: u64,
}

/// The hints and marks that lie in the engine at the start.
#[derive(Default)]
pub struct Found {
    /// Hints: owner, count, bytes.
    pub hints: Vec<(NodeId, u64, u64)>,
    /// The marked slices and their owners: there hints were dropped, or never kept.
    pub marks: Vec<(NodeId, SliceId)>,
}

impl Hints {
    /// `bytes_max`: bytes of hints beyond which none is kept. `first`: where the numbers of deliveries start, different
    /// in each life.
    pub fn new(slices: Vec<SliceId>, found: Found, bytes_max: u64, first: u64, now: Instant) -> Hints {
        let mut owners: BTreeMap<NodeId, Owed> =
            found.hints.into_iter().map(|(node, count, bytes)| (node, Owed::new(count, bytes))).collect();
        for (owner, slice) in found.marks {
            owners.entry(owner).or_insert_with(|| Owed::new(0, 0)).marked.insert(slice);
        }
        Hints {
            slices,
            bytes_max,
            owners,
            deliveries: FixedMap::default(),
            scans: FixedMap::default(),
            next: first,
            next_look: now + HINT_INTERVAL,
            random: fastrand::Rng::with_seed(first),
            stored: 0,
            delivered: 0,
            delivered_bytes: 0,
            dropped: 0,
            swept: 0,
        }
    }
    pub fn count(&self) -> u64 {
        self.owners.values().map(|o| o.count).sum()
    }
    pub fn bytes(&self) -> u64 {
        self.owners.values().map(|o| o.bytes).sum()
    }
    /// Whether no further hint is kept.
    pub fn is_full(&self) -> bool {
        self.bytes() > self.bytes_max
    }
    pub fn next_deadline(&self) -> Option<Instant> {
        self.owners.values().any(|o| !o.is_empty()).then_some(self.next_look)
    }
    /// Whether hints are kept for this node.
    pub fn owes(&self, owner: NodeId) -> bool {
        self.owners.get(&owner).is_some_and(|owed| owed.count > 0)
    }
    /// Whether it is noted to lack something of the slice.
    pub fn is_marked(&self, owner: NodeId, slice: SliceId) -> bool {
        self.owners.get(&owner).is_some_and(|owed| owed.marked.contains(&slice))
    }
    /// Ranges in which an owner lacks something, and each owner counts by itself.
    pub fn ranges_marked(&self) -> u64 {
        self.owners.values().map(|o| o.marked.len() as u64).sum()
    }
    fn owed(&mut self, now: Instant, owner: NodeId) -> &mut Owed {
        if self.owners.values().all(Owed::is_empty) {
            self.next_look = now + HINT_INTERVAL;
        }
        self.owners.entry(owner).or_insert_with(|| Owed::new(0, 0))
    }
    /// Notes that a mark is being written: the owner lacks something of the slice.
    pub fn mark(&mut self, now: Instant, owner: NodeId, slice: SliceId) {
        let owed = self.owed(now, owner);
        owed.begin_writing();
        if owed.marked.insert(slice) {
            owed.next_round = Instant::ZERO;
        }
    }
    /// A hint is being written.
    pub fn kept(&mut self, now: Instant, owner: NodeId, bytes: u64) {
        self.stored += 1;
        let owed = self.owed(now, owner);
        owed.count += 1;
        owed.bytes += bytes;
        owed.begin_writing();
    }
    /// The writing of a hint or a mark has ended, well or not.
    pub fn written(&mut self, owner: NodeId) {
        if let Some(owed) = self.owners.get_mut(&owner) {
            owed.writing = owed.writing.saturating_sub(1);
        }
    }

    /// Looks for owners that are back, and for deliveries that got no answer.
    pub fn tick(&mut self, now: Instant, view: View<'_>, healthy: impl Fn(NodeId) -> bool, out: &mut Vec<Act>) {
        if now < self.next_look {
            return;
        }
        self.next_look = now + HINT_INTERVAL;
        let mut silent: Vec<u64> =
            self.deliveries.iter().filter(|(_, d)| d.give_up <= now).map(|(id, _)| *id).collect();
        silent.sort_unstable();
        silent.into_iter().for_each(|id| self.end(now, id, false));
        let owners: Vec<NodeId> = self.owners.keys().copied().collect();
        for owner in owners {
            let Some(owed) = self.owners.get_mut(&owner) else { continue };
            if owed.is_empty() || !healthy(owner) || !view.ring.contains(owner) {
                owed.back = false;
            } else if !owed.back {
                owed.back = true;
                let jitter = Duration::from_nanos(self.random.u64(..HINT_JITTER_MAX.as_nanos() as u64));
                owed.not_before = owed.not_before.max(now + jitter);
                self.next_look = self.next_look.min(owed.not_before);
            }
            if owed.back
                && now >= owed.not_before
                && owed.walk.is_none()
                && let Some((what, slices)) = owed.next_walk(now, &self.slices)
            {
                owed.walk = Some(Walk {
                    what,
                    slices,
                    from: what.bounds(owner).0,
                    scanning: false,
                    waiting: VecDeque::new(),
                    in_flight: 0,
                    found: 0,
                    refused: 0,
                    failed: false,
                    complete: owed.writing == 0,
                });
            }
            self.pump(now, owner, view, out);
        }
    }

    /// Keeps the window of one owner full, and ends the walk when nothing is left of it.
    fn pump(&mut self, now: Instant, owner: NodeId, view: View<'_>, out: &mut Vec<Act>) {
        let Some(owed) = self.owners.get_mut(&owner) else { return };
        let Some(walk) = &mut owed.walk else { return };
        while walk.in_flight < owed.pace.window && !walk.failed {
            let Some((slice, key, head)) = walk.waiting.pop_front() else { break };
            self.next += 1;
            let begun = match walk.what {
                What::Hints => begin_hint(now, self.next, (slice, key, &head), view),
                What::Records(_) => begin_record(now, self.next, owner, (slice, &key, &head), view),
            };
            match begun {
                Begun::Delivery(delivery, act) => {
                    walk.in_flight += 1;
                    self.deliveries.insert(self.next, delivery);
                    out.push(act);
                }
                Begun::NotOwed => {}
                Begun::Postponed => walk.refused += 1,
            }
        }
        let more = !walk.slices.is_empty() && !walk.failed && view.ring.contains(owner);
        if more
            && !walk.scanning
            && walk.waiting.len() < HINT_WINDOW
            && let Some(&slice) = walk.slices.front()
        {
            self.next += 1;
            walk.scanning = true;
            self.scans.insert(self.next, (owner, slice));
            let (from, to) = (walk.from.clone(), walk.what.bounds(owner).1);
            out.push(Act::Scan { io: self.next, slice, from, to, limit: HINT_SCAN });
        }
        let over = !more && !walk.scanning && walk.in_flight == 0 && (walk.failed || walk.waiting.is_empty());
        if over && let Some(walk) = owed.walk.take() {
            self.ended(now, owner, &walk, out);
        }
    }
    /// Ends a walk of which nothing is left.
    fn ended(&mut self, now: Instant, owner: NodeId, walk: &Walk, out: &mut Vec<Act>) {
        let Some(owed) = self.owners.get_mut(&owner) else { return };
        let whole = !walk.failed && walk.refused == 0 && walk.complete;
        match walk.what {
            What::Hints => {
                owed.stuck = !walk.failed && walk.refused > 0;
                if walk.failed || owed.stuck {
                    owed.not_before = now + HINT_INTERVAL * 2;
                } else if walk.found == 0 && walk.complete {
                    (owed.count, owed.bytes) = (0, 0);
                }
            }
            What::Records(slice) if whole => {
                owed.marked.remove(&slice);
                self.swept += 1;
                out.push(Act::Unmark { slice, owner });
            }
            What::Records(_) => {}
        }
        // The next slice at once; hints, which may be found again and again while one is being written, at their time.
        let swept = walk.what != What::Hints && !walk.failed;
        if swept && !owed.round.is_empty() {
            self.next_look = now;
        }
    }

    pub fn scanned(
        &mut self,
        now: Instant,
        io: u64,
        result: Result<Vec<(Bytes, Bytes)>, Refusal>,
        view: View<'_>,
        out: &mut Vec<Act>,
    ) {
        let Some((owner, slice)) = self.scans.remove(&io) else { return };
        let Some(owed) = self.owners.get_mut(&owner) else { return };
        let Some(walk) = &mut owed.walk else { return };
        walk.scanning = false;
        match result {
            // What is damaged there cannot be delivered; what lies in other slices can.
            Err(Refusal::Damaged) => {
                walk.refused += u64::from(walk.what != What::Hints);
                walk.next_slice(owner);
                if !owed.marked.contains(&slice) {
                    out.push(Act::Mark { slice, owner });
                }
            }
            Err(_) => walk.failed = true,
            Ok(found) => {
                walk.found += found.len() as u64;
                match found.last() {
                    Some((last, _)) if found.len() >= HINT_SCAN => walk.from = after(last),
                    _ => walk.next_slice(owner),
                }
                walk.waiting.extend(found.into_iter().map(|(key, head)| (slice, key, head)));
            }
        }
        self.pump(now, owner, view, out);
    }

    /// The owner of a swept key has said what it knows.
    pub fn fetched(
        &mut self,
        now: Instant,
        delivery: u64,
        result: Result<Fetched, Refusal>,
        view: View<'_>,
        out: &mut Vec<Act>,
    ) {
        let Some(d) = self.deliveries.get_mut(&delivery) else { return };
        let Source::Sweep { head } = &d.source else { return };
        let theirs = match result {
            Ok(Fetched::Nothing) => Head::default(),
            Ok(Fetched::Head(theirs) | Fetched::Doubted { head: theirs, .. }) => theirs,
            Ok(Fetched::Full(theirs)) => theirs.head,
            Err(refusal) => return self.refused(now, delivery, refusal, view, out),
        };
        if !adds_to(head, &theirs) {
            return self.dropped(now, delivery, true, view, out);
        }
        out.push(Act::Load { io: delivery, slice: d.slice, key: data_key(&d.key), depth: Depth::Full });
    }

    /// Sends what is owed, now that it has been read; or drops the hint, if the record is gone or cannot be read.
    pub fn loaded(
        &mut self,
        now: Instant,
        delivery: u64,
        result: Result<Option<Stored>, Refusal>,
        view: View<'_>,
        out: &mut Vec<Act>,
    ) {
        let Some(d) = self.deliveries.get_mut(&delivery) else { return };
        let siblings = match result {
            Ok(Some(stored)) => d.source.decode(stored).ok_or(Refusal::Damaged),
            // A record that is gone: nothing is owed.
            Ok(None) => match d.act(delivery) {
                Some(drop) => return out.push(drop),
                None => return self.dropped(now, delivery, true, view, out),
            },
            Err(refusal) => Err(refusal),
        };
        match (siblings, view.ring.address(d.owner, d.key.token())) {
            (Ok(siblings), Some(to)) => {
                d.sent = now;
                d.sent_bytes = siblings.head.value_bytes() as u64;
                let (key, purpose) = (d.key.clone(), Purpose::Replay);
                let message = Message::Replicate { key, siblings, purpose, word: TableWord::default(), fresh: None };
                out.push(Act::Send { to, delivery, deadline: d.give_up, message });
            }
            (Err(Refusal::Damaged), _) if !d.damaged => {
                d.damaged = true;
                out.push(d.load(delivery));
            }
            (Err(Refusal::Damaged), _) if matches!(d.source, Source::Hint { .. }) => {
                d.given_up = true;
                out.extend(d.act(delivery));
            }
            _ => self.skip(now, delivery, view, out),
        }
    }
    /// Ends a delivery that is tried again with the next walk.
    fn skip(&mut self, now: Instant, delivery: u64, view: View<'_>, out: &mut Vec<Act>) {
        let Some(owner) = self.deliveries.remove(&delivery).map(|d| d.owner) else { return };
        if let Some(walk) = self.owners.get_mut(&owner).and_then(|o| o.walk.as_mut()) {
            walk.in_flight -= 1;
            walk.refused += 1;
        }
        self.pump(now, owner, view, out);
    }
    fn refused(&mut self, now: Instant, delivery: u64, refusal: Refusal, view: View<'_>, out: &mut Vec<Act>) {
        if refusal == Refusal::Damaged {
            // Something is wrong with this key there; the others can be delivered.
            self.skip(now, delivery, view, out);
        } else {
            self.dropped(now, delivery, false, view, out);
        }
    }

    /// The owner has answered.
    pub fn replicated(
        &mut self,
        now: Instant,
        delivery: u64,
        result: Result<(), Refusal>,
        view: View<'_>,
        out: &mut Vec<Act>,
    ) {
        let Some(d) = self.deliveries.get(&delivery) else { return };
        if let Some(owed) = self.owners.get_mut(&d.owner) {
            owed.pace.answered(now.since(d.sent), result.is_ok());
        }
        if let Err(refusal) = result {
            return self.refused(now, delivery, refusal, view, out);
        }
        self.delivered_bytes += d.sent_bytes;
        match d.act(delivery) {
            Some(drop) => out.push(drop),
            None => self.dropped(now, delivery, true, view, out),
        }
    }

    /// Ends a delivery: the hint is gone, or a newer one has taken its place; with `ok` false nothing came of it.
    pub fn dropped(&mut self, now: Instant, delivery: u64, ok: bool, view: View<'_>, out: &mut Vec<Act>) {
        let Some(owner) = self.deliveries.get(&delivery).map(|d| d.owner) else { return };
        self.end(now, delivery, ok);
        self.pump(now, owner, view, out);
    }

    /// A core of an owner cannot be reached: what is under way to it is tried again later, as is all that is owed if
    /// none of its cores can be reached.
    pub fn unreachable(&mut self, now: Instant, core: Address, whole: bool, view: View<'_>, out: &mut Vec<Act>) {
        let lost = |d: &Delivery| d.owner == core.node && view.ring.address(d.owner, d.key.token()) == Some(core);
        let mut lost: Vec<u64> = self.deliveries.iter().filter(|(_, d)| lost(d)).map(|(id, _)| *id).collect();
        lost.sort_unstable();
        for id in lost {
            if whole {
                self.end(now, id, false);
            } else {
                self.skip(now, id, view, out);
            }
        }
    }

    fn end(&mut self, now: Instant, delivery: u64, ok: bool) {
        let Some(d) = self.deliveries.remove(&delivery) else { return };
        let Some(owed) = self.owners.get_mut(&d.owner) else { return };
        if ok && let Source::Hint { bytes, .. } = d.source {
            self.delivered += u64::from(!d.given_up);
            self.dropped += u64::from(d.given_up);
            owed.count = owed.count.saturating_sub(1);
            owed.bytes = if owed.count == 0 { 0 } else { owed.bytes.saturating_sub(bytes) };
            // An upper bound that ran down too early would end the replay: one more walk makes sure.
            owed.count = owed.count.max(u64::from(owed.walk.is_some()));
        }
        if let Some(walk) = &mut owed.walk {
            walk.in_flight -= 1;
            walk.failed |= !ok;
        }
        if !ok {
            owed.not_before = now + HINT_INTERVAL;
            owed.pace.lost();
        }
    }
}

impl Source {
    fn decode(&self, stored: Stored) -> Option<Siblings> {
        let head = match self {
            Source::Hint { form: HintForm::Parked, .. } => match HintHead::decode(&stored.head).ok()?.kind {
                HintKind::Parked(head) => head,
                HintKind::Marker => return None,
            },
            Source::Hint { form: HintForm::Marker, .. } | Source::Sweep { .. } => Head::decode(&stored.head).ok()?,
        };
        Some(Siblings { head, values: stored.values })
    }
}

impl Delivery {
    fn new(now: Instant, owner: NodeId, slice: SliceId, key: Key, source: Source) -> Delivery {
        let give_up = now + BACKGROUND_TIMEOUT;
        Delivery { owner, slice, key, source, sent_bytes: 0, damaged: false, given_up: false, sent: now, give_up }
    }
    /// Reads what is owed.
    fn load(&self, io: u64) -> Act {
        let key = match self.source {
            Source::Hint { form: HintForm::Parked, .. } => hint_key(self.owner, HintForm::Parked, &self.key),
            Source::Hint { form: HintForm::Marker, .. } | Source::Sweep { .. } => data_key(&self.key),
        };
        Act::Load { io, slice: self.slice, key, depth: Depth::Full }
    }
    /// The act that removes the delivery's hint, if it has one.
    fn act(&self, delivery: u64) -> Option<Act> {
        let Source::Hint { form, stamp, .. } = self.source else { return None };
        let (slice, key, owner) = (self.slice, self.key.clone(), self.owner);
        Some(if self.given_up {
            Act::GiveUp { delivery, slice, key, owner, form, stamp }
        } else {
            Act::Drop { delivery, slice, key, owner, form, stamp }
        })
    }
}

/// The outcome of looking at a record that a walk has found.
enum Begun {
    Delivery(Delivery, Act),
    NotOwed,
    /// The record cannot be read, or the core that it is for cannot be asked now.
    Postponed,
}

fn begin_hint(now: Instant, id: u64, (slice, engine_key, head): (SliceId, Bytes, &[u8]), view: View<'_>) -> Begun {
    let Some((owner, form, key)) = parse_hint_key(&engine_key) else { return Begun::NotOwed };
    if !view.ring.address(owner, key.token()).is_none_or(view.usable) {
        return Begun::Postponed;
    }
    let decoded = HintHead::decode(head);
    let (stamp, bytes) = (decoded.as_ref().map_or(0, |hint| hint.stamp), hint_bytes(&engine_key, head));
    let mut delivery = Delivery::new(now, owner, slice, key, Source::Hint { form, stamp, bytes });
    delivery.given_up = decoded.is_err();
    let act = delivery.act(id).filter(|_| delivery.given_up).unwrap_or_else(|| delivery.load(id));
    Begun::Delivery(delivery, act)
}

/// A record of a marked slice: its owner is asked what it knows of the key.
fn begin_record(
    now: Instant,
    id: u64,
    owner: NodeId,
    (slice, engine_key, head): (SliceId, &Bytes, &[u8]),
    view: View<'_>,
) -> Begun {
    let key = user_key(engine_key).map(|key| Key::new(engine_key.slice_ref(key)));
    let Some(Ok(key)) = key else { return Begun::NotOwed };
    if !(view.homes)(&key).contains(&owner) {
        return Begun::NotOwed;
    }
    let (Ok(head), Some(to)) = (Head::decode(head), view.ring.address(owner, key.token())) else {
        return Begun::Postponed;
    };
    if !(view.usable)(to) {
        return Begun::Postponed;
    }
    let delivery = Delivery::new(now, owner, slice, key.clone(), Source::Sweep { head });
    let message = Message::Fetch { key, depth: Depth::Head, word: TableWord::default() };
    let act = Act::Send { to, delivery: id, deadline: delivery.give_up, message };
    Begun::Delivery(delivery, act)
}

/// Whether a merge of `mine` into `theirs` would change it: by an event that it has not seen, or by the end of a value.
fn adds_to(mine: &Head, theirs: &Head) -> bool {
    let gone = |dot: Dot| mine.clock.covers(dot) && mine.entries.iter().all(|entry| entry.dot != dot);
    mine.clock.entries().iter().any(|dot| !theirs.clock.covers(*dot)) || theirs.entries.iter().any(|e| gone(e.dot))
}

/// The least engine key greater than this one.
fn after(key: &Bytes) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.extend_from_slice(&[0]);
    next.freeze()
}

#[cfg(test)]
mod tests;
