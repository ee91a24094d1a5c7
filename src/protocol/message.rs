//! The verbs: every message between shards and every message of the client protocol, as plain enums.
//!
//! `wire/` turns them into frames and back; nothing else knows flatbuffers. A deadline is a local [`Instant`] on both
//! sides: the frame carries what is left of it.

use super::versions::{Context, Dot, Head, Siblings, Values};
use crate::{
    limits::LONG_FRAME_BYTES,
    types::{
        Address, ClusterId, Consistency, Failure, Instant, Key, Member, NodeId, Stranger, TableEntry, TableWord, Value,
        WriteId,
    },
};
use std::net::IpAddr;

/// A client's request in hand, by the number that the world gave it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientToken(pub u64);

// ---- what a client asks ----------------------------------------------------------------------------------------

/// One operation on one key, from a client or forwarded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    pub key: Key,
    pub operation: Operation,
    pub consistency: Consistency,
    /// Answered by then, whatever happens.
    pub deadline: Instant,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    /// What is answered covers `context`: whoever has it has seen that much before.
    Get { context: Option<Context> },
    /// A sibling that supersedes what `context` covers; no context: concurrent with all there is.
    Put { context: Option<Context>, value: Value, write_id: WriteId },
    /// Drops what `context` covers; no context: what the coordinator has seen.
    Delete { context: Option<Context>, write_id: WriteId },
}
impl Operation {
    /// Bytes that the operation keeps in memory while it runs.
    pub fn bytes(&self) -> usize {
        match self {
            Operation::Put { value, .. } => value.bytes.len(),
            Operation::Get { .. } | Operation::Delete { .. } => 0,
        }
    }
    pub fn is_write(&self) -> bool {
        !matches!(self, Operation::Get { .. })
    }
    /// The identity of a write.
    pub fn write_id(&self) -> Option<WriteId> {
        match self {
            Operation::Get { .. } => None,
            Operation::Put { write_id, .. } | Operation::Delete { write_id, .. } => Some(*write_id),
        }
    }
}

/// The answer to a [`Request`].
pub type Response = Result<Answer, Failure>;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// What the key holds: no entries and an empty clock (never written), no entries and a clock (deleted), one value,
    /// or siblings.
    Got(Siblings),
    /// The context of what was written: it covers the new value and all that it supersedes.
    Written(Context),
}

// ---- between shards --------------------------------------------------------------------------------------------

/// A message on its way. `exchange` pairs a reply with its request: the asker's own number, echoed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Envelope {
    pub from: Address,
    pub to: Address,
    pub exchange: u64,
    /// After this nobody waits for the work: it is dropped.
    pub deadline: Instant,
    pub message: Message,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Coordinate this for me. Only a shard that owns the key coordinates; it never forwards again within a node
    /// boundary more than once (`hops`).
    ///
    /// `stamp`: where the last write wins, that of the node that took the request from its client. The write is the
    /// same event then, however often and late it is passed on.
    Forward {
        request: Request,
        hops: u8,
        /// What the sender goes by of the key's table.
        word: TableWord,
        stamp: Option<Dot>,
    },
    Forwarded(Response),

    /// Merge this state of a key into yours and make it durable.
    Replicate {
        key: Key,
        siblings: Siblings,
        purpose: Purpose,
        /// What the sender goes by of the key's table, and the drop that the state comes after.
        word: TableWord,
        /// Which of the entries has the dot that the sender minted for this very write.
        fresh: Option<u16>,
    },
    Replicated(Result<(), Refusal>),

    /// Tell me what you have of a key.
    Fetch {
        key: Key,
        depth: Depth,
        /// As of a state that is sent.
        word: TableWord,
    },
    Fetched(Result<Fetched, Refusal>),

    /// In the place of any of these answers: nothing was done, for there is newer word of the key's table.
    TableNews(TableEntry),

    /// Gossip, first move: what I know of everybody, in short.
    GossipDigest {
        cluster: ClusterId,
        entries: Vec<DigestEntry>,
    },
    /// Second move: what you lack, and whom I want to hear of.
    GossipDelta {
        cluster: ClusterId,
        news: Vec<News>,
        wanted: Vec<NodeId>,
        /// First words of a node without a cluster: itself and those who answer at all of its seeds; empty until all
        /// have.
        group: Vec<NodeId>,
    },
    /// Third move: what you wanted.
    GossipNews {
        cluster: ClusterId,
        news: Vec<News>,
    },

    /// This node has started again, and here is its entry: what did you know of it?
    Returned {
        cluster: ClusterId,
        member: Member,
    },
    /// So much, before it said so.
    Remembered {
        cluster: ClusterId,
        entry: Option<DigestEntry>,
    },

    /// Between the shards of one node. From shard 0: the member list, empty if it is the one sent last, and whom to
    /// route around.
    View {
        members: Vec<Member>,
        avoided: Vec<NodeId>,
        standing: NodeStanding,
    },

    /// What time is it with you? Asked with the own clock, and answered with that and the time of the wall clock.
    Clock {
        asked: Instant,
        /// Nanoseconds since 1970. `None`: a question.
        wall: Option<u64>,
    },
    /// From shard 0 to its siblings on the same node: what other nodes' clocks show more than the own monotonic one, in
    /// nanoseconds, as far as most of them agree.
    Reference {
        earliest: i64,
        latest: i64,
    },

    /// The tables, from any shard to any other: how its whole registry hashes, what it has to tell, and whether it
    /// wants to hear what the other knows better.
    Tables(Words),
}

