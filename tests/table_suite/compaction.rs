//! Compaction against a map: whatever is chosen and done, lookups and scans show the same, and each value that goes is
//! reported once.

use super::table::{SLICE, disk, pointer, put};
use bytes::Bytes;
use dynarc::{
    engine::{
        cache::BlockCache,
        compaction::{Choice, MemorySource, Merge, MergeCursor, Source, TableSet, choose, policy, run},
        disk::{Disk, Lane},
        drops::Drops,
        error::EngineError,
        table::{Builder, Table, TableMeta, path},
        types::{EngineOptions, Stored, StoredValue, ValuePointer},
    },
    sim::{
        disk::{Fault, VirtualDisk},
        executor::block_on,
        prng::Prng,
    },
};
use smallvec::smallvec;
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

/// Small enough that a few thousand records make several levels.
fn small() -> EngineOptions {
    EngineOptions { table_bytes: 16 << 10, level0_tables: 3, level_factor: 3, ..EngineOptions::default() }
}

/// A slice, and what it must hold.
struct Shop {
    disk: Rc<VirtualDisk>,
    options: EngineOptions,
    set: TableSet<VirtualDisk>,
    newest: BTreeMap<Vec<u8>, (u64, Stored)>,
    /// Values of records in tables that were not reported as dropped.
    held: BTreeSet<ValuePointer>,
    next_id: u64,
    sequence: u64,
}

fn pointers(stored: &Stored) -> Vec<ValuePointer> {
    let Stored::Put { values, .. } = stored else { return Vec::new() };
    let pointer = |value: &StoredValue| match value {
        StoredValue::Pointer(pointer) => Some(*pointer),
        StoredValue::Inline(_) => None,
    };
    values.iter().filter_map(pointer).collect()
}

