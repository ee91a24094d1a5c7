//! Which block a key is in: for each block a short separator (at most its first key, more than the last key of the
//! block before) and its pages.
//!
//! ```text
//! for each block: pages varint | separator length varint | separator
//! ```
//!
//! The separator of block 0 is empty. In memory three flat arrays: some 13 bytes a block.

use super::section::{Fields, Flaw, put_varint};
use crate::limits::PAGE;
use std::ops::Range;

/// Collects the index while the blocks are written.
#[derive(Default)]
pub struct IndexBuilder {
    pub encoded: Vec<u8>,
    pub blocks: u32,
}
impl IndexBuilder {
    pub fn add(&mut self, separator: &[u8], block_bytes: usize) {
        put_varint(&mut self.encoded, (block_bytes / PAGE) as u64);
        put_varint(&mut self.encoded, separator.len() as u64);
        self.encoded.extend_from_slice(separator);
        self.blocks += 1;
    }
}

/// The shortest start of `next` that is more than `last`, where `last < next`.
pub fn separator<'a>(last: &[u8], next: &'a [u8]) -> &'a [u8] {
    let common = last.iter().zip(next).take_while(|(a, b)| a == b).count();
    &next[..next.len().min(common + 1)]
}

#[derive(Debug)]
pub struct Index {
    separators: Box<[u8]>,
    /// End of each block's separator.
    ends: Box<[u32]>,
    /// End of each block, in pages from the start of the file.
    pages: Box<[u32]>,
}
impl Index {
    /// Reads an index from bytes whose checksum has been verified. The blocks together must be exactly `records_bytes`
    /// long.
    pub fn decode(blocks: u32, body: &[u8], records_bytes: u64) -> Result<Index, Flaw> {
        let mut fields = Fields(body);
        // Each block takes two bytes at least: a bound for what is reserved.
        let blocks = blocks as usize;
        if blocks == 0 || blocks > body.len() / 2 {
            return Err(Flaw("wrong count of blocks"));
        }
        let mut separators = Vec::with_capacity(body.len() - 2 * blocks);
        let (mut ends, mut pages) = (Vec::with_capacity(blocks), Vec::with_capacity(blocks));
        let mut page = 0u64;
        for block in 0..blocks {
            let count = fields.varint()?;
            let length = fields.length()?;
            let separator = fields.bytes(length)?;
            let before = ends.len().checked_sub(2).map_or(0, |i: usize| ends[i] as usize);
            if block > 0 && separator <= &separators[before..] {
                return Err(Flaw("separators out of order"));
            }
            page = page
                .checked_add(count)
                .filter(|p| count > 0 && p * PAGE as u64 <= records_bytes)
                .ok_or(Flaw("a block out of place"))?;
            separators.extend_from_slice(separator);
            ends.push(u32::try_from(separators.len()).map_err(|_| Flaw("separators too long"))?);
            pages.push(u32::try_from(page).map_err(|_| Flaw("a table too large"))?);
        }
        fields.end()?;
        if page * PAGE as u64 != records_bytes {
            return Err(Flaw("blocks end at another place"));
        }
        Ok(Index { separators: separators.into(), ends: ends.into(), pages: pages.into() })
    }
    /// Blocks, at least 1.
    pub fn blocks(&self) -> u32 {
        self.pages.len() as u32
    }
    pub fn separator(&self, block: u32) -> &[u8] {
        let block = block as usize;
        let begin = block.checked_sub(1).map_or(0, |i| self.ends[i]);
        &self.separators[begin as usize..self.ends[block] as usize]
    }
    /// The only block that can hold the key.
    pub fn block_of(&self, key: &[u8]) -> u32 {
        let (mut low, mut high) = (0, self.blocks());
        // The last block whose separator is at most the key; block 0's is empty.
        while high - low > 1 {
            let middle = low.midpoint(high);
            if self.separator(middle) <= key { low = middle } else { high = middle }
        }
        low
    }
    /// The bytes of a block in the file.
    pub fn range(&self, block: u32) -> Range<u64> {
        let block = block as usize;
        let begin = block.checked_sub(1).map_or(0, |i| self.pages[i]);
        u64::from(begin) * PAGE as u64..u64::from(self.pages[block]) * PAGE as u64
    }
    pub fn memory_bytes(&self) -> usize {
        self.separators.len() + 4 * (self.ends.len() + self.pages.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_are_short_and_between() {
        for (last, next, expected) in
            [("a", "b", "b"), ("abc", "abd", "abd"), ("abc", "abcde", "abcd"), ("ab", "b123", "b"), ("", "x", "x")]
        {
            let between = separator(last.as_bytes(), next.as_bytes());
            assert_eq!(between, expected.as_bytes());
            assert!(between > last.as_bytes() && between <= next.as_bytes());
        }
    }

    #[test]
    fn the_block_of_a_key() {
        let mut builder = IndexBuilder::default();
        for (separator, pages) in [("", 1), ("d", 3), ("da", 1), ("m", 1)] {
            builder.add(separator.as_bytes(), pages * PAGE);
        }
        let index = Index::decode(builder.blocks, &builder.encoded, 6 * PAGE as u64).expect("just built");
        for (key, block) in
            [("", 0), ("a", 0), ("czz", 0), ("d", 1), ("d9", 1), ("da", 2), ("lll", 2), ("m", 3), ("zz", 3)]
        {
            assert_eq!(index.block_of(key.as_bytes()), block, "{key}");
        }
        assert_eq!(index.range(1), PAGE as u64..4 * PAGE as u64);
        assert_eq!(index.range(3), 5 * PAGE as u64..6 * PAGE as u64);
        let wrong = [(3, 6), (5, 6), (4, 5), (4, 7), (0, 0)];
        for (blocks, pages) in wrong {
            assert!(Index::decode(blocks, &builder.encoded, pages * PAGE as u64).is_err());
        }
    }

    #[test]
    fn separators_out_of_order_are_refused() {
        for order in [["", "b", "a"], ["", "b", "b"], ["", "", "b"]] {
            let mut builder = IndexBuilder::default();
            order.iter().for_each(|s| builder.add(s.as_bytes(), PAGE));
            assert!(Index::decode(3, &builder.encoded, 3 * PAGE as u64).is_err(), "{order:?}");
        }
    }
}
