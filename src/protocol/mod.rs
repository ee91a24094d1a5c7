//! THE BRAIN, pure: no async, no clock, no I/O. Time and randomness are arguments, effects are data.
//!
//! Read in the order of the `mod` lines. The machines (membership, coordinator, hints) never import each other; the
//! shard owns one of each and only routes.

pub mod coordinator;
pub mod hints;
pub mod membership;
pub mod message;
pub mod replica;
pub mod ring;
pub mod shard;
pub mod versions;
