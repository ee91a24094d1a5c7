//! Space put by for the day when the file system is full: files that hold nothing but their space.
//!
//! Puts are refused while some space is left ([`crate::limits::DISK_FULL_PERCENT`]), and what frees space lives on
//! that: delete records, flushes, compactions, copies. But others may write to the same file system until nothing is
//! left at all. Then a shard gives up one piece of its reserve when a flush or a compaction finds no space, and a node
//! one to be able to start. The log has pieces of its own, which become segments: others take what is free as soon as
//! it is, and a delete must not depend on who is faster. Missing pieces are made again as soon as there is space well
//! above the line.
//!
//! `reserve/SSSS-I`: piece I of shard SSSS, hexadecimal.

use super::{
    collect,
    disk::{Disk, DiskFile, OpenMode, Space, lacks_room},
    error::EngineError,
    store::Store,
    types::EngineOptions,
};
use crate::{
    limits::{PAGE, REFUSED_PAUSE, RESERVE_PIECE_BYTES_MAX, RESERVE_PIECES, RESERVE_PIECES_LOG},
    types::ShardId,
};
use futures_util::future::select;
use std::{
    cmp::Reverse,
    collections::BTreeSet,
    io::{self, ErrorKind},
    rc::Rc,
};

/// The directory of all pieces of a node.
pub const DIRECTORY: &str = "reserve";
/// The index from which on pieces belong to the log, for deletes. The pieces before are for flush and collection, and
/// the very first for a start.
const FIRST_OF_LOG: u8 = (RESERVE_PIECES - RESERVE_PIECES_LOG) as u8;

fn path((shard, index): (u16, u8)) -> String {
    format!("{DIRECTORY}/{shard:04x}-{index}")
}
/// Shard and index of a file name in the reserve's directory; nothing for other files.
fn piece_of(name: &str) -> Option<(u16, u8)> {
    let (shard, index) = name.split_once('-')?;
    let piece = (u16::from_str_radix(shard, 16).ok()?, index.parse().ok()?);
    (path(piece).ends_with(name) && name.len() == 6).then_some(piece)
}
/// Bytes of a piece: the smallest amount that the log takes at once when space is short.
pub fn piece_bytes(options: &EngineOptions) -> usize {
    (options.segment_bytes / RESERVE_PIECES).next_multiple_of(PAGE).clamp(PAGE, RESERVE_PIECE_BYTES_MAX)
}

/// All that hold space: a crash may have left one without.
async fn pieces<D: Disk>(disk: &D) -> io::Result<Vec<(u16, u8)>> {
    let files = disk.list(DIRECTORY).await?;
    Ok(files.iter().filter(|(_, bytes)| *bytes > 0).filter_map(|(name, _)| piece_of(name)).collect())
}
/// The pieces that a shard has: from its last life, and unless another shard took one to be able to start.
pub async fn held<D: Disk>(disk: &D, shard: ShardId) -> io::Result<BTreeSet<u8>> {
    let all = pieces(disk).await?;
    Ok(all.into_iter().filter(|(owner, _)| *owner == shard.0).map(|(_, index)| index).collect())
}

