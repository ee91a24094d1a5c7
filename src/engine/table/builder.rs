//! Writes one table, front to back.

use super::{
    TableMeta,
    block::BlockBuilder,
    filter::{self, Filter},
    footer::Footer,
    index::{self, IndexBuilder},
    path,
    record::{self, RecordRef},
    section::{self, HEADER_BYTES, Kind, Place},
};
use crate::{
    engine::{
        disk::{Disk, DiskFile, Lane, OpenMode, PageBuffer, Sync},
        error::EngineError,
        types::{ENGINE_KEY_BYTES_MAX, EngineOptions, Stored, StoredValue},
    },
    limits::{BLOCK_BYTES_MAX, PAGE, TABLE_WRITE_BYTES},
    types::SliceId,
};
use bytes::Bytes;
use std::rc::Rc;

/// Blocks after which the builder lets others run: some 50 microseconds of encoding.
const BLOCKS_PER_BREATH: u32 = 16;
/// Keys put into the filter between two breaths.
const FILTER_KEYS_PER_BREATH: usize = 8192;

/// Writes one table. Records come in key order; what they take in memory is one write buffer, one block, the index and
/// eight bytes a key. After an error only [`Builder::abandon`] is of use.
pub struct Builder<D: Disk> {
    disk: Rc<D>,
    file: Rc<D::File>,
    /// The fields that are known at the end are filled in while records come.
    meta: TableMeta,
    out: Output,
    block: BlockBuilder,
    /// Separator of the block that is being collected.
    separator: Vec<u8>,
    index: IndexBuilder,
    hashes: Vec<u64>,
    last_key: Vec<u8>,
    record: Vec<u8>,
}

impl<D: Disk> Builder<D> {
    /// Creates the file, which must not exist; its directory must.
    pub async fn create(
        disk: &Rc<D>,
        slice: SliceId,
        id: u64,
        level: u8,
        options: &EngineOptions,
    ) -> Result<Builder<D>, EngineError> {
        let file = disk.open(&path(slice, id), OpenMode::Create).await?;
        let block_bytes = options.block_bytes.next_multiple_of(PAGE).clamp(PAGE, BLOCK_BYTES_MAX);
        let meta = TableMeta {
            id,
            slice,
            level,
            smallest: Bytes::new(),
            largest: Bytes::new(),
            entries: 0,
            deletes: 0,
            bytes: 0,
            max_sequence: 0,
            value_bytes: 0,
        };
        Ok(Builder {
            disk: disk.clone(),
            file,
            meta,
            out: Output {
                buffer: None,
                filled: 0,
                written: 0,
                lane: if level == 0 { Lane::Flush } else { Lane::Background },
            },
            block: BlockBuilder::new(block_bytes),
            separator: Vec::new(),
            index: IndexBuilder::default(),
            hashes: Vec::new(),
            last_key: Vec::new(),
            record: Vec::new(),
        })
    }

    /// Adds a record; keys strictly increase. Lets others run now and then.
    pub async fn add(&mut self, key: &[u8], sequence: u64, stored: &Stored) -> Result<(), EngineError> {
        self.record.clear();
        record::encode(&mut self.record, key, sequence, stored);
        let mut value_bytes = 0;
        if let Stored::Put { values, .. } = stored {
            for value in values {
                if let StoredValue::Pointer(pointer) = value {
                    value_bytes += u64::from(pointer.length);
                }
            }
        }
        self.add_encoded(key, sequence, *stored == Stored::Delete, value_bytes).await
    }

    /// Adds a record of another table as it is; keys strictly increase.
    pub async fn add_ref(&mut self, record: RecordRef<'_>) -> Result<(), EngineError> {
        self.record.clear();
        record::encode_ref(&mut self.record, record);
        let mut value_bytes = 0;
        record
            .pointers(|pointer| value_bytes += u64::from(pointer.length))
            .map_err(|flaw| EngineError::Damaged(format!("a record read for {}: {}", self.path(), flaw.0)))?;
        self.add_encoded(record.key, record.sequence, record.is_delete(), value_bytes).await
    }

    async fn add_encoded(
        &mut self,
        key: &[u8],
        sequence: u64,
        delete: bool,
        value_bytes: u64,
    ) -> Result<(), EngineError> {
        let first = self.meta.entries == 0;
        if key.len() > ENGINE_KEY_BYTES_MAX || (!first && key <= &self.last_key[..]) {
            return Err(EngineError::Failed(format!("{}: keys too long or out of order", self.path())));
        }
        if self.block.is_full_for(self.record.len()) {
            self.close_block().await?;
        }
        if self.block.is_empty() && !first {
            self.separator.clear();
            self.separator.extend_from_slice(index::separator(&self.last_key, key));
        }
        self.block.add(&self.record);
        self.hashes.push(filter::hash(key));
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        if first {
            self.meta.smallest = Bytes::copy_from_slice(key);
        }
        self.meta.entries += 1;
        self.meta.deletes += u64::from(delete);
        self.meta.value_bytes += value_bytes;
        self.meta.max_sequence = self.meta.max_sequence.max(sequence);
        Ok(())
    }

