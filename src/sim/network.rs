//! The wires between nodes: delay, loss, duplicates, messages held back, cuts in one or both directions, clogs; and
//! connections that are refused, reset and made again.
//!
//! What travels are encoded frames, made and read by `wire/` as in production. Between shards of one node they arrive
//! in order and for sure; between nodes the network does what the plan says, which is worse than TCP. But one thing is
//! kept of TCP: a forwarded request arrives once or not at all. Whoever coordinates a second copy of it, later, could do
//! what its client was told had not been done. All other messages may arrive twice.

use super::{
    cluster::{Cluster, End},
    plan::{NetworkPlan, Plan},
    prng::Prng,
};
use crate::{
    driver::world::Arrival,
    limits::{INBOX_MESSAGES_MAX, RECONNECT_MAX, RECONNECT_MIN},
    protocol::message::{Envelope, Message},
    types::{Address, Instant},
    wire::{self, Age, Frame, FrameEncoder, Pieces, Trust, age},
};
use std::{rc::Rc, time::Duration};

/// One direction between two nodes.
#[derive(Clone, Copy, Default)]
struct Link {
    cut: bool,
    clogged_until: Instant,
    /// The connection that the sender holds is refused or reset; it tries again.
    broken: bool,
    /// The life of the peer that the connection was made with.
    peer_life: u64,
    /// What the peer knows of this node's clock, and by which lives of the two.
    age: Age,
    aged_by: (u64, u64),
}

pub struct Network {
    plan: NetworkPlan,
    links: Vec<Link>,
    nodes: usize,
    prng: Prng,
    spoiler: Prng,
    encoder: FrameEncoder,
    /// After healing: no loss, no duplicates, nothing held.
    calm: bool,
    /// When the last message that is on its way arrives.
    last_arrival: Instant,
}

/// The way of a frame between shards of one node.
const MESH_DELAY: Duration = Duration::from_micros(3);

impl Network {
    pub fn new(plan: &Plan) -> Network {
        Network {
            plan: plan.network,
            links: vec![Link::default(); plan.nodes * plan.nodes],
            nodes: plan.nodes,
            prng: Prng::stream(plan.seed, "network"),
            spoiler: Prng::stream(plan.seed, "planted"),
            encoder: FrameEncoder::new(),
            calm: true,
            last_arrival: Instant::ZERO,
        }
    }
    fn link(&mut self, from: usize, to: usize) -> &mut Link {
        &mut self.links[from * self.nodes + to]
    }
    pub fn client_loss(&self) -> f64 {
        if self.calm { 0.0 } else { self.plan.client_loss }
    }
    /// Message faults on or off.
    pub fn set_calm(&mut self, calm: bool) {
        self.calm = calm;
    }
    fn delay(&mut self) -> Duration {
        self.plan.delay_min + self.prng.exponential(self.plan.delay_mean)
    }
    /// Joins all that was cut and frees all that was clogged.
    fn mend_links(&mut self) {
        for link in &mut self.links {
            link.cut = false;
            link.clogged_until = Instant::ZERO;
        }
    }
}

/// The fate of one message.
struct Fate {
    lost: bool,
    first: Duration,
    second: Option<Duration>,
    held: bool,
}

