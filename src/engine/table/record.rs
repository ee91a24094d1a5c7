//! A record of a table as bytes.
//!
//! ```text
//! key length u16 | key | sequence varint | body
//! body, delete:  0
//! body, put:     1 + count of values, varint | head length varint | head | values
//! value, inline: 0 | length varint | bytes
//! value, in the log: 1 | segment varint | offset varint | length varint | checksum u32
//! ```

use super::section::{Fields, Flaw, put_varint};
use crate::engine::types::{Stored, StoredValue, ValuePointer};
use bytes::Bytes;
use smallvec::SmallVec;

const INLINE: u8 = 0;
const POINTER: u8 = 1;

/// A record in the block that holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordRef<'a> {
    pub key: &'a [u8],
    pub sequence: u64,
    /// Head and values, still encoded.
    pub body: &'a [u8],
}

/// Appends a record. The key has at most [`crate::engine::types::ENGINE_KEY_BYTES_MAX`] bytes.
pub fn encode(out: &mut Vec<u8>, key: &[u8], sequence: u64, stored: &Stored) {
    encode_start(out, key, sequence);
    let Stored::Put { head, values } = stored else {
        out.push(0);
        return;
    };
    put_varint(out, 1 + values.len() as u64);
    put_varint(out, head.len() as u64);
    out.extend_from_slice(head);
    for value in values {
        match value {
            StoredValue::Inline(bytes) => {
                out.push(INLINE);
                put_varint(out, bytes.len() as u64);
                out.extend_from_slice(bytes);
            }
            StoredValue::Pointer(pointer) => {
                out.push(POINTER);
                put_varint(out, pointer.segment);
                put_varint(out, pointer.offset);
                put_varint(out, pointer.length.into());
                out.extend_from_slice(&pointer.checksum.to_le_bytes());
            }
        }
    }
}

/// Appends a record whose body is encoded already.
pub fn encode_ref(out: &mut Vec<u8>, record: RecordRef<'_>) {
    encode_start(out, record.key, record.sequence);
    out.extend_from_slice(record.body);
}

fn encode_start(out: &mut Vec<u8>, key: &[u8], sequence: u64) {
    out.extend_from_slice(&(key.len() as u16).to_le_bytes());
    out.extend_from_slice(key);
    put_varint(out, sequence);
}

/// The key of an encoded record: all that a search compares.
pub fn key_of(record: &[u8]) -> Result<&[u8], Flaw> {
    let mut fields = Fields(record);
    let length = fields.u16()?;
    fields.bytes(length.into())
}

/// An opened put: head, count of values, encoded values.
type Opened<'a> = (&'a [u8], u64, Fields<'a>);

/// A value of a record, borrowed where it lies.
enum ValueRef<'a> {
    Inline(&'a [u8]),
    Pointer(ValuePointer),
}

