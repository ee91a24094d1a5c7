//! Every message survives its frame; damaged frames are refused or mean the same; nothing panics.

mod wire_samples;

use bytes::{Bytes, BytesMut};
use dynarc::{
    limits::{
        FRAME_BYTES_BEFORE_HELLO, FRAME_BYTES_MAX, GENERATION_MAX, MERGED_SIBLINGS_MAX, REQUEST_TIMEOUT_MAX,
        SIBLINGS_MAX, VALUE_BYTES_MAX,
    },
    protocol::{
        message::*,
        versions::{Actor, Context, Dot, Entry, Head, Siblings, VersionVector},
    },
    types::*,
    wire::*,
};
use fastrand::Rng;
use wire_samples::*;

fn only_frame(bytes: &[u8]) -> Result<Frame, WireError> {
    let mut decoder = FrameDecoder::new();
    decoder.set_limit(FRAME_BYTES_MAX);
    decoder.feed(bytes);
    let frame = decoder.next_frame()?.ok_or(WireError::Body)?;
    assert_eq!(decoder.next_frame(), Ok(None));
    Ok(frame)
}

#[test]
fn peer_messages_survive_their_frames() {
    let mut encoder = FrameEncoder::new();
    for seed in 0..400 {
        let mut rng = Rng::with_seed(seed);
        for kind in 0..PEER_KINDS {
            let envelope = envelope(&mut rng, kind);
            let pieces = encode_peer(&mut encoder, &envelope, NOW).expect("within limits");
            let bytes = pieces.to_bytes();
            assert_eq!(bytes.len(), pieces.bytes());
            let frame = only_frame(&bytes).expect("sound");
            assert_eq!(decode_peer(&frame, NOW, Trust::Verify).expect("sound"), envelope, "seed {seed} kind {kind}");
            let shared = Frame::from_pieces(pieces).expect("sound");
            assert_eq!(decode_peer(&shared, NOW, Trust::SameNode).expect("sound"), envelope, "seed {seed} kind {kind}");
            assert!(decode_client(&frame, NOW).is_err() && decode_server(&frame).is_err());
        }
    }
}

#[test]
fn client_and_server_messages_survive_their_frames() {
    let mut encoder = FrameEncoder::new();
    for seed in 0..2_000 {
        let mut rng = Rng::with_seed(seed);
        let (id, asked, answered) = (rng.u64(..), client_message(&mut rng), server_message(&mut rng));
        let frame = encode_client(&mut encoder, id, &asked, NOW).expect("within limits").to_bytes();
        let frame = only_frame(&frame).expect("sound");
        assert_eq!(decode_client(&frame, NOW), Ok((id, asked)), "seed {seed}");
        assert!(decode_peer(&frame, NOW, Trust::Verify).is_err());
        let frame = encode_server(&mut encoder, id, &answered).expect("within limits").to_bytes();
        assert_eq!(decode_server(&only_frame(&frame).expect("sound")), Ok((id, answered)), "seed {seed}");
    }
}

/// Kind 70 as revision 2 has it; nobody who speaks revision 1 is sent it.
#[test]
fn a_node_that_parts_says_so_in_these_bytes() {
    let message = Message::Parting { generation: 0x1234 };
    let (from, to) = (Address::new(NodeId(1), 0), Address::new(NodeId(2), 0));
    let envelope = Envelope { from, to, exchange: 2, deadline: NOW + std::time::Duration::from_secs(5), message };
    let mut encoder = FrameEncoder::new();
    let bytes = encode_peer(encoder.speaking(3), &envelope, NOW).expect("known").to_bytes();
    assert_eq!(hex(&bytes), PARTING);
    let frame = only_frame(&bytes).expect("sound");
    assert_eq!(decode_peer(&frame, NOW, Trust::Verify).expect("sound"), envelope);
    for revision in [1, 2] {
        assert_eq!(encode_peer(encoder.speaking(revision), &envelope, NOW), Err(WireError::Unspoken(70)));
    }
}
const PARTING: &str = "480000002800000002000000000000004600581ba2d10000404b4c0026c228ab\
                       0c00000008001c000400140008000000000001000000000000000200000000003412000000000000";
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn peer_hello_survives_its_frame() {
    let hello = PeerHello {
        revision: PEER_REVISION,
        features: FEATURES,
        node: NodeId(77),
        shard: ShardId(3),
        generation: 9,
        ip: "127.0.0.3".parse().expect("an address"),
        ports: Ports::default(),
        purpose: ConnectionPurpose::Seed,
        clock: Some(7_654_321),
        cluster: ClusterId(5),
        sought: Some(NodeId(78)),
    };
    let bytes = encode_peer_hello(&mut FrameEncoder::new(), &hello).expect("within limits").to_bytes();
    assert!(bytes.len() <= FRAME_BYTES_BEFORE_HELLO);
    let frame = only_frame(&bytes).expect("sound");
    assert_eq!(decode_peer_hello(&frame), Ok(hello));
    assert!(decode_peer(&frame, NOW, Trust::Verify).is_err());
}

