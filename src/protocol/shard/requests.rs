//! Requests and the traffic between replicas, routed to the machines and back.

use super::{
    Asker, Context, Effect, Envelope, Fetch, Message, Origin, Refusal, Shard, Step, Stored, coordinator, exchange_tag,
    hints, io_tag, siblings,
};
use crate::{
    limits,
    protocol::{
        coordinator::{Home, Plan, plan::needed},
        message::{Depth, Fetched, Operation, Purpose, Request},
        replica::{Rejection, Work, keys::data_key},
        versions::Siblings,
    },
    types::{Address, ErrorCode, Failure, Instant, Key, NodeId, Outcome, SliceId, Token, WriteId},
};

impl Shard {
    // ---- requests ----------------------------------------------------------------------------------------------

    pub(super) fn request(
        &mut self,
        now: Instant,
        asker: Asker,
        mut request: Request,
        hops: u8,
        out: &mut Vec<Effect>,
    ) {
        request.deadline = request.deadline.min(now + limits::REQUEST_TIMEOUT_MAX);
        if let Err(failure) = self.check(&request) {
            return self.reply(asker, Err(failure), out);
        }
        if let Operation::Put { write_id, .. } | Operation::Delete { write_id, .. } = &mut request.operation
            && *write_id == WriteId(0)
        {
            // An identity of its own, so that forwarding it twice makes one event.
            *write_id = WriteId(self.random.u64(1..));
        }
        let token = request.key.token();
        let homes = self.ring.walk(token, usize::from(self.settings.n));
        let mine = self.placement.shard_of(self.placement.slice_of(token)) == self.me.shard;
        let mut acts = Vec::new();
        if mine && homes.contains(&self.me.node) {
            match self.plan(&request, token) {
                Ok(plan) => self.coordinator.begin(now, asker, request, plan, &mut acts),
                Err(failure) => return self.reply(asker, Err(failure), out),
            }
        } else if hops > 1 {
            let failure =
                Failure::new(ErrorCode::NotReady, Outcome::NotApplied, "this shard does not own the key any more");
            return self.reply(asker, Err(failure), out);
        } else {
            // The own node first: it saves a hop over the network. Then the healthy ones in order, the rest last.
            let own = homes.iter().filter(|n| **n == self.me.node);
            let healthy = homes.iter().filter(|n| **n != self.me.node && self.healthy(**n));
            let targets: Vec<Address> = own.chain(healthy).filter_map(|n| self.ring.address(*n, token)).collect();
            self.coordinator.forward(now, asker, request, targets, hops + 1, &mut acts);
        }
        self.run_acts(now, acts, out);
    }

    fn check(&self, request: &Request) -> Result<(), Failure> {
        if !self.ready() {
            let detail = "the node has not joined its cluster yet";
            return Err(Failure::new(ErrorCode::NotReady, Outcome::NotApplied, detail));
        }
        let bytes = request.operation.bytes();
        if bytes > self.settings.value_bytes_max {
            let detail = format!("the value has {bytes} bytes, at most {} are stored", self.settings.value_bytes_max);
            return Err(Failure::new(ErrorCode::TooLarge, Outcome::NotApplied, detail));
        }
        Ok(())
    }

    /// Who takes part, as of now.
    fn plan(&self, request: &Request, token: Token) -> Result<Plan, Failure> {
        let n = usize::from(self.settings.n);
        let is_write = request.operation.is_write();
        let sloppy = is_write && request.consistency.sloppy.unwrap_or(self.settings.sloppy);
        let nodes = self.ring.walk(token, n);
        let home = |node: NodeId| Some(Home { address: self.ring.address(node, token)?, healthy: self.healthy(node) });
        let homes: smallvec::SmallVec<[Home; 4]> = nodes.iter().filter_map(|node| home(*node)).collect();
        // Stand-ins are looked for by writes only: a read asks the homes.
        let spares = if is_write && sloppy {
            let all = self.ring.walk(token, self.ring.node_count().min(n + limits::REPLICAS_MAX));
            let after = all.into_iter().skip(n).filter(|node| self.healthy(*node));
            after.filter_map(|node| self.ring.address(node, token)).collect()
        } else {
            smallvec::SmallVec::new()
        };
        let table = if is_write { self.settings.w } else { self.settings.r };
        let needed = needed(request.consistency, usize::from(table), n, homes.len())?;
        Ok(Plan { n, homes, spares, sloppy, needed })
    }

