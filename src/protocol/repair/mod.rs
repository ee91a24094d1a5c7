//! Replicas compared, for ever: each two homes of each arc, again and again, in one pass of some time at most.
//!
//! An *arc* holds the tokens between two neighbouring ones of the ring, so all of its keys have one walk, and it lies
//! in one slice and one shard of each node. A *session* is one comparison of one arc by two of its homes. One of them
//! asks, that with the smaller id; the other answers what it is asked and remembers nothing of it.
//!
//! 1. Both have sums of their states by blocks of tokens ([`sums`]), from a fold over heads that the driver makes for
//!    them. Those of the whole arc are compared first: mostly they are equal, and that is all.
//! 2. Where they differ the asker goes down, up to [`SUMS_MAX`](crate::limits::SUMS_MAX) blocks a message, to the
//!    leaves that differ.
//! 3. Of such a leaf the other lists keys and heads. The asker reads its own after that, and sees by merging the two
//!    heads of a key which side lacks something. What it lacks it fetches and merges, as any state from another
//!    replica; what the other lacks it sends, and the other merges it. So a value is sent only after heads differ.
//! 4. When all of that is durable on both sides the two *agree*: both have what either had when the session began. One
//!    refusal, and the arc keeps its age; what was merged stays, so the next session finds less to do.
//!
//! Sums are kept by arc, with what was written since: only the leaves that were touched are folded again. They are
//! forgotten after a pass, so one that is wrong lives no longer than that, and nothing is ever stored.
//!
//! Nothing is compared while the two do not go by the same homes, tables or drops. Hints go first: while the other side
//! is owed some, sessions with it wait for a while.
//!
//! A slice that may have lost records has them again when it has agreed on all of its arcs with all other homes: its
//! doubt ends.
//!
//! Input: the `pub` calls that take an `out`. Output: [`Act`]s. What the moment is like is in a [`View`].

mod answers;
mod arcs;
mod session;
pub mod sums;
#[cfg(test)]
mod tests;

use crate::{
    limits::{
        FOLDED_PER_SECOND, FOLDED_WHEN_LATE, REPAIR_BYTES_PER_SECOND, REPAIR_DUE_PERCENT, REPAIR_HINTS_WAIT,
        REPAIR_SESSIONS, REPAIR_TIMEOUT_MAX, SWEEP_PAUSE,
    },
    protocol::{
        message::Message,
        pace::Pace,
        ring::{FixedMap, Placement, Ring},
        versions::Siblings,
    },
    types::{Address, Instant, Key, NodeId, SliceId, Span, TableWord, Token},
};
use answers::Listing;
use arcs::HomeArc;
use session::{Item, Session, Wait};
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};
use sums::{Classes, Summing};

/// What is to be done. The number of an `io`, `exchange` or `item` comes back with its answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Act {
    /// Show these spans of a slice to the visitor.
    Fold {
        io: u64,
        slice: SliceId,
        spans: Vec<Span>,
        summing: Summing,
    },
    /// Keys and heads of a span after a key, at most so many.
    Scan {
        io: u64,
        slice: SliceId,
        span: Span,
        after: Option<Key>,
        limit: usize,
    },
    /// The own record, whole.
    Load {
        io: u64,
        key: Key,
    },
    /// A state from the other side, to be merged and made durable, unless the key's table is another since `word`.
    Merge {
        item: u64,
        key: Key,
        siblings: Siblings,
        word: TableWord,
    },
    Send {
        to: Address,
        exchange: u64,
        deadline: Instant,
        message: Message,
    },
    Answer {
        to: Address,
        exchange: u64,
        deadline: Instant,
        message: Message,
    },
    /// A message for the core of that node that serves the token; nobody waits for an answer.
    Tell {
        peer: NodeId,
        token: Token,
        deadline: Instant,
        message: Message,
    },
    /// The slice has all again that others had of it.
    EndDoubt {
        slice: SliceId,
    },
}

/// What the machine needs to know of the moment.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub ring: &'a Ring,
    pub placement: &'a Placement,
    pub classes: &'a Rc<Classes>,
    /// What this shard knows of tables and which drops it has carried out, hashed; `None`: it is in doubt about them,
    /// has a drop in hand or does not serve yet, and nothing can be compared.
    pub tables: Option<u64>,
    /// Whether a core can be asked.
    pub usable: &'a dyn Fn(Address) -> bool,
    /// What this shard goes by of a key's table.
    pub word: &'a dyn Fn(&Key) -> TableWord,
    /// Whether hints are kept here for a node.
    pub owed: &'a dyn Fn(NodeId) -> bool,
    /// Whether it is known to lack something of a slice.
    pub marked: &'a dyn Fn(NodeId, SliceId) -> bool,
}

