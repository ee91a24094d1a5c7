//! The tables of a cluster, as one shard knows them: which there are, how each keeps its keys, which were dropped.
//!
//! Every shard of every node holds the whole registry: it is small, and whoever coordinates or stores needs a table's
//! settings at once. An entry has no single writer; the newer one, by (version, node), replaces the older wherever they
//! meet, and a change is one version above all that its shard has seen of the table. A dropped table stays as a marker,
//! so that nobody who was away brings it back.
//!
//! Two shards that meet tell each other their digests; where those differ one sends all its entries and the other
//! answers with what it knows better. The machine does not know who meets: the shard lets it speak to the other cores
//! of its node and, with each round of gossip, to another node.
//!
//! `dropped` is apart from the rest of an entry: of two entries the greater counts, whichever is newer. So who missed a
//! drop and hears only of the table that was made again under the same name still drops the old records. So are the
//! makings: of two tables of one name that were made apart, one that keeps concurrent values and one that does not, all
//! shards come to keep them, see [`TableEntry::in_force`].
//!
//! What a shard does to a key it does by a *word* on the key's table ([`TableWord`]), and says it with each message
//! about the key. Who has heard a newer one refuses and tells it; who has not, asks first. So nobody keeps a key by
//! settings that another does not know, and nothing that is acknowledged is thrown away by one who knows better.
//!
//! How sure a shard is of what it knows is its [`Certainty`]. One whose own record of its tables may be lost does not
//! guess how a key's conflicts end, and whether its table was dropped: it says so instead of its digest, and whoever
//! knows more answers with all there is. One whose record is whole has missed what happened while it was down: it
//! serves nothing before another node has spoken that has not, or so many of those that have been down as well that all
//! together are most of the members, as when a whole cluster starts. A newcomer has no record until somebody has spoken
//! to it, so its word settles nobody's doubt.

mod codec;
mod drops;

use crate::{
    limits::{TABLE_ENTRIES_MAX, TABLE_NAMES_MAX, TABLES_MAX},
    protocol::message::{Certainty, Message, Words},
    types::{
        Conflict, Making, NodeId, TableChange, TableChangeKind, TableEntry, TableError, TableName, TableSettings,
        TableWish, TableWord,
    },
};
use std::collections::{BTreeMap, BTreeSet};
use xxhash_rust::xxh3::Xxh3;

/// The digest that is said in doubt; none other is equal to it.
const IN_DOUBT: u64 = u64::MAX;

pub use codec::{decode, encode};
pub use drops::{Drops, Due};

/// See the module.
#[derive(Clone, Debug)]
pub struct Tables {
    entries: BTreeMap<TableName, TableEntry>,
    /// Settings of the table `default` as long as nobody has said otherwise: the node's own configuration.
    usual: TableSettings,
    digest: u64,
    certainty: Certainty,
    /// Other nodes whose records are known here, while this shard is not sure.
    heard: BTreeSet<NodeId>,
    /// Its own record was lost: it counts for nothing.
    forgot: bool,
}

impl Tables {
    pub fn new(usual: TableSettings, known: Vec<TableEntry>, certainty: Certainty) -> Tables {
        let forgot = certainty == Certainty::Lost;
        let mut tables =
            Tables { entries: BTreeMap::new(), usual, digest: 0, certainty, heard: BTreeSet::new(), forgot };
        tables.take(known);
        tables
    }

