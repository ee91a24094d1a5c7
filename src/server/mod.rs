//! THE REAL WORLD: the only room that knows glommio, io_uring, sockets, files, clocks and signals.

pub mod clock;
pub mod disk;
pub mod kernel;
pub mod options;
pub mod ring;
pub mod socket;

pub use options::{ProtocolOptions, ServeOptions};
