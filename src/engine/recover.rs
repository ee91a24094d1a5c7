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
//! What is there must agree with the [roll]: a segment that it names and that is missing, or ends too
//! soon, has lost records, and so has a slice whose manifest has fewer records than it says. Slices that may have lost
//! any are in doubt from then on.
//!
//! Nothing is ever truncated, and nothing is removed: see [`super::leftovers`]. A file of a segment is blank only if it
//! holds no batch of its own and nothing counts on it. Damage is counted, named, and left where it is; all else opens.
//! A table that cannot be opened is set aside; so is a slice whose manifest cannot be read, or says less than a
//! segment's mark proves. A segment with records of such a slice is kept as it is. Whatever fails its checksum or
//! cannot be read is read once more before that is believed. A file that is there and cannot be *opened* is another
//! matter (too few descriptors, no permission): it says nothing of the medium, so the opening fails.

use super::{
    compaction::TableSet,
    damage::{self, Damage},
    disk::{Disk, DiskFile, Lane, OpenMode, PageBuffer},
    drops,
    error::EngineError,
    leftovers::{self, Leftover},
    manifest::{self, Manifest},
    reserve,
    store::{Slice, Store, count},
    table::{self, ASIDE, Table},
    types::EngineOptions,
    wal::{
        format::{BatchHeader, FORMAT_ON_ROLL, Mark, SegmentHeader, mark_bytes, u64_at},
        reader::{BatchReader, Found},
        roll::{self, Keeper, Roll},
        segment::{self, DIRECTORY, GENERATIONS, Phase, Segment},
    },
};
use crate::{
    limits::{KIB, PAGE, RESERVE_PIECES},
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
/// Bytes of one read while the first batch of a segment with a damaged header is searched for.
const REBUILD_WINDOW: u64 = 256 * KIB as u64;
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
    let found = match roll::find(&*disk, shard).await? {
        roll::Found::Lost(EngineError::Damaged(_), _) => roll::find(&*disk, shard).await?,
        found => found,
    };
    let (known, mut lost_roll) = match &found {
        roll::Found::Roll(_, roll) => (Some(roll), None),
        roll::Found::Nothing => (None, None),
        roll::Found::Lost(error, _) => (None, Some(damage::text(error))),
    };
    let (slices, mut left) = open_slices(&disk, &own, known, &mut damage).await?;
    let segments = find_segments(&*disk, shard, &own, known, &mut damage).await?;
    let Segments { candidates, newest, mut unknown, kept, blank, on_roll } = segments;
    left.extend(blank);
    let no_segments = candidates.is_empty() && segments_are_gone(&*disk).await?;
    let has_tables = || slices.iter().any(|slice| slice.manifest.borrow().exists());
    if matches!(found, roll::Found::Nothing) && (on_roll || (no_segments && has_tables())) {
        // One that has been written to has one. Only a log that is gone as a whole has neither it nor segments.
        lost_roll = Some(format!("{} at 0: it is missing", roll::path(shard)));
    }
    if let Some(what) = lost_roll {
        damage.push(Damage::of_work(&what));
        unknown = true;
    }
    let flushed = slices.iter().map(|s| s.manifest.borrow().state.flushed_sequence >> 40);
    let on_rolls = known.into_iter().flat_map(|roll| roll.segments.keys().map(|id| id >> 40));
    let generation = flushed.chain(on_rolls).chain([newest]).max().unwrap_or(0) + 1;
    if generation >= GENERATIONS - GENERATIONS / 16 {
        // No node starts so often: some file bears a name that none of ours has.
        let what = format!("the log would begin its life {generation}, and no directory has so many");
        return Err(EngineError::Failed(format!("{what}: is there a foreign file in {DIRECTORY}/?")));
    }
    let options = options.fitting(disk.space()?.total);
    let held = reserve::held(&*disk, shard).await?;
    let keeper = match found {
        roll::Found::Roll(file, roll) => Keeper::new(file, roll),
        roll::Found::Nothing => Keeper::new(None, Roll::default()),
        roll::Found::Lost(_, serial) => Keeper::new(None, Roll { serial, ..Roll::default() }),
    };
    keeper.kept.replace(kept);
    let mut store = Store::new(disk, shard, options, generation, slices, keeper);
    store.reserve_due.set(held.len() < RESERVE_PIECES);
    store.reserve = RefCell::new(held);
    store.leftovers = RefCell::new(left);
    for slice in store.slices() {
        slice.may_have_lost.set(store.roll.found.doubted.contains(&slice.id));
        slice.newly_lost.set(store.roll.found.fresh.contains(&slice.id));
        if unknown {
            slice.lose();
        }
    }
    replay_all(&store, candidates, &own, &mut damage).await?;
    count_live(&store);
    store.bound_table_memory();
    count(&store.counters.damaged_reads, damage.len() as u64);
    store.look_at_space();
    for place in damage {
        if let Some(slice) = place.slice.and_then(|slice| store.slice(slice).ok()) {
            slice.damaged.set(true);
        }
        store.damages.note(place);
    }
    roll::open(&store).await?;
    Ok(store)
}