    /// Bytes of all blocks so far: about the length that the file will have, without index and filter.
    pub fn bytes(&self) -> u64 {
        self.out.offset() + if self.block.is_empty() { 0 } else { self.block.padded_bytes() as u64 }
    }
    pub fn id(&self) -> u64 {
        self.meta.id
    }
    pub fn entries(&self) -> u64 {
        self.meta.entries
    }
    fn path(&self) -> String {
        path(self.meta.slice, self.meta.id)
    }
    fn place(&self) -> Place {
        Place { slice: self.meta.slice, table: self.meta.id, offset: self.out.offset() }
    }

    async fn close_block(&mut self) -> Result<(), EngineError> {
        let bytes = self.block.padded_bytes();
        let place = self.place();
        self.block.close(self.out.room(&*self.file, bytes).await?, place);
        self.index.add(&self.separator, bytes);
        if self.index.blocks.is_multiple_of(BLOCKS_PER_BREATH) {
            self.disk.breathe().await;
        }
        Ok(())
    }

    /// Writes what is left and syncs the file. At least one record must have been added. The caller syncs the directory
    /// before the manifest names the table, and removes the file after an error.
    pub async fn finish(mut self) -> Result<TableMeta, EngineError> {
        self.write_rest().await?;
        Ok(self.meta)
    }

    async fn write_rest(&mut self) -> Result<(), EngineError> {
        if self.meta.entries == 0 {
            return Err(EngineError::Failed(format!("{}: a table without records", self.path())));
        }
        if !self.block.is_empty() {
            self.close_block().await?;
        }
        let index_offset = self.out.offset();
        let encoded = std::mem::take(&mut self.index.encoded);
        let index_bytes = section::padded_bytes(encoded.len());
        let place = self.place();
        let pages = self.out.room(&*self.file, index_bytes).await?;
        pages[HEADER_BYTES..HEADER_BYTES + encoded.len()].copy_from_slice(&encoded);
        section::seal(pages, encoded.len(), self.index.blocks, Kind::Index, place);

        let filter = self.filter().await;
        let filter_bytes = section::padded_bytes(filter.encoded_bytes());
        let place = self.place();
        let pages = self.out.room(&*self.file, filter_bytes).await?;
        filter.encode(&mut pages[HEADER_BYTES..HEADER_BYTES + filter.encoded_bytes()]);
        section::seal(pages, filter.encoded_bytes(), filter.lines() as u32, Kind::Filter, place);

        self.meta.largest = Bytes::copy_from_slice(&self.last_key);
        self.meta.bytes = self.out.offset() + PAGE as u64;
        let footer = Footer {
            meta: self.meta.clone(),
            index_offset,
            index_pages: (index_bytes / PAGE) as u32,
            filter_pages: (filter_bytes / PAGE) as u32,
            blocks: self.index.blocks,
        };
        footer.encode(self.out.room(&*self.file, PAGE).await?);
        self.out.write(&*self.file).await?;
        Ok(self.file.sync().await?)
    }

    async fn filter(&mut self) -> Filter {
        let hashes = std::mem::take(&mut self.hashes);
        let mut filter = Filter::for_keys(hashes.len());
        for some in hashes.chunks(FILTER_KEYS_PER_BREATH) {
            some.iter().for_each(|hash| filter.insert(*hash));
            self.disk.breathe().await;
        }
        filter
    }

    /// Removes the file.
    pub async fn abandon(self) -> Result<(), EngineError> {
        Ok(self.disk.remove(&self.path()).await?)
    }
}

/// Pages on their way to the file: collected until [`TABLE_WRITE_BYTES`] are full.
struct Output {
    buffer: Option<PageBuffer>,
    /// Bytes of the buffer in use.
    filled: usize,
    /// Bytes of the file written.
    written: u64,
    lane: Lane,
}
impl Output {
    /// The offset in the file at which the next page goes.
    fn offset(&self) -> u64 {
        self.written + self.filled as u64
    }
    /// Room for so many bytes, whole pages: what is full is written first. The pages may hold old bytes.
    async fn room<F: DiskFile>(&mut self, file: &F, bytes: usize) -> Result<&mut [u8], EngineError> {
        if self.buffer.as_ref().is_some_and(|buffer| self.filled + bytes > buffer.len()) {
            self.write(file).await?;
        }
        let buffer = self.buffer.take().filter(|buffer| buffer.len() >= bytes);
        let buffer = self.buffer.insert(buffer.unwrap_or_else(|| PageBuffer::zeroed(bytes.max(TABLE_WRITE_BYTES))));
        let begin = self.filled;
        self.filled += bytes;
        Ok(&mut buffer.as_mut_slice()[begin..self.filled])
    }
    async fn write<F: DiskFile>(&mut self, file: &F) -> Result<(), EngineError> {
        let Some(mut buffer) = self.buffer.take().filter(|_| self.filled > 0) else { return Ok(()) };
        buffer.truncate(self.filled);
        let (buffer, result) = file.write(self.written, buffer, Sync::None, self.lane).await;
        result?;
        self.written += self.filled as u64;
        self.filled = 0;
        // A buffer that was cut is of no more use than its length.
        self.buffer = Some(buffer).filter(|buffer| buffer.len() >= TABLE_WRITE_BYTES);
        Ok(())
    }
}
