//! Who owns a key: tokens, vnodes, preference lists; and inside one node, which slice and shard serve it.
//!
//! Everything here is a pure function of the member list, so every peer and every client computes the same answer.

mod placement;

pub use placement::Placement;

use crate::types::{Address, Member, MemberState, NodeId, Span, Token};
use hashbrown::HashMap;
use smallvec::SmallVec;
use xxhash_rust::xxh3::{Xxh3, Xxh3Builder};

/// Hash maps of the protocol: a fixed hasher, so that a seed repeats a run.
pub type FixedMap<K, V> = HashMap<K, V, Xxh3Builder>;

/// The arc of tokens after `after` up to and including `upto`, clockwise. Equal ends: the whole ring.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TokenRange {
    pub after: Token,
    pub upto: Token,
}
impl TokenRange {
    pub fn contains(&self, token: Token) -> bool {
        let distance = token.0.wrapping_sub(self.after.0).wrapping_sub(1);
        self.after == self.upto || distance < self.length()
    }
    /// Tokens in the arc; the whole ring counts as 2^64 - 1.
    pub fn length(&self) -> u64 {
        match self.upto.0.wrapping_sub(self.after.0) {
            0 => u64::MAX,
            n => n,
        }
    }
}

/// Nodes of a preference list: a handful.
pub type Nodes = SmallVec<[NodeId; 8]>;

/// The ring of one membership view: every vnode of every member that owns data.
#[derive(Clone, Default, Debug)]
pub struct Ring {
    /// Sorted by token, then node.
    vnodes: Vec<(Token, NodeId)>,
    placements: FixedMap<NodeId, Placement>,
    digest: u64,
}

/// Whether a member in this state owns arcs.
pub fn owns(state: MemberState) -> bool {
    matches!(state, MemberState::Up | MemberState::Leaving)
}

impl Ring {
    pub fn new<'a>(members: impl IntoIterator<Item = &'a Member>) -> Ring {
        let mut ring = Ring::default();
        for member in members.into_iter().filter(|m| owns(m.state) && !m.tokens.is_empty()) {
            ring.vnodes.extend(member.tokens.iter().map(|&t| (t, member.id)));
            ring.placements.insert(member.id, Placement::new(&member.tokens, member.slices, member.shards));
        }
        ring.vnodes.sort_unstable();
        ring.digest = ring.compute_digest();
        ring
    }
    /// Members that own arcs.
    pub fn node_count(&self) -> usize {
        self.placements.len()
    }
    pub fn contains(&self, node: NodeId) -> bool {
        self.placements.contains_key(&node)
    }
    /// Nodes in no order.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.placements.keys().copied()
    }
    pub fn placement(&self, node: NodeId) -> Option<&Placement> {
        self.placements.get(&node)
    }
    /// Equal exactly when two rings place every key alike, cores included (but for a collision of 64 bits).
    pub fn digest(&self) -> u64 {
        self.digest
    }
    fn compute_digest(&self) -> u64 {
        let mut hash = Xxh3::new();
        for (token, node) in &self.vnodes {
            hash.update(&token.0.to_le_bytes());
            hash.update(&node.0.to_le_bytes());
        }
        let mut nodes: Vec<_> = self.placements.iter().collect();
        nodes.sort_by_key(|(id, _)| **id);
        for (node, placement) in nodes {
            hash.update(&node.0.to_le_bytes());
            hash.update(&placement.slices().to_le_bytes());
            hash.update(&placement.shards().to_le_bytes());
        }
        hash.digest()
    }
    /// Distinct nodes clockwise from `token`, at most `count`. The first N are the key's home replicas, those after
    /// them the fallbacks in order.
    pub fn walk(&self, token: Token, count: usize) -> Nodes {
        let mut nodes = Nodes::new();
        let start = self.vnodes.partition_point(|(t, _)| *t < token);
        let count = count.min(self.node_count());
        for (_, node) in self.vnodes[start..].iter().chain(&self.vnodes[..start]) {
            if nodes.len() == count {
                break;
            }
            if !nodes.contains(node) {
                nodes.push(*node);
            }
        }
        nodes
    }
    /// The arcs that a node is among the first `count` nodes of, in order: each holds the tokens between two
    /// neighbouring ones of the ring, so all of its keys have one walk. That around the end of the ring counts as two.
    pub fn home_spans(&self, node: NodeId, count: usize) -> Vec<Span> {
        let vnodes = self.vnodes.len();
        let mut ends: Vec<usize> = Vec::new();
        for own in (0..vnodes).filter(|at| self.vnodes[*at].1 == node) {
            let mut others = Nodes::new();
            // Backwards from an own token, as long as not too many others come before it.
            for back in 0..vnodes {
                let at = (own + vnodes - back) % vnodes;
                let owner = self.vnodes[at].1;
                if back > 0 && owner == node {
                    break;
                }
                if owner != node && !others.contains(&owner) {
                    others.push(owner);
                }
                if others.len() >= count {
                    break;
                }
                ends.push(at);
            }
        }
        let mut spans = Vec::new();
        for at in ends {
            let upto = self.vnodes[at].0;
            let before = self.vnodes[..at].iter().rev().map(|(token, _)| *token).find(|token| *token < upto);
            match before {
                Some(before) => spans.push(Span { first: Token(before.0 + 1), last: upto }),
                None => {
                    spans.push(Span { first: Token(0), last: upto });
                    let last = self.vnodes[vnodes - 1].0;
                    if last.0 < u64::MAX {
                        spans.push(Span { first: Token(last.0 + 1), last: Token(u64::MAX) });
                    }
                }
            }
        }
        spans.sort_unstable();
        spans.dedup();
        // Where two nodes have one token the arc ends at the first of them only.
        spans.retain(|span| self.walk(span.last, count).contains(&node));
        spans
    }
    /// The shard of `node` that serves `token`.
    pub fn address(&self, node: NodeId, token: Token) -> Option<Address> {
        let placement = self.placements.get(&node)?;
        Some(Address { node, shard: placement.shard_of(placement.slice_of(token)) })
    }
    /// Share of the ring whose first owner is `node`, 0 to 1.
    pub fn owned_share(&self, node: NodeId) -> f64 {
        let mut previous = match self.vnodes.last() {
            Some((token, _)) => *token,
            None => return 0.0,
        };
        let mut owned = 0u128;
        for &(token, owner) in &self.vnodes {
            if owner == node {
                let arc = token.0.wrapping_sub(previous.0);
                owned += if self.vnodes.len() == 1 { 1u128 << 64 } else { u128::from(arc) };
            }
            previous = token;
        }
        owned as f64 / (1u128 << 64) as f64
    }
}
