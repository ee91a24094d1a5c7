//! The task that writes the log: group commit without a timer.
//!
//! Whatever has queued while a batch was on its way goes into the next one; at most [`BATCHES_IN_FLIGHT`] are on their
//! way; they are applied and acknowledged in order, each after its own sync and all before it. A batch is written
//! once: nothing is ever written over it.
//!
//! The log grows at two heads, each with a queue, a segment and futures of its own: the hot one takes what clients
//! write, the cold one takes old live records out of segments that are mostly dead, so that what is rarely written does
//! not mix with what is. Cold batches go to the device in the background lane and hold up no hot batch: neither head
//! waits for the other. Sequences are given out when a batch is sealed, from one counter; the memtable keeps the
//! greatest one of a key, so it does not matter which head's batch lands first. A memtable is sealed only when nothing
//! on its way is older than what is in it: [`Log::quiet_up_to`].
//!
//! A new segment of a head begins only when nothing of it is in flight, so a batch in it proves that all of the one
//! before was durable. A second future of each head makes segments (and space in them) ahead of need.
//!
//! A batch in which every write asks for [`Durability::Interval`] is written without a sync and acknowledged when its
//! write has ended; a sync of the segment follows within [`SYNC_INTERVAL`]. A batch that does ask for its sync syncs
//! all that lies before it too: what is durable is always a beginning of what was acknowledged.
//!
//! A batch proves that those before it were durable. The last one has nothing after it: when a head rests, an empty
//! batch follows, so that damage to what clients wrote can be told from a torn end.
//!
//! Any error of a write or a sync fails the engine for ever. No space for a segment only fails the writes that wait for
//! it.

pub mod prepare;

use super::{
    format::{BATCH_HEADER_BYTES, BatchHeader, LogRecord, encode_batch, pages, record_bytes},
    segment::{Phase, Segment},
};
use crate::{
    engine::{
        disk::{Disk, DiskFile, Lane, PageBuffer, Sync},
        drops::RESERVED,
        error::EngineError,
        memtable::pointers,
        notify::{Notify, Promise},
        settle,
        store::{Store, count},
        types::{Durability, Stored, ValuePointer, Write},
    },
    limits::{BATCH_BYTES, BATCH_RECORDS, BATCHES_IN_FLIGHT, PAGE, PROOF_PAUSE, SYNC_INTERVAL},
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
    time::Duration,
};

/// The least size of a batch that is sealed while another one is at the device: the records that are usually in hand,
/// divided by this.
const FAIR_SHARE: usize = 2;
/// The least half of the records usually in hand to which a batch is held: see `records_max`.
const HALVED_FROM: usize = 4;

/// The end of a write that did not fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Done {
    Stored,
    /// A relocation whose record had changed meanwhile: nothing was written.
    Stale,
}

/// A copy of a record to a fresh place: written only if the record has not changed since it was looked up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Relocation {
    /// The number of times that the slice's memtable had been sealed when the record was looked up.
    pub swaps: u64,
    /// The drops of the slice as they were then.
    pub drops: u64,
    /// The place of the record's first large value when it was looked up.
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

/// An end of the log: a queue of writes, and the segment that they go to. A log has two, so that copies of long-lived
/// records do not lie among fresh ones.
pub struct Head<D: Disk> {
    lane: Lane,
    queue: RefCell<VecDeque<Pending>>,
    pub queue_bytes: Cell<usize>,
    /// The queue, the segments or the engine's state changed.
    pub changed: Notify,
    /// Whether sealing is paused.
    pub held: Cell<bool>,
    /// Whether nothing is written any more, since the engine has ended.
    ended: Cell<bool>,
    active: RefCell<Option<Rc<Segment<D::File>>>>,
    next: RefCell<Option<Rc<Segment<D::File>>>>,
    /// Bytes of the next batch while it waits for a segment, or for space in one; 0 while none waits.
    wanted: Cell<u64>,
    /// The records of the batches whose writes are under way, oldest first.
    flying: RefCell<VecDeque<Vec<LogRecord>>>,
    buffers: RefCell<Vec<PageBuffer>>,
    /// The segment sealed last, and its end.
    previous: Cell<(u64, u64)>,
    /// Batches of the active segment that have landed without a sync.
    unsynced: Cell<bool>,
    /// The end of the batches of the active segment that have landed.
    landed_end: Cell<u64>,
    /// Batches without a sync that are on their way.
    unsynced_flying: Cell<usize>,
    /// Somebody waits for the sync of what has landed.
    sync_wanted: Cell<bool>,
    /// The number of records that are usually in hand: waiting, or in batches under way (see `learn_usual`).
    usual: Cell<usize>,
    /// Whether the active segment has batches that have landed and that no later batch calls durable; and whether one
    /// has landed since this was last looked at.
    unproven: Cell<bool>,
    fresh: Cell<bool>,
}

