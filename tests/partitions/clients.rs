//! The clients: reads, read-modify-writes, blind writes, writes on old contexts, deletes; failed writes sent again
//! under the same id at another node. All that they do and hear goes into the simulator's history.

use crate::wait;
use dynarc::{
    client::{Connection, Event},
    protocol::{
        message::{Answer, Operation, Request, Response},
        versions::{Context, Dot, Siblings},
    },
    sim::checker::{End, EventId, History, Invariant, Kind, Seen, make_value},
    types::{Consistency, ErrorCode, Instant, Key, Level, Outcome, Value},
};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

pub const NODES: usize = 5;
const KEYS: usize = 60;
const ATTEMPTS_MAX: u32 = 3;
const TIMEOUT: Duration = Duration::from_millis(2_500);

/// What all clients share.
pub struct Clients {
    pub ips: Vec<IpAddr>,
    history: Mutex<History>,
    start: std::time::Instant,
    pub stop: AtomicBool,
    pub violations: Mutex<Vec<String>>,
    pub operations: AtomicU64,
    /// Acknowledged writes, by the node that the client spoke to.
    pub acknowledged: [AtomicU64; NODES],
}

/// How a request ended for its client.
enum CallEnd {
    Answered(Response),
    /// It was never sent.
    Refused,
    /// The connection broke, or nothing came in time.
    Lost,
}
impl CallEnd {
    fn outcome(&self) -> Outcome {
        match self {
            CallEnd::Refused => Outcome::NotApplied,
            CallEnd::Answered(Err(failure)) => failure.outcome,
            CallEnd::Answered(Ok(_)) | CallEnd::Lost => Outcome::Unknown,
        }
    }
}

impl Clients {
    pub fn new(ips: Vec<IpAddr>) -> Clients {
        let names = (0..KEYS).map(|index| Key::new(format!("part:{index}")).expect("a key")).collect();
        Clients {
            ips,
            history: Mutex::new(History::new(names, 3, false)),
            start: std::time::Instant::now(),
            stop: AtomicBool::new(false),
            violations: Mutex::default(),
            operations: AtomicU64::new(0),
            acknowledged: Default::default(),
        }
    }
    pub fn now(&self) -> Instant {
        Instant::ZERO + self.start.elapsed()
    }
    pub fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().expect("no client panicked")
    }
    pub fn violate(&self, (invariant, text): (Invariant, String)) {
        let text = format!("{} at {:.3} s: {text}", invariant.name(), self.start.elapsed().as_secs_f64());
        eprintln!("VIOLATION: {text}");
        self.violations.lock().expect("no client panicked").push(text);
    }
    pub fn broken(&self) -> bool {
        !self.violations.lock().expect("no client panicked").is_empty()
    }
    /// One client, until it is told to stop.
    pub fn run(&self, number: u64, seed: u64) {
        let random = fastrand::Rng::with_seed(seed ^ (number + 1) << 32);
        let home = number as usize % NODES;
        let (old, written) = (vec![None; KEYS], vec![None; KEYS]);
        let mut client = Client { all: self, random, home, wires: Wires::default(), old, written };
        while !self.stop.load(Ordering::Relaxed) && !self.broken() {
            wait::pause(Duration::from_micros(client.random.u64(500..8_000)));
            client.step();
        }
    }
}

/// A client's connections, by core.
#[derive(Default)]
pub struct Wires(HashMap<SocketAddr, Connection>);

impl Wires {
    /// One request to one core.
    pub fn call(
        &mut self,
        to: SocketAddr,
        mut request: Request,
        timeout: Duration,
    ) -> Result<Response, Option<String>> {
        let wire = match self.0.entry(to) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(Connection::connect(to, Duration::from_millis(300)).map_err(|_| None)?)
            }
        };
        let until = wire.now() + timeout;
        request.deadline = until;
        let outcome = exchange(wire, &request, until);
        if outcome.is_err() {
            self.0.remove(&to);
        }
        outcome.map_err(Some)
    }
}

