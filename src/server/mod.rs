//! THE REAL WORLD: the only room that knows glommio, io_uring, sockets, files, clocks and signals.
//!
//! `boot` starts one executor a core; each core has a `ring` of its own under its `disk` and its `socket`s, and a
//! `world` through which the shard speaks: to `peers` (other nodes) and their `callers`, over the `mesh` (other cores),
//! to `clients` and to the `web`. Unsafe code lives in `ring/` and `kernel` only.

#![allow(clippy::disallowed_methods)] // here is where clocks are read and threads are made

pub mod backlog;
pub mod boot;
pub mod callers;
pub mod clients;
pub mod clock;
pub mod config;
pub mod disk;
pub mod host;
pub mod kernel;
pub mod latency;
pub mod mesh;
pub mod options;
pub mod peers;
pub mod probe;
pub mod queue;
pub mod report;
pub mod ring;
pub mod socket;
pub mod standstill;
pub mod ticker;
pub mod tidings;
pub mod watch;
pub mod web;
pub mod world;

pub use boot::{StartError, run};
pub use options::{ProtocolOptions, ServeOptions};
