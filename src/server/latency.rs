//! How long requests take on this core: from the moment that one is whole, and is handed to the shard, until its answer
//! is there. What the client's network takes is not in it, nor what waits in a socket.
//!
//! Counts since the start go to `/metrics`, in buckets that can be added up over cores, nodes and time. Percentiles of
//! the last minute, for people, come from histograms of two significant digits: one that fills, and the one before it.
//! A histogram takes 21 KiB, and is made when its first request ends.

use super::clock;
use crate::{
    http::{
        latencies::{BOUNDS_MICROS, LatencyView, RecentView},
        views::ShardView,
    },
    protocol::message::{Operation, Response},
    types::{ErrorCode, Instant, Outcome},
};
use hdrhistogram::Histogram;
use std::time::Duration;

/// A histogram of lately fills for so long; percentiles are taken over it and the one before.
const HALF_WINDOW: Duration = Duration::from_secs(30);
/// Nanoseconds below which latencies are not told apart, and above which they count as this long: twice the longest
/// deadline of a request.
const RECENT_NS: (u64, u64) = (1_000, 120_000_000_000);

/// The way by which a request came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Front {
    Http = 0,
    Client = 1,
}

const FRONTS: [&str; 2] = ["http", "client"];
const OPERATIONS: [&str; 3] = ["get", "put", "delete"];
/// `refused`: nothing was done. `failed`: it may have been done, or a read got no answer.
const OUTCOMES: [&str; 3] = ["ok", "refused", "failed"];
const SERIES: usize = FRONTS.len() * OPERATIONS.len() * OUTCOMES.len();

/// A request that is in hand: which kind it is, and since when.
#[derive(Clone, Copy, Debug)]
pub struct Timed {
    kind: usize,
    at: Instant,
}

impl Timed {
    pub fn new(front: Front, operation: &Operation) -> Timed {
        let operation = match operation {
            Operation::Get { .. } => 0,
            Operation::Put { .. } => 1,
            Operation::Delete { .. } => 2,
        };
        Timed { kind: (front as usize * OPERATIONS.len() + operation) * OUTCOMES.len(), at: clock::now() }
    }
}

/// What one core says of itself.
pub struct Report {
    pub view: ShardView,
    pub latencies: Latencies,
}

#[derive(Clone)]
struct Series {
    /// Requests that took at most so long as each bound says, and more than the bound before; the last is of the rest.
    buckets: [u64; BOUNDS_MICROS.len() + 1],
    nanos: u64,
    recent: Recent,
}

#[derive(Clone)]
struct Recent {
    filling: Histogram<u64>,
    before: Histogram<u64>,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(RECENT_NS.0, RECENT_NS.1, 2).unwrap_or_else(|error| unreachable!("{error}"))
}

fn merge(into: &mut Histogram<u64>, from: &Histogram<u64>) {
    into.add(from).unwrap_or_else(|error| unreachable!("all have the same bounds: {error}"));
}

/// See the module.
#[derive(Clone)]
pub struct Latencies {
    series: [Option<Box<Series>>; SERIES],
    errors: [u64; ErrorCode::ALL.len()],
    /// When the histograms that fill began to.
    since: Instant,
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies { series: Default::default(), errors: Default::default(), since: Instant::ZERO }
    }
}

