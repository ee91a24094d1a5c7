//! What does a message cost on its way into bytes and back? Values stand beside the flatbuffer, so 10 KB should cost
//! little more than 64 B: their checksum, and no copy.

use divan::{Bencher, black_box, counter::BytesCount};
use dynarc::{
    protocol::{
        message::{Answer, ClientMessage, Envelope, Message, Operation, Purpose, Request, ServerMessage},
        versions::{Actor, Dot, Entry, Head, Siblings, VersionVector},
    },
    types::{Address, Consistency, Instant, Key, Media, NodeId, TableWord, Value, WriteId},
    wire::{
        Frame, FrameDecoder, FrameEncoder, Pieces, Trust, decode_client, decode_peer, decode_server, encode_client,
        encode_peer, encode_server,
    },
};

fn main() {
    divan::main();
}

const SIZES: [usize; 2] = [64, 10_240];

fn clock() -> VersionVector {
    VersionVector::from_dots((1..=3).map(|a| Dot { actor: Actor::from_narrow(a << 16), counter: 1_000 }))
}
fn key() -> Key {
    Key::new(&b"cart:0000012345"[..]).expect("a key of good length")
}
fn value(bytes: usize) -> Value {
    Value::new(Media::Json, vec![b'1'; bytes])
}
fn siblings(bytes: usize) -> Siblings {
    let (value, dot) = (value(bytes), clock().entries()[0]);
    let entry = Entry { dot, write_id: WriteId(9), media: Media::Json, bytes: bytes as u32, checksum: value.checksum };
    let head = Head { clock: clock(), entries: [entry].into_iter().collect(), ..Head::default() };
    Siblings { head, values: [value.bytes].into_iter().collect() }
}
fn put_request(bytes: usize) -> ClientMessage {
    let operation = Operation::Put { context: Some(clock().into()), value: value(bytes), write_id: WriteId(5) };
    let deadline = Instant(5_000_000_000);
    ClientMessage::Request(Request { key: key(), operation, consistency: Consistency::default(), deadline })
}
fn get_answer(bytes: usize) -> ServerMessage {
    ServerMessage::Response { response: Ok(Answer::Got(siblings(bytes))), ring_digest: 7 }
}
fn replicate(bytes: usize) -> Envelope {
    Envelope {
        from: Address::new(NodeId(1), 0),
        to: Address::new(NodeId(2), 3),
        exchange: 77,
        deadline: Instant(5_000_000_000),
        message: Message::Replicate {
            key: key(),
            siblings: siblings(bytes),
            purpose: Purpose::Write,
            word: TableWord::default(),
            fresh: None,
        },
    }
}
fn received(pieces: Pieces) -> Frame {
    let mut decoder = FrameDecoder::new();
    decoder.set_limit(1 << 20);
    decoder.feed(&pieces.to_bytes());
    decoder.next_frame().ok().flatten().expect("a frame as it was encoded")
}

#[divan::bench(args = SIZES)]
fn put_encode(bencher: Bencher, bytes: usize) {
    let (mut encoder, message) = (FrameEncoder::new(), put_request(bytes));
    bencher
        .counter(BytesCount::new(bytes))
        .bench_local(|| encode_client(&mut encoder, 1, black_box(&message), Instant::ZERO));
}
#[divan::bench(args = SIZES)]
fn put_decode(bencher: Bencher, bytes: usize) {
    let pieces = encode_client(&mut FrameEncoder::new(), 1, &put_request(bytes), Instant::ZERO);
    let frame = received(pieces.expect("a request that can be sent"));
    bencher.counter(BytesCount::new(bytes)).bench_local(|| decode_client(black_box(&frame), Instant::ZERO));
}
#[divan::bench(args = SIZES)]
fn got_encode(bencher: Bencher, bytes: usize) {
    let (mut encoder, message) = (FrameEncoder::new(), get_answer(bytes));
    bencher.counter(BytesCount::new(bytes)).bench_local(|| encode_server(&mut encoder, 1, black_box(&message)));
}
#[divan::bench(args = SIZES)]
fn got_decode(bencher: Bencher, bytes: usize) {
    let pieces = encode_server(&mut FrameEncoder::new(), 1, &get_answer(bytes));
    let frame = received(pieces.expect("an answer that can be sent"));
    bencher.counter(BytesCount::new(bytes)).bench_local(|| decode_server(black_box(&frame)));
}
#[divan::bench(args = SIZES)]
fn replicate_encode(bencher: Bencher, bytes: usize) {
    let (mut encoder, envelope) = (FrameEncoder::new(), replicate(bytes));
    bencher
        .counter(BytesCount::new(bytes))
        .bench_local(|| encode_peer(&mut encoder, black_box(&envelope), Instant::ZERO));
}
/// From another node: the value's checksum is verified.
#[divan::bench(args = SIZES)]
fn replicate_decode(bencher: Bencher, bytes: usize) {
    let pieces = encode_peer(&mut FrameEncoder::new(), &replicate(bytes), Instant::ZERO);
    let frame = received(pieces.expect("a message that can be sent"));
    bencher
        .counter(BytesCount::new(bytes))
        .bench_local(|| decode_peer(black_box(&frame), Instant::ZERO, Trust::Verify));
}
/// From another core of this node: pieces become a frame without a copy, nothing is verified again.
#[divan::bench(args = SIZES)]
fn replicate_across_cores(bencher: Bencher, bytes: usize) {
    let (mut encoder, envelope) = (FrameEncoder::new(), replicate(bytes));
    bencher.counter(BytesCount::new(bytes)).bench_local(|| {
        let pieces = encode_peer(&mut encoder, black_box(&envelope), Instant::ZERO)?;
        decode_peer(&Frame::from_pieces(pieces)?, Instant::ZERO, Trust::SameNode)
    });
}
