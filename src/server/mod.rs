//! THE REAL WORLD: the only room that knows glommio, io_uring, sockets, files, clocks and signals.

pub mod config;
pub mod host;
pub mod options;

pub use options::{ProtocolOptions, ServeOptions};
