//! Every I/O of many workloads fails once, in each way that I/Os fail.

use crate::{
    crash::{End, Shared, check, script},
    rig::{KEYS, Model, Rig, SLICES, Workload, key, slow, tiny},
};
use bytes::Bytes;
use dynarc::{
    engine::{
        error::EngineError,
        types::{Change, EngineOptions, Values, Write},
    },
    limits::RESERVE_PIECES,
    sim::{
        disk::{Access, Fault, VirtualDisk},
        executor::{Executor, Life},
        prng::Prng,
    },
    types::SliceId,
};
use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

/// Workloads of the row in testing.md, over the parts that run beside each other.
const WORKLOADS: u64 = 50;
const PARTS: u64 = 2;
const ROUNDS: u64 = 6;
const FAULTS: [Fault; 3] = [Fault::Error, Fault::NoSpace, Fault::ShortWrite];

fn fresh(seed: u64) -> (VirtualDisk, Executor) {
    let (disk, executor) = (VirtualDisk::new(), Executor::new());
    if seed % 2 == 1 {
        slow(&disk, &executor, seed);
    }
    (disk, executor)
}

/// What each I/O of the workload is when nothing fails.
fn accesses(seed: u64) -> Vec<Access> {
    let (disk, executor) = fresh(seed);
    let seen = Rc::new(RefCell::new(BTreeMap::new()));
    let all = seen.clone();
    disk.watch(move |io, access| {
        all.borrow_mut().insert(io, access);
    });
    assert_eq!(script(disk.clone(), &executor, seed, ROUNDS, &Shared::default()), End::Whole);
    disk.unwatch();
    executor.clear();
    let seen = seen.take();
    assert!(seen.keys().copied().eq(0..disk.ios()), "every I/O was seen");
    seen.into_values().collect()
}

fn part(number: u64) {
    let wanted = WORKLOADS / PARTS;
    let (mut faults, mut ends) = (BTreeMap::<String, u64>::new(), BTreeMap::<String, u64>::new());
    let (mut ios, mut tried) = (0, 0);
    for seed in (1 + number) * WORKLOADS..(1 + number) * WORKLOADS + wanted {
        let accesses = accesses(seed);
        ios += accesses.len() as u64;
        for (io, access) in accesses.iter().enumerate() {
            for fault in FAULTS {
                let (disk, executor) = fresh(seed);
                disk.plan(io as u64, fault);
                let known = Shared::default();
                let end = script(disk.clone(), &executor, seed, ROUNDS, &known);
                executor.kill(Life(1));
                let note = format!("seed {seed} io {io} {access:?} {fault:?}");
                assert!(!matches!(end, End::Stopped), "{note}: a call never ended");
                let reads = matches!(access, Access::Read(_));
                assert!(!reads || end == End::Whole, "{note}: a failed read stopped the engine: {end:?}");
                let known = known.borrow().clone();
                let (shards, deep) = (1 + io as u16 % 3, io.is_multiple_of(4));
                check(disk.fork().kill(), &known, seed, shards, deep, &note);
                check(disk.fork().crash(&mut Prng::new(seed ^ io as u64)), &known, seed, shards, false, &note);
                executor.clear();
                let kind = format!("{access:?}").split('(').next().unwrap_or_default().to_string();
                *faults.entry(format!("{kind} {fault:?}")).or_default() += 1;
                *ends.entry(format!("{end:?}")).or_default() += 1;
                tried += 1;
            }
        }
    }
    println!("part {number}: {ios} I/Os of {wanted} workloads, {tried} faults {faults:?}, ends {ends:?}");
    assert_eq!(tried, ios * FAULTS.len() as u64);
    assert!(ios > 50 * wanted, "too few I/Os: {ios}");
    for kind in ["Read", "Write", "WriteDurable", "Sync", "SyncDir", "Allocate", "Names", "Open"] {
        for fault in FAULTS {
            let count = faults.get(&format!("{kind} {fault:?}")).copied().unwrap_or(0);
            assert!(count >= wanted, "{kind} {fault:?}: {count}");
        }
    }
    assert!(ends["Failed"] > wanted && ends["Whole"] > wanted, "{ends:?}");
}

#[test]
fn a_failed_io_is_told_and_loses_nothing_acknowledged_1() {
    part(0);
}
#[test]
fn a_failed_io_is_told_and_loses_nothing_acknowledged_2() {
    part(1);
}

