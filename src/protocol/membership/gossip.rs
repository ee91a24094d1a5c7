//! The exchange: digest, delta, news.

use super::{Act, DigestEntry, MEMBERS_MAX, MemberView, Membership, Message, News, Peer, cluster::Hearing};
use crate::{
    limits::NEWS_BYTES,
    protocol::ring::FixedMap,
    types::{ClusterId, Instant, Member, MemberState, NodeId},
};

/// How new an entry is: removed for ever, else the later start, else the later change.
fn newness(state: MemberState, generation: u64, revision: u32) -> (bool, u64, u32) {
    (state == MemberState::Removed, generation, revision)
}

pub(super) fn entry(member: &Member) -> DigestEntry {
    DigestEntry {
        node: member.id,
        generation: member.generation,
        revision: member.revision,
        heartbeat: member.heartbeat,
    }
}

impl Membership {
    /// What this node knows of everybody, in short.
    pub(super) fn digest(&self) -> Message {
        Message::GossipDigest { cluster: self.cluster, entries: self.members().map(entry).collect() }
    }

    /// A peer tells what it knows: answer what it lacks and ask for what it knows better. Heartbeats are taken from the
    /// digest itself: whole entries, which are large, travel only when something else about them is new.
    pub fn digest_arrived(
        &mut self,
        now: Instant,
        from: NodeId,
        cluster: ClusterId,
        entries: &[DigestEntry],
        out: &mut Vec<Act>,
    ) {
        if !self.take_words(now, from, cluster, vec![], out) {
            return;
        }
        let mut wanted = Vec::new();
        let mut known = FixedMap::default();
        for theirs in entries.iter().take(MEMBERS_MAX) {
            known.insert(theirs.node, theirs);
            let newer = match self.peers.get_mut(&theirs.node) {
                // Of this node itself only another life is news, and a strange one.
                None if theirs.node == self.me.id => {
                    self.is_another_life(theirs.generation, theirs.revision, theirs.heartbeat)
                }
                None => true,
                Some(peer) => {
                    peer.take_heartbeat(now, theirs);
                    (theirs.generation, theirs.revision) > (peer.member.generation, peer.member.revision)
                }
            };
            if newer {
                wanted.push(theirs.node);
            }
        }
        let better = |ours: &Member| match known.get(&ours.id) {
            None => Some(News::Member(ours.clone())),
            Some(theirs) => news_for(ours, theirs),
        };
        let mut pieces = in_pieces(self.members().filter_map(better));
        let news = pieces.next().unwrap_or_default();
        let cluster = self.cluster;
        let delta = Message::GossipDelta { cluster, news, wanted, group: Vec::new() };
        out.push(Act::Say { to: from, message: delta });
        out.extend(pieces.map(|news| Act::Say { to: from, message: Message::GossipNews { cluster, news } }));
    }

    /// The second move of an exchange, or the first words of a newcomer.
    pub fn delta_arrived(
        &mut self,
        now: Instant,
        from: NodeId,
        cluster: ClusterId,
        (news, wanted, group): (Vec<News>, &[NodeId], &[NodeId]),
        out: &mut Vec<Act>,
    ) {
        let unknown = from != self.me.id && !self.peers.contains_key(&from);
        self.heard_forming(from, &news, group);
        let newcomer = match self.hear(from, cluster, &news) {
            Hearing::Taken => {
                self.take_news(now, from, news, out);
                // Where there are no ids, this is what a newcomer is.
                unknown && self.cluster.is_none()
            }
            Hearing::Newcomer => true,
            Hearing::Refused => return,
        };
        let cluster = self.cluster;
        let mut say = |news: Vec<News>| out.push(Act::Say { to: from, message: Message::GossipNews { cluster, news } });
        if newcomer {
            // It has said who it is; now it hears of everybody, and where they are.
            in_pieces(self.members().map(|m| News::Member(m.clone()))).for_each(&mut say);
        }
        let member =
            |id: &NodeId| if *id == self.me.id { Some(&self.me) } else { self.peers.get(id).map(|p| &p.member) };
        let wanted = wanted.iter().take(MEMBERS_MAX).filter_map(member);
        in_pieces(wanted.map(|m| News::Member(m.clone()))).for_each(say);
    }

    /// The third move.
    pub fn news_arrived(
        &mut self,
        now: Instant,
        from: NodeId,
        cluster: ClusterId,
        news: Vec<News>,
        out: &mut Vec<Act>,
    ) {
        self.take_words(now, from, cluster, news, out);
    }

