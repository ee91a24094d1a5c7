//! Messages of every kind, drawn from a seed.

use bytes::Bytes;
use dynarc::{
    limits::{GENERATION_MAX, INCARNATION_MAX, KEY_BYTES_MAX},
    protocol::{message::*, versions::*},
    types::*,
};
use fastrand::Rng;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const NOW: Instant = Instant(7_000_000_000);

pub fn bytes(rng: &mut Rng, max: usize) -> Bytes {
    let length = match rng.u8(0..4) {
        0 => 0,
        1 => rng.usize(0..=max.min(9)),
        _ => rng.usize(0..=max),
    };
    (0..length).map(|_| rng.u8(..)).collect()
}
pub fn key(rng: &mut Rng) -> Key {
    let length = if rng.u8(0..8) == 0 { KEY_BYTES_MAX } else { rng.usize(1..40) };
    Key::new((0..length).map(|_| rng.u8(..)).collect::<Bytes>()).expect("1 to 1024 bytes")
}
pub fn node(rng: &mut Rng) -> NodeId {
    NodeId::from_random(rng.u64(..))
}
pub fn address(rng: &mut Rng) -> Address {
    Address::new(node(rng), rng.u16(..))
}
pub fn media(rng: &mut Rng) -> Media {
    match rng.u8(0..3) {
        0 => Media::octets(),
        1 => Media::raw(&"x".repeat(rng.usize(1..=128))).expect("printable"),
        _ => Media::Json,
    }
}
pub fn value(rng: &mut Rng) -> Value {
    match media(rng) {
        // What is said to be JSON has to be it, when a client sends it.
        Media::Json => Value::json(serde_json::json!(bytes(rng, 800).to_vec()).to_string()),
        raw => Value::new(raw, bytes(rng, 3000)),
    }
}
fn dot(rng: &mut Rng) -> Dot {
    // Beyond 16 bits messages have other fields for them.
    let incarnation = [1, 1, 1, u64::from(u16::MAX) + 1, INCARNATION_MAX][rng.usize(0..5)];
    Dot { actor: Actor::new(NodeId(rng.u64(0..12)), incarnation), counter: rng.u64(1..1000) }
}
pub fn clock(rng: &mut Rng) -> VersionVector {
    VersionVector::from_dots((0..rng.usize(0..6)).map(|_| dot(rng)).collect::<Vec<_>>())
}
pub fn siblings(rng: &mut Rng) -> Siblings {
    let life = if rng.bool() { 0 } else { rng.u64(..) };
    let mut siblings = Siblings { head: Head { clock: clock(rng), life, ..Head::default() }, ..Siblings::default() };
    let mut dots: Vec<Dot> = (0..rng.usize(0..4)).map(|_| dot(rng)).collect();
    dots.sort();
    dots.dedup();
    for dot in dots {
        let value = value(rng);
        siblings.head.clock.record(dot);
        siblings.head.entries.push(Entry {
            dot,
            write_id: WriteId(rng.u64(..)),
            media: value.media,
            bytes: value.bytes.len() as u32,
            checksum: value.checksum,
        });
        siblings.values.push(value.bytes);
    }
    for _ in 0..rng.usize(0..4) {
        let checksum = rng.bool().then(|| rng.u32(..));
        siblings.head.recent.push(Superseded { dot: dot(rng), write_id: WriteId(rng.u64(..)), checksum });
    }
    siblings
}
pub fn context(rng: &mut Rng) -> Option<Context> {
    rng.bool().then(|| written_context(rng))
}
/// A context as a write returns it: now and then with its own dot beside the clock.
fn written_context(rng: &mut Rng) -> Context {
    let mut context = Context::from(clock(rng));
    let beside = dot(rng);
    if rng.bool() && beside.counter > 0 && !context.covers(beside) {
        context.dots.push(beside);
    }
    context
}
pub fn deadline(rng: &mut Rng) -> Instant {
    NOW + std::time::Duration::from_micros(rng.u64(1..=60_000_000))
}
pub fn request(rng: &mut Rng, deadline: Instant) -> Request {
    let write_id = WriteId(rng.u64(..));
    let operation = match rng.u8(0..3) {
        0 => Operation::Get { context: None },
        1 => Operation::Put { context: context(rng), value: value(rng), write_id },
        _ => Operation::Delete { context: context(rng), write_id },
    };
    let level = match rng.u8(0..5) {
        0 => None,
        1 => Some(Level::One),
        2 => Some(Level::Quorum),
        3 => Some(Level::All),
        _ => Some(Level::Count(rng.u8(..))),
    };
    let sloppy = [None, Some(false), Some(true)][rng.usize(0..3)];
    Request { key: key(rng), operation, consistency: Consistency { level, sloppy }, deadline }
}
pub fn failure(rng: &mut Rng) -> Failure {
    let code = ErrorCode::ALL[rng.usize(0..ErrorCode::ALL.len())];
    let outcome = if rng.bool() { Outcome::NotApplied } else { Outcome::Unknown };
    Failure { code, outcome, detail: "x".repeat(rng.usize(0..30)), acks: rng.u8(..), needed: rng.u8(..) }
}
pub fn response(rng: &mut Rng) -> Response {
    match rng.u8(0..3) {
        0 => Ok(Answer::Got(siblings(rng))),
        1 => Ok(Answer::Written(written_context(rng))),
        _ => Err(failure(rng)),
    }
}
pub const REFUSALS: &[Refusal] = {
    use Refusal::*;
    &[Overloaded, DiskFull, Damaged, Failed, NotMine, Expired, ClockAhead, KnownDot(0), ClockBehind, NotYet]
};
fn refusal(rng: &mut Rng) -> Refusal {
    REFUSALS[rng.usize(0..REFUSALS.len())]
}
fn ip(rng: &mut Rng) -> IpAddr {
    if rng.bool() {
        IpAddr::V4(Ipv4Addr::from(rng.u32(..)))
    } else {
        IpAddr::V6(Ipv6Addr::from(u128::from(rng.u64(..)) << 3))
    }
}
fn cluster(rng: &mut Rng) -> ClusterId {
    ClusterId(rng.u64(..))
}
pub fn member(rng: &mut Rng) -> Member {
    use MemberState::*;
    let mut tokens: Vec<Token> = (0..rng.usize(0..20)).map(|_| Token(rng.u64(..))).collect();
    tokens.sort();
    tokens.dedup();
    let ip = ip(rng);
    Member {
        id: node(rng),
        ip,
        ports: Ports { http: rng.u16(..), client: rng.u16(0..60_000), peer: rng.u16(0..60_000) },
        shards: rng.u16(1..=256),
        slices: rng.u16(1..=2048),
        tokens: tokens.into(),
        state: [Joining, Up, Leaving, Left][rng.usize(0..4)],
        generation: rng.u64(..=GENERATION_MAX),
        revision: rng.u32(..),
        heartbeat: rng.u64(..),
    }
}
fn many<T>(rng: &mut Rng, draw: fn(&mut Rng) -> T) -> Vec<T> {
    (0..rng.usize(0..5)).map(|_| draw(rng)).collect()
}
fn digest_entry(rng: &mut Rng) -> DigestEntry {
    DigestEntry {
        node: node(rng),
        generation: rng.u64(..=GENERATION_MAX),
        revision: rng.u32(..),
        heartbeat: rng.u64(..),
    }
}
fn news(rng: &mut Rng) -> News {
    if rng.bool() {
        return News::Member(member(rng));
    }
    let DigestEntry { node, generation, revision, heartbeat } = digest_entry(rng);
    News::Heartbeat { node, generation, revision, heartbeat }
}

