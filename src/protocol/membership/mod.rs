//! Who is in the cluster, and who is alive: heartbeat gossip without a master.
//!
//! Every node holds the whole member list. Each entry has one writer, its own node; the newer entry is the one of the
//! greater generation, then revision; `Removed` dominates for ever. Once a round each node raises its heartbeat and
//! exchanges digests, then differences, with one random live peer; now and then also with a silent one or a seed, so
//! that partitions heal. A member whose heartbeat stands still is suspect here, and so is one whose connections fail;
//! suspicion is local and routed around.
//!
//! The machine runs on shard 0; the other shards of the node are told its view.

mod gossip;

use crate::{
    limits::{GOSSIP_DOWN_EVERY, MEMBERS_MAX},
    protocol::message::{DigestEntry, Message, News},
    types::{Instant, Member, MemberState, MemberView, NodeId, Ports},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// Members among whom news has spread long before silence becomes suspicion.
const FEW_MEMBERS: usize = 16;

/// When rounds happen and when silence becomes suspicion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    pub interval: Duration,
    pub suspect_after: Duration,
    pub down_after: Duration,
}

/// What the machine wants said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Act {
    /// To shard 0 of a member.
    Say { to: NodeId, message: Message },
    /// To whoever answers there.
    SayToSeed { seed: SocketAddr, message: Message },
}

struct Peer {
    member: Member,
    /// When its heartbeat or entry last moved.
    heard: Instant,
    /// Connections to it fail.
    unreachable: bool,
}

/// See the module.
pub struct Membership {
    me: Member,
    peers: BTreeMap<NodeId, Peer>,
    seeds: Vec<SocketAddr>,
    timing: Timing,
    round: u64,
    next_round: Instant,
    random: fastrand::Rng,
    changed: bool,
    /// A later start of this node is known to others, or another place where it runs: its disk is an older state or a
    /// copy.
    pub identity_alarms: u64,
    /// Where else this node is said to run.
    twin: Option<(IpAddr, Ports)>,
}

impl Membership {
    /// `me` says [`MemberState::Joining`] until another member has answered.
    pub fn new(
        me: Member,
        known: Vec<Member>,
        seeds: Vec<SocketAddr>,
        timing: Timing,
        seed: u64,
        now: Instant,
    ) -> Membership {
        let peer = |member: Member| (member.id, Peer { member, heard: now, unreachable: false });
        Membership {
            peers: known.into_iter().filter(|m| m.id != me.id).map(peer).collect(),
            me,
            seeds,
            timing,
            round: 0,
            next_round: now,
            random: fastrand::Rng::with_seed(seed),
            changed: true,
            identity_alarms: 0,
            twin: None,
        }
    }
    pub fn next_deadline(&self) -> Instant {
        self.next_round
    }
    /// This node's own, which has been raised if others knew a later one.
    pub fn generation(&self) -> u64 {
        self.me.generation
    }
    /// All members, this node first.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        std::iter::once(&self.me).chain(self.peers.values().map(|p| &p.member))
    }
    pub fn view(&self, now: Instant, node: NodeId) -> Option<MemberView> {
        if node == self.me.id {
            return Some(seen(self.me.state));
        }
        let peer = self.peers.get(&node)?;
        let silent = now.since(peer.heard);
        let suspect_after = self.suspect_after();
        Some(match seen(peer.member.state) {
            MemberView::Up | MemberView::Joining | MemberView::Leaving
                if silent >= self.timing.down_after.max(suspect_after) =>
            {
                MemberView::Down
            }
            MemberView::Up | MemberView::Joining | MemberView::Leaving
                if peer.unreachable || silent >= suspect_after =>
            {
                MemberView::Suspect
            }
            said => said,
        })
    }
    /// News takes a round more for each doubling of the members: beyond sixteen, so does silence before it means anything.
    fn suspect_after(&self) -> Duration {
        let doublings = (self.peers.len() + 1).ilog2().saturating_sub(FEW_MEMBERS.ilog2());
        self.timing.suspect_after + self.timing.interval * doublings
    }
    /// Members that are routed around, in order.
    pub fn avoided(&self, now: Instant) -> Vec<NodeId> {
        let healthy = |id| self.view(now, id).is_some_and(MemberView::healthy);
        self.peers.keys().copied().filter(|id| !healthy(*id)).collect()
    }
    /// Whether any entry but for heartbeats has changed since the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// A connection to the node works, or fails.
    pub fn connection(&mut self, node: NodeId, works: bool) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.unreachable = !works;
        }
    }

    /// To be told of each moment, before anything else of it. A round that is overdue by more than another one says that
    /// this node stood still, stopped or starved: it has heard nothing because it did not listen, and nobody is suspect for
    /// that.
    pub fn moment(&mut self, now: Instant) {
        let overdue = now.since(self.next_round);
        if overdue > self.timing.interval {
            self.peers.values_mut().for_each(|p| p.heard = (p.heard + overdue).min(now));
            self.next_round = now;
        }
    }

    /// One round when it is due: heartbeat, one live peer, now and then a silent one or a seed.
    pub fn tick(&mut self, now: Instant, out: &mut Vec<Act>) {
        if now < self.next_round {
            return;
        }
        self.me.heartbeat += 1;
        self.round += 1;
        let alone = self.me.state == MemberState::Joining || (self.peers.is_empty() && !self.seeds.is_empty());
        // A newcomer does not wait for whole rounds.
        self.next_round = now + if alone { self.timing.interval / 10 } else { self.timing.interval };
        if alone {
            let news = vec![News::Member(self.me.clone())];
            let message = Message::GossipDelta { news, wanted: Vec::new() };
            out.extend(self.seeds.iter().map(|seed| Act::SayToSeed { seed: *seed, message: message.clone() }));
        }
        let (live, silent): (Vec<NodeId>, Vec<NodeId>) = self
            .peers
            .values()
            .filter(|p| !matches!(p.member.state, MemberState::Left | MemberState::Removed))
            .map(|p| p.member.id)
            .partition(|id| self.view(now, *id).is_some_and(MemberView::healthy));
        if let Some(peer) = self.choose(&live) {
            out.push(Act::Say { to: peer, message: self.digest() });
        }
        if live.is_empty() || self.round.is_multiple_of(GOSSIP_DOWN_EVERY) {
            if let Some(peer) = self.choose(&silent) {
                out.push(Act::Say { to: peer, message: self.digest() });
            } else if let Some(seed) = self.stray_seed() {
                let news = vec![News::Member(self.me.clone())];
                out.push(Act::SayToSeed { seed, message: Message::GossipDelta { news, wanted: Vec::new() } });
            }
        }
    }

    fn choose(&mut self, nodes: &[NodeId]) -> Option<NodeId> {
        (!nodes.is_empty()).then(|| nodes[self.random.usize(..nodes.len())])
    }
    /// A seed that no member listens on: perhaps another part of the cluster, formed apart.
    fn stray_seed(&mut self) -> Option<SocketAddr> {
        let known = |s: &SocketAddr| self.members().any(|m| m.ip == s.ip() && m.ports.peer == s.port());
        let strays: Vec<SocketAddr> = self.seeds.iter().copied().filter(|s| !known(s)).collect();
        (!strays.is_empty()).then(|| strays[self.random.usize(..strays.len())])
    }
}

fn seen(state: MemberState) -> MemberView {
    match state {
        MemberState::Joining => MemberView::Joining,
        MemberState::Up => MemberView::Up,
        MemberState::Leaving => MemberView::Leaving,
        MemberState::Left => MemberView::Left,
        MemberState::Removed => MemberView::Removed,
    }
}
