//! Every bit of 16 KiB samples flips, files are cut at every byte: what is read is right, or an error says so; only
//! what lies in the damaged place may be missing; and all else goes on.

use crate::rig::{KEYS, Place, Rig, SLICES, Workload, key, one_of, share, tiny};
use bytes::Bytes;
use dynarc::{
    engine::{
        disk::{Disk, DiskFile, Lane, OpenMode},
        error::EngineError,
        inspect, manifest,
        table::{self, Table},
        types::{Change, EngineOptions, Record, Stored, StoredValue, Write},
        wal::{
            format::{BatchHeader, LogRecord, Mark, SegmentHeader},
            reader::{BatchReader, Found},
        },
    },
    limits::PAGE,
    sim::{
        disk::VirtualDisk,
        executor::{Executor, Life, block_on},
    },
    types::SliceId,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    rc::Rc,
};

/// Bytes of each sample.
const SAMPLE_BYTES: u64 = 16 << 10;
/// One flip or cut of so many is followed by compaction, new writes and another life.
const DEEP_EVERY: u64 = 211;

fn options() -> EngineOptions {
    // Small values in the tables, so that these have several blocks.
    EngineOptions {
        segment_bytes: 32 << 10,
        memtable_bytes: 24 << 10,
        table_bytes: 64 << 10,
        inline_value_bytes: 900,
        ..tiny()
    }
}

/// A directory with tables, manifests, sealed and open segments; what is current, and all that ever was.
struct Sample {
    disk: VirtualDisk,
    current: BTreeMap<Place, Record>,
    ever: BTreeMap<Place, Vec<Record>>,
    segments: BTreeMap<String, Batches>,
    /// Files as they were half-way.
    older: BTreeMap<String, Vec<u8>>,
}
/// A segment's header, its file's length, its batches.
struct Batches {
    header: SegmentHeader,
    length: u64,
    batches: Vec<(BatchHeader, Vec<LogRecord>)>,
    /// All its records are in tables: an opening skips it.
    marked: bool,
}

fn sample(seed: u64, close: bool) -> Sample {
    let rig = Rig::open(VirtualDisk::new(), options());
    let mut work = Workload::new(seed);
    let (mut current, mut ever): (BTreeMap<_, _>, BTreeMap<Place, Vec<Record>>) = Default::default();
    let mut older = BTreeMap::new();
    for round in 0..90 {
        let mut call = work.call();
        // Heads so long that a slice's table has several blocks.
        for write in &mut call {
            if let Change::Put { head, .. } = &mut write.change {
                *head = [&head[..], &[b'.'; 250]].concat().into();
            }
        }
        assert_eq!(rig.write(call.clone()), Some(Ok(())));
        for write in call {
            let place = (write.slice.0, write.key.to_vec());
            match write.change {
                Change::Delete => drop(current.remove(&place)),
                Change::Put { head, values } => {
                    let record = Record { head, values };
                    ever.entry(place.clone()).or_default().push(record.clone());
                    current.insert(place, record);
                }
            }
        }
        if round % 30 == 0 {
            rig.rest();
        }
        if round == 60 {
            older = contents(&rig.disk);
        }
    }
    let disk = if close { rig.close() } else { rig.kill() };
    rig.end();
    let disk = disk.kill();
    let names = disk.files().into_iter().filter(|(path, _)| path.ends_with(".seg"));
    let segments = names.map(|(path, length)| (path.clone(), block_on(batches(&disk, &path, length)))).collect();
    Sample { disk, current, ever, segments, older }
}

fn contents(disk: &VirtualDisk) -> BTreeMap<String, Vec<u8>> {
    let with_content = |(path, _): (String, u64)| disk.contents(&path).map(|bytes| (path, bytes));
    disk.files().into_iter().filter_map(with_content).collect()
}

async fn batches(disk: &VirtualDisk, path: &str, length: u64) -> Batches {
    let file = disk.open(path, OpenMode::Read).await.expect("a segment");
    let page = file.read(0, PAGE, Lane::Background).await.expect("a page");
    let header = SegmentHeader::decode(page.as_slice(), path).expect("this format").expect("a whole header");
    let mark = file.read(PAGE as u64, PAGE, Lane::Background).await.expect("a page");
    let marked = Mark::decode(mark.as_slice(), &header).is_some();
    let mut reader = BatchReader::new(file, &header, header.data_start.into(), length, Lane::Background);
    let mut batches = Vec::new();
    while let Found::Batch(batch, records) = reader.next().await {
        batches.push((batch, records));
    }
    Batches { header, length, batches, marked }
}

