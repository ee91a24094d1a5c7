//! HTTP: hyper over the core's own sockets, one port that all cores share.
//!
//! hyper knows HTTP/1.1; what a request means and how an answer looks is `http/`; this module is the transport between
//! them. A body is read up to its bound before anything is done with it. Time limits: a head, and a body, must arrive
//! with real progress ([`Watch::progressed`]), else 408.

use super::{
    clock,
    report::{self, Reports},
    socket::{Ended, Gather, Inlet, Listener, Socket, Watch},
    world::{Asker, ServerWorld, count},
};
use crate::{
    driver::world::{Arrival, ClientToken},
    http::{self, HttpLimits, KeyRequest, Problem, Reply, Routed, TableView, TablesView, Verb, views},
    limits::{HTTP_HEAD_BYTES_MAX, KIB, MIB, STALLED_TIMEOUT},
    protocol::message::Response,
    types::{TableChange, TableChangeKind, TableName},
};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::future::{LocalBoxFuture, select};
use http_body_util::BodyExt;
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    header::{CONNECTION, HeaderName, HeaderValue},
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
    service::service_fn,
};
use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

/// Bytes that hyper may hand us before they must be on their way.
const OUTGOING_BYTES: usize = 256 * KIB;
/// Bytes of a refused body that are read and thrown away, so that its sender gets to read the answer.
const DISCARD_BYTES: usize = 16 * MIB;
/// Bytes of a table's settings.
const TABLE_BODY_BYTES_MAX: usize = 4 * KIB;
/// How long the other side may take to close after us.
const LINGER: Duration = Duration::from_secs(1);

/// What every connection needs.
pub struct Web {
    pub world: Rc<ServerWorld>,
    pub limits: HttpLimits,
    pub reports: Rc<Reports>,
    pub connections_max: usize,
    pub random: RefCell<fastrand::Rng>,
}

/// Serves the shared HTTP port. An error means that the port is lost.
pub async fn serve(web: Rc<Web>, listener: Listener) -> io::Result<()> {
    loop {
        let socket = listener.accept().await?;
        let web = web.clone();
        let crowded = web.world.traffic.get().connections >= web.connections_max as u64;
        count(&web.world.traffic, |t| t.connections += 1);
        let ring = web.world.ring.clone();
        ring.spawn(async move {
            if crowded {
                say(&socket, &Problem::overloaded("this core serves too many connections").reply()).await;
            } else {
                connection(&web, socket).await;
            }
            count(&web.world.traffic, |t| t.connections -= 1);
        });
    }
}

/// Where a connection is between two requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Nothing of the next request is here.
    Idle,
    /// Its head arrives.
    Head,
    /// Its body arrives, or its answer is made and sent.
    Service,
}

async fn connection(web: &Rc<Web>, socket: Socket) {
    if socket.break_after(STALLED_TIMEOUT).is_err() {
        return;
    }
    let watch = web.world.watches.start();
    let phase = Rc::new(Cell::new(Phase::Idle));
    let stream = Stream {
        inlet: Inlet::new(socket.clone(), watch.clone()),
        socket: socket.clone(),
        watch: watch.clone(),
        phase: phase.clone(),
        incoming: BytesMut::new(),
        outgoing: BytesMut::new(),
        sending: None,
    };
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let (web, watch, phase) = (web.clone(), watch.clone(), phase.clone());
        async move {
            phase.set(Phase::Service);
            let (reply, close) = answer(&web, &watch, request).await;
            watch.relax();
            count(&web.world.traffic, |t| t.http_requests += 1);
            Ok::<_, Infallible>(respond(reply, close || watch.stopping(), phase))
        }
    });
    let mut builder = http1::Builder::new();
    builder.half_close(true).header_read_timeout(None).max_buf_size(HTTP_HEAD_BYTES_MAX).pipeline_flush(true);
    let mut served = pin!(builder.serve_connection(stream, service));
    let mut told = false;
    let late = poll_fn(|cx| {
        watch.listen(cx);
        if watch.stopping() && !told {
            told = true;
            served.as_mut().graceful_shutdown();
        }
        if let Poll::Ready(result) = served.as_mut().poll(cx) {
            if let Err(error) = result {
                tracing::debug!(%error, "an HTTP connection has ended");
            }
            return Poll::Ready(false);
        }
        if watch.expired() && phase.get() != Phase::Service { Poll::Ready(true) } else { Poll::Pending }
    })
    .await;
    if late && phase.get() == Phase::Head {
        say(&socket, &Problem::slow_client().reply()).await;
    }
    socket.finish_sending();
    linger(web, &socket).await;
}