/// The log of one core.
pub struct Log<D: Disk> {
    /// The end for clients' writes.
    pub hot: Rc<Head<D>>,
    /// The end for copies of records that have lived long.
    pub cold: Rc<Head<D>>,
    /// A batch has landed.
    pub landed: Notify,
    pub next_sequence: Cell<u64>,
    segments_made: Cell<u64>,
    /// Bytes of batches written so far, those replayed at the start included.
    pub position: Cell<u64>,
}

/// The way in which a batch becomes durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    /// Its own write makes it durable.
    Durable,
    /// A sync of the segment after its write does, since there are batches before it that no sync has covered.
    SyncAll,
    /// A later batch or sync does.
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
    /// The pause before a proof is over.
    Rested,
    End,
}

impl<D: Disk> Log<D> {
    pub fn new(generation: u64) -> Log<D> {
        Log {
            hot: Rc::new(Head::new(Lane::Log)),
            cold: Rc::new(Head::new(Lane::Background)),
            landed: Notify::default(),
            next_sequence: Cell::new(generation << 40 | 1),
            segments_made: Cell::new(0),
            position: Cell::new(0),
        }
    }
    pub fn heads(&self) -> [&Rc<Head<D>>; 2] {
        [&self.hot, &self.cold]
    }
    /// Whether a batch on its way holds a record of this key.
    pub fn is_flying(&self, slice: SliceId, key: &[u8]) -> bool {
        let holds =
            |head: &Rc<Head<D>>| head.flying.borrow().iter().flatten().any(|r| r.slice == slice && r.key == key);
        self.heads().into_iter().any(holds)
    }
    /// Whether a write that waits or is on its way drops records of this slice.
    pub fn is_dropping(&self, slice: SliceId) -> bool {
        let drops = |of: SliceId, key: &[u8]| of == slice && key.first() == Some(&RESERVED);
        let (flying, queue) = (self.hot.flying.borrow(), self.hot.queue.borrow());
        flying.iter().flatten().any(|r| drops(r.slice, &r.key))
            || queue.iter().flat_map(|p| &p.writes).any(|w| drops(w.slice, &w.key))
    }
    /// Whether every record with this sequence or a smaller one has landed.
    pub fn quiet_up_to(&self, sequence: u64) -> bool {
        let first = |head: &Rc<Head<D>>| head.flying.borrow().iter().flatten().next().map(|r| r.sequence);
        self.heads().into_iter().filter_map(first).all(|first| first > sequence)
    }
    /// Ready once every batch that has landed by now is durable, or the engine has failed.
    pub async fn synced(&self, has_failed: impl Fn() -> bool) {
        let landed = |head: &Rc<Head<D>>| {
            let active = head.active.borrow().clone().filter(|_| head.unsynced.get())?;
            Some((head.clone(), active, head.landed_end.get()))
        };
        let late: Vec<_> = self.heads().into_iter().filter_map(landed).collect();
        let done = || {
            let mut all = true;
            for (head, ..) in late.iter().filter(|(_, segment, end)| segment.durable.get() < *end) {
                head.sync_wanted.set(true);
                head.changed.wake();
                all = false;
            }
            (all || has_failed()).then_some(())
        };
        self.landed.until(done).await;
    }
    pub fn wake(&self) {
        self.heads().into_iter().for_each(|head| head.changed.wake());
        self.landed.wake();
    }
}

