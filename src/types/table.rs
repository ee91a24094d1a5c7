//! A table: a name that keys begin with, and how the keys of it are kept.

use super::NodeId;
use crate::limits::{REPLICAS_MAX, TABLE_NAME_BYTES_MAX};
use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

/// The moment at which a write is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Durability {
    /// After the sync of its batch.
    #[default]
    Sync,
    /// Once the device has it, before its sync, which follows within
    /// [`SYNC_INTERVAL`](crate::limits::SYNC_INTERVAL): the last writes before a power cut may be lost, those before
    /// them not.
    Interval,
}
impl Durability {
    pub fn name(self) -> &'static str {
        match self {
            Durability::Sync => "sync",
            Durability::Interval => "interval",
        }
    }
    pub fn from_name(name: &str) -> Option<Durability> {
        [Durability::Sync, Durability::Interval].into_iter().find(|d| d.name() == name)
    }
}

/// The fate of concurrent writes of one key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Conflict {
    /// All are kept, for a reader to merge.
    #[default]
    Siblings,
    /// The one with the greatest stamp is kept, the others are lost.
    LastWriteWins,
}
impl Conflict {
    pub fn name(self) -> &'static str {
        match self {
            Conflict::Siblings => "siblings",
            Conflict::LastWriteWins => "last_write_wins",
        }
    }
    pub fn from_name(name: &str) -> Option<Conflict> {
        [Conflict::Siblings, Conflict::LastWriteWins].into_iter().find(|c| c.name() == name)
    }
}

/// A table's name: 1 to [`TABLE_NAME_BYTES_MAX`] letters, digits, `-`, `_` and `.`, the first a letter or a digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TableName(Arc<str>);

impl TableName {
    /// The table of all keys that belong to no other. It always exists.
    pub const DEFAULT: &'static str = "default";

    pub fn as_str(&self) -> &str {
        &self.0
    }
    pub fn is_default(&self) -> bool {
        self.as_str() == TableName::DEFAULT
    }
    /// The part of a key before its first colon, if it may be a table's name.
    pub fn of_key(key: &[u8]) -> Option<&str> {
        let end = key.iter().take(TABLE_NAME_BYTES_MAX + 1).position(|b| *b == b':')?;
        std::str::from_utf8(&key[..end]).ok()
    }
}
impl FromStr for TableName {
    type Err = TableError;
    fn from_str(text: &str) -> Result<TableName, TableError> {
        let sign = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let sound = (1..=TABLE_NAME_BYTES_MAX).contains(&text.len())
            && text.bytes().all(sign)
            && text.as_bytes()[0].is_ascii_alphanumeric();
        if sound { Ok(TableName(text.into())) } else { Err(TableError::Name) }
    }
}
impl Borrow<str> for TableName {
    fn borrow(&self) -> &str {
        &self.0
    }
}
impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The settings of a table: how its keys are kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TableSettings {
    /// Replicas of a key: 1 to [`REPLICAS_MAX`].
    pub n: u8,
    /// Answers of a get, acknowledgements of a write: 1 to `n`.
    pub r: u8,
    pub w: u8,
    pub conflict: Conflict,
    /// Whether stand-ins for absent replicas count.
    pub sloppy: bool,
    pub durability: Durability,
}
impl TableSettings {
    pub fn check(&self) -> Result<(), TableError> {
        let bound = |name, value: u8, most: u8| {
            if (1..=most).contains(&value) { Ok(()) } else { Err(TableError::Count { name, value, most }) }
        };
        bound("n", self.n, REPLICAS_MAX as u8)?;
        bound("r", self.r, self.n)?;
        bound("w", self.w, self.n)
    }
}

