//! Runs compaction: the slice that needs it most, one at a time; [`super::compaction`] says what and does it.

use super::{
    compaction::{self, Choice, Outcome, TableSet},
    disk::Disk,
    error::EngineError,
    flush::{self, commit},
    manifest::Change,
    reserve,
    store::{Slice, Store, count},
    table::{Table, directory, path},
    wal::log,
};
use std::rc::Rc;

/// Compacts whenever some slice needs it, until the engine ends.
pub async fn run<D: Disk>(store: Rc<Store<D>>) {
    loop {
        let next = store.work.until(|| if store.ending() { Some(None) } else { choose(&store).map(Some) }).await;
        let Some((slice, choice)) = next else { break };
        let level0 = &store.admission.level0;
        level0.at_work.set(true);
        // A record in memory takes about twice the bytes that it takes in a table.
        let owed = 2 * choice.bytes();
        let compacted = compact(&store, &slice, choice).await;
        level0.pay(owed);
        level0.at_work.set(false);
        store.level0_changed();
        store.room.wake();
        match compacted {
            Ok(()) => {}
            // Nothing has changed: the next write that finds space starts it again.
            Err(EngineError::Full) => reserve::go_on(&store).await,
            Err(EngineError::Damaged(_)) => {
                count(&store.counters.damaged_reads, 1);
                slice.damaged.set(true);
            }
            Err(error) => store.fail(&error),
        }
        store.work.wake();
    }
}

fn choose<D: Disk>(store: &Store<D>) -> Option<(Rc<Slice<D>>, Choice<D>)> {
    if store.flush_blocked.get() {
        return None;
    }
    let mut most: Option<(f64, &Rc<Slice<D>>)> = None;
    for slice in store.slices().filter(|s| !s.damaged.get()) {
        let pressure = slice.tables.borrow().pressure(&store.options);
        if pressure >= 1.0 && most.is_none_or(|(p, _)| pressure > p) {
            most = Some((pressure, slice));
        }
    }
    let Some((_, slice)) = most else { return choose_for_space(store) };
    match compaction::choose(&slice.tables.borrow(), &store.options) {
        Choice::Rest => None,
        choice => Some((slice.clone(), choice)),
    }
}

/// While space is wanted, level 0 of every slice goes down, however small it is: what it covers becomes known as dead.
fn choose_for_space<D: Disk>(store: &Store<D>) -> Option<(Rc<Slice<D>>, Choice<D>)> {
    let position = store.reclaim.get()?;
    for slice in store.slices().filter(|s| !s.damaged.get()) {
        match compaction::choose_for_space(&slice.tables.borrow(), &store.options) {
            Choice::Rest => {}
            choice => return Some((slice.clone(), choice)),
        }
    }
    if store.flushed_position() >= position && flush::is_idle(store) && !log::retire(store) {
        store.reclaim.set(None);
        store.work.wake();
    }
    None
}

async fn compact<D: Disk>(store: &Store<D>, slice: &Rc<Slice<D>>, choice: Choice<D>) -> Result<(), EngineError> {
    let ids = slice.clone();
    let next_id = move || ids.take_table_id();
    let outcome = compaction::run(&store.disk, slice.id, choice, &store.options, next_id).await?;
    count(&store.counters.device_bytes_written, outcome.written_bytes);
    let added = open_added(store, slice, &outcome).await?;
    let _held = slice.latch.hold().await;
    store.disk.sync_dir(&directory(slice.id)).await?;
    let change = Change {
        added: outcome.added.clone(),
        removed: outcome.removed.iter().map(|t| t.id).collect(),
        next_table: slice.next_table.get(),
        ..Change::default()
    };
    commit(store, slice, &change).await?;
    Rc::<TableSet<D>>::make_mut(&mut slice.tables.borrow_mut()).apply(added, &outcome.removed);
    count(&store.counters.compactions, 1);
    for id in outcome.obsolete() {
        store.disk.remove(&path(slice.id, id)).await?;
    }
    Ok(())
}

async fn open_added<D: Disk>(
    store: &Store<D>,
    slice: &Slice<D>,
    outcome: &Outcome,
) -> Result<Vec<Rc<Table<D>>>, EngineError> {
    let mut added = Vec::with_capacity(outcome.added.len());
    for meta in &outcome.added {
        let moved = slice.tables.borrow().tables().find(|t| t.meta().id == meta.id).cloned();
        let table = match moved {
            Some(table) if table.meta() == meta => table,
            _ => Table::open(&store.disk, meta.clone()).await?,
        };
        added.push(table);
    }
    Ok(added)
}