impl<D: Disk> Head<D> {
    fn new(lane: Lane) -> Head<D> {
        Head {
            lane,
            queue: RefCell::default(),
            queue_bytes: Cell::new(0),
            changed: Notify::default(),
            held: Cell::new(false),
            ended: Cell::new(false),
            active: RefCell::default(),
            next: RefCell::default(),
            wanted: Cell::new(0),
            flying: RefCell::default(),
            buffers: RefCell::default(),
            previous: Cell::new((0, 0)),
            unsynced: Cell::new(false),
            landed_end: Cell::new(0),
            unsynced_flying: Cell::new(0),
            sync_wanted: Cell::new(false),
            usual: Cell::new(0),
            unproven: Cell::new(false),
            fresh: Cell::new(false),
        }
    }
    /// Whether segments are made before they are needed: clients should not wait for one.
    fn works_ahead(&self) -> bool {
        self.lane == Lane::Log
    }
    /// The segment that is ready to be the next.
    pub fn coming(&self) -> Option<Rc<Segment<D::File>>> {
        self.next.borrow().clone()
    }
    /// Makes this segment the next one; returns the one that was to be the next before.
    pub fn replace_coming(&self, segment: Rc<Segment<D::File>>) -> Option<Rc<Segment<D::File>>> {
        self.next.borrow_mut().replace(segment)
    }
    /// Whether nothing waits, and the last batches that have landed are proven by no later one.
    fn rests_unproven(&self) -> bool {
        self.unproven.get() && !self.unsynced.get() && !self.held.get() && self.queue.borrow().is_empty()
    }
    /// Whether the next segment is there and has space for so many bytes.
    fn has_next_for(&self, bytes: u64) -> bool {
        self.next.borrow().as_ref().is_some_and(|next| next.end.get() + bytes <= next.allocated.get())
    }
    /// Pauses sealing, or goes on with it.
    pub fn hold(&self, held: bool) {
        self.held.set(held);
        self.changed.wake();
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
        if self.ended.get() {
            done.resolve(Err(EngineError::Failed("the engine is closed".into())));
            return done;
        }
        self.queue_bytes.set(self.queue_bytes.get() + bytes);
        self.queue.borrow_mut().push_back(Pending { writes, durability, relocation, done: done.clone(), bytes });
        self.changed.wake();
        done
    }
    fn pop(&self) -> Option<Pending> {
        let pending = self.queue.borrow_mut().pop_front()?;
        self.queue_bytes.set(self.queue_bytes.get() - pending.bytes);
        Some(pending)
    }
    /// Puts a write back at the end of the queue, unchanged.
    fn put_back(&self, pending: Pending) {
        self.queue_bytes.set(self.queue_bytes.get() + pending.bytes);
        self.queue.borrow_mut().push_back(pending);
    }
    /// Whether what waits should go now. When nothing is on its way, always. Else a batch costs its writers a whole
    /// sync, however small it is, and those who come a moment later wait for it: so it should hold a fair share of the
    /// records that are usually on their way or waiting. If it never gets there, it goes when the one on its way has
    /// landed.
    fn worth_a_batch(&self) -> bool {
        let waiting = self.waiting_records();
        self.flying.borrow().is_empty()
            || waiting * FAIR_SHARE >= self.usual.get()
            || self.queue_bytes.get() >= BATCH_BYTES
    }
    /// The number of records that a batch may have now. When nearly all that is usually in hand waits at once, because
    /// all of it was answered at once, that is half of it: from then on the core frames one half and answers for it
    /// while the other half is at the device.
    fn records_max(&self) -> usize {
        let half = self.usual.get().div_ceil(2);
        let all_wait = self.flying.borrow().is_empty() && self.queue.borrow().len() >= self.usual.get() * 3 / 4;
        if half >= HALVED_FROM && all_wait { half.min(BATCH_RECORDS) } else { BATCH_RECORDS }
    }
    fn waiting_records(&self) -> usize {
        self.queue.borrow().iter().map(|pending| pending.writes.len().max(1)).sum()
    }
    /// Learns how many records are on their way or waiting at once: the most lately, forgotten slowly.
    fn learn_usual(&self) {
        let now = self.waiting_records() + self.flying.borrow().iter().map(Vec::len).sum::<usize>();
        self.usual.set(now.max(self.usual.get() - self.usual.get().div_ceil(16)));
    }
    /// Whether the batch that would be sealed now may hold a write that waits for its sync.
    fn next_wants_sync(&self) -> bool {
        let queue = self.queue.borrow();
        queue.iter().take(BATCH_RECORDS).any(|pending| pending.durability == Durability::Sync)
    }
    /// Bytes of the batch that would be sealed now, padding included; 0 when nothing waits.
    fn next_batch_bytes(&self) -> u64 {
        let queue = self.queue.borrow();
        let (mut bytes, mut records, most) = (BATCH_HEADER_BYTES, 0, self.records_max());
        for (index, pending) in queue.iter().enumerate() {
            if index > 0 && (bytes + pending.bytes > BATCH_BYTES || records + pending.writes.len() > most) {
                break;
            }
            bytes += pending.bytes;
            records += pending.writes.len();
        }
        if queue.is_empty() { 0 } else { pages(bytes) as u64 }
    }
}

