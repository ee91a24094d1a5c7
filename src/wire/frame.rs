//! One frame: header, flatbuffer, values.
//!
//! ```text
//!  0         4         8                   16    18    20    22    24          28          32
//!  +---------+---------+-------------------+-----+-----+-----+-----+-----------+-----------+
//!  | length  | flat-   | exchange          |kind |clock|mark |clock| left      | checksum  |
//!  | u32     | buffer  | u64               |u16  | low |u16  |high | u32, us   | u32       |
//!  +---------+---------+-------------------+-----+-----+-----+-----+-----------+-----------+
//!  | flatbuffer | to 8 | value | to 8 | value ...                                          |
//!  +---------------------------------------------------------------------------------------+
//! ```
//!
//! Little-endian. `length` counts the whole frame, header included; `flatbuffer` its bytes without padding. `exchange`
//! pairs an answer with its request. `left` is the time that remains until the deadline. `mark` says which of two forms
//! of the header it is: without a clock (the two halves are 0), or with the sender's clock, in milliseconds, when
//! `left` was reckoned. The checksum is CRC-32C of the first 28 bytes and the flatbuffer. Each value that is not empty
//! starts at a multiple of 8 from the frame's start; nothing follows the last one. Lengths and checksums of values are
//! in the flatbuffer.

use super::{CLIENT_REVISION, CLOCK_REVISION, PEER_REVISION, WireError};
use crate::{
    limits::{FLATBUFFER_DEPTH_MAX, FLATBUFFER_TABLES_MAX, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, KIB},
    limits::{REQUEST_TIMEOUT_MAX, VALUE_BYTES_CEILING},
    types::Instant,
};
use bytes::{BufMut, Bytes, BytesMut};
use flatbuffers::{FlatBufferBuilder, Follow, Verifiable, VerifierOptions, WIPOffset};
use smallvec::SmallVec;
use std::time::Duration;

/// Names this format of frames; anything else on the port is refused by it.
const MARK: u16 = 0xd1a1;
/// The same with the sender's clock: for those who speak revision 2.
const MARK_CLOCK: u16 = 0xd1a2;
/// Bytes of a header that its checksum covers.
const CHECKED_BYTES: usize = FRAME_HEADER_BYTES - 4;
/// The encoder cuts its header blocks from allocations of this size.
const BLOCK_BYTES: usize = 16 * KIB;
/// The verifier may visit so many times the bytes of a flatbuffer: tables share their vtables, so visits exceed bytes.
const APPARENT_FACTOR: usize = 8;

/// What a frame holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u16)]
pub enum Kind {
    /// A kind that this version does not know. Its frame is read all the same: what is wrong with a message is no
    /// reason to lose those after it.
    Unknown = 0,
    ClientHello = 1,
    Request = 2,
    RingRequest = 3,
    Welcome = 17,
    Response = 18,
    RingResponse = 19,
    Goodbye = 20,
    PeerHello = 32,
    Forward = 33,
    Forwarded = 34,
    Replicate = 35,
    Replicated = 36,
    Fetch = 37,
    Fetched = 38,
    GossipDigest = 39,
    GossipDelta = 40,
    GossipNews = 41,
    View = 42,
    Tables = 43,
    Returned = 44,
    Remembered = 45,
    TableNews = 46,
    Clock = 48,
    Reference = 49,
    Sums = 60,
    Summed = 61,
    Keys = 62,
    Keyed = 63,
    Agreed = 64,
    Parting = 70,
}
impl Kind {
    pub const ALL: [Kind; 30] = [
        Kind::ClientHello,
        Kind::Request,
        Kind::RingRequest,
        Kind::Welcome,
        Kind::Response,
        Kind::RingResponse,
        Kind::Goodbye,
        Kind::PeerHello,
        Kind::Forward,
        Kind::Forwarded,
        Kind::Replicate,
        Kind::Replicated,
        Kind::Fetch,
        Kind::Fetched,
        Kind::GossipDigest,
        Kind::GossipDelta,
        Kind::GossipNews,
        Kind::View,
        Kind::Tables,
        Kind::Returned,
        Kind::Remembered,
        Kind::TableNews,
        Kind::Clock,
        Kind::Reference,
        Kind::Sums,
        Kind::Summed,
        Kind::Keys,
        Kind::Keyed,
        Kind::Agreed,
        Kind::Parting,
    ];
    fn from_number(number: u16) -> Option<Kind> {
        Self::ALL.into_iter().find(|k| *k as u16 == number)
    }
    /// The revision of the protocol that brought it: nobody who speaks an earlier one knows it.
    fn since(self) -> u16 {
        match self as u16 {
            ..=43 => 1,
            44..=59 => 2,
            60.. => 3,
        }
    }
}

