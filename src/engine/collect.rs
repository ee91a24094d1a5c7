//! Collection of segments: those that are mostly dead give their live records to the log's cold head and are removed.
//!
//! A segment is collected when it is sealed. Its batches are walked in order, their records read apart from their
//! values; the values of those that are still current are read, verified and appended again as fresh records, on the
//! condition that the record is still current when its batch is sealed. Once the last copy is durable nothing that a
//! read can find points into the segment any more: pointers that older tables still hold are hidden behind the copies.
//! It goes when no record of it is needed for a crash either: each is in a table, or a newer one of its key is durable
//! ([`Segment::in_memory`]). Small records, which are not copied, may have to be flushed first. A read that looked up
//! its record before meets a missing segment and looks it up again.
//!
//! Nothing is copied before space asks for it: the longer a segment waits, the more of it is dead. From
//! [`SPACE_PERCENT_START`](crate::limits::SPACE_PERCENT_START) of what is live the emptiest segment is taken, and the
//! work goes on in step with what clients write: the more space is in use, the more segment a written byte pays for; at
//! [`SPACE_PERCENT_MAX`](crate::limits::SPACE_PERCENT_MAX) it no longer waits for writes. A segment without any live
//! record goes at once.
//!
//! A segment that was written when slices were dealt to cores in another way holds records of several cores. Each
//! copies its own live records and releases its part; the last one removes the segment.
//!
//! A segment with a damaged place is never collected: what cannot be read cannot be copied. Nor is one with a record of
//! which a table that is set aside may hold a newer one.

use super::{
    damage::Damage,
    disk::{Disk, DiskFile, Lane, PageBuffer},
    error::EngineError,
    manifest,
    memtable::pointers,
    store::{Store, count},
    types::{Change, Durability, Stored, StoredValue, ValuePointer, Values, Write},
    wal::{
        format::{BatchHeader, LogRecord, decode_records, value_checksum},
        log::{Done, Relocation},
        roll,
        segment::{DIRECTORY, Phase, Segment, path},
    },
};
use crate::{
    limits::{BATCH_BYTES, KIB, PAGE},
    types::SliceId,
};
use bytes::Bytes;
use futures_util::{
    future::try_join,
    stream::{self, FuturesOrdered, FuturesUnordered, StreamExt},
};
use std::{cell::Cell, future::poll_fn, io, ops::Range, rc::Rc, task::Poll};

/// Bytes of segment that collection may go through for each byte that clients write, when the space in use is at its
/// upper bound; fewer in proportion below that.
const STRIDE: f64 = 8.0;
/// Segments collected at once at most, and how many more for each unit of pressure.
const COLLECTIONS_AT_ONCE: usize = 8;
const AT_ONCE_BY_PRESSURE: f64 = 2.0;
/// Reads of values under way at once in one segment.
const READS: usize = 8;
/// Records of a segment that are looked up in the tree at once, to see whether they are current.
const LOOKUPS: usize = 8;
/// Bytes of one read where only the records of a batch are wanted, and not its values.
const RECORDS_READ_BYTES: u64 = 16 * KIB as u64;
/// Bytes of one read where most of a segment is live, or where its batches are small.
const WHOLE_READ_BYTES: u64 = 256 * KIB as u64;
/// Dead bytes between two live values that are read along rather than left out.
const GAP_BYTES: u64 = 32 * KIB as u64;

/// Collects whenever some segment is worth it, until the engine ends.
pub async fn run<D: Disk>(store: Rc<Store<D>>) {
    let mut under_way = FuturesUnordered::new();
    loop {
        let step = poll_fn(|cx| {
            if let Poll::Ready(Some(ended)) = under_way.poll_next_unpin(cx) {
                return Poll::Ready(Step::Ended(ended));
            }
            let next = match store.ending() {
                true if under_way.is_empty() => Some(Step::End),
                true => None,
                false if under_way.len() < at_once(&store) => choose(&store).map(Step::Begin),
                false => None,
            };
            store.work.register(cx);
            next.map_or(Poll::Pending, Poll::Ready)
        });
        match step.await {
            Step::Begin(chore) => {
                let (Chore::Collect(segment) | Chore::GiveBack(segment)) = &chore;
                segment.in_hand.set(true);
                under_way.push(work_off(&store, chore));
            }
            Step::Ended(()) => {}
            Step::End => break,
        }
        store.collecting.set(!under_way.is_empty());
        store.work.wake();
    }
}

enum Step<F> {
    Begin(Chore<F>),
    Ended(()),
    End,
}

