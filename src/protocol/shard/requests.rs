//! Requests and the traffic between replicas, routed to the machines and back.

use super::{
    Asker, Context, Effect, Envelope, Fetch, Gather, Message, Origin, Reader, Refusal, Shard, Standing, Step, Stored,
    coordinator, exchange_tag,
    hints::{self, Hints, View},
    io_tag, siblings,
};
use crate::{
    limits,
    protocol::{
        coordinator::{Home, Plan, Route, plan::needed},
        message::{Depth, Fetched, Lane, Operation, Purpose, Request},
        replica::{
            Change, Owed, Rejection, Subject, Work,
            keys::{HintForm, HintHead, HintKind, behind_key, data_key, hint_key, user_key},
        },
        ring::Nodes,
        versions::{Dot, Siblings, Values},
    },
    types::{
        Address, Conflict, Durability, ErrorCode, Failure, Instant, Key, Level, NodeId, Outcome, SliceId,
        TableSettings, TableWord, Token, WriteId,
    },
};
use bytes::Bytes;

/// How a request came here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Passage {
    /// Shards that have passed it on.
    pub hops: u8,
    /// Where the last write wins: the stamp of the node that took it from its client, if that is known.
    pub stamp: Option<Dot>,
    /// What the shard that has passed it on, and takes news of tables, went by of the key's table.
    pub word: Option<TableWord>,
}

impl Shard {
    // ---- requests ----------------------------------------------------------------------------------------------

    pub(super) fn request(
        &mut self,
        now: Instant,
        asker: Asker,
        mut request: Request,
        passage: Passage,
        out: &mut Vec<Effect>,
    ) {
        request.deadline = request.deadline.min(now + limits::REQUEST_TIMEOUT_MAX);
        let hops = passage.hops;
        // It may be the late twin of a write that is acknowledged, and belonged to the table `default` or to an earlier
        // life: whoever passed it on knows whether it is still to be done. It may have waited here for a drop, so that
        // this is asked each time.
        if let (Asker::Shard { address, exchange, .. }, Some(word)) = (asker, passage.word)
            && self.tables.registry.word(request.key.as_bytes()).adds_to(&word)
            && let Some(news) = self.news_of(&request.key)
        {
            self.forget_begun(asker);
            return out.push(Effect::Send(self.envelope(address, exchange, request.deadline, news)));
        }
        if let Err(failure) = self.check(&request, hops) {
            return self.reply(asker, Err(failure), out);
        }
        if let Operation::Put { write_id, .. } | Operation::Delete { write_id, .. } = &mut request.operation
            && *write_id == WriteId(0)
        {
            // An identity of its own, so that forwarding it twice makes one event.
            *write_id = WriteId(self.random.u64(1..));
        }
        if self.is_dropping(&request.key) {
            return self.wait_for_table(asker, request, passage, out);
        }
        let token = request.key.token();
        let table = self.tables.registry.of(request.key.as_bytes());
        let stamped = table.conflict == Conflict::LastWriteWins && request.operation.is_write();
        // Passed on as it is, for another to stamp.
        let unheard = stamped && passage.stamp.is_none() && self.is_unheard();
        if stamped && passage.stamp.is_none() {
            if self.awaits_the_time(now) {
                return self.wait_for_table(asker, request, passage, out);
            }
            if let Some(failure) = self.wrong_clock() {
                return self.reply(asker, Err(failure), out);
            }
        }
        let homes = self.ring.walk(token, usize::from(table.n));
        let mine = self.placement.shard_of(self.placement.slice_of(token)) == self.me.shard;
        let mut acts = Vec::new();
        let mut targets = self.targets(now, &request, sloppy(&request, table), &homes);
        if unheard {
            targets.retain(|target| target.node != self.me.node);
            if hops > 0 || targets.is_empty() {
                let failure = self.unheard_clock();
                return self.reply(asker, Err(failure), out);
            }
        }
        // A stand-in that was asked as one does not pass the request on.
        let stands_in = !homes.contains(&self.me.node)
            && !targets.iter().any(|t| homes.contains(&t.node))
            && (hops > 0 || targets.first().is_some_and(|t| t.node == self.me.node))
            && sloppy(&request, table);
        if targets.is_empty() && !homes.contains(&self.me.node) {
            let failure =
                Failure::new(ErrorCode::QuorumUnavailable, Outcome::NotApplied, "no replica of the key can be reached");
            let usual = if request.operation.is_write() { table.w } else { table.r };
            let failure = match needed(request.consistency, usize::from(usual), usize::from(table.n), homes.len()) {
                Ok(needed) => failure.counts(0, needed),
                Err(failure) => failure,
            };
            return self.reply(asker, Err(failure), out);
        }
        let from = match asker {
            Asker::Client(_) => self.me.node,
            Asker::Shard { address, .. } => address.node,
        };
        let others = targets.iter().filter(|t| t.node != self.me.node && t.node != from);
        let others: Vec<Address> = others.copied().collect();
        let at_home = mine && homes.contains(&self.me.node);
        let unfit = at_home && !others.is_empty() && self.is_unfit(now, &request, hops);
        if mine && !unfit && !unheard && (homes.contains(&self.me.node) || stands_in) {
            match self.plan(now, &request, token, stands_in, table) {
                Ok(plan) => self.coordinator.begin(now, asker, (request, passage.stamp, hops), plan, &mut acts),
                Err(failure) => return self.reply(asker, Err(failure), out),
            }
        } else if hops > 1 && !unfit {
            let failure =
                Failure::new(ErrorCode::NotReady, Outcome::NotApplied, "this shard does not own the key any more");
            return self.reply(asker, Err(failure), out);
        } else {
            // Where the last write wins, a delete is later than all there is, with a context or without.
            let asks = matches!(request.operation, Operation::Delete { context: None, .. })
                && table.conflict == Conflict::Siblings;
            let word = self.word(&request.key);
            // The first node stamps it, so that it is the same event wherever it is carried out.
            let stamp = match passage.stamp {
                None if stamped && hops == 0 && !unheard => match self.first_stamp(&request) {
                    Ok(stamp) => Some(stamp),
                    Err(failure) => return self.reply(asker, Err(failure), out),
                },
                stamp => stamp,
            };
            let targets = if unfit { others } else { targets };
            let (targets, hops, conflict) = (targets.into(), hops + 1, table.conflict);
            let route = Route { targets, hops, word, asks, stamp, conflict };
            self.coordinator.forward(now, asker, request, route, &mut acts);
        }
        self.run_acts(now, acts, out);
    }