/// Counters and gauges.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RepairStats {
    /// Arcs, each with one other home.
    pub arcs: u64,
    /// The time for which the two have not agreed on the oldest of them, at most as long as this node runs.
    pub oldest: Duration,
    /// Arcs that are older than a pass.
    pub late: u64,
    /// Arcs that somebody has asked for, until the two agree.
    pub waiting: u64,
    pub sessions: u64,
    /// Leaves whose keys were listed.
    pub leaves_differed: u64,
    /// Values that were sent, or fetched, since one side lacked them.
    pub values_sent: u64,
    /// Bytes of sums, lists and values.
    pub bytes: u64,
    /// Keys of which two values have one dot: they stay as they are.
    pub unmendable: u64,
    /// Slices that may have lost records.
    pub slices_doubted: u64,
}

/// What is known of another node.
#[derive(Default)]
struct Peer {
    pace: Pace,
    in_flight: usize,
    not_before: Instant,
    /// Since when sessions wait for its hints.
    owed_since: Option<Instant>,
}

/// See the module.
pub struct Repair {
    me: Address,
    /// Zero: nothing is compared.
    pass: Duration,
    /// Values a second: this shard's part of what the node may send.
    bytes_per_second: u64,
    /// The arcs of this shard, by their last tokens.
    arcs: BTreeMap<Token, HomeArc>,
    /// The ring that they were drawn of, and for how many replicas.
    drawn: Option<(u64, u8)>,
    sessions: BTreeMap<u64, Session>,
    waits: BTreeMap<u64, Wait>,
    items: BTreeMap<u64, Item>,
    listings: BTreeMap<u64, Listing>,
    /// Arcs that are being folded.
    folds: FixedMap<u64, Token>,
    peers: BTreeMap<NodeId, Peer>,
    doubted: BTreeSet<SliceId>,
    next: u64,
    next_look: Instant,
    /// Records that may be walked and bytes that may be sent by now, and when they were reckoned.
    folds_left: i64,
    bytes_left: i64,
    reckoned: Instant,
    stats: RepairStats,
}

impl Repair {
    /// `first`: where numbers start, different in each life.
    pub fn new(me: Address, pass: Duration, shards: u16, first: u64, now: Instant) -> Repair {
        Repair {
            me,
            pass,
            bytes_per_second: REPAIR_BYTES_PER_SECOND / u64::from(shards.max(1)),
            arcs: BTreeMap::new(),
            drawn: None,
            sessions: BTreeMap::new(),
            waits: BTreeMap::new(),
            items: BTreeMap::new(),
            listings: BTreeMap::new(),
            folds: FixedMap::default(),
            peers: BTreeMap::new(),
            doubted: BTreeSet::new(),
            next: first,
            next_look: now,
            folds_left: 0,
            bytes_left: 0,
            reckoned: now,
            stats: RepairStats::default(),
        }
    }
    /// Slices that may have lost records.
    pub fn doubting(mut self, slices: impl IntoIterator<Item = SliceId>) -> Repair {
        self.doubted.extend(slices);
        self
    }
    pub fn is_off(&self) -> bool {
        self.pass.is_zero()
    }
    pub fn pass(&self) -> Duration {
        self.pass
    }
    pub fn next_deadline(&self) -> Option<Instant> {
        (!self.is_off()).then_some(self.next_look)
    }
    pub fn stats(&self, now: Instant) -> RepairStats {
        let ages = || self.arcs.values().flat_map(|arc| &arc.pairs).map(|pair| pair.age(now));
        RepairStats {
            arcs: ages().count() as u64,
            oldest: ages().max().unwrap_or_default(),
            late: ages().filter(|age| *age > self.pass).count() as u64,
            waiting: self.arcs.values().flat_map(|arc| &arc.pairs).filter(|pair| pair.wished.is_some()).count() as u64,
            slices_doubted: self.doubted.len() as u64,
            ..self.stats
        }
    }
    /// The node is about to stop: nothing is begun any more, and nobody is answered.
    pub fn stop(&mut self) {
        self.pass = Duration::ZERO;
        self.sessions.clear();
        self.waits.clear();
        self.items.clear();
        self.listings.clear();
    }

