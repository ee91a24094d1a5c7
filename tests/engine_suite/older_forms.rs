//! Directories written by earlier versions open, and hold what they held.

use crate::rig::{KEYS, Rig, SLICES, Workload, key, tiny};
use dynarc::{
    engine::types::{Change, Record},
    limits::PAGE,
    sim::disk::VirtualDisk,
};
use std::collections::BTreeMap;

/// Files as `path length (4), path, length (8), stored (4), bytes`, zeros at their ends left out.
fn unpack(mut bytes: &[u8]) -> VirtualDisk {
    let disk = VirtualDisk::new();
    let mut take = |count: usize| {
        let (taken, rest) = bytes.split_at(count);
        bytes = rest;
        taken.to_vec()
    };
    let number = |bytes: Vec<u8>| bytes.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    for _ in 0..FILES {
        let path_bytes = number(take(4));
        let path = String::from_utf8(take(path_bytes)).expect("text");
        let (length, stored) = (number(take(8)), number(take(4)));
        let mut content = take(stored);
        content.resize(length, 0);
        disk.make(&path, &content);
    }
    disk
}
const FILES: usize = 8;

/// Written by the version before rolls: two segments of format 3 of a node that was killed.
#[test]
fn a_log_without_a_roll_opens_and_is_on_one_from_then_on() {
    let disk = unpack(include_bytes!("format_3.bin"));
    let mut right: BTreeMap<(u16, Vec<u8>), Record> = BTreeMap::new();
    let mut work = Workload::new(77);
    for write in (0..14).flat_map(|_| work.call()) {
        let place = (write.slice.0, write.key.to_vec());
        match write.change {
            Change::Delete => drop(right.remove(&place)),
            Change::Put { head, values } => drop(right.insert(place, Record { head, values })),
        }
    }
    assert!(right.len() > 5);
    let mut rig = Rig::open(disk, tiny());
    for life in 0..3 {
        assert_eq!(rig.damage(), [], "life {life}");
        for place in (0..SLICES).flat_map(|slice| (0..KEYS).map(move |number| (slice, key(number)))) {
            assert_eq!(rig.get(&place), Some(Ok(right.get(&place).cloned())), "life {life}: {place:?}");
        }
        assert!(rig.disk.contents("log/roll-0000").is_some_and(|roll| roll.len() >= 4 * PAGE));
        rig = rig.reopen(rig.kill());
    }
}