impl Shop {
    fn new(options: EngineOptions) -> Shop {
        let (set, newest, held) = (TableSet::new(), BTreeMap::new(), BTreeSet::new());
        Shop { disk: disk(), options, set, newest, held, next_id: 0, sequence: 0 }
    }
    /// Writes one memtable of random changes to a few keys as a table of level 0.
    async fn flush(&mut self, prng: &mut Prng, writes: u64, keys: u64, deletes: f64) -> Result<(), EngineError> {
        let mut memtable = BTreeMap::new();
        for _ in 0..writes {
            self.sequence += 1;
            let n = prng.below(keys);
            let key = [&[0][..], &n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes(), &n.to_be_bytes()].concat();
            let stored = if prng.chance(deletes) {
                Stored::Delete
            } else {
                put(&[n as u8; 60], smallvec![pointer(self.sequence * 2), pointer(self.sequence * 2 + 1)])
            };
            memtable.insert(key, (self.sequence, stored));
        }
        self.next_id += 1;
        let mut builder = Builder::create(&self.disk, SLICE, self.next_id, 0, &self.options).await?;
        for (key, (sequence, stored)) in memtable {
            builder.add(&key, sequence, &stored).await?;
            self.held.extend(pointers(&stored));
            self.newest.insert(key, (sequence, stored));
        }
        let table = Table::open(&self.disk, builder.finish().await?).await?;
        self.set.apply(vec![table], &[]);
        Ok(())
    }
    /// One compaction; false when there is nothing to do.
    async fn compact(&mut self) -> Result<bool, EngineError> {
        let pressure = self.set.pressure(&self.options);
        let choice = choose(&self.set, &self.options);
        let rest = matches!(choice, Choice::Rest);
        assert_eq!(pressure < 1.0, rest, "pressure {pressure}");
        self.execute(choice).await?;
        Ok(!rest)
    }
    async fn execute(&mut self, choice: Choice<VirtualDisk>) -> Result<(), EngineError> {
        let next_id = &mut self.next_id;
        let next = || {
            *next_id += 1;
            *next_id
        };
        let outcome = run(&self.disk, SLICE, choice, &self.options, &Drops::default(), next).await?;
        for pointer in &outcome.dropped {
            assert!(self.held.remove(pointer), "reported twice: {pointer:?}");
        }
        let mut added = Vec::new();
        for meta in &outcome.added {
            added.push(Table::open(&self.disk, meta.clone()).await?);
        }
        self.set.apply(added, &outcome.removed);
        for id in outcome.obsolete() {
            self.disk.remove(&path(SLICE, id)).await?;
        }
        Ok(())
    }
    /// Everything that must hold at any time.
    async fn check(&self, prng: &mut Prng) {
        let cache = BlockCache::new(1 << 20);
        for (key, expected) in &self.newest {
            let found = self.set.get(key, &cache).await.expect("no faults");
            let gone = expected.1 == Stored::Delete && found.is_none();
            assert!(gone || found.as_ref() == Some(expected), "{key:?}: {found:?}, not {expected:?}");
        }
        assert_eq!(self.set.get(b"stranger", &cache).await, Ok(None));
        let start = prng.below(256) as u8;
        self.check_scan(&[], &[0xff]).await;
        self.check_scan(&[0, start], &[0, start.saturating_add(40)]).await;
        for level in self.set.levels().iter().skip(1) {
            assert!(level.windows(2).all(|w| w[0].meta().largest < w[1].meta().smallest));
        }
        let files: BTreeSet<_> = self.disk.files().into_iter().map(|(path, _)| path).collect();
        let tables: BTreeSet<_> = self.set.tables().map(|table| path(SLICE, table.meta().id)).collect();
        assert_eq!(files, tables);
        let live: BTreeSet<_> = self.newest.values().flat_map(|(_, stored)| pointers(stored)).collect();
        assert!(live.is_subset(&self.held), "a live value was reported as dropped");
    }
    async fn check_scan(&self, from: &[u8], to: &[u8]) {
        let sources = self.set.sources(from, to, Lane::Foreground);
        let mut cursor = MergeCursor::open(sources, from).await.expect("no faults");
        let mut seen = Vec::new();
        while let Some(source) = cursor.next().await.expect("no faults") {
            let (key, sequence) = source.peek().expect("it stands on a record");
            if key >= to {
                break;
            }
            let stored = source.stored().expect("verified").expect("a record");
            assert_eq!(source.head().expect("verified").is_none(), stored == Stored::Delete);
            if stored != Stored::Delete {
                seen.push((key.to_vec(), (sequence, stored)));
            }
        }
        let expected = self.newest.range(from.to_vec()..to.to_vec()).filter(|(_, (_, s))| *s != Stored::Delete);
        let expected: Vec<_> = expected.map(|(k, v)| (k.clone(), v.clone())).collect();
        assert_eq!(seen, expected);
    }
}

#[test]
fn whatever_is_compacted_shows_the_same() {
    let mut deepest = 0;
    for seed in 0..12 {
        let mut prng = Prng::new(seed);
        let mut shop = Shop::new(small());
        let (keys, deletes) = (200 + prng.below(2_000), [0.0, 0.1, 0.5, 0.9][seed as usize % 4]);
        block_on(async {
            for _ in 0..40 {
                let writes = 20 + prng.below(300);
                shop.flush(&mut prng, writes, keys, deletes).await.expect("no faults");
                while prng.chance(0.7) && shop.compact().await.expect("no faults") {}
                if prng.chance(0.3) {
                    shop.check(&mut prng).await;
                }
            }
            let mut steps = 0;
            while shop.compact().await.expect("no faults") {
                steps += 1;
                assert!(steps < 1_000, "seed {seed}: compaction does not come to rest");
            }
            assert_eq!(shop.set.backlog_bytes(&shop.options), 0);
            shop.check(&mut prng).await;
            deepest = deepest.max(shop.set.levels().iter().rposition(|level| !level.is_empty()).unwrap_or(0));
        });
    }
    assert!(deepest >= 3, "no more than {deepest} levels were used");
}

