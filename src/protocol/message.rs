//! The verbs: every message between shards and every message of the client protocol, as plain enums.
//!
//! `wire/` turns them into frames and back; nothing else knows flatbuffers. A deadline is a local [`Instant`] on both
//! sides: the frame carries what is left of it.

use super::versions::{Context, Dot, Head, Siblings, Values};
use crate::{
    limits::LONG_FRAME_BYTES,
    types::{
        Address, ClusterId, Consistency, ErrorCode, Failure, Instant, Key, Member, NodeId, Outcome, Span, Stranger,
        TableEntry, TableWord, Value, WriteId,
    },
};
use std::{net::IpAddr, ops::Add};

/// A client's request in hand, by the number that the world gave it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientToken(pub u64);

// ---- what a client asks ----------------------------------------------------------------------------------------

/// An operation on one key, from a client or forwarded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    pub key: Key,
    pub operation: Operation,
    pub consistency: Consistency,
    /// The time by which the request is answered, whatever happens.
    pub deadline: Instant,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    /// A read. Its answer covers `context`: whoever has the answer has seen that much before.
    Get { context: Option<Context> },
    /// A write of a new sibling that supersedes what `context` covers; without a context it is concurrent with all
    /// there is.
    Put { context: Option<Context>, value: Value, write_id: WriteId },
    /// A delete of what `context` covers; without a context, of what the coordinator has seen.
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
    /// The state of the key: no entries and an empty clock (never written), no entries and a clock (deleted), one
    /// value, or siblings.
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
    /// The time after which nobody waits for the work: it is dropped then.
    pub deadline: Instant,
    pub message: Message,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// A request to coordinate, sent to a shard that owns the key: only such a shard coordinates. `hops` counts how
    /// often the request has been passed from shard to shard; after the second time it is not passed on any more.
    ///
    /// `stamp` is given where the last write wins: the stamp of the node that took the request from its client. So the
    /// write is the same event, however often and late it is passed on.
    Forward {
        request: Request,
        hops: u8,
        /// The word on the key's table that the sender goes by.
        word: TableWord,
        stamp: Option<Dot>,
    },
    Forwarded(Response),

    /// Merge this state of a key into yours and make it durable.
    Replicate {
        key: Key,
        siblings: Siblings,
        purpose: Purpose,
        /// The word on the key's table that the sender goes by, and the drop of the table that the state comes after.
        word: TableWord,
        /// The index of the entry whose dot the sender minted for this very write.
        fresh: Option<u16>,
    },
    Replicated(Result<(), Refusal>),

    /// Tell me what you have of a key.
    Fetch {
        key: Key,
        depth: Depth,
        /// The word on the key's table that the sender goes by.
        word: TableWord,
    },
    Fetched(Result<Fetched, Refusal>),

    /// An answer in the place of any of these: nothing was done, because there is newer word of the key's table.
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

    /// A question after a start, with the node's own entry: what did the other know of this node?
    Returned {
        cluster: ClusterId,
        member: Member,
    },
    /// The answer: the other's entry for that node as it was before the question came.
    Remembered {
        cluster: ClusterId,
        entry: Option<DigestEntry>,
    },

    /// The word of shard 0 of a node that is stopping, in this start of it, to those of the others: it serves for a
    /// moment still.
    Parting {
        generation: u64,
    },

    /// The member list, from shard 0 to the other shards of its node, and whom to route around; the list is empty if it
    /// is the one sent last.
    View {
        members: Vec<Member>,
        avoided: Vec<NodeId>,
        standing: NodeStanding,
    },

    /// A question for the time, with the asker's own clock; and its answer, with that and the time of the wall clock.
    Clock {
        asked: Instant,
        /// Nanoseconds since 1970. `None`: a question.
        wall: Option<u64>,
    },
    /// The time by other nodes' clocks, from shard 0 to the other shards of its node: how far they are ahead of the own
    /// monotonic clock, in nanoseconds, as far as most of them agree.
    Reference {
        earliest: i64,
        latest: i64,
    },

    /// Repair: what do the states of this part come to with you? Blocks of 2^`shift` tokens, at most
    /// [`SUMS_MAX`](crate::limits::SUMS_MAX) of them; 64: all of it as one. `session` is the asker's number, and `own`
    /// what a whole arc comes to with the asker: if that is the same, both know that they agree.
    Sums {
        session: u64,
        part: Part,
        shift: u8,
        own: Option<Sum>,
    },
    Summed(Result<Summed, Refusal>),
    /// Which keys do you have there, after this one in the order of tokens, and in which state?
    Keys {
        part: Part,
        after: Option<Key>,
    },
    Keyed(Result<Listed, Refusal>),
    /// What either of us had of this arc when the session began, both of us have now.
    Agreed {
        session: u64,
        part: Part,
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

    /// The part of a message that counts if its sender is no member: gossip, as far as it is about that node at that
    /// address. `None`: nothing of it.
    pub fn of_guest(mut self, node: NodeId, ip: IpAddr) -> Option<Message> {
        match &mut self {
            Message::GossipDigest { entries, .. } => entries.retain(|entry| entry.node == node),
            Message::GossipDelta { news, .. } | Message::GossipNews { news, .. } => {
                news.retain(|piece| match piece {
                    News::Member(member) => member.id == node && member.ip == ip,
                    News::Heartbeat { node: of, .. } => *of == node,
                });
            }
            Message::Returned { member, .. } if member.id == node && member.ip == ip => {}
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
            | Message::Parting { .. }
            | Message::View { .. }
            | Message::Clock { .. }
            | Message::Reference { .. }
            | Message::Sums { .. }
            | Message::Summed(_)
            | Message::Keys { .. }
            | Message::Keyed(_)
            | Message::Agreed { .. }
            | Message::Tables(_) => return None,
        }
        Some(self)
    }
    /// What is answered to it by a node that is stopping and begins nothing any more, if an answer is waited for.
    pub fn declined(&self) -> Option<Message> {
        match self {
            Message::Forward { .. } => {
                let detail = "the node that the request was passed on to is stopping";
                let failure = Failure::new(ErrorCode::NotReady, Outcome::NotApplied, detail);
                Some(Message::Forwarded(Err(failure)))
            }
            Message::Replicate { .. } => Some(Message::Replicated(Err(Refusal::NotMine))),
            Message::Fetch { .. } => Some(Message::Fetched(Err(Refusal::NotMine))),
            Message::Sums { .. } => Some(Message::Summed(Err(Refusal::NotMine))),
            Message::Keys { .. } => Some(Message::Keyed(Err(Refusal::NotMine))),
            Message::Summed(_)
            | Message::Keyed(_)
            | Message::Agreed { .. }
            | Message::Forwarded(_)
            | Message::Replicated(_)
            | Message::Fetched(_)
            | Message::TableNews(_)
            | Message::GossipDigest { .. }
            | Message::GossipDelta { .. }
            | Message::GossipNews { .. }
            | Message::Returned { .. }
            | Message::Remembered { .. }
            | Message::Parting { .. }
            | Message::View { .. }
            | Message::Clock { .. }
            | Message::Reference { .. }
            | Message::Tables(_) => None,
        }
    }
    /// The connection between two cores that it takes.
    pub fn lane(&self) -> Lane {
        let heads = head_bytes;
        let rest = match self {
            Message::Forwarded(Ok(Answer::Got(siblings)))
            | Message::Replicate { siblings, .. }
            | Message::Fetched(Ok(Fetched::Full(siblings))) => heads(&siblings.head),
            Message::Fetched(Ok(Fetched::Head(head) | Fetched::Doubted { head, .. })) => heads(head),
            Message::Keyed(Ok(listed)) => listed.bytes(),
            Message::GossipDelta { news, .. } | Message::GossipNews { news, .. } => news.iter().map(News::bytes).sum(),
            _ => 0,
        };
        Lane::of(self.bytes() + rest)
    }
}

