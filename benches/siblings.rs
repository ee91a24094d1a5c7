//! What do versions cost? A put, a merge, and a head's way to and from bytes: each done at least once a write.

use divan::{Bencher, black_box};
use dynarc::{
    protocol::versions::{Actor, Dot, Entry, Head},
    types::{Media, WriteId},
};

fn main() {
    divan::main();
}

fn entry(actor: u64, counter: u64) -> Entry {
    let dot = Dot { actor: Actor::from_narrow(actor << 16), counter };
    Entry { dot, write_id: WriteId(counter), media: Media::Json, bytes: 10_240, checksum: 7 }
}
/// A key that three nodes have coordinated writes of, with this many siblings.
fn head(siblings: u64) -> Head {
    let mut head = Head::default();
    for actor in 1..=3 {
        let context = head.clock.clone().into();
        head = head.put(&context, entry(actor, 10)).head;
    }
    let context = head.clock.clone().into();
    for counter in 0..siblings {
        head = head.put(&context, entry(1 + counter % 3, 100 + counter)).head;
    }
    head
}

/// A write that builds on all there is.
#[divan::bench(args = [1, 3])]
fn put(bencher: Bencher, siblings: u64) {
    let (head, new) = (head(siblings), entry(1, 1_000));
    let context = head.clock.clone().into();
    bencher.bench(|| black_box(&head).put(black_box(&context), new.clone()));
}

/// A replica merges a state that it has already: a retry, a repair.
#[divan::bench(args = [1, 3])]
fn merge_equal(bencher: Bencher, siblings: u64) {
    let head = head(siblings);
    bencher.bench(|| black_box(&head).sync(black_box(&head)));
}

/// A replica merges a write that supersedes what it holds: the common case.
#[divan::bench(args = [1, 3])]
fn merge_newer(bencher: Bencher, siblings: u64) {
    let old = head(siblings);
    let context = old.clock.clone().into();
    let new = old.put(&context, entry(2, 1_000)).head;
    bencher.bench(|| black_box(&old).sync(black_box(&new)));
}

#[divan::bench(args = [1, 3])]
fn encode(bencher: Bencher, siblings: u64) {
    let head = head(siblings);
    bencher.bench(|| black_box(&head).encode());
}

#[divan::bench(args = [1, 3])]
fn decode(bencher: Bencher, siblings: u64) {
    let bytes = head(siblings).encode();
    bencher.bench(|| Head::decode(black_box(&bytes)));
}
