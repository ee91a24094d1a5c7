//! The time by the others' clocks, and what this node does while its own is wrong: where the last write wins it stamps
//! no writes. What others have stamped it takes, by their time.

use super::{Clocks, Effect, Instant, Message, Reference, Shard, exchange_tag};
use crate::{
    limits::{self, CLOCK_ASK_PAUSE, CLOCK_FRESH, CLOCK_WAIT, CLOCKS_KEPT},
    protocol::{
        clocks::Ahead,
        message::{Answer, Fetched},
        replica::latest_seen,
        versions::Dot,
    },
    types::{Address, ErrorCode, Failure, NodeId, Outcome, ShardId},
};

/// What a shard knows of the time.
pub(super) struct ClockState {
    /// What others have said; on shard 0 only.
    clocks: Clocks,
    reference: Option<Reference>,
    /// What the node's other shards were told last.
    told: Option<Reference>,
    /// Since when too few have said the time to believe that the own clock is the wrong one.
    questioned: Option<Instant>,
    /// When all who had not said it were asked last.
    asked: Instant,
    /// When somebody who was seen to be there was asked last.
    asked_back: Instant,
    /// The own wall clock against the monotonic one.
    own: Ahead,
    /// Nanoseconds by which it is off, beyond doubt.
    pub off: Option<i64>,
    born: Instant,
    /// Requests wait until somebody has said the time, for a while.
    waited_for: bool,
    pub refusals: u64,
}

impl ClockState {
    pub fn new(now: Instant) -> ClockState {
        ClockState {
            clocks: Clocks::default(),
            reference: None,
            told: None,
            questioned: None,
            asked: Instant::ZERO,
            asked_back: Instant::ZERO,
            own: 0,
            off: None,
            born: now,
            waited_for: false,
            refusals: 0,
        }
    }
    pub fn next_deadline(&self) -> Option<Instant> {
        self.waited_for.then(|| self.born + CLOCK_WAIT)
    }
}

