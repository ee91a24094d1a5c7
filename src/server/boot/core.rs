//! One core from its first task to its last.

use crate::{
    driver::{
        core::{Core, CoreSetup, Handle, Settings, start},
        identity::Identity,
        world::Arrival,
    },
    engine::{Background, Engine},
    http::HttpLimits,
    limits::{CLOCK_ALERT_PERCENT, INCARNATION_ALERT_PERCENT, INCARNATION_MAX, SKEW_MAX},
    server::{
        callers, clients, clock,
        disk::RingDisk,
        mesh::{Mesh, MeshEnds, MeshTurn, Parcel},
        options::ServeOptions,
        peers::{PeerSelf, Peers},
        report::Reports,
        ring::{Bell, Ring},
        socket::Listener,
        ticker::Pulse,
        tidings::{Sight, Tidings},
        web::{self, Date, Web},
        world::ServerWorld,
    },
    types::{Address, ShardId},
};
use crossbeam_channel::{Receiver, Sender};
use futures_util::{
    FutureExt,
    future::{LocalBoxFuture, select},
};
use glommio::{Latency, Shares, SharesManager, TaskQueueHandle, channels::local_channel};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    future::{Future, poll_fn},
    os::fd::OwnedFd,
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Poll, Waker},
    time::Duration,
};

/// Shares of a core's time between queues that want it.
const SERVING_SHARES: usize = 1000;
/// Shares of the core that background work gets, by how urgent it is.
const BACKGROUND_SHARES: std::ops::RangeInclusive<usize> = 100..=1000;
/// How often that is looked at.
const URGENCY_PERIOD: Duration = Duration::from_millis(10);
/// How often the backlog is looked at.
const BACKLOG_PERIOD: Duration = Duration::from_secs(1);
/// How late a queue may be served while others run.
const LATENCY: Duration = Duration::from_millis(1);
/// Pause between two looks at whether the node has joined, at its start, and whether all is drained, at its end.
const LOOK: Duration = Duration::from_millis(2);

/// How long a node that joins waits for an answer before it says that it waits.
const JOIN_PATIENCE: Duration = Duration::from_secs(3);
/// And how often it says so after that.
const JOIN_TOLD_EVERY: Duration = Duration::from_secs(60);

/// What a core tells the control plane.
pub(super) enum Progress {
    Bell(u16, Bell),
    /// Its ports are served.
    Serving(u16),
    /// The node serves requests; told by shard 0.
    Ready,
    /// Told in each phase of a stop: this core could go on to the next one.
    Past(u16, Phase),
    Ended(u16, Result<(), String>),
}

/// Listening sockets of one core.
pub(super) struct CoreSockets {
    pub http: OwnedFd,
    pub client: OwnedFd,
    pub peer: OwnedFd,
}

pub(super) struct CoreOptions {
    pub identity: Identity,
    pub shard: u16,
    /// The CPU that it is pinned to.
    pub cpu: Option<usize>,
    pub settings: Settings,
    pub options: ServeOptions,
    pub ends: MeshEnds,
    pub sockets: CoreSockets,
    pub progress: Sender<Progress>,
    /// The bells of all cores, once all have one.
    pub bells: Receiver<Vec<Bell>>,
    /// How far the node's stop is.
    pub stop: Arc<AtomicU8>,
    pub pulse: Pulse,
}

/// Tells the control plane that a core has ended, whatever ended it.
pub(super) struct Ended {
    shard: u16,
    progress: Sender<Progress>,
    pub result: Result<(), String>,
}
impl Ended {
    pub(super) fn new(shard: u16, progress: Sender<Progress>) -> Ended {
        Ended { shard, progress, result: Err("it has panicked".into()) }
    }
}
impl Drop for Ended {
    fn drop(&mut self) {
        let result = std::mem::replace(&mut self.result, Ok(()));
        // Nobody listens any more when the process is ending.
        drop(self.progress.send(Progress::Ended(self.shard, result)));
    }
}

