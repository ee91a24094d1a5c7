//! One core's whole state: a function `(state, now, event) -> effects`.
//!
//! The shard owns one of each machine and routes between them; it decides nothing that belongs to one. Numbers of I/O
//! and of exchanges carry the machine they belong to in their lowest bits, so an answer finds its way back without a
//! table.

mod clock;
mod connections;
mod event;
mod rebuild;
mod repair;
mod requests;
mod stats;
mod tables;

use connections::exists;
pub use event::{Effect, Event};
pub use stats::ShardStats;

use super::{
    clocks::{Clocks, Reference},
    coordinator::{self, Asker, Coordinator},
    health::{Health, Standing},
    hints::{self, Hints},
    membership::{self, Membership, Timing},
    message::{Certainty, Envelope, Lane, Message, NodeStanding, Refusal},
    rebuild::Rebuild,
    repair::Repair,
    replica::{Change, Leases, Replica, Step, Stored, stamps::Stamps},
    ring::{FixedMap, Placement, Ring, owns},
    stall::Stall,
    tables::{Drops, Tables},
    versions::{Context, Head, Siblings},
};
use crate::{
    limits,
    types::{
        Address, ClusterId, Conflict, Durability, Instant, Key, Member, MemberState, MemberView, NodeId, ShardBounds,
        ShardId, SliceId, Stranger, TableEntry, TableSettings,
    },
};
use requests::Passage;
use std::{net::SocketAddr, rc::Rc, time::Duration};
use tables::{Gate, TableState};

/// What an operator may set; the first five are those of the table `default` until somebody alters it. Durations are
/// those of `limits.rs` by default.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// Replicas of a key.
    pub n: u8,
    /// Answers of a get, acknowledgements of a put, by default.
    pub r: u8,
    pub w: u8,
    /// Whether stand-ins for absent replicas count.
    pub sloppy: bool,
    /// The durability of what clients write and of what is kept for other replicas.
    pub durability: Durability,
    pub value_bytes_max: usize,
    pub gossip_interval: Duration,
    pub suspect_after: Duration,
    pub down_after: Duration,
    pub request_timeout: Duration,
    /// Hinted bytes that a shard keeps for absent replicas.
    pub hint_bytes_max: u64,
    /// Each two homes of a key compare what they hold once in this time; zero: never.
    pub repair_pass: Duration,
    pub bounds: ShardBounds,
}
impl Default for Settings {
    fn default() -> Settings {
        Settings {
            n: 3,
            r: 2,
            w: 2,
            sloppy: true,
            durability: Durability::Sync,
            value_bytes_max: limits::VALUE_BYTES_MAX,
            gossip_interval: limits::GOSSIP_INTERVAL,
            suspect_after: limits::SUSPECT_AFTER,
            down_after: limits::DOWN_AFTER,
            request_timeout: limits::REQUEST_TIMEOUT,
            hint_bytes_max: limits::HINT_BYTES_MAX,
            repair_pass: limits::REPAIR_PASS,
            bounds: ShardBounds::default(),
        }
    }
}

impl Settings {
    fn table(&self) -> TableSettings {
        TableSettings {
            n: self.n,
            r: self.r,
            w: self.w,
            conflict: Conflict::Siblings,
            sloppy: self.sloppy,
            durability: self.durability,
        }
    }
}

/// All that a shard is born with.
pub struct Birth {
    pub me: Address,
    pub generation: u64,
    /// This node's own entry.
    pub member: Member,
    /// The others as last known.
    pub known: Vec<Member>,
    pub seeds: Vec<SocketAddr>,
    pub cluster: ClusterId,
    /// The cluster has had other members.
    pub company: bool,
    /// Serves no sooner than after this: somebody may know this address as another node's.
    pub listens_first: Duration,
    pub settings: Settings,
    pub leases: Leases,
    /// Hints that lie in the engine: owner, count, bytes.
    pub hints: Vec<(NodeId, u64, u64)>,
    /// What no stamp of each slice is above, as its record says.
    pub stamps: Vec<(SliceId, u64)>,
    /// What the slices' records say of tables: each entry, and the latest drop carried out.
    pub tables: Vec<(SliceId, Vec<(TableEntry, u64)>)>,
    /// Slices whose record of the tables may be lost.
    pub tables_in_doubt: Vec<SliceId>,
    /// Where hints have been dropped: owners lack something of these slices.
    pub behind: Vec<(NodeId, SliceId)>,
    /// Slices that may have lost records.
    pub doubted: Vec<SliceId>,
    /// The data directory is a copy, or an older state, of one that has been used elsewhere or later.
    pub copied: bool,
    pub seed: u64,
}

