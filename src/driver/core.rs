//! One core from start to stop: open its engine, lease its dots, then turn events into effects and effects into
//! events until it is told to stop.
//!
//! The loop is the same in both worlds. A turn takes what has arrived and what the engine has finished, hands each to
//! the shard, performs the effects in order, and sleeps until there is more. Engine calls of many requests are in
//! flight at once; the shard alone decides what must wait for what.

use super::{
    identity::{BootError, Changing, Identity, save_members},
    world::{Arrival, Inbox, World},
};
use crate::{
    engine::{
        Background, Engine, Opened,
        disk::{Disk, lacks_room},
        drops::Group,
        error::EngineError,
        types::{Change, Durability, EngineOptions, EngineStats, Record, Want, Write},
    },
    limits::{EVENTS_PER_TURN, KEYS_COUNTED_MAX, MEMBERS_MAX, SCAN_KEYS_MAX},
    protocol::{
        message::{Depth, Envelope, Refusal},
        replica::{self, Leases, Stored, keys, stamps::UNKNOWN},
        ring::{Placement, Ring},
        shard::{Birth, Effect, Event, Shard, ShardStats},
        tables::{self, Tables},
    },
    types::{
        Address, ClusterId, ErrorCode, Failure, Member, MemberView, NodeId, Outcome, ShardId, SliceId, Stranger,
        TableEntry, TableName, mark,
    },
};
use bytes::{Bytes, BytesMut};
use futures_util::{
    FutureExt, StreamExt,
    future::{LocalBoxFuture, poll_fn},
    stream::FuturesUnordered,
};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    net::IpAddr,
    pin::pin,
    rc::Rc,
    task::Poll,
};

pub use crate::protocol::shard::Settings;

/// What one core is started with.
#[derive(Clone, Debug)]
pub struct CoreSetup {
    pub identity: Identity,
    pub shard: ShardId,
    pub settings: Settings,
    pub engine: EngineOptions,
    /// The seed of the shard's random choices.
    pub seed: u64,
}

/// A core ready to run. The host polls `driver` and every background future; none ends before the core stops.
pub struct Core<W: World, D: Disk> {
    /// Ends with `Ok` after [`Arrival::Stop`], with an error when the storage has failed: the node must stop then.
    pub driver: LocalBoxFuture<'static, Result<(), EngineError>>,
    pub background: Vec<(Background, LocalBoxFuture<'static, ()>)>,
    pub handle: Handle<W, D>,
}

/// Everything that can be counted on one core.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CoreStats {
    pub engine: EngineStats,
    pub shard: ShardStats,
    /// Turns of the core's loop, which takes one when something has happened.
    pub turns: u64,
}

/// See [`Handle::count_keys`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KeysCounted {
    pub of_table: u64,
    pub of_default: u64,
    /// Whether all records were looked at.
    pub all: bool,
}

