//! Which tables a slice has, up to which sequence its records are in them, and how many bytes of each segment they
//! point to.
//!
//! A file of fixed length that is appended to, one record a change, first a snapshot. Each record is written twice in
//! one write: a flipped bit in one copy costs nothing, and a cut file is known from its length. When it is full, a new
//! one is written, synced and renamed over it. The byte ruler is in `schema/manifest.md`.
//!
//! A torn record at the end was never acknowledged: the tables that it would have named are not used.

use super::{
    disk::{Disk, DiskFile, Lane, OpenMode, PageBuffer, Sync},
    error::EngineError,
    table::{self, TableMeta},
    types::ENGINE_KEY_BYTES_MAX,
    wal::format::{pages, u16_at, u32_at, u64_at},
};
use crate::{
    limits::{MIB, PAGE},
    types::SliceId,
};
use bytes::Bytes;
use std::{collections::BTreeMap, rc::Rc};

/// Format number of manifests.
pub const FORMAT: u32 = 2;
const MAGIC: &[u8; 4] = b"DYNM";
const HEADER_BYTES: usize = 40;
/// Pages for changes after the snapshot.
const CHANGE_PAGES: usize = 24;
/// A manifest longer than this is not one of ours.
const BYTES_MAX: u64 = 64 * MIB as u64;
const KIND_SNAPSHOT: u8 = 1;
const KIND_CHANGE: u8 = 2;

pub fn path(slice: SliceId) -> String {
    format!("{}/MANIFEST", table::directory(slice))
}
fn new_path(slice: SliceId) -> String {
    format!("{}/MANIFEST.new", table::directory(slice))
}

/// The state of a slice that its manifest gives, with all changes applied.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct State {
    pub tables: BTreeMap<u64, TableMeta>,
    /// Every record of the slice with this sequence or a smaller one is in a table, or was superseded.
    pub flushed_sequence: u64,
    /// No table of the slice ever had this id or a greater one.
    pub next_table: u64,
    /// Bytes of values that the newest records of the slice's tables point to, for each segment.
    pub live: BTreeMap<u64, u64>,
}

/// A change of the state, made durable by one record of the manifest.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Change {
    pub added: Vec<TableMeta>,
    pub removed: Vec<u64>,
    /// 0: as before.
    pub flushed_sequence: u64,
    pub next_table: u64,
    /// Bytes of a segment that tables point to from now on.
    pub gained: BTreeMap<u64, u64>,
    /// Bytes of a segment that the newest records of tables no longer point to.
    pub lost: BTreeMap<u64, u64>,
}

impl State {
    pub fn apply(&mut self, change: &Change) {
        for id in &change.removed {
            self.tables.remove(id);
        }
        for table in &change.added {
            self.tables.insert(table.id, table.clone());
        }
        self.flushed_sequence = self.flushed_sequence.max(change.flushed_sequence);
        self.next_table = self.next_table.max(change.next_table);
        for (segment, bytes) in &change.gained {
            *self.live.entry(*segment).or_default() += bytes;
        }
        for (segment, bytes) in &change.lost {
            if let Some(live) = self.live.get_mut(segment) {
                *live = live.saturating_sub(*bytes);
            }
        }
        self.live.retain(|_, bytes| *bytes > 0);
    }
    fn as_change(&self) -> Change {
        Change {
            added: self.tables.values().cloned().collect(),
            removed: Vec::new(),
            flushed_sequence: self.flushed_sequence,
            next_table: self.next_table,
            gained: self.live.clone(),
            lost: BTreeMap::new(),
        }
    }
}

/// The open manifest of a slice. A slice without tables has no file yet.
pub struct Manifest<D: Disk> {
    slice: SliceId,
    pub state: State,
    file: Option<Rc<D::File>>,
    /// The offset in the file at which the next record is written.
    offset: u64,
    capacity: u64,
    /// Number of the next record; goes on when the file is rewritten.
    index: u64,
    /// Its end is torn, or a copy is damaged: it is rewritten before anything is appended.
    torn: bool,
    /// The offset of a record of which one copy was damaged and the other whole, if that cannot be the torn end of an
    /// append.
    pub mended: Option<u64>,
}

