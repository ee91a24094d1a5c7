//! The real disk: files past the page cache, over the core's ring.
//!
//! Each core has a [queue](super::queue) of its own, so that a flush of many megabytes never stands before a read that
//! a client waits for: background accesses go in pieces of `PIECE_BYTES`, a few at a time.
//!
//! Every length is checked: a short write is carried on (the kernel then names the error that cut it), and one that
//! makes no progress is an error.

use super::{
    kernel,
    probe::SyncCall,
    queue::DiskQueue,
    ring::{Advice, Descriptor, Ring},
};
use crate::{
    engine::disk::{Disk, DiskFile, Lane, OpenMode, PageBuffer, Space, Sync, lacks_room},
    limits::{KIB, PAGE},
};
use std::{
    io,
    ops::Range,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

/// Bytes of one background access.
const PIECE_BYTES: usize = 128 * KIB;
/// Pause before a file is tried again that could not be opened for want of descriptors or memory.
const OPEN_PAUSE: Duration = Duration::from_millis(50);
/// Bytes of one foreground or log access.
const ACCESS_BYTES_MAX: usize = 64 * 1024 * KIB;

/// The node's directory as one core sees it.
pub struct RingDisk {
    ring: Rc<Ring>,
    root: Descriptor,
    path: PathBuf,
    queue: Rc<DiskQueue>,
    sync_call: SyncCall,
}

impl RingDisk {
    /// The directory must exist.
    pub fn new(ring: Rc<Ring>, path: &Path) -> io::Result<RingDisk> {
        let root = std::fs::File::open(path)?;
        Ok(RingDisk {
            ring,
            root: Descriptor::new(OwnedFd::from(root)),
            path: path.into(),
            queue: Rc::default(),
            sync_call: SyncCall::default(),
        })
    }
    /// The same, with writes made durable by this call.
    pub fn syncing_by(self, sync_call: SyncCall) -> RingDisk {
        RingDisk { sync_call, ..self }
    }

    /// How urgent background work is, 0 to 1: more of it is at the device then.
    pub fn set_urgency(&self, urgency: f64) {
        self.queue.set_urgency(urgency);
    }

    async fn open_patiently(&self, path: &str, flags: i32) -> io::Result<Descriptor> {
        self.patiently(path, || self.ring.open(&self.root, path, flags)).await
    }
    /// Opens a file or a directory. A want of descriptors or memory is waited out: a storage that failed for it would
    /// have to be started again.
    async fn patiently<T, F>(&self, path: &str, open: impl Fn() -> F) -> io::Result<T>
    where
        F: Future<Output = io::Result<T>>,
    {
        let mut waited = Duration::ZERO;
        loop {
            match open().await {
                Err(e) if kernel::lacks_descriptors(&e) => {
                    if waited.as_secs().is_multiple_of(10) && waited.subsec_nanos() == 0 {
                        tracing::warn!(path, error = %e, "a file of the storage cannot be opened: waiting until it can");
                    }
                }
                opened => return opened,
            }
            self.ring.pause(OPEN_PAUSE).await;
            waited += OPEN_PAUSE;
        }
    }

    /// An error of an open, with the file that it is about.
    fn name(&self, path: &str, error: io::Error) -> io::Error {
        if lacks_room(&error) || matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) {
            return error;
        }
        match self.absolute(path).ok().and_then(|path| kernel::not_a_file(&path)) {
            Some(what @ "a symbolic link") => {
                let text = format!("{path} is {what}, and a file is needed: put the file itself there");
                io::Error::new(io::ErrorKind::InvalidData, text)
            }
            Some(what) => io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{path} is {what}, and a file is needed: remove it"),
            ),
            None => io::Error::new(error.kind(), format!("{path}: {error}")),
        }
    }
    fn absolute(&self, path: &str) -> io::Result<PathBuf> {
        let plain = Path::new(path).components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if plain { Ok(self.path.join(path)) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }
}

impl Disk for RingDisk {
    type File = RingFile;

    async fn open(&self, path: &str, mode: OpenMode) -> io::Result<Rc<RingFile>> {
        let flags = match mode {
            OpenMode::Read => libc::O_RDONLY,
            OpenMode::Write => libc::O_RDWR,
            OpenMode::Create => libc::O_RDWR | libc::O_CREAT | libc::O_EXCL,
        };
        // A FIFO must not be waited for.
        let flags = flags | libc::O_DIRECT | libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = self.open_patiently(path, flags).await.map_err(|error| self.name(path, error))?;
        if !kernel::is_file(file.owned())? {
            return Err(self.name(path, io::ErrorKind::InvalidInput.into()));
        }
        let (ring, queue) = (self.ring.clone(), self.queue.clone());
        Ok(Rc::new(RingFile { ring, file: Some(file), queue, sync_call: self.sync_call }))
    }

    async fn list(&self, directory: &str) -> io::Result<Vec<(String, u64)>> {
        let path = if directory.is_empty() { self.path.clone() } else { self.absolute(directory)? };
        // Rare (start and clean-up), and the ring has no operation for it.
        let read = || {
            let path = path.clone();
            glommio::executor().spawn_blocking(move || names(&path))
        };
        self.patiently(directory, read).await
    }

