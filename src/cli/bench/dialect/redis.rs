//! The Redis protocol (RESP2): SET and GET, answers in the order of requests. And a tiny server of it, for measuring
//! the generator itself and for tests.

use super::{Answer, Ask, Broken, Dialect, Request, Verdict};
use std::{collections::VecDeque, io::Write};

/// Bytes of a line before its end must have come.
const LINE_BYTES_MAX: usize = 64 * 1024;

#[derive(Default)]
pub struct RedisDialect {
    waiting: VecDeque<u64>,
}

impl Dialect for RedisDialect {
    fn request(&mut self, request: Request<'_>, out: &mut Vec<u8>) {
        self.waiting.push_back(request.id);
        match request.ask {
            Ask::Get => {
                out.extend_from_slice(b"*2\r\n$3\r\nGET\r\n");
                bulk(request.key, out);
            }
            Ask::Put { values, number, variant, .. } => {
                out.extend_from_slice(b"*3\r\n$3\r\nSET\r\n");
                bulk(request.key, out);
                length(b'$', values.value_bytes(), out);
                values.write(number, variant, out);
                out.extend_from_slice(b"\r\n");
            }
        }
    }

    fn answers(&mut self, input: &[u8], answered: &mut dyn FnMut(Answer<'_>)) -> Result<usize, Broken> {
        let mut taken = 0;
        while let Some((reply, bytes)) = reply(&input[taken..])? {
            taken += bytes;
            let id = self.waiting.pop_front().ok_or(Broken("an answer that nobody asked for".into()))?;
            let (verdict, value) = match reply {
                Reply::Line => (Verdict::Done, None),
                Reply::Bulk(value) => (Verdict::Done, Some(value)),
                Reply::Nil => (Verdict::Missing, None),
                Reply::Error(text) => {
                    let code = String::from_utf8_lossy(text).split(' ').next().unwrap_or_default().to_owned();
                    let retryable = matches!(&*code, "LOADING" | "BUSY" | "TRYAGAIN" | "CLUSTERDOWN");
                    (Verdict::Failed { code: code.into(), retryable }, None)
                }
            };
            answered(Answer { id, verdict, value, context: None });
        }
        Ok(taken)
    }
}

enum Reply<'a> {
    Line,
    Error(&'a [u8]),
    Bulk(&'a [u8]),
    Nil,
}

/// One reply at the front and its bytes; `None` when it has not all come.
fn reply(input: &[u8]) -> Result<Option<(Reply<'_>, usize)>, Broken> {
    let Some((line, after)) = line(input)? else { return Ok(None) };
    match line.split_first() {
        Some((b'+' | b':', _)) => Ok(Some((Reply::Line, after))),
        Some((b'-', text)) => Ok(Some((Reply::Error(text), after))),
        Some((b'$', b"-1")) => Ok(Some((Reply::Nil, after))),
        Some((b'$', digits)) => {
            let length = number(digits)?;
            Ok(input.get(after..after + length + 2).map(|b| (Reply::Bulk(&b[..length]), after + length + 2)))
        }
        _ => Err(Broken("a reply of an unknown type".into())),
    }
}

/// The line at the front without its end, and where the next begins.
fn line(input: &[u8]) -> Result<Option<(&[u8], usize)>, Broken> {
    let looked = &input[..input.len().min(LINE_BYTES_MAX)];
    match looked.iter().position(|b| *b == b'\n') {
        Some(end) if end > 0 && looked[end - 1] == b'\r' => Ok(Some((&looked[..end - 1], end + 1))),
        Some(_) => Err(Broken("a line without CR".into())),
        None if looked.len() == LINE_BYTES_MAX => Err(Broken("a line without end".into())),
        None => Ok(None),
    }
}

fn number(digits: &[u8]) -> Result<usize, Broken> {
    let text = std::str::from_utf8(digits).ok().and_then(|t| t.parse::<u32>().ok());
    text.map(|n| n as usize).ok_or(Broken("a length that is none".into()))
}

fn length(kind: u8, length: usize, out: &mut Vec<u8>) {
    out.push(kind);
    // Writing to a Vec does not fail.
    let _ = write!(out, "{length}\r\n");
}
fn bulk(bytes: &[u8], out: &mut Vec<u8>) {
    length(b'$', bytes.len(), out);
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// The server's side of a connection: SET and GET over a map, or over nothing.
pub struct RedisServer {
    /// `None`: every key holds this many zeros and writes are forgotten.
    stored: Option<std::collections::BTreeMap<Vec<u8>, Vec<u8>>>,
    constant: Vec<u8>,
}
impl RedisServer {
    /// Forgets what is written; a get returns `value_bytes` zeros.
    pub fn forgetful(value_bytes: usize) -> RedisServer {
        RedisServer { stored: None, constant: vec![0; value_bytes] }
    }
    #[cfg(test)]
    pub fn storing() -> RedisServer {
        RedisServer { stored: Some(Default::default()), constant: Vec::new() }
    }
    /// Answers whole commands at the front of `input` into `out`; returns how many bytes they took.
    pub fn serve(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Broken> {
        let mut taken = 0;
        while let Some((words, count, bytes)) = command(&input[taken..])? {
            taken += bytes;
            match (&words[..count], &mut self.stored) {
                ([b"SET", key, value], stored) => {
                    if let Some(map) = stored {
                        map.insert(key.to_vec(), value.to_vec());
                    }
                    out.extend_from_slice(b"+OK\r\n");
                }
                ([b"GET", _], None) => bulk(&self.constant, out),
                ([b"GET", key], Some(map)) => match map.get(*key) {
                    Some(value) => bulk(value, out),
                    None => out.extend_from_slice(b"$-1\r\n"),
                },
                _ => out.extend_from_slice(b"-ERR unknown command\r\n"),
            }
        }
        Ok(taken)
    }
}

const COMMAND_WORDS_MAX: usize = 3;

type Command<'a> = ([&'a [u8]; COMMAND_WORDS_MAX], usize, usize);

/// One command at the front: its words, how many, its bytes; `None` when it has not all come.
fn command(input: &[u8]) -> Result<Option<Command<'_>>, Broken> {
    let Some((head, mut at)) = line(input)? else { return Ok(None) };
    let Some((b'*', digits)) = head.split_first() else { return Err(Broken("a command is an array".into())) };
    let count = number(digits)?;
    if count > COMMAND_WORDS_MAX {
        return Err(Broken("a command of too many words".into()));
    }
    let mut words = [&[][..]; COMMAND_WORDS_MAX];
    for word in &mut words[..count] {
        let Some((head, after)) = line(&input[at..])? else { return Ok(None) };
        let Some((b'$', digits)) = head.split_first() else { return Err(Broken("a word is a bulk string".into())) };
        let (start, length) = (at + after, number(digits)?);
        let Some(bytes) = input.get(start..start + length + 2) else { return Ok(None) };
        *word = &bytes[..length];
        at = start + length + 2;
    }
    Ok(Some((words, count, at)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::values::ValuePool;

    fn verdicts(dialect: &mut RedisDialect, input: &[u8]) -> (usize, Vec<(u64, Verdict, Option<Vec<u8>>)>) {
        let mut seen = vec![];
        let taken = dialect.answers(input, &mut |a| seen.push((a.id, a.verdict, a.value.map(<[u8]>::to_vec)))).unwrap();
        (taken, seen)
    }

    #[test]
    fn requests_reach_the_server_and_its_answers_come_back_in_any_pieces() {
        let (pool, mut dialect, mut server) = (ValuePool::new(100), RedisDialect::default(), RedisServer::storing());
        let mut sent = Vec::new();
        dialect.request(Request { id: 7, key: b"k", ask: Ask::Get }, &mut sent);
        let put = Ask::Put { context: None, values: &pool, number: 5, variant: 1 };
        dialect.request(Request { id: 8, key: b"k", ask: put }, &mut sent);
        dialect.request(Request { id: 9, key: b"k", ask: Ask::Get }, &mut sent);
        let (mut replies, mut held) = (Vec::new(), Vec::new());
        for byte in sent {
            held.push(byte);
            let taken = server.serve(&held, &mut replies).unwrap();
            held.drain(..taken);
        }
        assert!(held.is_empty());
        let (mut seen, mut held) = (vec![], Vec::new());
        for byte in replies {
            held.push(byte);
            let (taken, mut new) = verdicts(&mut dialect, &held);
            held.drain(..taken);
            seen.append(&mut new);
        }
        assert_eq!(seen[0], (7, Verdict::Missing, None));
        assert_eq!(seen[1], (8, Verdict::Done, None));
        assert!(seen[2].0 == 9 && pool.is_value_of(5, seen[2].2.as_ref().unwrap()));
    }
    #[test]
    fn errors_and_nonsense_are_told_apart() {
        let mut dialect = RedisDialect::default();
        dialect.request(Request { id: 1, key: b"k", ask: Ask::Get }, &mut Vec::new());
        let (_, seen) = verdicts(&mut dialect, b"-LOADING please wait\r\n");
        assert_eq!(seen[0].1, Verdict::Failed { code: "LOADING".into(), retryable: true });
        assert!(dialect.answers(b"+OK\r\n", &mut |_| ()).is_err());
        assert!(reply(b"?\r\n").is_err() && reply(b"$x\r\n").is_err() && reply(b"+no end").unwrap().is_none());
        assert!(command(b"*9\r\n").is_err() && command(b"$1\r\n").is_err());
    }
}
