//! Memtables become tables, and the log behind them becomes free.
//!
//! One flush at a time. Which slice: the biggest when the memtables of the core are over their budget, the one that
//! pins the oldest part of the log when too much of it would have to be replayed. After each flush, segments whose
//! records are all in tables are marked so.

use super::{
    compaction::TableSet,
    disk::Disk,
    error::EngineError,
    manifest::Change,
    memtable::{Memtable, pointers},
    reserve,
    store::{Slice, Store, count},
    table::{Builder, Table, TableMeta, directory},
    wal::segment::{Phase, Segment},
};
use crate::limits::{KIB, LEVEL0_PATIENCE};
use futures_util::stream::{self, StreamExt};
use std::{collections::BTreeMap, rc::Rc};

/// Sealed segments that may wait beyond those that the bound on replay allows.
const WAITING_SEGMENTS: usize = 4;
/// Share of the live bytes that may lie in the log and in no table.
const REPLAY_PART: u64 = 12;
/// Records looked up at once.
const LOOKUPS: usize = 8;
/// Bytes of a memtable on their way into a table after which writes that wait hear of it.
const PAID_AT_ONCE: usize = 32 * KIB;

/// Flushes whenever there is reason to, until the engine ends.
pub async fn run<D: Disk>(store: Rc<Store<D>>) {
    loop {
        let next = store.work.until(|| if store.ending() { Some(None) } else { choose(&store).map(Some) }).await;
        let Some(chore) = next else { break };
        let result = match chore {
            Chore::Flush(slice) => {
                store.admission.memtables.at_work.set(true);
                let flushed = flush(&store, &slice).await;
                store.admission.memtables.at_work.set(false);
                store.level0_changed();
                store.room.wake();
                flushed
            }
            Chore::Mark(segment) => segment.write_mark().await,
        };
        match result {
            Ok(()) => {}
            Err(EngineError::Full) => reserve::go_on(&store).await,
            Err(error) => store.fail(&error),
        }
        store.work.wake();
    }
}

enum Chore<D: Disk> {
    Flush(Rc<Slice<D>>),
    Mark(Rc<Segment<D::File>>),
}

/// Whether nothing is left to be flushed or marked for now.
pub fn is_idle<D: Disk>(store: &Store<D>) -> bool {
    choose(store).is_none()
}

/// What to do next, if anything.
fn choose<D: Disk>(store: &Store<D>) -> Option<Chore<D>> {
    let position = store.flushed_position();
    let done = |s: &&Rc<Segment<D::File>>| {
        s.phase.get() == Phase::Sealed && !s.damaged.get() && s.end_position.get() <= position
    };
    if let Some(segment) = store.segments.borrow().values().find(done) {
        return Some(Chore::Mark(segment.clone()));
    }
    if store.flush_blocked.get() {
        return None;
    }
    if let Some(waiting) = store.slices().find(|s| s.sealed.borrow().is_some()) {
        return Some(Chore::Flush(waiting.clone()));
    }
    if let Some(position) = store.reclaim.get()
        && let Some(slice) = store.slices().find(|s| s.first_position().is_some_and(|first| first < position))
    {
        return Some(Chore::Flush(slice.clone()));
    }
    if store.memtable_bytes.get() > store.options.memtable_bytes {
        // One whose level 0 is long waits for its compaction, if others can go first.
        let patience = store.options.level0_tables.max(1) * LEVEL0_PATIENCE;
        let worth = |slice: &&Rc<Slice<D>>| {
            let level0 = slice.tables.borrow().levels().first().map_or(0, Vec::len);
            slice.active.borrow().bytes() / (1 + level0.saturating_sub(patience))
        };
        let biggest = store.slices().max_by_key(worth);
        return biggest.cloned().map(Chore::Flush);
    }
    if store.log.position.get().saturating_sub(position) > replay_bytes(store) || many_wait(store) {
        let oldest = store.slices().filter_map(|s| Some((s.first_position()?, s))).min_by_key(|(first, _)| *first);
        return oldest.map(|(_, slice)| Chore::Flush(slice.clone()));
    }
    None
}

/// Bytes of log that may hold records that are in no table. No segment there can be collected, and what the records in
/// memory replace is not known to be dead before they are flushed: so with little data it is less.
fn replay_bytes<D: Disk>(store: &Store<D>) -> u64 {
    let part = store.space_use().live / REPLAY_PART;
    part.max(store.options.segment_bytes as u64).min(store.options.log_replay_bytes as u64)
}

/// Whether more segments wait for their last records to be flushed than the log's bound of bytes would fill: many short
/// lives of the process leave many short segments.
fn many_wait<D: Disk>(store: &Store<D>) -> bool {
    let segments = store.segments.borrow();
    let waits = |s: &&Rc<Segment<D::File>>| s.phase.get() == Phase::Sealed && !s.damaged.get();
    let waiting = segments.values().filter(waits).count();
    waiting > WAITING_SEGMENTS + store.options.log_replay_bytes / store.options.segment_bytes.max(1)
}

