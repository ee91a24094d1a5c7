//! Between nodes: each core connects to each core of each other node that it speaks to, and once more for long frames,
//! so that large values delay nobody.
//!
//! The HELLO says which cluster its sender belongs to. Two of different clusters are strangers: neither takes a word of
//! the other, and both say so. An address is not a node: who is looked for and who answers are compared, and one that
//! was looked for under another name hears of it.
//!
//! A connection carries messages one way, from the core that made it; answers come back over the other core's own
//! connection ([`super::callers`]). It starts with a HELLO in both directions. What gathers while a send is under way
//! goes in the next one. A connection that is refused, reset, silent for too long or answered by a stranger makes the
//! core unreachable: what was queued is dropped (its senders' deadlines notice), and the connection is tried again
//! after a pause that grows.
//!
//! Frames are encoded when they are queued, for the revision that the node spoke last. If its HELLO then says another
//! one, what was queued before it is dropped as well.

use super::{
    clock,
    ring::{Pieces, Ring},
    socket::Socket,
    watch::Watch,
    world::{ServerWorld, count},
};
use crate::{
    driver::world::Arrival,
    limits::{GUEST_REMEMBERED, GUESTS_MAX, GUESTS_PER_SOURCE, PEER_QUEUE_BYTES_MAX, RECONNECT_MAX, RECONNECT_MIN},
    protocol::message::{Envelope, Lane, Message},
    protocol::ring::FixedMap,
    types::{Address, ClusterId, Instant, NodeId, Ports, Stranger},
    wire::{self, ConnectionPurpose, FEATURES, FrameDecoder, FrameEncoder, PEER_REVISION, PeerHello, WireError, age},
};
use futures_util::future::{Either, select};
use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    rc::Rc,
    task::{Poll, Waker},
    time::Duration,
};

/// A connect, and the HELLO after it, may take so long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Sent bytes that stay unacknowledged for so long break a connection.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(5);
/// Seeds that one core talks to at once.
const SEED_CALLS_MAX: usize = 64;
/// The first words of a newcomer are worth nothing after this.
const SEED_DEADLINE: Duration = Duration::from_secs(5);

/// This end of every peer connection.
#[derive(Clone, Debug)]
pub struct PeerSelf {
    pub address: Address,
    pub generation: u64,
    pub ip: IpAddr,
    pub ports: Ports,
    /// The cluster that the node belonged to when it started.
    pub cluster: ClusterId,
    /// It has formed this cluster at this start.
    pub formed: bool,
}

impl PeerSelf {
    fn hello(&self, cluster: ClusterId, purpose: ConnectionPurpose, sought: Option<NodeId>) -> PeerHello {
        PeerHello {
            revision: PEER_REVISION,
            features: FEATURES,
            node: self.address.node,
            shard: self.address.shard,
            generation: self.generation,
            ip: self.ip,
            ports: self.ports,
            purpose,
            clock: Some(age::clock(clock::now())),
            cluster,
            sought,
        }
    }
}

/// Where a node is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Contact {
    ip: IpAddr,
    ports: Ports,
}

/// The outgoing side of one core.
pub struct Peers {
    own: PeerSelf,
    ring: Rc<Ring>,
    routes: RefCell<FixedMap<(Address, Lane), Rc<Route>>>,
    /// Nodes that have answered a call of this core and may not be members yet.
    strangers: RefCell<FixedMap<NodeId, Contact>>,
    /// Nodes that are no members and have connected to this core.
    guests: RefCell<FixedMap<NodeId, Presence>>,
    /// What nodes speak that do not speak the newest revision.
    revisions: RefCell<FixedMap<NodeId, u16>>,
    /// Nodes of other clusters that were met, and said so.
    refused: RefCell<FixedMap<NodeId, ClusterId>>,
    seed_calls: Cell<usize>,
    /// Seeds that did not answer as one when they were last called, and why.
    silent_seeds: RefCell<FixedMap<SocketAddr, String>>,
    world: RefCell<Option<std::rc::Weak<ServerWorld>>>,
}

/// Strangers that are remembered.
const STRANGERS_MAX: usize = crate::limits::MEMBERS_MAX;

impl Peers {
    pub fn new(own: PeerSelf, ring: Rc<Ring>) -> Rc<Peers> {
        Rc::new(Peers {
            own,
            ring,
            routes: RefCell::default(),
            strangers: RefCell::default(),
            guests: RefCell::default(),
            revisions: RefCell::default(),
            refused: RefCell::default(),
            seed_calls: Cell::new(0),
            silent_seeds: RefCell::default(),
            world: RefCell::default(),
        })
    }

