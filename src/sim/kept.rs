//! Sockets of a stopped process: its kernel keeps what arrives, undecoded, until the process goes on and reads it.
//!
//! A buffer takes so many bytes of each connection. What is beyond stays with its sender, who waits as TCP makes it
//! wait; after a while the connection breaks and that part is lost, while what the kernel has will still be read.

use super::{cluster::Cluster, links::Route, network::Parcel};
use std::{rc::Rc, time::Duration};

/// What waits for one process, in the order in which it came.
#[derive(Default)]
pub(super) struct Kept {
    parcels: Vec<Parcel>,
    /// Requests of clients; each knows its way.
    calls: Vec<Box<dyn FnOnce()>>,
    /// Beyond the buffers: still at their senders.
    blocked: Vec<Parcel>,
}

/// Sent bytes that nobody takes for so long break a connection.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(5);
/// A process that goes on comes to its sockets within this.
const READ_WITHIN: Duration = Duration::from_millis(2);

impl Kept {
    fn bytes(&self, route: Route) -> usize {
        self.parcels.iter().filter(|p| p.route == Some(route)).map(|p| p.pieces.bytes()).sum()
    }
}

impl Cluster {
    /// Keeps a frame from another node that reaches a stopped process. Those between cores of one node have no socket.
    pub(super) fn keep(self: &Rc<Self>, parcel: Parcel, route: Route) {
        let full = {
            let kept = &mut *self.kept(parcel.to);
            let full = kept.bytes(route) >= self.plan.socket_bytes;
            if full {
                kept.blocked.push(parcel)
            } else {
                kept.parcels.push(parcel)
            }
            full
        };
        self.count(|c| if full { c.frames_blocked += 1 } else { c.frames_kept += 1 });
        if full {
            let (cluster, life) = (self.clone(), self.life(route.from));
            self.executor.schedule(self.executor.now() + SILENCE_TIMEOUT, move || {
                let cut_off: Vec<Parcel> = {
                    let kept = &mut *cluster.kept(route.to);
                    kept.blocked.extract_if(.., |p| p.route == Some(route) && p.life == life).collect()
                };
                if !cut_off.is_empty() && cluster.lives(route.from, life) {
                    cluster.break_connection(route, Duration::ZERO);
                }
            });
        }
    }
    /// Keeps a client's request.
    pub(super) fn keep_call(&self, node: usize, call: impl FnOnce() + 'static) {
        self.kept(node).calls.push(Box::new(call));
        self.count(|c| c.frames_kept += 1);
    }
    /// The process goes on, and reads.
    pub(super) fn read_kept(self: &Rc<Self>, node: usize) {
        let kept = std::mem::take(&mut *self.kept(node));
        let (cluster, life) = (self.clone(), self.life(node));
        let soon = self.executor.now() + self.network_duration(READ_WITHIN);
        self.executor.schedule(soon, move || {
            if !cluster.lives(node, life) {
                return;
            }
            if cluster.paused(node) {
                // Stopped again before it came to that.
                let later = &mut *cluster.kept(node);
                later.parcels.splice(0..0, kept.parcels);
                later.calls.splice(0..0, kept.calls);
                later.blocked.splice(0..0, kept.blocked);
                return;
            }
            for parcel in kept.parcels.into_iter().chain(kept.blocked) {
                cluster.take_in(parcel);
            }
            kept.calls.into_iter().for_each(|call| call());
        });
    }
    /// The process has ended: its sockets are gone.
    pub(super) fn forget_kept(&self, node: usize) {
        drop(std::mem::take(&mut *self.kept(node)));
    }
}
