//! A put or delete with a quorum.
//!
//! The own copy mints the dot and merges; the merged state goes to every other home replica at once. A home that is
//! down, fails or is late is replaced by the next spare node, which parks the state under the home's name; without a
//! spare a marker is kept here, which counts for nothing. When no home can be reached at all, this node is a spare
//! itself: its own copy, with a marker for the first home, counts in that home's place. Acknowledgements are counted by
//! place: that of a home and that of its stand-in are one.
//!
//! A home that knows the fresh dot and has no such write does not acknowledge: this node has minted the dot in a life
//! that its disk has forgotten. The shard hears of it; nobody else takes that home's place.

use super::{Act, Cores, Plan, exchange, replicate};
use crate::{
    protocol::{
        message::{Answer, Lane, Message, Purpose, Refusal, Request, Response},
        ring::Nodes,
        versions::{Context, Dot, Siblings},
    },
    types::{Address, ErrorCode, Failure, Instant, Key, NodeId, Outcome, TableWord},
};
use smallvec::SmallVec;

/// What is said of replicas that refuse a write because they know its dot. They cannot tell the two reasons apart.
pub const KNOWN_TO: &str = "know it as superseded: a client that had read it wrote after it, or this node's disk has \
                            forgotten writes";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Waiting,
    /// Given up on for now and replaced; an answer still counts.
    Late,
    Acked,
    Failed,
}

#[derive(Clone, Copy)]
struct Target {
    address: Address,
    purpose: Purpose,
    state: State,
    /// What it was sent over.
    lane: Lane,
    /// It refused, for its disk is full.
    full: bool,
    /// It refused, for it knows the write's dot and holds no such write.
    knows: bool,
}
impl Target {
    /// The home replica that this target is or stands in for.
    fn owner(&self) -> NodeId {
        match self.purpose {
            Purpose::Hint { owner } => owner,
            Purpose::Write | Purpose::Repair | Purpose::Replay => self.address.node,
        }
    }
}

fn target(address: Address, purpose: Purpose) -> Target {
    Target { address, purpose, state: State::Waiting, lane: Lane::Short, full: false, knows: false }
}

pub(super) struct Put {
    needed: usize,
    word: TableWord,
    targets: SmallVec<[Target; 4]>,
    spares: SmallVec<[Address; 4]>,
    own: State,
    prepared: Option<(Siblings, Context)>,
    /// The dot that was minted for this very write.
    fresh: Option<Dot>,
    /// The own copy refused, before anything left this shard.
    refused: Option<Failure>,
    /// A replica holds what was stamped much later: whoever else stores this one, nobody will read it.
    overtaken: bool,
}

impl Put {
    pub fn begin(
        id: u64,
        me: Address,
        (request, stamp): (Request, Option<Dot>),
        plan: Plan,
        out: &mut Vec<Act>,
    ) -> Put {
        let mut spares = if plan.sloppy { plan.spares.clone() } else { SmallVec::new() };
        let mut targets = SmallVec::new();
        let mut owed = Nodes::new();
        for (place, home) in plan.homes.iter().enumerate().filter(|(_, h)| h.address.node != me.node) {
            let node = home.address.node;
            if plan.stands_in && place == 0 {
                owed.push(node);
            } else if home.healthy {
                targets.push(target(home.address, Purpose::Write));
            } else if spares.is_empty() {
                owed.push(node);
            } else {
                let purpose = Purpose::Hint { owner: node };
                targets.push(target(spares.remove(0), purpose));
            }
        }
        out.push(Act::Write { operation: id, request, stamp, owed });
        Put {
            needed: plan.needed,
            word: plan.word,
            targets,
            spares,
            own: State::Waiting,
            prepared: None,
            fresh: None,
            refused: None,
            overtaken: false,
        }
    }

    pub fn prepared(
        &mut self,
        id: u64,
        key: &Key,
        deadline: Instant,
        siblings: Siblings,
        (context, fresh): (Context, Option<u16>),
        out: &mut Vec<Act>,
    ) {
        self.fresh = fresh.and_then(|entry| siblings.head.entries.get(usize::from(entry))).map(|entry| entry.dot);
        for (index, target) in self.targets.iter_mut().enumerate().filter(|(_, t)| t.state == State::Waiting) {
            let mut message = replicate(key, &siblings, target.purpose, self.word);
            if let (Purpose::Write, Message::Replicate { fresh: said, .. }) = (target.purpose, &mut message) {
                *said = fresh;
            }
            target.lane = message.lane();
            out.push(Act::Send { to: target.address, exchange: exchange(id, index), deadline, message });
        }
        self.prepared = Some((siblings, context));
    }

