//! What becomes of a request that met a setback: tried again, where and when, or given up. No I/O, no clock.

use super::{ClientError, Routes, SessionError, Target};
use crate::{
    protocol::message::{Operation, Request},
    types::{ErrorCode, Failure, Instant, Outcome},
};
use smallvec::SmallVec;
use std::{net::SocketAddr, time::Duration};

/// Pause before a request is sent again: doubled each time up to the second value, and drawn between half and all of
/// it.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// A server that has been silent for this share of a request's timeout is not waited for alone.
const SILENCE_SHARE: u32 = 3;

/// Bounds how much load retries add: each answered request earns a tenth of a retry.
#[derive(Clone, Debug)]
pub struct RetryBudget {
    tenths: u32,
    most: u32,
}
impl RetryBudget {
    /// Starts full, with this many retries.
    pub fn new(retries: u32) -> RetryBudget {
        let most = retries.saturating_mul(10);
        RetryBudget { tenths: most, most }
    }
    pub fn earn(&mut self) {
        self.tenths = (self.tenths + 1).min(self.most);
    }
    fn spend(&mut self) -> bool {
        let left = self.tenths.checked_sub(10);
        left.inspect(|l| self.tenths = *l).is_some()
    }
}

/// Why an attempt did not bring an answer that can be passed on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Setback {
    /// No connection: the request was not sent.
    Refused(String),
    /// The connection broke after the request was sent.
    Broken(String),
    /// The server broke the protocol or said goodbye; the request may have been sent.
    Protocol(SessionError),
    /// No answer for a while; one may still come.
    Silent,
    /// The server answered that it failed.
    Answered(Failure),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Send it again at this time (now, or after a pause), to [`Flight::choose`].
    Again(Instant),
    /// Keep waiting for the answer.
    Wait,
    Finish(ClientError),
}

/// A request on its way through as many attempts as it takes.
#[derive(Clone, Debug)]
pub struct Flight {
    pub request: Request,
    /// Cores asked since the last round over all of them began.
    tried: SmallVec<[SocketAddr; 4]>,
    /// Attempts that met a setback.
    setbacks: u32,
    /// An attempt may have had an effect.
    uncertain: bool,
    silence: Duration,
}

impl Flight {
    pub fn new(request: Request, now: Instant) -> Flight {
        let silence = request.deadline.since(now) / SILENCE_SHARE;
        Flight { request, tried: SmallVec::new(), setbacks: 0, uncertain: false, silence }
    }
    /// When to report [`Setback::Silent`] for an attempt that begins now: before the deadline, if at all.
    pub fn silent_at(&self, now: Instant) -> Instant {
        (now + self.silence).min(self.request.deadline)
    }

    /// Where to send: the owning cores in their order, then seeds and everybody else; those that are shunned last,
    /// each once a round.
    pub fn choose(
        &mut self,
        routes: &Routes,
        seeds: &[SocketAddr],
        shunned: impl Fn(&Target) -> bool,
    ) -> Option<Target> {
        let owners = routes.targets(self.request.key.token());
        let everybody = || {
            let others = seeds.iter().copied().map(Target::seed).chain(routes.everyone());
            owners.iter().copied().chain(others)
        };
        let untried = |tried: &[SocketAddr]| {
            let mut fresh = everybody().filter(|t| !tried.contains(&t.core));
            let mut again = fresh.clone();
            fresh.find(|t| !shunned(t)).or_else(|| again.next())
        };
        let chosen = untried(&self.tried).or_else(|| {
            self.tried.clear();
            untried(&[])
        });
        self.tried.extend(chosen.map(|t| t.core));
        chosen
    }

