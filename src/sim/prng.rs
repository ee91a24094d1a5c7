//! Randomness from a seed. Each part of the virtual world draws from a stream of its own, so that one more draw in
//! one part does not change what another part sees.

use std::time::Duration;

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Prng(fastrand::Rng);

impl Prng {
    pub fn new(seed: u64) -> Prng {
        Prng(fastrand::Rng::with_seed(seed))
    }
    /// The stream of a named part of a run.
    pub fn stream(seed: u64, part: &str) -> Prng {
        Prng::new(xxhash_rust::xxh3::xxh3_64_with_seed(part.as_bytes(), seed))
    }
    /// A new stream, drawn from this one.
    pub fn fork(&mut self) -> Prng {
        Prng::new(self.0.u64(..))
    }
    pub fn bits(&mut self) -> u64 {
        self.0.u64(..)
    }
    /// 0 .. bound; 0 when the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.0.u64(..bound) }
    }
    /// low ..= high.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        self.0.u64(low..=high.max(low))
    }
    /// An index into a slice of this length; 0 when it is empty.
    pub fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }
    /// 0 to 1.
    pub fn unit(&mut self) -> f64 {
        self.0.f64()
    }
    pub fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.0.f64() < probability
    }
    pub fn coin(&mut self) -> bool {
        self.0.bool()
    }
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> Option<&'a T> {
        choices.get(self.index(choices.len()))
    }
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        self.0.shuffle(items);
    }
    /// Between two durations, evenly.
    pub fn duration(&mut self, low: Duration, high: Duration) -> Duration {
        Duration::from_nanos(self.between(low.as_nanos() as u64, high.as_nanos() as u64))
    }
    /// Exponential with this mean, at most 20 times the mean.
    pub fn exponential(&mut self, mean: Duration) -> Duration {
        let nanos = -(1.0 - self.0.f64()).ln() * mean.as_nanos() as f64;
        Duration::from_nanos(nanos.min(mean.as_nanos() as f64 * 20.0) as u64)
    }
}