#[test]
fn the_bytes_are_as_drawn() {
    let value = Value::new(Media::octets(), "nine bytes");
    let put = Operation::Put { context: None, value: value.clone(), write_id: WriteId(5) };
    let deadline = NOW + std::time::Duration::from_secs(2);
    let key = Key::new("a").expect("a key");
    let request = Request { key, operation: put, consistency: Consistency::default(), deadline };
    let message = ClientMessage::Request(request);
    let frame = encode_client(&mut FrameEncoder::new(), 0x1122, &message, NOW).expect("fits").to_bytes();
    let u32_at = |at: usize| u32::from_le_bytes(frame[at..at + 4].try_into().expect("4 bytes"));
    let flatbuffer = u32_at(4) as usize;
    assert_eq!(u32_at(0) as usize, frame.len());
    // The clock shows 7,000 ms: 0x1b58.
    assert_eq!(frame[8..24], [0x22, 0x11, 0, 0, 0, 0, 0, 0, 2, 0, 0x58, 0x1b, 0xa2, 0xd1, 0, 0]);
    assert_eq!(u32_at(24), 2_000_000);
    let checked = [&frame[..28], &frame[32..32 + flatbuffer]].concat();
    assert_eq!(u32_at(28), crc32c::crc32c(&checked));
    let start = (32 + flatbuffer).next_multiple_of(8);
    assert_eq!(frame[start..], value.bytes);
}

#[test]
fn a_value_is_shared_from_sender_to_receiver() {
    let value = Value::new(Media::octets(), vec![7u8; 10_001]);
    let put = Operation::Put { context: None, value: value.clone(), write_id: WriteId(5) };
    let key = Key::new("a").expect("a key");
    let request = Request { key, operation: put, consistency: Consistency::default(), deadline: NOW };
    let pieces = encode_client(&mut FrameEncoder::new(), 1, &ClientMessage::Request(request), NOW).expect("fits");
    assert!(pieces.iter().any(|p| p.as_ptr() == value.bytes.as_ptr()), "sent where it lies");

    let mut received = BytesMut::with_capacity(pieces.bytes());
    pieces.iter().for_each(|p| received.extend_from_slice(p));
    let memory = received.as_ptr_range();
    let mut decoder = FrameDecoder::new();
    decoder.set_limit(FRAME_BYTES_MAX);
    decoder.feed_buffer(received);
    let frame = decoder.next_frame().expect("sound").expect("whole");
    let (_, message) = decode_client(&frame, NOW).expect("sound");
    let ClientMessage::Request(Request { operation: Operation::Put { value: got, .. }, .. }) = message else {
        panic!("another message: {message:?}");
    };
    assert_eq!(got, value);
    assert!(memory.contains(&got.bytes.as_ptr()), "received where it lies");
}

#[test]
fn the_decoder_takes_any_cut_of_the_stream() {
    let mut rng = Rng::with_seed(3);
    let mut encoder = FrameEncoder::new();
    let envelopes: Vec<Envelope> = (0..60).map(|i| envelope(&mut rng, i % PEER_KINDS)).collect();
    let mut stream = BytesMut::new();
    for envelope in &envelopes {
        stream.extend_from_slice(&encode_peer(&mut encoder, envelope, NOW).expect("fits").to_bytes());
    }
    for cut in [1, 2, 31, 33, 1000, 4096, 70_000, stream.len()] {
        for receive_in_place in [false, true] {
            let mut decoder = FrameDecoder::new();
            decoder.set_limit(FRAME_BYTES_MAX);
            let mut got = Vec::new();
            let mut rest = &stream[..];
            while !rest.is_empty() {
                let mut length = cut.min(rest.len());
                if receive_in_place {
                    let mut buffer = decoder.take_buffer();
                    let room = buffer.capacity() - buffer.len();
                    assert!(room > 0);
                    length = length.min(room);
                    buffer.extend_from_slice(&rest[..length]);
                    decoder.give_buffer(buffer);
                } else {
                    decoder.feed(&rest[..length]);
                }
                rest = &rest[length..];
                while let Some(frame) = decoder.next_frame().expect("sound") {
                    got.push(decode_peer(&frame, NOW, Trust::Verify).expect("sound"));
                }
            }
            assert!(!decoder.is_mid_frame());
            assert!(got == envelopes, "cut into {cut}");
        }
    }
}