    /// Before anything is sent.
    pub fn attach(&self, world: &Rc<ServerWorld>) {
        *self.world.borrow_mut() = Some(Rc::downgrade(world));
    }

    fn world(&self) -> Option<Rc<ServerWorld>> {
        self.world.borrow().as_ref().and_then(std::rc::Weak::upgrade)
    }

    /// The cluster that this node belongs to now.
    fn cluster(&self) -> ClusterId {
        let told = self.world().and_then(|world| world.handle.get().map(|handle| handle.cluster()));
        told.unwrap_or(self.own.cluster)
    }
    /// Whether somebody is of another cluster than this node. Who belongs to none yet may speak.
    fn is_stranger(&self, hello: &PeerHello) -> bool {
        let own = self.cluster();
        !own.is_none() && !hello.cluster.is_none() && hello.cluster != own
    }
    pub(super) fn check_cluster(&self, hello: &PeerHello) -> Result<(), String> {
        if !self.is_stranger(hello) {
            return Ok(());
        }
        let (node, theirs, own) = (hello.node, hello.cluster, self.cluster());
        let at = SocketAddr::new(hello.ip, hello.ports.peer);
        let known = self.refused.borrow_mut().insert(node, theirs) == Some(theirs);
        if self.refused.borrow().len() > STRANGERS_MAX {
            self.refused.borrow_mut().clear();
        }
        if !known {
            tracing::warn!(%node, %at, %theirs, %own, "refused: a node of another cluster; neither takes anything from the other");
        }
        if let Some(world) = self.world() {
            world.inbox.push(Arrival::Stranger(Stranger { node, cluster: theirs, at }));
        }
        Err(format!("{node} at {at} is of cluster {theirs}, this node of cluster {own}"))
    }
    /// A member of a cluster looks for another node here. Whoever has just formed a cluster of its own has lost that
    /// node's directory, most likely: it must not serve.
    pub(super) fn hear_sought(&self, hello: &PeerHello) -> Option<String> {
        let sought = hello.sought.filter(|sought| *sought != self.own.address.node)?;
        let alone = self.world().is_some_and(|w| w.handle.get().is_none_or(|h| h.members().len() == 1));
        let cluster = self.cluster();
        if !self.own.formed || !alone || hello.cluster == cluster {
            return None;
        }
        let at = SocketAddr::new(hello.ip, hello.ports.peer);
        Some(format!(
            "this node has just formed cluster {cluster} of its own, but node {} at {at} knows its address as that of node {sought} \
             of cluster {}: a data directory was lost, or the address belongs to another cluster. For an empty member of that \
             cluster remove the new data directory and start with --join {at}; for a cluster of its own give another address or \
             other ports",
            hello.node, hello.cluster
        ))
    }

    /// A node has answered a call of this core.
    fn meet(&self, hello: &PeerHello) {
        let mut strangers = self.strangers.borrow_mut();
        if strangers.len() >= STRANGERS_MAX && !strangers.contains_key(&hello.node) {
            strangers.clear();
        }
        strangers.insert(hello.node, Contact { ip: hello.ip, ports: hello.ports });
        self.learn_revision(hello);
    }
    pub(super) fn learn_revision(&self, hello: &PeerHello) {
        let mut revisions = self.revisions.borrow_mut();
        if hello.revision >= PEER_REVISION {
            revisions.remove(&hello.node);
        } else if revisions.len() < STRANGERS_MAX {
            revisions.insert(hello.node, hello.revision);
        }
    }
    /// What to speak with a node: as its latest HELLO says, else the newest.
    fn revision(&self, node: NodeId) -> u16 {
        self.revisions.borrow().get(&node).copied().unwrap_or(PEER_REVISION)
    }

    /// Where a core of a node is: as the member list says, else as the node has said itself. `None`: nobody knows, or
    /// it has no such core any more.
    fn contact(&self, to: Address) -> Option<Contact> {
        let world = self.world()?;
        match world.handle.get().and_then(|h| h.member(to.node)) {
            Some(member) => {
                let there = !member.state.is_gone() && to.shard.0 < member.shards;
                there.then_some(Contact { ip: member.ip, ports: member.ports })
            }
            None => {
                let called = self.strangers.borrow().get(&to.node).copied();
                // Its gossip is answered, and nothing else.
                let guest = || self.guests.borrow().get(&to.node).map(|presence| presence.contact);
                called.or_else(|| guest().filter(|_| to.shard.0 == 0))
            }
        }
    }

