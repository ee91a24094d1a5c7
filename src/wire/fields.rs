//! The parts that messages of clients and peers share: requests, responses, heads with their values, members.
//!
//! `put_*` writes a part into a flatbuffer, `take_*` reads and checks it.

use super::{Frame, Trust, WireError, frame::BodyReader, generated as fb};
use crate::{
    limits::{
        FRAME_VALUES_MAX, GENERATION_MAX, MEMBERS_MAX, NARROW_CLOCK_ENTRIES_MAX, SHARDS_MAX, SLICES_MAX, VNODES_MAX,
    },
    protocol::{
        message::{Answer, Operation, Request, Response},
        versions::{Actor, Context, Dot, Entry, Head, HeadError, Siblings, Values, VersionVector},
    },
    types::{
        Address, Consistency, ErrorCode, Failure, Instant, Key, Level, Media, Member, MemberState, NodeId, Outcome,
        Ports, ShardId, Token, Value, WriteId, mark,
    },
};
use bytes::Bytes;
use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, Vector, WIPOffset};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

pub(super) type Builder = FlatBufferBuilder<'static>;
type Offset<T> = WIPOffset<T>;
type ByteVector = Offset<Vector<'static, u8>>;
type Tables<T> = Vector<'static, ForwardsUOffset<T>>;

// ---- addresses ------------------------------------------------------------------------------------------------

pub(super) fn pack_address(address: Address) -> u64 {
    address.node.0 << 16 | u64::from(address.shard.0)
}
/// Any bits are an address; node 0 stands for whoever answers.
pub(super) fn unpack_address(packed: u64) -> Address {
    Address { node: NodeId(packed >> 16), shard: ShardId(packed as u16) }
}
/// The id of a node: 48 bits, not 0.
pub(super) fn take_node(number: u64) -> Result<NodeId, WireError> {
    if (1..=NodeId::MAX).contains(&number) { Ok(NodeId(number)) } else { Err(WireError::Field("node id")) }
}
pub(super) fn put_ip(builder: &mut Builder, ip: IpAddr) -> ByteVector {
    match ip {
        IpAddr::V4(ip) => builder.create_vector(&ip.octets()),
        IpAddr::V6(ip) => builder.create_vector(&ip.octets()),
    }
}
pub(super) fn take_ip(bytes: &[u8]) -> Result<IpAddr, WireError> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::V4(Ipv4Addr::from(octets)));
    }
    let octets = <[u8; 16]>::try_from(bytes).map_err(|_| WireError::Field("ip"))?;
    Ok(IpAddr::V6(Ipv6Addr::from(octets)))
}

// ---- keys, contexts, heads -------------------------------------------------------------------------------------

