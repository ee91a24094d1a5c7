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
//! Hints are bounded in bytes. At the bound a hint is dropped and its range marked, durably, as one in which the owner
//! lacks something: never is a client's write refused for it.

use crate::{
    limits::{
        BACKGROUND_TIMEOUT, HINT_ANSWER_SLACK, HINT_ANSWER_TIMES, HINT_INTERVAL, HINT_JITTER_MAX, HINT_SCAN,
        HINT_WINDOW, HINT_WINDOW_START,
    },
    protocol::{
        message::{Depth, Message, Purpose, Refusal},
        replica::{
            Stored,
            keys::{HintForm, HintHead, HintKind, data_key, hint_bytes, hints_of, parse_hint_key},
        },
        ring::{FixedMap, Ring},
        versions::{Head, Siblings},
    },
    types::{Address, Instant, Key, NodeId, SliceId},
};
use bytes::{Bytes, BytesMut};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// What the machine wants done. `io` and `delivery` numbers come back with the answer.
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
    /// The shard says which drops of its table the state comes after.
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
}

/// What is owed to one node.
struct Owed {
    /// An upper bound: a hint written twice counts twice until a replay has found none left.
    count: u64,
    bytes: u64,
    /// Hints that are being written: a walk may pass by before they can be seen.
    writing: u64,
    replay: Option<Replay>,
    not_before: Instant,
    /// The owner has been seen to be back; its replay may begin at `not_before`.
    back: bool,
    /// Deliveries in flight at once.
    window: usize,
    /// Quick answers since the window grew, and answers to come before it shrinks again.
    quick: usize,
    shrunk: usize,
    /// How quickly it answers when little is asked of it; forgotten slowly.
    best: Duration,
}
impl Owed {
    fn new(count: u64, bytes: u64) -> Owed {
        let window = HINT_WINDOW_START;
        let not_before = Instant::ZERO;
        Owed {
            count,
            bytes,
            writing: 0,
            replay: None,
            not_before,
            back: false,
            window,
            quick: 0,
            shrunk: 0,
            best: BACKGROUND_TIMEOUT,
        }
    }
    /// The owner has answered after so long, well or not.
    fn pace(&mut self, took: Duration, well: bool) {
        self.shrunk = self.shrunk.saturating_sub(1);
        self.best = took.min(self.best + self.best / 128);
        if !well || took > self.best * HINT_ANSWER_TIMES + HINT_ANSWER_SLACK {
            // Answers to what was sent before it shrank say nothing new.
            if self.shrunk == 0 {
                self.window = (self.window / 2).max(1);
                self.shrunk = self.window;
            }
            self.quick = 0;
        } else {
            self.quick += 1;
            if self.quick >= self.window {
                (self.window, self.quick) = ((self.window + 1).min(HINT_WINDOW), 0);
            }
        }
    }
}

/// One walk over an owner's hints.
#[derive(Default)]
struct Replay {
    /// Index of the slice being walked, and where in it.
    slice: usize,
    from: Bytes,
    scanning: bool,
    waiting: VecDeque<(SliceId, Bytes, Bytes)>,
    in_flight: usize,
    found: u64,
    /// Deliveries that the owner, or the own disk, refused: each for its key alone.
    refused: u64,
    /// The owner takes nothing now: the walk ends.
    failed: bool,
    /// No hint was being written when it began, and none has been since: what it does not find does not exist.
    complete: bool,
}

struct Delivery {
    owner: NodeId,
    slice: SliceId,
    key: Key,
    stamp: u64,
    /// What the hint counts for, and what was sent.
    bytes: u64,
    sent_bytes: u64,
    form: HintForm,
    sent: Instant,
    give_up: Instant,
}

