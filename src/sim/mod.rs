//! THE VIRTUAL WORLD: a whole cluster in one thread, from one seed.
//!
//! The driver, the protocol and the engine are those of production; network, disks and clocks are made here. The same
//! seed gives the same run, event for event: [`trace::Trace`] hashes every delivery, answer and fault.
//!
//! A run ([`run::run`]) forms a cluster on a sound network, loads it with clients under faults, ends all faults, and
//! then asks for everything that was promised. What a run is like, [`plan::Plan`] draws from its seed. The clients
//! ([`workload`]) keep a history, which [`checker`] judges.
//!
//! Not simulated yet: wiped disks and restored backups, members that join or leave under load, bit rot on a node's
//! medium, another number of shards after a restart.

pub mod checker;
pub mod clock;
pub mod cluster;
pub mod command;
pub mod disk;
pub mod executor;
pub mod faults;
pub mod network;
pub mod plan;
pub mod prng;
pub mod run;
pub mod trace;
pub mod workload;
pub mod world;

pub use command::{CommandOptions, command};
