//! Does what the policy chose.

use super::{
    merge::{MergeCursor, RunCursor},
    policy::{Choice, Merge},
    set::table_of,
};
use crate::{
    engine::{
        disk::{Disk, Lane},
        drops::Drops,
        error::EngineError,
        table::{Builder, Flaw, TableMeta, filter_hash, path},
        types::{EngineOptions, Stored, ValuePointer},
    },
    types::SliceId,
};
use bytes::Bytes;
use smallvec::SmallVec;
use std::rc::Rc;

/// Records that a compaction merges before it lets other work of the core have its turn: some 50 microseconds.
const RECORDS_PER_BREATH: u64 = 128;

/// The result of a compaction. The caller syncs the slice's directory, writes the manifest durably, applies the result
/// to the [`TableSet`](super::TableSet), then deletes the files of [`Outcome::obsolete`], in this order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    pub added: Vec<TableMeta>,
    pub removed: Vec<TableMeta>,
    /// Values whose records went on account of this compaction; each once. A value belongs to one record: a record that
    /// is written again has its values written again.
    pub dropped: Vec<ValuePointer>,
    /// Records that were left out because a drop hides them.
    pub hidden: Vec<Hidden>,
    pub read_bytes: u64,
    pub written_bytes: u64,
}
/// A record that a drop hides.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hidden {
    pub key: Bytes,
    pub sequence: u64,
    pub pointers: SmallVec<[ValuePointer; 1]>,
}
impl Outcome {
    /// Ids of tables whose files may be deleted once the manifest is durable: removed, and not added again at another
    /// level.
    pub fn obsolete(&self) -> impl Iterator<Item = u64> {
        self.removed.iter().map(|t| t.id).filter(|id| !self.added.iter().any(|a| a.id == *id))
    }
}

/// Does what was chosen. One compaction of a slice at a time; flushes may go on meanwhile. Lets others run often. After
/// an error its new files are removed as far as possible and nothing has changed; dropping the future leaves files
/// that no manifest names.
pub async fn run<D: Disk>(
    disk: &Rc<D>,
    slice: SliceId,
    choice: Choice<D>,
    options: &EngineOptions,
    drops: &Drops,
    next_id: impl FnMut() -> u64,
) -> Result<Outcome, EngineError> {
    let merge = match choice {
        Choice::Rest => return Ok(Outcome::default()),
        Choice::Move { table, to } => {
            let removed = table.meta().clone();
            let added = TableMeta { level: to, ..removed.clone() };
            return Ok(Outcome { added: vec![added], removed: vec![removed], ..Outcome::default() });
        }
        Choice::Merge(merge) => merge,
    };
    let level = merge.to;
    let (added, hidden) = (Vec::new(), Vec::new());
    let mut output = Output { disk, slice, level, options, drops, next_id, builder: None, added, hidden };
    match output.merge(&merge).await {
        Ok(dropped) => {
            let removed: Vec<_> = merge.runs.iter().flatten().map(|table| table.meta().clone()).collect();
            let sum = |tables: &[TableMeta]| tables.iter().map(|table| table.bytes).sum();
            let (read_bytes, written_bytes) = (sum(&removed), sum(&output.added));
            Ok(Outcome { added: output.added, hidden: output.hidden, removed, dropped, read_bytes, written_bytes })
        }
        Err(e) => {
            output.abandon().await;
            Err(e)
        }
    }
}