/// The error of a table's settings, or of a change of a table. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TableError {
    #[error(
        "a table's name has 1 to {TABLE_NAME_BYTES_MAX} letters, digits, '-', '_' and '.', the first a letter or a digit"
    )]
    Name,
    #[error("{name} is 1 to {most}, not {value} (at most {REPLICAS_MAX} replicas; r and w at most n)")]
    Count { name: &'static str, value: u8, most: u8 },
    #[error("the table default cannot be dropped")]
    Default,
    #[error("how a table's conflicts end is said when it is made; drop it and make it again, or take another name")]
    ConflictChanged,
    #[error("there is no such table")]
    Absent,
    #[error("there are {0} tables, as many as there may be; drop one that is not needed")]
    TooMany(usize),
    #[error(
        "{0} names of tables have been used, as many as there may be; take the name of one that was dropped, or keys of the \
         table default"
    )]
    NamesUsed(usize),
    #[error("there is a table of this name already: n {} r {} w {} {} sloppy {} {}; alter it, or take another name",
        .0.n, .0.r, .0.w, .0.conflict.name(), .0.sloppy, .0.durability.name())]
    Exists(TableSettings),
}

/// A change of one table that somebody asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableChange {
    pub name: TableName,
    pub kind: TableChangeKind,
}
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableChangeKind {
    /// Makes the table or alters it; what is not named stays, or is as in the table `default`.
    Set(TableWish),
    /// Makes a table that is not there yet.
    Make(TableWish),
    Drop,
}
/// Settings by name; `None`: not named.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TableWish {
    pub n: Option<u8>,
    pub r: Option<u8>,
    pub w: Option<u8>,
    pub conflict: Option<Conflict>,
    pub sloppy: Option<bool>,
    pub durability: Option<Durability>,
}
impl TableWish {
    pub fn upon(&self, settings: TableSettings) -> TableSettings {
        TableSettings {
            n: self.n.unwrap_or(settings.n),
            r: self.r.unwrap_or(settings.r),
            w: self.w.unwrap_or(settings.w),
            conflict: self.conflict.unwrap_or(settings.conflict),
            sloppy: self.sloppy.unwrap_or(settings.sloppy),
            durability: self.durability.unwrap_or(settings.durability),
        }
    }
}

/// A making of a table: the version of the entry that made it, and the node that was asked to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Making {
    /// 0: none, or one from before makings were noted.
    pub version: u64,
    pub node: NodeId,
}

/// The knowledge of a table: the newest word on it, and what counts whichever word is the newest.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TableEntry {
    pub name: TableName,
    /// Newer is the greater (version, node).
    pub version: u64,
    /// The node that said it.
    pub node: NodeId,
    /// The version of the latest drop, 0: never. What was written to the table before it is gone, whatever came after.
    pub dropped: u64,
    /// The latest drop of a table whose records do not say which life they belong to: it takes all of that name.
    pub whole: u64,
    /// The version of the latest making with `conflict` = `siblings`, 0: none.
    pub kept: u64,
    /// The two latest makings, the later one first.
    pub made: [Making; 2],
    /// The settings that the newest word gives; `None`: the table is dropped, and the entry kept as a marker so that
    /// nobody brings it back.
    pub settings: Option<TableSettings>,
}
impl TableEntry {
    pub fn newer_than(&self, other: &TableEntry) -> bool {
        // A node whose disk was set back may say two things under one version: all still agree on one.
        (self.version, self.node, self.settings) > (other.version, other.node, other.settings)
    }
    /// All that both know: the newer word, and of the rest the greater. Whoever merges what with what, and how often,
    /// comes to the same.
    pub fn join(&self, other: &TableEntry) -> TableEntry {
        let newer = if other.newer_than(self) { other } else { self };
        let mut made = [self.made[0], self.made[1], other.made[0], other.made[1]];
        made.sort_unstable_by(|a, b| b.cmp(a));
        let second = made.iter().copied().find(|making| *making != made[0]).unwrap_or_default();
        TableEntry {
            dropped: self.dropped.max(other.dropped),
            whole: self.whole.max(other.whole),
            kept: self.kept.max(other.kept),
            made: [made[0], second],
            ..newer.clone()
        }
    }
    /// The settings in force. Where a table of this name that keeps concurrent values was made apart from one that does
    /// not, all are kept: nothing that was acknowledged under either is lost.
    pub fn in_force(&self) -> Option<TableSettings> {
        let settings = self.settings?;
        let conflict = if self.kept > self.dropped { Conflict::Siblings } else { settings.conflict };
        Some(TableSettings { conflict, ..settings })
    }
    /// The other node that has made this table, neither knowing of the other.
    pub fn made_apart(&self) -> Option<(Making, Making)> {
        let [latest, other] = self.made;
        (self.settings.is_some() && other.version > self.dropped).then_some((latest, other))
    }
    /// The life of the table that its records are written in: one more than the drop before it; 0: the records do not
    /// say.
    pub fn life(&self) -> u64 {
        if self.settings.is_none() || self.made[0].version == 0 || self.name.is_default() {
            0
        } else {
            self.dropped.saturating_add(1)
        }
    }
    pub fn word(&self) -> TableWord {
        TableWord { version: self.version, node: self.node, dropped: self.dropped, kept: self.kept }
    }
}

