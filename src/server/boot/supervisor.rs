//! What the process hears and says outside its ports: signals, and the service supervisor behind `NOTIFY_SOCKET`.
//!
//! The supervisor is told `READY=1` when the node serves, `STOPPING=1` when it begins to stop, and, where it asks for
//! that (`WatchdogSec=` of a unit file), `WATCHDOG=1` while every core turns: a core that stands still for too long is
//! then ended and started again by whoever watches.

use super::StartError;
use crossbeam_channel::{Receiver, Sender, unbounded};
use sd_notify::NotifyState;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2},
    iterator::Signals,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// The service supervisor is told that all is well so many times in the time that it waits.
const WATCHDOG_TIMES: u32 = 4;

/// Signals that ask for a stop, as a channel. Those that other programs are told by to read their configuration or
/// their log file anew, and SIGHUP of a terminal that was closed, mean nothing to a node: they are noted and do not end
/// it.
pub(super) fn catch_signals() -> Result<Receiver<i32>, StartError> {
    let (sender, receiver) = unbounded();
    let all = [SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2];
    let mut signals = Signals::new(all).map_err(|e| StartError::Failed(format!("signals: {e}")))?;
    let listen = move || signals.forever().try_for_each(|signal| pass_on(signal, &sender));
    spawn("signals", listen).map(|()| receiver)
}

/// An error when nobody listens to stops any more: the process is ending.
fn pass_on(signal: i32, stops: &Sender<i32>) -> Result<(), crossbeam_channel::SendError<i32>> {
    match signal {
        SIGTERM | SIGINT => stops.send(signal),
        _ => {
            tracing::info!(signal, "a signal that means nothing here; SIGTERM stops the node in order");
            Ok(())
        }
    }
}

fn spawn<T>(name: &str, body: impl FnOnce() -> T + Send + 'static) -> Result<(), StartError>
where
    T: Send + 'static,
{
    let thread = thread::Builder::new().name(name.into()).spawn(body);
    thread.map(drop).map_err(|e| StartError::Failed(format!("cannot start a thread: {e}")))
}

/// Tells the service supervisor, if there is one. It is no reason to end when that fails.
pub(super) fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service supervisor could not be told");
    }
}

/// Feeds the watchdog of the service supervisor, if it has one, from now until the process ends.
pub(super) fn feed_watchdog(cores: Vec<Arc<AtomicU64>>) -> Result<(), StartError> {
    let Some(patience) = sd_notify::watchdog_enabled() else { return Ok(()) };
    let pause = (patience / WATCHDOG_TIMES).max(Duration::from_millis(1));
    let mut watched = Watched::new(cores, Instant::now());
    spawn("watchdog", move || {
        loop {
            thread::sleep(pause);
            match watched.look(Instant::now(), patience / 2) {
                None => tell(NotifyState::Watchdog),
                Some(core) => {
                    tracing::error!(core, "this core stands still: the service supervisor is not told to wait")
                }
            }
        }
    })
}

/// The turns of all cores as they were last seen.
struct Watched {
    cores: Vec<(Arc<AtomicU64>, u64, Instant)>,
}
impl Watched {
    fn new(cores: Vec<Arc<AtomicU64>>, now: Instant) -> Watched {
        Watched { cores: cores.into_iter().map(|turns| (turns, u64::MAX, now)).collect() }
    }
    /// A core that has not turned for so long, if there is one. The ticker wakes each core several times a second, also
    /// one that has nothing to do.
    fn look(&mut self, now: Instant, patience: Duration) -> Option<usize> {
        for (turns, seen, moved) in &mut self.cores {
            let count = turns.load(Ordering::Relaxed);
            if count != *seen {
                (*seen, *moved) = (count, now);
            }
        }
        self.cores.iter().position(|(_, _, moved)| now.duration_since(*moved) > patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_that_does_not_turn_is_named() {
        let (a, b) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut watched = Watched::new(vec![a.clone(), b.clone()], start);
        let patience = Duration::from_secs(10);
        assert_eq!(watched.look(at(0), patience), None);
        for second in 1..=10 {
            a.fetch_add(1, Ordering::Relaxed);
            assert_eq!(watched.look(at(second), patience), None, "{second}");
        }
        a.fetch_add(1, Ordering::Relaxed);
        assert_eq!(watched.look(at(11), patience), Some(1));
        b.fetch_add(1, Ordering::Relaxed);
        assert_eq!(watched.look(at(12), patience), None);
    }
}
