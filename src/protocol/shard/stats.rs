//! What a shard counts, for those who look at it.

use super::{Shard, coordinator};
use crate::protocol::repair::RepairStats;

/// Counters and gauges of one shard's protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ShardStats {
    pub requests: coordinator::Counters,
    pub in_flight: u64,
    pub hints_pending: u64,
    pub hints_pending_bytes: u64,
    pub hints_stored: u64,
    pub hints_delivered: u64,
    pub hints_delivered_bytes: u64,
    pub hints_dropped: u64,
    /// Ranges in which an absent replica lacks something because of a dropped hint.
    pub ranges_marked: u64,
    /// Times that such a range was gone through, and its owner given what it lacked.
    pub ranges_swept: u64,
    /// Damaged records that were put together again from the other home replicas.
    pub records_rebuilt: u64,
    /// Times that one could not be, since a value that it names is held by nobody else.
    pub rebuilds_refused: u64,
    /// Signs that this node's disk is an older state or a copy, or that another node uses its name.
    pub identity_alarms: u64,
    /// The greatest incarnation of this node in any slice.
    pub greatest_incarnation: u64,
    /// Stores of keys whose clock is near its bound.
    pub clocks_long: u64,
    pub expired_messages: u64,
    /// Writes refused because their stamp was too far ahead of this node's clock, or behind it.
    pub stamps_refused: u64,
    /// Milliseconds by which the node's clock is ahead of the others' (behind: negative) beyond doubt; 0 as long as
    /// it is not further off than they take.
    pub clock_off_millis: i64,
    /// Writes refused here, where the last one wins, because of this node's clock.
    pub clock_refusals: u64,
    /// Times that a peer was lost because it let requests wait, and that one that came back was not trusted at once.
    pub silences: u64,
    pub dampings: u64,
    /// Whether the disk answers no writes now, and how often that has been so.
    pub disk_stalled: bool,
    pub disk_stalls: u64,
    pub repair: RepairStats,
}

impl Shard {
    pub fn stats(&self) -> ShardStats {
        ShardStats {
            requests: self.coordinator.counters,
            in_flight: self.coordinator.len() as u64,
            hints_pending: self.hints.count(),
            hints_pending_bytes: self.hints.bytes(),
            hints_stored: self.hints.stored,
            hints_delivered: self.hints.delivered,
            hints_delivered_bytes: self.hints.delivered_bytes,
            hints_dropped: self.hints.dropped,
            ranges_marked: self.hints.ranges_marked(),
            ranges_swept: self.hints.swept,
            records_rebuilt: self.replica.rebuilt,
            rebuilds_refused: self.replica.rebuilds_refused,
            identity_alarms: self.replica.identity_alarms
                + self.membership.as_ref().map_or(0, |m| m.identity_alarms + u64::from(self.copied)),
            greatest_incarnation: self.replica.greatest_incarnation(),
            clocks_long: self.replica.clocks_long,
            expired_messages: self.expired_messages,
            stamps_refused: self.replica.stamps.refused,
            clock_off_millis: self.clock.off.map_or(0, |off| off / 1_000_000),
            clock_refusals: self.clock.refusals,
            silences: self.health.silences,
            dampings: self.health.dampings,
            disk_stalled: self.stall.is_known(),
            disk_stalls: self.stall.count,
            repair: self.repair.stats(self.last),
        }
    }
}
