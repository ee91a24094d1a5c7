//! Operations on sockets.

use super::{Descriptor, Operation, Ring, operation::Payload};
use crate::limits::KIB;
use bytes::{Bytes, BytesMut};
use io_uring::{opcode, squeue, types::Fd};
use std::{
    future::Future,
    io,
    net::SocketAddr,
    os::fd::{FromRawFd, OwnedFd},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

/// Pieces that one send takes.
pub const SEND_PIECES_MAX: usize = 512;
/// Bytes of one send at most: they must go within the time that a slow reader is given.
pub const SEND_BYTES_MAX: usize = 256 * KIB;

struct Accept(Descriptor);

// Safety: no address is given to the kernel.
unsafe impl Payload for Accept {
    type Output = io::Result<OwnedFd>;
    const CANCEL: bool = true;
    fn entry(&mut self) -> squeue::Entry {
        opcode::Accept::new(Fd(self.0.raw()), std::ptr::null_mut(), std::ptr::null_mut())
            .flags(libc::SOCK_CLOEXEC)
            .build()
    }
    fn finish(self, result: io::Result<u32>) -> Self::Output {
        // Safety: the kernel has just opened it for us.
        result.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }
    fn discard(self, result: i32) {
        if result >= 0 {
            // Safety: as above.
            drop(unsafe { OwnedFd::from_raw_fd(result) });
        }
    }
}

struct Connect {
    socket: Descriptor,
    address: Box<libc::sockaddr_storage>,
    bytes: libc::socklen_t,
}

// Safety: the address is boxed.
unsafe impl Payload for Connect {
    type Output = io::Result<()>;
    const CANCEL: bool = true;
    fn entry(&mut self) -> squeue::Entry {
        let address = (&raw const *self.address).cast::<libc::sockaddr>();
        opcode::Connect::new(Fd(self.socket.raw()), address, self.bytes).build()
    }
    fn finish(self, result: io::Result<u32>) -> io::Result<()> {
        result.map(drop)
    }
}

struct Receive {
    socket: Descriptor,
    buffer: BytesMut,
}

// Safety: a `BytesMut` keeps its bytes on the heap. Only its spare capacity is given away.
unsafe impl Payload for Receive {
    type Output = (BytesMut, io::Result<usize>);
    const CANCEL: bool = true;
    fn entry(&mut self) -> squeue::Entry {
        let spare = self.buffer.spare_capacity_mut();
        let bytes = spare.len().min(u32::MAX as usize) as u32;
        opcode::Recv::new(Fd(self.socket.raw()), spare.as_mut_ptr().cast(), bytes).build()
    }
    fn finish(mut self, result: io::Result<u32>) -> Self::Output {
        let result = result.map(|n| n as usize);
        if let Ok(received) = result {
            // Safety: the kernel has written this many bytes into the spare capacity that it was given.
            unsafe { self.buffer.set_len(self.buffer.len() + received) };
        }
        (self.buffer, result)
    }
}

/// Bytes to send, in order: at most [`SEND_PIECES_MAX`] and `SEND_BYTES_MAX` go in one operation.
pub type Pieces = Vec<Bytes>;

struct Send {
    socket: Descriptor,
    pieces: Pieces,
    /// Bytes of the first piece that have already been sent.
    skip: usize,
    vectors: Vec<libc::iovec>,
    message: Box<libc::msghdr>,
}

// Safety: pieces and vectors keep their bytes on the heap, the message header is boxed.
unsafe impl Payload for Send {
    type Output = (Pieces, io::Result<usize>);
    const CANCEL: bool = true;
    fn entry(&mut self) -> squeue::Entry {
        let mut skip = self.skip;
        let mut room = SEND_BYTES_MAX;
        for piece in self.pieces.iter().take(SEND_PIECES_MAX) {
            let rest = &piece[std::mem::take(&mut skip)..];
            let rest = &rest[..rest.len().min(room)];
            room -= rest.len();
            if rest.is_empty() {
                break;
            }
            self.vectors.push(libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() });
        }
        self.message.msg_iov = self.vectors.as_mut_ptr();
        self.message.msg_iovlen = self.vectors.len() as _;
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        opcode::SendMsg::new(Fd(self.socket.raw()), &raw const *self.message).flags(flags as u32).build()
    }
    fn finish(self, result: io::Result<u32>) -> Self::Output {
        (self.pieces, result.map(|n| n as usize))
    }
}

/// A receive in flight.
pub struct Receiving(Operation<Receive>);

impl Receiving {
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(BytesMut, io::Result<usize>)> {
        Pin::new(&mut self.0).poll(cx)
    }
    /// Asks the kernel to end it; the operation still completes, with what had come or ECANCELED.
    pub fn cancel(&self) {
        self.0.cancel();
    }
}

/// A wait for bytes in flight.
pub struct Readiness(Operation<Readable>);

impl Readiness {
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll(cx)
    }
}

struct Readable(Descriptor);

// Safety: no address is given to the kernel.
unsafe impl Payload for Readable {
    type Output = io::Result<()>;
    const CANCEL: bool = true;
    fn entry(&mut self) -> squeue::Entry {
        opcode::PollAdd::new(Fd(self.0.raw()), libc::POLLIN as u32).build()
    }
    fn finish(self, result: io::Result<u32>) -> io::Result<()> {
        result.map(drop)
    }
}

impl Ring {
    /// The next connection of a listening socket.
    pub fn accept(self: &Rc<Ring>, listener: &Descriptor) -> impl Future<Output = io::Result<OwnedFd>> + Unpin + use<> {
        Operation::start(self, Accept(listener.clone()))
    }

    pub fn connect(
        self: &Rc<Ring>,
        socket: &Descriptor,
        to: SocketAddr,
    ) -> impl Future<Output = io::Result<()>> + Unpin + use<> {
        let (address, bytes) = crate::server::kernel::socket_address(to);
        Operation::start(self, Connect { socket: socket.clone(), address: Box::new(address), bytes })
    }

    /// Receives into the spare capacity of `buffer` and appends what has come; 0 bytes: the other side has closed.
    pub fn receive(
        self: &Rc<Ring>,
        socket: &Descriptor,
        buffer: BytesMut,
    ) -> impl Future<Output = (BytesMut, io::Result<usize>)> + Unpin + use<> {
        Operation::start(self, Receive { socket: socket.clone(), buffer })
    }

    /// The same, with a way to stop waiting that loses no bytes.
    pub fn receive_cancellable(self: &Rc<Ring>, socket: &Descriptor, buffer: BytesMut) -> Receiving {
        Receiving(Operation::start(self, Receive { socket: socket.clone(), buffer }))
    }

    /// Sends the pieces, less `skip` bytes of the first; gives them back with the number of bytes that went.
    pub fn send(
        self: &Rc<Ring>,
        socket: &Descriptor,
        pieces: Pieces,
        skip: usize,
    ) -> impl Future<Output = (Pieces, io::Result<usize>)> + Unpin + use<> {
        // Safety: an all-zero header is a valid one that names nothing.
        let message = Box::new(unsafe { std::mem::zeroed::<libc::msghdr>() });
        let vectors = Vec::with_capacity(pieces.len().min(SEND_PIECES_MAX));
        Operation::start(self, Send { socket: socket.clone(), pieces, skip, vectors, message })
    }

    /// Ready when a receive would not wait: an idle connection needs no buffer.
    pub fn readable(self: &Rc<Ring>, socket: &Descriptor) -> Readiness {
        Readiness(Operation::start(self, Readable(socket.clone())))
    }
}
