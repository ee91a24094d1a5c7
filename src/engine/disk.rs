//! The seam between the engine and a disk: a directory of page-aligned files. Real files and simulated ones
//! implement it; the engine cannot tell.
//!
//! Every offset and length is a multiple of [`PAGE`]: the files are opened past the page cache. Paths are relative
//! to the node's data directory, with `/` between parts. Nothing is durable before the sync that says so: a file's
//! bytes after [`DiskFile::write`] with [`Sync::Data`] or [`DiskFile::sync`], a file's name after [`Disk::sync_dir`]
//! of the directory that holds it.
//!
//! Errors are final: the caller never retries a failed write or sync (the state of the file is then unknown), it
//! stops using the shard.

use crate::limits::PAGE;
use bytes::Bytes;
use std::{future::Future, io, ops::Range, rc::Rc, time::Duration};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// A buffer that begins on a page and is a whole number of pages long, as O_DIRECT wants it.
pub struct PageBuffer(Vec<Page>);

impl PageBuffer {
    /// Zeroed, `bytes` rounded up to whole pages.
    pub fn zeroed(bytes: usize) -> PageBuffer {
        let mut pages = Vec::new();
        pages.resize_with(bytes.div_ceil(PAGE), Page::new_zeroed);
        PageBuffer(pages)
    }
    pub fn as_slice(&self) -> &[u8] {
        self.0.as_slice().as_bytes()
    }
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.0.as_mut_slice().as_mut_bytes()
    }
    /// The length in bytes, always a multiple of [`PAGE`].
    pub fn len(&self) -> usize {
        self.0.len() * PAGE
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// Makes the buffer as long as `bytes` rounded up to whole pages. Pages that are added are zero, the others stay as
    /// they are. Memory is never given back, so that a buffer can be used again for another length.
    pub fn resize(&mut self, bytes: usize) {
        self.0.resize_with(bytes.div_ceil(PAGE), Page::new_zeroed);
    }
    /// Keeps the first `bytes`, rounded up to whole pages.
    pub fn truncate(&mut self, bytes: usize) {
        self.0.truncate(bytes.div_ceil(PAGE));
    }
    /// Shares the buffer without a copy; it is freed with the last slice of it.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}
impl AsRef<[u8]> for PageBuffer {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

/// The durability that a write must have when it completes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sync {
    /// Nothing: a crash may lose any part of it, or keep it.
    None,
    /// The bytes of this write are durable (as by RWF_DSYNC); other pending writes of the file may still be lost.
    Data,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// Must exist; only reads.
    Read,
    /// Must exist; reads and writes.
    Write,
    /// Must not exist; reads and writes.
    Create,
}

/// The lane of the disk's queue that an access takes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Lane {
    /// A client waits.
    Foreground,
    /// The log: clients wait for all that a batch holds.
    Log,
    /// Memtables on their way into tables: clients wait when they fill faster than they empty.
    Flush,
    /// Compaction, collection, scans for repair.
    Background,
}

/// Whether a file system says that there is no room: for bytes, files or names, for this user, or in this file or
/// directory. All of it is met like a full disk.
pub fn lacks_room(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull, TooManyLinks};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge | TooManyLinks)
}

/// Space of the file system that holds the directory, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    pub total: u64,
    pub available: u64,
}

/// A directory tree of files. All calls complete on the caller's own core.
pub trait Disk: 'static {
    type File: DiskFile;
    fn open(&self, path: &str, mode: OpenMode) -> impl Future<Output = io::Result<Rc<Self::File>>>;
    /// Names and byte lengths of the files in a directory, in no order; subdirectories end with `/` and have length
    /// 0. A missing directory is an empty one.
    fn list(&self, directory: &str) -> impl Future<Output = io::Result<Vec<(String, u64)>>>;
    /// Makes a directory and its parents; fine if it exists.
    fn create_dir(&self, directory: &str) -> impl Future<Output = io::Result<()>>;
    /// Replaces `to` if it exists. Durable after [`Disk::sync_dir`].
    fn rename(&self, from: &str, to: &str) -> impl Future<Output = io::Result<()>>;
    fn remove(&self, path: &str) -> impl Future<Output = io::Result<()>>;
    /// Makes creations, renames and removals in this directory durable.
    fn sync_dir(&self, directory: &str) -> impl Future<Output = io::Result<()>>;
    fn space(&self) -> io::Result<Space>;
    /// Ready after so long. The engine's only notion of time.
    fn pause(&self, duration: Duration) -> impl Future<Output = ()>;
    /// Lets other work of this core run: long loops of computation call it every 50 to 100 microseconds or so.
    fn breathe(&self) -> impl Future<Output = ()>;
}

/// An open file. Closed when the last handle is dropped.
#[allow(clippy::len_without_is_empty)] // nobody asks whether a file is empty
pub trait DiskFile: 'static {
    /// Fills `range` of the buffer, which must lie within it, from `offset` on (all whole pages), and gives it back.
    /// Past the end of the file: `UnexpectedEof`. After an error the range may hold anything.
    fn read_into(
        &self,
        offset: u64,
        buffer: PageBuffer,
        range: Range<usize>,
        lane: Lane,
    ) -> impl Future<Output = (PageBuffer, io::Result<()>)>;
    /// Reads exactly `bytes` at `offset` (both whole pages). Past the end of the file: `UnexpectedEof`.
    fn read(&self, offset: u64, bytes: usize, lane: Lane) -> impl Future<Output = io::Result<PageBuffer>> {
        async move {
            let buffer = PageBuffer::zeroed(bytes);
            let range = 0..bytes;
            let (buffer, result) = self.read_into(offset, buffer, range, lane).await;
            result.map(|()| buffer)
        }
    }
    /// Writes the whole buffer at `offset`, extending the file if need be; a short write is an error. Gives the
    /// buffer back for reuse.
    fn write(
        &self,
        offset: u64,
        buffer: PageBuffer,
        sync: Sync,
        lane: Lane,
    ) -> impl Future<Output = (PageBuffer, io::Result<()>)>;
    /// Makes all completed writes of the file durable, its length included.
    fn sync(&self) -> impl Future<Output = io::Result<()>>;
    /// Reserves space up to `bytes` and sets the file's length to it; new bytes read as zero. Not durable by itself.
    fn allocate(&self, bytes: u64) -> impl Future<Output = io::Result<()>>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
}