/// A frame's header after its checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Bytes of the whole frame.
    pub length: usize,
    /// Bytes of the flatbuffer without padding.
    pub flatbuffer: usize,
    /// The asker's number, echoed in the answer.
    pub exchange: u64,
    pub kind: Kind,
    /// The number of the kind as received.
    pub number: u16,
    /// Microseconds until the deadline; 0 where the kind has none.
    pub left: u32,
    /// The sender's clock then, in milliseconds (see [`super::age`]).
    pub clock: Option<u32>,
    checksum: u32,
}

/// The next multiple of 8.
pub(super) fn aligned(length: usize) -> usize {
    length.next_multiple_of(8)
}

impl Header {
    /// Reads and checks all but the checksum, which needs the flatbuffer.
    pub(super) fn parse(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<Header, WireError> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let clock = match u16_at(20) {
            MARK if u16_at(22) != 0 => return Err(WireError::Mark),
            MARK if u16_at(18) != 0 => return Err(WireError::Flags(u16_at(18))),
            MARK => None,
            MARK_CLOCK => Some(u32::from(u16_at(18)) | u32::from(u16_at(22)) << 16),
            _ => return Err(WireError::Mark),
        };
        let (length, flatbuffer) = (u32_at(0) as usize, u32_at(4) as usize);
        let end = FRAME_HEADER_BYTES.checked_add(flatbuffer).ok_or(WireError::Length { claimed: length })?;
        if flatbuffer == 0 || (length != end && length <= aligned(end)) || length < end {
            return Err(WireError::Length { claimed: length });
        }
        let kind = Kind::from_number(u16_at(16)).unwrap_or(Kind::Unknown);
        let exchange = u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32;
        Ok(Header {
            length,
            flatbuffer,
            exchange,
            kind,
            number: u16_at(16),
            left: u32_at(24),
            clock,
            checksum: u32_at(28),
        })
    }

    fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.length as u32);
        out.put_u32_le(self.flatbuffer as u32);
        out.put_u64_le(self.exchange);
        let clock = self.clock.unwrap_or(0);
        out.put_u16_le(self.kind as u16);
        out.put_u16_le(clock as u16);
        out.put_u16_le(if self.clock.is_some() { MARK_CLOCK } else { MARK });
        out.put_u16_le((clock >> 16) as u16);
        out.put_u32_le(self.left);
    }

    /// What was left when the frame was sent after that moment, at most [`REQUEST_TIMEOUT_MAX`].
    pub(super) fn deadline(&self, sent: Instant) -> Instant {
        sent + Duration::from_micros(u64::from(self.left)).min(REQUEST_TIMEOUT_MAX)
    }
}

/// Microseconds from `now` to `deadline`, at most [`REQUEST_TIMEOUT_MAX`], 0 when it has passed.
pub(super) fn micros_left(deadline: Instant, now: Instant) -> u32 {
    deadline.since(now).min(REQUEST_TIMEOUT_MAX).as_micros() as u32
}

/// The bytes of a frame's values.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Body {
    /// A frame as received: one run of bytes, values at multiples of 8.
    Whole(Bytes),
    /// A frame as encoded: one part for each value that is not empty, and the paddings between them.
    Parts(SmallVec<[Bytes; 2]>),
}

/// A whole frame whose header and flatbuffer match their checksum. Its message is not decoded yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    header: Header,
    flatbuffer: Bytes,
    body: Body,
}

