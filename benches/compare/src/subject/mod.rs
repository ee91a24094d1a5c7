//! The engines, behind one face.

mod dynarc;
#[cfg(feature = "fjall")]
mod fjall;
#[cfg(feature = "rocksdb")]
mod rocksdb;
#[cfg(any(feature = "rocksdb", feature = "fjall"))]
mod threads;

use crate::{
    Fallible,
    records::Records,
    work::{Outcome, Work},
};
use std::path::Path;

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Kind {
    /// This project's engine: one core, values in the log.
    Dynarc,
    /// RocksDB as it comes: leveled, values in the tables.
    #[value(name = "rocksdb")]
    RocksDb,
    /// RocksDB with blob files and their garbage collection.
    #[value(name = "rocksdb-blob")]
    RocksDbBlob,
    /// fjall with key-value separation.
    Fjall,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Dynarc => "Dynarc",
            Kind::RocksDb => "RocksDB",
            Kind::RocksDbBlob => "RocksDB blob",
            Kind::Fjall => "fjall kv-sep",
        }
    }
    pub fn is_built(self) -> bool {
        match self {
            Kind::Dynarc => true,
            Kind::RocksDb | Kind::RocksDbBlob => cfg!(feature = "rocksdb"),
            Kind::Fjall => cfg!(feature = "fjall"),
        }
    }
}

/// What an engine is opened with.
#[derive(Clone)]
pub struct Sizing {
    pub records: Records,
    /// Bytes of all caches for reads.
    pub cache_bytes: u64,
    /// Compaction and collection run.
    pub background: bool,
    /// The CPU that Dynarc's core is pinned to.
    pub cpu: Option<usize>,
}

/// Counters since the opening, where the engine knows them.
#[derive(Clone, Copy, Default, Debug)]
pub struct Gauges {
    pub syncs: Option<u64>,
    pub acknowledged: Option<u64>,
    /// Reads of files that a request waited for.
    pub reads: Option<u64>,
    /// Bytes of filters and indexes in memory.
    pub index_bytes: Option<u64>,
    /// Bytes of the log that the opening read.
    pub replayed_bytes: Option<u64>,
    pub flushes: Option<u64>,
    pub compactions: Option<u64>,
    pub collections: Option<u64>,
}

/// An open engine.
pub trait Store {
    /// Runs the streams together to their ends; outcomes in their order.
    fn run(&mut self, work: &Work) -> Fallible<Vec<Outcome>>;
    fn gauges(&mut self) -> Fallible<Gauges>;
    /// Writers that a load without syncs takes to be fastest.
    fn loaders(&self) -> usize;
    fn close(self: Box<Self>) -> Fallible<()>;
}

/// Opens (or makes) an engine's files in a directory that exists.
pub fn open(kind: Kind, directory: &Path, sizing: &Sizing) -> Fallible<Box<dyn Store>> {
    match kind {
        Kind::Dynarc => Ok(Box::new(dynarc::Dynarc::open(directory, sizing)?)),
        #[cfg(feature = "rocksdb")]
        Kind::RocksDb => Ok(Box::new(rocksdb::Rocks::open(directory, sizing, false)?)),
        #[cfg(feature = "rocksdb")]
        Kind::RocksDbBlob => Ok(Box::new(rocksdb::Rocks::open(directory, sizing, true)?)),
        #[cfg(feature = "fjall")]
        Kind::Fjall => Ok(Box::new(fjall::Fjall::open(directory, sizing)?)),
        #[cfg(not(all(feature = "rocksdb", feature = "fjall")))]
        _ => Err(format!("built without {}", kind.name()).into()),
    }
}
