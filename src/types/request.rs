//! What a client says besides key and value.

/// The number of replicas that must answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Level {
    One,
    /// More than half of N.
    Quorum,
    All,
    /// A given number; more than N is refused.
    Count(u8),
}
impl Level {
    /// The number of answers for `n` replicas. `Count` is not clamped: the coordinator refuses more than `n`.
    pub fn needed(self, n: usize) -> usize {
        match self {
            Level::One => 1,
            Level::Quorum => n / 2 + 1,
            Level::All => n,
            Level::Count(c) => usize::from(c),
        }
    }
}

/// Overrides of a table's settings for one request; `None` means the table's own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Consistency {
    /// R of a get, W of a put or delete.
    pub level: Option<Level>,
    /// `Some(false)`: only home replicas count.
    pub sloppy: Option<bool>,
}

/// The identity of a write that a client may send more than once: the same id is the same event. 0 means none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct WriteId(pub u64);
