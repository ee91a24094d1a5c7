//! What runs beside the writes: space stays within its bound, writes go on, snapshots stay as they are.

use crate::rig::{KEYS, Rig, SLICES, Workload, key, slow, tiny};
use bytes::Bytes;
use dynarc::{
    engine::{
        disk::Lane,
        types::{Change, Durability, EngineOptions, Write},
    },
    sim::{
        disk::{Access, VirtualDisk},
        executor::Life,
        prng::Prng,
    },
    types::SliceId,
};
use std::{cell::RefCell, rc::Rc, time::Duration};

fn put(slice: u16, number: u64, round: u64, bytes: usize) -> Write {
    let value = Bytes::from(vec![(round % 250) as u8 + 1; bytes]);
    let change = Change::Put { head: Bytes::from(format!("{round}")), values: [value].into_iter().collect() };
    Write { slice: SliceId(slice), key: Bytes::from(key(number)), change }
}

/// Segments large beside batches, and many of them, as on a real disk.
fn roomy() -> EngineOptions {
    EngineOptions {
        segment_bytes: 256 << 10,
        memtable_bytes: 64 << 10,
        log_replay_bytes: 512 << 10,
        value_cache_bytes: 0,
        block_bytes: 4 << 10,
        table_bytes: 64 << 10,
        level0_tables: 4,
        level_factor: 10,
        // The ends of such small segments, where no batch fits any more, are a good part of them.
        space_percent_start: 138,
        space_percent_max: 148,
        ..tiny()
    }
}

/// Uniform overwrites of a store that is ten times its bound on what may come on top.
#[test]
fn space_stays_in_proportion_and_little_is_copied() {
    for seed in 0..12 {
        let disk = VirtualDisk::new();
        let rig = Rig::open(disk.clone(), roomy());
        if seed > 0 {
            slow(&disk, &rig.executor, seed);
        }
        let mut prng = Prng::new(seed);
        let (keys, bytes) = (400, 10 << 10);
        let live = u64::from(SLICES) * keys * bytes as u64;
        let mut most = 0;
        for round in 0..5 {
            let mut order: Vec<_> = (0..u64::from(SLICES) * keys).collect();
            prng.shuffle(&mut order);
            let before = rig.engine.stats();
            for some in order.chunks(16) {
                let calls: Vec<_> =
                    some.iter().map(|n| vec![put((n % u64::from(SLICES)) as u16, n / 3, round, bytes)]).collect();
                assert!(rig.write_together(&calls).iter().all(|r| *r == Some(Ok(()))), "seed {seed} round {round}");
                if round > 0 {
                    most = most.max(rig.engine.stats().segment_bytes);
                }
            }
            let now = rig.engine.stats();
            let written = now.device_bytes_written - before.device_bytes_written;
            let amplification = written as f64 / live as f64;
            eprintln!(
                "seed {seed} round {round}: {amplification:.2} x written, {:.2} x space",
                most as f64 / live as f64
            );
            // Segments are so small here that the roll takes a sixteenth of what each does.
            assert!(amplification < 3.3, "seed {seed} round {round}: {amplification:.2} bytes a byte");
        }
        // On a slow disk collection is what holds writes up, and they are let in a little ahead of it: the more, the
        // more slowly it writes (on one disk in three at a twentieth of the log's speed).
        let factor = if seed == 0 { 1.55 } else { 2.8 };
        let bound = (live as f64 * factor) as u64 + 10 * (256 << 10);
        assert!(most <= bound, "seed {seed}: {most} bytes of segments for {live} live ones");
        rig.recount(&format!("seed {seed}"));
    }
}

