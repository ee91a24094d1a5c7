//! The engine as its users see it.

use super::{
    collect, compact,
    compaction::{MergeCursor, Source},
    damage::Damage,
    disk::{Disk, DiskFile, Lane},
    drops::{Group, RESERVED, marks_head},
    error::EngineError,
    flush, leftovers,
    memtable::{ENTRY_OVERHEAD, pointers},
    recover, reserve,
    snapshot::{Snapshot, fold, recent, walk},
    store::{Store, count},
    types::{
        Change, Durability, ENGINE_KEY_BYTES_MAX, EngineOptions, EngineStats, Record, Stored, StoredValue,
        ValuePointer, Values, Want, Write,
    },
    wal::{
        format::{check_write, record_bytes, value_checksum},
        log, roll,
        segment::path,
    },
};
use crate::{
    limits::{LOG_QUEUE_BYTES, PAGE},
    types::{ShardId, SliceId},
};
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use std::{collections::BTreeMap, rc::Rc};

/// The kind of a background future: the host gives each kind its own share of the core.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Background {
    /// Writes the log: clients wait for it.
    Log,
    /// Flush, compaction and collection.
    Compaction,
}

/// An engine that has just been opened.
pub struct Opened<D: Disk> {
    pub engine: Engine<D>,
    /// The futures of background work. The host drives them for as long as the engine is used; they end after
    /// [`Engine::close`] or a failure.
    pub background: Vec<(Background, LocalBoxFuture<'static, ()>)>,
}

/// The engine of one core. It is cheap to clone, and never leaves its core.
pub struct Engine<D: Disk>(Rc<Store<D>>);
impl<D: Disk> Clone for Engine<D> {
    fn clone(&self) -> Engine<D> {
        Engine(self.0.clone())
    }
}

/// Bytes of values, by the id of their segment.
pub type SegmentBytes = BTreeMap<u64, u64>;

/// Times that a read is begun again because a value moved while it was looked up; after the last it fails.
const READ_ATTEMPTS: usize = 8;

impl<D: Disk> Engine<D> {
    /// Opens the records of these slices. Other shards of the node may open theirs in the same directory at the same
    /// time; no slice may be open twice. Errors leave nothing behind that matters.
    pub async fn open(
        disk: Rc<D>,
        shard: ShardId,
        slices: &[SliceId],
        options: EngineOptions,
    ) -> Result<Opened<D>, EngineError> {
        let store = Rc::new(recover::open(disk, shard, slices, options).await?);
        let mut background = Vec::new();
        let mut add = |kind, future: LocalBoxFuture<'static, ()>| {
            let store = store.clone();
            store.running.set(store.running.get() + 1);
            let counted: LocalBoxFuture<'static, ()> = Box::pin(async move {
                future.await;
                store.running.set(store.running.get() - 1);
                store.wake_all();
            });
            background.push((kind, counted));
        };
        for (kind, head) in [(Background::Log, &store.log.hot), (Background::Compaction, &store.log.cold)] {
            add(kind, Box::pin(log::run(store.clone(), head.clone())));
            add(kind, Box::pin(log::prepare::run(store.clone(), head.clone())));
        }
        add(Background::Compaction, Box::pin(flush::run(store.clone())));
        add(Background::Compaction, Box::pin(compact::run(store.clone())));
        add(Background::Compaction, Box::pin(collect::run(store.clone())));
        add(Background::Compaction, Box::pin(leftovers::run(store.clone())));
        add(Background::Compaction, Box::pin(reserve::run(store.clone())));
        Ok(Opened { engine: Engine(store), background })
    }

    /// The record of a key. `Want::Head` never touches the log. `Damaged` concerns this record alone.
    pub async fn get(&self, slice: SliceId, key: &[u8], want: Want) -> Result<Option<Record>, EngineError> {
        let store = &self.0;
        let result = self.get_inner(slice, key, want).await;
        if let Err(EngineError::Damaged(what)) = &result {
            store.met(Damage::of_read(slice, key, what));
        }
        result
    }
    async fn get_inner(&self, slice: SliceId, key: &[u8], want: Want) -> Result<Option<Record>, EngineError> {
        let store = &self.0;
        let slice = store.serving(slice)?;
        let mut gone = 0;
        for _ in 0..READ_ATTEMPTS {
            store.check()?;
            let (head, stored) = match slice.lookup(key, &store.blocks).await? {
                None | Some((_, Stored::Delete)) => return Ok(None),
                Some((sequence, stored)) if slice.hides(key, sequence, &stored) => return Ok(None),
                Some((_, Stored::Put { head, values })) => (head, values),
            };
            let mut values = Values::new();
            if want == Want::Head {
                return Ok(Some(Record { head, values }));
            }
            for value in &stored {
                let bytes = match value {
                    StoredValue::Inline(bytes) => Some(bytes.clone()),
                    StoredValue::Pointer(pointer) => {
                        gone = pointer.segment;
                        read_value(store, pointer).await?
                    }
                };
                values.extend(bytes);
            }
            if values.len() == stored.len() {
                return Ok(Some(Record { head, values }));
            }
        }
        Err(EngineError::Damaged(format!("{} at 0: the segment that a record points to is gone", path(gone))))
    }

    /// Stores all of it or, on an error, perhaps none; returns once it is durable and every read sees it.
    /// With [`Durability::Interval`] it returns before it is durable. `Full`: nothing was stored. A call holds at most
    /// [`LOG_QUEUE_BYTES`].
    pub async fn write(&self, writes: Vec<Write>, durability: Durability) -> Result<(), EngineError> {
        let store = &self.0;
        store.check()?;
        if writes.is_empty() {
            return Ok(());
        }
        for write in &writes {
            store.serving(write.slice)?;
            check_write(write)?;
            if write.key.first() == Some(&RESERVED) {
                return Err(EngineError::Failed("a key begins with the byte that the engine keeps for itself".into()));
            }
        }
        if writes.iter().map(user_bytes).sum::<usize>() > LOG_QUEUE_BYTES {
            return Err(EngineError::Failed("a call of write is too large for the log".into()));
        }
        if store.read_only.get() || store.flush_blocked.get() {
            store.want_space();
            if store.read_only.get() && writes.iter().any(Write::adds_values) {
                return Err(EngineError::Full);
            }
        }
        let has_room = || {
            let admitted = store.flush_blocked.get() || store.admits();
            store.log.hot.queue_bytes.get() < LOG_QUEUE_BYTES && admitted
        };
        let admitted = || {
            let admitted = store.ending() || has_room();
            if !admitted && store.space_pressure() >= 1.0 && store.pace_waits.take() {
                // Collection waits for writes to pay for it, since before it was urgent: no write lands to tell it.
                store.log.landed.wake();
            }
            admitted.then_some(())
        };
        store.room.until(admitted).await;
        store.check()?;
        if store.flush_blocked.get() && store.memtable_bytes.get() > 4 * store.options.memtable_bytes {
            return Err(EngineError::Full);
        }
        let inline_below = store.options.inline_value_bytes;
        let (memory, space) = writes
            .iter()
            .map(|w| record_bytes(w, inline_below))
            .fold((0, 0), |(m, s), (record, apart)| (m + record + ENTRY_OVERHEAD, s + record + apart));
        store.admitted(memory as u64, space as u64);
        store.log.hot.push(writes, durability, None, store.options.inline_value_bytes).wait().await.map(|_| ())
    }

    /// Drops every record of a group in these slices that was acknowledged before, durably and at once: what it costs
    /// does not depend on how many there are. Writes that are on their way may go either way. Errors as of
    /// [`Engine::write`]. `marks`: only those records go that bear a mark, and none greater than this.
    pub async fn drop_group(&self, group: &Group, marks: Option<u64>, slices: &[SliceId]) -> Result<(), EngineError> {
        let store = &self.0;
        store.check()?;
        if !group.is_sound() {
            return Err(EngineError::Failed("no such group can be".into()));
        }
        let change = Change::Put { head: marks.map(marks_head).unwrap_or_default(), values: Values::new() };
        for &slice in slices {
            store.serving(slice)?;
        }
        let drop = |&slice: &SliceId| Write { slice, key: group.key(marks.is_some()), change: change.clone() };
        let writes = slices.iter().map(drop).collect();
        let done = store.log.hot.push(writes, Durability::Sync, None, store.options.inline_value_bytes);
        done.wait().await?;
        store.work.wake();
        Ok(())
    }

    /// Keys and heads of `[from, to)` in order, at most `limit`, deleted keys left out. Never touches the log.
    /// `Damaged` if a key that would belong to the answer may be in a damaged place: a smaller range may go round it.
    pub async fn scan(
        &self,
        slice: SliceId,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        let result = self.scan_inner(slice, from, to, limit).await;
        if let Err(EngineError::Damaged(what)) = &result {
            self.0.met(Damage::of_read(slice, from, what));
        }
        result
    }
    async fn scan_inner(
        &self,
        slice: SliceId,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        let store = &self.0;
        store.check()?;
        let slice = store.serving(slice)?;
        let sealed = slice.sealed.borrow().clone().unwrap_or_default();
        let drops = slice.drops.borrow().clone();
        let memory = recent(&drops, &slice.active.borrow(), &sealed, from, to, limit);
        let tables = slice.tables.borrow().clone();
        walk(store, memory, &tables, &drops, from, to, limit).await
    }

    /// Shows `visitor` all keys and heads of `[from, to)`, in order, as they are at this moment, deleted keys left out;
    /// gives how many there were. Stops no write, flush or collection, leaves the caches as they are, and never touches
    /// the log. `Damaged` if some of it cannot be read: what was shown before is not all.
    pub async fn fold(
        &self,
        slice: SliceId,
        from: &[u8],
        to: &[u8],
        visitor: impl FnMut(&[u8], &[u8]),
    ) -> Result<u64, EngineError> {
        let result = self.fold_inner(slice, (from, to), visitor).await;
        if let Err(EngineError::Damaged(what)) = &result {
            self.0.met(Damage::of_read(slice, from, what));
        }
        result
    }
    async fn fold_inner(
        &self,
        slice: SliceId,
        (from, to): (&[u8], &[u8]),
        visitor: impl FnMut(&[u8], &[u8]),
    ) -> Result<u64, EngineError> {
        let store = &self.0;
        store.check()?;
        let slice = store.serving(slice)?;
        let sealed = slice.sealed.borrow().clone().unwrap_or_default();
        let drops = slice.drops.borrow().clone();
        let memory = recent(&drops, &slice.active.borrow(), &sealed, from, to, usize::MAX);
        let tables = slice.tables.borrow().clone();
        fold(store, memory, &tables, &drops, (from, to), visitor).await
    }

    /// The heads of a slice as they are now, whatever is written later.
    pub fn snapshot(&self, slice: SliceId) -> Result<Snapshot<D>, EngineError> {
        self.0.check()?;
        Ok(Snapshot::new(&self.0, self.0.serving(slice)?))
    }

    /// Bytes of values that the live records of each segment have: first as they are counted all along, then as a scan
    /// of all heads finds them. The two differ only while something is written, or when a table is damaged.
    pub async fn recount(&self) -> Result<(SegmentBytes, SegmentBytes), EngineError> {
        let store = &self.0;
        let mut found = SegmentBytes::new();
        let mut add = |stored: &Stored| {
            for pointer in pointers(stored).filter(|p| store.segment(p.segment).is_some()) {
                *found.entry(pointer.segment).or_default() += u64::from(pointer.length);
            }
        };
        for slice in store.slices() {
            slice.active.borrow().iter().for_each(|(_, entry)| add(&entry.stored));
            let sealed = slice.sealed.borrow().clone().unwrap_or_default();
            sealed.iter().for_each(|(_, entry)| add(&entry.stored));
            let tables = slice.tables.borrow().clone();
            let to = [u8::MAX; ENGINE_KEY_BYTES_MAX + 1];
            let mut cursor = MergeCursor::open(tables.sources(&[], &to, Lane::Background), &[]).await?;
            let mut steps = 0usize;
            while let Some(source) = cursor.next().await? {
                source.stored()?.iter().for_each(&mut add);
                steps += 1;
                if steps.is_multiple_of(256) {
                    store.disk.breathe().await;
                }
            }
        }
        for slice in store.slices() {
            for settled in [&slice.settled, &slice.settled_sealed] {
                for (segment, bytes) in &settled.borrow().lost {
                    let found = found.entry(*segment).or_default();
                    *found = found.saturating_sub(*bytes);
                }
            }
        }
        found.retain(|_, bytes| *bytes > 0);
        let segments = store.segments.borrow();
        let counted = segments.values().map(|s| (s.id(), s.live.get())).filter(|(_, bytes)| *bytes > 0).collect();
        Ok((counted, found))
    }

    /// The urgency of background work, 0 to 1: the host gives it more of the core and of the disk in proportion.
    pub fn urgency(&self) -> f64 {
        self.0.urgency()
    }

    /// Whether there is no space for values: then looks again. So it does for a reserve that is not whole.
    pub fn refuses_values(&self) -> bool {
        let store = &self.0;
        match store.ending() {
            false if store.read_only.get() => store.want_space(),
            false if store.reserve_waits.get().is_some() => store.look_at_space(),
            _ => {}
        }
        store.read_only.get()
    }

    /// Returns the counters and gauges. Also looks for space again if there was too little: a node that nobody writes
    /// to must notice, too.
    pub fn stats(&self) -> EngineStats {
        self.refuses_values();
        self.0.stats()
    }

    /// Why nothing is stored any more, if that is so.
    pub fn failure(&self) -> Option<EngineError> {
        self.0.failure()
    }

    /// The places that are known to be damaged, oldest first: at most
    /// [`DAMAGE_PLACES_MAX`](crate::limits::DAMAGE_PLACES_MAX) of them.
    pub fn damage(&self) -> Vec<Damage> {
        self.0.damages.list()
    }
    /// The places after the first `known`, as soon as there are any. Nothing once the engine has ended.
    pub async fn damage_after(&self, known: usize) -> Vec<Damage> {
        let store = &self.0;
        let news = || {
            let news = store.damages.after(known);
            (!news.is_empty() || store.ending()).then_some(news)
        };
        store.damages.noted.until(news).await
    }
    /// Whether records of a slice that were acknowledged may be lost without a trace: a damaged place of the log held
    /// records of unknown keys that were in no table. What is read of the slice may then be older than what was
    /// written. This outlives restarts.
    pub fn may_have_lost(&self, slice: SliceId) -> bool {
        self.0.slice(slice).is_ok_and(|slice| slice.may_have_lost.get())
    }
    /// Whether that has been found since the last call of [`Engine::losses_noted`].
    pub fn has_newly_lost(&self, slice: SliceId) -> bool {
        self.0.slice(slice).is_ok_and(|slice| slice.newly_lost.get())
    }
    /// Notes durably that the host has acted upon the losses that this opening found: later openings need not report
    /// them again.
    pub async fn losses_noted(&self) -> Result<(), EngineError> {
        roll::settle(&self.0).await
    }
    /// What a slice may have lost has been fetched from whoever else had it: what is read of it is in doubt no longer.
    pub async fn doubt_ended(&self, slice: SliceId) -> Result<(), EngineError> {
        roll::end_doubt(&self.0, slice).await
    }
    /// Whether a slice is set aside: every call for it gives `Damaged`.
    pub fn is_aside(&self, slice: SliceId) -> bool {
        matches!(self.0.serving(slice), Err(EngineError::Damaged(_)))
    }

    /// Writes what waits for the log and ends the background futures, which the host must go on driving until this
    /// returns. Later calls fail.
    pub async fn close(&self) -> Result<(), EngineError> {
        let store = &self.0;
        for head in store.log.heads() {
            if !store.ending() && log::has_unsealed_batches(head) {
                // An empty batch proves to the next opening that all before it was durable.
                match head.push(Vec::new(), Durability::Sync, None, 0).wait().await {
                    // No space for it: the next opening has one proof less.
                    Ok(_) | Err(EngineError::Full) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        store.stopping.set(true);
        store.wake_all();
        store.room.until(|| (store.running.get() == 0).then_some(())).await;
        if !store.has_failed() {
            // Where everything ends, proven by more than what lies in the same files.
            match roll::update(store).await {
                Ok(()) | Err(EngineError::Full) => {}
                Err(error) => store.fail(&error),
            }
        }
        store.failure().map_or(Ok(()), Err)
    }
}

fn user_bytes(write: &Write) -> usize {
    let payload = match &write.change {
        Change::Put { head, values } => head.len() + values.iter().map(Bytes::len).sum::<usize>(),
        Change::Delete => 0,
    };
    write.key.len() + payload
}

/// A value of the log: from the cache, or by one read of the pages that hold it. Nothing when its segment is gone.
async fn read_value<D: Disk>(store: &Store<D>, pointer: &ValuePointer) -> Result<Option<Bytes>, EngineError> {
    if let Some(value) = store.values.get(pointer) {
        return Ok(Some(value));
    }
    let Some(segment) = store.segment(pointer.segment) else { return Ok(None) };
    let page = PAGE as u64;
    let from = pointer.offset - pointer.offset % page;
    let end = pointer.offset.saturating_add(u64::from(pointer.length));
    let damaged =
        || EngineError::Damaged(format!("{} at {}: a value: wrong checksum", path(pointer.segment), pointer.offset));
    if end > segment.allocated.get() {
        return Err(damaged());
    }
    count(&store.counters.device_reads, 1);
    let bytes = (end.next_multiple_of(page) - from) as usize;
    let read = segment.file.read(from, bytes, Lane::Foreground).await;
    let buffer = read.map_err(|error| EngineError::unreadable(&path(pointer.segment), pointer.offset, &error))?;
    let skip = (pointer.offset - from) as usize;
    let value = buffer.into_bytes().slice(skip..skip + pointer.length as usize);
    if value_checksum(pointer.segment, pointer.offset, &value) != pointer.checksum {
        return Err(damaged());
    }
    store.values.insert(pointer, &value);
    Ok(Some(value))
}
