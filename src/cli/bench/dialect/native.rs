//! Our client protocol: frames with ids, answers in any order. And a server of it that forgets everything, for
//! measuring the generator itself.

use super::{Answer, Ask, Broken, Dialect, Request, Verdict};
use crate::{
    limits::{FRAME_BYTES_BEFORE_HELLO, FRAME_BYTES_MAX, VALUE_BYTES_CEILING},
    protocol::{
        message::{self, Answer as Said, ClientMessage, Hello, Operation, Response, ServerMessage, Welcome},
        versions::{Actor, Dot, Entry, Head, Siblings, VersionVector},
    },
    types::{Address, Consistency, Instant, Key, Media, Member, Value, WriteId},
    wire::{
        CLIENT_REVISION, FEATURES, FrameDecoder, FrameEncoder, WireError, decode_client, decode_server, encode_client,
        encode_server,
    },
};
use bytes::Bytes;
use std::{
    collections::HashMap,
    io::{self, Read, Write},
    time::Duration,
};

/// Requests carry what is left of their time, so the clock of this side is never asked.
const NOW: Instant = Instant::ZERO;

pub struct NativeDialect {
    encoder: FrameEncoder,
    decoder: FrameDecoder,
    deadline: Instant,
    media: Media,
}

impl NativeDialect {
    /// Says hello over a connected stream and waits for the welcome.
    pub fn greet(stream: &mut (impl Read + Write), timeout: Duration) -> io::Result<NativeDialect> {
        let mut dialect = NativeDialect {
            encoder: FrameEncoder::new(),
            decoder: FrameDecoder::new(),
            deadline: NOW + timeout,
            media: Media::octets(),
        };
        // Its frames are made ahead of their time, so they tell no clock: that is what the first revision is for.
        dialect.encoder.speaking(1);
        let hello = ClientMessage::Hello(Hello { revision: 1, features: FEATURES, clock: None });
        match dialect.converse(stream, &hello)? {
            ServerMessage::Welcome(welcome) => {
                let limit = (welcome.frame_bytes_max as usize).clamp(FRAME_BYTES_BEFORE_HELLO, FRAME_BYTES_MAX);
                dialect.decoder.set_limit(limit);
                Ok(dialect)
            }
            other => Err(io::Error::other(format!("no welcome but {other:?}"))),
        }
    }
    /// Fetches the member list, before any request is sent.
    pub fn members(&mut self, stream: &mut (impl Read + Write)) -> io::Result<Vec<Member>> {
        match self.converse(stream, &ClientMessage::Ring)? {
            ServerMessage::Ring { members, .. } => Ok(members),
            other => Err(io::Error::other(format!("no member list but {other:?}"))),
        }
    }
    fn converse(&mut self, stream: &mut (impl Read + Write), message: &ClientMessage) -> io::Result<ServerMessage> {
        let pieces = encode_client(&mut self.encoder, 0, message, NOW).map_err(io::Error::other)?;
        stream.write_all(&pieces.to_bytes())?;
        let mut piece = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(io::Error::other)? {
                return Ok(decode_server(&frame).map_err(io::Error::other)?.1);
            }
            let got = stream.read(&mut piece)?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.decoder.feed(&piece[..got]);
        }
    }
}

impl Dialect for NativeDialect {
    fn request(&mut self, request: Request<'_>, out: &mut Vec<u8>) {
        let operation = match request.ask {
            Ask::Get => Operation::Get { context: None },
            Ask::Put { context, values, number, variant } => {
                let mut bytes = Vec::with_capacity(values.value_bytes());
                values.write(number, variant, &mut bytes);
                Operation::Put {
                    context: context.cloned(),
                    value: Value::new(self.media.clone(), bytes),
                    write_id: WriteId(variant.max(1)),
                }
            }
        };
        // The plan has checked the lengths of keys and values; an operation that cannot be sent runs into its timeout.
        let Ok(key) = Key::new(Bytes::copy_from_slice(request.key)) else { return };
        let wanted = message::Request { key, operation, consistency: Consistency::default(), deadline: self.deadline };
        let encoded = encode_client(&mut self.encoder, request.id, &ClientMessage::Request(wanted), NOW);
        if let Ok(pieces) = encoded {
            pieces.iter().for_each(|piece| out.extend_from_slice(piece));
        }
    }

