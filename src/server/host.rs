//! What a process asks of its operating system beside its limits: a tie to its parent, and that a child
//! ends.

use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use std::io;

/// Ends this process when the thread of its parent that started it ends, however that happens. Fails when `parent` is
/// no longer the parent: it has ended already.
pub fn die_with(parent: u32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let actual = getppid().map(|pid| pid.as_raw_nonzero().get());
    if actual.and_then(|pid| u32::try_from(pid).ok()) != Some(parent) {
        return Err(io::Error::other("the process that started this node has ended"));
    }
    Ok(())
}

/// Asks a process to finish what it has in hand and end (SIGTERM). `pid` is that of a child not yet waited for, so it
/// cannot have become another's.
pub fn terminate(pid: u32) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(kill_process(pid, Signal::TERM)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_of_nobody_is_refused() {
        assert!(terminate(0).is_err() && terminate(u32::MAX).is_err());
    }
}
