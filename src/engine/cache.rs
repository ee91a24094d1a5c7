//! Two caches of one core, bounded in bytes: blocks of tables and values of the log.
//!
//! Both resist scans (an entry seen once does not push out one seen often) and allocate as they fill, so that an idle
//! core pays nothing. Entries are copies of exactly their bytes: a cached value never keeps a larger read buffer
//! alive. What is cached has been verified; it is never verified again.

use super::types::ValuePointer;
use crate::types::SliceId;
use bytes::Bytes;
use quick_cache::{
    Weighter,
    unsync::{Cache, DefaultLifecycle},
};
use std::{
    cell::{Cell, RefCell},
    hash::{BuildHasherDefault, Hash, Hasher},
};

/// Bytes that an entry costs beside its own, estimated: the map, the links, the allocation.
const ENTRY_BYTES: usize = 128;

/// A block of a table: the slice, the table's id, the block's number.
type BlockKey = (SliceId, u64, u32);
/// A value of the log: segment, offset.
type ValueKey = (u64, u64);

#[derive(Clone)]
struct ByBytes;
impl<K> Weighter<K, Bytes> for ByBytes {
    fn weight(&self, _: &K, entry: &Bytes) -> u64 {
        (entry.len() + ENTRY_BYTES) as u64
    }
}

/// Hashes keys of a few numbers in a few cycles, the same in every run. Keys are ours: nobody chooses them to collide.
#[derive(Default)]
struct Fold(u64);
impl Fold {
    fn fold(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number ^ 0x2d35_8dcc_aa6c_78a5) * 0x8bb8_4b93_962e_acc9;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }
}
impl Hasher for Fold {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.fold((*byte).into()));
    }
    fn write_u16(&mut self, number: u16) {
        self.fold(number.into());
    }
    fn write_u32(&mut self, number: u32) {
        self.fold(number.into());
    }
    fn write_u64(&mut self, number: u64) {
        self.fold(number);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

type Entries<K> = Cache<K, Bytes, ByBytes, BuildHasherDefault<Fold>, DefaultLifecycle<K, Bytes>>;

fn entries<K: Hash + Eq>(bytes: usize, entry_bytes: usize) -> RefCell<Entries<K>> {
    let estimated = bytes / (entry_bytes + ENTRY_BYTES);
    RefCell::new(Cache::with(estimated, bytes as u64, ByBytes, Default::default(), DefaultLifecycle::default()))
}

/// Verified blocks of tables.
pub struct BlockCache {
    entries: RefCell<Entries<BlockKey>>,
    reads: Cell<u64>,
}

impl BlockCache {
    /// Holds at most `bytes`, its own cost included. 0 caches nothing.
    pub fn new(bytes: usize) -> BlockCache {
        BlockCache { entries: entries(bytes, crate::limits::BLOCK_BYTES), reads: Cell::new(0) }
    }
    pub fn get(&self, slice: SliceId, table: u64, block: u32) -> Option<Bytes> {
        self.entries.borrow_mut().get(&(slice, table, block)).cloned()
    }
    /// Keeps `bytes` as they are: the caller has read them, and copied them out of the read buffer.
    pub fn insert(&self, slice: SliceId, table: u64, block: u32, bytes: Bytes) {
        self.reads.set(self.reads.get() + 1);
        self.entries.borrow_mut().insert((slice, table, block), bytes);
    }
    /// Blocks that were read because they were not here.
    pub fn reads(&self) -> u64 {
        self.reads.get()
    }
    /// Bytes in use, estimated.
    pub fn memory_bytes(&self) -> u64 {
        self.entries.borrow().weight()
    }
}

/// Verified values of the log.
pub struct ValueCache(RefCell<Entries<ValueKey>>);

impl ValueCache {
    /// Holds at most `bytes`, its own cost included. 0 caches nothing.
    pub fn new(bytes: usize) -> ValueCache {
        ValueCache(entries(bytes, crate::limits::KIB * 10))
    }
    pub fn get(&self, pointer: &ValuePointer) -> Option<Bytes> {
        let found = self.0.borrow_mut().get(&(pointer.segment, pointer.offset)).cloned();
        found.filter(|value| value.len() == pointer.length as usize)
    }
    /// Copies the value, so that the buffer it was read into can go.
    pub fn insert(&self, pointer: &ValuePointer, value: &[u8]) {
        if self.0.borrow().capacity() >= (value.len() + ENTRY_BYTES) as u64 {
            self.0.borrow_mut().insert((pointer.segment, pointer.offset), Bytes::copy_from_slice(value));
        }
    }
    /// Forgets a value: its segment's place is about to be used for something else.
    pub fn remove(&self, pointer: &ValuePointer) {
        self.0.borrow_mut().remove(&(pointer.segment, pointer.offset));
    }
    /// Forgets every value of a segment that is removed or reused.
    pub fn forget_segment(&self, segment: u64) {
        self.0.borrow_mut().retain(|key, _| key.0 != segment);
    }
    /// Bytes in use, estimated.
    pub fn memory_bytes(&self) -> u64 {
        self.0.borrow().weight()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(n: u32) -> Bytes {
        Bytes::from(vec![n as u8; 4096])
    }

    #[test]
    fn a_cache_keeps_within_its_bytes() {
        let cache = BlockCache::new(1 << 20);
        for n in 0..10_000 {
            cache.insert(SliceId(1), 1, n, block(n));
            assert!(cache.memory_bytes() <= 1 << 20);
        }
        assert!(cache.memory_bytes() > 900 << 10);
        assert!((0..10_000).all(|n| cache.get(SliceId(1), 1, n).is_none_or(|found| found == block(n))));
        let none = BlockCache::new(0);
        none.insert(SliceId(1), 1, 1, block(1));
        assert_eq!((none.get(SliceId(1), 1, 1), none.memory_bytes()), (None, 0));
    }

    #[test]
    fn what_is_used_often_survives_a_scan() {
        let cache = BlockCache::new(1 << 20);
        for _ in 0..5 {
            for n in 0..100 {
                if cache.get(SliceId(1), 1, n).is_none() {
                    cache.insert(SliceId(1), 1, n, block(n));
                }
            }
        }
        for n in 0..10_000 {
            cache.insert(SliceId(1), 2, n, block(n));
        }
        let left = (0..100).filter(|n| cache.get(SliceId(1), 1, *n).is_some()).count();
        assert!(left >= 90, "{left} of 100");
    }

    #[test]
    fn values_are_copies_and_go_with_their_segment() {
        let cache = ValueCache::new(1 << 20);
        let pointer = |segment, offset| ValuePointer { segment, offset, length: 100, checksum: 0 };
        let buffer = Bytes::from(vec![7; 4096]);
        cache.insert(&pointer(1, 0), &buffer[..100]);
        cache.insert(&pointer(2, 0), &buffer[100..200]);
        cache.insert(&pointer(2, 4096), &buffer[200..300]);
        assert!(buffer.is_unique(), "nothing holds on to the read buffer");
        assert_eq!(cache.get(&pointer(1, 0)), Some(Bytes::from(vec![7; 100])));
        assert_eq!(cache.get(&ValuePointer { length: 99, ..pointer(1, 0) }), None);
        cache.remove(&pointer(2, 0));
        assert_eq!(cache.get(&pointer(2, 0)), None);
        cache.forget_segment(2);
        assert_eq!((cache.get(&pointer(2, 4096)), cache.get(&pointer(1, 0)).is_some()), (None, true));
        let small = ValueCache::new(200);
        small.insert(&pointer(3, 0), &buffer);
        assert_eq!(small.memory_bytes(), 0, "an entry larger than the cache is not taken");
    }
}
