//! The client protocol: many requests in flight on a connection, answers in any order.
//!
//! A connection is one task with two halves. The receiving half reads as much as there is, hands every request to the
//! shard and goes on; the sending half takes the answers that have gathered, long ones last, and sends them in one
//! operation. Nothing is spawned and no timer set for a request. Reading pauses while too many requests are in flight
//! or too many answers wait for a client that does not read.

use super::{
    clock,
    latency::{Front, Timed},
    ring::Pieces,
    socket::{Ended, Gather, Inlet, Listener, Socket},
    watch::Watch,
    world::{Asker, ServerWorld, count},
};
use crate::{
    driver::world::Arrival,
    limits::{
        CLIENT_IDLE_MAX, FRAME_BYTES_MAX, HELLO_TIMEOUT, MIB, REQUEST_FRAME_BYTES_MAX, REQUESTS_PER_CONNECTION_MAX,
    },
    protocol::message::{ClientMessage, Hello, Request, Response, ServerMessage, Welcome},
    types::{ErrorCode, Failure, Outcome},
    wire::{self, Age, CLIENT_REVISION, FEATURES, Frame, FrameDecoder, Outbox},
};
use futures_util::future::{Either, select};
use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    io,
    pin::pin,
    rc::Rc,
    task::{Poll, Waker},
    time::Duration,
};

/// Bytes of answers that may wait for a client before its requests are read on.
const OUTBOX_BYTES: usize = 4 * MIB;
/// How long a goodbye may take to be read before the connection is closed.
const LINGER: Duration = Duration::from_secs(1);

/// Serves this core's client port. An error means that the port is lost.
pub async fn serve(world: Rc<ServerWorld>, listener: Listener, connections_max: usize) -> io::Result<()> {
    loop {
        let socket = listener.accept().await?;
        let world = world.clone();
        let crowded = !world.watches.has_place(world.traffic.get().connections as usize, connections_max);
        count(&world.traffic, |t| t.connections += 1);
        let ring = world.ring.clone();
        ring.spawn(async move {
            let outcome = connection(&world, socket, crowded).await;
            if let Err(error) = outcome {
                tracing::debug!(error, "a client connection has ended");
            }
            world.part();
        });
    }
}

/// What both halves of a connection, and the answers on their way to it, share.
struct Client {
    world: Rc<ServerWorld>,
    watch: Rc<Watch>,
    outbox: RefCell<Outbox>,
    /// Bytes that have left the outbox and are being sent.
    under_way: Cell<usize>,
    in_flight: Cell<usize>,
    /// What the client speaks.
    revision: Cell<u16>,
    /// The HELLO, or a frame that is not whole.
    arriving: Cell<bool>,
    /// Nothing more will be answered: the sending half ends when all is sent.
    finishing: Cell<bool>,
    sender: RefCell<Option<Waker>>,
    /// The receiving half, while it waits for room.
    receiver: RefCell<Option<Waker>>,
}

impl Asker for Client {
    fn answered(self: Rc<Self>, tag: u64, response: Response) {
        self.in_flight.set(self.in_flight.get() - 1);
        count(&self.world.traffic, |t| t.client_requests += 1);
        let ring_digest = self.ring_digest();
        self.say(tag, &ServerMessage::Response { response, ring_digest });
        self.rest();
        wake(&self.receiver);
    }
}

fn wake(waker: &RefCell<Option<Waker>>) {
    if let Some(waker) = waker.borrow_mut().take() {
        waker.wake();
    }
}

impl Client {
    fn ring_digest(&self) -> u64 {
        self.world.handle.get().map_or(0, |h| h.ring().digest())
    }

    fn say(&self, id: u64, message: &ServerMessage) {
        let pieces = {
            let encoder = &mut *self.world.encoder.borrow_mut();
            let encoder = encoder.speaking(self.revision.get());
            wire::encode_server(encoder, id, message).or_else(|error| {
                // An answer beyond the limits of a frame: the client hears so instead.
                let failure = Failure::new(ErrorCode::Internal, Outcome::Unknown, format!("the answer: {error}"));
                let instead = ServerMessage::Response { response: Err(failure), ring_digest: 0 };
                wire::encode_server(encoder, id, &instead)
            })
        };
        if let Ok(pieces) = pieces {
            self.outbox.borrow_mut().push(pieces);
            self.hold();
            wake(&self.sender);
        }
    }

    fn hold(&self) {
        self.watch.hold_outgoing(self.outbox.borrow().bytes() + self.under_way.get());
    }

    /// Nothing is in hand, unless something is: a frame that has begun to arrive has its own limit.
    fn rest(&self) {
        if self.in_flight.get() == 0 && !self.arriving.get() {
            self.watch.rest(CLIENT_IDLE_MAX);
        }
    }

