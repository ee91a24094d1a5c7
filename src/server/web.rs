//! HTTP over the core's own sockets, one port that all cores share.
//!
//! What a request means and how an answer looks is `http/`; this module moves the bytes. A connection is one task with
//! two halves, as in the client protocol: one takes request after request, the other sends what has been answered, so
//! an answer waits for nothing that follows it. Requests are served one at a time and answered in order, also those
//! before one that cannot be read; after that one the connection ends with an answer too.
//!
//! Whatever is bound to fail is answered before its body is read. Time limits: a head, and a body, must arrive with
//! real progress ([`Watch::progressed`]), else 408.

use super::{
    clock,
    latency::{Front, Timed},
    mesh::Parcel,
    report::{self, Reports},
    ring::Pieces,
    socket::{Ended, Inlet, Listener, Socket},
    watch::Watch,
    world::{Asker, ServerWorld, count},
};
use crate::{
    driver::{
        core::Handle,
        world::{Arrival, ClientToken, World},
    },
    engine::disk::Disk,
    http::{
        self, BodyReader, CONTINUE, Head, HeadReader, HttpLimits, KeyCount, KeyRequest, Part, Persistence, Problem,
        Reply, Routed, TableView, TablesView, Verb, views,
    },
    limits::{
        CONNECTIONS_RESERVED, HELLO_TIMEOUT, HTTP_IDLE_MAX, KEYS_COUNTED_WITHIN, KIB, MIB, RECEIVE_BUFFER_BYTES,
        STALLED_TIMEOUT,
    },
    protocol::message::Response,
    types::{ShardId, TableChange, TableChangeKind, TableName},
};
use bytes::{Bytes, BytesMut};
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

/// Bytes of answers that may wait for a client before its next request is taken.
const OUTGOING_BYTES: usize = 256 * KIB;
/// Bytes of a refused body that are read and thrown away, so that its sender gets to read the answer.
const DISCARD_BYTES: usize = 16 * MIB;
/// Bytes of a table's settings.
const TABLE_BODY_BYTES_MAX: usize = 4 * KIB;
/// How long the other side may be silent after our last words before it has closed too.
const LINGER: Duration = Duration::from_secs(2);

/// What those are told who come late.
const STOPPING: &str = "the node is stopping; ask another one";

/// What every connection needs.
pub struct Web {
    pub world: Rc<ServerWorld>,
    pub limits: HttpLimits,
    pub reports: Rc<Reports>,
    pub connections_max: usize,
    /// The node listens on this machine only.
    pub loopback: bool,
    pub random: RefCell<fastrand::Rng>,
    pub date: Date,
}

/// The time as answers carry it, made anew once a second.
#[derive(Default)]
pub struct Date(RefCell<(u64, String)>);
impl Date {
    fn with<T>(&self, use_it: impl FnOnce(&str) -> T) -> T {
        let second = clock::wall() / 1_000_000_000;
        let mut date = self.0.borrow_mut();
        if date.0 != second || date.1.is_empty() {
            *date = (second, http::date(second));
        }
        use_it(&date.1)
    }
}

/// What a connection that has been accepted may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Usual,
    /// All places are taken by connections with something in hand: it may ask whether the node lives.
    Reserved,
    Nowhere,
}

impl Web {
    fn place(&self) -> Place {
        let open = self.world.traffic.get().connections as usize;
        if self.world.watches.has_place(open, self.connections_max) {
            Place::Usual
        } else if open < self.connections_max + CONNECTIONS_RESERVED {
            Place::Reserved
        } else {
            Place::Nowhere
        }
    }
}

/// Serves the shared HTTP port. An error means that the port is lost.
pub async fn serve(web: Rc<Web>, listener: Listener) -> io::Result<()> {
    loop {
        let socket = listener.accept().await?;
        let (web, place) = (web.clone(), web.place());
        count(&web.world.traffic, |t| t.connections += 1);
        let ring = web.world.ring.clone();
        ring.spawn(async move {
            connection(&web, socket, place).await;
            web.world.part();
        });
    }
}

