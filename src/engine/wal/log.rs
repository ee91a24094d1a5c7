//! The task that writes the log: group commit without a timer.
//!
//! Whatever has queued while a batch was on its way goes into the next one; at most [`BATCHES_IN_FLIGHT`] are on their
//! way; they are applied and acknowledged in order, each after its own sync and all before it. A batch is written
//! once: nothing is ever written over it.
//!
//! A new segment begins only when nothing is in flight, so a batch in it proves that all of the one before was
//! durable. A second future of the log makes segments (and space in them) ahead of need.
//!
//! A batch in which every write asks for [`Durability::Interval`] is written without a sync and acknowledged when its write
//! has ended; a sync of the segment follows within [`SYNC_INTERVAL`]. A batch that does ask for its sync syncs all that
//! lies before it too: what is durable is always a beginning of what was acknowledged.
//!
//! Any error of a write or a sync fails the engine for ever. No space for a segment only fails the writes that wait for it.

use super::{
    format::{BATCH_HEADER_BYTES, BatchHeader, LogRecord, SegmentHeader, encode_batch, pages, record_bytes},
    segment::{Phase, STEP_BYTES, Segment, id_for, path},
};
use crate::{
    engine::{
        disk::{Disk, DiskFile, Lane, PageBuffer, Sync},
        error::EngineError,
        memtable::pointers,
        notify::{Notify, Promise},
        store::{Store, count},
        types::{Durability, Stored, ValuePointer, Write},
    },
    limits::{BATCH_BYTES, BATCH_RECORDS, BATCHES_IN_FLIGHT, SYNC_INTERVAL},
    types::SliceId,
};
use futures_util::{Stream, future::LocalBoxFuture, stream::FuturesOrdered};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::Poll,
};

/// How a write ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Done {
    Stored,
    /// A relocation whose record had changed meanwhile: nothing was written.
    Stale,
}

/// A copy of a record to a fresh place: written only if the record has not changed since it was looked up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Relocation {
    /// How often the slice's memtable had been sealed then.
    pub swaps: u64,
    /// Where its first large value lay.
    pub old: ValuePointer,
}

/// Writes that wait for the log; they go into one batch together.
pub struct Pending {
    pub writes: Vec<Write>,
    pub durability: Durability,
    pub relocation: Option<Relocation>,
    pub done: Promise<Result<Done, EngineError>>,
    bytes: usize,
}

/// The log of one core: what waits, where it goes.
pub struct Log<D: Disk> {
    queue: RefCell<VecDeque<Pending>>,
    pub queue_bytes: Cell<usize>,
    /// The queue, the segments or the engine's state changed.
    pub changed: Notify,
    active: RefCell<Option<Rc<Segment<D::File>>>>,
    next: RefCell<Option<Rc<Segment<D::File>>>>,
    /// Bytes of a batch that waits for a segment or for space in one; 0 for none.
    wanted: Cell<u64>,
    /// Records of the batches on their way, oldest first.
    flying: RefCell<VecDeque<Vec<LogRecord>>>,
    /// A batch has landed.
    pub landed: Notify,
    buffers: RefCell<Vec<PageBuffer>>,
    pub next_sequence: Cell<u64>,
    segments_made: Cell<u64>,
    /// Bytes of batches written so far, those replayed at the start included.
    pub position: Cell<u64>,
    /// The segment sealed last, and its end.
    previous: Cell<(u64, u64)>,
    /// Batches of the active segment that have landed without a sync.
    unsynced: Cell<bool>,
    /// Where the batches of the active segment that have landed end.
    landed_end: Cell<u64>,
    /// Batches without a sync that are on their way.
    unsynced_flying: Cell<usize>,
    /// Somebody waits for the sync of what has landed.
    sync_wanted: Cell<bool>,
}

/// How a batch becomes durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    /// By its own write.
    Durable,
    /// By a sync of the segment after its write, for there are batches before it that no sync has covered.
    SyncAll,
    /// Later.
    Later,
}

