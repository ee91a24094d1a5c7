//! A single-threaded executor with virtual time: the clock jumps from event to event.
//!
//! Events (wakes and calls at an instant) leave a heap in the order of (time, sequence), tasks run in the order in
//! which they were woken: the same program gives the same run. A task belongs to a [`Life`]; killing the process
//! drops all its futures at once, as SIGKILL would, and a paused process is not polled, as after SIGSTOP.
//!
//! A wake allocates nothing: it pushes a number into a queue of this thread. Wakers must be `Send`, which a queue in
//! an `Rc` is not; hence the queues live in a thread-local slab, one for each executor alive.

use crate::types::Instant;
use std::{
    cell::{Cell, RefCell},
    cmp::Ordering,
    collections::{BTreeSet, BinaryHeap, VecDeque},
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

/// What tasks belong to: one life of one simulated node, or the simulation itself ([`Life::OUTSIDE`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Life(pub u64);
impl Life {
    /// The simulation's own tasks: clients, the fault schedule. Never killed by a crash.
    pub const OUTSIDE: Life = Life(0);
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct TaskKey {
    slot: u32,
    generation: u32,
}

/// The ready queue of one executor.
#[derive(Default)]
struct Ready {
    queue: VecDeque<TaskKey>,
    /// The generation that is in the queue, by slot.
    queued: Vec<Option<u32>>,
    taken: bool,
}
thread_local! {
    static READY: RefCell<Vec<Ready>> = const { RefCell::new(Vec::new()) };
}

struct TaskWaker {
    executor: usize,
    key: TaskKey,
}
impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        push_ready(self.executor, self.key);
    }
}
fn push_ready(executor: usize, key: TaskKey) {
    // A wake while the thread ends finds no queue, and nobody to run the task.
    let _ = READY.try_with(|ready| {
        let mut ready = ready.borrow_mut();
        let ready = &mut ready[executor];
        let slot = key.slot as usize;
        if slot >= ready.queued.len() {
            ready.queued.resize(slot + 1, None);
        }
        if ready.queued[slot] != Some(key.generation) {
            ready.queued[slot] = Some(key.generation);
            ready.queue.push_back(key);
        }
    });
}
fn pop_ready(executor: usize) -> Option<TaskKey> {
    READY.with(|ready| {
        let ready = &mut ready.borrow_mut()[executor];
        let key = ready.queue.pop_front()?;
        let queued = &mut ready.queued[key.slot as usize];
        if *queued == Some(key.generation) {
            *queued = None;
        }
        Some(key)
    })
}

type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

struct Task {
    process: Life,
    future: LocalFuture,
    waker: Waker,
}
#[derive(Default)]
struct Slot {
    generation: u32,
    task: Option<Task>,
    /// The task is out of its slot because it is being polled.
    polled: Option<Life>,
}

