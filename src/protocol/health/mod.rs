//! Which cores of other nodes can be asked now, as this shard's own evidence and the gossip have it.
//!
//! Three things speak against a core: its connections fail, the gossip hears nothing of its node, or it lets a request
//! wait and has said nothing else meanwhile. The last comes from requests themselves, long before heartbeats are
//! missed; it is tried again after a while, and any word of the core ends it. A core that was lost several times in a
//! short while, by its connections or its silence, is back only after it stayed for a while, which grows with each loss
//! up to a bound: until then it is asked only when the others do not suffice.
//!
//! The cores of a node are told apart, since one port may be cut off and the others not; and so are the two lanes to a
//! core, since a way that lets short frames pass may lose long ones. A node is lost when each of its cores is.
//!
//! A node that is stopping says so: it is asked last while it is there, and its going is no loss.
//!
//! The machine decides nothing else, sends nothing and wants no timer: it is asked when a request is planned.

use crate::{
    limits::{
        FLAP_DAMPING_MAX, FLAP_DAMPING_MIN, FLAP_FORGIVEN_AFTER, FLAPS_FREE, REPLICA_LATE, SILENCE_TRIAL_MAX,
        SILENCE_TRIAL_MIN,
    },
    protocol::{message::Lane, ring::FixedMap},
    types::{Address, Instant, NodeId, ShardId},
};
use std::time::Duration;

/// Whether a core is worth a request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Standing {
    Usable,
    /// Its node is stopping: it does what it is asked for a moment still.
    Parting,
    /// It is back after several losses: only if the others do not suffice.
    Doubtful,
    /// A request would wait for nothing.
    Away,
}

/// One lane to a core.
struct Link {
    fails: bool,
    /// When it was lost or came back.
    changed: Instant,
    present: bool,
    /// Losses that are not forgiven yet.
    losses: u32,
}

struct Core {
    short: Link,
    long: Link,
    silent: bool,
    /// The next request that may try a silent core.
    trial: Instant,
    trial_pause: Duration,
    /// When it last said anything.
    heard: Instant,
}
impl Core {
    fn link(&mut self, lane: Lane) -> &mut Link {
        match lane {
            Lane::Short => &mut self.short,
            Lane::Long => &mut self.long,
        }
    }
    /// What a request of this lane depends on: without the lane of short frames there is no core.
    fn links(&self, lane: Lane) -> impl Iterator<Item = &Link> {
        std::iter::once(&self.short).chain((lane == Lane::Long).then_some(&self.long))
    }
    /// Notes that it was lost, or came back.
    fn settle(&mut self, now: Instant, parting: bool) -> u64 {
        // Heartbeats that come late now and then are no loss.
        let silent = self.silent;
        let links = [&mut self.short, &mut self.long];
        links.into_iter().map(|link| link.settle(now, silent, parting)).max().unwrap_or(0)
    }
}
impl Link {
    fn new(now: Instant) -> Link {
        Link { fails: false, changed: now, present: true, losses: 0 }
    }
    /// Gives how many returns are not trusted at once: none or one.
    fn settle(&mut self, now: Instant, silent: bool, parting: bool) -> u64 {
        let present = !(self.fails || silent);
        if present == self.present {
            return 0;
        }
        let lasted = now.since(self.changed);
        (self.present, self.changed) = (present, now);
        if present {
            return u64::from(self.losses > FLAPS_FREE);
        }
        let forgiven = lasted.as_nanos() / FLAP_FORGIVEN_AFTER.as_nanos();
        self.losses = self.losses.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX));
        // Who has said that it stops is not lost.
        self.losses = self.losses.saturating_add(u32::from(!parting));
        0
    }
}

/// See the module.
#[derive(Default)]
pub struct Health {
    cores: FixedMap<Address, Core>,
    /// The nodes that the gossip hears nothing of, or that shard 0 has lost.
    avoided: Vec<NodeId>,
    /// Those that are stopping, or have.
    parting: Vec<NodeId>,
    /// Times that a core was lost because it let requests wait.
    pub silences: u64,
    /// Times that a core that came back was not trusted at once.
    pub dampings: u64,
}

