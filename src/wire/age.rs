//! How long a frame was on its way.
//!
//! A frame says how much of its deadline is left, as its sender reckoned it. What waits after that, in a queue of the
//! sender, on a slow link, or in the socket of a process that stands still, has less left than it says. So a frame
//! carries the sender's clock as well. The two clocks of a connection begin anywhere, but what one shows more than the
//! other stays the same: the least difference of a connection is that of the frame that was quickest, and what lies
//! above it is time in which a frame waited.
//!
//! The HELLO is the first to tell the clock. Its sender gives up after a second without an answer and says nothing
//! before it, so a HELLO that has waited itself makes the frames after it a second younger than they are, at worst, and
//! only until one comes without a wait.
//!
//! Clocks do not keep pace for ever. While frames come, the least difference is that of the last
//! `WINDOW` or two; over a silence it may grow by `DRIFT`.

use super::{Frame, Header};
use crate::types::Instant;
use std::time::Duration;

/// Time with frames after which the least difference of before is forgotten. A silence counts for [`SILENCE_MAX`] at
/// most: what comes after it may have waited, all of it.
const WINDOW: Duration = Duration::from_secs(20);
const SILENCE_MAX: Duration = Duration::from_secs(1);
/// The pace of two clocks may differ by one in so many.
const DRIFT: i64 = 10_000;

/// A clock as a frame carries it: milliseconds, of which the lower 32 bits count.
pub fn clock(now: Instant) -> u32 {
    (now.0 / 1_000_000) as u32
}

/// When a frame was sent by this very process, which has one clock.
pub fn sent_by_own_clock(header: &Header, now: Instant) -> Instant {
    let waited = header.clock.map_or(0, |sent| clock(now).wrapping_sub(sent) as i32);
    now - Duration::from_millis(waited.max(0) as u64)
}

/// What the frames of one connection tell of its two clocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Age {
    known: Option<Known>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Known {
    /// The first difference of the clocks, in milliseconds. The others are counted from it, in nanoseconds.
    first: u32,
    /// The least of this window, and of the one before.
    least: [i64; 2],
    /// Time with frames in this window.
    window: Duration,
    last: Instant,
}

impl Age {
    /// `hello`: what the other side's HELLO has told, if it tells its clock.
    pub fn new(hello: Option<u32>, now: Instant) -> Age {
        let mut age = Age::default();
        if let Some(sent) = hello {
            age.waited(sent, now);
        }
        age
    }
    /// When a frame that is read now was sent, by the own clock; now, if it does not tell its sender's.
    pub fn sent(&mut self, frame: &Frame, now: Instant) -> Instant {
        frame.header().clock.map_or(now, |sent| now - self.waited(sent, now))
    }
    /// What lies above the least difference.
    fn waited(&mut self, sent: u32, now: Instant) -> Duration {
        let difference = clock(now).wrapping_sub(sent);
        let known =
            self.known.get_or_insert(Known { first: difference, least: [0; 2], window: Duration::ZERO, last: now });
        let silence = now.since(known.last);
        let drifted = silence.as_nanos() as i64 / DRIFT;
        let difference = i64::from(difference.wrapping_sub(known.first) as i32) * 1_000_000;
        known.least = known.least.map(|least| least + drifted);
        known.window += silence.min(SILENCE_MAX);
        if known.window >= WINDOW {
            known.window = Duration::ZERO;
            known.least = [difference, known.least[0]];
        }
        known.least[0] = known.least[0].min(difference);
        known.last = now;
        let least = known.least[0].min(known.least[1]);
        Duration::from_nanos((difference - least) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant(millis * 1_000_000)
    }
    fn millis(age: &mut Age, sent: u64, read: u64) -> u128 {
        age.waited(clock(at(sent)), at(read)).as_millis()
    }

    #[test]
    fn what_waited_in_the_socket_of_a_process_that_stood_still_is_as_old_as_it_is() {
        for (theirs, ours) in [(0, 0), (900_000_000, 5), (5, 900_000_000), (u64::from(u32::MAX) - 40, 7)] {
            let mut age = Age::new(Some(clock(at(theirs))), at(ours + 3));
            assert_eq!(millis(&mut age, theirs + 10, ours + 12), 0, "quicker than the HELLO");
            assert!((2..=3).contains(&millis(&mut age, theirs + 20, ours + 25)));
            // The receiver stands still from here on, for seven seconds.
            assert!((6_970..=6_980).contains(&millis(&mut age, theirs + 50, ours + 7_030)));
            assert!((970..=980).contains(&millis(&mut age, theirs + 6_050, ours + 7_031)));
            assert_eq!(millis(&mut age, theirs + 7_040, ours + 7_042), 0);
        }
    }

    #[test]
    fn clocks_that_do_not_keep_pace_age_nothing() {
        // A clock is slewed by four percent for two minutes: at worst what two windows make of it.
        let mut age = Age::default();
        let worst = (0..1_200).map(|step| millis(&mut age, step * 100, step * 104)).max();
        assert!(worst.is_some_and(|worst| worst <= 1_700), "{worst:?}");
        // Nobody speaks for a day, and the clocks differ by 50 millionths.
        let mut age = Age::new(Some(0), at(0));
        assert_eq!(millis(&mut age, 86_400_000, 86_404_320), 0);
        assert!(millis(&mut age, 86_401_000, 86_412_321) > 4_000, "and what waits after that is known");
    }

    #[test]
    fn standing_still_again_and_again_makes_nothing_young() {
        let mut age = Age::new(Some(0), at(1));
        for round in 1..100u64 {
            let start = round * 10_000;
            // Nine seconds of each ten are slept through.
            for sent in (0..9_000).step_by(500) {
                let waited = millis(&mut age, start + sent, start + 9_000);
                assert!(waited as u64 + 20 >= 9_000 - sent, "round {round}: {waited} of {}", 9_000 - sent);
            }
            assert!(millis(&mut age, start + 9_500, start + 9_501) < 200);
        }
    }
}
