//! Answer -> status, headers and body. Values go out as body pieces of their own, never copied.

use super::{CONTEXT_HEADER, Form, Problem, Verb, views::Metrics};
use crate::{
    protocol::{
        message::{Answer, Response},
        versions::{Context, Siblings},
    },
    types::{Media, Token, Value},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use smallvec::SmallVec;
use std::borrow::Cow;

/// An answer, ready to be sent. `content-length` is left to the sender ([`Reply::content_length`]).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case.
    pub headers: SmallVec<[(&'static str, Cow<'static, str>); 4]>,
    /// The body is these, one after the other.
    pub body: SmallVec<[Bytes; 3]>,
}

impl Reply {
    pub fn new(status: u16, content_type: impl Into<Cow<'static, str>>) -> Reply {
        let mut headers = SmallVec::new();
        headers.push(("content-type", content_type.into()));
        Reply { status, headers, body: SmallVec::new() }
    }
    pub fn content_length(&self) -> usize {
        self.body.iter().map(Bytes::len).sum()
    }
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_ref())
    }
    pub(super) fn push(&mut self, piece: impl Into<Bytes>) {
        let piece = piece.into();
        if !piece.is_empty() {
            self.body.push(piece);
        }
    }
    fn context(&mut self, context: &str) {
        self.headers.push((CONTEXT_HEADER, Cow::Owned(context.to_owned())));
    }
}

const JSON: &str = "application/json";

/// The answer to a request about a key.
pub fn key_reply(form: Form, response: Response) -> Reply {
    match response {
        Err(failure) => Problem::from(failure).reply(),
        Ok(Answer::Written(context)) => written(form.token, &context),
        Ok(Answer::Got(siblings)) if form.verb == Verb::Get => got(form, siblings),
        // A write that is answered with what the key holds: its clock is what the writer needs.
        Ok(Answer::Got(siblings)) => written(form.token, &Context::from(siblings.head.clock)),
    }
}

fn written(token: Token, context: &Context) -> Reply {
    let text = context.to_text(token);
    let mut reply = Reply::new(200, JSON);
    reply.context(&text);
    reply.push(format!("{{\"context\": \"{text}\"}}\n"));
    reply
}

fn got(form: Form, siblings: Siblings) -> Reply {
    let known = !siblings.head.clock.is_empty();
    let context = Context::from(siblings.head.clock.clone()).to_text(form.token);
    let values: SmallVec<[Value; 1]> = siblings.values().collect();
    let mut reply = match (values.as_slice(), form.raw) {
        ([], _) => return absent(known.then_some(context)),
        ([value], true) => raw_value(value),
        ([value], false) => json_value(value, &context),
        (many, true) => multipart(many),
        (many, false) => json_siblings(many, &context),
    };
    reply.context(&context);
    reply
}

fn absent(tombstone: Option<String>) -> Reply {
    let deleted = tombstone.is_some();
    let detail = if deleted { "the key was deleted" } else { "the key has no value" };
    let mut reply = Reply::new(404, "application/problem+json");
    let mut body = serde_json::json!({
        "title": "Not Found", "status": 404, "code": "no_such_key", "detail": detail, "outcome": "not_applied",
    });
    if let Some(context) = tombstone {
        reply.context(&context);
        body["context"] = context.into();
    }
    reply.push(format!("{body}\n"));
    reply
}

/// The value as it stands in JSON: its own text, or base64 in quotes.
fn push_json(reply: &mut Reply, before: &str, value: &Value, after: String) {
    match value.media {
        Media::Json => {
            reply.push(before.to_owned());
            reply.push(value.bytes.clone());
            reply.push(after);
        }
        Media::Raw(_) => {
            let mut text = String::with_capacity(before.len() + value.bytes.len() / 3 * 4 + after.len() + 8);
            text.push_str(before);
            text.push('"');
            STANDARD.encode_string(&value.bytes, &mut text);
            text.push('"');
            text.push_str(&after);
            reply.push(text);
        }
    }
}

fn encoding(value: &Value) -> &'static str {
    match value.media {
        Media::Json => "json",
        Media::Raw(_) => "base64",
    }
}

fn json_value(value: &Value, context: &str) -> Reply {
    let encoding = match value.media {
        Media::Json => "",
        Media::Raw(_) => ", \"encoding\": \"base64\"",
    };
    let mut reply = Reply::new(200, JSON);
    push_json(&mut reply, "{\"value\": ", value, format!("{encoding}, \"context\": \"{context}\"}}\n"));
    reply
}

