//! Content types of requests: which body is a JSON envelope, which is stored as it is, and what the client accepts.

use super::{Headers, Problem, head::list};
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

/// Whether the client wants the raw bytes: its `Accept` headers name `application/octet-stream` and do not rank JSON
/// before it.
pub fn accepts_raw<H: Headers + ?Sized>(headers: &H) -> bool {
    let weight = |wanted: &str| {
        let ranges = list(headers, "accept").filter_map(|range| std::str::from_utf8(range).ok());
        let named = |range: &&str| range.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(wanted);
        ranges.filter(named).map(quality).max()
    };
    let json = || ["application/json", "application/*", "*/*"].into_iter().find_map(weight).unwrap_or(0);
    weight(Media::OCTETS).is_some_and(|raw| raw > 0 && raw >= json())
}

/// The `q` of a media range in thousandths; 1 when it has none.
fn quality(range: &str) -> u16 {
    let q = range.split(';').skip(1).find_map(|p| {
        let (name, value) = p.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then(|| value.trim())
    });
    let number = q.map_or(Ok(1.0), str::parse::<f32>).unwrap_or(1.0);
    (number.clamp(0.0, 1.0) * 1000.0) as u16
}
