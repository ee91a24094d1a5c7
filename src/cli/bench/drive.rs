//! One thread of the generator: takes due operations from the schedule, sends them, matches answers, counts.
//!
//! Life of an operation: a slot in the book from its scheduled time on; a place in its endpoint's queue; a request on
//! a connection with room; an answer, or a failure and another attempt elsewhere; a count in the second in which it
//! ended. The queue is part of the latency: the clock runs from the scheduled start.
//!
//! Counting: an operation's latency is recorded if it was *scheduled* in the measured window, however late it ends;
//! throughput counts what *ended* in the window. Failures are recorded as latencies too, with the time they took.

use super::{
    dialect::{Answer, Ask, Dialect, Request, Verdict},
    hearing::Hearing,
    interrupt, keys,
    latency::{Tally, histogram},
    link::Link,
    plan::{Pace, Plan},
    poll::{Poll, Ready},
    schedule::Schedule,
    target::Fleet,
    values::ValuePool,
    workload::{Kind, Source},
};
use crate::limits::CONTEXT_DOTS_MAX;
use crate::protocol::{ring::FixedMap, versions::Context};
use hdrhistogram::Histogram;
use std::{
    collections::VecDeque,
    io,
    net::TcpStream,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

/// Operations begun and not ended, of one thread: beyond it the run is hopeless and stops issuing.
const SLOTS_MAX: usize = 2_000_000;
/// Bytes of requests that wait in one connection's buffer before others are used.
pub(super) const OUTPUT_BYTES_MAX: usize = 1 << 20;
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);
const SWEEP_NS: u64 = 20_000_000;
/// How long what is under way may take after Ctrl-C.
const INTERRUPTED_NS: u64 = 500_000_000;
/// Replicas of a key that are looked at for one that answers.
const OTHERS_MAX: u8 = 7;
const SECOND_NS: u64 = 1_000_000_000;

/// What a thread tells while it runs and at its end.
pub enum Told {
    Second { second: u64, tally: Box<Tally> },
    End(Box<End>),
}
/// What a thread knows at its end besides its seconds.
pub struct End {
    /// The time from sending to the answer: what a closed loop would have called latency.
    pub service: Histogram<u64>,
    /// The time from the schedule to when the generator had put the operation into a connection's buffer or queue.
    pub lateness: Histogram<u64>,
    /// When the last operation ended, from the start.
    pub ended_ns: u64,
    /// CPU time of the thread.
    pub cpu_ns: u64,
    /// The generator gave up because too many operations were open.
    pub overflowed: bool,
    pub fatal: Option<String>,
}

/// A slot and its generation, as one number: an answer or a queue entry that outlives its operation finds another
/// generation in the slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ticket(u64);
impl Ticket {
    fn index(self) -> usize {
        (self.0 & 0xffff_ffff) as usize
    }
}

struct Slot {
    live: bool,
    generation: u32,
    kind: Kind,
    /// The get of an update is out, its put is not.
    reading: bool,
    attempt: u8,
    key: u64,
    variant: u64,
    scheduled_ns: u64,
    sent_ns: u64,
    link: usize,
}

/// Everything about operations; nothing about sockets.
pub(super) struct Book {
    plan: Arc<Plan>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// What this writer has seen of each key; `None`: too much to say, it must read before it writes.
    contexts: FixedMap<u64, Option<Context>>,
    source: Source,
    variant: u64,
    /// Operations to send again: further attempts, and the puts of updates.
    follow: Vec<Ticket>,
    open: usize,
    window: std::ops::Range<u64>,
    second: Tally,
    service: Histogram<u64>,
    lateness: Histogram<u64>,
    ended_ns: u64,
    pool: Arc<ValuePool>,
}

struct Endpoint {
    links: Vec<usize>,
    turn: usize,
    queue: VecDeque<Ticket>,
    live: usize,
}

type Connected = (usize, io::Result<(TcpStream, Box<dyn Dialect>)>);

pub struct Worker {
    fleet: Arc<Fleet>,
    plan: Arc<Plan>,
    start: Instant,
    poll: Poll,
    links: Vec<Link>,
    endpoints: Vec<Endpoint>,
    hearing: Hearing,
    book: Book,
    schedule: Option<Schedule>,
    random: fastrand::Rng,
    turn: usize,
    dirty: Vec<usize>,
    key: Vec<u8>,
    told: mpsc::Sender<Told>,
    second: u64,
    overflowed: bool,
    reconnected: (mpsc::Sender<Connected>, mpsc::Receiver<Connected>),
}