/// Everything into one level: only live records and live values are left.
#[test]
fn a_full_merge_leaves_nothing_dead() {
    block_on(async {
        let (mut prng, mut shop) = (Prng::new(5), Shop::new(small()));
        for _ in 0..10 {
            shop.flush(&mut prng, 300, 500, 0.3).await.expect("no faults");
        }
        let runs = shop.set.levels()[0].iter().map(|table| vec![table.clone()]).collect();
        shop.execute(Choice::Merge(Merge { runs, to: 1, deeper: Vec::new(), aside: Vec::new() }))
            .await
            .expect("no faults");
        shop.check(&mut prng).await;
        let live = shop.newest.values().filter(|(_, stored)| *stored != Stored::Delete).count() as u64;
        let sum = |field: fn(&TableMeta) -> u64| shop.set.tables().map(|table| field(table.meta())).sum::<u64>();
        assert_eq!((sum(|t| t.entries), sum(|t| t.deletes)), (live, 0));
        assert_eq!(shop.held.len() as u64, 2 * live);
        assert_eq!(sum(|t| t.value_bytes), 2 * live * 10_000);
        assert!(shop.set.tables().count() > 1, "fragments");
    });
}

/// When all keys are deleted, compaction by itself gets rid of nearly everything.
#[test]
fn delete_records_do_not_stay_for_ever() {
    block_on(async {
        let (mut prng, mut shop) = (Prng::new(9), Shop::new(small()));
        for _ in 0..20 {
            shop.flush(&mut prng, 300, 1_000, 0.0).await.expect("no faults");
            while shop.compact().await.expect("no faults") {}
        }
        let before = shop.set.bytes();
        for _ in 0..30 {
            shop.flush(&mut prng, 300, 1_000, 1.0).await.expect("no faults");
            while shop.compact().await.expect("no faults") {}
        }
        shop.check(&mut prng).await;
        assert!(shop.set.bytes() * 2 < before, "{} of {before} bytes are left", shop.set.bytes());
    });
}

#[test]
fn a_delete_record_stays_as_long_as_it_covers_something() {
    block_on(async {
        let mut shop = Shop::new(small());
        let mut levels = Vec::new();
        for (level, stored) in [(2, put(b"old", smallvec![pointer(1)])), (0, Stored::Delete)] {
            let id = 10 + u64::from(level);
            let mut builder = Builder::create(&shop.disk, SLICE, id, level, &shop.options).await.expect("no faults");
            builder.add(b"key", 5 - u64::from(level), &stored).await.expect("no faults");
            builder.add(b"never", 3, &Stored::Delete).await.expect("no faults");
            levels.push(Table::open(&shop.disk, builder.finish().await.expect("no faults")).await.expect("written"));
        }
        shop.held.insert(ValuePointer { segment: 0, offset: 1 << 12, length: 10_000, checksum: 1 });
        let (deep, shallow) = (levels[0].clone(), levels[1].clone());
        shop.set.apply(levels, &[]);
        let merge = Merge { runs: vec![vec![shallow]], to: 1, deeper: vec![vec![deep]], aside: Vec::new() };
        shop.execute(Choice::Merge(merge)).await.expect("no faults");
        let cache = BlockCache::new(0);
        assert_eq!(shop.set.get(b"key", &cache).await, Ok(Some((5, Stored::Delete))));
        // The last step: nothing below.
        let runs = [1, 2].map(|level: usize| shop.set.levels()[level].clone()).to_vec();
        shop.execute(Choice::Merge(Merge { runs, to: 2, deeper: Vec::new(), aside: Vec::new() }))
            .await
            .expect("no faults");
        assert_eq!(shop.set.get(b"key", &cache).await, Ok(None));
        assert_eq!((shop.set.tables().count(), shop.held.len(), shop.disk.files().len()), (0, 0, 0));
    });
}

#[test]
fn a_table_that_meets_nothing_is_moved() {
    block_on(async {
        let options = EngineOptions { level0_tables: 1, ..small() };
        let (mut prng, mut shop) = (Prng::new(1), Shop::new(options));
        shop.flush(&mut prng, 10, 100, 0.0).await.expect("no faults");
        let before = shop.disk.files();
        assert!(matches!(choose(&shop.set, &shop.options), Choice::Move { to: 1, .. }));
        assert!(shop.compact().await.expect("no faults"));
        assert_eq!((shop.set.levels()[0].len(), shop.set.levels()[1].len()), (0, 1));
        assert_eq!(shop.disk.files(), before);
        shop.check(&mut prng).await;
    });
}

