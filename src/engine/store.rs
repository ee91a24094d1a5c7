//! The state of one core's engine that its futures share: slices, segments, log, caches, counters.
//!
//! All of it is on one core. No borrow of a cell lives over an await.

use super::{
    cache::{BlockCache, ValueCache},
    compaction::TableSet,
    disk::Disk,
    error::EngineError,
    manifest::Manifest,
    memtable::{Memtable, pointers},
    notify::{Latch, Notify},
    reserve,
    types::{EngineOptions, EngineStats, Stored},
    wal::{
        format::LogRecord,
        log::Log,
        segment::{Phase, Segment},
    },
};
use crate::{
    limits::{FREE_SEGMENTS, PAGE, SLICES_MAX},
    types::{ShardId, SliceId},
};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

/// A range of a file that failed its checksums. Its records are lost here; other replicas have them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    pub file: String,
    pub from: u64,
    pub to: u64,
}

/// The records of one slice.
pub struct Slice<D: Disk> {
    pub id: SliceId,
    pub active: RefCell<Memtable>,
    /// On its way into a table.
    pub sealed: RefCell<Option<Rc<Memtable>>>,
    pub tables: RefCell<Rc<TableSet<D>>>,
    pub manifest: RefCell<Manifest<D>>,
    /// Held over an append to the manifest and what belongs to it.
    pub latch: Rc<Latch>,
    /// How often the active memtable has been sealed: tells a relocation that what it looked up may be stale.
    pub swaps: Cell<u64>,
    pub next_table: Cell<u64>,
    /// A table of it has a damaged block: it is no longer compacted, so that nothing spreads.
    pub damaged: Cell<bool>,
}

impl<D: Disk> Slice<D> {
    pub fn new(id: SliceId, manifest: Manifest<D>, tables: TableSet<D>, next_table: u64) -> Slice<D> {
        Slice {
            id,
            active: RefCell::default(),
            sealed: RefCell::default(),
            tables: RefCell::new(Rc::new(tables)),
            manifest: RefCell::new(manifest),
            latch: Rc::default(),
            swaps: Cell::new(0),
            next_table: Cell::new(next_table),
            damaged: Cell::new(false),
        }
    }
    /// The record in memory, and its sequence.
    pub fn recent(&self, key: &[u8]) -> Option<(u64, Stored)> {
        let found = self.active.borrow().get(key).map(|e| (e.sequence, e.stored.clone()));
        found.or_else(|| {
            let sealed = self.sealed.borrow();
            sealed.as_ref().and_then(|m| m.get(key).map(|e| (e.sequence, e.stored.clone())))
        })
    }
    /// The current record, delete records included.
    pub async fn lookup(&self, key: &[u8], cache: &BlockCache) -> Result<Option<(u64, Stored)>, EngineError> {
        if let Some(found) = self.recent(key) {
            return Ok(Some(found));
        }
        let tables = self.tables.borrow().clone();
        tables.get(key, cache).await
    }
    pub fn take_table_id(&self) -> u64 {
        let id = self.next_table.get();
        self.next_table.set(id + 1);
        id
    }
    /// The log's position of its oldest record that is in no table.
    pub fn first_position(&self) -> Option<u64> {
        let sealed = self.sealed.borrow().as_ref().and_then(|m| m.first_position());
        let active = self.active.borrow().first_position();
        sealed.into_iter().chain(active).min()
    }
    pub fn memtable_bytes(&self) -> usize {
        self.active.borrow().bytes() + self.sealed.borrow().as_ref().map_or(0, |m| m.bytes())
    }
}

/// Counters, as [`EngineStats`] describes them.
#[derive(Default)]
pub struct Counters {
    pub syncs: Cell<u64>,
    pub durable_writes: Cell<u64>,
    pub user_bytes_written: Cell<u64>,
    pub device_bytes_written: Cell<u64>,
    pub device_reads: Cell<u64>,
    pub replayed_bytes: Cell<u64>,
    pub flushes: Cell<u64>,
    pub compactions: Cell<u64>,
    pub collections: Cell<u64>,
    pub reuses: Cell<u64>,
    pub damaged_reads: Cell<u64>,
}
pub fn count(counter: &Cell<u64>, by: u64) {
    counter.set(counter.get() + by);
}