impl Health {
    /// Of a core, for what travels by this lane.
    pub fn standing(&self, now: Instant, core: Address, lane: Lane) -> Standing {
        if self.avoided.contains(&core.node) {
            return Standing::Away;
        }
        let well = if self.is_parting(core.node) { Standing::Parting } else { Standing::Usable };
        match self.cores.get(&core) {
            None => well,
            Some(c) if c.links(lane).any(|link| link.fails) => Standing::Away,
            Some(c) if c.silent => {
                if now >= c.trial {
                    well
                } else {
                    Standing::Away
                }
            }
            Some(c) if c.links(lane).any(|link| now < link.changed + damping(link.losses)) => Standing::Doubtful,
            Some(_) => well,
        }
    }
    /// Whether the connections to each of a node's cores fail.
    pub fn has_lost(&self, node: NodeId, shards: u16) -> bool {
        cores(node, shards).all(|core| self.is_cut(core))
    }
    /// Whether none of a node's cores is worth a request.
    pub fn misses(&self, now: Instant, node: NodeId, shards: u16) -> bool {
        cores(node, shards).all(|core| self.standing(now, core, Lane::Short) > Standing::Parting)
    }
    /// Whether it has said that it is stopping.
    fn is_parting(&self, node: NodeId) -> bool {
        self.parting.contains(&node)
    }
    /// Whether a connection to the core has been seen to fail, and has not come back.
    pub fn is_cut(&self, core: Address) -> bool {
        self.cores.get(&core).is_some_and(|core| core.short.fails)
    }

    /// A connection to the core works, or fails.
    pub fn connection(&mut self, now: Instant, core: Address, lane: Lane, works: bool) {
        let parting = self.is_parting(core.node);
        let core = self.core(now, core);
        core.link(lane).fails = !works;
        if works {
            core.silent = false;
        }
        self.dampings += core.settle(now, parting);
    }
    /// It has said something.
    pub fn heard(&mut self, now: Instant, core: Address) {
        let core = self.core(now, core);
        core.heard = now;
        if core.silent {
            core.silent = false;
            self.dampings += core.settle(now, false);
        }
    }
    /// This shard stood still until now: what the others said meanwhile is still to be read.
    pub fn stood_still(&mut self, now: Instant) {
        self.cores.values_mut().filter(|c| !c.silent).for_each(|c| c.heard = now);
    }
    /// A request has waited for it for [`REPLICA_LATE`]. Whether it counts as silent from now on, and did not before.
    pub fn late(&mut self, now: Instant, core: Address) -> bool {
        let core = self.core(now, core);
        if now.since(core.heard) < REPLICA_LATE {
            // It speaks: slow, but there.
            return false;
        }
        if core.silent {
            if now >= core.trial {
                core.trial_pause = (core.trial_pause * 2).min(SILENCE_TRIAL_MAX);
                core.trial = now + core.trial_pause;
            }
            return false;
        }
        core.silent = true;
        core.trial_pause = SILENCE_TRIAL_MIN;
        core.trial = now + core.trial_pause;
        core.settle(now, false);
        self.silences += 1;
        true
    }
    /// The nodes that are to be routed around.
    pub fn avoid(&mut self, nodes: &[NodeId]) {
        self.avoided = nodes.to_vec();
    }
    /// The nodes that are stopping, or have: others are asked first.
    pub fn part(&mut self, nodes: &[NodeId]) {
        self.parting = nodes.to_vec();
    }
    /// Forgets the cores that a node no longer has.
    pub fn keep(&mut self, exists: impl Fn(Address) -> bool) {
        self.cores.retain(|core, _| exists(*core));
    }

    fn core(&mut self, now: Instant, core: Address) -> &mut Core {
        self.cores.entry(core).or_insert_with(|| Core {
            short: Link::new(now),
            long: Link::new(now),
            silent: false,
            trial: Instant::ZERO,
            trial_pause: SILENCE_TRIAL_MIN,
            heard: now,
        })
    }
}

fn cores(node: NodeId, shards: u16) -> impl Iterator<Item = Address> {
    (0..shards).map(move |shard| Address { node, shard: ShardId(shard) })
}