impl Batches {
    /// Whether damage to the batch at this place can be told from a torn end.
    fn is_proven(&self, at: u64) -> bool {
        !self.header.reused || self.batches.iter().any(|(batch, _)| batch.durable > at)
    }
}

/// What a read of a key may give.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Allowed {
    Right,
    OrDamaged,
    /// An older record too, or none: but then damage must have been told.
    OrOlder,
    /// The same, and nobody can tell.
    OrOlderUntold,
}

type Exceptions = BTreeMap<Place, Allowed>;

fn except(exceptions: &mut Exceptions, place: Place, allowed: Allowed) {
    let entry = exceptions.entry(place).or_insert(allowed);
    *entry = allowed.max(*entry);
}
/// Every key of a slice from the first to the last.
fn except_range(exceptions: &mut Exceptions, slice: SliceId, (first, last): (&[u8], &[u8]), allowed: Allowed) {
    for key in (0..KEYS).map(key).filter(|key| first <= &key[..] && &key[..] <= last) {
        except(exceptions, (slice.0, key), allowed);
    }
}

/// How a file is spoiled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Spoil {
    Flip,
    Cut,
    /// Blank from somewhere to its end, as a torn write leaves it: it cannot always be told from one.
    Zeros,
}

/// What a damaged range of a segment may do.
fn segment_exceptions(segment: &Batches, damaged: &Range<u64>, spoil: Spoil) -> Exceptions {
    let is_told = |at: u64| match spoil {
        Spoil::Flip => segment.is_proven(at),
        Spoil::Cut => true,
        Spoil::Zeros => false,
    };
    let mut exceptions = Exceptions::new();
    let touches = |range: Range<u64>| range.start < damaged.end && damaged.start < range.end;
    for (batch, records) in &segment.batches {
        if touches(batch.offset..batch.offset + u64::from(batch.records_end)) {
            let told = is_told(batch.offset);
            let allowed = if told { Allowed::OrOlder } else { Allowed::OrOlderUntold };
            records.iter().for_each(|r| except(&mut exceptions, (r.slice.0, r.key.to_vec()), allowed));
        }
        for record in records {
            let Stored::Put { values, .. } = &record.stored else { continue };
            for value in values {
                if let StoredValue::Pointer(p) = value
                    && touches(p.offset..p.offset + u64::from(p.length))
                {
                    let untold = !is_told(batch.offset);
                    let allowed = if untold { Allowed::OrOlderUntold } else { Allowed::OrDamaged };
                    // The batch's other records go with it when it is taken for torn.
                    let all = records.iter().filter(|r| untold || r.key == record.key && r.slice == record.slice);
                    all.for_each(|r| except(&mut exceptions, (r.slice.0, r.key.to_vec()), allowed));
                }
            }
        }
    }
    exceptions
}

#[derive(Default, Debug)]
struct Totals {
    tried: u64,
    deep: u64,
    reads: u64,
    right: u64,
    damaged: u64,
    older: u64,
    /// After which damage was told, by the list of places or by a read.
    told: u64,
}

/// Opens a spoiled copy and reads everything.
fn judge(
    sample: &Sample,
    spoiled: VirtualDisk,
    exceptions: &Exceptions,
    totals: &mut Totals,
    note: &dyn Fn() -> String,
) {
    let executor = Executor::new();
    let rig = match Rig::try_open(spoiled, executor.clone(), options()) {
        Some(Ok(rig)) => rig,
        other => panic!("{}: {:?}", note(), other.map(|opened| opened.err())),
    };
    totals.tried += 1;
    let deep = totals.tried.is_multiple_of(DEEP_EVERY);
    let mut told = false;
    for life in 0..=u64::from(deep) {
        if life == 1 {
            // Compaction meets the damage, saves what it can and goes on.
            rig.rest();
        }
        told |= read_all(sample, &rig, exceptions, totals, note);
    }
    totals.told += u64::from(told);
    if deep {
        totals.deep += 1;
        goes_on(&rig, note);
    }
    executor.kill(Life(1));
    executor.clear();
}

