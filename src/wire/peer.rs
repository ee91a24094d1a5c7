//! Messages between cores, of one node or of two.

use super::{
    Frame, FrameEncoder, Kind, Pieces, Trust, WireError, age,
    fields::{self, Builder, Reader},
    frame::{Label, micros_left},
    generated as fb,
    repair::{put_listed, put_part, put_sum, take_listed, take_part, take_shift, take_sum},
};
use crate::{
    limits::{KEYS_LISTED_MAX, MEMBERS_MAX, STRANGERS_TOLD_MAX, SUMS_MAX, TABLE_ENTRIES_MAX},
    protocol::{
        message::{
            Certainty, Depth, DigestEntry, Envelope, Fetched, Listed, Message, News, NodeStanding, Purpose, Refusal,
            Summed, Words,
        },
        versions::{Head, Siblings, Values},
    },
    types::{
        ClusterId, Conflict, Durability, ErrorCode, Failure, Instant, Making, NodeId, Outcome, Ports, ShardId,
        Stranger, TableEntry, TableName, TableSettings, TableWord,
    },
};
use bytes::Bytes;
use flatbuffers::{ForwardsUOffset, Vector, WIPOffset};
use std::net::{IpAddr, SocketAddr};

// ---- hello -----------------------------------------------------------------------------------------------------

/// What a connection between nodes is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum ConnectionPurpose {
    /// Messages from core to core.
    Messages = 1,
    /// The first words of a newcomer: it knows an address, not yet who answers there.
    Seed = 2,
}

/// First frame of a connection between nodes, sent by both sides at once: who is at this end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerHello {
    /// Highest peer revision that the sender speaks; the lesser of the two is used.
    pub revision: u16,
    /// Feature bits; the intersection is used.
    pub features: u64,
    pub node: NodeId,
    pub shard: ShardId,
    pub generation: u64,
    pub ip: IpAddr,
    pub ports: Ports,
    /// Said by the side that connects; the other side echoes it.
    pub purpose: ConnectionPurpose,
    /// The sender's clock, as frames carry it (see [`super::age`]); not told before revision 2.
    pub clock: Option<u32>,
    pub cluster: ClusterId,
    /// The node that is looked for at this address; `None`: whoever answers.
    pub sought: Option<NodeId>,
}

pub fn encode_peer_hello(encoder: &mut FrameEncoder, hello: &PeerHello) -> Result<Pieces, WireError> {
    let builder = encoder.start();
    let args = fb::PeerHelloArgs {
        ip: Some(fields::put_ip(builder, hello.ip)),
        revision: hello.revision,
        features: hello.features,
        node: hello.node.0,
        shard: hello.shard.0,
        generation: hello.generation,
        http_port: hello.ports.http,
        client_port: hello.ports.client,
        peer_port: hello.ports.peer,
        purpose: hello.purpose as u8,
        clock: hello.clock,
        cluster: hello.cluster.0,
        sought: hello.sought.map_or(0, |node| node.0),
    };
    let root = fb::PeerHello::create(builder, &args);
    // Whoever it goes to has not said yet what he understands.
    encoder.finish(Label { kind: Kind::PeerHello, exchange: 0, left: 0, clock: None }, root, [].iter())
}

pub fn decode_peer_hello(frame: &Frame) -> Result<PeerHello, WireError> {
    if frame.kind() != Kind::PeerHello {
        return Err(WireError::UnexpectedKind(frame.kind() as u16));
    }
    let hello = frame.root::<fb::PeerHello>()?;
    frame.body().finish()?;
    let purpose = match hello.purpose() {
        1 => ConnectionPurpose::Messages,
        2 => ConnectionPurpose::Seed,
        _ => return Err(WireError::Field("purpose")),
    };
    Ok(PeerHello {
        revision: hello.revision(),
        features: hello.features(),
        node: fields::take_node(hello.node())?,
        shard: ShardId(hello.shard()),
        generation: fields::take_generation(hello.generation())?,
        ip: fields::take_ip(hello.ip().bytes())?,
        ports: Ports { http: hello.http_port(), client: hello.client_port(), peer: hello.peer_port() },
        purpose,
        clock: hello.clock(),
        cluster: ClusterId(hello.cluster()),
        sought: take_optional_node(hello.sought())?,
    })
}
/// 0: none.
fn take_optional_node(number: u64) -> Result<Option<NodeId>, WireError> {
    if number == 0 { Ok(None) } else { fields::take_node(number).map(Some) }
}

// ---- encode ----------------------------------------------------------------------------------------------------