#[test]
fn a_large_value_moves_at_most_once_while_it_arrives() {
    let value = Value::new(Media::octets(), vec![1u8; VALUE_BYTES_MAX]);
    let put = Operation::Put { context: None, value, write_id: WriteId(5) };
    let key = Key::new("a").expect("a key");
    let request = Request { key, operation: put, consistency: Consistency::default(), deadline: NOW };
    let message = ClientMessage::Request(request);
    let bytes = encode_client(&mut FrameEncoder::new(), 1, &message, NOW).expect("fits").to_bytes();
    let mut decoder = FrameDecoder::new();
    decoder.set_limit(FRAME_BYTES_MAX);
    let (mut rest, mut buffers) = (&bytes[..], 0);
    let mut last = std::ptr::null();
    while !rest.is_empty() {
        assert_eq!(decoder.next_frame(), Ok(None));
        let mut buffer = decoder.take_buffer();
        buffers += usize::from(!std::ptr::eq(buffer.as_ptr(), last));
        last = buffer.as_ptr();
        let length = rest.len().min(16 * 1024).min(buffer.capacity() - buffer.len());
        buffer.extend_from_slice(&rest[..length]);
        assert!(buffer.capacity() <= bytes.len() + 64 * 1024, "sized for the frame");
        decoder.give_buffer(buffer);
        rest = &rest[length..];
    }
    assert!(decoder.next_frame().expect("sound").is_some());
    assert!(buffers <= 2, "{buffers} buffers");
}

// ---- hostile bytes ---------------------------------------------------------------------------------------------

#[test]
fn a_claimed_length_beyond_the_limit_is_refused_at_its_fourth_byte() {
    for claimed in [FRAME_BYTES_BEFORE_HELLO as u32 + 1, 1 << 30, u32::MAX] {
        let mut decoder = FrameDecoder::new();
        decoder.feed(&claimed.to_le_bytes()[..3]);
        assert_eq!(decoder.next_frame(), Ok(None));
        decoder.feed(&claimed.to_le_bytes()[3..]);
        let error = WireError::TooLong { claimed: claimed as usize, limit: FRAME_BYTES_BEFORE_HELLO };
        assert_eq!(decoder.next_frame(), Err(error.clone()));
        decoder.feed(&[0; 100]);
        assert_eq!(decoder.next_frame(), Err(error), "an error is final");
        assert_eq!(decoder.buffered(), 0);
    }
    let mut decoder = FrameDecoder::new();
    decoder.feed(b"GET / HTTP/1.1\r\n");
    assert!(matches!(decoder.next_frame(), Err(WireError::TooLong { .. })));
}

#[test]
fn lengths_that_cannot_be_are_refused() {
    let pieces = encode_client(&mut FrameEncoder::new(), 1, &ClientMessage::Ring, NOW).expect("fits");
    let sound = pieces.to_bytes();
    for claimed in 0..sound.len() as u32 {
        let mut bytes = BytesMut::from(&sound[..]);
        bytes[..4].copy_from_slice(&claimed.to_le_bytes());
        assert_eq!(only_frame(&bytes), Err(WireError::Length { claimed: claimed as usize }));
    }
    for flatbuffer in [0, u32::MAX, u32::MAX - 31, sound.len() as u32] {
        let mut bytes = BytesMut::from(&sound[..]);
        bytes[4..8].copy_from_slice(&flatbuffer.to_le_bytes());
        assert!(matches!(only_frame(&bytes), Err(WireError::Length { .. })), "{flatbuffer}");
    }
    assert_eq!(only_frame(&sound[..sound.len() - 1]), Err(WireError::Body), "not whole yet");
}

/// Frames of every kind, small enough to damage each byte of them.
fn samples() -> Vec<Bytes> {
    let mut rng = Rng::with_seed(11);
    let mut encoder = FrameEncoder::new();
    let mut samples = Vec::new();
    for i in 0..60 {
        let envelope = envelope(&mut rng, i % PEER_KINDS);
        samples.push(encode_peer(&mut encoder, &envelope, NOW).expect("fits").to_bytes());
    }
    for _ in 0..20 {
        samples.push(encode_client(&mut encoder, 4, &client_message(&mut rng), NOW).expect("fits").to_bytes());
        samples.push(encode_server(&mut encoder, 5, &server_message(&mut rng)).expect("fits").to_bytes());
    }
    samples.retain(|s| s.len() < 3000);
    samples
}

#[derive(PartialEq, Debug)]
enum Decoded {
    Peer(Envelope),
    Client(u64, ClientMessage),
    Server(u64, ServerMessage),
}
fn decode(bytes: &[u8]) -> Result<Decoded, WireError> {
    let frame = only_frame(bytes)?;
    if let Ok(envelope) = decode_peer(&frame, NOW, Trust::Verify) {
        return Ok(Decoded::Peer(envelope));
    }
    if let Ok((id, message)) = decode_client(&frame, NOW) {
        return Ok(Decoded::Client(id, message));
    }
    decode_peer_hello(&frame).err().ok_or(WireError::Body)?;
    decode_server(&frame).map(|(id, message)| Decoded::Server(id, message))
}