fn read_all(
    sample: &Sample,
    rig: &Rig,
    exceptions: &Exceptions,
    totals: &mut Totals,
    note: &dyn Fn() -> String,
) -> bool {
    let mut told = !rig.damage().is_empty();
    let mut older = false;
    for place in (0..SLICES).flat_map(|slice| (0..KEYS).map(move |number| (slice, key(number)))) {
        let allowed = exceptions.get(&place).copied().unwrap_or(Allowed::Right);
        let right = sample.current.get(&place);
        totals.reads += 1;
        match rig.get(&place) {
            Some(Ok(found)) if found.as_ref() == right => totals.right += 1,
            Some(Err(EngineError::Damaged(_))) if allowed > Allowed::Right => {
                totals.damaged += 1;
                told = true;
            }
            Some(Ok(found)) if allowed >= Allowed::OrOlder => {
                let ever = sample.ever.get(&place);
                let written = found.as_ref().is_none_or(|record| ever.is_some_and(|all| all.contains(record)));
                assert!(written, "{}: {place:?} was never written", note());
                totals.older += 1;
                older |= allowed == Allowed::OrOlder;
            }
            other => panic!("{}: {place:?} ({allowed:?}): {:?}", note(), other.map(|r| r.map(|r| r.map(|r| r.head)))),
        }
    }
    assert!(told || !older, "{}: an older record, and nothing was said", note());
    told
}

/// New records of every slice that is not set aside are taken, read, and there after a restart.
fn goes_on(rig: &Rig, note: &dyn Fn() -> String) {
    let mut written = Vec::new();
    for slice in (0..SLICES).filter(|slice| !rig.engine.is_aside(SliceId(*slice))) {
        for number in 0..KEYS {
            let head = Bytes::from(format!("after {slice} {number}"));
            let values = [Bytes::from(vec![7; 300])].into_iter().collect();
            let record = Record { head: head.clone(), values };
            let change = Change::Put { head, values: record.values.clone() };
            let write = Write { slice: SliceId(slice), key: key(number).into(), change };
            assert_eq!(rig.write(vec![write]), Some(Ok(())), "{}: goes on", note());
            written.push(((slice, key(number)), record));
        }
    }
    let again = rig.reopen(rig.kill());
    for (place, record) in written {
        assert_eq!(again.get(&place), Some(Ok(Some(record))), "{}: {place:?} a life later", note());
    }
}

/// Flips every bit of a range, or of one of three in the short form of this suite.
fn flip_all(sample: &Sample, path: &str, range: Range<u64>, totals: &mut Totals, of: &dyn Fn(u64) -> Rc<Exceptions>) {
    let step = one_of();
    for at in range {
        let exceptions = of(at);
        for bit in (0..8).filter(|bit| (at * 8 + bit).is_multiple_of(step)) {
            let spoiled = sample.disk.fork();
            spoiled.flip_bit(path, at, bit as u8);
            judge(sample, spoiled, &exceptions, totals, &|| format!("{path}: bit {bit} of byte {at} flipped"));
        }
    }
}

/// The first 16 KiB, and where there are more, nothing else.
fn window(length: u64) -> Range<u64> {
    0..length.min(SAMPLE_BYTES)
}

/// The table of a sample with the most records, in the sample's bounds.
fn table_of(sample: &Sample) -> (String, Rc<Table<VirtualDisk>>) {
    let disk = Rc::new(sample.disk.clone());
    let mut best: Option<Rc<Table<VirtualDisk>>> = None;
    for slice in (0..SLICES).map(SliceId) {
        let (_, reading) = block_on(manifest::read(&*disk, &manifest::path(slice))).expect("a manifest");
        for meta in reading.state.tables.values() {
            let opened = block_on(Table::open(&disk, meta.clone())).expect("a table");
            if best.as_ref().is_none_or(|b| b.meta().entries < meta.entries) {
                best = Some(opened);
            }
        }
    }
    let table = best.expect("the sample has tables");
    (table::path(table.meta().slice, table.meta().id), table)
}