/// The frame of a message, for somebody who speaks the encoder's revision. The deadline becomes the time left from
/// `now`, at most `REQUEST_TIMEOUT_MAX`.
///
/// Fails with [`WireError::Unsendable`] for a message beyond its limits.
pub fn encode_peer(encoder: &mut FrameEncoder, envelope: &Envelope, now: Instant) -> Result<Pieces, WireError> {
    let route = fb::Route::new(fields::pack_address(envelope.from), fields::pack_address(envelope.to));
    let (left, clock) = (micros_left(envelope.deadline, now), Some(age::clock(now)));
    let label = |kind| Label { kind, exchange: envelope.exchange, left, clock };
    let route = Some(&route);
    let revision = encoder.revision();
    let builder = encoder.start();
    match &envelope.message {
        Message::Forward { request, hops, word, stamp } => {
            let stamp = stamp.and_then(|stamp| Some(fb::Dot::new(stamp.actor.narrow()?, stamp.counter)));
            let args = fb::ForwardArgs {
                route,
                request: Some(fields::put_request(builder, request, revision)?),
                hops: *hops,
                table_version: put_version(*word),
                table_node: word.node.0,
                table_kept: word.kept,
                table_dropped: word.dropped,
                stamp: stamp.as_ref(),
            };
            let root = fb::Forward::create(builder, &args);
            let left = micros_left(request.deadline.min(envelope.deadline), now);
            let values = fields::request_value(request).into_iter();
            encoder.finish(Label { left, ..label(Kind::Forward) }, root, values)
        }
        Message::Forwarded(response) => {
            let offset = fields::put_response(builder, response, Reader::Peer, revision)?;
            let root = fb::Forwarded::create(builder, &fb::ForwardedArgs { route, response: Some(offset) });
            encoder.finish(label(Kind::Forwarded), root, fields::response_values(response).iter())
        }
        Message::Replicate { key, siblings, purpose, word, fresh } => {
            let (purpose, owner) = put_purpose(*purpose);
            let args = fb::ReplicateArgs {
                route,
                key: Some(fields::put_bytes(builder, key.as_bytes())),
                head: Some(fields::put_siblings(builder, siblings, revision)?),
                purpose,
                owner,
                epoch: word.dropped,
                table_version: put_version(*word),
                table_node: word.node.0,
                table_kept: word.kept,
                fresh: fresh.map_or(0, |entry| entry + 1),
            };
            let root = fb::Replicate::create(builder, &args);
            encoder.finish(label(Kind::Replicate), root, siblings.values.iter())
        }
        Message::Replicated(result) => {
            let refusal = result.err().map_or(0, |r| put_refusal(r, revision));
            let known = if let Err(Refusal::KnownDot(known)) = result { *known } else { 0 };
            let root = fb::Replicated::create(builder, &fb::ReplicatedArgs { route, refusal, known });
            encoder.finish(label(Kind::Replicated), root, [].iter())
        }
        Message::Fetch { key, depth, word } => {
            let args = fb::FetchArgs {
                route,
                key: Some(fields::put_bytes(builder, key.as_bytes())),
                depth: put_depth(*depth),
                epoch: word.dropped,
                table_version: put_version(*word),
                table_node: word.node.0,
                table_kept: word.kept,
            };
            let root = fb::Fetch::create(builder, &args);
            encoder.finish(label(Kind::Fetch), root, [].iter())
        }
        Message::Fetched(result) => {
            let args = put_fetched(builder, route, result, revision)?;
            let root = fb::Fetched::create(builder, &args);
            encoder.finish(label(Kind::Fetched), root, fetched_values(result, revision).iter())
        }
        Message::GossipDigest { cluster, entries } => {
            check_count(entries.len())?;
            let entries = Some(builder.create_vector_from_iter(entries.iter().map(put_digest_entry)));
            let args = fb::GossipDigestArgs { route, entries, cluster: cluster.0 };
            let root = fb::GossipDigest::create(builder, &args);
            encoder.finish(label(Kind::GossipDigest), root, [].iter())
        }
        Message::GossipDelta { cluster, news, wanted, group } => {
            let news = Some(put_news(builder, news)?);
            let wanted = Some(put_nodes(builder, wanted)?);
            let group = if group.is_empty() { None } else { Some(put_nodes(builder, group)?) };
            let args = fb::GossipDeltaArgs { route, news, wanted, cluster: cluster.0, group };
            let root = fb::GossipDelta::create(builder, &args);
            encoder.finish(label(Kind::GossipDelta), root, [].iter())
        }
        Message::GossipNews { cluster, news } => {
            let news = Some(put_news(builder, news)?);
            let root = fb::GossipNews::create(builder, &fb::GossipNewsArgs { route, news, cluster: cluster.0 });
            encoder.finish(label(Kind::GossipNews), root, [].iter())
        }
        Message::Returned { cluster, member } => {
            let member = Some(fields::put_member(builder, member));
            let root = fb::Returned::create(builder, &fb::ReturnedArgs { route, cluster: cluster.0, member });
            encoder.finish(label(Kind::Returned), root, [].iter())
        }
        Message::Remembered { cluster, entry } => {
            let entry = entry.as_ref().map(put_digest_entry);
            let args = fb::RememberedArgs { route, cluster: cluster.0, entry: entry.as_ref() };
            let root = fb::Remembered::create(builder, &args);
            encoder.finish(label(Kind::Remembered), root, [].iter())
        }
        Message::Parting { generation } => {
            let root = fb::Parting::create(builder, &fb::PartingArgs { route, generation: *generation });
            encoder.finish(label(Kind::Parting), root, [].iter())
        }
        Message::View { members, avoided, standing } => {
            if standing.strangers.len() > STRANGERS_TOLD_MAX {
                return Err(WireError::Unsendable("more strangers than are told"));
            }
            let members = Some(fields::put_members(builder, members.iter())?);
            let avoided = Some(put_nodes(builder, avoided)?);
            let strangers: Vec<_> = standing.strangers.iter().map(|s| put_stranger(builder, s)).collect();
            let strangers = Some(builder.create_vector(&strangers));
            let (cluster, settled, signs) = (standing.cluster.0, standing.settled, standing.signs);
            let parting = Some(put_nodes(builder, &standing.parting)?);
            let args = fb::ViewArgs { route, members, avoided, cluster, settled, signs, strangers, parting };
            let root = fb::View::create(builder, &args);
            encoder.finish(label(Kind::View), root, [].iter())
        }
        Message::Clock { asked, wall } => {
            let root = fb::Clock::create(builder, &fb::ClockArgs { route, asked: asked.0, wall: *wall });
            encoder.finish(label(Kind::Clock), root, [].iter())
        }
        Message::Reference { earliest, latest } => {
            let args = fb::ReferenceArgs { route, earliest: *earliest, latest: *latest };
            let root = fb::Reference::create(builder, &args);
            encoder.finish(label(Kind::Reference), root, [].iter())
        }
        Message::Sums { session, part, shift, own } => {
            let (part, own) = (put_part(*part), own.map(|own| put_sum(&own)));
            let args = fb::SumsArgs { route, session: *session, part: Some(&part), shift: *shift, own: own.as_ref() };
            let root = fb::Sums::create(builder, &args);
            encoder.finish(label(Kind::Sums), root, [].iter())
        }
        Message::Summed(result) => {
            let base = fb::SummedArgs { route, ..Default::default() };
            let args = match result {
                Ok(Summed { sums, .. }) if sums.len() > SUMS_MAX => {
                    return Err(WireError::Unsendable("more sums than a message may have"));
                }
                Ok(Summed { shift, sums }) => {
                    let sums = Some(builder.create_vector_from_iter(sums.iter().map(put_sum)));
                    fb::SummedArgs { shift: *shift, sums, ..base }
                }
                Err(refusal) => fb::SummedArgs { refusal: put_refusal(*refusal, revision), ..base },
            };
            let root = fb::Summed::create(builder, &args);
            encoder.finish(label(Kind::Summed), root, [].iter())
        }
        Message::Keys { part, after } => {
            let part = put_part(*part);
            let after = after.as_ref().map(|key| fields::put_bytes(builder, key.as_bytes()));
            let root = fb::Keys::create(builder, &fb::KeysArgs { route, part: Some(&part), after });
            encoder.finish(label(Kind::Keys), root, [].iter())
        }
        Message::Keyed(result) => {
            let base = fb::KeyedArgs { route, ..Default::default() };
            let args = match result {
                Ok(Listed { heads, .. }) if heads.len() > KEYS_LISTED_MAX => {
                    return Err(WireError::Unsendable("more keys than a message may have"));
                }
                Ok(Listed { heads, more }) => {
                    let keys = heads.iter().map(|(key, head)| put_listed(builder, key, head, revision));
                    let keys = keys.collect::<Result<Vec<_>, WireError>>()?;
                    fb::KeyedArgs { keys: Some(builder.create_vector(&keys)), more: *more, ..base }
                }
                Err(refusal) => fb::KeyedArgs { refusal: put_refusal(*refusal, revision), ..base },
            };
            let root = fb::Keyed::create(builder, &args);
            encoder.finish(label(Kind::Keyed), root, [].iter())
        }
        Message::Agreed { session, part } => {
            let part = put_part(*part);
            let root = fb::Agreed::create(builder, &fb::AgreedArgs { route, session: *session, part: Some(&part) });
            encoder.finish(label(Kind::Agreed), root, [].iter())
        }
        Message::TableNews(entry) => {
            let table = Some(put_table(builder, entry));
            let root = fb::TableNews::create(builder, &fb::TableNewsArgs { route, table });
            encoder.finish(label(Kind::TableNews), root, [].iter())
        }
        Message::Tables(Words { digest, news, wanted, certainty }) => {
            if news.len() > TABLE_ENTRIES_MAX {
                return Err(WireError::Unsendable("more tables than there can be"));
            }
            let news: Vec<_> = news.iter().map(|entry| put_table(builder, entry)).collect();
            let news = Some(builder.create_vector(&news));
            let (digest, wanted, certainty) = (*digest, *wanted, *certainty as u8);
            let root = fb::Tables::create(builder, &fb::TablesArgs { route, digest, news, wanted, certainty });
            encoder.finish(label(Kind::Tables), root, [].iter())
        }
    }
}

