//! Tables, routed: changes of the registry to disk and to the other shards, drops to the engine, and who must wait for one.

use super::{Asker, Delivering, Effect, Envelope, Instant, Message, Refusal, Shard, exchange_tag, io_tag};
use crate::{
    limits::{self, HELD_MAX, TABLES_ASKED_EVERY, TABLES_ASKED_NODES},
    protocol::{
        message::{Answer, ClientToken, Request},
        replica::{Change, keys},
        ring::{FixedMap, owns},
        tables::{Drops, Due, Tables, encode},
        versions::{Context, Values},
    },
    types::{
        Address, Durability, ErrorCode, Failure, Key, NodeId, Outcome, ShardId, SliceId, TableChange, TableEntry,
        TableName,
    },
};
use bytes::Bytes;
use std::collections::BTreeSet;

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
    Request { asker: Asker, request: Request, hops: u8 },
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
    /// This shard has not carried out the drop that it comes after.
    Wait,
}

/// The shard's part of tables.
pub(super) struct TableState {
    pub registry: Tables,
    pub drops: Drops,
    in_hand: Option<(Due, Stage)>,
    not_before: Instant,
    /// Saves under way, and who waits for each.
    saves: FixedMap<u64, Option<ClientToken>>,
    next_save: u64,
    /// Slices whose record of the tables may be lost, and when somebody is asked next.
    in_doubt: Vec<SliceId>,
    ask_at: Instant,
    /// Others that are in doubt themselves.
    doubters: BTreeSet<Address>,
    /// The registry has changed and could not be saved.
    unsaved: bool,
    held: Vec<Held>,
}

impl TableState {
    pub fn new(registry: Tables, drops: Drops, in_doubt: Vec<SliceId>) -> TableState {
        TableState {
            registry,
            drops,
            in_hand: None,
            not_before: Instant::ZERO,
            saves: FixedMap::default(),
            next_save: 0,
            in_doubt,
            ask_at: Instant::ZERO,
            doubters: BTreeSet::new(),
            unsaved: false,
            held: Vec::new(),
        }
    }
    pub fn next_deadline(&self) -> Option<Instant> {
        let ask = self.registry.in_doubt().then_some(self.ask_at);
        self.held.iter().map(Held::deadline).chain(ask).min()
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
        now: Instant,
        out: &mut Vec<Effect>,
    ) {
        if self.tables.registry.in_doubt() {
            let detail = "this node asks the others for its tables";
            let failure = Failure::new(ErrorCode::NotReady, Outcome::NotApplied, detail);
            return out.push(Effect::Reply { client, response: Err(failure) });
        }
        match self.tables.registry.change(self.me.node, change) {
            Ok(entry) => {
                self.save_tables(Some(client), out);
                self.spread(now, vec![entry], out);
            }
            Err(error) => out.push(Effect::Reply { client, response: Err(Failure::bad_request(error.to_string())) }),
        }
    }

