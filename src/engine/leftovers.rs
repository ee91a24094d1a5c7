//! What an opening finds and nothing needs: files of segments that were being made, or waited for another life, and
//! tables that no manifest names.
//!
//! A crash leaves such files, and so does damage: a manifest that was set back names too little, a page in the wrong
//! place makes a file look like another. So nothing is removed by an opening. It is done once this life's first batch
//! is durable, and each file is looked at again before it goes. Where anything of its slice is damaged, a table stays.

use super::{
    disk::Disk,
    error::EngineError,
    recover,
    store::{Slice, Store},
    table,
    wal::{
        roll,
        segment::{self, DIRECTORY},
    },
};
use std::{io::ErrorKind, rc::Rc};

/// See the module.
pub enum Leftover<D: Disk> {
    /// A segment without any batch of its own.
    Segment(u64),
    /// A segment that was being made, and has no name yet.
    Unnamed(u64),
    Table(Rc<Slice<D>>, u64),
    /// A manifest that was being made.
    Manifest(Rc<Slice<D>>, String),
}

/// Removes what the opening found to be left over, some time after it.
pub async fn run<D: Disk>(store: Rc<Store<D>>) {
    let opened = store.log.position.get();
    // A disk that is full needs the space sooner.
    let serves = || store.log.position.get() > opened || store.read_only.get() || store.ending();
    store.log.landed.until(|| serves().then_some(())).await;
    for leftover in store.leftovers.take() {
        if store.ending() {
            return;
        }
        if let Err(error) = remove(&store, leftover).await {
            return store.fail(&error);
        }
    }
}

async fn remove<D: Disk>(store: &Store<D>, leftover: Leftover<D>) -> Result<(), EngineError> {
    let path = match &leftover {
        Leftover::Segment(id) => {
            if !recover::is_blank(store, *id).await? {
                return Ok(());
            }
            segment::path(*id)
        }
        Leftover::Unnamed(id) => segment::new_path(*id),
        Leftover::Table(slice, id) => {
            let named = slice.manifest.borrow().state.tables.contains_key(id);
            if named || slice.is_damaged() {
                return Ok(());
            }
            table::path(slice.id, *id)
        }
        // A flush may have made it anew.
        Leftover::Manifest(slice, _) if slice.is_damaged() => return Ok(()),
        Leftover::Manifest(_, path) => path.clone(),
    };
    let _held = match &leftover {
        Leftover::Manifest(slice, _) => Some(slice.latch.hold().await),
        _ => None,
    };
    match store.disk.remove(&path).await {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    match leftover {
        // A name that comes back after a power cut is found again.
        Leftover::Segment(_) | Leftover::Unnamed(_) => Ok(store.disk.sync_dir(DIRECTORY).await?),
        Leftover::Table(..) | Leftover::Manifest(..) => Ok(()),
    }
}

/// Whether a core counts on a segment of this name, or would.
pub fn is_wanted<D: Disk>(store: &Store<D>, id: u64) -> bool {
    roll::compose(store).segments.contains_key(&id) || store.free.borrow().iter().any(|free| free.id() == id)
}
