//! Opening a directory: manifests, tables, and what the log holds that is in no table yet.
//!
//! All shards of a node open the same directory at the same time. Each reads the manifests of its own slices, and every
//! segment that may hold records of them, whoever wrote it: slices may have been dealt anew. A segment is skipped when
//! its mark says that all was flushed and the manifests agree. Of what is read, only records with a greater sequence
//! than their slice's manifest says come into memtables; the greatest sequence of a key wins, in whatever order.
//!
//! What has been read is synced before it is served: a crash of the process alone leaves written batches that no sync
//! has covered, and what a client once read must not vanish at the next power cut.
//!
//! Nothing is ever truncated. Damage is counted, named, and left where it is.

use super::{
    compaction::TableSet,
    disk::{Disk, DiskFile, Lane, OpenMode},
    error::EngineError,
    manifest::Manifest,
    reserve,
    store::{Damage, Slice, Store, count},
    table::{self, Table},
    types::EngineOptions,
    wal::{
        format::{Mark, SegmentHeader, mark_bytes, u32_at},
        reader::{BatchReader, Found},
        segment::{self, DIRECTORY, Phase, Segment},
    },
};
use crate::{
    limits::PAGE,
    types::{ShardId, SliceId},
};
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    io,
    rc::Rc,
};

/// The directory of all slices of a node.
pub const SLICES: &str = "slices";
/// Slices, or segments, that are opened at once.
const OPENING: usize = 16;

/// A segment found in the directory, not read yet.
struct Candidate<F> {
    header: SegmentHeader,
    file: Rc<F>,
    length: u64,
    mark: Option<Mark>,
}

/// Opens what is there and brings back what was durable.
pub async fn open<D: Disk>(
    disk: Rc<D>,
    shard: ShardId,
    own: &[SliceId],
    options: EngineOptions,
) -> Result<Store<D>, EngineError> {
    for directory in [DIRECTORY, SLICES, reserve::DIRECTORY] {
        disk.create_dir(directory).await?;
    }
    disk.sync_dir("").await?;
    let own: BTreeSet<SliceId> = own.iter().copied().collect();
    let slices = open_slices(&disk, &own).await?;
    let mut damage = Vec::new();
    let (candidates, newest) = find_segments(&*disk, shard, &own, &mut damage).await?;
    let flushed = slices.iter().map(|s| s.manifest.borrow().state.flushed_sequence >> 40);
    let generation = flushed.chain([newest]).max().unwrap_or(0) + 1;
    let options = options.fitting(disk.space()?.total);
    let held = reserve::held(&*disk, shard).await?;
    let mut store = Store::new(disk, shard, options, generation, slices);
    store.reserve = RefCell::new(held);
    replay_all(&store, candidates, &own, &mut damage).await?;
    count_live(&store);
    count(&store.counters.damaged_reads, damage.len() as u64);
    store.look_at_space();
    store.damage = damage;
    Ok(store)
}

async fn open_slices<D: Disk>(disk: &Rc<D>, own: &BTreeSet<SliceId>) -> Result<Vec<Rc<Slice<D>>>, EngineError> {
    let present: BTreeSet<String> = disk.list(SLICES).await?.into_iter().map(|(name, _)| name).collect();
    let mut slices = Vec::with_capacity(own.len());
    let mut wanted = own.iter();
    let mut opening = FuturesUnordered::new();
    loop {
        while opening.len() < OPENING
            && let Some(id) = wanted.next()
        {
            if present.contains(&format!("{:04x}/", id.0)) {
                opening.push(open_slice(disk, *id));
            } else {
                slices.push(Rc::new(Slice::new(*id, Manifest::empty(*id), TableSet::new(), 1)));
            }
        }
        match opening.next().await {
            Some(slice) => slices.push(slice?),
            None => return Ok(slices),
        }
    }
}

/// Reads a slice's manifest, opens its tables, removes files that the manifest does not name.
async fn open_slice<D: Disk>(disk: &Rc<D>, id: SliceId) -> Result<Rc<Slice<D>>, EngineError> {
    let directory = table::directory(id);
    let names = disk.list(&directory).await?;
    // A rename that was not yet durable must be before anything builds on it.
    disk.sync_dir(&directory).await?;
    let named = names.iter().any(|(name, _)| name == "MANIFEST");
    let manifest = if named { Manifest::load(&**disk, id).await? } else { Manifest::empty(id) };
    let known = &manifest.state.tables;
    let mut next_table = manifest.state.next_table.max(1);
    for (name, _) in &names {
        let stray = match table::id_of(name) {
            Some(table) => {
                next_table = next_table.max(table + 1);
                !known.contains_key(&table)
            }
            None => name == "MANIFEST.new",
        };
        if stray {
            disk.remove(&format!("{directory}/{name}")).await?;
        }
    }
    let mut tables = TableSet::new();
    // Level 0 in the order of its flushes.
    for meta in known.values() {
        let table = Table::open(disk, meta.clone()).await?;
        tables.apply(vec![table], &[]);
    }
    Ok(Rc::new(Slice::new(id, manifest, tables, next_table)))
}