/// Whose task or read it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Origin {
    Operation(u64),
    Remote {
        to: Address,
        exchange: u64,
        deadline: Instant,
    },
    Delivery(u64),
    /// A key that the repair machine has in hand.
    Repair(u64),
    Nobody,
}

/// A read done for another shard.
struct Fetch {
    to: Address,
    exchange: u64,
    key: Key,
    deadline: Instant,
    full: bool,
}

/// All that this node holds of a key of which it is no home replica, while it is being read.
struct Gather {
    reader: Reader,
    conflict: Conflict,
    loads: usize,
    found: Result<Siblings, Refusal>,
    doubted: bool,
}
/// What is being read for the hints machine.
struct Delivering {
    key: Key,
    /// The latest drop of its table when it was read.
    epoch: u64,
    /// The own record, not a parked state.
    record: bool,
}
/// The one that wants it.
#[derive(Clone, Copy)]
enum Reader {
    Operation(u64),
    Fetch(u64),
}

/// See the module.
pub struct Shard {
    me: Address,
    settings: Settings,
    placement: Placement,
    members: Vec<Member>,
    ring: Rc<Ring>,
    /// Routed around, as shard 0 sees it.
    avoided: Vec<NodeId>,
    health: Health,
    coordinator: Coordinator,
    replica: Replica<Origin>,
    hints: Hints,
    rebuild: Rebuild,
    repair: Repair,
    classes: repair::KnownClasses,
    /// Limits of the scans that the repair machine has asked for.
    repair_scans: FixedMap<u64, usize>,
    tables: TableState,
    /// What the hints machine has asked for.
    delivering: FixedMap<u64, Delivering>,
    /// On shard 0 only.
    membership: Option<Membership>,
    clock: clock::ClockState,
    /// When it was last told anything.
    last: Instant,
    fetches: FixedMap<u64, Fetch>,
    gathers: FixedMap<u64, Gather>,
    /// The number of the next fetch or gather.
    next_fetch: u64,
    random: fastrand::Rng,
    expired_messages: u64,
    copied: bool,
    standing: NodeStanding,
    /// Until the node is settled and new leases, if it needs some, are stored.
    beginning: bool,
    stall: Stall,
}

/// Lowest bits of I/O numbers.
mod io_tag {
    pub const BITS: u32 = 3;
    pub const MASK: u64 = (1 << BITS) - 1;
    pub const REPLICA: u64 = 0;
    pub const COORDINATOR: u64 = 1;
    pub const FETCH: u64 = 2;
    pub const HINTS: u64 = 3;
    pub const GATHER: u64 = 4;
    pub const TABLES: u64 = 5;
    pub const REPAIR: u64 = 6;
}
/// Lowest bits of exchange numbers.
mod exchange_tag {
    pub const BITS: u32 = 3;
    pub const COORDINATOR: u64 = 0;
    pub const HINTS: u64 = 1;
    pub const GOSSIP: u64 = 2;
    pub const REBUILD: u64 = 3;
    pub const REPAIR: u64 = 4;
}

