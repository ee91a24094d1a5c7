//! Time in which this process stood still, stopped or starved, noticed by itself.
//!
//! A request that lay in a socket meanwhile is of an age that nobody knows, up to that of the standstill: whoever does
//! not tell his clock (HTTP, the first revision of the client protocol) has the whole of it taken off what he was
//! given, if his request could be read when the process went on. So nothing is begun for somebody who may have gone.
//!
//! The ticker's thread, which does nothing but sleep, notes when it comes late. A core that goes on before it does sees
//! that the last note is old.

use super::clock;
use crate::types::Instant;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// A ticker that is later than this says that the process stood still.
const NOTICED: Duration = Duration::from_millis(200);

/// When the ticker came last, in nanoseconds of [`clock::now`]; 0 before it ever did.
static TICKED: AtomicU64 = AtomicU64::new(0);
/// Standstills so far, and how long the latest took.
static COUNT: AtomicU64 = AtomicU64::new(0);
static LATEST: AtomicU64 = AtomicU64::new(0);

/// The ticker of any node of the process comes by.
pub fn tick() {
    let now = clock::now();
    let still = now.since(Instant(TICKED.load(Ordering::Acquire)));
    if TICKED.load(Ordering::Acquire) > 0 && still > NOTICED {
        LATEST.store(still.as_nanos() as u64, Ordering::Release);
        COUNT.fetch_add(1, Ordering::AcqRel);
    }
    TICKED.store(now.0, Ordering::Release);
}

/// A standstill, by its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standstill {
    pub number: u64,
    pub lasted: Duration,
}

/// The latest, with one that has just ended and that the ticker has not noted yet.
pub fn latest(now: Instant) -> Standstill {
    let ticked = TICKED.load(Ordering::Acquire);
    let (number, lasted) = (COUNT.load(Ordering::Acquire), Duration::from_nanos(LATEST.load(Ordering::Acquire)));
    let still = now.since(Instant(ticked));
    if ticked > 0 && still > NOTICED {
        Standstill { number: number + 1, lasted: still }
    } else {
        Standstill { number, lasted }
    }
}

/// What of a connection's bytes may have waited through a standstill.
#[derive(Clone, Copy, Debug)]
pub struct Waited {
    known: Standstill,
    /// Bytes that are still to be read of those that could be read when the process went on.
    left: usize,
    latest: Duration,
}

impl Waited {
    /// Of a connection that has just been accepted. It may have waited itself, if the process has just gone on.
    pub fn new(now: Instant) -> Waited {
        let known = latest(now);
        // The ticker has noted no more than these; one beyond has just ended, and the connection may have waited
        // through it.
        let number = known.number.min(COUNT.load(Ordering::Acquire));
        Waited { known: Standstill { number, ..known }, left: 0, latest: Duration::ZERO }
    }
    /// So many bytes have been read; `unread` says how many more could be.
    pub fn read(&mut self, now: Instant, bytes: usize, unread: impl FnOnce() -> usize) {
        let last = latest(now);
        if last.number != self.known.number {
            (self.known, self.left) = (last, bytes + unread());
        }
        self.latest = if self.left > 0 { self.known.lasted } else { Duration::ZERO };
        self.left = self.left.saturating_sub(bytes);
    }
    /// How long what was read last may have waited.
    pub fn latest(&self) -> Duration {
        self.latest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_read_when_the_process_went_on_may_have_waited_through_it_all() {
        let mut waited =
            Waited { known: Standstill { number: u64::MAX, ..latest(clock::now()) }, left: 0, latest: Duration::ZERO };
        waited.known.lasted = Duration::from_secs(7);
        // As if this standstill had been met with the first of these bytes.
        waited.left = 300;
        waited.known.number = latest(clock::now()).number;
        let mut read = |bytes| {
            waited.read(clock::now(), bytes, || unreachable!("nothing has stood still since"));
            waited.latest().as_secs()
        };
        assert_eq!([read(100), read(100), read(200), read(1)], [7, 7, 7, 0]);
    }
}