    pub fn applied(&mut self, result: Result<(), Failure>) {
        match result {
            Ok(()) => self.own = State::Acked,
            Err(failure) => {
                self.own = State::Failed;
                // With nobody else to hold it, the own copy's word is all there is.
                let alone = self.targets.is_empty() && failure.outcome == Outcome::NotApplied;
                if self.prepared.is_none() || alone {
                    self.refused = Some(failure);
                }
            }
        }
    }

    pub fn replicated(
        &mut self,
        id: u64,
        index: usize,
        key: &Key,
        deadline: Instant,
        result: Result<(), Refusal>,
        out: &mut Vec<Act>,
    ) {
        let Some(target) = self.targets.get_mut(index) else { return };
        match (result, target.state) {
            (Ok(()), State::Waiting | State::Late) => target.state = State::Acked,
            (Err(Refusal::DiskFull), State::Waiting | State::Late) => {
                target.full = true;
                match target.state {
                    State::Waiting => self.replace(id, index, State::Failed, key, deadline, out),
                    State::Late | State::Acked | State::Failed => target.state = State::Failed,
                }
            }
            // Nobody can stand in for one that knows better.
            (Err(Refusal::ClockBehind), State::Waiting | State::Late) => {
                target.state = State::Failed;
                self.overtaken = true;
            }
            (Err(Refusal::KnownDot(known)), State::Waiting | State::Late) => {
                target.state = State::Failed;
                target.knows = true;
                out.extend(self.fresh.map(|dot| Act::KnownDot { key: key.clone(), dot, known }));
            }
            (Err(_), State::Waiting) => self.replace(id, index, State::Failed, key, deadline, out),
            (Err(_), State::Late) => target.state = State::Failed,
            (_, State::Acked | State::Failed) => {}
        }
    }

    pub fn unreachable(&mut self, id: u64, key: &Key, deadline: Instant, lost: (Address, Lane), out: &mut Vec<Act>) {
        for index in 0..self.targets.len() {
            let target = &mut self.targets[index];
            match target.state {
                _ if (target.address, target.lane) != lost => {}
                State::Waiting => self.replace(id, index, State::Failed, key, deadline, out),
                State::Late => target.state = State::Failed,
                State::Acked | State::Failed => {}
            }
        }
    }

    /// The slow ones (this one alone, if named) are replaced; they may still answer. Gives who they are.
    pub fn late(&mut self, id: u64, only: Option<Address>, key: &Key, deadline: Instant, out: &mut Vec<Act>) -> Cores {
        let mut slow = Cores::new();
        if self.prepared.is_none() {
            return slow;
        }
        for index in 0..self.targets.len() {
            let Target { address, state, .. } = self.targets[index];
            if state == State::Waiting && only.is_none_or(|core| core == address) {
                slow.push(address);
                self.replace(id, index, State::Late, key, deadline, out);
            }
        }
        slow
    }

    fn replace(&mut self, id: u64, index: usize, state: State, key: &Key, deadline: Instant, out: &mut Vec<Act>) {
        self.targets[index].state = state;
        let owner = self.targets[index].owner();
        if self.spares.is_empty() {
            out.push(Act::Owe { key: key.clone(), owner });
            return;
        }
        let mut stand_in = target(self.spares.remove(0), Purpose::Hint { owner });
        if let Some((siblings, _)) = &self.prepared {
            let exchange = exchange(id, self.targets.len());
            let message = replicate(key, siblings, stand_in.purpose, self.word);
            stand_in.lane = message.lane();
            out.push(Act::Send { to: stand_in.address, exchange, deadline, message });
        }
        self.targets.push(stand_in);
    }

