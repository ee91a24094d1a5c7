//! Waiting for many sockets at once, with timeouts in nanoseconds.

use rustix::event::{Timespec, epoll};
use std::{io, mem::MaybeUninit, net::TcpStream, os::fd::AsFd, os::fd::OwnedFd, time::Duration};

/// Events taken by one system call.
const EVENTS: usize = 128;

pub struct Poll {
    epoll: OwnedFd,
}

/// A socket, by the number it was added with, that can go on.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    pub token: u64,
    pub readable: bool,
    pub writable: bool,
}

impl Poll {
    pub fn new() -> io::Result<Poll> {
        // Sleeps shorter than 50 us are rounded up by default, which would make every operation look late. Threads
        // inherit the setting from the one that makes them.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        Ok(Poll { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }
    pub fn add(&self, socket: impl AsFd, token: u64) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, epoll::EventData::new_u64(token), epoll::EventFlags::IN)?)
    }
    /// Whether to report this socket when it can be written.
    pub fn watch_writable(&self, stream: &TcpStream, token: u64, writable: bool) -> io::Result<()> {
        let out = if writable { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
        Ok(epoll::modify(&self.epoll, stream, epoll::EventData::new_u64(token), epoll::EventFlags::IN | out)?)
    }
    /// Appends what is ready within `timeout` to `ready`, after clearing it.
    pub fn wait(&mut self, timeout: Duration, ready: &mut Vec<Ready>) -> io::Result<()> {
        ready.clear();
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        let mut room = [const { MaybeUninit::uninit() }; EVENTS];
        let events = match epoll::wait(&self.epoll, &mut room[..], Some(&timeout)) {
            Ok((events, _)) => events,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        ready.extend(events.iter().map(|event| {
            let flags = event.flags;
            let broken = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
            Ready {
                token: event.data.u64(),
                readable: broken || flags.contains(epoll::EventFlags::IN),
                writable: flags.contains(epoll::EventFlags::OUT),
            }
        }));
        Ok(())
    }
}
