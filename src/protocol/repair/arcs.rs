//! The arcs that this shard is a home of: whom each is compared with, and what it comes to.

use super::{
    Act, Repair, View,
    answers::Asked,
    sums::{Leaves, Row, Summing},
};
use crate::{
    limits::{LEAVES_KEPT, TOUCHED_MAX},
    protocol::{
        message::{Message, Part, Refusal, Sum, Summed},
        ring::Nodes,
    },
    types::{Instant, NodeId, SliceId, Span, Token},
};
use std::{collections::BTreeMap, time::Duration};
use xxhash_rust::xxh3::Xxh3;

/// An arc, and one other home of it.
pub(super) struct Pair {
    pub peer: NodeId,
    /// Keys with at least so many replicas have both as homes.
    pub replicas: u8,
    /// Known for as long.
    pub since: Instant,
    /// When the last session began after which both had what either had.
    pub agreed: Option<Instant>,
    pub not_before: Instant,
    /// The session that is driven from here.
    pub session: Option<u64>,
    /// The last one that the other has begun in this life, by its number, and when.
    pub heard: Option<(u64, Instant)>,
    /// When somebody has asked for it, if the two have not agreed since.
    pub wished: Option<Instant>,
}
impl Pair {
    pub fn age(&self, now: Instant) -> Duration {
        now.since(self.agreed.unwrap_or(self.since))
    }
}

/// Somebody who wants to know what an arc comes to.
pub(super) enum Waiter {
    Session(u64),
    Question { asked: Asked, session: u64, part: Part, shift: u8, own: Option<Sum> },
}

/// A fold under way.
struct Folding {
    io: u64,
    /// The blocks that are folded again; `None`: all of the arc.
    blocks: Option<Vec<u64>>,
    shift: u8,
    tables: u64,
}

/// See the module.
pub(super) struct HomeArc {
    pub span: Span,
    pub slice: SliceId,
    /// A hash of the arc and its homes: two nodes compare only what both take for the same.
    pub homes: u64,
    pub pairs: Vec<Pair>,
    leaves: Option<Leaves>,
    /// When the oldest of the leaves was folded, and by which knowledge of tables.
    taken: Instant,
    tables: u64,
    used: Instant,
    /// What was written since the leaves were folded, or the fold under way has begun; and whether that is too much.
    touched: Vec<Token>,
    touched_all: bool,
    folding: Option<Folding>,
    /// Those that the fold under way serves, and those that came after its beginning.
    served: Vec<Waiter>,
    waiting: Vec<Waiter>,
}

impl HomeArc {
    fn new(span: Span, slice: SliceId, homes: &Nodes) -> HomeArc {
        let mut hash = Xxh3::new();
        [span.first.0, span.last.0].iter().for_each(|token| hash.update(&token.to_le_bytes()));
        homes.iter().for_each(|node| hash.update(&node.0.to_le_bytes()));
        HomeArc {
            span,
            slice,
            homes: hash.digest(),
            pairs: Vec::new(),
            leaves: None,
            taken: Instant::ZERO,
            tables: 0,
            used: Instant::ZERO,
            touched: Vec::new(),
            touched_all: false,
            folding: None,
            served: Vec::new(),
            waiting: Vec::new(),
        }
    }
    pub fn pair(&mut self, peer: NodeId) -> Option<&mut Pair> {
        self.pairs.iter_mut().find(|pair| pair.peer == peer)
    }
    fn touch(&mut self, token: Token) {
        if self.leaves.is_none() && self.folding.is_none() {
            return;
        }
        if self.touched.len() < TOUCHED_MAX {
            self.touched.push(token);
        } else {
            self.touched_all = true;
        }
    }
    /// The leaves, if they say what is stored now.
    fn fresh(&self, now: Instant, tables: u64, pass: Duration) -> Option<&Leaves> {
        let touched = self.touched_all || !self.touched.is_empty() || self.folding.is_some();
        self.leaves.as_ref().filter(|_| !touched && self.tables == tables && now.since(self.taken) < pass)
    }
    /// How what has changed is learned with the least work.
    fn next_fold(&self, io: u64, now: Instant, tables: u64, pass: Duration) -> Folding {
        let usable = !self.touched_all && self.tables == tables && now.since(self.taken) < pass;
        if let Some(leaves) = self.leaves.as_ref().filter(|_| usable) {
            let block = |token: &Token| Span { first: *token, last: *token }.blocks(leaves.shift()).0;
            let mut blocks: Vec<u64> = self.touched.iter().map(block).collect();
            blocks.sort_unstable();
            blocks.dedup();
            if blocks.len() as u64 * 4 <= self.span.block_count(leaves.shift()) {
                return Folding { io, blocks: Some(blocks), shift: leaves.shift(), tables };
            }
        }
        Folding { io, blocks: None, shift: Leaves::finest(self.span), tables }
    }
}

