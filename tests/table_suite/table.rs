//! Tables against a map.

use bytes::Bytes;
use dynarc::{
    engine::{
        cache::BlockCache,
        disk::{Disk, Lane},
        error::EngineError,
        table::{Builder, Cursor, Table, TableMeta, directory, inspect, path},
        types::{ENGINE_KEY_BYTES_MAX, EngineOptions, Stored, StoredValue, ValuePointer},
    },
    limits::PAGE,
    sim::{disk::VirtualDisk, executor::block_on},
    types::SliceId,
};
use proptest::prelude::*;
use smallvec::{SmallVec, smallvec};
use std::{collections::BTreeMap, rc::Rc};

pub type Model = BTreeMap<Vec<u8>, (u64, Stored)>;
pub const SLICE: SliceId = SliceId(7);

pub fn disk() -> Rc<VirtualDisk> {
    let disk = Rc::new(VirtualDisk::new());
    block_on(disk.create_dir(&directory(SLICE))).expect("a fresh disk");
    disk
}
/// A value in the log that no other record has.
pub fn pointer(n: u64) -> StoredValue {
    StoredValue::Pointer(ValuePointer {
        segment: n >> 10,
        offset: (n & 1023) << 12,
        length: 10_000,
        checksum: n as u32,
    })
}
pub fn put(head: &[u8], values: SmallVec<[StoredValue; 1]>) -> Stored {
    Stored::Put { head: Bytes::copy_from_slice(head), values }
}
pub async fn build(disk: &Rc<VirtualDisk>, id: u64, model: &Model) -> Result<TableMeta, EngineError> {
    let mut builder = Builder::create(disk, SLICE, id, 0, &EngineOptions::default()).await?;
    for (key, (sequence, stored)) in model {
        builder.add(key, *sequence, stored).await?;
    }
    builder.finish().await
}
pub async fn walk(cursor: &mut Cursor<VirtualDisk>, from: &[u8]) -> Result<Vec<(Vec<u8>, (u64, Stored))>, EngineError> {
    cursor.seek(from).await?;
    let mut seen = Vec::new();
    while let Some(record) = cursor.record() {
        seen.push((record.key.to_vec(), (record.sequence, record.stored().expect("a verified record"))));
        cursor.advance().await?;
    }
    Ok(seen)
}
fn from(model: &Model, key: &[u8]) -> Vec<(Vec<u8>, (u64, Stored))> {
    model.range(key.to_vec()..).map(|(k, v)| (k.clone(), v.clone())).collect()
}
/// So many records of the usual size: a head of 80 bytes, one value in the log.
pub fn usual(records: u64) -> Model {
    let record = |n: u64| {
        let key = [&[0][..], &n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes(), b"user:", &n.to_be_bytes()].concat();
        (key, (n + 1, put(&[n as u8; 80], smallvec![pointer(n)])))
    };
    (0..records).map(record).collect()
}

async fn check(model: &Model, strangers: &[Vec<u8>]) {
    let disk = disk();
    let meta = build(&disk, 3, model).await.expect("no faults");
    let deletes = model.values().filter(|(_, stored)| *stored == Stored::Delete).count();
    assert_eq!((meta.entries, meta.deletes), (model.len() as u64, deletes as u64));
    assert_eq!(Some(&meta.smallest[..]), model.keys().next().map(|k| &k[..]));
    assert_eq!(Some(&meta.largest[..]), model.keys().next_back().map(|k| &k[..]));
    assert_eq!(Some(meta.max_sequence), model.values().map(|(sequence, _)| *sequence).max());
    let table = Table::open(&disk, meta).await.expect("just written");
    let (warm, cold) = (BlockCache::new(1 << 20), BlockCache::new(0));
    for key in model.keys().chain(strangers) {
        for cache in [&cold, &warm, &warm] {
            assert_eq!(table.get(key, cache).await, Ok(model.get(key).cloned()));
        }
    }
    let starts = model.keys().chain(strangers).step_by(1 + model.len() / 20);
    for lane in [Lane::Foreground, Lane::Background] {
        let mut cursor = table.cursor(lane);
        for start in starts.clone() {
            assert_eq!(walk(&mut cursor, start).await, Ok(from(model, start)));
        }
        assert_eq!(walk(&mut cursor, &[]).await, Ok(from(model, &[])));
    }
    let mut lines = Vec::new();
    let inspected = inspect::table(&*disk, &path(SLICE, 3), &mut |line| lines.push(line)).await;
    assert_eq!(inspected, Ok(model.len() as u64));
    assert!(lines.len() > 8);
}

