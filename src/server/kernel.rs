//! System calls that neither std nor the ring makes, each behind a safe function. With `ring/` the only unsafe code.

use crate::limits::{KEEPALIVE_AFTER, KEEPALIVE_EVERY, KEEPALIVE_PROBES, STALLED_TIMEOUT};
use std::{
    ffi::CString,
    io::{self, Read},
    mem::{ManuallyDrop, zeroed},
    net::{IpAddr, SocketAddr, TcpStream},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt},
        },
    },
    path::Path,
    time::Duration,
};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

// ---- memory ----------------------------------------------------------------------------------------------------

/// Keeps this process's memory in pages of 4 KiB. A first touch of a huge page clears 2 MiB at once: milliseconds, on a
/// virtual machine, in which the core serves nobody. Where the kernel cannot, nothing changes.
pub fn forbid_huge_pages() {
    // Safety: no pointers.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// Bytes that have come on a connection and have not been read.
pub fn unread(socket: i32) -> usize {
    let mut bytes: libc::c_int = 0;
    // Safety: the kernel fills a local number of the right type. A connection that is gone has none.
    unsafe { libc::ioctl(socket, libc::FIONREAD, &mut bytes) };
    usize::try_from(bytes).unwrap_or(0)
}

// ---- files -----------------------------------------------------------------------------------------------------

/// Writes all of it at `offset`, durably, by one call with RWF_DSYNC.
pub fn write_durable(file: &std::fs::File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // Safety: one piece, alive and only read during the call.
    let written = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const piece, 1, offset as i64, libc::RWF_DSYNC) };
    match written {
        n if n < 0 => Err(io::Error::last_os_error()),
        n if n as usize == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

// ---- eventfd ---------------------------------------------------------------------------------------------------

pub fn eventfd() -> io::Result<OwnedFd> {
    // Safety: no pointers; the descriptor is new and ours.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?)) }
}

/// Sets the counter back to zero; fine if it is.
pub fn drain_eventfd(eventfd: &OwnedFd) {
    let mut count = 0u64;
    // Safety: eight bytes of a local variable. An empty counter is an error that means nothing.
    unsafe { libc::read(eventfd.as_raw_fd(), (&raw mut count).cast(), 8) };
}

/// Adds one to the counter.
pub fn raise_eventfd(eventfd: &OwnedFd) {
    let one = 1u64;
    // Safety: eight bytes of a local variable. It fails only when the counter is full: then it is raised already.
    unsafe { libc::write(eventfd.as_raw_fd(), (&raw const one).cast(), 8) };
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

fn set_option(socket: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let bytes = size_of::<i32>() as libc::socklen_t;
    // Safety: the value is a local of the stated length.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), bytes) }).map(drop)
}

fn stream_socket(ip: IpAddr) -> io::Result<OwnedFd> {
    let family = if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // Safety: no pointers; the descriptor is new and ours.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0))?)) }
}

fn bind(socket: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    let (storage, bytes) = socket_address(address);
    // Safety: storage is a local that holds `bytes` bytes of an address.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const storage).cast(), bytes) }).map(drop)
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
    set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    if port_use == PortUse::Shared {
        set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    }
    keep_alive(&socket)?;
    set_nodelay(&socket)?;
    set_user_timeout(&socket, STALLED_TIMEOUT)?;
    bind(&socket, address)?;
    // Safety: no pointers.
    check(unsafe { libc::listen(socket.as_raw_fd(), 4096) })?;
    Ok(socket)
}

/// A TCP socket bound to this address, any port, to connect from.
pub fn socket_from(source: IpAddr) -> io::Result<OwnedFd> {
    let socket = stream_socket(source)?;
    // The port is chosen when connecting, so that many connections may share one.
    set_option(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    bind(&socket, SocketAddr::new(source, 0))?;
    keep_alive(&socket)?;
    set_nodelay(&socket)?;
    Ok(socket)
}

/// Asks a silent other side now and then whether it is still there.
fn keep_alive(socket: &OwnedFd) -> io::Result<()> {
    let seconds = |time: Duration| i32::try_from(time.as_secs()).unwrap_or(i32::MAX);
    set_option(socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, seconds(KEEPALIVE_AFTER))?;
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, seconds(KEEPALIVE_EVERY))?;
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, KEEPALIVE_PROBES)
}

/// Where the other side of a connection is.
pub fn peer_address(socket: &OwnedFd) -> io::Result<SocketAddr> {
    // Safety: the descriptor is open for as long as it is borrowed, and is not closed with the borrower.
    let stream = ManuallyDrop::new(unsafe { TcpStream::from_raw_fd(socket.as_raw_fd()) });
    stream.peer_addr()
}

pub fn set_nodelay(socket: &OwnedFd) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)
}