/// Segments that are collected at once: each waits for its reads and for its copies' syncs most of the time. More as
/// space gets shorter, no more than that: what is collected too early is copied too often.
fn at_once<D: Disk>(store: &Store<D>) -> usize {
    let hurry = if store.read_only.get() { 0.0 } else { store.space_pressure().max(0.0) };
    (1 + (hurry * AT_ONCE_BY_PRESSURE) as usize).min(COLLECTIONS_AT_ONCE)
}

async fn work_off<D: Disk>(store: &Store<D>, chore: Chore<D::File>) {
    let (segment, result) = match chore {
        Chore::Collect(segment) => {
            let work = &store.admission.segments;
            work.begin();
            let collected = collect(store, &segment).await;
            work.end();
            store.room.wake();
            (segment, collected.inspect(|()| count(&store.counters.collections, 1)))
        }
        Chore::GiveBack(segment) => {
            let removed = remove(store, &segment).await;
            (segment, removed)
        }
    };
    segment.in_hand.set(false);
    match result {
        Ok(()) => {
            // There is space again for what waits for it.
            store.flush_blocked.set(false);
            store.copies_blocked.set(false);
            store.look_at_space();
        }
        Err(EngineError::Full) => store.copies_blocked.set(true),
        // Some of it cannot be read, or which of it is current cannot: it stays as it is.
        Err(EngineError::Damaged(what)) => {
            store.met(Damage::of_work(&what));
            segment.damaged.set(true);
        }
        Err(_) if store.ending() => {}
        Err(error) => store.fail(&error),
    }
}

/// Whether some segment is worth it.
pub fn has_work<D: Disk>(store: &Store<D>) -> bool {
    let given_back = || store.free.borrow().iter().any(|free| Rc::strong_count(free) == 1);
    choose_segment(store).is_some() || (store.read_only.get() && given_back())
}

enum Chore<F> {
    Collect(Rc<Segment<F>>),
    /// Kept for another life, which space is too short for.
    GiveBack(Rc<Segment<F>>),
}

/// The segment with the greatest dead share, if that is worth it.
fn choose<D: Disk>(store: &Store<D>) -> Option<Chore<D::File>> {
    if store.read_only.get()
        && let Some(free) = store.take_free(0)
    {
        return Some(Chore::GiveBack(free));
    }
    choose_segment(store).map(Chore::Collect)
}

fn choose_segment<D: Disk>(store: &Store<D>) -> Option<Rc<Segment<D::File>>> {
    // Without space for copies only what needs none.
    let copies = !store.copies_blocked.get() && store.space_pressure() > 0.0;
    let segments = store.segments.borrow();
    let ready = segments.values().filter(|s| match s.phase.get() {
        _ if s.damaged.get() || s.in_hand.get() => false,
        Phase::Active => false,
        // Other cores go by what manifests say.
        phase if s.shared => phase == Phase::Flushed && !(s.copied.get() && s.live.get() > 0),
        _ => true,
    });
    let is_free = |s: &Segment<_>| s.in_memory.get() == 0 && (s.live.get() == 0 || s.copied.get());
    let least = store.options.segment_dead_percent;
    let least = if store.read_only.get() { least / 2 } else { least };
    // What a segment was never used for counts only if no copy of its records would waste as much: that is, once.
    let gains = |s: &Segment<_>| {
        let wasted = if s.header.generation < store.generation { s.dead_percent() } else { s.dead_values_percent() };
        wasted >= least
    };
    let worth = ready.filter(|s| is_free(s) || (copies && !s.copied.get() && s.live.get() > 0 && gains(s)));
    worth.max_by_key(|s| (is_free(s), s.dead_percent())).cloned()
}

async fn collect<D: Disk>(store: &Store<D>, segment: &Rc<Segment<D::File>>) -> Result<(), EngineError> {
    if segment.live.get() > 0 && !segment.copied.get() {
        let mut walk = Walk::new(segment);
        let pace = Pace::new(store);
        let mut copies = Vec::new();
        // While some are on their way to the device, the next are read.
        while !walk.ended() || !copies.is_empty() {
            (copies, ()) = try_join(gather(store, &mut walk, &pace), append(store, copies)).await?;
        }
        segment.copied.set(true);
    } else {
        store.admission.segments.pay(segment.end.get());
    }
    match segment.shared {
        false if segment.in_memory.get() == 0 => release(store, segment).await,
        true if segment.live.get() == 0 => release_part(store, segment).await,
        // Small records of it are in no table yet. Or it is shared, and other cores go by this one's manifests: its
        // part is free when they no longer point there.
        _ => Ok(()),
    }
}