/// A batch whose write has ended.
struct Landed<F> {
    segment: Rc<Segment<F>>,
    header: BatchHeader,
    how: How,
    pending: Vec<Pending>,
    buffer: PageBuffer,
    result: std::io::Result<()>,
}

/// A sync of the batches of a segment that had landed before it began.
struct Synced<F> {
    segment: Rc<Segment<F>>,
    end: u64,
    result: std::io::Result<()>,
}

enum Step<F> {
    Landed(Landed<F>),
    Synced(Synced<F>),
    Seal,
    Sync,
    End,
}

impl<D: Disk> Log<D> {
    /// Whether a batch on its way holds a record of this key.
    pub fn is_flying(&self, slice: SliceId, key: &[u8]) -> bool {
        self.flying.borrow().iter().flatten().any(|r| r.slice == slice && r.key == key)
    }
    pub fn new(generation: u64) -> Log<D> {
        Log {
            queue: RefCell::default(),
            queue_bytes: Cell::new(0),
            changed: Notify::default(),
            active: RefCell::default(),
            next: RefCell::default(),
            wanted: Cell::new(0),
            flying: RefCell::default(),
            landed: Notify::default(),
            buffers: RefCell::default(),
            next_sequence: Cell::new(generation << 40 | 1),
            segments_made: Cell::new(0),
            position: Cell::new(0),
            previous: Cell::new((0, 0)),
            unsynced: Cell::new(false),
            landed_end: Cell::new(0),
            unsynced_flying: Cell::new(0),
            sync_wanted: Cell::new(false),
        }
    }
    /// Queues writes; the promise resolves once they are durable and visible.
    pub fn push(
        &self,
        writes: Vec<Write>,
        durability: Durability,
        relocation: Option<Relocation>,
        inline_below: usize,
    ) -> Promise<Result<Done, EngineError>> {
        let bytes = writes.iter().map(|w| record_bytes(w, inline_below)).map(|(a, b)| a + b).sum();
        let done = Promise::default();
        self.queue_bytes.set(self.queue_bytes.get() + bytes);
        self.queue.borrow_mut().push_back(Pending { writes, durability, relocation, done: done.clone(), bytes });
        self.changed.wake();
        done
    }
    /// Ready once every batch that has landed is durable, or the engine has failed.
    pub async fn synced(&self, has_failed: impl Fn() -> bool) {
        let done = || {
            if !self.unsynced.get() || has_failed() {
                return Some(());
            }
            self.sync_wanted.set(true);
            self.changed.wake();
            None
        };
        self.landed.until(done).await;
    }
    fn pop(&self) -> Option<Pending> {
        let pending = self.queue.borrow_mut().pop_front()?;
        self.queue_bytes.set(self.queue_bytes.get() - pending.bytes);
        Some(pending)
    }
    /// Whether the batch that would be sealed now may hold a write that waits for its sync.
    fn next_wants_sync(&self) -> bool {
        let queue = self.queue.borrow();
        queue.iter().take(BATCH_RECORDS).any(|pending| pending.durability == Durability::Sync)
    }
    /// Bytes of the batch that would be sealed now, padding included; 0 when nothing waits.
    fn next_batch_bytes(&self) -> u64 {
        let queue = self.queue.borrow();
        let (mut bytes, mut records) = (BATCH_HEADER_BYTES, 0);
        for (index, pending) in queue.iter().enumerate() {
            if index > 0 && (bytes + pending.bytes > BATCH_BYTES || records + pending.writes.len() > BATCH_RECORDS) {
                break;
            }
            bytes += pending.bytes;
            records += pending.writes.len();
        }
        if queue.is_empty() { 0 } else { pages(bytes) as u64 }
    }
}

