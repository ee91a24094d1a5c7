//! Lets writes in no faster than the work that they leave behind is done.
//!
//! Three things grow with writes and shrink with background work: memtables, tables of level 0, bytes of segments that
//! are dead. Each has a pressure: 0 where nothing is to be done about writes, 1 where a byte may come in only for a
//! byte that is worked off, more beyond. A write is charged its bytes times the pressure, work pays, and writes wait
//! while more than a little is owed. So they slow down by as much as is needed and in small steps, and as long as the
//! work goes on none waits for long. No clock is needed.
//!
//! Nobody waits for work that nobody does: a meter is looked at only while its work is under way.

use std::cell::Cell;

/// Pressure beyond which nothing gets slower.
const PRESSURE_MAX: f64 = 4.0;

/// Bytes that writes owe to one kind of work.
#[derive(Default)]
pub struct Meter {
    owed: Cell<f64>,
    /// The number of flushes, compactions or collections that are working this off now.
    at_work: Cell<u32>,
}
impl Meter {
    pub fn begin(&self) {
        self.at_work.set(self.at_work.get() + 1);
    }
    pub fn end(&self) {
        self.at_work.set(self.at_work.get().saturating_sub(1));
    }
    pub fn is_at_work(&self) -> bool {
        self.at_work.get() > 0
    }
    pub fn charge(&self, bytes: u64, pressure: f64) {
        let owed = if pressure > 0.0 { self.owed.get() + bytes as f64 * pressure.min(PRESSURE_MAX) } else { 0.0 };
        self.owed.set(owed);
    }
    pub fn pay(&self, bytes: u64) {
        self.owed.set((self.owed.get() - bytes as f64).max(0.0));
    }
    /// Whether a write may come in.
    pub fn is_open(&self, pressure: f64, credit: u64) -> bool {
        pressure <= 0.0 || !self.is_at_work() || self.owed.get() <= credit as f64
    }
}

/// The debts of writes, one meter for each kind of background work that they cause.
#[derive(Default)]
pub struct Admission {
    pub memtables: Meter,
    pub level0: Meter,
    pub segments: Meter,
}

/// The pressure of each kind of background work: 0 or less where it keeps up, 1 where a written byte may come in only
/// for a byte that is worked off.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Pressure {
    pub memtables: f64,
    pub level0: f64,
    pub segments: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_slow_down_by_as_much_as_is_owed() {
        let meter = Meter::default();
        meter.begin();
        // A quarter of what comes in is owed: four times what is worked off may come in.
        let (mut written, mut worked) = (0u64, 0u64);
        for _ in 0..1000 {
            while meter.is_open(0.25, 1000) {
                meter.charge(100, 0.25);
                written += 100;
            }
            meter.pay(50);
            worked += 50;
        }
        assert!(written.abs_diff(4 * worked) < 10_000, "{written} written, {worked} worked off");
    }

    #[test]
    fn nobody_waits_without_pressure_or_without_work() {
        let meter = Meter::default();
        meter.charge(1 << 30, 9.0);
        assert!(meter.is_open(9.0, 10), "the work is not under way");
        meter.begin();
        assert!(!meter.is_open(9.0, 10));
        assert!(meter.is_open(0.0, 10));
        meter.charge(5, 0.0);
        assert!(meter.is_open(9.0, 10), "what was owed is forgotten once there is no pressure");
    }
}