    /// Everything of a key, or all there is, is compared soon, however lately that was done.
    pub fn wish(&mut self, now: Instant, key: Option<&Key>) {
        let of_key = |arc: &HomeArc| key.is_none_or(|key| arc.span.contains(key.token()));
        // Mostly the other has been asked for the same: then it is the one with the smaller id that asks.
        let (me, later) = (self.me.node, now + self.look_every());
        for pair in self.arcs.values_mut().filter(|arc| of_key(arc)).flat_map(|arc| &mut arc.pairs) {
            (pair.wished, pair.not_before) = (Some(now), if me < pair.peer { now } else { later });
        }
        self.next_look = now;
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
    /// How long an answer is waited for.
    fn patience(&self) -> Duration {
        (self.pass / 8).clamp(Duration::from_millis(500), REPAIR_TIMEOUT_MAX)
    }
    /// Pause after a session that came to nothing.
    fn pause(&self) -> Duration {
        (self.pass / 32).clamp(Duration::from_millis(100), Duration::from_secs(10))
    }
    fn look_every(&self) -> Duration {
        (self.pass / 64).clamp(Duration::from_millis(20), Duration::from_secs(1))
    }

    /// Looks for answers that do not come, and for arcs that are due.
    pub fn tick(&mut self, now: Instant, view: View<'_>, out: &mut Vec<Act>) {
        if self.is_off() || now < self.next_look {
            return;
        }
        self.next_look = now + self.look_every();
        self.draw(now, view, out);
        self.expire(now, view, out);
        self.reckon(now);
        let running: Vec<u64> = self.sessions.keys().copied().collect();
        running.into_iter().for_each(|id| self.pump(now, id, view, out));
        self.begin_due(now, view, out);
    }
    /// What may be walked and sent by now; what was not used is soon forgotten.
    fn reckon(&mut self, now: Instant) {
        let late = self.arcs.values().flat_map(|arc| &arc.pairs).any(|pair| pair.age(now) > self.pass);
        let rate = FOLDED_PER_SECOND * if late { FOLDED_WHEN_LATE } else { 1 };
        let nanos = now.since(std::mem::replace(&mut self.reckoned, now)).as_nanos() as u64;
        let earned = |rate: u64| (u128::from(rate) * u128::from(nanos) / 1_000_000_000) as i64;
        self.folds_left = (self.folds_left + earned(rate)).min(rate as i64);
        self.bytes_left = (self.bytes_left + earned(self.bytes_per_second)).min(self.bytes_per_second as i64 / 4);
    }

    /// Begins sessions, those of marked slices and those that somebody wishes first, then the oldest.
    fn begin_due(&mut self, now: Instant, view: View<'_>, out: &mut Vec<Act>) {
        let patience = REPAIR_HINTS_WAIT.min(self.pass / 6);
        let mut resting = BTreeSet::new();
        for (node, peer) in &mut self.peers {
            let since = if (view.owed)(*node) { *peer.owed_since.get_or_insert(now) } else { Instant::ZERO };
            if since == Instant::ZERO {
                peer.owed_since = None;
            }
            if peer.not_before > now || (since > Instant::ZERO && now.since(since) < patience) {
                resting.insert(*node);
            }
        }
        while self.sessions.len() < REPAIR_SESSIONS && self.folds_left >= 0 && view.tables.is_some() {
            let Some((arc, peer)) = self.most_due(now, &resting, view) else { return };
            self.begin(now, arc, peer, view, out);
        }
    }
    fn most_due(&self, now: Instant, resting: &BTreeSet<NodeId>, view: View<'_>) -> Option<(Token, NodeId)> {
        let mut best: Option<((bool, Duration), (Token, NodeId))> = None;
        let patience = self.patience();
        for (last, arc) in &self.arcs {
            for pair in arc.pairs.iter().filter(|pair| pair.session.is_none() && pair.not_before <= now) {
                let age = pair.age(now);
                let marked_pause = SWEEP_PAUSE.min(self.pass / 16);
                let urgent = pair.wished.is_some() || ((view.marked)(pair.peer, arc.slice) && age > marked_pause);
                // Two sessions at once would send the same values twice. One that began before the wish does not do.
                let of_wish = |at: Instant| pair.wished.is_none_or(|since| at >= since);
                let asked = pair.heard.is_some_and(|(_, at)| now.since(at) < patience && of_wish(at));
                let asks = self.me.node < pair.peer || (urgent && !asked) || age > self.pass * 2;
                let due = urgent || pair.agreed.is_none() || age > self.pass * REPAIR_DUE_PERCENT / 100;
                if !asks || !due || best.is_some_and(|(known, _)| known >= (urgent, age)) {
                    continue;
                }
                if !resting.contains(&pair.peer) && view.ring.address(pair.peer, *last).is_some_and(view.usable) {
                    best = Some(((urgent, age), (*last, pair.peer)));
                }
            }
        }
        best.map(|(_, pair)| pair)
    }
}
