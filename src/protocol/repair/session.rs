//! A session from the side that asks: down to the leaves that differ, and of each the keys that one side lacks.

use super::{Act, Repair, View, arcs::Waiter, sums::Leaves};
use crate::{
    limits::{LEAF_KEYS, REPAIR_REFUSED_MAX, REPAIR_SCAN, SUMS_MAX},
    protocol::{
        message::{Depth, Fetched, Listed, Message, Part, Purpose, Refusal, Sum, Summed},
        versions::{Head, Siblings},
    },
    types::{Address, Conflict, Instant, Key, NodeId, SliceId, Span, TableWord, Token},
};
use std::collections::{BTreeMap, VecDeque};

/// See the module.
pub(super) struct Session {
    /// The arc, by its last token.
    pub arc: Token,
    pub peer: NodeId,
    slice: SliceId,
    /// The whole arc.
    part: Part,
    began: Instant,
    /// What the own side came to at the beginning.
    leaves: Option<Leaves>,
    /// Parts that differ, the first last; of a leaf the keys are listed.
    todo: Vec<(Span, bool)>,
    page: Option<Page>,
    /// Keys that were refused, and how many of them one after another.
    refused: usize,
    in_a_row: usize,
    /// Something was found to differ.
    differs: bool,
}

/// Some keys of a leaf.
struct Page {
    span: Span,
    /// They come after this one.
    after: Option<Key>,
    theirs: Option<Listed>,
    needs: VecDeque<Need>,
    in_flight: usize,
    /// Both sides have been looked at up to this key, and there is more after it.
    next: Option<Key>,
}

/// A key of which one side lacks something.
struct Need {
    key: Key,
    pull: bool,
    push: bool,
    bytes: u64,
}

/// A key in hand.
pub(super) struct Item {
    session: u64,
    to: Address,
    key: Key,
    push: bool,
    /// The word of its table by which it was fetched.
    word: TableWord,
    stage: Stage,
    sent: Instant,
    deadline: Instant,
}
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Fetching,
    Merging,
    Loading,
    Sending,
}

/// What a session waits for.
pub(super) struct Wait {
    session: u64,
    deadline: Instant,
    what: What,
}
enum What {
    Sums {
        span: Span,
        shift: u8,
    },
    Keys,
    /// The own keys.
    Scan,
}

impl Repair {
    pub(super) fn begin(&mut self, now: Instant, arc: Token, peer: NodeId, view: View<'_>, out: &mut Vec<Act>) {
        let id = self.number();
        let (Some(tables), Some(home)) = (view.tables, self.arcs.get_mut(&arc)) else { return };
        let (span, slice, homes) = (home.span, home.slice, home.homes);
        let Some(pair) = home.pair(peer) else { return };
        pair.session = Some(id);
        let part = Part { span, replicas: pair.replicas, homes, tables };
        let (leaves, todo, page, differs) = (None, Vec::new(), None, false);
        let (began, refused, in_a_row) = (now, 0, 0);
        let session = Session { arc, peer, slice, part, began, leaves, todo, page, refused, in_a_row, differs };
        self.sessions.insert(id, session);
        self.stats.sessions += 1;
        self.want_leaves(now, arc, Waiter::Session(id), view, out);
    }
    /// The own side is known: what is the whole arc with the other?
    pub(super) fn compare(&mut self, now: Instant, id: u64, leaves: Leaves, view: View<'_>, out: &mut Vec<Act>) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.leaves = Some(leaves);
        let span = session.part.span;
        self.ask_sums(now, id, span, u64::BITS as u8, view, out);
    }
    fn ask_sums(&mut self, now: Instant, id: u64, span: Span, shift: u8, view: View<'_>, out: &mut Vec<Act>) {
        let Some(session) = self.sessions.get(&id) else { return };
        let part = Part { span, ..session.part };
        let whole = session.leaves.as_ref().filter(|_| shift == u64::BITS as u8);
        let own = whole.and_then(|leaves| leaves.sums(span, shift, part.replicas).first().copied());
        let message = Message::Sums { session: id, part, shift, own };
        self.ask(now, id, (message, What::Sums { span, shift }), view, out);
    }
    fn ask(&mut self, now: Instant, id: u64, (message, what): (Message, What), view: View<'_>, out: &mut Vec<Act>) {
        let (exchange, deadline) = (self.number(), now + self.patience());
        let Some(session) = self.sessions.get(&id) else { return };
        match view.ring.address(session.peer, session.arc).filter(|to| (view.usable)(*to)) {
            Some(to) => {
                self.stats.bytes += QUESTION_BYTES;
                self.waits.insert(exchange, Wait { session: id, deadline, what });
                out.push(Act::Send { to, exchange, deadline, message });
            }
            None => self.end(now, id, false, out),
        }
    }

