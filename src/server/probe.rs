//! Which call makes a write durable soonest on this drive.
//!
//! A write with RWF_DSYNC carries its own sync: one that drives with a protected cache finish in microseconds. On
//! others the kernel turns it into a write and a flush that cannot be shared, and a write followed by fdatasync may be
//! twice as fast. So both are tried, in turn, at the first start, and what was found is kept in the data directory;
//! remove the file to have it tried again.

use super::kernel;
use crate::{engine::disk::PageBuffer, limits::PAGE};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    time::{Duration, Instant},
};

/// The file in the data directory that remembers the choice.
const FILE: &str = "sync_call";
/// The longest that the trial may take.
const TRIAL: Duration = Duration::from_secs(1);
/// Writes by each call; the median counts.
const ROUNDS: usize = 24;
/// Bytes of each write: a small batch of the log.
const WRITE_BYTES: usize = 4 * PAGE;

/// How a write of the log is made durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SyncCall {
    /// One write with RWF_DSYNC.
    #[default]
    Dsync,
    /// A write, then fdatasync.
    Fdatasync,
}

impl SyncCall {
    pub fn name(self) -> &'static str {
        match self {
            SyncCall::Dsync => "dsync",
            SyncCall::Fdatasync => "fdatasync",
        }
    }
    fn parse(text: &str) -> Option<SyncCall> {
        [SyncCall::Dsync, SyncCall::Fdatasync].into_iter().find(|call| call.name() == text.trim())
    }
}

/// What a trial found: the median time of each call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trial {
    pub dsync: Duration,
    pub fdatasync: Duration,
}

impl Trial {
    /// The faster call; the one system call unless two are clearly faster.
    pub fn choice(&self) -> SyncCall {
        if self.fdatasync < self.dsync * 9 / 10 { SyncCall::Fdatasync } else { SyncCall::Dsync }
    }
}

/// The call to use in this data directory: the remembered one, else the one that a trial finds, which is remembered.
/// A file that says neither is tried anew. Errors are those of the trial's writes.
pub fn sync_call(data: &Path) -> io::Result<SyncCall> {
    let file = data.join(FILE);
    match kernel::read_small(&file) {
        Ok(text) => match SyncCall::parse(&String::from_utf8_lossy(&text)) {
            Some(call) => return Ok(call),
            None => tracing::warn!("{} says nothing that is known: both calls are tried anew", file.display()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let trial = try_both(data)?;
    let call = trial.choice();
    tracing::info!(dsync = ?trial.dsync, fdatasync = ?trial.fdatasync, "chose {} for syncs of the log", call.name());
    // Lost in a crash, it is only tried again.
    fs::write(&file, format!("{}\n", call.name()))?;
    Ok(call)
}

/// Writes and syncs a scratch file by both calls in turn.
pub fn try_both(data: &Path) -> io::Result<Trial> {
    let path = data.join("probe");
    let file = OpenOptions::new().create(true).truncate(true).write(true).custom_flags(libc::O_DIRECT).open(&path)?;
    let found = measure(&file);
    let removed = fs::remove_file(&path);
    let trial = found?;
    removed.map(|()| trial)
}

fn measure(file: &File) -> io::Result<Trial> {
    let buffer = PageBuffer::zeroed(WRITE_BYTES);
    // Space that has been written, as in a segment that is used again: only the calls differ.
    file.write_all_at(PageBuffer::zeroed(2 * ROUNDS * WRITE_BYTES).as_slice(), 0)?;
    file.sync_all()?;
    let start = Instant::now();
    let (mut dsync, mut fdatasync) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let at = (2 * round * WRITE_BYTES) as u64;
        let begun = Instant::now();
        kernel::write_durable(file, buffer.as_slice(), at)?;
        dsync.push(begun.elapsed());
        let begun = Instant::now();
        file.write_all_at(buffer.as_slice(), at + WRITE_BYTES as u64)?;
        file.sync_data()?;
        fdatasync.push(begun.elapsed());
        if start.elapsed() > TRIAL {
            break;
        }
    }
    Ok(Trial { dsync: median(dsync), fdatasync: median(fdatasync) })
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_calls_must_be_clearly_faster() {
        let trial = |dsync, fdatasync| {
            Trial { dsync: Duration::from_micros(dsync), fdatasync: Duration::from_micros(fdatasync) }.choice()
        };
        assert_eq!(trial(4_000, 1_700), SyncCall::Fdatasync);
        assert_eq!(trial(16, 20), SyncCall::Dsync);
        assert_eq!(trial(100, 95), SyncCall::Dsync);
    }

    #[test]
    fn the_choice_is_remembered_and_nonsense_is_tried_anew() {
        let directory = tempfile::tempdir_in(".").expect("a directory");
        let file = directory.path().join(FILE);
        let chosen = sync_call(directory.path()).expect("a trial");
        assert_eq!(fs::read_to_string(&file).expect("remembered").trim(), chosen.name());
        fs::write(&file, "fdatasync\n").expect("written");
        assert_eq!(sync_call(directory.path()).expect("read"), SyncCall::Fdatasync);
        fs::write(&file, "whatever").expect("written");
        let again = sync_call(directory.path()).expect("a trial");
        assert_eq!(fs::read_to_string(&file).expect("remembered").trim(), again.name());
        assert!(!directory.path().join("probe").exists());
    }
}
