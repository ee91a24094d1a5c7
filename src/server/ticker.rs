//! A thread that keeps executors from oversleeping.
//!
//! An executor can park with work to do when its preempt timer has fired at an unlucky moment, above all on busy CPUs.
//! So while a core has been at work lately, it is woken every few milliseconds; one that does nothing is woken ever
//! more rarely.

use super::standstill;
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::{
    future::poll_fn,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Poll, Waker},
    thread,
    time::Duration,
};

/// Time between two looks.
const TICK: Duration = Duration::from_millis(5);
/// Ticks for which a core counts as busy after its last turn.
const BUSY_TICKS: u32 = 4;
/// After that it is woken at every power of two, and once in so many ticks.
const IDLE_TICKS: u32 = 100;

/// A core's end: counts its turns, and lets itself be woken.
#[derive(Clone)]
pub struct Pulse {
    turns: Arc<AtomicU64>,
    sender: Sender<(Waker, Arc<AtomicU64>)>,
}

impl Pulse {
    /// Where the core counts its turns; only it writes there.
    pub fn turns(&self) -> Arc<AtomicU64> {
        self.turns.clone()
    }
    /// A task that does nothing but be woken. Runs for ever. To be spawned on an executor before that runs: it could
    /// park for ever before it has run anything.
    pub async fn keep(self) {
        let mut told = false;
        poll_fn(|cx| {
            if !told {
                told = true;
                // A ticker that has ended wakes nobody any more: the node is stopping.
                drop(self.sender.send((cx.waker().clone(), self.turns.clone())));
            }
            Poll::<()>::Pending
        })
        .await;
    }
}

pub struct Ticker {
    sender: Sender<(Waker, Arc<AtomicU64>)>,
    stop: Arc<AtomicBool>,
}

struct Watched {
    waker: Waker,
    turns: Arc<AtomicU64>,
    seen: u64,
    /// Ticks since its last turn.
    quiet: u32,
}

impl Ticker {
    pub fn start() -> io::Result<Ticker> {
        let (sender, arrivals) = unbounded();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        thread::Builder::new().name("ticker".into()).spawn(move || tick(&arrivals, &stopped))?;
        Ok(Ticker { sender, stop })
    }
    pub fn pulse(&self) -> Pulse {
        Pulse { turns: Arc::default(), sender: self.sender.clone() }
    }
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn tick(arrivals: &Receiver<(Waker, Arc<AtomicU64>)>, stopped: &AtomicBool) {
    let mut cores: Vec<Watched> = Vec::new();
    while !stopped.load(Ordering::Relaxed) {
        // Cheaper than waiting on a channel with a timeout, which spins first.
        thread::sleep(TICK);
        standstill::tick();
        cores.extend(arrivals.try_iter().map(|(waker, turns)| Watched { waker, turns, seen: 0, quiet: 0 }));
        for core in &mut cores {
            let turns = core.turns.load(Ordering::Relaxed);
            core.quiet = if turns == core.seen { core.quiet.saturating_add(1) } else { 0 };
            core.seen = turns;
            if core.quiet < BUSY_TICKS || core.quiet.is_power_of_two() || core.quiet.is_multiple_of(IDLE_TICKS) {
                core.waker.wake_by_ref();
            }
        }
    }
}