#[test]
fn a_damaged_byte_is_an_error_or_changes_nothing() {
    let (mut errors, mut unchanged) = (0, 0);
    for sample in samples() {
        let original = decode(&sample).expect("sound");
        for at in 0..sample.len() {
            let mut damaged = BytesMut::from(&sample[..]);
            damaged[at] ^= 1 << (at % 8);
            match decode(&damaged) {
                Err(_) => errors += 1,
                Ok(decoded) => {
                    // Only padding is not covered by a checksum.
                    assert_eq!(decoded, original, "byte {at}");
                    unchanged += 1;
                }
            }
        }
    }
    assert!(errors > 1000 && unchanged < errors / 20, "{errors} errors, {unchanged} unchanged");
}

#[test]
fn a_cut_frame_is_never_a_message() {
    for sample in samples() {
        (0..sample.len()).for_each(|length| assert!(decode(&sample[..length]).is_err()));
    }
}

/// Writes the right checksum over a damaged frame, so that the checks behind it are reached.
fn mend_checksum(frame: &mut [u8]) {
    let flatbuffer = u32::from_le_bytes([frame[4], frame[5], frame[6], frame[7]]) as usize;
    if let Some(end) = flatbuffer.checked_add(32).filter(|e| *e <= frame.len()) {
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&frame[..28]), &frame[32..end]);
        frame[28..32].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// `MUTATED_FRAMES=N` says how many.
#[test]
fn damage_under_a_right_checksum_never_panics_and_what_passes_can_be_sent_again() {
    let mut rng = Rng::with_seed(17);
    let mut encoder = FrameEncoder::new();
    let (mut errors, mut passed) = (0, 0);
    let samples = samples();
    let each =
        std::env::var("MUTATED_FRAMES").map_or(600, |all| all.parse::<usize>().expect("a number") / samples.len());
    for sample in samples {
        for _ in 0..each {
            let mut damaged = BytesMut::from(&sample[..]);
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(4..damaged.len());
                damaged[at] = match rng.u8(0..4) {
                    0 => 0,
                    1 => 0xff,
                    2 => rng.u8(..),
                    _ => damaged[at].wrapping_add(1),
                };
            }
            mend_checksum(&mut damaged);
            match decode(&damaged) {
                Err(_) => errors += 1,
                Ok(decoded) => {
                    passed += 1;
                    let again = match &decoded {
                        Decoded::Peer(envelope) => encode_peer(&mut encoder, envelope, NOW),
                        Decoded::Client(id, message) => encode_client(&mut encoder, *id, message, NOW),
                        Decoded::Server(id, message) => encode_server(&mut encoder, *id, message),
                    };
                    let again = again.expect("what was decoded is within limits").to_bytes();
                    assert_eq!(decode(&again), Ok(decoded));
                }
            }
        }
    }
    assert!(errors > 1000 && passed > 1000, "{errors} errors, {passed} passed");
}

#[test]
fn random_bytes_are_refused() {
    let mut rng = Rng::with_seed(23);
    for _ in 0..2_000 {
        let length = rng.usize(0..300);
        let mut bytes: Vec<u8> = (0..length).map(|_| rng.u8(..)).collect();
        assert!(decode(&bytes).is_err());
        if length > 32 {
            // A sound header over a random flatbuffer.
            let sample = encode_client(&mut FrameEncoder::new(), 1, &ClientMessage::Ring, NOW).expect("fits");
            bytes[..32].copy_from_slice(&sample.to_bytes()[..32]);
            bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
            bytes[4..8].copy_from_slice(&(length as u32 - 32).to_le_bytes());
            bytes[16] = rng.u8(1..45);
            mend_checksum(&mut bytes);
            let _ = decode(&bytes);
        }
    }
}

// ---- revisions -------------------------------------------------------------------------------------------------

/// A frame of revision 1, as Dynarc made it that knew no other.
const FIRST_REVISION: &[u8] = b"H\0\0\0(\0\0\0U\0\0\0\0\0\0\0$\0\0\0\xa1\xd1\0\0\x80\x84\x1e\0o\xe6\x91;\
    \x10\0\0\0\0\0\0\0\x08\0\x18\0\x08\0\x07\0\
    \x08\0\0\0\0\0\0\x02\x03\0\"\x11\0\0\0\0\x01\0D3\0\0\0\0";

