//! What a node is started with, after flags, environment, file and defaults have been put together by `config`.
//!
//! Plain values without a rule: the checks that need the machine (ports, directory, CPUs) are made by `boot`.

use super::probe::SyncCall;
use crate::{
    driver::identity::PortsWish,
    engine::types::{Durability, EngineOptions},
    limits,
};
use std::{net::IpAddr, net::SocketAddr, path::PathBuf, time::Duration};

/// Everything that `serve` needs to know. `None` means: what the data directory remembers, else the default.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The node's directory; made at the first start.
    pub data: PathBuf,
    /// The one address that the node binds and from which it connects to its peers. Default 127.0.0.1.
    pub ip: Option<IpAddr>,
    /// Ports that are not given are those of [`crate::types::Ports::default`].
    pub ports: PortsWish,
    /// Members to join through: their address and peer port (that of core 0); port 0: as the node's own.
    pub join: Vec<SocketAddr>,
    /// Names of such that have no address now, and why.
    pub join_unknown: Vec<String>,
    /// Form a cluster, if the node belongs to none. A first start without `join` does so anyway, after it has listened
    /// for a moment whether another cluster knows its address.
    pub bootstrap: bool,
    /// Shards, 1 to [`limits::SHARDS_MAX`]. Default: as many as before, at the first start one a CPU.
    pub shards: Option<u16>,
    /// Where shards are pinned, in turn; empty: the CPUs that the process may use.
    pub cpus: Vec<usize>,
    /// Slices of a new data directory, 1 to [`limits::SLICES_MAX`]. Default: [`limits::SLICES_MIN`] or
    /// [`limits::SLICES_PER_CPU`] for each CPU.
    pub slices: Option<u16>,
    /// Virtual nodes of a new data directory, 1 to [`limits::VNODES_MAX`].
    pub vnodes: usize,
    /// Serve without TLS on an address that is not loopback.
    pub insecure: bool,
    pub protocol: ProtocolOptions,
    /// When this node's replicas acknowledge what clients write.
    pub durability: Durability,
    /// How writes of the log are made durable; `boot` finds out.
    pub sync_call: SyncCall,
    pub engine: EngineOptions,
    /// How long an idle core keeps looking for work before it sleeps. Zero where cores are shared with others.
    pub spin_before_park: Duration,
    /// Bytes of memory that each executor's own rings may pin; the data path does not use them. At least 64 KiB.
    pub io_memory_bytes: usize,
    /// Client and HTTP connections that one core serves; more are told so and closed.
    pub connections_max: usize,
    /// Connections of other nodes that one core serves; beyond them those go that say the least.
    pub calls_max: usize,
    /// How long a stopping node goes on telling those who come late to go elsewhere, unless nobody is connected to it.
    pub drain: Duration,
}

/// Settings of the protocol; `boot` hands them to every core.
#[derive(Clone, Debug)]
pub struct ProtocolOptions {
    /// Replicas of a key, and how many of them answer a read or a write. 1 to [`limits::REPLICAS_MAX`].
    pub n: u8,
    pub r: u8,
    pub w: u8,
    /// Fallback replicas count toward W.
    pub sloppy: bool,
    /// Bytes, at most [`limits::VALUE_BYTES_CEILING`].
    pub value_bytes_max: usize,
    pub request_timeout: Duration,
    pub gossip_interval: Duration,
    pub suspect_after: Duration,
    pub down_after: Duration,
}

impl Default for ProtocolOptions {
    fn default() -> ProtocolOptions {
        ProtocolOptions {
            n: 3,
            r: 2,
            w: 2,
            sloppy: true,
            value_bytes_max: limits::VALUE_BYTES_MAX,
            request_timeout: limits::REQUEST_TIMEOUT,
            gossip_interval: limits::GOSSIP_INTERVAL,
            suspect_after: limits::SUSPECT_AFTER,
            down_after: limits::DOWN_AFTER,
        }
    }
}

impl ServeOptions {
    /// All defaults, on this data directory.
    pub fn new(data: impl Into<PathBuf>) -> ServeOptions {
        ServeOptions {
            data: data.into(),
            ip: None,
            ports: PortsWish::default(),
            join: Vec::new(),
            join_unknown: Vec::new(),
            bootstrap: false,
            shards: None,
            cpus: Vec::new(),
            slices: None,
            vnodes: limits::VNODES,
            insecure: false,
            protocol: ProtocolOptions::default(),
            durability: Durability::Sync,
            sync_call: SyncCall::default(),
            engine: EngineOptions::default(),
            spin_before_park: Duration::ZERO,
            io_memory_bytes: 64 * limits::KIB,
            connections_max: limits::CONNECTIONS_MAX,
            calls_max: limits::CALLS_MAX,
            drain: limits::DRAIN,
        }
    }
}
