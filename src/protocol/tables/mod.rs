//! The tables of a cluster, as one shard knows them: which there are, how each keeps its keys, which were dropped.
//!
//! Every shard of every node holds the whole registry: it is small, and whoever coordinates or stores needs a table's
//! settings at once. An entry has no single writer; the newer one, by (version, node), replaces the older wherever they
//! meet, and a change is one version above all that its shard has seen of the table. A dropped table stays as a marker,
//! so that nobody who was away brings it back.
//!
//! Two shards that meet tell each other their digests; where those differ one sends all its entries and the other
//! answers with what it knows better. The machine does not know who meets: the shard lets it speak to the other cores of
//! its node and, with each round of gossip, to another node.
//!
//! `dropped` is apart from the rest of an entry: of two entries the greater counts, whichever is newer. So who missed a
//! drop and hears only of the table that was made again under the same name still drops the old records.
//!
//! A shard whose own record of its tables may be lost is *in doubt*: how a key's conflicts end, and whether its table was
//! dropped, is not guessed. It says so instead of its digest, and whoever is not in doubt answers with all there is.

mod codec;
mod drops;

use crate::{
    limits::{TABLE_ENTRIES_MAX, TABLES_MAX},
    protocol::message::Message,
    types::{NodeId, TableChange, TableChangeKind, TableEntry, TableError, TableName, TableSettings},
};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::Xxh3;

/// The digest that is said in doubt; none other is equal to it.
const IN_DOUBT: u64 = u64::MAX;

pub use codec::{decode, encode};
pub use drops::{Drops, Due};

/// See the module.
#[derive(Clone, Debug)]
pub struct Tables {
    entries: BTreeMap<TableName, TableEntry>,
    /// Of the table `default` as long as nobody has said otherwise: the node's own configuration.
    usual: TableSettings,
    digest: u64,
    in_doubt: bool,
}

impl Tables {
    pub fn new(usual: TableSettings, known: Vec<TableEntry>, in_doubt: bool) -> Tables {
        let mut tables = Tables { entries: BTreeMap::new(), usual, digest: 0, in_doubt };
        tables.take(known);
        tables
    }

    /// How the key is kept.
    pub fn of(&self, key: &[u8]) -> TableSettings {
        let named = self.entry_of(key).and_then(|entry| entry.settings);
        named.unwrap_or_else(|| self.default())
    }
    fn default(&self) -> TableSettings {
        self.entries.get(TableName::DEFAULT).and_then(|entry| entry.settings).unwrap_or(self.usual)
    }
    /// What is known of the table, or of the dropped table, that the key's name says.
    fn entry_of(&self, key: &[u8]) -> Option<&TableEntry> {
        // A key of a cluster without tables is not even looked at.
        if self.entries.is_empty() { None } else { self.entries.get(TableName::of_key(key)?) }
    }
    /// The version of the latest drop of the key's table, 0 when there was none.
    pub fn dropped(&self, key: &[u8]) -> u64 {
        self.entry_of(key).map_or(0, |entry| entry.dropped)
    }
    /// A table that exists.
    pub fn get(&self, name: &str) -> Option<TableSettings> {
        match self.entries.get(name) {
            Some(entry) => entry.settings,
            None => (name == TableName::DEFAULT).then_some(self.usual),
        }
    }
    /// All tables that exist, by name, `default` among them.
    pub fn list(&self) -> BTreeMap<TableName, TableSettings> {
        let settings = |entry: &TableEntry| Some((entry.name.clone(), entry.settings?));
        let mut list: BTreeMap<TableName, TableSettings> = self.entries.values().filter_map(settings).collect();
        if let Ok(name) = TableName::DEFAULT.parse() {
            list.insert(name, self.default());
        }
        list
    }
    /// All entries, markers too.
    pub fn entries(&self) -> impl Iterator<Item = &TableEntry> {
        self.entries.values()
    }

