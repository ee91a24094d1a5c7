//! TCP connections over the core's ring.
//!
//! A connection that waits for its next request holds no buffer: an [`Inlet`] takes one when bytes have come, keeps it
//! while they keep coming, and lets it go after a quiet second. Time limits of connections are not timers: each has a
//! [`Watch`], and one sweep a second looks at all of them.

use super::{
    clock, kernel,
    kernel::PortUse,
    ring::{Descriptor, Pieces, Readiness, Receiving, Ring},
};
use crate::{
    limits::{KIB, RECEIVE_BUFFER_BYTES, STALLED_TIMEOUT},
    types::Instant,
    wire::FrameDecoder,
};
use bytes::BytesMut;
use futures_util::future::{Either, select};
use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

/// Silence after which a connection gives its receive buffer back.
const QUIET: Duration = Duration::from_secs(1);
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

// ---- sockets ---------------------------------------------------------------------------------------------------

/// One TCP connection. Clones are the same connection; it is closed with the last.
#[derive(Clone)]
pub struct Socket {
    ring: Rc<Ring>,
    descriptor: Descriptor,
}

impl Socket {
    /// Connects from the node's own address.
    pub async fn connect(ring: &Rc<Ring>, from: IpAddr, to: SocketAddr, within: Duration) -> io::Result<Socket> {
        let descriptor = Descriptor::new(kernel::socket_from(from)?);
        match select(ring.connect(&descriptor, to), ring.pause(within)).await {
            Either::Left((result, _)) => result?,
            Either::Right(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
        Ok(Socket { ring: ring.clone(), descriptor })
    }

    /// Appends what comes to the spare capacity of `buffer`. 0: the other side has closed.
    pub fn receive(&self, buffer: BytesMut) -> impl Future<Output = (BytesMut, io::Result<usize>)> + Unpin + use<> {
        self.ring.receive(&self.descriptor, buffer)
    }

    /// Sends everything, in order, and gives the emptied list back for reuse.
    pub async fn send_all(&self, mut pieces: Pieces) -> (Pieces, io::Result<()>) {
        pieces.retain(|piece| !piece.is_empty());
        let mut skip = 0;
        while !pieces.is_empty() {
            let (back, result) = self.ring.send(&self.descriptor, pieces, skip).await;
            pieces = back;
            match result {
                Ok(0) => return (pieces, Err(io::ErrorKind::WriteZero.into())),
                Ok(sent) => skip = consume(&mut pieces, skip + sent),
                Err(e) => return (pieces, Err(e)),
            }
        }
        (pieces, Ok(()))
    }

    /// Ready when a receive would not wait.
    pub async fn readable(&self) -> io::Result<()> {
        let mut readiness = self.ring.readable(&self.descriptor);
        poll_fn(|cx| readiness.poll(cx)).await
    }

    /// Breaks the connection when sent bytes stay unacknowledged, or unread, for so long.
    pub fn break_after(&self, silence: Duration) -> io::Result<()> {
        kernel::set_user_timeout(self.descriptor.owned(), silence)
    }

    /// Ends both directions: whoever waits on this connection hears of it.
    pub fn close(&self) {
        kernel::shutdown(self.descriptor.raw(), libc::SHUT_RDWR);
    }

    /// Says that nothing more will be sent; the other side may still speak.
    pub fn finish_sending(&self) {
        kernel::shutdown(self.descriptor.raw(), libc::SHUT_WR);
    }
}

/// Drops whole pieces that are gone; returns how many bytes of the first that is left are gone too.
fn consume(pieces: &mut Pieces, mut gone: usize) -> usize {
    let mut whole = 0;
    while whole < pieces.len() && gone >= pieces[whole].len() {
        gone -= pieces[whole].len();
        whole += 1;
    }
    pieces.drain(..whole);
    gone
}

/// A listening port.
pub struct Listener {
    ring: Rc<Ring>,
    descriptor: Descriptor,
}

impl Listener {
    /// Over a socket that listens already.
    pub fn new(ring: &Rc<Ring>, socket: OwnedFd) -> Listener {
        Listener { ring: ring.clone(), descriptor: Descriptor::new(socket) }
    }

    pub fn bind(ring: &Rc<Ring>, address: SocketAddr, port_use: PortUse) -> io::Result<Listener> {
        let descriptor = Descriptor::new(kernel::listen(address, port_use)?);
        Ok(Listener { ring: ring.clone(), descriptor })
    }

    /// The next connection. Failures of single connections are passed over; want of descriptors or memory is waited
    /// out. An error means that the port is lost.
    pub async fn accept(&self) -> io::Result<Socket> {
        loop {
            match self.ring.accept(&self.descriptor).await {
                Ok(fd) => {
                    if kernel::set_nodelay(&fd).is_ok() {
                        return Ok(Socket { ring: self.ring.clone(), descriptor: Descriptor::new(fd) });
                    }
                }
                Err(e) => match e.raw_os_error() {
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                        self.ring.pause(ACCEPT_PAUSE).await;
                    }
                    Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::ECANCELED) => return Err(e),
                    _ => {}
                },
            }
        }
    }
}

