//! Frames that nobody of this cluster would send: of damaged content, and of unknown kinds. Each costs itself: the
//! frame behind it on the same connection is read as if it had not been there.

use super::{checker::Invariant, cluster::Cluster, network::Parcel, prng::Prng};
use crate::{
    limits::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES},
    wire::{self, FrameDecoder, Trust},
};

/// Where things lie in a frame's header: see `wire/frame.rs`.
const FLATBUFFER_AT: usize = 4;
const KIND_AT: usize = 16;
const CHECKSUM_AT: usize = 28;
/// Bits that are flipped at most.
const BITS_MAX: u64 = 8;

impl Cluster {
    /// Now and then a strange frame comes before this one.
    pub(super) fn meet_strange(&self, parcel: &Parcel) {
        let share = self.plan.network.strange;
        if share == 0.0 || !self.network.borrow_mut().stranger.chance(share) {
            return;
        }
        let mut prng = self.network.borrow_mut().stranger.fork();
        let good = parcel.pieces.to_bytes();
        let mut strange = good.to_vec();
        let unknown = prng.chance(0.3);
        if unknown {
            let kind = 1_000 + prng.below(1_000) as u16;
            strange[KIND_AT..KIND_AT + 2].copy_from_slice(&kind.to_le_bytes());
        } else {
            damage(&mut strange, &mut prng);
        }
        seal(&mut strange);
        let mut decoder = FrameDecoder::new();
        decoder.set_limit(FRAME_BYTES_MAX);
        decoder.feed(&strange);
        decoder.feed(&good);
        self.count(|c| c.strange_frames += 1);
        // What it says is nothing that a member would say, so nobody carries it out.
        if let Ok(Some(frame)) = decoder.next_frame() {
            drop(wire::decode_peer(&frame, self.local_now(parcel.to), Trust::Verify));
        }
        let next = decoder.next_frame().ok().flatten().map(|frame| frame.bytes());
        if next != Some(good.len()) {
            let what = if unknown { "of an unknown kind" } else { "of damaged content" };
            let text = format!("a frame {what} has cost node {} the one behind it: {next:?}", parcel.to);
            self.violate(Invariant::Alive, text);
        }
    }
}

fn flatbuffer_bytes(frame: &[u8]) -> usize {
    let field = &frame[FLATBUFFER_AT..FLATBUFFER_AT + 4];
    field.iter().rev().fold(0, |all, byte| all << 8 | usize::from(*byte))
}
/// Flips bits of the flatbuffer.
fn damage(frame: &mut [u8], prng: &mut Prng) {
    let bits = flatbuffer_bytes(frame) as u64 * 8;
    for _ in 0..prng.between(1, BITS_MAX) {
        let bit = prng.below(bits) as usize;
        frame[FRAME_HEADER_BYTES + bit / 8] ^= 1 << (bit % 8);
    }
}
/// A checksum that fits.
fn seal(frame: &mut [u8]) {
    let end = FRAME_HEADER_BYTES + flatbuffer_bytes(frame);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&frame[..CHECKSUM_AT]), &frame[FRAME_HEADER_BYTES..end]);
    frame[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
}
