//! When the ring turns, and how the core waits.
//!
//! A turn begins when there is something to do. Tasks that it woke run first, and those that they wake in turn, so that
//! all they want of the kernel goes in one system call. When nobody else in the queue of this driver has run for a
//! whole round, the core has nothing left to do: then that same call waits for the next completion, a moment. Only
//! after that moment does the core sleep in the executor, which costs ten times as much. Background work that could run
//! is not made to wait: then the core goes to the executor at once.

use super::{Descriptor, Operation, Ring, operation::Payload};
use crate::server::kernel;
use glommio::io::{PollState, PollableFd};
use io_uring::{opcode, squeue, types::Fd};
use std::{
    cell::Cell,
    future::{Future, poll_fn},
    io,
    os::fd::OwnedFd,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

/// Rounds of the queue that may pass before what they want is submitted.
const ROUNDS: u32 = 4;
/// Time that the ring's own system call waits for a completion before the core sleeps in the executor instead. Timers
/// and background work of the executor are this much late at worst.
const PATIENCE: Duration = Duration::from_millis(1);

/// Work that reaches a core past its ring: what other cores have put into its queues.
pub trait Company {
    /// Takes in what has come, and returns how much that was. It is called once a round.
    fn turn(&self) -> usize;
    /// Whether nothing waits. Called before the core waits, after its bell has been armed.
    fn quiet(&self) -> bool;
}

/// No other cores.
pub struct Alone;

impl Company for Alone {
    fn turn(&self) -> usize {
        0
    }
    fn quiet(&self) -> bool {
        true
    }
}

/// Wakes a core from another thread. Ringing costs a system call only when the core waits.
#[derive(Clone)]
pub struct Bell(Arc<BellState>);

struct BellState {
    /// The place where the core waits: one of the constants below.
    place: AtomicU8,
    /// The eventfd that the ring reads: a signal ends the core's wait in the ring.
    ring: OwnedFd,
    /// The ring's registered eventfd, which the executor polls: a signal ends the core's sleep there. To signal `ring`
    /// alone is not enough: the kernel may lose the signal of one eventfd that follows from another.
    executor: OwnedFd,
}

const AWAKE: u8 = 0;
const IN_RING: u8 = 1;
const IN_EXECUTOR: u8 = 2;

impl Bell {
    pub(super) fn new(registered: &OwnedFd) -> io::Result<Bell> {
        let (ring, executor) = (kernel::eventfd()?, registered.try_clone()?);
        Ok(Bell(Arc::new(BellState { place: AtomicU8::new(AWAKE), ring, executor })))
    }
    /// Wakes the core if it waits. It must be called after something was put where the core's [`Company`] looks.
    pub fn ring(&self) {
        // Pairs with the fence before the last look: either the core sees what was put there, or we see it waiting.
        fence(Ordering::SeqCst);
        if self.0.place.load(Ordering::Relaxed) == AWAKE {
            return;
        }
        match self.0.place.swap(AWAKE, Ordering::Relaxed) {
            IN_RING => kernel::raise_eventfd(&self.0.ring),
            IN_EXECUTOR => kernel::raise_eventfd(&self.0.executor),
            _ => {}
        }
    }
    fn wait_in(&self, place: u8) {
        self.0.place.store(place, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
    fn awake(&self) {
        self.0.place.store(AWAKE, Ordering::Relaxed);
    }
}

/// Background work that could run, while it lives.
pub struct Wanted<'a>(&'a Ring);
impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.0.wanted.set(self.0.wanted.get() - 1);
    }
}

impl Ring {
    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// Sets the time for which the core looks for completions before it lets go of its CPU.
    pub fn set_spin(&self, spin: Duration) {
        self.spin.set(spin);
    }

    /// Counts turns there from now on: other threads see that the core is at work.
    pub fn count_turns(&self, turns: Arc<AtomicU64>) {
        *self.turns.borrow_mut() = turns;
    }

