//! When a read takes longer than most: its 95th percentile, and a budget for asking another replica as well.

use crate::limits::{HEDGE_DELAY_MIN, HEDGE_PERCENT, HEDGE_SAMPLES_MIN, HEDGES_SAVED_MAX, REPLICA_LATE};
use std::time::Duration;

/// The percentile beyond which a read is slow.
const PERCENT: u64 = 95;
/// Four buckets an octave, from 1 µs: each a fifth longer than the one before, up to beyond an hour.
const BUCKETS: usize = 128;
/// Samples after which all count half: what was long ago fades.
const SAMPLES_MAX: u32 = 4096;
/// Samples between two looks at the percentile.
const LOOK_EVERY: u32 = 64;

/// How long reads took lately, and how many more of them may be hedged.
#[derive(Clone, Debug)]
pub(super) struct Hedge {
    counts: [u32; BUCKETS],
    total: u32,
    until_look: u32,
    delay: Option<Duration>,
    /// Hedges that may still be sent, in hundredths.
    budget: u64,
}

impl Default for Hedge {
    fn default() -> Hedge {
        Hedge { counts: [0; BUCKETS], total: 0, until_look: LOOK_EVERY, delay: None, budget: 0 }
    }
}

impl Hedge {
    /// A read begins. When it should be hedged if it has no answer by then; `None` while too little is known.
    pub fn begin(&mut self) -> Option<Duration> {
        self.budget = (self.budget + HEDGE_PERCENT).min(HEDGES_SAVED_MAX * 100);
        self.delay
    }
    /// Whether one more may be hedged; takes it off the budget.
    pub fn spend(&mut self) -> bool {
        let left = self.budget.checked_sub(100);
        left.inspect(|left| self.budget = *left).is_some()
    }
    /// A read has been answered after so long.
    pub fn record(&mut self, took: Duration) {
        self.counts[bucket(took)] += 1;
        self.total += 1;
        self.until_look -= 1;
        if self.total >= SAMPLES_MAX {
            self.counts.iter_mut().for_each(|c| *c /= 2);
            self.total = self.counts.iter().sum();
        }
        if self.until_look == 0 {
            self.until_look = LOOK_EVERY;
            self.delay =
                (self.total >= HEDGE_SAMPLES_MIN).then(|| self.percentile().clamp(HEDGE_DELAY_MIN, REPLICA_LATE));
        }
    }
    /// An upper bound of the percentile, at most a fifth too long.
    fn percentile(&self) -> Duration {
        let wanted = u64::from(self.total) * PERCENT;
        let mut sum = 0;
        let found = self.counts.iter().position(|count| {
            sum += u64::from(*count);
            sum * 100 >= wanted
        });
        upper(found.unwrap_or(BUCKETS - 1))
    }
}

fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
    let octave = micros.ilog2();
    // The two bits below the highest one.
    let quarter = if octave >= 2 { (micros >> (octave - 2)) & 3 } else { (micros << (2 - octave)) & 3 };
    (octave as usize * 4 + quarter as usize).min(BUCKETS - 1)
}
/// The end of a bucket.
fn upper(bucket: usize) -> Duration {
    let next = bucket as u64 + 1;
    Duration::from_micros(((1u64 << (next / 4)) * (4 + next % 4)).div_ceil(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_is_close_and_follows() {
        let mut hedge = Hedge::default();
        assert_eq!(hedge.begin(), None);
        let mut random = fastrand::Rng::with_seed(1);
        (0..10_000).for_each(|_| hedge.record(Duration::from_micros(random.u64(1_000..11_000))));
        let slow = hedge.begin().expect("enough is known").as_micros();
        assert!((10_500..=13_200).contains(&slow), "{slow}");
        (0..10_000).for_each(|_| hedge.record(Duration::from_micros(random.u64(2_000..3_000))));
        let slow = hedge.begin().expect("enough is known").as_micros();
        assert!((2_900..=3_600).contains(&slow), "{slow}");
        for micros in (0..60).map(|i| 3u64.pow(i % 20) + 1) {
            let took = Duration::from_micros(micros);
            assert!(upper(bucket(took)) >= took && upper(bucket(took)) <= took * 3 / 2, "{micros}");
        }
    }

    #[test]
    fn two_of_a_hundred_are_hedged() {
        let mut hedge = Hedge::default();
        let hedged = (0..10_000).filter(|_| {
            hedge.begin();
            hedge.spend()
        });
        assert_eq!(hedged.count(), 200);
    }
}