#[test]
fn after_a_failed_log_write_every_call_fails_and_nothing_is_tried_again() {
    let disk = VirtualDisk::new();
    let rig = Rig::open(disk.clone(), tiny());
    let mut work = Workload::new(1);
    assert_eq!(rig.write(work.call()), Some(Ok(())));
    disk.plan(disk.ios(), Fault::Error);
    assert!(matches!(rig.write(work.call()), Some(Err(EngineError::Failed(_)))));
    let writes = disk.counts().writes;
    for _ in 0..3 {
        assert!(matches!(rig.write(work.call()), Some(Err(EngineError::Failed(_)))));
        assert!(matches!(rig.get(&(0, b"k".to_vec())), Some(Err(EngineError::Failed(_)))));
    }
    assert_eq!(disk.counts().writes, writes);
}

/// Another program takes what space there is: puts are refused, deletes go on and give space back.
#[test]
fn deletes_free_space_when_nothing_is_left() {
    for seed in 0..8 {
        let (disk, executor) = fresh(seed);
        let options = EngineOptions {
            segment_bytes: 128 << 10,
            memtable_bytes: 32 << 10,
            log_replay_bytes: 256 << 10,
            table_bytes: 128 << 10,
            ..tiny()
        };
        let rig = Rig::open_on(disk.clone(), executor, options);
        let mut work = Workload::new(60 + seed);
        for _ in 0..200 + 40 * seed {
            assert_eq!(rig.write(work.call()), Some(Ok(())));
        }
        rig.rest();
        let used = disk.files().iter().map(|(_, bytes)| bytes).sum();
        disk.set_capacity(Some(used));
        let mut refused = false;
        for _ in 0..200 {
            let mut call = work.call();
            call.retain(|write| write.adds_values());
            refused |= match rig.write(call) {
                Some(Ok(())) => false,
                Some(Err(EngineError::Full)) => true,
                other => panic!("seed {seed}: {other:?}"),
            };
        }
        assert!(refused, "seed {seed}: nothing was refused");
        for slice in 0..SLICES {
            // As the replicated deletes of clients: a head without values.
            let gone = || Change::Put { head: Bytes::from_static(b"gone"), values: Values::new() };
            let change = |number: u64| if number.is_multiple_of(2) { Change::Delete } else { gone() };
            let write = |number| Write { slice: SliceId(slice), key: key(number).into(), change: change(number) };
            assert_eq!(rig.write((0..KEYS).map(write).collect()), Some(Ok(())), "seed {seed}");
            for number in 0..KEYS {
                let place = (slice, key(number));
                let after = rig.get(&place).expect("ends").expect("a read");
                assert!(after.is_none_or(|record| record.head == "gone" && record.values.is_empty()), "seed {seed}");
            }
        }
        // Whoever looks how things stand has it look for space; nobody writes.
        for _ in 0..4 {
            rig.engine.stats();
            rig.rest();
        }
        assert_eq!(rig.engine.stats().read_only, 0, "seed {seed}: {:?}", rig.engine.stats());
        let put = std::iter::repeat_with(|| work.one()).find(Write::adds_values).expect("some put");
        assert_eq!(rig.write(vec![put]), Some(Ok(())), "seed {seed}");
    }
}

#[test]
fn a_full_disk_refuses_puts_and_recovers_by_itself() {
    let disk = VirtualDisk::new();
    disk.set_capacity(Some(1 << 20));
    let rig = Rig::open(disk.clone(), tiny());
    let mut work = Workload::new(5);
    let mut model = Model::default();
    let mut refused = 0;
    for _ in 0..600 {
        let call = work.call();
        match rig.write(call.clone()) {
            Some(Ok(())) => call.iter().for_each(|w| model.acknowledge(w)),
            Some(Err(EngineError::Full)) => {
                refused += 1;
                disk.set_capacity((refused == 20).then_some(8 << 20).or(Some(1 << 20)));
            }
            other => panic!("{other:?}"),
        }
        if refused >= 20 {
            break;
        }
    }
    rig.verify(&mut model, "full");
    if refused < 20 {
        // Collection kept up: take the space away altogether.
        disk.set_capacity(Some(0));
        while rig.write(work.call()) == Some(Ok(())) {}
        panic!("the workload is too small to fill the disk");
    }
    let call = work.call();
    assert_eq!(rig.write(call.clone()), Some(Ok(())), "space is back");
    call.iter().for_each(|w| model.acknowledge(w));
    rig.verify(&mut model, "space again");
    assert_eq!(rig.engine.stats().read_only, 0);
}

/// What a node writes when it starts: small records without values in every slice. Whether all found space.
fn start_writes(rig: &Rig, model: &mut Model, life: u64, note: &str) -> bool {
    (0..SLICES).all(|slice| {
        let head = Bytes::from(format!("life {life}"));
        let change = Change::Put { head, values: Values::new() };
        let write = Write { slice: SliceId(slice), key: Bytes::from(key(0)), change };
        match rig.write(vec![write.clone()]) {
            Some(Ok(())) => {
                model.acknowledge(&write);
                true
            }
            Some(Err(EngineError::Full)) => false,
            other => panic!("{note}, life {life}: {other:?}"),
        }
    })
}

