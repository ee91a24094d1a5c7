//! Collection of segments: those that are mostly dead give their live records to the log's end and are removed.
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
    types::{Change, Stored, StoredValue, ValuePointer, Values, Write},
    wal::{
        format::LogRecord,
        log::{Done, Relocation},
        reader::{BatchReader, Found},
        segment::{DIRECTORY, Phase, Segment, path},
    },
};
use std::rc::Rc;

/// Collects whenever some segment is worth it, until the engine ends.
pub async fn run<D: Disk>(store: Rc<Store<D>>) {
    loop {
        let next = store.work.until(|| if store.ending() { Some(None) } else { choose(&store).map(Some) }).await;
        let Some(segment) = next else { break };
        match collect(&store, &segment).await {
            Ok(()) => {
                count(&store.counters.collections, 1);
                // There is space again for what waits for it.
                store.flush_blocked.set(false);
                store.look_at_space();
            }
            Err(EngineError::Full) => store.flush_blocked.set(true),
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

/// The segment with the greatest dead share, if that is worth it.
fn choose<D: Disk>(store: &Store<D>) -> Option<Rc<Segment<D::File>>> {
    let segments = store.segments.borrow();
    let ready = segments.values().filter(|s| s.phase.get() == Phase::Flushed && !s.shared && !s.damaged.get());
    // Without space only what needs no copies.
    let full = store.flush_blocked.get();
    let threshold = store.options.segment_dead_percent;
    let worth = ready.filter(|s| s.live.get() == 0 || (!full && s.dead_percent() >= threshold));
    worth.max_by_key(|s| s.dead_percent()).cloned()
}

async fn collect<D: Disk>(store: &Store<D>, segment: &Rc<Segment<D::File>>) -> Result<(), EngineError> {
    if segment.live.get() > 0 {
        let header = &segment.header;
        let (start, end) = (u64::from(header.data_start), segment.end.get());
        let mut reader =
            BatchReader::new(segment.file.clone(), header.id, header.epoch, start, end, Lane::Background);
        loop {
            store.check()?;
            match reader.next().await? {
                Found::Batch(_, records) => relocate_all(store, &mut reader, records).await?,
                Found::Damage { from, to } => {
                    let file = path(segment.id());
                    return Err(EngineError::Damaged(format!("{file}: bytes {from} to {to}")));
                }
                Found::End { .. } => break,
            }
            store.disk.breathe().await;
        }
    }
    store.segments.borrow_mut().remove(&segment.id());
    store.values.forget_segment(segment.id());
    store.disk.remove(&path(segment.id())).await?;
    store.disk.sync_dir(DIRECTORY).await?;
    Ok(())
}

/// Copies the records of a batch that are current, all at once, and waits until the copies are durable.
async fn relocate_all<D: Disk>(
    store: &Store<D>,
    reader: &mut BatchReader<D::File>,
    records: Vec<LogRecord>,
) -> Result<(), EngineError> {
    let mut waiting: Vec<(LogRecord, ValuePointer)> = records
        .into_iter()
        .filter_map(|record| {
            let first = pointers(&record.stored).next().copied()?;
            Some((record, first))
        })
        .collect();
    // A record that changed between look-up and batch is looked up again: most are then no longer current.
    while !waiting.is_empty() {
        let mut asked = Vec::new();
        for (record, old) in waiting {
            // A record of no slice of this core cannot be here: the segment is not shared.
            let slice = store.slice(record.slice)?;
            let swaps = slice.swaps.get();
            let current = slice.lookup(&record.key, &store.blocks).await?;
            let same = current.is_some_and(|(_, stored)| pointers(&stored).next() == Some(&old));
            if !same {
                continue;
            }
            let write = copy_of(reader, &record)?;
            let relocation = Some(Relocation { swaps, old });
            let done = store.log.push(vec![write], relocation, store.options.inline_value_bytes);
            asked.push((record, old, done));
        }
        waiting = Vec::new();
        for (record, old, done) in asked {
            if done.wait().await? == Done::Stale {
                waiting.push((record, old));
            }
        }
    }
    Ok(())
}

/// The record as it is to be written again, its values from the batch that has just been read and verified.
fn copy_of<F: super::disk::DiskFile>(reader: &BatchReader<F>, record: &LogRecord) -> Result<Write, EngineError> {
    let Stored::Put { head, values } = &record.stored else {
        return Err(EngineError::Damaged("a delete record has values".into()));
    };
    let mut copies = Values::new();
    for value in values {
        copies.push(match value {
            StoredValue::Inline(bytes) => bytes.clone(),
            StoredValue::Pointer(pointer) => reader.value(pointer).ok_or_else(|| {
                EngineError::Damaged(format!("value at {} of segment {:016x}", pointer.offset, pointer.segment))
            })?,
        });
    }
    let change = Change::Put { head: head.clone(), values: copies };
    Ok(Write { slice: record.slice, key: record.key.clone(), change })
}
