//! One question a file. Each gives its tables.

pub mod gets;
pub mod memory;
pub mod open;
pub mod overwrite;
pub mod puts;
pub mod tails;

use crate::{
    Fallible, device,
    records::Order,
    report::Report,
    say,
    subject::Store,
    work::{Action, Outcome, Stream, Work},
};
use std::time::Duration;

/// Longer than any phase that is bounded by its requests.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// How often a turn is taken that does not count.
const TURNS: usize = 6;

/// One engine's turn. A process that was stopped meanwhile has measured its own pause: the turn is taken again.
fn turn(report: &mut Report, mut body: impl FnMut(&mut Report) -> Fallible<()>) -> Fallible<()> {
    for _ in 0..TURNS {
        let (size, stops) = (report.size(), device::stops());
        body(report)?;
        if device::stops() == stops {
            return Ok(());
        }
        report.cut(&size);
        say("  the process was stopped meanwhile: once more");
    }
    Err("the process is stopped again and again".into())
}

/// One stream alone; its outcome.
fn only(store: &mut dyn Store, stream: Stream, limit: Duration) -> Fallible<Outcome> {
    Ok(store.run(&Work::of(stream, limit))?.remove(0))
}

/// Puts the keys `0..keys`, acknowledged as each engine likes best.
fn load(store: &mut dyn Store, keys: u64) -> Fallible<Outcome> {
    let (action, workers) = (Action::Put { version: 0, durable: false }, store.loaders());
    only(store, Stream { action, workers, order: Order::Ascending, operations: keys, rate: None }, FOR_EVER)
}
