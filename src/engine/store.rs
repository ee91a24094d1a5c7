//! The state of one core's engine that its futures share: slices, segments, log, caches, counters.
//!
//! All of it is on one core. No borrow of a cell lives over an await.

use super::{
    admission::{Admission, Pressure},
    cache::{BlockCache, ValueCache},
    compact::STRIKES_MAX,
    compaction::TableSet,
    damage::{Damage, Damages},
    disk::Disk,
    drops::{Drops, RESERVED},
    error::EngineError,
    leftovers::Leftover,
    manifest::Manifest,
    memtable::{Memtable, Place, pointers},
    notify::{Latch, Notify},
    reserve,
    settle::Settled,
    types::{EngineOptions, EngineStats, Stored},
    wal::{
        format::LogRecord,
        log::Log,
        roll::Keeper,
        segment::{Phase, Segment},
    },
};
use crate::{
    limits::{
        FREE_SEGMENTS, LEVEL0_PATIENCE, PAGE, SEGMENT_BYTES_USUAL_MIN, SEGMENTS_OF_LIVE, SLICES_MAX, SPACE_SEGMENTS,
    },
    types::{ShardId, SliceId},
};
use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

/// Segments of space in use between no pressure and full pressure, at least: where little is live a single segment is a
/// large part of it, and flushes free several at once.
const PRESSURE_SEGMENTS: u64 = 4;