/// Reads on until the other side has closed too: closing with unread bytes would tear our last words away.
async fn linger(web: &Web, socket: &Socket) {
    let drain = pin!(async {
        let (mut buffer, mut total) = (BytesMut::new(), 0);
        while total < DISCARD_BYTES {
            if socket.readable().await.is_err() {
                return;
            }
            buffer.clear();
            buffer.reserve(16 * KIB);
            let (back, result) = socket.receive(buffer).await;
            buffer = back;
            match result {
                Ok(0) | Err(_) => return,
                Ok(received) => total += received,
            }
        }
    });
    select(drain, web.world.ring.pause(LINGER)).await;
}

/// An answer without hyper: to one that it does not serve.
async fn say(socket: &Socket, reply: &Reply) {
    let mut head =
        format!("HTTP/1.1 {} \r\nconnection: close\r\ncontent-length: {}\r\n", reply.status, reply.content_length());
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut pieces = vec![Bytes::from(head)];
    pieces.extend(reply.body.iter().cloned());
    if let Err(error) = socket.send_all(pieces).await.1 {
        tracing::debug!(%error, "an HTTP answer was not taken");
    }
    socket.finish_sending();
}

// ---- one request -----------------------------------------------------------------------------------------------

/// The answer, and whether the connection ends with it.
async fn answer(web: &Rc<Web>, watch: &Watch, request: hyper::Request<Incoming>) -> (Reply, bool) {
    let (head, body) = request.into_parts();
    let target = head.uri.path_and_query().map_or("/", |t| t.as_str());
    let routed = match http::route(head.method.as_str(), target, &head.headers) {
        Ok(routed) => routed,
        Err(problem) => {
            let drained = discard(watch, body).await;
            return (problem.reply(), !drained);
        }
    };
    if let Routed::Table { name, verb } = routed {
        return match read_body(watch, body, TABLE_BODY_BYTES_MAX).await {
            Ok(bytes) => (table(web, name, verb, &bytes).await, false),
            Err(Refused::TooLarge { drained }) => {
                (Problem::bad_request("a table's settings are a few words, this body is longer").reply(), !drained)
            }
            Err(Refused::Late) => (Problem::slow_client().reply(), true),
            Err(Refused::Broken(reason)) => (Problem::bad_request(reason).reply(), true),
        };
    }
    let Routed::Key(asked) = routed else {
        let drained = discard(watch, body).await;
        return (look(web, routed).await, !drained);
    };
    let bound = asked.body_bytes_max(&web.limits);
    match read_body(watch, body, bound).await {
        Ok(bytes) => (ask(web, *asked, bytes).await, false),
        Err(Refused::TooLarge { drained }) => (http::too_large(&web.limits).reply(), !drained),
        Err(Refused::Late) => (Problem::slow_client().reply(), true),
        Err(Refused::Broken(reason)) => (Problem::bad_request(reason).reply(), true),
    }
}

/// Hands a request about a key to the shard.
async fn ask(web: &Rc<Web>, asked: KeyRequest, body: Bytes) -> Reply {
    let form = asked.form();
    let random = web.random.borrow_mut().u64(1..);
    let request = match http::request(asked, body, clock::now(), random, &web.limits) {
        Ok(request) => request,
        Err(problem) => return problem.reply(),
    };
    http::key_reply(form, put_to_shard(web, |client| Arrival::Request { client, request }).await)
}

/// Hands something to the shard and waits for its answer.
async fn put_to_shard(web: &Rc<Web>, arrival: impl FnOnce(ClientToken) -> Arrival) -> Response {
    let waiting = Rc::new(Waiting::default());
    let token = web.world.replies.expect(waiting.clone(), 0);
    web.world.inbox.push(arrival(token));
    poll_fn(|cx| match waiting.response.borrow_mut().take() {
        Some(response) => Poll::Ready(response),
        None => {
            *waiting.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        }
    })
    .await
}