fn put_stranger(builder: &mut Builder, stranger: &Stranger) -> WIPOffset<fb::Stranger<'static>> {
    let ip = Some(fields::put_ip(builder, stranger.at.ip()));
    let (node, cluster, port) = (stranger.node.0, stranger.cluster.0, stranger.at.port());
    fb::Stranger::create(builder, &fb::StrangerArgs { node, cluster, ip, port })
}
fn put_purpose(purpose: Purpose) -> (u8, u64) {
    match purpose {
        Purpose::Write => (1, 0),
        Purpose::Hint { owner } => (2, owner.0),
        Purpose::Repair => (3, 0),
        Purpose::Replay => (4, 0),
    }
}
/// A refusal that came with a later revision is said to others as that of somebody who does not serve the key.
fn put_refusal(refusal: Refusal, revision: u16) -> u8 {
    let since = match refusal.number() {
        ..=7 => 1,
        8..=19 => 2,
        20.. => 3,
    };
    let known = revision >= since;
    if known { refusal.number() } else { Refusal::NotMine.number() }
}
fn put_depth(depth: Depth) -> u8 {
    match depth {
        Depth::Head => 1,
        Depth::Full => 2,
    }
}
fn put_fetched<'a>(
    builder: &mut Builder,
    route: Option<&'a fb::Route>,
    result: &Result<Fetched, Refusal>,
    revision: u16,
) -> Result<fb::FetchedArgs<'a>, WireError> {
    let doubted = matches!(result, Ok(Fetched::Doubted { .. }));
    if doubted && revision < 2 {
        // It would be counted as whole.
        let refusal = put_refusal(Refusal::Damaged, revision);
        return Ok(fb::FetchedArgs { route, result: 4, refusal, ..Default::default() });
    }
    let base = fb::FetchedArgs { route, doubted, ..Default::default() };
    Ok(match result {
        Ok(Fetched::Doubted { head, values: None }) => {
            fb::FetchedArgs { result: 2, head: Some(fields::put_head(builder, head, revision)?), ..base }
        }
        Ok(Fetched::Doubted { head, values: Some(values) }) => {
            let siblings = Siblings { head: head.clone(), values: values.clone() };
            fb::FetchedArgs { result: 3, head: Some(fields::put_siblings(builder, &siblings, revision)?), ..base }
        }
        Ok(Fetched::Nothing) => fb::FetchedArgs { result: 1, ..base },
        Ok(Fetched::Head(head)) => {
            fb::FetchedArgs { result: 2, head: Some(fields::put_head(builder, head, revision)?), ..base }
        }
        Ok(Fetched::Full(siblings)) => {
            fb::FetchedArgs { result: 3, head: Some(fields::put_siblings(builder, siblings, revision)?), ..base }
        }
        Err(refusal) => fb::FetchedArgs { result: 4, refusal: put_refusal(*refusal, revision), ..base },
    })
}
/// What a replica has whose disk may have lost some of it.
fn doubted(found: Fetched) -> Fetched {
    match found {
        Fetched::Nothing => Fetched::Doubted { head: Head::default(), values: Some(Values::new()) },
        Fetched::Head(head) => Fetched::Doubted { head, values: None },
        Fetched::Full(Siblings { head, values }) => Fetched::Doubted { head, values: Some(values) },
        known @ Fetched::Doubted { .. } => known,
    }
}
fn fetched_values(result: &Result<Fetched, Refusal>, revision: u16) -> &[Bytes] {
    match result {
        Ok(Fetched::Doubted { .. }) if revision < 2 => &[],
        Ok(Fetched::Full(siblings)) => &siblings.values,
        Ok(Fetched::Doubted { values: Some(values), .. }) => values,
        Ok(Fetched::Nothing | Fetched::Head(_) | Fetched::Doubted { values: None, .. }) | Err(_) => &[],
    }
}
fn put_digest_entry(entry: &DigestEntry) -> fb::DigestEntry {
    fb::DigestEntry::new(entry.node.0, entry.generation, entry.heartbeat, entry.revision)
}
fn put_news(
    builder: &mut Builder,
    news: &[News],
) -> Result<WIPOffset<Vector<'static, ForwardsUOffset<fb::News<'static>>>>, WireError> {
    check_count(news.len())?;
    let news: Vec<_> = news.iter().map(|piece| put_piece_of_news(builder, piece)).collect();
    Ok(builder.create_vector(&news))
}
fn put_piece_of_news(builder: &mut Builder, news: &News) -> WIPOffset<fb::News<'static>> {
    match news {
        News::Member(member) => {
            let member = Some(fields::put_member(builder, member));
            fb::News::create(builder, &fb::NewsArgs { heartbeat: None, member })
        }
        &News::Heartbeat { node, generation, revision, heartbeat } => {
            let entry = put_digest_entry(&DigestEntry { node, generation, revision, heartbeat });
            fb::News::create(builder, &fb::NewsArgs { heartbeat: Some(&entry), member: None })
        }
    }
}
fn put_table(builder: &mut Builder, entry: &TableEntry) -> WIPOffset<fb::TableEntry<'static>> {
    let name = Some(builder.create_string(entry.name.as_str()));
    let base = fb::TableEntryArgs {
        name,
        version: entry.version,
        node: entry.node.0,
        dropped: entry.dropped,
        whole: entry.whole,
        kept: entry.kept,
        made_version: entry.made[0].version,
        made_node: entry.made[0].node.0,
        other_version: entry.made[1].version,
        other_node: entry.made[1].node.0,
        ..Default::default()
    };
    let Some(settings) = entry.settings else { return fb::TableEntry::create(builder, &base) };
    let args = fb::TableEntryArgs {
        n: settings.n,
        r: settings.r,
        w: settings.w,
        conflict: u8::from(settings.conflict == Conflict::LastWriteWins),
        sloppy: settings.sloppy,
        durability: u8::from(settings.durability == Durability::Interval),
        ..base
    };
    fb::TableEntry::create(builder, &args)
}
fn put_nodes(builder: &mut Builder, nodes: &[NodeId]) -> Result<WIPOffset<Vector<'static, u64>>, WireError> {
    check_count(nodes.len())?;
    Ok(builder.create_vector_from_iter(nodes.iter().map(|n| n.0)))
}
fn check_count(count: usize) -> Result<(), WireError> {
    if count <= MEMBERS_MAX { Ok(()) } else { Err(WireError::Unsendable("more nodes than a cluster may have")) }
}

