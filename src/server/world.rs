//! The surroundings of one shard in the real world: its ring, its ways to other cores and nodes, and the clients that
//! wait for it.

use super::{
    backlog::BacklogWatch,
    callers::Callers,
    clock,
    disk::RingDisk,
    latency::{Latencies, Timed},
    mesh::{Mesh, Parcel},
    peers::Peers,
    ring::Ring,
    watch::Watches,
};
use crate::{
    driver::{
        core::Handle,
        world::{Arrival, ClientToken, Inbox, World},
    },
    limits::{BACKGROUND_TIMEOUT, DRAIN_QUIET, INBOX_BYTES_MAX, INBOX_MESSAGES_MAX},
    protocol::message::{Envelope, Message, Response},
    types::{Address, Instant},
    wire::{self, Frame, FrameEncoder, PEER_REVISION, Trust, WireError, age},
};
use futures_util::future::{Either, select};
use std::{
    cell::{Cell, OnceCell, RefCell},
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    task::{Poll, Waker},
};

/// What passes between this shard and others, for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    pub connections: u64,
    pub http_requests: u64,
    pub client_requests: u64,
    pub peer_messages_sent: u64,
    pub peer_messages_received: u64,
    pub messages_dropped: u64,
    pub messages_unread: u64,
}

/// A counter of one core.
pub fn count(traffic: &Cell<Traffic>, change: impl FnOnce(&mut Traffic)) {
    let mut now = traffic.get();
    change(&mut now);
    traffic.set(now);
}

pub struct ServerWorld {
    pub address: Address,
    pub ring: Rc<Ring>,
    pub inbox: Inbox,
    pub mesh: Rc<Mesh>,
    pub peers: Rc<Peers>,
    pub callers: Rc<Callers>,
    pub watches: Watches,
    pub replies: Replies,
    /// The node is stopping: what clients ask for from now on is not begun.
    pub draining: Cell<bool>,
    /// Requests over HTTP that have begun and are not answered.
    pub begun: Cell<usize>,
    /// When the last connection of a client ended.
    pub left: Cell<Instant>,
    pub traffic: Cell<Traffic>,
    pub backlog: BacklogWatch,
    pub encoder: RefCell<FrameEncoder>,
    /// The shard, once it runs.
    pub handle: OnceCell<Handle<ServerWorld, RingDisk>>,
    /// Ends the node, for this reason.
    pub end: OnceCell<Box<dyn Fn(String)>>,
    alarm: Alarm,
}

impl ServerWorld {
    pub fn new(address: Address, ring: Rc<Ring>, mesh: Rc<Mesh>, peers: Rc<Peers>) -> Rc<ServerWorld> {
        Rc::new(ServerWorld {
            address,
            ring,
            inbox: Inbox::new(),
            mesh,
            peers,
            callers: Rc::default(),
            watches: Watches::default(),
            replies: Replies::default(),
            draining: Cell::new(false),
            begun: Cell::new(0),
            left: Cell::new(Instant::ZERO),
            traffic: Cell::default(),
            backlog: BacklogWatch::default(),
            encoder: RefCell::default(),
            handle: OnceCell::new(),
            end: OnceCell::new(),
            alarm: Alarm::default(),
        })
    }

    /// A client's connection has ended.
    pub fn part(&self) {
        count(&self.traffic, |t| t.connections -= 1);
        self.left.set(clock::now());
    }
    /// Nobody is connected, nor was a moment ago.
    pub fn is_quiet(&self) -> bool {
        self.traffic.get().connections == 0 && clock::now().since(self.left.get()) >= DRAIN_QUIET
    }
    /// Whether anything of a client's is in hand: a request that has begun, or an answer that is not sent.
    pub fn is_answering(&self) -> bool {
        self.begun.get() > 0 || self.replies.pending() > 0 || self.watches.outgoing() > 0
    }

    /// The node must not serve.
    pub fn give_up(&self, reason: String) {
        if let Some(end) = self.end.get() {
            end(reason);
        }
    }

    pub fn drop_message(&self) {
        count(&self.traffic, |t| t.messages_dropped += 1);
    }

    /// Takes in a message from another shard, unless too many wait.
    pub fn arrive(&self, envelope: Envelope) {
        let full = self.inbox.len() >= INBOX_MESSAGES_MAX || self.inbox.bytes() >= INBOX_BYTES_MAX;
        if envelope.to != self.address || full {
            return self.drop_message();
        }
        self.inbox.push(Arrival::Message(envelope));
    }

    /// A frame from a core of another node is whole, but its message cannot be read. That costs the message, not the
    /// connection, and whoever waits for an answer hears so.
    pub fn refuse(&self, from: Address, frame: &Frame, error: &WireError) {
        count(&self.traffic, |t| t.messages_unread += 1);
        let unread = self.traffic.get().messages_unread;
        if unread.is_power_of_two() {
            tracing::warn!(%from, %error, unread, "a message of another node cannot be read");
        }
        if let Some(message) = wire::answer_unread(frame.kind()) {
            let deadline = clock::now() + BACKGROUND_TIMEOUT;
            self.send(Envelope { from: self.address, to: from, exchange: frame.exchange(), deadline, message });
        }
    }

    /// Takes in a frame from another core of this node.
    pub fn arrive_from_core(&self, pieces: wire::Pieces) {
        let decoded = Frame::from_pieces(pieces).and_then(|frame| {
            let sent = age::sent_by_own_clock(frame.header(), clock::now());
            wire::decode_peer(&frame, sent, Trust::SameNode)
        });
        match decoded {
            Ok(envelope) => self.arrive(envelope),
            Err(error) => {
                tracing::error!(%error, "a frame from a core of this node cannot be read");
                self.drop_message();
            }
        }
    }

