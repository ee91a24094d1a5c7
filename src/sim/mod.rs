//! THE VIRTUAL WORLD: a whole cluster in one thread, from one seed.
//!
//! The driver, the protocol and the engine are those of production; network, disks and clocks are made here. The same
//! seed gives the same run, event for event: [`trace::Trace`] hashes every delivery, answer and fault.
//!
//! A run ([`run::run`]) forms a cluster on a sound network, loads it with clients under faults, ends all faults, and
//! then asks for everything that was promised. What a run is like, [`plan::Plan`] draws from its seed. The clients
//! ([`workload`]) keep a history, which [`checker`] judges. [`coverage`] counts which faults have struck which states.
//!
//! The first phase is about safety: whatever is acknowledged, refused or shown is held against the history. The second
//! is about liveness: every fault ends, and within bounded virtual time all nodes are up and see each other, hints are
//! delivered, replicas are equal. Until anti-entropy exists a named step of that phase, *reading all keys*, makes equal
//! what a crash has kept hints from making equal.
//!
//! A disk may be lost as a whole: a node of some runs comes back with an empty one that still bears its name, or with
//! an older state of its own; no more nodes than leave a copy of each acknowledged write. Not simulated yet: a node
//! that comes back under another name, members that join or leave under load.
//!
//! What a judge lets pass since a fault explains it is counted, by name ([`excuses`]).

mod availability;
pub mod checker;
pub mod clock;
pub mod cluster;
pub mod command;
pub mod counts;
pub mod coverage;
pub mod disk;
pub mod excuses;
pub mod executor;
pub mod faults;
pub mod gossip;
mod kept;
mod links;
mod looks;
pub mod network;
pub mod operator;
mod outsider;
pub mod plan;
pub mod planted;
pub mod prng;
pub mod run;
mod sockets;
mod strange;
pub mod trace;
pub mod workload;
pub mod world;

pub use command::{CommandOptions, command};
