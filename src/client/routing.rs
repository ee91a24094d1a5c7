//! From a key to the socket addresses of the cores that own it.

use crate::{
    limits::REPLICAS_MAX,
    protocol::ring::{FixedMap, Ring},
    types::{Member, NodeId, ShardId, Token},
};
use smallvec::SmallVec;
use std::net::{IpAddr, SocketAddr};

/// A core to send to, and the first core of its node (a node that fails fails with all its cores).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Target {
    pub core: SocketAddr,
    pub node: SocketAddr,
}
impl Target {
    /// An address of which nothing more is known.
    pub fn seed(address: SocketAddr) -> Target {
        Target { core: address, node: address }
    }
}

/// The ring as a client knows it.
#[derive(Clone, Default, Debug)]
pub struct Routes {
    ring: Ring,
    nodes: FixedMap<NodeId, (IpAddr, u16)>,
    digest: u64,
}

impl Routes {
    /// The routes by a member list and the digest that its server gave with it.
    pub fn new(members: &[Member], digest: u64) -> Routes {
        let nodes = members.iter().map(|m| (m.id, (m.ip, m.ports.client))).collect();
        Routes { ring: Ring::new(members), nodes, digest }
    }
    /// Names the member list: that of the server it came from.
    pub fn digest(&self) -> u64 {
        self.digest
    }
    pub fn is_empty(&self) -> bool {
        self.ring.node_count() == 0
    }
    /// The owning cores, home replicas first, then those that stand in for them.
    pub fn targets(&self, token: Token) -> SmallVec<[Target; 8]> {
        let nodes = self.ring.walk(token, REPLICAS_MAX);
        nodes.into_iter().filter_map(|node| self.target(node, self.ring.address(node, token)?.shard)).collect()
    }
    /// The first core of every node that owns arcs, in no order.
    pub fn everyone(&self) -> impl Iterator<Item = Target> + Clone {
        let owners = self.nodes.keys().filter(|node| self.ring.contains(**node));
        owners.filter_map(|&node| self.target(node, ShardId(0)))
    }
    fn target(&self, node: NodeId, shard: ShardId) -> Option<Target> {
        let &(ip, port) = self.nodes.get(&node)?;
        let core = SocketAddr::new(ip, port.checked_add(shard.0)?);
        Some(Target { core, node: SocketAddr::new(ip, port) })
    }
}
