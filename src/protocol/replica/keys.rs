//! The engine keys of a shard's records, and the form of a hint. The rulers are in `schema/record.md`.
//!
//! Data: `0x00, token 8 big-endian, key`, so that a token range is a key range. Hints: `0x01, owner 8 big-endian,
//! form, token 8, key`, so that all that one owner is owed lies together. System: `0x02, name`.

use super::LeaseRecord;
use crate::{
    limits::INCARNATION_MAX,
    protocol::versions::{Head, HeadError},
    types::{Key, KeyError, NodeId, Span, Token, mark},
};
use bytes::{BufMut, Bytes, BytesMut};

const DATA: u8 = 0;
const HINT: u8 = 1;
const SYSTEM: u8 = 2;
/// Bytes of a data key before the user's key: the space and the token.
const DATA_FIXED: usize = 9;
const HINT_FIXED: usize = 18;

pub fn data_key(key: &Key) -> Bytes {
    let mut out = BytesMut::with_capacity(9 + key.as_bytes().len());
    out.put_u8(DATA);
    out.put_u64(key.token().0);
    out.put_slice(key.as_bytes());
    out.freeze()
}

/// The first data key at or after a token.
pub fn data_from(token: Token) -> Bytes {
    let mut out = BytesMut::with_capacity(9);
    out.put_u8(DATA);
    out.put_u64(token.0);
    out.freeze()
}

/// Bounds of the data keys of some tokens: from, to (excluded).
pub fn data_of(span: Span) -> (Bytes, Bytes) {
    let to = span.last.0.checked_add(1).map_or(Bytes::from_static(&[HINT]), |next| data_from(Token(next)));
    (data_from(span.first), to)
}
/// Token and user's key of a data key.
pub fn parse_data(engine_key: &[u8]) -> Option<(Token, &[u8])> {
    let (fixed, key) = engine_key.split_first_chunk::<DATA_FIXED>()?;
    let (space, token) = fixed.split_first_chunk::<1>()?;
    (*space == [DATA]).then_some((Token(u64::from_be_bytes(token.try_into().ok()?)), key))
}

/// Bounds of all data keys.
pub fn all_records() -> (Bytes, Bytes) {
    (Bytes::from_static(&[DATA]), Bytes::from_static(&[HINT]))
}

/// The form of a hint. A key may have one of each for one owner: this node stood in for it as coordinator, and parks
/// what another node coordinated.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum HintForm {
    /// The owner is owed what the key's own record holds.
    Marker = 1,
    /// The owner is owed the state in the hint.
    Parked = 2,
}

pub fn hint_key(owner: NodeId, form: HintForm, key: &Key) -> Bytes {
    let mut out = BytesMut::with_capacity(18 + key.as_bytes().len());
    out.put_u8(HINT);
    out.put_u64(owner.0);
    out.put_u8(form as u8);
    out.put_u64(key.token().0);
    out.put_slice(key.as_bytes());
    out.freeze()
}

/// Bounds of all hints of one owner: from, to (excluded).
pub fn hints_of(owner: NodeId) -> (Bytes, Bytes) {
    let bound = |node: u64| {
        let mut out = BytesMut::with_capacity(9);
        out.put_u8(HINT);
        out.put_u64(node);
        out.freeze()
    };
    (bound(owner.0), bound(owner.0 + 1))
}

/// Bounds of all hints.
pub fn all_hints() -> (Bytes, Bytes) {
    (Bytes::from_static(&[HINT]), Bytes::from_static(&[SYSTEM]))
}

/// Owner, form and user key of a hint's engine key.
pub fn parse_hint_key(engine_key: &Bytes) -> Option<(NodeId, HintForm, Key)> {
    let (head, _) = engine_key.split_at_checked(18)?;
    let owner = NodeId(u64::from_be_bytes(head[1..9].try_into().ok()?));
    let form = [HintForm::Marker, HintForm::Parked].into_iter().find(|f| *f as u8 == head[9])?;
    let key: Result<Key, KeyError> = Key::new(engine_key.slice(18..));
    (head[0] == HINT).then_some(())?;
    Some((owner, form, key.ok()?))
}
/// Bytes that a hint counts for: its key and the values in it.
pub fn hint_bytes(engine_key: &Bytes, head: &[u8]) -> u64 {
    let values = match HintHead::decode(head).map(|hint| hint.kind) {
        Ok(HintKind::Parked(head)) => head.value_bytes(),
        Ok(HintKind::Marker) | Err(_) => 0,
    };
    (engine_key.len() + values) as u64
}

const BEHIND: &[u8] = b"\x02behind";

/// The record that says that a hint for this owner was dropped: what it holds of the slice must be compared.
pub fn behind_key(owner: NodeId) -> Bytes {
    let mut out = BytesMut::with_capacity(BEHIND.len() + 8);
    out.put_slice(BEHIND);
    out.put_u64(owner.0);
    out.freeze()
}
/// Bounds of all of them.
pub fn all_behind() -> (Bytes, Bytes) {
    (Bytes::from_static(BEHIND), Bytes::from_static(b"\x02behine"))
}
pub fn parse_behind(engine_key: &[u8]) -> Option<NodeId> {
    let owner = engine_key.strip_prefix(BEHIND)?;
    Some(NodeId(u64::from_be_bytes(owner.try_into().ok()?)))
}