#[test]
fn a_flipped_bit_in_a_table() {
    let sample = sample(1, true);
    let (path, table) = table_of(&sample);
    let meta = table.meta();
    assert!(meta.bytes >= SAMPLE_BYTES && meta.entries >= 6, "{meta:?}");
    let of = |at: u64| {
        let block = (at / PAGE as u64) as u32;
        let mut exceptions = Exceptions::new();
        if block < table.blocks() {
            let (first, last) = table.keys_of(block);
            except_range(&mut exceptions, meta.slice, (&first, &last), Allowed::OrDamaged);
        } else {
            except_range(&mut exceptions, meta.slice, (&meta.smallest, &meta.largest), Allowed::OrDamaged);
        }
        Rc::new(exceptions)
    };
    let mut totals = Totals::default();
    flip_all(&sample, &path, 0..meta.bytes, &mut totals, &of);
    println!("a table of {} blocks and {} bytes: {totals:?}", table.blocks(), meta.bytes);
    assert!(table.blocks() > 1 && totals.tried >= share(SAMPLE_BYTES * 8));
    assert!(totals.told == totals.tried, "every flip is in a section, and its sum covers the padding");
    assert!(totals.damaged > 0 && totals.right * 100 >= totals.reads * 70 && totals.deep > 100, "{totals:?}");
}

#[test]
fn a_flipped_bit_in_a_manifest_costs_nothing() {
    let sample = sample(2, true);
    let mut totals = Totals::default();
    let exceptions = Rc::new(Exceptions::new());
    flip_all(&sample, &manifest::path(SliceId(1)), window(u64::MAX), &mut totals, &|_| exceptions.clone());
    println!("a manifest: {totals:?}");
    assert_eq!((totals.tried, totals.right), (share(SAMPLE_BYTES * 8), totals.reads));
    assert!(totals.told > 1_000, "{totals:?}");
}

#[test]
fn a_flipped_bit_in_a_segment_of_the_log() {
    let sample = sample(3, false);
    // One that an opening reads again, with the most batches: what it holds is in no table.
    let replayed = sample.segments.iter().filter(|(_, s)| !s.marked);
    let (path, segment) = replayed.max_by_key(|(_, s)| (s.batches.len(), s.header.id)).expect("a segment");
    assert!(segment.batches.len() > 1, "{path}");
    let data = u64::from(segment.header.data_start);
    let mut totals = Totals::default();
    let of = |at: u64| Rc::new(segment_exceptions(segment, &(at..at + 1), Spoil::Flip));
    for range in [0..PAGE as u64, data..data + SAMPLE_BYTES - PAGE as u64] {
        flip_all(&sample, path, range, &mut totals, &of);
    }
    println!("{path}, {} batches, reused {}: {totals:?}", segment.batches.len(), segment.header.reused);
    assert!(totals.tried.abs_diff(share(SAMPLE_BYTES * 8)) < 8, "{totals:?}");
    assert!(totals.damaged > 1_000 && totals.told > totals.tried / 4, "{totals:?}");
    assert!(totals.right * 100 >= totals.reads * 95 && totals.deep > 100, "{totals:?}");
}

/// Also sealed segments and marked ones, every 512th bit; and what tables point to.
#[test]
fn a_flipped_bit_in_any_segment() {
    let mut totals = Totals::default();
    let mut bits = 0;
    for (seed, close) in [(4, true), (5, false)] {
        let sample = sample(seed, close);
        for (path, segment) in &sample.segments {
            for at in (0..segment.length).step_by(64 * one_of() as usize) {
                let exceptions = segment_exceptions(segment, &(at..at + 1), Spoil::Flip);
                let spoiled = sample.disk.fork();
                spoiled.flip_bit(path, at, (at / 64 % 8) as u8);
                bits += 1;
                judge(&sample, spoiled, &exceptions, &mut totals, &|| format!("seed {seed} {path} flip at {at}"));
            }
        }
    }
    println!("segments: {totals:?}");
    assert_eq!(totals.tried, bits);
    assert!(totals.damaged > 50 && totals.right * 100 >= totals.reads * 98, "{totals:?}");
}

