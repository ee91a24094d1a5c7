//! The second future of each head of the log: makes segments, and space in them, before they are needed, and meets a
//! full disk.

use super::{Head, Pending, nearly_used};
use crate::{
    engine::{
        disk::Disk,
        error::EngineError,
        reserve,
        store::{Store, count},
        types::Write,
        wal::{
            format::{FORMAT, SegmentHeader, mark_bytes},
            roll,
            segment::{SEGMENTS_OF_A_LIFE, SEQUENCES_OF_A_LIFE, STEP_BYTES, Segment, id_for, new_path, path},
        },
    },
    limits::{BATCH_BYTES, PAGE, SHORT_STEP_BYTES},
};
use std::rc::Rc;

/// What the second future of the log does next.
enum Chore<F> {
    Grow(Rc<Segment<F>>, u64),
    Create(u64),
    /// Another piece of the reserve, now that there is space.
    PutBy,
    End,
}

/// Makes segments, and space in them, before the log needs them.
pub async fn run<D: Disk>(store: Rc<Store<D>>, head: Rc<Head<D>>) {
    loop {
        let chore = head.changed.until(|| next_chore(&store, &head)).await;
        let result = match chore {
            Chore::End => break,
            Chore::PutBy => {
                match reserve::restore(&store).await {
                    Ok(made) => store.reserve_due.set(made),
                    Err(error) => store.fail(&error),
                }
                continue;
            }
            _ if head.works_ahead() && head.active.borrow().is_some() && reserve::is_kept_from_log(&store) => {
                Err(EngineError::Full)
            }
            Chore::Grow(segment, needed) => segment.grow(needed).await,
            Chore::Create(bytes) => create(&store, &head, bytes).await,
        };
        head.wanted.set(0);
        match result {
            Ok(()) => store.look_at_space(),
            Err(EngineError::Full) => meet_full(&store, &head).await,
            Err(error) => store.fail(&error),
        }
        head.changed.wake();
        if let Err(error) = reserve::restore(&store).await {
            store.fail(&error);
        }
    }
}

fn next_chore<D: Disk>(store: &Store<D>, head: &Head<D>) -> Option<Chore<D::File>> {
    // As long as the head may write, it may need a segment: collection can still ask for one after the engine was told
    // to stop.
    if store.has_failed() || head.ended.get() {
        return Some(Chore::End);
    }
    let wanted = head.wanted.get();
    if wanted == 0 && head.works_ahead() && store.reserve_due.get() {
        return Some(Chore::PutBy);
    }
    if wanted > 0 && head.has_next_for(wanted) {
        return None;
    }
    let Some(active) = head.active.borrow().clone() else {
        return (wanted > 0).then_some(Chore::Create(wanted));
    };
    let needed = active.end.get() + wanted;
    if wanted > 0 && needed > active.capacity {
        return Some(Chore::Create(wanted));
    }
    if store.read_only.get() && wanted == 0 {
        return None;
    }
    if active.allocated.get() < active.capacity {
        return (nearly_used(&active) || needed > active.allocated.get()).then_some(Chore::Grow(active, needed));
    }
    (head.works_ahead() && nearly_used(&active) && head.next.borrow().is_none())
        .then_some(Chore::Create(BATCH_BYTES.min(store.segment_bytes() / 4) as u64))
}

async fn create<D: Disk>(store: &Store<D>, head: &Head<D>, bytes: u64) -> Result<(), EngineError> {
    let header = next_header(store)?;
    let needed = (PAGE + mark_bytes(header.slices.len())) as u64 + bytes;
    let segment = match store.take_free(needed) {
        Some(old) => {
            let reused = Segment::reuse(&*store.disk, &old, header).await?;
            count(&store.counters.reuses, 1);
            reused
        }
        None => Segment::create(&*store.disk, header, store.segment_bytes(), bytes).await?,
    };
    put_next(store, head, segment).await
}
/// Makes the next segment of a piece of the reserve. Whether there was one.
async fn create_from_reserve<D: Disk>(store: &Store<D>, head: &Head<D>) -> Result<bool, EngineError> {
    let for_start = head.active.borrow().is_none();
    if !for_start && !reserve::has_for_log(store) {
        return Ok(false);
    }
    let header = next_header(store)?;
    if !reserve::hand_over(store, &new_path(header.id), for_start).await? {
        return Ok(false);
    }
    match Segment::take_over(&*store.disk, header, head.next_batch_bytes()).await {
        Ok(segment) => put_next(store, head, segment).await.map(|()| true),
        Err(EngineError::Full) => Ok(false),
        Err(error) => Err(error),
    }
}
async fn put_next<D: Disk>(store: &Store<D>, head: &Head<D>, segment: Segment<D::File>) -> Result<(), EngineError> {
    count(&store.counters.device_bytes_written, PAGE as u64);
    let id = segment.id();
    let too_small = match roll::enter(store, head, Rc::new(segment)).await {
        Ok(too_small) => too_small,
        Err(EngineError::Full) => {
            // The roll is as it was, and the file shall not hold the little that there is.
            store.disk.remove(&path(id)).await?;
            return Err(EngineError::Full);
        }
        Err(error) => return Err(error),
    };
    if let Some(too_small) = too_small {
        roll::leave(store, too_small.id()).await?;
        store.disk.remove(&path(too_small.id())).await?;
    }
    Ok(())
}
/// Whether a core may make its segment of this number in this life, when its next record has this sequence. Beyond
/// their ends both would be those of another life: what is newer could not be told any more.
fn check_counters(made: u64, sequence: u64) -> Result<(), EngineError> {
    let in_life = sequence & (SEQUENCES_OF_A_LIFE - 1);
    let spent = if made >= SEGMENTS_OF_A_LIFE - SEGMENTS_OF_A_LIFE / 16 {
        format!("has made {made} segments")
    } else if in_life >= SEQUENCES_OF_A_LIFE - SEQUENCES_OF_A_LIFE / 16 {
        format!("has written {in_life} records")
    } else {
        return Ok(());
    };
    Err(EngineError::Failed(format!("the log of this core {spent} since the node was started: start it again")))
}

