//! Who calls: connections that cores of other nodes have made to this one, and what they say on them.
//!
//! An address cannot be made up, unlike a name: so places are shared out by where a connection comes from. A core of
//! another node needs two of them; its next ones take the place of those that it has left behind. Who has gone when
//! there are too many is whoever of the greediest source has been silent for the longest, first of all those that have
//! not said who they are. What they have begun to say and not finished counts toward the budget of all connections of
//! the core ([`super::watch`]).

use super::{
    clock, kernel,
    peers::Guest,
    socket::{Ended, Gather, Inlet, Listener, Socket},
    watch::Watch,
    world::{ServerWorld, count},
};
use crate::{
    limits::{CALLS_PER_CORE, CALLS_PER_SOURCE, FRAME_BYTES_MAX, HELLO_TIMEOUT, NEWS_BYTES},
    protocol::{message::Envelope, ring::FixedMap},
    types::{Address, Instant},
    wire::{self, Age, Frame, FrameDecoder, FrameEncoder, Trust, WireError},
};
use std::{
    cell::{Cell, RefCell},
    io,
    net::IpAddr,
    os::fd::OwnedFd,
    rc::{Rc, Weak},
};

// ---- places ----------------------------------------------------------------------------------------------------

/// One connection.
struct Call {
    from: IpAddr,
    /// Who is at the other end, once that is said.
    core: Option<Address>,
    /// When it last said anything.
    heard: Instant,
    socket: Weak<OwnedFd>,
}

/// The connections that other nodes have made to a core.
#[derive(Default)]
pub struct Callers {
    calls: RefCell<FixedMap<u64, Call>>,
    next: Cell<u64>,
    given_up: Cell<u64>,
}

impl Callers {
    /// Takes a connection in, one of `most` at once. Others may have to go for it.
    fn take(self: &Rc<Self>, from: IpAddr, socket: Weak<OwnedFd>, most: usize) -> Caller {
        let now = clock::now();
        let of_source = |call: &Call| call.from == from;
        self.make_room(CALLS_PER_SOURCE.min(most.div_ceil(2)), &of_source);
        if self.calls.borrow().len() >= most
            && let Some(greediest) = self.greediest()
        {
            self.make_room(self.count(&|call| call.from == greediest), &|call| call.from == greediest);
        }
        let number = self.next.replace(self.next.get() + 1);
        self.calls.borrow_mut().insert(number, Call { from, core: None, heard: now, socket });
        Caller { callers: self.clone(), number }
    }
    fn count(&self, of: &dyn Fn(&Call) -> bool) -> usize {
        self.calls.borrow().values().filter(|call| of(call)).count()
    }
    /// Where most of them come from.
    fn greediest(&self) -> Option<IpAddr> {
        let mut counts = FixedMap::<IpAddr, usize>::default();
        self.calls.borrow().values().for_each(|call| *counts.entry(call.from).or_default() += 1);
        counts.into_iter().max_by_key(|(from, count)| (*count, *from)).map(|(from, _)| from)
    }
    /// Makes sure that another one fits among at most `most` of these.
    fn make_room(&self, most: usize, of: &dyn Fn(&Call) -> bool) {
        while self.count(of) >= most {
            let mut calls = self.calls.borrow_mut();
            let those = calls.iter().filter(|(_, call)| of(call));
            let first = those.min_by_key(|(number, call)| (call.core.is_some(), call.heard, **number));
            let Some(number) = first.map(|(number, _)| *number) else { return };
            let gone = calls.remove(&number).and_then(|call| call.socket.upgrade());
            self.given_up.set(self.given_up.get() + 1);
            if let Some(socket) = gone {
                kernel::close_both_ways(&*socket);
            }
        }
    }
    /// Connections closed to make room for others.
    pub fn given_up(&self) -> u64 {
        self.given_up.get()
    }
}