/// How long a core that was lost so often must stay before it is trusted.
fn damping(losses: u32) -> Duration {
    match losses.checked_sub(FLAPS_FREE + 1) {
        None => Duration::ZERO,
        Some(more) => FLAP_DAMPING_MIN.saturating_mul(1 << more.min(16)).min(FLAP_DAMPING_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: Address = Address { node: NodeId(2), shard: ShardId(0) };
    const B1: Address = Address { node: NodeId(2), shard: ShardId(1) };

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
        assert_eq!(health.standing(at(500), B, Lane::Short), Standing::Away);
        let trial = at(400) + SILENCE_TRIAL_MIN;
        assert_eq!(health.standing(trial, B, Lane::Short), Standing::Usable, "one more try");
        health.late(trial, B);
        assert_eq!(
            health.standing(trial + SILENCE_TRIAL_MIN, B, Lane::Short),
            Standing::Away,
            "the next try comes later"
        );
        health.heard(trial + Duration::from_millis(1), B);
        assert_eq!(health.standing(trial + Duration::from_millis(1), B, Lane::Short), Standing::Usable);
    }

    #[test]
    fn whoever_stood_still_blames_nobody_at_once() {
        let mut health = Health::default();
        health.heard(at(0), B);
        health.stood_still(at(15_000));
        assert!(!health.late(at(15_001), B), "its answers are still to be read");
        assert!(health.late(at(15_300), B), "it has said nothing since");
        health.stood_still(at(30_000));
        assert_eq!(
            health.standing(at(30_000) - Duration::from_nanos(1), B, Lane::Short),
            Standing::Usable,
            "time for a trial"
        );
        health.late(at(30_000), B);
        assert_eq!(
            health.standing(at(30_001), B, Lane::Short),
            Standing::Away,
            "a node known to be silent gains nothing by it"
        );
    }

    #[test]
    fn a_failed_connection_counts_at_once_and_so_does_its_return() {
        let mut health = Health::default();
        health.connection(at(0), B, Lane::Short, false);
        assert_eq!(health.standing(at(0), B, Lane::Short), Standing::Away);
        health.connection(at(1), B, Lane::Short, true);
        assert_eq!(health.standing(at(1), B, Lane::Short), Standing::Usable);
        health.avoid(&[B.node]);
        health.connection(at(3), B, Lane::Short, true);
        assert_eq!(health.standing(at(3), B, Lane::Short), Standing::Away, "nothing is heard of it");
        health.avoid(&[]);
        assert_eq!(health.standing(at(4), B, Lane::Short), Standing::Usable);
    }

    #[test]
    fn a_node_that_comes_and_goes_must_stay_before_it_is_trusted() {
        let mut health = Health::default();
        let mut waits = Vec::new();
        let mut now = at(0);
        for _ in 0..12 {
            health.connection(now, B, Lane::Short, false);
            now = now + Duration::from_millis(100);
            health.connection(now, B, Lane::Short, true);
            let mut wait = Duration::ZERO;
            while health.standing(now + wait, B, Lane::Short) == Standing::Doubtful {
                wait += Duration::from_millis(50);
            }
            waits.push(wait);
            now = now + wait + Duration::from_millis(100);
        }
        assert_eq!(waits[0], Duration::ZERO, "once is no flapping");
        assert!(waits.is_sorted() && waits[11] == FLAP_DAMPING_MAX, "{waits:?}");
        // All is forgiven after a long quiet time.
        now = now + FLAP_FORGIVEN_AFTER * 20;
        health.connection(now, B, Lane::Short, false);
        health.connection(now, B, Lane::Short, true);
        assert_eq!(health.standing(now, B, Lane::Short), Standing::Usable);
    }

    #[test]
    fn a_node_that_stops_in_order_is_asked_last_and_trusted_at_once_when_it_is_back() {
        let mut health = Health::default();
        let mut now = at(0);
        for _ in 0..12 {
            health.part(&[B.node]);
            assert_eq!(health.standing(now, B, Lane::Long), Standing::Parting);
            assert!(!health.misses(now, B.node, 1), "it is there");
            health.connection(now, B, Lane::Short, false);
            assert_eq!(health.standing(now, B, Lane::Short), Standing::Away);
            now = now + Duration::from_millis(100);
            health.connection(now, B, Lane::Short, true);
            assert_eq!(health.standing(now, B, Lane::Short), Standing::Parting, "its new start is not heard of yet");
            health.part(&[]);
            assert_eq!(health.standing(now, B, Lane::Short), Standing::Usable);
        }
        assert_eq!(health.dampings, 0);
    }

    #[test]
    fn one_core_that_is_cut_off_is_not_the_node_and_one_lane_is_not_the_core() {
        let mut health = Health::default();
        health.connection(at(0), B, Lane::Short, false);
        assert_eq!(health.standing(at(0), B, Lane::Short), Standing::Away);
        assert_eq!(health.standing(at(0), B1, Lane::Short), Standing::Usable);
        assert!(!health.has_lost(B.node, 2) && health.has_lost(B.node, 1));
        health.connection(at(1), B1, Lane::Short, false);
        assert!(health.has_lost(B.node, 2) && health.misses(at(1), B.node, 2));
        // It is back with one core: the other is nobody's.
        health.connection(at(2), B, Lane::Short, true);
        health.keep(|core| core.shard.0 < 1);
        assert!(!health.misses(at(2), B.node, 1) && !health.is_cut(B1));
        health.connection(at(3), B, Lane::Long, false);
        assert_eq!(health.standing(at(3), B, Lane::Short), Standing::Usable);
        assert_eq!(health.standing(at(3), B, Lane::Long), Standing::Away);
        // A silent one says something: only it is there.
        health.heard(at(3), B1);
        assert!(health.late(at(400), B1) && health.late(at(400), B) && health.misses(at(400), B.node, 2));
        health.heard(at(401), B1);
        assert!(!health.misses(at(401), B.node, 2));
        assert_eq!(health.standing(at(401), B, Lane::Short), Standing::Away);
    }
}