    /// How the key is kept.
    pub fn of(&self, key: &[u8]) -> TableSettings {
        let named = self.entry_of(key).and_then(TableEntry::in_force);
        named.unwrap_or_else(|| self.default())
    }
    fn default(&self) -> TableSettings {
        self.entries.get(TableName::DEFAULT).and_then(TableEntry::in_force).unwrap_or(self.usual)
    }
    /// What is known of the table, or of the dropped table, that the key's name says.
    pub fn entry_of(&self, key: &[u8]) -> Option<&TableEntry> {
        // A key of a cluster without tables is not even looked at.
        if self.entries.is_empty() { None } else { self.entries.get(TableName::of_key(key)?) }
    }
    /// The word that the key is kept by.
    pub fn word(&self, key: &[u8]) -> TableWord {
        self.entry_of(key).map(TableEntry::word).unwrap_or_default()
    }
    /// The life of the key's table that is written in now, 0: none.
    pub fn life(&self, key: &[u8]) -> u64 {
        self.entry_of(key).map_or(0, TableEntry::life)
    }
    /// The version of the latest drop of the key's table, 0 when there was none.
    pub fn dropped(&self, key: &[u8]) -> u64 {
        self.entry_of(key).map_or(0, |entry| entry.dropped)
    }
    /// A table that exists.
    pub fn get(&self, name: &str) -> Option<TableSettings> {
        match self.entries.get(name) {
            Some(entry) => entry.in_force(),
            None => (name == TableName::DEFAULT).then_some(self.usual),
        }
    }
    /// What is known of a name.
    pub fn entry(&self, name: &str) -> Option<&TableEntry> {
        self.entries.get(name)
    }
    /// All tables that exist, by name, `default` among them.
    pub fn list(&self) -> BTreeMap<TableName, TableSettings> {
        let settings = |entry: &TableEntry| Some((entry.name.clone(), entry.in_force()?));
        let mut list: BTreeMap<TableName, TableSettings> = self.entries.values().filter_map(settings).collect();
        if let Ok(name) = TableName::DEFAULT.parse() {
            list.insert(name, self.default());
        }
        list
    }
    /// Tables that two nodes have made, neither knowing of the other.
    pub fn made_apart(&self) -> BTreeSet<TableName> {
        self.entries.values().filter(|entry| entry.made_apart().is_some()).map(|entry| entry.name.clone()).collect()
    }
    /// Equal where two registries hold the same entries.
    pub fn digest(&self) -> u64 {
        self.digest
    }
    /// All entries, markers too.
    pub fn entries(&self) -> impl Iterator<Item = &TableEntry> {
        self.entries.values()
    }