/// Removes the pieces of shards that are no more; runs before any shard does.
pub async fn adapt<D: Disk>(disk: &D, shards: u16) -> io::Result<()> {
    for piece in pieces(disk).await?.into_iter().filter(|(shard, _)| *shard >= shards) {
        disk.remove(&path(piece)).await?;
    }
    Ok(())
}
/// Gives up one piece, whosever it is: for a node, or a shard, that could not start without. Whether there was one. A
/// shard that runs and takes this piece for its own finds later that it frees nothing, and gives up the next.
pub async fn spend_any<D: Disk>(disk: &D) -> io::Result<bool> {
    let Some(piece) = pieces(disk).await?.into_iter().max() else { return Ok(false) };
    give_up(disk, piece).await?;
    Ok(true)
}
async fn give_up<D: Disk>(disk: &D, piece: (u16, u8)) -> io::Result<()> {
    match disk.remove(&path(piece)).await {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // What a removal frees can be had once it is durable.
    disk.sync_dir(DIRECTORY).await
}

/// Gives up a piece that is neither the log's nor for a start, for background work and the copies of collection.
/// Whether there was one.
pub async fn spend<D: Disk>(store: &Store<D>) -> Result<bool, EngineError> {
    let _held = store.reserve_latch.hold().await;
    let piece = store.reserve.borrow().range(1..FIRST_OF_LOG).next_back().copied();
    let Some(index) = piece else { return Ok(false) };
    store.reserve.borrow_mut().remove(&index);
    let failed = |e: io::Error| EngineError::Failed(format!("giving up a part of the reserve: {e}"));
    give_up(&*store.disk, (store.shard.0, index)).await.map_err(failed)?;
    Ok(true)
}

/// Whether there is one of the log's pieces.
pub fn has_for_log<D: Disk>(store: &Store<D>) -> bool {
    store.reserve.borrow().range(FIRST_OF_LOG..).next().is_some()
}
/// Makes one of the log's pieces the file `to`, so that its space is at no moment anybody's. `for_start`: any piece,
/// and if this shard has none, another's. Whether there was one.
pub async fn hand_over<D: Disk>(store: &Store<D>, to: &str, for_start: bool) -> Result<bool, EngineError> {
    let _held = store.reserve_latch.hold().await;
    let failed = |e: io::Error| EngineError::Failed(format!("taking a part of the reserve: {e}"));
    let own = |(shard, _): &(u16, u8)| *shard == store.shard.0;
    let mut pieces = pieces(&*store.disk).await.map_err(failed)?;
    pieces.retain(|piece| for_start || (own(piece) && piece.1 >= FIRST_OF_LOG));
    pieces.sort_by_key(|piece| (!own(piece), Reverse(piece.1)));
    for piece in pieces {
        if own(&piece) {
            store.reserve.borrow_mut().remove(&piece.1);
        }
        match store.disk.rename(&path(piece), to).await {
            Ok(()) => {
                store.disk.sync_dir(DIRECTORY).await.map_err(failed)?;
                return Ok(true);
            }
            // Another shard has taken it.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // For the new name: what this piece frees is enough for the next.
            Err(error) if lacks_room(&error) => {
                give_up(&*store.disk, piece).await.map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(false)
}

/// Whether there is room for a piece: then there is space well above the line at which puts are refused.
fn is_roomy(space: Space, options: &EngineOptions) -> bool {
    let left = space.available.saturating_sub(4 * piece_bytes(options) as u64);
    !is_full(Space { available: left, ..space }, options)
}
/// Whether a piece that found no room would find it now.
pub fn has_room_now<D: Disk>(store: &Store<D>, space: Space) -> bool {
    store.reserve_waits.get().is_some_and(|least| space.available >= least && is_roomy(space, &store.options))
}

/// Makes one piece that is missing, if there is space for it. Whether it did. If there is none,
/// [`Store::look_at_space`] finds out when there is.
pub async fn restore<D: Disk>(store: &Store<D>) -> Result<bool, EngineError> {
    let _held = store.reserve_latch.hold().await;
    // When values are no longer refused, all that is missing is due.
    if store.read_only.get() {
        return Ok(false);
    }
    let held = held(&*store.disk, store.shard).await?;
    let missing = (0..RESERVE_PIECES as u8).find(|index| !held.contains(index));
    store.reserve.replace(held);
    let Some(index) = missing else { return Ok(false) };
    let Ok(space) = store.disk.space() else { return Ok(false) };
    if !is_roomy(space, &store.options) {
        store.reserve_waits.set(Some(0));
        return Ok(false);
    }
    match make(store, index).await {
        Ok(()) => Ok(store.reserve.borrow_mut().insert(index)),
        Err(EngineError::Full) => {
            // What the file system calls available is not for this node, as under a quota: not to be tried at every
            // look.
            store.reserve_waits.set(Some(space.available + piece_bytes(&store.options) as u64));
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
async fn make<D: Disk>(store: &Store<D>, index: u8) -> Result<(), EngineError> {
    let path = path((store.shard.0, index));
    let file = match store.disk.open(&path, OpenMode::Create).await {
        // A crash left it, without space.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => store.disk.open(&path, OpenMode::Write).await?,
        opened => opened?,
    };
    let made = match file.allocate(piece_bytes(&store.options) as u64).await {
        Ok(()) => file.sync().await,
        refused => refused,
    };
    let made = made.map_err(EngineError::from);
    if made == Err(EngineError::Full) {
        store.disk.remove(&path).await?;
    }
    made
}

/// Background work found no space: it goes on with a piece of the reserve, or waits until there is space again.
pub async fn go_on<D: Disk>(store: &Store<D>) {
    store.read_only.set(true);
    let short = available(store);
    match spend(store).await {
        Ok(true) => {}
        Ok(false) => store.flush_blocked.set(true),
        Err(error) => store.fail(&error),
    }
    ask_for_more(store, short);
}

/// Whether space is so short that the rest is for flush, compaction and collection: deletes alone would use it up, and
/// what they made dead could never be collected.
pub fn is_kept_from_log<D: Disk>(store: &Store<D>) -> bool {
    let line = 100u64.saturating_sub(store.options.disk_full_percent);
    let kept = |space: Space| space.available.saturating_mul(200) < space.total.saturating_mul(line);
    store.read_only.get() && store.disk.space().is_ok_and(kept)
}

/// Waits for as long as flush, compaction and collection may still free something: deletes go as fast as they do.
/// Whether there is more space than before.
pub async fn wait_for_space<D: Disk>(store: &Store<D>) -> bool {
    let available = || available(store);
    let before = available();
    store.want_space();
    // A flush that is blocked goes on after the next collection.
    let reclaims = || store.reclaim.get().is_some() && !store.flush_blocked.get();
    let hope = || !store.ending() && (store.collecting.get() || collect::has_work(store) || reclaims());
    // Others may have freed it before this began to look, too.
    let enough = || available() > before || !store.read_only.get();
    store.work.until(|| (enough() || !hope()).then_some(())).await;
    enough()
}

/// A file system that says how many bytes there are may refuse all the same: its files or names are used up, or a quota
/// is. When that ends nothing tells, so it is tried again now and then.
pub async fn run<D: Disk>(store: Rc<Store<D>>) {
    let waits = || store.space_needed.get() > 0 && store.disk.space().is_ok_and(|s| !is_full(s, &store.options));
    loop {
        store.refused.until(|| (waits() || store.ending()).then_some(())).await;
        if store.ending() {
            return;
        }
        // The engine ends without waiting for this.
        let pause = std::pin::pin!(store.disk.pause(REFUSED_PAUSE));
        let ended = std::pin::pin!(store.refused.until(|| store.ending().then_some(())));
        select(pause, ended).await;
        store.space_needed.set(0);
        store.look_at_space();
    }
}

/// Bytes that the file system says are left; 0 if it does not say.
pub fn available<D: Disk>(store: &Store<D>) -> u64 {
    store.disk.space().map_or(0, |space| space.available)
}
/// Values are refused until there is clearly more space than there was when it did not suffice (`short`), whatever
/// share is in use. Not if somebody has seen meanwhile that space is back; and what was found after the refusal may be
/// space that had just come back, so that the last look before it counts as well.
pub fn ask_for_more<D: Disk>(store: &Store<D>, short: u64) {
    if store.read_only.get() {
        let short = short.min(store.space_seen.get());
        store.space_needed.set(short + 2 * piece_bytes(&store.options) as u64);
        store.refused.wake();
    }
}

/// Whether so much of a file system is in use that puts are refused.
pub fn is_full(space: Space, options: &EngineOptions) -> bool {
    let used = space.total.saturating_sub(space.available);
    used.saturating_mul(100) >= space.total.saturating_mul(options.disk_full_percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_known_by_its_name() {
        assert_eq!(path((11, 3)), "reserve/000b-3");
        assert_eq!(piece_of("000b-3"), Some((11, 3)));
        for other in ["000b-", "b-3", "000b-33", "000b-x", "000B-3", "", "lost+found"] {
            assert_eq!(piece_of(other), None, "{other}");
        }
    }
}
