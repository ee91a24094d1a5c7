//! Dynarc: a Dynamo-style distributed key-value store whose unit is a CPU core, not a machine.
//!
//! Each core owns a slice of virtual-node arcs of the ring together with its own value log, memtable and SSTables on
//! io_uring. Cores, of one node or of two, talk only by flatbuffer messages, so the data path holds no lock.
//!
//! # Words
//!
//! - *Token*: the hash of a key, a place on the ring. *Arc*: the tokens between two neighbouring ones of the ring.
//! - *Slice*: a part of a node's arcs with an LSM tree of its own. *Shard*: one core and all slices that it owns.
//! - *Home*: one of the N nodes, clockwise from a key's token, that are to hold it. *Stand-in*: a node after them that
//!   takes a write for a home that is away.
//! - *Coordinator*: the shard that asks the replicas for one request and answers it.
//! - *Dot*: the name of one write: who minted it, and its number there. *Clock*: for each minter the dots that are
//!   covered up to a number. *Context*: what a client has seen of a key, a clock and single dots.
//! - *Siblings*: values of a key none of which has seen the other. *Head*: the clock of a key and the entries of its
//!   siblings, without the values. *Tombstone*: a head without entries.
//! - *Stamp*: a dot whose number is a time; where the last write wins, the greatest one wins.
//! - *Hint*: a write that a stand-in keeps for a home. *Mark*: a note that a node lacks something of a slice.
//! - *Lease*: a durable range of dots that may be minted. *Incarnation*: the name under which a slice mints; a start
//!   that cannot know its last dot takes a new one.
//! - *Life*: of a table, the time from its making to its drop. *Word*: the newest that a shard has heard of a table.
//!
//! # One idea
//!
//! A shard (all state that one core owns) is a function `(state, now, event) -> effects`. Disk, clock, another core,
//! another node and a client are neighbours that send it events. So the same code runs in two worlds: the real one
//! ([`mod@server`], on glommio and io_uring) and a virtual one ([`sim`], from a seed).
//!
//! # Reading order
//!
//! 1. [`limits`]: every bound, with its unit. [`types`]: the nouns.
//! 2. [`protocol`], the brain, pure: [`protocol::versions`] (which values are concurrent), [`protocol::ring`] (who owns
//!    a key), [`protocol::message`] (the verbs), then the machines: [`protocol::replica`] (the own copies, one write of
//!    a key at a time), [`protocol::coordinator`] (a request and its quorum), [`protocol::hints`] (writes owed),
//!    [`protocol::rebuild`] (records that the medium damaged), [`protocol::repair`] (replicas compared, for ever),
//!    [`protocol::health`] (who can be asked), [`protocol::membership`] (gossip), [`protocol::clocks`] (whose is
//!    wrong), [`protocol::tables`], and [`protocol::shard`], which routes between them.
//! 3. [`engine`], the cellar: heads in an LSM tree a slice, values in the log that made them durable.
//! 4. [`driver`], the stairs: the one loop of a core, over the two seams [`driver::world::World`] and
//!    [`engine::disk::Disk`].
//! 5. [`wire`] (bytes and messages), [`mod@http`] (HTTP and messages), [`client`] (the client library).
//! 6. [`mod@server`] and [`sim`], the two worlds; [`mod@cli`], the commands.
//!
//! # Invariants
//!
//! They are absences: protocol reads no clock; protocol awaits nothing; machines do not know each other; the shard
//! routes and decides nothing; the engine does not know what a version is; only wire knows flatbuffers; untrusted bytes
//! are verified once, at decode; only server knows glommio; nothing crosses cores but messages; every queue has a bound
//! from [`limits`]; no acknowledgement before the sync that it promises; no production line asks whether it is
//! simulated.
//!
//! # Where this differs from the first plan
//!
//! - The own copies of a shard are a machine of their own, [`protocol::replica`]: latches, dots and leases in one
//!   place, used by client writes, replication, repair and hints alike.
//! - A write's context keeps its dot beside the clock ([`protocol::versions::Context`]): a clock alone would also cover
//!   siblings that the writer never saw.
//! - A context is bound to its key and carries a checksum: one that was read for another key is refused.
//! - A head remembers the last few superseded writes by their write id, so that a retry that reaches a second
//!   coordinator late does not become a sibling of its own successor.
//! - A delete without a context is given one, that of a replica, before it is passed on: two coordinators would each
//!   drop what they have when they come to it, and the second might come to it after its answer.
//! - Records are replaced whole. When siblings survive a write they are read and rewritten with it, so a pointer into
//!   the log is never handed out to be stored again.
//! - Messages between the cores of one node are the same encoded frames as between nodes.
//! - The log has two heads, hot and cold, from one counter of sequences; files of collected segments get another life
//!   under an epoch that cannot be guessed, instead of being written with zeros first.
//! - Each core keeps a roll of its segments: a file that is missing proves nothing, so what must be there stands
//!   elsewhere. What a slice has that may have lost records counts toward no R until the other replicas have answered.
//! - What a record replaces in tables stops counting as live before it is flushed: it is looked up in the background. A
//!   segment goes as soon as none of its records is needed, so space comes back without a flush.
//! - Large values are not cut into pieces: a long frame has a connection of its own between nodes, and waits for short
//!   ones towards clients, so that it holds up nobody else.
//! - At their bound hints are not refused: a stand-in keeps what it acknowledged in its own copy and marks the slice,
//!   and marked slices are compared when the owner is back.
//! - What coordinators took apart from each other may exceed the bounds that each keeps: merged states have bounds of
//!   their own.
//! - A group of records (a table of users) is dropped by one small record a slice that hides what was written in that
//!   life of it; what was there before it was made belongs to the table `default` again.
//! - Health is that of a core and a lane of connections, not of a node: what one cut port says is about that port.
//! - A node stops in phases that its control plane leads all cores through: what one core has in hand may need the
//!   others.
//! - Of repair the comparison is there, and no purge yet: tombstones stay for ever, and sums are of whole states. How
//!   they will go is specified, and searched through, by the model in `tests/models.rs`, which mends the first plan.
//!   The answer to the first question of a session tells both sides that they agree, so most sessions are two messages.
//! - A node that is no member may gossip of itself and nothing else, until there is a key to know members by.

// Printing that fails ends a process with `println!` and its kin; `cli::output` says what becomes of it instead.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod limits;
pub mod types;

pub mod protocol;

pub mod engine;

pub mod driver;

pub mod client;
pub mod http;
pub mod wire;

#[cfg(feature = "server")]
pub mod server;
pub mod sim;

#[cfg(feature = "server")]
pub mod cli;
