//! One operation as a future that owns its buffers.

use super::{Key, Ring};
use io_uring::squeue;
use std::{
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

/// The buffers and descriptors that an operation keeps alive while the kernel works on it.
///
/// # Safety
///
/// Every address that [`Payload::entry`] puts into the entry must stay valid when the payload is moved, until the
/// payload is dropped: buffers on the heap, descriptors by [`super::Descriptor`].
pub(super) unsafe trait Payload: 'static {
    type Output;
    /// Whether an operation that nobody waits for any more is cancelled, or left to finish.
    const CANCEL: bool;
    fn entry(&mut self) -> squeue::Entry;
    fn finish(self, result: io::Result<u32>) -> Self::Output;
    /// The completion of an abandoned operation: closes what it opened.
    fn discard(self, _result: i32)
    where
        Self: Sized,
    {
    }
}

/// A payload whose future is gone.
pub(super) trait Orphan {
    fn completed(self: Box<Self>, result: i32);
}
impl<P: Payload> Orphan for P {
    fn completed(self: Box<Self>, result: i32) {
        (*self).discard(result);
    }
}

/// An operation in flight. Dropping it early is safe: the operation is cancelled or finishes unseen.
#[must_use = "an operation does nothing for you unless it is awaited"]
pub(super) struct Operation<P: Payload> {
    ring: Rc<Ring>,
    key: Key,
    payload: Option<P>,
}

impl<P: Payload> Operation<P> {
    pub(super) fn start(ring: &Rc<Ring>, mut payload: P) -> Operation<P> {
        let entry = payload.entry();
        // Safety: the payload is kept by this future, or by the ring when the future is dropped, until the completion
        // has been seen; `Payload` promises that moving it moves nothing the kernel knows of.
        let key = unsafe { ring.start(entry) };
        Operation { ring: ring.clone(), key, payload: Some(payload) }
    }

    /// Asks the kernel to end the operation early. It completes all the same.
    pub(super) fn cancel(&self) {
        self.ring.cancel(self.key);
    }
}

// The payload is never pinned: only heap addresses are given to the kernel.
impl<P: Payload> Unpin for Operation<P> {}

impl<P: Payload> Future for Operation<P> {
    type Output = P::Output;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<P::Output> {
        let result = std::task::ready!(self.ring.poll_result(self.key, cx.waker()));
        let payload = self.payload.take().expect("an operation is not polled after it is ready");
        let result = if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result as u32) };
        Poll::Ready(payload.finish(result))
    }
}

impl<P: Payload> Drop for Operation<P> {
    fn drop(&mut self) {
        if let Some(payload) = self.payload.take() {
            self.ring.abandon(self.key, Box::new(payload), P::CANCEL);
        }
    }
}