// ---- watches ---------------------------------------------------------------------------------------------------

/// The time limits of one connection.
pub struct Watch {
    deadline: Cell<Instant>,
    /// When the wait for bytes began; [`Instant::NEVER`] when it holds no buffer.
    waiting_since: Cell<Instant>,
    expired: Cell<bool>,
    quiet: Cell<bool>,
    /// Bytes that have come since the deadline was moved.
    progress: Cell<usize>,
    stopping: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Bytes that earn a slow sender another [`STALLED_TIMEOUT`].
const PROGRESS_BYTES: usize = 16 * KIB;

impl Watch {
    /// The connection is given up at this time unless it is moved before. [`Instant::NEVER`]: no limit.
    pub fn set_deadline(&self, deadline: Instant) {
        self.deadline.set(deadline);
    }
    /// No limit from here on; forgets an expiry that has been dealt with.
    pub fn relax(&self) {
        self.deadline.set(Instant::NEVER);
        self.expired.set(false);
        self.progress.set(0);
    }
    /// Bytes of something that is not whole yet have come: starts its limit, and extends it for real progress only. A
    /// sender of a byte a second is given up.
    pub fn progressed(&self, bytes: usize) {
        let progress = self.progress.get() + bytes;
        if self.deadline.get() == Instant::NEVER || progress >= PROGRESS_BYTES {
            self.progress.set(0);
            self.deadline.set(clock::now() + STALLED_TIMEOUT);
        } else {
            self.progress.set(progress);
        }
    }
    pub fn expired(&self) -> bool {
        self.expired.get()
    }
    /// The node is stopping: finish what is in hand.
    pub fn stopping(&self) -> bool {
        self.stopping.get()
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
    /// The output of `work`, or `None` when the deadline comes first.
    pub async fn within<F: Future>(&self, work: F) -> Option<F::Output> {
        let mut work = pin!(work);
        poll_fn(|cx| {
            if let Poll::Ready(output) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            self.listen(cx);
            if self.expired.get() { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }
    fn look(&self, now: Instant) {
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

/// All watches of a core.
#[derive(Clone, Default)]
pub struct Watches(Rc<WatchList>);

#[derive(Default)]
struct WatchList {
    watches: RefCell<Vec<Rc<Watch>>>,
    stopping: Cell<bool>,
    sweeper: RefCell<Option<Waker>>,
}

impl Watches {
    pub fn start(&self) -> Rc<Watch> {
        let watch = Rc::new(Watch {
            deadline: Cell::new(Instant::NEVER),
            waiting_since: Cell::new(Instant::NEVER),
            expired: Cell::new(false),
            quiet: Cell::new(false),
            progress: Cell::new(0),
            stopping: Cell::new(self.0.stopping.get()),
            waker: RefCell::default(),
        });
        self.0.watches.borrow_mut().push(watch.clone());
        if let Some(waker) = self.0.sweeper.borrow_mut().take() {
            waker.wake();
        }
        watch
    }

    /// Tells every connection, and those to come, that the node is stopping.
    pub fn stop(&self) {
        self.0.stopping.set(true);
        for watch in self.0.watches.borrow().iter() {
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
            // A watch that only this list holds belongs to a connection that is gone.
            self.0.watches.borrow_mut().retain(|watch| Rc::strong_count(watch) > 1);
            let watches = self.0.watches.borrow();
            watches.iter().for_each(|watch| watch.look(now));
        }
    }
}

// ---- receiving -------------------------------------------------------------------------------------------------

/// Why no more bytes come.
#[derive(Debug)]
pub enum Ended {
    /// The other side has closed its direction.
    Closed,
    /// The watch's deadline has come.
    Expired,
    Broken(io::Error),
}

/// Where received bytes gather.
pub trait Gather {
    /// Whether nothing waits to be consumed: then the buffer may be given up.
    fn is_clear(&self) -> bool;
    fn release(&mut self);
    /// A buffer with spare capacity, with what has gathered in it.
    fn take(&mut self) -> BytesMut;
    fn give(&mut self, buffer: BytesMut);
}

impl Gather for BytesMut {
    fn is_clear(&self) -> bool {
        self.is_empty()
    }
    fn release(&mut self) {
        *self = BytesMut::new();
    }
    fn take(&mut self) -> BytesMut {
        let mut buffer = std::mem::take(self);
        if buffer.capacity() - buffer.len() < RECEIVE_BUFFER_BYTES / 4 {
            buffer.reserve(buffer.len().max(RECEIVE_BUFFER_BYTES));
        }
        buffer
    }
    fn give(&mut self, buffer: BytesMut) {
        *self = buffer;
    }
}

impl Gather for FrameDecoder {
    fn is_clear(&self) -> bool {
        !self.is_mid_frame()
    }
    fn release(&mut self) {
        FrameDecoder::release(self);
    }
    fn take(&mut self) -> BytesMut {
        self.take_buffer()
    }
    fn give(&mut self, buffer: BytesMut) {
        self.give_buffer(buffer);
    }
}

enum Wait {
    Nothing,
    /// Without a buffer.
    Readable(Readiness),
    /// With one; `true` once the kernel has been asked to end it.
    Receive(Receiving, bool),
}

/// The receiving side of a connection.
pub struct Inlet {
    socket: Socket,
    watch: Rc<Watch>,
    wait: Wait,
    /// Bytes have come lately: wait with a buffer in hand.
    active: bool,
}

impl Inlet {
    pub fn new(socket: Socket, watch: Rc<Watch>) -> Inlet {
        Inlet { socket, watch, wait: Wait::Nothing, active: false }
    }

    /// Waits for bytes and appends them to what has gathered. Says how many came.
    pub async fn fill(&mut self, gather: &mut impl Gather) -> Result<usize, Ended> {
        poll_fn(|cx| self.poll_fill(cx, gather)).await
    }

    pub fn poll_fill(&mut self, cx: &mut Context<'_>, gather: &mut impl Gather) -> Poll<Result<usize, Ended>> {
        loop {
            self.watch.listen(cx);
            match &mut self.wait {
                Wait::Nothing if !self.active && gather.is_clear() => {
                    gather.release();
                    self.wait = Wait::Readable(self.socket.ring.readable(&self.socket.descriptor));
                }
                Wait::Nothing => {
                    self.watch.quiet.set(false);
                    self.watch.waiting_since.set(clock::now());
                    let receive = self.socket.ring.receive_cancellable(&self.socket.descriptor, gather.take());
                    self.wait = Wait::Receive(receive, false);
                }
                Wait::Readable(readiness) => match readiness.poll(cx) {
                    Poll::Ready(result) => {
                        self.wait = Wait::Nothing;
                        result.map_err(Ended::Broken)?;
                        self.active = true;
                    }
                    Poll::Pending if self.watch.expired.get() => return Poll::Ready(Err(Ended::Expired)),
                    Poll::Pending => return Poll::Pending,
                },
                Wait::Receive(receive, cancelled) => {
                    let Poll::Ready((buffer, result)) = receive.poll(cx) else {
                        // Asking the kernel to stop and hearing its answer: bytes that come just now are not lost.
                        if !*cancelled && (self.watch.expired.get() || self.watch.quiet.get()) {
                            *cancelled = true;
                            receive.cancel();
                        }
                        return Poll::Pending;
                    };
                    let cancelled = *cancelled;
                    self.wait = Wait::Nothing;
                    self.watch.waiting_since.set(Instant::NEVER);
                    gather.give(buffer);
                    match result {
                        Ok(0) => return Poll::Ready(Err(Ended::Closed)),
                        Ok(received) => {
                            self.active = true;
                            return Poll::Ready(Ok(received));
                        }
                        Err(_) if self.watch.expired.get() => return Poll::Ready(Err(Ended::Expired)),
                        Err(e) if cancelled && e.raw_os_error() == Some(libc::ECANCELED) => self.active = false,
                        Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
                        Err(e) => return Poll::Ready(Err(Ended::Broken(e))),
                    }
                }
            }
        }
    }
}