    /// The other side has said what a part comes to.
    pub fn summed(
        &mut self,
        now: Instant,
        exchange: u64,
        result: Result<Summed, Refusal>,
        view: View<'_>,
        out: &mut Vec<Act>,
    ) {
        let Some(Wait { session: id, what: What::Sums { span, shift: asked }, .. }) = self.take_wait(exchange) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(leaves) = &session.leaves else { return self.end(now, id, false, out) };
        let Some(Summed { shift, sums }) = result.ok() else { return self.end(now, id, false, out) };
        if shift < asked || sums.len() as u64 != span.block_count(shift) {
            return self.end(now, id, false, out);
        }
        self.stats.bytes += (sums.len() * SUM_BYTES) as u64;
        let own = leaves.sums(span, shift, session.part.replicas);
        let (first, _) = span.blocks(shift);
        let before = session.todo.len();
        for (block, (own, theirs)) in (first..).zip(own.iter().zip(&sums)).filter(|(_, (own, theirs))| own != theirs) {
            let part = span.block(block, shift);
            let few = |sum: &Sum| u64::from(sum.count) <= LEAF_KEYS;
            let small = own.count == 0 || theirs.count == 0 || (few(own) && few(theirs));
            // The other knows nothing of smaller ones, or there are none.
            let whole = part == span && asked < u64::BITS as u8;
            session.todo.push((part, small || whole || part.block_count(leaves.shift()) == 1));
        }
        session.todo[before..].reverse();
        session.differs |= !session.todo.is_empty();
        self.go_on(now, id, view, out);
    }
    fn take_wait(&mut self, number: u64) -> Option<Wait> {
        self.waits.remove(&number)
    }

