//! The surroundings of one simulated shard: the cluster, seen from its place in it.

use super::{cluster::Cluster, executor};
use crate::{
    driver::world::{Arrival, ClientToken, Inbox, World},
    protocol::message::{Envelope, Message, Response},
    types::{Address, Instant},
};
use std::{
    cell::Cell,
    net::SocketAddr,
    rc::{Rc, Weak},
};

/// One shard of one life of one node.
pub struct ShardWorld {
    cluster: Weak<Cluster>,
    pub node: usize,
    pub life: u64,
    pub shard: u16,
    inbox: Inbox,
    /// The wake that was asked for last, in local time.
    wanted: Cell<Instant>,
    /// The earliest call that is scheduled, in true time.
    scheduled: Rc<Cell<Instant>>,
    this: Weak<ShardWorld>,
}

impl ShardWorld {
    pub fn new(cluster: &Rc<Cluster>, node: usize, life: u64, shard: u16, inbox: Inbox) -> Rc<ShardWorld> {
        Rc::new_cyclic(|this| ShardWorld {
            cluster: Rc::downgrade(cluster),
            node,
            life,
            shard,
            inbox,
            wanted: Cell::new(Instant::NEVER),
            scheduled: Rc::new(Cell::new(Instant::NEVER)),
            this: this.clone(),
        })
    }
    /// A wake further off than one that is already scheduled waits for that one, which then schedules it.
    fn schedule_wake(&self, cluster: &Rc<Cluster>) {
        let wanted = self.wanted.get();
        if wanted == Instant::NEVER {
            return;
        }
        let at = cluster.clock(self.node).true_time(wanted);
        if at >= self.scheduled.get() {
            return;
        }
        self.scheduled.set(at);
        let this = self.this.clone();
        cluster.executor.schedule(at, move || {
            if let Some(world) = this.upgrade() {
                world.awake(at);
            }
        });
    }
    fn awake(&self, at: Instant) {
        if self.scheduled.get() != at {
            return;
        }
        self.scheduled.set(Instant::NEVER);
        let Some(cluster) = self.cluster.upgrade() else { return };
        if !cluster.lives(self.node, self.life) {
            return;
        }
        if cluster.local_now(self.node) >= self.wanted.get() {
            self.wanted.set(Instant::NEVER);
            self.inbox.push(Arrival::Wake);
        } else {
            self.schedule_wake(&cluster);
        }
    }
    fn address(&self, cluster: &Cluster) -> Option<Address> {
        cluster.node_id(self.node).map(|id| Address::new(id, self.shard))
    }
}

impl World for ShardWorld {
    fn now(&self) -> Instant {
        self.cluster.upgrade().map_or(Instant::ZERO, |c| c.local_now(self.node))
    }
    fn wall_time(&self) -> u64 {
        self.cluster.upgrade().map_or(0, |c| c.wall_time(self.node))
    }
    fn send(&self, envelope: Envelope) {
        if let Some(cluster) = self.cluster.upgrade() {
            cluster.send(self.node, envelope);
        }
    }
    fn send_to_seed(&self, seed: SocketAddr, message: Message) {
        let Some(cluster) = self.cluster.upgrade() else { return };
        let (Some(from), Some(to)) = (self.address(&cluster), cluster.node_at(seed)) else { return };
        let deadline = self.now() + crate::limits::BACKGROUND_TIMEOUT;
        cluster.send(self.node, Envelope { from, to: Address::new(to, 0), exchange: 0, deadline, message });
    }
    fn reply(&self, client: ClientToken, response: Response) {
        if let Some(cluster) = self.cluster.upgrade() {
            cluster.reply(client, response);
        }
    }
    fn wake_at(&self, at: Instant) {
        self.wanted.set(at);
        if let Some(cluster) = self.cluster.upgrade() {
            self.schedule_wake(&cluster);
        }
    }
    fn breathe(&self) -> impl Future<Output = ()> {
        executor::yield_now()
    }
}
