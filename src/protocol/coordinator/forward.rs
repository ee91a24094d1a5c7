//! A request on its way to a replica that will coordinate it.
//!
//! Targets are tried in the order of the preference list: the next one when a node is unreachable, has not done it for
//! [`FORWARD_LATE`], or does not do it for reasons of its own (a full disk, a damaged record, too much in hand, nobody
//! else within its reach). A write carries its write id, so that two coordinators make one event of it.
//!
//! A home replica whose own copy cannot take a write passes it on in the same way.
//!
//! A delete without a context drops what its coordinator has, so the same message, late at a second one, would drop
//! what others have written since the answer. It is not passed on as it is: a target is asked for the clock of what it
//! has, and what travels is a delete with that context, the same however often it is carried out.
//!
//! Where the last write wins, a write travels with the stamp of the node that took it, so that it is the same event
//! wherever and whenever it is carried out, and cannot win over what was written after it. A target may say that this
//! stamp does not do: something later is stored there, and what its writer has seen may be that. If nobody else has
//! been asked, the target is asked to stamp it itself, and from then on no other is asked before that one has said no.

use super::{Act, exchange};
use crate::{
    limits::{FORWARD_LATE, FORWARD_PROBED},
    protocol::{
        message::{Answer, Depth, Fetched, Lane, Message, Operation, Refusal, Request, Response},
        versions::{Dot, Siblings, VersionVector},
    },
    types::{Address, Conflict, ErrorCode, Failure, Instant, Outcome, TableWord},
};
use smallvec::SmallVec;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Untried,
    Waiting,
    /// Sent, and then the connection broke: it may have been done.
    Lost,
    /// Never sent, or refused with nothing done.
    Refused,
}

/// Where a request goes.
pub struct Route {
    /// Home replicas in order of preference.
    pub targets: SmallVec<[Address; 4]>,
    pub hops: u8,
    /// What this shard goes by of the key's table.
    pub word: TableWord,
    /// A delete is to have a context first.
    pub asks: bool,
    /// The stamp of the write, where the last one wins.
    pub stamp: Option<Dot>,
    /// How conflicts of the key's table end.
    pub conflict: Conflict,
}

/// What came of a request at the home replica that passes it on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Before {
    pub failure: Failure,
    /// It may take effect all the same.
    pub acted: bool,
}

pub(super) struct Forward {
    request: Request,
    hops: u8,
    word: TableWord,
    /// While the targets are asked for what they have, and nothing is passed on yet: see [`Route::asks`].
    asks: bool,
    stamp: Option<Dot>,
    /// Whoever is asked stamps it: one at a time.
    singly: bool,
    targets: SmallVec<[(Address, State); 4]>,
    /// When the latest of them was asked.
    asked: Instant,
    /// What the last message was sent over.
    lane: Lane,
    conflict: Conflict,
    /// Why those who were asked did not do it, this node among them.
    refusals: SmallVec<[Failure; 4]>,
    /// A target that did not do it may have begun.
    acted: bool,
    result: Option<Response>,
}

impl Forward {
    /// The forward and its first alarm, or a failure when there is nobody to ask.
    pub fn begin(
        now: Instant,
        id: u64,
        request: Request,
        Route { targets, hops, word, asks, stamp, conflict }: Route,
        before: Option<Before>,
        out: &mut Vec<Act>,
    ) -> Result<(Forward, Instant), Failure> {
        let targets = targets.into_iter().map(|a| (a, State::Untried)).collect();
        let acted = before.as_ref().is_some_and(|before| before.acted);
        let mut forward = Forward {
            singly: conflict == Conflict::LastWriteWins && request.operation.is_write() && stamp.is_none(),
            request,
            hops,
            word,
            asks,
            stamp,
            targets,
            asked: now,
            lane: Lane::Short,
            conflict,
            refusals: before.into_iter().map(|before| before.failure).collect(),
            acted,
            result: None,
        };
        match forward.try_next(now, id, out) {
            Some(alarm) => Ok((forward, alarm)),
            None => Err(Failure::new(
                ErrorCode::QuorumUnavailable,
                Outcome::NotApplied,
                "no replica of the key can be reached",
            )),
        }
    }