/// Writes the log until the engine ends; what still waits then is written first.
pub async fn run<D: Disk>(store: Rc<Store<D>>) {
    let mut landing = FuturesOrdered::new();
    // At most one sync at a time, and the pause before it.
    let mut syncing: Option<LocalBoxFuture<'static, Synced<D::File>>> = None;
    let mut pause: Option<LocalBoxFuture<'static, ()>> = None;
    loop {
        let step = poll_fn(|cx| {
            if let Poll::Ready(Some(landed)) = Pin::new(&mut landing).poll_next(cx) {
                return Poll::Ready(Step::Landed(landed));
            }
            if let Some(sync) = &mut syncing
                && let Poll::Ready(synced) = sync.as_mut().poll(cx)
            {
                return Poll::Ready(Step::Synced(synced));
            }
            if store.has_failed() {
                return Poll::Ready(Step::End);
            }
            let log = &store.log;
            if log.unsynced.get() && syncing.is_none() {
                let mut due = |pause: &mut LocalBoxFuture<'static, ()>| pause.as_mut().poll(cx).is_ready();
                let wanted = log.sync_wanted.get() || store.stopping.get();
                if wanted || due(pause.get_or_insert_with(|| after_interval(&store))) {
                    return Poll::Ready(Step::Sync);
                }
            }
            if landing.len() < BATCHES_IN_FLIGHT && ready_to_seal(&store, landing.is_empty() && syncing.is_none()) {
                return Poll::Ready(Step::Seal);
            }
            let idle = landing.is_empty() && syncing.is_none() && !log.unsynced.get();
            if store.stopping.get() && idle && log.queue.borrow().is_empty() {
                return Poll::Ready(Step::End);
            }
            log.changed.register(cx);
            Poll::Pending
        });
        match step.await {
            Step::Landed(landed) => land(&store, landed),
            Step::Synced(synced) => {
                syncing = None;
                finish_sync(&store, synced);
            }
            Step::Sync => {
                pause = None;
                syncing = begin_sync(&store);
            }
            Step::Seal => {
                if let Some(sealed) = seal(&store) {
                    landing.push_back(write(sealed));
                }
            }
            Step::End => break,
        }
    }
    let error = store.failure().unwrap_or_else(|| EngineError::Failed("the engine is closed".into()));
    while let Some(pending) = store.log.pop() {
        pending.done.resolve(Err(error.clone()));
    }
    // Batches still on their way hold promises too: whatever becomes of them, they are not acknowledged.
    while let Some(landed) = poll_fn(|cx| Pin::new(&mut landing).poll_next(cx)).await {
        landed.pending.into_iter().for_each(|p| p.done.resolve(Err(error.clone())));
    }
}

async fn write<F: DiskFile>(sealed: Sealed<F>) -> Landed<F> {
    let Sealed { segment, header, how, pending, buffer } = sealed;
    let sync = if how == How::Durable { Sync::Data } else { Sync::None };
    let (buffer, mut result) = segment.file.write(header.offset, buffer, sync, Lane::Log).await;
    if how == How::SyncAll && result.is_ok() {
        result = segment.file.sync().await;
    }
    Landed { segment, header, how, pending, buffer, result }
}

fn after_interval<D: Disk>(store: &Rc<Store<D>>) -> LocalBoxFuture<'static, ()> {
    let store = store.clone();
    Box::pin(async move { store.disk.pause(SYNC_INTERVAL).await })
}

/// Begins to sync what has landed in the active segment.
fn begin_sync<D: Disk>(store: &Store<D>) -> Option<LocalBoxFuture<'static, Synced<D::File>>> {
    store.log.sync_wanted.set(false);
    let segment = store.log.active.borrow().clone()?;
    let end = store.log.landed_end.get();
    Some(Box::pin(async move {
        let result = segment.file.sync().await;
        Synced { segment, end, result }
    }))
}

fn finish_sync<D: Disk>(store: &Store<D>, synced: Synced<D::File>) {
    let Synced { segment, end, result } = synced;
    match result {
        Ok(()) => {
            count(&store.counters.syncs, 1);
            segment.durable.set(segment.durable.get().max(end));
            if segment.durable.get() >= store.log.landed_end.get() {
                store.log.unsynced.set(false);
            }
        }
        Err(error) => store.fail(&EngineError::Failed(format!("syncing the log: {error}"))),
    }
    store.log.landed.wake();
}

