//! Records that the own medium has damaged, put together again from the other home replicas.
//!
//! A damaged record is never served and takes no write. What takes its place must know all that the lost one knew, or a
//! quorum that counts on this copy would miss an acknowledged write: so it is the join of what *every* other home
//! replica holds. If one of them is silent, or its own record is damaged or may be lost too, nothing is written, and
//! whoever meets the damage next begins anew.
//!
//! Input: [`Rebuild::met`], [`Rebuild::answered`], [`Rebuild::expire`]. Output: [`Act`]s.

use super::{
    message::{Depth, Fetched, Message, Refusal},
    ring::FixedMap,
    versions::Siblings,
};
use crate::{
    limits::{BACKGROUND_TIMEOUT, REBUILDS_MAX, REPLICAS_MAX},
    types::{Address, Conflict, Instant, Key, TableWord},
};
use std::collections::BTreeMap;

/// Bits of an exchange's number that say which replica was asked.
const REPLICA_BITS: u32 = 3;
const _: () = assert!(REPLICAS_MAX <= 1 << REPLICA_BITS);

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Act {
    Send {
        to: Address,
        exchange: u64,
        deadline: Instant,
        message: Message,
    },
    /// Put this in the place of the damaged record, unless the key's table is another since `word`.
    Replace {
        key: Key,
        siblings: Siblings,
        word: TableWord,
    },
}

struct Job {
    key: Key,
    conflict: Conflict,
    word: TableWord,
    deadline: Instant,
    /// A bit for each replica that has not answered.
    waiting: u8,
    found: Siblings,
}

/// See the module.
pub struct Rebuild {
    jobs: FixedMap<u64, Job>,
    /// The job of each key in hand.
    keys: BTreeMap<Key, u64>,
    next: u64,
}

impl Rebuild {
    /// `first`: where the numbers of exchanges start, different in each life.
    pub fn new(first: u64) -> Rebuild {
        Rebuild { jobs: FixedMap::default(), keys: BTreeMap::new(), next: first }
    }
    pub fn next_deadline(&self) -> Option<Instant> {
        self.jobs.values().map(|job| job.deadline).min()
    }

    /// The own record of the key is damaged; `others` are its other home replicas, all of them in reach. Nothing
    /// happens when it is in hand already, when too many are, or when nobody else has the key.
    pub fn met(
        &mut self,
        now: Instant,
        (key, conflict, word): (Key, Conflict, TableWord),
        others: &[Address],
        out: &mut Vec<Act>,
    ) {
        if others.is_empty() || self.jobs.len() >= REBUILDS_MAX || self.keys.contains_key(&key) {
            return;
        }
        self.next += 1;
        let deadline = now + BACKGROUND_TIMEOUT;
        for (index, to) in others.iter().enumerate() {
            let exchange = self.next << REPLICA_BITS | index as u64;
            let message = Message::Fetch { key: key.clone(), depth: Depth::Full, word };
            out.push(Act::Send { to: *to, exchange, deadline, message });
        }
        self.keys.insert(key.clone(), self.next);
        let waiting = ((1u16 << others.len()) - 1) as u8;
        self.jobs.insert(self.next, Job { key, conflict, word, deadline, waiting, found: Siblings::default() });
    }

    /// A replica has said what it holds.
    pub fn answered(&mut self, exchange: u64, result: Result<Fetched, Refusal>, out: &mut Vec<Act>) {
        let (id, asked) = (exchange >> REPLICA_BITS, 1u8 << (exchange & ((1 << REPLICA_BITS) - 1)));
        let Some(job) = self.jobs.get_mut(&id).filter(|job| job.waiting & asked != 0) else { return };
        match result {
            Ok(Fetched::Full(siblings)) => {
                job.found = std::mem::take(&mut job.found).join(&siblings, job.conflict);
            }
            Ok(Fetched::Nothing) => {}
            Ok(Fetched::Head(_) | Fetched::Doubted { .. }) | Err(_) => return self.end(id, |_| {}),
        }
        job.waiting &= !asked;
        if job.waiting == 0 {
            self.end(id, |Job { key, found, word, .. }| out.push(Act::Replace { key, siblings: found, word }));
        }
    }

    /// Lets those go that have waited too long for an answer.
    pub fn expire(&mut self, now: Instant) {
        let late: Vec<u64> = self.jobs.iter().filter(|(_, job)| job.deadline <= now).map(|(id, _)| *id).collect();
        late.into_iter().for_each(|id| self.end(id, |_| {}));
    }

