//! A core's own io_uring: every socket and file operation of a shard, submitted together once a turn.
//!
//! Why beside the executor's rings: all that one turn of the core wants goes to the kernel in one system call, and
//! completions are run when this core asks for them (DEFER_TASKRUN), not in the middle of its work.
//!
//! How: an operation is a future that owns everything the kernel was given the address of. [`Ring::drive`], one
//! long-lived task, submits what has gathered, sees completions and wakes the futures. With nothing to do it sleeps on
//! the ring's eventfd through the executor, and only then does the kernel signal it.
//!
//! Invariants:
//! - What the kernel may still write to or read from is never freed: a future that is dropped early leaves its payload
//!   in the ring until the completion has been seen; a ring dropped with operations in flight leaks their payloads.
//! - A descriptor named by an operation stays open until its completion: payloads hold a [`Descriptor`].
//! - The ring is used by one thread, the one that made it.

mod drive;
mod files;
mod operation;
mod slots;
mod sockets;
mod timer;

pub use drive::{Alone, Bell, Company, Wanted};
pub use files::Advice;
pub use sockets::{Pieces, Readiness, Receiving, SEND_PIECES_MAX};

use io_uring::{
    IoUring, opcode, squeue,
    types::{SubmitArgs, Timespec},
};
use operation::{Operation, Orphan};
use slots::{Key, Slots};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64},
    },
    task::{Poll, Waker},
    time::Duration,
};

/// Entries that one turn can submit at once; more wait for a second system call.
const SUBMISSIONS: u32 = 512;
/// Completions that fit before the kernel keeps a list of its own.
const COMPLETIONS: u32 = 4096;
/// The number of file reads in flight from which the core waits for several completions at once instead of the first.
/// Otherwise each completed read would be followed by one new read alone, and a drive that gets its reads one by one
/// serves fewer of them a second.
const READS_MANY: usize = 16;
/// The part of these reads that is waited for: one in so many.
const READS_SHARE: usize = 4;
/// Time that they are waited for at most, whatever else may come meanwhile.
const READS_PATIENCE: Duration = Duration::from_micros(100);
/// The user data of an operation that nobody waits for (a cancellation).
const NOBODY: u64 = u64::MAX;

/// An open file or socket, closed with its last holder. Operations in flight are holders.
#[derive(Clone, Debug)]
pub struct Descriptor(Rc<OwnedFd>);

impl Descriptor {
    pub fn new(fd: OwnedFd) -> Descriptor {
        Descriptor(Rc::new(fd))
    }
    pub fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
    pub fn owned(&self) -> &OwnedFd {
        &self.0
    }
    pub fn downgrade(&self) -> std::rc::Weak<OwnedFd> {
        Rc::downgrade(&self.0)
    }
    /// The descriptor itself, when nobody else holds it.
    fn into_owned(self) -> Option<OwnedFd> {
        Rc::try_unwrap(self.0).ok()
    }
}

/// Counters of what the ring has done, for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RingCounters {
    /// System calls that submitted or collected.
    pub enters: u64,
    pub operations: u64,
    /// Times that the core slept in the executor, until the eventfd spoke.
    pub sleeps: u64,
}

pub struct Ring {
    state: RefCell<State>,
    /// Signalled by the kernel at a completion, while the core sleeps.
    eventfd: OwnedFd,
    bell: Bell,
    counters: Cell<RingCounters>,
    stopped: Cell<bool>,
    /// Times that tasks of [`Ring::spawn`] were polled.
    polls: Rc<Cell<u64>>,
    /// Reads of files in flight.
    reads: Rc<Cell<usize>>,
    /// Background work that could run.
    wanted: Cell<u32>,
    /// Futures of [`Ring::attend`] that were woken and have not run yet.
    woken: Arc<AtomicU32>,
    spin: Cell<Duration>,
    /// Whether the driver waits for the bell on the ring.
    listening: Cell<bool>,
    /// The count of turns, where other threads can see it; only this core writes there.
    turns: RefCell<Arc<AtomicU64>>,
    /// An empty list, kept for its memory.
    wakers: RefCell<Vec<Waker>>,
}

struct State {
    uring: IoUring,
    slots: Slots,
    /// Entries that found the submission queue full.
    backlog: VecDeque<squeue::Entry>,
    /// The driver, while it sleeps.
    driver: Option<Waker>,
}

/// The outcome of a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Turn {
    completed: usize,
    /// Whether something could not be submitted or collected yet.
    more: bool,
}

