//! Operations in flight, by key. A key is never given out twice before 2^32 uses of its slot.

use super::operation::Orphan;
use std::task::{Poll, Waker};

/// The key of an operation, which the kernel returns with the completion: the slot, and how often it has been used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Key {
    index: u32,
    turn: u32,
}

impl Key {
    pub(super) fn to_bits(self) -> u64 {
        u64::from(self.turn) << 32 | u64::from(self.index)
    }
    pub(super) fn from_bits(bits: u64) -> Key {
        Key { index: bits as u32, turn: (bits >> 32) as u32 }
    }
}

enum Slot {
    Free { next: u32 },
    Flying(Option<Waker>),
    Done(i32),
    Abandoned(Box<dyn Orphan>),
}

const END: u32 = u32::MAX;

pub(super) struct Slots {
    slots: Vec<(u32, Slot)>,
    free: u32,
    in_flight: usize,
}

impl Default for Slots {
    fn default() -> Slots {
        Slots { slots: Vec::new(), free: END, in_flight: 0 }
    }
}

impl Slots {
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn take(&mut self) -> Key {
        self.in_flight += 1;
        if self.free == END {
            self.slots.push((0, Slot::Flying(None)));
            return Key { index: (self.slots.len() - 1) as u32, turn: 0 };
        }
        let index = self.free;
        let (turn, slot) = &mut self.slots[index as usize];
        if let Slot::Free { next } = *slot {
            self.free = next;
        }
        *slot = Slot::Flying(None);
        Key { index, turn: *turn }
    }

    fn release(&mut self, index: u32) {
        let (turn, slot) = &mut self.slots[index as usize];
        // The last turn is skipped: with the last index it would read as "nobody".
        *turn = (*turn + 1) % u32::MAX;
        *slot = Slot::Free { next: self.free };
        self.free = index;
    }

    /// Notes a completion. Wakers to wake and orphans to end are handed out, so that this happens without a borrow of
    /// the ring.
    pub(super) fn complete(
        &mut self,
        key: Key,
        result: i32,
        wakers: &mut Vec<Waker>,
        orphans: &mut Vec<(Box<dyn Orphan>, i32)>,
    ) {
        let Some((turn, slot)) = self.slots.get_mut(key.index as usize) else { return };
        if *turn != key.turn {
            return;
        }
        self.in_flight -= 1;
        match std::mem::replace(slot, Slot::Done(result)) {
            Slot::Flying(waker) => wakers.extend(waker),
            Slot::Abandoned(orphan) => {
                orphans.push((orphan, result));
                self.release(key.index);
            }
            other @ (Slot::Free { .. } | Slot::Done(_)) => {
                self.in_flight += 1;
                *slot = other;
            }
        }
    }

    /// The result of an operation. It is given out once, and the slot is free afterwards.
    pub(super) fn poll(&mut self, key: Key, waker: &Waker) -> Poll<i32> {
        match &mut self.slots[key.index as usize].1 {
            Slot::Done(result) => {
                let result = *result;
                self.release(key.index);
                Poll::Ready(result)
            }
            Slot::Flying(Some(current)) if current.will_wake(waker) => Poll::Pending,
            Slot::Flying(current) => {
                *current = Some(waker.clone());
                Poll::Pending
            }
            Slot::Free { .. } | Slot::Abandoned(_) => unreachable!("a future owns its slot"),
        }
    }

    /// Keeps the payload of an operation that nobody waits for; gives it back when its completion is here.
    pub(super) fn abandon(&mut self, key: Key, orphan: Box<dyn Orphan>) -> Option<(Box<dyn Orphan>, i32)> {
        let slot = &mut self.slots[key.index as usize].1;
        if let Slot::Done(result) = *slot {
            self.release(key.index);
            return Some((orphan, result));
        }
        *slot = Slot::Abandoned(orphan);
        None
    }

    /// Forgets every payload that the kernel may still use.
    pub(super) fn leak(&mut self) {
        for (_, slot) in self.slots.drain(..) {
            if let Slot::Abandoned(orphan) = slot {
                std::mem::forget(orphan);
            }
        }
    }
}