impl Repair {
    /// Draws the arcs anew if the ring has changed, or how many replicas keys have.
    pub(super) fn draw(&mut self, now: Instant, view: View<'_>, out: &mut Vec<Act>) {
        let of = (view.ring.digest(), view.classes.replicas_max());
        if self.drawn == Some(of) {
            return;
        }
        self.drawn = Some(of);
        let replicas = usize::from(of.1);
        let mut before = std::mem::take(&mut self.arcs);
        for span in view.ring.home_spans(self.me.node, replicas) {
            let slice = view.placement.slice_of(span.last);
            if view.placement.shard_of(slice) != self.me.shard {
                continue;
            }
            let homes = view.ring.walk(span.last, replicas);
            let Some(place) = homes.iter().position(|node| *node == self.me.node) else { continue };
            let new = HomeArc::new(span, slice, &homes);
            // Of a part of an arc is known what was known of the whole.
            let known =
                before.range(span.last..).next().filter(|(_, arc)| arc.span.covers(&span)).map(|(last, _)| *last);
            let pairs = homes.iter().enumerate().filter(|(at, _)| *at != place).map(|(at, peer)| {
                let replicas = at.max(place) as u8 + 1;
                let old = known.and_then(|last| before.get(&last)?.pairs.iter().find(|pair| pair.peer == *peer));
                let old = old.filter(|pair| pair.replicas <= replicas);
                let (since, agreed) = old.map_or((now, None), |pair| (pair.since, pair.agreed));
                Pair { peer: *peer, replicas, since, agreed, not_before: now, session: None, heard: None, wished: None }
            });
            let pairs: Vec<Pair> = pairs.collect();
            for pair in &pairs {
                self.peers.entry(pair.peer).or_default();
            }
            let same = known.and_then(|last| before.remove(&last).map(|arc| (last, arc)));
            let arc = match same {
                Some((_, arc)) if arc.span == span && arc.homes == new.homes => arc,
                Some((_, arc)) if arc.span == span => HomeArc { homes: new.homes, pairs, ..arc },
                Some((last, arc)) => {
                    before.insert(last, arc);
                    HomeArc { pairs, ..new }
                }
                None => HomeArc { pairs, ..new },
            };
            self.arcs.insert(span.last, arc);
        }
        // Who waits for an arc that is none any more waits no longer; a session of another arc or home has no place.
        for waiter in before.into_values().flat_map(|arc| arc.served.into_iter().chain(arc.waiting)) {
            refuse(waiter, Refusal::NotYet, out);
        }
        let lost = |(id, session): (&u64, &super::Session)| {
            let pair = self.arcs.get(&session.arc).and_then(|arc| arc.pairs.iter().find(|p| p.peer == session.peer));
            pair.is_none_or(|pair| pair.session != Some(*id)).then_some(*id)
        };
        let lost: Vec<u64> = self.sessions.iter().filter_map(lost).collect();
        lost.into_iter().for_each(|id| self.end(now, id, false, out));
    }

    /// Something of this token has been written.
    pub fn touched(&mut self, token: Token) {
        if let Some((_, arc)) = self.arcs.range_mut(token..).next().filter(|(_, arc)| arc.span.contains(token)) {
            arc.touch(token);
        }
    }
    /// Records have gone that nobody has named: nothing that was folded counts any more.
    pub fn forget_sums(&mut self) {
        for arc in self.arcs.values_mut() {
            (arc.leaves, arc.touched_all) = (None, arc.folding.is_some());
        }
    }