/// Writes the log until the engine ends; what still waits then is written first.
pub async fn run<D: Disk>(store: Rc<Store<D>>, head: Rc<Head<D>>) {
    let mut landing = FuturesOrdered::new();
    // At most one sync at a time, and the pause before it.
    let mut syncing: Option<LocalBoxFuture<'static, Synced<D::File>>> = None;
    let mut pause: Option<LocalBoxFuture<'static, ()>> = None;
    let mut rest: Option<LocalBoxFuture<'static, ()>> = None;
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
            if head.unsynced.get() && syncing.is_none() {
                let mut due = |pause: &mut LocalBoxFuture<'static, ()>| pause.as_mut().poll(cx).is_ready();
                let wanted = head.sync_wanted.get() || store.stopping.get();
                if wanted || due(pause.get_or_insert_with(|| after(&store, SYNC_INTERVAL))) {
                    return Poll::Ready(Step::Sync);
                }
            }
            let nothing_flies = landing.is_empty() && syncing.is_none();
            if nothing_flies && head.rests_unproven() && !store.stopping.get() {
                let rest = rest.get_or_insert_with(|| after(&store, PROOF_PAUSE));
                if rest.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Step::Rested);
                }
            }
            if landing.len() < BATCHES_IN_FLIGHT && !head.held.get() && ready_to_seal(&store, &head, nothing_flies) {
                return Poll::Ready(Step::Seal);
            }
            if store.stopping.get() && nothing_flies && !head.unsynced.get() && head.queue.borrow().is_empty() {
                return Poll::Ready(Step::End);
            }
            head.changed.register(cx);
            Poll::Pending
        });
        match step.await {
            Step::Landed(landed) => land(&store, &head, landed),
            Step::Synced(synced) => {
                syncing = None;
                finish_sync(&store, &head, synced);
            }
            Step::Sync => {
                pause = None;
                syncing = begin_sync(&head);
            }
            Step::Rested => {
                rest = None;
                prove(&head);
            }
            Step::Seal => {
                if let Some(sealed) = seal(&store, &head) {
                    landing.push_back(write(sealed, head.lane));
                }
            }
            Step::End => break,
        }
    }
    head.ended.set(true);
    head.changed.wake();
    let error = store.failure().unwrap_or_else(|| EngineError::Failed("the engine is closed".into()));
    while let Some(pending) = head.pop() {
        pending.done.resolve(Err(error.clone()));
    }
    // Batches still on their way hold promises too: whatever becomes of them, they are not acknowledged.
    while let Some(landed) = poll_fn(|cx| Pin::new(&mut landing).poll_next(cx)).await {
        landed.pending.into_iter().for_each(|p| p.done.resolve(Err(error.clone())));
    }
}

async fn write<F: DiskFile>(sealed: Sealed<F>, lane: Lane) -> Landed<F> {
    let Sealed { segment, header, how, pending, buffer } = sealed;
    let sync = if how == How::Durable { Sync::Data } else { Sync::None };
    let (buffer, mut result) = segment.file.write(header.offset, buffer, sync, lane).await;
    if how == How::SyncAll && result.is_ok() {
        result = segment.file.sync().await;
    }
    Landed { segment, header, how, pending, buffer, result }
}

