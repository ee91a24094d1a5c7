//! Which faults have struck which states of the protocol: how often each pair was met. A pair that no seed meets is a
//! gap of the simulator, not a proof.

use super::cluster::Cluster;
use crate::types::MemberView;
use std::{io, time::Duration};

/// What befalls one node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Blow {
    Kill,
    PowerLoss,
    Stop,
    Pause,
    CutOff,
    Clog,
    SlowDisk,
    DiskError,
    FullDisk,
    HungDisk,
    Rot,
    Wipe,
    Restore,
}
impl Blow {
    pub const ALL: [(Blow, &'static str); 13] = [
        (Blow::Kill, "kill"),
        (Blow::PowerLoss, "power loss"),
        (Blow::Stop, "stop"),
        (Blow::Pause, "pause"),
        (Blow::CutOff, "cut"),
        (Blow::Clog, "clog"),
        (Blow::SlowDisk, "slow disk"),
        (Blow::DiskError, "disk error"),
        (Blow::FullDisk, "full disk"),
        (Blow::HungDisk, "hung disk"),
        (Blow::Rot, "rot"),
        (Blow::Wipe, "wipe"),
        (Blow::Restore, "restore"),
    ];
}

/// What a node is doing or how it is seen when it is struck; several at once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum State {
    /// Its process runs and does not serve yet.
    Starting,
    /// It has served for less than two seconds.
    JustUp,
    /// Requests of clients are in its hands.
    Coordinating,
    /// It keeps hints for others.
    OwingHints,
    /// It knows ranges in which others lack something that it keeps no hint of.
    OwingRanges,
    /// Others keep hints, perhaps for it: it is avoided by some shard.
    Avoided,
    /// It has delivered hints within the last second.
    Replaying,
    /// It has written back what reads found stale within the last second.
    Repairing,
    /// It has flushed, compacted or collected within the last second.
    Tidying,
}
impl State {
    pub const ALL: [(State, &'static str); 9] = [
        (State::Starting, "starting"),
        (State::JustUp, "just up"),
        (State::Coordinating, "coordinating"),
        (State::OwingHints, "owing hints"),
        (State::OwingRanges, "owing ranges"),
        (State::Avoided, "avoided"),
        (State::Replaying, "replaying"),
        (State::Repairing, "repairing"),
        (State::Tidying, "tidying"),
    ];
}

/// Counters of one node that tell what it has been doing, as of the last look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Doings {
    life: u64,
    delivered: u64,
    repairs: u64,
    tidied: u64,
}

/// How often each pair was met.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Coverage([[u64; State::ALL.len()]; Blow::ALL.len()]);

impl Coverage {
    pub fn add(&mut self, other: &Coverage) {
        let cells = self.0.iter_mut().flatten().zip(other.0.iter().flatten());
        cells.for_each(|(mine, theirs)| *mine += theirs);
    }
    pub fn count(&self, blow: Blow, state: State) -> u64 {
        self.0[blow as usize][state as usize]
    }
    /// Pairs that were never met, in words. A medium rots and a disk fills whether or not anybody looks, so all pairs
    /// are possible but for those with a node that does not serve: only blows to its process and disk are dealt then.
    pub fn gaps(&self) -> Vec<String> {
        let mut gaps = Vec::new();
        for (blow, what) in Blow::ALL {
            for (state, when) in State::ALL {
                let possible = state != State::Starting || matches!(blow, Blow::Kill | Blow::PowerLoss | Blow::CutOff);
                if possible && self.count(blow, state) == 0 {
                    gaps.push(format!("{what} while {when}"));
                }
            }
        }
        gaps
    }
    /// A table: one row for each kind of fault.
    pub fn print(&self, out: &mut dyn io::Write) -> io::Result<()> {
        write!(out, "{:12}", "struck while")?;
        State::ALL.iter().try_for_each(|(_, when)| write!(out, " {when:>12}"))?;
        writeln!(out)?;
        for (blow, what) in Blow::ALL {
            write!(out, "{what:12}")?;
            State::ALL.iter().try_for_each(|(state, _)| write!(out, " {:>12}", self.count(blow, *state)))?;
            writeln!(out)?;
        }
        Ok(())
    }
}

impl Cluster {
    /// A fault strikes a node, in whatever state it is.
    pub(super) fn cover(&self, blow: Blow, node: usize) {
        let states = self.states(node);
        let row = &mut self.coverage.borrow_mut().0[blow as usize];
        states.for_each(|state| row[state as usize] += 1);
    }
    fn states(&self, node: usize) -> impl Iterator<Item = State> {
        let listening = self.listening(node);
        let young = self.executor.now().since(self.disturbed(node)) < Duration::from_secs(2);
        let (mut in_flight, mut hints, mut ranges) = (0, 0, 0);
        for shard in 0..self.shard_count(node) {
            let Some(handle) = self.handle(node, shard) else { continue };
            let stats = handle.stats().shard;
            in_flight += stats.in_flight;
            hints += stats.hints_pending;
            ranges += stats.ranges_marked;
        }
        let (before, now) = (self.doings_before(node), self.doings(node));
        let same_life = before.life == now.life;
        let met = [
            self.running(node) && !listening,
            listening && young,
            in_flight > 0,
            hints > 0,
            ranges > 0,
            self.avoided(node),
            same_life && now.delivered > before.delivered,
            same_life && now.repairs > before.repairs,
            same_life && now.tidied > before.tidied,
        ];
        State::ALL.into_iter().zip(met).filter(|(_, met)| *met).map(|((state, _), _)| state)
    }
    fn avoided(&self, node: usize) -> bool {
        let Some(id) = self.node_id(node) else { return false };
        let others = (0..self.node_count()).filter(|other| *other != node);
        others.filter_map(|other| self.handle(other, 0)).any(|handle| {
            let members = handle.members();
            members.iter().any(|(m, view, _)| m.id == id && matches!(view, MemberView::Suspect | MemberView::Down))
        })
    }
    pub(super) fn doings(&self, node: usize) -> Doings {
        let mut doings = Doings { life: self.life(node), ..Doings::default() };
        for shard in 0..self.shard_count(node) {
            let Some(handle) = self.handle(node, shard) else { continue };
            let stats = handle.stats();
            doings.delivered += stats.shard.hints_delivered;
            doings.repairs += stats.shard.requests.read_repairs;
            doings.tidied += stats.engine.flushes + stats.engine.compactions + stats.engine.collections;
        }
        doings
    }
}
