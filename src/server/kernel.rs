//! System calls that neither std nor the ring makes, each behind a function of our own. What `rustix` does not have is
//! the only unsafe code outside of `ring/`.

use crate::limits::{KEEPALIVE_AFTER, KEEPALIVE_EVERY, KEEPALIVE_PROBES, STALLED_TIMEOUT};
use rustix::{
    event::EventfdFlags,
    fs::{FallocateFlags, FileType},
    io::ReadWriteFlags,
    net::{AddressFamily, Shutdown, SocketFlags, SocketType, sockopt},
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::CpuSet,
    time::ClockId,
};
use std::{
    io::{self, IoSlice, Read},
    mem::zeroed,
    net::{IpAddr, SocketAddr},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
    time::Duration,
};

// ---- memory ----------------------------------------------------------------------------------------------------

/// Keeps this process's memory in pages of 4 KiB. A first touch of a huge page clears 2 MiB at once: milliseconds, on a
/// virtual machine, in which the core serves nobody. Where the kernel cannot, nothing changes.
pub fn forbid_huge_pages() {
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// Bytes that have come on a connection and have not been read.
pub fn unread(socket: impl AsFd) -> usize {
    // A connection that is gone has none.
    rustix::io::ioctl_fionread(socket).map_or(0, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// How long ago the last bytes came on a connection.
pub fn silent_for(socket: &OwnedFd) -> Duration {
    // SAFETY: the structure is plain numbers, and the kernel writes no more of it than it is told.
    let (result, info) = unsafe {
        let mut info: libc::tcp_info = zeroed();
        let mut bytes = size_of::<libc::tcp_info>() as libc::socklen_t;
        let place = (&raw mut info).cast();
        let result = libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, place, &raw mut bytes);
        (result, info)
    };
    // A connection that is gone may have waited for as long as one likes.
    if result < 0 { Duration::MAX } else { Duration::from_millis(info.tcpi_last_data_recv.into()) }
}

// ---- files -----------------------------------------------------------------------------------------------------

/// Writes all of it at `offset`, durably, by one call with RWF_DSYNC.
pub fn write_durable(file: &std::fs::File, bytes: &[u8], offset: u64) -> io::Result<()> {
    match rustix::io::pwritev2(file, &[IoSlice::new(bytes)], offset, ReadWriteFlags::DSYNC)? {
        written if written == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

// ---- eventfd ---------------------------------------------------------------------------------------------------

pub fn eventfd() -> io::Result<OwnedFd> {
    Ok(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// Sets the counter back to zero; fine if it is.
pub fn drain_eventfd(eventfd: &OwnedFd) {
    let mut count = [0; 8];
    // An empty counter is an error that means nothing.
    let _ = rustix::io::read(eventfd, &mut count);
}

/// Adds one to the counter.
pub fn raise_eventfd(eventfd: &OwnedFd) {
    // It fails only when the counter is full: then it is raised already.
    let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
}

// ---- sockets ---------------------------------------------------------------------------------------------------

/// The address in the kernel's form, and its length in bytes.
pub fn socket_address(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // Safety: all-zero is a valid storage; it is large and aligned enough for both forms written into it.
    unsafe {
        let mut storage: libc::sockaddr_storage = zeroed();
        let bytes = match address {
            SocketAddr::V4(v4) => {
                let form = libc::sockaddr_in {
                    sin_family: libc::AF_INET as _,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                };
                (&raw mut storage).cast::<libc::sockaddr_in>().write(form);
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(v6) => {
                let form = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as _,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                (&raw mut storage).cast::<libc::sockaddr_in6>().write(form);
                size_of::<libc::sockaddr_in6>()
            }
        };
        (storage, bytes as libc::socklen_t)
    }
}

fn stream_socket(ip: IpAddr) -> io::Result<OwnedFd> {
    let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    Ok(rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// Whether several listeners of this process share a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortUse {
    Alone,
    Shared,
}

/// A listening TCP socket. What is set here holds for the connections that it takes.
pub fn listen(address: SocketAddr, port_use: PortUse) -> io::Result<OwnedFd> {
    let socket = stream_socket(address.ip())?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if port_use == PortUse::Shared {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    keep_alive(&socket)?;
    set_nodelay(&socket)?;
    set_user_timeout(&socket, STALLED_TIMEOUT)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 4096)?;
    Ok(socket)
}

/// A TCP socket bound to this address, any port, to connect from.
pub fn socket_from(source: IpAddr) -> io::Result<OwnedFd> {
    let socket = stream_socket(source)?;
    choose_port_late(&socket)?;
    rustix::net::bind(&socket, &SocketAddr::new(source, 0))?;
    keep_alive(&socket)?;
    set_nodelay(&socket)?;
    Ok(socket)
}

/// The port is chosen when connecting, so that many connections may share one.
fn choose_port_late(socket: &OwnedFd) -> io::Result<()> {
    let (on, bytes) = (1i32, size_of::<i32>() as libc::socklen_t);
    let (level, name) = (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT);
    // Safety: the value is a local of the stated length.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), bytes) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Asks a silent other side now and then whether it is still there.
fn keep_alive(socket: &OwnedFd) -> io::Result<()> {
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE_AFTER)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_EVERY)?;
    Ok(sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)?)
}

/// Where the other side of a connection is.
pub fn peer_address(socket: &OwnedFd) -> io::Result<SocketAddr> {
    let address = rustix::net::getpeername(socket)?.ok_or(io::ErrorKind::NotConnected)?;
    Ok(SocketAddr::try_from(address)?)
}

pub fn set_nodelay(socket: &OwnedFd) -> io::Result<()> {
    Ok(sockopt::set_tcp_nodelay(socket, true)?)
}

/// Unacknowledged bytes for so long, or no answer to a connect for so long, break the connection.
pub fn set_user_timeout(socket: &OwnedFd, after: Duration) -> io::Result<()> {
    let milliseconds = u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
    Ok(sockopt::set_tcp_user_timeout(socket, milliseconds)?)
}

/// Ends a connection in both directions; what waits on it completes.
pub fn close_both_ways(socket: impl AsFd) {
    // A connection that is gone already is as good.
    let _ = rustix::net::shutdown(socket, Shutdown::Both);
}
/// Says that nothing more will be sent on a connection.
pub fn close_for_sending(socket: impl AsFd) {
    // As above.
    let _ = rustix::net::shutdown(socket, Shutdown::Write);
}

// ---- files -----------------------------------------------------------------------------------------------------

pub fn file_bytes(file: impl AsFd) -> io::Result<u64> {
    Ok(rustix::fs::fstat(file)?.st_size as u64)
}

/// Whether an open file is one, and no directory, FIFO or device.
pub fn is_file(file: impl AsFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode) == FileType::RegularFile)
}

/// Total and available bytes of the file system that holds an open file.
pub fn file_system_bytes(file: impl AsFd) -> io::Result<(u64, u64)> {
    let status = rustix::fs::fstatvfs(file)?;
    Ok((status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize))
}

/// Files that the file system which holds an open file has places for, and those that are free; none where it makes
/// them as they are needed.
pub fn file_system_files(file: impl AsFd) -> io::Result<Option<(u64, u64)>> {
    let status = rustix::fs::fstatvfs(file)?;
    Ok((status.f_files > 0).then_some((status.f_files, status.f_favail)))
}

/// Whether there is a want of descriptors or memory: it passes, since connections and other processes come and go.
pub fn lacks_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// What lies at a path in the place of a file; nothing when it is one, or when there is nothing.
pub fn not_a_file(path: &Path) -> Option<&'static str> {
    let kind = std::fs::symlink_metadata(path).ok()?.file_type();
    Some(match () {
        () if kind.is_file() => return None,
        () if kind.is_symlink() => "a symbolic link",
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () => "a device",
    })
}

/// The first bytes of a small file, which may be behind a link. One that is no file is refused: a FIFO would be waited
/// for.
pub fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    const SMALL: u64 = 4096;
    if !std::fs::metadata(path)?.is_file() {
        let what = not_a_file(path).unwrap_or("no file");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is {what}", path.display())));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(SMALL).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The name of the file system that a path lies on, as the kernel lists it.
pub fn file_system_name(path: &Path) -> Option<String> {
    let device = std::fs::metadata(path).ok()?.dev();
    let device = format!("{}:{}", libc::major(device), libc::minor(device));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().rfind(|line| line.split(' ').nth(2) == Some(&device))?;
    Some(line.split_once(" - ")?.1.split(' ').next()?.to_string())
}

/// Reserves space in a file, as segments of the log do.
pub fn reserve_space(file: &std::fs::File, bytes: u64) -> io::Result<()> {
    Ok(rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes)?)
}

/// Whether the path lies on a file system that keeps files in memory only.
pub fn is_memory_file_system(path: &Path) -> io::Result<bool> {
    const RAMFS: i64 = 0x8584_58f6;
    let kind = rustix::fs::statfs(path)?.f_type as i64;
    Ok(kind == libc::TMPFS_MAGIC || kind == RAMFS)
}

/// Whether something (NTP) keeps the clock right.
pub fn clock_is_synchronized() -> io::Result<bool> {
    // Safety: the kernel reads and fills a local structure; all-zero asks for no change.
    let state = unsafe {
        let mut clock: libc::timex = zeroed();
        libc::adjtimex(&raw mut clock)
    };
    if state < 0 { Err(io::Error::last_os_error()) } else { Ok(state != libc::TIME_ERROR) }
}

// ---- process and threads ---------------------------------------------------------------------------------------

/// CPU time of the calling thread.
pub fn thread_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// CPUs that this process may use, ascending.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// Bytes of memory that may be locked, soft limit.
pub fn memory_lock_limit() -> u64 {
    getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX)
}

/// Raises the soft limits of locked memory and open files to their hard limits; says how many files may be open.
pub fn raise_limits() -> io::Result<u64> {
    let raise = |which| {
        let maximum = getrlimit(which).maximum;
        setrlimit(which, Rlimit { current: maximum, maximum })?;
        io::Result::Ok(maximum.unwrap_or(u64::MAX))
    };
    raise(Resource::Memlock)?;
    raise(Resource::Nofile)
}

/// Bytes of memory that the process has in RAM.
pub fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}
