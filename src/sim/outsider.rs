//! A node of another cluster beside the one that is judged: formed alone, and later started again and again with
//! members of this one as its seeds, as by a slip of an operator. Nobody takes it in, and it takes nobody for its own.

use super::cluster::{Cluster, End};
use std::rc::Rc;

impl Cluster {
    /// Its place, behind those of the members; not every run has one.
    pub fn outsider(&self) -> Option<usize> {
        self.plan.outsider.then_some(self.plan.nodes)
    }
    /// It comes, or comes again. One that is killed before it has formed its cluster is no stranger: it would join this
    /// one.
    pub fn start_outsider(self: &Rc<Self>) {
        if let Some(node) = self.outsider().filter(|node| self.listening(*node) || !self.running(*node)) {
            self.end(node, End::Kill);
            self.start(node);
        }
    }
}