impl Frame {
    /// The frame in these bytes, which are those of exactly one.
    pub(super) fn from_received(header: Header, whole: Bytes) -> Result<Frame, WireError> {
        let end = FRAME_HEADER_BYTES + header.flatbuffer;
        let flatbuffer = whole.slice(FRAME_HEADER_BYTES..end);
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&whole[..CHECKED_BYTES]), &flatbuffer);
        if checksum != header.checksum {
            return Err(WireError::Checksum);
        }
        let body = whole.slice(aligned(end).min(whole.len())..);
        Ok(Frame { header, flatbuffer, body: Body::Whole(body) })
    }

    /// The frame that an encoder of this process made, values shared and not copied: for messages between the cores of
    /// one node. The checksum is not computed again.
    pub fn from_pieces(pieces: Pieces) -> Result<Frame, WireError> {
        let mut parts = pieces.parts.into_iter();
        let front = parts.next().ok_or(WireError::Length { claimed: 0 })?;
        let header = front.first_chunk().ok_or(WireError::Length { claimed: front.len() })?;
        let header = Header::parse(header)?;
        let end = FRAME_HEADER_BYTES + header.flatbuffer;
        if front.len() < end {
            return Err(WireError::Length { claimed: front.len() });
        }
        Ok(Frame { header, flatbuffer: front.slice(FRAME_HEADER_BYTES..end), body: Body::Parts(parts.collect()) })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }
    pub fn kind(&self) -> Kind {
        self.header.kind
    }
    /// The asker's number.
    pub fn exchange(&self) -> u64 {
        self.header.exchange
    }
    /// Bytes that the frame took on its way.
    pub fn bytes(&self) -> usize {
        self.header.length
    }

    /// The verified root of the flatbuffer.
    pub(super) fn root<'a, T>(&'a self) -> Result<T::Inner, WireError>
    where
        T: 'a + Follow<'a> + Verifiable,
    {
        let options = VerifierOptions {
            max_depth: FLATBUFFER_DEPTH_MAX,
            max_tables: FLATBUFFER_TABLES_MAX,
            max_apparent_size: APPARENT_FACTOR * self.flatbuffer.len() + KIB,
            ignore_missing_null_terminator: false,
        };
        Ok(flatbuffers::root_with_opts::<T>(&options, &self.flatbuffer)?)
    }
    /// A part of the flatbuffer as counted bytes.
    pub(super) fn share(&self, part: &[u8]) -> Bytes {
        self.flatbuffer.slice_ref(part)
    }
    pub(super) fn body(&self) -> BodyReader<'_> {
        BodyReader { body: &self.body, at: 0 }
    }
}

/// Takes the values of a frame in order.
pub(super) struct BodyReader<'a> {
    body: &'a Body,
    /// [`Body::Whole`]: bytes taken; [`Body::Parts`]: parts taken.
    at: usize,
}
impl BodyReader<'_> {
    pub fn take(&mut self, length: u32) -> Result<Bytes, WireError> {
        let length = length as usize;
        if length > VALUE_BYTES_CEILING {
            return Err(WireError::ValueTooLong(length));
        }
        if length == 0 {
            return Ok(Bytes::new());
        }
        match self.body {
            Body::Whole(body) => {
                let start = aligned(self.at);
                let end = start + length;
                if end > body.len() {
                    return Err(WireError::Body);
                }
                self.at = end;
                Ok(body.slice(start..end))
            }
            Body::Parts(parts) => {
                let value = parts.get(self.at).filter(|p| p.len() == length).ok_or(WireError::Body)?;
                self.at += if length.is_multiple_of(8) || self.at + 1 == parts.len() { 1 } else { 2 };
                Ok(value.clone())
            }
        }
    }
    /// Nothing may be left over.
    pub fn finish(self) -> Result<(), WireError> {
        let all = match self.body {
            Body::Whole(body) => body.len(),
            Body::Parts(parts) => parts.len(),
        };
        if self.at == all { Ok(()) } else { Err(WireError::Body) }
    }
}

/// An encoded frame as the pieces of one vectored send: header and flatbuffer, then value after value (and the bytes
/// that align them). The values are shared with whoever else holds them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pieces {
    parts: SmallVec<[Bytes; 3]>,
    length: usize,
}
impl Pieces {
    /// Bytes of the whole frame.
    pub fn bytes(&self) -> usize {
        self.length
    }
    pub fn iter(&self) -> std::slice::Iter<'_, Bytes> {
        self.parts.iter()
    }
    pub fn into_parts(self) -> SmallVec<[Bytes; 3]> {
        self.parts
    }
    /// The frame in one run, copied.
    pub fn to_bytes(&self) -> Bytes {
        let mut whole = BytesMut::with_capacity(self.length);
        self.parts.iter().for_each(|p| whole.put_slice(p));
        whole.freeze()
    }
}
impl<'a> IntoIterator for &'a Pieces {
    type Item = &'a Bytes;
    type IntoIter = std::slice::Iter<'a, Bytes>;
    fn into_iter(self) -> Self::IntoIter {
        self.parts.iter()
    }
}

