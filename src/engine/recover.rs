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
//! Nothing is ever truncated. Damage is counted, named, and left where it is; all else opens. A table that cannot be
//! opened is set aside; so is a slice whose manifest cannot be read, or says less than a segment's mark proves. A segment
//! with records of such a slice is kept as it is. Whatever fails its checksum or cannot be read is read once more before
//! that is believed. A file that is there and cannot be *opened* is another matter (too few descriptors, no permission):
//! it says nothing of the medium, so the opening fails.

use super::{
    compaction::TableSet,
    damage::{self, Damage},
    disk::{Disk, DiskFile, Lane, OpenMode},
    drops,
    error::EngineError,
    manifest::{self, Manifest},
    reserve,
    store::{Slice, Store, count},
    table::{self, ASIDE, Table},
    types::EngineOptions,
    wal::{
        format::{BatchHeader, Mark, SegmentHeader, mark_bytes, u64_at},
        reader::{BatchReader, Found},
        segment::{self, DIRECTORY, Phase, Segment},
    },
};
use crate::{
    limits::{PAGE, RESERVE_PIECES},
    types::{ShardId, SliceId},
};
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    ops::Range,
    rc::Rc,
};

/// The directory of all slices of a node.
pub const SLICES: &str = "slices";
/// Slices, or segments, that are opened at once.
const OPENING: usize = 16;
/// Segments that are read at once: the device reads some while records of another come into memtables.
const REPLAYING: usize = 6;

/// A segment found in the directory, not read yet.
struct Candidate<F> {
    header: SegmentHeader,
    file: Rc<F>,
    length: u64,
    mark: Option<Mark>,
    /// Its header is damaged; what is needed of it comes from its batches.
    rebuilt: bool,
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
    let mut damage = Vec::new();
    let slices = open_slices(&disk, &own, &mut damage).await?;
    let (candidates, newest, unknown) = find_segments(&*disk, shard, &own, &mut damage).await?;
    let flushed = slices.iter().map(|s| s.manifest.borrow().state.flushed_sequence >> 40);
    let generation = flushed.chain([newest]).max().unwrap_or(0) + 1;
    let options = options.fitting(disk.space()?.total);
    let held = reserve::held(&*disk, shard).await?;
    let mut store = Store::new(disk, shard, options, generation, slices);
    store.reserve_due.set(held.len() < RESERVE_PIECES);
    store.reserve = RefCell::new(held);
    if unknown {
        store.slices().for_each(|slice| slice.may_have_lost.set(true));
    }
    replay_all(&store, candidates, &own, &mut damage).await?;
    count_live(&store);
    store.bound_table_memory();
    count(&store.counters.damaged_reads, damage.len() as u64);
    store.look_at_space();
    for place in damage {
        store.damages.note(place);
    }
    Ok(store)
}

async fn open_slices<D: Disk>(
    disk: &Rc<D>,
    own: &BTreeSet<SliceId>,
    damage: &mut Vec<Damage>,
) -> Result<Vec<Rc<Slice<D>>>, EngineError> {
    let present: BTreeSet<String> = disk.list(SLICES).await?.into_iter().map(|(name, _)| name).collect();
    let mut slices = Vec::with_capacity(own.len());
    let mut wanted = own.iter();
    let mut opening = FuturesUnordered::new();
    loop {
        while opening.len() < OPENING
            && let Some(id) = wanted.next()
        {
            if present.contains(&format!("{:04x}/", id.0)) {
                opening.push(async { (*id, open_slice(disk, *id).await) });
            } else {
                slices.push(Rc::new(Slice::new(*id, Manifest::empty(*id), TableSet::new(), 1)));
            }
        }
        match opening.next().await {
            Some((_, Ok((slice, damaged)))) => {
                slices.push(slice);
                damage.extend(damaged);
            }
            Some((id, Err(error @ EngineError::Damaged(_)))) => {
                let slice = Slice::new(id, Manifest::empty(id), TableSet::new(), 1);
                damage.push(Damage::of_file(manifest::path(id), id, &error));
                let _ = slice.lost.set(error);
                slices.push(Rc::new(slice));
            }
            Some((_, Err(error))) => return Err(error),
            None => return Ok(slices),
        }
    }
}

