//! How much is sent to another node at once in the background: it sets the pace. The window grows while it answers
//! quickly, and shrinks when it takes long or refuses.

use crate::limits::{BACKGROUND_TIMEOUT, HINT_ANSWER_SLACK, HINT_ANSWER_TIMES, HINT_WINDOW, HINT_WINDOW_START};
use std::time::Duration;

/// See the module.
pub struct Pace {
    /// Answers that may be awaited at once.
    pub window: usize,
    /// Quick answers since the window last grew; and answers still to come of those that were asked for before it last
    /// shrank, which say nothing new.
    quick: usize,
    shrunk: usize,
    /// The time that it takes to answer when little is asked of it: the least seen, forgotten slowly.
    best: Duration,
}
impl Default for Pace {
    fn default() -> Pace {
        Pace { window: HINT_WINDOW_START, quick: 0, shrunk: 0, best: BACKGROUND_TIMEOUT }
    }
}
impl Pace {
    /// Adapts the window to an answer, which took so long; `well` says that it was not a refusal.
    pub fn answered(&mut self, took: Duration, well: bool) {
        self.shrunk = self.shrunk.saturating_sub(1);
        self.best = took.min(self.best + self.best / 128);
        if !well || took > self.best * HINT_ANSWER_TIMES + HINT_ANSWER_SLACK {
            // Answers to what was sent before it shrank say nothing new.
            if self.shrunk == 0 {
                self.window = (self.window / 2).max(1);
                self.shrunk = self.window;
            }
            self.quick = 0;
        } else {
            self.quick += 1;
            if self.quick >= self.window {
                (self.window, self.quick) = ((self.window + 1).min(HINT_WINDOW), 0);
            }
        }
    }
    /// It was not there: what is sent next goes carefully.
    pub fn lost(&mut self) {
        self.window = HINT_WINDOW_START.min(self.window);
    }
}