#[test]
fn frames_of_the_first_revision_are_read_and_made_as_they_were() {
    let mut encoder = FrameEncoder::new();
    let envelope = Envelope {
        from: Address::new(NodeId(0x1122), 3),
        to: Address::new(NodeId(0x3344), 1),
        exchange: 0x55,
        deadline: NOW + std::time::Duration::from_secs(2),
        message: Message::Replicated(Err(Refusal::DiskFull)),
    };
    assert_eq!(encode_peer(encoder.speaking(1), &envelope, NOW).expect("fits").to_bytes(), FIRST_REVISION[..]);
    assert_eq!(decode_peer(&only_frame(FIRST_REVISION).expect("sound"), NOW, Trust::Verify), Ok(envelope));
    for seed in 0..100 {
        let mut rng = Rng::with_seed(seed);
        for kind in 0..PEER_KINDS {
            let envelope = wire_samples::envelope(&mut rng, kind);
            let bytes = match encode_peer(encoder.speaking(1), &envelope, NOW) {
                Ok(pieces) => pieces.to_bytes(),
                // Kinds that it does not know, and incarnations that its forms cannot say.
                Err(WireError::Unspoken(_) | WireError::Unsendable(_)) => continue,
                Err(error) => panic!("{error}"),
            };
            assert_eq!(bytes[18..24], [0, 0, 0xa1, 0xd1, 0, 0], "no clock");
            assert!(decode_peer(&only_frame(&bytes).expect("sound"), NOW, Trust::Verify).is_ok());
        }
    }
}

#[test]
fn what_an_older_revision_does_not_know_is_said_in_its_own_words() {
    let mut encoder = FrameEncoder::new();
    let envelope = |message| Envelope { message, ..wire_samples::envelope(&mut Rng::with_seed(1), 4) };
    let told = |encoder: &mut FrameEncoder, message| {
        let bytes = encode_peer(encoder, &envelope(message), NOW).expect("fits").to_bytes();
        decode_peer(&only_frame(&bytes).expect("sound"), NOW, Trust::Verify).expect("sound").message
    };
    for code in ErrorCode::ALL {
        let failure = Failure::new(code, Outcome::NotApplied, "words");
        let failed = |code| Message::Forwarded(Err(Failure { code, ..failure.clone() }));
        assert_eq!(told(encoder.speaking(2), failed(code)), failed(code));
        assert_eq!(told(encoder.speaking(1), failed(code)), failed(code.in_revision_1()));
        assert!(code.in_revision_1() as u8 <= 10, "{code:?}");
        let answer = ServerMessage::Response { response: Err(failure.clone()), ring_digest: 1 };
        let bytes = encode_server(encoder.speaking(1), 7, &answer).expect("fits").to_bytes();
        let Ok((7, ServerMessage::Response { response: Err(told), .. })) =
            decode_server(&only_frame(&bytes).expect("sound"))
        else {
            panic!("another answer")
        };
        assert_eq!(told, Failure { code: code.in_revision_1(), ..failure });
    }
    for &refusal in wire_samples::REFUSALS {
        let refused = |refusal| Message::Replicated(Err(refusal));
        assert_eq!(told(encoder.speaking(3), refused(refusal)), refused(refusal));
        let second = if refusal.number() < Refusal::NotYet.number() { refusal } else { Refusal::NotMine };
        assert_eq!(told(encoder.speaking(2), refused(refusal)), refused(second));
        let old = if refusal.number() <= Refusal::ClockAhead.number() { refusal } else { Refusal::NotMine };
        assert_eq!(told(encoder.speaking(1), refused(refusal)), refused(old));
    }
}

/// Repair as revision 3 says it first.
const FIRST_OF_REPAIR: &[u8] = b"\x98\0\0\0x\0\0\0U\0\0\0\0\0\0\0<\0X\x1b\xa2\xd1\0\0\x80\x84\x1e\0\xaf\x98\xfe{\
    \x18\0\0\0\0\0\0\0\0\0\x0e\0`\0\x08\0X\0\x18\0\x07\0@\0\x0e\0\0\0\0\0\0@\x03\0\"\x11\0\0\0\0\x01\0D3\0\0\0\0\
    \x05\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\x07\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\
    xiZK<-\x1e\x0f\xef\xcd\xab\x89gE#\x01\x02\0\0\0\0\0\0\0\t\0\0\0\0\0\0\0";

