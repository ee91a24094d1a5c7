//! Who a node is: what others remember of it, and which cluster it is of.

use super::{super::cluster::Cluster, Planted};
use crate::{
    protocol::message::{Envelope, Message, News, Refusal},
    types::{ClusterId, NodeId},
};

impl Cluster {
    /// What is said of a node's past, or of the sender's cluster, as these defects have it. Whether it was changed.
    pub(in crate::sim) fn spoil_identity(&self, planted: Planted, envelope: &mut Envelope) -> bool {
        let to = envelope.to.node;
        match (planted, &mut envelope.message) {
            (Planted::KnownDotStored, Message::Remembered { entry, .. }) => entry.take().is_some(),
            (Planted::KnownDotStored, Message::Replicated(result @ Err(Refusal::KnownDot(_)))) => {
                *result = Ok(());
                true
            }
            (Planted::KnownDotStored, Message::GossipDigest { entries, .. }) => {
                entries.retain(|entry| entry.node != to);
                false
            }
            (Planted::KnownDotStored, Message::GossipDelta { news, .. } | Message::GossipNews { news, .. }) => {
                let about = |item: &News| match item {
                    News::Member(member) => member.id,
                    News::Heartbeat { node, .. } => *node,
                };
                news.retain(|item| about(item) != to);
                false
            }
            (
                Planted::TakenStranger,
                Message::GossipDigest { cluster, .. }
                | Message::GossipDelta { cluster, .. }
                | Message::GossipNews { cluster, .. },
            ) => {
                let theirs = self.cluster_of(to).filter(|theirs| !cluster.is_none() && theirs != cluster);
                *cluster = theirs.unwrap_or(*cluster);
                theirs.is_some()
            }
            _ => false,
        }
    }
    fn cluster_of(&self, node: NodeId) -> Option<ClusterId> {
        let handle = self.handle(self.index_of(node)?, 0)?;
        Some(handle.cluster()).filter(|cluster| !cluster.is_none())
    }
}