fn after<D: Disk>(store: &Rc<Store<D>>, pause: Duration) -> LocalBoxFuture<'static, ()> {
    let store = store.clone();
    Box::pin(async move { store.disk.pause(pause).await })
}

/// Queues an empty batch behind batches that no later one calls durable, if none has come for a while: it proves that
/// they were whole.
fn prove<D: Disk>(head: &Head<D>) {
    if head.fresh.replace(false) {
        return;
    }
    head.unproven.set(false);
    let active = head.active.borrow().clone();
    // Not worth a segment of its own: the next one's first batch proves as much.
    if active.is_some_and(|active| active.end.get() + PAGE as u64 <= active.allocated.get()) {
        drop(head.push(Vec::new(), Durability::Sync, None, 0));
    }
}

/// Begins to sync what has landed in the active segment.
fn begin_sync<D: Disk>(head: &Head<D>) -> Option<LocalBoxFuture<'static, Synced<D::File>>> {
    head.sync_wanted.set(false);
    let segment = head.active.borrow().clone()?;
    let end = head.landed_end.get();
    Some(Box::pin(async move {
        let result = segment.file.sync().await;
        Synced { segment, end, result }
    }))
}

fn finish_sync<D: Disk>(store: &Store<D>, head: &Head<D>, synced: Synced<D::File>) {
    let Synced { segment, end, result } = synced;
    match result {
        Ok(()) => {
            count(&store.counters.syncs, 1);
            segment.durable.set(segment.durable.get().max(end));
            if segment.durable.get() >= head.landed_end.get() {
                head.unsynced.set(false);
            }
        }
        Err(error) => store.fail(&EngineError::Failed(format!("syncing the log: {error}"))),
    }
    store.log.landed.wake();
}

/// Whether a batch can be sealed now. Moves on to the next segment when it is time, asks for one when there is none.
fn ready_to_seal<D: Disk>(store: &Store<D>, head: &Head<D>, nothing_flies: bool) -> bool {
    let bytes = head.next_batch_bytes();
    if bytes == 0 {
        // Refused, if it waited.
        ask(head, 0);
        return false;
    }
    if !head.worth_a_batch() {
        return false;
    }
    let active = head.active.borrow().clone();
    if head.unsynced_flying.get() > 0 && head.next_wants_sync() {
        // Its sync must cover them, so they must have landed.
        return false;
    }
    if let Some(active) = &active {
        let needed = active.end.get() + bytes;
        if needed <= active.allocated.get() {
            ask(head, 0);
            return true;
        }
        // One that has space although this one lacks some was made because this one gets no more.
        if needed <= active.capacity && !head.has_next_for(bytes) {
            ask(head, bytes);
            return false;
        }
        if !nothing_flies {
            return false;
        }
        if head.unsynced.get() {
            // A batch in the next segment says that all of this one is durable.
            head.sync_wanted.set(true);
            head.changed.wake();
            return false;
        }
    }
    let fits = head.has_next_for(bytes);
    let Some(next) = head.next.borrow_mut().take_if(|_| fits) else {
        ask(head, bytes);
        return false;
    };
    if let Some(active) = active {
        store.seal(&active);
        head.previous.set((active.id(), active.end.get()));
        store.work.wake();
    }
    store.segments.borrow_mut().insert(next.id(), next.clone());
    *head.active.borrow_mut() = Some(next);
    ask(head, 0);
    true
}