fn next_header<D: Disk>(store: &Store<D>) -> Result<SegmentHeader, EngineError> {
    let made = store.log.segments_made.get() + 1;
    check_counters(made, store.log.next_sequence.get())?;
    store.log.segments_made.set(made);
    let shard = store.shard.0;
    let id = id_for(store.generation, made, shard);
    // Not to be guessed: whoever knew it could store a value that looks like a batch of a later life of the file.
    let place = [id.to_le_bytes(), store.options.seed.to_le_bytes(), made.to_le_bytes()].concat();
    Ok(SegmentHeader {
        format: FORMAT,
        id,
        epoch: xxhash_rust::xxh3::xxh3_64_with_seed(&place, store.options.seed),
        generation: store.generation,
        first_sequence: store.log.next_sequence.get(),
        shard,
        data_start: 0,
        step: step_bytes(store, made) as u32,
        reused: false,
        slices: store.slices().map(|s| s.id).collect(),
    })
}

/// By how much a segment grows: little when space is short.
fn step_bytes<D: Disk>(store: &Store<D>, made: u64) -> usize {
    match made {
        _ if store.read_only.get() => SHORT_STEP_BYTES,
        1 => STEP_BYTES,
        _ => store.segment_bytes(),
    }
}

/// There is no space for the log: values that wait are refused, none of them was stored. Deletes and their like, and
/// copies from segments that are being collected, go on with a piece of the reserve: they are what frees space.
async fn meet_full<D: Disk>(store: &Store<D>, head: &Head<D>) {
    store.read_only.set(true);
    let short = reserve::available(store);
    let add_values = |pending: &Pending| pending.writes.iter().any(Write::adds_values);
    refuse(store, head, |pending| pending.relocation.is_none() && add_values(pending));
    if head.queue.borrow().is_empty() {
        return;
    }
    let cold = !head.works_ahead();
    let spent = match cold {
        true => reserve::spend(store).await,
        false => create_from_reserve(store, head).await,
    };
    match spent {
        Ok(true) => {}
        Ok(false) if cold => refuse(store, head, |_| true),
        Ok(false) if reserve::wait_for_space(store).await => {}
        Ok(false) => refuse(store, head, |_| true),
        Err(error) => store.fail(&error),
    }
    reserve::ask_for_more(store, short);
}

fn refuse<D: Disk>(store: &Store<D>, head: &Head<D>, refused: impl Fn(&Pending) -> bool) {
    let waiting = head.queue.borrow().len();
    for _ in 0..waiting {
        match head.pop() {
            Some(pending) if refused(&pending) => pending.done.resolve(Err(EngineError::Full)),
            Some(pending) => head.put_back(pending),
            None => break,
        }
    }
    store.room.wake();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_end_in_an_error_long_before_they_begin_anew() {
        let first = 7 << 40 | 1;
        let last = first + SEQUENCES_OF_A_LIFE - SEQUENCES_OF_A_LIFE / 16 - 2;
        assert_eq!(check_counters(1, first), Ok(()));
        assert_eq!(check_counters(1, last), Ok(()));
        assert!(matches!(check_counters(1, last + 1), Err(EngineError::Failed(_))));
        let (mut made, mut ids) =
            (SEGMENTS_OF_A_LIFE - SEGMENTS_OF_A_LIFE / 16 - 100, std::collections::BTreeSet::new());
        while check_counters(made, first).is_ok() {
            assert!(ids.insert(id_for(7, made, 3)) && id_for(7, made, 3) >> 40 == 7);
            made += 1;
        }
        assert_eq!(ids.len(), 100);
    }
}
