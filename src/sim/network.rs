//! The wires between nodes: delay, loss, duplicates, messages held back, cuts in one or both directions, clogs; and
//! connections that are refused, reset and made again.
//!
//! What travels are encoded frames, made and read by `wire/` as in production. Between shards of one node they arrive
//! in order and for sure; between nodes the network does what the plan says, which is worse than TCP. But one thing is
//! kept of TCP: a forwarded request arrives once or not at all. Whoever coordinates a second copy of it, later, could
//! do what its client was told had not been done. All other messages may arrive twice.
//!
//! Each core has connections of its own (`super::links`), and hears of those alone.

use super::{
    cluster::{Cluster, End},
    links::{Links, Route},
    plan::{NetworkPlan, Plan},
    planted::Planted,
    prng::Prng,
};
use crate::{
    driver::world::Arrival,
    limits::{INBOX_MESSAGES_MAX, RECONNECT_MAX, RECONNECT_MIN},
    protocol::message::{Envelope, Lane, Message},
    types::{Address, Instant},
    wire::{self, Age, Frame, FrameEncoder, Pieces, Trust, age},
};
use std::{rc::Rc, time::Duration};

pub struct Network {
    plan: NetworkPlan,
    pub(super) links: Links,
    nodes: usize,
    prng: Prng,
    spoiler: Prng,
    pub(super) stranger: Prng,
    encoder: FrameEncoder,
    /// After healing: no loss, no duplicates, nothing held.
    calm: bool,
    /// When the last message that is on its way arrives.
    last_arrival: Instant,
}

/// The way of a frame between shards of one node.
const MESH_DELAY: Duration = Duration::from_micros(3);
/// A connection that is not made within this is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