    /// Places of the key in which it is durable.
    fn acks(&self) -> usize {
        self.places(|target| target.state == State::Acked) + usize::from(self.own == State::Acked)
    }
    /// Homes of which such a target is or stands in for.
    fn places(&self, which: impl Fn(&Target) -> bool) -> usize {
        let mut owners = Nodes::new();
        for owner in self.targets.iter().filter(|t| which(t)).map(Target::owner) {
            if !owners.contains(&owner) {
                owners.push(owner);
            }
        }
        owners.len()
    }
    /// Whether the own copy has begun to write: from then on others may hold it.
    pub fn has_begun(&self) -> bool {
        self.prepared.is_some()
    }
    /// Whether the own copy is still awaited.
    pub fn awaits_own(&self) -> bool {
        self.own == State::Waiting
    }
    /// What it was stamped with, where the last write wins, once it has begun.
    pub fn stamp(&self) -> Option<Dot> {
        self.prepared.as_ref().and_then(|(siblings, _)| siblings.head.stamp())
    }
    /// What it was given as its context, once it is known.
    pub fn context(&self) -> Option<&Context> {
        self.prepared.as_ref().map(|(_, context)| context)
    }
    /// Why the own copy does not take it, though that of another home might: then that one can still make it count.
    pub fn gives_up(&self) -> Option<Failure> {
        match &self.refused {
            // Where too many wait for a key, they would wait elsewhere.
            Some(failure) if failure.code == ErrorCode::Overloaded => None,
            Some(failure) => failure.may_differ_elsewhere().then(|| failure.clone()),
            None => (self.has_begun() && self.own == State::Failed)
                .then(|| Failure::new(ErrorCode::Internal, Outcome::Unknown, "the own copy could not be stored")),
        }
    }

    fn settled(&self, open: &[State]) -> bool {
        !open.contains(&self.own) && self.targets.iter().all(|t| !open.contains(&t.state))
    }

    pub fn answer(&mut self) -> Option<Response> {
        if let Some(failure) = self.refused.take() {
            self.targets.clear();
            return Some(Err(failure));
        }
        let (_, context) = self.prepared.as_ref()?;
        if self.overtaken {
            let detail = "a replica holds a value with a much later time: this write took long, or the clock of the node \
                          that took it is behind";
            return Some(Err(Failure::new(ErrorCode::Clock, Outcome::Unknown, detail)));
        }
        // The own copy is always one of them: a later dot of this shard covers this one, so it must not be forgotten
        // here once it counts.
        let acks = self.acks();
        if self.own == State::Acked && acks >= self.needed {
            return Some(Ok(Answer::Written(context.clone())));
        }
        self.settled(&[State::Waiting, State::Late]).then(|| {
            let full = self.places(|target| target.full);
            let known = self.places(|target| target.knows);
            let (code, why) = if full > 0 && acks + full >= self.needed {
                (ErrorCode::DiskFull, format!("; the disks of {full} others are full"))
            } else if known > 0 {
                (ErrorCode::QuorumUnavailable, format!("; {known} others {KNOWN_TO}"))
            } else {
                (ErrorCode::QuorumUnavailable, String::new())
            };
            let detail = format!("{acks} of {} replicas acknowledged{why}", self.needed);
            Err(Failure::new(code, Outcome::Unknown, detail).counts(acks, self.needed))
        })
    }
    pub fn word(&self) -> TableWord {
        self.word
    }
    pub fn is_over(&self) -> bool {
        self.settled(&[State::Waiting])
    }
    /// Owners of whom nobody has been heard when time runs out, neither they nor a stand-in. With the request the
    /// memory of them ends, so each must be owed a hint.
    pub fn unpaid(&self) -> Nodes {
        let paid = |owner| self.targets.iter().any(|t| t.state == State::Acked && t.owner() == owner);
        let mut owners = Nodes::new();
        for target in self.targets.iter().filter(|t| self.prepared.is_some() && t.state == State::Waiting) {
            if !paid(target.owner()) && !owners.contains(&target.owner()) {
                owners.push(target.owner());
            }
        }
        owners
    }
    pub fn awaits(&self, core: Address) -> bool {
        self.targets.iter().any(|t| t.address == core && matches!(t.state, State::Waiting | State::Late))
    }
    pub fn deadline_failure(&self) -> Failure {
        if !self.has_begun() {
            // The task of the own copy has the same deadline: it is not begun any more.
            let detail = "this node did not come to it in time; nothing was stored";
            return Failure::new(ErrorCode::Deadline, Outcome::NotApplied, detail).counts(0, self.needed);
        }
        let acks = self.acks();
        let detail = format!("{acks} of {} replicas acknowledged in time", self.needed);
        Failure::new(ErrorCode::Deadline, Outcome::Unknown, detail).counts(acks, self.needed)
    }
}