    /// The next thing that a session has to do.
    fn go_on(&mut self, now: Instant, id: u64, view: View<'_>, out: &mut Vec<Act>) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        match session.todo.pop() {
            None => {
                let whole = session.refused == 0;
                self.end(now, id, whole, out);
                self.begin_due(now, view, out);
            }
            Some((span, true)) => {
                self.stats.leaves_differed += 1;
                self.turn_page(now, id, span, None, view, out);
            }
            Some((span, false)) => {
                let Some(leaves) = &session.leaves else { return };
                let shift = span.shift_for(SUMS_MAX as u64).max(leaves.shift());
                self.ask_sums(now, id, span, shift, view, out);
            }
        }
    }
    fn turn_page(&mut self, now: Instant, id: u64, span: Span, after: Option<Key>, view: View<'_>, out: &mut Vec<Act>) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let part = Part { span, ..session.part };
        let message = Message::Keys { part, after: after.clone() };
        session.page = Some(Page { span, after, theirs: None, needs: VecDeque::new(), in_flight: 0, next: None });
        self.ask(now, id, (message, What::Keys), view, out);
    }

    /// The other side has listed its keys: the own ones are read after that, so what is being written meanwhile is not
    /// asked for.
    pub fn keyed(&mut self, now: Instant, exchange: u64, result: Result<Listed, Refusal>, out: &mut Vec<Act>) {
        let Some(Wait { session: id, what: What::Keys, .. }) = self.take_wait(exchange) else { return };
        let io = self.number();
        let Some(Session { page: Some(page), slice, .. }) = self.sessions.get_mut(&id) else { return };
        let Some(listed) = result.ok().filter(|listed| is_in_order(listed, page)) else {
            return self.end(now, id, false, out);
        };
        self.stats.bytes += listed.bytes() as u64;
        page.theirs = Some(listed);
        let (slice, span, after) = (*slice, page.span, page.after.clone());
        self.waits.insert(io, Wait { session: id, deadline: Instant::NEVER, what: What::Scan });
        out.push(Act::Scan { io, slice, span, after, limit: REPAIR_SCAN });
    }
    /// The own keys and heads are read; with `more` there are others after them.
    pub(super) fn scanned_own(
        &mut self,
        now: Instant,
        io: u64,
        result: Result<(Vec<(Key, Head)>, bool), Refusal>,
        view: View<'_>,
        out: &mut Vec<Act>,
    ) {
        let Some(Wait { session: id, what: What::Scan, .. }) = self.take_wait(io) else { return };
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let (Ok((mine, more)), Some(page)) = (result, &mut session.page) else {
            // Something of the leaf cannot be read here.
            return self.end(now, id, false, out);
        };
        let Some(theirs) = page.theirs.take() else { return };
        let last = |heads: &[(Key, Head)]| heads.last().map(|(key, _)| (key.token(), key.clone()));
        let ends = [(theirs.more, last(&theirs.heads)), (more, last(&mine))];
        let end = ends.into_iter().filter(|(more, _)| *more).filter_map(|(_, last)| last).min();
        let mut both: BTreeMap<(Token, Key), [Head; 2]> = BTreeMap::new();
        for (side, heads) in [mine, theirs.heads].into_iter().enumerate() {
            for (key, head) in heads {
                let at = (key.token(), key);
                if end.as_ref().is_none_or(|end| at <= *end) {
                    both.entry(at).or_default()[side] = head;
                }
            }
        }
        let replicas = session.part.replicas;
        for ((_, key), [mine, theirs]) in both {
            let class = view.classes.of(key.as_bytes());
            if class.replicas < replicas {
                continue;
            }
            match what_lacks(&mine, &theirs, class.conflict) {
                Lack::Nothing => {}
                Lack::Unmendable => self.stats.unmendable += 1,
                Lack::Some { pull, push } => {
                    let of = |wanted: bool, head: &Head| if wanted { head.value_bytes() as u64 } else { 0 };
                    let bytes = of(pull, &theirs) + of(push, &mine);
                    page.needs.push_back(Need { key, pull, push, bytes });
                }
            }
        }
        page.next = end.map(|(_, key)| key);
        self.pump(now, id, view, out);
    }

    /// Takes keys in hand, as many as the pace allows; at the end of a page turns it.
    pub(super) fn pump(&mut self, now: Instant, id: u64, view: View<'_>, out: &mut Vec<Act>) {
        loop {
            let Some(session) = self.sessions.get_mut(&id) else { return };
            let Some(page) = &mut session.page else { return };
            let peer = self.peers.entry(session.peer).or_default();
            if page.needs.is_empty() || peer.in_flight >= peer.pace.window || self.bytes_left < 0 {
                break;
            }
            let Some(need) = page.needs.pop_front() else { break };
            page.in_flight += 1;
            peer.in_flight += 1;
            self.bytes_left -= need.bytes as i64;
            self.stats.bytes += need.bytes;
            self.stats.values_sent += u64::from(need.pull) + u64::from(need.push);
            let to = view.ring.address(session.peer, session.arc).filter(|to| (view.usable)(*to));
            let Some(to) = to else {
                peer.in_flight -= 1;
                return self.end(now, id, false, out);
            };
            self.take_in_hand(now, id, to, need, view, out);
        }
        let Some(Session { page: Some(page), .. }) = self.sessions.get_mut(&id) else { return };
        if !page.needs.is_empty() && self.bytes_left < 0 {
            self.next_look = self.next_look.min(now + std::time::Duration::from_millis(10));
        }
        let listed = page.theirs.is_none() && !self.waits.values().any(|wait| wait.session == id);
        if listed && page.needs.is_empty() && page.in_flight == 0 {
            let (span, next) = (page.span, page.next.take());
            match next {
                Some(next) => self.turn_page(now, id, span, Some(next), view, out),
                None => {
                    let Some(session) = self.sessions.get_mut(&id) else { return };
                    session.page = None;
                    self.go_on(now, id, view, out);
                }
            }
        }
    }
    fn take_in_hand(
        &mut self,
        now: Instant,
        session: u64,
        to: Address,
        need: Need,
        view: View<'_>,
        out: &mut Vec<Act>,
    ) {
        let (item, deadline) = (self.number(), now + self.patience());
        let Need { key, pull, push, .. } = need;
        let word = (view.word)(&key);
        let stage = if pull { Stage::Fetching } else { Stage::Loading };
        out.push(match stage {
            Stage::Fetching => {
                let message = Message::Fetch { key: key.clone(), depth: Depth::Full, word };
                Act::Send { to, exchange: item, deadline, message }
            }
            _ => Act::Load { io: item, key: key.clone() },
        });
        self.items.insert(item, Item { session, to, key, push, word, stage, sent: now, deadline });
    }

    // ---- keys in hand ------------------------------------------------------------------------------------------

    /// Whose record is being read.
    pub fn key_of(&self, item: u64) -> Option<&Key> {
        self.items.get(&item).map(|item| &item.key)
    }
    /// The other side has sent what it holds of a key.
    pub fn fetched(
        &mut self,
        now: Instant,
        exchange: u64,
        result: Result<Fetched, Refusal>,
        view: View<'_>,
        out: &mut Vec<Act>,
    ) {
        if self.items.get(&exchange).is_some_and(|item| item.stage == Stage::Fetching) {
            self.answered(now, exchange, result.is_ok());
        }
        let Some(item) = self.items.get_mut(&exchange).filter(|item| item.stage == Stage::Fetching) else { return };
        let siblings = match result {
            Ok(Fetched::Full(siblings)) => siblings,
            // It may lack something, but what it has is right.
            Ok(Fetched::Doubted { head, values: Some(values) }) => Siblings { head, values },
            // Gone meanwhile: its table was dropped.
            Ok(Fetched::Nothing) => return self.merged(now, exchange, true, view, out),
            Ok(Fetched::Head(_) | Fetched::Doubted { values: None, .. }) | Err(_) => {
                return self.done(now, exchange, false, view, out);
            }
        };
        item.stage = Stage::Merging;
        out.push(Act::Merge { item: exchange, key: item.key.clone(), siblings, word: item.word });
    }
    /// What was fetched is durable here, or was refused.
    pub fn merged(&mut self, now: Instant, item: u64, well: bool, view: View<'_>, out: &mut Vec<Act>) {
        let Some(known) = self.items.get_mut(&item) else { return };
        if !well || !known.push {
            return self.done(now, item, well, view, out);
        }
        known.stage = Stage::Loading;
        out.push(Act::Load { io: item, key: known.key.clone() });
    }
    /// The own record has been read: the other side lacks something of it.
    pub fn loaded(
        &mut self,
        now: Instant,
        item: u64,
        result: Result<Siblings, Refusal>,
        view: View<'_>,
        out: &mut Vec<Act>,
    ) {
        let patience = self.patience();
        let Some(known) = self.items.get_mut(&item).filter(|item| item.stage == Stage::Loading) else { return };
        let siblings = match result {
            Ok(siblings) if siblings.head.is_empty() => return self.done(now, item, true, view, out),
            Ok(siblings) => siblings,
            Err(_) => return self.done(now, item, false, view, out),
        };
        (known.stage, known.sent, known.deadline) = (Stage::Sending, now, now + patience);
        let (key, purpose, word) = (known.key.clone(), Purpose::Repair, (view.word)(&known.key));
        let message = Message::Replicate { key, siblings, purpose, word, fresh: None };
        out.push(Act::Send { to: known.to, exchange: item, deadline: known.deadline, message });
    }
    /// The other side has merged what it was sent, durably, or refuses it.
    pub fn replicated(
        &mut self,
        now: Instant,
        exchange: u64,
        result: Result<(), Refusal>,
        view: View<'_>,
        out: &mut Vec<Act>,
    ) {
        if self.items.get(&exchange).is_some_and(|item| item.stage == Stage::Sending) {
            self.answered(now, exchange, result.is_ok());
            self.done(now, exchange, result.is_ok(), view, out);
        }
    }
    /// Newer word of the key's table has come in the place of an answer.
    pub fn outdated(&mut self, now: Instant, exchange: u64, view: View<'_>, out: &mut Vec<Act>) {
        self.done(now, exchange, false, view, out);
    }
    fn answered(&mut self, now: Instant, item: u64, well: bool) {
        let Some(item) = self.items.get(&item) else { return };
        if let Some(peer) = self.peers.get_mut(&item.to.node) {
            peer.pace.answered(now.since(item.sent), well);
        }
    }
    fn done(&mut self, now: Instant, item: u64, well: bool, view: View<'_>, out: &mut Vec<Act>) {
        let Some(Item { session: id, to, .. }) = self.items.remove(&item) else { return };
        if let Some(peer) = self.peers.get_mut(&to.node) {
            peer.in_flight = peer.in_flight.saturating_sub(1);
        }
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if let Some(page) = &mut session.page {
            page.in_flight -= 1;
        }
        session.refused += usize::from(!well);
        session.in_a_row = if well { 0 } else { session.in_a_row + 1 };
        if session.in_a_row > REPAIR_REFUSED_MAX {
            return self.end(now, id, false, out);
        }
        self.pump(now, id, view, out);
    }

    // ---- the end -----------------------------------------------------------------------------------------------

    /// A session has come to its end: the two agree, or it comes to nothing.
    pub(super) fn end(&mut self, now: Instant, id: u64, whole: bool, out: &mut Vec<Act>) {
        let Some(session) = self.sessions.remove(&id) else { return };
        let Session { arc, peer, part, began, slice, differs, .. } = session;
        self.waits.retain(|_, wait| wait.session != id);
        let in_hand = self.items.extract_if(.., |_, item| item.session == id).count();
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.in_flight = peer.in_flight.saturating_sub(in_hand);
        }
        let (pause, deadline) = (self.pause(), now + self.patience());
        let Some(home) = self.arcs.get_mut(&arc) else { return };
        let Some(pair) = home.pair(peer).filter(|pair| pair.session == Some(id)) else { return };
        pair.session = None;
        if !whole {
            pair.not_before = now + pause;
            return;
        }
        (pair.agreed, pair.wished) = (Some(began), None);
        if differs {
            out.push(Act::Tell { peer, token: arc, deadline, message: Message::Agreed { session: id, part } });
        }
        self.settle_doubt(slice, out);
    }
    /// Whether a doubt of the slice has come to its end.
    pub(super) fn settle_doubt(&mut self, slice: SliceId, out: &mut Vec<Act>) {
        if self.doubted.contains(&slice) && self.has_agreed(slice) {
            self.doubted.remove(&slice);
            out.push(Act::EndDoubt { slice });
        }
    }
    /// Ends what has waited too long for an answer.
    pub(super) fn expire(&mut self, now: Instant, view: View<'_>, out: &mut Vec<Act>) {
        let late: Vec<u64> = self.waits.values().filter(|wait| wait.deadline <= now).map(|wait| wait.session).collect();
        let pause = self.pause();
        for id in late {
            // It may not understand what it is asked; the others of its arcs need not wait for that one by one.
            if let Some(peer) = self.sessions.get(&id).and_then(|session| self.peers.get_mut(&session.peer)) {
                peer.not_before = now + pause;
            }
            self.end(now, id, false, out);
        }
        let waits = |item: &Item| matches!(item.stage, Stage::Fetching | Stage::Sending);
        let late: Vec<u64> =
            self.items.iter().filter(|(_, item)| waits(item) && item.deadline <= now).map(|(id, _)| *id).collect();
        late.into_iter().for_each(|item| {
            if let Some(peer) = self.items.get(&item).and_then(|item| self.peers.get_mut(&item.to.node)) {
                peer.pace.lost();
            }
            self.done(now, item, false, view, out);
        });
    }
    /// A core cannot be reached: what was asked of it comes to nothing.
    pub fn unreachable(&mut self, now: Instant, core: Address, view: View<'_>, out: &mut Vec<Act>) {
        let of_core = |session: &Session| view.ring.address(session.peer, session.arc) == Some(core);
        let lost: Vec<u64> = self.sessions.iter().filter(|(_, s)| of_core(s)).map(|(id, _)| *id).collect();
        lost.into_iter().for_each(|id| self.end(now, id, false, out));
    }
}