/// The bytes that an append will write, and where. They are made from a borrowed manifest beforehand, so that none is
/// borrowed while they are written.
pub struct Append<D: Disk> {
    slice: SliceId,
    file: Option<Rc<D::File>>,
    offset: u64,
    capacity: u64,
    index: u64,
    buffer: PageBuffer,
    state: State,
}

impl<D: Disk> Manifest<D> {
    pub fn empty(slice: SliceId) -> Manifest<D> {
        Manifest {
            slice,
            state: State::default(),
            file: None,
            offset: 0,
            capacity: 0,
            index: 0,
            torn: false,
            mended: None,
        }
    }
    /// The number of records so far, over all files that the manifest has had: it only ever grows.
    pub fn index(&self) -> u64 {
        self.index
    }
    pub fn exists(&self) -> bool {
        self.file.is_some()
    }
    /// Reads the manifest and makes sure that what was read is durable. The slice's directory has one.
    pub async fn load(disk: &D, slice: SliceId) -> Result<Manifest<D>, EngineError> {
        let path = path(slice);
        let file = disk.open(&path, OpenMode::Write).await?;
        let bytes = read_whole(&*file, &path).await?;
        let read = Reading::of(bytes.as_slice(), slice, &path)?;
        let mended = read.mended();
        // What this start builds on must not vanish at the next power cut: it may have been written but never synced.
        file.sync().await?;
        Ok(Manifest {
            slice,
            state: read.state,
            file: Some(file),
            offset: read.end,
            capacity: bytes.len() as u64,
            index: read.next_index,
            // What has one whole copy left is written anew with the next change.
            torn: read.torn || read.records.iter().any(|record| record.mended),
            mended,
        })
    }
    /// Plans the write for a change: an append, or a new file when the present one is full. Only one plan may be under
    /// way, and [`Manifest::adopt`] follows it.
    pub fn plan(&self, change: &Change) -> Append<D> {
        let mut state = self.state.clone();
        state.apply(change);
        let record = encode(self.slice, KIND_CHANGE, self.index, 0, change);
        if !self.torn && self.offset + record.len() as u64 <= self.capacity {
            return Append {
                slice: self.slice,
                file: self.file.clone(),
                offset: self.offset,
                capacity: self.capacity,
                index: self.index,
                buffer: record,
                state,
            };
        }
        let whole = state.as_change();
        let length = encode(self.slice, KIND_SNAPSHOT, self.index, 0, &whole).len();
        let capacity = (length + CHANGE_PAGES * PAGE) as u64;
        let buffer = encode(self.slice, KIND_SNAPSHOT, self.index, capacity, &whole);
        Append { slice: self.slice, file: None, offset: 0, capacity, index: self.index, buffer, state }
    }
    /// Makes the state that a finished append has written the current one.
    pub fn adopt(&mut self, written: Append<D>, bytes: u64) {
        self.state = written.state;
        self.file = written.file;
        self.offset = written.offset + bytes;
        self.capacity = written.capacity;
        self.index = written.index + 1;
        (self.torn, self.mended) = (false, None);
    }
}