#[test]
fn a_file_cut_at_any_byte() {
    let sample = sample(7, false);
    let (path, table) = table_of(&sample);
    let meta = table.meta();
    let mut lost = Exceptions::new();
    except_range(&mut lost, meta.slice, (&meta.smallest, &meta.largest), Allowed::OrDamaged);
    cut_all(&sample, &path, true, &mut Totals::default(), &|_, _| lost.clone());

    let mut lost = Exceptions::new();
    except_range(&mut lost, SliceId(1), (b"", b"\xff"), Allowed::OrDamaged);
    let mut totals = Totals::default();
    cut_all(&sample, &manifest::path(SliceId(1)), false, &mut totals, &|_, _| lost.clone());
    assert_eq!(totals.told, totals.tried, "a manifest says how long it is");
    assert!(totals.right * 100 >= totals.reads * 60, "two slices of three are as they were: {totals:?}");

    let mut all_told = true;
    // The oldest, which is sealed and whose values tables point to, and the newest.
    let ends = [sample.segments.first_key_value(), sample.segments.last_key_value()];
    for (path, segment) in ends.into_iter().flatten() {
        let mut totals = Totals::default();
        cut_all(&sample, path, true, &mut totals, &|cut, spoil| segment_exceptions(segment, &(cut..u64::MAX), spoil));
        println!("{path} cut: {totals:?}");
        all_told &= totals.told * 2 >= totals.tried;
    }
    assert!(all_told, "every cut of a segment is told; zeros at its end need not be");
}

/// Cuts a file at every byte of a sample, and with `zeros` also leaves its length and blanks what follows.
fn cut_all(sample: &Sample, path: &str, zeros: bool, totals: &mut Totals, of: &dyn Fn(u64, Spoil) -> Exceptions) {
    let bytes = sample.disk.contents(path).expect("a file");
    let step = one_of();
    for cut in window(bytes.len() as u64).step_by(step as usize) {
        for spoil in [Spoil::Cut, Spoil::Zeros].into_iter().filter(|spoil| zeros || *spoil == Spoil::Cut) {
            let mut left = bytes[..cut as usize].to_vec();
            if spoil == Spoil::Zeros {
                left.resize(bytes.len(), 0);
            }
            if left == bytes {
                continue;
            }
            let spoiled = sample.disk.fork();
            spoiled.replace(path, &left);
            judge(sample, spoiled, &of(cut, spoil), totals, &|| format!("{path} at {cut}: {spoil:?}"));
        }
    }
}

#[test]
fn inspection_verifies_what_is_whole_and_finds_what_is_not() {
    let sample = sample(8, true);
    let ours = |path: &str| path.ends_with(".seg") || path.ends_with("MANIFEST") || path.ends_with(".sst");
    let mut found = BTreeSet::new();
    for (path, length) in sample.disk.files().into_iter().filter(|(path, _)| ours(path)) {
        let look = |disk: &VirtualDisk| {
            let mut lines = Vec::new();
            let mut print = |line: String| lines.push(line);
            let damaged = if path.starts_with("log/") {
                block_on(inspect::wal(disk, &path, &mut print)).map(|v| v.damaged)
            } else if path.ends_with("MANIFEST") {
                block_on(inspect::manifest(disk, &path, &mut print)).map(|v| v.damaged)
            } else {
                block_on(table::inspect::table(disk, &path, &mut print)).map(|_| 0)
            };
            (damaged, lines)
        };
        let (damaged, lines) = look(&sample.disk);
        assert_eq!(damaged, Ok(0), "{path}");
        assert!(lines.len() > 1, "{path}: {lines:?}");
        let bytes = sample.disk.contents(&path).expect("a file");
        let segment = sample.segments.get(&path);
        for at in (0..length).filter(|at| bytes[*at as usize] != 0).step_by(13) {
            // Behind the last batch lie blanks, or another life; a mark that does not hold is no mark.
            let used = segment.is_none_or(|s| {
                let mark = (PAGE as u64..s.header.data_start.into()).contains(&at);
                let batch = s.batches.iter().any(|(b, _)| (b.offset..b.offset + u64::from(b.length)).contains(&at));
                !mark && (at < PAGE as u64 || batch && s.is_proven(at))
            });
            if !used {
                continue;
            }
            let spoiled = sample.disk.fork();
            spoiled.flip_bit(&path, at, 3);
            match look(&spoiled) {
                (Ok(0), lines) => panic!("{path}: a flip at {at} was not seen: {lines:?}"),
                (Ok(_), lines) => {
                    let said = lines.iter().any(|line| line.contains("DAMAGED") || line.contains("damaged"));
                    assert!(said, "{path} at {at}: {lines:?}");
                }
                (Err(EngineError::Damaged(what)), _) => assert!(what.contains(&path), "{what}"),
                (Err(other), _) => panic!("{path} at {at}: {other}"),
            }
            found.insert(path.rsplit('.').next().map(str::to_string));
        }
    }
    assert!(found.len() >= 3, "segments, tables, manifests: {found:?}");
}