    fn answers(&mut self, input: &[u8], answered: &mut dyn FnMut(Answer<'_>)) -> Result<usize, Broken> {
        self.decoder.feed(input);
        while let Some(frame) = self.decoder.next_frame().map_err(broken)? {
            match decode_server(&frame).map_err(broken)? {
                (id, ServerMessage::Response { response, .. }) => report(id, response, answered),
                (_, ServerMessage::Goodbye { reason }) => return Err(Broken(format!("goodbye: {reason}").into())),
                (_, ServerMessage::Welcome(_) | ServerMessage::Ring { .. }) => {
                    return Err(Broken("an answer that nobody asked for".into()));
                }
            }
        }
        Ok(input.len())
    }
}

fn broken(error: WireError) -> Broken {
    Broken(error.to_string().into())
}

fn report(id: u64, response: Response, answered: &mut dyn FnMut(Answer<'_>)) {
    match response {
        Ok(Said::Written(context)) => {
            answered(Answer { id, verdict: Verdict::Done, value: None, context: Some(context) });
        }
        Ok(Said::Got(siblings)) => {
            let context = Some(siblings.head.clock.clone().into());
            let (verdict, value) = match &siblings.values[..] {
                [] => (Verdict::Missing, None),
                [one] => (Verdict::Done, Some(&one[..])),
                several => {
                    for value in several {
                        answered(Answer { id, verdict: Verdict::AlsoValue, value: Some(value), context: None });
                    }
                    (Verdict::Siblings(several.len()), None)
                }
            };
            answered(Answer { id, verdict, value, context });
        }
        Err(failure) => {
            let verdict = Verdict::Failed { code: failure.code.name().into(), retryable: failure.code.retryable() };
            answered(Answer { id, verdict, value: None, context: None });
        }
    }
}

/// The server's side without a store: a get returns zeros, a put is acknowledged.
pub struct NativeServer {
    decoders: HashMap<usize, FrameDecoder>,
    encoder: FrameEncoder,
    got: Siblings,
}
impl NativeServer {
    /// Gets return `value_bytes` zeros.
    pub fn forgetful(value_bytes: usize) -> NativeServer {
        let (dot, value) =
            (Dot { actor: Actor::from_narrow(1 << 16), counter: 1 }, Value::new(Media::octets(), vec![0; value_bytes]));
        let entry = Entry {
            dot,
            write_id: WriteId(1),
            media: value.media.clone(),
            bytes: value_bytes as u32,
            checksum: value.checksum,
        };
        let head =
            Head { clock: VersionVector::from_dots([dot]), entries: [entry].into_iter().collect(), ..Head::default() };
        let got = Siblings { head, values: [value.bytes].into_iter().collect() };
        NativeServer { decoders: HashMap::new(), encoder: FrameEncoder::new(), got }
    }
    /// Answers what has come on a connection, all of it taken.
    pub fn serve(&mut self, connection: usize, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Broken> {
        let decoder = self.decoders.entry(connection).or_default();
        decoder.feed(input);
        while let Some(frame) = decoder.next_frame().map_err(broken)? {
            let (id, message) = decode_client(&frame, NOW).map_err(broken)?;
            let answer = match message {
                ClientMessage::Hello(_) => {
                    decoder.set_limit(FRAME_BYTES_MAX);
                    ServerMessage::Welcome(Welcome {
                        revision: CLIENT_REVISION,
                        features: FEATURES,
                        address: Address::default(),
                        value_bytes_max: VALUE_BYTES_CEILING as u32,
                        frame_bytes_max: FRAME_BYTES_MAX as u32,
                        ring_digest: 1,
                    })
                }
                ClientMessage::Ring => ServerMessage::Ring { members: vec![], digest: 1 },
                ClientMessage::Request(request) => ServerMessage::Response {
                    ring_digest: 1,
                    response: Ok(match request.operation {
                        Operation::Get { .. } => Said::Got(self.got.clone()),
                        Operation::Put { .. } | Operation::Delete { .. } => {
                            Said::Written(self.got.head.clock.clone().into())
                        }
                    }),
                },
            };
            let pieces = encode_server(&mut self.encoder, id, &answer).map_err(broken)?;
            pieces.iter().for_each(|piece| out.extend_from_slice(piece));
        }
        Ok(input.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::values::ValuePool;

    /// A stream whose other end is a server in the same thread.
    struct Loopback {
        server: NativeServer,
        answers: Vec<u8>,
    }
    impl Read for Loopback {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let count = self.answers.len().min(out.len()).min(7);
            out[..count].copy_from_slice(&self.answers[..count]);
            self.answers.drain(..count);
            Ok(count)
        }
    }
    impl Write for Loopback {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.server.serve(0, bytes, &mut self.answers).map_err(io::Error::other)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn hello_members_put_and_get_over_a_stream_in_pieces() {
        let pool = ValuePool::new(500);
        let mut stream = Loopback { server: NativeServer::forgetful(500), answers: vec![] };
        let mut dialect = NativeDialect::greet(&mut stream, Duration::from_secs(1)).unwrap();
        assert!(dialect.members(&mut stream).unwrap().is_empty());
        let mut out = Vec::new();
        let put = Ask::Put { context: None, values: &pool, number: 1, variant: 9 };
        dialect.request(Request { id: 41, key: b"a", ask: put }, &mut out);
        dialect.request(Request { id: 42, key: b"b", ask: Ask::Get }, &mut out);
        stream.write_all(&out).unwrap();
        let mut seen = vec![];
        let answers = std::mem::take(&mut stream.answers);
        for piece in answers.chunks(100) {
            let noted =
                &mut |a: Answer<'_>| seen.push((a.id, a.verdict, a.value.map(<[u8]>::len), a.context.is_some()));
            assert_eq!(dialect.answers(piece, noted), Ok(piece.len()));
        }
        assert_eq!(seen, [(41, Verdict::Done, None, true), (42, Verdict::Done, Some(500), true)]);
        assert!(dialect.answers(&[0xff; 64], &mut |_| ()).is_err());
    }
}