impl<D: Disk> Append<D> {
    /// Fails if the file would be longer than an opening would read: then nothing is written.
    fn check(&self) -> Result<(), EngineError> {
        if self.capacity <= BYTES_MAX {
            return Ok(());
        }
        let (file, bytes) = (path(self.slice), self.capacity);
        Err(EngineError::Failed(format!(
            "{file} would be {bytes} bytes long, and {BYTES_MAX} are the most: the slice has too many tables"
        )))
    }
    /// Writes it durably. Gives itself back with the bytes written. `Full` only if nothing has changed; any other error
    /// leaves the manifest in an unknown state.
    pub async fn write(mut self, disk: &D) -> Result<(Append<D>, u64), EngineError> {
        self.check()?;
        let bytes = self.buffer.len() as u64;
        let failed = |e: std::io::Error| EngineError::Failed(format!("writing a manifest: {e}"));
        let buffer = std::mem::replace(&mut self.buffer, PageBuffer::zeroed(0));
        if let Some(file) = &self.file {
            file.write(self.offset, buffer, Sync::Data, Lane::Background).await.1.map_err(failed)?;
            return Ok((self, bytes));
        }
        let new = new_path(self.slice);
        // One may be left over from a crash, or from when there was no space.
        match disk.remove(&new).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let file = disk.open(&new, OpenMode::Create).await?;
        file.allocate(self.capacity).await?;
        file.write(0, buffer, Sync::None, Lane::Background).await.1?;
        file.sync().await?;
        disk.rename(&new, &path(self.slice)).await.map_err(failed)?;
        disk.sync_dir(&table::directory(self.slice)).await.map_err(failed)?;
        self.file = Some(file);
        Ok((self, bytes))
    }
}

/// Reads the state that the manifest of another core's slice gives durably; nothing when there is no manifest, or when
/// its core is just writing it.
pub async fn peek<D: Disk>(disk: &D, slice: SliceId) -> Result<Option<State>, EngineError> {
    let path = path(slice);
    let file = match disk.open(&path, OpenMode::Write).await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let bytes = match read_whole(&*file, &path).await {
        Err(EngineError::Damaged(_)) => return Ok(None),
        bytes => bytes?,
    };
    file.sync().await?;
    Ok(Reading::of(bytes.as_slice(), slice, &path).ok().map(|read| read.state))
}

async fn read_whole<F: DiskFile>(file: &F, path: &str) -> Result<PageBuffer, EngineError> {
    let length = file.len().map_err(|e| EngineError::unreadable(path, 0, &e))?;
    if length == 0 || length > BYTES_MAX || !length.is_multiple_of(PAGE as u64) {
        return Err(EngineError::Damaged(format!("{path} at {length}: it has not the length of a manifest")));
    }
    file.read(0, length as usize, Lane::Foreground).await.map_err(|e| EngineError::unreadable(path, 0, &e))
}

/// A record of a manifest, for printing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordView {
    pub offset: u64,
    pub index: u64,
    pub snapshot: bool,
    /// Whether only one of the record's two copies is whole.
    pub mended: bool,
    pub change: Change,
}

/// A manifest's bytes, read.
pub struct Reading {
    pub state: State,
    pub records: Vec<RecordView>,
    end: u64,
    next_index: u64,
    pub torn: bool,
}

impl Reading {
    /// The first record of which one copy is damaged. The last one does not count: a crash leaves it like that.
    fn mended(&self) -> Option<u64> {
        let (_, before) = self.records.split_last()?;
        before.iter().find(|record| record.mended).map(|record| record.offset)
    }
    /// Reads and checks everything. A torn end is fine; anything else that is not as it was written is an error.
    pub fn of(bytes: &[u8], slice: SliceId, path: &str) -> Result<Reading, EngineError> {
        let damaged = |what: String| EngineError::Damaged(format!("{path} at 0: {what}"));
        let mut reading = Reading { state: State::default(), records: Vec::new(), end: 0, next_index: 0, torn: false };
        let mut at = 0;
        while at < bytes.len() {
            let Some((record, padded)) = decode_pair(bytes, at, slice, path)? else { break };
            if at == 0 {
                if !record.snapshot {
                    return Err(damaged("it does not begin with a snapshot".into()));
                }
                let capacity = capacity_of(bytes, padded / 2);
                if capacity != bytes.len() as u64 {
                    return Err(damaged(format!("it has {} bytes instead of {capacity}", bytes.len())));
                }
            } else if record.snapshot || record.index != reading.next_index {
                return Err(damaged(format!("record {} at {at} is out of order", record.index)));
            }
            reading.state.apply(&record.change);
            reading.next_index = record.index + 1;
            reading.records.push(record);
            at += padded;
        }
        if at == 0 {
            return Err(damaged("its first record does not match its checksum".into()));
        }
        reading.end = at as u64;
        reading.torn = bytes[at..].iter().any(|b| *b != 0);
        let mut later = (at / PAGE + 1..bytes.len() / PAGE).map(|page| page * PAGE);
        let follows =
            |page| matches!(decode(bytes, page, slice, path), Ok(Some((r, _))) if r.index > reading.next_index);
        match later.find(|page| follows(*page)) {
            Some(page) => Err(damaged(format!("the record at {at} is damaged, a good one follows at {page}"))),
            None => Ok(reading),
        }
    }
}

