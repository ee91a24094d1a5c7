//! One directory, opened with another number of shards each time.

use crate::rig::{KEYS, Place, Rig, SLICES, Workload, deal, dealt, key, slow, tiny};
use dynarc::{
    engine::{
        Engine,
        types::{Change, Record},
    },
    sim::{
        disk::VirtualDisk,
        executor::{Executor, Life},
    },
    types::ShardId,
};
use futures_util::future::join_all;
use std::{collections::BTreeMap, rc::Rc};

/// All shards open the directory at the same time.
fn open_all(disk: &VirtualDisk, executor: &Executor, shards: u16) -> Vec<Rig> {
    executor.block_on(deal(disk, shards)).expect("slices are dealt anew");
    let owned: Vec<_> = (0..shards).map(|shard| dealt(shard, shards)).collect();
    let opening = owned
        .iter()
        .enumerate()
        .map(|(shard, slices)| Engine::open(Rc::new(disk.clone()), ShardId(shard as u16), slices, tiny()));
    let opened = executor.block_on(join_all(opening));
    opened.into_iter().map(|opened| Rig::adopt(disk.clone(), executor.clone(), opened.expect("opens"))).collect()
}

#[test]
fn slices_move_between_shards_at_every_start() {
    for seed in 0..12 {
        let mut work = Workload::new(1000 + seed);
        let executor = Executor::new();
        let mut disk = VirtualDisk::new();
        let mut model: BTreeMap<Place, Record> = BTreeMap::new();
        let mut ids: BTreeMap<String, u64> = BTreeMap::new();
        for life in 0..8 {
            let shards = 1 + work.prng.below(3) as u16;
            if seed % 2 == 1 {
                slow(&disk, &executor, seed ^ life);
            }
            let rigs = open_all(&disk, &executor, shards);
            let note = format!("seed {seed} life {life} with {shards} shards");
            for slice in 0..SLICES {
                for number in 0..KEYS {
                    let place = (slice, key(number));
                    let found = rigs[usize::from(slice % shards)].get(&place).expect("ends").expect("a read");
                    assert_eq!(found.as_ref(), model.get(&place), "{note}: {place:?}");
                }
            }
            for _ in 0..work.prng.below(60) {
                let write = work.one();
                let place = (write.slice.0, write.key.to_vec());
                let rig = &rigs[usize::from(write.slice.0 % shards)];
                assert_eq!(rig.write(vec![write.clone()]), Some(Ok(())), "{note}");
                match write.change {
                    Change::Delete => drop(model.remove(&place)),
                    Change::Put { head, values } => drop(model.insert(place, Record { head, values })),
                }
            }
            if work.prng.coin() {
                rigs.iter().for_each(|rig| assert_eq!(executor.block_on(rig.engine.close()), Ok(())));
            }
            executor.kill(Life(1));
            disk = if work.prng.coin() { disk.kill() } else { disk.crash(&mut work.prng) };
            for (path, _) in disk.files().iter().filter(|(path, _)| path.starts_with("log/")) {
                ids.entry(path.clone()).or_insert(life);
            }
        }
        assert!(ids.len() > 4, "too few segments: {ids:?}");
    }
}

/// Segments that several cores have records in go once all of them have copied theirs: they do not pile up.
#[test]
fn segments_of_several_cores_go() {
    let mut work = Workload::new(77);
    let executor = Executor::new();
    let mut disk = VirtualDisk::new();
    let mut model: BTreeMap<Place, Record> = BTreeMap::new();
    let mut seen = std::collections::BTreeSet::new();
    for life in 0..12u64 {
        let shards = [2, 3, 1, 3, 2][life as usize % 5];
        let rigs = open_all(&disk, &executor, shards);
        for _ in 0..120 {
            let write = work.one();
            let place = (write.slice.0, write.key.to_vec());
            assert_eq!(rigs[usize::from(write.slice.0 % shards)].write(vec![write.clone()]), Some(Ok(())));
            match write.change {
                Change::Delete => drop(model.remove(&place)),
                Change::Put { head, values } => drop(model.insert(place, Record { head, values })),
            }
        }
        rigs[0].rest();
        for (place, record) in &model {
            let found = rigs[usize::from(place.0 % shards)].get(place).expect("ends").expect("a read");
            assert_eq!(found.as_ref(), Some(record), "life {life}: {place:?}");
        }
        executor.kill(Life(1));
        disk = if life % 3 == 0 { disk.crash(&mut work.prng) } else { disk.kill() };
        let segments: Vec<_> = disk.files().into_iter().filter(|(path, _)| path.starts_with("log/")).collect();
        seen.extend(segments.iter().map(|(path, _)| path.clone()));
        assert!(segments.len() <= 40, "life {life}: {} segments", segments.len());
    }
    assert!(seen.len() > 60, "too few segments: {}", seen.len());
}
