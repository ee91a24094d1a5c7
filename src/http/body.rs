//! The body of a request: received bytes -> its parts, by length or in chunks.

use super::{Framing, Problem};
use bytes::{Buf, Bytes, BytesMut};

/// Bytes of a chunk's size line, its extensions included.
const SIZE_LINE_BYTES_MAX: usize = 1024;
/// Bytes of the trailers after the last chunk; nobody reads them.
const TRAILER_BYTES_MAX: usize = 8 * 1024;

/// Takes one body off the front of what has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BodyReader(Place);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Place {
    /// So many bytes are to come.
    Length(u64),
    /// Before the size of a chunk.
    Size,
    /// Within a chunk that has so many more bytes.
    Chunk(u64),
    /// Before the line end behind a chunk.
    ChunkEnd,
    /// Behind the last chunk; so many bytes of trailers have been passed over.
    Trailers(usize),
    Done,
}

/// What was at the front.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Part {
    Bytes(Bytes),
    /// Nothing yet: more must come.
    Wanting,
    End,
}

impl BodyReader {
    pub fn new(framing: Framing) -> BodyReader {
        BodyReader(match framing {
            Framing::Length(0) => Place::Done,
            Framing::Length(bytes) => Place::Length(bytes),
            Framing::Chunked => Place::Size,
        })
    }
    pub fn is_done(&self) -> bool {
        self.0 == Place::Done
    }
    /// Bytes that are known to come yet.
    pub fn left(&self) -> u64 {
        match self.0 {
            Place::Length(bytes) | Place::Chunk(bytes) => bytes,
            Place::Size | Place::ChunkEnd | Place::Trailers(_) | Place::Done => 0,
        }
    }

    /// The next part. After an error nobody knows where the next request begins.
    pub fn take(&mut self, gathered: &mut BytesMut) -> Result<Part, Problem> {
        loop {
            match self.0 {
                Place::Done => return Ok(Part::End),
                Place::Length(left) | Place::Chunk(left) => {
                    if gathered.is_empty() {
                        return Ok(Part::Wanting);
                    }
                    let bytes = left.min(gathered.len() as u64);
                    let rest = left - bytes;
                    self.0 = match self.0 {
                        Place::Length(_) if rest > 0 => Place::Length(rest),
                        Place::Length(_) => Place::Done,
                        _ if rest > 0 => Place::Chunk(rest),
                        _ => Place::ChunkEnd,
                    };
                    return Ok(Part::Bytes(gathered.split_to(bytes as usize).freeze()));
                }
                Place::Size => {
                    let Some(line) = take_line(gathered, SIZE_LINE_BYTES_MAX)? else { return Ok(Part::Wanting) };
                    self.0 = match chunk_size(&line)? {
                        0 => Place::Trailers(0),
                        size => Place::Chunk(size),
                    };
                }
                Place::ChunkEnd => {
                    let Some(line) = take_line(gathered, 2)? else { return Ok(Part::Wanting) };
                    if !line.is_empty() {
                        return Err(broken("a chunk is longer than its size says"));
                    }
                    self.0 = Place::Size;
                }
                Place::Trailers(passed) => {
                    let room = TRAILER_BYTES_MAX - passed;
                    let Some(line) = take_line(gathered, room)? else { return Ok(Part::Wanting) };
                    self.0 = if line.is_empty() {
                        Place::Done
                    } else {
                        Place::Trailers((passed + line.len() + 1).min(TRAILER_BYTES_MAX))
                    };
                }
            }
        }
    }
}

fn broken(reason: &str) -> Problem {
    Problem::bad_request(format!("the body is not in chunks as Transfer-Encoding says: {reason}"))
}

/// A line without its end; `None` when that has not come.
fn take_line(gathered: &mut BytesMut, bytes_max: usize) -> Result<Option<Bytes>, Problem> {
    let looked = &gathered[..gathered.len().min(bytes_max)];
    match looked.iter().position(|b| *b == b'\n') {
        Some(end) => {
            let mut line = gathered.split_to(end).freeze();
            gathered.advance(1);
            if line.last() == Some(&b'\r') {
                line.truncate(end - 1);
            }
            Ok(Some(line))
        }
        None if gathered.len() >= bytes_max => Err(broken("a line between chunks has no end")),
        None => Ok(None),
    }
}

/// The number before the extensions.
fn chunk_size(line: &[u8]) -> Result<u64, Problem> {
    let digits = line.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    let digits = std::str::from_utf8(digits).ok().filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
    let size = digits.filter(|d| (1..=16).contains(&d.len())).and_then(|d| u64::from_str_radix(d, 16).ok());
    size.ok_or_else(|| broken("the size of a chunk is a hexadecimal number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All parts of a body that comes in pieces of this size, and what is left behind it; `None` when it does not end.
    fn read(framing: Framing, text: &[u8], piece: usize) -> Result<Option<(Vec<u8>, Vec<u8>)>, Problem> {
        let (mut reader, mut gathered, mut body) = (BodyReader::new(framing), BytesMut::new(), Vec::new());
        let mut pieces = text.chunks(piece);
        loop {
            match reader.take(&mut gathered)? {
                Part::Bytes(part) => body.extend_from_slice(&part),
                Part::Wanting => match pieces.next() {
                    Some(piece) => gathered.extend_from_slice(piece),
                    None => return Ok(None),
                },
                Part::End => {
                    pieces.for_each(|piece| gathered.extend_from_slice(piece));
                    return Ok(Some((body, gathered.to_vec())));
                }
            }
        }
    }

    #[test]
    fn a_body_ends_where_its_framing_says() {
        let chunks = b"3\r\nabc\r\n00A ; x=\"y\"\r\n0123456789\r\n0\r\nTrailer: 1\r\n\r\nGET";
        for piece in [1, 2, 7, 100] {
            let all = |body: &[u8], rest: &[u8]| Ok(Some((body.to_vec(), rest.to_vec())));
            assert_eq!(read(Framing::Chunked, chunks, piece), all(b"abc0123456789", b"GET"));
            assert_eq!(read(Framing::Length(3), b"abcGET", piece), all(b"abc", b"GET"));
            assert_eq!(read(Framing::Length(0), b"GET", piece), all(b"", b"GET"));
            assert_eq!(read(Framing::Length(7), b"abcGET", piece), Ok(None));
            assert_eq!(read(Framing::Chunked, b"0\n\nGET", piece), all(b"", b"GET"));
        }
    }

    #[test]
    fn what_is_not_in_chunks_is_refused() {
        let endless = [b"0\r\n".to_vec(), b"A: b\r\n".repeat(2_000)].concat();
        let cases: [&[u8]; 9] = [
            b"zz\r\n",
            b"-1\r\n",
            b"\r\n",
            b"+1\r\n",
            b"0x1\r\n",
            b"11112222333344445\r\n",
            b"1\r\nab\r\n",
            &[b'1'; SIZE_LINE_BYTES_MAX],
            &endless,
        ];
        for text in cases {
            for piece in [1, 100] {
                assert_eq!(read(Framing::Chunked, text, piece).expect_err("no chunks").status, 400, "{text:.40?}");
            }
        }
    }
}