/// Bytes of an entry of a head, and of a dot of its clock, in a frame.
const ENTRY_BYTES: usize = 64;
const DOT_BYTES: usize = 16;

/// Bytes of a head in a frame, about.
fn head_bytes(head: &Head) -> usize {
    head.entries.len() * ENTRY_BYTES + head.clock.len() * DOT_BYTES
}

/// Two cores speak over two connections, so that what is long delays nobody. Each may fail by itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Lane {
    Short,
    /// The connection for frames longer than [`LONG_FRAME_BYTES`].
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
    /// The state at a replica whose disk may have lost records of the key. It may lack what the replica acknowledged,
    /// so it counts for nothing until all others have answered. The head alone, or with all values.
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
    /// The replica does not serve this key, or is not ready.
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
    /// The two do not go by the same members, tables or drops: gossip comes first.
    NotYet = 20,
}
/// The replica knows the dot itself as that of another write.
pub const DOT_OF_ANOTHER_WRITE: u64 = u64::MAX;
impl Refusal {
    /// The number of the refusal in the peer protocol.
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
            Refusal::NotYet => 20,
        }
    }
}

/// A part of an arc that two of its homes compare.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Part {
    pub span: Span,
    /// Keys of tables with at least so many replicas: those that both are homes of.
    pub replicas: u8,
    /// What the sender takes for the arc and its homes.
    pub homes: u64,
    /// What the sender knows of tables, and which drops it has carried out.
    pub tables: u64,
}

