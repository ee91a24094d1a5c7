//! Whether the own disk still answers writes.
//!
//! A disk that hangs says nothing: no error, no end. It has stalled when writes wait for it and none has been answered
//! for as long as a replica may be late. Then this node does not coordinate writes as long as others can, and says so
//! to whoever looks after it; other nodes see that it is late. What waits is the probe: with its first answer all is as
//! before.

use crate::{limits::REPLICA_LATE, types::Instant};

#[derive(Clone, Copy, Debug, Default)]
pub struct Stall {
    waiting: u64,
    /// When the last write was answered, or the first of those that wait now was begun.
    since: Instant,
    known: bool,
    /// Times that the disk has stalled.
    pub count: u64,
}

impl Stall {
    /// So many writes have been begun.
    pub fn begun(&mut self, now: Instant, writes: u64) {
        if self.waiting == 0 {
            self.since = now;
        }
        self.waiting += writes;
    }
    /// One has been answered, well or not.
    pub fn answered(&mut self, now: Instant) {
        self.waiting = self.waiting.saturating_sub(1);
        self.since = now;
        self.known = false;
    }
    /// This shard stood still until now: so the answers could not be read.
    pub fn stood_still(&mut self, now: Instant) {
        self.since = now;
    }
    /// To be called when time has passed.
    pub fn look(&mut self, now: Instant) {
        if !self.known && self.lasts(now) {
            self.known = true;
            self.count += 1;
        }
    }
    pub fn lasts(&self, now: Instant) -> bool {
        self.waiting > 0 && now.since(self.since) >= REPLICA_LATE
    }
    /// As of the last look.
    pub fn is_known(&self) -> bool {
        self.known
    }
    /// When to look.
    pub fn next_deadline(&self) -> Option<Instant> {
        (self.waiting > 0 && !self.known).then(|| self.since + REPLICA_LATE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(millis)
    }

    #[test]
    fn a_disk_that_answers_now_and_then_has_not_stalled_and_one_that_answers_again_is_well() {
        let mut stall = Stall::default();
        assert_eq!(stall.next_deadline(), None);
        stall.begun(at(1_000), 3);
        stall.answered(at(1_200));
        assert!(!stall.lasts(at(1_400)), "slow, but there");
        assert_eq!(stall.next_deadline(), Some(at(1_500)));
        stall.look(at(1_500));
        assert!(stall.is_known() && stall.lasts(at(9_000)));
        assert_eq!((stall.next_deadline(), stall.count), (None, 1));
        stall.answered(at(9_000));
        assert!(!stall.is_known() && !stall.lasts(at(9_000)));
        stall.answered(at(9_001));
        stall.look(at(20_000));
        assert_eq!((stall.next_deadline(), stall.count), (None, 1), "nothing waits");
        stall.begun(at(30_000), 1);
        assert!(!stall.lasts(at(30_100)), "what was before does not count");
    }
}
