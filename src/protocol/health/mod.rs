//! Which nodes can be asked now, as this shard's own evidence and the gossip have it.
//!
//! Three things speak against a node: its connections fail, the gossip hears nothing of it, or it lets a request wait
//! and has said nothing else meanwhile. The last comes from requests themselves, long before heartbeats are missed; it
//! is tried again after a while, and any word of the node ends it. A node that was lost several times in a short while,
//! by its connections or its silence, is back only after it stayed for a while, which grows with each loss up to a bound: until then it is asked only
//! when the others do not suffice.
//!
//! The machine decides nothing else, sends nothing and wants no timer: it is asked when a request is planned.

use crate::{
    limits::{
        FLAP_DAMPING_MAX, FLAP_DAMPING_MIN, FLAP_FORGIVEN_AFTER, FLAPS_FREE, REPLICA_LATE, SILENCE_TRIAL_MAX,
        SILENCE_TRIAL_MIN,
    },
    protocol::ring::FixedMap,
    types::{Instant, NodeId},
};
use std::time::Duration;

/// Whether a node is worth a request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Standing {
    Usable,
    /// It is back after several losses: only if the others do not suffice.
    Doubtful,
    /// A request would wait for nothing.
    Away,
}

struct Peer {
    connection_fails: bool,
    /// The gossip says so.
    avoided: bool,
    silent: bool,
    /// The next request that may try a silent node.
    trial: Instant,
    trial_pause: Duration,
    /// When it last said anything.
    heard: Instant,
    /// When it was lost or came back.
    changed: Instant,
    present: bool,
    /// Losses that are not forgiven yet.
    losses: u32,
}

/// See the module.
#[derive(Default)]
pub struct Health {
    peers: FixedMap<NodeId, Peer>,
    /// Times that a node was lost because it let requests wait.
    pub silences: u64,
    /// Times that a node that came back was not trusted at once.
    pub dampings: u64,
}

impl Health {
    pub fn standing(&self, now: Instant, node: NodeId) -> Standing {
        match self.peers.get(&node) {
            None => Standing::Usable,
            Some(p) if p.connection_fails || p.avoided => Standing::Away,
            Some(p) if p.silent => {
                if now >= p.trial {
                    Standing::Usable
                } else {
                    Standing::Away
                }
            }
            Some(p) if now < p.changed + damping(p.losses) => Standing::Doubtful,
            Some(_) => Standing::Usable,
        }
    }

    /// A connection to the node works, or fails.
    pub fn connection(&mut self, now: Instant, node: NodeId, works: bool) {
        let peer = self.peer(now, node);
        peer.connection_fails = !works;
        if works {
            peer.silent = false;
        }
        self.settle(now, node);
    }
    /// It has said something.
    pub fn heard(&mut self, now: Instant, node: NodeId) {
        let peer = self.peer(now, node);
        peer.heard = now;
        if peer.silent {
            peer.silent = false;
            self.settle(now, node);
        }
    }
    /// This shard stood still until now: what the others said meanwhile is still to be read.
    pub fn stood_still(&mut self, now: Instant) {
        self.peers.values_mut().filter(|p| !p.silent).for_each(|p| p.heard = now);
    }
    /// A request has waited for it for [`REPLICA_LATE`]. Whether it counts as silent from now on, and did not before.
    pub fn late(&mut self, now: Instant, node: NodeId) -> bool {
        let peer = self.peer(now, node);
        if now.since(peer.heard) < REPLICA_LATE {
            // It speaks: slow, but there.
            return false;
        }
        if peer.silent {
            if now >= peer.trial {
                peer.trial_pause = (peer.trial_pause * 2).min(SILENCE_TRIAL_MAX);
                peer.trial = now + peer.trial_pause;
            }
            return false;
        }
        peer.silent = true;
        peer.trial_pause = SILENCE_TRIAL_MIN;
        peer.trial = now + peer.trial_pause;
        self.silences += 1;
        self.settle(now, node);
        true
    }
    /// The nodes that the gossip says nothing has been heard of.
    pub fn avoid(&mut self, now: Instant, nodes: &[NodeId]) {
        let known = self.peers.iter().filter(|(_, p)| p.avoided).map(|(id, _)| *id);
        let back: Vec<NodeId> = known.filter(|id| !nodes.contains(id)).collect();
        for (node, avoided) in back.into_iter().map(|n| (n, false)).chain(nodes.iter().map(|n| (*n, true))) {
            self.peer(now, node).avoided = avoided;
        }
    }

