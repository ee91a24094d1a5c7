//! Histograms of latency and the counts beside them, per second and in total. Merged, never averaged.

use super::workload::Kind;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;

/// The longest latency that is told apart from longer ones.
const LATENCY_NS_MAX: u64 = 3_600 * 1_000_000_000;

/// An empty histogram of nanoseconds: 1 ns to an hour, three significant digits.
pub fn histogram() -> Histogram<u64> {
    // The bounds are constants that hdrhistogram accepts; the fallback accepts any.
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).unwrap_or_else(|_| {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, 2, 3).unwrap_or_else(|e| unreachable!("{e}"));
        histogram.auto(true);
        histogram
    })
}

/// Latencies and counts of one kind of operation.
#[derive(Clone)]
pub struct KindTally {
    /// Nanoseconds from the scheduled start (closed loop: from the request) to the answer. Failures are in it too,
    /// so that no slow operation vanishes.
    pub latency: Histogram<u64>,
    /// Answered well within the measured window.
    pub done: u64,
    /// Value bytes of those.
    pub bytes: u64,
}

/// What one thread saw in one second, or everything in all.
#[derive(Clone, Default)]
pub struct Tally {
    kinds: [Option<Box<KindTally>>; Kind::COUNT],
    /// Operations scheduled in the measured window.
    pub scheduled: u64,
    /// Answered well in the measured window, of all kinds.
    pub done: u64,
    /// Ended in any way at any time, warm-up included.
    pub ended: u64,
    /// Gets of keys that do not exist.
    pub missing: u64,
    /// Gets answered with more than one value.
    pub siblings: u64,
    /// Values that are not what was written to their key (`--validate`).
    pub damaged: u64,
    /// Operations sent once more after a failure.
    pub retried: u64,
    /// Failures by code, after all attempts.
    pub failed: BTreeMap<String, u64>,
    /// Time in which the generator had nothing to do.
    pub idle_ns: u64,
    /// The milliseconds of the second in which an operation was answered well.
    pub answered: Milliseconds,
}

/// A bit for each millisecond of a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Milliseconds([u64; 16]);
impl Milliseconds {
    /// `ns`: since the start of the run.
    pub fn set(&mut self, ns: u64) {
        let millisecond = (ns / 1_000_000 % 1_000) as usize;
        self.0[millisecond / 64] |= 1 << (millisecond % 64);
    }
    fn has(&self, millisecond: usize) -> bool {
        self.0[millisecond / 64] >> (millisecond % 64) & 1 != 0
    }
    fn add(&mut self, other: &Milliseconds) {
        self.0.iter_mut().zip(other.0).for_each(|(mine, theirs)| *mine |= theirs);
    }
}

/// The longest time, in milliseconds, in which no operation was answered well, between the first and the last second
/// given; and when it began, in milliseconds from the start of the first.
pub fn longest_gap<'a>(seconds: impl IntoIterator<Item = &'a Tally>) -> (u64, u64) {
    let (mut longest, mut begins, mut gap) = (0, 0, 0);
    let bits = seconds.into_iter().flat_map(|s| (0..1_000).map(|ms| s.answered.has(ms)));
    for (at, answered) in bits.enumerate() {
        gap = if answered { 0 } else { gap + 1 };
        if gap > longest {
            (longest, begins) = (gap, at as u64 + 1 - gap);
        }
    }
    (longest, begins)
}

