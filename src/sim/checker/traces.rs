//! What the coordinators of writes remembered: a write by its dot, and the writes whose end its first state told of.
//! Whoever holds such a state knows those writes by all their dots, until so much else was superseded that they may be
//! forgotten.

use crate::{
    protocol::{
        ring::FixedMap,
        versions::{Dot, Head},
    },
    types::{Key, WriteId},
};
use std::collections::BTreeSet;

/// The network sees the states, and hands on to the history what it has seen.
#[derive(Default)]
pub struct Traces {
    ended: FixedMap<(Key, Dot), Vec<WriteId>>,
    /// By key: all dots that any state has named, as siblings or as superseded.
    dots: FixedMap<Key, BTreeSet<Dot>>,
}

impl Traces {
    /// A replica sends this state to others; `fresh`: the entry that it has just made.
    pub fn sent(&mut self, key: &Key, head: &Head, fresh: Option<u16>) {
        let named = head.entries.iter().map(|entry| entry.dot).chain(head.recent.iter().map(|past| past.dot));
        self.dots.entry(key.clone()).or_default().extend(named);
        let Some(entry) = fresh.and_then(|fresh| head.entries.get(usize::from(fresh))) else { return };
        let ended: Vec<WriteId> = head.recent.iter().map(|past| past.write_id).filter(|id| *id != WriteId(0)).collect();
        if !ended.is_empty() {
            self.ended.insert((key.clone(), entry.dot), ended);
        }
    }
    /// Takes over what was seen since.
    pub fn take(&mut self, news: &mut Traces) {
        self.ended.extend(std::mem::take(&mut news.ended));
        for (key, dots) in std::mem::take(&mut news.dots) {
            self.dots.entry(key).or_default().extend(dots);
        }
    }
    /// If the first state of the write with this dot told of the other's end: how many dots there are beside these two,
    /// each of which may have taken the place of that trace since.
    pub fn rivals(&self, key: &Key, newer: Dot, (older, dot): (WriteId, Dot)) -> Option<usize> {
        self.ended.get(&(key.clone(), newer)).filter(|ended| ended.contains(&older))?;
        Some(self.named(key, [newer, dot]))
    }
    /// How many dots of the key any state has named, beside these: any number, if no state of it was seen. Those of
    /// real processes are not.
    pub fn named(&self, key: &Key, beside: [Dot; 2]) -> usize {
        self.dots.get(key).map_or(usize::MAX, |dots| dots.iter().filter(|dot| !beside.contains(dot)).count())
    }
}