    /// Gives [`Arrival::Wake`] when its time has come. Runs for ever.
    pub async fn keep_alarm(self: Rc<Self>) {
        loop {
            let target = self.alarm.set_later_than(Instant::NEVER).await;
            let now = clock::now();
            if target <= now {
                self.alarm.target.set(Instant::NEVER);
                self.inbox.push(Arrival::Wake);
                glommio::executor().yield_now().await;
                continue;
            }
            // Woken early when an earlier time is asked for; a later one is seen when this one comes.
            let earlier = pin!(self.alarm.set_earlier_than(target));
            if let Either::Left(_) = select(pin!(self.ring.pause(target.since(now))), earlier).await {
                let due = self.alarm.target.get();
                if due <= clock::now() {
                    self.alarm.target.set(Instant::NEVER);
                    self.inbox.push(Arrival::Wake);
                }
            }
        }
    }
}

impl World for ServerWorld {
    fn now(&self) -> Instant {
        clock::now()
    }

    fn wall_time(&self) -> u64 {
        clock::wall()
    }

    fn send(&self, envelope: Envelope) {
        if envelope.to == self.address {
            return self.inbox.push(Arrival::Message(envelope));
        }
        let encoder = &mut *self.encoder.borrow_mut();
        let sent = if envelope.to.node == self.address.node {
            wire::encode_peer(encoder.speaking(PEER_REVISION), &envelope, clock::now()).map(|pieces| {
                self.mesh.send(envelope.to.shard, Parcel::Frame(pieces));
                self.ring.nudge();
            })
        } else {
            count(&self.traffic, |t| t.peer_messages_sent += 1);
            self.peers.send(encoder, &envelope)
        };
        match sent {
            Ok(()) => {}
            // An older node does without.
            Err(WireError::Unspoken(_)) => {}
            Err(error) => {
                tracing::error!(%error, to = %envelope.to, "a message cannot be sent");
                self.drop_message();
            }
        }
    }

    fn send_to_seed(&self, seed: SocketAddr, message: Message) {
        self.peers.send_to_seed(seed, message);
    }

    fn reply(&self, client: ClientToken, response: Response) {
        self.replies.answer(client, response);
    }

    fn wake_at(&self, at: Instant) {
        self.alarm.target.set(at);
        let wake = match *self.alarm.waiting.borrow() {
            Some((later_than, _)) => at < later_than,
            None => false,
        };
        if wake && let Some((_, waker)) = self.alarm.waiting.borrow_mut().take() {
            waker.wake();
        }
    }

    async fn breathe(&self) {
        let executor = glommio::executor();
        if self.ring.pressing() {
            self.ring.nudge();
            executor.yield_now().await;
        } else {
            executor.yield_if_needed().await;
        }
    }
}

/// The one timer of a shard.
struct Alarm {
    target: Cell<Instant>,
    /// Whoever waits for a target before this.
    waiting: RefCell<Option<(Instant, Waker)>>,
}

impl Default for Alarm {
    fn default() -> Alarm {
        Alarm { target: Cell::new(Instant::NEVER), waiting: RefCell::default() }
    }
}

impl Alarm {
    fn set_earlier_than(&self, bound: Instant) -> impl Future<Output = Instant> + '_ {
        poll_fn(move |cx| {
            let target = self.target.get();
            if target < bound {
                return Poll::Ready(target);
            }
            *self.waiting.borrow_mut() = Some((bound, cx.waker().clone()));
            Poll::Pending
        })
    }
    fn set_later_than(&self, never: Instant) -> impl Future<Output = Instant> + '_ {
        self.set_earlier_than(never)
    }
}

// ---- clients that wait -----------------------------------------------------------------------------------------

/// Whoever is to hear an answer.
pub trait Asker {
    fn answered(self: Rc<Self>, tag: u64, response: Response);
}

/// Requests in hand: who asked, by token.
#[derive(Default)]
pub struct Replies {
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    pending: Cell<usize>,
    pub latencies: RefCell<Latencies>,
}

#[derive(Default)]
struct Slot {
    turn: u32,
    /// What kind of request it is and since when it is in hand. Only requests for keys are timed.
    timed: Option<Timed>,
    asker: Option<(Rc<dyn Asker>, u64)>,
}

impl Replies {
    /// Requests in hand.
    pub fn pending(&self) -> usize {
        self.pending.get()
    }

    /// A token for a request; `tag` comes back with its answer. A request for a key is timed.
    pub fn expect(&self, asker: Rc<dyn Asker>, tag: u64, timed: Option<Timed>) -> ClientToken {
        self.pending.set(self.pending.get() + 1);
        let mut slots = self.slots.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            slots.push(Slot::default());
            (slots.len() - 1) as u32
        });
        let slot = &mut slots[index as usize];
        (slot.asker, slot.timed) = (Some((asker, tag)), timed);
        ClientToken(u64::from(slot.turn) << 32 | u64::from(index))
    }

    fn answer(&self, token: ClientToken, response: Response) {
        let (index, turn) = (token.0 as u32, (token.0 >> 32) as u32);
        let (asker, timed) = {
            let mut slots = self.slots.borrow_mut();
            let Some(slot) = slots.get_mut(index as usize).filter(|s| s.turn == turn) else { return };
            let Some(asker) = slot.asker.take() else { return };
            slot.turn = slot.turn.wrapping_add(1);
            (asker, slot.timed.take())
        };
        if let Some(timed) = timed {
            self.latencies.borrow_mut().ended(timed, &response);
        }
        self.free.borrow_mut().push(index);
        self.pending.set(self.pending.get() - 1);
        asker.0.answered(asker.1, response);
    }
}
