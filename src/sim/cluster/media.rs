//! What is done to the disks of nodes while they run.

use super::{Cluster, End};
use crate::sim::{coverage::Blow, disk::FaultRates};
use std::rc::Rc;

impl Cluster {
    /// The disk fails from now on at this rate; 0 mends it.
    pub fn spoil_disk(&self, index: usize, rate: f64) {
        if rate > 0.0 {
            self.cover(Blow::DiskError, index);
        }
        self.trouble_disk(index);
        let mut node = self.nodes[index].borrow_mut();
        let read_error = if node.prng.coin() { rate / 4.0 } else { 0.0 };
        let rates = FaultRates { read_error, write_error: rate, sync_error: rate, ..FaultRates::default() };
        let prng = node.prng.fork();
        node.disk.set_rates(rates, prng);
    }
    /// A bit of the medium flips, or the next write goes astray.
    pub fn rot_disk(&self, index: usize) {
        let mut node = self.nodes[index].borrow_mut();
        let mut prng = node.prng.fork();
        let flips = prng.chance(0.7) || !self.plan.faults.stray_writes;
        let struck = if flips { node.disk.rot(&mut prng) } else { node.disk.misdirect(&mut prng) };
        node.medium_spoiled |= struck;
        drop(node);
        if struck {
            self.cover(Blow::Rot, index);
        }
    }
    /// The medium is as it was before it rotted. The node must be started anew: it may have taken note of the damage.
    pub fn mend_medium(self: &Rc<Self>, index: usize) {
        let mended = self.disk(index).mend_rot();
        if mended > 0 {
            self.end(index, End::Kill);
        }
    }
    /// Makes the disk so many times slower.
    pub fn slow_disk(&self, index: usize, factor: u32) {
        if factor > 1 {
            self.cover(Blow::SlowDisk, index);
        }
        self.trouble_disk(index);
        self.nodes[index].borrow().slowness.set(factor);
    }
}
