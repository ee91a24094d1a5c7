//! What a process asks of its operating system at start: limits raised, a tie to its parent, a child
//! asked to end, the usual end at a broken pipe. System calls that have no safe wrapper among our dependencies.

use std::io;

/// A limit of the process that may be raised up to what the system allows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// Bytes of memory that may be pinned; io_uring counts its rings here.
    LockedBytes,
    OpenFiles,
}

/// Raises the soft limit to the hard one. Gives the limit that holds now; `u64::MAX` is none.
pub fn raise(limit: Limit) -> io::Result<u64> {
    let resource = match limit {
        Limit::LockedBytes => libc::RLIMIT_MEMLOCK,
        Limit::OpenFiles => libc::RLIMIT_NOFILE,
    };
    let mut bounds = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // Safety: `bounds` is a valid, writable rlimit for the duration of the call.
    if unsafe { libc::getrlimit(resource, &mut bounds) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if bounds.rlim_cur == bounds.rlim_max {
        return Ok(bounds.rlim_cur);
    }
    bounds.rlim_cur = bounds.rlim_max;
    // Safety: `bounds` is a valid rlimit for the duration of the call.
    if unsafe { libc::setrlimit(resource, &bounds) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(bounds.rlim_cur)
}

/// Ends this process when the thread of its parent that started it ends, however that happens. Fails when `parent` is
/// no longer the parent: it has ended already.
pub fn die_with(parent: u32) -> io::Result<()> {
    // Safety: PR_SET_PDEATHSIG takes one integer and touches no memory of ours.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if std::os::unix::process::parent_id() != parent {
        return Err(io::Error::other("the process that started this node has ended"));
    }
    Ok(())
}

/// Lets a closed pipe on standard output end the process, as command line tools do. Not for servers.
pub fn end_at_broken_pipe() {
    // Safety: restores a signal's default action; no code of ours runs in a signal context.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Asks a process to finish what it has in hand and end (SIGTERM). `pid` is that of a child not yet waited for, so it
/// cannot have become another's.
pub fn terminate(pid: u32) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().filter(|p| *p > 1).ok_or(io::ErrorKind::InvalidInput)?;
    // Safety: kill takes two integers and touches no memory of ours.
    if unsafe { libc::kill(pid, libc::SIGTERM) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_only_grow() {
        let first = raise(Limit::OpenFiles).expect("open files");
        assert!(first > 0 && raise(Limit::OpenFiles).expect("again") == first);
    }

    #[test]
    fn a_stranger_is_no_parent() {
        let stranger = std::process::id();
        assert!(std::os::unix::process::parent_id() != stranger);
        // Set and refused; harmless for the test process beyond its own parent's death.
        assert!(die_with(stranger).is_err());
    }
}