    /// Does what somebody asks for, under a version of its own; `node` is this one. The entry is still to be made
    /// durable and told.
    pub fn change(&mut self, node: NodeId, change: TableChange) -> Result<TableEntry, TableError> {
        let TableChange { name, kind } = change;
        let mut entry = match self.entries.get(&name) {
            Some(known) => known.clone(),
            None => TableEntry {
                name: name.clone(),
                version: 0,
                node,
                dropped: 0,
                whole: 0,
                kept: 0,
                made: [Making::default(); 2],
                settings: None,
            },
        };
        let current = self.get(name.as_str());
        (entry.version, entry.node) = (entry.version.saturating_add(1), node);
        match kind {
            TableChangeKind::Make(_) if current.is_some() => {
                return Err(TableError::Exists(current.unwrap_or(self.usual)));
            }
            TableChangeKind::Set(wish) | TableChangeKind::Make(wish) => self.set(&mut entry, wish, current)?,
            TableChangeKind::Drop if name.is_default() => return Err(TableError::Default),
            TableChangeKind::Drop if current.is_none() => return Err(TableError::Absent),
            TableChangeKind::Drop => {
                entry.dropped = entry.version;
                // Records of a table from before makings were noted do not say that they belong to it.
                if entry.made[0].version == 0 {
                    entry.whole = entry.version;
                }
                entry.settings = None;
            }
        }
        self.take(vec![entry.clone()]);
        Ok(entry)
    }
    fn set(&self, entry: &mut TableEntry, wish: TableWish, current: Option<TableSettings>) -> Result<(), TableError> {
        let settings = wish.upon(current.unwrap_or_else(|| self.default()));
        settings.check()?;
        if current.is_some_and(|current| current.conflict != settings.conflict) {
            return Err(TableError::ConflictChanged);
        }
        if current.is_none() {
            let living = self.entries.values().filter(|entry| entry.settings.is_some()).count();
            if living >= TABLES_MAX {
                return Err(TableError::TooMany(living));
            }
            if self.entries.len() >= TABLE_NAMES_MAX && !self.entries.contains_key(&entry.name) {
                return Err(TableError::NamesUsed(self.entries.len()));
            }
            let making = Making { version: entry.version, node: entry.node };
            entry.made = [making, entry.made[0]];
        }
        if settings.conflict == Conflict::Siblings && (current.is_none() || entry.made[0].version == 0) {
            entry.kept = entry.version;
        }
        entry.settings = Some(settings);
        Ok(())
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
                    let merged = known.join(&told);
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

    pub fn certainty(&self) -> Certainty {
        self.certainty
    }
    /// Whether there may be tables, or drops, that this shard has forgotten or not heard of.
    pub fn in_doubt(&self) -> bool {
        self.certainty != Certainty::Sure
    }
    /// There is nobody to ask, or nobody who knows more.
    pub fn end_doubt(&mut self) {
        self.certainty = Certainty::Sure;
        self.heard.clear();
    }
    /// The own record is of an older time than others know.
    pub fn distrust_own(&mut self) {
        self.forgot = true;
    }
    /// Whether the records that are known here are those of most of so many members.
    pub fn has_heard_most(&self, members: usize) -> bool {
        2 * (self.heard.len() + usize::from(!self.forgot)) > members
    }
    fn say(&self, news: Vec<TableEntry>, wanted: bool) -> Message {
        let certainty = self.certainty;
        let digest = if certainty == Certainty::Lost { IN_DOUBT } else { self.digest };
        Message::Tables(Words { digest, news, wanted, certainty })
    }

    /// The first words to another shard.
    pub fn greeting(&self) -> Message {
        self.say(Vec::new(), true)
    }
    /// The message to those who are to hear of a change at once.
    pub fn tidings(&self, news: Vec<TableEntry>) -> Message {
        self.say(news, false)
    }
    /// Another shard has spoken, of another node (`from`) or of this one: what has changed by it, and the answer, if
    /// there is one.
    pub fn told(&mut self, from: Option<NodeId>, words: Words) -> (Vec<TableEntry>, Option<Message>) {
        let Words { digest, news, wanted, certainty } = words;
        if certainty == Certainty::Lost && self.certainty == Certainty::Lost {
            return (Vec::new(), None);
        }
        // All that somebody knows, or that it knows the same, or nothing: only that ends a doubt.
        let all = (wanted && !news.is_empty()) || (news.is_empty() && (digest == self.digest || digest == 0));
        if all {
            self.certainty = self.certainty.min(certainty);
            if certainty == Certainty::Unheard && self.certainty == Certainty::Unheard {
                self.heard.extend(from);
            }
        }
        if news.is_empty() {
            let doubts = certainty != Certainty::Sure && self.certainty != Certainty::Lost;
            let answer = match digest == self.digest {
                true if wanted && doubts => Some(self.say(Vec::new(), false)),
                false if wanted => Some(self.say(self.entries().cloned().collect(), true)),
                true | false => None,
            };
            return (Vec::new(), answer);
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
    fn words(message: Message) -> Words {
        match message {
            Message::Tables(words) => words,
            message => panic!("{message:?}"),
        }
    }
    /// What another node answers to the first words.
    fn asked(from: &Tables, to: &mut Tables) -> Option<Words> {
        to.told(Some(B), words(from.greeting())).1.map(words)
    }
    #[test]
    fn one_in_doubt_is_told_all_by_whoever_is_not() {
        let mut doubtful = Tables::new(USUAL, Vec::new(), Certainty::Lost);
        let mut other = Tables::new(USUAL, Vec::new(), Certainty::Lost);
        assert_eq!(asked(&doubtful, &mut other), None, "neither knows");
        assert!(doubtful.in_doubt() && other.in_doubt());
        // Even that there are none is an answer.
        let mut sound = Tables::new(USUAL, Vec::new(), Certainty::Sure);
        let answer = asked(&doubtful, &mut sound).expect("an answer");
        assert_eq!((doubtful.told(Some(A), answer), doubtful.in_doubt()), ((Vec::new(), None), false));
        sound.change(A, set("cart", n(5))).expect("a table");
        let answer = asked(&other, &mut sound).expect("an answer");
        // That there is something is not what it is.
        assert!(other.told(Some(A), words(sound.greeting())).0.is_empty() && other.in_doubt());
        assert_eq!(other.told(Some(A), answer).0.len(), 1);
        assert_eq!((other.of(b"cart:1").n, other.in_doubt()), (5, false));
    }
    #[test]
    fn a_newcomer_settles_nobodys_doubt() {
        let mut newcomer = Tables::new(USUAL, Vec::new(), Certainty::Lost);
        let mut restarted = Tables::new(USUAL, Vec::new(), Certainty::Unheard);
        restarted.told(Some(A), words(newcomer.greeting()));
        assert!(restarted.in_doubt());
        // A record that is whole is worth as much as any other node's; the own cores have missed the same.
        let answer = asked(&newcomer, &mut restarted).expect("an answer");
        newcomer.told(Some(A), answer);
        assert_eq!(newcomer.certainty(), Certainty::Unheard);
        // Most of two are two, and of three two whose records are whole.
        assert!(!newcomer.has_heard_most(2) && !restarted.has_heard_most(2) && newcomer.has_heard_most(1));
        let mut third = Tables::new(USUAL, Vec::new(), Certainty::Unheard);
        let answer = asked(&third, &mut restarted).expect("an answer");
        third.told(Some(A), answer);
        assert!(third.in_doubt() && third.has_heard_most(3) && !third.has_heard_most(4));
        newcomer.end_doubt();
        let mut core = Tables::new(USUAL, Vec::new(), Certainty::Lost);
        let answer = asked(&core, &mut restarted).expect("an answer");
        core.told(None, answer);
        assert_eq!(core.certainty(), Certainty::Unheard);
        let answer = asked(&restarted, &mut newcomer).expect("an answer");
        restarted.told(Some(A), answer);
        core.told(None, words(restarted.greeting()));
        assert!(!restarted.in_doubt() && !core.in_doubt());
    }

    /// Both have spoken until neither has an answer.
    fn meet(a: &mut Tables, b: &mut Tables) {
        let mut said = Some(a.greeting());
        for turn in 0..6 {
            let Some(message) = said else { break };
            assert!(turn < 5, "they do not come to an end");
            said = if turn % 2 == 0 { b.told(Some(A), words(message)).1 } else { a.told(Some(A), words(message)).1 };
        }
    }
    fn same(a: &Tables, b: &Tables) -> bool {
        a.entries == b.entries && a.digest == b.digest
    }

    #[test]
    fn a_key_belongs_to_the_table_that_it_names() {
        let mut tables = Tables::new(USUAL, vec![], Certainty::Sure);
        tables.change(A, set("cart", n(5))).expect("made");
        tables.change(A, set("default", n(1))).expect("altered");
        let replicas = |key: &str| tables.of(key.as_bytes()).n;
        assert_eq!([replicas("cart:1"), replicas("cart:1:2"), replicas("cart:")], [5, 5, 5]);
        assert_eq!([replicas("cart"), replicas("carts:1"), replicas(":1"), replicas("art:1")], [1, 1, 1, 1]);
        assert_eq!(tables.list().len(), 2);
    }

    #[test]
    fn what_cannot_be_is_refused_and_nothing_changes() {
        let mut tables = Tables::new(USUAL, vec![], Certainty::Sure);
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
        assert!(tables.change(A, set("more", n(1))).is_ok(), "a dropped one is none");
        let made = TableChange { name: "more".parse().expect("a name"), kind: TableChangeKind::Make(n(1)) };
        assert!(matches!(tables.change(B, made), Err(TableError::Exists(_))));
        for name in ["", "a:b", ".a", "a b", "ä", &"x".repeat(65)] {
            assert_eq!(name.parse::<TableName>(), Err(TableError::Name), "{name:?}");
        }
    }

    /// Near the end of all names: told by name, and those of dropped tables can be used again.
    #[test]
    fn names_do_not_run_out_without_a_word() {
        let mut tables = Tables::new(USUAL, vec![], Certainty::Sure);
        let mut marker = tables.change(A, set("x", n(1))).expect("made");
        marker.settings = None;
        let named = |i: usize| TableEntry { name: format!("u{i}").parse().expect("a name"), ..marker.clone() };
        tables.take((1..TABLE_NAMES_MAX - 1).map(named).collect());
        tables.change(A, set("last", n(1))).expect("room for one");
        tables.change(A, dropping("last")).expect("dropped");
        assert_eq!(tables.change(A, set("more", n(1))), Err(TableError::NamesUsed(TABLE_NAMES_MAX)));
        tables.change(A, set("last", n(1))).expect("made again");
        // The other side of a partition has used as many.
        let apart = |i: usize| TableEntry { name: format!("v{i}").parse().expect("a name"), ..marker.clone() };
        assert_eq!(tables.take((0..TABLE_NAMES_MAX).map(apart).collect()).len(), TABLE_NAMES_MAX);
        assert!(decode(&encode(tables.entries().map(|entry| (entry, 0)))).is_some());
    }

    #[test]
    fn two_kinds_made_apart_come_to_keep_all() {
        let (mut a, mut b) = (Tables::new(USUAL, vec![], Certainty::Sure), Tables::new(USUAL, vec![], Certainty::Sure));
        let lossy = TableWish { conflict: Some(Conflict::LastWriteWins), ..TableWish::default() };
        a.change(A, set("cart", TableWish::default())).expect("made");
        b.change(B, set("cart", lossy)).expect("made");
        assert_eq!(b.of(b"cart:1").conflict, Conflict::LastWriteWins);
        meet(&mut a, &mut b);
        assert!(same(&a, &b) && b.of(b"cart:1").conflict == Conflict::Siblings);
        let (latest, other) = a.entry("cart").and_then(TableEntry::made_apart).expect("it is shown");
        assert_eq!((latest.node, other.node), (B, A));
        assert_eq!(a.change(A, set("cart", lossy)), Err(TableError::ConflictChanged));
        a.change(A, dropping("cart")).expect("dropped");
        b.change(B, set("cart", n(2))).expect("altered");
        meet(&mut b, &mut a);
        assert!(same(&a, &b));
    }

    #[test]
    fn whoever_meets_agrees_and_the_newest_wins() {
        let (mut a, mut b) = (Tables::new(USUAL, vec![], Certainty::Sure), Tables::new(USUAL, vec![], Certainty::Sure));
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
        let (mut a, mut b) = (Tables::new(USUAL, vec![], Certainty::Sure), Tables::new(USUAL, vec![], Certainty::Sure));
        a.change(A, set("cart", n(5))).expect("made");
        meet(&mut a, &mut b);
        a.change(A, dropping("cart")).expect("dropped");
        meet(&mut b, &mut a);
        assert!(same(&a, &b) && b.get("cart").is_none() && b.of(b"cart:1") == USUAL);
        assert_eq!((b.dropped(b"cart:1"), b.dropped(b"user:1")), (2, 0));
    }

    #[test]
    fn a_drop_is_heard_of_by_who_only_hears_of_the_table_made_again() {
        let (mut a, mut b) = (Tables::new(USUAL, vec![], Certainty::Sure), Tables::new(USUAL, vec![], Certainty::Sure));
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
        let mut tables = Tables::new(USUAL, vec![], Certainty::Sure);
        tables.change(A, set("cart", n(5))).expect("made");
        tables.change(A, set("user", TableWish { conflict: Some(Conflict::LastWriteWins), ..n(2) })).expect("made");
        tables.change(A, dropping("cart")).expect("dropped");
        let bytes = encode(tables.entries().map(|entry| (entry, entry.version + 7)));
        let (entries, done): (Vec<_>, Vec<_>) = decode(&bytes).expect("whole").into_iter().unzip();
        assert_eq!(done, entries.iter().map(|e| e.version + 7).collect::<Vec<_>>());
        assert!(same(&tables, &Tables::new(USUAL, entries, Certainty::Sure)));
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]), None, "{cut}");
        }
        // As the first version was written: `cart` dropped, `user` with n 2 where the last write wins.
        let mut old = vec![1];
        for (name, fields) in [("cart", [3u64, 1, 3, 2]), ("user", [1, 2, 0, 0])] {
            old.push(name.len() as u8);
            old.extend(name.bytes().chain(fields.iter().flat_map(|field| field.to_le_bytes())));
            old.extend(if name == "cart" { [0; 7] } else { [1, 2, 1, 1, 1, 1, 0] });
        }
        old.push(0);
        let entries = decode(&old).expect("the first version is read");
        let [(cart, 2), (user, 0)] = &entries[..] else { panic!("{entries:?}") };
        assert_eq!((cart.dropped, cart.whole, cart.settings), (3, 3, None));
        assert_eq!((user.life(), user.in_force().map(|s| (s.n, s.conflict))), (0, Some((2, Conflict::LastWriteWins))));
    }
}
