//! Time in which this process stood still, stopped or starved, noticed by itself.
//!
//! A request that lay in a socket meanwhile is of an age that nobody knows, up to that of the standstill: whoever does
//! not tell his clock (HTTP, the first revision of the client protocol) has the whole of it taken off what he was
//! given, if his request could be read when the process went on. So nothing is begun for somebody who may have gone.
//!
//! A connection that is accepted right after a standstill may have waited in the kernel through it, and its client may
//! have gone; or it may be new. There the kernel is asked how long ago its last bytes came.
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
/// A connection that is accepted so soon after a standstill may have waited through it: by then the cores have taken
/// what the kernel kept for them.
const BACKLOG_TAKEN_WITHIN: Duration = Duration::from_secs(1);

/// When the ticker came last, in nanoseconds of [`clock::now`]; 0 before it ever did.
static TICKED: AtomicU64 = AtomicU64::new(0);
/// Standstills so far, and how long the latest took.
static COUNT: AtomicU64 = AtomicU64::new(0);
static LATEST: AtomicU64 = AtomicU64::new(0);
/// When the latest was noted, in nanoseconds of [`clock::now`].
static ENDED: AtomicU64 = AtomicU64::new(0);

/// The ticker of any node of the process comes by.
pub fn tick() {
    let now = clock::now();
    let still = now.since(Instant(TICKED.load(Ordering::Acquire)));
    if TICKED.load(Ordering::Acquire) > 0 && still > NOTICED {
        LATEST.store(still.as_nanos() as u64, Ordering::Release);
        ENDED.store(now.0, Ordering::Release);
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
    /// Nothing has been read of a connection that was accepted right after the standstill.
    fresh: bool,
}

impl Waited {
    /// What is known of a connection that has just been accepted. It may have waited itself, if the process has just
    /// gone on.
    pub fn new(now: Instant) -> Waited {
        let known = latest(now);
        // The ticker has noted no more than these; one beyond has just ended, and the connection may have waited
        // through it.
        let number = known.number.min(COUNT.load(Ordering::Acquire));
        let fresh = known.number > 0 && now.since(Instant(ENDED.load(Ordering::Acquire))) < BACKLOG_TAKEN_WITHIN;
        Waited { known: Standstill { number, ..known }, left: 0, latest: Duration::ZERO, fresh }
    }
    /// So many bytes have been read; `unread` says how many more could be, `age` how long ago the last bytes came.
    pub fn read(&mut self, now: Instant, bytes: usize, unread: impl FnOnce() -> usize, age: impl FnOnce() -> Duration) {
        let last = latest(now);
        let fresh = std::mem::take(&mut self.fresh);
        if last.number != self.known.number {
            (self.known, self.left) = (last, bytes + unread());
        } else if fresh {
            (self.known.lasted, self.left) = (last.lasted.min(age()), bytes + unread());
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
        let mut waited = Waited { known: latest(clock::now()), left: 0, latest: Duration::ZERO, fresh: false };
        waited.known.lasted = Duration::from_secs(7);
        // As if this standstill had been met with the first of these bytes.
        waited.left = 300;
        waited.known.number = latest(clock::now()).number;
        let mut read = |bytes| {
            let none = || unreachable!("nothing has stood still since");
            waited.read(clock::now(), bytes, none, || unreachable!("it is not fresh"));
            waited.latest().as_secs()
        };
        assert_eq!([read(100), read(100), read(200), read(1)], [7, 7, 7, 0]);
    }

    #[test]
    fn what_came_with_a_connection_that_is_accepted_afterwards_is_as_old_as_the_kernel_says() {
        let lasted = latest(clock::now()).lasted;
        let age = lasted / 2;
        let mut waited = Waited { known: latest(clock::now()), left: 0, latest: Duration::ZERO, fresh: true };
        waited.read(clock::now(), 100, || 50, || age);
        assert_eq!(waited.latest(), age);
        let mut read = |bytes| {
            waited.read(clock::now(), bytes, || unreachable!("asked once"), || unreachable!("asked once"));
            waited.latest()
        };
        assert_eq!([read(50), read(1)], [age, Duration::ZERO]);
    }
}
