//! What does the engine cost a read and a write when the device costs nothing? The disk is the simulator's, in memory.

use bytes::Bytes;
use divan::{
    Bencher,
    counter::{BytesCount, ItemsCount},
};
use dynarc::{
    engine::{
        Engine,
        types::{Change, Durability, EngineOptions, Want, Write},
    },
    sim::{
        disk::VirtualDisk,
        executor::{Executor, Life},
    },
    types::{ShardId, SliceId},
};
use std::rc::Rc;

fn main() {
    divan::main();
}

const SIZES: [usize; 2] = [64, 10_240];
const KEYS: u64 = 2_000;
const SLICES: u16 = 8;

struct Rig {
    executor: Executor,
    engine: Engine<VirtualDisk>,
}
impl Rig {
    fn open() -> Rig {
        let (executor, slices) = (Executor::new(), (0..SLICES).map(SliceId).collect::<Vec<_>>());
        let opening = Engine::open(Rc::new(VirtualDisk::new()), ShardId(0), &slices, EngineOptions::default());
        let opened = executor.block_on(opening).expect("an empty disk opens");
        for (_, task) in opened.background {
            executor.spawn_boxed(Life::OUTSIDE, task);
        }
        Rig { executor, engine: opened.engine }
    }
    fn loaded(value_bytes: usize) -> Rig {
        let rig = Rig::open();
        (0..KEYS).for_each(|number| rig.write(number, &value(value_bytes)));
        rig
    }
    fn write(&self, number: u64, value: &Bytes) {
        let (slice, key) = place(number);
        let change = Change::Put { head: Bytes::from_static(&[3; 80]), values: [value.clone()].into_iter().collect() };
        let write = self.engine.write(vec![Write { slice, key, change }], Durability::Sync);
        self.executor.block_on(write).expect("the disk does not fail");
    }
}
fn value(bytes: usize) -> Bytes {
    vec![7; bytes].into()
}
fn place(number: u64) -> (SliceId, Bytes) {
    let user = format!("bench:{number:010}");
    let token = xxhash_rust::xxh3::xxh3_64(user.as_bytes());
    let slice = SliceId((token % u64::from(SLICES)) as u16);
    (slice, [&[0], &token.to_be_bytes()[..], user.as_bytes()].concat().into())
}

/// One write a batch: what a lone client sees. Batches share this.
#[divan::bench(args = SIZES)]
fn write(bencher: Bencher, value_bytes: usize) {
    let (rig, value, mut random) = (Rig::loaded(value_bytes), value(value_bytes), fastrand::Rng::with_seed(1));
    let numbers = || random.u64(..KEYS);
    bencher.counter(BytesCount::new(value_bytes)).with_inputs(numbers).bench_local_values(|n| rig.write(n, &value));
}

/// 64 writes of one call: one batch of the log.
#[divan::bench(args = SIZES)]
fn write_64(bencher: Bencher, value_bytes: usize) {
    let (rig, value, mut random) = (Rig::loaded(value_bytes), value(value_bytes), fastrand::Rng::with_seed(1));
    let batch = || -> Vec<Write> {
        let one = |_| {
            let (slice, key) = place(random.u64(..KEYS));
            let head = Bytes::from_static(&[3; 80]);
            Write { slice, key, change: Change::Put { head, values: [value.clone()].into_iter().collect() } }
        };
        (0..64).map(one).collect()
    };
    bencher.counter(BytesCount::new(64 * value_bytes)).with_inputs(batch).bench_local_values(|writes| {
        rig.executor.block_on(rig.engine.write(writes, Durability::Sync)).expect("the disk does not fail");
    });
}

fn read(bencher: Bencher, value_bytes: usize, want: Want) {
    let (rig, mut random) = (Rig::loaded(value_bytes), fastrand::Rng::with_seed(1));
    bencher.with_inputs(|| place(random.u64(..KEYS))).bench_local_refs(|(slice, key)| {
        rig.executor.block_on(rig.engine.get(*slice, key, want)).expect("the disk does not fail")
    });
}
/// What a put needs to know of its key.
#[divan::bench(args = SIZES)]
fn get_head(bencher: Bencher, value_bytes: usize) {
    read(bencher, value_bytes, Want::Head);
}
#[divan::bench(args = SIZES)]
fn get(bencher: Bencher, value_bytes: usize) {
    read(bencher, value_bytes, Want::Full);
}

const FOLDED: u64 = 200_000;

/// A walk over heads, as repair does it: the heads of so many keys of one slice, most of them in tables.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn fold(bencher: Bencher) {
    let rig = Rig::open();
    for first in (0..FOLDED).step_by(64) {
        let one = |number| {
            let change = Change::Put { head: Bytes::from_static(&[3; 80]), values: [value(64)].into_iter().collect() };
            Write { slice: SliceId(0), key: place(number).1, change }
        };
        let write = rig.engine.write((first..first + 64).map(one).collect(), Durability::Sync);
        rig.executor.block_on(write).expect("the disk does not fail");
    }
    bencher.counter(ItemsCount::new(FOLDED)).bench_local(|| {
        let mut bytes = 0;
        let visit = |_: &[u8], head: &[u8]| bytes += head.len();
        let folding = rig.engine.fold(SliceId(0), &[0], &[1], visit);
        assert_eq!(rig.executor.block_on(folding), Ok(FOLDED));
        bytes
    });
}
