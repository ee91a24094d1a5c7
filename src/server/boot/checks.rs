//! What must hold before a node starts. Every refusal names the thing and how to mend it.

use super::StartError;
use crate::{
    engine::disk::{PageBuffer, lacks_room},
    limits::{
        CALLS_MAX, CALLS_SHARE, KIB, OPEN_FILES_MIN, OPEN_FILES_PER_SHARD_MIN, OPEN_FILES_STORAGE, PAGE, SHARDS_MAX,
    },
    server::{kernel, options::ServeOptions, ring::Ring},
};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

/// Locked memory that an executor's own rings want.
const LOCKED_PER_EXECUTOR: u64 = 256 * KIB as u64;
/// Less than this and no executor starts.
const LOCKED_MIN: u64 = 512 * KIB as u64;

/// The CPUs that shards run on, in turn.
pub(super) fn cpus(options: &ServeOptions) -> Result<Vec<usize>, StartError> {
    let allowed =
        kernel::allowed_cpus().map_err(|e| StartError::Failed(format!("cannot read the CPU affinity: {e}")))?;
    if options.shards.is_some_and(|s| s == 0 || usize::from(s) > SHARDS_MAX) {
        return Err(StartError::Configuration(format!("a node has 1 to {SHARDS_MAX} shards")));
    }
    if options.cpus.is_empty() {
        return Ok(allowed);
    }
    if let Some(cpu) = options.cpus.iter().find(|cpu| !allowed.contains(cpu)) {
        let reason = format!("CPU {cpu} of --cpus cannot be used by this process; it may use {}", list(&allowed));
        return Err(StartError::Configuration(reason));
    }
    Ok(options.cpus.clone())
}

fn list(cpus: &[usize]) -> String {
    cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

/// Whether the kernel gives us rings.
pub(super) fn io_uring() -> Result<(), StartError> {
    let Err(error) = Ring::new() else { return Ok(()) };
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    Err(StartError::Failed(match error.raw_os_error() {
        Some(libc::EPERM) if matches!(disabled.trim(), "1" | "2") => format!(
            "io_uring is switched off (kernel.io_uring_disabled = {}); as root: sysctl kernel.io_uring_disabled=0",
            disabled.trim()
        ),
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => format!(
            "io_uring is not available ({error}). In a container its seccomp profile forbids it: allow io_uring_setup, \
             io_uring_enter and io_uring_register (Docker: --security-opt seccomp=PROFILE). Otherwise the kernel is too \
             old: Dynarc needs Linux 6.1"
        ),
        Some(libc::EINVAL) => "this kernel's io_uring is too old: Dynarc needs Linux 6.1".to_string(),
        Some(libc::ENOMEM) => format!("no memory for io_uring ({error}); raise the limit of locked memory: ulimit -l"),
        _ => format!("io_uring does not work: {error}"),
    }))
}

/// Whether enough memory may be locked for this many executors.
pub(super) fn memory_lock(shards: usize) -> Result<(), StartError> {
    let limit = kernel::memory_lock_limit();
    let needed = LOCKED_MIN.max(LOCKED_PER_EXECUTOR * shards as u64);
    if limit >= needed {
        return Ok(());
    }
    Err(StartError::Failed(format!(
        "only {} KiB of memory may be locked, {} KiB are needed for {shards} shards: `ulimit -l {}` before the start, \
         LimitMEMLOCK=infinity in a unit file, --ulimit memlock=-1 with Docker",
        limit / 1024,
        needed / 1024,
        needed / 1024
    )))
}

/// How many connections of clients, and of other nodes, each core may serve with this limit of open files. What the
/// storage needs, half of the limit or [`OPEN_FILES_STORAGE`], is not for connections: the log must never wait for one
/// of them to go. Refused below what a node needs that serves hardly anybody; warned of when `connections_max`
/// connections a core cannot be had.
pub(super) fn open_files(limit: u64, shards: u16, connections_max: usize) -> Result<Places, StartError> {
    let needed = OPEN_FILES_MIN + OPEN_FILES_PER_SHARD_MIN * u64::from(shards);
    if limit < needed {
        return Err(StartError::Failed(format!(
            "only {limit} files may be open, {needed} are needed for {shards} shards: `ulimit -n {needed}` before the start, \
             LimitNOFILE= in a unit file, --ulimit nofile= with Docker"
        )));
    }
    let wanted = open_files_wanted(usize::from(shards), connections_max);
    if limit < wanted {
        tracing::warn!(limit, wanted, "few files may be open: raise the hard limit (ulimit -Hn) for many connections");
    }
    let left = limit - OPEN_FILES_STORAGE.min(limit / 2);
    let share = usize::try_from(left).unwrap_or(usize::MAX) / usize::from(shards.max(1));
    let calls = (share / CALLS_SHARE).min(CALLS_MAX);
    Ok(Places { clients: connections_max.min(share - calls), calls })
}
/// Connections that one core serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Places {
    pub clients: usize,
    /// Connections of other nodes.
    pub calls: usize,
}

