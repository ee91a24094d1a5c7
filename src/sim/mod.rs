//! THE VIRTUAL WORLD: a whole cluster in one thread, from one seed.
//!
//! The driver, the protocol and the engine are those of production; network, disks and clocks are made here. The same
//! seed gives the same run, event for event.

pub mod disk;
pub mod executor;
pub mod prng;