impl Tally {
    pub fn kind(&self, kind: Kind) -> Option<&KindTally> {
        self.kinds[kind as usize].as_deref()
    }
    pub fn kind_mut(&mut self, kind: Kind) -> &mut KindTally {
        self.kinds[kind as usize].get_or_insert_with(|| Box::new(KindTally { latency: histogram(), done: 0, bytes: 0 }))
    }
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }
    /// All kinds' latencies together.
    pub fn latency(&self) -> Histogram<u64> {
        let mut all = histogram();
        for tally in self.kinds.iter().flatten() {
            merge(&mut all, &tally.latency);
        }
        all
    }
    pub fn bytes(&self) -> u64 {
        self.kinds.iter().flatten().map(|k| k.bytes).sum()
    }
    pub fn add(&mut self, other: &Tally) {
        for kind in Kind::ALL {
            if let Some(theirs) = other.kind(kind) {
                let mine = self.kind_mut(kind);
                merge(&mut mine.latency, &theirs.latency);
                mine.done += theirs.done;
                mine.bytes += theirs.bytes;
            }
        }
        self.scheduled += other.scheduled;
        self.done += other.done;
        self.ended += other.ended;
        self.missing += other.missing;
        self.siblings += other.siblings;
        self.damaged += other.damaged;
        self.retried += other.retried;
        self.idle_ns += other.idle_ns;
        self.answered.add(&other.answered);
        for (code, count) in &other.failed {
            *self.failed.entry(code.clone()).or_default() += count;
        }
    }
}

/// Adds the counts of `from` to `into`; both come from [`histogram`], so they fit.
pub fn merge(into: &mut Histogram<u64>, from: &Histogram<u64>) {
    if into.add(from).is_err() {
        into.auto(true);
        // A histogram that may grow accepts every value of another one.
        let _ = into.add(from);
    }
}

/// Percentiles of one histogram in microseconds.
#[derive(Clone, Copy, PartialEq, Debug, Default, serde::Serialize)]
pub struct Percentiles {
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    pub mean_us: f64,
}
impl Percentiles {
    pub fn of(histogram: &Histogram<u64>) -> Percentiles {
        let at = |q| histogram.value_at_quantile(q) as f64 / 1e3;
        Percentiles {
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: histogram.max() as f64 / 1e3,
            mean_us: histogram.mean() / 1e3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_reach_over_seconds() {
        let mut seconds = vec![Tally::default(); 3];
        (0..1_000).filter(|ms| *ms < 900).for_each(|ms| seconds[0].answered.set(5_000_000_000 + ms * 1_000_000 + 7));
        (30..1_000).for_each(|ms| seconds[1].answered.set(ms * 1_000_000));
        (0..1_000).step_by(50).for_each(|ms| seconds[2].answered.set(ms * 1_000_000));
        assert_eq!(longest_gap(&seconds), (130, 900));
        assert_eq!(longest_gap(&seconds[2..]), (49, 1));
    }

    #[test]
    fn merging_keeps_every_count_where_an_average_would_not() {
        let (mut fast, mut slow) = (Tally::default(), Tally::default());
        (0..9_900).for_each(|_| fast.kind_mut(Kind::Get).latency.saturating_record(1_000_000));
        (0..100).for_each(|_| slow.kind_mut(Kind::Get).latency.saturating_record(1_000_000_000));
        let mut all = Tally::default();
        all.add(&fast);
        all.add(&slow);
        let merged = &all.kind(Kind::Get).unwrap().latency;
        assert_eq!(merged.len(), 10_000);
        let p = Percentiles::of(merged);
        assert!((p.p99_us / 1e3 - 1.0).abs() < 0.001, "{p:?}");
        assert!((p.p999_us / 1e6 - 1.0).abs() < 0.001, "{p:?}");
    }
    #[test]
    fn three_digits_over_nine_decades() {
        let mut h = histogram();
        for value in [1u64, 999, 123_456, 98_765_432_109, 10 * LATENCY_NS_MAX] {
            h.saturating_record(value);
            let seen = h.max();
            let expected = value.min(LATENCY_NS_MAX);
            assert!((seen as f64 / expected as f64 - 1.0).abs() < 0.001 || seen == expected, "{value}: {seen}");
        }
    }
    #[test]
    fn kinds_and_counts_add_up() {
        let mut a = Tally { scheduled: 2, done: 1, ..Tally::default() };
        a.failed.insert("deadline".into(), 1);
        a.kind_mut(Kind::Put).done = 1;
        let mut b = a.clone();
        b.add(&a);
        assert_eq!((b.scheduled, b.done, b.failures(), b.kind(Kind::Put).unwrap().done), (4, 2, 2, 2));
        assert!(b.kind(Kind::Get).is_none());
    }
}