impl Ring {
    /// A ring for the calling thread. Fails when the kernel is older than 6.1, or forbids io_uring.
    pub fn new() -> io::Result<Rc<Ring>> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        let eventfd = super::kernel::eventfd()?;
        uring.submitter().register_eventfd(eventfd.as_raw_fd())?;
        let state = State { uring, slots: Slots::default(), backlog: VecDeque::new(), driver: None };
        let ring = Ring {
            state: RefCell::new(state),
            bell: Bell::new(&eventfd)?,
            eventfd,
            counters: Cell::default(),
            stopped: Cell::new(false),
            polls: Rc::default(),
            reads: Rc::default(),
            wanted: Cell::new(0),
            woken: Arc::default(),
            spin: Cell::new(Duration::ZERO),
            listening: Cell::new(false),
            turns: RefCell::default(),
            wakers: RefCell::default(),
        };
        ring.state.borrow_mut().uring.completion().disable_eventfd();
        Ok(Rc::new(ring))
    }

    pub fn counters(&self) -> RingCounters {
        self.counters.get()
    }

    /// Operations in flight, but for the driver's own.
    pub fn in_flight(&self) -> usize {
        self.state.borrow().slots.in_flight() - usize::from(self.listening.get())
    }

    /// Whether completions wait to be collected: a long computation should let the core turn.
    pub fn pressing(&self) -> bool {
        let mut state = self.state.borrow_mut();
        state.uring.submission().taskrun() || !state.uring.completion().is_empty()
    }

    /// Wakes the driver if it sleeps.
    pub fn nudge(&self) {
        let driver = self.state.borrow_mut().driver.take();
        if let Some(waker) = driver {
            waker.wake();
        }
    }

    /// Submits all that has gathered in one system call, then hands out completions. With `patience`, the same call
    /// waits that long for the first of them, or for some when many reads are in flight.
    fn turn(&self, patience: Option<Duration>) -> io::Result<Turn> {
        let mut wakers = self.wakers.take();
        let mut orphans: Vec<(Box<dyn Orphan>, i32)> = Vec::new();
        let more = {
            let state = &mut *self.state.borrow_mut();
            state.refill();
            let pressing = {
                let submission = state.uring.submission();
                !submission.is_empty() || submission.taskrun() || submission.cq_overflow()
            };
            let wait = patience.filter(|_| state.uring.completion().is_empty());
            if pressing || wait.is_some() {
                self.count(|c| c.enters += 1);
                state.enter(wait.map(|patience| self.gathered(patience)))?;
            }
            let State { uring, slots, .. } = state;
            for completion in uring.completion() {
                if completion.user_data() != NOBODY {
                    slots.complete(
                        Key::from_bits(completion.user_data()),
                        completion.result(),
                        &mut wakers,
                        &mut orphans,
                    );
                }
            }
            !state.backlog.is_empty() || !state.uring.submission().is_empty()
        };
        let completed = wakers.len() + orphans.len();
        // Outside the borrow: what is dropped or woken may come back to the ring.
        wakers.drain(..).for_each(Waker::wake);
        self.wakers.replace(wakers);
        orphans.into_iter().for_each(|(orphan, result)| orphan.completed(result));
        Ok(Turn { completed, more })
    }

    /// The number of completions that a turn waits for, and the time that it waits at most.
    fn gathered(&self, patience: Duration) -> (usize, Duration) {
        match self.reads.get() {
            reads if reads >= READS_MANY => (reads / READS_SHARE, READS_PATIENCE.min(patience)),
            _ => (1, patience),
        }
    }

    /// Submits what has gathered at once, for an operation that a whole batch of clients waits for. Errors are met
    /// again, and told, at the next turn.
    pub fn submit(&self) {
        self.count(|c| c.enters += 1);
        let _ = self.state.borrow_mut().enter(None);
    }

    fn count(&self, change: impl FnOnce(&mut RingCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    /// Puts an entry in the queue under a new key.
    ///
    /// Safety: all that the entry points to must live, unmoved, until its completion has been handed out.
    unsafe fn start(&self, entry: squeue::Entry) -> Key {
        self.count(|c| c.operations += 1);
        let (key, driver) = {
            let mut state = self.state.borrow_mut();
            let key = state.slots.take();
            state.push(entry.user_data(key.to_bits()));
            (key, state.driver.take())
        };
        if let Some(waker) = driver {
            waker.wake();
        }
        key
    }

    fn cancel(&self, key: Key) {
        let driver = {
            let mut state = self.state.borrow_mut();
            state.push(opcode::AsyncCancel::new(key.to_bits()).build().user_data(NOBODY));
            state.driver.take()
        };
        if let Some(waker) = driver {
            waker.wake();
        }
    }

    fn poll_result(&self, key: Key, waker: &Waker) -> Poll<i32> {
        self.state.borrow_mut().slots.poll(key, waker)
    }

    /// Keeps the payload of an operation whose future is gone, or gives it back when its completion is already here.
    fn abandon(&self, key: Key, orphan: Box<dyn Orphan>, cancel: bool) {
        let (done, driver) = {
            let mut state = self.state.borrow_mut();
            let done = state.slots.abandon(key, orphan);
            if done.is_none() && cancel {
                state.push(opcode::AsyncCancel::new(key.to_bits()).build().user_data(NOBODY));
            }
            (done, state.driver.take())
        };
        if let Some(waker) = driver {
            waker.wake();
        }
        if let Some((orphan, result)) = done {
            orphan.completed(result);
        }
    }
}

impl State {
    fn enter(&mut self, wait: Option<(usize, Duration)>) -> io::Result<()> {
        let entered = match wait {
            None => self.uring.submit(),
            Some((completions, patience)) => {
                let time = Timespec::from(patience);
                self.uring.submitter().submit_with_args(completions, &SubmitArgs::new().timespec(&time))
            }
        };
        match entered {
            Ok(_) => Ok(()),
            // Signals, the end of our patience, and a full completion queue: collect and come back.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::ETIME | libc::EAGAIN | libc::EBUSY)) => {
                Ok(())
            }
            Err(e) => Err(e),
        }
    }
    fn push(&mut self, entry: squeue::Entry) {
        // Safety: promised by the caller of `Ring::start`; cancellations point to nothing.
        if !self.backlog.is_empty() || unsafe { self.uring.submission().push(&entry) }.is_err() {
            self.backlog.push_back(entry);
        }
    }
    fn refill(&mut self) {
        while let Some(entry) = self.backlog.front() {
            // Safety: as in `push`.
            if unsafe { self.uring.submission().push(entry) }.is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel cancels what is in flight some time after the ring is closed; until then it may write.
        self.state.get_mut().slots.leak();
    }
}