pub struct Store<D: Disk> {
    pub disk: Rc<D>,
    pub shard: ShardId,
    pub options: EngineOptions,
    /// Greater than that of any opening before.
    pub generation: u64,
    slices: Vec<Option<Rc<Slice<D>>>>,
    pub segments: RefCell<BTreeMap<u64, Rc<Segment<D::File>>>>,
    /// Collected segments whose files wait for another life, under their old names. A read that found its record
    /// before the collection may still hold one.
    pub free: RefCell<Vec<Rc<Segment<D::File>>>>,
    pub log: Log<D>,
    pub blocks: BlockCache,
    pub values: ValueCache,
    failed: RefCell<Option<EngineError>>,
    pub stopping: Cell<bool>,
    /// Space is short: puts are refused.
    pub read_only: Cell<bool>,
    /// The last flush found no space, nor a reserve; the next look that finds space lets it try again.
    pub flush_blocked: Cell<bool>,
    /// The last collection found no space for its copies: only segments that need none are collected.
    pub copies_blocked: Cell<bool>,
    /// Space is wanted: what the log held up to this position is flushed and merged, however little it is, so that
    /// what it made dead can be collected.
    pub reclaim: Cell<Option<u64>>,
    /// Up to where that was done last.
    reclaimed: Cell<u64>,
    /// After something found no space: bytes that must be available before values are taken again.
    pub space_needed: Cell<u64>,
    /// Pieces of the reserve that this shard holds.
    pub reserve: RefCell<BTreeSet<u8>>,
    pub reserve_latch: Rc<Latch>,
    pub memtable_bytes: Cell<usize>,
    pub counters: Counters,
    /// Something changed that flush, compaction or collection may act on.
    pub work: Notify,
    /// Memtables shrank, or the engine failed.
    pub room: Notify,
    /// What the opening found damaged.
    pub damage: Vec<Damage>,
    /// Background futures that have not ended.
    pub running: Cell<usize>,
}

impl<D: Disk> Store<D> {
    pub fn new(
        disk: Rc<D>,
        shard: ShardId,
        options: EngineOptions,
        generation: u64,
        slices: Vec<Rc<Slice<D>>>,
    ) -> Store<D> {
        let mut by_id = vec![None; slices.iter().map(|s| usize::from(s.id.0) + 1).max().unwrap_or(0).min(SLICES_MAX)];
        for slice in slices {
            if let Some(place) = by_id.get_mut(usize::from(slice.id.0)) {
                *place = Some(slice);
            }
        }
        Store {
            blocks: BlockCache::new(options.block_cache_bytes),
            values: ValueCache::new(options.value_cache_bytes),
            log: Log::new(generation),
            disk,
            shard,
            options,
            generation,
            slices: by_id,
            segments: RefCell::default(),
            free: RefCell::default(),
            failed: RefCell::default(),
            stopping: Cell::new(false),
            read_only: Cell::new(false),
            flush_blocked: Cell::new(false),
            copies_blocked: Cell::new(false),
            reclaim: Cell::new(None),
            reclaimed: Cell::new(0),
            space_needed: Cell::new(0),
            reserve: RefCell::default(),
            reserve_latch: Rc::default(),
            memtable_bytes: Cell::new(0),
            counters: Counters::default(),
            work: Notify::default(),
            room: Notify::default(),
            damage: Vec::new(),
            running: Cell::new(0),
        }
    }
    pub fn slice(&self, id: SliceId) -> Result<&Rc<Slice<D>>, EngineError> {
        let slice = self.slices.get(usize::from(id.0)).and_then(Option::as_ref);
        slice.ok_or_else(|| EngineError::Failed(format!("slice {} is not of shard {}", id.0, self.shard.0)))
    }
    pub fn slices(&self) -> impl Iterator<Item = &Rc<Slice<D>>> {
        self.slices.iter().flatten()
    }
    pub fn segment(&self, id: u64) -> Option<Rc<Segment<D::File>>> {
        self.segments.borrow().get(&id).cloned()
    }

    /// An error if the engine has failed or was closed.
    pub fn check(&self) -> Result<(), EngineError> {
        match &*self.failed.borrow() {
            Some(error) => Err(error.clone()),
            None if self.stopping.get() => Err(EngineError::Failed("the engine is closed".into())),
            None => Ok(()),
        }
    }
    pub fn has_failed(&self) -> bool {
        self.failed.borrow().is_some()
    }
    pub fn failure(&self) -> Option<EngineError> {
        self.failed.borrow().clone()
    }
    /// The engine has failed for ever: nothing is acknowledged any more.
    pub fn fail(&self, error: &EngineError) {
        let error = match error {
            EngineError::Failed(_) => error.clone(),
            other => EngineError::Failed(other.to_string()),
        };
        self.failed.borrow_mut().get_or_insert(error);
        self.wake_all();
    }
    pub fn wake_all(&self) {
        self.log.wake();
        self.work.wake();
        self.room.wake();
    }
    /// Whether background futures should end.
    pub fn ending(&self) -> bool {
        self.stopping.get() || self.has_failed()
    }