impl Message {
    /// Bytes of values that the message keeps in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Message::Forward { request, .. } => request.operation.bytes(),
            Message::Forwarded(Ok(Answer::Got(siblings)))
            | Message::Replicate { siblings, .. }
            | Message::Fetched(Ok(Fetched::Full(siblings))) => siblings.head.value_bytes(),
            Message::Fetched(Ok(Fetched::Doubted { head, values: Some(_) })) => head.value_bytes(),
            _ => 0,
        }
    }

    /// What counts of the words of a node that is no member: gossip, as far as it is about that node, where it is.
    pub fn of_guest(mut self, node: NodeId, ip: IpAddr) -> Option<Message> {
        match &mut self {
            Message::GossipDigest { entries, .. } => entries.retain(|entry| entry.node == node),
            Message::GossipDelta { news, .. } | Message::GossipNews { news, .. } => {
                news.retain(|piece| match piece {
                    News::Member(member) => member.id == node && member.ip == ip,
                    News::Heartbeat { node: of, .. } => *of == node,
                });
            }
            // Asked again after the gossip that makes the asker a member.
            Message::Forward { .. }
            | Message::Forwarded(_)
            | Message::Replicate { .. }
            | Message::Replicated(_)
            | Message::Fetch { .. }
            | Message::Fetched(_)
            | Message::TableNews(_)
            | Message::Returned { .. }
            | Message::Remembered { .. }
            | Message::View { .. }
            | Message::Clock { .. }
            | Message::Reference { .. }
            | Message::Tables(_) => return None,
        }
        Some(self)
    }
    /// The connection between two cores that it takes.
    pub fn lane(&self) -> Lane {
        let heads = |head: &Head| head.entries.len() * ENTRY_BYTES + head.clock.len() * DOT_BYTES;
        let rest = match self {
            Message::Forwarded(Ok(Answer::Got(siblings)))
            | Message::Replicate { siblings, .. }
            | Message::Fetched(Ok(Fetched::Full(siblings))) => heads(&siblings.head),
            Message::Fetched(Ok(Fetched::Head(head) | Fetched::Doubted { head, .. })) => heads(head),
            Message::GossipDelta { news, .. } | Message::GossipNews { news, .. } => news.iter().map(News::bytes).sum(),
            _ => 0,
        };
        Lane::of(self.bytes() + rest)
    }
}

/// Bytes of an entry of a head, and of a dot of its clock, in a frame.
const ENTRY_BYTES: usize = 64;
const DOT_BYTES: usize = 16;

/// Two cores speak over two connections, so that what is long delays nobody. Each may fail by itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Lane {
    Short,
    /// For more than [`LONG_FRAME_BYTES`].
    Long,
}
impl Lane {
    pub const ALL: [Lane; 2] = [Lane::Short, Lane::Long];
    pub fn of(bytes: usize) -> Lane {
        if bytes > LONG_FRAME_BYTES { Lane::Long } else { Lane::Short }
    }
}

