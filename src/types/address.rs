//! Who and where: nodes, shards, slices, tokens.

use std::{fmt, str::FromStr};

/// A node's identity: 48 random bits chosen when its data directory is made. Never reused, never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct NodeId(pub u64);

impl NodeId {
    pub const BITS: u32 = 48;
    pub const MAX: u64 = (1 << Self::BITS) - 1;
    /// A node id from random bits.
    pub fn from_random(bits: u64) -> NodeId {
        NodeId((bits & Self::MAX).max(1))
    }
}
impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}", self.0)
    }
}
impl FromStr for NodeId {
    type Err = std::num::ParseIntError;
    fn from_str(s: &str) -> Result<NodeId, Self::Err> {
        u64::from_str_radix(s, 16).map(NodeId)
    }
}

/// The cluster that a node belongs to: random bits drawn once, when the cluster is formed, and kept by every member.
/// Zero: none yet, or a version of Dynarc that names none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ClusterId(pub u64);

impl ClusterId {
    pub const NONE: ClusterId = ClusterId(0);
    /// A cluster's id from random bits.
    pub fn from_random(bits: u64) -> ClusterId {
        ClusterId(bits.max(1))
    }
    pub fn is_none(self) -> bool {
        self == ClusterId::NONE
    }
}
impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A shard of a node, by number: one core and all that it owns.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ShardId(pub u16);

/// The unit of storage of a node: a fixed group of its vnodes. Files belong to a slice, never to a core.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SliceId(pub u16);

/// The address of a shard: where a message goes. A core of this node and a core of another are addressed alike.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Address {
    pub node: NodeId,
    pub shard: ShardId,
}
impl Address {
    pub fn new(node: NodeId, shard: u16) -> Address {
        Address { node, shard: ShardId(shard) }
    }
}
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.shard.0)
    }
}

/// A place on the ring of 2^64 places; clockwise is upwards, with wrap-around.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Token(pub u64);

/// The ports that a node listens on. Core k uses `client + k` and `peer + k`; all cores share `http`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ports {
    pub http: u16,
    pub client: u16,
    pub peer: u16,
}
impl Default for Ports {
    fn default() -> Ports {
        Ports { http: 7700, client: 8000, peer: 9000 }
    }
}
