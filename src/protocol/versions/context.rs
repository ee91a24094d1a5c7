//! The context: what a reader or writer of a key has seen of it, which a later write passes back. Opaque text that
//! starts with `vc:`.
//!
//! A read's context is a clock. A write's context is what it superseded and its own dot: when concurrent siblings
//! stand beside it, the dot stays apart from the clock, because a clock would cover those siblings as well.
//!
//! `vc:` and base64url without padding of: `version u8 = 1, key check u32 (low half of the key's token), clock count
//! u16, dot count u8, (actor u64, counter u64) each, CRC-32C u32 of all before`, little-endian. The key check refuses
//! a context that was read for another key: it would claim to have seen writes that its holder never saw.

use super::{
    Actor, Dot, VersionVector,
    codec::{Reader, put_dot},
};
use crate::{
    limits::{CLOCK_ENTRIES_MAX, CONTEXT_DOTS_MAX, CONTEXT_TEXT_BYTES_MAX},
    types::Token,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::{BufMut, BytesMut};
use smallvec::SmallVec;

pub const PREFIX: &str = "vc:";
const VERSION: u8 = 1;

/// What a reader or writer of a key has seen of it: all that the clock covers, and these dots.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Context {
    pub clock: VersionVector,
    /// Sorted, distinct, not covered by the clock.
    pub dots: SmallVec<[Dot; 1]>,
}

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

impl From<VersionVector> for Context {
    fn from(clock: VersionVector) -> Context {
        Context { clock, dots: SmallVec::new() }
    }
}

impl Context {
    /// Whether the event has been seen.
    pub fn covers(&self, dot: Dot) -> bool {
        self.clock.covers(dot) || self.dots.contains(&dot)
    }
    /// The highest counter of this actor among all that has been seen, 0 when none.
    pub fn highest(&self, actor: Actor) -> u64 {
        let beside = self.dots.iter().filter(|d| d.actor == actor).map(|d| d.counter).max();
        self.clock.get(actor).max(beside.unwrap_or(0))
    }
    /// What both have seen together. Dots beyond [`CONTEXT_DOTS_MAX`] are left out: at worst a write that was seen
    /// stays beside the next one.
    pub fn join(&self, other: &Context) -> Context {
        let clock = self.clock.join(&other.clock);
        let mut dots: SmallVec<[Dot; 1]> = self.dots.iter().chain(&other.dots).copied().collect();
        dots.retain(|d| !clock.covers(*d));
        dots.sort_unstable();
        dots.dedup();
        dots.truncate(CONTEXT_DOTS_MAX);
        Context { clock, dots }
    }
    /// What the writer of `dot` knows after it has written on this context. Of more dots than a context holds, the new
    /// one stays: an old one that is left out can at worst appear as a sibling again.
    pub fn with_dot(mut self, dot: Dot) -> Context {
        if !self.covers(dot) {
            self.dots.truncate(CONTEXT_DOTS_MAX - 1);
            self.dots.push(dot);
            self.dots.sort_unstable();
        }
        self
    }
    /// The compact form, for a key at `token`.
    pub fn to_bytes(&self, token: Token) -> Vec<u8> {
        let mut raw = BytesMut::with_capacity(16 + (self.clock.len() + self.dots.len()) * 16);
        raw.put_u8(VERSION);
        raw.put_u32_le(token.0 as u32);
        raw.put_u16_le(self.clock.len() as u16);
        raw.put_u8(self.dots.len() as u8);
        self.clock.entries().iter().chain(&self.dots).for_each(|&d| put_dot(&mut raw, d));
        let checksum = crc32c::crc32c(&raw);
        raw.put_u32_le(checksum);
        raw.into()
    }
    /// Parses the compact form; refuses damage, excess and contexts of other keys.
    pub fn from_bytes(raw: &[u8], token: Token) -> Result<Context, ContextError> {
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
        let clock_count = usize::from(reader.u16().map_err(malformed)?);
        let dot_count = usize::from(reader.u8().map_err(malformed)?);
        if clock_count > CLOCK_ENTRIES_MAX || dot_count > CONTEXT_DOTS_MAX {
            return Err(ContextError::Malformed);
        }
        let entries: Vec<Dot> = (0..clock_count).map(|_| reader.dot()).collect::<Result<_, _>>().map_err(malformed)?;
        let clock = VersionVector::from_dots(entries);
        let dots: SmallVec<[Dot; 1]> =
            (0..dot_count).map(|_| reader.dot()).collect::<Result<_, _>>().map_err(malformed)?;
        let sound = reader.0.is_empty()
            && clock.len() == clock_count
            && dots.is_sorted_by(|a, b| a < b)
            && dots.iter().all(|d| d.counter > 0 && !clock.covers(*d));
        if sound { Ok(Context { clock, dots }) } else { Err(ContextError::Malformed) }
    }
    /// The text form, for a key at `token`.
    pub fn to_text(&self, token: Token) -> String {
        let mut text = String::from(PREFIX);
        URL_SAFE_NO_PAD.encode_string(self.to_bytes(token), &mut text);
        text
    }
    /// Parses the text form; refuses what [`Context::from_bytes`] does, and excess length before anything else.
    pub fn from_text(text: &[u8], token: Token) -> Result<Context, ContextError> {
        if text.len() > CONTEXT_TEXT_BYTES_MAX {
            return Err(ContextError::TooLong(text.len()));
        }
        let encoded = text.strip_prefix(PREFIX.as_bytes()).ok_or(ContextError::Prefix)?;
        let raw = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| ContextError::Malformed)?;
        Context::from_bytes(&raw, token)
    }
}
