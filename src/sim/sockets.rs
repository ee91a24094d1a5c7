//! The clients' side of the nodes' sockets: a request goes to a shard, and its answer, a refusal, a broken connection
//! or silence comes back. Requests and answers may be lost on the way; whoever is silent past a deadline without a
//! fault that explains it breaks I11.

use super::{checker::Invariant, cluster::Cluster, planted::Planted, prng::Prng};
use crate::{
    driver::world::{Arrival, ClientToken},
    protocol::message::{Operation, Request, Response},
    types::{ErrorCode, Failure, Instant, Outcome, TableChange},
};
use std::{
    rc::Rc,
    task::{Poll, Waker},
    time::Duration,
};

/// What became of a client's request.
#[derive(Clone, PartialEq, Debug)]
pub enum CallEnd {
    Answered(Response),
    /// Nobody listened: the request was not delivered.
    Refused,
    /// The connection broke while the answer was awaited.
    Broken,
    /// No answer in time.
    Silent,
}

/// What is asked of a shard.
#[derive(Clone, PartialEq, Debug)]
pub enum Ask {
    Request(Request),
    Change(TableChange),
}

pub(super) struct Call {
    node: usize,
    life: u64,
    shard: u16,
    /// It is a read in which stand-ins count.
    sloppy_read: bool,
    delivered: Option<Instant>,
    /// The deadline that its node knows.
    due: Instant,
    /// The fault plan swallows the request or its answer.
    swallowed: bool,
    end: Option<CallEnd>,
    waker: Option<Waker>,
}

/// Answers may be so much later than their deadline: the way back, and the grain of timers.
const ANSWER_SLACK: Duration = Duration::from_millis(300);

