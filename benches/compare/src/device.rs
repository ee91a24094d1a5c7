//! What the kernel knows of this process and its directory, and what the device does when nobody is in between.

use crate::{Fallible, work::histogram};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

/// The unit of O_DIRECT.
pub const PAGE: usize = 4096;

/// Bytes that this process has caused to be written to and read from devices (`/proc/self/io`), and its CPU time.
#[derive(Clone, Copy, Default, Debug)]
pub struct Account {
    pub written: u64,
    pub read: u64,
    pub cpu: Duration,
}

impl Account {
    pub fn now() -> Account {
        let text = fs::read_to_string("/proc/self/io").unwrap_or_default();
        let field = |name: &str| -> u64 {
            let line = text.lines().find(|l| l.split(':').next() == Some(name));
            line.and_then(|l| l.split(':').nth(1)?.trim().parse().ok()).unwrap_or(0)
        };
        let written = field("write_bytes").saturating_sub(field("cancelled_write_bytes"));
        Account { written, read: field("read_bytes"), cpu: cpu_time() }
    }
    pub fn since(self, before: Account) -> Account {
        Account {
            written: self.written.saturating_sub(before.written),
            read: self.read.saturating_sub(before.read),
            cpu: self.cpu.saturating_sub(before.cpu),
        }
    }
}

fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // Safety: the address is that of a local of the right type.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Times that this process went on after it had been stopped.
static CONTINUED: AtomicU64 = AtomicU64::new(0);

extern "C" fn continued(_: libc::c_int) {
    CONTINUED.fetch_add(1, Ordering::Relaxed);
}

/// Counts from now on how often this process is stopped (by SIGSTOP, or a terminal) and goes on.
pub fn watch_stops() {
    let noted: extern "C" fn(libc::c_int) = continued;
    // Safety: what is called touches an atomic only.
    unsafe { libc::signal(libc::SIGCONT, noted as libc::sighandler_t) };
}

/// See [`watch_stops`].
pub fn stops() -> u64 {
    CONTINUED.load(Ordering::Relaxed)
}

/// Waits until this process has written nothing for a second: background work has caught up. At most `patience`.
pub fn settle(patience: Duration) {
    let start = Instant::now();
    let (mut written, mut quiet) = (Account::now().written, Instant::now());
    while start.elapsed() < patience && quiet.elapsed() < Duration::from_secs(1) {
        thread::sleep(Duration::from_millis(50));
        let now = Account::now().written;
        if now != written {
            (written, quiet) = (now, Instant::now());
        }
    }
}

/// Bytes that the files of a directory take on the device, reserved space included.
pub fn space(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => space(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        // Removed meanwhile.
        Err(_) => 0,
    };
    entries.flatten().map(of).sum()
}

/// Runs `body`; the greatest [`space`] of the directory meanwhile beside its result.
pub fn most_space<T>(directory: &Path, body: impl FnOnce() -> T) -> (T, u64) {
    let (over, most) = (AtomicBool::new(false), AtomicU64::new(0));
    let result = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                most.fetch_max(space(directory), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(100));
            }
        });
        let result = body();
        over.store(true, Ordering::Relaxed);
        result
    });
    (result, most.load(Ordering::Relaxed))
}

/// Median latency of one write with its sync after the other.
#[derive(Clone, Copy, Debug)]
pub struct BareWrites {
    /// Microseconds, into space that was reserved but never written.
    pub reserved: f64,
    /// Microseconds, into space that was written before.
    pub written: f64,
}

/// Writes `bytes` (rounded up to pages) past the page cache, each durable when the call returns (RWF_DSYNC).
pub fn bare_writes(directory: &Path, bytes: usize, writes: usize) -> Fallible<BareWrites> {
    let (path, bytes) = (directory.join("bare-writes"), bytes.next_multiple_of(PAGE));
    let file = OpenOptions::new().write(true).create_new(true).custom_flags(libc::O_DIRECT).open(&path)?;
    let total = (bytes * writes) as i64;
    // Safety: a descriptor and numbers.
    if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, total) } != 0 {
        return Err(io::Error::last_os_error().into());
    }
    file.sync_all()?;
    let mut memory = vec![0u8; bytes + PAGE];
    let skip = memory.as_ptr().align_offset(PAGE);
    let buffer = &mut memory[skip..skip + bytes];
    fastrand::Rng::with_seed(1).fill(buffer);
    let reserved = pass(&file, buffer, writes)?;
    let written = pass(&file, buffer, writes)?;
    fs::remove_file(path)?;
    Ok(BareWrites { reserved, written })
}

fn pass(file: &File, buffer: &[u8], writes: usize) -> Fallible<f64> {
    let mut latency = histogram();
    for n in 0..writes {
        let begun = Instant::now();
        let piece = libc::iovec { iov_base: buffer.as_ptr() as *mut libc::c_void, iov_len: buffer.len() };
        let offset = (n * buffer.len()) as i64;
        // Safety: the buffer outlives the call, which only reads it.
        let written = unsafe { libc::pwritev2(file.as_raw_fd(), &piece, 1, offset, libc::RWF_DSYNC) };
        if written != buffer.len() as isize {
            return Err(io::Error::last_os_error().into());
        }
        latency.saturating_record(begun.elapsed().as_nanos() as u64);
    }
    Ok(latency.value_at_quantile(0.5) as f64 / 1e3)
}