/// Gives up a segment that nothing points to.
async fn release<D: Disk>(store: &Store<D>, segment: &Rc<Segment<D::File>>) -> Result<(), EngineError> {
    // What replaced a record that was not copied must not be lost to a power cut: the old one would be gone as well.
    store.log.synced(|| store.has_failed()).await;
    store.check()?;
    roll::leave(store, segment.id()).await?;
    store.space_changed();
    store.values.forget_segment(segment.id());
    if store.keep_for_reuse(segment) {
        return Ok(());
    }
    remove(store, segment).await
}

async fn remove<D: Disk>(store: &Store<D>, segment: &Segment<D::File>) -> Result<(), EngineError> {
    store.disk.remove(&path(segment.id())).await?;
    store.disk.sync_dir(DIRECTORY).await?;
    Ok(())
}

/// Gives up this core's part of a segment that holds records of other cores, and the segment if theirs are given up
/// too.
///
/// Whether a slice still needs a segment is told by its manifest alone: its records are in tables up to the last one in
/// the segment, and no newest record of a table points there. Each core makes its own manifests say so first and reads
/// those of the others afterwards, so whoever is last sees that it is; after a crash the next opening looks again.
async fn release_part<D: Disk>(store: &Store<D>, segment: &Rc<Segment<D::File>>) -> Result<(), EngineError> {
    let id = segment.id();
    let last: Vec<_> = segment.last.borrow().iter().map(|(slice, last)| (*slice, *last)).collect();
    let mut needed = false;
    for (slice, last) in last {
        let is_free = |state: &manifest::State| state.flushed_sequence >= last && !state.live.contains_key(&id);
        let own = store.slice(slice).ok().map(|slice| is_free(&slice.manifest.borrow().state));
        let free = match own {
            Some(free) => free,
            None => manifest::peek(&*store.disk, slice).await?.is_some_and(|state| is_free(&state)),
        };
        needed |= !free;
    }
    roll::leave(store, id).await?;
    store.space_changed();
    store.values.forget_segment(id);
    // A core whose roll still names it gives its part up itself, and finds then that this one no longer does.
    if needed || roll::is_needed_by_others(store, id).await? {
        return Ok(());
    }
    match store.disk.remove(&path(id)).await {
        // Another core was as quick.
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    Ok(store.disk.sync_dir(DIRECTORY).await?)
}

/// Keeps collection in step with the writes of clients.
struct Pace<'a, D: Disk> {
    store: &'a Store<D>,
    /// Bytes that clients had written when the credit was last reckoned; and the credit: the bytes of segment that
    /// their writes have paid for and that have not been gone through yet.
    written: Cell<u64>,
    credit: Cell<f64>,
}
impl<'a, D: Disk> Pace<'a, D> {
    fn new(store: &'a Store<D>) -> Pace<'a, D> {
        let written = store.counters.user_bytes_written.get();
        Pace { store, written: Cell::new(written), credit: Cell::new(0.0) }
    }
    /// Waits until so many bytes of segment have been paid for.
    async fn spend(&self, bytes: u64) -> Result<(), EngineError> {
        self.credit.set(self.credit.get() - bytes as f64);
        self.store.log.landed.until(|| self.has_paid().then_some(())).await;
        self.store.check()
    }
    fn has_paid(&self) -> bool {
        let written = self.store.counters.user_bytes_written.get();
        let pressure = self.store.space_pressure();
        let paid = (written - self.written.replace(written)) as f64 * STRIDE * pressure.clamp(0.0, 1.0);
        self.credit.set((self.credit.get() + paid).min(BATCH_BYTES as f64));
        let paid = self.credit.get() >= 0.0 || pressure >= 1.0 || self.store.ending();
        self.store.pace_waits.set(self.store.pace_waits.get() || !paid);
        paid
    }
}

/// Reads the records of a segment, batch by batch, and as much of their values as there is reason to.
struct Walk<F> {
    segment: Rc<Segment<F>>,
    offset: u64,
    /// Bytes of the next read.
    ahead: u64,
    window: PageBuffer,
    window_start: u64,
}
impl<F: DiskFile> Walk<F> {
    fn new(segment: &Rc<Segment<F>>) -> Walk<F> {
        let offset = u64::from(segment.header.data_start);
        let window = PageBuffer::zeroed(0);
        Walk { segment: segment.clone(), offset, ahead: WHOLE_READ_BYTES, window, window_start: 0 }
    }
    fn ended(&self) -> bool {
        self.offset >= self.segment.end.get()
    }
    fn held(&self, range: &Range<u64>) -> Option<&[u8]> {
        let from = range.start.checked_sub(self.window_start)? as usize;
        self.window.as_slice().get(from..from.checked_add((range.end - range.start) as usize)?)
    }
    /// Makes the window hold a range of whole pages.
    async fn hold(&mut self, range: Range<u64>) -> Result<(), EngineError> {
        if self.held(&range).is_none() {
            let end = range.end.max(range.start + self.ahead).min(self.segment.end.get()).max(range.end);
            self.window = PageBuffer::zeroed(0);
            let bytes = (end - range.start) as usize;
            self.window = self.read(range.start, bytes).await?;
            self.window_start = range.start;
        }
        Ok(())
    }
    async fn read(&self, from: u64, bytes: usize) -> Result<PageBuffer, EngineError> {
        let read = self.segment.file.read(from, bytes, Lane::Background).await;
        read.map_err(|error| EngineError::unreadable(&path(self.segment.id()), from, &error))
    }
    /// The next batch: its records, verified, values not read.
    async fn next(&mut self) -> Result<(BatchHeader, Vec<LogRecord>), EngineError> {
        let (id, at, end) = (self.segment.id(), self.offset, self.segment.end.get());
        self.hold(at..at + PAGE as u64).await?;
        let first = self.held(&(at..at + PAGE as u64)).unwrap_or_default();
        let header = BatchHeader::peek(first, id, self.segment.header.epoch, at).filter(|h| at + h.padded() <= end);
        let Some(header) = header else { return Err(damaged(id, at)) };
        let area = at..at + u64::from(header.records_end).next_multiple_of(PAGE as u64);
        self.hold(area.clone()).await?;
        let records = self.held(&area).and_then(|area| decode_records(&header, area));
        self.offset = at + header.padded();
        let sparse = self.segment.dead_percent() >= 50 && header.padded() >= 4 * RECORDS_READ_BYTES;
        self.ahead = if sparse { RECORDS_READ_BYTES } else { WHOLE_READ_BYTES };
        Ok((header, records.ok_or_else(|| damaged(id, at))?))
    }
    /// Reads values of the batch in hand, neighbours together, and verifies them. In the order of their places.
    async fn values(&self, wanted: &[ValuePointer]) -> Result<Vec<Bytes>, EngineError> {
        let mut values = Vec::with_capacity(wanted.len());
        let mut read = stream::iter(together(wanted)).map(|some| self.neighbours(some)).buffered(READS);
        while let Some(some) = read.next().await {
            values.append(&mut some?);
        }
        Ok(values)
    }
    /// Values that are read at once.
    async fn neighbours(&self, wanted: &[ValuePointer]) -> Result<Vec<Bytes>, EngineError> {
        let range = pages_of(wanted);
        let read;
        let bytes = match self.held(&range) {
            Some(bytes) => bytes,
            None => {
                read = self.read(range.start, (range.end - range.start) as usize).await?;
                read.as_slice()
            }
        };
        let value = |pointer: &ValuePointer| {
            let from = (pointer.offset - range.start) as usize;
            let value = bytes.get(from..from + pointer.length as usize).unwrap_or_default();
            let whole = value_checksum(pointer.segment, pointer.offset, value) == pointer.checksum;
            whole.then(|| Bytes::copy_from_slice(value)).ok_or_else(|| damaged(pointer.segment, pointer.offset))
        };
        wanted.iter().map(value).collect()
    }
}

/// The pages that values lie in, from the first to the last.
fn pages_of(values: &[ValuePointer]) -> Range<u64> {
    let page = PAGE as u64;
    let start = values.first().map_or(0, |first| first.offset - first.offset % page);
    start..values.iter().map(|value| value.end().next_multiple_of(page)).max().unwrap_or(start)
}

/// Values in the order of their places, those together between which little lies.
fn together(mut wanted: &[ValuePointer]) -> Vec<&[ValuePointer]> {
    let mut groups = Vec::new();
    while !wanted.is_empty() {
        let mut near = 1;
        while let Some(next) = wanted.get(near) {
            let range = pages_of(&wanted[..near]);
            if next.offset > range.end + GAP_BYTES || next.end() - range.start > BATCH_BYTES as u64 {
                break;
            }
            near += 1;
        }
        let (group, rest) = wanted.split_at(near);
        groups.push(group);
        wanted = rest;
    }
    groups
}

fn damaged(segment: u64, at: u64) -> EngineError {
    EngineError::Damaged(format!("{} at {at}", path(segment)))
}

/// A live record of the segment, out of it.
struct Copied {
    write: Write,
    relocation: Relocation,
}

/// The next live records, a batch's worth of them or the last.
async fn gather<D: Disk>(
    store: &Store<D>,
    walk: &mut Walk<D::File>,
    pace: &Pace<'_, D>,
) -> Result<Vec<Copied>, EngineError> {
    let mut copies = Vec::new();
    let mut bytes = 0;
    while !walk.ended() && bytes < BATCH_BYTES {
        let (header, records) = walk.next().await?;
        pace.spend(header.padded()).await?;
        store.admission.segments.pay(header.padded() * walk.segment.dead_percent() / 100);
        store.room.wake();
        let live = live(store, records).await?;
        let wanted: Vec<_> = live.iter().flat_map(|(record, _)| pointers(&record.stored)).copied().collect();
        let mut values = walk.values(&wanted).await?.into_iter();
        for (record, relocation) in live {
            let Stored::Put { head, values: stored } = record.stored else { continue };
            let copied: Option<Values> = stored
                .into_iter()
                .map(|value| match value {
                    StoredValue::Inline(bytes) => Some(bytes),
                    StoredValue::Pointer(_) => values.next(),
                })
                .collect();
            let Some(copied) = copied else { continue };
            bytes += copied.iter().map(Bytes::len).sum::<usize>();
            let write = Write { slice: record.slice, key: record.key, change: Change::Put { head, values: copied } };
            copies.push(Copied { write, relocation });
        }
        store.disk.breathe().await;
    }
    Ok(copies)
}

/// The records of a batch that have large values and are still current, each with what must not have changed when its
/// copy is written.
async fn live<D: Disk>(store: &Store<D>, records: Vec<LogRecord>) -> Result<Vec<(LogRecord, Relocation)>, EngineError> {
    let mut live = Vec::new();
    let mut records = records.into_iter();
    let mut asked = FuturesOrdered::new();
    loop {
        while asked.len() < LOOKUPS
            && let Some(record) = records.next()
        {
            asked.push_back(async move {
                let Some(old) = pointers(&record.stored).next().copied() else { return Ok(None) };
                let relocation = current(store, record.slice, &record.key, old).await?;
                Ok::<_, EngineError>(relocation.map(|relocation| (record, relocation)))
            });
        }
        match asked.next().await {
            Some(found) => live.extend(found?),
            None => return Ok(live),
        }
    }
}

/// The condition under which a record may be written again: it is current, and this is how that was seen.
async fn current<D: Disk>(
    store: &Store<D>,
    slice: SliceId,
    key: &[u8],
    old: ValuePointer,
) -> Result<Option<Relocation>, EngineError> {
    // Other cores have records in a shared segment.
    let Ok(slice) = store.slice(slice) else { return Ok(None) };
    let (swaps, drops) = (slice.swaps.get(), slice.drops.borrow().version());
    let found = slice.lookup(key, &store.blocks).await?;
    let same = found.is_some_and(|(sequence, stored)| {
        pointers(&stored).next() == Some(&old) && !slice.hides(key, sequence, &stored)
    });
    Ok(same.then_some(Relocation { swaps, drops, old }))
}

/// Writes the copies, all at once, and waits until they are durable. A record that changed between look-up and batch is
/// looked up again: most are then no longer current.
async fn append<D: Disk>(store: &Store<D>, mut copies: Vec<Copied>) -> Result<(), EngineError> {
    while !copies.is_empty() {
        let inline_below = store.options.inline_value_bytes;
        let push = |copied: Copied| {
            let done = store.log.cold.push(
                vec![copied.write.clone()],
                Durability::Sync,
                Some(copied.relocation),
                inline_below,
            );
            (copied, done)
        };
        let asked: Vec<_> = copies.into_iter().map(push).collect();
        let mut stale = Vec::new();
        for (copied, done) in asked {
            if done.wait().await? == Done::Stale {
                stale.push(copied);
            }
        }
        copies = Vec::new();
        for copied in stale {
            let write = &copied.write;
            // A newer record on its way, or a drop, is seen by the look-up only when it has landed: until then nothing
            // would change.
            let awaited = || store.log.is_flying(write.slice, &write.key) || store.log.is_dropping(write.slice);
            let landed = || (store.has_failed() || !awaited()).then_some(());
            store.log.landed.until(landed).await;
            store.check()?;
            if let Some(relocation) = current(store, write.slice, &write.key, copied.relocation.old).await? {
                copies.push(Copied { relocation, ..copied });
            }
        }
    }
    Ok(())
}