/// A look into a running core, from the same core.
pub struct Handle<W: World, D: Disk> {
    shard: Rc<RefCell<Shard>>,
    engine: Engine<D>,
    world: Rc<W>,
    turns: Rc<Cell<u64>>,
}
impl<W: World, D: Disk> Clone for Handle<W, D> {
    fn clone(&self) -> Handle<W, D> {
        let (shard, engine) = (self.shard.clone(), self.engine.clone());
        Handle { shard, engine, world: self.world.clone(), turns: self.turns.clone() }
    }
}
impl<W: World, D: Disk> Handle<W, D> {
    pub fn address(&self) -> Address {
        self.shard.borrow().address()
    }
    /// Nothing of a client's or another shard's is in hand.
    pub fn is_idle(&self) -> bool {
        self.shard.borrow().is_idle()
    }
    /// All members as this shard sees them, with the share of the ring that each owns first.
    pub fn members(&self) -> Vec<(Member, MemberView, f64)> {
        let shard = self.shard.borrow();
        let now = self.world.now();
        let row = |m: &Member| (m.clone(), shard.view(now, m), shard.ring().owned_share(m.id));
        shard.members().iter().map(row).collect()
    }
    /// How this shard sees the other members.
    pub fn views(&self) -> Vec<(NodeId, IpAddr, MemberView)> {
        let shard = self.shard.borrow();
        let (me, now) = (shard.address().node, self.world.now());
        let others = shard.members().iter().filter(|member| member.id != me);
        others.map(|member| (member.id, member.ip, shard.view(now, member))).collect()
    }
    /// One member, without the cost of the whole list.
    pub fn member(&self, node: NodeId) -> Option<Member> {
        self.shard.borrow().members().iter().find(|m| m.id == node).cloned()
    }
    /// The tables that this shard knows.
    pub fn tables(&self) -> Tables {
        self.shard.borrow().tables().clone()
    }
    pub fn ring(&self) -> Rc<Ring> {
        self.shard.borrow().ring().clone()
    }
    pub fn stats(&self) -> CoreStats {
        CoreStats { engine: self.engine.stats(), shard: self.shard.borrow().stats(), turns: self.turns.get() }
    }
    /// Counts the keys of this core that begin with a table's name, by what they were written in: the table or, before
    /// it was made, the table default. At most [`KEYS_COUNTED_MAX`] records are looked at.
    pub async fn count_keys(&self, name: &TableName) -> Result<KeysCounted, EngineError> {
        let (slices, life) = {
            let shard = self.shard.borrow();
            let entry = shard.tables().entry(name.as_str());
            (shard.slices().to_vec(), entry.filter(|entry| entry.settings.is_some()).map(TableEntry::life))
        };
        let (first, to) = keys::all_records();
        let (mut counted, mut left) = (KeysCounted { all: true, ..KeysCounted::default() }, KEYS_COUNTED_MAX);
        for slice in slices {
            let mut from = first.clone();
            loop {
                let limit = left.min(SCAN_KEYS_MAX);
                let found = self.engine.scan(slice, &from, &to, limit).await?;
                left -= found.len();
                let named = |key: &Bytes| keys::user_key(key).and_then(TableName::of_key) == Some(name.as_str());
                for (_, head) in found.iter().filter(|(key, _)| named(key)) {
                    let in_table = life.is_some_and(|life| life == 0 || mark::of(head) > 0);
                    let count = if in_table { &mut counted.of_table } else { &mut counted.of_default };
                    *count += 1;
                }
                match found.last() {
                    Some((last, _)) if found.len() == limit => from = next_key(last),
                    _ => break,
                }
                if left == 0 {
                    counted.all = false;
                    return Ok(counted);
                }
            }
        }
        Ok(counted)
    }
    /// The cluster that the node belongs to, as this shard knows.
    pub fn cluster(&self) -> ClusterId {
        self.shard.borrow().cluster()
    }
    /// Nodes of other clusters that this one has met.
    pub fn strangers(&self) -> Vec<Stranger> {
        self.shard.borrow().strangers().to_vec()
    }
    /// Members that are stopping, or have since they said so.
    pub fn parting(&self) -> Vec<NodeId> {
        self.shard.borrow().parting().to_vec()
    }
    /// Whether requests are served.
    pub fn ready(&self) -> bool {
        self.shard.borrow().ready()
    }
    pub fn engine(&self) -> &Engine<D> {
        &self.engine
    }
    pub fn settings(&self) -> Settings {
        self.shard.borrow().settings().clone()
    }
    pub fn value_bytes_max(&self) -> usize {
        self.shard.borrow().settings().value_bytes_max
    }
}

