//! Runs compaction: the slice that needs it most, one at a time; [`super::compaction`] says what and does it.
//!
//! Tables that the opening could not read are first set aside for good, in the manifest: once others have been
//! compacted past them, they must not come back to their level. A table whose blocks turn out to be damaged is
//! salvaged.

use super::{
    compaction::{self, Choice, Outcome, TableSet, salvage::salvage},
    damage::{self, Damage},
    disk::Disk,
    error::EngineError,
    flush::{self, commit},
    manifest::Change,
    reserve,
    store::{Slice, Store, count},
    table::{ASIDE, Table, TableMeta, directory, path},
    types::{self, Durability, Write},
    wal::log,
};
use std::{collections::BTreeMap, rc::Rc};

/// Compactions of a slice in a row that may meet damage which is not found again.
pub(super) const STRIKES_MAX: u32 = 3;

/// Compacts whenever some slice needs it, until the engine ends.
pub async fn run<D: Disk>(store: Rc<Store<D>>) {
    loop {
        let next = store.work.until(|| if store.ending() { Some(None) } else { choose(&store).map(Some) }).await;
        let Some((slice, chore)) = next else { break };
        let result = match chore {
            Chore::SetAside => set_aside(&store, &slice).await,
            Chore::Compact(choice) => {
                let level0 = &store.admission.level0;
                level0.begin();
                // A record in memory takes about twice the bytes that it takes in a table.
                let owed = 2 * choice.bytes();
                let compacted = compact(&store, &slice, choice).await;
                level0.pay(owed);
                level0.end();
                store.level0_changed();
                store.bound_table_memory();
                store.room.wake();
                compacted
            }
        };
        match result {
            Ok(()) => slice.strikes.set(0),
            // Nothing has changed: the next write that finds space starts it again.
            Err(EngineError::Full) => reserve::go_on(&store).await,
            Err(EngineError::Damaged(what)) => {
                store.met(Damage::of_work(&what));
                slice.strikes.set(slice.strikes.get() + 1);
            }
            Err(error) => store.fail(&error),
        }
        store.work.wake();
    }
}

enum Chore<D: Disk> {
    /// Record in the manifest that tables are set aside.
    SetAside,
    Compact(Choice<D>),
}

fn choose<D: Disk>(store: &Store<D>) -> Option<(Rc<Slice<D>>, Chore<D>)> {
    if store.flush_blocked.get() {
        return None;
    }
    let mut most: Option<(f64, &Rc<Slice<D>>)> = None;
    for slice in store.slices().filter(|s| s.strikes.get() < STRIKES_MAX) {
        if slice.tables.borrow().aside().iter().any(|table| table.level != ASIDE) {
            return Some((slice.clone(), Chore::SetAside));
        }
        let pressure = slice.tables.borrow().pressure(&store.options);
        if pressure >= 1.0 && most.is_none_or(|(p, _)| pressure > p) {
            most = Some((pressure, slice));
        }
    }
    let Some((_, slice)) = most else { return choose_for_space(store).or_else(|| choose_for_drops(store)) };
    match compaction::choose(&slice.tables.borrow(), &store.options) {
        Choice::Rest => None,
        choice => Some((slice.clone(), Chore::Compact(choice))),
    }
}

async fn set_aside<D: Disk>(store: &Store<D>, slice: &Rc<Slice<D>>) -> Result<(), EngineError> {
    let _held = slice.latch.hold().await;
    let aside = slice.tables.borrow().aside().to_vec();
    let added: Vec<_> = aside.into_iter().map(|table| TableMeta { level: ASIDE, ..table }).collect();
    let change = Change { added: added.clone(), next_table: slice.next_table.get(), ..Change::default() };
    commit(store, slice, &change).await?;
    added.into_iter().for_each(|table| Rc::make_mut(&mut slice.tables.borrow_mut()).set_aside(table));
    Ok(())
}

