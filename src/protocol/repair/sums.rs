//! Sums over states: what two replicas compare instead of their keys.
//!
//! A *leaf* is what the keys of one block of 2^shift tokens come to: how many they are, and the sum of the hashes of
//! their states. Sums add up, so a leaf of any size, and any part of an arc, is the sum of smaller ones; and unlike an
//! exclusive or, a sum does not lose two equal terms. What is hashed of a state is all that merging goes by: the key,
//! its siblings with the checksums of their values, its clock, and the life of its table. What is remembered of old
//! writes is not.
//!
//! Keys of tables with different numbers of replicas are summed apart: a node may be a home of the one and not of the
//! other.

use crate::{
    limits::{LEAF_KEYS, LEAVES_MAX},
    protocol::{
        message::{Refusal, Sum},
        versions::Head,
    },
    types::{Conflict, Span, TableName, Token},
};
use std::{collections::BTreeMap, rc::Rc};
use xxhash_rust::xxh3::xxh3_128;

/// How the keys of each table are kept, as far as a comparison goes by it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Classes {
    /// The class of all keys that belong to no other table.
    pub usual: Class,
    pub tables: BTreeMap<TableName, Class>,
}
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Class {
    pub replicas: u8,
    pub conflict: Conflict,
}
impl Classes {
    pub fn of(&self, key: &[u8]) -> Class {
        if self.tables.is_empty() {
            return self.usual;
        }
        TableName::of_key(key).and_then(|name| self.tables.get(name)).copied().unwrap_or(self.usual)
    }
    /// The most replicas that any key has.
    pub fn replicas_max(&self) -> u8 {
        self.tables.values().map(|class| class.replicas).chain([self.usual.replicas]).max().unwrap_or(0)
    }
}

/// The sum of the keys in one block that have so many replicas.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    pub block: u64,
    pub replicas: u8,
    pub sum: Sum,
}

/// The visitor of a fold: takes states in the order of their tokens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summing {
    shift: u8,
    classes: Rc<Classes>,
    rows: Vec<Row>,
    damaged: bool,
    bytes: Vec<u8>,
}
impl Summing {
    pub fn new(shift: u8, classes: Rc<Classes>) -> Summing {
        Summing { shift, classes, rows: Vec::new(), damaged: false, bytes: Vec::new() }
    }
    pub fn take(&mut self, token: Token, key: &[u8], head: &[u8]) {
        let Ok(head) = Head::decode(head) else {
            self.damaged = true;
            return;
        };
        let Some(hash) = hash(key, &head, &mut self.bytes) else { return };
        let (block, _) = Span { first: token, last: token }.blocks(self.shift);
        let replicas = self.classes.of(key).replicas;
        let sum = Sum { count: 1, sum: hash };
        let known = self.rows.iter_mut().rev().take_while(|row| row.block == block);
        match known.into_iter().find(|row| row.replicas == replicas) {
            Some(row) => row.sum = row.sum + sum,
            None => self.rows.push(Row { block, replicas, sum }),
        }
    }
    /// All that was taken. One head that cannot be read makes the whole worth nothing.
    pub fn finish(mut self) -> Result<Vec<Row>, Refusal> {
        self.rows.sort_unstable_by_key(|row| (row.block, row.replicas));
        if self.damaged { Err(Refusal::Damaged) } else { Ok(self.rows) }
    }
}

/// The hash of a key's state; a state of nothing has none.
fn hash(key: &[u8], head: &Head, bytes: &mut Vec<u8>) -> Option<u128> {
    if head.is_empty() {
        return None;
    }
    bytes.clear();
    let mut put = |number: u64| bytes.extend_from_slice(&number.to_le_bytes());
    put(key.len() as u64);
    put(head.life);
    put(head.clock.len() as u64);
    for dot in head.clock.entries() {
        [dot.actor.node().0, dot.actor.incarnation(), dot.counter].into_iter().for_each(&mut put);
    }
    for entry in &head.entries {
        let dot = entry.dot;
        [dot.actor.node().0, dot.actor.incarnation(), dot.counter].into_iter().for_each(&mut put);
        put(u64::from(entry.checksum) | u64::from(entry.bytes) << 32);
    }
    bytes.extend_from_slice(key);
    Some(xxh3_128(bytes))
}

