//! What comes into a shard, and what it wants done.

use crate::{
    protocol::{
        message::{ClientToken, Depth, Envelope, Lane, Message, Refusal, Request, Response},
        repair::sums::{Row, Summing},
        replica::{Change, Stored},
    },
    types::{Address, ClusterId, Durability, Instant, Key, Member, SliceId, Stranger, TableChange, TableName},
};
use bytes::Bytes;
use std::net::SocketAddr;

/// Everything that can happen to a shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    Request {
        client: ClientToken,
        request: Request,
    },
    /// A client of this node makes, alters or drops a table. After the deadline nothing is changed for it any more.
    TableChange {
        client: ClientToken,
        change: TableChange,
        deadline: Instant,
    },
    Message(Envelope),
    /// A connection to a core of another node works, or fails.
    PeerReachable(Address, Lane),
    PeerUnreachable(Address, Lane),
    /// The node will stop soon, and serves until then.
    Drain,
    /// A node of another cluster was met.
    Stranger(Stranger),
    /// Time has passed: look at the timers.
    Wake,
    /// The arc of this key, or all of them, are to be compared soon.
    Repair {
        key: Option<Key>,
    },
    /// The core is about to stop: nothing is begun of its own accord any more.
    Stop,
    /// Whether the disk takes no more values; told when that changes.
    Space {
        short: bool,
    },
    Loaded {
        io: u64,
        result: Result<Option<Stored>, Refusal>,
        /// The disk may have lost records of the slice: something newer may have been there.
        doubted: bool,
    },
    Stored {
        io: u64,
        result: Result<(), Refusal>,
    },
    /// Engine keys and heads, ordered.
    Scanned {
        io: u64,
        result: Result<Vec<(Bytes, Bytes)>, Refusal>,
    },
    /// What the visitor of a fold has made of all that it was shown.
    Folded {
        io: u64,
        result: Result<Vec<Row>, Refusal>,
    },
}

/// Everything that a shard can want. `io` numbers come back in the event that answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    Send(Envelope),
    SendToSeed {
        seed: SocketAddr,
        message: Message,
    },
    Reply {
        client: ClientToken,
        response: Response,
    },
    Load {
        io: u64,
        slice: SliceId,
        key: Bytes,
        depth: Depth,
    },
    /// All or nothing, as durable as is said before `Stored`.
    Store {
        io: u64,
        changes: Vec<Change>,
        durability: Durability,
    },
    /// Records and hints of the table's keys in these slices go, durably; answered by `Stored`.
    DropTable {
        io: u64,
        slices: Vec<SliceId>,
        name: TableName,
        /// Only records that were written in this life of the table or an earlier one go; `None`: all.
        life: Option<u64>,
    },
    Scan {
        io: u64,
        slice: SliceId,
        from: Bytes,
        to: Bytes,
        limit: usize,
    },
    /// Keys and heads of these ranges are shown to the visitor.
    Fold {
        io: u64,
        slice: SliceId,
        /// From, to (excluded).
        spans: Vec<(Bytes, Bytes)>,
        summing: Summing,
    },
    /// What the slice may have lost is there again: it is in doubt no longer, durably. Answered by `Stored`.
    EndDoubt {
        io: u64,
        slice: SliceId,
    },
    /// The others have changed, or this node's generation or cluster: save them for the next start. Nobody waits.
    SaveMembers {
        members: Vec<Member>,
        generation: u64,
        cluster: ClusterId,
        /// The cluster has had other members.
        company: bool,
    },
}