    /// Looks at the file system; leaves or enters the state in which puts are refused.
    pub fn look_at_space(&self) {
        let Ok(space) = self.disk.space() else { return };
        let full = reserve::is_full(space, &self.options) || space.available < self.space_needed.get();
        let was_short = self.read_only.replace(full);
        if !full && (was_short || self.flush_blocked.get() || self.copies_blocked.get()) {
            self.flush_blocked.set(false);
            self.copies_blocked.set(false);
            self.space_needed.set(0);
            self.work.wake();
        }
    }
    /// Somebody wants to write, or to know: looks again, and if space is short has what was written since the last time
    /// made collectable. One such round at a time, so that many small deletes are flushed together.
    pub fn want_space(&self) {
        self.look_at_space();
        let position = self.log.position.get();
        if self.read_only.get() && self.reclaim.get().is_none() && self.reclaimed.replace(position) != position {
            self.reclaim.set(Some(position));
            self.work.wake();
        }
    }

    /// Keeps the file of a segment that nothing needs any more for another life, if it is worth it.
    pub fn keep_for_reuse(&self, segment: &Rc<Segment<D::File>>) -> bool {
        let mut free = self.free.borrow_mut();
        let usual = segment.allocated.get() == segment.capacity
            && segment.capacity <= self.options.segment_bytes.next_multiple_of(PAGE) as u64;
        let keep = usual && !self.read_only.get() && free.len() < FREE_SEGMENTS;
        if keep {
            free.push(segment.clone());
        }
        keep
    }
    /// A file for another life, large enough, that nobody reads any more.
    pub fn take_free(&self, needed: u64) -> Option<Rc<Segment<D::File>>> {
        let mut free = self.free.borrow_mut();
        let fits = |s: &Rc<Segment<D::File>>| Rc::strong_count(s) == 1 && s.capacity >= needed;
        let found = free.iter().position(fits)?;
        Some(free.remove(found))
    }

    /// Makes a durable record of the log visible, and counts what it makes dead.
    pub fn apply(&self, slice: &Slice<D>, record: LogRecord, position: u64) {
        for pointer in pointers(&record.stored) {
            if let Some(segment) = self.segment(pointer.segment) {
                segment.add_live(u64::from(pointer.length));
            }
        }
        let mut active = slice.active.borrow_mut();
        let before = active.bytes();
        let dead = active.insert(record.key, record.sequence, record.stored, position);
        self.memtable_bytes.set(self.memtable_bytes.get() + active.bytes() - before);
        drop(active);
        for pointer in dead.iter().flat_map(pointers) {
            if let Some(segment) = self.segment(pointer.segment) {
                segment.remove_live(u64::from(pointer.length));
            }
        }
    }
    /// The log's position before which every record is in tables.
    pub fn flushed_position(&self) -> u64 {
        let oldest = self.slices().filter_map(|s| s.first_position()).min();
        oldest.unwrap_or(self.log.position.get())
    }

    pub fn stats(&self) -> EngineStats {
        let counters = &self.counters;
        let mut stats = EngineStats {
            syncs: counters.syncs.get(),
            durable_writes: counters.durable_writes.get(),
            user_bytes_written: counters.user_bytes_written.get(),
            device_bytes_written: counters.device_bytes_written.get(),
            device_reads: counters.device_reads.get(),
            replayed_bytes: counters.replayed_bytes.get(),
            memtable_bytes: self.memtable_bytes.get() as u64,
            flushes: counters.flushes.get(),
            compactions: counters.compactions.get(),
            collections: counters.collections.get(),
            reuses: counters.reuses.get(),
            damaged_reads: counters.damaged_reads.get(),
            read_only: u64::from(self.read_only.get() || self.flush_blocked.get()),
            ..EngineStats::default()
        };
        stats.memory_bytes = stats.memtable_bytes
            + self.blocks.memory_bytes()
            + self.values.memory_bytes()
            + self.log.heads().iter().map(|head| head.queue_bytes.get() as u64).sum::<u64>();
        for slice in self.slices() {
            let tables = slice.tables.borrow();
            stats.tables += tables.tables().count() as u64;
            stats.table_bytes += tables.bytes();
            stats.table_memory_bytes += tables.memory_bytes();
            stats.compaction_backlog_bytes += tables.backlog_bytes(&self.options);
        }
        stats.memory_bytes += stats.table_memory_bytes;
        for segment in self.segments.borrow().values() {
            stats.segments += 1;
            stats.segment_bytes += segment.allocated.get();
            stats.segment_live_bytes += segment.live.get();
        }
        for segment in self.free.borrow().iter() {
            stats.segment_bytes += segment.allocated.get();
        }
        stats
    }
    /// Seals a segment: it takes no more batches.
    pub fn seal(&self, segment: &Segment<D::File>) {
        segment.phase.set(Phase::Sealed);
        segment.end_position.set(self.log.position.get());
    }
}