/// A table is looked at, made, altered or dropped.
async fn table(web: &Rc<Web>, name: TableName, verb: Verb, body: &[u8]) -> Reply {
    let Some(handle) = web.world.handle.get() else {
        return Problem::not_ready("the node is starting").reply();
    };
    let shown = || match handle.tables().get(name.as_str()) {
        Some(settings) => http::json_reply(&TableView::new(&name, &settings)),
        None => http::no_such_table(&name).reply(),
    };
    let kind = match verb {
        Verb::Get => return shown(),
        Verb::Put => match http::table_wish(body) {
            Ok(wish) => TableChangeKind::Set(wish),
            Err(problem) => return problem.reply(),
        },
        Verb::Delete if handle.tables().get(name.as_str()).is_none() => return http::no_such_table(&name).reply(),
        Verb::Delete => TableChangeKind::Drop,
    };
    let change = TableChange { name: name.clone(), kind };
    match put_to_shard(web, |client| Arrival::TableChange { client, change }).await {
        Err(failure) => Problem::from(failure).reply(),
        Ok(_) if verb == Verb::Delete => http::dropped_reply(&name),
        Ok(_) => shown(),
    }
}

#[derive(Default)]
struct Waiting {
    response: RefCell<Option<Response>>,
    waker: RefCell<Option<Waker>>,
}

impl Asker for Waiting {
    fn answered(self: Rc<Self>, _: u64, response: Response) {
        *self.response.borrow_mut() = Some(response);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// Answers about the node itself.
async fn look(web: &Rc<Web>, routed: Routed) -> Reply {
    if routed == Routed::Healthz {
        return http::health_reply();
    }
    if routed == Routed::OpenApi {
        return http::openapi_reply();
    }
    let Some(handle) = web.world.handle.get() else {
        return Problem::not_ready("the node is starting").reply();
    };
    let digest = handle.ring().digest();
    let cluster = || views::ClusterView::new(&handle.members(), digest);
    match routed {
        Routed::Cluster => http::json_reply(&cluster()),
        Routed::Tables => {
            let tables = handle.tables().list();
            let tables = tables.iter().map(|(name, settings)| TableView::new(name, settings)).collect();
            http::json_reply(&TablesView { tables })
        }
        Routed::Ring { key: None } => {
            let n = handle.tables().of(b"").n;
            http::json_reply(&views::RingView::new(&handle.members(), n, digest))
        }
        Routed::Ring { key: Some(key) } => http::json_reply(&report::key_ring(handle, &key)),
        Routed::Node => http::json_reply(&web.reports.node(&web.world).await),
        Routed::Metrics => {
            let node = web.reports.node(&web.world).await;
            http::metrics_reply(&views::Metrics { node, cluster: cluster() })
        }
        Routed::Readyz if handle.ready() => http::ready_reply(Ok(())),
        Routed::Readyz => http::ready_reply(Err("the node has not joined its cluster yet")),
        Routed::Healthz | Routed::OpenApi | Routed::Key(_) | Routed::Table { .. } => http::health_reply(),
    }
}

// ---- bodies ----------------------------------------------------------------------------------------------------

enum Refused {
    /// `drained`: all of it was read, so that the connection can go on.
    TooLarge {
        drained: bool,
    },
    Late,
    Broken(String),
}

async fn read_body(watch: &Watch, mut body: Incoming, bound: usize) -> Result<Bytes, Refused> {
    if body.size_hint().lower() > bound as u64 {
        return Err(Refused::TooLarge { drained: discard(watch, body).await });
    }
    let mut first = Bytes::new();
    let mut gathered = BytesMut::new();
    loop {
        if !body.is_end_stream() {
            watch.progressed(0);
        }
        let frame = match watch.within(body.frame()).await {
            None => return Err(Refused::Late),
            Some(None) => break,
            Some(Some(Err(error))) => return Err(Refused::Broken(format!("the body did not arrive whole: {error}"))),
            Some(Some(Ok(frame))) => frame,
        };
        let Ok(part) = frame.into_data() else { continue };
        watch.progressed(part.len());
        if first.len() + gathered.len() + part.len() > bound {
            return Err(Refused::TooLarge { drained: discard(watch, body).await });
        }
        if first.is_empty() && gathered.is_empty() {
            first = part;
            continue;
        }
        if gathered.is_empty() {
            gathered.reserve((body.size_hint().lower() as usize).min(bound) + first.len() + part.len());
            gathered.extend_from_slice(&std::mem::take(&mut first));
        }
        gathered.extend_from_slice(&part);
    }
    Ok(if gathered.is_empty() { first } else { gathered.freeze() })
}

/// Reads a body that nobody wants, so that its sender gets to read the answer; `false` when it is too long or too slow.
async fn discard(watch: &Watch, mut body: Incoming) -> bool {
    if body.size_hint().lower() > DISCARD_BYTES as u64 {
        return false;
    }
    let mut total = 0;
    loop {
        if !body.is_end_stream() {
            watch.progressed(0);
        }
        match watch.within(body.frame()).await {
            Some(None) => return true,
            Some(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                watch.progressed(bytes);
                total += bytes;
                if total > DISCARD_BYTES {
                    return false;
                }
            }
            None | Some(Some(Err(_))) => return false,
        }
    }
}

/// A reply's body, piece by piece.
struct Outgoing {
    pieces: smallvec::IntoIter<[Bytes; 3]>,
    left: u64,
    phase: Rc<Cell<Phase>>,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.pieces.next();
        self.left -= piece.as_ref().map_or(0, |p| p.len() as u64);
        Poll::Ready(piece.map(|p| Ok(Frame::data(p))))
    }
    fn is_end_stream(&self) -> bool {
        self.left == 0
    }
    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        // The answer is with hyper: what comes now belongs to the next request.
        self.phase.set(Phase::Idle);
    }
}