/// Bytes of a question in a frame, and of a sum, about.
const QUESTION_BYTES: u64 = 120;
const SUM_BYTES: usize = 24;

/// Whether a list says what it was asked for.
fn is_in_order(listed: &Listed, page: &Page) -> bool {
    let places: Vec<(Token, &Key)> = listed.heads.iter().map(|(key, _)| (key.token(), key)).collect();
    let within = places.iter().all(|(token, _)| page.span.contains(*token));
    let after = page.after.as_ref().map(|key| (key.token(), key));
    let follows = places.first().is_none_or(|first| after.as_ref().is_none_or(|after| after < first));
    within && follows && places.windows(2).all(|two| two[0] < two[1]) && (!listed.more || !places.is_empty())
}

/// What becomes of two states of a key.
enum Lack {
    Nothing,
    Some {
        pull: bool,
        push: bool,
    },
    /// They know the same and are not the same: merging does nothing about it.
    Unmendable,
}
fn what_lacks(mine: &Head, theirs: &Head, conflict: Conflict) -> Lack {
    let merged = mine.join(theirs, conflict).head;
    let (pull, push) = (!merged.same_state(mine), !merged.same_state(theirs));
    let same = || mine.entries.iter().zip(&theirs.entries).all(|(a, b)| (a.checksum, a.bytes) == (b.checksum, b.bytes));
    match (pull, push) {
        (false, false) if same() => Lack::Nothing,
        (false, false) => Lack::Unmendable,
        (pull, push) => Lack::Some { pull, push },
    }
}
