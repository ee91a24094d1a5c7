//! The context: the clock that a read returns and a write passes back. Opaque text that starts with `vc:`.
//!
//! `vc:` and base64url without padding of: `version u8 = 1, key check u32 (low half of the key's token), count u16,
//! (actor u64, counter u64) each, CRC-32C u32 of all before`, little-endian. The key check refuses a context that was
//! read for another key: it would claim to have seen writes that its holder never saw.

use super::{Dot, VersionVector, codec::Reader};
use crate::{
    limits::{CLOCK_ENTRIES_MAX, CONTEXT_TEXT_BYTES_MAX},
    types::Token,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::{BufMut, BytesMut};

pub const PREFIX: &str = "vc:";
const VERSION: u8 = 1;

/// What a reader of a key has seen of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Context(pub VersionVector);

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ContextError {
    #[error("a context has at most {CONTEXT_TEXT_BYTES_MAX} bytes, this one has {0}")]
    TooLong(usize),
    #[error("a context starts with {PREFIX:?}")]
    Prefix,
    #[error("the context does not parse: it is damaged, or was not made by this store")]
    Malformed,
    #[error("the context belongs to another key")]
    OtherKey,
}

impl Context {
    /// The text form, for a key at `token`.
    pub fn to_text(&self, token: Token) -> String {
        let mut raw = BytesMut::with_capacity(16 + self.0.len() * 16);
        raw.put_u8(VERSION);
        raw.put_u32_le(token.0 as u32);
        self.0.put(&mut raw);
        let checksum = crc32c::crc32c(&raw);
        raw.put_u32_le(checksum);
        let mut text = String::from(PREFIX);
        URL_SAFE_NO_PAD.encode_string(&raw, &mut text);
        text
    }

    /// Parses the text form; refuses damage, excess and contexts of other keys.
    pub fn from_text(text: &[u8], token: Token) -> Result<Context, ContextError> {
        if text.len() > CONTEXT_TEXT_BYTES_MAX {
            return Err(ContextError::TooLong(text.len()));
        }
        let encoded = text.strip_prefix(PREFIX.as_bytes()).ok_or(ContextError::Prefix)?;
        let raw = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| ContextError::Malformed)?;
        let (body, checksum) = raw.split_last_chunk::<4>().ok_or(ContextError::Malformed)?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*checksum) {
            return Err(ContextError::Malformed);
        }
        let mut reader = Reader(body);
        let malformed = |_| ContextError::Malformed;
        if reader.u8().map_err(malformed)? != VERSION {
            return Err(ContextError::Malformed);
        }
        if reader.u32().map_err(malformed)? != token.0 as u32 {
            return Err(ContextError::OtherKey);
        }
        let count = usize::from(reader.u16().map_err(malformed)?);
        if count > CLOCK_ENTRIES_MAX {
            return Err(ContextError::Malformed);
        }
        let dots: Vec<Dot> = (0..count).map(|_| reader.dot()).collect::<Result<_, _>>().map_err(malformed)?;
        let clock = VersionVector::from_dots(dots);
        let sound = reader.0.is_empty() && clock.len() == count;
        if sound { Ok(Context(clock)) } else { Err(ContextError::Malformed) }
    }
}
