//! The blocking client: std sockets, std time. The only file of the library (with those below it) that waits.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a blocking client reads the clock, sleeps and waits for sockets; it never runs on a shard's core"
)]

mod connection;
mod pipeline;

pub use connection::Connection;
pub use pipeline::{Pipeline, Ticket};

use super::{ClientError, Got, Options};
use crate::{
    protocol::{
        message::{Answer, Operation},
        versions::Context,
    },
    types::{ErrorCode, Failure, Instant, Key, Member, Outcome, Value, WriteId},
};
use bytes::Bytes;
use std::{net::ToSocketAddrs, time::Duration};

/// How often [`Client::update`] reads and merges anew.
const UPDATE_ROUNDS: usize = 3;

/// Monotonic time since a client was made.
#[derive(Clone, Copy, Debug)]
struct Clock(std::time::Instant);
impl Clock {
    fn start() -> Clock {
        Clock(std::time::Instant::now())
    }
    fn now(&self) -> Instant {
        Instant::ZERO + self.0.elapsed()
    }
}

/// A client of a cluster: one request at a time, each sent to a core that owns its key, over connections that are made
/// when first needed.
///
/// A request is tried again elsewhere, until its timeout, when a connection is refused or breaks, when a server stays
/// silent, and when a server answers that it is not ready or overloaded.
#[derive(Debug)]
pub struct Client {
    pipeline: Pipeline,
}

impl Client {
    /// Connects to the first of these client-protocol addresses (`host:port` text or socket addresses) that answers,
    /// and learns the ring from it.
    pub fn connect<S: ToSocketAddrs>(seeds: &[S]) -> Result<Client, ClientError> {
        Ok(Client { pipeline: Pipeline::connect(seeds)? })
    }

    /// What a key holds.
    pub fn get(&mut self, key: impl Into<Bytes>) -> Result<Got, ClientError> {
        self.get_with(key, &Options::default())
    }
    /// What a key holds. With `options.context`, the context of an earlier read or write, the answer is at least as new
    /// as that, or a failure that says so.
    pub fn get_with(&mut self, key: impl Into<Bytes>, options: &Options) -> Result<Got, ClientError> {
        match self.call(Key::new(key)?, Operation::Get { context: options.context.clone() }, options)? {
            Answer::Got(siblings) => Ok(Got::from(siblings)),
            Answer::Written(_) => Err(mismatched()),
        }
    }
    /// Writes a value that supersedes what `options.context` covers, and is concurrent with all else. Returns the
    /// context of what was written.
    pub fn put(&mut self, key: impl Into<Bytes>, value: Value, options: &Options) -> Result<Context, ClientError> {
        let write_id = self.pipeline.new_write_id();
        self.write(Key::new(key)?, Operation::Put { context: options.context.clone(), value, write_id }, options)
    }
    /// Deletes what `options.context` covers; without a context, what the coordinator has seen. Returns the context
    /// of the deletion. Without a context it is not tried again once it may have been done: the second one would delete
    /// what others have written since. Read first, and a delete with the context is tried again like every write.
    pub fn delete(&mut self, key: impl Into<Bytes>, options: &Options) -> Result<Context, ClientError> {
        let write_id = self.pipeline.new_write_id();
        self.write(Key::new(key)?, Operation::Delete { context: options.context.clone(), write_id }, options)
    }
    /// Reads a key, merges its siblings and writes the result with the context of the read, so that it supersedes all
    /// that was merged. A write that a server refused without effect (too many siblings, say) is begun anew with a
    /// fresh read. Returns the value written and its context.
    ///
    /// A write that another client makes in between is not lost: it stays as a sibling of this one.
    pub fn update(
        &mut self,
        key: impl Into<Bytes>,
        mut merge: impl FnMut(&[Value]) -> Value,
        options: &Options,
    ) -> Result<(Value, Context), ClientError> {
        let key = Key::new(key)?;
        let mut round = 1;
        loop {
            let got = self.get_with(key.bytes().clone(), options)?;
            let value = merge(&got.siblings);
            match self.put(key.bytes().clone(), value.clone(), &options.clone().context(got.context)) {
                Ok(context) => return Ok((value, context)),
                Err(ClientError::Failure(f)) if round < UPDATE_ROUNDS && worth_another_read(&f) => round += 1,
                Err(error) => return Err(error),
            }
        }
    }
    fn write(&mut self, key: Key, operation: Operation, options: &Options) -> Result<Context, ClientError> {
        match self.call(key, operation, options)? {
            Answer::Written(context) => Ok(context),
            Answer::Got(_) => Err(mismatched()),
        }
    }
    /// One operation of any kind.
    pub fn call(&mut self, key: Key, operation: Operation, options: &Options) -> Result<Answer, ClientError> {
        let ticket = self.pipeline.submit(key, operation, options);
        loop {
            match self.pipeline.next() {
                Some((done, result)) if done == ticket => return result,
                Some(_) => {}
                None => return Err(mismatched()),
            }
        }
    }
    /// The members as some server of the cluster knows them now, and the digest of its ring.
    pub fn ring(&mut self, timeout: Duration) -> Result<(Vec<Member>, u64), ClientError> {
        self.pipeline.ring(timeout)
    }
}

fn worth_another_read(failure: &Failure) -> bool {
    failure.outcome == Outcome::NotApplied && failure.code == ErrorCode::SiblingLimit
}
/// An answer of another kind than the request.
fn mismatched() -> ClientError {
    let error = super::SessionError::Unexpected("an answer of another kind than the request");
    ClientError::Protocol { error, outcome: Outcome::Unknown }
}

/// A random write id, never 0.
fn write_id(random: &mut fastrand::Rng) -> WriteId {
    WriteId(random.u64(1..))
}
