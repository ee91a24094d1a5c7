//! The head of a request: bytes -> method, target, headers, and where the request ends.
//!
//! What cannot be read as a head is a [`Problem`] like any other. After one nobody knows where the next request begins:
//! the connection ends with its answer.

use super::{Headers, Problem, problem::shown};
use crate::limits::{HTTP_HEAD_BYTES_MAX, HTTP_HEADERS_MAX};
use bytes::{Buf, Bytes, BytesMut};
use smallvec::SmallVec;
use std::ops::Range;

/// Bytes of a method's name.
const METHOD_BYTES_MAX: usize = 32;

/// How the end of a body is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// It has so many bytes; a request without a body has none.
    Length(u64),
    Chunked,
}

/// The head of one request.
#[derive(Clone, Debug)]
pub struct Head {
    bytes: Bytes,
    method: Range<usize>,
    target: Range<usize>,
    /// Names and values.
    lines: SmallVec<[(Range<usize>, Range<usize>); 16]>,
    /// HTTP/1.0: the connection ends with the answer unless the client asks for more.
    pub old: bool,
    pub framing: Framing,
    /// The client wants no further request on this connection.
    pub close: bool,
}

impl Head {
    pub fn method(&self) -> &str {
        std::str::from_utf8(&self.bytes[self.method.clone()]).expect("a method is ASCII: it has been checked")
    }
    /// As it stands in the request line.
    pub fn target(&self) -> &str {
        std::str::from_utf8(&self.bytes[self.target.clone()]).expect("a target is UTF-8: it has been checked")
    }
    /// Whether a body follows, perhaps an empty one in chunks.
    pub fn has_body(&self) -> bool {
        self.framing != Framing::Length(0)
    }
    /// Whether the client waits to be told to go on before it sends the body.
    pub fn waits_to_send(&self) -> bool {
        !self.old && self.has_body() && self.list("expect").any(|e| e.eq_ignore_ascii_case(b"100-continue"))
    }
    /// All elements of a header that is a list, of all its lines.
    pub(super) fn list<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        list(self, name)
    }
}
impl Headers for Head {
    fn value(&self, name: &str, index: usize) -> Option<&[u8]> {
        let named = |(n, _): &&(Range<usize>, _)| self.bytes[n.clone()].eq_ignore_ascii_case(name.as_bytes());
        self.lines.iter().filter(named).nth(index).map(|(_, value)| &self.bytes[value.clone()])
    }
}

/// The elements of a header that is a list, of all its lines.
pub(super) fn list<'a, H: Headers + ?Sized>(headers: &'a H, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let lines = (0..HTTP_HEADERS_MAX).map_while(move |index| headers.value(name, index));
    lines.flat_map(|line| line.split(|b| *b == b',')).map(<[u8]>::trim_ascii).filter(|e| !e.is_empty())
}

/// Finds heads at the front of what has come. It looks at each byte once, however they come.
#[derive(Default, Debug)]
pub struct HeadReader {
    looked: usize,
    /// Where the line begins whose end has not been seen.
    line: usize,
    /// The first line has been read.
    begun: bool,
}

impl HeadReader {
    /// Takes the next head off; `None` when it has not all come.
    pub fn take(&mut self, gathered: &mut BytesMut) -> Result<Option<Head>, Problem> {
        if !self.begun && skip_empty_lines(gathered) {
            self.looked = 0;
        }
        if let Some(first) = gathered.first().filter(|b| **b != b'\r' && !is_token(**b)) {
            return Err(no_http(*first));
        }
        while let Some(end) = gathered[self.looked..].iter().position(|b| *b == b'\n') {
            let end = self.looked + end;
            let empty = matches!(&gathered[self.line..end], b"" | b"\r");
            self.looked = end + 1;
            if self.looked > HTTP_HEAD_BYTES_MAX {
                break;
            }
            if empty {
                *self = HeadReader::default();
                return parse(gathered.split_to(end + 1).freeze()).map(Some);
            }
            if !self.begun {
                // Who does not speak HTTP is told at once, not when he has fallen silent.
                request_line(line(&gathered[self.line..end]))?;
                self.begun = true;
            }
            self.line = end + 1;
        }
        self.looked = self.looked.max(gathered.len());
        if self.looked > HTTP_HEAD_BYTES_MAX { Err(too_long(self.begun)) } else { Ok(None) }
    }
}

