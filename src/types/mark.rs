//! A mark before the head of a record: which life of the key's table it was written in.
//!
//! The storage engine knows no heads, but it drops groups of records by their marks: so the mark comes first, in a form
//! of its own. A head without one begins with its version, which is less than `SIGN`. The ruler is in
//! `schema/record.md`.

use bytes::BufMut;

const SIGN: u8 = 0x80;
/// Bytes of a mark.
pub const BYTES: usize = 9;

/// Writes the mark; 0 has none.
pub fn put(out: &mut impl BufMut, life: u64) {
    if life > 0 {
        out.put_u8(SIGN);
        out.put_u64_le(life);
    }
}
/// The mark, and the head after it; `None`: it is cut short, or 0 in so many bytes.
pub fn take(bytes: &[u8]) -> Option<(u64, &[u8])> {
    if bytes.first() != Some(&SIGN) {
        return Some((0, bytes));
    }
    let (mark, head) = bytes[1..].split_first_chunk::<8>()?;
    let life = u64::from_le_bytes(*mark);
    (life > 0).then_some((life, head))
}
/// The mark of a record; 0: it has none that can be read.
pub fn of(head: &[u8]) -> u64 {
    take(head).map_or(0, |(life, _)| life)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back_and_a_head_without_one_is_left_alone() {
        let mut marked = Vec::new();
        put(&mut marked, 7);
        marked.extend_from_slice(b"\x01head");
        assert_eq!(take(&marked), Some((7, &b"\x01head"[..])));
        assert_eq!((of(&marked), of(b"\x01head"), of(b"")), (7, 0, 0));
        put(&mut marked, 0);
        assert_eq!(marked.len(), BYTES + 5);
        for cut in 1..BYTES {
            assert_eq!(take(&marked[..cut]), None);
        }
        assert_eq!(take(&[SIGN, 0, 0, 0, 0, 0, 0, 0, 0, 1]), None);
    }
}
