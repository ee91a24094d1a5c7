//! Head and body -> the protocol's request.

use super::{HttpLimits, KeyRequest, Problem, Verb, media::BodyKind, too_large};
use crate::{
    protocol::message::{Operation, Request},
    types::{Instant, Value, WriteId},
};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

/// Makes the request. `body` is whole and at most [`KeyRequest::body_bytes_max`] long; `random` names the write when
/// the client has not done so.
pub fn request(
    asked: KeyRequest,
    body: Bytes,
    now: Instant,
    random: u64,
    limits: &HttpLimits,
) -> Result<Request, Problem> {
    let write_id = asked.write_id.unwrap_or(WriteId(random.max(1)));
    let operation = match asked.verb {
        Verb::Get => Operation::Get { context: asked.context },
        Verb::Put => Operation::Put { context: asked.context, value: value(asked.body, body, limits)?, write_id },
        Verb::Delete => Operation::Delete { context: asked.context, write_id },
    };
    let deadline = now + asked.timeout.unwrap_or(limits.request_timeout);
    Ok(Request { key: asked.key, operation, consistency: asked.consistency, deadline })
}

fn value(kind: BodyKind, body: Bytes, limits: &HttpLimits) -> Result<Value, Problem> {
    let value = match kind {
        BodyKind::Raw(media) => (media, body),
        BodyKind::Envelope => (crate::types::Media::Json, envelope_value(&body)?),
    };
    if value.1.len() > limits.value_bytes_max {
        return Err(too_large(limits));
    }
    Ok(Value::new(value.0, value.1))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    #[serde(borrow)]
    value: &'a RawValue,
}

/// The encoding that the first bytes of a text name.
fn byte_order_mark(text: &[u8]) -> Option<&'static str> {
    match text {
        [0xef, 0xbb, 0xbf, ..] => Some("UTF-8"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("UTF-16"),
        _ => None,
    }
}

/// The text of `value` in `{"value": …}`, a slice of the body.
fn envelope_value(body: &Bytes) -> Result<Bytes, Problem> {
    let refused = |reason: String| {
        let hint = "send {\"value\": …}, or another Content-Type, such as application/octet-stream, to store bytes as they are";
        Problem::bad_request(format!("the body is not what it should be: {reason}; {hint}"))
    };
    if let Some(mark) = byte_order_mark(body) {
        return Err(refused(format!("it begins with the byte order mark (BOM) of {mark}; JSON is UTF-8 without one")));
    }
    // serde would take an array for the struct.
    if body.trim_ascii_start().first().is_some_and(|b| *b != b'{') {
        return Err(refused("expected an object at line 1".into()));
    }
    let envelope: Envelope = serde_json::from_slice(body).map_err(|e| refused(e.to_string()))?;
    Ok(body.slice_ref(envelope.value.get().as_bytes()))
}
