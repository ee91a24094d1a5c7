//! Whose word counts: which cluster this node belongs to, how one is formed, and who is a stranger.
//!
//! A cluster has an id, drawn once. Each word between nodes names the sender's; who names another one is a stranger:
//! not a word of its is taken, and it is remembered, so that somebody can see it.
//!
//! A node without a cluster takes the one that a seed, or a member that it knows, belongs to. It is listed by the
//! members only after that, so a node that is told of two clusters is never a ghost in one of them.
//!
//! Where all seeds are new as well, nobody has an id to give. Then each says who answers at its seeds (its *group*,
//! itself included), and when all of a group say the same group, the one of the smallest id draws, and the others take
//! it from there. Two cannot draw: of one group there is one smallest, and a node is in one group only. So the seeds of
//! the nodes that form a cluster must name each other, all of them, and all must be up once; any other way needs one
//! that was told to draw.
//!
//! Members from before there were ids know each other without one. The one of the smallest id among them draws once all
//! of them have spoken to it; until then nothing is different from before. To them, who names no cluster is no
//! stranger.

use super::{Membership, Message, News, Peer};
use crate::{
    limits::STRANGERS_TOLD_MAX,
    types::{ClusterId, Member, MemberState, NodeId, Stranger},
};
use std::net::SocketAddr;

/// A node at one of the seeds that has no cluster either.
pub(super) struct Forming {
    node: NodeId,
    /// The nodes that answer at its seeds, as it has said last.
    group: Vec<NodeId>,
}

/// What becomes of a word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hearing {
    Taken,
    /// It comes from a node that belongs to no cluster yet: it is told of this one, and no more.
    Newcomer,
    Refused,
}

impl Membership {
    /// `company`: the cluster has had other members.
    pub fn of_cluster(self, cluster: ClusterId, company: bool) -> Membership {
        Membership { cluster, company, ..self }
    }
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }
    /// Whether the cluster has had members besides this node.
    pub fn had_company(&self) -> bool {
        self.company || self.knows_company()
    }
    fn knows_company(&self) -> bool {
        self.peers.values().any(|peer| peer.member.state != MemberState::Joining)
    }
    /// Whether none of the other members is known although there are some: alone, this node would take itself for all.
    pub(super) fn has_lost_company(&self) -> bool {
        self.company && !self.knows_company()
    }
    /// Nodes of other clusters that were met, the latest last.
    pub fn strangers(&self) -> &[Stranger] {
        &self.strangers
    }
    /// A node of another cluster was met.
    pub fn met_stranger(&mut self, stranger: Stranger) {
        if self.strangers.contains(&stranger) {
            return;
        }
        self.strangers.retain(|known| known.at != stranger.at);
        if self.strangers.len() >= STRANGERS_TOLD_MAX {
            self.strangers.remove(0);
        }
        self.strangers.push(stranger);
    }

    /// Judges a word by its sender and the cluster that it names. A node without a cluster may take that one.
    pub(super) fn hear(&mut self, from: NodeId, theirs: ClusterId, news: &[News]) -> Hearing {
        let known = self.peers.contains_key(&from);
        let entry = news.iter().find_map(|item| match item {
            News::Member(member) if member.id == from => Some(member),
            News::Member(_) | News::Heartbeat { .. } => None,
        });
        let at_seed = entry.is_some_and(|member| self.seeds.contains(&member.peer_address()));
        let is_new = entry.is_some_and(|member| member.state == MemberState::Joining);
        match (self.cluster.is_none(), theirs.is_none()) {
            (false, false) if theirs == self.cluster => Hearing::Taken,
            // Known perhaps: a member whose disk was set back to before it had joined.
            (false, true) if is_new => Hearing::Newcomer,
            (false, true) if known => Hearing::Taken,
            (false, _) => {
                if let Some(member) = entry {
                    self.met_stranger(Stranger { node: from, cluster: theirs, at: member.peer_address() });
                }
                Hearing::Refused
            }
            (true, false) if known || at_seed => {
                self.join_cluster(theirs);
                Hearing::Taken
            }
            (true, false) => Hearing::Refused,
            (true, true) if known || self.me.state != MemberState::Joining || (at_seed && !is_new) => Hearing::Taken,
            (true, true) => Hearing::Refused,
        }
    }
    fn join_cluster(&mut self, cluster: ClusterId) {
        (self.cluster, self.company, self.changed) = (cluster, true, true);
        self.forming.clear();
    }

    // ---- a cluster that nobody has drawn yet -------------------------------------------------------------------

    /// Seeds but for this node's own address.
    fn other_seeds(&self) -> impl Iterator<Item = &SocketAddr> {
        let own = self.me.peer_address();
        self.seeds.iter().filter(move |seed| **seed != own)
    }
    pub(super) fn has_other_seeds(&self) -> bool {
        self.other_seeds().next().is_some()
    }
    /// The nodes that answer at all seeds, and this one, in order; empty until all have answered, or when there is a
    /// cluster to join.
    fn group(&self) -> Vec<NodeId> {
        if !self.cluster.is_none() || self.me.state != MemberState::Joining {
            return Vec::new();
        }
        let at_seeds = self.other_seeds().map(|seed| self.forming.get(seed).map(|forming| forming.node));
        let mut group = at_seeds.chain([Some(self.me.id)]).collect::<Option<Vec<NodeId>>>().unwrap_or_default();
        group.sort_unstable();
        group.dedup();
        group
    }
    /// What is said to whoever answers at a seed.
    pub(super) fn first_words(&self) -> Message {
        let news = vec![News::Member(self.me.clone())];
        Message::GossipDelta { cluster: self.cluster, news, wanted: Vec::new(), group: self.group() }
    }
    /// A node at a seed has no cluster, either.
    pub(super) fn heard_forming(&mut self, from: NodeId, news: &[News], group: &[NodeId]) {
        let none_yet = self.cluster.is_none() && self.me.state == MemberState::Joining;
        let entry = news.iter().find_map(|item| match item {
            News::Member(member) if member.id == from && member.state == MemberState::Joining => Some(member),
            News::Member(_) | News::Heartbeat { .. } => None,
        });
        if let Some(at) = entry.map(Member::peer_address).filter(|at| none_yet && self.seeds.contains(at)) {
            self.forming.insert(at, Forming { node: from, group: group.to_vec() });
            self.form();
        }
    }
    /// Draws the cluster's id if it is this node's to draw, and nobody can be about to do so, too.
    pub(super) fn form(&mut self) {
        if !self.cluster.is_none() {
            return;
        }
        if self.me.state == MemberState::Joining {
            let group = self.group();
            let agree = self.other_seeds().all(|seed| self.forming.get(seed).is_some_and(|f| f.group == group));
            if !self.seeds.is_empty() && agree && group.first() == Some(&self.me.id) {
                self.draw(group.len() > 1);
                self.me.state = MemberState::Up;
                self.me.revision += 1;
            }
        } else if !self.peers.is_empty() && self.peers.values().all(Peer::has_spoken) {
            // Members from before there were ids.
            let smallest = self.peers.values().filter(|p| !p.is_gone()).all(|p| p.member.id > self.me.id);
            if smallest {
                self.draw(true);
            }
        }
    }
    fn draw(&mut self, company: bool) {
        (self.cluster, self.company, self.changed) = (ClusterId::from_random(self.random.u64(..)), company, true);
        self.forming.clear();
    }
}