/// The capacity that a snapshot was written with, from whichever copy is whole.
fn capacity_of(bytes: &[u8], single: usize) -> u64 {
    if record_crc(bytes, 0).is_some() { u64_at(bytes, 32) } else { u64_at(bytes, single + 32) }
}

/// A record at `at`, from its first copy or its second; and the bytes of both.
fn decode_pair(
    bytes: &[u8],
    at: usize,
    slice: SliceId,
    path: &str,
) -> Result<Option<(RecordView, usize)>, EngineError> {
    if let Some((mut record, length)) = decode(bytes, at, slice, path)? {
        let twin = decode(bytes, at + length, slice, path)?;
        record.mended = !twin.is_some_and(|(t, l)| t.index == record.index && l == length);
        return Ok(Some((record, 2 * length)));
    }
    // The first copy's length cannot be trusted: the second is the page that says that its length is its distance.
    for second in (at + PAGE..bytes.len()).step_by(PAGE) {
        let Some((mut record, length)) = decode(bytes, second, slice, path)? else { continue };
        if second - at != length {
            return Ok(None);
        }
        record.mended = true;
        record.offset = at as u64;
        return Ok(Some((record, 2 * length)));
    }
    Ok(None)
}

/// Over everything but the magic and itself: a flipped bit of the format number is damage, not a newer format.
fn checksum(record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&record[4..8]), &record[12..])
}

/// The length of the record at this place whose checksum holds, if one does.
fn record_crc(bytes: &[u8], at: usize) -> Option<usize> {
    let header = bytes.get(at..at + HEADER_BYTES)?;
    let length = u32_at(header, 12) as usize;
    let record = bytes.get(at..at.checked_add(length)?)?;
    let whole = &header[..4] == MAGIC && length >= HEADER_BYTES && checksum(record) == u32_at(header, 8);
    whole.then_some(length)
}

/// Reads one copy of a record, and the bytes it takes; `None` when the copy is not whole.
fn decode(bytes: &[u8], at: usize, slice: SliceId, path: &str) -> Result<Option<(RecordView, usize)>, EngineError> {
    let Some(length) = record_crc(bytes, at) else { return Ok(None) };
    let header = &bytes[at..at + HEADER_BYTES];
    let found = u32_at(header, 4);
    if found > FORMAT {
        return Err(EngineError::NewerFormat { file: path.into(), found, known: FORMAT });
    }
    if found == 0 {
        return Ok(None);
    }
    if u16_at(header, 16) != slice.0 {
        return Err(EngineError::Damaged(format!("{path} at {at}: it is of slice {}", u16_at(header, 16))));
    }
    let body = &bytes[at + HEADER_BYTES..at + length];
    let Some(change) = decode_change(body, slice) else {
        return Err(EngineError::Damaged(format!("{path} at {at}: a record that cannot be read")));
    };
    let snapshot = header[18] == KIND_SNAPSHOT;
    let record = RecordView { offset: at as u64, index: u64_at(header, 24), snapshot, mended: false, change };
    Ok(Some((record, pages(length))))
}