/// Compacts level 0 of some slice, however small it is, while space is wanted: the merge shows which records further
/// down are dead, so that their values can be collected.
fn choose_for_space<D: Disk>(store: &Store<D>) -> Option<(Rc<Slice<D>>, Chore<D>)> {
    let position = store.reclaim.get()?;
    for slice in store.slices().filter(|s| s.strikes.get() < STRIKES_MAX) {
        match compaction::choose_for_space(&slice.tables.borrow(), &store.options) {
            Choice::Rest => {}
            choice => return Some((slice.clone(), Chore::Compact(choice))),
        }
    }
    if store.flushed_position() >= position && flush::is_idle(store) && !log::retire(store) {
        store.reclaim.set(None);
        store.work.wake();
    }
    None
}

/// Rewrites a table that may hold dropped records, when there is nothing else to do. A drop whose last such table is
/// gone is forgotten.
fn choose_for_drops<D: Disk>(store: &Store<D>) -> Option<(Rc<Slice<D>>, Chore<D>)> {
    let ready = |s: &&Rc<Slice<D>>| s.strikes.get() < STRIKES_MAX && !s.drops.borrow().is_empty();
    for slice in store.slices().filter(ready) {
        // No compaction is under way that began before: every table that it could still write has been written.
        slice.drops.borrow_mut().settle(slice.in_tables.get(), slice.next_table.get());
        let Some(below) = slice.drops.borrow().rewrite_below() else { continue };
        match compaction::choose_for_drops(&slice.tables.borrow(), &store.options, below) {
            Choice::Rest => forget_drops(store, slice),
            choice => return Some((slice.clone(), Chore::Compact(choice))),
        }
    }
    None
}

fn forget_drops<D: Disk>(store: &Store<D>, slice: &Slice<D>) {
    if store.log.is_dropping(slice.id) {
        // Perhaps the same group, again: that drop is not to be forgotten.
        return;
    }
    let oldest = {
        let tables = slice.tables.borrow();
        // What is set aside may come back some day.
        let ids = tables.tables().map(|table| table.meta().id).chain(tables.aside().iter().map(|table| table.id));
        ids.min().unwrap_or(u64::MAX)
    };
    let keys = slice.drops.borrow_mut().take_spent(oldest);
    let forget = |key| Write { slice: slice.id, key, change: types::Change::Delete };
    let writes: Vec<_> = keys.into_iter().map(forget).collect();
    if !writes.is_empty() {
        // Nobody waits: without it, the next opening looks for dropped records once more.
        store.log.hot.push(writes, Durability::Sync, None, store.options.inline_value_bytes);
    }
}

async fn compact<D: Disk>(store: &Store<D>, slice: &Rc<Slice<D>>, choice: Choice<D>) -> Result<(), EngineError> {
    let ids = slice.clone();
    let next_id = move || ids.take_table_id();
    let (inputs, drops) = (choice.inputs(), slice.drops.borrow().clone());
    let outcome = match compaction::run(&store.disk, slice.id, choice, &store.options, &drops, next_id).await {
        Err(EngineError::Damaged(what)) => return salvage_all(store, slice, &inputs, what).await,
        result => result?,
    };
    count(&store.counters.device_bytes_written, outcome.written_bytes);
    let added = match open_added(store, slice, &outcome).await {
        Ok(added) => added,
        Err(error) => {
            // Nothing has changed: it is tried again.
            remove_added(store, slice, &outcome).await?;
            return Err(EngineError::Damaged(damage::text(&error)));
        }
    };
    let _held = slice.latch.hold().await;
    store.disk.sync_dir(&directory(slice.id)).await?;
    let lost = counted_as_live(store, slice, &outcome).await?;
    let change = Change {
        added: outcome.added.clone(),
        removed: outcome.removed.iter().map(|t| t.id).collect(),
        next_table: slice.next_table.get(),
        lost,
        ..Change::default()
    };
    if let Err(error) = commit(store, slice, &change).await {
        if error == EngineError::Full {
            remove_added(store, slice, &outcome).await?;
        }
        return Err(error);
    }
    Rc::<TableSet<D>>::make_mut(&mut slice.tables.borrow_mut()).apply(added, &outcome.removed);
    for (segment, bytes) in change.lost {
        if let Some(segment) = store.segment(segment) {
            segment.remove_live(bytes);
        }
    }
    count(&store.counters.compactions, 1);
    for id in outcome.obsolete() {
        store.disk.remove(&path(slice.id, id)).await?;
    }
    Ok(())
}