impl<'a> RecordRef<'a> {
    /// Reads key and sequence; the body is looked at when it is asked for.
    pub fn decode(record: &'a [u8]) -> Result<RecordRef<'a>, Flaw> {
        let mut fields = Fields(record);
        let length = fields.u16()?;
        let key = fields.bytes(length.into())?;
        Ok(RecordRef { key, sequence: fields.varint()?, body: fields.0 })
    }
    pub fn is_delete(&self) -> bool {
        self.body == [0]
    }
    /// Nothing for a delete record.
    pub fn head(&self) -> Result<Option<&'a [u8]>, Flaw> {
        Ok(self.open()?.map(|(head, ..)| head))
    }
    /// Calls `each` for every value in the log.
    pub fn pointers(&self, mut each: impl FnMut(ValuePointer)) -> Result<(), Flaw> {
        self.values(|value| {
            if let ValueRef::Pointer(pointer) = value {
                each(pointer);
            }
        })
    }
    /// Copies the record: what is returned keeps no block alive.
    pub fn stored(&self) -> Result<Stored, Flaw> {
        let Some(head) = self.head()? else { return Ok(Stored::Delete) };
        let mut values = SmallVec::new();
        self.values(|value| {
            values.push(match value {
                ValueRef::Inline(bytes) => StoredValue::Inline(Bytes::copy_from_slice(bytes)),
                ValueRef::Pointer(pointer) => StoredValue::Pointer(pointer),
            })
        })?;
        Ok(Stored::Put { head: Bytes::copy_from_slice(head), values })
    }
    /// Nothing for a delete record.
    fn open(&self) -> Result<Option<Opened<'a>>, Flaw> {
        let mut fields = Fields(self.body);
        let Some(count) = fields.varint()?.checked_sub(1) else {
            return fields.end().map(|()| None);
        };
        let length = fields.length()?;
        let head = fields.bytes(length)?;
        Ok(Some((head, count, fields)))
    }
    fn values(&self, mut each: impl FnMut(ValueRef<'a>)) -> Result<(), Flaw> {
        let Some((_, count, mut fields)) = self.open()? else { return Ok(()) };
        for _ in 0..count {
            match fields.u8()? {
                INLINE => {
                    let length = fields.length()?;
                    each(ValueRef::Inline(fields.bytes(length)?));
                }
                POINTER => each(ValueRef::Pointer(ValuePointer {
                    segment: fields.varint()?,
                    offset: fields.varint()?,
                    length: u32::try_from(fields.varint()?).map_err(|_| Flaw("a value is too long"))?,
                    checksum: fields.u32()?,
                })),
                _ => return Err(Flaw("an unknown kind of value")),
            }
        }
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn any_stored() -> impl Strategy<Value = Stored> {
        let bytes = |most| proptest::collection::vec(any::<u8>(), 0..most).prop_map(Bytes::from);
        let pointer = any::<(u64, u64, u32, u32)>().prop_map(|(segment, offset, length, checksum)| ValuePointer {
            segment,
            offset,
            length,
            checksum,
        });
        let value = prop_oneof![bytes(40).prop_map(StoredValue::Inline), pointer.prop_map(StoredValue::Pointer)];
        prop_oneof![
            1 => Just(Stored::Delete),
            4 => (bytes(100), proptest::collection::vec(value, 0..5))
                .prop_map(|(head, values)| Stored::Put { head, values: values.into() }),
        ]
    }

    proptest! {
        #[test]
        fn a_record_comes_back(key in proptest::collection::vec(any::<u8>(), 0..50), sequence: u64, stored in any_stored()) {
            let mut bytes = Vec::new();
            encode(&mut bytes, &key, sequence, &stored);
            let record = RecordRef::decode(&bytes).expect("just encoded");
            prop_assert_eq!(record.key, &key[..]);
            prop_assert_eq!(key_of(&bytes), Ok(&key[..]));
            prop_assert_eq!(record.sequence, sequence);
            prop_assert_eq!(record.is_delete(), stored == Stored::Delete);
            let mut again = Vec::new();
            encode_ref(&mut again, record);
            prop_assert_eq!(&again, &bytes);
            let mut pointers = Vec::new();
            record.pointers(|p| pointers.push(StoredValue::Pointer(p))).expect("just encoded");
            if let Stored::Put { head, values } = &stored {
                prop_assert_eq!(record.head(), Ok(Some(&head[..])));
                let expected: Vec<_> = values.iter().filter(|v| matches!(v, StoredValue::Pointer(_))).cloned().collect();
                prop_assert_eq!(pointers, expected);
            } else {
                prop_assert!(pointers.is_empty());
            }
            prop_assert_eq!(record.stored(), Ok(stored));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(record) = RecordRef::decode(&bytes) {
                let whole = record.stored().is_ok();
                prop_assert_eq!(record.pointers(|_| ()).is_ok(), whole);
                prop_assert!(record.head().is_ok() || !whole);
            }
        }

        #[test]
        fn a_cut_record_is_refused(stored in any_stored(), cut in 1usize..200) {
            let mut bytes = Vec::new();
            encode(&mut bytes, b"key", 7, &stored);
            bytes.truncate(bytes.len().saturating_sub(cut));
            let read = RecordRef::decode(&bytes).and_then(|r| r.stored());
            prop_assert!(read.is_err(), "{read:?}");
        }
    }
}
