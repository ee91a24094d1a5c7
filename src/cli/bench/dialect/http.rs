//! Our HTTP interface: PUT and GET of raw values, HTTP/1.1 with keep-alive, answers in the order of requests.

use super::{Answer, Ask, Broken, Dialect, Request, Verdict};
use crate::{
    limits::HTTP_HEAD_BYTES_MAX,
    protocol::versions::Context,
    types::{Media, Token},
};
use std::{collections::VecDeque, io::Write};

pub struct HttpDialect {
    host: String,
    /// Number and key's token of each request without an answer: a context belongs to one key.
    waiting: VecDeque<(u64, Token)>,
}
impl HttpDialect {
    pub fn new(host: String) -> HttpDialect {
        HttpDialect { host, waiting: VecDeque::new() }
    }
}

impl Dialect for HttpDialect {
    fn request(&mut self, request: Request<'_>, out: &mut Vec<u8>) {
        let token = Token(xxhash_rust::xxh3::xxh3_64(request.key));
        self.waiting.push_back((request.id, token));
        let key = percent_encoding::percent_encode(request.key, percent_encoding::NON_ALPHANUMERIC);
        // Writing to a Vec does not fail.
        let _ = match request.ask {
            Ask::Get => {
                write!(out, "GET /v1/keys/{key} HTTP/1.1\r\nHost: {}\r\nAccept: {}\r\n\r\n", self.host, Media::OCTETS)
            }
            Ask::Put { context, values, number, variant } => {
                let _ = write!(
                    out,
                    "PUT /v1/keys/{key} HTTP/1.1\r\nHost: {}\r\nContent-Type: {}\r\n",
                    self.host,
                    Media::OCTETS
                );
                if let Some(context) = context {
                    let _ = write!(out, "X-Version-Context: {}\r\n", context.to_text(token));
                }
                let written = write!(out, "Content-Length: {}\r\n\r\n", values.value_bytes());
                values.write(number, variant, out);
                written
            }
        };
    }

    fn answers(&mut self, input: &[u8], answered: &mut dyn FnMut(Answer<'_>)) -> Result<usize, Broken> {
        let mut taken = 0;
        while let Some((head, body, bytes)) = response(&input[taken..])? {
            taken += bytes;
            if head.status == 100 {
                continue;
            }
            let (id, token) = self.waiting.pop_front().ok_or(Broken("an answer that nobody asked for".into()))?;
            let context = head.context.and_then(|text| Context::from_text(text, token).ok());
            let (verdict, value) = match head.status {
                200 => (Verdict::Done, Some(body)),
                300 => (Verdict::Siblings(2), None),
                404 => (Verdict::Missing, None),
                status => (failure(status, body), None),
            };
            answered(Answer { id, verdict, value, context });
        }
        Ok(taken)
    }
}

/// A failure by the code of its problem document, else by its status.
fn failure(status: u16, body: &[u8]) -> Verdict {
    #[derive(serde::Deserialize)]
    struct Problem {
        code: String,
    }
    let code = serde_json::from_slice::<Problem>(body).map_or_else(|_| status.to_string(), |p| p.code);
    Verdict::Failed { code: code.into(), retryable: matches!(status, 429 | 500 | 502 | 503 | 504) }
}

/// Status and body of the response at the front of `input`; `None` when it has not all come.
pub fn http_response(input: &[u8]) -> Result<Option<(u16, &[u8])>, Broken> {
    Ok(response(input)?.map(|(head, body, _)| (head.status, body)))
}

#[derive(Debug)]
struct ResponseHead<'a> {
    status: u16,
    content_length: usize,
    chunked: bool,
    context: Option<&'a [u8]>,
}

/// One response at the front: head, body, its bytes; `None` when it has not all come. Bodies have a Content-Length.
fn response(input: &[u8]) -> Result<Option<(ResponseHead<'_>, &[u8], usize)>, Broken> {
    let looked = &input[..input.len().min(HTTP_HEAD_BYTES_MAX)];
    let Some(end) = looked.windows(4).position(|w| w == b"\r\n\r\n") else {
        let endless = looked.len() == HTTP_HEAD_BYTES_MAX;
        return if endless { Err(Broken("a head without end".into())) } else { Ok(None) };
    };
    let head = parse_head(&input[..end])?;
    if head.chunked {
        return Err(Broken("a chunked body".into()));
    }
    let start = end + 4;
    let body = input.get(start..start + head.content_length);
    Ok(body.map(|body| (head, body, start + body.len())))
}

