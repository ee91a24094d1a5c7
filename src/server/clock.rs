//! Monotonic time of the machine, as the protocol counts it: nanoseconds since the process first asked.

use crate::types::Instant;
use std::{sync::OnceLock, time::SystemTime};

/// Now. All cores of the process count from the same origin.
pub fn now() -> Instant {
    static ORIGIN: OnceLock<std::time::Instant> = OnceLock::new();
    let origin = *ORIGIN.get_or_init(std::time::Instant::now);
    // Beginning at 1 s keeps "a little earlier than now" above zero.
    Instant(1_000_000_000 + origin.elapsed().as_nanos() as u64)
}

/// Nanoseconds since 1970, 0 when the clock is set before that.
pub fn wall() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
