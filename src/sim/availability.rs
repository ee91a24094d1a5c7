//! Who had to be answered: a request that fails while enough nodes were well has failed for no reason.
//!
//! Every trouble that the plan makes leaves a mark on what it struck: a process, a disk, a link. When a client is told
//! that something failed, the nodes that had no trouble since long before its request are counted: if they, with the
//! node that was asked, could have made the quorum, the failure is a violation. A node whose process and links are
//! well, and whose disk is not, need hold nothing; but a client that asks it is owed an answer by the others.

use super::{
    checker::{Invariant, Quorum},
    cluster::Cluster,
    coverage::Blow,
    disk::Hang,
    plan::Plan,
};
use crate::{
    limits::{FORWARD_LATE, REPLICA_LATE, SILENCE_TRIAL_MIN},
    protocol::coordinator::KNOWN_TO,
    types::{ErrorCode, Failure, Instant, Key, ShardBounds},
};
use std::time::Duration;

/// After so long without trouble a node is known to be back, by all others: the longest damping, and some rounds of
/// gossip.
const SETTLED_AFTER: Duration = Duration::from_secs(12);
/// A lost message is made up for within this: whoever waited for its answer took the sender for silent after at most
/// [`FORWARD_LATE`], and asked others until the next trial.
const LOSS_PASSES: Duration = FORWARD_LATE.saturating_add(SILENCE_TRIAL_MIN).saturating_add(SLACK);
/// Answers of sound nodes and disks take no longer, whatever flushes and compactions do at that time.
const SLACK: Duration = Duration::from_millis(350);

/// When each part of the cluster last had trouble; what is in trouble now says so itself.
pub struct Troubles {
    nodes: usize,
    process: Vec<Option<Instant>>,
    disk: Vec<Option<Instant>>,
    /// When the way from each node to each other had trouble.
    links: Vec<Option<Instant>>,
    losses: Vec<Option<Instant>>,
}

impl Troubles {
    pub fn new(plan: &Plan) -> Troubles {
        // An outsider has troubles as well.
        let nodes = plan.nodes + usize::from(plan.outsider);
        let links = nodes * nodes;
        Troubles {
            nodes,
            process: vec![None; nodes],
            disk: vec![None; nodes],
            links: vec![None; links],
            losses: vec![None; links],
        }
    }
    pub fn of_process(&mut self, node: usize, now: Instant) {
        self.process[node] = Some(now);
    }
    pub fn of_disk(&mut self, node: usize, now: Instant) {
        self.disk[node] = Some(now);
    }
    /// Until this instant, at least.
    pub fn of_link(&mut self, from: usize, to: usize, until: Instant) {
        let link = &mut self.links[from * self.nodes + to];
        *link = (*link).max(Some(until));
    }
    pub fn of_message(&mut self, from: usize, to: usize, now: Instant) {
        self.losses[from * self.nodes + to] = Some(now);
    }
}

/// A request that has failed.
pub struct Asked<'a> {
    pub key: &'a Key,
    pub node: usize,
    pub started: Instant,
    pub timeout: Duration,
    pub is_write: bool,
    pub quorum: Quorum,
    /// Another client has read this write, and has written after it.
    pub superseded: bool,
}

/// Whether the last trouble, if any, was over for so long when the request began.
fn over(trouble: Option<Instant>, lasting: Duration, started: Instant) -> bool {
    trouble.is_none_or(|last| last + lasting <= started)
}

impl Cluster {
    pub(super) fn trouble_process(&self, node: usize) {
        self.troubles.borrow_mut().of_process(node, self.executor.now());
    }
    pub(super) fn trouble_disk(&self, node: usize) {
        self.troubles.borrow_mut().of_disk(node, self.executor.now());
    }
    /// Leaves the disk this much room, or all that it wants.
    pub fn limit_disk(&self, index: usize, room: Option<u64>) {
        if room.is_some() {
            self.cover(Blow::FullDisk, index);
        }
        self.trouble_disk(index);
        let disk = self.disk(index);
        disk.set_capacity(room.map(|room| disk.used() + room));
    }
    /// The disk answers nothing of this kind, or all again.
    pub fn hang_disk(&self, index: usize, hang: Option<Hang>) {
        if hang.is_some() {
            self.cover(Blow::HungDisk, index);
        }
        self.trouble_disk(index);
        self.note(42, index as u64, || format!("the disk of node {index} hangs: {hang:?}"));
        self.disk(index).hang(hang);
    }
    fn is_process_well(&self, node: usize, started: Instant) -> bool {
        let trouble = self.troubles.borrow().process[node];
        self.listening(node) && !self.paused(node) && !self.stopping(node) && over(trouble, SETTLED_AFTER, started)
    }
    fn is_disk_well(&self, node: usize, started: Instant) -> bool {
        let faults = &self.plan.faults;
        // What these have forgotten they may refuse for long.
        let forgetful = faults.unsound == Some(node) || faults.fickle.contains(node);
        !forgetful && !self.is_disk_ill(node) && over(self.troubles.borrow().disk[node], SETTLED_AFTER, started)
    }
    fn is_link_well(&self, a: usize, b: usize, started: Instant) -> bool {
        let troubles = self.troubles.borrow();
        [(a, b), (b, a)].into_iter().all(|(from, to)| {
            let link = from * troubles.nodes + to;
            !self.is_link_ill(from, to)
                && over(troubles.links[link], SETTLED_AFTER, started)
                && over(troubles.losses[link], LOSS_PASSES, started)
        })
    }