pub(super) fn put_bytes(builder: &mut Builder, bytes: &[u8]) -> ByteVector {
    builder.create_vector(bytes)
}
pub(super) fn take_key(frame: &Frame, key: Vector<'_, u8>) -> Result<Key, WireError> {
    Ok(Key::new(frame.share(key.bytes()))?)
}
/// A context in the fields of a message: a clock and dots where these say all, else a block.
#[derive(Default)]
struct ContextFields {
    clock: Option<Offset<Vector<'static, fb::Dot>>>,
    dots: Option<Offset<Vector<'static, fb::Dot>>>,
    block: Option<ByteVector>,
}
fn put_context(builder: &mut Builder, context: &Context, revision: u16) -> Result<ContextFields, WireError> {
    if !context.can_be_read() {
        return Err(WireError::Unsendable("a context with more writers than it may have"));
    }
    if !context.fits_narrow_fields() && revision < 2 {
        return Err(WireError::Unsendable("a context that the other side is too old to read"));
    }
    if !context.fits_narrow_fields() {
        return Ok(ContextFields { block: Some(builder.create_vector(&context.to_block())), ..Default::default() });
    }
    let mut put = |dots: &[Dot]| builder.create_vector_from_iter(dots.iter().map(put_narrow));
    let clock = Some(put(context.clock.entries()));
    Ok(ContextFields { clock, dots: (!context.dots.is_empty()).then(|| put(&context.dots)), block: None })
}
fn put_narrow(dot: &Dot) -> fb::Dot {
    let Some(actor) = dot.actor.narrow() else { unreachable!("the whole context is narrow, but for {dot:?}") };
    fb::Dot::new(actor, dot.counter)
}
fn take_dot(dot: &fb::Dot) -> Dot {
    Dot { actor: Actor::from_narrow(dot.actor()), counter: dot.counter() }
}
/// A stamp: the dot of an actor of incarnation 0.
pub(super) fn take_stamp(dot: &fb::Dot) -> Result<Dot, WireError> {
    let stamp = Dot { actor: Actor::from_narrow(dot.actor()), counter: dot.counter() };
    if stamp.is_stamp() && stamp.counter > 0 { Ok(stamp) } else { Err(WireError::Field("stamp")) }
}
/// The context of a message; absent when no field holds one.
fn take_context(
    clock: Option<Vector<'_, fb::Dot>>,
    dots: Option<Vector<'_, fb::Dot>>,
    block: Option<Vector<'_, u8>>,
) -> Result<Option<Context>, WireError> {
    let bad = |_| WireError::Context;
    if let Some(block) = block {
        return Context::from_block(block.bytes()).map(Some).map_err(bad);
    }
    let Some(clock) = clock else { return Ok(None) };
    if clock.len() > NARROW_CLOCK_ENTRIES_MAX {
        return Err(WireError::Context);
    }
    let mut known = VersionVector::new();
    for dot in clock.iter().map(take_dot) {
        if dot.counter == 0 || known.entries().last().is_some_and(|last| last.actor >= dot.actor) {
            return Err(WireError::Context);
        }
        known.record(dot);
    }
    let count = dots.as_ref().map_or(0, Vector::len);
    let mut dots = dots.iter().flatten().map(take_dot);
    Context::take_dots(known, count, || dots.next().ok_or(HeadError::Length)).map(Some).map_err(bad)
}
fn put_media(builder: &mut Builder, media: &Media) -> Option<Offset<&'static str>> {
    match media {
        Media::Json => None,
        Media::Raw(kind) => Some(builder.create_string(kind)),
    }
}
fn take_media(media: Option<&str>) -> Result<Media, WireError> {
    media.map_or(Ok(Media::Json), |kind| Ok(Media::raw(kind)?))
}

/// The head of siblings, for a peer. Their values go after the flatbuffer.
pub(super) fn put_siblings(builder: &mut Builder, siblings: &Siblings, revision: u16) -> Result<ByteVector, WireError> {
    check_siblings(siblings)?;
    put_head(builder, &siblings.head, revision)
}
/// Revision 1 knows no mark before a head: what it is told belongs to no life of a table.
pub(super) fn put_head(builder: &mut Builder, head: &Head, revision: u16) -> Result<ByteVector, WireError> {
    if !head.clock.can_be_read() || head.entries.len() > FRAME_VALUES_MAX {
        return Err(WireError::Unsendable("more siblings or actors than a head may have"));
    }
    if revision < 2 && !head.is_narrow() {
        return Err(WireError::Unsendable("a head that the other side is too old to read"));
    }
    if revision >= 2 {
        return Ok(builder.create_vector(&head.encode()));
    }
    let bytes = head.encode_without_checksums();
    Ok(builder.create_vector(mark::take(&bytes).map_or(&bytes[..], |(_, bare)| bare)))
}
fn check_siblings(siblings: &Siblings) -> Result<(), WireError> {
    let fits = siblings.head.entries.len() == siblings.values.len()
        && siblings.head.entries.iter().zip(&siblings.values).all(|(e, v)| e.bytes as usize == v.len());
    if fits { Ok(()) } else { Err(WireError::Unsendable("a head whose values are not those that it states")) }
}
pub(super) fn take_siblings(
    head: Option<Vector<'_, u8>>,
    body: &mut BodyReader<'_>,
    trust: Trust,
) -> Result<Siblings, WireError> {
    take_values(take_head(head)?, body, trust)
}
pub(super) fn take_head(head: Option<Vector<'_, u8>>) -> Result<Head, WireError> {
    Ok(Head::decode(head.ok_or(WireError::Field("head"))?.bytes())?)
}
fn take_values(head: Head, body: &mut BodyReader<'_>, trust: Trust) -> Result<Siblings, WireError> {
    let values = head.entries.iter().map(|e| body.take(e.bytes)).collect::<Result<Values, _>>()?;
    let siblings = Siblings { head, values };
    if trust == Trust::Verify {
        siblings.verify()?;
    }
    Ok(siblings)
}

// ---- requests --------------------------------------------------------------------------------------------------