    async fn create_dir(&self, directory: &str) -> io::Result<()> {
        let ends = directory.match_indices('/').map(|(at, _)| at).chain([directory.len()]);
        for end in ends.filter(|end| *end > 0) {
            match self.ring.make_dir(&self.root, &directory[..end]).await {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.ring.rename(&self.root, from, to).await
    }

    async fn remove(&self, path: &str) -> io::Result<()> {
        self.ring.unlink(&self.root, path).await
    }

    async fn sync_dir(&self, directory: &str) -> io::Result<()> {
        let directory = if directory.is_empty() { "." } else { directory };
        let opened = self.open_patiently(directory, libc::O_RDONLY | libc::O_DIRECTORY).await?;
        self.ring.sync(&opened).await
    }

    fn space(&self) -> io::Result<Space> {
        let (total, available) = kernel::file_system_bytes(self.root.owned())?;
        Ok(Space { total, available })
    }

    async fn pause(&self, duration: Duration) {
        self.ring.pause(duration).await;
    }

    async fn breathe(&self) {
        let executor = glommio::executor();
        let _wanted = self.ring.want();
        if self.ring.pressing() {
            self.ring.nudge();
            executor.yield_task_queue_now().await;
        } else {
            executor.yield_if_needed().await;
        }
    }
}

fn names(path: &Path) -> io::Result<Vec<(String, u64)>> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let metadata = match entry.metadata() {
            // Gone since its name was read.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        // Names that are not text are not ours.
        let Ok(name) = entry.file_name().into_string() else { continue };
        if metadata.is_dir() {
            found.push((name + "/", 0));
        } else {
            found.push((name, metadata.len()));
        }
    }
    Ok(found)
}

/// An open file.
pub struct RingFile {
    ring: Rc<Ring>,
    /// Taken when the file is closed.
    file: Option<Descriptor>,
    queue: Rc<DiskQueue>,
    sync_call: SyncCall,
}

impl RingFile {
    fn descriptor(&self) -> &Descriptor {
        self.file.as_ref().expect("a file is open until it is dropped")
    }
}

impl Drop for RingFile {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            self.ring.close_aside(file);
        }
    }
}

impl DiskFile for RingFile {
    async fn read_into(
        &self,
        offset: u64,
        mut buffer: PageBuffer,
        range: Range<usize>,
        lane: Lane,
    ) -> (PageBuffer, io::Result<()>) {
        if let Err(error) = check_range(offset, &buffer, &range) {
            return (buffer, Err(error));
        }
        let mut at = range.start;
        while at < range.end {
            let (piece, from) = (piece_bytes(lane).min(range.end - at), offset + (at - range.start) as u64);
            let _turn = self.queue.enter(lane).await;
            let (back, result) = self.ring.read(self.descriptor(), from, buffer, at, piece).await;
            buffer = back;
            match result {
                Ok(n) if n > 0 && n.is_multiple_of(PAGE) => at += n,
                // The file ends here, or within a page.
                Ok(_) => return (buffer, Err(io::ErrorKind::UnexpectedEof.into())),
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
                Err(e) => return (buffer, Err(e)),
            }
        }
        (buffer, Ok(()))
    }

    async fn write(&self, offset: u64, buffer: PageBuffer, sync: Sync, lane: Lane) -> (PageBuffer, io::Result<()>) {
        let bytes = buffer.len();
        if let Err(e) = check_pages(offset, bytes) {
            return (buffer, Err(e));
        }
        // A single access carries its own sync; several are followed by one.
        let single = bytes <= piece_bytes(lane) && self.sync_call == SyncCall::Dsync;
        let advice = if single && sync == Sync::Data { Advice::Durable } else { Advice::Plain };
        let (buffer, result) = self.write_pieces(offset, buffer, advice, lane).await;
        if result.is_err() || single || sync == Sync::None {
            return (buffer, result);
        }
        (buffer, self.ring.sync_bytes(self.descriptor()).await)
    }

    async fn sync(&self) -> io::Result<()> {
        self.ring.sync(self.descriptor()).await
    }

    async fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.ring.allocate(self.descriptor(), bytes).await
    }

    fn len(&self) -> io::Result<u64> {
        kernel::file_bytes(self.descriptor().owned())
    }
}

impl RingFile {
    async fn write_pieces(
        &self,
        offset: u64,
        mut buffer: PageBuffer,
        advice: Advice,
        lane: Lane,
    ) -> (PageBuffer, io::Result<()>) {
        let (mut at, bytes) = (0, buffer.len());
        while at < bytes {
            let piece = piece_bytes(lane).min(bytes - at);
            let _turn = self.queue.enter(lane).await;
            let writing = self.ring.write(self.descriptor(), offset + at as u64, buffer, at, piece, advice);
            if lane == Lane::Log {
                // The core may have much to do before its next turn.
                self.ring.submit();
            }
            let (back, result) = writing.await;
            buffer = back;
            match result {
                Ok(0) => return (buffer, Err(io::ErrorKind::WriteZero.into())),
                Ok(n) if n.is_multiple_of(PAGE) => at += n,
                Ok(n) => {
                    let cut = io::Error::new(io::ErrorKind::WriteZero, format!("{n} of {piece} bytes were written"));
                    return (buffer, Err(cut));
                }
                Err(e) => return (buffer, Err(e)),
            }
        }
        (buffer, Ok(()))
    }
}

fn piece_bytes(lane: Lane) -> usize {
    match lane {
        Lane::Flush | Lane::Background => PIECE_BYTES,
        Lane::Foreground | Lane::Log => ACCESS_BYTES_MAX,
    }
}

/// Whole pages, and within the buffer.
fn check_range(offset: u64, buffer: &PageBuffer, range: &Range<usize>) -> io::Result<()> {
    check_pages(offset, range.start)?;
    check_pages(offset, range.end)?;
    if range.start <= range.end && range.end <= buffer.len() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{range:?} of a buffer of {} bytes", buffer.len())))
}
fn check_pages(offset: u64, bytes: usize) -> io::Result<()> {
    if offset.is_multiple_of(PAGE as u64) && bytes.is_multiple_of(PAGE) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{bytes} bytes at {offset} are not whole pages")))
}
