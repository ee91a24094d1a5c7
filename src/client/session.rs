//! One connection's conversation without I/O: HELLO, request ids, what is in flight, what has expired.
//!
//! Bytes come in by [`Session::feed`], [`Pieces`] to send come out of the calls that ask. Ids count up from 1 and are
//! never used twice, so a late answer to a request that was given up is recognised and dropped.

use crate::{
    limits::{FRAME_BYTES_BEFORE_HELLO, FRAME_BYTES_MAX},
    protocol::{
        message::{ClientMessage, Hello, Request, Response, ServerMessage, Welcome},
        ring::FixedMap,
    },
    types::{Instant, Member},
    wire::{
        CLIENT_REVISION, FEATURES, FrameDecoder, FrameEncoder, Pieces, WireError, age, decode_server, encode_client,
    },
};
use std::collections::BTreeSet;

/// Why a connection is of no use any more.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SessionError {
    #[error("protocol error: {0}")]
    Wire(#[from] WireError),
    #[error("the server closed the connection: {0}")]
    Goodbye(String),
    #[error("the server speaks revision {0} of the client protocol, this client {CLIENT_REVISION}")]
    Revision(u16),
    #[error("the server sent {0}")]
    Unexpected(&'static str),
}

/// What the server has said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The conversation is open; requests may be sent.
    Open,
    Response {
        id: u64,
        response: Response,
        /// Names the server's ring; differs from [`super::Routes::digest`] when the member list has changed.
        ring_digest: u64,
    },
    Ring {
        id: u64,
        members: Vec<Member>,
        digest: u64,
    },
    /// No answer came before the deadline; a later one is dropped.
    Expired {
        id: u64,
    },
}

#[derive(Debug, Default)]
pub struct Session {
    decoder: FrameDecoder,
    encoder: FrameEncoder,
    welcome: Option<Welcome>,
    last_id: u64,
    /// Deadlines of requests without an answer.
    in_flight: FixedMap<u64, Instant>,
    deadlines: BTreeSet<(Instant, u64)>,
}

impl Session {
    pub fn new() -> Session {
        Session::default()
    }
    /// The first frame to send.
    pub fn hello(&mut self, now: Instant) -> Result<Pieces, SessionError> {
        let hello = Hello { revision: CLIENT_REVISION, features: FEATURES, clock: Some(age::clock(now)) };
        Ok(encode_client(&mut self.encoder, 0, &ClientMessage::Hello(hello), now)?)
    }
    /// What the server said of itself, once open.
    pub fn welcome(&self) -> Option<&Welcome> {
        self.welcome.as_ref()
    }
    /// Requests without an answer.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// A request with a number of its own. [`WireError::Unsendable`] when the server takes no frame so long; the
    /// conversation goes on.
    pub fn request(&mut self, request: &Request, now: Instant) -> Result<(u64, Pieces), WireError> {
        let id = self.last_id + 1;
        // The message owns its request; all parts of it are counted by reference or small.
        let message = ClientMessage::Request(request.clone());
        let pieces = encode_client(&mut self.encoder, id, &message, now)?;
        let limit = self.welcome.as_ref().map_or(FRAME_BYTES_BEFORE_HELLO, |w| w.frame_bytes_max as usize);
        if pieces.bytes() > limit {
            return Err(WireError::Unsendable("longer than the server takes"));
        }
        self.track(id, request.deadline);
        Ok((id, pieces))
    }
    /// Asks for the member list.
    pub fn ring(&mut self, deadline: Instant, now: Instant) -> Result<(u64, Pieces), WireError> {
        let id = self.last_id + 1;
        let pieces = encode_client(&mut self.encoder, id, &ClientMessage::Ring, now)?;
        self.track(id, deadline);
        Ok((id, pieces))
    }
    fn track(&mut self, id: u64, deadline: Instant) {
        self.last_id = id;
        self.in_flight.insert(id, deadline);
        self.deadlines.insert((deadline, id));
    }
    /// Gives a request up: its answer will be dropped. Whether it was in flight.
    pub fn forget(&mut self, id: u64) -> bool {
        let deadline = self.in_flight.remove(&id);
        deadline.is_some_and(|d| self.deadlines.remove(&(d, id)))
    }
    /// The first deadline of what is in flight.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Takes received bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.decoder.feed(bytes);
    }
    /// The next thing that the server has said or failed to say. After an error the connection is to be closed.
    pub fn next_event(&mut self, now: Instant) -> Result<Option<Event>, SessionError> {
        while let Some(frame) = self.decoder.next_frame()? {
            let (id, message) = decode_server(&frame)?;
            if let Some(event) = self.take(id, message)? {
                return Ok(Some(event));
            }
        }
        let expired = self.deadlines.first().filter(|(at, _)| *at <= now).map(|(_, id)| *id);
        Ok(expired.inspect(|id| _ = self.forget(*id)).map(|id| Event::Expired { id }))
    }
    fn take(&mut self, id: u64, message: ServerMessage) -> Result<Option<Event>, SessionError> {
        let event = match message {
            ServerMessage::Goodbye { reason } => return Err(SessionError::Goodbye(reason)),
            ServerMessage::Welcome(welcome) => return self.open(welcome).map(Some),
            ServerMessage::Response { response, ring_digest } => Event::Response { id, response, ring_digest },
            ServerMessage::Ring { members, digest } => Event::Ring { id, members, digest },
        };
        if self.welcome.is_none() {
            return Err(SessionError::Unexpected("an answer before its HELLO"));
        }
        if id > self.last_id {
            return Err(SessionError::Unexpected("an answer to what was never asked"));
        }
        Ok(self.forget(id).then_some(event))
    }
    fn open(&mut self, welcome: Welcome) -> Result<Event, SessionError> {
        if self.welcome.is_some() {
            return Err(SessionError::Unexpected("a second HELLO"));
        }
        if !(1..=CLIENT_REVISION).contains(&welcome.revision) {
            return Err(SessionError::Revision(welcome.revision));
        }
        let limit = (welcome.frame_bytes_max as usize).clamp(FRAME_BYTES_BEFORE_HELLO, FRAME_BYTES_MAX);
        self.decoder.set_limit(limit);
        self.encoder.speaking(welcome.revision);
        self.welcome = Some(Welcome { frame_bytes_max: limit as u32, ..welcome });
        Ok(Event::Open)
    }
}
