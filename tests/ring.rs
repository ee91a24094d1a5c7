//! The ring: who owns a key, how much moves when members change, how evenly a node's slices and shards are loaded.

use dynarc::{
    limits::{SLICES_MIN, VNODES},
    protocol::ring::{Placement, Ring, TokenRange},
    types::{Key, Member, MemberState, NodeId, Ports, ShardId, SliceId, Token},
};
use proptest::prelude::*;
use std::{collections::BTreeSet, net::Ipv4Addr, sync::Arc};

fn tokens(random: &mut fastrand::Rng, count: usize) -> Arc<[Token]> {
    let mut tokens = BTreeSet::new();
    while tokens.len() < count {
        tokens.insert(Token(random.u64(..)));
    }
    tokens.into_iter().collect()
}
fn member(random: &mut fastrand::Rng, id: u64, vnodes: usize) -> Member {
    Member {
        id: NodeId(id),
        ip: Ipv4Addr::LOCALHOST.into(),
        ports: Ports::default(),
        shards: 4,
        slices: SLICES_MIN as u16,
        tokens: tokens(random, vnodes),
        state: MemberState::Up,
        generation: 1,
        revision: 0,
        heartbeat: 0,
    }
}
fn members(seed: u64, count: u64, vnodes: usize) -> Vec<Member> {
    let mut random = fastrand::Rng::with_seed(seed);
    (1..=count).map(|id| member(&mut random, id, vnodes)).collect()
}
fn keys(count: u32) -> impl Iterator<Item = Token> {
    (0..count).map(|i| Key::new(format!("key:{i}")).map(|k| k.token()).expect("a key of good length"))
}

/// The preference list by its definition, without the ring's own search.
fn clockwise(members: &[Member], token: Token) -> Vec<NodeId> {
    let mut vnodes: Vec<(u64, Token, NodeId)> =
        members.iter().flat_map(|m| m.tokens.iter().map(move |t| (t.0.wrapping_sub(token.0), *t, m.id))).collect();
    vnodes.sort_unstable();
    let mut nodes = Vec::new();
    for (_, _, node) in vnodes {
        if !nodes.contains(&node) {
            nodes.push(node);
        }
    }
    nodes
}

#[test]
fn a_preference_list_is_the_next_distinct_nodes_clockwise() {
    for (seed, count, vnodes) in [(1, 1, 1), (2, 3, 8), (3, 7, 64), (4, 18, 256)] {
        let members = members(seed, count, vnodes);
        let ring = Ring::new(&members);
        let on_the_edge = members.iter().flat_map(|m| m.tokens.iter().copied()).take(64);
        let beside = [Token(0), Token(u64::MAX)];
        for token in keys(300).chain(on_the_edge).chain(beside) {
            let expected = clockwise(&members, token);
            for wanted in [0, 1, 3, count as usize, 100] {
                let list = ring.walk(token, wanted);
                assert_eq!(list.as_slice(), &expected[..wanted.min(expected.len())], "{count} nodes, {token:?}");
            }
        }
    }
    assert!(Ring::default().walk(Token(5), 3).is_empty());
}

#[test]
fn a_node_knows_the_arcs_that_it_is_a_home_of() {
    for (seed, count, vnodes) in [(1, 1, 1), (2, 1, 9), (3, 3, 8), (4, 7, 20), (5, 12, 3)] {
        let mut members = members(seed, count, vnodes);
        if count > 2 {
            // Two nodes have one token, and one has the last there is.
            let shared = members[0].tokens[0];
            for (node, more) in [(1, shared), (2, Token(u64::MAX))] {
                let tokens: BTreeSet<Token> = members[node].tokens.iter().copied().chain([more]).collect();
                members[node].tokens = tokens.into_iter().collect();
            }
        }
        let ring = Ring::new(&members);
        for n in [1, 2, 3, 5] {
            for node in ring.nodes() {
                let spans = ring.home_spans(node, n);
                assert!(spans.windows(2).all(|two| two[0].last < two[1].first));
                let edges =
                    members.iter().flat_map(|m| m.tokens.iter().copied()).flat_map(|t| [t.0, t.0.wrapping_add(1)]);
                let tokens = keys(200).chain(edges.map(Token)).chain([Token(0), Token(u64::MAX)]);
                for token in tokens {
                    let span = spans.iter().find(|span| span.contains(token));
                    assert_eq!(span.is_some(), ring.walk(token, n).contains(&node), "{node} of {count}: {token:?}");
                    if let Some(span) = span {
                        assert_eq!(ring.walk(span.first, n), ring.walk(span.last, n));
                        let placement = ring.placement(node).expect("a member");
                        assert_eq!(placement.slice_of(span.first), placement.slice_of(span.last));
                    }
                }
            }
        }
    }
}

