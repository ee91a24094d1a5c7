//! The last page of a table: what it is, what is in it, where index and filter are.
//!
//! Magic, format and checksum keep their places in every format to come, so that a table of a newer Dynarc is told from
//! a damaged one.

use super::{
    TableMeta, path,
    section::{self, Fields, Flaw, HEADER_BYTES, Kind, Place},
};
use crate::{
    engine::{error::EngineError, types::ENGINE_KEY_BYTES_MAX},
    limits::PAGE,
    types::SliceId,
};
use bytes::Bytes;
use std::ops::Range;

pub const MAGIC: [u8; 8] = *b"DYNTABLE";
pub const FORMAT: u32 = 1;

const FIXED_BYTES: usize = 88;
const _: () = assert!(HEADER_BYTES + FIXED_BYTES + 2 * ENGINE_KEY_BYTES_MAX <= PAGE);

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Footer {
    /// The level is the one that the table was written for; the manifest knows where it is now.
    pub meta: TableMeta,
    /// The offset of the index, which is the end of the blocks.
    pub index_offset: u64,
    pub index_pages: u32,
    pub filter_pages: u32,
    /// Blocks of records.
    pub blocks: u32,
}

impl Footer {
    pub fn index(&self) -> Range<u64> {
        self.index_offset..self.index_offset + u64::from(self.index_pages) * PAGE as u64
    }
    pub fn filter(&self) -> Range<u64> {
        let begin = self.index().end;
        begin..begin + u64::from(self.filter_pages) * PAGE as u64
    }
    /// The end of the filter is where the footer begins.
    fn place(slice: SliceId, table: u64, offset: u64) -> Place {
        Place { slice, table, offset }
    }

    /// Fills one page.
    pub fn encode(&self, page: &mut [u8]) {
        let meta = &self.meta;
        let mut body = Vec::with_capacity(FIXED_BYTES + meta.smallest.len() + meta.largest.len());
        body.extend_from_slice(&MAGIC);
        body.extend_from_slice(&FORMAT.to_le_bytes());
        body.extend_from_slice(&meta.slice.0.to_le_bytes());
        body.extend_from_slice(&[meta.level, 0]);
        for field in [meta.id, meta.bytes, meta.entries, meta.deletes, meta.max_sequence, meta.value_bytes] {
            body.extend_from_slice(&field.to_le_bytes());
        }
        body.extend_from_slice(&self.index_offset.to_le_bytes());
        for field in [self.index_pages, self.filter_pages, self.blocks] {
            body.extend_from_slice(&field.to_le_bytes());
        }
        for key in [&meta.smallest, &meta.largest] {
            body.extend_from_slice(&(key.len() as u16).to_le_bytes());
        }
        debug_assert_eq!(body.len(), FIXED_BYTES);
        body.extend_from_slice(&meta.smallest);
        body.extend_from_slice(&meta.largest);
        page[HEADER_BYTES..HEADER_BYTES + body.len()].copy_from_slice(&body);
        let offset = meta.bytes - PAGE as u64;
        section::seal(page, body.len(), 1, Kind::Footer, Footer::place(meta.slice, meta.id, offset));
    }

    /// Reads the last page of a file of `file_bytes`, and checks that the parts fit the file.
    pub fn decode(page: &[u8], slice: SliceId, id: u64, file_bytes: u64) -> Result<Footer, EngineError> {
        let offset = file_bytes - PAGE as u64;
        let flaw = |Flaw(what)| EngineError::Damaged(format!("{} at {offset}: footer: {what}", path(slice, id)));
        let section = section::open(page, Kind::Footer, Footer::place(slice, id, offset)).map_err(flaw)?;
        let mut fields = Fields(section.body);
        if fields.bytes(8).map_err(flaw)? != MAGIC {
            return Err(flaw(Flaw("not a table")));
        }
        let format = fields.u32().map_err(flaw)?;
        if format > FORMAT {
            return Err(EngineError::NewerFormat { file: path(slice, id), found: format, known: FORMAT });
        }
        let footer = Footer::decode_fields(fields).map_err(flaw)?;
        let whole = footer.meta.slice == slice
            && footer.meta.id == id
            && footer.meta.bytes == file_bytes
            && footer.filter().end == offset
            && footer.index_offset.is_multiple_of(PAGE as u64);
        if whole { Ok(footer) } else { Err(flaw(Flaw("of another table"))) }
    }

