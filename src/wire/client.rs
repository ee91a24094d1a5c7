//! Messages between clients and servers.

use super::{
    Frame, FrameEncoder, Kind, Pieces, Trust, WireError, age,
    fields::{self, Reader},
    frame::{Label, micros_left},
    generated as fb,
};
use crate::{
    limits::REQUEST_TIMEOUT,
    protocol::message::{ClientMessage, Hello, ServerMessage, Welcome},
    types::Instant,
};

/// The frame of a client's message, for a server that speaks the encoder's revision; `id` is the client's own number,
/// echoed in the answer.
///
/// Fails with [`WireError::Unsendable`] for a message beyond its limits.
pub fn encode_client(
    encoder: &mut FrameEncoder,
    id: u64,
    message: &ClientMessage,
    now: Instant,
) -> Result<Pieces, WireError> {
    // Of a client's frames only a request waits for anything, and the HELLO has to be understood by all.
    let label = |kind, left| Label { kind, exchange: id, left, clock: None };
    let revision = encoder.revision();
    let builder = encoder.start();
    match message {
        ClientMessage::Hello(hello) => {
            let &Hello { revision, features, clock } = hello;
            let args = fb::ClientHelloArgs { revision, features, clock };
            let root = fb::ClientHello::create(builder, &args);
            encoder.finish(label(Kind::ClientHello, 0), root, [].iter())
        }
        ClientMessage::Request(request) => {
            let root = fields::put_request(builder, request, revision)?;
            // 0 would mean that the client has no wish.
            let left = micros_left(request.deadline, now).max(1);
            let label = Label { clock: Some(age::clock(now)), ..label(Kind::Request, left) };
            encoder.finish(label, root, fields::request_value(request).into_iter())
        }
        ClientMessage::Ring => {
            let root = fb::RingRequest::create(builder, &fb::RingRequestArgs {});
            encoder.finish(label(Kind::RingRequest, 0), root, [].iter())
        }
    }
}

/// The message of a client's frame, with its number; values are verified. A defect whose [`WireError::refusal`] is an
/// answer leaves the connection usable. `sent`: when that was, by the own clock, as far as it is known.
pub fn decode_client(frame: &Frame, sent: Instant) -> Result<(u64, ClientMessage), WireError> {
    let message = match frame.kind() {
        Kind::ClientHello => {
            let table = frame.root::<fb::ClientHello>()?;
            frame.body().finish()?;
            ClientMessage::Hello(Hello { revision: table.revision(), features: table.features(), clock: table.clock() })
        }
        Kind::Request => {
            let table = frame.root::<fb::Request>()?;
            let deadline = match frame.header().left {
                0 => sent + REQUEST_TIMEOUT,
                _ => frame.header().deadline(sent),
            };
            ClientMessage::Request(fields::take_request(frame, table, deadline, Trust::Verify)?)
        }
        Kind::RingRequest => {
            frame.root::<fb::RingRequest>()?;
            frame.body().finish()?;
            ClientMessage::Ring
        }
        Kind::Unknown => return Err(WireError::UnknownKind(frame.header().number)),
        other => return Err(WireError::UnexpectedKind(other as u16)),
    };
    Ok((frame.exchange(), message))
}

/// The frame of a server's message, for a client that speaks the encoder's revision; `id` is the number of the request
/// that it answers (0 for a goodbye).
///
/// Fails with [`WireError::Unsendable`] for a message beyond its limits.
pub fn encode_server(encoder: &mut FrameEncoder, id: u64, message: &ServerMessage) -> Result<Pieces, WireError> {
    let label = |kind| Label { kind, exchange: id, left: 0, clock: None };
    let revision = encoder.revision();
    let builder = encoder.start();
    match message {
        ServerMessage::Welcome(welcome) => {
            let args = fb::WelcomeArgs {
                revision: welcome.revision,
                features: welcome.features,
                address: fields::pack_address(welcome.address),
                value_bytes_max: welcome.value_bytes_max,
                frame_bytes_max: welcome.frame_bytes_max,
                ring_digest: welcome.ring_digest,
            };
            let root = fb::Welcome::create(builder, &args);
            encoder.finish(label(Kind::Welcome), root, [].iter())
        }
        ServerMessage::Response { response, ring_digest } => {
            let root = fields::put_response(builder, response, Reader::Client { ring_digest: *ring_digest }, revision)?;
            encoder.finish(label(Kind::Response), root, fields::response_values(response).iter())
        }
        ServerMessage::Ring { members, digest } => {
            let members = Some(fields::put_members(builder, members.iter())?);
            let root = fb::RingResponse::create(builder, &fb::RingResponseArgs { members, digest: *digest });
            encoder.finish(label(Kind::RingResponse), root, [].iter())
        }
        ServerMessage::Goodbye { reason } => {
            let reason = Some(builder.create_string(reason));
            let root = fb::Goodbye::create(builder, &fb::GoodbyeArgs { reason });
            encoder.finish(label(Kind::Goodbye), root, [].iter())
        }
    }
}

/// The message of a server's frame, with the number of the request that it answers; values are verified.
///
/// What a client gets of a head has no memory of superseded writes (`Head::recent` is empty).
pub fn decode_server(frame: &Frame) -> Result<(u64, ServerMessage), WireError> {
    let message = match frame.kind() {
        Kind::Response => {
            let table = frame.root::<fb::Response>()?;
            let response = fields::take_response(frame, table, Trust::Verify)?;
            return Ok((frame.exchange(), ServerMessage::Response { response, ring_digest: table.ring_digest() }));
        }
        Kind::Welcome => {
            let table = frame.root::<fb::Welcome>()?;
            ServerMessage::Welcome(Welcome {
                revision: table.revision(),
                features: table.features(),
                address: fields::unpack_address(table.address()),
                value_bytes_max: table.value_bytes_max(),
                frame_bytes_max: table.frame_bytes_max(),
                ring_digest: table.ring_digest(),
            })
        }
        Kind::RingResponse => {
            let table = frame.root::<fb::RingResponse>()?;
            ServerMessage::Ring { members: fields::take_members(table.members())?, digest: table.digest() }
        }
        Kind::Goodbye => {
            let table = frame.root::<fb::Goodbye>()?;
            ServerMessage::Goodbye { reason: table.reason().to_owned() }
        }
        Kind::Unknown => return Err(WireError::UnknownKind(frame.header().number)),
        other => return Err(WireError::UnexpectedKind(other as u16)),
    };
    frame.body().finish()?;
    Ok((frame.exchange(), message))
}