async fn connection(web: &Rc<Web>, socket: Socket, place: Place) {
    let watch = web.world.watches.start(&socket);
    let answers = Rc::new(Answers::new(watch.clone()));
    let mut requests = Requests {
        web: web.clone(),
        answers: answers.clone(),
        inlet: Inlet::new(socket.clone(), watch.clone()),
        watch,
        incoming: BytesMut::new(),
        heads: HeadReader::default(),
        place,
        spoke: false,
        served: false,
    };
    let reading = pin!(async {
        let end = requests.run().await;
        requests.answers.finish();
        end
    });
    let sending = pin!(answers.send(&socket));
    match select(reading, sending).await {
        Either::Left((end, sending)) => {
            // What has been answered goes out before the connection does.
            let sent = sending.await;
            socket.finish_sending();
            match (sent, end) {
                (Ok(()), End::Told) => linger(web, &socket).await,
                (Ok(()), End::Quiet) => {}
                (Err(error), _) => tracing::debug!(%error, "an HTTP answer was not taken"),
            }
        }
        Either::Right((result, _)) => {
            if let Err(error) = result {
                tracing::debug!(%error, "an HTTP answer was not taken");
            }
        }
    }
}

/// Reads on until the other side has closed too: closing with unread bytes would tear our last words away.
async fn linger(web: &Web, socket: &Socket) {
    let (mut buffer, mut total) = (BytesMut::new(), 0);
    let end = clock::now() + STALLED_TIMEOUT;
    while total < DISCARD_BYTES && clock::now() < end {
        buffer.clear();
        buffer.reserve(16 * KIB);
        let receiving = socket.receive(buffer);
        match select(receiving, web.world.ring.pause(LINGER)).await {
            Either::Left(((back, Ok(received)), _)) if received > 0 => {
                buffer = back;
                total += received;
            }
            Either::Left(_) | Either::Right(_) => return,
        }
    }
}

// ---- answers ---------------------------------------------------------------------------------------------------

/// The sending half of a connection.
struct Answers {
    watch: Rc<Watch>,
    pieces: RefCell<Pieces>,
    /// Bytes of these, and of those on their way.
    bytes: Cell<usize>,
    /// Nothing more will be answered.
    finishing: Cell<bool>,
    sender: RefCell<Option<Waker>>,
    /// The receiving half, while it waits for room.
    receiver: RefCell<Option<Waker>>,
}

fn wake(waker: &RefCell<Option<Waker>>) {
    if let Some(waker) = waker.borrow_mut().take() {
        waker.wake();
    }
}

