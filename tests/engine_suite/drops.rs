//! Groups of keys dropped at once, against a map that loses them one by one.

use crate::rig::{Rig, dealt, slow, tiny};
use bytes::Bytes;
use dynarc::{
    engine::{
        drops::{Group, RESERVED},
        error::EngineError,
        types::{Change, Durability, Want, Write},
    },
    sim::{
        disk::VirtualDisk,
        executor::{Executor, Life},
        prng::Prng,
    },
    types::{SliceId, mark},
};
use std::{collections::BTreeMap, time::Duration};

const SLICES: u16 = 3;
const NAMES: [&str; 3] = ["cart:", "user:", "u"];
/// Bytes before the name: a space and a token.
const SKIP: u16 = 9;

type Map = BTreeMap<(u16, Vec<u8>), (Bytes, usize)>;

fn group(name: &str) -> Group {
    Group { space: 0, skip: SKIP, name: Bytes::copy_from_slice(name.as_bytes()) }
}
fn key(prng: &mut Prng) -> Vec<u8> {
    let number = prng.below(40);
    let name = if number.is_multiple_of(2) { "cart:" } else { "user:" };
    [&[0], &(number * 0x0123_4567_89AB).to_be_bytes()[..], name.as_bytes(), number.to_string().as_bytes()].concat()
}
fn drop_all(rig: &Rig, name: &str, marks: Option<u64>) -> Result<(), EngineError> {
    rig.executor.block_on(rig.engine.drop_group(&group(name), marks, &dealt(0, rig.engines.len() as u16)))
}
fn forget(map: &mut Map, name: &str, marks: Option<u64>) {
    let goes = |head: &[u8]| marks.is_none_or(|marks| (1..=marks).contains(&mark::of(head)));
    map.retain(|(_, key), (head, _)| !key[usize::from(SKIP)..].starts_with(name.as_bytes()) || !goes(head));
}

fn verify(rig: &Rig, map: &Map, note: &str) {
    for slice in 0..SLICES {
        let id = SliceId(slice);
        let wanted: Vec<_> = map.iter().filter(|((of, _), _)| *of == slice).collect();
        for limit in [1_000, 4] {
            let scanned = rig.executor.block_on(rig.engine.scan(id, &[0], &[1], limit)).expect("a scan");
            let heads = wanted.iter().take(limit).map(|((_, key), (head, _))| (Bytes::from(key.clone()), head.clone()));
            assert_eq!(scanned, heads.collect::<Vec<_>>(), "{note}: slice {slice}");
        }
        for ((_, key), (head, bytes)) in wanted {
            let found = rig.executor.block_on(rig.engine.get(id, key, Want::Full)).expect("a read").expect("a record");
            assert_eq!((&found.head, found.values[0].len()), (head, *bytes), "{note}: slice {slice}");
        }
    }
    for number in 0..200 {
        let mut prng = Prng::new(number);
        let (slice, key) = (prng.below(u64::from(SLICES)) as u16, key(&mut prng));
        let found = rig.executor.block_on(rig.engine.get(SliceId(slice), &key, Want::Head)).expect("a read");
        let wanted = map.get(&(slice, key)).map(|(head, _)| head);
        assert_eq!(found.as_ref().map(|record| &record.head), wanted, "{note}");
    }
}

#[test]
fn a_dropped_group_is_gone_whatever_happens_and_new_records_stay() {
    let (mut drops, mut compactions, mut collections) = (0, 0, 0);
    for seed in 0..60 {
        let mut prng = Prng::new(seed);
        let (disk, executor) = (VirtualDisk::new(), Executor::new());
        if seed % 2 == 1 {
            slow(&disk, &executor, seed);
        }
        let mut rig = Rig::open_on(disk, executor, tiny());
        let (mut map, mut life) = (Map::new(), 1u64);
        for step in 0..250u64 {
            let note = format!("seed {seed} step {step}");
            match prng.below(100) {
                0..85 => {
                    let (slice, key) = (prng.below(u64::from(SLICES)) as u16, key(&mut prng));
                    let bytes = *prng.pick(&[10, 500, 4_000]).expect("three");
                    // Of no life, of this one, or of one that is over: what bears no mark stays when marks are dropped.
                    let mut head = Vec::new();
                    mark::put(&mut head, *prng.pick(&[0, 0, life, life.saturating_sub(1)]).expect("four"));
                    head.extend_from_slice(note.as_bytes());
                    let head = Bytes::from(head);
                    let values = [Bytes::from(vec![1; bytes])].into_iter().collect();
                    let change = Change::Put { head: head.clone(), values };
                    let write = Write { slice: SliceId(slice), key: key.clone().into(), change };
                    let written = rig.executor.block_on(rig.engine.write(vec![write], Durability::Sync));
                    assert_eq!(written, Ok(()), "{note}");
                    map.insert((slice, key), (head, bytes));
                }
                85..90 => {
                    let name = prng.pick(&NAMES).expect("three");
                    let marks = prng.coin().then_some(life);
                    life += u64::from(marks.is_some());
                    assert_eq!(drop_all(&rig, name, marks), Ok(()), "{note}");
                    forget(&mut map, name, marks);
                    drops += 1;
                }
                90..95 => verify(&rig, &map, &note),
                choice => {
                    rig.executor.run_for(Duration::from_secs(10));
                    let stats = rig.engine.stats();
                    compactions += stats.compactions;
                    collections += stats.collections;
                    let disk = match choice {
                        95 | 96 => rig.close(),
                        97 => rig.kill(),
                        _ => rig.crash(&mut prng),
                    };
                    rig = rig.reopen(disk);
                    verify(&rig, &map, &note);
                }
            }
        }
        verify(&rig, &map, &format!("seed {seed} at the end"));
        rig.executor.kill(Life(1));
    }
    assert!(drops > 300 && compactions > 300 && collections > 100, "{drops}, {compactions}, {collections}");
}