/// A place among the connections, given up when the connection ends.
struct Caller {
    callers: Rc<Callers>,
    number: u64,
}
impl Caller {
    /// Notes who is at the other end.
    fn is(&self, core: Address) {
        let from = self.callers.calls.borrow().get(&self.number).map(|call| call.from);
        // Two of one name that come from different places do not push each other out.
        let same = |call: &Call| call.core == Some(core) && Some(call.from) == from;
        self.callers.make_room(CALLS_PER_CORE, &same);
        if let Some(call) = self.callers.calls.borrow_mut().get_mut(&self.number) {
            call.core = Some(core);
        }
    }
    /// It has said something.
    fn heard(&self) {
        if let Some(call) = self.callers.calls.borrow_mut().get_mut(&self.number) {
            call.heard = clock::now();
        }
    }
}
impl Drop for Caller {
    fn drop(&mut self) {
        self.callers.calls.borrow_mut().remove(&self.number);
    }
}

// ---- what they say ---------------------------------------------------------------------------------------------

/// Serves this core's peer port, `most` connections at once. An error means that the port is lost.
pub async fn serve(world: Rc<ServerWorld>, listener: Listener, most: usize) -> io::Result<()> {
    loop {
        let socket = listener.accept().await?;
        // One that has no address has gone already.
        let Ok(from) = socket.peer_ip() else { continue };
        let caller = world.callers.take(from, socket.downgrade(), most);
        let (ring, world) = (world.ring.clone(), world.clone());
        ring.spawn(async move {
            if let Err(error) = receive(&world, socket, &caller).await {
                tracing::debug!(error, "an incoming peer connection has ended");
            }
        });
    }
}

async fn receive(world: &Rc<ServerWorld>, socket: Socket, caller: &Caller) -> Result<(), String> {
    let watch = world.watches.start(&socket);
    watch.set_deadline(clock::now() + HELLO_TIMEOUT);
    let mut incoming = Incoming {
        watch: watch.clone(),
        inlet: Inlet::new(socket.clone(), watch.clone()),
        decoder: FrameDecoder::new(),
    };
    let Some(frame) = incoming.next(|_| (), || false).await? else { return Ok(()) };
    let read = clock::now();
    let hello = wire::decode_peer_hello(&frame).map_err(text)?;
    let own = world.peers.answer_to(&hello);
    let pieces = wire::encode_peer_hello(&mut FrameEncoder::new(), &own).map_err(text)?;
    socket.send_all(pieces.into_parts().into_vec()).await.1.map_err(|e| e.to_string())?;
    if hello.node == world.address.node {
        return Err("this node called itself".to_string());
    }
    if let Some(reason) = world.peers.hear_sought(&hello) {
        world.give_up(reason.clone());
        return Err(reason);
    }
    world.peers.check_cluster(&hello)?;
    world.peers.learn_revision(&hello);
    let mut age = Age::new(hello.clock, read);
    let known = || world.peers.is_known(hello.node);
    let mut guest: Option<Guest> = if known() { None } else { Some(world.peers.admit_guest(&hello, &socket)?) };
    caller.is(Address { node: hello.node, shard: hello.shard });
    incoming.decoder.set_limit(if guest.is_some() { 2 * NEWS_BYTES } else { FRAME_BYTES_MAX });
    if guest.is_none() {
        watch.relax();
    }
    // A frame that is cut off in the middle is noticed by its silence; a guest has the time of the HELLO for all it
    // says.
    while let Some(frame) = incoming.next(|bytes| watch.progressed(bytes), known).await? {
        if guest.is_some() && known() {
            guest = None;
            incoming.decoder.set_limit(FRAME_BYTES_MAX);
        }
        if guest.is_none() {
            watch.relax();
        }
        caller.heard();
        watch.hold_incoming(incoming.decoder.buffered());
        let sent = age.sent(&frame, clock::now());
        let envelope = match wire::decode_peer(&frame, sent, Trust::Verify) {
            Ok(envelope) => envelope,
            Err(error) => {
                world.refuse(Address { node: hello.node, shard: hello.shard }, &frame, &error);
                continue;
            }
        };
        if envelope.from.node != hello.node {
            return Err(format!("{} speaks for {}", hello.node, envelope.from.node));
        }
        // This node may have joined a cluster since, and not this one.
        world.peers.check_cluster(&hello)?;
        count(&world.traffic, |t| t.peer_messages_received += 1);
        if guest.is_none() {
            world.arrive(envelope);
        } else if let Some(message) = envelope.message.of_guest(hello.node, hello.ip) {
            world.arrive(Envelope { message, ..envelope });
        } else {
            world.drop_message();
        }
    }
    Ok(())
}