enum Action {
    Wake(Waker),
    Call(Box<dyn FnOnce()>),
}
struct Event {
    at: Instant,
    sequence: u64,
    action: Action,
}
impl PartialEq for Event {
    fn eq(&self, other: &Event) -> bool {
        self.sequence == other.sequence
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Event) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    /// The earliest is the greatest: the heap gives it first.
    fn cmp(&self, other: &Event) -> Ordering {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

struct Inner {
    number: usize,
    now: Cell<Instant>,
    sequence: Cell<u64>,
    polls: Cell<u64>,
    /// Polls since the clock moved.
    still: Cell<u64>,
    events: RefCell<BinaryHeap<Event>>,
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    paused: RefCell<BTreeSet<Life>>,
    /// Tasks that were woken while their process was paused.
    parked: RefCell<Vec<(Life, TaskKey)>>,
}

/// Polls without any time passing after which the tasks are said to spin.
const STILL_POLLS_MAX: u64 = 3_000_000;

/// See the module. Clones are handles of the same executor.
#[derive(Clone)]
pub struct Executor(Rc<Inner>);

impl Default for Executor {
    fn default() -> Executor {
        Executor::new()
    }
}

impl Executor {
    pub fn new() -> Executor {
        let number = READY.with(|ready| {
            let mut ready = ready.borrow_mut();
            let number = ready.iter().position(|r| !r.taken).unwrap_or(ready.len());
            if number == ready.len() {
                ready.push(Ready::default());
            }
            ready[number] = Ready { taken: true, ..Ready::default() };
            number
        });
        Executor(Rc::new(Inner {
            number,
            now: Cell::new(Instant(1_000_000_000)),
            sequence: Cell::new(0),
            polls: Cell::new(0),
            still: Cell::new(0),
            events: RefCell::default(),
            slots: RefCell::default(),
            free: RefCell::default(),
            paused: RefCell::default(),
            parked: RefCell::default(),
        }))
    }
    /// Virtual time; starts at one second.
    pub fn now(&self) -> Instant {
        self.0.now.get()
    }
    /// Polls and events so far.
    pub fn steps(&self) -> u64 {
        self.0.polls.get() + self.0.sequence.get()
    }

    pub fn spawn(&self, process: Life, future: impl Future<Output = ()> + 'static) {
        self.spawn_boxed(process, Box::pin(future));
    }
    pub fn spawn_boxed(&self, process: Life, future: LocalFuture) {
        let mut slots = self.0.slots.borrow_mut();
        let slot = self.0.free.borrow_mut().pop().unwrap_or_else(|| {
            slots.push(Slot::default());
            slots.len() as u32 - 1
        });
        let entry = &mut slots[slot as usize];
        let key = TaskKey { slot, generation: entry.generation };
        let waker = Waker::from(Arc::new(TaskWaker { executor: self.0.number, key }));
        entry.task = Some(Task { process, future, waker });
        drop(slots);
        push_ready(self.0.number, key);
    }
    /// Drops all futures of the process. Its wakes and timers come to nothing.
    pub fn kill(&self, process: Life) {
        let mut dropped = Vec::new();
        {
            let mut slots = self.0.slots.borrow_mut();
            let mut free = self.0.free.borrow_mut();
            for (index, slot) in slots.iter_mut().enumerate() {
                if slot.task.as_ref().is_some_and(|t| t.process == process) {
                    dropped.extend(slot.task.take());
                    slot.generation = slot.generation.wrapping_add(1);
                    free.push(index as u32);
                }
                if slot.polled == Some(process) {
                    // It kills itself: its future is dropped when the poll returns.
                    slot.polled = None;
                }
            }
        }
        self.0.paused.borrow_mut().remove(&process);
        self.0.parked.borrow_mut().retain(|(p, _)| *p != process);
        drop(dropped);
    }
    /// Stops polling the process until [`Executor::resume`]; its events wait.
    pub fn pause(&self, process: Life) {
        self.0.paused.borrow_mut().insert(process);
    }
    pub fn resume(&self, process: Life) {
        if !self.0.paused.borrow_mut().remove(&process) {
            return;
        }
        let mut parked = self.0.parked.borrow_mut();
        for (_, key) in parked.extract_if(.., |(p, _)| *p == process) {
            push_ready(self.0.number, key);
        }
    }
    /// Drops every task and event. A simulation ends with this: tasks that hold the executor would keep it for ever.
    pub fn clear(&self) {
        let slots = self.0.slots.take();
        let events = self.0.events.take();
        self.0.free.take();
        self.0.paused.take();
        self.0.parked.take();
        drop((slots, events));
        READY.with(|ready| ready.borrow_mut()[self.0.number] = Ready { taken: true, ..Ready::default() });
    }
    /// Whether any future of the process is left.
    pub fn alive(&self, process: Life) -> bool {
        let alive = |s: &Slot| s.polled == Some(process) || s.task.as_ref().is_some_and(|t| t.process == process);
        self.0.slots.borrow().iter().any(alive)
    }

    /// Calls this at that time (now, when the time has passed), outside of any task.
    pub fn schedule(&self, at: Instant, call: impl FnOnce() + 'static) {
        self.push_event(at, Action::Call(Box::new(call)));
    }
    fn push_event(&self, at: Instant, action: Action) {
        let sequence = self.0.sequence.get();
        self.0.sequence.set(sequence + 1);
        self.0.events.borrow_mut().push(Event { at: at.max(self.now()), sequence, action });
    }
    pub fn sleep(&self, duration: Duration) -> Sleep {
        self.sleep_until(self.now() + duration)
    }
    pub fn sleep_until(&self, until: Instant) -> Sleep {
        Sleep { executor: self.clone(), until, waker: None }
    }

    /// Runs what is ready and the events up to `until`, then sets the clock there.
    pub fn run_until(&self, until: Instant) {
        self.run_while(until, || true);
        self.0.now.set(self.now().max(until));
    }
    pub fn run_for(&self, duration: Duration) {
        self.run_until(self.now() + duration);
    }
    /// Whether tasks wake each other without end and without time passing. Nothing runs any further then.
    pub fn spins(&self) -> bool {
        self.0.still.get() > STILL_POLLS_MAX
    }
    /// Runs until the condition fails, nothing is left to run, or the next event is after `until`. Says whether the
    /// condition has failed.
    pub fn run_while(&self, until: Instant, mut condition: impl FnMut() -> bool) -> bool {
        loop {
            if !condition() || self.spins() {
                return true;
            }
            if let Some(key) = pop_ready(self.0.number) {
                self.poll(key);
            } else if !self.step_event(until) {
                return false;
            }
        }
    }
    /// Drives the future to its end, with all that is spawned. `None` when it can never end: nothing is ready and no
    /// event is left (a disk that has stopped, a message that was lost).
    pub fn try_block_on<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = std::pin::pin!(future);
        let awake = Arc::new(BlockWaker { executor: self.0.number });
        let waker = Waker::from(awake);
        let mut context = Context::from_waker(&waker);
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return Some(output);
            }
            // One task or event, then another look: cheaper bookkeeping than a queue for a foreign future.
            match pop_ready(self.0.number) {
                Some(key) if key == BlockWaker::KEY => {}
                Some(key) => self.poll(key),
                None if self.step_event(Instant::NEVER) => {}
                None => return None,
            }
        }
    }
    /// Drives the future to its end, with all that is spawned. Panics when it can never end: for tests.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        match self.try_block_on(future) {
            Some(output) => output,
            None => panic!("nothing is left to run and the future is not done"),
        }
    }

    fn step_event(&self, until: Instant) -> bool {
        let event = {
            let mut events = self.0.events.borrow_mut();
            match events.peek() {
                Some(event) if event.at <= until => events.pop(),
                _ => None,
            }
        };
        let Some(event) = event else { return false };
        if event.at > self.0.now.replace(event.at) {
            self.0.still.set(0);
        }
        match event.action {
            Action::Wake(waker) => waker.wake(),
            Action::Call(call) => call(),
        }
        true
    }
    fn poll(&self, key: TaskKey) {
        let mut task = {
            let mut slots = self.0.slots.borrow_mut();
            let Some(slot) = slots.get_mut(key.slot as usize).filter(|s| s.generation == key.generation) else {
                return;
            };
            let Some(task) = slot.task.take() else { return };
            if self.0.paused.borrow().contains(&task.process) {
                self.0.parked.borrow_mut().push((task.process, key));
                slot.task = Some(task);
                return;
            }
            slot.polled = Some(task.process);
            task
        };
        self.0.polls.set(self.0.polls.get() + 1);
        self.0.still.set(self.0.still.get() + 1);
        let done = task.future.as_mut().poll(&mut Context::from_waker(&task.waker)).is_ready();
        let mut slots = self.0.slots.borrow_mut();
        let slot = &mut slots[key.slot as usize];
        if !done && slot.polled.take() == Some(task.process) {
            slot.task = Some(task);
        } else {
            slot.polled = None;
            slot.generation = slot.generation.wrapping_add(1);
            self.0.free.borrow_mut().push(key.slot);
            drop(slots);
            drop(task);
        }
    }
}
impl Drop for Inner {
    fn drop(&mut self) {
        // The futures go before the queue: their drops may wake.
        self.slots.take();
        self.events.take();
        let _ = READY.try_with(|ready| ready.borrow_mut()[self.number].taken = false);
    }
}

