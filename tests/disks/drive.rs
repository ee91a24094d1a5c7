//! A drive with a volatile write cache, in memory: what it was told to write and not to flush is lost with its power,
//! in part or whole, in any order, torn within a write. It can also be told to fail.
//!
//! It is one file, `drive`, of a FUSE file system that this process serves. A loop device on that file is a block
//! device with a write cache: writes of the file system above arrive as writes, its flushes as fsync. So what a node
//! acknowledges rests on flushes that really went all the way down.

use std::{
    fs::File,
    io::{Read, Write},
    ops::Range,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

const EIO: i32 = 5;
const ENOENT: i32 = 2;
const ENOSYS: i32 = 38;
const ROOT: u64 = 1;
const FILE: u64 = 2;
const NAME: &[u8] = b"drive";
/// Bytes of one write of the kernel.
const WRITE_BYTES: usize = 1 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    Well,
    /// Without power: nothing works.
    Off,
    /// Writes fail, reads and flushes work.
    BadWrites,
    /// Flushes fail, writes and reads work.
    BadFlushes,
}

struct Media {
    /// As reads see it.
    now: Vec<u8>,
    /// As it will be after a loss of power.
    durable: Vec<u8>,
    /// Writes since the last flush, in order.
    cached: Vec<(usize, Vec<u8>)>,
    health: Health,
    writes: u64,
    flushes: u64,
}

/// The drive, served until it is dropped.
pub struct Drive {
    media: Arc<Mutex<Media>>,
    mount: PathBuf,
}