fn respond(reply: Reply, close: bool, phase: Rc<Cell<Phase>>) -> hyper::Response<Outgoing> {
    let left = reply.content_length() as u64;
    let mut response = hyper::Response::new(Outgoing { pieces: reply.body.into_iter(), left, phase });
    *response.status_mut() =
        hyper::StatusCode::from_u16(reply.status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in reply.headers {
        match HeaderValue::from_str(&value) {
            Ok(value) => drop(response.headers_mut().append(HeaderName::from_static(name), value)),
            Err(error) => tracing::error!(name, %error, "a header cannot be sent"),
        }
    }
    if close {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

// ---- hyper's stream --------------------------------------------------------------------------------------------

/// A socket as hyper wants it. Buffers are the ring's, so bytes are copied once in each direction.
struct Stream {
    socket: Socket,
    inlet: Inlet,
    watch: Rc<Watch>,
    phase: Rc<Cell<Phase>>,
    incoming: BytesMut,
    outgoing: BytesMut,
    sending: Option<LocalBoxFuture<'static, io::Result<()>>>,
}

impl Read for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut cursor: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        if stream.incoming.is_clear() {
            match ready!(stream.inlet.poll_fill(cx, &mut stream.incoming)) {
                Ok(bytes) if stream.phase.get() != Phase::Service => {
                    stream.phase.set(Phase::Head);
                    stream.watch.progressed(bytes);
                }
                Ok(_) => {}
                Err(Ended::Closed) => return Poll::Ready(Ok(())),
                // The connection's own loop sees it too, and says 408.
                Err(Ended::Expired) => return Poll::Pending,
                Err(Ended::Broken(error)) => return Poll::Ready(Err(error)),
            }
        }
        let bytes = stream.incoming.len().min(cursor.remaining());
        cursor.put_slice(&stream.incoming[..bytes]);
        stream.incoming.advance(bytes);
        Poll::Ready(Ok(()))
    }
}

impl Stream {
    /// Moves gathered bytes on; ready when a send is not under way.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(sending) = &mut self.sending {
            let result = ready!(sending.as_mut().poll(cx));
            self.sending = None;
            result?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        if stream.outgoing.len() >= OUTGOING_BYTES {
            ready!(Pin::new(&mut *stream).poll_flush(cx))?;
        }
        let bytes = &bytes[..bytes.len().min(OUTGOING_BYTES)];
        stream.outgoing.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        loop {
            ready!(stream.poll_send(cx))?;
            if stream.outgoing.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let (socket, bytes) = (stream.socket.clone(), stream.outgoing.split().freeze());
            stream.sending = Some(Box::pin(async move { socket.send_all(vec![bytes]).await.1 }));
        }
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        self.socket.finish_sending();
        Poll::Ready(Ok(()))
    }
}
