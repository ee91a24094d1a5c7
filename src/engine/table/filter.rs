//! A blocked Bloom filter: one cache line a key, six bits in it, ten bits of memory for each key. Says of about 99 %
//! of the keys that a table does not hold that it does not; never says so of a key that it holds.

use super::section::Flaw;
use crate::limits::FILTER_BITS_PER_KEY;

/// Bits that a key sets in its line.
const PROBES: u32 = 6;
const LINE_BYTES: usize = 64;
const LINE_BITS: u32 = 9;

/// 512 bits, in one cache line.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(align(64))]
struct Line([u64; 8]);

#[derive(PartialEq, Eq, Debug)]
pub struct Filter {
    lines: Box<[Line]>,
}

/// The hash of a key that the filter is built and asked with. Part of the format.
pub fn hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

/// The bits of a key within its line: 6 times 9 bits of a second hash.
fn probes(hash: u64) -> impl Iterator<Item = (usize, u64)> {
    let mixed = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..PROBES).map(move |i| {
        let bit = (mixed >> (64 - LINE_BITS * (i + 1))) & 511;
        ((bit >> 6) as usize, 1 << (bit & 63))
    })
}

impl Filter {
    /// Empty, for so many keys.
    pub fn for_keys(keys: usize) -> Filter {
        let lines = (keys * FILTER_BITS_PER_KEY).div_ceil(8 * LINE_BYTES).max(1);
        Filter { lines: vec![Line::default(); lines].into() }
    }
    pub fn insert(&mut self, hash: u64) {
        let line = &mut self.lines[place(hash, self.lines.len())].0;
        for (word, bit) in probes(hash) {
            line[word] |= bit;
        }
    }
    /// False: the key is not there, for sure.
    pub fn may_hold(&self, hash: u64) -> bool {
        let line = &self.lines[place(hash, self.lines.len())].0;
        probes(hash).all(|(word, bit)| line[word] & bit != 0)
    }
    pub fn memory_bytes(&self) -> usize {
        self.lines.len() * LINE_BYTES
    }
    pub fn lines(&self) -> usize {
        self.lines.len()
    }
    /// Little-endian words, line after line.
    pub fn encode(&self, out: &mut [u8]) {
        let words = self.lines.iter().flat_map(|line| line.0);
        for (bytes, word) in out.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }
    pub fn encoded_bytes(&self) -> usize {
        self.lines.len() * LINE_BYTES
    }
    /// Reads a filter from bytes whose checksum has been verified.
    pub fn decode(lines: u32, bytes: &[u8]) -> Result<Filter, Flaw> {
        let (chunks, rest) = bytes.as_chunks::<LINE_BYTES>();
        if chunks.is_empty() || chunks.len() != lines as usize || !rest.is_empty() {
            return Err(Flaw("wrong size of the filter"));
        }
        let line = |chunk: &[u8; LINE_BYTES]| {
            let mut line = Line::default();
            for (word, bytes) in line.0.iter_mut().zip(chunk.as_chunks::<8>().0) {
                *word = u64::from_le_bytes(*bytes);
            }
            line
        };
        Ok(Filter { lines: chunks.iter().map(line).collect() })
    }
}

/// The line of a key among `lines`: the high half of the hash, scaled.
fn place(hash: u64, lines: usize) -> usize {
    (((hash >> 32) * lines as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(space: u8, n: u64) -> u64 {
        let mut key = vec![space];
        key.extend_from_slice(&n.to_be_bytes());
        hash(&key)
    }

    #[test]
    fn every_key_is_found_and_about_one_stranger_in_a_hundred() {
        for keys in [1u64, 10, 1_000, 30_000, 200_000] {
            let mut filter = Filter::for_keys(keys as usize);
            (0..keys).for_each(|n| filter.insert(key(0, n)));
            assert!((0..keys).all(|n| filter.may_hold(key(0, n))));
            let strangers = 100_000;
            let mistaken = (0..strangers).filter(|n| filter.may_hold(key(1, *n))).count();
            if keys >= 1_000 {
                let percent = mistaken as f64 * 100.0 / strangers as f64;
                assert!(percent < 1.5, "{keys} keys: {percent} % false positives");
            }
        }
    }

    #[test]
    fn bytes_and_back() {
        let mut filter = Filter::for_keys(5_000);
        (0..5_000).for_each(|n| filter.insert(key(0, n)));
        let mut bytes = vec![0; filter.encoded_bytes()];
        filter.encode(&mut bytes);
        assert_eq!(Filter::decode(filter.lines() as u32, &bytes), Ok(Filter { lines: filter.lines.clone() }));
        assert!(Filter::decode(filter.lines() as u32 - 1, &bytes).is_err());
        assert!(Filter::decode(filter.lines() as u32, &bytes[1..]).is_err());
        assert!(Filter::decode(0, &[]).is_err());
    }
}
