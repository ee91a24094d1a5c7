//! Inside one node: token -> vnode -> slice -> shard. Depends on that node's own tokens only, so nothing moves inside
//! a node when others join or leave; and slices are dealt to shards by number, so a node restarts with another number
//! of shards without moving data.

use super::TokenRange;
use crate::types::{ShardId, SliceId, Token};
use std::sync::Arc;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placement {
    tokens: Arc<[Token]>,
    /// The slice of each vnode.
    slice_of_vnode: Vec<SliceId>,
    slices: u16,
    shards: u16,
}

impl Placement {
    /// `tokens` sorted and distinct; `slices` and `shards` at least 1.
    pub fn new(tokens: &Arc<[Token]>, slices: u16, shards: u16) -> Placement {
        let (slices, shards) = (slices.max(1), shards.max(1));
        Placement { slice_of_vnode: deal_vnodes(tokens, slices), tokens: tokens.clone(), slices, shards }
    }
    pub fn slices(&self) -> u16 {
        self.slices
    }
    pub fn shards(&self) -> u16 {
        self.shards
    }
    /// The slice that stores `token` on this node: that of the first of the node's own vnodes clockwise.
    pub fn slice_of(&self, token: Token) -> SliceId {
        let vnode = self.tokens.partition_point(|t| *t < token) % self.tokens.len();
        self.slice_of_vnode[vnode]
    }
    /// The shard that a slice is dealt to: consecutive runs of equal length.
    pub fn shard_of(&self, slice: SliceId) -> ShardId {
        ShardId((u32::from(slice.0) * u32::from(self.shards) / u32::from(self.slices)) as u16)
    }
    /// The slices of a shard, ascending.
    pub fn slices_of(&self, shard: ShardId) -> Vec<SliceId> {
        (0..self.slices).map(SliceId).filter(|s| self.shard_of(*s) == shard).collect()
    }
    /// The arcs of a slice.
    pub fn ranges_of(&self, slice: SliceId) -> Vec<TokenRange> {
        let arcs = (0..self.tokens.len()).filter(|v| self.slice_of_vnode[*v] == slice);
        arcs.map(|v| arc(&self.tokens, v)).collect()
    }
}

fn arc(tokens: &[Token], vnode: usize) -> TokenRange {
    TokenRange { after: tokens[(vnode + tokens.len() - 1) % tokens.len()], upto: tokens[vnode] }
}

/// Longest arc first, each to the slice that has least so far: slices of nearly equal length, and the same on every
/// machine that computes it.
fn deal_vnodes(tokens: &[Token], slices: u16) -> Vec<SliceId> {
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    order.sort_by_key(|&v| (std::cmp::Reverse(arc(tokens, v).length()), v));
    let mut heap: std::collections::BinaryHeap<_> = (0..slices).map(|s| std::cmp::Reverse((0u128, s))).collect();
    let mut dealt = vec![SliceId(0); tokens.len()];
    for vnode in order {
        if let Some(std::cmp::Reverse((length, slice))) = heap.pop() {
            dealt[vnode] = SliceId(slice);
            heap.push(std::cmp::Reverse((length + u128::from(arc(tokens, vnode).length()), slice)));
        }
    }
    dealt
}