    /// Tells the waiter what the arc comes to, as of now or later.
    pub(super) fn want_leaves(
        &mut self,
        now: Instant,
        last: Token,
        waiter: Waiter,
        view: View<'_>,
        out: &mut Vec<Act>,
    ) {
        let pass = self.pass;
        let Some(tables) = view.tables else { return self.refuse(now, waiter, Refusal::NotYet, out) };
        let Some(arc) = self.arcs.get_mut(&last) else { return self.refuse(now, waiter, Refusal::NotYet, out) };
        arc.used = now;
        if let Some(leaves) = arc.fresh(now, tables, pass).cloned() {
            return self.serve(now, waiter, &leaves, view, out);
        }
        arc.waiting.push(waiter);
        if arc.folding.is_none() {
            self.fold(now, last, tables, view, out);
        }
    }
    fn fold(&mut self, now: Instant, last: Token, tables: u64, view: View<'_>, out: &mut Vec<Act>) {
        let io = self.number();
        let Some(arc) = self.arcs.get_mut(&last) else { return };
        let folding = arc.next_fold(io, now, tables, self.pass);
        (arc.touched_all, arc.served) = (false, std::mem::take(&mut arc.waiting));
        arc.touched.clear();
        let spans = match &folding.blocks {
            None => vec![arc.span],
            Some(blocks) => blocks.iter().map(|block| arc.span.block(*block, folding.shift)).collect(),
        };
        let shift = folding.shift;
        arc.folding = Some(folding);
        self.folds.insert(io, last);
        out.push(Act::Fold { io, slice: arc.slice, spans, summing: Summing::new(shift, view.classes.clone()) });
    }
    /// A fold has come to its end.
    pub fn folded(
        &mut self,
        now: Instant,
        io: u64,
        result: Result<Vec<Row>, Refusal>,
        view: View<'_>,
        out: &mut Vec<Act>,
    ) {
        let Some(last) = self.folds.remove(&io) else { return };
        let Some(arc) = self.arcs.get_mut(&last) else { return };
        // The arc may be another one by now that ends at the same token.
        let Some(folding) = arc.folding.take_if(|folding| folding.io == io) else { return };
        let served = std::mem::take(&mut arc.served);
        let leaves = match result {
            // Which keys have how many replicas may be another matter by now.
            Ok(_) if view.tables != Some(folding.tables) => Err(Refusal::NotYet),
            Ok(rows) => Ok(rows),
            Err(refusal) => Err(refusal),
        };
        let leaves = leaves.map(|rows| {
            let found: u64 = rows.iter().map(|row| u64::from(row.sum.count)).sum();
            self.folds_left -= found as i64;
            match (&mut arc.leaves, &folding.blocks) {
                (Some(leaves), Some(blocks)) => leaves.replace(blocks, rows),
                // What they were part of has been forgotten meanwhile.
                (None, Some(_)) => {}
                (leaves, None) => {
                    *leaves = Some(Leaves::new(arc.span, folding.shift, rows));
                    (arc.taken, arc.tables) = (now, folding.tables);
                }
            }
            arc.leaves.clone()
        });
        match leaves {
            Ok(Some(leaves)) => {
                self.keep_few();
                served.into_iter().for_each(|waiter| self.serve(now, waiter, &leaves, view, out));
            }
            Ok(None) => served.into_iter().for_each(|waiter| self.refuse(now, waiter, Refusal::NotYet, out)),
            Err(refusal) => {
                // What was touched before this fold is not in the leaves, and not noted any more.
                arc.leaves = None;
                served.into_iter().for_each(|waiter| self.refuse(now, waiter, refusal, out));
            }
        }
        // Those who came meanwhile want to know what was written until then.
        let waiting =
            self.arcs.get_mut(&last).filter(|arc| arc.folding.is_none()).map(|arc| std::mem::take(&mut arc.waiting));
        for waiter in waiting.into_iter().flatten() {
            self.want_leaves(now, last, waiter, view, out);
        }
    }
    /// Leaves that nobody has asked for lately make place.
    fn keep_few(&mut self) {
        let rows = |arcs: &BTreeMap<Token, HomeArc>| -> usize {
            arcs.values().filter_map(|arc| arc.leaves.as_ref()).map(Leaves::rows).sum()
        };
        while rows(&self.arcs) > LEAVES_KEPT {
            let held = self.arcs.values_mut().filter(|arc| arc.leaves.is_some() && arc.folding.is_none());
            let Some(oldest) = held.min_by_key(|arc| arc.used) else { return };
            oldest.leaves = None;
        }
    }

    fn serve(&mut self, now: Instant, waiter: Waiter, leaves: &Leaves, view: View<'_>, out: &mut Vec<Act>) {
        match waiter {
            Waiter::Session(id) => self.compare(now, id, leaves.clone(), view, out),
            Waiter::Question { asked: (to, exchange, deadline), session, part, shift, own } => {
                let shift = shift.max(leaves.shift());
                let sums = leaves.sums(part.span, shift, part.replicas);
                if own.is_some() && own == sums.first().copied() {
                    self.agreed(to, session, part, view, out);
                }
                let message = Message::Summed(Ok(Summed { shift, sums }));
                out.push(Act::Answer { to, exchange, deadline, message });
            }
        }
    }
    fn refuse(&mut self, now: Instant, waiter: Waiter, refusal: Refusal, out: &mut Vec<Act>) {
        match waiter {
            Waiter::Session(id) => self.end(now, id, false, out),
            question @ Waiter::Question { .. } => refuse(question, refusal, out),
        }
    }
    /// Whether the slice has agreed on all that it is a home of with all other homes.
    pub(super) fn has_agreed(&self, slice: SliceId) -> bool {
        let mut arcs = self.arcs.values().filter(|arc| arc.slice == slice).peekable();
        arcs.peek().is_some()
            && arcs.all(|arc| !arc.pairs.is_empty() && arc.pairs.iter().all(|pair| pair.agreed.is_some()))
    }
}

/// A session of an arc that is none any more is ended by whoever finds that out.
fn refuse(waiter: Waiter, refusal: Refusal, out: &mut Vec<Act>) {
    if let Waiter::Question { asked: (to, exchange, deadline), .. } = waiter {
        out.push(Act::Answer { to, exchange, deadline, message: Message::Summed(Err(refusal)) });
    }
}