/// The records of one slice.
pub struct Slice<D: Disk> {
    pub id: SliceId,
    pub active: RefCell<Memtable>,
    /// The memtable that is being written into a table; it takes no more records.
    pub sealed: RefCell<Option<Rc<Memtable>>>,
    pub tables: RefCell<Rc<TableSet<D>>>,
    pub manifest: RefCell<Manifest<D>>,
    /// Held over an append to the manifest and what belongs to it.
    pub latch: Rc<Latch>,
    /// The number of times that the active memtable has been sealed: a relocation that saw another number knows that
    /// what it looked up may be stale.
    pub swaps: Cell<u64>,
    pub next_table: Cell<u64>,
    /// The drops that may still hide records.
    pub drops: RefCell<Drops>,
    /// The values in tables that records of the active memtable replace, as far as looked up; and the same of the
    /// sealed one.
    pub settled: RefCell<Settled>,
    pub settled_sealed: RefCell<Settled>,
    /// Every record up to this sequence is in a table of the set.
    pub in_tables: Cell<u64>,
    /// The error of a slice whose manifest is damaged: the slice is set aside as a whole. Nothing of it is read or
    /// written, and its files stay.
    pub lost: OnceCell<EngineError>,
    /// Whether acknowledged records that were in no table yet may be lost: then that a key is not found, or is found
    /// older, proves nothing. The roll says so durably.
    pub may_have_lost: Cell<bool>,
    /// Whether the loss was found by this opening, or by an earlier one that ended before anybody could act upon it.
    pub newly_lost: Cell<bool>,
    /// Whether some file of the slice is damaged.
    pub damaged: Cell<bool>,
    /// Compactions in a row that met damage which was not found again: after a few, it is left alone until the next
    /// start.
    pub strikes: Cell<u32>,
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
            drops: RefCell::default(),
            settled: RefCell::default(),
            settled_sealed: RefCell::default(),
            in_tables: Cell::new(0),
            lost: OnceCell::new(),
            may_have_lost: Cell::new(false),
            newly_lost: Cell::new(false),
            damaged: Cell::new(false),
            strikes: Cell::new(0),
        }
    }
    /// Notes that records of the slice may be lost, and that this has just been found.
    pub fn lose(&self) {
        self.may_have_lost.set(true);
        self.newly_lost.set(true);
    }
    /// Whether what its manifest says may not be all.
    pub fn is_damaged(&self) -> bool {
        self.damaged.get() || self.lost.get().is_some()
    }
    /// The record in memory, and its sequence.
    pub fn recent(&self, key: &[u8]) -> Option<(u64, Stored)> {
        let found = self.active.borrow().get(key).map(|e| (e.sequence, e.stored.clone()));
        found.or_else(|| {
            let sealed = self.sealed.borrow();
            sealed.as_ref().and_then(|m| m.get(key).map(|e| (e.sequence, e.stored.clone())))
        })
    }
    /// Whether a record is hidden by a drop.
    pub fn hides(&self, key: &[u8], sequence: u64, stored: &Stored) -> bool {
        let drops = self.drops.borrow();
        !drops.is_empty() && drops.hides(key, sequence, stored.head())
    }
    /// The current record, delete records and dropped ones included.
    pub async fn lookup(&self, key: &[u8], cache: &BlockCache) -> Result<Option<(u64, Stored)>, EngineError> {
        if let Some(found) = self.recent(key) {
            return Ok(Some(found));
        }
        let tables = self.tables.borrow().clone();
        tables.get(key, cache).await
    }
    /// Whether a record that comes into memory may replace a large value in a table.
    fn may_replace(&self) -> bool {
        !self.manifest.borrow().state.live.is_empty() || self.sealed.borrow().is_some()
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

/// Share of a memtable budget, or of a segment, that may be owed before writes wait.
const ADMISSION_PARTS: usize = 32;
/// Times the budget that memtables may be beyond it: reached only when flushes do not go on at all.
const MEMTABLES_MOST: f64 = 3.0;

/// The space that the segments of the log take, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SpaceUse {
    pub used: u64,
    /// Bytes that the live records would take if they were packed together.
    pub live: u64,
    /// Bytes of log that an opening would read again: all of each segment that does not say that its records are in
    /// tables.
    pub to_replay: u64,
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
    pub flushed_bytes: Cell<u64>,
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
    pub roll: Keeper<D::File>,
    /// Files that the opening found and nothing needs.
    pub leftovers: RefCell<Vec<Leftover<D>>>,
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
    /// A segment is being collected.
    pub collecting: Cell<bool>,
    /// Collection waits for writes to pay for it.
    pub pace_waits: Cell<bool>,
    /// Bytes that must be available before values are taken again, after something found no space.
    pub space_needed: Cell<u64>,
    /// Bytes that were available when the file system was looked at last.
    pub space_seen: Cell<u64>,
    /// Pieces of the reserve that this shard holds.
    pub reserve: RefCell<BTreeSet<u8>>,
    pub reserve_latch: Rc<Latch>,
    /// Pieces of the reserve that are missing can be made.
    pub reserve_due: Cell<bool>,
    /// Bytes that must be available, besides room for the piece itself, before a missing piece of the reserve is tried
    /// again; set after a piece found no room.
    pub reserve_waits: Cell<Option<u64>>,
    pub memtable_bytes: Cell<usize>,
    /// Bytes of values in tables that records of active memtables replace, estimated for those that nobody has looked
    /// up.
    pub unsettled: Cell<u64>,
    /// Work of looking up replaced values that was done since other tasks last had their turn, in units of one key that
    /// no filter knows.
    pub settle_work: Cell<usize>,
    /// The debts of writes to the background work that they cause.
    pub admission: Admission,
    /// Tables of level 0 in the slice that has most.
    pub level0_most: Cell<usize>,
    /// The space in use as it was last measured, and the log's position at that time.
    space_use: Cell<Option<(SpaceUse, u64)>>,
    pub counters: Counters,
    /// Something changed that flush, compaction or collection may act on.
    pub work: Notify,
    /// Memtables shrank, or the engine failed.
    pub room: Notify,
    /// Space was refused, or the engine failed.
    pub refused: Notify,
    /// The places that are known to be damaged.
    pub damages: Damages,
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
        roll: Keeper<D::File>,
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
            roll,
            leftovers: RefCell::default(),
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
            collecting: Cell::new(false),
            pace_waits: Cell::new(false),
            reclaimed: Cell::new(0),
            space_needed: Cell::new(0),
            space_seen: Cell::new(u64::MAX),
            reserve: RefCell::default(),
            reserve_latch: Rc::default(),
            reserve_due: Cell::new(false),
            reserve_waits: Cell::new(None),
            memtable_bytes: Cell::new(0),
            unsettled: Cell::new(0),
            settle_work: Cell::new(0),
            admission: Admission::default(),
            level0_most: Cell::new(0),
            space_use: Cell::new(None),
            counters: Counters::default(),
            work: Notify::default(),
            room: Notify::default(),
            refused: Notify::default(),
            damages: Damages::default(),
            running: Cell::new(0),
        }
    }
    pub fn slice(&self, id: SliceId) -> Result<&Rc<Slice<D>>, EngineError> {
        let slice = self.slices.get(usize::from(id.0)).and_then(Option::as_ref);
        slice.ok_or_else(|| EngineError::Failed(format!("slice {} is not of shard {}", id.0, self.shard.0)))
    }
    /// A slice that can be read and written: an error if it is set aside.
    pub fn serving(&self, id: SliceId) -> Result<&Rc<Slice<D>>, EngineError> {
        let slice = self.slice(id)?;
        slice.lost.get().map_or(Ok(slice), |lost| Err(lost.clone()))
    }
    /// Damage that a read or background work has met: counted, and named if it was not known.
    pub fn met(&self, damage: Damage) {
        count(&self.counters.damaged_reads, 1);
        self.damages.note(damage);
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
        self.refused.wake();
        self.damages.noted.wake();
    }
    /// Whether background futures should end.
    pub fn ending(&self) -> bool {
        self.stopping.get() || self.has_failed()
    }

    /// Looks at the file system; leaves or enters the state in which puts are refused.
    pub fn look_at_space(&self) {
        let Ok(space) = self.disk.space() else { return };
        self.space_seen.set(space.available);
        let full = reserve::is_full(space, &self.options) || space.available < self.space_needed.get();
        let was_short = self.read_only.replace(full);
        if full || was_short {
            // Collection need not keep step with writes any more.
            self.log.landed.wake();
        }
        if !full && (was_short || reserve::has_room_now(self, space)) {
            // The next shortage may come before the log needs a segment again.
            self.reserve_waits.set(None);
            self.reserve_due.set(true);
            self.log.hot.changed.wake();
        }
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

    /// Measures the space that the log takes of the disk, and the space that it would take if only live records were in
    /// it. It is measured anew when a sixteenth of a small segment has been written since.
    pub fn space_use(&self) -> SpaceUse {
        let position = self.log.position.get();
        if let Some((known, at)) = self.space_use.get()
            && position - at < self.options.segment_bytes.min(SEGMENT_BYTES_USUAL_MIN) as u64 / 16
        {
            return known;
        }
        let mut measured = SpaceUse::default();
        for segment in self.segments.borrow().values() {
            let active = segment.phase.get() == Phase::Active;
            measured.used += segment.own_bytes(if active { segment.end.get() } else { segment.allocated.get() });
            measured.live += segment.packed_bytes();
            if segment.phase.get() != Phase::Flushed && !segment.damaged.get() {
                measured.to_replay += segment.end.get();
            }
        }
        measured.used += self.free.borrow().iter().map(|segment| segment.allocated.get()).sum::<u64>();
        self.space_use.set(Some((measured, position)));
        measured
    }
    /// Bytes of a segment that is made now: a small part of what is live. Segments in use cannot be collected, so the
    /// space they cost stays a small part too.
    pub fn segment_bytes(&self) -> usize {
        let most = self.options.segment_bytes;
        let wanted = (self.space_use().live / SEGMENTS_OF_LIVE) as usize;
        wanted.max(SEGMENT_BYTES_USUAL_MIN).min(most).next_multiple_of(PAGE)
    }
    /// A segment is gone, or less of one is live.
    pub fn space_changed(&self) {
        self.space_use.set(None);
    }
    /// The urgency of collection: 0 and less where nothing need be collected, 1 and more where it should go as fast as
    /// it can.
    pub fn space_pressure(&self) -> f64 {
        if self.read_only.get() {
            return 1.0;
        }
        let space = self.space_use();
        let start = self.space_allowed(space.live, self.options.space_percent_start);
        let most = self.space_allowed(space.live, self.options.space_percent_max);
        (space.used as f64 - start as f64)
            / (most - start).max(PRESSURE_SEGMENTS * self.segment_bytes() as u64).max(1) as f64
    }
    /// Bytes that the log may take at `percent` of what is live; segments in use and in reserve come on top.
    fn space_allowed(&self, live: u64, percent: u64) -> u64 {
        live.saturating_mul(percent) / 100 + SPACE_SEGMENTS * self.segment_bytes() as u64
    }
    /// Keeps the file of a segment that nothing needs any more for another life, if it is worth it.
    pub fn keep_for_reuse(&self, segment: &Rc<Segment<D::File>>) -> bool {
        let usual = self.segment_bytes() as u64;
        let mut free = self.free.borrow_mut();
        let usual = segment.allocated.get() == segment.capacity
            && (usual / 2..=usual.next_multiple_of(PAGE as u64)).contains(&segment.capacity);
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

    /// The pressure of background work on writes, by kind: how much they should slow down.
    pub fn pressure(&self) -> Pressure {
        let memtables = self.options.memtable_bytes.max(1) as f64;
        let level0 = (self.options.level0_tables.max(1) * LEVEL0_PATIENCE) as f64;
        Pressure {
            memtables: (self.memtable_bytes.get() as f64 - memtables) / memtables,
            level0: (self.level0_most.get() as f64 - level0) / level0,
            segments: if self.read_only.get() { 0.0 } else { self.space_pressure() - 1.0 },
        }
    }
    /// The bytes of log that an opening would read again, as a fraction of the bound on them.
    pub fn replay_use(&self) -> f64 {
        self.space_use().to_replay as f64 / self.options.log_replay_bytes.max(1) as f64
    }
    /// The urgency of background work for the core as a whole, 0 to 1.
    pub fn urgency(&self) -> f64 {
        let pressure = self.pressure();
        let behind = |slice: &Rc<Slice<D>>| slice.tables.borrow().pressure(&self.options);
        let compaction = self.slices().filter(|s| s.strikes.get() < STRIKES_MAX).map(behind).fold(0.0, f64::max);
        let collection = if self.admission.segments.is_at_work() { pressure.segments + 1.0 } else { 0.0 };
        let flush = (2.0 * pressure.memtables).max(2.0 * self.replay_use() - 2.0);
        let most = flush.max(pressure.level0).max((compaction - 1.0) / 4.0).max(collection);
        most.clamp(0.0, 1.0)
    }
    /// Whether background work keeps up well enough for a write to come in.
    pub fn admits(&self) -> bool {
        let (pressure, owed) = (self.pressure(), &self.admission);
        let memory = (self.options.memtable_bytes / ADMISSION_PARTS) as u64;
        let space = (self.segment_bytes() / ADMISSION_PARTS) as u64;
        owed.memtables.is_open(pressure.memtables, memory)
            && owed.level0.is_open(pressure.level0, memory)
            && owed.segments.is_open(pressure.segments, space)
            && pressure.memtables <= MEMTABLES_MOST
    }
    /// A write has come in: so many bytes of memtable and of log.
    pub fn admitted(&self, memory: u64, space: u64) {
        let pressure = self.pressure();
        self.admission.memtables.charge(memory, pressure.memtables);
        self.admission.level0.charge(memory, pressure.level0);
        self.admission.segments.charge(space, pressure.segments);
    }
    /// Keeps filters and indexes within their memory after new tables have come: beyond it, tables of the deepest
    /// levels give up their filters first. There a key that is looked for is mostly found, so a filter saves least.
    pub fn bound_table_memory(&self) {
        let sets: Vec<_> = self.slices().map(|slice| slice.tables.borrow().clone()).collect();
        let mut bytes: u64 = sets.iter().map(|set| set.memory_bytes()).sum();
        let most = self.options.table_memory_bytes as u64;
        if bytes <= most {
            return;
        }
        let mut tables: Vec<_> = sets.iter().flat_map(|set| set.tables()).filter(|t| t.filter_bytes() > 0).collect();
        tables.sort_by_key(|table| std::cmp::Reverse((table.meta().level, table.filter_bytes())));
        for table in tables {
            if bytes <= most {
                return;
            }
            bytes -= table.filter_bytes() as u64;
            table.forgo_filter();
        }
    }
    /// Level 0 of some slice has changed.
    pub fn level0_changed(&self) {
        let tables = |slice: &Rc<Slice<D>>| slice.tables.borrow().levels().first().map_or(0, Vec::len);
        let most = self.slices().filter(|s| s.strikes.get() < STRIKES_MAX).map(tables).max();
        self.level0_most.set(most.unwrap_or(0));
    }

    /// Makes a durable record of the log visible, and counts what it makes dead.
    pub fn apply(&self, slice: &Slice<D>, record: LogRecord, segment: &Segment<D::File>, position: u64) {
        for pointer in pointers(&record.stored) {
            if let Some(segment) = self.segment(pointer.segment) {
                segment.add_live(u64::from(pointer.length));
            }
        }
        if record.key.first() == Some(&RESERVED) {
            slice.drops.borrow_mut().note(&record.key, record.sequence, &record.stored);
            self.take_back(slice);
        }
        segment.in_memory.set(segment.in_memory.get() + 1);
        let place = Place { segment: segment.id(), position };
        let mut active = slice.active.borrow_mut();
        let (before, unsettled) = (active.bytes(), active.unsettled_bytes());
        let dead = active.insert(record.key, record.sequence, record.stored, place, slice.may_replace());
        self.memtable_bytes.set(self.memtable_bytes.get() + active.bytes() - before);
        self.unsettled.set(self.unsettled.get() + active.unsettled_bytes() - unsettled);
        drop(active);
        let Some((dead, dead_in)) = dead else { return };
        if dead_in == segment.id() {
            segment.forget_records(1);
        } else if let Some(segment) = self.segment(dead_in) {
            segment.forget_records(1);
        }
        for pointer in pointers(&dead) {
            if let Some(segment) = self.segment(pointer.segment) {
                segment.remove_live(u64::from(pointer.length));
            }
        }
    }
    /// Counts the values that a slice's records in memory were found to replace as live again: a drop may be the first
    /// to take them away.
    fn take_back(&self, slice: &Slice<D>) {
        for settled in [&slice.settled, &slice.settled_sealed] {
            let Settled { lost, .. } = settled.replace(Settled { void: true, ..Settled::default() });
            for (segment, bytes) in lost {
                if let Some(segment) = self.segment(segment) {
                    segment.add_live(bytes);
                }
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
            device_reads: counters.device_reads.get() + self.blocks.reads(),
            replayed_bytes: counters.replayed_bytes.get(),
            memtable_bytes: self.memtable_bytes.get() as u64,
            value_cache_bytes: self.options.value_cache_bytes as u64,
            block_cache_bytes: self.options.block_cache_bytes as u64,
            flushes: counters.flushes.get(),
            compactions: counters.compactions.get(),
            collections: counters.collections.get(),
            flushed_bytes: counters.flushed_bytes.get(),
            reuses: counters.reuses.get(),
            damaged_reads: counters.damaged_reads.get(),
            damaged_places: self.damages.count(),
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
        self.space_use.set(None);
        let space = self.space_use();
        let allowed = self.space_allowed(space.live, self.options.space_percent_start);
        stats.collection_backlog_bytes = space.used.saturating_sub(allowed);
        for segment in self.segments.borrow().values() {
            stats.segments += 1;
            stats.segment_bytes += segment.own_bytes(segment.allocated.get());
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