impl Answers {
    fn new(watch: Rc<Watch>) -> Answers {
        Answers {
            watch,
            pieces: RefCell::default(),
            bytes: Cell::new(0),
            finishing: Cell::new(false),
            sender: RefCell::default(),
            receiver: RefCell::default(),
        }
    }
    fn push(&self, pieces: impl IntoIterator<Item = Bytes>) {
        let mut bytes = self.bytes.get();
        self.pieces.borrow_mut().extend(pieces.into_iter().inspect(|piece| bytes += piece.len()));
        self.bytes.set(bytes);
        self.watch.hold_outgoing(bytes);
        wake(&self.sender);
    }
    fn finish(&self) {
        self.finishing.set(true);
        wake(&self.sender);
    }
    /// Ready when another answer may be made.
    fn room(&self) -> impl Future<Output = ()> + '_ {
        poll_fn(|cx| {
            if self.bytes.get() <= OUTGOING_BYTES {
                return Poll::Ready(());
            }
            *self.receiver.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
    }
    /// Sends what gathers, until the connection is finishing and all is out.
    async fn send(&self, socket: &Socket) -> io::Result<()> {
        loop {
            let more = poll_fn(|cx| {
                if !self.pieces.borrow().is_empty() {
                    return Poll::Ready(true);
                }
                if self.finishing.get() {
                    return Poll::Ready(false);
                }
                *self.sender.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            });
            if !more.await {
                return Ok(());
            }
            let (pieces, under_way) = (self.pieces.take(), self.bytes.get());
            socket.send_watched(pieces, &self.watch).await.1?;
            self.bytes.set(self.bytes.get() - under_way);
            self.watch.hold_outgoing(self.bytes.get());
            wake(&self.receiver);
        }
    }
}

// ---- requests --------------------------------------------------------------------------------------------------

/// How a connection ends.
enum End {
    /// The connection ends with an answer that says so: the client may still be speaking.
    Told,
    /// Nothing is in hand and nothing is to be said.
    Quiet,
}

/// The receiving half of a connection.
struct Requests {
    web: Rc<Web>,
    answers: Rc<Answers>,
    watch: Rc<Watch>,
    inlet: Inlet,
    incoming: BytesMut,
    heads: HeadReader,
    place: Place,
    /// Anything has come.
    spoke: bool,
    /// A request has been answered.
    served: bool,
}

impl Requests {
    async fn run(&mut self) -> End {
        if self.place == Place::Nowhere {
            self.tell(crowded(), Persistence::Closed, false);
            return End::Told;
        }
        loop {
            self.answers.room().await;
            match self.next_head().await {
                Ok(Some(head)) => {
                    let begun = Begun::new(&self.web.world);
                    let goes_on = self.serve(head).await;
                    drop(begun);
                    if !goes_on {
                        return End::Told;
                    }
                }
                Ok(None) => return End::Quiet,
                Err(problem) => {
                    self.tell(problem.reply(), Persistence::Closed, false);
                    return End::Told;
                }
            }
        }
    }

    /// The head of the next request; `None` when none comes.
    async fn next_head(&mut self) -> Result<Option<Head>, Problem> {
        self.watch.hold_incoming(self.incoming.len());
        self.watch.rest(match (self.place, self.served) {
            (Place::Usual, true) => HTTP_IDLE_MAX,
            (Place::Usual, false) => STALLED_TIMEOUT,
            (Place::Reserved | Place::Nowhere, _) => HELLO_TIMEOUT,
        });
        let mut fresh = 0;
        loop {
            if let Some(head) = self.heads.take(&mut self.incoming)? {
                self.watch.hold_incoming(self.incoming.len());
                self.watch.relax();
                return Ok(Some(head));
            }
            let begun = !self.incoming.is_empty();
            if begun {
                self.watch.progressed(fresh);
            }
            match self.fill(!begun).await {
                Some(Ok(bytes)) => {
                    self.spoke = true;
                    fresh = bytes;
                }
                // The node is stopping and nothing has begun, or the connection is broken.
                None | Some(Err(Ended::Broken(_))) => return Ok(None),
                Some(Err(Ended::Expired)) if begun || (self.spoke && !self.served) => {
                    return Err(Problem::slow_client());
                }
                Some(Err(Ended::Closed)) if begun => {
                    return Err(Problem::bad_request("the connection was closed in the middle of a request's head"));
                }
                Some(Err(Ended::Expired | Ended::Closed)) => return Ok(None),
            }
        }
    }

    /// Waits for bytes; `None` when the node is stopping, if that ends the wait.
    async fn fill(&mut self, until_stop: bool) -> Option<Result<usize, Ended>> {
        poll_fn(|cx| {
            if until_stop && self.watch.stopping() {
                return Poll::Ready(None);
            }
            self.inlet.poll_fill(cx, &mut self.incoming).map(Some)
        })
        .await
    }