/// A failed compaction leaves the set, the tables and the directory as they were.
#[test]
fn a_failed_compaction_changes_nothing() {
    let count = block_on(failing(None));
    assert!(count > 10);
    for io in 0..count {
        block_on(failing(Some(io)));
    }
}
async fn failing(at: Option<u64>) -> u64 {
    let (mut prng, mut shop) = (Prng::new(3), Shop::new(small()));
    for _ in 0..3 {
        shop.flush(&mut prng, 200, 400, 0.2).await.expect("no faults yet");
    }
    let (before, first) = (shop.disk.files(), shop.disk.ios());
    if let Some(at) = at {
        shop.disk.plan(first + at, Fault::NoSpace);
    }
    let choice = choose(&shop.set, &shop.options);
    assert!(matches!(choice, Choice::Merge(_)));
    let ids = &mut shop.next_id;
    let next = || {
        *ids += 1;
        *ids
    };
    let outcome = run(&shop.disk, SLICE, choice, &shop.options, &Drops::default(), next).await;
    let ios = shop.disk.ios() - first;
    match at {
        None => assert!(outcome.is_ok()),
        Some(_) => {
            // Whatever the reason, a failed read is damage to what was read.
            let told = match &outcome {
                Err(EngineError::Damaged(what)) => what.contains("cannot be read"),
                other => *other == Err(EngineError::Full),
            };
            assert!(told, "{outcome:?}");
            assert_eq!(shop.disk.files(), before);
        }
    }
    ios
}

#[test]
fn damage_stops_a_compaction() {
    block_on(async {
        let (mut prng, mut shop) = (Prng::new(3), Shop::new(small()));
        for _ in 0..3 {
            shop.flush(&mut prng, 200, 400, 0.2).await.expect("no faults");
        }
        let before = shop.disk.files();
        shop.disk.flip_bit(&path(SLICE, 2), 5_000, 3);
        let result = shop.compact().await;
        assert!(matches!(&result, Err(EngineError::Damaged(what)) if what.contains("at 4096")), "{result:?}");
        assert_eq!(shop.disk.files(), before);
    });
}

#[test]
fn a_read_keeps_the_set_that_it_began_with() {
    block_on(async {
        let (mut prng, mut shop) = (Prng::new(4), Shop::new(small()));
        for _ in 0..3 {
            shop.flush(&mut prng, 300, 600, 0.0).await.expect("no faults");
        }
        let old = shop.set.clone();
        assert!(shop.compact().await.expect("no faults"));
        let cache = BlockCache::new(0);
        for (key, expected) in &shop.newest {
            assert_eq!(old.get(key, &cache).await, Ok(Some(expected.clone())), "its files are removed but open");
        }
    });
}

