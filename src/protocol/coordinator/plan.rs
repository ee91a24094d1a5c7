//! Who takes part in one request, as the ring and the health of the moment say.

use crate::types::{Address, Conflict, Consistency, Failure, Level, NodeId, TableWord};
use smallvec::SmallVec;

/// One home replica of the key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Home {
    pub address: Address,
    pub healthy: bool,
}

/// The participants of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Replicas that the table wants of a key.
    pub n: usize,
    /// The preference list: the first `n` nodes clockwise, fewer when the cluster has fewer.
    pub homes: SmallVec<[Home; 4]>,
    /// Healthy nodes after them, in order, without this one: they stand in for absent homes.
    pub spares: SmallVec<[Address; 4]>,
    /// Whether stand-ins count.
    pub sloppy: bool,
    /// Answers wanted: R or W.
    pub needed: usize,
    /// How conflicts of the key's table end.
    pub conflict: Conflict,
    /// What this shard goes by of the key's table.
    pub word: TableWord,
    /// No home replica can be reached: this node coordinates in the place of the first of them. Its copy stays after
    /// the homes have it: a later dot of this shard covers the one in it, and a copy without it would lose what others
    /// hold.
    pub stands_in: bool,
}

impl Plan {
    pub fn home(&self, node: NodeId) -> Option<&Home> {
        self.homes.iter().find(|h| h.address.node == node)
    }
    /// Home replicas to talk to.
    pub fn healthy(&self) -> impl Iterator<Item = Address> {
        self.homes.iter().filter(|h| h.healthy).map(|h| h.address)
    }
    /// How many could answer.
    pub fn reachable(&self) -> usize {
        let healthy = self.healthy().count() + usize::from(self.stands_in);
        let absent = self.homes.len() - healthy;
        healthy + if self.sloppy { absent.min(self.spares.len()) } else { 0 }
    }
}

/// Answers wanted of `homes` replicas (the cluster may have fewer nodes than the table's `n`).
///
/// A table's own setting is lowered to what the cluster has; a count that the client names is not, but may not exceed
/// `n`.
pub fn needed(consistency: Consistency, table: usize, n: usize, homes: usize) -> Result<usize, Failure> {
    match consistency.level {
        None => Ok(table.min(homes).max(1)),
        Some(Level::Count(0)) => Err(Failure::bad_request("at least one replica must answer")),
        Some(Level::Count(c)) if usize::from(c) > n => {
            Err(Failure::bad_request(format!("{c} answers are wanted, but a key has {n} replicas")))
        }
        Some(level) => Ok(level.needed(homes).max(1)),
    }
}