impl Cluster {
    /// Sends a request to a shard and waits for its end. `request.deadline` is ignored: it is `timeout` from now.
    pub async fn call(self: &Rc<Self>, node: usize, shard: u16, request: Request, timeout: Duration) -> CallEnd {
        self.call_with(node, shard, Ask::Request(request), timeout).await
    }
    /// Asks anything, as [`Cluster::call`] asks a request.
    pub async fn call_with(self: &Rc<Self>, node: usize, shard: u16, ask: Ask, timeout: Duration) -> CallEnd {
        let number = self.next_call.get() + 1;
        self.next_call.set(number);
        let (delay, swallowed, swallowed_early) = {
            let mut prng = self.client_prng.borrow_mut();
            let loss = prng.chance(self.network.borrow().client_loss());
            (self.client_delay(&mut prng), loss, loss && prng.coin())
        };
        if swallowed {
            self.count(|c| c.client_losses += 1);
        }
        let life = self.life(node);
        let sloppy_read = match &ask {
            Ask::Request(request) => {
                !request.operation.is_write() && request.consistency.sloppy.unwrap_or(self.plan.sloppy)
            }
            Ask::Change(_) => false,
        };
        let call = Call {
            node,
            life,
            shard,
            sloppy_read,
            delivered: None,
            due: Instant::ZERO,
            swallowed,
            end: None,
            waker: None,
        };
        self.calls.borrow_mut().insert(number, call);
        if !swallowed_early {
            let cluster = self.clone();
            self.executor.schedule(self.executor.now() + delay, move || {
                cluster.deliver_call(number, node, shard, ask, timeout);
            });
        }
        let give_up = self.executor.now() + timeout + delay + ANSWER_SLACK;
        let end = self.wait_for_call(number, give_up).await;
        if let Some(call) = self.calls.borrow_mut().remove(&number)
            && end == CallEnd::Silent
        {
            self.check_silence(&call, node);
        }
        end
    }
    fn client_delay(&self, prng: &mut Prng) -> Duration {
        prng.duration(Duration::from_micros(30), Duration::from_micros(400))
    }
    fn deliver_call(self: &Rc<Self>, number: u64, node: usize, shard: u16, mut ask: Ask, timeout: Duration) {
        let life = self.life(node);
        let inbox = if self.serves(node, shard) { self.inbox(node, shard) } else { None };
        let Some(inbox) = inbox else {
            return self.end_call(number, CallEnd::Refused);
        };
        if self.paused(node) {
            let cluster = self.clone();
            return self.keep_call(node, move || {
                // It may have waited through all of the standstill.
                let waited = match cluster.planted(Planted::LateWrites) {
                    true => Duration::ZERO,
                    false => cluster.stood_still(node),
                };
                cluster.deliver_call(number, node, shard, ask, timeout.saturating_sub(waited));
            });
        }
        if let Ask::Request(request) = &mut ask {
            request.deadline = self.local_now(node) + timeout;
            self.spoil_request(request, &mut self.client_prng.borrow_mut());
            if self.refuses(request, &mut self.client_prng.borrow_mut()) {
                let failure = Failure::new(ErrorCode::QuorumUnavailable, Outcome::NotApplied, "refused for nothing");
                return self.end_call(number, CallEnd::Answered(Err(failure)));
            }
        }
        // Its client may have given up meanwhile: what it has sent is in the socket all the same.
        if let Some(call) = self.calls.borrow_mut().get_mut(&number) {
            call.life = life;
            call.delivered = Some(self.executor.now());
            call.due = self.executor.now() + timeout;
        }
        let client = ClientToken(number);
        let deadline = self.local_now(node) + timeout;
        let (words, arrival) = match ask {
            Ask::Request(request) => (words_of(&request), Arrival::Request { client, request }),
            Ask::Change(change) => (format!("{change:?}"), Arrival::TableChange { client, change, deadline }),
        };
        self.note(10, number, || format!("client request {number} reaches {node}/{shard}: {words}"));
        inbox.push(arrival);
    }
    /// A shard answers a client.
    pub(super) fn reply(self: &Rc<Self>, client: ClientToken, response: Response) {
        let number = client.0;
        self.note(11, number ^ detail_of(&response), || {
            let words = match &response {
                Ok(crate::protocol::message::Answer::Got(s)) => format!("{:?}", s.head),
                Ok(crate::protocol::message::Answer::Written(c)) => format!("written {c:?}"),
                Err(e) => format!("{e:?}"),
            };
            format!("answer {number}: {words}")
        });
        let sloppy_read = self.calls.borrow().get(&number).is_some_and(|call| call.sloppy_read);
        let spoiled = self.spoil_answer(response, sloppy_read, &mut self.client_prng.borrow_mut());
        let Some(response) = spoiled else { return };
        if self.calls.borrow().get(&number).is_none_or(|c| c.swallowed) {
            return;
        }
        let delay = self.client_delay(&mut self.client_prng.borrow_mut());
        let cluster = self.clone();
        self.executor.schedule(self.executor.now() + delay, move || {
            cluster.end_call(number, CallEnd::Answered(response));
        });
    }
    fn end_call(&self, number: u64, end: CallEnd) {
        let mut calls = self.calls.borrow_mut();
        if let Some(call) = calls.get_mut(&number)
            && call.end.is_none()
        {
            call.end = Some(end);
            if let Some(waker) = call.waker.take() {
                waker.wake();
            }
        }
    }
    async fn wait_for_call(&self, number: u64, give_up: Instant) -> CallEnd {
        let mut sleep = self.executor.sleep_until(give_up);
        std::future::poll_fn(|context| {
            let mut calls = self.calls.borrow_mut();
            let Some(call) = calls.get_mut(&number) else { return Poll::Ready(CallEnd::Silent) };
            if let Some(end) = call.end.take() {
                return Poll::Ready(end);
            }
            call.waker = Some(context.waker().clone());
            drop(calls);
            std::pin::Pin::new(&mut sleep).poll(context).map(|()| CallEnd::Silent)
        })
        .await
    }
    /// I11: a delivered request is answered by its deadline, unless its node died or stood still meanwhile.
    fn check_silence(&self, call: &Call, node: usize) {
        let Some(delivered) = call.delivered.filter(|_| !call.swallowed) else { return };
        // What waited in a socket may be due later than its client waits, and no answer is there at once.
        let due = self.executor.now() >= call.due + ANSWER_SLACK;
        let undisturbed = self.lives(node, call.life) && !self.paused(node) && self.disturbed(node) < delivered && due;
        if !undisturbed {
            self.excuse(|e| e.silent_in_disturbance += 1);
        } else {
            self.violate(Invariant::I11, format!("node {node} left a request unanswered past its deadline"));
        }
    }
    /// Connections to a node, or to one of its cores, are closed.
    pub(super) fn break_calls(self: &Rc<Self>, index: usize, life: u64, shard: Option<u16>) {
        let mut broken: Vec<u64> = Vec::new();
        for (number, call) in self.calls.borrow().iter() {
            let there = call.node == index && call.life == life && shard.is_none_or(|shard| shard == call.shard);
            if there && call.delivered.is_some() && call.end.is_none() {
                broken.push(*number);
            }
        }
        broken.sort_unstable();
        for number in broken {
            let delay = self.client_delay(&mut self.client_prng.borrow_mut());
            let cluster = self.clone();
            self.executor.schedule(self.executor.now() + delay, move || cluster.end_call(number, CallEnd::Broken));
        }
    }
}

fn words_of(request: &Request) -> String {
    let operation = match &request.operation {
        Operation::Get { context } => format!("get context {context:?}"),
        Operation::Put { context, value, write_id } => {
            format!("put {} ({} bytes) context {context:?}", write_id.0, value.bytes.len())
        }
        Operation::Delete { context, write_id } => format!("delete {} context {context:?}", write_id.0),
    };
    format!("{:?} {operation} {:?}", request.key, request.consistency)
}

fn detail_of(response: &Response) -> u64 {
    use crate::protocol::{message::Answer, versions::Actor};
    let bits = |actor: Actor| actor.node().0 << 16 ^ actor.incarnation();
    match response {
        Ok(Answer::Got(siblings)) => siblings
            .head
            .entries
            .iter()
            .fold(1, |h, e| (h ^ bits(e.dot.actor) ^ e.dot.counter).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        Ok(Answer::Written(context)) => {
            context.clock.entries().iter().fold(2, |h, d| h ^ bits(d.actor) ^ d.counter << 20)
        }
        Err(failure) => failure.code as u64 + 1000,
    }
}

/// Whether another node may be tried after this failure.
pub fn worth_a_retry(failure: &Failure) -> bool {
    failure.code.retryable() || failure.code == ErrorCode::DiskFull
}