    /// Takes what a node says, if it is one whose word counts; whether it is.
    pub(super) fn take_words(
        &mut self,
        now: Instant,
        from: NodeId,
        cluster: ClusterId,
        news: Vec<News>,
        out: &mut Vec<Act>,
    ) -> bool {
        let taken = self.hear(from, cluster, &news) == Hearing::Taken;
        if taken {
            self.take_news(now, from, news, out);
            if let Some(peer) = self.peers.get_mut(&from) {
                peer.nameless = cluster.is_none();
            }
        }
        taken
    }
    fn take_news(&mut self, now: Instant, from: NodeId, news: Vec<News>, out: &mut Vec<Act>) {
        for item in news.into_iter().take(MEMBERS_MAX) {
            match item {
                News::Member(member) => self.take_member(now, member),
                News::Heartbeat { node, generation, revision, heartbeat } => {
                    if let Some(peer) = self.peers.get_mut(&node) {
                        peer.take_heartbeat(now, &DigestEntry { node, generation, revision, heartbeat });
                    }
                }
            }
        }
        self.heard_of(now, from, out);
    }

    fn take_member(&mut self, now: Instant, member: Member) {
        if member.id == self.me.id {
            return self.take_own(&member);
        }
        let room = self.peers.len() + 1 < MEMBERS_MAX;
        let reached = self.peers.get(&member.id).is_some_and(|peer| !peer.unreachable);
        let alive = reached && self.view(now, member.id).is_some_and(MemberView::healthy);
        match self.peers.get_mut(&member.id) {
            None if room => {
                let answered = !(self.introduces && self.is_asking());
                self.peers.insert(member.id, Peer { answered, ..Peer::new(member, now) });
                self.changed = true;
            }
            None => {}
            Some(peer) => {
                let theirs = newness(member.state, member.generation, member.revision);
                let ours = newness(peer.member.state, peer.member.generation, peer.member.revision);
                // A member that is where it was has not moved: somebody else uses its name, with a copy of its disk.
                let elsewhere = member.peer_address() != peer.member.peer_address();
                if theirs > ours && elsewhere && alive && !theirs.0 {
                    return;
                }
                if theirs > ours {
                    // A later start: what was known of its connections is about the one before.
                    peer.unreachable &= theirs.1 == ours.1;
                    peer.member = member;
                    peer.heard = now;
                    self.changed = true;
                } else if theirs == ours && member.heartbeat > peer.member.heartbeat {
                    peer.member.heartbeat = member.heartbeat;
                    peer.heard = now;
                }
            }
        }
    }

    /// Others know a life of this node that it does not remember itself: from the same address, then its disk is an
    /// older state, and it goes on after that life; or from elsewhere, then another node uses its name.
    fn take_own(&mut self, member: &Member) {
        if member.state == MemberState::Removed
            || !self.is_another_life(member.generation, member.revision, member.heartbeat)
        {
            return;
        }
        let place = (member.ip, member.ports);
        if place == (self.me.ip, self.me.ports) {
            self.meet_sign(member.generation);
        } else if self.twin != Some(place) {
            self.twin = Some(place);
            self.identity_alarms += 1;
            // The two mint under different names from here on.
            (self.doubt, self.far) = (self.doubt || !self.far, true);
        }
    }

    /// Another member has spoken to this node: it is alive, and this node is part of a cluster.
    fn heard_of(&mut self, now: Instant, from: NodeId, out: &mut Vec<Act>) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        (peer.heard, peer.spoken) = (now, true);
        if self.me.state == MemberState::Joining {
            self.me.state = MemberState::Up;
            self.me.revision += 1;
            self.changed = true;
            // Who lists it only now hears so at once.
            out.push(Act::Say { to: from, message: self.first_words() });
            self.introduce(now, out);
        }
    }
}

impl Peer {
    /// A later heartbeat of the same start and revision.
    fn take_heartbeat(&mut self, now: Instant, entry: &DigestEntry) {
        let same = (self.member.generation, self.member.revision) == (entry.generation, entry.revision);
        if same && entry.heartbeat > self.member.heartbeat {
            self.member.heartbeat = entry.heartbeat;
            self.heard = now;
        }
    }
}

/// News by messages of about [`NEWS_BYTES`] each: a newcomer is told of everybody, and tokens take space.
fn in_pieces(news: impl Iterator<Item = News>) -> impl Iterator<Item = Vec<News>> {
    let mut news = news.peekable();
    std::iter::from_fn(move || {
        let (mut piece, mut bytes) = (Vec::new(), 0);
        while let Some(next) = news.next_if(|_| bytes < NEWS_BYTES) {
            bytes += match &next {
                News::Member(member) => 128 + 8 * member.tokens.len(),
                News::Heartbeat { .. } => 64,
            };
            piece.push(next);
        }
        (!piece.is_empty()).then_some(piece)
    })
}

/// What this node knows better of a member than the sender of a digest.
fn news_for(ours: &Member, theirs: &DigestEntry) -> Option<News> {
    let (mine, other) = ((ours.generation, ours.revision), (theirs.generation, theirs.revision));
    if mine > other {
        Some(News::Member(ours.clone()))
    } else if mine == other && ours.heartbeat > theirs.heartbeat {
        let (generation, revision) = mine;
        Some(News::Heartbeat { node: ours.id, generation, revision, heartbeat: ours.heartbeat })
    } else {
        None
    }
}
