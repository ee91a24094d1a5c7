//! Values that say what they are: whose key, which write, how long, and a checksum over all of it. A value that was
//! mixed up, cut or damaged anywhere on its way is known by itself.

use super::EventId;
use crate::types::{Media, Value, WriteId};
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 4] = b"DYSV";
const HEADER_BYTES: usize = 24;
const TRAILER_BYTES: usize = 8;
/// The least bytes of a self-describing value.
pub const VALUE_BYTES_MIN: usize = HEADER_BYTES + TRAILER_BYTES;

/// `magic 4, key 4, write id 8, length 8, noise, xxh3-64 of all before`.
pub fn make_value(key: u32, id: EventId, bytes: usize) -> Value {
    let bytes = bytes.max(VALUE_BYTES_MIN);
    let mut value = Vec::with_capacity(bytes);
    value.extend_from_slice(MAGIC);
    value.extend_from_slice(&key.to_le_bytes());
    value.extend_from_slice(&id.write_id().0.to_le_bytes());
    value.extend_from_slice(&(bytes as u64).to_le_bytes());
    let noise = xxh3_64(&value).to_le_bytes();
    while value.len() < bytes - TRAILER_BYTES {
        let take = noise.len().min(bytes - TRAILER_BYTES - value.len());
        value.extend_from_slice(&noise[..take]);
    }
    value.extend_from_slice(&xxh3_64(&value).to_le_bytes());
    Value::new(Media::Raw("sim".into()), value)
}

/// The key and write that a value names, if it is whole.
pub(super) fn parse_value(value: &[u8]) -> Result<(u32, WriteId), &'static str> {
    let Some((body, trailer)) = value.split_last_chunk::<TRAILER_BYTES>() else { return Err("cut short") };
    if body.len() < HEADER_BYTES || &body[..4] != MAGIC {
        return Err("not a value of this run");
    }
    if xxh3_64(body) != u64::from_le_bytes(*trailer) {
        return Err("damaged");
    }
    let word = |at: usize| -> u64 { (0..8).fold(0, |w, i| w | u64::from(body[at + i]) << (8 * i)) };
    if word(16) != value.len() as u64 {
        return Err("of another length");
    }
    Ok((word(4) as u32, WriteId(word(8))))
}