/// Why a state is sent to a replica.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Purpose {
    /// A client's write, to a home replica.
    Write,
    /// A client's write for an absent home replica: keep it as a hint for that owner.
    Hint { owner: NodeId },
    /// Read repair.
    Repair,
    /// A hint delivered to its owner.
    Replay,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Depth {
    Head,
    Full,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fetched {
    Nothing,
    Head(Head),
    Full(Siblings),
    /// What a replica holds whose disk may have lost records of the key: it may lack what it acknowledged, so it counts
    /// for nothing until all others have answered. The head alone, or with all values.
    Doubted {
        head: Head,
        values: Option<Values>,
    },
}

/// Why a replica did not do what it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Refusal {
    /// Too much in hand; nothing was done.
    Overloaded = 1,
    DiskFull = 2,
    /// The stored record failed its checksum.
    Damaged = 3,
    /// The shard's storage has failed.
    Failed = 4,
    /// It does not serve this key, or is not ready.
    NotMine = 5,
    /// The work was dropped because its deadline had passed.
    Expired = 6,
    /// The write's stamp is too far ahead of the replica's clock.
    ClockAhead = 7,
    /// The fresh dot of a write is no news to the replica, which has no such write: its sender has minted it before,
    /// and has forgotten that. With it goes the highest counter of that actor that the replica knows of the key, or
    /// [`DOT_OF_ANOTHER_WRITE`].
    KnownDot(u64) = 8,
    /// The write's stamp is of long ago, or far behind that of what is stored: it has lost, and does not count as
    /// stored.
    ClockBehind = 10,
}
/// The replica knows the dot itself as that of another write.
pub const DOT_OF_ANOTHER_WRITE: u64 = u64::MAX;
impl Refusal {
    /// Of the peer protocol.
    pub fn number(self) -> u8 {
        match self {
            Refusal::Overloaded => 1,
            Refusal::DiskFull => 2,
            Refusal::Damaged => 3,
            Refusal::Failed => 4,
            Refusal::NotMine => 5,
            Refusal::Expired => 6,
            Refusal::ClockAhead => 7,
            Refusal::KnownDot(_) => 8,
            Refusal::ClockBehind => 10,
        }
    }
}

/// How a node stands, as its shards tell each other.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeStanding {
    pub cluster: ClusterId,
    /// Shard 0 says: the node knows its cluster and its own past well enough to serve.
    pub settled: bool,
    /// How often any shard has met a sign that the node's disk is an older state or a copy.
    pub signs: u32,
    /// Nodes of other clusters that shard 0 has met.
    pub strangers: Vec<Stranger>,
}

/// How much a shard's word on tables is worth.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Certainty {
    /// Another node has spoken since the start, or there is none.
    Sure = 0,
    /// The record is whole; what happened since it was written is not known.
    Unheard = 1,
    /// There is no record yet, or what it said may be lost.
    Lost = 2,
}

/// What one shard says to another about tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Words {
    /// Of its whole registry.
    pub digest: u64,
    pub news: Vec<TableEntry>,
    /// Whether it wants to hear what the other knows better.
    pub wanted: bool,
    pub certainty: Certainty,
}

/// A member in a digest: how new the sender's knowledge of it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DigestEntry {
    pub node: NodeId,
    pub generation: u64,
    pub revision: u32,
    pub heartbeat: u64,
}

/// Something newer about a member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum News {
    /// Only its heartbeat moved.
    Heartbeat {
        node: NodeId,
        generation: u64,
        revision: u32,
        heartbeat: u64,
    },
    Member(Member),
}
impl News {
    /// Bytes in a frame, about.
    fn bytes(&self) -> usize {
        match self {
            News::Heartbeat { .. } => 4 * DOT_BYTES,
            News::Member(member) => ENTRY_BYTES + member.tokens.len() * size_of::<u64>(),
        }
    }
}

// ---- the client protocol ---------------------------------------------------------------------------------------

/// A client's first frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Highest protocol revision that the sender speaks; the lesser of the two is used.
    pub revision: u16,
    /// Feature bits; the intersection is used.
    pub features: u64,
    /// The sender's clock, as its frames carry it; not told before revision 2.
    pub clock: Option<u32>,
}

/// The server's HELLO.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    pub revision: u16,
    pub features: u64,
    /// Who answers: node and shard.
    pub address: Address,
    pub value_bytes_max: u32,
    pub frame_bytes_max: u32,
    pub ring_digest: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientMessage {
    Hello(Hello),
    Request(Request),
    /// Send me the member list.
    Ring,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServerMessage {
    Welcome(Welcome),
    /// `ring_digest`: of the server's ring; differs from the client's when the client should fetch it again.
    Response {
        response: Response,
        ring_digest: u64,
    },
    Ring {
        members: Vec<Member>,
        digest: u64,
    },
    /// The connection is closed after this.
    Goodbye {
        reason: String,
    },
}
