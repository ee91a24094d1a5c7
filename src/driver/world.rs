//! The seam between a shard and everything that is not its disk: other shards, clients, the clock.
//!
//! A world never blocks and may lose what it is given. What comes from outside reaches the shard through its
//! [`Inbox`], which the world fills.

use crate::{
    protocol::message::{Envelope, Lane, Message, Request, Response},
    types::{Address, Instant, Key, Stranger, TableChange},
};
use std::{
    cell::RefCell,
    collections::VecDeque,
    net::SocketAddr,
    rc::Rc,
    task::{Poll, Waker},
};

pub use crate::protocol::message::ClientToken;

/// What reaches a shard from its world.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// A client of this shard asks.
    Request { client: ClientToken, request: Request },
    /// A client of this shard makes, alters or drops a table; answered like a write, with an empty context.
    TableChange { client: ClientToken, change: TableChange, deadline: Instant },
    /// Another shard speaks.
    Message(Envelope),
    /// The connection to this core of another node works (again).
    PeerReachable(Address, Lane),
    /// The connection to this core is refused, reset or times out; all that was on its way over it may be lost.
    PeerUnreachable(Address, Lane),
    /// A node of another cluster was met.
    Stranger(Stranger),
    /// The arc of this key, or all of them, are to be compared with their other homes soon.
    Repair { key: Option<Key> },
    /// The instant asked for with [`World::wake_at`] has come.
    Wake,
    /// The node will stop soon, and serves until then: others are told.
    Drain,
    /// Finish what is in hand and stop.
    Stop,
}

impl Arrival {
    fn bytes(&self) -> usize {
        match self {
            Arrival::Request { request, .. } => request.operation.bytes(),
            Arrival::Message(envelope) => envelope.message.bytes(),
            Arrival::TableChange { .. }
            | Arrival::PeerReachable(..)
            | Arrival::PeerUnreachable(..)
            | Arrival::Stranger(_)
            | Arrival::Repair { .. }
            | Arrival::Wake
            | Arrival::Drain
            | Arrival::Stop => 0,
        }
    }
}

/// The surroundings of one shard.
pub trait World: 'static {
    fn now(&self) -> Instant;
    /// Nanoseconds since 1970 by the wall clock, which may be wrong and may jump.
    fn wall_time(&self) -> u64;
    /// Sends to another shard, of this node or another. May lose it silently.
    fn send(&self, envelope: Envelope);
    /// Sends to shard 0 of whatever node answers at this address and peer port: the first words of a newcomer.
    fn send_to_seed(&self, seed: SocketAddr, message: Message);
    /// Answers a client. The token is not used again.
    fn reply(&self, client: ClientToken, response: Response);
    /// Puts [`Arrival::Wake`] into the inbox at this time; replaces what was asked for before.
    fn wake_at(&self, at: Instant);
    /// Lets other work of this core run.
    fn breathe(&self) -> impl Future<Output = ()>;
}

/// Arrivals on their way into a driver. One core, no lock: the world pushes, the driver takes.
#[derive(Clone, Default)]
pub struct Inbox(Rc<RefCell<InboxState>>);

#[derive(Default)]
struct InboxState {
    arrivals: VecDeque<Arrival>,
    bytes: usize,
    waker: Option<Waker>,
}

impl Inbox {
    pub fn new() -> Inbox {
        Inbox::default()
    }
    pub fn push(&self, arrival: Arrival) {
        let mut state = self.0.borrow_mut();
        state.bytes += arrival.bytes();
        state.arrivals.push_back(arrival);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
    /// Arrivals that wait.
    pub fn len(&self) -> usize {
        self.0.borrow().arrivals.len()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes of values in them.
    pub fn bytes(&self) -> usize {
        self.0.borrow().bytes
    }
    pub fn pop(&self) -> Option<Arrival> {
        let mut state = self.0.borrow_mut();
        let arrival = state.arrivals.pop_front()?;
        state.bytes -= arrival.bytes();
        Some(arrival)
    }
    /// Ready when something has arrived.
    pub fn poll_arrived(&self, waker: &Waker) -> Poll<()> {
        let mut state = self.0.borrow_mut();
        if state.arrivals.is_empty() {
            state.waker = Some(waker.clone());
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }
}
