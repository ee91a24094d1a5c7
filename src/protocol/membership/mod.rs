//! Who is in the cluster, and who is alive: heartbeat gossip without a master.
//!
//! Every node holds the whole member list. Each entry has one writer, its own node; the newer entry is the one of the
//! greater generation, then revision; `Removed` dominates for ever. Once a round each node raises its heartbeat and
//! exchanges digests, then differences, with one random live peer, and with one that has been quiet for half of what
//! makes it suspect; now and then also with a silent one and a seed, so that partitions heal. A member whose heartbeat
//! stands still is suspect here; suspicion is local and routed around. What its connections say is for
//! [`super::health`], but that one who cannot be reached is gossiped with now and then only.
//!
//! A node is its id, not an address: a member that comes back elsewhere tells all others its new entry. The machine
//! also says who is of this cluster at all (`cluster`), and what the others remember of this node (`past`).
//!
//! A node that is stopping tells all others, who ask it last until it has started again ([`super::health`]).
//!
//! The machine runs on shard 0; the other shards of the node are told its view.

mod cluster;
mod gossip;
mod past;

use cluster::Forming;

use crate::{
    limits::{GOSSIP_DOWN_EVERY, MEMBERS_MAX, PARTING_MAX},
    protocol::message::{DigestEntry, Message, News},
    types::{ClusterId, Instant, Member, MemberState, MemberView, NodeId, Ports, Stranger},
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
    /// A message to shard 0 of a member.
    Say { to: NodeId, message: Message },
    /// A message to whoever answers there.
    SayToSeed { seed: SocketAddr, message: Message },
}

struct Peer {
    member: Member,
    /// When its heartbeat or entry last moved.
    heard: Instant,
    /// The connection to its shard 0, which gossips, fails.
    unreachable: bool,
    /// It has said what it remembers of this node, or was met in this life.
    answered: bool,
    /// It has said anything in this life.
    spoken: bool,
    /// It names no cluster: it runs a version that has none, and answers no questions about the past.
    nameless: bool,
    /// The start of it that is stopping, and for how long that is believed.
    parting: Option<(u64, Instant)>,
}
impl Peer {
    fn new(member: Member, now: Instant) -> Peer {
        Peer { member, heard: now, unreachable: false, answered: true, spoken: false, nameless: false, parting: None }
    }
}