impl Shard {
    /// The wall clock shows so many nanoseconds since 1970; it may jump, and need not agree with anything.
    pub fn wall_time_is(&mut self, now: Instant, wall: u64) {
        let own = i128::from(wall) - i128::from(now.0);
        self.clock.own = Ahead::try_from(own).unwrap_or(if own < 0 { Ahead::MIN } else { Ahead::MAX });
        self.judge_time(now);
    }
    fn judge_time(&mut self, now: Instant) {
        let (own, reference) = (self.clock.own, self.clock.reference);
        let alone = self.is_alone();
        self.clock.off = reference.filter(|_| !alone).and_then(|reference| reference.off(own));
        let right = reference.filter(|_| !alone).map_or(own, |reference| reference.correct(own));
        self.replica.stamps.time_is(time(now, right), alone);
    }
    /// Whether the cluster has no other member.
    fn is_alone(&self) -> bool {
        self.others().next().is_none()
    }
    fn others(&self) -> impl Iterator<Item = NodeId> + '_ {
        let others = self.members.iter().filter(|member| member.id != self.me.node && !member.state.is_gone());
        others.map(|member| member.id)
    }

    // ---- the others' clocks ------------------------------------------------------------------------------------

    pub(super) fn ask_the_time(&mut self, now: Instant, to: Address, out: &mut Vec<Effect>) {
        let deadline = now + limits::BACKGROUND_TIMEOUT;
        let message = Message::Clock { asked: now, wall: None };
        out.push(Effect::Send(self.envelope(to, exchange_tag::GOSSIP, deadline, message)));
    }
    pub(super) fn clock_told(
        &mut self,
        now: Instant,
        (from, exchange): (Address, u64),
        (asked, wall): (Instant, Option<u64>),
        out: &mut Vec<Effect>,
    ) {
        let Some(wall) = wall else {
            let deadline = now + limits::BACKGROUND_TIMEOUT;
            let message = Message::Clock { asked, wall: Some(time(now, self.clock.own)) };
            out.push(Effect::Send(self.envelope(from, exchange, deadline, message)));
            return self.ask_who_is_there(now, from.node, out);
        };
        if self.membership.is_none() || from.node == self.me.node {
            return;
        }
        let members = &self.members;
        self.clock.clocks.told(now, from.node, asked, wall);
        self.clock.clocks.retain(|node| members.iter().any(|member| member.id == node && !member.state.is_gone()));
        let Some(reference) = self.clock.clocks.reference(now) else { return };
        if self.awaits_more_clocks(now, reference, out) {
            return;
        }
        if !self.clock.told.is_some_and(|told| told.is_near(&reference)) {
            self.clock.told = Some(reference);
            let Reference { earliest, latest } = reference;
            let deadline = now + limits::BACKGROUND_TIMEOUT;
            for shard in 1..self.placement.shards() {
                let to = Address { node: self.me.node, shard: ShardId(shard) };
                let message = Message::Reference { earliest, latest };
                out.push(Effect::Send(self.envelope(to, exchange_tag::GOSSIP, deadline, message)));
            }
        }
        self.set_reference(now, reference, out);
    }
    /// Whether those who have said the time lately are too few to say that the own clock is wrong: after a start, the
    /// first of many may be the one whose clock is. Then the others are asked at once, and those few are believed only
    /// when the others have not answered within [`CLOCK_WAIT`].
    fn awaits_more_clocks(&mut self, now: Instant, reference: Reference, out: &mut Vec<Effect>) -> bool {
        // Nearly always it is right, and nobody need be counted.
        if reference.off(self.clock.own).is_none() {
            self.clock.questioned = None;
            return false;
        }
        let others: Vec<NodeId> = self.others().take(CLOCKS_KEPT).collect();
        let unheard: Vec<NodeId> = others.iter().filter(|id| !self.clock.clocks.is_fresh(now, **id)).copied().collect();
        if (others.len() - unheard.len()) * 2 > others.len() {
            self.clock.questioned = None;
            return false;
        }
        let since = *self.clock.questioned.get_or_insert(now);
        if since == now || now.since(self.clock.asked) >= CLOCK_WAIT {
            self.clock.asked = now;
            for node in unheard {
                self.ask_the_time(now, Address { node, shard: ShardId(0) }, out);
            }
        }
        now.since(since) < CLOCK_WAIT
    }
    /// A member that has not said the time lately is there: it is asked while too few have.
    pub(super) fn ask_who_is_there(&mut self, now: Instant, node: NodeId, out: &mut Vec<Effect>) {
        let wanted = self.clock.questioned.is_some() && !self.clock.clocks.is_fresh(now, node);
        // Two who ask each other back could go on for ever.
        if wanted && now.since(self.clock.asked_back) >= CLOCK_ASK_PAUSE {
            self.clock.asked_back = now;
            self.ask_the_time(now, Address { node, shard: ShardId(0) }, out);
        }
    }
    pub(super) fn set_reference(&mut self, now: Instant, reference: Reference, out: &mut Vec<Effect>) {
        self.clock.reference = Some(reference);
        self.judge_time(now);
        self.stop_waiting_for_the_time(now, out);
    }

    // ---- writes that need the time -----------------------------------------------------------------------------

    /// Whether no other member has said the time since the start: nobody knows then whether the own clock is sound, and
    /// this node stamps nothing. Another one does, if it can be reached.
    pub(super) fn is_unheard(&self) -> bool {
        self.clock.reference.is_none() && self.settings.gossip_interval <= CLOCK_FRESH && !self.is_alone()
    }
    /// Whether a write that this node would stamp waits: it has just started, and will know soon whether its clock is
    /// sound.
    pub(super) fn awaits_the_time(&mut self, now: Instant) -> bool {
        let waits = self.is_unheard() && now.since(self.clock.born) < CLOCK_WAIT;
        self.clock.waited_for |= waits;
        waits
    }
    pub(super) fn stop_waiting_for_the_time(&mut self, now: Instant, out: &mut Vec<Effect>) {
        if self.clock.waited_for && !self.awaits_the_time(now) {
            self.clock.waited_for = false;
            self.release(now, out);
        }
    }
    /// Why this node stamps no write, if its clock is wrong.
    pub(super) fn wrong_clock(&mut self) -> Option<Failure> {
        let off = self.clock.off?;
        self.clock.refusals += 1;
        let (seconds, side) = (off.unsigned_abs() as f64 / 1e9, if off > 0 { "ahead of" } else { "behind" });
        let detail = format!(
            "this node's clock is {seconds:.1} s {side} the others': it takes no writes where the last one wins until its \
             clock is mended; another node does"
        );
        Some(Failure::new(ErrorCode::Clock, Outcome::NotApplied, detail))
    }
    /// Why this node stamps no write when nobody has told it the time, and nobody else can be asked to stamp it.
    pub(super) fn unheard_clock(&mut self) -> Failure {
        self.clock.refusals += 1;
        let detail = "no other node has told this one the time since it started: it takes no writes where the last one wins \
                      until one has; try another node, or bring the others back";
        Failure::new(ErrorCode::Clock, Outcome::NotApplied, detail)
    }
    /// A stamp after all that this shard has met and that the writer has seen.
    pub(super) fn first_stamp(&mut self, request: &super::super::message::Request) -> Result<Dot, Failure> {
        use super::super::message::Operation::{Delete, Get, Put};
        let seen = match &request.operation {
            Put { context, .. } | Delete { context, .. } => latest_seen(context.as_ref()),
            Get { .. } => 0,
        };
        self.replica.stamps.mint(seen).ok_or_else(|| {
            self.clock.refusals += 1;
            let detail =
                "the context is of a time that this node's clock has not reached: one clock of the cluster is wrong";
            Failure::new(ErrorCode::Clock, Outcome::NotApplied, detail)
        })
    }
    /// What this shard stamps from now on comes after what it has been told of.
    pub(super) fn meet_stamps(&mut self, message: &Message) {
        let latest = match message {
            Message::Forwarded(Ok(Answer::Got(siblings))) | Message::Fetched(Ok(Fetched::Full(siblings))) => {
                siblings.head.stamp()
            }
            Message::Fetched(Ok(Fetched::Head(head))) => head.stamp(),
            Message::Forwarded(Ok(Answer::Written(context))) => {
                Some(latest_seen(Some(context))).filter(|time| *time > 0).map(|time| Dot::stamp(time, self.me.node))
            }
            _ => None,
        };
        if let Some(stamp) = latest {
            self.replica.stamps.meet(stamp);
        }
    }
}

/// What a clock shows that shows so much more than the monotonic one.
fn time(now: Instant, ahead: Ahead) -> u64 {
    (i128::from(now.0) + i128::from(ahead)).clamp(0, i128::from(u64::MAX)) as u64
}
