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
use std::{collections::BTreeMap, rc::Rc};

/// Sealed segments that may wait beyond those that the bound on replay allows.
const WAITING_SEGMENTS: usize = 4;

/// Flushes whenever there is reason to, until the engine ends.
pub async fn run<D: Disk>(store: Rc<Store<D>>) {
    loop {
        let next = store.work.until(|| if store.ending() { Some(None) } else { choose(&store).map(Some) }).await;
        let Some(chore) = next else { break };
        let result = match chore {
            Chore::Flush(slice) => flush(&store, &slice).await,
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

/// What to do next, if anything.
fn choose<D: Disk>(store: &Store<D>) -> Option<Chore<D>> {
    let position = store.flushed_position();
    let done = |s: &&Rc<Segment<D::File>>| {
        s.phase.get() == Phase::Sealed && !s.shared && !s.damaged.get() && s.end_position.get() <= position
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
        let biggest = store.slices().max_by_key(|s| s.active.borrow().bytes());
        return biggest.cloned().map(Chore::Flush);
    }
    if store.log.position.get().saturating_sub(position) > store.options.log_replay_bytes as u64 || many_wait(store) {
        let oldest = store.slices().filter_map(|s| Some((s.first_position()?, s))).min_by_key(|(first, _)| *first);
        return oldest.map(|(_, slice)| Chore::Flush(slice.clone()));
    }
    None
}

/// Whether more segments wait for their last records to be flushed than the log's bound of bytes would fill: many short
/// lives of the process leave many short segments.
fn many_wait<D: Disk>(store: &Store<D>) -> bool {
    let segments = store.segments.borrow();
    let waits = |s: &&Rc<Segment<D::File>>| s.phase.get() == Phase::Sealed && !s.shared && !s.damaged.get();
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
        let change = Change {
            added: vec![table.clone()],
            flushed_sequence: memtable.last_sequence(),
            next_table: slice.next_table.get(),
            gained,
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
    for (key, entry) in memtable.iter() {
        if let Err(error) = builder.add(key, entry.sequence, &entry.stored).await {
            builder.abandon().await?;
            return Err(error);
        }
    }
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