    /// Whether a node may say anything: a member, or one that answered when this node called.
    pub(super) fn is_known(&self, node: NodeId) -> bool {
        let member = self.world().and_then(|world| world.handle.get().and_then(|h| h.member(node)));
        member.map_or_else(|| self.strangers.borrow().contains_key(&node), |member| !member.state.is_gone())
    }

    /// Lets a node in that is no member, or not yet known here as one: from where it says it is, and few at once.
    pub(super) fn admit_guest(self: &Rc<Self>, hello: &PeerHello, socket: &Socket) -> Result<Guest, String> {
        let from = socket.peer_ip().map_err(|e| e.to_string())?;
        if from != hello.ip {
            return Err(format!("{} says that it is at {} and calls from {from}", hello.node, hello.ip));
        }
        let mut guests = self.guests.borrow_mut();
        let now = clock::now();
        guests.retain(|_, presence| presence.open > 0 || now.since(presence.seen) < GUEST_REMEMBERED);
        let open =
            |of: &dyn Fn(&Presence) -> bool| guests.values().filter(|p| of(p)).map(|p| p.open.max(1)).sum::<usize>();
        if open(&|_| true) >= GUESTS_MAX || open(&|presence| presence.contact.ip == from) >= GUESTS_PER_SOURCE {
            return Err("too many nodes are here that are no members".to_string());
        }
        let contact = Contact { ip: hello.ip, ports: hello.ports };
        let presence = guests.entry(hello.node).or_insert(Presence { contact, open: 0, seen: now });
        (presence.contact, presence.open, presence.seen) = (contact, presence.open + 1, now);
        Ok(Guest { peers: self.clone(), node: hello.node })
    }

    /// This node's HELLO to one that calls.
    pub(super) fn answer_to(&self, hello: &PeerHello) -> PeerHello {
        self.own.hello(self.cluster(), hello.purpose, None)
    }

    /// Encodes a message for a core of another node and queues it. An error: it cannot be sent.
    pub fn send(self: &Rc<Self>, encoder: &mut FrameEncoder, envelope: &Envelope) -> Result<(), WireError> {
        let revision = self.revision(envelope.to.node);
        let pieces = wire::encode_peer(encoder.speaking(revision), envelope, clock::now())?;
        let lane = envelope.message.lane();
        let Some(world) = self.world() else { return Ok(()) };
        // There are routes to members only, whoever is named by a message.
        let routed = self.routes.borrow().contains_key(&(envelope.to, lane));
        if (!routed && self.contact(envelope.to).is_none())
            || !self.route(&world, envelope.to, lane).push(pieces, revision)
        {
            world.drop_message();
        }
        Ok(())
    }

    fn route(self: &Rc<Self>, world: &ServerWorld, to: Address, lane: Lane) -> Rc<Route> {
        let mut routes = self.routes.borrow_mut();
        if let Some(route) = routes.get(&(to, lane)) {
            return route.clone();
        }
        let route = Rc::new(Route::new(to, lane, world.watches.start_toward_peer()));
        routes.insert((to, lane), route.clone());
        self.ring.spawn(self.clone().keep_route(route.clone()));
        route
    }

    /// Keeps a connection to one core of another node from the first message to it until it is no member any more.
    async fn keep_route(self: Rc<Self>, route: Rc<Route>) {
        let mut pause = RECONNECT_MIN;
        route.wait_for_work().await;
        // From here on the connection is kept up, so that the return of a lost node is noticed without a message.
        loop {
            let Some(contact) = self.contact(route.to) else {
                self.forget(&route);
                self.routes.borrow_mut().remove(&(route.to, route.lane));
                return;
            };
            let Some(world) = self.world() else { return };
            let watch = route.watch.borrow().clone();
            let connecting = Box::pin(self.connect(&route, contact));
            let met = match select(connecting, pin!(watch.until_evicted())).await {
                Either::Left((met, _)) => met,
                Either::Right(_) => Err(io::Error::other("too much waits for it")),
            };
            match met {
                Ok((socket, mut decoder, revision)) => {
                    pause = RECONNECT_MIN;
                    watch.attach(&socket);
                    if route.revision.get() != revision {
                        self.forget(&route);
                    }
                    world.inbox.push(Arrival::PeerReachable(route.to, route.lane));
                    let error = self.pump(&route, &socket, &mut decoder).await;
                    route.under_way.set(0);
                    socket.close();
                    tracing::debug!(to = %route.to, error, "a peer connection has ended");
                }
                Err(error) => tracing::debug!(to = %route.to, %error, "a peer cannot be reached"),
            }
            self.forget(&route);
            world.inbox.push(Arrival::PeerUnreachable(route.to, route.lane));
            // What gathers until the next try may be too much as well.
            let watch = route.renew_watch(&world);
            drop(world);
            if let Either::Right(_) = select(self.ring.pause(pause), pin!(watch.until_evicted())).await {
                self.forget(&route);
                let Some(world) = self.world() else { return };
                route.renew_watch(&world);
            }
            pause = (pause * 2).min(RECONNECT_MAX);
        }
    }

