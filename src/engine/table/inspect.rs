//! Reads a whole table, verifies everything in it and tells what is there: `dynarc inspect` of a table.

use super::{
    block::Block,
    filter,
    footer::Footer,
    reader::{Parts, damaged, read_parts},
    section::{self, Flaw, Kind, Place},
};
use crate::{
    engine::{
        disk::{Disk, DiskFile, Lane, OpenMode},
        error::EngineError,
    },
    limits::PAGE,
};

/// Prints a table's footer and blocks and verifies every checksum, the order of the keys, the counts, and that the
/// filter knows every key. `path` is relative to the data directory: the slice and the id must be its own. Gives the
/// number of records.
pub async fn table<D: Disk>(disk: &D, path: &str, out: &mut impl FnMut(String)) -> Result<u64, EngineError> {
    let wrong = |offset: u64, what: &str| EngineError::Damaged(format!("{path} at {offset}: {what}"));
    let file = disk.open(path, OpenMode::Read).await?;
    let bytes = file.len()?;
    let footer_at = bytes.checked_sub(PAGE as u64).filter(|at| at.is_multiple_of(PAGE as u64));
    let footer_at = footer_at.ok_or_else(|| wrong(bytes, "a wrong file length"))?;
    let page = file.read(footer_at, PAGE, Lane::Background).await?;
    let (slice, id) = Footer::claims(page.as_slice()).map_err(|flaw| wrong(footer_at, flaw.0))?;
    if super::path(slice, id) != path {
        return Err(wrong(footer_at, "a file of another slice or table"));
    }
    let parts = read_parts(disk, slice, id).await?;
    describe(&parts, out);
    let mut seen = Seen::default();
    for block in 0..parts.index.blocks() {
        let flaw = |flaw| damaged(slice, id, parts.index.range(block).start, flaw);
        let range = parts.index.range(block);
        let pages = parts.file.read(range.start, (range.end - range.start) as usize, Lane::Background).await?;
        let place = Place { slice, table: id, offset: range.start };
        let section = section::open(pages.as_slice(), Kind::Records, place).map_err(flaw)?;
        let line = Block::new(section).and_then(|read| seen.block(&parts, block, read)).map_err(flaw)?;
        out(format!("block {block} at {}: {} bytes, {line}", range.start, section.body.len()));
        disk.breathe().await;
    }
    seen.compare(&parts.footer).map_err(|flaw| damaged(slice, id, footer_at, flaw))?;
    out(format!("{} records, every checksum holds", seen.records));
    Ok(seen.records)
}

fn describe<F>(parts: &Parts<F>, out: &mut impl FnMut(String)) {
    let (footer, meta) = (&parts.footer, &parts.footer.meta);
    out(format!("table {:016x} of slice {:04x}, format {}", meta.id, meta.slice.0, super::FORMAT));
    out(format!("written for level {}, {} bytes, highest sequence {}", meta.level, meta.bytes, meta.max_sequence));
    out(format!("{} records, {} of them deletes", meta.entries, meta.deletes));
    out(format!("{} bytes of values in the log", meta.value_bytes));
    out(format!("first key {}", meta.smallest.escape_ascii()));
    out(format!("last key {}", meta.largest.escape_ascii()));
    out(format!("{} blocks, index at {}, filter at {}", footer.blocks, footer.index().start, footer.filter().start));
    out(format!("in memory: index {} bytes, filter {} bytes", parts.index.memory_bytes(), parts.filter.memory_bytes()));
}

/// The sums over the records of the blocks so far.
#[derive(Default)]
struct Seen {
    records: u64,
    deletes: u64,
    max_sequence: u64,
    value_bytes: u64,
    first_key: Vec<u8>,
    last_key: Vec<u8>,
}
impl Seen {
    /// Checks the records of a block and gives a line about them.
    fn block<F>(&mut self, parts: &Parts<F>, number: u32, block: Block<'_>) -> Result<String, Flaw> {
        for index in 0..block.count() {
            let record = block.record(index)?;
            if self.records > 0 && record.key <= &self.last_key[..] {
                return Err(Flaw("keys out of order"));
            }
            if parts.index.block_of(record.key) != number {
                return Err(Flaw("the index does not lead to a key"));
            }
            if !parts.filter.may_hold(filter::hash(record.key)) {
                return Err(Flaw("the filter does not know a key"));
            }
            record.stored()?;
            record.pointers(|pointer| self.value_bytes += u64::from(pointer.length))?;
            if self.records == 0 {
                self.first_key = record.key.to_vec();
            }
            self.last_key.clear();
            self.last_key.extend_from_slice(record.key);
            self.records += 1;
            self.deletes += u64::from(record.is_delete());
            self.max_sequence = self.max_sequence.max(record.sequence);
        }
        let first = block.record(0)?.key.escape_ascii();
        Ok(format!("{} records, {first} to {}", block.count(), self.last_key.escape_ascii()))
    }
    fn compare(&self, footer: &Footer) -> Result<(), Flaw> {
        let meta = &footer.meta;
        let same = self.records == meta.entries
            && self.deletes == meta.deletes
            && self.max_sequence == meta.max_sequence
            && self.value_bytes == meta.value_bytes
            && self.first_key == meta.smallest
            && self.last_key == meta.largest;
        if same { Ok(()) } else { Err(Flaw("the records are not those that the footer counts")) }
    }
}