    fn try_next(&mut self, now: Instant, id: u64, out: &mut Vec<Act>) -> Option<Instant> {
        if self.singly && self.may_be_done() {
            return None;
        }
        let index = self.targets.iter().position(|(_, s)| *s == State::Untried)?;
        Some(self.try_this(now, id, index, out))
    }
    fn try_this(&mut self, now: Instant, id: u64, index: usize, out: &mut Vec<Act>) -> Instant {
        self.targets[index].1 = State::Waiting;
        self.asked = now;
        let (to, deadline) = (self.targets[index].0, self.request.deadline);
        let message = match self.asks {
            true => Message::Fetch { key: self.request.key.clone(), depth: Depth::Head, word: self.word },
            false => {
                let (hops, word, stamp) = (self.hops, self.word, self.stamp);
                Message::Forward { request: self.request.clone(), hops, word, stamp }
            }
        };
        self.lane = message.lane();
        out.push(Act::Send { to, exchange: exchange(id, index), deadline, message });
        deadline.min(now + FORWARD_PROBED)
    }
    /// Whether somebody who was asked may have done it, or may do it still.
    fn may_be_done(&self) -> bool {
        self.acted || self.targets.iter().any(|(_, s)| matches!(s, State::Waiting | State::Lost))
    }

    fn fail(&mut self, now: Instant, id: u64, failure: Failure, out: &mut Vec<Act>) -> Option<Instant> {
        self.refusals.push(failure);
        let alarm = self.try_next(now, id, out);
        if alarm.is_none() && !self.targets.iter().any(|(_, s)| *s == State::Waiting) {
            self.result = Some(Err(self.judge(self.summary())));
        }
        alarm
    }

    /// Nobody did it. What all say is the answer; a full disk of one is not that of the key.
    fn summary(&self) -> Failure {
        let last = self.refusals.last().cloned().unwrap_or_else(|| self.lost());
        if self.refusals.iter().all(|failure| failure.code == last.code) {
            let many = last.code == ErrorCode::DiskFull && self.refusals.len() > 1;
            let detail = format!("the disks of {} replicas of the key are full", self.refusals.len());
            return if many { Failure { detail, ..last } } else { last };
        }
        let detail = format!("no replica of the key that could be asked did it: {}", self.reasons());
        let counted = self.refusals.iter().filter(|failure| failure.needed > 0).max_by_key(|failure| failure.acks);
        let failure = Failure::new(ErrorCode::QuorumUnavailable, last.outcome, detail);
        Failure { acks: counted.map_or(0, |f| f.acks), needed: counted.map_or(0, |f| f.needed), ..failure }
    }
    /// What those say who were asked and did not do it.
    fn reasons(&self) -> String {
        let mut why: Vec<&str> = self.refusals.iter().map(|failure| failure.code.name()).collect();
        why.sort_unstable();
        why.dedup();
        why.join(", ")
    }
    /// What one target did not do, another that was asked as well may have done.
    fn judge(&self, failure: Failure) -> Failure {
        let outcome =
            if self.acted || (self.may_be_done() && self.acts()) { Outcome::Unknown } else { failure.outcome };
        Failure { outcome, ..failure }
    }
    /// Whether what has been sent may change something.
    fn acts(&self) -> bool {
        self.request.operation.is_write() && !self.asks
    }

    /// A target has said what it has of the key, or that it does not say.
    pub fn fetched(
        &mut self,
        now: Instant,
        id: u64,
        index: usize,
        result: Result<Fetched, Refusal>,
        out: &mut Vec<Act>,
    ) -> Option<Instant> {
        // What others say after the first is not needed any more.
        if !self.asks {
            return None;
        }
        let target = self.targets.get_mut(index)?;
        match result {
            Ok(fetched) => {
                let clock = match fetched {
                    Fetched::Nothing => VersionVector::default(),
                    // A delete deletes what somebody has seen: one that has lost some of it has seen less.
                    Fetched::Head(head) | Fetched::Doubted { head, .. } => head.clock,
                    Fetched::Full(siblings) => siblings.head.clock,
                };
                target.1 = State::Untried;
                self.pass_on(now, id, index, clock, out)
            }
            // The same refusal once more.
            Err(_) if target.1 == State::Refused => None,
            Err(refusal) => {
                target.1 = State::Refused;
                self.fail(now, id, refused(refusal), out)
            }
        }
    }
    /// The delete has its context now. Who gave it goes first; who was asked before and has been silent, last.
    fn pass_on(
        &mut self,
        now: Instant,
        id: u64,
        index: usize,
        clock: VersionVector,
        out: &mut Vec<Act>,
    ) -> Option<Instant> {
        self.asks = false;
        if let Operation::Delete { context, .. } = &mut self.request.operation {
            *context = Some(clock.into());
        }
        let awake = self.targets.remove(index);
        let place = |state: &State| match state {
            State::Untried => 0,
            State::Waiting => 1,
            State::Lost | State::Refused => 2,
        };
        self.targets.sort_by_key(|(_, state)| place(state));
        self.targets.insert(0, awake);
        for (_, state) in &mut self.targets {
            *state = if matches!(state, State::Untried | State::Waiting) { State::Untried } else { State::Refused };
        }
        self.try_next(now, id, out)
    }

