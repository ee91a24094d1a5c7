//! Frames out of a stream of bytes.
//!
//! Received bytes gather in one buffer. A whole frame is split off it without a copy. A frame that does not fit what
//! is left of the buffer moves to a new one, sized for it, once: what had arrived of it is copied, the rest is received
//! in place. So a value of any length costs at most one copy of one receive buffer.

use super::{Frame, Header, WireError};
use crate::limits::{FRAME_BYTES_BEFORE_HELLO, FRAME_HEADER_BYTES, KIB, RECEIVE_BUFFER_BYTES};
use bytes::{BufMut, BytesMut};

/// The least room in a buffer that a receive is worth its system call for; with less a new buffer is taken.
const ROOM_BYTES_MIN: usize = 4 * KIB;
/// Frames up to this long share a receive buffer with those that follow; longer ones get a buffer of their own size.
const SHARED_FRAME_BYTES_MAX: usize = RECEIVE_BUFFER_BYTES / 4;

/// Turns received bytes into frames. No I/O: bytes come by [`FrameDecoder::feed`], or by receiving into the buffer of
/// [`FrameDecoder::take_buffer`].
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: BytesMut,
    limit: usize,
    /// The header of the frame at the start of the buffer, once it has arrived.
    claimed: Option<Header>,
    defect: Option<WireError>,
}
impl Default for FrameDecoder {
    fn default() -> FrameDecoder {
        FrameDecoder::new()
    }
}

impl FrameDecoder {
    /// A decoder for a connection before its HELLO: frames up to [`FRAME_BYTES_BEFORE_HELLO`].
    pub fn new() -> FrameDecoder {
        FrameDecoder { buffer: BytesMut::new(), limit: FRAME_BYTES_BEFORE_HELLO, claimed: None, defect: None }
    }
    /// Sets the longest frame that is taken from now on: after the HELLO.
    pub fn set_limit(&mut self, frame_bytes_max: usize) {
        self.limit = frame_bytes_max;
    }
    /// Whether a frame has begun to arrive and is not whole yet.
    pub fn is_mid_frame(&self) -> bool {
        !self.buffer.is_empty()
    }
    /// Bytes that have been received and not been split off.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }
    /// Bytes that are still to come of the frame that has begun, as far as known.
    pub fn missing(&self) -> usize {
        self.claimed.map_or(0, |h| h.length.saturating_sub(self.buffer.len()))
    }

    /// Appends received bytes, copied.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.defect.is_some() {
            return;
        }
        self.make_room(bytes.len());
        self.buffer.put_slice(bytes);
    }
    /// Appends received bytes; takes the buffer over when nothing is pending.
    pub fn feed_buffer(&mut self, bytes: BytesMut) {
        if self.buffer.is_empty() && self.defect.is_none() {
            self.buffer = bytes;
        } else {
            self.feed(&bytes);
        }
    }
    /// The buffer to receive into: append to it (within its capacity: there is always room), then bring it back with
    /// [`FrameDecoder::give_buffer`]. Until then the decoder is empty and yields nothing.
    pub fn take_buffer(&mut self) -> BytesMut {
        let room = self.missing().clamp(1, ROOM_BYTES_MIN);
        self.make_room(room);
        std::mem::take(&mut self.buffer)
    }
    /// Brings back the buffer of [`FrameDecoder::take_buffer`] with what was received.
    pub fn give_buffer(&mut self, buffer: BytesMut) {
        self.buffer = buffer;
    }
    /// Lets go of an empty buffer: for a connection that falls idle.
    pub fn release(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    /// Makes sure that `room` more bytes fit, and the whole of a frame whose length is known.
    fn make_room(&mut self, room: usize) {
        let needed = room.max(self.missing());
        if self.buffer.capacity() - self.buffer.len() >= needed {
            return;
        }
        if self.buffer.is_empty() && self.buffer.try_reclaim(RECEIVE_BUFFER_BYTES.max(needed)) {
            return;
        }
        let total = self.buffer.len() + needed;
        let capacity = if total <= SHARED_FRAME_BYTES_MAX { RECEIVE_BUFFER_BYTES } else { total };
        let mut roomy = BytesMut::with_capacity(capacity);
        roomy.put_slice(&self.buffer);
        self.buffer = roomy;
    }

    /// The next frame, if it is whole. An error is final: the connection is to be closed.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, WireError> {
        if let Some(defect) = &self.defect {
            return Err(defect.clone());
        }
        let next = self.split_frame();
        if let Err(defect) = &next {
            self.defect = Some(defect.clone());
            self.buffer = BytesMut::new();
        }
        next
    }
    fn split_frame(&mut self) -> Result<Option<Frame>, WireError> {
        let Some(header) = self.header()? else { return Ok(None) };
        if self.buffer.len() < header.length {
            return Ok(None);
        }
        self.claimed = None;
        Frame::from_received(header, self.buffer.split_to(header.length).freeze()).map(Some)
    }
    fn header(&mut self) -> Result<Option<Header>, WireError> {
        if self.claimed.is_some() {
            return Ok(self.claimed);
        }
        // The length comes first, so that a stream which is no frame at all is refused after four bytes.
        let Some(length) = self.buffer.first_chunk() else { return Ok(None) };
        let claimed = u32::from_le_bytes(*length) as usize;
        if claimed > self.limit {
            return Err(WireError::TooLong { claimed, limit: self.limit });
        }
        if claimed <= FRAME_HEADER_BYTES {
            return Err(WireError::Length { claimed });
        }
        if let Some(bytes) = self.buffer.first_chunk() {
            self.claimed = Some(Header::parse(bytes)?);
        }
        Ok(self.claimed)
    }
}
