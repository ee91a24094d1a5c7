//! Tokens from one to another, both included; never around the end of the ring.

use super::Token;

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Span {
    pub first: Token,
    /// Not before `first`.
    pub last: Token,
}

/// The number of the block of 2^`shift` tokens that a token lies in; with 64 all are one block.
fn block_of(token: Token, shift: u8) -> u64 {
    token.0.checked_shr(u32::from(shift)).unwrap_or(0)
}

impl Span {
    /// All tokens.
    pub const ALL: Span = Span { first: Token(0), last: Token(u64::MAX) };

    pub fn contains(&self, token: Token) -> bool {
        self.first <= token && token <= self.last
    }
    pub fn covers(&self, other: &Span) -> bool {
        self.contains(other.first) && self.contains(other.last)
    }
    /// The numbers of the first and the last block of 2^`shift` tokens that it touches.
    pub fn blocks(&self, shift: u8) -> (u64, u64) {
        (block_of(self.first, shift), block_of(self.last, shift))
    }
    /// How many blocks of 2^`shift` tokens it touches, at least 1; more than fit are `u64::MAX`.
    pub fn block_count(&self, shift: u8) -> u64 {
        let (first, last) = self.blocks(shift);
        (last - first).saturating_add(1)
    }
    /// What of a block lies in it. The block is one that it touches.
    pub fn block(&self, block: u64, shift: u8) -> Span {
        let start = block.checked_shl(u32::from(shift)).unwrap_or(0);
        let end = start.saturating_add(1u64.checked_shl(u32::from(shift)).map_or(u64::MAX, |tokens| tokens - 1));
        Span { first: self.first.max(Token(start)), last: self.last.min(Token(end)) }
    }
    /// The least shift with which it touches no more blocks than that.
    pub fn shift_for(&self, blocks_max: u64) -> u8 {
        (0..u64::BITS as u8).find(|shift| self.block_count(*shift) <= blocks_max).unwrap_or(u64::BITS as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(first: u64, last: u64) -> Span {
        Span { first: Token(first), last: Token(last) }
    }

    #[test]
    fn blocks_lie_side_by_side_and_make_up_the_whole() {
        for whole in [Span::ALL, span(5, 5), span(7, 4_000), span(u64::MAX - 9, u64::MAX), span(1 << 40, 1 << 62)] {
            for most in [1, 2, 3, 64, 1_000] {
                let shift = whole.shift_for(most);
                let count = whole.block_count(shift);
                assert!(count <= most && (shift == 0 || whole.block_count(shift - 1) > most), "{whole:?} {most}");
                let (first, last) = whole.blocks(shift);
                let parts: Vec<Span> = (first..=last).map(|block| whole.block(block, shift)).collect();
                assert_eq!((parts[0].first, parts[parts.len() - 1].last), (whole.first, whole.last));
                assert!(parts.windows(2).all(|two| two[0].last.0 + 1 == two[1].first.0), "{whole:?} {most}");
                assert!(parts.iter().all(|part| part.first <= part.last && part.block_count(shift) == 1));
            }
        }
        assert_eq!((Span::ALL.shift_for(1), Span::ALL.block_count(0)), (64, u64::MAX));
    }
}