    /// Drops what is queued; counts it.
    fn forget(&self, route: &Route) {
        let lost = route.clear();
        if let Some(world) = self.world() {
            count(&world.traffic, |t| t.messages_dropped += lost as u64);
        }
    }

    /// A connection, and the revision that is spoken on it.
    async fn connect(&self, route: &Route, contact: Contact) -> io::Result<(Socket, FrameDecoder, u16)> {
        let no_port = || io::Error::new(io::ErrorKind::InvalidInput, "it has no such port");
        let port = contact.ports.peer.checked_add(route.to.shard.0).ok_or_else(no_port)?;
        let (socket, decoder, hello) =
            self.greet(SocketAddr::new(contact.ip, port), ConnectionPurpose::Messages, Some(route.to.node)).await?;
        if (Address { node: hello.node, shard: hello.shard }) != route.to {
            return Err(io::Error::other(format!("{}/{} answers there", hello.node, hello.shard.0)));
        }
        Ok((socket, decoder, hello.revision.min(PEER_REVISION)))
    }

    /// Connects and exchanges HELLOs with a node that is no stranger.
    async fn greet(
        &self,
        to: SocketAddr,
        purpose: ConnectionPurpose,
        sought: Option<NodeId>,
    ) -> io::Result<(Socket, FrameDecoder, PeerHello)> {
        let (socket, decoder, hello) = self.exchange_hellos(to, purpose, sought).await?;
        self.check_cluster(&hello).map_err(io::Error::other)?;
        self.meet(&hello);
        Ok((socket, decoder, hello))
    }
    async fn exchange_hellos(
        &self,
        to: SocketAddr,
        purpose: ConnectionPurpose,
        sought: Option<NodeId>,
    ) -> io::Result<(Socket, FrameDecoder, PeerHello)> {
        let socket = Socket::connect(&self.ring, self.own.ip, to, CONNECT_TIMEOUT).await?;
        socket.break_after(SILENCE_TIMEOUT)?;
        let exchange = async {
            let hello = self.own.hello(self.cluster(), purpose, sought);
            let hello = wire::encode_peer_hello(&mut FrameEncoder::new(), &hello);
            let pieces = hello.map_err(io::Error::other)?.into_parts().into_vec();
            socket.send_all(pieces).await.1?;
            let mut decoder = FrameDecoder::new();
            let frame = loop {
                if let Some(frame) = decoder.next_frame().map_err(io::Error::other)? {
                    break frame;
                }
                let (buffer, result) = socket.receive(decoder.take_buffer()).await;
                decoder.give_buffer(buffer);
                if result? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            };
            let hello = wire::decode_peer_hello(&frame).map_err(io::Error::other)?;
            io::Result::Ok((decoder, hello))
        };
        let exchange = Box::pin(exchange);
        let (decoder, hello) = match select(exchange, self.ring.pause(CONNECT_TIMEOUT)).await {
            Either::Left((result, _)) => result?,
            Either::Right(_) => return Err(io::ErrorKind::TimedOut.into()),
        };
        if hello.node == self.own.address.node {
            return Err(io::Error::other("this node answers itself there"));
        }
        Ok((socket, decoder, hello))
    }

    /// Sends what gathers until the connection ends; says why.
    async fn pump(&self, route: &Route, socket: &Socket, decoder: &mut FrameDecoder) -> String {
        let sending = pin!(async {
            loop {
                route.wait_for_work().await;
                let pieces = route.take();
                let watch = route.watch.borrow().clone();
                let (emptied, result) = socket.send_watched(pieces, &watch).await;
                route.recycle(emptied);
                if let Err(e) = result {
                    return e.to_string();
                }
            }
        });
        // Nothing is expected here but the end.
        let ending = pin!(async {
            let _ = socket.readable().await;
            let (buffer, result) = socket.receive(decoder.take_buffer()).await;
            drop(buffer);
            match result {
                Ok(0) => "closed by the other side".to_string(),
                Ok(_) => "the other side spoke on a one-way connection".to_string(),
                Err(e) => e.to_string(),
            }
        });
        select(sending, ending).await.factor_first().0
    }

