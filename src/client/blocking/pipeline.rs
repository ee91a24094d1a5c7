//! Many requests in flight from one thread, each on its way to a core that owns its key.
//!
//! The pipeline keeps one connection for each core that it has had to do with. What happens to a request is decided by
//! [`Flight`]; this file carries the decisions out.

use super::{Clock, Connection, write_id};
use crate::{
    client::{ClientError, Decision, Event, Flight, Options, RetryBudget, Routes, Setback, Target},
    limits::{REQUEST_TIMEOUT_MAX, REQUESTS_PER_CONNECTION_MAX},
    protocol::{
        message::{Answer, Operation, Request, Response},
        ring::FixedMap,
    },
    types::{Instant, Key, Member, WriteId},
};
use std::{
    collections::{BTreeSet, VecDeque},
    net::{SocketAddr, ToSocketAddrs},
    time::Duration,
};

/// A connection that is not made, HELLO included, after so long has failed.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// A node that failed is asked last for so long, doubled with each failure up to the second value.
const SHUN_MIN: Duration = Duration::from_millis(250);
const SHUN_MAX: Duration = Duration::from_secs(8);
/// The member list is not fetched more often than this.
const RING_INTERVAL: Duration = Duration::from_millis(200);
/// Silence after which a fetch of the member list is given up.
const RING_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause between two looks for arrivals while requests are on several connections.
const LOOK_INTERVAL: Duration = Duration::from_micros(100);
/// Retries that may be spent in a burst.
const RETRIES: u32 = 256;

/// Names a submitted request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

/// A connection, and whose answers it will bring.
#[derive(Debug)]
struct Link {
    connection: Connection,
    node: SocketAddr,
    awaited: FixedMap<u64, Ticket>,
}
#[derive(Debug)]
struct Traveller {
    flight: Flight,
    /// Where it is: on this connection under this id, or nowhere (waiting for its next attempt).
    sent: Option<(SocketAddr, u64)>,
    /// When something is due: the next attempt, or impatience with a silent server.
    due: Instant,
}
#[derive(Clone, Copy, Debug)]
struct Shunned {
    until: Instant,
    pause: Duration,
}
#[derive(Debug)]
enum RingState {
    Known,
    /// A server has named another ring.
    Stale,
    Asked {
        link: SocketAddr,
        until: Instant,
    },
}

/// Many requests in flight over connections to all cores of a cluster, with the retries of [`super::Client`].
///
/// [`Pipeline::submit`] takes a request, [`Pipeline::next`] waits for any one to be done. The caller bounds how many
/// are in flight; a few hundred keep a small cluster busy. While a connection is being made, everything waits for it
/// (at most half a second for a node that is gone, and then not again for a while).
#[derive(Debug)]
pub struct Pipeline {
    clock: Clock,
    seeds: Vec<SocketAddr>,
    routes: Routes,
    ring: RingState,
    ring_at: Instant,
    links: FixedMap<SocketAddr, Link>,
    shunned: FixedMap<SocketAddr, Shunned>,
    travellers: FixedMap<Ticket, Traveller>,
    due: BTreeSet<(Instant, Ticket)>,
    done: VecDeque<(Ticket, Result<Answer, ClientError>)>,
    budget: RetryBudget,
    random: fastrand::Rng,
    last_ticket: u64,
}