    /// Does what somebody asks for, under a version of its own; `node` is this one. The entry is still to be made durable
    /// and told.
    pub fn change(&mut self, node: NodeId, change: TableChange) -> Result<TableEntry, TableError> {
        let TableChange { name, kind } = change;
        let known = self.entries.get(&name);
        let current = self.get(name.as_str());
        let version = known.map_or(0, |entry| entry.version).saturating_add(1);
        let mut dropped = known.map_or(0, |entry| entry.dropped);
        let settings = match kind {
            TableChangeKind::Set(wish) => {
                let settings = wish.upon(current.unwrap_or_else(|| self.default()));
                settings.check()?;
                if current.is_some_and(|current| current.conflict != settings.conflict) {
                    return Err(TableError::ConflictChanged);
                }
                if known.is_none() && self.entries.len() >= TABLES_MAX {
                    return Err(TableError::TooMany(self.entries.len()));
                }
                Some(settings)
            }
            TableChangeKind::Drop if name.is_default() => return Err(TableError::Default),
            TableChangeKind::Drop if current.is_none() => return Err(TableError::Absent),
            TableChangeKind::Drop => {
                dropped = version;
                None
            }
        };
        let entry = TableEntry { name, version, node, dropped, settings };
        self.take(vec![entry.clone()]);
        Ok(entry)
    }

    /// Takes over what is newer; gives the entries that have changed.
    pub fn take(&mut self, news: Vec<TableEntry>) -> Vec<TableEntry> {
        let mut changed = Vec::new();
        for told in news {
            let room = self.entries.len() < TABLE_ENTRIES_MAX;
            match self.entries.get_mut(&told.name) {
                None if room => drop(self.entries.insert(told.name.clone(), told.clone())),
                None => continue,
                Some(known) => {
                    let dropped = known.dropped.max(told.dropped);
                    let merged = if told.newer_than(known) { told } else { known.clone() };
                    let merged = TableEntry { dropped, ..merged };
                    if merged == *known {
                        continue;
                    }
                    *known = merged.clone();
                    changed.push(merged);
                    continue;
                }
            }
            changed.push(told);
        }
        if !changed.is_empty() {
            let mut hash = Xxh3::new();
            hash.update(&encode(self.entries.values().map(|entry| (entry, 0))));
            self.digest = hash.digest().min(IN_DOUBT - 1);
        }
        changed
    }

    // ---- what shards tell each other ---------------------------------------------------------------------------

    /// Whether there may be tables, or drops, that this shard has forgotten.
    pub fn in_doubt(&self) -> bool {
        self.in_doubt
    }
    /// Whether whoever says this digest is in doubt.
    pub fn is_doubt(digest: u64) -> bool {
        digest == IN_DOUBT
    }
    /// There is nobody to ask.
    pub fn end_doubt(&mut self) {
        self.in_doubt = false;
    }
    fn said_digest(&self) -> u64 {
        if self.in_doubt { IN_DOUBT } else { self.digest }
    }