/// Makes frames. One for each connection (or core): the builder's memory is kept from frame to frame, and headers are
/// cut from shared blocks.
pub struct FrameEncoder {
    builder: FlatBufferBuilder<'static>,
    block: BytesMut,
    revision: u16,
}
impl Default for FrameEncoder {
    fn default() -> FrameEncoder {
        FrameEncoder::new()
    }
}
impl std::fmt::Debug for FrameEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameEncoder").finish_non_exhaustive()
    }
}

/// What a frame's header says besides lengths.
#[derive(Clone, Copy)]
pub(super) struct Label {
    pub kind: Kind,
    pub exchange: u64,
    pub left: u32,
    /// The own clock, where the kind tells it to those who understand.
    pub clock: Option<u32>,
}

impl FrameEncoder {
    /// Reserves nothing until the first frame. Speaks the newest revisions.
    pub fn new() -> FrameEncoder {
        let revision = PEER_REVISION.max(CLIENT_REVISION);
        FrameEncoder { builder: FlatBufferBuilder::with_capacity(0), block: BytesMut::new(), revision }
    }
    /// Makes frames from now on for somebody who speaks this revision, of the client or the peer protocol as the
    /// message says. What he does not know is said in the nearest way that he does, or not at all
    /// ([`WireError::Unspoken`]).
    pub fn speaking(&mut self, revision: u16) -> &mut FrameEncoder {
        self.revision = revision;
        self
    }
    pub(super) fn revision(&self) -> u16 {
        self.revision
    }

    /// Starts a flatbuffer. What an earlier, failed encoding left behind is dropped.
    pub(super) fn start(&mut self) -> &mut FlatBufferBuilder<'static> {
        self.builder.reset();
        &mut self.builder
    }

    /// Finishes the flatbuffer and joins it with the values.
    pub(super) fn finish<'v, T>(
        &mut self,
        label: Label,
        root: WIPOffset<T>,
        values: impl Iterator<Item = &'v Bytes> + Clone,
    ) -> Result<Pieces, WireError> {
        if label.kind.since() > self.revision {
            return Err(WireError::Unspoken(label.kind as u16));
        }
        self.builder.finish_minimal(root);
        let flatbuffer = self.builder.finished_data();
        let end = FRAME_HEADER_BYTES + flatbuffer.len();
        let length = values.clone().filter(|v| !v.is_empty()).fold(end, |at, v| aligned(at).saturating_add(v.len()));
        if length > FRAME_BYTES_MAX {
            return Err(WireError::Unsendable("longer than any frame"));
        }
        let front = if length == end { end } else { aligned(end) };
        if self.block.capacity() < front && !self.block.try_reclaim(front) {
            self.block = BytesMut::with_capacity(front.max(BLOCK_BYTES));
        }
        let header = Header {
            length,
            flatbuffer: flatbuffer.len(),
            exchange: label.exchange,
            kind: label.kind,
            number: label.kind as u16,
            left: label.left,
            clock: label.clock.filter(|_| self.revision >= CLOCK_REVISION),
            checksum: 0,
        };
        header.put(&mut self.block);
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&self.block), flatbuffer);
        self.block.put_u32_le(checksum);
        self.block.put_slice(flatbuffer);
        self.block.put_bytes(0, front - end);
        let mut parts = SmallVec::new();
        parts.push(self.block.split().freeze());
        push_values(&mut parts, values);
        Ok(Pieces { parts, length })
    }
}

fn push_values<'v>(parts: &mut SmallVec<[Bytes; 3]>, values: impl Iterator<Item = &'v Bytes>) {
    static ZEROS: [u8; 8] = [0; 8];
    let mut unaligned = 0;
    for value in values.filter(|v| !v.is_empty()) {
        if unaligned != 0 {
            parts.push(Bytes::from_static(&ZEROS[unaligned..]));
        }
        parts.push(value.clone());
        unaligned = value.len() % 8;
    }
}