/// Opens the engine of one shard, leases dots for its slices durably and counts the hints that it holds.
pub async fn start<W: World, D: Disk>(
    world: Rc<W>,
    disk: Rc<D>,
    inbox: Inbox,
    setup: CoreSetup,
) -> Result<Core<W, D>, BootError> {
    let CoreSetup { identity, shard, settings, engine: options, seed } = setup;
    let slices = Placement::new(&identity.tokens, identity.slices, identity.shards).slices_of(shard);
    let options = EngineOptions { seed: seed ^ identity.now.generation, ..options };
    let Opened { engine, background } = Engine::open(disk.clone(), shard, &slices, options).await?;
    // The log must run while the leases are written.
    let (mut background, mut ended) = (background, Vec::new());
    let (leases, hints, behind, (tables, tables_in_doubt), stamps) = {
        let tasks = background.iter_mut().enumerate();
        let mut running: FuturesUnordered<_> = tasks.map(|(index, (_, task))| task.map(move |()| index)).collect();
        let prepare = async {
            let (leases, lost) = lease_dots(&engine, &identity, &slices, settings.bounds.dot_lease).await?;
            let hints = count_hints(&engine, &slices).await?;
            let behind = find_marks(&engine, &slices).await?;
            let tables = load_tables(&engine, &slices, &lost).await?;
            let stamps = load_stamps(&engine, &slices).await?;
            note_losses(&engine, &leases, &slices).await?;
            Ok::<_, EngineError>((leases, hints, behind, tables, stamps))
        };
        let mut prepare = std::pin::pin!(prepare);
        poll_fn(|cx| {
            while let Poll::Ready(Some(index)) = running.poll_next_unpin(cx) {
                ended.push(index);
            }
            prepare.as_mut().poll(cx)
        })
        .await?
    };
    // What has ended by now is not to be polled again.
    let mut index = 0..;
    background.retain(|_| index.next().is_some_and(|index| !ended.contains(&index)));
    let birth = Birth {
        me: Address { node: identity.node, shard },
        generation: identity.now.generation,
        member: identity.member(),
        known: identity.members.clone(),
        seeds: identity.seeds.clone(),
        cluster: identity.now.cluster,
        company: identity.now.company,
        listens_first: identity.listens_first(),
        settings,
        leases,
        hints,
        tables,
        tables_in_doubt,
        stamps,
        behind,
        doubted: slices.iter().copied().filter(|slice| engine.may_have_lost(*slice)).collect(),
        copied: identity.copied,
        seed,
    };
    let shard = Rc::new(RefCell::new(Shard::new(birth, world.now())));
    let turns = Rc::new(Cell::new(0));
    let handle = Handle { shard: shard.clone(), engine: engine.clone(), world: world.clone(), turns: turns.clone() };
    let calls = FuturesUnordered::new();
    let driver = Driver {
        world,
        disk,
        inbox,
        identity,
        shard,
        engine,
        calls,
        saving: None,
        unsaved: None,
        stopping: false,
        short: false,
        turns,
    };
    Ok(Core { driver: Box::pin(driver.run()), background, handle })
}

/// One batch of new leases for all slices. One whose lease record is damaged gets none: it mints no dots, so writes
/// that this node would coordinate for it are refused, and all else goes on. A slice that has none although the node
/// has started before, one whose log may be lost, and all slices of a copied directory begin far from what may be in
/// use. Gives as well those that have lost all that they held.
async fn lease_dots<D: Disk>(
    engine: &Engine<D>,
    identity: &Identity,
    slices: &[SliceId],
    block: u64,
) -> Result<(Leases, Vec<SliceId>), EngineError> {
    let leases = Leases::new(identity.node, identity.now.generation).with_draw(identity.draw);
    let mut leases = leases.with_block(block);
    let (mut writes, mut emptied) = (Vec::new(), Vec::new());
    for &slice in slices {
        let last = match engine.get(slice, &keys::lease_key(), Want::Head).await {
            Ok(None) => None,
            Ok(Some(record)) => match keys::parse_lease(&record.head) {
                Some(last) => Some(last),
                None => continue,
            },
            Err(EngineError::Damaged(_)) => continue,
            Err(error) => return Err(error),
        };
        let lost = last.is_none() && identity.now.generation > 1;
        if lost {
            emptied.push(slice);
        } else if last.is_none() && identity.seeds.is_empty() && identity.members.is_empty() {
            // That there are no tables yet: a slice whose record is missing later has lost it. A newcomer has none
            // until somebody has told it which there are.
            let head = tables::encode(std::iter::empty());
            let change = Change::Put { head, values: Default::default() };
            writes.push(Write { slice, key: keys::tables_key(), change });
        }
        let begun = if lost || identity.copied || engine.has_newly_lost(slice) {
            leases.begin_far(slice, last, identity.copied)
        } else {
            leases.begin(slice, last)
        };
        let Some(lease) = begun else { continue };
        let change = Change::Put { head: keys::lease_head(lease), values: Default::default() };
        writes.push(Write { slice, key: keys::lease_key(), change });
    }
    match engine.write(writes, Durability::Sync).await {
        // No dot is minted before a lease is durable: until there is space, reads and deletes are what is served.
        Err(EngineError::Full) => slices.iter().for_each(|slice| leases.doubt(*slice)),
        written => written?,
    }
    Ok((leases, emptied))
}

/// The leases of slices that may have lost their last one begin elsewhere, durably: that need not be done again.
async fn note_losses<D: Disk>(engine: &Engine<D>, leases: &Leases, slices: &[SliceId]) -> Result<(), EngineError> {
    if slices.iter().any(|slice| engine.has_newly_lost(*slice) && !leases.is_sound(*slice)) {
        return Ok(());
    }
    match engine.losses_noted().await {
        // The next start does it again.
        Err(EngineError::Full) => Ok(()),
        noted => noted,
    }
}

