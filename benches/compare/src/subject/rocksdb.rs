//! RocksDB: as it comes (leveled), or with blob files. Its best configuration that keeps the promises: no compression
//! (the values are noise), one cache for blocks and blobs, filters of 10 bits, reads and background work past the page
//! cache, log files used again (their syncs then change no inode), as many background jobs as there are CPUs.

use super::{Gauges, Sizing, Store, threads};
use crate::{
    Fallible,
    records::Records,
    work::{Outcome, Work},
};
use rocksdb::{BlockBasedOptions, Cache, DB, DBCompressionType, Options, ReadOptions, WriteOptions, properties};
use std::path::Path;

/// Bytes of a memory table; two may wait for their flush.
const WRITE_BUFFER_BYTES: usize = 64 << 20;
/// Values from here on go to blob files.
const BLOB_BYTES_MIN: u64 = 1024;
/// Blob files are collected when this share of the oldest quarter of them is garbage.
const GARBAGE_SHARE: f64 = 0.5;

pub struct Rocks {
    peer: RocksPeer,
    records: Records,
}

struct RocksPeer {
    db: DB,
    synced: WriteOptions,
    buffered: WriteOptions,
    read: ReadOptions,
}

impl Rocks {
    pub fn open(directory: &Path, sizing: &Sizing, blobs: bool) -> Fallible<Rocks> {
        let db = DB::open(&options(sizing, blobs), directory)?;
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        let peer = RocksPeer { db, synced, buffered: WriteOptions::default(), read: ReadOptions::default() };
        Ok(Rocks { peer, records: sizing.records.clone() })
    }
}

fn options(sizing: &Sizing, blobs: bool) -> Options {
    let jobs = std::thread::available_parallelism().map_or(2, |n| n.get()) as i32;
    let cache = Cache::new_lru_cache(sizing.cache_bytes as usize);
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&cache);
    blocks.set_bloom_filter(10.0, false);
    blocks.set_format_version(6);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.increase_parallelism(jobs.max(2));
    options.set_block_based_table_factory(&blocks);
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(3);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_use_direct_reads(true);
    options.set_use_direct_io_for_flush_and_compaction(true);
    options.set_recycle_log_file_num(4);
    options.set_max_open_files(-1);
    options.set_disable_auto_compactions(!sizing.background);
    if blobs {
        options.set_enable_blob_files(true);
        options.set_min_blob_size(BLOB_BYTES_MIN);
        options.set_blob_compression_type(DBCompressionType::None);
        options.set_enable_blob_gc(true);
        options.set_blob_gc_age_cutoff(0.25);
        options.set_blob_gc_force_threshold(GARBAGE_SHARE);
        options.set_blob_cache(&cache);
    }
    options
}

impl threads::Peer for RocksPeer {
    fn put(&self, key: &[u8], record: &[u8], durable: bool) -> Fallible<()> {
        let how = if durable { &self.synced } else { &self.buffered };
        Ok(self.db.put_opt(key, record, how)?)
    }
    fn get(&self, key: &[u8]) -> Fallible<Option<usize>> {
        Ok(self.db.get_pinned_opt(key, &self.read)?.map(|value| value.len()))
    }
    fn backlogged(&self) -> bool {
        [properties::NUM_RUNNING_COMPACTIONS, properties::COMPACTION_PENDING, properties::NUM_RUNNING_FLUSHES]
            .into_iter()
            .any(|name| self.db.property_int_value(name).ok().flatten().unwrap_or(0) > 0)
    }
}

impl Store for Rocks {
    fn run(&mut self, work: &Work) -> Fallible<Vec<Outcome>> {
        threads::run(&self.peer, &self.records, work)
    }
    fn gauges(&mut self) -> Fallible<Gauges> {
        let index_bytes = self.peer.db.property_int_value(properties::ESTIMATE_TABLE_READERS_MEM)?;
        Ok(Gauges { index_bytes, ..Gauges::default() })
    }
    fn loaders(&self) -> usize {
        4
    }
    fn close(self: Box<Self>) -> Fallible<()> {
        self.peer.db.cancel_all_background_work(true);
        Ok(())
    }
}