/// A set of states in short: how many they are, and the sum of their hashes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sum {
    pub count: u32,
    /// Modulo 2^128.
    pub sum: u128,
}
impl Add for Sum {
    type Output = Sum;
    fn add(self, other: Sum) -> Sum {
        Sum { count: self.count.saturating_add(other.count), sum: self.sum.wrapping_add(other.sum) }
    }
}

/// The sums of all blocks that a part touches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summed {
    /// The shift that was asked for, or a greater one: nothing is known of smaller blocks.
    pub shift: u8,
    pub sums: Vec<Sum>,
}

/// Keys and heads, in the order of tokens, then of keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    pub heads: Vec<(Key, Head)>,
    /// There are others after them; at least one is listed then.
    pub more: bool,
}
impl Listed {
    /// Bytes in a frame, about.
    pub fn bytes(&self) -> usize {
        self.heads.iter().map(|(key, head)| Listed::bytes_of(key, head)).sum()
    }
    pub fn bytes_of(key: &Key, head: &Head) -> usize {
        key.as_bytes().len() + head_bytes(head) + DOT_BYTES
    }
}

/// The standing of a node, as its shards tell each other.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeStanding {
    pub cluster: ClusterId,
    /// Shard 0 says: the node knows its cluster and its own past well enough to serve.
    pub settled: bool,
    /// The number of times that any shard has met a sign that the node's disk is an older state or a copy.
    pub signs: u32,
    /// Nodes of other clusters that shard 0 has met.
    pub strangers: Vec<Stranger>,
    /// Members that are stopping, or have since they said so: others are asked first.
    pub parting: Vec<NodeId>,
}

/// The worth of a shard's word on tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Certainty {
    /// Another node has spoken since the start, or there is none.
    Sure = 0,
    /// The record is whole; what happened since it was written is not known.
    Unheard = 1,
    /// The shard has no record yet, or what its record said may be lost.
    Lost = 2,
}

/// The message of one shard to another about tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Words {
    /// The digest of the sender's whole registry.
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
    /// A heartbeat alone; nothing else has changed.
    Heartbeat {
        node: NodeId,
        generation: u64,
        revision: u32,
        heartbeat: u64,
    },
    Member(Member),
}
impl News {
    /// Bytes that the piece takes in a frame, estimated.
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
    /// The node and the shard that answer.
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