impl Cluster {
    /// A shard sends. Whatever goes wrong, the sender is not told here.
    pub(super) fn send(self: &Rc<Self>, from: usize, envelope: Envelope) {
        let Some(to) = self.index_of(envelope.to.node) else { return };
        if to == from {
            return self.send_within(from, envelope);
        }
        let envelope = if self.plan.planted.is_some() {
            let mut spoiler = self.network.borrow_mut().spoiler.fork();
            let Some(spoiled) = self.spoil_message(envelope, &mut spoiler) else { return };
            spoiled
        } else {
            envelope
        };
        let target = envelope.to;
        let Some(pieces) = self.encode(from, &envelope) else { return };
        let now = self.executor.now();
        let peer_life = self.life(to);
        let fate = {
            let listening = self.listening(to);
            let network = &mut *self.network.borrow_mut();
            let link = *network.link(from, to);
            if link.broken {
                return;
            }
            if listening && link.peer_life == 0 {
                network.link(from, to).peer_life = peer_life;
            } else if listening && link.peer_life != peer_life {
                // A connection to the peer's former life: its kernel answers with a reset.
                return self.executor.schedule(now, break_later(self, from, to));
            }
            draw_fate(network, link.clogged_until.since(now))
        };
        if fate.lost {
            self.count(|c| c.messages_lost += 1);
            self.note(20, from as u64 | (to as u64) << 16, || {
                format!("lost {from} -> {to}: {}", name(&envelope.message))
            });
            return;
        }
        if fate.held {
            self.count(|c| c.messages_held += 1);
        }
        if let Some(delay) = fate.second.filter(|_| !matches!(envelope.message, Message::Forward { .. })) {
            self.count(|c| c.messages_doubled += 1);
            self.arrive_later(now + delay, from, target, to, pieces.clone());
        }
        self.arrive_later(now + fate.first, from, target, to, pieces);
    }
    fn encode(&self, from: usize, envelope: &Envelope) -> Option<Pieces> {
        let now = self.local_now(from);
        let encoded = wire::encode_peer(&mut self.network.borrow_mut().encoder, envelope, now);
        match encoded {
            Ok(pieces) => Some(pieces),
            Err(e) => {
                // On an unsound medium a record may be what it should not; that it goes no further is what counts.
                if self.plan.faults.unsound != Some(from) {
                    let text = format!("node {from} made a message that cannot be sent: {e}");
                    self.violate(super::checker::Invariant::Alive, text);
                }
                None
            }
        }
    }
    fn send_within(self: &Rc<Self>, node: usize, envelope: Envelope) {
        let target = envelope.to;
        if let Some(pieces) = self.encode(node, &envelope) {
            self.arrive_later(self.executor.now() + MESH_DELAY, node, target, node, pieces);
        }
    }
    /// When the last of what is on its way now arrives: messages, and the news that a machine has gone dark.
    pub fn last_arrival(&self) -> Instant {
        self.network.borrow().last_arrival
    }
    fn arrive_later(self: &Rc<Self>, at: Instant, from: usize, target: Address, to: usize, pieces: Pieces) {
        let network = &mut *self.network.borrow_mut();
        network.last_arrival = network.last_arrival.max(at);
        let cluster = self.clone();
        let life = self.life(from);
        self.executor.schedule(at, move || cluster.arrive(from, life, target, to, pieces));
    }
    fn arrive(self: &Rc<Self>, from: usize, from_life: u64, target: Address, to: usize, pieces: Pieces) {
        if from == to && !self.lives(to, from_life) {
            return;
        }
        if from != to && self.network.borrow_mut().link(from, to).cut {
            self.note(21, from as u64 | (to as u64) << 16, || format!("cut off {from} -> {to}"));
            return;
        }
        let open = if from == to { self.running(to) } else { self.listening(to) };
        let inbox = if open { self.inbox(to, target.shard.0) } else { None };
        let Some(inbox) = inbox else {
            self.count(|c| c.messages_to_the_dead += 1);
            return;
        };
        let trust = if from == to { Trust::SameNode } else { Trust::Verify };
        let bytes = pieces.bytes();
        let decoded = Frame::from_pieces(pieces).and_then(|frame| {
            let sent = if from == to {
                age::sent_by_own_clock(frame.header(), self.local_now(to))
            } else {
                self.when_sent(&frame, (from, from_life), to)
            };
            wire::decode_peer(&frame, sent, trust)
        });
        let envelope = match decoded {
            Ok(envelope) => envelope,
            Err(e) => {
                let text = format!("node {to} cannot read a message of node {from}: {e}");
                return self.violate(super::checker::Invariant::Alive, text);
            }
        };
        let detail = envelope.exchange ^ (bytes as u64) << 40 ^ u64::from(envelope.from.shard.0) << 8;
        self.note(22, detail ^ (from as u64) << 4 ^ to as u64, || {
            format!(
                "{from}/{} -> {to}/{} #{}: {}",
                envelope.from.shard.0,
                envelope.to.shard.0,
                envelope.exchange,
                describe(&envelope.message)
            )
        });
        if inbox.len() < INBOX_MESSAGES_MAX {
            inbox.push(Arrival::Message(envelope));
        }
    }