#[test]
fn one_node_more_or_less_moves_about_its_share() {
    let all = members(9, 19, VNODES);
    let (before, after) = (Ring::new(&all[..18]), Ring::new(&all));
    let (mut owner, mut replica) = (0, 0);
    let count = 40_000;
    for token in keys(count) {
        let (old, new) = (before.walk(token, 3), after.walk(token, 3));
        owner += u32::from(old[0] != new[0]);
        // The newcomer takes places; it never makes two old nodes change places.
        let arrived: Vec<_> = new.iter().filter(|n| !old.contains(n)).collect();
        assert!(arrived.iter().all(|n| **n == NodeId(19)) && arrived.len() <= 1);
        replica += arrived.len() as u32;
    }
    let share = f64::from(owner) / f64::from(count);
    assert!((0.8 / 19.0..1.2 / 19.0).contains(&share), "first owner moved for {share}");
    let share = f64::from(replica) / f64::from(count);
    assert!((0.8 * 3.0 / 19.0..1.2 * 3.0 / 19.0).contains(&share), "a replica moved for {share}");
}

#[test]
fn a_dead_node_disperses_over_all_survivors() {
    let all = members(10, 10, VNODES);
    let (before, after) = (Ring::new(&all), Ring::new(&all[..9]));
    let mut heirs = std::collections::BTreeMap::<NodeId, u32>::new();
    for token in keys(40_000).filter(|t| before.walk(*t, 1)[0] == NodeId(10)) {
        *heirs.entry(after.walk(token, 1)[0]).or_default() += 1;
    }
    let total: u32 = heirs.values().sum();
    assert_eq!(heirs.len(), 9, "every survivor inherits: {heirs:?}");
    assert!(heirs.values().all(|n| *n < total / 4), "nobody inherits a quarter: {heirs:?}");
}

#[test]
fn nodes_own_nearly_equal_shares_that_sum_to_one() {
    for count in [1, 2, 3, 18] {
        let ring = Ring::new(&members(11, count, VNODES));
        let shares: Vec<f64> = (1..=count).map(|id| ring.owned_share(NodeId(id))).collect();
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{shares:?}");
        let fair = 1.0 / count as f64;
        assert!(shares.iter().all(|s| (0.75 * fair..1.25 * fair + 1e-9).contains(s)), "{count}: {shares:?}");
    }
    let single = Ring::new(&members(12, 1, 1));
    assert!((single.owned_share(NodeId(1)) - 1.0).abs() < 1e-9);
    assert_eq!(single.owned_share(NodeId(2)), 0.0);
    assert_eq!(Ring::default().owned_share(NodeId(1)), 0.0);
}

#[test]
fn members_that_left_own_nothing() {
    let mut all = members(13, 4, VNODES);
    for (state, owns) in [
        (MemberState::Up, true),
        (MemberState::Leaving, true),
        (MemberState::Joining, false),
        (MemberState::Left, false),
        (MemberState::Removed, false),
    ] {
        all[2].state = state;
        let ring = Ring::new(&all);
        assert_eq!(ring.contains(NodeId(3)), owns, "{state:?}");
        assert_eq!(keys(500).any(|t| ring.walk(t, 4).contains(&NodeId(3))), owns, "{state:?}");
        assert_eq!(ring.address(NodeId(3), Token(1)).is_some(), owns, "{state:?}");
    }
}

#[test]
fn the_digest_says_whether_two_rings_place_alike() {
    let all = members(14, 5, 32);
    let digest = Ring::new(&all).digest();
    let mut shuffled = all.clone();
    shuffled.reverse();
    shuffled[0].heartbeat = 99;
    shuffled[1].state = MemberState::Leaving;
    assert_eq!(Ring::new(&shuffled).digest(), digest, "order, heartbeats and leaving do not count");
    let changes: [fn(&mut Member); 4] =
        [|m| m.shards = 5, |m| m.slices = 65, |m| m.state = MemberState::Left, |m| m.tokens = m.tokens[1..].into()];
    for change in changes {
        let mut other = all.clone();
        change(&mut other[3]);
        assert_ne!(Ring::new(&other).digest(), digest);
    }
}