/// The word on a key's table that somebody goes by, in short. Those who go by the same one agree on what becomes of the
/// key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct TableWord {
    pub version: u64,
    pub node: NodeId,
    /// A drop that has been carried out.
    pub dropped: u64,
    pub kept: u64,
}
impl TableWord {
    /// The version of those who do not say any: their software is older than this.
    pub const UNSAID: u64 = u64::MAX;

    pub fn is_said(&self) -> bool {
        self.version != TableWord::UNSAID
    }
    /// Whether it says anything that the other does not.
    pub fn adds_to(&self, other: &TableWord) -> bool {
        (self.version, self.node) > (other.version, other.node)
            || self.dropped > other.dropped
            || self.kept > other.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<TableEntry> {
        let settings =
            |conflict| TableSettings { n: 3, r: 2, w: 2, conflict, sloppy: true, durability: Durability::Sync };
        let mut entries = Vec::new();
        for (version, node) in [(1, 1), (1, 2), (2, 1), (3, 2), (4, 1)] {
            for conflict in [None, Some(Conflict::Siblings), Some(Conflict::LastWriteWins)] {
                for dropped in 0..version {
                    let making = Making { version: dropped + 1, node: NodeId(node) };
                    let kept = if conflict == Some(Conflict::Siblings) { making.version } else { 0 };
                    entries.push(TableEntry {
                        name: "cart".parse().expect("a name"),
                        version,
                        node: NodeId(node),
                        dropped: if conflict.is_none() { version } else { dropped },
                        whole: 0,
                        kept,
                        made: [making, Making::default()],
                        settings: conflict.map(settings),
                    });
                }
            }
        }
        entries
    }

    #[test]
    fn whoever_merges_whatever_comes_to_the_same() {
        let all = entries();
        for a in &all {
            assert_eq!(a.join(a), *a);
            for b in &all {
                assert_eq!(a.join(b), b.join(a));
                for c in &all {
                    assert_eq!(a.join(b).join(c), a.join(&b.join(c)));
                }
            }
        }
    }

    #[test]
    fn of_two_kinds_made_apart_the_one_that_keeps_all_is_in_force_until_it_is_dropped() {
        let all = entries();
        let find = |version, node, conflict: Option<Conflict>| {
            let settings = |e: &&TableEntry| e.settings.map(|s| s.conflict) == conflict && e.dropped == 0;
            let place = |e: &&TableEntry| (e.version, e.node) == (version, NodeId(node));
            all.iter().filter(settings).find(place).expect("one").clone()
        };
        let kept = find(1, 1, Some(Conflict::Siblings));
        let lossy = find(2, 1, Some(Conflict::LastWriteWins));
        let mut other = lossy.clone();
        other.made[0].node = NodeId(2);
        let both = kept.join(&other);
        assert_eq!(both.settings.map(|s| s.conflict), Some(Conflict::LastWriteWins));
        assert_eq!(both.in_force().map(|s| s.conflict), Some(Conflict::Siblings));
        assert!(both.made_apart().is_some() && lossy.made_apart().is_none());
        let again = TableEntry { version: 4, dropped: 3, ..both };
        assert_eq!(again.in_force().map(|s| s.conflict), Some(Conflict::LastWriteWins));
        assert!(again.made_apart().is_none());
    }

    #[test]
    fn a_word_adds_what_another_lacks() {
        let word = TableWord { version: 3, node: NodeId(1), dropped: 2, kept: 0 };
        assert!(!word.adds_to(&word) && word.adds_to(&TableWord::default()) && !TableWord::default().adds_to(&word));
        let other = TableWord { version: 4, dropped: 1, ..word };
        assert!(word.adds_to(&other) && other.adds_to(&word));
    }
}