pub(super) fn put_request(
    builder: &mut Builder,
    request: &Request,
    revision: u16,
) -> Result<Offset<fb::Request<'static>>, WireError> {
    let key = Some(put_bytes(builder, request.key.as_bytes()));
    let (level, count) = match request.consistency.level {
        None => (0, 0),
        Some(Level::One) => (1, 0),
        Some(Level::Quorum) => (2, 0),
        Some(Level::All) => (3, 0),
        Some(Level::Count(count)) => (4, count),
    };
    let sloppy = request.consistency.sloppy.map_or(0, |s| 1 + u8::from(s));
    let base = fb::RequestArgs { key, level, count, sloppy, ..Default::default() };
    let context = match &request.operation {
        Operation::Put { context: Some(context), .. } | Operation::Delete { context: Some(context), .. } => {
            put_context(builder, context, revision)?
        }
        // An older node does not look at it.
        Operation::Get { context: Some(context) } if revision >= 2 => put_context(builder, context, revision)?,
        Operation::Get { .. } | Operation::Put { context: None, .. } | Operation::Delete { context: None, .. } => {
            ContextFields::default()
        }
    };
    let in_block = 2 * u8::from(context.block.is_some());
    let base =
        fb::RequestArgs { context: context.clock, context_dots: context.dots, context_block: context.block, ..base };
    let args = match &request.operation {
        Operation::Get { .. } => fb::RequestArgs { operation: 1, ..base },
        Operation::Put { value, write_id, .. } => fb::RequestArgs {
            operation: 2 + in_block,
            media: put_media(builder, &value.media),
            bytes: value.bytes.len() as u32,
            checksum: value.checksum,
            write_id: write_id.0,
            ..base
        },
        Operation::Delete { write_id, .. } => fb::RequestArgs { operation: 3 + in_block, write_id: write_id.0, ..base },
    };
    Ok(fb::Request::create(builder, &args))
}

/// The value that goes with a request.
pub(super) fn request_value(request: &Request) -> Option<&Bytes> {
    match &request.operation {
        Operation::Put { value, .. } => Some(&value.bytes),
        Operation::Get { .. } | Operation::Delete { .. } => None,
    }
}

pub(super) fn take_request(
    frame: &Frame,
    request: fb::Request<'_>,
    deadline: Instant,
    trust: Trust,
) -> Result<Request, WireError> {
    let key = take_key(frame, request.key())?;
    let level = match request.level() {
        0 => None,
        1 => Some(Level::One),
        2 => Some(Level::Quorum),
        3 => Some(Level::All),
        4 => Some(Level::Count(request.count())),
        _ => return Err(WireError::Field("level")),
    };
    let sloppy = match request.sloppy() {
        0 => None,
        1 => Some(false),
        2 => Some(true),
        _ => return Err(WireError::Field("sloppy")),
    };
    let in_block = matches!(request.operation(), 4 | 5);
    if request.operation() != 1 && in_block != request.context_block().is_some() {
        return Err(WireError::Field("operation"));
    }
    let context = take_context(request.context(), request.context_dots(), request.context_block())?;
    let write_id = WriteId(request.write_id());
    let mut body = frame.body();
    let operation = match request.operation() {
        1 => Operation::Get { context },
        2 | 4 => {
            let bytes = body.take(request.bytes())?;
            let value = Value { media: take_media(request.media())?, bytes, checksum: request.checksum() };
            if trust == Trust::Verify {
                value.verify()?;
                value.verify_media()?;
            }
            Operation::Put { context, value, write_id }
        }
        3 | 5 => Operation::Delete { context, write_id },
        _ => return Err(WireError::Field("operation")),
    };
    body.finish()?;
    Ok(Request { key, operation, consistency: Consistency { level, sloppy }, deadline })
}

// ---- responses -------------------------------------------------------------------------------------------------

/// The receiver of a response: a peer gets whole heads, a client what it needs of them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    Peer,
    Client { ring_digest: u64 },
}