/// Reads a slice's manifest, opens its tables, removes files that the manifest does not name. Also gives the tables that
/// are set aside. `Damaged`: the slice is, as a whole.
async fn open_slice<D: Disk>(disk: &Rc<D>, id: SliceId) -> Result<(Rc<Slice<D>>, Vec<Damage>), EngineError> {
    let directory = table::directory(id);
    let names = disk.list(&directory).await?;
    // A rename that was not yet durable must be before anything builds on it.
    disk.sync_dir(&directory).await?;
    let named = names.iter().any(|(name, _)| name == "MANIFEST");
    // The manifest comes before the first table.
    if !named && names.iter().any(|(name, _)| table::id_of(name).is_some()) {
        return Err(EngineError::Damaged(format!("{} at 0: it is missing", manifest::path(id))));
    }
    let manifest = match named {
        false => Manifest::empty(id),
        true => match Manifest::load(&**disk, id).await {
            Err(EngineError::Damaged(_)) => Manifest::load(&**disk, id).await?,
            loaded => loaded?,
        },
    };
    let mut damage = Vec::new();
    if let Some(at) = manifest.mended {
        let place = Damage::of_range(manifest::path(id), at, at, "one copy of a record; the other holds");
        damage.push(Damage { slice: Some(id), ..place });
    }
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
    for meta in known.values() {
        let what = if meta.level == ASIDE {
            "it was set aside before".to_string()
        } else {
            let opened = match Table::open(disk, meta.clone()).await {
                Err(EngineError::Damaged(_)) => Table::open(disk, meta.clone()).await,
                opened => opened,
            };
            match opened {
                Ok(table) => {
                    tables.apply(vec![table], &[]);
                    continue;
                }
                Err(error @ EngineError::Damaged(_)) => damage::text(&error),
                Err(error) => return Err(error),
            }
        };
        tables.set_aside(meta.clone());
        damage.push(Damage::of_table(meta, what));
    }
    let loaded = drops::load(&tables).await;
    let slice = Slice::new(id, manifest, tables, next_table);
    slice.in_tables.set(slice.manifest.borrow().state.flushed_sequence);
    match loaded {
        Ok(drops) => {
            slice.drops.replace(drops);
        }
        // What was dropped would come back.
        Err(error @ EngineError::Damaged(_)) => slice.lost.set(error).unwrap_or_default(),
        Err(error) => return Err(error),
    }
    Ok((Rc::new(slice), damage))
}

