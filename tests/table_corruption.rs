//! A table of 16 KiB with every bit flipped, every length cut, every page swapped: a reader gets the right record or a
//! typed error, never a wrong record, a panic or an endless walk.

use bytes::Bytes;
use dynarc::{
    engine::{
        cache::BlockCache,
        disk::{Disk, Lane},
        error::EngineError,
        table::{Builder, Table, TableMeta, directory, inspect, path},
        types::{EngineOptions, Stored, StoredValue, ValuePointer},
    },
    limits::PAGE,
    sim::{disk::VirtualDisk, executor::block_on},
    types::SliceId,
};
use std::{collections::BTreeMap, rc::Rc};

const SLICE: SliceId = SliceId(1);
const ID: u64 = 0x1234;

type Model = BTreeMap<Vec<u8>, (u64, Stored)>;

struct Sample {
    disk: Rc<VirtualDisk>,
    meta: TableMeta,
    model: Model,
    bytes: Vec<u8>,
}

/// Two blocks of records, one of them nearly full, index, filter and footer: five pages.
fn sample() -> Sample {
    let disk = Rc::new(VirtualDisk::new());
    let record = |n: u64| {
        let pointer = ValuePointer { segment: n, offset: n << 12, length: 10_000, checksum: n as u32 };
        let stored = match n % 7 {
            0 => Stored::Delete,
            1 => Stored::Put { head: Bytes::new(), values: Default::default() },
            2 => {
                let inline = StoredValue::Inline(Bytes::from(vec![n as u8; 200]));
                Stored::Put { head: Bytes::from(vec![n as u8; 80]), values: vec![inline; 2].into() }
            }
            _ => {
                let values = vec![StoredValue::Pointer(pointer)].into();
                Stored::Put { head: Bytes::from(vec![n as u8; 80]), values }
            }
        };
        ([&[0][..], &n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes(), b"key"].concat(), (n + 1, stored))
    };
    let model: Model = (0..40).map(record).collect();
    let meta = block_on(async {
        disk.create_dir(&directory(SLICE)).await?;
        let mut builder = Builder::create(&disk, SLICE, ID, 0, &EngineOptions::default()).await?;
        for (key, (sequence, stored)) in &model {
            builder.add(key, *sequence, stored).await?;
        }
        builder.finish().await
    });
    let meta = meta.expect("no faults");
    let bytes = disk.contents(&path(SLICE, ID)).expect("just written");
    assert_eq!(bytes.len(), 5 * PAGE);
    Sample { disk, meta, model, bytes }
}

/// Reads all that can be read. True: all of it was there and right. Panics when anything is wrong and not said to be.
fn read(sample: &Sample) -> bool {
    block_on(async {
        let table = match Table::open(&sample.disk, sample.meta.clone()).await {
            Ok(table) => table,
            Err(e) => return typed(e),
        };
        let cache = BlockCache::new(1 << 20);
        let mut whole = true;
        for (key, expected) in &sample.model {
            match table.get(key, &cache).await {
                Ok(found) => assert_eq!(found.as_ref(), Some(expected)),
                Err(e) => whole &= typed(e),
            }
        }
        for lane in [Lane::Foreground, Lane::Background] {
            whole &= walk(&table, lane, &sample.model).await;
        }
        let mut lines = 0;
        match inspect::table(&*sample.disk, &path(SLICE, ID), &mut |_| lines += 1).await {
            Ok(records) => assert_eq!(records, sample.model.len() as u64),
            Err(e) => whole &= typed(e),
        }
        whole
    })
}
async fn walk(table: &Rc<Table<VirtualDisk>>, lane: Lane, model: &Model) -> bool {
    let mut cursor = table.cursor(lane);
    if let Err(e) = cursor.seek(&[]).await {
        return typed(e);
    }
    for (key, (sequence, stored)) in model {
        let record = cursor.record().expect("more records");
        assert_eq!((record.key, record.sequence), (&key[..], *sequence));
        assert_eq!(record.stored().as_ref(), Ok(stored));
        if let Err(e) = cursor.advance().await {
            return typed(e);
        }
    }
    assert_eq!(cursor.record(), None);
    true
}
fn typed(error: EngineError) -> bool {
    match error {
        EngineError::Damaged(what) => assert!(what.starts_with("slices/0001/0000000000001234.sst at "), "{what}"),
        other => panic!("not a damage of this file: {other}"),
    }
    false
}