impl Network {
    pub fn new(plan: &Plan) -> Network {
        Network {
            plan: plan.network,
            links: Links::new(plan.nodes + usize::from(plan.outsider)),
            nodes: plan.nodes + usize::from(plan.outsider),
            prng: Prng::stream(plan.seed, "network"),
            spoiler: Prng::stream(plan.seed, "planted"),
            stranger: Prng::stream(plan.seed, "strange frames"),
            encoder: FrameEncoder::new(),
            calm: true,
            last_arrival: Instant::ZERO,
        }
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
}

/// The fate of one message.
struct Fate {
    lost: bool,
    first: Duration,
    second: Option<Duration>,
    held: bool,
}

/// A frame on its way.
#[derive(Clone)]
pub(super) struct Parcel {
    /// `None`: between cores of one node.
    pub route: Option<Route>,
    pub from: usize,
    /// Of the sender.
    pub life: u64,
    pub target: Address,
    pub to: usize,
    pub pieces: Pieces,
}

impl Cluster {
    /// A shard sends. Whatever goes wrong, the sender is not told here.
    pub(super) fn send(self: &Rc<Self>, from: usize, envelope: Envelope) {
        let Some(to) = self.index_of(envelope.to.node) else { return };
        if to == from {
            return self.send_within(from, envelope);
        }
        if let Message::Replicate { key, siblings, fresh, .. } = &envelope.message {
            self.traces.borrow_mut().sent(key, &siblings.head, *fresh);
        }
        let envelope = if self.plan.planted.is_some() {
            let mut spoiler = self.network.borrow_mut().spoiler.fork();
            let Some(spoiled) = self.spoil_message(envelope, &mut spoiler) else { return };
            spoiled
        } else {
            envelope
        };
        let Some(pieces) = self.encode(from, &envelope) else { return };
        let Some(route) = Route::of(from, to, &envelope) else { return };
        if !self.connected(route) {
            return;
        }
        let now = self.executor.now();
        let fate = {
            let network = &mut *self.network.borrow_mut();
            let clogged = network.links.clogged_until(route).since(now);
            draw_fate(network, clogged)
        };
        if fate.lost || fate.held {
            let passes = if fate.held { now + fate.first } else { now };
            self.troubles.borrow_mut().of_message(from, to, passes);
        }
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
        let parcel = Parcel { route: Some(route), from, life: self.life(from), target: envelope.to, to, pieces };
        if let Some(delay) = fate.second.filter(|_| !matches!(envelope.message, Message::Forward { .. })) {
            self.count(|c| c.messages_doubled += 1);
            self.arrive_later(now + delay, parcel.clone());
        }
        self.arrive_later(now + fate.first, parcel);
    }
    fn encode(&self, from: usize, envelope: &Envelope) -> Option<Pieces> {
        let now = self.local_now(from);
        let encoded = wire::encode_peer(&mut self.network.borrow_mut().encoder, envelope, now);
        match encoded {
            Ok(pieces) => Some(pieces),
            Err(e) => {
                // On an unsound medium a record may be what it should not; that it goes no further is what counts.
                if self.plan.faults.unsound == Some(from) {
                    self.excuse(|e| e.unsendable_from_rot += 1);
                } else {
                    let text = format!("node {from} made a message that cannot be sent: {e}");
                    self.violate(super::checker::Invariant::Alive, text);
                }
                None
            }
        }
    }
    fn send_within(self: &Rc<Self>, node: usize, mut envelope: Envelope) {
        let target = envelope.to;
        if let Message::View { standing, .. } = &mut envelope.message
            && self.planted(Planted::LoneSign)
        {
            self.count(|c| c.planted += u64::from(standing.signs > 0));
            standing.signs = 0;
        }
        if let Some(pieces) = self.encode(node, &envelope) {
            let parcel = Parcel { route: None, from: node, life: self.life(node), target, to: node, pieces };
            self.arrive_later(self.executor.now() + MESH_DELAY, parcel);
        }
    }
    /// When the last of what is on its way now arrives: messages, and the news that a machine has gone dark.
    pub fn last_arrival(&self) -> Instant {
        self.network.borrow().last_arrival
    }
    fn arrive_later(self: &Rc<Self>, at: Instant, parcel: Parcel) {
        let network = &mut *self.network.borrow_mut();
        network.last_arrival = network.last_arrival.max(at);
        let cluster = self.clone();
        self.executor.schedule(at, move || cluster.arrive(parcel));
    }
    fn arrive(self: &Rc<Self>, parcel: Parcel) {
        let Parcel { route, from, life, to, .. } = parcel;
        if from == to && !self.lives(to, life) {
            return;
        }
        if route.is_some_and(|route| self.network.borrow().links.is_cut(route)) {
            self.note(21, from as u64 | (to as u64) << 16, || format!("cut off {from} -> {to}"));
            return;
        }
        let open = if from == to { self.running(to) } else { self.serves(to, parcel.target.shard.0) };
        if !open {
            self.count(|c| c.messages_to_the_dead += 1);
            return;
        }
        if route.is_some() {
            self.meet_strange(&parcel);
        }
        match route.filter(|_| self.paused(to)) {
            Some(route) => self.keep(parcel, route),
            None => self.take_in(parcel),
        }
    }
    /// A process reads a frame from its socket.
    pub(super) fn take_in(self: &Rc<Self>, Parcel { route, from, target, to, pieces, .. }: Parcel) {
        let Some(inbox) = self.inbox(to, target.shard.0) else {
            self.count(|c| c.messages_to_the_dead += 1);
            return;
        };
        let trust = if from == to { Trust::SameNode } else { Trust::Verify };
        let bytes = pieces.bytes();
        let decoded = Frame::from_pieces(pieces)
            .and_then(|frame| wire::decode_peer(&frame, self.when_sent(&frame, route, to), trust));
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

    /// When a frame was sent, by the receiver's clock: what lies above the least difference of a connection is time
    /// that it has waited.
    fn when_sent(&self, frame: &Frame, route: Option<Route>, to: usize) -> Instant {
        let now = self.local_now(to);
        match route {
            None => age::sent_by_own_clock(frame.header(), now),
            Some(_) if self.planted(Planted::LateWrites) => {
                self.count(|c| c.planted += 1);
                now
            }
            Some(route) => self.network.borrow_mut().links.link_mut(route).age.sent(frame, now),
        }
    }

    // ---- connections ----

    /// A moment within this, drawn for the network.
    pub(super) fn network_duration(&self, within: Duration) -> Duration {
        self.network.borrow_mut().prng.duration(Duration::ZERO, within)
    }
    /// Whether there is a connection, or one is made now. Otherwise the frame is lost, and the sender will hear why.
    fn connected(self: &Rc<Self>, route: Route) -> bool {
        let link = self.network.borrow().links.link(route);
        if link.broken {
            return false;
        }
        let (serves, life) = (self.serves(route.to, route.to_shard), self.life(route.to));
        if link.peer_life == 0 {
            let severed = self.network.borrow().links.is_severed(route);
            if serves && !severed && !self.paused(route.to) {
                self.make_connection(route);
                return true;
            }
            if !self.vanished(route) {
                let refused = self.running(route.to) && !severed && !self.paused(route.to);
                let wait = if refused { self.network.borrow_mut().delay() } else { CONNECT_TIMEOUT };
                self.break_connection(route, wait);
            }
            return false;
        }
        if serves && link.peer_life != life {
            // A connection to the peer's former life: its kernel answers with a reset.
            self.break_connection(route, Duration::ZERO);
            return false;
        }
        true
    }
    /// The two sides greet each other: the first to tell their clocks.
    fn make_connection(&self, route: Route) {
        let told = age::clock(self.local_now(route.from));
        let age = Age::new(Some(told), self.local_now(route.to));
        let peer_life = self.life(route.to);
        let network = &mut *self.network.borrow_mut();
        let link = network.links.link_mut(route);
        (link.broken, link.peer_life, link.age) = (false, peer_life, age);
    }
    /// Whether the sender knows that there is no such core any more: it does not even try.
    fn vanished(&self, route: Route) -> bool {
        let member = || self.handle(route.from, route.from_shard)?.member(self.node_id(route.to)?);
        self.listening(route.to)
            && route.to_shard >= self.shard_count(route.to)
            && member().is_some_and(|member| route.to_shard >= member.shards)
    }
    /// A node listens: nothing more to do for those who are connected; those who retry will find it.
    pub(super) fn came_up(self: &Rc<Self>, index: usize) {
        let network = &mut *self.network.borrow_mut();
        for other in 0..network.nodes {
            for route in Links::between(index, other) {
                // Its own connections are made anew.
                let link = network.links.link_mut(route);
                (link.broken, link.peer_life) = (false, 0);
            }
        }
    }
    /// A node is gone. After a kill or a stop its kernel resets all connections; a dark machine is silent.
    pub(super) fn went_down(self: &Rc<Self>, index: usize, end: End) {
        for other in (0..self.node_count()).filter(|o| *o != index) {
            let (at, routes) = {
                let network = &mut *self.network.borrow_mut();
                let wait = match end {
                    End::Kill | End::Stop => network.delay(),
                    End::PowerLoss => network.prng.duration(Duration::from_secs(2), Duration::from_secs(9)),
                };
                let at = self.executor.now() + wait;
                network.last_arrival = network.last_arrival.max(at);
                (at, network.links.connected(other, index))
            };
            if !routes.is_empty() {
                self.executor.schedule(at, break_if_dead(self, routes, index));
            }
        }
    }
    /// A connection breaks: its sender hears of it after this wait, and tries again until it succeeds.
    pub(super) fn break_connection(self: &Rc<Self>, route: Route, wait: Duration) {
        {
            let network = &mut *self.network.borrow_mut();
            if std::mem::replace(&mut network.links.link_mut(route).broken, true) {
                return;
            }
        }
        self.count(|c| c.connections_broken += 1);
        self.trouble_link(route.from, route.to, self.executor.now() + wait);
        let (cluster, life) = (self.clone(), self.life(route.from));
        self.executor.schedule(self.executor.now() + wait, move || {
            if cluster.lives(route.from, life) {
                cluster.tell(route, Arrival::PeerUnreachable);
                cluster.retry_later(route, life);
            }
        });
    }
    /// Everybody finds out which connections lead to a former life of a peer, as keepalive does in the end.
    pub fn miss_the_dead(self: &Rc<Self>) {
        let pairs = (0..self.node_count()).flat_map(|from| (0..self.node_count()).map(move |to| (from, to)));
        for (from, to) in pairs.filter(|(from, to)| from != to) {
            let life = self.life(to);
            let routes = self.network.borrow().links.connected(from, to);
            let stale = |route: &Route| self.network.borrow().links.link(*route).peer_life != life;
            for route in routes.into_iter().filter(stale).collect::<Vec<_>>() {
                self.break_connection(route, Duration::ZERO);
            }
        }
    }
    fn retry_later(self: &Rc<Self>, route: Route, life: u64) {
        let wait = self.network.borrow_mut().prng.duration(RECONNECT_MIN, RECONNECT_MAX);
        let cluster = self.clone();
        self.executor.schedule(self.executor.now() + wait, move || {
            if cluster.lives(route.from, life) {
                cluster.retry(route, life);
            }
        });
    }
    fn retry(self: &Rc<Self>, route: Route, life: u64) {
        let vanished = self.vanished(route);
        let severed = self.network.borrow().links.is_severed(route);
        let works = self.serves(route.to, route.to_shard) && !severed;
        if !vanished && (!works || self.paused(route.to) || self.paused(route.from)) {
            return self.retry_later(route, life);
        }
        if vanished {
            let network = &mut *self.network.borrow_mut();
            let link = network.links.link_mut(route);
            (link.broken, link.peer_life) = (false, 0);
        } else {
            self.make_connection(route);
        }
        if !vanished {
            self.trouble_link(route.from, route.to, self.executor.now());
            self.tell(route, Arrival::PeerReachable);
        }
    }
    /// The core that a connection belongs to hears of it.
    fn tell(&self, route: Route, arrival: fn(Address, Lane) -> Arrival) {
        let Some(id) = self.node_id(route.to) else { return };
        let core = Address::new(id, route.to_shard);
        self.note(23, route.detail(), || {
            format!("{}/{} is told {:?}", route.from, route.from_shard, arrival(core, route.lane))
        });
        if let Some(inbox) = self.inbox(route.from, route.from_shard) {
            inbox.push(arrival(core, route.lane));
        }
    }

    // ---- faults ----

    fn trouble_link(&self, from: usize, to: usize, until: Instant) {
        self.troubles.borrow_mut().of_link(from, to, until);
    }
    /// Whether on some of its connections nothing, or late only, comes through now.
    pub(super) fn is_link_ill(&self, from: usize, to: usize) -> bool {
        let (network, now) = (self.network.borrow(), self.executor.now());
        let cores = self.shard_count(from).max(self.shard_count(to));
        let real = |route: &Route| route.from_shard < cores && route.to_shard < cores;
        Links::between(from, to).filter(real).any(|route| {
            network.links.is_cut(route) || network.links.clogged_until(route) > now || network.links.link(route).broken
        })
    }

    /// Cuts one direction between two nodes, or joins it again.
    pub fn cut(self: &Rc<Self>, from: usize, to: usize, cut: bool) {
        self.network.borrow_mut().links.cut_nodes(from, to, cut);
        self.trouble_link(from, to, self.executor.now());
        self.note(24, from as u64 | (to as u64) << 16 | u64::from(cut) << 32, || {
            format!("{} {from} -> {to}", if cut { "cut" } else { "joined" })
        });
        if cut {
            // Both ends run into time-outs, unless the cut is over by then.
            let routes = {
                let network = self.network.borrow();
                [network.links.connected(from, to), network.links.connected(to, from)].concat()
            };
            self.break_if_cut(routes);
        }
    }
    /// Cuts one link alone, or joins it again.
    pub fn cut_link(self: &Rc<Self>, route: Route, cut: bool) {
        self.network.borrow_mut().links.link_mut(route).cut = cut;
        self.trouble_link(route.from, route.to, self.executor.now());
        self.note(26, route.detail() ^ u64::from(cut) << 32, || {
            format!("{} {route:?}", if cut { "cut" } else { "joined" })
        });
        if cut {
            self.break_if_cut(vec![route]);
        }
    }
    fn break_if_cut(self: &Rc<Self>, routes: Vec<Route>) {
        let wait = self.network.borrow_mut().prng.duration(Duration::from_secs(1), Duration::from_secs(8));
        let cluster = self.clone();
        self.executor.schedule(self.executor.now() + wait, move || {
            for route in routes {
                let still = cluster.network.borrow().links.is_severed(route);
                if still && cluster.running(route.from) {
                    cluster.break_connection(route, Duration::ZERO);
                }
            }
        });
    }
    /// Nothing leaves this direction before `until`.
    pub fn clog(&self, from: usize, to: usize, until: Instant) {
        self.network.borrow_mut().links.clog_nodes(from, to, until);
        self.trouble_link(from, to, until);
        self.note(25, from as u64 | (to as u64) << 16, || format!("clogged {from} -> {to}"));
    }
    /// The network as it should be, from now on.
    pub fn mend_network(&self) {
        let (now, nodes) = (self.executor.now(), self.node_count());
        (0..nodes).flat_map(|a| (0..nodes).map(move |b| (a, b))).for_each(|(a, b)| self.trouble_link(a, b, now));
        let network = &mut *self.network.borrow_mut();
        network.links.mend();
        network.set_calm(true);
    }
}

fn break_if_dead(cluster: &Rc<Cluster>, routes: Vec<Route>, to: usize) -> impl FnOnce() + 'static {
    let (cluster, life) = (cluster.clone(), cluster.life(to));
    move || {
        for route in routes {
            let stale = cluster.network.borrow().links.link(route).peer_life <= life;
            if stale && !cluster.lives(to, life) && cluster.running(route.from) {
                cluster.break_connection(route, Duration::ZERO);
            }
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
        Message::Returned { .. } => "returned",
        Message::Remembered { .. } => "remembered",
        Message::View { .. } => "view",
        Message::Tables(_) => "tables",
        Message::TableNews(_) => "table news",
        Message::Clock { .. } => "clock",
        Message::Reference { .. } => "reference",
        Message::Parting { .. } => "parting",
        Message::Sums { .. } => "sums",
        Message::Summed(_) => "summed",
        Message::Keys { .. } => "keys",
        Message::Keyed(_) => "keyed",
        Message::Agreed { .. } => "agreed",
    }
}

/// A message in words, without values.
fn describe(message: &Message) -> String {
    match message {
        Message::Replicate { key, siblings, purpose, .. } => {
            format!("replicate {purpose:?} {key:?} {:?}", siblings.head)
        }
        Message::Fetch { key, depth, .. } => format!("fetch {key:?} {depth:?}"),
        Message::Forward { request, hops, stamp, .. } => format!("forward {:?} hops {hops} {stamp:?}", request.key),
        Message::Replicated(result) => format!("replicated {result:?}"),
        Message::Sums { session, part, shift, .. } => format!("sums {session} {:?} shift {shift}", part.span),
        Message::Summed(result) => format!("summed {:?}", result.as_ref().map(|summed| summed.sums.len())),
        Message::Keys { part, after } => format!("keys {:?} after {after:?}", part.span),
        Message::Keyed(result) => format!("keyed {:?}", result.as_ref().map(|listed| listed.heads.len())),
        Message::Agreed { session, part } => format!("agreed {session} {:?}", part.span),
        other => name(other).to_string(),
    }
}