/// Files that may be open at once when every connection is in use.
pub(super) fn open_files_wanted(shards: usize, connections_max: usize) -> u64 {
    let calls = connections_max / (CALLS_SHARE - 1);
    shards as u64 * (connections_max + calls) as u64 + OPEN_FILES_STORAGE
}

/// Plain text on the network is for loopback, or for those who say so.
pub(super) fn address(ip: IpAddr, insecure: bool) -> Result<(), StartError> {
    if !ip.is_loopback() && !insecure {
        return Err(StartError::Configuration(format!(
            "{ip} can be reached from other machines, and traffic is neither encrypted nor authenticated: give --insecure \
             if the network is trusted"
        )));
    }
    if ip.is_unspecified() {
        return Err(StartError::Configuration(format!(
            "{ip} is no address that other nodes could call: give a real one"
        )));
    }
    Ok(())
}

/// Makes a directory that other users cannot read; fine if it exists.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o750).create(path)
}

/// Holds the data directory for this process while it lives: the directory itself, which nobody can remove while it is
/// not empty, and the file that earlier versions lock.
pub(super) struct DirectoryLock(#[allow(dead_code)] File, #[allow(dead_code)] File);

/// Whether a process serves this directory now. A directory that does not exist is served by none.
pub(crate) fn is_in_use(path: &Path) -> io::Result<bool> {
    let taken = |file: io::Result<File>| match file.map(|file| file.try_lock()) {
        Ok(Ok(())) => Ok(false),
        Ok(Err(TryLockError::WouldBlock)) => Ok(true),
        Ok(Err(TryLockError::Error(e))) => Err(e),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    };
    Ok(taken(File::open(path))? || taken(File::open(path.join("lock")))?)
}

/// How to mend what keeps files from being made, where that can be told.
pub(super) fn hint(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        _ if lacks_room(error) => Some(
            "make room first: bytes, places for files (df -i), or what this user may have of them (quota, ulimit -f); a \
             node that runs goes on and takes no values, deletes free space",
        ),
        _ if kernel::lacks_descriptors(error) => {
            Some("too many files are open, here or on the whole machine: ulimit -n, sysctl fs.file-max")
        }
        io::ErrorKind::PermissionDenied => Some("it must be writable for the user that runs Dynarc"),
        io::ErrorKind::ReadOnlyFilesystem => Some("its file system is mounted read-only"),
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => Some("it is not a directory"),
        _ => None,
    }
}

/// Makes the directory if need be, takes it for this process, and tries what the engine will do there.
pub(super) fn data_directory(path: &Path) -> Result<DirectoryLock, StartError> {
    let shown = path.display();
    let refused = |what: &str, error: &io::Error| {
        let hint = hint(error).map(|hint| format!("; {hint}")).unwrap_or_default();
        StartError::Failed(format!("the data directory {shown} cannot be used: {what}: {error}{hint}"))
    };
    make_directory(path).map_err(|e| refused("making it", &e))?;
    for name in ["lock", "pid", "probe"] {
        // Links stay allowed: what they lead to may be a file.
        if let Some(what) = kernel::not_a_file(&path.join(name)).filter(|what| *what != "a symbolic link") {
            let found = format!("{shown}/{name} is {what}, and a file is needed: remove it");
            return Err(StartError::Failed(found));
        }
    }
    let take = |file: &File| match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            let pid = fs::read_to_string(path.join("pid")).unwrap_or_default();
            let who = if pid.trim().is_empty() { String::new() } else { format!(" (process {})", pid.trim()) };
            Err(StartError::Failed(format!("the data directory {shown} is in use by another Dynarc{who}")))
        }
        Err(TryLockError::Error(e)) => Err(refused("locking it", &e)),
    };
    // A lock on a file ends to mean anything when somebody removes the file: the directory itself is locked.
    let directory = File::open(path).map_err(|e| refused("opening it", &e))?;
    take(&directory)?;
    let place = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let (held, named) = (directory.metadata().map(place), fs::metadata(path).map(place));
    if held.map_err(|e| refused("looking at it", &e))? != named.map_err(|e| refused("looking at it", &e))? {
        return Err(StartError::Failed(format!(
            "the data directory {shown} was moved while it was being taken; try again"
        )));
    }
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o640)
        .open(path.join("lock"))
        .map_err(|e| refused("writing to it", &e))?;
    take(&lock)?;
    if kernel::is_memory_file_system(path).map_err(|e| refused("looking at it", &e))? {
        return Err(StartError::Failed(format!(
            "the data directory {shown} lies in memory (tmpfs or ramfs): it has no O_DIRECT and would lose everything with the \
             machine's power; choose a directory on a disk"
        )));
    }
    match try_direct_write(path) {
        // A node whose disk is full serves reads and deletes: that is how it gets space again.
        Err(e) if lacks_room(&e) => tracing::warn!("the disk of {shown} is full"),
        tried => tried.map_err(|e| direct_write_refused(path, &e, &refused))?,
    }
    Ok(DirectoryLock(directory, lock))
}

