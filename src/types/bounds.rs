//! Bounds of a shard that are given to it.

use crate::limits;

/// Bounds of a shard that a virtual world draws small, so that they are met; a server takes them as `limits.rs` has
/// them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShardBounds {
    /// See [`limits::DOT_LEASE`].
    pub dot_lease: u64,
    /// See [`limits::STAMPS_KEPT`].
    pub stamps_kept: usize,
    /// See [`limits::LATCH_WAITERS_MAX`].
    pub latch_waiters_max: usize,
    /// See [`limits::REQUESTS_IN_FLIGHT_MAX`].
    pub requests_in_flight_max: usize,
    /// See [`limits::REQUESTS_ANSWERED_MAX`].
    pub requests_answered_max: usize,
    /// See [`limits::SIBLINGS_MAX`].
    pub siblings_max: usize,
}
impl Default for ShardBounds {
    fn default() -> ShardBounds {
        ShardBounds {
            dot_lease: limits::DOT_LEASE,
            stamps_kept: limits::STAMPS_KEPT,
            latch_waiters_max: limits::LATCH_WAITERS_MAX,
            requests_in_flight_max: limits::REQUESTS_IN_FLIGHT_MAX,
            requests_answered_max: limits::REQUESTS_ANSWERED_MAX,
            siblings_max: limits::SIBLINGS_MAX,
        }
    }
}
