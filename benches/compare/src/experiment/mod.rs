//! One question a file. Each gives its tables.

pub mod gets;
pub mod memory;
pub mod open;
pub mod overwrite;
pub mod puts;
pub mod tails;

use crate::{
    Fallible,
    records::Order,
    subject::Store,
    work::{Action, Outcome, Stream, Work},
};
use std::time::Duration;

/// Longer than any phase that is bounded by its requests.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// One stream alone; its outcome.
fn only(store: &mut dyn Store, stream: Stream, limit: Duration) -> Fallible<Outcome> {
    Ok(store.run(&Work::of(stream, limit))?.remove(0))
}

/// Puts the keys `0..keys`, acknowledged as each engine likes best.
fn load(store: &mut dyn Store, keys: u64) -> Fallible<Outcome> {
    let (action, workers) = (Action::Put { version: 0, durable: false }, store.loaders());
    only(store, Stream { action, workers, order: Order::Ascending, operations: keys, rate: None }, FOR_EVER)
}