    /// Whether the own disk would not take this write, and another home replica does better. Whoever has forwarded it
    /// here is told that there is no space; that a disk hangs would come too late. It is not sent round and round.
    fn is_unfit(&self, now: Instant, request: &Request, hops: u8) -> bool {
        let needs_space = matches!(request.operation, Operation::Put { .. }) && self.replica.short_of_space;
        request.operation.is_write() && ((needs_space && hops == 0) || (self.stall.lasts(now) && hops < 2))
    }

    /// The cores that may coordinate: the own node first, since it saves a hop over the network, then the healthy homes
    /// in order, then those that are stopping, then those that are back and not trusted yet. If there is none, and
    /// stand-ins count, the healthy nodes after them.
    fn targets(&self, now: Instant, request: &Request, sloppy: bool, homes: &[NodeId]) -> Vec<Address> {
        let (token, lane) = (request.key.token(), Lane::of(request.operation.bytes()));
        let homes: Nodes = homes.iter().copied().collect();
        let cores: Vec<Address> = homes.iter().filter_map(|node| self.ring.address(*node, token)).collect();
        let own = cores.iter().filter(|core| core.node == self.me.node);
        let with = |wanted: Standing| {
            let others = cores.iter().filter(|core| core.node != self.me.node);
            others.filter(move |core| self.standing(now, **core, lane) == wanted)
        };
        let targets: Vec<Address> = own
            .chain([Standing::Usable, Standing::Parting, Standing::Doubtful].into_iter().flat_map(with))
            .copied()
            .collect();
        if targets.is_empty() && sloppy { self.spares(now, token, homes.len(), lane) } else { targets }
    }
    /// Healthy nodes clockwise after the homes, this one perhaps among them: their cores. Those that are stopping come
    /// last.
    fn spares(&self, now: Instant, token: Token, homes: usize, lane: Lane) -> Vec<Address> {
        let all = self.ring.walk(token, self.ring.node_count().min(homes + limits::REPLICAS_MAX));
        let after = all.iter().skip(homes).filter_map(|node| self.ring.address(*node, token));
        let after: smallvec::SmallVec<[Address; 8]> = after.collect();
        let with = |wanted| after.iter().copied().filter(move |core| self.standing(now, *core, lane) == wanted);
        with(Standing::Usable).chain(with(Standing::Parting)).collect()
    }