impl Worker {
    /// Connects the `thread`-th worker's share of the connections.
    pub fn connect(
        fleet: Arc<Fleet>,
        plan: Arc<Plan>,
        pool: Arc<ValuePool>,
        thread: usize,
        told: mpsc::Sender<Told>,
    ) -> io::Result<Worker> {
        let poll = Poll::new()?;
        let mut endpoints: Vec<Endpoint> = (0..fleet.endpoints.len())
            .map(|_| Endpoint { links: vec![], turn: 0, queue: VecDeque::new(), live: 0 })
            .collect();
        let share = plan.connections.div_ceil(plan.threads).max(endpoints.len());
        let (mut links, mut absent, mut refused) = (Vec::with_capacity(share), Vec::new(), None);
        for index in 0..share {
            let endpoint = index % endpoints.len();
            endpoints[endpoint].links.push(index);
            match fleet.connect(endpoint) {
                Ok((stream, dialect)) => {
                    poll.add(&stream, index as u64)?;
                    endpoints[endpoint].live += 1;
                    links.push(Link::new(stream, dialect, endpoint));
                }
                // A node that is down now may come back; with none at all there is no run.
                Err(error) => {
                    refused = Some(error);
                    absent.push((index, endpoint));
                    links.push(Link::absent(endpoint));
                }
            }
        }
        if let Some(error) = refused.filter(|_| absent.len() == links.len()) {
            return Err(error);
        }
        let source = match plan.load {
            true => Source::load(plan.keys, thread, plan.threads),
            false => Source::mixed(plan.mix, plan.keys, thread, plan.threads),
        };
        let schedule = match plan.pace {
            Pace::Open { rate, arrivals } => {
                let rate = rate / plan.threads as f64;
                Some(Schedule::new(arrivals, rate, thread, plan.threads, plan.seed))
            }
            Pace::Closed { .. } => None,
        };
        let (warmup, silence) = (plan.warmup.as_nanos() as u64, plan.silence);
        let book = Book {
            slots: Vec::new(),
            free: Vec::new(),
            contexts: FixedMap::default(),
            source,
            // Runs at different times write different values.
            variant: fastrand::u64(..),
            follow: Vec::new(),
            open: 0,
            window: warmup..warmup + plan.measure.as_nanos() as u64,
            second: Tally::default(),
            service: histogram(),
            lateness: histogram(),
            ended_ns: 0,
            pool,
            plan: plan.clone(),
        };
        let worker = Worker {
            random: fastrand::Rng::with_seed(plan.seed.wrapping_add(thread as u64 * 1_000_003)),
            fleet,
            plan,
            start: Instant::now(),
            poll,
            links,
            hearing: Hearing::new(endpoints.len(), u64::try_from(silence.as_nanos()).unwrap_or(u64::MAX)),
            endpoints,
            book,
            schedule,
            turn: thread,
            dirty: Vec::new(),
            key: Vec::new(),
            told,
            second: 0,
            overflowed: false,
            reconnected: mpsc::channel(),
        };
        absent.into_iter().for_each(|(index, endpoint)| worker.connect_later(index, endpoint, RECONNECT_PAUSE));
        Ok(worker)
    }