impl Drive {
    /// Serves an empty drive of so many bytes; its file lies below `mount`, which is made.
    pub fn new(mount: &Path, bytes: usize) -> Drive {
        std::fs::create_dir_all(mount).expect("a folder for the drive");
        let device = File::options().read(true).write(true).open("/dev/fuse").expect("/dev/fuse");
        // The kernel takes the descriptor by its number in the process that mounts: that of standard input.
        let mounted = Command::new("mount")
            .args(["-i", "-t", "fuse", "-o", "fd=0,rootmode=40000,user_id=0,group_id=0", "dynarc-drive"])
            .arg(mount)
            .stdin(Stdio::from(device.try_clone().expect("a descriptor")))
            .status();
        assert!(mounted.is_ok_and(|status| status.success()), "mount -t fuse");
        let media = Media {
            now: vec![0; bytes],
            durable: vec![0; bytes],
            cached: Vec::new(),
            health: Health::Well,
            writes: 0,
            flushes: 0,
        };
        let media = Arc::new(Mutex::new(media));
        for _ in 0..2 {
            let (device, media) = (device.try_clone().expect("a descriptor"), media.clone());
            // Ends when the file system is unmounted.
            thread::spawn(move || serve(device, &media));
        }
        Drive { media, mount: mount.into() }
    }
    pub fn file(&self) -> PathBuf {
        self.mount.join("drive")
    }
    fn media(&self) -> MutexGuard<'_, Media> {
        self.media.lock().expect("the drive's threads do not panic")
    }
    pub fn set(&self, health: Health) {
        self.media().health = health;
    }
    /// Writes and flushes so far.
    pub fn counts(&self) -> (u64, u64) {
        let media = self.media();
        (media.writes, media.flushes)
    }
    /// Power is lost. Of what was written since the last flush each piece of `piece` bytes (each whole write if 0) is
    /// kept with this chance. Gives how many bytes were at stake, and how many of them were kept.
    pub fn cut(&self, random: &mut fastrand::Rng, piece: usize, keep: f64) -> (usize, usize) {
        let mut media = self.media();
        media.health = Health::Off;
        let cached = std::mem::take(&mut media.cached);
        let (mut at_stake, mut kept) = (0, 0);
        for (offset, bytes) in &cached {
            at_stake += bytes.len();
            let piece = if piece == 0 { bytes.len().max(1) } else { piece };
            for (index, part) in bytes.chunks(piece).enumerate() {
                if random.f64() < keep {
                    let from = offset + index * piece;
                    media.durable[from..from + part.len()].copy_from_slice(part);
                    kept += part.len();
                }
            }
        }
        for (offset, bytes) in &cached {
            let range = *offset..offset + bytes.len();
            let Media { now, durable, .. } = &mut *media;
            now[range.clone()].copy_from_slice(&durable[range]);
        }
        (at_stake, kept)
    }
    /// Power is back.
    pub fn power_on(&self) {
        self.set(Health::Well);
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
        let _ = std::fs::remove_dir(&self.mount);
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Answers the kernel's requests, one after the other (linux/fuse.h).
fn serve(mut device: File, media: &Mutex<Media>) {
    let mut request = vec![0; WRITE_BYTES + 4096];
    loop {
        let length = match device.read(&mut request) {
            Ok(length) => length,
            Err(e) if matches!(e.raw_os_error(), Some(2 | 4 | 11)) => continue,
            // Unmounted.
            Err(_) => return,
        };
        let (opcode, unique, node) = (u32_at(&request, 4), u64_at(&request, 8), u64_at(&request, 16));
        let body = &request[40..length];
        let Some(answer) = answer(opcode, node, body, media) else { continue };
        let (error, bytes) = match &answer {
            Ok(bytes) => (0, &bytes[..]),
            Err(error) => (-error, &[][..]),
        };
        let mut reply = Vec::with_capacity(16 + bytes.len());
        reply.extend_from_slice(&(16 + bytes.len() as u32).to_le_bytes());
        reply.extend_from_slice(&error.to_le_bytes());
        reply.extend_from_slice(&unique.to_le_bytes());
        reply.extend_from_slice(bytes);
        // A request that was interrupted has nobody who waits for its answer.
        let _ = device.write(&reply);
    }
}

/// `None`: no answer is expected.
fn answer(opcode: u32, node: u64, body: &[u8], media: &Mutex<Media>) -> Option<Result<Vec<u8>, i32>> {
    const LOOKUP: u32 = 1;
    const FORGET: u32 = 2;
    const GETATTR: u32 = 3;
    const SETATTR: u32 = 4;
    const OPEN: u32 = 14;
    const READ: u32 = 15;
    const WRITE: u32 = 16;
    const STATFS: u32 = 17;
    const RELEASE: u32 = 18;
    const FSYNC: u32 = 20;
    const FLUSH: u32 = 25;
    const INIT: u32 = 26;
    const INTERRUPT: u32 = 36;
    const DESTROY: u32 = 38;
    const BATCH_FORGET: u32 = 42;
    let mut media = media.lock().expect("no thread of the drive panics");
    Some(match opcode {
        INIT => Ok(init()),
        LOOKUP if node == ROOT && body.strip_suffix(&[0]) == Some(NAME) => Ok(entry(media.now.len())),
        LOOKUP => Err(ENOENT),
        GETATTR | SETATTR => {
            let mut out = vec![0; 16];
            out.extend_from_slice(&attributes(node, media.now.len()));
            Ok(out)
        }
        // Past the page cache of this file: each access of the loop device arrives here.
        OPEN => Ok([0u64.to_le_bytes(), 1u64.to_le_bytes()].concat()),
        READ => range(body, media.now.len()).and_then(|range| media.read(range)),
        WRITE => range(body, media.now.len()).and_then(|range| media.write(range.start, &body[40..])),
        FSYNC => media.flush(),
        STATFS => Ok(vec![0; 80]),
        RELEASE | FLUSH | DESTROY => Ok(Vec::new()),
        FORGET | BATCH_FORGET | INTERRUPT => return None,
        _ => Err(ENOSYS),
    })
}

fn init() -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    // ASYNC_READ, BIG_WRITES, MAX_PAGES.
    let words =
        [7, 31, 1 << 20, 1 | 1 << 5 | 1 << 22, 64 | 48 << 16, WRITE_BYTES as u32, 1, (WRITE_BYTES / 4096) as u32];
    words.iter().for_each(|word: &u32| out.extend_from_slice(&word.to_le_bytes()));
    out.resize(64, 0);
    out
}
fn attributes(node: u64, bytes: usize) -> Vec<u8> {
    let (mode, bytes) = if node == FILE { (0o100600u32, bytes as u64) } else { (0o040700, 0) };
    let mut out = Vec::with_capacity(88);
    [node, bytes, bytes / 512, 0, 0, 0].iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0].iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    out
}
fn entry(bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    [FILE, 0, 3600, 3600, 0].iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    out.extend_from_slice(&attributes(FILE, bytes));
    out
}
/// Offset and length of a read or write, within the drive.
fn range(body: &[u8], bytes: usize) -> Result<Range<usize>, i32> {
    let (offset, length) = (u64_at(body, 8) as usize, u32_at(body, 16) as usize);
    if offset.checked_add(length).is_some_and(|end| end <= bytes) { Ok(offset..offset + length) } else { Err(EIO) }
}

impl Media {
    fn read(&self, range: Range<usize>) -> Result<Vec<u8>, i32> {
        if self.health == Health::Off { Err(EIO) } else { Ok(self.now[range].to_vec()) }
    }
    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<Vec<u8>, i32> {
        if matches!(self.health, Health::Off | Health::BadWrites) {
            return Err(EIO);
        }
        self.writes += 1;
        self.now[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.cached.push((offset, bytes.to_vec()));
        Ok([(bytes.len() as u32).to_le_bytes(), [0; 4]].concat())
    }
    fn flush(&mut self) -> Result<Vec<u8>, i32> {
        if matches!(self.health, Health::Off | Health::BadFlushes) {
            return Err(EIO);
        }
        self.flushes += 1;
        for (offset, bytes) in std::mem::take(&mut self.cached) {
            self.durable[offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(Vec::new())
    }
}
