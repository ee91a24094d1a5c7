//! Collection of segments: those that are mostly dead give their live records to the log's cold head and are removed.
//!
//! A segment is collected only when it is sealed, all of its records are in tables, and no other core has records in
//! it. Its records are read in order; each that is still current is appended again as a fresh record, on the condition
//! that it is still current when its batch is sealed. Once the last copy is durable nothing that a read can find points
//! into the segment any more: pointers that older tables still hold are hidden behind the copies. A read that looked up
//! its record before meets a missing segment and looks it up again.
//!
//! A segment with a damaged place is never collected: what cannot be read cannot be copied.

use super::{
    disk::{Disk, Lane},
    error::EngineError,
    memtable::pointers,
    store::{Store, count},
    types::{Change, Durability, Stored, StoredValue, ValuePointer, Values, Write},
    wal::{
        format::LogRecord,
        log::{Done, Relocation},
        reader::{BatchReader, Found},
        segment::{DIRECTORY, Phase, Segment, path},
    },
};
use crate::{limits::BATCH_BYTES, types::SliceId};
use std::rc::Rc;

/// Collects whenever some segment is worth it, until the engine ends.
pub async fn run<D: Disk>(store: Rc<Store<D>>) {
    loop {
        let next = store.work.until(|| if store.ending() { Some(None) } else { choose(&store).map(Some) }).await;
        let Some(chore) = next else { break };
        let segment = match &chore {
            Chore::Collect(segment) | Chore::GiveBack(segment) => segment.clone(),
        };
        let result = match chore {
            Chore::Collect(segment) => {
                collect(&store, &segment).await.inspect(|()| count(&store.counters.collections, 1))
            }
            Chore::GiveBack(segment) => remove(&store, &segment).await,
        };
        match result {
            Ok(()) => {
                // There is space again for what waits for it.
                store.flush_blocked.set(false);
                store.copies_blocked.set(false);
                store.look_at_space();
            }
            Err(EngineError::Full) => store.copies_blocked.set(true),
            Err(EngineError::Damaged(_)) => {
                count(&store.counters.damaged_reads, 1);
                segment.damaged.set(true);
            }
            Err(_) if store.ending() => break,
            Err(error) => store.fail(&error),
        }
        store.work.wake();
    }
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
    let segments = store.segments.borrow();
    let ready = segments.values().filter(|s| s.phase.get() == Phase::Flushed && !s.shared && !s.damaged.get());
    // Without space only what needs no copies.
    let full = store.copies_blocked.get();
    let threshold = store.options.segment_dead_percent;
    let threshold = if store.read_only.get() { threshold / 2 } else { threshold };
    let worth = ready.filter(|s| s.live.get() == 0 || (!full && s.dead_percent() >= threshold));
    worth.max_by_key(|s| s.dead_percent()).cloned().map(Chore::Collect)
}

async fn collect<D: Disk>(store: &Store<D>, segment: &Rc<Segment<D::File>>) -> Result<(), EngineError> {
    if segment.live.get() > 0 {
        let header = &segment.header;
        let (start, end) = (u64::from(header.data_start), segment.end.get());
        let mut reader = BatchReader::new(segment.file.clone(), header, start, end, Lane::Background);
        let mut copies = Vec::new();
        loop {
            store.check()?;
            match reader.next().await? {
                Found::Batch(_, records) => {
                    for record in records {
                        copies.extend(copy_of(store, &reader, record).await?);
                    }
                }
                Found::Damage { from, to } => {
                    let file = path(segment.id());
                    return Err(EngineError::Damaged(format!("{file}: bytes {from} to {to}")));
                }
                Found::End { .. } => break,
            }
            // Many at once, so that they lie close together at their new place.
            if copies.iter().map(|c: &Copied| c.bytes).sum::<usize>() >= BATCH_BYTES {
                append(store, std::mem::take(&mut copies)).await?;
            }
            store.disk.breathe().await;
        }
        append(store, copies).await?;
    }
    store.segments.borrow_mut().remove(&segment.id());
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

/// A live record of the segment, out of it.
struct Copied {
    write: Write,
    relocation: Relocation,
    bytes: usize,
}

/// The condition under which a record may be written again: it is current, and this is how that was seen.
async fn current<D: Disk>(
    store: &Store<D>,
    slice: SliceId,
    key: &[u8],
    old: ValuePointer,
) -> Result<Option<Relocation>, EngineError> {
    // A record of no slice of this core cannot be here: the segment is not shared.
    let slice = store.slice(slice)?;
    let swaps = slice.swaps.get();
    let found = slice.lookup(key, &store.blocks).await?;
    let same = found.is_some_and(|(_, stored)| pointers(&stored).next() == Some(&old));
    Ok(same.then_some(Relocation { swaps, old }))
}

/// The record as it is to be written again, its values from the batch that has just been read and verified. Nothing
/// when it has no large values or is not current.
async fn copy_of<D: Disk>(
    store: &Store<D>,
    reader: &BatchReader<D::File>,
    record: LogRecord,
) -> Result<Option<Copied>, EngineError> {
    let Some(old) = pointers(&record.stored).next().copied() else { return Ok(None) };
    let Some(relocation) = current(store, record.slice, &record.key, old).await? else { return Ok(None) };
    let Stored::Put { head, values } = record.stored else { return Ok(None) };
    let mut copies = Values::new();
    for value in values {
        copies.push(match value {
            StoredValue::Inline(bytes) => bytes,
            StoredValue::Pointer(pointer) => reader.value(&pointer).ok_or_else(|| {
                EngineError::Damaged(format!("value at {} of segment {:016x}", pointer.offset, pointer.segment))
            })?,
        });
    }
    let bytes = copies.iter().map(|c| c.len()).sum();
    let write = Write { slice: record.slice, key: record.key, change: Change::Put { head, values: copies } };
    Ok(Some(Copied { write, relocation, bytes }))
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
            // A newer record on its way is seen by the look-up only when it has landed: until then nothing would change.
            let landed = || (store.has_failed() || !store.log.is_flying(write.slice, &write.key)).then_some(());
            store.log.landed.until(landed).await;
            store.check()?;
            if let Some(relocation) = current(store, write.slice, &write.key, copied.relocation.old).await? {
                copies.push(Copied { relocation, ..copied });
            }
        }
    }
    Ok(())
}