/// The sums of an arc, by blocks of some size.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leaves {
    span: Span,
    shift: u8,
    /// Sums in the order of blocks, then of replicas; a block without keys has none.
    rows: Rc<Vec<Row>>,
}
impl Leaves {
    /// The size of blocks with which an arc is folded of which nothing is known.
    pub fn finest(span: Span) -> u8 {
        span.shift_for(LEAVES_MAX)
    }
    /// The leaves that a fold of the whole arc has given; blocks are made so large that they hold about [`LEAF_KEYS`].
    pub fn new(span: Span, shift: u8, rows: Vec<Row>) -> Leaves {
        let keys: u64 = rows.iter().map(|row| u64::from(row.sum.count)).sum();
        let coarse = span.shift_for((keys / LEAF_KEYS).max(1)).max(shift);
        let mut by_block: Vec<Row> = Vec::new();
        for row in rows {
            let block = row.block.checked_shr(u32::from(coarse - shift)).unwrap_or(0);
            let known = by_block.iter_mut().rev().take_while(|known| known.block == block);
            match known.into_iter().find(|known| known.replicas == row.replicas) {
                Some(known) => known.sum = known.sum + row.sum,
                None => by_block.push(Row { block, ..row }),
            }
        }
        by_block.sort_unstable_by_key(|row| (row.block, row.replicas));
        Leaves { span, shift: coarse, rows: Rc::new(by_block) }
    }
    pub fn shift(&self) -> u8 {
        self.shift
    }
    pub fn rows(&self) -> usize {
        self.rows.len()
    }
    pub fn keys(&self) -> u64 {
        self.rows.iter().map(|row| u64::from(row.sum.count)).sum()
    }
    /// Puts what these blocks were found to hold in the place of what was known of them.
    pub fn replace(&mut self, blocks: &[u64], found: Vec<Row>) {
        let rows = Rc::make_mut(&mut self.rows);
        rows.retain(|row| blocks.binary_search(&row.block).is_err());
        rows.extend(found);
        rows.sort_unstable_by_key(|row| (row.block, row.replicas));
    }
    /// The sum of each block of 2^`shift` tokens that `span` touches, of keys with at least so many replicas. Blocks
    /// are no smaller than the leaves, and `span` is of the arc, in blocks no smaller either.
    pub fn sums(&self, span: Span, shift: u8, replicas: u8) -> Vec<Sum> {
        assert!(shift >= self.shift && self.span.covers(&span), "leaves do not say what their parts come to");
        let (first, last) = span.blocks(shift);
        let mut sums = vec![Sum::default(); (last - first) as usize + 1];
        let (from, to) = span.blocks(self.shift);
        let start = self.rows.partition_point(|row| row.block < from);
        for row in self.rows[start..].iter().take_while(|row| row.block <= to).filter(|row| row.replicas >= replicas) {
            let block = row.block.checked_shr(u32::from(shift - self.shift)).unwrap_or(0);
            let sum = &mut sums[(block - first) as usize];
            *sum = *sum + row.sum;
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        protocol::versions::{Actor, Dot, Entry},
        types::{Key, Media, NodeId, WriteId},
    };

    fn head(counter: u64, checksum: u32) -> Head {
        let dot = Dot { actor: Actor::new(NodeId(7), 1), counter };
        let entry = Entry { dot, write_id: WriteId(1), media: Media::Json, bytes: 3, checksum };
        Head::default().put(&Default::default(), entry).head
    }
    fn key(number: u64) -> Key {
        let name = if number.is_multiple_of(5) { "wide" } else { "k" };
        Key::new(format!("{name}:{number}")).expect("a key")
    }
    fn classes() -> Rc<Classes> {
        let usual = Class { replicas: 3, conflict: Conflict::Siblings };
        let wide = ("wide".parse().expect("a name"), Class { replicas: 5, ..usual });
        Rc::new(Classes { usual, tables: [wide].into() })
    }
    fn rows(span: Span, shift: u8, states: &BTreeMap<(Token, Key), Head>) -> Vec<Row> {
        let mut summing = Summing::new(shift, classes());
        let within = states.iter().filter(|((token, _), _)| span.contains(*token));
        within.for_each(|((token, key), head)| summing.take(*token, key.as_bytes(), &head.encode()));
        summing.finish().expect("sound heads")
    }
    fn states(count: u64) -> BTreeMap<(Token, Key), Head> {
        (0..count).map(|number| ((key(number).token(), key(number)), head(number + 1, 1))).collect()
    }

    #[test]
    fn leaves_add_up_and_say_where_a_difference_is() {
        let span = Span { first: Token(1 << 60), last: Token(u64::MAX - 77) };
        let mut theirs = states(40_000);
        let fold = |states: &_| Leaves::new(span, Leaves::finest(span), rows(span, Leaves::finest(span), states));
        let (ours, same) = (fold(&states(40_000)), fold(&theirs));
        assert_eq!(ours, same);
        assert!((100..=600).contains(&ours.rows()), "{} leaves of two classes", ours.rows());
        let changed = (0..).map(|number| key(5 * number)).find(|key| span.contains(key.token())).expect("a key of it");
        theirs.insert((changed.token(), changed.clone()), head(99_999, 1));
        let other = fold(&theirs);
        for replicas in [0, 3, 4, 5] {
            let (mut at, mut shift) = (span, 64);
            while shift > ours.shift() {
                shift = at.shift_for(64).max(ours.shift()).min(shift - 1);
                let (left, right) = (ours.sums(at, shift, replicas), other.sums(at, shift, replicas));
                let differ: Vec<u64> =
                    (0..).zip(left.iter().zip(&right)).filter(|(_, (l, r))| l != r).map(|(i, _)| i).collect();
                assert_eq!(differ.len(), 1, "one block differs");
                at = at.block(at.blocks(shift).0 + differ[0], shift);
            }
            assert!(at.contains(changed.token()));
        }
        assert_eq!(ours.sums(span, 64, 6), [Sum::default()], "no key has so many replicas");
        let whole = |leaves: &Leaves| leaves.sums(span, 64, 0)[0].count as usize;
        assert_eq!(whole(&ours), states(40_000).keys().filter(|(token, _)| span.contains(*token)).count());
    }

    #[test]
    fn blocks_that_are_folded_again_take_the_place_of_the_old_ones() {
        let (span, mut now) = (Span::ALL, states(9_000));
        let mut leaves = Leaves::new(span, Leaves::finest(span), rows(span, Leaves::finest(span), &now));
        let gone = key(17);
        now.remove(&(gone.token(), gone.clone()));
        now.insert((key(18).token(), key(18)), head(77, 8));
        let mut blocks: Vec<u64> = [gone.token(), key(18).token()]
            .iter()
            .map(|t| Span { first: *t, last: *t }.blocks(leaves.shift()).0)
            .collect();
        blocks.sort_unstable();
        let found = blocks.iter().flat_map(|block| rows(span.block(*block, leaves.shift()), leaves.shift(), &now));
        leaves.replace(&blocks, found.collect());
        let anew = Leaves::new(span, leaves.shift(), rows(span, leaves.shift(), &now));
        assert_eq!(leaves, anew);
    }

    #[test]
    fn all_that_merging_goes_by_is_in_a_hash() {
        let hash = |key: &str, head: &Head| hash(key.as_bytes(), head, &mut Vec::new());
        let one = head(1, 5);
        assert_eq!(hash("a", &Head::default()), None);
        assert_eq!(hash("a", &one), hash("a", &Head { recent: Default::default(), ..one.clone() }));
        let mut known = one.clone();
        known.clock.record(Dot { actor: Actor::new(NodeId(9), 1), counter: 1 });
        let deleted = Head { entries: Default::default(), ..one.clone() };
        let others = [head(2, 5), head(1, 6), known, deleted, Head { life: 3, ..one.clone() }];
        assert!(others.iter().all(|other| hash("a", other) != hash("a", &one)));
        assert_ne!(hash("b", &one), hash("a", &one));
    }
}