    /// Another shard tells of tables.
    pub(super) fn tables_told(
        &mut self,
        now: Instant,
        from: Address,
        (digest, news, wanted): (u64, Vec<TableEntry>, bool),
        out: &mut Vec<Effect>,
    ) {
        let doubted = self.tables.registry.in_doubt();
        if doubted && Tables::is_doubt(digest) {
            self.tables.doubters.insert(from);
        }
        let (changed, answer) = self.tables.registry.told(digest, news, wanted);
        if let Some(message) = answer {
            self.tell(now, from, message, out);
        }
        if !changed.is_empty() {
            self.save_tables(None, out);
            self.relay(now, from.node, changed, out);
        } else if self.tables.unsaved {
            self.save_tables(None, out);
        }
        if doubted && !self.tables.registry.in_doubt() {
            self.end_doubt(now, out);
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
        if self.me.shard.0 == 0 && others.iter().copied().map(first).chain(asked.iter().copied()).all(|to| doubts(&to))
        {
            self.tables.registry.end_doubt();
            return self.end_doubt(now, out);
        }
        self.random.shuffle(&mut others);
        asked.extend(others.into_iter().take(TABLES_ASKED_NODES).map(first));
        for to in asked {
            self.tell(now, to, self.tables.registry.greeting(), out);
        }
    }
    fn end_doubt(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let slices = std::mem::take(&mut self.tables.in_doubt);
        self.tables.doubters.clear();
        self.tables.drops.assume(&slices, &self.tables.registry);
        self.save_tables(None, out);
        self.release(now, out);
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
    /// The first core passes news on: to the other cores of the node, and what came from one of them to the other nodes.
    fn relay(&mut self, now: Instant, source: NodeId, news: Vec<TableEntry>, out: &mut Vec<Effect>) {
        if self.me.shard.0 != 0 {
            return;
        }
        let message = self.tables.registry.tidings(news);
        for shard in 1..self.placement.shards() {
            self.tell(now, Address { node: self.me.node, shard: ShardId(shard) }, message.clone(), out);
        }
        if source == self.me.node {
            let others: Vec<NodeId> =
                self.members.iter().map(|m| m.id).filter(|id| *id != self.me.node && self.healthy(now, *id)).collect();
            for node in others {
                self.tell(now, Address { node, shard: ShardId(0) }, message.clone(), out);
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
    fn tell(&self, now: Instant, to: Address, message: Message, out: &mut Vec<Effect>) {
        let deadline = now + limits::BACKGROUND_TIMEOUT;
        out.push(Effect::Send(self.envelope(to, exchange_tag::GOSSIP, deadline, message)));
    }

    fn save_tables(&mut self, client: Option<ClientToken>, out: &mut Vec<Effect>) {
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
        if let Some(client) = client {
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
            && result.is_ok()
        {
            self.tables.drops.carried_out(&due);
            self.release(now, out);
        }
    }

    // ---- drops -------------------------------------------------------------------------------------------------

    /// Begins the next drop once nothing is in hand that knows records of the table. Called after each event.
    pub(super) fn drive_drops(&mut self, now: Instant, out: &mut Vec<Effect>) {
        if self.tables.in_hand.is_some() || now < self.tables.not_before || self.tables.registry.in_doubt() {
            return;
        }
        let Some(due) = self.tables.drops.due(&self.tables.registry) else { return };
        let of_table = |key: &Key| TableName::of_key(key.as_bytes()) == Some(due.name.as_str());
        if self.replica.busy_with(of_table) {
            return;
        }
        let io = DROP_IO << io_tag::BITS | io_tag::TABLES;
        out.push(Effect::DropTable { io, slices: due.slices.clone(), name: due.name.clone() });
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

    /// The latest drop that the records of the key come after here.
    pub(super) fn epoch(&self, key: &Key) -> u64 {
        self.tables.drops.epoch(self.slice(key), key.as_bytes())
    }
    /// Whether the key's table has been dropped and this shard has not carried that out.
    pub(super) fn is_dropping(&self, key: &Key) -> bool {
        let dropped = self.tables.registry.dropped(key.as_bytes());
        dropped > 0 && dropped > self.epoch(key)
    }
    /// Whether a state of this epoch may meet the own records.
    pub(super) fn gate(&self, key: &Key, epoch: u64) -> Gate {
        if self.tables.registry.in_doubt() {
            return Gate::Wait;
        }
        let (dropped, own) = (self.tables.registry.dropped(key.as_bytes()), self.epoch(key));
        if epoch < dropped.max(own) {
            Gate::Late
        } else if epoch == own {
            Gate::Open
        } else {
            Gate::Wait
        }
    }

    /// A request for a key whose table is being dropped.
    pub(super) fn wait_for_table(&mut self, asker: Asker, request: Request, hops: u8, out: &mut Vec<Effect>) {
        if !self.hold(Held::Request { asker, request, hops }) {
            let detail = "the key's table is being dropped, or asked for";
            let failure = Failure::new(ErrorCode::Overloaded, Outcome::NotApplied, detail);
            self.reply(asker, Err(failure), out);
        }
    }
    /// A message that comes after a drop which this shard has not carried out, or not heard of.
    pub(super) fn wait_for_drop(&mut self, now: Instant, envelope: Envelope, out: &mut Vec<Effect>) {
        let (from, exchange, deadline) = (envelope.from, envelope.exchange, envelope.deadline);
        let known = match &envelope.message {
            Message::Replicate { key, epoch, .. } | Message::Fetch { key, epoch, .. } => {
                self.tables.registry.dropped(key.as_bytes()) >= *epoch
            }
            _ => true,
        };
        let fetched = matches!(envelope.message, Message::Fetch { .. });
        if !known && !self.tables.registry.in_doubt() {
            // Said even without tables of one's own: the answer is the news.
            self.tell(now, from, self.tables.registry.greeting(), out);
        }
        if !self.hold(Held::Message(envelope)) {
            let refused = Refusal::Overloaded;
            let message = if fetched { Message::Fetched(Err(refused)) } else { Message::Replicated(Err(refused)) };
            out.push(Effect::Send(self.envelope(from, exchange, deadline, message)));
        }
    }

    /// Notes the epoch at which a hint is read.
    pub(super) fn reading_hint(&mut self, delivery: u64, engine_key: &Bytes) {
        if let Some(key) = keys::user_key(engine_key).and_then(|key| Key::new(key.to_vec()).ok()) {
            let epoch = self.epoch(&key);
            let record = keys::parse_hint_key(engine_key).is_none();
            self.delivering.insert(delivery, Delivering { key, epoch, record });
        }
    }
    /// What was read before a drop is not owed after it.
    pub(super) fn still_owed<T>(&mut self, delivery: u64, read: Result<T, Refusal>) -> Result<T, Refusal> {
        match self.delivering.remove(&delivery) {
            Some(Delivering { key, epoch, .. }) if self.is_dropping(&key) || self.epoch(&key) != epoch => {
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
    fn release(&mut self, now: Instant, out: &mut Vec<Effect>) {
        for held in std::mem::take(&mut self.tables.held) {
            match held {
                Held::Request { asker, request, hops } => self.request(now, asker, request, hops, out),
                Held::Message(envelope) => self.message(now, envelope, out),
            }
        }
    }
    /// Those whose time is up get their answer.
    pub(super) fn expire_held(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let late: Vec<Held> = self.tables.held.extract_if(.., |held| held.deadline() <= now).collect();
        for held in late {
            if let Held::Request { asker, .. } = held {
                let detail = "the key's table is being dropped, or asked for, and the deadline has passed";
                self.reply(asker, Err(Failure::new(ErrorCode::Deadline, Outcome::NotApplied, detail)), out);
            }
        }
    }
}