/// A disk on which flushes are far slower than the log: writes go at the pace of flushes, and none waits for long.
#[test]
fn writes_slow_down_and_never_stop() {
    let disk = VirtualDisk::new();
    let options = EngineOptions { memtable_bytes: 256 << 10, ..roomy() };
    let rig = Rig::open(disk.clone(), options.clone());
    disk.set_clock(&rig.executor, |access, bytes| match access {
        Access::Write(Lane::Log) | Access::WriteDurable(Lane::Log) => Duration::from_micros(200),
        Access::Write(_) | Access::WriteDurable(_) | Access::Sync | Access::SyncDir => {
            Duration::from_micros(2000 + bytes as u64 / 50)
        }
        _ => Duration::from_micros(100),
    });
    let acknowledged = Rc::new(RefCell::new(Vec::new()));
    for writer in 0..16 {
        let (engine, executor, acknowledged) = (rig.engine.clone(), rig.executor.clone(), acknowledged.clone());
        rig.executor.spawn(Life(1), async move {
            for number in 0..1000u64 {
                let write = put((number % u64::from(SLICES)) as u16, writer * 1000 + number, 1, 50);
                assert_eq!(engine.write(vec![write], Durability::Sync).await, Ok(()));
                let now = (executor.now(), engine.stats().memtable_bytes);
                acknowledged.borrow_mut().push(now);
            }
        });
    }
    rig.executor.run_for(Duration::from_secs(100));
    let acknowledged = acknowledged.borrow();
    assert_eq!(acknowledged.len(), 16_000);
    let gaps = acknowledged.windows(2).map(|pair| pair[1].0.since(pair[0].0));
    let longest = gaps.max().expect("many writes");
    let most = acknowledged.iter().map(|(_, bytes)| *bytes).max().expect("many writes");
    let took = acknowledged[acknowledged.len() - 1].0.since(acknowledged[0].0);
    eprintln!("16,000 writes in {took:?}, longest gap {longest:?}, at most {most} bytes of memtables");
    assert!(took > Duration::from_millis(200), "flushes do not slow writes down: {took:?}");
    assert!(longest < Duration::from_millis(50), "nothing was acknowledged for {longest:?}");
    assert!(most < 3 * options.memtable_bytes as u64, "{most} bytes of memtables");
    assert!(rig.engine.stats().flushes > 10);
}

/// Filters take the memory that they may, those of small tables first; every key is found all the same.
#[test]
fn filters_keep_to_their_memory() {
    let memory = |table_memory_bytes| {
        let options = EngineOptions { memtable_bytes: 16 << 10, table_memory_bytes, ..roomy() };
        let rig = Rig::open(VirtualDisk::new(), options);
        for some in (0..6000u64).collect::<Vec<_>>().chunks(50) {
            let calls: Vec<_> =
                some.iter().map(|n| vec![put((n % u64::from(SLICES)) as u16, n / 3 % 2000, 1, 40)]).collect();
            assert!(rig.write_together(&calls).iter().all(|r| *r == Some(Ok(()))));
        }
        rig.rest();
        for number in 0..6000u64 {
            let place = ((number % u64::from(SLICES)) as u16, key(number / 3 % 2000));
            assert!(matches!(rig.get(&place), Some(Ok(Some(_)))), "key {number}");
        }
        rig.engine.stats().table_memory_bytes
    };
    let (all, none) = (memory(1 << 30), memory(0));
    assert!(none < all, "{none} without filters, {all} with them");
    let some = memory((all + none) as usize / 2);
    assert!(none < some && some <= (all + none) / 2, "{some} of {none} to {all}");
}

#[test]
fn a_snapshot_stays_as_it_was() {
    for seed in 0..8 {
        let disk = VirtualDisk::new();
        let rig = Rig::open(disk.clone(), tiny());
        if seed % 2 == 1 {
            slow(&disk, &rig.executor, seed);
        }
        let mut work = Workload::new(3000 + seed);
        let mut snapshots = Vec::new();
        for step in 0..150 {
            assert_eq!(rig.write(work.call()), Some(Ok(())));
            if step % 15 == 7 {
                let slice = SliceId((step % u64::from(SLICES)) as u16);
                let snapshot = rig.engine.snapshot(slice).expect("open");
                let now = rig.executor.block_on(rig.engine.scan(slice, b"", b"\xff", 1000)).expect("a scan");
                snapshots.push((snapshot, now));
            }
            if step % 10 == 0 {
                rig.rest();
            }
        }
        for (number, (snapshot, wanted)) in snapshots.iter().enumerate() {
            for limit in [1000, 1, 4] {
                let (mut found, mut from) = (Vec::new(), Vec::new());
                loop {
                    let page = rig.executor.block_on(snapshot.scan(&from, b"\xff", limit)).expect("a page");
                    assert!(page.len() <= limit);
                    let Some((last, _)) = page.last() else { break };
                    from = [&last[..], &[0]].concat();
                    found.extend(page);
                }
                assert_eq!(&found, wanted, "seed {seed} snapshot {number} in pages of {limit}");
            }
            let (first, to) = (key(KEYS / 4), key(KEYS / 2));
            let part = rig.executor.block_on(snapshot.scan(&first, &to, 1000)).expect("a part");
            let wanted: Vec<_> = wanted.iter().filter(|(k, _)| **k >= first[..] && **k < to[..]).cloned().collect();
            assert_eq!(part, wanted);
        }
        let stats = rig.engine.stats();
        assert!(stats.flushes > 5 && stats.compactions > 3, "too little went on: {stats:?}");
    }
}
