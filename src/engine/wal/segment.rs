//! One segment: a file of the log. Written once from front to back, then sealed; deleted whole when nothing in it is
//! needed any more.

use super::format::{LogRecord, Mark, SegmentHeader, mark_bytes};
use crate::{
    engine::{
        disk::{Disk, DiskFile, Lane, OpenMode, PageBuffer, Sync},
        error::EngineError,
    },
    limits::{MIB, PAGE},
    types::SliceId,
};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

/// The directory of all segments of a node.
pub const DIRECTORY: &str = "log";
/// The first segment of an opening grows by this much, so that a node with little data takes little space. Later ones
/// take all of theirs at once: each step is a sync that the log's writes wait for.
pub const STEP_BYTES: usize = 16 * MIB;

pub fn path(id: u64) -> String {
    format!("{DIRECTORY}/{id:016x}.seg")
}
/// The path under which a segment is made. It gets its proper name only when it is whole, so a file with a proper name
/// has been whole.
pub fn new_path(id: u64) -> String {
    format!("{}.new", path(id))
}
/// The segment id of the name of a file that was being made.
pub fn new_id_of(name: &str) -> Option<u64> {
    id_of(name.strip_suffix(".new")?)
}
/// The segment id of a file name in the log's directory; nothing for other files.
pub fn id_of(name: &str) -> Option<u64> {
    let stem = name.strip_suffix(".seg")?;
    (stem.len() == 16).then(|| u64::from_str_radix(stem, 16).ok()).flatten()
}

/// Segments that one core can name between two openings, records that it can number, and openings that a directory can
/// have. Each ends in an error a sixteenth before.
pub const SEGMENTS_OF_A_LIFE: u64 = 1 << 24;
pub const SEQUENCES_OF_A_LIFE: u64 = 1 << 40;
pub const GENERATIONS: u64 = 1 << 24;

/// Makes the id of a segment: greater for later openings, and never the same for two shards.
pub fn id_for(generation: u64, counter: u64, shard: u16) -> u64 {
    assert!(generation < GENERATIONS && counter < SEGMENTS_OF_A_LIFE, "counters are checked before they are used");
    generation << 40 | counter << 16 | u64::from(shard)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The segment takes batches.
    Active,
    /// The segment takes no more batches, and may hold records that are in no table yet.
    Sealed,
    /// The segment is sealed, all its records are in tables, and its mark says so: recovery skips it.
    Flushed,
}

pub struct Segment<F> {
    pub header: SegmentHeader,
    pub file: Rc<F>,
    /// Bytes that the file may grow to.
    pub capacity: u64,
    /// Bytes that the file has.
    pub allocated: Cell<u64>,
    /// The offset of the next batch, or of the end of the last one.
    pub end: Cell<u64>,
    /// Every batch that begins before is durable.
    pub durable: Cell<u64>,
    pub phase: Cell<Phase>,
    /// Whether some of it failed its checksum, or what is needed of it cannot be told: its file is kept as it is.
    pub damaged: Cell<bool>,
    /// Whether records of it are lost, and the slices concerned are known to be in doubt.
    pub loss_noted: Cell<bool>,
    /// Bytes of its values that memtables and tables point to.
    pub live: Cell<u64>,
    /// The number of its records that memtables hold. A crash needs them until they are in tables, or until newer ones
    /// of their keys are durable.
    pub in_memory: Cell<u64>,
    /// Bytes of all its large values, and of the records that they belong to.
    pub value_bytes: Cell<u64>,
    pub record_bytes: Cell<u64>,
    /// The greatest sequence of each slice that has records in it.
    pub last: RefCell<BTreeMap<SliceId, u64>>,
    /// The log's position at its end, once it is sealed.
    pub end_position: Cell<u64>,
    /// Whether it may hold records of slices that are not this core's.
    pub shared: bool,
    /// The fraction of the segment's slices that are this core's.
    pub share: f64,
    /// Whether it is being collected.
    pub in_hand: Cell<bool>,
    /// Whether this core's live records have been copied out of it; tables still point to the old ones then.
    pub copied: Cell<bool>,
}