#[test]
fn sources_merge_by_key_then_sequence_then_order() {
    let source = |records: &[(&'static str, u64)]| {
        let record = |(key, sequence): &(&'static str, u64)| {
            (Bytes::from_static(key.as_bytes()), *sequence, put(&[*sequence as u8], smallvec![]))
        };
        MemorySource::new(records.iter().map(record).collect())
    };
    let sources = vec![
        source(&[("a", 9), ("c", 4), ("d", 5)]),
        source(&[("b", 3), ("c", 6), ("e", 7)]),
        source(&[("a", 1), ("c", 5), ("d", 5)]),
        source(&[]),
    ];
    block_on(async {
        let mut cursor = MergeCursor::open(sources, b"a").await.expect("memory");
        let mut seen = Vec::new();
        let mut older = Vec::new();
        loop {
            let note = |source: &MemorySource| {
                older.push(source.peek().expect("a record").1);
                Ok(())
            };
            let Some(source) = cursor.next_and(note).await.expect("memory") else { break };
            let (key, sequence) = source.peek().expect("a record");
            seen.push((String::from_utf8_lossy(key).into_owned(), sequence));
        }
        let expected = [("a", 9), ("b", 3), ("c", 6), ("d", 5), ("e", 7)].map(|(key, n)| (key.to_string(), n));
        assert_eq!(seen, expected);
        assert_eq!(older, [1, 4, 5, 5]);
    });
}

fn meta(id: u64, level: u8, keys: (u8, u8), bytes: u64, deletes: u64) -> TableMeta {
    let (smallest, largest) = (Bytes::from(vec![keys.0]), Bytes::from(vec![keys.1]));
    let (slice, entries, max_sequence) = (SLICE, 100, id);
    TableMeta { id, slice, level, smallest, largest, entries, deletes, bytes, max_sequence, value_bytes: 0 }
}
type Levels = Vec<Vec<TableMeta>>;
fn plan_of(levels: &[Vec<TableMeta>], options: &EngineOptions) -> Option<policy::Plan> {
    policy::plan(&levels.iter().map(|level| level.iter().collect()).collect(), options)
}

#[test]
fn level_0_waits_until_it_is_worth_a_rewrite() {
    let options = EngineOptions { level0_tables: 4, table_bytes: 1000, level_factor: 10, ..EngineOptions::default() };
    let level0 = |count: u64| (0..count).rev().map(|id| meta(id, 0, (0, 255), 100, 0)).collect::<Vec<_>>();
    let level1 = |bytes: u64| vec![meta(100, 1, (0, 99), bytes / 2, 0), meta(101, 1, (100, 255), bytes / 2, 0)];
    assert_eq!(plan_of(&[level0(3), level1(400)], &options), None);
    assert_eq!(plan_of(&[level0(4), level1(8000)], &options), None);
    assert_eq!(plan_of(&[level0(11), level1(8000)], &options), None);
    let plan = plan_of(&[level0(4), level1(1600)], &options).expect("worth it");
    assert_eq!((plan.from, plan.to, plan.upper.len(), &plan.lower[..]), (0, 1, 4, &[100, 101][..]));
    let plan = plan_of(&[level0(14), level1(8000)], &options).expect("long enough");
    assert_eq!(plan.upper, (0..12).rev().collect::<Vec<_>>(), "the oldest");
}

#[test]
fn of_a_level_the_cheapest_table_goes_down() {
    let options = EngineOptions { table_bytes: 100, level_factor: 2, ..EngineOptions::default() };
    let level1 =
        |deletes| vec![meta(1, 1, (0, 9), 100, 0), meta(2, 1, (10, 19), 100, deletes), meta(3, 1, (20, 29), 100, 0)];
    let level2 = vec![meta(4, 2, (0, 5), 60, 0), meta(5, 2, (8, 15), 60, 0), meta(6, 2, (16, 25), 90, 0)];
    let plan = plan_of(&[vec![], level1(0), level2.clone()], &options).expect("too large");
    assert_eq!((plan.upper, plan.lower, plan.from), (vec![3], vec![6], 1));
    let plan = plan_of(&[vec![], level1(90), level2], &options).expect("too large");
    assert_eq!((plan.upper, plan.lower), (vec![2], vec![5, 6]));
    let plan = plan_of(&[vec![], level1(0), vec![meta(6, 2, (0, 15), 10, 0)]], &options).expect("too large");
    assert!(plan.is_move());
    assert_eq!(plan.upper, [3]);
}

#[test]
fn tables_full_of_delete_records_are_not_left_alone() {
    let options = EngineOptions::default();
    let level2 = vec![meta(4, 2, (0, 5), 60, 0)];
    let plan = plan_of(&[vec![], vec![meta(1, 1, (0, 9), 100, 40)], level2.clone()], &options).expect("delete records");
    assert_eq!((plan.from, plan.to, plan.lower), (1, 2, vec![4]));
    let plan = plan_of(&[vec![], vec![meta(1, 1, (6, 9), 100, 40)], level2.clone()], &options).expect("delete records");
    assert_eq!((plan.from, plan.to, plan.upper, plan.lower), (1, 1, vec![1], vec![]));
    assert_eq!(plan_of(&[vec![], vec![meta(1, 1, (0, 9), 100, 29)], level2], &options), None);
}

/// Carries a plan out on metas alone: the bytes of the inputs, spread over their keys in tables of the right size.
fn carry_out(levels: &mut Levels, plan: &policy::Plan, options: &EngineOptions, next_id: &mut u64) {
    let (from, to) = (usize::from(plan.from), usize::from(plan.to));
    levels.resize_with(levels.len().max(to + 1), Vec::new);
    let mut inputs: Vec<_> = levels[from].extract_if(.., |table| plan.upper.contains(&table.id)).collect();
    assert_eq!(inputs.len(), plan.upper.len());
    if from == 0 {
        let newest = inputs.iter().map(|table| table.max_sequence).max();
        assert!(levels[0].iter().all(|left| Some(left.max_sequence) > newest), "an older table stays in level 0");
    }
    inputs.extend(levels[to].extract_if(.., |table| plan.lower.contains(&table.id)));
    let key = |bytes: &Bytes| u64::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    let low = inputs.iter().map(|table| key(&table.smallest)).min().expect("an input");
    let high = inputs.iter().map(|table| key(&table.largest)).max().expect("an input") + 1;
    let bytes: u64 = inputs.iter().map(|table| table.bytes).sum();
    let deletes: u64 = inputs.iter().map(|table| table.deletes).sum();
    let overlaps = |table: &TableMeta| key(&table.smallest) < high && low <= key(&table.largest);
    let deeper = levels.iter().skip(to + 1).flatten().any(overlaps);
    let pieces = bytes.div_ceil(options.table_bytes as u64).min(high - low);
    for piece in 0..pieces {
        *next_id += 1;
        let at = |piece: u64| low + (high - low) * piece / pieces;
        let edge = |key: u64| Bytes::copy_from_slice(&(key as u16).to_be_bytes());
        let mut table = meta(*next_id, plan.to, (0, 0), bytes / pieces, if deeper { deletes / pieces } else { 0 });
        (table.smallest, table.largest) = (edge(at(piece)), edge(at(piece + 1) - 1));
        levels[to].push(table);
    }
    levels[to].sort_by(|a, b| a.smallest.cmp(&b.smallest));
    assert!(levels[to].windows(2).all(|w| w[0].largest < w[1].smallest), "level {to} overlaps");
}

#[test]
fn whatever_the_tables_compaction_comes_to_rest_and_levels_keep_their_bounds() {
    for seed in 0..40 {
        let mut prng = Prng::new(seed);
        let options = EngineOptions {
            table_bytes: 1 << prng.between(13, 17),
            level0_tables: prng.between(1, 8) as usize,
            level_factor: prng.between(2, 10) as usize,
            ..EngineOptions::default()
        };
        let (mut levels, mut next_id): (Levels, u64) = (vec![Vec::new()], 0);
        for _ in 0..prng.between(1, 60) {
            next_id += 1;
            let (a, b) = (prng.below(1 << 16) as u16, prng.below(1 << 16) as u16);
            let mut table = meta(next_id, 0, (0, 0), prng.between(4096, 1 << 16), prng.below(100));
            table.smallest = Bytes::copy_from_slice(&a.min(b).to_be_bytes());
            table.largest = Bytes::copy_from_slice(&a.max(b).to_be_bytes());
            levels[0].insert(0, table);
            let mut steps = 0;
            while let Some(plan) = plan_of(&levels, &options) {
                assert_eq!(plan_of(&levels, &options), Some(plan.clone()));
                carry_out(&mut levels, &plan, &options, &mut next_id);
                steps += 1;
                assert!(steps < 2_000, "seed {seed} does not come to rest");
            }
        }
        for (level, tables) in levels.iter().enumerate().take(dynarc::limits::LEVELS - 1).skip(1) {
            let bytes: u64 = tables.iter().map(|table| table.bytes).sum();
            assert!(bytes < policy::level_bytes_max(level, &options), "seed {seed}: level {level} has {bytes} bytes");
        }
        assert!(levels.len() <= dynarc::limits::LEVELS);
        assert!(levels[0].len() < options.level0_tables * dynarc::limits::LEVEL0_PATIENCE);
    }
}