/// See the module.
pub struct Membership {
    me: Member,
    peers: BTreeMap<NodeId, Peer>,
    seeds: Vec<SocketAddr>,
    cluster: ClusterId,
    /// The cluster has had other members.
    company: bool,
    /// The nodes that answer at the seeds and have no cluster, either.
    forming: BTreeMap<SocketAddr, Forming>,
    strangers: Vec<Stranger>,
    /// This life's entry began with it.
    first_revision: u32,
    /// The others are being asked what they remember of this node.
    asking_until: Option<Instant>,
    /// They are asked only to list this node, which is new.
    introduces: bool,
    listens_until: Option<Instant>,
    /// The slices' incarnations were chosen away from all that others may remember.
    far: bool,
    doubt: bool,
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
    /// This node is stopping.
    parts: bool,
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
        let peer = |member: Member| (member.id, Peer::new(member, now));
        Membership {
            peers: known.into_iter().filter(|m| m.id != me.id).map(peer).collect(),
            first_revision: me.revision,
            me,
            seeds,
            cluster: ClusterId::NONE,
            company: false,
            forming: BTreeMap::new(),
            strangers: Vec::new(),
            asking_until: None,
            introduces: false,
            listens_until: None,
            far: false,
            doubt: false,
            timing,
            round: 0,
            next_round: now,
            random: fastrand::Rng::with_seed(seed),
            changed: true,
            identity_alarms: 0,
            twin: None,
            parts: false,
        }
    }
    pub fn next_deadline(&self) -> Instant {
        [self.asking_until, self.listens_until].into_iter().flatten().fold(self.next_round, Instant::min)
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
            MemberView::Up | MemberView::Joining | MemberView::Leaving if silent >= suspect_after => {
                MemberView::Suspect
            }
            said => said,
        })
    }
    /// News takes a round more for each doubling of the members: beyond sixteen, so does silence before it means
    /// anything.
    fn suspect_after(&self) -> Duration {
        let doublings = (self.peers.len() + 1).ilog2().saturating_sub(FEW_MEMBERS.ilog2());
        self.timing.suspect_after + self.timing.interval * doublings
    }
    /// Members that are routed around, in order.
    pub fn avoided(&self, now: Instant) -> Vec<NodeId> {
        let healthy = |id| self.view(now, id).is_some_and(MemberView::healthy);
        self.peers.keys().copied().filter(|id| !healthy(*id)).collect()
    }
    /// This node is stopping, as all are told; once a round somebody is told again.
    pub fn part(&mut self, out: &mut Vec<Act>) {
        self.parts = true;
        let message = Message::Parting { generation: self.me.generation };
        let there = self.peers.values().filter(|p| !p.is_gone());
        out.extend(there.map(|peer| Act::Say { to: peer.member.id, message: message.clone() }));
    }
    /// A member says that it is stopping, in this start of it.
    pub fn parting_arrived(&mut self, now: Instant, from: NodeId, generation: u64) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        // What comes late may be of an earlier start.
        if peer.parting.is_none_or(|(known, _)| generation >= known) {
            peer.parting = Some((generation, now + PARTING_MAX));
        }
    }
    /// Members that are stopping, or have and have not started again, in order.
    pub fn parting(&self, now: Instant) -> Vec<NodeId> {
        let parts = |peer: &&Peer| {
            peer.parting.is_some_and(|(generation, until)| generation >= peer.member.generation && now < until)
        };
        self.peers.values().filter(parts).map(|peer| peer.member.id).collect()
    }
    /// Whether any entry but for heartbeats has changed since the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The connection to the node's shard 0 works, or fails: whom to gossip with.
    pub fn connection(&mut self, now: Instant, node: NodeId, works: bool) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.unreachable = !works;
            self.see_answers(now);
        }
    }

    /// Time has passed; called at each moment, before anything else. A round that is overdue by more than another one
    /// says that this node stood still, stopped or starved: it has heard nothing because it did not listen, and nobody
    /// is suspect for that.
    pub fn moment(&mut self, now: Instant) {
        let overdue = now.since(self.next_round);
        if overdue > self.timing.interval {
            self.peers.values_mut().for_each(|p| p.heard = (p.heard + overdue).min(now));
            self.next_round = now;
        }
    }

    /// One round when it is due: heartbeat, one live peer, now and then a silent one and a seed.
    pub fn tick(&mut self, now: Instant, out: &mut Vec<Act>) {
        self.see_answers(now);
        self.listens_until = self.listens_until.filter(|until| now < *until);
        if now < self.next_round {
            return;
        }
        self.me.heartbeat += 1;
        self.round += 1;
        self.form();
        let alone = self.me.state == MemberState::Joining || (self.peers.is_empty() && self.has_other_seeds());
        // A newcomer does not wait for whole rounds, nor does who comes back: perhaps others, or it, have moved.
        let hurries = alone || self.is_asking();
        self.next_round = now + if hurries { self.timing.interval / 10 } else { self.timing.interval };
        if hurries {
            let message = self.first_words();
            out.extend(self.stray_seeds().map(|seed| Act::SayToSeed { seed, message: message.clone() }));
        }
        self.say_returned(out);
        let (live, silent): (Vec<NodeId>, Vec<NodeId>) = self
            .peers
            .values()
            .filter(|p| !p.is_gone())
            .map(|p| p.member.id)
            .partition(|id| self.view(now, *id).is_some_and(MemberView::healthy) && !self.peers[id].unreachable);
        let none_live = live.is_empty();
        if let Some(peer) = self.choose(&live) {
            out.push(Act::Say { to: peer, message: self.digest() });
            let parting = Message::Parting { generation: self.me.generation };
            out.extend(self.parts.then_some(Act::Say { to: peer, message: parting }));
        }
        // By chance it may not be one of those for long, and nobody else may hear of it: it is asked before it is
        // suspect.
        let half = self.suspect_after() / 2;
        let quiet: Vec<NodeId> = live.into_iter().filter(|id| now.since(self.peers[id].heard) >= half).collect();
        if let Some(peer) = self.choose(&quiet) {
            out.push(Act::Say { to: peer, message: self.digest() });
        }
        if none_live || self.round.is_multiple_of(GOSSIP_DOWN_EVERY) {
            if let Some(peer) = self.choose(&silent) {
                out.push(Act::Say { to: peer, message: self.digest() });
            }
            let strays: Vec<SocketAddr> = self.stray_seeds().collect();
            if !hurries && !strays.is_empty() {
                let seed = strays[self.random.usize(..strays.len())];
                out.push(Act::SayToSeed { seed, message: self.first_words() });
            }
        }
    }

    fn choose(&mut self, nodes: &[NodeId]) -> Option<NodeId> {
        (!nodes.is_empty()).then(|| nodes[self.random.usize(..nodes.len())])
    }
    /// Seeds that no member listens on: one that has moved there, or another part of the cluster.
    fn stray_seeds(&self) -> impl Iterator<Item = SocketAddr> {
        let known = |seed: &SocketAddr| self.members().any(|m| m.peer_address() == *seed);
        self.seeds.iter().copied().filter(move |seed| !known(seed))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Token;
    use std::net::Ipv4Addr;

    fn member(id: u64) -> Member {
        Member {
            id: NodeId(id),
            ip: Ipv4Addr::new(127, 0, 0, id as u8).into(),
            ports: Ports::default(),
            shards: 1,
            slices: 1,
            tokens: [Token(id << 56)].into(),
            state: MemberState::Up,
            generation: 1,
            revision: 1,
            heartbeat: 0,
        }
    }

    /// A member that is still where it was has not moved: somebody else uses its name. One that does not answer there
    /// may have, though what it says has kept it from being suspect.
    #[test]
    fn who_is_not_reached_where_it_was_may_have_moved() {
        let interval = Duration::from_secs(1);
        let timing = Timing { interval, suspect_after: interval * 5, down_after: interval * 30 };
        let now = Instant::ZERO;
        let mut membership = Membership::new(member(1), vec![member(2)], vec![], timing, 7, now);
        let moved = Member { ip: Ipv4Addr::new(127, 0, 0, 99).into(), generation: 2, ..member(2) };
        let place = |membership: &Membership| membership.members().find(|m| m.id == moved.id).map(|m| m.ip);
        let say = |membership: &mut Membership| {
            membership.returned_arrived(now, moved.id, ClusterId::NONE, moved.clone(), &mut Vec::new());
        };
        membership.connection(now, moved.id, true);
        say(&mut membership);
        assert_eq!(place(&membership), Some(member(2).ip));
        membership.connection(now, moved.id, false);
        assert_eq!(membership.view(now, moved.id), Some(MemberView::Up));
        say(&mut membership);
        assert_eq!(place(&membership), Some(moved.ip));
    }

    #[test]
    fn a_member_that_is_stopping_is_so_until_it_has_started_again() {
        let timing = Timing {
            interval: Duration::from_secs(1),
            suspect_after: Duration::from_secs(5),
            down_after: Duration::from_secs(30),
        };
        let now = Instant::ZERO;
        let mut membership = Membership::new(member(1), (2..=4).map(member).collect(), vec![], timing, 7, now);
        let mut out = Vec::new();
        membership.part(&mut out);
        let told: Vec<NodeId> = out
            .iter()
            .map(|act| match act {
                Act::Say { to, message: Message::Parting { generation: 1 } } => *to,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(told, [NodeId(2), NodeId(3), NodeId(4)]);
        membership.tick(now, &mut out);
        let again = |act: &&Act| matches!(act, Act::Say { message: Message::Parting { .. }, .. });
        assert_eq!(out.iter().filter(again).count(), 4, "somebody is told once more");

        let (b, c) = (NodeId(2), NodeId(3));
        for node in [b, c, NodeId(77)] {
            membership.parting_arrived(now, node, 1);
        }
        assert_eq!(membership.parting(now), [b, c]);
        let later = now + Duration::from_secs(60);
        let news = vec![News::Member(Member { generation: 2, ..member(2) })];
        membership.news_arrived(later, b, ClusterId::NONE, news, &mut out);
        assert_eq!(membership.parting(later), [c], "that was its life before");
        // Late word of the life before, and again when this one is to end.
        membership.parting_arrived(later, b, 1);
        assert_eq!(membership.parting(later), [c]);
        membership.parting_arrived(later, b, 2);
        membership.parting_arrived(later, b, 1);
        assert_eq!(membership.parting(later), [b, c]);
        assert!(membership.parting(later + PARTING_MAX).is_empty());
    }

    /// Seed 45 of the simulator: two nodes on one side of a partition, whose link was well, missed each other by
    /// chance.
    #[test]
    fn who_can_be_asked_is_not_suspect_though_nobody_else_hears_of_it() {
        const QUIET: NodeId = NodeId(2);
        let interval = Duration::from_secs(1);
        let timing = Timing { interval, suspect_after: interval * 5, down_after: interval * 30 };
        let mut now = Instant::ZERO;
        let mut membership = Membership::new(member(1), (2..=8).map(member).collect(), vec![], timing, 7, now);
        for heartbeat in 1..1_000 {
            now = now + interval;
            let mut out = Vec::new();
            membership.tick(now, &mut out);
            let asked = |id: u64| out.iter().any(|act| matches!(act, Act::Say { to, .. } if *to == NodeId(id)));
            let heard: Vec<u64> = (2..=8).filter(|id| NodeId(*id) != QUIET || asked(*id)).collect();
            for id in heard {
                let entry = gossip::entry(&Member { heartbeat, ..member(id) });
                membership.digest_arrived(now, NodeId(id), ClusterId::NONE, &[entry], &mut Vec::new());
            }
            assert_eq!(membership.view(now, QUIET), Some(MemberView::Up), "round {heartbeat}");
        }
    }

    /// Carries what some nodes say to each other until nobody says anything. Seeds are found by their addresses.
    fn converse(nodes: &mut BTreeMap<NodeId, Membership>, now: Instant, first: (NodeId, Vec<Act>)) {
        let mut said = vec![first];
        while let Some((from, acts)) = said.pop() {
            for act in acts {
                let (to, message) = match act {
                    Act::Say { to, message } => (to, message),
                    Act::SayToSeed { seed, message } => {
                        let at = |node: &Membership| node.me.peer_address() == seed;
                        (nodes.values().find(|node| at(node)).expect("a node at the seed").me.id, message)
                    }
                };
                let (node, mut out) = (nodes.get_mut(&to).expect("a node"), Vec::new());
                match message {
                    Message::GossipDigest { cluster, entries } => {
                        node.digest_arrived(now, from, cluster, &entries, &mut out);
                    }
                    Message::GossipDelta { cluster, news, wanted, group } => {
                        node.delta_arrived(now, from, cluster, (news, &wanted, &group), &mut out);
                    }
                    Message::GossipNews { cluster, news } => node.news_arrived(now, from, cluster, news, &mut out),
                    Message::Returned { cluster, member } => {
                        node.returned_arrived(now, from, cluster, member, &mut out);
                    }
                    Message::Remembered { cluster, entry } => {
                        node.remembered_arrived(now, from, cluster, entry, &mut out);
                    }
                    other => panic!("{other:?}"),
                }
                said.push((to, out));
            }
        }
    }

    /// Two members of a cluster, and one that knows the first as its seed.
    fn with_newcomer(newcomer: Member, now: Instant) -> BTreeMap<NodeId, Membership> {
        let interval = Duration::from_secs(1);
        let timing = Timing { interval, suspect_after: interval * 5, down_after: interval * 30 };
        let of = |id: u64, other: u64| {
            Membership::new(member(id), vec![member(other)], vec![], timing, id, now).of_cluster(ClusterId(7), true)
        };
        let seeds = vec![member(1).peer_address()];
        let third = Membership::new(newcomer, vec![], seeds, timing, 3, now);
        [of(1, 2), of(2, 1), third].into_iter().map(|node| (node.me.id, node)).collect()
    }

    #[test]
    fn a_newcomer_serves_when_all_members_list_it() {
        let now = Instant::ZERO;
        let mut nodes = with_newcomer(Member { state: MemberState::Joining, ..member(3) }, now);
        let third = nodes.get_mut(&NodeId(3)).expect("the newcomer");
        let mut out = Vec::new();
        third.tick(now, &mut out);
        converse(&mut nodes, now, (NodeId(3), out));
        for node in nodes.values() {
            assert_eq!((node.members().count(), node.cluster()), (3, ClusterId(7)), "{:?}", node.me.id);
            assert!(node.members().all(|m| m.state == MemberState::Up) && node.settled(), "{:?}", node.me.id);
        }
        assert!(!nodes.values_mut().any(|node| node.take_doubt()));

        // One of them does not answer: it waits for it, not for ever, and doubts nothing.
        let mut nodes = with_newcomer(Member { state: MemberState::Joining, ..member(3) }, now);
        let (first, third) = (NodeId(1), NodeId(3));
        let joined = vec![News::Member(member(1)), News::Member(member(2))];
        let node = nodes.get_mut(&third).expect("the newcomer");
        node.news_arrived(now, first, ClusterId(7), joined, &mut Vec::new());
        node.remembered_arrived(now, first, ClusterId(7), None, &mut Vec::new());
        assert!(node.me.state == MemberState::Up && !node.settled());
        node.tick(now + crate::limits::RETURN_PATIENCE, &mut Vec::new());
        assert!(node.settled() && !node.take_doubt());
    }

    /// Its disk has forgotten that it ever joined: its generation is one that the others know.
    #[test]
    fn a_member_set_back_to_before_it_had_joined_is_let_in_as_another_life() {
        let now = Instant::ZERO;
        for revision in [1, 9] {
            let newcomer = Member { state: MemberState::Joining, revision, ..member(3) };
            let mut nodes = with_newcomer(newcomer, now);
            let known = Member { revision: 5, heartbeat: 3, ..member(3) };
            for id in [1, 2] {
                let news = vec![News::Member(known.clone())];
                let node = nodes.get_mut(&NodeId(id)).expect("a member");
                node.news_arrived(now, NodeId(3 - id), ClusterId(7), news, &mut Vec::new());
            }
            let third = nodes.get_mut(&NodeId(3)).expect("it");
            let mut out = Vec::new();
            third.tick(now, &mut out);
            converse(&mut nodes, now, (NodeId(3), out));
            let third = nodes.get_mut(&NodeId(3)).expect("it");
            assert!(third.settled() && third.take_doubt() && third.identity_alarms > 0);
            assert_eq!((third.me.generation, third.me.state), (2, MemberState::Up));
            for node in nodes.values() {
                let entry = node.members().find(|m| m.id == NodeId(3)).expect("it");
                assert_eq!((entry.generation, entry.state), (2, MemberState::Up), "at {:?}", node.me.id);
            }
        }
    }
}
