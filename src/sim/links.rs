//! The connections between the cores of nodes, and what has become of each.
//!
//! As in `server/peers.rs`: each core connects to each core of another node that it speaks to, and once more for long
//! frames; a connection carries frames one way. A link is such a connection's way through the network. It can be cut or
//! clogged alone, or with all others between its two nodes.

use super::plan::SHARDS_MAX;
use crate::{
    protocol::message::{Envelope, Lane},
    types::Instant,
    wire::Age,
};

const LANES: usize = Lane::ALL.len();

/// The way from a core of one node to a core of another, by one lane.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Route {
    pub from: usize,
    pub from_shard: u16,
    pub to: usize,
    pub to_shard: u16,
    pub lane: Lane,
}
impl Route {
    /// The way of a message between two nodes. `None`: no node ever has so many cores.
    pub fn of(from: usize, to: usize, envelope: &Envelope) -> Option<Route> {
        let (from_shard, to_shard) = (envelope.from.shard.0, envelope.to.shard.0);
        let lane = envelope.message.lane();
        (from_shard.max(to_shard) < SHARDS_MAX).then_some(Route { from, from_shard, to, to_shard, lane })
    }
    /// The same in a number, for traces.
    pub fn detail(self) -> u64 {
        let shards = u64::from(self.from_shard) | u64::from(self.to_shard) << 4 | (self.lane as u64) << 8;
        self.from as u64 | (self.to as u64) << 16 | shards << 40
    }
}

/// One connection and its way.
#[derive(Clone, Copy, Default)]
pub struct Link {
    pub cut: bool,
    pub clogged_until: Instant,
    /// The connection is refused or reset; its sender tries again.
    pub broken: bool,
    /// The life of the peer that the connection was made with; 0: none has been made.
    pub peer_life: u64,
    /// What the peer knows of the sender's clock.
    pub age: Age,
}

/// What lies between two nodes, in one direction.
#[derive(Clone, Copy, Default)]
struct Way {
    cut: bool,
    clogged_until: Instant,
}

/// All links of a cluster.
pub struct Links {
    nodes: usize,
    links: Vec<Link>,
    ways: Vec<Way>,
}

const CORES: usize = SHARDS_MAX as usize;

impl Links {
    pub fn new(nodes: usize) -> Links {
        let links = nodes * nodes * CORES * CORES * LANES;
        Links { nodes, links: vec![Link::default(); links], ways: vec![Way::default(); nodes * nodes] }
    }
    fn index(&self, route: Route) -> usize {
        let Route { from, from_shard, to, to_shard, lane } = route;
        let cores = usize::from(from_shard) * CORES + usize::from(to_shard);
        ((from * self.nodes + to) * CORES * CORES + cores) * LANES + lane as usize
    }
    pub fn link(&self, route: Route) -> Link {
        self.links[self.index(route)]
    }
    pub fn link_mut(&mut self, route: Route) -> &mut Link {
        let index = self.index(route);
        &mut self.links[index]
    }
    fn way(&self, from: usize, to: usize) -> Way {
        self.ways[from * self.nodes + to]
    }
    /// Whether nothing gets through in this direction.
    pub fn is_cut(&self, route: Route) -> bool {
        self.way(route.from, route.to).cut || self.link(route).cut
    }
    /// Whether a connection can neither be made nor kept: what is acknowledged comes back the other way.
    pub fn is_severed(&self, route: Route) -> bool {
        self.is_cut(route) || self.way(route.to, route.from).cut
    }
    pub fn clogged_until(&self, route: Route) -> Instant {
        self.way(route.from, route.to).clogged_until.max(self.link(route).clogged_until)
    }
    pub fn cut_nodes(&mut self, from: usize, to: usize, cut: bool) {
        self.ways[from * self.nodes + to].cut = cut;
    }
    pub fn clog_nodes(&mut self, from: usize, to: usize, until: Instant) {
        self.ways[from * self.nodes + to].clogged_until = until;
    }
    /// Joins all that was cut and frees all that was clogged.
    pub fn mend(&mut self) {
        self.ways.fill(Way::default());
        for link in &mut self.links {
            (link.cut, link.clogged_until) = (false, Instant::ZERO);
        }
    }
    /// All links from one node to another.
    pub fn between(from: usize, to: usize) -> impl Iterator<Item = Route> {
        let cores = (0..SHARDS_MAX).flat_map(|from_shard| (0..SHARDS_MAX).map(move |to_shard| (from_shard, to_shard)));
        cores.flat_map(move |(from_shard, to_shard)| {
            Lane::ALL.map(|lane| Route { from, from_shard, to, to_shard, lane })
        })
    }
    /// Ways on which there is a connection.
    pub fn connected(&self, from: usize, to: usize) -> Vec<Route> {
        let made = |route: &Route| {
            let link = self.link(*route);
            link.peer_life != 0 && !link.broken
        };
        Links::between(from, to).filter(made).collect()
    }
}