fn table(rng: &mut Rng) -> TableEntry {
    let name = "x".repeat(rng.usize(1..=64)).parse().expect("a name");
    let n = rng.u8(1..=7);
    let settings = TableSettings {
        n,
        r: rng.u8(1..=n),
        w: rng.u8(1..=n),
        conflict: if rng.bool() { Conflict::Siblings } else { Conflict::LastWriteWins },
        sloppy: rng.bool(),
        durability: if rng.bool() { Durability::Sync } else { Durability::Interval },
    };
    let settings = rng.bool().then_some(settings);
    let mut made = [(); 2].map(|()| Making { version: rng.u64(1..), node: node(rng) });
    made.sort_unstable_by(|a, b| b.cmp(a));
    let (version, node, dropped) = (rng.u64(..), node(rng), rng.u64(..));
    TableEntry { name, version, node, dropped, whole: rng.u64(..), kept: rng.u64(..), made, settings }
}
fn word(rng: &mut Rng) -> TableWord {
    TableWord { version: rng.u64(..), node: node(rng), dropped: rng.u64(..), kept: rng.u64(..) }
}

fn stamp(rng: &mut Rng) -> Option<Dot> {
    rng.bool().then(|| Dot::stamp(rng.u64(1..), node(rng)))
}

fn part(rng: &mut Rng) -> Part {
    let (a, b) = (Token(rng.u64(..)), Token(rng.u64(..)));
    let span = Span { first: a.min(b), last: a.max(b) };
    Part { span, replicas: rng.u8(..), homes: rng.u64(..), tables: rng.u64(..) }
}
fn sum(rng: &mut Rng) -> Sum {
    Sum { count: rng.u32(..), sum: rng.u128(..) }
}

