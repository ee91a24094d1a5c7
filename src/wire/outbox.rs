//! Frames that wait for their connection: short ones go ahead of long ones.
//!
//! What is sent at once is all that is short, then one long frame. So a short frame waits for one long one at most,
//! that which is being sent, however many long ones were there before it. Frames of this protocol may overtake each
//! other: answers are told by their numbers. Long ones keep their order and always progress.

use super::Pieces;
use crate::limits::LONG_FRAME_BYTES;
use bytes::Bytes;
use std::collections::VecDeque;

/// See the module.
#[derive(Debug, Default)]
pub struct Outbox {
    short: VecDeque<Pieces>,
    long: VecDeque<Pieces>,
    bytes: usize,
}

impl Outbox {
    pub fn push(&mut self, frame: Pieces) {
        self.bytes += frame.bytes();
        let queue = if frame.bytes() > LONG_FRAME_BYTES { &mut self.long } else { &mut self.short };
        queue.push_back(frame);
    }
    pub fn is_empty(&self) -> bool {
        self.short.is_empty() && self.long.is_empty()
    }
    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
    /// Appends what is to be sent next; gives its length.
    pub fn take(&mut self, out: &mut impl Extend<Bytes>) -> usize {
        let before = self.bytes;
        let short = std::mem::take(&mut self.short);
        for frame in short.into_iter().chain(self.long.pop_front()) {
            self.bytes -= frame.bytes();
            out.extend(frame.into_parts());
        }
        before - self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        protocol::{
            message::{Answer, ServerMessage},
            versions::{Actor, Dot, Entry, Head, Siblings},
        },
        types::{NodeId, Value, WriteId},
        wire::{FrameDecoder, FrameEncoder, decode_server, encode_server},
    };

    fn answer(bytes: usize) -> ServerMessage {
        let value = Value::json(vec![b'7'; bytes]);
        let dot = Dot { actor: Actor::new(NodeId(1), 1), counter: 1 };
        let entry = Entry {
            dot,
            write_id: WriteId(0),
            media: value.media.clone(),
            bytes: bytes as u32,
            checksum: value.checksum,
        };
        let mut siblings = Siblings { head: Head::default(), values: [value.bytes].into_iter().collect() };
        siblings.head.clock.record(dot);
        siblings.head.entries.push(entry);
        ServerMessage::Response { response: Ok(Answer::Got(siblings)), ring_digest: 0 }
    }

    #[test]
    fn short_frames_overtake_long_ones_and_all_arrive_whole() {
        let (mut outbox, mut encoder) = (Outbox::default(), FrameEncoder::new());
        let mut push = |outbox: &mut Outbox, id: u64, bytes: usize| {
            outbox.push(encode_server(&mut encoder, id, &answer(bytes)).expect("within limits"));
        };
        for (id, bytes) in [(1, 1 << 20), (2, 100_000), (3, 1_000), (4, 100_000), (5, 10)] {
            push(&mut outbox, id, bytes);
        }
        let (mut arrived, mut decoder, mut sent) = (Vec::new(), FrameDecoder::new(), 0);
        decoder.set_limit(usize::MAX);
        for turn in 0..3 {
            let all = outbox.bytes();
            let mut parts: Vec<Bytes> = Vec::new();
            let length = outbox.take(&mut parts);
            assert_eq!((length, outbox.bytes()), (parts.iter().map(Bytes::len).sum(), all - length));
            parts.iter().for_each(|part| decoder.feed(part));
            while let Some(frame) = decoder.next_frame().expect("whole frames") {
                let (id, message) = decode_server(&frame).expect("sound");
                let bytes = match id {
                    1 => 1 << 20,
                    2 | 4 => 100_000,
                    3 => 1_000,
                    _ => 10,
                };
                assert_eq!(message, answer(bytes));
                arrived.push(id);
                sent += 1;
            }
            // Comes while a long one is on its way.
            if turn == 0 {
                push(&mut outbox, 6, 10);
            }
        }
        assert!(outbox.is_empty() && sent == 6);
        assert_eq!(arrived, [3, 5, 1, 6, 2, 4]);
    }
}