/// A record twice, each copy on pages of its own.
fn encode(slice: SliceId, kind: u8, index: u64, capacity: u64, change: &Change) -> PageBuffer {
    let mut record = vec![0; HEADER_BYTES];
    encode_change(change, &mut record);
    record[..4].copy_from_slice(MAGIC);
    record[4..8].copy_from_slice(&FORMAT.to_le_bytes());
    let length = record.len() as u32;
    record[12..16].copy_from_slice(&length.to_le_bytes());
    record[16..18].copy_from_slice(&slice.0.to_le_bytes());
    record[18] = kind;
    record[24..32].copy_from_slice(&index.to_le_bytes());
    record[32..40].copy_from_slice(&capacity.to_le_bytes());
    let crc = checksum(&record);
    record[8..12].copy_from_slice(&crc.to_le_bytes());
    let padded = pages(record.len());
    let mut buffer = PageBuffer::zeroed(2 * padded);
    buffer.as_mut_slice()[..record.len()].copy_from_slice(&record);
    buffer.as_mut_slice()[padded..padded + record.len()].copy_from_slice(&record);
    buffer
}

fn encode_change(change: &Change, out: &mut Vec<u8>) {
    out.extend_from_slice(&change.flushed_sequence.to_le_bytes());
    out.extend_from_slice(&change.next_table.to_le_bytes());
    for count in [change.added.len(), change.removed.len(), change.gained.len(), change.lost.len()] {
        out.extend_from_slice(&(count as u32).to_le_bytes());
    }
    for table in &change.added {
        for word in [table.id, table.entries, table.deletes, table.bytes, table.max_sequence, table.value_bytes] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.push(table.level);
        for key in [&table.smallest, &table.largest] {
            out.extend_from_slice(&(key.len() as u16).to_le_bytes());
            out.extend_from_slice(key);
        }
    }
    for id in &change.removed {
        out.extend_from_slice(&id.to_le_bytes());
    }
    for (segment, bytes) in change.gained.iter().chain(&change.lost) {
        out.extend_from_slice(&segment.to_le_bytes());
        out.extend_from_slice(&bytes.to_le_bytes());
    }
}

/// The bytes of a record that have not been read yet; fields are taken from the front.
struct Taking<'a>(&'a [u8]);
impl<'a> Taking<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(front)
    }
    fn u64(&mut self) -> Option<u64> {
        Some(u64_at(self.take(8)?, 0))
    }
    fn count(&mut self) -> Option<usize> {
        Some(u32_at(self.take(4)?, 0) as usize)
    }
    fn key(&mut self) -> Option<Bytes> {
        let length = usize::from(u16_at(self.take(2)?, 0));
        let key = self.take(length)?;
        (length <= ENGINE_KEY_BYTES_MAX).then(|| Bytes::copy_from_slice(key))
    }
    fn table(&mut self, slice: SliceId) -> Option<TableMeta> {
        Some(TableMeta {
            id: self.u64()?,
            slice,
            entries: self.u64()?,
            deletes: self.u64()?,
            bytes: self.u64()?,
            max_sequence: self.u64()?,
            value_bytes: self.u64()?,
            level: self.take(1)?[0],
            smallest: self.key()?,
            largest: self.key()?,
        })
    }
    fn pairs(&mut self, count: usize) -> Option<BTreeMap<u64, u64>> {
        (0..count).map(|_| Some((self.u64()?, self.u64()?))).collect()
    }
}

fn decode_change(body: &[u8], slice: SliceId) -> Option<Change> {
    let mut body = Taking(body);
    let (flushed_sequence, next_table) = (body.u64()?, body.u64()?);
    let (added, removed, gained, lost) = (body.count()?, body.count()?, body.count()?, body.count()?);
    let change = Change {
        flushed_sequence,
        next_table,
        added: (0..added).map(|_| body.table(slice)).collect::<Option<_>>()?,
        removed: (0..removed).map(|_| body.u64()).collect::<Option<_>>()?,
        gained: body.pairs(gained)?,
        lost: body.pairs(lost)?,
    };
    body.0.is_empty().then_some(change)
}