/// See the module.
pub struct Hints {
    slices: Vec<SliceId>,
    owners: BTreeMap<NodeId, Owed>,
    deliveries: FixedMap<u64, Delivery>,
    scans: FixedMap<u64, (NodeId, SliceId)>,
    next: u64,
    next_look: Instant,
    random: fastrand::Rng,
    /// Where a hint was dropped.
    marked: BTreeSet<(NodeId, SliceId)>,
    pub stored: u64,
    pub delivered: u64,
    /// Bytes of values that owners have acknowledged.
    pub delivered_bytes: u64,
    /// Hints not kept because of the bound in bytes.
    pub dropped: u64,
}

impl Hints {
    /// `found`: hints that lie in the engine at start: owner, count, bytes; `marked`: where hints were dropped. `first`:
    /// where the numbers of deliveries start, different in each life.
    pub fn new(
        slices: Vec<SliceId>,
        found: impl IntoIterator<Item = (NodeId, u64, u64)>,
        marked: impl IntoIterator<Item = (NodeId, SliceId)>,
        first: u64,
        now: Instant,
    ) -> Hints {
        let owners = found.into_iter().map(|(node, count, bytes)| (node, Owed::new(count, bytes)));
        Hints {
            slices,
            owners: owners.collect(),
            deliveries: FixedMap::default(),
            scans: FixedMap::default(),
            next: first,
            next_look: now + HINT_INTERVAL,
            random: fastrand::Rng::with_seed(first),
            marked: marked.into_iter().collect(),
            stored: 0,
            delivered: 0,
            delivered_bytes: 0,
            dropped: 0,
        }
    }
    pub fn count(&self) -> u64 {
        self.owners.values().map(|o| o.count).sum()
    }
    pub fn bytes(&self) -> u64 {
        self.owners.values().map(|o| o.bytes).sum()
    }
    pub fn next_deadline(&self) -> Option<Instant> {
        self.owners.values().any(|o| o.count > 0).then_some(self.next_look)
    }
    /// Ranges in which an owner lacks something, and each owner counts by itself.
    pub fn ranges_marked(&self) -> u64 {
        self.marked.len() as u64
    }
    /// It is noted that the owner lacks something of the slice.
    pub fn mark(&mut self, owner: NodeId, slice: SliceId) {
        self.marked.insert((owner, slice));
    }
    /// A hint is being written.
    pub fn kept(&mut self, now: Instant, owner: NodeId, bytes: u64) {
        if self.owners.values().all(|o| o.count == 0) {
            self.next_look = now + HINT_INTERVAL;
        }
        self.stored += 1;
        let owed = self.owners.entry(owner).or_insert_with(|| Owed::new(0, 0));
        owed.count += 1;
        owed.bytes += bytes;
        owed.writing += 1;
        if let Some(replay) = &mut owed.replay {
            replay.complete = false;
        }
    }
    /// The writing of a hint has ended, well or not.
    pub fn written(&mut self, owner: NodeId) {
        if let Some(owed) = self.owners.get_mut(&owner) {
            owed.writing = owed.writing.saturating_sub(1);
        }
    }