/// Writes a slice's memtable as a table of level 0 and makes the manifest say so. On `Full` the memtable stays.
async fn flush<D: Disk>(store: &Store<D>, slice: &Rc<Slice<D>>) -> Result<(), EngineError> {
    let waiting = slice.sealed.borrow().clone();
    let memtable = match waiting {
        Some(memtable) => memtable,
        None => seal(store, slice).await?,
    };
    if !memtable.is_empty() {
        let _held = slice.latch.hold().await;
        // A table must not point to what a power cut could take.
        store.log.synced(|| store.has_failed()).await;
        if !slice.manifest.borrow().exists() {
            make_directory(&*store.disk, slice).await?;
        }
        let table = write_table(store, slice, &memtable).await?;
        let mut gained = BTreeMap::new();
        for pointer in memtable.iter().flat_map(|(_, entry)| pointers(&entry.stored)) {
            *gained.entry(pointer.segment).or_default() += u64::from(pointer.length);
        }
        let lost = replaced(store, slice, &memtable).await?;
        let change = Change {
            added: vec![table.clone()],
            flushed_sequence: memtable.last_sequence(),
            next_table: slice.next_table.get(),
            gained,
            lost,
            ..Change::default()
        };
        if let Err(error) = commit(store, slice, &change).await {
            if error == EngineError::Full {
                store.disk.remove(&super::table::path(slice.id, table.id)).await?;
            }
            return Err(error);
        }
        let table = Table::open(&store.disk, table).await?;
        Rc::<TableSet<D>>::make_mut(&mut slice.tables.borrow_mut()).apply(vec![table], &[]);
        for (segment, bytes) in &change.lost {
            if let Some(segment) = store.segment(*segment) {
                segment.remove_live(*bytes);
            }
        }
        count(&store.counters.flushes, 1);
    }
    *slice.sealed.borrow_mut() = None;
    store.memtable_bytes.set(store.memtable_bytes.get().saturating_sub(memtable.bytes()));
    store.room.wake();
    Ok(())
}

/// Seals the active memtable: from now on it only waits to be written.
///
/// A cold batch may land before a hot one with smaller sequences, and the other way round. The table will say that all
/// records up to its greatest sequence are in tables, and memtables hide tables: so nothing on its way may be older than
/// what is in the memtable. Cold batches are held back for that moment, hot ones are not.
async fn seal<D: Disk>(store: &Store<D>, slice: &Slice<D>) -> Result<Rc<Memtable>, EngineError> {
    let log = &store.log;
    log.cold.hold(true);
    let quiet = || store.has_failed() || log.quiet_up_to(slice.active.borrow().last_sequence());
    log.landed.until(|| quiet().then_some(())).await;
    if let Some(error) = store.failure() {
        return Err(error);
    }
    let memtable = Rc::new(slice.active.take());
    slice.swaps.set(slice.swaps.get() + 1);
    *slice.sealed.borrow_mut() = Some(memtable.clone());
    log.cold.hold(false);
    Ok(memtable)
}

/// Bytes of values, by segment, that tables point to and a memtable's records replace. So what is dead is known as soon
/// as a newer record is in a table, not when a compaction comes by. Only the newest record of a key in any table counts as
/// live: nothing is to be counted when an older one goes.
async fn replaced<D: Disk>(
    store: &Store<D>,
    slice: &Slice<D>,
    memtable: &Memtable,
) -> Result<BTreeMap<u64, u64>, EngineError> {
    let mut lost: BTreeMap<u64, u64> = BTreeMap::new();
    if slice.manifest.borrow().state.live.is_empty() {
        return Ok(lost);
    }
    let tables = slice.tables.borrow().clone();
    let mut looked_up = stream::iter(memtable.iter()).map(|(key, _)| tables.get(key, &store.blocks)).buffered(LOOKUPS);
    let mut steps = 0u64;
    while let Some(found) = looked_up.next().await {
        match found {
            Ok(found) => {
                for pointer in found.iter().flat_map(|(_, stored)| pointers(stored)) {
                    *lost.entry(pointer.segment).or_default() += u64::from(pointer.length);
                }
            }
            // Which values are replaced cannot be read: they stay counted, and their segments stay.
            Err(EngineError::Damaged(_)) => count(&store.counters.damaged_reads, 1),
            Err(error) => return Err(error),
        }
        steps += 1;
        if steps.is_multiple_of(64) {
            store.disk.breathe().await;
        }
    }
    Ok(lost)
}

async fn make_directory<D: Disk>(disk: &D, slice: &Slice<D>) -> Result<(), EngineError> {
    disk.create_dir(&directory(slice.id)).await?;
    disk.sync_dir(super::recover::SLICES).await?;
    Ok(())
}

async fn write_table<D: Disk>(
    store: &Store<D>,
    slice: &Slice<D>,
    memtable: &Memtable,
) -> Result<TableMeta, EngineError> {
    let id = slice.take_table_id();
    let mut builder = Builder::create(&store.disk, slice.id, id, 0, &store.options).await?;
    let (mut unpaid, share) = (0, memtable.bytes() / memtable.len().max(1));
    for (key, entry) in memtable.iter() {
        if let Err(error) = builder.add(key, entry.sequence, &entry.stored).await {
            builder.abandon().await?;
            return Err(error);
        }
        unpaid += share;
        if unpaid > PAID_AT_ONCE {
            store.admission.memtables.pay(std::mem::take(&mut unpaid) as u64);
            store.room.wake();
        }
    }
    store.admission.memtables.pay(unpaid as u64);
    let meta = match builder.finish().await {
        Ok(meta) => meta,
        Err(EngineError::Full) => {
            // The table is given up and written anew, under another name, when there is space again.
            store.disk.remove(&super::table::path(slice.id, id)).await?;
            return Err(EngineError::Full);
        }
        Err(error) => return Err(error),
    };
    store.disk.sync_dir(&directory(slice.id)).await?;
    count(&store.counters.device_bytes_written, meta.bytes);
    count(&store.counters.flushed_bytes, meta.bytes);
    Ok(meta)
}

/// Makes a change of a slice's manifest durable. The caller holds the slice's latch.
pub async fn commit<D: Disk>(store: &Store<D>, slice: &Slice<D>, change: &Change) -> Result<(), EngineError> {
    let append = slice.manifest.borrow().plan(change);
    let (written, bytes) = append.write(&*store.disk).await?;
    slice.manifest.borrow_mut().adopt(written, bytes);
    count(&store.counters.device_bytes_written, bytes);
    Ok(())
}
