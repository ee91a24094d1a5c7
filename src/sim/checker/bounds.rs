//! Memory, queues, hints and files stay within what was declared (I12), as shards are looked at during a run.

use super::{Invariant, Verdict};
use crate::{
    driver::core::CoreStats,
    limits::{INBOX_MESSAGES_MAX, KIB, LOG_QUEUE_BYTES, MIB},
    sim::plan::Plan,
};

/// What one shard may take. Declared from its options, before it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    pub memory_bytes: u64,
    pub memtable_bytes: u64,
    pub segment_bytes: usize,
    pub inbox: usize,
    pub in_flight: u64,
    pub hint_bytes: u64,
}

/// Values on their way back, filters and indexes of tables, the log's own maps.
const OVERHEAD_BYTES: usize = 8 * MIB;
/// What memtables may take beyond their bound: the records that were on their way when it was reached.
const MEMTABLE_SLACK_BYTES: usize = 512 * KIB;
/// Hints that were being written when their bound was reached: so many of the largest values, and small ones.
const HINTS_SLACK: usize = 64;
const HINTS_SLACK_BYTES: usize = 256 * KIB;
/// Segments in use, however little of them is live: those being filled, in reserve, and left by restarts.
const SEGMENTS: u64 = 16;

impl Bounds {
    pub fn of(plan: &Plan) -> Bounds {
        let options = &plan.engine;
        // The active memtable is sealed at its bound, and one sealed before may still be on its way to disk.
        let memtables = 2 * options.memtable_bytes + MEMTABLE_SLACK_BYTES;
        let caches = options.block_cache_bytes + options.value_cache_bytes;
        Bounds {
            memory_bytes: (memtables + caches + LOG_QUEUE_BYTES + OVERHEAD_BYTES) as u64,
            memtable_bytes: memtables as u64,
            segment_bytes: options.segment_bytes,
            inbox: INBOX_MESSAGES_MAX,
            in_flight: (plan.bounds.requests_in_flight_max + plan.bounds.requests_answered_max) as u64,
            hint_bytes: plan.hint_bytes_max + (HINTS_SLACK_BYTES + HINTS_SLACK * plan.workload.value_bytes_max) as u64,
        }
    }
    /// A shard's figures at one moment.
    pub fn check(&self, inbox: usize, stats: &CoreStats) -> Verdict {
        let CoreStats { engine, shard, .. } = stats;
        let space = engine.segment_live_bytes * 4 + SEGMENTS * self.segment_bytes as u64;
        let rows = [
            ("bytes of memory", engine.memory_bytes, self.memory_bytes),
            ("bytes of memtables", engine.memtable_bytes, self.memtable_bytes),
            ("bytes of segments", engine.segment_bytes, space),
            ("messages in its inbox", inbox as u64, self.inbox as u64),
            ("requests in hand", shard.in_flight, self.in_flight),
            ("bytes of hints", shard.hints_pending_bytes, self.hint_bytes),
        ];
        match rows.iter().find(|(_, value, bound)| value > bound) {
            None => Ok(()),
            Some((what, value, bound)) => {
                Err((Invariant::I12, format!("{value} {what}, at most {bound} were declared")))
            }
        }
    }
}