fn parse_head(head: &[u8]) -> Result<ResponseHead<'_>, Broken> {
    let mut lines = head.split(|b| *b == b'\n').map(|l| l.strip_suffix(b"\r").unwrap_or(l));
    let status = lines.next().and_then(|l| l.strip_prefix(b"HTTP/1.")).and_then(|l| l.get(2..5));
    let status = status.and_then(|s| std::str::from_utf8(s).ok()).and_then(|s| s.parse().ok());
    let status = status.ok_or(Broken("no HTTP status line".into()))?;
    let mut parsed = ResponseHead { status, content_length: 0, chunked: false, context: None };
    for line in lines {
        let Some(colon) = line.iter().position(|b| *b == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = std::str::from_utf8(value).ok().and_then(|v| v.parse::<u32>().ok());
            parsed.content_length = length.ok_or(Broken("a Content-Length that is none".into()))? as usize;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            parsed.chunked = true;
        } else if name.eq_ignore_ascii_case(b"x-version-context") {
            parsed.context = Some(value);
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::bench::values::ValuePool,
        protocol::versions::{Actor, Dot, VersionVector},
    };

    fn clock() -> Context {
        Context::from(VersionVector::from_dots([Dot { actor: Actor::from_narrow(3), counter: 9 }]))
    }

    #[test]
    fn requests_carry_key_context_and_body() {
        let (pool, mut dialect, mut out) = (ValuePool::new(10), HttpDialect::new("h:1".into()), Vec::new());
        let put = Ask::Put { context: Some(&clock()), values: &pool, number: 1, variant: 1 };
        dialect.request(Request { id: 1, key: b"a/b", ask: put }, &mut out);
        let text = String::from_utf8_lossy(&out);
        assert!(text.starts_with("PUT /v1/keys/a%2Fb HTTP/1.1\r\nHost: h:1\r\n"), "{text}");
        assert!(text.contains("X-Version-Context: vc:") && text.contains("Content-Length: 10\r\n\r\n"));
        assert!(pool.is_value_of(1, &out[out.len() - 10..]));
    }
    #[test]
    fn answers_are_parsed_in_order_with_their_context() {
        let (mut dialect, mut sink) = (HttpDialect::new("h".into()), Vec::new());
        let key = b"k";
        (1..=4).for_each(|id| dialect.request(Request { id, key, ask: Ask::Get }, &mut sink));
        let text = clock().to_text(Token(xxhash_rust::xxh3::xxh3_64(key)));
        let problem = r#"{"code":"quorum_unavailable","detail":"x"}"#;
        let input = format!(
            "HTTP/1.1 200 OK\r\nx-version-context: {text}\r\ncontent-length: 3\r\n\r\nabc\
             HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n\
             HTTP/1.1 300 Multiple Choices\r\nContent-Length: 0\r\n\r\n\
             HTTP/1.1 503 Service Unavailable\r\nContent-Length: {}\r\n\r\n{problem}",
            problem.len()
        );
        let mut seen = vec![];
        let taken = dialect
            .answers(input.as_bytes(), &mut |a| seen.push((a.id, a.verdict, a.value.map(<[u8]>::to_vec), a.context)))
            .unwrap();
        assert_eq!(taken, input.len());
        assert_eq!(seen[0], (1, Verdict::Done, Some(b"abc".to_vec()), Some(clock())));
        assert_eq!(seen[1].1, Verdict::Missing);
        assert_eq!(seen[2].1, Verdict::Siblings(2));
        assert_eq!(seen[3].1, Verdict::Failed { code: "quorum_unavailable".into(), retryable: true });
        assert_eq!(dialect.answers(&input.as_bytes()[..40], &mut |_| ()), Ok(0));
        assert!(dialect.answers(b"garbage\r\n\r\n", &mut |_| ()).is_err());
    }
}