impl Shard {
    pub fn new(birth: Birth, now: Instant) -> Shard {
        let Birth {
            me,
            generation,
            member,
            known,
            seeds,
            cluster,
            company,
            listens_first,
            settings,
            leases,
            hints,
            behind,
            doubted,
            copied,
            stamps,
            tables,
            tables_in_doubt,
            seed,
        } = birth;
        let placement = Placement::new(&member.tokens, member.slices, member.shards);
        let (slices, shards) = (placement.slices_of(me.shard), placement.shards());
        let timing = Timing {
            interval: settings.gossip_interval,
            suspect_after: settings.suspect_after,
            down_after: settings.down_after,
        };
        let mut random =
            fastrand::Rng::with_seed(xxhash_rust::xxh3::xxh3_64_with_seed(&generation.to_le_bytes(), seed));
        let first = random.u64(..) >> 12;
        let known_tables =
            tables.iter().flat_map(|(_, entries)| entries.iter().map(|(entry, _)| entry.clone())).collect();
        // Whoever is alone has missed nothing. A newcomer has no record yet.
        let alone = seeds.is_empty() && !known.iter().any(|member| owns(member.state));
        let certainty = match (tables_in_doubt.is_empty(), alone) {
            (false, _) => Certainty::Lost,
            (true, false) => Certainty::Unheard,
            (true, true) => Certainty::Sure,
        };
        let members: Vec<Member> = std::iter::once(member.clone()).chain(known.iter().cloned()).collect();
        let membership = (me.shard.0 == 0).then(|| {
            let membership = Membership::new(member, known, seeds, timing, seed ^ 0x60551b, now);
            let membership = membership.of_cluster(cluster, company);
            // What has never been started before is remembered by nobody.
            let membership = if generation > 1 { membership.returning(now, copied) } else { membership };
            if listens_first.is_zero() { membership } else { membership.listening_until(now + listens_first) }
        });
        let standing = NodeStanding { cluster, ..NodeStanding::default() };
        let mut replica = Replica::new(leases, Stamps::new(me.node, stamps).of_core(me.shard), generation)
            .with_bounds(settings.bounds);
        replica.members_are(members.iter().map(|member| (member.id, member.generation)));
        let mut registry = Tables::new(settings.table(), known_tables, certainty);
        if copied {
            registry.distrust_own();
        }
        Shard {
            me,
            placement,
            ring: Rc::new(Ring::new(&members)),
            members,
            avoided: Vec::new(),
            health: Health::default(),
            coordinator: Coordinator::new(me, first).with_bounds(settings.bounds),
            replica,
            tables: TableState::new(registry, Drops::new(slices.clone(), &tables), tables_in_doubt),
            delivering: FixedMap::default(),
            hints: Hints::new(slices, hints::Found { hints, marks: behind }, settings.hint_bytes_max, first, now),
            repair: Repair::new(me, settings.repair_pass, shards, first, now).doubting(doubted),
            classes: repair::KnownClasses::new(settings.table()),
            repair_scans: FixedMap::default(),
            settings,
            rebuild: Rebuild::new(first),
            membership,
            clock: clock::ClockState::new(now),
            last: now,
            fetches: FixedMap::default(),
            gathers: FixedMap::default(),
            next_fetch: 0,
            random,
            expired_messages: 0,
            copied,
            standing,
            beginning: true,
            stall: Stall::default(),
        }
    }

    // ---- what others look at -----------------------------------------------------------------------------------