/// The user's key in an engine key of data or of a hint.
pub fn user_key(engine_key: &[u8]) -> Option<&[u8]> {
    match *engine_key.first()? {
        DATA => engine_key.get(DATA_FIXED..),
        HINT => engine_key.get(HINT_FIXED..),
        _ => None,
    }
}
/// The parts that all engine keys of a table's data, and of hints of it, have in common: the space, and the place of
/// the table's name.
pub const TABLE_SPACES: [(u8, usize); 2] = [(DATA, DATA_FIXED), (HINT, HINT_FIXED)];

/// Whether it is a record of the shard itself.
pub fn is_system(engine_key: &[u8]) -> bool {
    engine_key.first() == Some(&SYSTEM)
}
/// The record of a slice that holds the tables.
pub fn tables_key() -> Bytes {
    Bytes::from_static(b"\x02tables")
}
/// The record of a slice that no stamp in it is above: nanoseconds since 1970, little-endian.
pub fn stamps_key() -> Bytes {
    Bytes::from_static(b"\x02stamps")
}
pub fn stamps_head(ceiling: u64) -> Bytes {
    Bytes::copy_from_slice(&ceiling.to_le_bytes())
}
pub fn parse_stamps(head: &[u8]) -> Option<u64> {
    head.try_into().ok().map(u64::from_le_bytes)
}
/// The record that leases dots to a slice.
pub fn lease_key() -> Bytes {
    Bytes::from_static(b"\x02lease")
}

/// The second form of a lease's head; the first one is known by its length.
const WIDE_LEASE: u8 = 2;

/// A lease record's head, little-endian: `incarnation u16, clean u8, ceiling u64, start u64` where that says all, else
/// `form u8 = 2, flags u8 (1 clean, 2 far), incarnation u64, ceiling u64, start u64`.
pub fn lease_head(lease: LeaseRecord) -> Bytes {
    let mut out = BytesMut::with_capacity(26);
    match u16::try_from(lease.incarnation) {
        Ok(incarnation) if !lease.far => {
            out.put_u16_le(incarnation);
            out.put_u8(u8::from(lease.clean));
        }
        Ok(_) | Err(_) => {
            out.put_u8(WIDE_LEASE);
            out.put_u8(u8::from(lease.clean) | u8::from(lease.far) << 1);
            out.put_u64_le(lease.incarnation);
        }
    }
    out.put_u64_le(lease.ceiling);
    out.put_u64_le(lease.start);
    out.freeze()
}
pub fn parse_lease(head: &[u8]) -> Option<LeaseRecord> {
    let (front, rest) = head.split_last_chunk::<16>().map(|(front, rest)| (front, u128::from_le_bytes(*rest)))?;
    let (ceiling, start) = (rest as u64, (rest >> 64) as u64);
    let (incarnation, flags) = match *front {
        [low, high, clean] if clean <= 1 => (u64::from(u16::from_le_bytes([low, high])), clean),
        [WIDE_LEASE, flags, ref incarnation @ ..] if flags <= 3 => {
            (u64::from_le_bytes(incarnation.try_into().ok()?), flags)
        }
        _ => return None,
    };
    let (clean, far) = (flags & 1 == 1, flags & 2 == 2);
    (incarnation <= INCARNATION_MAX).then_some(LeaseRecord { incarnation, clean, far, ceiling, start })
}

/// The head of a hint's record: `kind u8, stamp u64`, then for a parked state its head.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HintHead {
    /// Changes with every write of the hint, so that a delivered hint is dropped only if it is still the same.
    pub stamp: u64,
    pub kind: HintKind,
}
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HintKind {
    /// A marker: this node is a replica of the key itself, and the owner gets what the key's own record holds at
    /// delivery.
    Marker,
    /// A parked state: this node only stands in for the owner, and the state lies in the hint.
    Parked(Head),
}
impl HintHead {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(mark::BYTES + 9);
        // A parked state goes with its life; a marker is worth what the own record is.
        if let HintKind::Parked(head) = &self.kind {
            mark::put(&mut out, head.life);
        }
        match &self.kind {
            HintKind::Marker => {
                out.put_u8(1);
                out.put_u64_le(self.stamp);
            }
            HintKind::Parked(head) => {
                out.put_u8(2);
                out.put_u64_le(self.stamp);
                out.put_slice(&Head { life: 0, ..head.clone() }.encode());
            }
        }
        out.freeze()
    }
    pub fn decode(bytes: &[u8]) -> Result<HintHead, HeadError> {
        let (life, bytes) = mark::take(bytes).ok_or(HeadError::Invalid)?;
        let (fixed, rest) = bytes.split_first_chunk::<9>().ok_or(HeadError::Length)?;
        let stamp = u64::from_le_bytes(fixed[1..9].try_into().map_err(|_| HeadError::Length)?);
        let kind = match (fixed[0], rest.is_empty()) {
            (1, true) if life == 0 => HintKind::Marker,
            (2, _) => HintKind::Parked(Head { life, ..Head::decode(rest)? }),
            _ => return Err(HeadError::Invalid),
        };
        Ok(HintHead { stamp, kind })
    }
}
