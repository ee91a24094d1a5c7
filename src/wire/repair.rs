//! The parts of what two homes say to each other when they compare.

use super::{
    WireError,
    fields::{self, Builder},
    generated as fb,
};
use crate::{
    protocol::{
        message::{Part, Sum},
        versions::Head,
    },
    types::{Key, Span, Token},
};
use bytes::Bytes;
use flatbuffers::WIPOffset;

pub(super) fn put_part(part: Part) -> fb::Part {
    fb::Part::new(part.span.first.0, part.span.last.0, part.homes, part.tables, part.replicas)
}
pub(super) fn put_sum(sum: &Sum) -> fb::Sum {
    fb::Sum::new(sum.sum as u64, (sum.sum >> 64) as u64, sum.count)
}
pub(super) fn take_sum(sum: &fb::Sum) -> Sum {
    Sum { count: sum.count(), sum: u128::from(sum.high()) << 64 | u128::from(sum.low()) }
}
pub(super) fn put_listed(
    builder: &mut Builder,
    key: &Key,
    head: &Head,
    revision: u16,
) -> Result<WIPOffset<fb::ListedKey<'static>>, WireError> {
    let key = Some(fields::put_bytes(builder, key.as_bytes()));
    let head = Some(fields::put_head(builder, head, revision)?);
    Ok(fb::ListedKey::create(builder, &fb::ListedKeyArgs { key, head }))
}
pub(super) fn take_part(part: &fb::Part) -> Result<Part, WireError> {
    let span = Span { first: Token(part.first()), last: Token(part.last()) };
    if span.first > span.last {
        return Err(WireError::Field("tokens"));
    }
    Ok(Part { span, replicas: part.replicas(), homes: part.homes(), tables: part.tables() })
}
pub(super) fn take_shift(shift: u8) -> Result<u8, WireError> {
    if u32::from(shift) <= u64::BITS { Ok(shift) } else { Err(WireError::Field("shift")) }
}
pub(super) fn take_listed(listed: fb::ListedKey<'_>) -> Result<(Key, Head), WireError> {
    // A key of its own: the frame is long, and one key of it may be kept for a while.
    let key = Key::new(Bytes::copy_from_slice(listed.key().bytes()))?;
    Ok((key, fields::take_head(Some(listed.head()))?))
}