fn ask<D: Disk>(head: &Head<D>, bytes: u64) {
    if head.wanted.replace(bytes) != bytes {
        head.changed.wake();
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

/// Takes waiting writes from the queue, up to the bounds of a batch, and frames them.
fn seal<D: Disk>(store: &Store<D>, head: &Head<D>) -> Option<Sealed<D::File>> {
    let log = &store.log;
    let segment = head.active.borrow().clone()?;
    let mut room = head.next_batch_bytes();
    let mut batch: Vec<Pending> = Vec::new();
    let (mut records, most) = (0, head.records_max());
    let mut first = true;
    room -= BATCH_HEADER_BYTES as u64;
    loop {
        let fits = head
            .queue
            .borrow()
            .front()
            .is_some_and(|next| first || (next.bytes as u64 <= room && records + next.writes.len() <= most));
        let Some(pending) = fits.then(|| head.pop()).flatten() else { break };
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
    let mut buffer = head.buffers.borrow_mut().pop().unwrap_or_else(|| PageBuffer::zeroed(0));
    buffer.resize(BATCH_HEADER_BYTES + bytes);
    let (previous, previous_end) = head.previous.get();
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
    head.flying.borrow_mut().push_back(framed);
    head.learn_usual();
    if nearly_used(&segment) {
        head.changed.wake();
    }
    let how = if batch.iter().all(|p| p.durability == Durability::Interval) {
        head.unsynced_flying.set(head.unsynced_flying.get() + 1);
        How::Later
    } else if head.unsynced.get() {
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
            || slice.drops.borrow().version() != relocation.drops
            || store.log.is_dropping(write.slice)
            || store.log.is_flying(write.slice, &write.key)
            || batch.iter().flat_map(|p| &p.writes).any(same)
            || slice.recent(&write.key).is_some_and(|(_, stored)| newer(stored))
    })
}

/// A batch's write has ended: its records become visible and its writers hear of it, or the engine has failed.
fn land<D: Disk>(store: &Store<D>, head: &Head<D>, landed: Landed<D::File>) {
    let Landed { segment, header, how, pending, buffer, result } = landed;
    let records = head.flying.borrow_mut().pop_front().unwrap_or_default();
    store.log.landed.wake();
    if how == How::Later {
        head.unsynced_flying.set(head.unsynced_flying.get() - 1);
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
    head.landed_end.set(end);
    head.fresh.set(header.count > 0);
    head.unproven.set(header.count > 0 || header.durable < header.offset);
    if how == How::Later {
        head.unsynced.set(true);
    } else {
        segment.durable.set(end);
        head.unsynced.set(false);
    }
    let position = store.log.position.get();
    let mut user_bytes = 0;
    for record in records {
        segment.note(&record);
        if let Ok(slice) = store.slice(record.slice).cloned() {
            store.apply(&slice, record, &segment, position);
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
    recycle(head, buffer);
    let has_work =
        store.memtable_bytes.get() > store.options.memtable_bytes || settle::is_due(store) || store.replay_use() > 1.0;
    if has_work {
        store.work.wake();
    }
}

/// Keeps the buffer for a later batch, unless it is unusually large or there are enough.
fn recycle<D: Disk>(head: &Head<D>, buffer: PageBuffer) {
    let mut buffers = head.buffers.borrow_mut();
    if buffers.len() < BATCHES_IN_FLIGHT && buffer.len() <= 2 * BATCH_BYTES {
        buffers.push(buffer);
    }
}

fn nearly_used<F: DiskFile>(segment: &Segment<F>) -> bool {
    segment.allocated.get() - segment.end.get() < u64::from(segment.header.step) / 2
}

/// Seals active segments that are half dead, though there is room in them: nothing dead can be collected before.
/// Whether there was one.
pub fn retire<D: Disk>(store: &Store<D>) -> bool {
    let mut retired = false;
    for head in store.log.heads() {
        let quiet = head.flying.borrow().is_empty() && !head.unsynced.get();
        let active = head.active.borrow_mut().take_if(|active| quiet && active.dead_bytes() >= active.capacity / 2);
        if let Some(active) = active {
            store.seal(&active);
            head.previous.set((active.id(), active.end.get()));
            store.work.wake();
            retired = true;
        }
    }
    retired
}

/// Whether the active segment can be closed with a last empty batch: something was written since the last one.
pub fn has_unsealed_batches<D: Disk>(head: &Head<D>) -> bool {
    let active = head.active.borrow();
    active.as_ref().is_some_and(|a| a.phase.get() == Phase::Active && a.end.get() > u64::from(a.header.data_start))
}