/// Writes the header of a segment that has its space, and gives it its name, durably.
///
/// The pages for the mark are written too, as they read anyway. Reserved space between written space costs file systems
/// a piece of their own records: with the batches in flight, ext4 would need more pieces than the file's inode holds,
/// and a block more would be written for every batch.
async fn complete<D: Disk>(disk: &D, file: &D::File, header: &SegmentHeader) -> std::io::Result<()> {
    let mut pages = PageBuffer::zeroed(header.data_start as usize);
    header.encode(&mut pages.as_mut_slice()[..PAGE]);
    file.write(0, pages, Sync::None, Lane::Log).await.1?;
    file.sync().await?;
    disk.rename(&new_path(header.id), &path(header.id)).await?;
    disk.sync_dir(DIRECTORY).await
}

impl<F: DiskFile> Segment<F> {
    /// Makes the file: space reserved, header durable, name durable. A crash before leaves one of another name: a
    /// segment that is empty or has no header is always damage. `first_batch` bytes are sure to fit. The step is
    /// the header's, within the bounds of a segment.
    pub async fn create<D: Disk<File = F>>(
        disk: &D,
        mut header: SegmentHeader,
        segment_bytes: usize,
        first_batch: u64,
    ) -> Result<Segment<F>, EngineError> {
        header.data_start = (PAGE + mark_bytes(header.slices.len())) as u32;
        let step = (header.step as usize).min(segment_bytes).next_multiple_of(PAGE).max(PAGE);
        header.step = step as u32;
        let needed = u64::from(header.data_start) + first_batch;
        let capacity = (segment_bytes as u64).max(needed).next_multiple_of(step as u64);
        let allocated = needed.next_multiple_of(step as u64);
        let new = new_path(header.id);
        let file = disk.open(&new, OpenMode::Create).await?;
        let made = async {
            // Space first, durably: a header without it means that the file was cut.
            file.allocate(allocated).await?;
            file.sync().await?;
            complete(disk, &*file, &header).await
        };
        if let Err(error) = made.await {
            // No space: the file goes, so that it does not hold the little that there is. Whether that works changes
            // nothing: what is being made is removed at the next start.
            let _ = disk.remove(&new).await;
            return Err(error.into());
        }
        Ok(Segment::new(file, header, capacity, allocated))
    }
    /// Makes a segment of a file that has all its space, durably, and the name of one that is being made. If
    /// `first_batch` bytes do not fit, there is no space, and the file goes.
    pub async fn take_over<D: Disk<File = F>>(
        disk: &D,
        mut header: SegmentHeader,
        first_batch: u64,
    ) -> Result<Segment<F>, EngineError> {
        header.data_start = (PAGE + mark_bytes(header.slices.len())) as u32;
        let new = new_path(header.id);
        let file = disk.open(&new, OpenMode::Write).await?;
        let bytes = file.len()?;
        if bytes < u64::from(header.data_start) + first_batch || !bytes.is_multiple_of(PAGE as u64) {
            disk.remove(&new).await?;
            return Err(EngineError::Full);
        }
        header.step = bytes as u32;
        complete(disk, &*file, &header).await?;
        Ok(Segment::new(file, header, bytes, bytes))
    }
    /// Gives a file whose records are needed no more another life: a name of its own, durably, then the header,
    /// durably. A crash in between leaves a file whose header names another segment. Its space is written already, so a
    /// batch needs no change of the file system's own records to be durable.
    pub async fn reuse<D: Disk<File = F>>(
        disk: &D,
        old: &Segment<F>,
        mut header: SegmentHeader,
    ) -> Result<Segment<F>, EngineError> {
        header.data_start = (PAGE + mark_bytes(header.slices.len())) as u32;
        header.step = old.header.step;
        header.reused = true;
        disk.rename(&path(old.id()), &path(header.id)).await?;
        // From here on the old name is gone: an error leaves the directory in an unknown state.
        let failed = |e: std::io::Error| EngineError::Failed(format!("reusing a segment: {e}"));
        disk.sync_dir(DIRECTORY).await.map_err(failed)?;
        let mut page = PageBuffer::zeroed(PAGE);
        header.encode(page.as_mut_slice());
        old.file.write(0, page, Sync::Data, Lane::Log).await.1.map_err(failed)?;
        Ok(Segment::new(old.file.clone(), header, old.capacity, old.allocated.get()))
    }
    fn new(file: Rc<F>, header: SegmentHeader, capacity: u64, allocated: u64) -> Segment<F> {
        let start = u64::from(header.data_start);
        Segment {
            file,
            capacity,
            allocated: Cell::new(allocated),
            end: Cell::new(start),
            durable: Cell::new(start),
            phase: Cell::new(Phase::Active),
            damaged: Cell::new(false),
            loss_noted: Cell::new(false),
            live: Cell::new(0),
            in_memory: Cell::new(0),
            value_bytes: Cell::new(0),
            record_bytes: Cell::new(0),
            last: RefCell::default(),
            end_position: Cell::new(0),
            shared: false,
            share: 1.0,
            in_hand: Cell::new(false),
            copied: Cell::new(false),
            header,
        }
    }
    pub fn id(&self) -> u64 {
        self.header.id
    }
    /// Lets the file grow by a step of space, or by as many steps as `needed` bytes of file ask for.
    pub async fn grow(&self, needed: u64) -> Result<(), EngineError> {
        let step = u64::from(self.header.step);
        let target = needed.max(self.allocated.get() + step).next_multiple_of(step).min(self.capacity);
        if target > self.allocated.get() {
            self.file.allocate(target).await?;
            self.file.sync().await.map_err(|e| EngineError::Failed(e.to_string()))?;
            self.allocated.set(target);
        }
        Ok(())
    }
    /// Remembers what a record in it adds.
    pub fn note(&self, record: &LogRecord) {
        let mut last = self.last.borrow_mut();
        let known = last.entry(record.slice).or_insert(record.sequence);
        *known = (*known).max(record.sequence);
        let (values, records) = record.weight();
        self.value_bytes.set(self.value_bytes.get() + values);
        self.record_bytes.set(self.record_bytes.get() + records);
    }
    /// Writes durably that all its records are in tables.
    pub async fn write_mark(&self) -> Result<(), EngineError> {
        let last: Vec<_> = self.last.borrow().iter().map(|(slice, last)| (*slice, *last)).collect();
        let mark = Mark {
            id: self.id(),
            epoch: self.header.epoch,
            end: self.end.get(),
            value_bytes: self.value_bytes.get(),
            record_bytes: self.record_bytes.get(),
            last,
            partial: self.shared,
        };
        let mut buffer = PageBuffer::zeroed(mark_bytes(mark.last.len()));
        mark.encode(buffer.as_mut_slice());
        self.file.write(PAGE as u64, buffer, Sync::Data, Lane::Background).await.1?;
        self.phase.set(Phase::Flushed);
        Ok(())
    }
    /// Bytes of what was written that would be free if the live records were packed elsewhere.
    pub fn dead_bytes(&self) -> u64 {
        self.own_bytes(self.end.get()).saturating_sub(self.packed_bytes())
    }
    /// Bytes that its live records would take elsewhere, with as much padding as here.
    pub fn packed_bytes(&self) -> u64 {
        let used = self.end.get() - u64::from(self.header.data_start);
        let packed = u128::from(used) * u128::from(self.live.get());
        packed.div_ceil(u128::from(self.value_bytes.get().max(1))).min(u128::from(used)) as u64
    }
    /// Share of the file that would be free if its live records were packed elsewhere, in percent. Counts dead values,
    /// records whose values are small and thus in tables, padding, and what was never used.
    pub fn dead_percent(&self) -> u64 {
        100 - (self.packed_bytes() * 100 / self.own_bytes(self.allocated.get()).max(1)).min(100)
    }
    /// Bytes of `bytes` that count as this core's, by its share of the slices.
    pub fn own_bytes(&self, bytes: u64) -> u64 {
        (bytes as f64 * self.share) as u64
    }
    /// Share of its large values that is dead, in percent.
    pub fn dead_values_percent(&self) -> u64 {
        100 - (self.live.get() * 100 / self.own_bytes(self.value_bytes.get()).max(1)).min(100)
    }
    /// Notes that `records` of its records are in memory no more.
    pub fn forget_records(&self, records: u64) {
        self.in_memory.set(self.in_memory.get().saturating_sub(records));
    }
    pub fn add_live(&self, bytes: u64) {
        self.live.set(self.live.get() + bytes);
    }
    pub fn remove_live(&self, bytes: u64) {
        self.live.set(self.live.get().saturating_sub(bytes));
    }
}