/// Keys of 1 byte to the most, heads and values from none to more than a block.
fn any_model() -> impl Strategy<Value = Model> {
    let key = prop_oneof![
        4 => proptest::collection::vec(0u8..4, 1..6),
        2 => proptest::collection::vec(any::<u8>(), 1..40),
        1 => (any::<u8>(), 1000usize..=ENGINE_KEY_BYTES_MAX).prop_map(|(byte, length)| vec![byte; length]),
    ];
    let bytes = prop_oneof![
        1 => Just(Bytes::new()),
        6 => (any::<u8>(), 1usize..200).prop_map(|(byte, length)| Bytes::from(vec![byte; length])),
        1 => (any::<u8>(), 3000usize..20_000).prop_map(|(byte, length)| Bytes::from(vec![byte; length])),
    ];
    let value = prop_oneof![
        3 => any::<u64>().prop_map(pointer),
        1 => bytes.clone().prop_map(StoredValue::Inline),
    ];
    let put = (bytes, proptest::collection::vec(value, 0..4))
        .prop_map(|(head, values)| Stored::Put { head, values: values.into() });
    let stored = prop_oneof![1 => Just(Stored::Delete), 5 => put];
    proptest::collection::btree_map(key, (any::<u64>(), stored), 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_table_is_the_map_it_was_built_from(
        model in any_model(),
        strangers in proptest::collection::vec(proptest::collection::vec(0u8..4, 0..6), 20),
    ) {
        block_on(check(&model, &strangers));
    }
}

#[test]
fn a_table_of_one_record_and_a_table_of_many_blocks() {
    block_on(async {
        check(&Model::from([(vec![9], (1, Stored::Delete))]), &[vec![], vec![8], vec![9, 0], vec![10]]).await;
        check(&usual(3_000), &[vec![0], vec![1]]).await;
    });
}

#[test]
fn records_that_just_fit_a_block_and_just_do_not() {
    for extra in 0..12 {
        let mut model = Model::new();
        for n in 0..6u8 {
            // Two records of about half a page, around the border.
            let head = vec![n; PAGE / 2 - 30 + extra];
            model.insert(vec![n], (1, put(&head, smallvec![])));
        }
        block_on(check(&model, &[vec![], vec![0, 0], vec![7]]));
    }
}

#[test]
fn block_sizes_within_their_bounds() {
    for block_bytes in [0, 1, PAGE, PAGE + 1, 32 << 10, 1 << 20] {
        let options = EngineOptions { block_bytes, ..EngineOptions::default() };
        let (disk, model) = (disk(), usual(2_000));
        block_on(async {
            let mut builder = Builder::create(&disk, SLICE, 1, 0, &options).await.expect("no faults");
            for (key, (sequence, stored)) in &model {
                builder.add(key, *sequence, stored).await.expect("no faults");
            }
            let table = Table::open(&disk, builder.finish().await.expect("no faults")).await.expect("just written");
            let cache = BlockCache::new(0);
            for (key, expected) in &model {
                assert_eq!(table.get(key, &cache).await, Ok(Some(expected.clone())));
            }
        });
    }
}

#[test]
fn wrong_use_is_an_error() {
    block_on(async {
        let (disk, options) = (disk(), EngineOptions::default());
        let mut builder = Builder::create(&disk, SLICE, 1, 0, &options).await.expect("no faults");
        builder.add(b"b", 1, &Stored::Delete).await.expect("in order");
        for key in [&b"b"[..], b"a", b"", &vec![b'z'; ENGINE_KEY_BYTES_MAX + 1]] {
            assert!(matches!(builder.add(key, 2, &Stored::Delete).await, Err(EngineError::Failed(_))));
        }
        assert!(Builder::create(&disk, SLICE, 1, 0, &options).await.is_err(), "the file exists");
        builder.abandon().await.expect("no faults");
        assert_eq!(disk.files(), []);
        let empty = Builder::create(&disk, SLICE, 1, 0, &options).await.expect("the file is gone");
        assert!(empty.finish().await.is_err());
        disk.remove(&path(SLICE, 1)).await.expect("it stays for the caller to remove");
    });
}

#[test]
fn a_table_that_is_not_the_manifests_is_refused() {
    block_on(async {
        let disk = disk();
        let meta = build(&disk, 1, &usual(100)).await.expect("no faults");
        assert!(Table::open(&disk, TableMeta { level: 3, ..meta.clone() }).await.is_ok(), "it may have moved");
        let others = [
            TableMeta { entries: 99, ..meta.clone() },
            TableMeta { largest: meta.smallest.clone(), ..meta.clone() },
            TableMeta { id: 2, ..meta.clone() },
            TableMeta { max_sequence: 7, ..meta.clone() },
        ];
        for other in others {
            let opened = Table::open(&disk, other).await.map(|_| ());
            assert!(matches!(opened, Err(EngineError::Damaged(_))), "{opened:?}");
        }
        let bytes = disk.contents(&path(SLICE, 1)).expect("it is there");
        // The same bytes under another name.
        disk.replace(&path(SLICE, 2), &bytes);
        let opened = Table::open(&disk, TableMeta { id: 2, ..meta.clone() }).await.map(|_| ());
        assert!(matches!(opened, Err(EngineError::Damaged(_))), "{opened:?}");
        // Pages cut off, or one too many.
        for length in [0, PAGE, bytes.len() - PAGE, bytes.len() + PAGE] {
            let mut other = bytes.clone();
            other.resize(length, 0);
            disk.replace(&path(SLICE, 1), &other);
            let opened = Table::open(&disk, meta.clone()).await.map(|_| ());
            assert!(matches!(opened, Err(EngineError::Damaged(_))), "{length}: {opened:?}");
        }
    });
}

#[test]
fn what_a_key_costs_in_memory_and_on_disk() {
    block_on(async {
        let (disk, keys) = (disk(), 100_000);
        let meta = build(&disk, 1, &usual(keys)).await.expect("no faults");
        let table = Table::open(&disk, meta.clone()).await.expect("just written");
        let memory = table.memory_bytes() as f64 / keys as f64;
        assert!(memory < 2.5, "{memory} bytes of memory a key");
        // 22 bytes of key, 80 of head, and the rest.
        let stored = meta.bytes as f64 / keys as f64;
        assert!(stored < 135.0, "{stored} bytes of file a key");
    });
}

#[test]
fn strangers_seldom_cost_a_read() {
    block_on(async {
        let (disk, cache) = (disk(), BlockCache::new(0));
        let meta = build(&disk, 1, &usual(20_000)).await.expect("no faults");
        let table = Table::open(&disk, meta).await.expect("just written");
        let before = disk.counts().reads;
        for n in 0..20_000u64 {
            let key =
                [&[0][..], &n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes(), b"item:", &n.to_be_bytes()].concat();
            assert_eq!(table.get(&key, &cache).await, Ok(None));
        }
        let reads = disk.counts().reads - before;
        assert!(reads < 300, "{reads} reads for 20,000 keys that are not there");
    });
}