    /// When a frame of another node was sent, by the receiver's clock: what lies above the least difference of a
    /// connection is time that it has waited.
    fn when_sent(&self, frame: &Frame, (from, from_life): (usize, u64), to: usize) -> Instant {
        let (now, lives) = (self.local_now(to), (from_life, self.life(to)));
        let link = &mut *self.network.borrow_mut();
        let link = link.link(from, to);
        if link.aged_by != lives {
            (link.age, link.aged_by) = (Age::default(), lives);
        }
        link.age.sent(frame, now)
    }

    // ---- connections ----

    /// A node listens: nothing more to do for those who are connected; those who retry will find it.
    pub(super) fn came_up(self: &Rc<Self>, index: usize) {
        let network = &mut *self.network.borrow_mut();
        for other in 0..network.nodes {
            // Its own connections are made anew.
            *network.link(index, other) = Link { broken: false, peer_life: 0, ..*network.link(index, other) };
        }
    }
    /// A node is gone. After a kill its kernel resets all connections; a dark machine is silent.
    pub(super) fn went_down(self: &Rc<Self>, index: usize, end: End) {
        for other in (0..self.node_count()).filter(|o| *o != index) {
            let at = {
                let network = &mut *self.network.borrow_mut();
                let wait = match end {
                    End::Kill => network.delay(),
                    End::PowerLoss => network.prng.duration(Duration::from_secs(2), Duration::from_secs(9)),
                };
                let at = self.executor.now() + wait;
                network.last_arrival = network.last_arrival.max(at);
                at
            };
            self.executor.schedule(at, break_if_dead(self, other, index));
        }
    }
    /// The connection from one node to another breaks: the sender hears of it and tries again until it succeeds.
    fn break_connection(self: &Rc<Self>, from: usize, to: usize) {
        {
            let network = &mut *self.network.borrow_mut();
            let link = network.link(from, to);
            if link.broken {
                return;
            }
            link.broken = true;
        }
        self.count(|c| c.connections_broken += 1);
        self.tell(from, to, Arrival::PeerUnreachable);
        self.retry_later(from, to, self.life(from));
    }
    fn retry_later(self: &Rc<Self>, from: usize, to: usize, life: u64) {
        let wait = self.network.borrow_mut().prng.duration(RECONNECT_MIN, RECONNECT_MAX);
        let cluster = self.clone();
        self.executor.schedule(self.executor.now() + wait, move || {
            if !cluster.lives(from, life) {
                return;
            }
            let cut = {
                let network = &mut *cluster.network.borrow_mut();
                network.link(from, to).cut || network.link(to, from).cut
            };
            if cut || !cluster.listening(to) || cluster.paused(to) || cluster.paused(from) {
                return cluster.retry_later(from, to, life);
            }
            let peer_life = cluster.life(to);
            {
                let network = &mut *cluster.network.borrow_mut();
                let link = network.link(from, to);
                link.broken = false;
                link.peer_life = peer_life;
            }
            cluster.tell(from, to, Arrival::PeerReachable);
        });
    }
    fn tell(&self, node: usize, about: usize, arrival: fn(crate::types::NodeId) -> Arrival) {
        let Some(id) = self.node_id(about) else { return };
        self.note(23, node as u64 | (about as u64) << 16, || format!("node {node} is told {:?}", arrival(id)));
        for shard in 0..self.shard_count(node) {
            if let Some(inbox) = self.inbox(node, shard) {
                inbox.push(arrival(id));
            }
        }
    }