    fn end(&mut self, id: u64, then: impl FnOnce(Job)) {
        if let Some(job) = self.jobs.remove(&id) {
            self.keys.remove(&job.key);
            then(job);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        protocol::versions::{Actor, Dot, Entry, Head},
        types::{Media, NodeId, ShardId, TableWord, Value, WriteId},
    };

    fn at(node: u64) -> Address {
        Address { node: NodeId(node), shard: ShardId(0) }
    }
    fn key() -> Key {
        Key::new("k").expect("a key")
    }
    fn written(node: u64) -> Siblings {
        let value = Value::new(Media::Json, node.to_string());
        let dot = Dot { actor: Actor::new(NodeId(node), 1), counter: 1 };
        let bytes = value.bytes.len() as u32;
        let entry = Entry { dot, write_id: WriteId(node), media: value.media, bytes, checksum: value.checksum };
        let head = Head::default().put(&Default::default(), entry).head;
        Siblings { head, values: [value.bytes].into_iter().collect() }
    }
    fn begin(rebuild: &mut Rebuild) -> Vec<u64> {
        let mut out = Vec::new();
        rebuild.met(Instant::ZERO, (key(), Conflict::Siblings, TableWord::default()), &[at(1), at(2)], &mut out);
        let exchange = |act: &Act| match act {
            Act::Send { exchange, message: Message::Fetch { depth: Depth::Full, .. }, .. } => *exchange,
            other => panic!("{other:?}"),
        };
        out.iter().map(exchange).collect()
    }

    #[test]
    fn what_all_others_hold_takes_the_place_of_the_record() {
        let (mut rebuild, mut out) = (Rebuild::new(7), Vec::new());
        let asked = begin(&mut rebuild);
        assert_eq!(asked.len(), 2);
        assert_eq!(begin(&mut rebuild), [] as [u64; 0], "once for a key");
        rebuild.answered(asked[0], Ok(Fetched::Full(written(1))), &mut out);
        // The same answer twice does not stand for the other one.
        rebuild.answered(asked[0], Ok(Fetched::Full(written(1))), &mut out);
        assert_eq!(out, []);
        rebuild.answered(asked[1], Ok(Fetched::Full(written(2))), &mut out);
        let siblings = written(1).join(&written(2), Conflict::Siblings);
        assert_eq!(siblings.head.clock.get(Actor::new(NodeId(2), 1)), 1);
        assert_eq!(out, [Act::Replace { key: key(), siblings, word: TableWord::default() }]);
        assert_eq!(rebuild.next_deadline(), None);
    }

    fn doubted() -> Result<Fetched, Refusal> {
        let Siblings { head, values } = written(2);
        Ok(Fetched::Doubted { head, values: Some(values) })
    }

    #[test]
    fn one_that_cannot_answer_ends_it() {
        for answer in [Err(Refusal::Damaged), Err(Refusal::NotMine), Ok(Fetched::Head(written(2).head)), doubted()] {
            let (mut rebuild, mut out) = (Rebuild::new(7), Vec::new());
            let asked = begin(&mut rebuild);
            rebuild.answered(asked[1], answer, &mut out);
            rebuild.answered(asked[0], Ok(Fetched::Full(written(1))), &mut out);
            assert_eq!((out, rebuild.next_deadline()), (Vec::new(), None));
            assert_eq!(begin(&mut rebuild).len(), 2, "and it may be tried again");
        }
    }

    #[test]
    fn silence_ends_it_and_what_is_in_hand_is_bounded() {
        let (mut rebuild, mut out) = (Rebuild::new(7), Vec::new());
        for number in 0..2 * REBUILDS_MAX {
            let key = Key::new(number.to_string()).expect("a key");
            rebuild.met(Instant::ZERO, (key, Conflict::Siblings, TableWord::default()), &[at(1)], &mut out);
        }
        assert_eq!(out.len(), REBUILDS_MAX);
        let due = rebuild.next_deadline().expect("they wait");
        rebuild.expire(due);
        assert_eq!(rebuild.next_deadline(), None);
        rebuild.met(due, (key(), Conflict::Siblings, TableWord::default()), &[], &mut out);
        assert_eq!(rebuild.next_deadline(), None, "nobody else has the key");
    }
}