    fn check(&self, request: &Request, hops: u8) -> Result<(), Failure> {
        if !self.ready() {
            let detail = match self.joined() {
                true => "the node asks the others which tables there are",
                false => "the node has not joined its cluster yet",
            };
            return Err(Failure::new(ErrorCode::NotReady, Outcome::NotApplied, detail));
        }
        let bytes = request.operation.bytes();
        // By the bound of the node that the client asks: what one may write does not depend on who else is a replica.
        if hops == 0 && bytes > self.settings.value_bytes_max {
            let detail = format!("the value has {bytes} bytes, at most {} are stored", self.settings.value_bytes_max);
            return Err(Failure::new(ErrorCode::TooLarge, Outcome::NotApplied, detail));
        }
        Ok(())
    }

    /// The participants of a request, as of now.
    fn plan(
        &self,
        now: Instant,
        request: &Request,
        token: Token,
        stands_in: bool,
        table: TableSettings,
    ) -> Result<Plan, Failure> {
        let n = usize::from(table.n);
        let is_write = request.operation.is_write();
        let sloppy = sloppy(request, table);
        let nodes = self.ring.walk(token, n);
        let usual = if is_write { table.w } else { table.r };
        let needed = needed(request.consistency, usize::from(usual), n, nodes.len())?;
        let lane = Lane::of(request.operation.bytes());
        let mut spares = if sloppy { self.spares(now, token, n, lane) } else { Vec::new() };
        spares.retain(|core| core.node != self.me.node);
        let cores: smallvec::SmallVec<[Address; 4]> =
            nodes.iter().filter_map(|node| self.ring.address(*node, token)).collect();
        let standings: smallvec::SmallVec<[Standing; 4]> =
            cores.iter().map(|core| self.standing(now, *core, lane)).collect();
        // Those that are not trusted yet are asked before a request fails; a read prefers them to stand-ins. One that
        // is stopping is to have what is written, and is read from when the others do not suffice.
        let rest = usize::from(stands_in) + if is_write { spares.len() } else { 0 };
        let suffice = |worst: &Standing| standings.iter().filter(|s| *s <= worst).count() + rest >= needed;
        let best = if is_write { Standing::Parting } else { Standing::Usable };
        let worst = [best, Standing::Parting].into_iter().find(suffice).unwrap_or(Standing::Doubtful);
        let home = |(core, standing): (&Address, &Standing)| Home { address: *core, healthy: *standing <= worst };
        let homes = cores.iter().zip(&standings).map(home).collect();
        let spares = spares.into();
        let (conflict, word) = (table.conflict, self.word(&request.key));
        Ok(Plan { n, homes, spares, sloppy, needed, stands_in, conflict, word })
    }

    pub(super) fn reply(&mut self, asker: Asker, response: super::super::message::Response, out: &mut Vec<Effect>) {
        let response = match response {
            Err(failure) => Err(self.judge_begun(asker, failure)),
            Ok(answer) => {
                self.forget_begun(asker);
                Ok(answer)
            }
        };
        match asker {
            Asker::Client(client) => out.push(Effect::Reply { client, response }),
            Asker::Shard { address, exchange, .. } => {
                // The asker's own deadline decides whether it still wants the answer.
                let message = Message::Forwarded(response);
                let deadline = Instant::NEVER;
                out.push(Effect::Send(Envelope { from: self.me, to: address, exchange, deadline, message }));
            }
        }
    }