/// Empty lines before a request mean nothing: some clients end a body with one. Says whether there were any.
fn skip_empty_lines(gathered: &mut BytesMut) -> bool {
    let before = gathered.len();
    loop {
        match gathered.as_ref() {
            [b'\r', b'\n', ..] => gathered.advance(2),
            [b'\n', ..] => gathered.advance(1),
            rest => return rest.len() < before,
        }
    }
}
fn no_http(first: u8) -> Problem {
    const TLS_HANDSHAKE: u8 = 0x16;
    Problem::bad_request(match first {
        TLS_HANDSHAKE => "this is TLS, and this port speaks HTTP without it: write http://, not https://".to_owned(),
        other => format!("this is not HTTP: a request begins with a method, this with the byte 0x{other:02x}"),
    })
}
fn too_long(begun: bool) -> Problem {
    if begun {
        let detail = format!("the head of a request has at most {HTTP_HEAD_BYTES_MAX} bytes, this one has more");
        Problem::new(431, "head_too_long", detail)
    } else {
        let detail = format!("the first line of a request has at most {HTTP_HEAD_BYTES_MAX} bytes, this one has more");
        Problem::new(414, "target_too_long", detail)
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
/// A line without its end.
fn line(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Method, target, and whether it is HTTP/1.0.
fn request_line(line: &[u8]) -> Result<(&[u8], &[u8], bool), Problem> {
    let parts: SmallVec<[&[u8]; 4]> = line.split(|b| *b == b' ').collect();
    let [method, target, version] = parts.as_slice() else {
        let detail = format!(
            "a request begins with a line of method, target and version such as GET /healthz HTTP/1.1, not {}; a space \
             in a target is written %20",
            shown(&String::from_utf8_lossy(line))
        );
        return Err(Problem::bad_request(detail));
    };
    let old = match *version {
        b"HTTP/1.0" => true,
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor] if minor.is_ascii_digit() => false,
        [b'H', b'T', b'T', b'P', b'/', ..] => {
            let version = shown(&String::from_utf8_lossy(version));
            let detail = format!("this server speaks HTTP/1.1 and HTTP/1.0, not {version}");
            return Err(Problem::new(505, "version_not_supported", detail));
        }
        other => {
            let other = shown(&String::from_utf8_lossy(other));
            return Err(Problem::bad_request(format!("the first line of a request ends with HTTP/1.1, not {other}")));
        }
    };
    if method.is_empty() || method.len() > METHOD_BYTES_MAX || !method.iter().copied().all(is_token) {
        let method = shown(&String::from_utf8_lossy(method));
        return Err(Problem::bad_request(format!("{method} is no method")));
    }
    if target.is_empty() || !target.iter().all(|b| *b > b' ' && *b != 0x7f) || std::str::from_utf8(target).is_err() {
        let detail = "the target holds bytes that cannot stand there as they are: percent-encode them";
        return Err(Problem::bad_request(detail));
    }
    Ok((method, target, old))
}

/// A whole head, the empty line at its end included.
fn parse(bytes: Bytes) -> Result<Head, Problem> {
    let place = |part: &[u8]| {
        let start = part.as_ptr() as usize - bytes.as_ptr() as usize;
        start..start + part.len()
    };
    let mut rest = bytes.split(|b| *b == b'\n').map(line);
    let (method, target, old) = request_line(rest.next().unwrap_or_default())?;
    let mut lines = SmallVec::new();
    for line in rest.take_while(|l| !l.is_empty()) {
        if lines.len() == HTTP_HEADERS_MAX {
            let detail = format!("a request has at most {HTTP_HEADERS_MAX} headers, this one has more");
            return Err(Problem::new(431, "head_too_long", detail));
        }
        let (name, value) = header(line)?;
        lines.push((place(name), place(value)));
    }
    let (method, target) = (place(method), place(target));
    let mut head = Head { method, target, lines, old, framing: Framing::Length(0), close: old, bytes: bytes.clone() };
    head.framing = framing(&head)?;
    let says = |word: &str| head.list("connection").any(|c| c.eq_ignore_ascii_case(word.as_bytes()));
    head.close = says("close") || (old && !says("keep-alive"));
    Ok(head)
}

fn header(line: &[u8]) -> Result<(&[u8], &[u8]), Problem> {
    let refused = |reason: &str| {
        Problem::bad_request(format!("the header line {}: {reason}", shown(&String::from_utf8_lossy(line))))
    };
    let colon = line.iter().position(|b| *b == b':').ok_or_else(|| refused("there is no colon"))?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(refused("a name consists of letters, digits and a few signs, and the colon follows at once"));
    }
    if !value.iter().all(|b| (*b >= b' ' && *b != 0x7f) || *b == b'\t') {
        return Err(refused("a value holds no control characters"));
    }
    Ok((name, value.trim_ascii()))
}

fn framing(head: &Head) -> Result<Framing, Problem> {
    let length = head.value("content-length", 0);
    if head.value("content-length", 1).is_some() {
        return Err(Problem::bad_request("the header Content-Length is given twice"));
    }
    if head.value("transfer-encoding", 0).is_none() {
        return length.map_or(Ok(Framing::Length(0)), content_length);
    }
    if length.is_some() || head.old {
        let detail = "Transfer-Encoding cannot stand beside Content-Length, nor in HTTP/1.0";
        return Err(Problem::bad_request(detail));
    }
    let codings: SmallVec<[&[u8]; 2]> = head.list("transfer-encoding").collect();
    match codings.as_slice() {
        [one] if one.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        _ => Err(Problem::not_implemented("of Transfer-Encoding only chunked is understood here")),
    }
}
fn content_length(text: &[u8]) -> Result<Framing, Problem> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        let text = shown(&String::from_utf8_lossy(text));
        return Err(Problem::bad_request(format!("Content-Length is a number of bytes, not {text}")));
    }
    // More than any number is too many in any case.
    let digits = std::str::from_utf8(text).unwrap_or_default();
    Ok(Framing::Length(digits.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn take(text: &[u8]) -> (Result<Option<Head>, Problem>, Vec<u8>) {
        let mut gathered = BytesMut::from(text);
        let head = HeadReader::default().take(&mut gathered);
        (head, gathered.to_vec())
    }
    fn whole(text: &str) -> Head {
        take(text.as_bytes()).0.expect(text).expect(text)
    }

    #[test]
    fn a_head_is_taken_and_what_follows_is_left() {
        let (head, rest) = take(b"\r\n\nPUT /v1/keys/a%20b?w=1 HTTP/1.1\r\nHost:x\r\nX-A:  b c \t\r\nx-a: \r\nContent-Length: 3\n\r\nabcGET");
        let head = head.expect("fine").expect("whole");
        assert_eq!((head.method(), head.target()), ("PUT", "/v1/keys/a%20b?w=1"));
        assert_eq!((head.value("host", 0), head.value("x-a", 0)), (Some(&b"x"[..]), Some(&b"b c"[..])));
        assert_eq!((head.value("x-a", 1), head.value("x-a", 2)), (Some(&b""[..]), None));
        assert_eq!((head.framing, head.old, head.close), (Framing::Length(3), false, false));
        assert_eq!(rest, b"abcGET");
    }

    #[test]
    fn what_comes_byte_by_byte_is_the_same() {
        let text = b"\r\nGET /healthz HTTP/1.1\r\nHost: x\r\nConnection: a, Close\r\n\r\nGET";
        let (mut reader, mut gathered, mut heads) = (HeadReader::default(), BytesMut::new(), Vec::new());
        for byte in text {
            gathered.extend_from_slice(&[*byte]);
            heads.extend(reader.take(&mut gathered).expect("fine"));
        }
        assert_eq!((heads.len(), gathered.as_ref()), (1, &b"GET"[..]));
        assert!(heads[0].close && heads[0].method() == "GET");
    }

    #[test]
    fn versions_and_connections() {
        for (line, close) in [
            ("HTTP/1.1\r\n", false),
            ("HTTP/1.1\r\nConnection: close\r\n", true),
            ("HTTP/1.1\r\nConnection: keep-alive, CLOSE\r\n", true),
            ("HTTP/1.0\r\n", true),
            ("HTTP/1.0\r\nConnection: Keep-Alive\r\n", false),
        ] {
            assert_eq!(whole(&format!("GET / {line}\r\n")).close, close, "{line}");
        }
    }

    #[test]
    fn what_is_no_head_is_named_at_once() {
        let many: String = (0..=HTTP_HEADERS_MAX).map(|i| format!("X-{i}: 1\r\n")).collect();
        let long = "y".repeat(HTTP_HEAD_BYTES_MAX + 1);
        let cases = [
            ("\u{16}\u{3}\u{1}".to_owned(), 400, "https"),
            ("\u{0}".into(), 400, "not HTTP"),
            ("hello\r\n".into(), 400, "method, target and version"),
            ("GET /v1/keys/a\r\n".into(), 400, "method, target and version"),
            ("GET /v1/keys/a b HTTP/1.1\r\n".into(), 400, "%20"),
            ("GET / HTTP/3.0\r\n".into(), 505, "HTTP/1.1"),
            ("PRI * HTTP/2.0\r\n".into(), 505, "HTTP/1.1"),
            ("GET / http/1.1\r\n".into(), 400, "ends with HTTP/1.1"),
            ("GET /\u{7f} HTTP/1.1\r\n".into(), 400, "percent-encode"),
            (format!("{} / HTTP/1.1\r\n", "A".repeat(40)), 400, "no method"),
            ("GET / HTTP/1.1\r\nnonsense\r\n\r\n".into(), 400, "no colon"),
            ("GET / HTTP/1.1\r\nHost : x\r\n\r\n".into(), 400, "follows at once"),
            ("GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n".into(), 400, "colon"),
            ("GET / HTTP/1.1\r\nA: b\rc\r\n\r\n".into(), 400, "control"),
            ("GET / HTTP/1.1\r\nA: \u{0}\r\n\r\n".into(), 400, "control"),
            (format!("GET / HTTP/1.1\r\n{many}\r\n"), 431, "100 headers"),
            (format!("GET / HTTP/1.1\r\nX: {long}"), 431, "65536"),
            (format!("GET /{long}"), 414, "65536"),
            ("PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n".into(), 400, "twice"),
            ("PUT / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n".into(), 400, "number of bytes"),
            ("PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n".into(), 400, "number of bytes"),
            ("PUT / HTTP/1.1\r\nContent-Length: +1\r\n\r\n".into(), 400, "number of bytes"),
            ("PUT / HTTP/1.1\r\nContent-Length:\r\n\r\n".into(), 400, "number of bytes"),
            ("PUT / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n".into(), 400, "beside"),
            ("PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(), 400, "HTTP/1.0"),
            ("PUT / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n".into(), 501, "chunked"),
            ("PUT / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n".into(), 501, "chunked"),
        ];
        for (text, status, words) in cases {
            let problem = take(text.as_bytes()).0.expect_err(&text);
            assert_eq!(problem.status, status, "{text:.60}: {}", problem.detail);
            assert!(problem.detail.contains(words), "{text:.60}: {}", problem.detail);
        }
        assert_eq!(take(b"GET /\xff HTTP/1.1\r\n").0.expect_err("no UTF-8").status, 400);
        let endless = format!("PUT / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", "9".repeat(40));
        assert_eq!(whole(&endless).framing, Framing::Length(u64::MAX));
    }

    proptest! {
        /// However the bytes are cut, the outcome is the same, and none of them makes it panic.
        #[test]
        fn cuts_change_nothing(
            text in "((GET|PUT|\\PC) (/[a-z#%]{0,9}|\\PC{0,4}) HTTP/1.[01]\r?\n([A-Za-z-]{1,8}:[ \t]?\\PC{0,6}\r?\n){0,4}\r?\n?){1,3}",
            cuts in proptest::collection::vec(1usize..20, 0..40),
        ) {
            let read = |cuts: &[usize]| {
                let (mut reader, mut gathered, mut rest) = (HeadReader::default(), BytesMut::new(), text.as_bytes());
                let mut found = Vec::new();
                for cut in cuts.iter().copied().chain([usize::MAX]) {
                    let (now, later) = rest.split_at(cut.min(rest.len()));
                    gathered.extend_from_slice(now);
                    rest = later;
                    loop {
                        match reader.take(&mut gathered) {
                            Ok(None) => break,
                            Ok(Some(head)) => found.push(Ok((head.method().to_owned(), head.target().to_owned(), head.framing))),
                            Err(problem) => {
                                found.push(Err(problem));
                                return found;
                            }
                        }
                    }
                }
                found
            };
            prop_assert_eq!(read(&cuts), read(&[]));
        }
    }
}