// ---- decode ----------------------------------------------------------------------------------------------------

/// The message of a frame, completely checked. `sent`: when that was, by the own clock, as [`super::Age`] knows. The
/// deadline is `sent` plus the time that the frame says was left then, at most `REQUEST_TIMEOUT_MAX`. A HELLO is not a
/// message: [`decode_peer_hello`].
pub fn decode_peer(frame: &Frame, sent: Instant, trust: Trust) -> Result<Envelope, WireError> {
    let deadline = frame.header().deadline(sent);
    let (route, message) = take_message(frame, deadline, trust)?;
    Ok(Envelope {
        from: fields::unpack_address(route.from()),
        to: fields::unpack_address(route.to()),
        exchange: frame.exchange(),
        deadline,
        message,
    })
}

/// What to answer to a message of this kind that cannot be read: nothing was done. `None` where no answer is expected.
pub fn answer_unread(kind: Kind) -> Option<Message> {
    match kind {
        Kind::Forward => {
            let detail = "the node that the request was passed on to cannot read it";
            Some(Message::Forwarded(Err(Failure::new(ErrorCode::Internal, Outcome::NotApplied, detail))))
        }
        Kind::Replicate => Some(Message::Replicated(Err(Refusal::Failed))),
        Kind::Fetch => Some(Message::Fetched(Err(Refusal::Failed))),
        Kind::Sums => Some(Message::Summed(Err(Refusal::Failed))),
        Kind::Keys => Some(Message::Keyed(Err(Refusal::Failed))),
        Kind::Unknown
        | Kind::ClientHello
        | Kind::Request
        | Kind::RingRequest
        | Kind::Welcome
        | Kind::Response
        | Kind::RingResponse
        | Kind::Goodbye
        | Kind::PeerHello
        | Kind::Forwarded
        | Kind::Replicated
        | Kind::Fetched
        | Kind::GossipDigest
        | Kind::GossipDelta
        | Kind::GossipNews
        | Kind::View
        | Kind::Parting
        | Kind::Tables
        | Kind::TableNews
        | Kind::Returned
        | Kind::Remembered
        | Kind::Clock
        | Kind::Summed
        | Kind::Keyed
        | Kind::Agreed
        | Kind::Reference => None,
    }
}