/// Unacknowledged bytes for so long, or no answer to a connect for so long, break the connection.
pub fn set_user_timeout(socket: &OwnedFd, after: Duration) -> io::Result<()> {
    let milliseconds = i32::try_from(after.as_millis()).unwrap_or(i32::MAX);
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, milliseconds)
}

/// Ends a connection in both directions; what waits on it completes.
pub fn shutdown(socket: i32, how: i32) {
    // Safety: no pointers. A connection that is gone already is as good.
    unsafe { libc::shutdown(socket, how) };
}

// ---- files -----------------------------------------------------------------------------------------------------

pub fn file_bytes(file: i32) -> io::Result<u64> {
    // Safety: the kernel fills a local structure of the right type.
    unsafe {
        let mut status: libc::stat = zeroed();
        check(libc::fstat(file, &raw mut status))?;
        Ok(status.st_size as u64)
    }
}

/// Whether an open file is one, and no directory, FIFO or device.
pub fn is_file(file: i32) -> io::Result<bool> {
    // Safety: the kernel fills a local structure of the right type.
    unsafe {
        let mut status: libc::stat = zeroed();
        check(libc::fstat(file, &raw mut status))?;
        Ok(status.st_mode & libc::S_IFMT == libc::S_IFREG)
    }
}

/// Total and available bytes of the file system that holds an open file.
pub fn file_system_bytes(file: i32) -> io::Result<(u64, u64)> {
    // Safety: as above.
    unsafe {
        let mut status: libc::statvfs = zeroed();
        check(libc::fstatvfs(file, &raw mut status))?;
        Ok((status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize))
    }
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

/// The first bytes of a small file, which may be behind a link. One that is no file is refused: a FIFO would be waited for.
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
    // Safety: the descriptor is open for as long as the borrow lasts.
    unsafe { check(libc::fallocate(file.as_raw_fd(), 0, 0, bytes as i64)).map(drop) }
}

/// Whether the path lies on a file system that keeps files in memory only.
pub fn is_memory_file_system(path: &Path) -> io::Result<bool> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // Safety: the path ends with zero, the kernel fills a local structure of the right type.
    let kind = unsafe {
        let mut status: libc::statfs = zeroed();
        check(libc::statfs(path.as_ptr(), &raw mut status))?;
        status.f_type as i64
    };
    const RAMFS: i64 = 0x8584_58f6;
    Ok(kind == libc::TMPFS_MAGIC || kind == RAMFS)
}

/// Whether something (NTP) keeps the clock right.
pub fn clock_is_synchronized() -> io::Result<bool> {
    // Safety: the kernel reads and fills a local structure; all-zero asks for no change.
    let state = unsafe {
        let mut clock: libc::timex = zeroed();
        check(libc::adjtimex(&raw mut clock))?
    };
    Ok(state != libc::TIME_ERROR)
}

// ---- process and threads ---------------------------------------------------------------------------------------

/// CPU time of the calling thread.
pub fn thread_cpu_time() -> Duration {
    // Safety: the kernel fills a local structure.
    unsafe {
        let mut time: libc::timespec = zeroed();
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }
}

/// CPUs that this process may use, ascending.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    // Safety: the kernel fills a local set of the stated size; CPU_ISSET reads within it.
    unsafe {
        let mut set: libc::cpu_set_t = zeroed();
        check(libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set))?;
        Ok((0..libc::CPU_SETSIZE as usize).filter(|cpu| libc::CPU_ISSET(*cpu, &set)).collect())
    }
}

/// Bytes of memory that may be locked, soft limit.
pub fn memory_lock_limit() -> io::Result<u64> {
    // Safety: the kernel fills a local structure.
    unsafe {
        let mut limit: libc::rlimit = zeroed();
        check(libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit))?;
        Ok(limit.rlim_cur)
    }
}

/// Raises the soft limits of locked memory and open files to their hard limits; says how many files may be open.
pub fn raise_limits() -> io::Result<u64> {
    let raise = |which| {
        // Safety: local structures only.
        unsafe {
            let mut limit: libc::rlimit = zeroed();
            check(libc::getrlimit(which, &raw mut limit))?;
            limit.rlim_cur = limit.rlim_max;
            check(libc::setrlimit(which, &raw const limit))?;
            io::Result::Ok(limit.rlim_cur)
        }
    };
    raise(libc::RLIMIT_MEMLOCK)?;
    raise(libc::RLIMIT_NOFILE)
}

/// Bytes of memory that the process has in RAM.
pub fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}
