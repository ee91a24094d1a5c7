//! What is known to be damaged: named once, kept for whoever asks, never served.
//!
//! A place is a range of a file and, where it can be told, the slice and the keys whose records are in doubt. Reads of
//! those keys get `Damaged`: never "not found", never an older record. The file stays as it is. Places are noted by
//! the opening, by reads and by background work alike; the list is bounded, the count is not.

use super::{
    error::EngineError,
    notify::Notify,
    table::{self, TableMeta},
};
use crate::{limits::DAMAGE_PLACES_MAX, types::SliceId};
use bytes::Bytes;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    fmt,
};

/// A place that failed its checksums or cannot be read. Its records are lost here; other replicas have them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    pub file: String,
    /// The first damaged byte of the file; where this and `to` are both 0, the whole file is meant.
    pub from: u64,
    pub to: u64,
    /// The slice whose records are concerned; unknown for a place in the log that holds several.
    pub slice: Option<SliceId>,
    /// The first and the last key in doubt, where that is known.
    pub keys: Option<(Bytes, Bytes)>,
    pub what: String,
}

impl Damage {
    pub fn of_range(file: String, from: u64, to: u64, what: &str) -> Damage {
        Damage { file, from, to, slice: None, keys: None, what: what.into() }
    }
    /// A file as a whole, of one slice.
    pub fn of_file(file: String, slice: SliceId, error: &EngineError) -> Damage {
        Damage { file, from: 0, to: 0, slice: Some(slice), keys: None, what: text(error) }
    }
    /// The damage that a read of this key met; the file and the place are in the text of the error.
    pub fn of_read(slice: SliceId, key: &[u8], what: &str) -> Damage {
        let place = what.split_once(": ").and_then(|(place, what)| {
            let (file, at) = place.split_once(" at ")?;
            Some((file, at.parse().ok()?, what))
        });
        let (file, from, what) = place.unwrap_or((what, 0, "damaged"));
        let key = Bytes::copy_from_slice(key);
        let keys = Some((key.clone(), key));
        Damage { file: file.into(), from, to: from, slice: Some(slice), keys, what: what.into() }
    }
    /// The damage that background work met.
    pub fn of_work(what: &str) -> Damage {
        Damage { slice: None, keys: None, ..Damage::of_read(SliceId(0), &[], what) }
    }
    /// A table that has been set aside, or the part of it that could not be saved.
    pub fn of_table(meta: &TableMeta, what: String) -> Damage {
        let keys = Some((meta.smallest.clone(), meta.largest.clone()));
        Damage { file: table::path(meta.slice, meta.id), from: 0, to: meta.bytes, slice: Some(meta.slice), keys, what }
    }
}

/// An error's words, without those that say that it is damage.
pub fn text(error: &EngineError) -> String {
    match error {
        EngineError::Damaged(what) => what.clone(),
        other => other.to_string(),
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        match (self.from, self.to) {
            (0, 0) => {}
            (from, to) if from == to => write!(f, ", byte {from}")?,
            (from, to) => write!(f, ", bytes {from} to {to}")?,
        }
        if let Some(slice) = self.slice {
            write!(f, ", slice {}", slice.0)?;
        }
        if let Some((first, last)) = &self.keys {
            write!(f, ", keys \"{}\" to \"{}\"", first.escape_ascii(), last.escape_ascii())?;
        }
        write!(f, ": {}", self.what)
    }
}

/// The places known to one core's engine.
#[derive(Default)]
pub struct Damages {
    places: RefCell<Vec<Damage>>,
    /// File and first byte of each place in the list.
    known: RefCell<BTreeSet<(String, u64)>>,
    count: Cell<u64>,
    /// A place was added, or the engine ends.
    pub noted: Notify,
}

impl Damages {
    /// Notes a place unless it is known. `true`: it is new.
    pub fn note(&self, damage: Damage) -> bool {
        let mut places = self.places.borrow_mut();
        if places.len() >= DAMAGE_PLACES_MAX {
            // Which of them are new can no longer be told.
            self.count.set(self.count.get() + 1);
            return false;
        }
        if !self.known.borrow_mut().insert((damage.file.clone(), damage.from)) {
            return false;
        }
        self.count.set(self.count.get() + 1);
        places.push(damage);
        drop(places);
        self.noted.wake();
        true
    }
    pub fn list(&self) -> Vec<Damage> {
        self.places.borrow().clone()
    }
    /// The damaged places after the first `known` ones.
    pub fn after(&self, known: usize) -> Vec<Damage> {
        self.places.borrow().get(known..).unwrap_or_default().to_vec()
    }
    /// Places noted so far; after the list is full, every further sight of one.
    pub fn count(&self) -> u64 {
        self.count.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_noted_once_and_the_list_is_bounded() {
        let damages = Damages::default();
        assert!(damages.note(Damage::of_range("f".into(), 0, 10, "x")));
        assert!(!damages.note(Damage::of_range("f".into(), 0, 10, "x")));
        for at in 1..2 * DAMAGE_PLACES_MAX as u64 {
            damages.note(Damage::of_range("f".into(), at, at + 1, "x"));
        }
        assert_eq!(damages.list().len(), DAMAGE_PLACES_MAX);
        assert_eq!(damages.after(DAMAGE_PLACES_MAX - 1).len(), 1);
        assert_eq!(damages.after(2 * DAMAGE_PLACES_MAX), []);
        assert_eq!(damages.count(), 2 * DAMAGE_PLACES_MAX as u64);
    }

    #[test]
    fn a_place_says_all_that_is_known() {
        let damage = Damage {
            slice: Some(SliceId(3)),
            keys: Some((Bytes::from_static(b"a"), Bytes::from_static(b"\xff"))),
            ..Damage::of_range("slices/0003/x.sst".into(), 4096, 8192, "wrong checksum")
        };
        let text = damage.to_string();
        assert_eq!(text, "slices/0003/x.sst, bytes 4096 to 8192, slice 3, keys \"a\" to \"\\xff\": wrong checksum");
    }
}