/// Bytes of values, by segment, of dropped records that a compaction has left out and that no newer record has
/// replaced: these still count as live. The caller holds the slice's latch, so that no flush comes between.
async fn counted_as_live<D: Disk>(
    store: &Store<D>,
    slice: &Slice<D>,
    outcome: &Outcome,
) -> Result<BTreeMap<u64, u64>, EngineError> {
    let tables = slice.tables.borrow().clone();
    let mut lost: BTreeMap<u64, u64> = BTreeMap::new();
    for hidden in &outcome.hidden {
        match tables.get(&hidden.key, &store.blocks).await {
            Ok(newest) if newest.as_ref().is_some_and(|(sequence, _)| *sequence == hidden.sequence) => {
                for pointer in &hidden.pointers {
                    *lost.entry(pointer.segment).or_default() += u64::from(pointer.length);
                }
            }
            // It stays counted if that cannot be told.
            Ok(_) | Err(EngineError::Damaged(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(lost)
}

/// Removes the files of a compaction that did not come to anything: no manifest names them.
async fn remove_added<D: Disk>(store: &Store<D>, slice: &Slice<D>, outcome: &Outcome) -> Result<(), EngineError> {
    let new = |table: &&TableMeta| !outcome.removed.iter().any(|removed| removed.id == table.id);
    for table in outcome.added.iter().filter(new) {
        store.disk.remove(&path(slice.id, table.id)).await?;
    }
    Ok(())
}

/// A compaction has met damage: of each of its tables that has damaged blocks, what is good is saved and the rest is
/// set aside. `what` again if none of them has any.
async fn salvage_all<D: Disk>(
    store: &Store<D>,
    slice: &Rc<Slice<D>>,
    tables: &[Rc<Table<D>>],
    what: String,
) -> Result<(), EngineError> {
    let mut any = false;
    for table in tables {
        let Some(salvaged) = salvage(&store.disk, table, &store.options, || slice.take_table_id()).await? else {
            continue;
        };
        any = true;
        let saved = match &salvaged.saved {
            None => None,
            Some(meta) => match Table::open(&store.disk, meta.clone()).await {
                Ok(saved) => Some(saved),
                Err(error) => {
                    store.disk.remove(&path(slice.id, meta.id)).await?;
                    return Err(EngineError::Damaged(damage::text(&error)));
                }
            },
        };
        let _held = slice.latch.hold().await;
        store.disk.sync_dir(&directory(slice.id)).await?;
        let added: Vec<_> = salvaged.saved.iter().chain([&salvaged.aside]).cloned().collect();
        let change = Change { added, next_table: slice.next_table.get(), ..Change::default() };
        if let Err(error) = commit(store, slice, &change).await {
            if let (EngineError::Full, Some(meta)) = (&error, &salvaged.saved) {
                store.disk.remove(&path(slice.id, meta.id)).await?;
            }
            return Err(error);
        }
        let mut set = slice.tables.borrow_mut();
        Rc::make_mut(&mut set).apply(saved.into_iter().collect(), &[table.meta().clone()]);
        Rc::make_mut(&mut set).set_aside(salvaged.aside.clone());
        store.met(Damage::of_table(&salvaged.aside, damage::text(&salvaged.what)));
    }
    if any { Ok(()) } else { Err(EngineError::Damaged(what)) }
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