    /// Answers one request; `false` when the connection ends with that.
    async fn serve(&mut self, head: Head) -> bool {
        let mut body = BodyReader::new(head.framing);
        let routed = match http::admit(&head, self.web.loopback) {
            Ok(routed) => routed,
            Err(problem) => return self.refuse(&problem, &head, body).await,
        };
        let asks = matches!(routed, Routed::Key(_) | Routed::Table { .. } | Routed::RepairNow { .. });
        if self.web.world.draining.get() && asks {
            return self.refuse(&Problem::not_ready(STOPPING), &head, body).await;
        }
        if self.place != Place::Usual && !matches!(routed, Routed::Healthz | Routed::Readyz) {
            self.tell(crowded(), Persistence::Closed, head.method() == "HEAD");
            return false;
        }
        let bound = match &routed {
            Routed::Key(asked) => asked.body_bytes_max(&self.web.limits),
            Routed::Table { .. } => TABLE_BODY_BYTES_MAX,
            _ => 0,
        };
        if body.left() > bound as u64 {
            return self.refuse(&self.too_large(&routed), &head, body).await;
        }
        if head.waits_to_send() && self.incoming.is_empty() {
            self.answers.push([Bytes::from_static(CONTINUE)]);
        }
        let bytes = match self.read_body(&mut body, bound).await {
            Ok(bytes) => bytes,
            Err(Unread::TooLarge) => return self.refuse(&self.too_large(&routed), &head, body).await,
            Err(Unread::Broken(problem)) => {
                self.tell(problem.reply(), Persistence::Closed, false);
                return false;
            }
        };
        self.watch.relax();
        self.watch.hold_incoming(self.incoming.len());
        let waited = self.inlet.waited();
        let reply = match routed {
            Routed::Key(asked) => ask(&self.web, *asked, bytes, waited).await,
            Routed::Table { name, verb, create } => table(&self.web, name, (verb, create), &bytes, waited).await,
            other => look(&self.web, other).await,
        };
        self.end_with(reply, &head, self.place != Place::Usual)
    }

    fn too_large(&self, routed: &Routed) -> Problem {
        match routed {
            Routed::Table { .. } => Problem::bad_request("a table's settings are a few words, this body is longer"),
            _ => http::too_large(&self.web.limits),
        }
    }

    /// Says why nothing comes of a request, then reads on to where the next one begins; `false` when that is too far,
    /// or not known.
    async fn refuse(&mut self, problem: &Problem, head: &Head, body: BodyReader) -> bool {
        // Who waits to be told to go on may send the body now, or not.
        let lost = head.waits_to_send() || body.left() > DISCARD_BYTES as u64;
        self.end_with(problem.reply(), head, lost) && self.discard(body).await
    }

    /// Answers; `false` when the connection ends with that.
    fn end_with(&mut self, reply: Reply, head: &Head, last: bool) -> bool {
        let persistence = match (last || head.close || self.web.world.draining.get(), head.old) {
            (true, _) => Persistence::Closed,
            (false, true) => Persistence::KeptAlive,
            (false, false) => Persistence::Kept,
        };
        self.tell(reply, persistence, head.method() == "HEAD");
        persistence != Persistence::Closed
    }

    fn tell(&mut self, reply: Reply, persistence: Persistence, without_body: bool) {
        count(&self.web.world.traffic, |t| t.http_requests += 1);
        self.served = true;
        let head = self.web.date.with(|date| http::head_text(&reply, persistence, date));
        let body = reply.body.into_iter().filter(|_| !without_body);
        self.answers.push(std::iter::once(Bytes::from(head)).chain(body));
    }

    /// The whole body, which has `bound` bytes at most.
    async fn read_body(&mut self, body: &mut BodyReader, bound: usize) -> Result<Bytes, Unread> {
        let (mut first, mut gathered) = (Bytes::new(), BytesMut::new());
        loop {
            // A body of known length comes in one piece, and is not moved again.
            let left = body.left() as usize;
            if body.left() <= bound as u64 && self.incoming.len() < left {
                self.incoming.reserve(left - self.incoming.len() + RECEIVE_BUFFER_BYTES / 4);
                self.more(first.len() + gathered.len()).await.map_err(Unread::Broken)?;
                continue;
            }
            match body.take(&mut self.incoming).map_err(Unread::Broken)? {
                Part::End => return Ok(if gathered.is_empty() { first } else { gathered.freeze() }),
                Part::Wanting => self.more(first.len() + gathered.len()).await.map_err(Unread::Broken)?,
                Part::Bytes(part) if first.len() + gathered.len() + part.len() > bound => {
                    return Err(Unread::TooLarge);
                }
                Part::Bytes(part) if first.is_empty() && gathered.is_empty() => first = part,
                Part::Bytes(part) => {
                    if gathered.is_empty() {
                        gathered.extend_from_slice(&std::mem::take(&mut first));
                    }
                    gathered.extend_from_slice(&part);
                }
            }
        }
    }