    /// The request's end without an answer, or its next attempt. `random`: any bits, for the jitter.
    pub fn meet(&mut self, setback: Setback, now: Instant, budget: &mut RetryBudget, random: u64) -> Decision {
        let write = self.request.operation.is_write();
        let sent = !matches!(&setback, Setback::Refused(_));
        // What this attempt failed with, if no other follows.
        let may_have_acted = write && sent;
        // Such a delete takes what its coordinator has: done a second time, it would take what was written since.
        let once = matches!(self.request.operation, Operation::Delete { context: None, .. });
        let outcome = if may_have_acted { Outcome::Unknown } else { Outcome::NotApplied };
        let (error, again) = match setback {
            Setback::Refused(detail) | Setback::Broken(detail) => (ClientError::Unreachable { detail, outcome }, true),
            Setback::Protocol(error) => (ClientError::Protocol { error, outcome }, true),
            Setback::Silent => {
                self.uncertain |= write;
                if now >= self.request.deadline {
                    return Decision::Finish(self.honest(ClientError::Timeout { outcome }));
                }
                return if !once && budget.spend() { self.again_at(now, Duration::ZERO) } else { Decision::Wait };
            }
            Setback::Answered(failure) => {
                let again = worth_repeating(&failure) && budget.spend();
                (ClientError::Failure(failure), again)
            }
        };
        let pause = self.pause(&error, random);
        let error = self.honest(error);
        self.uncertain |= write && error.outcome() == Outcome::Unknown;
        let again = again && !(once && self.uncertain);
        if !again || now + pause >= self.request.deadline {
            return Decision::Finish(error);
        }
        self.again_at(now, pause)
    }
    /// An answer that came without a setback, told truthfully: an earlier sending of the same write may have acted.
    pub fn honest(&self, error: ClientError) -> ClientError {
        if self.uncertain { error.uncertain() } else { error }
    }
    fn again_at(&mut self, now: Instant, pause: Duration) -> Decision {
        self.setbacks = self.setbacks.saturating_add(1);
        Decision::Again(now + pause)
    }
    /// None after the first two connections that fail: the next server is most likely well. Then growing; and always
    /// after an answer that asks for patience.
    fn pause(&self, error: &ClientError, random: u64) -> Duration {
        if !matches!(error, ClientError::Failure(_)) && self.setbacks < 2 {
            return Duration::ZERO;
        }
        let full = PAUSE_MIN.saturating_mul(1 << self.setbacks.min(10)).min(PAUSE_MAX);
        full / 2 + full.mul_f64((random >> 11) as f64 / (1u64 << 53) as f64) / 2
    }
}