pub(super) fn put_response(
    builder: &mut Builder,
    response: &Response,
    reader: Reader,
    revision: u16,
) -> Result<Offset<fb::Response<'static>>, WireError> {
    let ring_digest = match reader {
        Reader::Peer => 0,
        Reader::Client { ring_digest } => ring_digest,
    };
    let base = fb::ResponseArgs { ring_digest, ..Default::default() };
    let args = match response {
        Ok(Answer::Got(siblings)) if reader == Reader::Peer => {
            fb::ResponseArgs { result: 1, head: Some(put_siblings(builder, siblings, revision)?), ..base }
        }
        Ok(Answer::Got(siblings)) => {
            let context = put_context(builder, &Context::from(siblings.head.clock.clone()), revision)?;
            fb::ResponseArgs {
                result: 1,
                siblings: Some(put_entries(builder, siblings)?),
                context: context.clock,
                context_block: context.block,
                ..base
            }
        }
        Ok(Answer::Written(context)) => {
            let context = put_context(builder, context, revision)?;
            fb::ResponseArgs {
                result: 2,
                context: context.clock,
                context_dots: context.dots,
                context_block: context.block,
                ..base
            }
        }
        Err(failure) => fb::ResponseArgs { result: 3, failure: Some(put_failure(builder, failure, revision)), ..base },
    };
    Ok(fb::Response::create(builder, &args))
}

fn put_entries(builder: &mut Builder, siblings: &Siblings) -> Result<Offset<Tables<fb::Sibling<'static>>>, WireError> {
    check_siblings(siblings)?;
    let entries: Vec<_> = siblings.head.entries.iter().map(|entry| put_entry(builder, entry)).collect();
    Ok(builder.create_vector(&entries))
}
fn put_entry(builder: &mut Builder, entry: &Entry) -> Offset<fb::Sibling<'static>> {
    let media = put_media(builder, &entry.media);
    let Dot { actor, counter } = entry.dot;
    let narrow = actor.narrow();
    let dot = fb::Dot::new(narrow.unwrap_or(actor.node().0 << 16), counter);
    let args = fb::SiblingArgs {
        incarnation: if narrow.is_some() { 0 } else { actor.incarnation() },
        dot: Some(&dot),
        write_id: entry.write_id.0,
        media,
        bytes: entry.bytes,
        checksum: entry.checksum,
    };
    fb::Sibling::create(builder, &args)
}
/// A code that came with a later revision, as those know it who speak this one.
fn spoken(code: ErrorCode, revision: u16) -> ErrorCode {
    if revision >= 2 { code } else { code.in_revision_1() }
}
fn put_failure(builder: &mut Builder, failure: &Failure, revision: u16) -> Offset<fb::Failure<'static>> {
    let args = fb::FailureArgs {
        detail: Some(builder.create_string(&failure.detail)),
        code: spoken(failure.code, revision) as u8,
        outcome: match failure.outcome {
            Outcome::NotApplied => 1,
            Outcome::Unknown => 2,
        },
        acks: failure.acks,
        needed: failure.needed,
    };
    fb::Failure::create(builder, &args)
}

/// The values that go with a response.
pub(super) fn response_values(response: &Response) -> &[Bytes] {
    match response {
        Ok(Answer::Got(siblings)) => &siblings.values,
        Ok(Answer::Written(_)) | Err(_) => &[],
    }
}

pub(super) fn take_response(frame: &Frame, response: fb::Response<'_>, trust: Trust) -> Result<Response, WireError> {
    let mut body = frame.body();
    let context = take_context(response.context(), response.context_dots(), response.context_block());
    let taken = match response.result() {
        1 if response.head().is_some() => Ok(Answer::Got(take_siblings(response.head(), &mut body, trust)?)),
        1 => {
            let Context { clock, .. } = context?.ok_or(WireError::Field("context"))?;
            Ok(Answer::Got(take_values(take_entries(response, clock)?, &mut body, trust)?))
        }
        2 => Ok(Answer::Written(context?.ok_or(WireError::Field("context"))?)),
        3 => Err(take_failure(response.failure().ok_or(WireError::Field("failure"))?)?),
        _ => return Err(WireError::Field("result")),
    };
    body.finish()?;
    Ok(taken)
}

/// The head that a client sees: without the memory of superseded writes.
fn take_entries(response: fb::Response<'_>, clock: VersionVector) -> Result<Head, WireError> {
    let siblings = response.siblings().ok_or(WireError::Field("siblings"))?;
    if siblings.len() > FRAME_VALUES_MAX {
        return Err(WireError::Field("siblings"));
    }
    let mut head = Head { clock, ..Head::default() };
    for sibling in siblings.iter() {
        let mut dot = take_dot(sibling.dot());
        if sibling.incarnation() > 0 {
            dot.actor = Actor::new(dot.actor.node(), sibling.incarnation());
        }
        let ordered = head.entries.last().is_none_or(|l| l.dot < dot);
        if !ordered || dot.counter == 0 || !head.clock.covers(dot) {
            return Err(WireError::Field("siblings"));
        }
        head.entries.push(Entry {
            dot,
            write_id: WriteId(sibling.write_id()),
            media: take_media(sibling.media())?,
            bytes: sibling.bytes(),
            checksum: sibling.checksum(),
        });
    }
    Ok(head)
}