    pub fn forwarded(
        &mut self,
        now: Instant,
        id: u64,
        index: usize,
        response: Response,
        out: &mut Vec<Act>,
    ) -> Option<Instant> {
        if self.asks {
            return None;
        }
        let failure = match response {
            Ok(Answer::Got(siblings)) if !self.is_covered_by(&siblings) => {
                let detail = "the replica that answered has not seen what the context names";
                Failure::new(ErrorCode::NotCovered, Outcome::NotApplied, detail).counts(0, 1)
            }
            Ok(answer) => {
                self.result = Some(Ok(answer));
                return None;
            }
            Err(failure) => failure,
        };
        let target = self.targets.get_mut(index)?;
        let address = target.0;
        if std::mem::replace(&mut target.1, State::Refused) == State::Refused {
            // The same refusal once more.
            return None;
        }
        self.acted |= failure.outcome == Outcome::Unknown;
        // Its clock, or what it holds, does not agree with the stamp. Nothing was done there.
        if failure.code == ErrorCode::Clock
            && failure.outcome == Outcome::NotApplied
            && !self.may_be_done()
            && self.stamp.take().is_some()
        {
            self.singly = true;
            // Under a number of its own: a second copy of the refusal must not be taken for the answer to this.
            self.targets.push((address, State::Untried));
            return Some(self.try_this(now, id, self.targets.len() - 1, out));
        }
        if failure.may_differ_elsewhere() {
            return self.fail(now, id, failure, out);
        }
        self.result = Some(Err(self.judge(failure)));
        None
    }

    pub fn unreachable(
        &mut self,
        now: Instant,
        id: u64,
        (core, lane): (Address, Lane),
        out: &mut Vec<Act>,
    ) -> Option<Instant> {
        if lane != self.lane {
            return None;
        }
        let mut lost = false;
        for (_, state) in self.targets.iter_mut().filter(|(a, _)| *a == core) {
            lost |= *state == State::Waiting;
            *state = if matches!(state, State::Waiting | State::Lost) { State::Lost } else { State::Refused };
        }
        if lost { self.fail(now, id, self.lost(), out) } else { None }
    }

    /// A replica of an earlier revision does not look at the context of a read.
    fn is_covered_by(&self, siblings: &Siblings) -> bool {
        match &self.request.operation {
            Operation::Get { context: Some(context) } => siblings.head.covers(context, self.conflict),
            Operation::Get { context: None } | Operation::Put { .. } | Operation::Delete { .. } => true,
        }
    }

    /// When the next one is to be asked, if those who were asked have that long still.
    pub fn patient(&self, now: Instant) -> Option<Instant> {
        Some(self.asked + FORWARD_LATE).filter(|late| now < *late)
    }
    /// The next one is asked as well; those who were asked may still answer.
    pub fn late(&mut self, now: Instant, id: u64, out: &mut Vec<Act>) -> Option<Instant> {
        self.try_next(now, id, out)
    }
    pub fn word(&self) -> TableWord {
        self.word
    }
    /// What whoever is asked goes by, unless it is to stamp the write itself.
    pub fn stamp(&self) -> Option<Dot> {
        self.stamp
    }
    /// Targets that have been asked and have said nothing.
    pub fn waits_for(&self) -> impl Iterator<Item = Address> {
        self.targets.iter().filter(|(_, state)| *state == State::Waiting).map(|(address, _)| *address)
    }
    pub fn is_read(&self) -> bool {
        !self.request.operation.is_write()
    }