struct BlockWaker {
    executor: usize,
}
impl BlockWaker {
    /// No task: slot numbers stay far below.
    const KEY: TaskKey = TaskKey { slot: 0xffff, generation: u32::MAX };
}
impl Wake for BlockWaker {
    fn wake(self: Arc<Self>) {
        push_ready(self.executor, BlockWaker::KEY);
    }
}

/// Ready at its instant.
pub struct Sleep {
    executor: Executor,
    until: Instant,
    waker: Option<Waker>,
}
impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.executor.now() >= self.until {
            return Poll::Ready(());
        }
        if !self.waker.as_ref().is_some_and(|w| w.will_wake(context.waker())) {
            self.waker = Some(context.waker().clone());
            self.executor.push_event(self.until, Action::Wake(context.waker().clone()));
        }
        Poll::Pending
    }
}

/// Lets all else that is ready run first.
pub fn yield_now() -> impl Future<Output = ()> {
    let mut yielded = false;
    std::future::poll_fn(move |context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
}

/// Drives one future to its end on an executor of its own.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    Executor::new().block_on(future)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_jumps_from_event_to_event_in_order() {
        let executor = Executor::new();
        let seen = Rc::new(RefCell::new(Vec::new()));
        for (name, millis) in [("late", 30), ("early", 10), ("middle", 20)] {
            let (seen, sleeper) = (seen.clone(), executor.clone());
            executor.spawn(Life(1), async move {
                sleeper.sleep(Duration::from_millis(millis)).await;
                seen.borrow_mut().push((name, sleeper.now().since(Instant(1_000_000_000)).as_millis()));
            });
        }
        executor.run_for(Duration::from_secs(1));
        assert_eq!(*seen.borrow(), [("early", 10), ("middle", 20), ("late", 30)]);
        assert_eq!(executor.now(), Instant(2_000_000_000));
    }

    #[test]
    fn a_killed_process_runs_no_further_and_a_paused_one_later() {
        let executor = Executor::new();
        let count = Rc::new(Cell::new(0));
        for process in [Life(1), Life(2)] {
            let (count, sleeper) = (count.clone(), executor.clone());
            executor.spawn(process, async move {
                loop {
                    sleeper.sleep(Duration::from_millis(10)).await;
                    count.set(count.get() + 1);
                }
            });
        }
        executor.run_for(Duration::from_millis(55));
        assert_eq!(count.get(), 10);
        executor.kill(Life(1));
        executor.run_for(Duration::from_millis(50));
        assert_eq!(count.get(), 15);
        assert!(!executor.alive(Life(1)) && executor.alive(Life(2)));
        executor.pause(Life(2));
        executor.run_for(Duration::from_millis(50));
        assert_eq!(count.get(), 15);
        executor.resume(Life(2));
        executor.run_for(Duration::from_millis(45));
        assert_eq!(count.get(), 20);
    }

    #[test]
    fn a_task_may_kill_its_own_process() {
        let executor = Executor::new();
        let held = Rc::new(());
        let (killer, witness) = (executor.clone(), held.clone());
        executor.spawn(Life(7), async move {
            killer.kill(Life(7));
            yield_now().await;
            drop(witness);
            panic!("ran on after its death");
        });
        executor.run_for(Duration::from_millis(1));
        assert_eq!(Rc::strong_count(&held), 1);
    }

    #[test]
    fn what_can_never_end_is_told() {
        let executor = Executor::new();
        assert_eq!(executor.try_block_on(std::future::pending::<()>()), None);
        assert_eq!(executor.block_on(async { 3 }), 3);
    }
}
