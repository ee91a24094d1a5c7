//! TCP connections over the core's ring.
//!
//! A connection that waits for its next request holds no buffer: an [`Inlet`] takes one when bytes have come, keeps it
//! while they keep coming, and lets it go after a quiet second. Time limits of connections are not timers: each has a
//! [`Watch`], and one sweep a second looks at all of them.

use super::{
    clock, kernel,
    kernel::PortUse,
    ring::{Descriptor, Pieces, Ring},
};
use crate::{limits::RECEIVE_BUFFER_BYTES, types::Instant};
use bytes::BytesMut;
use futures_util::future::{Either, select};
use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    io,
    net::{IpAddr, SocketAddr},
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
    waker: RefCell<Option<Waker>>,
}

impl Watch {
    /// The connection is given up at this time unless it is moved before. [`Instant::NEVER`]: no limit.
    pub fn set_deadline(&self, deadline: Instant) {
        self.deadline.set(deadline);
    }
    pub fn expired(&self) -> bool {
        self.expired.get()
    }
    fn listen(&self, cx: &Context<'_>) {
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
        if (expired || quiet)
            && let Some(waker) = self.waker.borrow_mut().take()
        {
            waker.wake();
        }
    }
}

/// All watches of a core.
#[derive(Clone, Default)]
pub struct Watches(Rc<WatchList>);

#[derive(Default)]
struct WatchList {
    watches: RefCell<Vec<Rc<Watch>>>,
    sweeper: RefCell<Option<Waker>>,
}

impl Watches {
    pub fn start(&self) -> Rc<Watch> {
        let watch = Rc::new(Watch {
            deadline: Cell::new(Instant::NEVER),
            waiting_since: Cell::new(Instant::NEVER),
            expired: Cell::new(false),
            quiet: Cell::new(false),
            waker: RefCell::default(),
        });
        self.0.watches.borrow_mut().push(watch.clone());
        if let Some(waker) = self.0.sweeper.borrow_mut().take() {
            waker.wake();
        }
        watch
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

/// The receiving side of a connection and its buffer.
pub struct Inlet {
    socket: Socket,
    watch: Rc<Watch>,
    /// Bytes received and not consumed yet. Empty and without memory while the connection is idle.
    pub buffer: BytesMut,
    /// Bytes have come lately: wait with a buffer in hand.
    active: bool,
}

impl Inlet {
    pub fn new(socket: Socket, watch: Rc<Watch>) -> Inlet {
        Inlet { socket, watch, buffer: BytesMut::new(), active: false }
    }

    /// Waits for bytes and appends them to `buffer`, for which it makes room.
    pub async fn fill(&mut self) -> Result<usize, Ended> {
        loop {
            if !self.active && self.buffer.is_empty() {
                self.buffer = BytesMut::new();
                let readable = self.socket.ring.readable(&self.socket.descriptor);
                self.watch.within(readable).await.ok_or(Ended::Expired)?.map_err(Ended::Broken)?;
            }
            if let Some(received) = self.receive().await? {
                self.active = true;
                return Ok(received);
            }
            self.active = false;
        }
    }

    /// One receive with a buffer; `None` when the connection has gone quiet.
    async fn receive(&mut self) -> Result<Option<usize>, Ended> {
        let spare = self.buffer.capacity() - self.buffer.len();
        // A large message grows the buffer as its bytes come, never by its word alone.
        if spare < RECEIVE_BUFFER_BYTES / 4 {
            self.buffer.reserve(self.buffer.len().max(RECEIVE_BUFFER_BYTES));
        }
        self.watch.quiet.set(false);
        self.watch.waiting_since.set(clock::now());
        let mut receive =
            self.socket.ring.receive_cancellable(&self.socket.descriptor, std::mem::take(&mut self.buffer));
        let mut cancelled = false;
        let (buffer, result) = poll_fn(|cx| {
            if let Poll::Ready(output) = receive.poll(cx) {
                return Poll::Ready(output);
            }
            self.watch.listen(cx);
            // Asking the kernel to stop, and hearing its answer: bytes that come at this moment are not lost.
            if !cancelled && (self.watch.expired.get() || self.watch.quiet.get()) {
                cancelled = true;
                receive.cancel();
            }
            Poll::Pending
        })
        .await;
        self.watch.waiting_since.set(Instant::NEVER);
        self.buffer = buffer;
        match result {
            Ok(0) => Err(Ended::Closed),
            Ok(received) => Ok(Some(received)),
            Err(_) if self.watch.expired.get() => Err(Ended::Expired),
            Err(e) if cancelled && e.raw_os_error() == Some(libc::ECANCELED) => Ok(None),
            Err(e) if e.raw_os_error() == Some(libc::EINTR) => Ok(None),
            Err(e) => Err(Ended::Broken(e)),
        }
    }
}