/// Whether a batch can be sealed now. Moves on to the next segment when it is time, asks for one when there is none.
fn ready_to_seal<D: Disk>(store: &Store<D>, nothing_flies: bool) -> bool {
    let log = &store.log;
    let bytes = log.next_batch_bytes();
    if bytes == 0 {
        return false;
    }
    let active = log.active.borrow().clone();
    if log.unsynced_flying.get() > 0 && log.next_wants_sync() {
        // Its sync must cover them, so they must have landed.
        return false;
    }
    if let Some(active) = &active {
        let needed = active.end.get() + bytes;
        if needed <= active.allocated.get() {
            return true;
        }
        if needed <= active.capacity {
            ask(store, bytes);
            return false;
        }
        if !nothing_flies {
            return false;
        }
        if log.unsynced.get() {
            // A batch in the next segment says that all of this one is durable.
            log.sync_wanted.set(true);
            log.changed.wake();
            return false;
        }
    }
    let fits = |next: &Rc<Segment<D::File>>| next.end.get() + bytes <= next.allocated.get();
    let Some(next) = log.next.borrow_mut().take_if(|next| fits(next)) else {
        ask(store, bytes);
        return false;
    };
    if let Some(active) = active {
        store.seal(&active);
        log.previous.set((active.id(), active.end.get()));
        store.work.wake();
    }
    store.segments.borrow_mut().insert(next.id(), next.clone());
    *log.active.borrow_mut() = Some(next);
    true
}

fn ask<D: Disk>(store: &Store<D>, bytes: u64) {
    if store.log.wanted.replace(bytes) != bytes {
        store.log.changed.wake();
    }
}

/// A batch ready to be written.
struct Sealed<F> {
    segment: Rc<Segment<F>>,
    header: BatchHeader,
    how: How,
    pending: Vec<Pending>,
    buffer: PageBuffer,
}

/// Takes what waits, up to a batch's bounds, and frames it.
fn seal<D: Disk>(store: &Store<D>) -> Option<Sealed<D::File>> {
    let log = &store.log;
    let segment = log.active.borrow().clone()?;
    let mut room = log.next_batch_bytes();
    let mut batch: Vec<Pending> = Vec::new();
    let mut records = 0;
    let mut first = true;
    room -= BATCH_HEADER_BYTES as u64;
    loop {
        let fits =
            log.queue.borrow().front().is_some_and(|next| {
                first || (next.bytes as u64 <= room && records + next.writes.len() <= BATCH_RECORDS)
            });
        let Some(pending) = fits.then(|| log.pop()).flatten() else { break };
        first = false;
        if is_stale(store, &pending, &batch) {
            pending.done.resolve(Ok(Done::Stale));
            continue;
        }
        room = room.saturating_sub(pending.bytes as u64);
        records += pending.writes.len();
        batch.push(pending);
    }
    store.room.wake();
    if batch.is_empty() {
        return None;
    }
    let writes: Vec<&Write> = batch.iter().flat_map(|p| &p.writes).collect();
    let bytes: usize = batch.iter().map(|p| p.bytes).sum();
    let mut buffer = log.buffers.borrow_mut().pop().unwrap_or_else(|| PageBuffer::zeroed(0));
    buffer.resize(BATCH_HEADER_BYTES + bytes);
    let (previous, previous_end) = log.previous.get();
    let header = BatchHeader {
        segment: segment.id(),
        epoch: segment.header.epoch,
        offset: segment.end.get(),
        first_sequence: log.next_sequence.get(),
        durable: segment.durable.get(),
        previous,
        previous_end,
        allocated: segment.allocated.get(),
        count: 0,
        length: 0,
        records_end: 0,
    };
    let (header, framed) = encode_batch(header, &writes, store.options.inline_value_bytes, buffer.as_mut_slice());
    log.next_sequence.set(header.first_sequence + u64::from(header.count));
    segment.end.set(header.offset + header.padded());
    log.flying.borrow_mut().push_back(framed);
    if nearly_used(&segment) {
        log.changed.wake();
    }
    let how = if batch.iter().all(|p| p.durability == Durability::Interval) {
        log.unsynced_flying.set(log.unsynced_flying.get() + 1);
        How::Later
    } else if log.unsynced.get() {
        How::SyncAll
    } else {
        How::Durable
    };
    Some(Sealed { segment, header, how, pending: batch, buffer })
}

