//! How fast requests end, so that those which cannot end in time are refused at once.
//!
//! A queue that is longer than what is done within a deadline does work for askers who have gone: all wait, and none is served. So
//! while much is in hand, the pace of the last moments tells how long a newcomer would wait; one that would wait for more
//! than half of the time it has is told so while that still helps. With little in hand nothing is reckoned: a pace
//! measured while hardly anybody asked says nothing.

use crate::{limits::SHED_FROM, types::Instant};
use std::time::Duration;

/// A pace is taken over so long.
const WINDOW: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    since: Instant,
    ended: u64,
    /// Requests a second, over the last windows in which much was in hand.
    rate: Option<f64>,
}

impl Pace {
    /// A request has ended.
    pub fn ended(&mut self) {
        self.ended += 1;
    }
    /// Whether one more beside `in_hand` others is likely to end within `left`.
    pub fn allows(&mut self, now: Instant, in_hand: usize, left: Duration) -> bool {
        if in_hand < SHED_FROM {
            *self = Pace { since: now, ..Pace::default() };
            return true;
        }
        let elapsed = now.since(self.since);
        if elapsed >= WINDOW {
            let measured = self.ended as f64 / elapsed.as_secs_f64();
            let rate = self.rate.map_or(measured, |rate| (rate + measured) / 2.0);
            *self = Pace { since: now, ended: 0, rate: Some(rate) };
        }
        self.rate.is_none_or(|rate| in_hand as f64 <= rate * left.as_secs_f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An open loop of `offered` requests a second against a server of `capacity`: what ends within its deadline, a second.
    fn good(offered: u64, capacity: u64, deadline: Duration, shed: bool) -> u64 {
        let (mut pace, mut queue, mut good) = (Pace::default(), std::collections::VecDeque::new(), 0);
        let (seconds, step) = (20, Duration::from_micros(100));
        let (mut arrived, mut served) = (0, 0);
        for tick in 1..=seconds * 10_000 {
            let now = Instant(1_000_000_000) + step * tick as u32;
            while served < capacity * tick / 10_000 {
                served += 1;
                if let Some(until) = queue.pop_front() {
                    pace.ended();
                    good += u64::from(now <= until);
                }
            }
            while arrived < offered * tick / 10_000 {
                arrived += 1;
                if !shed || pace.allows(now, queue.len(), deadline) {
                    queue.push_back(now + deadline);
                }
            }
        }
        good / seconds
    }

    #[test]
    fn four_times_too_much_is_no_collapse() {
        for deadline in [Duration::from_millis(500), Duration::from_secs(5)] {
            assert!(good(16_000, 4_000, deadline, false) < 2_000, "without it there is a collapse");
            let kept = good(16_000, 4_000, deadline, true);
            assert!(kept > 3_800, "{kept} a second of 4,000");
        }
        assert!(good(3_900, 4_000, Duration::from_secs(1), true) > 3_850);
    }

    #[test]
    fn a_burst_after_quiet_is_taken() {
        let mut pace = Pace::default();
        let start = Instant(1_000_000_000);
        assert!(pace.allows(start, 3, Duration::from_secs(1)));
        pace.ended();
        let burst = start + Duration::from_secs(60);
        assert!(pace.allows(burst, 1, Duration::from_secs(1)));
        assert!((SHED_FROM..4 * SHED_FROM).all(|in_hand| pace.allows(burst, in_hand, Duration::from_secs(1))));
        // Nothing has ended since: now it is known to be stuck.
        assert!(!pace.allows(burst + WINDOW, SHED_FROM, Duration::from_secs(1)));
    }
}
