//! A fold shows what a scan does, as of its beginning, and holds nobody up.

use crate::rig::{KEYS, Rig, SLICES, Workload, key, slow, tiny};
use bytes::Bytes;
use dynarc::{
    engine::{
        Engine,
        types::{Change, Durability, Write},
    },
    sim::{disk::VirtualDisk, executor::Life},
    types::SliceId,
};
use std::{cell::RefCell, rc::Rc, time::Duration};

type Heads = Vec<(Bytes, Bytes)>;

async fn fold(engine: Engine<VirtualDisk>, slice: SliceId, from: Vec<u8>, to: Vec<u8>) -> Heads {
    let mut seen = Heads::new();
    let visit = |key: &[u8], head: &[u8]| seen.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(head)));
    let count = engine.fold(slice, &from, &to, visit).await.expect("a sound disk");
    assert_eq!(count as usize, seen.len());
    seen
}

#[test]
fn a_fold_shows_what_a_scan_finds_in_any_range() {
    for seed in 0..40 {
        let mut work = Workload::new(seed);
        let rig = Rig::open(VirtualDisk::new(), tiny());
        for _ in 0..60 {
            let calls: Vec<_> = (0..=work.prng.below(6)).map(|_| work.call()).collect();
            assert!(rig.write_together(&calls).iter().all(|result| *result == Some(Ok(()))));
            let slice = SliceId(work.prng.below(u64::from(SLICES)) as u16);
            let mut bound = || match work.prng.below(8) {
                0 => Vec::new(),
                1 => vec![0xfe],
                _ => key(work.prng.below(KEYS + 1)),
            };
            let (from, to) = (bound(), bound());
            let scanned = rig.executor.block_on(rig.engine.scan(slice, &from, &to, 10_000)).expect("a sound disk");
            let folded = rig.executor.block_on(fold(rig.engine.clone(), slice, from.clone(), to.clone()));
            assert_eq!(folded, scanned, "seed {seed}: {from:?} to {to:?}");
        }
        assert!(rig.engine.stats().flushes > 0, "seed {seed}: tables are folded as well");
    }
}

#[test]
fn what_is_written_meanwhile_does_not_wait_and_is_not_shown() {
    let slice = SliceId(0);
    let put = |number: u64, round: u64| {
        let value = Bytes::from(vec![round as u8 + 1; 200]);
        let change = Change::Put { head: Bytes::from(format!("{round}")), values: [value].into_iter().collect() };
        Write { slice, key: Bytes::from(format!("{number:06}")), change }
    };
    for seed in 1..6 {
        let disk = VirtualDisk::new();
        let rig = Rig::open(disk.clone(), tiny());
        for some in (0..3_000).collect::<Vec<u64>>().chunks(50) {
            let calls: Vec<_> = some.iter().map(|number| vec![put(*number, 0)]).collect();
            assert!(rig.write_together(&calls).iter().all(|result| *result == Some(Ok(()))));
        }
        slow(&disk, &rig.executor, seed);
        let (before, found) = (rig.engine.stats(), Rc::new(RefCell::new(None)));
        let (engine, shown) = (rig.engine.clone(), found.clone());
        rig.executor.spawn(Life(1), async move {
            let heads = fold(engine, slice, Vec::new(), vec![0xff]).await;
            *shown.borrow_mut() = Some(heads);
        });
        let mut written = 0;
        while found.borrow().is_none() {
            // Right behind where the fold begins, and far ahead of it.
            let writes = [0, 1, 2_998, 2_999].map(|number| put(number, 1 + written % 9));
            let write = rig.engine.write(writes.to_vec(), Durability::Sync);
            assert_eq!(rig.executor.block_on(write), Ok(()));
            written += 1;
            rig.executor.run_for(Duration::from_micros(10));
        }
        let heads = found.take().expect("it has ended");
        assert_eq!(heads.len(), 3_000, "seed {seed}");
        assert!(heads.iter().all(|(_, head)| head == "0"), "seed {seed}: of its beginning");
        assert!(written > 3, "seed {seed}: {written} writes ended meanwhile");
        assert!(rig.engine.stats().durable_writes > before.durable_writes);
    }
}