/// Whether the log's directory holds no segment, nor one that was being made.
async fn segments_are_gone<D: Disk>(disk: &D) -> Result<bool, EngineError> {
    let names = disk.list(DIRECTORY).await?;
    Ok(!names.iter().any(|(name, _)| segment::id_of(name).is_some() || segment::new_id_of(name).is_some()))
}

type SlicesFound<D> = (Vec<Rc<Slice<D>>>, Vec<Leftover<D>>);

async fn open_slices<D: Disk>(
    disk: &Rc<D>,
    own: &BTreeSet<SliceId>,
    roll: Option<&Roll>,
    damage: &mut Vec<Damage>,
) -> Result<SlicesFound<D>, EngineError> {
    let present: BTreeSet<String> = disk.list(SLICES).await?.into_iter().map(|(name, _)| name).collect();
    let (mut slices, mut left) = (Vec::with_capacity(own.len()), Vec::new());
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
            Some((_, Ok((slice, damaged, left_over)))) => {
                slices.push(slice);
                damage.extend(damaged);
                left.extend(left_over);
            }
            Some((id, Err(error @ EngineError::Damaged(_)))) => {
                let slice = Slice::new(id, Manifest::empty(id), TableSet::new(), 1);
                damage.push(Damage::of_file(manifest::path(id), id, &error));
                let _ = slice.lost.set(error);
                slices.push(Rc::new(slice));
            }
            Some((_, Err(error))) => return Err(error),
            None => break,
        }
    }
    for slice in slices.iter().filter(|slice| slice.lost.get().is_none()) {
        let (known, index) = (roll.and_then(|roll| roll.manifests.get(&slice.id)), slice.manifest.borrow().index());
        if known.is_some_and(|known| index < *known) {
            let file = manifest::path(slice.id);
            let what =
                format!("{file} at 0: it is missing, or an older one: it has {index} records and not all that it had");
            let error = EngineError::Damaged(what);
            damage.push(Damage::of_file(file, slice.id, &error));
            let _ = slice.lost.set(error);
        }
    }
    Ok((slices, left))
}

type SliceFound<D> = (Rc<Slice<D>>, Vec<Damage>, Vec<Leftover<D>>);

