//! What do a write and a read of the newest records cost in memory? By how many records are there.

use bytes::Bytes;
use divan::{Bencher, black_box};
use dynarc::engine::{
    memtable::{Memtable, Place},
    types::{Stored, StoredValue},
};

fn place(position: u64) -> Place {
    Place { segment: 1, position }
}

fn main() {
    divan::main();
}

const RECORDS: [u64; 3] = [1_000, 10_000, 100_000];

/// Keys as the shard makes them: a space byte, the token, the user's key.
fn key(number: u64) -> Bytes {
    let user = format!("bench:{number:010}");
    let token = xxhash_rust::xxh3::xxh3_64(user.as_bytes());
    [&[0], &token.to_be_bytes()[..], user.as_bytes()].concat().into()
}
fn stored() -> Stored {
    let value = StoredValue::Inline(Bytes::from(vec![1; 64]));
    Stored::Put { head: Bytes::from(vec![2; 80]), values: [value].into_iter().collect() }
}
fn filled(records: u64) -> Memtable {
    let mut memtable = Memtable::default();
    for number in 0..records {
        memtable.insert(key(number), number + 1, stored(), place(number), false);
    }
    memtable
}

#[divan::bench(args = RECORDS)]
fn get(bencher: Bencher, records: u64) {
    let (memtable, mut random) = (filled(records), fastrand::Rng::with_seed(1));
    bencher.with_inputs(|| key(random.u64(..records))).bench_local_refs(|key| black_box(&memtable).get(key).is_some());
}

/// A new key each time: the memtable grows meanwhile.
#[divan::bench(args = RECORDS)]
fn insert(bencher: Bencher, records: u64) {
    let (mut memtable, mut next) = (filled(records), records);
    let inputs = || {
        next += 1;
        (key(next), next)
    };
    bencher
        .with_inputs(inputs)
        .bench_local_values(|(key, sequence)| memtable.insert(key, sequence, stored(), place(sequence), false));
}

#[divan::bench(args = RECORDS)]
fn replace(bencher: Bencher, records: u64) {
    let (mut memtable, mut random, mut sequence) = (filled(records), fastrand::Rng::with_seed(1), records);
    let inputs = || {
        sequence += 1;
        (key(random.u64(..records)), sequence)
    };
    bencher
        .with_inputs(inputs)
        .bench_local_values(|(key, sequence)| memtable.insert(key, sequence, stored(), place(sequence), false));
}
