//! How long does it take to find the core that owns a key? Done for every request, by clients and by coordinators.

use divan::{Bencher, black_box};
use dynarc::{
    protocol::ring::Ring,
    types::{Key, Member, MemberState, NodeId, Ports, Token},
};
use std::net::Ipv4Addr;

fn main() {
    divan::main();
}

const NODES: [u64; 3] = [1, 3, 18];

fn ring(nodes: u64) -> Ring {
    let mut random = fastrand::Rng::with_seed(nodes);
    let members: Vec<Member> = (1..=nodes)
        .map(|id| {
            let mut tokens: Vec<Token> = (0..dynarc::limits::VNODES).map(|_| Token(random.u64(..))).collect();
            tokens.sort_unstable();
            Member {
                id: NodeId(id),
                ip: Ipv4Addr::LOCALHOST.into(),
                ports: Ports::default(),
                shards: 8,
                slices: 64,
                tokens: tokens.into(),
                state: MemberState::Up,
                generation: 1,
                revision: 1,
                heartbeat: 1,
            }
        })
        .collect();
    Ring::new(&members)
}

fn tokens() -> impl FnMut() -> Token {
    let mut random = fastrand::Rng::with_seed(7);
    move || Token(random.u64(..))
}

/// A key's token.
#[divan::bench(args = [16, 100, 1000])]
fn token(bencher: Bencher, key_bytes: usize) {
    let key = Key::new(vec![b'k'; key_bytes]).expect("a key of good length");
    bencher.bench(|| black_box(&key).token());
}

/// The three home replicas of a key.
#[divan::bench(args = NODES)]
fn preference_list(bencher: Bencher, nodes: u64) {
    let ring = ring(nodes);
    bencher.with_inputs(tokens()).bench_local_values(|token| ring.walk(token, 3));
}

/// The first replica and its core.
#[divan::bench(args = NODES)]
fn owning_core(bencher: Bencher, nodes: u64) {
    let ring = ring(nodes);
    bencher
        .with_inputs(tokens())
        .bench_local_values(|token| ring.walk(token, 1).first().and_then(|n| ring.address(*n, token)));
}

/// A new member list arrives.
#[divan::bench(args = NODES)]
fn rebuild(bencher: Bencher, nodes: u64) {
    bencher.bench(|| ring(black_box(nodes)));
}
