//! Regular looks at every running shard: rings (I10), bounds (I12), false alarms, and what nodes have been doing, for
//! the coverage of faults.

use super::{
    checker::{Invariant, Verdict, bounds::Bounds, rings::Rings},
    cluster::Cluster,
    executor::Life,
};
use crate::types::Member;
use std::{cell::Cell, rc::Rc, time::Duration};

const EVERY: Duration = Duration::from_secs(1);

/// The looks of a run, until it is dropped or stopped.
pub struct Looks {
    stop: Cell<bool>,
}

impl Looks {
    pub fn start(cluster: &Rc<Cluster>) -> Rc<Looks> {
        let looks = Rc::new(Looks { stop: Cell::new(false) });
        let (cluster, this) = (cluster.clone(), looks.clone());
        let executor = cluster.executor.clone();
        executor.spawn(Life::OUTSIDE, async move {
            let (mut rings, bounds) = (Rings::default(), Bounds::of(&cluster.plan));
            if !cluster.plan.faults.restore_every.is_zero() {
                rings.set_back = cluster.plan.faults.fickle.iter().filter_map(|node| cluster.node_id(node)).collect();
            }
            while !this.stop.get() {
                cluster.executor.sleep(EVERY).await;
                look(&cluster, &mut rings, &bounds);
            }
        });
        looks
    }
    pub fn stop(&self) {
        self.stop.set(true);
    }
}

fn look(cluster: &Rc<Cluster>, rings: &mut Rings, bounds: &Bounds) {
    for node in 0..cluster.node_count() {
        cluster.remember_doings(node);
        for shard in 0..cluster.shard_count(node) {
            let Some(handle) = cluster.handle(node, shard) else { continue };
            let members: Vec<Member> = handle.members().into_iter().map(|(member, ..)| member).collect();
            let waiting = cluster.inbox(node, shard).map_or(0, |inbox| inbox.len());
            let stats = handle.stats();
            let verdict = rings.look(handle.address(), &members, &handle.ring());
            let verdict = verdict.and_then(|()| bounds.check(waiting, &stats));
            let verdict = verdict.and_then(|()| check_alarms(cluster, stats.shard.identity_alarms));
            if let Err((invariant, text)) = verdict {
                cluster.violate(invariant, format!("node {node} shard {shard}: {text}"));
            }
        }
    }
}

/// Where no disk forgets, no node has a reason to say that its disk is an older state or that another bears its name.
fn check_alarms(cluster: &Cluster, alarms: u64) -> Verdict {
    if alarms == 0 || !cluster.plan.overlaps() {
        return Ok(());
    }
    let text = format!("{alarms} alarms that dots of it are known which it does not remember, though no disk forgets");
    Err((Invariant::Alive, text))
}