    /// Sends what gathers, until the connection is finishing and all is out.
    async fn send(&self, socket: &Socket) -> io::Result<()> {
        let mut spare = Pieces::new();
        loop {
            let more = poll_fn(|cx| {
                if !self.outbox.borrow().is_empty() {
                    return Poll::Ready(true);
                }
                if self.finishing.get() && self.in_flight.get() == 0 {
                    return Poll::Ready(false);
                }
                *self.sender.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            if !more {
                return Ok(());
            }
            let mut pieces = std::mem::take(&mut spare);
            let full = self.outbox.borrow().bytes() > OUTBOX_BYTES;
            self.under_way.set(self.outbox.borrow_mut().take(&mut pieces));
            let (emptied, result) = socket.send_watched(pieces, &self.watch).await;
            result?;
            self.under_way.set(0);
            self.hold();
            spare = emptied;
            if full {
                wake(&self.receiver);
            }
        }
    }

    /// Ready when another request may be taken on.
    fn room(&self) -> impl Future<Output = ()> + '_ {
        poll_fn(|cx| {
            if self.in_flight.get() < REQUESTS_PER_CONNECTION_MAX && self.outbox.borrow().bytes() <= OUTBOX_BYTES {
                return Poll::Ready(());
            }
            *self.receiver.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
    }

    fn finish(&self) {
        self.finishing.set(true);
        wake(&self.sender);
    }
}

async fn connection(world: &Rc<ServerWorld>, socket: Socket, crowded: bool) -> Result<(), String> {
    let watch = world.watches.start(&socket);
    let client = Rc::new(Client {
        world: world.clone(),
        watch: watch.clone(),
        outbox: RefCell::default(),
        under_way: Cell::new(0),
        in_flight: Cell::new(0),
        revision: Cell::new(1),
        arriving: Cell::new(true),
        finishing: Cell::new(false),
        sender: RefCell::default(),
        receiver: RefCell::default(),
    });
    let mut reader = Reader {
        client: client.clone(),
        inlet: Inlet::new(socket.clone(), watch.clone()),
        decoder: FrameDecoder::new(),
        watch,
        age: Age::default(),
    };
    let reading = pin!(async {
        let end =
            if crowded { End::Goodbye("this core serves too many connections".into()) } else { reader.run().await };
        if let End::Goodbye(reason) = &end {
            reader.client.say(0, &ServerMessage::Goodbye { reason: reason.clone() });
        }
        reader.client.finish();
        end
    });
    let sending = pin!(client.send(&socket));
    match select(reading, sending).await {
        Either::Left((end, sending)) => {
            // What is in hand is answered before the connection goes.
            sending.await.map_err(|e| e.to_string())?;
            socket.finish_sending();
            match end {
                End::Closed => Ok(()),
                End::Goodbye(reason) => {
                    linger(world, &socket).await;
                    Err(reason)
                }
            }
        }
        Either::Right((result, _)) => result.map_err(|e| e.to_string()),
    }
}

/// Reads on until the other side has closed too: closing with unread bytes would tear our last words away.
async fn linger(world: &Rc<ServerWorld>, socket: &Socket) {
    let drain = pin!(async {
        let mut buffer = bytes::BytesMut::with_capacity(4096);
        loop {
            buffer.clear();
            let (back, result) = socket.receive(buffer).await;
            buffer = back;
            if !matches!(result, Ok(received) if received > 0) {
                return;
            }
        }
    });
    select(drain, world.ring.pause(LINGER)).await;
}

/// How the receiving half ends.
enum End {
    Closed,
    /// The client is told why.
    Goodbye(String),
}

struct Reader {
    client: Rc<Client>,
    inlet: Inlet,
    decoder: FrameDecoder,
    watch: Rc<Watch>,
    age: Age,
}

impl Reader {
    async fn run(&mut self) -> End {
        match self.converse().await {
            Ok(()) => End::Closed,
            Err(end) => end,
        }
    }

    async fn converse(&mut self) -> Result<(), End> {
        self.watch.set_deadline(clock::now() + HELLO_TIMEOUT);
        let Some(frame) = self.next().await? else { return Ok(()) };
        let now = clock::now();
        match wire::decode_client(&frame, now) {
            Ok((id, ClientMessage::Hello(hello))) => {
                self.age = Age::new(hello.clock, now);
                self.welcome(id, &hello)?;
            }
            Ok(_) => return Err(End::Goodbye("a connection starts with HELLO".into())),
            Err(error) => return Err(End::Goodbye(error.to_string())),
        }
        self.decoder.set_limit(REQUEST_FRAME_BYTES_MAX);
        self.whole();
        loop {
            self.client.room().await;
            let Some(frame) = self.next().await? else { return Ok(()) };
            self.whole();
            self.take(&frame)?;
        }
    }

    /// A frame has come, and nothing of the next one is looked at yet.
    fn whole(&self) {
        self.watch.hold_incoming(self.decoder.buffered());
        self.watch.relax();
        self.client.arriving.set(false);
        self.client.rest();
    }

    fn welcome(&self, id: u64, hello: &Hello) -> Result<(), End> {
        if hello.revision == 0 {
            return Err(End::Goodbye("protocol revisions begin with 1".into()));
        }
        let world = &self.client.world;
        let Some(handle) = world.handle.get() else {
            return Err(End::Goodbye("the node is starting".into()));
        };
        self.client.revision.set(hello.revision.min(CLIENT_REVISION));
        let welcome = Welcome {
            revision: self.client.revision.get(),
            features: hello.features & FEATURES,
            address: world.address,
            value_bytes_max: handle.value_bytes_max() as u32,
            frame_bytes_max: FRAME_BYTES_MAX as u32,
            ring_digest: self.client.ring_digest(),
        };
        self.client.say(id, &ServerMessage::Welcome(welcome));
        Ok(())
    }

    fn take(&mut self, frame: &Frame) -> Result<(), End> {
        let sent = match frame.header().clock {
            Some(_) => self.age.sent(frame, clock::now()),
            None => clock::now() - self.inlet.waited(),
        };
        match wire::decode_client(frame, sent) {
            Ok((id, ClientMessage::Request(_))) if self.client.world.draining.get() => {
                self.refuse(id, Failure::new(ErrorCode::NotReady, Outcome::NotApplied, "the node is stopping"));
            }
            Ok((id, ClientMessage::Request(request))) => self.ask(id, request),
            Ok((id, ClientMessage::Ring)) => self.tell_ring(id),
            Ok((_, ClientMessage::Hello(_))) => return Err(End::Goodbye("a second HELLO".into())),
            Err(error) => match error.refusal() {
                Some(failure) => self.refuse(frame.exchange(), failure),
                None => return Err(End::Goodbye(error.to_string())),
            },
        }
        Ok(())
    }

    fn ask(&self, id: u64, request: Request) {
        let world = &self.client.world;
        let limit = world.handle.get().map_or(0, |h| h.value_bytes_max());
        if request.operation.bytes() > limit {
            let detail = format!("a value has at most {limit} bytes, this one has {}", request.operation.bytes());
            return self.refuse(id, Failure::new(ErrorCode::TooLarge, Outcome::NotApplied, detail));
        }
        self.client.in_flight.set(self.client.in_flight.get() + 1);
        self.watch.relax();
        let timed = Timed::new(Front::Client, &request.operation);
        let token = world.replies.expect(self.client.clone(), id, Some(timed));
        world.inbox.push(Arrival::Request { client: token, request });
    }

    fn refuse(&self, id: u64, failure: Failure) {
        count(&self.client.world.traffic, |t| t.client_requests += 1);
        let ring_digest = self.client.ring_digest();
        self.client.say(id, &ServerMessage::Response { response: Err(failure), ring_digest });
    }

    fn tell_ring(&self, id: u64) {
        let Some(handle) = self.client.world.handle.get() else { return };
        let members = handle.members().into_iter().map(|(member, _, _)| member).collect();
        self.client.say(id, &ServerMessage::Ring { members, digest: handle.ring().digest() });
    }

    /// The next frame; `None` when the client has closed between two.
    async fn next(&mut self) -> Result<Option<Frame>, End> {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => return Ok(Some(frame)),
                // What has begun to arrive has its own limit.
                Ok(None) if !self.decoder.is_clear() && !self.client.arriving.replace(true) => self.watch.progressed(0),
                Ok(None) => {}
                Err(error) => return Err(End::Goodbye(error.to_string())),
            }
            let filled = poll_fn(|cx| {
                if self.watch.stopping() {
                    return Poll::Ready(None);
                }
                self.inlet.poll_fill(cx, &mut self.decoder).map(Some)
            });
            match filled.await {
                None => return Err(End::Goodbye("the node is stopping".into())),
                Some(Ok(bytes)) => {
                    self.client.arriving.set(true);
                    self.watch.progressed(bytes);
                }
                Some(Err(Ended::Closed)) if self.decoder.is_clear() => return Ok(None),
                Some(Err(Ended::Closed)) => return Err(End::Goodbye("closed in the middle of a frame".into())),
                // Nobody has asked for anything for long, or the place is needed.
                Some(Err(Ended::Expired)) if !self.client.arriving.get() => return Ok(None),
                Some(Err(Ended::Expired)) => return Err(End::Goodbye("the frame did not arrive whole in time".into())),
                Some(Err(Ended::Broken(error))) => return Err(End::Goodbye(error.to_string())),
            }
        }
    }
}
