//! One TCP connection of the client protocol.

use super::Clock;
use crate::{
    client::{ClientError, Event, Session, SessionError},
    limits::RECEIVE_BUFFER_BYTES,
    protocol::message::{Request, Welcome},
    types::{Failure, Instant, Member, Outcome},
    wire::{Outbox, Pieces, WireError},
};
use bytes::{Buf, Bytes};
use std::{
    collections::VecDeque,
    io::{ErrorKind, IoSlice, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// Pieces of one vectored send.
const PIECES_PER_SEND: usize = 64;
/// While the server takes nothing, a wait for answers looks so often whether it takes more.
const UNSENT_PAUSE: Duration = Duration::from_millis(1);

/// One connection: many requests in flight, answers in any order. Nothing is tried again.
///
/// [`Connection::send`] only queues. Bytes move in [`Connection::flush`], [`Connection::poll`] and
/// [`Connection::recv`]. After an error the connection is of no use.
pub struct Connection {
    stream: TcpStream,
    session: Session,
    clock: Clock,
    /// Being sent.
    unsent: VecDeque<Bytes>,
    waiting: Outbox,
    received: Box<[u8]>,
    blocking: bool,
    read_timeout: Duration,
}
impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("peer", &self.stream.peer_addr().ok()).finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects and exchanges HELLOs, at most for so long.
    pub fn connect(address: SocketAddr, timeout: Duration) -> Result<Connection, ClientError> {
        Connection::with_clock(address, timeout, Clock::start())
    }
    pub(super) fn with_clock(address: SocketAddr, timeout: Duration, clock: Clock) -> Result<Connection, ClientError> {
        let until = clock.now() + timeout;
        let refused = |error: std::io::Error| unreachable(&error, Outcome::NotApplied);
        let stream = TcpStream::connect_timeout(&address, timeout.max(Duration::from_millis(1))).map_err(refused)?;
        stream.set_nodelay(true).map_err(refused)?;
        stream.set_nonblocking(true).map_err(refused)?;
        let received = vec![0; RECEIVE_BUFFER_BYTES].into_boxed_slice();
        let (session, unsent, read_timeout) = (Session::new(), VecDeque::new(), Duration::ZERO);
        let waiting = Outbox::default();
        let mut connection =
            Connection { stream, session, clock, unsent, waiting, received, blocking: false, read_timeout };
        let hello = connection.session.hello(clock.now()).map_err(protocol)?;
        connection.queue(hello);
        match connection.recv(until)? {
            Some(Event::Open) => Ok(connection),
            Some(_) => Err(protocol(SessionError::Unexpected("an answer before its HELLO"))),
            None => Err(ClientError::Timeout { outcome: Outcome::NotApplied }),
        }
    }
    /// What the server said of itself.
    pub fn welcome(&self) -> Option<&Welcome> {
        self.session.welcome()
    }
    /// This connection's clock: deadlines of requests are its instants.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }
    /// Requests without an answer.
    pub fn in_flight(&self) -> usize {
        self.session.in_flight()
    }
    /// The socket, to wait for it by other means. It is non-blocking between [`Connection::poll`]s.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Queues a request; its answer comes with this number. A request longer than the server takes is refused here,
    /// and the connection stays usable.
    pub fn send(&mut self, request: &Request) -> Result<u64, ClientError> {
        let (id, pieces) = self.session.request(request, self.clock.now()).map_err(unsendable)?;
        self.queue(pieces);
        Ok(id)
    }
    /// Queues a request for the member list.
    pub fn send_ring(&mut self, deadline: Instant) -> Result<u64, ClientError> {
        let (id, pieces) = self.session.ring(deadline, self.clock.now()).map_err(unsendable)?;
        self.queue(pieces);
        Ok(id)
    }
    fn queue(&mut self, pieces: Pieces) {
        self.waiting.push(pieces);
    }
    /// Gives a request up; its answer will be dropped.
    pub fn forget(&mut self, id: u64) {
        self.session.forget(id);
    }

    /// Sends what the socket takes without waiting. Whether everything is sent.
    pub fn flush(&mut self) -> Result<bool, ClientError> {
        if self.all_sent() {
            return Ok(true);
        }
        self.set_blocking(false)?;
        self.write()
    }
    /// What has arrived, if anything, without waiting. Sends what is queued first.
    pub fn poll(&mut self) -> Result<Option<Event>, ClientError> {
        self.flush()?;
        if let Some(event) = self.next_event()? {
            return Ok(Some(event));
        }
        self.set_blocking(false)?;
        while self.read()? {
            if let Some(event) = self.next_event()? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }
    /// Waits for what arrives next, until `until` ([`Connection::now`]'s clock) at the latest.
    pub fn recv(&mut self, until: Instant) -> Result<Option<Event>, ClientError> {
        loop {
            if let Some(event) = self.poll()? {
                return Ok(Some(event));
            }
            let now = self.clock.now();
            let until = self.session.next_deadline().map_or(until, |d| d.min(until));
            if now >= until {
                return self.next_event();
            }
            let pause = if self.all_sent() { until.since(now) } else { UNSENT_PAUSE.min(until.since(now)) };
            self.set_blocking(true)?;
            self.set_read_timeout(pause)?;
            self.read()?;
        }
    }
    /// The member list, with the digest that the server gives to it. Answers to other requests are dropped.
    pub fn ring(&mut self, timeout: Duration) -> Result<(Vec<Member>, u64), ClientError> {
        let until = self.now() + timeout;
        let asked = self.send_ring(until)?;
        loop {
            match self.recv(until)? {
                Some(Event::Ring { id, members, digest }) if id == asked => return Ok((members, digest)),
                Some(_) if self.now() < until => {}
                Some(_) | None => return Err(ClientError::Timeout { outcome: Outcome::NotApplied }),
            }
        }
    }

    fn next_event(&mut self) -> Result<Option<Event>, ClientError> {
        self.session.next_event(self.clock.now()).map_err(protocol)
    }
    fn set_blocking(&mut self, blocking: bool) -> Result<(), ClientError> {
        if self.blocking != blocking {
            self.stream.set_nonblocking(!blocking).map_err(|e| unreachable(&e, Outcome::Unknown))?;
            self.blocking = blocking;
        }
        Ok(())
    }
    fn set_read_timeout(&mut self, timeout: Duration) -> Result<(), ClientError> {
        // A timeout of zero would mean none.
        let timeout = timeout.max(Duration::from_micros(1));
        if self.read_timeout != timeout {
            self.stream.set_read_timeout(Some(timeout)).map_err(|e| unreachable(&e, Outcome::Unknown))?;
            self.read_timeout = timeout;
        }
        Ok(())
    }
    fn all_sent(&self) -> bool {
        self.unsent.is_empty() && self.waiting.is_empty()
    }
    /// Writes until all is sent or the socket takes no more.
    fn write(&mut self) -> Result<bool, ClientError> {
        while !self.all_sent() {
            if self.unsent.is_empty() {
                self.waiting.take(&mut self.unsent);
            }
            let mut slices = [IoSlice::new(&[]); PIECES_PER_SEND];
            let count = self.unsent.len().min(PIECES_PER_SEND);
            slices.iter_mut().zip(&self.unsent).for_each(|(slice, piece)| *slice = IoSlice::new(piece));
            match self.stream.write_vectored(&slices[..count]) {
                Ok(0) => return Err(broken("the server takes nothing any more")),
                Ok(written) => drop_sent(&mut self.unsent, written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.closed(&error)),
            }
        }
        Ok(true)
    }
    /// The server may have said why before it closed.
    fn closed(&mut self, error: &std::io::Error) -> ClientError {
        if self.set_blocking(false).is_ok()
            && matches!(self.read(), Ok(true))
            && let Err(error) = self.session.next_event(Instant::ZERO)
        {
            return ClientError::Protocol { error, outcome: Outcome::Unknown };
        }
        unreachable(error, Outcome::Unknown)
    }
    /// Reads once. Whether anything came.
    fn read(&mut self) -> Result<bool, ClientError> {
        match self.stream.read(&mut self.received) {
            Ok(0) => Err(broken("the server closed the connection")),
            Ok(count) => {
                self.session.feed(&self.received[..count]);
                Ok(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(unreachable(&error, Outcome::Unknown)),
        }
    }
}

fn drop_sent(unsent: &mut VecDeque<Bytes>, mut sent: usize) {
    while let Some(front) = unsent.front_mut() {
        if front.len() > sent {
            front.advance(sent);
            return;
        }
        sent -= front.len();
        unsent.pop_front();
    }
}

fn unreachable(error: &std::io::Error, outcome: Outcome) -> ClientError {
    ClientError::Unreachable { detail: error.to_string(), outcome }
}
fn broken(detail: &str) -> ClientError {
    ClientError::Unreachable { detail: detail.to_owned(), outcome: Outcome::Unknown }
}
fn protocol(error: SessionError) -> ClientError {
    ClientError::Protocol { error, outcome: Outcome::Unknown }
}
/// The request cannot be said in a frame: the caller's fault, and nothing was sent.
fn unsendable(error: WireError) -> ClientError {
    use crate::types::ErrorCode::{BadRequest, TooLarge};
    let code = if matches!(error, WireError::Unsendable(_)) { TooLarge } else { BadRequest };
    ClientError::Failure(Failure::new(code, Outcome::NotApplied, error.to_string()))
}