#[test]
fn repair_is_said_to_those_alone_who_know_it() {
    let part = Part { span: Span { first: Token(5), last: Token(1 << 60) }, replicas: 3, homes: 7, tables: 8 };
    let own = Some(Sum { count: 2, sum: 0x0123_4567_89ab_cdef << 64 | 0x0f1e_2d3c_4b5a_6978 });
    let envelope = Envelope {
        from: Address::new(NodeId(0x1122), 3),
        to: Address::new(NodeId(0x3344), 1),
        exchange: 0x55,
        deadline: NOW + std::time::Duration::from_secs(2),
        message: Message::Sums { session: 9, part, shift: 64, own },
    };
    let mut encoder = FrameEncoder::new();
    let bytes = encode_peer(encoder.speaking(3), &envelope, NOW).expect("fits").to_bytes();
    assert_eq!(bytes, FIRST_OF_REPAIR);
    assert_eq!(decode_peer(&only_frame(FIRST_OF_REPAIR).expect("sound"), NOW, Trust::Verify), Ok(envelope));
    for kind in 15..20 {
        let envelope = wire_samples::envelope(&mut Rng::with_seed(1), kind);
        for revision in [1, 2] {
            let told = encode_peer(encoder.speaking(revision), &envelope, NOW);
            // A list may hold a head that the first revision could not read either.
            assert!(matches!(told, Err(WireError::Unspoken(60..=64) | WireError::Unsendable(_))), "{told:?}");
        }
    }
}

#[test]
fn questions_of_repair_that_would_cost_too_much_are_refused() {
    let mut encoder = FrameEncoder::new();
    let mut refused = |message, field| {
        let envelope = Envelope { message, ..wire_samples::envelope(&mut Rng::with_seed(1), 4) };
        let bytes = encode_peer(&mut encoder, &envelope, NOW).expect("fits").to_bytes();
        assert_eq!(decode_peer(&only_frame(&bytes).expect("sound"), NOW, Trust::Verify), Err(WireError::Field(field)));
    };
    let part = |first, last| Part { span: Span { first, last }, replicas: 3, homes: 7, tables: 8 };
    let sums = |part, shift| Message::Sums { session: 9, part, shift, own: None };
    refused(sums(part(Token(0), Token(u64::MAX)), 57), "shift");
    refused(sums(part(Token(0), Token(5)), 65), "shift");
    refused(sums(part(Token(6), Token(5)), 64), "tokens");
    refused(Message::Keys { part: part(Token(6), Token(5)), after: None }, "tokens");
    refused(Message::Keyed(Ok(Listed { heads: Vec::new(), more: true })), "keys");
}

// ---- limits ----------------------------------------------------------------------------------------------------

#[test]
fn deadlines_travel_as_what_is_left_of_them() {
    let mut rng = Rng::with_seed(1);
    let mut encoder = FrameEncoder::new();
    let later = Instant(123_456_789_000);
    for (deadline, left) in [
        (NOW + std::time::Duration::from_millis(250), 250_000_000),
        (NOW - std::time::Duration::from_millis(250), 0),
        (Instant::NEVER, REQUEST_TIMEOUT_MAX.as_nanos() as u64),
    ] {
        let envelope = Envelope { deadline, ..envelope(&mut rng, 4) };
        let frame = encode_peer(&mut encoder, &envelope, NOW).expect("fits").to_bytes();
        let got = decode_peer(&only_frame(&frame).expect("sound"), later, Trust::Verify).expect("sound");
        assert_eq!(got.deadline, Instant(later.0 + left));
    }
}

#[test]
fn a_request_beyond_the_contract_is_answered_rather_than_cut_off() {
    let put = |key: &str, value: Value| {
        let operation = Operation::Put { context: None, value, write_id: WriteId(1) };
        let key = Key::new(key.to_owned()).expect("a key");
        ClientMessage::Request(Request { key, operation, consistency: Consistency::default(), deadline: NOW })
    };
    let code = |message: &ClientMessage| {
        let bytes = encode_client(&mut FrameEncoder::new(), 1, message, NOW).expect("fits").to_bytes();
        let error = decode_client(&only_frame(&bytes).expect("sound"), NOW).expect_err("beyond the contract");
        error.refusal().map(|failure| failure.code)
    };
    let takes = |message: &ClientMessage| {
        let bytes = encode_client(&mut FrameEncoder::new(), 1, message, NOW).expect("fits").to_bytes();
        decode_client(&only_frame(&bytes).expect("sound"), NOW).is_ok()
    };
    let long = put("k", Value::new(Media::Json, vec![b' '; 4 * 1024 * 1024 + 1]));
    assert_eq!(code(&long), Some(ErrorCode::TooLarge));
    let media = put("k", Value::new(Media::Raw("a\nb".into()), "x"));
    assert_eq!(code(&media), Some(ErrorCode::BadRequest));
    for no_json in [&b"{nope"[..], b"1, \"context\": \"x\"", b"", b"\xef\xbb\xbf1", b"\"\xff\"", b"NaN", b"[1] 2"] {
        assert_eq!(code(&put("k", Value::json(no_json))), Some(ErrorCode::BadRequest), "{no_json:?}");
        // The same bytes as what they are.
        assert!(takes(&put("k", Value::new(Media::octets(), no_json))));
    }
    assert!(takes(&put("k", Value::json([vec![b'['; 100_000], vec![b']'; 100_000]].concat()))), "nested deeply");
    let mut damaged = Value::json("1");
    damaged.checksum ^= 1;
    assert_eq!(code(&put("k", damaged)), None, "a damaged value ends the connection");
}

