//! Memtables become tables, and the log behind them becomes free.
//!
//! One flush at a time. Which slice: the biggest when the memtables of the core are over their budget, the one that
//! pins the oldest part of the log when too much of it would have to be replayed. After each flush, segments whose
//! records are all in tables are marked so.

use super::{
    compaction::TableSet,
    damage::Damage,
    disk::Disk,
    error::EngineError,
    manifest::Change,
    memtable::{Memtable, pointers},
    reserve, settle,
    store::{Slice, Store, count},
    table::{Builder, Table, directory},
    wal::{
        roll,
        segment::{Phase, Segment},
    },
};
use crate::limits::{KIB, LEVEL0_PATIENCE};
use std::{collections::BTreeMap, rc::Rc};

/// Sealed segments that may wait beyond those that the bound on replay allows.
const WAITING_SEGMENTS: usize = 4;
/// Bytes of a memtable that go into a table before the writes that wait for room are told of it: more often would wake
/// them for nothing.
const PAID_AT_ONCE: usize = 32 * KIB;

/// Tables in a row that cannot be read after they were written, after which the disk is taken to have failed.
const UNREADABLE_MAX: u32 = 4;

/// Flushes whenever there is reason to, until the engine ends.
pub async fn run<D: Disk>(store: Rc<Store<D>>) {
    let mut unreadable = 0;
    loop {
        let next = store.work.until(|| if store.ending() { Some(None) } else { choose(&store).map(Some) }).await;
        let Some(chore) = next else { break };
        let result = match chore {
            Chore::Flush(slice) => {
                store.admission.memtables.begin();
                let flushed = flush(&store, &slice).await;
                store.admission.memtables.end();
                store.level0_changed();
                store.bound_table_memory();
                store.room.wake();
                flushed
            }
            Chore::Settle(slice) => {
                store.admission.segments.begin();
                let settled = settle::run(&store, &slice).await;
                store.admission.segments.end();
                store.room.wake();
                settled
            }
            Chore::Mark(segment) => mark(&store, &segment).await,
        };
        match result {
            Ok(()) => unreadable = 0,
            Err(EngineError::Full) => reserve::go_on(&store).await,
            // The new table is gone, the memtable is still there: it is written again, under another name.
            Err(EngineError::Damaged(what)) if unreadable + 1 < UNREADABLE_MAX => {
                unreadable += 1;
                store.met(Damage::of_work(&what));
            }
            Err(error) => store.fail(&error),
        }
        store.work.wake();
    }
}

enum Chore<D: Disk> {
    Flush(Rc<Slice<D>>),
    Settle(Rc<Slice<D>>),
    Mark(Rc<Segment<D::File>>),
}

async fn mark<D: Disk>(store: &Store<D>, segment: &Segment<D::File>) -> Result<(), EngineError> {
    segment.write_mark().await?;
    if segment.shared { roll::update(store).await } else { Ok(()) }
}

/// Whether nothing is left to be flushed or marked for now.
pub fn is_idle<D: Disk>(store: &Store<D>) -> bool {
    choose(store).is_none()
}

/// The next chore, if there is one.
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
    if let Some(slice) = settle::choose(store) {
        return Some(Chore::Settle(slice));
    }
    if store.replay_use() > 1.0 || many_wait(store) || pins_space(store) {
        let oldest = store.slices().filter_map(|s| Some((s.first_position()?, s))).min_by_key(|(first, _)| *first);
        return oldest.map(|(_, slice)| Chore::Flush(slice.clone()));
    }
    None
}

/// Whether more segments wait for their last records to be flushed than the log's bound of bytes would fill: many short
/// lives of the process leave many short segments.
fn many_wait<D: Disk>(store: &Store<D>) -> bool {
    let segments = store.segments.borrow();
    let waits = |s: &&Rc<Segment<D::File>>| s.phase.get() == Phase::Sealed && !s.damaged.get();
    let waiting = segments.values().filter(waits).count();
    waiting > WAITING_SEGMENTS + store.options.log_replay_bytes / store.segment_bytes().max(1)
}