    /// The first words to another shard.
    pub fn greeting(&self) -> Message {
        Message::Tables { digest: self.said_digest(), news: Vec::new(), wanted: true }
    }
    /// To those who are to hear of a change at once.
    pub fn tidings(&self, news: Vec<TableEntry>) -> Message {
        Message::Tables { digest: self.said_digest(), news, wanted: false }
    }
    /// Another shard has spoken: what has changed by it, and the answer, if there is one.
    pub fn told(&mut self, digest: u64, news: Vec<TableEntry>, wanted: bool) -> (Vec<TableEntry>, Option<Message>) {
        if Tables::is_doubt(digest) && self.in_doubt {
            return (Vec::new(), None);
        }
        // All that somebody knows, or that it knows the same, or nothing: only that ends a doubt.
        if (wanted && !news.is_empty()) || (news.is_empty() && (digest == self.digest || digest == 0)) {
            self.in_doubt = false;
        }
        if news.is_empty() {
            let differ = wanted && digest != self.digest;
            let all = || Message::Tables { digest: self.digest, news: self.entries().cloned().collect(), wanted: true };
            return (Vec::new(), differ.then(all));
        }
        let theirs: BTreeMap<TableName, TableEntry> =
            news.iter().map(|entry| (entry.name.clone(), entry.clone())).collect();
        let changed = self.take(news);
        let better = |entry: &&TableEntry| theirs.get(&entry.name) != Some(*entry);
        let answer: Vec<TableEntry> =
            if wanted { self.entries().filter(better).cloned().collect() } else { Vec::new() };
        let answer = (!answer.is_empty()).then(|| self.tidings(answer));
        (changed, answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Conflict, Durability, TableWish};

    const USUAL: TableSettings =
        TableSettings { n: 3, r: 2, w: 2, conflict: Conflict::Siblings, sloppy: true, durability: Durability::Sync };
    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn set(name: &str, wish: TableWish) -> TableChange {
        TableChange { name: name.parse().expect("a name"), kind: TableChangeKind::Set(wish) }
    }
    fn n(count: u8) -> TableWish {
        TableWish { n: Some(count), r: Some(1), w: Some(1), ..TableWish::default() }
    }
    fn dropping(name: &str) -> TableChange {
        TableChange { name: name.parse().expect("a name"), kind: TableChangeKind::Drop }
    }
    #[test]
    fn one_in_doubt_is_told_all_by_whoever_is_not() {
        let mut doubtful = Tables::new(USUAL, Vec::new(), true);
        let mut other = Tables::new(USUAL, Vec::new(), true);
        let asked = |from: &Tables, to: &mut Tables| match from.greeting() {
            Message::Tables { digest, news, wanted } => to.told(digest, news, wanted).1,
            message => panic!("{message:?}"),
        };
        assert_eq!(asked(&doubtful, &mut other), None, "neither knows");
        assert!(doubtful.in_doubt() && other.in_doubt());
        // Even that there are none is an answer.
        let mut sound = Tables::new(USUAL, Vec::new(), false);
        let Some(Message::Tables { digest, news, wanted }) = asked(&doubtful, &mut sound) else { panic!("no answer") };
        assert_eq!((doubtful.told(digest, news, wanted), doubtful.in_doubt()), ((Vec::new(), None), false));
        sound.change(A, set("cart", n(5))).expect("a table");
        let Some(Message::Tables { digest, news, wanted }) = asked(&other, &mut sound) else { panic!("no answer") };
        // That there is something is not what it is.
        let Message::Tables { digest: theirs, news: nothing, wanted: asks } = sound.greeting() else {
            panic!("no words")
        };
        assert!(other.told(theirs, nothing, asks).0.is_empty() && other.in_doubt());
        assert_eq!(other.told(digest, news, wanted).0.len(), 1);
        assert_eq!((other.of(b"cart:1").n, other.in_doubt()), (5, false));
    }

    /// Both have spoken until neither has an answer.
    fn meet(a: &mut Tables, b: &mut Tables) {
        let mut words = Some(a.greeting());
        for turn in 0..6 {
            let Some(Message::Tables { digest, news, wanted }) = words else { break };
            assert!(turn < 5, "they do not come to an end");
            words = if turn % 2 == 0 { b.told(digest, news, wanted).1 } else { a.told(digest, news, wanted).1 };
        }
    }
    fn same(a: &Tables, b: &Tables) -> bool {
        a.entries == b.entries && a.digest == b.digest
    }

    #[test]
    fn a_key_belongs_to_the_table_that_it_names() {
        let mut tables = Tables::new(USUAL, vec![], false);
        tables.change(A, set("cart", n(5))).expect("made");
        tables.change(A, set("default", n(1))).expect("altered");
        let replicas = |key: &str| tables.of(key.as_bytes()).n;
        assert_eq!([replicas("cart:1"), replicas("cart:1:2"), replicas("cart:")], [5, 5, 5]);
        assert_eq!([replicas("cart"), replicas("carts:1"), replicas(":1"), replicas("art:1")], [1, 1, 1, 1]);
        assert_eq!(tables.list().len(), 2);
    }

    #[test]
    fn what_cannot_be_is_refused_and_nothing_changes() {
        let mut tables = Tables::new(USUAL, vec![], false);
        for wish in [n(0), n(8), TableWish { r: Some(4), ..TableWish::default() }, TableWish { w: Some(0), ..n(3) }] {
            assert!(matches!(tables.change(A, set("cart", wish)), Err(TableError::Count { .. })), "{wish:?}");
        }
        let other = TableWish { conflict: Some(Conflict::LastWriteWins), ..TableWish::default() };
        assert_eq!(tables.change(A, set("default", other)), Err(TableError::ConflictChanged));
        assert_eq!(tables.change(A, dropping("default")), Err(TableError::Default));
        assert_eq!(tables.change(A, dropping("cart")), Err(TableError::Absent));
        assert_eq!(tables.entries().count(), 0);
        (0..TABLES_MAX).for_each(|i| drop(tables.change(A, set(&format!("t{i}"), n(1))).expect("room")));
        assert_eq!(tables.change(A, set("more", n(1))), Err(TableError::TooMany(TABLES_MAX)));
        tables.change(A, dropping("t7")).expect("dropped");
        assert!(tables.change(A, set("more", n(1))).is_err() && tables.change(A, set("t7", n(2))).is_ok());
        for name in ["", "a:b", ".a", "a b", "ä", &"x".repeat(65)] {
            assert_eq!(name.parse::<TableName>(), Err(TableError::Name), "{name:?}");
        }
    }

    #[test]
    fn whoever_meets_agrees_and_the_newest_wins() {
        let (mut a, mut b) = (Tables::new(USUAL, vec![], false), Tables::new(USUAL, vec![], false));
        meet(&mut a, &mut b);
        a.change(A, set("cart", n(5))).expect("made");
        a.change(A, set("user", n(2))).expect("made");
        meet(&mut b, &mut a);
        assert!(same(&a, &b) && b.get("cart").is_some_and(|t| t.n == 5));
        // Apart: one alters once, the other twice, and both make another table.
        a.change(A, set("cart", n(4))).expect("altered");
        b.change(B, set("cart", n(6))).expect("altered");
        b.change(B, set("cart", n(7))).expect("altered");
        a.change(A, set("x", n(1))).expect("made");
        b.change(B, set("y", n(1))).expect("made");
        meet(&mut a, &mut b);
        assert!(same(&a, &b) && a.get("cart").is_some_and(|t| t.n == 7) && a.get("y").is_some());
        // As often on both sides: the greater node.
        a.change(A, set("cart", n(1))).expect("altered");
        b.change(B, set("cart", n(2))).expect("altered");
        meet(&mut b, &mut a);
        assert!(same(&a, &b) && a.get("cart").is_some_and(|t| t.n == 2));
    }

    #[test]
    fn a_dropped_table_does_not_come_back() {
        let (mut a, mut b) = (Tables::new(USUAL, vec![], false), Tables::new(USUAL, vec![], false));
        a.change(A, set("cart", n(5))).expect("made");
        meet(&mut a, &mut b);
        a.change(A, dropping("cart")).expect("dropped");
        meet(&mut b, &mut a);
        assert!(same(&a, &b) && b.get("cart").is_none() && b.of(b"cart:1") == USUAL);
        assert_eq!((b.dropped(b"cart:1"), b.dropped(b"user:1")), (2, 0));
    }

    #[test]
    fn a_drop_is_heard_of_by_who_only_hears_of_the_table_made_again() {
        let (mut a, mut b) = (Tables::new(USUAL, vec![], false), Tables::new(USUAL, vec![], false));
        a.change(A, set("cart", n(5))).expect("made");
        meet(&mut a, &mut b);
        // Two alterations apart are newer than the drop, which counts all the same.
        a.change(A, dropping("cart")).expect("dropped");
        b.change(B, set("cart", n(4))).expect("altered");
        b.change(B, set("cart", n(3))).expect("altered");
        meet(&mut a, &mut b);
        assert!(same(&a, &b) && a.get("cart").is_some_and(|t| t.n == 3) && a.dropped(b"cart:1") == 2);
    }

    #[test]
    fn what_is_stored_is_read_back_and_damage_is_seen() {
        let mut tables = Tables::new(USUAL, vec![], false);
        tables.change(A, set("cart", n(5))).expect("made");
        tables.change(A, set("user", TableWish { conflict: Some(Conflict::LastWriteWins), ..n(2) })).expect("made");
        tables.change(A, dropping("cart")).expect("dropped");
        let bytes = encode(tables.entries().map(|entry| (entry, entry.version + 7)));
        let (entries, done): (Vec<_>, Vec<_>) = decode(&bytes).expect("whole").into_iter().unzip();
        assert_eq!(done, entries.iter().map(|e| e.version + 7).collect::<Vec<_>>());
        assert!(same(&tables, &Tables::new(USUAL, entries, false)));
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]), None, "{cut}");
        }
    }
}