/// A number that the next start would raise beyond its end, and a removal in nobody's name, are not taken.
#[test]
fn lives_that_cannot_be_and_removals_are_refused() {
    let mut rng = Rng::with_seed(7);
    let decoded = |generation: u64, state: MemberState| {
        let member = Member { generation, state, ..wire_samples::member(&mut Rng::with_seed(9)) };
        let message = Message::GossipNews { cluster: ClusterId(5), news: vec![News::Member(member)] };
        let envelope = Envelope { message, ..wire_samples::envelope(&mut Rng::with_seed(9), 4) };
        let bytes = encode_peer(&mut FrameEncoder::new(), &envelope, NOW).expect("fits").to_bytes();
        decode_peer(&only_frame(&bytes).expect("sound"), NOW, Trust::Verify).map(|e| e.message == envelope.message)
    };
    assert_eq!(decoded(GENERATION_MAX, MemberState::Up), Ok(true));
    assert_eq!(decoded(GENERATION_MAX + 1, MemberState::Up), Err(WireError::Field("generation")));
    assert_eq!(decoded(u64::MAX, MemberState::Up), Err(WireError::Field("generation")));
    assert_eq!(decoded(1, MemberState::Removed), Err(WireError::Field("member state")));
    let heartbeat =
        News::Heartbeat { node: wire_samples::node(&mut rng), generation: u64::MAX, revision: 1, heartbeat: 1 };
    let message = Message::GossipNews { cluster: ClusterId(5), news: vec![heartbeat] };
    let envelope = Envelope { message, ..wire_samples::envelope(&mut rng, 4) };
    let bytes = encode_peer(&mut FrameEncoder::new(), &envelope, NOW).expect("fits").to_bytes();
    let refused = decode_peer(&only_frame(&bytes).expect("sound"), NOW, Trust::Verify);
    assert_eq!(refused, Err(WireError::Field("generation")));
}

#[test]
fn messages_beyond_their_limits_are_not_sent() {
    let mut rng = Rng::with_seed(5);
    let mut siblings = siblings(&mut rng);
    while siblings.values.is_empty() {
        siblings = wire_samples::siblings(&mut rng);
    }
    siblings.values.pop();
    let message = Message::Fetched(Ok(Fetched::Full(siblings)));
    let envelope = Envelope { message, ..envelope(&mut rng, 4) };
    let mut encoder = FrameEncoder::new();
    assert!(matches!(encode_peer(&mut encoder, &envelope, NOW), Err(WireError::Unsendable(_))));
    let entry = DigestEntry { node: NodeId(1), generation: 1, revision: 1, heartbeat: 1 };
    let message = Message::GossipDigest { cluster: ClusterId(1), entries: vec![entry; 1025] };
    let envelope = Envelope { message, ..envelope };
    assert!(matches!(encode_peer(&mut encoder, &envelope, NOW), Err(WireError::Unsendable(_))));
    // The encoder is as good as new afterwards.
    let envelope = wire_samples::envelope(&mut rng, 2);
    let frame = encode_peer(&mut encoder, &envelope, NOW).expect("fits").to_bytes();
    assert_eq!(decode_peer(&only_frame(&frame).expect("sound"), NOW, Trust::Verify), Ok(envelope));
}

/// What every coordinator took on its own comes together in one record: it can be sent, and read again.
#[test]
fn a_state_of_all_that_its_coordinators_took_survives_its_frame() {
    let coordinators = (MERGED_SIBLINGS_MAX / SIBLINGS_MAX) as u64;
    let dots = (1..=coordinators).flat_map(|node| (1..=SIBLINGS_MAX as u64).map(move |counter| (node, counter)));
    let (mut clock, mut entries, mut values) = (Context::default(), Vec::new(), Vec::new());
    for (node, counter) in dots {
        let value = Value::new(Media::Json, format!("[{node}, {counter}]"));
        let dot = Dot { actor: Actor::new(NodeId(node), 1), counter };
        let write_id = WriteId(node << 32 | counter);
        let bytes = value.bytes.len() as u32;
        clock.clock.record(dot);
        entries.push(Entry { dot, write_id, media: value.media, bytes, checksum: value.checksum });
        values.push(value.bytes);
    }
    let head = Head { clock: clock.clock, entries: entries.into_iter().collect(), ..Head::default() };
    assert_eq!(Head::decode(&head.encode()), Ok(head.clone()));
    let siblings = Siblings { head, values: values.into_iter().collect() };
    let message = Message::Fetched(Ok(Fetched::Full(siblings)));
    let envelope = Envelope { message, ..envelope(&mut Rng::with_seed(5), 4) };
    let frame = encode_peer(&mut FrameEncoder::new(), &envelope, NOW).expect("fits").to_bytes();
    assert_eq!(decode_peer(&only_frame(&frame).expect("sound"), NOW, Trust::Verify), Ok(envelope));
}

