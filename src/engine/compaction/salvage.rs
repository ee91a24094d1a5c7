//! Saves what can be read of a table with damaged blocks.
//!
//! The records of the good blocks are written as a new table of the same level; what remains of the old one is set
//! aside: the keys from the first damaged block to the last. So a damaged block costs its own keys, and compaction
//! goes on. Every block is read once more first: a read that failed by chance costs nothing.

use crate::engine::{
    disk::{Disk, Lane},
    error::EngineError,
    table::{ASIDE, Builder, Table, TableMeta, path},
    types::EngineOptions,
};
use bytes::Bytes;
use std::rc::Rc;

/// The result of saving what can be read of a table with damaged blocks. The caller makes the manifest say so.
pub struct Salvaged {
    /// The good blocks' records, at the table's level. None if there are none.
    pub saved: Option<TableMeta>,
    /// The table itself, its keys narrowed to those in doubt.
    pub aside: TableMeta,
    /// The error of the first damaged block.
    pub what: EngineError,
}

/// Reads every block again; nothing when all of them are good. After an error no new file is left.
pub async fn salvage<D: Disk>(
    disk: &Rc<D>,
    table: &Table<D>,
    options: &EngineOptions,
    next_id: impl FnOnce() -> u64,
) -> Result<Option<Salvaged>, EngineError> {
    let mut whole = true;
    for block in 0..table.blocks() {
        match table.records(block, Lane::Background).await {
            Ok(_) => disk.breathe().await,
            Err(EngineError::Damaged(_)) => {
                whole = false;
                break;
            }
            Err(error) => return Err(error),
        }
    }
    if whole {
        return Ok(None);
    }
    let meta = table.meta();
    let id = next_id();
    let mut builder = Builder::create(disk, meta.slice, id, meta.level, options).await?;
    let written = match copy(disk, table, &mut builder).await {
        Ok(lost) if builder.entries() > 0 => builder.finish().await.map(|saved| (Some(saved), lost)),
        Ok(lost) => builder.abandon().await.map(|()| (None, lost)),
        Err(error) => Err(error),
    };
    match written {
        Ok((saved, Some(Lost { smallest, largest, what }))) => {
            let aside = TableMeta { level: ASIDE, smallest, largest, ..meta.clone() };
            Ok(Some(Salvaged { saved, aside, what }))
        }
        // All of it could be read the second time.
        Ok((saved, None)) => {
            if saved.is_some() {
                disk.remove(&path(meta.slice, id)).await?;
            }
            Ok(None)
        }
        Err(error) => {
            // Adds nothing to the error that led here: no manifest names the file, it goes at the next start.
            disk.remove(&path(meta.slice, id)).await.ok();
            Err(error)
        }
    }
}

/// The keys of the damaged blocks, and of those between them.
struct Lost {
    smallest: Bytes,
    largest: Bytes,
    what: EngineError,
}

async fn copy<D: Disk>(disk: &Rc<D>, table: &Table<D>, to: &mut Builder<D>) -> Result<Option<Lost>, EngineError> {
    let mut lost: Option<Lost> = None;
    for block in 0..table.blocks() {
        match table.records(block, Lane::Background).await {
            Ok(records) => {
                for (key, sequence, stored) in records {
                    to.add(&key, sequence, &stored).await?;
                }
            }
            Err(what @ EngineError::Damaged(_)) => {
                let (smallest, largest) = table.keys_of(block);
                match &mut lost {
                    Some(lost) => lost.largest = largest,
                    None => lost = Some(Lost { smallest, largest, what }),
                }
            }
            Err(error) => return Err(error),
        }
        disk.breathe().await;
    }
    Ok(lost)
}