/// The tables that a merge writes.
struct Output<'a, D: Disk, I> {
    disk: &'a Rc<D>,
    slice: SliceId,
    level: u8,
    options: &'a EngineOptions,
    drops: &'a Drops,
    next_id: I,
    builder: Option<Builder<D>>,
    added: Vec<TableMeta>,
    hidden: Vec<Hidden>,
}
impl<D: Disk, I: FnMut() -> u64> Output<'_, D, I> {
    /// Gives the values whose records went.
    async fn merge(&mut self, merge: &Merge<D>) -> Result<Vec<ValuePointer>, EngineError> {
        let sources = merge.runs.iter().map(|run| RunCursor::whole(run.clone(), Lane::Background)).collect();
        let mut cursor = MergeCursor::open(sources, &[]).await?;
        let mut dropped = Vec::new();
        let (mut keys, mut older) = (0u64, 0u64);
        loop {
            let collect = |source: &RunCursor<D>| {
                older += 1;
                let record = source.record().map(|record| record.pointers(|pointer| dropped.push(pointer)));
                record.transpose().map(|_| ()).map_err(|flaw| source.damaged(flaw))
            };
            let Some(record) = cursor.next_and(collect).await?.and_then(|source| source.record()) else { break };
            keys += 1;
            if keys.is_multiple_of(RECORDS_PER_BREATH) {
                self.disk.breathe().await;
            }
            let head = if self.drops.is_empty() { Ok(None) } else { record.head() };
            let head = head.map_err(|flaw| damaged_record(self.slice, flaw))?;
            if head.is_some_and(|head| self.drops.hides(record.key, record.sequence, head)) {
                let (key, sequence, mut pointers) =
                    (Bytes::copy_from_slice(record.key), record.sequence, SmallVec::new());
                let read = record.pointers(|pointer| pointers.push(pointer));
                read.map_err(|flaw| damaged_record(self.slice, flaw))?;
                // What older records there are stays behind it: they have stopped counting as live long ago.
                if may_hold_older(merge, &key) {
                    self.builder().await?.add(&key, sequence, &Stored::Delete).await?;
                    self.close_if(|bytes, most| bytes >= most).await?;
                }
                self.hidden.push(Hidden { key, sequence, pointers });
                continue;
            }
            if !record.is_delete() || may_hold_older(merge, record.key) {
                self.builder().await?.add_ref(record).await?;
                self.close_if(|bytes, most| bytes >= most).await?;
            }
        }
        self.close_if(|bytes, _| bytes > 0).await?;
        let entries: u64 = merge.runs.iter().flatten().map(|table| table.meta().entries).sum();
        if keys + older != entries {
            let first = merge.runs.iter().flatten().next().map_or(0, |table| table.meta().id);
            let file = path(self.slice, first);
            return Err(EngineError::Damaged(format!("{file}: {} records merged, {entries} counted", keys + older)));
        }
        Ok(dropped)
    }
    async fn builder(&mut self) -> Result<&mut Builder<D>, EngineError> {
        let builder = match self.builder.take() {
            Some(builder) => builder,
            None => Builder::create(self.disk, self.slice, (self.next_id)(), self.level, self.options).await?,
        };
        Ok(self.builder.insert(builder))
    }
    /// Finishes the table in hand if its bytes (and the bytes that a table should have) say so.
    async fn close_if(&mut self, ready: impl Fn(u64, u64) -> bool) -> Result<(), EngineError> {
        let most = self.options.table_bytes as u64;
        if let Some(builder) = self.builder.take_if(|builder| ready(builder.bytes(), most)) {
            let id = builder.id();
            match builder.finish().await {
                Ok(table) => self.added.push(table),
                Err(e) => {
                    self.remove(id).await;
                    return Err(e);
                }
            }
        }
        Ok(())
    }
    /// Removes what was written.
    async fn abandon(&mut self) {
        let unfinished = self.builder.take().map(|builder| builder.id());
        let finished = std::mem::take(&mut self.added).into_iter().map(|table| table.id);
        for id in finished.chain(unfinished) {
            self.remove(id).await;
        }
    }
    /// An error here adds nothing to the one that led here: no manifest names the file, it goes at the next start.
    async fn remove(&self, id: u64) {
        self.disk.remove(&path(self.slice, id)).await.ok();
    }
}

fn damaged_record(slice: SliceId, flaw: Flaw) -> EngineError {
    EngineError::Damaged(format!("a record of slice {}: {}", slice.0, flaw.0))
}

/// Whether a deeper table may hold a record of this key, by its bounds and its filter, or one that is set aside.
fn may_hold_older<D: Disk>(merge: &Merge<D>, key: &[u8]) -> bool {
    let hash = filter_hash(key);
    let aside = merge.aside.iter().any(|table| table.smallest <= *key && *key <= table.largest[..]);
    aside || merge.deeper.iter().any(|level| table_of(level, key).is_some_and(|table| table.may_hold(hash)))
}
