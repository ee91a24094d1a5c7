//! What every part of a table is wrapped in: whole pages behind a header with a checksum.
//!
//! The checksum is seeded with the slice, the table and the offset, so that pages that were written to, or read from,
//! another place than meant do not pass. It covers the padding too: nothing of a section is believed before it holds.

use crate::{limits::PAGE, types::SliceId};

/// Bytes of a section's header, before the body: checksum u32, length u32, count u32, kind u8, three zeros.
pub const HEADER_BYTES: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Records = 1,
    Index = 2,
    Filter = 3,
    Footer = 4,
}

/// The place that a section is for: one that is found elsewhere is damage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub slice: SliceId,
    pub table: u64,
    /// The offset in bytes from the start of the file.
    pub offset: u64,
}
impl Place {
    fn seed(&self) -> u32 {
        let mut bytes = [0; 18];
        bytes[..2].copy_from_slice(&self.slice.0.to_le_bytes());
        bytes[2..10].copy_from_slice(&self.table.to_le_bytes());
        bytes[10..].copy_from_slice(&self.offset.to_le_bytes());
        crc32c::crc32c(&bytes)
    }
}

/// A flaw of stored bytes, in a few words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flaw(pub &'static str);

/// A section whose checksum held.
#[derive(Clone, Copy, Debug)]
pub struct Section<'a> {
    pub count: u32,
    pub body: &'a [u8],
}

/// Whole pages for a body of so many bytes.
pub fn padded_bytes(body: usize) -> usize {
    (HEADER_BYTES + body).next_multiple_of(PAGE)
}

/// Completes a section in place: `pages` is whole pages, the body of `body` bytes already behind the room for the
/// header. Zeroes what follows the body.
pub fn seal(pages: &mut [u8], body: usize, count: u32, kind: Kind, place: Place) {
    let length = HEADER_BYTES + body;
    pages[length..].fill(0);
    pages[4..8].copy_from_slice(&(length as u32).to_le_bytes());
    pages[8..12].copy_from_slice(&count.to_le_bytes());
    pages[12..16].copy_from_slice(&[kind as u8, 0, 0, 0]);
    let checksum = crc32c::crc32c_append(place.seed(), &pages[4..]);
    pages[..4].copy_from_slice(&checksum.to_le_bytes());
}

/// Verifies a section that takes up `pages` whole.
pub fn open(pages: &[u8], kind: Kind, place: Place) -> Result<Section<'_>, Flaw> {
    if pages.len() < HEADER_BYTES {
        return Err(Flaw("too short"));
    }
    if crc32c::crc32c_append(place.seed(), &pages[4..]) != word(pages, 0) {
        return Err(Flaw("wrong checksum"));
    }
    unsealed(pages, kind)
}

/// A section whose checksum was verified before.
pub fn unsealed(bytes: &[u8], kind: Kind) -> Result<Section<'_>, Flaw> {
    if bytes.len() < HEADER_BYTES || bytes[12..16] != [kind as u8, 0, 0, 0] {
        return Err(Flaw("another kind of section"));
    }
    let body = bytes.get(HEADER_BYTES..word(bytes, 4) as usize).ok_or(Flaw("wrong length"))?;
    Ok(Section { count: word(bytes, 8), body })
}

/// The bytes of an open section that are worth keeping: header and body without the padding.
pub fn unpadded(pages: &[u8]) -> &[u8] {
    let length = if pages.len() < HEADER_BYTES { 0 } else { word(pages, 4) as usize };
    pages.get(..length).unwrap_or(pages)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Reads fields one after the other; past the end is a flaw.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);
impl<'a> Fields<'a> {
    pub fn bytes(&mut self, length: usize) -> Result<&'a [u8], Flaw> {
        let (field, rest) = self.0.split_at_checked(length).ok_or(Flaw("cut short"))?;
        self.0 = rest;
        Ok(field)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Flaw> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(Flaw("cut short"))?;
        self.0 = rest;
        Ok(*field)
    }
    pub fn u8(&mut self) -> Result<u8, Flaw> {
        Ok(u8::from_le_bytes(self.array()?))
    }
    pub fn u16(&mut self) -> Result<u16, Flaw> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    pub fn u32(&mut self) -> Result<u32, Flaw> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    pub fn u64(&mut self) -> Result<u64, Flaw> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    /// Seven bits a byte, lowest first; the top bit says that more follow.
    pub fn varint(&mut self) -> Result<u64, Flaw> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Flaw("a number is too long"))
    }
    /// A length that fits memory; whether so many bytes follow is checked by whoever takes them.
    pub fn length(&mut self) -> Result<usize, Flaw> {
        usize::try_from(self.varint()?).map_err(|_| Flaw("a length is too large"))
    }
    pub fn end(&self) -> Result<(), Flaw> {
        if self.0.is_empty() { Ok(()) } else { Err(Flaw("bytes left over")) }
    }
}

/// Appends a number of any size, seven bits a byte.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_size_come_back_and_longer_ones_are_refused() {
        for value in (0..64).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit]).chain([u64::MAX]) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            let mut fields = Fields(&out);
            assert_eq!((fields.varint(), fields.end()), (Ok(value), Ok(())));
            assert!(Fields(&out[..out.len() - 1]).varint().is_err());
        }
        assert!(Fields(&[0xff; 10]).varint().is_err());
        assert!(Fields(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 2]).varint().is_err());
    }

    #[test]
    fn a_section_opens_only_where_it_belongs() {
        let place = Place { slice: SliceId(3), table: 9, offset: 4096 };
        let mut pages = vec![0xaa; PAGE];
        pages[HEADER_BYTES..HEADER_BYTES + 5].copy_from_slice(b"hello");
        seal(&mut pages, 5, 7, Kind::Records, place);
        let section = open(&pages, Kind::Records, place).expect("it was sealed");
        assert_eq!((section.count, section.body), (7, &b"hello"[..]));
        assert_eq!(unpadded(&pages).len(), HEADER_BYTES + 5);
        let others =
            [Place { slice: SliceId(4), ..place }, Place { table: 8, ..place }, Place { offset: 8192, ..place }];
        for other in others {
            assert_eq!(open(&pages, Kind::Records, other).map(|s| s.count), Err(Flaw("wrong checksum")));
        }
        assert!(open(&pages, Kind::Index, place).is_err());
        assert!(open(&vec![0; PAGE], Kind::Records, place).is_err());
        assert!(open(&[], Kind::Records, place).is_err());
    }
}