    pub(super) fn run_acts(&mut self, now: Instant, acts: Vec<coordinator::Act>, out: &mut Vec<Effect>) {
        use coordinator::Act;
        for act in acts {
            match act {
                Act::Send { to, exchange, deadline, message } => {
                    let exchange = exchange << exchange_tag::BITS | exchange_tag::COORDINATOR;
                    out.push(Effect::Send(Envelope { from: self.me, to, exchange, deadline, message }));
                }
                Act::Write { operation, request, stamp, owed } => {
                    let (key, deadline) = (request.key.clone(), request.deadline);
                    let owed = if self.hints.is_full() {
                        self.hints.dropped += owed.len() as u64;
                        Owed { behind: owed, ..Owed::default() }
                    } else {
                        Owed { markers: owed, ..Owed::default() }
                    };
                    let work = match request.operation {
                        Operation::Put { context, value, write_id } => {
                            Work::Put { context, value, write_id, stamp, owed }
                        }
                        Operation::Delete { context, write_id } => Work::Delete { context, write_id, stamp, owed },
                        Operation::Get { .. } => continue,
                    };
                    self.apply(now, Origin::Operation(operation), key, work, deadline, out);
                }
                Act::Merge { key, siblings, word } => {
                    if word != self.word(&key) || self.is_dropping(&key) {
                        continue;
                    }
                    let deadline = now + limits::BACKGROUND_TIMEOUT;
                    let work = Work::Merge { siblings, behind: None, fresh: None, awaited: false };
                    self.apply(now, Origin::Nobody, key, work, deadline, out);
                }
                Act::Owe { key, owner } => self.keep_hint(now, Origin::Nobody, key, owner, None, out),
                Act::Load { operation, key, depth } => self.read_own(Reader::Operation(operation), &key, depth, out),
                Act::Late { core } => {
                    if self.health.late(now, core) {
                        let mut acts = Vec::new();
                        self.coordinator.doubted(now, core, &mut acts);
                        self.lose_deliveries(now, core, out);
                        self.run_acts(now, acts, out);
                    }
                }
                // Any word of the core will do, and this one costs it nothing.
                Act::Probe { core } if core.node != self.me.node => self.ask_the_time(now, core, out),
                Act::Probe { .. } => {}
                Act::Abandon { operation, key } => {
                    self.replica.abandon(&key, |origin| *origin == Origin::Operation(operation));
                }
                Act::Reply { asker, response } => self.reply(asker, response, out),
                Act::Again { asker, request, stamp, hops } => {
                    self.begin_again(now, asker, request, Passage { hops, stamp, word: None }, out);
                }
                Act::TellNews { to, exchange, key } => {
                    // An entry is never forgotten, and newer word was heard of this one.
                    let Some(news) = self.news_of(&key) else { unreachable!("newer word of no table") };
                    out.push(Effect::Send(self.envelope(to, exchange, Instant::NEVER, news)));
                }
                Act::KnownDot { key, dot, known } => {
                    if self.replica.is_forgotten(self.slice(&key), dot, known) {
                        self.replica.identity_alarms += 1;
                        self.meet_sign(now, out);
                    }
                }
            }
        }
    }

    // ---- the own copies ----------------------------------------------------------------------------------------

    pub(super) fn slice(&self, key: &Key) -> SliceId {
        self.placement.slice_of(key.token())
    }

    pub(super) fn apply(
        &mut self,
        now: Instant,
        origin: Origin,
        key: Key,
        work: Work,
        deadline: Instant,
        out: &mut Vec<Effect>,
    ) {
        let registry = &self.tables.registry;
        let (conflict, life) = (registry.of(key.as_bytes()).conflict, registry.life(key.as_bytes()));
        let subject = Subject { slice: self.slice(&key), key, conflict, life };
        let mut steps = Vec::new();
        self.replica.begin(now, origin, subject, work, deadline, &mut steps);
        self.run_steps(now, steps, out);
    }

    fn keep_hint(
        &mut self,
        now: Instant,
        origin: Origin,
        key: Key,
        owner: NodeId,
        parked: Option<Siblings>,
        out: &mut Vec<Effect>,
    ) {
        if self.hints.is_full() {
            self.hints.dropped += 1;
            let deadline = now + limits::BACKGROUND_TIMEOUT;
            let work = match parked {
                // It counts toward somebody's W, so it is kept all the same.
                Some(siblings) => Work::Merge { siblings, behind: Some(owner), fresh: None, awaited: true },
                None => Work::MarkBehind { owner },
            };
            return self.apply(now, origin, key, work, deadline, out);
        }
        // What this shard owes on its own account is not forgotten for being late: nobody else would remember it.
        let own = origin == Origin::Nobody;
        let deadline = if own { Instant::NEVER } else { now + limits::BACKGROUND_TIMEOUT };
        self.apply(now, origin, key, Work::KeepHint { owner, parked }, deadline, out);
    }

