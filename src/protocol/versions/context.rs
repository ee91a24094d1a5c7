//! The context: what a reader or writer of a key has seen of it, which a later write passes back. Opaque text that
//! starts with `vc:`.
//!
//! A read's context is a clock. A write's context is what it superseded and its own dot: when concurrent siblings
//! stand beside it, the dot stays apart from the clock, because a clock would cover those siblings as well.
//!
//! `vc:` and base64url without padding of the bytes that [`Context::to_bytes`] makes. They begin with a version, name
//! the key by the low half of its token, and end with a CRC-32C. The key check refuses a context that was read for
//! another key: it would claim to have seen writes that its holder never saw. Versions:
//!
//! 1. clock and dots at a fixed width, with 16 bits of incarnation: where that says all, and is not long.
//! 2. compact ([`super::compact`]).
//!
//! A version whose end is a keyed seal can follow: holders pass the text on as it is.

use super::{
    Dot, HeadError, VersionVector,
    codec::{Reader, narrow},
    compact,
};
use crate::{
    limits::{CONTEXT_DOTS_MAX, CONTEXT_TEXT_BYTES_MAX, NARROW_CLOCK_ENTRIES_MAX, NARROW_CONTEXT_ENTRIES_MAX},
    types::Token,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::{BufMut, BytesMut};
use smallvec::SmallVec;

pub const PREFIX: &str = "vc:";
const NARROW: u8 = 1;
const COMPACT: u8 = 2;

/// The events of a key that a reader or writer has seen: all that the clock covers, and the single dots beside it.
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
    /// Joins two contexts: what either has seen has been seen. Dots beyond [`CONTEXT_DOTS_MAX`] are left out; at worst
    /// a write that was seen then stays as a sibling of the next one.
    pub fn join(&self, other: &Context) -> Context {
        let clock = self.clock.join(&other.clock);
        let mut dots: SmallVec<[Dot; 1]> = self.dots.iter().chain(&other.dots).copied().collect();
        dots.retain(|d| !clock.covers(*d));
        dots.sort_unstable();
        dots.dedup();
        leave_out(&mut dots, |_| false);
        Context { clock, dots }
    }
    /// The context of the writer of `dot` after this write, which had this context. If there are more dots than a
    /// context holds, the new one stays; of the others those go first that are `superseded` in the state that was
    /// written to, since that state ends their values wherever it comes. So the write that this one was built on stays,
    /// whatever came before it.
    pub fn with_dot(mut self, dot: Dot, superseded: impl Fn(Dot) -> bool) -> Context {
        if !self.covers(dot) {
            let mut dots = std::mem::take(&mut self.dots);
            while dots.len() >= CONTEXT_DOTS_MAX {
                leave_one_out(&mut dots, &superseded);
            }
            dots.push(dot);
            dots.sort_unstable();
            self.dots = dots;
        }
        self
    }
    /// Whether every actor has a narrow form, and the clock no more entries than this.
    fn is_narrow(&self, entries_max: usize) -> bool {
        let narrow = self.clock.is_narrow() && self.dots.iter().all(|d| d.actor.narrow().is_some());
        narrow && self.clock.len() <= entries_max
    }
    /// Whether the fields of messages that earlier versions know can hold it.
    pub fn fits_narrow_fields(&self) -> bool {
        self.is_narrow(NARROW_CLOCK_ENTRIES_MAX)
    }
    /// Whether it can be given out, and is taken back then.
    pub fn can_be_read(&self) -> bool {
        self.clock.can_be_read() && self.dots.len() <= CONTEXT_DOTS_MAX
    }
    /// Clock and dots, compact, for a message that says elsewhere which key it is about.
    pub fn to_block(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + (self.clock.len() + self.dots.len()) * 10);
        self.put_block(&mut out);
        out
    }
    fn put_block(&self, out: &mut impl BufMut) {
        compact::put_clock(out, &self.clock);
        out.put_u8(self.dots.len() as u8);
        self.dots.iter().for_each(|&dot| compact::put_dot(out, dot));
    }
    /// Reads what [`Context::to_block`] makes; checks bounds, order, and that no dot is covered.
    pub fn from_block(bytes: &[u8]) -> Result<Context, HeadError> {
        let mut reader = Reader(bytes);
        let context = Context::take_block(&mut reader)?;
        if reader.0.is_empty() { Ok(context) } else { Err(HeadError::Length) }
    }
    fn take_block(reader: &mut Reader<'_>) -> Result<Context, HeadError> {
        let clock = reader.compact_clock()?;
        let count = usize::from(reader.u8()?);
        Context::take_dots(clock, count, || reader.compact_dot())
    }
    /// Reads so many dots: ascending, not covered by the clock.
    pub fn take_dots(
        clock: VersionVector,
        count: usize,
        mut next: impl FnMut() -> Result<Dot, HeadError>,
    ) -> Result<Context, HeadError> {
        if count > CONTEXT_DOTS_MAX {
            return Err(HeadError::TooMany);
        }
        let mut context = Context::from(clock);
        for _ in 0..count {
            let dot = next()?;
            if dot.counter == 0 || context.covers(dot) || context.dots.last().is_some_and(|last| *last >= dot) {
                return Err(HeadError::Invalid);
            }
            context.dots.push(dot);
        }
        Ok(context)
    }
    /// The bytes of the text, for a key at `token`.
    pub fn to_bytes(&self, token: Token) -> Vec<u8> {
        let mut raw = BytesMut::with_capacity(16 + (self.clock.len() + self.dots.len()) * 16);
        let narrow = self.is_narrow(NARROW_CONTEXT_ENTRIES_MAX);
        raw.put_u8(if narrow { NARROW } else { COMPACT });
        raw.put_u32_le(token.0 as u32);
        if narrow {
            raw.put_u16_le(self.clock.len() as u16);
            raw.put_u8(self.dots.len() as u8);
            self.clock.entries().iter().chain(&self.dots).for_each(|&d| narrow::put_dot(&mut raw, d));
        } else {
            self.put_block(&mut raw);
        }
        let checksum = crc32c::crc32c(&raw);
        raw.put_u32_le(checksum);
        raw.into()
    }
    /// Parses the bytes of the text; refuses damage, excess and contexts of other keys.
    pub fn from_bytes(raw: &[u8], token: Token) -> Result<Context, ContextError> {
        let (body, checksum) = raw.split_last_chunk::<4>().ok_or(ContextError::Malformed)?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*checksum) {
            return Err(ContextError::Malformed);
        }
        let mut reader = Reader(body);
        let malformed = |_| ContextError::Malformed;
        let version = reader.u8().map_err(malformed)?;
        if !matches!(version, NARROW | COMPACT) {
            return Err(ContextError::Malformed);
        }
        if reader.u32().map_err(malformed)? != token.0 as u32 {
            return Err(ContextError::OtherKey);
        }
        let context = match version {
            NARROW => Context::take_narrow(&mut reader),
            _ => Context::take_block(&mut reader),
        };
        if reader.0.is_empty() { context.map_err(malformed) } else { Err(ContextError::Malformed) }
    }
    fn take_narrow(reader: &mut Reader<'_>) -> Result<Context, HeadError> {
        let (clock_count, dot_count) = (usize::from(reader.u16()?), usize::from(reader.u8()?));
        if clock_count > NARROW_CLOCK_ENTRIES_MAX {
            return Err(HeadError::TooMany);
        }
        let clock = reader.clock(clock_count)?;
        Context::take_dots(clock, dot_count, || reader.dot())
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

/// Leaves dots out until there is room for all.
fn leave_out(dots: &mut SmallVec<[Dot; 1]>, superseded: impl Fn(Dot) -> bool) {
    while dots.len() > CONTEXT_DOTS_MAX {
        leave_one_out(dots, &superseded);
    }
}
/// Leaves out the first of those that are superseded; else the first of the actor that has most, whose later dots came
/// after it.
fn leave_one_out(dots: &mut SmallVec<[Dot; 1]>, superseded: impl Fn(Dot) -> bool) {
    let of_actor = |actor| dots.iter().filter(|d| d.actor == actor).count();
    let rank = |dot: &Dot| (superseded(*dot), of_actor(dot.actor));
    let most = dots.iter().map(rank).max();
    if let Some(at) = dots.iter().position(|dot| Some(rank(dot)) == most) {
        dots.remove(at);
    }
}