    fn reply(&mut self, asker: Asker, response: super::super::message::Response, out: &mut Vec<Effect>) {
        match asker {
            Asker::Client(client) => out.push(Effect::Reply { client, response }),
            Asker::Shard { address, exchange } => {
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
                Act::Write { operation, request, owed } => {
                    let (key, deadline) = (request.key.clone(), request.deadline);
                    let owed = if self.hints.bytes() > limits::HINT_BYTES_MAX {
                        self.hints.dropped += owed.len() as u64;
                        Default::default()
                    } else {
                        owed
                    };
                    let work = match request.operation {
                        Operation::Put { context, value, write_id } => Work::Put { context, value, write_id, owed },
                        Operation::Delete { context, .. } => Work::Delete { context, owed },
                        Operation::Get => continue,
                    };
                    self.apply(now, Origin::Operation(operation), key, work, deadline, out);
                }
                Act::Merge { key, siblings } => {
                    let deadline = now + limits::BACKGROUND_TIMEOUT;
                    self.apply(now, Origin::Nobody, key, Work::Merge { siblings }, deadline, out);
                }
                Act::Owe { key, owner } => self.keep_hint(now, Origin::Nobody, key, owner, None, out),
                Act::Load { operation, key, depth } => {
                    let io = operation << io_tag::BITS | io_tag::COORDINATOR;
                    out.push(Effect::Load { io, slice: self.slice(&key), key: data_key(&key), depth });
                }
                Act::Reply { asker, response } => self.reply(asker, response, out),
            }
        }
    }

    // ---- the own copies ----------------------------------------------------------------------------------------

    fn slice(&self, key: &Key) -> SliceId {
        self.placement.slice_of(key.token())
    }

