//! Records in memory, with the engine's face: stands in until the log and the tables land.

use super::{disk::Disk, error::EngineError, types::*};
use crate::types::{ShardId, SliceId};
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Background {
    Log,
    Compaction,
}
pub struct Opened<D: Disk> {
    pub engine: Engine<D>,
    pub background: Vec<(Background, LocalBoxFuture<'static, ()>)>,
}
type Records = BTreeMap<(SliceId, Bytes), (Bytes, Values)>;
pub struct Engine<D: Disk> {
    records: Rc<RefCell<Records>>,
    _disk: Rc<D>,
}
impl<D: Disk> Clone for Engine<D> {
    fn clone(&self) -> Self {
        Engine { records: self.records.clone(), _disk: self._disk.clone() }
    }
}
impl<D: Disk> Engine<D> {
    pub async fn open(disk: Rc<D>, _: ShardId, _: &[SliceId], _: EngineOptions) -> Result<Opened<D>, EngineError> {
        Ok(Opened { engine: Engine { records: Rc::default(), _disk: disk }, background: Vec::new() })
    }
    pub async fn get(&self, slice: SliceId, key: &[u8], want: Want) -> Result<Option<Record>, EngineError> {
        let records = self.records.borrow();
        let found = records.get(&(slice, Bytes::copy_from_slice(key)));
        Ok(found.map(|(head, values)| Record {
            head: head.clone(),
            values: if want == Want::Full { values.clone() } else { Values::new() },
        }))
    }
    pub async fn write(&self, writes: Vec<Write>, _: Durability) -> Result<(), EngineError> {
        for w in writes {
            match w.change {
                Change::Put { head, values } => self.records.borrow_mut().insert((w.slice, w.key), (head, values)),
                Change::Delete => self.records.borrow_mut().remove(&(w.slice, w.key)),
            };
        }
        Ok(())
    }
    pub async fn scan(
        &self,
        slice: SliceId,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        let records = self.records.borrow();
        let (from, to) = ((slice, Bytes::copy_from_slice(from)), (slice, Bytes::copy_from_slice(to)));
        Ok(records.range(from..to).take(limit).map(|((_, k), (h, _))| (k.clone(), h.clone())).collect())
    }
    pub fn stats(&self) -> EngineStats {
        EngineStats::default()
    }
    pub async fn close(&self) -> Result<(), EngineError> {
        Ok(())
    }
}
