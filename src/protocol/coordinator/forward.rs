//! A request on its way to a replica that will coordinate it.
//!
//! Targets are tried in the order of the preference list: the next one when a node is unreachable, not ready, or
//! silent for [`FORWARD_LATE`]. A write carries its write id, so that two coordinators make one event of it.

use super::{Act, exchange};
use crate::{
    limits::FORWARD_LATE,
    protocol::message::{Message, Request, Response},
    types::{Address, ErrorCode, Failure, Instant, NodeId, Outcome},
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

pub(super) struct Forward {
    request: Request,
    hops: u8,
    targets: SmallVec<[(Address, State); 4]>,
    result: Option<Response>,
}

impl Forward {
    /// The forward and its first alarm, or a failure when there is nobody to ask.
    pub fn begin(
        now: Instant,
        id: u64,
        request: Request,
        targets: SmallVec<[Address; 4]>,
        hops: u8,
        out: &mut Vec<Act>,
    ) -> Result<(Forward, Instant), Failure> {
        let targets = targets.into_iter().map(|a| (a, State::Untried)).collect();
        let mut forward = Forward { request, hops, targets, result: None };
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
        let index = self.targets.iter().position(|(_, s)| *s == State::Untried)?;
        self.targets[index].1 = State::Waiting;
        let (to, deadline) = (self.targets[index].0, self.request.deadline);
        let message = Message::Forward { request: self.request.clone(), hops: self.hops };
        out.push(Act::Send { to, exchange: exchange(id, index), deadline, message });
        Some(deadline.min(now + FORWARD_LATE))
    }

    fn fail(&mut self, now: Instant, id: u64, failure: Failure, out: &mut Vec<Act>) -> Option<Instant> {
        let alarm = self.try_next(now, id, out);
        if alarm.is_none() && self.targets.iter().all(|(_, s)| matches!(s, State::Lost | State::Refused)) {
            self.result = Some(Err(self.judge(failure)));
        }
        alarm
    }

    /// What one target did not do, another that was asked as well may have done.
    fn judge(&self, failure: Failure) -> Failure {
        let asked = self.targets.iter().any(|(_, s)| matches!(s, State::Waiting | State::Lost));
        let outcome = if asked && self.request.operation.is_write() { Outcome::Unknown } else { failure.outcome };
        Failure { outcome, ..failure }
    }

    pub fn forwarded(
        &mut self,
        now: Instant,
        id: u64,
        index: usize,
        response: Response,
        out: &mut Vec<Act>,
    ) -> Option<Instant> {
        let target = self.targets.get_mut(index)?;
        match response {
            Err(failure) if failure.code == ErrorCode::NotReady && failure.outcome == Outcome::NotApplied => {
                target.1 = State::Refused;
                self.fail(now, id, failure, out)
            }
            Err(failure) => {
                if failure.outcome == Outcome::NotApplied {
                    target.1 = State::Refused;
                }
                self.result = Some(Err(self.judge(failure)));
                None
            }
            Ok(answer) => {
                self.result = Some(Ok(answer));
                None
            }
        }
    }

    pub fn unreachable(&mut self, now: Instant, id: u64, node: NodeId, out: &mut Vec<Act>) -> Option<Instant> {
        let mut lost = false;
        for (address, state) in self.targets.iter_mut().filter(|(a, _)| a.node == node) {
            lost |= *state == State::Waiting && address.node == node;
            *state = if matches!(state, State::Waiting | State::Lost) { State::Lost } else { State::Refused };
        }
        if lost { self.fail(now, id, self.lost(), out) } else { None }
    }

    /// The next one is asked as well; those who were asked may still answer.
    pub fn late(&mut self, now: Instant, id: u64, out: &mut Vec<Act>) -> Option<Instant> {
        self.try_next(now, id, out)
    }
    /// Those who have been asked and have said nothing.
    pub fn waits_for(&self) -> impl Iterator<Item = NodeId> {
        self.targets.iter().filter(|(_, state)| *state == State::Waiting).map(|(address, _)| address.node)
    }
    pub fn is_read(&self) -> bool {
        !self.request.operation.is_write()
    }

    fn lost(&self) -> Failure {
        let outcome = if self.request.operation.is_write() { Outcome::Unknown } else { Outcome::NotApplied };
        Failure::new(ErrorCode::QuorumUnavailable, outcome, "the connection to every replica of the key was lost")
    }
    pub fn answer(&mut self) -> Option<Response> {
        self.result.take()
    }
    pub fn awaits(&self, node: NodeId) -> bool {
        self.targets.iter().any(|(a, s)| a.node == node && matches!(s, State::Untried | State::Waiting))
    }
    pub fn deadline_failure(&self) -> Failure {
        Failure { code: ErrorCode::Deadline, detail: "no replica of the key answered in time".into(), ..self.lost() }
    }
}
