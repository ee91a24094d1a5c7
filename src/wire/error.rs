//! What can be wrong with received bytes.

use crate::{
    limits::{FRAME_HEADER_BYTES, VALUE_BYTES_CEILING},
    protocol::versions::HeadError,
    types::{ErrorCode, Failure, KeyError, Outcome, ValueError},
};
use flatbuffers::InvalidFlatbuffer;

/// A defect of a frame. The connection that it came over is closed, unless [`WireError::refusal`] says otherwise.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    #[error("a frame of {claimed} bytes, this connection takes {limit}")]
    TooLong { claimed: usize, limit: usize },
    #[error("a frame of {claimed} bytes cannot hold its parts (the header alone has {FRAME_HEADER_BYTES})")]
    Length { claimed: usize },
    #[error("not a Dynarc frame, or one of another format")]
    Mark,
    #[error("unknown flags {0:#06x}")]
    Flags(u16),
    #[error("the frame does not match its checksum")]
    Checksum,
    #[error("unknown kind of frame {0}")]
    UnknownKind(u16),
    /// A kind that exists but has no place here: a client's frame on a peer connection, a message before the HELLO.
    #[error("a frame of kind {0} has no place here")]
    UnexpectedKind(u16),
    #[error("the flatbuffer is not valid: {0}")]
    Flatbuffer(Box<InvalidFlatbuffer>),
    /// A field that is absent, unknown or out of bounds.
    #[error("bad field: {0}")]
    Field(&'static str),
    #[error("the head of a key: {0}")]
    Head(#[from] HeadError),
    #[error("the context is not one that this store gives out: out of order, or beyond its bounds")]
    Context,
    #[error("the values do not fill the frame as it states")]
    Body,
    #[error("{0}")]
    Key(#[from] KeyError),
    #[error("{0}")]
    Value(#[from] ValueError),
    #[error("a value has at most {VALUE_BYTES_CEILING} bytes, this one has {0}")]
    ValueTooLong(usize),
    /// On the sending side: a message beyond the limits of what a frame carries.
    #[error("the message does not fit a frame: {0}")]
    Unsendable(&'static str),
    /// Likewise: a kind of frame that the other side does not know. It is not told.
    #[error("the other side speaks a revision without frames of kind {0}")]
    Unspoken(u16),
}

impl WireError {
    /// The answer to a request whose frame was sound but which breaks the contract (length of the key or the value,
    /// content type, JSON that is none). `None`: bytes from this sender mean nothing any more, the connection is
    /// closed.
    pub fn refusal(&self) -> Option<Failure> {
        match self {
            WireError::Key(_)
            | WireError::Context
            | WireError::Value(ValueError::MediaType | ValueError::Json { .. }) => {
                Some(Failure::bad_request(self.to_string()))
            }
            WireError::ValueTooLong(_) => {
                Some(Failure::new(ErrorCode::TooLarge, Outcome::NotApplied, self.to_string()))
            }
            _ => None,
        }
    }
}

impl From<InvalidFlatbuffer> for WireError {
    fn from(error: InvalidFlatbuffer) -> WireError {
        WireError::Flatbuffer(Box::new(error))
    }
}