async fn count_hints<D: Disk>(engine: &Engine<D>, slices: &[SliceId]) -> Result<Vec<(NodeId, u64, u64)>, EngineError> {
    let mut owners: BTreeMap<NodeId, (u64, u64)> = BTreeMap::new();
    let (first, to) = keys::all_hints();
    for &slice in slices {
        let mut from = first.clone();
        loop {
            let found = match engine.scan(slice, &from, &to, SCAN_KEYS_MAX).await {
                // What cannot be read cannot be delivered.
                Err(EngineError::Damaged(_)) => break,
                found => found?,
            };
            for (key, head) in &found {
                if let Some((owner, _, _)) = keys::parse_hint_key(key) {
                    let owed = owners.entry(owner).or_default();
                    *owed = (owed.0 + 1, owed.1 + keys::hint_bytes(key, head));
                }
            }
            match found.last() {
                Some((last, _)) if found.len() == SCAN_KEYS_MAX => from = next_key(last),
                _ => break,
            }
        }
    }
    Ok(owners.into_iter().map(|(owner, (count, bytes))| (owner, count, bytes)).collect())
}

type TablesFound = (Vec<(SliceId, Vec<(TableEntry, u64)>)>, Vec<SliceId>);

/// What the slices' records say of tables, and the slices of which that is in doubt, those that have `lost` all among
/// them. A record that is damaged is taken to say what another slice's does, since they are written together, but for
/// drops that can be carried out twice: see [`tables::Drops::assume`].
async fn load_tables<D: Disk>(
    engine: &Engine<D>,
    slices: &[SliceId],
    lost: &[SliceId],
) -> Result<TablesFound, EngineError> {
    let (mut found, mut damaged, mut in_doubt) = (Vec::new(), Vec::new(), Vec::new());
    for &slice in slices {
        if engine.may_have_lost(slice) || lost.contains(&slice) {
            in_doubt.push(slice);
        }
        match engine.get(slice, &keys::tables_key(), Want::Head).await {
            Ok(None) => {
                if !in_doubt.contains(&slice) {
                    in_doubt.push(slice);
                }
            }
            Ok(Some(record)) => match tables::decode(&record.head) {
                Some(entries) => found.push((slice, entries)),
                None => damaged.push(slice),
            },
            Err(EngineError::Damaged(_)) => damaged.push(slice),
            Err(error) => return Err(error),
        }
    }
    let mut sound = found.first().map(|(_, entries)| entries.clone()).unwrap_or_default();
    sound.iter_mut().for_each(|(entry, done)| *done = entry.whole.min(*done));
    in_doubt.extend(damaged.iter().filter(|slice| !in_doubt.contains(slice)).copied().collect::<Vec<_>>());
    found.extend(damaged.into_iter().map(|slice| (slice, sound.clone())));
    Ok((found, in_doubt))
}

/// What no stamp of each slice is above. Of one whose record is damaged, or may be lost, nothing is known.
async fn load_stamps<D: Disk>(engine: &Engine<D>, slices: &[SliceId]) -> Result<Vec<(SliceId, u64)>, EngineError> {
    let mut floors = Vec::new();
    for &slice in slices {
        let floor = match engine.get(slice, &keys::stamps_key(), Want::Head).await {
            _ if engine.may_have_lost(slice) => UNKNOWN,
            Ok(None) => continue,
            Ok(Some(record)) => keys::parse_stamps(&record.head).unwrap_or(UNKNOWN),
            Err(EngineError::Damaged(_)) => UNKNOWN,
            Err(error) => return Err(error),
        };
        floors.push((slice, floor));
    }
    Ok(floors)
}

/// Drops the records and the hints of all keys that begin with the table's name and a colon; with `life` only those
/// that were written in that life of the table, or in one before.
async fn drop_table<D: Disk>(
    engine: &Engine<D>,
    slices: &[SliceId],
    name: &TableName,
    life: Option<u64>,
) -> Result<(), EngineError> {
    // Of a slice that is set aside nothing is shown any more: there is nothing to drop.
    let slices: Vec<SliceId> = slices.iter().copied().filter(|slice| !engine.is_aside(*slice)).collect();
    if slices.is_empty() {
        return Ok(());
    }
    for (space, skip) in keys::TABLE_SPACES {
        let group = Group { space, skip: skip as u16, name: Bytes::from(format!("{name}:")) };
        engine.drop_group(&group, life, &slices).await?;
    }
    Ok(())
}