/// Sends, and waits for the answer. A server is given a moment beyond the deadline to say that it passed.
fn exchange(wire: &mut Connection, request: &Request, until: Instant) -> Result<Response, String> {
    let asked = wire.send(request).map_err(|e| e.to_string())?;
    loop {
        match wire.recv(until + Duration::from_millis(200)).map_err(|e| e.to_string())? {
            Some(Event::Response { id, response, .. }) if id == asked => return Ok(response),
            Some(Event::Expired { id }) if id == asked => return Err("no answer in time".into()),
            Some(_) => {}
            None => return Err("no answer in time".into()),
        }
    }
}

/// What a client remembers of a key: a context and the values behind it.
#[derive(Clone, Default)]
struct Memory {
    context: Context,
    seen: Seen,
}

struct Client<'a> {
    all: &'a Clients,
    random: fastrand::Rng,
    /// The node that it mostly speaks to.
    home: usize,
    wires: Wires,
    /// By key, what a read has shown some time ago.
    old: Vec<Option<Memory>>,
    /// By key, what the own last write was answered with.
    written: Vec<Option<Memory>>,
}

impl Client<'_> {
    fn step(&mut self) {
        // Squared: some keys are popular.
        let share = self.random.f64();
        let slot = (share * share * KEYS as f64) as usize;
        let key = slot as u32;
        match self.random.u32(..100) {
            0..20 => drop(self.read(key)),
            20..62 => {
                if let Some(memory) = self.read(key) {
                    self.put(key, Some(memory));
                }
            }
            62..72 => self.put(key, None),
            72..79 => self.put(key, self.old[slot].clone()),
            79..87 => self.put(key, self.written[slot].clone()),
            87..97 => {
                if let Some(memory) = self.read(key) {
                    self.delete(key, Some(memory));
                }
            }
            // A blind delete excuses every loss before it: only some keys see any.
            _ if key % 4 == 3 => self.delete(key, None),
            _ => drop(self.read(key)),
        }
    }

    fn read(&mut self, key: u32) -> Option<Memory> {
        let CallEnd::Answered(Ok(Answer::Got(siblings))) = self.call(key, Operation::Get { context: None }).1 else {
            return None;
        };
        let seen = match self.all.history().observe(key, &siblings) {
            Ok(seen) => seen,
            Err(violation) => {
                self.all.violate(violation);
                return None;
            }
        };
        let memory = Memory { context: siblings.head.clock.into(), seen };
        // Kept for long, so that writers on old contexts are far behind.
        let slot = &mut self.old[key as usize];
        if slot.is_none() || self.random.f64() < 0.3 {
            *slot = Some(memory.clone());
        }
        Some(memory)
    }
    fn put(&mut self, key: u32, memory: Option<Memory>) {
        let context = memory.as_ref().map(|m| m.context.clone());
        let memory = memory.unwrap_or_default();
        let id = self.begin(Kind::Put, key, &memory);
        let share = self.random.f64();
        let value: Value = make_value(key, id, (share * share * 6_000.0) as usize);
        let operation = Operation::Put { context, value, write_id: id.write_id() };
        if let Some(context) = self.write(key, id, operation) {
            let dot = written_dot(&memory.context, &context);
            let seen = memory.seen.iter().copied().chain([(id, dot)]).collect();
            self.written[key as usize] = Some(Memory { context, seen });
        }
    }
    fn delete(&mut self, key: u32, memory: Option<Memory>) {
        let context = memory.as_ref().map(|m| m.context.clone());
        let kind = if memory.is_some() { Kind::Delete } else { Kind::BlindDelete };
        let id = self.begin(kind, key, &memory.unwrap_or_default());
        self.write(key, id, Operation::Delete { context, write_id: id.write_id() });
    }
    fn begin(&self, kind: Kind, key: u32, memory: &Memory) -> EventId {
        let now = self.all.now();
        self.all.history().begin(now, kind, key, memory.seen.clone(), memory.context.clone())
    }
    /// Sends a write, again if need be, until its outcome is known or patience ends. Gives the context of an
    /// acknowledged one.
    fn write(&mut self, key: u32, id: EventId, operation: Operation) -> Option<Context> {
        let mut end = End::NotApplied;
        for attempt in 0..ATTEMPTS_MAX {
            self.all.history().attempt(id);
            let (node, answer) = self.call(key, operation.clone());
            if let CallEnd::Answered(Ok(Answer::Written(context))) = &answer {
                self.all.acknowledged[node].fetch_add(1, Ordering::Relaxed);
                self.all.history().finish(self.all.now(), id, End::Acknowledged, Some(context));
                return Some(context.clone());
            }
            // One attempt of unknown outcome makes the whole write unknown.
            if answer.outcome() == Outcome::Unknown {
                end = End::Unknown;
                self.all.history().linger(id);
            }
            let again = match &answer {
                CallEnd::Answered(Err(failure)) => failure.code.retryable(),
                _ => true,
            };
            if !again || attempt + 1 == ATTEMPTS_MAX || self.random.bool() {
                break;
            }
        }
        self.all.history().finish(self.all.now(), id, end, None);
        None
    }
    /// The node that was asked, and its answer.
    fn call(&mut self, key: u32, operation: Operation) -> (usize, CallEnd) {
        let node = if self.random.f64() < 0.8 { self.home } else { self.random.usize(..NODES) };
        let key = self.all.history().key(key).clone();
        let request = Request { key, operation, consistency: self.draw_consistency(), deadline: Instant::ZERO };
        self.all.operations.fetch_add(1, Ordering::Relaxed);
        let end = match self.wires.call(SocketAddr::new(self.all.ips[node], 8000), request, TIMEOUT) {
            Ok(response) => CallEnd::Answered(response),
            Err(None) => CallEnd::Refused,
            Err(Some(_)) => CallEnd::Lost,
        };
        if let CallEnd::Answered(Err(failure)) = &end
            && matches!(failure.code, ErrorCode::BadRequest | ErrorCode::TooLarge | ErrorCode::Damaged)
        {
            self.all.violate((Invariant::Alive, format!("node {node}: {failure}")));
        }
        (node, end)
    }
    fn draw_consistency(&mut self) -> Consistency {
        if self.random.f64() > 0.35 {
            return Consistency::default();
        }
        let levels = [Level::One, Level::One, Level::Quorum, Level::All];
        let sloppy = if self.random.f64() < 0.2 { Some(self.random.bool()) } else { None };
        Consistency { level: self.random.choice(levels), sloppy }
    }
}

/// The dot of a write, from the contexts before and after it; no dot when the second says more than that.
fn written_dot(before: &Context, after: &Context) -> Dot {
    let all = after.dots.iter().chain(after.clock.entries());
    let mut fresh = all.copied().filter(|d| !before.covers(*d));
    match (fresh.next(), fresh.next()) {
        (Some(dot), None) => dot,
        _ => Dot::default(),
    }
}

/// A read for the checks after healing.
pub fn get(wires: &mut Wires, to: SocketAddr, key: &Key, level: Level) -> Result<Siblings, String> {
    let consistency = Consistency { level: Some(level), sloppy: Some(false) };
    let request =
        Request { key: key.clone(), operation: Operation::Get { context: None }, consistency, deadline: Instant::ZERO };
    match wires.call(to, request, Duration::from_secs(5)) {
        Ok(Ok(Answer::Got(siblings))) => Ok(siblings),
        Ok(other) => Err(format!("{to}: {other:?}")),
        Err(why) => Err(format!("{to}: {}", why.unwrap_or("refused".into()))),
    }
}