#[test]
fn every_bit_flipped() {
    let sample = sample();
    assert!(read(&sample));
    for offset in 0..sample.bytes.len() as u64 {
        for bit in 0..8 {
            sample.disk.flip_bit(&path(SLICE, ID), offset, bit);
            assert!(!read(&sample), "a flipped bit {bit} of byte {offset} was not noticed");
            sample.disk.flip_bit(&path(SLICE, ID), offset, bit);
        }
    }
    assert!(read(&sample));
}

#[test]
fn every_byte_replaced() {
    let sample = sample();
    for offset in 0..sample.bytes.len() {
        for byte in [0, 0xff, sample.bytes[offset].wrapping_add(1)] {
            let mut bytes = sample.bytes.clone();
            bytes[offset] = byte;
            sample.disk.replace(&path(SLICE, ID), &bytes);
            assert_eq!(read(&sample), bytes == sample.bytes, "byte {offset}");
        }
    }
}

#[test]
fn every_cut() {
    let sample = sample();
    // What a crash leaves: the rest reads as zeros, or is missing.
    for length in (0..sample.bytes.len()).step_by(64) {
        let mut bytes = sample.bytes.clone();
        bytes[length..].fill(0);
        sample.disk.replace(&path(SLICE, ID), &bytes);
        assert_eq!(read(&sample), bytes == sample.bytes, "zeros from {length}");
        bytes.truncate(length.next_multiple_of(PAGE));
        sample.disk.replace(&path(SLICE, ID), &bytes);
        assert_eq!(read(&sample), bytes == sample.bytes, "cut at {length}");
    }
}

#[test]
fn pages_at_the_wrong_place() {
    let sample = sample();
    let pages = sample.bytes.len() / PAGE;
    for (a, b) in (0..pages).flat_map(|a| (0..pages).map(move |b| (a, b))).filter(|(a, b)| a != b) {
        let mut bytes = sample.bytes.clone();
        bytes.copy_within(a * PAGE..(a + 1) * PAGE, b * PAGE);
        sample.disk.replace(&path(SLICE, ID), &bytes);
        assert!(!read(&sample), "page {a} over page {b}");
    }
    // The pages of another table of the same shape.
    let other = block_on(async {
        let mut builder = Builder::create(&sample.disk, SLICE, ID + 1, 0, &EngineOptions::default()).await?;
        for (key, (sequence, stored)) in &sample.model {
            builder.add(key, *sequence, stored).await?;
        }
        builder.finish().await
    });
    assert!(other.is_ok());
    let other = sample.disk.contents(&path(SLICE, ID + 1)).expect("just written");
    assert_eq!(other.len(), sample.bytes.len());
    for page in 0..pages {
        let range = page * PAGE..(page + 1) * PAGE;
        let mut bytes = sample.bytes.clone();
        bytes[range.clone()].copy_from_slice(&other[range]);
        sample.disk.replace(&path(SLICE, ID), &bytes);
        assert!(!read(&sample), "page {page} of another table");
    }
}

#[test]
fn a_missing_file_is_damage_and_a_failing_disk_is_not() {
    let sample = sample();
    block_on(sample.disk.remove(&path(SLICE, ID))).expect("it was there");
    block_on(async {
        assert!(!typed(Table::open(&sample.disk, sample.meta.clone()).await.map(|_| ()).expect_err("no file")));
    });
    let sample = self::sample();
    block_on(async {
        let first = sample.disk.ios();
        let table = Table::open(&sample.disk, sample.meta.clone()).await.expect("whole");
        let reads = sample.disk.ios() - first;
        for read in 0..reads {
            sample.disk.plan(sample.disk.ios() + read, dynarc::sim::disk::Fault::Error);
            let opened = Table::open(&sample.disk, sample.meta.clone()).await.map(|_| ());
            // A file that cannot be opened says nothing of what is in it; one that cannot be read is as good as
            // damaged.
            match opened {
                Err(EngineError::Failed(_)) if read == 0 => {}
                Err(EngineError::Damaged(what)) if read > 0 && what.contains("cannot be read") => {}
                other => panic!("{other:?}"),
            }
        }
        sample.disk.plan(sample.disk.ios(), dynarc::sim::disk::Fault::Error);
        let key = sample.model.keys().next().expect("40 keys");
        let found = table.get(key, &BlockCache::new(0)).await;
        assert!(matches!(found, Err(EngineError::Damaged(_))), "{found:?}");
    });
}