    pub(super) fn run_steps(&mut self, now: Instant, steps: Vec<Step<Origin>>, out: &mut Vec<Effect>) {
        for (owner, bytes) in std::mem::take(&mut self.replica.hints_kept) {
            self.hints.kept(now, owner, bytes);
        }
        for (owner, slice) in std::mem::take(&mut self.replica.marked) {
            self.hints.mark(now, owner, slice);
        }
        for owner in std::mem::take(&mut self.replica.hints_ended) {
            self.hints.written(owner);
        }
        self.hints.dropped += std::mem::take(&mut self.replica.hints_lost);
        self.replica.touched.drain(..).for_each(|token| self.repair.touched(token));
        if std::mem::take(&mut self.replica.signs) > 0 {
            self.meet_sign(now, out);
        }
        for step in steps {
            match step {
                Step::Load { io, slice, key, depth } => {
                    out.push(Effect::Load { io: io << io_tag::BITS | io_tag::REPLICA, slice, key, depth });
                }
                Step::Store { io, changes } => {
                    let durability = self.durability(&changes);
                    out.push(Effect::Store { io: io << io_tag::BITS | io_tag::REPLICA, changes, durability });
                }
                Step::Prepared { origin, siblings, context, fresh } => {
                    self.prepared(now, origin, siblings, (context, fresh), out);
                }
                Step::Done { origin, result } => self.done(now, origin, result, out),
                Step::Damaged { key } => self.rebuild(now, key, out),
            }
        }
    }

    fn prepared(
        &mut self,
        now: Instant,
        origin: Origin,
        siblings: Siblings,
        written: (Context, Option<u16>),
        out: &mut Vec<Effect>,
    ) {
        if let Origin::Operation(operation) = origin {
            let mut acts = Vec::new();
            self.coordinator.prepared(now, operation, siblings, written, &mut acts);
            self.run_acts(now, acts, out);
        }
    }

    fn done(&mut self, now: Instant, origin: Origin, result: Result<(), Rejection>, out: &mut Vec<Effect>) {
        match origin {
            Origin::Operation(operation) => {
                let mut acts = Vec::new();
                self.coordinator.applied(now, operation, result.map_err(failure), &mut acts);
                self.run_acts(now, acts, out);
            }
            Origin::Remote { to, exchange, deadline } => {
                let refusal = |r| match r {
                    Rejection::Refused(refusal) => refusal,
                    Rejection::SiblingLimit
                    | Rejection::ForeignContext
                    | Rejection::UnknownNode(_)
                    | Rejection::IncarnationsUsedUp
                    | Rejection::ClockLimit
                    | Rejection::Clock
                    | Rejection::WriteIdReused
                    | Rejection::Overtaken => Refusal::Failed,
                };
                let message = Message::Replicated(result.map_err(refusal));
                out.push(Effect::Send(Envelope { from: self.me, to, exchange, deadline, message }));
            }
            Origin::Repair(item) => {
                self.with_repair(now, out, |repair, view, acts| repair.merged(now, item, result.is_ok(), view, acts));
            }
            Origin::Delivery(delivery) => {
                self.with_hints(now, out, |hints, view, acts| hints.dropped(now, delivery, result.is_ok(), view, acts));
            }
            Origin::Nobody => {}
        }
    }