    /// Looks for owners that are back, and for deliveries that got no answer.
    pub fn tick(&mut self, now: Instant, ring: &Ring, healthy: impl Fn(NodeId) -> bool, out: &mut Vec<Act>) {
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
            if owed.count == 0 || !healthy(owner) || !ring.contains(owner) {
                owed.back = false;
            } else if !owed.back {
                owed.back = true;
                let jitter = Duration::from_nanos(self.random.u64(..HINT_JITTER_MAX.as_nanos() as u64));
                owed.not_before = owed.not_before.max(now + jitter);
                self.next_look = self.next_look.min(owed.not_before);
            }
            if owed.back && now >= owed.not_before && owed.replay.is_none() {
                let complete = owed.writing == 0;
                owed.replay = Some(Replay { from: hints_of(owner).0, complete, ..Replay::default() });
            }
            self.pump(now, owner, ring, out);
        }
    }

    /// Keeps the window of one owner full, and ends the walk when nothing is left of it.
    fn pump(&mut self, now: Instant, owner: NodeId, ring: &Ring, out: &mut Vec<Act>) {
        let Some(owed) = self.owners.get_mut(&owner) else { return };
        let Some(replay) = &mut owed.replay else { return };
        while replay.in_flight < owed.window && !replay.failed {
            let Some((slice, key, head)) = replay.waiting.pop_front() else { break };
            self.next += 1;
            if let Some((delivery, load)) = deliver(now, self.next, slice, key, &head) {
                replay.in_flight += 1;
                self.deliveries.insert(self.next, delivery);
                out.push(load);
            }
        }
        let more = replay.slice < self.slices.len() && !replay.failed && ring.contains(owner);
        if more && !replay.scanning && replay.waiting.len() < HINT_WINDOW {
            self.next += 1;
            replay.scanning = true;
            let slice = self.slices[replay.slice];
            self.scans.insert(self.next, (owner, slice));
            let (from, to) = (replay.from.clone(), hints_of(owner).1);
            out.push(Act::Scan { io: self.next, slice, from, to, limit: HINT_SCAN });
        }
        let over = !more && !replay.scanning && replay.in_flight == 0 && (replay.failed || replay.waiting.is_empty());
        if over {
            let failed = replay.failed || replay.refused > 0;
            let (found, complete) = (replay.found, replay.complete);
            owed.replay = None;
            if failed {
                owed.not_before = now + HINT_INTERVAL * 2;
            } else if found == 0 && complete {
                (owed.count, owed.bytes) = (0, 0);
            }
        }
    }

    pub fn scanned(
        &mut self,
        now: Instant,
        io: u64,
        result: Result<Vec<(Bytes, Bytes)>, Refusal>,
        ring: &Ring,
        out: &mut Vec<Act>,
    ) {
        let Some((owner, slice)) = self.scans.remove(&io) else { return };
        let Some(replay) = self.owners.get_mut(&owner).and_then(|o| o.replay.as_mut()) else { return };
        replay.scanning = false;
        match result {
            // What is damaged there cannot be delivered; the other slices' hints can.
            Err(Refusal::Damaged) => {
                replay.slice += 1;
                replay.from = hints_of(owner).0;
            }
            Err(_) => replay.failed = true,
            Ok(found) => {
                replay.found += found.len() as u64;
                match found.last() {
                    Some((last, _)) if found.len() >= HINT_SCAN => replay.from = after(last),
                    _ => {
                        replay.slice += 1;
                        replay.from = hints_of(owner).0;
                    }
                }
                replay.waiting.extend(found.into_iter().map(|(key, head)| (slice, key, head)));
            }
        }
        self.pump(now, owner, ring, out);
    }

    /// What is owed has been read: send it.
    pub fn loaded(
        &mut self,
        now: Instant,
        delivery: u64,
        result: Result<Option<Stored>, Refusal>,
        ring: &Ring,
        out: &mut Vec<Act>,
    ) {
        let Some(d) = self.deliveries.get_mut(&delivery) else { return };
        let (owner, slice, key, form, stamp) = (d.owner, d.slice, d.key.clone(), d.form, d.stamp);
        let siblings = match result {
            Ok(Some(stored)) => decode(stored, form),
            // A marker for a record that is gone: nothing is owed.
            Ok(None) => {
                out.push(Act::Drop { delivery, slice, key, owner, form, stamp });
                return;
            }
            Err(_) => None,
        };
        match (siblings, ring.address(owner, key.token())) {
            (Some(siblings), Some(to)) => {
                d.sent = now;
                d.sent_bytes = siblings.head.value_bytes() as u64;
                let message = Message::Replicate { key, siblings, purpose: Purpose::Replay, epoch: 0 };
                out.push(Act::Send { to, delivery, deadline: d.give_up, message });
            }
            _ => {
                self.skip(delivery);
                self.pump(now, owner, ring, out);
            }
        }
    }
    /// This one is tried again with the next walk.
    fn skip(&mut self, delivery: u64) {
        let owner = self.deliveries.remove(&delivery).map(|d| d.owner);
        if let Some(replay) = owner.and_then(|o| self.owners.get_mut(&o)).and_then(|o| o.replay.as_mut()) {
            replay.in_flight -= 1;
            replay.refused += 1;
        }
    }

    /// The owner has answered.
    pub fn replicated(
        &mut self,
        now: Instant,
        delivery: u64,
        result: Result<(), Refusal>,
        ring: &Ring,
        out: &mut Vec<Act>,
    ) {
        let Some(d) = self.deliveries.get(&delivery) else { return };
        let owner = d.owner;
        if let Some(owed) = self.owners.get_mut(&owner) {
            owed.pace(now.since(d.sent), result.is_ok());
        }
        match result {
            Ok(()) => {
                let (slice, key, form, stamp) = (d.slice, d.key.clone(), d.form, d.stamp);
                self.delivered_bytes += d.sent_bytes;
                out.push(Act::Drop { delivery, slice, key, owner, form, stamp });
            }
            // Something is wrong with this key there; the others can be delivered.
            Err(Refusal::Damaged) => {
                self.skip(delivery);
                self.pump(now, owner, ring, out);
            }
            Err(_) => {
                self.end(now, delivery, false);
                self.pump(now, owner, ring, out);
            }
        }
    }

    /// The hint is gone, or a newer one has taken its place.
    pub fn dropped(&mut self, now: Instant, delivery: u64, ok: bool, ring: &Ring, out: &mut Vec<Act>) {
        let Some(owner) = self.deliveries.get(&delivery).map(|d| d.owner) else { return };
        self.end(now, delivery, ok);
        self.pump(now, owner, ring, out);
    }

    /// The owner cannot be reached: what is under way to it is tried again later.
    pub fn unreachable(&mut self, now: Instant, owner: NodeId) {
        let mut lost: Vec<u64> = self.deliveries.iter().filter(|(_, d)| d.owner == owner).map(|(id, _)| *id).collect();
        lost.sort_unstable();
        lost.into_iter().for_each(|id| self.end(now, id, false));
    }

    fn end(&mut self, now: Instant, delivery: u64, ok: bool) {
        let Some(d) = self.deliveries.remove(&delivery) else { return };
        let Some(owed) = self.owners.get_mut(&d.owner) else { return };
        if ok {
            self.delivered += 1;
            owed.count = owed.count.saturating_sub(1);
            owed.bytes = if owed.count == 0 { 0 } else { owed.bytes.saturating_sub(d.bytes) };
            // An upper bound that ran down too early would end the replay: one more walk makes sure.
            owed.count = owed.count.max(u64::from(owed.replay.is_some()));
        }
        if let Some(replay) = &mut owed.replay {
            replay.in_flight -= 1;
            replay.failed |= !ok;
        }
        if !ok {
            owed.not_before = now + HINT_INTERVAL;
            owed.window = HINT_WINDOW_START.min(owed.window);
        }
    }
}

fn deliver(now: Instant, id: u64, slice: SliceId, engine_key: Bytes, head: &[u8]) -> Option<(Delivery, Act)> {
    let (owner, form, key) = parse_hint_key(&engine_key)?;
    let stamp = HintHead::decode(head).ok()?.stamp;
    let bytes = hint_bytes(&engine_key, head);
    let source = if form == HintForm::Parked { engine_key } else { data_key(&key) };
    let give_up = now + BACKGROUND_TIMEOUT;
    let delivery = Delivery { owner, slice, key, stamp, bytes, sent_bytes: 0, form, sent: now, give_up };
    Some((delivery, Act::Load { io: id, slice, key: source, depth: Depth::Full }))
}

fn decode(stored: Stored, form: HintForm) -> Option<Siblings> {
    let head = if form == HintForm::Parked {
        match HintHead::decode(&stored.head).ok()?.kind {
            HintKind::Parked(head) => head,
            HintKind::Marker => return None,
        }
    } else {
        Head::decode(&stored.head).ok()?
    };
    Some(Siblings { head, values: stored.values })
}

/// The least engine key greater than this one.
fn after(key: &Bytes) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.extend_from_slice(&[0]);
    next.freeze()
}
