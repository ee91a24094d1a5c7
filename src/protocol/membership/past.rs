//! A node's own past, as the others remember it.
//!
//! A disk does not know its age: a volume that was set back to a snapshot looks like the volume that the node has left,
//! and a node that believed it would mint dots that others hold already. So a node that starts again asks, before it
//! serves: it tells every member its new entry ([`Message::Returned`]), and each answers what it knew of the node until
//! then ([`Message::Remembered`]). Each life has a generation of its own, one more than its disk has seen, and begins
//! with a revision that is drawn; so who remembers this generation, with a revision that this life never had, or a
//! later one, has met a life that the disk does not know. That is a *sign*: the disk is an older state or a copy. The
//! node goes on after that life, and all its slices mint under new incarnations.
//!
//! All members are asked, for a write of a forgotten life is held by some, and those may be any. Who cannot be heard
//! (its connections fail, or [`RETURN_PATIENCE`] is over) may remember what nobody else does: then the disk is not
//! trusted either, and the slices go on far away, without an alarm. So a node that starts while others are down serves
//! what its quorum allows, and pays an entry in the clocks of what it writes; one that starts while all are up pays a
//! round trip.
//!
//! A newcomer tells its entry to all members in the same way, before it serves: the cores of a node take no word about
//! keys from who is no member to them, and what it sent them would be lost. Nobody remembers it, and nothing is
//! doubted.
//!
//! A later life is noticed at any time after as well: by digests, and by entries that others pass on.

use super::{Act, Membership, Message, Peer, gossip::entry};
use crate::{
    limits::RETURN_PATIENCE,
    protocol::message::{DigestEntry, News},
    types::{ClusterId, Instant, Member, NodeId},
};

impl Membership {
    /// The node has lived before, so that others may remember more of it than its disk does. `far`: its slices begin
    /// far away already.
    pub fn returning(mut self, now: Instant, far: bool) -> Membership {
        self.peers.values_mut().for_each(|peer| peer.answered = false);
        self.far = far;
        self.asking_until = Some(now + RETURN_PATIENCE);
        self.see_answers(now);
        self
    }
    /// The node has become a member: it tells the others, and serves when all of them list it.
    pub(super) fn introduce(&mut self, now: Instant, out: &mut Vec<Act>) {
        // Who has lived before is asking already.
        if !self.is_asking() {
            self.peers.values_mut().for_each(|peer| peer.answered = false);
            (self.introduces, self.asking_until) = (true, Some(now + RETURN_PATIENCE));
            self.say_returned(out);
            self.see_answers(now);
        }
    }
    /// Serves no sooner than this: somebody may know this address as another node's.
    pub fn listening_until(self, until: Instant) -> Membership {
        Membership { listens_until: Some(until), ..self }
    }
    /// Whether the node knows its cluster and its past well enough to serve.
    pub fn settled(&self) -> bool {
        self.asking_until.is_none() && self.listens_until.is_none() && !self.has_lost_company()
    }
    pub(super) fn is_asking(&self) -> bool {
        self.asking_until.is_some()
    }
    /// Whether the slices must go on under new incarnations, since the last call.
    pub fn take_doubt(&mut self) -> bool {
        std::mem::take(&mut self.doubt)
    }

    /// Whether an entry of this node says what this life has never been.
    pub(super) fn is_another_life(&self, generation: u64, revision: u32, heartbeat: u64) -> bool {
        let own = (self.first_revision..=self.me.revision).contains(&revision) && heartbeat <= self.me.heartbeat;
        generation > self.me.generation || (generation == self.me.generation && !own)
    }
    /// Others remember a life of this node that it does not: it goes on after that one.
    pub(super) fn meet_sign(&mut self, generation: u64) {
        self.me.generation = self.me.generation.max(generation.saturating_add(1));
        self.identity_alarms += 1;
        // What is far away already is not drawn again for each of those who remember.
        self.doubt |= !self.far;
        (self.far, self.changed) = (true, true);
    }

    /// Tells those who have not answered in this life: all of them while it is asked, one of them later.
    pub(super) fn say_returned(&mut self, out: &mut Vec<Act>) {
        let silent: Vec<NodeId> =
            self.peers.values().filter(|p| !p.answered && !p.is_gone()).map(|p| p.member.id).collect();
        let chosen = if self.is_asking() { silent } else { self.choose(&silent).into_iter().collect() };
        let message = Message::Returned { cluster: self.cluster, member: self.me.clone() };
        out.extend(chosen.into_iter().map(|to| Act::Say { to, message: message.clone() }));
    }
    /// Ends the asking when there is nobody left to wait for.
    pub(super) fn see_answers(&mut self, now: Instant) {
        let Some(until) = self.asking_until else { return };
        let open = |p: &&Peer| !p.answered && !p.is_gone();
        if self.peers.values().filter(open).all(|p| p.unreachable) || now >= until {
            // Versions that know no clusters are asked in vain; by their digests they tell what they remember.
            let unheard = !self.introduces && self.peers.values().any(|p| open(&p) && !(p.spoken && p.nameless));
            self.doubt |= unheard && !self.far;
            self.far |= unheard;
            (self.asking_until, self.introduces) = (None, false);
        }
    }

    /// A member has started again, and asks what this node remembers of it.
    pub fn returned_arrived(
        &mut self,
        now: Instant,
        from: NodeId,
        cluster: ClusterId,
        member: Member,
        out: &mut Vec<Act>,
    ) {
        if member.id != from {
            return;
        }
        let remembered = self.peers.get(&from).map(|peer| entry(&peer.member));
        if self.take_words(now, from, cluster, vec![News::Member(member)], out) {
            let message = Message::Remembered { cluster: self.cluster, entry: remembered };
            out.push(Act::Say { to: from, message });
        }
    }
    /// A member says what it remembers of this node.
    pub fn remembered_arrived(
        &mut self,
        now: Instant,
        from: NodeId,
        cluster: ClusterId,
        entry: Option<DigestEntry>,
        out: &mut Vec<Act>,
    ) {
        if entry.is_some_and(|entry| entry.node != self.me.id) || !self.take_words(now, from, cluster, vec![], out) {
            return;
        }
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.answered = true;
        }
        if let Some(DigestEntry { generation, revision, heartbeat, .. }) = entry
            && self.is_another_life(generation, revision, heartbeat)
        {
            self.meet_sign(generation);
        }
        self.see_answers(now);
    }
}

impl Peer {
    /// Nothing more is heard of it, ever.
    pub(super) fn is_gone(&self) -> bool {
        self.member.state.is_gone()
    }
    /// It has said anything in this life of ours, or needs not.
    pub(super) fn has_spoken(&self) -> bool {
        self.spoken || self.is_gone()
    }
}