    /// A client was told that its request failed: whether the nodes that were well could have answered it.
    pub fn judge_failure(&self, asked: &Asked<'_>, failure: &Failure) {
        // What the client asked cannot be had, or is for a reader to see: judged where the history is known.
        let by_request = match failure.code {
            ErrorCode::SiblingLimit
            | ErrorCode::NotCovered
            | ErrorCode::BadRequest
            | ErrorCode::TooLarge
            | ErrorCode::WriteIdReused
            | ErrorCode::TableExists
            | ErrorCode::Clock => true,
            ErrorCode::Overloaded
            | ErrorCode::QuorumUnavailable
            | ErrorCode::Deadline
            | ErrorCode::DiskFull
            | ErrorCode::NotReady
            | ErrorCode::Damaged
            | ErrorCode::Internal => false,
        };
        // Another was asked then, and may have been the one that was silent.
        let overloaded = failure.code == ErrorCode::Overloaded || failure.detail.contains(ErrorCode::Overloaded.name());
        if overloaded && self.plan.bounds != ShardBounds::default() {
            return self.excuse(|e| e.refused_at_small_bounds += 1);
        }
        // A replica that has the successor and not the write must not say that it has stored it.
        if asked.superseded && failure.detail.contains(KNOWN_TO) {
            return self.excuse(|e| e.overtaken_writes += 1);
        }
        // One said that nobody has seen what the context names: what others are in for is no news then.
        let said = |code: ErrorCode| failure.detail.contains(code.name());
        let by_request = by_request || said(ErrorCode::NotCovered);
        if by_request || !self.is_process_well(asked.node, asked.started) {
            return;
        }
        let well = |node: &usize| {
            self.is_process_well(*node, asked.started)
                && self.is_disk_well(*node, asked.started)
                && (*node == asked.node || self.is_link_well(asked.node, *node, asked.started))
        };
        let mut well: Vec<usize> = (0..self.node_count()).filter(well).collect();
        // Those that speak to all others of them.
        loop {
            let bad = |a: &usize| well.iter().filter(|b| a != *b && !self.is_link_well(*a, **b, asked.started)).count();
            let worst = well.iter().copied().map(|a| (bad(&a), a)).max().filter(|(count, _)| *count > 0);
            let Some((_, worst)) = worst else { break };
            well.retain(|node| *node != worst);
        }
        // One said that the write's stamp does not do there: a clock is wrong, or the write was under way for long.
        // While all nodes are well, clocks included, it does everywhere.
        if asked.is_write && well.len() < self.node_count() && said(ErrorCode::Clock) {
            return self.excuse(|e| e.stamps_that_did_not_do += 1);
        }
        // Whoever has just started serves when most of the others have told it of their tables.
        if failure.code == ErrorCode::NotReady && well.len() * 2 <= self.node_count() {
            return self.excuse(|e| e.starts_unheard += 1);
        }
        let Some(ring) = self.handle(asked.node, 0).map(|handle| handle.ring()) else { return };
        let homes = ring.walk(asked.key.token(), usize::from(self.plan.n));
        let homes: Vec<usize> = homes.iter().filter_map(|id| self.index_of(*id)).collect();
        let at_home = homes.iter().filter(|home| well.contains(home)).count();
        // Somebody must coordinate, and know whether the key holds anything.
        let enough = if asked.quorum.strict { at_home } else { well.len() };
        if at_home == 0 || enough < asked.quorum.needed {
            return;
        }
        // Each of the others may have been asked first, and waited for.
        let (ill_homes, ill) = ((homes.len() - at_home) as u32, (self.node_count() - well.len()) as u32);
        let read = u32::from(!asked.is_write && ill > 0);
        let takes = SLACK + FORWARD_LATE * (ill_homes + read) + REPLICA_LATE * if ill > 0 { ill + 1 } else { 0 };
        if asked.timeout < takes {
            return;
        }
        let what = if asked.is_write { "write" } else { "read" };
        self.violate(
            Invariant::Available,
            format!(
                "{:?}: a {what} at node {} for {} of {:?} ({}) failed in {:.3} s: {failure}; nodes {well:?} had no trouble, \
                 homes {homes:?}",
                asked.key,
                asked.node,
                asked.quorum.needed,
                asked.timeout,
                if asked.quorum.strict { "strict" } else { "sloppy" },
                self.executor.now().since(asked.started).as_secs_f64(),
            ),
        );
    }
}
