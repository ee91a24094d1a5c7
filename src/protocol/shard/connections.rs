//! What becomes of connections to the cores of other nodes, and of nodes that say that they go, routed to the machines
//! that want to know.

use super::{Effect, Shard};
use crate::{
    protocol::message::Lane,
    types::{Address, Instant, Member, NodeId, ShardId},
};

impl Shard {
    /// A connection to a core works, or fails.
    pub(super) fn connection(&mut self, now: Instant, core: Address, lane: Lane, works: bool, out: &mut Vec<Effect>) {
        let was_cut = self.health.is_cut(core);
        // One that its node does not have any more is nobody's concern.
        if exists(&self.members, core) {
            self.health.connection(now, core, lane, works);
        }
        if !works {
            let mut acts = Vec::new();
            self.coordinator.unreachable(now, core, lane, &mut acts);
            self.lose_deliveries(now, core, out);
            self.with_repair(now, out, |repair, view, acts| repair.unreachable(now, core, view, acts));
            self.run_acts(now, acts, out);
        }
        if let Some(membership) = &mut self.membership {
            if core.shard.0 == 0 && lane == Lane::Short {
                membership.connection(now, core.node, works);
            }
            if !was_cut && self.health.is_cut(core) {
                self.look_after(now, core, out);
            }
            self.run_gossip(now, Vec::new(), out);
        }
    }
    /// Who is routed around, and who is asked last, from now on.
    pub(super) fn heed(&mut self, avoided: &[NodeId], parting: &[NodeId]) {
        self.health.avoid(avoided);
        self.health.part(parting);
    }
    /// Members that are stopping, or have since they said so.
    pub fn parting(&self) -> &[NodeId] {
        &self.standing.parting
    }
    /// A node says that it is stopping.
    pub(super) fn part_told(&mut self, now: Instant, node: NodeId, generation: u64, out: &mut Vec<Effect>) {
        self.gossip(now, out, |membership, _| membership.parting_arrived(now, node, generation));
    }
    /// One core of a node is lost: whether the others are still there is asked now, not when they are needed.
    fn look_after(&self, now: Instant, lost: Address, out: &mut Vec<Effect>) {
        let shards = self.members.iter().find(|m| m.id == lost.node).map_or(0, |member| member.shards);
        for shard in (0..shards).map(ShardId) {
            let core = Address { node: lost.node, shard };
            if !self.health.is_cut(core) {
                self.tell(now, core, self.tables.registry.greeting(), out);
            }
        }
    }
    /// What is on its way to the core as hints comes later.
    pub(super) fn lose_deliveries(&mut self, now: Instant, core: Address, out: &mut Vec<Effect>) {
        let shards = self.members.iter().find(|m| m.id == core.node).map_or(0, |member| member.shards);
        let whole = self.health.misses(now, core.node, shards);
        self.with_hints(now, out, |hints, view, acts| hints.unreachable(now, core, whole, view, acts));
    }
}

/// Whether the node has such a core, as far as is known.
pub(super) fn exists(members: &[Member], core: Address) -> bool {
    members.iter().find(|m| m.id == core.node).is_none_or(|member| core.shard.0 < member.shards)
}
