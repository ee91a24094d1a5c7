//! Prints and verifies the engine's files. Reads only.

use super::{
    disk::{Disk, DiskFile, Lane, OpenMode},
    error::EngineError,
    manifest,
    table::ASIDE,
    types::{Stored, StoredValue},
    wal::{
        format::{LogRecord, Mark, SegmentHeader, mark_bytes},
        reader::{BatchReader, Found},
    },
};
use crate::limits::PAGE;

/// The result of an inspection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Verified {
    pub records: u64,
    /// Bytes whose checksums hold.
    pub bytes: u64,
    /// Places that failed their checksums.
    pub damaged: u64,
}

/// A segment of the log: its header, its mark, every batch and record.
pub async fn wal<D: Disk>(disk: &D, path: &str, print: &mut impl FnMut(String)) -> Result<Verified, EngineError> {
    let file = disk.open(path, OpenMode::Read).await?;
    let length = file.len()?;
    let damaged = |what: &str| EngineError::Damaged(format!("{path}: {what}"));
    if length < PAGE as u64 {
        return Err(damaged("it is shorter than a header"));
    }
    let first = file.read(0, PAGE, Lane::Background).await?;
    let header = SegmentHeader::decode(first.as_slice(), path)?.ok_or_else(|| damaged("it has no whole header"))?;
    print(format!(
        "segment {:016x}  shard {}  generation {}  epoch {:016x}  first sequence {}  slices {}  file {length} bytes",
        header.id,
        header.shard,
        header.generation,
        header.epoch,
        header.first_sequence,
        header.slices.len(),
    ));
    let mark_pages = mark_bytes(header.slices.len());
    if length >= (PAGE + mark_pages) as u64 {
        let bytes = file.read(PAGE as u64, mark_pages, Lane::Background).await?;
        match Mark::decode(bytes.as_slice(), &header) {
            Some(mark) => print(format!("flushed: batches end at {}, {} slices", mark.end, mark.last.len())),
            None => print("not marked as flushed".into()),
        }
    }
    let mut verified = Verified::default();
    if length % u64::from(header.step) != 0 {
        verified.damaged += 1;
        print(format!("DAMAGED: {length} bytes are no whole number of steps of {}", header.step));
    }
    let start = u64::from(header.data_start);
    let mut reader = BatchReader::new(file, &header, start, length, Lane::Background);
    loop {
        let found = match reader.next().await {
            Found::Spoiled(batch, records, lost) => {
                verified.damaged += lost.len() as u64;
                for range in lost {
                    print(format!("DAMAGED: the value at {} to {}", range.start, range.end));
                }
                Found::Batch(batch, records)
            }
            found => found,
        };
        match found {
            Found::Batch(batch, records) => {
                print(format!(
                    "batch at {}  {} bytes  {} records from sequence {}  durable before {}",
                    batch.offset, batch.length, batch.count, batch.first_sequence, batch.durable
                ));
                verified.records += records.len() as u64;
                verified.bytes += u64::from(batch.length);
                records.iter().for_each(|record| print(format!("  {}", describe(record))));
            }
            Found::Damage { from, to } => {
                verified.damaged += 1;
                print(format!("DAMAGED: bytes {from} to {to}"));
            }
            Found::End { at } => {
                print(format!("end at {at}"));
                return Ok(verified);
            }
            Found::Spoiled(..) => {}
        }
        disk.breathe().await;
    }
}

fn describe(record: &LogRecord) -> String {
    let key = record.key.escape_ascii();
    let (slice, sequence) = (record.slice.0, record.sequence);
    match &record.stored {
        Stored::Delete => format!("{sequence}  slice {slice}  delete \"{key}\""),
        Stored::Put { head, values } => {
            let values: Vec<String> = values
                .iter()
                .map(|value| match value {
                    StoredValue::Inline(bytes) => format!("{} inline", bytes.len()),
                    StoredValue::Pointer(p) => format!("{} at {} crc {:08x}", p.length, p.offset, p.checksum),
                })
                .collect();
            format!("{sequence}  slice {slice}  put \"{key}\"  head {}  values [{}]", head.len(), values.join(", "))
        }
    }
}

/// A slice's manifest: every record, then the tables as they stand.
pub async fn manifest<D: Disk>(disk: &D, path: &str, print: &mut impl FnMut(String)) -> Result<Verified, EngineError> {
    let (slice, reading) = manifest::read(disk, path).await?;
    let mut verified = Verified::default();
    print(format!("manifest of slice {}", slice.0));
    for record in &reading.records {
        let kind = if record.snapshot { "snapshot" } else { "change" };
        let mended = if record.mended { "  (one copy damaged)" } else { "" };
        print(format!(
            "{kind} {} at {}: {} tables added, {} removed, flushed sequence {}{mended}",
            record.index,
            record.offset,
            record.change.added.len(),
            record.change.removed.len(),
            record.change.flushed_sequence,
        ));
        verified.records += 1;
        verified.damaged += u64::from(record.mended);
    }
    if reading.torn {
        print("torn at the end: that record was never acknowledged".into());
    }
    for table in reading.state.tables.values() {
        print(format!(
            "table {:016x}  {}  {} bytes  {} records ({} deletes)  \"{}\" .. \"{}\"",
            table.id,
            if table.level == ASIDE {
                "SET ASIDE: these keys are in doubt".into()
            } else {
                format!("level {}", table.level)
            },
            table.bytes,
            table.entries,
            table.deletes,
            table.smallest.escape_ascii(),
            table.largest.escape_ascii(),
        ));
        verified.bytes += table.bytes;
    }
    for (segment, bytes) in &reading.state.live {
        print(format!("segment {segment:016x}  {bytes} bytes in use"));
    }
    Ok(verified)
}
