//! Dots and clocks in few bytes: what heads and contexts of the second form consist of. The ruler is in
//! `schema/record.md`.
//!
//! A number is a varint: seven bits a byte, the lowest first, the upper bit set in all bytes but the last. A node is
//! named once for all its incarnations, and incarnations that follow each other with the same counter are one run: a
//! key that is written once in each life of a node has a clock of some ten bytes, however many lives there were.

use super::{Actor, Dot, HeadError, VersionVector, codec::Reader};
use crate::{
    limits::{INCARNATION_MAX, MERGED_CLOCK_BYTES_MAX, MERGED_CLOCK_ENTRIES_MAX},
    types::NodeId,
};
use bytes::BufMut;

/// Bytes of a node's id.
const NODE_BYTES: usize = 6;
/// Bytes of a clock's entry at most: a node of its own, its count of runs, incarnation and counter.
const ENTRY_BYTES_MAX: usize = NODE_BYTES + 1 + 9 + 10;

pub(super) fn put_varint(out: &mut impl BufMut, mut number: u64) {
    while number >= 0x80 {
        out.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

fn put_node(out: &mut impl BufMut, node: NodeId) {
    debug_assert!(node.0 <= NodeId::MAX, "a node's id has 48 bits");
    out.put_uint_le(node.0, NODE_BYTES);
}

pub(super) fn put_dot(out: &mut impl BufMut, dot: Dot) {
    put_node(out, dot.actor.node());
    put_varint(out, dot.actor.incarnation());
    put_varint(out, dot.counter);
}

/// A run of entries: incarnations of one node that follow each other and have the same counter.
struct Run {
    first: u64,
    count: u64,
    counter: u64,
}

fn runs(entries: &[Dot]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for dot in entries {
        let incarnation = dot.actor.incarnation();
        match runs.last_mut() {
            Some(run) if run.counter == dot.counter && run.first + run.count == incarnation => run.count += 1,
            _ => runs.push(Run { first: incarnation, count: 1, counter: dot.counter }),
        }
    }
    runs
}

/// `nodes, then for each: node 6, runs, then for each run: step * 2 + (1 if it has more), counter, and then how many
/// more`. A step leads from the last incarnation before it, from 0 at first.
pub(super) fn put_clock(out: &mut impl BufMut, clock: &VersionVector) {
    let by_node = || clock.entries().chunk_by(|a, b| a.actor.node() == b.actor.node());
    put_varint(out, by_node().count() as u64);
    for entries in by_node() {
        put_node(out, entries[0].actor.node());
        let runs = runs(entries);
        put_varint(out, runs.len() as u64);
        let mut last = 0;
        for Run { first, count, counter } in runs {
            assert!(first <= INCARNATION_MAX, "incarnations end at their bound");
            put_varint(out, (first - last) << 1 | u64::from(count > 1));
            put_varint(out, counter);
            if count > 1 {
                put_varint(out, count - 1);
            }
            last = first + (count - 1);
        }
    }
}

impl VersionVector {
    /// Whether the clock has at most so many entries and takes at most so many bytes in the compact form.
    pub fn within(&self, entries_max: usize, bytes_max: usize) -> bool {
        if (self.len() + 1) * ENTRY_BYTES_MAX <= bytes_max {
            return self.len() <= entries_max;
        }
        let mut bytes = Vec::new();
        put_clock(&mut bytes, self);
        self.len() <= entries_max && bytes.len() <= bytes_max
    }
    /// Whether the clock may be stored, sent and given out: what is within these bounds is always taken back.
    pub fn can_be_read(&self) -> bool {
        self.within(MERGED_CLOCK_ENTRIES_MAX, MERGED_CLOCK_BYTES_MAX)
    }
}

impl Reader<'_> {
    /// Reads a number that was written in as few bytes as it needs.
    pub fn varint(&mut self) -> Result<u64, HeadError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            number |= bits << shift;
            if byte < 0x80 {
                let sound = (bits << shift) >> shift == bits && (byte > 0 || shift == 0);
                return if sound { Ok(number) } else { Err(HeadError::Invalid) };
            }
        }
        Err(HeadError::Invalid)
    }
    fn node(&mut self) -> Result<NodeId, HeadError> {
        let mut bytes = [0; 8];
        bytes[..NODE_BYTES].copy_from_slice(self.take(NODE_BYTES)?);
        Ok(NodeId(u64::from_le_bytes(bytes)))
    }
    fn incarnation(&mut self) -> Result<u64, HeadError> {
        self.varint().and_then(within_incarnations)
    }
    pub fn compact_dot(&mut self) -> Result<Dot, HeadError> {
        Ok(Dot { actor: Actor::new(self.node()?, self.incarnation()?), counter: self.varint()? })
    }
    /// Reads a clock; refuses one with more entries than a clock may have.
    pub fn compact_clock(&mut self) -> Result<VersionVector, HeadError> {
        let before = self.0.len();
        let mut clock = VersionVector::new();
        let mut last_node = None;
        for _ in 0..self.varint()? {
            let node = self.node()?;
            if last_node.is_some_and(|last| last >= node) {
                return Err(HeadError::Invalid);
            }
            last_node = Some(node);
            self.compact_runs(node, &mut clock)?;
        }
        if before - self.0.len() > MERGED_CLOCK_BYTES_MAX { Err(HeadError::TooMany) } else { Ok(clock) }
    }
    fn compact_runs(&mut self, node: NodeId, clock: &mut VersionVector) -> Result<(), HeadError> {
        let (runs, mut last) = (self.varint()?, None);
        if runs == 0 {
            return Err(HeadError::Invalid);
        }
        for _ in 0..runs {
            let step = self.varint()?;
            let first = match last {
                None => step >> 1,
                Some(_) if step >> 1 == 0 => return Err(HeadError::Invalid),
                Some(last) => last + (step >> 1),
            };
            let first = within_incarnations(first)?;
            let counter = self.varint()?;
            let more = if step & 1 == 1 { self.varint()? } else { 0 };
            if counter == 0 || (step & 1 == 1 && more == 0) {
                return Err(HeadError::Invalid);
            }
            if more >= (MERGED_CLOCK_ENTRIES_MAX - clock.len()) as u64 {
                return Err(HeadError::TooMany);
            }
            within_incarnations(first + more)?;
            (first..=first + more).for_each(|i| clock.record(Dot { actor: Actor::new(node, i), counter }));
            last = Some(first + more);
        }
        Ok(())
    }
}

fn within_incarnations(number: u64) -> Result<u64, HeadError> {
    if number <= INCARNATION_MAX { Ok(number) } else { Err(HeadError::Invalid) }
}
