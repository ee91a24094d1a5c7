//! fjall with key-value separation. It has no group commit of its own: a put here goes to the journal, and then one of
//! the waiting writers syncs it for all who came before ([`Syncs`]). That is several times what each gets alone.

use super::{Gauges, Sizing, Store, threads};
use crate::{
    Fallible,
    records::Records,
    work::{Outcome, Work},
};
use fjall::{
    CompressionType, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode,
    config::CompressionPolicy,
};
use std::{
    path::Path,
    sync::{Condvar, Mutex, PoisonError},
    thread,
};

/// Bytes of a memory table.
const MEMTABLE_BYTES: u64 = 64 << 20;
/// Values from here on lie apart.
const BLOB_BYTES_MIN: u32 = 1024;

pub struct Fjall {
    peer: FjallPeer,
    records: Records,
}

struct FjallPeer {
    database: Database,
    keyspace: Keyspace,
    syncs: Syncs,
}

impl Fjall {
    pub fn open(directory: &Path, sizing: &Sizing) -> Fallible<Fjall> {
        let workers = thread::available_parallelism().map_or(2, |n| n.get()).max(2);
        let database = Database::builder(directory)
            .cache_size(sizing.cache_bytes)
            .journal_compression(CompressionType::None)
            .worker_threads(workers)
            .open()?;
        let apart =
            KvSeparationOptions::default().separation_threshold(BLOB_BYTES_MIN).compression(CompressionType::None);
        let keyspace = database.keyspace("records", || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(MEMTABLE_BYTES)
                .data_block_compression_policy(CompressionPolicy::disabled())
                .with_kv_separation(Some(apart))
        })?;
        let peer = FjallPeer { database, keyspace, syncs: Syncs::default() };
        Ok(Fjall { peer, records: sizing.records.clone() })
    }
}

impl threads::Peer for FjallPeer {
    fn put(&self, key: &[u8], record: &[u8], durable: bool) -> Fallible<()> {
        self.keyspace.insert(key, record)?;
        if !durable {
            return Ok(());
        }
        self.syncs.cover(|| self.database.persist(PersistMode::SyncData).map_err(|e| e.to_string()))?;
        Ok(())
    }
    fn get(&self, key: &[u8]) -> Fallible<Option<usize>> {
        Ok(self.keyspace.get(key)?.map(|value| value.len()))
    }
    fn backlogged(&self) -> bool {
        self.database.active_compactions() > 0 || self.database.outstanding_flushes() > 0
    }
}

impl Store for Fjall {
    fn run(&mut self, work: &Work) -> Fallible<Vec<Outcome>> {
        threads::run(&self.peer, &self.records, work)
    }
    fn gauges(&mut self) -> Fallible<Gauges> {
        Ok(Gauges::default())
    }
    fn loaders(&self) -> usize {
        4
    }
    fn close(self: Box<Self>) -> Fallible<()> {
        Ok(())
    }
}

/// One sync for all who wait: a caller is covered by any sync that began after it came.
#[derive(Default)]
struct Syncs {
    state: Mutex<State>,
    ended: Condvar,
}
#[derive(Default)]
struct State {
    begun: u64,
    ended: u64,
    running: bool,
}

impl Syncs {
    fn cover(&self, sync: impl Fn() -> Result<(), String>) -> Result<(), String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = state.begun + 1;
        while state.ended < wanted {
            if state.running {
                state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.begun += 1;
            state.running = true;
            let own = state.begun;
            drop(state);
            let result = sync();
            state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.running = false;
            // The others then try for themselves and see the same.
            if result.is_ok() {
                state.ended = own;
            }
            self.ended.notify_all();
            result?;
        }
        Ok(())
    }
}
