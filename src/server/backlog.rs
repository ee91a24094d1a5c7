//! How far background work is behind: in bytes, and in seconds of what was written lately.
//!
//! Looked at once a second. Seconds say how long writes of the recent rate took to leave what is to be done: seconds in
//! which nothing was written do not count into the rate, and a rate below [`BACKLOG_RATE_MIN`] counts as that, or the
//! little that an idle node leaves would be hours of its writes. Beyond [`BACKLOG_ALERT`] the log says so, once each
//! time.

use crate::{
    engine::types::EngineStats,
    limits::{BACKLOG_ALERT, BACKLOG_RATE_MIN},
    types::{Instant, ShardId},
};
use std::cell::Cell;

/// Share of the latest look in the rate: some ten seconds count.
const LATEST: f64 = 0.1;

/// The backlog of one core.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Backlog {
    pub compaction_seconds: u64,
    pub collection_seconds: u64,
    /// One of them is beyond [`BACKLOG_ALERT`].
    pub alert: bool,
}

/// Remembers what the rates are reckoned from.
#[derive(Default)]
pub struct BacklogWatch {
    now: Cell<Backlog>,
    seen: Cell<Option<(Instant, EngineStats)>>,
    /// Bytes a second into tables, and into the log.
    flushed: Cell<f64>,
    written: Cell<f64>,
}

impl BacklogWatch {
    pub fn backlog(&self) -> Backlog {
        self.now.get()
    }
    /// Takes the engine's figures in.
    pub fn look(&self, now: Instant, shard: ShardId, stats: EngineStats) {
        let Some((then, before)) = self.seen.replace(Some((now, stats))) else { return };
        let elapsed = now.since(then).as_secs_f64();
        let learn = |rate: &Cell<f64>, bytes: u64| {
            if bytes > 0 && elapsed > 0.0 {
                let latest = bytes as f64 / elapsed;
                rate.set(if rate.get() > 0.0 { rate.get() + LATEST * (latest - rate.get()) } else { latest });
            }
        };
        learn(&self.flushed, stats.flushed_bytes - before.flushed_bytes);
        learn(&self.written, stats.user_bytes_written - before.user_bytes_written);
        let seconds = |bytes: u64, rate: &Cell<f64>| (bytes as f64 / rate.get().max(BACKLOG_RATE_MIN as f64)) as u64;
        let compaction_seconds = seconds(stats.compaction_backlog_bytes, &self.flushed);
        let collection_seconds = seconds(stats.collection_backlog_bytes, &self.written);
        let alert = compaction_seconds.max(collection_seconds) > BACKLOG_ALERT.as_secs();
        let was = self.now.replace(Backlog { compaction_seconds, collection_seconds, alert });
        if alert && !was.alert {
            tracing::warn!(shard = shard.0, compaction_seconds, collection_seconds, "background work is far behind");
        } else if was.alert && !alert {
            tracing::info!(shard = shard.0, "background work has caught up");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn seconds_are_those_of_recent_writes() {
        let watch = BacklogWatch::default();
        let mut stats = EngineStats::default();
        let mut now = Instant::default();
        let mut second = |stats: EngineStats| {
            watch.look(now, ShardId(0), stats);
            now = now + Duration::from_secs(1);
            watch.backlog()
        };
        assert_eq!(second(stats), Backlog::default());
        stats.flushed_bytes += 2 * BACKLOG_RATE_MIN;
        stats.user_bytes_written += 3 * BACKLOG_RATE_MIN;
        stats.compaction_backlog_bytes = 10 * BACKLOG_RATE_MIN;
        let backlog = second(stats);
        assert_eq!((backlog.compaction_seconds, backlog.collection_seconds, backlog.alert), (5, 0, false));
        // Nothing is written any more: the rate stays.
        stats.collection_backlog_bytes = 3 * BACKLOG_RATE_MIN * (BACKLOG_ALERT.as_secs() + 2);
        let backlog = second(stats);
        assert_eq!((backlog.compaction_seconds, backlog.alert), (5, true));
        stats.collection_backlog_bytes = 0;
        assert!(!second(stats).alert);
    }

    #[test]
    fn the_little_that_an_idle_node_leaves_is_no_alert() {
        let watch = BacklogWatch::default();
        let mut stats = EngineStats::default();
        watch.look(Instant::ZERO, ShardId(0), stats);
        stats.flushed_bytes += 100;
        stats.user_bytes_written += 100;
        (stats.compaction_backlog_bytes, stats.collection_backlog_bytes) = (5_000_000, 5_000_000);
        watch.look(Instant::ZERO + Duration::from_secs(1), ShardId(0), stats);
        assert!(!watch.backlog().alert, "{:?}", watch.backlog());
    }
}