impl Pipeline {
    /// Connects to the first of these client-protocol addresses that answers, and learns the ring from it.
    pub fn connect<S: ToSocketAddrs>(seeds: &[S]) -> Result<Pipeline, ClientError> {
        let mut pipeline = Pipeline {
            clock: Clock::start(),
            seeds: resolve(seeds)?,
            routes: Routes::default(),
            ring: RingState::Known,
            ring_at: Instant::ZERO,
            links: FixedMap::default(),
            shunned: FixedMap::default(),
            travellers: FixedMap::default(),
            due: BTreeSet::new(),
            done: VecDeque::new(),
            budget: RetryBudget::new(RETRIES),
            random: fastrand::Rng::new(),
            last_ticket: 0,
        };
        pipeline.ring(RING_TIMEOUT)?;
        Ok(pipeline)
    }
    /// The members as some server knows them now, with its ring's digest; the pipeline uses them from now on.
    pub fn ring(&mut self, timeout: Duration) -> Result<(Vec<Member>, u64), ClientError> {
        let known: Vec<Target> = self.seeds.iter().copied().map(Target::seed).chain(self.routes.everyone()).collect();
        let until = self.clock.now() + timeout;
        let mut last = ClientError::Address("none".to_owned());
        for target in known {
            // A connection of its own: answers to requests in flight on others must not be lost.
            let left = until.since(self.clock.now()).max(CONNECT_TIMEOUT / 4);
            let connection = Connection::with_clock(target.core, left.min(CONNECT_TIMEOUT), self.clock);
            match connection.and_then(|mut c| Ok((c.ring(left)?, c))) {
                Ok(((members, digest), connection)) => {
                    self.learn(&members, digest);
                    self.links.entry(target.core).or_insert_with(|| Link::new(connection, target.node));
                    return Ok((members, digest));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
    fn learn(&mut self, members: &[Member], digest: u64) {
        self.routes = Routes::new(members, digest);
        self.ring = RingState::Known;
        self.ring_at = self.clock.now();
    }

    /// A random write id, never 0.
    pub fn new_write_id(&mut self) -> WriteId {
        write_id(&mut self.random)
    }
    /// Puts a request on its way. An operation without a write id gets one.
    pub fn submit(&mut self, key: Key, mut operation: Operation, options: &Options) -> Ticket {
        if let Operation::Put { write_id, .. } | Operation::Delete { write_id, .. } = &mut operation
            && *write_id == WriteId(0)
        {
            *write_id = self.new_write_id();
        }
        self.last_ticket += 1;
        let (ticket, now) = (Ticket(self.last_ticket), self.clock.now());
        let deadline = now + options.timeout.min(REQUEST_TIMEOUT_MAX);
        let request = Request { key, operation, consistency: options.consistency, deadline };
        let traveller = Traveller { flight: Flight::new(request, now), sent: None, due: now };
        self.travellers.insert(ticket, traveller);
        self.attempt(ticket);
        ticket
    }
    /// Requests that are not done.
    pub fn in_flight(&self) -> usize {
        self.travellers.len()
    }
    /// Waits until any request is done; `None` when none is in flight.
    #[allow(clippy::should_implement_trait, reason = "an iterator would end and begin again")]
    pub fn next(&mut self) -> Option<(Ticket, Result<Answer, ClientError>)> {
        loop {
            if let Some(done) = self.poll() {
                return Some(done);
            }
            if self.travellers.is_empty() {
                return None;
            }
            self.wait();
        }
    }
    /// A request that is done, if any, without waiting (but for connections that have to be made).
    pub fn poll(&mut self) -> Option<(Ticket, Result<Answer, ClientError>)> {
        if self.done.is_empty() {
            self.take_arrivals();
            self.attempt_what_is_due();
            self.refresh_ring();
        }
        self.done.pop_front()
    }

    // ---- attempts ----------------------------------------------------------------------------------------------

    fn attempt_what_is_due(&mut self) {
        let now = self.clock.now();
        while let Some(&(at, ticket)) = self.due.first() {
            if at > now {
                return;
            }
            self.due.remove(&(at, ticket));
            match self.travellers.get(&ticket).and_then(|t| t.sent) {
                Some((link, _)) => {
                    self.shun_node_of(link);
                    self.meet(ticket, Setback::Silent);
                }
                None => self.attempt(ticket),
            }
        }
    }
    /// Sends a request to the server that is best now.
    fn attempt(&mut self, ticket: Ticket) {
        let now = self.clock.now();
        let Some(traveller) = self.travellers.get_mut(&ticket) else { return };
        let shunned = &self.shunned;
        let is_shunned = |t: &Target| shunned.get(&t.node).is_some_and(|s| s.until > now);
        let Some(target) = traveller.flight.choose(&self.routes, &self.seeds, is_shunned) else {
            return self.meet(ticket, Setback::Refused("no address is known".to_owned()));
        };
        let link = match link_to(&mut self.links, target, self.clock) {
            Ok(link) => link,
            Err(error) => {
                self.shun(target.node);
                return self.meet(ticket, Setback::Refused(detail_of(error)));
            }
        };
        match link.connection.send(&traveller.flight.request) {
            Ok(id) => {
                link.awaited.insert(id, ticket);
                traveller.sent = Some((target.core, id));
                traveller.due = traveller.flight.silent_at(now);
                self.due.insert((traveller.due, ticket));
                let flushed = link.connection.flush();
                flushed.map_or_else(|error| self.lose(target.core, error), |_| ());
            }
            Err(error) => {
                let error = traveller.flight.honest(error);
                self.finish(ticket, Err(error));
            }
        }
    }
    /// Decides what becomes of a request after a setback, and sees to it.
    fn meet(&mut self, ticket: Ticket, setback: Setback) {
        let now = self.clock.now();
        let Some(traveller) = self.travellers.get_mut(&ticket) else { return };
        self.due.remove(&(traveller.due, ticket));
        match traveller.flight.meet(setback, now, &mut self.budget, self.random.u64(..)) {
            Decision::Finish(error) => self.finish(ticket, Err(error)),
            Decision::Wait => {
                traveller.due = traveller.flight.request.deadline;
                self.due.insert((traveller.due, ticket));
            }
            Decision::Again(at) => {
                let sent = traveller.sent.take();
                traveller.due = at;
                self.due.insert((at, ticket));
                self.give_up(sent);
            }
        }
    }
    fn give_up(&mut self, sent: Option<(SocketAddr, u64)>) {
        let Some((link, id)) = sent else { return };
        if let Some(link) = self.links.get_mut(&link) {
            link.connection.forget(id);
            link.awaited.remove(&id);
        }
    }
    fn finish(&mut self, ticket: Ticket, result: Result<Answer, ClientError>) {
        if let Some(traveller) = self.travellers.remove(&ticket) {
            self.due.remove(&(traveller.due, ticket));
            self.give_up(traveller.sent);
            self.done.push_back((ticket, result));
        }
    }

    // ---- servers that fail -------------------------------------------------------------------------------------

    fn shun(&mut self, node: SocketAddr) {
        let now = self.clock.now();
        let pause = match self.shunned.get(&node) {
            // Several requests meet the same failure.
            Some(shunned) if shunned.until > now => return,
            Some(shunned) => (shunned.pause * 2).min(SHUN_MAX),
            None => SHUN_MIN,
        };
        self.shunned.insert(node, Shunned { until: now + pause, pause });
    }
    fn shun_node_of(&mut self, core: SocketAddr) {
        if let Some(node) = self.links.get(&core).map(|l| l.node) {
            self.shun(node);
        }
    }
    /// A connection is of no use any more: all that waited for it has met a setback.
    fn lose(&mut self, core: SocketAddr, error: ClientError) {
        let Some(link) = self.links.remove(&core) else { return };
        self.shun(link.node);
        let setback = match error {
            ClientError::Protocol { error, .. } => Setback::Protocol(error),
            other => Setback::Broken(detail_of(other)),
        };
        let mut lost: Vec<Ticket> = link.awaited.into_values().collect();
        lost.sort_unstable();
        for ticket in lost {
            self.meet(ticket, setback.clone());
        }
    }

    // ---- arrivals ----------------------------------------------------------------------------------------------

    fn take_arrivals(&mut self) {
        let mut busy: Vec<SocketAddr> = self.links.iter().filter(|(_, l)| l.is_busy()).map(|(a, _)| *a).collect();
        busy.sort_unstable();
        for core in busy {
            // As many as can be in flight on one connection, so that no connection starves the others.
            for _ in 0..REQUESTS_PER_CONNECTION_MAX {
                let Some(link) = self.links.get_mut(&core) else { break };
                match link.connection.poll() {
                    Ok(Some(event)) => self.take_event(core, event),
                    Ok(None) => break,
                    Err(error) => self.lose(core, error),
                }
            }
        }
    }
    fn take_event(&mut self, core: SocketAddr, event: Event) {
        match event {
            Event::Response { id, response, ring_digest } => {
                let link = self.links.get_mut(&core);
                let Some((node, ticket)) = link.and_then(|l| Some((l.node, l.awaited.remove(&id)?))) else { return };
                if ring_digest != self.routes.digest() && matches!(self.ring, RingState::Known) {
                    self.ring = RingState::Stale;
                }
                self.shunned.remove(&node);
                self.take_response(ticket, response);
            }
            Event::Ring { members, digest, .. } => self.learn(&members, digest),
            // The request's own deadline is due as well and settles it.
            Event::Expired { id } => {
                if let Some(ticket) = self.links.get_mut(&core).and_then(|l| l.awaited.remove(&id)) {
                    self.shun_node_of(core);
                    self.meet(ticket, Setback::Silent);
                }
            }
            Event::Open => {}
        }
    }
    fn take_response(&mut self, ticket: Ticket, response: Response) {
        match response {
            Ok(answer) => {
                self.budget.earn();
                self.finish(ticket, Ok(answer));
            }
            Err(failure) => self.meet(ticket, Setback::Answered(failure)),
        }
    }

    // ---- the ring ----------------------------------------------------------------------------------------------

    /// Fetches the member list when a server has named another; on a connection that works, beside the requests.
    fn refresh_ring(&mut self) {
        let now = self.clock.now();
        match self.ring {
            RingState::Known => return,
            RingState::Asked { link, until, .. } if now < until && self.links.contains_key(&link) => return,
            RingState::Asked { .. } => self.ring = RingState::Stale,
            RingState::Stale => {}
        }
        if now < self.ring_at + RING_INTERVAL {
            return;
        }
        let Some((&core, link)) = self.links.iter_mut().find(|(_, l)| !self.shunned.contains_key(&l.node)) else {
            return;
        };
        self.ring_at = now;
        let until = now + RING_TIMEOUT;
        match link.connection.send_ring(until) {
            Ok(_) => self.ring = RingState::Asked { link: core, until },
            Err(error) => self.lose(core, error),
        }
    }

    // ---- waiting -----------------------------------------------------------------------------------------------

    /// Until something may have happened.
    fn wait(&mut self) {
        let now = self.clock.now();
        let until = self.due.first().map_or(now + LOOK_INTERVAL, |(at, _)| *at);
        let mut busy = self.links.iter_mut().filter(|(_, l)| l.is_busy());
        let (only, more) = (busy.next(), busy.next().is_some());
        match only {
            Some((&core, link)) if !more => match link.connection.recv(until) {
                Ok(Some(event)) => self.take_event(core, event),
                Ok(None) => {}
                Err(error) => self.lose(core, error),
            },
            Some(_) => std::thread::sleep(LOOK_INTERVAL.min(until.since(now))),
            None => std::thread::sleep(until.since(now)),
        }
    }
}

impl Link {
    fn new(connection: Connection, node: SocketAddr) -> Link {
        Link { connection, node, awaited: FixedMap::default() }
    }
    fn is_busy(&self) -> bool {
        self.connection.in_flight() > 0
    }
}

/// The connection to a core, made if there is none.
fn link_to(links: &mut FixedMap<SocketAddr, Link>, target: Target, clock: Clock) -> Result<&mut Link, ClientError> {
    match links.entry(target.core) {
        hashbrown::hash_map::Entry::Occupied(link) => Ok(link.into_mut()),
        hashbrown::hash_map::Entry::Vacant(place) => {
            let connection = Connection::with_clock(target.core, CONNECT_TIMEOUT, clock)?;
            Ok(place.insert(Link::new(connection, target.node)))
        }
    }
}

/// The words of an error without what the final error says again.
fn detail_of(error: ClientError) -> String {
    match error {
        ClientError::Unreachable { detail, .. } => detail,
        other => other.to_string(),
    }
}

fn resolve<S: ToSocketAddrs>(seeds: &[S]) -> Result<Vec<SocketAddr>, ClientError> {
    let mut addresses = Vec::new();
    let mut defect = "none was given".to_owned();
    for seed in seeds {
        match seed.to_socket_addrs() {
            Ok(resolved) => addresses.extend(resolved),
            Err(error) => defect = error.to_string(),
        }
    }
    if addresses.is_empty() { Err(ClientError::Address(defect)) } else { Ok(addresses) }
}
