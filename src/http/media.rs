//! Content types of requests: which body is a JSON envelope, which is stored as it is, and what the client accepts.

use super::Problem;
use crate::types::Media;

/// How the body of a PUT is to be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BodyKind {
    /// `{"value": …}`.
    Envelope,
    /// The bytes are the value.
    Raw(Media),
}

/// No content type, JSON, and the type that curl gives to `-d` mean the envelope; every other type is stored with the
/// bytes. curl's type is read as JSON on purpose: whoever types `curl -X PUT -d '{"value": …}'` means that.
pub fn body_kind(content_type: Option<&[u8]>) -> Result<BodyKind, Problem> {
    let Some(text) = content_type else { return Ok(BodyKind::Envelope) };
    let invalid = |reason: String| Problem::bad_request(format!("Content-Type: {reason}"));
    let text = std::str::from_utf8(text).map_err(|_| invalid("not ASCII".into()))?.trim();
    let essence = text.split(';').next().unwrap_or_default().trim();
    let envelope = ["application/json", "application/x-www-form-urlencoded", ""];
    if envelope.iter().any(|e| essence.eq_ignore_ascii_case(e)) {
        return Ok(BodyKind::Envelope);
    }
    Media::raw(text).map(BodyKind::Raw).map_err(|e| invalid(e.to_string()))
}

/// Whether an `Accept` header asks for the raw bytes: it names `application/octet-stream`.
pub fn accepts_raw(accept: Option<&[u8]>) -> bool {
    let text = accept.and_then(|a| std::str::from_utf8(a).ok()).unwrap_or_default();
    text.split(',').any(|range| range.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(Media::OCTETS))
}
