//! The disk queue of one core: who may be at the device, and who goes first.
//!
//! Four lanes with bounds of their own: reads that clients wait for, batches of the log, flushes, and all other
//! background work. Of those who wait, the lane that comes first in that order goes first; within a lane the first who
//! came. The last two share a small number of places, fewer while clients read much, more while the backlog of
//! background work is large, so that neither side starves.

use crate::engine::disk::Lane;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    task::{Poll, Waker},
};

/// Reads that clients wait for, at the device at once.
const FOREGROUND_MAX: usize = 32;
/// Batches of the log at the device at once.
const LOG_MAX: usize = 2;
/// Background accesses at the device at once: usually, while clients read much, and while the backlog is large.
const BACKGROUND_MAX: usize = 2;
const BACKGROUND_MIN: usize = 1;
const BACKGROUND_URGENT: usize = 16;
/// Reads of clients at the device that are much.
const FOREGROUND_MUCH: usize = 8;
/// Urgency from which the backlog is large.
const URGENT: f64 = 0.5;

const LANES: [Lane; 4] = [Lane::Foreground, Lane::Log, Lane::Flush, Lane::Background];

#[derive(Default)]
pub struct DiskQueue {
    lanes: [Line; LANES.len()],
    tickets: Cell<u64>,
    urgency: Cell<f64>,
}

/// What waits in one lane, and what is under way.
#[derive(Default)]
struct Line {
    busy: Cell<usize>,
    /// Tickets of those who wait, ascending.
    waiting: RefCell<VecDeque<(u64, Option<Waker>)>>,
}

impl DiskQueue {
    fn line(&self, lane: Lane) -> &Line {
        &self.lanes[lane as usize]
    }
    fn busy(&self, lane: Lane) -> usize {
        self.line(lane).busy.get()
    }
    /// How large the backlog of background work is, 0 to 1.
    pub fn set_urgency(&self, urgency: f64) {
        self.urgency.set(urgency);
        self.call_next();
    }
    fn has_place(&self, lane: Lane) -> bool {
        let background = || {
            let most = if self.urgency.get() >= URGENT {
                BACKGROUND_URGENT
            } else if self.busy(Lane::Foreground) >= FOREGROUND_MUCH {
                BACKGROUND_MIN
            } else {
                BACKGROUND_MAX
            };
            self.busy(Lane::Flush) + self.busy(Lane::Background) < most
        };
        match lane {
            Lane::Foreground => self.busy(lane) < FOREGROUND_MAX,
            Lane::Log => self.busy(lane) < LOG_MAX,
            Lane::Flush => background(),
            Lane::Background => background() && self.line(Lane::Flush).waiting.borrow().is_empty(),
        }
    }
    fn take(&self, lane: Lane) -> Pass<'_> {
        let line = self.line(lane);
        line.busy.set(line.busy.get() + 1);
        Pass { queue: self, lane }
    }

    /// Waits for a place.
    pub async fn enter(&self, lane: Lane) -> Pass<'_> {
        let line = self.line(lane);
        if line.waiting.borrow().is_empty() && self.has_place(lane) {
            return self.take(lane);
        }
        let ticket = self.tickets.get();
        self.tickets.set(ticket + 1);
        line.waiting.borrow_mut().push_back((ticket, None));
        let _place = Place { queue: self, lane, ticket };
        poll_fn(|cx| {
            let mut waiting = line.waiting.borrow_mut();
            if waiting.front().is_some_and(|first| first.0 == ticket) && self.has_place(lane) {
                return Poll::Ready(());
            }
            if let Ok(mine) = waiting.binary_search_by_key(&ticket, |w| w.0) {
                waiting[mine].1 = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
        // Leaving the line calls the next, who finds this place taken.
        self.take(lane)
    }

    /// Wakes the first of each lane that has a place, the more urgent lane first.
    fn call_next(&self) {
        for lane in LANES {
            if !self.has_place(lane) {
                continue;
            }
            let next = self.line(lane).waiting.borrow_mut().front_mut().and_then(|first| first.1.take());
            if let Some(waker) = next {
                waker.wake();
            }
        }
    }
}

/// A place in a line, given up when the wait is over.
struct Place<'a> {
    queue: &'a DiskQueue,
    lane: Lane,
    ticket: u64,
}
impl Drop for Place<'_> {
    fn drop(&mut self) {
        // Mostly the first; thousands may wait behind it.
        let mut waiting = self.queue.line(self.lane).waiting.borrow_mut();
        if let Ok(mine) = waiting.binary_search_by_key(&self.ticket, |w| w.0) {
            waiting.remove(mine);
        }
        drop(waiting);
        self.queue.call_next();
    }
}

/// The right to be at the device.
pub struct Pass<'a> {
    queue: &'a DiskQueue,
    lane: Lane,
}
impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let line = self.queue.line(self.lane);
        line.busy.set(line.busy.get() - 1);
        self.queue.call_next();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::pin::pin;

    fn enter(queue: &DiskQueue, lane: Lane) -> Option<Pass<'_>> {
        queue.enter(lane).now_or_never()
    }
    fn fill(queue: &DiskQueue, lane: Lane) -> Vec<Pass<'_>> {
        std::iter::from_fn(|| enter(queue, lane)).take(100).collect()
    }

    #[test]
    fn each_lane_has_its_bound() {
        let queue = DiskQueue::default();
        let background = fill(&queue, Lane::Background);
        assert_eq!((background.len(), fill(&queue, Lane::Flush).len()), (2, 0), "they share their places");
        assert_eq!((fill(&queue, Lane::Log).len(), fill(&queue, Lane::Foreground).len()), (2, 32));
        drop(background);
        assert_eq!(fill(&queue, Lane::Flush).len(), 2);
    }

    #[test]
    fn background_has_less_beside_many_reads_and_more_when_it_is_urgent() {
        let queue = DiskQueue::default();
        let reads: Vec<_> = (0..8).filter_map(|_| enter(&queue, Lane::Foreground)).collect();
        assert_eq!(fill(&queue, Lane::Background).len(), 1);
        queue.set_urgency(0.6);
        assert_eq!(fill(&queue, Lane::Background).len(), 16);
        drop(reads);
        queue.set_urgency(0.0);
        assert_eq!(fill(&queue, Lane::Background).len(), 2);
    }

    #[test]
    fn a_flush_goes_before_what_came_earlier() {
        let queue = DiskQueue::default();
        let mut passes = fill(&queue, Lane::Background);
        let (mut compaction, mut flush) = (pin!(queue.enter(Lane::Background)), pin!(queue.enter(Lane::Flush)));
        assert!((&mut compaction).now_or_never().is_none() && (&mut flush).now_or_never().is_none());
        passes.pop();
        assert!((&mut compaction).now_or_never().is_none(), "the flush is first");
        let flushing = (&mut flush).now_or_never();
        assert!(flushing.is_some());
        drop(flushing);
        assert!((&mut compaction).now_or_never().is_some());
    }

    #[test]
    fn who_gives_up_holds_up_nobody() {
        let queue = DiskQueue::default();
        let mut passes = fill(&queue, Lane::Log);
        {
            let mut waits = Box::pin(queue.enter(Lane::Log));
            assert!((&mut waits).now_or_never().is_none());
        }
        passes.pop();
        assert!(enter(&queue, Lane::Log).is_some());
    }
}
