//! A member of the cluster, as its node describes itself and as another node sees it.

use super::{ClusterId, NodeId, Ports, Token};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// The state of a member, as the node says of itself; only `Removed` is written by an operator through another node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum MemberState {
    Joining = 1,
    Up = 2,
    Leaving = 3,
    Left = 4,
    Removed = 5,
}
impl MemberState {
    /// Whether the node is no member any more, and never will be again.
    pub fn is_gone(self) -> bool {
        matches!(self, MemberState::Left | MemberState::Removed)
    }
}

/// A member of the cluster. Each entry has one writer, its own node. The newer of two is the one with the greater
/// (generation, revision); the heartbeat counts within a generation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    pub id: NodeId,
    pub ip: IpAddr,
    pub ports: Ports,
    pub shards: u16,
    pub slices: u16,
    /// Sorted, distinct. Chosen once, kept for life.
    pub tokens: Arc<[Token]>,
    pub state: MemberState,
    /// Durable, +1 at each start of the node.
    pub generation: u64,
    /// +1 at each change of this entry within a generation.
    pub revision: u32,
    pub heartbeat: u64,
}
impl Member {
    /// The address at which its first core listens for peers.
    pub fn peer_address(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.ports.peer)
    }
}

/// A node of another cluster that was met at an address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Stranger {
    pub node: NodeId,
    pub cluster: ClusterId,
    /// The address at which it listens for peers.
    pub at: SocketAddr,
}

/// A member as this node sees it: what it says of itself, and whether it has been heard of lately.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum MemberView {
    Joining = 1,
    Up = 2,
    /// No news for [`crate::limits::SUSPECT_AFTER`], or its connections fail: routed around.
    Suspect = 3,
    /// No news for [`crate::limits::DOWN_AFTER`].
    Down = 4,
    Leaving = 5,
    Left = 6,
    Removed = 7,
}
impl MemberView {
    /// Whether requests are sent to it.
    pub fn healthy(self) -> bool {
        matches!(self, MemberView::Up | MemberView::Joining | MemberView::Leaving)
    }
    pub fn name(self) -> &'static str {
        match self {
            MemberView::Joining => "joining",
            MemberView::Up => "up",
            MemberView::Suspect => "suspect",
            MemberView::Down => "down",
            MemberView::Leaving => "leaving",
            MemberView::Left => "left",
            MemberView::Removed => "removed",
        }
    }
}
