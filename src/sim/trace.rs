//! What happened in a run: a hash over every delivery, answer and fault in order, and the events in words if asked.

use crate::types::Instant;
use std::cell::{Cell, RefCell};

/// Takes the lines of a printed trace.
pub type Sink = Box<dyn FnMut(&str)>;

#[derive(Default)]
pub struct Trace {
    hash: Cell<u64>,
    events: Cell<u64>,
    sink: RefCell<Option<Sink>>,
    printing: Cell<bool>,
}

impl Trace {
    pub fn new(seed: u64) -> Trace {
        Trace { hash: Cell::new(seed), ..Trace::default() }
    }
    /// Prints every event from now on.
    pub fn print_to(&self, sink: Sink) {
        *self.sink.borrow_mut() = Some(sink);
        self.printing.set(true);
    }
    /// Equal for two runs exactly when they were equal, event for event (but for a collision of 64 bits).
    pub fn hash(&self) -> u64 {
        self.hash.get()
    }
    pub fn events(&self) -> u64 {
        self.events.get()
    }
    fn mix(&self, word: u64) {
        let hash = (self.hash.get().rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.hash.set(hash ^ hash >> 29);
    }
    /// Notes an event; `words` is called only when the trace is printed.
    pub fn note(&self, at: Instant, what: u64, detail: u64, words: impl FnOnce() -> String) {
        self.events.set(self.events.get() + 1);
        self.mix(at.0);
        self.mix(what ^ detail.rotate_left(32));
        if self.printing.get() {
            let line = format!("{:>12.6} {}", at.0 as f64 / 1e9, words());
            if let Some(sink) = self.sink.borrow_mut().as_mut() {
                sink(&line);
            }
        }
    }
}
