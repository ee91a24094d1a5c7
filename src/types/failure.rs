//! What can go wrong with a request, as the client sees it.

use std::fmt;

/// Whether a failed write may still take effect.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// Nothing was stored anywhere: the write never appears later.
    NotApplied,
    /// Some replica may hold it; it may appear later.
    Unknown,
}

/// The stable code of an error, in JSON (`code`) and in the client protocol.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum ErrorCode {
    BadRequest = 1,
    TooLarge = 2,
    SiblingLimit = 3,
    Overloaded = 4,
    QuorumUnavailable = 5,
    Deadline = 6,
    DiskFull = 7,
    /// The node has not joined its cluster yet, or is stopping.
    NotReady = 8,
    /// Stored bytes failed their checksum and no other replica could answer.
    Damaged = 9,
    /// A defect or a failed disk on the server's side.
    Internal = 10,
    /// The write id has been used for another write of this key.
    WriteIdReused = 11,
    /// A table where the last write wins, and a clock that is too far from the others' to say which is the last.
    Clock = 12,
    /// There is a table of that name already.
    TableExists = 14,
    /// No replica that answered has seen all that the context of a read names.
    NotCovered = 16,
}
impl ErrorCode {
    pub const ALL: [ErrorCode; 14] = [
        ErrorCode::BadRequest,
        ErrorCode::TooLarge,
        ErrorCode::SiblingLimit,
        ErrorCode::Overloaded,
        ErrorCode::QuorumUnavailable,
        ErrorCode::Deadline,
        ErrorCode::DiskFull,
        ErrorCode::NotReady,
        ErrorCode::Damaged,
        ErrorCode::Internal,
        ErrorCode::WriteIdReused,
        ErrorCode::Clock,
        ErrorCode::TableExists,
        ErrorCode::NotCovered,
    ];
    pub fn from_number(number: u8) -> Option<ErrorCode> {
        Self::ALL.into_iter().find(|c| *c as u8 == number)
    }
    /// The text of `code` in JSON.
    pub fn name(self) -> &'static str {
        match self {
            ErrorCode::BadRequest => "bad_request",
            ErrorCode::TooLarge => "too_large",
            ErrorCode::SiblingLimit => "sibling_limit",
            ErrorCode::Overloaded => "overloaded",
            ErrorCode::QuorumUnavailable => "quorum_unavailable",
            ErrorCode::Deadline => "deadline",
            ErrorCode::DiskFull => "disk_full",
            ErrorCode::NotReady => "not_ready",
            ErrorCode::Damaged => "damaged",
            ErrorCode::Internal => "internal",
            ErrorCode::WriteIdReused => "write_id_reused",
            ErrorCode::Clock => "clock",
            ErrorCode::TableExists => "table_exists",
            ErrorCode::NotCovered => "context_not_covered",
        }
    }
    /// The nearest code of those that revision 1 of the client and the peer protocol knows, 1 to 10.
    pub fn in_revision_1(self) -> ErrorCode {
        match self {
            ErrorCode::BadRequest
            | ErrorCode::TooLarge
            | ErrorCode::SiblingLimit
            | ErrorCode::Overloaded
            | ErrorCode::QuorumUnavailable
            | ErrorCode::Deadline
            | ErrorCode::DiskFull
            | ErrorCode::NotReady
            | ErrorCode::Damaged
            | ErrorCode::Internal => self,
            ErrorCode::WriteIdReused => ErrorCode::BadRequest,
            ErrorCode::Clock | ErrorCode::NotCovered => ErrorCode::QuorumUnavailable,
            // Tables are changed over HTTP: it is never sent.
            ErrorCode::TableExists => ErrorCode::BadRequest,
        }
    }
    /// Whether the same request may succeed if it is sent again, perhaps elsewhere.
    pub fn retryable(self) -> bool {
        use ErrorCode::*;
        matches!(self, Overloaded | QuorumUnavailable | Deadline | NotReady | Damaged | Internal | Clock | NotCovered)
    }
    /// Whether it is for reasons of the node that answered, what it can reach among them.
    pub fn is_of_one_node(self) -> bool {
        use ErrorCode::*;
        match self {
            Overloaded | QuorumUnavailable | DiskFull | NotReady | Damaged | Internal | Clock => true,
            BadRequest | TooLarge | SiblingLimit | Deadline | WriteIdReused | TableExists | NotCovered => false,
        }
    }
}

/// A request's failure: code, words for people, whether it may still take effect, and the counts of a quorum.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    pub code: ErrorCode,
    pub outcome: Outcome,
    pub detail: String,
    /// Replicas that did acknowledge, and how many were needed ([`ErrorCode::QuorumUnavailable`], `Deadline`
    /// and `NotCovered`).
    pub acks: u8,
    pub needed: u8,
}
impl Failure {
    pub fn new(code: ErrorCode, outcome: Outcome, detail: impl Into<String>) -> Failure {
        Failure { code, outcome, detail: detail.into(), acks: 0, needed: 0 }
    }
    pub fn counts(mut self, acks: usize, needed: usize) -> Failure {
        self.acks = acks.min(255) as u8;
        self.needed = needed.min(255) as u8;
        self
    }
    /// Whether another replica of the key may do what this one did not.
    pub fn may_differ_elsewhere(&self) -> bool {
        // Of those who have not seen what a reader has, one may reach more of the others.
        self.code.is_of_one_node() || (self.code == ErrorCode::NotCovered && self.acks < self.needed)
    }
    pub fn bad_request(detail: impl Into<String>) -> Failure {
        Failure::new(ErrorCode::BadRequest, Outcome::NotApplied, detail)
    }
}
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.name(), self.detail)
    }
}
impl std::error::Error for Failure {}
