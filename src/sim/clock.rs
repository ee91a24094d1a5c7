//! A node's own clock: another origin and another pace than true (virtual) time.

use crate::types::Instant;

/// Parts of a million.
const MILLION: i128 = 1_000_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeClock {
    /// True time at which the local clock showed `origin`.
    pub started: Instant,
    pub origin: Instant,
    /// How much faster than true time, in millionths; above -1,000,000.
    pub drift_ppm: i32,
}

impl NodeClock {
    /// What the node's clock shows at this true time.
    pub fn local(&self, now: Instant) -> Instant {
        let elapsed = i128::from(now.0) - i128::from(self.started.0);
        let shown = elapsed * (MILLION + i128::from(self.drift_ppm)) / MILLION;
        Instant((i128::from(self.origin.0) + shown).clamp(0, i128::from(u64::MAX)) as u64)
    }
    /// The first true time at which the node's clock shows at least `local`.
    pub fn true_time(&self, local: Instant) -> Instant {
        if local == Instant::NEVER {
            return Instant::NEVER;
        }
        let shown = i128::from(local.0) - i128::from(self.origin.0);
        let pace = MILLION + i128::from(self.drift_ppm);
        let elapsed = (shown * MILLION + pace - 1).div_euclid(pace);
        Instant((i128::from(self.started.0) + elapsed).clamp(0, i128::from(u64::MAX)) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_and_true_time_agree() {
        for drift_ppm in [-300, 0, 7, 500] {
            let clock = NodeClock { started: Instant(5_000), origin: Instant(77_000_000), drift_ppm };
            for now in [5_000, 6_001, 1_000_000_007, 90_000_000_000_123] {
                let local = clock.local(Instant(now));
                let back = clock.true_time(local);
                assert!(clock.local(back) >= local && back.0.abs_diff(now) <= 1, "{drift_ppm} {now} {back:?}");
            }
        }
        let clock = NodeClock { started: Instant(0), origin: Instant(0), drift_ppm: 5 };
        assert_eq!(clock.true_time(Instant::NEVER), Instant::NEVER);
    }
}
