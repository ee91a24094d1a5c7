//! Tables, routed: changes of the registry to disk and to the other shards, drops to the engine, and who must wait for
//! one.

use super::{Asker, Delivering, Effect, Envelope, Instant, Message, Passage, Refusal, Shard, exchange_tag, io_tag};
use crate::{
    limits::{self, HELD_MAX, TABLES_ASKED_EVERY, TABLES_ASKED_NODES},
    protocol::{
        health::Standing,
        message::{Answer, Certainty, ClientToken, Lane, Request, Words},
        replica::{Change, keys},
        ring::{FixedMap, owns},
        tables::{Drops, Due, Tables, encode},
        versions::{Context, Head, Values},
    },
    types::{
        Address, Durability, ErrorCode, Failure, Key, NodeId, Outcome, ShardId, SliceId, TableChange, TableEntry,
        TableError, TableName, TableWord,
    },
};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// Where a drop stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// The engine drops the records.
    Dropping,
    /// It is made durable that they are gone.
    Recording,
}

/// What waits for a drop, or for the news of one.
pub(super) enum Held {
    Request { asker: Asker, request: Request, passage: Passage },
    Message(Envelope),
}
impl Held {
    fn deadline(&self) -> Instant {
        match self {
            Held::Request { request, .. } => request.deadline,
            Held::Message(envelope) => envelope.deadline,
        }
    }
}

/// What to do with a message about a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Gate {
    Open,
    /// It comes from before a drop.
    Late,
    /// This shard has newer word of the key's table.
    Outdated,
    /// This shard has not heard the word that it was sent by, or not carried out the drop that it comes after.
    Wait,
}

/// The shard's part of tables.
pub(super) struct TableState {
    pub registry: Tables,
    pub drops: Drops,
    in_hand: Option<(Due, Stage)>,
    not_before: Instant,
    /// Whether a drop may be due.
    drops_due: bool,
    /// Saves under way, and who waits for each, until when.
    saves: FixedMap<u64, Option<(ClientToken, Instant)>>,
    next_save: u64,
    /// Slices whose record of the tables may be lost, and when somebody is asked next.
    in_doubt: Vec<SliceId>,
    ask_at: Instant,
    /// Others that are in doubt themselves.
    doubters: BTreeSet<Address>,
    /// The registry has changed and could not be saved.
    unsaved: bool,
    held: Vec<Held>,
    /// Who was asked for news of a table, and when.
    asked: BTreeMap<Address, Instant>,
    /// Who waits for a write that is begun again: something of it may be stored by now.
    begun: BTreeSet<Asker>,
}

impl TableState {
    pub fn new(registry: Tables, drops: Drops, in_doubt: Vec<SliceId>) -> TableState {
        TableState {
            registry,
            drops,
            in_hand: None,
            not_before: Instant::ZERO,
            drops_due: true,
            saves: FixedMap::default(),
            next_save: 0,
            in_doubt,
            ask_at: Instant::ZERO,
            doubters: BTreeSet::new(),
            unsaved: false,
            held: Vec::new(),
            asked: BTreeMap::new(),
            begun: BTreeSet::new(),
        }
    }
    pub fn next_deadline(&self) -> Option<Instant> {
        let ask = self.registry.in_doubt().then_some(self.ask_at);
        let saves = self.saves.values().flatten().map(|(_, deadline)| *deadline);
        self.held.iter().map(Held::deadline).chain(ask).chain(saves).min()
    }
    /// Whether all drops that are known are carried out.
    pub fn drops_done(&self) -> bool {
        !self.drops_due && self.in_hand.is_none()
    }
    pub fn is_idle(&self) -> bool {
        self.saves.is_empty() && self.in_hand.is_none() && self.held.is_empty()
    }
}

/// The number of a drop's own I/O.
const DROP_IO: u64 = 0;

impl Shard {
    // ---- changes -----------------------------------------------------------------------------------------------