#[test]
fn slices_are_nearly_equal_and_shards_too() {
    for seed in 0..20 {
        let tokens = tokens(&mut fastrand::Rng::with_seed(seed), VNODES);
        let slices = SLICES_MIN as u16;
        let placement = Placement::new(&tokens, slices, 4);
        let length = |slice| placement.ranges_of(slice).iter().map(|r| r.length() as f64).sum::<f64>();
        let lengths: Vec<f64> = (0..slices).map(|s| length(SliceId(s)) / 2f64.powi(64)).collect();
        assert!((lengths.iter().sum::<f64>() - 1.0).abs() < 1e-9, "seed {seed}");
        let fair = 1.0 / f64::from(slices);
        // An arc is never cut, so the longest one sets the limit where it is longer than a fair slice.
        let longest = (0..slices).flat_map(|s| placement.ranges_of(SliceId(s))).map(|r| r.length()).max().unwrap_or(0);
        let bound = (longest as f64 / 2f64.powi(64)).max(1.05 * fair) + 1e-9;
        let most = lengths.iter().copied().fold(0.0, f64::max);
        let least = lengths.iter().copied().fold(1.0, f64::min);
        assert!(most <= bound && least > 0.9 * fair, "seed {seed}: {least} to {most}, fair is {fair}");
        for shard in 0..4 {
            let share: f64 = placement.slices_of(ShardId(shard)).iter().map(|s| lengths[usize::from(s.0)]).sum();
            assert!((0.22..0.28).contains(&share), "seed {seed}: shard {shard} has {share}");
        }
    }
}

#[test]
fn a_slice_depends_on_its_own_node_only_and_shards_on_slices_only() {
    let all = members(15, 6, VNODES);
    let (alone, crowd) = (Ring::new(&all[..1]), Ring::new(&all));
    let (alone, crowd) = (alone.placement(NodeId(1)).unwrap(), crowd.placement(NodeId(1)).unwrap());
    assert!(keys(5_000).all(|t| alone.slice_of(t) == crowd.slice_of(t)));
    for shards in 1..=16 {
        let dealt = Placement::new(&all[0].tokens, SLICES_MIN as u16, shards);
        assert!(keys(500).all(|t| dealt.slice_of(t) == alone.slice_of(t)), "{shards} shards");
        let mut seen = Vec::new();
        for shard in 0..shards {
            let slices = dealt.slices_of(ShardId(shard));
            assert!(!slices.is_empty(), "shard {shard} of {shards} has nothing to do");
            assert!(slices.iter().all(|s| dealt.shard_of(*s) == ShardId(shard)));
            seen.extend(slices);
        }
        assert_eq!(seen, (0..SLICES_MIN as u16).map(SliceId).collect::<Vec<_>>(), "{shards} shards");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Counted clockwise from the open end: wrap-around is no special case.
    #[test]
    fn an_arc_contains_what_lies_clockwise_of_its_start(after: u64, length: u64, token: u64) {
        let arc = TokenRange { after: Token(after), upto: Token(after.wrapping_add(length)) };
        let steps = token.wrapping_sub(after);
        let inside = if length == 0 { true } else { steps != 0 && steps <= length };
        prop_assert_eq!(arc.contains(Token(token)), inside);
        prop_assert!(arc.contains(arc.upto));
        prop_assert_eq!(arc.contains(arc.after), length == 0);
    }

    #[test]
    fn every_token_is_in_exactly_one_arc_of_its_slice(seed: u64, vnodes in 1usize..40, slices in 1u16..80, token: u64) {
        let tokens = tokens(&mut fastrand::Rng::with_seed(seed), vnodes);
        let placement = Placement::new(&tokens, slices, 3);
        let on_edges = tokens.iter().flat_map(|t| [t.0, t.0.wrapping_add(1), t.0.wrapping_sub(1)]);
        for token in on_edges.chain([token, 0, u64::MAX]).map(Token) {
            for slice in (0..slices).map(SliceId) {
                let arcs = placement.ranges_of(slice).iter().filter(|r| r.contains(token)).count();
                prop_assert_eq!(arcs, usize::from(slice == placement.slice_of(token)));
            }
        }
    }
}