/// Where hints have been dropped. A slice has one mark for each owner at most.
async fn find_marks<D: Disk>(engine: &Engine<D>, slices: &[SliceId]) -> Result<Vec<(NodeId, SliceId)>, EngineError> {
    let (from, to) = keys::all_behind();
    let mut marks = Vec::new();
    for &slice in slices {
        match engine.scan(slice, &from, &to, MEMBERS_MAX).await {
            Err(EngineError::Damaged(_)) => {}
            found => marks.extend(found?.iter().filter_map(|(key, _)| Some((keys::parse_behind(key)?, slice)))),
        }
    }
    Ok(marks)
}

fn next_key(key: &Bytes) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.extend_from_slice(&[0]);
    next.freeze()
}

/// What an engine call came to.
enum Completion {
    Event(Event),
    /// The members were saved, or not.
    Saved(Result<(), BootError>),
}

struct Driver<W: World, D: Disk> {
    world: Rc<W>,
    disk: Rc<D>,
    inbox: Inbox,
    identity: Identity,
    shard: Rc<RefCell<Shard>>,
    engine: Engine<D>,
    calls: FuturesUnordered<LocalBoxFuture<'static, Completion>>,
    /// A save is under way; the list to save after it, if it has changed again.
    saving: Option<Option<Vec<Member>>>,
    /// Why the members could not be saved: the core ends.
    unsaved: Option<String>,
    stopping: bool,
    /// The shard knows that there is no space for values.
    short: bool,
    turns: Rc<Cell<u64>>,
}

impl<W: World, D: Disk> Driver<W, D> {
    async fn run(mut self) -> Result<(), EngineError> {
        let mut events = Vec::new();
        let mut effects = Vec::new();
        let mut alarm = None;
        self.take(Event::Wake, &mut effects);
        self.perform(&mut effects);
        loop {
            let deadline = self.shard.borrow().next_deadline();
            if deadline != alarm {
                alarm = deadline;
                if let Some(at) = deadline {
                    self.world.wake_at(at);
                }
            }
            if self.is_finished() {
                return self.end().await;
            }
            self.collect(&mut events).await;
            self.turns.set(self.turns.get() + 1);
            let short = self.engine.refuses_values();
            if self.short != short {
                self.short = short;
                self.take(Event::Space { short }, &mut effects);
            }
            self.shard.borrow_mut().wall_time_is(self.world.now(), self.world.wall_time());
            let mut failed = None;
            for event in events.drain(..) {
                failed = failed.or(self.failure(&event));
                if event == Event::Wake {
                    alarm = None;
                }
                self.take(event, &mut effects);
            }
            self.perform(&mut effects);
            if let Some(error) = failed {
                return Err(error);
            }
            self.world.breathe().await;
        }
    }

    /// Nothing is in hand: says farewell and closes the engine, however long its disk takes. What comes meanwhile is
    /// not left without an answer.
    async fn end(mut self) -> Result<(), EngineError> {
        let farewell = self.shard.borrow().farewell().into_iter().map(write).collect();
        let engine = self.engine.clone();
        let closed = async move {
            // Without it the next start takes new incarnations, as after a crash: a full disk must not keep a node up.
            match engine.write(farewell, Durability::Sync).await {
                Ok(()) | Err(EngineError::Full) => {}
                Err(error) => return Err(error),
            }
            engine.close().await
        };
        let mut closed = pin!(closed);
        // What is left tells of others, and nobody waits for it.
        let mut unanswered = Vec::new();
        poll_fn(|cx| {
            let closed = closed.as_mut().poll(cx);
            loop {
                while let Some(arrival) = self.inbox.pop() {
                    self.arrive(arrival, &mut unanswered);
                    unanswered.clear();
                }
                if closed.is_ready() || self.inbox.poll_arrived(cx.waker()).is_pending() {
                    return closed;
                }
            }
        })
        .await
    }