    /// A client of this node changes a table.
    pub(super) fn change_table(
        &mut self,
        client: ClientToken,
        change: TableChange,
        (now, deadline): (Instant, Instant),
        out: &mut Vec<Effect>,
    ) {
        if now >= deadline {
            // Its client may have given up, and others may have changed the table since.
            let detail = "the request may have waited in this node for longer than it may take; nothing was changed";
            let failure = Failure::new(ErrorCode::Deadline, Outcome::NotApplied, detail);
            return out.push(Effect::Reply { client, response: Err(failure) });
        }
        if self.tables.registry.in_doubt() {
            let detail = "this node asks the others for its tables";
            let failure = Failure::new(ErrorCode::NotReady, Outcome::NotApplied, detail);
            return out.push(Effect::Reply { client, response: Err(failure) });
        }
        match self.tables.registry.change(self.me.node, change) {
            Ok(entry) => {
                self.tables.drops_due = true;
                self.save_tables(Some((client, deadline)), out);
                self.spread(now, vec![entry], out);
            }
            Err(error) => {
                let code =
                    if matches!(error, TableError::Exists(_)) { ErrorCode::TableExists } else { ErrorCode::BadRequest };
                let failure = Failure::new(code, Outcome::NotApplied, error.to_string());
                out.push(Effect::Reply { client, response: Err(failure) });
            }
        }
    }

    /// Another shard tells of tables.
    pub(super) fn tables_told(&mut self, now: Instant, from: Address, words: Words, out: &mut Vec<Effect>) {
        let before = self.tables.registry.certainty();
        if before == Certainty::Lost && words.certainty == Certainty::Lost {
            self.tables.doubters.insert(from);
        }
        let other = (from.node != self.me.node).then_some(from.node);
        let (changed, answer) = self.tables.registry.told(other, words);
        if let Some(message) = answer {
            self.tell(now, from, message, out);
        }
        self.heard(now, from.node, changed, out);
        let members = self.members.iter().filter(|member| owns(member.state)).count();
        let most = self.joined() && self.tables.registry.has_heard_most(members);
        if self.tables.registry.certainty() == Certainty::Unheard && most {
            self.tables.registry.end_doubt();
        }
        let after = self.tables.registry.certainty();
        if before == Certainty::Lost && after != Certainty::Lost {
            self.assume_drops(out);
        }
        if before != Certainty::Sure && after == Certainty::Sure {
            self.release(now, out);
        }
    }
    /// Something is known now that was not.
    fn heard(&mut self, now: Instant, from: NodeId, changed: Vec<TableEntry>, out: &mut Vec<Effect>) {
        if !changed.is_empty() {
            self.tables.drops_due = true;
            self.save_tables(None, out);
            self.relay(now, from, changed, out);
            self.release(now, out);
        } else if self.tables.unsaved {
            self.save_tables(None, out);
        }
    }
    /// Whoever was asked something about a key has newer word of its table.
    pub(super) fn table_news(
        &mut self,
        now: Instant,
        from: Address,
        exchange: u64,
        news: TableEntry,
        out: &mut Vec<Effect>,
    ) {
        let name = news.name.clone();
        let changed = self.tables.registry.take(vec![news]);
        self.heard(now, from.node, changed, out);
        let number = exchange >> exchange_tag::BITS;
        match exchange & ((1 << exchange_tag::BITS) - 1) {
            exchange_tag::COORDINATOR => {
                let word = self.tables.registry.entry(name.as_str()).map(TableEntry::word).unwrap_or_default();
                let mut acts = Vec::new();
                self.coordinator.outdated(now, number, word, &mut acts);
                self.run_acts(now, acts, out);
            }
            // Tried again, by the news.
            exchange_tag::HINTS => self.with_hints(now, out, |hints, view, acts| {
                hints.replicated(now, number, Err(Refusal::Expired), view, acts);
            }),
            exchange_tag::REBUILD => {
                let mut acts = Vec::new();
                self.rebuild.answered(number, Err(Refusal::Expired), &mut acts);
                self.run_rebuild(now, acts, out);
            }
            exchange_tag::REPAIR => {
                self.with_repair(now, out, |repair, view, acts| repair.outdated(now, number, view, acts));
            }
            _ => {}
        }
    }
    /// A request is begun anew, by the newest word. What was begun before may have stored something.
    pub(super) fn begin_again(
        &mut self,
        now: Instant,
        asker: Asker,
        request: Request,
        passage: Passage,
        out: &mut Vec<Effect>,
    ) {
        if request.operation.is_write() {
            self.tables.begun.insert(asker);
        }
        self.request(now, asker, request, passage, out);
    }
    /// What is said of a request that was begun more than once.
    pub(super) fn judge_begun(&mut self, asker: Asker, failure: Failure) -> Failure {
        let begun = self.tables.begun.remove(&asker);
        let outcome = if begun { Outcome::Unknown } else { failure.outcome };
        Failure { outcome, ..failure }
    }
    pub(super) fn forget_begun(&mut self, asker: Asker) {
        // Nearly always there is none.
        if !self.tables.begun.is_empty() {
            self.tables.begun.remove(&asker);
        }
    }