fn json_siblings(values: &[Value], context: &str) -> Reply {
    let mut reply = Reply::new(300, JSON);
    for (index, value) in values.iter().enumerate() {
        push_json(&mut reply, if index == 0 { "{\"siblings\": [" } else { ", " }, value, String::new());
    }
    let mut end = String::from("]");
    if values.iter().any(|v| v.media != Media::Json) {
        let encodings: Vec<_> = values.iter().map(encoding).collect();
        end += &format!(", \"encodings\": {}", serde_json::json!(encodings));
    }
    reply.push(format!("{end}, \"context\": \"{context}\"}}\n"));
    reply
}

fn content_type(value: &Value) -> Cow<'static, str> {
    match &value.media {
        Media::Json => Cow::Borrowed(JSON),
        Media::Raw(kind) => Cow::Owned(kind.to_string()),
    }
}

fn raw_value(value: &Value) -> Reply {
    let mut reply = Reply::new(200, content_type(value));
    confine(&mut reply);
    reply.push(value.bytes.clone());
    reply
}

/// A stored value and its type are the writer's word: no browser is to make more of them than they say, or to run them
/// as a page of this node.
fn confine(reply: &mut Reply) {
    reply.headers.push(("x-content-type-options", Cow::Borrowed("nosniff")));
    reply.headers.push(("content-security-policy", Cow::Borrowed("sandbox")));
}

fn multipart(values: &[Value]) -> Reply {
    let boundary = boundary(values);
    let mut reply = Reply::new(300, format!("multipart/mixed; boundary={boundary}"));
    confine(&mut reply);
    for value in values {
        let kind = content_type(value);
        let bytes = value.bytes.len();
        reply.push(format!("--{boundary}\r\nContent-Type: {kind}\r\nContent-Length: {bytes}\r\n\r\n"));
        reply.push(value.bytes.clone());
        reply.push("\r\n");
    }
    reply.push(format!("--{boundary}--\r\n"));
    reply
}

/// A line that none of the values contains.
fn boundary(values: &[Value]) -> String {
    let contains = |bytes: &[u8], line: &[u8]| bytes.windows(line.len()).any(|w| w == line);
    let seed = values.iter().fold(0u64, |seed, v| seed.rotate_left(13) ^ u64::from(v.checksum));
    let candidates = (0u64..).map(|i| format!("dynarc-{:016x}", seed.wrapping_add(i)));
    let mut free = candidates.filter(|c| !values.iter().any(|v| contains(&v.bytes, c.as_bytes())));
    free.next().unwrap_or_default()
}

/// A view as JSON.
pub fn json_reply<T: serde::Serialize>(view: &T) -> Reply {
    match serde_json::to_string_pretty(view) {
        Ok(mut text) => {
            text.push('\n');
            let mut reply = Reply::new(200, JSON);
            reply.push(text);
            reply
        }
        Err(e) => {
            let detail = format!("the answer could not be rendered: {e}");
            let failure = crate::types::Failure::new(
                crate::types::ErrorCode::Internal,
                crate::types::Outcome::NotApplied,
                detail,
            );
            Problem::from(failure).reply()
        }
    }
}

/// Prometheus text.
pub fn metrics_reply(metrics: &Metrics) -> Reply {
    let mut reply = Reply::new(200, "text/plain; version=0.0.4; charset=utf-8");
    reply.push(metrics.to_text());
    reply
}

#[derive(serde::Serialize)]
pub struct HealthReply<'a> {
    pub status: &'a str,
}

/// `/healthz`: the process runs and answers.
pub fn health_reply() -> Reply {
    json_reply(&HealthReply { status: "alive" })
}

/// `/readyz`: `Ok` when the node serves requests, else what it waits for.
pub fn ready_reply(ready: Result<(), &str>) -> Reply {
    match ready {
        Ok(()) => json_reply(&HealthReply { status: "ready" }),
        Err(reason) => Problem::not_ready(reason).reply(),
    }
}

pub fn openapi_reply() -> Reply {
    let mut reply = Reply::new(200, JSON);
    reply.push(Bytes::from_static(include_bytes!("openapi.json")));
    reply
}