/// The segments that may hold records of these slices, and the greatest generation of any segment.
async fn find_segments<D: Disk>(
    disk: &D,
    shard: ShardId,
    own: &BTreeSet<SliceId>,
    damage: &mut Vec<Damage>,
) -> Result<(Vec<Candidate<D::File>>, u64), EngineError> {
    let names = disk.list(DIRECTORY).await?;
    let mut ids = names.iter().filter_map(|(name, length)| Some((segment::id_of(name)?, *length)));
    let (mut found, mut newest, mut blank) = (Vec::new(), 0, Vec::new());
    let mut opening = FuturesUnordered::new();
    loop {
        while opening.len() < OPENING
            && let Some((id, length)) = ids.next()
        {
            opening.push(look_at(disk, id, length));
        }
        match opening.next().await {
            Some(Ok(Looked::Segment(candidate))) => {
                newest = newest.max(candidate.header.generation);
                if candidate.header.slices.iter().any(|s| own.contains(s)) {
                    found.push(*candidate);
                }
            }
            Some(Ok(Looked::Blank(id))) => {
                newest = newest.max(id >> 40);
                // Left over by a crash of this shard: no other makes segments of this number.
                if id as u16 == shard.0 {
                    blank.push(segment::path(id));
                }
            }
            Some(Ok(Looked::Damaged(id, length))) => {
                newest = newest.max(id >> 40);
                damage.push(Damage { file: segment::path(id), from: 0, to: length });
            }
            Some(Err(error)) => return Err(error),
            None => break,
        }
    }
    for path in blank {
        match disk.remove(&path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    found.sort_by_key(|c: &Candidate<_>| (c.header.first_sequence, c.header.id));
    Ok((found, newest))
}

enum Looked<F> {
    Segment(Box<Candidate<F>>),
    /// Made, but never used: another shard is making it just now, or a crash came first.
    Blank(u64),
    /// Its header is lost, and there is something behind it.
    Damaged(u64, u64),
}

async fn look_at<D: Disk>(disk: &D, id: u64, length: u64) -> Result<Looked<D::File>, EngineError> {
    let path = segment::path(id);
    let file = match disk.open(&path, OpenMode::Write).await {
        Ok(file) => file,
        // Another shard of this node has just removed it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Looked::Blank(id)),
        Err(error) => return Err(error.into()),
    };
    let whole = length - length % PAGE as u64;
    if whole < PAGE as u64 {
        // Never anything between nothing and its first step of space.
        return Ok(if length == 0 { Looked::Blank(id) } else { Looked::Damaged(id, length) });
    }
    let first = file.read(0, PAGE, Lane::Foreground).await?;
    let header = SegmentHeader::decode(first.as_slice(), &path)?;
    if header.as_ref().is_some_and(|h| h.id != id) {
        // Renamed for another life that has not begun: all that lived in it had been copied, durably.
        return Ok(Looked::Blank(id));
    }
    let Some(header) = header else {
        let used = holds_batches(&*file, whole).await?;
        return Ok(if used { Looked::Damaged(id, length) } else { Looked::Blank(id) });
    };
    let mark_pages = mark_bytes(header.slices.len());
    let mark = if whole >= (PAGE + mark_pages) as u64 {
        let bytes = file.read(PAGE as u64, mark_pages, Lane::Foreground).await?;
        Mark::decode(bytes.as_slice(), &header)
    } else {
        None
    };
    Ok(Looked::Segment(Box::new(Candidate { header, file, length, mark })))
}

/// Whether a file without a header has been used: the first batch lies in one of the first pages.
async fn holds_batches<F: DiskFile>(file: &F, length: u64) -> Result<bool, EngineError> {
    let pages = (length / PAGE as u64).min(8);
    let bytes = file.read(0, pages as usize * PAGE, Lane::Foreground).await?;
    Ok(bytes.as_slice().chunks_exact(PAGE).skip(1).any(|page| u32_at(page, 0) == u32::from_le_bytes(*b"DYNB")))
}

/// Reads what is not known to be flushed, and registers every segment.
async fn replay_all<D: Disk>(
    store: &Store<D>,
    candidates: Vec<Candidate<D::File>>,
    own: &BTreeSet<SliceId>,
    damage: &mut Vec<Damage>,
) -> Result<(), EngineError> {
    // Ends of what was read, and where later segments say that they must be.
    let mut ends: BTreeMap<u64, u64> = BTreeMap::new();
    let mut promised: BTreeMap<u64, u64> = BTreeMap::new();
    for candidate in candidates {
        let flushed = |slice: &SliceId| {
            let slice = store.slice(*slice).ok()?;
            Some(slice.manifest.borrow().state.flushed_sequence)
        };
        let done = candidate.mark.as_ref().is_some_and(|mark| {
            mark.last.iter().all(|(slice, last)| flushed(slice).is_none_or(|flushed| *last <= flushed))
        });
        let segment = Rc::new(registered(&candidate, own));
        store.segments.borrow_mut().insert(segment.id(), segment.clone());
        if candidate.length % u64::from(candidate.header.step) != 0 {
            note_damage(&segment, damage, candidate.length, candidate.length);
        }
        match candidate.mark {
            Some(mark) if done => {
                segment.end.set(mark.end.min(segment.allocated.get()));
                segment.last.borrow_mut().extend(mark.last);
                segment.value_bytes.set(mark.value_bytes);
                segment.record_bytes.set(mark.record_bytes);
                segment.phase.set(Phase::Flushed);
            }
            _ => {
                replay(store, &segment, &mut promised, damage).await?;
                ends.insert(segment.id(), segment.end.get());
            }
        }
    }
    for (id, promised) in promised {
        if let (Some(end), Some(segment)) = (ends.get(&id), store.segment(id))
            && *end < promised
        {
            note_damage(&segment, damage, *end, promised);
        }
    }
    Ok(())
}

fn note_damage<F: DiskFile>(segment: &Segment<F>, damage: &mut Vec<Damage>, from: u64, to: u64) {
    segment.damaged.set(true);
    damage.push(Damage { file: segment::path(segment.id()), from, to });
}

fn registered<F>(candidate: &Candidate<F>, own: &BTreeSet<SliceId>) -> Segment<F> {
    let start = u64::from(candidate.header.data_start);
    Segment {
        file: candidate.file.clone(),
        capacity: candidate.length,
        allocated: Cell::new(candidate.length - candidate.length % PAGE as u64),
        end: Cell::new(start),
        durable: Cell::new(start),
        phase: Cell::new(Phase::Sealed),
        damaged: Cell::new(false),
        live: Cell::new(0),
        value_bytes: Cell::new(0),
        record_bytes: Cell::new(0),
        last: RefCell::default(),
        end_position: Cell::new(0),
        shared: candidate.header.slices.iter().any(|s| !own.contains(s)),
        share: candidate.header.slices.iter().filter(|s| own.contains(s)).count() as f64
            / candidate.header.slices.len().max(1) as f64,
        copied: Cell::new(false),
        header: candidate.header.clone(),
    }
}

/// Brings the records of a segment that are in no table into the memtables.
async fn replay<D: Disk>(
    store: &Store<D>,
    segment: &Rc<Segment<D::File>>,
    promised: &mut BTreeMap<u64, u64>,
    damage: &mut Vec<Damage>,
) -> Result<(), EngineError> {
    let header = &segment.header;
    let (start, limit) = (u64::from(header.data_start), segment.allocated.get());
    let lane = Lane::Foreground;
    let mut reader = BatchReader::new(segment.file.clone(), header, start, limit, lane);
    loop {
        match reader.next().await? {
            Found::Batch(batch, records) => {
                if batch.allocated > limit && !segment.damaged.get() {
                    note_damage(segment, damage, limit, batch.allocated);
                }
                if batch.previous != 0 {
                    promised.insert(batch.previous, batch.previous_end);
                }
                let position = store.log.position.get();
                for record in records {
                    segment.note(&record);
                    let Ok(slice) = store.slice(record.slice).cloned() else { continue };
                    if record.sequence > slice.manifest.borrow().state.flushed_sequence {
                        store.apply(&slice, record, position);
                    }
                }
                store.log.position.set(position + batch.padded());
                count(&store.counters.replayed_bytes, batch.padded());
                segment.end.set(batch.offset + batch.padded());
            }
            Found::Damage { from, to } => {
                note_damage(segment, damage, from, to);
                segment.end.set(to);
            }
            Found::End { .. } => break,
        }
        store.disk.breathe().await;
    }
    segment.file.sync().await?;
    segment.durable.set(segment.end.get());
    store.seal(segment);
    Ok(())
}

/// Adds what tables point to, as their manifests say, to what the memtables point to.
fn count_live<D: Disk>(store: &Store<D>) {
    for slice in store.slices() {
        for (id, bytes) in &slice.manifest.borrow().state.live {
            if let Some(segment) = store.segment(*id) {
                segment.add_live(*bytes);
            }
        }
    }
}