/// The segments that may hold records of these slices, the greatest generation of any segment, and whether there is one
/// that nothing is known of.
async fn find_segments<D: Disk>(
    disk: &D,
    shard: ShardId,
    own: &BTreeSet<SliceId>,
    damage: &mut Vec<Damage>,
) -> Result<(Vec<Candidate<D::File>>, u64, bool), EngineError> {
    let names = disk.list(DIRECTORY).await?;
    let mut ids = names.iter().filter_map(|(name, length)| Some((segment::id_of(name)?, *length)));
    // Left over by a crash of this shard: no other makes segments of this number.
    let ours = |id: u64| id as u16 == shard.0;
    let new = names.iter().filter_map(|(name, _)| segment::new_id_of(name));
    let mut blank: Vec<String> = new.filter(|id| ours(*id)).map(segment::new_path).collect();
    let (mut found, mut newest, mut unknown) = (Vec::new(), 0, false);
    let mut opening = FuturesUnordered::new();
    loop {
        while opening.len() < OPENING
            && let Some((id, length)) = ids.next()
        {
            opening.push(look_at(disk, own, id, length));
        }
        match opening.next().await {
            Some(Ok(Looked::Segment(candidate))) => {
                newest = newest.max(candidate.header.generation);
                if candidate.rebuilt {
                    let (id, start) = (candidate.header.id, candidate.header.data_start);
                    let what = "its header; what follows is read all the same";
                    damage.push(Damage::of_range(segment::path(id), 0, start.into(), what));
                    // Whether a batch was before the first that can be read.
                    unknown |= start as usize != PAGE + mark_bytes(own.len());
                }
                if candidate.header.slices.iter().any(|s| own.contains(s)) {
                    found.push(*candidate);
                }
            }
            Some(Ok(Looked::Blank(id))) => {
                newest = newest.max(id >> 40);
                if ours(id) {
                    blank.push(segment::path(id));
                }
            }
            Some(Ok(Looked::Damaged(id, length))) => {
                newest = newest.max(id >> 40);
                unknown = true;
                damage.push(Damage::of_range(segment::path(id), 0, length, "nothing of it can be read"));
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
    Ok((found, newest, unknown))
}

enum Looked<F> {
    Segment(Box<Candidate<F>>),
    /// Gone, or about to have another life.
    Blank(u64),
    /// Its header is lost, and no batch of it can be found.
    Damaged(u64, u64),
}

async fn look_at<D: Disk>(
    disk: &D,
    own: &BTreeSet<SliceId>,
    id: u64,
    length: u64,
) -> Result<Looked<D::File>, EngineError> {
    let path = segment::path(id);
    let file = match disk.open(&path, OpenMode::Write).await {
        Ok(file) => file,
        // Another shard of this node has just removed it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Looked::Blank(id)),
        Err(error) => return Err(error.into()),
    };
    let whole = length - length % PAGE as u64;
    if whole < PAGE as u64 {
        // It has its name only since it was whole.
        return Ok(Looked::Damaged(id, length));
    }
    let mut header = None;
    for _ in 0..2 {
        if let (None, Ok(first)) = (&header, file.read(0, PAGE, Lane::Foreground).await) {
            header = SegmentHeader::decode(first.as_slice(), &path)?;
        }
    }
    if header.as_ref().is_some_and(|h| h.id != id) {
        // Renamed for another life that has not begun: all that lived in it had been copied, durably.
        return Ok(Looked::Blank(id));
    }
    let Some(header) = header else {
        return Ok(match rebuild(&*file, own, id, whole).await {
            Some(header) => Looked::Segment(Box::new(Candidate { header, file, length, mark: None, rebuilt: true })),
            None => Looked::Damaged(id, length),
        });
    };
    let mark_pages = mark_bytes(header.slices.len());
    let mark = if whole >= (PAGE + mark_pages) as u64 {
        // One that cannot be read is none: the segment is read, which is always right.
        let bytes = file.read(PAGE as u64, mark_pages, Lane::Foreground).await.ok();
        bytes.and_then(|bytes| Mark::decode(bytes.as_slice(), &header))
    } else {
        None
    };
    Ok(Looked::Segment(Box::new(Candidate { header, file, length, mark, rebuilt: false })))
}

/// The header of a segment whose first page is damaged, from its first batch: that knows the segment and the epoch.
async fn rebuild<F: DiskFile>(file: &F, own: &BTreeSet<SliceId>, id: u64, length: u64) -> Option<SegmentHeader> {
    for at in (PAGE as u64..length).step_by(PAGE) {
        let Ok(page) = file.read(at, PAGE, Lane::Foreground).await else { continue };
        let Some(batch) = BatchHeader::peek(page.as_slice(), id, u64_at(page.as_slice(), 24), at) else { continue };
        return Some(SegmentHeader {
            id,
            epoch: batch.epoch,
            generation: id >> 40,
            first_sequence: batch.first_sequence,
            shard: id as u16,
            data_start: u32::try_from(at).ok()?,
            step: PAGE as u32,
            reused: true,
            slices: own.iter().copied().collect(),
        });
    }
    None
}

/// Reads what is not known to be flushed, and registers every segment.
async fn replay_all<D: Disk>(
    store: &Store<D>,
    candidates: Vec<Candidate<D::File>>,
    own: &BTreeSet<SliceId>,
    damage: &mut Vec<Damage>,
) -> Result<(), EngineError> {
    for candidate in &candidates {
        check_manifests(store, candidate, damage);
    }
    let mut unread = VecDeque::new();
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
        // It had a step when it got its name, and batches say how much there was since: beyond that, space that the kernel
        // gave only in part, for want of more, may lie at the end.
        if candidate.length < u64::from(candidate.header.step) {
            note_damage(store, &segment, damage, candidate.length..candidate.length, u64::MAX);
        }
        match candidate.mark {
            Some(mark) if done => {
                segment.end.set(mark.end.min(segment.allocated.get()));
                segment.last.borrow_mut().extend(mark.last);
                segment.value_bytes.set(mark.value_bytes);
                segment.record_bytes.set(mark.record_bytes);
                segment.phase.set(Phase::Flushed);
            }
            _ => unread.push_back(segment),
        }
    }
    replay_some(store, unread, damage).await
}

/// What a segment's batches say beside their records.
#[derive(Default)]
struct Replayed {
    damage: Vec<Damage>,
    /// Where the segments before it must end.
    promised: BTreeMap<u64, u64>,
}

/// Replays segments, a few at a time: in whatever order, the greatest sequence of a key wins.
async fn replay_some<D: Disk>(
    store: &Store<D>,
    mut unread: VecDeque<Rc<Segment<D::File>>>,
    damage: &mut Vec<Damage>,
) -> Result<(), EngineError> {
    let mut ends = BTreeSet::new();
    let mut promised = BTreeMap::new();
    let mut replaying = FuturesUnordered::new();
    loop {
        while replaying.len() < REPLAYING
            && let Some(segment) = unread.pop_front()
        {
            ends.insert(segment.id());
            replaying.push(replay(store, segment));
        }
        let Some(replayed) = replaying.next().await else { break };
        let replayed = replayed?;
        damage.extend(replayed.damage);
        promised.extend(replayed.promised);
    }
    for (id, promised) in promised {
        if let Some(segment) = store.segment(id).filter(|_| ends.contains(&id))
            && segment.end.get() < promised
        {
            note_damage(store, &segment, damage, segment.end.get()..promised, u64::MAX);
        }
    }
    Ok(())
}

/// A mark is written when every record of its segment is durably in tables: a manifest that says less has lost what it
/// once said, and nobody knows which tables the slice had.
fn check_manifests<D: Disk>(store: &Store<D>, candidate: &Candidate<D::File>, damage: &mut Vec<Damage>) {
    for (id, last) in candidate.mark.iter().filter(|mark| !mark.partial).flat_map(|mark| &mark.last) {
        let Ok(slice) = store.serving(*id) else { continue };
        if slice.manifest.borrow().state.flushed_sequence >= *last {
            continue;
        }
        let (file, proof) = (manifest::path(*id), segment::path(candidate.header.id));
        let error = EngineError::Damaged(format!("{file} at 0: it has lost records: {proof} proves it"));
        damage.push(Damage::of_file(file, *id, &error));
        let _ = slice.lost.set(error);
    }
}

/// Bytes of a segment are lost, and with them records up to the sequence `last`: of which slices cannot be told.
fn note_damage<D: Disk>(
    store: &Store<D>,
    segment: &Segment<D::File>,
    damage: &mut Vec<Damage>,
    Range { start: from, end: to }: Range<u64>,
    last: u64,
) {
    segment.damaged.set(true);
    for slice in segment.header.slices.iter().filter_map(|slice| store.slice(*slice).ok()) {
        if slice.manifest.borrow().state.flushed_sequence < last {
            slice.may_have_lost.set(true);
        }
    }
    damage.push(Damage::of_range(segment::path(segment.id()), from, to, "batches of the log"));
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
        damaged: Cell::new(candidate.rebuilt),
        live: Cell::new(0),
        in_memory: Cell::new(0),
        value_bytes: Cell::new(0),
        record_bytes: Cell::new(0),
        last: RefCell::default(),
        end_position: Cell::new(0),
        shared: candidate.rebuilt || candidate.header.slices.iter().any(|s| !own.contains(s)),
        share: candidate.header.slices.iter().filter(|s| own.contains(s)).count() as f64
            / candidate.header.slices.len().max(1) as f64,
        in_hand: Cell::new(false),
        copied: Cell::new(false),
        header: candidate.header.clone(),
    }
}

/// Brings the records of a segment that are in no table into the memtables.
async fn replay<D: Disk>(store: &Store<D>, segment: Rc<Segment<D::File>>) -> Result<Replayed, EngineError> {
    let mut replayed = Replayed::default();
    let (segment, Replayed { damage, promised }) = (&segment, &mut replayed);
    let header = &segment.header;
    let (start, limit) = (u64::from(header.data_start), segment.allocated.get());
    let lane = Lane::Foreground;
    let mut reader = BatchReader::new(segment.file.clone(), header, start, limit, lane);
    // A damaged place whose end in sequences is not known yet.
    let mut open_damage: Option<Range<u64>> = None;
    loop {
        let mut lost = Vec::new();
        let found = match reader.next().await {
            Found::Spoiled(batch, records, values) => {
                lost = values;
                Found::Batch(batch, records)
            }
            found => found,
        };
        // Values of records that are known: whoever reads one is told.
        for Range { start, end } in lost {
            segment.damaged.set(true);
            damage.push(Damage::of_range(segment::path(segment.id()), start, end, "a value"));
        }
        match found {
            Found::Batch(batch, records) => {
                if batch.allocated > limit && !segment.damaged.get() {
                    note_damage(store, segment, damage, limit..batch.allocated, u64::MAX);
                }
                if let Some(range) = open_damage.take() {
                    note_damage(store, segment, damage, range, batch.first_sequence.saturating_sub(1));
                }
                if batch.previous != 0 {
                    promised.insert(batch.previous, batch.previous_end);
                }
                let position = store.log.position.get();
                for record in records {
                    segment.note(&record);
                    let Ok(slice) = store.slice(record.slice).cloned() else { continue };
                    if slice.lost.get().is_some() {
                        // Its tables, which nobody knows, may point here.
                        segment.damaged.set(true);
                        continue;
                    }
                    if record.sequence > slice.manifest.borrow().state.flushed_sequence {
                        store.apply(&slice, record, segment, position);
                    }
                }
                store.log.position.set(position + batch.padded());
                count(&store.counters.replayed_bytes, batch.padded());
                segment.end.set(batch.offset + batch.padded());
            }
            Found::Damage { from, to } => {
                // Damage that follows damage is one place.
                let start = open_damage.take().map_or(from, |before| before.start);
                open_damage = Some(start..to);
                segment.end.set(to);
            }
            Found::End { .. } | Found::Spoiled(..) => break,
        }
        store.disk.breathe().await;
    }
    if let Some(range) = open_damage {
        note_damage(store, segment, damage, range, u64::MAX);
    }
    segment.file.sync().await?;
    segment.durable.set(segment.end.get());
    store.seal(segment);
    Ok(replayed)
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