fn take_message(frame: &Frame, deadline: Instant, trust: Trust) -> Result<(&fb::Route, Message), WireError> {
    let mut body = frame.body();
    let (route, message) = match frame.kind() {
        Kind::Forward => {
            let table = frame.root::<fb::Forward>()?;
            let request = fields::take_request(frame, table.request(), deadline, trust)?;
            let word = take_word(table.table_version(), table.table_node(), table.table_dropped(), table.table_kept());
            let stamp = table.stamp().map(fields::take_stamp).transpose()?;
            return Ok((table.route(), Message::Forward { request, hops: table.hops(), word, stamp }));
        }
        Kind::Forwarded => {
            let table = frame.root::<fb::Forwarded>()?;
            let response = fields::take_response(frame, table.response(), trust)?;
            return Ok((table.route(), Message::Forwarded(response)));
        }
        Kind::Replicate => {
            let table = frame.root::<fb::Replicate>()?;
            let key = fields::take_key(frame, table.key())?;
            let siblings = fields::take_siblings(Some(table.head()), &mut body, trust)?;
            let word = take_word(table.table_version(), table.table_node(), table.epoch(), table.table_kept());
            let (purpose, fresh) = (take_purpose(table)?, table.fresh().checked_sub(1));
            if fresh.is_some_and(|entry| usize::from(entry) >= siblings.head.entries.len()) {
                return Err(WireError::Field("fresh"));
            }
            (table.route(), Message::Replicate { key, siblings, purpose, word, fresh })
        }
        Kind::Replicated => {
            let table = frame.root::<fb::Replicated>()?;
            let result = match table.refusal() {
                0 => Ok(()),
                number => Err(take_refusal(number, table.known())?),
            };
            (table.route(), Message::Replicated(result))
        }
        Kind::Fetch => {
            let table = frame.root::<fb::Fetch>()?;
            let key = fields::take_key(frame, table.key())?;
            let word = take_word(table.table_version(), table.table_node(), table.epoch(), table.table_kept());
            (table.route(), Message::Fetch { key, depth: take_depth(table.depth())?, word })
        }
        Kind::Fetched => {
            let table = frame.root::<fb::Fetched>()?;
            let result = match table.result() {
                1 => Ok(Fetched::Nothing),
                2 => Ok(Fetched::Head(fields::take_head(table.head())?)),
                3 => Ok(Fetched::Full(fields::take_siblings(table.head(), &mut body, trust)?)),
                4 => Err(take_refusal(table.refusal(), 0)?),
                _ => return Err(WireError::Field("result")),
            };
            let result = result.map(|found| if table.doubted() { doubted(found) } else { found });
            (table.route(), Message::Fetched(result))
        }
        Kind::GossipDigest => {
            let table = frame.root::<fb::GossipDigest>()?;
            limit_count(table.entries().len())?;
            let entries = table.entries().iter().map(take_digest_entry).collect::<Result<_, _>>()?;
            (table.route(), Message::GossipDigest { cluster: ClusterId(table.cluster()), entries })
        }
        Kind::GossipDelta => {
            let table = frame.root::<fb::GossipDelta>()?;
            let (news, wanted) = (take_news(table.news())?, take_nodes(table.wanted())?);
            let group = table.group().map(take_nodes).transpose()?.unwrap_or_default();
            (table.route(), Message::GossipDelta { cluster: ClusterId(table.cluster()), news, wanted, group })
        }
        Kind::GossipNews => {
            let table = frame.root::<fb::GossipNews>()?;
            let (cluster, news) = (ClusterId(table.cluster()), take_news(table.news())?);
            (table.route(), Message::GossipNews { cluster, news })
        }
        Kind::Returned => {
            let table = frame.root::<fb::Returned>()?;
            let (cluster, member) = (ClusterId(table.cluster()), fields::take_member(table.member())?);
            (table.route(), Message::Returned { cluster, member })
        }
        Kind::Remembered => {
            let table = frame.root::<fb::Remembered>()?;
            let entry = table.entry().map(take_digest_entry).transpose()?;
            (table.route(), Message::Remembered { cluster: ClusterId(table.cluster()), entry })
        }
        Kind::Parting => {
            let table = frame.root::<fb::Parting>()?;
            (table.route(), Message::Parting { generation: fields::take_generation(table.generation())? })
        }
        Kind::View => {
            let table = frame.root::<fb::View>()?;
            let (members, avoided) = (fields::take_members(table.members())?, take_nodes(table.avoided())?);
            (table.route(), Message::View { members, avoided, standing: take_standing(table)? })
        }
        Kind::Tables => {
            let table = frame.root::<fb::Tables>()?;
            if table.news().len() > TABLE_ENTRIES_MAX {
                return Err(WireError::Field("tables"));
            }
            let news = table.news().iter().map(take_table).collect::<Result<_, _>>()?;
            let certainty = match table.certainty() {
                0 => Certainty::Sure,
                1 => Certainty::Unheard,
                2 => Certainty::Lost,
                _ => return Err(WireError::Field("certainty")),
            };
            let words = Words { digest: table.digest(), news, wanted: table.wanted(), certainty };
            (table.route(), Message::Tables(words))
        }
        Kind::TableNews => {
            let table = frame.root::<fb::TableNews>()?;
            (table.route(), Message::TableNews(take_table(table.table())?))
        }
        Kind::Clock => {
            let table = frame.root::<fb::Clock>()?;
            (table.route(), Message::Clock { asked: Instant(table.asked()), wall: table.wall() })
        }
        Kind::Reference => {
            let table = frame.root::<fb::Reference>()?;
            (table.route(), Message::Reference { earliest: table.earliest(), latest: table.latest() })
        }
        Kind::Sums => {
            let table = frame.root::<fb::Sums>()?;
            let (session, part, shift) = (table.session(), take_part(table.part())?, take_shift(table.shift())?);
            if part.span.block_count(shift) > SUMS_MAX as u64 {
                return Err(WireError::Field("shift"));
            }
            (table.route(), Message::Sums { session, part, shift, own: table.own().map(take_sum) })
        }
        Kind::Summed => {
            let table = frame.root::<fb::Summed>()?;
            let result = match (table.refusal(), table.sums()) {
                (0, Some(sums)) if sums.len() <= SUMS_MAX => {
                    Ok(Summed { shift: take_shift(table.shift())?, sums: sums.iter().map(take_sum).collect() })
                }
                (0, _) => return Err(WireError::Field("sums")),
                (number, _) => Err(take_refusal(number, 0)?),
            };
            (table.route(), Message::Summed(result))
        }
        Kind::Keys => {
            let table = frame.root::<fb::Keys>()?;
            let after = table.after().map(|key| fields::take_key(frame, key)).transpose()?;
            (table.route(), Message::Keys { part: take_part(table.part())?, after })
        }
        Kind::Keyed => {
            let table = frame.root::<fb::Keyed>()?;
            let result = match (table.refusal(), table.keys()) {
                (0, Some(keys)) if keys.len() <= KEYS_LISTED_MAX && (!keys.is_empty() || !table.more()) => {
                    let heads = keys.iter().map(take_listed).collect::<Result<_, WireError>>()?;
                    Ok(Listed { heads, more: table.more() })
                }
                (0, _) => return Err(WireError::Field("keys")),
                (number, _) => Err(take_refusal(number, 0)?),
            };
            (table.route(), Message::Keyed(result))
        }
        Kind::Agreed => {
            let table = frame.root::<fb::Agreed>()?;
            (table.route(), Message::Agreed { session: table.session(), part: take_part(table.part())? })
        }
        Kind::Unknown => return Err(WireError::UnknownKind(frame.header().number)),
        Kind::ClientHello
        | Kind::Request
        | Kind::RingRequest
        | Kind::Welcome
        | Kind::Response
        | Kind::RingResponse
        | Kind::Goodbye
        | Kind::PeerHello => return Err(WireError::UnexpectedKind(frame.kind() as u16)),
    };
    body.finish()?;
    Ok((route, message))
}

