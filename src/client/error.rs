//! Why a client's request failed, and whether it may have taken effect.

use super::SessionError;
use crate::types::{Failure, KeyError, Outcome};

/// The failure of a request as its caller sees it. [`ClientError::outcome`] says whether a write may have taken effect.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClientError {
    /// No server of the cluster took the request, or the last one broke off.
    #[error("no server could be reached: {detail}")]
    Unreachable { detail: String, outcome: Outcome },
    /// No answer until the deadline.
    #[error("no answer before the deadline")]
    Timeout { outcome: Outcome },
    /// A server's answer.
    #[error("{0}")]
    Failure(Failure),
    /// A server broke the protocol, or closed the connection with these words.
    #[error("{error}")]
    Protocol { error: SessionError, outcome: Outcome },
    #[error("{0}")]
    Key(#[from] KeyError),
    /// None of the addresses given is one.
    #[error("no usable address: {0}")]
    Address(String),
}

impl ClientError {
    /// Whether a write that failed so may still take effect.
    pub fn outcome(&self) -> Outcome {
        match self {
            ClientError::Unreachable { outcome, .. }
            | ClientError::Timeout { outcome }
            | ClientError::Protocol { outcome, .. } => *outcome,
            ClientError::Failure(failure) => failure.outcome,
            ClientError::Key(_) | ClientError::Address(_) => Outcome::NotApplied,
        }
    }
    /// Makes the outcome unknown: when an earlier sending of the same write may have arrived.
    pub(super) fn uncertain(mut self) -> ClientError {
        match &mut self {
            ClientError::Unreachable { outcome, .. }
            | ClientError::Timeout { outcome }
            | ClientError::Protocol { outcome, .. } => *outcome = Outcome::Unknown,
            ClientError::Failure(failure) => failure.outcome = Outcome::Unknown,
            ClientError::Key(_) | ClientError::Address(_) => {}
        }
        self
    }
}