/// How far the stop of a node is. The control plane leads all cores from one phase to the next, because what one of
/// them still has in hand may need the others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[repr(u8)]
pub(super) enum Phase {
    #[default]
    Serving,
    /// What is in hand is finished. Requests of clients that come now are told to go elsewhere. A core is past this
    /// phase when nobody is connected to it, nor was a moment ago.
    Draining,
    /// Connections of clients end when what is in hand is answered. A core is past this phase when all is answered.
    Answering,
    /// The shards write their last words.
    Ending,
}
impl Phase {
    fn read(number: u8) -> Phase {
        match number {
            0 => Phase::Serving,
            1 => Phase::Draining,
            2 => Phase::Answering,
            3 => Phase::Ending,
            other => unreachable!("there is no phase {other}"),
        }
    }
}

/// The phase of the core, and who waits for a later one.
#[derive(Default)]
struct Stopping {
    phase: Cell<Phase>,
    waker: RefCell<Option<Waker>>,
}
impl Stopping {
    /// Takes over the phase of the node; gives it when it is a new one.
    fn follow(&self, node: &AtomicU8) -> Option<Phase> {
        let phase = Phase::read(node.load(Ordering::Acquire));
        if self.phase.replace(phase) == phase {
            return None;
        }
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
        Some(phase)
    }
    async fn reached(&self, phase: Phase) {
        poll_fn(|cx| {
            if self.phase.get() >= phase {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// The first failure of any task of the core.
#[derive(Clone)]
struct Failures {
    ring: Rc<Ring>,
    first: Rc<local_channel::LocalSender<String>>,
}

impl Failures {
    fn report(&self, what: &str, error: impl Display) {
        // Full: an earlier failure is on its way already.
        drop(self.first.try_send(format!("{what}: {error}")));
    }
    /// Runs a task of the core's own queue that must not end with an error.
    fn watch<E: Display + 'static>(&self, what: &'static str, task: impl Future<Output = Result<(), E>> + 'static) {
        let failures = self.clone();
        self.ring.spawn(async move {
            if let Err(error) = task.await {
                failures.report(what, error);
            }
        });
    }
}

pub(super) fn text(error: impl Display) -> String {
    error.to_string()
}

/// The queues of the calling executor: what clients wait for, and what they do not, whose part follows the urgency.
pub(super) fn queues() -> (TaskQueueHandle, TaskQueueHandle, Rc<Urgency>) {
    let executor = glommio::executor();
    let urgency = Rc::<Urgency>::default();
    let queue = |shares, name| executor.create_task_queue(shares, Latency::Matters(LATENCY), name);
    let serving = queue(Shares::Static(SERVING_SHARES), "serving");
    (serving, queue(Shares::Dynamic(urgency.clone()), "compaction"), urgency)
}

/// Drives the background futures of an engine, each in the queue of its kind.
pub(super) fn host(
    ring: &Ring,
    compaction: TaskQueueHandle,
    background: Vec<(Background, LocalBoxFuture<'static, ()>)>,
) -> Result<(), String> {
    for (kind, future) in background {
        match kind {
            Background::Log => ring.spawn(future),
            Background::Compaction => {
                glommio::spawn_local_into(ring.attend(future), compaction).map_err(text)?.detach();
            }
        }
    }
    Ok(())
}

/// Gives background work its part of the core and of the disk.
///
/// The executor asks for the shares in the middle of its own business, where nothing may be woken: so they are only
/// read there, and reckoned by a task.
pub(super) struct Urgency(Cell<usize>);
impl Default for Urgency {
    fn default() -> Urgency {
        Urgency(Cell::new(*BACKGROUND_SHARES.start()))
    }
}
impl Urgency {
    /// Follows an engine on this disk, for ever.
    pub(super) async fn follow(self: Rc<Self>, ring: Rc<Ring>, engine: Engine<RingDisk>, disk: Rc<RingDisk>) {
        loop {
            let urgency = engine.urgency();
            disk.set_urgency(urgency);
            let more = (BACKGROUND_SHARES.end() - BACKGROUND_SHARES.start()) as f64 * urgency;
            self.0.set(BACKGROUND_SHARES.start() + more as usize);
            // A core with nothing behind it is left in peace.
            ring.pause(if urgency > 0.0 { URGENCY_PERIOD } else { 10 * URGENCY_PERIOD }).await;
        }
    }
}
impl SharesManager for Urgency {
    fn shares(&self) -> usize {
        self.0.get()
    }
    fn adjustment_period(&self) -> Duration {
        URGENCY_PERIOD
    }
}

/// Keeps the backlog's figures up to date, and says when there is too much, when a clock is wrong, or when the node's
/// identity is in doubt.
async fn watch_backlog(world: Rc<ServerWorld>, handle: Handle<ServerWorld, RingDisk>) {
    let (mut alarms, mut refused, mut long, mut off) = (0, 0, 0, 0);
    let (mut tidings, mut told) = (Tidings::default(), false);
    loop {
        world.ring.pause(BACKLOG_PERIOD).await;
        let stats = handle.stats();
        let shard = world.address.shard.0;
        // The first core speaks for the node of what all its cores know.
        let first = shard == 0;
        let sight = Sight {
            members: if first { handle.views() } else { Vec::new() },
            tables: if first { handle.tables().list() } else { BTreeMap::new() },
            made_apart: if first { handle.tables().made_apart() } else { BTreeSet::new() },
            hints_pending: stats.shard.hints_pending,
            failures: stats.shard.requests.failures,
            parting: if first { handle.parting() } else { Vec::new() },
            stalled: stats.shard.disk_stalled,
            stalls: stats.shard.disk_stalls,
        };
        tidings.look(clock::now(), sight).iter().for_each(|news| news.tell(shard));
        world.backlog.look(clock::now(), world.address.shard, stats.engine);
        refused = tell_skew(refused, stats.shard.stamps_refused, world.address.shard);
        if first {
            off = tell_clock(off, stats.shard.clock_off_millis);
        }
        long = tell_long_clocks(long, stats.shard.clocks_long, world.address.shard);
        let greatest = stats.shard.greatest_incarnation;
        if greatest / INCARNATION_ALERT_PERCENT > INCARNATION_MAX / 100 && !std::mem::replace(&mut told, true) {
            tracing::error!(
                shard = world.address.shard.0,
                incarnation = greatest,
                "this node has used more than {INCARNATION_ALERT_PERCENT} % of its incarnations; when none is left it takes no \
                 new writes: replace it by one with an empty data directory"
            );
        }
        if stats.shard.identity_alarms > alarms {
            alarms = stats.shard.identity_alarms;
            tracing::error!(
                node = %world.address.node,
                shard = world.address.shard.0,
                alarms,
                "this node's disk is an older state or a copy, or another node uses its name; new writes get a new identity"
            );
        }
    }
}

/// Says that stamps were refused, once a period; gives how many there have been.
fn tell_skew(known: u64, refused: u64, shard: ShardId) -> u64 {
    if refused > known {
        tracing::warn!(
            shard = shard.0,
            writes = refused - known,
            "refused writes that are stamped more than {SKEW_MAX:?} ahead of this node's clock, or far behind it: a node's clock is wrong"
        );
    }
    refused
}

/// Says that keys have long clocks, once a period; gives how often one was stored.
fn tell_long_clocks(known: u64, stored: u64, shard: ShardId) -> u64 {
    if stored > known {
        tracing::warn!(
            shard = shard.0,
            writes = stored - known,
            "keys have been written by so many nodes and lives of nodes that more than {CLOCK_ALERT_PERCENT} % of the bound of \
             their clocks is used; at the bound they take no write by anybody else"
        );
    }
    stored
}

/// Says when the node's own clock has gone wrong, and when it is right again; gives by how many milliseconds it is off.
fn tell_clock(known: i64, off: i64) -> i64 {
    let seconds = off.unsigned_abs() as f64 / 1e3;
    match (known, off) {
        (0, 0) => {}
        (0, _) => tracing::error!(
            "this node's clock is {seconds:.1} s {} the others': it takes no writes of tables where the last write wins until \
             it is mended",
            if off > 0 { "ahead of" } else { "behind" }
        ),
        (_, 0) => tracing::warn!("this node's clock agrees with the others' again"),
        (_, _) => {}
    }
    off
}

/// Runs a core until the node stops.
pub(super) async fn run(core: CoreOptions) -> Result<(), String> {
    let (serving, compaction, urgency) = queues();
    let task = glommio::spawn_local_into(serve(core, compaction, urgency), serving).map_err(text)?;
    task.await
}

async fn serve(core: CoreOptions, compaction: TaskQueueHandle, urgency: Rc<Urgency>) -> Result<(), String> {
    let address = Address::new(core.identity.node, core.shard);
    let ring = Ring::new().map_err(text)?;
    ring.set_spin(core.options.spin_before_park);
    ring.count_turns(core.pulse.turns());
    let (first, failed) = local_channel::new_bounded(1);
    let failures = Failures { ring: ring.clone(), first: Rc::new(first) };
    drop(core.progress.send(Progress::Bell(core.shard, ring.bell())));
    // Blocks for as long as the slowest core takes to get here; nothing runs on this one yet.
    let bells = core.bells.recv().map_err(|_| "the start was given up".to_string())?;
    let mesh = Mesh::new(core.ends, &bells);
    let own = PeerSelf {
        address,
        generation: core.identity.now.generation,
        ip: core.identity.ip,
        ports: core.identity.ports,
        cluster: core.identity.now.cluster,
        formed: core.identity.formed.is_some(),
    };
    let world = ServerWorld::new(address, ring.clone(), mesh.clone(), Peers::new(own, ring.clone()));
    world.peers.attach(&world);
    let loopback = core.identity.ip.is_loopback();
    let giving_up = failures.clone();
    drop(world.end.set(Box::new(move |reason| giving_up.report("not served", reason))));
    let reports = Rc::new(Reports::new(core.identity.ip, &core.options.data, core.cpu, core.identity.shards));

    let stopping = Rc::new(Stopping::default());
    let turn = take_parcels(&world, &reports, &core.stop, &stopping);
    let driving = ring.clone().drive(MeshTurn { mesh, receive: turn, held: RefCell::default() });
    let driver_failed = failures.clone();
    // Not counted: the driver asks whether others have run.
    glommio::spawn_local(async move {
        if let Err(error) = driving.await {
            driver_failed.report("the ring", error);
        }
    })
    .detach();
    ring.spawn(world.clone().keep_alarm());
    ring.spawn(world.watches.clone().sweep(ring.clone()));

    let disk =
        Rc::new(RingDisk::new(ring.clone(), &core.options.data).map_err(text)?.syncing_by(core.options.sync_call));
    let setup = CoreSetup {
        identity: core.identity,
        shard: address.shard,
        settings: core.settings.clone(),
        engine: core.options.engine.clone(),
        seed: super::random(),
    };
    let Core { driver, background, handle } =
        start(world.clone(), disk.clone(), world.inbox.clone(), setup).await.map_err(text)?;
    host(&ring, compaction, background)?;
    drop(world.handle.set(handle.clone()));
    ring.spawn(urgency.follow(ring.clone(), handle.engine().clone(), disk));
    ring.spawn(watch_backlog(world.clone(), handle.clone()));
    ring.spawn(tell_damage(handle.clone(), address.shard));

    let listen = |fd: OwnedFd| Listener::new(&ring, fd);
    let web = Rc::new(Web {
        world: world.clone(),
        limits: HttpLimits {
            value_bytes_max: core.settings.value_bytes_max,
            request_timeout: core.settings.request_timeout,
        },
        reports,
        connections_max: core.options.connections_max,
        loopback,
        random: RefCell::new(fastrand::Rng::with_seed(super::random())),
        date: Date::default(),
    });
    failures.watch("the peer port", callers::serve(world.clone(), listen(core.sockets.peer), core.options.calls_max));
    failures.watch(
        "the client port",
        clients::serve(world.clone(), listen(core.sockets.client), core.options.connections_max),
    );
    failures.watch("the HTTP port", web::serve(web, listen(core.sockets.http)));
    drop(core.progress.send(Progress::Serving(core.shard)));

    let (ended, running) = local_channel::new_bounded(1);
    ring.spawn(async move {
        drop(ended.try_send(driver.await));
    });
    if core.shard == 0 {
        ring.spawn(tell_ready(world.clone(), core.progress.clone()));
    }
    let stopped = stop_when_told(&world, &stopping, &core.progress);
    let ended = async {
        match running.recv().await {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(text(error)),
            None => Err("its loop was cancelled".to_string()),
        }
    };
    let failure = async { Err(failed.recv().await.unwrap_or_else(|| "a task has ended".into())) };
    let (ended, stopped, failure) = (pin!(ended), pin!(stopped), pin!(failure));
    select(select(ended, stopped).map(|first| first.factor_first().0), failure).await.factor_first().0
}

/// What the core does at each turn of its ring: hears of a stop, takes parcels in.
fn take_parcels(
    world: &Rc<ServerWorld>,
    reports: &Rc<Reports>,
    stop: &Arc<AtomicU8>,
    stopping: &Rc<Stopping>,
) -> impl Fn(Option<Parcel>) + 'static {
    let (world, reports) = (world.clone(), reports.clone());
    let (stop, stopping) = (stop.clone(), stopping.clone());
    move |parcel| match parcel {
        None => {
            let Some(phase) = stopping.follow(&stop) else { return };
            if phase >= Phase::Draining && !world.draining.replace(true) {
                world.inbox.push(Arrival::Drain);
            }
            if phase >= Phase::Answering {
                world.watches.stop();
            }
        }
        Some(Parcel::Frame(pieces)) => world.arrive_from_core(pieces),
        Some(Parcel::ReportWanted { from }) => world.mesh.send(from, Parcel::Report(Box::new(reports.report(&world)))),
        Some(Parcel::Report(report)) => reports.take(*report),
        Some(Parcel::Repair { key }) => world.inbox.push(Arrival::Repair { key }),
    }
}

/// Writes every damaged place to the log of the process, those of the start first.
async fn tell_damage(handle: Handle<ServerWorld, RingDisk>, shard: ShardId) {
    let mut known = 0;
    loop {
        let news = handle.engine().damage_after(known).await;
        if news.is_empty() {
            return;
        }
        known += news.len();
        news.iter()
            .for_each(|damage| tracing::error!(shard = shard.0, %damage, "damaged: set aside, all else goes on"));
    }
}

/// Tells the control plane once the node serves requests. A node that joins waits for a member to answer, and says each
/// minute which seeds do not and why.
async fn tell_ready(world: Rc<ServerWorld>, progress: Sender<Progress>) {
    let (mut pause, begun) = (LOOK, clock::now());
    let mut due = begun + JOIN_PATIENCE;
    while !world.handle.get().is_some_and(|h| h.ready()) {
        world.ring.pause(pause).await;
        pause = (pause * 2).min(LOOK * 25);
        if clock::now() >= due {
            due = clock::now() + JOIN_TOLD_EVERY;
            let waited = clock::now().since(begun).as_secs();
            tracing::warn!(waited, "waiting for a member of the cluster to answer; no request is served before");
            for (seed, why) in world.peers.silent_seeds() {
                tracing::warn!(%seed, why, "cannot join through this seed: --join takes the address and peer port of another member");
            }
        }
    }
    drop(progress.send(Progress::Ready));
}

/// Follows the phases of a stop and says when this core is past each; ends the shard in the last one. Its driver ends
/// after that.
async fn stop_when_told(
    world: &Rc<ServerWorld>,
    stopping: &Stopping,
    progress: &Sender<Progress>,
) -> Result<(), String> {
    // Nobody listens any more when the process is ending.
    let past = |phase| drop(progress.send(Progress::Past(world.address.shard.0, phase)));
    stopping.reached(Phase::Draining).await;
    while !(world.is_quiet() && world.replies.pending() == 0) && stopping.phase.get() < Phase::Answering {
        world.ring.pause(LOOK).await;
    }
    past(Phase::Draining);
    stopping.reached(Phase::Answering).await;
    while world.is_answering() && stopping.phase.get() < Phase::Ending {
        world.ring.pause(LOOK).await;
    }
    past(Phase::Answering);
    stopping.reached(Phase::Ending).await;
    world.inbox.push(Arrival::Stop);
    std::future::pending().await
}