/// Whether space is wanted and there are segments of which nothing is needed but records that are in no table.
fn pins_space<D: Disk>(store: &Store<D>) -> bool {
    let pinned = |s: &Rc<Segment<D::File>>| {
        let spent = s.copied.get() || s.live.get() == 0;
        s.phase.get() == Phase::Sealed && !s.damaged.get() && spent && s.in_memory.get() > 0
    };
    store.space_pressure() > 0.0 && store.segments.borrow().values().any(pinned)
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
            // Before any table: tables without a manifest are a manifest that was lost.
            commit(store, slice, &Change::default()).await?;
        }
        let table = write_table(store, slice, &memtable).await?;
        let mut gained = BTreeMap::new();
        for pointer in memtable.iter().flat_map(|(_, entry)| pointers(&entry.stored)) {
            *gained.entry(pointer.segment).or_default() += u64::from(pointer.length);
        }
        let lost = settle::replaced(store, slice, &memtable).await?;
        let change = Change {
            added: vec![table.meta().clone()],
            flushed_sequence: memtable.last_sequence(),
            next_table: slice.next_table.get(),
            gained,
            lost,
            ..Change::default()
        };
        if let Err(error) = commit(store, slice, &change).await {
            if error == EngineError::Full {
                store.disk.remove(&super::table::path(slice.id, table.meta().id)).await?;
            }
            return Err(error);
        }
        Rc::<TableSet<D>>::make_mut(&mut slice.tables.borrow_mut()).apply(vec![table], &[]);
        slice.in_tables.set(memtable.last_sequence());
        let known = slice.settled_sealed.take();
        for (segment, bytes) in &change.lost {
            if let Some(segment) = store.segment(*segment) {
                segment.remove_live(*bytes - known.lost.get(&segment.id()).copied().unwrap_or(0).min(*bytes));
            }
        }
        forget_records(store, &memtable);
        count(&store.counters.flushes, 1);
    }
    *slice.sealed.borrow_mut() = None;
    store.memtable_bytes.set(store.memtable_bytes.get().saturating_sub(memtable.bytes()));
    store.room.wake();
    Ok(())
}

/// A memtable's records are in a table: their segments are needed no more on their account.
fn forget_records<D: Disk>(store: &Store<D>, memtable: &Memtable) {
    let mut records = BTreeMap::<u64, u64>::new();
    memtable.iter().for_each(|(_, entry)| *records.entry(entry.segment).or_default() += 1);
    for (segment, records) in records {
        if let Some(segment) = store.segment(segment) {
            segment.forget_records(records);
        }
    }
}

/// Seals the active memtable: from now on it only waits to be written.
///
/// A cold batch may land before a hot one with smaller sequences, and the other way round. The table will say that all
/// records up to its greatest sequence are in tables, and memtables hide tables: so nothing on its way may be older
/// than what is in the memtable. Cold batches are held back for that moment, hot ones are not.
async fn seal<D: Disk>(store: &Store<D>, slice: &Slice<D>) -> Result<Rc<Memtable>, EngineError> {
    let log = &store.log;
    log.cold.hold(true);
    let quiet = || store.has_failed() || log.quiet_up_to(slice.active.borrow().last_sequence());
    log.landed.until(|| quiet().then_some(())).await;
    if let Some(error) = store.failure() {
        return Err(error);
    }
    let memtable = Rc::new(slice.active.take());
    store.unsettled.set(store.unsettled.get().saturating_sub(memtable.unsettled_bytes()));
    slice.settled_sealed.replace(slice.settled.take());
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

/// A table of the memtable, durable and open. After an error that is not final its file is gone.
async fn write_table<D: Disk>(
    store: &Store<D>,
    slice: &Slice<D>,
    memtable: &Memtable,
) -> Result<Rc<Table<D>>, EngineError> {
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
    match Table::open(&store.disk, meta).await {
        Ok(table) => Ok(table),
        Err(error) => {
            store.disk.remove(&super::table::path(slice.id, id)).await?;
            Err(EngineError::Damaged(super::damage::text(&error)))
        }
    }
}

/// Makes a change of a slice's manifest durable. The caller holds the slice's latch.
pub async fn commit<D: Disk>(store: &Store<D>, slice: &Slice<D>, change: &Change) -> Result<(), EngineError> {
    let append = slice.manifest.borrow().plan(change);
    let (written, bytes) = append.write(&*store.disk).await?;
    slice.manifest.borrow_mut().adopt(written, bytes);
    count(&store.counters.device_bytes_written, bytes);
    Ok(())
}