    fn apply(&mut self, now: Instant, origin: Origin, key: Key, work: Work, deadline: Instant, out: &mut Vec<Effect>) {
        let place = (self.slice(&key), key);
        let mut steps = Vec::new();
        self.replica.begin(now, origin, place, work, deadline, &mut steps);
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
        if self.hints.bytes() > limits::HINT_BYTES_MAX {
            self.hints.dropped += 1;
            let refused = Err(Rejection::Refused(Refusal::Overloaded));
            return self.run_steps(now, vec![Step::Done { origin, result: refused }], out);
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
        for step in steps {
            match step {
                Step::Load { io, slice, key, depth } => {
                    out.push(Effect::Load { io: io << io_tag::BITS | io_tag::REPLICA, slice, key, depth });
                }
                Step::Store { io, changes } => {
                    out.push(Effect::Store { io: io << io_tag::BITS | io_tag::REPLICA, changes });
                }
                Step::Prepared { origin, siblings, context } => self.prepared(now, origin, siblings, context, out),
                Step::Done { origin, result } => self.done(now, origin, result, out),
            }
        }
    }

    fn prepared(&mut self, now: Instant, origin: Origin, siblings: Siblings, context: Context, out: &mut Vec<Effect>) {
        if let Origin::Operation(operation) = origin {
            let mut acts = Vec::new();
            self.coordinator.prepared(operation, siblings, context, &mut acts);
            self.run_acts(now, acts, out);
        }
    }

    fn done(&mut self, now: Instant, origin: Origin, result: Result<(), Rejection>, out: &mut Vec<Effect>) {
        match origin {
            Origin::Operation(operation) => {
                let mut acts = Vec::new();
                self.coordinator.applied(operation, result.map_err(failure), &mut acts);
                self.run_acts(now, acts, out);
            }
            Origin::Remote { to, exchange, deadline } => {
                let refusal = |r| match r {
                    Rejection::Refused(refusal) => refusal,
                    Rejection::SiblingLimit | Rejection::ForeignContext => Refusal::Failed,
                };
                let message = Message::Replicated(result.map_err(refusal));
                out.push(Effect::Send(Envelope { from: self.me, to, exchange, deadline, message }));
            }
            Origin::Delivery(delivery) => {
                let mut acts = Vec::new();
                self.hints.dropped(now, delivery, result.is_ok(), &self.ring, &mut acts);
                self.run_hints(now, acts, out);
            }
            Origin::Nobody => {}
        }
    }

    pub(super) fn run_hints(&mut self, now: Instant, acts: Vec<hints::Act>, out: &mut Vec<Effect>) {
        use hints::Act;
        for act in acts {
            match act {
                Act::Scan { io, slice, from, to, limit } => {
                    let io = io << io_tag::BITS | io_tag::HINTS;
                    out.push(Effect::Scan { io, slice, from, to, limit });
                }
                Act::Load { io, slice, key, depth } => {
                    let io = io << io_tag::BITS | io_tag::HINTS;
                    out.push(Effect::Load { io, slice, key, depth });
                }
                Act::Send { to, delivery, deadline, message } => {
                    let exchange = delivery << exchange_tag::BITS | exchange_tag::HINTS;
                    out.push(Effect::Send(self.envelope(to, exchange, deadline, message)));
                }
                Act::Drop { delivery, slice, key, owner, stamp } => {
                    let (origin, work) = (Origin::Delivery(delivery), Work::DropHint { owner, stamp });
                    let deadline = now + limits::BACKGROUND_TIMEOUT;
                    let mut steps = Vec::new();
                    self.replica.begin(now, origin, (slice, key), work, deadline, &mut steps);
                    self.run_steps(now, steps, out);
                }
            }
        }
    }

    // ---- for other shards --------------------------------------------------------------------------------------

    fn serves(&self, key: &Key) -> bool {
        self.placement.shard_of(self.slice(key)) == self.me.shard
    }

    pub(super) fn take_replica(
        &mut self,
        now: Instant,
        origin: Origin,
        (key, siblings, purpose): (Key, Siblings, Purpose),
        deadline: Instant,
        out: &mut Vec<Effect>,
    ) {
        if !self.serves(&key) {
            let refused = Err(Rejection::Refused(Refusal::NotMine));
            return self.run_steps(now, vec![Step::Done { origin, result: refused }], out);
        }
        match purpose {
            Purpose::Hint { owner } if owner != self.me.node => {
                self.keep_hint(now, origin, key, owner, Some(siblings), out);
            }
            Purpose::Write | Purpose::Repair | Purpose::Replay | Purpose::Hint { .. } => {
                self.apply(now, origin, key, Work::Merge { siblings }, deadline, out);
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
        self.next_fetch += 1;
        let full = depth == Depth::Full;
        self.fetches.insert(self.next_fetch, Fetch { to, exchange, deadline, full });
        let io = self.next_fetch << io_tag::BITS | io_tag::FETCH;
        out.push(Effect::Load { io, slice: self.slice(&key), key: data_key(&key), depth });
    }

    pub(super) fn fetched(
        &mut self,
        now: Instant,
        number: u64,
        result: Result<Option<Stored>, Refusal>,
        out: &mut Vec<Effect>,
    ) {
        let Some(Fetch { to, exchange, deadline, full }) = self.fetches.remove(&number) else { return };
        if now > deadline {
            return;
        }
        let fetched = match result {
            Ok(None) => Ok(Fetched::Nothing),
            stored => stored.and_then(siblings).map(|s| if full { Fetched::Full(s) } else { Fetched::Head(s.head) }),
        };
        out.push(Effect::Send(self.envelope(to, exchange, deadline, Message::Fetched(fetched))));
    }
}

/// What a client is told when the own copy did not take its write.
fn failure(rejection: Rejection) -> Failure {
    let (code, outcome, detail) = match rejection {
        Rejection::SiblingLimit => (
            ErrorCode::SiblingLimit,
            Outcome::NotApplied,
            "the key has too many concurrent values; read it, merge them and write back with the context",
        ),
        Rejection::ForeignContext => {
            (ErrorCode::BadRequest, Outcome::NotApplied, "the context claims writes that never happened here")
        }
        Rejection::Refused(refusal) => match refusal {
            Refusal::Overloaded => {
                (ErrorCode::Overloaded, Outcome::NotApplied, "too many writes wait for this key; try again later")
            }
            Refusal::DiskFull => (ErrorCode::DiskFull, Outcome::NotApplied, "the disk is full; nothing was stored"),
            Refusal::Damaged => {
                (ErrorCode::Damaged, Outcome::NotApplied, "the stored record is damaged; nothing was stored")
            }
            Refusal::Expired => (ErrorCode::Deadline, Outcome::NotApplied, "the deadline passed in the queue"),
            Refusal::NotMine => (ErrorCode::NotReady, Outcome::NotApplied, "this shard does not serve the key"),
            Refusal::Failed => (ErrorCode::Internal, Outcome::Unknown, "the storage of this shard has failed"),
        },
    };
    Failure::new(code, outcome, detail)
}