/// Reads a manifest for printing; nothing is written.
pub async fn read<D: Disk>(disk: &D, path: &str) -> Result<(SliceId, Reading), EngineError> {
    let file = disk.open(path, OpenMode::Read).await?;
    let bytes = read_whole(&*file, path).await?;
    let whole = (0..bytes.len()).step_by(PAGE).find(|at| record_crc(bytes.as_slice(), *at).is_some());
    let Some(at) = whole else {
        return Err(EngineError::Damaged(format!("{path} at 0: no record matches its checksum")));
    };
    let slice = SliceId(u16_at(bytes.as_slice(), at + 16));
    Ok((slice, Reading::of(bytes.as_slice(), slice, path)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: SliceId = SliceId(7);

    fn table(id: u64) -> TableMeta {
        TableMeta {
            id,
            slice: SLICE,
            level: 1,
            smallest: Bytes::from_static(b"a"),
            largest: Bytes::from_static(b"zz"),
            entries: 3,
            deletes: 1,
            bytes: 4096,
            max_sequence: 99,
            value_bytes: 30_000,
        }
    }
    fn change(id: u64) -> Change {
        Change {
            added: vec![table(id)],
            removed: vec![id.saturating_sub(1)],
            flushed_sequence: id * 10,
            next_table: id + 1,
            gained: [(5, 100), (6, 7)].into(),
            lost: [(5, 30)].into(),
        }
    }
    /// A file of a snapshot and two changes, and what it says.
    fn file() -> (Vec<u8>, State) {
        let capacity = 12 * PAGE;
        let mut bytes = Vec::new();
        let mut state = State::default();
        for (index, kind) in [(0, KIND_SNAPSHOT), (1, KIND_CHANGE), (2, KIND_CHANGE)] {
            let change = change(index + 1);
            state.apply(&change);
            bytes.extend_from_slice(encode(SLICE, kind, index, capacity as u64, &change).as_slice());
        }
        bytes.resize(capacity, 0);
        (bytes, state)
    }

    #[test]
    fn what_is_written_is_read() {
        let (bytes, state) = file();
        let reading = Reading::of(&bytes, SLICE, "m").expect("whole");
        assert_eq!(reading.state, state);
        assert_eq!((reading.next_index, reading.end, reading.torn), (3, 6 * PAGE as u64, false));
        assert_eq!(state.live, [(5, 210), (6, 21)].into());
        assert_eq!(state.tables.keys().copied().collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn a_flipped_bit_is_mended_or_told() {
        let (bytes, state) = file();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            match Reading::of(&flipped, SLICE, "m") {
                Ok(reading) => assert_eq!(reading.state, state, "byte {at}"),
                Err(error) => assert!(matches!(error, EngineError::Damaged(_) | EngineError::NewerFormat { .. })),
            }
        }
    }

    #[test]
    fn a_cut_file_is_told() {
        let (bytes, _) = file();
        for cut in (0..bytes.len()).step_by(512) {
            assert!(Reading::of(&bytes[..cut], SLICE, "m").is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_torn_end_is_left_out_and_a_bad_middle_is_damage() {
        let (bytes, _) = file();
        let mut torn = bytes.clone();
        torn[4 * PAGE..6 * PAGE - 100].fill(0);
        torn[4 * PAGE + 512] = 1;
        let reading = Reading::of(&torn, SLICE, "m").expect("a torn end");
        assert_eq!((reading.next_index, reading.torn), (2, true));
        let mut bad = bytes;
        bad[2 * PAGE..4 * PAGE].fill(0);
        assert!(matches!(Reading::of(&bad, SLICE, "m"), Err(EngineError::Damaged(_))));
    }
}