    /// Speaks to whoever answers at this address. The answer comes to this node's own port.
    pub fn send_to_seed(self: &Rc<Self>, seed: SocketAddr, message: Message) {
        if self.seed_calls.get() >= SEED_CALLS_MAX {
            return;
        }
        self.seed_calls.set(self.seed_calls.get() + 1);
        let peers = self.clone();
        // Rare: once a gossip round at most, and only while the node looks for a cluster.
        self.ring.spawn(async move {
            match peers.call_seed(seed, message).await {
                Ok(()) => peers.silent_seeds.borrow_mut().remove(&seed),
                Err(error) => peers.silent_seeds.borrow_mut().insert(seed, error.to_string()),
            };
            peers.seed_calls.set(peers.seed_calls.get() - 1);
        });
    }

    /// Seeds that did not answer as one when they were last called, and why. At most as many as the node was started
    /// with.
    pub fn silent_seeds(&self) -> Vec<(SocketAddr, String)> {
        let mut silent: Vec<_> = self.silent_seeds.borrow().iter().map(|(seed, why)| (*seed, why.clone())).collect();
        silent.sort_unstable();
        silent
    }

    async fn call_seed(&self, seed: SocketAddr, message: Message) -> io::Result<()> {
        let (socket, _, hello) = self.greet(seed, ConnectionPurpose::Seed, None).await?;
        let now = clock::now();
        let envelope = Envelope {
            from: self.own.address,
            to: Address { node: hello.node, shard: hello.shard },
            exchange: 0,
            deadline: now + SEED_DEADLINE,
            message,
        };
        let revision = hello.revision.min(PEER_REVISION);
        let encoded = wire::encode_peer(FrameEncoder::new().speaking(revision), &envelope, now);
        let pieces = encoded.map_err(io::Error::other)?;
        socket.send_all(pieces.into_parts().into_vec()).await.1?;
        socket.finish_sending();
        // The other side closes when it has read everything; then the bytes have not been cut off by our close.
        let drained = pin!(socket.receive(bytes::BytesMut::with_capacity(64)));
        select(drained, self.ring.pause(CONNECT_TIMEOUT)).await;
        Ok(())
    }
}

/// Who answers at an address, before this node serves.
pub async fn ask_who(ring: Rc<Ring>, own: PeerSelf, to: SocketAddr) -> io::Result<PeerHello> {
    let (socket, _, hello) = Peers::new(own, ring).exchange_hellos(to, ConnectionPurpose::Seed, None).await?;
    socket.close();
    Ok(hello)
}

/// What waits for one core of another node.
struct Route {
    to: Address,
    lane: Lane,
    queue: RefCell<Pieces>,
    bytes: Cell<usize>,
    messages: Cell<usize>,
    /// Bytes that have left the queue and are being sent.
    under_way: Cell<usize>,
    /// What is queued is encoded for this one.
    revision: Cell<u16>,
    /// Counts the bytes toward the budget of the core.
    watch: RefCell<Rc<Watch>>,
    waker: RefCell<Option<Waker>>,
    /// An emptied list, for reuse.
    spare: RefCell<Pieces>,
}

