//! One protocol on one connection: requests into bytes, bytes into answers. No sockets here.
//!
//! Everything else of the generator is shared by all protocols, so that both sides of a ratio have one generator.

mod http;
mod native;
mod redis;

pub use http::{HttpDialect, http_response};
pub use native::{NativeDialect, NativeServer};
pub use redis::{RedisDialect, RedisServer};

use super::values::ValuePool;
use crate::protocol::versions::Context;
use std::borrow::Cow;

/// An operation to send.
pub struct Request<'a> {
    /// Comes back with the answer.
    pub id: u64,
    pub key: &'a [u8],
    pub ask: Ask<'a>,
}
pub enum Ask<'a> {
    Get,
    Put {
        /// What the writer has seen of the key.
        context: Option<&'a Context>,
        values: &'a ValuePool,
        /// The number of the value among those of the key.
        number: u64,
        variant: u64,
    },
}

/// What came of an operation.
pub struct Answer<'a> {
    pub id: u64,
    pub verdict: Verdict,
    /// The value of a get; of several, each is reported by an answer with [`Verdict::AlsoValue`] before.
    pub value: Option<&'a [u8]>,
    pub context: Option<Context>,
}
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    Done,
    Missing,
    /// One of several values; the operation's answer follows.
    AlsoValue,
    /// A get that returned so many values.
    Siblings(usize),
    Failed {
        code: Cow<'static, str>,
        /// The same operation may succeed elsewhere or later.
        retryable: bool,
    },
}

/// Bytes that are not of the protocol: the connection is given up.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the answer is not of the protocol: {0}")]
pub struct Broken(pub Cow<'static, str>);

/// The other side, for measuring the generator: answers without storing.
pub enum Service {
    Redis(RedisServer),
    Native(NativeServer),
}
impl Service {
    /// Answers whole requests at the front of a connection's `input` into `out`; returns how many bytes they took.
    pub fn serve(&mut self, connection: usize, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Broken> {
        match self {
            Service::Redis(server) => server.serve(input, out),
            Service::Native(server) => server.serve(connection, input, out),
        }
    }
}

/// The dialect of a connection that there is not.
pub struct Mute;
impl Dialect for Mute {
    fn request(&mut self, _: Request<'_>, _: &mut Vec<u8>) {}
    fn answers(&mut self, input: &[u8], _: &mut dyn FnMut(Answer<'_>)) -> Result<usize, Broken> {
        Ok(input.len())
    }
}

pub trait Dialect: Send {
    /// Appends the request to `out`.
    fn request(&mut self, request: Request<'_>, out: &mut Vec<u8>);
    /// Hands whole answers at the front of `input` to `answered` and returns how many bytes they took.
    fn answers(&mut self, input: &[u8], answered: &mut dyn FnMut(Answer<'_>)) -> Result<usize, Broken>;
}