fn take_failure(failure: fb::Failure<'_>) -> Result<Failure, WireError> {
    let outcome = match failure.outcome() {
        1 => Outcome::NotApplied,
        2 => Outcome::Unknown,
        _ => return Err(WireError::Field("outcome")),
    };
    Ok(Failure {
        code: ErrorCode::from_number(failure.code()).ok_or(WireError::Field("error code"))?,
        outcome,
        detail: failure.detail().unwrap_or_default().to_owned(),
        acks: failure.acks(),
        needed: failure.needed(),
    })
}

// ---- members ---------------------------------------------------------------------------------------------------

pub(super) fn put_members<'m>(
    builder: &mut Builder,
    members: impl ExactSizeIterator<Item = &'m Member>,
) -> Result<Offset<Tables<fb::Member<'static>>>, WireError> {
    if members.len() > MEMBERS_MAX {
        return Err(WireError::Unsendable("more members than a cluster may have"));
    }
    let members: Vec<_> = members.map(|m| put_member(builder, m)).collect();
    Ok(builder.create_vector(&members))
}
pub(super) fn put_member(builder: &mut Builder, member: &Member) -> Offset<fb::Member<'static>> {
    let args = fb::MemberArgs {
        ip: Some(put_ip(builder, member.ip)),
        tokens: Some(builder.create_vector_from_iter(member.tokens.iter().map(|t| t.0))),
        id: member.id.0,
        http_port: member.ports.http,
        client_port: member.ports.client,
        peer_port: member.ports.peer,
        shards: member.shards,
        slices: member.slices,
        state: member.state as u8,
        generation: member.generation,
        revision: member.revision,
        heartbeat: member.heartbeat,
    };
    fb::Member::create(builder, &args)
}

pub(super) fn take_members(members: Vector<'_, ForwardsUOffset<fb::Member<'_>>>) -> Result<Vec<Member>, WireError> {
    if members.len() > MEMBERS_MAX {
        return Err(WireError::Field("members"));
    }
    members.iter().map(take_member).collect()
}
pub(super) fn take_member(member: fb::Member<'_>) -> Result<Member, WireError> {
    let tokens = member.tokens();
    if tokens.len() > VNODES_MAX {
        return Err(WireError::Field("tokens"));
    }
    let tokens: Arc<[Token]> = tokens.iter().map(Token).collect();
    if tokens.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err(WireError::Field("tokens"));
    }
    let (shards, slices) = (member.shards(), member.slices());
    if !(1..=SHARDS_MAX).contains(&usize::from(shards)) || !(1..=SLICES_MAX).contains(&usize::from(slices)) {
        return Err(WireError::Field("shards or slices"));
    }
    let ports = Ports { http: member.http_port(), client: member.client_port(), peer: member.peer_port() };
    if ports.client.checked_add(shards - 1).is_none() || ports.peer.checked_add(shards - 1).is_none() {
        return Err(WireError::Field("ports"));
    }
    Ok(Member {
        id: take_node(member.id())?,
        ip: take_ip(member.ip().bytes())?,
        ports,
        shards,
        slices,
        tokens,
        state: take_state(member.state())?,
        generation: take_generation(member.generation())?,
        revision: member.revision(),
        heartbeat: member.heartbeat(),
    })
}
/// How often a node has been started, as somebody says: never near the end of the number, which the next start would
/// pass.
pub(super) fn take_generation(number: u64) -> Result<u64, WireError> {
    if number <= GENERATION_MAX { Ok(number) } else { Err(WireError::Field("generation")) }
}
fn take_state(number: u8) -> Result<MemberState, WireError> {
    use MemberState::*;
    // A removal is for ever and an operator's word. No message says whose it is: until one does, none is taken.
    let states = [Joining, Up, Leaving, Left];
    states.into_iter().find(|s| *s as u8 == number).ok_or(WireError::Field("member state"))
}