impl Route {
    fn new(to: Address, lane: Lane, watch: Rc<Watch>) -> Route {
        Route {
            to,
            lane,
            queue: RefCell::default(),
            bytes: Cell::new(0),
            messages: Cell::new(0),
            under_way: Cell::new(0),
            revision: Cell::new(PEER_REVISION),
            watch: RefCell::new(watch),
            waker: RefCell::default(),
            spare: RefCell::default(),
        }
    }
    /// What counts its bytes from now on, anew if it had too many.
    fn renew_watch(&self, world: &ServerWorld) -> Rc<Watch> {
        let mut watch = self.watch.borrow_mut();
        if watch.is_evicted() {
            *watch = world.watches.start_toward_peer();
        }
        watch.clone()
    }
    /// `false` when the queue is full.
    fn push(&self, pieces: wire::Pieces, revision: u16) -> bool {
        if self.messages.get() > 0 && revision < self.revision.get() {
            // What waits would not be understood.
            self.clear();
        }
        self.revision.set(revision);
        let bytes = self.bytes.get() + pieces.bytes();
        if bytes + self.under_way.get() > PEER_QUEUE_BYTES_MAX || self.watch.borrow().is_evicted() {
            return false;
        }
        self.bytes.set(bytes);
        self.messages.set(self.messages.get() + 1);
        self.queue.borrow_mut().extend(pieces.into_parts());
        self.hold();
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
        true
    }
    fn wait_for_work(&self) -> impl Future<Output = ()> + '_ {
        poll_fn(|cx| {
            if self.messages.get() > 0 {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
    }
    fn hold(&self) {
        self.watch.borrow().hold_outgoing(self.bytes.get() + self.under_way.get());
    }
    fn take(&self) -> Pieces {
        self.under_way.set(self.bytes.replace(0));
        self.messages.set(0);
        self.queue.replace(std::mem::take(&mut self.spare.borrow_mut()))
    }
    fn recycle(&self, mut emptied: Pieces) {
        self.under_way.set(0);
        self.hold();
        emptied.clear();
        *self.spare.borrow_mut() = emptied;
    }
    /// Forgets everything that is not on its way; says how many messages that were.
    fn clear(&self) -> usize {
        self.bytes.set(0);
        self.queue.borrow_mut().clear();
        self.hold();
        self.messages.replace(0)
    }
}

/// Where a node that is no member is, and how it is here.
#[derive(Clone, Copy, Debug)]
struct Presence {
    contact: Contact,
    /// Connections that it has open.
    open: usize,
    /// When one of them began or ended.
    seen: Instant,
}

/// A connection of a node that is no member: it may introduce itself, and has to be one soon.
pub(super) struct Guest {
    peers: Rc<Peers>,
    node: NodeId,
}
impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(presence) = self.peers.guests.borrow_mut().get_mut(&self.node) {
            presence.open -= 1;
            presence.seen = clock::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        limits::{CONNECTION_BYTES_MAX, MIB},
        protocol::message::{Operation, Request},
        server::watch::Watches,
        types::{Consistency, Key, Media, ShardId, TableWord, Value, WriteId},
    };

    /// Three cores that take nothing on would have held 180 MiB, and twice that with what was being sent.
    #[test]
    fn what_waits_for_other_nodes_has_the_budget_of_all_connections() {
        const FRAME: usize = 4 * MIB;
        let watches = Watches::default();
        let core = |number: u64| Address { node: NodeId(number), shard: ShardId(0) };
        let routes: Vec<Route> =
            (1..=4).map(|number| Route::new(core(number), Lane::Long, watches.start_toward_peer())).collect();
        let value = Value::new(Media::octets(), vec![0; FRAME]);
        let push = |route: &Route| {
            let (context, write_id, deadline) = (None, WriteId(1), Instant(1));
            let operation = Operation::Put { context, value: value.clone(), write_id };
            let (key, consistency) = (Key::new("k").expect("a key"), Consistency::default());
            let request = Request { key, operation, consistency, deadline };
            let message = Message::Forward { request, hops: 0, word: TableWord::default(), stamp: None };
            let envelope = Envelope { from: core(9), to: route.to, exchange: 0, deadline, message };
            let pieces = wire::encode_peer(&mut FrameEncoder::new(), &envelope, Instant(0)).expect("it fits");
            route.push(pieces, PEER_REVISION)
        };
        let slow = &routes[0];
        assert!(push(slow) && slow.take().len() > 1, "it is being sent");
        assert_eq!(watches.bytes() / MIB, FRAME / MIB, "it still takes its memory");
        let pushed = routes.iter().map(|route| (0..20).filter(|_| push(route)).count()).collect::<Vec<_>>();
        assert!(pushed[0] < 20, "at most {PEER_QUEUE_BYTES_MAX} bytes for one core, {pushed:?}");
        assert!(watches.bytes() <= 2 * CONNECTION_BYTES_MAX, "{}", watches.bytes());
        let evicted: Vec<bool> = routes.iter().map(|route| route.watch.borrow().is_evicted()).collect();
        assert!(evicted[0] && !evicted[3], "who has been held up for the longest goes first: {evicted:?}");
        assert!(!push(slow), "nothing waits for it until it is connected anew");
        assert_eq!(watches.outgoing(), 0, "no client waits for these");
        drop(routes);
        assert_eq!(watches.bytes(), 0);
    }
}