    /// Waits for more of a body; `beside`: bytes of it that have been taken already.
    async fn more(&mut self, beside: usize) -> Result<(), Problem> {
        self.watch.progressed(0);
        match self.fill(false).await {
            Some(Ok(bytes)) => {
                self.watch.progressed(bytes);
                self.watch.hold_incoming(self.incoming.len() + beside);
                Ok(())
            }
            Some(Err(Ended::Expired)) => Err(Problem::slow_client()),
            Some(Err(Ended::Closed | Ended::Broken(_))) | None => {
                Err(Problem::bad_request("the connection was closed in the middle of the body"))
            }
        }
    }

    /// Reads a body that nobody wants; `false` when it is too long, too slow or broken.
    async fn discard(&mut self, mut body: BodyReader) -> bool {
        let mut total = 0;
        while total <= DISCARD_BYTES {
            match body.take(&mut self.incoming) {
                Ok(Part::End) => return true,
                Ok(Part::Bytes(part)) => total += part.len(),
                Ok(Part::Wanting) if self.more(0).await.is_ok() => {}
                Ok(Part::Wanting) | Err(_) => return false,
            }
        }
        false
    }
}

/// Counts a request from the end of its head to its answer, whatever ends it.
struct Begun(Rc<ServerWorld>);
impl Begun {
    fn new(world: &Rc<ServerWorld>) -> Begun {
        world.begun.set(world.begun.get() + 1);
        Begun(world.clone())
    }
}
impl Drop for Begun {
    fn drop(&mut self) {
        self.0.begun.set(self.0.begun.get() - 1);
    }
}

enum Unread {
    TooLarge,
    /// Where the next request begins is not known.
    Broken(Problem),
}

fn crowded() -> Reply {
    Problem::overloaded("this core serves too many connections").reply()
}

// ---- what is asked ---------------------------------------------------------------------------------------------

/// Hands a request about a key to the shard.
/// `waited`: how long it may have lain in the socket while the process stood still; so much less is left of its time.
async fn ask(web: &Rc<Web>, asked: KeyRequest, body: Bytes, waited: Duration) -> Reply {
    let form = asked.form();
    let random = web.random.borrow_mut().u64(1..);
    let request = match http::request(asked, body, clock::now() - waited, random, &web.limits) {
        Ok(request) => request,
        Err(problem) => return problem.reply(),
    };
    let timed = Timed::new(Front::Http, &request.operation);
    http::key_reply(form, put_to_shard(web, Some(timed), |client| Arrival::Request { client, request }).await)
}

/// Hands something to the shard and waits for its answer.
async fn put_to_shard(web: &Rc<Web>, timed: Option<Timed>, arrival: impl FnOnce(ClientToken) -> Arrival) -> Response {
    let waiting = Rc::new(Waiting::default());
    let token = web.world.replies.expect(waiting.clone(), 0, timed);
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
/// `waited`: as for [`ask`].
async fn table(web: &Rc<Web>, name: TableName, (verb, create): (Verb, bool), body: &[u8], waited: Duration) -> Reply {
    let Some(handle) = web.world.handle.get() else {
        return Problem::not_ready("the node is starting").reply();
    };
    let shown = |takes_over: Option<KeyCount>| {
        let tables = handle.tables();
        match tables.get(name.as_str()) {
            Some(settings) => {
                let view = TableView::new(&name, &settings, tables.entry(name.as_str()));
                http::json_reply(&TableView { takes_over, ..view })
            }
            None => http::no_such_table(&name).reply(),
        }
    };
    let kind = match verb {
        Verb::Get => return shown(None),
        Verb::Put => match http::table_wish(body) {
            Ok(wish) if create => TableChangeKind::Make(wish),
            Ok(wish) => TableChangeKind::Set(wish),
            Err(problem) => return problem.reply(),
        },
        Verb::Delete if handle.tables().get(name.as_str()).is_none() => return http::no_such_table(&name).reply(),
        Verb::Delete => TableChangeKind::Drop,
    };
    // Counted before it: what a change takes over, or takes away, is not to be told apart afterwards.
    let counts = match verb {
        Verb::Get => false,
        Verb::Put => handle.tables().get(name.as_str()).is_none(),
        Verb::Delete => true,
    };
    let count = if counts { Some(count_keys(web, handle, &name).await) } else { None };
    let change = TableChange { name: name.clone(), kind };
    let deadline = clock::now() - waited + web.limits.request_timeout;
    match put_to_shard(web, None, |client| Arrival::TableChange { client, change, deadline }).await {
        Err(failure) => Problem::from(failure).reply(),
        Ok(_) if verb == Verb::Delete => http::dropped_reply(&name, &count.unwrap_or_default()),
        Ok(_) => shown(count.filter(|count| count.default_keys > 0)),
    }
}
/// What this core holds of a name's keys. Nobody is refused, or waits for long, because it cannot be counted.
async fn count_keys<W: World, D: Disk>(web: &Rc<Web>, handle: &Handle<W, D>, name: &TableName) -> KeyCount {
    let counting = pin!(handle.count_keys(name));
    match select(counting, web.world.ring.pause(KEYS_COUNTED_WITHIN)).await {
        Either::Left((Ok(found), _)) => {
            KeyCount { table_keys: found.of_table, default_keys: found.of_default, all_counted: found.all }
        }
        Either::Left((Err(_), _)) | Either::Right(_) => KeyCount::default(),
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
    let cluster =
        || views::ClusterView::new(&handle.members(), digest).of_cluster(handle.cluster(), &handle.strangers());
    match routed {
        Routed::Cluster => http::json_reply(&cluster()),
        Routed::Tables => {
            let known = handle.tables();
            let list = known.list();
            let view = |(name, settings)| TableView::new(name, settings, known.entry(TableName::as_str(name)));
            let tables = list.iter().map(view).collect();
            http::json_reply(&TablesView { tables })
        }
        Routed::Ring { key: None } => {
            let n = handle.tables().of(b"").n;
            http::json_reply(&views::RingView::new(&handle.members(), n, digest))
        }
        Routed::Ring { key: Some(key) } => http::json_reply(&report::key_ring(handle, &key)),
        Routed::Node => http::json_reply(&web.reports.node(&web.world).await),
        Routed::Repair => http::json_reply(&views::RepairView::new(&web.reports.node(&web.world).await)),
        Routed::RepairNow { key } => {
            let others: Vec<ShardId> = web.world.mesh.others().collect();
            others.into_iter().for_each(|shard| web.world.mesh.send(shard, Parcel::Repair { key: key.clone() }));
            web.world.inbox.push(Arrival::Repair { key });
            http::json_reply(&views::RepairView::new(&web.reports.node(&web.world).await))
        }
        Routed::Metrics { by_shard } => {
            let node = web.reports.node(&web.world).await;
            http::metrics_reply(&views::Metrics { node, cluster: cluster(), by_shard })
        }
        Routed::Readyz if web.world.draining.get() => http::ready_reply(Err(STOPPING)),
        Routed::Readyz if handle.ready() => http::ready_reply(Ok(())),
        Routed::Readyz => http::ready_reply(Err("the node has not joined its cluster yet")),
        Routed::Healthz | Routed::OpenApi | Routed::Key(_) | Routed::Table { .. } => http::health_reply(),
    }
}