/// B3 of the list of executions: a message that could not be read closed connections between nodes. A frame of an
/// unknown kind, or of a head that is none, costs itself; the one after it is read, and the asker gets an answer.
#[test]
fn a_message_that_cannot_be_read_costs_itself() {
    let (mut encoder, mut rng) = (FrameEncoder::new(), Rng::with_seed(5));
    let written = loop {
        let envelope = envelope(&mut rng, 2);
        if let Message::Replicate { siblings, .. } = &envelope.message
            && !siblings.head.clock.is_empty()
        {
            break envelope;
        }
    };
    let sound = encode_peer(&mut encoder, &written, NOW).expect("within limits").to_bytes();
    let flatbuffer = 32 + u32::from_le_bytes(sound[4..8].try_into().expect("4 bytes")) as usize;
    let with = |change: &dyn Fn(&mut [u8])| {
        let mut bytes = sound.to_vec();
        change(&mut bytes);
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..28]), &bytes[32..flatbuffer]);
        bytes[28..32].copy_from_slice(&checksum.to_le_bytes());
        bytes
    };
    let unknown = with(&|bytes| bytes[16..18].copy_from_slice(&9_999u16.to_le_bytes()));
    let Message::Replicate { siblings, .. } = &written.message else { unreachable!("so it was drawn") };
    let head = siblings.head.encode();
    let at = sound.windows(head.len()).position(|part| part == head).expect("the head is in the frame");
    let no_head = with(&|bytes| bytes[at] = 77);
    let mut decoder = FrameDecoder::new();
    decoder.set_limit(FRAME_BYTES_MAX);
    [&unknown[..], &no_head, &sound].iter().for_each(|bytes| decoder.feed(bytes));
    let mut next = || decoder.next_frame().expect("frames are sound").expect("three of them");
    let (unknown, no_head, sound) = (next(), next(), next());
    assert_eq!(decode_peer(&unknown, NOW, Trust::Verify), Err(WireError::UnknownKind(9_999)));
    assert_eq!(decode_client(&unknown, NOW), Err(WireError::UnknownKind(9_999)));
    assert_eq!(answer_unread(unknown.kind()), None);
    assert!(matches!(decode_peer(&no_head, NOW, Trust::Verify), Err(WireError::Head(_))));
    assert_eq!(answer_unread(no_head.kind()), Some(Message::Replicated(Err(Refusal::Failed))));
    assert_eq!(decode_peer(&sound, NOW, Trust::Verify), Ok(written));
}

/// Who speaks the first revision reads no incarnation beyond 16 bits: nothing of the kind is sent to it.
#[test]
fn wide_incarnations_are_not_sent_to_the_first_revision() {
    let (mut encoder, mut rng) = (FrameEncoder::new(), Rng::with_seed(5));
    for incarnation in [u64::from(u16::MAX), u64::from(u16::MAX) + 1] {
        let clock = VersionVector::from_dots([Dot { actor: Actor::new(NodeId(3), incarnation), counter: 1 }]);
        let narrow = incarnation <= u64::from(u16::MAX);
        let context = Context::from(clock.clone());
        let head = Head { clock, ..Head::default() };
        let mut request = None;
        while request.is_none() {
            request = match client_message(&mut rng) {
                ClientMessage::Request(Request {
                    operation: Operation::Delete { write_id, .. },
                    key,
                    consistency,
                    ..
                }) => {
                    let operation = Operation::Delete { context: Some(context.clone()), write_id };
                    Some(Request { key, operation, consistency, deadline: NOW })
                }
                _ => None,
            };
        }
        let request = ClientMessage::Request(request.expect("drawn"));
        let response = Ok(Answer::Written(context));
        let answer = ServerMessage::Response { response, ring_digest: 0 };
        let envelope = Envelope { message: Message::Fetched(Ok(Fetched::Head(head))), ..envelope(&mut rng, 5) };
        for revision in [1, 2] {
            let encoder = encoder.speaking(revision);
            let sent = narrow || revision == 2;
            assert_eq!(encode_client(encoder, 1, &request, NOW).is_ok(), sent);
            assert_eq!(encode_server(encoder, 1, &answer).is_ok(), sent);
            assert_eq!(encode_peer(encoder, &envelope, NOW).is_ok(), sent);
        }
    }
}
