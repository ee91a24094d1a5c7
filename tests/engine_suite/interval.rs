//! Writes that are acknowledged before their sync: a crash takes the last of them at most, never one from the middle.

use crate::rig::{Rig, slow, tiny};
use bytes::Bytes;
use dynarc::{
    engine::types::{Change, Durability, Want, Write},
    sim::{
        disk::VirtualDisk,
        executor::{Executor, Life},
        prng::Prng,
    },
    types::SliceId,
};
use std::time::Duration;

fn numbered(number: u64, bytes: usize) -> Write {
    let values = [Bytes::from(vec![number as u8 | 1; bytes])].into_iter().collect();
    let change = Change::Put { head: Bytes::copy_from_slice(&number.to_le_bytes()), values };
    Write { slice: SliceId((number % 3) as u16), key: format!("n{number}").into_bytes().into(), change }
}

/// How many of the numbered writes are there; they must be the first ones.
fn beginning(rig: &Rig, written: u64) -> u64 {
    let there = |number: u64| {
        let write = numbered(number, 0);
        let found = rig.executor.block_on(rig.engine.get(write.slice, &write.key, Want::Full));
        found.expect("no damage").is_some()
    };
    let count = (0..written).take_while(|number| there(*number)).count() as u64;
    assert!((count..written).all(|number| !there(number)), "a write is missing before one that is there");
    count
}

#[test]
fn a_crash_leaves_a_beginning() {
    let (mut lost, mut whole) = (0, 0);
    for seed in 0..300 {
        let mut prng = Prng::new(seed);
        let (disk, executor) = (VirtualDisk::new(), Executor::new());
        slow(&disk, &executor, seed);
        let rig = Rig::open_on(disk, executor, tiny());
        let (mut sure, count) = (0, 20 + prng.below(60));
        for number in 0..count {
            let synced = prng.chance(0.1);
            let durability = if synced { Durability::Sync } else { Durability::Interval };
            let bytes = *prng.pick(&[10, 500, 5_000]).expect("three");
            let write = rig.engine.write(vec![numbered(number, bytes)], durability);
            assert_eq!(rig.executor.block_on(write), Ok(()));
            if synced {
                sure = number + 1;
            }
            let found = rig.executor.block_on(rig.engine.get(
                SliceId((number % 3) as u16),
                &numbered(number, 0).key,
                Want::Full,
            ));
            assert_eq!(found.expect("no damage").expect("what was acknowledged is seen").values[0].len(), bytes);
            if prng.chance(0.05) {
                // The interval passes: all of it is durable.
                rig.executor.run_for(Duration::from_millis(15));
                sure = number + 1;
            }
        }
        let disk = rig.crash(&mut prng);
        let rig = rig.reopen(disk);
        assert_eq!(rig.engine.damage(), [], "seed {seed}");
        let left = beginning(&rig, count);
        assert!(left >= sure, "seed {seed}: {left} of {count} left, {sure} were durable");
        lost += u64::from(left < count);
        whole += u64::from(left == count);
        rig.executor.kill(Life(1));
    }
    assert!(lost > 20 && whole > 20, "both must happen: {lost}, {whole}");
}

#[test]
fn an_orderly_end_keeps_all() {
    let rig = Rig::open(VirtualDisk::new(), tiny());
    for number in 0..30 {
        let write = rig.engine.write(vec![numbered(number, 3_000)], Durability::Interval);
        assert_eq!(rig.executor.block_on(write), Ok(()));
    }
    rig.close();
    let mut prng = Prng::new(1);
    let rig = rig.reopen(rig.disk.crash(&mut prng));
    assert_eq!(beginning(&rig, 30), 30);
}
