//! TCP connections over the core's ring.
//!
//! A connection that waits for its next request holds no buffer: an [`Inlet`] takes one when bytes have come, keeps it
//! while they keep coming, and lets it go after a quiet second. Its limits of time and memory are those of its
//! [`Watch`].

use super::{
    clock, kernel,
    kernel::PortUse,
    ring::{Descriptor, Pieces, Readiness, Receiving, Ring},
    standstill::Waited,
    watch::Watch,
};
use crate::{limits::RECEIVE_BUFFER_BYTES, types::Instant, wire::FrameDecoder};
use bytes::BytesMut;
use futures_util::future::{Either, select};
use std::{
    future::{Future, poll_fn},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    rc::{Rc, Weak},
    task::{Context, Poll},
    time::Duration,
};

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
    pub async fn send_all(&self, pieces: Pieces) -> (Pieces, io::Result<()>) {
        self.send(pieces, None).await
    }

    /// The same; the watch closes the connection when its reader takes too long.
    pub async fn send_watched(&self, pieces: Pieces, watch: &Watch) -> (Pieces, io::Result<()>) {
        self.send(pieces, Some(watch)).await
    }

    async fn send(&self, mut pieces: Pieces, watch: Option<&Watch>) -> (Pieces, io::Result<()>) {
        pieces.retain(|piece| !piece.is_empty());
        let mut skip = 0;
        while !pieces.is_empty() {
            watch.inspect(|w| w.sending());
            let (back, result) = self.ring.send(&self.descriptor, pieces, skip).await;
            watch.inspect(|w| w.sent());
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

    pub fn downgrade(&self) -> Weak<OwnedFd> {
        self.descriptor.downgrade()
    }

    /// Where the other side is.
    pub fn peer_ip(&self) -> io::Result<IpAddr> {
        kernel::peer_address(self.descriptor.owned()).map(|address| address.ip())
    }

    /// Ends both directions: whoever waits on this connection hears of it.
    pub fn close(&self) {
        kernel::close_both_ways(self.descriptor.owned());
    }

    /// Says that nothing more will be sent; the other side may still speak.
    pub fn finish_sending(&self) {
        kernel::close_for_sending(self.descriptor.owned());
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
                Ok(fd) => return Ok(Socket { ring: self.ring.clone(), descriptor: Descriptor::new(fd) }),
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
    fn is_clear(&self) -> bool {
        self.gathered() == 0
    }
    /// Bytes that wait to be consumed.
    fn gathered(&self) -> usize;
    fn release(&mut self);
    /// A buffer with spare capacity, with what has gathered in it.
    fn take(&mut self) -> BytesMut;
    fn give(&mut self, buffer: BytesMut);
}

impl Gather for BytesMut {
    fn gathered(&self) -> usize {
        self.len()
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
    fn gathered(&self) -> usize {
        self.buffered()
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
    /// It waits with a buffer in hand; `true` once the kernel has been asked to end that.
    Receive(Receiving, bool),
}

/// The receiving side of a connection.
pub struct Inlet {
    socket: Socket,
    watch: Rc<Watch>,
    wait: Wait,
    /// Bytes have come lately: wait with a buffer in hand.
    active: bool,
    waited: Waited,
}

impl Inlet {
    pub fn new(socket: Socket, watch: Rc<Watch>) -> Inlet {
        Inlet { socket, watch, wait: Wait::Nothing, active: false, waited: Waited::new(clock::now()) }
    }
    /// How long what was read last may have waited while the process stood still.
    pub fn waited(&self) -> Duration {
        self.waited.latest()
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
                    self.watch.wait(clock::now());
                    let receive = self.socket.ring.receive_cancellable(&self.socket.descriptor, gather.take());
                    self.wait = Wait::Receive(receive, false);
                }
                Wait::Readable(readiness) => match readiness.poll(cx) {
                    Poll::Ready(result) => {
                        self.wait = Wait::Nothing;
                        result.map_err(Ended::Broken)?;
                        self.active = true;
                    }
                    Poll::Pending if self.watch.expired() => return Poll::Ready(Err(Ended::Expired)),
                    Poll::Pending => return Poll::Pending,
                },
                Wait::Receive(receive, cancelled) => {
                    let Poll::Ready((buffer, result)) = receive.poll(cx) else {
                        // Asking the kernel to stop and hearing its answer: bytes that come just now are not lost.
                        if !*cancelled && (self.watch.expired() || self.watch.quiet()) {
                            *cancelled = true;
                            receive.cancel();
                        }
                        return Poll::Pending;
                    };
                    let cancelled = *cancelled;
                    self.wait = Wait::Nothing;
                    self.watch.wait(Instant::NEVER);
                    gather.give(buffer);
                    self.watch.hold_incoming(gather.gathered());
                    match result {
                        Ok(0) => return Poll::Ready(Err(Ended::Closed)),
                        Ok(received) => {
                            let unread = || kernel::unread(self.socket.descriptor.owned());
                            let age = || kernel::silent_for(self.socket.descriptor.owned());
                            self.waited.read(clock::now(), received, unread, age);
                            self.active = true;
                            return Poll::Ready(Ok(received));
                        }
                        Err(_) if self.watch.expired() => return Poll::Ready(Err(Ended::Expired)),
                        Err(e) if cancelled && e.raw_os_error() == Some(libc::ECANCELED) => self.active = false,
                        Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
                        Err(e) => return Poll::Ready(Err(Ended::Broken(e))),
                    }
                }
            }
        }
    }
}