    /// While in doubt: asks the other cores of the node, and some other nodes.
    pub(super) fn ask_for_tables(&mut self, now: Instant, out: &mut Vec<Effect>) {
        if !self.tables.registry.in_doubt() || now < self.tables.ask_at {
            return;
        }
        self.tables.ask_at = now + TABLES_ASKED_EVERY;
        let cores = (0..self.placement.shards()).map(ShardId).filter(|shard| *shard != self.me.shard);
        let mut asked: Vec<Address> = cores.map(|shard| Address { node: self.me.node, shard }).collect();
        let others = self.members.iter().filter(|m| m.id != self.me.node && owns(m.state)).map(|m| m.id);
        let mut others: Vec<NodeId> = others.collect();
        // When nobody is left who knows, what each has is all there is.
        let doubts = |to: &Address| self.tables.doubters.contains(to);
        let first = |node| Address { node, shard: ShardId(0) };
        // A newcomer does not know yet who there is.
        if !self.joined() {
            return;
        }
        let all_doubt = others.iter().copied().map(first).chain(asked.iter().copied()).all(|to| doubts(&to));
        let lost = self.tables.registry.certainty() == Certainty::Lost;
        if (lost && self.me.shard.0 == 0 && all_doubt) || (!lost && others.is_empty()) {
            self.tables.registry.end_doubt();
            if lost {
                self.assume_drops(out);
            }
            return self.release(now, out);
        }
        self.random.shuffle(&mut others);
        asked.extend(others.into_iter().take(TABLES_ASKED_NODES).map(first));
        for to in asked {
            self.tell(now, to, self.tables.registry.greeting(), out);
        }
    }
    /// What the lost records said is known again. Which drops their slices had carried out is not.
    fn assume_drops(&mut self, out: &mut Vec<Effect>) {
        let slices = std::mem::take(&mut self.tables.in_doubt);
        self.tables.doubters.clear();
        self.tables.drops.assume(&slices, &self.tables.registry);
        self.tables.drops_due = true;
        self.save_tables(None, out);
    }

