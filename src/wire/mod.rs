//! Bytes to messages and back. The only room that knows flatbuffers.
//!
//! A frame is a fixed header, a flatbuffer and the raw bytes of the values that it speaks of ([`frame`] draws it). The
//! values are never copied into the flatbuffer, and on the way in never copied out of the receive buffer.
//!
//! - [`FrameDecoder`] turns received bytes into [`Frame`]s; it checks a claimed length against the connection's limit
//!   before it reserves anything.
//! - [`decode_peer`], [`decode_peer_hello`], [`decode_client`] and [`decode_server`] turn a frame into a message, once
//!   and completely: after them every length, count, enum value, order and checksum holds, and nobody checks again.
//! - [`age::Age`] says how long a frame was on its way: the time that is left of its deadline counts from there.
//! - [`FrameEncoder`] with [`encode_peer`], [`encode_peer_hello`], [`encode_client`] and [`encode_server`] makes
//!   [`Pieces`] for one vectored send.
//!
//! Nothing here panics on hostile bytes: each defect is a [`WireError`]. Between nodes, one of a message costs that
//! message, and the asker is told ([`answer_unread`]); one of a frame's bounds or checksum ends the connection. Clients
//! lose theirs by both, but for what [`WireError::refusal`] turns into an answer.
//!
//! The format, its rules for change and a description for authors of other clients are in `schema/README.md`.

pub mod age;
mod client;
mod error;
mod fields;
pub mod frame;
mod generated;
mod outbox;
mod peer;
mod repair;
mod stream;

pub use age::Age;
pub use client::{decode_client, decode_server, encode_client, encode_server};
pub use error::WireError;
pub use frame::{Frame, FrameEncoder, Header, Kind, Pieces};
pub use outbox::Outbox;
pub use peer::{
    ConnectionPurpose, PeerHello, answer_unread, decode_peer, decode_peer_hello, encode_peer, encode_peer_hello,
};
pub use stream::FrameDecoder;

/// Highest revision of the client protocol that this Dynarc speaks.
///
/// 2: requests carry the client's clock; answers may have the codes from 11 on.
pub const CLIENT_REVISION: u16 = 2;
/// Highest revision of the peer protocol that this Dynarc speaks.
///
/// 2: frames carry the sender's clock; refusals from 8 on, codes from 11 on and kinds from 44 on are known.
/// 3: kinds from 60 on and refusals from 20 on are known: repair.
pub const PEER_REVISION: u16 = 3;
/// The revision of both protocols from which on frames tell the sender's clock.
const CLOCK_REVISION: u16 = 2;
/// Features that this Dynarc offers in a HELLO; none are defined yet.
pub const FEATURES: u64 = 0;

/// Whether the checksums of values are verified at decode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Trust {
    /// The frame came over a socket.
    Verify,
    /// The frame came from another core of this node, which has verified it already.
    SameNode,
}
