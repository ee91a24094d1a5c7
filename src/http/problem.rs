//! Errors as `application/problem+json` (RFC 9457): a stable `code`, words for people, and whether a write may still
//! take effect.

use super::{HttpLimits, phrase, render::Reply};
use crate::types::{ErrorCode, Failure, Outcome};
use std::borrow::Cow;

/// A request that ends without doing what was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    pub status: u16,
    /// Stable, for programs.
    pub code: &'static str,
    /// For people: what is wrong and, where that helps, how to mend it.
    pub detail: String,
    pub outcome: Outcome,
    /// Acknowledgements had and needed, when a quorum was asked for.
    pub counts: Option<(u8, u8)>,
    /// The methods of a route, for 405.
    pub allow: Option<&'static str>,
}

impl Problem {
    pub(super) fn new(status: u16, code: &'static str, detail: impl Into<String>) -> Problem {
        Problem { status, code, detail: detail.into(), outcome: Outcome::NotApplied, counts: None, allow: None }
    }
    pub fn bad_request(detail: impl Into<String>) -> Problem {
        Problem::new(400, ErrorCode::BadRequest.name(), detail)
    }
    pub fn not_found(detail: impl Into<String>) -> Problem {
        Problem::new(404, "no_such_route", detail)
    }
    pub fn method_not_allowed(method: &str, allow: &'static str) -> Problem {
        let detail = format!("this route has no method {}; it has {allow}", shown(method));
        Problem { allow: Some(allow), ..Problem::new(405, "method_not_allowed", detail) }
    }
    /// Something that HTTP has and this server has not; passing it over in silence would do harm.
    pub fn not_implemented(detail: impl Into<String>) -> Problem {
        Problem::new(501, "not_implemented", detail)
    }
    /// Too much time passed between the bytes of the request.
    pub fn slow_client() -> Problem {
        Problem::new(408, "request_timeout", "the request did not arrive whole in time")
    }
    pub fn overloaded(detail: impl Into<String>) -> Problem {
        Problem::from(Failure::new(ErrorCode::Overloaded, Outcome::NotApplied, detail))
    }
    pub fn not_ready(detail: impl Into<String>) -> Problem {
        Problem::from(Failure::new(ErrorCode::NotReady, Outcome::NotApplied, detail))
    }

    /// The answer that says so.
    pub fn reply(&self) -> Reply {
        let mut body = serde_json::json!({
            "title": phrase(self.status),
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "outcome": match self.outcome {
                Outcome::NotApplied => "not_applied",
                Outcome::Unknown => "unknown",
            },
        });
        if let Some((acks, needed)) = self.counts {
            body["acks"] = acks.into();
            body["needed"] = needed.into();
        }
        let mut reply = Reply::new(self.status, "application/problem+json");
        if let Some(allow) = self.allow {
            reply.headers.push(("allow", Cow::Borrowed(allow)));
        }
        if self.status == 415 {
            // What would be taken instead.
            reply.headers.push(("accept-encoding", Cow::Borrowed("identity")));
        }
        if matches!(self.status, 429 | 503) {
            reply.headers.push(("retry-after", Cow::Borrowed("1")));
        }
        reply.push(format!("{body}\n"));
        reply
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Problem {
        let status = match failure.code {
            ErrorCode::BadRequest => 400,
            ErrorCode::TooLarge => 413,
            ErrorCode::SiblingLimit | ErrorCode::WriteIdReused | ErrorCode::TableExists => 409,
            ErrorCode::Overloaded => 429,
            ErrorCode::QuorumUnavailable | ErrorCode::NotReady | ErrorCode::Clock | ErrorCode::NotCovered => 503,
            ErrorCode::Deadline => 504,
            ErrorCode::DiskFull => 507,
            ErrorCode::Damaged | ErrorCode::Internal => 500,
        };
        let counted =
            matches!(failure.code, ErrorCode::QuorumUnavailable | ErrorCode::Deadline | ErrorCode::NotCovered);
        Problem {
            outcome: failure.outcome,
            counts: counted.then_some((failure.acks, failure.needed)),
            ..Problem::new(status, failure.code.name(), failure.detail)
        }
    }
}

/// A body that is longer than a value may be.
pub fn too_large(limits: &HttpLimits) -> Problem {
    let detail = format!(
        "a value has at most {} bytes here (setting value_bytes_max); this one has more",
        limits.value_bytes_max
    );
    Problem::from(Failure::new(ErrorCode::TooLarge, Outcome::NotApplied, detail))
}

/// Text from outside, cut to a length that fits a line.
pub(super) fn shown(text: &str) -> String {
    let cut: String = text.chars().take(64).collect();
    if cut.len() == text.len() { format!("{text:?}") } else { format!("{cut:?}…") }
}
