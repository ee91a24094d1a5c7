//! The roll of a core's log: which segments must be there, up to where each must be whole, and what was lost before.
//!
//! Segments prove much of each other: a batch says which of those before it were durable. But a file that is missing,
//! or whose last batches are damaged, proves nothing, and neither does a manifest that is older than it should be. So
//! each core keeps a small file beside its segments. It is written before a segment takes its first batch, before one
//! that is needed no more is removed or used again, and at each opening: never for a write of a client. What an opening
//! finds must agree with it, or something is lost.
//!
//! The slices that may have lost records stand there too: a damaged file may be removed, the doubt stays.
//!
//! Written in place, in one of two slots in turn, each record twice. A full disk must not keep a segment from being
//! removed, and so this needs no space. A torn slot leaves the other one, and what was to follow it has not happened.
//!
//! When slices are dealt anew the rolls of all cores are made into one ([`adapt`]); a core that has none reads that.
//! The byte ruler is in `schema/wal.md`.

use super::{
    format::{pages, u16_at, u32_at, u64_at},
    log::Head,
    segment::{DIRECTORY, Phase, Segment},
};
use crate::{
    engine::{
        disk::{Disk, DiskFile, Lane, OpenMode, PageBuffer, Sync},
        error::EngineError,
        notify::Latch,
        reserve,
        store::{Store, count},
    },
    limits::{MIB, PAGE, SLICES_MAX},
    types::{ShardId, SliceId},
};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    io::{self, ErrorKind},
    rc::Rc,
};

/// Format number of rolls.
pub const FORMAT: u32 = 1;
const MAGIC: &[u8; 8] = b"DYNARCRO";
const SET_BYTES: usize = SLICES_MAX / 8;
const HEADER_BYTES: usize = 40 + 2 * SET_BYTES;
const ENTRY_BYTES: usize = 32;
const MANIFEST_BYTES: usize = 10;
/// Copies of a record in a file: two slots, twice each.
const COPIES: usize = 4;
/// Bytes that each copy has in a new file; the file is made anew with longer copies when a roll does not fit.
const COPY_BYTES: usize = PAGE;
/// A roll longer than this is not one of ours.
const BYTES_MAX: u64 = 64 * MIB as u64;
const FLUSHED: u64 = 1;
const DAMAGED: u64 = 2;

/// The path of a core's roll.
pub fn path(shard: ShardId) -> String {
    format!("{DIRECTORY}/roll-{:04x}", shard.0)
}
/// The core of a file name in the log's directory; nothing for other files.
fn shard_of(name: &str) -> Option<ShardId> {
    let number = name.strip_prefix("roll-").filter(|number| number.len() == 4)?;
    u16::from_str_radix(number, 16).ok().map(ShardId)
}
/// The path of the roll that joins those of all cores: it is made when slices are dealt to cores anew.
fn path_of_all() -> String {
    format!("{DIRECTORY}/roll-all")
}

/// The facts about a segment that hold whatever becomes of its file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Entry {
    pub epoch: u64,
    /// All before this offset was durable.
    pub end: u64,
    /// Every record is in tables: if the file is lost, so are values, and whoever reads one is told.
    pub flushed: bool,
    /// Some of it is lost, and the slices concerned are in doubt since.
    pub damaged: bool,
}

/// The content of a roll.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Roll {
    /// Greater than that of every roll written before.
    pub serial: u64,
    pub segments: BTreeMap<u64, Entry>,
    /// The number of records that the manifest of each slice has at least.
    pub manifests: BTreeMap<SliceId, u64>,
    /// Slices that may have lost records which were acknowledged.
    pub doubted: BTreeSet<SliceId>,
    /// The doubted slices whose loss has been found and has not been acted upon yet: see [`settle`].
    pub fresh: BTreeSet<SliceId>,
}

