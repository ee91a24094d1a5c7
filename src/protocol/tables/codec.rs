//! The record of a shard's registry; the ruler is in `schema/record.md`.

use crate::{
    limits::TABLE_ENTRIES_MAX,
    types::{Conflict, Durability, NodeId, TableEntry, TableName, TableSettings},
};
use bytes::{Buf, BufMut, Bytes, BytesMut};

const VERSION: u8 = 1;
/// Bytes of an entry without its name.
const FIXED: usize = 32 + 7;

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
    if bytes.try_get_u8().ok()? != VERSION {
        return None;
    }
    let mut entries = Vec::new();
    loop {
        let length = usize::from(bytes.try_get_u8().ok()?);
        if length == 0 {
            return bytes.is_empty().then_some(entries);
        }
        let (name, rest) = bytes.split_at_checked(length)?;
        if rest.len() < FIXED || entries.len() >= TABLE_ENTRIES_MAX {
            return None;
        }
        bytes = rest;
        let name: TableName = std::str::from_utf8(name).ok()?.parse().ok()?;
        let (version, node, dropped) = (bytes.get_u64_le(), NodeId(bytes.get_u64_le()), bytes.get_u64_le());
        let done = bytes.get_u64_le();
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
        entries.push((TableEntry { name, version, node, dropped, settings }, done));
    }
}

fn flag(bytes: &mut &[u8]) -> Option<bool> {
    match bytes.try_get_u8().ok()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}
