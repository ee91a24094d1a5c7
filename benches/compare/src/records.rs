//! The records that every engine stores: the same keys, the same bytes.
//!
//! A key is what a Dynarc replica hands its engine: a space byte, the token (a hash, so that neighbours in number are
//! strangers in order) and the user's key. A record is a head of [`HEAD_BYTES`], where a replica keeps clock and sizes,
//! and a value. Dynarc gets head and value apart, as in a server; the peers store both in one value, as a replica on
//! top of them would. All bytes come from a pool of noise: nothing compresses.

use bytes::Bytes;

/// Bytes of the head of a record.
pub const HEAD_BYTES: usize = 80;
/// Bytes of noise that records are cut from: more than a processor's caches hold.
const POOL_BYTES: usize = 64 << 20;
/// Bytes of a key.
pub const KEY_BYTES: usize = 22;

/// Keys by number and records by key and version.
#[derive(Clone)]
pub struct Records {
    pool: Bytes,
    pub value_bytes: usize,
}

impl Records {
    pub fn new(value_bytes: usize) -> Records {
        let mut pool = vec![0; POOL_BYTES + HEAD_BYTES + value_bytes];
        fastrand::Rng::with_seed(7).fill(&mut pool);
        Records { pool: pool.into(), value_bytes }
    }

    /// Head and value of a key, as one.
    pub fn record(&self, number: u64, version: u32) -> Bytes {
        let at = (mix(number ^ u64::from(version) << 48) % POOL_BYTES as u64) as usize;
        self.pool.slice(at..at + self.record_bytes())
    }

    pub fn record_bytes(&self) -> usize {
        HEAD_BYTES + self.value_bytes
    }

    /// Bytes that a user hands in with one put.
    pub fn user_bytes(&self) -> u64 {
        (KEY_BYTES + self.record_bytes()) as u64
    }
}

/// The place of a key on the ring.
pub fn token(number: u64) -> u64 {
    mix(number)
}

pub fn key(number: u64) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[1..9].copy_from_slice(&token(number).to_be_bytes());
    key[9] = b'k';
    let mut rest = number;
    for digit in key[10..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    key
}

/// A bijection that scatters (the finalizer of splitmix64).
pub fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// In which order a stream goes through the keys `0..keys`.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// By number: by token that is any order.
    Ascending,
    /// Each once in `keys` steps, in an order that looks random; another with each seed.
    Shuffled { keys: u64, seed: u64 },
    /// Any, again and again.
    Random { keys: u64, seed: u64 },
}

impl Order {
    /// The number of the key of step `n`.
    pub fn key(&self, n: u64) -> u64 {
        match *self {
            Order::Ascending => n,
            Order::Shuffled { keys, seed } => shuffle(n % keys, keys, seed.wrapping_add(n / keys)),
            Order::Random { keys, seed } => mix(mix(n).wrapping_add(seed)) % keys,
        }
    }
}

/// A permutation of `0..keys`: a Feistel network over the next even power of two, walked until it is in range.
fn shuffle(n: u64, keys: u64, seed: u64) -> u64 {
    let half = (64 - keys.saturating_sub(1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let mut at = n;
    loop {
        let (mut left, mut right) = (at >> half, at & mask);
        for round in 0..4 {
            (left, right) = (right, left ^ (mix(right ^ mix(seed ^ round << 60)) & mask));
        }
        at = left << half | right;
        if at < keys {
            return at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shuffle_meets_every_key_once() {
        for keys in [1, 2, 3, 10, 1000, 4097] {
            for seed in 0..3 {
                let mut seen: Vec<u64> = (0..keys).map(|n| Order::Shuffled { keys, seed }.key(n)).collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..keys).collect::<Vec<_>>(), "{keys} keys, seed {seed}");
            }
        }
    }

    #[test]
    fn keys_differ_and_records_are_stable() {
        let records = Records::new(100);
        assert_ne!(key(1), key(2));
        assert_eq!(records.record(5, 1), records.record(5, 1));
        assert_ne!(records.record(5, 1), records.record(5, 2));
        assert_eq!(records.record(9, 0).len(), HEAD_BYTES + 100);
    }
}
