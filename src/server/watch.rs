//! The time and the memory of connections: how long each may take, how much all of a core may hold, and who goes when
//! there is too little.
//!
//! Time limits are not timers: each connection has a [`Watch`], and one sweep a second looks at all of them. Memory of
//! connections is what clients and peers make a core keep for them and do not come to fetch: unfinished frames and
//! bodies, answers on their way, messages to cores of other nodes. It counts toward one budget; beyond it those go that
//! have not got on for the longest.

use super::{clock, kernel, ring::Ring, socket::Socket};
use crate::{
    limits::{CONNECTION_BYTES_HARD, CONNECTION_BYTES_MAX, CONNECTION_HELD_UP, KIB, SEND_TIMEOUT, STALLED_TIMEOUT},
    types::Instant,
};
use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    os::fd::OwnedFd,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

/// Silence after which a connection gives its receive buffer back.
const QUIET: Duration = Duration::from_secs(1);
/// Bytes that earn a slow sender another [`STALLED_TIMEOUT`].
const PROGRESS_BYTES: usize = 16 * KIB;
/// One in so many of the connections that a core may have goes at once when there is no place for another: looking for
/// the one that rests for the longest at each new one would be dear.
const PLACES_SHARE: usize = 128;

/// The limits of one connection.
pub struct Watch {
    list: Rc<WatchList>,
    /// None as long as a core of another node is not connected.
    socket: RefCell<Weak<OwnedFd>>,
    /// What goes out is for a core of another node, which this one has called.
    toward_peer: bool,
    /// When what is coming in has to be whole.
    deadline: Cell<Instant>,
    /// When what is being sent has to be gone.
    send_deadline: Cell<Instant>,
    /// When the wait for bytes began; [`Instant::NEVER`] when it holds no buffer.
    waiting_since: Cell<Instant>,
    /// Since when nothing is in hand; [`Instant::NEVER`] when something is.
    resting_since: Cell<Instant>,
    /// When bytes last got on in either direction, or began to.
    moved: Cell<Instant>,
    /// Bytes of memory that have come and are not whole yet, and those that are to be sent.
    incoming: Cell<usize>,
    outgoing: Cell<usize>,
    expired: Cell<bool>,
    quiet: Cell<bool>,
    /// Bytes that have come since the deadline was moved.
    progress: Cell<usize>,
    stopping: Cell<bool>,
    /// Told to make place for another.
    going: Cell<bool>,
    /// Closed to free its memory, which is not counted any more.
    evicted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Watch {
    /// The connection is given up at this time unless it is moved before. [`Instant::NEVER`]: no limit.
    pub fn set_deadline(&self, deadline: Instant) {
        self.deadline.set(deadline);
    }
    /// Something is in hand and takes the time that it takes; forgets an expiry that has been dealt with.
    pub fn relax(&self) {
        self.deadline.set(Instant::NEVER);
        self.resting_since.set(Instant::NEVER);
        self.expired.set(false);
        self.progress.set(0);
    }
    /// Nothing is in hand: the connection is given up after so long, or when its place is needed.
    pub fn rest(&self, limit: Duration) {
        let now = clock::now();
        self.relax();
        self.resting_since.set(now);
        self.deadline.set(now + limit);
    }
    /// Bytes of something that is not whole yet have come: starts its limit, and extends it for real progress only. A
    /// sender of a byte a second is given up.
    pub fn progressed(&self, bytes: usize) {
        let progress = self.progress.get() + bytes;
        let begins = self.deadline.get() == Instant::NEVER || self.resting_since.get() != Instant::NEVER;
        if begins || progress >= PROGRESS_BYTES {
            let now = clock::now();
            self.relax();
            self.deadline.set(now + STALLED_TIMEOUT);
            self.moved.set(now);
        } else {
            self.progress.set(progress);
        }
    }
    /// What is being sent now has to be gone in time, however its reader trickles.
    pub(super) fn sending(&self) {
        self.send_deadline.set(clock::now() + SEND_TIMEOUT);
    }
    /// It is gone.
    pub(super) fn sent(&self) {
        self.send_deadline.set(Instant::NEVER);
        self.moved.set(clock::now());
    }
    pub fn expired(&self) -> bool {
        self.expired.get()
    }
    /// The node is stopping: finish what is in hand.
    pub fn stopping(&self) -> bool {
        self.stopping.get()
    }

    /// Says how many bytes have come and are not whole yet.
    pub fn hold_incoming(&self, bytes: usize) {
        self.hold(&self.incoming, bytes);
    }
    /// Says how many bytes are to be sent, those on their way included.
    pub fn hold_outgoing(&self, bytes: usize) {
        self.hold(&self.outgoing, bytes);
    }
    fn hold(&self, held: &Cell<usize>, bytes: usize) {
        if self.evicted.get() {
            return;
        }
        let before = held.replace(bytes);
        if before == 0 && bytes > 0 {
            self.moved.set(clock::now());
        }
        self.list.bytes.set(self.list.bytes.get() - before + bytes);
        if bytes > before && self.list.bytes.get() > CONNECTION_BYTES_HARD {
            self.list.make_room(clock::now());
        }
    }
    fn held(&self) -> usize {
        self.incoming.get() + self.outgoing.get()
    }
    /// Closes the connection; its memory counts as free from here on.
    fn evict(&self) {
        self.list.bytes.set(self.list.bytes.get() - self.held());
        self.list.given_up.set(self.list.given_up.get() + 1);
        self.evicted.set(true);
        self.close();
        self.wake();
    }
    /// Whether it had to go for the memory that it held.
    pub fn is_evicted(&self) -> bool {
        self.evicted.get()
    }
    /// Ready when it is. For one waiter at a time.
    pub fn until_evicted(&self) -> impl Future<Output = ()> + '_ {
        poll_fn(|cx| {
            self.listen(cx);
            if self.evicted.get() { Poll::Ready(()) } else { Poll::Pending }
        })
    }
    /// The connection that is watched from now on.
    pub fn attach(&self, socket: &Socket) {
        *self.socket.borrow_mut() = socket.downgrade();
        if self.evicted.get() {
            self.close();
        }
    }
    fn close(&self) {
        if let Some(socket) = self.socket.borrow().upgrade() {
            kernel::close_both_ways(&*socket);
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
    pub fn listen(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }
    /// A wait for bytes begins, with a buffer, or ends.
    pub(super) fn wait(&self, since: Instant) {
        self.quiet.set(false);
        self.waiting_since.set(since);
    }
    /// The wait has been so long that its buffer should go.
    pub(super) fn quiet(&self) -> bool {
        self.quiet.get()
    }
    fn look(&self, now: Instant) {
        if now >= self.send_deadline.get() {
            self.send_deadline.set(Instant::NEVER);
            self.list.given_up.set(self.list.given_up.get() + 1);
            self.close();
        }
        let expired = !self.expired.get() && now >= self.deadline.get();
        let quiet = !self.quiet.get() && now.since(self.waiting_since.get()) >= QUIET;
        if expired {
            self.expired.set(true);
        }
        if quiet {
            self.quiet.set(true);
        }
        if expired || quiet {
            self.wake();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.evicted.get() {
            self.list.bytes.set(self.list.bytes.get() - self.held());
        }
        if self.going.get() {
            self.list.going.set(self.list.going.get() - 1);
        }
    }
}

/// All watches of a core.
#[derive(Clone, Default)]
pub struct Watches(Rc<WatchList>);

#[derive(Default)]
struct WatchList {
    watches: RefCell<Vec<Weak<Watch>>>,
    /// Bytes that all of them hold.
    bytes: Cell<usize>,
    /// Connections that have been told to make place and have not ended yet.
    going: Cell<usize>,
    /// Connections given up for their place, their memory, or because nobody read on.
    given_up: Cell<u64>,
    stopping: Cell<bool>,
    sweeper: RefCell<Option<Waker>>,
}

impl WatchList {
    fn each(&self) -> Vec<Rc<Watch>> {
        self.watches.borrow().iter().filter_map(Weak::upgrade).collect()
    }

    /// Frees memory until the budget is kept: those go that have not got on for the longest. Beyond twice the budget
    /// anybody may be among them; up to there only those who have been held up for a while.
    fn make_room(&self, now: Instant) {
        if self.bytes.get() <= CONNECTION_BYTES_MAX {
            return;
        }
        let anybody = self.bytes.get() > CONNECTION_BYTES_HARD;
        let mut holders = self.each();
        holders.retain(|w| w.held() > 0 && !w.evicted.get());
        holders.sort_by_key(|w| w.moved.get());
        for watch in holders {
            if self.bytes.get() <= CONNECTION_BYTES_MAX
                || (!anybody && now.since(watch.moved.get()) < CONNECTION_HELD_UP)
            {
                return;
            }
            watch.evict();
        }
    }
}

impl Watches {
    pub fn start(&self, socket: &Socket) -> Rc<Watch> {
        self.add(socket.downgrade(), false)
    }
    /// A watch over what waits for a core of another node, whether it is connected or not.
    pub fn start_toward_peer(&self) -> Rc<Watch> {
        self.add(Weak::new(), true)
    }
    fn add(&self, socket: Weak<OwnedFd>, toward_peer: bool) -> Rc<Watch> {
        let watch = Rc::new(Watch {
            list: self.0.clone(),
            socket: RefCell::new(socket),
            toward_peer,
            deadline: Cell::new(Instant::NEVER),
            send_deadline: Cell::new(Instant::NEVER),
            waiting_since: Cell::new(Instant::NEVER),
            resting_since: Cell::new(Instant::NEVER),
            moved: Cell::new(clock::now()),
            incoming: Cell::new(0),
            outgoing: Cell::new(0),
            expired: Cell::new(false),
            quiet: Cell::new(false),
            progress: Cell::new(0),
            stopping: Cell::new(self.0.stopping.get()),
            going: Cell::new(false),
            evicted: Cell::new(false),
            waker: RefCell::default(),
        });
        self.0.watches.borrow_mut().push(Rc::downgrade(&watch));
        if let Some(waker) = self.0.sweeper.borrow_mut().take() {
            waker.wake();
        }
        watch
    }

    /// Bytes that connections hold.
    pub fn bytes(&self) -> usize {
        self.0.bytes.get()
    }
    /// Bytes that are to be sent to clients, those on their way included.
    pub fn outgoing(&self) -> usize {
        self.0.each().iter().filter(|watch| !watch.toward_peer).map(|watch| watch.outgoing.get()).sum()
    }
    /// Connections given up for their place or their memory, or because nobody read on.
    pub fn given_up(&self) -> u64 {
        self.0.given_up.get()
    }

    /// Whether there is place for another connection beside `connections`, of which there may be `most`: when there is
    /// none, those go that rest for the longest.
    pub fn has_place(&self, connections: usize, most: usize) -> bool {
        if connections < most + self.0.going.get() {
            return true;
        }
        let mut resting = self.0.each();
        resting.retain(|w| w.resting_since.get() != Instant::NEVER && !w.going.get());
        resting.sort_by_key(|w| w.resting_since.get());
        for watch in resting.iter().take(most / PLACES_SHARE + 1) {
            watch.going.set(true);
            watch.expired.set(true);
            self.0.going.set(self.0.going.get() + 1);
            self.0.given_up.set(self.0.given_up.get() + 1);
            watch.wake();
        }
        connections < most + self.0.going.get()
    }

    /// Tells every connection, and those to come, that the node is stopping.
    pub fn stop(&self) {
        self.0.stopping.set(true);
        for watch in self.0.each() {
            watch.stopping.set(true);
            watch.wake();
        }
    }

    /// Looks at every watch once a second; sleeps while there are none.
    pub async fn sweep(self, ring: Rc<Ring>) {
        loop {
            poll_fn(|cx| {
                if !self.0.watches.borrow().is_empty() {
                    return Poll::Ready(());
                }
                *self.0.sweeper.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            ring.pause(Duration::from_secs(1)).await;
            let now = clock::now();
            self.0.watches.borrow_mut().retain(|watch| watch.strong_count() > 0);
            self.0.each().iter().for_each(|watch| watch.look(now));
            self.0.make_room(now);
        }
    }
}