/// Puts so many records of one group, and says how many bytes the drop of all of them wrote.
fn cost(records: u64) -> u64 {
    let rig = Rig::open(VirtualDisk::new(), Default::default());
    for first in (0..records).step_by(1_000) {
        let put = |number: u64| {
            let key = [&[0], &number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes()[..], b"cart:x"].concat();
            let change = Change::Put { head: Bytes::from_static(b"head"), values: Default::default() };
            Write { slice: SliceId((number % u64::from(SLICES)) as u16), key: key.into(), change }
        };
        let writes = (first..records.min(first + 1_000)).map(put).collect();
        assert_eq!(rig.executor.block_on(rig.engine.write(writes, Durability::Sync)), Ok(()));
    }
    let before = rig.disk.counts().bytes_written;
    assert_eq!(drop_all(&rig, "cart:", None), Ok(()));
    let after = rig.disk.counts().bytes_written;
    let left = rig.executor.block_on(rig.engine.scan(SliceId(0), &[0], &[1], 10));
    assert_eq!(left, Ok(vec![]));
    after - before
}

#[test]
fn a_drop_costs_the_same_however_much_goes() {
    let (few, many) = (cost(1), cost(50_000));
    assert_eq!(few, many);
    assert!(few <= 8_192, "{few} bytes");
}

#[test]
fn space_comes_back_and_the_drop_is_forgotten() {
    let rig = Rig::open(VirtualDisk::new(), tiny());
    let put = |number: u64, name: &str| {
        let key = [&[0], &number.to_be_bytes()[..], name.as_bytes()].concat();
        let values = [Bytes::from(vec![7; 4_000])].into_iter().collect();
        let change = Change::Put { head: Bytes::from_static(b"head"), values };
        let write = Write { slice: SliceId((number % 3) as u16), key: key.into(), change };
        assert_eq!(rig.executor.block_on(rig.engine.write(vec![write], Durability::Sync)), Ok(()));
    };
    (0..400).for_each(|number| put(number, "cart:"));
    rig.rest();
    let full = rig.engine.stats().segment_live_bytes;
    assert!(full > 1_400_000, "{full}");
    assert_eq!(drop_all(&rig, "cart:", None), Ok(()));
    // What is written afterwards takes the drop's own record into a table.
    (0..200).for_each(|number| put(number, "user:"));
    rig.rest();
    (0..200).for_each(|number| put(number, "user:"));
    rig.rest();
    let stats = rig.engine.stats();
    assert!(stats.segment_live_bytes < 1_000_000, "{} bytes live", stats.segment_live_bytes);
    assert!(stats.collections > 0);
}

#[test]
fn the_reserved_byte_is_refused() {
    let rig = Rig::open(VirtualDisk::new(), tiny());
    let write = Write { slice: SliceId(0), key: Bytes::from_static(&[RESERVED, 1]), change: Change::Delete };
    assert!(matches!(
        rig.executor.block_on(rig.engine.write(vec![write], Durability::Sync)),
        Err(EngineError::Failed(_))
    ));
    let nonsense = Group { space: RESERVED, skip: 0, name: Bytes::new() };
    assert!(matches!(
        rig.executor.block_on(rig.engine.drop_group(&nonsense, None, &dealt(0, rig.engines.len() as u16))),
        Err(EngineError::Failed(_))
    ));
}