    /// Runs to the end. `start` is the same for all threads.
    pub fn run(mut self, start: Instant) {
        self.start = start;
        if let Some(early) = start.checked_duration_since(Instant::now()) {
            std::thread::sleep(early);
        }
        let cpu_before_ns = thread_cpu_ns();
        let fatal = self.turns().err().map(|e| e.to_string());
        let cpu_ns = thread_cpu_ns().saturating_sub(cpu_before_ns);
        let tally = Box::new(std::mem::take(&mut self.book.second));
        // The listener outlives its workers; if it is gone, nobody wants to know.
        let _ = self.told.send(Told::Second { second: self.second, tally });
        let end = End {
            service: self.book.service,
            lateness: self.book.lateness,
            ended_ns: self.book.ended_ns,
            cpu_ns,
            overflowed: self.overflowed,
            fatal,
        };
        let _ = self.told.send(Told::End(Box::new(end)));
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn turns(&mut self) -> io::Result<()> {
        let (mut ready, mut exhausted, mut swept_ns) = (Vec::<Ready>::new(), false, 0);
        let mut last_ns = self.book.window.end;
        let mut give_up_ns = last_ns.saturating_add(self.plan.timeout.as_nanos() as u64);
        loop {
            let now = self.now_ns();
            if now < last_ns && interrupt::came() {
                // What was under way may still be answered, but not for long: somebody waits for the report.
                last_ns = now;
                self.book.window.end = now.max(self.book.window.start);
                give_up_ns = now.saturating_add(INTERRUPTED_NS);
            }
            let issuing = now < last_ns && !exhausted && !self.overflowed;
            let before = self.book.second.scheduled;
            if issuing {
                exhausted = !self.issue(now);
            }
            self.follow();
            self.flush()?;
            let started = self.book.second.scheduled != before;
            let asleep = self.now_ns();
            let timeout = self.patience(asleep, issuing);
            self.poll.wait(timeout, &mut ready)?;
            let after = self.now_ns();
            if timeout > Duration::ZERO || (!started && ready.is_empty()) {
                self.book.second.idle_ns += after - asleep;
            }
            self.roll(after);
            ready.iter().for_each(|event| self.serve(*event));
            if after > swept_ns + SWEEP_NS {
                swept_ns = after;
                self.expire(after);
                self.reconnect()?;
            }
            let through = after >= last_ns || exhausted || self.overflowed;
            if through && (self.book.open == 0 || after > give_up_ns) {
                self.abandon(after);
                return Ok(());
            }
        }
    }

    /// Starts what is due. False when there is nothing left to start.
    fn issue(&mut self, now: u64) -> bool {
        match self.plan.pace {
            Pace::Open { .. } => {
                let last = self.book.window.end;
                while let Some(at) = self.schedule.as_mut().and_then(|s| s.due(now)) {
                    if at >= last || !self.begin(at, now) {
                        return false;
                    }
                }
            }
            Pace::Closed { outstanding } => {
                let mine = outstanding.div_ceil(self.plan.threads);
                while self.book.open < mine {
                    if !self.begin(now, now) {
                        return false;
                    }
                }
            }
        }
        true
    }

    fn begin(&mut self, at: u64, now: u64) -> bool {
        let Some((kind, key)) = self.book.source.next(&mut self.random) else { return false };
        let Some(ticket) = self.book.begin(kind, key, at, now) else {
            self.overflowed = true;
            return false;
        };
        self.place(ticket);
        true
    }

    /// Puts an operation into the queue of an endpoint that serves its key and has a connection.
    fn place(&mut self, ticket: Ticket) {
        let Some(Slot { key, attempt, .. }) = self.book.slot(ticket) else { return };
        let attempt = *attempt;
        keys::write_key(&self.plan.prefix, *key, &mut self.key);
        let mut endpoint = self.fleet.route(&self.key, attempt, &mut self.turn);
        if self.endpoints[endpoint].live == 0 || self.hearing.shuns(endpoint, self.now_ns()) {
            endpoint = self.another(endpoint, attempt).unwrap_or(endpoint);
        }
        self.endpoints[endpoint].queue.push_back(ticket);
        self.dispatch(endpoint);
    }

    /// An endpoint in the place of one that does not answer: another replica of the key (which is in `self.key`), or
    /// any.
    fn another(&mut self, endpoint: usize, attempt: u8) -> Option<usize> {
        let answers =
            |worker: &Worker, e: usize| e != endpoint && worker.endpoints[e].live > 0 && !worker.hearing.is_silent(e);
        for more in 0..OTHERS_MAX {
            let owner = self.fleet.route(&self.key, attempt.wrapping_add(more) % OTHERS_MAX, &mut self.turn);
            if answers(self, owner) {
                return Some(owner);
            }
        }
        let others = (1..self.endpoints.len()).map(|step| (endpoint + step) % self.endpoints.len());
        let live = others.clone().find(|e| self.endpoints[*e].live > 0);
        others.into_iter().find(|e| answers(self, *e)).or(live.filter(|_| self.endpoints[endpoint].live == 0))
    }

    /// Sends from an endpoint's queue as long as a connection has room.
    fn dispatch(&mut self, endpoint: usize) {
        while !self.endpoints[endpoint].queue.is_empty() {
            let Some(link) = self.room(endpoint) else { return };
            if let Some(ticket) = self.endpoints[endpoint].queue.pop_front() {
                self.send(ticket, link);
            }
        }
    }

    /// A connection of the endpoint that takes another request.
    fn room(&mut self, endpoint: usize) -> Option<usize> {
        let place = &mut self.endpoints[endpoint];
        for _ in 0..place.links.len() {
            place.turn = (place.turn + 1) % place.links.len();
            let index = place.links[place.turn];
            let link = &self.links[index];
            let short = link.output.len() - link.sent < OUTPUT_BYTES_MAX;
            if link.stream.is_some() && link.in_flight < self.plan.in_flight && short {
                return Some(index);
            }
        }
        None
    }

    fn send(&mut self, ticket: Ticket, link_index: usize) {
        let now = self.now_ns();
        if self.book.slot(ticket).is_none() {
            return;
        }
        let (slot, link) = (&mut self.book.slots[ticket.index()], &mut self.links[link_index]);
        slot.link = link_index;
        slot.sent_ns = now;
        keys::write_key(&self.plan.prefix, slot.key, &mut self.key);
        let ask = match slot.kind == Kind::Get || slot.reading {
            true => Ask::Get,
            false => Ask::Put {
                context: self.book.contexts.get(&slot.key).and_then(Option::as_ref),
                values: &self.book.pool,
                number: slot.key,
                variant: slot.variant,
            },
        };
        link.dialect.request(Request { id: ticket.0, key: &self.key, ask }, &mut link.output);
        link.in_flight += 1;
        if !link.dirty {
            link.dirty = true;
            self.dirty.push(link_index);
        }
    }

    /// Sends the second halves of updates and further attempts.
    fn follow(&mut self) {
        while let Some(ticket) = self.book.follow.pop() {
            self.place(ticket);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        for index in std::mem::take(&mut self.dirty) {
            self.links[index].dirty = false;
            if self.links[index].flush(&self.poll, index).is_err() {
                self.lose(index);
            }
        }
        Ok(())
    }

    /// How long to wait for sockets: until the next arrival, and never past the next look around.
    fn patience(&self, now: u64, issuing: bool) -> Duration {
        if self.plan.spin || !self.book.follow.is_empty() || !self.dirty.is_empty() {
            return Duration::ZERO;
        }
        let next = match &self.schedule {
            Some(schedule) if issuing => schedule.next_ns().saturating_sub(now),
            _ => SWEEP_NS,
        };
        Duration::from_nanos(next.min(SWEEP_NS))
    }

    fn serve(&mut self, event: Ready) {
        let index = event.token as usize;
        if event.writable && self.links[index].flush(&self.poll, index).is_err() {
            return self.lose(index);
        }
        if event.readable {
            let now = self.now_ns();
            self.hearing.heard(self.links[index].endpoint, now);
            if self.links[index].read(&mut self.book, now).is_err() {
                return self.lose(index);
            }
        }
        self.dispatch(self.links[index].endpoint);
    }

    /// A connection has failed: everything on it is tried elsewhere, and it is connected again beside the run.
    fn lose(&mut self, index: usize) {
        let now = self.now_ns();
        let link = &mut self.links[index];
        if link.stream.take().is_none() {
            return;
        }
        link.clear();
        let endpoint = link.endpoint;
        self.endpoints[endpoint].live -= 1;
        self.book.lost(index, now);
        if self.endpoints[endpoint].live == 0 {
            let queued = std::mem::take(&mut self.endpoints[endpoint].queue);
            self.book.follow.extend(queued);
        }
        self.connect_later(index, endpoint, Duration::ZERO);
    }

    fn connect_later(&self, index: usize, endpoint: usize, pause: Duration) {
        let (fleet, connected) = (self.fleet.clone(), self.reconnected.0.clone());
        std::thread::spawn(move || {
            std::thread::sleep(pause);
            // The worker may have ended meanwhile; then the connection is dropped.
            let _ = connected.send((index, fleet.connect(endpoint)));
        });
    }

    fn reconnect(&mut self) -> io::Result<()> {
        while let Ok((index, connected)) = self.reconnected.1.try_recv() {
            let endpoint = self.links[index].endpoint;
            match connected {
                Ok((stream, dialect)) => {
                    self.poll.add(&stream, index as u64)?;
                    self.links[index] = Link::new(stream, dialect, endpoint);
                    self.endpoints[endpoint].live += 1;
                    self.dispatch(endpoint);
                }
                Err(_) => self.connect_later(index, endpoint, RECONNECT_PAUSE),
            }
        }
        Ok(())
    }

    fn expire(&mut self, now: u64) {
        let timeout = self.plan.timeout.as_nanos() as u64;
        for endpoint in 0..self.endpoints.len() {
            // A trial for which its connections have no room is none.
            if self.hearing.is_silent(endpoint) {
                let queued = std::mem::take(&mut self.endpoints[endpoint].queue);
                self.book.follow.extend(queued);
            }
        }
        for index in 0..self.book.slots.len() {
            self.move_from_silence(index, now);
            let slot = &self.book.slots[index];
            if slot.live && now.saturating_sub(slot.scheduled_ns.max(slot.sent_ns)) > timeout {
                self.book.fail(index, "timeout", now);
            }
        }
    }

    /// An operation that waits for an endpoint which says nothing is asked elsewhere, if there is an elsewhere.
    fn move_from_silence(&mut self, index: usize, now: u64) {
        let slot = &self.book.slots[index];
        let Some(link) = self.links.get(slot.link).filter(|_| slot.live) else { return };
        let endpoint = link.endpoint;
        if !self.hearing.is_waited_for(endpoint, slot.sent_ns, now) {
            return;
        }
        if (0..self.endpoints.len()).any(|e| self.endpoints[e].live > 0 && !self.hearing.is_silent(e)) {
            // Not one of its attempts: nobody has refused it, and where it goes next somebody speaks.
            self.book.second.retried += 1;
            self.book.again(index);
        }
    }

    /// Hands over the second that has passed.
    fn roll(&mut self, now: u64) {
        if now / SECOND_NS > self.second {
            let tally = Box::new(std::mem::take(&mut self.book.second));
            // The listener outlives its workers.
            let _ = self.told.send(Told::Second { second: self.second, tally });
            self.second = now / SECOND_NS;
        }
    }

    /// What has no answer at the very end counts as failed, with the time it has taken so far.
    fn abandon(&mut self, now: u64) {
        for index in 0..self.book.slots.len() {
            if self.book.slots[index].live {
                self.book.fail(index, "unanswered", now);
            }
        }
    }
}

/// CPU time that this thread has used so far; 0 where the kernel does not tell.
fn thread_cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// What is known after both: what one request has written and another has read are both seen by this writer. `None`
/// when concurrent writes have left so many dots beside the clock that only a read can tell more.
fn join(before: Option<Context>, new: Context) -> Option<Context> {
    let joined = before.map_or(new.clone(), |b| b.join(&new));
    (joined.dots.len() < CONTEXT_DOTS_MAX).then_some(joined)
}

impl Book {
    /// The operation of a ticket, unless it has ended.
    fn slot(&self, ticket: Ticket) -> Option<&Slot> {
        let slot = self.slots.get(ticket.index())?;
        (slot.live && slot.generation == (ticket.0 >> 32) as u32).then_some(slot)
    }
    fn ticket(&self, index: usize) -> Ticket {
        Ticket(u64::from(self.slots[index].generation) << 32 | index as u64)
    }
    /// Sends an operation once more: it is on no connection until then.
    fn again(&mut self, index: usize) {
        self.slots[index].link = usize::MAX;
        // An answer to the earlier request must not be taken for this one's.
        self.slots[index].generation = self.slots[index].generation.wrapping_add(1);
        self.follow.push(self.ticket(index));
    }
    /// Another attempt, if there may be one.
    fn retry(&mut self, index: usize) -> bool {
        let may = self.slots[index].attempt + 1 < self.plan.attempts;
        if may {
            self.slots[index].attempt += 1;
            self.second.retried += 1;
            self.again(index);
        }
        may
    }

    /// A slot for a new operation; `None` when too many are open.
    fn begin(&mut self, kind: Kind, key: u64, at: u64, now: u64) -> Option<Ticket> {
        let known = self.contexts.get(&key).map_or(!self.plan.learn, Option::is_some);
        let unread = matches!(kind, Kind::Put | Kind::Insert) && !known;
        let kind = if unread { Kind::Update } else { kind };
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < SLOTS_MAX => {
                self.slots.push(Slot {
                    live: false,
                    generation: 0,
                    kind,
                    reading: false,
                    attempt: 0,
                    key,
                    variant: 0,
                    scheduled_ns: 0,
                    sent_ns: 0,
                    link: usize::MAX,
                });
                (self.slots.len() - 1) as u32
            }
            None => return None,
        };
        self.variant = self.variant.wrapping_add(1);
        let slot = &mut self.slots[index as usize];
        *slot = Slot {
            live: true,
            generation: slot.generation.wrapping_add(1),
            kind,
            reading: kind == Kind::Update,
            attempt: 0,
            key,
            variant: self.variant,
            scheduled_ns: at,
            sent_ns: 0,
            link: usize::MAX,
        };
        self.open += 1;
        if self.window.contains(&at) {
            self.second.scheduled += 1;
            self.lateness.saturating_record(now.saturating_sub(at));
        }
        Some(self.ticket(index as usize))
    }

    pub(super) fn answered(&mut self, answer: Answer<'_>, now: u64) {
        let ticket = Ticket(answer.id);
        let index = ticket.index();
        let Some(slot) = self.slot(ticket) else { return };
        let (key, reading) = (slot.key, slot.reading);
        let was_get = slot.kind == Kind::Get || reading;
        let bytes = answer.value.map_or(0, <[u8]>::len) as u64;
        if was_get
            && let Some(value) = answer.value
            && self.plan.validate
            && !self.pool.is_value_of(key, value)
        {
            self.second.damaged += 1;
        }
        if let (true, Some(context)) = (self.plan.load || self.plan.mix.writes(), answer.context) {
            let before = self.contexts.remove(&key).flatten();
            self.contexts.insert(key, join(before, context));
        }
        match answer.verdict {
            Verdict::AlsoValue => {}
            Verdict::Failed { code, retryable } => {
                if !(retryable && self.retry(index)) {
                    self.fail(index, &code, now);
                }
            }
            Verdict::Done | Verdict::Missing | Verdict::Siblings(_) if reading => {
                self.slots[index].reading = false;
                self.again(index);
            }
            verdict => {
                self.second.missing += u64::from(verdict == Verdict::Missing);
                self.second.siblings += u64::from(matches!(verdict, Verdict::Siblings(_)));
                let bytes = if was_get { bytes } else { self.pool.value_bytes() as u64 };
                self.end(index, now, Some(bytes));
            }
        }
    }

    /// The connection is gone: what was on it is tried again or fails.
    fn lost(&mut self, link: usize, now: u64) {
        for index in 0..self.slots.len() {
            if self.slots[index].live && self.slots[index].link == link && !self.retry(index) {
                self.fail(index, "connection_lost", now);
            }
        }
    }

    fn fail(&mut self, index: usize, code: &str, now: u64) {
        if self.window.contains(&self.slots[index].scheduled_ns) {
            *self.second.failed.entry(code.to_owned()).or_default() += 1;
        }
        self.end(index, now, None);
    }

    /// Counts an operation that has ended; `bytes` of its value if it went well.
    fn end(&mut self, index: usize, now: u64, bytes: Option<u64>) {
        let slot = &mut self.slots[index];
        slot.live = false;
        self.open -= 1;
        self.free.push(index as u32);
        self.ended_ns = now;
        self.second.ended += 1;
        if bytes.is_some() && slot.kind == Kind::Insert {
            self.source.inserted(slot.key);
        }
        if self.window.contains(&slot.scheduled_ns) {
            self.second.kind_mut(slot.kind).latency.saturating_record(now.saturating_sub(slot.scheduled_ns).max(1));
            self.service.saturating_record(now.saturating_sub(slot.sent_ns.max(slot.scheduled_ns)).max(1));
        }
        if let (Some(bytes), true) = (bytes, self.window.contains(&now)) {
            let kind = self.second.kind_mut(slot.kind);
            kind.done += 1;
            kind.bytes += bytes;
            self.second.done += 1;
            self.second.answered.set(now);
        }
    }
}