    pub fn address(&self) -> Address {
        self.me
    }
    pub fn slices(&self) -> &[SliceId] {
        self.tables.drops.slices()
    }
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
    /// The tables that this shard knows.
    pub fn tables(&self) -> &Tables {
        &self.tables.registry
    }
    pub fn ring(&self) -> &Rc<Ring> {
        &self.ring
    }
    /// Whether requests are served: it is a member, knows enough of its own past, and which tables there are.
    pub fn ready(&self) -> bool {
        self.joined() && self.standing.settled && !self.beginning && !self.tables.registry.in_doubt()
    }
    fn joined(&self) -> bool {
        self.ring.contains(self.me.node)
    }
    pub fn cluster(&self) -> ClusterId {
        self.standing.cluster
    }
    /// Nodes of other clusters that this one has met.
    pub fn strangers(&self) -> &[Stranger] {
        &self.standing.strangers
    }
    pub fn members(&self) -> &[Member] {
        &self.members
    }
    pub fn view(&self, now: Instant, member: &Member) -> MemberView {
        let said = match member.state {
            MemberState::Joining => MemberView::Joining,
            MemberState::Up => MemberView::Up,
            MemberState::Leaving => MemberView::Leaving,
            MemberState::Left => MemberView::Left,
            MemberState::Removed => MemberView::Removed,
        };
        let view = self.membership.as_ref().and_then(|m| m.view(now, member.id)).unwrap_or(said);
        let missed = member.id != self.me.node && self.health.misses(now, member.id, member.shards);
        if view.healthy() && missed { MemberView::Suspect } else { view }
    }
    /// Nothing of a client's or another shard's is in hand.
    pub fn is_idle(&self) -> bool {
        let machines = self.coordinator.is_empty() && self.replica.is_empty() && self.tables.is_idle();
        machines && self.fetches.is_empty() && self.gathers.is_empty()
    }
    /// What to store before an orderly stop, when the shard is idle.
    pub fn farewell(&self) -> Vec<Change> {
        self.replica.clean_leases()
    }
    /// When [`Event::Wake`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        let membership = self.membership.as_ref().map(|m| m.next_deadline());
        let held = self.tables.next_deadline();
        let (rebuild, repair) = (self.rebuild.next_deadline(), self.repair.next_deadline());
        let [requests, hints] = [self.coordinator.next_deadline(), self.hints.next_deadline()];
        let own = [requests, hints, rebuild, repair, self.stall.next_deadline()];
        own.into_iter().chain([membership, held, self.clock.next_deadline()]).flatten().min()
    }
    /// Of a core, for what travels by this lane.
    fn standing(&self, now: Instant, core: Address, lane: Lane) -> Standing {
        if core.node == self.me.node { Standing::Usable } else { self.health.standing(now, core, lane) }
    }

    // ---- events ------------------------------------------------------------------------------------------------

    /// Takes one event and appends what is to be done.
    pub fn handle(&mut self, now: Instant, event: Event, out: &mut Vec<Effect>) {
        if now.since(self.last) >= limits::PAUSE_NOTICED {
            self.health.stood_still(now);
            self.stall.stood_still(now);
        }
        self.last = now;
        self.stall.look(now);
        if matches!(event, Event::Stored { .. }) {
            self.stall.answered(now);
        }
        let before = out.len();
        if let Some(membership) = &mut self.membership {
            membership.moment(now);
        }
        match event {
            Event::Request { client, request } => {
                self.request(now, Asker::Client(client), request, Passage::default(), out)
            }
            Event::TableChange { client, change, deadline } => self.change_table(client, change, (now, deadline), out),
            Event::Message(envelope) => self.message(now, envelope, out),
            Event::PeerReachable(core, lane) => self.connection(now, core, lane, true, out),
            Event::PeerUnreachable(core, lane) => self.connection(now, core, lane, false, out),
            Event::Drain => self.gossip(now, out, |m, acts| m.part(acts)),
            Event::Stranger(stranger) => self.gossip(now, out, |m, _| m.met_stranger(stranger)),
            Event::Wake => self.wake(now, out),
            Event::Repair { key } => self.repair.wish(now, key.as_ref()),
            Event::Stop => {
                self.repair.stop();
                self.wake(now, out);
            }
            Event::Space { short } => self.replica.short_of_space = short,
            Event::Loaded { io, result, doubted } => self.loaded(now, io, (result, doubted), out),
            Event::Stored { io, result } if io & io_tag::MASK == io_tag::TABLES => {
                self.tables_stored(now, io >> io_tag::BITS, result, out);
            }
            // Of a mark that goes: if it stays, the range is swept once more some day. So with a doubt.
            Event::Stored { io, .. } if matches!(io & io_tag::MASK, io_tag::HINTS | io_tag::REPAIR) => {}
            Event::Stored { io, result } => {
                let mut steps = Vec::new();
                self.replica.stored(now, io >> io_tag::BITS, result, &mut steps);
                self.run_steps(now, steps, out);
            }
            Event::Scanned { io, result } if io & io_tag::MASK == io_tag::REPAIR => {
                self.repair_scanned(now, io >> io_tag::BITS, result, out);
            }
            Event::Folded { io, result } => self.with_repair(now, out, |repair, view, acts| {
                repair.folded(now, io >> io_tag::BITS, result, view, acts);
            }),
            Event::Scanned { io, result } => {
                self.with_hints(now, out, |hints, view, acts| {
                    hints.scanned(now, io >> io_tag::BITS, result, view, acts);
                });
            }
        }
        self.drive_drops(now, out);
        self.beginning &= !self.standing.settled || self.replica.is_renewing();
        let writes = |effect: &&Effect| matches!(effect, Effect::Store { .. } | Effect::DropTable { .. });
        let begun = out[before..].iter().filter(writes).count();
        if begun > 0 {
            self.stall.begun(now, begun as u64);
        }
    }

    fn wake(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let mut acts = Vec::new();
        self.coordinator.expire(now, self.stall.lasts(now), &mut acts);
        self.run_acts(now, acts, out);
        self.tick_hints(now, out);
        self.expire_held(now, out);
        self.stop_waiting_for_the_time(now, out);
        self.ask_for_tables(now, out);
        self.rebuild.expire(now);
        if self.repair.next_deadline().is_some_and(|due| due <= now) {
            self.with_repair(now, out, |repair, view, acts| repair.tick(now, view, acts));
        }
        if let Some(membership) = &mut self.membership
            && membership.next_deadline() <= now
        {
            let mut acts = Vec::new();
            membership.tick(now, &mut acts);
            self.run_gossip(now, acts, out);
            self.tell_standing(now, Vec::new(), out);
            self.greet_cores(now, out);
        }
    }

    fn message(&mut self, now: Instant, envelope: Envelope, out: &mut Vec<Effect>) {
        let Envelope { from, exchange, deadline, message, .. } = envelope;
        if now > deadline {
            self.expired_messages += 1;
            return;
        }
        let removed = |m: &&Member| m.id == from.node && m.state == MemberState::Removed;
        if self.members.iter().any(|m| removed(&m)) {
            return;
        }
        if from.node != self.me.node {
            self.health.heard(now, from);
        }
        match message {
            Message::Forward { request, hops, word, stamp } => {
                let unheard = word.is_said() && word.adds_to(&self.tables.registry.word(request.key.as_bytes()));
                if unheard && self.ready() {
                    let message = Message::Forward { request, hops, word, stamp };
                    let waiting = Envelope { from, to: self.me, exchange, deadline, message };
                    return self.wait_for_word(now, waiting, out);
                }
                let request = super::message::Request { deadline: request.deadline.min(deadline), ..request };
                let asker = Asker::Shard { address: from, exchange, takes_news: word.is_said() };
                let word = word.is_said().then_some(word);
                self.request(now, asker, request, Passage { hops, stamp, word }, out);
            }
            Message::Replicate { key, siblings, purpose, word, fresh } => {
                let refused = match self.gate_state(&key, word, &siblings.head) {
                    Gate::Open => {
                        let origin = Origin::Remote { to: from, exchange, deadline };
                        return self.take_replica(now, origin, (key, siblings, purpose, fresh), deadline, out);
                    }
                    Gate::Wait => {
                        let message = Message::Replicate { key, siblings, purpose, word, fresh };
                        let waiting = Envelope { from, to: self.me, exchange, deadline, message };
                        return self.wait_for_word(now, waiting, out);
                    }
                    Gate::Outdated => self.news_of(&key),
                    Gate::Late => None,
                };
                let message = refused.unwrap_or(Message::Replicated(Err(Refusal::NotMine)));
                out.push(Effect::Send(self.envelope(from, exchange, deadline, message)));
            }
            Message::Fetch { key, depth, word } => {
                let refused = match self.gate(&key, word) {
                    Gate::Open => return self.fetch((from, exchange), key, depth, deadline, out),
                    Gate::Wait => {
                        let message = Message::Fetch { key, depth, word };
                        let waiting = Envelope { from, to: self.me, exchange, deadline, message };
                        return self.wait_for_word(now, waiting, out);
                    }
                    Gate::Outdated => self.news_of(&key),
                    Gate::Late => None,
                };
                let message = refused.unwrap_or(Message::Fetched(Err(Refusal::NotMine)));
                out.push(Effect::Send(self.envelope(from, exchange, deadline, message)));
            }
            Message::TableNews(news) => self.table_news(now, from, exchange, news, out),
            answer @ (Message::Replicated(_)
            | Message::Fetched(_)
            | Message::Forwarded(_)
            | Message::Summed(_)
            | Message::Keyed(_)) => self.answered(now, exchange, answer, out),
            asked @ (Message::Sums { .. } | Message::Keys { .. } | Message::Agreed { .. }) => {
                self.repair_asked(now, (from, exchange, deadline), asked, out);
            }
            Message::GossipDigest { cluster, entries } => self.gossip(now, out, |m, acts| {
                m.digest_arrived(now, from.node, cluster, &entries, acts);
            }),
            Message::GossipDelta { cluster, news, wanted, group } => self.gossip(now, out, |m, acts| {
                m.delta_arrived(now, from.node, cluster, (news, &wanted, &group), acts);
            }),
            Message::GossipNews { cluster, news } => self.gossip(now, out, |m, acts| {
                m.news_arrived(now, from.node, cluster, news, acts);
            }),
            Message::Returned { cluster, member } => {
                self.gossip(now, out, |m, acts| m.returned_arrived(now, from.node, cluster, member, acts));
                self.ask_who_is_there(now, from.node, out);
            }
            Message::Remembered { cluster, entry } => self.gossip(now, out, |m, acts| {
                m.remembered_arrived(now, from.node, cluster, entry, acts);
            }),
            Message::Parting { generation } => self.part_told(now, from.node, generation, out),
            Message::Tables(words) => self.tables_told(now, from, words, out),
            Message::Clock { asked, wall } => self.clock_told(now, (from, exchange), (asked, wall), out),
            Message::Reference { earliest, latest } if from.node == self.me.node => {
                self.set_reference(now, Reference { earliest, latest }, out);
            }
            Message::Reference { .. } => {}
            Message::View { members, avoided, standing } => {
                if from.node != self.me.node {
                    return;
                }
                if standing.signs > self.standing.signs {
                    self.standing.signs = standing.signs;
                    self.doubt_all(now, out);
                }
                if from.shard.0 == 0 {
                    self.heed(&avoided, &standing.parting);
                    self.avoided = avoided;
                    if !members.is_empty() {
                        self.set_members(members);
                    }
                    self.standing = NodeStanding { signs: self.standing.signs, ..standing };
                } else {
                    self.tell_standing(now, Vec::new(), out);
                }
            }
        }
    }

    fn answered(&mut self, now: Instant, exchange: u64, message: Message, out: &mut Vec<Effect>) {
        self.meet_stamps(&message);
        let number = exchange >> exchange_tag::BITS;
        match (exchange & ((1 << exchange_tag::BITS) - 1), message) {
            (exchange_tag::COORDINATOR, message) => {
                let mut acts = Vec::new();
                self.coordinator.answered(now, number, message, &mut acts);
                self.run_acts(now, acts, out);
            }
            (exchange_tag::HINTS, Message::Replicated(result)) => {
                self.with_hints(now, out, |hints, view, acts| hints.replicated(now, number, result, view, acts));
            }
            (exchange_tag::HINTS, Message::Fetched(result)) => {
                self.with_hints(now, out, |hints, view, acts| hints.fetched(now, number, result, view, acts));
            }
            (exchange_tag::REBUILD, Message::Fetched(result)) => {
                let mut acts = Vec::new();
                self.rebuild.answered(number, result, &mut acts);
                self.run_rebuild(now, acts, out);
            }
            (exchange_tag::REPAIR, message) => self.with_repair(now, out, |repair, view, acts| match message {
                Message::Summed(result) => repair.summed(now, number, result, view, acts),
                Message::Keyed(result) => repair.keyed(now, number, result, acts),
                Message::Fetched(result) => repair.fetched(now, number, result, view, acts),
                Message::Replicated(result) => repair.replicated(now, number, result, view, acts),
                _ => {}
            }),
            _ => {}
        }
    }

    fn loaded(
        &mut self,
        now: Instant,
        io: u64,
        (result, doubted): (Result<Option<Stored>, Refusal>, bool),
        out: &mut Vec<Effect>,
    ) {
        let number = io >> io_tag::BITS;
        if let Err(Refusal::Damaged) = &result {
            self.met_damage(now, io & io_tag::MASK, number, out);
        }
        match io & io_tag::MASK {
            io_tag::REPLICA => {
                let mut steps = Vec::new();
                self.replica.loaded(now, number, result, &mut steps);
                self.run_steps(now, steps, out);
            }
            io_tag::COORDINATOR => {
                let mut acts = Vec::new();
                self.coordinator.loaded(now, number, (result.and_then(siblings), doubted), &mut acts);
                self.run_acts(now, acts, out);
            }
            io_tag::FETCH => self.fetched(now, number, (result.and_then(siblings), doubted), out),
            io_tag::GATHER => self.gathered(now, number, (result, doubted), out),
            io_tag::REPAIR => self.with_repair(now, out, |repair, view, acts| {
                repair.loaded(now, number, result.and_then(siblings), view, acts);
            }),
            _ => {
                let result = self.still_owed(number, result);
                self.with_hints(now, out, |hints, view, acts| hints.loaded(now, number, result, view, acts));
            }
        }
    }

    // ---- gossip ------------------------------------------------------------------------------------------------

    fn gossip(
        &mut self,
        now: Instant,
        out: &mut Vec<Effect>,
        step: impl FnOnce(&mut Membership, &mut Vec<membership::Act>),
    ) {
        if let Some(membership) = &mut self.membership {
            let mut acts = Vec::new();
            step(membership, &mut acts);
            self.run_gossip(now, acts, out);
        }
    }

    fn run_gossip(&mut self, now: Instant, acts: Vec<membership::Act>, out: &mut Vec<Effect>) {
        let Some(membership) = &mut self.membership else { return };
        let (changed, generation) = (membership.take_changed(), membership.generation());
        let health = &self.health;
        let lost = |m: &Member| m.id != self.me.node && health.has_lost(m.id, m.shards);
        let doubt = membership.take_doubt();
        let mut avoided = membership.avoided(now);
        avoided.extend(membership.members().filter(|m| lost(m)).map(|m| m.id));
        avoided.sort_unstable();
        avoided.dedup();
        let (cluster, company) = (membership.cluster(), membership.had_company());
        let standing = NodeStanding {
            cluster,
            settled: membership.settled(),
            signs: self.standing.signs + u32::from(doubt),
            strangers: membership.strangers().to_vec(),
            parting: membership.parting(now),
        };
        // The new view comes first: what is said may go to a member that is new in it.
        if changed || avoided != self.avoided || standing != self.standing {
            // Tokens take space: the list goes to the other shards only when it is another.
            let members: Vec<Member> = membership.members().filter(|_| changed).cloned().collect();
            self.heed(&avoided, &standing.parting);
            (self.avoided, self.standing) = (avoided, standing);
            if changed {
                let others = members.iter().filter(|m| m.id != self.me.node).cloned().collect();
                out.push(Effect::SaveMembers { members: others, generation, cluster, company });
                self.set_members(members.clone());
            }
            self.tell_standing(now, members, out);
        }
        if doubt {
            self.doubt_all(now, out);
        }
        for act in acts {
            match act {
                membership::Act::Say { to, message } => {
                    let to = Address { node: to, shard: ShardId(0) };
                    if matches!(message, Message::GossipDigest { .. }) {
                        self.greet(now, to, out);
                        self.ask_the_time(now, to, out);
                    }
                    let deadline = now + limits::BACKGROUND_TIMEOUT;
                    out.push(Effect::Send(self.envelope(to, exchange_tag::GOSSIP, deadline, message)));
                }
                membership::Act::SayToSeed { seed, message } => out.push(Effect::SendToSeed { seed, message }),
            }
        }
    }

    /// Tells the other shards of the node how it stands, and of the members if they are to hear of them: shard 0 all of
    /// them, any other one shard 0.
    fn tell_standing(&mut self, now: Instant, members: Vec<Member>, out: &mut Vec<Effect>) {
        let others = if self.me.shard.0 == 0 { 1..self.placement.shards() } else { 0..1 };
        for shard in others {
            let (avoided, standing) = (self.avoided.clone(), self.standing.clone());
            let message = Message::View { members: members.clone(), avoided, standing };
            let to = Address { node: self.me.node, shard: ShardId(shard) };
            let deadline = now + limits::BACKGROUND_TIMEOUT;
            out.push(Effect::Send(self.envelope(to, exchange_tag::GOSSIP, deadline, message)));
        }
    }
    /// Others may hold dots of this node that it does not remember: all slices go on under new incarnations, far away.
    fn doubt_all(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let mut steps = Vec::new();
        self.replica.doubt_all(&mut steps);
        self.run_steps(now, steps, out);
    }
    /// This shard has met a sign that the node's disk is an older state or a copy.
    fn meet_sign(&mut self, now: Instant, out: &mut Vec<Effect>) {
        self.standing.signs += 1;
        self.doubt_all(now, out);
        self.tell_standing(now, Vec::new(), out);
    }

    fn set_members(&mut self, members: Vec<Member>) {
        self.ring = Rc::new(Ring::new(&members));
        self.replica.members_are(members.iter().map(|member| (member.id, member.generation)));
        self.members = members;
        self.health.keep(|core| exists(&self.members, core));
    }

    fn envelope(&self, to: Address, exchange: u64, deadline: Instant, message: Message) -> Envelope {
        Envelope { from: self.me, to, exchange, deadline, message }
    }
}

/// A record of the own copy as siblings.
fn siblings(stored: Option<Stored>) -> Result<Siblings, Refusal> {
    match stored {
        None => Ok(Siblings::default()),
        Some(stored) => {
            let head = Head::decode(&stored.head).map_err(|_| Refusal::Damaged)?;
            Ok(Siblings { head, values: stored.values })
        }
    }
}
