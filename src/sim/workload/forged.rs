//! Contexts that nobody was given: of nodes that there never were, and of members in lives that they have not had. They
//! are refused, whoever is asked, and do no harm: to the owners of the dots, who go on minting, nor to what others have
//! written.
//!
//! They come with deletes, which make no value, and name no event that ever was: what one would end, were it taken, is
//! nothing.

use super::{Workload, checker::Invariant};
use crate::{
    limits::INCARNATION_MAX,
    protocol::{
        message::{Operation, Request},
        versions::{Actor, Context, Dot, VersionVector},
    },
    sim::{executor::Life, prng::Prng, sockets::CallEnd},
    types::{Consistency, Instant, NodeId, WriteId},
};
use std::{rc::Rc, time::Duration};

/// Pause between two of them, on average.
const EVERY: Duration = Duration::from_millis(400);
/// Invented entries of a context: as many as one once held.
const INVENTED_MAX: u64 = 340;
/// The first of the write ids, which no other client uses.
const WRITE_IDS: u64 = 1 << 60;

impl Workload {
    /// In a part of the runs one more client forges contexts. Where the last write wins, which keys of tables may come
    /// to, a delete needs none: there it would end what it must not.
    pub(super) fn forge(self: &Rc<Self>) {
        let mut prng = Prng::stream(self.cluster.plan.seed, "forged contexts");
        let plan = &self.cluster.plan;
        if plan.last_write_wins || plan.tables.count > 0 || !prng.chance(0.3) {
            return;
        }
        let workload = self.clone();
        self.active.set(self.active.get() + 1);
        self.cluster.executor.spawn(Life::OUTSIDE, async move {
            let mut number = 0;
            while !workload.stop.get() {
                workload.cluster.executor.sleep(prng.exponential(EVERY)).await;
                number += 1;
                workload.send_forged(&mut prng, WriteId(WRITE_IDS + number)).await;
            }
            workload.active.set(workload.active.get() - 1);
        });
    }
    async fn send_forged(&self, prng: &mut Prng, write_id: WriteId) {
        let dots = if prng.coin() { invent(prng) } else { self.misname(prng, write_id.0 - WRITE_IDS) };
        if dots.is_empty() {
            return;
        }
        let context = if dots.len() == 1 && prng.coin() {
            Context { dots: dots.into_iter().collect(), ..Context::default() }
        } else {
            Context::from(VersionVector::from_dots(dots))
        };
        let key = self.history.borrow().key(self.draw_key(prng)).clone();
        let request = Request {
            key: key.clone(),
            operation: Operation::Delete { context: Some(context), write_id },
            consistency: Consistency::default(),
            deadline: Instant::ZERO,
        };
        let node = prng.index(self.cluster.node_count());
        let shard = prng.below(u64::from(self.cluster.shard_count(node))) as u16;
        self.cluster.count(|c| c.forged_contexts += 1);
        let end = self.cluster.call(node, shard, request, self.plan.timeout_max).await;
        if matches!(end, CallEnd::Answered(Ok(_))) {
            self.cluster.violate(Invariant::I7, format!("{key:?}: a context of events that never were is taken"));
        }
    }
    /// A member in an incarnation far from all that it will ever have.
    fn misname(&self, prng: &mut Prng, number: u64) -> Vec<Dot> {
        let node = self.cluster.node_id(prng.index(self.cluster.node_count()));
        let incarnation = INCARNATION_MAX - number % 4;
        let forged = |node| Dot { actor: Actor::new(node, incarnation), counter: 1 + number };
        node.map(forged).into_iter().collect()
    }
}

fn invent(prng: &mut Prng) -> Vec<Dot> {
    let count = if prng.coin() { 1 } else { INVENTED_MAX };
    let mut dot = |_| Dot { actor: Actor::new(NodeId::from_random(prng.bits()), 1 + prng.below(9)), counter: 5 };
    (0..count).map(&mut dot).collect()
}