    fn lost(&self) -> Failure {
        let outcome = if self.acts() { Outcome::Unknown } else { Outcome::NotApplied };
        Failure::new(ErrorCode::QuorumUnavailable, outcome, "the connection to every replica of the key was lost")
    }
    pub fn answer(&mut self) -> Option<Response> {
        self.result.take()
    }
    pub fn awaits(&self, core: Address) -> bool {
        self.targets.iter().any(|(a, s)| *a == core && matches!(s, State::Untried | State::Waiting))
    }
    pub fn deadline_failure(&self) -> Failure {
        let not_covered = |failure: &Failure| failure.code == ErrorCode::NotCovered;
        if self.is_read() && !self.refusals.is_empty() && self.refusals.iter().all(not_covered) {
            // Whoever has what the reader has seen is one of those who say nothing.
            return self.summary();
        }
        let detail = match self.refusals.is_empty() {
            true => "no replica of the key answered in time".into(),
            false => format!("no replica of the key did it in time; those that answered say: {}", self.reasons()),
        };
        self.judge(Failure::new(ErrorCode::Deadline, self.lost().outcome, detail))
    }
}

/// Why a target does not say what it has: nothing was done.
fn refused(refusal: Refusal) -> Failure {
    let (code, detail) = match refusal {
        Refusal::Damaged => (ErrorCode::Damaged, "the stored record is damaged"),
        Refusal::Overloaded => (ErrorCode::Overloaded, "the replicas of the key have too much to do; try again later"),
        Refusal::NotMine
        | Refusal::ClockAhead
        | Refusal::ClockBehind
        | Refusal::NotYet
        | Refusal::DiskFull
        | Refusal::Expired
        | Refusal::Failed
        | Refusal::KnownDot(_) => (ErrorCode::QuorumUnavailable, "no replica of the key says what it holds"),
    };
    Failure::new(code, Outcome::NotApplied, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        protocol::versions::{Actor, Dot, Head},
        types::{Consistency, Key, NodeId, ShardId, WriteId},
    };
    use std::time::Duration;

    const NOW: Instant = Instant(1_000_000_000);

    fn at(node: u64) -> Address {
        Address { node: NodeId(node), shard: ShardId(0) }
    }
    fn delete(targets: u64, out: &mut Vec<Act>) -> Forward {
        let operation = Operation::Delete { context: None, write_id: WriteId(1) };
        let (key, deadline) = (Key::new("k").expect("a key"), NOW + Duration::from_secs(5));
        let request = Request { key, operation, consistency: Consistency::default(), deadline };
        let route = Route {
            targets: (1..=targets).map(at).collect(),
            hops: 1,
            word: TableWord::default(),
            asks: true,
            stamp: None,
            conflict: Conflict::Siblings,
        };
        Forward::begin(NOW, 7, request, route, None, out).expect("somebody to ask").0
    }
    /// The nodes that are asked for a head, and those that are passed a delete, with the number of dots in its context.
    fn sent(out: &mut Vec<Act>) -> Vec<(u64, Option<usize>)> {
        let sent = |act| match act {
            Act::Send { to, message: Message::Fetch { depth: Depth::Head, .. }, .. } => (to.node.0, None),
            Act::Send { to, message: Message::Forward { request, .. }, .. } => match request.operation {
                Operation::Delete { context: Some(context), .. } => (to.node.0, Some(context.clock.entries().len())),
                other => panic!("{other:?} is passed on"),
            },
            _ => panic!("something else is done"),
        };
        out.drain(..).map(sent).collect()
    }
    fn head() -> Result<Fetched, Refusal> {
        let clock = VersionVector::from_dots([Dot { actor: Actor::from_narrow(9), counter: 3 }]);
        Ok(Fetched::Head(Head { clock, ..Head::default() }))
    }

    /// The first may carry it out long after the second has answered: it must be the same delete by then.
    #[test]
    fn a_delete_without_a_context_is_never_passed_on_as_it_is() {
        let mut out = Vec::new();
        let mut forward = delete(3, &mut out);
        assert_eq!(sent(&mut out), [(1, None)]);
        assert!(forward.late(NOW, 7, &mut out).is_some());
        assert_eq!(sent(&mut out), [(2, None)]);
        assert_eq!(forward.deadline_failure().outcome, Outcome::NotApplied, "nobody was told to delete anything");
        assert!(forward.fetched(NOW, 7, 1, head(), &mut out).is_some());
        assert_eq!(sent(&mut out), [(2, Some(1))]);
        assert!(forward.fetched(NOW, 7, 0, Ok(Fetched::Nothing), &mut out).is_none(), "too late to matter");
        assert_eq!(forward.deadline_failure().outcome, Outcome::Unknown);
        assert!(forward.late(NOW, 7, &mut out).is_some());
        assert!(forward.late(NOW, 7, &mut out).is_some());
        assert_eq!(sent(&mut out), [(3, Some(1)), (1, Some(1))], "the silent one last");
        assert!(forward.late(NOW, 7, &mut out).is_none());
    }
    /// The targets that are passed the write, each with the stamp.
    fn stamped(out: &mut Vec<Act>) -> Vec<(u64, Option<u64>)> {
        let sent = |act| match act {
            Act::Send { to, message: Message::Forward { stamp, .. }, .. } => {
                (to.node.0, stamp.map(|stamp: Dot| stamp.counter))
            }
            _ => panic!("something else is done"),
        };
        out.drain(..).map(sent).collect()
    }
    fn refusal(outcome: Outcome) -> Response {
        Err(Failure::new(ErrorCode::Clock, outcome, "a later one is stored"))
    }

    #[test]
    fn a_write_is_stamped_anew_only_where_nobody_else_can_have_it() {
        let mut out = Vec::new();
        let begin = |out: &mut Vec<Act>| {
            let operation = Operation::Delete { context: None, write_id: WriteId(1) };
            let (key, deadline) = (Key::new("k").expect("a key"), NOW + Duration::from_secs(5));
            let request = Request { key, operation, consistency: Consistency::default(), deadline };
            let stamp = Some(Dot::stamp(77, NodeId(9)));
            let (word, targets) = (TableWord::default(), (1..=3).map(at).collect());
            let route = Route { targets, hops: 1, word, asks: false, stamp, conflict: Conflict::LastWriteWins };
            Forward::begin(NOW, 7, request, route, None, out).expect("somebody to ask").0
        };
        let mut forward = begin(&mut out);
        assert_eq!(stamped(&mut out), [(1, Some(77))]);
        assert!(forward.forwarded(NOW, 7, 0, refusal(Outcome::NotApplied), &mut out).is_some());
        assert_eq!(stamped(&mut out), [(1, None)], "the same one, by its own clock");
        assert!(forward.late(NOW, 7, &mut out).is_none(), "no other while it may do it");
        let again = refusal(Outcome::NotApplied);
        assert!(forward.forwarded(NOW, 7, 0, again.clone(), &mut out).is_none(), "a second copy of the first refusal");
        assert!(out.is_empty());
        assert!(forward.forwarded(NOW, 7, 3, again, &mut out).is_some());
        assert_eq!(stamped(&mut out), [(2, None)]);
        assert!(forward.unreachable(NOW, 7, (at(2), Lane::Short), &mut out).is_none());
        let failure = forward.answer().expect("an end").expect_err("it may have been done");
        assert_eq!(failure.outcome, Outcome::Unknown);

        let mut forward = begin(&mut out);
        assert!(forward.late(NOW, 7, &mut out).is_some());
        assert_eq!(stamped(&mut out), [(1, Some(77)), (2, Some(77))], "one event, wherever it is carried out");
        assert!(forward.forwarded(NOW, 7, 0, refusal(Outcome::NotApplied), &mut out).is_some());
        assert_eq!(stamped(&mut out), [(3, Some(77))], "the second may have it by its first stamp");
    }

    #[test]
    fn who_does_not_say_what_it_has_is_not_waited_for() {
        let mut out = Vec::new();
        let mut forward = delete(2, &mut out);
        assert!(forward.fetched(NOW, 7, 0, Err(Refusal::Damaged), &mut out).is_some());
        assert_eq!(sent(&mut out), [(1, None), (2, None)]);
        assert!(forward.unreachable(NOW, 7, (at(2), Lane::Short), &mut out).is_none());
        let failure = forward.answer().expect("an end").expect_err("nobody is left");
        assert_eq!((failure.code, failure.outcome), (ErrorCode::QuorumUnavailable, Outcome::NotApplied));
        // One that knows nothing of the key is told to delete nothing.
        let mut forward = delete(1, &mut out);
        assert!(forward.fetched(NOW, 7, 0, Ok(Fetched::Nothing), &mut out).is_some());
        assert_eq!(sent(&mut out), [(1, None), (1, Some(0))]);
        assert!(forward.unreachable(NOW, 7, (at(1), Lane::Short), &mut out).is_none());
        let failure = forward.answer().expect("an end").expect_err("nobody is left");
        assert_eq!(failure.outcome, Outcome::Unknown, "the delete was sent");
    }
}