/// Whether a relocated record has changed since it was looked up, or is about to.
fn is_stale<D: Disk>(store: &Store<D>, pending: &Pending, batch: &[Pending]) -> bool {
    let Some(relocation) = pending.relocation else { return false };
    pending.writes.iter().any(|write| {
        let Ok(slice) = store.slice(write.slice) else { return true };
        let same = |other: &Write| other.slice == write.slice && other.key == write.key;
        // Not in memory: in a table, where it was found, for nothing has left the memtable since.
        let newer = |stored: Stored| pointers(&stored).next() != Some(&relocation.old);
        slice.swaps.get() != relocation.swaps
            || store.log.is_flying(write.slice, &write.key)
            || batch.iter().flat_map(|p| &p.writes).any(same)
            || slice.recent(&write.key).is_some_and(|(_, stored)| newer(stored))
    })
}

/// A batch's write has ended: its records become visible and its writers hear of it, or the engine has failed.
fn land<D: Disk>(store: &Store<D>, landed: Landed<D::File>) {
    let Landed { segment, header, how, pending, buffer, result } = landed;
    let records = store.log.flying.borrow_mut().pop_front().unwrap_or_default();
    store.log.landed.wake();
    if how == How::Later {
        store.log.unsynced_flying.set(store.log.unsynced_flying.get() - 1);
    }
    let result = match (result, store.failure()) {
        (Ok(()), None) => Ok(()),
        (_, Some(failed)) => Err(failed),
        (Err(error), None) => {
            let error = EngineError::Failed(format!("writing the log: {error}"));
            store.fail(&error);
            Err(error)
        }
    };
    if let Err(error) = result {
        pending.into_iter().for_each(|p| p.done.resolve(Err(error.clone())));
        return;
    }
    let end = header.offset + header.padded();
    store.log.landed_end.set(end);
    if how == How::Later {
        store.log.unsynced.set(true);
    } else {
        segment.durable.set(end);
        store.log.unsynced.set(false);
    }
    let position = store.log.position.get();
    let mut user_bytes = 0;
    for record in records {
        segment.note(&record);
        if let Ok(slice) = store.slice(record.slice).cloned() {
            store.apply(&slice, record, position);
        }
    }
    store.log.position.set(position + header.padded());
    let counters = &store.counters;
    count(&counters.syncs, u64::from(how != How::Later));
    count(&counters.device_bytes_written, header.padded());
    for pending in pending {
        if pending.relocation.is_none() {
            user_bytes += pending.bytes as u64;
            count(&counters.durable_writes, pending.writes.len() as u64);
        }
        pending.done.resolve(Ok(Done::Stored));
    }
    count(&counters.user_bytes_written, user_bytes);
    recycle(store, buffer);
    let oldest_far = store.memtable_bytes.get() > store.options.memtable_bytes
        || position.saturating_sub(store.flushed_position()) > store.options.log_replay_bytes as u64;
    if oldest_far {
        store.work.wake();
    }
}

/// Keeps the buffer for a later batch, unless it is unusually large or there are enough.
fn recycle<D: Disk>(store: &Store<D>, buffer: PageBuffer) {
    let mut buffers = store.log.buffers.borrow_mut();
    if buffers.len() < BATCHES_IN_FLIGHT && buffer.len() <= 2 * BATCH_BYTES {
        buffers.push(buffer);
    }
}

fn nearly_used<F: DiskFile>(segment: &Segment<F>) -> bool {
    segment.allocated.get() - segment.end.get() < u64::from(segment.header.step) / 2
}

/// What the second future of the log does next.
enum Chore<F> {
    Grow(Rc<Segment<F>>, u64),
    Create(u64),
    End,
}