impl Latencies {
    /// A request is answered now.
    pub fn ended(&mut self, timed: Timed, response: &Response) {
        let now = clock::now();
        let outcome = match response {
            Ok(_) => 0,
            Err(failure) => {
                if let Some(place) = ErrorCode::ALL.iter().position(|code| *code == failure.code) {
                    self.errors[place] += 1;
                }
                if failure.outcome == Outcome::NotApplied { 1 } else { 2 }
            }
        };
        self.turn(now);
        self.record(timed.kind + outcome, now.since(timed.at));
    }
    fn record(&mut self, kind: usize, took: Duration) {
        let series = self.series[kind].get_or_insert_with(|| {
            let recent = Recent { filling: histogram(), before: histogram() };
            Box::new(Series { buckets: Default::default(), nanos: 0, recent })
        });
        let nanos = took.as_nanos() as u64;
        let bucket = BOUNDS_MICROS.partition_point(|bound| bound * 1_000 < nanos);
        series.buckets[bucket] += 1;
        series.nanos = series.nanos.saturating_add(nanos);
        series.recent.filling.saturating_record(nanos);
    }
    /// Begins new histograms when those that fill have done so for long enough.
    fn turn(&mut self, now: Instant) {
        let age = now.since(self.since);
        if age < HALF_WINDOW {
            return;
        }
        for series in self.series.iter_mut().flatten() {
            let recent = &mut series.recent;
            std::mem::swap(&mut recent.filling, &mut recent.before);
            recent.filling.reset();
            if age >= HALF_WINDOW * 2 {
                recent.before.reset();
            }
        }
        self.since = now;
    }
    /// What there is now, for another core.
    pub fn snapshot(&mut self) -> Latencies {
        self.turn(clock::now());
        self.clone()
    }
    /// Takes another core's in.
    pub fn add(&mut self, other: &Latencies) {
        for (own, other) in self.series.iter_mut().zip(&other.series) {
            let Some(other) = other else { continue };
            let Some(own) = own else {
                *own = Some(other.clone());
                continue;
            };
            own.buckets.iter_mut().zip(&other.buckets).for_each(|(own, other)| *own += other);
            own.nanos = own.nanos.saturating_add(other.nanos);
            for (own, other) in
                [(&mut own.recent.filling, &other.recent.filling), (&mut own.recent.before, &other.recent.before)]
            {
                merge(own, other);
            }
        }
        self.errors.iter_mut().zip(&other.errors).for_each(|(own, other)| *own += other);
    }
    /// Errors by code, those that have occurred.
    pub fn errors(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let named = ErrorCode::ALL.iter().zip(self.errors).map(|(code, count)| (code.name(), count));
        named.filter(|(_, count)| *count > 0)
    }
    /// One line for each kind of request that has occurred, and for those that went well in any case.
    pub fn views(&self) -> Vec<LatencyView> {
        let kinds = (0..SERIES).filter(|kind| kind % OUTCOMES.len() == 0 || self.series[*kind].is_some());
        kinds.map(|kind| self.view(kind)).collect()
    }
    fn view(&self, kind: usize) -> LatencyView {
        let (rest, outcome) = (kind / OUTCOMES.len(), kind % OUTCOMES.len());
        let mut view = LatencyView {
            operation: OPERATIONS[rest % OPERATIONS.len()].to_owned(),
            front: FRONTS[rest / OPERATIONS.len()].to_owned(),
            outcome: OUTCOMES[outcome].to_owned(),
            ..LatencyView::default()
        };
        if let Some(series) = &self.series[kind] {
            view.buckets = series.buckets.to_vec();
            view.count = series.buckets.iter().sum();
            view.seconds = series.nanos as f64 / 1e9;
            view.recent = series.recent.view();
        }
        view
    }
}

impl Recent {
    fn view(&self) -> RecentView {
        let mut all = self.filling.clone();
        merge(&mut all, &self.before);
        let micros = |quantile| all.value_at_quantile(quantile).div_ceil(1_000);
        RecentView {
            count: all.len(),
            p50_microseconds: micros(0.5),
            p90_microseconds: micros(0.9),
            p99_microseconds: micros(0.99),
            p999_microseconds: micros(0.999),
            max_microseconds: micros(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line<'a>(views: &'a [LatencyView], words: [&str; 3]) -> &'a LatencyView {
        let same = |view: &&LatencyView| [&view.operation[..], &view.front, &view.outcome] == words;
        views.iter().find(same).expect("a line")
    }
    const GET: usize = 0;
    const CLIENT_PUT_FAILED: usize = (3 + 1) * 3 + 2;

    #[test]
    fn what_ends_is_counted_once_by_its_kind_and_what_it_took() {
        let mut core = Latencies::default();
        for micros in [50, 51, 900, 70_000_000] {
            core.record(GET, Duration::from_micros(micros));
        }
        core.record(CLIENT_PUT_FAILED, Duration::from_millis(3));
        let mut node = core.clone();
        node.add(&core);
        let views = node.views();
        assert_eq!(views.len(), 6 + 1, "those that went well, and what occurred");
        let get = line(&views, ["get", "http", "ok"]);
        assert_eq!((get.count, get.buckets[0], get.buckets[1], get.buckets[4]), (8, 2, 2, 2));
        assert_eq!(get.buckets.last(), Some(&2), "more than the greatest bound");
        assert!((get.seconds - 2.0 * 70.001_001).abs() < 1e-6, "{}", get.seconds);
        assert_eq!(line(&views, ["put", "client", "failed"]).count, 2);
        assert_eq!(line(&views, ["put", "client", "ok"]).count, 0);
    }
    #[test]
    fn percentiles_are_of_the_last_minute_and_two_digits_true() {
        let mut core = Latencies { since: Instant(1), ..Latencies::default() };
        for micros in 1..=1_000 {
            core.record(GET, Duration::from_micros(micros));
        }
        let near = |shown: u64, exact: u64| shown.abs_diff(exact) * 100 <= exact;
        let recent = |core: &Latencies| core.view(GET).recent;
        let (mut now, half) = (Instant(1), HALF_WINDOW);
        assert!(near(recent(&core).p50_microseconds, 500) && near(recent(&core).p99_microseconds, 990));
        now = now + half;
        core.turn(now);
        core.record(GET, Duration::from_micros(5_000));
        assert_eq!(recent(&core).count, 1_001, "both halves");
        assert!(near(recent(&core).max_microseconds, 5_000));
        now = now + half;
        core.turn(now);
        assert_eq!((recent(&core).count, core.view(GET).count), (1, 1_001), "those of before are history");
        core.turn(now + half * 2);
        assert_eq!(recent(&core).count, 0);
    }
}
