//! What an engine is asked to do, and how it went.

use crate::records::Order;
use hdrhistogram::Histogram;
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// `durable`: acknowledged after a sync that covers it. Else whenever the engine likes best.
    Put { version: u32, durable: bool },
    /// The whole record must be there and have its length.
    Get,
}

/// Like requests by several workers at once.
#[derive(Clone, Debug)]
pub struct Stream {
    pub action: Action,
    /// Requests in flight: threads for a peer, tasks of one core for Dynarc.
    pub workers: usize,
    pub order: Order,
    /// Requests in all, unless the work's time is over before.
    pub operations: u64,
    /// Requests a second, evenly spaced and counted from when each was due; otherwise each worker goes on at once.
    pub rate: Option<f64>,
}

/// Streams that run together.
#[derive(Clone, Debug)]
pub struct Work {
    pub streams: Vec<Stream>,
    pub limit: Duration,
}

impl Work {
    pub fn of(stream: Stream, limit: Duration) -> Work {
        Work { streams: vec![stream], limit }
    }
}

/// How a stream went.
#[derive(Clone)]
pub struct Outcome {
    /// Nanoseconds from when a request was begun, or due, to its acknowledgement.
    pub latency: Histogram<u64>,
    /// From the start to the last acknowledgement.
    pub elapsed: Duration,
    /// The longest time in which no request of the stream was acknowledged.
    pub longest_gap: Duration,
    /// Share of looks, every few milliseconds, at which the engine's background work had something to do.
    pub backlogged: f64,
}

impl Outcome {
    pub fn count(&self) -> u64 {
        self.latency.len()
    }
    pub fn rate(&self) -> f64 {
        self.count() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
    /// Microseconds.
    pub fn quantile(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e3
    }
    /// Microseconds.
    pub fn longest(&self) -> f64 {
        self.latency.max() as f64 / 1e3
    }
}

pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("bounds in order")
}

/// A stream on its way: what its workers share.
pub struct Progress {
    pub stream: Stream,
    start: Instant,
    limit: Duration,
    next: AtomicU64,
    last: AtomicU64,
    gap: AtomicU64,
    stopped: AtomicBool,
}

/// One request of a stream.
pub struct Step {
    pub key: u64,
    /// When it is due, if the stream has a rate.
    pub due: Option<Instant>,
}

impl Progress {
    pub fn new(stream: &Stream, limit: Duration, start: Instant) -> Progress {
        let (next, last, gap) = Default::default();
        Progress { stream: stream.clone(), start, limit, next, last, gap, stopped: AtomicBool::new(false) }
    }
    /// The next request, if there is one.
    pub fn next(&self) -> Option<Step> {
        if self.stopped.load(Ordering::Relaxed) || self.start.elapsed() >= self.limit {
            return None;
        }
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let due = self.stream.rate.map(|rate| self.start + Duration::from_secs_f64(n as f64 / rate));
        let over = n >= self.stream.operations || due.is_some_and(|due| due >= self.start + self.limit);
        (!over).then(|| Step { key: self.stream.order.key(n), due })
    }
    /// Notes an acknowledgement that comes now.
    pub fn acknowledged(&self, now: Instant) {
        let now = now.duration_since(self.start).as_nanos() as u64;
        let last = self.last.fetch_max(now, Ordering::Relaxed);
        if now.saturating_sub(last) > self.gap.load(Ordering::Relaxed) {
            self.gap.fetch_max(now - last, Ordering::Relaxed);
        }
    }
    /// No further requests.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
    pub fn outcome(&self, latency: Histogram<u64>, backlogged: f64) -> Outcome {
        let nanos = |a: &AtomicU64| Duration::from_nanos(a.load(Ordering::Relaxed));
        Outcome { latency, elapsed: nanos(&self.last), longest_gap: nanos(&self.gap), backlogged }
    }
}

/// Looks at whether background work waits.
#[derive(Default)]
pub struct Looks {
    all: AtomicU64,
    busy: AtomicU64,
}
impl Looks {
    /// Between two looks.
    pub const PAUSE: Duration = Duration::from_millis(5);

    pub fn note(&self, busy: bool) {
        self.all.fetch_add(1, Ordering::Relaxed);
        self.busy.fetch_add(u64::from(busy), Ordering::Relaxed);
    }
    pub fn share(&self) -> f64 {
        self.busy.load(Ordering::Relaxed) as f64 / self.all.load(Ordering::Relaxed).max(1) as f64
    }
}