    /// A change by a client of this shard goes everywhere at once; gossip reaches those who miss it.
    fn spread(&mut self, now: Instant, news: Vec<TableEntry>, out: &mut Vec<Effect>) {
        if self.me.shard.0 == 0 {
            return self.relay(now, self.me.node, news, out);
        }
        let first = Address { node: self.me.node, shard: ShardId(0) };
        let message = self.tables.registry.tidings(news);
        self.tell(now, first, message, out);
    }
    /// The first core passes news on: to the other cores of the node, and what came from one of them to the other
    /// nodes.
    fn relay(&mut self, now: Instant, source: NodeId, news: Vec<TableEntry>, out: &mut Vec<Effect>) {
        if self.me.shard.0 != 0 {
            return;
        }
        let message = self.tables.registry.tidings(news);
        for shard in 1..self.placement.shards() {
            self.tell(now, Address { node: self.me.node, shard: ShardId(shard) }, message.clone(), out);
        }
        if source == self.me.node {
            let others = self.members.iter().map(|m| m.id).filter(|id| *id != self.me.node);
            for first in others.map(|node| Address { node, shard: ShardId(0) }) {
                if self.standing(now, first, Lane::Short) <= Standing::Parting {
                    self.tell(now, first, message.clone(), out);
                }
            }
        }
    }
    /// The first words about tables to another shard, if there are any tables.
    pub(super) fn greet(&self, now: Instant, to: Address, out: &mut Vec<Effect>) {
        if self.tables.registry.entries().next().is_some() {
            self.tell(now, to, self.tables.registry.greeting(), out);
        }
    }
    pub(super) fn greet_cores(&self, now: Instant, out: &mut Vec<Effect>) {
        for shard in 1..self.placement.shards() {
            self.greet(now, Address { node: self.me.node, shard: ShardId(shard) }, out);
        }
    }
    pub(super) fn tell(&self, now: Instant, to: Address, message: Message, out: &mut Vec<Effect>) {
        let deadline = now + limits::BACKGROUND_TIMEOUT;
        out.push(Effect::Send(self.envelope(to, exchange_tag::GOSSIP, deadline, message)));
    }

    fn save_tables(&mut self, client: Option<(ClientToken, Instant)>, out: &mut Vec<Effect>) {
        let tables = &mut self.tables;
        tables.next_save += 1;
        tables.unsaved = false;
        tables.saves.insert(tables.next_save, client);
        let io = tables.next_save << io_tag::BITS | io_tag::TABLES;
        // The drop that is being recorded counts as carried out in what is stored.
        let recording = tables.in_hand.as_ref().filter(|(_, stage)| *stage == Stage::Recording).map(|(due, _)| due);
        let done = |slice: SliceId, entry: &TableEntry| match recording {
            Some(due) if due.name == entry.name && due.slices.contains(&slice) => due.version,
            _ => tables.drops.of(slice, entry.name.as_str()),
        };
        let record = |slice: &SliceId| {
            let head = encode(tables.registry.entries().map(|entry| (entry, done(*slice, entry))));
            Change { slice: *slice, key: keys::tables_key(), record: Some((head, Values::new())) }
        };
        let changes = tables.drops.slices().iter().map(record).collect();
        out.push(Effect::Store { io, changes, durability: Durability::Sync });
    }

    /// A save, or the engine's drop, has an answer.
    pub(super) fn tables_stored(&mut self, now: Instant, io: u64, result: Result<(), Refusal>, out: &mut Vec<Effect>) {
        if io == DROP_IO {
            return self.dropped(now, result, out);
        }
        let Some(client) = self.tables.saves.remove(&io) else { return };
        self.tables.unsaved |= result.is_err();
        if let Some((client, _)) = client {
            let failed = |refusal| match refusal {
                Refusal::DiskFull => Failure::new(ErrorCode::DiskFull, Outcome::Unknown, "the disk is full"),
                _ => Failure::new(ErrorCode::Internal, Outcome::Unknown, "the storage of this shard has failed"),
            };
            let response = result.map(|()| Answer::Written(Context::default())).map_err(failed);
            out.push(Effect::Reply { client, response });
        }
        // Saves are stored in order: the last one says all.
        if self.tables.saves.is_empty()
            && let Some((due, Stage::Recording)) = self.tables.in_hand.take_if(|(_, stage)| *stage == Stage::Recording)
        {
            if result.is_ok() {
                self.tables.drops.carried_out(&due);
                self.repair.forget_sums();
                self.release(now, out);
            } else {
                self.tables.not_before = now + limits::GOSSIP_INTERVAL;
            }
        }
    }

    // ---- drops -------------------------------------------------------------------------------------------------