/// Reads a slice's manifest and opens its tables. Also gives the tables that are set aside, and files that the manifest
/// does not name. `Damaged`: the slice is, as a whole.
async fn open_slice<D: Disk>(disk: &Rc<D>, id: SliceId) -> Result<SliceFound<D>, EngineError> {
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
    let (mut unnamed, mut unfinished) = (Vec::new(), Vec::new());
    for (name, _) in &names {
        match table::id_of(name) {
            Some(table) => {
                next_table = next_table.max(table + 1);
                unnamed.extend((!known.contains_key(&table)).then_some(table));
            }
            None if name == "MANIFEST.new" => unfinished.push(format!("{directory}/{name}")),
            None => {}
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
    let slice = Rc::new(slice);
    let tables = unnamed.into_iter().map(|table| Leftover::Table(slice.clone(), table));
    let manifests = unfinished.into_iter().map(|path| Leftover::Manifest(slice.clone(), path));
    let left = tables.chain(manifests).collect();
    Ok((slice, damage, left))
}

/// The segments that the log's directory holds, sorted by what can be done with them.
struct Segments<D: Disk> {
    /// Segments that may hold records of this core's slices.
    candidates: Vec<Candidate<D::File>>,
    /// The greatest generation of any.
    newest: u64,
    /// Whether a segment that may have held records of these slices is missing, or cannot be read at all.
    unknown: bool,
    /// Segments that are there and cannot be read: their files are kept as they are.
    kept: BTreeSet<u64>,
    blank: Vec<Leftover<D>>,
    /// Some segment that this core made should be on its roll.
    on_roll: bool,
}

async fn find_segments<D: Disk>(
    disk: &D,
    shard: ShardId,
    own: &BTreeSet<SliceId>,
    roll: Option<&Roll>,
    damage: &mut Vec<Damage>,
) -> Result<Segments<D>, EngineError> {
    let names = disk.list(DIRECTORY).await?;
    let present: BTreeMap<u64, u64> =
        names.iter().filter_map(|(name, length)| Some((segment::id_of(name)?, *length))).collect();
    // Left over by a crash of this core: no other makes segments of this number.
    let ours = |id: u64| id as u16 == shard.0;
    let unnamed: Vec<u64> = names.iter().filter_map(|(name, _)| segment::new_id_of(name)).collect();
    // No segment of this life has the name of one that a former one began to make.
    let newest = unnamed.iter().map(|id| id >> 40).max().unwrap_or(0);
    let blank = unnamed.into_iter().filter(|id| ours(*id)).map(Leftover::Unnamed).collect();
    let (candidates, kept) = (Vec::new(), BTreeSet::new());
    let mut found = Segments { candidates, newest, unknown: false, kept, blank, on_roll: false };
    let on_roll = |id: u64| roll.and_then(|roll| roll.segments.get(&id));
    // Records in no table are lost with it, and nobody knows that yet.
    let takes_records = |id: u64| on_roll(id).map_or(roll.is_none(), |entry| !entry.flushed && !entry.damaged);
    let around = Around { own, roll, present: &present };
    let mut ids = present.iter();
    let mut opening = FuturesUnordered::new();
    loop {
        while opening.len() < OPENING
            && let Some((id, length)) = ids.next()
        {
            opening.push(look_at(disk, &around, *id, *length));
        }
        match opening.next().await {
            Some(Ok(Looked::Segment(candidate))) => {
                let header = &candidate.header;
                found.newest = found.newest.max(header.generation);
                found.on_roll |= ours(header.id) && header.format >= FORMAT_ON_ROLL;
                if candidate.rebuilt {
                    let what = "its header; what follows is read all the same";
                    let (path, start) = (segment::path(header.id), header.data_start);
                    damage.push(Damage::of_range(path, 0, start.into(), what));
                    // Whether a batch was before the first that can be read.
                    let first = start as usize == PAGE + mark_bytes(own.len());
                    found.unknown |= !first && takes_records(header.id);
                }
                if header.slices.iter().any(|s| own.contains(s)) {
                    found.candidates.push(*candidate);
                }
            }
            Some(Ok(Looked::Blank(id))) => {
                found.newest = found.newest.max(id >> 40);
                found.blank.extend(ours(id).then_some(Leftover::Segment(id)));
            }
            Some(Ok(Looked::Gone(id))) => found.newest = found.newest.max(id >> 40),
            Some(Ok(Looked::Damaged(id, length, what))) => {
                found.newest = found.newest.max(id >> 40);
                found.unknown |= takes_records(id);
                if ours(id) || on_roll(id).is_some() || roll.is_none() {
                    found.kept.insert(id);
                    damage.push(Damage::of_range(segment::path(id), 0, length, what));
                }
            }
            Some(Err(error)) => return Err(error),
            None => break,
        }
    }
    drop(opening);
    for (id, entry) in roll.iter().flat_map(|roll| &roll.segments).filter(|(id, _)| !present.contains_key(id)) {
        // One whose loss was known may have been taken away.
        if !entry.damaged {
            found.unknown |= takes_records(*id);
            damage.push(Damage::of_range(segment::path(*id), 0, entry.end, "the file is missing"));
        }
    }
    found.candidates.sort_by_key(|c: &Candidate<_>| (c.header.first_sequence, c.header.id));
    Ok(found)
}

enum Looked<F> {
    Segment(Box<Candidate<F>>),
    /// The file has no batch of its own and nothing counts on it: its former life was over and its next one had not
    /// begun.
    Blank(u64),
    /// Another core has just removed it.
    Gone(u64),
    /// No batch of it can be found: its bytes, and why.
    Damaged(u64, u64, &'static str),
}

/// The surroundings that the file of a segment has to agree with.
struct Around<'a> {
    own: &'a BTreeSet<SliceId>,
    roll: Option<&'a Roll>,
    /// All files of segments.
    present: &'a BTreeMap<u64, u64>,
}

impl Around<'_> {
    /// Whether a file without any batch of its own, whose header is that of another segment, was renamed for another
    /// life that has not begun: both are needed no more then, and the other one is nowhere else.
    fn is_blank(&self, id: u64, header: &SegmentHeader) -> bool {
        let counted_on = |id: &u64| self.roll.is_some_and(|roll| roll.segments.contains_key(id));
        let renamed = header.generation <= id >> 40 && !self.present.contains_key(&header.id);
        renamed && !counted_on(&id) && !counted_on(&header.id)
    }
}

async fn look_at<D: Disk>(disk: &D, around: &Around<'_>, id: u64, length: u64) -> Result<Looked<D::File>, EngineError> {
    let path = segment::path(id);
    let file = match disk.open(&path, OpenMode::Write).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Looked::Gone(id)),
        Err(error) => return Err(error.into()),
    };
    let known = around.roll.and_then(|roll| roll.segments.get(&id));
    let whole = length - length % PAGE as u64;
    if whole < PAGE as u64 {
        // It has its name only since it was whole.
        return Ok(Looked::Damaged(id, length, "nothing of it is there"));
    }
    let mut header = None;
    for _ in 0..2 {
        if let (None, Ok(first)) = (&header, file.read(0, PAGE, Lane::Foreground).await) {
            header = SegmentHeader::decode(first.as_slice(), &path)?;
        }
    }
    let fits = |h: &SegmentHeader| h.id == id && known.is_none_or(|known| known.epoch == h.epoch);
    let header = match header {
        Some(header) if fits(&header) => header,
        other => {
            let epoch = known.map(|known| known.epoch);
            if let Some(header) = rebuild(&*file, around.own, id, whole, epoch).await {
                let rebuilt = Candidate { header, file, length, mark: None, rebuilt: true };
                return Ok(Looked::Segment(Box::new(rebuilt)));
            }
            return Ok(match other {
                Some(header) if header.id != id && around.is_blank(id, &header) => Looked::Blank(id),
                Some(_) => Looked::Damaged(id, length, "it holds another segment, or an older one"),
                None => Looked::Damaged(id, length, "nothing of it can be read"),
            });
        }
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

/// Whether a file that the opening took for blank still is one.
pub async fn is_blank<D: Disk>(store: &Store<D>, id: u64) -> Result<bool, EngineError> {
    if leftovers::is_wanted(store, id) {
        return Ok(false);
    }
    let names = store.disk.list(DIRECTORY).await?;
    let present: BTreeMap<u64, u64> =
        names.iter().filter_map(|(name, length)| Some((segment::id_of(name)?, *length))).collect();
    let Some(length) = present.get(&id) else { return Ok(false) };
    let own = store.slices().map(|slice| slice.id).collect();
    let roll = roll::compose(store);
    let around = Around { own: &own, roll: Some(&roll), present: &present };
    Ok(matches!(look_at(&*store.disk, &around, id, *length).await?, Looked::Blank(_)))
}

/// The header of a segment whose first page is damaged, from its first batch: that knows the segment and the epoch.
async fn rebuild<F: DiskFile>(
    file: &F,
    own: &BTreeSet<SliceId>,
    id: u64,
    length: u64,
    epoch: Option<u64>,
) -> Option<SegmentHeader> {
    let mut window = PageBuffer::zeroed(0);
    let mut from = 0;
    for at in (PAGE as u64..length).step_by(PAGE) {
        if at >= from + window.len() as u64 {
            let bytes = REBUILD_WINDOW.min(length - at) as usize;
            from = at;
            window = match file.read(at, bytes, Lane::Foreground).await {
                Ok(read) => read,
                // Some page of it cannot be read: this one, or a later one.
                Err(_) => match file.read(at, PAGE, Lane::Foreground).await {
                    Ok(read) => read,
                    Err(_) => PageBuffer::zeroed(PAGE),
                },
            };
        }
        let page = &window.as_slice()[(at - from) as usize..][..PAGE];
        let epoch = epoch.unwrap_or(u64_at(page, 24));
        let Some(batch) = BatchHeader::peek(page, id, epoch, at) else { continue };
        return Some(SegmentHeader {
            format: FORMAT_ON_ROLL,
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
        let known = store.roll.found.segments.get(&candidate.header.id).copied().unwrap_or_default();
        let segment = Rc::new(registered(&candidate, own));
        segment.loss_noted.set(known.damaged);
        store.segments.borrow_mut().insert(segment.id(), segment.clone());
        // It had a step when it got its name, and batches say how much there was since: beyond that, space that the
        // kernel gave only in part, for want of more, may lie at the end.
        let least = known.end.max(candidate.header.step.into());
        if candidate.length < least {
            // Of records that are in tables only values can be lost: whoever reads one is told.
            let last = if done { 0 } else { u64::MAX };
            note_damage(store, &segment, damage, candidate.length..least, last);
        }
        match candidate.mark {
            Some(mark) if done => {
                segment.end.set(mark.end.min(segment.allocated.get()));
                segment.last.borrow_mut().extend(mark.last);
                segment.value_bytes.set(mark.value_bytes);
                segment.record_bytes.set(mark.record_bytes);
                segment.phase.set(Phase::Flushed);
            }
            _ => unread.push_back((segment, known.end)),
        }
    }
    replay_some(store, unread, damage).await
}

/// The outcome of replaying a segment, beside its records.
#[derive(Default)]
struct Replayed {
    damage: Vec<Damage>,
    /// The ends that its batches give for the segments before it: a segment that is shorter has lost something.
    promised: BTreeMap<u64, u64>,
}

/// Replays segments, a few at a time: in whatever order, the greatest sequence of a key wins.
async fn replay_some<D: Disk>(
    store: &Store<D>,
    mut unread: VecDeque<(Rc<Segment<D::File>>, u64)>,
    damage: &mut Vec<Damage>,
) -> Result<(), EngineError> {
    let mut ends = BTreeSet::new();
    let mut promised = BTreeMap::<u64, u64>::new();
    let mut replaying = FuturesUnordered::new();
    loop {
        while replaying.len() < REPLAYING
            && let Some((segment, proven)) = unread.pop_front()
        {
            ends.insert(segment.id());
            let said = promised.entry(segment.id()).or_insert(proven);
            *said = proven.max(*said);
            replaying.push(replay(store, segment, proven));
        }
        let Some(replayed) = replaying.next().await else { break };
        let replayed = replayed?;
        damage.extend(replayed.damage);
        for (id, end) in replayed.promised {
            let said = promised.entry(id).or_insert(end);
            *said = end.max(*said);
        }
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

/// Notes that bytes of a segment are lost, and with them records up to the sequence `last`. It cannot be told whose
/// they were, so every slice of the segment that had not flushed as far is in doubt.
fn note_damage<D: Disk>(
    store: &Store<D>,
    segment: &Segment<D::File>,
    damage: &mut Vec<Damage>,
    Range { start: from, end: to }: Range<u64>,
    last: u64,
) {
    segment.damaged.set(true);
    // What is known to be lost has been acted upon: the doubt, if there still is one, stands on the roll.
    if !segment.loss_noted.replace(true) || store.roll.noted_now.borrow().contains(&segment.id()) {
        store.roll.noted_now.borrow_mut().insert(segment.id());
        for slice in segment.header.slices.iter().filter_map(|slice| store.slice(*slice).ok()) {
            if slice.manifest.borrow().state.flushed_sequence < last {
                slice.lose();
            }
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
        loss_noted: Cell::new(false),
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
async fn replay<D: Disk>(
    store: &Store<D>,
    segment: Rc<Segment<D::File>>,
    proven: u64,
) -> Result<Replayed, EngineError> {
    let mut replayed = Replayed::default();
    let (segment, Replayed { damage, promised }) = (&segment, &mut replayed);
    let header = &segment.header;
    let (start, limit) = (u64::from(header.data_start), segment.allocated.get());
    let lane = Lane::Foreground;
    let mut reader = BatchReader::new(segment.file.clone(), header, start, limit, lane).proven(proven);
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