/// Removed files, files under each other's name, with another one's first page, as they were some time ago: what is
/// read is right, or an error says so, or the slice is known to be in doubt, in this life and in later ones. Nothing is
/// removed.
#[test]
fn files_that_are_missing_or_not_what_their_names_say() {
    let (mut tried, mut doubted, mut right, mut damaged) = (0, 0, 0, 0);
    for seed in 20..24 {
        let close = seed % 2 == 0;
        let sample = sample(seed, close);
        let files = contents(&sample.disk);
        let ours = |path: &&String| path.starts_with("log/") || path.starts_with("slices/");
        let mut spoilt: Vec<(String, VirtualDisk)> = Vec::new();
        for (path, bytes) in files.iter().filter(|(path, _)| ours(path)) {
            let removed = sample.disk.fork();
            block_on(removed.remove(path)).expect("it is there");
            spoilt.push((format!("{path} removed"), removed));
            // Of the segments that were written last before a kill, a part of the end is proven by nothing else.
            if let Some(older) = sample.older.get(path).filter(|older| close && *older != bytes) {
                let put_back = sample.disk.fork();
                put_back.replace(path, older);
                spoilt.push((format!("{path} as it was"), put_back));
            }
            let ending = path.rsplit('.').next();
            for (other, foreign) in
                files.iter().filter(|(o, _)| ours(o) && *o != path && o.rsplit('.').next() == ending)
            {
                let page = sample.disk.fork();
                page.replace(path, &[&foreign[..PAGE.min(foreign.len())], &bytes[PAGE.min(bytes.len())..]].concat());
                spoilt.push((format!("{path} with the first page of {other}"), page));
                if other < path {
                    let swapped = sample.disk.fork();
                    swapped.replace(path, foreign);
                    swapped.replace(other, bytes);
                    spoilt.push((format!("{path} and {other} swapped"), swapped));
                }
            }
        }
        for (what, disk) in spoilt {
            let note = format!("seed {seed}: {what}");
            let before: BTreeSet<String> = disk.files().into_iter().map(|(path, _)| path).collect();
            let executor = Executor::new();
            let mut rig = match Rig::try_open(disk, executor.clone(), options()) {
                Some(Ok(rig)) => rig,
                other => panic!("{note}: {:?}", other.map(|opened| opened.err())),
            };
            tried += 1;
            let after: BTreeSet<String> = rig.disk.files().into_iter().map(|(path, _)| path).collect();
            assert!(before.is_subset(&after), "{note}: an opening has removed something");
            for life in 0..2 {
                for place in (0..SLICES).flat_map(|slice| (0..KEYS).map(move |number| (slice, key(number)))) {
                    match rig.get(&place) {
                        Some(Ok(found)) if found.as_ref() == sample.current.get(&place) => right += 1,
                        Some(Err(EngineError::Damaged(_))) => damaged += 1,
                        Some(Ok(_)) if rig.engine.may_have_lost(SliceId(place.0)) => doubted += 1,
                        other => {
                            let found = other.map(|read| read.map(|record| record.map(|record| record.head)));
                            panic!("{note}, life {life}: {place:?} is {found:?}, and nobody says a word")
                        }
                    }
                }
                if life == 0 {
                    rig = rig.reopen(rig.kill());
                }
            }
            executor.kill(Life(1));
            executor.clear();
        }
    }
    println!("{tried} directories: {right} reads right, {damaged} damaged, {doubted} in doubt");
    assert!(tried > 100 && damaged > 100 && doubted > 50, "{tried}, {damaged}, {doubted}");
}