fn text(error: WireError) -> String {
    error.to_string()
}

/// Frames of an incoming connection.
struct Incoming {
    watch: Rc<Watch>,
    inlet: Inlet,
    decoder: FrameDecoder,
}

impl Incoming {
    /// The next frame; `None` when the other side has closed between two. `pending` hears of bytes of an unfinished
    /// one. Between two a node that has become a member, as `known` says, may be silent for as long as it likes.
    async fn next(&mut self, pending: impl Fn(usize), known: impl Fn() -> bool) -> Result<Option<Frame>, String> {
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(text)? {
                return Ok(Some(frame));
            }
            // What has begun has its limit, also when it came with the end of another frame.
            if !self.decoder.is_clear() {
                pending(0);
            }
            match self.inlet.fill(&mut self.decoder).await {
                Ok(bytes) if !self.decoder.is_clear() => pending(bytes),
                Ok(_) => {}
                Err(Ended::Closed) if self.decoder.is_clear() => return Ok(None),
                Err(Ended::Closed) => return Err("closed in the middle of a frame".to_string()),
                Err(Ended::Expired) if self.decoder.is_clear() && known() => self.watch.relax(),
                Err(Ended::Expired) => return Err("silent in the middle of a frame".to_string()),
                Err(Ended::Broken(e)) => return Err(e.to_string()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{NodeId, ShardId};

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }
    fn core(node: u64) -> Address {
        Address { node: NodeId(node), shard: ShardId(0) }
    }
    fn is_open(caller: &Caller) -> bool {
        caller.callers.calls.borrow().contains_key(&caller.number)
    }

    #[test]
    fn a_core_that_comes_back_takes_the_places_that_it_left_behind() {
        let callers = Rc::<Callers>::default();
        let call = |from: u8, node: u64| {
            let caller = callers.take(ip(from), Weak::new(), 1_000);
            caller.is(core(node));
            caller
        };
        let (other, forged) = (call(1, 2), call(7, 1));
        let calls: Vec<Caller> = (0..10).map(|_| call(1, 1)).collect();
        let open: Vec<bool> = calls.iter().map(is_open).collect();
        assert_eq!(open, [vec![false; 10 - CALLS_PER_CORE], vec![true; CALLS_PER_CORE]].concat());
        assert!(
            is_open(&other) && is_open(&forged),
            "another core, and one that says from elsewhere that it is this one"
        );
        assert_eq!(callers.given_up(), 10 - CALLS_PER_CORE as u64);
        drop(calls);
        assert_eq!(callers.calls.borrow().len(), 2);
    }

    #[test]
    fn one_source_does_not_push_out_another_and_who_says_nothing_goes_first() {
        let callers = Rc::<Callers>::default();
        let member = callers.take(ip(1), Weak::new(), 8);
        member.is(core(1));
        let silent: Vec<Caller> = (0..20).map(|_| callers.take(ip(9), Weak::new(), 8)).collect();
        assert_eq!(silent.iter().filter(|c| is_open(c)).count(), 4, "half of all places");
        // Another member at the place where they come from.
        let second = callers.take(ip(9), Weak::new(), 8);
        second.is(core(2));
        let more: Vec<Caller> = (0..20).map(|_| callers.take(ip(9), Weak::new(), 8)).collect();
        // Three sources that want all.
        let many: Vec<Caller> = (0..40).map(|n| callers.take(ip(10 + n % 2), Weak::new(), 8)).collect();
        assert!(is_open(&member) && is_open(&second));
        assert!(callers.calls.borrow().len() <= 8);
        drop((silent, more, many));
    }
}