    /// Waits until something has happened, and takes what there is, up to a turn's worth.
    async fn collect(&mut self, events: &mut Vec<Event>) {
        poll_fn(|cx| {
            while events.len() < EVENTS_PER_TURN {
                match self.calls.poll_next_unpin(cx) {
                    Poll::Ready(Some(Completion::Event(event))) => events.push(event),
                    Poll::Ready(Some(Completion::Saved(result))) => self.saved(result, events),
                    Poll::Ready(None) | Poll::Pending => break,
                }
            }
            while events.len() < EVENTS_PER_TURN {
                match self.inbox.pop() {
                    Some(arrival) => self.arrive(arrival, events),
                    None => break,
                }
            }
            // What a stopping core still has in hand wakes it like any other.
            if !events.is_empty() || self.is_finished() {
                return Poll::Ready(());
            }
            self.inbox.poll_arrived(cx.waker())
        })
        .await;
    }

    /// Told to stop, and nothing is in hand.
    fn is_finished(&self) -> bool {
        self.stopping && self.calls.is_empty() && self.inbox.is_empty() && self.shard.borrow().is_idle()
    }

    fn arrive(&mut self, arrival: Arrival, events: &mut Vec<Event>) {
        match arrival {
            Arrival::Request { client, .. } | Arrival::TableChange { client, .. } if self.stopping => {
                let failure = Failure::new(ErrorCode::NotReady, Outcome::NotApplied, "the node is stopping");
                self.world.reply(client, Err(failure));
            }
            Arrival::Request { client, request } => events.push(Event::Request { client, request }),
            Arrival::TableChange { client, change, deadline } => {
                events.push(Event::TableChange { client, change, deadline });
            }
            Arrival::Message(envelope) => match self.declined(&envelope) {
                Some(answer) => self.world.send(answer),
                None => events.push(Event::Message(envelope)),
            },
            Arrival::PeerReachable(core, lane) => events.push(Event::PeerReachable(core, lane)),
            Arrival::PeerUnreachable(core, lane) => events.push(Event::PeerUnreachable(core, lane)),
            Arrival::Stranger(stranger) => events.push(Event::Stranger(stranger)),
            Arrival::Repair { key } => events.push(Event::Repair { key }),
            Arrival::Wake => events.push(Event::Wake),
            Arrival::Drain => events.push(Event::Drain),
            Arrival::Stop => {
                self.stopping = true;
                events.push(Event::Stop);
            }
        }
    }

    /// What a core of another node is told that asks for something after this one was told to stop, so that it goes on
    /// with others at once. The other cores of this node may need it to finish what they have in hand.
    fn declined(&self, envelope: &Envelope) -> Option<Envelope> {
        let own = self.identity.node;
        if !self.stopping || envelope.from.node == own {
            return None;
        }
        let Envelope { from, to, exchange, deadline, .. } = *envelope;
        let message = envelope.message.declined()?;
        Some(Envelope { from: to, to: from, exchange, deadline, message })
    }
    fn take(&mut self, event: Event, effects: &mut Vec<Effect>) {
        self.shard.borrow_mut().handle(self.world.now(), event, effects);
    }

    /// A failed storage ends the core, after the shard has told those who wait.
    fn failure(&self, event: &Event) -> Option<EngineError> {
        let failed = matches!(
            event,
            Event::Loaded { result: Err(Refusal::Failed), .. }
                | Event::Stored { result: Err(Refusal::Failed), .. }
                | Event::Scanned { result: Err(Refusal::Failed), .. }
                | Event::Folded { result: Err(Refusal::Failed), .. }
        );
        failed.then(|| {
            let unsaved = || self.unsaved.as_ref().map(|error| format!("the members cannot be saved: {error}"));
            let unknown = || format!("a call failed in an engine that goes on: {event:?}");
            let cause = self.engine.failure();
            cause.unwrap_or_else(|| EngineError::Failed(unsaved().unwrap_or_else(unknown)))
        })
    }

