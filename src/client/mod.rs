//! The client library: for programs that talk to a cluster over the client protocol. No glommio, no async runtime.
//!
//! - [`Client`] is what most programs want: one request at a time, sent to a core that owns the key, tried again
//!   elsewhere when a node fails.
//! - [`Pipeline`] is the same with many requests in flight from one thread: for loading and scanning.
//! - [`Connection`] is one TCP connection: many requests in flight, answers in any order, nothing tried again. For
//!   load generators and for programs that decide themselves.
//! - [`Session`], [`Routes`] and [`Flight`] are what these are made of, without I/O: for a client on another runtime.
//!
//! A write keeps one random write id over all its sendings, so that a write which arrives twice is one event and never
//! makes a sibling of itself.
//!
//! ```no_run
//! use dynarc::{client::{Client, Options}, types::Value};
//!
//! # fn main() -> Result<(), dynarc::client::ClientError> {
//! let mut client = Client::connect(&["127.0.0.1:8000"])?;
//! let got = client.get("cart:8731")?;
//! let context = client.put("cart:8731", Value::json("[1, 2]"), &Options::default().context(got.context))?;
//! client.delete("cart:8731", &Options::default().context(context))?;
//! # Ok(())
//! # }
//! ```

mod blocking;
mod error;
mod flight;
mod options;
mod routing;
mod session;

pub use blocking::{Client, Connection, Pipeline, Ticket};
pub use error::ClientError;
pub use flight::{Decision, Flight, RetryBudget, Setback};
pub use options::{Got, Options};
pub use routing::{Routes, Target};
pub use session::{Event, Session, SessionError};