    // ---- faults ----

    /// Cuts one direction, or joins it again.
    pub fn cut(self: &Rc<Self>, from: usize, to: usize, cut: bool) {
        let wait = {
            let network = &mut *self.network.borrow_mut();
            network.link(from, to).cut = cut;
            network.prng.duration(Duration::from_secs(1), Duration::from_secs(8))
        };
        self.note(24, from as u64 | (to as u64) << 16 | u64::from(cut) << 32, || {
            format!("{} {from} -> {to}", if cut { "cut" } else { "joined" })
        });
        if cut {
            // Both ends run into time-outs, unless the cut is over by then.
            for (one, other) in [(from, to), (to, from)] {
                let cluster = self.clone();
                self.executor.schedule(self.executor.now() + wait, move || {
                    let still = cluster.network.borrow_mut().link(from, to).cut;
                    if still && cluster.running(one) {
                        cluster.break_connection(one, other);
                    }
                });
            }
        }
    }
    /// Nothing leaves this direction before `until`.
    pub fn clog(&self, from: usize, to: usize, until: Instant) {
        self.network.borrow_mut().link(from, to).clogged_until = until;
        self.note(25, from as u64 | (to as u64) << 16, || format!("clogged {from} -> {to}"));
    }
    /// The network as it should be, from now on.
    pub fn mend_network(&self) {
        let network = &mut *self.network.borrow_mut();
        network.mend_links();
        network.set_calm(true);
    }
}

fn break_later(cluster: &Rc<Cluster>, from: usize, to: usize) -> impl FnOnce() + 'static {
    let cluster = cluster.clone();
    move || cluster.break_connection(from, to)
}
fn break_if_dead(cluster: &Rc<Cluster>, from: usize, to: usize) -> impl FnOnce() + 'static {
    let (cluster, life) = (cluster.clone(), cluster.life(to));
    move || {
        let stale = cluster.network.borrow_mut().link(from, to).peer_life <= life;
        if stale && !cluster.lives(to, life) && cluster.running(from) {
            cluster.break_connection(from, to);
        }
    }
}

fn draw_fate(network: &mut Network, clogged: Duration) -> Fate {
    let first = clogged + network.delay();
    if network.calm {
        return Fate { lost: false, first, second: None, held: false };
    }
    let plan = network.plan;
    let held = network.prng.chance(plan.hold);
    let extra = if held { network.prng.duration(Duration::ZERO, plan.held) } else { Duration::ZERO };
    let second = network.prng.chance(plan.duplicate).then(|| clogged + network.delay() * 3);
    Fate { lost: network.prng.chance(plan.loss), first: first + extra, second, held }
}

fn name(message: &Message) -> &'static str {
    match message {
        Message::Forward { .. } => "forward",
        Message::Forwarded(_) => "forwarded",
        Message::Replicate { .. } => "replicate",
        Message::Replicated(_) => "replicated",
        Message::Fetch { .. } => "fetch",
        Message::Fetched(_) => "fetched",
        Message::GossipDigest { .. } => "gossip digest",
        Message::GossipDelta { .. } => "gossip delta",
        Message::GossipNews { .. } => "gossip news",
        Message::View { .. } => "view",
        Message::Tables { .. } => "tables",
    }
}

/// A message in words, without values.
fn describe(message: &Message) -> String {
    match message {
        Message::Replicate { key, siblings, purpose, .. } => {
            format!("replicate {purpose:?} {key:?} {:?}", siblings.head)
        }
        Message::Fetch { key, depth, .. } => format!("fetch {key:?} {depth:?}"),
        Message::Forward { request, hops } => format!("forward {:?} hops {hops}", request.key),
        Message::Replicated(result) => format!("replicated {result:?}"),
        other => name(other).to_string(),
    }
}