    /// One step of the hints machine, and what it wants done.
    pub(super) fn with_hints(
        &mut self,
        now: Instant,
        out: &mut Vec<Effect>,
        step: impl FnOnce(&mut Hints, View<'_>, &mut Vec<hints::Act>),
    ) {
        let mut acts = Vec::new();
        let (ring, tables) = (&*self.ring, &self.tables.registry);
        let homes = |key: &Key| ring.walk(key.token(), usize::from(tables.of(key.as_bytes()).n));
        let usable = |core| self.health.standing(now, core, Lane::Short) <= Standing::Parting;
        step(&mut self.hints, View { ring, homes: &homes, usable: &usable }, &mut acts);
        self.run_hints(now, acts, out);
    }
    /// Looks which owners are back.
    pub(super) fn tick_hints(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let (health, members) = (&self.health, &self.members);
        let present: Vec<NodeId> =
            members.iter().filter(|m| !health.misses(now, m.id, m.shards)).map(|member| member.id).collect();
        self.with_hints(now, out, |hints, view, acts| hints.tick(now, view, |owner| present.contains(&owner), acts));
    }
    fn run_hints(&mut self, now: Instant, acts: Vec<hints::Act>, out: &mut Vec<Effect>) {
        use hints::Act;
        for act in acts {
            match act {
                Act::Scan { io, slice, from, to, limit } => {
                    let io = io << io_tag::BITS | io_tag::HINTS;
                    out.push(Effect::Scan { io, slice, from, to, limit });
                }
                Act::Load { io, slice, key, depth } => {
                    self.reading_hint(io, &key);
                    let io = io << io_tag::BITS | io_tag::HINTS;
                    out.push(Effect::Load { io, slice, key, depth });
                }
                Act::Send { to, delivery, deadline, mut message } => {
                    if let Message::Replicate { key, word, .. } | Message::Fetch { key, word, .. } = &mut message {
                        *word = self.word(key);
                    }
                    let exchange = delivery << exchange_tag::BITS | exchange_tag::HINTS;
                    out.push(Effect::Send(self.envelope(to, exchange, deadline, message)));
                }
                Act::Drop { delivery, slice, key, owner, form, stamp } => {
                    let work = Work::DropHint { owner, form, stamp };
                    self.end_hint(now, delivery, (slice, key), work, out);
                }
                Act::GiveUp { delivery, slice, key, owner, form, stamp } => {
                    let work = Work::GiveUpHint { owner, form, stamp };
                    self.end_hint(now, delivery, (slice, key), work, out);
                }
                Act::Mark { slice, owner } => {
                    self.hints.mark(now, owner, slice);
                    self.hints.written(owner);
                    let record = Some((Bytes::new(), Values::new()));
                    out.push(note_behind(slice, owner, record));
                }
                Act::Unmark { slice, owner } => out.push(note_behind(slice, owner, None)),
            }
        }
    }
    fn end_hint(
        &mut self,
        now: Instant,
        delivery: u64,
        (slice, key): (SliceId, Key),
        work: Work,
        out: &mut Vec<Effect>,
    ) {
        let deadline = now + limits::BACKGROUND_TIMEOUT;
        let subject = Subject { slice, key, conflict: Conflict::Siblings, life: 0 };
        let mut steps = Vec::new();
        self.replica.begin(now, Origin::Delivery(delivery), subject, work, deadline, &mut steps);
        self.run_steps(now, steps, out);
    }

    /// The durability that the tables of the keys say; the shard's own records are always synced.
    fn durability(&self, changes: &[Change]) -> Durability {
        let interval = |change: &Change| {
            let key = user_key(&change.key);
            key.is_some_and(|key| self.tables.registry.of(key).durability == Durability::Interval)
        };
        if changes.iter().all(interval) { Durability::Interval } else { Durability::Sync }
    }

    // ---- for other shards --------------------------------------------------------------------------------------

    pub(super) fn serves(&self, key: &Key) -> bool {
        self.placement.shard_of(self.slice(key)) == self.me.shard
    }

    pub(super) fn take_replica(
        &mut self,
        now: Instant,
        origin: Origin,
        (key, siblings, purpose, fresh): (Key, Siblings, Purpose, Option<u16>),
        deadline: Instant,
        out: &mut Vec<Effect>,
    ) {
        if !self.serves(&key) {
            let refused = Err(Rejection::Refused(Refusal::NotMine));
            return self.run_steps(now, vec![Step::Done { origin, result: refused }], out);
        }
        if self.replica.bytes() > limits::REPLICA_BYTES_IN_FLIGHT_MAX {
            let refused = Err(Rejection::Refused(Refusal::Overloaded));
            return self.run_steps(now, vec![Step::Done { origin, result: refused }], out);
        }
        match purpose {
            Purpose::Hint { owner } if owner != self.me.node => {
                self.keep_hint(now, origin, key, owner, Some(siblings), out);
            }
            Purpose::Write | Purpose::Repair | Purpose::Replay | Purpose::Hint { .. } => {
                let awaited = matches!(purpose, Purpose::Write | Purpose::Hint { .. });
                self.apply(now, origin, key, Work::Merge { siblings, behind: None, fresh, awaited }, deadline, out);
            }
        }
    }

    pub(super) fn fetch(
        &mut self,
        (to, exchange): (Address, u64),
        key: Key,
        depth: Depth,
        deadline: Instant,
        out: &mut Vec<Effect>,
    ) {
        if !self.serves(&key) || !self.ready() {
            let message = Message::Fetched(Err(Refusal::NotMine));
            out.push(Effect::Send(self.envelope(to, exchange, deadline, message)));
            return;
        }
        if self.fetches.len() >= limits::FETCHES_MAX {
            let message = Message::Fetched(Err(Refusal::Overloaded));
            out.push(Effect::Send(self.envelope(to, exchange, deadline, message)));
            return;
        }
        self.next_fetch += 1;
        let (full, number) = (depth == Depth::Full, self.next_fetch);
        self.fetches.insert(number, Fetch { to, exchange, key: key.clone(), deadline, full });
        self.read_own(Reader::Fetch(number), &key, depth, out);
    }

    /// Reads what this node holds of a key: its own copy, and where it is no home replica also what is parked here for
    /// those who are.
    fn read_own(&mut self, reader: Reader, key: &Key, depth: Depth, out: &mut Vec<Effect>) {
        let table = self.tables.registry.of(key.as_bytes());
        let (slice, homes) = (self.slice(key), self.ring.walk(key.token(), usize::from(table.n)));
        if homes.contains(&self.me.node) {
            let io = match reader {
                Reader::Operation(operation) => operation << io_tag::BITS | io_tag::COORDINATOR,
                Reader::Fetch(number) => number << io_tag::BITS | io_tag::FETCH,
            };
            return out.push(Effect::Load { io, slice, key: data_key(key), depth });
        }
        self.next_fetch += 1;
        let io = |hint: u64| (self.next_fetch << 1 | hint) << io_tag::BITS | io_tag::GATHER;
        out.push(Effect::Load { io: io(0), slice, key: data_key(key), depth });
        let hint =
            |owner: &NodeId| Effect::Load { io: io(1), slice, key: hint_key(*owner, HintForm::Parked, key), depth };
        out.extend(homes.iter().map(hint));
        let conflict = table.conflict;
        let gather =
            Gather { reader, conflict, loads: 1 + homes.len(), found: Ok(Siblings::default()), doubted: false };
        self.gathers.insert(self.next_fetch, gather);
    }
    pub(super) fn gathered(
        &mut self,
        now: Instant,
        number: u64,
        (result, doubted): (Result<Option<Stored>, Refusal>, bool),
        out: &mut Vec<Effect>,
    ) {
        let (number, hint) = (number >> 1, number & 1 != 0);
        let Some(gather) = self.gathers.get_mut(&number) else { return };
        gather.loads -= 1;
        gather.doubted |= doubted;
        let more = result.and_then(|stored| if hint { parked(stored) } else { siblings(stored) });
        let found = std::mem::replace(&mut gather.found, Ok(Siblings::default()));
        gather.found = found.and_then(|all| Ok(join(all, more?, gather.conflict)));
        if gather.loads > 0 {
            return;
        }
        let Some(Gather { reader, found, doubted, .. }) = self.gathers.remove(&number) else { return };
        match reader {
            Reader::Operation(operation) => {
                let mut acts = Vec::new();
                self.coordinator.loaded(now, operation, (found, doubted), &mut acts);
                self.run_acts(now, acts, out);
            }
            Reader::Fetch(number) => self.fetched(now, number, (found, doubted), out),
        }
    }

    pub(super) fn fetched(
        &mut self,
        now: Instant,
        number: u64,
        (result, doubted): (Result<Siblings, Refusal>, bool),
        out: &mut Vec<Effect>,
    ) {
        let Some(Fetch { to, exchange, deadline, full, .. }) = self.fetches.remove(&number) else { return };
        if now > deadline {
            return;
        }
        let fetched = result.map(|s| match full {
            _ if doubted => Fetched::Doubted { head: s.head, values: full.then_some(s.values) },
            _ if s.head.is_empty() => Fetched::Nothing,
            true => Fetched::Full(s),
            false => Fetched::Head(s.head),
        });
        out.push(Effect::Send(self.envelope(to, exchange, deadline, Message::Fetched(fetched))));
    }
}

/// Whether stand-ins count.
fn sloppy(request: &Request, table: TableSettings) -> bool {
    let all = !request.operation.is_write() && request.consistency.level == Some(Level::All);
    request.consistency.sloppy.unwrap_or(table.sloppy && !all)
}

/// Writes or removes the mark of a slice.
fn note_behind(slice: SliceId, owner: NodeId, record: Option<(Bytes, Values)>) -> Effect {
    let change = Change { slice, key: behind_key(owner), record };
    Effect::Store { io: io_tag::HINTS, changes: vec![change], durability: Durability::Sync }
}

/// The state that a hint holds, if it holds any.
fn parked(stored: Option<Stored>) -> Result<Siblings, Refusal> {
    let Some(stored) = stored else { return Ok(Siblings::default()) };
    match HintHead::decode(&stored.head).map_err(|_| Refusal::Damaged)?.kind {
        HintKind::Parked(head) => Ok(Siblings { head, values: stored.values }),
        HintKind::Marker => Ok(Siblings::default()),
    }
}
/// Both together; heads alone when neither has values.
fn join(one: Siblings, other: Siblings, conflict: Conflict) -> Siblings {
    let whole = |s: &Siblings| s.values.len() == s.head.entries.len();
    if whole(&one) && whole(&other) {
        return one.join(&other, conflict);
    }
    Siblings { head: one.head.join(&other.head, conflict).head, values: Default::default() }
}

/// What a client is told when the own copy did not take its write.
fn failure(rejection: Rejection) -> Failure {
    let (code, outcome, detail) = match rejection {
        Rejection::SiblingLimit => (
            ErrorCode::SiblingLimit,
            Outcome::NotApplied,
            "the key has too many concurrent values; read it, merge them and write back with the context",
        ),
        Rejection::ForeignContext => (
            ErrorCode::BadRequest,
            Outcome::NotApplied,
            "the context claims writes that never happened: read the key again",
        ),
        Rejection::UnknownNode(node) => {
            return Failure::bad_request(format!(
                "the context names node {node}, which is not known here as a member: it is of another cluster, or this \
                 node has not heard of it yet; read the key again"
            ));
        }
        Rejection::IncarnationsUsedUp => (
            ErrorCode::Internal,
            Outcome::NotApplied,
            "this node has used up its incarnations and can take no new writes of this key; replace it by one with an \
             empty data directory",
        ),
        Rejection::ClockLimit => (
            ErrorCode::SiblingLimit,
            Outcome::NotApplied,
            "the key has been written by too many nodes and lives of nodes: its clock is at its bound",
        ),
        Rejection::WriteIdReused => (
            ErrorCode::WriteIdReused,
            Outcome::NotApplied,
            "the write id has been used for another write of this key; send this one with an id of its own",
        ),
        Rejection::Clock => (
            ErrorCode::Clock,
            Outcome::NotApplied,
            "what is stored of the key, or what its writer has seen, is of a time that this node's clock has not reached: one \
             clock of the cluster is or was wrong; the key can be written again when that time has come",
        ),
        Rejection::Overtaken => (
            ErrorCode::Clock,
            Outcome::NotApplied,
            "a value with a later time than that of the write is stored already",
        ),
        Rejection::Refused(refusal) => match refusal {
            Refusal::Overloaded => {
                (ErrorCode::Overloaded, Outcome::NotApplied, "too many writes wait for this key; try again later")
            }
            Refusal::DiskFull => (ErrorCode::DiskFull, Outcome::NotApplied, "the disk is full; nothing was stored"),
            Refusal::Damaged => {
                (ErrorCode::Damaged, Outcome::NotApplied, "the stored record is damaged; nothing was stored")
            }
            Refusal::ClockAhead => (
                ErrorCode::Clock,
                Outcome::NotApplied,
                "the clock of the node that took the write is ahead of this one's",
            ),
            Refusal::ClockBehind => (
                ErrorCode::Clock,
                Outcome::NotApplied,
                "the clock of the node that took the write is far behind this one's",
            ),
            Refusal::Expired => (ErrorCode::Deadline, Outcome::NotApplied, "the deadline passed in the queue"),
            Refusal::KnownDot(_) => (ErrorCode::Internal, Outcome::Unknown, "the own copy knows the write's dot"),
            Refusal::NotMine | Refusal::NotYet => {
                (ErrorCode::NotReady, Outcome::NotApplied, "this shard does not serve the key")
            }
            Refusal::Failed => (ErrorCode::Internal, Outcome::Unknown, "the storage of this shard has failed"),
        },
    };
    Failure::new(code, outcome, detail)
}
