//! Which key an operation touches: YCSB's distributions.
//!
//! A key is a number that is written as `<prefix>` and ten digits. Zipf follows Gray et al. as YCSB does; scrambled
//! zipf draws from ten thousand million items with YCSB's constant and hashes the rank with FNV-1a onto the keys, so
//! that the popular keys lie all over the ring.

use std::io::Write;

/// How popular keys are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    Uniform,
    /// Scrambled zipf with exponent 0.99.
    Zipf,
    /// Zipf with exponent 0.99 from the newest key backwards.
    Latest,
}

const EXPONENT: f64 = 0.99;
/// Items of YCSB's scrambled zipf and its precomputed sum.
const SCRAMBLED_ITEMS: u64 = 10_000_000_000;
const SCRAMBLED_ZETA: f64 = 26.469_028_201_783_02;

/// Draws key numbers below a count that may grow.
pub struct KeyChooser {
    distribution: Distribution,
    count: u64,
    zipf: Zipf,
}

impl KeyChooser {
    /// Chooses among `count` keys, at least 1.
    pub fn new(distribution: Distribution, count: u64) -> KeyChooser {
        let count = count.max(1);
        let zipf = match distribution {
            Distribution::Latest => Zipf::new(count),
            Distribution::Uniform | Distribution::Zipf => Zipf::with_zeta(SCRAMBLED_ITEMS, SCRAMBLED_ZETA),
        };
        KeyChooser { distribution, count, zipf }
    }
    /// There are `count` keys now (never fewer than before).
    pub fn grow_to(&mut self, count: u64) {
        self.count = self.count.max(count);
        if self.distribution == Distribution::Latest {
            self.zipf.grow_to(self.count);
        }
    }
    pub fn choose(&mut self, random: &mut fastrand::Rng) -> u64 {
        match self.distribution {
            Distribution::Uniform => random.u64(0..self.count),
            Distribution::Zipf => fnv1a(self.zipf.rank(random.f64())) % self.count,
            Distribution::Latest => self.count - 1 - self.zipf.rank(random.f64()).min(self.count - 1),
        }
    }
}

/// Ranks 0, 1, 2, … with probability proportional to 1 / (rank + 1)^0.99.
pub struct Zipf {
    items: u64,
    zeta: f64,
}
impl Zipf {
    pub fn new(items: u64) -> Zipf {
        let mut zipf = Zipf { items: 0, zeta: 0.0 };
        zipf.grow_to(items);
        zipf
    }
    fn with_zeta(items: u64, zeta: f64) -> Zipf {
        Zipf { items, zeta }
    }
    fn grow_to(&mut self, items: u64) {
        self.zeta += (self.items..items).map(|i| ((i + 1) as f64).powf(-EXPONENT)).sum::<f64>();
        self.items = self.items.max(items);
    }
    /// The rank for a uniform `u` in 0..1.
    pub fn rank(&self, u: f64) -> u64 {
        let scaled = u * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        let second = 0.5f64.powf(EXPONENT);
        if scaled < 1.0 + second {
            return 1;
        }
        let items = self.items as f64;
        let eta = (1.0 - (2.0 / items).powf(1.0 - EXPONENT)) / (1.0 - (1.0 + second) / self.zeta);
        let rank = items * (eta * u - eta + 1.0).powf(1.0 / (1.0 - EXPONENT));
        (rank as u64).min(self.items - 1)
    }
}

/// FNV-1a over the eight bytes of a number: spreads neighbours far apart, the same on every run.
pub fn fnv1a(number: u64) -> u64 {
    number
        .to_le_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// The text of the `number`-th key, in place of what `out` held.
pub fn write_key(prefix: &str, number: u64, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(prefix.as_bytes());
    let mut digits = [b'0'; 20];
    let mut rest = &mut digits[..];
    // A number has at most 20 digits, so the write fits; zero-padded to ten.
    if write!(rest, "{number:010}").is_ok() {
        let length = 20 - rest.len();
        out.extend_from_slice(&digits[..length]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(distribution: Distribution, keys: u64, draws: usize) -> Vec<f64> {
        let (mut chooser, mut random) = (KeyChooser::new(distribution, keys), fastrand::Rng::with_seed(7));
        let mut counts = vec![0u32; keys as usize];
        (0..draws).for_each(|_| counts[chooser.choose(&mut random) as usize] += 1);
        counts.iter().map(|c| f64::from(*c) / draws as f64).collect()
    }

    #[test]
    fn zipf_ranks_follow_the_power_law() {
        let (zipf, mut random) = (Zipf::new(1_000), fastrand::Rng::with_seed(3));
        let mut counts = [0u32; 1_000];
        let draws = 400_000;
        (0..draws).for_each(|_| counts[zipf.rank(random.f64()) as usize] += 1);
        for rank in [0usize, 1, 9, 99] {
            let expected = ((rank + 1) as f64).powf(-EXPONENT) / zipf.zeta;
            let seen = f64::from(counts[rank]) / f64::from(draws);
            // Gray's method is exact for the first two ranks and an approximation after them.
            let tolerance = if rank < 2 { 0.03 } else { 0.25 };
            assert!((seen / expected - 1.0).abs() < tolerance, "rank {rank}: {seen} for {expected}");
        }
    }
    #[test]
    fn scrambled_zipf_has_ycsbs_hottest_share_and_does_not_start_at_key_zero() {
        let shares = shares(Distribution::Zipf, 10_000, 300_000);
        let hottest = (0..shares.len()).max_by(|a, b| shares[*a].total_cmp(&shares[*b])).unwrap();
        assert_ne!(hottest, 0);
        assert!((shares[hottest] - 1.0 / SCRAMBLED_ZETA).abs() < 0.004, "{}", shares[hottest]);
    }
    #[test]
    fn latest_prefers_new_keys_and_follows_growth() {
        let (mut chooser, mut random) = (KeyChooser::new(Distribution::Latest, 100), fastrand::Rng::with_seed(5));
        chooser.grow_to(200);
        let draws: Vec<u64> = (0..20_000).map(|_| chooser.choose(&mut random)).collect();
        assert!(draws.iter().all(|k| *k < 200));
        let newest = draws.iter().filter(|k| **k == 199).count();
        assert!(newest > 2_500, "{newest}");
        let whole = Zipf::new(200);
        assert!((chooser.zipf.zeta - whole.zeta).abs() < 1e-9);
    }
    #[test]
    fn uniform_is_flat() {
        let shares = shares(Distribution::Uniform, 100, 200_000);
        assert!(shares.iter().all(|s| (s - 0.01).abs() < 0.002));
    }
    #[test]
    fn keys_have_ten_digits_or_more() {
        let mut out = vec![1, 2, 3];
        write_key("bench:", 42, &mut out);
        assert_eq!(out, b"bench:0000000042");
        write_key("", u64::MAX, &mut out);
        assert_eq!(out, b"18446744073709551615");
    }
}