pub const PEER_KINDS: u8 = 22;
/// A message of the `kind`-th kind.
pub fn message(rng: &mut Rng, kind: u8, deadline: Instant) -> Message {
    match kind {
        0 => Message::Forward { request: request(rng, deadline), hops: rng.u8(..), word: word(rng), stamp: stamp(rng) },
        1 => Message::Forwarded(response(rng)),
        2 => {
            let purposes = [Purpose::Write, Purpose::Hint { owner: node(rng) }, Purpose::Repair, Purpose::Replay];
            let siblings = siblings(rng);
            let entries = siblings.head.entries.len() as u16;
            Message::Replicate {
                key: key(rng),
                fresh: (entries > 0 && rng.bool()).then(|| rng.u16(0..entries)),
                siblings,
                purpose: purposes[rng.usize(0..4)],
                word: word(rng),
            }
        }
        3 => Message::Replicated(if rng.bool() { Ok(()) } else { Err(refusal(rng)) }),
        4 => {
            Message::Fetch { key: key(rng), depth: if rng.bool() { Depth::Head } else { Depth::Full }, word: word(rng) }
        }
        5 => Message::Fetched(match rng.u8(0..6) {
            0 => Ok(Fetched::Nothing),
            1 => Ok(Fetched::Head(siblings(rng).head)),
            2 => Ok(Fetched::Full(siblings(rng))),
            3 => Ok(Fetched::Doubted { head: siblings(rng).head, values: None }),
            4 => {
                let Siblings { head, values } = siblings(rng);
                Ok(Fetched::Doubted { head, values: Some(values) })
            }
            _ => Err(refusal(rng)),
        }),
        6 => Message::GossipDigest { cluster: cluster(rng), entries: many(rng, digest_entry) },
        7 => Message::GossipDelta {
            cluster: cluster(rng),
            news: many(rng, news),
            wanted: many(rng, node),
            group: many(rng, node),
        },
        8 => Message::GossipNews { cluster: cluster(rng), news: many(rng, news) },
        9 => Message::Tables(Words {
            digest: rng.u64(..),
            news: many(rng, table),
            wanted: rng.bool(),
            certainty: [Certainty::Sure, Certainty::Unheard, Certainty::Lost][rng.usize(0..3)],
        }),
        10 => Message::TableNews(table(rng)),
        13 => Message::Clock { asked: Instant(rng.u64(..)), wall: rng.bool().then(|| rng.u64(..)) },
        14 => Message::Reference { earliest: rng.i64(..), latest: rng.i64(..) },
        11 => Message::Returned { cluster: cluster(rng), member: member(rng) },
        15 => {
            let part = part(rng);
            let shift = part.span.shift_for(rng.u64(1..=64));
            Message::Sums { session: rng.u64(..), part, shift, own: rng.bool().then(|| sum(rng)) }
        }
        16 => Message::Summed(match rng.bool() {
            true => Ok(Summed { shift: rng.u8(0..=64), sums: many(rng, sum) }),
            false => Err(refusal(rng)),
        }),
        17 => Message::Keys { part: part(rng), after: rng.bool().then(|| key(rng)) },
        18 => Message::Keyed(match rng.u8(0..4) {
            0 => Err(refusal(rng)),
            _ => {
                let heads = many(rng, |rng| (key(rng), siblings(rng).head));
                Ok(Listed { more: !heads.is_empty() && rng.bool(), heads })
            }
        }),
        19 => Message::Agreed { session: rng.u64(..), part: part(rng) },
        20 => Message::Parting { generation: rng.u64(..=GENERATION_MAX) },
        12 => Message::Remembered { cluster: cluster(rng), entry: rng.bool().then(|| digest_entry(rng)) },
        _ => Message::View {
            members: many(rng, member),
            avoided: many(rng, node),
            standing: NodeStanding {
                cluster: cluster(rng),
                settled: rng.bool(),
                signs: rng.u32(..),
                strangers: many(rng, |rng| Stranger {
                    node: node(rng),
                    cluster: cluster(rng),
                    at: std::net::SocketAddr::new(ip(rng), rng.u16(..)),
                }),
                parting: many(rng, node),
            },
        },
    }
}
pub fn envelope(rng: &mut Rng, kind: u8) -> Envelope {
    let deadline = deadline(rng);
    let to = if rng.u8(0..5) == 0 { Address::default() } else { address(rng) };
    Envelope { from: address(rng), to, exchange: rng.u64(..), deadline, message: message(rng, kind, deadline) }
}
pub fn client_message(rng: &mut Rng) -> ClientMessage {
    match rng.u8(0..4) {
        0 => ClientMessage::Hello(Hello {
            revision: rng.u16(..),
            features: rng.u64(..),
            clock: rng.bool().then(|| rng.u32(..)),
        }),
        1 => ClientMessage::Ring,
        _ => {
            let deadline = deadline(rng);
            ClientMessage::Request(request(rng, deadline))
        }
    }
}
pub fn server_message(rng: &mut Rng) -> ServerMessage {
    match rng.u8(0..6) {
        0 => ServerMessage::Welcome(Welcome {
            revision: rng.u16(..),
            features: rng.u64(..),
            address: address(rng),
            value_bytes_max: rng.u32(..),
            frame_bytes_max: rng.u32(..),
            ring_digest: rng.u64(..),
        }),
        1 => ServerMessage::Ring { members: many(rng, member), digest: rng.u64(..) },
        2 => ServerMessage::Goodbye { reason: "y".repeat(rng.usize(0..50)) },
        _ => {
            let mut response = response(rng);
            if let Ok(Answer::Got(siblings)) = &mut response {
                // Clients are not told of either.
                siblings.head.recent.clear();
                siblings.head.life = 0;
            }
            ServerMessage::Response { response, ring_digest: rng.u64(..) }
        }
    }
}
