//! Versions and conflicts: which values of a key are concurrent, which are superseded.
//!
//! A key's state is a *head* (a dotted version vector set: a clock, and one entry for each sibling) and the siblings'
//! values. The clock says which events the state knows; a sibling is an event that it knows and that nothing has
//! superseded. Two states merge by [`Head::sync`]: an entry survives if both sides hold it, or if the side that lacks
//! it does not know its event.
//!
//! - A dot (actor, counter) names one event and is never used twice.
//! - A clock that covers a dot has seen that event: every state is the merge of whole states, so a plain vector of
//!   maxima is enough and nothing is ever pruned from it.
//! - In tables where the last write wins, dots are stamps: see `stamp`.
//! - A deleted key is a clock without entries: the tombstone.
//! - A write that a client sends twice carries one [`WriteId`](crate::types::WriteId). If two coordinators give it two
//!   dots, both stay in the state (to drop one would look like superseding it) and readers are shown one
//!   ([`Siblings::into_shown`]). A state that has superseded either treats both as superseded: [`Head::recent`]
//!   remembers the last few. Forgetting one can bring a superseded write back as a sibling, never lose one.

mod clock;
mod codec;
mod compact;
mod context;
mod head;
mod stamp;

pub use clock::{Actor, Causality, Dot, VersionVector};
pub use codec::HeadError;
pub use context::{Context, ContextError};
pub use head::{Entry, Head, Merged, Pick, Siblings, Side, Superseded, Values};
