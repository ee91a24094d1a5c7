//! Operations on files and directories.

use super::{Descriptor, Operation, Ring, operation::Payload};
use crate::engine::disk::PageBuffer;
use io_uring::{opcode, squeue, types::Fd, types::FsyncFlags};
use std::{
    cell::Cell,
    ffi::CString,
    future::Future,
    io,
    os::fd::{FromRawFd, OwnedFd},
    rc::Rc,
};

/// The durability of a write when it completes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    Plain,
    /// RWF_DSYNC: the bytes are durable.
    Durable,
}

/// Counts a read for as long as it is in flight.
struct Reading(Rc<Cell<usize>>);
impl Reading {
    fn begin(reads: &Rc<Cell<usize>>) -> Reading {
        reads.set(reads.get() + 1);
        Reading(reads.clone())
    }
}
impl Drop for Reading {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

struct Read {
    _counted: Reading,
    file: Descriptor,
    offset: u64,
    /// Range of the buffer to fill.
    at: usize,
    bytes: usize,
    buffer: PageBuffer,
}

// Safety: the buffer's pages are on the heap; `at + bytes` is within it (checked in `Ring::read`).
unsafe impl Payload for Read {
    type Output = (PageBuffer, io::Result<usize>);
    const CANCEL: bool = false;
    fn entry(&mut self) -> squeue::Entry {
        let target = self.buffer.as_mut_slice()[self.at..self.at + self.bytes].as_mut_ptr();
        opcode::Read::new(Fd(self.file.raw()), target, self.bytes as u32).offset(self.offset).build()
    }
    fn finish(self, result: io::Result<u32>) -> Self::Output {
        (self.buffer, result.map(|n| n as usize))
    }
}

struct Write {
    file: Descriptor,
    offset: u64,
    at: usize,
    bytes: usize,
    advice: Advice,
    buffer: PageBuffer,
}

// Safety: as for `Read`.
unsafe impl Payload for Write {
    type Output = (PageBuffer, io::Result<usize>);
    const CANCEL: bool = false;
    fn entry(&mut self) -> squeue::Entry {
        let source = self.buffer.as_slice()[self.at..self.at + self.bytes].as_ptr();
        let flags = if self.advice == Advice::Durable { libc::RWF_DSYNC } else { 0 };
        opcode::Write::new(Fd(self.file.raw()), source, self.bytes as u32).offset(self.offset).rw_flags(flags).build()
    }
    fn finish(self, result: io::Result<u32>) -> Self::Output {
        (self.buffer, result.map(|n| n as usize))
    }
}

/// An operation whose entry names nothing but a descriptor and numbers.
struct Plain {
    file: Descriptor,
    entry: squeue::Entry,
}

// Safety: the entry holds no address.
unsafe impl Payload for Plain {
    type Output = io::Result<()>;
    const CANCEL: bool = false;
    fn entry(&mut self) -> squeue::Entry {
        self.entry.clone()
    }
    fn finish(self, result: io::Result<u32>) -> io::Result<()> {
        drop(self.file);
        result.map(drop)
    }
}

struct Paths<F> {
    directory: Descriptor,
    first: CString,
    second: Option<CString>,
    build: F,
}

// Safety: the strings' bytes are on the heap.
unsafe impl<F> Payload for Paths<F>
where
    F: Fn(i32, *const libc::c_char, *const libc::c_char) -> squeue::Entry + 'static,
{
    type Output = io::Result<()>;
    const CANCEL: bool = false;
    fn entry(&mut self) -> squeue::Entry {
        let second = self.second.as_ref().map_or(std::ptr::null(), |s| s.as_ptr());
        (self.build)(self.directory.raw(), self.first.as_ptr(), second)
    }
    fn finish(self, result: io::Result<u32>) -> io::Result<()> {
        result.map(drop)
    }
}

struct Open {
    directory: Descriptor,
    path: CString,
    flags: i32,
    mode: u32,
}

// Safety: the path's bytes are on the heap.
unsafe impl Payload for Open {
    type Output = io::Result<Descriptor>;
    const CANCEL: bool = false;
    fn entry(&mut self) -> squeue::Entry {
        opcode::OpenAt::new(Fd(self.directory.raw()), self.path.as_ptr()).flags(self.flags).mode(self.mode).build()
    }
    fn finish(self, result: io::Result<u32>) -> io::Result<Descriptor> {
        // Safety: the kernel has just opened it for us.
        result.map(|fd| Descriptor::new(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }
    fn discard(self, result: i32) {
        if result >= 0 {
            // Safety: as above.
            drop(unsafe { OwnedFd::from_raw_fd(result) });
        }
    }
}

fn c_path(path: &str) -> io::Result<CString> {
    CString::new(path).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a path holds a zero byte"))
}

impl Ring {
    /// Reads up to `bytes` at `offset` into `buffer[at..]`; gives the buffer back with the number of bytes read.
    pub fn read(
        self: &Rc<Ring>,
        file: &Descriptor,
        offset: u64,
        buffer: PageBuffer,
        at: usize,
        bytes: usize,
    ) -> impl Future<Output = (PageBuffer, io::Result<usize>)> + use<> {
        assert!(at + bytes <= buffer.len(), "a read within its buffer");
        let _counted = Reading::begin(&self.reads);
        Operation::start(self, Read { _counted, file: file.clone(), offset, at, bytes, buffer })
    }

    /// Writes up to `bytes` of `buffer[at..]` at `offset`; gives the buffer back with the number of bytes written.
    pub fn write(
        self: &Rc<Ring>,
        file: &Descriptor,
        offset: u64,
        buffer: PageBuffer,
        at: usize,
        bytes: usize,
        advice: Advice,
    ) -> impl Future<Output = (PageBuffer, io::Result<usize>)> + use<> {
        assert!(at + bytes <= buffer.len(), "a write within its buffer");
        Operation::start(self, Write { file: file.clone(), offset, at, bytes, advice, buffer })
    }

    /// fsync: bytes, length and all else of the file or directory.
    pub fn sync(self: &Rc<Ring>, file: &Descriptor) -> impl Future<Output = io::Result<()>> + use<> {
        let entry = opcode::Fsync::new(Fd(file.raw())).flags(FsyncFlags::empty()).build();
        Operation::start(self, Plain { file: file.clone(), entry })
    }

    /// fdatasync: bytes, and the length if it has grown.
    pub fn sync_bytes(self: &Rc<Ring>, file: &Descriptor) -> impl Future<Output = io::Result<()>> + use<> {
        let entry = opcode::Fsync::new(Fd(file.raw())).flags(FsyncFlags::DATASYNC).build();
        Operation::start(self, Plain { file: file.clone(), entry })
    }

    /// Reserves the file's first `bytes`, and makes it that long if it is shorter.
    pub fn allocate(self: &Rc<Ring>, file: &Descriptor, bytes: u64) -> impl Future<Output = io::Result<()>> + use<> {
        let entry = opcode::Fallocate::new(Fd(file.raw()), bytes).offset(0).mode(0).build();
        Operation::start(self, Plain { file: file.clone(), entry })
    }

    /// Closes a file away from this core's loop: the last close of a removed file frees its blocks, which takes long.
    pub fn close_aside(self: &Rc<Ring>, file: Descriptor) {
        let Some(owned) = file.into_owned() else { return };
        let entry = opcode::Close::new(Fd(std::os::fd::IntoRawFd::into_raw_fd(owned))).build();
        drop(Operation::start(self, Closing(entry.flags(squeue::Flags::ASYNC))));
    }

    pub async fn open(self: &Rc<Ring>, directory: &Descriptor, path: &str, flags: i32) -> io::Result<Descriptor> {
        let path = c_path(path)?;
        let flags = flags | libc::O_CLOEXEC;
        Operation::start(self, Open { directory: directory.clone(), path, flags, mode: 0o640 }).await
    }

    pub async fn rename(self: &Rc<Ring>, directory: &Descriptor, from: &str, to: &str) -> io::Result<()> {
        let (first, second) = (c_path(from)?, Some(c_path(to)?));
        let build = |fd, from, to| opcode::RenameAt::new(Fd(fd), from, Fd(fd), to).build();
        Operation::start(self, Paths { directory: directory.clone(), first, second, build }).await
    }

    pub async fn unlink(self: &Rc<Ring>, directory: &Descriptor, path: &str) -> io::Result<()> {
        let build = |fd, path, _| opcode::UnlinkAt::new(Fd(fd), path).build();
        Operation::start(self, Paths { directory: directory.clone(), first: c_path(path)?, second: None, build }).await
    }

    pub async fn make_dir(self: &Rc<Ring>, directory: &Descriptor, path: &str) -> io::Result<()> {
        let build = |fd, path, _| opcode::MkDirAt::new(Fd(fd), path).mode(0o750).build();
        Operation::start(self, Paths { directory: directory.clone(), first: c_path(path)?, second: None, build }).await
    }
}

/// A close: it owns the number, nothing else does.
struct Closing(squeue::Entry);

// Safety: the entry holds no address.
unsafe impl Payload for Closing {
    type Output = ();
    const CANCEL: bool = false;
    fn entry(&mut self) -> squeue::Entry {
        self.0.clone()
    }
    fn finish(self, _: io::Result<u32>) {}
}