impl Roll {
    fn length(&self) -> usize {
        HEADER_BYTES + self.segments.len() * ENTRY_BYTES + self.manifests.len() * MANIFEST_BYTES
    }
    /// The record twice, each copy of so many bytes, for the file of this path.
    fn encode(&self, copy_bytes: usize, path: &str) -> PageBuffer {
        let mut out = vec![0; HEADER_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        out[16..20].copy_from_slice(&(self.length() as u32).to_le_bytes());
        out[20..24].copy_from_slice(&(copy_bytes as u32).to_le_bytes());
        out[24..32].copy_from_slice(&self.serial.to_le_bytes());
        out[32..36].copy_from_slice(&(self.segments.len() as u32).to_le_bytes());
        out[36..40].copy_from_slice(&(self.manifests.len() as u32).to_le_bytes());
        for (set, at) in [(&self.doubted, 40), (&self.fresh, 40 + SET_BYTES)] {
            set.iter().for_each(|slice| out[at + usize::from(slice.0) / 8] |= 1 << (slice.0 % 8));
        }
        for (id, entry) in &self.segments {
            let flags = (u64::from(entry.flushed) * FLUSHED) | (u64::from(entry.damaged) * DAMAGED);
            [*id, entry.epoch, entry.end, flags].iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
        }
        for (slice, index) in &self.manifests {
            out.extend_from_slice(&slice.0.to_le_bytes());
            out.extend_from_slice(&index.to_le_bytes());
        }
        let crc = checksum(&out, path);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        let mut buffer = PageBuffer::zeroed(2 * copy_bytes);
        for at in [0, copy_bytes] {
            buffer.as_mut_slice()[at..at + out.len()].copy_from_slice(&out);
        }
        buffer
    }
    /// `None`: these bytes are no whole record of a file with copies of so many bytes.
    fn decode(bytes: &[u8], file: &str) -> Result<Option<Roll>, EngineError> {
        let length = u32_at(bytes, 16) as usize;
        let Some(record) = bytes.get(..length).filter(|r| r.len() >= HEADER_BYTES && &r[..8] == MAGIC) else {
            return Ok(None);
        };
        if checksum(record, file) != u32_at(record, 12) {
            return Ok(None);
        }
        let found = u32_at(record, 8);
        if found > FORMAT {
            return Err(EngineError::NewerFormat { file: file.into(), found, known: FORMAT });
        }
        let (segments, manifests) = (u32_at(record, 32) as usize, u32_at(record, 36) as usize);
        let body = &record[HEADER_BYTES..];
        let fits = segments.checked_mul(ENTRY_BYTES).zip(manifests.checked_mul(MANIFEST_BYTES));
        if fits.and_then(|(a, b)| a.checked_add(b)) != Some(body.len()) || u32_at(record, 20) as usize != bytes.len() {
            return Ok(None);
        }
        let (segments, manifests) = body.split_at(segments * ENTRY_BYTES);
        let set = |at: usize| {
            let is_in = |slice: &usize| record[at + slice / 8] & (1 << (slice % 8)) != 0;
            (0..SLICES_MAX).filter(is_in).map(|slice| SliceId(slice as u16)).collect()
        };
        let entry = |e: &[u8]| {
            let flags = u64_at(e, 24);
            let (flushed, damaged) = (flags & FLUSHED != 0, flags & DAMAGED != 0);
            (u64_at(e, 0), Entry { epoch: u64_at(e, 8), end: u64_at(e, 16), flushed, damaged })
        };
        Ok(Some(Roll {
            serial: u64_at(record, 24),
            segments: segments.chunks_exact(ENTRY_BYTES).map(entry).collect(),
            manifests: manifests.chunks_exact(MANIFEST_BYTES).map(|m| (SliceId(u16_at(m, 0)), u64_at(m, 2))).collect(),
            doubted: set(40),
            fresh: set(40 + SET_BYTES),
        }))
    }
    /// Takes in another roll: what either of the two says holds.
    fn join(&mut self, other: Roll) {
        self.serial = self.serial.max(other.serial);
        for (id, entry) in other.segments {
            let known = self.segments.entry(id).or_insert(entry);
            known.end = known.end.max(entry.end);
            known.flushed &= entry.flushed;
            known.damaged &= entry.damaged;
        }
        for (slice, index) in other.manifests {
            let known = self.manifests.entry(slice).or_insert(index);
            *known = index.max(*known);
        }
        self.doubted.extend(other.doubted);
        self.fresh.extend(other.fresh);
    }
}

/// The checksum of a record of the roll. The format number is in it, so that a flipped bit of it is damage, and not
/// taken for a newer format; so is the path, so that what lies under another name is no roll.
fn checksum(record: &[u8], path: &str) -> u32 {
    let place = crc32c::crc32c_append(crc32c::crc32c(&record[8..12]), path.as_bytes());
    crc32c::crc32c_append(place, &record[16..])
}

/// A roll's file and what it says; nothing when there is none. `Damaged`: none of its copies is whole.
pub async fn read<D: Disk>(disk: &D, path: &str) -> Result<Option<(Rc<D::File>, Roll)>, EngineError> {
    let file = match disk.open(path, OpenMode::Write).await {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let length = file.len().map_err(|e| EngineError::unreadable(path, 0, &e))?;
    let is_ours = length > 0 && length <= BYTES_MAX && length.is_multiple_of((COPIES * PAGE) as u64);
    let mut newest: Option<Roll> = None;
    for copy in 0..COPIES as u64 {
        let bytes = length / COPIES as u64;
        if !is_ours {
            break;
        }
        // One that cannot be read is none: there are others.
        let Ok(read) = file.read(copy * bytes, bytes as usize, Lane::Foreground).await else { continue };
        let Some(roll) = Roll::decode(read.as_slice(), path)? else { continue };
        if newest.as_ref().is_none_or(|known| known.serial < roll.serial) {
            newest = Some(roll);
        }
    }
    match newest {
        Some(roll) => Ok(Some((file, roll))),
        None => Err(EngineError::Damaged(format!("{path} at 0: nothing of it is as it was written"))),
    }
}

/// Bytes of one copy of a record in the file of a roll.
pub fn copy_bytes<F: DiskFile>(file: &F) -> io::Result<usize> {
    Ok(file.len()? as usize / COPIES)
}

/// Makes the file of a roll, or makes it anew, durably.
pub async fn write_anew<D: Disk>(disk: &D, path: &str, roll: &Roll, copy_bytes: usize) -> io::Result<Rc<D::File>> {
    let new = format!("{path}.new");
    match disk.remove(&new).await {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.open(&new, OpenMode::Create).await?;
    file.allocate((COPIES * copy_bytes) as u64).await?;
    let slot = roll.serial % 2 * 2 * copy_bytes as u64;
    file.write(slot, roll.encode(copy_bytes, path), Sync::None, Lane::Log).await.1?;
    file.sync().await?;
    disk.rename(&new, path).await?;
    disk.sync_dir(DIRECTORY).await?;
    Ok(file)
}

/// Joins the rolls of all cores into one when the node goes on with another number of shards, since slices are then
/// dealt anew. Runs before any shard does.
pub async fn adapt<D: Disk>(disk: &D, from: u16, to: u16) -> Result<(), EngineError> {
    let names = disk.list(DIRECTORY).await?;
    let present: Vec<ShardId> = names.iter().filter_map(|(name, _)| shard_of(name)).collect();
    let all = read(disk, &path_of_all()).await?.map(|(_, roll)| roll);
    let first = all.as_ref().map_or(0, |all| all.serial);
    let (mut rolls, mut merged) = (BTreeSet::new(), Roll::default());
    for shard in present {
        let path = path(shard);
        match read(disk, &path).await {
            // It was made into the one of all before, and a crash kept it from being removed.
            Ok(Some((_, roll))) if roll.serial <= first => disk.remove(&path).await?,
            Ok(Some((_, roll))) => {
                rolls.insert(shard);
                merged.join(roll);
            }
            Ok(None) => {}
            // Its core finds that out, and says so.
            Err(EngineError::Damaged(_)) if from == to => {}
            Err(EngineError::Damaged(_)) => {
                rolls.insert(shard);
                let all = || (0..SLICES_MAX as u16).map(SliceId);
                merged.join(Roll { doubted: all().collect(), fresh: all().collect(), ..Roll::default() });
            }
            Err(error) => return Err(error),
        }
    }
    if from == to || (rolls.is_empty() && all.is_none()) {
        return Ok(());
    }
    // A shard that has not written its own goes by the one of all.
    if let Some(all) = all.filter(|_| !(0..from).all(|shard| rolls.contains(&ShardId(shard)))) {
        merged.join(all);
    }
    merged.serial += 1;
    let copy_bytes = pages(merged.length()).max(COPY_BYTES);
    write_anew(disk, &path_of_all(), &merged, copy_bytes).await?;
    for shard in rolls {
        disk.remove(&path(shard)).await?;
    }
    Ok(disk.sync_dir(DIRECTORY).await?)
}

/// The roll that an opening finds.
pub enum Found<F> {
    /// The core's own roll and its file; or, without a file, the joined roll of all cores.
    Roll(Option<Rc<F>>, Roll),
    Nothing,
    /// The roll cannot be read: why, and a serial that was used before.
    Lost(EngineError, u64),
}

/// The roll by which a core opens.
pub async fn find<D: Disk>(disk: &D, shard: ShardId) -> Result<Found<D::File>, EngineError> {
    let own = match read(disk, &path(shard)).await {
        Ok(Some((file, roll))) => {
            // What this start builds on must not vanish at the next power cut.
            file.sync().await?;
            return Ok(Found::Roll(Some(file), roll));
        }
        Ok(None) => None,
        Err(error @ EngineError::Damaged(_)) => Some(error),
        Err(error) => return Err(error),
    };
    Ok(match (own, read(disk, &path_of_all()).await) {
        (Some(error), all) => Found::Lost(error, all.ok().flatten().map_or(0, |(_, roll)| roll.serial)),
        (None, Ok(Some((_, roll)))) => Found::Roll(None, roll),
        (None, Ok(None)) => Found::Nothing,
        (None, Err(error @ EngineError::Damaged(_))) => Found::Lost(error, 0),
        (None, Err(error)) => return Err(error),
    })
}

/// Whether another core counts on a segment: only those that have written a roll of their own are asked.
pub async fn is_needed_by_others<D: Disk>(store: &Store<D>, id: u64) -> Result<bool, EngineError> {
    let names = store.disk.list(DIRECTORY).await?;
    for shard in names.iter().filter_map(|(name, _)| shard_of(name)).filter(|shard| *shard != store.shard) {
        let Some((_, roll)) = read(&*store.disk, &path(shard)).await? else { continue };
        if roll.segments.contains_key(&id) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The roll of a core that runs.
pub struct Keeper<F> {
    file: RefCell<Option<Rc<F>>>,
    copy_bytes: Cell<usize>,
    serial: Cell<u64>,
    latch: Rc<Latch>,
    /// The roll as the opening found it.
    pub found: Roll,
    /// Files of segments of which nothing can be read: they are kept, and their loss is known.
    pub kept: RefCell<BTreeSet<u64>>,
    /// Segments of which this opening has found the first loss.
    pub noted_now: RefCell<BTreeSet<u64>>,
}
impl<F: DiskFile> Keeper<F> {
    pub fn new(file: Option<Rc<F>>, found: Roll) -> Keeper<F> {
        let copy_bytes = file.as_ref().and_then(|file| copy_bytes(&**file).ok()).unwrap_or(0);
        Keeper {
            file: RefCell::new(file),
            copy_bytes: Cell::new(copy_bytes),
            serial: Cell::new(found.serial),
            latch: Rc::default(),
            found,
            kept: RefCell::default(),
            noted_now: RefCell::default(),
        }
    }
}

fn entry<F: DiskFile>(segment: &Segment<F>) -> (u64, Entry) {
    let end = if segment.phase.get() == Phase::Active { segment.durable.get() } else { segment.end.get() };
    let flushed = segment.phase.get() == Phase::Flushed;
    (segment.id(), Entry { epoch: segment.header.epoch, end, flushed, damaged: segment.loss_noted.get() })
}

/// Makes the roll that the state of the store calls for now.
pub fn compose<D: Disk>(store: &Store<D>) -> Roll {
    let mut segments: BTreeMap<u64, Entry> = store.segments.borrow().values().map(|s| entry(s)).collect();
    segments.extend(store.log.heads().iter().filter_map(|head| head.coming().map(|next| entry(&next))));
    let known = |id: &u64| store.roll.found.segments.get(id).copied().unwrap_or_default();
    let kept = store.roll.kept.borrow();
    segments.extend(kept.iter().map(|id| (*id, Entry { damaged: true, ..known(id) })));
    let mut manifests = BTreeMap::new();
    for slice in store.slices() {
        let known = store.roll.found.manifests.get(&slice.id).copied().unwrap_or(0);
        let index = slice.manifest.borrow().index().max(known);
        if index > 0 {
            manifests.insert(slice.id, index);
        }
    }
    let which = |of: fn(&crate::engine::store::Slice<D>) -> bool| {
        store.slices().filter(|slice| of(slice)).map(|slice| slice.id).collect()
    };
    Roll {
        serial: store.roll.serial.get() + 1,
        segments,
        manifests,
        doubted: which(|slice| slice.may_have_lost.get()),
        fresh: which(|slice| slice.newly_lost.get()),
    }
}

/// Writes the roll, durably. The caller holds the latch. `Full`: nothing has changed.
async fn write<D: Disk>(store: &Store<D>, roll: Roll) -> Result<(), EngineError> {
    let (keeper, length) = (&store.roll, roll.length());
    let file = keeper.file.borrow().clone();
    match file.filter(|_| length <= keeper.copy_bytes.get()) {
        Some(file) => {
            let bytes = keeper.copy_bytes.get();
            let slot = roll.serial % 2 * 2 * bytes as u64;
            file.write(slot, roll.encode(bytes, &path(store.shard)), Sync::Data, Lane::Log).await.1?;
        }
        None => {
            let bytes = pages(2 * length).max(COPY_BYTES);
            let file = write_anew(&*store.disk, &path(store.shard), &roll, bytes).await?;
            keeper.copy_bytes.set(bytes);
            keeper.file.replace(Some(file));
        }
    }
    count(&store.counters.device_bytes_written, 2 * keeper.copy_bytes.get() as u64);
    keeper.serial.set(roll.serial);
    Ok(())
}

/// Ends an opening: writes down what it found, as what the next one has to agree with.
pub async fn open<D: Disk>(store: &Store<D>) -> Result<(), EngineError> {
    let _held = store.roll.latch.hold().await;
    loop {
        match write(store, compose(store)).await {
            // A node with a full disk serves reads and deletes: that is how it gets space again.
            Err(EngineError::Full) if reserve::spend_any(&*store.disk).await? => {}
            written => return written,
        }
    }
}
/// A segment is made: from now on it may take batches, as the head's next one. Gives the one that was to be it.
pub async fn enter<D: Disk>(
    store: &Store<D>,
    head: &Head<D>,
    segment: Rc<Segment<D::File>>,
) -> Result<Option<Rc<Segment<D::File>>>, EngineError> {
    let _held = store.roll.latch.hold().await;
    let mut roll = compose(store);
    roll.segments.extend([entry(&segment)]);
    write(store, roll).await?;
    Ok(head.replace_coming(segment))
}
/// Nothing needs a segment any more: it may be removed, or used again, from now on.
pub async fn leave<D: Disk>(store: &Store<D>, id: u64) -> Result<(), EngineError> {
    let _held = store.roll.latch.hold().await;
    let mut roll = compose(store);
    roll.segments.remove(&id);
    write(store, roll).await?;
    store.segments.borrow_mut().remove(&id);
    Ok(())
}
/// A segment that other cores have records in says that all of this core's are in tables: so does the roll, before one
/// of them removes it.
pub async fn update<D: Disk>(store: &Store<D>) -> Result<(), EngineError> {
    let _held = store.roll.latch.hold().await;
    write(store, compose(store)).await
}
/// Notes durably that the losses found so far have been acted upon: no later opening need do so again. The doubt about
/// the slices stays.
pub async fn settle<D: Disk>(store: &Store<D>) -> Result<(), EngineError> {
    let _held = store.roll.latch.hold().await;
    if !store.slices().any(|slice| slice.newly_lost.get()) {
        return Ok(());
    }
    let roll = Roll { fresh: BTreeSet::new(), ..compose(store) };
    write(store, roll).await?;
    store.slices().for_each(|slice| slice.newly_lost.set(false));
    Ok(())
}
/// What a slice may have lost is there again: later openings have no doubt of it.
pub async fn end_doubt<D: Disk>(store: &Store<D>, slice: SliceId) -> Result<(), EngineError> {
    let _held = store.roll.latch.hold().await;
    let slice = store.slice(slice)?;
    if !slice.may_have_lost.get() {
        return Ok(());
    }
    let mut roll = compose(store);
    roll.doubted.remove(&slice.id);
    roll.fresh.remove(&slice.id);
    write(store, roll).await?;
    slice.may_have_lost.set(false);
    slice.newly_lost.set(false);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roll_comes_back_and_no_flip_goes_unseen() {
        let entry = Entry { epoch: 7, end: 8192, flushed: true, damaged: false };
        let roll = Roll {
            serial: 3,
            segments: [(5, entry), (9, Entry { flushed: false, damaged: true, ..entry })].into(),
            manifests: [(SliceId(4), 17)].into(),
            doubted: [SliceId(0), SliceId(2047)].into(),
            fresh: [SliceId(2047)].into(),
        };
        let bytes = roll.encode(2 * PAGE, "f");
        let (one, two) = bytes.as_slice().split_at(2 * PAGE);
        assert_eq!(one, two);
        assert_eq!(Roll::decode(one, "f"), Ok(Some(roll.clone())));
        assert_eq!(Roll::decode(one, "g"), Ok(None), "under another name");
        for at in 0..roll.length() {
            let mut flipped = one.to_vec();
            flipped[at] ^= 32;
            assert_eq!(Roll::decode(&flipped, "f"), Ok(None), "byte {at}");
        }
        assert_eq!(Roll::decode(&one[..PAGE], "f"), Ok(None), "of a file with other copies");
        let mut newer = one.to_vec();
        newer[8] += 1;
        let crc = checksum(&newer[..roll.length()], "f");
        newer[12..16].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(Roll::decode(&newer, "f"), Err(EngineError::NewerFormat { .. })));
    }
}