    /// Spawns a task beside the driver, in the same queue: the core counts as busy while it runs.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        glommio::spawn_local(Counted { polls: self.polls.clone(), task: Box::pin(task) }).detach();
    }

    /// Holds the core awake while the returned value lives: background work could run.
    pub fn want(&self) -> Wanted<'_> {
        self.wanted.set(self.wanted.get() + 1);
        Wanted(self)
    }

    /// A future for another queue of this core: when it is woken the core does not wait in the ring, where it would not
    /// run, but goes to the executor.
    pub fn attend<F: Future + Unpin>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        Attended { future, woken: Woken { woken: self.woken.clone(), is: Arc::default() }, waker: None }
    }

    /// Ends [`Ring::drive`] at its next turn, whatever is in flight.
    pub fn stop(&self) {
        self.stopped.set(true);
        self.nudge();
    }

    /// Runs the ring until [`Ring::stop`]. An error means that the ring is unusable.
    pub async fn drive(self: Rc<Ring>, company: impl Company) -> io::Result<()> {
        let eventfd = PollableFd::new(self.eventfd.try_clone()?).map_err(io::Error::other)?;
        let mut armed = PollState::new();
        let bell = Descriptor::new(self.bell.0.ring.try_clone()?);
        let mut listening = self.listen(&bell);
        self.listening.set(true);
        let mut rounds = 0;
        let mut turns = 0u64;
        while !self.stopped.get() {
            turns += 1;
            self.turns.borrow().store(turns, Ordering::Relaxed);
            let came = company.turn();
            let polls = self.polls.get();
            glommio::executor().yield_now().await;
            let alone = came == 0 && self.polls.get() == polls;
            if !alone && rounds < ROUNDS {
                rounds += 1;
                continue;
            }
            rounds = 0;
            let patience = if alone { self.patience(&company) } else { None };
            let turn = self.turn(patience)?;
            self.bell.awake();
            if Pin::new(&mut listening).poll(&mut Context::from_waker(futures_util::task::noop_waker_ref())).is_ready()
            {
                listening = self.listen(&bell);
            }
            if alone && turn.completed == 0 && !turn.more {
                poll_fn(|cx| self.poll_asleep(cx, &company, &eventfd, &mut armed)).await?;
                self.bell.awake();
                self.state.borrow_mut().uring.completion().disable_eventfd();
            }
        }
        self.listening.set(false);
        Ok(())
    }

    /// The time that the coming turn may wait; `None` when there is something to do.
    fn patience(&self, company: &impl Company) -> Option<Duration> {
        if self.wanted.get() > 0 || self.woken.load(Ordering::Relaxed) > 0 {
            return None;
        }
        self.bell.wait_in(IN_RING);
        if !company.quiet() {
            return None;
        }
        let spin = self.spin.get();
        if !spin.is_zero() {
            let start = Instant::now();
            while start.elapsed() < spin {
                if self.pending() || !company.quiet() {
                    return None;
                }
                std::hint::spin_loop();
            }
        }
        Some(PATIENCE)
    }

    fn pending(&self) -> bool {
        let mut state = self.state.borrow_mut();
        !state.uring.submission().is_empty()
            || !state.backlog.is_empty()
            || state.uring.submission().taskrun()
            || !state.uring.completion().is_empty()
    }

    /// Ready when there is something to submit, to collect or to take in.
    fn poll_asleep(
        &self,
        cx: &mut Context<'_>,
        company: &impl Company,
        eventfd: &PollableFd<OwnedFd>,
        armed: &mut PollState,
    ) -> Poll<io::Result<()>> {
        // The order matters: whoever has something for us looks at these flags after he has put it.
        self.state.borrow_mut().uring.completion().enable_eventfd();
        self.bell.wait_in(IN_EXECUTOR);
        if self.pending() || self.stopped.get() || !company.quiet() {
            return Poll::Ready(Ok(()));
        }
        self.state.borrow_mut().driver = Some(cx.waker().clone());
        match eventfd.poll_readable(cx, armed) {
            Poll::Pending => {
                self.count(|c| c.sleeps += 1);
                Poll::Pending
            }
            Poll::Ready(result) => {
                kernel::drain_eventfd(&self.eventfd);
                Poll::Ready(result.map_err(io::Error::other))
            }
        }
    }

    /// Hears the bell by a read on the ring itself.
    fn listen(self: &Rc<Ring>, bell: &Descriptor) -> Operation<Hearing> {
        Operation::start(self, Hearing { bell: bell.clone(), count: Box::new(0) })
    }
}

struct Hearing {
    bell: Descriptor,
    count: Box<u64>,
}

// Safety: the counter is boxed.
unsafe impl Payload for Hearing {
    type Output = ();
    const CANCEL: bool = true;
    fn entry(&mut self) -> squeue::Entry {
        opcode::Read::new(Fd(self.bell.raw()), (&raw mut *self.count).cast(), size_of::<u64>() as u32).build()
    }
    fn finish(self, _: io::Result<u32>) {}
}

/// Whether a future has been woken and has not run since, and how many have.
#[derive(Clone)]
struct Woken {
    woken: Arc<AtomicU32>,
    is: Arc<AtomicBool>,
}
impl Woken {
    fn mark(&self) {
        if !self.is.swap(true, Ordering::Relaxed) {
            self.woken.fetch_add(1, Ordering::Relaxed);
        }
    }
    fn clear(&self) {
        if self.is.swap(false, Ordering::Relaxed) {
            self.woken.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

struct AttendedWaker {
    woken: Woken,
    inner: Waker,
}
impl Wake for AttendedWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.mark();
        self.inner.wake_by_ref();
    }
}

/// See [`Ring::attend`].
struct Attended<F> {
    future: F,
    woken: Woken,
    /// The waker that was made at the last poll, and the one that it wakes.
    waker: Option<(Waker, Waker)>,
}
impl<F: Future + Unpin> Future for Attended<F> {
    type Output = F::Output;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        this.woken.clear();
        let waker = match this.waker.take() {
            Some((waker, inner)) if inner.will_wake(cx.waker()) => (waker, inner),
            _ => {
                let inner = cx.waker().clone();
                let made = Arc::new(AttendedWaker { woken: this.woken.clone(), inner: inner.clone() });
                (Waker::from(made), inner)
            }
        };
        let (waker, _) = this.waker.insert(waker);
        Pin::new(&mut this.future).poll(&mut Context::from_waker(waker))
    }
}
impl<F> Drop for Attended<F> {
    fn drop(&mut self) {
        self.woken.clear();
        // Whoever still holds its waker wakes nobody.
        self.woken.is.store(true, Ordering::Relaxed);
    }
}

/// A task whose polls are counted.
struct Counted<F> {
    polls: Rc<Cell<u64>>,
    task: Pin<Box<F>>,
}

impl<F: Future<Output = ()>> Future for Counted<F> {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.polls.set(self.polls.get() + 1);
        self.task.as_mut().poll(cx)
    }
}
