//! THE BRAIN, pure: no async, no clock, no I/O. Time and randomness are arguments, effects are data.
//!
//! Read in the order of the `mod` lines. The machines (replica, coordinator, hints, rebuild, repair, health,
//! membership, clocks, tables) never import each other; the shard owns one of each and only routes.
#![forbid(unsafe_code)]

pub mod versions;

pub mod ring;

pub mod message;

pub mod pace;

pub mod replica;

pub mod coordinator;

pub mod hints;

pub mod rebuild;

pub mod repair;

pub mod health;

pub mod membership;

pub mod clocks;

pub mod tables;

pub mod shard;
pub mod stall;
