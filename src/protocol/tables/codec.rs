//! The record of a shard's registry; the ruler is in `schema/record.md`.

use crate::{
    limits::TABLE_ENTRIES_MAX,
    types::{Conflict, Durability, Making, NodeId, TableEntry, TableName, TableSettings},
};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The version of what is written; the first one, without makings, is still read.
const VERSION: u8 = 2;
const WITHOUT_MAKINGS: u8 = 1;
/// Bytes of an entry without its name, and of what the first version lacks.
const FIXED: usize = 32 + 7;
const MAKINGS: usize = 16 + 32;

/// The bytes of these entries, each with the latest drop that was carried out.
pub fn encode<'a>(entries: impl Iterator<Item = (&'a TableEntry, u64)>) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(VERSION);
    for (entry, done) in entries {
        let name = entry.name.as_str().as_bytes();
        out.put_u8(name.len() as u8);
        out.put_slice(name);
        out.put_u64_le(entry.version);
        out.put_u64_le(entry.node.0);
        out.put_u64_le(entry.dropped);
        out.put_u64_le(done);
        out.put_u64_le(entry.whole);
        out.put_u64_le(entry.kept);
        for making in entry.made {
            out.put_u64_le(making.version);
            out.put_u64_le(making.node.0);
        }
        let Some(settings) = entry.settings else {
            out.put_slice(&[0; 7]);
            continue;
        };
        out.put_slice(&[1, settings.n, settings.r, settings.w]);
        out.put_u8(u8::from(settings.conflict == Conflict::LastWriteWins));
        out.put_u8(u8::from(settings.sloppy));
        out.put_u8(u8::from(settings.durability == Durability::Interval));
    }
    out.put_u8(0);
    out.freeze()
}

/// What these bytes say; `None` when anything about them is wrong.
pub fn decode(mut bytes: &[u8]) -> Option<Vec<(TableEntry, u64)>> {
    let makings = match bytes.try_get_u8().ok()? {
        VERSION => true,
        WITHOUT_MAKINGS => false,
        _ => return None,
    };
    let fixed = FIXED + if makings { MAKINGS } else { 0 };
    let mut entries = Vec::new();
    loop {
        let length = usize::from(bytes.try_get_u8().ok()?);
        if length == 0 {
            return bytes.is_empty().then_some(entries);
        }
        let (name, rest) = bytes.split_at_checked(length)?;
        if rest.len() < fixed || entries.len() >= TABLE_ENTRIES_MAX {
            return None;
        }
        bytes = rest;
        let name: TableName = std::str::from_utf8(name).ok()?.parse().ok()?;
        let (version, node, dropped) = (bytes.get_u64_le(), NodeId(bytes.get_u64_le()), bytes.get_u64_le());
        let done = bytes.get_u64_le();
        let (mut whole, mut kept, mut made) = (dropped, 0, [Making::default(); 2]);
        if makings {
            (whole, kept) = (bytes.get_u64_le(), bytes.get_u64_le());
            for making in &mut made {
                *making = Making { version: bytes.get_u64_le(), node: NodeId(bytes.get_u64_le()) };
            }
        }
        let (exists, n, r, w) = (flag(&mut bytes)?, bytes.get_u8(), bytes.get_u8(), bytes.get_u8());
        let settings = TableSettings {
            n,
            r,
            w,
            conflict: if flag(&mut bytes)? { Conflict::LastWriteWins } else { Conflict::Siblings },
            sloppy: flag(&mut bytes)?,
            durability: if flag(&mut bytes)? { Durability::Interval } else { Durability::Sync },
        };
        if exists && settings.check().is_err() {
            return None;
        }
        let settings = exists.then_some(settings);
        if !makings && settings.is_some_and(|settings| settings.conflict == Conflict::Siblings) {
            kept = version;
        }
        entries.push((TableEntry { name, version, node, dropped, whole, kept, made, settings }, done));
    }
}

fn flag(bytes: &mut &[u8]) -> Option<bool> {
    match bytes.try_get_u8().ok()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}