    fn perform(&mut self, effects: &mut Vec<Effect>) {
        for effect in effects.drain(..) {
            match effect {
                Effect::Send(envelope) => self.world.send(envelope),
                Effect::SendToSeed { seed, message } => self.world.send_to_seed(seed, message),
                Effect::Reply { client, response } => self.world.reply(client, response),
                Effect::Load { io, slice, key, depth } => {
                    let engine = self.engine.clone();
                    self.calls.push(Box::pin(async move {
                        let want = if depth == Depth::Full { Want::Full } else { Want::Head };
                        let result = engine.get(slice, &key, want).await;
                        let stored = |record: Record| Stored { head: record.head, values: record.values };
                        let result = result.map(|r| r.map(stored)).map_err(refusal);
                        Completion::Event(Event::Loaded { io, result, doubted: engine.may_have_lost(slice) })
                    }));
                }
                Effect::DropTable { io, slices, name, life } => {
                    let engine = self.engine.clone();
                    self.calls.push(Box::pin(async move {
                        let result = drop_table(&engine, &slices, &name, life).await.map_err(refusal);
                        Completion::Event(Event::Stored { io, result })
                    }));
                }
                Effect::Store { io, mut changes, durability } => {
                    let engine = self.engine.clone();
                    // What is known of tables is written to every slice. One that is set aside does not keep the
                    // others from having it.
                    if changes.iter().any(|change| engine.is_aside(change.slice)) {
                        changes.retain(|change| change.key != keys::tables_key() || !engine.is_aside(change.slice));
                    }
                    let writes = changes.into_iter().map(write).collect();
                    self.calls.push(Box::pin(async move {
                        let result = engine.write(writes, durability).await.map_err(refusal);
                        Completion::Event(Event::Stored { io, result })
                    }));
                }
                Effect::Scan { io, slice, from, to, limit } => {
                    let engine = self.engine.clone();
                    self.calls.push(Box::pin(async move {
                        let result = engine.scan(slice, &from, &to, limit).await.map_err(refusal);
                        Completion::Event(Event::Scanned { io, result })
                    }));
                }
                Effect::Fold { io, slice, spans, mut summing } => {
                    let engine = self.engine.clone();
                    self.calls.push(Box::pin(async move {
                        let mut result = Ok(());
                        for (from, to) in &spans {
                            let visit = |engine_key: &[u8], head: &[u8]| {
                                if let Some((token, key)) = keys::parse_data(engine_key) {
                                    summing.take(token, key, head);
                                }
                            };
                            if result.is_ok() {
                                result = engine.fold(slice, from, to, visit).await.map(drop);
                            }
                        }
                        let result = result.map_err(refusal).and_then(|()| summing.finish());
                        Completion::Event(Event::Folded { io, result })
                    }));
                }
                Effect::EndDoubt { io, slice } => {
                    let engine = self.engine.clone();
                    self.calls.push(Box::pin(async move {
                        let result = match engine.doubt_ended(slice).await {
                            // It stays in doubt: the next start ends that.
                            Err(EngineError::Full) => Ok(()),
                            ended => ended.map_err(refusal),
                        };
                        Completion::Event(Event::Stored { io, result })
                    }));
                }
                Effect::SaveMembers { members, generation, cluster, company } => {
                    let now = &mut self.identity.now;
                    *now = Changing { generation: now.generation.max(generation), cluster, company };
                    match &mut self.saving {
                        Some(next) => *next = Some(members),
                        None => self.save(members),
                    }
                }
            }
        }
    }

    fn save(&mut self, members: Vec<Member>) {
        self.saving = Some(None);
        let (disk, identity) = (self.disk.clone(), self.identity.clone());
        self.identity.saved = identity.now;
        self.identity.joined |= !members.is_empty();
        self.calls.push(Box::pin(async move { Completion::Saved(save_members(&*disk, &identity, &members).await) }));
    }

    /// A full disk may keep the list from being saved: the next change tries again. Anything else ends the core.
    fn saved(&mut self, result: Result<(), BootError>, events: &mut Vec<Event>) {
        if let Some(Some(members)) = self.saving.take() {
            self.save(members);
        }
        let full = |e: &std::io::Error| lacks_room(e);
        match result {
            Ok(()) => {}
            Err(BootError::Disk(e)) if full(&e) => {}
            Err(error) => {
                self.unsaved = Some(error.to_string());
                events.push(Event::Stored { io: u64::MAX, result: Err(Refusal::Failed) });
            }
        }
    }
}

fn write(change: replica::Change) -> Write {
    let replica::Change { slice, key, record } = change;
    let change = match record {
        Some((head, values)) => Change::Put { head, values },
        None => Change::Delete,
    };
    Write { slice, key, change }
}

fn refusal(error: EngineError) -> Refusal {
    match error {
        EngineError::Failed(_) | EngineError::NewerFormat { .. } => Refusal::Failed,
        EngineError::Full => Refusal::DiskFull,
        EngineError::Damaged(_) => Refusal::Damaged,
    }
}

#[cfg(test)]
mod tests;
