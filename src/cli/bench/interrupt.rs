//! Ctrl-C ends a run early: what has been measured until then is reported. A second one ends the process.

use super::BenchError;
use signal_hook::{consts::SIGINT, flag};
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

static CAME: OnceLock<Arc<AtomicBool>> = OnceLock::new();
/// The exit code that shells give: 128 and the number of the signal.
const EXIT_CODE: i32 = 128 + SIGINT;

/// Listens from now on.
pub fn listen() -> Result<(), BenchError> {
    let came = CAME.get_or_init(Arc::default);
    let failed = |e| BenchError::Io("signals", e);
    // In this order: the first signal finds the flag down and raises it, the second finds it up.
    flag::register_conditional_shutdown(SIGINT, EXIT_CODE, came.clone()).map_err(failed)?;
    flag::register(SIGINT, came.clone()).map(drop).map_err(failed)
}

/// Whether it has come.
pub fn came() -> bool {
    CAME.get().is_some_and(|came| came.load(Ordering::Relaxed))
}
