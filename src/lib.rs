//! Dynarc: a Dynamo-style distributed key-value store whose unit is a CPU core.

#[cfg(feature = "server")]
pub mod cli;
pub mod client;
pub mod driver;
pub mod engine;
pub mod http;
pub mod limits;
pub mod protocol;
#[cfg(feature = "server")]
pub mod server;
pub mod sim;
pub mod types;
pub mod wire;