/// A full disk, kills and starts, and a moment with space after every second of them, while somebody else takes at once
/// all that the last lives have freed: every start can read, most find in the reserve what they need to write, and once
/// there is space all can.
#[test]
fn a_start_on_a_full_disk_works() {
    const LIVES: u64 = 24;
    let (mut starts, mut wrote) = (0, 0);
    for seed in 0..6 {
        let options = || EngineOptions { segment_bytes: 2 << 20, memtable_bytes: 128 << 10, ..tiny() };
        let (mut work, mut model) = (Workload::new(90 + seed), Model::default());
        let (disk, executor) = fresh(seed);
        let rig = Rig::open_on(disk, executor, options());
        for _ in 0..300 {
            let call = work.call();
            assert_eq!(rig.write(call.clone()), Some(Ok(())));
            call.iter().for_each(|w| model.acknowledge(w));
        }
        let mut rig = rig.reopen_with(rig.kill(), 2);
        for life in 0..LIVES {
            let note = format!("seed {seed}");
            let roomy = life % 2 == 0;
            assert!(start_writes(&rig, &mut model, life, &note) || !roomy, "{note}, life {life}");
            let disk = rig.kill();
            disk.set_capacity(Some(disk.files().iter().map(|(_, bytes)| bytes).sum()));
            rig = rig.reopen_with(disk, 2);
            starts += 1;
            wrote += u64::from(start_writes(&rig, &mut model, life, &format!("{note}, full")));
            rig.verify(&mut model, &format!("{note}, life {life}"));
            if !roomy {
                // Space is back, and somebody looks; nobody writes.
                rig.disk.set_capacity(None);
                for engine in &rig.engines {
                    engine.stats();
                }
                rig.rest();
            }
        }
    }
    assert!(wrote * 2 > starts, "{wrote} of {starts} starts could write");
}

/// Somebody else takes whatever becomes free on a full disk at once: deletes go on with what was put by for them, and
/// when the disk has room again and nobody writes, as much is put by for the next time, also by a node that was killed.
#[test]
fn deletes_on_a_full_disk_need_nothing_that_becomes_free() {
    const DELETES: u64 = 60;
    for seed in 0..6 {
        let options = EngineOptions { segment_bytes: 2 << 20, memtable_bytes: 128 << 10, ..tiny() };
        let (disk, executor) = fresh(seed);
        let (mut rig, mut model) = (Rig::open_on(disk, executor, options), Model::default());
        let put = |number: u64, round: u64| {
            let value = Bytes::from(vec![round as u8 + 1; 10 << 10]);
            let change = Change::Put { head: Bytes::from(format!("{round}")), values: [value].into_iter().collect() };
            let (slice, number) = (number % u64::from(SLICES), number / u64::from(SLICES));
            Write { slice: SliceId(slice as u16), key: Bytes::from(key(number)), change }
        };
        for round in 0..6 {
            let note = format!("seed {seed}, round {round}");
            rig.rest();
            let pieces = || rig.disk.files().iter().filter(|(name, _)| name.contains("reserve/")).count();
            assert_eq!(pieces(), RESERVE_PIECES, "{note}");
            let taker = rig.disk.clone();
            for number in 0..DELETES {
                assert_eq!(rig.write(vec![put(number, round)]), Some(Ok(())), "{note}");
                model.acknowledge(&put(number, round));
            }
            rig.disk.watch(move |_, _| taker.set_capacity(Some(taker.used())));
            let refused = (0..1_000).find(|_| {
                let write = put(DELETES, round);
                let written = rig.write(vec![write.clone()]);
                if written == Some(Ok(())) {
                    model.acknowledge(&write);
                }
                written == Some(Err(EngineError::Full))
            });
            assert!(refused.is_some(), "{note}: the disk is not full");
            for number in 0..DELETES {
                let write = Write { change: Change::Delete, ..put(number, round) };
                assert_eq!(rig.write(vec![write.clone()]), Some(Ok(())), "{note}, delete {number}");
                model.acknowledge(&write);
            }
            rig.verify(&mut model, &note);
            rig.disk.unwatch();
            rig.disk.set_capacity(None);
            if round % 2 == 1 {
                let disk = rig.kill();
                rig = rig.reopen(disk);
            }
            // Nobody writes, somebody looks.
            rig.engine.stats();
            rig.rest();
        }
    }
}