    fn peer(&mut self, now: Instant, node: NodeId) -> &mut Peer {
        self.peers.entry(node).or_insert_with(|| Peer {
            connection_fails: false,
            avoided: false,
            silent: false,
            trial: Instant::ZERO,
            trial_pause: SILENCE_TRIAL_MIN,
            heard: now,
            changed: now,
            present: true,
            losses: 0,
        })
    }
    /// Notes that the node was lost, or came back.
    fn settle(&mut self, now: Instant, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        // Heartbeats that come late now and then are no loss.
        let present = !(peer.connection_fails || peer.silent);
        if present == peer.present {
            return;
        }
        let lasted = now.since(peer.changed);
        (peer.present, peer.changed) = (present, now);
        if present {
            self.dampings += u64::from(peer.losses > FLAPS_FREE);
            return;
        }
        let forgiven = lasted.as_nanos() / FLAP_FORGIVEN_AFTER.as_nanos();
        peer.losses = peer.losses.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX)).saturating_add(1);
    }
}

/// How long a node that was lost so often must stay before it is trusted.
fn damping(losses: u32) -> Duration {
    match losses.checked_sub(FLAPS_FREE + 1) {
        None => Duration::ZERO,
        Some(more) => FLAP_DAMPING_MIN.saturating_mul(1 << more.min(16)).min(FLAP_DAMPING_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: NodeId = NodeId(2);

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(millis)
    }

    #[test]
    fn a_node_that_lets_requests_wait_and_says_nothing_is_away_and_tried_again() {
        let mut health = Health::default();
        health.heard(at(0), B);
        assert!(!health.late(at(100), B), "it spoke just now");
        assert!(health.late(at(400), B));
        assert!(!health.late(at(401), B), "known");
        assert_eq!(health.standing(at(500), B), Standing::Away);
        let trial = at(400) + SILENCE_TRIAL_MIN;
        assert_eq!(health.standing(trial, B), Standing::Usable, "one more try");
        health.late(trial, B);
        assert_eq!(health.standing(trial + SILENCE_TRIAL_MIN, B), Standing::Away, "the next try comes later");
        health.heard(trial + Duration::from_millis(1), B);
        assert_eq!(health.standing(trial + Duration::from_millis(1), B), Standing::Usable);
    }

    #[test]
    fn whoever_stood_still_blames_nobody_at_once() {
        let mut health = Health::default();
        health.heard(at(0), B);
        health.stood_still(at(15_000));
        assert!(!health.late(at(15_001), B), "its answers are still to be read");
        assert!(health.late(at(15_300), B), "it has said nothing since");
        health.stood_still(at(30_000));
        assert_eq!(health.standing(at(30_000) - Duration::from_nanos(1), B), Standing::Usable, "time for a trial");
        health.late(at(30_000), B);
        assert_eq!(health.standing(at(30_001), B), Standing::Away, "a node known to be silent gains nothing by it");
    }

    #[test]
    fn a_failed_connection_counts_at_once_and_so_does_its_return() {
        let mut health = Health::default();
        health.connection(at(0), B, false);
        assert_eq!(health.standing(at(0), B), Standing::Away);
        health.connection(at(1), B, true);
        assert_eq!(health.standing(at(1), B), Standing::Usable);
        health.avoid(at(2), &[B]);
        health.connection(at(3), B, true);
        assert_eq!(health.standing(at(3), B), Standing::Away, "nothing is heard of it");
        health.avoid(at(4), &[]);
        assert_eq!(health.standing(at(4), B), Standing::Usable);
    }

    #[test]
    fn a_node_that_comes_and_goes_must_stay_before_it_is_trusted() {
        let mut health = Health::default();
        let mut waits = Vec::new();
        let mut now = at(0);
        for _ in 0..12 {
            health.connection(now, B, false);
            now = now + Duration::from_millis(100);
            health.connection(now, B, true);
            let mut wait = Duration::ZERO;
            while health.standing(now + wait, B) == Standing::Doubtful {
                wait += Duration::from_millis(50);
            }
            waits.push(wait);
            now = now + wait + Duration::from_millis(100);
        }
        assert_eq!(waits[0], Duration::ZERO, "once is no flapping");
        assert!(waits.is_sorted() && waits[11] == FLAP_DAMPING_MAX, "{waits:?}");
        // All is forgiven after a long quiet time.
        now = now + FLAP_FORGIVEN_AFTER * 20;
        health.connection(now, B, false);
        health.connection(now, B, true);
        assert_eq!(health.standing(now, B), Standing::Usable);
    }
}