    /// Begins the next drop once nothing is in hand that knows records of the table. Called after each event.
    pub(super) fn drive_drops(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let tables = &mut self.tables;
        if !tables.drops_due || tables.in_hand.is_some() || now < tables.not_before {
            return;
        }
        if tables.registry.certainty() == Certainty::Lost {
            return;
        }
        let Some(due) = tables.drops.due(&tables.registry) else {
            tables.drops_due = false;
            return;
        };
        let of_table = |key: &Key| TableName::of_key(key.as_bytes()) == Some(due.name.as_str());
        if self.replica.busy_with(of_table) {
            return;
        }
        let io = DROP_IO << io_tag::BITS | io_tag::TABLES;
        let life = (!due.whole).then_some(due.version);
        out.push(Effect::DropTable { io, slices: due.slices.clone(), name: due.name.clone(), life });
        self.tables.in_hand = Some((due, Stage::Dropping));
    }
    fn dropped(&mut self, now: Instant, result: Result<(), Refusal>, out: &mut Vec<Effect>) {
        match (&mut self.tables.in_hand, result) {
            (Some((_, stage)), Ok(())) => {
                *stage = Stage::Recording;
                self.save_tables(None, out);
            }
            (in_hand, _) => {
                *in_hand = None;
                self.tables.not_before = now + limits::GOSSIP_INTERVAL;
            }
        }
    }

    /// What this shard goes by of the key's table. The drop in it is the latest that the records of the key come after
    /// here; a shard that does not own the key's slice has no records of it and nothing to carry out.
    pub(super) fn word(&self, key: &Key) -> TableWord {
        let word = self.tables.registry.word(key.as_bytes());
        if word.dropped == 0 || !self.serves(key) {
            return word;
        }
        TableWord { dropped: self.tables.drops.epoch(self.slice(key), key.as_bytes()), ..word }
    }
    /// Whether the key's table has been dropped and this shard has not carried that out.
    pub(super) fn is_dropping(&self, key: &Key) -> bool {
        let dropped = self.tables.registry.dropped(key.as_bytes());
        dropped > 0 && dropped > self.word(key).dropped
    }
    /// Whether a message about the key, sent by this word of its table, may meet the own records.
    pub(super) fn gate(&self, key: &Key, word: TableWord) -> Gate {
        // Whoever does not own the key says so, whatever the word.
        if !self.serves(key) {
            return Gate::Open;
        }
        if self.tables.registry.in_doubt() {
            return Gate::Wait;
        }
        let own = self.tables.registry.word(key.as_bytes());
        let carried_out = self.word(key).dropped;
        if !word.is_said() {
            return match word.dropped {
                dropped if dropped < own.dropped => Gate::Late,
                dropped if dropped == carried_out => Gate::Open,
                _ => Gate::Wait,
            };
        }
        if word.adds_to(&own) {
            Gate::Wait
        } else if word != own {
            Gate::Outdated
        } else if carried_out < own.dropped {
            Gate::Wait
        } else {
            Gate::Open
        }
    }
    /// As [`Shard::gate`], of a message that brings a state along: one of a life of the table that is over is late by
    /// itself.
    pub(super) fn gate_state(&self, key: &Key, word: TableWord, head: &Head) -> Gate {
        let over = head.life > 0 && head.life <= self.tables.registry.dropped(key.as_bytes());
        match self.gate(key, word) {
            Gate::Open if over => Gate::Late,
            gate => gate,
        }
    }
    /// The answer to a message that is not newer than what is known here.
    pub(super) fn news_of(&self, key: &Key) -> Option<Message> {
        self.tables.registry.entry_of(key.as_bytes()).cloned().map(Message::TableNews)
    }