fn direct_write_refused(
    path: &Path,
    error: &io::Error,
    refused: &impl Fn(&str, &io::Error) -> StartError,
) -> StartError {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => StartError::Failed(format!(
            "the file system of the data directory {} ({}) cannot reserve space for files (fallocate), as ext2 and ext3 \
             cannot; choose one on ext4 or XFS",
            path.display(),
            kernel::file_system_name(path).unwrap_or_else(|| "unknown".into()),
        )),
        Some(libc::EINVAL) => StartError::Failed(format!(
            "the file system of the data directory {} has no O_DIRECT; choose one on ext4 or XFS",
            path.display()
        )),
        _ => refused("a test write", error),
    }
}

/// Writes one page past the page cache and syncs it.
pub(super) fn try_direct_write(path: &Path) -> io::Result<()> {
    let probe = path.join("probe");
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).custom_flags(libc::O_DIRECT).open(&probe)?;
    let written = file.write_all(PageBuffer::zeroed(PAGE).as_slice()).and_then(|()| file.sync_all());
    let written = written.and_then(|()| kernel::reserve_space(&file, 2 * PAGE as u64));
    let removed = fs::remove_file(&probe);
    written.and(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_taken_once() {
        let directory = tempfile::tempdir_in(".").expect("a directory");
        let path = directory.path().join("a/b");
        let held = data_directory(&path).expect("free");
        let error = data_directory(&path).map(drop).expect_err("taken").to_string();
        assert!(error.contains("in use"), "{error}");
        // A "stale" lock file that somebody removes changes nothing.
        fs::remove_file(path.join("lock")).expect("it is there");
        let error = data_directory(&path).map(drop).expect_err("taken").to_string();
        assert!(error.contains("in use") && is_in_use(&path).expect("readable"), "{error}");
        drop(held);
        assert!(!is_in_use(&path).expect("readable") && !is_in_use(&path.join("none")).expect("fine"));
        assert!(data_directory(&path).is_ok());
    }

    #[test]
    fn what_cannot_hold_data_is_refused_by_name() {
        let error = data_directory(Path::new("/proc/dynarc")).map(drop).expect_err("no place").to_string();
        assert!(error.contains("/proc/dynarc"), "{error}");
        let file = tempfile::NamedTempFile::new_in(".").expect("a file");
        let error = data_directory(file.path()).map(drop).expect_err("a file").to_string();
        assert!(error.contains("not a directory"), "{error}");
        if kernel::is_memory_file_system(Path::new("/dev/shm")).unwrap_or(false) {
            let memory = tempfile::tempdir_in("/dev/shm").expect("a directory");
            let error = data_directory(memory.path()).map(drop).expect_err("memory").to_string();
            assert!(error.contains("tmpfs"), "{error}");
        }
    }

    #[test]
    fn every_way_in_which_room_runs_out_is_told_as_that() {
        for code in [libc::ENOSPC, libc::EDQUOT, libc::EFBIG, libc::EMLINK] {
            let told = hint(&io::Error::from_raw_os_error(code)).unwrap_or_default();
            assert!(told.contains("make room"), "{code}: {told}");
        }
        for code in [libc::EMFILE, libc::ENFILE] {
            let told = hint(&io::Error::from_raw_os_error(code)).unwrap_or_default();
            assert!(told.contains("ulimit -n"), "{code}: {told}");
        }
        assert!(hint(&io::Error::from_raw_os_error(libc::EROFS)).is_some_and(|told| told.contains("read-only")));
        assert_eq!(hint(&io::Error::from_raw_os_error(libc::EIO)), None);
    }

    #[test]
    fn connections_leave_the_storage_its_files() {
        assert!(open_files(40, 1, 1000).is_err_and(|e| e.to_string().contains("ulimit -n")));
        assert_eq!(open_files(256, 1, 10_000).ok(), Some(Places { clients: 96, calls: 32 }));
        assert_eq!(open_files(1 << 20, 4, 10_000).ok(), Some(Places { clients: 10_000, calls: 10_000 }));
        assert_eq!(open_files(4096, 4, 10_000).ok(), Some(Places { clients: 384, calls: 128 }));
    }

    #[test]
    fn addresses_that_others_reach_need_a_word() {
        let reachable: IpAddr = "10.1.2.3".parse().expect("an address");
        assert!(address(reachable, false).expect_err("reachable").is_configuration());
        assert!(address(reachable, true).is_ok());
        assert!(address("127.0.0.9".parse().expect("an address"), false).is_ok());
        assert!(address("0.0.0.0".parse().expect("an address"), true).is_err());
    }
}