/// Makes segments, and space in them, before the log needs them.
pub async fn prepare<D: Disk>(store: Rc<Store<D>>) {
    loop {
        let chore = store.log.changed.until(|| next_chore(&store)).await;
        let result = match chore {
            Chore::End => break,
            Chore::Grow(segment, needed) => segment.grow(needed).await,
            Chore::Create(bytes) => create(&store, bytes).await,
        };
        store.log.wanted.set(0);
        match result {
            Ok(()) => store.look_at_space(),
            Err(EngineError::Full) => refuse_all(&store),
            Err(error) => store.fail(&error),
        }
        store.log.changed.wake();
    }
}

fn next_chore<D: Disk>(store: &Store<D>) -> Option<Chore<D::File>> {
    if store.has_failed() || (store.stopping.get() && store.log.queue.borrow().is_empty()) {
        return Some(Chore::End);
    }
    let log = &store.log;
    let wanted = log.wanted.get();
    let fits = log.next.borrow().as_ref().is_some_and(|n| n.end.get() + wanted <= n.allocated.get());
    let Some(active) = log.active.borrow().clone() else {
        return (wanted > 0 && !fits).then_some(Chore::Create(wanted));
    };
    let needed = active.end.get() + wanted;
    if wanted > 0 && needed > active.capacity {
        return (!fits).then_some(Chore::Create(wanted));
    }
    if store.read_only.get() && wanted == 0 {
        return None;
    }
    if active.allocated.get() < active.capacity {
        return (nearly_used(&active) || needed > active.allocated.get()).then_some(Chore::Grow(active, needed));
    }
    (nearly_used(&active) && log.next.borrow().is_none()).then_some(Chore::Create(BATCH_BYTES as u64))
}

async fn create<D: Disk>(store: &Store<D>, bytes: u64) -> Result<(), EngineError> {
    let made = store.log.segments_made.get() + 1;
    store.log.segments_made.set(made);
    let shard = store.shard.0;
    let id = id_for(store.generation, made, shard);
    // Not to be guessed: whoever knew it could store a value that looks like a batch of a later life of the file.
    let place = [id.to_le_bytes(), store.options.seed.to_le_bytes(), made.to_le_bytes()].concat();
    let header = SegmentHeader {
        id,
        epoch: xxhash_rust::xxh3::xxh3_64_with_seed(&place, store.options.seed),
        generation: store.generation,
        first_sequence: store.log.next_sequence.get(),
        shard,
        data_start: 0,
        step: if made == 1 { STEP_BYTES } else { store.options.segment_bytes } as u32,
        reused: false,
        slices: store.slices().map(|s| s.id).collect(),
    };
    let free = if bytes <= BATCH_BYTES as u64 { store.take_free() } else { None };
    let segment = match free {
        Some(old) => {
            let reused = Segment::reuse(&*store.disk, &old, header).await?;
            count(&store.counters.reuses, 1);
            reused
        }
        None => Segment::create(&*store.disk, header, store.options.segment_bytes, bytes).await?,
    };
    count(&store.counters.device_bytes_written, crate::limits::PAGE as u64);
    let too_small = store.log.next.borrow_mut().replace(Rc::new(segment));
    if let Some(too_small) = too_small {
        store.disk.remove(&path(too_small.id())).await?;
    }
    Ok(())
}

/// There is no space for the log: everything that waits is refused. None of it was stored.
fn refuse_all<D: Disk>(store: &Store<D>) {
    store.read_only.set(true);
    while let Some(pending) = store.log.pop() {
        pending.done.resolve(Err(EngineError::Full));
    }
    store.room.wake();
}

/// Whether the active segment can be closed with a last empty batch: something was written since the last one.
pub fn has_unsealed_batches<D: Disk>(store: &Store<D>) -> bool {
    let active = store.log.active.borrow();
    active.as_ref().is_some_and(|a| a.phase.get() == Phase::Active && a.end.get() > u64::from(a.header.data_start))
}
