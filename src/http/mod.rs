//! HTTP <-> message, sans-I/O: pure functions from a request's head and body to a
//! [`Request`](crate::protocol::message::Request), and from its answer to a [`Reply`].
//!
//! The life of one HTTP request, as the server's connection loop drives it:
//!
//! 1. [`HeadReader`] takes a head out of what has come; [`admit`] finds out what is asked ([`route`]) and whether it
//!    may be. Most bad input ends here, before a body is sent, as a [`Problem`] that renders itself
//!    ([`Problem::reply`]).
//! 2. [`Routed::Key`]: a PUT's body is read by a [`BodyReader`] up to [`KeyRequest::body_bytes_max`] ([`too_large`]
//!    beyond it), then [`request`] makes the protocol's request of it. The server keeps [`KeyRequest::form`], a few
//!    bytes, to render the answer with [`key_reply`]. Values are never copied: a JSON value is a slice of the body it
//!    came in, and goes out as a body piece of its own.
//! 3. Everything else: the server fills a view ([`views`]) and renders it with [`json_reply`] or [`metrics_reply`].
//! 4. [`head_text`] begins the answer.
//!
//! Headers are looked up through the small trait [`Headers`].

mod admit;
mod body;
mod head;
pub mod latencies;
mod media;
mod problem;
mod render;
mod request;
mod route;
mod status;
mod tables;
pub mod views;

#[cfg(test)]
mod tests;

pub use admit::admit;
pub use body::{BodyReader, Part};
pub use head::{Framing, Head, HeadReader};
pub use problem::{Problem, too_large};
pub use render::{HealthReply, Reply, health_reply, json_reply, key_reply, metrics_reply, openapi_reply, ready_reply};
pub use request::request;
pub use route::{Form, KeyRequest, Routed, Verb, route};
pub use status::{CONTINUE, Persistence, date, head_text, phrase};
pub use tables::{DroppedView, KeyCount, TableBody, TableView, TablesView, dropped_reply, no_such_table, table_wish};

use std::time::Duration;

/// The context of a read that a write builds on; also on every answer about a key.
pub const CONTEXT_HEADER: &str = "x-version-context";
/// `one`, `quorum` or `all`.
pub const CONSISTENCY_HEADER: &str = "x-consistency";
/// The identity of a write that may be sent more than once: 1 to 16 hexadecimal digits, not zero.
pub const WRITE_ID_HEADER: &str = "x-write-id";

/// What the server's settings say about requests.
#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// Bytes of one value.
    pub value_bytes_max: usize,
    /// Deadline of a request that names none.
    pub request_timeout: Duration,
}
impl Default for HttpLimits {
    fn default() -> HttpLimits {
        HttpLimits { value_bytes_max: crate::limits::VALUE_BYTES_MAX, request_timeout: crate::limits::REQUEST_TIMEOUT }
    }
}

/// The headers of a request. Names are asked for in lower case and compared without regard to case.
pub trait Headers {
    /// The `index`-th header of this name (0-based), in the order of the request.
    fn value(&self, name: &str, index: usize) -> Option<&[u8]>;
}
impl Headers for [(&str, &[u8])] {
    fn value(&self, name: &str, index: usize) -> Option<&[u8]> {
        self.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).nth(index).map(|(_, v)| *v)
    }
}