fn take_standing(table: fb::View<'_>) -> Result<NodeStanding, WireError> {
    let take = |s: fb::Stranger<'_>| {
        let at = SocketAddr::new(fields::take_ip(s.ip().bytes())?, s.port());
        Ok(Stranger { node: NodeId(s.node()), cluster: ClusterId(s.cluster()), at })
    };
    let strangers = match table.strangers() {
        Some(strangers) if strangers.len() > STRANGERS_TOLD_MAX => return Err(WireError::Field("strangers")),
        Some(strangers) => strangers.iter().map(take).collect::<Result<_, WireError>>()?,
        None => Vec::new(),
    };
    let parting = table.parting().map(take_nodes).transpose()?.unwrap_or_default();
    let (cluster, settled, signs) = (ClusterId(table.cluster()), table.settled(), table.signs());
    Ok(NodeStanding { cluster, settled, signs, strangers, parting })
}
fn take_purpose(table: fb::Replicate<'_>) -> Result<Purpose, WireError> {
    Ok(match table.purpose() {
        1 => Purpose::Write,
        2 => Purpose::Hint { owner: fields::take_node(table.owner())? },
        3 => Purpose::Repair,
        4 => Purpose::Replay,
        _ => return Err(WireError::Field("purpose")),
    })
}
fn take_depth(number: u8) -> Result<Depth, WireError> {
    match number {
        1 => Ok(Depth::Head),
        2 => Ok(Depth::Full),
        _ => Err(WireError::Field("depth")),
    }
}
fn take_refusal(number: u8, known: u64) -> Result<Refusal, WireError> {
    use Refusal::*;
    let refusals =
        [Overloaded, DiskFull, Damaged, Failed, NotMine, Expired, ClockAhead, KnownDot(known), ClockBehind, NotYet];
    refusals.into_iter().find(|r| r.number() == number).ok_or(WireError::Field("refusal"))
}
fn take_digest_entry(entry: &fb::DigestEntry) -> Result<DigestEntry, WireError> {
    Ok(DigestEntry {
        node: fields::take_node(entry.node())?,
        generation: fields::take_generation(entry.generation())?,
        revision: entry.revision(),
        heartbeat: entry.heartbeat(),
    })
}
fn take_news(news: Vector<'_, ForwardsUOffset<fb::News<'_>>>) -> Result<Vec<News>, WireError> {
    limit_count(news.len())?;
    let take = |piece: fb::News<'_>| match (piece.heartbeat(), piece.member()) {
        (Some(entry), None) => {
            let DigestEntry { node, generation, revision, heartbeat } = take_digest_entry(entry)?;
            Ok(News::Heartbeat { node, generation, revision, heartbeat })
        }
        (None, Some(member)) => Ok(News::Member(fields::take_member(member)?)),
        (Some(_), Some(_)) | (None, None) => Err(WireError::Field("news")),
    };
    news.iter().map(take).collect()
}
fn take_table(entry: fb::TableEntry<'_>) -> Result<TableEntry, WireError> {
    let name: TableName = entry.name().parse().map_err(|_| WireError::Field("a table's name"))?;
    let settings = TableSettings {
        n: entry.n(),
        r: entry.r(),
        w: entry.w(),
        conflict: match entry.conflict() {
            0 => Conflict::Siblings,
            1 => Conflict::LastWriteWins,
            _ => return Err(WireError::Field("conflict")),
        },
        sloppy: entry.sloppy(),
        durability: match entry.durability() {
            0 => Durability::Sync,
            1 => Durability::Interval,
            _ => return Err(WireError::Field("durability")),
        },
    };
    let settings = (settings.n > 0).then_some(settings);
    if settings.is_some_and(|s| s.check().is_err()) {
        return Err(WireError::Field("a table's settings"));
    }
    let made = [
        Making { version: entry.made_version(), node: NodeId(entry.made_node()) },
        Making { version: entry.other_version(), node: NodeId(entry.other_node()) },
    ];
    if made[0] < made[1] {
        return Err(WireError::Field("a table's makings"));
    }
    let (mut whole, mut kept) = (entry.whole(), entry.kept());
    if made[0].version == 0 {
        // As it is read from a record of before makings were noted.
        whole = whole.max(entry.dropped());
        if settings.is_some_and(|settings| settings.conflict == Conflict::Siblings) {
            kept = kept.max(entry.version());
        }
    }
    Ok(TableEntry {
        name,
        version: entry.version(),
        node: fields::take_node(entry.node())?,
        dropped: entry.dropped(),
        whole,
        kept,
        made,
        settings,
    })
}
/// The version as it is sent: 0 is what those send that do not know of it.
fn put_version(word: TableWord) -> u64 {
    if word.is_said() { word.version + 1 } else { 0 }
}
fn take_word(version: u64, node: u64, dropped: u64, kept: u64) -> TableWord {
    let version = version.checked_sub(1).unwrap_or(TableWord::UNSAID);
    TableWord { version, node: NodeId(node), dropped, kept }
}
fn take_nodes(nodes: Vector<'_, u64>) -> Result<Vec<NodeId>, WireError> {
    limit_count(nodes.len())?;
    nodes.iter().map(fields::take_node).collect()
}
fn limit_count(count: usize) -> Result<(), WireError> {
    if count <= MEMBERS_MAX { Ok(()) } else { Err(WireError::Field("more nodes than a cluster may have")) }
}