    fn decode_fields(mut fields: Fields<'_>) -> Result<Footer, Flaw> {
        let slice = SliceId(fields.u16()?);
        let [level, _] = fields.u16()?.to_le_bytes();
        let (id, bytes, entries, deletes) = (fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?);
        let (max_sequence, value_bytes) = (fields.u64()?, fields.u64()?);
        let index_offset = fields.u64()?;
        let (index_pages, filter_pages, blocks) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let (smallest, largest) = (fields.u16()?, fields.u16()?);
        let smallest = Bytes::copy_from_slice(fields.bytes(smallest.into())?);
        let largest = Bytes::copy_from_slice(fields.bytes(largest.into())?);
        fields.end()?;
        if index_offset > bytes || entries == 0 || deletes > entries || smallest > largest {
            return Err(Flaw("fields contradict each other"));
        }
        let meta =
            TableMeta { id, slice, level, smallest, largest, entries, deletes, bytes, max_sequence, value_bytes };
        Ok(Footer { meta, index_offset, index_pages, filter_pages, blocks })
    }

    /// Slice and table that a footer page claims to be of, unverified: for reading a file by its path alone.
    pub fn claims(page: &[u8]) -> Result<(SliceId, u64), Flaw> {
        let mut fields = Fields(page);
        fields.bytes(HEADER_BYTES)?;
        if fields.bytes(8)? != MAGIC {
            return Err(Flaw("not a table"));
        }
        fields.u32()?;
        let slice = SliceId(fields.u16()?);
        fields.u16()?;
        Ok((slice, fields.u64()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footer() -> Footer {
        let meta = TableMeta {
            id: 77,
            slice: SliceId(5),
            level: 2,
            smallest: Bytes::from_static(b"a"),
            largest: Bytes::from(vec![b'z'; ENGINE_KEY_BYTES_MAX]),
            entries: 100,
            deletes: 3,
            bytes: 10 * PAGE as u64,
            max_sequence: u64::MAX,
            value_bytes: 1 << 40,
        };
        Footer { meta, index_offset: 6 * PAGE as u64, index_pages: 1, filter_pages: 2, blocks: 6 }
    }

    #[test]
    fn a_footer_comes_back() {
        let (footer, mut page) = (footer(), vec![0; PAGE]);
        footer.encode(&mut page);
        assert_eq!(Footer::decode(&page, SliceId(5), 77, 10 * PAGE as u64), Ok(footer));
        assert_eq!(Footer::claims(&page), Ok((SliceId(5), 77)));
        for (slice, id, pages) in [(4, 77, 10), (5, 78, 10), (5, 77, 11)] {
            let read = Footer::decode(&page, SliceId(slice), id, pages * PAGE as u64);
            assert!(matches!(read, Err(EngineError::Damaged(_))), "{read:?}");
        }
    }

    #[test]
    fn a_newer_format_is_not_called_damaged() {
        let mut page = vec![0; PAGE];
        footer().encode(&mut page);
        page[HEADER_BYTES + 8] = 2;
        let place = Place { slice: SliceId(5), table: 77, offset: 9 * PAGE as u64 };
        section::seal(&mut page, 500, 1, Kind::Footer, place);
        let read = Footer::decode(&page, SliceId(5), 77, 10 * PAGE as u64);
        assert!(matches!(read, Err(EngineError::NewerFormat { found: 2, known: 1, .. })), "{read:?}");
    }

    #[test]
    fn parts_that_do_not_fit_the_file_are_refused() {
        type Change = fn(&mut Footer);
        let changes: [Change; 6] = [
            |f| f.index_offset += PAGE as u64,
            |f| f.index_offset = u64::MAX,
            |f| f.filter_pages = 0,
            |f| f.meta.entries = 0,
            |f| f.meta.deletes = 101,
            |f| f.meta.smallest = Bytes::from(vec![0xff; 3]),
        ];
        for change in changes {
            let (mut footer, mut page) = (footer(), vec![0; PAGE]);
            change(&mut footer);
            footer.encode(&mut page);
            let read = Footer::decode(&page, SliceId(5), 77, 10 * PAGE as u64);
            assert!(matches!(read, Err(EngineError::Damaged(_))), "{read:?}");
        }
    }
}
