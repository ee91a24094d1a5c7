//! Finds out what records in memory replace in tables, before they are flushed.
//!
//! A value is dead as soon as a newer record of its key is durable. Where both are in memory that is known at once.
//! Where the old one is in a table, somebody has to look, and a flush does; but a flush writes and syncs, and with many
//! slices and few keys it would come by for a handful of records. So the keys that may replace something are looked up
//! in the background a few at a time, so that what segments are known to hold is never far from what they do, and the
//! flush need not look again.
//!
//! What was found is only in memory: the manifest hears of it with the flush. Two rules keep it from being counted
//! twice. Only the newest record of a key in any table counts as live, and nothing takes that away but a flush of the
//! slice, or a compaction under a drop: so in a slice with drops nothing is looked up, and when a drop arrives, what
//! was found before is taken back (`Store::take_back`).

use super::{
    disk::Disk,
    error::EngineError,
    memtable::{Memtable, pointers},
    store::{Slice, Store, count},
};
use crate::limits::MIB;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use std::{collections::BTreeMap, pin::pin, rc::Rc};

/// Share of what is live that may be dead without being known to be, and bytes of that at most.
const UNKNOWN_SHARE: u64 = 64;
const UNKNOWN_BYTES_MAX: u64 = 128 * MIB as u64;
/// Keys looked up at once.
const LOOKUPS: usize = 16;
/// Keys after which what was found counts.
const KEYS_AT_ONCE: usize = 1024;
/// Work after which others have their turn: a key that no filter knows is 1, one that is looked up that much more.
const WORK_PER_BREATH: usize = 128;
const LOOKUP_WORK: usize = 2;

/// The values in tables that the records of a memtable replace, as far as they have been looked up.
#[derive(Default)]
pub struct Settled {
    /// Bytes of the replaced values by segment; the segments count them as dead already.
    pub lost: BTreeMap<u64, u64>,
    /// Whether a drop came in between: then nothing here can be relied on, and all keys must be looked up.
    pub void: bool,
}

/// The slice to look at next, if enough waits: the one with most.
pub fn choose<D: Disk>(store: &Store<D>) -> Option<Rc<Slice<D>>> {
    if !is_due(store) {
        return None;
    }
    let waiting = |slice: &Rc<Slice<D>>| slice.active.borrow().unsettled_bytes();
    let ready = |slice: &&Rc<Slice<D>>| {
        waiting(slice) > 0 && slice.sealed.borrow().is_none() && slice.drops.borrow().is_empty()
    };
    store.slices().filter(ready).max_by_key(|slice| waiting(slice)).cloned()
}

/// Whether so much waits that somebody should look.
pub fn is_due<D: Disk>(store: &Store<D>) -> bool {
    let most = (store.space_use().live / UNKNOWN_SHARE).min(UNKNOWN_BYTES_MAX);
    store.unsettled.get() > if store.read_only.get() { 0 } else { most }
}

/// Looks up what waits in a slice. No flush of it may begin meanwhile.
pub async fn run<D: Disk>(store: &Store<D>, slice: &Rc<Slice<D>>) -> Result<(), EngineError> {
    let bytes = slice.active.borrow().unsettled_bytes();
    let keys = slice.active.borrow_mut().take_unsettled();
    store.unsettled.set(store.unsettled.get().saturating_sub(bytes));
    let version = slice.drops.borrow().version();
    let found = Replaced::new(store, slice);
    for some in keys.chunks(KEYS_AT_ONCE) {
        let lost = found.of(some.iter()).await?;
        if slice.drops.borrow().version() != version {
            slice.settled.borrow_mut().void = true;
            return Ok(());
        }
        for (segment, bytes) in lost {
            if let Some(segment) = store.segment(segment) {
                segment.remove_live(bytes);
            }
            *slice.settled.borrow_mut().lost.entry(segment).or_default() += bytes;
        }
    }
    store.space_changed();
    Ok(())
}

/// Bytes of values, by segment, that tables point to and that the records of a sealed memtable replace: those that were
/// settled, and the rest looked up now. The caller holds the slice's latch.
pub async fn replaced<D: Disk>(
    store: &Store<D>,
    slice: &Slice<D>,
    memtable: &Memtable,
) -> Result<BTreeMap<u64, u64>, EngineError> {
    if slice.manifest.borrow().state.live.is_empty() {
        return Ok(BTreeMap::new());
    }
    let found = Replaced::new(store, slice);
    let (void, mut lost) = {
        let settled = slice.settled_sealed.borrow();
        (settled.void, settled.lost.clone())
    };
    if void {
        return found.of(memtable.iter().map(|(key, _)| key)).await;
    }
    for (segment, bytes) in found.of(memtable.unsettled().iter()).await? {
        *lost.entry(segment).or_default() += bytes;
    }
    Ok(lost)
}

/// Looks up keys in a slice's tables.
struct Replaced<'a, D: Disk> {
    store: &'a Store<D>,
    slice: &'a Slice<D>,
}
impl<'a, D: Disk> Replaced<'a, D> {
    fn new(store: &'a Store<D>, slice: &'a Slice<D>) -> Self {
        Replaced { store, slice }
    }
    async fn of(&self, keys: impl Iterator<Item = &Bytes>) -> Result<BTreeMap<u64, u64>, EngineError> {
        let mut lost: BTreeMap<u64, u64> = BTreeMap::new();
        let tables = &self.slice.tables.borrow().clone();
        // Most keys of a load are in no table, and the filters know it without a read.
        let candidates = stream::iter(keys).filter_map(|key| async move {
            self.worked(1).await;
            tables.may_hold(key).then_some(key)
        });
        let looked_up = candidates.map(|key| tables.get(key, &self.store.blocks)).buffered(LOOKUPS);
        let mut looked_up = pin!(looked_up);
        while let Some(found) = looked_up.next().await {
            match found {
                Ok(found) => {
                    for pointer in found.iter().flat_map(|(_, stored)| pointers(stored)) {
                        *lost.entry(pointer.segment).or_default() += u64::from(pointer.length);
                    }
                }
                // Which values are replaced cannot be read: they stay counted, and their segments stay.
                Err(EngineError::Damaged(_)) => count(&self.store.counters.damaged_reads, 1),
                Err(error) => return Err(error),
            }
            self.worked(LOOKUP_WORK).await;
        }
        Ok(lost)
    }
    /// Lets others have their turn after enough work, of all looks together: most are short.
    async fn worked(&self, work: usize) {
        let done = self.store.settle_work.get() + work;
        self.store.settle_work.set(done % WORK_PER_BREATH);
        if done >= WORK_PER_BREATH {
            self.store.disk.breathe().await;
        }
    }
}