/// Whether another server, or the same one later, may well do what this one did not.
fn worth_repeating(failure: &Failure) -> bool {
    match failure.code {
        ErrorCode::NotReady | ErrorCode::Overloaded | ErrorCode::Clock => true,
        // Quorums and deadlines were waited for already; damage and defects are for people to see.
        ErrorCode::QuorumUnavailable
        | ErrorCode::NotCovered
        | ErrorCode::Deadline
        | ErrorCode::BadRequest
        | ErrorCode::TooLarge
        | ErrorCode::SiblingLimit
        | ErrorCode::DiskFull
        | ErrorCode::Damaged
        | ErrorCode::Internal
        | ErrorCode::WriteIdReused
        | ErrorCode::TableExists => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Consistency, Key, Member, MemberState, NodeId, Ports, Token, Value, WriteId};

    const NOW: Instant = Instant(1_000_000_000);

    fn flight(operation: Operation) -> Flight {
        let key = Key::new("k").expect("a key");
        let deadline = NOW + Duration::from_secs(3);
        Flight::new(Request { key, operation, consistency: Consistency::default(), deadline }, NOW)
    }
    fn put() -> Flight {
        flight(Operation::Put { context: None, value: Value::json("1"), write_id: WriteId(1) })
    }
    fn failed(code: ErrorCode) -> Setback {
        Setback::Answered(Failure::new(code, Outcome::NotApplied, ""))
    }
    fn routes(nodes: u64) -> Routes {
        let member = |id: u64| Member {
            id: NodeId(id),
            ip: [127, 0, 0, id as u8].into(),
            ports: Ports::default(),
            shards: 4,
            slices: 64,
            tokens: (0..16).map(|i| Token((i * nodes + id) << 57)).collect(),
            state: MemberState::Up,
            generation: 1,
            revision: 1,
            heartbeat: 1,
        };
        Routes::new(&(1..=nodes).map(member).collect::<Vec<_>>(), 5)
    }

    #[test]
    fn owners_come_first_then_seeds_and_each_once_a_round() {
        let (routes, seed) = (routes(3), "127.0.0.9:8000".parse().expect("an address"));
        let mut flight = put();
        let owners = routes.targets(flight.request.key.token());
        assert_eq!(owners.len(), 3);
        let mut round = || -> Vec<Target> {
            let mut all = Vec::new();
            while all.len() < 4 {
                all.extend(flight.choose(&routes, &[seed], |_| false));
            }
            all
        };
        let first = round();
        assert_eq!((&first[..3], first[3]), (&owners[..], Target::seed(seed)));
        // What is left of the round are first cores that own nothing of this key.
        let rest = (0..3).filter(|i| owners[*i].core != owners[*i].node).count();
        (0..rest)
            .for_each(|_| assert_eq!(flight.choose(&routes, &[seed], |_| false).map(|t| t.core == t.node), Some(true)));
        assert_eq!(flight.choose(&routes, &[seed], |_| false), Some(owners[0]));
    }

    #[test]
    fn who_failed_lately_is_asked_last() {
        let routes = routes(3);
        let mut flight = put();
        let owners = routes.targets(flight.request.key.token());
        let shunned = |t: &Target| t.node == owners[0].node;
        assert_eq!(flight.choose(&routes, &[], shunned), Some(owners[1]));
        assert_eq!(flight.choose(&routes, &[], |_| true), Some(owners[0]), "better than nobody");
        assert_eq!(put().choose(&Routes::default(), &[], shunned), None);
    }

    #[test]
    fn a_refused_connection_leaves_no_doubt_and_a_broken_one_does() {
        let mut budget = RetryBudget::new(1);
        let late = NOW + Duration::from_secs(4);
        let mut flight = put();
        assert_eq!(flight.meet(Setback::Refused("r".into()), NOW, &mut budget, 0), Decision::Again(NOW));
        let end = flight.meet(Setback::Refused("r".into()), late, &mut budget, 0);
        let error = ClientError::Unreachable { detail: "r".into(), outcome: Outcome::NotApplied };
        assert_eq!(end, Decision::Finish(error.clone()));

        let mut flight = put();
        assert_eq!(flight.meet(Setback::Broken("b".into()), NOW, &mut budget, 0), Decision::Again(NOW));
        let end = flight.meet(Setback::Refused("r".into()), late, &mut budget, 0);
        assert_eq!(end, Decision::Finish(error.clone().uncertain()), "the first sending may have acted");

        let mut get = super::tests::flight(Operation::Get { context: None });
        assert_eq!(get.meet(Setback::Broken("b".into()), NOW, &mut budget, 0), Decision::Again(NOW));
        assert_eq!(get.meet(Setback::Refused("r".into()), late, &mut budget, 0), Decision::Finish(error));
    }

    #[test]
    fn failures_are_repeated_with_growing_pauses_as_far_as_the_budget_goes() {
        let mut budget = RetryBudget::new(5);
        let mut flight = put();
        let mut pauses = Vec::new();
        for _ in 0..5 {
            match flight.meet(failed(ErrorCode::Overloaded), NOW, &mut budget, u64::MAX) {
                Decision::Again(at) => pauses.push(at.since(NOW).as_millis()),
                other => panic!("{other:?}"),
            }
        }
        assert!(pauses.is_sorted() && pauses[0] >= 5 && pauses[4] > 100, "{pauses:?}");
        let end = flight.meet(failed(ErrorCode::Overloaded), NOW, &mut budget, 0);
        assert!(matches!(end, Decision::Finish(ClientError::Failure(_))), "{end:?}");
        assert_eq!(put().meet(Setback::Silent, NOW, &mut budget, 0), Decision::Wait);
        (0..10).for_each(|_| budget.earn());
        assert_eq!(put().meet(Setback::Silent, NOW, &mut budget, 0), Decision::Again(NOW));
    }

    #[test]
    fn a_failure_after_a_sending_of_unknown_fate_is_of_unknown_outcome() {
        let mut budget = RetryBudget::new(5);
        let mut flight = put();
        flight.meet(Setback::Silent, NOW, &mut budget, 0);
        match flight.meet(failed(ErrorCode::SiblingLimit), NOW, &mut budget, 0) {
            Decision::Finish(error) => assert_eq!(error.outcome(), Outcome::Unknown),
            other => panic!("{other:?}"),
        }
    }
    #[test]
    fn a_delete_without_a_context_is_not_sent_again_once_it_may_have_been_done() {
        let mut budget = RetryBudget::new(5);
        let blind = || flight(Operation::Delete { context: None, write_id: WriteId(1) });
        assert_eq!(blind().meet(Setback::Silent, NOW, &mut budget, 0), Decision::Wait);
        match blind().meet(Setback::Broken("b".into()), NOW, &mut budget, 0) {
            Decision::Finish(error) => assert_eq!(error.outcome(), Outcome::Unknown),
            other => panic!("{other:?}"),
        }
        assert_eq!(blind().meet(Setback::Refused("r".into()), NOW, &mut budget, 0), Decision::Again(NOW));
        let busy = blind().meet(failed(ErrorCode::Overloaded), NOW, &mut budget, 0);
        assert!(matches!(busy, Decision::Again(_)), "{busy:?}");
        let informed = || flight(Operation::Delete { context: Some(Default::default()), write_id: WriteId(1) });
        assert_eq!(informed().meet(Setback::Silent, NOW, &mut budget, 0), Decision::Again(NOW));
    }
}
