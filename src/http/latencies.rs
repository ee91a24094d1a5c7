//! What requests took, as `/v1/node` and `/metrics` show it.

use serde::{Deserialize, Serialize};

/// Upper bounds of the buckets of `/metrics`, in microseconds; a last one has none. Two to three a decade, from what a
/// cached get takes to the longest deadline.
pub const BOUNDS_MICROS: [u64; 18] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000,
    5_000_000, 10_000_000, 60_000_000,
];

/// Requests of one operation that came one way and ended one way.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct LatencyView {
    /// `get`, `put` or `delete`.
    pub operation: String,
    /// `http` or `client`.
    pub front: String,
    /// `ok`; `refused`: nothing was done; `failed`: it may have been done.
    pub outcome: String,
    /// Requests since the node started.
    pub count: u64,
    /// What they took together.
    pub seconds: f64,
    /// Counts by [`BOUNDS_MICROS`]; empty when there were none.
    #[serde(skip)]
    pub buckets: Vec<u64>,
    pub recent: RecentView,
}

/// The requests of the last half to whole minute.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RecentView {
    pub count: u64,
    pub p50_microseconds: u64,
    pub p90_microseconds: u64,
    pub p99_microseconds: u64,
    pub p999_microseconds: u64,
    pub max_microseconds: u64,
}

/// The greatest 99th percentile of lately among the fronts, in microseconds, of the requests that went well; `None`
/// when there were none.
pub fn recent_p99(views: &[LatencyView], operation: &str) -> Option<u64> {
    let done = views.iter().filter(|v| v.operation == operation && v.outcome == "ok" && v.recent.count > 0);
    done.map(|view| view.recent.p99_microseconds).max()
}
