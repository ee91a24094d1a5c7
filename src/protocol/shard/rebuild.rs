//! Who meets a damaged record, and whom it is put together from.

use super::{Effect, Origin, Shard, Standing, exchange_tag, io_tag};
use crate::{
    limits,
    protocol::{message::Lane, rebuild::Act, replica::Work},
    types::{Address, Instant, Key, NodeId},
};

impl Shard {
    /// A read of a record that is no task's met damage. What the replica meets it says itself.
    pub(super) fn met_damage(&mut self, now: Instant, tag: u64, number: u64, out: &mut Vec<Effect>) {
        let key = match tag {
            io_tag::COORDINATOR => self.coordinator.key_of(number).cloned(),
            io_tag::FETCH => self.fetches.get(&number).map(|fetch| fetch.key.clone()),
            io_tag::REPAIR => self.repair.key_of(number).cloned(),
            io_tag::HINTS => self.delivering.get(&number).filter(|d| d.record).map(|d| d.key.clone()),
            _ => None,
        };
        if let Some(key) = key {
            self.rebuild(now, key, out);
        }
    }

    /// Asks all other home replicas for a key whose own record is damaged, if each of them can be asked.
    pub(super) fn rebuild(&mut self, now: Instant, key: Key, out: &mut Vec<Effect>) {
        let (token, table) = (key.token(), self.tables.registry.of(key.as_bytes()));
        let homes = self.ring.walk(token, usize::from(table.n));
        let others = homes.iter().filter(|node| **node != self.me.node);
        let healthy = |core: &Address| self.standing(now, *core, Lane::Short) <= Standing::Parting;
        let usable = |node: &NodeId| self.ring.address(*node, token).filter(healthy);
        let Some(others) = others.map(usable).collect::<Option<Vec<Address>>>() else { return };
        if self.is_dropping(&key) {
            return;
        }
        let word = self.word(&key);
        let mut acts = Vec::new();
        self.rebuild.met(now, (key, table.conflict, word), &others, &mut acts);
        self.run_rebuild(now, acts, out);
    }

    pub(super) fn run_rebuild(&mut self, now: Instant, acts: Vec<Act>, out: &mut Vec<Effect>) {
        for act in acts {
            match act {
                Act::Send { to, exchange, deadline, message } => {
                    let exchange = exchange << exchange_tag::BITS | exchange_tag::REBUILD;
                    out.push(Effect::Send(self.envelope(to, exchange, deadline, message)));
                }
                Act::Replace { key, siblings, word } => {
                    if word != self.word(&key) || self.is_dropping(&key) {
                        continue;
                    }
                    let work = Work::Rebuild { siblings, head_read: false };
                    self.apply(now, Origin::Nobody, key, work, now + limits::BACKGROUND_TIMEOUT, out);
                }
            }
        }
    }
}