    /// A request for a key whose table is being dropped.
    pub(super) fn wait_for_table(&mut self, asker: Asker, request: Request, passage: Passage, out: &mut Vec<Effect>) {
        if !self.hold(Held::Request { asker, request, passage }) {
            let detail = "the key's table is being dropped, or the time asked for";
            let failure = Failure::new(ErrorCode::Overloaded, Outcome::NotApplied, detail);
            self.reply(asker, Err(failure), out);
        }
    }
    /// A message that comes after a drop which this shard has not carried out, or by word that it has not heard.
    pub(super) fn wait_for_word(&mut self, now: Instant, envelope: Envelope, out: &mut Vec<Effect>) {
        let (from, exchange, deadline) = (envelope.from, envelope.exchange, envelope.deadline);
        let (unknown, refused) = match &envelope.message {
            Message::Replicate { key, word, .. } => (Some((key, word)), Message::Replicated(Err(Refusal::Overloaded))),
            Message::Fetch { key, word, .. } => (Some((key, word)), Message::Fetched(Err(Refusal::Overloaded))),
            Message::Forward { request, word, .. } => {
                let detail = "too many requests wait for news of a table; try again later";
                let failure = Failure::new(ErrorCode::Overloaded, Outcome::NotApplied, detail);
                (Some((&request.key, word)), Message::Forwarded(Err(failure)))
            }
            _ => (None, Message::Replicated(Err(Refusal::Overloaded))),
        };
        let registry = &self.tables.registry;
        let news = unknown.is_some_and(|(key, word)| match word.is_said() {
            true => word.adds_to(&registry.word(key.as_bytes())),
            false => registry.dropped(key.as_bytes()) < word.dropped,
        });
        let asked = self.tables.asked.get(&from).is_some_and(|at| now < *at + TABLES_ASKED_EVERY);
        if news && !asked && !self.tables.registry.in_doubt() {
            // Said even without tables of one's own: the answer is the news.
            self.tables.asked.retain(|_, at| now < *at + TABLES_ASKED_EVERY);
            self.tables.asked.insert(from, now);
            self.tell(now, from, self.tables.registry.greeting(), out);
        }
        if !self.hold(Held::Message(envelope)) {
            out.push(Effect::Send(self.envelope(from, exchange, deadline, refused)));
        }
    }

    /// Notes after which drop a hint is read.
    pub(super) fn reading_hint(&mut self, delivery: u64, engine_key: &Bytes) {
        if let Some(key) = keys::user_key(engine_key).and_then(|key| Key::new(key.to_vec()).ok()) {
            let epoch = self.word(&key).dropped;
            let record = keys::parse_hint_key(engine_key).is_none();
            self.delivering.insert(delivery, Delivering { key, epoch, record });
        }
    }
    /// What was read before a drop is not owed after it.
    pub(super) fn still_owed<T>(&mut self, delivery: u64, read: Result<T, Refusal>) -> Result<T, Refusal> {
        match self.delivering.remove(&delivery) {
            Some(Delivering { key, epoch, .. }) if self.is_dropping(&key) || self.word(&key).dropped != epoch => {
                Err(Refusal::Expired)
            }
            _ => read,
        }
    }

    /// Keeps it until the drop is carried out; `false`: too many wait already.
    pub(super) fn hold(&mut self, held: Held) -> bool {
        let room = self.tables.held.len() < HELD_MAX;
        if room {
            self.tables.held.push(held);
        }
        room
    }
    pub(super) fn release(&mut self, now: Instant, out: &mut Vec<Effect>) {
        for held in std::mem::take(&mut self.tables.held) {
            match held {
                Held::Request { asker, request, passage } => self.request(now, asker, request, passage, out),
                Held::Message(envelope) => self.message(now, envelope, out),
            }
        }
    }
    /// Those whose time is up get their answer.
    pub(super) fn expire_held(&mut self, now: Instant, out: &mut Vec<Effect>) {
        for waiting in self.tables.saves.values_mut() {
            if let Some((client, _)) = waiting.take_if(|(_, deadline)| *deadline <= now) {
                let detail = "the disk of this node has not stored the change in time; it may still do so";
                let failure = Failure::new(ErrorCode::Deadline, Outcome::Unknown, detail);
                out.push(Effect::Reply { client, response: Err(failure) });
            }
        }
        let late: Vec<Held> = self.tables.held.extract_if(.., |held| held.deadline() <= now).collect();
        for held in late {
            if let Held::Request { asker, .. } = held {
                let detail = "the key's table is being dropped, and the deadline has passed";
                self.reply(asker, Err(Failure::new(ErrorCode::Deadline, Outcome::NotApplied, detail)), out);
            }
        }
    }
}
