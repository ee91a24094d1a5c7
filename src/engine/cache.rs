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
use std::{cell::RefCell, hash::Hash};
use xxhash_rust::xxh3::Xxh3Builder;

/// Bytes that one entry costs beside its own: the map, the links, the allocation.
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

type Entries<K> = Cache<K, Bytes, ByBytes, Xxh3Builder, DefaultLifecycle<K, Bytes>>;

fn entries<K: Hash + Eq>(bytes: usize, entry_bytes: usize) -> RefCell<Entries<K>> {
    let estimated = bytes / (entry_bytes + ENTRY_BYTES);
    RefCell::new(Cache::with(estimated, bytes as u64, ByBytes, Xxh3Builder::new(), DefaultLifecycle::default()))
}

/// Verified blocks of tables.
pub struct BlockCache(RefCell<Entries<BlockKey>>);

impl BlockCache {
    /// Holds at most `bytes`, its own cost included. 0 caches nothing.
    pub fn new(bytes: usize) -> BlockCache {
        BlockCache(entries(bytes, crate::limits::BLOCK_BYTES))
    }
    pub fn get(&self, slice: SliceId, table: u64, block: u32) -> Option<Bytes> {
        self.0.borrow_mut().get(&(slice, table, block)).cloned()
    }
    /// Keeps `bytes` as they are: the caller has copied them out of the read buffer.
    pub fn insert(&self, slice: SliceId, table: u64, block: u32, bytes: Bytes) {
        self.0.borrow_mut().insert((slice, table, block), bytes);
    }
    /// Bytes in use, estimated.
    pub fn memory_bytes(&self) -> u64 {
        self.0.borrow().weight()
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
