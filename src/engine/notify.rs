//! Waiting between futures of one core: a condition and those who wait for it, a latch, the result of a write.
//!
//! Nothing here crosses a core. A waiter always looks at its condition again when it is polled, so a wake-up too many
//! does no harm, and none can be lost: whoever changes the condition calls [`Notify::wake`] afterwards.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// The waiters for some condition: each is woken, and looks at the condition again.
#[derive(Default)]
pub struct Notify {
    waiting: RefCell<Vec<Waker>>,
}

impl Notify {
    /// Wakes everyone, to look at their conditions again.
    pub fn wake(&self) {
        let waiting = self.waiting.take();
        for waker in waiting {
            waker.wake();
        }
    }
    /// Leaves a waker behind: for a caller that polls a condition of its own.
    pub fn register(&self, cx: &Context<'_>) {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|w| w.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
    }
    /// Ready with what `condition` gives, as soon as it gives something.
    pub fn until<'a, T>(&'a self, mut condition: impl FnMut() -> Option<T> + 'a) -> impl Future<Output = T> + 'a {
        poll_fn(move |cx| match condition() {
            Some(value) => Poll::Ready(value),
            None => {
                self.register(cx);
                Poll::Pending
            }
        })
    }
}

/// A lock for futures of one core: it has one holder at a time, also across awaits.
#[derive(Default)]
pub struct Latch {
    held: Cell<bool>,
    freed: Notify,
}
impl Latch {
    pub async fn hold(self: &Rc<Latch>) -> Held {
        self.freed.until(|| (!self.held.replace(true)).then_some(())).await;
        Held(self.clone())
    }
}
/// Frees its latch when dropped.
pub struct Held(Rc<Latch>);
impl Drop for Held {
    fn drop(&mut self) {
        self.0.held.set(false);
        self.0.freed.wake();
    }
}

/// A result that one future makes and another awaits.
pub struct Promise<T>(Rc<PromiseState<T>>);
struct PromiseState<T> {
    result: RefCell<Option<T>>,
    waker: RefCell<Option<Waker>>,
}
impl<T> Clone for Promise<T> {
    fn clone(&self) -> Promise<T> {
        Promise(self.0.clone())
    }
}
impl<T> Default for Promise<T> {
    fn default() -> Promise<T> {
        Promise(Rc::new(PromiseState { result: RefCell::new(None), waker: RefCell::new(None) }))
    }
}
impl<T> Promise<T> {
    pub fn resolve(&self, result: T) {
        *self.0.result.borrow_mut() = Some(result);
        if let Some(waker) = self.0.waker.take() {
            waker.wake();
        }
    }
    /// Resolves to the result as soon as it is there.
    pub fn wait(&self) -> impl Future<Output = T> + '_ {
        poll_fn(move |cx| match self.0.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                *self.0.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};

    #[test]
    fn a_latch_admits_one_after_the_other() {
        let latch = Rc::new(Latch::default());
        let first = latch.hold().now_or_never();
        assert!(first.is_some());
        let mut others: FuturesUnordered<_> = (0..3).map(|_| latch.hold()).collect();
        assert!(others.next().now_or_never().is_none());
        drop(first);
        let mut admitted = 0;
        while let Some(Some(held)) = others.next().now_or_never() {
            admitted += 1;
            assert!(others.is_empty() || others.next().now_or_never().is_none());
            drop(held);
        }
        assert_eq!(admitted, 3);
    }

    #[test]
    fn a_promise_gives_its_result_once() {
        let promise = Promise::default();
        assert!(promise.wait().now_or_never().is_none());
        promise.resolve(7);
        assert_eq!(promise.wait().now_or_never(), Some(7));
    }
}
